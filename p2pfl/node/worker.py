"""The computing side of a node that has neighbours to talk to: what a `Peer` asks for, the node's files, checkpoints.

Knows no socket, no clock and no process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import safetensors

from p2pfl import tree
from p2pfl.errors import LocalError
from p2pfl.node import model_file, records, secrets
from p2pfl.node.fit import NodeSlice
from p2pfl.node.masked import MaskedSums
from p2pfl.node.payload import Frames, Incoming, Outgoing, outgoing
from p2pfl.node.replica import Cost, Replica
from p2pfl.node.said import Said
from p2pfl.node.spending import AHEAD, SpendingFile
from p2pfl.node.task import Booked, Task, part
from p2pfl.protocol.events import Adopt, Advance, Booking, Finished, Leave, Trained
from p2pfl.protocol.exchange import Side
from p2pfl.types import Params, Payload, State

_NO_SUM = (
    "mixed with nobody: what the neighbours have sent is no sum of models, since their masks do not cancel: one of "
    "them has the key, the seed or the federation of another run, or lies. See that all have the same"
)


class SavedState(Protocol):
    """A checkpoint as a store returns it."""

    @property
    def state(self) -> State:
        """The algorithm's state."""

    @property
    def table(self) -> dict[str, Any]:
        """Its `life` and `round`, the `slots` of its state, and the `sketches` of records.Sketches."""


class CheckpointStore(Protocol):
    """A store of a node's state: `checkpoint.Store`, or memory."""

    def save(self, state: State, table: dict[str, Any]) -> str | None:
        """Keep it; return what went wrong, for a person."""

    def load(self, like: Callable[[dict[str, Any]], State]) -> tuple[SavedState | None, list[str]]:
        """Return the latest, if there is one, and what a person should know of it. `like`: of a table its state."""


class Host(NamedTuple):
    """The services that a driver gives to the computing side of a node."""

    now: Callable[[], float]  # a clock, seconds
    traffic: Callable[[], tuple[int, int]]  # bytes sent and received so far
    happens: Callable[
        [int], str | None
    ]  # of a round about to begin: "leave", "crash" (of a node that goes on), or nothing
    say: Callable[[str], None]  # a line for a person
    store: CheckpointStore | None = None
    every: int = 0  # rounds from checkpoint to checkpoint; 0: none
    finished: Callable[[records.Measured, records.RoundSteps], None] = lambda measured, did: None  # told of each round
    spending: SpendingFile | None = None  # where processes end and begin again: private steps, counted for them all


class Worker:
    """Carries out what a `Peer` wants computed; writes metrics.jsonl, trace.jsonl, checkpoints and the model."""

    def __init__(self, task: Task, directory: Path, host: Host, replica: Replica | None = None) -> None:
        """`replica`: of the task; one that trains on the node's own rows unless given."""
        self.directory, self._host = directory, host
        self.replica = Replica(task) if replica is None else replica
        payload, model = self.replica.sample()
        like = jax.tree.map(lambda leaf: np.empty(leaf.shape[1:], leaf.dtype), payload) if task.per_edge else payload
        fit, growth = task.fit, task.growth
        self.payloads, self.models = Incoming(like), Incoming(model)
        if task.sums is not None:
            self.payloads = Incoming(task.sums.like(like))
        if growth is not None:
            self.payloads = Incoming(like, growth.payloads[1:], lambda node, round: growth.of(round))
        if fit is not None:
            self.payloads = Incoming(fit.payloads[0], fit.payloads[1:], lambda node, round: fit.meets(node))
            self.models = Incoming(fit.models[0], fit.models[1:], lambda node, round: fit.meets(node))
        self.last_round = 0  # that an earlier process of the node has finished
        self.kept: tuple[int, int] | None = None  # life and round of the checkpoint that this life goes on from
        self.trained = 0  # rounds, by this process
        self.untrained = True  # the model is as it was drawn
        self.score: float | None = None  # of the node's model after the latest round that was evaluated
        self.loss: float | None = None  # mean over the local steps of the latest round
        self._kept_sketches: Sequence[Any] | None = None  # the fields of records.Sketches, at that round
        self._began = host.now()
        self._learned = False  # what the statistics of all data say of this node's own
        self._measured: records.Measured | None = None  # since the last record
        self._ended = False  # it is said that training has ended
        self._saved = 0  # the last round that a checkpoint was made after
        self._bytes = (0, 0)
        self._members: tuple[int, ...] = ()  # of the present epoch
        self._spent = self._reserved = 0  # private steps of all processes, and how many are written down

    @property
    def task(self) -> Task:
        """The node's task in its present epoch."""
        return self.replica.task

    @property
    def life(self) -> int:
        """The name of the node's present life, as the neighbours know it."""
        return self.replica.life

    def for_others(self) -> tuple[float | None, float | None]:
        """Return score and loss for whoever asks; nothing where rows are private, since no noise is on them."""
        return (None, None) if self.task.budget is not None else (self.score, self.loss)

    def resume(self) -> list[str]:
        """Take the state of the checkpoint in the store, if there is one; return what a person should know."""
        assert self._host.store is not None
        saved, notes = self._host.store.load(lambda table: self.replica.like(table.get("slots", self.task.slots)))
        if saved is None:
            return [*notes, "no checkpoint: beginning without one"]
        self.replica.go_on(secrets.with_own(saved.state, self.task.site))
        self.kept, self.untrained = (saved.table["life"], saved.table["round"]), False
        self._kept_sketches = saved.table.get("sketches")
        return [*notes, f"going on from the checkpoint after round {saved.table['round']}"]

    def begin(self, life: int) -> None:
        """Open the records of this life, behind those of earlier ones; the clock of the first round starts now.

        Raises LocalError.
        """
        earlier = records.last(self.directory / "metrics.jsonl")
        if earlier:
            self.last_round = earlier["round"]
        self._metrics = records.Lines(self.directory / "metrics.jsonl", self.task.score, self._host.say)
        self._trace = records.Lines(self.directory / "trace.jsonl", say=self._host.say)
        if self.kept is None:
            self.replica.life = life
        else:
            if self._kept_sketches:  # as that life itself would have, had it ended there
                self._trace.write(records.Sketches(*self._kept_sketches))
            self._trace.write(self.replica.renew(life, self.kept[1] + 1, self.kept))
        if self._host.spending is not None and self.task.budget is not None:
            with self.replica.faults("records", 0):
                self._spent = self._reserved = self._host.spending.read(self.task.budget.terms)
            self.replica.state = self.task.budget.counted(self.replica.state, self._spent)
        self._began = self._host.now()

    # --- rounds

    def advance(self, effect: Advance) -> Trained | Finished | Leave | None:
        """Mix and record the finished round, then train the next one; None: the node is no more.

        Raises LocalError.
        """
        with self.replica.faults("records", effect.next or effect.finished):
            if effect.finished:
                self._finish(effect)
            if effect.next is None:
                self._sketch()
                return Finished()
            # of rounds that are trained again nothing happens twice, but the network is as it was
            for round in range(min(effect.finished or effect.next, effect.next - 1) + 1, effect.next + 1):
                if any((each.node, each.round) == (self.task.node, round) for each in self.task.events):
                    self._record()  # this process may be about to end
                fate = self._host.happens(round)
                if fate is not None:
                    return Leave(idle=True) if fate == "leave" else None
            if not self.replica.begins(effect.next):
                return Leave(idle=True)
            if effect.members is not None:
                self._enter(effect.next, effect.members, effect.life)
            return self._train(effect.next, effect.speak, effect.epoch)

    def _enter(self, round: int, members: tuple[int, ...], life: int) -> None:
        """Enter another epoch, as another life where the node was held for dead."""
        if life != self.life:
            self._record()
            self._sketch()
            self._trace.write(self.replica.renew(life, round))
        if note := self.replica.note(members):
            self._host.say(Said(f"round {round}: {note}", "epoch", round=round, members=[*members]))
        self._members = members
        self._trace.write(self.replica.enter(round, members))

    def _train(self, round: int, receivers: tuple[int, ...], epoch: int) -> Trained:
        task = self.task
        if task.link == "push":  # whoever gets it may record it before this node records the round, if it ever does
            self._trace.write(self.replica.began(round, receivers))
        self._reserve(round)
        payload, model = self.replica.train(round, receivers)
        self.trained, self.untrained = self.trained + 1, False
        if task.sums is not None:
            return self._masked(task.sums, round, epoch, model)
        if task.fit is not None:
            return self._cut(task.fit, payload, model)
        if task.growth is not None:
            whole = jax.tree.map(np.asarray, payload)
            return Trained(
                outgoing(payload, task.growth.payload(round, whole)), None if model is None else outgoing(model)
            )
        going: Outgoing | Mapping[int, Outgoing] = (
            {j: outgoing(part(payload, task.slot(j))) for j in task.neighbors} if task.per_edge else outgoing(payload)
        )
        return Trained(going, None if model is None else outgoing(model))

    def _masked(self, sums: MaskedSums, round: int, epoch: int, model: Params | None) -> Trained:
        """Mask what goes to each neighbour of the round; this node's side of it is its model as it is."""
        going = {}
        for j in self.task.schedule.receives_from(round):
            share = self.replica.sent(j, round)
            with self.replica.faults("send", round):
                masked = sums.masked(share, j, self._members, epoch, round)
            going[j] = outgoing(masked)._replace(tree=self.replica.side(j, round))
        return Trained(going, outgoing(model))

    def _reserve(self, round: int) -> None:
        """Write down the private steps of this round and some to come, before they are taken."""
        if self._host.spending is None or self.task.budget is None:
            return
        budget = self.task.budget
        steps, most = self.task.batching.width if budget.a_round is None else budget.a_round, budget.steps
        self._spent = min(self._spent + steps, most)
        if self._spent > self._reserved:
            self._reserved = min(self._spent + (AHEAD - 1) * steps, most)
            self._host.spending.write(self._reserved, self.task.budget.terms)

    def _cut(self, fit: NodeSlice, payload: Payload, model: Params | None) -> Trained:
        """Cut out for each level what the nodes of it have in common with this one."""
        payload, model = jax.tree.map(np.asarray, (payload, model))
        nodes, first = range(len(fit.levels)), {fit.meets(j): j for j in range(len(fit.levels))}
        going = {level: outgoing(payload, fit.payload(j, payload)) for level, j in first.items()}
        given = None
        if model is not None:
            models = {level: outgoing(model, fit.model(j, model)) for level, j in first.items()}
            given = {j: models[fit.meets(j)] for j in nodes}
        return Trained({j: going[fit.meets(j)] for j in nodes}, given)

    def adopt(self, effect: Adopt) -> None:
        """Begin with a neighbour's model. Raises LocalError."""
        model = self.models.of(effect.node, effect.round).tree(effect.payload)
        self._trace.write(self.replica.adopt(model, effect.node, effect.life, effect.round))
        self.untrained = False

    def _finish(self, effect: Advance) -> None:
        # one that leaves at the beginning of a round has not trained in it: it books what is late, and records no round
        round = effect.finished
        trained = round == self.replica.round
        if not trained and not effect.booked:
            return
        booked = self.replica.usable(round, [self._booked(each) for each in effect.booked])
        if self.task.sums is not None and not booked and self.task.schedule.receives_from(round):
            text = f"round {round}: mixed with nobody: not all neighbours were there, and less than all is no sum"
            self._host.say(Said(text, "not_whole", round=round))
        mixed: list[Booked] = []
        for group in _groups(booked, self.task.slots):
            found = self.replica.mix(round, group)
            self._trace.write(self.replica.traced(round, found, trained))
            trained = False
            mixed += found
        if len(mixed) < len(booked):
            self._host.say(Said(f"round {round}: {_NO_SUM}", "no_sum", logging.WARNING, round=round))
        self._learn(round)
        self._end(round)
        self.replica.evaluate(round)
        self.replica.ends(round)
        now, (sent, received) = self._host.now(), self._host.traffic()
        cost = Cost(
            bytes_sent=sent - self._bytes[0],
            bytes_received=received - self._bytes[1],
            seconds=_rounded(now - self._began),
            waited=_rounded(effect.waited),
            time=_rounded(now),
        )
        measured = self.replica.measured(round, mixed, cost)
        for score in (measured.score_after_mixing, measured.score_own):
            self.score = self.score if score is None else score
        self.loss = measured.train_loss
        self._host.finished(measured, self.replica.five_steps(round, mixed))
        self._measured = measured if self._measured is None else records.together(self._measured, measured)
        if records.recorded(round) or effect.next is None:
            self._record()
        self._began, self._bytes = now, (sent, received)
        if self._host.every and (round % self._host.every == 0 or effect.next is None):
            self.checkpoint()

    def _record(self) -> None:
        """Write down what has been measured."""
        if self._measured is not None:
            self._metrics.write(self._measured)
            self._measured = None

    def _learn(self, round: int) -> None:
        """Say what the statistics of all data say of this node's own rows, as soon as they are known."""
        learned = self.task.learned
        if learned is None or self._learned:
            return
        lines = learned(self.task.program.params(self.replica.state))
        self._learned = lines is not None
        for line in lines or ():
            self._host.say(Said(f"round {round}: {line}", "statistics", round=round))

    def _end(self, round: int) -> None:
        """Say that this node's training has ended by its validation rows, once."""
        if not self.task.patient or self._ended:
            return
        best = self.task.program.params(self.replica.state)["private"]["best"]
        if not int(best["ended"]):
            return
        self._ended = True
        text = (
            f"round {round}: trains no more, and goes on mixing: no better score on its validation rows than "
            f"{float(best['score']):.3f}, of round {int(best['round'])}"
        )
        self._host.say(Said(text, "patience", round=round))

    def _booked(self, booking: Booking) -> Booked:
        mine: Side[Outgoing] | None = booking.mine
        theirs: Side[Frames] = booking.theirs
        return Booked(
            node=booking.node,
            life=booking.life,
            number=booking.number,
            mine=booking.opened,
            theirs=theirs.round,
            sent=mine.payload.tree if mine is not None else self.replica.latest(booking.node),
            received=self.payloads.of(booking.node, theirs.round).tree(theirs.payload),
        )

    # --- files

    @property
    def records_dropped(self) -> int:
        """Records of this process that could not be written."""
        return self._metrics.dropped + self._trace.dropped

    @property
    def trace_whole(self) -> bool:
        """All that this process has done is in its trace."""
        return not self._trace.dropped

    def _sketch(self) -> None:
        """Write the sketches of a life that ends, where no record has them: for the ledger."""
        sketches = self.replica.sketches()
        if sketches is not None and not records.sketched(sketches.round):
            self._trace.write(sketches)

    def checkpoint(self) -> None:
        """Save the state after the last finished round, once. What goes wrong is said, and training goes on."""
        store, round = self._host.store, self.replica.round
        if store is None or not self._host.every or self._saved == round or not round:
            return
        table = {"life": self.life, "round": round, "slots": self.task.slots, "sketches": self.replica.sketches()}
        wrong = store.save(secrets.without_secrets(self.replica.kept), table)
        if wrong is not None:
            self._host.say(
                Said(f"no checkpoint after round {round}: {wrong}", "checkpoint", logging.ERROR, round=round)
            )
        self._saved = round

    def save(self) -> str:
        """Write the model as safetensors; return its digest. Raises LocalError; an earlier model stays."""
        params = self._params()
        path = self.directory / model_file.NAME
        try:
            model_file.write(path, params)
        except (OSError, safetensors.SafetensorError) as error:
            text = f"{path}: the model can't be written: {error}. Make room; a checkpoint that is there can be resumed"
            task, round = self.task, self.replica.round
            raise LocalError(text, node=task.node, round=round, part="records") from error
        return tree.digest(params)

    def digest(self) -> str:
        """Return the digest of the model, which need not be written."""
        return tree.digest(self._params())

    def _params(self) -> Params:
        return jax.tree.map(np.asarray, self.task.program.params(self.replica.state))

    def close(self) -> None:
        """Close the files."""
        self._record()
        self._metrics.close()
        self._trace.close()


def _rounded(seconds: float) -> float:
    return round(seconds, 6)


def _groups(booked: Sequence[Booked], slots: int) -> list[list[Booked]]:
    """Spread bookings over inboxes of at most one per neighbour and as many as there are slots, earlier ones first.

    One inbox, empty or not, but for the last round of an epoch.
    """
    groups: list[list[Booked]] = [[]]
    for booking in booked:
        for group in groups:
            if len(group) < slots and all(other.node != booking.node for other in group):
                group.append(booking)
                break
        else:
            groups.append([booking])
    return groups
