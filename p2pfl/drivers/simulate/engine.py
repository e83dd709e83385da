"""Runs a federation on arrays: all nodes at once, over all devices, stretch of rounds by stretch of rounds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from p2pfl import churn, tree
from p2pfl.churn.course import Course
from p2pfl.drivers.simulate import autotune, compiled
from p2pfl.drivers.simulate import shapes as shape
from p2pfl.drivers.simulate.compiled import fetch
from p2pfl.drivers.simulate.evaluation import Testing
from p2pfl.drivers.simulate.layout import NodeLayout, exported, layout, samples, tables
from p2pfl.drivers.simulate.simulation import How, Outcome, Progress, Simulation
from p2pfl.learning.batching import Batching
from p2pfl.types import Schedule

_INPUT = 1 << 26
"""Bytes of sample indices that a stretch is given at most."""
_STRETCH = 0.5
"""Seconds that a stretch should take, so that progress is seen."""
_LONGEST = 256
_WORTH = 50_000
"""Local steps of a whole simulation from which on it is worth a second to measure how many nodes to compute at once."""
_CACHE = _MIXED = 1 << 21
_KEPT = 1 << 29
"""Bytes of models from before mixing that are kept for evaluation."""


def deliveries(work: Simulation) -> churn.Deliveries:
    """What happens in the rounds of a simulation."""
    course = work.course
    rows, epoch = (course.row, course.epoch) if course else (None, None)
    return churn.Deliveries(work.events, work.schedule, work.rounds, work.steps, work.conditions, rows, epoch)


def run(work: Simulation, how: How, progress: Progress, now: Callable[[], float]) -> Outcome:
    """Simulate. Raises ConfigError when it does not fit into memory."""
    return _Engine(work, how, now).run(progress)


class _Engine:
    def __init__(self, work: Simulation, how: How, now: Callable[[], float]) -> None:
        self.work, self.now, self.began = work, now, now()
        devices = jax.devices()[: how.devices]
        nodes, slots = work.schedule.neighbor.shape[1:]
        self.drawn = bool(work.conditions.loss or work.events or work.conditions.late)
        self.late = work.conditions.late
        self.ragged = bool(work.events) or bool(np.ptp(work.steps)) or _uneven(work.schedule)
        mixing = autotune.mixing(work.algorithm, work.schedule, self.drawn, bool(self.late))
        params = jax.eval_shape(work.first, jax.random.key(0))
        back = int(work.course.timeline.fresh.sum(axis=1).max()) if work.course else 0
        self.keep = back > 0 or nodes * tree.nbytes(params) <= _KEPT
        needs = autotune.memory(work.algorithm, params, slots, nodes, mixing, self.late, self.keep)
        autotune.fits(*needs, nodes, autotune.free_memory(devices), jax.process_count())
        self.measured: dict[int, float] = {}
        at_once = how.chunk or self._guess(params)
        most = -(-nodes // len(devices))
        if how.chunk is None and how.measure and most > 1 and nodes * work.rounds * int(work.steps.max()) >= _WORTH:
            at_once, self.measured = self._choose(slots, most)
        self.alone = jax.process_count() == 1
        if not self.alone:  # all hosts must run one program, whatever each has measured
            at_once = int(multihost_utils.broadcast_one_to_all(np.int32(at_once)))
        at = layout(nodes, len(devices), at_once)
        self.mesh = Mesh(np.array(devices[: at.devices]), (shape.AXIS,))
        width = max((len(part) for row in exported(work.schedule, at) for part in row), default=0)
        halo = at.devices > 1 and 2 * width <= at.size
        self.exports = width
        self.shape = shape.Shape(
            layout=at,
            slots=slots,
            halo=halo,
            exports=width if halo else 0,
            mixed=_mixed(at, tree.nbytes(params)),
            mixing=mixing,
            ages=self.late,
            keep=self.keep,
            resting=not work.schedule.trains.any(axis=1).all(),
            seed=work.seed,
            restarts=work.course is not None and bool(work.course.enters.any()),
            back=back,
        )
        self._place_data(at)
        self.deliveries = deliveries(work)
        self.batching = Batching(
            work.seed, np.arange(nodes), np.array([max(len(r), 1) for r in work.rows]), work.steps, work.batch_size
        )
        each = nodes * self.batching.width * work.batch_size * 4 + nodes * slots * 6 * self.drawn
        self.most = max(1, min(_INPUT // max(each, 1), _LONGEST, work.rounds, max(self._gaps())))
        self.period = len(work.schedule.neighbor)
        self.turns = np.cumsum(work.schedule.trains.any(axis=1))  # rounds with local steps up to each row
        self.stretch = compiled.compile_stretch(work.make, work.learner, self.shape, self.mesh)
        whole = self.period <= self.most
        self.graph = self._graph(None) if whole else None
        self.booked = self.planned = 0
        self.pace = 1 if self.alone else self.most  # rounds that a stretch is to have

    def _guess(self, params: Any) -> int:
        """Without measuring: images one node at a time, anything else as many nodes as stay in a core's cache."""
        if self.work.learner.unroll or self.work.x.ndim > 2:
            return 1
        return max(1, min(8, _CACHE // max(3 * tree.nbytes(params), 1)))

    def _choose(self, slots: int, most: int) -> tuple[int, dict[int, float]]:
        work = self.work
        first = work.rows[0][:1] if len(work.rows[0]) else np.zeros(1, np.int64)
        rows = np.broadcast_to(first, (int(work.steps.max()), work.batch_size))
        batches = {"x": jnp.asarray(work.x[rows]), "y": jnp.asarray(work.y[rows])}
        found = autotune.chunk(work.algorithm, work.first(jax.random.key(0)), slots, batches, most, self.now)
        return found.chunk, found.seconds

    def _place_data(self, at: NodeLayout) -> None:
        work = self.work
        index, first = samples(work.rows, at)
        self.first = first
        self.x = compiled.put(self.mesh, shape.OVER, work.x[index])
        self.y = compiled.put(self.mesh, shape.OVER, work.y[index])
        self.test = None
        if len(work.test_y):
            mask = np.ones(len(work.test_y), np.float32)
            parts = (work.test_x, work.test_y, mask, work.owner.astype(np.int32))
            self.test = tuple(compiled.put(self.mesh, shape.WHOLE, part) for part in parts)

    def _graph(self, rows: Sequence[int] | None) -> shape.Graph:
        found = tables(self.work.schedule, self.shape.layout, rows, self.exports)
        return shape.Graph(*(compiled.put(self.mesh, shape.ROWS, part) for part in found[1:]))

    def _sites(self) -> Any:
        """What each node knows of its own data, over the devices."""
        at = self.shape.layout
        return jax.tree.map(lambda rows: compiled.put(self.mesh, shape.OVER, at.padded(rows)), self.work.sites)

    # --- rounds

    def _gaps(self) -> list[int]:
        stops = [0, *self._stops()]
        return [after - before for before, after in itertools.pairwise(stops)]

    def _stops(self) -> list[int]:
        """Rounds after which something has to be done."""
        return [r for r in range(1, self.work.rounds + 1) if self._tested(r)]

    def _tested(self, round: int) -> bool:
        return round % self.work.evaluate_every == 0 or round == self.work.rounds

    def _stretches(self) -> Iterator[tuple[int, int]]:
        """(first round, number of rounds), cut at stops."""
        done = 0
        for stop in self._stops():
            while done < stop:
                count = min(stop - done, self.most, self.pace)
                yield done + 1, count
                done += count

    def run(self, progress: Progress) -> Outcome:
        work, shape = self.work, self.shape
        carry = compiled.compile_init(work.algorithm, work.learner, shape, self.mesh)(self._sites())
        testing = Testing(work, shape, self.mesh)
        first_model = compiled.first_model(self.mesh, carry.models) if shape.back else None
        first, begun, timed, steps, seconds = 0.0, 0.0, 0, 0, 0.0
        waiting: list[tuple[int, Any, Any]] = []
        for start, count in self._stretches():
            graph, rounds, delivery = self._inputs(start, count)
            carry, loss = self.stretch(carry, np.int32(count), graph, rounds, self.x, self.y, first_model)
            last = start + count - 1
            if last == work.rounds and begun:  # the last test may have to be compiled: that is no part of the rounds
                jax.block_until_ready(loss)
                seconds = self.now() - begun
            there = delivery.active[-1] if work.course else None
            tested = testing.start(carry, self.test, there) if self._tested(last) else None
            if begun:
                timed, steps = timed + count, steps + int(delivery.steps.sum())
            waiting.append((last, (loss, count, delivery), tested))
            if len(waiting) > 1 or not begun:
                self._tell(waiting.pop(0), progress, testing)
            if not begun:
                jax.block_until_ready(carry)
                begun = self.now()
                first = begun - self.began
            elif timed and self.alone:
                self.pace = max(1, min(self.most, 8 * self.pace, int(_STRETCH * timed / max(self.now() - begun, 1e-6))))
        for item in waiting:
            self._tell(item, progress, testing)
        models = jax.jit(jax.vmap(work.algorithm.params))(carry.state)
        nodes = shape.layout.nodes
        found = jax.tree.map(lambda leaf: fetch(leaf)[:nodes], models)
        drift = [np.asarray(fetch(leaf), np.float64).sum(axis=0).ravel() for leaf in jax.tree.leaves(carry.drift)]
        vectors = np.concatenate(drift)
        residual = float(np.linalg.norm(vectors)) / nodes / max(vectors.size, 1) ** 0.5
        return Outcome(
            found, residual, self.booked, self.planned, first, seconds, timed, steps, shape.layout.chunk,
            shape.layout.devices, shape.mixing, self.measured,
        )  # fmt: skip

    def _inputs(self, start: int, count: int) -> tuple[shape.Graph, shape.Rounds, Any]:
        """Everything that a stretch is given, for `most` rounds of which `count` are real."""
        work, at, most = self.work, self.shape.layout, self.most
        delivery = self.deliveries.take(count)
        numbers = np.arange(start, start + most, dtype=np.int32)
        t = self._graph_rows(numbers)
        graph, row = self.graph, t.astype(np.int32)
        if graph is None:
            graph, row = self._graph(t.tolist()), np.arange(most, dtype=np.int32)
        trains = work.schedule.trains[t].any(axis=1)
        rows = np.zeros((most, at.places, self.batching.width, work.batch_size), np.int32)
        for r in range(count):
            if trains[r]:
                rows[r, : at.nodes] = self._samples(start + r) + self.first[: at.nodes, None, None]
        planned = work.schedule.weight[t[:count]] > 0
        self.planned += int(planned.sum())
        self.booked += int(delivery.arrived.sum())

        def over(array: np.ndarray, wanted: bool) -> Any:
            if not wanted:
                return None
            filled = np.zeros((most, *array.shape[1:]), array.dtype)
            filled[:count] = array
            return compiled.put(self.mesh, shape.ROWS, at.padded(filled, axis=1))

        neighbor = np.maximum(work.schedule.neighbor[t[:count]], 0)
        everyone = delivery.active[np.arange(count)[:, None, None], neighbor] if self.drawn else planned
        rounds = shape.Rounds(
            number=compiled.put(self.mesh, shape.WHOLE, numbers),
            row=compiled.put(self.mesh, shape.WHOLE, row),
            trains=compiled.put(self.mesh, shape.WHOLE, trains),
            rows=compiled.put(self.mesh, shape.ROWS, rows),
            steps=over(delivery.steps, self.ragged),
            active=over(delivery.active, bool(work.events)),
            arrived=over(delivery.arrived, self.drawn),
            age=over(delivery.age, bool(self.late)),
            speaks=over(everyone, bool(work.events)),
            **(self._turned(work.course, start, count, over) if work.course else {}),
        )
        return graph, rounds, delivery

    def _graph_rows(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of the schedule that these rounds use."""
        if self.work.course is None:
            return (numbers - 1) % self.period
        return self.work.course.row[np.minimum(numbers, self.work.rounds) - 1]

    def _samples(self, round: int) -> np.ndarray:
        """[n, S, B] the samples of a round; each node counts its own turns where there are epochs."""
        work = self.work
        if work.course is None:
            whole, rest = divmod(round - 1, self.period)
            return self.batching.indices(int(whole * self.turns[-1] + self.turns[rest]))
        turn = np.where(work.course.timeline.active[round - 1], work.course.turn[round - 1], 0)
        found = np.zeros((len(turn), self.batching.width, work.batch_size), np.int64)
        for each in np.unique(turn[turn > 0]).tolist():
            found[turn == each] = self.batching.indices(each)[turn == each]
        return found

    def _turned(self, course: Course, start: int, count: int, over: Callable[..., Any]) -> dict[str, Any]:
        """What the membership does in these rounds."""
        found = {"enters": over(course.enters[start - 1 : start - 1 + count], self.shape.restarts)}
        if self.shape.back:
            back = np.full((self.most, self.shape.back), -1, np.int32)
            donor = back.copy()
            for r in range(count):
                ids = np.flatnonzero(course.timeline.fresh[start - 1 + r])
                back[r, : len(ids)], donor[r, : len(ids)] = ids, course.donor[start - 1 + r, ids]
            found["back"] = compiled.put(self.mesh, shape.WHOLE, back)
            found["donor"] = compiled.put(self.mesh, shape.WHOLE, donor)
        return found

    def _tell(self, item: tuple[int, Any, Any], progress: Progress, testing: Testing) -> None:
        last, (loss, count, delivery), tested = item
        if tested is None:
            progress(last, [])
            return
        nodes = self.shape.layout.nodes
        losses = fetch(loss, axis=1)[count - 1, :nodes]
        neighbor = self.work.schedule.neighbor[self._graph_rows(np.array([last]))[0]]
        progress(last, [testing.finish(last, delivery.active[-1], losses, delivery.arrived[-1], neighbor, tested)])


def _mixed(at: NodeLayout, nbytes: int) -> int:
    """Nodes to mix at once: as many chunks of training as make a few megabytes, since each node costs little."""
    chunks = at.size // at.chunk
    most = max(1, _MIXED // max(nbytes * at.chunk, 1))
    return at.chunk * max(count for count in range(1, chunks + 1) if chunks % count == 0 and count <= most)


def _uneven(schedule: Schedule) -> bool:
    """Whether there are rounds in which some nodes train and others do not."""
    return bool((schedule.trains.any(axis=1) != schedule.trains.all(axis=1)).any())
