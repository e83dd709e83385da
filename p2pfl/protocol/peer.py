"""One node's side of the protocol: rounds, exchanges, pushes. No socket, no clock, no arrays.

A round: the driver trains; `Trained` opens an exchange with, or pushes to, each neighbour that the round's turn names
and that is at hand; the node waits for those neighbours until an adaptive deadline; `Advance` mixes what was booked and
trains the next round. Who is at hand: see `presence`.

Rounds belong to an epoch of the membership: who was a member when the round began. Before the first round of another
epoch all that is open is settled: voided, or booked, with whoever answers.

A push asks for no receipt. A round waits for a push of it or of a later round from each neighbour that the turn names;
what a neighbour further on has sent is kept for its round. A neighbour that says it is in a later round has sent all it
will send for this one, since links keep order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from p2pfl.errors import RemoteError
from p2pfl.protocol import exchange
from p2pfl.protocol.bookings import Bookings
from p2pfl.protocol.events import (
    Advance,
    Booking,
    Done,
    Drop,
    Effect,
    Event,
    Finished,
    Leave,
    Members,
    Received,
    Refused,
    Start,
    Tick,
    Trained,
)
from p2pfl.protocol.exchange import IDLE, Edge, Ended, Side, Step
from p2pfl.protocol.messages import BOOKED, Bye, Envelope, Hello, Model, Offer, Ping, Pong, Push, Want
from p2pfl.protocol.neighbor import ASYNC, BARRIER, Facts, Neighbor, Turn
from p2pfl.protocol.presence import CLOSING, DONE, EXCHANGING, JOINING, LEAVING, SETTLING, TRAINING, Presence
from p2pfl.protocol.timing import Lateness

_FAR = 1000
"""A neighbour ahead by more rounds has gone on without this node, whatever the schedule says."""


class Peer(Presence):
    """See the module. `handle(event, now)` returns the effects, in the order in which they are to be carried out."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.booked = self.voided = 0  # exchanges that ended so at this end, and pushes that were used
        self._turn = Turn()
        self._bookings = Bookings()
        self._granted: dict[int, int] = {}  # who gets a share of this round's payload, and the life it is for
        self._trained_in = 0
        self._model: Any = None  # after the local steps of that round
        self._lateness = Lateness()
        self._leaving = self._began = False
        self._settling = 0.0

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What one event does at time `now` (seconds, monotonic)."""
        self._now, self._out = now, []
        if self.stage == DONE:
            return []
        match event:
            case Received(envelope):
                self._received(envelope, usable=True)
            case Refused(envelope):
                self._received(envelope, usable=False)
            case Trained(payload, model):
                self._trained(payload, payload if model is None else model)
            case Tick():
                self._ticked()
            case Members():
                self._on_members(event)
                self._check()
            case Start():
                self._since = self._tick = now
                self._greet()
                self._begin_if_met()
            case Leave(idle):
                self._leaving = True
                if idle or self.stage != TRAINING:
                    self._leave()
            case Finished():
                self._bye()
        return self._out

    # --- messages

    def _received(self, envelope: Envelope, usable: bool) -> None:
        node, message = envelope.node, envelope.message
        if node >= self.facts.nodes or node == self.facts.node:
            self._out.append(Drop("stranger", f"node {node}: there are nodes 0 to {self.facts.nodes - 1}"))
            return
        if isinstance(message, Hello):
            self._on_hello(envelope, message)
            return
        other = self.neighbors.get(node, Neighbor(node))
        if envelope.life != other.life or envelope.to != self.life:
            reason = "stranger" if envelope.to == self.life else "stale"
            reason = reason if usable else "nonfinite"
            self._out.append(Drop(reason, f"{type(message).__name__} of an unknown or earlier life of node {node}"))
            return
        other.heard, other.pinged = self._now, None
        other.sees_me = True  # it knows this life, whatever became of its hello
        if other.suspect:
            other.suspect = False
            self._note("recovered", other.node)
        try:
            self._dispatch(other, envelope, usable)
        except RemoteError as error:
            self._out.append(Drop(error.reason, f"node {other.node}: {error.detail}"))
        self._check()

    def _dispatch(self, other: Neighbor, envelope: Envelope, usable: bool) -> None:
        message = envelope.message
        match message:
            case Bye(round):
                other.round = max(other.round, round)
                self._over(other)
                other.left, other.finished = True, round >= self.facts.rounds
                if not other.finished:  # at the end everybody goes
                    self._note("left", other.node)
            case Want(round):
                other.wants = round
                self._serve(other)
            case Model(round):
                if self.stage == JOINING and usable:
                    self._given(other, round, envelope.payload)
            case Offer():
                other.ready = True
                other.round = max(other.round, message.round)
                if not usable:
                    self._out.append(Drop("nonfinite", f"node {other.node}: payload with NaN or infinity"))
                if usable and not self._foreign(message.epoch):
                    side = Side(envelope.payload, message.round, message.epoch)
                    self._apply(other, exchange.receive(other.edge, message, side))
                else:
                    self._apply(other, exchange.refuse(other.edge, message))
            case Push(round, epoch):
                self._on_push(other, Side(envelope.payload, round, epoch), usable)
            case Ping() | Pong():
                other.round = max(other.round, message.round)
                self._apply(other, exchange.receive(other.edge, message))
            case _:
                self._apply(other, exchange.receive(other.edge, message))

    def _foreign(self, epoch: int) -> bool:
        """What is offered in this epoch can't be booked: this node is in another, and is going into another."""
        return self.stage in (TRAINING, EXCHANGING) and epoch not in (self.epoch, self.ahead)

    def _on_push(self, other: Neighbor, side: Side, usable: bool) -> None:
        if not 1 <= side.round <= self.facts.rounds:
            raise RemoteError("unplanned", f"a push in round {side.round}, in which the schedule has none")
        if side.epoch == self.epoch and other.node not in self._plan.turn(side.round).hears:
            raise RemoteError("unplanned", f"a push in round {side.round}, in which the schedule has none")
        late = self._awaits(other) and side.round >= self.round
        other.ready = True
        other.round = max(other.round, side.round)
        if not usable:
            other.pushed = max(other.pushed, side.round)
            self._out.append(Drop("nonfinite", f"node {other.node}: payload with NaN or infinity"))
            return
        other.store(side)
        if late:
            self._lateness.booked(self._now - self._since)

    def _apply(self, other: Neighbor, step: Step) -> None:
        """Keep the new end, say what is to be said, count what has ended."""
        for message in step.say:
            if isinstance(message, Offer):
                side = step.edge.mine
                self._send(other, message, side.payload if side else None)
            else:
                self._send(other, message._replace(round=self.round) if isinstance(message, Pong) else message)
        other.edge = step.edge
        for ended in step.ended:
            self._ended(other, ended)

    def _ended(self, other: Neighbor, ended: Ended) -> None:
        if ended.outcome != BOOKED:
            self.voided += 1
            return
        assert ended.mine is not None and ended.theirs is not None
        self.booked += 1
        self._lateness.booked(self._now - other.opened)
        self._bookings.add(Booking(other.node, other.life, ended.number, ended.mine, ended.theirs))

    def _over(self, other: Neighbor) -> None:
        for ended in exchange.broken(other.edge):
            self._ended(other, ended)
        other.edge = Edge()

    # --- rounds

    def _begin(self, round: int) -> None:
        self._train(round, 0, (), 0.0)

    def _train(self, round: int, finished: int, booked: tuple[Booking, ...], waited: float) -> None:
        """On to a round, and into another epoch if there is one: who is there now gets a share of what will be sent."""
        self._reborn()
        entered = self._enter() or not self._began
        self._began = True
        self.stage, self.round, self._since = TRAINING, round, self._now
        self._turn = turn = self._plan.turn(round)
        # a push that the experiment loses has its share all the same, as long as there is somebody to lose it
        granted = [other for other in self._named(turn.speaks + turn.lost) if other.usable]
        granted += [other for other in self._named(turn.lost) if other.finished]
        self._granted = {other.node: other.life for other in granted}
        speak, members = tuple(sorted(self._granted)), self.members if entered else None
        self._out.append(Advance(finished, booked, waited, round, speak, members, self.life))
        if entered:
            self._greet()

    def _named(self, nodes: Sequence[int]) -> list[Neighbor]:
        return [self.neighbors[node] for node in sorted(nodes)]

    def _trained(self, payload: Any, model: Any) -> None:
        self._lateness.trained(self._now - self._since)
        self._since = self._now
        if self._leaving:
            self._leave()
            return
        self.stage = EXCHANGING
        self._trained_in, self._model = self.round, model
        for other in self.neighbors.values():
            self._serve(other)
            mine = payload.get(other.node) if self.facts.per_edge else payload
            self._open(other, Side(mine, self.round, self.epoch))
            if other.node in self._turn.speaks and self._granted.get(other.node) == other.life and other.linked:
                self._send(other, Push(self.round, self.epoch), mine)
            if other.node in self._turn.hears and other.pushed >= self.round:
                self._lateness.booked(0.0)
        self._deadline = self._now + self._lateness.deadline(self.facts.timing, self.facts.payload_bytes)
        self._check()

    def _open(self, other: Neighbor, side: Side) -> None:
        """Open the turn's exchange with a neighbour; ask for a void of one that has become too old."""
        open_since = other.edge.mine.round if other.edge.mine else self.round
        if self.round - open_since >= self.facts.lateness:
            self._apply(other, exchange.ask(other.edge))
        # what is booked and not yet mixed is in flight as well: with two, late exchanges blow up
        if other.edge.phase != IDLE or self._bookings.holds(other.node):
            return
        # without a barrier, who is offered an exchange takes it, whatever its own schedule says
        taken = self.facts.sync == ASYNC and other.edge.theirs is not None and other.edge.theirs.epoch == self.epoch
        if (other.node in self._turn.exchange or taken) and other.usable:
            other.opened = self._now
            self._apply(other, exchange.open(other.edge, side))
        elif other.node in self._turn.void and (other.usable or other.finished):
            self.voided += 1

    def _serve(self, other: Neighbor) -> None:
        """Give the model to a neighbour that wants it, once the round it wants has been trained."""
        if other.wants is not None and self._trained_in and self._trained_in >= other.wants:
            other.wants = None
            self._send(other, Model(self._trained_in, ""), self._model)  # the digest is put in by whoever has the bytes

    def _awaits(self, other: Neighbor) -> bool:
        if self.stage not in (EXCHANGING, SETTLING, LEAVING) or not other.usable:
            return False
        if self.stage == SETTLING:
            return other.pending
        ending = self.stage == LEAVING or self.round >= self.facts.rounds  # no exchange stays open behind
        if self.facts.sync == ASYNC:
            return ending and other.pending
        if other.pending and (ending or other.node in self._turn.exchange):
            return ending or not self._gone_on(other)
        hears = self.stage == EXCHANGING and other.node in self._turn.hears
        return hears and max(other.pushed, other.round - 1) < self.round

    def _watched(self, other: Neighbor) -> bool:
        return self._awaits(other) or (self.facts.sync == ASYNC and other.pending)

    def _gone_on(self, other: Neighbor) -> bool:
        """The neighbour is in a later round, has left no offer, and makes none there: it has passed this round by."""
        return (
            other.round > self.round
            and other.edge.theirs is None
            and other.node not in self._plan.turn(min(other.round, self.facts.rounds)).exchange
        )

    def _check(self) -> None:
        """Go on if there is nothing to wait for."""
        if self.stage not in (EXCHANGING, SETTLING, LEAVING):
            return
        waiting = [other for other in self.neighbors.values() if self._awaits(other)]
        if self.stage in (SETTLING, LEAVING):
            if not waiting or self._now - self._settling >= self.facts.timing.drain:
                self._advance(last=self.stage == LEAVING)
        elif not waiting:
            self._advance()
        elif self._now >= self._deadline and (self.facts.sync != BARRIER or self._moving):
            for other in waiting:
                self._note("late", other.node)
            if self.round >= self.facts.rounds:
                self._leave()
            else:
                self._advance()

    def _settled(self) -> bool:
        """Another epoch begins: is nothing open any more? If something is, ask for a void of it, once."""
        if self.stage != SETTLING:
            pending = [other for other in self.neighbors.values() if other.pending]
            if pending:
                self.stage, self._settling = SETTLING, self._now
                for other in pending:
                    self._apply(other, exchange.ask(other.edge))
                return False
        for other in self.neighbors.values():
            self._apply(other, exchange.forsake(other.edge))
        return True

    def _advance(self, last: bool = False) -> None:
        last = last or self.round >= self.facts.rounds
        moves = not last and self._moving
        if moves and not self._settled():
            return
        finished, waited = self.round, self._now - self._since
        slots = None if last or moves else self._plan.slots
        booked = self._bookings.take(self.neighbors.values(), self.round, self.epoch, slots)
        self.booked += sum(each.mine is None for each in booked)
        if (self._turn.exchange or self._turn.hears) and not booked and self.stage != LEAVING:
            self._note("alone", self.facts.node, "mixed with nobody")
        if last:
            self.stage = CLOSING
            self._out.append(Advance(finished, booked, waited, None))
            return
        following = self._following(booked)
        skipped = following > self.round + 1
        if skipped:
            self._note("skipped", self.facts.node, f"from round {self.round} to {following}, where the neighbours are")
        self._train(following, finished, booked, waited)
        if skipped:
            for other in self.neighbors.values():
                if other.linked:  # who waits for this node in a round that it skips shall know at once
                    self._send(other, exchange.ping(other.edge)._replace(round=self.round))

    def _following(self, booked: Sequence[Booking]) -> int:
        """The round after this, or a later one that a neighbour is in who has gone on without this node.

        On a graph that stays, who has booked with all its neighbours, and all were ahead, takes their round over: else
        it would be behind to the end, and train its last round alone. (Not if only some were: then skipping goes round
        and round on a ring. Where partners change, who skips a round misses another.)
        """
        following = self.round + 1
        if self.facts.sync == ASYNC:
            return following
        rounds = {each.node: each.theirs.round for each in booked if each.mine is not None}
        if self._plan.steady and rounds and set(self._turn.exchange) <= set(rounds):
            following = max(following, min(rounds.values()) + 1)
        for other in self.neighbors.values():
            if other.round > following and self._passed_over(other):
                following = other.round
        return min(following, self.facts.rounds)

    def _passed_over(self, other: Neighbor) -> bool:
        """The neighbour has left a round behind in which it was to wait for this node, which has not been there.

        Without that, a neighbour may be ahead by what the schedule allows.
        """
        ahead = range(max(self.round + 1, other.since), min(other.round, self.facts.rounds + 1))
        return len(ahead) > _FAR or any(
            other.node in turn.exchange or other.node in turn.speaks for turn in map(self._plan.turn, ahead)
        )

    # --- leaving

    def _leave(self) -> None:
        """Let no exchange stay open: ask for a void of what is, wait a little for the answers, and go."""
        if self.stage in (LEAVING, CLOSING, DONE):
            return
        self.stage, self._settling = LEAVING, self._now
        for other in self.neighbors.values():
            if other.pending:
                self._apply(other, exchange.ask(other.edge))
        self._check()

    def _bye(self) -> None:
        self.stage = DONE
        for other in self.neighbors.values():
            self._over(other)
            if other.linked:
                self._send(other, Bye(self.round))
        self._out.append(Done())
