"""Check that a schedule gives an algorithm what it asks for, before anything starts."""

from __future__ import annotations

import numpy as np

from p2pfl.errors import TopologyError
from p2pfl.topology import eigen
from p2pfl.topology.spectral import operators
from p2pfl.types import Algorithm, Schedule

_ROUNDING = 1e-9

_WORDS = {
    "symmetric": (
        "needs symmetric weights whose rows sum to one, none of them negative, so that both ends of an exchange add "
        "opposite amounts",
        'Use an undirected graph with weights = "metropolis", or push_sum, which runs on directed ones',
    ),
    "column": ("needs column-stochastic weights", 'Use weights = "uniform_out"'),
    "row": ("needs weights whose rows sum to one", 'Use weights = "metropolis"'),
}


def short(algorithm: Algorithm, schedule: Schedule) -> np.ndarray:
    """[T, n] whether a node mixes in that round, and has fewer models to mix than the algorithm asks for."""
    heard = (schedule.weight > 0).sum(axis=2)
    return np.asarray((heard > 0) & (heard + 1 < algorithm.demands.models))


def check(algorithm: Algorithm, schedule: Schedule, where: str) -> None:
    """Raises TopologyError when the weights are not what the algorithm asks for; `where` names the graph."""
    asked = algorithm.demands
    weight, out = schedule.weight, schedule.out_weight
    if (weight < 0).any() or (out < 0).any():
        raise TopologyError(f"{where}: a weight is negative; weights must be >= 0. Use weights = 'metropolis'")
    fits = {
        "symmetric": np.abs(weight - out).max(initial=0) <= _ROUNDING and weight.sum(axis=2).max() <= 1 + _ROUNDING,
        "column": out.sum(axis=2).max() <= 1 + _ROUNDING,
        "row": weight.sum(axis=2).max() <= 1 + _ROUNDING,
        "any": True,
    }
    if not fits[asked.weights]:
        rule, way = _WORDS[asked.weights]
        raise TopologyError(f"{algorithm.name}: {where} does not fit; {algorithm.name} {rule}. {way}")
    few = short(algorithm, schedule)
    if few.any():
        t, node = np.argwhere(few)[0]
        when, heard = f" in round {t + 1}" if len(weight) > 1 else "", int((weight[t, node] > 0).sum())
        raise TopologyError(
            f"{asked.rule}: needs {asked.models} models, a node's own among them, and in {where} node {node} has "
            f"{heard + 1}{when}, with those of its {heard} neighbours. Use a denser graph, or expect fewer liars"
        )
    if asked.above is not None:
        if len(weight) > 1:  # its modes are those of one W; on changing ones it diverges even where each is safe
            raise TopologyError(f"{algorithm.name}: {where} changes from round to round; {asked.why}")
        least = eigen.least(operators(schedule)[0])
        if least <= asked.above + _ROUNDING:
            raise TopologyError(f"{algorithm.name}: {where} has lambda_min = {least:.4f}; {asked.why}")
