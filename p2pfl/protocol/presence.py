"""Who is there: how nodes meet, find each other silent, and come back. The part of a `Peer` that is not about rounds.

Liveness is simple: a neighbour that leaves pings unanswered is suspect, nobody waits for a suspect, and its first word
makes it a neighbour again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from p2pfl.protocol import exchange
from p2pfl.protocol.events import Adopt, Advance, Drop, Effect, Note, Send
from p2pfl.protocol.messages import Envelope, Hello, Message, Want
from p2pfl.protocol.neighbour import Facts, Neighbour

STARTING, JOINING, TRAINING, EXCHANGING = "starting", "joining", "training", "exchanging"
LEAVING, CLOSING, DONE = "leaving", "closing", "done"


class Presence(ABC):
    """What a node knows of its neighbours, and what it says to find out. Rounds are up to `Peer`."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.stage = STARTING
        self.round = 0
        self.neighbours = {node: Neighbour(node) for node in sorted(facts.neighbors)}
        self._out: list[Effect] = []
        self._now = self._since = self._tick = self._deadline = 0.0
        self._stretch = facts.payload_bytes / facts.timing.bandwidth

    @abstractmethod
    def _begin(self, round: int) -> None:
        """Train in a first round."""

    @abstractmethod
    def _check(self) -> None:
        """Go on if there is nothing to wait for."""

    @abstractmethod
    def _awaits(self, other: Neighbour) -> bool:
        """The node waits for a neighbour's part in its round, or for an answer at the end."""

    @abstractmethod
    def _over(self, other: Neighbour) -> None:
        """A neighbour's life is over."""

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
            met_at_work = self.stage not in (STARTING, JOINING)
            other = Neighbour(other.node, envelope.life, hello=other.hello, fresh=met_at_work)
            self.neighbours[other.node] = other
        if not other.linked:
            other.begun = hello.round > 0
        other.heard, other.pinged = self._now, None
        other.round = max(other.round, hello.round)
        other.since = other.since or hello.round
        other.ready = other.ready or hello.round > 0 or self.round == 0
        other.sees_me = hello.sees == facts.life
        if new or not other.sees_me:
            self._hello(other)
        if self.stage == STARTING:
            self._begin_if_met()
        elif self.stage == JOINING and new and other.begun:
            self._want(other)

    # --- joining

    def _adopt(self, other: Neighbour, round: int, payload: Any) -> None:
        self._out.append(Adopt(other.node, other.life, round, payload))
        self.round = round
        self._out.append(Note("joined", self.facts.node, round + 1, f"with the model of node {other.node}"))
        if round >= self.facts.rounds:
            self._close()
            return
        self._begin(round + 1)
        for each in self.neighbours.values():
            if each.linked:
                self._hello(each)

    def _join_alone_if_lost(self) -> None:
        """Every neighbour that could give a model is gone."""
        if any(other.linked and not other.suspect for other in self.neighbours.values()):
            return
        if all(other.left for other in self.neighbours.values() if other.life):
            self._note("alone", self.facts.node, "the neighbours finished before this node could join")
            self._close()
        elif self._now - self._since >= self.facts.timing.start_timeout:
            self._note("alone", self.facts.node, "no neighbour gives a model; going on with a fresh one")
            self._begin(max(1, self.facts.join_round))

    def _close(self) -> None:
        """Nothing is left to be trained."""
        self.stage = CLOSING
        self._out.append(Advance(self.round, (), 0.0, None))

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
        for other in self.neighbours.values():
            self._watch(other, self._awaits(other) or (self.stage == JOINING and other.linked))
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
