"""Every kind of task through a whole run: learned, mixed, tested, assessed; the plain loop and the simulator alike."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

from p2pfl import tree
from p2pfl.config import experiment
from p2pfl.config.experiment import Experiment
from p2pfl.data import Dataset, Samples
from p2pfl.federation import federation
from p2pfl.node import records
from p2pfl.runs import assessment, simulated
from p2pfl.runs.summary import collect

ROWS = 60
IMAGES = ("segmentation", "reconstruction")
FUSION = {"name": "fusion", "channels": [4], "blocks": [1], "hidden": [4], "stem": "large"}
RESIDUAL = {"name": "unet", "channels": [4], "residual": True}


def data(kind: str) -> Dataset:
    """Rows that a model of a few parameters can learn."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(ROWS, 8, 8, 1) if kind in IMAGES else (ROWS, 5)).astype(np.float32)
    if kind == "classes":
        return pictured(rng)
    if kind == "segmentation":
        y: Any = (x[..., 0] > 0.3).astype(np.int32)
    elif kind == "reconstruction":
        y = np.kron(rng.random((ROWS, 2, 2, 1)), np.ones((1, 4, 4, 1))).astype(np.float32)
        x = y + 0.2 * x
    elif kind == "labels":
        y = np.stack([x[:, 0] > 0, x[:, 1] + x[:, 2] > 0.5, x[:, 3] < -1], axis=1).astype(np.int32)
    elif kind == "regression":
        y = np.stack([x[:, 0] - x[:, 1], x[:, 2]], axis=1).astype(np.float32)
    else:
        time = np.exp(-x[:, 0] + 0.1 * rng.normal(size=ROWS))
        y = np.stack([time, rng.random(ROWS) < 0.7], axis=1).astype(np.float32)
    classes = {"segmentation": ("back", "front"), "labels": ("a", "b", "c"), "regression": ("u", "v")}
    classes["reconstruction"] = ("grey",)
    train, test = (Samples(x[part], y[part]) for part in (slice(0, 40), slice(40, ROWS)))
    return Dataset(train, test, classes.get(kind, ("risk",)), kind=kind)


def pictured(rng: np.random.Generator) -> Dataset:
    """Three columns and a picture of 6 x 6, each of which tells a part of the class."""
    y = np.arange(ROWS, dtype=np.int32) % 2
    x = rng.normal(size=(ROWS, 3 + 36)).astype(np.float32)
    x[:, 0] += y
    x[:, 3:21] += y[:, None]
    train, test = (Samples(x[part], y[part]) for part in (slice(0, 40), slice(40, ROWS)))
    return Dataset(train, test, ("well", "ill"), features=("a", "b", "c"), picture=(6, 6, 1))


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> str:
    module: Any = types.ModuleType("kinds_of_data")
    module.load = data
    monkeypatch.setitem(sys.modules, "kinds_of_data", module)
    return "kinds_of_data:load"


@pytest.mark.parametrize(
    ("kind", "model", "key", "score", "metric"),
    [
        pytest.param("labels", {"name": "mlp", "hidden": [8]}, "accuracy", 0.7, "auc_mean", marks=pytest.mark.more),
        pytest.param("regression", {"name": "logistic"}, "explained", 0.5, "r2_mean", marks=pytest.mark.more),
        pytest.param("survival", {"name": "logistic"}, "concordance", 0.7, "c_index_own_mean", marks=pytest.mark.more),
        pytest.param(
            "segmentation", {"name": "unet", "channels": [4]}, "dice", 0.4, "dice_mean_mean", marks=pytest.mark.more
        ),
        pytest.param("classes", FUSION, "accuracy", 0.8, "auc_mean", marks=pytest.mark.soak),
        pytest.param("reconstruction", RESIDUAL, "psnr", 14, "psnr_own_mean", marks=pytest.mark.more),
    ],
)
def test_a_whole_run(
    tmp_path: Path, source: str, kind: str, model: dict[str, Any], key: str, score: float, metric: str
) -> None:
    table = {
        "name": "t", "rounds": 40, "data": {"source": source, "arguments": {"kind": kind}}, "model": model,
        "training": {
            "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}, "batch_size": 8, "local_steps": 2,
            "dtype": "float64",
        },
        "topology": {"graph": "ring", "nodes": 3}, "algorithm": {"name": "dsgd"},
        "driver": {"kind": "simulate"}, "evaluation": {"every": 40, "answers": ["fine_tuned"]}, "baselines": False,
    }  # fmt: skip
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wanted: Experiment = experiment.parse(table, "test.toml", Experiment)
        made = federation.build(wanted)
        simulated.loop_into(made, tmp_path, lambda status: None)
        found = collect(made, tmp_path)
        assert found.summary.score_mean > score
        last: list[Any] = []
        whole = simulated.simulate_federation(made, progress=lambda round, evaluated: last.extend(evaluated))
        figures = assessment.assess(made, found.whole, tmp_path).figures
    named = tree.named_leaves(whole.models)
    for node in made.graph:
        model_of = safetensors.numpy.load_file(tmp_path / "nodes" / str(node) / "model.safetensors")
        for name, leaf in model_of.items():
            np.testing.assert_allclose(named[name][node], leaf, atol=1e-8, err_msg=name)
    assert float(last[-1].score.mean()) == pytest.approx(found.summary.score_mean, abs=1e-6)
    assert found.summary.as_dict()[f"{key}_mean"] == found.summary.score_mean
    rounds, measured = (records.read(tmp_path / name)[-1] for name in ("rounds.jsonl", "metrics.jsonl"))
    assert rounds[f"{key}_mean"] == found.summary.score_mean
    assert min(measured[f"{key}_{name}"] for name in ("before_mixing", "after_mixing", "own")) > -1
    assert key == "accuracy" or not any("accuracy" in name for name in (*rounds, *measured))
    assert figures[metric] is not None and figures[metric] > score
    assert figures[f"fine_tuned_{metric}"] is not None
