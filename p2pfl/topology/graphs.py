"""Static graphs by generator, as pure functions of the number of nodes, the seed and their arguments.

Node ids are 0 ... nodes - 1. In a directed graph the edge (u, v) means that u sends to v: v hears u. Random graphs are
those of networkx for the same seed; a draw that is in pieces is followed by others from seeds derived from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import networkx as nx
import numpy as np

from p2pfl.errors import TopologyError

DRAWS = 20
"""So many draws of a random graph at most, until one is in one piece."""
SPARSE = 1000
"""Beyond so many nodes Erdos-Renyi graphs are drawn, in time proportional to their edges; by the same law."""
REDRAW_PURPOSE = 0x9EA7
MOST = 1 << 20
"""Nodes of a graph at most: more is a slip of the finger, and would fill the memory before anything could say so."""


def ring(nodes: int) -> nx.Graph:
    """A cycle; two nodes share one edge, one node has none."""
    return nx.cycle_graph(nodes) if nodes > 2 else nx.path_graph(nodes)


def path(nodes: int) -> nx.Graph:
    """A line from node 0 to node nodes - 1."""
    return nx.path_graph(nodes)


def torus(nodes: int) -> nx.Graph:
    """A two-dimensional periodic grid, as square as `nodes` allows; raises TopologyError for primes."""
    return _grid("torus", nodes, "ring", periodic=True)


def grid(nodes: int) -> nx.Graph:
    """A two-dimensional grid with borders, as square as `nodes` allows; raises TopologyError for primes."""
    return _grid("grid", nodes, "path", periodic=False)


def _grid(name: str, nodes: int, instead: str, periodic: bool) -> nx.Graph:
    rows = next((r for r in range(math.isqrt(nodes), 1, -1) if nodes % r == 0), 1)
    if rows == 1 and nodes > 1:
        raise TopologyError(
            f"topology.graph={name!r}: nodes={nodes} is no product of two sides >= 2; use {instead} or another number"
        )
    graph = nx.grid_2d_graph(rows, nodes // rows, periodic=periodic)
    return nx.convert_node_labels_to_integers(graph, ordering="sorted")


def complete(nodes: int) -> nx.Graph:
    """Everybody with everybody."""
    return nx.complete_graph(nodes)


def star(nodes: int) -> nx.Graph:
    """Node 0 is the hub of all others."""
    return nx.star_graph(nodes - 1)


def hypercube(nodes: int) -> nx.Graph:
    """Ids that differ in one bit are neighbours. Raises TopologyError if `nodes` is no power of two."""
    if nodes & (nodes - 1):
        low = 1 << (nodes.bit_length() - 1)
        raise TopologyError(
            f"topology.graph='hypercube': nodes={nodes} is no power of two; the nearest are {low} and {2 * low}; "
            "base is as fast for every number"
        )
    return _from_edges(nodes, ((i, i ^ bit) for i in range(nodes) for bit in hops(nodes)))


def exponential(nodes: int) -> nx.DiGraph:
    """Directed: node i hears i - 2^j mod nodes, for every j < ceil(log2 nodes).

    Source: Ying et al., "Exponential graph is provably efficient for decentralized deep training", arXiv 2110.13363.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(range(nodes))
    graph.add_edges_from(((i - hop) % nodes, i) for i in range(nodes) for hop in hops(nodes))
    return graph


def hops(nodes: int) -> list[int]:
    """1, 2, 4, ...: the powers of two below `nodes`, ceil(log2 nodes) of them.

    >>> hops(6)
    [1, 2, 4]
    """
    return [1 << j for j in range((nodes - 1).bit_length())]


def two_cliques(nodes: int) -> nx.Graph:
    """Two halves, each complete, joined by one edge from the last node of the first to the first of the second."""
    half = nodes // 2
    graph = nx.disjoint_union(nx.complete_graph(half), nx.complete_graph(nodes - half))
    if half:
        graph.add_edge(half - 1, half)
    return graph


def erdos_renyi(nodes: int, seed: int = 0, p: float | None = None) -> nx.Graph:
    """Every pair is joined with probability `p`; 2 ln(nodes) / nodes unless given."""
    if p is None:
        p = 2 * math.log(nodes) / nodes
    _ruled("erdos_renyi", 0 < p <= 1, f"p={p!r}: must be > 0 and <= 1")
    draw = nx.gnp_random_graph if nodes <= SPARSE else nx.fast_gnp_random_graph
    return _connected("erdos_renyi", seed, lambda own: draw(nodes, p, seed=own), "a larger p")


def watts_strogatz(nodes: int, seed: int = 0, k: int = 4, p: float = 0.3) -> nx.Graph:
    """A ring of `k` nearest neighbours whose edges are rewired with probability `p`."""
    _ruled("watts_strogatz", k % 2 == 0 and 2 <= k < nodes, f"k={k!r}: must be even, >= 2 and < nodes={nodes}")
    _ruled("watts_strogatz", 0 <= p <= 1, f"p={p!r}: must be >= 0 and <= 1")
    return _connected(
        "watts_strogatz", seed, lambda own: nx.watts_strogatz_graph(nodes, k, p, seed=own), "a larger k or a smaller p"
    )


def barabasi_albert(nodes: int, seed: int = 0, m: int = 2) -> nx.Graph:
    """Grows node by node; each joins `m` others, those with many neighbours more often."""
    _ruled("barabasi_albert", 1 <= m < nodes, f"m={m!r}: must be >= 1 and < nodes={nodes}")
    return nx.barabasi_albert_graph(nodes, m, seed=seed)


def random_regular(nodes: int, seed: int = 0, d: int = 3) -> nx.Graph:
    """Drawn among the graphs in which every node has `d` neighbours."""
    _ruled("random_regular", 1 <= d < nodes, f"d={d!r}: must be >= 1 and < nodes={nodes}")
    _ruled("random_regular", nodes * d % 2 == 0, f"nodes={nodes}, d={d}: their product must be even; change one by one")
    return _connected("random_regular", seed, lambda own: nx.random_regular_graph(d, nodes, seed=own), "d >= 3")


def _from_edges(nodes: int, edges: Iterable[tuple[int, int]]) -> nx.Graph:
    graph = nx.Graph()
    graph.add_nodes_from(range(nodes))
    graph.add_edges_from(edges)
    return graph


def _ruled(name: str, holds: bool, text: str) -> None:
    if not holds:
        raise TopologyError(f"topology.graph={name!r}: {text}")


def draw_seeds(seed: int) -> list[int]:
    """The seed itself, and those of further draws, derived from it."""
    return [seed, *np.random.SeedSequence([seed, REDRAW_PURPOSE]).generate_state(DRAWS - 1).tolist()]


def _connected(name: str, seed: int, draw: Callable[[int], nx.Graph], instead: str) -> nx.Graph:
    """The first draw in one piece; raises TopologyError with the pieces of the first draw if there is none."""
    drawn = []
    for own in draw_seeds(seed):
        drawn.append(draw(own))
        if nx.is_connected(drawn[-1]):
            return drawn[-1]
    raise TopologyError(
        f"topology.graph={name!r}: {DRAWS} draws from seed={seed}, and none in one piece; the first is in "
        f"{_listed(pieces(drawn[0]))}; give {instead}"
    )


def pieces(graph: nx.Graph) -> list[list[Any]]:
    """The components, each in ascending order; of a directed graph the strong ones."""
    parts = nx.strongly_connected_components if graph.is_directed() else nx.connected_components
    return sorted((ascending(part) for part in parts(graph)), key=lambda part: list(graph).index(part[0]))


def _listed(parts: list[list[Any]]) -> str:
    listed = ", ".join(str(part if len(part) <= 8 else [*part[:8], "..."]) for part in parts[:6])
    return f"{len(parts)} pieces: {listed}{', ...' if len(parts) > 6 else ''}"


def ascending(names: Iterable[Any]) -> list[Any]:
    """Integer names (also as text) as numbers, any others alphabetically."""
    names = list(names)
    try:
        return sorted(names, key=int)
    except (TypeError, ValueError):
        return sorted(names, key=str)


def simple(graph: nx.Graph, where: str) -> nx.Graph:
    """The graph if it has no parallel edges and no edge from a node to itself; raises TopologyError otherwise."""
    if graph.is_multigraph():
        raise TopologyError(f"{where}: the graph is a multigraph; the algorithms here need a simple graph")
    loops = [node for node, _ in nx.selfloop_edges(graph)]
    if loops:
        raise TopologyError(
            f"{where}: node {loops[0]!r} has an edge to itself; remove it (a node always keeps its own share)"
        )
    return graph


def checked(graph: nx.Graph, where: str) -> nx.Graph:
    """The graph, simple and in one piece (directed: strongly); raises TopologyError naming what breaks that."""
    simple(graph, where)
    if len(graph) == 0:
        raise TopologyError(f"{where}: the graph has no nodes")
    whole = nx.is_strongly_connected(graph) if graph.is_directed() else nx.is_connected(graph)
    if not whole:
        parts = pieces(graph)
        if graph.is_directed():
            raise TopologyError(
                f"{where}: the directed graph is not strongly connected: between its {_listed(parts)} no model "
                "comes back; add edges between them, in both directions"
            )
        count, _, listed = _listed(parts).partition(": ")
        raise TopologyError(
            f"{where}: the graph is in {count} that never hear of each other: {listed}; add edges between them"
        )
    return graph
