"""Whole federations of the real Peer and the real Membership in virtual time, with models of one number.

Local training leaves the number alone: whatever changes the sum is mixing. A test that fails names its seed; the same
seed makes the same run.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from members import KEYS, keyed
from seeds import seeds

from p2pfl.churn import Event, expected, there
from p2pfl.drivers.virtual.network import Link
from p2pfl.drivers.virtual.node import NodeSetup, VirtualNode
from p2pfl.drivers.virtual.scripted_churn import Script
from p2pfl.drivers.virtual.world import World
from p2pfl.errors import ConfigError, LocalError
from p2pfl.protocol.events import Adopt, Advance, Finished, Leave, Trained
from p2pfl.protocol.membership.events import Progress
from p2pfl.protocol.membership.timing import PROBE_TIMINGS
from p2pfl.protocol.neighbor import ASYNC, BARRIER, DEADLINE, KEPT, SYNCS, TRAIN, WAIT, EpochPlan, Facts, RoundPlan
from p2pfl.protocol.timing import PRESETS

STEP = 0.01
"""Seconds of a round's local steps."""


class Number:
    """A model of one number; mixing with the weight 1/3, on a ring."""

    def __init__(self, value: float, fate: Callable[[int], str | None]) -> None:
        self.value, self.fate = value, fate
        self.mixed: dict[int, list[int]] = {}  # by round: with whom
        self.moved: dict[tuple[int, int, int, int], float] = {}  # by this node's life, the neighbour, its life, number
        self.life = 0
        self.epochs: list[tuple[int, tuple[int, ...]]] = []  # round, members

    def advance(self, effect: Advance) -> Trained | Finished | Leave | None:
        for b in effect.booked:
            assert b.mine is not None
            move = (b.theirs.payload - b.mine.payload) / 3
            self.value += move
            assert (self.life, b.node, b.life, b.number) not in self.moved
            self.moved[self.life, b.node, b.life, b.number] = move
        if effect.finished:
            self.mixed.setdefault(effect.finished, []).extend(b.node for b in effect.booked)
        if effect.next is None:
            return Finished()
        for round in range(min(effect.finished or effect.next, effect.next - 1) + 1, effect.next + 1):
            fate = self.fate(round)
            if fate is not None:
                return Leave(idle=True) if fate == "leave" else None
        self.life = effect.life
        if effect.members is not None:
            self.epochs.append((effect.next, effect.members))
        return Trained(self.value)

    def adopt(self, effect: Adopt) -> None:
        self.value = effect.payload

    @property
    def lives(self) -> set[int]:
        """This process's, with those after a rebirth."""
        return {self.life, *(life for life, *_ in self.moved)}


def ring(node: int) -> Callable[[tuple[int, ...]], EpochPlan]:
    def plan(members: tuple[int, ...]) -> EpochPlan:
        at, n = members.index(node), len(members)
        both = tuple(sorted({members[at - 1], members[(at + 1) % n]} - {node}))
        return EpochPlan(lambda round: RoundPlan(exchange=both), max(len(both), 1), both)

    return plan


class Ring:
    """n nodes in a ring, in a world; `kept` lets a node come back with its number."""

    def __init__(
        self,
        n: int,
        rounds: int,
        seed: int = 0,
        link: Link = Link(latency=0.002, jitter=0.002),  # noqa: B008
        events: Sequence[Event] = (),
        sync: str = DEADLINE,
        preset: str = "local",
        lag: Callable[[int, int], float] = lambda round, node: 0.0,
        kept_back: Callable[[int, int, int], bool] = lambda round, sender, receiver: False,
        alone: str = WAIT,
        keys: Any = None,
        step: float = STEP,
    ) -> None:
        self.alone, self.keys, self.step = alone, keys, step
        self.n, self.rounds, self.sync, self.preset, self.link = n, rounds, sync, preset, link
        self.world = World(seed, lambda source, to: self.link, kept_back, lag)
        self.events = events
        self.script = Script(self.world, events, n, self.begin)
        self.notes: list[tuple[float, int, str, int, int]] = []  # time, who notes, what, about whom, round
        self.script.start()

    def begin(self, node: int, join_round: int = 0, kept: bool = False) -> None:
        old = self.number(node) if kept else None
        number = Number(old.value if old else float(node), lambda round: self.script.fate(node, round))
        facts = Facts(
            node, self.world.life(node), self.n, expected(self.events, self.n), ring(node), self.rounds, "f", "s", 8,
            PRESETS[self.preset], 8, sync=self.sync, join_round=join_round,
            kept_round=max(old.mixed, default=0) if old else 0, alone=self.alone, there=there(self.events, self.n),
        )  # fmt: skip
        seeds = [i for i in range(self.n) if i != node]

        def log(event: str, about: int, round: int, detail: str, rounds: int) -> None:
            self.notes.append((self.world.now, node, event, about, round))

        signs = keyed(node, self.keys)
        given = NodeSetup(number, lambda round: self.step, PROBE_TIMINGS[self.preset], seeds, log=log, **signs)
        self.world.add(VirtualNode(self.world, facts, given))

    def number(self, node: int) -> Number:
        found = self.world.nodes[node].given.computing
        assert isinstance(found, Number)
        return found

    @property
    def nodes(self) -> list[VirtualNode]:
        return [node for _, node in sorted(self.world.nodes.items())]

    @property
    def values(self) -> list[float]:
        return [self.number(node.facts.node).value for node in self.nodes]

    def run(self, patience: float = 120.0) -> Ring:
        self.world.run(patience=patience)
        return self

    def until_round(self, round: int) -> None:
        while self.world.began < round:
            assert len(self.world.queue), f"seed {self.world.seed}: nothing happens any more"
            self.world.run(self.world.queue.due)

    def noted(self, event: str) -> list[tuple[int, int, int]]:
        """(who notes, about whom, round)."""
        return [(by, about, round) for _, by, what, about, round in self.notes if what == event]

    def check(self, ended: Sequence[int] | None = None) -> None:
        """Who is to end has ended, in the last round; what two living ends book cancels, or is counted as residue."""
        seed = f"seed {self.world.seed}"
        ended = range(self.n) if ended is None else ended
        for i in ended:
            node = self.world.nodes[i]
            assert node.done, f"{seed}: node {i} is {node.peer.stage} in round {node.peer.round}"
            assert node.peer.round == self.rounds, seed
            assert max(self.number(i).mixed) == self.rounds, seed
        lives = {(i, life) for i in self.world.nodes for life in self.number(i).lives}
        moved = {
            ((node, life), (peer, its), number): move
            for node in self.world.nodes
            for (life, peer, its, number), move in self.number(node).moved.items()
        }
        self.residue = 0
        for (a, b, number), move in moved.items():
            if (b, a, number) in moved:
                assert move == -moved[b, a, number], f"{seed}: exchange {number} of {a} and {b}"
            elif b in lives and self.world.nodes[a[0]].done and self.world.nodes[b[0]].done:
                self.residue += 1


def record(ring: Ring) -> Any:
    """All that came of it."""
    return (
        ring.notes,
        ring.world.now,
        {node.facts.node: (node.sent, node.received, node.event_log.dropped, node.peer.booked) for node in ring.nodes},
        [(number.value, number.mixed, number.epochs) for number in map(ring.number, ring.world.nodes)],
    )


# --- without faults


@pytest.mark.parametrize("sync", [BARRIER, DEADLINE])
def test_without_faults_every_round_books_every_edge(sync: str) -> None:
    ring = Ring(8, 30, sync=sync).run()
    ring.check()
    for i in range(8):
        assert ring.number(i).mixed == {r: sorted({(i - 1) % 8, (i + 1) % 8}) for r in range(1, 31)}
        assert ring.number(i).epochs == [(1, tuple(range(8)))]
        assert not ring.nodes[i].event_log.dropped
    assert not ring.notes
    assert max(ring.values) - min(ring.values) < 0.1
    assert ring.residue == 0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_smallest_federations(n: int) -> None:
    ring = Ring(n, 10).run()
    ring.check()


def test_time_is_that_of_the_network_and_of_the_steps() -> None:
    """A round takes its steps, and then a payload and a receipt to cross."""
    spans = []
    for latency in (0.001, 0.1):
        ring = Ring(4, 50, link=Link(latency=latency))
        ring.until_round(1)
        began = ring.world.now
        ring.until_round(50)
        spans.append((ring.world.now - began) / 49)
    assert spans == pytest.approx([STEP + 2 * 0.001, STEP + 2 * 0.1], rel=0.01)


def test_a_narrow_link_takes_its_time() -> None:
    ring = Ring(4, 20, link=Link(bandwidth=1000.0), preset="wan")
    ring.until_round(1)
    began = ring.world.now
    ring.run()
    ring.check()
    sent = sum(node.sent for node in ring.nodes) / 4 / 20 / 2  # bytes of a node in a round to each of two neighbours
    assert (ring.world.nodes[0].peer.round, sent > 30) == (20, True)
    assert ring.world.now - began > 20 * (STEP + sent / 1000.0)


@pytest.mark.parametrize("seed", seeds(2))
def test_the_same_seed_makes_the_same_run(seed: int) -> None:
    link = Link(latency=0.002, jitter=0.005, loss=0.02, reorder=0.1, duplicate=0.1)
    events = [Event("crash", 1, 20), Event("rejoin", 1, 60), Event("leave", 4, 30)]
    one, same, other = (Ring(6, 100, s, link, events).run() for s in (seed, seed, seed + 100))
    assert record(one) == record(same)
    assert record(one) != record(other)


# --- faults


ROUGH = Link(latency=0.002, jitter=0.01, loss=0.05, reorder=0.2, duplicate=0.1)


def calm_at(ring: Ring, round: int) -> None:
    """The last word of all can't be confirmed; what is lost with it is residue: no more losses from this round on."""
    ring.until_round(round)
    ring.link = ring.link._replace(loss=0.0)


@pytest.mark.parametrize("seed", range(6))
def test_a_rough_network_stops_nobody_and_moves_no_sum(seed: int) -> None:
    ring = Ring(7, 60, seed, ROUGH)
    calm_at(ring, 50)
    ring.run().check()
    assert ring.residue == 0, f"seed {seed}"
    assert sum(node.peer.booked for node in ring.nodes) > 7 * 60


@pytest.mark.parametrize("seed", seeds(2))
def test_a_crash_is_a_new_epoch_without_the_dead(seed: int) -> None:
    ring = Ring(6, 400, seed, events=[Event("crash", 2, 20)])
    ring.run().check([0, 1, 3, 4, 5])
    assert {about for _, about, _ in ring.noted("removed")} == {2}
    assert max(ring.number(2).mixed) == 19
    for i in (0, 1, 3, 4, 5):
        assert ring.number(i).epochs[-1][1] == (0, 1, 3, 4, 5), f"seed {seed}"
        assert len(ring.number(i).epochs) == 2
        assert len(ring.number(i).mixed) > 395
    assert ring.number(1).mixed[390] == [0, 3]


@pytest.mark.parametrize(("end", "waits"), [("crash", False), ("vanish", True)])
def test_neighbors_go_on_at_once_without_who_is_killed_and_not_without_who_has_no_last_word(
    end: str, waits: bool
) -> None:
    ring = Ring(6, 10**6)
    ring.until_round(50)
    began = ring.world.now
    getattr(ring.world.nodes[2], end)()
    ring.until_round(60)
    took = ring.world.now - began
    assert (took > PRESETS["local"].silence) == waits and (took < 20 * STEP) == (not waits), took
    ring.world.run(began + 5.0)
    assert {(event, about) for _, by, event, about, _ in ring.notes if by != 2} == {("removed", 2)}  # no leave
    assert all(ring.number(i).epochs[-1][1] == (0, 1, 3, 4, 5) for i in (0, 1, 3, 4, 5))


@pytest.mark.parametrize("seed", seeds(2))
def test_the_last_one_goes_on_alone(seed: int) -> None:
    others = [Event("crash", i, 10 + i) for i in range(1, 5)]
    ring = Ring(5, 1500, seed, events=others)
    ring.run().check([0])
    assert ring.number(0).epochs[-1][1] == (0,)
    assert max(r for r, whom in ring.number(0).mixed.items() if whom) <= 14


@pytest.mark.parametrize("state", ["lost", "kept"])
@pytest.mark.parametrize("seed", range(1))
def test_who_comes_back_is_in_the_epoch_again(seed: int, state: str) -> None:
    ring = Ring(6, 300, seed, events=[Event("crash", 2, 20), Event("rejoin", 2, 200, state)])
    ring.run().check()
    rounds = sorted(ring.number(2).mixed)
    assert rounds[0] >= 200
    assert rounds[0] < 240, f"seed {seed}"
    assert rounds == list(range(rounds[0], 301))
    assert all(ring.number(i).epochs[-1][1] == tuple(range(6)) for i in range(6))
    assert ring.number(2).mixed[290] == [1, 3]
    assert max(ring.values) - min(ring.values) < 1e-3


def test_who_joins_later_is_not_waited_for() -> None:
    ring = Ring(5, 200, events=[Event("join", 4, 50)])
    ring.run().check()
    assert all(ring.number(i).epochs[0] == (1, (0, 1, 2, 3)) for i in range(4))
    assert all(ring.number(i).epochs[-1][1] == tuple(range(5)) for i in range(5))
    assert min(ring.number(4).mixed) >= 50


@pytest.mark.parametrize("seed", seeds(2))
def test_who_leaves_is_no_death(seed: int) -> None:
    ring = Ring(6, 60, seed, events=[Event("leave", 3, 20), Event("rejoin", 3, 40)])
    ring.run().check()
    assert not ring.noted("detected")
    assert {about for _, about, _ in ring.noted("left")} == {3}


@pytest.mark.parametrize("seed", seeds(2))
def test_one_that_stands_still_stays_a_member_and_goes_on_with_its_number(seed: int) -> None:
    ring = Ring(6, 300, seed, events=[Event("freeze", 2, 20, rounds=50)])
    ring.run().check()
    assert ring.residue == 0
    assert all(len(ring.number(i).epochs) == 1 for i in range(6)), f"seed {seed}"
    gone = set(range(20, 301)) - set(ring.number(2).mixed)
    assert 40 < len(gone) < 60


def test_where_all_wait_for_one_that_stands_still_it_goes_on_after_a_while() -> None:
    ring = Ring(4, 60, sync=BARRIER, events=[Event("freeze", 2, 20, rounds=10)])
    ring.run().check()
    assert [len(ring.number(i).mixed) for i in range(4)] == [60] * 4


@pytest.mark.parametrize("seed", range(1))
def test_a_partition_goes_on_in_two_epochs_and_heals_into_one(seed: int) -> None:
    ring = Ring(6, 900, seed)
    ring.until_round(20)
    ring.world.network.partition([[0, 1, 2]])
    ring.world.run(ring.world.now + 10.0)
    for side in ((0, 1, 2), (3, 4, 5)):
        assert all(ring.number(i).epochs[-1][1] == side for i in side), f"seed {seed}"
    ring.world.network.heal()
    at = ring.world.began
    ring.run().check()
    assert at < 800
    for i in range(6):
        assert ring.number(i).epochs[-1][1] == tuple(range(6)), f"seed {seed}"
    assert max(ring.values) - min(ring.values) < 1e-3
    assert ring.noted("reborn")


def test_a_planned_partition_cuts_by_the_rounds_of_its_ends() -> None:
    def kept_back(round: int, sender: int, receiver: int) -> bool:
        return 20 <= round < 400 and (sender < 3) != (receiver < 3)

    ring = Ring(6, 900, kept_back=kept_back).run()
    ring.check()
    for i in range(6):
        seen = [members for _, members in ring.number(i).epochs]
        assert (0, 1, 2) in seen or (3, 4, 5) in seen
        assert seen[-1] == tuple(range(6))
        whom = {j for round, others in ring.number(i).mixed.items() if 20 <= round < 400 for j in others}
        assert all((j < 3) == (i < 3) for j in whom)


def test_lag_makes_messages_late_and_keeps_their_order() -> None:
    quick = Ring(4, 60).run().world.now
    late = Ring(4, 60, lag=lambda round, node: 0.05 if node == 1 and 20 <= round < 40 else 0.0)
    late.run().check()
    assert late.world.now - quick == pytest.approx(20 * 0.05, rel=0.3)
    assert all(sorted(number.mixed) == list(range(1, 61)) for number in map(late.number, range(4)))


def test_a_node_that_is_there_begins_no_second_life() -> None:
    ring = Ring(3, 10)
    with pytest.raises(ConfigError, match="node=1: is still there"):
        ring.begin(1)


def test_a_world_in_which_nothing_moves_says_so() -> None:
    ring = Ring(3, 50, sync=BARRIER)
    ring.until_round(10)
    ring.nodes[1].freeze()
    with pytest.raises(
        LocalError, match=r"no node has finished a round for 20 virtual seconds; the nodes are at: 1: exchanging"
    ):
        ring.run(patience=20.0)


def anything(seed: int, sync: str) -> tuple[Ring, Counter[str]]:
    """A federation to which anything may happen that the seed draws."""
    rng = random.Random(seed)
    n, rounds = rng.randrange(3, 9), 80
    events: list[Event] = []
    for node in rng.sample(range(1, n), rng.randrange(0, min(4, n))):
        kind, at = rng.choice(["crash", "crash", "leave", "freeze"]), rng.randrange(5, 40)
        events.append(Event(kind, node, at, rounds=rng.randrange(1, 30) if kind == "freeze" else 0))
        if kind != "freeze" and rng.random() < 0.7:
            events.append(Event("rejoin", node, at + rng.randrange(1, 30), rng.choice(["lost", "kept"])))
    link = Link(rng.choice([0.0, 0.002, 0.02]), rng.choice([0.0, 0.01]), loss=rng.choice([0.0, 0.02, 0.1]),
                reorder=rng.choice([0.0, 0.3]), duplicate=rng.choice([0.0, 0.2]))  # fmt: skip
    ring = Ring(n, rounds, seed, link, events, sync)
    if rng.random() < 0.4:
        ring.until_round(rng.randrange(5, 40))
        side = rng.sample(range(n), rng.randrange(1, n))
        ring.world.network.partition([side])
        ring.world.at(rng.uniform(0.1, 4.0), ring.world.network.heal)
    ring.run()
    return ring, Counter(event.event for event in events)


def check_anything(seed: int, sync: str) -> None:
    """Nobody waits for ever; who is there at the end has got through the last round; what is booked cancels."""
    ring, happened = anything(seed, sync)
    gone = {i for i, node in ring.world.nodes.items() if not node.done}
    assert len(gone) <= happened["crash"], f"seed {seed}: {gone}"
    left = {i for i, node in ring.world.nodes.items() if node.peer.round < ring.rounds} - gone
    late = {i for i in left if ring.world.nodes[i].facts.join_round}  # the others had finished before it was back
    late |= left & {i for i, _, _ in ring.noted("waiting")}  # it was parted from them until they had finished
    assert len(left - late) <= happened["leave"], f"seed {seed}: {left}"
    ring.check(sorted(set(range(ring.n)) - gone - left))


@pytest.mark.parametrize("sync", [DEADLINE, ASYNC])
@pytest.mark.parametrize("first", range(0, 10, 5))
def test_anything_goes(first: int, sync: str) -> None:
    for seed in range(first, first + 5):
        check_anything(seed, sync)


@pytest.mark.soak
@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("first", range(0, 1000, 50))
def test_anything_goes_for_long(first: int, sync: str) -> None:
    for seed in range(first, first + 50):
        check_anything(seed, sync)


def test_what_is_under_way_when_a_link_is_cut_is_lost() -> None:
    """The first greeting takes a second; the link is cut after half of it."""
    heard = []
    for cut in (False, True):
        ring = Ring(2, 5, link=Link(latency=1.0), preset="wan")
        if cut:
            ring.world.at(0.5, ring.world.network.partition, [[0]])
        ring.world.run(3.0)
        heard.append(sum(len(node.membership.members) for node in ring.nodes))
    assert heard == [4, 2]


# --- a machine that sleeps


class Behind:
    """The world as a node sees it whose clock stood still while its machine slept, as that of Linux does."""

    def __init__(self, world: World) -> None:
        self._world, self.behind = world, 0.0

    @property
    def now(self) -> float:
        return self._world.now - self.behind

    def when(self, time: float, call: Callable[..., None], *arguments: Any) -> None:
        self._world.when(time + self.behind + 1e-6, call, *arguments)  # not a rounding too early

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)


SECONDS, HOUR = (6.0, "local", STEP, 1200), (3600.0, "wan", 20.0, 260)


@pytest.mark.parametrize(
    ("slept", "preset", "step", "rounds", "counts"),
    [
        pytest.param(*SECONDS, True, id="seconds"),
        pytest.param(*SECONDS, False, id="seconds that its clock has not counted", marks=pytest.mark.more),
        pytest.param(*HOUR, True, id="an hour", marks=pytest.mark.more),
    ],
)
def test_a_laptop_that_has_slept_for_an_hour_is_back_among_the_others(
    slept: float, preset: str, step: float, rounds: int, counts: bool
) -> None:
    """With keys, and in the midst of its steps: as a life that it has signed anew, with its own number, in the round
    of the others. Whether its clock has gone on or has stood still, nobody else's is asked."""
    ring = Ring(4, rounds, preset=preset, keys=KEYS, step=step)
    node, clock = ring.world.nodes[2], Behind(ring.world)
    node.world = clock
    ring.until_round(20)
    ring.world.run(ring.world.now + step / 2)
    node.given = node.given._replace(probe_timing=node.given.probe_timing._replace(stalled_after=1e-3))
    node.freeze()
    ring.world.network.partition([[2]])
    ring.world.run(ring.world.now + slept)
    assert ring.world.nodes[0].peer.round > 100 and {about for _, about, _ in ring.noted("removed")} == {2}
    clock.behind = 0.0 if counts else slept
    ring.world.network.heal()
    node.thaw()
    ring.world.run(ring.world.now + max(slept / 2, 10 * step))  # which is less than it has slept
    assert [(by, about) for by, about, _ in ring.noted("reborn")] == [(2, 2)]
    assert abs(node.peer.round - ring.world.nodes[0].peer.round) <= KEPT
    ring.run(patience=4000.0).check()
    assert all(ring.number(i).epochs[-1][1] == (0, 1, 2, 3) for i in range(4))
    assert max(ring.values) - min(ring.values) < 1e-2
    assert not any(each.event_log.dropped.get(reason) for each in ring.nodes for reason in ("signature", "sender"))


@pytest.mark.parametrize(
    ("whole", "keys"),
    [
        pytest.param(False, None, id="its process", marks=pytest.mark.more),
        pytest.param(True, KEYS, id="its machine, keys", marks=pytest.mark.more),
        pytest.param(False, KEYS, id="its process, keys", marks=pytest.mark.soak),
        pytest.param(True, None, id="its machine", marks=pytest.mark.soak),
    ],
)
def test_of_two_the_other_goes_on_alone_when_one_stands_still_and_they_meet_again(whole: bool, keys: Any) -> None:
    """Half of the nodes is not more than half: neither waits for the other, for longer than it takes to be silent."""
    ring = Ring(2, 3600, preset="lan", keys=keys)
    ring.until_round(100)
    one, other = ring.nodes
    if whole:  # its membership as well
        other.given = other.given._replace(probe_timing=other.given.probe_timing._replace(stalled_after=1e-3))
    other.freeze()
    began, at, silence = ring.world.now, one.peer.round, PRESETS["lan"].silence
    ring.world.run(began + silence + 1.0)
    assert one.peer.round > at + 10 and not one.peer.waits
    ring.world.run(began + 25.0)
    removed = [time - began for time, by, what, _, _ in ring.notes if (by, what) == (0, "removed")]
    assert removed == ([pytest.approx(2.5, abs=1.5)] if whole else [])
    apart = one.peer.round - other.peer.round
    assert apart > 1000 and one.peer.alone == 0  # which counts rounds with less than half
    other.thaw()
    ring.world.run(ring.world.now + 3.0)
    assert abs(one.peer.round - other.peer.round) <= 1
    ring.run().check()
    assert max(ring.values) - min(ring.values) < 1e-6
    # where its process hung, it skips what it has missed; where it was held for dead, the other goes back to it
    assert {by for by, _, _ in ring.noted("returned")} == ({0} if whole else set())
    assert (len(ring.number(1).mixed) < 3600 - apart / 2) != whole


def test_who_is_left_of_three_waits_though_the_memberships_of_the_others_whose_processes_hang_answer() -> None:
    ring = Ring(3, 400, keys=KEYS)
    ring.until_round(20)
    for node in ring.nodes[1:]:
        node.freeze()
    ring.world.run(ring.world.now + 1.5)
    at = ring.nodes[0].peer.round
    assert ring.nodes[0].peer.waits and at <= 22
    ring.world.run(ring.world.now + 5.0)
    assert ring.nodes[0].peer.round == at and not ring.noted("removed")
    for node in ring.nodes[1:]:
        node.thaw()
    ring.run().check()
    assert ring.nodes[0].peer.alone == 0 and ring.noted("gathered")


# --- no single voice


@pytest.mark.parametrize("alone", [WAIT, pytest.param(TRAIN, marks=pytest.mark.more)])
@pytest.mark.parametrize("seed", seeds(2))
def test_one_that_is_cut_off_takes_no_round_from_the_others(seed: int, alone: str) -> None:
    """Link by link for ten seconds, as when a cable is pulled. Whatever it does meanwhile, the others train on."""
    ring = Ring(4, 2000, seed, alone=alone)
    ring.until_round(300)
    ring.world.network.partition([[1]])
    ring.world.run(ring.world.now + 10.0)
    there, away = ring.world.nodes[0].peer.round, ring.world.nodes[1].peer.round
    assert ring.world.nodes[1].peer.waits == (alone == WAIT)
    ring.world.network.heal()
    ring.run().check()
    for i in (0, 2, 3):
        assert sorted(ring.number(i).mixed) == list(range(1, 2001)), f"seed {seed}"
    lost = set(range(1, 2001)) - set(ring.number(1).mixed)
    if alone == WAIT:
        assert len(lost) >= there - away > 100
        assert ring.world.nodes[1].peer.alone == 0
    else:
        assert away > there + 100  # it waits for nobody, and is faster
        assert not lost  # it goes back to where the others are
        assert [about for _, about, _ in ring.noted("returned")] == [1]
        assert ring.world.nodes[1].peer.alone > 300
    assert max(ring.values) - min(ring.values) < 1e-6


@pytest.mark.parametrize("seed", seeds(2))
def test_two_halves_that_find_each_other_agree_on_the_round_of_the_majority(seed: int) -> None:
    """Neither half has lost more than half: both train on, one of them faster. Afterwards nobody skips a round."""
    ring = Ring(4, 1200, seed)
    ring.until_round(20)
    ring.world.network.partition([[0, 1]])
    ring.link = Link(latency=0.002, jitter=0.002)
    slow = Link(latency=0.02, jitter=0.002)
    ring.world._link = lambda source, to: slow if {source, to} <= {2, 3} else ring.link
    ring.world.run(ring.world.now + 10.0)
    fast, slower = ring.world.nodes[0].peer.round, ring.world.nodes[2].peer.round
    assert fast > slower + 100
    ring.world.network.heal()
    ring.world.run(ring.world.now + 5.0)
    rounds = [node.peer.round for node in ring.nodes]
    assert max(rounds) - min(rounds) < 10, f"seed {seed}"
    assert {1} <= {about for _, about, _ in ring.noted("returned")} <= {0, 1}
    ring.run().check()
    for i in range(4):
        assert len(set(range(1, 1201)) - set(ring.number(i).mixed)) < 20


@pytest.mark.parametrize("seed", seeds(6, fast=1))
def test_nobody_goes_back_for_what_others_said_a_while_ago(seed: int) -> None:
    """Who is no neighbour is heard of about once a second: in 100 rounds, here. At the start, and after a short cut."""
    ring = Ring(12, 600, seed, link=Link(latency=0.0005))
    ring.until_round(200)
    ring.world.network.partition([[4]])
    ring.world.run(ring.world.now + 0.7)  # too short for a death
    ring.world.network.heal()
    ring.run().check()
    assert ring.noted("suspected") == [] and ring.noted("returned") == [] and ring.noted("reborn") == []


def test_what_one_says_of_its_round_is_not_obeyed() -> None:
    """A neighbour that says it is in the last round, in every ping, offer and letter."""
    ring = Ring(4, 400)
    liar = ring.world.nodes[1]
    ring.until_round(50)
    send, said = ring.world.send, ring.world.say

    def lies(source: VirtualNode, to: int, envelope: Any) -> None:
        message = envelope.message
        if source is liar and hasattr(message, "round"):
            envelope = envelope._replace(message=message._replace(round=400))
        send(source, to, envelope)

    ring.world.send = lies  # type: ignore[method-assign]
    liar.membership.handle(Progress(400), ring.world.now)
    ring.run()
    for i in (0, 2, 3):
        assert sorted(ring.number(i).mixed) == list(range(1, 401))
    assert said is not None


@pytest.mark.more
def test_who_ends_alone_is_not_there_for_the_others() -> None:
    """It has trained to the end without them, and says good-bye: no hole is left in the ring."""
    ring = Ring(4, 3000, alone=TRAIN)
    ring.until_round(100)
    ring.world.network.partition([[1]])
    while not ring.world.nodes[1].done:
        ring.world.run(ring.world.queue.due)
    assert ring.world.nodes[0].peer.round < 2900
    ring.world.network.heal()
    ring.run().check([0, 2, 3])
    assert ring.number(0).epochs[-1][1] == (0, 2, 3)
    assert ring.number(0).mixed[2990] == [2, 3]
    assert ring.world.nodes[1].peer.told == 2999


def test_what_one_says_of_the_rounds_of_others_is_not_obeyed() -> None:
    """One member tells everybody, in letters and to its neighbours, that all others and it are in the last round."""
    ring = Ring(5, 400)
    ring.until_round(50)
    liar, send = ring.world.nodes[1], ring.world.send

    def lies(source: VirtualNode, to: int, envelope: Any) -> None:
        if source is liar and hasattr(envelope.message, "round"):
            envelope = envelope._replace(message=envelope.message._replace(round=400))
        send(source, to, envelope)

    ring.world.send = lies  # type: ignore[method-assign]
    roster = liar.membership._roster
    while ring.world.began < 300:
        for entry in [*roster.entries.values()]:
            if not entry.terminal:
                roster.entries[entry.node] = entry._replace(said=entry.said + 1000, round=400)
                roster.spread.put(roster.entries[entry.node])
        ring.world.run(ring.world.now + 0.2)
    assert any(member.round == 400 for member in ring.world.nodes[3].membership.members)  # it is heard
    ring.run()
    for i in (0, 2, 3, 4):
        assert sorted(ring.number(i).mixed) == list(range(1, 401))
