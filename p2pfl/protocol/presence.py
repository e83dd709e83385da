"""Presence: the members and their epoch, greetings, and pings to whoever keeps this node waiting.

Who is a member is up to the membership (`Members`): its suspects are not waited for, its dead are in no epoch any more.
Beside that a node sees for itself who answers: a neighbour that leaves pings unanswered is suspect, nobody waits for a
suspect, and its first word makes it a neighbour again.
"""

from __future__ import annotations

from typing import NamedTuple

from p2pfl.errors import RemoteError
from p2pfl.protocol.agreement import Agreement
from p2pfl.protocol.budget import Budget
from p2pfl.protocol.edges import Edges
from p2pfl.protocol.events import Drop, Members, Reborn, Seen
from p2pfl.protocol.messages import Envelope, Hello, Ping, Pong
from p2pfl.protocol.neighbor import BARRIER, KEPT, Neighbor, epoch_of
from p2pfl.protocol.state import JOINING, STARTING, PeerState
from p2pfl.protocol.timing import PASSES, SLOWEST

DONORS = 2
"""Members that a joiner asks for their models, and whose models it wants to see before it takes one."""


_LIVES = 1.0, 10.0
"""Lives of one neighbour that are met, after its first: a second for long, and at once. Each is a line in the log."""

UNASKED = "unasked"
"""Why an answer is dropped to what this node has not asked: somebody else has asked in its name."""

_PINGS = 50.0, 200.0
"""Pings of one neighbour that are answered: a second for long, and at once. It sends ten a second while it waits, and
one for each round that it skips."""


class Met(NamedTuple):
    """A neighbour that has said hello; `new`: as a life that this node had not met."""

    other: Neighbor
    new: bool


class Presence:
    """Know who is there. It changes no stage and begins no round: that is up to `Peer`."""

    def __init__(self, state: PeerState, edges: Edges, agreement: Agreement) -> None:
        self._state, self._edges, self._agreement = state, edges, agreement
        self._accused = 0  # the greatest life that the others hold for dead
        self._past: tuple[tuple[int, int], ...] = ()  # lives that are over
        self._early: dict[tuple[int, int], bool] = {}  # lives that have left after their last round: much too early?
        self._lives: dict[int, Budget] = {}  # that a node may still begin
        self._pings: dict[int, Budget] = {}  # of a node that are answered
        self._tick = 0.0  # when the time was last looked at
        self._stretch = state.facts.payload_bytes / state.facts.timing.bandwidth
        self._look_ahead()

    # --- members

    def change(self, event: Members) -> None:
        """Take in who is there now. What comes of it is up to the stage."""
        state, before = self._state, self._state.seen
        nodes = {*range(state.nodes)} - {state.facts.node}
        others = [seen for seen in event.seen if seen.node in nodes]
        early = [seen for seen in others if seen.gone and self._too_early(seen)]
        state.seen = {seen.node: seen for seen in others if seen not in early}
        state.left = frozenset((*event.left, *(seen.node for seen in early)))
        state.over = {node: round for node, round in event.ended if node in nodes}
        self._accused = max(self._accused, event.accused)
        over = (*event.over, *((seen.node, seen.life) for seen in early))
        self._past = tuple(each for each in over if each[0] in nodes)
        self._look_ahead()
        if state.stage != STARTING:
            for node in sorted(before.keys() - state.seen.keys()):
                state.note("removed", node, "no member any more")
            for node in sorted(state.seen.keys() - before.keys()):
                state.note("added", node, "a member")
        for other in state.neighbors.values():
            seen = state.seen.get(other.node)
            if seen is None:  # a node that the membership has not heard of yet is no absent one
                other.away = other.away or other.node in before
            else:
                other.away = seen.life > other.life > 0
            other.doubted = seen is not None and seen.suspect and state.facts.sync != BARRIER

    def admit(self, nodes: int) -> None:
        """There can be so many nodes now."""
        state = self._state
        if nodes > state.nodes:
            state.nodes = nodes
            state.note("admitted", nodes - 1, f"there can be nodes 0 to {nodes - 1} now")

    def _too_early(self, gone: Seen) -> bool:
        """A node has left after the last round, which this one is not near: it has run ahead, and is not there.

        Decided once for each life: what is over is over.
        """
        state, life = self._state, (gone.node, gone.life)
        if life not in self._early:
            if state.stage in (STARTING, JOINING):
                return False
            self._early[life] = state.round < state.facts.rounds - max(KEPT, state.nodes)
        return self._early[life]

    @property
    def moving(self) -> bool:
        """Another epoch begins with the next round."""
        return self._dead or self._state.ahead != self._state.epoch

    @property
    def _dead(self) -> bool:
        """The others hold this life for dead, or know of a greater one. What they say of an earlier life is no news."""
        return self._accused >= self._state.life

    def _look_ahead(self) -> None:
        state = self._state
        others = ((seen.node, seen.life) for seen in state.seen.values())
        state.ahead = epoch_of([(state.facts.node, state.life), *others], self._past)

    def renew(self, returns: bool = False) -> bool:
        """Go on as a new life, with what it has: if the others hold this node for dead, or it `returns` to them.

        Returns whether it does.
        """
        state = self._state
        if not (self._dead or returns):
            return False
        why = "the others held it for dead" if self._dead else "it returns to where the others are"
        state.life = max(state.life, self._accused) + 1
        self._look_ahead()
        state.note("reborn", state.facts.node, why)
        state.out.append(Reborn(state.life))
        for node, other in state.neighbors.items():
            self._edges.end_life(other)
            state.neighbors[node] = Neighbor(node, other.life, ready=other.ready, round=other.round)
        return True

    def enter(self) -> bool:
        """Go into the epoch of those who are there now, if it is another; returns whether it is."""
        state = self._state
        if state.ahead == state.epoch:
            return False
        state.epoch, state.members = state.ahead, tuple(sorted({state.facts.node, *state.seen}))
        state.plan = state.facts.plan(state.members)
        for other in state.neighbors.values():
            if other.away:
                self._edges.end_life(other)
            other.keep_planned(state.epoch, state.plan)
        for node in state.plan.neighbors:
            state.neighbors.setdefault(node, Neighbor(node))
        return True

    # --- greetings

    @property
    def missing(self) -> list[int]:
        """Members that a start waits for and that are not there."""
        state = self._state
        return [node for node in state.facts.expected if node != state.facts.node and node not in state.seen]

    @property
    def gathered(self) -> bool:
        """All are there, or have been waited for; where others have begun, not for long."""
        state = self._state
        begun = any(seen.round > 0 for seen in state.seen.values())
        patience = state.facts.timing.silence if begun else state.facts.timing.start_timeout
        return not self.missing or state.now - state.since >= patience

    def wanted(self) -> list[int]:
        """Return whom this node wants a link with: the neighbours, and while it joins others who could give a model."""
        state = self._state
        wanted = set(state.plan.neighbors)
        if state.stage == JOINING and not state.facts.kept_round:
            wanted.update(self.donors())
        return sorted(wanted & state.seen.keys())

    def donors(self) -> list[int]:
        """Return whom this node asks for a model while it joins: others than those who join at the same time ask."""
        state = self._state
        known = {node: state.neighbors.get(node) or Neighbor(node) for node in sorted(state.seen)}
        begun = [node for node, other in known.items() if state.seen[node].round > 0 or (other.linked and other.begun)]
        turn = DONORS * sum(node < state.facts.node for node in known.keys() - {*begun}) % max(len(begun), 1)
        others = (known[node] for node in begun[turn:] + begun[:turn])
        return [other.node for other in others if not (other.suspect or other.doubted or other.left)][:DONORS]

    def greet(self) -> None:
        """Say hello to whom this node wants to be linked with and is not, every now and then."""
        state = self._state
        self._agreement.remind()
        if state.stage == STARTING and not self.gathered:  # with whom depends on who is there
            return
        for node in self.wanted():
            other = state.neighbors.setdefault(node, Neighbor(node))
            due = state.now - other.hello >= state.facts.timing.hello_every
            if not other.linked and not other.left and due and not self._agreement.differs(node):
                self.hello(other)

    def hello(self, to: Neighbor) -> None:
        """Say who this node is and where it is."""
        state = self._state
        to.hello = state.now
        # who joins is no use to the others before it has; but who starts with a state of its own has begun
        joins = state.stage == JOINING or (state.stage == STARTING and state.facts.join_round > 0)
        at = 0 if joins else state.round
        state.send(to, Hello(to.life, state.facts.federation, state.facts.schema, at))

    def on_hello(self, envelope: Envelope, hello: Hello) -> Met | None:
        """Meet who says hello, and answer; None for who runs something else or is of an earlier life."""
        state, facts, node = self._state, self._state.facts, envelope.node
        if hello.federation != facts.federation:
            text = f"node {node} runs another federation: {hello.federation}, here {facts.federation}"
            state.out.append(Drop("federation", text))
            return None
        if hello.schema != facts.schema:
            self._agreement.meet(node, envelope.life)
            return None
        self._agreement.agrees(node, envelope.life)
        other = state.neighbors.setdefault(node, Neighbor(node))
        if envelope.life < other.life:
            state.out.append(Drop("stale", f"node {node}: hello of an earlier life"))
            return None
        new = envelope.life > other.life
        if new and other.life and not self._lives.setdefault(node, Budget(*_LIVES, state.now)).take(state.now):
            state.out.append(Drop("lives", f"node {node} says hello as one more life, and has had too many lately"))
            return None
        if new:
            if other.life:
                self._edges.end_life(other)
                state.note("restarted", node)
            other = Neighbor(node, envelope.life, hello=other.hello)
            state.neighbors[node] = other
        if not other.linked:
            other.begun = hello.round > 0
        other.heard, other.pinged = state.now, None
        other.round = max(other.round, hello.round)
        other.since = other.since or hello.round
        together = state.round == 0 or (state.facts.together and state.stage == STARTING)
        other.ready = other.ready or hello.round > 0 or together
        other.sees_me = hello.sees == state.life
        if new or not other.sees_me:
            self.hello(other)
        return Met(other, new)

    # --- who answers

    def hear(self, other: Neighbor) -> None:
        """A word of the neighbour's present life to this node's: it is there."""
        other.heard, other.pinged = self._state.now, None
        other.sees_me = True  # it knows this life, whatever became of its hello
        if other.suspect:
            other.suspect = False
            self._state.note("recovered", other.node)

    def asked(self, other: Neighbor, message: Ping | Pong) -> None:
        """See whether a neighbour may ask, or answer, once more: each is answered, by an offer with a payload even.

        Raises RemoteError.
        """
        if isinstance(message, Pong):
            if not other.asks:
                raise RemoteError(UNASKED, "a pong, and it was not pinged")
            other.asks -= 1
        elif not self._pings.setdefault(other.node, Budget(*_PINGS, self._state.now)).take(self._state.now):
            raise RemoteError("flood", "pings more often than a neighbour that waits")

    def progress(self, other: Neighbor, nbytes: int) -> None:
        """A large message has got on between a neighbour and this node: it is there, and a round waits for it.

        For as long as so many bytes take on the slowest link that is waited for, and no longer ahead than twice
        `silence`, in which a break is noticed and the rest asked for; the bytes of a round count up to two payloads. So
        who sends a byte a second is as late as who sends nothing.
        """
        state, timing = self._state, self._state.facts.timing
        self.hear(other)
        counted = max(0, min(nbytes, int(PASSES * state.facts.payload_bytes) - other.counted))
        other.counted += counted
        earned = max(other.excused, state.now) + counted * SLOWEST / timing.bandwidth
        other.excused = min(earned, state.now + 2 * timing.silence) if counted else other.excused

    def awake(self) -> float:
        """See how much time has passed. If this node itself stood still, the others' silence means nothing.

        Returns the seconds for which it did.
        """
        state = self._state
        gap, self._tick = state.now - self._tick, state.now
        if gap <= state.facts.timing.silence / 2:
            return 0.0
        waited = min(gap, max(0.0, state.now - state.since))  # of a wait that has begun since, nothing is lost
        state.since += waited
        state.deadline += waited
        for other in state.neighbors.values():
            other.heard, other.pinged = state.now, None
            other.excused += gap
        state.note("paused", state.facts.node, f"for {gap:.2f} s")
        return gap

    def begin(self) -> None:
        """Count the time from now on."""
        self._state.since = self._tick = self._state.now

    def watch(self, other: Neighbor, awaited: bool) -> None:
        """Ping a neighbour that keeps this node waiting, suspect it when it does not answer, try it again later."""
        state, timing = self._state, self._state.facts.timing
        if other.suspect:
            if other.linked and state.now - other.last_ping >= timing.retry_every:
                self._ping(other)
        elif awaited and other.pinged is None:
            if state.now - max(other.heard, state.since) >= timing.ping_every:
                self._ping(other)
        elif awaited and other.pinged is not None:
            waits = state.facts.sync == BARRIER and not self._may_be_gone(other)
            if state.now - other.pinged >= timing.silence + self._stretch and not waits:
                other.suspect = True
                state.note("detected", other.node, "answers no ping; nobody waits for it")
            elif state.now - other.last_ping >= timing.ping_every:
                self._ping(other)

    def _ping(self, to: Neighbor) -> None:
        to.last_ping = self._state.now
        if to.pinged is None:
            to.pinged = self._state.now
        self._state.send(to, self._edges.ping(to))

    def _may_be_gone(self, other: Neighbor) -> bool:
        """A barrier does not hold for it: the membership has it over, or finished, and its Bye was lost."""
        seen = self._state.seen.get(other.node)
        return seen is None or seen.life != other.life or seen.round >= self._state.facts.rounds
