"""Losses by name: each against what it is by hand, and a loss of one's own among masked rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from p2pfl.errors import ConfigError
from p2pfl.learning import flax, models
from p2pfl.learning.losses import LOSSES, own
from p2pfl.learning.targets import ABSENT, TARGETS
from p2pfl.methods.objectives import OBJECTIVES

RNG = np.random.default_rng(0)
ROWS = 5
OUTPUTS = RNG.normal(size=(ROWS, 3)).astype(np.float32)
Y = np.array([0, 2, 1, 0, 2], np.int32)
LABELS = RNG.integers(0, 2, (ROWS, 3)).astype(np.float32)
TARGET = RNG.normal(size=(ROWS, 3)).astype(np.float32)
PIXELS = RNG.normal(size=(ROWS, 2, 2, 3)).astype(np.float32)
TRUE = RNG.integers(0, 3, (ROWS, 2, 2)).astype(np.int32)


def logs(outputs: np.ndarray) -> np.ndarray:
    outputs = outputs.astype(np.float64)
    return outputs - np.log(np.exp(outputs).sum(axis=-1, keepdims=True))


def smoothed() -> np.ndarray:
    soft = 0.7 * np.eye(3)[Y] + 0.3 / 3
    return -(soft * logs(OUTPUTS)).sum(axis=1)


def focal() -> np.ndarray:
    log = logs(OUTPUTS)[np.arange(ROWS), Y]
    return -((1 - np.exp(log)) ** 1.5) * log


def binary(outputs: np.ndarray, weight: np.ndarray, gamma: float = 0.0) -> np.ndarray:
    p = 1 / (1 + np.exp(-outputs.astype(np.float64)))
    ones, zeros = -weight * (1 - p) ** gamma * np.log(p), -(p**gamma) * np.log(1 - p)
    return np.where(LABELS > 0, ones, zeros).mean(axis=1)


def huber() -> np.ndarray:
    off = np.abs(OUTPUTS.astype(np.float64) - TARGET)
    return np.where(off < 0.5, off**2 / 2, 0.5 * (off - 0.25)).mean(axis=1)


def pixels() -> np.ndarray:
    weight = np.array([1.0, 2.0, 5.0])[TRUE]
    log = np.take_along_axis(logs(PIXELS), TRUE[..., None], axis=-1)[..., 0]
    return -(weight * log).mean(axis=(1, 2))


SHORT = "binary_cross_entropy"
CASES: list[tuple[str, str, dict[str, Any], np.ndarray, np.ndarray, Callable[[], np.ndarray]]] = [
    ("classes", "cross_entropy", {"smoothing": 0.3}, OUTPUTS, Y, smoothed),
    ("classes", "focal", {"gamma": 1.5}, OUTPUTS, Y, focal),
    ("labels", "binary_cross_entropy", {"positive": [1, 4, 2]}, OUTPUTS, LABELS,
     lambda: binary(OUTPUTS, np.array([1, 4, 2]))),
    ("labels", "focal", {"gamma": 2.0}, OUTPUTS, LABELS, lambda: binary(OUTPUTS, np.ones(3), 2.0)),
    ("regression", "huber", {"delta": 0.5}, OUTPUTS, TARGET, huber),
    ("regression", "absolute_error", {}, OUTPUTS, TARGET, lambda: np.abs(OUTPUTS - TARGET).mean(axis=1)),
    ("segmentation", "cross_entropy", {"weights": [1, 2, 5]}, PIXELS, TRUE, pixels),
    ("reconstruction", "squared_error", {}, PIXELS, PIXELS[::-1],
     lambda: ((PIXELS - PIXELS[::-1]) ** 2).mean(axis=(1, 2, 3))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name", "given", "outputs", "y", "wanted"),
    [
        pytest.param(*case, id=f"{case[0]} {case[1]}", marks=() if case[1] == SHORT else pytest.mark.more)
        for case in CASES
    ],
)
def test_a_loss_is_what_it_is_by_hand(
    kind: str, name: str, given: dict[str, Any], outputs: np.ndarray, y: np.ndarray, wanted: Callable[[], np.ndarray]
) -> None:
    loss = LOSSES[kind][name](3, **given)
    np.testing.assert_allclose(loss(jnp.asarray(outputs), jnp.asarray(y)), wanted(), rtol=2e-5)
    mask = jnp.asarray([1.0, 0, 1, 0, 1])
    np.testing.assert_allclose(loss(jnp.asarray(outputs), jnp.asarray(y), mask), wanted() * mask, rtol=2e-5)


@pytest.mark.more
@pytest.mark.parametrize("kind", TARGETS)
def test_the_first_name_is_the_loss_of_the_kind(kind: str) -> None:
    outputs, y = {
        "classes": (OUTPUTS, Y), "labels": (OUTPUTS, LABELS), "regression": (OUTPUTS, TARGET),
        "survival": (OUTPUTS[:, :1], np.stack([np.arange(1.0, 6), LABELS[:, 0]], axis=1).astype(np.float32)),
        "segmentation": (PIXELS, TRUE), "reconstruction": (PIXELS, PIXELS[::-1]),
    }[kind]  # fmt: skip
    first = LOSSES[kind][next(iter(LOSSES[kind]))](3)
    np.testing.assert_array_equal(first(outputs, y), TARGETS[kind].loss(outputs, y))


@pytest.mark.more
def test_smoothing_leaves_out_classes_that_a_site_lacks() -> None:
    outputs = jnp.asarray(OUTPUTS).at[:, 1].set(ABSENT)
    y = jnp.zeros(ROWS, jnp.int32)
    found = LOSSES["classes"]["cross_entropy"](3, smoothing=0.3)(outputs, y)
    two = LOSSES["classes"]["cross_entropy"](2, smoothing=0.3)(outputs[:, [0, 2]], y)
    np.testing.assert_allclose(found, two, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "name", "given", "said"),
    [
        ("classes", "cross_entropy", {"smoothing": 1.0}, "smoothing=1.0: must be >= 0 and < 1"),
        ("labels", "binary_cross_entropy", {"positive": [1, 2]}, "2 weights for 3 classes; give one for each"),
        ("labels", "binary_cross_entropy", {"positive": [1, 2, 0]}, "positive=0: must be > 0"),
        ("labels", "focal", {"alpha": 1.0}, "alpha=1.0: must be"),
        ("regression", "huber", {"delta": 0}, "delta=0: must be > 0"),
        ("segmentation", "cross_entropy", {"weights": [1]}, "1 weights for 3 classes"),
    ],
)
def test_arguments_that_can_not_be(kind: str, name: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LOSSES[kind][name](3, **given)


@pytest.mark.more
def test_weights_of_classes_weigh_the_rows_of_any_loss() -> None:
    """A class that counts twice is its rows twice."""
    it = flax.from_flax(models.logistic((3,), 3), jnp.zeros((1, 3)), 3, loss=LOSSES["classes"]["focal"](3))
    wrap = OBJECTIVES["class_weights"](optax.sgd(0.1), of=[1, 1, 2]).learner
    assert wrap is not None
    params, key = it.init(jax.random.key(0)), jax.random.key(1)
    twice = np.concatenate([np.arange(ROWS), np.flatnonzero(Y == 2)])
    weighed = wrap(it).grad(params, {"x": jnp.asarray(OUTPUTS), "y": jnp.asarray(Y)}, key)[0]
    repeated = it.grad(params, {"x": jnp.asarray(OUTPUTS[twice]), "y": jnp.asarray(Y[twice])}, key)[0]
    scale = len(twice) / ROWS
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b * scale, rtol=1e-5, atol=1e-6), weighed, repeated)


@pytest.mark.more
def test_in_a_program_a_loss_need_not_know_of_masks() -> None:
    it = flax.from_flax(models.logistic((3,), 3), jnp.zeros((1, 3)), 3, loss=lambda outputs, y: -outputs[:, 0])
    params, batch = it.init(jax.random.key(0)), {"x": jnp.asarray(OUTPUTS), "y": jnp.asarray(Y)}
    found = it.evaluate(params, batch, jnp.asarray([1.0, 0, 1, 1, 1]))["loss"]
    np.testing.assert_array_equal(found, -it.predict(params, batch["x"])[:, 0] * np.array([1, 0, 1, 1, 1], np.float32))


def by_pairs(outputs: Any, y: Any, mask: Any) -> Any:
    """For each row, the mean over all rows that are there of how much riskier they are."""
    there = jnp.broadcast_to(mask > 0, (len(outputs), len(outputs)))
    return jnp.where(there, jax.nn.relu(outputs - outputs[None, :, 0]), 0).sum(axis=1) / mask.sum()


@pytest.mark.more
def test_rows_that_see_each_other_get_a_mask() -> None:
    y = np.ones((ROWS, 2), np.float32)
    loss = own(by_pairs, {}, (1,), y, "survival")
    outputs = jnp.asarray(OUTPUTS[:, :1])
    part = loss(outputs, jnp.asarray(y), jnp.asarray([1.0, 1, 0, 0, 0]))
    np.testing.assert_allclose(part[:2], loss(outputs[:2], jnp.asarray(y[:2])), rtol=1e-6)
    assert not np.asarray(part[2:]).any()
    with pytest.raises(ConfigError, match="of survival rows are compared with each other; it must take a mask"):
        own(lambda outputs, y: outputs[:, 0], {}, (1,), y, "survival")
