"""Graphs that change from round to round and those that algorithms draw: exactness, rates by Monte Carlo, purity."""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx
import numpy as np
import pytest

from p2pfl import topology
from p2pfl.errors import TopologyError
from p2pfl.topology import dynamic, sampled
from p2pfl.types import Planning, Schedule


def product(plan: Schedule) -> np.ndarray:
    p = np.eye(plan.neighbor.shape[1])
    for t in range(len(plan.neighbor)):
        p = topology.matrix(plan, t) @ p
    return p


def planning(rounds: int, seed: int = 0, nodes: int = 0) -> Planning:
    return Planning(rounds, seed, np.arange(1, nodes + 1))


# ----------------------------------------------------------------------------------------------------- finite time

PERIODS = {  # of the authors' code, for k = 1, 2, 3, 4
    3: (3, 1), 5: (5, 3, 3, 1), 6: (4, 2, 2, 2), 8: (3, 3, 2, 2), 16: (4, 4, 2, 2), 25: (9, 6, 5, 2), 32: (5, 5, 3, 3),
}  # fmt: skip


@pytest.mark.parametrize("nodes", PERIODS)
def test_the_periods_of_the_base_graph(nodes: int) -> None:
    for k, period in enumerate(PERIODS[nodes], 1):
        assert len(topology.plan("base", nodes, arguments={"k": k}).neighbor) == period


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_the_base_graph_is_exact_for_every_number_of_nodes(k: int) -> None:
    for nodes in range(1, 65):
        plan = topology.plan("base", nodes, arguments={"k": k})
        assert plan.neighbor.shape[2] <= k
        assert np.array_equal(plan.weight, plan.out_weight)
        assert plan.weight.min(initial=0) >= 0 and plan.weight.sum(axis=2).max() < 1
        assert abs(product(plan) - 1 / nodes).max() < 2e-15, nodes
        found = topology.describe(plan)
        assert found["exact_after_period"] and found["rho"] == 0 and found["doubly_stochastic"] and found["symmetric"]


def test_one_row_less_is_not_exact() -> None:
    """That the test above can fail: no row of the base graph is in vain."""
    plan = topology.plan("base", 25)
    for t in range(len(plan.neighbor)):
        fewer = Schedule(*(np.delete(part, t, axis=0) for part in plan))
        assert not topology.describe(fewer)["exact_after_period"]


@pytest.mark.parametrize(
    "nodes, left", [(8, 0), (16, 0), (32, 0), (64, 0), (3, 0.25), (5, 0.202), (6, 0.217), (25, 0.192)]
)
def test_one_peer_exponential_is_exact_for_powers_of_two_alone(nodes: int, left: float) -> None:
    plan = topology.plan("one_peer_exponential", nodes)
    assert len(plan.neighbor) == int(np.ceil(np.log2(nodes)))
    assert abs(np.linalg.norm(product(plan) - 1 / nodes, 2) - left) < (5e-4 if left else 1e-15)
    found = topology.describe(plan)
    assert found["exact_after_period"] == (left == 0)
    assert abs(found["rho"] ** len(plan.neighbor) - left) < 5e-4


# -------------------------------------------------------------------------------------------------------- equitopo


def test_equitopo_is_the_mean_of_its_shifts() -> None:
    for nodes in (2, 7, 16):
        shifts = dynamic._shifts(nodes, 3, "d_static", None)
        expected = np.mean([(nodes - 1) / nodes * np.roll(np.eye(nodes), a, axis=0) for a in shifts], axis=0)
        expected += np.eye(nodes) / nodes  # roll by a along rows: row i is e_(i - a)
        given = {"variant": "d_static"}
        assert abs(topology.matrix(topology.plan("equitopo", nodes, arguments=given, seed=3)) - expected).max() < 1e-15
        both = topology.matrix(topology.plan("equitopo", nodes, seed=3))
        assert abs(both - (expected + expected.T) / 2).max() < 1e-15
    assert len(dynamic._shifts(32, 0, "u_static", None)) == 5 and len(dynamic._shifts(32, 0, "u_static", 9)) == 9


def test_equitopo_does_not_slow_down_with_the_number_of_nodes() -> None:
    rates = [topology.describe(topology.plan("equitopo", n, arguments={"m": 16}))["rho"] for n in (32, 128, 512)]
    assert max(rates) < 0.7


def test_equitopo_that_falls_apart_is_drawn_again_or_refused() -> None:
    for seed in range(20):
        assert topology.describe(topology.plan("equitopo", 12, arguments={"m": 2}, seed=seed))["connected"]
    assert topology.describe(topology.plan("equitopo", 210, arguments={"m": 1}))["connected"]  # one shift in four is


# ------------------------------------------------------------------------------------------------ rates by Monte Carlo


def contraction(plan: Schedule) -> tuple[float, float]:
    """Of the mean squared deviation about the old mean, what a round leaves: the mean over rounds and its error."""
    rng, n, left, which = np.random.default_rng(1), plan.neighbor.shape[1], [], topology.sums(plan)
    for t in range(len(plan.neighbor)):
        x = rng.standard_normal((n, 40))
        x -= x.mean(axis=0)
        left.append(((topology.matrix(plan, t, which) @ x) ** 2).sum() / (x**2).sum())
    return float(np.mean(left)), float(np.std(left) / np.sqrt(len(left)))


@pytest.mark.parametrize("nodes", [2, 3, 5, 8, 16])
def test_the_rate_of_random_matching(nodes: int) -> None:
    mean, error = contraction(topology.plan("random_matching", nodes, rounds=600))
    expected = topology.expected_rho("random_matching", nodes)
    assert expected is not None and abs(mean - expected**2) <= 3 * error + 1e-12
    assert expected**2 == pytest.approx(0.5 if nodes % 2 else 1 - nodes / (2 * (nodes - 1)))


@pytest.mark.parametrize("variant", ["d_dynamic", "u_dynamic"])
@pytest.mark.parametrize("nodes, m", [(7, 3), (12, 4), (16, 40)])
def test_the_rate_of_dynamic_equitopo(variant: str, nodes: int, m: int) -> None:
    """E[W^T W] on vectors without mean: its largest eigenvalue by Monte Carlo; a little high: a maximum."""
    given = {"variant": variant, "m": m}
    plan = topology.plan("equitopo", nodes, arguments=given, rounds=4000)
    expected = topology.expected_rho("equitopo", nodes, arguments=given)
    total = np.zeros((nodes, nodes))
    for t in range(4000):
        w = topology.matrix(plan, t)
        total += w.T @ w / 4000
        assert plan.neighbor.shape[2] <= (2 if variant == "d_dynamic" else 1)
    assert expected is not None
    assert abs(np.linalg.eigvalsh(total - 1 / nodes)[-1] - expected**2) < 0.02
    assert topology.describe(plan, expected)["doubly_stochastic"]


@pytest.mark.parametrize("nodes, s", [(16, 1), (16, 4), (33, 7)])
def test_the_rate_of_el_local(nodes: int, s: int) -> None:
    plan = sampled.pushes(topology.plan("complete", nodes), planning(1500), s)
    mean, error = contraction(plan)
    expected = (1 - (1 - s / (nodes - 1)) ** nodes) / s - 1 / (nodes - 1)
    assert abs(mean - expected) <= 3 * error
    assert topology.sums(plan) == "row" and (plan.out_weight > 0).sum(axis=2).tolist() == [[s] * nodes] * 1500


@pytest.mark.parametrize("nodes, s", [(16, 1), (16, 4), (15, 2), (10, 7)])
def test_the_rate_of_el_oracle(nodes: int, s: int) -> None:
    plan = sampled.regular(topology.plan("complete", nodes), planning(1500), s)
    assert ((plan.weight > 0).sum(axis=2) == s).all() and topology.symmetric(plan) and topology.sums(plan) == "both"
    mean, error = contraction(plan)
    assert abs(mean - (1 / (s + 1)) * (1 - s / (nodes - 1))) <= 3 * error


@pytest.mark.more
def test_all_pairs_are_equally_likely() -> None:
    n, rounds = 9, 4000
    for plan, chance in (
        (sampled.regular(topology.plan("complete", n), planning(rounds), 2), 2 / 8),
        (topology.plan("random_matching", n, rounds=rounds), 1 / 9),
        (sampled.matchings(topology.plan("complete", n), planning(rounds)), 1 / 9),
        (sampled.pushes(topology.plan("complete", n), planning(rounds), 3), 3 / 8),
    ):
        counts = np.zeros((n, n))
        for t in range(rounds):
            counts += topology.matrix(plan, t, "row") > 0
        spread = np.sqrt(chance * (1 - chance) / rounds)
        assert abs(counts[~np.eye(n, dtype=bool)] / rounds - chance).max() < 4.5 * spread


# --------------------------------------------------------------------------------------------------- purity and form

DRAWN: dict[str, Callable[[int, int], Schedule]] = {
    "random_matching": lambda rounds, seed: topology.plan("random_matching", 11, rounds=rounds, seed=seed),
    "d_dynamic": lambda rounds, seed: topology.plan(
        "equitopo", 11, rounds=rounds, seed=0, arguments={"variant": "d_dynamic", "m": 50 + seed}
    ),
    "u_dynamic": lambda rounds, seed: topology.plan(
        "equitopo", 11, rounds=rounds, seed=seed, arguments={"variant": "u_dynamic", "m": 50}
    ),
    "matchings": lambda rounds, seed: sampled.matchings(topology.plan("torus", 12), planning(rounds, seed)),
    "matchings of a complete graph": lambda rounds, seed: sampled.matchings(
        topology.plan("complete", 12), planning(rounds, seed)
    ),
    "pushes": lambda rounds, seed: sampled.pushes(topology.plan("exponential", 12), planning(rounds, seed), 2),
    "pushes of a complete graph": lambda rounds, seed: sampled.pushes(
        topology.plan("complete", 12), planning(rounds, seed), 2
    ),
    "regular": lambda rounds, seed: sampled.regular(topology.plan("complete", 12), planning(rounds, seed), 3),
}


@pytest.mark.parametrize("drawn", DRAWN)
def test_a_round_depends_on_its_number_and_the_seed_alone(drawn: str) -> None:
    def rows(rounds: int, seed: int) -> list[np.ndarray]:
        plan = DRAWN[drawn](rounds, seed)
        assert len(plan.neighbor) == rounds and plan.trains.shape == plan.neighbor.shape[:2] and plan.trains.all()
        return [topology.matrix(plan, t, "row") for t in range(rounds)]

    many = rows(9, 1)
    assert all(np.array_equal(a, b) for a, b in zip(rows(4, 1), many, strict=False))
    assert not all(np.array_equal(a, b) for a, b in zip(many, rows(9, 2), strict=True))
    assert not all(np.array_equal(many[0], row) for row in many)


@pytest.mark.parametrize("graph", ["ring", "star", "two_cliques", "complete", "base", "erdos_renyi"])
def test_matchings_lie_in_the_graph_and_are_maximal(graph: str) -> None:
    plan = topology.plan(graph, 12)
    drawn = sampled.matchings(plan, planning(24))
    for t in range(24):
        row = t % len(plan.neighbor)
        allowed = nx.from_numpy_array(topology.matrix(plan, row) - np.diag(np.diag(topology.matrix(plan, row))) > 0)
        pairs = {(i, int(j)) for i, (j,) in enumerate(drawn.neighbor[t]) if i < j}
        assert nx.is_maximal_matching(allowed, pairs)
        assert np.array_equal(topology.matrix(drawn, t), topology.matrix(drawn, t).T)
    assert set(np.unique(drawn.weight)) <= {0.0, 0.5}


def test_matchings_by_random_order_of_the_edges() -> None:
    """On a path of three edges the middle one is taken alone with probability 1/3."""
    drawn = sampled.matchings(topology.plan("path", 4), planning(3000))
    middle = float(np.mean(drawn.neighbor[:, 1, 0] == 2))
    assert abs(middle - 1 / 3) < 3 * np.sqrt(2 / 9 / 3000)


def test_pushes_go_along_the_edges_and_to_all_if_there_are_few() -> None:
    graph = topology.plan("star", 6)
    plan = sampled.pushes(graph, planning(30), 2)
    for t in range(30):
        w = topology.matrix(plan, t)
        assert (w[0, 1:] == 1 / 6).all() and w.sum(axis=1) == pytest.approx(1)
        assert np.array_equal(w[1:, 1:], np.diag(np.diag(w)[1:]))
        assert np.count_nonzero(w[1:, 0]) == 2 and set(w[1:, 0]) == {0.0, 0.5}
    directed = sampled.pushes(topology.plan("exponential", 8), planning(10), 1)
    for t in range(10):
        gaps = {(i - int(j)) % 8 for i, j in zip(*np.nonzero(topology.matrix(directed, t)), strict=True)}
        assert gaps <= {0, 1, 2, 4}


def test_the_phases_of_federated_averaging() -> None:
    samples = np.array([10, 20, 30, 40])
    star = sampled.star_phases(topology.plan("star", 4), Planning(9, 0, samples))
    gather, copy = (topology.matrix(star, t) for t in (0, 1))
    assert abs(gather - [[0.1, 0.2, 0.3, 0.4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).max() < 1e-15
    assert copy.tolist() == [[1, 0, 0, 0]] * 4
    assert star.trains.tolist() == [[True] * 4, [False] * 4]
    assert abs(copy @ gather - samples / 100).max() < 1e-15
    found = topology.describe(star)
    assert found["exact_after_period"] and not found["symmetric"] and not found["doubly_stochastic"]
    whole = sampled.star_phases(topology.plan("complete", 4), Planning(9, 0, samples))
    assert abs(topology.matrix(whole) - samples / 100).max() < 1e-15 and whole.trains.all()
    pair = sampled.star_phases(topology.plan("star", 2), Planning(9, 0, samples[:2]))
    assert abs(topology.matrix(pair) - samples[:2] / 30).max() < 1e-15
    assert topology.matrix(sampled.star_phases(topology.plan("ring", 1), Planning(9, 0, samples[:1]))).tolist() == [[1]]


def test_sampled_schedules_of_one_node() -> None:
    one = topology.plan("complete", 1)
    for plan in (
        sampled.matchings(one, planning(3)), sampled.pushes(one, planning(3), 2), sampled.regular(one, planning(3), 2),
    ):  # fmt: skip
        assert len(plan.neighbor) == 3 and (plan.neighbor == -1).all() and topology.matrix(plan, 2).tolist() == [[1.0]]


@pytest.mark.parametrize(
    "draw, text",
    [
        (lambda: sampled.matchings(topology.plan("exponential", 8), planning(1)), "matchings: the graph is directed; "),
        (lambda: sampled.pushes(topology.plan("ring", 8), planning(1), 0), "pushes: s=0: must be >= 1"),
        (
            lambda: sampled.regular(topology.plan("ring", 8), planning(1), 2),
            "drawn among all nodes; use topology.graph",
        ),
        (
            lambda: sampled.regular(topology.plan("complete", 9), planning(1), 3),
            "s=3 with nodes=9: .* nodes times s even",
        ),
        (
            lambda: sampled.regular(topology.plan("complete", 4), planning(1), 4),
            "s=4 with nodes=4: must be >= 1 and < ",
        ),
        (
            lambda: sampled.star_phases(topology.plan("ring", 4), planning(1, 0, 4)),
            "fedavg: needs a star or a complete",
        ),
        (
            lambda: sampled.star_phases(topology.plan("base", 4), planning(1, 0, 4)),
            "fedavg: needs a star or a complete",
        ),
        (
            lambda: sampled.star_phases(topology.plan("star", 4), Planning(1, 0, np.zeros(4, int))),
            "fedavg: no node has training rows",
        ),
    ],
)
def test_what_cannot_be_drawn(draw: Callable[[], Schedule], text: str) -> None:
    with pytest.raises(TopologyError, match=text):
        draw()


@pytest.mark.parametrize("nodes, s", [(4, 3), (5, 4), (6, 3), (7, 4), (6, 5), (2, 1), (3, 2), (200, 8), (40, 20)])
def test_small_and_dense_regular_graphs_are_found(nodes: int, s: int) -> None:
    plan = sampled.regular(topology.plan("complete", nodes), planning(20), s)
    assert ((plan.weight > 0).sum(axis=2) == s).all() and topology.symmetric(plan)
