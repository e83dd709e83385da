"""The inputs of each stretch of a simulation: its graphs, its samples, and what happens in its rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from p2pfl import churn
from p2pfl.churn.course import Course
from p2pfl.drivers.simulate.compiled import put
from p2pfl.drivers.simulate.layout import tables
from p2pfl.drivers.simulate.plan import EnginePlan
from p2pfl.drivers.simulate.shapes import ROWS, WHOLE, Graph, Rounds, Stretch
from p2pfl.drivers.simulate.simulation import Simulation
from p2pfl.types import Array, Delivery


def deliveries(work: Simulation) -> churn.Deliveries:
    """Return what happens in the rounds of a simulation, to be taken in order."""
    course = work.course
    rows, epoch = (course.row, course.epoch) if course else (None, None)
    return churn.Deliveries(work.events, work.schedule, work.rounds, work.steps, work.conditions, rows, epoch)


class Feed:
    """Makes the stretches of a plan, in order, and counts the messages.

    `x`, `y`: the samples, on the devices; `first`: the place of each node's first one.
    """

    def __init__(self, plan: EnginePlan, x: Array, y: Array, first: np.ndarray) -> None:
        self._plan, self._x, self._y, self._first = plan, x, y, first
        work = plan.work
        self._deliveries = deliveries(work)
        self._ahead = work.ahead()  # [n, V, B]
        self._period = len(work.schedule.neighbor)
        self._turns = np.cumsum(work.schedule.trains, axis=0)  # [T, n] rounds with local steps up to each row
        self._graph = self._placed(None) if self._period <= plan.longest else None
        self.booked = self.planned = 0  # messages

    def take(self, start: int, count: int) -> tuple[Stretch, Delivery]:
        """Return the stretch of `count` rounds from `start` on, without the first model, and what happens in it."""
        work, at, most = self._plan.work, self._plan.shape.layout, self._plan.longest
        delivery = self._deliveries.take(count)
        numbers = np.arange(start, start + most, dtype=np.int32)
        t = self.schedule_rows(numbers)
        graph, row = self._graph, t.astype(np.int32)
        if graph is None:
            graph, row = self._placed(t.tolist()), np.arange(most, dtype=np.int32)
        trains = work.schedule.trains[t].any(axis=1)
        width = self._ahead.shape[1] + self._plan.batching.width
        rows = np.zeros((most, at.places, width, work.batch_size), np.int32)
        for r in range(count):
            if trains[r]:
                taken = np.concatenate([self._ahead, self._samples(start + r)], axis=1)
                rows[r, : at.nodes] = taken + self._first[: at.nodes, None, None]
        planned = self._count(t[:count], delivery)

        def over(array: np.ndarray, used: bool) -> Any:
            if not used:
                return None
            filled = np.zeros((most, *array.shape[1:]), array.dtype)
            filled[:count] = array
            return put(self._plan.mesh, ROWS, at.padded(filled, axis=1))

        neighbor = np.maximum(work.schedule.neighbor[t[:count]], 0)
        everyone = delivery.active[np.arange(count)[:, None, None], neighbor] if work.drawn else planned
        rounds = Rounds(
            number=put(self._plan.mesh, WHOLE, numbers),
            row=put(self._plan.mesh, WHOLE, row),
            trains=put(self._plan.mesh, WHOLE, trains),
            rows=put(self._plan.mesh, ROWS, rows),
            steps=over(delivery.steps, work.ragged),
            active=over(delivery.active, bool(work.events)),
            arrived=over(delivery.arrived, work.drawn),
            age=over(delivery.age, bool(work.late)),
            present=over(everyone, bool(work.events)),
            **(self._changes(work.course, start, count, over) if work.course else {}),
        )
        return Stretch(np.int32(count), graph, rounds, self._x, self._y, np.uint32(work.seed)), delivery

    def skip(self, rounds: int) -> None:
        """Leave out the first rounds, which an earlier process has computed; their messages are counted."""
        most = self._plan.longest
        for start in range(1, rounds + 1, most):
            count = min(most, rounds + 1 - start)
            self._count(self.schedule_rows(np.arange(start, start + count)), self._deliveries.take(count))

    def _count(self, t: np.ndarray, delivery: Delivery) -> np.ndarray:
        """[R, n, K] what is planned in these rows of the schedule; counted, with what is booked."""
        planned = self._plan.work.schedule.weight[t] > 0
        self.planned += int(planned.sum())
        self.booked += int(delivery.arrived.sum())
        return np.asarray(planned)

    def schedule_rows(self, numbers: np.ndarray) -> np.ndarray:
        """Return the rows of the schedule that these rounds use."""
        if self._plan.work.course is None:
            return (numbers - 1) % self._period
        return self._plan.work.course.row[np.minimum(numbers, self._plan.work.rounds) - 1]

    def _placed(self, rows: Sequence[int] | None) -> Graph:
        """The graphs of these rows of the schedule, of all for None, on the devices."""
        parts = tables(self._plan.work.schedule, self._plan.shape.layout, rows, self._plan.exports)
        return Graph(*(put(self._plan.mesh, ROWS, part) for part in parts[1:]))

    def _samples(self, round: int) -> np.ndarray:
        """[n, S, B] the samples of a round; each node counts its own turns."""
        work, batching = self._plan.work, self._plan.batching
        if work.course is None:
            whole, rest = divmod(round - 1, self._period)
            turn = whole * self._turns[-1] + self._turns[rest]
        else:
            turn = np.where(work.course.timeline.active[round - 1], work.course.turn[round - 1], 0)
        first, *more = np.unique(turn[turn > 0]).tolist() or [1]
        result = batching.indices(first)
        for each in more:
            result = np.where((turn == each)[:, None, None], batching.indices(each), result)
        return result

    def _changes(self, course: Course, start: int, count: int, over: Callable[..., Any]) -> dict[str, Any]:
        """Return what the membership does in these rounds."""
        result = {"enters": over(course.enters[start - 1 : start - 1 + count], self._plan.shape.restarts)}
        if self._plan.shape.back:
            back = np.full((self._plan.longest, self._plan.shape.back), -1, np.int32)
            donor = back.copy()
            for r in range(count):
                ids = np.flatnonzero(course.timeline.fresh[start - 1 + r])
                back[r, : len(ids)], donor[r, : len(ids)] = ids, course.donor[start - 1 + r, ids]
            result["back"] = put(self._plan.mesh, WHOLE, back)
            result["donor"] = put(self._plan.mesh, WHOLE, donor)
        return result
