"""What is predicted beside classes: labels, numbers, times to an event, masks; in tables, npz and MedMNIST."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pfl import data
from p2pfl.data import Dataset, Samples, csv, medmnist, npz
from p2pfl.data.dataset import split
from p2pfl.data.partition import PARTITIONS, describe, iid
from p2pfl.errors import ConfigError, DataError

KINDS: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {
    "classes": (np.array([0, 1] * 4, np.int32), ("a", "b")),
    "labels": (np.array([[0, 1], [1, 1], [0, 0], [1, 0]] * 2, np.int32), ("a", "b")),
    "regression": (np.arange(16, dtype=np.float32).reshape(8, 2), ("a", "b")),
    "survival": (np.array([[1, 0], [2, 1]] * 4, np.float32), ("risk",)),
    "segmentation": (np.tile(np.eye(3, dtype=np.int32), (8, 1, 1)), ("a", "b")),
    "reconstruction": (np.full((8, 3, 3, 1), 0.5, np.float32), ("grey",)),
}


def make(kind: str) -> Dataset:
    y, classes = KINDS[kind]
    x = np.zeros((8, 3, 3, 1), np.float32)
    part = Samples(x, y.copy(), np.array([0, 1] * 4, np.int32))
    return Dataset(part, part, classes, ("s", "t"), validation=part, kind=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_dealt_and_described(kind: str) -> None:
    dataset = make(kind)
    data.validate(dataset, "here")
    for name, arguments in (("iid", {}), ("by_site", {})):
        found = PARTITIONS[name](dataset, 2, 0, **arguments)
        assert sorted(np.concatenate(found.train).tolist()) == list(range(8))
        assert describe(found, dataset)[0] == "2 nodes with 4 training rows each"
    for name, arguments in (("dirichlet", {"alpha": 1.0}), ("shards", {"per_node": 1})):
        if kind == "classes":
            PARTITIONS[name](dataset, 2, 0, **arguments)
            continue
        with pytest.raises(ConfigError, match=f"partition='{name}': .*of kind '{kind}'; use 'iid' or 'by_site'"):
            PARTITIONS[name](dataset, 2, 0, **arguments)


def test_describe_says_which_labels_and_events_a_node_lacks() -> None:
    dataset = make("labels")
    alone = iid(dataset, 8, 0)
    said = describe(alone, dataset)
    assert any("no training rows of 2 of 2 labels: a, b" in line for line in said)
    survival = make("survival")
    lacking = [line for line in describe(iid(survival, 8, 0), survival) if "no event among" in line]
    assert len(lacking) == 4
    assert describe(iid(make("segmentation"), 8, 0), make("segmentation")) == ["8 nodes with 1 training rows each"]


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("labels", {"y": np.full((8, 2), 2, np.int32)}, r"train\.y holds 16 values outside 0\.\.1 .*row 0: 2"),
        ("labels", {"y": np.zeros((8, 3), np.int32)}, r"train\.y has 3 columns; kind='labels' needs 2: a, b"),
        ("labels", {"y": np.zeros(8, np.int32)}, r"train\.y has shape \(8,\); it must have two axes, \[rows, labels\]"),
        ("regression", {"y": np.zeros((8, 2), np.int32)}, r"train\.y has dtype int32; it must be float32"),
        ("regression", {"y": np.full((8, 2), np.nan, np.float32)}, r"train\.y holds 16 NaN"),
        (
            "survival",
            {"y": np.full((8, 2), -1, np.float32)},
            r"train\.y: times must be >= 0; 8 are not, first in row 0",
        ),
        ("survival", {"y": np.full((8, 2), 3, np.float32)}, r"train\.y: events must be 0 or 1; 8 are not"),
        (
            "segmentation",
            {"y": np.zeros((8, 2, 3), np.int32)},
            r".*a mask \[N, H, W\] must have a class for each pixel",
        ),
        ("segmentation", {"y": np.full((8, 3, 3), 5, np.int32)}, r"train\.y holds 72 values outside 0\.\.1"),
        ("reconstruction", {"y": np.zeros((8, 3, 2, 1), np.float32)}, r".*both must be images of one height and width"),
        ("reconstruction", {"y": np.zeros((8, 3, 3, 2), np.float32)}, r"train\.y has 2 channels; 1 are named: grey"),
        ("reconstruction", {"y": np.full((8, 3, 3, 1), 2, np.float32)}, r"train\.y holds 72 values .*row 0: 2; PSNR"),
        ("reconstruction", {"y": np.full((8, 3, 3, 1), np.nan, np.float32)}, r"train\.y holds 72 NaN"),
    ],
)
def test_validate_by_kind(kind: str, change: dict[str, Any], words: str) -> None:
    wrong = make(kind)
    wrong = wrong._replace(train=wrong.train._replace(**change))
    with pytest.raises(DataError, match=f"^here: {words}"):
        data.validate(wrong, "here")


def test_validate_names_and_the_validation_part() -> None:
    one = make("labels")._replace(classes=("a",))
    parts = {name: getattr(one, name)._replace(y=one.train.y[:, :1]) for name in ("train", "test", "validation")}
    data.validate(one._replace(**parts), "one label is enough")
    for change, words in (
        ({"kind": "label"}, "kind='label': did you mean 'labels'"),
        ({"kind": "survival"}, "survival has the single output"),
        ({"classes": ()}, "classes is empty"),
    ):
        with pytest.raises(DataError, match=words):
            data.validate(make("labels")._replace(**change), "here")
    dataset = make("classes")
    short = dataset.train._replace(x=dataset.train.x[:4])
    with pytest.raises(DataError, match=r"validation\.x has 4 rows, validation\.y has 8"):
        data.validate(dataset._replace(validation=short), "here")
    wide = dataset.train._replace(x=np.zeros((8, 4), np.float32))
    with pytest.raises(DataError, match=r"a row of train\.x has shape \(3, 3, 1\), a row of validation\.x \(4,\)"):
        data.validate(dataset._replace(validation=wide), "here")


@pytest.mark.parametrize("seed", range(4))
def test_a_drawn_split_parts_no_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 60, 400)
    y, site = (group % 3).astype(np.int32), (group % 2).astype(np.int32)
    in_test = split(y, site, 0.25, seed, group)
    assert not set(group[in_test].tolist()) & set(group[~in_test].tolist())
    assert 0.15 < in_test.mean() < 0.35
    for place in range(2):
        assert in_test[site == place].any() and not in_test[site == place].all()
    assert np.array_equal(split(y, site, 0.25, seed, np.arange(400)), split(y, site, 0.25, seed))
    several = split(np.zeros((400, 2)), site, 0.25, seed)  # of other kinds, by site alone
    assert [int(several[site == place].sum()) for place in range(2)] == [
        round(0.25 * (site == p).sum()) for p in (0, 1)
    ]


# --------------------------------------------------------------------------------------------------------------- tables


def load(path: Path | str, **wanted: Any) -> Dataset:
    return csv.load(path, csv.CsvTable(**wanted))


HEAD = "age,hospital,flu,cold,days,died,patient"


def write(tmp_path: Path, rows: list[list[object]], head: str = HEAD) -> Path:
    path = tmp_path / "t.csv"
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows), ""]), "utf-8")
    return path


def body(count: int = 40) -> list[list[object]]:
    return [[30 + i, "ab"[i % 2], i % 3 % 2, i // 20, 1 + i / 2, i % 2, f"p{i // 4}"] for i in range(count)]


def test_a_table_of_several_labels(tmp_path: Path) -> None:
    path = write(tmp_path, body())
    found = load(path, kind="labels", labels=["flu", "cold"], drop=["days", "died", "patient"], standardize="none")
    assert (found.kind, found.classes) == ("labels", ("flu", "cold"))
    assert found.features == ("age", "hospital=a", "hospital=b") and found.train.y.dtype == np.int32
    for part in (found.train, found.test):
        i = part.x[:, 0].astype(int) - 30
        assert part.y.tolist() == np.stack([i % 3 % 2, i // 20], axis=1).tolist()


def test_a_table_of_numbers_and_one_of_times(tmp_path: Path) -> None:
    path = write(tmp_path, body())
    found = load(path, kind="regression", targets=["days"], site="hospital", drop=["died", "patient"])
    assert (found.kind, found.classes) == ("regression", ("days",)) and found.train.y.shape == (len(found.train.x), 1)
    assert sorted(np.concatenate([found.train.y, found.test.y])[:, 0].tolist()) == [1 + i / 2 for i in range(40)]
    found = load(path, kind="survival", time="days", event="died", drop=["patient"], standardize="none")
    assert (found.kind, found.classes) == ("survival", ("risk",)) and "days" not in found.features
    for part in (found.train, found.test):
        i = part.x[:, 0] - 30
        assert part.y.tolist() == np.stack([1 + i / 2, i % 2], axis=1).tolist()
    rows = [[*row[:5], 0, row[6]] for row in body()]
    said = load(write(tmp_path, rows), kind="survival", time="days", event="died", drop=["patient"]).notes
    assert said[1:] == ("no event: 'died' is 0 in all 40 rows",)


def test_the_patients_of_a_table_stay_together(tmp_path: Path) -> None:
    path = write(tmp_path, body())
    arguments: dict[str, Any] = {"kind": "regression", "targets": ["days"], "group": "patient", "standardize": "none"}
    found = load(path, **arguments, test_fraction=0.3, seed=4)
    assert "patient" not in found.features and len(found.test.y) == 12
    patients = [set(((part.x[:, 0] - 30) // 4).tolist()) for part in (found.train, found.test)]
    assert not patients[0] & patients[1]
    rows = body()
    rows[3][6] = ""
    with pytest.raises(DataError, match=r"missing cells in 'patient' \(1\)"):
        load(write(tmp_path, rows), **arguments)
    assert load(write(tmp_path, rows), **arguments, missing="mean").notes[1:] == (
        "left out 1 rows with missing cells in 'patient' (1) (a label or site is never filled)",
    )


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({}, DataError, "data.label: missing; source='csv' needs it"),
        ({"kind": "labels"}, DataError, "data.labels: missing; source='csv' with kind='labels' needs it"),
        ({"kind": "survival", "time": "days"}, DataError, "data.event: missing"),
        ({"kind": "multi"}, ConfigError, "kind='multi'"),
        (
            {"kind": "regression", "targets": ["days"], "label": "flu"},
            ConfigError,
            "label='flu': kind='regression' does",
        ),
        ({"label": "flu", "time": "days"}, ConfigError, "time='days': kind='classes' does not use it; it uses: label"),
        ({"kind": "labels", "labels": ["flu"], "label_above": 0}, ConfigError, "label_above=0: kind='labels' does not"),
        (
            {"kind": "labels", "labels": ["flu", "colt"]},
            DataError,
            "labels='colt' is not a column; did you mean 'cold'",
        ),
        ({"kind": "labels", "labels": ["flu", "age"]}, DataError, "line 2: age is '30'; it must be 0 or 1"),
        ({"kind": "regression", "targets": ["hospital"]}, DataError, "line 2: hospital is 'a'; it must be a number"),
        ({"label": "flu", "group": "flu"}, DataError, "column 'flu' is both label and group"),
        (
            {"label": "flu", "group": "patient", "split": "died"},
            ConfigError,
            "group='patient': is used only where the split",
        ),
    ],
)
def test_kinds_of_tables_that_are_refused(
    tmp_path: Path, arguments: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        load(write(tmp_path, body()), **arguments)


# ----------------------------------------------------------------------------------------------------- npz and MedMNIST


def save(path: Path, labels: np.ndarray, shape: tuple[int, ...] = (4, 4), **more: np.ndarray) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(labels), *shape)).astype(np.uint8)
    parts = {f"{part}_{what}": array for part in ("train", "val", "test")
             for what, array in (("images", images), ("labels", labels))}  # fmt: skip
    np.savez(path, **parts, **more)
    return path


def chest(width: int) -> np.ndarray:
    return (np.random.default_rng(1).random((20, width)) < 0.3).astype(np.uint8)


def test_npz_with_several_labels(tmp_path: Path) -> None:
    y = chest(14)
    found = npz.load(save(tmp_path / "c.npz", y))
    assert (
        found.kind == "labels" and found.classes == tuple(map(str, range(14))) and found.train.y.tolist() == y.tolist()
    )
    assert found.validation is not None and found.validation.y.tolist() == y.tolist()
    np.savez(tmp_path / "p.npz", x=np.zeros((20, 3)), y=chest(2), classes=np.array(["a", "b"]))
    pair = npz.load(tmp_path / "p.npz", test_fraction=0.25)
    assert (pair.kind, pair.classes, len(pair.test.y), pair.validation) == ("labels", ("a", "b"), 5, None)
    for wrong, words in (
        (chest(3) * 2, r"labels row \d+ holds .*; labels of a row are 0 or 1"),
        (np.eye(20), "one-hot"),
    ):
        with pytest.raises(DataError, match=words):
            npz.load(save(tmp_path / "w.npz", wrong))


def test_medmnist_is_found_and_its_classes_are_named(tmp_path: Path) -> None:
    y = (np.arange(20) % 2)[:, None].astype(np.uint8)
    save(tmp_path / "pneumoniamnist.npz", y, (28, 28))
    save(tmp_path / "pneumoniamnist_64.npz", y, (64, 64))
    found = medmnist.load("pneumoniamnist", root=str(tmp_path))
    assert found.classes == ("normal", "pneumonia") and found.train.x.shape == (20, 28, 28, 1)
    assert found.image == ((28, 28), 1, 8, "stored", "fixed", (0.0, 255.0), "", "MONOCHROME2")
    assert medmnist.load("pneumoniamnist", 64, str(tmp_path)).train.x.shape == (20, 64, 64, 1)
    save(tmp_path / "chestmnist.npz", chest(14), (28, 28))
    several = medmnist.load("chestmnist", root=str(tmp_path))
    assert several.kind == "labels" and several.classes[0] == "atelectasis" and len(several.classes) == 14
    save(tmp_path / "nodulemnist3d.npz", y, (28, 28, 28))
    assert medmnist.load("nodulemnist3d", root=str(tmp_path)).train.x.shape == (20, 28, 28, 28, 1)
    save(tmp_path / "bloodmnist.npz", y, (28, 28, 3))
    with pytest.raises(DataError, match=r"bloodmnist\.npz: has the labels 0, 1; 8 classes, 0 to 7, are expected"):
        medmnist.load("bloodmnist", root=str(tmp_path))
    assert all(len(set(names)) == len(names) for _, names in medmnist.SUBSETS.values())


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stand-in for the medmnist package, which needs torch: one class writes a file, one fails as without network."""
    path = tmp_path / "packages"
    (path / "torchvision").mkdir(parents=True)
    (path / "torchvision" / "__init__.py").write_text("", "utf-8")
    (path / "medmnist").mkdir()
    (path / "medmnist" / "__init__.py").write_text(
        "import numpy as np, pathlib\n"
        "class BreastMNIST:\n"
        "    def __init__(self, split, download, size, root):\n"
        "        print('Downloading')\n"
        "        y = (np.arange(20) % 2)[:, None]\n"
        "        x = np.zeros((20, size, size), np.uint8)\n"
        "        parts = {f'{p}_{w}': a for p in ('train', 'test') for w, a in (('images', x), ('labels', y))}\n"
        "        np.savez(pathlib.Path(root) / f'breastmnist_{size}.npz', **parts)\n"
        "class OCTMNIST:\n"
        "    def __init__(self, **given):\n"
        "        raise RuntimeError('Automatic download failed!')\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(path)
    yield path
    for name in ("medmnist", "torchvision"):
        sys.modules.pop(name, None)


def test_medmnist_lets_the_package_download(packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = medmnist.load("breastmnist", 64, str(tmp_path / "new"))
    assert found.classes == ("malignant", "normal or benign") and found.train.x.shape == (20, 64, 64, 1)
    assert capsys.readouterr().out == ""
    with pytest.raises(
        DataError, match=r"octmnist\.npz: no such file, and the download failed: RuntimeError\. Download"
    ):
        medmnist.load("octmnist", root=str(tmp_path))


def test_medmnist_says_how_to_get_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError) as caught:
        medmnist.load("pathmnist", 128, str(tmp_path))
    for words in (f"{tmp_path}/pathmnist_128.npz: no such file", "zenodo.org/records/10519652/files/pathmnist_128.npz",
                  'source = "npz"', "p2pfl-jax[medmnist]"):  # fmt: skip
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match="subset='mnist'"):
        medmnist.load("mnist")
    with pytest.raises(ConfigError, match="size=128: organmnist3d comes in 28, 64"):
        medmnist.load("organmnist3d", 128)
