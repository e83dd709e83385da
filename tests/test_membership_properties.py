"""What must hold of a federation's membership, over seeds, in virtual time: ten properties, and an oracle."""

from __future__ import annotations

import itertools
import math
import random
from statistics import mean
from typing import Any

import pytest
from members import CLUSTER, FAR, KEYS, World, address, keyed

from p2pfl.drivers.virtual.network import Link
from p2pfl.protocol.membership.events import (
    Accused,
    Busy,
    Conflict,
    Gone,
    Heard,
    MemberDrop,
    MemberLeave,
    MemberStart,
    MemberTick,
    Superseded,
)
from p2pfl.protocol.membership.membership import Membership
from p2pfl.protocol.membership.probe import RoundRobin
from p2pfl.protocol.membership.seeds import Seed
from p2pfl.protocol.membership.suspicion import Suspicion, bounds
from p2pfl.protocol.membership.table import ALIVE, DEAD, LEFT, STATES, SUSPECT, Me, MemberEntry, join, rank
from p2pfl.protocol.membership.timing import LAN, LOCAL
from p2pfl.protocol.membership.wire import Ack, Datagram, DirectPing, DocumentCopy, Gossip, Sync, decode, encode

LOW16, HIGH16, _ = bounds(LAN, 16)


def lossy(loss: float) -> Link:
    return FAR._replace(loss=loss)


# 1: every crash is found by everybody


def completeness(seed: int, n: int, loss: float, keys: Any = None) -> None:
    """Members join at random times, some crash at random times; in the end all that run hold the same table."""
    draw = random.Random(seed)
    world = World(seed, lossy(loss), keys=keys)
    for node in range(n):
        world.start(node, [draw.randrange(node)] if node else [n - 1])
        world.run(draw.random())
    world.run(10)
    crashed = draw.sample(range(n), draw.randint(1, n - 1))
    for node in crashed:
        world.crash(node)
        world.run(draw.random())

    def found() -> bool:
        views = world.views()
        return len(views) == 1 and {node for node, _ in next(iter(views))} == set(range(n)) - set(crashed)

    found_in_time = any(world.run(1.0) or found() for _ in range(120))
    assert found_in_time, f"seed {seed}, n {n}, loss {loss}: crashed {sorted(crashed)}, views {world.views()}"


@pytest.mark.parametrize("n, loss", [*itertools.product((2, 3, 5, 8), (0.0, 0.1, 0.29)), (16, 0.1)])
def test_every_crash_is_found_by_everybody(n: int, loss: float) -> None:
    completeness(1, n, loss)


@pytest.mark.more
@pytest.mark.parametrize("n", [2, 5, 8])
def test_every_crash_is_found_by_everybody_with_keys(n: int) -> None:
    completeness(1, n, 0.1, KEYS)


@pytest.mark.soak
@pytest.mark.parametrize("n", [2, 3, 5, 8, 16, 33, 64])
def test_every_crash_is_found_by_everybody_over_many_seeds(n: int) -> None:
    for seed, loss in itertools.product(range(1000 // n**2 + 1), (0.0, 0.05, 0.2, 0.29)):
        completeness(seed, n, loss)


@pytest.mark.parametrize("n, timing", [(2, LAN), (8, LOCAL), (16, LAN), pytest.param(48, LAN, marks=pytest.mark.more)])
def test_members_that_start_at_once_know_each_other_soon(n: int, timing: Any) -> None:
    """Each has the addresses of all as its seeds; or of one only, which answers for the others."""
    for seed, loss in ((1, 0.0), (2, 0.1)):
        for seeds in (range(n), [n - 1]):
            world = World(seed, lossy(loss), timing)
            for node in range(n):
                world.start(node, seeds)
            knows = world.run(
                3.0 if loss else 1.0, until=lambda w=world: all(w.living(p) == [*range(n)] for p in range(n))
            )
            assert knows, f"seed {seed}, {len(seeds)} seeds: {sorted(len(world.living(p)) for p in range(n))}"


# 2: in a time, and with a traffic, that do not grow with the number of members


def crash(seed: int, n: int, link: Link = FAR, timing: Any = LAN) -> tuple[float, float, float]:
    """Seconds to the first suspicion, and until all hold the death; messages per member and second before it."""
    world = World(seed, link, timing)
    for node in range(n):
        world.start(node, [0 if node else 1])
    world.run(4 + seed % 97 * 0.013)
    before, start = world.said.total(), world.now
    world.run(2)
    rate = (world.said.total() - before) / n / 2
    start = world.now
    world.crash(n // 2)
    known = world.run(15, until=lambda: world.last(DEAD, n // 2) < math.inf)
    assert known and world.deaths() == 1, f"seed {seed}, n {n}: known {known}, deaths {world.deaths()}"
    return world.first(SUSPECT, n // 2) - start, world.last(DEAD, n // 2) - start, rate


@pytest.mark.more
def test_a_crash_is_found_within_the_same_time_whatever_the_size() -> None:
    rates, firsts = {}, []
    for n, seeds in [(3, 25), (8, 15), (16, 8), (32, 2)]:
        low, high, _ = bounds(LAN, n)
        found = {seed: crash(seed, n) for seed in range(seeds)}
        for seed, (first, last, _) in found.items():
            said = f"seed {seed}, n {n}: suspect after {first:.2f} s, dead for all after {last:.2f} s"
            assert LAN.interval - 0.03 <= first <= 6 * LAN.interval, said
            assert low <= last - first <= high + 6 * LAN.gossip_every * math.log2(n), said
            assert n > 16 or last <= 4.0, said
        rates[n] = mean(rate for _, _, rate in found.values())
        firsts += [first for first, _, _ in found.values()]
    # a probe fails after one period; that nobody asks for three more has probability (1 - 3/(n-1))^(n-1) < e^-3 = 0.05
    assert mean(first > 4 * LAN.interval for first in firsts) < 0.1
    assert max(rates.values()) <= 1.2 * min(rates.values()), f"messages per member and second: {rates}"


@pytest.mark.parametrize("n, loss, keys", [(2, 0.0, None), (8, 0.0, None), (8, 0.0, KEYS), (8, 0.2, None)])
def test_who_is_killed_without_its_membership_is_suspected_by_nobody(n: int, loss: float, keys: Any) -> None:
    """Its last word is known to all within a period of probing, as a death, and its next life is there at once."""
    world, node = World(1, lossy(loss), keys=keys).all(n), n // 2
    start = world.now
    world.kill(node)
    assert world.run(8 * LAN.interval, until=lambda: world.last(DEAD, node) < math.inf)
    if not loss:  # else some hear of it from others, and ask in vain
        assert world.last(DEAD, node) - start < LAN.interval / 2 and world.first(SUSPECT, node) == math.inf
    assert world.deaths() == 1 and world.first(LEFT, node) == math.inf
    world.start(node, [0 if node else 1], life=9)
    world.run(3.0)
    assert world.views() == {tuple((each, 9 if each == node else 1) for each in range(n))}
    assert not world.of(Accused)


@pytest.mark.soak
@pytest.mark.parametrize("n, seeds", [(3, 500), (8, 200), (16, 200), (32, 20), (64, 5), (128, 1)])
def test_a_crash_is_found_within_the_same_time_over_many_seeds(n: int, seeds: int) -> None:
    found = sorted((crash(seed, n)[:2], seed) for seed in range(seeds))
    late = [seed for (first, _), seed in found if first > 4 * LAN.interval]
    assert len(late) <= 0.05 * seeds + 3 * math.sqrt(0.05 * seeds), f"n {n}: suspected late for seeds {late}"
    if n <= 16:
        slow = [(seed, last) for (_, last), seed in found if last > 4.0]
        assert not slow, f"n {n}: dead for all after more than 4 s: {slow}"


# 3: nobody is declared dead that lives


def accuracy(seed: int, n: int, seconds: float, loss: float, most: int = 0) -> None:
    world = World(seed, Link(latency=0.002, jitter=0.05, loss=loss)).all(n)
    world.run(seconds)
    assert world.deaths() <= most, f"seed {seed}: {world.deaths()} false deaths in {seconds} s at loss {loss}"


def test_nobody_is_declared_dead_by_loss_and_jitter() -> None:
    accuracy(1, 8, 240.0, 0.05)
    accuracy(2, 3, 240.0, 0.05)


@pytest.mark.soak
@pytest.mark.parametrize("n, loss, most", [(3, 0.05, 0), (8, 0.05, 0), (16, 0.05, 0), (8, 0.2, 1), (16, 0.2, 1)])
def test_nobody_is_declared_dead_by_loss_and_jitter_in_an_hour(n: int, loss: float, most: int) -> None:
    accuracy(1, n, 3600.0, loss, most)


@pytest.mark.parametrize(
    "timing, stall", [pytest.param(LAN, 1.15, marks=pytest.mark.more), (LOCAL, 1.5)], ids=["lan", "local"]
)
def test_a_stall_shorter_than_a_suspicion_costs_no_life(timing: Any, stall: float) -> None:
    for seed in range(4):
        world = World(seed, FAR._replace(loss=0.02), timing).all(5)
        for turn in range(10):
            world.freeze(turn % 5, stall)
            world.run(5)
        assert world.deaths() == 0, f"seed {seed}: {world.deaths()} deaths"
        world.freeze(1, 30)
        world.run(10)
        assert world.held(0, 1).state == DEAD, f"seed {seed}: a long one does"


@pytest.mark.more
@pytest.mark.parametrize("keys", [None, pytest.param(KEYS, marks=pytest.mark.more)], ids=["no keys", "keys"])
def test_an_announced_pause_costs_no_life_and_a_crash_in_it_is_found_after_it(keys: Any) -> None:
    for seed in range(3 if keys is None else 1):
        world = World(seed, FAR._replace(loss=0.05), keys=keys).all(8)
        start = world.now
        world.tell(3, Busy(20.0))
        world.freeze(3, 15.0)
        world.run(14)
        assert world.held(0, 3).state == SUSPECT and world.held(5, 3).busy > world.now, f"seed {seed}"
        world.run(20)
        assert world.deaths() == 0 and world.held(0, 3).state == ALIVE, f"seed {seed}: {world.deaths()} deaths"
        start = world.now
        world.tell(4, Busy(10.0))
        world.crash(4)
        assert world.run(30, until=lambda w=world: w.last(DEAD, 4) < math.inf), f"seed {seed}"
        assert 10.0 <= world.last(DEAD, 4) - start <= 14.0, f"seed {seed}"


def test_a_pause_is_believed_up_to_a_cap() -> None:
    world = World(1, timing=LAN._replace(busy_cap=5.0)).all(4)
    world.tell(2, Busy(1e6))
    world.run(1)
    assert world.held(0, 2).busy <= world.now + 4.1
    world.crash(2)
    assert world.run(10, until=lambda: world.last(DEAD, 2) < math.inf)


# 4: refutation; the order of hearing does not matter; only the owner raises what is its own


def forged(node: int, state: str, refutes: int = 0, life: int = 1, by: int = 1, place: int = -1) -> Datagram:
    liar = MemberEntry(1, 1, 0, ALIVE, address(1), 0, 0, 0.0, -1)
    about = MemberEntry(node, life, refutes, state, address(node if place < 0 else place), 0, 0, 0.0, by)
    return Datagram(CLUSTER, 1, liar, [about], Gossip())


@pytest.mark.parametrize("keys", [None, pytest.param(KEYS, marks=pytest.mark.more)], ids=["no keys", "keys"])
def test_a_forged_suspicion_is_refuted_everywhere_soon(keys: Any) -> None:
    """With keys only what it has said can be doubted: here, what it has refuted so far."""
    for n, seed in itertools.product((3, 16, 33) if keys is None else (3, 16), (1, 2)):
        world = World(seed, keys=keys).all(n)
        letter, refutes = forged(0, SUSPECT, 5), 6
        if keys is not None:
            own = world.held(n - 1, 0)
            letter, refutes = forged(0, SUSPECT, own.refutes), own.refutes + 1
            entries = [KEYS.signed(entry) for entry in letter.entries]
            letter = letter._replace(sender=KEYS.signed(letter.sender), entries=entries)
        world.tell(n - 1, Heard(encode(letter, world.now), None if keys is None else 1))
        world.run(1.0 + 0.2 * math.log2(n))
        held = [world.held(place, 0) for place in range(n)]
        assert all(m.state == ALIVE and m.refutes == refutes for m in held), f"n {n}, seed {seed}: {held}"


@pytest.mark.parametrize("state, life, place", [
    (DEAD, 1, -1), (LEFT, 1, -1), (DEAD, 10**12, -1), (DEAD, (1 << 63) - 1, -1), (ALIVE, 7, -1), (ALIVE, 7, 77),
])  # fmt: skip
def test_no_letter_ends_a_life(state: str, life: int, place: int) -> None:
    """Nobody believes it, whoever gets it; the node itself neither."""
    for n, seed in itertools.product((3, 16), (1, 2)):
        world = World(seed).all(n, settle=8)
        for to in (n - 1, 0):
            world.tell(to, Heard(encode(forged(0, state, life=life, by=n - 1, place=place), world.now)))
            world.run(3)
        assert world.views() == {tuple((node, 1) for node in range(n))}, f"n {n}, seed {seed}"
        assert not world.deaths() and not world.of(Accused) and not world.of(Superseded), f"n {n}, seed {seed}"
        assert world.dropped.total() >= 1, f"n {n}, seed {seed}"


def test_a_death_that_one_has_believed_is_answered_by_a_new_life_in_one_step() -> None:
    """The two do not reach one another: the others, whom it answers, pass on what is believed of it."""
    for (n, seed), life in itertools.product(itertools.product((3, 16), (1, 2)), (1, 10**12)):
        world = World(seed).all(n, settle=8)
        for source, to in ((0, n - 1), (n - 1, 0)):
            world.network.cut(source, to)
        world.run(LAN.interval)  # whoever has just answered is not dead
        world.tell(n - 1, Heard(encode(forged(0, DEAD, life=life, by=1), world.now)))
        world.run(1.0)
        assert [e.life for _, p, e in world.of(Accused)] == [life], f"n {n}, seed {seed}"
        world.run(1.0)
        held = [world.held(place, 0) for place in range(n)]
        assert all(m.state == ALIVE and m.life == life + 1 for m in held), f"n {n}, seed {seed}: {held}"


def test_an_accused_node_that_does_not_answer_stays_dead_and_goes_on_hearing() -> None:
    world = World(1).all(5)
    world.reborn = False
    world.freeze(0, 8)
    world.run(14)
    assert {world.held(place, 0).state for place in range(1, 5)} == {DEAD} and world.held(0, 0).state == ALIVE
    assert len(world.of(Accused)) == 1 and {world.view(place) for place in range(1, 5)} == {
        tuple(zip(range(1, 5), [1] * 4, strict=True))
    }
    world.crash(4)
    world.run(6)
    assert world.held(0, 4).state == DEAD and world.deaths() == 2


def entry(draw: random.Random, node: int = 0) -> MemberEntry:
    """An entry as honest members say it: what a life has said is the same in all accounts of it."""
    life, said, state = draw.randint(1, 3), draw.randint(0, 3), draw.choice(STATES)
    at = draw.random() if state in (DEAD, LEFT) else float(life * 10 + said)
    by, pause, signature = draw.randint(-1, 3), draw.choice((0, 5)), draw.choice((b"", b"one", b"other"))
    return MemberEntry(
        node, life, draw.randint(0, 3), state, address(life), said, said * 7, at, by, pause * bool(signature), signature
    )


def test_joins_of_entries_are_a_semilattice() -> None:
    for seed in range(3000):
        draw = random.Random(seed)
        a, b, c = (entry(draw) for _ in range(3))
        assert join(a, b) == join(b, a), f"seed {seed}"
        assert join(a, join(b, c)) == join(join(a, b), c), f"seed {seed}"
        assert join(a, a) == a, f"seed {seed}"
        assert rank(join(a, b)) == max(rank(a), rank(b)), f"seed {seed}"


def test_members_that_hear_the_same_in_any_order_hold_the_same() -> None:
    def table(entries: list[MemberEntry]) -> list[Any]:
        member = Membership(Me(9, 1, address(9)), CLUSTER, [], LAN, 0)
        member.handle(MemberStart(), 0.0)
        for entry in entries:
            liar = MemberEntry(8, 1, 0, ALIVE, address(8), 0, 0, 0.0, -1)
            member.handle(Heard(encode(Datagram(CLUSTER, 1, liar, [entry], Gossip()), 0.0)), 0.0)
        while member.wake <= LAN.interval:  # whoever was said to be gone is asked, and does not answer
            member.handle(MemberTick(), member.wake)
        return [(m.node, m.life, m.refutes, m.state, m.address) for m in member.members]

    for seed in range(150):
        draw = random.Random(seed)
        entries = [entry(draw, draw.randrange(3))._replace(at=0.0) for _ in range(12)]
        shuffled = draw.sample(entries, 12) + draw.sample(entries, 5)
        assert table(entries) == table(shuffled), f"seed {seed}"


@pytest.mark.more
@pytest.mark.parametrize("keys", [None, pytest.param(KEYS, marks=pytest.mark.more)], ids=["no keys", "keys"])
def test_only_the_owner_raises_its_refutes_and_no_life_comes_back(keys: Any) -> None:
    """In a bad network with a freezing member: nobody holds more of a node than it has said, and what has left a view
    is in none again. With keys nobody honest is ever blamed for a signature."""
    for seed in range(3 if keys is None else 1):
        link = Link(latency=0.01, jitter=0.1, loss=0.25, reorder=0.2, duplicate=0.1)
        world = World(seed, link, keys=keys).all(6, settle=30)
        gone: dict[int, set[tuple[int, int]]] = {}
        last: dict[int, set[tuple[int, int]]] = {}
        for turn in range(100):
            if turn % 20 == 0:
                world.freeze(turn // 20, 6.0)
            world.run(0.5)
            for place in world.running():
                view = set(world.view(place))
                gone.setdefault(place, set()).update(last.get(place, view) - view)
                last[place] = view
                assert not view & gone[place], f"seed {seed}, turn {turn}: back at {place}: {view & gone[place]}"
                for m in world.at[place].member.members:
                    own = world.held(m.node, m.node)
                    assert (m.life, m.refutes) <= (own.life, own.refutes), f"seed {seed}, turn {turn}: {m}, {own}"
        assert world.deaths(), "nothing has happened"
        assert keys is None or not {"signature", "checks", "sender", "stranger"} & world.dropped.keys(), world.dropped


# 5: confirmations


def test_confirmations_shorten_a_suspicion_as_in_the_table() -> None:
    timing = LAN._replace(suspicion=5.0, stretch=6.0, interval=1.0, ack_max=0.4)
    low, high, k = bounds(timing, 10)
    assert (low, high, k) == (5.0, 30.0, 3)
    suspicion = Suspicion(100.0, 1, timing, 10)
    due = [suspicion.due(1.0)]
    for by in (1, 2, 2, 3, 1, 3, 4, 5):
        suspicion.confirm(by)
        due.append(suspicion.due(1.0))
    assert due[:2] == [130.0, 130.0], "its own accuser confirms nothing"
    expected = [30.0 - 25.0 * math.log(c + 1) / math.log(4) for c in range(4)]
    assert due == pytest.approx([100.0 + expected[c] for c in (0, 0, 1, 1, 2, 2, 2, 3, 3)])
    assert due[-1] == pytest.approx(105.0)
    assert suspicion.due(2.0) == pytest.approx(110.0)
    assert [suspicion.confirm(by) for by in (1, 2, 6)] == [False] * 3


def test_nobody_can_confirm_in_a_federation_of_two() -> None:
    assert bounds(LAN, 2)[2] == 0 and bounds(LAN, 3)[2] == 1
    assert Suspicion(0.0, 1, LAN, 2).due(1.0) == pytest.approx(bounds(LAN, 2)[0])


# 6: who is ill notices it


@pytest.mark.more
def test_an_ill_member_blames_itself_and_kills_nobody() -> None:
    for seed in range(1):
        world = World(seed, lambda source, to: lossy(0.5 if 3 in (source, to) else 0.0)).all(16, settle=5)
        scores = []
        for _ in range(60):
            world.run(1)
            scores.append([world.at[place].member.score for place in range(16)])
        ill, well = mean(row[3] for row in scores), mean(mean(row[:3] + row[4:]) for row in scores)
        assert ill > 1.0 and well < 0.3, f"seed {seed}: scores {ill:.2f} and {well:.2f}"
        dead = {node for p in world.at.values() for (node, _), states in p.since.items() if DEAD in states}
        assert dead <= {3}, f"seed {seed}: {dead}"


def test_who_is_cut_off_declares_nobody_dead_for_a_while_and_is_reborn() -> None:
    for seed in range(3):
        world = World(seed).all(6)
        world.network.partition([[4]])
        world.run(14)
        assert world.at[4].member.score == 7 and world.at[0].member.score == 0, f"seed {seed}"
        assert world.view(0) == tuple((n, 1) for n in (0, 1, 2, 3, 5)), f"seed {seed}"
        assert len(world.view(4)) == 6, f"seed {seed}"
        world.network.heal()
        world.run(15)
        assert world.views() == {tuple((n, 2 if n == 4 else 1) for n in range(6))}, f"seed {seed}: {world.views()}"


# 7: partitions heal


def partition(seed: int, half: int, seconds: float, loss: float = 0.0, keys: Any = None) -> None:
    world = World(seed, lossy(loss), keys=keys).all(2 * half)
    one, other = range(half), range(half, 2 * half)
    world.network.partition([one, other])
    world.run(seconds)
    assert {world.view(p) for p in one} == {tuple((n, 1) for n in one)}, f"seed {seed}"
    assert {world.view(p) for p in other} == {tuple((n, 1) for n in other)}, f"seed {seed}"
    start = world.now
    world.network.heal()
    whole = world.run(30, until=lambda: len(world.views()) == 1 and len(world.view(0)) == 2 * half)
    assert whole, f"seed {seed}: {world.views()}"
    world.run(5)
    assert len(world.views()) == 1 and len(world.view(0)) == 2 * half, f"seed {seed}, healed after {world.now - start}"


@pytest.mark.more
def test_a_partition_heals() -> None:
    partition(1, 2, 600.0)
    partition(2, 8, 60.0)


@pytest.mark.more
def test_a_partition_heals_with_keys() -> None:
    partition(2, 8, 60.0, keys=KEYS)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(6))
def test_a_long_partition_of_many_heals(seed: int) -> None:
    partition(seed, 8, 600.0, (0.0, 0.05, 0.1)[seed % 3])


# 8: restarts


@pytest.mark.parametrize("keys", [None, pytest.param(KEYS, marks=pytest.mark.more)], ids=["no keys", "keys"])
def test_a_restart_is_alive_everywhere_soon_and_its_old_death_does_not_win(keys: Any) -> None:
    for seed, wait, place in itertools.product((1, 2) if keys is None else (1,), (0.3, 1.0, 10.0), (3, 20)):
        world = World(seed, keys=keys).all(8)
        world.crash(3)
        world.run(wait)
        start = world.now
        world.start(3, [5], life=5000, place=place)
        said = f"seed {seed}, wait {wait}, place {place}"
        assert world.run(2.0, until=lambda w=world: all((3, 5000) in view for view in w.views())), said
        world.run(12)
        assert world.last(ALIVE, 3, 5000) - start <= 2.0, said
        assert world.views() == {tuple((n, 5000 if n == 3 else 1) for n in range(8))}, f"{said}: {world.views()}"


@pytest.mark.parametrize("keys", [None, pytest.param(KEYS, marks=pytest.mark.more)], ids=["no keys", "keys"])
def test_two_processes_of_one_id_are_noticed_and_the_older_falls_silent(keys: Any) -> None:
    for seed in range(3):
        world = World(seed, keys=keys).all(6)
        world.start(2, [0], life=9, place=30)
        world.run(3)
        assert [(p, e) for _, p, e in world.of(Superseded)] == [(2, Superseded(9, address(30)))], f"seed {seed}"
        assert {e for _, _, e in world.of(Conflict)} == {Conflict(2, address(30))}, f"seed {seed}"
        said = world.said[2]
        world.run(5)
        assert world.said[2] == said and world.deaths() == 0, f"seed {seed}"
        assert {world.held(p, 2).life for p in (0, 1, 3, 4, 5, 30)} == {9}, f"seed {seed}"


def test_a_clock_set_back_is_answered_by_a_greater_life() -> None:
    """The restarted process has a lesser life than its dead one: it learns so, and takes a greater."""
    world = World(1).all(4)
    world.start(1, [0], life=50)
    world.run(3)
    world.crash(1)
    world.run(8)
    world.start(1, [0], life=7)
    world.run(3)
    assert [e.life for _, p, e in world.of(Accused)] == [50]
    assert world.views() == {((0, 1), (1, 51), (2, 1), (3, 1))}


# 9: leaving


@pytest.mark.parametrize("keys", [None, pytest.param(KEYS, marks=pytest.mark.more)], ids=["no keys", "keys"])
def test_who_leaves_is_left_and_neither_suspect_nor_dead(keys: Any) -> None:
    many = [*itertools.product((2, 5, 16), (0.0, 0.1), (1, 2)), (33, 0.0, 1)]
    for n, loss, seed in many if keys is None else [(5, 0.1, 1), (16, 0.0, 2)]:
        world = World(seed, lossy(loss), keys=keys).all(n, settle=5)
        start = world.now
        world.tell(1, MemberLeave())
        known = world.run(2.0, until=lambda w=world: 1 not in w.running() and w.last(LEFT, 1) < math.inf)
        said = f"n {n}, loss {loss}, seed {seed}"
        assert known, said
        assert world.last(LEFT, 1) - start <= 0.2 * math.log2(n) + (0.2 if not loss else 0.8), said
        assert len(world.of(Gone)) == 1, said
        world.run(6)
        assert DEAD not in {s for p in world.at.values() for s in p.since.get((1, 1), {})}, said
        assert 1 not in world.living(0), said


# 10: bad bytes


@pytest.mark.parametrize("keys", [None, KEYS], ids=["no keys", "keys"])
def test_no_bytes_break_a_member(keys: Any) -> None:
    seeds, link = [Seed(address(1))], None if keys is None else 1
    member = Membership(Me(0, 1, address(0)), CLUSTER, seeds, LAN, 0, **keyed(0, keys), document=b"mine")
    sender = MemberEntry(1, 1, 0, ALIVE, address(1), 0, 0, 0.0, -1)
    about = [MemberEntry(node, 1, 0, SUSPECT, address(node), 0, 0, 0.0, 3) for node in range(5)]
    if keys is not None:
        sender, about = keys.signed(sender), [keys.signed(entry) for entry in about]
    messages = (DirectPing(0), Ack(), Sync(), Gossip(), DocumentCopy(b"theirs"))
    good = [encode(Datagram(CLUSTER, 5, sender, about, m, bytes(16)), 0.0) for m in messages]
    member.handle(MemberStart(), 0.0)
    kind = bytearray(good[0])
    kind[len(CLUSTER) + 3] = 99
    dropped = member.handle(Heard(bytes(kind), link), 0.0)
    reasons = {effect.reason for effect in dropped if isinstance(effect, MemberDrop)}
    for seed in range(6000 if keys is None else 2000):
        draw = random.Random(seed)
        data = bytearray(draw.choice(good))
        for _ in range(draw.randint(1, 4)):
            match draw.randrange(4):
                case 0:
                    data[draw.randrange(len(data))] = draw.randrange(256)
                case 1:
                    del data[draw.randrange(len(data)) :]
                    data += b"\x90"
                case 2:
                    data.insert(draw.randrange(len(data)), draw.randrange(256))
                case 3:
                    data = bytearray(draw.randbytes(draw.randrange(1, 60)))
        now = seed / 1000
        for effect in [*member.handle(Heard(bytes(data), link), now), *member.handle(MemberTick(), now)]:
            if isinstance(effect, MemberDrop):
                reasons.add(effect.reason)
    with_keys = {"sender", "signature", "checks"} if keys is not None else set()
    assert reasons <= {
        "message", "version", "cluster", "kind", "size", "target", "relays", "full", "document", "flood", *with_keys,
    }  # fmt: skip
    assert keys is None or "signature" in reasons
    assert {"message", "cluster", "kind"} <= reasons and (keys is not None or "version" in reasons)


def test_another_federation_is_not_heard() -> None:
    world = World(1).all(3)
    other = Membership(Me(9, 1, address(9)), "other", [Seed(address(0))], LAN, 0)
    for effect in other.handle(MemberStart(), 0.0):
        if hasattr(effect, "data"):
            world.tell(0, Heard(effect.data))
    assert world.dropped == {"cluster": 1} and world.held(0, 9) is None
    assert decode(encode(forged(1, ALIVE), 0.0), CLUSTER, 0.0).entries[0].node == 1


# the oracle


@pytest.mark.parametrize("n, chance, most", [(5, 0.683594, 1.4629), (16, 0.644736, 1.5510), (32, 0.638135, 1.5671)])
def test_a_crashed_member_is_asked_as_soon_as_theory_says(n: int, chance: float, most: float) -> None:
    """In a period with independent choices: with probability 1 - (1 - 1/(n-1))^(n-1); so after 1 / that many periods
    in the mean, e / (e - 1) = 1.58 for many members (SWIM, section 3). RoundRobin have the same chance in a period, and
    are not slower."""
    assert 1 - (1 - 1 / (n - 1)) ** (n - 1) == pytest.approx(chance, abs=1e-4)
    assert 1 / chance == pytest.approx(most, abs=1e-3)
    draw = random.Random(n)
    periods = []
    for _ in range(2500):
        probers = [RoundRobin(draw) for _ in range(n - 1)]
        for order in probers:
            for _ in range(draw.randrange(n - 1)):
                order.next(range(n - 1))
        count = 1
        while all([order.next(range(n - 1)) != 0 for order in probers]):
            count += 1
        periods.append(count)
    assert mean(count == 1 for count in periods) == pytest.approx(chance, abs=0.03)
    assert 1.2 < mean(periods) < most + 0.03
