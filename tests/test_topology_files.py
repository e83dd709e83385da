"""Graphs in files: every kind, weights in files, and the words of every refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from p2pfl import topology
from p2pfl.errors import TopologyError

Write = Callable[..., Path]
TOPOLOGIES = Path(__file__).parents[1] / "topologies"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def file(text: str | bytes, name: str = "graph.toml") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return file


def edges(graph: nx.Graph) -> set[tuple[int, int]]:
    return {(min(e), max(e)) for e in graph.edges}


@pytest.mark.parametrize("graph", [nx.petersen_graph(), nx.barbell_graph(4, 3), nx.path_graph(12)], ids=len)
def test_a_graph_survives_every_kind_of_file(graph: nx.Graph, tmp_path: Path, write: Write) -> None:
    nx.write_graphml(graph, tmp_path / "graph.graphml")
    nx.write_edgelist(graph, tmp_path / "graph.edgelist")  # with data: "0 1 {}"
    nx.write_edgelist(graph, tmp_path / "graph.txt", data=False)
    (tmp_path / "graph.json").write_text(json.dumps(nx.node_link_data(graph)))
    written = write(f"nodes = {len(graph)}\nedges = {[list(edge) for edge in graph.edges]}")
    kinds = ("graphml", "edgelist", "txt", "json")
    for path in (*(tmp_path / f"graph.{kind}" for kind in kinds), written):
        loaded = topology.load(path)
        assert sorted(loaded.nodes) == list(range(len(graph))), path
        assert edges(loaded) == edges(graph), path


WEIGHTED = nx.Graph([(0, 1, {"weight": 0.3}), (1, 2, {"weight": 0.5})])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("0,1,0.3\n1,2,0.5\n", "g.txt"), ("0, 1, 0.3\n1 , 2,0.5,km\n", "g.edgelist"), ("0;1;0,3\n1;2;0,5\n", "g.csv"),
        ("Source,Target,Weight\n0,1,0.3\n1,2,0.5\n", "g.csv"), ("0 1 0,3\n1 2 0,5\n", "g.edges"),
        ('from;to\n"0";"1";0,3\n1;2;{"weight": 0.5}\n', "g.csv"), ("edges = [[0, 1, 0.3], [1, 2, 0.5]]", "g.toml"),
        (json.dumps(nx.node_link_data(WEIGHTED)), "g.json"), ("\n".join(nx.generate_graphml(WEIGHTED)), "g.graphml"),
    ],
)  # fmt: skip
def test_files_from_windows_and_from_spreadsheets(text: str, name: str, write: Write) -> None:
    """With the byte order mark and the ends of line of Windows; separators and decimal commas of a spreadsheet."""
    loaded = topology.load(write(text.replace("\n", "\r\n").encode("utf-8-sig"), name))
    assert edges(loaded) == {(0, 1), (1, 2)}
    assert [loaded.edges[edge]["weight"] for edge in ((0, 1), (1, 2))] == [0.3, 0.5]


def test_names_with_spaces_in_a_table_of_edges(write: Write) -> None:
    assert edges(topology.load(write("Oslo North Hospital,Bergen\nBergen,St. Olav\n", "g.csv"))) == {(0, 1), (0, 2)}


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
        ("edges = [[0, 1, 2]]", r"the weights of what node 0 hears sum to 2; they must leave a share >= 0"),
        ("edges = [[0, 1, 2, 3]]", r"edges: \[0, 1, 2, 3\] is no pair of node ids such as \[0, 1\], or with a weight"),
        ("edges = [[0, 1, true]]", r"edges: \[0, 1, True\]: the weight True is no number"),
        ("edges = [[0, 1]]\ndirected = 1", "directed=1: must be true or false"),
        ('generator = "ring"\ndirected = true', "'directed' goes with edges; a generator makes its graph directed or"),
        ("edges = [[0, 1], [0, 1]]\ndirected = true", r"edges: \[0, 1\] stands twice; a directed edge stands once"),
        (
            "edges = [[0, 1], [1, 2]]\ndirected = true",
            r"not strongly connected: between its 3 pieces: \[0\], \[1\], \[2\]",
        ),
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
        (generator("gnc_graph", "n = 5"), "the directed graph is not strongly connected: between its 5 pieces"),
        (
            generator("base"),
            "generator='base': has weights of its own and is no static graph; give it as topology.graph",
        ),
        (generator("torus", "nodes = 7"), r"generator torus\(\{'nodes': 7\}\): .*nodes=7 is no product"),
        (generator("erdos_renyi", "n = 7"), "unexpected keyword argument 'n'; it takes nodes, seed, p$"),
        (generator("margulis_gabber_galil_graph", "n = 3"), "the graph is a multigraph; the algorithms"),
        (
            generator("empty_graph", "n = 30"),
            r"is in 30 pieces .*: \[0\], \[1\], \[2\], \[3\], \[4\], \[5\], \.\.\.; add",
        ),
    ],
)
def test_a_toml_file_that_cannot_be(text: str | bytes, message: str, write: Write) -> None:
    with pytest.raises(TopologyError, match=message) as raised:
        topology.schedule(topology.load(write(text)))
    assert "graph.toml" in str(raised.value) or "topology.weights='file'" in str(raised.value)


@pytest.mark.parametrize(
    "text, name, message",
    [
        ("0,\n1,2\n", "g.txt", "line 1: '0,' is no edge; write two node names and a space or comma between"),
        ("0 1\n", "g.csv", "line 1: '0 1' is no edge"),
        ("0 1\n# 2\n5\n", "g.edges", "line 3: '5' is no edge"),
        ("0 1\n1 1\n", "g.edgelist", "node '1' has an edge to itself"),
        ("oslo bergen\nseville seville\n", "g.txt", "node 'seville' has an edge to itself"),
        ("oslo bergen\nx y\n", "g.txt", r"is in 2 pieces .*: \['bergen', 'oslo'\], \['x', 'y'\]"),
        ("0 1\n2 3\n", "g.txt", "is in 2 pieces"),
        ("# nothing\n", "g.txt", "the graph has no nodes"),
        (b"\xff\xfe 1", "g.txt", "not an edge list: "),
        ("0 1", "g.tsv", "ending '.tsv' is none of .toml, .graphml, .json, .txt, .edges, .edgelist, .csv"),
        ("nonsense", "g.graphml", "not GraphML: "),
        ("<a/>", "g.graphml", "not GraphML: "),
    ],
)
def test_another_file_that_cannot_be(text: str | bytes, name: str, message: str, write: Write) -> None:
    with pytest.raises(TopologyError, match=message):
        topology.load(write(text, name))


@pytest.mark.parametrize(
    "graph, message",
    [(nx.DiGraph([(0, 1)]), "directed graph is not strongly"), (nx.MultiGraph([(0, 1), (0, 1)]), "is a multigraph")],
)
def test_graphml_of_another_kind(graph: nx.Graph, message: str, tmp_path: Path) -> None:
    nx.write_graphml(graph, tmp_path / "g.graphml")
    with pytest.raises(TopologyError, match=message):
        topology.load(tmp_path / "g.graphml")


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.toml"):
        with pytest.raises(TopologyError, match="no such file"):
            topology.load(path)


# ----------------------------------------------------------------------------------------------------------- directed


def test_a_directed_graph_survives_every_kind_of_file(tmp_path: Path, write: Write) -> None:
    graph = nx.DiGraph([(0, 1), (1, 2), (2, 0), (0, 2)])
    nx.write_graphml(graph, tmp_path / "g.graphml")
    (tmp_path / "g.json").write_text(json.dumps(nx.node_link_data(graph)))
    written = write(f"directed = true\nedges = {[list(edge) for edge in graph.edges]}")
    for path in (tmp_path / "g.graphml", tmp_path / "g.json", written):
        loaded = topology.load(path)
        assert loaded.is_directed() and set(loaded.edges) == set(graph.edges), path
        assert topology.matrix(topology.schedule(loaded))[2, 0] == pytest.approx(1 / 3)  # 2 hears 0


# ------------------------------------------------------------------------------------------------------------ weights

W = np.array([[0.7, 0.3, 0.0], [0.3, 0.2, 0.5], [0.0, 0.5, 0.5]])


def test_weights_are_read_from_every_kind_of_file(tmp_path: Path, write: Write) -> None:
    graph = nx.Graph()
    graph.add_weighted_edges_from([(0, 1, 0.3), (1, 2, 0.5)])
    nx.write_graphml(graph, tmp_path / "g.graphml")
    nx.write_edgelist(graph, tmp_path / "g.edgelist")  # "0 1 {'weight': 0.3}"
    (tmp_path / "g.json").write_text(json.dumps(nx.node_link_data(graph)))
    both = write("0 1 0.3 # a comment\n1 0 0.3\n1 2 0.5 km\n", "g.txt")
    for path in (
        tmp_path / "g.graphml", tmp_path / "g.edgelist", tmp_path / "g.json", both,
        write("edges = [[0, 1, 0.3], [1, 2, 0.5]]"),
    ):  # fmt: skip
        loaded = topology.load(path)
        assert abs(topology.matrix(topology.schedule(loaded)) - W).max() < 1e-15, path
        assert abs(topology.matrix(topology.schedule(loaded, "file")) - W).max() < 1e-15, path
        third = topology.matrix(topology.schedule(loaded, "metropolis"))  # asked for, instead of what the file says
        assert third[0, 1] == pytest.approx(1 / 3)


def test_a_column_that_is_no_number_is_not_read(write: Write) -> None:
    assert not nx.get_edge_attributes(topology.load(write("0 1 {}\n1 2 far\n2 3 {'km': 3}\n", "g.txt")), "weight")


def test_weights_of_a_directed_file_are_entries_of_w(write: Write) -> None:
    """The edge (u, v, w): W[v, u] = w; what is left of a row a node keeps."""
    plan = topology.schedule(topology.load(write("directed = true\nedges = [[0, 1, 0.9], [1, 2, 0.6], [2, 0, 0.2]]")))
    assert abs(topology.matrix(plan) - [[0.8, 0, 0.2], [0.9, 0.1, 0], [0, 0.6, 0.4]]).max() < 1e-15
    found = topology.describe(plan)
    assert topology.sums(plan) == "row" and not found["doubly_stochastic"]
    assert "push_sum needs weights = 'uniform_out'" in "\n".join(topology.advice(found, plan))


def test_networkx_counts_are_no_weights(write: Write) -> None:
    """The karate club of networkx has edges with weights 1 to 7; metropolis weights are used."""
    plan = topology.schedule(topology.load(write(generator("karate_club_graph"))))
    assert (
        abs(topology.matrix(plan) - topology.matrix(topology.schedule(nx.karate_club_graph(), "metropolis"))).max()
        < 1e-15
    )


def test_a_weight_to_itself_must_be_what_is_left(write: Write) -> None:
    loaded = topology.load(write("edges = [[0, 0, 0.7], [0, 1, 0.3], [1, 2, 0.5], [2, 2, 0.5]]"))
    assert edges(loaded) == {(0, 1), (1, 2)} and abs(topology.matrix(topology.schedule(loaded)) - W).max() < 1e-15
    directed = "directed = true\nedges = [[0, 1, 0.9], [1, 0, 0.2], [0, 0, 0.8]]"
    assert set(topology.load(write(directed)).edges) == {(0, 1), (1, 0)}


@pytest.mark.parametrize(
    "text, name, message",
    [
        ("edges = [[0, 1, -0.1]]", "g.toml", r"the edge \[0, 1\] has weight -0.1; weights must be finite and > 0"),
        ("edges = [[0, 1, 0]]", "g.toml", r"the edge \[0, 1\] has weight 0; weights must be"),
        ("edges = [[0, 1, inf]]", "g.toml", r"the edge \[0, 1\] has weight inf; weights must be"),
        ("edges = [[0, 1, nan]]", "g.toml", "an edge has weight=nan: must be a number"),
        (
            "edges = [[0, 1, 0.5], [1, 2]]",
            "g.toml",
            r"the edge \[1, 2\] has no weight; give every edge a number `weight`",
        ),
        ("edges = [[0, 1, 0.6], [1, 2, 0.5]]", "g.toml", "what node 1 hears sum to 1.1; they must leave a share >= 0"),
        ("edges = [[0, 1, 0.3], [0, 0, 0.6]]", "g.toml", "node 0 gives itself weight 0.6, but the others leave it 0.7"),
        ("edges = [[0, 1, 0.3], [0, 0]]", "g.toml", "node 0 has an edge to itself"),
        ("0 1 0.3\n1 0 0.2\n", "g.txt", "line 2: the edge 1 0 has weight 0.2 here and 0.3 above; .*undirected"),
        ("0 1 0.3\n1 0\n", "g.txt", "line 2: the edge 1 0 has weight None here and 0.3 above"),
        ("0 1 -3\n", "g.txt", "has weight -3; weights must be"),
        (
            "directed = true\nedges = [[0, 2, 0.6], [1, 2, 0.5], [2, 0, 0.1], [2, 1, 0.1]]",
            "g.toml",
            "node 2 hears sum to 1.1",
        ),
    ],
)
def test_weights_that_cannot_be(text: str, name: str, message: str, write: Write) -> None:
    with pytest.raises(TopologyError, match=message):
        topology.schedule(topology.load(write(text, name)))


def test_a_weight_that_is_a_text(tmp_path: Path) -> None:
    graph = nx.Graph()
    graph.add_edge("a", "b", weight="heavy")
    nx.write_graphml(graph, tmp_path / "g.graphml")
    with pytest.raises(TopologyError, match="weight='heavy': must be a number"):
        topology.schedule(topology.load(tmp_path / "g.graphml"))


# --------------------------------------------------------------------------------------------------------------- JSON


def linked(**table: Any) -> str:
    return json.dumps({"nodes": [{"id": "a"}, {"id": "b"}], "edges": [{"source": "a", "target": "b"}], **table})


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "g.json: not JSON: "),
        ("[" * 100_000, "g.json: not JSON: "),
        ("[]", "not a node-link graph: must be an object with nodes and edges"),
        ('{"nodes": []}', "not a node-link graph: 'edges' must be a list of objects"),
        ('{"nodes": [1], "edges": []}', "not a node-link graph: 'nodes' must be a list of objects"),
        (linked(multigraph=True), "the graph is a multigraph"),
        (linked(nodes=[{"name": "a"}]), "nodes: {'name': 'a'} has no id"),
        (linked(nodes=[{"id": "a"}, {"id": "a"}]), "nodes: id 'a' stands twice"),
        (linked(edges=[{"source": "a", "target": "c"}]), "source and target must be ids that stand among the nodes"),
        (linked(edges=[{"source": ["a"], "target": "b"}]), "source and target must be ids"),
        (linked(edges=[{"source": "a", "target": "b"}, {"source": "b", "target": "a"}]), "stands twice"),
        (linked(directed=True), "not strongly connected"),
        (linked(edges=[]), r"is in 2 pieces that never hear of each other: \['a'\], \['b'\]"),
    ],
)
def test_a_json_file_that_cannot_be(text: str, message: str, write: Write) -> None:
    with pytest.raises(TopologyError, match=message):
        topology.load(write(text, "g.json"))


def test_links_are_edges(write: Write) -> None:
    """As networkx wrote it before 3.6."""
    text = linked().replace('"edges"', '"links"')
    assert edges(topology.load(write(text, "g.json"))) == {(0, 1)}


@pytest.mark.parametrize("path", sorted(TOPOLOGIES.iterdir()), ids=lambda path: path.name)
def test_the_files_that_come_with_p2pfl(path: Path) -> None:
    plan = topology.schedule(topology.load(path))
    assert topology.describe(plan)["connected"] and topology.describe(plan)["rho"] < 1
    root = TOPOLOGIES.parent
    runs = [each for each in (root / "experiments").rglob("*.toml") if f"topologies/{path.name}" in each.read_text()]
    assert runs, "no experiment runs it"
    assert f"`{path.name}`" in (root / "docs" / "topology.md").read_text("utf-8")
