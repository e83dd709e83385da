"""What is frozen, what is adapted, and what is computed in 16 bits: what travels, what moves, and what it is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from click.testing import CliRunner
from flax import linen, nnx

import p2pfl
from p2pfl import tree
from p2pfl.cli import main
from p2pfl.config import experiment
from p2pfl.config.experiment import Experiment
from p2pfl.errors import ConfigError
from p2pfl.federation import federation
from p2pfl.learning import models
from p2pfl.learning.flax import from_flax
from p2pfl.learning.local_steps import descend
from p2pfl.methods import adapters, freezing, sharing
from p2pfl.node import model_file
from p2pfl.runs import simulated
from p2pfl.types import Learner, Params

EXAMPLE = jnp.zeros((1, 4), jnp.float32)
DECAYING = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))


class Net(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.encoder = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, momentum=0.9, use_fast_variance=False, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.norm(self.encoder(x))))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = linen.Dense(6, name="encoder")(x)
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9, use_fast_variance=False, name="norm")(x)
        return linen.Dense(3, name="head")(linen.relu(x))


MODELS = {"nnx": lambda rngs: Net(rngs=rngs), "linen": LinenNet()}
STILL = sharing.matching(["encoder/**", "norm/**", "batch_stats/**"], None, "freeze")


def batches(steps: int = 3) -> dict[str, jax.Array]:
    rng = np.random.default_rng(1)
    return {
        "x": jnp.asarray(rng.normal(2, 3, size=(steps, 6, 4)), jnp.float32),
        "y": jnp.asarray(rng.integers(0, 3, size=(steps, 6)), jnp.int32),
    }


def trained(learner: Learner, optimizer: Any = DECAYING) -> tuple[Params, Params]:
    """A first model, and what three steps make of it."""
    params = learner.init(jax.random.key(0))
    done = descend(learner, optimizer, params, optimizer.init(params["trained"]), batches(), jax.random.key(1))
    return params, done.params


@pytest.mark.parametrize("kind", ["nnx", pytest.param("linen", marks=pytest.mark.more)])
def test_what_is_frozen_stays_and_the_rest_learns_as_behind_it(kind: str) -> None:
    """Weight decay, momentum and statistics do not move it; the head learns as from the encoder's fixed output."""
    learner = from_flax(MODELS[kind], EXAMPLE, 3, still=lambda path: STILL(sharing.statistic(path)))
    before, after = trained(freezing.freeze(learner, STILL))
    assert [*before["trained"]] == ["head"] and not jax.tree.leaves(before["carried"])
    jax.tree.map(np.testing.assert_array_equal, after["private"]["frozen"], before["private"]["frozen"])
    whole = learner.init(jax.random.key(0))

    def features(x: jax.Array) -> jax.Array:
        """In evaluation, and by hand: running statistics of a first model are 0 and 1."""
        encoder, norm = (whole["trained"][name] for name in ("encoder", "norm"))
        scale, bias = (norm[name].reshape(1, 1, -1) for name in ("scale", "bias"))
        x = x @ encoder["kernel"] + encoder["bias"].reshape(1, 1, -1)
        return nnx.relu(x / jnp.sqrt(jnp.float32(1 + 1e-5)) * scale + bias)

    alone = from_flax(lambda rngs: nnx.Linear(6, 3, rngs=rngs), jnp.zeros((1, 6), jnp.float32), 3)
    params = {**alone.init(jax.random.key(0)), "trained": whole["trained"]["head"]}
    data = {**batches(), "x": features(batches()["x"])}
    by_hand = descend(alone, DECAYING, params, DECAYING.init(params["trained"]), data, jax.random.key(1)).params
    for name, leaf in by_hand["trained"].items():
        np.testing.assert_allclose(after["trained"]["head"][name], leaf, rtol=1e-5, atol=1e-6)


@pytest.mark.more
def test_features_are_those_of_the_whole_model_and_carry_on_what_is_not_frozen() -> None:
    image = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 1)), jnp.float32)
    make = models.resnet((8, 8, 1), 3, (4,), (1,), "batch")
    frozen = sharing.matching(["encoder/stages/**", "batch_stats/encoder/stages/**"], None, "freeze")
    whole = from_flax(make, image[:1], 3, still=lambda path: frozen(sharing.statistic(path)))
    part, key = freezing.freeze(whole, frozen), jax.random.key(0)
    assert whole.features is not None and part.features is not None
    find = [jax.jit(each.features) for each in (whole, part)]
    params = [each.init(key) for each in (whole, part)]
    (expected, all_of_it), (found, carried) = (f(p, image, key) for f, p in zip(find, params, strict=True))
    np.testing.assert_array_equal(found, expected)
    stem = all_of_it["encoder"]["stem"]
    jax.tree.map(np.testing.assert_array_equal, carried, {"encoder": {"stem": stem}})


@pytest.mark.more
@pytest.mark.parametrize("kind", MODELS)
def test_statistics_that_are_not_frozen_go_on(kind: str) -> None:
    learner = from_flax(MODELS[kind], EXAMPLE, 3, still=lambda path: False)
    before, after = trained(learner)
    moved = jax.tree.map(lambda a, b: bool((a != b).all()), before["carried"], after["carried"])
    assert all(jax.tree.leaves(moved))


# --- adapters


def random_like(tree: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), tree)


@pytest.mark.more
def test_an_adapter_is_its_equation_and_moves_nothing_else() -> None:
    """W + (alpha / rank) A B of kernels of dense layers and convolutions, NNX and Linen; B begins at zero."""

    class Image(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return linen.Dense(3)(linen.Conv(8, (3, 3))(x).mean(axis=(1, 2)))

    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5, 2)), jnp.float32)
    for make, matched in ((Image(), ["Conv_*/kernel"]), (models.cnn((5, 5, 2), 3, (8,)), ["**/kernel", "!head/**"])):
        learner = from_flax(make, image[:1], 3)
        thin = adapters.lora(learner, rank=1, alpha=4, matched=matched)
        params, first = thin.init(jax.random.key(0)), learner.init(jax.random.key(0))
        assert set(name.rsplit("/")[-1] for name in tree.named_leaves(params["trained"])) == {"a", "b"}
        np.testing.assert_array_equal(thin.predict(params, image), learner.predict(first, image))
        moved = random_like(params["trained"], 1)
        params = {**params, "trained": moved}
        by_hand = dict(tree.named_leaves(first["trained"]))
        factors = tree.named_leaves(moved)
        for name in factors:
            if name.endswith("/a"):
                home = name.removesuffix("/a")
                product = 4 * factors[name] @ factors[f"{home}/b"]
                by_hand[home] = by_hand[home] + product.reshape(by_hand[home].shape)
        assert thin.plain is not None
        found = thin.plain(params)
        for name, leaf in tree.named_leaves(found["trained"]).items():
            np.testing.assert_allclose(leaf, by_hand[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(thin.predict(params, image), learner.predict({**first, **found}, image), rtol=1e-5)


@pytest.mark.more
@pytest.mark.parametrize("freeze_a", [False, True])
def test_the_gradient_of_an_adapter_is_that_of_its_factors(freeze_a: bool) -> None:
    learner = from_flax(models.mlp((4,), 3, hidden=(8,)), EXAMPLE, 3)
    thin = adapters.lora(learner, 1, 2.0, ["layers/0/kernel"], ["layers/1/**"], freeze_a)
    before, after = trained(thin)
    expected = {"layers/0/kernel/a", "layers/0/kernel/b", "layers/1/bias", "layers/1/kernel"}
    assert {*tree.named_leaves(before["trained"])} == expected - ({"layers/0/kernel/a"} if freeze_a else set())
    jax.tree.map(np.testing.assert_array_equal, after["private"], before["private"])
    batch = {name: leaf[0] for name, leaf in batches().items()}
    gradient = thin.grad(after, batch, jax.random.key(0))[0]

    def loss(trained: Any) -> jax.Array:
        return thin.evaluate({**after, "trained": trained}, batch, jnp.ones(6))["loss"].mean()

    for name, leaf in tree.named_leaves(jax.grad(loss)(after["trained"])).items():
        np.testing.assert_allclose(tree.named_leaves(gradient)[name], leaf, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "given, text",
    [
        ({"rank": 3}, "an adapter of layers/0/kernel has 36 numbers, and the kernel, 4 x 8, 32"),
        ({"rank": 1, "matched": ["head/**"]}, "lora.matching: 'head/\\*\\*' matches no leaf of the model"),
        ({"rank": 1, "train": ["head/**"]}, "lora.train: 'head/\\*\\*' matches no leaf"),
        ({"rank": 1, "train": ["**"]}, "lora.matching: '\\*\\*/kernel' matches no leaf"),
        ({"rank": 0}, "rank=0"),
        ({"rank": 1, "alpha": 0.0}, "alpha=0.0"),
    ],
)
def test_adapters_that_can_not_be(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        adapters.lora(from_flax(models.mlp((4,), 3, hidden=(8,)), EXAMPLE, 3), **given)


@pytest.mark.more
def test_mixing_with_a_frozen_a_is_mixing_the_models() -> None:
    """And with an A of its own at each node it is not: mean(A B) - mean(A) mean(B) = dA dB / 4, of two nodes."""
    learner = from_flax(models.mlp((4,), 3, hidden=(8,)), EXAMPLE, 3)
    for freeze_a in (True, False):
        thin = adapters.lora(learner, 1, None, ["layers/0/kernel"], freeze_a=freeze_a)
        assert thin.plain is not None
        params = thin.init(jax.random.key(0))
        two = [{**params, "trained": random_like(params["trained"], seed)} for seed in (0, 1)]
        mean = {**params, "trained": jax.tree.map(lambda a, b: (a + b) / 2, *(each["trained"] for each in two))}
        kernels = [np.asarray(thin.plain(each)["trained"]["layers"][0]["kernel"]) for each in (*two, mean)]
        apart = (kernels[0] + kernels[1]) / 2 - kernels[2]
        factors = [each["trained"]["layers"][0]["kernel"] for each in two]
        missing = 0 if freeze_a else (factors[0]["a"] - factors[1]["a"]) @ (factors[0]["b"] - factors[1]["b"]) / 4
        np.testing.assert_allclose(apart, missing, atol=1e-5)
        assert freeze_a or np.abs(apart).max() > 0.05


# --- bfloat16


@pytest.mark.more
@pytest.mark.parametrize("kind", MODELS)
def test_local_steps_in_bfloat16_have_gradients_near_and_parameters_in_float32(kind: str) -> None:
    wide, narrow = (from_flax(MODELS[kind], EXAMPLE, 3, compute=compute) for compute in (None, "bfloat16"))
    params, batch = wide.init(jax.random.key(0)), {name: leaf[0] for name, leaf in batches().items()}
    found, expected = (each.grad(params, batch, jax.random.key(0)) for each in (narrow, wide))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float32"}
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=0.05 * max(1.0, float(jnp.abs(b).max())))
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(expected[0]), strict=True))
    np.testing.assert_array_equal(narrow.predict(params, batch["x"]), wide.predict(params, batch["x"]))
    text = str(jax.make_jaxpr(narrow.grad)(params, batch, jax.random.key(0)))
    assert "bf16[6,6] = dot_general" in text.replace(":", "") or ":bf16[6,6] = dot_general" in text


# --- in an experiment

TABLE: dict[str, Any] = {
    "name": "frozen", "rounds": 4, "data": {"source": "digits"},
    "model": {"name": "mlp", "hidden": [16], "norm": "batch"},
    "training": {
        "optimizer": [
            {"name": "add_decayed_weights", "weight_decay": 0.1},
            {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9},
        ],
        "local_steps": 2,
        "freeze": ["layers/0/**", "norms/**", "batch_stats/**"],
    },
    "topology": {"graph": "ring", "nodes": 3}, "algorithm": {"name": "dsgd"}, "driver": {"kind": "simulate"},
    "baselines": False, "evaluation": {"every": 4},
}  # fmt: skip


def parsed(**changes: Any) -> Experiment:
    found: Experiment = experiment.parse({**TABLE, **changes}, "t", Experiment)
    return found


def training(**changes: Any) -> dict[str, Any]:
    kept = {name: value for name, value in TABLE["training"].items() if name != "freeze"}
    return {**kept, **changes}


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"training": training(freeze=["encoder/**"])}, "training.freeze: 'encoder/\\*\\*' matches no leaf"),
        ({"training": training(freeze=["**"])}, "training.freeze: leaves nothing to train"),
        ({"training": training(freeze=["norms/**"], lora={"rank": 1})}, "leave freeze out"),
        ({"training": training(lora={"rank": 9})}, "training.lora.rank=9: an adapter of layers/1/kernel has 234"),
        ({"training": TABLE["training"], "algorithm": {"name": "dsgd", "share": ["layers/0/**"]}}, "matches no leaf"),
    ],
)  # fmt: skip
def test_what_a_person_gets_wrong(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        federation.build(parsed(**changes))


DRIVERS = [["--driver", "simulate"], ["--driver", "simulate", "--set", "driver.loop=true"], ["--driver", "virtual"]]


def ran(file: Path, out: Path, *options: str) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["run", str(file), "--out", str(out), "--json", *options])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


@pytest.mark.more
def test_every_driver_freezes_and_adapts_alike(tmp_path: Path) -> None:
    """To the bit where drivers are; fewer bytes; an export that needs neither, and is where a next run begins."""
    file, summaries = tmp_path / "experiment.toml", {}
    lora = {"rank": 2, "alpha": 4, "matching": ["layers/0/kernel"], "train": ["layers/1/**"]}
    for name, changes in {
        "whole": {"training": training()},
        "freeze": {},
        "lora": {"training": training(lora=lora)},
    }.items():
        file.write_text(experiment.dump(parsed(**changes)))
        drivers = [*enumerate(DRIVERS)][0 if name == "lora" else 2 :]
        summaries[name] = [ran(file, tmp_path / f"{name}{i}", *options) for i, options in drivers]
    sizes = {name: each[-1]["parameters"] for name, each in summaries.items()}
    assert sizes == {"whole": 64 * 16 + 16 * 3 + 32 + 16 * 10 + 10, "freeze": 170, "lora": 170 + 2 * (64 + 16)}
    sent = {name: each[-1]["bytes_sent_per_node_round"] for name, each in summaries.items()}
    for name in ("freeze", "lora"):
        assert sent["whole"] - sent[name] == pytest.approx(2 * 4 * (sizes["whole"] - sizes[name]), rel=0.1)
    at_once, looped, virtual = summaries["lora"]
    assert looped["digests"] == virtual["digests"]
    assert at_once["accuracy_mean"] == pytest.approx(looped["accuracy_mean"], abs=0.01)
    nodes = [
        safetensors.numpy.load_file(tmp_path / "freeze2" / "nodes" / str(i) / "model.safetensors") for i in range(3)
    ]
    first = tree.named_leaves(federation.build(parsed()).learner.init(jax.random.key(0)))
    frozen = [name for name in first if name.startswith("private/frozen/")]
    assert len(frozen) == 6 and all(np.array_equal(node[name], first[name]) for node in nodes for name in frozen)
    for name in ("freeze2", "lora0"):
        out = tmp_path / f"export-{name}"
        found = CliRunner().invoke(main, ["export", str(tmp_path / name), "--to", "safetensors", "--out", str(out)])
        assert found.exit_code == 0, found.output
        leaves = safetensors.numpy.load_file(out / "model.safetensors")
        assert {*leaves} == {f"trained/{part}/{i}/{leaf}" for part, i, leaf in (
            ("layers", 0, "kernel"), ("layers", 0, "bias"), ("layers", 1, "kernel"), ("layers", 1, "bias"),
            ("norms", 0, "scale"), ("norms", 0, "bias"))} | {"carried/norms/0/mean", "carried/norms/0/var"}  # fmt: skip
        x = np.asarray(p2pfl.data.digits().test.x[:7])
        np.testing.assert_allclose(
            p2pfl.load_model(tmp_path / name).function()(x), p2pfl.load_model(out).function()(x), atol=1e-5
        )
        begun = federation.build(
            parsed(model={**TABLE["model"], "weights": str(out / "model.safetensors")}, training=training())
        )
        first_model = begun.learner.init(jax.random.key(0))
        assert np.array_equal(first_model["trained"]["layers"][0]["kernel"], leaves["trained/layers/0/kernel"])


# --- what it is worth


def turned(dataset: p2pfl.Dataset) -> p2pfl.Dataset:
    """Images of other sites: mirrored at the diagonal."""

    def part(rows: p2pfl.Samples) -> p2pfl.Samples:
        return rows._replace(x=rows.x.reshape(-1, 8, 8).transpose(0, 2, 1).reshape(-1, 64))

    return dataset._replace(train=part(dataset.train), test=part(dataset.test))


@pytest.mark.more
@pytest.mark.usefixtures("optax_promotes", "optimised")
def test_fine_tuning_by_adapters_is_as_good_at_a_fraction_of_the_bytes(tmp_path: Path) -> None:
    """A model of upright digits is fine-tuned where digits are turned: whole, by adapters, by its head alone."""
    adam = {"optimizer": {"name": "adam", "learning_rate": 0.01}, "batch_size": 16, "local_steps": 10}
    given: dict[str, Any] = {
        "model": {"name": "mlp", "hidden": [192, 192]}, "training": adam, "rounds": 12,
        "data": {"source": "digits", "partition": "dirichlet", "alpha": 1.0},
        "topology": {"graph": "ring", "nodes": 4}, "evaluation": {"every": 100},
    }  # fmt: skip
    slowly = {**adam, "optimizer": {"name": "adam", "learning_rate": 0.003}}
    upright = federation.build(parsed(**{**given, "training": slowly}))
    weights, before = tmp_path / "upright.safetensors", simulated.simulate_federation(upright)
    model_file.write(weights, jax.tree.map(lambda leaf: leaf.mean(axis=0), before.models))
    other, scores, sizes = turned(p2pfl.data.digits()), {}, {}
    given |= {"model": {**given["model"], "weights": str(weights)}, "rounds": 15}
    lora = {"rank": 4, "alpha": 8, "train": ["layers/2/**"]}
    for name, more in {
        "full": {}, "lora": {"lora": lora}, "ffa": {"lora": {**lora, "freeze_a": True}},
        "head": {"freeze": ["**", "!layers/2/**"]},
    }.items():  # fmt: skip
        made = federation.build(parsed(**{**given, "training": {**adam, **more}}), other)
        last: list[Any] = []
        simulated.simulate_federation(made, progress=lambda round, found, last=last: last.extend(found))
        scores[name] = float(last[-1].score.mean())
        sizes[name] = tree.size(tree.mixed(federation.model_shape(made)))
    assert sizes["lora"] < 0.09 * sizes["full"] and sizes["ffa"] < 0.07 * sizes["full"]
    assert scores["lora"] > scores["full"] - 0.02
    assert scores["head"] + 0.04 < scores["ffa"] < scores["lora"], scores
