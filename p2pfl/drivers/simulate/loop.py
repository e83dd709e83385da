"""The plain loop: node after node, round after round, nothing clever. What every other driver is tested against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from p2pfl import tree
from p2pfl.churn.course import Course
from p2pfl.drivers.simulate.plain import Node
from p2pfl.node import records
from p2pfl.node.program import Mixed
from p2pfl.node.task import Booked, Task, evaluated
from p2pfl.types import Delivery, Params

Record = Callable[[int, records.Measured, records.Trace], None]
"""Takes what a node did in a round: (node, metrics, trace); first, how its life began and what epoch it has entered."""


def run(
    tasks: Sequence[Task],
    delivery: Delivery,
    record: Record,
    now: Callable[[], float],
    course: Course | None = None,
) -> list[Params]:
    """Run all rounds; returns the final model of every node (of one that is away: its last).

    A node that comes with nothing takes the model that a neighbour, or else another member, has after its local steps
    of the round before. `course`: of planned churn. `now` reads a clock, for the records alone. Raises LocalError.
    """
    keep = int(delivery.age.max(initial=0)) + 2
    nodes = [Node(task, keep=keep) for task in tasks]
    ledgers: list[dict[str, np.ndarray]] = [{} for _ in nodes]
    for round in range(1, len(delivery.active) + 1):
        began, there = now(), delivery.active[round - 1]
        turned = _turned(nodes, round, keep, ledgers, course) if course else _started(nodes, round)
        for i in np.flatnonzero(there).tolist():
            present = tuple(j for j in nodes[i].task.neighbors if there[j])
            nodes[i].train(round, present, int(delivery.steps[round - 1, i]))
        booked = {int(i): _booked(nodes, int(i), round, delivery) for i in np.flatnonzero(there)}
        for i, mine in booked.items():
            mixed, slots = nodes[i].mix(round, mine)
            for each in mine:
                total = ledgers[i].setdefault(f"{each.node}:{nodes[each.node].life}", np.zeros(tree.SKETCH))
                total += np.asarray(mixed.exchanged[slots[each.node]], np.float64)
            spoke = [j for j in nodes[i].task.around.speaks(round) if there[j] and nodes[i].task.link == "push"]
            _record(nodes, i, round, mine, mixed, ledgers[i], spoke, turned.get(i, ()), record, began, now)
    return [node.task.program.params(node.state) for node in nodes]


def _booked(nodes: Sequence[Node], i: int, round: int, delivery: Delivery) -> list[Booked]:
    """What node i books in this round."""
    me, found = nodes[i], []
    for k in np.flatnonzero(delivery.arrived[round - 1, i]):
        opened = round - int(delivery.age[round - 1, i, k])
        j = int(me.task.around.neighbor[me.task.around.row(opened), k])
        found.append(Booked(j, opened, opened, me.said(j, opened), nodes[j].said(i, opened)))
    return found


def _record(
    nodes: Sequence[Node],
    i: int,
    round: int,
    booked: Sequence[Booked],
    mixed: Mixed,
    ledger: dict[str, np.ndarray],
    spoke: list[int],
    turned: Sequence[records.Trace],
    record: Record,
    began: float,
    now: Callable[[], float],
) -> None:
    me, task = nodes[i], nodes[i].task
    nbytes = sum(tree.nbytes(each.received) for each in booked)
    after, before, ended = evaluated(task, me.state, round), me.before or (None, None), now()
    measured = records.Measured(
        node=i,
        life=me.life,
        round=round,
        train_loss=me.loss,
        score_before_mixing=before[0],
        score_after_mixing=after[0] if after else None,
        score_own=after[1] if after else None,
        arrived=[each.node for each in booked],
        age=[round - each.mine for each in booked],
        bytes_sent=nbytes,
        bytes_received=nbytes,
        seconds=ended - began,
        waited=0.0,
        time=ended,
    )
    traced = records.Traced(
        life=me.life,
        round=round,
        booked=[[b.node, nodes[b.node].life, b.mine, b.mine, b.theirs] for b in booked],
        spoke=spoke,
        exchanged={who: records.pack(total) for who, total in ledger.items()},
        model=records.pack(np.asarray(mixed.model, np.float64)),
    )
    for each in (*turned, traced):
        record(i, measured, each)


def _started(nodes: Sequence[Node], round: int) -> dict[int, list[records.Trace]]:
    """The records of a membership that never changes: one epoch."""
    everybody = [node.task.node for node in nodes] if round == 1 else []
    return {i: [records.Entered(nodes[i].life, round, everybody)] for i in everybody}


def _turned(
    nodes: list[Node], round: int, keep: int, ledgers: list[dict[str, np.ndarray]], course: Course
) -> dict[int, list[records.Trace]]:
    """What the membership does at the beginning of a round; returns the records of it, by node."""
    when, found = course.timeline, dict[int, list[records.Trace]]()
    donors = {i: course.donor[round - 1, i] for i in np.flatnonzero(when.fresh[round - 1]).tolist()}
    new = {i: Node(nodes[i].whole, int(when.life[round - 1, i]), keep) for i in donors}
    for i, j in donors.items():
        ledgers[i] = {}
        if j >= 0:
            new[i].adopt(nodes[j].models[round - 1])
            found.setdefault(i, []).append(records.Adopted(new[i].life, round, [int(j), nodes[j].life, round - 1]))
    for i, node in new.items():
        nodes[i] = node
    for i in np.flatnonzero(when.kept[round - 1]).tolist():
        ledgers[i], before = {}, nodes[i].life
        nodes[i].life = int(when.life[round - 1, i])
        found.setdefault(i, []).append(records.Kept(nodes[i].life, round, [before, nodes[i].round]))
    for i in np.flatnonzero(course.enters[round - 1]).tolist():
        members = course.members[course.epoch[round - 1, i]]
        nodes[i].enter(members)
        found.setdefault(i, []).append(records.Entered(nodes[i].life, round, [*members]))
    return found
