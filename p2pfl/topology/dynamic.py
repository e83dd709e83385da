"""Graphs that change from round to round, and those that come with weights of their own: pure functions to schedules.

What is drawn for round r depends on the number of nodes, r and the seed alone, never on how many rounds are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np

from p2pfl.errors import TopologyError, nearest
from p2pfl.topology.graphs import draw_seeds, hops
from p2pfl.topology.schedules import Edges, from_rounds
from p2pfl.types import Schedule

MATCHING_PURPOSE, SHIFTS_PURPOSE, TURN_PURPOSE = 0x3A7C, 0xE901, 0xE902
VARIANTS = ("u_static", "d_static", "u_dynamic", "d_dynamic")
"""Of EquiTopo: (un)directed, all shifts in every round or one of them."""


def one_peer_exponential(nodes: int) -> Schedule:
    """Directed, period ceil(log2 nodes): in row t node i hears i - 2^t mod nodes with weight 1/2.

    After a period all nodes hold the mean, to rounding, if `nodes` is a power of two; otherwise they do not. Source:
    Ying et al., "Exponential graph is provably efficient for decentralized deep training", arXiv 2110.13363, theorem 2.
    """
    i = np.arange(nodes)
    return from_rounds(nodes, [(i, (i - hop) % nodes, 0.5) for hop in hops(nodes)])


def random_matching(nodes: int, seed: int, rounds: int) -> Schedule:
    """In every round the nodes are paired at random, weight 1/2; if their number is odd, one rests. T = rounds."""
    return from_rounds(nodes, [_joined(matching(nodes, seed, r), 0.5) for r in range(1, rounds + 1)])


def matching(nodes: int, seed: int, round: int) -> np.ndarray:
    """[nodes // 2, 2] the pairs of a round, drawn uniformly among all ways to pair the nodes."""
    order = np.random.default_rng([seed, nodes, round, MATCHING_PURPOSE]).permutation(nodes)
    return order[: nodes // 2 * 2].reshape(-1, 2)


def _joined(pairs: np.ndarray, weight: np.ndarray | float) -> Edges:
    """Undirected edges [E, 2] in both directions."""
    both = np.concatenate([pairs, pairs[:, ::-1]])
    weights = weight if isinstance(weight, float) else np.concatenate([weight, weight])
    return both[:, 0], both[:, 1], weights


def matching_contraction(nodes: int) -> float:
    """lambda: the share of the mean squared deviation that a random matching leaves, in expectation.

    Averaging a pair is a projection, so that E[W^T W] = E[W], and by symmetry E[W] is a mixture of I and J: an even
    number of nodes leaves 1 - n / (2 (n - 1)), an odd one, with one node at rest, 1/2.
    """
    if nodes == 1:
        return 0.0
    return 0.5 if nodes % 2 else 1.0 - nodes / (2.0 * (nodes - 1))


# ------------------------------------------------------------------------------------------------------ Base-(k+1)


def base(nodes: int, k: int = 1) -> Schedule:
    """Base-(k+1): at most `k` neighbours in a round, and after the period every node holds the mean, for any `nodes`.

    Source: Takezawa et al., "Beyond exponential graph: communication-efficient topologies for decentralized learning
    via finite-time convergence", arXiv 2305.11420. The period is that of the better of the paper's two constructions:
    nodes = p q, the simple graph on p blocks of q nodes at once, then complete groups across the blocks, where all
    prime factors of p are <= k + 1 (p = 1: the simple graph alone).
    """
    if k < 1:
        raise TopologyError(f"topology.graph='base': k={k!r}: must be >= 1, the neighbours of a node in a round")
    ways = [(p, nodes // p) for p in range(1, nodes + 1) if nodes % p == 0 and _factors(p, k + 1) is not None]
    p, q = min(ways, key=lambda way: (_length(way[1], k) + len(_factors(way[0], k + 1) or ()), -way[0]))
    members = np.arange(nodes)
    blocks = [_simple(block, k) for block in members.reshape(p, q)]
    across = [_hyper(column, k) for column in members.reshape(p, q).T]
    return from_rounds(nodes, [_merged(row) for half in (blocks, across) for row in zip(*half, strict=True)])


def _factors(number: int, most: int) -> list[int] | None:
    """The fewest factors, each <= `most`, whose product is `number`, descending; None if there are none."""
    if number == 1:
        return []
    found: list[int] | None = None
    for factor in range(min(most, number), 1, -1):
        if number % factor == 0:
            rest = _factors(number // factor, factor)
            if rest is not None and (found is None or len(rest) + 1 < len(found)):
                found = [factor, *rest]
    return found


def _digit(number: int, k: int) -> tuple[int, int]:
    """The leading digit in base k + 1 and its place value: number = digit * value + rest, rest < value."""
    value = 1
    while value * (k + 1) <= number:
        value *= k + 1
    return number // value, value


def _length(number: int, k: int) -> int:
    """Return the number of rounds that `_simple` takes."""
    if number == 1:
        return 0
    digit, value = _digit(number, k)
    rest, within = number - digit * value, round(math.log(value, k + 1))
    first = within + (digit > 1)
    return max(first + 1 + within, _length(rest, k) + 1) if rest else first


def _merged(parts: Sequence[Edges]) -> Edges:
    arrays = [
        (receiver, sender, np.broadcast_to(np.asarray(weight, float), len(receiver)))
        for receiver, sender, weight in parts
    ]
    return tuple(np.concatenate([part[i] for part in arrays]) for i in range(3))  # type: ignore[return-value]


def _hyper(members: np.ndarray, k: int) -> list[Edges]:
    """Hyper-hypercube: a round per factor of the number of members, in which groups of that size average wholly."""
    rows: list[Edges] = []
    left = 1
    for size in _factors(len(members), k + 1) or ():
        groups = np.moveaxis(members.reshape(left, size, -1), 1, 2).reshape(-1, size)
        a, b = np.nonzero(~np.eye(size, dtype=bool))
        rows.append((groups[:, a].ravel(), groups[:, b].ravel(), 1.0 / size))
        left *= size
    return rows


def _simple(members: np.ndarray, k: int) -> list[Edges]:
    """The simple base graph.

    The leading digit's nodes stand in `digit` pieces of (k + 1)^p. They average among themselves, while the rest begins
    with its own graph; in one round each node of the rest meets a fresh node of every piece, with the weight that moves
    the rest to the mean of all but for its own deviations, and the pieces but for the differences within them; the
    pieces average within themselves once more, while the rest goes on with its own graph.
    """
    nodes = len(members)
    if nodes == 1:
        return []
    digit, value = _digit(nodes, k)
    if digit * value == nodes:
        return _hyper(members, k)
    pieces, rest = members[: digit * value].reshape(digit, value), members[digit * value :]
    first, then, other = _hyper(members[: digit * value], k), [_hyper(piece, k) for piece in pieces], _simple(rest, k)
    pairs = np.stack([np.tile(rest, digit), pieces[:, : len(rest)].ravel()], axis=1)
    meeting = _joined(pairs, value / nodes)
    before, after = other[: len(first)], other[len(first) :]
    rows = [_merged([a, *before[t : t + 1]]) for t, a in enumerate(first)]
    within = [_merged(row) for row in zip(*then, strict=True)]
    empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), 0.0)
    for t in range(max(len(within), len(after))):
        within[t:] = within[t:] or [empty]
        within[t] = _merged([within[t], *after[t : t + 1]])
    return [*rows, meeting, *within]


# -------------------------------------------------------------------------------------------------------- EquiTopo


def equitopo(nodes: int, seed: int, rounds: int, variant: str = "u_static", m: int | None = None) -> Schedule:
    """EquiTopo: `m` random shifts a of the ring, ceil(log2 nodes) unless given.

    "d_static": W = the mean over the shifts of (n-1)/n P^a + 1/n I, P^a the permutation by which node i hears i - a;
    "u_static": (W + W^T) / 2. One shift drawn per round (T = rounds), and half of the weight kept (the paper's eta):
    "d_dynamic": I/2 + ((n-1)/n P^a + 1/n I) / 2; "u_dynamic": as that, with pairs at distance a, matched along the ring
    from a random node on, instead of P^a. Source: Song et al., "Communication-efficient topologies for decentralized
    learning with O(1) consensus rate", arXiv 2210.07881, algorithms 1 to 4.
    """
    shifts = _shifts(nodes, seed, variant, m)
    i = np.arange(nodes)
    if variant in ("u_static", "d_static"):
        weight = (nodes - 1) / nodes / max(len(shifts), 1)
        arcs = [(i, (i - a) % nodes, weight) for a in shifts.tolist()]
        if variant == "u_static":
            arcs = [(end[0], end[1], weight / 2) for a in arcs for end in (a[:2], a[1::-1])]
        return from_rounds(nodes, [_merged(arcs)] if arcs else [])
    weight, rows = (nodes - 1) / (2 * nodes), []
    for r in range(1, rounds + 1) if nodes > 1 else ():
        rng = np.random.default_rng([seed, nodes, r, TURN_PURPOSE])
        a, start = int(rng.choice(shifts)), int(rng.integers(nodes))
        rows.append(
            (i, (i - a) % nodes, weight) if variant == "d_dynamic" else _joined(_chain(nodes, a, start), weight)
        )
    return from_rounds(nodes, rows or [(i[:0], i[:0], 0.0)] * rounds)


def _shifts(nodes: int, seed: int, variant: str, m: int | None) -> np.ndarray:
    """[m] the shifts, drawn with repetition; drawn again while their graph is in pieces."""
    if variant not in VARIANTS:
        raise TopologyError(f"topology.graph='equitopo': variant={variant!r}: {nearest(variant, VARIANTS)}")
    count = len(hops(nodes)) if m is None else m
    if nodes > 1 and count < 1:
        raise TopologyError(f"topology.graph='equitopo': m={m!r}: must be >= 1, the number of shifts")
    for own in draw_seeds(seed) if nodes > 1 else ():
        drawn = np.random.default_rng([own, nodes, SHIFTS_PURPOSE]).integers(1, nodes, count)
        if reduce(math.gcd, drawn.tolist(), nodes) == 1:
            return drawn
    if nodes > 1:
        raise TopologyError(
            f"topology.graph='equitopo': no draw of m={count} shifts from seed={seed} joins all nodes; give a larger m"
        )
    return np.zeros(0, np.int64)


def _chain(nodes: int, shift: int, start: int) -> np.ndarray:
    """[E, 2] pairs (i, i + shift), taken greedily for i = start, start + 1, ... around the ring."""
    free, pairs = np.ones(nodes, bool), []
    for i in [*range(start, nodes), *range(start)]:
        j = (i + shift) % nodes
        if free[i] and free[j]:
            free[i] = free[j] = False
            pairs.append((i, j))
    return np.array(pairs, np.int64).reshape(-1, 2)


def equitopo_contraction(nodes: int, seed: int, variant: str = "u_static", m: int | None = None) -> float | None:
    """lambda of `matching_contraction` for the variants that draw a shift per round; None for the static ones.

    With c the weight of what is heard and Q the permutation of the round, W^T W = ((1-c)^2 + c^2) I + c (1-c)(Q + Q^T),
    and E[Q] is circulant: its eigenvalues are a Fourier transform.
    """
    shifts = _shifts(nodes, seed, variant, m)
    if variant in ("u_static", "d_static"):
        return None
    if nodes == 1:
        return 0.0
    expected, c = np.zeros(nodes), (nodes - 1) / (2 * nodes)
    for a in shifts.tolist():
        # how many pairs there are does not depend on where the matching starts: the ring looks alike from everywhere
        share = 0.5 if variant == "d_dynamic" else len(_chain(nodes, a, 0)) / nodes
        for distance, part in ((a, share), (-a % nodes, share), (0, 1 - 2 * share)):
            expected[distance] += part / len(shifts)
    modes = np.fft.rfft(expected).real[1:]
    return float((1 - c) ** 2 + c**2 + 2 * c * (1 - c) * modes.max())
