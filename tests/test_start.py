"""A first model from a file: names, axes, what does not fit, every node, and what the report says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner
from flax import linen

from p2pfl import tree
from p2pfl.cli import main
from p2pfl.config import experiment
from p2pfl.config.experiment import Experiment
from p2pfl.errors import ConfigError
from p2pfl.federation import federation, learning
from p2pfl.learning import models
from p2pfl.learning.flax import from_flax
from p2pfl.methods import sharing, starting

SIDE = 7
IMAGE = jnp.zeros((1, SIDE, SIDE, 3), jnp.float32)
RNG = np.random.default_rng(0)


def drawn(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def named(learner: Any) -> dict[str, np.ndarray]:
    """The first model by path, batch statistics included."""
    params = learner.init(jax.random.key(0))
    stats = {sharing.statistic(path): leaf for path, leaf in tree.named_leaves(params["carried"]).items()}
    return {name: np.asarray(leaf) for name, leaf in {**tree.named_leaves(params["trained"]), **stats}.items()}


# --- what PyTorch computes, written down in numpy as its manual has it


def conv2d(x: np.ndarray, weight: np.ndarray, stride: int, pad: int) -> np.ndarray:
    """x [B, in, H, W], weight [out, in, h, w]: cross-correlation, zero padding on all sides."""
    size = weight.shape[-1]
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    high, wide = ((side - size) // stride + 1 for side in x.shape[2:])
    out = np.zeros((len(x), len(weight), high, wide))
    for i in range(high):
        for j in range(wide):
            patch = x[:, :, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, :, i, j] = np.einsum("bchw,ochw->bo", patch, weight)
    return out


def batch_norm(x: np.ndarray, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    """In evaluation: by the running statistics, epsilon 1e-5."""
    mean, var, scale, bias = (
        state[f"{name}.{part}"].reshape(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def resnet(x: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    """torchvision's ResNet with two stages of one block, for images [B, 3, H, W], up to the pooling after the stem."""
    x = np.maximum(batch_norm(conv2d(x, state["conv1.weight"], 1, 1), state, "bn1"), 0)
    for stage, stride in ((1, 1), (2, 2)):
        at = f"layer{stage}.0"
        y = np.maximum(batch_norm(conv2d(x, state[f"{at}.conv1.weight"], stride, 1), state, f"{at}.bn1"), 0)
        y = batch_norm(conv2d(y, state[f"{at}.conv2.weight"], 1, 1), state, f"{at}.bn2")
        if f"{at}.downsample.0.weight" in state:
            x = batch_norm(conv2d(x, state[f"{at}.downsample.0.weight"], stride, 0), state, f"{at}.downsample.1")
        x = np.maximum(x + y, 0)
    return x.mean(axis=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def norm_state(name: str, width: int) -> dict[str, np.ndarray]:
    found = {f"{name}.{part}": drawn(width) for part in ("weight", "bias", "running_mean")}
    found[f"{name}.num_batches_tracked"] = np.asarray(7)
    return {**found, f"{name}.running_var": np.abs(drawn(width)) + 0.5}


def vision_state() -> dict[str, np.ndarray]:
    """A state_dict with the names and axes of torchvision's ResNet."""
    state = {"conv1.weight": drawn(4, 3, 3, 3), **norm_state("bn1", 4)}
    for stage, before, width in ((1, 4, 4), (2, 4, 6)):
        at = f"layer{stage}.0"
        state |= {f"{at}.conv1.weight": drawn(width, before, 3, 3), f"{at}.conv2.weight": drawn(width, width, 3, 3)}
        state |= {**norm_state(f"{at}.bn1", width), **norm_state(f"{at}.bn2", width)}
    state |= {"layer2.0.downsample.0.weight": drawn(6, 4, 1, 1), **norm_state("layer2.0.downsample.1", 6)}
    return {**state, "fc.weight": drawn(5, 6), "fc.bias": drawn(5)}


@pytest.mark.more
def test_a_resnet_of_torchvision_computes_the_same_here() -> None:
    """Convolutions [out, in, h, w], dense layers [out, in], scales and running statistics, against numpy."""
    state = vision_state()
    learner = from_flax(models.resnet((SIDE, SIDE, 3), 5, (4, 6), (1, 1), "batch"), IMAGE, 5)
    begun = starting.start(learner, state, "resnet.safetensors")
    assert not begun.drawn
    params, x = begun.learner.init(jax.random.key(0)), drawn(2, 3, SIDE, SIDE)
    found = jax.jit(begun.learner.predict)(params, jnp.asarray(np.moveaxis(x, 1, -1)))
    np.testing.assert_allclose(found, resnet(x, state), rtol=1e-4, atol=1e-4)


def test_a_kernel_fits_as_a_matrix_and_as_an_image() -> None:
    """The built-in Conv and Flax's have the same kernel in two shapes; names are PyTorch's or Flax's."""

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = linen.Conv(4, (3, 3), name="first")(x).mean(axis=(1, 2))
            return linen.Dense(5, name="last")(x)

    kernel, bias = drawn(3, 3, 3, 4), drawn(4)
    torch = {"first.weight": np.moveaxis(kernel, (3, 2), (0, 1)), "first.bias": bias}
    flax = {"first/kernel": kernel.reshape(27, 4), "first/bias": bias}
    head = {"last.weight": drawn(5, 4), "last.bias": drawn(5)}
    other = from_flax(Net(), IMAGE, 5)
    for given in ({**torch, **head}, {**flax, **head}):
        found = named(starting.start(other, given, "file").learner)
        assert np.array_equal(found["first/kernel"], kernel)
        assert np.array_equal(found["last/kernel"], head["last.weight"].T)


LEARNER = from_flax(models.mlp((4,), 3, hidden=(5,), norm="batch"), jnp.zeros((1, 4)), 3)
WHOLE = named(LEARNER)


@pytest.mark.parametrize(
    "change, rename, fresh, text",
    [
        ({"layers/0/kernel": None}, {}, (), "has no layers/0/kernel. Say by model.rename"),
        ({"layers/0/kernel": drawn(4, 6)}, {}, (), r"another shape of layers/0/kernel \[4, 6\] for"),
        ({"more": drawn(3)}, {}, (), "has what the model has not: more"),
        ({"layers/1/bias": np.full(3, np.nan, np.float32)}, {}, (), "is not finite in layers/1/bias"),
        ({"trained/layers/0/kernel/a": drawn(4, 1)}, {}, (), "Of a run with adapters, .* p2pfl export makes one model"),
        ({"layers.1.bias": drawn(3)}, {}, (), "are both layers/1/bias of the model"),
        ({}, {"backbone": "layers"}, (), "no name in file begins with 'backbone'"),
        ({}, {}, ("heads/**",), "fresh: 'heads/\\*\\*' matches no leaf"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_listed(change: dict[str, Any], rename: dict[str, str], fresh: Any, text: str) -> None:
    given = {name: leaf for name, leaf in {**WHOLE, **change}.items() if leaf is not None}
    with pytest.raises(ConfigError, match=text):
        starting.start(LEARNER, given, "file", rename, fresh)


def test_names_are_changed_left_out_and_drawn_anew() -> None:
    given = {f"net.{name.replace('/', '.')}": drawn(*leaf.shape) for name, leaf in WHOLE.items()}
    given["net.layers.1.kernel"] = drawn(5, 1000)
    given |= {"optimizer.step": np.asarray(3)}
    rename = {f"net.{name}": name for name in ("layers", "norms", "batch_stats")}
    rename |= {"net": "", "optimizer": ""}
    begun = starting.start(LEARNER, {**given, "net.other": drawn(2)}, "file", rename, ["layers/1/**"])
    assert begun.drawn == ("layers/1/bias", "layers/1/kernel")
    found = named(begun.learner)
    for name in WHOLE:
        assert np.array_equal(
            found[name], WHOLE[name] if name in begun.drawn else given[f"net.{name.replace('/', '.')}"]
        )


# --- in an experiment

TABLE: dict[str, Any] = {
    "name": "start", "rounds": 2, "data": {"source": "digits"},
    "model": {"name": "mlp", "hidden": [8], "norm": "batch"},
    "training": {"optimizer": {"name": "sgd", "learning_rate": 0.1}, "local_steps": 2},
    "topology": {"graph": "ring", "nodes": 3}, "algorithm": {"name": "dsgd"}, "driver": {"kind": "simulate"},
    "baselines": False, "evaluation": {"every": 2},
}  # fmt: skip


def written(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "experiment.toml"
    file.write_text(experiment.dump(experiment.parse({**TABLE, **changes}, "t", Experiment)))
    return file


def run(*arguments: Any) -> str:
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.more
def test_an_export_is_where_another_run_begins(tmp_path: Path) -> None:
    """A private head included; the digest of an experiment is that of the weights, wherever they lie."""
    first = written(tmp_path, algorithm={"name": "dsgd", "share": "private_head"})
    run("run", first, "--out", tmp_path / "first")
    run("export", tmp_path / "first", "--node", 1, "--to", "safetensors", "--out", tmp_path / "out")
    weights = tmp_path / "out" / "model.safetensors"
    exported = safetensors.numpy.load_file(weights)
    model = {**TABLE["model"], "weights": str(weights)}
    file = written(tmp_path / "second", model=model)
    made = federation.build(experiment.load(file))
    begun = named(made.learner)
    assert np.array_equal(begun["layers/0/kernel"], exported["trained/layers/0/kernel"])
    assert np.array_equal(begun["layers/1/kernel"], exported["private/share/leaves/trained/layers/1/kernel"])
    assert np.array_equal(begun["batch_stats/norms/0/var"], exported["carried/norms/0/var"])
    said = run("run", file, "--out", tmp_path / "run")
    assert "8 of 8 leaves begin as in model.safetensors" in " ".join(said.split())
    elsewhere = tmp_path / "copy.safetensors"
    elsewhere.write_bytes(weights.read_bytes())
    again = federation.build(experiment.load(file, [f'model.weights="{elsewhere}"']))
    assert federation.digest(again) == federation.digest(made)
    safetensors.numpy.save_file({**exported, "trained/layers/0/bias": drawn(8)}, elsewhere)
    other = federation.build(experiment.load(file, [f'model.weights="{elsewhere}"']))
    assert federation.digest(other) != federation.digest(made)
    # what has come of them is used, and exported, where they are no more
    weights.unlink()
    run("export", tmp_path / "run", "--to", "safetensors", "--out", tmp_path / "again")
    about = (tmp_path / "again" / "model.json").read_text()
    assert json.loads(about)["experiment"]["model"] == TABLE["model"] and str(tmp_path) not in about


def test_what_pytorch_flattens_otherwise_is_not_taken(tmp_path: Path) -> None:
    """A dense layer behind an image of several places: the right shape, in another order."""
    weights = tmp_path / "torch.safetensors"
    state = {"blocks.0.weight": drawn(4, 1, 3, 3), "blocks.0.bias": drawn(4), "head.weight": drawn(2, 64)}
    safetensors.numpy.save_file({**state, "head.bias": drawn(2)}, weights)
    given: dict[str, Any] = {"name": "cnn", "channels": [4], "weights": str(weights)}
    for fresh, text in (((), "draw it anew: model.fresh = \\['head/kernel'\\]"), (["head/**"], "")):
        wanted: Experiment = experiment.parse({**TABLE, "model": {**given, "fresh": [*fresh]}}, "t", Experiment)
        base = from_flax(models.cnn((8, 8, 1), 2, (4,)), jnp.zeros((1, 8, 8, 1), jnp.float32), 2)
        if text:
            with pytest.raises(ConfigError, match=text):
                learning.started(wanted, base, (8, 8, 1))
        else:
            assert learning.started(wanted, base, (8, 8, 1)).drawn == ("head/bias", "head/kernel")


@pytest.mark.parametrize(
    "model, text",
    [
        ({"weights": "gone.safetensors"}, "gone.safetensors"),
        ({"rename": {"a": "b"}}, "model.rename: is for the leaves of model.weights, which is not given"),
        ({"fresh": ["**"]}, "model.fresh: is for the leaves of model.weights"),
        ({"weights": "no.safetensors"}, "no.safetensors: can't be read as models"),
        ({"weights": "whole.safetensors", "fresh": ["**"]}, "all leaves are drawn anew; leave model.weights out"),
    ],
)
def test_what_a_person_gets_wrong(tmp_path: Path, model: dict[str, Any], text: str) -> None:
    (tmp_path / "no.safetensors").write_bytes(b"no weights at all")
    safetensors.numpy.save_file({"layers/0/bias": np.zeros(10)}, tmp_path / "whole.safetensors")
    file = written(tmp_path, model={"name": "logistic", **model})
    result = CliRunner().invoke(main, ["run", str(file), "--out", str(tmp_path / "run")])
    assert result.exit_code == 1 and text in " ".join(result.output.split())
    assert not (tmp_path / "run" / "summary.json").exists()
