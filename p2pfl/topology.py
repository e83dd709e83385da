"""The graph that nodes gossip along: generators, files, weights, and the schedule that drivers use.

Every function is pure: every node computes the same graph by itself, without anyone in charge.
"""

from __future__ import annotations

import difflib
import inspect
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import networkx as nx
import numpy as np

from p2pfl.errors import TopologyError, nearest
from p2pfl.types import Schedule


def ring(nodes: int) -> nx.Graph:
    """A cycle; two nodes share one edge, one node has none."""
    return nx.cycle_graph(nodes) if nodes > 2 else nx.path_graph(nodes)


def torus(nodes: int) -> nx.Graph:
    """A two-dimensional periodic grid, as square as `nodes` allows; raises TopologyError for primes."""
    rows = next((r for r in range(math.isqrt(nodes), 1, -1) if nodes % r == 0), 1)
    if rows == 1 and nodes > 1:
        raise TopologyError(
            f"topology.graph='torus': nodes={nodes} is no product of two sides >= 2; use ring or another number"
        )
    graph = nx.grid_2d_graph(rows, nodes // rows, periodic=True)
    return nx.convert_node_labels_to_integers(graph, ordering="sorted")


GRAPHS: Mapping[str, Callable[[int], nx.Graph]] = MappingProxyType(
    {
        "ring": ring,
        "path": nx.path_graph,
        "complete": nx.complete_graph,
        "star": lambda nodes: nx.star_graph(nodes - 1),
        "torus": torus,
    }
)
"""Generators `(nodes) -> graph` by name; node ids are 0 ... nodes - 1."""


def build(graph: str, nodes: int) -> nx.Graph:
    """The named graph on `nodes` nodes. Raises TopologyError for an unknown name or a graph that can't be."""
    if graph not in GRAPHS:
        raise TopologyError(
            f"topology.graph={graph!r}: {nearest(graph, GRAPHS)}; or give file = 'topologies/NAME.toml'"
        )
    if nodes < 1:
        raise TopologyError(f"topology.nodes={nodes}: must be >= 1")
    return checked(GRAPHS[graph](nodes), f"topology.graph={graph!r}")


def load(path: Path, seed: int = 0) -> nx.Graph:
    """The graph in a file: .toml (generator and arguments, or edges), .graphml, or a list (.txt, .edges, .edgelist).

    Nodes are renumbered 0 ... n - 1: integer names in ascending order, other names alphabetically.
    """
    if not path.is_file():
        raise TopologyError(f"topology.file={str(path)!r}: no such file")
    readers = {".toml": _toml, ".graphml": _graphml, ".txt": _edges, ".edges": _edges, ".edgelist": _edges}
    if path.suffix not in readers:
        raise TopologyError(f"topology.file={str(path)!r}: ending {path.suffix!r} is none of {', '.join(readers)}")
    return _renumbered(checked(readers[path.suffix](path, seed), f"topology.file={str(path)!r}"))


_KEYS = ("generator", "arguments", "edges", "nodes")
_NOT_OURS = ("create_using", "backend", "backend_kwargs")
"""Arguments of networkx's generators that a file has no use for."""


def _toml(path: Path, seed: int) -> nx.Graph:
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TopologyError(f"{path}: not TOML: {error}") from error
    unknown = set(table) - set(_KEYS)
    if unknown:
        raise TopologyError(f"{path}: {sorted(unknown)[0]!r}: {nearest(sorted(unknown)[0], _KEYS)}")
    if ("generator" in table) == ("edges" in table):
        raise TopologyError(f"{path}: give either generator (with arguments) or edges (with nodes)")
    for key, partner, instead in (
        ("nodes", "edges", "write arguments = { nodes = ... }, or n, as the generator calls it"),
        ("arguments", "generator", "leave it out"),
    ):
        if key in table and partner not in table:
            raise TopologyError(f"{path}: {key!r} goes with {partner}; {instead}")
    return _from_edges(path, table) if "edges" in table else _generated(path, table, seed)


def _from_edges(path: Path, table: dict[str, Any]) -> nx.Graph:
    nodes, edges = table.get("nodes", 0), table["edges"]
    if type(nodes) is not int or nodes < 0:
        raise TopologyError(f"{path}: nodes={nodes!r}: must be a whole number >= 0")
    if not isinstance(edges, list):
        raise TopologyError(f"{path}: edges={edges!r}: must be a list of pairs such as [[0, 1], [1, 2]]")
    graph = nx.Graph()
    graph.add_nodes_from(range(nodes))
    for edge in edges:
        if not (isinstance(edge, list) and len(edge) == 2 and all(type(end) is int and end >= 0 for end in edge)):
            raise TopologyError(f"{path}: edges: {edge!r} is no pair of node ids such as [0, 1]")
        if "nodes" in table and max(edge) >= nodes:
            raise TopologyError(f"{path}: edges: {edge!r}: with nodes={nodes} the ids are 0 to {nodes - 1}")
        if graph.has_edge(*edge):
            raise TopologyError(f"{path}: edges: {edge!r} stands twice; an edge is undirected and stands once")
        graph.add_edge(*edge)
    return graph


def _generated(path: Path, table: dict[str, Any], seed: int) -> nx.Graph:
    """One of GRAPHS, or any generator of networkx that returns an undirected graph."""
    name, arguments = table["generator"], table.get("arguments", {})
    if not isinstance(name, str):
        raise TopologyError(f"{path}: generator={name!r}: must be a name such as 'ring'")
    if not isinstance(arguments, dict):
        raise TopologyError(f"{path}: arguments={arguments!r}: must be a table such as {{ nodes = 8 }}")
    functions = {key: value for key, value in vars(nx).items() if key.endswith("_graph") and inspect.isfunction(value)}
    if name not in GRAPHS and name not in functions:
        known = [*GRAPHS, *difflib.get_close_matches(name, functions, n=8)]
        raise TopologyError(f"{path}: generator={name!r}: {nearest(name, known)}, or a generator of networkx")
    maker: Callable[..., Any] = GRAPHS[name] if name in GRAPHS else functions[name]
    accepted = [key for key in inspect.signature(maker).parameters if key not in _NOT_OURS]
    if "seed" in accepted:
        arguments = {"seed": seed, **arguments}
    try:
        graph = maker(**arguments)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, nx.NetworkXException) as error:
        raise TopologyError(
            f"{path}: generator {name}({arguments}): {error}; it takes {', '.join(accepted)}"
        ) from error
    if not isinstance(graph, nx.Graph):
        raise TopologyError(f"{path}: generator={name!r} makes no graph")
    return graph


def _graphml(path: Path, seed: int) -> nx.Graph:
    try:
        return nx.read_graphml(path)
    except (ValueError, SyntaxError, nx.NetworkXException) as error:
        raise TopologyError(f"{path}: not GraphML: {error}") from error


def _edges(path: Path, seed: int) -> nx.Graph:
    """Two names a line, more columns are not read; `#` begins a comment; an edge may stand in both directions."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise TopologyError(f"{path}: not an edge list: {error}") from error
    graph = nx.Graph()
    for number, line in enumerate(lines, 1):
        names = line.partition("#")[0].split()
        if len(names) == 1:
            raise TopologyError(
                f"{path}: line {number}: {names[0]!r} is no edge; write two node names and a space between"
            )
        if names:
            graph.add_edge(names[0], names[1])
    return graph


def _renumbered(graph: nx.Graph) -> nx.Graph:
    return nx.relabel_nodes(graph, {name: i for i, name in enumerate(_ascending(graph.nodes))})


def _ascending(names: Iterable[Any]) -> list[Any]:
    """Integer names (also as text) as numbers, any others alphabetically."""
    names = list(names)
    try:
        return sorted(names, key=int)
    except (TypeError, ValueError):
        return sorted(names, key=str)


def checked(graph: nx.Graph, where: str) -> nx.Graph:
    """The graph, undirected, simple and connected; raises TopologyError naming what breaks that."""
    if graph.is_directed() or graph.is_multigraph():
        kind = "directed" if graph.is_directed() else "a multigraph"
        raise TopologyError(f"{where}: the graph is {kind}; the algorithms here need an undirected simple graph")
    loops = [node for node, _ in nx.selfloop_edges(graph)]
    if loops:
        raise TopologyError(
            f"{where}: node {loops[0]!r} has an edge to itself; remove it (a node always keeps its own share)"
        )
    if len(graph) == 0:
        raise TopologyError(f"{where}: the graph has no nodes")
    parts = [_ascending(part) for part in nx.connected_components(graph)]
    if len(parts) > 1:
        listed = ", ".join(str(part if len(part) <= 8 else [*part[:8], "..."]) for part in parts[:6])
        raise TopologyError(
            f"{where}: the graph is in {len(parts)} pieces that never hear of each other: {listed}; "
            "add edges between them"
        )
    return graph


def metropolis(degree: int, other: int) -> float:
    """The Metropolis-Hastings weight of an edge between nodes of these degrees: 1 / (1 + max).

    Both ends compute it alike from the two degrees; the weights of a node sum to less than one. Source: Xiao, Boyd,
    "Fast linear iterations for distributed averaging" (2004).
    """
    return 1.0 / (1.0 + max(degree, other))


def schedule(graph: nx.Graph) -> Schedule:
    """The static schedule (T = 1) of a graph with Metropolis-Hastings weights; slots in ascending node id."""
    nodes = len(graph)
    slots = max((degree for _, degree in graph.degree), default=0)
    neighbor = np.full((1, nodes, slots), -1, np.int32)
    weight = np.zeros((1, nodes, slots), np.float32)
    degrees = np.array([[graph.degree[i] for i in range(nodes)]], np.int32)
    for i in range(nodes):
        for k, j in enumerate(sorted(graph.neighbors(i))):
            neighbor[0, i, k] = j
            weight[0, i, k] = metropolis(graph.degree[i], graph.degree[j])
    return Schedule(neighbor, weight, degrees)


def neighbors(plan: Schedule, node: int, round: int = 0) -> list[int]:
    """The neighbours of a node in a round, ascending."""
    return [int(j) for j in plan.neighbor[round % len(plan.neighbor), node] if j >= 0]
