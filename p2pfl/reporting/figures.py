"""The figures of the report: as SVG text that takes its colours from the page, and as files for a paper.

Figures are drawn with matplotlib's object interface, by one maker for both: on the page in the stand-in colours of
`style`, and text stays text. The same run gives the same bytes: no date, a fixed salt for identifiers, and on the page
these begin with the name of the picture, for several drawings share it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import networkx as nx
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from p2pfl.reporting import clinical_figures, explanation_figures, leak_figures, published, terminal
from p2pfl.reporting.run_data import Absence, Nodes, RunData, Score, measured
from p2pfl.reporting.style import CSS, LIGHT, ON_PAGE, SHADES, Paint, of_report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 400
"""Points of a line, at most."""
LINES = 60
"""Lines of single nodes, at most; beyond them the nodes are picked evenly by their final score."""
NAMED = 12
"""So many nodes get a colour and a place in the legend; more are thin and grey."""
LABELS = 12
"""So many moments of churn get a label; more are ticks only."""
UPWARDS = MappingProxyType(
    {"consensus": "consensus distance", "traffic": "bytes sent", "time": "time of a round", "survival": "survival"}
)
"""What a file says at the side of these figures; the page says it above them."""
DPI = 300
"""Points an inch of a figure as PNG."""
EDGES = 3000
"""Edges drawn, at most."""


class Drawn(NamedTuple):
    """A figure, what it shows in words for whoever can't see it, and the caption below it."""

    figure: Figure
    alt: str
    caption: str


class PageFigure(NamedTuple):
    """A drawing in the colours of the page."""

    svg: str
    alt: str
    caption: str


def drawn(run: RunData, paint: Paint) -> dict[str, Drawn]:
    """Draw every figure that the run has data for; by name."""
    makers: dict[str, Callable[[RunData, Paint], tuple[Figure, str, str] | None]] = {
        "score": _score, "consensus": _consensus, "topology": _topology, "traffic": _traffic, "time": _time,
        "survival": clinical_figures.survival, "observed": clinical_figures.observed,
        "roc": clinical_figures.roc, "calibration": clinical_figures.calibration,
        "explanations": explanation_figures.explanations, "importance": explanation_figures.importance,
        "leaks": leak_figures.nearness, "reconstructed": leak_figures.reconstructed,
        **{fit: partial(clinical_figures.forest, fit) for fit in published.TITLES},
    }  # fmt: skip
    made = {name: make(run, paint) for name, make in makers.items()}
    return {name: Drawn(*each) for name, each in made.items() if each is not None}


def pictures(run: RunData) -> dict[str, PageFigure]:
    """Draw every figure for the page; by name."""
    with matplotlib.rc_context({**of_report(ON_PAGE), "svg.fonttype": "none", "svg.hashsalt": "p2pfl"}):
        return {
            name: PageFigure(_svg(each.figure, name, each.alt), each.alt, each.caption)
            for name, each in drawn(run, ON_PAGE).items()
        }


def save(run: RunData, at: Mapping[str, Path]) -> dict[str, Drawn]:
    """Write the figures as PNG and SVG, in the light colours of the page; return them by name.

    `at`: of each figure that may be drawn, its file without an ending.
    """
    # as curves: a file looks the same wherever it is opened
    with matplotlib.rc_context({**of_report(LIGHT), "svg.fonttype": "path", "svg.hashsalt": "p2pfl"}):
        made = drawn(run, LIGHT)
        for name, each in made.items():
            each.figure.patch.set(visible=True, facecolor=LIGHT.paper)
            if name in UPWARDS:
                each.figure.axes[0].set_ylabel(UPWARDS[name])
            each.figure.set_dpi(DPI)
            FigureCanvasAgg(each.figure).print_png(at[name].with_suffix(".png"), metadata={"Software": None})
            FigureCanvasSVG(each.figure).print_svg(at[name].with_suffix(".svg"), metadata={"Date": None})
    return made


def thin(x: np.ndarray, y: np.ndarray, take: Callable[[np.ndarray], float]) -> tuple[np.ndarray, np.ndarray]:
    """At most POINTS points: runs of neighbouring ones become one, at their last x, `take` of their finite values."""
    known = np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) <= POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), POINTS)
    return np.array([x[part[-1]] for part in parts]), np.array([take(y[part]) for part in parts])


def _last(values: np.ndarray) -> float:
    return float(values[-1])


def _svg(figure: Figure, name: str, alt: str) -> str:
    """The drawing without header, size and date, in the colours of the page."""
    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(text, metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    variable = dict(zip(ON_PAGE, CSS, strict=True))
    svg = re.sub("#0000[01][0-9a-f]", lambda at: f"var({variable[at[0]]})" if at[0] in variable else at[0], svg)
    svg = re.sub(r'\bid="|(?<=xlink:href=")#|(?<=url\()#', lambda found: f"{found[0]}{name}-", svg)
    head, body = svg.split(">", 1)
    head = re.sub(r' (width|height|version)="[^"]*"', "", head)
    label = alt.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return f'{head} role="img" aria-label="{label}">{body}'


def _axes(width: float, height: float, rounds: bool = True) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    if rounds:
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return figure, axes


# ---------------------------------------------------------------- the score


def _score(run: RunData, paint: Paint) -> tuple[Figure, str, str] | None:
    nodes, final, score = run.nodes, run.nodes.final(), run.summary.shown
    x, mean = thin(run.series["round"], run.series["score_mean"], _last)
    if nodes.own or not len(x):
        x, mean = _mean_of(nodes)
    if not len(x):
        return None
    figure, axes = _axes(9.2, 4.3)
    gone = {absence.node for absence in run.absences if absence.out is not None and absence.back is None}
    there = [node for node in final if np.isfinite(final[node]) and node not in gone]
    worst = min(there, key=lambda node: (final[node], node), default=None)
    named = len(nodes.ids) <= NAMED
    _node_lines(axes, nodes, final, worst, paint)
    axes.plot(x, mean, color=paint.ink, linewidth=2.6, zorder=2.5 if named else 5)
    ends = [(float(mean[-1]), f"mean {score.text(float(mean[-1]))}", paint.ink)]
    if worst is not None and len(nodes.ids) > 1:
        ends.append(
            (final[worst], f"worst: node {worst}, {score.text(final[worst])}", paint.ink if named else paint.vermillion)
        )
    if not nodes.own:
        compared = ((run.summary.score_pooled, "all data pooled"), (run.summary.score_local_only, "every node alone"))
        for value, words in compared:
            if value is not None and measured(value) is not None:
                axes.axhline(value, color=paint.muted, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
                ends.append((value, f"{words} {score.text(value)}", paint.muted))
    measure = f"{score.name} on own test data" if nodes.own else score.name
    axes.set_ylabel(measure)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(score, value)))
    axes.margins(x=0.01)
    _end_labels(axes, ends)
    ticks = _churn(axes, run.absences, paint)
    if named and len(nodes.ids) > 1:
        columns = len(nodes.ids) if len(nodes.ids) <= 8 else 6
        figure.legend(loc="outside lower center", ncols=columns, handlelength=1.8, fontsize=7.5)
    alt = f"{_capital(measure)} of every node over the rounds: {'; '.join(text for _, text, _ in ends)}."
    return figure, alt, _score_caption(len(nodes.ids), any(tint == paint.muted for *_, tint in ends), score) + ticks


def _tick(score: Score, value: float) -> str:
    return f"{100 * value:.4g} %" if score.in_percent else f"{value:.4g}"


def _capital(text: str) -> str:
    """With a capital at the beginning, and the others as they are: R2, Dice."""
    return text[:1].upper() + text[1:]


def _score_caption(count: int, compared: bool, score: Score) -> str:
    lines = "the nodes" if count <= NAMED else "the nodes, the one that ended worst in colour"
    if count > LINES:
        lines = f"{LINES} of {count:,} nodes, picked evenly by final {score.name}, the one that ended worst in colour"
    dashed = "; dashed: where the runs to compare with ended" if compared else ""
    return f"Thin lines: {lines}; bold: the mean of all{dashed}."


def _mean_of(nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
    """The mean over those nodes that were measured in a column."""
    known = np.isfinite(nodes.score)
    some = known.any(axis=0)
    total = np.where(known, nodes.score, 0).sum(axis=0)[some]
    x = np.where(known, nodes.round, -1).max(axis=0, initial=-1)[some]
    return x, total / known.sum(axis=0)[some]


def _node_lines(axes: Axes, nodes: Nodes, final: dict[int, float], worst: int | None, paint: Paint) -> None:
    order = sorted(range(len(nodes.ids)), key=lambda i: (np.nan_to_num(final[nodes.ids[i]], nan=-1), i))
    picked = {order[int(k)] for k in np.linspace(0, len(order) - 1, min(LINES, len(order))).round()}
    for i, node in enumerate(nodes.ids):
        if i not in picked and node != worst:
            continue
        x, y = _by_life(nodes, i)
        if len(nodes.ids) <= NAMED:
            dashes = "-" if i < 7 else (0, (3, 1.2))
            axes.plot(x, y, color=paint.lines[i % 7], linewidth=1.0, linestyle=dashes, zorder=3,
                      label=f"node {node}", marker="o" if len(x) <= 40 else "", markersize=2)  # fmt: skip
        elif node == worst:
            axes.plot(x, y, color=paint.vermillion, linewidth=1.2, zorder=4)
        else:
            axes.plot(x, y, color=paint.grey, linewidth=0.6, alpha=0.55, zorder=2)


def _by_life(nodes: Nodes, i: int) -> tuple[np.ndarray, np.ndarray]:
    """The line of a node, broken where it crashed and came back."""
    known = np.flatnonzero(np.isfinite(nodes.score[i]))
    cut = np.flatnonzero(np.diff(nodes.life[i][known])) + 1
    return np.insert(nodes.round[i][known], cut, np.nan), np.insert(nodes.score[i][known], cut, np.nan)


def _end_labels(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Labels right of the frame at the height of their lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    apart, place = 0.052, -1.0
    ends = sorted(ends, key=lambda end: (end[0], end[1]))
    places = []
    for value, _, _ in ends:
        place = max((value - low) / (high - low), place + apart)
        places.append(place)
    ceiling = 1.0
    for k in reversed(range(len(places))):
        places[k] = min(places[k], ceiling)
        ceiling = places[k] - apart
    for place, (_, text, color) in zip(places, ends, strict=True):
        axes.annotate(text, (1.012, place), xycoords="axes fraction", va="center", color=color, annotation_clip=False)


def _churn(axes: Axes, absences: list[Absence], paint: Paint) -> str:
    """A vertical line and a label for each node that went or came; if many, ticks; returns what they mean."""
    moments = [(a.out, f"node {a.node} {a.kind}", paint.vermillion) for a in absences if a.out is not None]
    for a in absences:
        if a.back is not None:
            moments.append((a.back, f"node {a.node} {'joined' if a.out is None else 'back'}", paint.green))
    moments.sort()
    if len(moments) > LABELS:
        for color, end in ((paint.vermillion, 1.03), (paint.green, 0.97)):
            at = [moment for moment, _, tint in moments if tint == color]
            axes.vlines(at[:: max(1, len(at) // POINTS)], 1.0, end, transform=axes.get_xaxis_transform(), color=color,
                        linewidth=0.8, clip_on=False)  # fmt: skip
        return " Ticks at the top: a node went away (upwards) or came (downwards)."
    low, high = axes.get_xlim()
    level_end: list[float] = []  # where the last label of each level ends, in axes fractions
    for moment, text, color in moments:
        axes.axvline(moment, color=color, linewidth=0.9, linestyle=(0, (1.5, 1.5)), zorder=1)
        start = (moment - low) / (high - low)
        level = next((k for k, end in enumerate(level_end) if end < start), len(level_end))
        level_end[level : level + 1] = [start + 0.0105 * len(text) + 0.01]
        axes.annotate(text, (moment, 1), (0, 3 + 10 * level), xycoords=axes.get_xaxis_transform(),
                      textcoords="offset points", fontsize=7.5, color=color, annotation_clip=False)  # fmt: skip
    return ""


# ---------------------------------------------------------------- the three small ones


def _consensus(run: RunData, paint: Paint) -> tuple[Figure, str, str] | None:
    x, y = thin(run.series["round"], run.series["consensus_distance"], lambda values: float(values.mean()))
    x, y = x[y > 0], y[y > 0]
    if not len(x):
        return None
    figure, axes = _axes(4.5, 2.8)
    _gone(axes, run.absences, paint)
    axes.semilogy(x, y, color=paint.blue, linewidth=1.3)
    short = FuncFormatter(lambda value, _: f"{value:.2g}".replace("e-0", "e-"))
    axes.yaxis.set_major_formatter(short)  # the usual one writes TeX
    if 10 * y.min() <= y.max() < 1000 * y.min():
        axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    # else perhaps no label at all, or one
    axes.yaxis.set_minor_formatter(short if y.max() < 1000 * y.min() else NullFormatter())
    alt = f"Consensus distance over the rounds, logarithmic: from {terminal.figure(y[0])} to {terminal.figure(y[-1])}."
    return figure, alt, "How far the models are from their mean. Low does not mean right: see the section on truth."


def _traffic(run: RunData, paint: Paint) -> tuple[Figure, str, str] | None:
    x, y = thin(run.series["round"], run.series["bytes_sent"], lambda values: float(values.mean()))
    if not len(x):
        return None
    figure, axes = _axes(4.5, 2.8)
    _gone(axes, run.absences, paint)
    axes.fill_between(x, y, color=paint.sky, alpha=0.3, linewidth=0)
    axes.plot(x, y, color=paint.blue, linewidth=1.2)
    axes.set_ylim(0, 1.12 * max(float(y.max()), 1))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: terminal.size(value).replace(".0 ", " ")))
    alt = f"Bytes sent by all nodes per round: between {terminal.size(y.min())} and {terminal.size(y.max())}."
    return figure, alt, "Sent by all nodes together, in each round."


def _time(run: RunData, paint: Paint) -> tuple[Figure, str, str] | None:
    x, y = thin(run.series["round"], run.series["seconds_median"], lambda values: float(np.median(values)))
    if not len(x):
        return None
    figure, axes = _axes(4.5, 2.8)
    _gone(axes, run.absences, paint)
    axes.plot(x, y, color=paint.blue, linewidth=1.2, label="round")
    known = np.isfinite(run.nodes.waited)
    some = known.any(axis=0)
    if some.any():
        span = float(run.series["round"][-1])
        at = (np.flatnonzero(some) + 1) * (span + 1) / len(some) - 1
        waits = [float(np.nanmedian(column)) for column in run.nodes.waited.T[some]]
        axes.plot(at, waits, color=paint.orange, linewidth=1.2, label="waiting for neighbours")
        axes.legend(loc="upper right", fontsize=7.5)
    usual = float(np.quantile(y, 0.9))
    clipped = float(y.max()) > 4 * usual > 0
    axes.set_ylim(0, 1.3 * (usual if clipped else max(float(y.max()), 1e-9)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda t, _: terminal.duration(t).replace(".0 ", " ") if t else "0"))
    caption = "Median over the nodes, and how much of it they waited."
    caption += f" Cut off above: the slowest took {terminal.duration(y.max())}." if clipped else ""
    return (
        figure,
        f"Time of a round: median {terminal.duration(np.median(y))}, at most {terminal.duration(y.max())}.",
        caption,
    )


def _gone(axes: Axes, absences: list[Absence], paint: Paint) -> None:
    """Faint lines where nodes went and came, without labels: the first figure has them."""
    if 2 * len(absences) <= LABELS:
        for absence in absences:
            for moment, color in ((absence.out, paint.vermillion), (absence.back, paint.green)):
                if moment is not None:
                    axes.axvline(moment, color=color, linewidth=0.8, linestyle=(0, (1.5, 1.5)), zorder=1)


# ---------------------------------------------------------------- topology


def _edges(topology: dict[str, Any]) -> Iterator[tuple[int, int]]:
    listed = topology.get("edges")
    for edge in listed if isinstance(listed, list) else []:
        if isinstance(edge, list) and len(edge) >= 2 and all(isinstance(end, int) for end in edge[:2]):
            yield edge[0], edge[1]


def _topology(run: RunData, paint: Paint) -> tuple[Figure, str, str] | None:
    count = run.topology.get("nodes")
    graph = nx.Graph()
    graph.add_nodes_from(range(count) if isinstance(count, int) else [])
    graph.add_edges_from(_edges(run.topology))
    final = run.nodes.final()
    if not len(graph):
        return None
    ids = sorted(graph)
    named = str(run.topology.get("graph")) in ("ring", "complete", "full", "exponential")
    circle = named or len(ids) > 150 or not nx.is_connected(graph)  # springs would throw the loose parts far away
    layout = nx.circular_layout(ids) if circle else nx.spring_layout(graph, seed=0, iterations=300)
    at = np.array([layout[node] for node in ids])
    if circle:
        at = np.stack([at[:, 1], at[:, 0]], axis=1)  # the first node on top, then clockwise
    place = dict(zip(ids, at, strict=True))
    edges = sorted((min(edge), max(edge)) for edge in graph.edges)
    drawn = edges[:: -(-len(edges) // EDGES)] if edges else []
    figure, axes = _axes(4.5, 2.8, rounds=False)
    width, alpha = (1.0, 0.8) if len(drawn) < 200 else (0.3, 0.3)
    lines = [(place[a], place[b]) for a, b in drawn]
    axes.add_collection(LineCollection(lines, colors=paint.muted, linewidths=width, alpha=alpha, zorder=1))
    gone = {absence.node for absence in run.absences if absence.out is not None and absence.back is None}
    _dots(figure, axes, ids, at, final, gone, run.summary.shown, paint)
    caption = (
        f"Coloured by final {run.summary.score_name}." if any(np.isfinite(value) for value in final.values()) else ""
    )
    caption += _marks(axes, place, run.absences, _dot_size(len(ids)), paint)
    caption += f" {len(drawn):,} of {len(edges):,} edges are drawn." if len(drawn) < len(edges) else ""
    axes.set_aspect("equal")
    axes.margins(0.12)
    axes.set_axis_off()
    return figure, f"The graph: {len(ids):,} nodes, {len(edges):,} edges.", caption.strip()


def _dot_size(count: int) -> float:
    return 330.0 if count <= 12 else 180.0 if count <= 40 else 36.0 if count <= 150 else 9.0


def _dots(
    figure: Figure,
    axes: Axes,
    ids: list[int],
    at: np.ndarray,
    final: dict[int, float],
    gone: set[int],
    score: Score,
    paint: Paint,
) -> None:
    """The nodes in colours whose scale is that of the nodes still there: one that went early would stretch it."""
    values = np.array([final.get(node, np.nan) for node in ids])
    known = np.isfinite(values)
    colors = [paint.paper] * len(ids)
    if known.any():
        there = known & np.array([node not in gone for node in ids])
        scaled = values[there if there.any() else known]
        low, high = float(scaled.min()), float(scaled.max())
        if high - low < 0.005:
            low, high = low - 0.0025, low + 0.0025
        scale = ScalarMappable(
            BoundaryNorm(np.linspace(low, high, 6), 256),
            LinearSegmentedColormap.from_list("score", SHADES),
        )
        colors = [to_hex(tuple(scale.to_rgba(value))) if np.isfinite(value) else paint.paper for value in values]
        bar = figure.colorbar(scale, ax=axes, shrink=0.7, aspect=18, pad=0.02, format=lambda x, _: score.text(x))
        bar.outline.set_visible(False)
    edge = 0.7 if len(ids) <= 150 else 0.2
    axes.scatter(at[:, 0], at[:, 1], s=_dot_size(len(ids)), c=colors, edgecolors=paint.ink, linewidths=edge, zorder=3)
    if len(ids) <= 40:
        for node, place, color in zip(ids, at, colors, strict=True):
            light = np.dot(to_rgb(color), (0.3, 0.59, 0.11)) > 0.53
            tint = paint.ink if color == paint.paper else "#111111" if light else "#ffffff"
            points = 8 if len(ids) <= 12 else 6.5
            axes.text(place[0], place[1], str(node), ha="center", va="center", fontsize=points, color=tint, zorder=4)


def _marks(axes: Axes, place: dict[int, np.ndarray], absences: list[Absence], dot: float, paint: Paint) -> str:
    """Rings around the nodes that went: dotted if they came back. Returns what the rings mean."""
    last = {absence.node: absence.back for absence in absences if absence.out is not None and absence.node in place}
    text = ""
    for style, nodes, words in (
        ((0, (1.5, 1.5)), [n for n in sorted(last) if last[n] is not None], "dotted ring: was away and came back."),
        ("-", [n for n in sorted(last) if last[n] is None], "full ring: went away and did not come back."),
    ):
        if nodes:
            at = np.array([place[node] for node in nodes])
            axes.scatter(at[:, 0], at[:, 1], s=2.1 * dot, facecolors="none", edgecolors=paint.vermillion,
                         linewidths=1.5, linestyles=[style], zorder=2)  # fmt: skip
            text += f" {words.capitalize()}"
    return text
