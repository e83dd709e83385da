"""Averaging by itself, for programs that want nothing else, and the rounds that it takes on a graph."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import networkx as nx
import numpy as np

from p2pfl import topology
from p2pfl.check import fraction, share
from p2pfl.churn import lost
from p2pfl.errors import ConfigError
from p2pfl.types import Schedule, Tree

_PROBED = 256
"""Nodes up to which the part of every one of them is followed; of more, that of _PROBES."""
_PROBES = 32


def rounds(
    schedule: Schedule,
    tolerance: float,
    most: int,
    link: str = "exchange",
    loss: float = 0.0,
    late: int = 0,
    seed: int = 0,
    others: Sequence[tuple[Schedule, Sequence[int]]] = (),
) -> int:
    """Rounds until every average is within `tolerance`: any sum of parts >= 0, whoever holds them, is off by no more
    than this share of itself, at any node.

    They are counted on the schedule itself, with losses as a simulation of that seed has them, so that a graph that is
    exact after its period takes one period. `link`: how sums travel, of the algorithm ("exchange", "push" with running
    sums, "none"). Where ends book up to `late` rounds late, 1 + `late` times as many are taken. `others`: graphs of
    other epochs, with their members; the longest counts, of those that agree within `most` rounds. Raises ConfigError
    when `most` rounds do not do for the schedule itself.
    """
    fraction(tolerance=tolerance)
    share(loss=loss)
    nodes, limit = schedule.neighbor.shape[1], most // (1 + late)
    needed, error = _needed(schedule, range(nodes), tolerance, limit, link, loss, seed)
    if needed is not None:
        more = [_needed(graph, members, tolerance, limit, link, loss, seed)[0] or 0 for graph, members in others]
        return max(needed, *more) * (1 + late) if more else needed * (1 + late)
    if not nx.is_connected(topology.union(schedule)):
        raise ConfigError(
            "statistics: parts of the graph never hear of each other, so that nobody can know of all data; join them"
        )
    raise ConfigError(
        f"statistics.tolerance={tolerance:g}: is not reached on this graph in {most} rounds, after which averages are "
        f"off by {error:.2g} of themselves; allow more, run longer, or take a faster graph (base is exact after its "
        "period)"
    )


def hops(schedule: Schedule) -> int:
    """Rounds until every node has heard of every other, where each passes on all it has heard. Raises ConfigError."""
    nodes, period, round = schedule.neighbor.shape[1], len(schedule.neighbor), 0
    known, before = np.eye(nodes, dtype=bool), -1
    while not known.all():
        if round % period == 0:
            if known.sum() == before:
                raise ConfigError("statistics: parts of the graph never hear of each other; join them")
            before = int(known.sum())
        neighbor, heard = _row(schedule.neighbor, round + 1), _row(schedule.weight, round + 1) > 0
        known = np.array([known[[i, *neighbor[i][heard[i]]]].any(axis=0) for i in range(nodes)])
        round += 1
    return round


def average(
    values: Sequence[Tree], graph: Schedule | nx.Graph, tolerance: float, loss: float = 0.0, seed: int = 0
) -> list[Tree]:
    """The mean of the nodes' trees of numbers, as each node comes to know it by gossip alone; float64 arrays.

    `graph`: as networkx or p2pfl.topology have it; directed ones are averaged by push-sum. Every node ends within
    `tolerance` (see `rounds`), also where messages are lost with probability `loss`. Raises ConfigError for trees that
    differ, and when 100,000 rounds do not do.

    >>> import networkx as nx
    >>> found = average([{"rows": 30, "sum": 12.0}, {"rows": 10, "sum": 8.0}, {"rows": 20, "sum": 40.0}],
    ...                 nx.path_graph(3), tolerance=1e-6)
    >>> [round(float(each["sum"] / each["rows"]), 5) for each in found]  # the mean over all 60 rows, at every node
    [1.0, 1.0, 1.0]
    """
    schedule = topology.schedule(graph) if isinstance(graph, nx.Graph) else graph
    nodes = schedule.neighbor.shape[1]
    if len(values) != nodes:
        raise ConfigError(f"values: {len(values)} for {nodes} nodes; give one for each node")
    flat = [jax.tree.flatten(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), value)) for value in values]
    shapes = [(structure, [leaf.shape for leaf in leaves]) for leaves, structure in flat]
    if any(each != shapes[0] for each in shapes):
        raise ConfigError("values: trees of different structure or shapes; every node must give the same")
    link = "exchange" if topology.symmetric(schedule) else "push"
    needed = rounds(schedule, tolerance, 100_000, link, loss, seed=seed)
    rows = [np.concatenate([np.ones(1), *(leaf.ravel() for leaf in leaves)]) for leaves, _ in flat]
    *_, mine = itertools.islice(_averaged(schedule, np.stack(rows), link, loss, seed), needed)
    structure, sizes = shapes[0]
    cuts = np.cumsum([int(np.prod(shape)) for shape in sizes])[:-1]

    def back(row: np.ndarray) -> Tree:
        parts = np.split(row[1:] / row[0], cuts)
        return jax.tree.unflatten(structure, [p.reshape(shape) for p, shape in zip(parts, sizes, strict=True)])

    return [back(row) for row in mine]


def _needed(
    schedule: Schedule, members: Sequence[int], tolerance: float, limit: int, link: str, loss: float, seed: int
) -> tuple[int | None, float]:
    """(rounds until the members agree, None if more than `limit`; how far off they are in the end)."""
    if len(members) < 2 or link == "none":
        return 1, 0.0
    ids, error = np.asarray(members), math.inf
    whose = ids if len(ids) <= _PROBED else ids[np.linspace(0, len(ids) - 1, _PROBES).astype(int)]
    nodes = schedule.neighbor.shape[1]
    held = (np.arange(nodes)[:, None] == whose).astype(float)  # each column: what a single node holds
    steps = _averaged(schedule, np.concatenate([np.ones((nodes, 1)), held], axis=1), link, loss, seed)
    for round, parts in enumerate(itertools.islice(steps, limit), start=1):
        shares = parts[ids, 1:] / parts[ids, :1]  # of that node in the ratio that each knows; should be 1 / n
        error = float(abs(len(ids) * shares - 1).max())
        if error <= tolerance:
            return round, error
    return None, error


def _averaged(schedule: Schedule, x: np.ndarray, link: str, loss: float, seed: int) -> Iterator[np.ndarray]:
    """x [n, m] after each round."""
    return _exchanged(schedule, x, loss, seed) if link == "exchange" else _pushed(schedule, x, loss, seed)


def _exchanged(schedule: Schedule, x: np.ndarray, loss: float, seed: int) -> Iterator[np.ndarray]:
    """By double entry: an exchange of which either message is lost does not take place."""
    ids = np.arange(len(x))
    for round in itertools.count(1):
        neighbor, weight = _row(schedule.neighbor, round), _row(schedule.weight, round)
        gone = np.zeros(neighbor.shape, bool)
        if loss:
            gone = lost(loss, seed, round, neighbor, ids[:, None]) | lost(loss, seed, round, ids[:, None], neighbor)
        given = np.where((neighbor >= 0) & ~gone, weight, 0.0)
        moved = np.zeros_like(x)
        for k in range(neighbor.shape[1]):
            moved += given[:, k, None] * (x[neighbor[:, k]] - x)
        x = x + moved
        yield x


def _pushed(schedule: Schedule, x: np.ndarray, loss: float, seed: int) -> Iterator[np.ndarray]:
    """By running sums: what is lost waits, and comes with the next message along its link."""
    schedule, ids = topology.stable(schedule), np.arange(len(x))
    waiting: Any = np.zeros((*schedule.neighbor.shape[1:], x.shape[1]))
    for round in itertools.count(1):
        neighbor, out = _row(schedule.neighbor, round), _row(schedule.out_weight, round)
        waiting = waiting + out[:, :, None] * x[:, None]
        x = x * (1 - out.sum(axis=1))[:, None]
        comes = out > 0
        if loss:
            comes &= ~lost(loss, seed, round, ids[:, None], neighbor)
        np.add.at(x, neighbor[comes], waiting[comes])
        waiting[comes] = 0
        yield x.copy()


def _row(part: np.ndarray, round: int) -> Any:
    return part[(round - 1) % len(part)]
