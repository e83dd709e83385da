"""Planned churn against examples written out by hand; losses and lateness against what they must obey."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pytest

from p2pfl import topology
from p2pfl.churn import EVENTS, Conditions, Deliveries, Event, active, check, lost
from p2pfl.errors import ConfigError
from p2pfl.types import Delivery, Schedule

CRASH, LEAVE, REJOIN = (lambda node, round, kind=kind: Event(kind, node, round) for kind in EVENTS)


@pytest.mark.parametrize(
    "events, text",
    [
        ([Event("crsh", 0, 2)], r"churn\[0\].event='crsh': did you mean 'crash'\? Valid: crash, leave, rejoin"),
        ([CRASH(0, 2), CRASH(3, 2)], r"churn\[1\].node=3: there are nodes 0 to 2"),
        ([CRASH(-1, 2)], r"churn\[0\].node=-1: there are nodes 0 to 2"),
        ([CRASH(0, 0)], r"churn\[0\].round=0: must be within 1 to rounds=6"),
        ([CRASH(0, 7)], r"churn\[0\].round=7: must be within 1 to rounds=6"),
        ([CRASH(1, 3), REJOIN(1, 3)], "node 1 has two events at round 3; one round holds one"),
        ([REJOIN(1, 3)], "node 1 can't rejoin at round 3: it is still there"),
        ([CRASH(1, 2), LEAVE(1, 3)], "node 1 can't leave at round 3: it is already gone"),
        ([LEAVE(1, 2), CRASH(1, 3)], "node 1 can't crash at round 3: it is already gone"),
        ([REJOIN(1, 3), CRASH(1, 2), REJOIN(1, 5)], "node 1 can't rejoin at round 5: it is still there"),
        ([CRASH(0, 2), LEAVE(1, 3), CRASH(2, 4), REJOIN(0, 5)], "nobody is there in round 4; leave at least one node"),
    ],
)
def test_what_cannot_happen_is_refused(events: list[Event], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check(events, nodes=3, rounds=6)


def test_what_can_happen_is_not() -> None:
    check([], 1, 1)
    check([REJOIN(1, 4), CRASH(1, 2), LEAVE(1, 6), CRASH(0, 1), REJOIN(0, 6)], 3, 6)


def test_an_event_stands_for_the_beginning_of_its_round() -> None:
    events = [REJOIN(1, 4), CRASH(1, 2), LEAVE(2, 5), CRASH(0, 1), REJOIN(0, 6)]  # in any order
    expected = np.array(
        [
            #0 1  2
            [0, 1, 1],  # round 1: 0 never trains
            [0, 0, 1],  # round 2: 1 has finished round 1
            [0, 0, 1],
            [0, 1, 1],  # round 4: 1 is back
            [0, 1, 0],
            [1, 1, 0],
        ],
        bool,
    )  # fmt: skip
    assert np.array_equal(active(events, 3, 6), expected)


def deliveries(schedule: Schedule, rounds: int, events: Any = (), steps: int = 1, **given: Any) -> Delivery:
    nodes = schedule.neighbor.shape[1]
    return Deliveries(events, schedule, rounds, np.full(nodes, steps), Conditions(**given)).take(rounds)


def booked(schedule: Schedule, delivery: Delivery, r: int) -> set[tuple[int, int, int]]:
    """{(node, neighbour, age)} of row r of a delivery."""
    t = r % len(schedule.neighbor)
    at = zip(*np.nonzero(delivery.arrived[r]), strict=True)
    return {(int(i), int(schedule.neighbor[t, i, k]), int(delivery.age[r, i, k])) for i, k in at}


def test_an_exchange_is_booked_when_both_ends_are_there() -> None:
    plan = topology.schedule(nx.path_graph(4))  # slots: 0: [1, -], 1: [0, 2], 2: [1, 3], 3: [2, -]
    delivery = deliveries(plan, 3, [CRASH(1, 2), REJOIN(1, 3)], steps=5)
    whole = [[1, 0], [1, 1], [1, 1], [1, 0]]
    assert np.array_equal(delivery.active, [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]])
    assert np.array_equal(delivery.steps, [[5, 5, 5, 5], [5, 0, 5, 5], [5, 5, 5, 5]])
    assert np.array_equal(delivery.arrived, [whole, [[0, 0], [0, 0], [0, 1], [1, 0]], whole])
    assert not delivery.age.any()
    assert [a.dtype for a in delivery] == [np.bool_, np.int32, np.bool_, np.int32]


def test_events_and_losses_book_at_both_ends_or_at_neither() -> None:
    graph = nx.petersen_graph()
    plan = topology.schedule(graph)
    events = [CRASH(3, 2), LEAVE(7, 2), REJOIN(3, 4), CRASH(0, 5), REJOIN(7, 6)]
    for loss in (0.0, 0.3):
        delivery = deliveries(plan, 8, events, loss=loss)
        for r in range(8):
            found = booked(plan, delivery, r)
            assert found == {(j, i, age) for i, j, age in found}
            there = set(np.flatnonzero(delivery.active[r]).tolist())
            whole = {(i, j, 0) for i in there for j in graph.neighbors(i) if j in there}
            assert found == whole if not loss else found < whole


def test_it_follows_the_period_of_the_schedule() -> None:
    """Two rounds in turn: the edge 0-1, then the edge 1-2; node 2 does not train in the second."""
    plan = topology.schedule(nx.path_graph(3))
    first, second = plan.neighbor[0].copy(), plan.neighbor[0].copy()
    first[[1, 2], [1, 0]] = -1
    second[[0, 1], [0, 0]] = -1
    weight = np.repeat(plan.weight, 2, axis=0)
    trains = np.array([[True, True, True], [True, True, False]])
    turns = Schedule(np.stack([first, second]), weight, weight, trains)
    delivery = deliveries(turns, 4, [CRASH(0, 3)], steps=2)
    one, two, none = [[1, 0], [1, 0], [0, 0]], [[0, 0], [0, 1], [1, 0]], [[0, 0]] * 3
    assert np.array_equal(delivery.arrived, [one, two, none, two])
    assert np.array_equal(delivery.steps, [[2, 2, 2], [2, 2, 0], [0, 2, 2], [0, 2, 0]])


def test_a_slot_that_only_speaks_or_rests_hears_nothing() -> None:
    plan = topology.stable(topology.plan("one_peer_exponential", 8))
    delivery = deliveries(plan, 6, link="push")
    for r in range(6):
        assert booked(plan, delivery, r) == {(i, (i - 2 ** (r % 3)) % 8, 0) for i in range(8)}


def test_a_node_alone() -> None:
    delivery = deliveries(topology.schedule(nx.path_graph(1)), 3, steps=2, loss=0.5)
    assert delivery.arrived.shape == delivery.age.shape == (3, 1, 0)
    assert delivery.active.all()


@pytest.mark.parametrize("given", [{}, {"loss": 0.3}, {"loss": 0.2, "late": 3, "lateness": 8}])
def test_the_cut_into_stretches_plays_no_part(given: dict[str, Any]) -> None:
    plan = topology.plan("random_regular", 10)
    events = [CRASH(3, 5), REJOIN(3, 9), LEAVE(2, 11)]

    def drawn(*stretches: int, seed: int = 4) -> Delivery:
        source = Deliveries(events, plan, 20, np.full(10, 2), Conditions(**given, seed=seed))
        return Delivery(*(np.concatenate(parts) for parts in zip(*map(source.take, stretches), strict=True)))

    whole = drawn(20)
    for stretches in ((1,) * 20, (7, 0, 13), (19, 1)):
        assert all(np.array_equal(a, b) for a, b in zip(drawn(*stretches), whole, strict=True))
    if given:
        assert not np.array_equal(drawn(20, seed=5).arrived, whole.arrived)


# ------------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("probability", [0.01, 0.3])
def test_messages_are_lost_at_their_rate(probability: float) -> None:
    """Within four standard errors, by pair of rounds, directions and seeds independently."""
    rounds, i, j = np.arange(1, 301)[:, None, None], np.arange(20)[:, None], np.arange(20)[None, :]
    gone = lost(probability, 0, rounds, i, j)
    n = gone.size
    error = 4 * np.sqrt(probability * (1 - probability) / n)
    assert abs(gone.mean() - probability) < error
    square = probability**2
    for other in (gone[::-1], gone.swapaxes(1, 2), lost(probability, 1, rounds, i, j)):
        both = (gone & other)[:, i != j].mean()
        assert abs(both - square) < 5 * np.sqrt(square / n) * 2**0.5  # each pair of a symmetric product counts twice
    assert lost(0.0, 0, 1, i, j).shape == (20, 20) and not lost(0.0, 0, 1, i, j).any()


@pytest.mark.parametrize(
    "given, rate",
    [({}, 0.9**2), ({"rule": "self"}, 0.9), ({"rule": "renormalise"}, 0.9), ({"link": "push"}, 0.9)],
    ids=["double entry", "self", "renormalise", "push"],
)
def test_the_rule_decides_what_is_booked(given: dict[str, Any], rate: float) -> None:
    """Double entry needs both messages; a wrong rule, or a push, the one that comes."""
    plan = topology.plan("random_regular", 20)
    delivery = deliveries(plan, 500, loss=0.1, **given)
    edges = 500 * 30
    assert abs(delivery.arrived[:, plan.neighbor[0] >= 0].mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / edges)
    back = topology.reverse(plan)[0]
    other = delivery.arrived[:, plan.neighbor[0], back]
    assert (delivery.arrived == other).all() == (not given)
    # what arrives is the same message in both worlds
    one_way = deliveries(plan, 500, loss=0.1, link="push")
    assert not given or np.array_equal(delivery.arrived, one_way.arrived)


# ----------------------------------------------------------------------------------------------------------- lateness


@pytest.mark.parametrize("late, lateness, loss", [(1, 8, 0.0), (3, 8, 0.2), (3, 1, 0.0), (5, 2, 0.1)])
def test_late_exchanges(late: int, lateness: int, loss: float) -> None:
    """One open exchange per edge; both ends book it or neither; none later than either bound; none left at the end."""
    plan, rounds = topology.plan("random_regular", 12), 60
    events = [CRASH(3, 20), REJOIN(3, 30), LEAVE(5, 41)]
    delivery = deliveries(plan, rounds, events, late=late, lateness=lateness, loss=loss)
    assert (delivery.age >= 0).all() and not delivery.age[~delivery.arrived].any()
    entries: dict[tuple[int, int], list[tuple[int, int]]] = {}  # (node, neighbour) -> [(opened, booked)]
    for r in range(rounds):
        for i, j, age in booked(plan, delivery, r):
            assert delivery.active[r, i] and age <= min(late, lateness)
            entries.setdefault((i, j), []).append((r - age, r))
    ages = set()
    for (i, j), mine in entries.items():
        theirs = entries[j, i]
        assert [opened for opened, _ in mine] == [opened for opened, _ in theirs]
        free = 0
        for (opened, here), (_, there) in zip(mine, theirs, strict=True):
            assert opened >= free  # what was open is closed at both ends
            assert delivery.active[opened : max(here, there) + 1, [i, j]].all()
            free = max(here, there) + 1
            ages |= {here - opened}
    assert ages == set(range(min(late, lateness) + 1))
    if not (loss or lateness < late):
        # an edge is open for 1 + max of two draws from 0..late rounds: 1.75 on the average for late = 1
        gaps = np.mean([len(mine) for (i, j), mine in entries.items() if not {i, j} & {3, 5}])
        assert abs(gaps - rounds / 1.75) < 3
