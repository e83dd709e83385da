"""Explanations: the axioms and closed forms of each method, and what they find in a model that knows one thing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

from p2pfl.cli import main
from p2pfl.errors import ConfigError, Exit
from p2pfl.learning import attribution, models
from p2pfl.learning.flax import from_flax
from p2pfl.types import Array


def network() -> tuple[attribution.Score, np.ndarray]:
    """A convolutional network with ReLU, and its log odds of class 1 of images."""
    x = np.random.default_rng(0).normal(size=(4, 12, 12, 1)).astype(np.float32)
    learner = from_flax(models.cnn((12, 12, 1), 2, (4, 8)), x[:1], 2)
    params = learner.init(jax.random.key(1))

    def score(rows: Array) -> Array:
        outputs = learner.predict(params, rows)
        return outputs[:, 1] - outputs[:, 0]

    return score, x


def test_integrated_gradients_add_up_to_the_change_of_the_score() -> None:
    score, x = network()
    found = attribution.integrated_gradients(score, x, np.zeros((12, 12, 1)))
    change = np.asarray(score(jnp.asarray(x)) - score(jnp.zeros_like(x)))
    np.testing.assert_allclose(found.change, change, atol=1e-5)
    total = found.values.sum(axis=(1, 2, 3))
    assert (np.abs(total - change) <= 1e-3 * np.maximum(np.abs(change), 1)).all() and (found.off < 1e-3).all()


def test_integrated_gradients_of_a_product_share_it_out_alike() -> None:
    """Of x y from (0, 0) each gets half; of a linear score each its coefficient times its value."""
    x = np.array([[2.0, 3.0, 5.0]], np.float32)
    found = attribution.integrated_gradients(lambda x: x[:, 0] * x[:, 1] + 4 * x[:, 2], x, np.zeros(3))
    np.testing.assert_allclose(found.values, [[3.0, 3.0, 20.0]], rtol=1e-5)
    moved = attribution.integrated_gradients(lambda x: 4 * x[:, 2], x, np.array([0.0, 0.0, 4.0]))
    np.testing.assert_allclose(moved.values, [[0.0, 0.0, 4.0]], rtol=1e-5)


def test_a_score_that_no_number_of_steps_integrates_says_by_how_much() -> None:
    """A step has no gradient anywhere, and a change all the same."""
    found = attribution.integrated_gradients(lambda x: (x[:, 0] > 0.5).astype(x.dtype), np.ones((1, 1), np.float32),
                                             np.zeros(1), most=64)  # fmt: skip
    assert found.steps == 64 and found.off.tolist() == [1.0] and found.values.tolist() == [[0.0]]
    with pytest.raises(ConfigError, match="most=8"):
        attribution.integrated_gradients(lambda x: x[:, 0], np.ones((1, 1), np.float32), np.zeros(1), most=8)


def test_occlusion_finds_where_the_score_looks_and_covers_every_pixel() -> None:
    x = np.zeros((1, 7, 7, 1), np.float32)
    x[0, 4:6, 1:3] = 1.0

    def score(rows: Array) -> Array:
        return rows[:, 4:6, 1:3].sum(axis=(1, 2, 3))

    found = attribution.occlusion(score, x, np.zeros(()), size=2, stride=2)[0]
    assert found.shape == (7, 7) and np.isfinite(found).all()
    assert found[4:6, 1:3].min() > found[0:3].max() == 0.0
    exact = attribution.occlusion(score, x, np.zeros(()), size=1, stride=1)[0]
    np.testing.assert_array_equal(exact, x[0, :, :, 0])
    whole = attribution.occlusion(score, x, np.zeros(()), size=9, stride=1)[0]
    np.testing.assert_array_equal(whole, np.full((7, 7), 4.0))


def test_grad_cam_is_its_formula() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype(np.float32)
    weight = np.array([1.0, -2.0, 0.5, 0.0], np.float32)

    def of(x: Array) -> tuple[Array, attribution.Score]:
        return x, lambda a: (a * weight.reshape(1, 1, 1, 4)).sum(axis=(1, 2, 3))

    found = attribution.grad_cam(of, maps)
    np.testing.assert_allclose(found, np.maximum((maps * weight).sum(axis=-1), 0), rtol=1e-4, atol=1e-6)


@pytest.mark.more
def test_a_model_says_where_it_looks_by_its_maps() -> None:
    """What a network does with its maps is what it does with the image, and features are those maps in a row."""
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    for learner in (
        from_flax(models.cnn((8, 8, 1), 3, (4, 6), norm="batch"), x[:1], 3),
        from_flax(models.unet((8, 8, 1), 3, (4, 6)), x[:1], 3, "segmentation"),
        from_flax(models.unet((8, 8, 1), 1, (4, 6), residual=True), x[:1], 1, "reconstruction"),
        from_flax(models.resnet((8, 8, 1), 3, (4, 6), (1, 1)), x[:1], 3),
    ):
        params = learner.init(jax.random.key(0))
        assert learner.maps is not None
        found, rest = learner.maps(params, jnp.asarray(x))
        assert found.ndim == 4
        np.testing.assert_allclose(rest(found), learner.predict(params, jnp.asarray(x)), atol=1e-6)
    assert from_flax(models.mlp((8, 8, 1), 3), x[:1], 3).maps is None


def test_shuffled_columns_matter_as_much_as_the_figure_needs_them() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4))
    y = x[:, 0] + 2 * x[:, 1]

    def figure(rows: np.ndarray) -> float:
        return float(1 - ((y - rows[:, 0] - 2 * rows[:, 1]) ** 2).mean() / y.var())

    found = attribution.permutation_importance(figure, x, [[0], [1], [2, 3]], repeats=20, seed=0)
    # 2 Var(x_j) b_j^2 / Var(y), in expectation
    np.testing.assert_allclose(found.mean[:2], 2 * np.array([1, 4]) * x[:, :2].var(axis=0) / y.var(), rtol=0.1)
    assert found.mean[2] == 0 == found.sd[2] and found.figure == 1.0
    undefined = attribution.permutation_importance(lambda rows: None, x, [[0]], repeats=2, seed=0)
    assert np.isnan(undefined.mean).all() and undefined.figure is None


# --- of a run

HEAD = """
name = "explained"
rounds = {rounds}
baselines = false
training = {{ optimizer = {{ name = "adam", learning_rate = 0.01 }}, batch_size = 16, local_steps = 4 }}
topology = {{ graph = "ring", nodes = 3 }}
algorithm = {{ name = "dsgd", share = {share} }}
driver = {{ kind = "simulate" }}
"""
IMAGES = """
data = {{ source = "npz", path = "images.npz" }}
model = {{ name = "{model}", channels = [4] }}
"""
COLUMNS = """
data = { source = "csv", path = "table.csv", label = "ill", site = "site", partition = "by_site" }
model = { name = "mlp", hidden = [8] }
"""


def images(folder: Path) -> None:
    """Class 1 is bright in the upper left quarter, class 0 is not; the rest is the same noise."""
    rng = np.random.default_rng(0)
    whole = {}
    for name, count in (("train", 240), ("test", 60)):
        x, y = rng.integers(0, 80, (count, 8, 8), np.uint8), np.arange(count) % 2
        x[y == 1, :4, :4] += 120
        whole |= {f"{name}_images": x, f"{name}_labels": y[:, None]}
    np.savez(folder / "images.npz", **whole)  # type: ignore[arg-type]


def table(folder: Path) -> None:
    """Who is ill is told by age and by the kind of pain, and by nothing else."""
    rng = np.random.default_rng(0)
    lines = ["site,age,height,pain,ill"]
    for row in range(450):
        age, height, pain = rng.normal(), rng.normal(), rng.integers(0, 3)
        ill = age + 1.5 * (pain == 2) - 0.5 > 0
        lines.append(f"{'abc'[row % 3]},{age:.3f},{height:.3f},{['weak', 'dull', 'sharp'][pain]},{int(ill)}")
    (folder / "table.csv").write_text("\n".join(lines))


def ran(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, rounds: int = 40, share: str = '["**"]') -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (folder / "exp.toml").write_text(HEAD.format(rounds=rounds, share=share) + text)
    done = CliRunner().invoke(main, ["run", "exp.toml", "--out", "run"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("model", "methods"),
    [
        # Grad-CAM's weights are means over the map, as docs say
        pytest.param("cnn", ("integrated", "occlusion"), marks=pytest.mark.more),
        pytest.param("resnet", ("integrated", "occlusion", "grad_cam"), marks=pytest.mark.soak),
    ],
)
def test_images_of_every_site_are_explained_by_where_their_class_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optax_promotes: None, model: str, methods: tuple[str, ...]
) -> None:
    images(tmp_path)
    ran(tmp_path, monkeypatch, IMAGES.format(model=model))
    done = CliRunner().invoke(main, ["explain", "run", "--rows", "6"])
    assert done.exit_code == 0 and "node 2: 20 rows, the mean of the models of 3 nodes" in done.output
    told = json.loads((tmp_path / "run/explanations/explanations.json").read_text())
    with np.load(tmp_path / "run/explanations/explanations.npz") as file:
        found = dict(file)
    for site, each in told["sites"].items():
        if model == "cnn":  # a black image has no variance, which group normalisation divides by
            assert all(row["off"] <= 1e-3 * max(abs(row["change"]), 1) for row in each["completeness"])
        bright = found[f"{site}/target"] == 1
        for method in methods:
            of = np.abs(found[f"{site}/{method}"][bright])
            assert of[:, :4, :4].mean() > 2 * of[:, 4:, 4:].mean(), (site, method)
    page = (tmp_path / "run/report.html").read_text()
    assert "What answers rest on" in page and "Grad-CAM" in page


@pytest.mark.more
def test_columns_of_every_site_are_as_important_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optax_promotes: None
) -> None:
    """Also where every node has a head of its own, and so is explained by its own model."""
    table(tmp_path)
    ran(tmp_path, monkeypatch, COLUMNS, share='"private_head"')
    done = CliRunner().invoke(main, ["explain", "run"])
    assert done.exit_code == 0 and "node 1 (b): 30 rows, the model of node 1 (b)" in done.output
    told = json.loads((tmp_path / "run/explanations/explanations.json").read_text())
    assert told["figure"] == "auc" and set(told["sites"]) == {f"node {i} ({'abc'[i]})" for i in range(3)}
    for each in told["sites"].values():
        by_name = dict(zip(each["columns"], each["importance"], strict=True))
        assert set(by_name) == {"age", "height", "pain"} and each["completeness"] < 1e-3
        assert by_name["age"] > 0.1 and by_name["pain"] > 0.03 and abs(by_name["height"]) < 0.05
    one = CliRunner().invoke(main, ["explain", "run", "--node", "1", "--class", "1", "--data", "table.csv",
                                    "--out", "mine"])  # fmt: skip
    assert one.exit_code == 0 and "table.csv: 450 rows" in one.output
    mine = json.loads((tmp_path / "mine/explanations.json").read_text())["sites"]["table.csv"]
    assert "importance" not in mine and mine["integrated"][0] > 5 * mine["integrated"][1]
    for arguments, why in (
        (["--class", "dead"], "class='dead': this model does not tell of that; it tells of 0, 1"),
        (["--node", "7"], "node=7"),
        (["--answer", "selector"], "is several models"),
    ):
        refused = CliRunner().invoke(main, ["explain", "run", *arguments])
        assert refused.exit_code == Exit.MISTAKE and why in refused.output
