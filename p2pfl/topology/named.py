"""The graphs by name: what each takes, and the schedule it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import networkx as nx

from p2pfl.errors import TopologyError, nearest
from p2pfl.topology import dynamic, graphs
from p2pfl.topology.weights import schedule
from p2pfl.types import Schedule


class Argument(NamedTuple):
    """An argument of a graph besides the number of nodes."""

    kind: type  # int, float or str
    default: str  # in words
    meaning: str


class Family(NamedTuple):
    """A graph by name. Exactly one of `graph` and `rows` is there.

    `graph(nodes, [seed], **arguments)`: a static graph, whose weights can be chosen. `rows(nodes, seed, rounds,
    **arguments)`: a schedule with weights of its own. `contraction(nodes, seed, **arguments)`: of a schedule that is
    drawn anew in each round, the share of the mean squared deviation that a round leaves in expectation; None if it is
    not.
    """

    words: str
    graph: Callable[..., nx.Graph] | None = None
    rows: Callable[..., Schedule] | None = None
    directed: bool = False
    random: bool = False
    arguments: Mapping[str, Argument] = MappingProxyType({})
    contraction: Callable[..., float | None] | None = None


def _one_peer(nodes: int, seed: int, rounds: int) -> Schedule:
    return dynamic.one_peer_exponential(nodes)


def _base(nodes: int, seed: int, rounds: int, **arguments: Any) -> Schedule:
    return dynamic.base(nodes, **arguments)


def _matching_contraction(nodes: int, seed: int) -> float:
    return dynamic.matching_contraction(nodes)


GRAPHS: Mapping[str, Family] = MappingProxyType(
    {
        "ring": Family("a cycle", graphs.ring),
        "path": Family("a line", graphs.path),
        "torus": Family("a two-dimensional grid without borders, as square as can be", graphs.torus),
        "grid": Family("a two-dimensional grid with borders, as square as can be", graphs.grid),
        "complete": Family("everybody with everybody", graphs.complete),
        "star": Family("node 0 with all others", graphs.star),
        "hypercube": Family("ids that differ in one bit; 2, 4, 8, ... nodes", graphs.hypercube),
        "exponential": Family(
            "every node hears those 1, 2, 4, ... places before it", graphs.exponential, directed=True
        ),
        "one_peer_exponential": Family("the same, one distance per round in turn", rows=_one_peer, directed=True),
        "base": Family(
            "few neighbours per round, and the exact mean after a period, for any number of nodes", rows=_base,
            arguments={"k": Argument(int, "1", "neighbours in a round, at most")},
        ),
        "erdos_renyi": Family(
            "every pair with probability p", graphs.erdos_renyi, random=True,
            arguments={"p": Argument(float, "2 ln(nodes) / nodes", "probability of an edge")},
        ),
        "watts_strogatz": Family(
            "a ring of k nearest neighbours, some edges rewired", graphs.watts_strogatz, random=True,
            arguments={
                "k": Argument(int, "4", "neighbours on the ring; even"),
                "p": Argument(float, "0.3", "probability that an edge is rewired"),
            },
        ),
        "barabasi_albert": Family(
            "grows; who has many neighbours gets more", graphs.barabasi_albert, random=True,
            arguments={"m": Argument(int, "2", "edges of each new node")},
        ),
        "random_regular": Family(
            "every node has d neighbours, drawn at random", graphs.random_regular, random=True,
            arguments={"d": Argument(int, "3", "neighbours of a node; nodes times d must be even")},
        ),
        "random_matching": Family(
            "in every round the nodes are paired at random", rows=dynamic.random_matching, random=True,
            contraction=_matching_contraction,
        ),
        "equitopo": Family(
            "random shifts of the ring, at a rate that does not depend on the number of nodes", rows=dynamic.equitopo,
            random=True, contraction=dynamic.equitopo_contraction,
            arguments={
                "variant": Argument(str, '"u_static"', '"u_static", "d_static" (directed), "u_dynamic", "d_dynamic"'),
                "m": Argument(int, "ceil(log2 nodes)", "shifts"),
            },
        ),
        "two_cliques": Family("two complete halves and one edge between them", graphs.two_cliques),
    }
)  # fmt: skip
"""The graphs by name."""

_FULL = "'complete' (everybody with everybody)"
_ROWS = "'grid' (rows and columns) or 'torus' (the same without borders)"
_PARTIAL = "'random_regular' (some neighbours each, drawn at random)"
MEANT: Mapping[str, str] = MappingProxyType(
    {
        "mesh": f"one of these: a full mesh is {_FULL}; a mesh of rows and columns {_ROWS}; a partial mesh {_PARTIAL}",
        "full_mesh": _FULL, "fully_connected": _FULL, "clique": _FULL, "full": _FULL, "all_to_all": _FULL,
        "mesh_grid": _ROWS, "lattice": _ROWS, "partial_mesh": _PARTIAL,
        "line": "'path'", "chain": "'path'", "cycle": "'ring'", "circle": "'ring'",
    }
)  # fmt: skip
"""What people type who mean a graph by another name."""


def unknown(graph: str, valid: Iterable[str]) -> str:
    """Say which graph may be meant by a name that is none of `valid`.

    >>> unknown("full mesh", GRAPHS)
    "you mean 'complete' (everybody with everybody)"
    """
    meant = MEANT.get("_".join(graph.casefold().replace("-", " ").replace("_", " ").split()))
    return f"you mean {meant}" if meant else nearest(graph, valid)


def plan(
    graph: str,
    nodes: int,
    *,
    arguments: Mapping[str, Any] = MappingProxyType({}),
    weights: str | None = None,
    seed: int = 0,
    rounds: int = 1,
) -> Schedule:
    """Return the schedule of a named graph: a pure function of its arguments.

    Args:
        graph: a name of GRAPHS.
        nodes: their number n, >= 1.
        arguments: what the graph takes besides: k of base, p of erdos_renyi, ...
        weights: a name of WEIGHTS, for static graphs; None: as `schedule` chooses.
        seed: of graphs that are drawn, >= 0.
        rounds: how many rounds to draw of a schedule that is drawn anew in each; row r - 1 is the same whatever
            `rounds` is.

    Returns:
        The schedule, [T, n, K].

    Raises:
        TopologyError: no such graph, or not of so many nodes, arguments or weights.

    Example:
        >>> import p2pfl
        >>> p2pfl.topology.plan("base", 6, arguments={"k": 1}).neighbor.shape
        (4, 6, 1)
    """
    family = _checked(graph, nodes, arguments, seed)
    if family.rows is None:
        return schedule(_made(graph, nodes, arguments, seed), weights)
    if weights is not None:
        raise TopologyError(
            f"topology.weights={weights!r}: the graph {graph!r} has weights of its own; leave weights out"
        )
    if rounds < 1:
        raise TopologyError(f"rounds={rounds}: must be >= 1")
    return family.rows(nodes, seed, rounds, **arguments)


def build(graph: str, nodes: int, *, arguments: Mapping[str, Any] = MappingProxyType({}), seed: int = 0) -> nx.Graph:
    """Return a named graph that is static and has no weights of its own.

    Args:
        graph: a name of GRAPHS.
        nodes: their number, >= 1.
        arguments: what the graph takes besides.
        seed: of graphs that are drawn, >= 0.

    Returns:
        The graph of networkx on nodes 0 ... n - 1.

    Raises:
        TopologyError: no such graph, or a schedule with weights of its own.

    Example:
        >>> import p2pfl
        >>> p2pfl.topology.build("torus", 9).number_of_edges()
        18
    """
    family = _checked(graph, nodes, arguments, seed)
    if family.graph is None:
        raise TopologyError(f"topology.graph={graph!r}: is a schedule with weights of its own, and no static graph")
    return _made(graph, nodes, arguments, seed)


def expected_rho(
    graph: str, nodes: int, *, arguments: Mapping[str, Any] = MappingProxyType({}), seed: int = 0
) -> float | None:
    """Return the contraction of a graph that is drawn anew in each round.

    Args:
        graph: a name of GRAPHS.
        nodes: their number, >= 1.
        arguments: what the graph takes besides.
        seed: of graphs that are drawn, >= 0.

    Returns:
        sqrt(E[||(W - J) x||^2]) of the worst x of norm one, where the graph is drawn anew in each round; else None.

    Raises:
        TopologyError: no such graph.

    Example:
        >>> import p2pfl
        >>> p2pfl.topology.expected_rho("random_matching", 3)
        0.7071067811865476
    """
    family = _checked(graph, nodes, arguments, seed)
    if family.contraction is None:
        return None
    left = family.contraction(nodes, seed, **arguments)
    return None if left is None else max(left, 0.0) ** 0.5


def _checked(graph: str, nodes: int, arguments: Mapping[str, Any], seed: int) -> Family:
    if graph not in GRAPHS:
        raise TopologyError(
            f"topology.graph={graph!r}: {unknown(graph, GRAPHS)}; or give file = 'topologies/NAME.toml'"
        )
    family = GRAPHS[graph]
    if type(nodes) is not int or nodes < 1:
        raise TopologyError(f"topology.nodes={nodes}: must be >= 1")
    if nodes > graphs.MOST:
        raise TopologyError(f"topology.nodes={nodes}: must be <= {graphs.MOST}")
    if type(seed) is not int or seed < 0:
        raise TopologyError(f"seed={seed!r}: must be a whole number >= 0")
    for name, value in arguments.items():
        if name not in family.arguments:
            known = nearest(name, family.arguments) if family.arguments else "it takes none"
            raise TopologyError(f"topology.graph={graph!r}: no argument {name!r}; {known}")
        kind = family.arguments[name].kind
        if isinstance(value, bool) or not isinstance(value, int | float if kind is float else kind):
            words = {int: "a whole number", float: "a number", str: "a text"}[kind]
            raise TopologyError(f"topology.graph={graph!r}: {name}={value!r}: must be {words}")
    return family


def _made(graph: str, nodes: int, arguments: Mapping[str, Any], seed: int) -> nx.Graph:
    family = GRAPHS[graph]
    assert family.graph is not None
    if nodes == 1:  # one node has no neighbours, whatever the graph
        return nx.empty_graph(1, create_using=nx.DiGraph if family.directed else nx.Graph)
    drawn = {"seed": seed} if family.random else {}
    return graphs.checked(family.graph(nodes, **drawn, **arguments), f"topology.graph={graph!r}")
