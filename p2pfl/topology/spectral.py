"""Figures and words for a schedule: how fast it agrees, what may run on it, what it can't bear."""

from __future__ import annotations

import math
from typing import Any

import networkx as nx
import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
from scipy.sparse import csgraph

from p2pfl.errors import TopologyError
from p2pfl.topology import eigen
from p2pfl.topology.schedules import CLOSE, own, pairs, sums, symmetric, union
from p2pfl.types import Schedule

FAR = 1e-10
"""Nodes agree when their disagreement is this fraction of what it was."""
MOST = 20_000_000
"""Weights in a schedule, at most, to be described."""
NEAR = 2000
"""Up to so many nodes the diameter is worked out."""


def describe(schedule: Schedule, drawn: float | None = None) -> dict[str, Any]:
    """The figures of a schedule; None where one has no meaning.

    `drawn`: of a schedule that is drawn anew in each round, its `expected_rho`; figures of the graph are then those of
    the rounds in the schedule. Degrees: to how many a node sends in a round. edges: pairs that meet in the period (of a
    directed graph: arcs); connected, diameter: of their graph, diameter None above NEAR nodes. rho: ||W - J||_2, with
    period T ||W_T ... W_1 - J||_2^(1/T); if W is not doubly stochastic, of which norms say nothing, the second largest
    |eigenvalue| of the product ^(1/T): the rate at which push-sum's quotients agree, or the values themselves on a
    weighted mean. lambda_min: the least real part of an eigenvalue of a static W.

    Args:
        schedule: [T, n, K] who talks to whom.
        drawn: its `expected_rho`, where it is drawn anew in each round; figures of the graph are then those of the
            rounds in the schedule.

    Returns:
        nodes, edges, degree_min, degree_mean, degree_max, connected, diameter, symmetric, doubly_stochastic, rho,
        lambda_min, spectral_gap, period, exact_after_period, sends_per_node_to_1e-10.

    Raises:
        TopologyError: more weights than can be described.

    Example:
        >>> import p2pfl
        >>> ring = p2pfl.topology.plan("ring", 4)
        >>> round(p2pfl.topology.describe(ring)["rho"], 6)
        0.333333
    """
    period, nodes, slots = schedule.neighbor.shape
    if schedule.neighbor.size > MOST:
        raise TopologyError(
            f"topology: {nodes} nodes with up to {slots} neighbours in {period} rounds are more than the {MOST:,} "
            "weights that can be described; give fewer nodes or a sparser graph"
        )
    sent = schedule.out_weight > 0
    degrees = sent.sum(axis=2)
    even, both = symmetric(schedule), sums(schedule) == "both"
    arcs = _arcs(schedule)
    found = _rates(schedule, drawn, even, both)
    rho, gap = found["rho"], found["spectral_gap"]
    mean = float(degrees.mean())
    return {
        "nodes": nodes,
        "edges": len(pairs(schedule)) if even else arcs.nnz,
        "degree_min": int(degrees.min()),
        "degree_mean": mean,
        "degree_max": int(degrees.max()),
        "connected": bool(csgraph.connected_components(arcs, connection="strong")[0] == 1),
        "diameter": _diameter(arcs),
        "symmetric": even,
        "doubly_stochastic": both,
        "rho": rho,
        "lambda_min": found["lambda_min"],
        "spectral_gap": gap,
        "period": None if drawn is not None else period,
        "exact_after_period": found["exact"],
        "sends_per_node_to_1e-10": _sends(rho, gap, mean, period if drawn is None else 1, found["exact"]),
    }


def _sends(rho: float, gap: float, mean: float, period: int, exact: bool) -> float | None:
    """Mean sends per node until the disagreement is FAR."""
    if exact:
        return mean * period
    return None if gap <= 0 else math.ceil(math.log(FAR) / math.log(rho) - CLOSE) * mean


def _rates(schedule: Schedule, drawn: float | None, even: bool, both: bool) -> dict[str, Any]:
    """rho, spectral_gap, lambda_min, exact."""
    nodes = schedule.neighbor.shape[1]
    if drawn is not None:
        # no round depends on the one before: one that leaves nothing is the mean itself
        return {"rho": drawn, "spectral_gap": 1 - drawn, "lambda_min": None, "exact": drawn == 0}
    steps = operators(schedule)
    static = len(steps) == 1
    exact = eigen.averages(steps)
    least = None
    if static and even:
        top, least = eigen.ends(steps[0]) if nodes > 1 else (0.0, 1.0)
        rho = max(abs(top), abs(least)) if nodes > 1 else 0.0
    else:
        rho = (eigen.norm(steps) if both else eigen.second(steps)) ** (1 / len(steps)) if not exact else 0.0
        least = eigen.smallest(steps[0]) if static else None
    rho = 0.0 if exact else 1.0 if abs(rho - 1) < 1e-13 else rho
    return {"rho": rho, "spectral_gap": 1 - rho, "lambda_min": _clean(least), "exact": exact}


def _clean(value: float | None) -> float | None:
    return 0.0 if value is not None and abs(value) < 1e-12 else value


def operators(schedule: Schedule) -> list[sp.csr_array]:
    """W of each row, sparse [n, n]."""
    period, nodes, _ = schedule.neighbor.shape
    keep, found = own(schedule), []
    for t in range(period):
        i, k = np.nonzero(schedule.weight[t] != 0)
        w = sp.csr_array((schedule.weight[t, i, k], (i, schedule.neighbor[t, i, k])), shape=(nodes, nodes))
        found.append((w + sp.diags_array(keep[t])).tocsr())
    return found


def _arcs(schedule: Schedule) -> sp.csr_array:
    """Return who sends to whom within the period: 1 at [sender, receiver]."""
    nodes = schedule.neighbor.shape[1]
    at = np.nonzero(schedule.out_weight > 0)
    keys = np.unique(at[1].astype(np.int64) * nodes + schedule.neighbor[at])
    return sp.csr_array((np.ones(len(keys)), (keys // nodes, keys % nodes)), shape=(nodes, nodes))


def _diameter(arcs: sp.csr_array) -> int | None:
    """The most steps a value needs from one node to another; None if it never arrives, or above NEAR nodes."""
    if arcs.shape[0] > NEAR:
        return None
    far = csgraph.shortest_path(arcs, unweighted=True).max()
    return int(far) if np.isfinite(far) else None


# ----------------------------------------------------------------------------------------------------------- in words

D2_LEAST = -1 / 3
SLOW = 200
"""Rounds to FAR beyond which a graph is called slow, ..."""
QUICK = 35
"""... and up to which it is called fast: rho about 1/2."""


def advice(description: dict[str, Any], schedule: Schedule) -> list[str]:
    """Say what a graph is good for, what must not run on it and what it can't bear, a sentence each.

    Args:
        description: of `describe`.
        schedule: [T, n, K] who talks to whom.

    Returns:
        Sentences.

    Example:
        >>> import p2pfl
        >>> ring = p2pfl.topology.plan("ring", 4)
        >>> p2pfl.topology.advice(p2pfl.topology.describe(ring), ring)[0]
        'Fast consensus: 21 rounds until the disagreement is 1e-10 of what it was.'
    """
    of = description
    said = [*_speed(of), *_algorithms(of, schedule), *_deaths(of, schedule)]
    heaviest, mean = of["degree_max"], of["degree_mean"]
    if heaviest >= 4 and heaviest >= 3 * mean:
        hub = int((schedule.out_weight > 0).sum(axis=2).max(axis=0).argmax())
        said.append(
            f"Node {hub} speaks to {heaviest} others in a round, {heaviest / mean:.1f} times the mean: it carries "
            "the load, and the others wait for it."
        )
    return said


def _speed(of: dict[str, Any]) -> list[str]:
    if of["nodes"] == 1:
        return ["One node, nobody to mix with."]
    if of["exact_after_period"]:
        period = of["period"] or 1
        rounds = "one round" if period == 1 else f"{period} rounds"
        what = "the exact mean" if of["doubly_stochastic"] else "the same, a weighted mean or push_sum's quotient"
        return [f"Finite time: after {rounds} all nodes hold {what}."]
    if of["spectral_gap"] <= 0:
        return ["Never agrees: some disagreement between the nodes stays for ever. Use other weights or more edges."]
    needed = math.ceil(math.log(FAR) / math.log(of["rho"]) - CLOSE)
    how = "Slow" if needed > SLOW else "Fast" if needed <= QUICK else "Moderate"
    text = f"{how} consensus: {needed:,} rounds until the disagreement is 1e-10 of what it was."
    return [text + (" base, exponential or random_matching are faster." if how == "Slow" else "")]


def _algorithms(of: dict[str, Any], schedule: Schedule) -> list[str]:
    if of["nodes"] == 1:
        return []
    if not of["symmetric"]:
        said = ["Directed weights: dsgd, gradient_tracking, exact_diffusion, d2 need symmetric weights: use push_sum."]
        if sums(schedule) == "row":
            said.append("Its columns do not sum to one: push_sum needs weights = 'uniform_out'.")
        return said
    share = own(schedule)
    if share.min() < -CLOSE:
        return [
            f"Node {int(share.min(axis=0).argmin())} would keep a negative share of its own value ({share.min():.3g}), "
            "which the algorithms refuse: use weights = 'metropolis'."
        ]
    if of["lambda_min"] is None:
        return [
            "Symmetric, and it changes from round to round, on which d2 diverges (so on base and random_matching): use "
            "exact_diffusion or gradient_tracking. The others may run."
        ]
    if of["lambda_min"] <= D2_LEAST + CLOSE:
        return [
            f"d2 diverges here (lambda_min = {of['lambda_min']:.4g}, it must be > -1/3): use exact_diffusion. The "
            "others may run."
        ]
    return ["Symmetric, lambda_min > -1/3: every algorithm may run here, d2 too."]


def _deaths(of: dict[str, Any], schedule: Schedule) -> list[str]:
    graph = union(schedule)
    cuts = sorted(nx.articulation_points(graph))
    if not cuts:
        return []
    listed = ", ".join(map(str, cuts[:8])) + (", ..." if len(cuts) > 8 else "")
    return [f"One death cuts it in pieces: node{'s' if len(cuts) > 1 else ''} {listed}."]
