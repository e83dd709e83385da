"""Losses and scores of every kind of task, against closed forms, loops, scikit-learn and finite differences."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special  # type: ignore[import-untyped]
from sklearn import metrics

from p2pfl.learning import targets
from p2pfl.learning.targets import TARGETS, PerSample, Target

ROW = {"segmentation": (5, 4, 2), "reconstruction": (5, 4, 2)}
CLASSES = 3


def batch(kind: str, rows: int = 7, seed: int = 0, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """Outputs of order one, and y; survival has ties in time, in risk, and of events with censored rows."""
    rng = np.random.default_rng(seed)
    shape = TARGETS[kind].output(ROW.get(kind, (4,)), CLASSES)
    outputs, y = rng.normal(size=(rows, *shape)), None
    if kind == "classes":
        y = rng.integers(0, CLASSES, rows).astype(np.int32)
    elif kind == "labels":
        y = rng.integers(0, 2, (rows, CLASSES)).astype(np.int32)
    elif kind == "regression":
        y = rng.normal(size=(rows, CLASSES)).astype(np.float32)
    elif kind == "survival":
        outputs = np.round(outputs, 1)
        y = np.stack([rng.integers(1, rows, rows), rng.integers(0, 2, rows)], axis=1).astype(np.float32)
    elif kind == "reconstruction":
        y = rng.random((rows, *shape)).astype(np.float32)
    else:
        y = rng.integers(0, CLASSES, (rows, 5, 4)).astype(np.int32)
    return outputs.astype(dtype), np.asarray(y)


@cache
def compiled(per_sample: PerSample) -> Any:
    """One compilation for each shape is several times cheaper than one for each operation."""
    return jax.jit(per_sample)


@cache
def compiled_loss(per_sample: PerSample) -> Any:
    """Mean loss and its gradient."""
    return jax.jit(jax.value_and_grad(lambda outputs, y: per_sample(outputs, y).mean()))


def close(a: Any, b: Any, tolerance: float = 2e-6) -> None:
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# -------------------------------------------------------------------------------------------------- all kinds alike


@pytest.fixture(params=list(TARGETS))
def target(request: pytest.FixtureRequest) -> Target:
    return TARGETS[request.param]


def test_the_table() -> None:
    assert list(TARGETS) == ["classes", "labels", "regression", "survival", "segmentation", "reconstruction"]
    assert all(name == target.name for name, target in TARGETS.items())
    shapes = {name: target.output((9, 7, 2), 4) for name, target in TARGETS.items()}
    assert shapes.pop("segmentation") == shapes.pop("reconstruction") == (9, 7, 4) and shapes.pop("survival") == (1,)
    assert set(shapes.values()) == {(4,)}


def test_answers_are_probabilities_where_there_are_any(target: Target) -> None:
    outputs, _ = batch(target.name)
    answer = np.asarray(target.answer(outputs))
    if target.name in ("classes", "segmentation"):
        close(answer, special.softmax(outputs, axis=-1))
    else:
        close(answer, special.expit(outputs) if target.name == "labels" else outputs)


def test_one_number_per_sample_alone_or_side_by_side(target: Target) -> None:
    """vmap over nodes: the same as one node after the other."""
    nodes = [batch(target.name, seed=seed) for seed in range(3)]
    mask = np.asarray([1, 1, 0, 1, 1, 1, 0], np.float32)
    for per_sample in (target.loss, target.score):
        alone = np.stack([compiled(per_sample)(*node, mask) for node in nodes])
        assert alone.shape == (3, 7) and alone.dtype == np.float32
        together = jax.jit(jax.vmap(per_sample, in_axes=(0, 0, None)))
        close(together(*(np.stack(parts) for parts in zip(*nodes, strict=True)), mask), alone)


def test_a_row_that_is_left_out_changes_no_other(target: Target) -> None:
    """The padding of a chunk: zeros with mask 0."""
    outputs, y = batch(target.name)
    padded = [np.pad(a, ((0, 3),) + ((0, 0),) * (a.ndim - 1)) for a in (outputs, y)]
    mask = np.asarray([1] * 7 + [0] * 3, np.float32)
    for per_sample in (target.loss, target.score):
        whole, plain = compiled(per_sample)(*padded, mask), compiled(per_sample)(outputs, y)
        close(whole[:7], plain)
        assert np.array_equal(whole[7:], np.zeros(3))
        close(compiled(per_sample)(outputs, y, np.ones(7, np.float32)), plain)


def test_double_precision_and_finite_differences(target: Target) -> None:
    """The dtype of the outputs is kept, and the gradient of the mean loss is the slope: in float64, to 1e-7."""
    jax.config.update("jax_enable_x64", True)
    outputs, y = batch(target.name, dtype="float64")
    step = compiled_loss(target.loss)
    value, gradient = step(outputs, y)
    assert value.dtype == gradient.dtype == jax.eval_shape(target.score, outputs, y).dtype == jnp.float64
    assert np.abs(gradient).max() > 1e-3
    toward = np.random.default_rng(5).normal(size=outputs.shape)
    ahead, behind = (float(step(outputs + h * toward, y)[0]) for h in (1e-5, -1e-5))
    assert np.isclose((ahead - behind) / 2e-5, (np.asarray(gradient) * toward).sum(), rtol=1e-7)


@pytest.mark.parametrize("sign", [1, -1])
def test_far_out_all_is_finite(target: Target, sign: int) -> None:
    outputs, y = batch(target.name)
    far = sign * np.float32(1e4) * np.sign(outputs)
    value, gradient = compiled_loss(target.loss)(far, y)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    score = np.asarray(compiled(target.score)(far, y))
    assert np.isfinite(score).all() and (score <= 1).all()


# --------------------------------------------------------------------------------------------------- kind by kind


def loss(kind: str, outputs: Any, y: Any, *mask: Any) -> np.ndarray:
    return np.asarray(compiled(TARGETS[kind].loss)(outputs, y, *mask))


def score(kind: str, outputs: Any, y: Any, *mask: Any) -> np.ndarray:
    return np.asarray(compiled(TARGETS[kind].score)(outputs, y, *mask))


def test_classes_by_scikit_learn() -> None:
    outputs, y = batch("classes", 50)
    p = special.softmax(outputs.astype(np.float64), axis=1)
    close(loss("classes", outputs, y).mean(), metrics.log_loss(y, p, labels=range(CLASSES)))
    close(score("classes", outputs, y).mean(), metrics.accuracy_score(y, p.argmax(axis=1)))


def test_labels_by_scikit_learn() -> None:
    outputs, y = batch("labels", 50)
    p = special.expit(outputs.astype(np.float64))
    of_labels = [metrics.log_loss(y[:, i], p[:, i]) for i in range(CLASSES)]
    close(loss("labels", outputs, y).mean(), np.mean(of_labels))
    right = [metrics.accuracy_score(y[:, i], p[:, i] > 0.5) for i in range(CLASSES)]
    close(score("labels", outputs, y).mean(), np.mean(right))


def test_regression_and_what_its_score_means() -> None:
    outputs, y = batch("regression", 50)
    standard = (y - y.mean(axis=0)) / y.std(axis=0)
    error = (outputs - standard).astype(np.float64) ** 2
    close(loss("regression", outputs, standard), error.mean(axis=1) / 2)
    close(score("regression", outputs, standard).mean(), metrics.r2_score(standard, outputs), 1e-5)
    assert np.array_equal(score("regression", standard, standard), np.ones(50))


def cox_by_hand(eta: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Breslow's partial likelihood, row by row."""
    loss = np.zeros(len(y))
    for i, (time, event) in enumerate(y):
        if event:
            at_risk = [eta[j] for j in range(len(y)) if y[j, 0] >= time]
            loss[i] = special.logsumexp(at_risk) - eta[i]
    return loss


def concordant_by_hand(eta: np.ndarray, y: np.ndarray) -> np.ndarray:
    """For each row, its pairs one by one."""
    won, pairs = np.zeros(len(y)), np.zeros(len(y))
    for i, (early, event) in enumerate(y):
        for j, (late, died) in enumerate(y):
            if event and (late > early or (late == early and not died)):
                for row in (i, j):
                    won[row] += float(eta[i] > eta[j]) + (eta[i] == eta[j]) / 2
                    pairs[row] += 1
    return np.where(pairs > 0, won / np.maximum(pairs, 1), 0.5)


@pytest.mark.parametrize("seed", range(12))
def test_survival_by_hand(seed: int) -> None:
    outputs, y = batch("survival", 20, seed)
    eta = outputs[:, 0]
    close(loss("survival", outputs, y), cox_by_hand(eta.astype(np.float64), y), 1e-5)
    close(score("survival", outputs, y), concordant_by_hand(eta, y))
    keep = np.random.default_rng(seed).random(20) < 0.6
    mask = keep.astype(np.float32)
    close(loss("survival", outputs, y, mask)[keep], cox_by_hand(eta[keep].astype(np.float64), y[keep]), 1e-5)
    close(score("survival", outputs, y, mask)[keep], concordant_by_hand(eta[keep], y[keep]))


def test_survival_closed_forms() -> None:
    """Equal risks: each event costs the log of the size of its risk set, and every pair is half right."""
    y = np.asarray([[1, 1], [2, 1], [2, 1], [3, 0], [4, 1], [0.5, 0], [9, 0]], np.float32)
    same = np.full((7, 1), 7, np.float32)
    close(loss("survival", same, y), np.log([6, 5, 5, 1, 2, 1, 1]))
    assert np.array_equal(score("survival", same, y), np.full(7, 0.5))
    unpaired = np.asarray([0, 0, 0, 0, 0, 0.5, 0])  # censored before anybody died
    assert np.array_equal(score("survival", -y[:, :1], y), np.maximum(unpaired, 1 - 2 * unpaired))
    assert np.array_equal(score("survival", y[:, :1], y), unpaired)
    # Nobody dies: nothing is said, and nothing is learned.
    alive = np.stack([y[:, 0], np.zeros(7, np.float32)], axis=1)
    value, gradient = compiled_loss(TARGETS["survival"].loss)(same, alive)
    assert value == 0 and not np.asarray(gradient).any()
    assert np.array_equal(score("survival", same, alive), np.full(7, 0.5))


def test_concordance_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, y = batch("survival", 20)
    whole = score("survival", outputs, y)
    monkeypatch.setattr(targets, "ROWS", 6)
    assert np.array_equal(jax.jit(lambda o, y: targets.concordant(o, y))(outputs, y), whole)


def test_segmentation_by_hand() -> None:
    outputs, y = batch("segmentation")
    p = special.softmax(outputs.astype(np.float64), axis=-1)
    losses, scores = loss("segmentation", outputs, y), score("segmentation", outputs, y)
    for i, truth in enumerate(y):
        entropy = -np.mean([np.log(p[i, h, w, truth[h, w]]) for h in range(5) for w in range(4)])
        soft = []
        for c in range(1, CLASSES):
            g = (truth == c).astype(np.float64)
            soft.append((2 * (p[i, ..., c] * g).sum() + 1) / (p[i, ..., c].sum() + g.sum() + 1))
        close(losses[i], entropy / 2 + (1 - np.mean(soft)) / 2)
        hard = metrics.f1_score(truth.ravel(), p[i].argmax(axis=-1).ravel(), labels=[1, 2], average="macro")
        close(scores[i], hard)


def test_dice_where_classes_are_missing() -> None:
    cases = [  # (predicted, true, Dice)
        ([0, 0, 0, 0], [0, 0, 0, 0], 1),  # nothing there, nothing seen
        ([0, 0, 0, 1], [0, 0, 0, 0], 0),  # seen what is not there
        ([0, 0, 0, 0], [0, 0, 1, 1], 0),
        ([0, 0, 0, 1], [0, 0, 0, 1], 1),  # class 2 is nowhere and not counted
        ([0, 0, 2, 1], [0, 0, 0, 1], 1 / 2),  # class 2 is predicted and is not there
        ([0, 0, 1, 1], [0, 0, 0, 1], 2 / 3),
    ]
    guess, truth = (np.asarray([case[i] for case in cases], np.int32).reshape(-1, 2, 2) for i in (0, 1))
    close(score("segmentation", np.eye(CLASSES, dtype=np.float32)[guess], truth), [case[2] for case in cases])


# --------------------------------------------------------------------------------------------------- reconstruction


def test_psnr_by_hand() -> None:
    """A difference of 0.1 at every pixel is 20 dB, whatever the brightest pixel is; no difference is 100."""
    y = np.full((3, 4, 4, 1), 0.3, np.float32)
    outputs = y + np.asarray([0.1, 0.01, 0.0], np.float32).reshape(3, 1, 1, 1)
    close(score("reconstruction", outputs, y), [20, 40, 100], 1e-3)
    close(loss("reconstruction", outputs, y), [0.1, 0.01, 0.0])
