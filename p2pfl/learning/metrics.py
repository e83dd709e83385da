"""Metrics that papers of each kind of task report, on the host, in float64.

Through scikit-learn where it has the metric. It is imported inside the functions that need it: it takes 0.7 s and 70 MB
per process.

A metric that is not defined is None and never raises or warns: where y holds a single class, where there are no rows,
where an output is not finite.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from scipy import ndimage  # type: ignore[import-untyped]

from p2pfl.check import one_of
from p2pfl.errors import DataError
from p2pfl.learning import likelihood
from p2pfl.learning.likelihood import CoxRows, LogisticRows
from p2pfl.learning.targets import EXACT

Found = dict[str, float | None]
"""Metrics by name; None: not defined."""

BINS = 10
"""Bins of the confidence; Guo et al. use 15."""


def assess(kind: str, outputs: np.ndarray, y: np.ndarray, classes: Sequence[str]) -> Found:
    """All metrics of a kind of task, as `names` lists them; outputs [N, ...] raw, y [N, ...] as in p2pfl.data.Dataset.

    classes: accuracy, balanced_accuracy (mean recall of the classes in y), auc (of several classes: the mean over those
    in y of one against the rest), log_loss, brier, ece; of two classes, the second being the positive one, also
    average_precision, sensitivity, specificity, calibration_slope and calibration_intercept (see `calibration`).
    labels: accuracy (share of labels right), balanced_accuracy and auc (means over the labels that have both values in
    y), f1_macro (mean over the labels that are somewhere 1 in y or predicted).
    regression: mae, rmse, r2: means over targets, r2 over those that vary in y.
    survival: c_index, see `concordance`; calibration_slope, the coefficient of the log risk in a Cox model of y.
    segmentation: dice_NAME of each class but the first, the mean over the images in which it is, in y or predicted;
    dice_mean and iou_mean (Jaccard), the means over classes.
    reconstruction: psnr, ssim and nmse, means over the images (see `likeness`); ssim of images from 11 x 11 pixels.
    Raises ConfigError for another kind, DataError when outputs and y differ in rows or outputs are not of `classes`.
    """
    one_of(_ASSESS, kind=kind)
    outputs, y = np.asarray(outputs), np.asarray(y)
    if len(outputs) != len(y):
        raise DataError(f"outputs={len(outputs)} rows, y={len(y)}: must be equal; give the outputs of these rows")
    wanted = 1 if kind == "survival" else len(classes)
    if outputs.ndim < 2 or outputs.shape[-1] != wanted:
        raise DataError(f"outputs={list(outputs.shape)}: must be [rows, ..., {wanted}] for kind={kind!r}")
    if not len(y) or not np.isfinite(outputs).all():
        return dict.fromkeys(names(kind, classes))
    found = _ASSESS[kind](outputs, y, classes)
    return {name: None if (value := found[name]) is None else float(value) for name in names(kind, classes)}


def names(kind: str, classes: Sequence[str]) -> tuple[str, ...]:
    """The metrics that `assess` gives for such a task. Raises ConfigError for another kind."""
    one_of(_ASSESS, kind=kind)
    if kind == "segmentation":
        return (*(f"dice_{name}" for name in classes[1:]), "dice_mean", "iou_mean")
    if kind == "classes":
        two = ("average_precision", "sensitivity", "specificity") if len(classes) == 2 else ()
        slope = ("calibration_slope", "calibration_intercept") if len(classes) == 2 else ()
        return ("accuracy", "balanced_accuracy", "auc", *two, "log_loss", "brier", "ece", *slope)
    return {
        "labels": ("accuracy", "balanced_accuracy", "auc", "f1_macro"),
        "regression": ("mae", "rmse", "r2"),
        "survival": ("c_index", "calibration_slope"),
        "reconstruction": ("psnr", "ssim", "nmse"),
    }[kind]


# ---------------------------------------------------------------------------------------------------------- classes


class Calibration(NamedTuple):
    """A reliability diagram: bin m holds the rows with confidence in (m / bins, (m + 1) / bins]."""

    confidence: np.ndarray  # [bins] mean probability of the class that is predicted; NaN where the bin is empty
    accuracy: np.ndarray  # [bins] share of these rows that is right; NaN likewise
    rows: np.ndarray  # [bins] int64: how many


def calibration_curve(outputs: np.ndarray, y: np.ndarray, bins: int = BINS) -> Calibration:
    """Return how often a classifier is right at each confidence; outputs [N, classes] raw, y [N].

    Source: Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks" (2017), section 2.
    """
    p = softmax(outputs)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    at = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(at, minlength=bins)
    sums = (np.bincount(at, weights=values, minlength=bins) for values in (confidence, right))
    mean = [np.divide(each, count, out=np.full(bins, np.nan), where=count > 0) for each in sums]
    return Calibration(mean[0], mean[1], count)


def _classes(outputs: np.ndarray, y: np.ndarray, classes: Sequence[str]) -> Found:
    from sklearn import metrics  # here: see the head of the module

    p, guess, present = softmax(outputs), outputs.argmax(axis=1), np.unique(y)
    several, margin = len(present) > 1, margins(outputs)
    # From the margins: where probabilities round to 1, they still tell who is surer.
    auc = [metrics.roc_auc_score(y == c, margin[:, c]) for c in present] if several else []
    curve = calibration_curve(outputs, y)
    gap = np.abs(np.nan_to_num(curve.accuracy) - np.nan_to_num(curve.confidence))
    # Brier (1950) sums over classes; of two classes, half of it is meant. scikit-learn has the former only since 1.7.
    brier = ((p - np.eye(len(classes))[y]) ** 2).sum(axis=1).mean()
    found: Found = {
        "accuracy": metrics.accuracy_score(y, guess),
        "balanced_accuracy": _recall(y, guess, present) if several else None,
        "auc": float(np.mean(auc)) if several else None,
        "log_loss": metrics.log_loss(y, p, labels=np.arange(len(classes))),
        "brier": brier / 2 if len(classes) == 2 else brier,
        "ece": (curve.rows * gap).sum() / len(y),
    }
    if len(classes) == 2:
        found["average_precision"] = metrics.average_precision_score(y, margin[:, 1]) if several else None
        found["sensitivity"] = _recall(y, guess, [1]) if 1 in present else None
        found["specificity"] = _recall(y, guess, [0]) if 0 in present else None
        found["calibration_slope"], found["calibration_intercept"] = calibration(outputs[:, 1] - outputs[:, 0], y)
    return found


def calibration(logit: np.ndarray, y: np.ndarray) -> tuple[float | None, float | None]:
    """Return the calibration slope and the calibration in the large; logit [N], y [N] of 0 and 1.

    The slope b of logit P(y = 1) = a + b logit: 1 if predictions are as far apart as they should be, less if they are
    too extreme. Calibration in the large is a with b = 1: 0 if the mean prediction is the share of y. None where y or
    the logits do not vary, or where the logits part the classes. Source: Cox (1958), "Two further applications of a
    model for binary regression"; Van Calster et al. (2019), "Calibration: the Achilles heel of predictive analytics".
    """
    logit = logit.astype(np.float64)
    if len(np.unique(y)) < 2:
        return None, None
    one = np.ones((len(y), 1))
    large = likelihood.maximum([LogisticRows(one, y, logit)], 1)
    apart = logit[y == 0].max() <= logit[y == 1].min() or logit[y == 1].max() <= logit[y == 0].min()
    slope = likelihood.maximum([LogisticRows(np.column_stack([one, logit]), y)], 2)
    known = slope.converged and slope.finite.all() and not apart  # else the maximum lies at infinity
    return float(slope.beta[1]) if known else None, float(large.beta[0]) if large.converged else None


def confusion(outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return how many rows of each class (first axis) are taken for which (second): [classes, classes] int64.

    outputs [N, classes] raw, y [N].
    """
    classes = outputs.shape[1]
    table: np.ndarray = np.bincount(y * classes + outputs.argmax(axis=1), minlength=classes**2)
    return table.reshape(classes, classes)


class AtThreshold(NamedTuple):
    """A decision by a probability: of the second class from `threshold` on."""

    threshold: float
    sensitivity: float | None
    specificity: float | None
    accuracy: float


def threshold(outputs: np.ndarray, y: np.ndarray) -> float | None:
    """Return the probability of the second class at which sensitivity and specificity have the largest sum.

    Half way between two rows' probabilities; of several such the one nearest 1/2. outputs [N, 2] raw, y [N] of 0 and 1;
    None where y has one class alone. Source: Youden (1950), "Index for rating diagnostic tests".
    """
    if len(np.unique(y)) < 2 or not np.isfinite(outputs).all():
        return None
    p = softmax(outputs)[:, 1]
    order = np.argsort(p)
    p, positive = p[order], y[order] == 1
    missed = np.concatenate([[0.0], np.cumsum(positive)]) / positive.sum()  # below the i-th cut
    spared = np.concatenate([[0.0], np.cumsum(~positive)]) / (~positive).sum()
    cut = np.concatenate([[0.0], (p[1:] + p[:-1]) / 2, [1.0]])
    possible = np.concatenate([[True], p[1:] > p[:-1], [True]])
    gain = np.where(possible, spared - missed, -np.inf)
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    return float(cut[best[np.abs(cut[best] - 0.5).argmin()]])


def at_threshold(outputs: np.ndarray, y: np.ndarray, threshold: float) -> AtThreshold:
    """Return what comes of deciding at a threshold; outputs [N, 2] raw, y [N] of 0 and 1, N > 0."""
    guess = softmax(outputs)[:, 1] >= threshold
    share = [float((guess[y == c] == c).mean()) if (y == c).any() else None for c in (0, 1)]
    return AtThreshold(threshold, share[1], share[0], float((guess == y).mean()))


def roc(outputs: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return 1 - specificity and sensitivity at every threshold, ascending; outputs [N, 2] raw, y [N] of 0 and 1."""
    from sklearn import metrics  # here: see the head of the module

    across, up, _ = metrics.roc_curve(y, margins(outputs)[:, 1])
    return across, up


def observed_shares(outputs: np.ndarray, y: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted probability and share of the second class, in `bins` equal parts of the rows or fewer.

    outputs [N, 2] raw, y [N] of 0 and 1. A part has five rows at least, where there are so many.
    """
    p = softmax(outputs)[:, 1]
    parts = np.array_split(np.argsort(p, kind="stable"), max(1, min(bins, len(y) // 5)))
    return np.array([p[rows].mean() for rows in parts]), np.array([y[rows].mean() for rows in parts])


def _recall(y: np.ndarray, guess: np.ndarray, of: Sequence[int] | np.ndarray) -> float:
    """The mean recall of these classes, all of which are in y."""
    from sklearn import metrics  # here: see the head of the module

    return float(metrics.recall_score(y, guess, labels=of, average="macro"))


def softmax(outputs: np.ndarray) -> np.ndarray:
    """Probabilities of outputs [N, ..., classes], in float64."""
    e = np.exp(outputs.astype(np.float64) - outputs.max(axis=-1, keepdims=True))
    p: np.ndarray = e / e.sum(axis=-1, keepdims=True)
    return p


def margins(outputs: np.ndarray) -> np.ndarray:
    """Log odds of each class against all others together, [N, classes], of outputs [N, classes]."""
    wide = outputs.astype(np.float64)
    rest = [np.logaddexp.reduce(np.delete(wide, c, axis=1), axis=1) for c in range(wide.shape[1])]
    return wide - np.stack(rest, axis=1)


# --------------------------------------------------------------------------------------------------- the other kinds


def _labels(outputs: np.ndarray, y: np.ndarray, classes: Sequence[str]) -> Found:
    from sklearn import metrics  # here: see the head of the module

    truth, guess = (y > 0).astype(np.int64), (outputs > 0).astype(np.int64)
    pairs = [(truth[:, i], guess[:, i], outputs[:, i]) for i in range(len(classes))]
    both = [pair for pair in pairs if 0 < pair[0].sum() < len(y)]
    return {
        "accuracy": metrics.accuracy_score(truth.ravel(), guess.ravel()),
        "balanced_accuracy": _mean([_recall(t, g, [0, 1]) for t, g, _ in both]),
        "auc": _mean([metrics.roc_auc_score(t, o) for t, _, o in both]),
        "f1_macro": _mean([metrics.f1_score(t, g) for t, g, _ in pairs if t.any() or g.any()]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _regression(outputs: np.ndarray, y: np.ndarray, classes: Sequence[str]) -> Found:
    from sklearn import metrics  # here: see the head of the module

    truth, guess = y.astype(np.float64), outputs.astype(np.float64)
    vary = np.ptp(truth, axis=0) > 0
    return {
        "mae": metrics.mean_absolute_error(truth, guess),
        "rmse": metrics.root_mean_squared_error(truth, guess),
        "r2": metrics.r2_score(truth[:, vary], guess[:, vary]) if vary.any() else None,
    }


def concordance(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> float | None:
    """Harrell's C-index: the share of comparable pairs in which risk agrees with time; None without such a pair.

    risk, time, event [N]; event: true = died, false = censored. Comparable: the earlier of two rows is an event, or
    one is an event and the other censored at the same time. Equal risks count half. Source: Harrell et al. (1982),
    "Evaluating the yield of medical tests". Of the libraries that have it, scikit-survival is under the GPL and
    lifelines brings pandas and autograd for this one number.
    """
    order = np.argsort(time, kind="stable")
    risk, died = risk[order], event[order] > 0
    starts = np.flatnonzero(np.diff(time[order], prepend=-np.inf))
    won, pairs = 0.0, 0
    later: list[float] = []  # ascending risks of all who outlived the rows at hand: two searches for each event
    for start, end in zip(starts[::-1], [len(risk), *starts[:0:-1]], strict=True):
        here, dies = risk[start:end], died[start:end]
        for each in here[~dies].tolist():
            bisect.insort(later, each)
        dead = here[dies].tolist()
        won += sum(bisect.bisect_left(later, each) + bisect.bisect_right(later, each) for each in dead) / 2
        pairs += len(later) * len(dead)
        for each in dead:
            bisect.insort(later, each)
    return won / pairs if pairs else None


def _survival(outputs: np.ndarray, y: np.ndarray, classes: Sequence[str]) -> Found:
    risk, died = outputs[:, 0].astype(np.float64), y[:, 1] > 0
    found = concordance(risk, y[:, 0], y[:, 1])
    slope = None
    if found is not None and 0 < found < 1:  # else the maximum lies at infinity
        cox = likelihood.maximum([CoxRows(risk[:, None], y[:, 0], died)], 1)
        slope = float(cox.beta[0]) if cox.converged and cox.finite.all() else None
    return {"c_index": found, "calibration_slope": slope}


def _segmentation(outputs: np.ndarray, y: np.ndarray, classes: Sequence[str]) -> Found:
    """Per image, as is usual in medicine, and not per pixel of all images: hence without scikit-learn."""
    return of_overlaps(overlaps(outputs.argmax(axis=-1), y, len(classes)), classes)


def overlaps(guess: np.ndarray, y: np.ndarray, classes: int) -> np.ndarray:
    """Return what Dice and Jaccard are made of, [N, classes - 1, 3] float64: of each class but the first in each image
    the pixels in both, in the prediction, and in the truth. Those of the slices of a volume add up.

    guess, y [N, ...]: classes that are predicted, and that are true.
    """
    found = np.zeros((len(y), classes - 1, 3))
    for c in range(1, classes):
        t, g = ((of == c).reshape(len(y), -1) for of in (y, guess))
        found[:, c - 1] = np.stack([each.sum(axis=1) for each in (t & g, g, t)], axis=1)
    return found


def shared(overlaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Dice and Jaccard of each class but the first in each case, [classes - 1, N]; NaN where it is in neither.

    `overlaps` [N, classes - 1, 3]: of `overlaps`.
    """
    both, guess, truth = np.moveaxis(overlaps, -1, 0).swapaxes(1, 2)
    dice, jaccard = (np.full(both.shape, np.nan) for _ in range(2))
    np.divide(2 * both, guess + truth, out=dice, where=guess + truth > 0)
    np.divide(both, guess + truth - both, out=jaccard, where=guess + truth > 0)
    return dice, jaccard


def of_overlaps(overlaps: np.ndarray, classes: Sequence[str]) -> Found:
    """All metrics of a segmentation, as `assess` has them, of cases that are made up of images.

    overlaps [N, classes - 1, 3]: of `overlaps`, summed over the pieces of a case; NaN where an output was not finite.
    """
    if not len(overlaps) or not np.isfinite(overlaps).all():
        return dict.fromkeys(names("segmentation", classes))
    dice, overlap = shared(overlaps)
    each = [_mean(one[np.isfinite(one)].tolist()) for one in dice]
    found: Found = {f"dice_{name}": value for name, value in zip(classes[1:], each, strict=True)}
    found["dice_mean"] = _mean([value for value in each if value is not None])
    jaccard = [_mean(one[np.isfinite(one)].tolist()) for one in overlap]
    found["iou_mean"] = _mean([value for value in jaccard if value is not None])
    return found


def _reconstruction(outputs: np.ndarray, y: np.ndarray, classes: Sequence[str]) -> Found:
    return {name: _mean(each[np.isfinite(each)].tolist()) for name, each in likeness(outputs, y)._asdict().items()}


class Likeness(NamedTuple):
    """How like each of N images is to the true one, [N] each; NaN where it is not defined."""

    psnr: np.ndarray  # dB
    ssim: np.ndarray
    nmse: np.ndarray


def likeness(outputs: np.ndarray, y: np.ndarray) -> Likeness:
    """Return PSNR, SSIM and NMSE of each image, in float64; outputs and y [N, H, W, C] in 0..1.

    PSNR: as `p2pfl.learning.targets.psnr`, of a range of 1. NMSE: |outputs - y|^2 / |y|^2, of all pixels of an image;
    of one that is black everywhere there is none. SSIM: see `structural_similarity`.
    """
    guess, truth = outputs.astype(np.float64), y.astype(np.float64)
    error = ((guess - truth) ** 2).mean(axis=(1, 2, 3))
    size = (truth**2).mean(axis=(1, 2, 3))
    nmse = np.divide(error, size, out=np.full(len(y), np.nan), where=size > 0)
    return Likeness(-10 * np.log10(np.maximum(error, EXACT)), structural_similarity(guess, truth), nmse)


WINDOW, SIGMA = 11, 1.5
"""Pixels of a side of the window of SSIM, and the standard deviation of its Gaussian weights."""
K1, K2 = 0.01, 0.03
"""Of SSIM: the constants of brightness and contrast, in units of the data range."""


def structural_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the mean structural similarity of each pair of images [N, H, W, C] float64 in 0..1: [N].

    The mean over channels, and over the windows that lie within the image; NaN of images smaller than a window. Source:
    Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity" (2004),
    section III.B, with its own constants: a window of 11 x 11 with Gaussian weights of standard deviation 1.5. Equal to
    `skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=1)`.
    """
    if min(a.shape[1:3]) < WINDOW:
        return np.full(len(a), np.nan)
    inside = slice(WINDOW // 2, -(WINDOW // 2))

    def local(x: np.ndarray) -> np.ndarray:
        mean = ndimage.gaussian_filter(x, SIGMA, radius=WINDOW // 2, axes=(1, 2))
        windows: np.ndarray = mean[:, inside, inside]
        return windows

    mean_a, mean_b = local(a), local(b)
    var_a, var_b, both = local(a * a) - mean_a**2, local(b * b) - mean_b**2, local(a * b) - mean_a * mean_b
    like = (2 * mean_a * mean_b + K1**2) * (2 * both + K2**2)
    most = (mean_a**2 + mean_b**2 + K1**2) * (var_a + var_b + K2**2)
    similarity: np.ndarray = (like / most).mean(axis=(1, 2, 3))
    return similarity


_ASSESS: Mapping[str, Callable[[np.ndarray, np.ndarray, Sequence[str]], Found]] = MappingProxyType(
    {
        "classes": _classes,
        "labels": _labels,
        "regression": _regression,
        "survival": _survival,
        "segmentation": _segmentation,
        "reconstruction": _reconstruction,
    }
)
