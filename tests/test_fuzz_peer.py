"""A whole `Peer` hears well-formed messages of any kind in any order from anybody: never an exception, and what it does
is what a driver can carry out. A few here; `make fuzz` takes many more.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import pytest
from fuzzing import LATER, WHOLE, Draw, Take, fuzz

from p2pfl.protocol import agreement
from p2pfl.protocol.codec import HEADER_CAP, decode, encode
from p2pfl.protocol.events import (
    Adopt,
    Advance,
    Done,
    Drop,
    Finished,
    Leave,
    Members,
    Note,
    Progressed,
    Reborn,
    Received,
    Refused,
    Seen,
    Send,
    Start,
    Tick,
    Trained,
    Unfit,
)
from p2pfl.protocol.messages import (
    BOOKED,
    CARRIERS,
    KINDS,
    VOID,
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
from p2pfl.protocol.neighbor import SYNCS, TRAIN, WAIT, EpochPlan, Facts, RoundPlan, epoch_of
from p2pfl.protocol.peer import Peer
from p2pfl.protocol.timing import LOCAL

NODES, ROUNDS, LIFE = 6, 12, 10
NEAR = (1, 2, 5)
"""Neighbours of node 0, which is the one that hears; 3 and 4 are members, 6 and more strangers."""

TEXT = "a description\n{}"
SCHEMA = agreement.digest(agreement.pack(TEXT))
OTHER = agreement.pack("another\n{}")


class Kind(NamedTuple):
    """How the node exchanges."""

    link: str
    sync: str

    def __str__(self) -> str:
        return f"{self.link}-{self.sync}"


KINDS_OF_NODES = [*(Kind("exchange", sync) for sync in SYNCS), Kind("push", "deadline"), Kind("push", "async")]


class Node:
    """A driver in good order around a peer, which is sent whatever there is."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.now = kind, 100.0
        self.job: Advance | None = None  # not done yet
        self.lives = dict.fromkeys(range(NODES + 2), 5)
        self.dropped, self.notes = Counter[str](), Counter[str]()
        self.neighbors: tuple[int, ...] = NEAR
        self.steps = 0
        self.over = False

    def begin(self, draw: Draw) -> None:
        kept = draw.choice([0, 0, 3, ROUNDS])
        self.peer = Peer(
            Facts(
                0, LIFE, NODES, tuple(range(NODES)), self.plan, ROUNDS, "f", SCHEMA, 8, LOCAL, draw.choice([1, 8]),
                per_edge=self.kind.link == "push", exchanges=self.kind.link == "exchange", sync=self.kind.sync,
                kept_round=kept, join_round=draw.choice([0, 4, kept + 1]), together=bool(kept) and draw.random() < 0.5,
                alone=draw.choice([WAIT, TRAIN]), description=TEXT, compare=lambda theirs: (theirs[:900],),
            )
        )  # fmt: skip
        self.hears(Start())
        if draw.randrange(4):  # as a federation begins
            self.hears(Members(tuple(Seen(node, 5) for node in range(NODES))))
            for node in NEAR:
                self.hears(Received(Envelope(node, 5, LIFE, Hello(LIFE, "f", SCHEMA, 0))))

    def plan(self, members: tuple[int, ...]) -> EpochPlan:
        near = self.neighbors = tuple(node for node in NEAR if node in members)

        def at(round: int) -> RoundPlan:
            assert 1 <= round <= ROUNDS
            some = near if round % 3 else near[1:]
            if self.kind.link == "push":
                return RoundPlan(receives_from=some, sends_to=near[:2], lost=near[2:] if round % 2 else ())
            return RoundPlan(exchange=some, void=tuple(node for node in near if node not in some))

        return EpochPlan(at, len(near), near)

    # --- what comes

    def __call__(self, draw: Draw) -> None:
        if not self.steps:
            self.begin(draw)
        self.steps += 1
        self.now += draw.choice([0.0, 0.0, 0.01, 0.2, 0.9, 30.0])
        match draw.randrange(12):
            case 0 | 1 if self.job is not None:
                self.done()
            case 0 | 1 | 2:
                self.hears(Tick())
            case 3 if not draw.randrange(40):
                self.hears(Leave(idle=self.job is None or self.job.next is None))
            case 3:
                self.hears(Progressed(draw.randrange(NODES), 5, self.peer.life, draw.choice([0, 8, 1 << 40])))
            case 4:
                self.hears(self.members(draw))
            case _:
                envelope = self.envelope(draw)
                bad = isinstance(envelope.message, CARRIERS) and not draw.randrange(4)
                self.hears(Refused(envelope._replace(payload=None)) if bad else Received(envelope))

    def done(self) -> None:
        job, self.job = self.job, None
        assert job is not None
        if job.next is None:
            self.hears(Finished())
        else:
            payload = {node: f"to {node}" for node in self.neighbors} if self.peer.state.facts.per_edge else "mine"
            self.hears(Trained(payload, "my model"))

    def members(self, draw: Draw) -> Members:
        """What a membership says: it is this machine's own, but it has it from others."""
        there = [node for node in range(1, NODES + 1) if draw.randrange(5)]
        for node in there:
            self.lives[node] += not draw.randrange(6)
        rounds = range(ROUNDS + 1)
        seen = tuple(
            Seen(
                n, self.lives[n], not draw.randrange(5), draw.choice(rounds), not draw.randrange(9), draw.choice(rounds)
            )
            for n in there
        )
        gone = [node for node in range(1, NODES) if node not in there]
        return Members(
            seen, accused=self.peer.life if not draw.randrange(9) else 0, over=tuple((n, self.lives[n]) for n in gone),
            left=tuple(gone[:1]), ended=tuple((n, draw.choice(rounds)) for n in gone),
        )  # fmt: skip

    def envelope(self, draw: Draw) -> Envelope:
        node = draw.randrange(NODES + 2) if not draw.randrange(5) else draw.choice([*NEAR, 3])
        message = self.message(draw, node)
        if isinstance(message, Hello) and not draw.randrange(8):
            self.lives[node] += 1
        life = self.lives[node] if draw.randrange(8) else draw.choice([0, 1, 5, (1 << 63) - 1])
        to = self.peer.life if draw.randrange(8) else draw.choice([0, LIFE, 1 << 62])
        payload = f"of {node}" if isinstance(message, CARRIERS) else None
        return Envelope(node, life, to, message, payload)

    def message(self, draw: Draw, node: int) -> Any:
        state = self.peer.state
        other = state.neighbors.get(node)
        at = other.edge.number if other else 0
        number = max(0, at + draw.choice([0, 0, 0, 1, 1, -1, 2])) if draw.randrange(9) else draw.choice(WHOLE[:12])
        round = (
            max(0, state.round + draw.choice([-1, 0, 0, 1, 2])) if draw.randrange(9) else draw.choice([0, ROUNDS, 99])
        )
        lives = [(n, self.lives[n]) for n in range(1, NODES)]
        epoch = draw.choice([state.epoch, state.epoch, state.ahead, epoch_of([(0, state.life), *lives]), 0])
        last, part = draw.choice([BOOKED, VOID, ""]), draw.randrange(3)
        match draw.choice([*KINDS, Hello, Offer, Offer, Receipt, Push, Push]).__name__:
            case "Hello":
                same = draw.randrange(6)
                sees = state.life if draw.randrange(5) else 0
                return Hello(sees, "f" if same else "g", SCHEMA if same != 1 else agreement.digest(OTHER), round)
            case "Offer":
                return Offer(number, round, last, epoch)
            case "Receipt":
                return Receipt(number)
            case "AskVoid":
                return AskVoid(number)
            case "Closed":
                return Closed(number, draw.choice([BOOKED, VOID]))
            case "Ping":
                return Ping(number, draw.random() < 0.5, last, round)
            case "Pong":
                return Pong(number, draw.random() < 0.5, last, round)
            case "Want":
                return Want(round)
            case "Model":
                return Model(round, "")
            case "Bye":
                return Bye(round)
            case "Push":
                return Push(round, epoch)
        pieces = [OTHER[:9], OTHER[9:], OTHER, b"no text"]
        return Description(part, draw.choice([0, 1, 2, 64]), draw.choice(pieces), draw.random() < 0.5)

    # --- what it does

    def hears(self, event: Any) -> None:
        for effect in self.peer.handle(event, self.now):
            match effect:
                case Send():
                    self.sends(effect)
                case Advance():
                    self.advances(effect)
                case Drop(reason, detail):
                    self.dropped[reason] += 1
                    assert len(detail) < 1000
                case Note(event=name, detail=detail):
                    self.notes[name] += 1
                    assert len(detail) < 13 * 310
                case Adopt(payload=payload):
                    assert payload is not None
                case Reborn(life):
                    assert life == self.peer.life
                case Unfit(reason):
                    assert reason
                case Done():
                    assert not self.over
                    self.over = True

    def sends(self, effect: Send) -> None:
        envelope, header = effect.envelope, encode(effect.envelope)
        assert 0 < effect.to < NODES and len(header) <= HEADER_CAP
        if isinstance(envelope.message, CARRIERS):
            assert envelope.payload is not None
        else:
            assert decode([header], {}) == envelope

    def advances(self, effect: Advance) -> None:
        """What a replica needs, so that no neighbour can make it fail."""
        assert self.job is None
        self.job = effect
        whom = [each.node for each in effect.booked]
        assert {*whom} <= {*NEAR}, "booked with one that is no neighbour"
        assert all(each.theirs.payload is not None for each in effect.booked)
        if self.kind.link == "push":  # slots are the neighbours of the epoch that ends
            assert all(each.mine is None for each in effect.booked)
        if effect.next is not None:
            assert 1 <= effect.next <= ROUNDS and {*effect.speak} <= {*self.neighbors}
            if effect.members is None:
                assert {*whom} <= {*self.neighbors} and len({*whom}) == len(whom) <= len(self.neighbors)


def made(kind: Kind) -> Take:
    return Node(kind)


@pytest.mark.parametrize("kind", KINDS_OF_NODES, ids=str)
@pytest.mark.parametrize("frames", LATER)
def test_anything_that_is_well_formed_harms_no_peer(frames: int, kind: Kind) -> None:
    fuzz(frames, lambda: Node(kind))


@pytest.mark.parametrize(
    ("kind", "stories"),
    [(kind, 20) for kind in KINDS_OF_NODES]
    + [pytest.param(kind, 600, marks=pytest.mark.more) for kind in KINDS_OF_NODES],
    ids=str,
)
def test_long_stories_of_anything_harm_no_peer(kind: Kind, stories: int) -> None:
    """Hypothesis tells short ones; these get through all stages."""
    stages: Counter[str] = Counter()
    for seed in range(stories):
        draw, node = Draw(seed), Node(kind)
        while not node.over and node.steps < 400:
            node(draw)
            stages[node.peer.stage] += 1
    # who pushes without a barrier waits for no exchange, and has none open when it leaves
    assert len(stages) >= (5 if stories < 100 else 6 if kind == Kind("push", "async") else 7), stages
