"""What came of a sweep: its figures, table.md and table.json, and the progress that a person sees."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from types import TracebackType
from typing import Any, NamedTuple, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from p2pfl import view
from p2pfl.sweep import Plan, Run, chosen, combinations, in_percent, reach, shown
from p2pfl.sweep_run import Answer, Made, directory, done

ALONE, POOLED, MAJORITY = "every node alone", "all data pooled", "majority class"
_BESIDE = {ALONE: "local_only", POOLED: "pooled", MAJORITY: "majority"}
"""Baselines, and what they are called in a summary."""


class Row(NamedTuple):
    """One combination over its seeds. A value is None where there is none, and NaN or infinite where it diverged."""

    labels: dict[str, str]
    what: str  # "" or the name of a baseline
    seeds: tuple[int, ...]
    values: dict[str, list[float | None]]
    failed: dict[int, str]
    directories: list[str]  # of its runs, beside table.json


class Table(NamedTuple):
    """All that a sweep has found."""

    name: str
    axes: list[str]
    metrics: list[str]
    rows: list[Row]
    skipped: list[tuple[dict[str, str], str]]


def collect(plan: Plan, out: Path, runs: Sequence[Run], only: Sequence[str], failed: Mapping[str, str]) -> Table:
    """The figures of all runs; `failed`: name of a run -> why."""
    sweep = plan.sweep
    groups: dict[tuple[bool, tuple[tuple[str, str], ...]], list[Run]] = {}
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
    return Table(sweep.name, [axis.name for axis in plan.axes], list(sweep.metrics), rows + beside, skipped)


def _named(metric: str, baseline: str) -> str:
    """What a summary calls a metric; of a baseline as in accuracy_pooled_own_mean beside accuracy_own_mean."""
    if not baseline:
        return metric
    stem = re.fullmatch(r"(.+?)((?:_own)?_(?:mean|worst))", metric)
    if stem is None or reach(metric):
        return ""
    if stem[2] == "_worst" and baseline == "pooled":  # one model has no worst node
        return ""
    return f"{stem[1]}_{baseline}{'' if stem[2] == '_mean' else stem[2]}"


def _summary(out: Path, run: Run) -> dict[str, Any]:
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


def cell(metric: str, values: Sequence[float | None]) -> str:
    """Mean and standard deviation as a person reads them; accuracies in percent.

    >>> cell("accuracy_mean", [0.92, 0.94]), cell("residue", [0.0])
    ('93.0 ± 1.4', '0')
    """
    mean, sd = mean_sd(values)
    if mean is None:
        return "never" if reach(metric) and values else view.DASH
    if not math.isfinite(mean):
        return "diverges"
    missing = sum(value is None for value in values)
    of = f" ({len(values) - missing} of {len(values)})" if missing else ""
    if in_percent(metric):
        return f"{100 * mean:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}") + of
    return _figure(mean) + ("" if not sd else f" ± {_figure(sd)}") + of


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or 1e3 <= abs(value) < 1e9 else view.figure(value)


def heading(metric: str) -> str:
    """A metric as the head of a column."""
    return f"first round with {metric}" if reach(metric) else metric + (", %" if in_percent(metric) else "")


# --- the files


def write(plan: Plan, out: Path, runs: Sequence[Run], only: Sequence[str], made: Made) -> dict[str, Any]:
    """Write table.md, table.json and picture.png of what there is; returns what stands in table.json."""
    from p2pfl import sweep_plot  # here: matplotlib takes half a second

    table = collect(plan, out, runs, only, made.failed)
    whole = as_json(table, made.seconds)
    (out / "table.md").write_text(markdown(table, plan.sweep.columns), "utf-8")
    (out / "table.json").write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
    sweep_plot.save(plan, table, out, out / "picture.png")
    return whole


def markdown(table: Table, columns: str | None) -> str:
    """table.md: a row for each combination; with `columns`, the labels of that axis side by side."""
    several = max((len(row.seeds) for row in table.rows), default=0)
    said = [f"Mean ± standard deviation over {several} seeds."] if several > 1 else []
    axes = [name for name in table.axes if name != columns]
    if columns is None:
        head = [*axes, *map(heading, table.metrics)]
        rows = [[*_names(row, axes), *(_cell(row, metric) for metric in table.metrics)] for row in table.rows]
    else:
        labels = list(dict.fromkeys(row.labels[columns] for row in table.rows if columns in row.labels))
        groups: dict[tuple[str, ...], dict[str | None, Row]] = {}
        for row in table.rows:
            groups.setdefault(tuple(_names(row, axes)), {})[row.labels.get(columns)] = row
        said.append(f"In each cell: {' / '.join(map(heading, table.metrics))}.")
        head = [*axes, *(f"{columns} = {label}" for label in labels)]
        rows = [
            [*names, *(_cells(found.get(label) or found.get(None), table.metrics) for label in labels)]
            for names, found in groups.items()
        ]
    lines = [f"# {table.name}", "", *([" ".join(said), ""] if said else []), *_grid(head, rows)]
    failed = [
        (f"{shown(row.labels)}, seed {seed}", why)
        for row in table.rows
        for seed, why in row.failed.items()
        if row.what in ("", ALONE)
    ]
    lines += _reasons("Left out", [(shown(combination), why) for combination, why in table.skipped])
    return "\n".join([*lines, *_reasons("Failed", failed)]) + "\n"


def _reasons(head: str, which: Sequence[tuple[str, str]]) -> list[str]:
    """What was left out, or failed, by the reason."""
    reasons: dict[str, list[str]] = {}
    for name, why in which:
        reasons.setdefault(why, []).append(name)
    said = [
        f"- {why}: {'; '.join(names if len(names) <= 4 else [*names[:2], f'and {len(names) - 2} more'])}"
        for why, names in reasons.items()
    ]
    return ["", f"{head}:", "", *said] if said else []


def _names(row: Row, axes: Sequence[str]) -> list[str]:
    """The labels of a row; a baseline's name stands in the first column that it has no label for."""
    names = [row.labels.get(name, view.DASH) for name in axes]
    free = next((i for i, name in enumerate(axes) if name not in row.labels), 0)
    return [*names[:free], row.what, *names[free + 1 :]] if row.what else names


def _cell(row: Row, metric: str) -> str:
    return "failed" if len(row.failed) == len(row.seeds) else cell(metric, row.values[metric])


def _cells(row: Row | None, metrics: Sequence[str]) -> str:
    return "" if row is None else " / ".join(_cell(row, metric) for metric in metrics)


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]


def as_json(table: Table, seconds: float) -> dict[str, Any]:
    """table.json: every figure, by seed too. What is not finite is text: "nan", "inf"."""
    rows = []
    for row in table.rows:
        figures = {}
        for metric, values in row.values.items():
            mean, sd = mean_sd(values)
            figures[metric] = {"mean": _plain(mean), "sd": _plain(sd), "by_seed": [_plain(value) for value in values]}
        failed = {str(seed): why for seed, why in row.failed.items()}
        baseline = {"baseline": row.what} if row.what else {}
        more = {"failed": failed} if failed else {}
        found = {"labels": row.labels, **baseline, "seeds": list(row.seeds), "metrics": figures, **more}
        rows.append({**found, "runs": row.directories})
    skipped = [{"labels": labels, "why": why} for labels, why in table.skipped]
    return {"name": table.name, "axes": table.axes, "rows": rows, "skipped": skipped, "seconds": seconds}


def _plain(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


# --- progress


def make(console: Console, quiet: bool) -> Progressing:
    """A bar on a terminal, a line per run anywhere else; nothing if `quiet`."""
    return Progressing(console, not quiet and console.is_terminal, quiet)


class Progressing:
    """Shows a sweep while it goes on."""

    def __init__(self, console: Console, bar: bool, quiet: bool) -> None:
        self._console, self._quiet, self._done, self._total = console, quiet, 0, 0
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        text = TextColumn("{task.description}", markup=False)
        self._bar = Progress(*columns, text, console=console) if bar else None
        self._working: dict[str, None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        if not self._quiet:
            self._console.print(text, markup=False, soft_wrap=True)

    def begin(self, runs: int) -> None:
        """So many runs will be made."""
        self._total = runs
        if self._bar:
            self._bar.add_task("", total=runs)
            self._bar.start()

    def started(self, run: Run) -> None:
        """A run has been given to a worker."""
        self._working[run.name] = None
        self._show()

    def ended(self, answer: Answer) -> None:
        """A run is done, or has failed."""
        self._working.pop(answer.run.name, None)
        self._done += 1
        if answer.fault is not None:
            self.say(f"{answer.run.name}: failed: {answer.fault}")
        elif not self._bar:
            self.say(f"{self._done}/{self._total} {answer.run.name} {view.duration(answer.seconds)}")
        self._show()

    def _show(self) -> None:
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._done, description=", ".join(self._working))
