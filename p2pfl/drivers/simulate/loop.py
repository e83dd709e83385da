"""The plain loop: node after node, round after round, nothing clever. What every other driver is tested against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from p2pfl import tree
from p2pfl.churn.course import Course
from p2pfl.node import records
from p2pfl.node.replica import Cost, Replica
from p2pfl.node.task import Booked, Task
from p2pfl.types import Delivery, Params, Payload

Record = Callable[[int, records.Measured, records.Trace], None]
"""Takes what a node did in a round: (node, metrics, trace); first, how its life began and what epoch it has entered."""
Listen = Callable[[int, int, int, Payload], None]
"""Takes what a node has been sent: (round, sender, receiver, payload)."""


def run(
    tasks: Sequence[Task],
    delivery: Delivery,
    record: Record,
    now: Callable[[], float],
    course: Course | None = None,
    look: Callable[[int, Callable[[], list[Params]]], bool] = lambda round, models: False,
    listen: Listen = lambda round, sender, receiver, payload: None,
) -> list[Params]:
    """Run all rounds; return the final model of every node (of one that is away: its last).

    A node that comes with nothing takes the model that a neighbour, or else another member, has after its local steps
    of the round before, if it is finite. `course`: of planned churn. `now` reads a clock, for the records alone.
    `look`: asked after each round whether to end there, with what gives the models of then. `listen`: takes every
    payload that a node books, as it came. Raises LocalError.
    """
    keep = int(delivery.age.max(initial=0)) + 2
    nodes = [Replica(task, keep=keep) for task in tasks]
    for round in range(1, len(delivery.active) + 1):
        began, there = now(), delivery.active[round - 1]
        changed = _changed(nodes, round, keep, course) if course else _started(nodes, round)
        for i in np.flatnonzero(there).tolist():
            present = tuple(j for j in nodes[i].task.neighbors if there[j])
            nodes[i].train(round, present, int(delivery.steps[round - 1, i]))
        booked = {int(i): _booked(nodes, int(i), round, delivery) for i in np.flatnonzero(there)}
        for i, mine in booked.items():
            for each in mine:
                listen(round, each.node, i, each.received)
        for i, mine in booked.items():
            mixed = nodes[i].mix(round, mine)
            nodes[i].evaluate(round)
            nbytes, ended = sum(tree.nbytes(each.received) for each in mine), now()
            measured = nodes[i].measured(round, mixed, Cost(nbytes, nbytes, ended - began, 0.0, ended))
            for traced in (*changed.get(i, ()), nodes[i].traced(round, mixed, whole=True)):
                record(i, measured, traced)
        if look(round, lambda: _models(nodes)):
            break
    return _models(nodes)


def _models(nodes: Sequence[Replica]) -> list[Params]:
    return [node.task.program.params(node.state) for node in nodes]


def _booked(nodes: Sequence[Replica], i: int, round: int, delivery: Delivery) -> list[Booked]:
    """Return what node i books in this round: no exchange of which a side holds NaN or infinity, as at every node."""
    me, result = nodes[i], []
    for k in np.flatnonzero(delivery.arrived[round - 1, i]):
        opened = round - int(delivery.age[round - 1, i, k])
        j = int(me.task.schedule.neighbor[me.task.schedule.row(opened), k])
        received = nodes[j].sent(i, opened)
        if not tree.finite(received) or (me.task.link == "exchange" and not tree.finite(me.sent(j, opened))):
            continue
        result.append(Booked(j, nodes[j].life, opened, opened, opened, me.side(j, opened), received))
    return me.usable(round, result)


def _started(nodes: Sequence[Replica], round: int) -> dict[int, list[records.Trace]]:
    """Return the records of a membership that never changes: one epoch."""
    everybody = [node.task.node for node in nodes] if round == 1 else []
    return {i: [records.Entered(nodes[i].life, round, everybody)] for i in everybody}


def _changed(nodes: list[Replica], round: int, keep: int, course: Course) -> dict[int, list[records.Trace]]:
    """Carry out what the membership does at the beginning of a round; return the records of it, by node."""
    when, result = course.timeline, dict[int, list[records.Trace]]()
    donors = {i: course.donor[round - 1, i] for i in np.flatnonzero(when.fresh[round - 1]).tolist()}
    new = {i: Replica(nodes[i].whole, int(when.life[round - 1, i]), keep) for i in donors}
    for i, j in donors.items():
        model = nodes[j].given(i, round - 1) if j >= 0 else None
        if model is not None and tree.finite(model):
            result.setdefault(i, []).append(new[i].adopt(model, int(j), nodes[j].life, round - 1))
    for i, node in new.items():
        nodes[i] = node
    for i in np.flatnonzero(when.kept[round - 1]).tolist():
        result.setdefault(i, []).append(nodes[i].renew(int(when.life[round - 1, i]), round))
    for i in np.flatnonzero(course.enters[round - 1]).tolist():
        members = course.members[course.epoch[round - 1, i]]
        result.setdefault(i, []).append(nodes[i].enter(round, members))
    return result
