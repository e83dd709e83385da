"""Several tasks on one trunk (FMTLJD): an encoder trained contrastively, experts with a gate for each task, weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federations import MECHANISMS, TABLE, federation_of
from flax import nnx
from nodes import Nodes, planned

from p2pfl.algorithms import ALGORITHMS
from p2pfl.data import Dataset, Samples
from p2pfl.data.builtin import digits
from p2pfl.errors import ConfigError
from p2pfl.learning import models
from p2pfl.learning.flax import from_flax
from p2pfl.learning.local_steps import placed
from p2pfl.methods.compose import chain, withhold
from p2pfl.methods.objectives import OBJECTIVES
from p2pfl.methods.objectives.contrast import contrastive
from p2pfl.methods.objectives.multitask import task_weights
from p2pfl.runs import simulated
from p2pfl.types import Learner, Tree

SGD = optax.sgd(0.1)
KEY = jax.random.key(0)
GROUPS = [[0, 3], [1, 2]]


def mmoe(**more: Any) -> Learner:
    make = models.mmoe((5,), 4, groups=GROUPS, hidden=(6,), experts=2, width=3, **more)
    return from_flax(make, jnp.zeros((1, 5)), 4)


# --- the encoder


def test_features_are_compared_by_their_angles() -> None:
    rng = np.random.default_rng(0)
    mine, near, far = rng.normal(size=(3, 6, 2, 4)).astype(np.float32)
    flat = [x.reshape(6, 8) / np.linalg.norm(x.reshape(6, 8), axis=1, keepdims=True) for x in (mine, near, far)]
    like, unlike = (np.exp((flat[0] * other).sum(axis=1) / 0.5) for other in flat[1:])
    expected = -np.log(like / (like + unlike)).mean()
    both = jax.jit(jax.value_and_grad(lambda x: contrastive(x, near, far, 0.5)))
    np.testing.assert_allclose(both(mine)[0], expected, rtol=1e-5)
    assert np.isfinite(both(np.zeros_like(mine))[1]).all()  # of rows of which the encoder says nothing


@pytest.mark.more
def test_a_model_is_pulled_to_what_was_mixed_and_off_what_it_was() -> None:
    """The first round is as without; then the features' gradient is that of C, from both models that are kept."""
    base = from_flax(models.mlp((5,), 4, hidden=(6,)), jnp.zeros((1, 5)), 4)
    method = OBJECTIVES["moon"](SGD, strength=[1.0, 2.0], temperature=0.5)
    assert method.learner is not None and method.wrap is not None
    learner = method.learner(base)
    algorithm = chain(withhold(ALGORITHMS["dsgd"](learner, SGD)), method.wrap)
    rng = np.random.default_rng(0)
    batches = {
        "x": jnp.asarray(rng.normal(size=(2, 8, 5)), jnp.float32),
        "y": jnp.asarray(rng.integers(0, 4, (2, 8)), jnp.int32),
    }
    site = {name: jnp.asarray(values[1]) for name, values in method.given.items()}
    state = algorithm.init(placed(learner.init(KEY), site), 1)
    local = jax.jit(lambda state: algorithm.local(state, batches, KEY, None)[0])
    first = local(state)
    plain = ALGORITHMS["dsgd"](base, SGD)
    alone = jax.jit(lambda state: plain.local(state, batches, KEY, None)[0])(plain.init(base.init(KEY), 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
                 algorithm.params(first)["trained"], plain.params(alone)["trained"])  # fmt: skip

    mixed = jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32),
                         algorithm.params(first)["trained"])  # fmt: skip
    begun = algorithm.replaced(first, {**algorithm.params(first), "trained": mixed})
    memory = algorithm.params(local(begun))["private"]["moon"]
    jax.tree.map(np.testing.assert_array_equal, memory["start"]["trained"], mixed)
    assert base.features is not None
    find, batch = base.features, jax.tree.map(lambda leaf: leaf[0], batches)
    before = algorithm.params(first)["private"]["moon"]["before"]
    params = {**algorithm.params(begun), "trained": mixed}
    near, far = (find({**base.init(KEY), **each}, batch["x"], None)[0] for each in (memory["start"], before))

    def whole(trained: Tree) -> Any:
        _, _, metrics = base.grad({"trained": trained, "carried": {}}, batch, KEY)
        mine = find({"trained": trained, "carried": {}}, batch["x"], KEY)[0]
        return metrics["loss"] + 2.0 * contrastive(mine, near, far, 0.5)

    kept = {**params["private"]["moon"], "start": memory["start"]}
    given = {**params, "private": {**params["private"], "moon": kept}}
    found, _, metrics = jax.jit(learner.grad)(given, batch, KEY)
    value, expected = jax.jit(jax.value_and_grad(whole))(mixed)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)

    def compared(model: Tree) -> float:
        return float(contrastive(find(model, batch["x"], None)[0], near, far, 0.5))

    without = jax.jit(lambda state: plain.local(state, batches, KEY, None)[0])(plain.replaced(alone, {
        **plain.params(alone), "trained": mixed}))  # fmt: skip
    assert compared(algorithm.params(local(begun))) < compared(plain.params(without))


# --- experts and gates


@pytest.mark.more
def test_a_gate_for_each_task_says_whom_of_the_experts_to_hear() -> None:
    module = models.mmoe((4, 4, 2), 4, groups=GROUPS, channels=(3,), hidden=(6,), experts=2, width=3)(nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4, 4, 2)), jnp.float32)
    h = np.asarray(module.features(x))  # type: ignore[attr-defined]
    assert h.shape == (5, 6)
    parts = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    heard = np.maximum(h @ parts["experts"]["kernel"] + parts["experts"]["bias"], 0).reshape(5, 2, 3)
    outputs = np.zeros((5, 4))
    for task, group in enumerate(GROUPS):
        own = parts["tasks"][task]
        share = np.exp(h @ own["gate"]["kernel"])
        share /= share.sum(axis=1, keepdims=True)
        mixture = (share[:, :, None] * heard).sum(axis=1)
        outputs[:, group] = mixture @ own["head"]["kernel"] + own["head"]["bias"]
    np.testing.assert_allclose(module(x), outputs, atol=1e-5)  # type: ignore[operator]


@pytest.mark.more
def test_gates_and_heads_are_mixed_within_a_task_and_experts_by_all() -> None:
    """A ring of 0 1 1 0: as of the columns of one head, in test_objectives.py."""
    of, learner = np.array([0, 1, 1, 0]), mmoe()
    method = OBJECTIVES["tasks"](SGD, of=of.tolist(), groups=GROUPS)
    assert method.wrap is not None
    algorithm = method.wrap(withhold(ALGORITHMS["dsgd"](learner, SGD)))
    nodes = Nodes(algorithm, planned(algorithm, "ring", 4), dtype=np.float32)
    rng = np.random.default_rng(0)
    like = jax.eval_shape(learner.init, KEY)
    drawn = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=(4, *leaf.shape)), jnp.float32), like)
    state = nodes.init({**drawn, "private": {"site": {"task": jnp.asarray(of, jnp.int32)}}})
    around = nodes.around()

    @jax.jit
    def round(state: Any) -> Any:
        state, payload = jax.vmap(algorithm.send)(state, around)
        return nodes.mix(state, nodes.inbox(payload, np.ones((4, 2), bool)), around)

    for _ in range(60):
        state = round(state)
    before, after = drawn["trained"], jax.vmap(algorithm.params)(state)["trained"]

    def agreed(before: Tree, after: Tree, who: np.ndarray) -> None:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(
            b[who], np.broadcast_to(a[who].mean(axis=0), b[who].shape), atol=1e-5), before, after)  # fmt: skip

    for part in ("encoder", "experts"):
        agreed(before[part], after[part], np.ones(4, bool))
    for task in (0, 1):
        agreed(before["tasks"][task], after["tasks"][task], of == task)
        jax.tree.map(lambda a, b, other=of != task: np.testing.assert_array_equal(a[other], b[other]),
                     before["tasks"][task], after["tasks"][task])  # fmt: skip


# --- weights


def test_a_task_that_is_slow_to_learn_counts_more_and_nobody_can_say_how_much() -> None:
    of = np.array([0, 1, 1])
    losses, known = np.array([[0.9, 1.0], [0.3, 1.0], [0.5, 1.0]], np.float32), np.ones(3, bool)
    weights = jax.jit(lambda losses, known: task_weights(losses, known, of, 2, 0.5))
    ratio = np.exp(np.array([0.9, 0.4]) / 0.5)
    np.testing.assert_allclose(weights(losses, known), 2 * ratio / ratio.sum(), rtol=1e-5)
    for unheard in (losses * np.float32([1, 0]), losses * 0):  # of no task two losses are known
        np.testing.assert_allclose(weights(unheard, known), [1, 1], rtol=1e-6)
    liar = weights(np.float32([[1e6, 1e-6], *losses[1:]]), known)
    assert np.exp(-4) < float(liar.min()) and float(liar.max()) < np.exp(4)
    np.testing.assert_allclose(weights(losses, ~known), [1, 1], rtol=1e-6)


# --- in a federation

TABLED: dict[str, Any] = {
    **TABLE, "rounds": 15, "data": {"source": f"{__name__}:uneven", "partition": "by_site"},
    "model": {"name": "mlp", "hidden": [8]}, "topology": {"graph": "complete", "nodes": 4}, "evaluation": {"every": 15},
    "training": {"optimizer": {"name": "sgd", "learning_rate": 0.15}, "batch_size": 16, "local_steps": 5},
}  # fmt: skip
EASY_AND_HARD = [[0, 1], [2, 3, 4, 5, 6, 7, 8, 9]]


def uneven() -> Dataset:
    """Digits at four sites: two tell two of them apart, which is easy, and two the other eight."""
    whole = digits()

    def part(samples: Samples) -> Samples:
        site = np.where(samples.y >= 2, 2, 0) + np.arange(len(samples.y)) % 2
        return Samples(samples.x, samples.y, site.astype(np.int32))

    return whole._replace(train=part(whole.train), test=part(whole.test), sites=tuple("abcd"), features=())


def regions() -> Dataset:
    """Two tasks at four sites, with rules that agree on one side of the first input alone."""
    rng = np.random.default_rng(0)
    rules = rng.normal(size=(2, 2, 10))
    rules[1, 0] = rules[0, 0]

    def part(rows: int) -> Samples:
        x, site = rng.normal(size=(4 * rows, 11)).astype(np.float32), np.repeat(np.arange(4, dtype=np.int32), rows)
        x[:, 0] = x[:, 0] / 2 + np.where(rng.uniform(size=4 * rows) < 0.5, -2, 2)
        task = site // 2
        right = (x[:, 1:] * rules[task, (x[:, 0] > 0).astype(int)]).sum(axis=1) > 0
        return Samples(x, (right + 2 * task).astype(np.int32), site)

    return Dataset(part(100), part(400), tuple("wxyz"), tuple("abcd"))


def by_task(groups: list[list[int]], temperature: float | None = None, **more: Any) -> np.ndarray:
    """[2] the accuracy of each task: nodes' models on test rows of their own, the mean over the nodes with the task."""
    method = {"name": "tasks", "of": [0, 0, 1, 1], "groups": groups}
    method |= {} if temperature is None else {"temperature": temperature}
    training = {**TABLED["training"], **more.pop("training", {}), "objective": [method]}
    made = federation_of({**TABLED, **more, "training": training})
    ends, test = simulated.simulate_federation(made).models, made.dataset.test
    assert test.site is not None

    @jax.jit
    def score(params: Tree) -> Any:
        return made.learner.evaluate(params, {"x": test.x, "y": test.y}, jnp.ones(len(test.y)))["score"]

    right = np.asarray(jax.vmap(score)(jax.tree.map(jnp.asarray, ends)))
    return np.array([right[node][test.site == node].mean() for node in range(4)]).reshape(2, 2).mean(axis=1)


@pytest.mark.more
def test_a_hard_task_is_learned_sooner_where_it_counts_more_and_an_easy_one_no_later() -> None:
    """One narrow trunk for two digits and for eight others; of both the trunk learns what the easy ones need first."""
    easy, hard = by_task(EASY_AND_HARD)
    now_easy, now_hard = by_task(EASY_AND_HARD, temperature=0.1)
    assert now_hard > hard + 0.04 and now_easy > easy - 0.02  # seen: .59 and .67, 1 and 1


@pytest.mark.soak
def test_experts_with_gates_are_no_worse_than_one_trunk_and_no_better_where_tried() -> None:
    """With as many units as the hidden layer of a plain network."""
    given: dict[str, Any] = {
        "data": {"source": f"{__name__}:regions", "partition": "by_site"}, "rounds": 60, "evaluation": {"every": 60},
        "training": {"optimizer": {"name": "sgd", "learning_rate": 0.3}, "local_steps": 8},
    }  # fmt: skip
    groups = [[0, 1], [2, 3]]
    one = by_task(groups, model={"name": "mlp", "hidden": [16]}, **given).mean()
    experts = {"name": "mmoe", "groups": groups, "hidden": [], "experts": 4, "width": 4}
    assert abs(by_task(groups, model=experts, **given).mean() - one) < 0.04  # seen: .918 and .938


# --- what can't be


@pytest.mark.parametrize(
    ("name", "given", "text"),
    [
        ("moon", {"strength": -1}, "strength=-1: must be >= 0"),
        ("moon", {"strength": [1, -1]}, "strength=-1: must be >= 0"),
        ("moon", {"temperature": 0}, "temperature=0: must be > 0"),
        ("tasks", {"of": [0], "groups": [[0]], "temperature": 0}, "temperature=0: must be > 0"),
    ],
)
def test_arguments_out_of_bounds(name: str, given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        OBJECTIVES[name](SGD, **given)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"groups": [[0, 1], [2]]},
            r"groups=\[\[0, 1\], \[2\]\]: must name each of the 4 classes, 0 to 3, in one task",
        ),
        ({"groups": [[0, 1, 2, 3], []]}, "give each task one or more"),
        ({"experts": 0}, "experts=0: must be > 0"),
        ({"hidden": (0,)}, "hidden=0: must be > 0"),
        ({"channels": (4,)}, r"model mmoe: needs images .*\. Leave channels out"),
    ],
)
def test_a_model_that_can_not_be(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        models.mmoe((5,), 4, **given)


def test_the_tasks_of_the_model_are_those_of_the_objective() -> None:
    table = MECHANISMS["more objectives"]
    other = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    with pytest.raises(ConfigError, match=r"model.groups=.*: training.objective\[8\].groups is .*; write the same"):
        federation_of({**table, "model": {**table["model"], "groups": other}})
    method = OBJECTIVES["tasks"](SGD, of=[0], groups=[[0, 1, 2, 3]])
    assert method.learner is not None
    with pytest.raises(ConfigError, match="groups has 1 tasks, and the model has parts of their own for 2"):
        method.learner(mmoe())
