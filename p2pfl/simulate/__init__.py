"""The simulator: one process, no network. The package can be called: `p2pfl.simulate(federation)`.

`loop`: the plain loop that every other way is tested against. `vectorised`: all nodes at once, over all devices, whole
stretches of rounds in one compiled program (`vector`, `layout`, `choose`). `membership`: who belongs together when.
`replay`: a live run, computed again.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from p2pfl.simulate import vectorised
from p2pfl.simulate.given import Evaluated, How, Outcome, Work, make_work
from p2pfl.simulate.membership import Course, course


def simulate(
    federation: Any,
    *,
    chunk: int | None = None,
    devices: int | None = None,
    progress: Callable[[int, list[Evaluated]], None] | None = None,
    now: Callable[[], float] | None = None,
) -> Outcome:
    """Simulate a federation (of `p2pfl.federation(experiment)`), all nodes at once.

    `federation._replace(make=lambda learner: mine(learner, optimizer))` simulates an algorithm of your own. `chunk`:
    nodes that are computed at once (None: by measurement where `now`, a clock in seconds, is given), `devices`: how
    many they are spread over (None: all). `progress` takes the last round that is done and what was evaluated since
    the last call. Raises ConfigError when it does not fit into memory. Float64 needs jax_enable_x64.
    """
    how = How(chunk, devices, measure=now is not None)
    return vectorised.run(work(federation), how, progress or _quiet, now or (lambda: 0.0))


def work(federation: Any) -> Work:
    """What a federation asks the simulator to do."""
    wanted, data = federation.experiment, federation.dataset
    owner = [-1] * len(data.test.y)
    for node, rows in enumerate(federation.partition.test):
        for row in rows:
            owner[row] = node
    dtype, planned = wanted.training.dtype, course_of(federation)
    return make_work(
        make=federation.make,
        learner=federation.learner,
        schedule=planned.schedule if planned else federation.schedule,
        seed=wanted.seed,
        rounds=wanted.rounds,
        x=data.train.x.astype(dtype),
        y=data.train.y,
        rows=federation.partition.train,
        steps=federation.steps,
        batch_size=wanted.training.batch_size,
        test_x=data.test.x.astype(dtype),
        test_y=data.test.y,
        owner=owner,
        evaluate_every=wanted.evaluation.every,
        events=federation.churn,
        conditions=federation.conditions,
        sites=federation.sites,
        course=planned,
    )


def course_of(federation: Any) -> Course | None:
    """The epochs of a federation with planned churn; None without. Raises ConfigError."""
    if not federation.churn:
        return None
    given = federation.conditions

    def plan(members: Sequence[int]) -> Any:
        return federation.planner()(members)  # a new one each time: it would keep all schedules, and few come twice

    rounds = federation.experiment.rounds
    return course(federation.churn, len(federation.graph), rounds, given.detection, plan, given.late > 0)


def _quiet(round: int, evaluated: list[Evaluated]) -> None:
    return None


class _Callable(types.ModuleType):
    def __call__(self, *given: Any, **named: Any) -> Outcome:
        return simulate(*given, **named)


sys.modules[__name__].__class__ = _Callable
