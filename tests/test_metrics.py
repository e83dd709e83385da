"""Metrics against scikit-learn and loops; and where one is not defined it is None, with no warning."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special  # type: ignore[import-untyped]
from sklearn import metrics as sk

from p2pfl.errors import ConfigError, DataError
from p2pfl.learning.metrics import (
    assess,
    at_threshold,
    calibration,
    calibration_curve,
    concordance,
    confusion,
    likeness,
    names,
    threshold,
)

CLASSES = {
    "classes": ("a", "b", "c", "d"), "labels": ("x", "y", "z"), "regression": ("u", "v"), "survival": ("risk",),
    "segmentation": ("background", "liver", "spleen"), "reconstruction": ("red", "green"),
}  # fmt: skip


def rows(kind: str, count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Outputs [N, ...] that know something of y."""
    rng = np.random.default_rng(seed)
    width = len(CLASSES[kind])
    if kind == "classes":
        y = rng.integers(0, width, count).astype(np.int32)
        return (rng.normal(size=(count, width)) + np.eye(width)[y]).astype(np.float32), y
    if kind == "labels":
        y = rng.integers(0, 2, (count, width)).astype(np.int32)
        return (rng.normal(size=y.shape) + y - 0.5).astype(np.float32), y
    if kind == "regression":
        real = rng.normal(size=(count, width)).astype(np.float32)
        return real + rng.normal(size=real.shape).astype(np.float32), real
    if kind == "survival":
        y = np.stack([rng.integers(1, count // 2, count), rng.integers(0, 2, count)], axis=1).astype(np.float32)
        return np.round(rng.normal(size=(count, 1)) - y[:, :1] / count, 1).astype(np.float32), y
    if kind == "reconstruction":
        image = rng.random((count, 12, 11, width)).astype(np.float32)
        return image + 0.1 * rng.normal(size=image.shape).astype(np.float32), image
    y = rng.integers(0, width, (count, 4, 5)).astype(np.int32)
    return (rng.normal(size=(*y.shape, width)) + np.eye(width)[y]).astype(np.float32), y


@pytest.mark.parametrize("kind", CLASSES)
def test_every_metric_is_there_and_a_number(kind: str) -> None:
    found = assess(kind, *rows(kind), CLASSES[kind])
    assert tuple(found) == names(kind, CLASSES[kind])
    assert all(type(value) is float and np.isfinite(value) for value in found.values())


def test_two_classes_by_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    y = (rng.random(200) < 0.3).astype(np.int32)
    outputs = (rng.normal(size=(200, 2)) + np.eye(2)[y]).astype(np.float32)
    p = special.softmax(outputs.astype(np.float64), axis=1)
    guess = p.argmax(axis=1)
    found = assess("classes", outputs, y, ("well", "ill"))
    true_negative, false_positive, false_negative, true_positive = sk.confusion_matrix(y, guess).ravel()
    assert found == pytest.approx(
        {
            "accuracy": sk.accuracy_score(y, guess),
            "balanced_accuracy": sk.balanced_accuracy_score(y, guess),
            "auc": sk.roc_auc_score(y, p[:, 1]),
            "average_precision": sk.average_precision_score(y, p[:, 1]),
            "sensitivity": true_positive / (true_positive + false_negative),
            "specificity": true_negative / (true_negative + false_positive),
            "log_loss": sk.log_loss(y, p),
            "brier": sk.brier_score_loss(y, p[:, 1]),
            "ece": ece_by_hand(p, y),
            "calibration_slope": found["calibration_slope"],
            "calibration_intercept": found["calibration_intercept"],
        },
        rel=1e-9,
    )
    assert confusion(outputs, y).tolist() == sk.confusion_matrix(y, guess).tolist()


def ece_by_hand(p: np.ndarray, y: np.ndarray) -> float:
    """Guo et al. (2017), equation 3: bin by bin, row by row."""
    total = 0.0
    for m in range(10):
        inside = [i for i in range(len(y)) if m / 10 < p[i].max() <= (m + 1) / 10]
        if inside:
            accuracy = np.mean([p[i].argmax() == y[i] for i in inside])
            total += len(inside) / len(y) * abs(accuracy - np.mean([p[i].max() for i in inside]))
    return total


def test_several_classes_by_scikit_learn() -> None:
    outputs, y = rows("classes", 200)
    p = special.softmax(outputs.astype(np.float64), axis=1)
    found = assess("classes", outputs, y, CLASSES["classes"])
    assert found == pytest.approx(
        {
            "accuracy": sk.accuracy_score(y, p.argmax(axis=1)),
            "balanced_accuracy": sk.balanced_accuracy_score(y, p.argmax(axis=1)),
            "auc": sk.roc_auc_score(y, p, multi_class="ovr"),
            "log_loss": sk.log_loss(y, p),
            "brier": np.mean([sum((p[i, c] - (y[i] == c)) ** 2 for c in range(4)) for i in range(200)]),
            "ece": ece_by_hand(p, y),
        },
        rel=1e-9,
    )


def test_a_class_that_is_not_in_y() -> None:
    """Balanced accuracy and AUC are of the classes that are there; a site may well lack some."""
    outputs, y = rows("classes", 80)
    outputs, y = outputs[y != 2], y[y != 2]
    guess, p = outputs.argmax(axis=1), special.softmax(outputs.astype(np.float64), axis=1)
    assert (guess == 2).any()
    found = assess("classes", outputs, y, CLASSES["classes"])
    assert found["balanced_accuracy"] == pytest.approx(np.mean([(guess == c)[y == c].mean() for c in (0, 1, 3)]))
    assert found["auc"] == pytest.approx(np.mean([sk.roc_auc_score(y == c, p[:, c]) for c in (0, 1, 3)]))


def test_a_sure_model_still_tells_who_is_surer() -> None:
    """Probabilities that round to 1 would be ties."""
    outputs = np.asarray([[0, 50], [0, 60], [0, 70], [0, 80]], np.float64)
    assert assess("classes", outputs, np.asarray([0, 0, 1, 1]), ("a", "b"))["auc"] == 1
    assert assess("classes", np.pad(outputs, ((0, 0), (1, 0))), np.asarray([1, 1, 2, 2]), ("z", "a", "b"))["auc"] == 1


def test_labels_by_scikit_learn() -> None:
    outputs, y = rows("labels", 100)
    y[:, 2] = 0  # a label that nobody has, but some are predicted to
    guess = (outputs > 0).astype(int)
    found = assess("labels", outputs, y, CLASSES["labels"])
    assert found == pytest.approx(
        {
            "accuracy": (guess == y).mean(),
            "balanced_accuracy": np.mean([sk.balanced_accuracy_score(y[:, i], guess[:, i]) for i in (0, 1)]),
            "auc": sk.roc_auc_score(y[:, :2], outputs[:, :2], average="macro"),
            "f1_macro": np.mean([sk.f1_score(y[:, i], guess[:, i]) for i in (0, 1)] + [0]),
        }
    )
    outputs[:, 2] = -1  # now nobody is predicted to have it either: it doesn't count
    assert assess("labels", outputs, y, CLASSES["labels"])["f1_macro"] == pytest.approx(
        sk.f1_score(y[:, :2], guess[:, :2], average="macro")
    )


def test_regression_by_hand() -> None:
    outputs, y = rows("regression")
    error = (outputs - y).astype(np.float64)
    assert assess("regression", outputs, y, CLASSES["regression"]) == pytest.approx(
        {
            "mae": np.abs(error).mean(),
            "rmse": np.sqrt((error**2).mean(axis=0)).mean(),
            "r2": (1 - (error**2).mean(axis=0) / y.astype(np.float64).var(axis=0)).mean(),
        }
    )
    y[:, 0] = 3  # it doesn't vary: R2 is of the other one
    error = (outputs - y).astype(np.float64)
    found = assess("regression", outputs, y, CLASSES["regression"])["r2"]
    assert found == pytest.approx(1 - (error[:, 1] ** 2).mean() / y[:, 1].astype(np.float64).var())


def c_index_by_hand(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> float | None:
    won = pairs = 0.0
    for i in range(len(time)):
        for j in range(len(time)):
            if event[i] and (time[j] > time[i] or (time[j] == time[i] and not event[j])):
                pairs += 1
                won += float(risk[i] > risk[j]) + (risk[i] == risk[j]) / 2
    return won / pairs if pairs else None


@pytest.mark.parametrize("count, seed", [(1, 0), (2, 1), (3, 2), (5, 3), (10, 4), (60, 5)])
def test_c_index_by_hand(count: int, seed: int) -> None:
    """Ties in risk, in time, and of events with censored rows."""
    rng = np.random.default_rng(seed)
    for _ in range(20):
        risk, time = rng.integers(0, 6, count) / 2, rng.integers(1, 2 + count // 2, count).astype(float)
        event = rng.integers(0, 2, count)
        assert concordance(risk, time, event) == c_index_by_hand(risk, time, event)


def test_c_index_of_many_rows() -> None:
    """Against all pairs at once; and it is the AUC where all times are 1 (died) or 2 (did not)."""
    rng = np.random.default_rng(0)
    risk, time, event = rng.normal(size=3000), rng.exponential(size=3000), rng.random(3000) < 0.4
    pairs = event[:, None] & (time[:, None] < time[None, :])
    assert concordance(risk, time, event) == pytest.approx((risk[:, None] > risk[None, :])[pairs].mean(), rel=1e-12)
    died = rng.random(10_000) < 0.3
    risk = np.round(rng.normal(size=10_000) + died, 2)
    assert concordance(risk, np.where(died, 1.0, 2.0), died) == pytest.approx(sk.roc_auc_score(died, risk), rel=1e-12)


def test_segmentation_image_by_image() -> None:
    outputs, y = rows("segmentation", 6)
    y[:3][y[:3] == 2] = 0  # no spleen in these three, and in one of them none is seen
    outputs[0, ..., 2] = -9
    guess = outputs.argmax(axis=-1)
    dice: dict[int, list[float]] = {1: [], 2: []}
    iou: dict[int, list[float]] = {1: [], 2: []}
    for c in (1, 2):
        for truth, seen in zip(y, guess, strict=True):
            if (truth == c).any() or (seen == c).any():
                dice[c].append(sk.f1_score((truth == c).ravel(), (seen == c).ravel(), zero_division=0))
                iou[c].append(sk.jaccard_score((truth == c).ravel(), (seen == c).ravel(), zero_division=0))
    assert len(dice[2]) == 5 and dice[2].count(0) == 2
    liver, spleen = np.mean(dice[1]), np.mean(dice[2])
    assert assess("segmentation", outputs, y, CLASSES["segmentation"]) == pytest.approx(
        {
            "dice_liver": liver,
            "dice_spleen": spleen,
            "dice_mean": (liver + spleen) / 2,
            "iou_mean": (np.mean(iou[1]) + np.mean(iou[2])) / 2,
        }
    )


def test_likeness_of_images_by_scikit_image() -> None:
    """Its values, each with `data_range=1`: structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, channel_axis=-1), peak_signal_noise_ratio, normalized_root_mse("euclidean") ** 2.
    """
    rng = np.random.default_rng(5)
    truth = np.kron(rng.random((3, 6, 5, 2)), np.ones((1, 4, 4, 1)))
    guess = truth + rng.normal(size=truth.shape) * np.array([0.02, 0.1, 0.3]).reshape(3, 1, 1, 1)
    found = likeness(guess.astype(np.float32), truth.astype(np.float32))
    np.testing.assert_allclose(found.ssim, [0.9947824800830467, 0.8743387306209859, 0.4325305010564675], rtol=1e-7)
    np.testing.assert_allclose(found.psnr, [34.05104299517818, 20.10265497510112, 10.254686291662132], rtol=1e-7)
    np.testing.assert_allclose(found.nmse, [0.0011484961616, 0.0276315359904, 0.3036497449408], rtol=1e-7)
    assert assess("reconstruction", guess, truth, ("a", "b"))["ssim"] == pytest.approx(found.ssim.mean(), rel=1e-6)


# ------------------------------------------------------------------------------------------------------- not defined


def undefined(kind: str, outputs: np.ndarray, y: np.ndarray, classes: tuple[str, ...]) -> set[str]:
    return {name for name, value in assess(kind, outputs, y, classes).items() if value is None}


@pytest.mark.parametrize("kind", CLASSES)
def test_no_rows_and_outputs_that_are_not_finite(kind: str) -> None:
    outputs, y = rows(kind)
    every = set(names(kind, CLASSES[kind]))
    assert undefined(kind, outputs[:0], y[:0], CLASSES[kind]) == every
    for bad in (np.nan, np.inf):
        outputs[3, ..., 0] = bad
        assert undefined(kind, outputs, y, CLASSES[kind]) == every


def test_a_single_class_in_y() -> None:
    outputs, y = np.random.default_rng(0).normal(size=(20, 2)), np.zeros(20, np.int32)
    ranks = {"balanced_accuracy", "auc", "average_precision", "calibration_slope", "calibration_intercept"}
    assert undefined("classes", outputs, y, ("a", "b")) == {*ranks, "sensitivity"}
    assert undefined("classes", outputs, y + 1, ("a", "b")) == {*ranks, "specificity"}
    assert undefined("classes", outputs[:1], y[:1], ("a", "b")) == {*ranks, "sensitivity"}
    assert undefined("classes", np.pad(outputs, ((0, 0), (1, 0))), y, ("a", "b", "c")) == {"balanced_accuracy", "auc"}


def test_other_kinds_where_nothing_can_be_said() -> None:
    label = np.zeros((5, 1), np.int32)
    assert undefined("labels", label - 1.0, label, ("x",)) == {"balanced_accuracy", "auc", "f1_macro"}
    assert undefined("labels", label + 1.0, label, ("x",)) == {"balanced_accuracy", "auc"}
    one = np.ones((1, 2), np.float32)
    assert undefined("regression", one, one, ("u", "v")) == {"r2"}
    censored = np.asarray([[1, 0], [2, 0], [3, 0]], np.float32)
    assert undefined("survival", np.ones((3, 1)), censored, ("risk",)) == {"c_index", "calibration_slope"}
    empty = np.zeros((2, 3, 3), np.int32)
    background = np.zeros((2, 3, 3, 3)) + np.asarray([1, 0, 0])
    classes = CLASSES["segmentation"]
    assert undefined("segmentation", background, empty, classes) == set(names("segmentation", classes))
    empty[0, 0, 0] = 1
    assert undefined("segmentation", background, empty, classes) == {"dice_spleen"}
    small = np.zeros((2, 10, 11, 1), np.float32)
    assert undefined("reconstruction", small, small, ("grey",)) == {"ssim", "nmse"}


# ------------------------------------------------------------------------------------------------------- calibration


def test_calibration_bins() -> None:
    """Five rows by hand, one of them on the edge of a bin, which belongs to the lower one."""
    p = np.asarray([[0.75, 0.25], [0.72, 0.28], [0.05, 0.95], [0.5, 0.5], [0.0, 1.0]])
    curve = calibration_curve(np.log(np.maximum(p, 1e-30)), np.asarray([0, 1, 1, 0, 1]))
    assert curve.rows.tolist() == [0, 0, 0, 0, 1, 0, 0, 2, 0, 2]
    np.testing.assert_allclose(curve.confidence[[4, 7, 9]], [0.5, 0.735, 0.975], rtol=1e-12)
    assert curve.accuracy[[4, 7, 9]].tolist() == [1, 0.5, 1]
    assert np.isnan(curve.confidence[0]) and np.isnan(curve.accuracy[0])
    assert calibration_curve(np.log(p[:1]), np.asarray([0]), bins=2).rows.tolist() == [0, 1]


def test_a_calibrated_model_has_a_small_calibration_error() -> None:
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(20_000, 3)) * 2
    p = special.softmax(outputs, axis=1)
    y = (p.cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1)
    classes = ("a", "b", "c")
    calm = assess("classes", outputs, y, classes)["ece"]
    sure = assess("classes", outputs * 3, y, classes)["ece"]
    assert calm is not None and sure is not None and calm < 0.02 < 0.1 < sure


def test_a_threshold_is_where_the_roc_curve_is_highest() -> None:
    rng = np.random.default_rng(3)
    y = (rng.random(60) < 0.2).astype(np.int32)
    score = np.round(rng.normal(size=60) + y - 1, 1)
    outputs = np.stack([0 * score, score], axis=1)
    chosen = threshold(outputs, y)
    assert chosen is not None and chosen != 0.5
    found = at_threshold(outputs, y, chosen)
    across, up, _ = sk.roc_curve(y, score)
    assert found.sensitivity is not None and found.specificity is not None
    assert found.sensitivity + found.specificity - 1 == pytest.approx((up - across).max())
    half, known = at_threshold(outputs, y, 0.5), assess("classes", outputs, y, ("no", "yes"))
    assert (half.sensitivity, half.specificity) == pytest.approx((known["sensitivity"], known["specificity"]))
    assert threshold(outputs, y * 0) is None


def test_calibration_slope_by_statsmodels() -> None:
    # statsmodels 0.15.0: Logit(y, add_constant(logit)); GLM(y, 1, Binomial, offset=logit); PHReg(t, logit, y)
    rng = np.random.default_rng(5)
    y = np.array([0, 1] * 30)
    logit = rng.normal(size=60) + y
    assert calibration(logit, y) == pytest.approx((0.93288513, -0.27202091), abs=1e-7)
    survival = np.stack([np.arange(60) + 1.0, y], axis=1)
    assert assess("survival", logit[:, None], survival, ("risk",))["calibration_slope"] == pytest.approx(0.18436632)
    assert calibration(np.where(y, 3.0, -3.0), y)[0] is None, "the logits part the classes"


def test_what_cannot_be_is_refused() -> None:
    outputs, y = rows("classes")
    with pytest.raises(ConfigError, match="kind='clases': did you mean 'classes'"):
        assess("clases", outputs, y, CLASSES["classes"])
    with pytest.raises(ConfigError, match="kind='dice'"):
        names("dice", ())
    with pytest.raises(DataError, match="outputs=60 rows, y=59: must be equal"):
        assess("classes", outputs, y[1:], CLASSES["classes"])
    with pytest.raises(DataError, match=r"outputs=\[60, 4\]: must be \[rows, ..., 2\] for kind='classes'"):
        assess("classes", outputs, y, ("a", "b"))
