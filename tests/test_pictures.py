"""Columns and a picture in one row: how they are read, what is refused, and what a model of both is told by each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from flax import nnx
from PIL import Image

from p2pfl import load_model
from p2pfl.cli import main
from p2pfl.config import experiment
from p2pfl.data import Dataset, csv, dictionary, new_rows, pictures
from p2pfl.data.dataset import Numbers, prepared
from p2pfl.data.pictures import RowPicture
from p2pfl.data.table import Table
from p2pfl.errors import ConfigError, DataError
from p2pfl.federation.federation import build, digest, identity
from p2pfl.learning import models
from p2pfl.learning.flax import from_flax
from p2pfl.methods import sharing, statistics
from p2pfl.runs.export import narrowed
from p2pfl.runs.models import describe
from p2pfl.runs.replay import replay

ROWS = 60
SIDE = 8
PICTURE = RowPicture("file", "shots")
EXPERIMENT = """
name = "two"
rounds = 3
baselines = false
statistics = { normalize = true }
model = { name = "fusion", channels = [2], blocks = [1], hidden = [3], norm = "batch" }
training = { optimizer = { name = "sgd", learning_rate = 0.1 }, batch_size = 8, local_steps = 2 }
topology = { graph = "ring" }
algorithm = { name = "dsgd" }

[data]
source = "csv"
path = "t.csv"
label = "ill"
site = "ward"
missing = "gossip"
standardize = "none"
partition = "by_site"
picture = { column = "file", folder = "shots" }
"""


def made(folder: Path, size: Callable[[int], int] = lambda row: SIDE) -> Path:
    """A table of three wards, and a picture for each row: brighter where its patient is ill."""
    rng = np.random.default_rng(0)
    (folder / "shots").mkdir()
    lines = ["age,file,sex,ward,ill"]
    for row in range(ROWS):
        ill = row // 3 % 2
        pixels = rng.integers(0, 100, (size(row), SIDE), np.uint8) + 100 * ill
        Image.fromarray(pixels).save(folder / "shots" / f"{row}.png")
        age = "" if row == 7 else f"{50 + 5 * ill + 5 * rng.normal():.2f}"
        lines.append(f"{age},{row}.png,{'fm'[row % 2]},{'abc'[row % 3]},{['no', 'yes'][ill]}")
    (folder / "t.csv").write_text("\n".join(lines))
    return folder / "t.csv"


def load(file: Path, picture: RowPicture = PICTURE, **wanted: Any) -> Dataset:
    given = {"label": "ill", "site": "ward", "missing": "mean", "picture": picture, **wanted}
    return csv.load(file, csv.CsvTable(**given))


def test_a_picture_lies_behind_the_columns_as_its_file_has_it(tmp_path: Path) -> None:
    found, without = load(made(tmp_path)), load(tmp_path / "t.csv", picture=None, drop=["file"])  # type: ignore[arg-type]
    assert found.features == without.features == ("age", "sex=f", "sex=m") and found.picture == (SIDE, SIDE, 1)
    for part, alone in ((found.train, without.train), (found.test, without.test)):
        assert part.line is not None
        np.testing.assert_array_equal(part.x[:, :3], alone.x)
        for line, row in zip(part.line, part.x[:, 3:], strict=True):
            pixels = np.asarray(Image.open(tmp_path / "shots" / f"{line - 2}.png"))
            np.testing.assert_allclose(row.reshape(SIDE, SIDE), pixels / 255, atol=1e-6)
    meaning = dictionary.describe(found)
    assert meaning.image is not None and meaning.image.shape == (SIDE, SIDE) and len(meaning.columns) == 2
    (line,) = dictionary.differences(dictionary.describe(without), meaning)
    assert line == "images: none there"
    smaller = dictionary.describe(load(tmp_path / "t.csv", replace(PICTURE, size=(4, 4))))
    assert "images: shape" in dictionary.differences(smaller, meaning)[0]


def test_rows_without_their_picture_are_refused_or_counted(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "shots/4.png").unlink()
    with pytest.raises(DataError, match=r"line 6: file is '4.png': no such file .*1 of 60 rows have none.*drop_row"):
        load(tmp_path / "t.csv", missing="error", drop=["age"])
    text = (tmp_path / "t.csv").read_text().replace(",9.png", ",")
    (tmp_path / "t.csv").write_text(text)
    found = load(tmp_path / "t.csv")
    assert len(found.train.y) + len(found.test.y) == ROWS - 2
    why = {each.why: sum(each.rows.values()) for each in found.flow.left_out}
    assert why == {"'file' is missing": 1, "its picture is not there": 1}


@pytest.mark.parametrize(
    ("picture", "wanted", "why"),
    [
        ({"column": "shot"}, {}, "picture.column='shot' is not a column"),
        ({"column": "age"}, {"drop": ["file"]}, r"line 2: age is '\d+.*': no such file"),
        ({"column": "ill"}, {}, "column 'ill' is both label and picture.column"),
        ({}, {"use": ["age", "file"]}, "column 'file' is both picture.column and use"),
        ({"folder": "pictures"}, {}, "60 of 60 rows have none.*picture.folder says where paths begin"),
        ({"window": (0.5, 0.0)}, {}, r"picture.window: must be \[centre, width > 0\]"),
        ({"unit": "SUV"}, {}, 'picture.unit="SUV": is of PET'),
        ({"format": "npy"}, {}, "0.png: can't be read as npy"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, picture: dict[str, Any], wanted: dict[str, Any], why: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=why):
        load(made(tmp_path), replace(PICTURE, **picture), **wanted)


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("/etc/hosts", "must be a path below picture.folder$"),
        ("../secret.png", "must be a path below picture.folder$"),
        ("a/../../secret.png", "must be a path below picture.folder$"),
        (".", "must be a path below picture.folder$"),
        ("", "no such file; 1 of 2"),
        ("x" * 300, "x{80}[.]{3}': File name too long$"),
        ("a\0b", "no such file"),
    ],
)
@pytest.mark.parametrize("form", ["image", "dicom"])
def test_a_cell_leads_to_a_file_below_the_folder_or_is_refused(tmp_path: Path, cell: str, why: str, form: str) -> None:
    """Whoever has written the table: it shows no other picture of the disk, and an empty cell not its whole folder."""
    (tmp_path / "shots").mkdir()
    for name in ("shots/0.png", "secret.png"):
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(tmp_path / name)
    cells = np.array([["sub/../0.png"], [cell]], object)
    table = Table(str(tmp_path / "t.csv"), ("file",), cells, np.array([2, 3]))
    (tmp_path / "shots/sub").mkdir()
    with pytest.raises(DataError, match=rf"t.csv: line 3: file is '.*{why}"):
        pictures.with_files(table, replace(PICTURE, format=form), "error")  # type: ignore[arg-type]


def test_pictures_of_several_sizes_need_one(tmp_path: Path) -> None:
    file = made(tmp_path, lambda row: SIDE + row % 2)
    with pytest.raises(DataError, match=r"1.png: has shape \[9, 8, 1\].*Give picture.size"):
        load(file)
    assert load(file, replace(PICTURE, size=(5, 4))).picture == (5, 4, 1)


def test_new_pictures_must_have_the_shape_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many pixels are not enough; in a file and in a DataFrame."""
    data = load(made(tmp_path))
    assert data.recipe is not None
    Image.fromarray(np.zeros((SIDE // 2, 2 * SIDE), np.uint8)).save(tmp_path / "shots/wide.png")
    (tmp_path / "new.csv").write_text("age,file,sex\n50,0.png,f\n50,wide.png,f\n")
    rest = ((), data.train.x.shape[1:], data.features)
    why = r"wide.png has shape \[4, 16, 1\]; the model has learned from pictures of shape \[8, 8, 1\]"
    with pytest.raises(DataError, match=f"line 3: .*{why}"):
        new_rows.load(tmp_path / "new.csv", data.recipe, *rest)
    monkeypatch.chdir(tmp_path)
    for name in ("wide.png", "0.png"):
        frame = pd.DataFrame({"age": [50], "file": [name], "sex": ["f"]})
        if name == "wide.png":
            with pytest.raises(DataError, match=why):
                new_rows.frame(frame, data.recipe, (), data.features)
        else:
            assert new_rows.frame(frame, data.recipe, (), data.features).x.shape == (1, 3 + SIDE * SIDE)


def test_one_dark_picture_is_refused_to_learn_from_and_no_reason_not_to_answer(tmp_path: Path) -> None:
    file = made(tmp_path)
    for row in range(ROWS):
        Image.fromarray(np.full((SIDE, SIDE), 60000 if row else 100, np.uint16)).save(tmp_path / f"shots/{row}.png")
    data = load(file)
    assert data.recipe is not None
    (tmp_path / "new.csv").write_text("age,file,sex\n50,0.png,f\n")
    found = new_rows.load(tmp_path / "new.csv", data.recipe, (), data.train.x.shape[1:], data.features)
    np.testing.assert_allclose(found.x[0, 3:], 100 / 65535, rtol=1e-5)
    for row in range(ROWS):
        Image.fromarray(np.full((SIDE, SIDE), 100, np.uint16)).save(tmp_path / f"shots/{row}.png")
    with pytest.raises(DataError, match="nearly black"):
        load(file)


def test_only_columns_are_scaled_and_counted() -> None:
    x = np.array([[2.0, np.nan, 0.5, 0.25], [4.0, 3.0, 0.1, 0.2]])
    scaled = prepared(x, Numbers(((3.0, 1.0),), ((1.0, 2.0),), ((0.0, 5.0),), first=2))
    np.testing.assert_allclose(scaled, [[-1, 2, 0.5, 0.25], [1, 1, 0.1, 0.2]])
    moments = {"mean": jnp.array([3.0, 3.0]), "sd": jnp.array([1.0, 2.0])}
    np.testing.assert_allclose(
        statistics.normalized(jnp.asarray(x, jnp.float32), moments), [[-1, 0, 0.5, 0.25], [1, 0, 0.1, 0.2]], atol=1e-6
    )


def written(folder: Path, *changes: tuple[str, str]) -> Path:
    text = EXPERIMENT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "exp.toml").write_text(text)
    return folder / "exp.toml"


FUSION = 'name = "fusion", channels = [2], blocks = [1], hidden = [3], norm = "batch"'


def test_gossip_sums_columns_alone_and_parts_of_the_model_are_shared_by_name(tmp_path: Path) -> None:
    made(tmp_path)
    sharing_encoders = ('algorithm = { name = "dsgd" }', 'algorithm = { name = "dsgd", share = "split" }')
    federation = build(experiment.load(written(tmp_path, sharing_encoders)))
    sums = federation.sites["sums"]["moments"]  # type: ignore[index]
    assert {name: leaf.shape for name, leaf in sums.items()} == dict.fromkeys(("count", "sum", "square"), (3, 3))
    model = jax.eval_shape(federation.learner.init, jax.random.key(0))
    assert {path.split("/")[0] for path in sharing.leaves({"trained": model["trained"], "carried": {}})} == {"encoder"}
    private = model["private"]["share"]["leaves"]["trained"]
    assert set(private) == {"cross", "deep", "head"}


def test_where_pictures_lie_is_a_machines_own_matter_and_not_exported(tmp_path: Path) -> None:
    made(tmp_path)
    away = ('folder = "shots" }', f'folder = "{tmp_path / "shots"}" }}')
    federation = build(experiment.load(written(tmp_path, away)))
    found = narrowed(SimpleNamespace(about=describe(federation), node=1, said="node 1"))  # type: ignore[arg-type]
    assert found.recipe is not None and str(tmp_path) not in str(found)
    assert found.experiment["data"]["picture"]["column"] == found.recipe.fields["picture"]["column"] == "file"
    other, smaller = (
        federation._replace(experiment=experiment.load(written(tmp_path, ('folder = "shots"', by))))
        for by in ('folder = "shots"', 'folder = "shots", size = [4, 4]')
    )
    assert digest(other) == digest(federation) != digest(smaller) and identity(other) == identity(federation)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ([(FUSION, 'name = "cnn"')], r"takes images, and a row of the data is 3 columns and a picture \[8, 8, 1\]"),
        ([('picture = { column = "file", folder = "shots" }', 'drop = ["file"]')], "no picture. Use mlp"),
        ([("hidden = [3]", "hidden = [], crosses = 0")], "would never meet"),
        ([("batch_size = 8", 'objective = [{ name = "augment" }], batch_size = 8')], "columns and a picture in one"),
    ],
)
def test_what_takes_one_of_both_says_so(tmp_path: Path, changes: list[tuple[str, str]], why: str) -> None:
    made(tmp_path)
    with pytest.raises(ConfigError, match=why):
        build(experiment.load(written(tmp_path, *changes)))


def test_a_cross_network_multiplies_its_inputs() -> None:
    """Two layers of weights by hand: x_1 = x_0 (x_0 . w) + b + x_0, and so on."""
    net = models.CrossNetwork(2, 2, rngs=nnx.Rngs(0))
    w, b = np.array([[[1.0], [2.0]], [[0.5], [0.0]]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    for i in range(2):
        net.layers[i].kernel[...], net.biases[i][...] = w[i], b[i]
    x = first = np.array([[3.0, -1.0]])
    for i in range(2):
        x = first * (x @ w[i]) + b[i] + x
    np.testing.assert_allclose(net(jnp.asarray(first, jnp.float32)), x, rtol=1e-6)


@pytest.mark.more
def test_the_model_takes_in_both_inputs() -> None:
    """Its outputs change with every column and pixel, and what a pixel changes depends on the columns: they meet."""
    learner = from_flax(models.fusion((2 + 16,), 2, (4, 4, 1), (2,), (1,), hidden=(3,)), jnp.zeros((1, 18)), 2)
    params, x = learner.init(jax.random.key(0)), jnp.asarray(np.random.default_rng(0).normal(size=(1, 18)), jnp.float32)
    slope = jax.jit(jax.grad(lambda x: learner.predict(params, x)[0, 0]))
    one, other = (np.asarray(slope(x.at[0, 0].add(by)))[0] for by in (0.0, 1.0))
    assert (np.abs(one) > 1e-6).all() and np.abs(one - other)[2:].max() > 1e-3
    assert learner.features is not None
    assert jax.eval_shape(learner.features, params, x, None)[0].shape == (1, 2 + 2 + 3)


invoke = CliRunner().invoke


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a simulated run, below the current one."""
    monkeypatch.chdir(tmp_path)
    made(tmp_path)
    written(tmp_path)
    done = invoke(main, ["run", "exp.toml", "--driver", "simulate", "--out", "run"])
    assert done.exit_code == 0, done.output
    return tmp_path / "run"


@pytest.mark.more
def test_new_rows_of_both_go_through_the_same_reading(ran: Path, tmp_path: Path) -> None:
    done = invoke(main, ["predict", "run", "--data", "t.csv", "--out", "said.csv"])
    assert done.exit_code == 0, done.output
    model, federation = load_model("run"), build(experiment.load(tmp_path / "exp.toml"))
    rows = federation.dataset.test
    told = np.loadtxt(tmp_path / "said.csv", delimiter=",", skiprows=1, usecols=(0, 1, 2))
    at = {int(line): each for line, *each in told}
    assert rows.line is not None and len(at) == ROWS
    answers = model(rows.x)  # nothing is scaled before it is known what all nodes have
    np.testing.assert_allclose([at[line] for line in rows.line], answers, atol=1e-5)
    np.testing.assert_allclose(model.function()(jnp.asarray(rows.x)), answers, atol=1e-5)
    (tmp_path / "new.csv").write_text("age,file,sex\n50,nowhere.png,f\n")
    refused = invoke(main, ["predict", "run", "--data", "new.csv", "--out", "none.csv"])
    assert refused.exit_code == 1 and "line 2: file is 'nowhere.png': no such file" in refused.output


@pytest.mark.soak
def test_a_picture_is_explained_while_its_columns_stay_and_counts_as_one_more(ran: Path) -> None:
    done = invoke(main, ["explain", "run", "--node", "1", "--rows", "2", "--repeats", "2"])
    assert done.exit_code == 0, done.output
    table = json.loads((ran / "explanations/explanations.json").read_text())
    with np.load(ran / "explanations/explanations.npz") as file:
        arrays = dict(file)
    for site, each in table["sites"].items():
        assert each["columns"] == ["age", "sex", "(picture)"] and len(each["importance"]) == 3
        assert arrays[f"{site}/x"].shape == (2, SIDE, SIDE, 1)
        assert arrays[f"{site}/integrated"].shape == arrays[f"{site}/occlusion"].shape == (2, SIDE, SIDE)
        for shown, row in zip(arrays[f"{site}/integrated"], each["completeness"], strict=True):
            assert shown.sum() == pytest.approx(row["change"], abs=row["off"] + 1e-4)
    assert "(picture)" in (ran / "report.html").read_text()


@pytest.mark.live
@pytest.mark.soak
def test_real_processes_learn_from_both_what_the_plain_loop_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path)
    written(tmp_path)
    done = invoke(main, ["run", "exp.toml", "--driver", "live", "--out", "run"])
    assert done.exit_code == 0, done.output
    assert all(verdict.equal for verdict in replay(tmp_path / "run"))
