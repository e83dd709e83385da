"""Results of a sweep: the figures of its runs, by combination."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from p2pfl.sweeps.plan import SweepPlan, SweepRun, chosen, combinations, directory, done, reach

ALONE, POOLED, MAJORITY = "every node alone", "all data pooled", "majority class"
_BESIDE = {ALONE: "local_only", POOLED: "pooled", MAJORITY: "majority"}
"""Baselines, and what they are called in a summary."""


class RunAnswer(NamedTuple):
    """The outcome of a run; `fault`: why it failed, in one line or several."""

    run: SweepRun
    fault: str | None
    seconds: float


class Made(NamedTuple):
    """The outcome of making the runs of a sweep."""

    failed: dict[str, str]  # name of a run -> why
    stopped: int  # the signal that ended it; 0: none did
    seconds: float


class Row(NamedTuple):
    """One combination over its seeds. A value is None where there is none, and NaN or infinite where it diverged."""

    labels: dict[str, str]
    what: str  # "" or the name of a baseline
    seeds: tuple[int, ...]
    values: dict[str, list[float | None]]
    failed: dict[int, str]
    directories: list[str]  # of its runs, beside table.json


class SweepTable(NamedTuple):
    """All that a sweep has found."""

    name: str
    axes: list[str]
    metrics: list[str]
    rows: list[Row]
    skipped: list[tuple[dict[str, str], str]]


def collect(
    plan: SweepPlan, out: Path, runs: Sequence[SweepRun], only: Sequence[str], failed: Mapping[str, str]
) -> SweepTable:
    """The figures of all runs; `failed`: name of a run -> why."""
    sweep = plan.sweep
    groups: dict[tuple[bool, tuple[tuple[str, str], ...]], list[SweepRun]] = {}
    for run in runs:
        groups.setdefault((run.baseline, tuple(run.labels.items())), []).append(run)
    rows: list[Row] = []
    beside: list[Row] = []
    for (baseline, labels), members in groups.items():
        summaries = [_summary(out, run) for run in members]
        faults = {run.seed: failed[run.name] for run in members if run.name in failed}
        seeds = tuple(run.seed for run in members)
        places = [f"runs/{run.name}" for run in members]
        for what, beside_as in _BESIDE.items() if baseline else {"": ""}.items():
            values = {
                metric: [
                    _value(directory(out, run), _named(metric, beside_as), summary) if summary else None
                    for run, summary in zip(members, summaries, strict=True)
                ]
                for metric in sweep.metrics
            }
            (beside if baseline else rows).append(Row(dict(labels), what, seeds, values, faults, places))
    kept, _ = chosen(plan, only)
    skipped = [(labels, why) for labels, why in combinations(plan, kept) if why is not None]
    beside.sort(key=lambda row: list(_BESIDE).index(row.what))
    return SweepTable(sweep.name, [axis.name for axis in plan.axes], list(sweep.metrics), rows + beside, skipped)


def _named(metric: str, baseline: str) -> str:
    """Return a summary's name of a metric; of a baseline as in accuracy_pooled_own_mean beside accuracy_own_mean."""
    if not baseline:
        return metric
    stem = re.fullmatch(r"(.+?)((?:_own)?_(?:mean|worst)|_own_weighted)", metric)
    if stem is None or reach(metric):
        return ""
    if stem[2] == "_worst" and baseline == "pooled":  # one model has no worst node
        return ""
    return f"{stem[1]}_{baseline}{'' if stem[2] == '_mean' else stem[2]}"


def _summary(out: Path, run: SweepRun) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if done(out, run):
        found = json.loads((directory(out, run) / "summary.json").read_text("utf-8"))
    return found


def records(run: Path) -> list[dict[str, Any]]:
    """The lines of rounds.jsonl of a run; none where there is no such file."""
    path = run / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def _value(run: Path, metric: str, summary: Mapping[str, Any]) -> float | None:
    wanted = reach(metric)
    if wanted is None:
        value = summary.get(metric)
        if value is None and summary.get("diverged"):
            return math.nan
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    for record in records(run):
        value = record.get(wanted.figure)
        if value is not None and (value < wanted.bound if wanted.below else value > wanted.bound):
            return float(record["round"])
    return None


def mean_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of what there is; None where there is none, NaN where it is not finite."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    if not all(map(math.isfinite, known)):
        return math.nan, None
    return fmean(known), stdev(known) if len(known) > 1 else None
