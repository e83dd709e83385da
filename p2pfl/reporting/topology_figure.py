"""The picture of a topology as a file: who sends to whom, a panel for each of the first rounds if they differ.

Drawn with matplotlib's object interface in the light colours of the report. Directed edges end in an arrow at the
receiver; a node in pale grey rests in that round.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import networkx as nx
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from p2pfl import topology
from p2pfl.errors import TopologyError
from p2pfl.reporting import style
from p2pfl.reporting.figures import EDGES
from p2pfl.types import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = 12
"""Rounds drawn, at most."""
ARROWS = 1500
"""Beyond so many edges the directed ones are lines without arrows."""
CIRCULAR = ("ring", "complete", "exponential", "one_peer_exponential", "base", "random_matching", "equitopo")
"""Named graphs in which the order of the nodes means something, and all look alike: drawn on a circle."""
INK, MUTED, PALE, PAPER = style.FILE
BLUE = style.FILE_PALETTE[0]


def save(schedule: Schedule, name: str, path: Path) -> None:
    """Write the picture of a schedule as PNG; `name`: of the graph, or of its file. Raises TopologyError."""
    if path.suffix.lower() != ".png":
        raise TopologyError(f"--draw {str(path)!r}: must end in .png")
    period, nodes, _ = schedule.neighbor.shape
    shown = min(period, PANELS)
    columns = min(shown, 4)
    rows = math.ceil(shown / columns)
    size = 5.2 if shown == 1 else 2.8
    with matplotlib.rc_context(style.TEXT):
        figure = Figure(figsize=(size * columns, (size + 0.35) * rows), layout="constrained", facecolor=PAPER)
        at = places(schedule, name)
        for t in range(shown):
            axes = figure.add_subplot(rows, columns, t + 1)
            drawn, edges = _panel(axes, schedule, at, t, shown)
            some = f" ({drawn:,} drawn)" if drawn < edges else ""
            what = f"{name}, {nodes:,} nodes" if shown == 1 else f"round {t + 1}"
            axes.set_title(f"{what}: {edges:,} edges{some}", color=INK, fontsize=9 if shown == 1 else 8)
        if shown > 1:
            rest = f", the first {shown} of {period:,} rounds" if shown < period else ""
            figure.suptitle(f"{name}, {nodes:,} nodes{rest}", color=INK, fontsize=10)
        FigureCanvasAgg(figure).print_png(path)


def places(schedule: Schedule, name: str) -> np.ndarray:
    """[n, 2] where the nodes stand: a circle with node 0 on top, clockwise; a grid; or where springs pull them."""
    nodes = schedule.neighbor.shape[1]
    ids = np.arange(nodes)
    if name == "grid" and nodes > 1:
        high = next(r for r in range(math.isqrt(nodes), 0, -1) if nodes % r == 0)
        return np.stack([ids % (nodes // high), -(ids // (nodes // high))], axis=1).astype(float)
    if name == "path":
        return np.stack([ids, np.zeros(nodes)], axis=1).astype(float)
    angle = 2 * np.pi * ids / max(nodes, 1)
    circle = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    if name == "star":
        rim = 2 * np.pi * (ids - 1) / max(nodes - 1, 1)
        return np.where(ids[:, None] == 0, 0.0, np.stack([np.sin(rim), np.cos(rim)], axis=1))
    graph = topology.union(schedule)
    if name in CIRCULAR or nodes > 150 or not nx.is_connected(graph):
        return circle
    springs = nx.spring_layout(graph, seed=0, iterations=300)
    return np.array([springs[i] for i in ids])


def _panel(axes: Axes, schedule: Schedule, at: np.ndarray, t: int, panels: int) -> tuple[int, int]:
    """One round; returns how many edges are drawn and how many there are."""
    nodes = len(at)
    sender, slot = np.nonzero(schedule.out_weight[t] > 0)
    arcs = np.stack([sender, schedule.neighbor[t, sender, slot]], axis=1)
    both = {(int(a), int(b)) for a, b in arcs}
    mutual = np.array([(b, a) in both for a, b in arcs.tolist()], bool)
    lines, arrows = arcs[mutual & (arcs[:, 0] < arcs[:, 1])], arcs[~mutual]
    edges = len(lines) + len(arrows)
    every = max(1, -(-edges // EDGES))
    lines, arrows = lines[::every], arrows[::every]
    width, alpha = (1.1, 0.8) if edges < 200 else (0.3, 0.35)
    dot = (330.0 if nodes <= 12 else 150.0 if nodes <= 40 else 30.0 if nodes <= 150 else 6.0) / (
        1 if panels == 1 else 2
    )
    if len(arrows) > ARROWS:
        lines, arrows = np.concatenate([lines, arrows]), arrows[:0]
    axes.add_collection(LineCollection(list(at[lines]), colors=MUTED, linewidths=width, alpha=alpha, zorder=1))
    for a, b in arrows.tolist():
        arrow = FancyArrowPatch(
            tuple(at[a]), tuple(at[b]), arrowstyle="-|>", mutation_scale=9 if edges < 100 else 6, color=MUTED,
            linewidth=width, alpha=alpha, shrinkA=math.sqrt(dot) / 2, shrinkB=math.sqrt(dot) / 2, zorder=1,
        )  # fmt: skip
        axes.add_patch(arrow)
    rests = ~((schedule.weight[t] > 0) | (schedule.out_weight[t] > 0)).any(axis=1) & (nodes > 1)
    colors = np.where(rests, PALE, BLUE)
    edge = 0.5 if nodes <= 150 else 0
    axes.scatter(at[:, 0], at[:, 1], s=dot, c=colors, edgecolors=PAPER, linewidths=edge, zorder=3)
    if nodes <= 40:
        points = (8.0 if nodes <= 12 else 6.5) - (0 if panels == 1 else 1.5)
        for i, (x, y) in enumerate(at):
            tint = INK if rests[i] else PAPER
            axes.text(x, y, str(i), ha="center", va="center", fontsize=points, color=tint, zorder=4)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.1)
    axes.set_axis_off()
    return len(lines) + len(arrows), edges
