"""The input of a simulation and its outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl import churn
from p2pfl.churn.course import Course
from p2pfl.learning.batching import in_batches
from p2pfl.learning.local_steps import placed
from p2pfl.types import Algorithm, Array, Key, Learner, Metrics, Params, Schedule, State, Steps, Tree


class Simulation(NamedTuple):
    """All that is to be simulated."""

    algorithm: Algorithm
    learner: Learner
    over: Callable[[Array, Array], Algorithm]  # (x, y) -> the same, whose batches are numbers of rows of x and y
    schedule: Schedule
    seed: int
    rounds: int
    x: np.ndarray  # training rows of all nodes
    y: np.ndarray
    rows: Sequence[np.ndarray]  # of each node
    steps: np.ndarray  # [n]
    batch_size: int
    test_x: np.ndarray
    test_y: np.ndarray
    owner: np.ndarray  # [test rows] the node that a test row is the own of; -1: nobody's
    evaluate_every: int
    events: tuple[churn.Event, ...]
    conditions: churn.Conditions
    sites: Tree  # [n, ...] what each node knows of its own data, where it is asked for
    course: Course | None = None  # of the events; its schedule is then `schedule`
    held: np.ndarray | None = None  # [n] the last so many rows of each node are validation rows, which go before a
    # round's
    part: float = 1.0  # share of the nodes that takes part in a round
    used: np.ndarray | None = None  # [n] rows of each node that a pass over them uses; None: all
    unscored: frozenset[int] = frozenset()  # nodes that no figure is of

    @property
    def scored(self) -> np.ndarray:
        """[n] bool: the nodes that figures are of."""
        return ~np.isin(np.arange(len(self.rows)), [*self.unscored])

    @property
    def sizes(self) -> np.ndarray:
        """[n] training rows of each node."""
        rows = np.array([len(each) for each in self.rows], np.int64)
        return rows if self.held is None else rows - self.held

    def ahead(self) -> np.ndarray:
        """[n, V, B] the places of the validation rows among the rows of each node, in batches."""
        if self.held is None:
            return np.zeros((len(self.rows), 0, self.batch_size), np.int64)
        places = in_batches(self.held, self.batch_size)
        return np.minimum(
            places + self.sizes.reshape(-1, 1, 1), np.maximum(self.sizes + self.held - 1, 0).reshape(-1, 1, 1)
        )

    @property
    def late(self) -> int:
        """The rounds by which an exchange may be late."""
        return self.conditions.late

    @property
    def drawn(self) -> bool:
        """Return whether anything keeps messages from arriving at once."""
        return bool(self.conditions.loss or self.events or self.late)

    @property
    def ragged(self) -> bool:
        """Return whether nodes take different numbers of local steps in a round."""
        trains = self.schedule.trains
        uneven = bool((trains.any(axis=1) != trains.all(axis=1)).any())
        return bool(self.events) or bool(np.ptp(self.steps)) or uneven

    def first(self, key: Key) -> Params:
        """The first model of node 0."""
        return placed(self.learner.init(key), jax.tree.map(lambda rows: jnp.asarray(rows[0]), self.sites))


def make_work(*, owner: Sequence[int], **parts: Any) -> Simulation:
    """Work from its parts by name."""
    return Simulation(owner=np.asarray(owner, np.int32), **parts)


def by_step(make: Callable[[Learner], Algorithm], learner: Learner) -> Callable[[Array, Array], Algorithm]:
    """`Simulation.over` of a maker: rows are looked up step by step, while they are in cache."""

    def over(x: Array, y: Array) -> Algorithm:
        def grad(params: Params, rows: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
            return learner.grad(params, {"x": x[rows], "y": y[rows]}, key)

        def evaluate(params: Params, rows: Tree, mask: Array) -> Metrics:
            return learner.evaluate(params, {"x": x[rows], "y": y[rows]}, mask)

        return make(learner._replace(grad=grad, evaluate=evaluate))

    return over


def by_round(algorithm: Algorithm) -> Callable[[Array, Array], Algorithm]:
    """`Simulation.over` of an algorithm that is made already: rows of a round's steps are looked up at once."""

    def over(x: Array, y: Array) -> Algorithm:
        def local(state: State, rows: Tree, key: Key, steps: Steps | None) -> tuple[State, Metrics]:
            return algorithm.local(state, {"x": x[rows], "y": y[rows]}, key, steps)

        return algorithm._replace(local=local)

    return over


class How(NamedTuple):
    """The way it is simulated; changes nothing but speed."""

    chunk: int | None = None  # None: by measurement
    devices: int | None = None  # None: all there are
    measure: bool = True  # where chunk is None and the simulation is long enough to be worth it


class Evaluated(NamedTuple):
    """All nodes at the end of a round; [n] arrays."""

    round: int
    active: np.ndarray
    train_loss: np.ndarray
    score: np.ndarray | None  # after mixing, on the test rows of all
    score_own: np.ndarray | None  # ... on each node's own
    score_before: np.ndarray | None  # before mixing
    consensus_distance: float
    arrived: np.ndarray  # [n, K]
    neighbor: np.ndarray  # [n, K] of the round's graph


class Outcome(NamedTuple):
    """The result of a simulation."""

    models: Params  # [n, ...] numpy
    drift: float  # root mean square, per scalar, of how far mixing moved the mean of the mass
    booked: int  # messages that were mixed
    planned: int  # ... that would have been, had nothing been lost and nobody been away
    seconds_first: float  # until the first round was done: planning, measuring and compiling
    seconds: float  # of all rounds after the first stretch
    rounds_timed: int
    steps_taken: int  # local steps in those rounds
    chunk: int
    devices: int
    mixing: str
    measured: dict[int, float]
    diverged: np.ndarray  # [n] int64 the round from which on a node's training loss, or model, is not finite; 0: it is
    rounds: int  # that were made
    spent: float | None = None  # seconds of processors in a round, of those that this process has timed


Progress = Callable[[int, list[Evaluated]], None]
"""Takes the last round that is done, and what was evaluated since the last call."""
Look = Callable[[Evaluated, Callable[[], Params]], bool]
"""Takes what was evaluated after a round, and what gives the models of then, numpy [n, ...]; whether to end there."""
