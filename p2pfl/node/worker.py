"""The computing side of a node: training, mixing, evaluation, records. Knows no socket, no clock and no process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import safetensors.numpy

from p2pfl import tree
from p2pfl.errors import LocalError
from p2pfl.node import records
from p2pfl.node.payload import Incoming, Outgoing, outgoing
from p2pfl.node.program import Mixed
from p2pfl.node.task import Booked, Scores, Task, evaluated, part
from p2pfl.protocol.events import Adopt, Advance, Booking, Finished, Leave, Trained
from p2pfl.types import Params, Payload, State


class KeptState(Protocol):
    """What a store has kept."""

    @property
    def state(self) -> State:
        """The algorithm's state."""

    @property
    def table(self) -> dict[str, Any]:
        """Its `life` and `round`."""


class Keeper(Protocol):
    """What keeps a node's state: `store.Store`, or memory."""

    def save(self, state: State, table: dict[str, Any]) -> str | None:
        """Keep it; returns what went wrong, for a person."""

    def load(self, like: State) -> tuple[KeptState | None, list[str]]:
        """The latest, if there is one, and what a person should know of it."""


class Host(NamedTuple):
    """What a driver gives to the computing side of a node."""

    now: Callable[[], float]  # a clock, seconds
    traffic: Callable[[], tuple[int, int]]  # bytes sent and received so far
    happens: Callable[
        [int], str | None
    ]  # of a round about to begin: "leave", "crash" (of a node that goes on), or nothing
    say: Callable[[str], None]  # a line for a person
    store: Keeper | None = None
    every: int = 0  # rounds from checkpoint to checkpoint; 0: none


class Worker:
    """The state of one node and what is done to it, round by round; writes metrics.jsonl, trace.jsonl and the model."""

    def __init__(self, task: Task, directory: Path, host: Host) -> None:
        self.task, self.directory, self._host = task, directory, host
        self._whole = task  # with the schedule of all nodes
        self.state: State = task.program.init(task.seed, task.site)
        _, _, payload, model = self._computed(self.state, 1, ())
        self._payload: Payload = payload
        self._model: Params = payload if model is None else model
        like = jax.tree.map(lambda leaf: np.empty(leaf.shape[1:], leaf.dtype), payload) if task.per_edge else payload
        self.payloads, self.models = Incoming(like), Incoming(self._model)
        self.life, self.name = 1, 1
        self.last_round = 0  # that an earlier process of the node has finished
        self.kept: tuple[int, int] | None = None  # life and round of the checkpoint that this life goes on from
        self._exchanged: dict[str, np.ndarray] = {}
        self._loss, self._began = 0.0, host.now()
        self._round = 0  # the last it has trained in
        self._saved = 0  # the last that a checkpoint was made after
        self._before: Scores | None = None
        self._spoke: tuple[int, ...] = ()
        self._bytes = (0, 0)

    def warm(self) -> None:
        """Compile all that a round needs (training was, by the constructor), without changing anything."""
        task, program = self.task, self.task.program
        for round in range(2, 1 + len(task.around.trains)):  # a round without local steps is another program
            if task.around.trains[round - 1] != task.around.trains[0]:
                self._computed(self.state, round, ())
                break
        inbox, around, _ = task.inbox(1, (), self._payload)
        program.mix(self.state, inbox, around)
        program.adopt(self.state, self._model)
        program.restart(self.state, task.slots)
        evaluated(task, self.state, task.rounds)

    def resume(self) -> list[str]:
        """Take the state of the checkpoint in the store, if there is one; returns what a person should know."""
        assert self._host.store is not None
        found, notes = self._host.store.load(self.state)
        if found is None:
            return [*notes, "no checkpoint: beginning without one"]
        self.state = found.state
        self.kept = found.table["life"], found.table["round"]
        return [*notes, f"going on from the checkpoint after round {found.table['round']}"]

    def begin(self, name: int) -> None:
        """Open the records, behind those of earlier lives; the clock of the first round starts now.

        `name`: of this life, as the neighbours know it.
        """
        self.name = name
        earlier = records.read(self.directory / "metrics.jsonl")
        if earlier:
            self.life, self.last_round = earlier[-1]["life"] + 1, earlier[-1]["round"]
        self._metrics = records.Lines(self.directory / "metrics.jsonl", self.task.score)
        self._trace = records.Lines(self.directory / "trace.jsonl")
        if self.kept is not None:
            self._trace.write(records.Kept(self.name, self.kept[1] + 1, list(self.kept)))
        self._began = self._host.now()

    # --- rounds

    def advance(self, effect: Advance) -> Trained | Finished | Leave | None:
        """Mix and record the finished round, then train the next one; None: the node is no more."""
        doing = "mix"
        try:
            if effect.finished:
                self._finish(effect)
            if effect.next is None:
                return Finished()
            for round in range((effect.finished or effect.next - 1) + 1, effect.next + 1):
                fate = self._host.happens(round)
                if fate is not None:
                    return Leave(idle=True) if fate == "leave" else None
            if effect.members is not None:
                self._enter(effect.next, effect.members, effect.life)
            doing = "train"
            return self._train(effect.next, effect.speak)
        except (ArithmeticError, ValueError, TypeError, RuntimeError, OSError) as error:
            raise LocalError(
                str(error), node=self.task.node, round=effect.next or effect.finished, part=doing
            ) from error

    def _computed(
        self, state: State, round: int, speak: tuple[int, ...]
    ) -> tuple[State, jax.Array, Payload, Params | None]:
        task = self.task
        return task.program.train(
            state, task.batches(round), np.int32(task.node), np.int32(round), task.outgoing(round, speak)
        )

    def _enter(self, round: int, members: tuple[int, ...], life: int) -> None:
        """Another epoch: its graph, and whatever has an invariant sum over the nodes starts afresh."""
        if life != self.name:
            self._trace.write(records.Kept(life, round, [self.name, self._round]))
            self.name, self._exchanged = life, {}
        self._trace.write(records.Entered(self.name, round, list(members)))
        if note := self._whole.note(members):
            self._host.say(f"round {round}: {note}")
        self.task = self._whole.at(members)
        self.state = self.task.program.restart(self.state, self.task.slots)

    def _train(self, round: int, speak: tuple[int, ...]) -> Trained:
        task, self._spoke = self.task, speak
        if task.link == "push":  # whoever gets it may record it before this node records the round, if it ever does
            self._trace.write(records.Began(self.name, round, list(speak)))
        self.state, loss, payload, model = self._computed(self.state, round, speak)
        if task.per_edge:
            self._payload = jax.tree.map(np.asarray, payload)
            going: Outgoing | Mapping[int, Outgoing] = {
                j: outgoing(part(self._payload, task.slot(j))) for j in task.neighbors
            }
        else:
            self._payload, going = payload, outgoing(payload)
        self._round, self._loss = round, float(loss)
        self._before = evaluated(task, self.state, round)
        return Trained(going, None if model is None else outgoing(model))

    def adopt(self, effect: Adopt) -> None:
        """Begin with a neighbour's model."""
        self.state = self.task.program.adopt(self.state, self.models.tree(effect.payload))
        first = effect.round + 1
        self._trace.write(records.Adopted(self.name, first, [effect.node, effect.life, effect.round]))

    def _finish(self, effect: Advance) -> None:
        # one that leaves at the beginning of a round has not trained in it: it books what is late, and records no round
        trained = effect.finished == self._round
        if not trained and not effect.booked:
            return
        for group in _groups(effect.booked, self.task.slots):
            mixed = self._mix(effect.finished, group)
            self._traced(effect.finished, group, mixed, trained)
            trained = False
        self._measured(effect)
        if self._host.every and (effect.finished % self._host.every == 0 or effect.next is None):
            self.checkpoint()

    def _mix(self, round: int, group: Sequence[Booking]) -> Mixed:
        task = self.task
        booked = [
            Booked(b.node, b.opened, b.theirs.round, self._sent(b), self.payloads.tree(b.theirs.payload)) for b in group
        ]
        inbox, around, slots = task.inbox(round, booked, self._payload)
        self.state, mixed = task.program.mix(self.state, inbox, around)
        exchanged = np.asarray(mixed.exchanged, np.float64)
        for b in group:
            total = self._exchanged.setdefault(f"{b.node}:{b.life}", np.zeros(tree.SKETCH))
            total += exchanged[slots[b.node]]
        return mixed

    def _sent(self, booking: Booking) -> Payload:
        """This node's side; there is none to a push, and its own payload stands there."""
        if booking.mine is not None:
            sent: Payload = booking.mine.payload.tree
            return sent
        return part(self._payload, self.task.slot(booking.node)) if self.task.per_edge else self._payload

    # --- records

    def checkpoint(self) -> None:
        """Save the state after the last finished round, once. What goes wrong is said, and training goes on."""
        store = self._host.store
        if store is None or not self._host.every or self._saved == self._round or not self._round:
            return
        wrong = store.save(self.state, {"life": self.name, "round": self._round})
        if wrong is not None:
            self._host.say(f"no checkpoint after round {self._round}: {wrong}")
        self._saved = self._round

    def _traced(self, round: int, group: Sequence[Booking], mixed: Mixed, trained: bool) -> None:
        self._trace.write(
            records.Traced(
                life=self.name,
                round=round,
                booked=[[b.node, b.life, b.number, b.opened, b.theirs.round] for b in group],
                spoke=list(self._spoke) if trained and self.task.link == "push" else [],
                exchanged={who: records.pack(total) for who, total in self._exchanged.items()},
                model=records.pack(np.asarray(mixed.model, np.float64)),
                trained=trained,
            )
        )

    def _measured(self, effect: Advance) -> None:
        after = evaluated(self.task, self.state, effect.finished)
        now, traffic = self._host.now(), self._host.traffic()
        before = self._before or (None, None)
        self._metrics.write(
            records.Measured(
                node=self.task.node,
                life=self.life,
                round=effect.finished,
                train_loss=self._loss,
                score_before_mixing=before[0],
                score_after_mixing=after[0] if after else None,
                score_own=after[1] if after else None,
                arrived=[b.node for b in effect.booked],
                age=[effect.finished - b.opened for b in effect.booked],
                bytes_sent=traffic[0] - self._bytes[0],
                bytes_received=traffic[1] - self._bytes[1],
                seconds=round(now - self._began, 6),
                waited=round(effect.waited, 6),
                time=round(now, 6),
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


def _groups(booked: Sequence[Booking], slots: int) -> list[list[Booking]]:
    """Bookings in as few inboxes as hold at most one per neighbour and as many as there are slots, earlier ones first.

    One inbox, empty or not, but for the last round of an epoch.
    """
    groups: list[list[Booking]] = [[]]
    for booking in booked:
        for group in groups:
            if len(group) < slots and all(other.node != booking.node for other in group):
                group.append(booking)
                break
        else:
            groups.append([booking])
    return groups
