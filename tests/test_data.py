"""Data sources: what they return, what they say in notes, and what they refuse, with the words of each refusal."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pfl import data
from p2pfl.config.data import FunctionData
from p2pfl.data import Dataset, Samples, npz
from p2pfl.data.dataset import mean_and_sd, split
from p2pfl.errors import ConfigError, DataError
from p2pfl.federation import datasets

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def shared(name: str) -> Path:
    """A real file beside the checkout, or a skip that says which one is absent."""
    if not (SHARED / name).is_file():
        pytest.skip(f"{name} is not in ../shared/data; it is never part of the repository")
    return SHARED / name


def write(tmp_path: Path, text: str | bytes, name: str) -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def same(one: Dataset, other: Dataset) -> bool:
    arrays = [
        (getattr(getattr(one, part), name), getattr(getattr(other, part), name))
        for part in ("train", "test") for name in ("x", "y", "site")
    ]  # fmt: skip
    return one[2:] == other[2:] and all((a is None and b is None) or np.array_equal(a, b) for a, b in arrays)


# ------------------------------------------------------------------------------------------------ split and built-in


@pytest.mark.parametrize("seed", range(6))
def test_split_is_stratified_by_site_and_label(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, site = rng.integers(0, 4, 400), rng.integers(0, 5, 400)
    in_test = split(y, site, 0.25, seed)
    assert np.array_equal(in_test, split(y, site, 0.25, seed))
    assert not np.array_equal(in_test, split(y, site, 0.25, seed + 1))
    for s in range(5):
        assert in_test[site == s].sum() == round(0.25 * (site == s).sum())
        for label in range(4):
            group = in_test[(site == s) & (y == label)]
            assert abs(group.sum() - 0.25 * len(group)) < 1.5


def test_split_leaves_the_last_row_of_a_label_in_train() -> None:
    y = np.array([0] * 18 + [1, 2])
    for seed in range(20):
        in_test = split(y, None, 0.5, seed)
        assert in_test.sum() == 10 and not in_test[18:].any()
    assert not split(np.array([0]), None, 0.9, 0).any()


@pytest.mark.parametrize(
    ("name", "size", "width", "classes"), [("digits", 1797, 64, 10), ("breast_cancer", 569, 30, 2)]
)
def test_builtin(name: str, size: int, width: int, classes: int) -> None:
    found = data.BUILTIN[name](test_fraction=0.25, seed=1)
    assert found.train.x.shape[1] == width and len(found.train.y) + len(found.test.y) == size
    assert len(found.test.y) == round(0.25 * size) and len(found.classes) == classes
    assert same(found, data.BUILTIN[name](test_fraction=0.25, seed=1))
    assert not same(found, data.BUILTIN[name](test_fraction=0.25, seed=2))
    shares = [np.bincount(part.y) / len(part.y) for part in (found.train, found.test)]
    assert np.abs(shares[0] - shares[1]).max() < 0.02
    if name == "digits":
        assert found.train.x.min() == 0 and found.train.x.max() == 1
    else:
        np.testing.assert_allclose(found.train.x.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(found.train.x.std(0), 1, atol=1e-5)
        assert np.abs(found.test.x.mean(0)).max() > 1e-3, "the test part was used for standardising"
    with pytest.raises(ConfigError, match="test_fraction=1"):
        data.BUILTIN[name](test_fraction=1.0)


def test_import_does_not_load_sklearn() -> None:
    code = "import p2pfl.data, p2pfl.data.partition, sys; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=False).returncode == 0


def test_sources_can_not_be_changed() -> None:
    assert set(data.BUILTIN) == {"digits", "breast_cancer"}
    with pytest.raises(TypeError):
        data.BUILTIN["x"] = npz.load  # type: ignore[index]


# ---------------------------------------------------------------------------------------------------------- validate


def good() -> Dataset:
    x, y = np.zeros((6, 2), np.float32), np.array([0, 1] * 3, np.int32)
    return Dataset(Samples(x, y, y.copy()), Samples(x.copy(), y.copy(), y.copy()), ("a", "b"), ("s", "t"))


def spoiled(x: np.ndarray, where: tuple[int, int], value: float) -> np.ndarray:
    x = x.copy()
    x[where] = value
    return x


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("train", {"x": spoiled(np.zeros((6, 2), np.float32), (4, 1), np.nan)}, r"train\.x holds 1 NaN and 0 .*row 4"),
        ("test", {"x": spoiled(np.zeros((6, 2), np.float32), (2, 0), -np.inf)}, r"test\.x holds 0 NaN and 1 .*row 2"),
        ("train", {"x": np.zeros((6, 2))}, r"train\.x has dtype float64; it must be float32"),
        ("test", {"y": np.zeros(6, np.int64)}, r"test\.y has dtype int64; it must be int32"),
        ("train", {"site": np.zeros(6)}, r"train\.site has dtype float64"),
        ("train", {"x": np.zeros((5, 2), np.float32)}, r"train\.x has 5 rows, train\.y has 6"),
        ("test", {"site": np.zeros(4, np.int32)}, r"test\.site has 4 rows, test\.y has 6"),
        ("train", {"y": np.array([0, 1, 0, 7, 0, 9], np.int32)}, r"train\.y holds 2 values outside 0\.\.1.*row 3: 7"),
        ("test", {"site": np.array([0, -1, 0, 0, 0, 0], np.int32)}, r"test\.site holds 1 values outside 0\.\.1.*row 1"),
        ("test", {"site": None}, r"test\.site is None, but sites="),
        ("test", {"x": np.zeros((6, 3), np.float32)}, r"train\.x has shape \(2,\), a row of test\.x \(3,\)"),
        ("train", {"x": np.zeros(6, np.float32)}, r"train\.x has shape \(6,\)"),
        ("train", {"y": [0, 1, 0, 1, 0, 1]}, r"train\.y is a list; it must be a numpy array"),
        (
            "train",
            {"x": np.zeros((0, 2), np.float32), "y": np.zeros(0, np.int32), "site": np.zeros(0, np.int32)},
            "no train rows",
        ),
    ],
)
def test_validate_says_what_is_wrong_and_where(part: str, change: dict[str, Any], words: str) -> None:
    dataset = good()
    data.validate(dataset, "good")
    wrong = dataset._replace(**{part: getattr(dataset, part)._replace(**change)})
    with pytest.raises(DataError, match="^from here: .*" + words):
        data.validate(wrong, "from here")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": ("a",)}, "single class"),
        ({"classes": ("a", "a")}, "'a' more than once"),
        ({"features": ("f",)}, "1 feature names for rows"),
        ({"sites": ()}, "train.site is given"),
    ],
)
def test_validate_judges_names(change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        data.validate(good()._replace(**change), "here")


def test_constant_columns_get_sd_one() -> None:
    x = np.array([[0.1, 1.0, 1e-200], [0.1, 2.0, 0.0], [0.1, 3.0, 0.0]] * 7)
    assert np.array_equal(mean_and_sd(x)[1] == 1, [True, False, True])


# --------------------------------------------------------------------------------------------------------------- npz


def images(n: int = 30, shape: tuple[int, ...] = (4, 4), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape)).astype(np.uint8)


def save(tmp_path: Path, **arrays: Any) -> Path:
    path = tmp_path / "t.npz"
    np.savez(path, **arrays)
    return path


def test_npz_in_the_layout_of_medmnist(tmp_path: Path) -> None:
    x, y = images(30), (np.arange(30) % 3)[:, None].astype(np.uint8)
    path = save(
        tmp_path, train_images=x, train_labels=y, val_images=x, val_labels=y, test_images=x[:9], test_labels=y[:9]
    )
    found = npz.load(path)
    assert found.train.x.shape == (30, 4, 4, 1) and found.test.x.shape == (9, 4, 4, 1)
    np.testing.assert_array_equal(found.train.x[..., 0], x.astype(np.float32) / np.float32(255))
    assert found.train.y.tolist() == y[:, 0].tolist() and found.classes == ("0", "1", "2")
    assert found.notes == ('kept 30 validation rows (val_images, val_labels) for [evaluation] rows = "validation"',)
    assert found.validation is not None and found.validation.y.tolist() == y[:, 0].tolist() and found.kind == "classes"
    np.testing.assert_array_equal(found.validation.x, found.train.x)


@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y")])
def test_npz_pairs_are_split_and_nothing_is_lost(tmp_path: Path, keys: tuple[str, str]) -> None:
    x, y = images(50, (4, 4, 3)), np.array(["wbc", "rbc"])[np.arange(50) % 2]
    path = save(tmp_path, **{keys[0]: x, keys[1]: y, "slide": np.arange(50)})
    found = npz.load(path, test_fraction=0.2, seed=3)
    assert len(found.test.y) == 10 and np.bincount(found.test.y).tolist() == [5, 5] and found.classes == ("rbc", "wbc")
    both = np.concatenate([found.train.x, found.test.x]).reshape(50, -1)
    assert sorted(map(tuple, both)) == sorted(map(tuple, (x / np.float32(255)).astype(np.float32).reshape(50, -1)))
    assert len(found.notes) == 1 and "slide" in found.notes[0] and "too kind" in found.notes[0]
    assert same(found, npz.load(path, test_fraction=0.2, seed=3))
    assert not same(found, npz.load(path, test_fraction=0.2, seed=4))


def test_npz_axes_dtypes_and_class_names(tmp_path: Path) -> None:
    y = np.arange(20) % 2
    for shape, expected in [((7,), (7,)), ((6, 6), (6, 6, 1)), ((6, 6, 3), (6, 6, 3)), ((6, 6, 6), (6, 6, 6, 1))]:
        found = npz.load(save(tmp_path, x=images(20, shape).astype(np.float64) / 200, y=y))
        assert found.train.x.shape[1:] == expected and found.train.x.max() > 1, "floats are not scaled"
    for names in (np.array(["no", "yes"]), np.array([b"no", b"yes"])):
        found = npz.load(save(tmp_path, x=images(20), y=y, classes=names))
        assert found.classes == ("no", "yes") and set(found.train.y.tolist()) == {0, 1}
    # Labels that don't begin at 0 are coded by their sorted values.
    found = npz.load(save(tmp_path, x=images(20), y=np.where(y, 9.0, 3.0)))
    assert found.classes == ("3", "9") and set(found.train.y.tolist()) == {0, 1}


GREY = images(20, (6, 6)).astype(np.float64)


@pytest.mark.parametrize(
    ("x", "intensity", "between"),
    [
        (GREY.astype(np.uint8), None, (0, 255)),
        ((257 * GREY).astype(np.uint16), None, (0, 65535)),
        ((16 * GREY).astype(np.uint16), [0, 4080], (0, 4080)),
        (GREY.astype(np.uint16), [0, 255], (0, 255)),
        (GREY, [0, 255], (0, 255)),
        (10 * GREY.astype(np.int16) - 1000, [-1000, 1550], (-1000, 1550)),
        (GREY / 255, None, None),
        (np.repeat(GREY[..., None], 6, 3).astype(np.uint16), [0, 255], (0, 255)),
    ],
)  # fmt: skip
def test_npz_images_are_as_bright_whatever_their_type(
    tmp_path: Path, x: np.ndarray, intensity: Any, between: Any
) -> None:
    found = npz.load(save(tmp_path, x=x, y=np.arange(20) % 2), intensity=intensity)
    eight = npz.load(save(tmp_path, x=GREY.astype(np.uint8), y=np.arange(20) % 2))
    np.testing.assert_allclose(
        found.train.x.mean(axis=-1).reshape(16, 6, -1)[..., 0], eight.train.x[:, :, 0, 0], atol=1e-6
    )
    assert found.image is not None and found.notes == () and found.image.bit_depth == 8 * x.dtype.itemsize
    assert (found.image.scaling, found.image.intensity) == (("fixed", between) if between else ("none", None))
    assert eight.image == ((6, 6), 1, 8, "unknown", "fixed", (0.0, 255.0), "", "")


@pytest.mark.parametrize(
    "x", [GREY, GREY.astype(np.int64), GREY.astype(np.uint16), (16 * GREY).astype(np.uint16), 8 * GREY - 1000]
)
def test_npz_images_of_unknown_scale_are_refused(tmp_path: Path, x: np.ndarray) -> None:
    """Trained on as they are, such images end at chance; scaled by 16 bits, images of 12 bits are nearly black."""
    with pytest.raises(DataError, match=r"x holds .* as .*intensity = \[low, high\].*Hounsfield"):
        npz.load(save(tmp_path, x=x, y=np.arange(20) % 2))


def test_npz_says_what_intensity_cuts_and_which_rows_are_not_scaled(tmp_path: Path) -> None:
    y = np.arange(20) % 2
    found = npz.load(save(tmp_path, x=np.where(GREY.max() == GREY, 999, 100), y=y), intensity=(0, 200))
    assert found.train.x.max() == 1 and re.search(
        r"intensity = \[0, 200\]: 0\.\d+ of all values lie outside", found.notes[0]
    )
    found = npz.load(save(tmp_path, x=GREY[:, 0].astype(np.uint16), y=y))
    assert found.train.x.max() > 100 and "learned from as it is" in found.notes[0] and found.image is None
    for wrong in ((1, 1), (1, 0), (0, np.inf)):
        with pytest.raises(ConfigError, match=r"must be \[low, high\]"):
            npz.load(tmp_path / "t.npz", intensity=wrong)
    parts = {"train_images": GREY.astype(np.uint8), "test_images": GREY / 255, "train_labels": y, "test_labels": y}
    with pytest.raises(DataError, match=r"several types \(train_images uint8, test_images float64\)"):
        npz.load(save(tmp_path, **parts))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": images(), "y": np.eye(30)}, r"y has 30 columns.*multi-label.*argmax"),
        ({"x": images(), "y": np.arange(29) % 2}, "x has 30 rows, y has 29"),
        ({"x": images(), "y": np.zeros(30, int)}, "single class"),
        ({"x": images(), "y": np.linspace(0, 1, 30)}, r"y row 1 is 0\.03.*whole numbers"),
        ({"x": images(), "y": np.arange(30) % 3, "classes": np.array(["a", "b"])}, r"y row 2 has label 2.*0\.\.1"),
        ({"x": images(), "y": np.array(["a", "bb"] * 15), "classes": np.array(["a", "bc"])}, r"y row 1.*'bb'.*'bc'"),
        ({"x": images(30, (3, 8, 8)), "y": np.arange(30) % 2}, "channels before height.*moveaxis"),
        ({"x": images(30, ()), "y": np.arange(30) % 2}, r"x has shape \(30,\)"),
        ({"x": np.array(["a"] * 30), "y": np.arange(30) % 2}, "x has dtype <U1"),
        ({"x": np.full((30, 2), np.nan), "y": np.arange(30) % 2}, r"train\.x holds 48 NaN.*row 0"),
        ({"train_images": images(), "test_images": images()}, "lacks train_labels, test_labels"),
        ({"pixels": images(), "label": np.zeros(30)}, "no arrays to learn from.*Found: pixels, label"),
        ({"x": images(), "y": np.array([{}, 1] * 15, object)}, "Python objects are never read"),
    ],
)
def test_npz_refuses(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    path = save(tmp_path, **arrays)
    with pytest.raises(DataError, match=words) as caught:
        npz.load(path)
    assert str(path) in str(caught.value)


def test_npz_files_that_are_no_archives(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"no such file \({tmp_path.resolve()}"):
        npz.load(tmp_path / "none.npz")
    with pytest.raises(DataError, match=r"not an \.npz file"):
        npz.load(write(tmp_path, b"\x80\x04pickle", "p.npz"))
    whole = save(tmp_path, x=images(200), y=np.arange(200) % 2).read_bytes()
    damaged = whole[:400] + bytes(200) + whole[600:]
    with pytest.raises(DataError, match=r"damaged|can't be read"):
        npz.load(write(tmp_path, damaged, "d.npz"))


def test_npz_real_files() -> None:
    found = npz.load(shared("pneumoniamnist_rebuilt.npz"))
    assert found.train.x.shape == (4708, 28, 28, 1) and found.test.x.shape == (624, 28, 28, 1)
    assert np.bincount(found.test.y).tolist() == [234, 390]
    cells = npz.load(shared("bccd_cells28.npz"))
    assert cells.classes == ("RBC", "WBC", "Platelets") and len(cells.train.y) + len(cells.test.y) == 4886
    assert (np.bincount(cells.train.y) + np.bincount(cells.test.y)).tolist() == [4153, 372, 361]
    assert "source_image" in cells.notes[0]


# ------------------------------------------------------------------------------------------------------------ python


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of an importable module of the user's own."""
    name = "p2pfl_test_user_data"
    write(tmp_path, "import numpy as np\nfrom p2pfl.data import BUILTIN\n"
        "def arrays(n=12): return np.zeros((n, 2), np.uint8), np.arange(n) % 2, np.ones((4, 2)), np.eye(4, 1) == 0\n"
        "def dataset(): return BUILTIN['digits']()\n"
        "def nan(): return np.full((4, 2), np.nan), np.arange(4) % 2, np.ones((4, 2)), np.arange(4) % 2\n"
        "def bright(): return 255 * np.ones((4, 2, 2)), [0, 1, 0, 1], np.ones((4, 2, 2)), [0, 1, 0, 1]\n"
        "def three(): return 1, 2, 3\n"
        "def nothing(): pass\n"
        "def fails(): raise KeyError('hospital')\n"
        "def stops(): raise StopIteration\n"
        "number = 3\n", name + ".py")  # fmt: skip
    write(tmp_path, "import not_installed_anywhere\n", "p2pfl_test_user_import.py")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for imported in (name, "p2pfl_test_user_import"):
        sys.modules.pop(imported, None)


def python(spec: str, **arguments: object) -> Dataset:
    return datasets.read(FunctionData(source=spec, arguments=arguments), 0)


def test_python_arrays_and_dataset(module: str) -> None:
    found = python(f"{module}:arrays", n=20)
    assert (
        found.train.x.shape == (20, 2) and found.train.x.dtype == np.float32 and found.test.y.tolist() == [0, 1, 1, 1]
    )
    assert same(python(f"{module}:dataset"), data.BUILTIN["digits"]())
    assert "bright': images are far from 0..1" in python(f"{module}:bright").notes[0]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("nan", r"train\.x holds 8 NaN"),
        ("three", "returned 3 values; a Dataset or"),
        ("nothing", "returned a NoneType; a Dataset or"),
        ("fails", "failed with KeyError: 'hospital'"),
        ("absent", "has no function 'absent'"),
        ("number", "has no function 'number'"),
    ],
)
def test_python_refuses(module: str, function: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"'{module}:{function}'.*{words}"):
        python(f"{module}:{function}")


def test_python_import_faults(module: str) -> None:
    for spec, lacking in (("p2pfl_no_such:f", "p2pfl_no_such"), ("p2pfl_test_user_import:f", "not_installed_anywhere")):
        with pytest.raises(ConfigError, match=f"data.source='{spec}': No module named '{lacking}'; its folder must be"):
            python(spec)
    for spec in ("plain", "a:b:c", ":f", "m:", "../m:f", "m.py:f()"):
        with pytest.raises(ConfigError, match='must be written "module:function"'):
            python(spec)
    with pytest.raises(DataError, match="failed with TypeError") as caught:
        python(f"{module}:arrays", wrong=1)
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(StopIteration):
        python(f"{module}:stops")
