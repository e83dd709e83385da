"""Whole volumes: one frame and spacing, patches and windows, the cache, Dice of patients; all on generated files."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data_layouts import brats2023, dicom

from p2pfl.config.experiment import load
from p2pfl.data import cache, folder, formats, iid, new_rows, pixels, volumes
from p2pfl.data.cache import FOLDER
from p2pfl.data.dataset import Recipe
from p2pfl.data.image import ReadImage, directions
from p2pfl.data.new_rows import NewVolume
from p2pfl.data.partition import checked
from p2pfl.data.stored import Stored
from p2pfl.data.volumes import VolumeTable
from p2pfl.errors import ConfigError, DataError
from p2pfl.federation.federation import build
from p2pfl.federation.tasks import task
from p2pfl.learning import metrics
from p2pfl.learning.stitching import Stitching
from p2pfl.runs import cases, masks, use
from p2pfl.runs.loaded import load_run
from p2pfl.runs.run import run

nibabel = pytest.importorskip("nibabel", reason="NIfTI needs nibabel, of the extra [medical]")

LAYOUT = """
name = "balls"
origin = "here"
kind = "segmentation"
format = "nifti"
classes = ["background", "ball"]
site = "site"

[[files]]
pattern = "{site}/{case}_image.nii.gz"

[label]
mask = "{site}/{case}_mask.nii.gz"

[pixels]
slices = "volume"
intensity = "none"

[volume]
patch = [6, 6, 6]
patches = 4
"""
SIZE = (9, 10, 11)


def ball(number: int, size: Sequence[int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """An image and a mask: a bright ball on a slope, elsewhere in each."""
    rng = np.random.default_rng(number)
    middle = np.array(size) / 2 + rng.uniform(-1.5, 1.5, 3)
    at = np.stack(np.meshgrid(*(np.arange(length) for length in size), indexing="ij"), axis=-1)
    mask = (np.linalg.norm(at - middle, axis=-1) < 3).astype(np.uint8)
    image = 0.6 * mask + 0.02 * at.sum(axis=-1) / 3 + rng.normal(0, 0.05, size)
    return image.astype(np.float32), mask


def write(file: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), file)


def tree(root: Path, volumes_of_site: int = 3, layout: str = LAYOUT) -> Path:
    for number in range(2 * volumes_of_site):
        image, mask = ball(number)
        for name, array in (("image", image), ("mask", mask)):
            write(root / f"data/{'ab'[number % 2]}/{number}_{name}.nii.gz", array)
    (root / "balls.toml").write_text(layout, "utf-8")
    return root / "data"


def read(root: Path, **options: Any) -> Any:
    return folder.load(root, str(root.parent / "balls.toml"), test_fraction=0.34, **options)


# ---------------------------------------------------------------------------------------------- frame and spacing


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SRA", "PIL"])
def test_a_volume_is_turned_to_one_frame_however_it_was_stored(codes: str) -> None:
    image = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = (5, 6, 7)
    turn = nibabel.orientations.axcodes2ornt(codes)
    stored = nibabel.Nifti1Image(image, affine).as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), turn)
    )
    given = ReadImage(np.asarray(stored.dataobj), True, affine=stored.affine)
    assert directions(given.affine) == codes
    found = volumes.brought(given, VolumeTable(patch=(1, 1, 1)), Path("a.nii"))
    np.testing.assert_array_equal(found.array, image)
    np.testing.assert_allclose(found.affine, affine)
    assert bool(found.notes) == (codes != "RAS")


def test_the_spacing_becomes_the_one_that_is_stated_and_nothing_moves() -> None:
    """A slope in mm is the same slope on any grid inside, as linear interpolation has it; labels stay labels."""
    spacing = np.array([2.0, 1.0, 3.0])
    affine = np.diag([*spacing, 1.0])
    at = np.stack(np.meshgrid(*(np.arange(length) for length in (8, 12, 6)), indexing="ij"), axis=-1)
    slope = (at * spacing) @ np.array([1.0, 10.0, 100.0])
    picture = ReadImage(slope, True, affine=affine)
    volume = VolumeTable(patch=(1, 1, 1), spacing=(1.0, 2.0, 1.5))
    found = volumes.brought(picture, volume, Path("a.nii"))
    assert found.array.shape == (16, 6, 12) and "resampled to 1 x 2 x 1.5 mm" in found.notes[-1][0]
    inner = tuple(slice(2, length - 2) for length in found.array.shape)
    grid = np.stack(np.meshgrid(*(np.arange(length) for length in found.array.shape), indexing="ij"), axis=-1)
    where = grid @ found.affine[:3, :3].T + found.affine[:3, 3]  # type: ignore[index]
    np.testing.assert_allclose(found.array[inner], (where @ np.array([1.0, 10.0, 100.0]))[inner], rtol=1e-5)
    mask = volumes.brought(picture._replace(array=at[..., 0] // 4 * 7), volume, Path("m.nii"), labels=True)
    assert set(np.unique(mask.array)) == {0, 7} and (mask.array == 7).mean() == 0.5
    with pytest.raises(DataError, match="nobody knows their spacing"):
        volumes.brought(picture._replace(affine=None), volume, Path("a.npy"))


def test_a_series_of_dicom_is_brought_like_a_file(tmp_path: Path) -> None:
    """Slices of 2 x 1 mm, 3 mm apart, written in disorder: DICOM's own directions are left, posterior, superior."""
    at = np.stack(np.meshgrid(*(np.arange(length) for length in (6, 8, 5)), indexing="ij"), axis=-1)
    slope = np.round(at @ np.array([20.0, 10.0, 300.0])).astype(np.uint16)  # along rows, columns, slices
    for place in (3, 0, 4, 1, 2):
        dicom(
            tmp_path / f"series/{place}.dcm", slope[:, :, place], ImagePositionPatient=[0, 0, 3 * place],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[2, 1], SeriesInstanceUID="1.2",
        )  # fmt: skip
    volume = VolumeTable(patch=(1, 1, 1), spacing=(1.0, 1.0, 1.0))
    found = volumes.brought(formats.read(tmp_path / "series", "dicom", "grey"), volume, tmp_path / "series")
    assert found.array.shape == (8, 12, 15) and [note[0][:17] for note in found.notes] == [
        "volumes turned to",
        "volumes resampled",
    ]
    np.testing.assert_allclose(np.diff(found.array[:, 6, 7]), -10, rtol=1e-5)  # to the right
    np.testing.assert_allclose(np.diff(found.array[4, 2:-2, 7]), -10, rtol=1e-4)  # to anterior, 20 in 2 mm
    np.testing.assert_allclose(np.diff(found.array[4, 6, 2:-2]), 100, rtol=1e-4)  # to superior


@pytest.mark.more
def test_files_in_any_frame_and_spacing_give_the_same_rows(tmp_path: Path) -> None:
    """The whole way, from files: site b stores left-posterior, at half the spacing in one axis."""
    straight = tree(tmp_path / "straight")
    other = tmp_path / "turned/data"
    for file in sorted(straight.rglob("*.nii.gz")):
        stored = nibabel.load(file)
        if file.parent.name == "b":
            twice = np.repeat(np.asarray(stored.dataobj), 2, axis=1)
            fine = nibabel.Nifti1Image(
                twice, np.diag([1, 0.5, 1, 1]) + np.array([[0, 0, 0, 0], [0, 0, 0, -0.25], *[[0] * 4] * 2])
            )
            turn = nibabel.orientations.ornt_transform(*(nibabel.orientations.axcodes2ornt(c) for c in ("RAS", "PLS")))
            stored = fine.as_reoriented(turn)
        (other / file.parent.name).mkdir(parents=True, exist_ok=True)
        nibabel.save(stored, other / file.parent.name / file.name)
    (other.parent / "balls.toml").write_text(LAYOUT + "spacing = [1, 1, 1]\n", "utf-8")
    one, two = read(straight), read(other)
    np.testing.assert_allclose(one.train.x[:], two.train.x[:], atol=1e-5)
    np.testing.assert_array_equal(one.test.y[:], two.test.y[:])
    said = "; ".join(two.notes)
    assert "volumes turned to right, anterior, superior: 3, such as" in said and "(PLS)" in said
    assert "volumes resampled to 1 x 1 x 1 mm: 3, such as" in said
    assert two.image is not None and two.image.orientation == "RAS"


# -------------------------------------------------------------------------------------------------- patches, windows


def test_patches_are_drawn_by_counter_and_as_often_on_the_foreground_as_is_said() -> None:
    mask = np.zeros((20, 21, 22), np.uint8)
    mask[3, 4, 5], mask[10:12, 10:12, 10:12] = 1, 2
    known = volumes.places(mask, 3)
    assert np.bincount(known[:, 0]).tolist() == [0, 1, 8]
    wanted = VolumeTable(patch=(5, 5, 5), patches=400, foreground=0.25)
    start = volumes.drawn(mask.shape, known, wanted, 3, "a/b.nii")
    assert np.array_equal(start, volumes.drawn(mask.shape, known, wanted, 3, "a/b.nii"))
    assert not np.array_equal(start, volumes.drawn(mask.shape, known, wanted, 4, "a/b.nii"))
    more = volumes.drawn(mask.shape, known, replace(wanted, patches=800), 3, "a/b.nii")
    assert np.array_equal(more[200:400], start[200:]), "a patch depends on its number alone"
    assert (start >= 0).all() and (start + 5 <= mask.shape).all()
    centred = start[:100] + 2
    assert {mask[tuple(place)] for place in centred} == {1, 2}
    assert 35 < sum(mask[tuple(place)] == 1 for place in centred) < 65, "each class as often, however small it is"
    assert len(np.unique(start[100:], axis=0)) > 250
    empty = volumes.drawn((3, 9, 9), known[:0], VolumeTable(patch=(5, 5, 5), foreground=1.0), 0, "c")
    assert (empty[:, 0] == 0).all() and empty[:, 1].max() <= 4


@pytest.mark.parametrize("size, overlap", [((20, 17, 8), 0.5), ((8, 8, 9), 0.0), ((30, 8, 8), 0.25), ((3, 8, 10), 0.5)])
def test_windows_cover_every_voxel_and_what_is_put_together_is_the_volume(
    size: tuple[int, int, int], overlap: float
) -> None:
    patch, truth = (8, 8, 8), np.random.default_rng(0).integers(0, 3, size)
    starts = volumes.windows(size, patch, overlap)
    gaps = [np.diff(np.unique(starts[:, axis])) for axis in range(3)]
    assert all((gap <= 8 * (1 - overlap)).all() for gap in gaps)
    whole = Stitching(size, patch, 3)
    for start in starts:
        own = volumes.patch_of(np.eye(3)[truth], start, patch)
        assert own.shape == (*patch, 3)
        whole.add(own[None], start[None])
    np.testing.assert_allclose(whole.probabilities(), np.eye(3)[truth], atol=1e-5)


def test_the_middle_of_a_window_counts_more_than_its_border() -> None:
    whole = Stitching((12, 8, 8), (8, 8, 8), 1)
    for start, value in ((0, 0.0), (4, 1.0)):
        whole.add(np.full((1, 8, 8, 8, 1), value), np.array([[start, 0, 0]]))
    along = whole.probabilities()[:, 4, 4, 0]
    assert (
        (np.diff(along) >= 0).all() and along[4] < 0.05 and along[7] > 0.95 and along[5] == pytest.approx(1 - along[6])
    )


# ----------------------------------------------------------------------------------------------- rows, read as asked


def test_rows_are_patches_of_the_volumes_and_only_those_asked_for_are_read(tmp_path: Path) -> None:
    root = tree(tmp_path)
    found = read(root)
    train, test = found.train, found.test
    assert isinstance(train.x, Stored) and train.x.shape == (16, 6, 6, 6, 1) and train.y.shape == (16, 6, 6, 6)
    assert train.site is not None and np.bincount(train.site).tolist() == [8, 8]
    assert test.case is not None and test.case.size is not None and len(test.case.size) == 2
    assert len(test.x) == sum(len(volumes.windows(size, (6, 6, 6), 0.5)) for size in test.case.size)
    assert any(
        "16 patches of 6 x 6 x 6 voxels are drawn from 4 volumes, 2 of 4 centred" in note for note in found.notes
    )
    for row in (0, 5, 15):  # against the files themselves, superior first
        inner = [np.moveaxis(ball(number)[0], 2, 0) for number in range(6)]
        patch = np.asarray(train.x[row])[..., 0]
        assert any(
            np.array_equal(whole[a : a + 6, b : b + 6, c : c + 6], patch)
            for whole in inner
            for a, b, c in itertools.product(*(range(length - 5) for length in whole.shape))
        )
    assert np.array_equal(train.x[np.array([[1, 3], [0, 2]])][1, 0], train.x[0])
    again = read(root, seed=0)
    assert np.array_equal(again.train.x[:], train.x[:]) and again.train.x.digest() == train.x.digest()
    assert not np.array_equal(read(root, seed=1).train.x[:], train.x[:])


def test_pieces_of_a_volume_stay_at_one_node(tmp_path: Path) -> None:
    found = read(tree(tmp_path))
    parts = iid(found, 4, seed=0)
    of = found.train.case.of
    assert [len(np.unique(of[rows])) for rows in parts.train] == [1] * 4
    with pytest.raises(DataError, match="more than the 4 volumes"):
        iid(found, 5, seed=0)
    test = [np.arange(len(found.test.y)), *[np.zeros(0, int)]]
    torn = [np.arange(0, 16, 2), np.arange(1, 16, 2)]
    with pytest.raises(DataError, match="train: the rows of a volume or patient are dealt to 2 nodes"):
        checked((torn, test), found, 2, "mine")


# ------------------------------------------------------------------------------------------------------- the cache


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are decoded from now on."""
    seen: list[str] = []
    inner = pixels.arrays

    def counted(layout: Any, entry: Any) -> Any:
        seen.append(entry.files[0].name)
        return inner(layout, entry)

    monkeypatch.setattr(pixels, "arrays", counted)
    return seen


def test_a_cache_is_made_once_and_anew_when_a_file_or_a_setting_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, seen = tree(tmp_path), decoded(monkeypatch)
    read(root)
    assert len(seen) == 6
    read(root, seed=3, volume=VolumeTable(patch=(4, 4, 4)))
    assert len(seen) == 6, "which patches are drawn is no matter of what is decoded"
    read(root, volume=VolumeTable(patch=(4, 4, 4), spacing=(2.0, 2.0, 2.0)))
    assert len(seen) == 12
    os.utime(root / "a/0_image.nii.gz", ns=(1, 1))
    read(root)
    assert len(seen) == 18
    assert len([*(root / FOLDER).iterdir()]) == 3 and (root / FOLDER).stat().st_mode & 0o077 == 0


def test_a_cache_that_was_interrupted_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, seen = tree(tmp_path), decoded(monkeypatch)
    monkeypatch.setattr(cache, "STEP", 1)
    whole = read(root).train.x[:]
    [place] = (root / FOLDER).iterdir()
    for cut in (1, 40):  # in the middle of a line, and of several; x keeps what no line speaks of
        index = (place / "index.jsonl").read_bytes()
        lines = index.split(b"\n")
        (place / "index.jsonl").write_bytes(b"\n".join(lines[:3]) + b"\n" + lines[3][:cut])
        seen.clear()
        np.testing.assert_array_equal(read(root).train.x[:], whole)
        assert len(seen) == 3
    with (place / "x").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(DataError, match=r"is damaged.*remove the folder"):
        read(root)


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / FOLDER).write_text("in the way")
    with pytest.raises(DataError, match=r'can\'t be kept there.*data.cache = "/scratch/p2pfl"'):
        read(root)
    found = read(root, cache=str(tmp_path / "elsewhere"))
    assert isinstance(found.train.x, Stored) and len([*(tmp_path / "elsewhere").iterdir()]) == 1


@pytest.mark.more
def test_two_processes_that_make_a_cache_at_once_make_one(tmp_path: Path) -> None:
    root = tree(tmp_path, 8)
    code = (
        "import sys, hashlib; from p2pfl.data import folder; x = folder.load(sys.argv[1], sys.argv[2]).train.x;"
        "print(hashlib.sha256(x[:].tobytes()).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(root), str(tmp_path / "balls.toml")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert said[0] == said[1] and all(process.returncode == 0 for process in both)
    [place] = (root / FOLDER).iterdir()
    lines = (place / "index.jsonl").read_text().splitlines()
    assert len(lines) == 16 and (place / "x").stat().st_size == sum(
        4 * int(np.prod(shape)) for line in lines for shape in json.loads(line)["shapes"]
    )


def test_images_from_the_cache_are_those_from_memory(tmp_path: Path) -> None:
    """Slices of volumes, which are of one shape: the same rows either way, and Dice of each volume."""
    layout = LAYOUT.replace('slices = "volume"', 'slices = "all"').replace(
        "[volume]\npatch = [6, 6, 6]\npatches = 4\n", ""
    )
    root = tree(tmp_path, layout=layout)
    plain, kept = read(root), read(root, cache=True)
    assert isinstance(plain.train.x, np.ndarray) and isinstance(kept.train.x, Stored)
    for one, two in ((plain.train, kept.train), (plain.test, kept.test)):
        np.testing.assert_array_equal(one.x, two.x[:])
        np.testing.assert_array_equal(one.y, two.y[:])
        assert one.case is not None and two.case is not None and np.array_equal(one.case.of, two.case.of)
    assert plain.notes == kept.notes and plain.image == kept.image
    assert any("of all slices of a volume" in note for note in plain.notes)


@pytest.mark.parametrize(
    "table, said",
    [
        ('[pixels]\nslices = "all"\n[volume]\npatch = [6, 6, 6]', r'volume: is of whole volumes.*slices = "volume"'),
        ('[pixels]\nslices = "volume"\nsize = [6, 6, 6]\n[volume]\npatch = [6, 6, 6]', "give one"),
        ('[pixels]\nslices = "volume"\n[volume]\nspacing = [1, 1, 1]', "needs patch, or pixels.size"),
        ('[pixels]\nslices = "volume"\n[volume]\npatch = [6, 6]', "volume.patch"),
        ('[pixels]\nslices = "volume"\n[volume]\npatch = [6, 6, 6]\noverlap = 1.0', "volume.overlap"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, table: str, said: str) -> None:
    root = tree(tmp_path, 1, LAYOUT[: LAYOUT.index("[pixels]")] + table + "\n")
    with pytest.raises(DataError, match=said):
        read(root)


# ---------------------------------------------------------------------------------------- the whole way, in all drivers

EXPERIMENT = """
name = "balls"
rounds = 2
baselines = false
[data]
source = "folder"
path = "data"
layout = "balls.toml"
partition = "by_site"
test_fraction = 0.34
[model]
name = "unet"
channels = [2, 4]
[training]
optimizer = { name = "sgd", learning_rate = 0.1 }
batch_size = 4
local_steps = 3
[topology]
graph = "ring"
nodes = 2
[algorithm]
name = "dsgd"
"""


def experiment(root: Path) -> Path:
    file = root / "experiment.toml"
    file.write_text(EXPERIMENT, "utf-8")
    return file


def test_a_node_reads_its_own_volumes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to build the federation, its own training volumes in a round; and the test rows only to be tested."""
    tree(tmp_path)
    build(load(experiment(tmp_path)))  # makes the cache
    seen: list[int] = []
    inner = cache.Cached.image
    monkeypatch.setattr(cache.Cached, "image", lambda kept, row: (seen.append(row), inner(kept, row))[1])
    federation = build(load(experiment(tmp_path)))
    one = task(federation, 1)
    assert not seen
    batches = one.batches(1)
    assert batches["x"].shape == (3, 4, 6, 6, 6, 1) and batches["y"].shape == (3, 4, 6, 6, 6)
    sites = [name.parent.name for name in sorted((tmp_path / "data").rglob("*_image.nii.gz"))]
    assert {sites[row] for row in seen} == {"b"}
    assert len(seen) == 12, "no more than the rows of its batches"
    assert one.x[np.zeros((0, 1), np.int64)].shape == (0, 1, 6, 6, 6, 1)  # of a round without local steps
    watched = build(load(tmp_path / "experiment.toml", ["training.patience=2"])).dataset
    assert isinstance(watched.train.x, Stored) and watched.validation is not None
    assert isinstance(watched.validation.x, Stored) and len(seen) == 12
    careful = task(build(load(tmp_path / "experiment.toml", ["training.patience=2"])), 1)
    assert len(seen) == 12 and careful.ahead > 0 and len(careful.batches(1)["x"]) == careful.ahead + 3


def test_images_of_a_cache_are_not_degraded_and_a_cache_that_lost_its_end_is_not_gone_on_with(tmp_path: Path) -> None:
    tree(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.degrade: degraded images lie in memory"):
        build(load(experiment(tmp_path), ['data.degrade={by="noise", noise=0.1}']))
    (folder,) = (tmp_path / "data" / FOLDER).iterdir()
    lines = (folder / "index.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "index.jsonl").write_bytes(b"".join(lines[:-1]))
    with (folder / "x").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(DataError, match="holds less than its index says"):
        build(load(experiment(tmp_path)))


def test_splits_are_not_drawn_anew_of_what_is_in_a_cache(tmp_path: Path) -> None:
    tree(tmp_path)
    with pytest.raises(ConfigError, match=r"evaluation\.splits: rows that are read from a cache"):
        build(load(experiment(tmp_path), ["evaluation.splits=2"]))


@pytest.mark.more
def test_every_driver_ends_in_the_same_models_and_scores_whole_volumes(tmp_path: Path) -> None:
    tree(tmp_path)
    file, models = experiment(tmp_path), {}
    for kind in ("simulate", "virtual"):
        summary = run(load(file, [f'driver.kind="{kind}"', "evaluation.every=2"]), tmp_path / kind)
        models[kind] = load_run(tmp_path / kind).models
        figures = summary.as_dict()
        assert 0 <= figures["dice_ball_own_mean"] <= 1
        lines = (tmp_path / kind / "dice.csv").read_text().splitlines()
        assert lines[0] == "node,case,case_of,class,dice,jaccard" and len(lines) == 1 + 2 * 2
        table = json.loads((tmp_path / kind / "assessment.json").read_text())
        assert table["rows"]["0"]["test"]["cases"] == 1 and table["rows"]["0"]["train"]["cases"] == 2
    use.predict(tmp_path / "virtual", tmp_path / "data/a", tmp_path / "masks.npz", 0, None, lambda text: None)
    found = np.load(tmp_path / "masks.npz")
    named = [str(file) for file in found["files"] if "_image" in str(file)]
    assert len(named) == 3 and found["predicted_0"].shape == (SIZE[2], *SIZE[:2]) and set(found) > {"predicted_5"}
    use.predict(tmp_path / "virtual", tmp_path / "data/a", tmp_path / "masks", 0, None, lambda text: None)
    for number, name in enumerate(found["files"]):
        laid = np.asarray(nibabel.load(tmp_path / "masks" / str(name)).dataobj)
        np.testing.assert_array_equal(np.moveaxis(laid, 2, 0), found[f"predicted_{number}"])
    with pytest.raises(ConfigError, match=r"a name without an ending for a folder of \.nii\.gz"):
        use.predict(tmp_path / "virtual", tmp_path / "data/a", tmp_path / "masks.csv", 0, None, lambda text: None)
    for one, two in zip(*(models[kind].values() for kind in models), strict=True):
        for name in one:
            np.testing.assert_allclose(one[name], two[name], atol=1e-4)


class Threshold:
    """A model that answers 1 where a voxel is above 1/2, and how many volumes it has been given."""

    classes, said, given = ("background", "ball"), "a threshold", 0

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def volumes(self, path: Path | str) -> Iterator[tuple[NewVolume, np.ndarray]]:
        for volume in new_rows.of_volumes(Path(path), self.recipe, (6, 6, 6, 1)):
            self.given += 1
            whole = Stitching(volume.x.shape[:3], volume.patch, 2)
            for at in range(0, len(volume.start), 5):
                windows, start = volume.windows(at, 5)
                whole.add(np.concatenate([windows <= 0.5, windows > 0.5], axis=-1).astype(np.float32), start)
            yield volume, whole.probabilities()


def test_masks_lie_on_the_voxels_of_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in another frame and spacing, answered one after another: NIfTI beside each, and an .npz of all."""
    root = tree(tmp_path, 2, LAYOUT + "spacing = [1, 1, 1]\n")
    model, new = Threshold(read(root).recipe), tmp_path / "new"
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = (-7, 3, 40)
    plain = nibabel.Nifti1Image(np.repeat(np.repeat(ball(0)[1], 2, 0), 2, 1).astype(np.float32), affine)
    turn = nibabel.orientations.ornt_transform(*(nibabel.orientations.axcodes2ornt(c) for c in ("RAS", "SPL")))
    (new / "ward").mkdir(parents=True)
    nibabel.save(plain, new / "one.nii")
    nibabel.save(plain.as_reoriented(turn), new / "ward/two.nii.gz")
    opened: list[int] = []
    inner = new_rows.arrays
    monkeypatch.setattr(new_rows, "arrays", lambda *given: (opened.append(model.given), inner(*given))[1])
    said: list[str] = []
    write(tmp_path / ".masks.part" / "stale.nii.gz", ball(0)[1])  # left by one that was killed
    masks.write(model, new, tmp_path / "masks", said.append)
    assert {path.name for path in (tmp_path / "masks").rglob("*.nii.gz")} == {"one.nii.gz", "two.nii.gz"}
    assert opened == [0, 1], "the second file is read when the first has been answered"
    assert said[-1] == "a threshold answers 2 volumes" and "volumes turned" in "".join(said)
    for name in ("one.nii", "ward/two.nii.gz"):
        given, made = nibabel.load(new / name), nibabel.load(tmp_path / "masks" / f"{name.split('.')[0]}.nii.gz")
        np.testing.assert_allclose(made.affine, given.affine)
        np.testing.assert_array_equal(np.asarray(made.dataobj), np.asarray(given.dataobj) > 0.5)
    masks.write(model, new, tmp_path / "masks.npz", said.append)
    found = np.load(tmp_path / "masks.npz")
    assert found["files"].tolist() == ["one.nii", "ward/two.nii.gz"] and found["classes"].tolist() == [*model.classes]
    np.testing.assert_array_equal(found["predicted_0"], found["predicted_1"])
    np.testing.assert_allclose(found["spacing"], 1)
    at = np.argwhere(found["predicted_1"]).mean(axis=0)  # the middle of the ball, in mm
    truth = np.argwhere(np.asarray(plain.dataobj)).mean(axis=0)
    np.testing.assert_allclose((found["affine_1"] @ [*at, 1])[:3], (affine @ [*truth, 1])[:3], atol=0.05)


def test_each_volume_has_a_mask_with_a_name_of_its_own(tmp_path: Path) -> None:
    root, new = tree(tmp_path, 2), tmp_path / "new"
    for number, name in enumerate(("a.nii", "a.nii.gz", "b.nii")):
        write(new / name, ball(number)[0])
    model = Threshold(read(root).recipe)
    masks.write(model, new, tmp_path / "masks", lambda text: None)
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {"a.nii.nii.gz", "a.nii.gz.nii.gz", "b.nii.gz"}
    (volume, *_), name = [each for each, _ in model.volumes(new)], "masks of a series"

    class Series(Threshold):
        def volumes(self, path: Path | str) -> Iterator[tuple[NewVolume, np.ndarray]]:
            yield volume._replace(file="."), np.zeros((*volume.x.shape[:3], 2))

    masks.write(Series(model.recipe), new, tmp_path / name, lambda text: None)  # whose slices lie in `new` itself
    assert [path.name for path in (tmp_path / name).iterdir()] == ["new.nii.gz"]


def test_new_volumes_of_several_sequences_are_found_as_those_of_the_training(tmp_path: Path) -> None:
    brats2023(tmp_path / "data")
    layout = Path(__file__).parents[1] / "experiments" / "data" / "brats2023.toml"
    patches = VolumeTable(patch=(8, 8, 8), patches=2)
    recipe = folder.load(tmp_path / "data", str(layout), volume=patches).recipe
    for file in (tmp_path / "data").rglob("*-seg.nii.gz"):
        file.unlink()
    found = [*new_rows.of_volumes(tmp_path / "data", recipe, (8, 8, 8, 4))]
    assert [volume.x.shape for volume in found] == [(104, 12, 10, 4)] * 4
    assert found[0].file == "BraTS-GLI-00000-000/BraTS-GLI-00000-000-t2f.nii.gz"
    next((tmp_path / "data").rglob("*-t1c.nii.gz")).unlink()
    with pytest.raises(DataError, match=r"-t1c\.nii\.gz: no such file, and .*-t2f\.nii\.gz is there"):
        [*new_rows.of_volumes(tmp_path / "data", recipe, (8, 8, 8, 4))]
    with pytest.raises(DataError, match="give the folder in which such files lie"):
        [*new_rows.of_volumes(tmp_path, recipe, (8, 8, 8, 4))]


def test_a_file_that_does_not_fit_leaves_no_half_of_the_masks(tmp_path: Path) -> None:
    root = tree(tmp_path, 2)
    model, new = Threshold(read(root).recipe), tmp_path / "new"
    write(new / "a.nii.gz", ball(0)[0])
    (new / "b.nii.gz").write_bytes(b"no image")
    for out in ("masks", "masks.npz"):
        with pytest.raises(DataError, match=r"b\.nii\.gz: "):
            masks.write(model, new, tmp_path / out, lambda text: None)
    assert {each.name for each in tmp_path.iterdir()} == {"balls.toml", "data", "new"}


def test_dice_of_a_volume_is_that_of_all_its_voxels(tmp_path: Path) -> None:
    """Against putting the volume together by hand, with a model that sees a threshold."""
    tree(tmp_path, 2)
    federation = build(load(experiment(tmp_path)))

    def answer(x: np.ndarray) -> np.ndarray:
        return np.concatenate([0.5 - x, x - 0.5], axis=-1) * 50

    found = cases.overlaps(federation, answer, np.arange(len(federation.dataset.test.y)))
    tested = [name for name in federation.dataset.test.case.size]  # type: ignore[union-attr]
    assert len(found) == len(tested) == 2
    every = []
    for number in range(4):
        image, mask = ball(number)
        guess = (image > 0.5).astype(int)
        every.append([(guess & mask).sum(), guess.sum(), mask.sum()])
    assert all(row[0].tolist() in every for row in found)
    dice, _ = metrics.shared(found)
    assert dice.shape == (1, 2) and (dice > 0.8).all()


CALLS: Callable[..., Any] = run
