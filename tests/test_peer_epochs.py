"""The real Peer through epochs of the membership: re-planned graphs, partitions, false deaths, joins, and no barrier.

What is checked is what a sum-invariant algorithm needs: once all members are in one epoch, what they track sums up to
what it is to be, whatever was lost, late or dead before.
"""

from __future__ import annotations

import random
from typing import Any

import networkx as nx
import pytest
from seeds import batches, seeds
from test_peer import Node, World, gaps

from p2pfl.protocol.events import Advance, Leave, Members, Seen, Start, Trained
from p2pfl.protocol.messages import Want
from p2pfl.protocol.neighbor import ASYNC, BARRIER, EpochPlan, RoundPlan
from p2pfl.protocol.timing import LOCAL


class Tracker(Node):
    """Follows the mean of the numbers g with y, which starts from g in each epoch: sum y = sum g, or it is wrong."""

    def __init__(self, world: World, node: int, life: int, **facts: Any) -> None:
        self.g = random.Random(f"{node} {life}").uniform(-1, 1)
        self.y, self.epoch = self.g, 0
        self.at: dict[int, int] = {}  # round -> epoch it was mixed in
        super().__init__(world, node, life, **facts)

    def plan(self, members: tuple[int, ...]) -> EpochPlan:
        """A ring of those who are there."""
        n, i = len(members), members.index(self.node)
        beside = tuple(sorted({members[i - 1], members[(i + 1) % n]} - {self.node}))
        return EpochPlan(lambda round: RoundPlan(exchange=beside), max(2, len(beside)), beside, steady=True)

    def mix(self, effect: Advance) -> None:
        for b in effect.booked:
            assert b.mine is not None
            assert b.mine.epoch == b.theirs.epoch == self.epoch
            w = 1 / 3
            self.value += w * (b.theirs.payload[0] - b.mine.payload[0])
            self.y += w * (b.theirs.payload[1] - b.mine.payload[1])
        self.at[effect.finished] = self.epoch

    def enter(self, effect: Advance) -> None:
        self.y, self.epoch = self.g, self.peer.state.epoch

    def train(self, effect: Advance) -> Trained:
        new = self.world.random.uniform(-1, 1)
        self.y, self.g = self.y + new - self.g, new
        return Trained((self.value, self.y))

    def adopt(self, model: Any) -> None:
        self.value = model[0]


class Ring(World):
    """A world that can be partitioned. Its membership sees each side by itself, and accuses who comes back."""

    kind = Tracker

    def __init__(self, nodes: int, rounds: int, **given: Any) -> None:
        self.side: dict[int, int] = {}
        self.kept = 0  # lives that began with a model of their own
        super().__init__(nx.cycle_graph(nodes), rounds, **given)

    def apart(self, a: int, b: int) -> bool:
        return self.side.get(a, 0) != self.side.get(b, 0)

    def send(self, source: int, to: int, envelope: Any) -> None:
        if not self.apart(source, to):
            super().send(source, to, envelope)

    def inform(self, node: Node) -> None:
        there = {n: life for n, life in self.members.items() if not self.apart(n, node.node)}
        furthest = {n: self.nodes[n].peer.round for n in there}
        away = {n: life for n, life in self.members.items() if n not in there}  # held for dead on this side
        seen = tuple(Seen(n, life, False, furthest[n]) for n, life in sorted(there.items()))
        node.handle(Members(seen, over=tuple({**self.past, **away}.items())))

    def partition(self, *groups: set[int]) -> None:
        self.side = {n: i for i, group in enumerate(groups) for n in group}
        for node in self.nodes.values():
            self.at(self.random.uniform(0.8, 1.2), self.inform, node)

    def heal(self) -> None:
        self.side = {}
        for node in self.nodes.values():
            self.at(self.random.uniform(0.05, 0.5), self.accuse, node)

    def accuse(self, node: Node) -> None:
        node.handle(Members(tuple(node.peer.state.seen.values()), accused=node.peer.life))

    def come_back(self, node: int) -> None:
        """A dead node returns with the model that it had after the last round it finished; this life, or an earlier."""
        old = self.nodes[node]
        self.restart(node, kept_round=max(old.finished_at, default=old.peer.state.facts.kept_round))
        self.nodes[node].value = old.value
        self.kept += self.nodes[node].peer.state.facts.kept_round > 0

    def check(self) -> int:
        """Whenever all members are in one epoch, between rounds, the invariant holds; returns how many are there."""
        there = [n for n in self.nodes.values() if not n.dead and n.peer.stage == "done"]
        assert len({n.epoch for n in there}) == 1, [(n.node, n.epoch) for n in there]  # type: ignore[attr-defined]
        y, g = sum(n.y for n in there), sum(n.g for n in there)  # type: ignore[attr-defined]
        assert y == pytest.approx(g, abs=1e-9)
        return len(there)


def lately(node: Node) -> list[int]:
    """With whom it has mixed in its last rounds: in a single one a neighbour may be missed."""
    return sorted({j for round in sorted(node.mixed_with)[-5:] for j in node.mixed_with[round]})


def test_a_ring_closes_around_the_dead() -> None:
    world = Ring(8, 200)
    world.run_until_round(20)
    world.kill(3)
    world.run_until_round(120)
    world.kill(4)
    world.kill(7)
    world.run()
    assert world.check() == 5
    assert [lately(world.nodes[i]) for i in (0, 1, 2, 5, 6)] == [[1, 6], [0, 2], [1, 5], [2, 6], [0, 5]]
    assert all(gaps(node) < LOCAL.silence + 2 * LOCAL.ping_every + 0.2 for node in world.nodes.values() if node.done)
    assert {(n.event, n.about) for n in world.nodes[0].notes} >= {("removed", 3), ("removed", 4), ("removed", 7)}


@pytest.mark.parametrize("seed", seeds(20, fast=1))
def test_a_partition_and_its_healing(seed: int) -> None:
    world = Ring(8, 900, seed=seed, loss=0.02 if seed % 2 else 0.0)
    world.run_until_round(20)
    world.partition({0, 1, 2, 5}, {3, 4, 6, 7})
    world.run_until_round(300)
    assert lately(world.nodes[0]) == [1, 5]
    assert lately(world.nodes[3]) == [4, 7]
    world.heal()
    world.run_until_round(800)
    world.loss = 0.0
    world.run()
    assert world.check() == 8
    # everybody has been held for dead once; a side that was further on goes back to where the majority is
    assert {n.peer.life for n in world.nodes.values()} <= {2, 3}
    assert [lately(world.nodes[i]) for i in range(8)] == [sorted([(i + 1) % 8, (i - 1) % 8]) for i in range(8)]
    assert all(gaps(n) < 2.0 for n in world.nodes.values())
    values = [n.value for n in world.nodes.values()]
    assert max(values) - min(values) < 0.01


@pytest.mark.parametrize("seed", seeds(20))
def test_a_false_death_costs_rounds_and_nothing_else(seed: int) -> None:
    """Everybody believes that node 2 is dead; it never was. It goes on as a new life with its own model."""
    world = Ring(6, 300, seed=seed)
    world.run_until_round(20 + seed)
    life = world.nodes[2].peer.life
    world.buried(2, life)
    world.at(0.3, world.accuse, world.nodes[2])
    world.run()
    assert world.check() == 6
    assert world.nodes[2].peer.life == life + 1
    assert [note.event for note in world.nodes[2].notes].count("reborn") == 1
    assert lately(world.nodes[2]) == [1, 3]
    # what was open when they gave it up may be booked at one end: the mean moves by no more than such a residue
    assert world.mean == pytest.approx(2.5, abs=0.5)


@pytest.mark.parametrize("seed", seeds(20))
def test_two_join_at_once_with_two_models_to_choose_from(seed: int) -> None:
    world = Ring(8, 300, seed=seed)
    for late in (3, 4):
        world.nodes[late].dead = True
    world.run_until_round(40)
    for late in (3, 4):
        world.restart(late)
    at = max(max(n.finished_at, default=0) for n in world.nodes.values())
    world.run()
    assert world.check() == 8
    for late in (3, 4):
        node = world.nodes[late]
        assert min(node.finished_at) <= at + 6
        joined = [note for note in node.notes if note.event == "joined"]
        assert len(joined) == 1
    assert any("of 2 that were given" in note.detail for n in world.nodes.values() for note in n.notes)


class Asked(Ring):
    """Notes who is asked for a model, and by whom."""

    def __init__(self, *given: Any, **more: Any) -> None:
        self.asked: list[tuple[int, int]] = []
        super().__init__(*given, **more)

    def send(self, source: int, to: int, envelope: Any) -> None:
        if isinstance(envelope.message, Want):
            self.asked.append((source, to))
        super().send(source, to, envelope)


def test_who_join_at_once_ask_two_members_each_and_all_of_them_others() -> None:
    """A large model costs its donor: nobody gives it to three, while others give it to nobody."""
    world, late = Asked(10, 300), (3, 4, 8)
    for node in late:
        world.nodes[node].dead = True
    world.run_until_round(40)
    for node in late:
        world.restart(node)
    world.run()
    assert world.check() == 10
    assert sorted(source for source, _ in world.asked) == sorted(2 * late)
    assert len({to for _, to in world.asked}) == 6


def test_where_the_donors_die_others_are_asked() -> None:
    class Dying(Asked):
        def send(self, source: int, to: int, envelope: Any) -> None:
            super().send(source, to, envelope)
            if isinstance(envelope.message, Want) and len(self.asked) <= 2:
                self.kill(to)

    world = Dying(8, 300)
    world.nodes[3].dead = True
    world.run_until_round(40)
    world.restart(3)
    world.run()
    assert world.check() == 6
    first, others = [to for _, to in world.asked[:2]], {to for _, to in world.asked[2:]}
    assert all(world.nodes[node].dead for node in first) and len(others - {*first}) >= 2
    joined = [note.detail for note in world.nodes[3].notes if note.event == "joined"]
    assert len(joined) == 1 and not any(f"the model of node {node}," in joined[0] for node in first)


@pytest.mark.parametrize("seed", seeds(10))
def test_a_node_comes_back_with_its_own_model(seed: int) -> None:
    world = Ring(6, 300, seed=seed)
    world.run_until_round(20)
    world.kill(2)
    kept, value = max(world.nodes[2].finished_at), world.nodes[2].value
    world.run_until_round(120)
    world.restart(2, kept_round=kept)
    world.nodes[2].value = value
    world.run()
    assert world.check() == 6
    back = world.nodes[2]
    assert min(back.finished_at) >= 120
    assert [(note.event, note.detail) for note in back.notes if note.event == "joined"] == [
        ("joined", "with its own model")
    ]
    assert world.mean == pytest.approx(2.5, abs=0.5)


def test_a_node_that_joins_and_dies_unheard_of_by_some_leaves_another_epoch_behind() -> None:
    """Half of the nodes never hear of it while it is there. Who has met it has restarted its sum; the others must."""
    world = Ring(6, 400)
    world.nodes[5].dead = True
    world.run_until_round(40)
    first = {n.epoch for n in world.nodes.values() if not n.dead}  # type: ignore[attr-defined]
    deaf, inform = {0, 1, 2}, world.inform
    world.inform = lambda node: None if node.node in deaf else inform(node)  # type: ignore[method-assign]
    world.restart(5)
    world.run_until_round(60)
    world.kill(5)
    world.buried(5, world.nodes[5].peer.life)
    world.run(until=world.now + 0.2)
    deaf.clear()
    world.tell()
    world.run()
    assert world.check() == 5
    assert not first & {n.epoch for n in world.nodes.values() if not n.dead}  # type: ignore[attr-defined]


def test_all_come_back_with_what_they_had() -> None:
    """The whole federation was stopped, each node after another round."""
    world = Ring(5, 100)
    for node in range(5):
        world.nodes[node].dead = True
        world.nodes[node] = new = Tracker(world, node, 2, kept_round=40 + node)
        world.at(0.01 * node, new.handle, Start())
        world.at(0.05, world.tick, new)
    world.run()
    assert world.check() == 5
    assert all(min(n.finished_at) >= 41 for n in world.nodes.values())
    assert world.mean == pytest.approx(2.0, abs=1e-12)


def test_a_leaver_is_gone_and_the_ring_closes() -> None:
    world = Ring(6, 100)
    world.run_until_round(20)
    world.at(0.004, world.nodes[1].handle, Leave(idle=False))
    world.run()
    there = [n for n in world.nodes.values() if n.node != 1]
    assert world.nodes[1].done
    assert lately(world.nodes[0]) == [2, 5]
    assert not any(note.event in ("detected", "late") for n in there for note in n.notes)
    assert sum(n.y for n in there) == pytest.approx(sum(n.g for n in there), abs=1e-9)  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", seeds(10))
def test_with_a_barrier_the_others_wait_for_one_that_is_frozen_and_book_everything(seed: int) -> None:
    class Patient(Ring):
        facts = {"sync": BARRIER}

    world = Patient(6, 60, seed=seed)
    world.run_until_round(20)
    world.freeze(2)
    world.at(5.0, world.thaw, 2)
    world.run()
    assert all(sorted(n.finished_at) == list(range(1, 61)) for n in world.nodes.values())
    assert all(len(whom) == 2 for n in world.nodes.values() for whom in n.mixed_with.values())
    assert all(n.peer.voided == 0 for n in world.nodes.values())
    assert world.mean == pytest.approx(2.5, abs=1e-12)


class Free(Ring):
    facts = {"sync": ASYNC}


@pytest.mark.parametrize("seed", seeds(20))
def test_without_a_barrier_nobody_waits_and_the_mean_is_kept(seed: int) -> None:
    world = Free(6, 200, seed=seed, loss=0.05 if seed % 2 else 0.0)
    slow, advance = world.nodes[1], world.nodes[1].advance
    slow.advance = lambda effect: world.at(0.1, advance, effect)  # type: ignore[method-assign]
    world.run_until_round(150)
    world.loss = 0.0
    world.run()
    assert all(node.done and sorted(node.finished_at) == list(range(1, 201)) for node in world.nodes.values())
    assert world.mean == pytest.approx(2.5, abs=1e-10)
    quick = [n for n in world.nodes.values() if n.node not in (1,)]
    for node in quick:  # a round takes as long as its training; but for the last, which leaves nothing open
        del node.finishes[-1]
        assert gaps(node) < 0.03
    assert all(n.peer.booked > 20 for n in world.nodes.values())
    assert not any(note.event in ("late", "skipped") for n in world.nodes.values() for note in n.notes)


@pytest.mark.parametrize("seed", seeds(20))
def test_without_a_barrier_random_pairs_meet(seed: int) -> None:
    """AD-PSGD: whom one chooses is offered an exchange and takes it, though its own choice is another."""

    class Pairing(Tracker):
        def plan(self, members: tuple[int, ...]) -> EpochPlan:
            def turn(round: int) -> RoundPlan:
                shuffled = random.Random(round).sample(members, len(members))
                at = shuffled.index(self.node)
                return RoundPlan(exchange=(shuffled[at ^ 1],) if at ^ 1 < len(shuffled) else ())

            return EpochPlan(turn, 4, tuple(n for n in members if n != self.node))

    class Pairs(Free):
        kind = Pairing

    world = Pairs(6, 200, seed=seed)
    world.run()
    assert all(node.done for node in world.nodes.values())
    assert world.mean == pytest.approx(2.5, abs=1e-12)
    values = [n.value for n in world.nodes.values()]
    assert max(values) - min(values) < 1e-3
    assert all(n.peer.booked > 100 for n in world.nodes.values())


def storm(seed: int, sync: str, rounds: int = 700) -> Ring:
    """Deaths, false deaths, freezes, a partition, returns with and without a model, and losses; then quiet."""
    rng = random.Random(seed)

    class Storm(Ring):
        facts = {"sync": sync}

    world = Storm(rng.randrange(3, 10), rounds, seed=seed, loss=rng.choice([0.0, 0.02, 0.1]))
    world.run_until_round(10)
    ids = sorted(world.nodes)
    for _ in range(rng.randrange(1, 5)):
        node, kind = rng.choice(ids), rng.choice(["kill", "kill and keep", "bury", "freeze", "partition"])
        if kind.startswith("kill") and not world.nodes[node].dead:
            world.kill(node)
            world.at(rng.uniform(0.05, 2.0), world.come_back if kind.endswith("keep") else world.restart, node)
        elif kind == "bury":
            world.buried(node, world.nodes[node].peer.life)
            world.at(rng.uniform(0.1, 1.0), world.accuse, world.nodes[node])
        elif kind == "freeze":
            world.freeze(node)
            world.at(rng.uniform(0.1, 2.0), world.thaw, node)
        elif kind == "partition" and not world.side:
            half = set(rng.sample(ids, len(ids) // 2))
            world.partition(half, set(ids) - half)
            world.at(rng.uniform(0.5, 3.0), world.heal)
        world.run(until=world.now + rng.uniform(0.1, 2.0))
    world.run(until=world.now + 3.0)
    world.loss = 0.0
    world.run()
    return world


@pytest.mark.parametrize(
    "some", [pytest.param(range(7, 9), id="7-8"), *batches(range(60), 15), *batches(range(1000, 3000), 25)]
)
def test_after_any_storm_the_sum_is_right(some: range) -> None:
    kept = 0
    for seed in some:
        world = storm(seed, "deadline")
        assert all(n.done for n in world.nodes.values() if not n.dead), f"seed {seed}"
        assert world.check() == len(world.nodes), f"seed {seed}"
        kept += world.kept
    assert kept  # in some of them a node came back with its model
