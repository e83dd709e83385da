"""Images as hospitals have them: deep, turned, in frames, inverted, beside stray files, with masks of another grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_data_folder import FILES, HEAD, dicom, pixels, plane, read, save, volume, wanted

from p2pfl.data import dictionary, layout, new_rows
from p2pfl.data.dictionary import Dictionary
from p2pfl.data.image import ReadImage
from p2pfl.data.pixels import Arrays, Entry, arrays
from p2pfl.errors import DataError

AXIAL = [1, 0, 0, 0, 1, 0]
REPORT = "1.2.840.10008.5.1.4.1.1.88.11"


def segmented(image: Path, mask: Path, format: str, **given: Any) -> Arrays:
    """The image and the mask of a row, as segmentation reads them."""
    kind = layout.Label(mask="m", values={"0": "a", "1": "b", "255": "b"})
    given = {"slices": "all", **given} if format != "image" else given
    return arrays(dataclasses.replace(wanted(format, **given), kind="segmentation", label=kind), Entry((image,), mask))


# ------------------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("value", [np.uint8(51), np.uint16(13107)])
def test_a_picture_is_as_bright_in_both_modes(tmp_path: Path, ending: str, value: Any) -> None:
    save(tmp_path / f"p.{ending}", np.full((4, 6), value))
    for mode, channels in (("grey", 1), ("rgb", 3)):
        (x,) = pixels(tmp_path / f"p.{ending}", "image", mode=mode)
        assert x.shape == (4, 6, channels)
        np.testing.assert_allclose(x, 0.2, atol=1e-6)


def test_a_picture_of_32_bits_has_no_white(tmp_path: Path) -> None:
    for values, scaling in (([0, 65535], "fixed"), ([-5, 70000], "percentiles")):
        save(tmp_path / "i.tif", np.array([values] * 2, np.int32))
        found = arrays(wanted("image"), Entry((tmp_path / "i.tif",)))
        assert found.facts is not None and found.facts.scaling == scaling
        np.testing.assert_allclose(found.x[0][0, :, 0], [0, 1])


# Orientation -> the array that is stored, so that a viewer who follows the tag shows it upright (EXIF 2.32, 4.6.4 A).
STORED = {
    1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: np.transpose, 6: np.rot90,
    7: lambda x: np.rot90(x, 2).T, 8: lambda x: np.rot90(x, -1),
}  # fmt: skip


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_is_turned_by_its_tag_and_lies_on_its_mask(tmp_path: Path, orientation: int, ending: str) -> None:
    upright = np.zeros((32, 48), np.uint8)
    upright[:8, :24], upright[8:16, :8] = 255, 255  # the letter L lying down: no turn leaves it as it is
    tag = Image.Exif()
    tag[274] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    stored.save(tmp_path / f"i.{ending}", exif=tag, **({"quality": 95} if ending == "jpg" else {}))
    save(tmp_path / "m.png", upright)
    for size in ((), (16, 16)):
        found = segmented(tmp_path / f"i.{ending}", tmp_path / "m.png", "image", size=size)
        image, mask = found.x[0][..., 0] > 0.5, found.y[0] == 1
        assert mask.any() and (image & mask).sum() == (image | mask).sum()


def test_a_mask_that_would_be_stretched_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "i.png", plane(9, (30, 40)))
    save(tmp_path / "m.png", plane(1, (15, 20)))
    assert segmented(tmp_path / "i.png", tmp_path / "m.png", "image", size=(8, 8)).y[0].shape == (8, 8)
    save(tmp_path / "m.png", plane(1, (40, 30)))
    with pytest.raises(DataError, match=r"m\.png: the mask is 40 x 30, .*i\.png is 30 x 40 .*not the same proportions"):
        segmented(tmp_path / "i.png", tmp_path / "m.png", "image", size=(8, 8))


def test_pictures_that_their_type_makes_nearly_black_are_refused(tmp_path: Path) -> None:
    for i in range(12):
        save(tmp_path / "p" / ("cat", "dog")[i % 2] / f"a{i}_{i}.png", plane(0).astype(np.uint16) + 300 * i)
    with pytest.raises(DataError, match=r"16 bits whose brightest.*nearly black.*window = \[2048, 4096\]"):
        read(tmp_path / "p", HEAD + FILES)
    found = read(tmp_path / "p", HEAD + FILES + "[pixels]\nwindow = [2048, 4096]\n")
    assert found.image is not None and found.image.intensity == (0, 4095)
    seen = sorted({round(4095 * float(row.max())) for part in (found.train, found.test) for row in part.x})
    assert seen == [300 * i for i in range(12)]
    assert read(tmp_path / "p", HEAD + FILES + '[pixels]\nintensity = "full"\n').train.x.max() < 0.06


def test_arrays_of_unknown_scale_are_refused(tmp_path: Path) -> None:
    """As images in an .npz are: tests/test_data.py."""
    text = HEAD.replace('"image"', '"npy"') + FILES.replace(".png", ".npy")
    for i in range(12):
        path = tmp_path / "a" / ("cat", "dog")[i % 2] / f"a{i}_{i}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, plane(20 * i).astype(np.float64))
    with pytest.raises(DataError, match=r"a: images of 0 to 220, far from 0\.\.1.*pixels\.window"):
        read(tmp_path / "a", text)
    assert read(tmp_path / "a", text + '[pixels]\nintensity = "none"\n').train.x.max() > 100
    assert 0.5 < read(tmp_path / "a", text + "[pixels]\nwindow = [128, 256]\n").train.x.max() < 1
    np.save(tmp_path / "p.npy", np.full((4, 6), 13107, np.uint16))
    assert pixels(tmp_path / "p.npy", "npy")[0][0, 0, 0] == pytest.approx(0.2)


# --------------------------------------------------------------------------------------------------------------- DICOM


def item(**fields: Any) -> Any:
    """An item of a sequence."""
    found = pytest.importorskip("pydicom", reason="DICOM needs pydicom, of the extra [medical]").Dataset()
    for name, value in fields.items():
        setattr(found, name, value)
    return found


CT = np.random.default_rng(5).integers(900, 1200, (4, 3, 5)).astype(np.uint16)  # by number; at the depths below
DEPTHS = (30, 10, 40, 20)
RESCALE = {"RescaleSlope": 2, "RescaleIntercept": -1024, "RescaleType": "HU"}
WINDOW = {"WindowCenter": 1076, "WindowWidth": 601}


def single_files(folder: Path, slopes: Sequence[int] = (2, 2, 2, 2), **more: Any) -> Path:
    """The slices as single files, slice i with slopes[i]."""
    for i, (values, depth) in enumerate(zip(CT, DEPTHS, strict=True)):
        fields = {**RESCALE, **WINDOW, "RescaleSlope": slopes[i], "ImagePositionPatient": [0, 0, depth]}
        dicom(folder / f"{i}.dcm", values, **fields, ImageOrientationPatient=AXIAL, PixelSpacing=[2, 3], **more)
    return folder


def enhanced(path: Path, where: str, slopes: Sequence[int] = (2, 2, 2, 2), depths: Sequence[int] = DEPTHS) -> Path:
    """The same as frames of one file; slope and intercept stand in the functional groups of each frame, or shared."""
    rescales = [[item(**{**RESCALE, "RescaleSlope": slope})] for slope in slopes]
    frames = [item(PlanePositionSequence=[item(ImagePositionPatient=[0, 0, depth])]) for depth in depths]
    shared = item(PlaneOrientationSequence=[item(ImageOrientationPatient=AXIAL)],
                  PixelMeasuresSequence=[item(PixelSpacing=[2, 3])], FrameVOILUTSequence=[item(**WINDOW)])  # fmt: skip
    for frame, rescale in zip(frames if where == "frame" else [shared], rescales, strict=False):
        frame.PixelValueTransformationSequence = rescale
    groups = {"PerFrameFunctionalGroupsSequence": frames, "SharedFunctionalGroupsSequence": [shared]}
    return dicom(path, CT, NumberOfFrames=4, Modality="CT", **groups)


@pytest.mark.parametrize(
    ("where", "slopes"), [("shared", (2, 2, 2, 2)), ("frame", (2, 2, 2, 2)), ("frame", (1, 2, 3, 4))]
)
@pytest.mark.parametrize("intensity", ["auto", "none"])
def test_an_enhanced_file_is_the_volume_of_its_single_files(
    tmp_path: Path, where: str, slopes: Sequence[int], intensity: str
) -> None:
    given = wanted("dicom", slices="volume", intensity=intensity)
    one = arrays(given, Entry((enhanced(tmp_path / "e.dcm", where, slopes),)))
    many = arrays(given, Entry((single_files(tmp_path / "s", slopes),)))
    np.testing.assert_array_equal(one.x[0], many.x[0])
    assert one.facts == many.facts and one.facts is not None
    assert (one.facts.unit, one.facts.orientation) == ("HU", "PLS")
    by_hand = np.stack([CT[i] * slopes[i] - 1024.0 for i in (1, 3, 0, 2)])[..., None]
    by_hand = np.clip((by_hand - 1075.5) / 600 + 0.5, 0, 1) if intensity == "auto" else by_hand
    np.testing.assert_allclose(one.x[0], by_hand, atol=1e-5)
    assert np.unique(one.x[0]).size > 10, "not saturated"


def test_volumes_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"e\.dcm: 4 slices at 2 places: several times"):
        pixels(enhanced(tmp_path / "e.dcm", "shared", depths=(0, 10, 0, 10)), "dicom")
    # One position for all frames, as a dose grid has it, says nothing of their order: it is that of the file.
    one = dicom(tmp_path / "o.dcm", CT, NumberOfFrames=4, ImagePositionPatient=[0, 0, 5], ImageOrientationPatient=AXIAL)
    (x,) = pixels(one, "dicom", slices="volume", intensity="none")
    np.testing.assert_array_equal(x[..., 0], CT)
    single_files(tmp_path / "s")
    dicom(tmp_path / "s" / "9.dcm", CT[0], ImagePositionPatient=[0, 0, 99], ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    with pytest.raises(DataError, match="s: its slices lie in several planes; one series"):
        pixels(tmp_path / "s", "dicom")
    dicom(tmp_path / "s" / "9.dcm", CT[0], SeriesInstanceUID="1.2.3")
    with pytest.raises(DataError, match=r"s: holds 2 series, None: 4 files; 1\.2\.3: 1 files; one series to a folder"):
        pixels(tmp_path / "s", "dicom")


@pytest.mark.parametrize(
    "given",
    [{}, *({"intensity": rule} for rule in ("range", "zscore", "none")), {"window": (2000.0, 801.0)}, {"own": True}],
    ids=str,
)
def test_more_is_brighter_in_both_interpretations(tmp_path: Path, given: dict[str, Any]) -> None:
    """What MONOCHROME1 stores as 4095 - v is shown as bright as v. The window of a file speaks of what it holds."""
    bits: dict[str, Any] = {"BitsStored": 12, "HighBit": 11, "RescaleSlope": 2, "RescaleIntercept": -100}
    stored, mirror = CT[0], 2 * 4095 - 200  # the values of both ends, together
    files = []
    for name, values, centre in (("MONOCHROME2", stored, 2000), ("MONOCHROME1", 4095 - stored, mirror - 2000 + 1)):
        fields = {**bits, "PhotometricInterpretation": name}
        asked = dict(given)
        if asked.pop("own", False):
            fields |= {"WindowCenter": centre, "WindowWidth": 801}
        elif "window" in asked:
            asked["window"] = (centre, 801.0)
        files += pixels(dicom(tmp_path / f"{name}.dcm", values, **fields), "dicom", **asked)
    np.testing.assert_allclose(files[1], files[0], atol=1e-6)
    assert files[0].std() > 0.1


def test_colours_of_a_palette_are_those_of_its_table(tmp_path: Path) -> None:
    table = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16] for name in ("Red", "Green", "Blue")}
    ramp = np.arange(256, dtype=np.uint16) * 257
    for name, entries in (("Red", ramp), ("Green", ramp[::-1]), ("Blue", 0 * ramp)):
        table[f"{name}PaletteColorLookupTableData"] = entries.tobytes()  # type: ignore[assignment]
    path = dicom(tmp_path / "p.dcm", plane(51), PhotometricInterpretation="PALETTE COLOR", **table)
    (x,) = pixels(path, "dicom", mode="rgb")
    np.testing.assert_allclose(x[0, 0], [0.2, 0.8, 0], atol=1e-6)


# --------------------------------------------------------------------------------------------------------- stray files


def test_new_rows_of_series_are_read_as_those_of_the_training(tmp_path: Path) -> None:
    """A folder is a row: scaled as a whole, its slices in their order; what is no image is said."""
    wanted_layout = wanted("dicom", slices="volume", intensity="range")
    for name in ("a", "b"):
        single_files(tmp_path / "new" / name)
    (tmp_path / "new" / "a" / "notes.txt").write_text("no image")
    fields = {"layout": {"format": "dicom", "pixels": dataclasses.asdict(wanted_layout.pixels), "series": True}}
    found = new_rows.of_files(tmp_path / "new", fields, (), ())
    (volume,) = arrays(wanted_layout, Entry((tmp_path / "new" / "b",))).x
    np.testing.assert_array_equal(found.x, [volume, volume])
    assert found.known_as["file"] == ["a", "b"] and "not DICOM" in found.notes[0]
    with pytest.raises(DataError, match="a row is a folder that holds the slices of a series"):
        new_rows.of_files(next((tmp_path / "new" / "b").glob("*.dcm")), fields, (), ())


def test_stray_files_of_a_series_are_left_out_and_said(tmp_path: Path) -> None:
    clean = pixels(single_files(tmp_path / "clean"), "dicom", slices="volume")
    folder = single_files(tmp_path / "s")
    for name in (".DS_Store", "Thumbs.db", "README.txt"):
        (folder / name).write_bytes(b"\0\1no image")
    report(folder / "report.dcm")
    found = arrays(wanted("dicom", slices="volume"), Entry((folder,)))
    np.testing.assert_array_equal(found.x, clean)
    words = [" ".join(note) for note in found.notes]
    assert sum("that are not DICOM" in note for note in words) == 3
    assert sum("report.dcm: Basic Text SR Storage: holds no image" in note for note in words) == 1
    report(folder / "4.dcm", SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    with pytest.raises(DataError, match=r"4\.dcm: CT Image Storage whose pixels are missing; repair it, or leave"):
        pixels(folder, "dicom")
    (folder / "4.dcm").unlink()
    (folder / "2.dcm").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"2\.dcm: not a DICOM file, but named like one; repair it, or move it out"):
        pixels(folder, "dicom")
    (folder / "2.dcm").unlink()
    (folder / "3.dcm").unlink()
    with pytest.raises(DataError, match="a folder without DICOM images"):
        pixels(tmp_path, "dicom")


def report(path: Path, **fields: Any) -> None:
    """A structured report: no rows, no pixels."""
    dicom(path, CT[0], **{"SOPClassUID": REPORT, "Modality": "SR", **fields})
    pydicom = pytest.importorskip("pydicom", reason="DICOM needs pydicom, of the extra [medical]")
    header = pydicom.dcmread(path)
    for name in ("Rows", "Columns", "PixelData", "BitsAllocated", "BitsStored", "HighBit"):
        delattr(header, name)
    header.save_as(path)


def test_a_lost_slice_is_said_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    folder = single_files(tmp_path / "s")
    (folder / "3.dcm").unlink()
    (note,) = arrays(wanted("dicom", slices="volume"), Entry((folder,))).notes
    assert "unevenly apart" in note[0] and note[1].endswith("(10 to 20 mm)")
    (folder / "1.dcm").write_bytes((folder / "1.dcm").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"s/1\.dcm: its pixels can't be read"):
        pixels(folder, "dicom")


def test_stray_rows_are_left_out_and_said(tmp_path: Path) -> None:
    text = HEAD.replace('"image"', '"dicom"') + FILES.replace(".png", "")
    root = tmp_path / "d"
    for i in range(12):
        dicom(root / ("cat", "dog")[i % 2] / f"a{i}_{i}", CT[i % 4])
    report(root / "cat" / "r_1")
    (root / "cat" / "._a0_1").write_bytes(b"of a Macintosh")
    found = read(root, text)
    assert len(found.train.y) + len(found.test.y) == 12
    assert any(
        note.startswith("left out files that systems leave behind: 1, such as cat/._a0_1") for note in found.notes
    )
    assert any(note.startswith("left out rows of files that hold no image: 1, such as ") for note in found.notes)
    (root / "cat" / "notes_1").write_text("no image", "utf-8")
    with pytest.raises(DataError, match=r"notes_1: not a DICOM file; repair it, or leave its row out by the pattern"):
        read(root, text)


# ---------------------------------------------------------------------------------------------------- masks in space


LPS = np.array([[-2.0, 0, 0, 30], [0, -2, 0, 40], [0, 0, 3, -50], [0, 0, 0, 1]])


def nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nibabel = pytest.importorskip("nibabel", reason="NIfTI needs nibabel, of the extra [medical]")
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def lesion(shape: Sequence[int] = (8, 10, 6)) -> np.ndarray:
    found = np.zeros(shape, np.uint8)
    found[1:4, 2:5, 1:3] = 1
    return found


def moved(**change: float) -> np.ndarray:
    affine = LPS.copy()
    affine[0, 3] += change.get("origin", 0)
    affine[2, 2] *= change.get("spacing", 1)
    return affine


@pytest.mark.parametrize(
    "affine", [np.eye(4), moved(origin=4), moved(spacing=1.5)], ids=["identity", "origin", "spacing"]
)
def test_a_mask_that_lies_elsewhere_is_refused_with_both_affines(tmp_path: Path, affine: np.ndarray) -> None:
    image, mask = nifti(tmp_path / "i.nii", lesion() * 9.0, LPS), nifti(tmp_path / "m.nii", lesion(), affine)
    with pytest.raises(DataError, match=r"m\.nii: lies elsewhere than .*i\.nii") as caught:
        segmented(image, mask, "nifti")
    for stored in (affine, LPS):
        assert str((stored[:3] + 0.0).tolist()) in str(caught.value)


def overlap(found: Arrays) -> float:
    image = np.stack(found.x)[..., 0] > 0.5
    mask = np.stack(found.y) == 1
    return float((image & mask).sum() / (image | mask).sum())


def test_a_mask_of_another_grid_is_resampled_to_its_image(tmp_path: Path) -> None:
    """The oracle is nibabel.processing.resample_from_to(mask, image, order=0)."""
    image = nifti(tmp_path / "i.nii", lesion() * 9.0, LPS)
    # The same voxels with the axes stored otherwise: right, anterior, superior.
    turned = nifti(
        tmp_path / "m.nii",
        lesion()[::-1, ::-1],
        LPS @ np.array([[-1.0, 0, 0, 7], [0, -1, 0, 9], [0, 0, 1, 0], [0, 0, 0, 1]]),
    )
    assert overlap(segmented(image, turned, "nifti")) == 1 and segmented(image, turned, "nifti").notes == ()
    fine = np.kron(lesion(), np.ones((2, 2, 1), np.uint8))
    finer = LPS @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 1, 0], [0, 0, 0, 1]])
    found = segmented(image, nifti(tmp_path / "f.nii", fine, finer), "nifti")
    assert overlap(found) == 1 and "resampled" in found.notes[0][0]
    coarse = np.zeros((5, 6, 8), np.uint8)
    coarse[1:3, 2:4, 3:6] = 1
    rough = LPS @ np.array([[1.7, 0.1, 0, 0.4], [-0.1, 1.6, 0, 0.2], [0, 0, 0.8, -0.3], [0, 0, 0, 1]])
    found = segmented(image, nifti(tmp_path / "c.nii", coarse, rough), "nifti")
    nibabel, processing = pytest.importorskip("nibabel"), pytest.importorskip("nibabel.processing")
    expected = processing.resample_from_to(nibabel.load(tmp_path / "c.nii"), nibabel.load(image), order=0)
    expected = np.asanyarray(nibabel.as_closest_canonical(expected).dataobj)
    np.testing.assert_array_equal(np.stack(found.y, axis=2), expected)
    assert expected.sum() > 20
    with pytest.raises(DataError, match=r"e\.nii: \d+ % of it lie outside of .*i\.nii"):
        segmented(image, nifti(tmp_path / "e.nii", coarse, rough @ np.diag([1, 1, -1, 1.0])), "nifti")


def test_channels_and_metaimages_lie_on_one_another(tmp_path: Path) -> None:
    one, other = nifti(tmp_path / "t1.nii", volume(), LPS), nifti(tmp_path / "t2.nii", volume(), moved(origin=4))
    with pytest.raises(DataError, match=r"t2\.nii: lies elsewhere than .*t1\.nii, another channel of its row"):
        arrays(wanted("nifti"), Entry((one, other)))
    nifti(other, volume()[:, :, ::2], LPS)
    with pytest.raises(DataError, match=r"t2\.nii: lies .*sizes are \(4, 5, 3\) and \(4, 5, 6\)"):
        arrays(wanted("nifti"), Entry((one, other)))
    head = "ObjectType = Image\nNDims = 3\nDimSize = 4 5 6\nElementType = MET_FLOAT\nElementSpacing = 2 2 3\n"
    for name, offset in (("i", "1 2 3"), ("m", "1 2 9")):
        data = volume() if name == "i" else (volume() > 300).astype(np.float32)
        text = f"{head}Offset = {offset}\nElementDataFile = LOCAL\n"
        (tmp_path / f"{name}.mha").write_bytes(text.encode() + data.tobytes(order="F"))
    with pytest.raises(DataError, match=r"m\.mha: lies elsewhere than .*-9\.0|9\.0\]\]"):
        segmented(tmp_path / "i.mha", tmp_path / "m.mha", "mhd")


def test_a_read_image_says_no_more_than_its_file() -> None:
    found = ReadImage(np.zeros((2, 2)), False)
    assert (found.unit, found.affine, found.mirror, found.notes) == ("unknown", None, None, ())


@pytest.mark.parametrize(("intensity", "differ"), [("range", False), ("zscore", False), ("none", True)])
def test_activity_in_bq_and_in_suv_is_one_picture_where_each_file_is_scaled_by_itself(
    tmp_path: Path, intensity: str, differ: bool
) -> None:
    stored, found = np.random.default_rng(0).integers(1, 900, (8, 9)).astype(np.uint16), []
    for unit, slope in (("BQML", 12.5), ("GML", 0.0021)):
        fields = {"RescaleSlope": slope, "RescaleIntercept": 0, "Modality": "PT", "Units": unit}
        path = dicom(tmp_path / f"{unit}.dcm", stored, ImageOrientationPatient=AXIAL, **fields)
        found.append(arrays(wanted("dicom", intensity=intensity), Entry((path,))))
    assert np.allclose(found[0].x[0], found[1].x[0], atol=1e-5) != differ
    lines = dictionary.differences(*(Dictionary("classes", ("a", "b"), image=each.facts) for each in found))
    assert bool(lines) == differ and all("Bq/ml" in line and 'pixels.intensity = "range"' in line for line in lines)
