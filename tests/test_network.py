"""The virtual network: what it does to messages, and that it is a function of its seed."""

from __future__ import annotations

import itertools
import math

import pytest

from p2pfl.drivers.virtual.network import Link, Network, Queue


def network(seed: int = 1, **given: float) -> Network:
    return Network(seed, lambda source, to: Link(**given))


def test_a_plain_link_takes_its_latency_and_the_time_of_sending() -> None:
    net = network(latency=0.25, bandwidth=100.0)
    assert net.datagram(0, 1, 50, 1.0) == [1.75]
    assert net.stream(0, 1, 50, 1.0) == 1.75


def test_a_large_message_delays_those_behind_it_in_its_direction_only() -> None:
    net = network(latency=0.1, bandwidth=1000.0)
    assert net.stream(0, 1, 1000, 0.0) == pytest.approx(1.1)
    assert net.stream(0, 1, 10, 0.0) == pytest.approx(1.11)
    assert net.stream(1, 0, 10, 0.0) == pytest.approx(0.11)
    assert net.stream(0, 2, 10, 0.0) == pytest.approx(0.11)
    assert net.datagram(0, 1, 10, 0.0) == [pytest.approx(0.11)]
    assert net.stream(0, 1, 10, 5.0) == pytest.approx(5.11)


def test_a_stream_keeps_order_under_jitter_and_so_do_datagrams_without_reorder() -> None:
    net = network(latency=0.01, jitter=1.0)
    times = [net.stream(0, 1, 1, 0.01 * i) for i in range(500)]
    assert all(a <= b for a, b in itertools.pairwise(times))
    times = [net.datagram(0, 1, 1, 0.01 * i)[0] for i in range(500)]
    assert all(a <= b for a, b in itertools.pairwise(times))


def test_probabilities_are_met() -> None:
    net = network(latency=0.02, jitter=0.01, loss=0.1, reorder=0.2, duplicate=0.3)
    arrivals = [net.datagram(0, 1, 1, i / 1000) for i in range(20_000)]
    counts = [len(times) for times in arrivals]
    assert counts.count(0) / 20_000 == pytest.approx(0.1, abs=0.01)
    assert counts.count(2) / 18_000 == pytest.approx(0.3, abs=0.015)
    firsts = [times[0] for times in arrivals if times]
    overtaken = sum(a > b for a, b in itertools.pairwise(firsts)) / len(firsts)
    assert 0.1 < overtaken < 0.2
    lost = [net.stream(2, 3, 1, i / 1000) is None for i in range(20_000)]
    assert sum(lost) / 20_000 == pytest.approx(0.1, abs=0.01)


def test_the_same_seed_and_calls_give_the_same_times() -> None:
    def said(seed: int) -> list[object]:
        net = network(seed, latency=0.1, jitter=0.1, loss=0.2, reorder=0.2, duplicate=0.2)
        return [(net.datagram(i % 3, 3, 9, i / 10), net.stream(i % 3, 3, 9, i / 10)) for i in range(200)]

    assert said(4) == said(4) != said(5)


def test_cuts_are_one_way_and_partitions_are_healed() -> None:
    net = network()
    net.cut(0, 1)
    assert (net.up(0, 1), net.up(1, 0)) == (False, True)
    assert net.datagram(0, 1, 1, 0.0) == [] and net.stream(0, 1, 1, 0.0) is None and net.stream(1, 0, 1, 0.0) == 0.0
    net.heal()
    assert net.up(0, 1)
    net.partition([[0, 1], [2]])
    assert net.up(0, 1) and not net.up(1, 2) and not net.up(2, 3) and net.up(3, 4)
    net.cut(0, 1)
    net.heal()
    assert all(net.up(a, b) for a in range(5) for b in range(5))


def test_the_queue_jumps_through_time_in_order() -> None:
    queue = Queue()
    assert queue.due == math.inf and len(queue) == 0
    for time, item in [(2.0, "c"), (1.0, "a"), (1.0, "b")]:
        queue.put(time, item)
    assert queue.due == 1.0
    assert [queue.next() for _ in range(3)] == [(1.0, "a"), (1.0, "b"), (2.0, "c")]
    assert queue.now == 2.0
    with pytest.raises(ValueError, match="not before now"):
        queue.put(1.9, "late")
    with pytest.raises(ValueError, match="not before now"):
        queue.put(math.nan, "never")
    with pytest.raises(IndexError):
        queue.next()
