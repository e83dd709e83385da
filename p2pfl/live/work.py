"""The computing side of a live node: training, mixing, evaluation, records. Runs in one thread, knows no socket."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
import zmq

from p2pfl import records, tree
from p2pfl.errors import LocalError
from p2pfl.live import clock
from p2pfl.protocol.codec import Schema, schema_of
from p2pfl.protocol.events import Adopt, Advance, Booking, Finished, Leave, Trained
from p2pfl.task import Accuracy, Task, evaluated
from p2pfl.types import Inbox, Neighborhood, Payload, State


class Outgoing(NamedTuple):
    """A payload as the computation sees it and as it goes out: serialised once, whatever the number of neighbours."""

    tree: Payload
    frames: tuple[zmq.Frame, ...]
    nbytes: int


def outgoing(payload: Payload) -> Outgoing:
    """One raw frame per tensor, without a copy where the tensor is in host memory."""
    arrays = [np.ascontiguousarray(leaf).reshape(-1) for leaf in jax.tree.leaves(payload)]
    frames = tuple(zmq.Frame(array.view(np.uint8).data) for array in arrays)
    return Outgoing(payload, frames, sum(array.nbytes for array in arrays))


class Incoming:
    """From raw frames back to trees, and whether they are fit to be used."""

    def __init__(self, like: Payload) -> None:
        leaves, self._structure = jax.tree.flatten(like)
        self._like = [(np.dtype(leaf.dtype), tuple(leaf.shape)) for leaf in leaves]
        sizes = [int(np.prod(shape)) * dtype.itemsize for dtype, shape in self._like]
        self.schema: Schema = schema_of(tree.schema(like), sizes)

    def tree(self, frames: Sequence[Any]) -> Payload:
        """The payload in these frames, as views of them."""
        leaves = [
            np.frombuffer(memoryview(frame), dtype).reshape(shape)
            for frame, (dtype, shape) in zip(frames, self._like, strict=True)
        ]
        return jax.tree.unflatten(self._structure, leaves)

    def finite(self, frames: Sequence[Any]) -> bool:
        """No NaN and no infinity. The sum is finite in nearly every case and costs one pass without a temporary."""
        for frame, (dtype, _) in zip(frames, self._like, strict=True):
            array = np.frombuffer(memoryview(frame), dtype)
            if dtype.kind in "iub":
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                if not np.isfinite(array.sum()) and not np.isfinite(array).all():
                    return False
        return True


class Work:
    """The state of one node and what is done to it, round by round; writes metrics.jsonl, trace.jsonl and the model."""

    def __init__(self, task: Task, directory: Path, traffic: Callable[[], tuple[int, int]]) -> None:
        self.task, self.directory, self._traffic = task, directory, traffic
        self.state: State = task.program.init(task.seed)
        slots = len(task.neighbors)
        self._around = Neighborhood(np.zeros(slots, np.float32), np.int32(slots))
        payload = task.program.train(self.state, self._batches(1), np.int32(task.node), np.int32(1), self._around)[2]
        self.incoming = Incoming(payload)
        self._payload: Payload = payload
        self.life, self.last_round, self.name = 1, 0, 1
        self._moved = np.zeros(tree.SKETCH)
        self._exchanged: dict[str, np.ndarray] = {}
        self._loss, self._began = 0.0, clock.now()
        self._round = 0  # the last it has trained in
        self._before: Accuracy | None = None
        self._bytes = (0, 0)

    def warm(self) -> None:
        """Compile all that a round needs (training was, by the constructor), without changing anything."""
        inbox, around = self._inbox([])
        self.task.program.mix(self.state, inbox, around)
        if inbox.sent:
            self.task.program.adopt(self.state, inbox)
        evaluated(self.task, self.state, self.task.rounds)

    def begin(self, name: int) -> None:
        """Open the records, behind those of earlier lives; the clock of the first round starts now.

        `name`: of this life, as the neighbours know it.
        """
        self.name = name
        earlier = records.read(self.directory / "metrics.jsonl")
        if earlier:
            self.life, self.last_round = earlier[-1]["life"] + 1, earlier[-1]["round"]
        self._metrics = records.Lines(self.directory / "metrics.jsonl")
        self._trace = records.Lines(self.directory / "trace.jsonl")
        self._began = clock.now()

    def _batches(self, round: int) -> dict[str, np.ndarray]:
        rows = self.task.batching.indices(round)
        return {"x": self.task.x[rows], "y": self.task.y[rows]}

    def advance(self, effect: Advance) -> Trained | Finished | Leave:
        """Mix and record the finished round, then train the next one."""
        part = "mix"
        try:
            if effect.finished:
                self._finish(effect)
            if effect.next is None:
                return Finished()
            due = range((effect.finished or effect.next - 1) + 1, effect.next + 1)
            if self.task.crashes.intersection(due):
                os.kill(os.getpid(), signal.SIGKILL)
            if self.task.leaves.intersection(due):
                return Leave(idle=True)
            part = "train"
            return Trained(self._train(effect.next))
        except (ArithmeticError, ValueError, TypeError, RuntimeError, OSError) as error:
            raise LocalError(
                str(error), node=self.task.node, round=effect.next or effect.finished, part=part
            ) from error

    def _train(self, round: int) -> Outgoing:
        task = self.task
        self.state, loss, self._payload = task.program.train(
            self.state, self._batches(round), np.int32(task.node), np.int32(round), self._around
        )
        going, self._round = outgoing(self._payload), round
        self._loss = float(loss)
        self._before = evaluated(self.task, self.state, round)
        return going

    def _finish(self, effect: Advance) -> None:
        sketch = None
        for group in _groups(effect.booked):
            inbox, around = self._inbox(group)
            self.state, mixed = self.task.program.mix(self.state, inbox, around)
            self._moved += np.asarray(mixed.moved, np.float64)
            exchanged = np.asarray(mixed.exchanged, np.float64)
            for booking in group:
                with_whom = f"{booking.node}:{booking.life}"
                total = self._exchanged.setdefault(with_whom, np.zeros(tree.SKETCH))
                total += exchanged[self.task.neighbors.index(booking.node)]
            sketch = np.asarray(mixed.model, np.float64)
        # one that leaves at the beginning of a round has not trained in it: it books what is late, and records no round
        if effect.finished == self._round or effect.booked:
            self._record(effect, sketch)

    def adopt(self, effect: Adopt) -> None:
        """Take over a neighbour's model."""
        slot = self.task.neighbors.index(effect.node)
        inbox, _ = self._inbox([])
        received = list(inbox.received)
        received[slot] = self.incoming.tree(effect.payload)
        arrived = np.arange(len(received)) == slot
        self.state = self.task.program.adopt(self.state, inbox._replace(received=tuple(received), arrived=arrived))

    def _inbox(self, group: Sequence[Booking]) -> tuple[Inbox, Neighborhood]:
        """At most one booking per slot. Empty slots hold the node's own payload on both sides, and weight 0."""
        slots = len(self.task.neighbors)
        sent, received = [self._payload] * slots, [self._payload] * slots
        arrived, age, weight = np.zeros(slots, bool), np.zeros(slots, np.int32), np.zeros(slots, np.float32)
        for booking in group:
            k = self.task.neighbors.index(booking.node)
            sent[k], received[k] = booking.mine.payload.tree, self.incoming.tree(booking.theirs.payload)
            arrived[k], age[k] = True, booking.age
            weight[k] = self.task.weight(booking.mine.degree, booking.theirs.degree)
        return Inbox(tuple(sent), tuple(received), arrived, age), Neighborhood(weight, np.int32(slots))

    def _record(self, effect: Advance, sketch: np.ndarray | None) -> None:
        after = evaluated(self.task, self.state, effect.finished)
        now, traffic = clock.now(), self._traffic()
        if sketch is None:
            sketch = np.asarray(self.task.program.mix(self.state, *self._inbox([]))[1].model, np.float64)
        before = self._before or (None, None)
        self._metrics.write(
            records.Measured(
                node=self.task.node,
                life=self.life,
                round=effect.finished,
                train_loss=self._loss,
                accuracy_before_mixing=before[0],
                accuracy_after_mixing=after[0] if after else None,
                accuracy_own=after[1] if after else None,
                arrived=[booking.node for booking in effect.booked],
                age=[booking.age for booking in effect.booked],
                bytes_sent=traffic[0] - self._bytes[0],
                bytes_received=traffic[1] - self._bytes[1],
                seconds=round(now - self._began, 6),
                waited=round(effect.waited, 6),
                time=round(now, 6),
            )
        )
        self._trace.write(
            records.Traced(
                life=self.name,
                round=effect.finished,
                booked=[[b.node, b.life, b.number, b.age] for b in effect.booked],
                moved=records.pack(self._moved),
                exchanged={who: records.pack(total) for who, total in self._exchanged.items()},
                model=records.pack(sketch),
            )
        )
        self._began, self._bytes = now, traffic

    def save(self) -> str:
        """Write the model as safetensors; returns its digest."""
        params = jax.tree.map(np.asarray, self.task.program.params(self.state))
        arrays = {name: np.ascontiguousarray(leaf) for name, leaf in tree.named_leaves(params).items()}
        partial = self.directory / "model.partial"
        safetensors.numpy.save_file(arrays, partial)
        partial.rename(self.directory / "model.safetensors")
        return tree.digest(params)

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        self._trace.close()


def _groups(booked: Sequence[Booking]) -> list[list[Booking]]:
    """Bookings in as few inboxes as hold at most one per neighbour, earlier exchanges first. Usually one inbox."""
    groups: list[list[Booking]] = []
    for booking in booked:
        for group in groups:
            if all(other.node != booking.node for other in group):
                group.append(booking)
                break
        else:
            groups.append([booking])
    return groups
