"""Predictions instead of weights: liars do not spoil them, architectures may differ, and no model travels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federations import MECHANISMS, federation_of, right_of

from p2pfl import tree
from p2pfl.config import experiment
from p2pfl.config.experiment import Experiment
from p2pfl.data import Dataset, Samples, builtin
from p2pfl.errors import ConfigError
from p2pfl.federation.federation import build_own, identity, model_shape
from p2pfl.learning import models
from p2pfl.learning.flax import from_flax
from p2pfl.methods.objectives import medisecfed
from p2pfl.types import Neighborhood

NODES, LIARS = 8, [1, 4, 6]
TELLING = {"name": "medisecfed", "rows": 200, "strength": 2.0}
SGD = optax.sgd(0.1)
LIES: dict[str, dict[str, Any]] = {
    "nobody": {},
    "turned": {"by": "sign_flip", "scale": 10.0},
    "random": {"by": "random", "scale": 10.0},
}


def few() -> Dataset:
    """Digits, 400 of them to train with: 200 are set apart, and a node has 25."""
    whole = builtin.digits()
    return whole._replace(train=Samples(whole.train.x[:400], whole.train.y[:400]))


def table(lie: str, *objective: dict[str, Any], algorithm: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Digits at eight nodes that hear each other, three of which lie."""
    attack = [{"nodes": LIARS, **LIES[lie]}] if LIES[lie] else []
    return {
        "name": "t", "rounds": 40, "data": {"source": f"{__name__}:few"},
        "model": {"name": "mlp", "hidden": [16]}, "attack": attack, "algorithm": algorithm, "baselines": False,
        "training": {
            "optimizer": {"name": "sgd", "learning_rate": 0.2}, "batch_size": 16, "local_steps": 20,
            "objective": [*objective],
        },
        "topology": {"graph": "complete", "nodes": NODES}, "evaluation": {"every": 40}, "driver": {"kind": "simulate"},
        **more,
    }  # fmt: skip


OTHERS = [{"nodes": [0, 1, 2, 3], "name": "logistic"}]
"""Two architectures, liars of both among them."""
NEAREST = {"name": "dsgd", "wrap": [{"name": "monna", "f": 3}]}


def honest(lie: str, *objective: dict[str, Any], **more: Any) -> np.ndarray:
    """[5] accuracy of the honest on all test rows."""
    made = federation_of(table(lie, *objective, **more))
    return np.asarray(right_of(made)[1].mean(axis=1)[[node for node in range(NODES) if node not in LIARS]])


@pytest.mark.parametrize(
    "lie", [pytest.param("turned", marks=pytest.mark.more), pytest.param("random", marks=pytest.mark.soak)]
)
def test_three_liars_of_eight_spoil_weights_and_not_predictions(lie: str) -> None:
    """Weights of one architecture are mixed plainly; predictions of two, by the nearest five of eight."""
    weights = honest(lie, algorithm={"name": "dsgd"})
    clean, told = (honest(each, TELLING, algorithm=NEAREST, other_model=OTHERS) for each in ("nobody", lie))
    alone = honest("nobody", algorithm={"name": "local"}, other_model=OTHERS)
    assert weights.max() < 0.3  # seen: .18 and less; .90 without liars
    assert told.mean() > clean.mean() - 0.03
    assert told.mean() > alone.mean() + 0.01 and told.min() > alone.min() + 0.02  # .854 and .841; alone .828 and .802


# ---------------------------------------------------------------------------------------------------------- mechanics


def of_linear(rows: int = 6, **given: Any) -> Any:
    """(learner, public rows, the same told): softmax regression on four numbers."""
    learner = from_flax(models.logistic((4,), 3), np.zeros((1, 4), np.float32), classes=3)
    public = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    method = medisecfed(SGD, rows=rows, **given).shown(public)
    return learner, public, method.shaped(learner, (4,)), method


WHOLE = MECHANISMS["predictions"]
STEPS = {**WHOLE["training"], "dtype": "float32", "objective": WHOLE["training"]["objective"][1:]}
TOLD = {**WHOLE, "training": STEPS}
"""Three nodes of two architectures."""
BATCH = {"x": jnp.ones((2, 4)), "y": jnp.array([0, 2])}
KEY = jax.random.key(3)


@pytest.mark.more
def test_what_is_learned_from_others_is_the_gradient_of_its_loss() -> None:
    learner, public, told, _ = of_linear(strength=0.5, temperature=2.0, batch=4, bound=3.0)
    params = told.init(KEY)
    mixed = 4 * jax.random.normal(jax.random.key(1), (6, 3))
    before = params["private"]["medisecfed"]["model"]["trained"]

    def after(table: Any) -> Any:
        gradient, others, _ = told.grad({**params, "trained": {"predictions": table}}, BATCH, KEY)
        assert not gradient["predictions"].any()
        return others["private"]["medisecfed"]["model"]["trained"]

    plain = jax.tree.map(lambda x, g: x - 0.1 * g, before, learner.grad({**params, "trained": before}, BATCH, KEY)[0])
    for a, b in zip(jax.tree.leaves(after(jnp.zeros((6, 3)))), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)  # nobody has told anything

    def loss(trained: Any, rows: np.ndarray) -> Any:
        aim = jax.nn.softmax(jnp.clip(mixed[rows], -3, 3) / 2.0)
        own = jax.nn.softmax(learner.predict({"trained": trained, "carried": {}}, public[rows]) / 2.0)
        return 0.5 * 4.0 * (aim * (jnp.log(aim) - jnp.log(own))).sum(axis=1).mean()

    drawn = jax.random.randint(jax.random.fold_in(KEY, sum(b"medisecfed")), (4,), 0, 6, jnp.int32)
    wanted = jax.tree.map(lambda x, g: x - 0.1 * g, plain, jax.grad(loss)(before, np.asarray(drawn)))
    for a, b in zip(jax.tree.leaves(after(mixed)), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def test_a_message_is_the_table_of_predictions_and_nothing_else() -> None:
    made = federation_of(TOLD)
    algorithm = made.algorithm
    params = model_shape(made)
    sent = jax.eval_shape(
        lambda params: algorithm.send(algorithm.init(params, 2), Neighborhood(np.ones(2), np.ones(2)))[1], params
    )
    assert {name: leaf.shape for name, leaf in tree.named_leaves(sent).items()} == {"trained/predictions": (6, 10)}
    assert algorithm.travels == "predictions on 6 public rows"
    assert tree.public(params).keys() == {"trained", "carried"} and not params["carried"]  # what a joiner gets


@pytest.mark.more
def test_who_takes_no_step_passes_on_what_it_has() -> None:
    made = federation_of({**TOLD, "other_model": []})
    state = made.algorithm.init(made.learner.init(KEY), 2)
    batches = {"x": jnp.zeros((2, 4, 4, 4, 1)), "y": jnp.zeros((2, 4), jnp.int32)}
    still, moved = (made.algorithm.local(state, batches, KEY, jnp.int32(steps))[0] for steps in (0, 1))
    told = [made.algorithm.params(each)["trained"]["predictions"] for each in (still, moved)]
    assert not told[0].any() and told[1].any()
    np.testing.assert_allclose(told[1].sum(axis=1), 0, atol=1e-5)  # centred


@pytest.mark.more
def test_a_node_computes_with_its_own_architecture() -> None:
    made = federation_of(TOLD)
    assert made.sites["architecture"].tolist() == [0, 1, 0]
    params = made.learner.init(KEY)
    x, answers = jnp.asarray(made.dataset.test.x), []
    for node in (0, 1):
        site = {"architecture": jnp.int32(node)}
        given = {**params, "private": {**params["private"], "site": site}}
        answers.append(made.learner.predict(given, x))
        home = given["private"]["medisecfed"]["model"]
        own = {part: home[part][str(node)] for part in home}
        hidden, norm = ((4,), None), ((3,), "batch")
        alone = from_flax(models.mlp(x.shape[1:], 10, *(hidden, norm)[node]), x[:1], 10)
        np.testing.assert_allclose(answers[-1], alone.predict(own, x), rtol=1e-5, atol=1e-6)
    assert not np.allclose(answers[0], answers[1])


def public_rows(folder: Path, many: int = 20) -> Path:
    x = np.random.default_rng(0).integers(0, 16, (many, 64)).astype(np.float32)
    np.savez(folder / "public.npz", x=x)
    return folder / "public.npz"


def test_public_rows_of_a_file_are_read_as_the_data_were_and_are_the_same_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    names = []
    for folder in ("a", "b"):
        file = public_rows(tmp_path / folder)
        given = {"name": "medisecfed", "rows": 12, "public": str(file)}
        made = federation_of(table("nobody", given, algorithm={"name": "dsgd"}))
        names.append(identity(made))
        assert made.data.public is not None
        np.testing.assert_allclose(made.data.public, np.load(file)["x"][:12] / 16, rtol=1e-6)
        assert len(made.dataset.train.y) == 400  # none is set apart
    assert names[0] == names[1]


def test_training_rows_that_are_public_are_nobody_s() -> None:
    made = federation_of(table("nobody", TELLING, algorithm={"name": "dsgd"}))
    assert len(made.dataset.train.y) == sum(map(len, made.partition.train)) == 200
    assert made.data.public is not None and len(made.data.public) == 200
    known = {row.tobytes() for row in made.dataset.train.x}
    assert sum(row.tobytes() in known for row in made.data.public) < 3  # images that are there twice
    assert any("200 of 400 training rows are set apart" in note for note in made.notes)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"training": [TELLING, {"name": "augment"}]}, "must stand last"),
        ({"training": [{"name": "ditto", "strength": 0.1}, TELLING]}, "ditto does something with them"),
        ({"training": [{"name": "medisecfed", "rows": 1}]}, "rows=1"),
        ({"training": [{"name": "medisecfed", "rows": 2000}]}, "there are 400 training rows"),
        ({"training": [{"name": "medisecfed", "public": "/no/such.npz"}]}, "no such file"),
        ({"training": [{"name": "medisecfed", "temperature": 0}]}, "temperature=0"),
        ({"algorithm": {"name": "gradient_tracking"}}, "use dsgd"),
        ({"algorithm": {"name": "dsgd", "arguments": {"order": "cta"}}}, "use dsgd"),
        ({"algorithm": {"name": "dsgd", "share": ["**"]}}, "algorithm.share"),
        ({"evaluation": {"answers": ["interpolated"]}}, "evaluation.answers='interpolated'"),
        ({"privacy": {"clip": 1.0, "noise": 1.0, "delta": 0.01}}, "with [privacy] use"),
        ({"other_model": [{"nodes": [8], "name": "logistic"}]}, "there is no node 8"),
        ({"other_model": [{"nodes": [1, 1], "name": "logistic"}]}, "named twice"),
        ({"other_model": [{"nodes": [], "name": "logistic"}]}, "names nobody"),
        ({"other_model": [{"nodes": [1], "name": "mlp", "weights": "a.safetensors"}]}, "other_model[0].weights"),
        ({"other_model": [{"nodes": [1], "name": "unet"}]}, "model"),
        ({"other_model": [{"nodes": [1], "name": "logistic"}], "training": []}, "can't be mixed"),
        ({"data": {"source": "breast_cancer"}, "model": {"name": "nowhere"}}, "nowhere"),
    ],
)
def test_what_is_refused(more: dict[str, Any], text: str) -> None:
    given = table("nobody", TELLING, algorithm={"name": "dsgd"})
    if "training" in more:
        more = {**more, "training": {**given["training"], "objective": more["training"]}}
    with pytest.raises(ConfigError) as error:
        federation_of({**given, **more})
    assert text in str(error.value)


def test_a_node_with_rows_of_its_own_needs_a_file_of_public_ones(tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(size=(40, 64)).astype(np.float32)
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(40) % 10)
    given = table(
        "nobody", TELLING, algorithm={"name": "dsgd"}, data={"source": "npz", "path": str(tmp_path / "own.npz")}
    )
    wanted: Experiment = experiment.parse(given, "test.toml", Experiment)
    with pytest.raises(ConfigError, match="public ones must be the same at all sites"):
        build_own(wanted, 0, wanted.data)
