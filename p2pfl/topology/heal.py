"""Restrict a graph to its members when nodes are away, and join it together again if wanted."""

from __future__ import annotations

import itertools
from collections.abc import Collection

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
