"""Restrict a graph to its members when nodes are away, join it together again, and give newcomers a place in it."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable

import networkx as nx


def restricted(graph: nx.Graph, members: Collection[int], heal: bool) -> nx.Graph:
    """Return what is left of a graph when nodes are away, joined together again if wanted.

    For each group of neighbouring absent nodes, in the order of their smallest id, the members around it are chained in
    ascending order wherever two of them have lost each other: a ring closes, a tree is spliced. New edges carry no
    weight; on a directed graph they go both ways.

    Args:
        graph: the graph of all nodes.
        members: ids of those who are left.
        heal: join with as few new edges as possible what was connected.

    Returns:
        The graph on the members, with their ids.

    Example:
        >>> import networkx as nx, p2pfl
        >>> sorted(p2pfl.topology.restricted(nx.path_graph(4), [0, 1, 3], heal=True).edges)
        [(0, 1), (1, 3)]
    """
    left = graph.subgraph(members).copy()
    if not heal:
        return left
    away = graph.subgraph(set(graph) - set(members)).to_undirected()
    for group in sorted(nx.connected_components(away), key=min):
        around = sorted({n for node in group for n in nx.all_neighbors(graph, node)} - group)
        for u, v in itertools.pairwise(around):
            if not (nx.has_path(left, u, v) and nx.has_path(left, v, u)):
                left.add_edges_from([(u, v), (v, u)])
    return left


def attached(graph: nx.Graph, newcomers: Iterable[int]) -> nx.Graph:
    """Return a graph with nodes more that it has no place for, each joined with two that are in it.

    One after the other in ascending order: with the two nodes that have the fewest neighbours by then, lower ids first
    among equals; where there are fewer, with those. New edges carry no weight; on a directed graph they go both ways.

    Args:
        graph: of those who are there.
        newcomers: ids of those who come.

    Returns:
        The graph of all.

    Example:
        >>> import networkx as nx, p2pfl
        >>> sorted(p2pfl.topology.attached(nx.path_graph(4), [4, 5]).edges)
        [(0, 1), (0, 4), (0, 5), (1, 2), (1, 5), (2, 3), (3, 4)]
    """
    grown = graph.copy()
    for node in sorted(newcomers):
        fewest = sorted(grown, key=lambda other: (len({*nx.all_neighbors(grown, other)}), other))[:2]
        grown.add_node(node)
        grown.add_edges_from(edge for other in fewest for edge in ((node, other), (other, node)))
    return grown
