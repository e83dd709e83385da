"""table.md, table.json and picture.png of a sweep, and the progress that a person sees."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from p2pfl.reporting import terminal
from p2pfl.reporting.run_data import DASH
from p2pfl.sweeps.plan import SweepPlan, SweepRun, in_percent, named, reach
from p2pfl.sweeps.results import ALONE, Made, Row, RunAnswer, SweepTable, collect, mean_sd


def cell(metric: str, values: Sequence[float | None]) -> str:
    """Mean and standard deviation as a person reads them; accuracies in percent.

    >>> cell("accuracy_mean", [0.92, 0.94]), cell("residue", [0.0])
    ('93.0 ± 1.4', '0')
    """
    mean, sd = mean_sd(values)
    if mean is None:
        return "never" if reach(metric) and values else DASH
    if not math.isfinite(mean):
        return "diverges"
    missing = sum(value is None for value in values)
    of = f" ({len(values) - missing} of {len(values)})" if missing else ""
    if in_percent(metric):
        return f"{100 * mean:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}") + of
    return _figure(mean) + ("" if not sd else f" ± {_figure(sd)}") + of


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or 1e3 <= abs(value) < 1e9 else terminal.figure(value)


def heading(metric: str) -> str:
    """A metric as the head of a column."""
    return f"first round with {metric}" if reach(metric) else metric + (", %" if in_percent(metric) else "")


# --- the files


def write(plan: SweepPlan, out: Path, runs: Sequence[SweepRun], only: Sequence[str], made: Made) -> dict[str, Any]:
    """Write table.md, table.json and picture.png of what there is; returns what stands in table.json."""
    from p2pfl.sweeps import figure  # here: matplotlib takes half a second

    table = collect(plan, out, runs, only, made.failed)
    whole = as_json(table, made.seconds)
    (out / "table.md").write_text(markdown(table, plan.sweep.columns), "utf-8")
    (out / "table.json").write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
    figure.save(plan, table, out, out / "picture.png")
    return whole


def markdown(table: SweepTable, columns: str | None) -> str:
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
        (f"{named(row.labels)}, seed {seed}", why)
        for row in table.rows
        for seed, why in row.failed.items()
        if row.what in ("", ALONE)
    ]
    lines += _reasons("Left out", [(named(combination), why) for combination, why in table.skipped])
    return "\n".join([*lines, *_reasons("Failed", failed)]) + "\n"


def _reasons(head: str, which: Sequence[tuple[str, str]]) -> list[str]:
    """List what was left out, or failed, by the reason."""
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
    names = [row.labels.get(name, DASH) for name in axes]
    free = next((i for i, name in enumerate(axes) if name not in row.labels), 0)
    return [*names[:free], row.what, *names[free + 1 :]] if row.what else names


def _cell(row: Row, metric: str) -> str:
    return "failed" if len(row.failed) == len(row.seeds) else cell(metric, row.values[metric])


def _cells(row: Row | None, metrics: Sequence[str]) -> str:
    return "" if row is None else " / ".join(_cell(row, metric) for metric in metrics)


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]


def as_json(table: SweepTable, seconds: float) -> dict[str, Any]:
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
        """Announce the number of runs to come."""
        self._total = runs
        if self._bar:
            self._bar.add_task("", total=runs)
            self._bar.start()

    def started(self, run: SweepRun) -> None:
        """A run has been given to a worker."""
        self._working[run.name] = None
        self._show()

    def ended(self, answer: RunAnswer) -> None:
        """A run is done, or has failed."""
        self._working.pop(answer.run.name, None)
        self._done += 1
        if answer.fault is not None:
            self.say(f"{answer.run.name}: failed: {answer.fault}")
        elif not self._bar:
            self.say(f"{self._done}/{self._total} {answer.run.name} {terminal.duration(answer.seconds)}")
        self._show()

    def _show(self) -> None:
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._done, description=", ".join(self._working))
