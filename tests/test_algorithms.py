"""One table of all algorithms, one suite run over every row; then what each row must reach by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
import pytest

from p2pfl import topology, tree
from p2pfl.algorithms import ALGORITHMS
from p2pfl.types import Algorithm, Inbox, Learner, Neighborhood, Schedule, Tree

SIZE, STEPS = 3, 2
Make = Callable[[Learner], Algorithm]
ALGORITHMS_UNDER_TEST: list[tuple[str, Make]] = [
    ("dsgd", lambda learner: ALGORITHMS["dsgd"](learner, optax.sgd(0.1))),
    ("dsgd", lambda learner: ALGORITHMS["dsgd"](learner, optax.sgd(0.1, momentum=0.9))),
    ("local", lambda learner: ALGORITHMS["local"](learner, optax.sgd(0.1, momentum=0.9))),
]
rows = pytest.mark.parametrize("row", ALGORITHMS_UNDER_TEST, ids=lambda row: row[0])


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def quadratics() -> Learner:
    """f(x) = mean over the batch of a/2 ||x - b||^2, where a and b are the data; z is carried and counts steps."""

    def init(key: Any) -> Tree:
        return {"trained": {"x": jnp.zeros(SIZE)}, "carried": {"z": jnp.zeros(())}}

    def grad(params: Tree, batch: Tree, key: Any) -> tuple[Tree, Tree, dict[str, Any]]:
        away = params["trained"]["x"][None, :] - batch["b"]
        loss = (batch["a"] * (away**2).sum(axis=1)).mean() / 2
        return {"x": (batch["a"][:, None] * away).mean(axis=0)}, {"z": params["carried"]["z"] + 1}, {"loss": loss}

    return Learner(init, grad, lambda params, batch, mask: {})


class Nodes:
    """All nodes of a graph at once: the functions of an algorithm under vmap, and the inboxes between them."""

    def __init__(self, make: Make, graph: nx.Graph, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.algorithm, self.plan = make(quadratics()), topology.schedule(graph)
        self.n, self.slots = self.plan.neighbor.shape[1:]
        self.around = Neighborhood(jnp.asarray(self.plan.weight[0]), jnp.asarray(self.plan.out_degree[0]))
        self.a, self.b = rng.uniform(0.5, 1.5, self.n), rng.normal(size=(self.n, SIZE))
        repeat = (self.n, STEPS, 1)
        self.batches = {
            "a": jnp.asarray(np.broadcast_to(self.a[:, None, None], repeat)),
            "b": jnp.asarray(np.broadcast_to(self.b[:, None, None, :], (*repeat, SIZE))),
        }
        starts = {"trained": {"x": rng.normal(size=(self.n, SIZE))}, "carried": {"z": rng.normal(size=self.n)}}
        self.start = jax.vmap(lambda p: self.algorithm.init(p, self.slots))(jax.tree.map(jnp.asarray, starts))
        self.params = jax.vmap(self.algorithm.params)

    def train(self, state: Any, round: Any, steps: int = STEPS) -> tuple[Any, Any]:
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(jax.random.key(0), i), round))(
            jnp.arange(self.n, dtype=jnp.int32)
        )
        counts = jnp.full(self.n, steps, jnp.int32)
        state, _ = jax.vmap(self.algorithm.local)(state, self.batches, keys, counts)
        return jax.vmap(self.algorithm.send)(state, self.around)

    def inbox(self, payload: Any, arrived: Any) -> Inbox:
        sent = jax.tree.map(lambda p: jnp.repeat(p[:, None], self.slots, axis=1), payload)
        received = jax.tree.map(lambda p: p[np.maximum(self.plan.neighbor[0], 0)], payload)
        return Inbox(sent, received, jnp.asarray(arrived), jnp.zeros((self.n, self.slots), jnp.int32))

    def mix(self, state: Any, inbox: Inbox) -> Any:
        return jax.vmap(self.algorithm.mix)(state, inbox, self.around)

    def everyone(self) -> np.ndarray:
        return self.plan.neighbor[0] >= 0

    def voided(self, seed: int, probability: float, both_ends: bool = True) -> np.ndarray:
        """[n, K] bool: what arrives when exchanges are lost at random, at both ends of an edge or at one."""
        lost = np.random.default_rng(seed).random((self.n, self.n)) < probability
        lost = np.triu(lost) | np.triu(lost).T if both_ends else lost
        return self.everyone() & ~lost[np.arange(self.n)[:, None], self.plan.neighbor[0]]


def equal(a: Tree, b: Tree) -> bool:
    return tree.schema(a) == tree.schema(b) and tree.digest(a) == tree.digest(b)


def mean_moved(before: Tree, after: Tree) -> float:
    """By how much the mean over nodes changed, the largest entry."""
    moved = jax.tree.map(lambda a, b: float(abs(np.asarray(a).mean(0) - np.asarray(b).mean(0)).max()), before, after)
    return max(jax.tree.leaves(moved))


def test_the_table_is_complete() -> None:
    assert {name for name, _ in ALGORITHMS_UNDER_TEST} == set(ALGORITHMS)
    for name, make in ALGORITHMS_UNDER_TEST:
        algorithm = make(quadratics())
        assert algorithm.name == name
        assert algorithm.keeps_mean in ("exchange", "nothing")
        assert algorithm.lateness >= 0


@rows
def test_every_function_jits_and_vmaps(row: tuple[str, Make]) -> None:
    """All nodes at once under vmap are the nodes one by one under jit; shapes and dtypes stay what they were."""
    nodes = Nodes(row[1], nx.star_graph(3))
    state, payload = jax.jit(nodes.train)(nodes.start, 1)
    inbox = nodes.inbox(payload, nodes.everyone())
    mixed = jax.jit(nodes.mix)(state, inbox)
    adopted = jax.jit(jax.vmap(nodes.algorithm.adopt))(state, inbox)
    for after in (state, mixed, adopted):
        assert tree.schema(after) == tree.schema(nodes.start)
    local, send, mix, adopt, params = map(jax.jit, nodes.algorithm[2:7])
    for i in range(nodes.n):

        def of(all: Any, i: int = i) -> Any:
            return jax.tree.map(lambda leaf: leaf[i], all)

        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), i), 1)
        mine, metrics = local(of(nodes.start), of(nodes.batches), key, jnp.int32(STEPS))
        mine, sent = send(mine, of(nodes.around))
        assert metrics["loss"].shape == ()
        for one, other in [
            (mine, of(state)),
            (sent, of(payload)),
            (mix(mine, of(inbox), of(nodes.around)), of(mixed)),
            (adopt(mine, of(inbox)), of(adopted)),
            (params(mine), of(nodes.params(state))),
        ]:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-14), one, other)


@rows
def test_no_steps_leave_everything_as_it_is(row: tuple[str, Make]) -> None:
    nodes = Nodes(row[1], nx.path_graph(2))
    state, _ = nodes.train(nodes.start, 1, steps=0)
    assert equal(nodes.params(state), nodes.params(nodes.start))
    trained, _ = nodes.train(nodes.start, 1, steps=1)
    assert not equal(nodes.params(trained), nodes.params(nodes.start))


@rows
@pytest.mark.parametrize("probability", [0.0, 0.3, 0.9])
def test_mixing_keeps_the_mean(row: tuple[str, Make], probability: float) -> None:
    nodes = Nodes(row[1], nx.barbell_graph(4, 2))  # degrees from 2 to 4
    state, train, mix = nodes.start, jax.jit(nodes.train), jax.jit(nodes.mix)
    for round in range(1, 13):
        trained, payload = train(state, round)
        arrived = nodes.voided(round, probability)
        state = mix(trained, nodes.inbox(payload, arrived))
        before, after = nodes.params(trained), nodes.params(state)
        if nodes.algorithm.keeps_mean == "exchange":
            assert mean_moved(before, after) <= 1e-12
        assert equal(before, after) != (nodes.algorithm.mixes and bool(arrived.any()))


@rows
def test_mixing_keeps_the_mean_when_exchanges_are_late(row: tuple[str, Make]) -> None:
    """What was sent three rounds ago is booked now, at both ends."""
    nodes = Nodes(row[1], nx.petersen_graph())
    train, mix = jax.jit(nodes.train), jax.jit(nodes.mix)
    state, late = train(nodes.start, 1)
    for round in (2, 3, 4):
        state, _ = train(state, round)
    inbox = nodes.inbox(late, nodes.voided(0, 0.4))._replace(age=jnp.full((nodes.n, nodes.slots), 3, jnp.int32))
    if nodes.algorithm.keeps_mean == "exchange":
        assert mean_moved(nodes.params(state), nodes.params(mix(state, inbox))) <= 1e-12


def test_dropping_at_one_end_moves_the_mean() -> None:
    """The negative of the tests above: they can fail."""
    nodes = Nodes(ALGORITHMS_UNDER_TEST[0][1], nx.petersen_graph())
    trained, payload = nodes.train(nodes.start, 1)
    one_sided = nodes.voided(1, 0.3, both_ends=False)
    assert mean_moved(nodes.params(trained), nodes.params(nodes.mix(trained, nodes.inbox(payload, one_sided)))) > 1e-3


@rows
def test_what_did_not_arrive_is_not_looked_at(row: tuple[str, Make]) -> None:
    nodes = Nodes(row[1], nx.complete_graph(4))
    state, payload = jax.jit(nodes.train)(nodes.start, 1)
    mix = jax.jit(jax.vmap(nodes.algorithm.mix))
    inbox = nodes.inbox(payload, np.array([[True, False, True]] * 4))
    expected = mix(state, inbox, nodes.around)
    other = jax.tree.map(lambda p: p.at[:, 1].set(1e6), inbox.received)
    assert equal(mix(state, inbox._replace(received=other), nodes.around), expected)
    resting = nodes.around._replace(weight=nodes.around.weight.at[:, 1].set(0))  # a slot that rests in this round
    silent = mix(state, inbox._replace(arrived=jnp.ones((4, 3), bool)), resting)
    assert equal(nodes.params(silent), nodes.params(expected))


def test_slots_are_added_in_one_fixed_order() -> None:
    """In float32, (1 + 2^25) - 2^25 is 0 and 1 + (2^25 - 2^25) is 1. Weights are powers of two: products are exact."""
    algorithm = ALGORITHMS_UNDER_TEST[0][1](quadratics())
    weight, big = np.array([0.5, 0.25, 0.125], np.float32), np.float32(2**25)
    difference = np.array([[big], [-2 * big], [8]], np.float32)
    own = {"trained": {"x": jnp.ones(1, jnp.float32)}, "carried": {}}

    def mixed(order: list[int]) -> np.ndarray:
        payload = [jax.tree.map(lambda _, p=p: jnp.asarray(p), own) for p in (np.zeros_like(difference), difference)]
        sent, received = (jax.tree.map(lambda p: p[np.array(order)], p) for p in payload)
        inbox = Inbox(sent, received, jnp.ones(3, bool), jnp.zeros(3, jnp.int32))
        state = algorithm.init(own, 3)
        after = jax.jit(algorithm.mix)(state, inbox, Neighborhood(jnp.asarray(weight[order]), jnp.int32(3)))
        return np.asarray(algorithm.params(after)["trained"]["x"])

    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        x = np.ones(1, np.float32)
        for k in order:
            x = x + weight[k] * difference[k]
        assert np.array_equal(mixed(order), x)
    assert not np.array_equal(mixed([0, 1, 2]), mixed([2, 0, 1]))


@rows
def test_adopt_copies_what_arrived_and_starts_afresh(row: tuple[str, Make]) -> None:
    nodes = Nodes(row[1], nx.complete_graph(4))
    state, payload = nodes.train(nodes.start, 1)  # momentum is not zero any more
    arrived = np.zeros((4, 3), bool)
    arrived[:, 1] = True
    inbox = nodes.inbox(payload, arrived)
    adopted = jax.vmap(nodes.algorithm.adopt)(state, inbox)
    taken = jax.tree.map(lambda leaf: leaf[:, 1], inbox.received)
    assert equal(nodes.params(adopted), taken)
    assert equal(adopted, jax.vmap(lambda p: nodes.algorithm.init(p, nodes.slots))(taken))


def test_local_never_mixes() -> None:
    nodes = Nodes(dict(ALGORITHMS_UNDER_TEST)["local"], nx.complete_graph(4))
    state, payload = nodes.train(nodes.start, 1)
    assert equal(nodes.mix(state, nodes.inbox(payload, nodes.everyone())), state)
    assert not nodes.algorithm.mixes


# ----------------------------------------------------------------------------------------------------- closed forms


def matrix(plan: Schedule) -> np.ndarray:
    """W in float64, from the float32 weights that nodes use."""
    n = plan.neighbor.shape[1]
    w = np.zeros((n, n))
    for i, k in zip(*np.nonzero(plan.neighbor[0] >= 0), strict=True):
        w[i, plan.neighbor[0, i, k]] = plan.weight[0, i, k]
    return w + np.diag(1 - w.sum(axis=1))


def test_dsgd_reaches_the_fixed_point_of_adapt_then_combine() -> None:
    """x = W (x - eta A (x - b)), that is (I - W (I - eta A)) x = eta W A b: no optimum, nor another order's."""
    eta = 0.1
    nodes = Nodes(lambda learner: ALGORITHMS["dsgd"](learner, optax.sgd(eta)), nx.cycle_graph(16))

    def one(state: Any, round: Any) -> tuple[Any, None]:
        state, payload = nodes.train(state, round, steps=1)
        return nodes.mix(state, nodes.inbox(payload, nodes.everyone())), None

    state, _ = jax.jit(lambda start: jax.lax.scan(one, start, jnp.arange(1, 801, dtype=jnp.int32)))(nodes.start)
    x = np.asarray(nodes.params(state)["trained"]["x"])
    w, a, identity = matrix(nodes.plan), np.diag(nodes.a), np.eye(16)
    fixed = np.linalg.solve(identity - w @ (identity - eta * a), eta * w @ a @ nodes.b)
    combine_then_adapt = np.linalg.solve(identity - w + eta * a, eta * a @ nodes.b)
    optimum = (nodes.a[:, None] * nodes.b).sum(axis=0) / nodes.a.sum()
    assert np.abs(x - fixed).max() < 1e-10
    assert np.abs(x - combine_then_adapt).max() > 1e-3
    assert np.abs(x - optimum).max() > 1e-3


def test_pure_gossip_contracts_at_the_second_eigenvalue() -> None:
    nodes = Nodes(ALGORITHMS_UNDER_TEST[0][1], nx.cycle_graph(8))

    def one(state: Any, round: Any) -> tuple[Any, Any]:
        state, payload = nodes.train(state, round, steps=0)
        x = nodes.params(state)["trained"]["x"]
        away = jnp.linalg.norm(x - x.mean(axis=0, keepdims=True))
        return nodes.mix(state, nodes.inbox(payload, nodes.everyone())), away

    state, away = jax.jit(lambda start: jax.lax.scan(one, start, jnp.arange(100, dtype=jnp.int32)))(nodes.start)
    assert mean_moved(nodes.params(nodes.start), nodes.params(state)) < 1e-12
    assert abs(float(away[-1] / away[-2]) - 0.80474) < 1e-5  # 1/3 + 2/3 cos(2 pi / 8)
