"""picture.png of a sweep: curves over the rounds, lines along an axis, or a dot for every combination.

Drawn with matplotlib's object interface in the light colours of the report. Bars are one standard deviation over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from p2pfl.reporting import style
from p2pfl.sweeps.plan import ALONGSIDE, PictureTable, SweepPlan, in_percent, matches
from p2pfl.sweeps.results import POOLED, Row, SweepTable, mean_sd, records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, RULE, PAPER = style.FILE
COLORS = style.FILE_PALETTE
MARKS = "osD^vPX*"
WORDS = {
    "round": "round",
    "bytes": "sent by a node, {unit}",
    "accuracy_mean": "accuracy, mean over nodes, %",
    "accuracy_worst": "accuracy of the worst node, %",
    "consensus_distance": "mean squared distance from the nodes' mean",
    "distance_to_optimum": "distance to the optimum, RMS over nodes",
    "mean_residual": "how far mixing moved the mean, per parameter",
    "bytes_sent_per_node_round": "bytes sent per node and round",
}
"""What figures are called on an axis, with their unit."""
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))


class Line(NamedTuple):
    """One line or row of dots of a panel."""

    name: str
    place: int  # among the series: its colour and its mark
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray  # the reach of the bars
    high: np.ndarray


def save(plan: SweepPlan, table: SweepTable, out: Path, path: Path) -> bool:
    """Draw what [picture] asks for; False where there is nothing to draw."""
    picture = plan.sweep.picture
    if picture is None:
        return False
    rows = [row for row in table.rows if not row.what and matches(row.labels, picture.where) and not _failed(row)]
    if not rows:
        return False
    with matplotlib.rc_context(style.FILE_STYLE):
        axes = {axis.name for axis in plan.axes}
        if set(picture.x) <= set(ALONGSIDE):
            figure = _curves(picture, plan, rows, out)
        elif picture.y in axes:
            figure = _dots(picture, plan, rows, table)
        else:
            figure = _lines(picture, plan, rows)
        FigureCanvasAgg(figure).print_figure(path, dpi=110)
    return True


def _failed(row: Row) -> bool:
    return len(row.failed) == len(row.seeds)


# --- what is drawn


def _labels(plan: SweepPlan, rows: Sequence[Row], axis: str | None) -> list[str]:
    """The labels of an axis that have rows, in the file's order; one empty label where there is no axis."""
    if axis is None:
        return [""]
    order = next(each for each in plan.axes if each.name == axis).overrides
    return [label for label in order if any(row.labels[axis] == label for row in rows)]


def _of(rows: Sequence[Row], axis: str | None, label: str) -> list[Row]:
    return [row for row in rows if axis is None or row.labels[axis] == label]


def _point(picture: PictureTable, metric: str, row: Row) -> tuple[float, float, float]:
    """Mean, and the ends of its bar."""
    mean, sd = mean_sd(row.values[metric])
    if mean is None or not math.isfinite(mean):
        return math.nan, math.nan, math.nan
    scale = 100.0 if in_percent(metric) else 1.0
    low, high = scale * (mean - (sd or 0)), scale * (mean + (sd or 0))
    mean *= scale
    if picture.least is not None:
        mean, low, high = (max(value, picture.least) for value in (mean, low, high))
    if picture.log and low <= 0 < mean:  # below zero there is nothing on a logarithmic scale
        low = max(min(scale * value for value in row.values[metric] if value is not None), 0.0)
    return mean, low, high


def _titled(picture: PictureTable, name: str) -> str:
    return picture.titles.get(name, WORDS.get(name, name.replace("_", " ")))


def _series_name(picture: PictureTable, label: str) -> str:
    """A series as the legend names it: a number needs the name of its axis."""
    if label in picture.titles:
        return picture.titles[label]
    named = f"{_titled(picture, str(picture.series))} = {label}"
    return label.replace("_", " ") if _number(label) is None else named


def _number(label: str) -> float | None:
    try:
        value = float(label)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


# --- the three kinds


def _curves(picture: PictureTable, plan: SweepPlan, rows: list[Row], out: Path) -> Figure:
    """A figure of rounds.jsonl against rounds or bytes; seeds of one combination as thin lines of its colour."""
    panels = _labels(plan, rows, picture.panels) if len(picture.x) == 1 else list(picture.x)
    figure, drawn = _panels(len(panels), 4.9 if len(panels) <= 2 else 3.2, 3.6)
    series = _labels(plan, rows, picture.series)
    for panel, axes in zip(panels, drawn, strict=True):
        x_name = picture.x[0] if len(picture.x) == 1 else panel
        members = rows if len(picture.x) > 1 else _of(rows, picture.panels, panel)
        found = []
        for place, label in enumerate(series):
            for row in _of(members, picture.series, label):
                for where in row.directories:
                    found.append(_curve(picture, out / where, x_name, place, _series_name(picture, label)))
        ends = [float(line.x[-1]) for line in found if len(line.x)] or [1.0]
        most = float(np.median(ends)) / 10 if "x" in picture.log else max(ends)
        size, unit = next((each for each in _UNITS if most >= each[0]), _UNITS[-1]) if x_name == "bytes" else (1.0, "")
        for line in found:
            axes.plot(line.x / size, line.y, color=_color(line.place), linewidth=1.4, marker=_mark(line.place),
                      markersize=3.5, markevery=max(1, len(line.x) // 12), label=line.name, clip_on=False)  # fmt: skip
        _scales(picture, axes)
        axes.set_xlabel(_titled(picture, x_name).format(unit=unit))
        axes.set_title(panel if picture.panels else "", fontsize=9)
    drawn[0].set_ylabel(_titled(picture, picture.y))
    _legend(figure, picture, plan, rows)
    return figure


def _curve(picture: PictureTable, run: Path, x_name: str, place: int, name: str) -> Line:
    lines = [line for line in records(run) if line.get(picture.y) is not None]
    round_ = np.array([line["round"] for line in lines], float)
    y = np.array([line[picture.y] for line in lines], float) * (100 if picture.y.startswith("accuracy_") else 1)
    if picture.least is not None:
        y = np.maximum(y, picture.least)
        reached = np.flatnonzero(y <= picture.least)
        end = int(reached[0]) + 1 if len(reached) else len(y)
        round_, y, lines = round_[:end], y[:end], lines[:end]
    x = round_
    if x_name == "bytes" and len(lines):
        sent = np.array([line["bytes_sent"] / max(line["alive"], 1) for line in lines], float)
        x = np.cumsum(sent * np.diff(round_, prepend=0))  # rounds that were not recorded: as the one after them
    return Line(name, place, x, y, y, y)


def _lines(picture: PictureTable, plan: SweepPlan, rows: list[Row]) -> Figure:
    """A metric along an axis, a line for each series."""
    axis, panels = picture.x[0], _labels(plan, rows, picture.panels)
    series, labels = _labels(plan, rows, picture.series), _labels(plan, rows, axis)
    numbers = [_number(label) for label in labels]
    log = "x" in picture.log and all(number is not None and number > 0 for number in numbers)
    even = not log  # values of an axis need not lie evenly: they stand side by side, unless a logarithm spreads them
    at = dict(zip(labels, range(len(labels)) if even else numbers, strict=True))
    figure, drawn = _panels(len(panels), 2.1 if len(panels) > 2 else 3.6, 3.0)
    for panel, axes in zip(panels, drawn, strict=True):
        members = _of(rows, picture.panels, panel)
        for place, label in enumerate(series):
            own = _of(members, picture.series, label)
            if own:
                points = [(at[row.labels[axis]], *_point(picture, picture.y, row)) for row in own]
                _bars(axes, place, np.array(points, float).T, upright=True)
        _scales(picture, axes, x=not even)
        axes.set_xticks(
            [float(place or 0) for place in at.values()], [picture.titles.get(label, label) for label in labels]
        )
        axes.minorticks_off()
        if even:
            axes.set_xlim(-0.3, len(labels) - 0.7)
        axes.set_title(picture.titles.get(panel, panel.replace("_", " ")), fontsize=9)
    figure.supxlabel(_titled(picture, axis), fontsize=8, color=INK)
    drawn[0].set_ylabel(_titled(picture, picture.y))
    _legend(figure, picture, plan, rows)
    return figure


def _bars(axes: Axes, place: int, points: np.ndarray, upright: bool, joined: bool = True) -> None:
    """Points (place, mean, low, high) with their bars, upright or lying."""
    where, mean, low, high = points
    error = np.maximum(np.stack([mean - low, high - mean]), 0)
    style: Any = {
        "color": _color(place), "marker": _mark(place), "markersize": 4.5, "elinewidth": 0.9, "markeredgewidth": 0,
        "linewidth": 1.3 if joined else 0, "linestyle": "-" if joined else "none",
    }  # fmt: skip
    if upright:
        axes.errorbar(where, mean, yerr=error, **style)
    else:
        axes.errorbar(mean, where, xerr=error, **style)


def _dots(picture: PictureTable, plan: SweepPlan, rows: list[Row], table: SweepTable) -> Figure:
    """A row of dots for each label of an axis, panels below one another as high as they have rows."""
    metric, axis = picture.x[0], picture.y
    panels, series = _labels(plan, rows, picture.panels), _labels(plan, rows, picture.series)
    labels = {panel: _labels(plan, _of(rows, picture.panels, panel), axis) for panel in panels}
    heights = [len(labels[panel]) + 0.6 for panel in panels]
    high = 0.19 * sum(heights) + 0.32 * len(panels) + 1.0
    figure = Figure(figsize=(6.6, high), layout="constrained", facecolor=PAPER)
    grid = figure.add_gridspec(len(panels), 1, height_ratios=heights)
    first: Axes | None = None
    accuracy = metric in ("accuracy_mean", "accuracy_worst") and "accuracy_mean" in plan.sweep.metrics
    pooled = [_point(picture, "accuracy_mean", row)[0] for row in table.rows if row.what == POOLED] if accuracy else []
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(grid[i], sharex=first)
        first = first or axes
        members, names = _of(rows, picture.panels, panel), labels[panel]
        axes.hlines(range(len(names)), 0, 1, transform=axes.get_yaxis_transform(), color=RULE, linewidth=0.6, zorder=0)
        if pooled:
            at = float(np.nanmean(pooled))
            axes.axvline(at, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
            if i == 0:
                above: Any = {"xycoords": axes.get_xaxis_transform(), "ha": "center", "va": "bottom", "color": MUTED}
                axes.annotate("all data pooled", (at, 1.02), fontsize=7, **above)
        for place, label in enumerate(series):
            off = 0.42 * (place - (len(series) - 1) / 2) / max(len(series), 1)
            own = _of(members, picture.series, label)
            if own:
                points = [(names.index(row.labels[axis]) + off, *_point(picture, metric, row)) for row in own]
                _bars(axes, place, np.array(points, float).T, upright=False, joined=False)
        axes.set_yticks(range(len(names)), [picture.titles.get(name, name.replace("_", " ")) for name in names])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(names) - 0.45, -0.55)
        axes.set_title(picture.titles.get(panel, panel.replace("_", " ")), fontsize=9, loc="left", fontweight="bold")
        axes.spines["left"].set_visible(False)
        if i < len(panels) - 1:
            axes.tick_params(axis="x", labelbottom=False, length=0)
            axes.spines["bottom"].set_visible(False)
        if "x" in picture.log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(_power))
    figure.axes[-1].set_xlabel(_titled(picture, metric))
    _legend(figure, picture, plan, rows, joined=False)
    return figure


# --- parts


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(count, 5)
    high = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns + 0.5, height * high + 0.5), layout="constrained", facecolor=PAPER)
    found: list[Axes] = []
    for i in range(count):
        axes = figure.add_subplot(high, columns, i + 1, sharey=found[0] if found else None)
        if i % columns:
            axes.tick_params(labelleft=False)
        found.append(axes)
    return figure, found


def _scales(picture: PictureTable, axes: Axes, x: bool = True) -> None:
    for name, scale in (("y", axes.yaxis), ("x", axes.xaxis)):
        if name in picture.log and (x or name == "y"):
            (axes.set_yscale if name == "y" else axes.set_xscale)("log")
            scale.set_major_formatter(FuncFormatter(_power))
            scale.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def _power(value: float, place: int | None) -> str:
    """A power of ten: in full where that is short."""
    return f"{value:g}" if 1e-3 < abs(value) < 1e6 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _color(place: int) -> str:
    return COLORS[place % len(COLORS)]


def _mark(place: int) -> str:
    return MARKS[place % len(MARKS)]


def _legend(figure: Figure, picture: PictureTable, plan: SweepPlan, rows: Sequence[Row], joined: bool = True) -> None:
    """The names of the series above the panels, in the order of their colours."""
    series = _labels(plan, rows, picture.series)
    if picture.series is None or len(series) < 2:
        return
    keys = [
        Line2D([], [], color=_color(i), marker=_mark(i), markersize=4.5, linewidth=1.4 if joined else 0)
        for i in range(len(series))
    ]
    names = [_series_name(picture, label) for label in series]
    columns = len(names) if sum(map(len, names)) < 12 * figure.get_figwidth() else math.ceil(len(names) / 2)
    style: Any = {"frameon": False, "handletextpad": 0.4, "columnspacing": 1.4}
    figure.legend(keys, names, loc="outside upper left", ncols=columns, **style)
