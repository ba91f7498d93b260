"""Which replica a request goes to, and how a cluster's cores and GPUs are shared out; without a cluster."""

import subprocess
import sys
from collections import Counter

import pytest

from smollm3.errors import DeviceError, ParameterError
from smollm3.server.metrics import Metrics
from smollm3.server.replicas.routing import ANYWHERE, MUCH_LONGER, ranked
from smollm3.server.replicas.shares import Cluster, share_out

NAMES = ("a1", "b2", "c3", "d4")
SESSIONS = [f"session-{idx}" for idx in range(400)]


def idle(*names: str) -> dict[str, int | None]:
    return dict.fromkeys(names, 0)


def test_sessions_are_spread_and_each_stays_where_it_is() -> None:
    first = {session: ranked(session, idle(*NAMES))[0] for session in SESSIONS}
    assert all(60 < num < 140 for num in Counter(first.values()).values())
    assert all(ranked(session, idle(*reversed(NAMES)))[0] == first[session] for session in SESSIONS)
    unknown = dict.fromkeys(NAMES)
    assert all(ranked(session, unknown)[0] == first[session] for session in SESSIONS)


def test_when_a_replica_leaves_or_joins_only_its_own_sessions_move() -> None:
    for session in SESSIONS:
        before = ranked(session, idle(*NAMES))
        assert ranked(session, idle("a1", "b2", "d4")) == [name for name in before if name != "c3"]
        after = ranked(session, idle(*NAMES, "e5"))
        assert [name for name in after if name != "e5"] == before


def test_a_session_spills_to_its_next_replica_while_its_own_is_much_busier() -> None:
    own, second, *_ = ranked("chat", idle(*NAMES))
    assert ranked("chat", {**idle(*NAMES), own: MUCH_LONGER})[0] == own
    spilled = ranked("chat", {**idle(*NAMES), own: MUCH_LONGER + 1})
    assert (spilled[0], spilled[-1]) == (second, own)
    assert ranked("chat", dict.fromkeys(NAMES, 50))[0] == own
    busy = {**idle(*NAMES), own: 99}
    assert own in {ranked(f"{ANYWHERE}{idx}", busy)[0] for idx in range(50)}


def test_without_a_session_the_shortest_queue_is_best() -> None:
    assert ranked("", {"a1": 3, "b2": 1, "c3": 2}) == ["b2", "c3", "a1"]
    assert {ranked("", idle(*NAMES))[0] for _ in range(200)} == set(NAMES)
    assert ranked("", {}) == ranked("x", {}) == []


def test_odd_session_names_are_only_names() -> None:
    for session in ("\ud800", "é\n", "x" * 100_000):
        assert sorted(ranked(session, idle(*NAMES))) == sorted(NAMES)


@pytest.mark.parametrize(
    ("hosts", "num", "threads", "expected"),
    [
        ((2,), 2, None, 1.0),
        ((2,), 1, None, 2.0),
        ((2,), 3, None, 2 / 3),
        ((2,), 2, 4, 1.0),
        ((16, 16), 4, None, 8.0),
        ((16, 16), 3, None, 8.0),
        ((16, 16), 1, None, 16.0),
        ((12, 4), 2, None, 6.0),
        ((12, 4), 3, None, 4.0),
        ((12, 4), 2, 4, 4.0),
        ((12, 4), 4, 3, 3.0),
    ],
)
def test_cores_are_shared_out(
    hosts: tuple[float, ...], num: int, threads: int | None, expected: float
) -> None:
    share = share_out(Cluster(True, hosts, 0, ""), num, "auto", threads)
    assert (share.num, share.num_gpus, share.device) == (num, 0, "auto")
    assert share.num_cpus == pytest.approx(expected)


def test_a_cluster_without_cores_is_one_line() -> None:
    with pytest.raises(ParameterError, match="no host of this Ray cluster has cores"):
        share_out(Cluster(False, (), 0, ""), 2, "auto", None)


@pytest.mark.parametrize(
    ("device", "num_gpus", "expected"),
    [("auto", 2, ("cuda", 1)), ("auto", 1, ("cpu", 0)), ("cpu", 2, ("cpu", 0)), ("cuda", 4, ("cuda", 1))],
)
def test_gpus_are_shared_out(device: str, num_gpus: int, expected: tuple[str, int]) -> None:
    share = share_out(Cluster(True, (8.0,), num_gpus, ""), 2, device, None)
    assert (share.device, share.num_gpus) == expected


def test_gpus_that_are_not_there_are_one_line() -> None:
    cluster = Cluster(True, (8.0,), 1, "")
    with pytest.raises(DeviceError, match="needs 2 GPUs, and Ray finds 1"):
        share_out(cluster, 2, "cuda", None)
    for device in ("cuda:1", "1"):
        with pytest.raises(ParameterError, match=f"--device {device}: each replica gets a device of its own"):
            share_out(cluster, 2, device, None)


def test_each_sample_of_a_replicas_metrics_has_its_name() -> None:
    counts, plain = Metrics('r"1'), Metrics()
    for metrics in (counts, plain):
        metrics.requested("/health", 200, 0.1)
        metrics.failed("too_many_requests")
    lines = counts.text(up=True, num_active=0, stats=None).splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert len(samples) > 50
    assert all('{replica="r\\"1"' in line for line in samples)
    assert 'smollm3_up{replica="r\\"1"} 1' in samples
    assert 'smollm3_errors_total{replica="r\\"1",code="too_many_requests"} 1' in samples
    assert "replica=" not in plain.text(up=True, num_active=0, stats=None)


def test_a_server_without_replicas_needs_no_ray() -> None:
    code = (
        "import sys, smollm3.cli.serve_replicas, smollm3.server.app, smollm3.server.run\n"
        "assert not {'ray', 'fastapi'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
