"""Schedules that algorithms draw from a given graph, anew in every round: pure functions of the graph and `Planning`.

What is drawn for round r depends on the graph, r and the seed alone, never on how many rounds a run has.
"""

from __future__ import annotations

import numpy as np

from p2pfl.errors import TopologyError
from p2pfl.topology.dynamic import matching
from p2pfl.topology.schedules import Edges, from_rounds, undirected
from p2pfl.types import Planning, Schedule

GREEDY_PURPOSE, PUSH_PURPOSE, REGULAR_PURPOSE, SHARE_PURPOSE = 0x3A7D, 0x9054, 0x4E64, 0x5A7E
TRIES = 100
"""So many attempts at a random regular graph; each fails with a small probability."""


def matchings(schedule: Schedule, planning: Planning) -> Schedule:
    """Pairs along the edges of the graph, weight 1/2, in each of planning.rounds rounds; who finds nobody free rests.

    A maximal matching: the edges in random order, each taken if both ends are free; on a complete graph a uniformly
    drawn pairing of all. A graph of period T gives its row to each round. Raises TopologyError for a directed graph.
    """
    undirected(schedule, "matchings")
    period, nodes, _ = schedule.neighbor.shape
    edges, all_to_all = [], []
    for t in range(period):
        i, k = np.nonzero(schedule.weight[t] != 0)
        j = schedule.neighbor[t, i, k]
        edges.append(np.stack([i, j], axis=1)[i < j])
        all_to_all.append(len(edges[-1]) == nodes * (nodes - 1) // 2)
    neighbor = np.full((planning.rounds, nodes, 1), -1, np.int32)
    for r in range(1, planning.rounds + 1):
        t = (r - 1) % period
        if all_to_all[t]:
            pairs = matching(nodes, planning.seed, r)
        else:
            pairs = _maximal(edges[t], np.random.default_rng([planning.seed, nodes, r, GREEDY_PURPOSE]))
        neighbor[r - 1, pairs[:, 0], 0], neighbor[r - 1, pairs[:, 1], 0] = pairs[:, 1], pairs[:, 0]
    weight = np.where(neighbor >= 0, 0.5, 0.0)
    return Schedule(neighbor, weight, weight.copy(), np.ones((planning.rounds, nodes), bool))


def selected(nodes: int, share: float, seed: int, round: int) -> np.ndarray:
    """[nodes] bool: who takes part in a round: max(1, round(share nodes)) of them, drawn uniformly.

    Source: the client fraction C of McMahan et al., "Communication-efficient learning of deep networks from
    decentralized data" (2017), algorithm 1; there a server draws, here every node does, and finds the same.

    Args:
        nodes: their number.
        share: of them, > 0 and <= 1.
        seed: of the run.
        round: 1, 2, ...

    Returns:
        The flag of each node.

    Example:
        >>> from p2pfl.topology.sampled import selected
        >>> [int(selected(10, 0.3, seed=1, round=r).sum()) for r in (1, 2)]
        [3, 3]
    """
    order = np.random.default_rng([seed, nodes, round, SHARE_PURPOSE]).permutation(nodes)
    flags = np.zeros(nodes, bool)
    flags[order[: max(1, int(share * nodes + 0.5))]] = True
    return flags


def taking_part(schedule: Schedule, planning: Planning) -> Schedule:
    """The schedule of a run of which a share of the nodes, planning.part, takes part in each round.

    The others take no steps, send nothing and keep what they have. Who takes part exchanges with those of its
    neighbours that do, with the graph's weights: what the others would have got, a node keeps, so that W stays doubly
    stochastic. T = planning.rounds.
    """
    period, nodes, _ = schedule.neighbor.shape
    if planning.part >= 1:
        return schedule
    edges: list[Edges] = []
    trains = np.zeros((planning.rounds, nodes), bool)
    for r in range(1, planning.rounds + 1):
        t, here = (r - 1) % period, selected(nodes, planning.part, planning.seed, r)
        trains[r - 1] = schedule.trains[t] & here
        i, k = np.nonzero((schedule.weight[t] != 0) & here[:, None] & here[schedule.neighbor[t]])
        edges.append((i, schedule.neighbor[t, i, k].astype(np.int64), schedule.weight[t, i, k]))
    return from_rounds(nodes, edges, trains)


def _maximal(edges: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Match edges [E, 2] taken in random order: in each pass all that come first at both their ends."""
    left, taken = rng.permutation(edges), [edges[:0]]
    first = np.zeros(int(edges.max(initial=-1)) + 1, np.int64)
    while len(left):
        place = np.arange(len(left))
        # written from the back: the first edge of a node is what stays
        first[left[::-1].ravel()] = np.repeat(place[::-1], 2)
        won = (first[left[:, 0]] == place) & (first[left[:, 1]] == place)
        taken.append(left[won])
        first[taken[-1].ravel()] = -1
        left = left[(first[left[:, 0]] >= 0) & (first[left[:, 1]] >= 0)]
    return np.concatenate(taken)


def pushes(schedule: Schedule, planning: Planning, s: int) -> Schedule:
    """Every node sends to `s` of its out-neighbours (to all if it has fewer), drawn anew in every round.

    A node averages with equal weight what it has and what it receives: W[i, j] = 1 / (1 + received). On the complete
    graph this is EL-Local: de Vos et al., "Epidemic learning", arXiv 2310.01972, algorithm 1.
    """
    if s < 1:
        raise TopologyError(f"pushes: s={s!r}: must be >= 1, the models a node sends in a round")
    period, nodes, _ = schedule.neighbor.shape
    arcs = []
    for t in range(period):
        i, k = np.nonzero(schedule.out_weight[t] > 0)
        arcs.append((i, schedule.neighbor[t, i, k].astype(np.int64)))
    rounds: list[Edges] = []
    for r in range(1, planning.rounds + 1):
        rng = np.random.default_rng([planning.seed, nodes, r, PUSH_PURPOSE])
        sender, receiver = arcs[(r - 1) % period]
        if len(sender) == nodes * (nodes - 1) and s < nodes - 1:
            sender, receiver = np.repeat(np.arange(nodes), s), _others(nodes, s, rng).ravel()
        elif len(sender):
            order = np.argsort(
                sender + rng.random(len(sender))
            )  # senders stay together, each one's arcs in random order
            sender, receiver = sender[order], receiver[order]
            start = np.flatnonzero(np.diff(sender, prepend=-1))
            place = np.arange(len(sender)) - np.repeat(start, np.diff(start, append=len(sender)))
            sender, receiver = sender[place < s], receiver[place < s]
        received = np.bincount(receiver, minlength=nodes)
        rounds.append((receiver, sender, 1.0 / (1.0 + received[receiver])))
    return from_rounds(nodes, rounds)


def _others(nodes: int, s: int, rng: np.random.Generator) -> np.ndarray:
    """[nodes, s] different nodes other than itself for each, uniformly (Floyd's algorithm, in all rows at once)."""
    chosen = np.full((nodes, s), -1, np.int64)
    for place, last in enumerate(range(nodes - 1 - s, nodes - 1)):
        drawn = rng.integers(0, last + 1, nodes)
        chosen[:, place] = np.where((chosen == drawn[:, None]).any(axis=1), last, drawn)
    return chosen + (chosen >= np.arange(nodes)[:, None])


def regular(schedule: Schedule, planning: Planning, s: int) -> Schedule:
    """A random s-regular graph in every round, weight 1 / (s + 1); the graph given must be complete.

    Source: EL-Oracle, de Vos et al., "Epidemic learning", arXiv 2310.01972. Raises TopologyError where no such graph
    is.
    """
    period, nodes, _ = schedule.neighbor.shape
    if (schedule.weight > 0).sum() != period * nodes * (nodes - 1):
        raise TopologyError("regular: a random regular graph is drawn among all nodes; use topology.graph = 'complete'")
    if nodes == 1:
        return from_rounds(1, [(np.zeros(0, np.int64), np.zeros(0, np.int64), 0.0)] * planning.rounds)
    if not 1 <= s < nodes or nodes * s % 2:
        raise TopologyError(
            f"regular: s={s!r} with nodes={nodes}: must be >= 1 and < nodes, and nodes times s even; use another s"
        )
    rounds = []
    for r in range(1, planning.rounds + 1):
        pairs = _regular(nodes, s, np.random.default_rng([planning.seed, nodes, r, REGULAR_PURPOSE]))
        rounds.append(
            (np.concatenate([pairs[:, 0], pairs[:, 1]]), np.concatenate([pairs[:, 1], pairs[:, 0]]), 1 / (s + 1))
        )
    return from_rounds(nodes, rounds)


def _regular(nodes: int, s: int, rng: np.random.Generator) -> np.ndarray:
    """[nodes * s / 2, 2]: the ends of edges paired at random, and pairs that may not be exchanged with random others.

    Dense graphs are drawn as the pairs that a sparse one leaves out. No step looks at the names, so that all pairs are
    equally likely.
    """
    if 2 * s >= nodes:
        low, high = np.triu_indices(nodes, 1)
        without = _regular(nodes, nodes - 1 - s, rng) if s < nodes - 1 else np.zeros((0, 2), np.int64)
        kept = ~np.isin(low * nodes + high, without.min(axis=1) * nodes + without.max(axis=1))
        return np.stack([low[kept], high[kept]], axis=1)
    for _ in range(TRIES):
        pairs = rng.permutation(np.repeat(np.arange(nodes), s)).reshape(-1, 2)
        for _ in range(TRIES):
            bad = _bad(pairs, nodes)
            if not len(bad):
                return pairs
            others = rng.permutation(np.setdiff1d(np.arange(len(pairs)), bad))[: len(bad)]
            _exchange(pairs, bad[: len(others)], others, nodes)
    raise TopologyError(f"regular: no random graph of degree s={s} on nodes={nodes} was found; use another s")


def _exchange(pairs: np.ndarray, a: np.ndarray, b: np.ndarray, nodes: int) -> None:
    """Exchange, in place, the second ends of the pairs at a[e] and b[e], where both new pairs are new to the graph."""
    made = np.concatenate([np.stack([pairs[a, 0], pairs[b, 1]], axis=1), np.stack([pairs[b, 0], pairs[a, 1]], axis=1)])
    key = made.min(axis=1) * nodes + made.max(axis=1)
    _, which, count = np.unique(key, return_inverse=True, return_counts=True)
    new = (count[which] == 1) & (made[:, 0] != made[:, 1])
    new &= ~np.isin(key, pairs.min(axis=1) * nodes + pairs.max(axis=1))
    a, b = a[new[: len(a)] & new[len(a) :]], b[new[: len(a)] & new[len(a) :]]
    pairs[a, 1], pairs[b, 1] = pairs[b, 1], pairs[a, 1]


def _bad(pairs: np.ndarray, nodes: int) -> np.ndarray:
    """Places of the pairs that join a node to itself, and of all but the first of equal ones."""
    key = pairs.min(axis=1) * nodes + pairs.max(axis=1)
    bad = np.ones(len(pairs), bool)
    bad[np.unique(key, return_index=True)[1]] = False
    return np.flatnonzero(bad | (pairs[:, 0] == pairs[:, 1]))


def star_phases(schedule: Schedule, planning: Planning) -> Schedule:
    """Federated averaging as a schedule: weights by training rows, W[i, j] = samples_j / the sum of all.

    On a star T = 2: the hub hears every leaf, then every leaf copies the hub, and nobody trains in that round. On a
    complete graph T = 1: all hear all. Raises TopologyError for other graphs. Source: McMahan et al. (2017).
    """
    period, nodes, _ = schedule.neighbor.shape
    degree = (schedule.weight[0] > 0).sum(axis=1)
    whole = bool((degree == nodes - 1).all())
    hub = int(degree.argmax())
    star = degree[hub] == nodes - 1 and int(degree.sum()) == 2 * (nodes - 1)
    if period != 1 or not (whole or star):
        raise TopologyError(
            "fedavg: needs a star or a complete graph, the same in every round; topology.graph = 'star' or 'complete'"
        )
    samples = np.asarray(planning.samples, float)
    if (samples < 0).any():
        raise TopologyError(
            "fedavg: weighs nodes by their training rows, and a node that brings rows of its own does not know the "
            "others' numbers; use dsgd, or data that the experiment names"
        )
    if not samples.sum() > 0:
        raise TopologyError("fedavg: no node has training rows, and they are the weights; give the nodes data")
    share = samples / samples.sum()
    if whole:
        receiver, sender = np.nonzero(~np.eye(nodes, dtype=bool))
        return from_rounds(nodes, [(receiver, sender, share[sender])])
    leaves = np.delete(np.arange(nodes), hub)
    hubs = np.full(nodes - 1, hub)
    trains = np.repeat([[True], [False]], nodes, axis=1)
    return from_rounds(nodes, [(hubs, leaves, share[leaves]), (leaves, hubs, 1.0)], trains)
