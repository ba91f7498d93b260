"""How a cluster's cores and GPUs are shared out between replicas.

In: what the hosts have, what was asked for. Out: the share of each replica. Knows no Ray.
"""

from dataclasses import dataclass

from smollm3.errors import DeviceError, ParameterError


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster. own: started for this server. folder: where its processes write, on each host."""

    own: bool
    cpus_of_hosts: tuple[float, ...]
    num_gpus: int
    folder: str


@dataclass(frozen=True)
class Share:
    """What each of `num` replicas has: cores and GPUs set aside for it, and the device it loads to."""

    num: int
    num_cpus: float
    num_gpus: int
    device: str


def share_out(cluster: Cluster, num: int, device: str, threads: int | None) -> Share:
    """Return the share of each of `num` replicas: `threads` cores, or the most that each can have.

    `device` is as typed. Raises ParameterError, or DeviceError if there are too few GPUs.
    """
    if device.partition(":")[2] or device.isdecimal():
        raise ParameterError(f"--device {device}: each replica gets a device of its own; pass --device cuda")
    num_gpus = int(device == "cuda" or (device == "auto" and cluster.num_gpus >= num))
    if num_gpus * num > cluster.num_gpus:
        raise DeviceError(
            f"--device cuda with --replicas {num} needs {num} GPUs, and Ray finds {cluster.num_gpus}: "
            "give fewer replicas, or --device cpu"
        )
    if device == "auto" and cluster.num_gpus:
        device = "cuda" if num_gpus else "cpu"
    num_cpus = _most_each(cluster.cpus_of_hosts, num)
    if threads is not None:
        num_cpus = min(num_cpus, float(threads))
    elif num_cpus > 1:
        num_cpus = float(int(num_cpus))
    return Share(num, num_cpus, num_gpus, device)


def _most_each(hosts: tuple[float, ...], num: int) -> float:
    """Return the most cores that each of `num` replicas can have, so that all fit their hosts."""
    sizes = {cpus / replicas for cpus in hosts for replicas in range(1, num + 1)}
    fitting = [size for size in sizes if sum(int(cpus / size + 1e-6) for cpus in hosts) >= num]
    if not fitting:
        raise ParameterError("no host of this Ray cluster has cores for replicas: give it some (ray start)")
    return max(fitting)
