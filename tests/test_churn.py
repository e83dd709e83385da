"""Planned churn against examples written out by hand; losses and lateness against what they must obey."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pytest

from p2pfl import topology
from p2pfl.churn import (  # fmt: skip
    Conditions,
    Deliveries,
    Event,
    active,
    check,
    cut,
    lags,
    losing,
    losses,
    lost,
    timeline,
)
from p2pfl.errors import ConfigError
from p2pfl.types import Delivery, Schedule

CRASH, LEAVE, REJOIN, JOIN = (
    lambda node, round, kind=kind: Event(kind, node, round) for kind in ("crash", "leave", "rejoin", "join")
)


def freeze(node: int, round: int, rounds: int = 2) -> Event:
    return Event("freeze", node, round, rounds=rounds)


def parted(round: int, *groups: tuple[int, ...]) -> Event:
    return Event("partition", -1, round, groups=groups)


def heal(round: int) -> Event:
    return Event("heal", -1, round)


def link_loss(round: int, rounds: int, loss: float, **where: Any) -> Event:
    return Event("link_loss", -1, round, rounds=rounds, loss=loss, **where)


@pytest.mark.parametrize(
    "events, text",
    [
        (
            [Event("crsh", 0, 2)],
            r"churn\[0\].event='crsh': did you mean 'crash'\? Valid: crash, freeze, heal, join, lag, leave, ",
        ),
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
        ([JOIN(1, 1)], r"churn\[0\].round=1: who joins at round 1 is there from the start; leave the event out"),
        ([CRASH(1, 2), JOIN(1, 4)], "node 1 can't join at round 4: it was there before; use rejoin"),
        ([Event("rejoin", 1, 3, "kpt")], r"churn\[0\].state='kpt': did you mean 'kept'\? Valid: kept, lost"),
        ([freeze(1, 2, 0)], r"churn\[0\].rounds=0: must be >= 1"),
        (
            [freeze(1, 2), CRASH(1, 3)],
            "node 1 can't crash at round 3: it is frozen until round 4; choose a later round",
        ),
        ([CRASH(1, 2), freeze(1, 3)], "node 1 can't freeze at round 3: it is already gone"),
        ([freeze(0, 2, 9), freeze(1, 2), freeze(2, 3)], "nobody is there in round 3; leave at least one node"),
        ([Event("lag", 1, 2, rounds=3)], r"churn\[0\].seconds=0.0: must be > 0"),
        ([parted(2)], r"churn\[0\].groups=\[\]: parts nobody from nobody; name a group that does not hold all nodes"),
        ([parted(2, (0, 1, 2))], r"churn\[0\].groups=\[\[0, 1, 2\]\]: parts nobody from nobody"),
        ([parted(2, (0, 1), (1,))], r"churn\[0\].groups: node 1 stands twice; name it once"),
        ([parted(2, (0,), ())], r"churn\[0\].groups\[1\]=\[\]: must name nodes; leave it out"),
        ([parted(2, (0,), (7,))], r"churn\[0\].groups\[1\]=7: there are nodes 0 to 2"),
        ([heal(2), parted(3, (0,))], "heal at round 2: nothing is parted there; leave it out"),
        ([parted(3, (0,)), heal(3)], "the network has two events at round 3; one round holds one"),
        ([link_loss(2, 1, 0.0, nodes=(1,))], r"churn\[0\].loss=0.0: must be > 0 and <= 1"),
        ([link_loss(2, 1, 0.5)], r"churn\[0\]: link_loss needs either links or nodes, and not both"),
        ([link_loss(2, 1, 0.5, links=((0, 0),))], r"churn\[0\].links\[0\]=\[0, 0\]: a link joins two nodes"),
        ([link_loss(2, 1, 0.5, links=((0, 3),))], r"churn\[0\].links\[0\]=3: there are nodes 0 to 2"),
    ],
)
def test_what_cannot_happen_is_refused(events: list[Event], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check(events, nodes=3, rounds=6)


def test_what_can_happen_is_not() -> None:
    check([], 1, 1)
    check([REJOIN(1, 4), CRASH(1, 2), LEAVE(1, 6), CRASH(0, 1), REJOIN(0, 6)], 3, 6)
    check([JOIN(1, 2), freeze(1, 3, 9), parted(1, (0,)), parted(2, (1,), (2,)), heal(3), parted(4, (0, 1))], 3, 6)
    check(
        [freeze(1, 2, 2), CRASH(1, 4), Event("lag", 1, 4, rounds=1, seconds=0.5), Event("rejoin", 1, 5, "kept")], 3, 6
    )


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


def test_who_is_there_and_who_is_known_to_be() -> None:
    """A crash is known two rounds late, all else at once; who stands still is there, and takes no part."""
    events = [CRASH(0, 2), Event("rejoin", 0, 5, "kept"), LEAVE(1, 3), REJOIN(1, 4), JOIN(2, 3), freeze(3, 2)]
    found = timeline(events, 4, 5, detection=2)
    rows = {
        #            round 1       2          3          4          5
        "active":  ["1101", "0100", "0010", "0111", "1111"],
        "present": ["1101", "0101", "0011", "0111", "1111"],
        "known":   ["1101", "1101", "1011", "0111", "1111"],
        "kept":    ["0000", "0000", "0000", "0000", "1000"],
        "fresh":   ["0000", "0000", "0010", "0100", "0000"],
    }  # fmt: skip
    for name, expected in rows.items():
        assert ["".join(map(str, row)) for row in getattr(found, name).astype(int)] == expected, name
    assert found.life.tolist() == [[1, 1, 1, 1]] * 3 + [[1, 2, 1, 1], [2, 2, 1, 1]]
    assert not found.side.any()


def test_a_partition_cuts_at_once_and_is_known_later() -> None:
    events = [parted(2, (0, 1), (3,)), heal(5), parted(6, (2,))]
    found = timeline(events, 4, 7, detection=1)
    apart, later = [1, 1, 0, 2], [0, 0, 1, 0]
    assert found.side.tolist() == [[0] * 4, apart, apart, apart, [0] * 4, later, later]
    assert found.known_side.tolist() == [[0] * 4, [0] * 4, apart, apart, [0] * 4, [0] * 4, later]
    kept_back = cut(events)
    for round in range(1, 10):
        side = found.side[min(round, 7) - 1]
        for i in range(4):
            for j in range(4):
                assert kept_back(round, i, j) == (side[i] != side[j])


def test_losses_of_links_and_lags() -> None:
    events = [link_loss(2, 2, 0.5, links=((1, 0), (2, 3))), link_loss(3, 4, 0.2, nodes=(3,)),
              Event("lag", 1, 2, rounds=2, seconds=0.5), Event("lag", 1, 3, rounds=1, seconds=1.0)]  # fmt: skip
    probability, seconds = losses(events), lags(events)
    for round, pair, expected in (
        (1, (0, 1), 0), (2, (0, 1), 0.5), (3, (1, 0), 0.5), (4, (0, 1), 0), (3, (0, 2), 0), (3, (3, 2), 0.6),
        (4, (0, 3), 0.2), (6, (3, 0), 0.2), (7, (3, 0), 0),
    ):  # fmt: skip
        assert float(probability(round, *pair)) == pytest.approx(expected, abs=1e-12), (round, pair)
    both = probability(3, np.arange(4)[:, None], np.arange(4))
    assert both.shape == (4, 4) and np.allclose(both, both.T) and both[2, 3] == pytest.approx(0.6)
    assert [seconds(round, 1) for round in range(1, 5)] == [0, 0.5, 1.5, 0] and seconds(2, 0) == 0
    loses = losing([*events, parted(9, (0,))], 0.3, seed=1)
    assert loses(10, 0, 1) and loses(10, 3, 0)
    for seed in range(20):
        whole = losing(events, 0.3, seed)
        assert [whole(r, 2, 3) for r in (1, 2)] == [bool(lost(p, seed, r, 2, 3)) for r, p in ((1, 0.3), (2, 0.65))]


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


def test_who_is_cut_off_or_stands_still_books_nothing() -> None:
    plan = topology.schedule(nx.complete_graph(5))
    delivery = deliveries(plan, 5, [parted(2, (0, 1)), heal(4), freeze(2, 3, 2)], steps=3)
    sides = {2: ({0, 1}, {2, 3, 4}), 3: ({0, 1}, {3, 4}), 4: ({0, 1, 3, 4},), 5: (set(range(5)),)}
    for round, groups in sides.items():
        assert booked(plan, delivery, round - 1) == {(i, j, 0) for group in groups for i in group for j in group - {i}}
    assert delivery.steps[:, 2].tolist() == [3, 3, 0, 0, 3]


def test_a_link_that_loses_voids_its_exchanges_at_both_ends() -> None:
    plan, rounds = topology.schedule(nx.cycle_graph(6)), 400
    delivery = deliveries(plan, rounds, [link_loss(101, 200, 0.4, links=((2, 3),))], loss=0.1)
    here = np.array([(2, 3, 0) in booked(plan, delivery, r) for r in range(rounds)])
    assert np.array_equal(here, [(3, 2, 0) in booked(plan, delivery, r) for r in range(rounds)])
    for part, both in ((here[100:300], (0.6 * 0.9) ** 2), (np.delete(here, np.arange(100, 300)), 0.9**2)):
        assert abs(part.mean() - both) < 4 * np.sqrt(both * (1 - both) / 200)
    assert np.array_equal(delivery.arrived[:100], deliveries(plan, 100, loss=0.1).arrived)


def test_rows_and_epochs_that_are_given() -> None:
    """Each round its own row of the schedule; what is open when an epoch ends is void."""
    plan = topology.plan("random_regular", 10)
    two = Schedule(*(np.concatenate([part, part]) for part in plan))
    two.weight[1] = 0  # of the second row, nothing is exchanged
    rows, steps = np.array([0, 1, 1, 0]), np.ones(10)
    found = Deliveries([], two, 4, steps, rows=rows).take(4)
    assert found.arrived.any(axis=(1, 2)).tolist() == [True, False, False, True]
    epoch = np.repeat([0, 1], 10)[:, None].repeat(10, axis=1)
    epoch[14:, 3] = 2
    given = Conditions(late=3, lateness=8)
    late = Deliveries([], plan, 20, steps, given, epoch=epoch).take(20)
    opened = np.arange(20)[:, None, None] - late.age
    assert late.age[late.arrived].max() == 3
    for r in range(20):
        for i, k in zip(*np.nonzero(late.arrived[r]), strict=True):
            j = plan.neighbor[0, i, k]
            assert (epoch[opened[r, i, k], [i, j]] == epoch[r, [i, j]]).all()
    free = Deliveries([], plan, 20, steps, given).take(20)
    assert not np.array_equal(late.arrived, free.arrived)  # some would have been open for longer than their epoch


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
