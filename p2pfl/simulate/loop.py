"""The plain loop: node after node, round after round, nothing clever. What every other driver is tested against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from p2pfl import records, tree
from p2pfl.errors import LocalError
from p2pfl.task import Accuracy, Task, evaluated
from p2pfl.types import Delivery, Inbox, Neighborhood, Params, Payload, State

Record = Callable[[int, records.Measured, records.Traced], None]
"""Takes what a node did in a round: (node, metrics, trace)."""


class _Node:
    """One node's state between rounds."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.state: State = task.program.init(task.seed)
        self.payload: Payload | None = None
        self.life = 1
        self.moved = np.zeros(tree.SKETCH)
        self.exchanged: dict[str, np.ndarray] = {}
        self.loss = 0.0
        self.before: Accuracy | None = None


def run(tasks: Sequence[Task], delivery: Delivery, record: Record, now: Callable[[], float]) -> list[Params]:
    """Run all rounds; returns the final model of every node (of one that is away: its last).

    A node that is away keeps nothing: when it comes back, it takes the model that its first neighbour has sent in the
    round before. `now` reads a clock, for the records alone. Raises LocalError.
    """
    nodes = [_Node(task) for task in tasks]
    there = np.ones(len(nodes), bool)
    for round in range(1, len(delivery.active) + 1):
        began = now()
        was, there = there, delivery.active[round - 1]
        for i in np.flatnonzero(there & ~was):
            _return(nodes, int(i), was)
        for i in np.flatnonzero(there):
            try:
                _train(nodes[i], round)
            except (ArithmeticError, ValueError, TypeError, RuntimeError) as error:
                raise LocalError(str(error), node=int(i), round=round, part="train") from error
        for i in np.flatnonzero(there):
            _mix(nodes, int(i), round, delivery.arrived[round - 1, i], record, began, now)
    return [node.task.program.params(node.state) for node in nodes]


def _train(node: _Node, round: int) -> None:
    task, slots = node.task, len(node.task.neighbors)
    rows = task.batching.indices(round)
    batches = {"x": task.x[rows], "y": task.y[rows]}
    around = Neighborhood(np.zeros(slots, np.float32), np.int32(slots))
    node.state, loss, node.payload = task.program.train(
        node.state, batches, np.int32(task.node), np.int32(round), around
    )
    node.loss, node.before = float(loss), evaluated(task, node.state, round)


def _inbox(nodes: Sequence[_Node], i: int, arrived: np.ndarray) -> tuple[Inbox, Neighborhood]:
    me, slots = nodes[i], len(nodes[i].task.neighbors)
    arrived = arrived[:slots]
    sent = (me.payload,) * slots
    received = tuple(nodes[j].payload if arrived[k] else me.payload for k, j in enumerate(me.task.neighbors))
    degrees = [len(nodes[j].task.neighbors) for j in me.task.neighbors]
    weight = np.array([me.task.weight(slots, degree) for degree in degrees], np.float32)
    around = Neighborhood(np.where(arrived, weight, np.float32(0)), np.int32(slots))
    return Inbox(sent, received, arrived, np.zeros(slots, np.int32)), around


def _mix(
    nodes: Sequence[_Node],
    i: int,
    round: int,
    arrived: np.ndarray,
    record: Record,
    began: float,
    now: Callable[[], float],
) -> None:
    me = nodes[i]
    inbox, around = _inbox(nodes, i, arrived)
    me.state, mixed = me.task.program.mix(me.state, inbox, around)
    me.moved += np.asarray(mixed.moved, np.float64)
    booked = [(k, j) for k, j in enumerate(me.task.neighbors) if inbox.arrived[k]]
    for k, j in booked:
        total = me.exchanged.setdefault(f"{j}:{nodes[j].life}", np.zeros(tree.SKETCH))
        total += np.asarray(mixed.exchanged[k], np.float64)
    nbytes = tree.nbytes(me.payload) * len(booked)
    after, before, ended = evaluated(me.task, me.state, round), me.before or (None, None), now()
    record(
        i,
        records.Measured(
            node=i,
            life=me.life,
            round=round,
            train_loss=me.loss,
            accuracy_before_mixing=before[0],
            accuracy_after_mixing=after[0] if after else None,
            accuracy_own=after[1] if after else None,
            arrived=[j for _, j in booked],
            age=[0] * len(booked),
            bytes_sent=nbytes,
            bytes_received=nbytes,
            seconds=ended - began,
            waited=0.0,
            time=ended,
        ),
        records.Traced(
            life=me.life,
            round=round,
            booked=[[j, nodes[j].life, round, 0] for _, j in booked],
            moved=records.pack(me.moved),
            exchanged={who: records.pack(total) for who, total in me.exchanged.items()},
            model=records.pack(np.asarray(mixed.model, np.float64)),
        ),
    )


def _return(nodes: list[_Node], i: int, was: np.ndarray) -> None:
    """A node comes back with nothing but its data, and takes the payload of a neighbour."""
    old = nodes[i]
    me = _Node(old.task)
    me.life = old.life + 1
    donors = [(k, j) for k, j in enumerate(me.task.neighbors) if was[j]]
    if donors:
        slot, donor = donors[0]
        slots = len(me.task.neighbors)
        payload = nodes[donor].payload
        inbox = Inbox((payload,) * slots, (payload,) * slots, np.arange(slots) == slot, np.zeros(slots, np.int32))
        me.state = me.task.program.adopt(me.state, inbox)
    nodes[i] = me


def consensus_distance(models: Sequence[Params]) -> float:
    """(1/n) sum_i ||x_i - mean||^2 over models, in float64."""
    leaves = [np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(m)]) for m in models]
    stacked = np.stack(leaves)
    return float(((stacked - stacked.mean(axis=0)) ** 2).sum(axis=1).mean())
