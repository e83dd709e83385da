"""Graphs, files and weights: spectra against published numbers, and the words of every refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from p2pfl import topology
from p2pfl.errors import ConfigError, TopologyError
from p2pfl.types import Schedule

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def file(text: str | bytes, name: str = "graph.toml") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return file


def matrix(plan: Schedule) -> np.ndarray:
    """W in float64, written with the definition of a schedule alone."""
    _, n, slots = plan.neighbor.shape
    w = np.eye(n)
    for i in range(n):
        for k in range(slots):
            j = plan.neighbor[0, i, k]
            if j >= 0:
                w[i, j] += plan.weight[0, i, k]
                w[i, i] -= plan.weight[0, i, k]
    return w


def rho(graph: nx.Graph) -> float:
    """The second largest |eigenvalue| of W."""
    return float(np.sort(np.abs(np.linalg.eigvalsh(matrix(topology.schedule(graph)))))[-2])


def edges(graph: nx.Graph) -> set[tuple[int, int]]:
    return {(min(e), max(e)) for e in graph.edges}


# --------------------------------------------------------------------------------------------- weights and schedules


@pytest.mark.parametrize(
    "graph, nodes, expected",
    [
        ("ring", 8, 0.80474),  # 1/3 + 2/3 cos(2 pi / 8)
        ("ring", 16, 0.94925),
        ("path", 5, 0.87268),
        ("star", 8, 0.87500),
        ("complete", 7, 0.0),
        ("torus", 16, 0.6),  # (3 + 2 cos(pi / 2)) / 5
    ],
)
def test_the_spectrum_of_metropolis_weights(graph: str, nodes: int, expected: float) -> None:
    assert abs(rho(topology.build(graph, nodes)) - expected) < 6e-6


def test_the_spectrum_of_a_generator_in_a_file(write: Write) -> None:
    petersen = topology.load(write('generator = "petersen_graph"'))
    assert abs(rho(petersen) - 0.5) < 1e-6
    ring = topology.load(write('generator = "ring"\narguments = { nodes = 8 }'))
    assert edges(ring) == edges(topology.build("ring", 8))


GRAPHS = [
    topology.build(name, nodes)
    for name in topology.GRAPHS
    for nodes in (1, 2, 4, 6, 12)
    if (name, nodes) != ("torus", 2)
]
GRAPHS += [
    nx.petersen_graph(),
    nx.barbell_graph(4, 3),
    nx.gnp_random_graph(20, 0.3, seed=1),
    nx.random_labeled_tree(15, seed=2),
]


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: f"{len(graph)}-{graph.number_of_edges()}")
def test_a_schedule_is_the_graph(graph: nx.Graph) -> None:
    plan = topology.schedule(graph)
    n, slots = len(graph), max(dict(graph.degree).values())
    assert plan.neighbor.shape == plan.weight.shape == (1, n, slots)
    assert [a.dtype for a in plan] == [np.int32, np.float32, np.int32]
    assert plan.out_degree.tolist() == [[graph.degree[i] for i in range(n)]]
    for i in range(n):
        listed = [int(j) for j in plan.neighbor[0, i]]
        around = sorted(graph.neighbors(i))
        assert listed == around + [-1] * (slots - len(around))
        assert topology.neighbors(plan, i) == topology.neighbors(plan, i, round=7) == around
        for k, j in enumerate(around):
            expected = np.float32(1 / (1 + max(graph.degree[i], graph.degree[j])))
            assert plan.weight[0, i, k] == expected == np.float32(topology.metropolis(graph.degree[j], graph.degree[i]))
        assert not plan.weight[0, i, len(around) :].any()
    assert plan.weight[0].astype(np.float64).sum(axis=1).max(initial=0) < 1  # a node always keeps a share
    assert np.array_equal(matrix(plan), matrix(plan).T)


def test_neighbors_follow_the_period() -> None:
    plan = topology.schedule(nx.path_graph(2))
    turns = plan._replace(neighbor=np.concatenate([plan.neighbor, np.full_like(plan.neighbor, -1)]))
    assert [topology.neighbors(turns, 0, round) for round in range(4)] == [[1], [], [1], []]


# -------------------------------------------------------------------------------------------------- the named graphs


def test_a_node_alone_and_a_pair() -> None:
    for name in topology.GRAPHS:
        assert topology.build(name, 1).number_of_edges() == 0
        if name != "torus":
            assert edges(topology.build(name, 2)) == {(0, 1)}


@pytest.mark.parametrize("nodes, degree", [(4, 2), (9, 4), (12, 4), (16, 4), (6, 3), (10, 3)])
def test_a_torus_is_regular_and_as_square_as_can_be(nodes: int, degree: int) -> None:
    graph = topology.build("torus", nodes)
    assert sorted(graph.nodes) == list(range(nodes))
    assert set(dict(graph.degree).values()) == {degree}


def test_a_star_has_its_hub_at_zero() -> None:
    assert dict(topology.build("star", 5).degree) == {0: 4, 1: 1, 2: 1, 3: 1, 4: 1}


@pytest.mark.parametrize(
    "graph, nodes, text",
    [
        ("torus", 7, "topology.graph='torus': nodes=7 is no product of two sides >= 2; use ring or another number"),
        ("torus", 2, "nodes=2 is no product"),
        ("rign", 8, "topology.graph='rign': did you mean 'ring'.*or give file = 'topologies/NAME.toml'"),
        ("hypercube", 8, "topology.graph='hypercube': .*Valid: complete, path, ring, star, torus"),
        ("ring", 0, "topology.nodes=0: must be >= 1"),
        ("torus", -4, "topology.nodes=-4: must be >= 1"),
    ],
)
def test_a_named_graph_that_cannot_be(graph: str, nodes: int, text: str) -> None:
    with pytest.raises(TopologyError, match=text):
        topology.build(graph, nodes)
    assert issubclass(TopologyError, ConfigError)


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("graph", [nx.petersen_graph(), nx.barbell_graph(4, 3), nx.path_graph(12)], ids=len)
def test_a_graph_survives_every_kind_of_file(graph: nx.Graph, tmp_path: Path, write: Write) -> None:
    nx.write_graphml(graph, tmp_path / "graph.graphml")
    nx.write_edgelist(graph, tmp_path / "graph.edgelist")  # with data: "0 1 {}"
    nx.write_edgelist(graph, tmp_path / "graph.txt", data=False)
    written = write(f"nodes = {len(graph)}\nedges = {[list(edge) for edge in graph.edges]}")
    for path in (tmp_path / "graph.graphml", tmp_path / "graph.edgelist", tmp_path / "graph.txt", written):
        loaded = topology.load(path)
        assert sorted(loaded.nodes) == list(range(len(graph))), path
        assert edges(loaded) == edges(graph), path


def test_integer_names_are_renumbered_in_ascending_order(write: Write) -> None:
    """As numbers, not as text: 2 comes before 10."""
    assert edges(topology.load(write("10 2\n2 1\n30 10\n", "g.txt"))) == {(0, 1), (1, 2), (2, 3)}


def test_other_names_are_renumbered_alphabetically(write: Write, tmp_path: Path) -> None:
    hospitals = "seville oslo  # far\n\n# the north\noslo bergen 0.5\n"
    assert edges(topology.load(write(hospitals, "g.edges"))) == {(0, 1), (1, 2)}  # bergen, oslo, seville
    star = nx.relabel_nodes(nx.star_graph(3), {0: "m", 1: "a", 2: "z", 3: "b"})
    nx.write_graphml(star, tmp_path / "g.graphml")
    assert edges(topology.load(tmp_path / "g.graphml")) == {(0, 2), (1, 2), (2, 3)}
    grid = topology.load(write('generator = "grid_2d_graph"\narguments = { m = 2, n = 3 }'))  # its names are pairs
    assert edges(grid) == {(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)}


def test_an_edge_list_may_name_both_directions(write: Write) -> None:
    assert edges(topology.load(write("0 1\n1 0\n1 2\n", "g.txt"))) == {(0, 1), (1, 2)}


def test_a_random_graph_is_drawn_from_the_seed_alone(write: Write) -> None:
    drawn = write('generator = "random_regular_graph"\narguments = { d = 3, n = 20 }')
    assert edges(topology.load(drawn, seed=1)) == edges(topology.load(drawn, seed=1))
    assert edges(topology.load(drawn, seed=1)) != edges(topology.load(drawn, seed=2))
    own = write('generator = "random_regular_graph"\narguments = { d = 3, n = 20, seed = 5 }')
    assert edges(topology.load(own, seed=1)) == edges(topology.load(own, seed=2))


def generator(name: str, arguments: str = "") -> str:
    return f'generator = "{name}"\narguments = {{ {arguments} }}'


@pytest.mark.parametrize(
    "text, message",
    [
        ("x =", "graph.toml: not TOML: "),
        (b"\xff\xfe", "graph.toml: not TOML: "),
        ("node = 3", "'node': did you mean 'nodes'"),
        ("", r"give either generator \(with arguments\) or edges \(with nodes\)"),
        ('edges = [[0, 1]]\ngenerator = "ring"', "give either generator"),
        ('generator = "ring"\nnodes = 8', r"'nodes' goes with edges; write arguments = \{ nodes = "),
        ("edges = [[0, 1]]\narguments = { n = 1 }", "'arguments' goes with generator; leave it out"),
        ("edges = 5", r"edges=5: must be a list of pairs such as \[\[0, 1\], \[1, 2\]\]"),
        ("edges = [[0, 1, 2]]", r"edges: \[0, 1, 2\] is no pair of node ids such as \[0, 1\]"),
        ('edges = [["a", "b"]]', r"edges: \['a', 'b'\] is no pair"),
        ("edges = [[0, true]]", r"edges: \[0, True\] is no pair"),
        ("edges = [[0, -1]]", r"edges: \[0, -1\] is no pair"),
        ("edges = [[0, 1], [1, 0]]", r"edges: \[1, 0\] stands twice; an edge is undirected and stands once"),
        ("edges = [[0, 5]]\nnodes = 3", r"edges: \[0, 5\]: with nodes=3 the ids are 0 to 2"),
        ('edges = []\nnodes = "x"', "nodes='x': must be a whole number >= 0"),
        ("edges = []\nnodes = 1.5", "nodes=1.5: must be a whole number >= 0"),
        ("edges = []", "the graph has no nodes"),
        ("edges = [[0, 0], [0, 1]]", r"node 0 has an edge to itself; remove it \(a node always keeps its own share\)"),
        ("edges = [[0, 1], [2, 3]]", r"is in 2 pieces that never hear of each other: \[0, 1\], \[2, 3\]; add edges"),
        ("edges = [[0, 1]]\nnodes = 3", r"is in 2 pieces .*: \[0, 1\], \[2\]"),
        ("generator = 5", "generator=5: must be a name such as 'ring'"),
        ('generator = "ring"\narguments = 5', r"arguments=5: must be a table such as \{ nodes = 8 \}"),
        (generator("rign"), "generator='rign': did you mean 'ring'.*, or a generator of networkx"),
        (generator("petersn_graph"), "generator='petersn_graph': did you mean 'petersen_graph'"),
        (generator("ring"), r"generator ring\(\{\}\): .*missing.*'nodes'; it takes nodes$"),
        (generator("ring", "node = 8"), "unexpected keyword argument 'node'; it takes nodes$"),
        (generator("ring", 'nodes = "8"'), r"generator ring\(\{'nodes': '8'\}\): .*; it takes nodes$"),
        (generator("random_regular_graph", "d = 3, n = 9"), r"n \* d must be even; it takes d, n, seed$"),
        (generator("line_graph", "G = 3"), r"generator line_graph\(\{'G': 3\}\): .*; it takes G"),
        (generator("gnc_graph", "n = 5"), "the graph is directed; the algorithms here need an undirected simple graph"),
        (generator("margulis_gabber_galil_graph", "n = 3"), "the graph is a multigraph; the algorithms"),
        (generator("empty_graph", "n = 30"), r"is in 30 pieces .*: \[0\], \[1\], \[2\], \[3\], \[4\], \[5\]; add"),
    ],
)
def test_a_toml_file_that_cannot_be(text: str | bytes, message: str, write: Write) -> None:
    with pytest.raises(TopologyError, match=message) as raised:
        topology.load(write(text))
    assert "graph.toml" in str(raised.value)


@pytest.mark.parametrize(
    "text, name, message",
    [
        ("0,1\n1,2\n", "g.txt", "line 1: '0,1' is no edge; write two node names and a space between"),
        ("0 1\n# 2\n5\n", "g.edges", "line 3: '5' is no edge"),
        ("0 1\n1 1\n", "g.edgelist", "node '1' has an edge to itself"),
        ("oslo bergen\nseville seville\n", "g.txt", "node 'seville' has an edge to itself"),
        ("oslo bergen\nx y\n", "g.txt", r"is in 2 pieces .*: \['bergen', 'oslo'\], \['x', 'y'\]"),
        ("0 1\n2 3\n", "g.txt", "is in 2 pieces"),
        ("# nothing\n", "g.txt", "the graph has no nodes"),
        (b"\xff\xfe 1", "g.txt", "not an edge list: "),
        ("0 1", "g.csv", "ending '.csv' is none of .toml, .graphml, .txt, .edges, .edgelist"),
        ("nonsense", "g.graphml", "not GraphML: "),
        ("<a/>", "g.graphml", "not GraphML: "),
    ],
)
def test_another_file_that_cannot_be(text: str | bytes, name: str, message: str, write: Write) -> None:
    with pytest.raises(TopologyError, match=message):
        topology.load(write(text, name))


@pytest.mark.parametrize(
    "graph, message",
    [(nx.DiGraph([(0, 1)]), "is directed"), (nx.MultiGraph([(0, 1), (0, 1)]), "is a multigraph")],
)
def test_graphml_of_another_kind(graph: nx.Graph, message: str, tmp_path: Path) -> None:
    nx.write_graphml(graph, tmp_path / "g.graphml")
    with pytest.raises(TopologyError, match=message):
        topology.load(tmp_path / "g.graphml")


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.toml"):
        with pytest.raises(TopologyError, match="no such file"):
            topology.load(path)
