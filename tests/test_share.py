"""What is shared and what is private: patterns, presets, training, what travels, and every driver alike."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from p2pfl import tree
from p2pfl.algorithms import ALGORITHMS
from p2pfl.config import experiment
from p2pfl.config.experiment import Experiment
from p2pfl.errors import ConfigError
from p2pfl.federation import federation as build
from p2pfl.learning import models
from p2pfl.learning.flax import from_flax
from p2pfl.learning.local_steps import descend
from p2pfl.methods import compose
from p2pfl.methods import sharing as share
from p2pfl.runs import simulated
from p2pfl.runs.summary import collect
from p2pfl.types import Inbox, Neighborhood

EXAMPLE = jnp.zeros((1, 4))
SGD = optax.sgd(0.1)


class Parts(nnx.Module):
    """An encoder, a normalisation and a head."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.encoder = nnx.List([nnx.Linear(4, 3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)])
        self.norm = nnx.BatchNorm(3, momentum=0.9, use_fast_variance=False, rngs=rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.encoder:
            x = layer(x)
        return self.head(nnx.relu(self.norm(x)))


class LinenParts(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = linen.Dense(3, name="encoder")(x)
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        return linen.Dense(2, name="head")(linen.relu(x))


NNX, LINEN = (from_flax(model, EXAMPLE, 2) for model in (lambda rngs: Parts(rngs=rngs), LinenParts()))
NORM = {"norm/scale", "norm/bias"}
STATS = {"batch_stats/norm/mean", "batch_stats/norm/var"}
ENCODER = {f"encoder/{i}/{leaf}" for i in (0, 1) for leaf in ("kernel", "bias")}
HEAD = {"head/kernel", "head/bias"}
EVERYTHING = NORM | STATS | ENCODER | HEAD


def shares(given: Any, learner: Any = NNX) -> set[str]:
    found = share.predicate(given, learner)
    return {path for path in share.leaves(jax.eval_shape(learner.init, jax.random.key(0))) if found(path)}


@pytest.mark.parametrize(
    "given, expected",
    [
        (["**"], EVERYTHING),
        (["encoder/**"], ENCODER),
        (["encoder"], None),
        (["encoder/*"], None),
        (["encoder/*/kernel"], {"encoder/0/kernel", "encoder/1/kernel"}),
        (["**/kernel"], {"encoder/0/kernel", "encoder/1/kernel", "head/kernel"}),
        (["encoder/?/b*"], {"encoder/0/bias", "encoder/1/bias"}),
        (["!head/**"], EVERYTHING - HEAD),
        (["**", "!**/batch_stats/**"], EVERYTHING - STATS),
        (["**", "!encoder/**", "encoder/0/**"], EVERYTHING - {"encoder/1/kernel", "encoder/1/bias"}),
        (lambda path: path.startswith("head"), HEAD),
        ("silobn", EVERYTHING - STATS),
        ("fedbn", EVERYTHING - STATS - NORM),
        ("split", ENCODER),
        ("private_head", EVERYTHING - HEAD),
    ],
)
def test_patterns(given: Any, expected: set[str] | None) -> None:
    if expected is None:
        with pytest.raises(ConfigError, match="matches no leaf of the model; its leaves are encoder/0/bias, "):
            shares(given)
    else:
        assert shares(given) == expected


def test_linen_names_its_statistics_alike() -> None:
    assert shares("silobn", LINEN) == {"encoder/kernel", "encoder/bias"} | HEAD | NORM
    assert shares("fedbn", LINEN) == {"encoder/kernel", "encoder/bias"} | HEAD
    assert shares(["batch_stats/**"], LINEN) == STATS


@pytest.mark.parametrize(
    "given, model, text",
    [
        ("fedbm", NNX, "did you mean 'fedbn'"),
        ("silobn", from_flax(models.mlp((4,), 2), EXAMPLE, 2), "the model has no batch statistics"),
        (
            "split",
            from_flax(models.mlp((4,), 2), EXAMPLE, 2),
            "shares the part called encoder, and the model has layers",
        ),
        ("private_head", from_flax(models.logistic((4,), 2), EXAMPLE, 2), "finds no part called head"),
    ],
)
def test_presets_that_do_not_fit(given: str, model: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        share.predicate(given, model)


def test_nothing_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing with a gradient to share"):
        share.keep(NNX, SGD, share.predicate(["batch_stats/**"], NNX))


def batches(seed: int = 0, steps: int = 5) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(steps, 6, 4)).astype(np.float32)
    return {"x": jnp.asarray(x), "y": jnp.asarray(rng.integers(0, 2, (steps, 6)), jnp.int32)}


@pytest.mark.parametrize(
    "learner, given",
    [
        (LINEN, "silobn"),
        *(pytest.param(NNX, given, marks=pytest.mark.more) for given in ("fedbn", "private_head", "silobn", "split")),
        *(pytest.param(LINEN, given, marks=pytest.mark.more) for given in ("fedbn", "private_head", "split")),
    ],
    ids=lambda it: it if isinstance(it, str) else "nnx" if it is NNX else "linen",
)
def test_private_leaves_train_as_if_they_were_shared(learner: Any, given: str) -> None:
    """Alone, a node does not notice what is shared: momentum works leaf by leaf."""
    momentum, key = optax.sgd(0.1, momentum=0.9), jax.random.key(3)
    kept = share.keep(learner, momentum, share.predicate(given, learner))
    ends = []
    for it in (learner, kept):
        params = it.init(jax.random.key(1))
        ends.append(descend(it, momentum, params, momentum.init(params["trained"]), batches(), key))
    whole, parted = ends[0].params, ends[1].params
    assert ends[0].metrics["loss"] == pytest.approx(float(ends[1].metrics["loss"]), rel=1e-6)
    data = {name: leaf[0] for name, leaf in batches(9).items()}
    mask = jnp.ones(6)
    for name, value in learner.evaluate(whole, data, mask).items():
        np.testing.assert_allclose(kept.evaluate(parted, data, mask)[name], value, rtol=1e-5)
    np.testing.assert_allclose(kept.predict(parted, data["x"]), learner.predict(whole, data["x"]), rtol=1e-5)


TRIED = ("gradient_tracking", "exact_diffusion", "gossip_learning", "outer", "local")


@pytest.mark.parametrize(
    "name",
    [
        *TRIED,
        *(pytest.param(name, marks=pytest.mark.more) for name in ALGORITHMS if name not in (*TRIED, "push_sum")),
    ],
)
def test_what_is_private_neither_travels_nor_is_mixed(name: str) -> None:
    """Half of the exchanged differences, whatever they are, must not move a private leaf."""
    kept = share.keep(NNX, SGD, share.predicate("fedbn", NNX))
    algorithm = compose.withhold(ALGORITHMS[name](kept, SGD))
    params = kept.init(jax.random.key(0))
    state = algorithm.init(params, 2)
    around = Neighborhood(jnp.full(2, 0.25), jnp.full(2, 0.25))
    state, _ = algorithm.local(state, batches(), jax.random.key(0), None)
    state, payload = algorithm.send(state, around)
    names = "/".join(tree.named_leaves(payload))
    assert "private" not in names and "norm" not in names
    sent = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (2, *leaf.shape)), payload)
    inbox = Inbox(sent, jax.tree.map(lambda leaf: leaf + 1, sent), jnp.ones(2, bool), jnp.zeros(2, jnp.int32))
    before, after = algorithm.params(state), algorithm.params(algorithm.mix(state, inbox, around))
    jax.tree.map(np.testing.assert_array_equal, after["private"], before["private"])
    moved = not np.allclose(after["trained"]["head"]["kernel"], before["trained"]["head"]["kernel"])
    assert moved == (name != "local")


def test_who_adopts_a_model_keeps_what_is_private() -> None:
    kept = share.keep(NNX, SGD, share.predicate("private_head", NNX))
    for name in ALGORITHMS:
        algorithm = compose.withhold(ALGORITHMS[name](kept, SGD))
        mine = algorithm.init(kept.init(jax.random.key(0)), 2)
        theirs = tree.public(kept.init(jax.random.key(1)))
        got = algorithm.params(algorithm.adopt(mine, theirs))
        jax.tree.map(np.testing.assert_array_equal, got["private"], algorithm.params(mine)["private"])
        jax.tree.map(np.testing.assert_array_equal, got["trained"], theirs["trained"])


# --- in every driver

WHOLE = {
    "name": "t", "rounds": 8, "data": {"source": "digits", "partition": "dirichlet", "alpha": 0.5},
    "model": {"name": "mlp", "hidden": [8], "norm": "batch"},
    "training": {
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}, "batch_size": 8,
        "local_steps": 2, "dtype": "float64",
    },
    "topology": {"graph": "ring", "nodes": 5}, "algorithm": {"name": "dsgd", "share": "fedbn"},
    "driver": {"kind": "simulate", "loop": True}, "evaluation": {"every": 8}, "baselines": False,
}  # fmt: skip


def federation(**changes: Any) -> build.Federation:
    wanted: Experiment = experiment.parse({**WHOLE, **changes}, "test.toml", Experiment)
    return build.build(wanted)


def test_consensus_is_about_what_is_shared(tmp_path: Path) -> None:
    """A complete graph of plain averages agrees to rounding on what it shares, and on nothing else."""
    changes = {"topology": {"graph": "complete", "nodes": 3}, "model": {"name": "mlp", "hidden": [8]}}
    changes["training"] = {**WHOLE["training"], "dtype": "float32"}
    made = federation(**changes, algorithm={"name": "dsgd", "share": "private_head"}, driver={"kind": "simulate"})
    found = simulated.into(made, tmp_path, lambda status: None)
    assert found.summary.consensus_distance < 1e-9
    heads = [model["private"]["share"]["leaves"]["trained"]["layers"][1]["kernel"] for model in found.whole.values()]
    assert np.abs(heads[0] - heads[1]).max() > 1e-3


@pytest.mark.more
def test_a_private_head_serves_opposite_labels() -> None:
    """Two halves of the nodes name the two classes the other way round: one model for all can't be right."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4)).astype(np.float32)
    y = (x.sum(axis=1) > 0).astype(np.int32)
    flipped = np.arange(600) % 4 >= 2
    own = {}
    for given in (None, "private_head"):
        table = {**WHOLE, "rounds": 30, "algorithm": {"name": "dsgd", **({"share": given} if given else {})}}
        table["training"] = {**WHOLE["training"], "dtype": "float32"}
        wanted = experiment.parse({**table, "model": {"name": "mlp", "hidden": [8]}}, "t", Experiment)
        wanted = dataclasses.replace(wanted, topology=experiment.TopologyTable(graph="complete", nodes=4))
        made = build.build(wanted)
        data = made.dataset._replace(
            train=made.dataset.train._replace(x=x, y=np.where(flipped, 1 - y, y)),
            test=made.dataset.test._replace(x=x, y=np.where(flipped, 1 - y, y)),
            classes=("a", "b"),
        )
        rows = tuple(np.flatnonzero(np.arange(600) % 4 == node) for node in range(4))
        base = from_flax(models.mlp((4,), 2, hidden=(8,)), jnp.zeros((1, 4)), 2)
        learner = share.keep(base, optax.sgd(0.1, momentum=0.9), share.predicate(given, base)) if given else base
        made = made._replace(
            data=made.data._replace(dataset=data, partition=made.partition._replace(train=rows, test=rows)),
            learning=made.learning._replace(learner=learner, algorithm=made.learning.make(learner)),
        )
        last: list[Any] = []
        simulated.simulate_federation(made, progress=lambda round, found, last=last: last.extend(found))
        own[given] = float(last[-1].score_own.mean())
    assert own["private_head"] > 0.95 and own[None] < 0.6


@pytest.mark.more
def test_live_nodes_share_alike_and_say_nothing_else(tmp_path: Path) -> None:
    """Live equals the loop to the bit, and no message is larger than what is shared."""
    from click.testing import CliRunner

    from p2pfl.cli import main

    table = {**WHOLE, "training": {**WHOLE["training"], "dtype": "float32"}, "driver": {"kind": "live"}}
    timing = {"start_timeout": 60.0, "silence": 60.0, "deadline_min": 61.0, "deadline_max": 61.0}
    table |= {"network": {"timing": timing}, "topology": {"graph": "ring", "nodes": 3}}
    table |= {"model": {"name": "mlp", "hidden": [8]}, "algorithm": {"name": "dsgd", "share": "private_head"}}
    file = tmp_path / "experiment.toml"
    file.write_text(experiment.dump(experiment.parse(table, "t", Experiment)))
    summaries = []
    for options in ([], ["--driver", "simulate", "--set", "driver.loop=true"]):
        out = tmp_path / f"run{len(summaries)}"
        result = CliRunner().invoke(main, ["run", str(file), "--out", str(out), "--json", *options])
        assert result.exit_code == 0, result.output
        summaries.append(json.loads((out / "summary.json").read_text()))
    assert summaries[0]["digests"] == summaries[1]["digests"]
    assert summaries[0]["accuracy_own_mean"] == summaries[1]["accuracy_own_mean"]
    found = collect(build.build(experiment.load(file)), tmp_path / "run0")
    assert set(found.models[0]) == {
        name for name in tree.named_leaves(found.whole[0]) if not name.startswith("private/")
    }
    assert found.whole[0]["private"]["share"]
    shared = summaries[0]["parameters"] * 4
    # two neighbours, and a few hundred bytes of headers beside each model
    assert summaries[0]["bytes_sent_per_node_round"] < 2 * (shared + 1500)
