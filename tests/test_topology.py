"""Named graphs and weights: spectra against published numbers, schedules against their definition, every refusal."""

from __future__ import annotations

import json
from typing import Any

import networkx as nx
import numpy as np
import pytest

from p2pfl import topology
from p2pfl.errors import ConfigError, TopologyError
from p2pfl.topology import graphs
from p2pfl.types import Schedule

KEYS = (
    "nodes", "edges", "degree_min", "degree_mean", "degree_max", "connected", "diameter", "symmetric",
    "doubly_stochastic", "rho", "lambda_min", "spectral_gap", "period", "exact_after_period",
    "sends_per_node_to_1e-10",
)  # fmt: skip
STATIC = [name for name, family in topology.GRAPHS.items() if family.graph is not None]
SMALLEST = {"torus": 4, "grid": 4, "watts_strogatz": 5, "barabasi_albert": 3, "random_regular": 4}


def matrix(plan: Schedule, t: int = 0, column: bool = False) -> np.ndarray:
    """W, written with the definition of a schedule alone."""
    _, n, slots = plan.neighbor.shape
    w = np.eye(n)
    for i in range(n):
        for k in range(slots):
            j = plan.neighbor[t, i, k]
            if j >= 0:
                w[i, j] += plan.weight[t, i, k]
                w[i, i] -= plan.out_weight[t, i, k] if column else plan.weight[t, i, k]
    return w


def edges(graph: nx.Graph) -> set[tuple[int, int]]:
    return {(min(e), max(e)) for e in graph.edges}


# ------------------------------------------------------------------------------------------------------------ spectra

TABLE = {  # ||W - J||_2 at n = 8, 16, 25, 32: numbers of the literature or measured with networkx 3.6.1, seed 0
    "ring": (0.804738, 0.949253, 0.979055, 0.987190),  # (1 + 2 cos(2 pi / n)) / 3
    "torus": (0.5, 0.6, 0.723607, 0.882843),
    "star": (0.875, 0.9375, 0.96, 0.96875),  # 1 - 1 / n
    "path": (0.949253, 0.987190, 0.994743, 0.996790),
    "hypercube": (0.5, 0.6, None, 0.666667),  # 1 - 2 / (k + 1)
    "exponential": (0.5, 0.6, 0.510861, 0.666667),
    "erdos_renyi": (0.703707, 0.811772, 0.905607, 0.917221),
    "watts_strogatz": (0.611585, 0.850150, 0.925916, 0.914093),
    "barabasi_albert": (0.853889, 0.904231, 0.921357, 0.934395),
    "random_regular": (0.683013, 0.849003, 0.810152, 0.916821),  # d = 4 at n = 25
    "two_cliques": (0.929150, 0.977315, None, 0.993423),
    "complete": (0.0, 0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("graph", TABLE)
def test_the_table_of_spectra(graph: str) -> None:
    for nodes, expected in zip((8, 16, 25, 32), TABLE[graph], strict=True):
        if expected is not None:
            given = {"d": 4} if (graph, nodes) == ("random_regular", 25) else {}
            plan = topology.plan(graph, nodes, arguments=given)
            assert abs(topology.describe(plan)["rho"] - expected) < 1e-6, nodes
            assert abs(np.linalg.norm(matrix(plan) - 1 / nodes, 2) - expected) < 1e-6, nodes


@pytest.mark.parametrize(
    "graph, metropolis, best",
    [
        (nx.path_graph(5), 0.87268, 0.80902),
        (nx.cycle_graph(8), 0.80474, 0.74452),
        (nx.star_graph(7), 0.87500, 0.77778),
        (nx.cycle_graph(16), 0.94925, 0.92667),
        (nx.petersen_graph(), 0.5, 0.42857),
        (topology.build("two_cliques", 8), 0.92915, 0.88192),
        (nx.convert_node_labels_to_integers(nx.florentine_families_graph()), 0.94256, 0.90914),
    ],
    ids=str,
)
def test_the_best_constant_weight(graph: nx.Graph, metropolis: float, best: float) -> None:
    for weights, expected in (("metropolis", metropolis), ("best_constant", best)):
        found = topology.describe(topology.schedule(graph, weights))
        assert abs(found["rho"] - expected) < 6e-6 and found["symmetric"] and found["doubly_stochastic"]
    laplacian = np.sort(np.linalg.eigvalsh(nx.laplacian_matrix(graph).toarray().astype(float)))
    low, high = laplacian[1], laplacian[-1]
    assert abs(found["rho"] - (high - low) / (high + low)) < 1e-12


def test_max_degree_weights() -> None:
    florentine = nx.convert_node_labels_to_integers(nx.florentine_families_graph())
    plan = topology.schedule(florentine, "max_degree")
    assert abs(topology.describe(plan)["rho"] - 0.95058) < 6e-6
    expected = np.eye(15) - nx.laplacian_matrix(florentine).toarray() / 7  # the Medici have 6 neighbours
    assert abs(topology.matrix(plan) - expected).max() < 1e-15


def test_weights_of_one_and_two_nodes() -> None:
    for weights in ("metropolis", "max_degree", "best_constant", "uniform_out"):
        alone = topology.schedule(nx.empty_graph(1), weights)
        assert alone.neighbor.shape == (1, 1, 0) and topology.matrix(alone).tolist() == [[1.0]]
        assert np.array_equal(topology.matrix(topology.schedule(nx.path_graph(2), weights)), np.full((2, 2), 0.5))


# --------------------------------------------------------------------------------------------------- the convention


def test_directed_weights_are_not_transposed() -> None:
    """0 -> 1, 1 -> 2, 2 -> 0, 0 -> 2: node 0 shares its value out in three, and node 2 hears two."""
    plan = topology.schedule(nx.DiGraph([(0, 1), (1, 2), (2, 0), (0, 2)]))
    third, half = 1 / 3, 1 / 2
    expected = np.array([[third, 0, half], [third, half, 0], [third, half, half]])
    assert abs(topology.matrix(plan) - expected).max() < 1e-15
    assert abs(topology.matrix(plan) - matrix(plan, column=True)).max() < 1e-15
    assert abs(expected.sum(axis=0) - 1).max() < 1e-15  # mass is kept; the rows do not sum to one
    assert topology.sums(plan) == "column" and not topology.symmetric(plan)
    assert plan.neighbor[0].tolist() == [[1, 2], [0, 2], [0, 1]]
    assert plan.weight[0, 0].tolist() == [0, half]  # hears 2 alone
    assert plan.out_weight[0, 0].tolist() == [third, third]  # speaks to both


def test_the_exponential_graph_hears_backwards() -> None:
    """Node i hears i - 1, i - 2, i - 4."""
    w = topology.matrix(topology.plan("exponential", 8))
    assert [np.flatnonzero(row).tolist() for row in w][:2] == [[0, 4, 6, 7], [0, 1, 5, 7]]
    w = topology.matrix(topology.plan("one_peer_exponential", 8), 1)
    assert np.flatnonzero(w[0]).tolist() == [0, 6] and w[0, 6] == 0.5


def test_rho_of_push_sum_is_the_second_eigenvalue() -> None:
    graph = nx.DiGraph([(0, 1), (1, 2), (2, 0), (0, 2), (2, 3), (3, 0)])
    plan = topology.schedule(graph)
    found, w = topology.describe(plan), topology.matrix(plan)
    assert not found["doubly_stochastic"] and abs(w.sum(axis=0) - 1).max() < 1e-15
    assert abs(found["rho"] - np.sort(abs(np.linalg.eigvals(w)))[-2]) < 1e-12
    assert abs(found["lambda_min"] - np.linalg.eigvals(w).real.min()) < 1e-12
    x, mass, errors = np.arange(4.0), np.ones(4), []
    for _ in range(30):
        x, mass = w @ x, w @ mass
        errors.append(abs(x / mass - 1.5).max())
    assert abs((errors[29] / errors[9]) ** (1 / 20) - found["rho"]) < 0.02  # what push-sum really does


def test_a_static_graph_without_an_end_never_agrees() -> None:
    turns = topology.from_rounds(2, [(np.array([0, 1]), np.array([1, 0]), 1.0)])  # both swap, for ever
    found = topology.describe(turns)
    assert found["rho"] == 1.0 and found["spectral_gap"] == 0 and found["sends_per_node_to_1e-10"] is None
    assert "Never agrees" in topology.advice(found, turns)[0]


# ---------------------------------------------------------------------------------------------------------- schedules

SHAPES = [topology.build(name, max(n, SMALLEST.get(name, 1))) for name in STATIC for n in (1, 2, 4, 8)]
SHAPES += [nx.petersen_graph(), nx.barbell_graph(4, 3), nx.gnp_random_graph(20, 0.3, seed=1), nx.path_graph(15)]


@pytest.mark.parametrize("graph", SHAPES, ids=lambda graph: f"{len(graph)}-{graph.number_of_edges()}")
def test_a_schedule_is_the_graph(graph: nx.Graph) -> None:
    plan = topology.schedule(graph)
    both = graph.to_undirected()
    n, slots = len(graph), max(dict(both.degree).values())
    assert plan.neighbor.shape == plan.weight.shape == plan.out_weight.shape == (1, n, slots)
    assert [a.dtype for a in plan] == [np.int32, np.float64, np.float64, bool] and plan.trains.all()
    for i in range(n):
        around = sorted(both.neighbors(i))
        assert plan.neighbor[0, i].tolist() == around + [-1] * (slots - len(around))
        assert topology.neighbors(plan, i) == around
        for k, j in enumerate(around):
            if not graph.is_directed():
                expected = 1 / (1 + max(graph.degree[i], graph.degree[j]))
                assert plan.weight[0, i, k] == plan.out_weight[0, i, k] == expected
                assert expected == topology.metropolis(graph.degree[j], graph.degree[i])
            else:
                assert plan.weight[0, i, k] == (graph.has_edge(j, i) and 1 / (1 + graph.out_degree[j]))
                assert plan.out_weight[0, i, k] == (graph.has_edge(i, j) and 1 / (1 + graph.out_degree[i]))
    assert abs(topology.matrix(plan) - matrix(plan, column=True)).max() < 1e-15
    assert nx.utils.graphs_equal(nx.Graph(topology.union(plan)), nx.Graph(both)) or edges(both) == edges(
        topology.union(plan)
    )


def test_rounds_begin_at_one_and_follow_the_period() -> None:
    plan = topology.plan("one_peer_exponential", 8)
    assert [topology.row(plan, r) for r in (1, 2, 3, 4, 7)] == [0, 1, 2, 0, 0]


@pytest.mark.parametrize("graph", ["one_peer_exponential", "base", "random_matching"])
def test_stable_slots_are_the_same_schedule(graph: str) -> None:
    plan = topology.plan(graph, 11, rounds=5)
    slotted = topology.stable(plan)
    assert len(slotted.neighbor) == len(plan.neighbor)
    assert (slotted.neighbor == slotted.neighbor[:1]).all()
    for t in range(len(plan.neighbor)):
        assert np.array_equal(topology.matrix(slotted, t), topology.matrix(plan, t))
    for i in range(11):
        own = topology.neighbors(plan, i)
        assert slotted.neighbor[0, i].tolist() == own + [-1] * (slotted.neighbor.shape[2] - len(own))
    assert edges(topology.union(plan)) == edges(topology.union(slotted))
    assert topology.describe(plan) == topology.describe(slotted)


@pytest.mark.parametrize("graph", ["star", "exponential", "one_peer_exponential", "base", "complete"])
def test_reverse_finds_the_way_back(graph: str) -> None:
    plan = topology.plan(graph, 8)
    back = topology.reverse(plan)
    assert back.dtype == np.int32 and back.shape == plan.neighbor.shape
    for t, i, k in np.ndindex(*back.shape):
        j = plan.neighbor[t, i, k]
        if j < 0:
            assert back[t, i, k] == -1
        else:
            assert plan.neighbor[t, j, back[t, i, k]] == i
            assert plan.weight[t, j, back[t, i, k]] == plan.out_weight[t, i, k]


def test_weights_that_stand_twice_add_up() -> None:
    plan = topology.from_rounds(2, [(np.array([0, 0, 1]), np.array([1, 1, 0]), np.array([0.1, 0.2, 0.3]))])
    assert abs(topology.matrix(plan) - [[0.7, 0.3], [0.3, 0.7]]).max() < 1e-15


# --------------------------------------------------------------------------------------------------- the named graphs


@pytest.mark.parametrize("graph", topology.GRAPHS)
def test_a_node_alone(graph: str) -> None:
    plan = topology.plan(graph, 1)
    found = topology.describe(plan, topology.expected_rho(graph, 1))
    assert topology.matrix(plan).tolist() == [[1.0]] and found["rho"] == 0 and found["connected"]
    assert found["sends_per_node_to_1e-10"] == 0 and found["exact_after_period"] and found["diameter"] == 0
    assert topology.advice(found, plan) == ["One node, nobody to mix with."]


@pytest.mark.parametrize("graph", sorted(set(topology.GRAPHS) - set(SMALLEST)))
def test_a_pair(graph: str) -> None:
    assert edges(topology.union(topology.plan(graph, 2))) == {(0, 1)}


@pytest.mark.parametrize("nodes, degree", [(4, 2), (9, 4), (12, 4), (16, 4), (6, 3), (10, 3)])
def test_a_torus_is_regular_and_as_square_as_can_be(nodes: int, degree: int) -> None:
    graph = topology.build("torus", nodes)
    assert sorted(graph.nodes) == list(range(nodes))
    assert set(dict(graph.degree).values()) == {degree}


def test_the_shapes_of_the_others() -> None:
    assert dict(topology.build("star", 5).degree) == {0: 4, 1: 1, 2: 1, 3: 1, 4: 1}
    assert edges(topology.build("grid", 6)) == {(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)}
    assert edges(topology.build("hypercube", 4)) == {(0, 1), (0, 2), (1, 3), (2, 3)}
    assert edges(topology.build("two_cliques", 5)) == {(0, 1), (1, 2), (2, 3), (2, 4), (3, 4)}


@pytest.mark.parametrize("graph", [name for name, family in topology.GRAPHS.items() if family.random])
def test_a_drawn_graph_is_a_pure_function(graph: str) -> None:
    def drawn(seed: int, rounds: int = 3) -> np.ndarray:
        return topology.plan(graph, 20, seed=seed, rounds=rounds).neighbor

    assert np.array_equal(drawn(1), drawn(1))
    assert drawn(1).shape != drawn(2).shape or not np.array_equal(drawn(1), drawn(2))


def test_a_draw_in_pieces_is_drawn_again() -> None:
    seeds = [s for s in range(60) if not nx.is_connected(nx.gnp_random_graph(8, 0.3, seed=s))]
    assert len(seeds) > 5
    for seed in seeds:
        assert nx.is_connected(topology.build("erdos_renyi", 8, arguments={"p": 0.3}, seed=seed))
    again = nx.gnp_random_graph(8, 0.3, seed=graphs.draw_seeds(seeds[0])[1])
    if nx.is_connected(again):
        assert edges(again) == edges(topology.build("erdos_renyi", 8, arguments={"p": 0.3}, seed=seeds[0]))
    with pytest.raises(
        TopologyError, match=r"20 draws from seed=0, and none in one piece; the first is in 30 pieces: "
    ):
        topology.build("erdos_renyi", 30, arguments={"p": 1e-9})


@pytest.mark.parametrize(
    "graph, nodes, given, text",
    [
        ("torus", 7, {}, "topology.graph='torus': nodes=7 is no product of two sides >= 2; use ring or another number"),
        ("grid", 2, {}, "nodes=2 is no product of two sides >= 2; use path or another number"),
        ("rign", 8, {}, "topology.graph='rign': did you mean 'ring'.*or give file = 'topologies/NAME.toml'"),
        ("mesh", 8, {}, "'mesh': you mean one of these: a full mesh is 'complete'.*'grid'.*'torus'.*'random_regular'"),
        ("Full Mesh", 8, {}, "topology.graph='Full Mesh': you mean 'complete'"),
        ("partial-mesh", 8, {}, "topology.graph='partial-mesh': you mean 'random_regular'"),
        ("ring", 0, {}, "topology.nodes=0: must be >= 1"),
        ("torus", -4, {}, "topology.nodes=-4: must be >= 1"),
        ("hypercube", 12, {}, "nodes=12 is no power of two; the nearest are 8 and 16; base is as fast"),
        ("ring", 8, {"arguments": {"k": 1}}, "topology.graph='ring': no argument 'k'; it takes none"),
        ("base", 8, {"arguments": {"m": 1}}, "topology.graph='base': no argument 'm'; Valid: k"),
        ("equitopo", 8, {"arguments": {"varient": ""}}, "no argument 'varient'; did you mean 'variant'"),
        ("base", 8, {"arguments": {"k": 1.5}}, "topology.graph='base': k=1.5: must be a whole number"),
        ("base", 8, {"arguments": {"k": True}}, "k=True: must be a whole number"),
        ("base", 8, {"arguments": {"k": 0}}, "k=0: must be >= 1"),
        ("erdos_renyi", 8, {"arguments": {"p": "x"}}, "p='x': must be a number"),
        ("erdos_renyi", 8, {"arguments": {"p": 0}}, "p=0: must be > 0 and <= 1"),
        ("watts_strogatz", 8, {"arguments": {"k": 3}}, "k=3: must be even, >= 2 and < nodes=8"),
        ("watts_strogatz", 4, {}, "k=4: must be even, >= 2 and < nodes=4"),
        ("watts_strogatz", 8, {"arguments": {"p": 1.1}}, "p=1.1: must be >= 0 and <= 1"),
        ("barabasi_albert", 2, {}, "m=2: must be >= 1 and < nodes=2"),
        ("random_regular", 3, {}, "d=3: must be >= 1 and < nodes=3"),
        ("random_regular", 9, {}, "nodes=9, d=3: their product must be even; change one by one"),
        ("random_regular", 8, {"arguments": {"d": 1}}, "none in one piece; the first is in 4 pieces.*give d >= 3"),
        ("equitopo", 8, {"arguments": {"variant": "static"}}, "variant='static': did you mean 'u_static'"),
        ("equitopo", 8, {"arguments": {"variant": 3}}, "variant=3: must be a text"),
        ("equitopo", 8, {"arguments": {"m": 0}}, "m=0: must be >= 1, the number of shifts"),
        ("ring", 8, {"seed": -1}, "seed=-1: must be a whole number >= 0"),
        ("random_matching", 8, {"rounds": 0}, "rounds=0: must be >= 1"),
        ("ring", 8, {"weights": "metropolys"}, "topology.weights='metropolys': did you mean 'metropolis'"),
        ("base", 8, {"weights": "metropolis"}, "the graph 'base' has weights of its own; leave weights out"),
        ("exponential", 8, {"weights": "metropolis"}, "the graph is directed, .* use weights = 'uniform_out'"),
        ("ring", 3, {"weights": "file"}, r"the edge \[0, 1\] has no weight; give every edge a number"),
    ],
)
def test_a_named_graph_that_cannot_be(graph: str, nodes: int, given: dict[str, Any], text: str) -> None:
    with pytest.raises(TopologyError, match=text):
        topology.plan(graph, nodes, **given)
    assert issubclass(TopologyError, ConfigError)


def test_no_static_graph() -> None:
    with pytest.raises(TopologyError, match="'base': is a schedule with weights of its own, and no static graph"):
        topology.build("base", 4)


@pytest.mark.parametrize(
    "graph, text",
    [
        (nx.MultiGraph([(0, 1), (0, 1)]), "the graph is a multigraph"),
        (nx.Graph([(0, 0), (0, 1)]), "node 0 has an edge to itself"),
        (nx.Graph([("a", "b")]), "the nodes must be the numbers 0 to 1; networkx.convert_node_labels_to_integers"),
        (nx.Graph([(1, 2)]), "the nodes must be the numbers 0 to 1"),
        (nx.karate_club_graph(), "the weights of what node 0 hears sum to 42; they must leave a share >= 0 for itself"),
        (nx.Graph([(0, 1, {"weight": "x"})]), "an edge has weight='x': must be a number"),
        (nx.Graph([(0, 1, {"weight": float("nan")})]), "an edge has weight=nan"),
    ],
)
def test_a_networkx_graph_that_cannot_be(graph: nx.Graph, text: str) -> None:
    with pytest.raises(TopologyError, match=text):
        topology.schedule(graph)


# -------------------------------------------------------------------------------------------------------- the figures


def test_describe_has_its_keys_in_order_and_is_json() -> None:
    for graph in topology.GRAPHS:
        found = topology.describe(topology.plan(graph, 16, rounds=9), topology.expected_rho(graph, 16))
        assert tuple(found) == KEYS
        assert json.loads(json.dumps(found)) == found


def test_describe_a_ring() -> None:
    found = topology.describe(topology.plan("ring", 8))
    assert {key: found[key] for key in KEYS if key not in ("rho", "spectral_gap", "lambda_min")} == {
        "nodes": 8, "edges": 8, "degree_min": 2, "degree_mean": 2.0, "degree_max": 2, "connected": True, "diameter": 4,
        "symmetric": True, "doubly_stochastic": True, "period": 1, "exact_after_period": False,
        "sends_per_node_to_1e-10": 2 * 106,  # 0.804738^106 = 1.0e-10
    }  # fmt: skip
    assert abs(found["lambda_min"] + 1 / 3) < 1e-12 and found["spectral_gap"] == 1 - found["rho"]
    assert found["rho"] ** 106 <= 1e-10 < found["rho"] ** 105


def test_describe_counts_arcs_of_directed_graphs() -> None:
    found = topology.describe(topology.plan("exponential", 8))
    assert (found["edges"], found["degree_max"], found["diameter"]) == (24, 3, 3)
    cycle = topology.describe(topology.schedule(nx.cycle_graph(5, create_using=nx.DiGraph)))
    assert (cycle["edges"], cycle["diameter"], cycle["connected"]) == (5, 4, True)
    one_way = topology.describe(topology.schedule(nx.DiGraph([(0, 1), (1, 2)])))
    assert (one_way["connected"], one_way["diameter"]) == (False, None)


@pytest.mark.parametrize("graph", ["ring", "torus", "random_regular", "exponential", "one_peer_exponential", "base"])
def test_iterations_give_what_dense_matrices_give(graph: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from p2pfl.topology import eigen

    plan = topology.plan(graph, 96)
    dense = topology.describe(plan)
    monkeypatch.setattr(eigen, "DENSE", 10)
    monkeypatch.setattr(eigen, "RESTARTS", 3)  # and the factorisation, too
    sparse = topology.describe(plan)
    for key in KEYS:
        assert dense[key] == (pytest.approx(sparse[key], abs=1e-9) if isinstance(dense[key], float) else sparse[key])


def test_a_ring_of_ten_thousand() -> None:
    found = topology.describe(topology.plan("ring", 10_000))
    assert found["spectral_gap"] == pytest.approx(2 / 3 * (1 - np.cos(2 * np.pi / 10_000)), rel=1e-6)
    assert found["lambda_min"] == pytest.approx(-1 / 3, abs=1e-9) and found["diameter"] is None


def test_what_is_too_large_is_refused() -> None:
    wide = Schedule(*(np.broadcast_to(np.zeros(1, kind), (1, 5000, 4999)) for kind in (int, float, float)), np.ones(1))
    with pytest.raises(
        TopologyError, match="5000 nodes with up to 4999 neighbours in 1 rounds are more than the 20,000"
    ):
        topology.describe(wide)


@pytest.mark.parametrize(
    "graph, nodes, given, says",
    [
        ("ring", 16, {}, ["Slow consensus: 443 rounds", "d2 diverges here (lambda_min = -0.3333"]),
        ("ring", 15, {}, ["every algorithm may run here, d2 too."]),
        ("random_regular", 10, {"seed": 1}, ["Moderate consensus"]),
        ("exponential", 16, {}, ["need symmetric weights: use push_sum"]),
        ("base", 5, {}, ["Finite time: after 5 rounds all nodes hold the exact mean.", "d2 diverges"]),
        ("complete", 5, {}, ["Finite time: after one round"]),
        ("two_cliques", 8, {}, ["One death cuts it in pieces: nodes 3, 4."]),
        ("star", 8, {}, ["pieces: node 0.", "Node 0 speaks to 7 others in a round, 4.0 times the mean"]),
        ("star", 8, {"weights": "best_constant"}, ["Node 0 would keep a negative share of its own value (-0.556)"]),
    ],
)
def test_the_words(graph: str, nodes: int, given: dict[str, Any], says: list[str]) -> None:
    plan = topology.plan(graph, nodes, **given)
    words = "\n".join(topology.advice(topology.describe(plan), plan))
    for text in says:
        assert text in words
    assert ("One death" in words) == (graph in ("two_cliques", "star") or (graph == "base" and "One death" in words))


@pytest.mark.parametrize("graph", ["base", "random_matching", "one_peer_exponential"])
def test_what_is_said_of_d2_on_changing_graphs_is_true(graph: str) -> None:
    """Heterogeneous scalar quadratics: exact diffusion finds the optimum, d2 blows up, though lambda_min > -1/3."""
    rng, n = np.random.default_rng(0), 16
    plan = topology.plan(graph, n, rounds=500)
    a, b = rng.uniform(0.5, 1.5, n), rng.standard_normal(n)
    optimum = (a * b).sum() / a.sum()
    ends = {}
    for name, lazy in (("exact_diffusion", 0.5), ("d2", 0.0)):
        x, before = np.zeros(n), np.zeros(n)
        for r in range(1, 501):
            w = lazy * np.eye(n) + (1 - lazy) * topology.matrix(plan, topology.row(plan, r))
            moved = x - 0.05 * a * (x - b)
            x, before = w @ (moved + x - before if r > 1 else moved), moved
        ends[name] = abs(x - optimum).max()
    assert ends["exact_diffusion"] < 1e-6 and ends["d2"] > 1.0
