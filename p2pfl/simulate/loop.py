"""The plain loop: node after node, round after round, nothing clever. What every other driver is tested against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from p2pfl import records, tree
from p2pfl.program import Mixed
from p2pfl.simulate.plain import Node
from p2pfl.task import Booked, Task, evaluated
from p2pfl.types import Delivery, Params

Record = Callable[[int, records.Measured, records.Traced | records.Adopted], None]
"""Takes what a node did in a round: (node, metrics, trace); before the first of a life, that it adopted a model."""


def run(tasks: Sequence[Task], delivery: Delivery, record: Record, now: Callable[[], float]) -> list[Params]:
    """Run all rounds; returns the final model of every node (of one that is away: its last).

    A node that is away keeps nothing: when it comes back, it takes the model that its first neighbour has after its
    local steps of the round before. `now` reads a clock, for the records alone. Raises LocalError.
    """
    keep = int(delivery.age.max(initial=0)) + 2
    nodes = [Node(task, keep=keep) for task in tasks]
    ledgers: list[dict[str, np.ndarray]] = [{} for _ in nodes]
    there = np.ones(len(nodes), bool)
    for round in range(1, len(delivery.active) + 1):
        began = now()
        was, there = there, delivery.active[round - 1]
        back = [int(i) for i in np.flatnonzero(there & ~was)]
        adopted = {i: _return(nodes, i, was, round, keep) for i in back}
        for i in back:
            ledgers[i] = {}
        for i in np.flatnonzero(there).tolist():
            nodes[i].renew([j for j in back if j != i and j in nodes[i].task.neighbors])
            present = tuple(j for j in nodes[i].task.neighbors if there[j])
            nodes[i].train(round, present, int(delivery.steps[round - 1, i]))
        booked = {int(i): _booked(nodes, int(i), round, delivery) for i in np.flatnonzero(there)}
        for i, mine in booked.items():
            mixed, slots = nodes[i].mix(round, mine)
            for each in mine:
                total = ledgers[i].setdefault(f"{each.node}:{nodes[each.node].life}", np.zeros(tree.SKETCH))
                total += np.asarray(mixed.exchanged[slots[each.node]], np.float64)
            spoke = [j for j in nodes[i].task.around.speaks(round) if there[j] and nodes[i].task.link == "push"]
            _record(nodes, i, round, mine, mixed, ledgers[i], back, spoke, adopted.get(i), record, began, now)
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
    back: Sequence[int],
    spoke: list[int],
    adopted: records.Adopted | None,
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
        accuracy_before_mixing=before[0],
        accuracy_after_mixing=after[0] if after else None,
        accuracy_own=after[1] if after else None,
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
        renewed=[j for j in back if j != i and j in task.neighbors],
        exchanged={who: records.pack(total) for who, total in ledger.items()},
        model=records.pack(np.asarray(mixed.model, np.float64)),
    )
    if adopted:
        record(i, measured, adopted)
    record(i, measured, traced)


def _return(nodes: list[Node], i: int, was: np.ndarray, round: int, keep: int) -> records.Adopted | None:
    """A node comes back with nothing but its data, and takes the model of a neighbour."""
    old = nodes[i]
    me = Node(old.task, old.life + 1, keep)
    donors = [j for j in me.task.neighbors if was[j] and round - 1 in nodes[j].models]
    nodes[i] = me
    if not donors:
        return None
    me.adopt(nodes[donors[0]].models[round - 1])
    return records.Adopted(me.life, round, [donors[0], nodes[donors[0]].life, round - 1])


def consensus_distance(models: Sequence[Params]) -> float:
    """(1/n) sum_i ||x_i - mean||^2 over models, in float64."""
    leaves = [np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(m)]) for m in models]
    stacked = np.stack(leaves)
    return float(((stacked - stacked.mean(axis=0)) ** 2).sum(axis=1).mean())
