"""Go on with a run that was interrupted, or with one that has ended and is given more rounds."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from p2pfl.config import experiment as config
from p2pfl.config.experiment import Driver, Experiment
from p2pfl.drivers.live import processes
from p2pfl.errors import ConfigError
from p2pfl.federation.federation import Federation, build
from p2pfl.node import records, result
from p2pfl.reporting.run_data import Summary
from p2pfl.runs import origin
from p2pfl.runs.origin import Origin
from p2pfl.types import Schedule

FREE = ("rounds", "driver.chunk", "driver.devices", "driver.checkpoint")
"""Fields that may be other than the run began with."""


def wanted(run: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Return the experiment with which a run goes on: its own, with the fields that may change. Raises ConfigError."""
    if not run.is_dir() or not (run / "experiment.toml").is_file():
        raise ConfigError(f"--resume {run}: is not a run directory; it must hold experiment.toml")
    known = origin.read(run)
    if known is None:
        raise ConfigError(
            f"--resume {run}: holds no run.json: its run had not begun, or an earlier version made it; run "
            f"{run / 'experiment.toml'} anew with --out DIR"
        )
    with origin.held(run):
        _nobody_works(run)
    for override in overrides:
        field = override.split("=")[0].strip()
        if field not in FREE:
            raise ConfigError(
                f"--set {override}: would make another experiment of {run}, and one run is of one experiment. With "
                f"--resume only {', '.join(FREE)} can be set; for another experiment leave --resume out"
            )
    experiment = config.load(run / "experiment.toml", overrides, find=True)
    if meaning(experiment) != known.experiment:
        raise ConfigError(
            f"{run / 'experiment.toml'}: is not what the run began with; somebody has changed it. Put it back, or run "
            "it anew with --out DIR"
        )
    done, rounds = _reached(run), experiment.rounds
    if _finished(run, known.rounds) and rounds <= known.rounds:
        raise ConfigError(
            f"{run}: has finished its {known.rounds} rounds, and there is nothing to go on with; more than these it "
            f"does with --set rounds=N, N greater than {known.rounds}"
        )
    if rounds != known.rounds and rounds <= done:
        raise ConfigError(f"rounds={rounds}: the run has done {done} already; it must be greater than that")
    return experiment


def meaning(experiment: Experiment) -> str:
    """Digest of what an experiment means, whatever in it may change while it runs."""
    driver = Driver(kind=experiment.driver.kind, loop=experiment.driver.loop)
    return origin.text_digest(config.dump(dataclasses.replace(experiment, rounds=1, driver=driver)))


def check(federation: Federation, run: Path, rows: str) -> Origin:
    """Return the run's own beginnings, if this federation can go on with them. `rows`: digest of its data.

    Raises ConfigError where the data are others, or more rounds would have been other rounds.
    """
    known = origin.read(run)
    assert known is not None
    if rows != known.rows:
        raise ConfigError(
            f"data: the rows, or whose they are, are not those that {run} began with; put the data back, or run the "
            "experiment anew with --out DIR"
        )
    if known.rounds != federation.experiment.rounds:
        before = dataclasses.replace(federation.experiment, rounds=known.rounds)
        whole = federation.data.public is None  # else rows were set apart of it, and are to be again
        _same_start(build(before, federation.dataset if whole else None), federation)
    return known


def begin(run: Path) -> None:
    """Take away what stands for the end of a run that goes on."""
    for name in ("summary.json", "report.html"):
        (run / name).unlink(missing_ok=True)


def again(run: Path, say: Callable[[str], None]) -> None:
    """Begin the rounds of a driver that keeps no checkpoints: what is recorded comes again, to the same bits."""
    reached = _reached(run)
    shutil.rmtree(run / "nodes", ignore_errors=True)
    (run / "launch.jsonl").unlink(missing_ok=True)
    if (start := origin.begins(run, 0, reached)) is not None:
        say(f"{origin.note(start)}: this driver keeps no checkpoints, and comes to the same bits")


def _nobody_works(run: Path) -> None:
    """Raises ConfigError while a node of the run is still at work: it takes a few seconds to leave."""
    file = run / "pids.json"
    if not file.is_file():
        return
    for node, pids in processes.read(file).items():
        for pid in pids:
            if processes.runs(pid, node):
                raise ConfigError(
                    f"{run}: node {node} is still at work (process {pid}); wait a few seconds until it has left, or "
                    "end it"
                )


def _reached(run: Path) -> int:
    """The last round that is recorded."""
    paths = [run / "rounds.jsonl", run / "metrics.jsonl", *(run / "nodes").glob("*/metrics.jsonl")]
    return max((row["round"] for path in paths for row in records.read(path)), default=0)


def _finished(run: Path, rounds: int) -> bool:
    """A run has its summary, and was not ended before; of one with nodes, some have reached its last round."""
    file = run / "summary.json"
    if not file.is_file():
        return False
    summary = Summary.of(json.loads(file.read_text("utf-8")))
    if summary.interrupted or summary.stopped_early:
        return False
    ended = [result.read(path) for path in (run / "nodes").glob("*")]
    return not ended or any(each is not None and not each.left and each.round >= rounds for each in ended)


def _same_start(before: Federation, now: Federation) -> None:
    """Raises ConfigError where a run of more rounds has other graphs or events in the first ones."""
    rounds = min(before.experiment.rounds, now.experiment.rounds)
    where = f"rounds={now.experiment.rounds}"
    if not all(_row(before.schedule, r) == _row(now.schedule, r) for r in range(rounds)):
        raise ConfigError(
            f"{where}: algorithm.name={now.experiment.algorithm.name!r} makes another schedule of more rounds, from "
            "the beginning; run the experiment anew with --out DIR"
        )
    events = [[e for e in each.churn if e.round <= rounds] for each in (before, now)]
    if events[0] != events[1]:
        raise ConfigError(
            f"{where}: churn: a model draws other events for more rounds, from the beginning; run the experiment anew "
            "with --out DIR"
        )
    if before.notes != now.notes or before.algorithm.name != now.algorithm.name:
        raise ConfigError(f"{where}: makes another experiment from the beginning; run it anew with --out DIR")


def _row(schedule: Schedule, round: int) -> list[bytes]:
    """What a schedule says of a round, without empty slots."""
    neighbor, weight, out_weight, trains = (part[round % len(schedule.neighbor)] for part in schedule)
    used = np.asarray(neighbor) >= 0
    return [used.sum(axis=1).tobytes(), neighbor[used].tobytes(), weight[used].tobytes(), out_weight[used].tobytes(),
            trains.tobytes()]  # fmt: skip
