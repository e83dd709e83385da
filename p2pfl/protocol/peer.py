"""One node's side of the protocol: rounds, exchanges, and who is there. No socket, no clock, no arrays.

A round: the driver trains, `Trained` opens an exchange with every neighbour at hand, the node waits for them until an
adaptive deadline, `Advance` mixes what was booked and trains the next round. Liveness is simple: a neighbour that
leaves pings unanswered is suspect, nobody waits for a suspect, and its first word makes it a neighbour again.
"""

from __future__ import annotations

from typing import Any

from p2pfl.errors import RemoteError
from p2pfl.protocol import exchange
from p2pfl.protocol.events import (
    Adopt,
    Advance,
    Booking,
    Done,
    Drop,
    Effect,
    Event,
    Finished,
    Leave,
    Note,
    Received,
    Refused,
    Send,
    Start,
    Tick,
    Trained,
)
from p2pfl.protocol.exchange import IDLE, Edge, Ended, Side, Step
from p2pfl.protocol.messages import BOOKED, Bye, Envelope, Hello, Message, Model, Offer, Ping, Pong, Want
from p2pfl.protocol.neighbour import Facts, Neighbour
from p2pfl.protocol.timing import Lateness

STARTING, JOINING, TRAINING, EXCHANGING = "starting", "joining", "training", "exchanging"
LEAVING, CLOSING, DONE = "leaving", "closing", "done"


class Peer:
    """See the module. `handle(event, now)` returns the effects, in the order in which they are to be carried out."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.stage = STARTING
        self.round = 0
        self.neighbours = {node: Neighbour(node) for node in sorted(facts.neighbors)}
        self.booked = self.voided = 0  # exchanges that ended so at this end
        self._bookings: list[Booking] = []
        self._side: Side | None = None
        self._lateness = Lateness()
        self._out: list[Effect] = []
        self._now = self._since = self._tick = self._deadline = 0.0
        self._leaving = False
        self._stretch = facts.payload_bytes / facts.timing.bandwidth

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
            case Trained(payload):
                self._trained(payload)
            case Tick():
                self._ticked()
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

    # --- words

    def _send(self, to: Neighbour, message: Message, payload: Any = None) -> None:
        self._out.append(Send(to.node, Envelope(self.facts.node, self.facts.life, to.life, message, payload)))

    def _note(self, event: str, about: int, detail: str = "") -> None:
        self._out.append(Note(event, about, self.round, detail))

    def _hello(self, to: Neighbour) -> None:
        to.hello = self._now
        facts = self.facts
        self._send(to, Hello(to.life, facts.federation, facts.schema, self.round))

    def _ping(self, to: Neighbour) -> None:
        to.last_ping = self._now
        if to.pinged is None:
            to.pinged = self._now
        self._send(to, exchange.ping(to.edge)._replace(round=self.round))

    # --- meeting

    def _greet(self) -> None:
        every = self.facts.timing.hello_every
        for other in self.neighbours.values():
            if not other.linked and not other.left and self._now - other.hello >= every:
                self._hello(other)

    def _begin_if_met(self) -> None:
        """Start once every neighbour has been met; a returning node goes on as soon as it has met one that trains."""
        others = self.neighbours.values()
        begun = [other for other in others if other.linked and other.begun]
        if begun:
            self.stage = JOINING
            for other in begun:
                self._want(other)
            return
        waiting = [other.node for other in others if not other.linked and not other.left]
        if waiting and self._now - self._since < self.facts.timing.start_timeout:
            return
        for node in waiting:
            self._note("absent", node, "not met at the start; it can join later")
        self._begin(1)

    def _want(self, other: Neighbour) -> None:
        self._send(other, Want(max(self.facts.join_round - 1, 0)))

    def _begin(self, round: int) -> None:
        self.stage = TRAINING
        self._since = self._now
        self.round = round
        self._out.append(Advance(0, (), 0.0, round))

    def _on_hello(self, other: Neighbour, envelope: Envelope, hello: Hello) -> None:
        facts = self.facts
        for name, theirs, ours in (
            ("federation", hello.federation, facts.federation),
            ("schema", hello.schema, facts.schema),
        ):
            if theirs != ours:
                self._out.append(Drop(name, f"node {other.node} runs another {name}: {theirs}, here {ours}"))
                return
        if envelope.life < other.life:
            self._out.append(Drop("stale", f"node {other.node}: hello of an earlier life"))
            return
        new = envelope.life > other.life
        if new:
            if other.life:
                self._over(other)
                self._note("restarted", other.node)
            was = other.hello
            self.neighbours[other.node] = other = Neighbour(other.node, envelope.life, hello=was)
        if not other.linked:
            other.begun = hello.round > 0
        other.heard, other.pinged = self._now, None
        other.round = max(other.round, hello.round)
        other.ready = other.ready or hello.round > 0 or self.round == 0
        other.sees_me = hello.sees == facts.life
        if new or not other.sees_me:
            self._hello(other)
        if self.stage == STARTING:
            self._begin_if_met()
        elif self.stage == JOINING and new and other.begun:
            self._want(other)

    # --- messages

    def _received(self, envelope: Envelope, usable: bool) -> None:
        other = self.neighbours.get(envelope.node)
        if other is None:
            self._out.append(Drop("stranger", f"node {envelope.node} is no neighbour of node {self.facts.node}"))
            return
        message = envelope.message
        if isinstance(message, Hello):
            self._on_hello(other, envelope, message)
            return
        if envelope.life != other.life or envelope.to != self.facts.life:
            reason = "stranger" if envelope.to == self.facts.life else "stale"
            reason = reason if usable else "nonfinite"
            self._out.append(
                Drop(reason, f"{type(message).__name__} of an unknown or earlier life of node {other.node}")
            )
            return
        other.heard, other.pinged = self._now, None
        if other.suspect:
            other.suspect = False
            self._note("recovered", other.node)
        try:
            self._dispatch(other, envelope, usable)
        except RemoteError as error:
            self._out.append(Drop(error.reason, f"node {other.node}: {error.detail}"))
        self._check()

    def _dispatch(self, other: Neighbour, envelope: Envelope, usable: bool) -> None:
        message = envelope.message
        match message:
            case Bye(round):
                other.round = max(other.round, round)
                self._over(other)
                other.left = True
                if round < self.facts.rounds:  # at the end everybody goes
                    self._note("left", other.node)
            case Want(round):
                other.wants = round
                self._serve(other)
            case Model(round):
                if self.stage == JOINING and usable:
                    self._adopt(other, round, envelope.payload)
            case Offer():
                other.ready = True
                other.round = max(other.round, message.round)
                if usable:
                    side = Side(envelope.payload, message.round, message.degree)
                    self._apply(other, exchange.receive(other.edge, message, side))
                else:
                    self._out.append(Drop("nonfinite", f"node {other.node}: payload with NaN or infinity"))
                    self._apply(other, exchange.refuse(other.edge, message))
            case Ping() | Pong():
                other.round = max(other.round, message.round)
                self._apply(other, exchange.receive(other.edge, message))
            case _:
                self._apply(other, exchange.receive(other.edge, message))

    def _apply(self, other: Neighbour, step: Step) -> None:
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

    def _ended(self, other: Neighbour, ended: Ended) -> None:
        if ended.outcome != BOOKED:
            self.voided += 1
            return
        assert ended.mine is not None and ended.theirs is not None
        self.booked += 1
        self._lateness.booked(self._now - other.opened)
        age = self.round - ended.mine.round
        self._bookings.append(Booking(other.node, other.life, ended.number, ended.mine, ended.theirs, age))

    def _over(self, other: Neighbour) -> None:
        for ended in exchange.broken(other.edge):
            self._ended(other, ended)
        other.edge = Edge()

    # --- rounds

    def _trained(self, payload: Any) -> None:
        self._lateness.trained(self._now - self._since)
        self._since = self._now
        if self._leaving:
            self._leave()
            return
        self.stage = EXCHANGING
        others = self.neighbours.values()
        # the degree of the planned graph: both ends derive the same weight from the two
        self._side = Side(payload, self.round, len(self.neighbours))
        for other in others:
            self._serve(other)
            open_since = other.edge.mine.round if other.edge.mine else self.round
            if self.round - open_since >= self.facts.lateness:
                self._apply(other, exchange.ask(other.edge))
            if other.usable and other.edge.phase == IDLE:
                other.opened = self._now
                self._apply(other, exchange.open(other.edge, self._side))
        self._deadline = self._now + self._lateness.deadline(self.facts.timing, self.facts.payload_bytes)
        self._check()

    def _serve(self, other: Neighbour) -> None:
        """Give the model to a neighbour that wants it, once the round it wants has been trained."""
        if other.wants is not None and self._side is not None and self._side.round >= other.wants:
            other.wants = None
            self._send(other, Model(self._side.round), self._side.payload)

    def _awaited(self) -> list[Neighbour]:
        return [other for other in self.neighbours.values() if other.awaited]

    def _check(self) -> None:
        """Go on if there is nothing to wait for."""
        if self.stage == EXCHANGING:
            waiting = self._awaited()
            if not waiting:
                self._advance()
            elif self._now >= self._deadline:
                for other in waiting:
                    self._note("late", other.node)
                if self.round >= self.facts.rounds:
                    self._leave()
                else:
                    self._advance()
        elif self.stage == LEAVING and (not self._awaited() or self._now - self._since >= self.facts.timing.drain):
            self._advance(last=True)

    def _advance(self, last: bool = False) -> None:
        finished, waited = self.round, self._now - self._since
        booked, self._bookings = tuple(sorted(self._bookings)), []
        if self.neighbours and not booked and not last:
            self._note("alone", self.facts.node, "mixed with nobody")
        heard = max((other.round for other in self.neighbours.values()), default=0)
        following = min(max(self.round + 1, heard), self.facts.rounds)
        if last or self.round >= self.facts.rounds:
            self.stage = CLOSING
            self._out.append(Advance(finished, booked, waited, None))
            return
        if following > self.round + 1:
            self._note("skipped", self.facts.node, f"from round {self.round} to {following}, where the neighbours are")
        self.stage, self.round, self._since = TRAINING, following, self._now
        self._out.append(Advance(finished, booked, waited, following))

    def _adopt(self, other: Neighbour, round: int, payload: Any) -> None:
        self._out.append(Adopt(other.node, round, payload))
        self.round = round
        self._out.append(Note("joined", self.facts.node, round + 1, f"with the model of node {other.node}"))
        if round >= self.facts.rounds:
            self.stage = CLOSING
            self._out.append(Advance(round, (), 0.0, None))
            return
        self._begin(round + 1)
        for each in self.neighbours.values():
            if each.linked:
                self._hello(each)

    # --- time

    def _ticked(self) -> None:
        timing = self.facts.timing
        gap, self._tick = self._now - self._tick, self._now
        if gap > timing.silence / 2:  # this node itself stood still: the others' silence means nothing
            self._since += gap
            self._deadline += gap
            for other in self.neighbours.values():
                other.heard, other.pinged = self._now, None
            self._note("paused", self.facts.node, f"for {gap:.2f} s")
        self._greet()
        if self.stage == STARTING:
            self._begin_if_met()
            return
        waiting = self.stage in (EXCHANGING, LEAVING)
        for other in self.neighbours.values():
            self._watch(other, (waiting and other.awaited) or (self.stage == JOINING and other.linked))
        if self.stage == JOINING:
            self._join_alone_if_lost()
        self._check()

    def _watch(self, other: Neighbour, awaited: bool) -> None:
        """Ping a neighbour that keeps this node waiting, suspect it when it does not answer, try it again later."""
        timing = self.facts.timing
        if other.suspect:
            if other.linked and self._now - other.last_ping >= timing.retry_every:
                self._ping(other)
        elif awaited and other.pinged is None:
            if self._now - max(other.heard, self._since) >= timing.ping_every:
                self._ping(other)
        elif awaited and other.pinged is not None:
            if self._now - other.pinged >= timing.silence + self._stretch:
                other.suspect = True
                self._note("detected", other.node, "answers no ping; nobody waits for it")
            elif self._now - other.last_ping >= timing.ping_every:
                self._ping(other)

    def _join_alone_if_lost(self) -> None:
        """Every neighbour that could give a model is gone."""
        if any(other.linked and not other.suspect for other in self.neighbours.values()):
            return
        if all(other.left for other in self.neighbours.values() if other.life):
            self._note("alone", self.facts.node, "the neighbours finished before this node could join")
            self.stage = CLOSING
            self._out.append(Advance(self.round, (), 0.0, None))
        elif self._now - self._since >= self.facts.timing.start_timeout:
            self._note("alone", self.facts.node, "no neighbour gives a model; going on with a fresh one")
            self._begin(max(1, self.facts.join_round))

    # --- leaving

    def _leave(self) -> None:
        """Let no exchange stay open: ask for a void of what is, wait a little for the answers, and go."""
        if self.stage in (LEAVING, CLOSING, DONE):
            return
        self.stage, self._since = LEAVING, self._now
        for other in self._awaited():
            self._apply(other, exchange.ask(other.edge))
        self._check()

    def _bye(self) -> None:
        self.stage = DONE
        for other in self.neighbours.values():
            self._over(other)
            if other.linked:
                self._send(other, Bye(self.round))
        self._out.append(Done())
