"""The folder source: pixels as they should be, patients together, and the words of what is refused."""

from __future__ import annotations

import dataclasses
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_data_layouts import dicom as write_dicom

from p2pfl.data import Dataset, folder, formats, layout
from p2pfl.data.layout import Layout
from p2pfl.data.pixels import Entry, arrays
from p2pfl.errors import ConfigError, DataError

HEAD = 'name = "t"\norigin = "here"\nkind = "classes"\nformat = "image"\nclasses = ["cat", "dog"]\n'
FILES = '[[files]]\npattern = "{class}/{who}_{i}.png"\n[label]\ncolumn = "class"\n'


def read(root: Path, text: str, **arguments: Any) -> Dataset:
    """The data set at `root` by a layout of this text."""
    file = root.parent / f"{root.name}.toml"
    file.write_text(text, "utf-8")
    return folder.load(root, str(file), **arguments)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def plane(value: int, shape: tuple[int, int] = (6, 5)) -> np.ndarray:
    return np.full(shape, value, np.uint8)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Cats are dark, dogs light; the grey of a picture is its number. Two pictures of each of ten animals."""
    root = tmp_path / "pets"
    for name, light in (("cat", 0), ("dog", 100)):
        for animal in range(5):
            for i in range(2):
                save(root / name / f"{name}{animal}_{i}.png", plane(light + 2 * animal + i))
    return root


def greys(dataset: Dataset) -> list[list[int]]:
    return [[round(255 * float(row.flat[0])) for row in part.x] for part in (dataset.train, dataset.test)]


# ------------------------------------------------------------------------------------------------- rows and the split


def test_rows_keep_their_labels_and_patients_their_part(pets: Path) -> None:
    found = read(pets, HEAD + 'group = "who"\n' + FILES, test_fraction=0.4, seed=2)
    train, test = greys(found)
    assert sorted(train + test) == [*range(10), *range(100, 110)] and len(test) == 8
    assert found.train.y.tolist() == [int(grey >= 100) for grey in train]
    assert not {grey // 2 for grey in train} & {grey // 2 for grey in test}
    again = read(pets, HEAD + 'group = "who"\n' + FILES, test_fraction=0.4, seed=2)
    assert greys(again) == [train, test]
    assert greys(read(pets, HEAD + 'group = "who"\n' + FILES, test_fraction=0.4, seed=3)) != [train, test]


def test_sites_parts_and_lists(pets: Path) -> None:
    columns = '[columns]\nplace = { of = "who", pattern = \'([0-2])$\' }\n[keep]\nplace = ["0", "1", "2"]\n'
    split = '[split]\ncolumn = "i"\ntrain = ["0"]\ntest = ["1"]\n'
    found = read(pets, HEAD + 'site = "place"\n' + FILES + columns + split)
    assert found.sites == ("0", "1", "2") and greys(found) == [[0, 2, 4, 100, 102, 104], [1, 3, 5, 101, 103, 105]]
    assert found.train.site is not None and found.train.site.tolist() == [0, 1, 2] * 2
    assert found.notes == ("left out 8 rows whose 'place' is not '0', '1', '2'",)
    (pets / "train.txt").write_text("\n".join(f"{n}{i}" for n in ("cat", "dog") for i in (0, 3)), "utf-8")
    (pets / "val.txt").write_text("cat1\n dog1 \n\n", "utf-8")
    split = '[split]\ncolumn = "who"\nignore = ["cat2", "cat4", "dog2", "dog4"]\n'
    split += 'lists = { train = "train.txt", validation = "val.txt" }\n'
    found = read(pets, HEAD + 'group = "who"\n' + FILES + split, test_fraction=0.5)
    assert found.validation is not None and found.validation.y.tolist() == [0, 0, 1, 1]
    assert len(found.train.y) == len(found.test.y) == 4, "without test rows in the split, they are drawn"
    assert found.notes[-1] == 'kept 4 validation rows for [evaluation] rows = "validation"'


def test_limit_is_drawn_from_all(pets: Path) -> None:
    found = read(pets, HEAD + FILES, limit=10, seed=1)
    assert len(found.train.y) + len(found.test.y) == 10 and len(set(found.train.y.tolist())) == 2
    assert "limit = 10: 10 rows were not read" in found.notes


def test_joined_tables_and_files_that_are_not_there(pets: Path) -> None:
    lines = ["who,hospital,weight", *(f"{n}{i},{'ab'[i % 2]},{i}.5" for n in ("dog", "cat") for i in (2, 3, 0, 1))]
    (pets / "more.csv").write_text("\n".join(lines), "utf-8")
    join = '[[join]]\nfile = "more.csv"\non = "who"\n'
    with pytest.raises(DataError, match=r"cat4_0\.png: join\[0\]: who is 'cat4'.*\(4 of 20 rows\); required = false"):
        read(pets, HEAD + FILES + join)
    found = read(pets, HEAD + 'site = "hospital"\n' + FILES + join + "required = false\n")
    assert found.sites == ("a", "b") and len(found.train.y) + len(found.test.y) == 16
    for part, own in zip((found.train, found.test), greys(found), strict=True):
        assert part.site is not None and part.site.tolist() == [grey % 100 // 2 % 2 for grey in own]
    rows = 'name = "t"\norigin = "h"\nkind = "regression"\nformat = "image"\npath = "*/{who}_0.png"\n'
    rows += '[[tables]]\nfile = "more.csv"\n[label]\ncolumns = ["weight"]\n'
    found = read(pets, rows)
    assert found.classes == ("weight",) and found.train.y.dtype == np.float32
    both = np.concatenate([found.train.y, found.test.y])[:, 0]
    assert sorted(both.tolist()) == [0.5, 0.5, 1.5, 1.5, 2.5, 2.5, 3.5, 3.5]
    (pets / "dog" / "dog2_0.png").unlink()
    with pytest.raises(DataError, match=r"more\.csv: line 2: path=.*no such file below .*\(1 of 8 rows.*\"drop_row\""):
        read(pets, rows)
    assert "left out 1 rows whose files are not there" in read(pets, rows, missing="drop_row").notes


def test_survival_and_several_labels(pets: Path) -> None:
    lines = ["who,days,died,found"]
    lines += [f"{n}{i},{i + 1},{i % 2},{'flu|cold' if i == 1 else 'well'}" for n in ("cat", "dog") for i in range(5)]
    (pets / "t.csv").write_text("\n".join(lines), "utf-8")
    head = 'name = "t"\norigin = "h"\nformat = "image"\npath = "*/{who}_0.png"\n'
    rows = '[[tables]]\nfile = "t.csv"\n[label]\n'
    found = read(pets, head + 'kind = "survival"\n' + rows + 'time = "days"\nevent = "died"')
    assert found.classes == ("risk",) and set(found.train.y[:, 1].tolist()) == {0, 1} and found.train.y[:, 0].min() >= 1
    several = head + 'kind = "labels"\nclasses = ["cold", "flu"]\n' + rows + 'column = "found"\nseparator = "|"\n'
    found = read(pets, several + 'none = ["well"]')
    assert np.concatenate([found.train.y, found.test.y]).sum(axis=0).tolist() == [2, 2]
    with pytest.raises(DataError, match=r"t\.csv: line 2: found is 'well'; 'well' is not a label.*label\.none"):
        read(pets, several)


# -------------------------------------------------------------------------------------------------------------- pixels


def wanted(format: str, **pixels: Any) -> Layout:
    kind = layout.Label(column="c")
    return Layout("t", "h", "classes", format, kind, ("a", "b"), pixels=layout.Pixels(**pixels))  # type: ignore[arg-type]


def pixels(path: Path, format: str, **given: Any) -> list[np.ndarray]:
    return arrays(wanted(format, **given), Entry((path,))).x


def test_pictures_grey_color_sixteen_bits_and_size(tmp_path: Path) -> None:
    color = np.zeros((4, 6, 3), np.uint8)
    color[..., 0], color[:, 3:, 1] = 255, 255
    save(tmp_path / "c.png", color)
    (x,) = pixels(tmp_path / "c.png", "image", mode="rgb")
    np.testing.assert_array_equal(x, color / np.float32(255))
    (x,) = pixels(tmp_path / "c.png", "image", mode="rgb", size=(2, 3))
    assert x.shape == (2, 3, 3) and np.all(x[..., 0] == 1) and np.all(x[:, 0, 1] == 0) and np.all(x[:, 2, 1] == 1)
    (x,) = pixels(tmp_path / "c.png", "image")
    assert x.shape == (4, 6, 1) and x[0, 0, 0] == pytest.approx(0.299, abs=0.01)
    save(tmp_path / "deep.png", np.array([[0, 65535], [32768, 1]], np.uint16))
    (x,) = pixels(tmp_path / "deep.png", "image")
    assert x[..., 0].tolist() == pytest.approx(np.array([[0, 1], [32768 / 65535, 1 / 65535]]))


def volume() -> np.ndarray:
    """[x, y, z] whose value is 100 z + 10 y + x."""
    x, y, z = np.meshgrid(np.arange(4), np.arange(5), np.arange(6), indexing="ij")
    return (100 * z + 10 * y + x).astype(np.float32)


@pytest.mark.parametrize(
    ("given", "first", "count"),
    [
        ({}, volume()[:, :, 3], 1),
        ({"slices": "all"}, volume()[:, :, 0], 6),
        ({"slices": (2, 4)}, volume()[:, :, 2], 2),
        ({"slices": (4, 99), "axis": 0}, None, 0),
        ({"slices": (1, 99), "axis": 0}, volume()[1], 3),
        ({"slices": "all", "axis": 1}, volume()[:, 0], 5),
        ({"slices": "volume"}, np.moveaxis(volume(), 2, 0), 1),
    ],
)
def test_slices(tmp_path: Path, given: dict[str, Any], first: np.ndarray | None, count: int) -> None:
    np.save(tmp_path / "v.npy", volume())
    if first is None:
        with pytest.raises(DataError, match=r"v\.npy: pixels\.slices=\[4, 99\]: none of its 4 slices"):
            pixels(tmp_path / "v.npy", "npy", **given)
        return
    found = pixels(tmp_path / "v.npy", "npy", **given)
    assert len(found) == count and found[0].shape == (*first.shape, 1)
    np.testing.assert_array_equal(found[0][..., 0], first)


def test_intensity(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", volume() - 200)
    (x,) = pixels(tmp_path / "v.npy", "npy", intensity="range", slices="volume")
    assert x.min() == 0 and x.max() == 1
    (x,) = pixels(tmp_path / "v.npy", "npy", intensity="zscore", slices="volume")
    assert abs(x[x != 0].mean()) < 1e-5 and x[x != 0].std() == pytest.approx(1)
    (x,) = pixels(tmp_path / "v.npy", "npy", window=(0.0, 101.0), slices="volume")
    for value in (-300, -20, 0, 30, 99):  # PS3.3 C.11.2.1.2.1 by hand, to 0..1
        places = np.moveaxis(volume() - 200, 2, 0) == value
        expected = 0 if value <= -0.5 - 50 else 1 if value > -0.5 + 50 else (value + 0.5) / 100 + 0.5
        assert not places.any() or np.allclose(x[..., 0][places], expected)
    (x,) = pixels(tmp_path / "v.npy", "npy", size=(3, 2, 2), slices="volume")
    assert x.shape == (3, 2, 2, 1) and x[0, 0, 0, 0] == -200 and x[-1, -1, -1, 0] == 343
    with pytest.raises(DataError, match='"full": its type has no largest value'):
        pixels(tmp_path / "v.npy", "npy", intensity="full")


def dicom(path: Path, array: np.ndarray, **fields: Any) -> Path:
    write_dicom(path, array, **fields)
    return path


def test_dicom_rescales_windows_and_inverts(tmp_path: Path) -> None:
    stored = np.array([[0, 1000], [1024, 3000]], np.uint16)
    fields: dict[str, Any] = {"RescaleSlope": 2, "RescaleIntercept": -1024}
    path = dicom(tmp_path / "a.dcm", stored, **fields)
    (x,) = pixels(path, "dicom", intensity="none")
    assert x[..., 0].tolist() == (stored * 2.0 - 1024).tolist()
    (x,) = pixels(path, "dicom", window=(976.0, 2001.0))
    expected = np.clip((stored * 2.0 - 1024 - 975.5) / 2000 + 0.5, 0, 1)
    np.testing.assert_allclose(x[..., 0], expected, atol=1e-6)
    own = dicom(tmp_path / "b.dcm", stored, **fields, WindowCenter=["976", "40"], WindowWidth=["2001", "400"])
    np.testing.assert_allclose(pixels(own, "dicom")[0][..., 0], expected, atol=1e-6)
    inverted = dicom(tmp_path / "c.dcm", stored, PhotometricInterpretation="MONOCHROME1")
    (x,) = pixels(inverted, "dicom")
    assert x[0, 0, 0] == 1 and x[1, 1, 0] == 0


HU = {"RescaleSlope": 1, "RescaleIntercept": -1024, "Modality": "CT", "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}


@pytest.mark.parametrize(
    ("fields", "given", "expected"),
    [
        (HU, {"window": (40.0, 401.0)}, (16, "HU", "fixed", (-160.5, 239.5), "PL")),
        ({**HU, "WindowCenter": 40, "WindowWidth": 401}, {}, (16, "HU", "window", (-160.5, 239.5), "PL")),
        ({"BitsStored": 12, "HighBit": 11}, {}, (12, "stored", "percentiles", None, "")),
        ({**HU, "Modality": "PT", "Units": "GML"}, {"intensity": "none"}, (16, "SUV", "none", None, "PL")),
    ],
)  # fmt: skip
def test_facts_of_dicom(tmp_path: Path, fields: Any, given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    path = dicom(tmp_path / "a.dcm", np.arange(6, dtype=np.uint16).reshape(2, 3), **fields)
    facts = arrays(wanted("dicom", **given), Entry((path,))).facts
    assert facts is not None and facts[:2] == ((2, 3), 1)
    known = (facts.bit_depth, facts.unit, facts.scaling, facts.intensity and tuple(map(float, facts.intensity)))
    assert (*known, facts.orientation) == expected and facts.photometric == "MONOCHROME2"


def test_facts_of_pictures_and_volumes(pets: Path, tmp_path: Path) -> None:
    assert read(pets, HEAD + FILES).image == ((6, 5), 1, 8, "stored", "fixed", (0.0, 255.0), "", "MONOCHROME2")
    save(pets / "cat" / "cat0_0.png", plane(1).astype(np.uint16))
    found = read(pets, HEAD + FILES + '[pixels]\nmode = "rgb"\n').image
    assert found == ((6, 5), 3, 16, "stored", "fixed", None, "", "RGB"), "what differs is not said to be one range"
    nibabel = pytest.importorskip("nibabel", reason="NIfTI needs nibabel, of the extra [medical]")
    nibabel.save(nibabel.Nifti1Image(volume(), np.diag([-1.0, -1.0, 2.0, 1.0])), tmp_path / "v.nii.gz")
    for given, shape, axes in (({"slices": "volume"}, (4, 5, 6), "RAS"), ({"slices": "all", "axis": 0}, (5, 6), "AS")):
        facts = arrays(wanted("nifti", **given), Entry((tmp_path / "v.nii.gz",))).facts
        assert facts == (shape, 1, 32, "unknown", "percentiles", None, axes, "MONOCHROME2")


def test_a_folder_of_dicom_is_a_volume_in_the_order_of_space(tmp_path: Path) -> None:
    for number, depth in enumerate((3, 1, 2)):
        dicom(
            tmp_path / "s" / f"{number}.dcm", np.full((2, 3), depth, np.int16), InstanceNumber=number,
            ImagePositionPatient=[0, 0, 10 * depth], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        )  # fmt: skip
    (x,) = pixels(tmp_path / "s", "dicom", slices="volume", intensity="none")
    assert x.shape == (3, 2, 3, 1) and x[:, 0, 0, 0].tolist() == [1, 2, 3]
    frames = dicom(tmp_path / "f.dcm", np.arange(24, dtype=np.uint16).reshape(4, 2, 3), NumberOfFrames=4)
    (x,) = pixels(frames, "dicom", slices="volume", intensity="none")
    assert x[:, 0, 0, 0].tolist() == [0, 6, 12, 18]


def test_nifti_is_turned_to_the_closest_axes(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="NIfTI needs nibabel, of the extra [medical]")
    turned = np.diag([-1.0, 1.0, 1.0, 1.0])  # x runs to the left
    nibabel.save(nibabel.Nifti1Image(volume()[::-1], turned), tmp_path / "v.nii.gz")
    (x,) = pixels(tmp_path / "v.nii.gz", "nifti", intensity="none")
    np.testing.assert_array_equal(x[..., 0], volume()[:, :, 3])


def test_metaimage_compressed_and_in_one_file(tmp_path: Path) -> None:
    head = "ObjectType = Image\nNDims = 3\nDimSize = 4 5 6\nElementType = MET_FLOAT\nCompressedData = True\n"
    packed = zlib.compress(volume().tobytes(order="F"))
    (tmp_path / "v.mha").write_bytes(f"{head}ElementDataFile = LOCAL\n".encode() + packed)
    (x,) = pixels(tmp_path / "v.mha", "mhd", intensity="none")
    np.testing.assert_array_equal(x[..., 0], volume()[:, :, 3])
    (tmp_path / "w.mhd").write_text(f"{head}ElementDataFile = ../secret.raw\n", "ascii")
    with pytest.raises(DataError, match=r"w\.mhd: ElementDataFile = \.\./secret\.raw: must be a file beside it"):
        pixels(tmp_path / "w.mhd", "mhd")
    (tmp_path / "x.mhd").write_text(head.replace("True", "False") + "ElementDataFile = x.raw\n", "ascii")
    (tmp_path / "x.raw").write_bytes(bytes(100))
    with pytest.raises(DataError, match=r"x\.mhd: 100 bytes of voxels; DimSize = 4 5 6 needs 480"):
        pixels(tmp_path / "x.mhd", "mhd")


def test_correlations_are_those_of_numpy(tmp_path: Path) -> None:
    series = np.random.default_rng(3).normal(size=(20, 4))
    series[:, 2] = 7
    np.savetxt(tmp_path / "s.1D", series)
    with np.errstate(invalid="ignore"):
        expected = np.nan_to_num(np.corrcoef(series.T))[np.triu_indices(4, 1)]
    np.testing.assert_allclose(formats.correlations(tmp_path / "s.1D"), expected, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- refused


def test_a_bad_image_is_named(pets: Path) -> None:
    (pets / "cat" / "cat3_1.png").write_bytes((pets / "cat" / "cat3_1.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"cat/cat3_1\.png: can't be read as image.*leave its row out"):
        read(pets, HEAD + FILES)
    save(pets / "cat" / "cat3_1.png", plane(1, (9, 9)))
    with pytest.raises(DataError, match=r"cat3_1\.png: has shape \[9, 9, 1\], .*cat0_0\.png \[6, 5, 1\].*pixels\.size"):
        read(pets, HEAD + FILES)
    assert read(pets, HEAD + FILES, side=4).train.x.shape[1:] == (4, 4, 1)


def damaged(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).write_bytes(b"\x00\x01 no such thing" * 40)
    return tmp_path / name


@pytest.mark.parametrize(("format", "module"), [("dicom", "pydicom"), ("nifti", "nibabel"), ("npy", ""), ("mhd", "")])
def test_damaged_files_are_named(tmp_path: Path, format: str, module: str) -> None:
    if module:
        pytest.importorskip(module, reason=f"{format} needs {module}, of the extra [medical]")
    file = damaged(tmp_path, "bad.nii" if format == "nifti" else "bad.file")
    with pytest.raises(DataError, match=re.escape(str(file)) + ": "):
        formats.read(file, format, "grey")


def test_pickles_are_never_read(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{}, 1], object), allow_pickle=True)  # p2pfl itself never writes one
    with pytest.raises(DataError, match=r"o\.npy: can't be read as npy.*allow_pickle=False"):
        formats.read(tmp_path / "o.npy", "npy", "grey")


def test_an_extra_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, format in (("pydicom", "dicom"), ("nibabel", "nifti")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(DataError, match=f"needs {module}, which is not installed.*p2pfl-jax\\[medical\\]"):
            formats.read(tmp_path / "x", format, "grey")


CHANGES: Sequence[tuple[Callable[[str], str], str]] = [
    (
        lambda t: t.replace('"{class}/', '"pets/{class}/'),
        r"files\[0\]\.pattern=.*no file fits; there are 20 files, such",
    ),
    (
        lambda t: t.replace('["cat", "dog"]', '["Cat", "dog"]'),
        r"cat0_0\.png: class is 'cat'; it must be one of .*'Cat'",
    ),
    (
        lambda t: t.replace('column = "class"', 'column = "klass"'),
        r"label\.column='klass': no such column; did you mean 'class'",
    ),
    (lambda t: "site = 3\n" + t, r"site=3: must be a valid string"),
    (lambda t: "sites = 3\n" + t, r"sites=3: no such field of a layout; docs/data\.md"),
    (lambda t: t.replace('name = "t"\n', ""), "name: missing; it must be given"),
    (lambda t: t.replace('format = "image"', 'format = "jpeg"'), r"format='jpeg': must be 'image'"),
    (lambda t: t.replace('kind = "classes"', 'kind = "segmentation"'), "kind='segmentation' needs mask. Given: column"),
    (lambda t: t.replace("classes = ", "#"), "classes: missing; every site must have the same"),
    (
        lambda t: t + "[columns]\nx = { of = \"who\", pattern = '(' }",
        r"columns\.x\.pattern='\(': no regular expression",
    ),
    (lambda t: t + '[keep]\nwho = ["cow"]', r"keep\.who=\['cow'\]: no row of 20 has such a value"),
    (lambda t: t + '[split]\ncolumn = "who"\ntrain = ["cat0"]', r"cat1_0\.png: who is 'cat1', which split has in none"),
    (lambda t: t + '[split]\ncolumn = "who"', "split: give the values of the column"),
    (lambda t: t + "[pixels]\nsize = [4]", r"pixels\.size=\[4\]: must be \[height, width\]"),
    (lambda t: 'path = "../{who}.png"\n' + t, r"path='\.\./cat0\.png': must be a path below"),
    (lambda t: 'path = "a/*.png"\n' + t, r"path='a/\*\.png': a \* stands in names of folders only"),
    (lambda t: 'site = "i"\nmin_rows = 99\n' + t, "no row is left; left out sites with fewer than 99 rows: 0, 1"),
    (
        lambda t: 'site = "s"\nmin_rows = 9\n' + t + "[columns]\ns = { of = \"who\", pattern = 'cat|dog[1-4]' }",
        r"dog0_0\.png: site: s is empty in 2 of 20 rows; keep",
    ),
    (lambda t: t + "[pixels", "not a layout in TOML"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES, ids=range(len(CHANGES)))
def test_layouts_that_are_refused(pets: Path, change: Callable[[str], str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(pets, change(HEAD + FILES))


def test_arguments_that_are_refused(pets: Path) -> None:
    for arguments, words in (
        ({"missing": "mean"}, "missing='mean'"),
        ({"side": 0}, "side=0"),
        ({"limit": 0}, "limit=0"),
        ({"test_fraction": 1.0}, "test_fraction=1"),
    ):
        with pytest.raises(ConfigError, match=words):
            read(pets, HEAD + FILES, **arguments)
    with pytest.raises(DataError, match=r"cats: no such folder.*the root of the data set"):
        read(pets.parent / "cats", HEAD + FILES)
    with pytest.raises(DataError, match=r"data\.layout='chexprt': no such layout; .*did you mean 'chexpert'"):
        folder.load(pets, "chexprt")


def test_masks_that_mean_nothing_are_refused(pets: Path) -> None:
    text = HEAD.replace('"classes"', '"segmentation"') + FILES.replace(
        'column = "class"', 'mask = "{class}/{who}_{i}.png"'
    )
    with pytest.raises(
        DataError, match=r"cat1_0\.png: the mask holds 2, which is none of the classes cat, dog; say what"
    ):
        read(pets, text)


def test_every_field_of_a_layout_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text("utf-8")
    tables = (layout.Files, layout.TableFile, layout.Join, layout.PatternColumn, layout.Label, layout.Split,
              layout.Pixels, layout.Features, Layout)  # fmt: skip
    for table in tables:
        for field in dataclasses.fields(table):
            assert re.search(rf"`\[*{field.name}\b|`{field.name}`|\b{field.name} = ", page), (
                table.__name__,
                field.name,
            )
    for name in (*formats.FORMATS, "series", "table"):
        assert f"`{name}`" in page


def test_the_examples_of_the_page_are_layouts(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text("utf-8")
    examples = [text for text in re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE) if "origin" in text]
    assert len(examples) == 2
    for text in examples:
        (tmp_path / "x.toml").write_text(text, "utf-8")
        assert layout.read(tmp_path / "x.toml").group == "patient"
