"""What is refused in a simulation, since a payload holds NaN or infinity, and which nodes have diverged."""

from __future__ import annotations

import jax
import numpy as np

from p2pfl import tree
from p2pfl.topology import reverse
from p2pfl.types import Algorithm, Delivery, Params, Schedule


class Voids:
    """Follows the rounds of a simulation. `messages`: those that were to be mixed, and were not.

    `before`: whether payloads were finite, in the latest `late` rounds.
    """

    def __init__(self, algorithm: Algorithm, schedule: Schedule, late: int) -> None:
        self._algorithm, self._schedule, self._late = algorithm, schedule, late
        self.before: list[np.ndarray] = []
        self.messages = 0

    def arrived(self, delivery: Delivery, rows: np.ndarray, finite: np.ndarray) -> np.ndarray:
        """[R, n, K] what was mixed in these rounds; what the compiled program has computed, for the records.

        `rows` [R]: of the schedule. `finite` [R, n] bool, [R, n, K] where a payload has a part for each slot.
        """
        known = [*self.before, *finite]
        self.before = known[len(known) - self._late :]
        if all(each.all() for each in known):
            return delivery.arrived
        first = len(known) - len(finite)
        accepted = np.stack(
            [self._accepted(known, first + r, delivery.age[r], int(rows[r])) for r in range(len(finite))]
        )
        self.messages += int((delivery.arrived & ~accepted).sum())
        return np.asarray(delivery.arrived & accepted)

    def _accepted(self, known: list[np.ndarray], now: int, age: np.ndarray, row: int) -> np.ndarray:
        """[n, K] of the round at this place of `known`."""
        schedule = Schedule(*(part[row : row + 1] for part in self._schedule))
        neighbor, per_edge = np.maximum(schedule.neighbor[0], 0), self._algorithm.per_edge
        me, slot = np.arange(neighbor.shape[0])[:, None], np.arange(neighbor.shape[1])[None]
        other = np.maximum(reverse(schedule)[0], 0)
        result = np.ones(neighbor.shape, bool)
        for late in np.unique(age).tolist():
            finite = known[max(now - late, 0)]
            whole = finite[neighbor, other] if per_edge else finite[neighbor]
            if self._algorithm.link == "exchange":
                whole = whole & (finite[me, slot] if per_edge else finite[me])
            result = np.where(age == late, whole, result)
        return result


class Divergence:
    """The round from which on a node's training loss is not finite.

    A node whose loss is finite again, since it has begun anew with a neighbour's model, has not diverged.
    """

    def __init__(self, nodes: int) -> None:
        self.since = np.zeros(nodes, np.int64)  # 0: it is finite

    def read(self, first: int, loss: np.ndarray, steps: np.ndarray) -> None:
        """Take in the rounds from `first` on: loss [R, n], local steps [R, n]."""
        wrong = ~np.isfinite(loss)
        if not wrong.any() and not self.since.any():
            return
        for r in range(len(loss)):
            since = np.where(self.since > 0, self.since, first + r)
            self.since = np.where(steps[r] > 0, np.where(wrong[r], since, 0), self.since)

    def judged(self, models: Params, last: int) -> np.ndarray:
        """[n] int64 the same, and of a node whose model [n, ...] alone is not finite after round `last` that round."""
        if tree.finite(models):
            return self.since
        parts = [jax.tree.map(lambda leaf, i=i: leaf[i], models) for i in range(len(self.since))]
        return np.where(self.since + np.array([tree.finite(part) for part in parts]) > 0, self.since, last)
