"""The figures of `p2pfl audit`: rows that were found beside the true ones, and how near each attack has come."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from p2pfl.reporting.leaks import RECOGNISED
from p2pfl.reporting.run_data import RunData, measured
from p2pfl.reporting.style import Paint

ACROSS = 8
"""Pairs of a setting, at most."""
SETTINGS = 8
"""Settings, at most."""
Drawn = tuple[Figure, str, str]
"""Figure, what it shows in words, caption."""


def reconstructed(run: RunData, paint: Paint) -> Drawn | None:
    """Draw, of every setting, what the nearest attack has found below what is true."""
    lines = [(name, said) for name, said in _best(run) if run.leaked_rows[f"{name}/found"].ndim == 4][:SETTINGS]
    if not lines:
        return None
    figure = Figure(figsize=(9.2, 0.3 + 1.95 * len(lines)), layout="constrained")
    figure.patch.set_visible(False)
    parts = figure.subfigures(len(lines), 1, squeeze=False)[:, 0]
    for part, (name, said) in zip(parts, lines, strict=True):
        part.patch.set_visible(False)
        part.suptitle(said, fontsize=8, color=paint.ink, x=0.01, ha="left")
        grid = part.subplots(2, ACROSS, squeeze=False)
        pairs = (run.leaked_rows[f"{name}/true"], run.leaked_rows[f"{name}/found"])
        for row, (rows, title) in enumerate(zip(pairs, ("true", "found"), strict=True)):
            for place in range(ACROSS):
                _image(grid[row, place], rows[place] if place < len(rows) else None, pairs[0])
            grid[row, 0].set_ylabel(title, fontsize=7, color=paint.ink)
    alt = f"Images that were trained on in {len(lines)} settings, and what an attack has made of messages."
    return figure, alt, "Of each setting the attack that comes nearest, and the pairs that are nearest."


def _best(run: RunData) -> list[tuple[str, str]]:
    """Of each setting the attack that comes nearest: (name of its arrays, words)."""
    found: dict[Any, tuple[float, str, str]] = {}
    rows = [row for row in run.leaked.get("inversion", []) if isinstance(row, dict)]
    far = [row for row in (run.leaked.get("graph") or {}).get("inversion", []) if isinstance(row, dict)]
    for row in rows:
        name, value = f"{row.get('case')}/{row.get('attack')}", measured(row.get("psnr"))
        own = ", this run" if row.get("own") else ""
        _nearest(run, found, row.get("case"), row, name, f"{row.get('said')}{own}", value)
    for row in far:
        key = f"graph {row.get('node')} {row.get('round')} {row.get('how')}"
        value = measured(row.get("psnr"))
        words = f"node {row.get('node')}, solved for over the graph ({row.get('how')})"
        _nearest(run, found, key, row, f"{key}/{row.get('attack')}", words, value)
    return [(name, said) for _, name, said in found.values()]


def _nearest(
    run: RunData, found: dict[Any, tuple[float, str, str]], key: Any, row: dict[str, Any], name: str, words: str,
    value: float | None,
) -> None:  # fmt: skip
    if row.get("attack") == "guess" or value is None or f"{name}/found" not in run.leaked_rows:
        return
    if key not in found or value > found[key][0]:
        found[key] = (value, name, f"{words}: {row.get('attack')}, {value:.1f} dB")


def _image(axes: Any, picture: np.ndarray | None, like: np.ndarray) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if picture is None:
        return
    low, high = float(like.min()), float(like.max())
    shown = np.clip((picture - low) / ((high - low) or 1.0), 0, 1)
    axes.imshow(shown if shown.shape[-1] == 3 else shown[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def nearness(run: RunData, paint: Paint) -> Drawn | None:
    """Draw how near every attack comes in every setting."""
    rows = [row for row in run.leaked.get("inversion", []) if isinstance(row, dict)]
    rows = [row for row in rows if measured(row.get("psnr")) is not None]
    if not rows:
        return None
    said = list(dict.fromkeys(str(row.get("said")) for row in rows))
    names = list(dict.fromkeys(str(row.get("attack")) for row in rows))
    figure = Figure(figsize=(9.2, 0.9 + 0.3 * len(said)), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    for place, name in enumerate(names):
        of = [row for row in rows if row.get("attack") == name]
        at = [len(said) - 1 - said.index(str(row.get("said"))) for row in of]
        guess = name == "guess"
        color = paint.muted if guess else paint.lines[(place - 1) % len(paint.lines)]
        axes.plot([row["psnr"] for row in of], at, "|" if guess else "o", color=color, markersize=10 if guess else 4.5,
                  label=name)  # fmt: skip
    axes.axvline(RECOGNISED, color=paint.muted, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(said))[::-1], said)
    axes.set_ylim(-0.6, len(said) - 0.4)
    axes.set_xlabel("PSNR, dB")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    alt = f"PSNR of {len(names)} attacks in {len(said)} settings."
    return figure, alt, (
        f"The farther right, the nearer a row has come back; left of the dotted line ({RECOGNISED:g} dB) nothing is "
        "recognised, as a rule of thumb. A guess is made without any message."
    )  # fmt: skip
