"""Planned churn, against examples written out by hand."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from p2pfl import topology
from p2pfl.churn import EVENTS, Event, active, check, planned
from p2pfl.errors import ConfigError

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


def test_planned_books_an_exchange_when_both_ends_are_there() -> None:
    plan = topology.schedule(nx.path_graph(4))  # slots: 0: [1, -], 1: [0, 2], 2: [1, 3], 3: [2, -]
    delivery = planned([CRASH(1, 2), REJOIN(1, 3)], plan, rounds=3, local_steps=5)
    whole = [[1, 0], [1, 1], [1, 1], [1, 0]]
    assert np.array_equal(delivery.active, [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]])
    assert np.array_equal(delivery.steps, [[5, 5, 5, 5], [5, 0, 5, 5], [5, 5, 5, 5]])
    assert np.array_equal(delivery.arrived, [whole, [[0, 0], [0, 0], [0, 1], [1, 0]], whole])
    assert not delivery.age.any()
    assert [a.dtype for a in delivery] == [np.bool_, np.int32, np.bool_, np.int32]


def test_planned_books_at_both_ends_or_at_neither() -> None:
    graph = nx.petersen_graph()
    plan = topology.schedule(graph)
    events = [CRASH(3, 2), LEAVE(7, 2), REJOIN(3, 4), CRASH(0, 5), REJOIN(7, 6)]
    delivery = planned(events, plan, rounds=8, local_steps=1)
    for r in range(8):
        booked = {(i, int(plan.neighbor[0, i, k])) for i, k in zip(*np.nonzero(delivery.arrived[r]), strict=True)}
        assert booked == {(j, i) for i, j in booked}
        there = set(np.flatnonzero(delivery.active[r]).tolist())
        assert booked == {(i, j) for i in there for j in graph.neighbors(i) if j in there}


def test_planned_follows_the_period_of_the_schedule() -> None:
    """Two rounds in turn: the edge 0-1, then the edge 1-2."""
    plan = topology.schedule(nx.path_graph(3))
    first, second = plan.neighbor[0].copy(), plan.neighbor[0].copy()
    first[[1, 2], [1, 0]] = -1
    second[[0, 1], [0, 0]] = -1
    turns = plan._replace(neighbor=np.stack([first, second]))
    delivery = planned([CRASH(0, 3)], turns, rounds=4, local_steps=1)
    one, two, none = [[1, 0], [1, 0], [0, 0]], [[0, 0], [0, 1], [1, 0]], [[0, 0]] * 3
    assert np.array_equal(delivery.arrived, [one, two, none, two])


def test_planned_for_a_node_alone() -> None:
    delivery = planned([], topology.schedule(nx.path_graph(1)), rounds=3, local_steps=2)
    assert delivery.arrived.shape == delivery.age.shape == (3, 1, 0)
    assert delivery.active.all()
