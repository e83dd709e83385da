"""Mixing weights of a static graph, and its schedule. W[i, j]: what the receiver i gives to the sender j's value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import networkx as nx
import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]

from p2pfl.errors import TopologyError, nearest
from p2pfl.topology import eigen
from p2pfl.topology.graphs import simple
from p2pfl.topology.schedules import CLOSE, from_rounds
from p2pfl.types import Schedule


class Arcs(NamedTuple):
    """The edges of a graph as arrays; an undirected edge stands in both directions."""

    nodes: int
    receiver: np.ndarray  # [E] int64
    sender: np.ndarray  # [E] int64
    given: np.ndarray  # [E] float64: the attribute `weight`; NaN where there is none


def metropolis(degree: int, other: int) -> float:
    """Return the Metropolis-Hastings weight of an edge between nodes of these degrees.

    Both ends compute it alike from the two degrees; the weights of a node sum to less than one. Source: Xiao, Boyd,
    "Fast linear iterations for distributed averaging" (2004).

    Args:
        degree: neighbours of one end.
        other: neighbours of the other.

    Returns:
        1 / (1 + the larger of the two).

    Example:
        >>> import p2pfl
        >>> p2pfl.topology.metropolis(2, 3)
        0.25
    """
    return 1.0 / (1.0 + max(degree, other))


def _metropolis(arcs: Arcs, where: str) -> np.ndarray:
    degree = np.bincount(arcs.receiver, minlength=arcs.nodes)
    return 1.0 / (1.0 + np.maximum(degree[arcs.receiver], degree[arcs.sender]))


def _max_degree(arcs: Arcs, where: str) -> np.ndarray:
    """I - L / (1 + the largest degree). Source: Xiao, Boyd (2004)."""
    degree = np.bincount(arcs.receiver, minlength=arcs.nodes)
    return np.full(len(arcs.receiver), 1.0 / (1.0 + degree.max(initial=0)))


def _best_constant(arcs: Arcs, where: str) -> np.ndarray:
    """I - 2 L / (l2 + ln), l2 and ln the least and the greatest eigenvalue of L but for the zero of the mean.

    The least ||W - J|| that one weight for all edges can give; nodes with many neighbours may keep a negative share.
    Source: Xiao, Boyd (2004), eq. (23).
    """
    if not len(arcs.receiver):
        return np.zeros(0)
    degree = np.bincount(arcs.receiver, minlength=arcs.nodes)
    scale = 1.0 / (1.0 + degree.max())
    w = sp.csr_array((np.full(len(arcs.receiver), scale), (arcs.receiver, arcs.sender)), shape=(arcs.nodes,) * 2)
    second, least = eigen.ends((w + sp.diags_array(1.0 - scale * degree)).tocsr())
    return np.full(len(arcs.receiver), 2.0 * scale / ((1.0 - second) + (1.0 - least)))


def _uniform_out(arcs: Arcs, where: str) -> np.ndarray:
    """Column-stochastic: each node shares its value out in equal parts, itself included: w_ji = 1 / (1 + out_i).

    Source: Assran et al., "Stochastic gradient push", arXiv 1811.10792.
    """
    return 1.0 / (1.0 + np.bincount(arcs.sender, minlength=arcs.nodes)[arcs.sender])


def _file(arcs: Arcs, where: str) -> np.ndarray:
    """The numbers that stand in the file, as entries of W; a node keeps 1 - the sum of its row."""
    w = arcs.given
    for e in np.flatnonzero(~(w > 0) | ~np.isfinite(w)):
        edge = f"[{arcs.sender[e]}, {arcs.receiver[e]}]"
        if math.isnan(w[e]):
            raise TopologyError(
                f"{where}: the edge {edge} has no weight; give every edge a number `weight`, or none and weights = "
                "'metropolis' (directed: 'uniform_out')"
            )
        raise TopologyError(f"{where}: the edge {edge} has weight {w[e]:g}; weights must be finite and > 0")
    total = np.bincount(arcs.receiver, w, arcs.nodes)
    for i in np.flatnonzero(total > 1 + CLOSE)[:1]:
        raise TopologyError(
            f"{where}: the weights of what node {i} hears sum to {total[i]:g}; they must leave a share >= 0 for "
            "itself, so that its row sums to one: divide them, or give weights = 'metropolis' (directed: 'uniform_out')"
        )
    return w


Rule = Callable[[Arcs, str], np.ndarray]
SYMMETRIC = ("metropolis", "max_degree", "best_constant")
"""Rules that give both ends of an edge the same weight: for undirected graphs."""
WEIGHTS: Mapping[str, Rule] = MappingProxyType(
    {
        "metropolis": _metropolis,
        "max_degree": _max_degree,
        "best_constant": _best_constant,
        "uniform_out": _uniform_out,
        "file": _file,
    }
)
"""Rules by name."""


def default(graph: nx.Graph) -> str:
    """The rule used unless one is named: the weights of the file if any edge has one, else by the kind of graph."""
    if any("weight" in data for _, _, data in graph.edges(data=True)):
        return "file"
    return "uniform_out" if graph.is_directed() else "metropolis"


def schedule(graph: nx.Graph, weights: str | None = None) -> Schedule:
    """Return the schedule of a static graph.

    Args:
        graph: a graph of networkx on nodes 0 ... n - 1; edges (u, v) of a directed one: u sends to v.
        weights: a name of WEIGHTS; None: "file" if edges have an attribute `weight`, else "metropolis", for directed
            graphs "uniform_out".

    Returns:
        The schedule, [1, n, K]; slots are in- and out-neighbours in ascending order.

    Raises:
        TopologyError: no such weights, or weights that do not go with the graph.

    Example:
        >>> import networkx as nx, p2pfl
        >>> p2pfl.topology.schedule(nx.path_graph(3)).neighbor.tolist()
        [[[1, -1], [0, 2], [1, -1]]]
    """
    name = default(graph) if weights is None else weights
    where = f"topology.weights={name!r}"
    if name not in WEIGHTS:
        raise TopologyError(f"{where}: {nearest(name, WEIGHTS)}")
    simple(graph, "topology")
    if graph.is_directed() and name in SYMMETRIC:
        raise TopologyError(
            f"{where}: the graph is directed, and these weights are symmetric; use weights = 'uniform_out' (with "
            "push_sum), or an undirected graph"
        )
    if any(type(i) is not int or not 0 <= i < len(graph) for i in graph):
        raise TopologyError(
            f"topology: the nodes must be the numbers 0 to {len(graph) - 1}; networkx.convert_node_labels_to_integers "
            "renumbers them"
        )
    arcs = _arcs(graph, name == "file")
    return from_rounds(arcs.nodes, [(arcs.receiver, arcs.sender, WEIGHTS[name](arcs, where))])


def _arcs(graph: nx.Graph, weighted: bool) -> Arcs:
    ends = np.array([*graph.edges], np.int64).reshape(-1, 2)
    given = np.full(len(ends), np.nan)
    if weighted:
        values = (data.get("weight") for _, _, data in graph.edges(data=True))
        given = np.array([_number(value) for value in values])
    if not graph.is_directed():
        ends, given = np.concatenate([ends, ends[:, ::-1]]), np.concatenate([given, given])
    return Arcs(len(graph), ends[:, 1], ends[:, 0], given)


def _number(value: object) -> float:
    """NaN for what is not there; raises TopologyError for what is no number."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TopologyError(f"topology: an edge has weight={value!r}: must be a number")
    if value != value:
        raise TopologyError("topology: an edge has weight=nan: must be a number > 0")
    return float(value)
