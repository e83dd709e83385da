"""The real Peer on graphs that change from round to round, and with pushes, in the world of test_peer.py."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest
from seeds import batches, seeds
from test_peer import Node, World, gaps

from p2pfl.protocol.events import Advance, Leave, Members, Received, Refused, Seen, Send, Start, Tick, Trained
from p2pfl.protocol.exchange import Side
from p2pfl.protocol.messages import Envelope, Hello, Offer, Ping, Push, Receipt
from p2pfl.protocol.neighbor import KEPT, EpochPlan, Facts, Neighbor, RoundPlan, epoch_of
from p2pfl.protocol.peer import Peer
from p2pfl.protocol.timing import LOCAL


def told(node: Node) -> list[str]:
    """The events a node has noted; the clock of a world begins with a jump."""
    return [note.event for note in node.notes if note.event != "paused"]


# --- exchanges on a graph that changes


class Pairs(World):
    """In round r, node i meets i XOR 2^(r mod 3): the hypercube, one peer at a time. `losses`: of whole exchanges."""

    steady = False

    def __init__(self, rounds: int, losses: float = 0.0, **given: Any) -> None:
        self.losses = losses
        super().__init__(nx.from_edgelist([(i, i ^ 1 << k) for i in range(8) for k in range(3)]), rounds, **given)

    def turn(self, node: int, round: int) -> RoundPlan:
        other = node ^ 1 << round % 3
        gone = random.Random(f"{round} {min(node, other)} {max(node, other)}").random() < self.losses
        return RoundPlan(void=(other,)) if gone else RoundPlan(exchange=(other,))

    def weight(self, one: int, other: int) -> float:
        return 0.5


def test_one_peer_at_a_time_averages_exactly_after_one_period() -> None:
    world = Pairs(30)
    world.run()
    for node in world.nodes.values():
        assert node.done
        assert sorted(node.mixed_with) == list(range(1, 31))
        assert node.value == 3.5
        assert node.peer.voided == 0
        assert not [note for note in node.notes if note.event in ("skipped", "late", "alone")]
    assert world.nodes[5].mixed_with[1] == [7]


def test_a_planned_loss_is_opened_by_neither_end_and_counted_by_both() -> None:
    world = Pairs(60, losses=0.3)
    world.run()
    lost = 0
    for node in world.nodes.values():
        for round in range(1, 61):
            turn = world.turn(node.node, round)
            assert node.mixed_with[round] == list(turn.exchange)
            lost += len(turn.void)
    assert sum(node.peer.voided for node in world.nodes.values()) == lost > 50
    assert max(world.nodes[0].finished_at.values()) < 60 * 0.05  # nobody waits for what is not to come
    assert world.mean == pytest.approx(3.5, abs=1e-12)


@pytest.mark.parametrize("seed", seeds(10))
def test_changing_exchanges_survive_losses_deaths_and_freezes(seed: int) -> None:
    world = Pairs(150, seed=seed, loss=0.05)
    world.run_until_round(30)
    world.freeze(2)
    world.at(1.5, world.thaw, 2)
    world.run_until_round(120)
    world.loss = 0.0
    world.run()
    assert all(node.done and max(node.finished_at) == 150 for node in world.nodes.values())
    assert world.mean == pytest.approx(3.5, abs=1e-12)
    assert any(note.event == "skipped" for note in world.nodes[2].notes)


@pytest.mark.parametrize("seed", seeds(20))
def test_where_partners_change_a_death_and_a_return_hold_nobody_up_for_long(seed: int) -> None:
    world = Pairs(300, seed=seed)
    world.run_until_round(30)
    world.at(world.random.uniform(0, 0.03), world.kill, 5)
    world.at(0.15 if seed % 2 else 2.0, world.restart, 5)
    world.run()
    timing = world.timing
    for node in world.nodes.values():
        assert node.done
        assert max(node.finished_at) == 300
        assert gaps(node) < timing.silence + 3 * timing.ping_every + 0.2
        assert "late" not in told(node)
        assert told(node).count("skipped") <= 3
        assert node.node == 5 or len(node.mixed_with) > 290


def test_an_exchange_left_open_is_not_waited_for_in_the_rounds_of_others() -> None:
    timing = LOCAL._replace(deadline_min=0.03, deadline_max=0.03, patience=0.0)
    world = Pairs(60, timing=timing)
    advance = world.nodes[1].advance
    slow = [True]
    world.nodes[1].advance = lambda effect: world.at(0.1 if slow[0] else 0, advance, effect)  # type: ignore[method-assign]
    world.run_until_round(40)
    slow[0] = False
    world.run()
    assert all(node.done for node in world.nodes.values())
    assert world.mean == pytest.approx(3.5, abs=1e-12)
    assert any(note.event == "late" for note in world.nodes[0].notes)
    late = [(node.node, note) for node in world.nodes.values() for note in node.notes if note.event == "late"]
    assert all(world.turn(node, note.round).exchange == (note.about,) for node, note in late if note.round < 60)


def driven(**facts: Any) -> tuple[Peer, Callable[..., list[Any]]]:
    """Node 0 between 1 and 2, which are played by hand; ready to train its first round."""
    turn = facts.pop("turn", lambda round: RoundPlan(exchange=(1, 2)))
    plan = EpochPlan(turn, facts.pop("slots", 2), (1, 2))
    given = {"lateness": 8, "payload_bytes": 8, "timing": LOCAL._replace(silence=1e6), **facts}
    peer = Peer(Facts(0, 1, 3, (0, 1, 2), lambda members: plan, 9, "f", "s", **given))
    peer.handle(Start(), 0.0)
    peer.handle(Members((Seen(0, 1), Seen(1, 5), Seen(2, 5))), 0.0)

    def hears(node: int, *messages: Any, payload: Any = None) -> list[Any]:
        return [e for m in messages for e in peer.handle(Received(Envelope(node, 5, 1, m, payload)), 0.1)]

    hears(1, Hello(1, "f", "s", 0))
    first = [effect for effect in hears(2, Hello(1, "f", "s", 0)) if isinstance(effect, Advance)]
    assert [(advance.finished, advance.next) for advance in first] == [(0, 1)]
    return peer, hears


EPOCH = epoch_of([(0, 1), (1, 5), (2, 5)])


def booked(effects: list[Any]) -> list[list[tuple[int, int]]]:
    """Of each Advance: (node, number) of what it mixes."""
    return [[(b.node, b.number) for b in effect.booked] for effect in effects if isinstance(effect, Advance)]


def test_what_is_too_much_for_a_round_is_held_over_oldest_first_and_flushed_at_the_end() -> None:
    peer, hears = driven(slots=1)
    peer.handle(Trained("mine"), 0.1)
    assert booked(hears(1, Offer(0, 1, "", EPOCH), Receipt(0), payload="a")) == []
    assert booked(hears(2, Offer(0, 1, "", EPOCH), Receipt(0), payload="b")) == [[(1, 0)]]
    peer.handle(Trained("mine"), 0.2)
    # with node 2 no second exchange is opened before the first has been mixed
    assert booked(hears(1, Offer(1, 2, "b", EPOCH), Receipt(1), payload="a")) == [[(2, 0)]]
    peer.handle(Leave(idle=False), 0.3)
    assert booked(peer.handle(Trained("mine"), 0.3)) == [[(1, 1)]]


def test_a_round_mixes_one_exchange_of_a_neighbor() -> None:
    """While one that was booked late is not mixed, no other is opened: with two in flight, late exchanges blow up."""
    peer, hears = driven(turn=lambda round: RoundPlan(exchange=(1,)), slots=2)
    peer.handle(Trained("mine"), 0.1)
    assert booked(peer.handle(Tick(), 10.0)) == [[]]
    assert booked(hears(1, Offer(0, 1, "", EPOCH), Receipt(0), payload="a")) == []
    assert booked(hears(1, Offer(1, 2, "b", EPOCH), payload="a")) == []
    assert booked(peer.handle(Trained("mine"), 71.0)) == [[(1, 0)]]
    assert booked(peer.handle(Trained("mine"), 72.0)) == []
    assert booked(hears(1, Receipt(1))) == [[(1, 1)]]


def turn_about(round: int) -> RoundPlan:
    return RoundPlan(exchange=(1,) if round % 2 else (2,))


def test_a_neighbor_that_has_passed_the_round_by_is_not_waited_for() -> None:
    peer, hears = driven(turn=turn_about)
    peer.handle(Trained("mine"), 0.1)
    assert booked(hears(1, Ping(0, False, "", 1))) == []
    assert booked(hears(1, Ping(0, False, "", 3))) == []  # it will make an offer in its present round
    assert booked(hears(1, Ping(0, False, "", 4))) == [[]]
    assert peer.round == 2  # where node 1 is, it is alone, for all that is known


def test_who_has_been_passed_by_follows_where_a_majority_is() -> None:
    peer, hears = driven(turn=turn_about)
    peer.handle(Trained("mine"), 0.1)
    hears(2, Ping(0, False, "", 4))
    assert booked(hears(1, Ping(0, False, "", 4))) == [[]]
    assert peer.round == 4  # which both have been in, without this node in rounds 2 and 3


def test_who_skips_rounds_tells_all_that_may_wait_for_it() -> None:
    peer, hears = driven(turn=turn_about)
    peer.handle(Trained("mine"), 0.1)
    hears(2, Ping(0, False, "", 5))
    effects = hears(1, Offer(0, 5, "", EPOCH), Receipt(0), payload="a")
    assert booked(effects) == [[(1, 0)]]
    pings = [e for e in effects if isinstance(e, Send) and isinstance(e.envelope.message, Ping)]
    assert [(ping.to, ping.envelope.message.round) for ping in pings] == [(1, 5), (2, 5)]


def test_a_neighbor_may_be_ahead_by_what_the_schedule_allows() -> None:
    """Node 2 is in round 6 and had no turn with this node since round 2, which is this one."""
    peer, hears = driven(turn=lambda round: RoundPlan(exchange=(2,) if round in (2, 6) else (1,)))
    peer.handle(Trained("mine"), 0.1)
    hears(1, Offer(0, 1, "", EPOCH), Receipt(0), payload="a")
    peer.handle(Trained("mine"), 0.2)
    assert booked(hears(2, Offer(0, 2, "", EPOCH), Receipt(0), Offer(1, 6, "b", EPOCH), payload="b")) == [[(2, 0)]]
    assert peer.round == 3


def test_one_that_returns_far_ahead_has_passed_nobody_over() -> None:
    peer, hears = driven()
    peer.handle(Trained("mine"), 0.1)
    peer.handle(Received(Envelope(1, 6, 0, Hello(1, "f", "s", 7))), 0.1)
    assert booked(hears(2, Offer(0, 1, "", EPOCH), Receipt(0), payload="b")) == [[(2, 0)]]
    assert peer.round == 2


# --- pushes


class Pusher(Node):
    """Push-sum of one number by running sums: nothing that is lost on the way is lost for good."""

    def __init__(self, world: World, node: int, life: int, **facts: Any) -> None:
        super().__init__(world, node, life, per_edge=True, **facts)
        self.mine = (float(node), 1.0)
        self.sent = {j: (0.0, 0.0) for j in self.neighbors}
        self.seen = dict(self.sent)
        self.ages: list[int] = []
        self.epochs = 0

    def mix(self, effect: Advance) -> None:
        for b in effect.booked:
            news = zip(self.mine, b.theirs.payload, self.seen[b.node], strict=True)
            self.mine = tuple(m + new - old for m, new, old in news)  # type: ignore[assignment]
            self.seen[b.node] = b.theirs.payload
            self.ages.append(effect.finished - b.opened)
        self.value = self.mine[0] / self.mine[1]

    def enter(self, effect: Advance) -> None:
        """Everybody counts once again."""
        assert effect.members is not None
        self.epochs += 1
        self.mine = (self.mine[0] / self.mine[1], 1.0)
        self.sent = dict.fromkeys(self.neighbors, (0.0, 0.0))
        self.seen = dict(self.sent)

    def train(self, effect: Advance) -> Trained:
        assert effect.next is not None
        turn = self.plan(self.peer.state.members).at(effect.next)
        share = 1 / (1 + len(turn.sends_to) + len(turn.lost))
        assert set(effect.speak) <= {*turn.sends_to, *turn.lost}
        for j in effect.speak:
            self.sent[j] = tuple(a + share * m for a, m in zip(self.sent[j], self.mine, strict=True))  # type: ignore[assignment]
        self.mine = tuple(m * (1 - share * len(effect.speak)) for m in self.mine)  # type: ignore[assignment]
        return Trained(dict(self.sent), self.mine)

    def adopt(self, model: Any) -> None:
        self.mine = model


class Exponential(World):
    """In round r node i pushes to i + 2^(r mod 3), of n: directed, one peer at a time. `losses`: of single messages."""

    kind = Pusher
    steady = False

    def __init__(self, nodes: int, rounds: int, losses: float = 0.0, **given: Any) -> None:
        self.n, self.losses = nodes, losses
        hops = [(i, (i + 2**k) % nodes) for i in range(nodes) for k in range(3)]
        super().__init__(nx.from_edgelist(hops), rounds, **given)

    def gone(self, round: int, sender: int, receiver: int) -> bool:
        return random.Random(f"{round} {sender} {receiver}").random() < self.losses

    def turn(self, node: int, round: int) -> RoundPlan:
        hop = 2 ** (round % 3)
        to, source = (node + hop) % self.n, (node - hop) % self.n
        lost = self.gone(round, node, to)
        return RoundPlan(
            receives_from=() if self.gone(round, source, node) else (source,),
            sends_to=() if lost else (to,),
            lost=(to,) if lost else (),
        )

    def total(self) -> tuple[float, float]:
        """What all hold, with what is under way: must never change."""
        nodes = self.nodes
        held = [node.mine for node in nodes.values()]
        for i, node in nodes.items():
            for j in node.neighbors:
                held.append(tuple(a - b for a, b in zip(node.sent[j], nodes[j].seen[i], strict=True)))
        return sum(a for a, _ in held), sum(b for _, b in held)


def plain(world: Exponential) -> list[tuple[float, float]]:
    """The same as a plain loop."""
    n = world.n
    mine = [(float(i), 1.0) for i in range(n)]
    sent: dict[tuple[int, int], tuple[float, ...]] = {}
    seen: dict[tuple[int, int], tuple[float, ...]] = {}
    zero = (0.0, 0.0)
    for round in range(1, world.rounds + 1):
        for i in range(n):
            turn = world.turn(i, round)
            for j in turn.sends_to + turn.lost:
                sent[i, j] = tuple(a + 0.5 * m for a, m in zip(sent.get((i, j), zero), mine[i], strict=True))
            mine[i] = (mine[i][0] * 0.5, mine[i][1] * 0.5)
        for i in range(n):
            for j in world.turn(i, round).receives_from:
                got, old = sent[j, i], seen.get((j, i), zero)
                mine[i] = tuple(m + a - b for m, a, b in zip(mine[i], got, old, strict=True))  # type: ignore[assignment]
                seen[j, i] = got
    return mine


@pytest.mark.parametrize("losses", [0.0, 0.2])
@pytest.mark.parametrize("seed", seeds(5))
def test_pushes_equal_the_plain_loop_to_the_bit(seed: int, losses: float) -> None:
    world = Exponential(7, 50, losses, seed=seed)
    world.run()
    for node in world.nodes.values():
        assert node.done
        assert sorted(node.finished_at) == list(range(1, 51))
        assert all(whom == list(world.turn(node.node, r).receives_from) for r, whom in node.mixed_with.items())
        assert not node.drops
        assert not told(node)
    assert [world.nodes[i].mine for i in range(world.n)] == plain(world)
    assert max(n.value for n in world.nodes.values()) - min(n.value for n in world.nodes.values()) < 1e-3
    assert world.total() == pytest.approx((21, 7), abs=1e-12)


@pytest.mark.parametrize("nodes", [2, 9])
def test_on_a_directed_ring_the_one_behind_may_be_far_ahead(nodes: int) -> None:
    """Nobody waits for the nodes it speaks to: what they are ahead is no reason to skip a round."""

    class Ring(Exponential):
        def turn(self, node: int, round: int) -> RoundPlan:
            return RoundPlan(receives_from=((node - 1) % self.n,), sends_to=((node + 1) % self.n,))

    world = Ring(nodes, 60)
    slow, advance = world.nodes[0], world.nodes[0].advance
    slow.advance = lambda effect: world.at(0.03, advance, effect)  # type: ignore[method-assign]
    world.run()
    assert [world.nodes[i].mine for i in range(world.n)] == plain(world)
    assert not [told(node) for node in world.nodes.values() if told(node)]


@pytest.mark.parametrize("seed", seeds(20))
def test_lost_pushes_stop_nobody_and_no_mass_is_lost(seed: int) -> None:
    world = Exponential(8, 80, seed=seed, loss=0.1)
    world.run_until_round(60)
    world.loss = 0.0
    world.run()
    assert all(node.done and max(node.finished_at) == 80 for node in world.nodes.values())
    assert world.total() == pytest.approx((28, 8), abs=1e-9)
    assert all(abs(node.value - 3.5) < 0.2 for node in world.nodes.values())


@pytest.mark.parametrize("seed", seeds(10))
def test_the_death_of_one_that_pushes_costs_one_wait(seed: int) -> None:
    world = Exponential(8, 100, seed=seed)
    world.run_until_round(20)
    world.at(world.random.uniform(0, 0.03), world.kill, 3)
    world.run()
    timing = world.timing
    for node in world.nodes.values():
        if node.dead:
            continue
        assert node.done
        assert max(node.finished_at) == 100
        assert gaps(node) < timing.silence + 3 * timing.ping_every + 0.3
        assert not [note for note in node.notes if note.event == "late"]


@pytest.mark.parametrize("seed", seeds(10))
def test_a_frozen_pusher_loses_no_mass(seed: int) -> None:
    world = Exponential(8, 400, seed=seed)
    world.run_until_round(20)
    world.freeze(2)
    world.at(2.0, world.thaw, 2)
    world.run()
    assert all(node.done and max(node.finished_at) == 400 for node in world.nodes.values())
    assert world.total() == pytest.approx((28, 8), abs=1e-9)
    assert all(abs(node.value - 3.5) < 1e-6 for node in world.nodes.values())
    assert any(note.event == "skipped" for note in world.nodes[2].notes)


@pytest.mark.parametrize("seed", seeds(20))
def test_with_a_new_life_the_running_sums_start_afresh_at_both_ends(seed: int) -> None:
    world = Exponential(8, 200, seed=seed)
    world.run_until_round(20)
    world.kill(3)
    world.run_until_round(40 + seed)
    world.restart(3)
    back = world.nodes[3]
    before: list[tuple[float, float]] = []
    adopt = back.adopt

    def joins(model: Any) -> None:
        adopt(model)
        before.append(back.mine)

    back.adopt = joins  # type: ignore[method-assign]
    world.run()
    assert back.done
    assert min(back.finished_at) <= 50 + seed
    assert before
    # the survivors' sums towards the dead were cleared: from then on nothing may appear or vanish
    weights = [node.mine[1] for node in world.nodes.values()]
    assert all(weight > 0 for weight in weights)
    values = [node.value for node in world.nodes.values()]
    assert max(values) - min(values) < 1e-6
    assert 0 < values[0] < 7  # a mean of what there was: sums of two lives mixed up would leave that
    assert sum(weights) < 9


def test_mass_is_kept_from_the_return_on() -> None:
    """The invariant after the return is that of the moment after: sums that one end keeps would move it for ever."""
    world = Exponential(6, 300)
    world.run_until_round(20)
    world.kill(3)
    world.run_until_round(40)
    world.restart(3)
    world.run_until_round(80)
    was = world.total()
    for number in (120, 200, 290):
        world.run_until_round(number)
        assert world.total() == pytest.approx(was, abs=1e-9)
    world.run()


def test_nothing_computed_for_an_earlier_life_is_pushed_to_a_new_one_or_booked_with_it() -> None:
    peer, hears = driven(per_edge=True, turn=lambda round: RoundPlan(receives_from=(1, 2), sends_to=(1, 2)))

    def pushed(effects: list[Any]) -> list[int]:
        return [e.to for e in effects if isinstance(e, Send) and isinstance(e.envelope.message, Push)]

    hears(1, Push(1, EPOCH), payload="of its first life")
    peer.handle(Received(Envelope(1, 6, 0, Hello(1, "f", "s", 1))), 0.1)
    assert pushed(peer.handle(Trained({1: "a", 2: "b"}, "m"), 0.1)) == [2]
    later = epoch_of([(0, 1), (1, 6), (2, 5)])
    assert booked(peer.handle(Received(Envelope(1, 6, 1, Push(1, later), "of its second")), 0.1)) == []
    peer.handle(Members((Seen(0, 1), Seen(1, 6), Seen(2, 5))), 0.1)
    advance = next(effect for effect in hears(2, Push(1, EPOCH), payload="c") if isinstance(effect, Advance))
    assert (advance.speak, advance.members) == ((1, 2), (0, 1, 2))
    assert booked([advance]) == [[(2, 1)]]  # mixing with the new life comes after what was kept for the old is cleared
    assert pushed(peer.handle(Trained({1: "a", 2: "b"}, "m"), 0.2)) == [1, 2]
    peer.handle(Received(Envelope(1, 6, 1, Push(2, later), "of its second")), 0.2)
    assert booked(hears(2, Push(2, EPOCH), payload="of the epoch before")) == [[(1, 2)]]


def test_a_leaver_that_pushes_ends_in_good_order() -> None:
    world = Exponential(6, 100)
    world.run_until_round(20)
    world.at(0.004, world.nodes[1].handle, Leave(idle=False))
    world.run()
    assert all(node.done for node in world.nodes.values())
    events = [(note.event, note.about) for node in world.nodes.values() for note in node.notes]
    assert ("left", 1) in events
    assert not any(event in ("detected", "late") for event, _ in events)


def test_pushes_that_no_honest_peer_sends_are_dropped() -> None:
    world = Exponential(7, 40)
    world.run_until_round(10)
    node = world.nodes[0]
    life = node.peer.state.neighbors[1].life
    # 1 pushes to 0 in no round (0 is at distance 6), and nobody does after the end
    for round in (12, 41, 0):
        node.handle(Received(Envelope(1, life, 1, Push(round, node.peer.state.epoch), (1.0, 1.0))))
    source = next(j for j in (6, 5, 3) if node.peer.state.neighbors[j].pushed)
    for _ in range(2):
        node.handle(
            Received(
                Envelope(
                    source, life, 1, Push(node.peer.state.neighbors[source].pushed, node.peer.state.epoch), (1.0, 1.0)
                )
            )
        )
    assert [drop.reason for drop in node.drops] == ["unplanned", "round", "unplanned", "number", "number"]
    world.run()
    assert world.total() == pytest.approx((21, 7), abs=1e-9)


def test_a_push_that_cannot_be_used_is_not_waited_for() -> None:
    world = Exponential(7, 40)
    deliver, spoilt = world.deliver, []

    def spoiling(to: int, envelope: Envelope) -> None:
        if isinstance(envelope.message, Push) and envelope.message.round == 12 and envelope.node == 2:
            spoilt.append(to)
            world.nodes[to].handle(Refused(envelope._replace(payload=None)))
        else:
            deliver(to, envelope)

    world.deliver = spoiling  # type: ignore[method-assign]
    world.run()
    assert len(spoilt) == 1
    assert [drop.reason for drop in world.nodes[spoilt[0]].drops] == ["nonfinite"]
    assert gaps(world.nodes[spoilt[0]]) < 0.1
    assert world.total() == pytest.approx((21, 7), abs=1e-9)  # the next push makes up for it


def test_what_is_kept_of_a_neighbor_ahead_is_bounded_and_of_one_epoch() -> None:
    other = Neighbor(1)
    for round in range(1, 3 * KEPT):
        other.store(Side(round, round, round % 2))
    assert [side.round for side in other.pushes] == list(range(2 * KEPT, 3 * KEPT))
    assert other.newest(2 * KEPT - 1, 1) is None
    for round, epoch in ((2 * KEPT + 3, 1), (2 * KEPT + 2, 0)):
        found = other.newest(2 * KEPT + 3, epoch)
        assert found is not None
        assert found.round == round
    other.take(2 * KEPT + 3)
    assert [side.round for side in other.pushes] == list(range(2 * KEPT + 4, 3 * KEPT))


def anything(seed: int) -> bool:
    """Losses and nodes that stand still: all end, and the mass is kept; returns whether it could be told."""
    rng = random.Random(seed)
    world = Exponential(rng.randrange(4, 12), 120, rng.choice([0.0, 0.2]), seed=seed, loss=rng.choice([0.0, 0.05, 0.2]))
    for node in rng.sample(range(world.n), 2):
        at = rng.uniform(0.1, 3.0)
        world.at(at, world.freeze, node)
        world.at(at + rng.uniform(0.05, 3.0), world.thaw, node)
    world.run()
    assert all(node.done for node in world.nodes.values()), f"seed {seed}"
    assert all(b > a for a, b in itertools.pairwise(sorted(world.nodes[0].finished_at.values()))), f"seed {seed}"
    if any("joined" in told(node) for node in world.nodes.values()):
        return False  # who joins has the model of another
    assert world.total() == pytest.approx((world.n * (world.n - 1) / 2, world.n), abs=1e-9), f"seed {seed}"
    return True


@pytest.mark.parametrize("some", batches(range(300), 25))
def test_anything_goes_with_pushes(some: range) -> None:
    assert sum(map(anything, some)) >= 15
