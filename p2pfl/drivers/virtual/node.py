"""One life of a node in a virtual world: its `Peer`, its `Membership`, and what it computes with."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from p2pfl.errors import LocalError
from p2pfl.node.event_log import EventLog
from p2pfl.node.membership import Standing, meaning
from p2pfl.protocol.events import (
    Admitted,
    Adopt,
    Advance,
    Done,
    Drop,
    Effect,
    Event,
    Finished,
    Leave,
    Members,
    Note,
    Reborn,
    Received,
    Send,
    Start,
    Tick,
    Trained,
    Unfit,
)
from p2pfl.protocol.membership import events as membership
from p2pfl.protocol.membership.membership import Membership
from p2pfl.protocol.membership.seeds import Seed
from p2pfl.protocol.membership.statement import Sign, Verify
from p2pfl.protocol.membership.table import Me
from p2pfl.protocol.membership.timing import ProbeTiming
from p2pfl.protocol.messages import Envelope
from p2pfl.protocol.neighbor import Facts
from p2pfl.protocol.peer import Peer
from p2pfl.protocol.state import TRAINING


class Surroundings(Protocol):
    """The world as a node sees it: `p2pfl.drivers.virtual.world.World`."""

    seed: int

    @property
    def now(self) -> float:
        """Seconds since the beginning."""

    def at(self, delay: float, call: Callable[..., None], *arguments: Any) -> None:
        """Let something happen after so many seconds."""

    def when(self, time: float, call: Callable[..., None], *arguments: Any) -> None:
        """Let something happen at a time."""

    def send(self, source: VirtualNode, to: int, envelope: Envelope) -> None:
        """From peer to peer."""

    def say(self, source: VirtualNode, to: str, data: bytes) -> None:
        """From membership to membership."""

    def over(self, node: VirtualNode) -> None:
        """A life is over."""


class Computing(Protocol):
    """The computing side of a node: `p2pfl.node.worker.Worker`, or in tests something simpler."""

    def advance(self, effect: Advance) -> Trained | Finished | Leave | None:
        """Mix, then train; None: the node dies here. Raises LocalError."""

    def adopt(self, effect: Adopt) -> None:
        """Begin with a neighbour's model."""


class NodeSetup(NamedTuple):
    """The setup of a life, besides its facts."""

    computing: Computing
    seconds: Callable[[int], float]  # that the local steps of a round take
    probe_timing: ProbeTiming  # of the membership
    seeds: Sequence[int]  # nodes that it knows of; one that is there is enough
    taken: Callable[[Envelope], Event] = Received  # of a message with a payload, as its receiver sees it
    log: Callable[[str, int, int, str, int], None] = lambda event, about, round, detail, rounds: None
    sign: Sign | None = None  # what the membership says of itself, where there are keys ...
    verify: Verify | None = None  # ... and what others do


class VirtualNode:
    """See the module. A node that has crashed or gone hears and says nothing any more: `up` is False.

    Its membership may have a last word, as that of a process that is killed.
    """

    def __init__(self, world: Surroundings, facts: Facts, given: NodeSetup) -> None:
        self.world, self.facts, self.given = world, facts, given
        self.peer = Peer(facts)
        me = Me(facts.node, facts.life, address(facts.node), self.peer.state.nodes)
        seeds = [Seed(address(node)) for node in given.seeds]
        self.membership = Membership(
            me, facts.federation, seeds, given.probe_timing, world.seed, given.sign, given.verify
        )
        self.up = True
        self._speaks = True  # its membership
        self.done = False  # the peer has ended in good order
        self.ended = 0.0  # when it had
        self.error: LocalError | None = None
        self.sent = self.received = 0  # bytes of models and of what is said about them
        self.event_log = EventLog(facts.node, given.log)
        self._frozen: float | None = None  # since when
        self._kept: list[Event] = []  # what came in while it was frozen
        self._waiting: deque[Event] = deque()
        self._handling = False
        self._ticks = self._wakes = math.inf  # when each is next due
        self._told = -1  # the round that the membership has been told

    @property
    def round(self) -> int:
        """Return the round it is in, or the one before it wants to begin.

        0 while it waits for others: it is in none, so that a planned partition is theirs.
        """
        return 0 if self.peer.waits else max(self.peer.round, self.facts.join_round - 1)

    @property
    def frozen(self) -> bool:
        """Return whether it stands still."""
        return self._frozen is not None

    def start(self) -> None:
        """Start: it has compiled, and exists for the others from now on."""
        self.handle(Start())
        self.member(membership.MemberStart())

    def admit(self, nodes: int) -> None:
        """There can be so many nodes now: the federation has grown."""
        self.handle(Admitted(nodes))
        self.member(membership.MemberAdmitted(nodes))

    # --- the peer

    def handle(self, event: Event) -> None:
        """Something happens to the peer."""
        self._waiting.append(event)
        if self._handling:  # what an effect brings about comes after all effects: messages keep their order
            return
        self._handling = True
        while self._waiting:
            self._one(self._waiting.popleft())
        self._handling = False
        if self.up and not self.done:
            self._next_tick()

    def _one(self, event: Event) -> None:
        if not self.up or self.done:
            return
        if self._frozen is not None:
            if not isinstance(event, Tick):
                self._kept.append(event)
            return
        for effect in self.peer.handle(event, self.world.now):
            if self.up:
                self._carry_out(effect)
        if self.up and self.peer.told != self._told:
            self._told = self.peer.told
            self.member(membership.Progress(self._told))

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send(to, envelope):
                self.world.send(self, to, envelope)
            case Advance():
                self._advance(effect)
            case Adopt():
                self.given.computing.adopt(effect)
            case Reborn(life):
                self.member(membership.MemberReborn(life))
            case Note():
                self.event_log.note(effect)
            case Drop():
                self.event_log.drop(effect, self.peer.round)
            case Unfit():
                self.handle(Leave(idle=False))
            case Done():
                self.done, self.ended = True, self.world.now
                self.member(membership.Progress(self.peer.told))
                self.member(membership.MemberLeave())

    def _advance(self, effect: Advance) -> None:
        """Computed at once; what comes of it is there after the time that it takes in this world."""
        took = 0.0
        try:
            result: Event | None = self.given.computing.advance(effect)
        except LocalError as error:
            result = Finished() if self.error else Leave(idle=True)
            self.error = self.error or error
        if result is None:
            self.crash()
            return
        if effect.next is not None and isinstance(result, Trained):
            took = self.given.seconds(effect.next)
        self.world.at(took, self.handle, result)

    def _next_tick(self) -> None:
        """The peer is told the time: often while it waits, else often enough to know that it did not stand still."""
        timing = self.facts.timing
        often = min(timing.hello_every, timing.ping_every) / 2
        due = self.world.now + (max(often, timing.silence / 4) if self.peer.stage == TRAINING else often)
        if due < self._ticks:
            self._ticks = due
            self.world.when(due, self._tick, due)

    def _tick(self, due: float) -> None:
        if due == self._ticks:  # else an earlier one has been asked for since
            self._ticks = math.inf
            self.handle(Tick())

    # --- the membership

    def member(self, event: membership.Event) -> None:
        """Something happens to the membership, which goes on for a while when the rest of the node stands still."""
        if not self._speaks or self._stalled():
            return
        for effect in self.membership.handle(event, self.world.now):
            match effect:
                case membership.Say(to, data):
                    self.world.say(self, to, data)
                case membership.Gone():
                    self.vanish()
                case _ if self.up:
                    self._take(effect)
        if self._speaks and self.membership.wake < self._wakes:
            self._wakes = self.membership.wake
            self.world.when(self._wakes, self._wake, self._wakes)

    def _take(self, effect: membership.Effect) -> None:
        facts = self.facts
        at = Standing(facts.node, self.peer.round, lambda: self.membership.members, facts.rounds, facts.sync)
        match meaning(effect, at):
            case Members() as members:
                self.handle(members)
            case Note() as note:
                self.event_log.note(note)
            case Drop() as drop:
                self.event_log.drop(drop, self.peer.round)
            case LocalError() as error:
                self.error = error
                self.vanish()

    def _wake(self, due: float) -> None:
        if due == self._wakes:
            self._wakes = math.inf
            self.member(membership.MemberTick())

    def _stalled(self) -> bool:
        if not self.up or self._frozen is None:
            return False
        return self.world.now - self._frozen > self.given.probe_timing.stalled_after

    # --- what happens to it from outside

    def crash(self) -> None:
        """End at once, with all it had, as a process that is killed: its membership says so."""
        if self.up:
            self.up = False
            self.member(membership.MemberDied())
            self.world.over(self)

    def vanish(self) -> None:
        """End without a word, as when the machine is gone."""
        self._speaks = False
        if self.up:
            self.up = False
            self.world.over(self)

    def freeze(self) -> None:
        """Stand still: the membership answers for it, as that of a process whose own loop hangs."""
        if self._frozen is None:
            self._frozen = self.world.now

    def thaw(self) -> None:
        """Go on, and take in what has come since."""
        if self._frozen is None:
            return
        self._frozen = None
        kept, self._kept = self._kept, []
        for event in kept:
            self.handle(event)
        self.handle(Tick())
        self.member(membership.MemberTick())


def address(node: int) -> str:
    """Return the address at which the membership of a node listens."""
    return f"tcp://node{node}:1"


def node_at(address: str) -> int | None:
    """The node at such an address; None where nobody can be."""
    node = address.removeprefix("tcp://node").partition(":")[0]
    return int(node) if node.isascii() and node.isdigit() else None


def weight(envelope: Envelope, header: int, payload: int) -> int:
    """Bytes of a message. `payload`: where the payload itself does not say."""
    body: Any = envelope.payload
    return header + (0 if body is None else int(getattr(body, "nbytes", payload)))
