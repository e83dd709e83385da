"""Intervals: every resampled metric against the metric itself, DeLong against numbers of R's pROC formula, coverage."""

from __future__ import annotations

import numpy as np
import pytest
from test_metrics import CLASSES, rows

from p2pfl.learning import intervals, metrics


@pytest.mark.parametrize("kind", [*CLASSES, "two"])
def test_a_row_drawn_twice_counts_as_two_rows(kind: str) -> None:
    outputs, y = rows("classes" if kind == "two" else kind)
    classes: tuple[str, ...] = CLASSES["classes" if kind == "two" else kind]
    if kind == "two":
        outputs, y, classes, kind = outputs[:, :2], (y % 2).astype(np.int32), ("no", "yes"), "classes"
    weight = intervals.resampled(np.zeros(len(y), int), 3, seed=1)
    drawn = intervals.draws(kind, outputs, y, classes, weight)
    without = {"ece", "f1_macro", "calibration_slope", "calibration_intercept"}
    assert set(drawn) == set(metrics.names(kind, classes)) - without
    for draw in range(3):
        again = np.repeat(np.arange(len(y)), weight[draw].astype(int))
        found = metrics.assess(kind, outputs[again], y[again], classes)
        assert {name: values[draw] for name, values in drawn.items()} == pytest.approx(
            {name: found[name] for name in drawn}, rel=1e-5
        )


def test_rows_are_drawn_within_their_site() -> None:
    site = np.array([0] * 5 + [1] * 20)
    weight = intervals.resampled(site, 200, seed=0)
    assert (weight[:, :5].sum(axis=1) == 5).all() and (weight[:, 5:].sum(axis=1) == 20).all()
    assert weight.std(axis=0).min() > 0.5


def delong_by_pairs(score: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """The definition: the structural components of every row by all its pairs."""
    high, low = score[positive], score[~positive]
    won = (high[:, None] > low) + (high[:, None] == low) / 2
    variance = won.mean(axis=1).var(ddof=1) / len(high) + won.mean(axis=0).var(ddof=1) / len(low)
    return float(won.mean()), float(np.sqrt(variance))


def test_delong_by_its_definition() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(80) < 0.3
    score = np.round(rng.normal(size=80) + positive, 1)  # ties
    assert intervals.delong(score, positive) == pytest.approx(delong_by_pairs(score, positive), rel=1e-12)
    assert intervals.delong(score, np.arange(80) == 3) is None, "one row has no variance"


@pytest.mark.more
def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Of 200 data sets; the true AUC of two normal distributions one apart is Phi(1 / sqrt 2), the true C the same."""
    rng, truth, held = np.random.default_rng(2), 0.7602499, np.zeros(2)
    for seed in range(200):
        y = (np.arange(120) % 2).astype(np.int32)
        score = rng.normal(size=120) + y
        outputs = np.stack([0 * score, score], axis=1)
        drawn = intervals.draws("classes", outputs, y, ("a", "b"), intervals.resampled(y * 0, 300, seed))
        for i, found in enumerate((intervals.interval(drawn["auc"]), intervals.delong_interval(score, y == 1))):
            assert found is not None
            held[i] += found[0] <= truth <= found[1]
    assert (held / 200 > 0.9).all() and (held / 200 < 0.99).all()
