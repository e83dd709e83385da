"""What a node trains on and with: all that a driver needs to know of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from p2pfl.batching import Batching
from p2pfl.program import EvalSet, Program
from p2pfl.types import State


class Task(NamedTuple):
    """What a node trains on and with; nothing of the network."""

    node: int
    neighbors: tuple[int, ...]  # ascending; slot k belongs to neighbors[k]
    weight: Callable[[int, int], float]  # of an exchange, from the degrees of its two ends
    program: Program
    seed: int
    rounds: int
    x: np.ndarray  # the node's own training rows
    y: np.ndarray
    batching: Batching
    test: EvalSet
    own: np.ndarray  # the test rows that are this node's own
    pooled: bool  # the test rows are those of all nodes, not only its own
    evaluate_every: int
    crashes: frozenset[int] = frozenset()  # rounds at whose beginning the node kills itself
    leaves: frozenset[int] = frozenset()
    rejoins: frozenset[int] = frozenset()  # rounds from which on a later life of the node takes part


Accuracy = tuple[float | None, float | None]
"""On the pooled test rows, and on the node's own; None where there are none."""


def evaluated(task: Task, state: State, round: int) -> Accuracy | None:
    """The accuracy of a node's model, or None in a round that is not evaluated."""
    if round % task.evaluate_every and round != task.rounds:
        return None
    correct, _ = task.program.evaluate(state, task.test)
    own = float(correct[task.own].mean()) if len(task.own) else None
    return (float(correct.mean()) if task.pooled else None), own
