"""Which model answers: what each is at the end, against closed forms and what it must be better than."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from p2pfl.config.experiment import Experiment, parse
from p2pfl.data import Dataset, Samples
from p2pfl.errors import ConfigError
from p2pfl.federation.federation import build
from p2pfl.learning import models
from p2pfl.learning.flax import from_flax
from p2pfl.learning.local_steps import descend, placed
from p2pfl.methods import answers as predict
from p2pfl.methods import bulletin, sharing
from p2pfl.methods.answers import ANSWERS, Answer, Own, calibration, check, held_back, prepared, selector
from p2pfl.methods.answers.selector import SHARED
from p2pfl.methods.appearance import features
from p2pfl.methods.objectives import OBJECTIVES
from p2pfl.runs import assessment
from p2pfl.types import Learner, Tree

SGD = optax.sgd(0.2)
FEATURES = 6
KEY = jax.random.key(0)


class Normed(nnx.Module):
    """Batch normalisation of the inputs, then a layer, normalisation, ReLU, a layer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.BatchNorm(FEATURES, momentum=0.8, rngs=rngs)
        self.hidden = nnx.Linear(FEATURES, 8, rngs=rngs)
        self.second = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.second(self.hidden(self.first(x)))))


@cache
def normed() -> Learner:
    return from_flax(lambda rngs: Normed(rngs), jnp.zeros((1, FEATURES)), 2)


@cache
def logistic() -> Learner:
    return from_flax(models.logistic((FEATURES,), 2), jnp.zeros((1, FEATURES)), 2)


def line(count: int, seed: int, tilt: float = 0.0) -> Samples:
    """Rows whose class depends on a direction that `tilt` turns, with some noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, FEATURES)).astype(np.float32)
    value = np.cos(tilt) * x[:, 0] + np.sin(tilt) * x[:, 1] + 0.3 * rng.normal(size=count)
    return Samples(x, (value > 0).astype(np.int32))


def texture(count: int, seed: int) -> Samples:
    """Film: a pattern of either sign on a background, weak in class 0 and strong in class 1."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count).astype(np.int32)
    pattern = np.where(np.arange(FEATURES) % 2, 1.0, -1.0)
    size = np.where(y, 0.2, 0.05) * rng.choice([-1, 1], count)
    x = 0.3 + size[:, None] * pattern + 0.02 * rng.normal(size=(count, FEATURES))
    return Samples(x.astype(np.float32), y)


@cache
def run(learner: Learner, optimizer: Any) -> Any:
    def run(batches: Tree) -> Tree:
        params = learner.init(KEY)
        return descend(learner, optimizer, params, optimizer.init(params["trained"]), batches, KEY).params

    return jax.jit(run)


def trained(learner: Learner, rows: Samples, optimizer: Any = SGD) -> Tree:
    pick = np.random.default_rng(0).integers(0, len(rows.y), (100, 16))
    return run(learner, optimizer)({"x": jnp.asarray(rows.x[pick]), "y": jnp.asarray(rows.y[pick])})


@cache
def answering(names: tuple[str, ...], learner: Learner, **given: Any) -> Any:
    return prepared(names, learner, SGD, "classes", 8, 0, **given)


def answers(names: list[str], learner: Learner, own: Own, **given: Any) -> dict[str, Answer]:
    found: dict[str, Answer] = answering(tuple(names), learner, **given)(own)
    return found


@cache
def evaluating(learner: Learner) -> Any:
    return jax.jit(learner.evaluate)


def scored(learner: Learner, params: Tree, rows: Samples) -> tuple[float, float]:
    """Mean score and mean loss."""
    batch = {"x": jnp.asarray(rows.x), "y": jnp.asarray(rows.y)}
    sums = evaluating(learner)(params, batch, jnp.ones(len(rows.y)))
    return float(sums["score"].mean()), float(sums["loss"].mean())


def test_consensus_is_the_model_and_personal_the_nodes_own() -> None:
    wrap = OBJECTIVES["ditto"](SGD, strength=0.1).learner
    assert wrap is not None
    learner = wrap(logistic())
    params = trained(learner, line(40, 0))
    params = {**params, "trained": jax.tree.map(jnp.zeros_like, params["trained"])}
    found = answers(["consensus", "personal"], learner, Own(1, params, line(40, 0)))
    assert found["consensus"].params is params
    own = params["private"]["ditto"]["model"]["trained"]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found["personal"].params["trained"], own))


def test_fine_tuning_lowers_the_local_loss() -> None:
    learner = normed()
    params = trained(learner, line(200, 0))
    own = line(60, 1, tilt=1.2)
    found = answers(["fine_tuned"], learner, Own(1, params, own))["fine_tuned"]
    assert scored(learner, found.params, own)[1] < 0.7 * scored(learner, params, own)[1]
    assert (
        np.asarray(found.params["carried"]["first"]["mean"]) != np.asarray(params["carried"]["first"]["mean"])
    ).any()


@pytest.mark.parametrize("tilt", [0.0, 0.8])
def test_the_interpolated_model_is_never_worse_than_both_ends(tilt: float) -> None:
    learner = logistic()
    params = trained(learner, line(400, 0))
    own = line(50, 1, tilt)
    found = answers(["interpolated"], learner, Own(1, params, own), steps=200)["interpolated"]
    train, held = held_back(own, 0, 1)
    tuned = answers(["fine_tuned"], learner, Own(1, params, train), steps=200)["fine_tuned"]
    ends = [scored(learner, one, held)[1] for one in (params, tuned.params)]
    got = scored(learner, found.params, held)[1]
    assert got <= min(ends) + 1e-6
    assert "held back (10)" in found.note
    alpha = float(found.note.split()[1].rstrip(","))
    kernel, a, b = (p["trained"]["layers"][0]["kernel"] for p in (found.params, params, tuned.params))
    np.testing.assert_allclose(kernel, (1 - alpha) * a + alpha * b, rtol=1e-5, atol=1e-6)
    # with validation rows of its own, all training rows are trained on
    more = answers(["interpolated"], learner, Own(1, params, own, validation=held), steps=200)["interpolated"]
    assert "validation rows (10)" in more.note


def test_a_fifth_is_held_back_and_few_rows_are_too_few() -> None:
    rows = line(23, 0)
    train, held = held_back(rows, 3, 4)
    assert len(train.y) == 19 and len(held.y) == 4
    both = np.concatenate([train.x, held.x])
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, rows.x.tolist()))
    assert (held_back(rows, 3, 5)[1].x != held.x).any()
    learner = logistic()
    params = learner.init(KEY)
    found = answers(["interpolated"], learner, Own(1, params, line(4, 0)))["interpolated"]
    assert found.params is params and "too few" in found.note


# --- batch statistics


def test_recalibrated_statistics_are_those_of_the_inputs() -> None:
    learner = normed()
    rows = line(333, 0)._replace(x=(line(333, 0).x * np.arange(1, 7) * 1000 + 500).astype(np.float32))
    params = trained(learner, line(50, 1))
    before = jax.tree.map(np.asarray, params)
    found = answers(["recalibrated"], learner, Own(1, params, rows))["recalibrated"].params
    x = rows.x.astype(np.float64)
    np.testing.assert_allclose(found["carried"]["first"]["mean"], x.mean(axis=0), atol=1e-4 * x.std())
    np.testing.assert_allclose(found["carried"]["first"]["var"], x.var(axis=0), rtol=5e-3)
    # of the second layer, those of what the first and its weights make of the inputs
    t = jax.tree.map(np.float64, before["trained"])
    z = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5) * t["first"]["scale"] + t["first"]["bias"]
    h = z @ t["hidden"]["kernel"] + t["hidden"]["bias"]
    np.testing.assert_allclose(found["carried"]["second"]["mean"], h.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(found["carried"]["second"]["var"], h.var(axis=0), rtol=1e-2)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), before["trained"], found["trained"]))


def test_many_rows_are_taken_in_chunks_and_kept_leaves_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "ROWS", 40)
    inner = from_flax(models.mlp((FEATURES,), 2, hidden=(4,), norm="batch"), jnp.zeros((1, FEATURES)), 2)
    learner = sharing.keep(inner, SGD, sharing.predicate("fedbn", inner))
    rows = line(100, 0)
    params = jax.jit(learner.init)(KEY)
    found = answers(["recalibrated"], learner, Own(1, params, rows))["recalibrated"].params
    t = jax.tree.map(np.asarray, params["trained"])["layers"][0]
    h = rows.x @ t["kernel"] + t["bias"]
    stats = found["private"]["share"]["leaves"]["carried"]["norms"][0]
    parts = np.array_split(h, 3)
    np.testing.assert_allclose(stats["mean"], h.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(stats["var"], sum(len(p) * p.var(axis=0) for p in parts) / 100, rtol=1e-3)
    assert sorted(calibration.norms(params)) == ["own:norms/0/bias", "own:norms/0/scale"]
    moved = calibration.with_trained(params, {"own:norms/0/bias": jnp.ones(4)})
    assert np.asarray(moved["private"]["share"]["leaves"]["trained"]["norms"][0]["bias"] == 1).all()
    assert moved["trained"] == params["trained"] or jax.tree.structure(moved) == jax.tree.structure(params)


def test_statistics_that_are_no_running_means_are_refused() -> None:
    inner = normed()

    def grad(params: Tree, batch: Tree, key: Any) -> Any:
        gradient, others, metrics = inner.grad(params, batch, key)
        others["carried"]["first"]["mean"] = params["carried"]["first"]["mean"] ** 2 + others["carried"]["first"]["var"]
        return gradient, others, metrics

    learner = inner._replace(grad=grad)
    with pytest.raises(ConfigError, match="no running means"):
        answers(["recalibrated"], learner, Own(1, learner.init(KEY), line(20, 0)))


@pytest.mark.more
def test_adaptation_makes_up_for_inverted_film(optax_promotes: None) -> None:
    learner = normed()
    params = trained(learner, texture(400, 0))
    test = texture(200, 1)
    inverted = test._replace(x=1 - test.x)
    assert scored(learner, params, test)[0] > 0.95
    # its few training rows are as they were; what it is asked about is inverted, and has no labels
    own = Own(1, params, texture(30, 2), unlabelled=inverted.x)
    found = answers(["recalibrated", "adapted"], learner, own, noise=0.1)
    before = scored(learner, params, inverted)[0]
    assert before < 0.75
    assert scored(learner, found["recalibrated"].params, inverted)[0] < 0.75  # of its training rows, that is no help
    assert scored(learner, found["adapted"].params, inverted)[0] > before + 0.2
    # more certain than by the statistics alone, and nothing but scale and bias has moved
    only = calibration.compiled(learner)(params, jnp.asarray(inverted.x), jnp.asarray(test.y[:1]), KEY)

    def entropy(params: Tree) -> float:
        p = np.asarray(jax.nn.softmax(learner.predict(params, jnp.asarray(inverted.x))), np.float64)
        return float(-(p * np.log(p + 1e-12)).sum(axis=1).mean())

    assert entropy(found["adapted"].params) < entropy(only)
    for name, part in found["adapted"].params["trained"].items():
        same = all(bool((part[leaf] == params["trained"][name][leaf]).all()) for leaf in part)
        assert same == (name in ("hidden", "head"))


def test_what_cannot_be_given_is_refused_before_it_is_needed() -> None:
    plain = logistic()
    for names, kind, text in (
        (["oracle"], "classes", "consensus"),
        (["personal"], "classes", "ditto"),
        (["recalibrated"], "classes", "batch"),
        (["adapted"], "classes", "batch"),
    ):
        with pytest.raises(ConfigError, match=text):
            check(names, plain, kind)
    with pytest.raises(ConfigError, match="regression"):
        check(["adapted"], normed(), "regression")
    check(["consensus", "fine_tuned", "interpolated", "recalibrated", "adapted"], normed(), "classes")
    assert all(maker.__name__ == name for name, maker in ANSWERS.items())
    assert set(predict.__all__) >= {"ANSWERS", "prepared", "check"}


# --- a choice among the personal models of all: what it is worth is told by test_personal.py


def test_features_are_the_light_and_the_texture_of_each_channel() -> None:
    x = np.zeros((1, 4, 4, 2), np.float32)
    x[0, :, 2:, 0] = 1.0  # half dark, half light; the other channel is even
    x[0, :, :, 1] = 0.5
    found = np.asarray(features(jnp.asarray(x)))[0].reshape(-1, 2)
    np.testing.assert_allclose(found[:, 0], [0.5, 0.5, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1 / 3], atol=1e-6)
    np.testing.assert_allclose(found[:, 1], [0.5, 0.0, *[0.5] * 9, 0.0], atol=1e-6)
    rows = jnp.asarray(line(3, 0).x)
    assert features(rows) is rows


def knowing(kernel: float) -> tuple[Learner, Tree]:
    """A learner that trains a selector of two sites, and a node whose selector tells them apart by the first number."""
    method = OBJECTIVES["selector"](SGD)
    assert method.learner is not None and method.bulletin is not None
    learner = method.learner(bulletin.placed(logistic(), method.bulletin, 2, (FEATURES,)))
    params = learner.init(KEY)
    kept, table = params["private"]["selector"], params["private"]["appearance"]
    layer = jax.tree.map(jnp.zeros_like, kept["model"]["layer"])
    layer["kernel"] = layer["kernel"].at[0].set(jnp.asarray([-kernel, kernel]))
    told = {"rows": jax.tree.map(jnp.zeros_like, table["rows"]), "version": jnp.ones(2, jnp.int32)}
    told["rows"]["square"] = told["rows"]["square"] + 1
    private = {"selector": {**kept, "model": {**kept["model"], "layer": layer}}, "appearance": told}
    return learner, {**params, "private": private}


def test_a_node_chooses_among_the_personal_models_that_are_there_and_else_takes_the_shared_one() -> None:
    learner, params = knowing(2.0)
    own = {i: {**params, "trained": jax.tree.map(lambda leaf, i=i: leaf + i + 1, params["trained"])} for i in range(2)}
    x = np.zeros((3, FEATURES), np.float32)
    x[:, 0] = [-2, 0.1, 2]  # surely of the first, of nobody, surely of the second
    both, mine = selector(learner, params, own), selector(learner, params, {1: own[1]})
    assert both.choose(x).tolist() == [0, SHARED, 1] and mine.choose(x).tolist() == [SHARED, SHARED, 1]
    assert selector(learner, params, own, gamma=0.5).choose(x).tolist() == [0, 1, 1] and not len(both.choose(x[:0]))
    run = jax.jit(learner.predict)
    for chosen, expected in ((both, (own[0], params, own[1])), (mine, (params, params, own[1]))):
        wanted = np.stack([np.asarray(run(model, jnp.asarray(x)))[i] for i, model in enumerate(expected)])
        np.testing.assert_allclose(chosen.predict(params, x), wanted, rtol=1e-6)


def test_a_site_of_few_rows_tells_nothing_of_them_and_is_not_told_from() -> None:
    learner, _ = knowing(1.0)
    batch = {"x": jnp.ones((4, FEATURES)), "y": jnp.zeros(4, jnp.int32)}
    for samples, says in ((9.0, False), (10.0, True)):
        site = {"node": jnp.asarray([1, 0], jnp.int32), "samples": jnp.float32(samples)}
        params = placed(learner.init(KEY), site)
        private = learner.grad(params, batch, KEY)[1]["private"]
        assert private["appearance"]["version"].tolist() == [int(says), 0]
        assert private["appearance"]["rows"]["mean"].any() == private["selector"]["sum"]["bias"].any() == says


def test_a_gate_between_two_models_is_no_mixture_of_them() -> None:
    wrap = OBJECTIVES["experts"](SGD).shaped
    assert wrap is not None
    learner = wrap(logistic(), (FEATURES,))
    check(["personal", "consensus"], learner, "classes")
    for name in ("interpolated", "routed"):
        with pytest.raises(ConfigError, match=rf"answers='{name}': mixes two models, and the objective experts has a"):
            check([name], learner, "classes")


def test_a_selector_must_be_trained() -> None:
    check(["selector"], knowing(1.0)[0], "classes")
    with pytest.raises(ConfigError, match="nothing trains a selector of sites; add the objective selector"):
        check(["selector"], logistic(), "classes")
    with pytest.raises(ConfigError, match="did you mean 'selector'"):
        check(["selectors"], logistic(), "classes")


def test_a_node_chooses_by_the_validation_rows_of_its_own_site() -> None:
    """Where sites are nodes; else each node gets an equal part of them."""

    def rows(count: int, first: float) -> Samples:
        x = np.arange(count, dtype=np.float32)[:, None] + first
        return Samples(x, np.arange(count, dtype=np.int32) % 2, np.arange(count, dtype=np.int32) // 4 % 3)

    dataset = Dataset(rows(12, 0), rows(12, 100), ("no", "yes"), ("a", "b", "c"), validation=rows(12, 200))
    table: dict[str, Any] = {
        "name": "t", "rounds": 1, "data": {"source": "digits", "partition": "by_site"}, "model": {"name": "logistic"},
        "training": {"optimizer": {"name": "sgd", "learning_rate": 0.1}}, "algorithm": {"name": "dsgd"},
        "topology": {"graph": "ring", "nodes": 3},
    }  # fmt: skip
    federation = build(parse(table, "t", Experiment), dataset)
    kept = assessment.own_of(federation, 1, {}).validation
    assert kept is not None and kept.x[:, 0].tolist() == [204, 205, 206, 207]
    table["data"] = {"source": "digits"}
    kept = assessment.own_of(build(parse(table, "t", Experiment), dataset), 1, {}).validation
    assert kept is not None and kept.x[:, 0].tolist() == [201, 204, 207, 210]
