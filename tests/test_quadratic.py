"""The built-in task of unequal quadratics, and where theory says that algorithms end: against iterations in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2pfl import topology
from p2pfl.algorithms import ALGORITHMS
from p2pfl.errors import ConfigError
from p2pfl.learning import quadratic
from p2pfl.learning.quadratic import fixed_point

ETA, ROUNDS = 0.1, 3000
TASK = quadratic.quadratic(6, seed=1, dim=3, spread=2.0, conditioning=3.0)
W = topology.matrix(topology.plan("star", 6))
Step = Callable[[np.ndarray, dict[str, Any], np.ndarray, int], np.ndarray]


def g(x: np.ndarray) -> np.ndarray:
    return TASK.a * (x - TASK.b)


def descended(x: np.ndarray, steps: int) -> np.ndarray:
    for _ in range(steps):
        x = x - ETA * g(x)
    return x


def atc(x: np.ndarray, kept: dict[str, Any], w: np.ndarray, steps: int) -> np.ndarray:
    return w @ descended(x, steps)


def cta(x: np.ndarray, kept: dict[str, Any], w: np.ndarray, steps: int) -> np.ndarray:
    return w @ x - ETA * g(x)


def momentum(x: np.ndarray, kept: dict[str, Any], w: np.ndarray, steps: int) -> np.ndarray:
    kept["m"] = 0.5 * kept.get("m", 0.0) + g(x)
    return w @ (x - ETA * kept["m"])


def mixed_momentum(x: np.ndarray, kept: dict[str, Any], w: np.ndarray, steps: int) -> np.ndarray:
    m = 0.5 * kept.get("m", np.zeros_like(x)) + g(x)
    kept["m"] = w @ m
    return w @ (x - ETA * m)


def quasi_global(x: np.ndarray, kept: dict[str, Any], w: np.ndarray, steps: int) -> np.ndarray:
    m = kept.get("m", 0.0)
    after = w @ (x - ETA * (0.9 * m + g(x)))
    kept["m"] = 0.9 * m + 0.1 * (x - after) / ETA
    return after


def tracking(x: np.ndarray, kept: dict[str, Any], w: np.ndarray, steps: int) -> np.ndarray:
    """K-GT: local steps along g + c; the mean direction is mixed into c."""
    c, z, total = kept.get("c", np.zeros_like(x)), x, 0.0
    for _ in range(steps):
        total = total + g(z) + c
        z = z - ETA * (g(z) + c)
    kept["c"] = c + (w - np.eye(6)) @ (total / steps)
    return w @ z


def corrected(x: np.ndarray, kept: dict[str, Any], w: np.ndarray, steps: int) -> np.ndarray:
    psi = descended(x, steps)
    phi = psi + x - kept.get("psi", x)
    kept["psi"] = psi
    return (np.eye(6) + w) / 2 @ phi


def push(x: np.ndarray, kept: dict[str, Any], w: np.ndarray, steps: int) -> np.ndarray:
    """x is the model z here; the pair (z w, w) is mixed."""
    share = kept.get("w", np.ones((6, 1)))
    kept["w"] = w @ share
    return w @ (x * share - ETA * g(x)) / kept["w"]


def alone(x: np.ndarray, kept: dict[str, Any], w: np.ndarray, steps: int) -> np.ndarray:
    return descended(x, steps)


def column_stochastic() -> np.ndarray:
    w = (np.random.default_rng(0).random((6, 6)) < 0.5) | np.eye(6, dtype=bool) | np.roll(np.eye(6, dtype=bool), 1, 0)
    return w / w.sum(axis=0)


@pytest.mark.parametrize(
    "name, arguments, step, steps",
    [
        ("dsgd", {}, atc, 1),
        ("dsgd", {"order": "atc"}, atc, 3),
        ("dsgd", {"order": "cta"}, cta, 1),
        ("dmsgd", {"beta": 0.5}, momentum, 1),
        ("dmsgd", {"beta": 0.5, "mix_momentum": True}, mixed_momentum, 1),
        ("dfedavg", {"beta": 0.5}, atc, 1),
        ("dfedavg", {"beta": 0.5, "keep_momentum": True}, momentum, 1),
        ("qg_dsgdm", {}, quasi_global, 1),
        ("fedprox", {"mu": 0.3}, atc, 1),
        ("outer", {}, atc, 3),
        ("gradient_tracking", {}, tracking, 1),
        ("gradient_tracking", {}, tracking, 3),
        ("exact_diffusion", {}, corrected, 1),
        ("exact_diffusion", {}, corrected, 3),
        ("push_sum", {}, push, 1),
        ("local", {}, alone, 2),
    ],
)
def test_it_is_where_an_iteration_ends(name: str, arguments: dict[str, Any], step: Step, steps: int) -> None:
    w = column_stochastic() if name == "push_sum" else W
    expected = fixed_point(TASK, name, arguments, w, ETA, steps)
    assert expected is not None and expected.shape == TASK.b.shape
    x, kept = np.zeros((6, 3)), {}
    for _ in range(ROUNDS):
        x = step(x, kept, w, steps)
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-10)
    optimum = np.abs(expected - TASK.optimum).max()
    exact = name == "gradient_tracking" or (name == "exact_diffusion" and steps == 1)
    assert optimum < 1e-12 if exact else optimum > 1e-3  # exact diffusion with several steps is biased, too


@pytest.mark.parametrize(
    "name, arguments, steps",
    [
        ("dsgd", {"order": "cta"}, 2), ("dmsgd", {}, 2), ("dmsgd", {"mix_momentum": True}, 2), ("dfedavg", {}, 2),
        ("qg_dsgdm", {}, 2), ("fedprox", {}, 2), ("push_sum", {}, 2), ("outer", {"pairs": True}, 1),
        ("epidemic", {}, 1), ("ad_psgd", {}, 1), ("gossip_learning", {}, 1), ("fedavg", {}, 1), ("my_own:maker", {}, 1),
    ],
)  # fmt: skip
def test_it_is_none_where_theory_gives_nothing(name: str, arguments: dict[str, Any], steps: int) -> None:
    assert fixed_point(TASK, name, arguments, W, ETA, steps) is None


def test_exact_algorithms_are_named() -> None:
    assert set(quadratic.EXACT) < set(ALGORITHMS)


def test_the_task_is_as_described() -> None:
    assert TASK.a.shape == TASK.b.shape == (6, 3)
    scale = np.array([1, 3**-0.5, 1 / 3])
    assert ((TASK.a / scale >= 0.5) & (TASK.a / scale <= 1.5)).all()
    again, other = (quadratic.quadratic(6, seed, 3, 2.0, 3.0) for seed in (1, 2))
    assert np.array_equal(again.a, TASK.a) and not np.array_equal(other.a, TASK.a)
    many = quadratic.quadratic(4000, dim=2, spread=3.0)
    assert abs(many.b.std() - 3) < 4 * 3 / np.sqrt(2 * 8000) and abs(many.a.mean() - 1) < 4 / np.sqrt(12 * 8000)
    assert np.array_equal(quadratic.quadratic(2, dim=1, conditioning=9).a.shape, (2, 1))
    assert not quadratic.quadratic(3, spread=0.0).b.any()
    # no other point has a smaller mean objective
    value = ((TASK.a * (TASK.optimum - TASK.b) ** 2).sum(), (TASK.a * (TASK.optimum + 1e-3 - TASK.b) ** 2).sum())
    assert value[0] < value[1]
    assert np.abs((TASK.a * (TASK.optimum - TASK.b)).sum(axis=0)).max() < 1e-12


@pytest.mark.parametrize(
    "given, text",
    [
        ({"dim": 0}, "dim=0: must be > 0"),
        ({"spread": -1.0}, "spread=-1.0: must be >= 0"),
        ({"conditioning": 0.5}, "conditioning=0.5: must be >= 1"),
    ],
)
def test_a_task_that_cannot_be(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        quadratic.quadratic(4, **given)


def test_the_learner_descends_the_task() -> None:
    data = quadratic.dataset(TASK)
    assert data.train.x.shape == (6, 6) and not len(data.test.y) and data.classes == ()
    it = quadratic.learner(3)
    params = it.init(jax.random.key(0))
    assert not np.asarray(params["trained"]["x"]).any()
    params["trained"]["x"] = jnp.asarray([1.0, -2.0, 0.5])
    batch = {"x": jnp.asarray(data.train.x[:2], jnp.float32)}
    gradient, carried, metrics = it.grad(params, batch, jax.random.key(0))
    away = np.array([1.0, -2.0, 0.5]) - TASK.b[:2]
    np.testing.assert_allclose(gradient["x"], (TASK.a[:2] * away).mean(axis=0), rtol=1e-5)  # float32
    np.testing.assert_allclose(metrics["loss"], (TASK.a[:2] * away**2).sum(axis=1).mean() / 2, rtol=1e-5)
    assert carried == {"carried": {}}
    assert not np.asarray(it.evaluate(params, batch, jnp.ones(2))["loss"]).any()


def test_distance_is_the_root_mean_square_over_nodes() -> None:
    models = np.array([[3.0, 4.0], [0.0, 0.0]])
    assert quadratic.distance(models, np.zeros(2)) == pytest.approx(np.sqrt(12.5))
    assert quadratic.distance(models, models) == 0


def test_nothing_is_predicted() -> None:
    it = quadratic.learner(3)
    x = np.ones((5, 6))
    for each in (it, it.viewed(lambda params, x: (params, 2 * x))):
        assert each.predict(it.init(jax.random.key(0)), x).shape == (5, 0)
