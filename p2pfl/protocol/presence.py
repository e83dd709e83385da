"""Who is there: how nodes meet, find each other silent, join and come back. The part of a `Peer` without rounds.

Who is a member is up to the membership (`Members`): its suspects are not waited for, its dead are in no epoch any more.
Beside that a node sees for itself who answers: a neighbour that leaves pings unanswered is suspect, nobody waits for a
suspect, and its first word makes it a neighbour again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from p2pfl.protocol import exchange
from p2pfl.protocol.events import Adopt, Advance, Drop, Effect, Members, Note, Reborn, Seen, Send
from p2pfl.protocol.messages import Envelope, Hello, Message, Want
from p2pfl.protocol.neighbor import BARRIER, EpochPlan, Facts, Neighbor, Turn, epoch_of

STARTING, JOINING, TRAINING, EXCHANGING, SETTLING = "starting", "joining", "training", "exchanging", "settling"
LEAVING, CLOSING, DONE = "leaving", "closing", "done"

_DONORS = 2
"""Neighbours whose models a joiner wants to see before it takes one."""


class Presence(ABC):
    """What a node knows of the members, and what it says to find out. Rounds are up to `Peer`."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.stage = STARTING
        self.life = facts.life
        self.round = facts.kept_round
        self.seen: dict[int, Seen] = {}
        self.members: tuple[int, ...] = ()  # of the epoch; none before the first
        self.epoch = 0
        self.ahead = 0  # the epoch of those who are there now
        self.neighbors: dict[int, Neighbor] = {}
        self._plan = EpochPlan(lambda round: Turn(), 0, ())
        self._models: dict[int, tuple[int, int, Any]] = {}  # what a joiner has been given: life, round, model
        self._accused = False
        self._past: tuple[tuple[int, int], ...] = ()  # lives that are over
        self._asked = 0.0  # when a model was last asked for
        self._out: list[Effect] = []
        self._now = self._since = self._tick = self._deadline = 0.0
        self._stretch = facts.payload_bytes / facts.timing.bandwidth
        self._look_ahead()

    @abstractmethod
    def _begin(self, round: int) -> None:
        """Train in a first round."""

    @abstractmethod
    def _check(self) -> None:
        """Go on if there is nothing to wait for."""

    @abstractmethod
    def _awaits(self, other: Neighbor) -> bool:
        """The node waits for a neighbour's part in its round, or for an answer at the end."""

    @abstractmethod
    def _watched(self, other: Neighbor) -> bool:
        """The node wants to know whether a neighbour is there."""

    @abstractmethod
    def _over(self, other: Neighbor) -> None:
        """A neighbour's life is over."""

    # --- words

    def _send(self, to: Neighbor, message: Message, payload: Any = None) -> None:
        self._out.append(Send(to.node, Envelope(self.facts.node, self.life, to.life, message, payload)))

    def _note(self, event: str, about: int, detail: str = "") -> None:
        self._out.append(Note(event, about, self.round, detail))

    def _hello(self, to: Neighbor) -> None:
        to.hello = self._now
        facts = self.facts
        # who joins is no use to the others before it has; but who starts with a state of its own has begun
        at = 0 if self.stage == JOINING else self.round
        self._send(to, Hello(to.life, facts.federation, facts.schema, at))

    def _ping(self, to: Neighbor) -> None:
        to.last_ping = self._now
        if to.pinged is None:
            to.pinged = self._now
        self._send(to, exchange.ping(to.edge)._replace(round=self.round))

    # --- members

    def _on_members(self, event: Members) -> None:
        """Who is there has changed. A new epoch begins with the next round, or at once before the first."""
        me, before = self.facts.node, self.seen
        self.seen = {seen.node: seen for seen in event.seen if seen.node != me}
        self._accused = self._accused or event.accused
        self._past = tuple(each for each in event.over if each[0] != me)
        self._look_ahead()
        if self.stage != STARTING:
            for node in sorted(before.keys() - self.seen.keys()):
                self._note("removed", node, "no member any more")
            for node in sorted(self.seen.keys() - before.keys()):
                self._note("added", node, "a member")
        for other in self.neighbors.values():
            seen = self.seen.get(other.node)
            if seen is None:  # a node that the membership has not heard of yet is no absent one
                other.away = other.away or other.node in before
            else:
                other.away = seen.life > other.life > 0
            other.doubted = seen is not None and seen.suspect and self.facts.sync != BARRIER
        if self.stage in (STARTING, JOINING):
            self._reborn()
            if self.stage == JOINING:
                self._enter()
            self._begin_if_met()
            self._greet()

    @property
    def _moving(self) -> bool:
        """Another epoch begins with the next round."""
        return self._accused or self.ahead != self.epoch

    def _look_ahead(self) -> None:
        others = ((seen.node, seen.life) for seen in self.seen.values())
        self.ahead = epoch_of([(self.facts.node, self.life), *others], self._past)

    def _reborn(self) -> bool:
        """If the others hold this node for dead: go on as a new life, with what it has."""
        if not self._accused:
            return False
        self._accused = False
        self.life += 1
        self._look_ahead()
        self._note("reborn", self.facts.node, "the others held it for dead")
        self._out.append(Reborn(self.life))
        for node, other in self.neighbors.items():
            self._over(other)
            self.neighbors[node] = Neighbor(node, other.life, ready=other.ready, round=other.round)
        return True

    def _enter(self) -> bool:
        """Into the epoch of those who are there now, if it is another; returns whether it is."""
        if self.ahead == self.epoch:
            return False
        self.epoch, self.members = self.ahead, tuple(sorted({self.facts.node, *self.seen}))
        self._plan = self.facts.plan(self.members)
        for other in self.neighbors.values():
            if other.away:
                self._over(other)
        for node in self._plan.neighbors:
            self.neighbors.setdefault(node, Neighbor(node))
        return True

    # --- meeting

    def _greet(self) -> None:
        every = self.facts.timing.hello_every
        if self.stage == STARTING and not self._gathered:  # with whom depends on who is there
            return
        for node in self._wanted():
            other = self.neighbors.setdefault(node, Neighbor(node))
            if not other.linked and not other.left and self._now - other.hello >= every:
                self._hello(other)

    def _wanted(self) -> list[int]:
        """Whom this node wants to be linked with: the neighbours, and while it joins others who could give a model."""
        wanted = set(self._plan.neighbors)
        if self.stage == JOINING and not self.facts.kept_round:
            wanted.update([node for node in sorted(self.seen) if self.seen[node].round > 0][:_DONORS])
        return sorted(wanted & self.seen.keys())

    @property
    def _missing(self) -> list[int]:
        """Members that a start waits for and that are not there."""
        return [node for node in self.facts.expected if node != self.facts.node and node not in self.seen]

    @property
    def _gathered(self) -> bool:
        """All are there, or have been waited for; where others have begun, not for long."""
        begun = any(seen.round > 0 for seen in self.seen.values())
        patience = self.facts.timing.silence if begun else self.facts.timing.start_timeout
        return not self._missing or self._now - self._since >= patience

    def _begin_if_met(self) -> None:
        """Start once all expected members are there and every neighbour has been met.

        A node that comes to others who have begun does not wait: it goes on as soon as it has met one of them.
        """
        if self.stage != STARTING:
            return
        if not self._gathered:
            return
        if self._enter():
            self._greet()
        others = [self.neighbors[node] for node in self._plan.neighbors]
        if any(other.linked and other.begun for other in others):
            self.stage, self._since = JOINING, self._now
            for other in self.neighbors.values():
                if other.linked and other.begun:
                    self._want(other)
            self._join_if_given()
            return
        waiting = [other.node for other in others if not other.linked and not other.left]
        # those who have lost patience with somebody at about the same time still meet each other
        if waiting and self._now - self._since < self.facts.timing.start_timeout + self.facts.timing.silence:
            return
        for node in sorted({*self._missing, *waiting}):
            self._note("absent", node, "not met at the start; it can join later")
        self._begin(max(1, self.facts.kept_round + 1))

    def _want(self, other: Neighbor) -> None:
        if not self.facts.kept_round:
            self._asked = self._now
            self._send(other, Want(max(self.facts.join_round - 1, 0)))

    def _on_hello(self, envelope: Envelope, hello: Hello) -> None:
        facts, node = self.facts, envelope.node
        for name, theirs, ours in (
            ("federation", hello.federation, facts.federation),
            ("schema", hello.schema, facts.schema),
        ):
            if theirs != ours:
                self._out.append(Drop(name, f"node {node} runs another {name}: {theirs}, here {ours}"))
                return
        other = self.neighbors.setdefault(node, Neighbor(node))
        if envelope.life < other.life:
            self._out.append(Drop("stale", f"node {node}: hello of an earlier life"))
            return
        new = envelope.life > other.life
        if new:
            if other.life:
                self._over(other)
                self._note("restarted", node)
            other = Neighbor(node, envelope.life, hello=other.hello)
            self.neighbors[node] = other
        if not other.linked:
            other.begun = hello.round > 0
        other.heard, other.pinged = self._now, None
        other.round = max(other.round, hello.round)
        other.since = other.since or hello.round
        other.ready = other.ready or hello.round > 0 or self.round == 0
        other.sees_me = hello.sees == self.life
        if new or not other.sees_me:
            self._hello(other)
        if self.stage == STARTING:
            self._begin_if_met()
        elif self.stage == JOINING and other.linked and other.begun:
            if new:
                self._want(other)
            self._join_if_given()

    # --- joining

    def _given(self, other: Neighbor, round: int, model: Any) -> None:
        self._models[other.node] = (other.life, round, model)
        self._join_if_given()

    def _join_if_given(self) -> None:
        """Begin once a second neighbour has given its model, or none can; with a model of its own, at once."""
        if self.stage != JOINING:
            return
        donors = [other for other in self.neighbors.values() if other.linked and other.begun]
        silent = self._now - self._since >= self.facts.timing.silence + self._stretch
        if self.facts.kept_round:
            latest = max((other.round for other in donors), default=-1)
            met = silent or all(self.neighbors[n].linked for n in self._plan.neighbors if n in self.seen)
            if donors and met and latest >= self.facts.join_round - 1:
                self._join(latest, "with its own model")
            return
        wanted = [self.neighbors.get(node, Neighbor(node)) for node in self._wanted()]
        able = [other for other in wanted if (other.usable and other.begun) or not other.linked]
        if not self._models or (len(self._models) < min(_DONORS, len(able)) and not silent):
            return
        node = min(self._models, key=lambda each: (-self._models[each][1], each))  # who is furthest
        life, round, model = self._models[node]
        self._out.append(Adopt(node, life, round, model))
        self._join(round, f"with the model of node {node}, of {len(self._models)} that were given")

    def _join(self, round: int, how: str) -> None:
        """Take part from after this round on."""
        self.round = round = max(round, self.facts.kept_round)
        self._models = {}
        self._out.append(Note("joined", self.facts.node, round + 1, how))
        if round >= self.facts.rounds:
            self._close()
            return
        self._begin(round + 1)
        for each in self.neighbors.values():
            if each.linked:
                self._hello(each)

    def _join_alone_if_lost(self) -> None:
        """Every neighbour that could give a model is gone."""
        if any(other.linked and not other.suspect for other in self.neighbors.values()):
            return
        met = [other for other in self.neighbors.values() if other.life]
        if met and all(other.left for other in met):
            self._note("alone", self.facts.node, "the neighbours finished before this node could join")
            self._close()
        elif self._now - self._since >= self.facts.timing.start_timeout:
            self._note("alone", self.facts.node, "no neighbour gives a model; going on with its own")
            self._begin(max(1, self.facts.join_round, self.facts.kept_round + 1))

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
            for other in self.neighbors.values():
                other.heard, other.pinged = self._now, None
            self._note("paused", self.facts.node, f"for {gap:.2f} s")
        self._greet()
        if self.stage == STARTING:
            self._begin_if_met()
            return
        for other in self.neighbors.values():
            self._watch(other, self._watched(other) or (self.stage == JOINING and other.linked))
        if self.stage == JOINING:
            self._join_if_given()
        if self.stage == JOINING:
            self._join_alone_if_lost()
        if self.stage == JOINING and self._now - self._asked >= timing.retry_every + self._stretch:
            for other in self.neighbors.values():  # a wish, or a model, can be lost
                if other.linked and other.begun and other.node not in self._models:
                    self._want(other)
        self._check()

    def _may_be_gone(self, other: Neighbor) -> bool:
        """A barrier does not hold for it: the membership has it over, or finished, and its Bye was lost."""
        seen = self.seen.get(other.node)
        return seen is None or seen.life != other.life or seen.round >= self.facts.rounds

    def _watch(self, other: Neighbor, awaited: bool) -> None:
        """Ping a neighbour that keeps this node waiting, suspect it when it does not answer, try it again later."""
        timing = self.facts.timing
        if other.suspect:
            if other.linked and self._now - other.last_ping >= timing.retry_every:
                self._ping(other)
        elif awaited and other.pinged is None:
            if self._now - max(other.heard, self._since) >= timing.ping_every:
                self._ping(other)
        elif awaited and other.pinged is not None:
            waits = self.facts.sync == BARRIER and not self._may_be_gone(other)
            if self._now - other.pinged >= timing.silence + self._stretch and not waits:
                other.suspect = True
                self._note("detected", other.node, "answers no ping; nobody waits for it")
            elif self._now - other.last_ping >= timing.ping_every:
                self._ping(other)
