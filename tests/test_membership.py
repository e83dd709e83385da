"""One member, message by message: what it says and holds after what it hears; and the small parts it is made of."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import msgpack
import pytest
from members import CLUSTER, FAR, World, address

from p2pfl.errors import ConfigError, RemoteError
from p2pfl.protocol.membership import wire
from p2pfl.protocol.membership.events import (
    Accused,
    Admit,
    Changed,
    Gone,
    Heard,
    MemberDied,
    MemberDrop,
    MemberLeave,
    MemberReborn,
    MemberStart,
    MemberTick,
    Progress,
    Say,
    Superseded,
)
from p2pfl.protocol.membership.membership import Membership
from p2pfl.protocol.membership.probe import Health, Probe, RoundRobin, Trips
from p2pfl.protocol.membership.roster import LIFE_CAP, LIFE_LEAP, REFUTES_LEAP
from p2pfl.protocol.membership.seeds import Seed, Seeds
from p2pfl.protocol.membership.spread import Spread, limit
from p2pfl.protocol.membership.table import ALIVE, DEAD, LEFT, SUSPECT, Me, Member, MemberEntry
from p2pfl.protocol.membership.timing import LAN, LOCAL, PROBE_TIMINGS, WAN, check
from p2pfl.protocol.membership.wire import (
    DOCUMENT_CAP,
    ENTRY_CAP,
    MESSAGE_CAP,
    Ack,
    Ask,
    Datagram,
    DirectPing,
    DocumentCopy,
    Gossip,
    Nack,
    Sync,
    Synced,
    decode,
    encode,
)

TRANSCRIPT = Path(__file__).parent / "transcripts" / "membership.txt"


def account(node: int, state: str = ALIVE, life: int = 1, refutes: int = 0, **more: Any) -> MemberEntry:
    return MemberEntry(node, life, refutes, state, address(node), 0, 0, 0.0, -1)._replace(**more)


class One:
    """Member 0, and what it hears."""

    def __init__(
        self, *known: MemberEntry, seeds: tuple[str, ...] = (), life: int = 1, nodes: int = ENTRY_CAP + 100, **more: Any
    ) -> None:
        self.now = 0.0
        places = [Seed(each) for each in seeds]
        self.member = Membership(Me(0, life, address(0), nodes), CLUSTER, places, LAN, 0, **more)
        self.do(MemberStart())
        for entry in known:
            self.hear(entry)

    def do(self, event: Any, after: float = 0.0) -> list[Any]:
        self.now += after
        return self.member.handle(event, self.now)

    def hear(
        self,
        *entries: MemberEntry,
        by: int | MemberEntry = 1,
        message: Any = Gossip(),  # noqa: B008
        seq: int = 1,
        link: int | None = None,
        digest: bytes = b"",
    ) -> list[Any]:
        sender = by if isinstance(by, MemberEntry) else account(by)
        return self.do(Heard(encode(Datagram(CLUSTER, seq, sender, entries, message, digest), self.now), link))

    def insists(self, *entries: MemberEntry) -> list[Any]:
        """What comes of it when node 1 says something, and the same again when it is asked."""
        effects = self.hear(*entries)
        for to, datagram in said(effects, DirectPing):
            if to == address(1):
                effects = effects + self.hear(*entries, message=Ack(), seq=datagram.seq)
        self.now += LAN.ack_min
        return effects

    def held(self, node: int) -> Member:
        return next(m for m in self.member.members if m.node == node)

    def passes(self, seconds: float) -> list[Any]:
        end, found = self.now + seconds, []
        while self.member.wake <= end:
            found += self.do(MemberTick(), max(0.0, self.member.wake - self.now))
        self.now = end
        return found


def datagrams(effects: list[Any]) -> list[tuple[str, Datagram]]:
    return [(e.address, decode(e.data, CLUSTER, 0.0)) for e in effects if isinstance(e, Say)]


def said(effects: list[Any], kind: type) -> list[tuple[str, Datagram]]:
    return [(to, datagram) for to, datagram in datagrams(effects) if isinstance(datagram.message, kind)]


def of(effects: list[Any], kind: type) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


# what is heard of others


@pytest.mark.parametrize(
    "held, heard, wins",
    [
        (account(2), account(2, SUSPECT), True),
        (account(2, refutes=1), account(2, SUSPECT), False),
        (account(2, SUSPECT), account(2), False),
        (account(2, SUSPECT), account(2, refutes=1), True),
        (account(2, SUSPECT, refutes=1), account(2, SUSPECT), False),
        (account(2), account(2, DEAD), True),
        (account(2, refutes=9), account(2, DEAD), True),
        (account(2, DEAD), account(2, refutes=9), False),
        (account(2, DEAD), account(2, SUSPECT, refutes=9), False),
        (account(2, DEAD), account(2, LEFT), True),
        (account(2, LEFT), account(2, DEAD, refutes=9), False),
        (account(2, DEAD), account(2, life=2), True),
        (account(2, LEFT), account(2, life=2), True),
        (account(2, life=2), account(2, LEFT, refutes=9), False),
        (account(2, SUSPECT, life=2), account(2, life=1, refutes=9), False),
        (account(2), account(2, life=2, address=address(9)), True),
    ],
    ids=lambda value: f"{value.state}-{value.life}-{value.refutes}" if isinstance(value, MemberEntry) else str(value),
)
def test_whose_account_counts(held: MemberEntry, heard: MemberEntry, wins: bool) -> None:
    one = One(held)
    ends = wins and held.state in (ALIVE, SUSPECT) and (heard.life > held.life or heard.state in (DEAD, LEFT))
    effects = one.hear(heard)
    if ends:  # what ends a life that is held as there is believed when that life does not answer
        assert not any(isinstance(effect, Changed) for effect in effects)
        effects = one.passes(LAN.interval)
    assert one.held(2)._replace(silent=False) == (heard if wins else held).member
    assert any(isinstance(effect, Changed) for effect in effects) == wins


def test_whoever_says_that_a_dead_one_lives_hears_of_its_death() -> None:
    one = One(account(1), account(2, DEAD))
    one.passes(1)
    told = said(one.hear(account(2, refutes=3)), Gossip)
    assert (address(1), account(2, DEAD)._replace(at=0.0)) in [
        (to, e._replace(at=0.0)) for to, datagram in told for e in datagram.entries
    ]
    again = said(one.hear(account(2, refutes=3)), Gossip)
    assert not any(e.node == 2 for _, datagram in again for e in datagram.entries), "not to every message of a storm"


def test_a_dead_one_that_speaks_is_told_with_the_answer() -> None:
    one = One(account(1), account(2, DEAD))
    one.passes(1)
    ((to, datagram),) = said(one.hear(by=2, message=DirectPing(0), seq=7), Ack)
    assert to == address(2) and datagram.seq == 7
    assert next((e.node, e.state) for e in datagram.entries) == (2, DEAD)


def test_a_suspect_that_speaks_is_told_so() -> None:
    one = One(account(1), account(2, SUSPECT, refutes=4))
    ((_, datagram),) = said(one.hear(by=account(2, refutes=4), message=DirectPing(0)), Ack)
    assert (2, SUSPECT, 4) in [(e.node, e.state, e.refutes) for e in datagram.entries]
    one.hear(by=account(2, refutes=5))
    assert one.held(2).state == ALIVE


@pytest.mark.parametrize("state, life", [(DEAD, 1), (LEFT, 1), (DEAD, 5), (LEFT, 5), (ALIVE, 5), (SUSPECT, 5)])
@pytest.mark.parametrize("held", [ALIVE, SUSPECT])
def test_who_is_said_to_be_gone_is_asked_and_believed(held: str, state: str, life: int) -> None:
    one = One(account(1), account(2, held))
    effects = one.hear(account(2, state, life=life, by=1))
    (to, question), *_ = said(effects + one.passes(LAN.interval / 2), DirectPing)
    assert (to, question.message) == (address(2), DirectPing(2)) and one.held(2).state == held
    effects = one.hear(by=2, message=Ack(), seq=question.seq)
    assert [drop.reason for drop in of(effects, MemberDrop)] == ["denied"]
    one.passes(LAN.interval)
    assert (one.held(2).state, one.held(2).life) == (held, 1), "it is there, and no new life is"


@pytest.mark.parametrize("own", [account(2, LEFT), account(2, life=5), account(2, life=7)])
def test_what_it_says_of_itself_when_it_is_asked_is_believed_at_once(own: MemberEntry) -> None:
    one = One(account(1), account(2))
    effects = one.hear(own._replace(life=min(own.life, 5)), by=own)
    (question, *_) = [datagram for to, datagram in said(effects, DirectPing) if to == address(2)]
    assert one.held(2) == account(2).member, "anybody can write a letter in its name"
    one.hear(by=own, message=Ack(), seq=question.seq)
    assert one.held(2) == own.member


def test_a_greater_life_elsewhere_is_asked_there_too_and_wins_if_it_answers() -> None:
    for there in (True, False):
        one, other = One(account(1), account(2)), account(2, life=5, address=address(9))
        asked = {to: datagram.seq for to, datagram in said(one.hear(other), DirectPing)}
        assert set(asked) == {address(2), address(9)}
        one.hear(by=2, message=Ack(), seq=asked[address(2)])
        assert one.held(2).life == 1, "the old one is there; the new one may be, too"
        if there:
            one.hear(by=other, message=Ack(), seq=asked[address(9)])
        one.passes(LAN.interval)
        assert (one.held(2).life, one.held(2).address) == ((5, address(9)) if there else (1, address(2)))


def test_of_who_has_just_answered_no_death_is_believed_and_none_asked() -> None:
    one = One(account(1), account(2))
    ((_, question),) = said(one.hear(account(2, DEAD)), DirectPing)
    one.hear(by=2, message=Ack(), seq=question.seq)
    effects = one.hear(account(2, DEAD))
    assert not said(effects, DirectPing) and [drop.reason for drop in of(effects, MemberDrop)] == ["denied"]


def test_a_suspicion_is_asked_about_at_once_and_is_talk_until_then() -> None:
    one = One(account(1), account(2))
    effects = one.hear(account(2, SUSPECT, by=1))
    ((to, question),) = said(effects, DirectPing)
    assert to == address(2) and (2, SUSPECT) in [(e.node, e.state) for e in question.entries]
    assert (one.held(2).state, one.held(2).silent) == (SUSPECT, False)
    effects = one.passes(LAN.interval)
    assert one.held(2).silent and of(effects, Changed)
    assert not said(one.hear(account(2, DEAD, by=1)), DirectPing) and one.held(2).state == DEAD, "it has been asked"
    one = One(account(1), account(2, SUSPECT))
    one.passes(LAN.interval)
    ((_, datagram),) = said(one.hear(by=account(2), message=DirectPing(0)), Ack)
    one.hear(by=account(2, refutes=1), message=Ack(), seq=datagram.seq)
    assert (one.held(2).state, one.held(2).silent) == (ALIVE, False)


def test_lives_of_who_is_not_there_are_believed_three_at_once_and_then_if_they_answer() -> None:
    one = One(account(1), account(2, DEAD))
    for life in range(2, 12):
        one.hear(account(2, DEAD, life=life))
    assert one.held(2).life == 4
    assert not said(one.hear(account(2, DEAD, life=50)), DirectPing)
    ((to, question),) = said(one.hear(account(2, life=50)), DirectPing)
    assert to == address(2) and one.held(2).life == 4
    one.hear(by=account(2, life=50), message=Ack(), seq=question.seq)
    assert (one.held(2).state, one.held(2).life) == (ALIVE, 50)


def test_a_life_stays_where_it_is() -> None:
    one = One(account(1), account(2))
    one.hear(account(2, refutes=3, address=address(9)))
    assert (one.held(2).refutes, one.held(2).address) == (3, address(2))


def test_ids_from_outside_the_federation_are_not_heard_and_the_rest_of_a_letter_is() -> None:
    one = One(nodes=4)
    effects = one.hear(
        account(2), account(9), account(3, SUSPECT, by=7), account(1 << 30, address=address(9)), account(2, refutes=2)
    )
    ((drop,), names) = of(effects, MemberDrop), [m.node for m in one.member.members]
    assert (drop.reason, names) == ("stranger", [0, 1, 2]) and one.held(2).refutes == 2
    assert drop.detail == "node 7 and 2 others, by node 1: there are nodes 0 to 3"
    for sender in (account(4), account(2, SUSPECT, refutes=8, by=4)):
        effects = one.hear(account(3), by=sender, message=Sync())
        assert len(of(effects, MemberDrop)) == 1 and not said(effects, Synced), "nobody there to answer"
    assert [m.node for m in one.member.members] == [0, 1, 2, 3] and one.held(2).refutes == 2
    assert not said(one.hear(by=1, message=Ask(4, address(4), 0.1)), DirectPing)
    told = [e for _, datagram in datagrams(one.passes(30)) for e in datagram.entries]
    assert told and all(e.node < 4 and e.by < 4 for e in told)


def test_no_letters_in_any_order_break_a_member_or_end_its_life() -> None:
    """Accounts of anybody, with the least and the greatest of all numbers, some of them as answers to its questions."""
    for seed in range(25):
        draw = random.Random(seed)
        one = One(account(1), account(2), nodes=5)
        questions, last = [1], 1
        for _ in range(150):
            entries = [
                account(
                    draw.randrange(7), draw.choice((ALIVE, SUSPECT, DEAD, LEFT)), by=draw.randrange(-1, 6),
                    life=draw.choice((1, 2, one.held(0).life, one.held(0).life + 1, LIFE_CAP - 1, (1 << 63) - 1)),
                    refutes=draw.choice((0, 1, wire.REFUTES_CAP - 1)), said=draw.choice((0, 5, wire.REFUTES_CAP - 1)),
                    at=one.now + draw.uniform(0, 9), address=address(draw.randrange(9)),
                )
                for _ in range(draw.randrange(1, 5))
            ]  # fmt: skip
            sender, *rest = [entry._replace(at=min(entry.at, one.now)) for entry in entries]
            message = draw.choice((Ack(), Synced(), Gossip(), DirectPing(0)))
            effects = one.hear(*rest, by=sender, message=message, seq=draw.choice(questions))
            effects += one.passes(draw.choice((0.0, 0.05, 0.5, 9.0)))
            questions = [1, *(datagram.seq for _, datagram in datagrams(effects))]
            for accused in of(effects, Accused):
                one.do(MemberReborn(draw.choice((accused.life + 1, max(last, accused.life) + 1, last))))
            if of(effects, Superseded):
                one.do(MemberReborn(one.held(0).life + 1))
            mine = one.held(0)
            assert mine.state == ALIVE and mine.life >= last, f"seed {seed}"
            last = mine.life


def test_rounds_and_pauses_are_taken_from_the_latest_word() -> None:
    one = One(account(1))
    one.hear(by=account(1, said=2, round=7))
    one.hear(account(1, said=1, round=6), by=2)
    assert one.held(1).round == 7
    one.hear(by=account(1, said=3, round=8, at=one.now + 5.0))
    assert one.held(1).busy == pytest.approx(5.0)
    one.hear(account(1, said=3, round=8, at=one.now + 9.0), by=2)
    assert one.held(1).busy == pytest.approx(5.0), "of one word the first account: hops do not prolong a pause"
    one.hear(account(1, DEAD))
    one.passes(LAN.interval)
    assert one.held(1) == account(1, DEAD)._replace(round=8).member
    one.hear(account(1, LEFT, said=4, round=9))
    last = account(1, LEFT)._replace(round=9).member._replace(own_at=one.now)
    assert one.held(1) == last, "a last word counts as well"


def test_a_pause_is_believed_up_to_a_cap_also_of_a_stranger() -> None:
    one = One(account(1), account(2, at=1e6))
    one.hear(by=account(1, said=1, at=1e6))
    one.hear(account(2, life=2, at=1e6))
    assert [m.busy for m in one.member.members[1:]] == [LAN.busy_cap] * 2


def test_a_round_is_told_to_the_owner_once_a_period_at_most() -> None:
    one = One(account(1))
    changes = [e for r in range(1, 20) for e in one.hear(by=account(1, said=r, round=r)) if isinstance(e, Changed)]
    assert changes == []
    told = [e.members[1].round for e in one.passes(1.5 * LAN.interval) if isinstance(e, Changed)]
    assert told[0] == 19 and len(told) <= 2, told


def test_a_progress_rides_on_what_is_said_anyway() -> None:
    one = One(account(1))
    one.passes(3)
    assert datagrams(one.do(Progress(12))) == []
    ((_, datagram),) = said(one.hear(by=1, message=DirectPing(0)), Ack)
    assert datagram.sender.round == 12


@pytest.mark.parametrize("known", [account(0, said=40, round=9), account(0, said=1, round=9)])
def test_what_an_earlier_process_of_this_life_has_said_of_its_round_counts_no_longer(known: MemberEntry) -> None:
    one = One(account(1))
    one.do(Progress(12))  # the first word of this process
    one.hear(known, by=1)
    ((_, datagram),) = said(one.hear(by=1, message=DirectPing(0)), Ack)
    assert (datagram.sender.said, datagram.sender.round) == (known.said + 1, 12)
    one.hear(account(0, said=(1 << 53) - 1, round=9), by=1)  # which is no count: nothing could be said after it
    ((_, datagram),) = said(one.hear(by=1, message=DirectPing(0)), Ack)
    assert datagram.sender.said == known.said + 1


@pytest.mark.parametrize("count", [(1 << 52) - 1, 1 << 52, (1 << 53) - 3, (1 << 53) - 1])
def test_no_count_of_words_that_others_make_up_silences_a_member(count: int) -> None:
    """Neither can it say nothing any more that others read, nor do they read nothing of it any more."""
    one = One(account(1), account(2))
    for _ in range(3):
        one.hear(account(0, said=count, round=9), by=1)
        one.do(Progress(one.held(0).round + 1))
    ((_, datagram),) = said(one.hear(by=1, message=DirectPing(0)), Ack)
    assert datagram.sender.said <= (1 << 52) + 5 and datagram.sender.round == 3
    one.hear(account(2, said=count, round=900), by=1)
    one.hear(by=account(2, said=count + 1 if count < 1 << 52 else 5, round=12))
    assert one.held(2).round == (900 if count == (1 << 52) - 1 else 12) and one.held(2).own == 12


def test_the_dead_of_long_ago_are_forgotten_and_not_learnt_again() -> None:
    one = One(account(1))
    long_ago = account(2, DEAD, at=one.now - LAN.forget_after + 100)
    one.hear(long_ago, account(3, DEAD, at=one.now - LAN.forget_after - 1))
    assert [m.node for m in one.member.members] == [0, 1, 2]
    one.passes(200)
    assert 2 not in [m.node for m in one.member.members]
    one.hear(long_ago)
    assert 2 not in [m.node for m in one.member.members]


def test_so_many_members_can_be_known_and_no_more() -> None:
    one = One()
    for start in range(1, ENTRY_CAP + 50, 50):
        effects = one.hear(*(account(node) for node in range(start, start + 50)))
    assert len(one.member.members) == ENTRY_CAP
    assert {e.reason for e in effects if isinstance(e, MemberDrop)} == {"full"}
    assert max(len(e.data) for e in one.passes(LAN.sync_every * 2) if isinstance(e, Say)) < MESSAGE_CAP


# what is heard of itself


def test_a_suspicion_of_itself_is_refuted_and_counts_against_its_health() -> None:
    one = One(account(1))
    effects = one.hear(account(0, SUSPECT, refutes=3, by=1))
    assert one.held(0).refutes == 4 and one.member.score == 1
    assert all(datagram.sender.refutes == 4 for _, datagram in datagrams(effects))
    one.hear(account(0, SUSPECT, refutes=2, by=1))
    assert one.held(0).refutes == 4, "an older one is refuted already"


def test_a_death_of_itself_is_told_to_the_owner_once_and_ends_with_a_greater_life() -> None:
    one = One(account(1))
    effects = one.insists(account(0, DEAD, by=5))
    assert of(effects, Accused) == [Accused(1, 5)]
    assert one.held(0).state == ALIVE, "it goes on with those who have not believed it"
    assert not of(one.insists(account(0, DEAD, by=4)), Accused)
    told = datagrams(one.do(MemberReborn(2)))
    assert told and all((datagram.sender.life, datagram.sender.state) == (2, ALIVE) for _, datagram in told)
    assert one.held(0) == account(0, life=2).member
    assert of(one.insists(account(0, DEAD, life=2, by=4)), Accused) == [Accused(2, 4)]


@pytest.mark.parametrize("entry", [account(0, DEAD), account(0, LEFT), account(0, DEAD, life=99), account(0, life=99)])
def test_who_accuses_it_is_asked_and_counts_when_it_says_so_again(entry: MemberEntry) -> None:
    one = One(account(1))
    effects = one.hear(entry)
    ((to, question),) = said(effects, DirectPing)
    assert to == address(1) and not of(effects, Accused)
    assert not of(one.hear(by=1, message=Ack(), seq=question.seq), Accused), "whoever wrote that letter, it was not 1"
    assert not of(one.hear(entry, message=Ack(), seq=question.seq + 1), Accused), "not an answer"
    assert of(one.hear(entry, message=Ack(), seq=question.seq), Accused) == [Accused(entry.life, -1)]


def test_three_lives_at_once_and_then_one_at_a_time_whatever_is_accused() -> None:
    one = One(account(1))
    lives, refused = [], 0
    for turn in range(120):
        mine = one.held(0)
        effects = one.insists(account(0, DEAD, life=mine.life + turn % 3, by=2))
        refused += [drop.reason for drop in of(effects, MemberDrop)].count("lives")
        for accused in of(effects, Accused):
            lives.append(one.now)
            one.do(MemberReborn(accused.life + 1))
            assert one.held(0).life == accused.life + 1
        assert one.held(0).state == ALIVE
        one.passes(0.5)
    assert lives[2] < 2.0 and len(lives) in (5, 6), f"in a minute: {lives}"
    assert refused == 120 - len(lives)


def test_a_life_that_is_not_greater_changes_nothing_and_raises_nothing() -> None:
    one = One(account(1), life=7)
    for life in (7, 3):
        assert [drop.reason for drop in of(one.do(MemberReborn(life)), MemberDrop)] == ["life"]
        assert one.held(0) == account(0, life=7).member
    one.do(MemberReborn(8))
    assert one.held(0).life == 8


def test_what_no_clock_explains_is_dropped() -> None:
    one = One(account(1), account(2))
    for entry in (account(2, DEAD, life=LIFE_CAP), account(3, life=LIFE_CAP), account(2, refutes=REFUTES_LEAP)):
        drops = of(one.hear(entry), MemberDrop)
        assert [drop.reason for drop in drops] == ["refutes" if entry.refutes else "life"], entry
    one.passes(LAN.interval)
    assert [m.node for m in one.member.members] == [0, 1, 2] and one.held(2).life == 1
    assert [drop.reason for drop in of(one.insists(account(0, DEAD, life=2 + LIFE_LEAP)), MemberDrop)] == ["life"]
    one.hear(account(0, SUSPECT, refutes=REFUTES_LEAP))
    assert one.held(0).refutes == 0
    assert LIFE_LEAP >= 2 * LIFE_CAP, "what others can be made to believe is within reach of the first life"
    assert of(one.insists(account(0, DEAD, life=2 * LIFE_CAP - 1)), Accused) == [Accused(2 * LIFE_CAP - 1, -1)]


def test_what_it_has_not_said_of_its_round_it_says_anew() -> None:
    one = One(account(1))
    one.do(Progress(3))
    one.hear(account(0, said=90, round=100_000, at=one.now + 500.0))
    ((_, datagram),) = said(one.hear(by=1, message=DirectPing(0)), Ack)
    assert (datagram.sender.said, datagram.sender.round, datagram.sender.at) == (91, 3, 0.0)


def test_suspicions_of_itself_make_it_ill_by_one_in_a_while() -> None:
    one = One(account(1))
    for turn in range(8):
        one.hear(account(0, SUSPECT, refutes=turn, by=1))
    assert one.member.score == 1 and one.held(0).refutes == 8


def test_a_greater_life_of_its_own_elsewhere_silences_it_if_it_is_there() -> None:
    one = One(account(1))
    rival = account(0, life=2, address=address(9))
    effects = one.hear(rival)
    ((to, question),) = said(effects, DirectPing)
    assert to == address(9) and not of(effects, Superseded)
    effects = one.hear(by=rival, message=Ack(), seq=question.seq)
    assert of(effects, Superseded) == [Superseded(2, address(9))]
    assert one.member.wake == math.inf
    assert one.hear(by=1, message=DirectPing(0)) == [] and one.passes(10) == []
    assert datagrams(one.do(MemberReborn(3))), "its owner knows better"
    assert said(one.hear(by=1, message=DirectPing(0)), Ack)


def test_a_greater_life_of_its_own_that_is_not_there_is_outdone_where_it_is_believed() -> None:
    one, rival = One(account(1)), account(0, life=500, address=address(9))
    one.hear(rival)
    asked = [(to, datagram.seq) for to, datagram in said(one.passes(LAN.interval * 1.01), DirectPing)]
    question = [seq for to, seq in asked if to == address(1)][-1]
    assert {to for to, _ in asked} == {address(1), address(9)}, "there, and who says so"
    one.hear(rival, message=Ack(), seq=question)
    assert of(one.passes(LAN.interval * 1.01), Accused) == [Accused(500, -1)]
    assert not of(one.do(MemberReborn(501)), Superseded) and one.held(0).life == 501


def test_it_is_not_its_own_peer() -> None:
    one = One(seeds=("tcp://other.name:0", address(1)))
    ((_, mine),) = [x for x in said(one.do(MemberTick(), 0.3), Sync) if x[0].startswith("tcp://other")] or [
        (None, None)
    ]
    asked = [datagram.seq for to, datagram in said(one.passes(2), Sync) if to == "tcp://other.name:0"]
    assert mine or asked
    for seq in asked:
        assert one.hear(by=account(0), message=Sync(), seq=seq) == []
    assert not [to for to, _ in said(one.passes(30), Sync) if to == "tcp://other.name:0"]
    assert [m.node for m in one.member.members] == [0]


# probing


def test_a_silent_member_is_asked_for_by_others_then_suspect_then_dead() -> None:
    one = One(*(account(n) for n in (1, 2, 3, 4, 5)))
    target = None
    while target is None:
        for _, datagram in said(one.do(MemberTick(), max(0.0, one.member.wake - one.now)), DirectPing):
            target, began, seq = datagram.message.target, one.now, datagram.seq
    asks = said(one.passes(LAN.ack_max + 0.001), Ask)
    assert len({to for to, _ in asks}) == LAN.ask and address(target) not in {to for to, _ in asks}
    assert all(
        a.message == Ask(target, address(target), pytest.approx(0.8 * (LAN.interval - LAN.ack_max))) for _, a in asks
    )
    for to, datagram in asks:
        assert datagram.seq == seq
        one.hear(by=int(to.rsplit(":", 1)[1]), message=Nack(), seq=seq)
    one.passes(began + LAN.interval + 0.001 - one.now)
    assert one.held(target).state == SUSPECT and one.member.score == 0, "all helped: this node is well"


def test_a_suspect_hears_so_with_every_ping() -> None:
    one = One(account(1), account(2, SUSPECT))
    pings = [datagram for to, datagram in said(one.passes(1.0), DirectPing) if to == address(2)]
    assert len(pings) > 1 and all((2, SUSPECT) in [(e.node, e.state) for e in p.entries] for p in pings)


def test_the_dead_are_asked_again_until_they_are_forgotten_and_the_left_are_not() -> None:
    one = One(account(2, DEAD), account(3, LEFT), account(1, DEAD))
    greeted = {to for to, _ in said(one.passes(LAN.retry_dead * 8), Sync)}
    assert greeted == {address(1), address(2)}
    one.now += LAN.forget_after - LAN.retry_dead * 10
    one.passes(LAN.retry_dead * 20)
    assert said(one.passes(LAN.retry_dead * 8), Sync) == [] and len(one.member.members) == 1


def test_an_answer_through_another_is_an_answer() -> None:
    one = One(account(1), account(2))
    pings = said(one.passes(LAN.interval), DirectPing)
    target, seq = pings[0][1].message.target, pings[0][1].seq
    one.passes(LAN.ack_max)
    one.hear(by=9, message=Ack(), seq=seq)
    one.hear(by=3 - target, message=Ack(), seq=seq)
    one.passes(LAN.interval / 2)
    assert one.held(target).state == ALIVE


def test_it_pings_for_others_and_says_so_when_there_is_no_answer() -> None:
    one = One(account(1), account(2, SUSPECT))
    ((to, datagram),) = said(one.hear(by=1, message=Ask(2, address(2), 0.1), seq=40), DirectPing)
    assert to == address(2) and datagram.message == DirectPing(2) and datagram.entries[0].state == SUSPECT
    ((to, answer),) = said(one.hear(by=2, message=Ack(), seq=datagram.seq), Ack)
    assert (to, answer.seq, answer.entries[0].node) == (address(1), 40, 2)
    one.hear(by=1, message=Ask(2, address(2), 0.1), seq=41)
    ((to, answer),) = said(one.passes(0.11), Nack)
    assert (to, answer.seq) == (address(1), 41)


def test_a_ping_for_somebody_else_is_not_answered() -> None:
    one = One(account(1))
    effects = one.hear(by=1, message=DirectPing(5))
    assert not said(effects, Ack) and [e.reason for e in effects if isinstance(e, MemberDrop)] == ["target"]


def test_a_stall_of_its_own_is_nobodys_silence() -> None:
    punctual, stalled = [One(*(account(n) for n in (1, 2, 3))) for _ in range(2)]
    for one, stall in ((punctual, 0.0), (stalled, 60.0)):
        one.passes(1.0)
        one.do(MemberTick(), one.member.wake - one.now + stall)
        one.passes(0.5)
    assert punctual.member.members == stalled.member.members
    assert punctual.member.wake == pytest.approx(stalled.member.wake - 60.0)


def test_leaving_alone_is_quick_and_with_others_waits_for_receipts_but_not_for_ever() -> None:
    assert Gone() in One().do(MemberLeave())
    one = One(account(1))
    one.do(MemberLeave())
    assert Gone() in one.passes(LAN.leave + 0.1)
    assert one.held(0).state == LEFT and one.do(MemberTick()) == []
    one = One(account(1))
    one.do(MemberLeave())
    ((_, ping),) = said(one.passes(LAN.gossip_every * 1.01), DirectPing) or said(one.do(MemberLeave()), DirectPing)
    assert ping.sender.state == LEFT
    one.hear(by=1, message=Ack(), seq=ping.seq)
    assert Gone() in one.passes(LAN.gossip_every * 1.01)


# a last word


def test_who_has_died_says_so_to_all_until_all_have_asked_and_for_a_period_at_most() -> None:
    assert Gone() in One().do(MemberDied())
    one = One(*(account(n) for n in (1, 2, 3, 4, 5)))
    pings = said(one.do(MemberDied()), DirectPing)
    assert {to for to, _ in pings} == {address(n) for n in (1, 2, 3, 4, 5)}
    assert {(ping.sender.life, ping.sender.state) for _, ping in pings} == {(1, DEAD)}
    for node in (1, 2, 3, 4, 5):
        effects = one.hear(by=node, message=DirectPing(0), seq=node)
        ((to, answer),) = said(effects, Ack)
        assert (to, answer.seq, answer.sender.state) == (address(node), node, DEAD)
        assert (Gone() in effects) == (node == 5)
    assert one.hear(by=5, message=DirectPing(0)) == [] and one.member.wake == math.inf
    one = One(account(1), account(2))
    one.do(MemberDied())
    assert Gone() not in one.hear(by=1, message=DirectPing(0)) and Gone() in one.passes(LAN.interval + 0.001)


def test_who_has_left_or_is_no_member_any_more_has_no_last_word() -> None:
    one = One(account(1))
    one.do(MemberLeave())
    assert one.do(MemberDied()) == [] and one.held(0).state == LEFT
    assert {d.sender.state for _, d in datagrams(one.passes(LAN.leave + 0.1))} == {LEFT}
    for end in (Admit(frozenset({1})), MemberLeave()):  # the latter: nobody is there to be told
        one = One()
        one.do(end)
        assert one.do(MemberDied()) == [] and one.member.wake == math.inf


# the parts


def test_laps_visit_everybody_once_a_lap() -> None:
    order = RoundRobin(random.Random(1))
    assert order.next([]) is None
    first, second = [[order.next(range(8)) for _ in range(8)] for _ in range(2)]
    assert sorted(first) == sorted(second) == list(range(8)) and first != second
    order.next(range(8))
    order.add(99)
    assert 99 in [order.next([*range(8), 99]) for _ in range(8)]
    assert order.next([5]) == 5


def test_health_counts_from_zero_to_seven() -> None:
    health = Health()
    for points, score in [(-1, 0), (3, 3), (-1, 2), (9, 7), (0, 7), (-9, 0)]:
        health.add(points)
        assert (health.score, health.stretch) == (score, score + 1)
    probe = Probe(1, 1, 0.0)
    assert (probe.against(1), probe.against(2)) == (0, 1)
    probe.asked, probe.nacks = {2, 3, 4}, {3}
    assert probe.against(4) == 2


def test_an_answer_may_take_three_times_what_almost_all_took() -> None:
    trips = Trips()
    assert trips.timeout(LAN) == LAN.ack_max
    for _ in range(8):
        trips.add(0.05)
    assert trips.timeout(LAN) == pytest.approx(0.15)
    for _ in range(128):
        trips.add(0.001)
    assert trips.timeout(LAN) == LAN.ack_min
    for _ in range(3):
        trips.add(1.0)
    assert trips.timeout(LAN) == LAN.ack_max


def test_news_are_told_a_bounded_number_of_times_and_the_newest_first() -> None:
    assert [limit(4, n) for n in (1, 9, 10, 99, 100)] == [4, 4, 8, 8, 12]
    spread = Spread()
    for node in range(5):
        spread.put(account(node))
    assert [e.node for e in spread.take(2, 3)] == [4, 3, 2]
    assert [e.node for e in spread.take(2, 3)] == [1, 0, 4]
    spread.put(account(3, SUSPECT))
    assert spread.take(2, 1) == [account(3, SUSPECT)]
    assert sorted(e.node for _ in range(9) for e in spread.take(2, 9)) == [0, 1, 2, 3]
    assert len(spread) == 0


def test_seeds_wait_until_a_member_lives_there() -> None:
    seeds = Seeds([Seed(address(0)), Seed(address(1)), Seed("tcp://b:2", 7)], address(0))
    assert seeds.unanswered({}) == [Seed(address(1)), Seed("tcp://b:2", 7)]
    seeds.ask(7, "tcp://b:2")
    seeds.answered(7, 2)
    entries = {1: account(1), 2: account(2)}
    assert seeds.unanswered(entries) == []
    assert seeds.unanswered(entries | {2: account(2, DEAD)}) == [Seed("tcp://b:2", 7)]
    assert seeds.unanswered({1: account(1, DEAD), 2: account(2)}) == [Seed(address(1))]
    seeds.keep([1])
    assert seeds.unanswered({}) == [Seed(address(1))], "whoever was at the other one is a member no more"


def test_the_presets_can_work_and_what_can_not_is_refused() -> None:
    assert PROBE_TIMINGS == {"local": LOCAL, "lan": LAN, "wan": WAN}
    assert [check(timing) for timing in PROBE_TIMINGS.values()] == [*PROBE_TIMINGS.values()]
    for name, value in [("ack_max", 0.3), ("ack_min", 0.3), ("interval", 0.0), ("suspicion", 0.5), ("leave", math.nan)]:
        with pytest.raises(ConfigError, match=f"{name if name != 'ack_min' else 'ack_max'}="):
            check(LAN._replace(**{name: value}))
    for name, made in [
        ("cluster", lambda: Membership(Me(0, 1, address(0)), "", [], LAN, 0)),
        ("address", lambda: Membership(Me(0, 1, "somewhere"), CLUSTER, [], LAN, 0)),
        ("address", lambda: Membership(Me(0, 1, address(0)), CLUSTER, [Seed("tcp://a b:1")], LAN, 0)),
        ("address", lambda: Membership(Me(0, 1, "dials://1"), CLUSTER, [], LAN, 0)),
        ("node", lambda: Membership(Me(0, 1, address(0)), CLUSTER, [], LAN, 0, admitted=Admit(frozenset({1, 2})))),
        ("document", lambda: Membership(Me(0, 1, address(0)), CLUSTER, [], LAN, 0, document=bytes(DOCUMENT_CAP + 1))),
    ]:
        with pytest.raises(ConfigError, match=f"{name}="):
            made()


# the wire


def test_letters_come_back_as_they_went() -> None:
    entries = [
        account(3, SUSPECT, life=1 << 62, refutes=5, by=2),
        account(4, DEAD, at=90.0, by=7),
        account(5, LEFT, at=95.0),
        account(6, said=3, round=9, at=130.0),
    ]
    messages = (
        DirectPing(3), Ack(), Ask(4, address(4), 0.25), Nack(), Gossip(), Sync(), Synced(), DocumentCopy(b"all"),
        Ask(5, "dials://5", 0.25),
    )  # fmt: skip
    for message, digest in itertools.product(messages, (b"", bytes(16))):
        datagram = Datagram(CLUSTER, 12, account(1, round=4, said=1), entries, message, digest)
        assert decode(encode(datagram, 100.0), CLUSTER, 100.0) == datagram
        signed = datagram._replace(entries=[entry._replace(pause=7, signature=bytes(64)) for entry in entries])
        assert decode(encode(signed, 100.0), CLUSTER, 100.0) == signed
        later = decode(encode(datagram, 100.0), CLUSTER, 1000.0)
        assert [e.at for e in later.entries] == [0.0, 990.0, 995.0, 1030.0], "no clock of another node is trusted"


@pytest.mark.parametrize(
    "reason, change",
    [
        ("version", {0: wire.VERSION + 1}),
        ("version", {0: True}),
        ("cluster", {1: "other"}),
        ("cluster", {1: 5}),
        ("kind", {2: 8}),
        ("kind", {2: -1}),
        ("kind", {2: 1.0}),
        ("message", {3: -1}),
        ("message", {3: "1"}),
        ("message", {4: None}),
        ("message", {5: 3}),
        ("message", {5: [[1]]}),
        ("message", {6: -1}),
        ("message", {6: 1 << 31}),
        ("message", {7: b"no digest"}),
        ("message", {7: ""}),
        ("message", {2: 2, 6: 1, 7: "dials://2", 8: 0.1}),
        ("message", {2: 7, 6: b""}),
        ("message", {2: 7, 6: bytes(DOCUMENT_CAP + 1)}),
        ("message", {2: 7, 6: "text"}),
        ("size", {5: [0] * (ENTRY_CAP + 1)}),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_with_a_reason(reason: str, change: dict[int, Any]) -> None:
    array = msgpack.unpackb(encode(Datagram(CLUSTER, 1, account(1), [], DirectPing(0)), 0.0))
    for place, value in change.items():
        array[place:] = [value, *array[place + 1 :]]
    with pytest.raises(RemoteError) as caught:
        decode(msgpack.packb(array), CLUSTER, 0.0)
    assert caught.value.reason == reason


@pytest.mark.parametrize("place, values", [
    (0, [-1, 1 << 31, "1", True]), (1, [-1, 1 << 63]), (2, [-1, 1 << 53]), (3, [4, -1, "alive"]),
    (4, ["", "tcp://" + "a" * 200, "tcp://a b", "udp://a:1", b"tcp://a:1", "tcp://a", "tcp://a:65536", "tcp://::1:7",
         "tcp://[::1:7", "tcp://[a.z]:7", "dials://1", "dials://02", "dials://", "dials://2:7"]), (5, [-1]),
    (6, [-1, 1.0]),
    (7, [-1.0, math.nan, math.inf, 0, 1e10]), (8, [-2, 1 << 31]), (9, [-1, 0.5]), (10, [b"", bytes(65), "text"]),
])  # fmt: skip
def test_an_entry_that_does_not_fit_is_refused(place: int, values: list[Any]) -> None:
    signed = account(2, signature=bytes(64)) if place > 8 else account(2)
    array = msgpack.unpackb(encode(Datagram(CLUSTER, 1, account(1), [signed], Gossip()), 0.0))
    decode(msgpack.packb(array), CLUSTER, 0.0)
    for value in values:
        array[5][0][place] = value
        with pytest.raises(RemoteError, match="message"):
            decode(msgpack.packb(array, use_bin_type=True), CLUSTER, 0.0)
        assert wire.sender(msgpack.packb(array), CLUSTER, 0.0) is None
    with pytest.raises(RemoteError, match="size"):
        decode(bytes(MESSAGE_CAP + 1), CLUSTER, 0.0)


# a transcript to read


def transcript() -> str:
    """Three members meet, one crashes, is found dead and returns as another life; then one leaves."""
    world, lines = World(3, FAR._replace(jitter=0.0), LAN._replace(sync_every=600.0)), []

    def told(entries: Any) -> str:
        return " ".join(f"{e.node}:{e.life}.{e.refutes}:{e.state}" for e in entries)

    def log(now: float, place: int, what: Any) -> None:
        match what:
            case Say(to, data):
                datagram = decode(data, CLUSTER, now)
                fields = "".join(f" {value}" for value in datagram.message if not isinstance(value, float | str))
                kind = type(datagram.message).__name__.lower()
                lines.append(f"{now:7.3f}  {place} -> {to[-1]}  {kind}{fields}  {told(datagram.entries)}".rstrip())
            case Changed(members):
                lines.append(f"{now:7.3f}  {place} holds   {told(members)}")
            case Heard() | MemberTick():
                return
            case _:
                lines.append(f"{now:7.3f}  {place} {what}")

    world.log = log
    for node in range(3):
        world.start(node, [0 if node else 1])
    world.run(1.5)
    lines.append(f"{world.now:7.3f}  2 crashes")
    world.crash(2)
    world.run(3.0)
    world.start(2, [1], life=9)
    world.run(0.6)
    world.tell(0, MemberLeave())
    world.run(0.6)
    return "\n".join(lines) + "\n"


def test_the_transcript_is_as_written(request: pytest.FixtureRequest) -> None:
    """`pytest --rewrite-transcripts` writes it anew: read the difference before it is committed."""
    now = transcript()
    if request.config.getoption("--rewrite-transcripts"):
        TRANSCRIPT.write_text(now, "utf-8")
    assert TRANSCRIPT.read_text("utf-8").splitlines() == now.splitlines()
    for needed in ("holds   0:1.0:alive 1:1.0:alive 2:1.0:dead", "2:9.0:alive", "Gone()", "0:1.0:left"):
        assert needed in now
