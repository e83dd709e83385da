"""Confidence intervals of metrics: the bootstrap within sites, and DeLong's variance of an AUC.

A resampling is a whole number for each row, how often it was drawn; of every site as many rows are drawn as it has. A
metric of a thousand resamplings is a few matrix products of these numbers, which is why scikit-learn, at a millisecond
for each metric and resampling, is not asked. A test holds each metric here, with every row once, to `metrics.assess`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from p2pfl.learning import metrics

LEVEL = 0.95
DRAWS = 1000
PAIRS = 2000
"""Rows up to which a C-index gets an interval: it compares all of them with all."""
LEAST = 10
"""Events, or rows of the rarer class, below which a score has no interval: as many of each kind as the usual rule asks
for the normal approximation of a share (Moore, McCabe and Craig, "Introduction to the practice of statistics"), which a
C-index or an AUC is: of pairs, as many as there are events. With fewer a bootstrap draws the same few again, or none,
and its intervals are too narrow. To judge a model by, a hundred events and more are asked for (Vergouwe et al. 2005;
Collins, Ogundimu and Altman 2016)."""
_PURPOSE = 0xB007
_ENOUGH = 0.9
"""Share of the resamplings in which a metric must be defined to have an interval."""

Interval = tuple[float, float]


class Basis(NamedTuple):
    """The rows that a score rests on."""

    n: int
    of: str  # "events", "rows of a class", "rows"

    @property
    def few(self) -> bool:
        """The flag that they are too few for an interval."""
        return self.n < LEAST


def basis(kind: str, metric: str, y: np.ndarray, classes: Sequence[str]) -> Basis:
    """Return what a metric of these rows rests on; arguments as for `metrics.assess`.

    >>> basis("survival", "c_index", np.array([[5.0, 1.0], [7.0, 0.0]]), ("risk",))
    Basis(n=1, of='events')
    >>> basis("classes", "specificity", np.array([1, 1, 0, 1]), ("well", "ill")).few
    True
    """
    if kind == "survival":
        return Basis(int((y[:, 1] > 0).sum()), "events")
    if kind == "classes" and metric in ("sensitivity", "specificity"):
        return Basis(int((y == (metric == "sensitivity")).sum()), _CLASS)
    if kind == "classes" and metric in _BETWEEN:
        counts = np.bincount(y, minlength=len(classes))
        return Basis(int((counts if len(classes) == 2 else counts[counts > 0]).min(initial=len(y))), _CLASS)
    if kind == "labels" and metric in _BETWEEN and len(y):
        there = (y > 0).sum(axis=0)
        return Basis(int(np.minimum(there, len(y) - there).min()), _CLASS)
    return Basis(len(y), "rows")


_BETWEEN = frozenset({"auc", "average_precision", "balanced_accuracy"})
"""Metrics that compare rows of one class with those of others."""
_CLASS = "rows of a class"


def resampled(site: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Return how often each row is drawn: [draws, N] float32; site [N], rows are drawn with those of their own site."""
    rng = np.random.default_rng([seed, _PURPOSE])
    weight = np.zeros((draws, len(site)), np.float32)
    for place in np.unique(site):
        rows = np.flatnonzero(site == place)
        weight[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=draws)
    return weight


def interval(draws: np.ndarray) -> Interval | None:
    """Return the central 95 % of resampled values [draws]; None where too few of them are defined."""
    known = draws[np.isfinite(draws)]
    if len(known) < _ENOUGH * len(draws) or not len(known):
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def delong(score: np.ndarray, positive: np.ndarray) -> tuple[float, float] | None:
    """Return the AUC and its standard error; score [N], positive [N] bool. None without two rows of each class.

    Source: DeLong, DeLong, Clarke-Pearson (1988); by ranks as in Sun and Xu (2014), "Fast implementation of DeLong's
    algorithm".
    """
    high, low = score[positive], score[~positive]
    if min(len(high), len(low)) < 2:
        return None
    all_ranks = stats.rankdata(np.concatenate([high, low]))
    above = (all_ranks[: len(high)] - stats.rankdata(high)) / len(low)  # of each positive: share of negatives below it
    below = 1 - (all_ranks[len(high) :] - stats.rankdata(low)) / len(high)
    return float(above.mean()), float(np.sqrt(above.var(ddof=1) / len(high) + below.var(ddof=1) / len(low)))


def delong_interval(score: np.ndarray, positive: np.ndarray) -> Interval | None:
    """Return the 95 % interval of an AUC by `delong`, within 0 and 1."""
    found = delong(score, positive)
    if found is None:
        return None
    half = stats.norm.ppf((1 + LEVEL) / 2) * found[1]
    return max(0.0, found[0] - half), min(1.0, found[0] + half)


def draws(
    kind: str, outputs: np.ndarray, y: np.ndarray, classes: Sequence[str], weight: np.ndarray
) -> dict[str, np.ndarray]:
    """Return metrics of each resampling by name, [draws] each, NaN where one is not defined there.

    `weight` [draws, N]: of `resampled`; outputs, y, classes: as for `metrics.assess`. Not of ece, f1_macro, and slope
    and intercept of a calibration. {} for no rows, and where an output is not finite.
    """
    if not len(y) or not np.isfinite(outputs).all():
        return {}
    with np.errstate(invalid="ignore", divide="ignore"):
        return _DRAWS[kind](outputs, y, classes, weight)


Drawn = dict[str, np.ndarray]


def _mean(weight: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean of values [N] over the rows of each resampling; a NaN is no row."""
    there = np.isfinite(values)
    mean: np.ndarray = weight @ np.where(there, values, 0) / (weight @ there.astype(np.float64))
    return mean


def _auc(weight: np.ndarray, score: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The weighted Mann-Whitney statistic of each resampling."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    here = weight[:, order].astype(np.float64)
    up, down = (np.add.reduceat(here * part[order], starts, axis=1) for part in (positive, ~positive))
    before = np.cumsum(down, axis=1) - down
    area: np.ndarray = (up * (before + down / 2)).sum(axis=1) / (up.sum(axis=1) * down.sum(axis=1))
    return area


def _average_precision(weight: np.ndarray, score: np.ndarray, positive: np.ndarray) -> np.ndarray:
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.diff(-score[order], prepend=-np.inf))
    here = weight[:, order].astype(np.float64)
    up, all_ = np.add.reduceat(here * positive[order], starts, axis=1), np.add.reduceat(here, starts, axis=1)
    total = np.cumsum(all_, axis=1)
    precision = np.divide(np.cumsum(up, axis=1), total, out=np.zeros_like(total), where=total > 0)
    mean: np.ndarray = (up * precision).sum(axis=1) / up.sum(axis=1)
    return mean


def _recalls(weight: np.ndarray, y: np.ndarray, right: np.ndarray, many: int) -> np.ndarray:
    """The recall of each class in each resampling, [many, draws]; NaN where the class is not in it."""
    return np.stack([_mean(weight, np.where(y == c, right, np.nan)) for c in range(many)])


def _average(rows: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """The mean over those of the first axis that are defined."""
    wide = np.asarray(rows)
    known = np.isfinite(wide)
    mean: np.ndarray = np.where(known, wide, 0).sum(axis=0) / known.sum(axis=0)
    return mean


def _classes(outputs: np.ndarray, y: np.ndarray, classes: Sequence[str], weight: np.ndarray) -> Drawn:
    p, margin = metrics.softmax(outputs), metrics.margins(outputs)
    right = (outputs.argmax(axis=1) == y).astype(np.float64)
    brier = ((p - np.eye(len(classes))[y]) ** 2).sum(axis=1)
    recalls = _recalls(weight, y, right, len(classes))
    several = np.isfinite(recalls).sum(axis=0) > 1
    log = -np.log(np.maximum(p[np.arange(len(y)), y], np.finfo(p.dtype).eps))  # as scikit-learn has it
    found = {
        "accuracy": _mean(weight, right),
        "balanced_accuracy": np.where(several, _average(recalls), np.nan),
        "auc": _average([_auc(weight, margin[:, c], y == c) for c in range(len(classes))]),
        "log_loss": _mean(weight, log),
        "brier": _mean(weight, brier / 2 if len(classes) == 2 else brier),
    }
    if len(classes) == 2:
        found["average_precision"] = np.where(several, _average_precision(weight, margin[:, 1], y == 1), np.nan)
        found["specificity"], found["sensitivity"] = recalls
    return found


def _labels(outputs: np.ndarray, y: np.ndarray, classes: Sequence[str], weight: np.ndarray) -> Drawn:
    truth, guess = y > 0, outputs > 0
    right, areas, recalls = (truth == guess).astype(np.float64), [], []
    for i in range(truth.shape[1]):
        areas.append(_auc(weight, outputs[:, i], truth[:, i]))
        both = _recalls(weight, truth[:, i], right[:, i], 2)
        recalls.append(np.where(np.isfinite(both).all(axis=0), _average(both), np.nan))
    return {
        "accuracy": _mean(weight, right.mean(axis=1)),
        "balanced_accuracy": _average(recalls),
        "auc": _average(areas),
    }


def _regression(outputs: np.ndarray, y: np.ndarray, classes: Sequence[str], weight: np.ndarray) -> Drawn:
    truth, off = y.astype(np.float64), outputs.astype(np.float64) - y
    varies = np.ptp(truth, axis=0) > 0
    error = np.stack([_mean(weight, off[:, i] ** 2) for i in range(off.shape[1])])
    square, mean = (np.stack([_mean(weight, truth[:, i] ** k) for i in range(off.shape[1])]) for k in (2, 1))
    found = {"mae": _mean(weight, np.abs(off).mean(axis=1)), "rmse": np.sqrt(error).mean(axis=0)}
    if varies.any():
        found["r2"] = (1 - error / (square - mean**2))[varies].mean(axis=0)
    return found


def _survival(outputs: np.ndarray, y: np.ndarray, classes: Sequence[str], weight: np.ndarray) -> Drawn:
    if len(y) > PAIRS:
        return {}
    risk, time, event = outputs[:, 0], y[:, 0], y[:, 1] > 0
    later = (time[:, None] < time) | ((time[:, None] == time) & ~event)
    comparable = (event[:, None] & later).astype(np.float32)
    won = comparable * ((risk[:, None] > risk).astype(np.float32) + (risk[:, None] >= risk)) / 2
    above, below = (((weight @ pairs) * weight).sum(axis=1, dtype=np.float64) for pairs in (won, comparable))
    return {"c_index": above / below}


def _segmentation(outputs: np.ndarray, y: np.ndarray, classes: Sequence[str], weight: np.ndarray) -> Drawn:
    return of_overlaps(metrics.overlaps(outputs.argmax(axis=-1), y, len(classes)), classes, weight)


def of_overlaps(overlaps: np.ndarray, classes: Sequence[str], weight: np.ndarray) -> dict[str, np.ndarray]:
    """Return what `draws` does of a segmentation, of `metrics.overlaps` of its cases; weight [draws, N cases]."""
    if not len(overlaps) or not np.isfinite(overlaps).all():
        return {}
    dice, overlap = metrics.shared(overlaps)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _of_shares(dice, overlap, classes, weight)


def _of_shares(dice: np.ndarray, overlap: np.ndarray, classes: Sequence[str], weight: np.ndarray) -> Drawn:
    each = [_mean(weight, of_class) for of_class in dice]
    found = {f"dice_{name}": values for name, values in zip(classes[1:], each, strict=True)}
    return {**found, "dice_mean": _average(each), "iou_mean": _average([_mean(weight, one) for one in overlap])}


def _reconstruction(outputs: np.ndarray, y: np.ndarray, classes: Sequence[str], weight: np.ndarray) -> Drawn:
    return {name: _mean(weight, each) for name, each in metrics.likeness(outputs, y)._asdict().items()}


_DRAWS: Mapping[str, Callable[[np.ndarray, np.ndarray, Sequence[str], np.ndarray], Drawn]] = MappingProxyType(
    {
        "classes": _classes,
        "labels": _labels,
        "regression": _regression,
        "survival": _survival,
        "segmentation": _segmentation,
        "reconstruction": _reconstruction,
    }
)
