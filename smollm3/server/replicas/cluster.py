"""Runs a model's replicas on a Ray cluster until a signal: a cluster of our own here, or one that is there.

In: a recipe for a replica, and how many, where, with what. Out: an exit code. A second signal aborts.
"""

import logging
import re
import secrets
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, cast

import ray
from ray import serve
from ray.exceptions import RayError

from smollm3.errors import ParameterError
from smollm3.server.log import note
from smollm3.server.replicas.deployment import REFUSED, Recipe, Replica
from smollm3.server.replicas.routing import ANYWHERE
from smollm3.server.replicas.shares import Cluster, Share
from smollm3.server.run import CUT_OFF, DRAINED, SIGNALS, url_at
from smollm3.server.settings import Limits

log = logging.getLogger(__name__)
APP = "smollm3"
ROUTER = "smollm3.server.replicas.router.SessionRouter"
POLL_SECONDS = 0.1
HEALTH_SECONDS = 2.0
LATE_SECONDS = 5.0  # that a replica may be late
OTHER_REQUESTS = (
    1024  # beyond --max-concurrent, which our own 429 answers; more than that wait in Ray's proxy
)
OBJECT_STORE_BYTES = 80 * 2**20  # the least that Ray takes; nothing of ours lies there


class Stopped(KeyboardInterrupt):
    """A signal that ends everything at once; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """SIGINT and SIGTERM: the first is kept once all is ready; an earlier or a second one raises Stopped."""

    def __init__(self) -> None:
        self.ready = False
        self.received = False
        self.install()

    def install(self) -> None:
        """Take the signals; again after Ray has."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        if not self.ready or self.received:
            raise Stopped(number)
        self.received = True

    def ignore(self) -> None:
        """Let nothing disturb the end."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def joined(address: str | None, num_cpus: int, signals: Signals) -> Iterator[Cluster]:
    """Join the cluster at `address`, or start one of `num_cpus` cores here that only this machine reaches."""
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        folder = _init(address, num_cpus)
        signals.install()
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        cpus = tuple(cpus for host in resources if (cpus := host.get("CPU", 0.0)) > 0)
        yield Cluster(address is None, cpus, int(sum(host.get("GPU", 0) for host in resources)), folder)
    finally:
        signals.ignore()
        ray.shutdown(wait_for_processes=True)


def _init(address: str | None, num_cpus: int) -> str:
    """Have Ray start or join a cluster; return the folder of its logs."""
    own: dict[str, Any] = {"num_cpus": num_cpus, "object_store_memory": OBJECT_STORE_BYTES}
    own |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        context = ray.init(
            address or "local",
            log_to_driver=False,
            configure_logging=False,
            logging_level=logging.CRITICAL,
            **({} if address else own),
        )
    except SystemExit:  # what Ray's own handler makes of SIGTERM
        raise Stopped(signal.SIGTERM) from None
    except (OSError, ValueError, RuntimeError, RayError) as error:
        where = f"no Ray cluster at --ray-address {address}" if address else "Ray does not start"
        raise ParameterError(f"{where}: {_first_line(error)}") from error
    return f"{context.address_info['session_dir']}/logs"  # type: ignore[attr-defined]


def run_replicas(
    cluster: Cluster,
    recipe: Recipe,
    share: Share,
    limits: Limits,
    address: tuple[str, int],
    signals: Signals,
    on_ready: Callable[[str], None],
) -> int:
    """Serve until SIGTERM or SIGINT; return 0 if every request was finished, 1 if some were cut off.

    `limits` hold for each replica; `address` is host and port. `on_ready` gets what a replica has loaded,
    once all are ready. Raises ParameterError if none can load, and Stopped at a signal before that, or at a
    second one.
    """
    _check_free(cluster)
    try:
        _deploy(recipe, share, limits, address)
        facts = serve.get_app_handle(APP).facts.remote().result()
        signals.ready = True
        on_ready(facts)
        while not signals.received:
            time.sleep(POLL_SECONDS)
        return _drain(limits.drain_seconds)
    finally:
        signals.ignore()
        if not cluster.own:  # else it ends with all its processes
            serve.shutdown()  # type: ignore[no-untyped-call]


def _check_free(cluster: Cluster) -> None:
    if not cluster.own and (names := list(serve.status().applications)):
        raise ParameterError(
            f"Serve already runs {', '.join(names)} on this cluster: end it (serve shutdown), or take another"
        )


def _deploy(recipe: Recipe, share: Share, limits: Limits, address: tuple[str, int]) -> None:
    """Start proxies and replicas; return when all of them answer."""
    host, port = address
    serve.start(
        proxy_location="EveryNode",
        http_options={"host": host, "port": port, "keep_alive_timeout_s": int(limits.idle_seconds)},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    application = (
        serve.deployment(Replica)  # type: ignore[attr-defined]
        .options(
            name="replica",
            num_replicas=share.num,
            ray_actor_options={"num_cpus": share.num_cpus, "num_gpus": share.num_gpus},
            max_ongoing_requests=limits.max_requests + OTHER_REQUESTS,
            max_queued_requests=OTHER_REQUESTS,
            max_constructor_retry_count=1,
            graceful_shutdown_timeout_s=limits.drain_seconds,
            graceful_shutdown_wait_loop_s=POLL_SECONDS,
            health_check_period_s=HEALTH_SECONDS,
            request_router_config={"request_router_class": ROUTER},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        .bind(recipe)
    )
    try:
        serve.run(application, name=APP)
    except RuntimeError as error:
        raise ParameterError(f"no replica starts: {_reason(error)}") from error
    _wait_for_proxy(host, port)


def _wait_for_proxy(host: str, port: int, seconds: float = 30.0) -> None:
    """Wait until the proxy of this machine knows the replicas."""
    url = f"{url_at(host, port)}/-/routes"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError):
            if APP.encode() in opener.open(url, timeout=5).read():
                return
        time.sleep(POLL_SECONDS)
    raise ParameterError(f"Ray's proxy does not answer at {url}: see its log")


def _drain(seconds: float) -> int:
    """Let the replicas finish what they have, for a time; whatever is new gets a 503."""
    note(log, "draining", seconds=seconds)
    replica = serve.get_app_handle(APP).options(method_name="drain")
    ends: dict[str, int | None] = {}  # of the replicas that have been asked
    deadline = time.monotonic() + seconds + LATE_SECONDS
    while not (done := _all_ended(ends)) and time.monotonic() < deadline:
        # A new session each time: sooner or later each replica is asked.
        with suppress(RayError, TimeoutError):
            asked = replica.options(session_id=ANYWHERE + secrets.token_hex(8)).remote(seconds)
            name, end = asked.result(timeout_s=LATE_SECONDS)
            ends[name] = end
        time.sleep(POLL_SECONDS if len(ends) >= _num_running() else POLL_SECONDS / 10)
    code = max(end for end in ends.values() if end is not None) if done else CUT_OFF
    note(log, "drained" if code == DRAINED else "cut off")
    serve.delete(APP, _blocking=False)
    deadline = time.monotonic() + LATE_SECONDS
    while _num_running(stopping=True) and time.monotonic() < deadline:  # replies are still on their way
        time.sleep(POLL_SECONDS)
    return code


def _all_ended(ends: Mapping[str, int | None]) -> bool:
    ended = [end for end in ends.values() if end is not None]
    return bool(ended) and len(ended) >= _num_running()


def _num_running(*, stopping: bool = False) -> int:
    """Return how many replicas run, or run and stop."""
    status = serve.status().applications.get(APP)
    if status is None or "replica" not in status.deployments:
        return 0
    states = cast(Mapping[str, int], status.deployments["replica"].replica_states)
    return states.get("RUNNING", 0) + (states.get("STOPPING", 0) if stopping else 0)


def _reason(error: Exception) -> str:
    """Return the one line that matters of what Ray says about replicas that failed."""
    status = serve.status().applications.get(APP)
    told = "" if status is None else "\n".join(state.message for state in status.deployments.values())
    if found := re.findall(re.escape(REFUSED) + r"(.+)", told):
        return str(found[-1])
    if found := re.findall(r"^(?:\w+\.)*\w+(?:Error|Exception)\b.*", told, re.MULTILINE):
        return str(found[-1])
    return _first_line(told or error)


def _first_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
