"""Schedules made from arrays and read by drivers: slots, rows, matrices. All in numpy, for many nodes and rounds.

W[i, j] is what the receiver i gives to the value of the sender j; a schedule holds all of it but the diagonal, which
follows from what sums to one (see `sums`).
"""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import numpy as np

from p2pfl.errors import TopologyError
from p2pfl.types import Schedule

Edges = tuple[np.ndarray, np.ndarray, np.ndarray | float]
"""Of one round: receivers [E], senders [E], and W[receiver, sender] ([E], or one value for all)."""
CLOSE = 1e-9
"""Sums of weights that differ by less are equal: rounding of a few thousand terms is far below, a real fault above."""


def from_rounds(nodes: int, rounds: Sequence[Edges], trains: np.ndarray | None = None) -> Schedule:
    """Return the schedule whose row t holds the edges of rounds[t].

    The slots of a node are those it hears from or speaks to, ascending.

    Args:
        nodes: their number n.
        rounds: of each round t its edges: receivers [E], senders [E], and W[receiver, sender], [E] or one value for
            all.
        trains: [T, n] bool, who takes local steps; None: all.

    Returns:
        The schedule, [T, n, K]; the weights of an edge that stands twice add up.

    Example:
        >>> import numpy as np, p2pfl
        >>> pair = (np.array([0, 1]), np.array([1, 0]), 0.5)
        >>> p2pfl.topology.from_rounds(2, [pair]).neighbor.tolist()
        [[[1], [0]]]
    """
    period = max(len(rounds), 1)
    row = np.repeat(np.arange(len(rounds)), [len(receiver) for receiver, _, _ in rounds]).astype(np.int64)
    receiver, sender = (np.concatenate([np.zeros(0, np.int64), *(e[end] for e in rounds)]) for end in (0, 1))
    weights = [np.broadcast_to(np.asarray(weight, float), len(receiver)) for receiver, _, weight in rounds]
    weight = np.concatenate([np.zeros(0), *weights])
    hears, says = (row * nodes + receiver) * nodes + sender, (row * nodes + sender) * nodes + receiver
    keys = np.unique(np.concatenate([hears, says]))
    values = [np.bincount(np.searchsorted(keys, part), weight, len(keys)) for part in (hears, says)]
    return _filled(nodes, period, keys, values[0], values[1], trains)


def _filled(
    nodes: int, period: int, keys: np.ndarray, weight: np.ndarray, out: np.ndarray, trains: np.ndarray | None
) -> Schedule:
    """`keys`: (row * nodes + node) * nodes + neighbour, ascending; `weight`, `out`: of each key."""
    owner, slot = keys // nodes, _rank(keys // nodes)
    shape = (period, nodes, int(slot.max(initial=-1)) + 1)
    at = (owner // nodes, owner % nodes, slot)
    neighbor, weights, outs = np.full(shape, -1, np.int32), np.zeros(shape), np.zeros(shape)
    neighbor[at], weights[at], outs[at] = keys % nodes, weight, out
    return Schedule(neighbor, weights, outs, np.ones((period, nodes), bool) if trains is None else trains)


def _rank(groups: np.ndarray) -> np.ndarray:
    """Of each entry of a sorted array, its place among those of the same value: [3, 3, 5] -> [0, 1, 0]."""
    place = np.arange(len(groups))
    first = np.ones(len(groups), bool)
    first[1:] = groups[1:] != groups[:-1]
    return place - np.maximum.accumulate(np.where(first, place, 0))


def _keys(schedule: Schedule) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The ascending keys of `_filled` and where they stand: (row, node, slot)."""
    at = np.nonzero(schedule.neighbor >= 0)
    nodes = schedule.neighbor.shape[1]
    return (at[0].astype(np.int64) * nodes + at[1]) * nodes + schedule.neighbor[at], at


def row(schedule: Schedule, round: int) -> int:
    """Return the row of the schedule that a round uses.

    Args:
        schedule: [T, n, K] who talks to whom.
        round: 1, 2, ...

    Returns:
        The row, 0 ... T - 1.

    Example:
        >>> import p2pfl
        >>> p2pfl.topology.row(p2pfl.topology.plan("one_peer_exponential", 8), 5)
        1
    """
    return (round - 1) % len(schedule.neighbor)


def neighbors(schedule: Schedule, node: int) -> list[int]:
    """Return all that a node hears from or speaks to in the whole period.

    Args:
        schedule: [T, n, K] who talks to whom.
        node: its id.

    Returns:
        Ids, ascending.

    Example:
        >>> import p2pfl
        >>> ring = p2pfl.topology.plan("ring", 4)
        >>> p2pfl.topology.neighbors(ring, 0)
        [1, 3]
    """
    return sorted({int(j) for j in schedule.neighbor[:, node].ravel() if j >= 0})


def pairs(schedule: Schedule) -> np.ndarray:
    """Return the pairs that meet within the period.

    Args:
        schedule: [T, n, K] who talks to whom.

    Returns:
        [E, 2] int64 (low, high), ascending.

    Example:
        >>> import p2pfl
        >>> ring = p2pfl.topology.plan("ring", 4)
        >>> p2pfl.topology.pairs(ring).tolist()
        [[0, 1], [0, 3], [1, 2], [2, 3]]
    """
    at = np.nonzero((schedule.neighbor >= 0) & ((schedule.weight != 0) | (schedule.out_weight != 0)))
    nodes = schedule.neighbor.shape[1]
    key = np.unique(
        np.minimum(at[1], schedule.neighbor[at]).astype(np.int64) * nodes + np.maximum(at[1], schedule.neighbor[at])
    )
    return np.stack([key // nodes, key % nodes], axis=1)


def union(schedule: Schedule) -> nx.Graph:
    """Return the undirected graph of all pairs that meet within the period.

    Args:
        schedule: [T, n, K] who talks to whom.

    Returns:
        A graph of networkx.

    Example:
        >>> import p2pfl
        >>> ring = p2pfl.topology.plan("ring", 4)
        >>> p2pfl.topology.union(ring).number_of_edges()
        4
    """
    graph = nx.Graph()
    graph.add_nodes_from(range(schedule.neighbor.shape[1]))
    graph.add_edges_from(pairs(schedule).tolist())
    return graph


def stable(schedule: Schedule) -> Schedule:
    """Return the same schedule in slots that stand for the same neighbour in every row.

    Args:
        schedule: [T, n, K] who talks to whom.

    Returns:
        The schedule, with weights 0 where an edge rests.

    Example:
        >>> import p2pfl
        >>> changing = p2pfl.topology.plan("one_peer_exponential", 4)
        >>> p2pfl.topology.stable(changing).neighbor[:, 0].tolist()
        [[1, 2, 3], [1, 2, 3]]
    """
    period, nodes, _ = schedule.neighbor.shape
    keys, at = _keys(schedule)
    within = keys % (nodes * nodes)
    always = np.unique(within)
    spread = (np.arange(period)[:, None] * nodes * nodes + always).ravel()
    place = at[0] * len(always) + np.searchsorted(always, within)
    weight, out = np.zeros(len(spread)), np.zeros(len(spread))
    weight[place], out[place] = schedule.weight[at], schedule.out_weight[at]
    return _filled(nodes, period, spread, weight, out, schedule.trains)


def reverse(schedule: Schedule) -> np.ndarray:
    """Return in which slot of its neighbour a node stands, in the same row.

    Args:
        schedule: [T, n, K] who talks to whom.

    Returns:
        [T, n, K] int32; -1 for empty slots.

    Example:
        >>> import p2pfl
        >>> ring = p2pfl.topology.plan("ring", 4)
        >>> p2pfl.topology.reverse(ring)[0, 3].tolist()  # neighbours 0 and 2
        [1, 1]
    """
    nodes = schedule.neighbor.shape[1]
    keys, at = _keys(schedule)
    owner, other = keys // nodes, keys % nodes
    back = np.searchsorted(keys, (owner // nodes * nodes + other) * nodes + owner % nodes)
    slots = np.full(schedule.neighbor.shape, -1, np.int32)
    slots[at] = at[2][back]
    return slots


def symmetric(schedule: Schedule) -> bool:
    """Tell whether every node gives to each neighbour what it gets from it.

    Args:
        schedule: [T, n, K] who talks to whom.

    Returns:
        Whether it is so in every row, to 1e-12.

    Example:
        >>> import p2pfl
        >>> ring = p2pfl.topology.plan("ring", 4)
        >>> p2pfl.topology.symmetric(ring)
        True
    """
    return bool(np.allclose(schedule.weight, schedule.out_weight, rtol=0, atol=1e-12))


def sound(schedule: Schedule, nodes: int, where: str) -> Schedule:
    """Return a schedule that somebody has written by hand, with its slots in order, if it makes sense.

    Args:
        schedule: [T, n, K] who talks to whom.
        nodes: their number n.
        where: how an error begins.

    Returns:
        The same, its slots ascending.

    Raises:
        TopologyError: arrays of other shapes, neighbours that there are not, weights that are no numbers, or an
            `out_weight` that is not the `weight` at the other end.

    Example:
        >>> import p2pfl
        >>> from p2pfl.topology.schedules import sound
        >>> ring = p2pfl.topology.plan("ring", 4)
        >>> sound(ring._replace(out_weight=0 * ring.weight), 4, "mine")
        Traceback (most recent call last):
        ...
        p2pfl.errors.TopologyError: mine: out_weight is not the weight that the receivers give; p2pfl.topology.from_...
    """
    neighbor, weight, out, trains = (np.asarray(part) for part in schedule)
    shape = neighbor.shape
    if len(shape) != 3 or not shape[0] or shape[1] != nodes or weight.shape != shape or out.shape != shape:
        raise TopologyError(
            f"{where}: neighbor, weight and out_weight have the shapes {list(shape)}, {list(weight.shape)} and "
            f"{list(out.shape)}; must be [T, {nodes}, K], all three"
        )
    if trains.shape != shape[:2]:
        raise TopologyError(f"{where}: trains has the shape {list(trains.shape)}; must be [T, n] = {list(shape[:2])}")
    if neighbor.dtype.kind not in "iu" or (neighbor < -1).any() or (neighbor >= nodes).any():
        raise TopologyError(f"{where}: neighbor must hold whole numbers, 0 to {nodes - 1}, and -1 for empty slots")
    if (neighbor == np.arange(nodes)[:, None]).any():
        raise TopologyError(f"{where}: a node is its own neighbour; what it keeps is what is left of one")
    if not (np.isfinite(weight).all() and np.isfinite(out).all()):
        raise TopologyError(f"{where}: a weight is not finite")
    rounds = []
    for t in range(shape[0]):
        receiver, slot = np.nonzero((neighbor[t] >= 0) & (weight[t] != 0))
        rounds.append((receiver, neighbor[t, receiver, slot].astype(np.int64), weight[t, receiver, slot]))
    made = from_rounds(nodes, rounds, trains.astype(bool))
    said = np.where(neighbor >= 0, out, 0).sum(axis=2)
    if not np.allclose(said, made.out_weight.sum(axis=2), rtol=0, atol=CLOSE):
        raise TopologyError(
            f"{where}: out_weight is not the weight that the receivers give; p2pfl.topology.from_rounds makes both of "
            "one list"
        )
    return made


def sums(schedule: Schedule) -> str:
    """Tell what of W sums to one, and so gives the diagonal.

    "column" is told by its mark, that in every row of the schedule each node shares its value out in equal parts, 1 /
    (1 + out-degree), itself included (`uniform_out`); any other weights that are not doubly stochastic are "row".

    Args:
        schedule: [T, n, K] who talks to whom.

    Returns:
        "both" (doubly stochastic), "row" or "column".

    Example:
        >>> import p2pfl
        >>> p2pfl.topology.sums(p2pfl.topology.plan("star", 4, weights="uniform_out"))
        'column'
    """
    gets, gives = schedule.weight.sum(axis=2), schedule.out_weight.sum(axis=2)
    if np.allclose(gets, gives, rtol=0, atol=CLOSE):
        return "both"
    equal = []
    for weight in (schedule.weight, schedule.out_weight):
        share = 1.0 / (1.0 + (weight > 0).sum(axis=2, keepdims=True))
        equal.append(bool(np.all((weight == 0) | (abs(weight - share) < 1e-12))))
    return "column" if equal[1] and not equal[0] else "row"


def own(schedule: Schedule, which: str | None = None) -> np.ndarray:
    """[T, n] the diagonal of W: what is left of one in the row, or in the column (`which`; of itself: `sums`)."""
    which = which or sums(schedule)
    return 1.0 - (schedule.out_weight if which == "column" else schedule.weight).sum(axis=2)


def matrix(schedule: Schedule, t: int = 0, which: str | None = None) -> np.ndarray:
    """Return the weight matrix of a row.

    Args:
        schedule: [T, n, K] who talks to whom.
        t: the row, 0 ... T - 1.
        which: what sums to one, "row" or "column"; None: found out by `sums`.

    Returns:
        W [n, n] float64; W[i, j] is what node i gives to the value of j.

    Example:
        >>> import p2pfl
        >>> p2pfl.topology.matrix(p2pfl.topology.plan("complete", 2)).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    nodes = schedule.neighbor.shape[1]
    i, k = np.nonzero(schedule.neighbor[t] >= 0)
    w = np.zeros((nodes, nodes))
    w[i, schedule.neighbor[t, i, k]] = schedule.weight[t, i, k]
    gets, gives = schedule.weight[t].sum(axis=1), schedule.out_weight[t].sum(axis=1)
    if which is None and not np.array_equal(gets, gives):  # only then does it matter, and all rows have to be read
        which = sums(schedule)
    w[np.arange(nodes), np.arange(nodes)] = 1.0 - (gives if which == "column" else gets)
    return w


def undirected(schedule: Schedule, who: str) -> Schedule:
    """The schedule if its weights are symmetric. Raises TopologyError that begins with `who`."""
    if not symmetric(schedule):
        raise TopologyError(f"{who}: the graph is directed; {who} needs an undirected graph, such as ring or base")
    return schedule
