"""Epochs in the simulator: both ways of it against each other, and exact algorithms against the optimum of members."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from federations import at_once, federation_of, looped

from p2pfl import churn, topology, tree
from p2pfl.churn import Event
from p2pfl.churn import course as membership
from p2pfl.churn.course import Course
from p2pfl.config import experiment
from p2pfl.drivers.simulate import loop
from p2pfl.errors import ConfigError
from p2pfl.federation.federation import Federation
from p2pfl.federation.tasks import tasks
from p2pfl.node import records
from p2pfl.node.replica import Replica
from p2pfl.runs import simulated
from p2pfl.runs.replay import replay
from p2pfl.types import Schedule

NODES = 9
MUCH = [
    {"event": "crash", "node": 2, "round": 3}, {"event": "rejoin", "node": 2, "round": 6, "state": "kept"},
    {"event": "crash", "node": 4, "round": 4}, {"event": "rejoin", "node": 4, "round": 7},
    {"event": "join", "node": 8, "round": 6}, {"event": "leave", "node": 1, "round": 5},
    {"event": "freeze", "node": 7, "round": 9, "rounds": 3},
    {"event": "partition", "round": 8, "groups": [[0, 2, 3], [5, 6]]}, {"event": "heal", "round": 12},
    {"event": "link_loss", "round": 6, "rounds": 5, "links": [[0, 3], [6, 7]], "loss": 0.5},
]  # fmt: skip


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def federation(
    algorithm: str, churn: list[dict[str, Any]], graph: str = "ring", nodes: int = NODES, rounds: int = 15,
    wrap: Sequence[dict[str, Any]] = (), **more: Any,
) -> Federation:  # fmt: skip
    table = {
        "name": "t", "rounds": rounds, "data": {"source": "quadratic", "dim": 3}, "churn": churn,
        "training": {
            "optimizer": {"name": "sgd", "learning_rate": 0.1}, "batch_size": 2, "local_steps": 2, "dtype": "float64",
        },
        "topology": {"graph": graph, "nodes": nodes}, "algorithm": {"name": algorithm, "wrap": [*wrap]},
        "driver": {"kind": "simulate"}, "evaluation": {"every": rounds}, "baselines": False, **more,
        "network": {"alone": "train", **more.get("network", {})},
    }  # fmt: skip
    return federation_of(table)


def course(made: Federation) -> Course:
    found = simulated.course_of(made)
    assert found is not None
    return found


# ------------------------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize(
    "algorithm, graph, more",
    [
        ("dsgd", "ring", {}),
        ("gradient_tracking", "ring", {"network": {"loss": 0.1, "detection": 2}}),
        pytest.param("exact_diffusion", "base", {}, marks=pytest.mark.more),
        pytest.param("push_sum", "one_peer_exponential", {}, marks=pytest.mark.more),
        pytest.param("gossip_learning", "ring", {}, marks=pytest.mark.more),
        pytest.param("dsgd", "complete", {"wrap": [{"name": "zip_dl", "scale": 0.1}]}, marks=pytest.mark.more),
        pytest.param("gradient_tracking", "path", {"network": {"late": 2, "detection": 0}}, marks=pytest.mark.soak),
        pytest.param("fedavg", "star", {}, marks=pytest.mark.soak),
        pytest.param("epidemic", "complete", {}, marks=pytest.mark.soak),
        pytest.param("d2", "ring", {}, marks=pytest.mark.soak),
        pytest.param("ad_psgd", "ring", {}, marks=pytest.mark.soak),
    ],
)
def test_the_plain_loop_and_all_nodes_at_once_are_the_same(algorithm: str, graph: str, more: dict[str, Any]) -> None:
    made = federation(algorithm, MUCH, graph, **more)
    how = {"devices": 4, "chunk": 2} if algorithm == "push_sum" else {"devices": 1, "chunk": 9}
    np.testing.assert_allclose(at_once(made, **how), looped(made), rtol=1e-12, atol=1e-13)


# ------------------------------------------------------------------------------- exact algorithms, among the members

GONE = {"crash": {"event": "crash", "node": 3, "round": 40}, "leave": {"event": "leave", "node": 3, "round": 40}}
BACK = {state: {"event": "rejoin", "node": 3, "round": 80, "state": state} for state in ("kept", "lost")}
APART = {"event": "partition", "round": 40, "groups": [[0, 1, 2]]}
HEALED = {"event": "heal", "round": 90}
EVERYBODY = set(range(8))
FATES: dict[str, tuple[list[dict[str, Any]], list[set[int]]]] = {
    "crash": ([GONE["crash"]], [EVERYBODY - {3}]),
    "leave": ([GONE["leave"]], [EVERYBODY - {3}]),
    "kept": ([GONE["crash"], BACK["kept"]], [EVERYBODY]),
    "lost": ([GONE["crash"], BACK["lost"]], [EVERYBODY]),
    "partition": ([APART], [{0, 1, 2}, EVERYBODY - {0, 1, 2}]),
    "heal": ([APART, HEALED], [EVERYBODY]),
    "freeze": ([{"event": "freeze", "node": 3, "round": 40, "rounds": 30}], [EVERYBODY]),
    "sleeper": ([{"event": "freeze", "node": 3, "round": 35, "rounds": 70}, APART, HEALED], [EVERYBODY]),
}
"""What happens, and who then belongs together."""
STEP = {"training": {
    "optimizer": {"name": "sgd", "learning_rate": 0.15}, "batch_size": 1, "local_steps": 1, "dtype": "float64",
}}  # fmt: skip


def off(made: Federation, sides: list[set[int]]) -> float:
    """How far the members of each side are from their own optimum, the largest."""
    outcome = simulated.simulate_federation(made, devices=1, chunk=len(made.graph))
    assert outcome.drift < 1e-14
    x, task = np.asarray(outcome.models["trained"]["x"]), made.task
    assert task is not None
    found = []
    for side in sides:
        ids = sorted(side)
        best = (task.a[ids] * task.b[ids]).sum(axis=0) / task.a[ids].sum(axis=0)
        found.append(float(abs(x[ids] - best).max()))
    return max(found)


def some(algorithm: str, fates: list[str], quick: list[str]) -> list[Any]:
    """The rest takes its time: a program each."""
    return [pytest.param(algorithm, f, marks=() if f in quick else pytest.mark.soak) for f in fates]


@pytest.mark.parametrize(
    "algorithm, fate",
    [
        *some("gradient_tracking", [*FATES], ["crash", "kept"]),
        *some("exact_diffusion", [*FATES], ["lost"]),
    ],
)
def test_exact_algorithms_find_the_optimum_of_those_who_are_left(algorithm: str, fate: str) -> None:
    events, sides = FATES[fate]
    made = federation(algorithm, events, "ring", 8, 600, **STEP)
    assert off(made, sides) < 1e-8


LOSE = ["crash", "leave", "lost", "partition"]  # where a part of the sum is gone; who was kept brings his own back


@pytest.mark.parametrize(
    "algorithm, fate",
    [*some("gradient_tracking", LOSE, ["crash"]), *some("exact_diffusion", LOSE, ["lost"])],
)
def test_without_the_restart_they_do_not(algorithm: str, fate: str) -> None:
    events, sides = FATES[fate]
    made = federation(algorithm, events, "ring", 8, 600, **STEP)
    assert off(made.with_algorithm(lambda learner: made.make(learner)._replace(restart=None)), sides) > 1e-3


APART_STARS = [{"event": "partition", "round": 4, "groups": [[4]]}, {"event": "leave", "node": 1, "round": 6}]


@pytest.mark.soak
def test_each_trains_on_the_rows_that_are_next_for_it() -> None:
    data = {"data": {"source": "breast_cancer"}, "model": {"name": "logistic"}}
    made = federation("fedavg", APART_STARS, "star", 5, 8, **data)
    whole = federation("fedavg", [], "star", 5, 8, **data)
    # flax draws the first model in float32, and two programs that draw it may differ in its last bit: 2^-25 of 1; what
    # follows is in float64, and a convex loss lets nothing grow. Other rows make a difference of thousands of that
    np.testing.assert_allclose(at_once(made, devices=1, chunk=5), looped(made), rtol=0, atol=2 * 2.0**-25)
    assert np.abs(looped(whole) - looped(made)).max() > 1e-4


def test_nodes_count_their_own_turns() -> None:
    """On two sides of a star, rounds without local steps are not the same."""
    made = federation("fedavg", APART_STARS, "star", 5, 8)
    found, run = course(made), tasks(made)
    for r in range(8):
        for i in np.flatnonzero(found.timeline.active[r]).tolist():
            assert found.turn[r, i] == run[i].at(found.members[found.epoch[r, i]]).schedule.turn(r + 1)
    assert len(set(found.turn[-1][found.timeline.active[-1]].tolist())) == 2


def test_every_epoch_of_push_sum_counts_its_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights w of an epoch's members sum to their number, while all of them are there."""
    table = {"graph": "star", "nodes": NODES, "weights": "uniform_out"}  # degrees differ, so that w does
    made = federation("push_sum", [event for event in MUCH if event["event"] != "link_loss"], topology=table)
    planned, mixing, w = course(made), Replica.mix, dict[tuple[int, int], float]()

    def mix(self: Replica, round: int, booked: Any) -> Any:
        done = mixing(self, round, booked)
        w[round, self.task.node] = float(self.state.mine["w"])
        return done

    monkeypatch.setattr(Replica, "mix", mix)
    loop.run(tasks(made), simulated.deliveries(made), lambda *given: None, lambda: 0.0, planned)
    when, counted = planned.timeline, set()
    for round in range(1, made.experiment.rounds + 1):
        for e in np.unique(planned.epoch[round - 1]):
            ids = [*planned.members[e]] if e >= 0 else []
            if when.active[round - 1, ids].all() and len(set(when.side[round - 1, ids].tolist())) == 1:
                assert sum(w[round, i] for i in ids) == pytest.approx(len(ids), abs=1e-12)
                counted.add(len(ids))
    assert counted == {2, 3, 5, 7, 8}
    assert np.ptp([value for (round, _), value in w.items() if round == 2]) > 0.1  # not that all were one


# --------------------------------------------------------------------------------------------------------- membership


def planned(events: list[Event], nodes: int = 8, rounds: int = 12, detection: int = 1, graph: str = "ring") -> Course:
    """Of a named graph, made anew for the members."""

    def plan(members: Any) -> tuple[Schedule, str]:
        small, ids = topology.plan(graph, len(members)), np.asarray(members)
        neighbor = np.full((1, nodes, small.neighbor.shape[2]), -1, np.int32)
        weight = np.zeros(neighbor.shape)
        neighbor[0, ids] = np.where(small.neighbor[0] >= 0, ids[small.neighbor[0]], -1)
        weight[0, ids] = small.weight[0]
        return Schedule(neighbor, weight, weight, np.ones((1, nodes), bool)), ""

    churn.check(events, nodes, rounds)
    return membership.course(events, nodes, rounds, detection, plan)


def edges(found: Course, round: int) -> set[tuple[int, int]]:
    row = found.schedule.neighbor[found.row[round - 1]]
    return {(min(i, int(j)), max(i, int(j))) for i in range(len(row)) for j in row[i] if j >= 0}


def ring(*ids: int) -> set[tuple[int, int]]:
    return {(min(a, b), max(a, b)) for a, b in zip(ids, (*ids[1:], ids[0]), strict=True)}


def test_a_ring_with_two_crashes_goes_on_as_one_ring() -> None:
    found = planned([Event("crash", 2, 3), Event("crash", 5, 6)], detection=2)
    for rounds, members in (
        ((1, 2, 3, 4), range(8)),
        ((5, 6, 7), (0, 1, 3, 4, 5, 6, 7)),
        ((8, 12), (0, 1, 3, 4, 6, 7)),
    ):
        for round in rounds:
            assert edges(found, round) == ring(*members)
    assert found.epochs == 3
    assert {(r + 1, i) for r, i in np.argwhere(found.enters).tolist()} == {
        *((1, i) for i in range(8)), *((5, i) for i in range(8) if i != 2),
        *((8, i) for i in range(8) if i not in (2, 5)),
    }  # fmt: skip


def test_who_leaves_joins_or_comes_back_is_known_at_once() -> None:
    events = [Event("leave", 1, 3), Event("rejoin", 1, 5, "kept"), Event("join", 7, 6), Event("crash", 4, 8),
              Event("rejoin", 4, 9)]  # fmt: skip
    found = planned(events, detection=3)
    assert [len(edges(found, round)) for round in range(1, 10)] == [7, 7, 6, 6, 7, 8, 8, 8, 8]
    assert found.epochs == 5 == len(found.members)  # the crash was never known, but the new life of 4 is an epoch
    assert found.enters.sum(axis=1).tolist() == [7, 0, 6, 0, 7, 8, 0, 0, 8, 0, 0, 0]
    assert found.donor[found.timeline.fresh].tolist() == [0, 3]
    assert found.timeline.life[-1].tolist() == [1, 2, 1, 1, 2, 1, 1, 1]
    assert found.timeline.kept.sum() == 1


def test_who_comes_with_nothing_takes_a_model_wherever_there_is_one() -> None:
    """A neighbour's first, then any member's; not of one that comes itself, has just gone, or can't be reached."""
    away = [Event("crash", i, 3) for i in (3, 4, 5)]
    back = [Event("rejoin", i, 6) for i in (3, 4, 5)]
    assert planned([*away, *back]).donor[5, 3:6].tolist() == [2, 0, 6]
    assert planned([*away, *back, Event("leave", 2, 5), Event("leave", 0, 6)]).donor[5, 3:6].tolist() == [1, 1, 6]
    parted = Event("partition", -1, 6, groups=((4, 7),))
    assert planned([*away, *back, parted]).donor[5, 3:6].tolist() == [2, 7, 6]
    whole = planned([*(Event("leave", i, 3) for i in range(7)), Event("crash", 7, 5), Event("join", 8, 5)], nodes=9)
    assert whole.donor[4, 8] == -1


def test_who_stands_still_stays_a_member_and_enters_when_it_moves_again() -> None:
    found = planned([Event("freeze", 3, 4, rounds=4), Event("leave", 6, 5)])
    assert edges(found, 6) == ring(0, 1, 2, 3, 4, 5, 7)
    assert np.flatnonzero(found.enters[4]).tolist() == [0, 1, 2, 4, 5, 7]
    assert np.flatnonzero(found.enters[7]).tolist() == [3]


def test_a_partition_is_two_epochs_and_its_healing_one_more() -> None:
    events = [Event("partition", -1, 4, groups=((0, 1, 2), (6,))), Event("heal", -1, 9), Event("crash", 1, 6)]
    found = planned(events, detection=1)
    assert edges(found, 4) == ring(*range(8))  # not known yet
    assert edges(found, 5) == ring(0, 1, 2) | ring(3, 4, 5, 7)
    assert edges(found, 7) == {(0, 2)} | ring(3, 4, 5, 7)
    assert edges(found, 9) == ring(0, 2, 3, 4, 5, 6, 7)
    assert found.epochs == 4 and len(found.members) == 1 + 4 + 1  # of 0: whole, side, side without 1, whole without 1
    # all are members again of what they were members of before: it is another epoch, also to one who slept through it
    slept = planned([*events[:2], Event("freeze", 3, 2, rounds=9)])
    assert slept.members[0] == slept.members[-1] and len(slept.members) == 5 and slept.enters[10, 3]
    # one that follows at once is believed in until the next is known
    both = planned(
        [Event("partition", -1, 4, groups=((0, 1),)), Event("partition", -1, 7, groups=((5, 6),))], detection=2
    )
    assert [len(edges(both, r)) for r in (5, 6, 7, 8, 9)] == [8, 7, 7, 7, 7]
    assert edges(both, 8) == ring(0, 1) | ring(*range(2, 8)) and edges(both, 9) == ring(5, 6) | ring(0, 1, 2, 3, 4, 7)


def test_a_late_network_wants_graphs_that_stay() -> None:
    still = [Event("freeze", 0, 2, rounds=1)]
    with pytest.raises(ConfigError, match="of the 8 members that are left changes from round to round; leave late out"):
        membership.course(still, 8, 9, 1, lambda members: (topology.plan("base", 8), ""), steady=True)


# ------------------------------------------------------------------------------------------------- records of a run


@pytest.mark.parametrize(
    "algorithm, graph",
    [("gradient_tracking", "ring"), ("push_sum", "exponential"), pytest.param("dsgd", "base", marks=pytest.mark.soak)],
)
def test_the_plain_loop_with_epochs_is_replayed(tmp_path: Path, algorithm: str, graph: str) -> None:
    made = federation(algorithm, MUCH, graph, driver={"kind": "simulate", "loop": True})
    (tmp_path / "experiment.toml").write_text(experiment.dump(made.experiment))
    simulated.loop_into(made, tmp_path, lambda status: None)
    verdicts = replay(tmp_path)
    assert {verdict.node: verdict.life for verdict in verdicts} == {0: 1, 2: 2, 3: 1, 4: 2, 5: 1, 6: 1, 7: 1, 8: 1}
    assert all(verdict.equal for verdict in verdicts)
    lines = records.read(tmp_path / "nodes" / "2" / "trace.jsonl")
    assert [line["kept"] for line in lines if "kept" in line] == [[1, 2]]
    assert [line["round"] for line in lines if "members" in line] == [1, 6, 7, 9, 12]


def test_a_run_says_how_many_epochs_it_had_and_who_is_missing(tmp_path: Path) -> None:
    made = federation("gradient_tracking", [*MUCH, {"event": "crash", "node": 3, "round": 15}], evaluation={"every": 3})
    summary, models, *_ = simulated.into(made, tmp_path, lambda status: None)
    assert (summary.epochs, summary.lost, summary.left) == (course(made).epochs, (3,), (1,))
    assert summary.exchanges_voided > 0 and summary.mean_residual < 1e-15
    assert len(models) == 7 and summary.consensus_distance == pytest.approx(tree.consensus_distance(models), rel=1e-9)
    rows = records.read(tmp_path / "metrics.jsonl")
    assert {row["node"] for row in rows if row["round"] == 9} == {0, 2, 3, 4, 5, 6, 8}  # 1 has left, 7 stands still
    assert {row["life"] for row in rows if row["node"] == 2 and row["round"] >= 6} == {2}
    heard = {row["node"]: row["arrived"] for row in rows if row["round"] == 9}
    assert heard[2] == [0, 3] and heard[8] == [4]
    ends = [row for row in records.read(tmp_path / "events.jsonl") if row["event"] in ("partition", "heal")]
    assert [(row["node"], row["round"]) for row in ends] == [(None, 8), (None, 12)]


@pytest.mark.more
def test_who_has_lost_most_of_the_others_waits_as_on_a_network() -> None:
    """[0, 2, 3] of nine know it a round late: they train round 8, and then none before the network is one again."""
    parted = [{"event": "partition", "round": 8, "groups": [[0, 2, 3]]}, {"event": "heal", "round": 12}]
    waits = federation("dsgd", parted, network={"alone": "wait"})
    trains = federation("dsgd", parted)
    active = course(waits).timeline.active
    for node in (0, 2, 3):
        assert np.flatnonzero(~active[:, node]).tolist() == [8, 9, 10]
    assert active[:, [1, 4, 5, 6, 7, 8]].all()
    assert course(trains).timeline.active.all()
    np.testing.assert_allclose(at_once(waits), looped(waits), rtol=1e-12, atol=1e-12)
    assert not np.allclose(at_once(waits), at_once(trains))


def test_where_nobody_has_half_of_the_others_waiting_is_refused() -> None:
    parted = [{"event": "partition", "round": 8, "groups": [[0, 2, 3], [4, 5, 6]]}, {"event": "heal", "round": 12}]
    with pytest.raises(ConfigError, match=r"network\.alone='wait': from round 9 on no group"):
        federation("dsgd", parted, network={"alone": "wait"})
