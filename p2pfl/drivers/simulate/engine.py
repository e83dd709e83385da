"""Runs a federation on arrays: all nodes at once, over all devices, stretch of rounds by stretch of rounds.

In three steps: `plan` decides how, a value; `compile` places the data and makes the functions; the last one runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from p2pfl.drivers.simulate import compiled
from p2pfl.drivers.simulate import shapes as shape
from p2pfl.drivers.simulate.compiled import fetch
from p2pfl.drivers.simulate.evaluation import Testing
from p2pfl.drivers.simulate.feed import Feed
from p2pfl.drivers.simulate.keeping import Keeper, KeptSimulation, Timed
from p2pfl.drivers.simulate.layout import samples
from p2pfl.drivers.simulate.plan import Clock, EnginePlan, plan, stops, tested_in
from p2pfl.drivers.simulate.simulation import Evaluated, How, Look, Outcome, Progress, Simulation
from p2pfl.drivers.simulate.voids import Divergence, Voids
from p2pfl.types import Delivery, Params

_STRETCH = 0.5
"""Seconds that a stretch should take, so that progress is seen."""


class CompiledSimulation(NamedTuple):
    """The compiled programs and placed arrays of a plan."""

    plan: EnginePlan
    feed: Feed
    init: Callable[[Any, Any], shape.Carry]
    stretch: Callable[[shape.Carry, shape.Stretch], tuple[shape.Carry, Any, Any]]
    testing: Testing
    test: Any  # rows, on the devices; None without
    models: Callable[[Any], Params]  # of all states


class _Judged(NamedTuple):
    """What is found out about numbers that are not finite."""

    voids: Voids
    divergence: Divergence
    last: list[Evaluated]  # the latest evaluation alone


def run(
    work: Simulation, how: How, progress: Progress, now: Clock, look: Look | None = None, keeper: Keeper | None = None,
    spent: Clock | None = None,
) -> Outcome:  # fmt: skip
    """Simulate. Raises ConfigError when it does not fit into memory.

    `look`: no round is begun before it has seen the one before; without it, the next rounds are under way meanwhile.
    `keeper`: keeps it, and knows where to go on where an earlier process has ended. `spent`: a clock of what processors
    do for this process.
    """
    began = now()
    how = how if keeper is None else keeper.chosen(how)
    return _run(compile(plan(work, how, now)), progress, _Stopwatch(began, now, spent), look, keeper)


# --- compiling


def compile(plan: EnginePlan) -> CompiledSimulation:
    """Place the data on the devices and make the functions; XLA compiles them at their first use."""
    work, mesh = plan.work, plan.mesh
    index, first = samples(work.rows, plan.shape.layout)
    x, y = (compiled.put(mesh, shape.OVER, part[index]) for part in (work.x, work.y))
    test = None
    if len(work.test_y):
        mask = np.ones(len(work.test_y), np.float32)
        parts = (work.test_x, work.test_y, mask, work.owner.astype(np.int32))
        test = tuple(compiled.put(mesh, shape.WHOLE, part) for part in parts)
    return CompiledSimulation(
        plan=plan,
        feed=Feed(plan, x, y, first),
        init=compiled.compile_init(work.algorithm, work.learner, plan.shape, mesh),
        stretch=compiled.compile_stretch(work.over, plan.shape, mesh),
        testing=Testing(work, plan.shape, mesh),
        test=test,
        models=jax.jit(jax.vmap(work.algorithm.params)),
    )


# --- running


class _Stopwatch:
    """Times the rounds after the first stretch, and says how many the next stretch is to have."""

    def __init__(self, began: float, now: Clock, spent: Clock | None) -> None:
        self._created, self._now, self._spent = began, now, spent
        self.begun = 0.0  # when the first stretch was done
        self.first = self.seconds = 0.0  # until then; from then on
        self.rounds = self.steps = 0
        self.pace = 1
        self._at = self._worked = 0.0  # the other clock: when the first stretch was done; since then
        self.earlier = Timed()  # processes

    def begin(self) -> None:
        """The first stretch is done."""
        self.begun, self._at = self._now(), self._spent() if self._spent else 0.0
        self.first = self.begun - self._created

    def stop(self) -> None:
        """The rounds are done, but for the last test."""
        self.seconds, self._worked = self._now() - self.begun, self._spent() - self._at if self._spent else 0.0

    @property
    def spent(self) -> float | None:
        """The seconds of processors in a round, of those that this process has timed."""
        return self._worked / self.rounds if self._spent and self.rounds else None

    @property
    def timed(self) -> Timed:
        """The time of all rounds up to now, by all processes."""
        before, seconds = self.earlier, self.seconds or (self._now() - self.begun if self.begun else 0.0)
        first = before.first or self.first
        return Timed(first, before.seconds + seconds, before.rounds + self.rounds, before.steps + self.steps)

    def leave_out(self, seconds: float) -> None:
        """So long it did something else."""
        self.begun += seconds

    def adapt(self, longest: int) -> None:
        """Let the next stretch take about `_STRETCH` seconds."""
        took = max(self._now() - self.begun, 1e-6)
        self.pace = max(1, min(longest, 8 * self.pace, int(_STRETCH * self.rounds / took)))


def _stretches(plan: EnginePlan, watch: _Stopwatch, done: int) -> Iterator[tuple[int, int]]:
    """(first round, number of rounds), cut at stops. `done`: rounds of an earlier process."""
    for stop in stops(plan.work):
        while done < stop:
            count = min(stop - done, plan.longest, watch.pace)
            yield done + 1, count
            done += count


def _resumed(
    program: CompiledSimulation, carry: shape.Carry, judged: _Judged, watch: _Stopwatch, keeper: Keeper | None
) -> tuple[int, shape.Carry]:
    """The round after which an earlier process was, and what it had then; 0 and this carry where there was none."""
    work = program.plan.work
    kept = keeper.load(program.plan.shape, carry, work.rounds, work.late) if keeper is not None else None
    if kept is None:
        return 0, carry
    program.feed.skip(kept.round)
    judged.voids.before, judged.voids.messages = kept.before, kept.voided
    judged.divergence.since, watch.earlier = kept.since, kept.timed
    judged.last[:] = [kept.last] if kept.last else []
    return kept.round, kept.carry


def _keep(
    program: CompiledSimulation, carry: shape.Carry, judged: _Judged, watch: _Stopwatch, round: int
) -> KeptSimulation:
    """All that is to be kept after a round."""
    voids, last = judged.voids, judged.last[0] if judged.last else None
    return KeptSimulation(round, carry, judged.divergence.since, voids.before, voids.messages, last, watch.timed)


def _run(
    program: CompiledSimulation, progress: Progress, watch: _Stopwatch, look: Look | None, keeper: Keeper | None
) -> Outcome:
    plan, feed = program.plan, program.feed
    work, at, alone = plan.work, plan.shape.layout, jax.process_count() == 1
    sites = jax.tree.map(lambda rows: compiled.put(plan.mesh, shape.OVER, at.padded(rows)), work.sites)
    carry = program.init(np.uint32(work.seed), sites)
    first = compiled.first_model(plan.mesh, carry.models) if plan.shape.back else None
    if not alone:
        watch.pace = plan.longest
    waiting: list[tuple[int, Any, Delivery, Any]] = []
    judged = _Judged(Voids(work.algorithm, work.schedule, work.late), Divergence(at.nodes), [])
    done, carry = _resumed(program, carry, judged, watch, keeper)
    last = done
    for start, count in _stretches(plan, watch, done):
        given, delivery = feed.take(start, count)
        carry, *measured = program.stretch(carry, given._replace(first=first))
        last = start + count - 1
        if last == work.rounds and watch.begun:  # the last test may have to be compiled: that is no part of the rounds
            jax.block_until_ready(measured)
            watch.stop()
        there = delivery.active[-1] & work.scored if work.course or work.unscored else None
        tested = program.testing.start(carry, program.test, there) if tested_in(work, last) else None
        if watch.begun:
            watch.rounds, watch.steps = watch.rounds + count, watch.steps + int(delivery.steps.sum())
        waiting.append((last, measured, delivery, tested))
        seen: Evaluated | None = None
        if len(waiting) > 1 or not watch.begun or look:
            seen = _tell(program, judged, progress, *waiting.pop(0))
        if look and seen and look(seen, partial(_models, program, carry)):
            (watch.stop if watch.begun else watch.begin)()
            break
        if not watch.begun:
            jax.block_until_ready(carry)
            watch.begin()
        elif watch.rounds and alone:
            watch.adapt(plan.longest)
        if keeper is not None and keeper.due(last, work.rounds, work.late):
            while waiting:
                _tell(program, judged, progress, *waiting.pop(0))
            watch.leave_out(keeper.save(plan.shape, _keep(program, carry, judged, watch, last)))
    for item in waiting:
        _tell(program, judged, progress, *item)
    return _outcome(program, judged, carry, watch, last)


def _models(program: CompiledSimulation, carry: shape.Carry) -> Params:
    """Copy the models of all nodes: the states may be overwritten by the next rounds."""
    nodes = program.plan.shape.layout.nodes
    return jax.tree.map(lambda leaf: np.array(fetch(leaf)[:nodes]), program.models(carry.state))


def _outcome(program: CompiledSimulation, judged: _Judged, carry: shape.Carry, watch: _Stopwatch, last: int) -> Outcome:
    plan, feed, at = program.plan, program.feed, program.plan.shape.layout
    result = _models(program, carry)
    drift = [np.asarray(fetch(leaf), np.float64).sum(axis=0).ravel() for leaf in jax.tree.leaves(carry.drift)]
    vectors = np.concatenate(drift)
    residual = float(np.linalg.norm(vectors)) / at.nodes / max(vectors.size, 1) ** 0.5
    timed = watch.timed
    return Outcome(
        result, residual, feed.booked - judged.voids.messages, feed.planned, timed.first, timed.seconds, timed.rounds,
        timed.steps, at.chunk, at.devices, plan.shape.mixing, plan.measured,
        judged.divergence.judged(result, last), last, watch.spent,
    )  # fmt: skip


def _tell(
    program: CompiledSimulation, judged: _Judged, progress: Progress, last: int, measured: Any, delivery: Delivery,
    tested: Any,
) -> Evaluated | None:  # fmt: skip
    count, nodes = len(delivery.active), program.plan.shape.layout.nodes
    loss, finite = (fetch(part, axis=1)[:count, :nodes] for part in measured)
    judged.divergence.read(last - count + 1, loss, delivery.steps)
    rows = program.feed.schedule_rows(np.arange(last - count + 1, last + 1))
    arrived = judged.voids.arrived(delivery, rows, finite)[-1]
    if tested is None:
        progress(last, [])
        return None
    neighbor = program.plan.work.schedule.neighbor[rows[-1]]
    seen = program.testing.finish(last, delivery.active[-1], loss[-1], arrived, neighbor, tested)
    judged.last[:] = [seen]
    progress(last, [seen])
    return seen
