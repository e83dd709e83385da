"""Runs an experiment on this machine, with its baselines, and leaves a run directory."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import jax

from p2pfl import tree
from p2pfl.config import experiment as config
from p2pfl.config.experiment import Experiment
from p2pfl.drivers.live import clock
from p2pfl.errors import ConfigError
from p2pfl.federation.federation import Federation, build, model_shape, precision
from p2pfl.node import records
from p2pfl.reporting import page, terminal
from p2pfl.reporting.run_data import Summary
from p2pfl.reporting.terminal import View
from p2pfl.runs import (
    assessment,
    baselines,
    coefficients,
    divergence,
    drivers,
    flow,
    models,
    origin,
    privacy,
    resume,
    splits,
    summary,
    survival,
)  # fmt: skip
from p2pfl.runs.assessment import Assessment
from p2pfl.runs.baselines import Baselines
from p2pfl.runs.callbacks import Callbacks, RunInfo
from p2pfl.runs.origin import Origin
from p2pfl.runs.summary import Collected
from p2pfl.runs.verdict import apart, verdict


def run(
    experiment: Experiment,
    out: Path,
    view: View | None = None,
    driver: drivers.RunDriver | None = None,
    callbacks: Callbacks | None = None,
    folder: str = "",
    resumes: bool = False,
) -> Summary:
    """Run an experiment into the directory `out`, which must be new or empty; returns the summary that it leaves there.

    `view`: who is told how it goes; nobody where it is None. `driver`: the one that the experiment names unless given.
    `callbacks`: told of the beginning and of the rounds; what they raise is left to the caller. `folder`: where modules
    lie that the experiment names. `resumes`: go on with the run in `out`, whose experiment is that of `resume.wanted`.
    Of several hosts that simulate together the first alone writes, and trains the baselines. Raises ConfigError before
    anything starts.
    """
    told = callbacks or Callbacks()
    with contextlib.ExitStack() as working:
        return _run(experiment, out, view or terminal.quiet(), driver, told, folder, resumes, working)


def _run(
    experiment: Experiment,
    out: Path,
    view: View,
    driver: drivers.RunDriver | None,
    callbacks: Callbacks,
    folder: str,
    resumes: bool,
    working: contextlib.ExitStack,
) -> Summary:
    """`working`: the directory is held for as long as this is open."""
    started = clock.now()
    if callbacks and jax.process_count() > 1:
        raise ConfigError("callbacks: can't be where several hosts simulate together; leave them out")
    if not resumes:
        fresh(out)
    precision(experiment)
    splits.check(experiment)
    driver = driver or drivers.chosen(experiment.driver)
    with driver.prepare(experiment, view) as start:
        federation = build(experiment)
        driver.check(federation)
        splits.tried(federation)
        if driver.several_hosts and jax.process_index() > 0:
            return start(federation, out, terminal.quiet(), callbacks).summary
        rows = origin.rows_digest(federation)
        known = resume.check(federation, out, rows) if resumes else Origin(resume.meaning(experiment), rows, 0, folder)
        out.mkdir(parents=True, exist_ok=True)
        working.enter_context(origin.held(out))
        if resumes:
            resume.begin(out)
        graph = _describe(federation, out, known)
        for note in (*federation.notes, *flow.lines(flow.flow(federation))):
            view.say(note)
        compared = Baselines()
        if experiment.baselines and not federation.task:
            compared = baselines.train(federation, out, view)
        callbacks.begin(_info(federation, out))
        result = start(federation, out, view, callbacks)
    if callbacks.early:
        result = result._replace(notes=(*result.notes, *_early(callbacks, federation.experiment, out)))
    ended = (*assessment.ended(federation, result.whole), *privacy.write(federation, result.whole, out, True))
    result = result._replace(notes=(*result.notes, *ended))
    for note in result.notes:
        view.say(note)
    if callbacks.error is None:
        splits.write(federation, out, view)
    whole = _whole(federation, graph, result, compared, out)
    whole = _stopped(whole, callbacks)
    whole = _judged(federation, whole, result, out, view)
    whole = replace(whole, seconds_total=clock.now() - started)
    whole = replace(whole, incomplete=verdict(whole).reasons)
    whole.write(out)
    page.write(out)
    return whole


def fresh(out: Path) -> None:
    """Raises ConfigError when the directory holds something: nothing of an earlier run is overwritten."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out={str(out)!r}: is not empty; choose another directory, or remove it")


def default_out(name: str) -> Path:
    """A new directory below runs/ in the current one, named after the experiment and the time."""
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def _info(federation: Federation, out: Path) -> RunInfo:
    experiment = federation.experiment
    return RunInfo(
        experiment.name, len(federation.graph), experiment.rounds, experiment.evaluation.every,
        federation.algorithm.name, experiment.driver.kind, summary.score(federation), out,
    )  # fmt: skip


def _early(callbacks: Callbacks, experiment: Experiment, out: Path) -> list[str]:
    """What a person should know of a run that a callback has ended."""
    told = [f"stopped early {callbacks.when}"]
    last = max((row["round"] for row in records.read(out / "metrics.jsonl")), default=0)
    if callbacks.until and last > callbacks.until:
        told.append(
            f"the final models are those with which the nodes have left, by round {last}: the last round of each may "
            f"be one that it trained and mixed with nobody. An experiment of {callbacks.until} rounds ends in those of "
            f"round {callbacks.until}"
        )
    more = [*(["the baselines"] if experiment.baselines else []), *(["splits"] if experiment.evaluation.splits else [])]
    if more:
        told.append(f"{' and '.join(more)} were learned for all {experiment.rounds} rounds")
    return told


def _stopped(whole: Summary, callbacks: Callbacks) -> Summary:
    """The summary of a run that a callback has ended: in good order, unless it has failed."""
    if callbacks.error is not None and callbacks.stop is not None:
        failed = f"the callback {callbacks.stop.by} failed after round {callbacks.stop.round}: {callbacks.error!r}"
        whole = replace(whole, incomplete=(*whole.incomplete, failed))
    if callbacks.early is None:
        return whole
    return replace(whole, rounds=callbacks.early.round, stopped_early=callbacks.when)


def _describe(federation: Federation, out: Path, known: Origin) -> str:
    """Write down what is run; returns the name of the graph. `known`: with what it has begun."""
    partial = out / "experiment.partial"
    partial.write_text(config.dump(federation.experiment), "utf-8")
    partial.replace(out / "experiment.toml")
    models.describe(federation).write(out)
    known._replace(rounds=federation.experiment.rounds).write(out)
    edges = sorted(sorted(edge) for edge in federation.graph.edges)
    table = federation.experiment.topology
    graph = table.graph or Path(str(table.file)).stem
    (out / "topology.json").write_text(json.dumps({"graph": graph, "nodes": len(federation.graph), "edges": edges}))
    return graph


def _whole(federation: Federation, graph: str, result: Collected, compared: Baselines, out: Path) -> Summary:
    """The summary with all that is known, whatever the driver."""
    experiment = federation.experiment
    assessed = assessment.assess(federation, result.whole, out) if experiment.evaluation.metrics else Assessment()
    if experiment.evaluation.metrics:
        survival.write(federation, result.whole, out)
    intervals, differences = assessment.compared(assessed, compared.assessed)
    fitted = coefficients.write(federation, result.whole, out) if experiment.evaluation.metrics else ()
    stratified = (survival.NOTE,) if federation.dataset.kind == "survival" else ()
    began = origin.read(out)
    known = replace(
        result.summary,
        format=records.FORMAT,
        name=experiment.name,
        nodes=len(federation.graph),
        rounds=experiment.rounds,
        algorithm=federation.algorithm.name,
        graph=graph,
        parameters=tree.size(tree.mixed(model_shape(federation))),
        keeps_mean=federation.algorithm.keeps_mean,
        intervals=intervals,
        differences=differences,
        extra_metrics=tuple(each.label for each in federation.metrics),
        too_few={key: each._asdict() for key, each in assessed.few.items()},
        resumed=began.resumed if began else (),
        notes=(*(began.notes if began else ()), *federation.notes, *result.notes, *stratified, *fitted),
        incomplete=(*result.summary.incomplete, *apart(federation, result.summary)),
        flow=flow.flow(federation),
    )
    return known.adding({**compared.figures, **assessed.figures, **summary.distances(federation, result.models)})


def _judged(federation: Federation, whole: Summary, result: Collected, out: Path, view: View) -> Summary:
    """Tell which models are worse than an untrained one: the run has diverged if more than half of them are."""
    whole = replace(whole, diverged=divergence.since(federation, whole.diverged, out))
    worse = divergence.judge(federation, result.whole, result.loss, out)
    if 2 * len(worse.keys() | set(map(int, whole.diverged)) & result.whole.keys()) > len(result.whole):
        diverged = {**{str(node): each.since for node, each in worse.items()}, **whole.diverged}
        return replace(whole, diverged=diverged)
    told = divergence.notes(worse)
    for note in told:
        view.say(note)
    return replace(whole, notes=(*whole.notes, *told))
