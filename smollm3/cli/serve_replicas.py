"""`smollm3 serve --replicas N`: the server in N processes on Ray Serve, on this machine or on several hosts.

In: the options of `smollm3 serve`, checked. Out: an exit code. What cannot work is said before a replica is
started.
"""

import logging
import os
import secrets
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from smollm3.cli.loading import plan_loading
from smollm3.cli.options import LoadOptions
from smollm3.cli.serve import ServeOptions, facts_of, load_service, need_packages, served_line
from smollm3.errors import ParameterError
from smollm3.server.log import note

if TYPE_CHECKING:
    from smollm3.server.replicas.deployment import Served
    from smollm3.server.settings import Access, Limits

log = logging.getLogger(__name__)
PACKAGES = ("ray", "fastapi")


@dataclass(frozen=True)
class ReplicaRecipe:
    """All that a replica needs to load the model where it runs; num_cpus is its share of that machine."""

    load_options: LoadOptions
    options: ServeOptions
    limits: "Limits"
    access: "Access"
    num_cpus: float

    def __call__(self, replica: str) -> "Served":
        """Load the model and return the application around it, for the replica of that name."""
        import torch

        from smollm3.server.app import build_app
        from smollm3.server.log import setup_logging
        from smollm3.server.replicas.deployment import Served

        setup_logging("text" if self.options.log_format == "text" else "json")
        note(log, "loading", replica=replica, pid=os.getpid())
        torch.set_num_threads(self.options.threads or max(1, int(self.num_cpus)))
        share = min(1.0, self.num_cpus / num_cores())
        loaded, service = load_service(self.load_options, self.options, self.limits, self.access, share)
        app = build_app(service, access=self.access, limits=self.limits, ui=self.options.ui, replica=replica)
        return Served(service, app, facts_of(loaded, service, self.options))


def run_serve_replicas(
    load_options: LoadOptions, options: ServeOptions, limits: "Limits", access: "Access"
) -> int:
    """Serve from several processes until a signal and return the exit code."""
    need_packages(PACKAGES, "smollm3 serve --replicas", "smollm3[replicas]")
    from smollm3.server.log import setup_logging
    from smollm3.server.replicas.shares import share_out
    from smollm3.server.run import bind, url_of

    num, address = options.replicas or 1, options.ray_address
    with bind(options.host, options.port) as listener:
        port, url = listener.getsockname()[1], url_of(listener)
    model_id = options.served_model_name or _check_model(load_options, here=address is None)
    if address is not None:
        _check_address(address)
    set_up_ray(own=address is None)
    from smollm3.server.replicas.cluster import Signals, Stopped, joined, run_replicas

    handler = setup_logging("text" if options.log_format == "text" else "json")
    signals = Signals()

    def ready(facts: str) -> None:
        print(served_line(model_id, url, f"{num} replicas, each: {facts}", options), flush=True)

    try:
        with joined(address, num_cores(), signals) as cluster:
            note(log, "replicas write their log to worker-*.err", folder=cluster.folder)
            share = share_out(cluster, num, load_options.device, options.threads)
            load_options = replace(load_options, device=share.device)
            recipe = ReplicaRecipe(load_options, options, limits, access, share.num_cpus)
            return run_replicas(cluster, recipe, share, limits, (options.host, port), signals, ready)
    except Stopped as stopped:
        note(log, "aborted by a signal")
        handler.flush()
        os._exit(128 + stopped.number)  # what it fell into, in Ray's own code, is not safe to go on from


def _check_model(load_options: LoadOptions, *, here: bool) -> str:
    """Return the model's name; if it is to run on this machine, see that it can, and that it is there."""
    from smollm3.checkpoint.hub import DEFAULT_MODEL, resolve

    name = load_options.model or DEFAULT_MODEL
    if here:
        plan_loading(load_options)
        # Once, before each replica looks for it.
        resolve(name, revision=load_options.revision, local_files_only=load_options.local_files_only)
    return name


def _check_address(address: str) -> None:
    """See that something answers there: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host.strip("[]") or not port.isdecimal() or "/" in host:
        raise ParameterError(f"--ray-address {address!r}: give HOST:PORT, as `ray start` says")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ParameterError(
            f"--ray-address {address}: no Ray cluster answers there ({reason}): start it with `ray start`"
        ) from error


def set_up_ray(*, own: bool) -> None:
    """Set what Ray reads from the environment, for its processes too; call it before Ray is imported."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if own:
        # The name is about other systems; what it does is keep Ray's processes on 127.0.0.1.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Whoever reaches one of Ray's ports can run code: other users of this machine must not.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
