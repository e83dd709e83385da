"""One node's side of the protocol: rounds, exchanges, pushes. No socket, no clock, no arrays.

A round: the driver trains; `Trained` opens an exchange with, or pushes to, each neighbour that the round's plan names
and that is at hand; the node waits for those neighbours until an adaptive deadline; `Advance` mixes what was booked and
trains the next round. Who is at hand: see `presence`. How a node comes in: see `joining`.

Rounds belong to an epoch of the membership: who was a member when the round began. Before the first round of another
epoch all that is open is settled: voided, or booked, with whoever answers.

A deadline holds for who is silent: a neighbour whose large message gets on is waited for, within bounds: `Progressed`.

A push asks for no receipt. A round waits for a push of it or of a later round from each neighbour that the plan names;
what a neighbour further on has sent is kept for its round. A neighbour that says it is in a later round has sent all it
will send for this one, since links keep order.

A node that has lost more than half of the expected members waits for others, or trains on alone: see `rounds`.

A node is in one of nine stages, and STAGES says what it does about an event in each. Which stage may follow which,
and upon what (tests/test_peer_stages.py holds this drawing to what the machine does):

    starting   -> joining     on Hello Members Tick: a neighbour is at hand that has begun
    starting   -> training    on Hello Members Start Tick: everybody is met, or has been waited for
    starting   -> leaving     on Leave
    joining    -> training    on Hello Model Tick: with a model that was given, or its own
    joining    -> closing     on Hello Model Tick: nothing is left to be trained
    joining    -> leaving     on Leave
    training   -> exchanging  on Trained
    training   -> leaving     on Leave Trained: the latter where it was told to leave meanwhile
    training   -> done        on Finished: it was told to leave, and then its training failed
    exchanging -> training    on any: nobody is waited for any more, or the deadline has passed
    exchanging -> settling    on any: the same, but another epoch begins and exchanges are open
    exchanging -> leaving     on any: it is told to leave, or at the deadline of the last round
    exchanging -> closing     on any: nobody is waited for in the last round
    exchanging -> waiting     on any: too few are left to go on with
    settling   -> training    on any: all have answered, or have been waited for
    settling   -> waiting     on any: the same, but too few are left to go on with
    waiting    -> training    on any: enough are there again
    waiting    -> settling    on any: the same, but exchanges are open
    waiting    -> leaving     on Leave
    settling   -> leaving     on Leave
    leaving    -> closing     on any: all have answered, or have been waited for
    leaving    -> done        on Finished: its training failed twice
    closing    -> done        on Finished
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from p2pfl.errors import RemoteError
from p2pfl.protocol import exchange
from p2pfl.protocol.agreement import Agreement
from p2pfl.protocol.edges import Edges
from p2pfl.protocol.events import (
    Admitted,
    Advance,
    Booking,
    Done,
    Drop,
    Effect,
    Event,
    Finished,
    Leave,
    Members,
    Progressed,
    Received,
    Refused,
    Start,
    Tick,
    Trained,
    Unfit,
)
from p2pfl.protocol.exchange import IDLE, Side
from p2pfl.protocol.joining import Joining
from p2pfl.protocol.messages import (
    AskVoid,
    Bye,
    Closed,
    Description,
    Envelope,
    Hello,
    Model,
    Offer,
    Ping,
    Pong,
    Push,
    Receipt,
    Want,
)
from p2pfl.protocol.neighbor import ASYNC, BARRIER, Facts, Neighbor, RoundPlan
from p2pfl.protocol.presence import Met, Presence
from p2pfl.protocol.rounds import CommonRound
from p2pfl.protocol.state import (
    CLOSING,
    DONE,
    EXCHANGING,
    JOINING,
    LEAVING,
    SETTLING,
    STARTING,
    TRAINING,
    WAITING,
    PeerState,
)
from p2pfl.protocol.timing import Lateness

IGNORED = None
"""An event changes nothing in this stage: a driver in good order does not cause it, or nobody cares any more."""

_MESSAGES: Mapping[type[Any], str | None] = {
    Received: "_received",
    Refused: "_received",
    Hello: "_met",
    Description: "_described",
    Offer: "_offered",
    Receipt: "_told",
    AskVoid: "_told",
    Closed: "_told",
    Ping: "_placed",
    Pong: "_placed",
    Push: "_pushed",
    Want: "_wanted",
    Model: IGNORED,
    Bye: "_left",
}
"""What comes from others. `Received` and `Refused` look up the message by its own type, once its sender is known."""

_ROUND: Mapping[type[Any], str | None] = {
    **_MESSAGES,
    Start: IGNORED,
    Members: "_members_changed",
    Admitted: "_admitted",
    Progressed: "_progressed",
    Tick: "_tick",
    Trained: IGNORED,
    Leave: "_leave",
    Finished: IGNORED,
}

STAGES: Mapping[str, Mapping[type[Any], str | None]] = {
    STARTING: {
        **_ROUND,
        Start: "_start",
        Members: "_members_changed_at_the_start",
        Tick: "_tick_at_the_start",
        Hello: "_met_at_the_start",
    },
    JOINING: {
        **_ROUND,
        Members: "_members_changed_while_joining",
        Tick: "_tick_while_joining",
        Progressed: "_progressed_while_joining",
        Hello: "_met_while_joining",
        Model: "_given",
    },
    TRAINING: {
        **_ROUND,
        Offer: "_offered_in_a_round",
        Trained: "_trained",
        Leave: "_leave_when_trained",
        Finished: "_finish",
    },
    EXCHANGING: {**_ROUND, Offer: "_offered_in_a_round"},
    SETTLING: {**_ROUND},
    WAITING: {**_ROUND, Members: "_members_changed_while_waiting"},
    LEAVING: {**_ROUND, Leave: IGNORED, Finished: "_finish"},
    CLOSING: {**_ROUND, Leave: IGNORED, Finished: "_finish"},
    DONE: dict.fromkeys(_ROUND, IGNORED),
}
"""The machine: stage x (event or message) -> the method of `Peer` that handles it."""

_RETURN = 10.0
"""Seconds for which a round waits, at most, for a node that the experiment lets come back in it."""

_FAR = 1000
"""A neighbour ahead by more rounds has gone on without this node, whatever the schedule says."""


class Peer:
    """See the module. `handle(event, now)` returns the effects, in the order in which they are to be carried out."""

    def __init__(self, facts: Facts) -> None:
        self.state = PeerState(facts, facts.life, facts.kept_round)
        self._lateness = Lateness()
        self._edges = Edges(self.state, self._lateness)
        self._agreement = Agreement(self.state, self._edges)
        self._presence = Presence(self.state, self._edges, self._agreement)
        self._rounds = CommonRound(self.state)
        self._joining = Joining(self.state, self._presence, self._agreement)
        self._planned = RoundPlan()  # of the present round
        self._granted: dict[int, int] = {}  # who gets a share of this round's payload, and the life it is for
        self._trained_in = 0
        self._resting: frozenset[int] = frozenset()  # neighbours without an exchange in this round, see `_realign`
        self._model: Any = None  # after the local steps of that round
        self._leaving = self._began = False
        self._said = False  # that it waits for members
        self._unfit = False  # and has said so
        self._held: float | None = None  # since when it waits for one that is to come back
        self._asked = 0.0  # when a void was asked for of all that is open

    @property
    def stage(self) -> str:
        """One of STAGES."""
        return self.state.stage

    @property
    def round(self) -> int:
        """The round it is in, or was in last."""
        return self.state.round

    @property
    def told(self) -> int:
        """The round that the others are told: one that ends without half of them has not seen the last one."""
        if self.stage == STARTING and self.state.facts.together:
            return 0
        ends = self.stage in (CLOSING, DONE) and self._rounds.lonely
        return min(self.round, self.state.facts.rounds - 1) if ends else self.round

    @property
    def alone(self) -> int:
        """Rounds that it has trained without half of the expected members."""
        return self._rounds.alone

    @property
    def waits(self) -> bool:
        """It trains no further round before others are there."""
        return self._said and self.stage in (STARTING, WAITING)

    @property
    def life(self) -> int:
        """Its present life."""
        return self.state.life

    @property
    def booked(self) -> int:
        """Exchanges booked at this end, and pushes that were used."""
        return self._edges.booked

    @property
    def voided(self) -> int:
        """Exchanges void at this end, with those that the experiment loses."""
        return self._edges.voided

    @property
    def open(self) -> int:
        """Exchanges that are neither booked nor void."""
        return self._edges.open

    @property
    def late(self) -> dict[int, float]:
        """For how many seconds each of `awaited` has been waited for, and each of `silent` has said nothing."""
        state = self.state
        waited = dict.fromkeys(self.awaited, max(0.0, state.now - state.since))
        return waited | {node: max(0.0, state.now - state.neighbors[node].heard) for node in self.silent}

    @property
    def silent(self) -> tuple[int, ...]:
        """Members beside it that answer no ping, so that nobody waits for them; whether they are dead is not known."""
        state = self.state
        return tuple(
            node for node in sorted(state.neighbors.keys() & state.seen.keys()) if state.neighbors[node].suspect
        )

    @property
    def awaited(self) -> tuple[int, ...]:
        """Neighbours that it waits for now; at the start, members that are not there."""
        if self.stage == STARTING:
            return tuple(self._presence.missing)
        return tuple(sorted(other.node for other in self.state.neighbors.values() if self._awaits(other)))

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Return what one event does at time `now` (seconds, monotonic)."""
        self.state.now, self.state.out = now, []
        method = STAGES[self.stage][type(event)]
        if method is not None:
            getattr(self, method)(event)
        if not self._unfit and (reason := self._agreement.unfit):
            self._unfit = True
            self.state.out.append(Unfit(reason))
        return self.state.out

    # --- messages

    def _received(self, event: Received | Refused) -> None:
        """Find out who speaks; then do what the stage has for the message."""
        state, envelope, usable = self.state, event.envelope, isinstance(event, Received)
        node, message = envelope.node, envelope.message
        if node >= state.nodes or node == state.facts.node:
            state.out.append(Drop("stranger", f"node {node}: there are nodes 0 to {state.nodes - 1}"))
            return
        if (round := getattr(message, "round", 0)) > state.facts.rounds:
            text = f"node {node}: {type(message).__name__} of round {round}; the run has {state.facts.rounds}"
            state.out.append(Drop("round", text))
            return
        method = STAGES[state.stage][type(message)]
        if isinstance(message, Hello | Description):
            assert method is not None
            getattr(self, method)(envelope)
            return
        other = state.neighbors.get(node, Neighbor(node))
        if envelope.life != other.life or envelope.to != state.life:
            reason = "stranger" if envelope.to == state.life else "stale"
            reason = reason if usable else "nonfinite"
            state.out.append(Drop(reason, f"{type(message).__name__} of an unknown or earlier life of node {node}"))
            return
        self._presence.hear(other)
        try:
            if method is not None:
                getattr(self, method)(other, envelope, usable)
        except RemoteError as error:
            state.out.append(Drop(error.reason, f"node {other.node}: {error.detail}"))
        self._check()

    def _met(self, envelope: Envelope) -> Met | None:
        assert isinstance(envelope.message, Hello)
        return self._presence.on_hello(envelope, envelope.message)

    def _described(self, envelope: Envelope) -> None:
        self._agreement.hear(envelope)

    def _met_at_the_start(self, envelope: Envelope) -> None:
        if self._met(envelope):
            self._begin_if_met()

    def _met_while_joining(self, envelope: Envelope) -> None:
        met = self._met(envelope)
        if met and met.other.linked and met.other.begun:
            self._joining.ask_donors()
            self._join_if_given()

    def _left(self, other: Neighbor, envelope: Envelope, usable: bool) -> None:
        assert isinstance(envelope.message, Bye)
        if other.left:  # it has said so, and each time would be a line in the log
            return
        other.round = max(other.round, envelope.message.round)
        self._edges.end_life(other)
        other.left, other.finished = True, envelope.message.round >= self.state.facts.rounds
        if not other.finished:  # at the end everybody goes
            self.state.note("left", other.node)

    def _wanted(self, other: Neighbor, envelope: Envelope, usable: bool) -> None:
        assert isinstance(envelope.message, Want)
        other.wants = envelope.message.round
        self._serve(other)

    def _given(self, other: Neighbor, envelope: Envelope, usable: bool) -> None:
        assert isinstance(envelope.message, Model)
        if usable:
            self._joining.give(other, envelope.message.round, envelope.payload)
            self._join_if_given()

    def _offered(self, other: Neighbor, envelope: Envelope, usable: bool) -> None:
        message = envelope.message
        assert isinstance(message, Offer)
        self._place(other, message, usable)
        if usable:
            side = Side(envelope.payload, message.round, message.epoch)
            self._edges.apply(other, exchange.receive(other.edge, message, side))
        else:
            self._edges.apply(other, exchange.refuse(other.edge, message))

    def _offered_in_a_round(self, other: Neighbor, envelope: Envelope, usable: bool) -> None:
        """Refuse what can't be booked: it is of another epoch than this node is in, or is going into."""
        message = envelope.message
        assert isinstance(message, Offer)
        if message.epoch in (self.state.epoch, self.state.ahead):
            self._offered(other, envelope, usable)
        else:
            self._place(other, message, usable)
            self._edges.apply(other, exchange.refuse(other.edge, message))

    def _place(self, other: Neighbor, message: Offer, usable: bool) -> None:
        if not self.state.facts.exchanges:
            raise RemoteError("unplanned", "an offer, and the algorithm exchanges nothing")
        other.ready = True
        other.round = max(other.round, message.round)
        if not usable:
            self._drop_nonfinite(other)

    def _drop_nonfinite(self, other: Neighbor) -> None:
        self.state.out.append(Drop("nonfinite", f"node {other.node}: payload with NaN or infinity"))

    def _told(self, other: Neighbor, envelope: Envelope, usable: bool) -> None:
        self._edges.apply(other, exchange.receive(other.edge, envelope.message))

    def _placed(self, other: Neighbor, envelope: Envelope, usable: bool) -> None:
        assert isinstance(envelope.message, Ping | Pong)
        self._presence.asked(other, envelope.message)
        other.round = max(other.round, envelope.message.round)
        self._told(other, envelope, usable)

    def _pushed(self, other: Neighbor, envelope: Envelope, usable: bool) -> None:
        assert isinstance(envelope.message, Push)
        state, side = self.state, Side(envelope.payload, *envelope.message)
        planned = 1 <= side.round <= state.facts.rounds
        if side.epoch == state.epoch:
            planned = planned and other.node in state.plan.at(side.round).receives_from
        if not planned:
            raise RemoteError("unplanned", f"a push in round {side.round}, in which the schedule has none")
        late = self._awaits(other) and side.round >= state.round
        other.ready = True
        other.round = max(other.round, side.round)
        if not usable:
            other.pushed = max(other.pushed, side.round)
            self._drop_nonfinite(other)
            return
        other.store(side)
        if late:
            self._lateness.booked(state.now - state.since)

    def _progressed(self, event: Progressed) -> bool:
        """A large message gets on between a neighbour and this node, in either direction; returns whether it is one."""
        other = self.state.neighbors.get(event.node)
        if other is None or (event.life, event.to) != (other.life, self.state.life):
            return False
        self._presence.progress(other, event.nbytes)
        return True

    def _progressed_while_joining(self, event: Progressed) -> None:
        if self._progressed(event):
            self._joining.progressed()

    # --- members and time

    def _members_changed(self, event: Members) -> None:
        """A new epoch begins with the next round."""
        self._change(event)
        self._check()

    def _members_changed_at_the_start(self, event: Members) -> None:
        self._change(event)
        self._presence.renew()
        self._begin_if_met()
        self._presence.greet()

    def _members_changed_while_joining(self, event: Members) -> None:
        """A new epoch begins at once: this node is in no round yet."""
        self._change(event)
        self._presence.renew()
        self._presence.enter()
        self._presence.greet()

    def _members_changed_while_waiting(self, event: Members) -> None:
        """A node that waits begins no round with which to go on as a new life: it does so at once."""
        self._change(event)
        self._presence.renew()
        self._check()

    def _admitted(self, event: Admitted) -> None:
        """The federation has grown. Who is new is heard from now on, and is a member once the membership has it."""
        self._presence.admit(event.nodes)

    def _change(self, event: Members) -> None:
        self._presence.change(event)
        self._rounds.look()

    def _tick(self, event: Tick) -> None:
        self._rounds.stood_still(self._presence.awake())
        self._presence.greet()
        for other in self.state.neighbors.values():
            self._presence.watch(other, self._watched(other))
        self._check()

    def _tick_at_the_start(self, event: Tick) -> None:
        self._presence.awake()
        self._presence.greet()
        self._begin_if_met()

    def _tick_while_joining(self, event: Tick) -> None:
        self._presence.awake()
        self._presence.greet()
        for other in self.state.neighbors.values():
            self._presence.watch(other, other.linked or self._watched(other))
        if not self._join_if_given() and not self._go_on_alone_if_lost():
            self._joining.ask_donors()
            self._joining.ask_again()

    # --- coming in

    def _start(self, event: Start) -> None:
        self._presence.begin()
        self._presence.greet()
        self._begin_if_met()

    def _begin_if_met(self) -> None:
        """Start once all expected members are there and every neighbour has been met.

        A node that comes to others who have begun does not wait: it goes on as soon as it has met one of them.
        """
        if not self._presence.gathered or self._waits():
            return
        if self._presence.enter():
            self._presence.greet()
        if self._joining.others_have_begun:
            self.state.stage, self.state.since = JOINING, self.state.now
            self._joining.begin()
            self._join_if_given()
        elif (first := self._joining.first_round()) is None:
            return
        elif first > self.state.facts.rounds:  # it comes back from after the last round
            self._close()
        else:
            self._begin(first)

    def _join_if_given(self) -> bool:
        """Take part from after the round of the model that was taken, or of its own; returns whether it does."""
        after = self._joining.joined_after()
        if after is None:
            return False
        if after >= self.state.facts.rounds:
            self._close()
            return True
        self._rounds.joined()
        self._begin(after + 1)
        for other in self.state.neighbors.values():
            if other.linked:
                self._presence.hello(other)
        return True

    def _go_on_alone_if_lost(self) -> bool:
        """Without a neighbour that could give a model: close, or begin with its own; returns whether it did either."""
        state = self.state
        if not self._joining.lost:
            return False
        if self._joining.too_late:
            state.note("alone", state.facts.node, "the neighbours finished before this node could join")
            self._close()
            return True
        if self._joining.patience_is_over:
            state.note("alone", state.facts.node, "no neighbour gives a model; going on with its own")
            first = max(1, state.facts.join_round, state.facts.kept_round + 1)
            if first > state.facts.rounds:
                self._close()
            else:
                self._begin(first)
            return True
        return False

    def _waits(self) -> bool:
        """Too few are there to go on with: say so, once, and wait for others."""
        waits = self._rounds.waits(self._said)
        if waits and not self._said:
            text = f'{self._rounds.standing}; it waits for more. To train on without them: network.alone = "train"'
            self.state.note("waiting", self.state.facts.node, text)
        elif self._said and not waits:
            self.state.note("gathered", self.state.facts.node, self._rounds.standing)
        self._said = waits
        return waits

    def _awaits_return(self) -> bool:
        """Give one that is to come back in the next round, as planned, the time that it takes to come in."""
        state = self.state
        if not self._rounds.comes(state.round + 1):
            return False
        self._held = state.now if self._held is None else self._held
        return state.now - self._held < min(state.facts.timing.start_timeout, _RETURN)

    def _close(self) -> None:
        """Nothing is left to be trained."""
        self.state.stage = CLOSING
        self.state.out.append(Advance(self.state.round, (), 0.0, None))

    # --- rounds

    def _begin(self, round: int) -> None:
        self._train(round, 0, (), 0.0)

    def _train(self, round: int, finished: int, booked: tuple[Booking, ...], waited: float) -> None:
        """On to a round, and into another epoch if there is one: who is there now gets a share of what will be sent."""
        state = self.state
        if self._presence.renew():
            self._rounds.joined()
        entered = self._presence.enter() or not self._began
        self._began = True
        state.stage, state.round, state.since = TRAINING, round, state.now
        self._rounds.begins()
        self._planned = plan = state.plan.at(round)
        # a push that the experiment loses has its share all the same, as long as there is somebody to lose it
        granted = [other for other in self._named(plan.sends_to + plan.lost) if other.usable]
        granted += [other for other in self._named(plan.lost) if other.finished]
        self._granted = {other.node: other.life for other in granted}
        speak, members = tuple(sorted(self._granted)), state.members if entered else None
        state.out.append(Advance(finished, booked, waited, round, speak, members, state.life, state.epoch))
        if entered:
            self._presence.greet()

    def _named(self, nodes: Sequence[int]) -> list[Neighbor]:
        return [self.state.neighbors[node] for node in sorted(nodes)]

    def _trained(self, event: Trained) -> None:
        """Open the round's exchanges, and push; then wait for the neighbours."""
        state, payload = self.state, event.payload
        self._lateness.trained(state.now - state.since)
        self._rounds.stood_still(max(0.0, state.now - state.since))
        state.since = state.now
        if self._leaving:
            self._go()
            return
        state.stage = EXCHANGING
        self._trained_in, self._model = state.round, payload if event.model is None else event.model
        for other in state.neighbors.values():
            other.excused, other.counted = 0.0, 0
            self._serve(other)
            mine = payload.get(other.node) if state.facts.per_edge else payload
            self._open(other, Side(mine, state.round, state.epoch))
            if other.node in self._planned.sends_to and self._granted.get(other.node) == other.life and other.linked:
                state.send(other, Push(state.round, state.epoch), mine)
            if other.node in self._planned.receives_from and other.pushed >= state.round:
                self._lateness.booked(0.0)
        state.deadline = state.now + self._lateness.deadline(state.facts.timing, state.facts.payload_bytes)
        self._check()

    def _open(self, other: Neighbor, side: Side) -> None:
        """Open the round's exchange with a neighbour; ask for a void of one that has become too old."""
        state = self.state
        open_since = other.edge.mine.round if other.edge.mine else state.round
        if state.round - open_since >= state.facts.lateness:
            self._edges.apply(other, exchange.ask(other.edge))
        # what is booked and not yet mixed is in flight as well: with two, late exchanges blow up
        if other.edge.phase != IDLE or self._edges.holds(other.node):
            return
        # without a barrier, who is offered an exchange takes it, whatever its own schedule says
        taken = state.facts.sync == ASYNC and other.edge.theirs is not None and other.edge.theirs.epoch == state.epoch
        taken = taken and other.node in state.plan.neighbors  # there is no slot for another
        if other.node in self._resting and state.round < state.facts.rounds:
            return
        if (other.node in self._planned.exchange or taken) and other.usable:
            other.opened = state.now
            self._edges.apply(other, exchange.open(other.edge, side))
        elif other.node in self._planned.void and (other.usable or other.finished):
            self._edges.lose()

    def _serve(self, other: Neighbor) -> None:
        """Give the model to a neighbour that wants it, once the round it wants has been trained.

        Who wants it again and again gets it at the pace of one that has lost it, since it is large, and its digest is
        computed for each.
        """
        due = self.state.now - other.served >= self.state.facts.timing.retry_every / 2
        if other.wants is not None and self._trained_in and self._trained_in >= other.wants and due:
            other.wants, other.served = None, self.state.now
            # the digest is put in by whoever has the bytes
            model = self._model
            if isinstance(model, Mapping):  # nodes have models of unequal shapes
                model = model.get(other.node)
            self.state.send(other, Model(self._trained_in, ""), model)

    # --- waiting

    def _awaits(self, other: Neighbor) -> bool:
        """The node waits for a neighbour's part in its round, or for its answer at the end of an epoch or of all."""
        if self.stage in (SETTLING, LEAVING):
            return other.pending
        return self.stage == EXCHANGING and other.usable and self._awaits_in_round(other)

    def _awaits_in_round(self, other: Neighbor) -> bool:
        state = self.state
        last = state.round >= state.facts.rounds  # no exchange stays open behind
        if state.facts.sync == ASYNC:
            return last and other.pending
        if other.pending and (last or other.node in self._planned.exchange):
            return last or not self._gone_on(other)
        return other.node in self._planned.receives_from and max(other.pushed, other.round - 1) < state.round

    def _watched(self, other: Neighbor) -> bool:
        """The node wants to know whether a neighbour is there."""
        return self._awaits(other) or (self.state.facts.sync == ASYNC and other.pending)

    def _gone_on(self, other: Neighbor) -> bool:
        """The neighbour is in a later round, has left no offer, and makes none there: it has passed this round by."""
        state = self.state
        return (
            other.round > state.round
            and other.edge.theirs is None
            and other.node not in state.plan.at(min(other.round, state.facts.rounds)).exchange
        )

    def _check(self) -> None:
        """Go on if there is nothing to wait for."""
        state = self.state
        if state.stage == WAITING:
            self._advance()
        if state.stage not in (EXCHANGING, SETTLING, LEAVING):
            return
        waiting = [other for other in state.neighbors.values() if self._awaits(other)]
        if state.stage in (SETTLING, LEAVING):
            if not waiting or state.now - self._asked >= state.facts.timing.drain:
                self._advance(last=state.stage == LEAVING)
        elif not waiting:
            self._advance()
        elif state.now >= max(state.deadline, *(o.excused for o in waiting)) and (
            state.facts.sync != BARRIER or self._presence.moving
        ):
            for other in waiting:
                state.note("late", other.node)
            if state.round >= state.facts.rounds:
                self._go()
            else:
                self._advance()

    def _settled(self) -> bool:
        """Another epoch begins: is nothing open any more? If something is, ask for a void of it, once."""
        if self.stage != SETTLING and self._edges.ask_void():
            self.state.stage, self._asked = SETTLING, self.state.now
            return False
        self._edges.forsake()
        return True

    # --- on to the next round

    def _advance(self, last: bool = False) -> None:
        state = self.state
        home = None if last else self._rounds.home
        last = last or (state.round >= state.facts.rounds and home is None)
        if not last and (self._waits() or self._awaits_return()):
            state.stage = WAITING
            return
        self._held = None
        moves = not last and (self._presence.moving or home is not None)
        if moves and not self._settled():
            return
        finished, waited = state.round, state.now - state.since
        booked = self._edges.take(None if last or moves else state.plan.slots)
        wanted = {*self._planned.exchange} - self._resting or self._planned.receives_from
        if wanted and not booked and state.stage != LEAVING:
            state.note("alone", state.facts.node, "mixed with nobody")
        if last:
            state.stage = CLOSING
            state.out.append(Advance(finished, booked, waited, None))
            return
        if home is None:
            self._go_on(self._following(booked), finished, booked, waited)
        else:
            self._go_back(home, finished, booked, waited)
        self._rounds.settled()

    def _go_on(self, following: int, finished: int, booked: tuple[Booking, ...], waited: float) -> None:
        """Train the next round, or a later one that the others are in."""
        state = self.state
        skipped = following - state.round - 1
        self._rounds.skips(skipped)
        if skipped:
            text = f"from round {state.round} to {following}, where the neighbours are"
            state.note("skipped", state.facts.node, text, skipped)
        self._train(following, finished, booked, waited)
        if skipped:
            for other in state.neighbors.values():
                if other.linked:  # who waits for this node in a round that it skips shall know at once
                    state.send(other, self._edges.ping(other))

    def _go_back(self, home: int, finished: int, booked: tuple[Booking, ...], waited: float) -> None:
        """Train on from where the majority is that this node has run ahead of, as a new life with what it has."""
        state = self.state
        text = f"from round {state.round} to {home + 1}, where the majority is"
        state.note("returned", state.facts.node, text, state.round - home)
        self._presence.renew(returns=True)
        self._rounds.joined()
        self._train(home + 1, finished, booked, waited)

    def _following(self, booked: Sequence[Booking]) -> int:
        """Return the round after this, or a later one that neighbours are in who have gone on without this node.

        On a graph that stays, who has booked with all its neighbours, and all were ahead, takes their round over: else
        it would be behind to the end, and train its last round alone. (Not if only some were: then skipping goes round
        and round on a ring. Where partners change, who skips a round misses another.) How far it believes them: see
        `CommonRound.limit`.
        """
        state = self.state
        following = state.round + 1
        if state.facts.sync == ASYNC:
            return following
        self._rounds.ends()
        rounds = {each.node: each.theirs.round for each in booked if each.mine is not None}
        if state.plan.steady and rounds and set(self._planned.exchange) <= set(rounds):
            following = max(following, min(rounds.values()) + 1)
        for other in state.neighbors.values():
            if other.round > following and self._passed_over(other):
                following = other.round
        following = max(following, self._rounds.found)
        if following > state.round + 1:
            following = min(following, self._rounds.limit(), state.facts.rounds)
        self._resting = frozenset()
        if state.plan.steady and following == state.round + 1:
            self._resting = self._realign(booked)
        return following

    def _realign(self, booked: Sequence[Booking]) -> frozenset[int]:
        """Return the neighbours with which the next round leaves the exchange out: they are ahead, and not followed.

        Once somebody has been away, the exchanges of an edge may join round r of one end with r + 1 of the other. Where
        these differences do not add up to 0 around a ring, every round waits in the end for one of its own that is too
        early: a lap of 16 nodes takes 16 rounds' time and is 14 rounds long, for ever. So who is behind leaves one out,
        and the rounds of both ends meet again.
        """
        ahead = {each.node: each.theirs.round - each.mine.round for each in booked if each.mine is not None}
        if not set(self._planned.exchange) <= set(ahead):
            return frozenset()
        return frozenset(node for node, rounds in ahead.items() if rounds > 0)

    def _passed_over(self, other: Neighbor) -> bool:
        """The neighbour has left a round behind in which it was to wait for this node, which has not been there.

        Without that, a neighbour may be ahead by what the schedule allows.
        """
        state = self.state
        ahead = range(max(state.round + 1, other.since), min(other.round, state.facts.rounds + 1))
        return len(ahead) > _FAR or any(
            other.node in plan.exchange or other.node in plan.sends_to for plan in map(state.plan.at, ahead)
        )

    # --- leaving

    def _leave(self, event: Leave) -> None:
        self._go()

    def _leave_when_trained(self, event: Leave) -> None:
        """Send out what is being trained for nobody: leave when it is there, or at once if it is not to come."""
        self._leaving = True
        if event.idle:
            self._go()

    def _go(self) -> None:
        """Let no exchange stay open: ask for a void of what is, wait a little for the answers, and go."""
        self.state.stage, self._asked = LEAVING, self.state.now
        self._edges.ask_void()
        self._check()

    def _finish(self, event: Finished) -> None:
        """Say good-bye."""
        state = self.state
        state.stage = DONE
        for other in state.neighbors.values():
            self._edges.end_life(other)
            if other.linked:
                state.send(other, Bye(state.round))
        state.out.append(Done())
