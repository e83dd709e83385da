"""From a Flax model to a learner, optimizers by name, and local steps."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from p2pfl import algorithms, tree
from p2pfl.errors import ConfigError
from p2pfl.learning import models, optimizers, quadratic
from p2pfl.learning.flax import from_flax
from p2pfl.learning.local_steps import descend
from p2pfl.methods import objectives, sharing
from p2pfl.types import Learner, Tree

FEATURES, CLASSES, BATCH = 4, 3, 6
EXAMPLE = jnp.zeros((1, FEATURES))


def batch(seed: int = 0, *leading: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(*leading, BATCH, FEATURES)).astype(np.float32)
    return {"x": jnp.asarray(x), "y": jnp.asarray(rng.integers(0, CLASSES, (*leading, BATCH)), jnp.int32)}


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(FEATURES, momentum=0.9, rngs=rngs)
        self.dense = nnx.Linear(FEATURES, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dense(self.norm(x))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return linen.Dense(CLASSES)(linen.BatchNorm(use_running_average=not train, momentum=0.9)(x))


class Drops(nnx.Module):
    """Two dropouts in a row on one weight per feature; a dropped weight has gradient zero."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.scale = nnx.Param(jnp.ones((400,)))
        self.first, self.second = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.second(self.first(x * self.scale[...][None, :]))
        return jnp.stack([y.mean(axis=-1), -y.mean(axis=-1)], axis=-1)


class LinenDrops(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        y = x * self.param("scale", linen.initializers.ones, (400,))[None, :]
        for _ in range(2):
            y = linen.Dropout(0.5, deterministic=deterministic)(y)
        return jnp.stack([y.mean(axis=-1), -y.mean(axis=-1)], axis=-1)


def softmax_regression(kernel: np.ndarray, bias: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[Any, ...]:
    """Loss per sample and gradients of its mean, in float64, by hand."""
    logits = x.astype(np.float64) @ kernel + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    error = p.copy()
    error[np.arange(len(y)), y] -= 1
    correct = logits.argmax(axis=1) == y
    return -np.log(p[np.arange(len(y)), y]), x.T @ error / len(y), error.mean(axis=0), correct


@pytest.mark.parametrize("model", [models.logistic((FEATURES,), CLASSES), linen.Dense(CLASSES)], ids=["nnx", "linen"])
def test_softmax_regression_by_hand(model: Any) -> None:
    it = from_flax(model, EXAMPLE, CLASSES)
    params, data = it.init(jax.random.key(1)), batch()
    params["trained"] = jax.tree.map(lambda leaf: leaf + 0.25, params["trained"])  # a bias that is not zero
    kernel, bias = (next(v for k, v in tree.named_leaves(params).items() if k.endswith(n)) for n in ("kernel", "bias"))
    loss, by_kernel, by_bias, correct = softmax_regression(*map(np.asarray, (kernel, bias, data["x"], data["y"])))
    gradient, others, metrics = it.grad(params, data, jax.random.key(0))
    carried = others["carried"]
    assert jax.tree.structure(gradient) == jax.tree.structure(params["trained"])
    assert carried == params["carried"] == {}
    named = tree.named_leaves(gradient)
    # float32 against float64, values of order one
    np.testing.assert_allclose(next(v for k, v in named.items() if k.endswith("kernel")), by_kernel, atol=1e-6)
    np.testing.assert_allclose(next(v for k, v in named.items() if k.endswith("bias")), by_bias, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], loss.mean(), rtol=1e-6)
    mask = jnp.asarray([1, 1, 0, 1, 0, 1], jnp.float32)
    got = it.evaluate(params, data, mask)
    np.testing.assert_allclose(got["loss"], loss * mask, atol=1e-6)
    assert np.array_equal(got["score"], correct * np.asarray(mask))


@pytest.mark.parametrize("model", [Net, LinenNet()], ids=["nnx", "linen"])
def test_batch_statistics_are_carried(model: Any) -> None:
    it = from_flax(model, EXAMPLE, CLASSES)
    params, data = it.init(jax.random.key(0)), batch()
    _, others, _ = it.grad(params, data, jax.random.key(0))
    carried = others["carried"]
    assert jax.tree.structure(carried) == jax.tree.structure(params["carried"])
    assert not any(name.split("/")[-1] in ("mean", "var") for name in tree.named_leaves(params["trained"]))
    named = {name.split("/")[-1]: leaf for name, leaf in tree.named_leaves(carried).items()}
    x = np.asarray(data["x"], np.float64)
    np.testing.assert_allclose(named["mean"], 0.1 * x.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(named["var"], 0.9 + 0.1 * x.var(axis=0), atol=1e-5)
    # Evaluation uses what is carried: a row's loss does not depend on the rows beside it.
    params = {**params, "carried": carried}
    whole = it.evaluate(params, data, jnp.ones(BATCH))["loss"]
    alone = it.evaluate(params, {name: leaf[2:3] for name, leaf in data.items()}, jnp.ones(1))["loss"]
    np.testing.assert_allclose(whole[2:3], alone, rtol=1e-5)
    untouched = it.evaluate({**params, "carried": it.init(jax.random.key(0))["carried"]}, data, jnp.ones(BATCH))
    assert not np.allclose(untouched["loss"], whole, rtol=1e-3)


@pytest.mark.parametrize("model", [pytest.param(Drops, marks=pytest.mark.more), LinenDrops()], ids=["nnx", "linen"])
def test_dropout_depends_on_the_key_and_is_off_in_evaluation(model: Any) -> None:
    it = from_flax(model, jnp.ones((1, 400)), 2)
    params = it.init(jax.random.key(0))
    data = {"x": jnp.ones((1, 400)), "y": jnp.zeros((1,), jnp.int32)}
    masks = [np.asarray(jax.tree.leaves(it.grad(params, data, jax.random.key(k))[0])[0]) != 0 for k in (1, 1, 2)]
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])
    assert abs(masks[0].mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)  # the two dropouts draw by themselves
    # Nothing dropped: both logits are +-1 exactly.
    assert np.allclose(it.evaluate(params, data, jnp.ones(1))["loss"], np.log1p(np.exp(-2)), rtol=1e-6)


class Odd(nnx.Module):
    """A linear layer with something besides; or what fails, when it is called or (`late`) only in training."""

    def __init__(self, rngs: nnx.Rngs, more: Any = None, fails: Callable[[jax.Array], Any] | None = None,
                 late: bool = False) -> None:  # fmt: skip
        self.dense, self.dropout = nnx.Linear(FEATURES, CLASSES, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.more, self.fails, self.late = more, fails, late

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.fails is not None and not (self.late and self.dropout.deterministic):
            x = x + self.fails(x)
        return self.dense(x)


def odd(**given: Any) -> Callable[[nnx.Rngs], Odd]:
    return lambda rngs: Odd(rngs, **given)


class Grows(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense, self.seen = nnx.Linear(FEATURES, CLASSES, rngs=rngs), nnx.Variable(jnp.zeros(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.seen = nnx.Variable(jnp.zeros(3))
        return self.dense(x)


class Constant(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x[:, :CLASSES]


class TwoOutputs(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(FEATURES, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> Any:
        return self.dense(x), x


@pytest.mark.parametrize(
    "model, text",
    [
        (models.logistic((FEATURES,), 5), r"output of shape \(5,\) for inputs of shape \(4,\); must be \(3,\)"),
        (linen.Dense(2), r"output of shape \(2,\)"),
        (TwoOutputs, r"2 arrays as output; must be one, \[3\] for each row"),
        (models.logistic((9,), CLASSES), r"does not take inputs of shape \(4,\): "),
        (models.cnn((8, 8, 1), CLASSES), r"does not take inputs of shape \(4,\): "),
        (linen.Conv(CLASSES, (3, 3)), r"does not take inputs|output of shape"),
        (7, "is an instance of int; must be a Linen module, or a function"),
        (Net(nnx.Rngs(0)), "is an instance of Net; must be a Linen module, or a function"),
        (lambda rngs: 3, "returned no nnx.Module; must be a Linen module, or a function"),
        (lambda: 3, "takes 0 positional arguments .*; must be a Linen module, or a function"),
        (linen.Dense, "calling it with nnx.Rngs failed: .*; must be a Linen module, or a function"),
        (Constant, "^model: has no parameters, so that there is nothing to learn"),
        (odd(more=nnx.Param(jnp.ones(2, jnp.complex64))), "^model: parameter more is complex64; must be real"),
        (odd(more=nnx.Param(jnp.ones(2, jnp.int32))), "^model: parameter more is int32, and has no gradient"),
        (odd(more=nnx.Param(jnp.ones(2, bool))), "^model: parameter more is bool, and has no gradient"),
        (odd(more=nnx.Variable(jnp.ones(2, bool))), "^model: variable more is bool; must be real floats"),
        (odd(more=nnx.Variable(jnp.ones(2, jnp.complex64))), "^model: variable more is complex64; must be"),
        (Grows, r"^model: variable seen is float32\[2\] before a step of training and float32\[3\] after it"),
        (odd(fails=lambda x: 1 if x.sum() > 0 else 0), r"^model: does not .* jnp.where .*test_learner.py, line \d+\)$"),
        (odd(fails=lambda x: np.sum(np.asarray(x))), r"^model: does not .*stay in jax.numpy \(.*, line \d+\)$"),
        (odd(fails=lambda x: 1 if x.sum() > 0 else 0, late=True), r"inputs of shape \(4,\) in training: .* jnp.where"),
        (
            odd(fails=lambda x: {}["lost"], late=True),
            r"^model: failed in training with KeyError: 'lost' \(.*, line \d+\)$",
        ),
    ],
)
def test_a_model_that_cannot_be_is_refused(model: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        from_flax(model, EXAMPLE, CLASSES)


def test_convolutions_are_unrolled_on_cpu() -> None:
    class Image(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.conv = nnx.Conv(1, CLASSES, (3, 3), rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.conv(x).mean(axis=(1, 2))

    example = jnp.zeros((1, 6, 6, 1))
    assert from_flax(Image, example, CLASSES).unroll == (jax.default_backend() == "cpu")
    assert not from_flax(models.cnn((6, 6, 1), CLASSES, (2,)), example, CLASSES).unroll


# ------------------------------------------------------------------------------------------------------- optimizers


def needs_only_a_learning_rate(function: Callable[..., Any]) -> bool:
    parameters = list(inspect.signature(function).parameters.values())
    optional = all(p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in parameters[1:])
    return bool(parameters) and parameters[0].name == "learning_rate" and optional


NAMES = sorted(
    name
    for name, value in {**vars(optax.contrib), **vars(optax)}.items()
    if inspect.isfunction(value) and not name.startswith(("_", "scale_by_")) and needs_only_a_learning_rate(value)
)


def test_there_are_many_optimizers() -> None:
    assert {"sgd", "adam", "adamw", "lion", "rmsprop", "adagrad", "lamb", "yogi", "lbfgs"} <= set(NAMES)
    assert {"muon", "prodigy", "schedule_free_sgd", "dowg", "momo", "sophia"} <= set(NAMES)  # of optax.contrib


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_that_needs_only_a_learning_rate_builds(name: str, optax_promotes: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optax's own: noisy_sgd wants a key, optimistic_adam has a successor
        made = optimizers.optimizer(name, learning_rate=0.1)
    params = {"w": jax.ShapeDtypeStruct((3, 2), np.float32), "b": jax.ShapeDtypeStruct((2,), np.float32)}
    step = functools.partial(optimizers.updated, made, loss=jnp.zeros(()), loss_at=lambda p: (p["w"] ** 2).sum())
    state = jax.eval_shape(made.init, params)
    updates, after = jax.eval_shape(step, params, state, params)
    assert tree.schema(updates) == tree.schema(params) and jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("name", "arguments", "shift"),
    [("lbfgs", {}, 0.0), ("lbfgs", {}, 0.5), ("polyak_sgd", {"max_learning_rate": 0.5}, 0.0)],
)
def test_optimizers_that_ask_for_the_loss_get_it(name: str, arguments: dict[str, Any], shift: float) -> None:
    """The minimum of sum a (x - b)^2 / 2 is b; a correction that adds c to the gradient moves it to b - c / a."""
    a, b = jnp.asarray([1.0, 4.0, 0.5]), jnp.asarray([1.0, -1.0, 2.0])
    it, optimizer = quadratic.learner(3), optimizers.optimizer(name, **arguments)
    params = it.init(jax.random.key(0))
    batches = {"x": jnp.broadcast_to(jnp.concatenate([a, b]), (60, 1, 6)), "y": jnp.zeros((60, 1))}
    done = descend(it, optimizer, params, optimizer.init(params["trained"]), batches, jax.random.key(0),
                   direct=lambda g: jax.tree.map(lambda leaf: leaf + shift, g) if shift else g)  # fmt: skip
    np.testing.assert_allclose(done.params["trained"]["x"], b - shift / a, atol=2e-3)


def test_who_has_no_loss_refuses_an_optimizer_that_asks_for_it() -> None:
    with pytest.raises(ConfigError, match=r"^outer: its steps have gradients alone, .*'value_fn'.*such as sgd"):
        algorithms.outer(quadratic.learner(2), optax.sgd(0.1), outer={"name": "lbfgs"})
    with pytest.raises(ConfigError, match=r"^share: .* asks for the loss"):
        sharing.keep(from_flax(Net, EXAMPLE, CLASSES), optax.lbfgs(), lambda path: "bias" not in path)
    with pytest.raises(ConfigError, match=r"^objective ditto: .* asks for the loss"):
        objectives.ditto(optax.lbfgs(), strength=0.1).learner(from_flax(Net, EXAMPLE, CLASSES))


@pytest.mark.parametrize(
    "name, arguments, text",
    [
        ("adm", {"learning_rate": 0.1}, "optimizer name='adm': did you mean 'adam'"),
        ("chain", {}, "optimizer name='chain': .*Valid: .*adam"),
        ("_deprecated_dpsgd", {}, "optimizer name='_deprecated_dpsgd'"),
        ("sam", {}, "optimizer name='sam': is made of two other .* name = \"sharpness\""),
        ("dpsgd", {"learning_rate": 0.1}, "optimizer name='dpsgd': needs the gradient of each row"),
        ("scale_by_rprop", {"learning_rate": 0.1}, "'scale_by_rprop': takes no step by itself; put it into a list"),
        ("clip_by_global_norm", {"max_norm": 1.0}, "takes no step by itself; put it into a list"),
        ("sgd", {"learning_rat": 0.1}, "optimizer sgd: argument 'learning_rat': did you mean 'learning_rate'"),
        ("sgd", {"momentum": 0.9}, r"optimizer sgd\(momentum=0.9\): .*learning_rate"),
        ("sgd", {"learning_rate": 0.1, "momentum": "high"}, r"optimizer sgd\(learning_rate=0.1, momentum='high'\): "),
        ("sgd", {"learning_rate": "fast"}, r"optimizer sgd\(learning_rate='fast'\): "),
    ],
)
def test_what_is_no_optimizer_is_refused(name: str, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        optimizers.optimizer(name, **arguments)


# ------------------------------------------------------------------------------------------------------ local steps


STEPS = 4


def by_hand(it: Learner, optimizer: Any, params: Tree, state: Tree, batches: Tree, key: Any, steps: int) -> Any:
    losses = []
    for s in range(steps):
        gradient, others, metrics = it.grad(
            params, jax.tree.map(lambda a, s=s: a[s], batches), jax.random.fold_in(key, s)
        )
        updates, state = optimizer.update(gradient, state, params["trained"])
        params = {**others, "trained": optax.apply_updates(params["trained"], updates)}
        losses.append(metrics["loss"])
    return params, state, {"loss": sum(map(float, losses)) / max(steps, 1)}


def close(a: Tree, b: Tree, tolerance: float) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


@pytest.mark.parametrize("model", [Net, pytest.param(LinenNet(), marks=pytest.mark.more)], ids=["nnx", "linen"])
def test_descend_is_the_steps_one_by_one(model: Any) -> None:
    """The optimizer's momentum is kept across calls; with `steps`, what lies beyond is left as it is."""
    it, optimizer = from_flax(model, EXAMPLE, CLASSES), optax.sgd(0.3, momentum=0.9)
    params = it.init(jax.random.key(0))
    start = (params, optimizer.init(params["trained"]))
    run = jax.jit(lambda p, o, b, k, s: descend(it, optimizer, p, o, b, k, s)[:3])
    one, two = batch(1, STEPS), batch(2, STEPS)
    key, later = jax.random.key(5), jax.random.key(6)
    tolerance = 2e-6  # float32: a fused step rounds unlike single operations
    first = run(*start, one, key, None)
    close(first, by_hand(it, optimizer, *start, one, key, STEPS), tolerance)
    second = run(*first[:2], two, later, None)
    close(second, by_hand(it, optimizer, *first[:2], two, later, STEPS), 2 * tolerance)
    afresh = run(first[0], start[1], two, later, None)  # the momentum matters
    assert not np.allclose(*(jax.tree.leaves(x[0]["trained"])[-1] for x in (second, afresh)), atol=1e-3)
    close(run(*start, one, key, jnp.int32(2)), by_hand(it, optimizer, *start, one, key, 2), tolerance)
    nothing = run(*start, one, key, jnp.int32(0))
    assert tree.digest(nothing[:2]) == tree.digest(start)
    assert float(nothing[2]["loss"]) == 0.0
    close(run(*start, one, key, jnp.int32(STEPS)), first, tolerance)
    # Written out instead of scanned.
    unrolled = it._replace(unroll=True)
    close(jax.jit(lambda: descend(unrolled, optimizer, *start, one, key)[:3])(), first, tolerance)


def test_each_local_step_has_its_own_key() -> None:
    def grad(params: Tree, batch: Tree, key: Any) -> tuple[Tree, Tree, dict[str, jax.Array]]:
        return jax.random.normal(key, (3,)), {"carried": {}}, {"loss": jnp.float32(0)}

    it = Learner(init=lambda key: {}, grad=grad, evaluate=lambda *a: {})
    params = {"trained": jnp.zeros(3), "carried": {}}
    key = jax.random.key(9)
    done = descend(it, optax.sgd(1.0), params, optax.sgd(1.0).init(params["trained"]), {"x": jnp.zeros((5, 1))}, key)
    expected = -sum(jax.random.normal(jax.random.fold_in(key, s), (3,)) for s in range(5))
    np.testing.assert_allclose(done.params["trained"], expected, rtol=1e-5)


def parabola(penalty: Any = None) -> Learner:
    """f(x) = |x - b|^2 / 2; b is the batch."""

    def grad(params: Tree, batch: Tree, key: Any) -> tuple[Tree, Tree, dict[str, jax.Array]]:
        away = params["trained"] - batch["b"]
        return away, {"carried": {}}, {"loss": (away**2).sum() / 2}

    return Learner(init=lambda key: {}, grad=grad, evaluate=lambda *a: {}, penalty=penalty)


def descent(it: Learner, steps: Any = None, **given: Any) -> Any:
    optimizer = optax.sgd(0.5)
    params = {"trained": jnp.full(2, 8.0), "carried": {}}
    batches = {"b": jnp.zeros((3, 2))}
    return descend(it, optimizer, params, optimizer.init(params["trained"]), batches, jax.random.key(0), steps, **given)


def test_direct_makes_what_the_optimizer_gets_and_its_mean_comes_back() -> None:
    """Numbers of few bits: exact in float32."""
    plain = descent(parabola(), directions=True)  # 8, 4, 2, 1
    assert np.array_equal(plain.params["trained"], [1, 1])
    np.testing.assert_allclose(plain.direction, np.full(2, (8 + 4 + 2) / 3), rtol=1e-6)
    assert descent(parabola()).direction == ()
    corrected = descent(parabola(), direct=lambda g: g - 2, directions=True)  # 8, 5, 3.5, 2.75
    assert np.array_equal(corrected.params["trained"], [2.75, 2.75])
    np.testing.assert_allclose(corrected.direction, np.full(2, (6 + 3 + 1.5) / 3), rtol=1e-6)
    two = descent(parabola(), jnp.int32(2), directions=True)  # the mean over the steps taken
    assert np.array_equal(two.direction, [6, 6])
    assert np.array_equal(descent(parabola(), jnp.int32(0), directions=True).direction, [0, 0])


def test_a_penalty_pulls_to_the_first_model_of_the_round() -> None:
    held = descent(parabola(lambda z, start: z - start))
    z = 8.0
    for _ in range(3):
        z = z - 0.5 * (z + (z - 8))
    assert np.array_equal(held.params["trained"], [z, z])  # all in few bits


@pytest.mark.parametrize(
    "optimizer, plain",
    [
        (optax.sgd(0.1), True),
        (optax.sgd(optax.cosine_decay_schedule(0.1, 100)), True),
        (optax.sgd(optax.warmup_constant_schedule(0.0, 0.1, 4)), True),
        (optax.chain(optax.scale(2.0), optax.sgd(0.1)), True),
        (optax.sgd(0.1, momentum=0.9), False),
        (optax.adam(0.1), False),
        (optax.sign_sgd(0.1), False),
        (optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)), False),
        (optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1)), False),
        (optax.chain(optax.clip(0.1), optax.sgd(0.1)), False),
        (optax.chain(optax.clip_by_global_norm(100.0), optax.sgd(0.1)), False),
        (optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(), False),
        (optax.sgd(0.0), False),
        (optax.sgd(-0.1), False),
    ],
    ids=[
        "sgd",
        "schedule",
        "warm",
        "scaled",
        "momentum",
        "adam",
        "sign",
        "decay",
        "clipped norm",
        "clipped",
        "clipped far out",
        "gathered",
        "still",
        "uphill",
    ],
)
def test_plain_is_sgd_and_nothing_else(optimizer: Any, plain: bool, optax_promotes: None) -> None:
    assert optimizers.is_plain(optimizer) == plain


def test_the_learning_rate_is_read_off_the_optimizer() -> None:
    trained = {"w": jnp.asarray([[3.0, -1.0]])}
    optimizer = optax.sgd(lambda count: 0.5 / (1 + count.astype(jnp.float32)))
    state = optimizer.init(trained)
    for expected in (0.5, 0.25):
        assert float(optimizers.learning_rate(optimizer, state, trained)) == expected
        _, state = optimizer.update(trained, state, trained)
