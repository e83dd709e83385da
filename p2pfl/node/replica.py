"""One node as every driver computes it: how it trains, mixes, adopts and enters epochs, and what it records."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from p2pfl import tree
from p2pfl.errors import USER_FAULTS, LocalError
from p2pfl.node import records
from p2pfl.node.task import Booked, Scores, Task, evaluated, part
from p2pfl.types import Array, Params, Payload, State


class Cost(NamedTuple):
    """The cost of a round, as the driver measures it."""

    bytes_sent: int
    bytes_received: int
    seconds: float  # from the end of the round before to the end of this one
    waited: float  # of these, for neighbours
    time: float  # the driver's clock


class Replica:
    """A life of a node: its state, and what it has sent in the latest `keep` rounds.

    `life`: its name, as the neighbours know it. Methods that compute raise LocalError for what user code fails with.
    """

    def __init__(self, task: Task, life: int = 1, keep: int = 1) -> None:
        self.whole = task  # with the schedule of all nodes
        self.task, self.life, self._keep = task, life, keep
        self.state: State = task.program.init(task.seed, task.site)
        self.round = 0  # the last it has trained in
        self.payloads: dict[int, Payload] = {}  # by round
        self.models: dict[int, Params] = {}  # after the local steps, by round
        self._slots: dict[int, tuple[int, ...]] = {}  # by round: whom the parts of a payload that is per_edge are for
        self._receivers: list[int] = []  # of the latest round's push
        self._loss = 0.0
        self._taken = 0  # local steps of the latest round
        self._diverged: int | None = None  # the round from which on the loss is not finite
        self._before: Scores | None = None  # mixing
        self._after: Scores | None = None
        self._exchanged: dict[str, np.ndarray] = {}  # "neighbour:life" -> sketch of what its exchanges have moved
        self._model: np.ndarray | None = None  # sketch of the model after the latest mixing
        self._mixed = 0  # the round of that
        self._known = False  # that statistics are known, where they must be by some round
        # where nobody sees a single model: what those get that join, mixed from several, and before that the first
        self._first = self._shown = None if task.sums is None else tree.public(task.program.params(self.state))
        self._gives = task.sums is not None and task.sums.hands_over(None)

    def sample(self) -> tuple[Payload, Params]:
        """Return a payload and a model as they will be, before any training; that payload is the latest until then."""
        if 0 not in self.payloads:
            _, _, payload, model = self._computed(1, (), None)
            self.payloads[0], self.models[0] = payload, payload if model is None else model
            self._slots[0] = self.task.neighbors
        return self.payloads[0], self.models[0]

    def warm(self) -> None:
        """Compile all that a round needs, without changing anything."""
        task, program = self.task, self.task.program
        payload, model = self.sample()
        trains = task.schedule.trains
        for round in range(2, 1 + len(trains)):  # a round without local steps is another program
            if trains[round - 1] != trains[0]:
                self._computed(round, (), None)
                break
        inbox, around, _ = task.inbox(1, (), payload)
        program.mix(self.state, inbox, around)
        program.adopt(self.state, model)
        program.restart(self.state, task.slots)
        evaluated(task, self.state, task.rounds)

    @contextlib.contextmanager
    def faults(self, part: str, round: int) -> Iterator[None]:
        """Raise LocalError for whatever user code fails with inside."""
        try:
            yield
        except USER_FAULTS as error:
            raise LocalError(str(error), node=self.task.node, round=round, part=part) from error

    # --- rounds

    def begins(self, round: int) -> bool:
        """Be about to train in a round, and wait for what that takes; whether there will be something to train."""
        return True

    def ends(self, round: int) -> None:
        """Be done with a round: what was booked in it is mixed."""

    def stop(self) -> None:
        """Wait for nothing any more; from any thread."""

    def train(self, round: int, receivers: tuple[int, ...], steps: int | None = None) -> tuple[Payload, Params | None]:
        """Take the local steps of a round (the first `steps` of them) and make the payload.

        `receivers`: neighbours that get a share, where the algorithm pushes. Returns the payload and the model after
        the local steps, None where that is the payload.
        """
        task = self.task
        with self.faults("train", round):
            self.state, loss, payload, model = self._computed(round, receivers, steps)
            self.round, self._loss = round, float(loss)
            self._taken = self._steps(round, steps)
            if self._taken:
                self._diverged = None if math.isfinite(self._loss) else self._diverged or round
            self._before = evaluated(task, self.state, round)
        model = model if self._shown is None else self._shown
        self._receivers = [j for j in task.schedule.sends_to(round) if j in receivers] if task.link == "push" else []
        self.payloads[round], self.models[round] = payload, payload if model is None else model
        self._slots[round] = task.neighbors
        self.forget(
            [r for r in self.payloads if r <= round - self._keep], [r for r in self.models if r <= round - self._keep]
        )
        return payload, model

    def _computed(
        self, round: int, receivers: tuple[int, ...], steps: int | None
    ) -> tuple[State, Array, Payload, Params | None]:
        task, batches = self.task, self.task.batches(round)
        if steps is not None:
            batches = {name: rows[: task.ahead + steps] for name, rows in batches.items()}
        state, loss, payload, model = task.program.train(
            self.state, batches, np.int32(task.node), np.int32(round), task.outgoing(round, receivers)
        )
        return state, loss, self._parts(payload), model

    def _parts(self, payload: Payload) -> Payload:
        """The payload; one that is per_edge in host memory, where its parts are cut out one by one."""
        return jax.tree.map(np.asarray, payload) if self.task.per_edge else payload

    def _steps(self, round: int, steps: int | None) -> int:
        """Return the local steps of a round."""
        trains = self.task.schedule.trains[self.task.schedule.row(round)]
        most = self.task.batching.width if trains else 0
        return most if steps is None else min(steps, most)

    def sent(self, to: int, round: int) -> Payload:
        """Return what a neighbour got, or was to get, of a round's payload."""
        side, fit, growth = self.side(to, round), self.task.fit, self.task.growth
        if self.task.sums is not None:
            with self.faults("send", round):
                return self.task.sums.share(side, self.task.schedule.weight_of(to, round))
        if growth is not None:
            return growth.payload(round, side)
        return side if fit is None else fit.payload(to, side)

    def side(self, to: int, round: int) -> Payload:
        """Return this node's side of what a neighbour got: of its own shape, where they are unequal."""
        payload = self.payloads[round]
        return part(payload, self._slots[round].index(to)) if self.task.per_edge else payload

    def given(self, to: int, round: int) -> Params:
        """Return what a node that joins gets of the model after a round's local steps."""
        model, fit = self.models[round], self.task.fit
        return model if fit is None else fit.model(to, model)

    def latest(self, to: int) -> Payload:
        """Return this node's latest payload for a neighbour: it stands where a push has no side of this node's."""
        payload = self.payloads[self.round]
        return part(payload, self.task.slot(to)) if self.task.per_edge else payload

    def forget(self, payloads: Sequence[int], models: Sequence[int]) -> None:
        """Drop the payloads, and the models, of these rounds."""
        for round in payloads:
            del self.payloads[round], self._slots[round]
        for round in models:
            del self.models[round]

    def usable(self, round: int, booked: Sequence[Booked]) -> list[Booked]:
        """Return what can be mixed of what was booked: all of it; where only sums are known, all or nothing.

        A sum is known of a whole neighbourhood whose ends were all in one round.
        """
        if self.task.sums is None:
            return list(booked)
        planned, rounds = {*self.task.schedule.receives_from(round)}, {each.theirs for each in booked}
        whole = planned == {each.node for each in booked} and len(booked) == len(planned)
        return list(booked) if whole and len(rounds) <= 1 else []

    def _summed(self, round: int, booked: Sequence[Booked]) -> list[Booked]:
        """The neighbours of a round with the mean of all in the place of each; none, where that is none."""
        sums = self.task.sums
        if sums is None or not booked:
            return list(booked)
        weight = sum(self.task.schedule.weight_of(each.node, round) for each in booked)
        means = sums.mean([each.received for each in booked], booked[0].sent, weight)
        if means is None:
            return []
        return [each._replace(received=mean) for each, mean in zip(booked, means, strict=True)]

    def mix(self, round: int, booked: Sequence[Booked]) -> list[Booked]:
        """Mix what was booked: at most one of each neighbour, and of what is `usable`.

        Returns what was mixed: all of it, or nothing where masks do not cancel.
        """
        booked = self._summed(round, booked)
        if (unequal := self.task.fit or self.task.growth) is not None:
            booked = [each._replace(received=unequal.into(each.sent, each.received)) for each in booked]
        with self.faults("mix", round):
            inbox, around, slots = self.task.inbox(round, booked, self.payloads[self.round])
            self.state, mixed = self.task.program.mix(self.state, inbox, around)
            exchanged = np.asarray(mixed.exchanged, np.float64)
            self._model = np.asarray(mixed.model, np.float64)
        self._mixed = round
        if booked:
            self._show()
        self._check_due(round)
        for each in booked:
            total = self._exchanged.setdefault(f"{each.node}:{each.life}", np.zeros(tree.SKETCH))
            total += exchanged[slots[each.node]]
        return booked

    def _check_due(self, round: int) -> None:
        """Raises LocalError where the masked sums of all nodes should be known by now."""
        due = self.task.due
        if not due or round < due or self._known:
            return
        self._known = bool(float(self.task.program.params(self.state)["statistics"]["known"]))
        if not self._known:
            text = (
                "the masked sums of some node have not come around, as when one goes before all have them: nobody "
                "learns anything, and nothing was trained. Start the run again, with the nodes that are there"
            )
            raise LocalError(text, node=self.task.node, round=round, part="statistics")

    def evaluate(self, round: int) -> None:
        """Evaluate the model after the round's mixing, where that is due."""
        with self.faults("evaluate", round):
            self._after = evaluated(self.task, self.state, round)

    # --- lives and epochs

    def adopt(self, model: Params, node: int, life: int, round: int) -> records.Adopted:
        """Begin with the model that this life of a neighbour had after its local steps in `round`."""
        with self.faults("adopt", round):
            if self.task.fit is not None:  # what the neighbour does not hold stays as it is
                model = self.task.fit.into(self._own(), model)
            self.state = self.task.program.adopt(self.state, model)
        self._show()
        self._diverged = None
        return records.Adopted(self.life, round + 1, [node, life, round])

    def _show(self) -> None:
        """Let those have the model as it is that join, where it tells no member more than it knows.

        Else the first one, with what is known to all of all data.
        """
        if self._first is None:
            return
        now = tree.public(self.task.program.params(self.state))
        known = {name: part for name, part in now.items() if name == "statistics"}
        self._shown = now if self._gives else {**self._first, **known}

    def _own(self) -> Params:
        """This node's model, as others may have it, in its own shapes."""
        fit, model = self.task.fit, tree.public(self.task.program.params(self.state))
        return model if fit is None else tree.cut(model, fit.models[fit.level], fit.stretches)

    def enter(self, round: int, members: tuple[int, ...]) -> records.Entered:
        """Enter an epoch before this round: its graph, and whatever has an invariant sum over the nodes afresh."""
        with self.faults("enter", round):
            self.task = self.whole.at(members)
            self.state = self.task.program.restart(self.state, self.task.slots)
        if self.task.sums is not None:
            self._gives = self.task.sums.hands_over(members)
            if not self._gives:
                self._show()
        return records.Entered(self.life, round, list(members))

    @property
    def kept(self) -> State:
        """What another life of the node goes on from: its state; with masks also what those get that join."""
        return self.state if self._shown is None else (self.state, self._shown)

    def go_on(self, kept: State) -> None:
        """Take what an earlier life has kept."""
        self.state, self._shown = (kept, None) if self._shown is None else kept

    def like(self, slots: int) -> State:
        """Return what is `kept` of so many slots, by shapes alone: what there is for each follows an epoch's graph."""
        if slots == self.task.slots:
            return self.kept
        state = jax.eval_shape(lambda state: self.task.program.restart(state, slots), self.state)
        return state if self._shown is None else (state, self._shown)

    def note(self, members: tuple[int, ...]) -> str:
        """Return what a person should know of an epoch; "" for nothing."""
        return self.whole.note(members)

    def renew(self, life: int, round: int, kept: tuple[int, int] | None = None) -> records.Kept:
        """Go on as another life from this round on, with the state that is here.

        `kept`: the life and the round that the state is from; None: this one and its latest.
        """
        earlier = kept or (self.life, self.round)
        self.life, self._exchanged = life, {}
        return records.Kept(life, round, list(earlier))

    # --- records

    def diverged(self) -> int | None:
        """Return the round from which on the training loss is not finite, or the last if only the model is not."""
        whole = self._diverged is None and tree.finite(self.task.program.params(self.state))
        return None if whole else self._diverged or self.round

    def began(self, round: int, receivers: Sequence[int]) -> records.Began:
        """Make the record of a round that is about to be trained in."""
        return records.Began(self.life, round, list(receivers))

    def traced(self, round: int, booked: Sequence[Booked], trained: bool = True, whole: bool = False) -> records.Traced:
        """Make the record of the latest mixing.

        `trained`: in this round, and this is its first mixing. `whole`: with the sketches, whatever the round.
        """
        assert self._model is not None
        whole = whole or records.sketched(round)
        return records.Traced(
            life=self.life,
            round=round,
            booked=[[b.node, b.life, b.number, b.mine, b.theirs] for b in booked],
            spoke=list(self._receivers) if trained else [],
            exchanged=self._packed() if whole else None,
            model=records.pack(self._model) if whole else None,
            trained=trained,
        )

    def sketches(self) -> records.Sketches | None:
        """Make the record of the sketches after the latest mixing; None before the first of this process."""
        if self._model is None:
            return None
        return records.Sketches(self.life, self._mixed, self._packed(), records.pack(self._model))

    def _packed(self) -> dict[str, str]:
        return {who: records.pack(total) for who, total in self._exchanged.items()}

    def five_steps(self, round: int, booked: Sequence[Booked]) -> records.RoundSteps:
        """Return what this node did in a round: see `records.RoundSteps`. Weights are the graph's."""
        schedule, steps = self.task.schedule, self._taken if round == self.round else 0
        there = bool(steps or schedule.sends_to(round) or schedule.receives_from(round))
        weight = sum(
            schedule.exchange_weight(each.node, each.mine, each.theirs)
            if self.task.link == "exchange"
            else schedule.weight_of(each.node, each.theirs)
            for each in booked
        )
        sends = [*schedule.sends_to(round)]
        return records.RoundSteps(there, steps, sends, [each.node for each in booked], 1.0 - weight)

    def measured(self, round: int, booked: Sequence[Booked], cost: Cost) -> records.Measured:
        """Make the record of a round that has been evaluated, from all that it booked."""
        before, after = self._before or (None, None), self._after or (None, None)
        did = self.five_steps(round, booked) if self.task.part < 1 else None
        return records.Measured(
            node=self.task.node,
            life=self.life,
            round=round,
            train_loss=self._loss,
            score_before_mixing=before[0],
            score_after_mixing=after[0],
            score_own=after[1],
            arrived=[each.node for each in booked],
            age=[round - each.mine for each in booked],
            **cost._asdict(),
            takes_part=None if did is None else did.takes_part,
            steps=None if did is None else did.steps,
            sends_to=None if did is None else did.sends_to,
            kept=None if did is None else did.kept,
        )
