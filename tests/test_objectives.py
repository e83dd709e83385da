"""Local objectives: each against what it must be in closed form or at its limits."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federations import MECHANISMS, federation_of
from flax import nnx
from nodes import Nodes, planned

from p2pfl import tree
from p2pfl.algorithms import ALGORITHMS
from p2pfl.data import builtin
from p2pfl.errors import ConfigError
from p2pfl.learning import models, quadratic
from p2pfl.learning.flax import ABSENT, from_flax
from p2pfl.learning.local_steps import descend, placed
from p2pfl.methods.compose import withhold
from p2pfl.methods.objectives import OBJECTIVES
from p2pfl.types import Learner, Tree

SGD = optax.sgd(0.1)
DIM, FEATURES, CLASSES, ROWS = 3, 4, 3, 8
KEY = jax.random.key(0)


def made(name: str, inner: Learner, **arguments: Any) -> Learner:
    wrap = OBJECTIVES[name](SGD, **arguments).learner
    assert wrap is not None
    return wrap(inner)


def logistic(classes: int = CLASSES) -> Learner:
    return from_flax(models.logistic((FEATURES,), classes), jnp.zeros((1, FEATURES)), classes)


def rows(seed: int = 0, classes: int = CLASSES) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    return {"x": jnp.asarray(x), "y": jnp.asarray(rng.integers(0, classes, ROWS), jnp.int32)}


def bowl(seed: int = 1) -> tuple[np.ndarray, np.ndarray, dict[str, jax.Array]]:
    """Of f(x) = 1/2 sum a (x - b)^2: a, b, and the batch that says so."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.5, 1.5, DIM).astype(np.float32), rng.normal(size=DIM).astype(np.float32)
    return a, b, {"x": jnp.asarray(np.concatenate([a, b])[None])}


def gradient(learner: Learner, params: Tree, batch: Tree, key: Any = KEY) -> Any:
    return jax.jit(learner.grad)(params, batch, key)


def same(a: Tree, b: Tree, atol: float = 1e-6) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=atol, rtol=1e-5)


def test_every_maker_has_its_name() -> None:
    assert all(maker.__name__ == name for name, maker in OBJECTIVES.items())


# --- the shared model's gradient


def test_fedprox_holds_back_to_the_start() -> None:
    learner = made("fedprox", quadratic.learner(DIM), mu=0.5)
    assert learner.penalty is not None
    z, x = jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray([0.0, 2.0, 5.0])
    same(learner.penalty({"x": z}, {"x": x}), {"x": 0.5 * (z - x)})


def test_sharpness_is_the_gradient_at_the_worst_model_nearby() -> None:
    a, b, batch = bowl()
    learner = made("sharpness", quadratic.learner(DIM), radius=0.3)
    w = np.array([1.0, -1.0, 0.5], np.float32)
    g = a * (w - b)
    got, _, metrics = gradient(learner, {"trained": {"x": jnp.asarray(w)}, "carried": {}}, batch)
    np.testing.assert_allclose(got["x"], a * (w + 0.3 * g / np.linalg.norm(g) - b), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], (a * (w - b) ** 2).sum() / 2, rtol=1e-5)  # of w itself
    at_rest = gradient(learner, {"trained": {"x": jnp.asarray(b)}, "carried": {}}, batch)[0]
    assert not np.asarray(at_rest["x"]).any()  # no direction, and no number that is none


def linear() -> Learner:
    return from_flax(lambda rngs: nnx.Linear(2, 2, rngs=rngs), np.zeros((1, 2), np.float32), classes=2)


def test_ridge_is_the_gradient_of_its_penalty_and_spares_the_intercept() -> None:
    batch = {"x": jnp.asarray([[1.0, 2.0], [0.0, 1.0]]), "y": jnp.asarray([0, 1])}
    model = {"trained": {"kernel": jnp.asarray([[1.0, -2.0], [3.0, 0.5]]), "bias": jnp.asarray([4.0, 5.0])},
             "carried": {}}  # fmt: skip
    without, _, loss = gradient(linear(), model, batch)
    got, _, metrics = gradient(made("ridge", linear(), strength=0.5), model, batch)
    same(got, {"kernel": without["kernel"] + 0.5 * model["trained"]["kernel"], "bias": without["bias"]})
    assert float(metrics["loss"] - loss["loss"]) == pytest.approx(0.25 * (1 + 4 + 9 + 0.25), rel=1e-5)
    with pytest.raises(ConfigError, match="no leaf ends so; there are: bias, kernel"):
        made("ridge", linear(), strength=1, matching="weights")


def test_class_weights_are_rows_repeated() -> None:
    learner, model = linear(), linear().init(KEY)
    x, y = jnp.asarray([[1.0, 2.0], [0.0, 1.0]]), jnp.asarray([0, 1])
    got, _, _ = gradient(made("class_weights", learner, of=[1.0, 3.0]), model, {"x": x, "y": y})
    rows = jnp.asarray([0, 1, 1, 1])
    thrice, _, _ = gradient(learner, model, {"x": x[rows], "y": y[rows]})
    same(got, jax.tree.map(lambda leaf: 2 * leaf, thrice))  # means over two rows, and over four


# --- a model of the node's own


def start(learner: Learner, w: np.ndarray) -> Tree:
    """A model whose shared part is w and no longer the first."""
    params = learner.init(KEY)
    return {**params, "trained": {"x": jnp.asarray(w)}}


@pytest.mark.parametrize("strength", [0.5, 20.0])
def test_pfedme_is_the_moreau_envelope(strength: float) -> None:
    a, b, batch = bowl()
    learner = made("pfedme", quadratic.learner(DIM), learning_rate=0.2, strength=strength, steps=200)
    w = np.array([1.0, -1.0, 0.5], np.float32)
    got, others, _ = gradient(learner, start(learner, w), batch)
    theta = (a * b + strength * w) / (a + strength)
    np.testing.assert_allclose(got["x"], strength * (w - theta), rtol=2e-3)
    own = learner.personal({**others, "trained": {"x": jnp.asarray(w)}})["trained"]["x"]  # type: ignore[misc]
    np.testing.assert_allclose(own, theta, rtol=1e-4)


def test_pfedme_of_great_strength_is_the_plain_gradient() -> None:
    with jax.enable_x64(True):
        a, b, batch = bowl()
        learner = made("pfedme", quadratic.learner(DIM), learning_rate=0.1, strength=1e8, steps=5)
        w = np.array([1.0, -1.0, 0.5])
        batch = {"x": jnp.asarray(np.concatenate([a, b])[None], np.float64)}
        params = jax.tree.map(
            lambda leaf: leaf.astype(np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
            start(learner, w),
        )
        got = gradient(learner, params, batch)[0]
        np.testing.assert_allclose(got["x"], a * (w - b), rtol=1e-6)


def steps(batch: Tree, count: int = 6) -> Tree:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), batch)


def trained(learner: Learner, batches: Tree, params: Tree | None = None) -> Tree:
    params = learner.init(KEY) if params is None else params
    return jax.jit(lambda p, b: descend(learner, SGD, p, SGD.init(p["trained"]), b, KEY).params)(params, batches)


@pytest.mark.parametrize("name", ["ditto", "cusfl"])
def test_without_strength_the_own_model_is_trained_alone_and_the_shared_as_without(name: str) -> None:
    learner, batches = made(name, logistic(), strength=0.0), steps(rows())
    params = trained(learner, batches)
    assert learner.personal is not None
    alone = trained(logistic(), batches)["trained"]
    same(params["trained"], alone)
    same(learner.personal(params)["trained"], alone)


def test_ditto_goes_where_its_objective_is_least() -> None:
    a, b, batch = bowl()
    learner = made("ditto", quadratic.learner(DIM), strength=2.0)
    w = np.array([1.0, -1.0, 0.5], np.float32)

    @jax.jit
    def settle(params: Tree) -> Tree:  # the shared model stays, as if neighbours held it
        def step(params: Tree, _: Any) -> tuple[Tree, None]:
            _, others, _ = learner.grad(params, batch, KEY)
            return {**params, "private": others["private"]}, None

        return jax.lax.scan(step, params, None, length=200)[0]

    own = learner.personal(settle(start(learner, w)))["trained"]["x"]  # type: ignore[misc]
    np.testing.assert_allclose(own, (a * b + 2 * w) / (a + 2), rtol=1e-4)


def test_cusfl_is_the_loss_and_the_distance_of_the_features_from_the_teachers() -> None:
    inner, batch = from_flax(models.mlp((FEATURES,), CLASSES, hidden=(5,)), jnp.zeros((1, FEATURES)), CLASSES), rows()
    learner = made("cusfl", inner, strength=0.7)
    params = learner.init(KEY)
    w = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape),
                     params["trained"])  # fmt: skip
    v = jax.tree.map(lambda leaf: -leaf, w)
    model = {"trained": v, "carried": params["carried"]}
    kept = {**params["private"]["cusfl"], "steps": jnp.int32(1), "model": model}
    _, others, _ = gradient(learner, {**params, "trained": w, "private": {"cusfl": kept}}, batch)

    def objective(v: Tree) -> Any:
        def features(p: Tree) -> Any:
            return nnx.relu(batch["x"] @ p["layers"][0]["kernel"] + p["layers"][0]["bias"][None, :])

        log_q = jax.nn.log_softmax(features(v) @ v["layers"][1]["kernel"] + v["layers"][1]["bias"][None, :])
        cross = -jnp.take_along_axis(log_q, batch["y"][:, None], axis=1).mean()
        return cross + 0.35 * ((features(v) - features(w)) ** 2).mean()

    wanted = jax.tree.map(lambda v, g: v - 0.1 * g, v, jax.jit(jax.grad(objective))(v))
    same(others["private"]["cusfl"]["model"]["trained"], wanted)


def test_average_is_the_mean_of_all_models_and_then_forgets() -> None:
    _, _, batch = bowl()
    learner = made("average", quadratic.learner(DIM), decay=0.75)
    seen, mean = [], None
    params = learner.init(KEY)
    for t in range(1, 8):
        w = np.full(DIM, float(t * t), np.float32)
        seen.append(w)
        params = {**params, "trained": {"x": jnp.asarray(w)}}
        _, others, _ = gradient(learner, params, batch)
        params = {**params, "private": others["private"]}
        mean = np.mean(seen, axis=0) if t <= 4 else 0.75 * mean + 0.25 * w  # type: ignore[operator]
        np.testing.assert_allclose(learner.personal(params)["trained"]["x"], mean, rtol=1e-6)  # type: ignore[misc]


PERSONAL = {
    "pfedme": {"learning_rate": 1.0, "strength": 0.1, "steps": 30},
    "ditto": {"strength": 0.1},
    "cusfl": {"strength": 0.1},
    "iop": {"strength": 0.05},
    "soft_pull": {},
}


@pytest.mark.parametrize(
    "name", ["pfedme", *(pytest.param(name, marks=pytest.mark.more) for name in ("ditto", "cusfl"))]
)
def test_with_opposite_label_maps_only_own_models_are_right(name: str) -> None:
    """Two sites call the same rows by opposite names: no shared model can be right at both, each own one is."""
    x = rows(3)["x"]
    x = x.at[:, 0].add(jnp.sign(x[:, 0]))
    label = (x[:, 0] > 0).astype(jnp.int32)
    learner = made(name, logistic(2), **PERSONAL[name])
    y = jnp.stack([label, 1 - label])

    @jax.jit
    def run() -> tuple[Any, Any]:
        def each(params: Tree, y: Any) -> Tree:
            return descend(learner, SGD, params, SGD.init(params["trained"]), steps({"x": x, "y": y}, 3), KEY).params

        def round(params: Tree, _: Any) -> tuple[Tree, None]:
            params = jax.vmap(each)(params, y)
            mean = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf.mean(axis=0)[None], leaf.shape), params["trained"])
            return {**params, "trained": mean}, None

        first = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (2, *leaf.shape)), learner.init(KEY))
        params = jax.lax.scan(round, first, None, length=40)[0]

        def score(params: Tree, y: Any) -> Any:
            return learner.evaluate(params, {"x": x, "y": y}, jnp.ones(ROWS))["score"].mean()

        return jax.vmap(score)(params, y).mean(), jax.vmap(score)(jax.vmap(learner.personal)(params), y).min()  # type: ignore[arg-type]

    shared, own = run()
    assert float(shared) == 0.5 and float(own) == 1.0


@pytest.mark.parametrize("name", [*PERSONAL, "average"])
def test_a_joiners_own_model_begins_as_the_one_it_adopted(name: str) -> None:
    learner = made(name, logistic(), **PERSONAL.get(name, {}))
    algorithm = withhold(ALGORITHMS["dsgd"](learner, SGD))
    other = jax.tree.map(lambda leaf: leaf + 1, learner.init(KEY)["trained"])
    state = algorithm.adopt(algorithm.init(learner.init(KEY), 2), {"trained": other, "carried": {}})
    params = algorithm.params(state)
    assert learner.personal is not None
    same(learner.personal(params)["trained"], other)
    # and from then on it is its own
    later = trained(learner, steps(rows(), 2), params)
    own, shared = learner.personal(later), learner.personal({**later, "trained": params["trained"]})
    same(own["trained"], shared["trained"])


def test_where_two_bring_a_model_the_last_one_answers() -> None:
    learner = made("average", made("ditto", logistic(), strength=0.0))
    params = trained(learner, steps(rows(), 5))
    assert learner.personal is not None
    same(learner.personal(params)["trained"], params["private"]["average"]["model"]["trained"])
    assert params["private"]["ditto"]["steps"] == 5  # trained all the same


# --- labels


def sited(learner: Learner, labels: Any, statistics: Any = None) -> Learner:
    """The learner at a site with these labels, where `statistics` may be known."""

    def init(key: Any) -> Tree:
        params = placed(learner.init(key), {"labels": jnp.asarray(labels, jnp.float32)})
        return params if statistics is None else {**params, "statistics": statistics}

    return learner._replace(init=init)


def shares(*values: float, known: float = 1.0) -> Tree:
    return {"known": jnp.float32(known), "labels": jnp.asarray(values, jnp.float32)}


@cache
def plain() -> tuple[Any, Tree]:
    inner = logistic()
    return jax.jit(inner.grad), inner.init(KEY)


def weighted(weight: np.ndarray, batch: Tree) -> Tree:
    grad, params = plain()
    return grad(params, {**batch, "weight": jnp.asarray(weight, jnp.float32)}, KEY)[0]


def test_fedsld_weighs_by_how_rare_a_class_is_here() -> None:
    batch = rows()
    y = np.asarray(batch["y"])
    learner = made("fedsld", sited(logistic(), [6, 2, 0], shares(0.25, 0.5, 0.25)))
    weight = np.where(y == 0, 0.25 / 0.75, np.where(y == 1, 0.5 / 0.25, 1.0))
    same(gradient(learner, learner.init(KEY), batch)[0], weighted(weight, batch))
    # what a batch has already is multiplied
    twice = gradient(learner, learner.init(KEY), {**batch, "weight": jnp.asarray(y, jnp.float32)})[0]
    same(twice, weighted(weight * y, batch))


def test_fedsld_is_bounded_and_waits_until_the_labels_are_known() -> None:
    batch = rows()
    y = np.asarray(batch["y"])
    rare = made("fedsld", sited(logistic(), [1, 999, 1000], shares(0.9, 0.1, 0.0)), bound=4.0)
    weight = np.where(y == 0, 4.0, np.where(y == 1, 0.25, 1.0))  # of the last nobody tells
    same(gradient(rare, rare.init(KEY), batch)[0], weighted(weight, batch))
    unknown = made("fedsld", sited(logistic(), [6, 2, 0], shares(0.0, 0.0, 0.0, known=0.0)))
    same(gradient(unknown, unknown.init(KEY), batch)[0], weighted(np.ones(ROWS), batch))
    with pytest.raises(ConfigError, match=r"statistics.gather"):
        made("fedsld", logistic())


def test_missing_classes_have_no_part_in_the_loss() -> None:
    batch = rows(0, 2)
    learner = made("missing_classes", sited(logistic(), [4, 4, 0]))
    params = learner.init(KEY)
    got, _, metrics = gradient(learner, params, batch)
    kernel, bias = (np.asarray(params["trained"]["layers"][0][name], np.float64) for name in ("kernel", "bias"))
    z = np.asarray(batch["x"], np.float64) @ kernel[:, :2] + bias[:2]  # the model of two classes
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    d = (p - np.eye(2)[np.asarray(batch["y"])]) / ROWS
    np.testing.assert_allclose(got["layers"][0]["kernel"][:, :2], np.asarray(batch["x"], np.float64).T @ d, atol=1e-6)
    assert not np.asarray(got["layers"][0]["kernel"][:, 2]).any()
    np.testing.assert_allclose(metrics["loss"], -np.log(p[np.arange(ROWS), batch["y"]]).mean(), rtol=1e-5)
    # where it is asked, it answers with all classes
    assert np.asarray(learner.predict(params, batch["x"])).min() > ABSENT


# --- tasks

GROUPS = [[0, 1], [2, 3]]


def test_a_task_sees_its_own_head_alone() -> None:
    inner = logistic(4)
    learner = made("tasks", inner, of=[0, 1], groups=GROUPS)
    params = {**inner.init(KEY), "private": {"site": {"task": jnp.int32(1)}}}
    batch = rows()
    batch["y"] = batch["y"] % 2 + 2
    got = gradient(learner, params, batch)[0]["layers"][0]["kernel"]
    assert not np.asarray(got[:, :2]).any() and np.asarray(got[:, 2:]).any()
    p = jax.jit(lambda params, x: jax.nn.softmax(learner.predict(params, x)))(params, batch["x"])
    assert not np.asarray(p[:, :2]).any()
    np.testing.assert_allclose(np.asarray(p[:, 2:]).sum(axis=1), 1, rtol=1e-6)
    batch["y"] = batch["y"].at[0].set(0)  # a row of the other task counts nothing
    sums = jax.jit(learner.evaluate)(params, batch, jnp.ones(ROWS))
    assert float(sums["score"][0]) == float(sums["loss"][0]) == 0
    assert np.asarray(sums["loss"][1:] > 0).all() and float(sums["loss"].max()) < 10


def test_heads_are_mixed_within_a_task_and_the_mean_is_kept() -> None:
    """A ring of 0 1 1 0: the trunk meets all, a head its own task's neighbour, and no head of the other task moves."""
    of = np.array([0, 1, 1, 0])

    def init(key: Any) -> Tree:
        return {"trained": {"head": jnp.zeros((2, 4)), "trunk": jnp.zeros((2, 2))}, "carried": {}}

    still = Learner(init, lambda p, b, k: (jax.tree.map(jnp.zeros_like, p["trained"]), {"carried": {}}, {}), None)  # type: ignore[arg-type, return-value]
    method = OBJECTIVES["tasks"](SGD, of=of.tolist(), groups=GROUPS)
    assert method.wrap is not None
    algorithm = method.wrap(withhold(ALGORITHMS["dsgd"](still, SGD)))
    nodes = Nodes(algorithm, planned(algorithm, "ring", 4), dtype=np.float32)
    rng = np.random.default_rng(0)
    models = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=(4, *leaf.shape)), jnp.float32), init(KEY))
    before = {name: np.asarray(leaf) for name, leaf in models["trained"].items()}
    state = nodes.init({**models, "private": {"site": {"task": jnp.asarray(of, jnp.int32)}}})
    around = nodes.around()
    for _ in range(60):
        state, payload = jax.vmap(algorithm.send)(state, around)
        state = nodes.mix(state, nodes.inbox(payload, np.ones((4, 2), bool)), around)
    after = jax.vmap(algorithm.params)(state)["trained"]
    np.testing.assert_allclose(after["trunk"], np.broadcast_to(before["trunk"].mean(0), (4, 2, 2)), atol=1e-5)
    for task, group in enumerate(GROUPS):
        mine = before["head"][of == task][:, :, group]
        np.testing.assert_allclose(np.asarray(after["head"])[of == task][:, :, group],
                                   np.broadcast_to(mine.mean(0), mine.shape), atol=1e-5)  # fmt: skip
        theirs = np.asarray(after["head"])[of != task][:, :, group]
        np.testing.assert_array_equal(theirs, before["head"][of != task][:, :, group])


# --- images


def seen_by(method: str, x: Any, y: Any, key: Any = KEY, **arguments: Any) -> Tree:
    """The batch that the learner inside gets."""
    inside = Learner(lambda key: {}, lambda params, batch, key: (batch, {}, {}), None)  # type: ignore[arg-type, return-value]
    return gradient(made(method, inside, **arguments), {}, {"x": x, "y": y}, key)[0]


def image(count: int = 6, size: int = 5) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).uniform(size=(count, size, size, 2)), jnp.float32)


def test_augment_with_nothing_to_do_is_the_identity() -> None:
    x, y = image(), jnp.arange(6, dtype=jnp.int32)
    batch = seen_by("augment", x, y, shift=0)
    np.testing.assert_array_equal(batch["x"], x)
    np.testing.assert_array_equal(batch["y"], y)


def test_augment_moves_and_flips_each_image_with_its_mask() -> None:
    x = image()
    mask = jnp.asarray(np.arange(25).reshape(5, 5), jnp.int32)
    masks = jnp.broadcast_to(mask, (6, 5, 5))
    batch = seen_by("augment", x, masks, shift=1, flip=True)
    found = set()
    for i in range(6):
        padded = np.pad(np.asarray(x[i]), ((1, 1), (1, 1), (0, 0)), "edge")
        pad_mask = np.pad(np.asarray(mask), 1, "edge")
        for down, right, flip in np.ndindex(3, 3, 2):
            cut = (slice(down, down + 5), slice(right, right + 5))
            one, its = padded[cut], pad_mask[cut]
            one, its = (one[:, ::-1], its[:, ::-1]) if flip else (one, its)
            if np.array_equal(one, batch["x"][i]):
                np.testing.assert_array_equal(its, batch["y"][i])
                found.add((i, down, right, flip))
    assert {i for i, *_ in found} == set(range(6))  # each is one of them
    assert len({rest for _, *rest in map(tuple, found) for rest in [tuple(rest)]}) > 2  # and not all alike


@pytest.mark.more
def test_augment_turns_about_the_middle_and_changes_the_light() -> None:
    size = 9
    x = jnp.zeros((40, size, size, 1)).at[:, 4, 7, 0].set(1.0)
    turned = np.asarray(seen_by("augment", x, jnp.zeros(40, jnp.int32), shift=0, rotate=90.0)["x"])[..., 0]
    ys, xs = np.mgrid[:size, :size] - 4
    total = turned.sum(axis=(1, 2))
    angle = np.degrees(np.arctan2((turned * ys).sum(axis=(1, 2)) / total, (turned * xs).sum(axis=(1, 2)) / total))
    radius = np.hypot((turned * ys).sum(axis=(1, 2)), (turned * xs).sum(axis=(1, 2))) / total
    assert np.abs(angle).max() < 95 and angle.max() > 45 and angle.min() < -45
    np.testing.assert_allclose(radius, 3, atol=0.35)
    flat = jnp.full((200, 2, 2, 1), 0.5)
    bright = np.asarray(seen_by("augment", flat, jnp.zeros(200), shift=0, brightness=0.2)["x"]) - 0.5
    assert np.ptp(bright, axis=(1, 2, 3)).max() < 1e-6 and 0.15 < np.abs(bright).max() <= 0.2
    half = jnp.concatenate([jnp.zeros((200, 2, 1, 1)), jnp.ones((200, 2, 1, 1))], axis=2)
    spread = np.ptp(np.asarray(seen_by("augment", half, jnp.zeros(200), shift=0, contrast=0.5)["x"]), axis=(1, 2, 3))
    assert 0.5 <= spread.min() < 0.6 and 1.4 < spread.max() <= 1.5
    noisy = np.asarray(seen_by("augment", flat, jnp.zeros(200), shift=0, noise=0.1)["x"])
    assert abs(noisy.std() - 0.1) < 0.01


def test_augment_is_drawn_from_the_key_alone() -> None:
    batch = {"x": image(), "y": jnp.zeros(6, jnp.int32)}
    inside = Learner(lambda key: {}, lambda params, batch, key: (batch, {}, {}), None)  # type: ignore[arg-type, return-value]
    run = jax.jit(made("augment", inside, brightness=0.1).grad)
    a, b, c = (np.asarray(run({}, batch, jax.random.key(k))[0]["x"]) for k in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


# --- arguments and data


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("fedprox", {"mu": -1}), ("sharpness", {"radius": 0}), ("pfedme", {"learning_rate": 0}),
        ("pfedme", {"learning_rate": 0.1, "steps": 0}), ("ditto", {"strength": -1}), ("cusfl", {"strength": -1}),
        ("iop", {"strength": 1}), ("average", {"decay": 1}),
        ("fedsld", {"bound": 1}), ("augment", {"shift": -1}), ("augment", {"contrast": 2}),
        ("tasks", {"of": [0], "groups": []}), ("tasks", {"of": [0], "groups": [[0], [2]]}),
        ("tasks", {"of": [2], "groups": [[0], [1]]}), ("ridge", {"strength": -1}), ("class_weights", {"of": [1, 0]}),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"must|valid|Valid|has task"):
        OBJECTIVES[name](SGD, **arguments)


def test_data_that_do_not_suit_are_refused() -> None:
    flat = builtin.digits()
    for name, arguments in (
        ("augment", {}),
        ("tasks", {"of": [0], "groups": [[0, 1]]}),
        ("class_weights", {"of": [1]}),
    ):
        suits = OBJECTIVES[name](SGD, **arguments).suits
        assert suits is not None
        with pytest.raises(ConfigError, match=name):
            suits(flat)
    for name in ("fedsld", "missing_classes"):
        suits = OBJECTIVES[name](SGD).suits
        assert suits is not None
        suits(flat)
        with pytest.raises(ConfigError, match="regression"):
            suits(flat._replace(kind="regression"))
    with pytest.raises(ConfigError, match=r"objective cusfl: works on features, .* give it a method features"):
        made("cusfl", linear(), strength=1.0)


def test_heads_need_exchanges() -> None:
    method = OBJECTIVES["tasks"](SGD, of=[0, 1], groups=GROUPS)
    assert method.wrap is not None
    with pytest.raises(ConfigError, match="tasks"):
        method.wrap(withhold(ALGORITHMS["push_sum"](logistic(4), SGD)))
    assert method.wrap(ALGORITHMS["local"](logistic(4), SGD)).name == "local"


# --- both drivers: the parity of their models is that of rows in test_simulate.py


@pytest.mark.parametrize("case", ["objectives", "more objectives"])
def test_who_keeps_a_model_of_its_own_keeps_it_under_its_name(case: str) -> None:
    with jax.enable_x64(True):
        names = tree.named_leaves(jax.eval_shape(federation_of(MECHANISMS[case]).learner.init, KEY))
    for method in MECHANISMS[case]["training"]["objective"]:
        kept = any(name.startswith(f"private/{method['name']}/") for name in names)
        assert kept == (method["name"] in [*PERSONAL, "average", "deputy", "selector", "moon", "tasks"])
