"""Letters that accuse nodes that are there, twice a second for twenty virtual seconds: what they cost the honest.

Each case is held to its twin without letters, in the same world and for the same time: the real Peer and the real
Membership, models of one number. Whoever writes the letters knows the present life of everybody; with keys it is a
member, or several, with the latest signature of everybody in hand.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from functools import cache
from typing import Any, NamedTuple

import pytest
import test_virtual_world
from members import KEYS, Keys
from test_virtual_world import Ring

from p2pfl.drivers.virtual.network import Link
from p2pfl.drivers.virtual.node import VirtualNode, address
from p2pfl.protocol.events import Members, Seen
from p2pfl.protocol.membership.events import Effect, Event, Heard, Say
from p2pfl.protocol.membership.roster import LIVES
from p2pfl.protocol.membership.table import ALIVE, DEAD, LEFT, STATES, SUSPECT, MemberEntry
from p2pfl.protocol.membership.timing import LOCAL
from p2pfl.protocol.membership.wire import Datagram, Gossip, decode, encode

NODES, STEP, SETTLED, SECONDS, EVERY = 6, 0.2, 3.0, 20.0, 0.5
"""Federation; seconds of local steps, until the letters begin, of letters, and from one to the next."""

MINUTE = 60.0
"""Of a member that insists: long enough for the bound on its rate to be more than what may come at once."""

EPOCHS = LIVES + MINUTE / LOCAL.reborn_every
"""In this minute, for each node whose death a member insists on, at most."""

DROPPED = SECONDS / EVERY / 2
"""Letters that are dropped by name, of all that are sent, at least."""

NEAR = Link(latency=0.002, jitter=0.002)
ROUGH = Link(latency=0.002, jitter=0.02, loss=0.05, reorder=0.1, duplicate=0.1)


class Letters(NamedTuple):
    """The letters of a case: what they say, of whom and in whose name."""

    state: str
    whom: str = "one"  # node 3; or all
    by: str = "one"  # in the name of node 1; of several, each its own; of itself: of who is accused
    leap: int = 0  # the life in them is so much greater
    place: int | None = None  # where it is said to be
    refutes: int = 0

    def __str__(self) -> str:
        more = [f"+{self.leap:.0e}"] * (self.leap > 0) + ["elsewhere"] * (self.place is not None)
        return "-".join([self.state, self.whom, "by", self.by, *more])


class Costs(NamedTuple):
    """What became of the nodes while there were letters."""

    rounds: int
    booked: int
    epochs: list[int]  # that each node has gone into
    there: int  # nodes that are there, and in no error
    dropped: Counter[str]


class Federation(Ring):
    """A ring that letters can be sent to."""

    def __init__(self, link: Link, seed: int = 0, keys: Keys | None = None) -> None:
        super().__init__(NODES, 10**6, seed, link, keys=keys)
        self.draw = random.Random(seed)
        self.world.run(SETTLED)

    def sent(self, letters: Letters) -> None:
        """The next letter comes to somebody, and so on."""
        to = self.draw.choice(self.nodes)
        lives = {member.node: member for member in to.membership.members}
        by = {"one": 1, "several": self.draw.randrange(NODES), "itself": 3}[letters.by]
        about = [
            account(
                node, lives[node].life + letters.leap, letters.state, lives[node].refutes + letters.refutes, by,
                node if letters.place is None else letters.place,
            )
            for node in ([3] if letters.whom == "one" else range(NODES))
        ]  # fmt: skip
        sender = about[0] if letters.by == "itself" else account(by, lives[by].life)
        link = None if self.keys is None else 1 if letters.by == "itself" else by
        if self.keys is not None:
            about = [entry._replace(signature=lives[entry.node].signature or bytes(64)) for entry in about]
            sender = about[0] if letters.by == "itself" else self.keys.signed(sender, cluster="f")
        to.member(Heard(encode(Datagram("f", 5, sender, about, Gossip()), self.world.now), link))
        self.world.at(EVERY, self.sent, letters)

    def costs(self, seconds: float = SECONDS) -> Costs:
        """Let the time pass."""
        before = self._so_far()
        self.world.run(self.world.now + seconds)
        rounds, booked, epochs = (now - was for now, was in zip(self._so_far(), before, strict=True))
        dropped = sum((node.event_log.dropped for node in self.nodes), Counter[str]())
        there = sum(node.up and node.error is None for node in self.nodes)
        return Costs(rounds.total(), booked.total(), [epochs[i] for i in range(NODES)], there, dropped)

    def _so_far(self) -> tuple[Counter[int], Counter[int], Counter[int]]:
        nodes = self.world.nodes.items()
        return (
            Counter({i: node.peer.round for i, node in nodes}),
            Counter({i: node.peer.booked for i, node in nodes}),
            Counter({i: len(self.number(i).epochs) for i, _ in nodes}),
        )


def account(node: int, life: int, state: str = ALIVE, refutes: int = 0, by: int = -1, place: int = -1) -> MemberEntry:
    return MemberEntry(node, life, refutes, state, address(place if place >= 0 else node), 0, 0, 0.0, by)


@cache
def twin(link: Link, keys: Keys | None = None, seconds: float = SECONDS) -> Costs:
    """The same time without letters."""
    return Federation(link, keys=keys).costs(seconds)


def check(letters: Letters, link: Link, keys: Keys | None = None, seconds: float = SECONDS) -> Costs:
    federation = Federation(link, keys=keys)
    federation.world.at(0.0, federation.sent, letters)
    costs, alone = federation.costs(seconds), twin(link, keys, seconds)
    assert costs.there == NODES, costs
    assert costs.rounds >= 0.9 * alone.rounds and costs.booked >= 0.9 * alone.booked, (costs, alone)
    assert costs.epochs == [0] * NODES, costs
    return costs


FEW = [
    pytest.param(Letters(DEAD, "all", "several"), marks=pytest.mark.more),
    pytest.param(Letters(SUSPECT, "all", "several"), marks=pytest.mark.more),
    pytest.param(Letters(ALIVE, leap=10**9, place=77), marks=pytest.mark.more),
    pytest.param(Letters(LEFT, by="itself"), marks=pytest.mark.more),
]
MORE = [
    *(Letters(*of) for of in itertools.product((DEAD, SUSPECT, LEFT), ("one", "all"), ("one", "several"))),
    *(Letters(state, by="itself") for state in (DEAD, SUSPECT)),
    *(Letters(state, "all", "several", leap) for state in STATES for leap in (1, 10**11, 1 << 60)),
    *(Letters(ALIVE, whom, by, 1, 77) for whom in ("one", "all") for by in ("one", "several")),
    Letters(SUSPECT, "all", "several", refutes=1 << 19),
    Letters(SUSPECT, "all", "several", refutes=1 << 50),
]  # fmt: skip


@pytest.mark.parametrize("keys", [None, pytest.param(KEYS, marks=pytest.mark.more)], ids=["no keys", "keys"])
@pytest.mark.parametrize("letters", FEW, ids=str)
def test_letters_cost_the_honest_nothing_to_speak_of(letters: Letters, keys: Keys | None) -> None:
    """No node is reborn, none leaves an epoch, and all keep 98 % of their rounds and exchanges; far from it, 90 %.

    With keys, what is said in another's name and what a member has never said of itself is not even asked about.
    """
    costs, alone = check(letters, NEAR, keys), twin(NEAR, keys)
    assert costs.rounds >= 0.98 * alone.rounds and costs.booked >= 0.98 * alone.booked, (costs, alone)
    reason = "denied"
    if keys is not None and letters.state in (ALIVE, LEFT):
        reason = "sender" if letters.by == "itself" else "signature"
    assert costs.dropped[reason] >= DROPPED or letters.state == SUSPECT, costs


@pytest.mark.parametrize(
    ("letters", "link", "keys"),
    [
        pytest.param(letters, link, keys, id=f"{letters}-{name}",
                     marks=pytest.mark.more if i % 2 == (keys is None) else pytest.mark.soak)
        for i, letters in enumerate(MORE)
        for name, link, keys in (("rough", ROUGH, None), ("keys", NEAR, KEYS))
    ],
)  # fmt: skip
def test_more_letters_cost_the_honest_nothing_to_speak_of(letters: Letters, link: Link, keys: Keys | None) -> None:
    """Each by day once: without keys where the network is rough, or with keys."""
    costs = check(letters, link, keys, SECONDS / 2)
    if keys is not None and letters.leap:
        assert costs.dropped["signature"] >= DROPPED / 2 and not costs.dropped["denied"], costs


def insist(node: VirtualNode, victims: list[int], keys: Keys | None) -> None:
    """Let a member have these for dead in whatever it says, and say so to everybody: it answers when it is asked."""
    handle = node.membership.handle

    def lying(event: Event, now: float) -> list[Effect]:
        effects = []
        for effect in handle(event, now):
            if isinstance(effect, Say):
                datagram = decode(effect.data, "f", now)
                kept = [entry for entry in datagram.entries if entry.node not in victims]
                effect = effect._replace(data=encode(datagram._replace(entries=[*kept, *deaths(now)]), now))
            effects.append(effect)
        return effects

    def deaths(now: float) -> list[MemberEntry]:
        held = {member.node: member for member in node.membership.members}
        return [
            account(victim, held[victim].life, DEAD, held[victim].refutes if keys else 0, 5)._replace(
                at=now, signature=held[victim].signature
            )
            for victim in victims
        ]

    def letter() -> None:
        now, me = node.world.now, node.facts.node
        own = account(me, node.peer.life)
        data = encode(Datagram("f", 5, keys.signed(own, cluster="f") if keys else own, deaths(now), Gossip()), now)
        for to in range(NODES):
            node.world.say(node, address(to), data)
        node.world.at(EVERY, letter)

    node.membership.handle = lying  # type: ignore[method-assign]
    node.world.at(0.0, letter)


@pytest.mark.parametrize(
    ("victims", "keys"),
    [
        pytest.param([3], None, id="one, no keys", marks=pytest.mark.more),
        pytest.param([0, 1, 2, 3, 4], KEYS, id="all, keys", marks=pytest.mark.more),
        pytest.param([0, 1, 2, 3, 4], None, id="all, no keys", marks=pytest.mark.soak),
        pytest.param([3], KEYS, id="one, keys", marks=pytest.mark.soak),
    ],
)
def test_a_member_that_insists_costs_a_bounded_number_of_epochs(victims: list[int], keys: Keys | None) -> None:
    """It answers that it has them for dead, so that they must outdo it, again and again: but not faster than that."""
    federation = Federation(NEAR, keys=keys)
    insist(federation.world.nodes[5], victims, keys)
    costs, alone = federation.costs(MINUTE), twin(NEAR, keys, MINUTE)
    assert costs.there == NODES, costs
    assert 0 < max(costs.epochs) <= EPOCHS * len(victims), costs
    assert costs.rounds >= 0.9 * alone.rounds and costs.booked >= 0.9 * alone.booked, (costs, alone)
    assert max(len(node.event_log.dropped) for node in federation.nodes) > 0


def test_a_node_outside_the_federation_reaches_no_plan() -> None:
    """Neither by a letter nor by what a membership says."""
    federation = Federation(NEAR)
    for node in federation.nodes:
        by, strangers = account((node.facts.node + 1) % NODES, 1), [account(NODES, 1), account(99, 1)]
        node.member(Heard(encode(Datagram("f", 5, by, strangers, Gossip()), federation.world.now)))
        seen = tuple(Seen(i, 1) for i in range(NODES + 2))
        node.handle(Members(seen, over=((NODES, 1), (77, 3))))
    federation.world.run(federation.world.now + 5.0)
    for node in federation.nodes:
        assert node.event_log.dropped["stranger"] == 1
        assert [member.node for member in node.membership.members] == [*range(NODES)]
        assert federation.number(node.facts.node).epochs == [(1, tuple(range(NODES)))]


def test_a_node_whose_clock_went_back_is_taken_back_at_once() -> None:
    """It comes back as a life that is less than its last; the others may have been told of a far greater one."""
    for forged in (0, 10**12):
        federation = Federation(NEAR)
        world = federation.world
        gone = world.nodes[3]
        gone.crash()
        world.run(world.now + 6.0)
        if forged:
            about = [account(3, gone.peer.life + forged, DEAD, by=1)]
            world.nodes[0].member(Heard(encode(Datagram("f", 5, account(1, 1), about, Gossip()), world.now)))
            world.run(world.now + 1.0)
        world.life = lambda node: 1  # type: ignore[method-assign]
        gone.peer.state.life = 0
        federation.begin(3, 1)
        world.run(world.now + 4.0)
        back = world.nodes[3]
        assert back.up and back.peer.life == gone.facts.life + forged + 1
        assert {federation.number(i).epochs[-1][1] for i in range(NODES)} == {tuple(range(NODES))}
        assert all(3 in federation.number(i).mixed[max(federation.number(i).mixed) - 1] for i in (2, 4))


@pytest.fixture(autouse=True)
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(test_virtual_world, "STEP", STEP)
