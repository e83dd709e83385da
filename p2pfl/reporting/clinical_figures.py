"""The figures that clinical papers print: a forest plot, survival by risk group, ROC, predicted against observed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from p2pfl.reporting import published
from p2pfl.reporting.run_data import RunData, measured
from p2pfl.reporting.style import Paint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 60
"""Rows of a forest plot, at most."""
Drawn = tuple[Figure, str, str]
"""Figure, what it shows in words, caption."""


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_visible(False)
    return figure, figure.add_subplot()


def forest(key: str, run: RunData, paint: Paint) -> Drawn | None:
    """Draw the ratios of a fit of coefficients.json with their intervals, the columns from the top down."""
    fit = run.coefficients.get(key)
    known = [row for row in (fit or {}).get("rows", []) if _finite(row) and row.get("name") != "(intercept)"][:ROWS]
    if not known:
        return None
    figure, axes = _axes(9.2, 0.6 + 0.24 * len(known))
    at = np.arange(len(known))[::-1]
    ratio, low, high = (np.array([row[name] for row in known]) for name in ("ratio", "low", "high"))
    ends = np.clip([low, high], 1e-3, 1e3)
    axes.hlines(at, *ends, color=paint.blue, linewidth=1.2)
    axes.plot(np.clip(ratio, 1e-3, 1e3), at, "s", color=paint.blue, markersize=4)
    axes.axvline(1, color=paint.muted, linewidth=0.8, linestyle=(0, (3, 2)))
    axes.set_xscale("log")
    axes.set_yticks(at, [str(row["name"]) for row in known])
    axes.grid(False)
    short = FuncFormatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_formatter(short)
    axes.xaxis.set_minor_formatter(short if ends.max() < 20 * ends.min() else NullFormatter())
    what = str(run.coefficients.get("ratio", "ratio"))
    axes.set_xlabel(f"{what} for {run.coefficients.get('unit', 'a unit')}, 95 % interval")
    clear = sum(bool(a > 1 or b < 1) for a, b in zip(low, high, strict=True))
    alt = f"Forest plot of {len(known)} {what}s; {clear} have an interval without 1."
    return (
        figure,
        alt,
        f"Right of 1: more of {run.coefficients.get('outcome')!r}. {clear} of {len(known)} intervals lie beside 1.",
    )


def _finite(row: Mapping[str, Any]) -> bool:
    return all((measured(row.get(name)) or 0) > 0 for name in ("ratio", "low", "high"))


def survival(run: RunData, paint: Paint) -> Drawn | None:
    """Draw Kaplan and Meier's curve of each risk group of survival.json."""
    groups = run.survival.get("groups")
    if not isinstance(groups, dict) or not groups:
        return None
    figure, axes = _axes(4.5, 2.8)
    for (name, group), color in zip(groups.items(), (paint.blue, paint.orange, paint.vermillion), strict=False):
        curve = group["curve"]
        time = np.array([0.0, *curve["time"], max(group["last"], *curve["time"], 0.0)])
        value = np.array([1.0, *curve["value"]])
        error = np.array([0.0, *curve["error"]])
        value, error = np.append(value, value[-1]), np.append(error, error[-1])
        axes.step(
            time, value, where="post", color=color, linewidth=1.3, label=f"{name}, {group['events']} of {group['rows']}"
        )
        axes.fill_between(time, np.clip(value - 1.96 * error, 0, 1), np.clip(value + 1.96 * error, 0, 1), step="post",
                          color=color, alpha=0.15, linewidth=0)  # fmt: skip
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("time")
    axes.legend(loc="lower left", fontsize=7.5)
    told = "; ".join(f"{name}: {group['events']} events of {group['rows']} rows" for name, group in groups.items())
    return figure, f"Survival by risk group. {told}.", (
        "Kaplan and Meier, with 95 % bands (Greenwood): test rows of all sites, grouped by thirds of the risks of "
        "their own site's training rows."
    )  # fmt: skip


def observed(run: RunData, paint: Paint) -> Drawn | None:
    """Draw predicted against observed survival at a time, of each risk group of survival.json."""
    groups = run.survival.get("groups")
    if not isinstance(groups, dict) or not groups:
        return None
    figure, axes = _axes(4.5, 2.8)
    predicted, seen, error = (
        np.array([group[name] for group in groups.values()]) for name in ("predicted", "observed", "error")
    )
    low = max(0.0, min(predicted.min(), (seen - 1.96 * error).min()) - 0.05)
    axes.plot([low, 1], [low, 1], color=paint.muted, linewidth=0.8, linestyle=(0, (3, 2)))
    axes.errorbar(predicted, seen, yerr=1.96 * error, fmt="o", color=paint.blue, markersize=4, linewidth=1)
    for name, x, y in zip(groups, predicted, seen, strict=True):
        axes.annotate(str(name), (x, y), (5, -8), textcoords="offset points", fontsize=7.5)
    axes.set_xlabel("predicted survival")
    axes.set_ylabel("observed")
    horizon = f"{run.survival.get('horizon'):g}"
    told = "; ".join(
        f"{name}: predicted {p:.2f}, observed {s:.2f}" for name, p, s in zip(groups, predicted, seen, strict=True)
    )
    return figure, f"Calibration at time {horizon}. {told}.", (
        f"Survival at time {horizon}, the median time of an event: the models' mean prediction (Breslow's baseline "
        "hazard of each site) against Kaplan and Meier. On the line: calibrated."
    )  # fmt: skip


def roc(run: RunData, paint: Paint) -> Drawn | None:
    """Draw the ROC curve of each site's model on the site's own test rows, from curves.json."""
    return _sites(run, paint, "roc", "1 - specificity", "sensitivity", (
        "ROC of each site's model on the site's own test rows.", "On the dashed line: knowing nothing.",
    ))  # fmt: skip


def calibration(run: RunData, paint: Paint) -> Drawn | None:
    """Draw how often each predicted probability is right, from curves.json."""
    return _sites(run, paint, "calibration", "predicted probability", "observed share", (
        "Calibration of each site's model on the site's own test rows.",
        "Own test rows in ten parts by predicted probability, at most. On the dashed line: calibrated.",
    ))  # fmt: skip


def _sites(run: RunData, paint: Paint, key: str, x: str, y: str, words: tuple[str, str]) -> Drawn | None:
    curves = run.assessed.get(key)
    if not isinstance(curves, dict) or not curves:
        return None
    figure, axes = _axes(4.5, 2.8)
    axes.plot([0, 1], [0, 1], color=paint.muted, linewidth=0.8, linestyle=(0, (3, 2)))
    few = len(curves) <= len(paint.lines)
    for i, (node, (across, up)) in enumerate(curves.items()):
        label = published.site_name(run.assessed, node) if few else None
        axes.plot(across, up, color=paint.lines[i] if few else paint.muted, linewidth=1.2 if few else 0.6, label=label,
                  marker="o" if key == "calibration" else "", markersize=2.5)  # fmt: skip
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if few:
        axes.legend(loc="lower right", fontsize=7)
    return figure, f"{words[0]} {len(curves)} sites.", f"{words[0]} {words[1]}"
