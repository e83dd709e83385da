"""Graphs in files: TOML, GraphML, node-link JSON, edge lists."""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import math
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx

from p2pfl.errors import TopologyError, nearest
from p2pfl.topology.graphs import MOST, ascending, checked
from p2pfl.topology.named import GRAPHS, unknown
from p2pfl.topology.schedules import CLOSE


def load(path: Path, seed: int = 0) -> nx.Graph:
    """Read the graph in a file.

    Nodes are renumbered 0 ... n - 1: integer names in ascending order, other names alphabetically. An edge keeps its
    attribute `weight`. A directed graph (its edges: u sends to v) must be strongly connected.

    Args:
        path: a .toml (generator and arguments, or edges), .graphml, .json (node-link), or a list of edges (.txt,
            .edges, .edgelist, .csv).
        seed: of a generator that draws its graph.

    Returns:
        The graph, in one piece, on nodes 0 ... n - 1.

    Raises:
        TopologyError: the file is missing, damaged or of another kind, or the graph is in pieces.

    Example:
        >>> import pathlib, tempfile, p2pfl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "mine.toml"
        ...     _ = file.write_text("edges = [[0, 1], [1, 2]]")
        ...     sorted(p2pfl.topology.load(file).edges)
        [(0, 1), (1, 2)]
    """
    if not path.is_file():
        raise TopologyError(f"topology.file={str(path)!r}: no such file")
    if path.suffix not in READERS:
        raise TopologyError(f"topology.file={str(path)!r}: ending {path.suffix!r} is none of {', '.join(READERS)}")
    where = f"topology.file={str(path)!r}"
    graph = checked(_without_own(READERS[path.suffix](path, seed), where), where)
    return nx.relabel_nodes(graph, {name: i for i, name in enumerate(ascending(graph.nodes))})


def _without_own(graph: nx.Graph, where: str) -> nx.Graph:
    """The graph without the weights that nodes give to themselves, if they are what the others leave."""
    loops = [(i, data["weight"]) for i, _, data in nx.selfloop_edges(graph, data=True) if "weight" in data]
    if graph.is_multigraph() or not loops:
        return graph
    for i, weight in loops:
        around = graph.in_edges(i, data=True) if graph.is_directed() else graph.edges(i, data=True)
        others = [data.get("weight", math.nan) for a, b, data in around if a != b]
        if not all(isinstance(value, int | float) for value in (weight, *others)):
            continue
        left = 1 - sum(others)
        if not abs(weight - left) <= CLOSE:
            raise TopologyError(
                f"{where}: node {i!r} gives itself weight {weight:g}, but the others leave it {left:g}; weights must "
                "sum to one. Leave the edge to itself out: a node keeps what is left"
            )
    graph.remove_edges_from([(i, i) for i, _ in loops])
    return graph


_KEYS = ("generator", "arguments", "edges", "nodes", "directed")
_NOT_OURS = ("create_using", "backend", "backend_kwargs")
"""Arguments of networkx's generators that a file has no use for."""


def _toml(path: Path, seed: int) -> nx.Graph:
    try:
        table = tomllib.loads(path.read_text("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TopologyError(f"{path}: not TOML: {error}") from error
    unknown = set(table) - set(_KEYS)
    if unknown:
        raise TopologyError(f"{path}: {sorted(unknown)[0]!r}: {nearest(sorted(unknown)[0], _KEYS)}")
    if ("generator" in table) == ("edges" in table):
        raise TopologyError(f"{path}: give either generator (with arguments) or edges (with nodes)")
    for key, partner, instead in (
        ("nodes", "edges", "write arguments = { nodes = ... }, or n, as the generator calls it"),
        ("directed", "edges", "a generator makes its graph directed or not"),
        ("arguments", "generator", "leave it out"),
    ):
        if key in table and partner not in table:
            raise TopologyError(f"{path}: {key!r} goes with {partner}; {instead}")
    return _from_edges(path, table) if "edges" in table else _generated(path, table, seed)


def _from_edges(path: Path, table: dict[str, Any]) -> nx.Graph:
    nodes, edges, directed = table.get("nodes", 0), table["edges"], table.get("directed", False)
    if type(nodes) is not int or nodes < 0:
        raise TopologyError(f"{path}: nodes={nodes!r}: must be a whole number >= 0")
    if nodes > MOST:
        raise TopologyError(f"{path}: nodes={nodes}: must be <= {MOST}")
    if type(directed) is not bool:
        raise TopologyError(f"{path}: directed={directed!r}: must be true or false")
    if not isinstance(edges, list):
        raise TopologyError(f"{path}: edges={edges!r}: must be a list of pairs such as [[0, 1], [1, 2]]")
    graph = nx.DiGraph() if directed else nx.Graph()
    graph.add_nodes_from(range(nodes))
    for edge in edges:
        ends, weight = (edge[:2], edge[2:]) if isinstance(edge, list) else ([], [])
        if not (len(ends) == 2 and len(weight) <= 1 and all(type(end) is int and end >= 0 for end in ends)):
            raise TopologyError(
                f"{path}: edges: {edge!r} is no pair of node ids such as [0, 1], or with a weight [0, 1, 0.25]"
            )
        if weight and type(weight[0]) not in (int, float):
            raise TopologyError(f"{path}: edges: {edge!r}: the weight {weight[0]!r} is no number")
        if "nodes" in table and max(ends) >= nodes:
            raise TopologyError(f"{path}: edges: {edge!r}: with nodes={nodes} the ids are 0 to {nodes - 1}")
        if graph.has_edge(*ends):
            kind = "a directed edge" if directed else "an edge is undirected and"
            raise TopologyError(f"{path}: edges: {edge!r} stands twice; {kind} stands once")
        graph.add_edge(*ends, **({"weight": weight[0]} if weight else {}))
    return graph


def _generated(path: Path, table: dict[str, Any], seed: int) -> nx.Graph:
    """One of the static GRAPHS, or any generator of networkx that returns a graph; without weights of its edges."""
    name, arguments = table["generator"], table.get("arguments", {})
    if not isinstance(name, str):
        raise TopologyError(f"{path}: generator={name!r}: must be a name such as 'ring'")
    if not isinstance(arguments, dict):
        raise TopologyError(f"{path}: arguments={arguments!r}: must be a table such as {{ nodes = 8 }}")
    ours = {key: family.graph for key, family in GRAPHS.items() if family.graph is not None}
    theirs = {key: value for key, value in vars(nx).items() if key.endswith("_graph") and inspect.isfunction(value)}
    if name in GRAPHS and name not in ours:
        raise TopologyError(
            f"{path}: generator={name!r}: has weights of its own and is no static graph; give it as topology.graph"
        )
    if name not in ours and name not in theirs:
        known = [*ours, *difflib.get_close_matches(name, theirs, n=8)]
        raise TopologyError(f"{path}: generator={name!r}: {unknown(name, known)}, or a generator of networkx")
    for key, value in arguments.items():
        if isinstance(value, int) and value > MOST and key != "seed":
            raise TopologyError(f"{path}: arguments: {key}={value}: must be <= {MOST}, the most nodes of a graph")
    maker: Callable[..., Any] = ours[name] if name in ours else theirs[name]
    accepted = [key for key in inspect.signature(maker).parameters if key not in _NOT_OURS]
    if "seed" in accepted:
        arguments = {"seed": seed, **arguments}
    try:
        graph = maker(**arguments)
    except TopologyError as error:
        raise TopologyError(f"{path}: generator {name}({arguments}): {error}") from error
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, nx.NetworkXException) as error:
        raise TopologyError(
            f"{path}: generator {name}({arguments}): {error}; it takes {', '.join(accepted)}"
        ) from error
    if not isinstance(graph, nx.Graph):
        raise TopologyError(f"{path}: generator={name!r} makes no graph")
    for _, _, data in graph.edges(data=True):
        data.pop("weight", None)  # of networkx's graphs: counts or distances, never mixing weights
    return graph


def _graphml(path: Path, seed: int) -> nx.Graph:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # that it guesses what was meant
            return nx.read_graphml(path)
    except KeyError as error:
        raise TopologyError(f"{path}: not GraphML: {error} is no type of a key, or no key") from error
    except (ValueError, TypeError, AttributeError, SyntaxError, UserWarning, nx.NetworkXException) as error:
        raise TopologyError(f"{path}: not GraphML: {error}") from error


def _json(path: Path, seed: int) -> nx.Graph:
    """networkx's node-link: {"directed": false, "nodes": [{"id": ...}], "edges": [{"source": ..., "target": ...}]}."""
    try:
        table = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise TopologyError(f"{path}: not JSON: {error}") from error
    if not isinstance(table, dict):
        raise TopologyError(f"{path}: not a node-link graph: must be an object with nodes and edges")
    nodes, edges = table.get("nodes"), table.get("edges", table.get("links"))  # links: before networkx 3.6
    for key, listed in (("nodes", nodes), ("edges", edges)):
        if not (isinstance(listed, list) and all(isinstance(entry, dict) for entry in listed)):
            raise TopologyError(f"{path}: not a node-link graph: {key!r} must be a list of objects")
    assert nodes is not None and edges is not None
    if table.get("multigraph"):
        raise TopologyError(f"{path}: the graph is a multigraph; the algorithms here need a simple graph")
    graph = nx.DiGraph() if table.get("directed") else nx.Graph()
    for node in nodes:
        if not isinstance(node.get("id"), str | int):
            raise TopologyError(f'{path}: nodes: {node!r} has no id; write {{"id": ...}}, a text or a whole number')
        if node["id"] in graph:
            raise TopologyError(f"{path}: nodes: id {node['id']!r} stands twice")
        graph.add_node(node["id"])
    for edge in edges:
        ends = [edge.get("source"), edge.get("target")]
        if not all(isinstance(end, str | int) and end in graph for end in ends):
            raise TopologyError(f"{path}: edges: {edge!r}: source and target must be ids that stand among the nodes")
        if graph.has_edge(*ends):
            raise TopologyError(f"{path}: edges: {edge!r} stands twice; an edge stands once")
        graph.add_edge(*ends, **({"weight": edge["weight"]} if edge.get("weight") is not None else {}))
    return graph


_HEADS = (["source", "target"], ["from", "to"])
"""What a spreadsheet or Gephi writes above the columns."""


def _edges(path: Path, seed: int) -> nx.Graph:
    """Two names a line, and a third column for the weight, if it is a number or networkx's {'weight': number}.

    Between them: white space, a comma or a semicolon; in a .csv never white space. `#` begins a comment, a first line
    of "source, target" or "from, to" is a header; an edge may stand in both directions, with the same weight.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise TopologyError(f"{path}: not an edge list: {error}") from error
    graph = nx.Graph()
    for number, line in enumerate(lines, 1):
        names = _columns(line.partition("#")[0].strip(), path.suffix == ".csv")
        if number == 1 and [name.casefold() for name in names[:2]] in _HEADS:
            continue
        if names and not all([*names, ""][:2]):
            raise TopologyError(
                f"{path}: line {number}: {line.strip()!r} is no edge; write two node names and a space or comma between"
            )
        if not names:
            continue
        weight = _column(names[2]) if len(names) > 2 else None
        if graph.has_edge(*names[:2]) and graph.edges[names[0], names[1]].get("weight") != weight:
            raise TopologyError(
                f"{path}: line {number}: the edge {names[0]} {names[1]} has weight {weight} here and "
                f"{graph.edges[names[0], names[1]].get('weight')} above; an edge list is undirected, and both "
                "directions have one weight. For a directed graph use .toml, .json or .graphml"
            )
        graph.add_edge(names[0], names[1], **({} if weight is None else {"weight": weight}))
    return graph


def _columns(text: str, spaced: bool) -> list[str]:
    """Two names and the rest of a line. `spaced`: names may have spaces in them."""
    head = text.partition("{")[0] if spaced else " ".join(text.partition("{")[0].split()[:2])
    separator = next((mark for mark in (";", ",") if mark in head), None)
    if separator is None:
        return [text] if spaced and text else text.split(maxsplit=2)
    names = [name.strip().strip('"') for name in text.split(separator, 2)]
    return names[:2] + [rest.replace(separator, " ") for rest in names[2:] if rest]


def _column(text: str) -> float | None:
    """The weight in the rest of a line; None if what stands there is something else."""
    try:
        # A spreadsheet set to German, French or Italian writes 0,5.
        value = ast.literal_eval(text)["weight"] if text.startswith("{") else text.split()[0].replace(",", ".")
        return float(value)
    except (ValueError, SyntaxError, TypeError, KeyError):
        return None


READERS = {
    ".toml": _toml, ".graphml": _graphml, ".json": _json, ".txt": _edges, ".edges": _edges, ".edgelist": _edges,
    ".csv": _edges,
}  # fmt: skip
"""By the ending of the file."""
