"""The figures of `p2pfl explain`: images with what each method finds in them, and the importance of columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from p2pfl.reporting import published
from p2pfl.reporting.run_data import RunData, measured
from p2pfl.reporting.style import SHADES, Paint

ROWS = 16
"""Images shown, at most."""
COLUMNS = 30
"""Columns of a table shown, at most: the most important ones."""
NAMED = 8
"""Sites that get a colour; of more, the first."""
METHODS = (("integrated", "integrated gradients"), ("occlusion", "occlusion"), ("grad_cam", "Grad-CAM"))
SIGNED = LinearSegmentedColormap.from_list("signed", ("#1f74a8", "#f7f7f7", "#b2182b"))
"""Against and for: the same on every page, as the pictures are."""
Drawn = tuple[Figure, str, str]
"""Figure, what it shows in words, caption."""


def explanations(run: RunData, paint: Paint) -> Drawn | None:
    """Draw images of each site, and beside each what every method finds."""
    sites = {site: table for site, table in run.explained.get("sites", {}).items() if f"{site}/x" in run.shown}
    each = max(ROWS // max(len(sites), 1), 1)
    lines = [
        (site, place, table) for site, table in sites.items() for place in range(min(len(run.shown[f"{site}/x"]), each))
    ][:ROWS]
    if not lines:
        return None
    methods = [each for each in METHODS if any(f"{site}/{each[0]}" in run.shown for site, _, _ in lines)]
    figure = Figure(figsize=(2.2 * (1 + len(methods)), 0.4 + 1.75 * len(lines)), layout="constrained")
    figure.patch.set_visible(False)
    grid = figure.subplots(len(lines), 1 + len(methods), squeeze=False)
    for axes, (site, place, table) in zip(grid, lines, strict=True):
        _image(axes[0], _slice(run.shown[f"{site}/x"][place], True))
        axes[0].set_ylabel(_called(run, site, place, table), fontsize=7, color=paint.ink)
        for at, (key, _) in zip(axes[1:], methods, strict=True):
            found = run.shown.get(f"{site}/{key}")
            if found is not None:
                _map(at, _slice(found[place], False), signed=key != "grad_cam")
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
    for axes, title in zip(grid[0], ("image", *(name for _, name in methods)), strict=True):
        axes.set_title(title, fontsize=8, color=paint.ink)
    off = max((measured(each.get("off")) or 0.0 for _, _, table in lines for each in table["completeness"]), default=0)
    alt = f"{len(lines)} images, each with what {len(methods)} methods find in it."
    missing = "" if len(methods) == len(METHODS) else " Grad-CAM needs a model with the methods maps and from_maps."
    return figure, alt, (
        "Red speaks for the class that is named, blue against it; Grad-CAM shows what speaks for it alone. From black; "
        f"integrated gradients add up to the change of the log odds within {off:.1g}.{missing}"
    )  # fmt: skip


def _called(run: RunData, site: str, place: int, table: Mapping[str, Any]) -> str:
    """Whose image it is, and what is explained of it."""
    said = f"{site}\n{table['target'][place]}"
    truth, classes = run.shown.get(f"{site}/truth"), run.explained.get("classes", [])
    if truth is not None and classes[int(truth[place])] != table["target"][place]:
        said += f"\n(is {classes[int(truth[place])]})"
    return said


def _slice(picture: np.ndarray, channels: bool) -> np.ndarray:
    """Of a volume the slice in the middle."""
    return picture[len(picture) // 2] if picture.ndim == (4 if channels else 3) else picture


def _image(axes: Any, picture: np.ndarray) -> None:
    low, high = float(picture.min()), float(picture.max())
    shown = (picture - low) / ((high - low) or 1.0)
    shown = shown[..., 0] if shown.shape[-1] != 3 else shown
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _map(axes: Any, found: np.ndarray, signed: bool) -> None:
    most = float(np.abs(found).max()) or 1.0
    if signed:
        axes.imshow(found, cmap=SIGNED, vmin=-most, vmax=most, interpolation="nearest")
    else:
        shades = LinearSegmentedColormap.from_list("for", SHADES)
        axes.imshow(found, cmap=shades, vmin=0, vmax=most, interpolation="nearest")


def importance(run: RunData, paint: Paint) -> Drawn | None:
    """Draw by how much the figure falls at each site when a column is shuffled, the most important ones on top."""
    sites = {site: table for site, table in run.explained.get("sites", {}).items() if table.get("columns")}
    if not sites:
        return None
    known = {site: table for site, table in sites.items() if measured(table.get("value")) is not None}
    key, spread = ("importance", "sd") if known else ("integrated", "")
    tables = known or sites
    columns: list[str] = next(iter(tables.values()))["columns"]
    values = np.array([[_number(each) for each in table[key]] for table in tables.values()])
    order = np.argsort(-np.nan_to_num(values).mean(axis=0), kind="stable")[:COLUMNS]
    figure = Figure(figsize=(9.2, 0.9 + 0.26 * len(order)), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    at = np.arange(len(order))[::-1]
    for place, (site, table) in enumerate([*tables.items()][:NAMED]):
        color, shift = paint.lines[place % len(paint.lines)], 0.6 * (place / min(len(tables), NAMED) - 0.4)
        ends = np.array([_number(each) for each in table[spread]])[order] if spread else None
        axes.errorbar(values[place][order], at - shift, xerr=ends, fmt="o", color=color, markersize=3.5,
                      linewidth=0.9, label=site)  # fmt: skip
    axes.axvline(0, color=paint.muted, linewidth=0.8)
    axes.set_yticks(at, [columns[place] for place in order])
    axes.legend(loc="lower right")
    figured = published.named(str(run.explained.get("figure", "")))
    axes.set_xlabel(f"fall of {figured} when the column is shuffled" if known else "mean size of integrated gradients")
    undefined = [site for site in sites if known and site not in known]
    said = (
        f"Mean and standard deviation of {run.explained.get('repeats')} shuffles of a site's own test rows. "
        if known
        else ""
    )
    more = f" At {', '.join(undefined)} the figure is not defined." if undefined else ""
    alt = f"Importance of {len(order)} columns at {len(tables)} sites; first {columns[order[0]]}."
    return (
        figure,
        alt,
        f"{said}Columns that tell the same share what they tell, so that each may seem to matter little.{more}",
    )


def _number(value: object) -> float:
    found = measured(value)
    return np.nan if found is None else found
