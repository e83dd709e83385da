"""A membership with keys: what is signed, who may be a member, and the document that all come to have.

Each lie is told twice, with keys and without: what it does without is what keys are for. Keys here are cheap ones, see
`members.Keys`; one test has real ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any, NamedTuple

import pytest
from members import CLUSTER, FAR, KEYS, World, address, keyed
from test_membership import One, account, datagrams, of, said

from p2pfl.node.membership import Standing, meaning
from p2pfl.protocol.events import Members
from p2pfl.protocol.membership import documents
from p2pfl.protocol.membership.events import (
    Accused,
    Admit,
    Busy,
    Changed,
    Expelled,
    Heard,
    Known,
    MemberDrop,
    MemberLeave,
    MemberReborn,
    MemberTick,
    OwnDocument,
    Say,
    Told,
    Unwanted,
)
from p2pfl.protocol.membership.roster import LAST_LIFE
from p2pfl.protocol.membership.statement import CHECKS, WRONGS
from p2pfl.protocol.membership.table import ALIVE, DEAD, LEFT, SUSPECT, MemberEntry
from p2pfl.protocol.membership.timing import LAN, LOCAL
from p2pfl.protocol.membership.wire import (
    Ack,
    Ask,
    Datagram,
    DirectPing,
    DocumentCopy,
    Gossip,
    Nack,
    Sync,
    decode,
    encode,
)
from p2pfl.trust import keyring, keys

signed = KEYS.signed


class Honest(One):
    """Member 0 that knows 1 and 2, with keys or without; what comes by a link with keys is signed and authenticated."""

    def __init__(self, with_keys: bool, **more: Any) -> None:
        self.with_keys = with_keys
        super().__init__(**(keyed(0, KEYS) if with_keys else {}), **more)
        for node in (1, 2):
            self.told(by=node)

    def told(self, *entries: MemberEntry, by: int | MemberEntry = 1, link: int = 1, **more: Any) -> list[Any]:
        """As `hear`, of what honest members say. `by`: as the sender signs itself; the link is its own."""
        sender = by if isinstance(by, MemberEntry) else account(by)
        if not self.with_keys:
            return self.hear(*entries, by=sender, **more)
        return self.hear(*map(signed, entries), by=signed(sender), link=sender.node, **more)

    def lied(self, lie: Lie) -> list[Any]:
        """What comes of a lie that node 1 tells, as such and once more in its answer to whatever it is asked."""
        effects = self.hear(*lie.entries, by=lie.sender, link=1 if self.with_keys else None, message=lie.message)
        for to, question in said(effects, DirectPing):
            if to == address(1):
                effects = effects + self.hear(
                    *lie.entries, by=lie.sender, link=1 if self.with_keys else None, message=Ack(), seq=question.seq
                )
        return effects


class Lie(NamedTuple):
    """What node 1 says. `reason`: for which it is dropped with keys. `works`: what node 0 then holds without keys."""

    reason: str
    entries: tuple[MemberEntry, ...] = ()
    works: dict[str, Any] | None = None  # of node 2, a period later
    sender: MemberEntry = signed(account(1))
    message: Any = Gossip()
    about: int = 2


TRUE = signed(account(2))
"""What node 2 has said of itself, and everybody has."""

LIES = {
    "a greater life, by the liar": Lie("signature", (signed(account(2, life=5), by=1),), {"life": 5}),
    "a greater life, unsigned": Lie("signature", (account(2, life=5),), {"life": 5}),
    "a death in a greater life": Lie("signature", (account(2, DEAD, 5, signature=TRUE.signature),), {"life": 5}),
    "a leave": Lie("signature", (TRUE._replace(state=LEFT),), {"state": LEFT}),
    "refutations": Lie("signature", (TRUE._replace(refutes=9),), {"refutes": 9}),
    "a suspicion of what was never said": Lie("signature", (TRUE._replace(state=SUSPECT, refutes=9),), {"refutes": 9}),
    "another place": Lie("signature", (TRUE._replace(life=2, address=address(9)),), {"address": address(9)}),
    "a pause": Lie("signature", (TRUE._replace(said=1, at=300.0, pause=10**6),), {"busy": 300.0}),
    "a pause that was not signed": Lie("", (TRUE._replace(said=1, at=300.0),), {"busy": 300.0}),
    "a signature for another cluster": Lie("signature", (signed(account(2, life=5), cluster="f"),), {"life": 5}),
    "one that nobody knows": Lie("signature", (signed(account(3), by=1),), {"state": ALIVE}, about=3),
    "in the name of another": Lie("sender", (), {"life": 5}, signed(account(2, life=5))),
    "in the name of another, unsigned": Lie("sender", (), {"refutes": 9}, account(2, refutes=9)),
    "the last word of another": Lie("sender", (), {"state": DEAD}, TRUE._replace(state=DEAD)),
    "another's own words": Lie("sender", (), {"own": 7}, TRUE._replace(round=7, said=1)),
    "itself, unsigned": Lie("signature", (), {"refutes": 3}, account(1, refutes=3), about=1),
}


@pytest.mark.parametrize("with_keys", [True, False], ids=["keys", "no keys"])
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_what_a_member_can_lie_about_another(lie: Lie, with_keys: bool) -> None:
    """With keys it changes nothing and is counted by its reason, also when it is told again in answer to a question."""
    one = Honest(with_keys)
    before = one.member.members
    dropped = {drop.reason for drop in of(one.lied(lie), MemberDrop)}
    effects = one.passes(LAN.interval)
    after = {m.node: m._asdict() for m in one.member.members}.get(lie.about, {})
    if with_keys:
        assert dropped == ({lie.reason} if lie.reason else set()), dropped
        assert [m._replace(own_at=0.0, silent=False) for m in one.member.members] == [
            m._replace(own_at=0.0) for m in before
        ]
        assert not of(effects, Changed)
    else:
        assert {name: after[name] for name in lie.works or {}} == lie.works


@pytest.mark.parametrize("with_keys", [True, False], ids=["keys", "no keys"])
@pytest.mark.parametrize(
    "entry",
    [account(0, DEAD, 99), account(0, LEFT), account(0, ALIVE, 99), account(0, SUSPECT, refutes=9)],
    ids=lambda entry: f"{entry.state}-{entry.life}-{entry.refutes}",
)
def test_nobody_can_say_of_a_node_what_it_has_never_said(entry: MemberEntry, with_keys: bool) -> None:
    """It is neither accused in a life that it never had nor made to refute what nobody can have heard."""
    one = Honest(with_keys)
    effects = one.lied(Lie("signature", (signed(entry, by=1),)))
    accused, refuted = of(effects, Accused), one.held(0).refutes
    if with_keys:
        assert not accused and refuted == 0
        assert {drop.reason for drop in of(effects, MemberDrop)} == {"signature"}
    else:
        assert bool(accused) == (entry.state != SUSPECT) and refuted == (10 if entry.state == SUSPECT else 0)


@pytest.mark.parametrize("with_keys", [True, False], ids=["keys", "no keys"])
def test_its_own_words_sent_back_do_nothing(with_keys: bool) -> None:
    one = Honest(with_keys)
    sent = [effect for effect in one.passes(2.0) if isinstance(effect, Say)]
    for say in sent:
        before = one.member.members
        effects = one.do(Heard(say.data, 1 if with_keys else None))
        (drop,) = of(effects, MemberDrop)
        assert drop.reason == ("sender" if with_keys else "reflected")
        assert one.member.members == before and not datagrams(effects)


@pytest.mark.parametrize("with_keys", [True, False], ids=["keys", "no keys"])
def test_an_answer_counts_from_who_was_asked_and_by_its_own_link(with_keys: bool) -> None:
    """Node 1 answers in the name of node 2, with the number of the question and node 2's own signature."""
    one = Honest(with_keys)
    asked = None
    while asked is None or asked[0] != address(2):
        for asked in said(one.do(MemberTick(), max(0.0, one.member.wake - one.now)), DirectPing):
            if asked[0] == address(1):
                one.told(message=Ack(), seq=asked[1].seq)
    lie = one.hear(by=TRUE, link=1 if with_keys else None, message=Ack(), seq=asked[1].seq)
    assert [drop.reason for drop in of(lie, MemberDrop)] == (["sender"] if with_keys else [])
    for to, ask in said(one.passes(LAN.ack_max + 0.001), Ask):
        assert with_keys and to == address(1), "there is nothing to ask others for when it has answered"
        one.told(message=Nack(), seq=ask.seq)
    one.passes(LAN.interval)
    assert one.held(2).state == (SUSPECT if with_keys else ALIVE)


@pytest.mark.parametrize("lately", [True, False], ids=["lately", "long ago"])
@pytest.mark.parametrize("with_keys", [True, False], ids=["keys", "no keys"])
def test_a_last_word_counts_when_its_member_says_it_again(with_keys: bool, lately: bool) -> None:
    """Who says of itself that it has died is asked, also where it has just answered, and believed at once."""
    for answer in (DEAD, ALIVE):
        one, asked = Honest(with_keys), list[Datagram]()
        while lately and not asked:
            asked = [ping for to, ping in said(one.passes(0.01), DirectPing) if to == address(2)]
        for ping in asked:
            one.told(by=2, message=Ack(), seq=ping.seq)
        effects = one.told(by=account(2, DEAD), message=DirectPing(0))
        question = next(ping for to, ping in said(effects, DirectPing) if to == address(2))
        assert one.held(2).state == ALIVE and said(effects, Ack), "a letter alone ends no life"
        effects = one.told(by=account(2, answer), message=Ack(), seq=question.seq)
        assert one.held(2).state == answer
        assert [drop.reason for drop in of(effects, MemberDrop)] == (["denied"] if answer == ALIVE else [])


@pytest.mark.parametrize("with_keys", [True, False], ids=["keys", "no keys"])
def test_a_last_word_of_an_earlier_life_is_no_news(with_keys: bool) -> None:
    """The node is there again: the word is not asked about, and who says it hears of the present life."""
    one = Honest(with_keys)
    one.told(by=account(2, life=5))
    one.passes(LAN.interval)
    before = one.held(2)
    effects = one.told(by=account(2, DEAD), message=DirectPing(0))
    assert one.held(2) == before and before.life == 5 and not said(effects, DirectPing)
    one.told(account(2, DEAD), by=1)
    assert one.held(2) == before


@pytest.mark.parametrize("with_keys", [True, False], ids=["keys", "no keys"])
def test_old_words_of_a_member_lose(with_keys: bool) -> None:
    """Replayed by another, with the signature that they had: by life and refutes, whatever they say."""
    for old in (account(2), account(2, refutes=2), account(2, life=4), account(2, LEFT, life=4), account(2, DEAD)):
        one = Honest(with_keys)
        one.told(account(2, life=5, refutes=3))
        one.told(by=account(2, life=5, refutes=3))
        one.passes(LAN.interval)
        before = one.held(2)
        effects = one.told(old._replace(said=99))
        assert (before.life, before.refutes) == (5, 3) and not of(effects, Changed) and not of(effects, MemberDrop)
        assert one.held(2) == before, old


@pytest.mark.parametrize("with_keys", [True, False], ids=["keys", "no keys"])
def test_a_round_of_hearsay_is_shown_and_is_nobody_s_own_word(with_keys: bool) -> None:
    one = Honest(with_keys)
    one.told(account(2, said=5, round=900))
    assert (one.held(2).round, one.held(2).own) == (900, 0)
    one.told(by=account(2, said=6, round=12))
    assert (one.held(2).round, one.held(2).own) == (12, 12)


def test_a_pause_is_signed_and_nobody_can_make_it_longer() -> None:
    one = Honest(True)
    effects = one.do(Busy(20.0)) + one.passes(0.2)
    (mine, *_) = [datagram.sender for _, datagram in datagrams(effects)]
    assert (mine.refutes, mine.pause, mine.said) == (1, 20000, 1) and KEYS.signed(mine) == mine
    assert one.held(0).busy == 20.0
    other = Honest(True)
    paused = account(2, refutes=1, pause=20000, said=1, at=20.0)
    other.told(by=paused)
    assert other.held(2).busy == pytest.approx(20.0)
    other.passes(10.0)
    other.told(paused._replace(said=5, at=other.now + 20.0))
    assert other.held(2).busy == pytest.approx(20.0), "told again, it is no longer than it was"
    other.told(paused._replace(said=9, at=0.0))
    assert other.held(2).busy == 0.0, "but whoever passes it on can end it"
    other.told(by=paused._replace(refutes=2, pause=5000, at=other.now + 5.0, said=2))
    assert other.held(2).busy == pytest.approx(15.0)
    late = Honest(True)
    late.told(paused._replace(at=1e6, said=10**6))
    assert late.held(2).busy == pytest.approx(20.0), "who has not heard of it: as long as it was signed for"


def test_a_refutation_while_it_pauses_is_signed_for_what_is_left_of_the_pause() -> None:
    one = Honest(True)
    one.do(Busy(20.0))
    one.passes(5.0)
    one.told(account(0, SUSPECT, refutes=1, pause=20000))
    mine = said(one.told(message=DirectPing(0)), Ack)[0][1].sender
    assert (mine.refutes, mine.pause) == (2, 15000) and mine == signed(mine)
    one.do(MemberReborn(7))
    mine = said(one.told(message=DirectPing(0)), Ack)[0][1].sender
    assert (mine.life, mine.refutes, mine.pause) == (7, 0, 0) and mine == signed(mine)
    one.do(MemberLeave())
    last = [datagram.sender for _, datagram in datagrams(one.passes(0.5))][-1]
    assert last.state == LEFT and last == signed(last) and last.signature != mine.signature


def test_what_a_member_passes_on_is_signed_by_who_it_is_about() -> None:
    one = Honest(True)
    one.told(account(3), account(4, SUSPECT, by=2), account(5, DEAD, by=1), account(6, LEFT))
    told = [entry for _, datagram in datagrams(one.passes(30.0)) for entry in (datagram.sender, *datagram.entries)]
    assert {entry.node for entry in told} == {*range(7)} and {entry.state for entry in told} == {
        ALIVE, SUSPECT, DEAD, LEFT,
    }  # fmt: skip
    assert all(entry == signed(entry) for entry in told)


def test_a_flood_of_signatures_costs_a_bounded_number_of_checks_and_only_its_own_link() -> None:
    checks = Counter[int]()

    def verify(node: int, statement: bytes, signature: bytes) -> bool:
        checks[node] += 1
        return KEYS.verify(node, statement, signature)

    one = Honest(True)
    one.member._signatures._verify = verify
    reasons = Counter[str]()
    for turn in range(600):  # ten seconds of letters
        lies = [TRUE._replace(refutes=1 + turn, life=n) for n in range(9, 20)]
        reasons.update(drop.reason for drop in of(one.hear(*lies, by=signed(account(1)), link=1), MemberDrop))
        one.passes(1 / 60)
    rate, burst = WRONGS
    assert checks[2] <= burst + 10 * rate + 11 and reasons == {"signature": 600}, (checks, reasons)
    one.told(by=account(2, refutes=7))
    assert one.held(2).refutes == 7, "another's link has its own"
    before = checks.total()
    for _ in range(100):
        one.told(account(2, refutes=7), by=2)
    assert checks.total() == before, "what is known is not checked again"
    blames = Counter[bool]()
    for turn in range(600):  # a member that signs without end, and another that passes it on
        drops = of(one.told(*(account(3, refutes=20 * turn + n) for n in range(20)), by=2), MemberDrop)
        blames.update(drop.blame for drop in drops if drop.reason == "checks")
        one.passes(1 / 60)
    rate, burst = CHECKS
    assert checks[3] <= burst + 10 * rate + 20 and blames[False] > 400 and not blames[True], (checks, blames)


def test_a_table_of_any_size_is_learnt_though_a_link_brings_a_part_of_it() -> None:
    one, every = Honest(True), [account(node) for node in range(3, 900)]
    effects = one.told(*every)
    assert len(one.member.members) < 520 and {drop.reason for drop in of(effects, MemberDrop)} == {"checks"}
    one.told(*every, by=2)
    assert len(one.member.members) == 900


def test_with_keys_a_link_that_has_authenticated_nobody_brings_nothing() -> None:
    one = Honest(True)
    effects = one.hear(by=signed(account(2, refutes=5)))
    assert [drop.reason for drop in of(effects, MemberDrop)] == ["sender"] and one.held(2).refutes == 0


def test_nobody_is_made_to_dial_where_no_member_has_said_that_it_is() -> None:
    for with_keys in (True, False):
        one = Honest(with_keys)
        pings = said(one.told(message=Ask(2, address(66), 0.1), seq=40), DirectPing)
        assert [to for to, _ in pings] == [address(2 if with_keys else 66)]
        assert bool(said(one.told(message=Ask(5, address(66), 0.1), seq=41), DirectPing)) != with_keys


def test_who_answers_for_a_dead_member_hides_its_death_for_a_while_only() -> None:
    """Node 1 answers whatever it is asked to ask node 2, which is gone."""
    for with_keys in (True, False):
        one = Honest(with_keys)
        for _ in range(900):
            effects = one.do(MemberTick(), max(0.0, one.member.wake - one.now))
            for to, datagram in datagrams(effects):
                if to == address(1) and isinstance(datagram.message, Ask | DirectPing):
                    one.told(message=Ack(), seq=datagram.seq)
            if one.held(2).state == DEAD:
                break
        assert (one.held(2).state == DEAD) == with_keys
        assert not with_keys or one.now < 64 * LAN.interval + 20


def test_to_whom_it_speaks_is_said_where_that_is_known() -> None:
    one = Honest(True, seeds=("tcp://seed.name:7",))
    says = [effect for effect in one.passes(30.0) if isinstance(effect, Say)]
    assert {(say.address, say.node) for say in says} == {(address(1), 1), (address(2), 2), ("tcp://seed.name:7", None)}


def test_a_member_that_dials_out_is_spoken_to_by_its_own_connections() -> None:
    one = Honest(True)
    one.told(by=account(3, address="dials://3"))
    says = [effect for effect in one.passes(20.0) if isinstance(effect, Say)]
    assert ("dials://3", 3) in {(say.address, say.node) for say in says}
    pings = said(one.told(message=Ask(3, "dials://3", 0.1), seq=9), DirectPing)
    assert pings[0][0] == "dials://3"


@pytest.mark.parametrize("keys", [None, KEYS], ids=["no keys", "keys"])
def test_two_that_only_dial_out_are_members_through_the_others(keys: Any) -> None:
    """They never hear one another: others ask for them, and their own new words tell that they are there."""
    world = World(1, FAR, LOCAL, keys)
    world.network.cut(3, 4)
    world.network.cut(4, 3)
    for node in range(5):
        world.start(node, [0 if node else 1], dials=node > 2)
    world.run(60.0)
    assert world.views() == {tuple((node, 1) for node in range(5))}
    states = {state for process in world.at.values() for held in process.since.values() for state in held}
    assert states == {ALIVE}
    world.crash(4)
    assert world.run(10.0, until=lambda: world.last(DEAD, 4) < world.now)


# who may be a member


def test_only_who_is_admitted_is_heard_whatever_its_id() -> None:
    one = One(nodes=3, **keyed(0, KEYS), admitted=Admit(frozenset({0, 1, 7})))
    one.with_keys = True  # type: ignore[attr-defined]
    effects = one.hear(signed(account(7)), signed(account(2)), by=signed(account(1)), link=1)
    assert [m.node for m in one.member.members] == [0, 1, 7], "more than was planned for may be there"
    assert [(drop.reason, drop.detail) for drop in of(effects, MemberDrop)] == [
        ("stranger", "node 2, by node 1: not admitted to the federation")
    ]
    effects = one.hear(signed(account(7, SUSPECT, by=2)), by=signed(account(2)), link=2, message=Sync())
    assert [drop.reason for drop in of(effects, MemberDrop)] == ["stranger"] and not datagrams(effects)
    assert one.held(7).state == ALIVE
    suspects = [signed(account(node, SUSPECT, by=2)) for node in (7, 0)]
    effects = one.hear(*suspects, by=signed(account(1)), link=1)
    assert one.held(7).state == SUSPECT and one.held(0).refutes == 1, "what a member passes on it answers for"
    assert all(entry.by != 2 for _, datagram in datagrams(effects) for entry in datagram.entries)
    one.do(Admit(frozenset({0, 1, 2, 7})))
    one.hear(by=signed(account(2)), link=2)
    assert [m.node for m in one.member.members] == [0, 1, 2, 7]


def test_who_is_revoked_is_gone_at_once_and_for_good() -> None:
    one = Honest(True)
    one.told(account(3, SUSPECT, by=2), by=1)
    effects = one.do(Admit(frozenset({0, 1, 3})))
    (changed,) = of(effects, Changed)
    gone = next(m for m in changed.members if m.node == 2)
    assert (gone.life, gone.state) == (LAST_LIFE, LEFT)
    means = meaning(changed, Standing(0, 5, lambda: changed.members, 99, "deadline"))
    assert isinstance(means, Members) and (2, LAST_LIFE) in means.over and 2 in means.left
    assert 2 not in {seen.node for seen in means.seen}
    for life in (2, 99, LAST_LIFE):
        effects = one.told(by=account(2, life=life), link=2)
        assert [drop.reason for drop in of(effects, MemberDrop)] == ["stranger"]
        effects = one.told(account(2, life=life), account(2, DEAD, life=life), by=1)
        assert [drop.reason for drop in of(effects, MemberDrop)] == ["stranger"]
    effects = one.passes(60.0)
    assert all(e.node != 2 != e.by for _, datagram in datagrams(effects) for e in (datagram.sender, *datagram.entries))
    assert address(2) not in {to for to, _ in datagrams(effects)}
    assert one.held(2) == gone
    one.do(Admit(frozenset({0, 1, 2, 3})))
    one.told(by=account(2, life=100))
    assert one.held(2) == gone, "its id is not used again"


def test_all_hold_the_same_of_who_was_revoked_whatever_they_knew_of_it() -> None:
    """Also a node that has never heard of it: who was a member is part of what an epoch is."""
    admitted = Admit(frozenset({0, 1, 3}), frozenset({2}))
    knew, fresh = Honest(True), One(**keyed(0, KEYS), admitted=admitted)
    knew.do(admitted)
    fresh.hear(by=signed(account(1)), link=1)
    tables = [{(m.node, m.life, m.state) for m in one.member.members} for one in (knew, fresh)]
    assert tables[0] == tables[1] and (2, LAST_LIFE, LEFT) in tables[0]


def test_who_is_revoked_itself_says_nothing_any_more_and_its_node_ends() -> None:
    one = Honest(True)
    effects = one.do(Admit(frozenset({1, 2})))
    assert of(effects, Expelled) and not of(one.passes(60.0), Say)
    one.do(MemberReborn(one.member.members[0].life))
    one.do(MemberReborn(99))
    assert not of(one.passes(60.0), Say)
    error = meaning(Expelled(), Standing(0, 5, lambda: (), 99, "deadline"))
    assert "revoked" in str(error)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.more), pytest.param(3, marks=pytest.mark.more)])
def test_a_member_revoked_in_the_midst_of_others_is_gone_everywhere(seed: int) -> None:
    """Whatever it goes on saying, and while one of them has not yet heard of it."""
    world = World(seed, FAR._replace(loss=0.1), keys=KEYS)
    world.all(6)
    for place in (0, 1, 2, 3):
        world.tell(place, Admit(frozenset({0, 1, 2, 3, 4})))
    world.run(5.0)
    world.tell(4, Admit(frozenset({0, 1, 2, 3, 4})))
    world.run(10.0)
    for place in range(5):
        assert world.view(place) == tuple((node, 1) for node in range(5)), f"seed {seed}, node {place}"
        assert world.held(place, 5).life == LAST_LIFE, f"seed {seed}, node {place}"
    assert not world.of(Accused), f"seed {seed}"


def test_what_an_earlier_process_knew_is_known_at_once() -> None:
    before = Honest(True)
    before.told(account(3, DEAD), account(4, refutes=2))
    after = One(**keyed(0, KEYS))
    entries = [
        MemberEntry(m.node, m.life, m.refutes, m.state, m.address, 0, m.round, 0.0, -1, m.pause, m.signature)
        for m in before.member.members if m.node
    ]  # fmt: skip
    (changed,) = of(after.do(Known(tuple([*entries, entries[0]._replace(refutes=5)]))), Changed)
    assert [(m.node, m.state, m.refutes) for m in changed.members] == [
        (m.node, m.state, m.refutes) for m in before.member.members
    ]


# the document


def records(world: World) -> list[int]:
    """From which place each document has gone out."""
    sent: list[int] = []

    def log(now: float, place: int, what: Any) -> None:
        if isinstance(what, Say) and isinstance(decode(what.data, CLUSTER, now).message, DocumentCopy):
            sent.append(place)

    world.log = log
    return sent


@pytest.mark.more
@pytest.mark.parametrize("n, loss", [(12, 0.1), (32, 0.1)])
def test_all_come_to_have_what_each_had(n: int, loss: float) -> None:
    """Each begins with a record of its own; then one gets another, and nobody says anything of it when all have it."""
    world = World(1, FAR._replace(loss=loss), LOCAL, KEYS)
    sent = records(world)
    world.documents = {node: b"record of %d" % node for node in range(n)}
    for node in range(n):
        world.start(node, [0 if node else 1])
    alike = world.run(20.0, until=lambda: len({*world.documents.values()}) == 1)
    assert alike and world.documents[0].count(b"record of") == n, f"after {world.now:.1f} s"
    assert len(sent) <= 12 * n, f"{len(sent)} documents for {n} members"
    world.run(10.0)
    del sent[:]
    world.run(30.0)
    assert not sent, "they are the same: there is nothing to tell"
    world.documents[3] += b"\nrecord of a ninth"
    world.tell(3, OwnDocument(world.documents[3]))
    alike = world.run(10.0, until=lambda: len({*world.documents.values()}) == 1)
    assert alike and b"ninth" in world.documents[0]
    world.run(10.0)
    assert len(sent) <= 12 * n, f"{len(sent)} documents for {n} members"


def test_who_was_away_catches_up() -> None:
    world = World(2, FAR, LOCAL, KEYS)
    world.documents = dict.fromkeys(range(4), b"old")
    world.all(4, settle=5.0)
    world.network.partition([[3]])
    world.documents[0] = b"new\nold"
    world.tell(0, OwnDocument(b"new\nold"))
    world.run(30.0)
    assert [world.documents[node] for node in range(4)] == [b"new\nold"] * 3 + [b"old"]
    world.network.heal()
    assert world.run(10.0, until=lambda: world.documents[3] == b"new\nold")


def test_who_is_revoked_is_told_so_as_a_last_word() -> None:
    world = World(2, FAR, LOCAL, KEYS)
    world.documents = dict.fromkeys(range(4), b"founded")
    world.all(4, settle=5.0)
    world.documents[0] = b"founded\nrevoked 3"
    world.tell(0, Admit(frozenset({0, 1, 2})))
    world.run(1.0)
    assert world.documents[3] == b"founded", "it is told what there is to tell"
    world.tell(1, OwnDocument(b"founded\nrevoked 3"))
    world.tell(1, Admit(frozenset({0, 1, 2})))
    world.run(1.0)
    assert world.documents[3] == b"founded\nrevoked 3"


def test_a_document_that_is_none_is_heard_seldom_and_counted() -> None:
    """Node 1 sends garbage as fast as it can, another each time, and then always the same."""
    one = Honest(True, document=b"mine")
    told, reasons, says = 0, Counter[str](), Counter[str]()
    for turn in range(1200):  # a minute
        garbage = b"garbage %d" % (turn if turn < 1000 else 0)
        effects = one.told(message=DocumentCopy(garbage), digest=documents.digest(garbage))
        for tell in of(effects, Told):
            told += 1
            effects += one.do(Unwanted(documents.digest(tell.document), tell.by))
        reasons.update(drop.reason for drop in of(effects, MemberDrop))
        says.update(type(datagram.message).__name__ for _, datagram in datagrams(effects))
        one.passes(0.05)
    assert 1 <= told <= 12, told
    assert reasons["flood"] > 1000 and reasons["document"] >= told, reasons
    assert says["DocumentCopy"] <= 60 / (5 * LAN.interval) + 1, says
    other = one.told(by=2, message=DocumentCopy(b"theirs"), digest=documents.digest(b"theirs"))
    assert of(other, Told) == [Told(b"theirs", 2)], "another's is heard"


def test_two_that_can_not_agree_tell_one_another_ever_less_often() -> None:
    held, theirs = documents.Documents(b"mine", LAN.interval), documents.digest(b"theirs")
    sent = [turn / 5 for turn in range(3000) if held.tells(1, theirs, turn / 5)]  # ten minutes
    assert sent[:3] == [0.0, 2.0, 6.0] and 7 <= len(sent) <= 12, sent
    assert sent[-1] - sent[-2] >= 64.0, sent
    assert held.tells(1, documents.digest(b"others"), 600.0), "it has another now"
    one = Honest(True, document=b"mine")
    effects = one.told(message=DocumentCopy(b"theirs"), digest=bytes(16))
    assert [drop.reason for drop in of(effects, MemberDrop)] == ["document"], "its digest is another's"


def test_what_all_are_told_is_bounded_in_bytes() -> None:
    one = Honest(True, document=bytes(200_000))
    nbytes, start = 0, one.now
    for turn in range(600):
        effects = one.told(by=3 + turn % 60, digest=bytes([turn % 255 + 1]) * 16) + one.passes(0.05)
        nbytes += sum(len(datagram.message.data) for _, datagram in said(effects, DocumentCopy))
    assert 0.5 * (1 << 19) <= nbytes / (one.now - start) <= 1.1 * (1 << 19) + (1 << 20) / 30, nbytes


def test_without_a_document_none_is_told_and_none_is_heard() -> None:
    one = Honest(False)
    effects = one.told(message=DocumentCopy(b"theirs"), digest=documents.digest(b"theirs")) + one.passes(10.0)
    assert not of(effects, Told) and not said(effects, DocumentCopy)
    assert all(not datagram.digest for _, datagram in datagrams(effects))
    assert {to for to, _ in said(one.do(OwnDocument(b"one now")), DocumentCopy)} == {address(1), address(2)}


# real keys


class Real:
    """What real members sign with."""

    def __init__(self, n: int) -> None:
        private = [keys.PrivateKey(hashlib.blake2b(b"%d" % node, digest_size=32).digest()) for node in range(n)]
        public = {node: key.public for node, key in enumerate(private)}
        names = {node: f"site {node}" for node in range(n)}
        self.rings = [keyring.of(key, node, public, names, "federation") for node, key in enumerate(private)]

    def sign(self, node: int) -> Any:
        return self.rings[node].sign

    def verify(self, node: int, statement: bytes, signature: bytes) -> bool:
        return self.rings[0].verify(node, statement, signature)


def test_with_real_keys_members_meet_die_and_return_and_a_forged_life_is_dropped() -> None:
    real = Real(4)
    world = World(1, keys=real).all(4, settle=3.0)
    world.crash(3)
    world.run(6.0)
    assert world.held(0, 3).state == DEAD
    world.start(3, [1], life=9)
    world.run(2.0)
    assert world.views() == {((0, 1), (1, 1), (2, 1), (3, 9))}
    own = world.at[1].member._roster.mine
    forged = MemberEntry(2, 7, 0, ALIVE, address(2), 0, 0, 0.0, -1, 0, bytes(64))
    world.tell(0, Heard(encode(Datagram(CLUSTER, 1, own, [forged], Gossip()), world.now), 1))
    assert world.dropped["signature"] == 1 and world.held(0, 2).life == 1
