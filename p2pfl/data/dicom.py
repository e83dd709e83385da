"""DICOM: a file, the frames of an enhanced file, or a folder with the slices of one series.

Stored values go through the modality transformation (PS3.3 C.11.1: slope and intercept, or a table), of enhanced files
that of each frame (C.7.6.16.2.9). MONOCHROME1 is turned to MONOCHROME2: more is brighter. Slices and frames are ordered
along the normal of their plane.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from p2pfl.data import suv
from p2pfl.data.image import PET, ReadImage, extra
from p2pfl.errors import USER_FAULTS, DataError

UNEVEN = 0.1
"""Slices whose distances differ by a larger part: one of them may be missing."""
PLACES = 3  # decimals of a millimetre in which positions are compared


class NoImage(DataError):
    """A DICOM file of a kind that has no pixels: a report, a plan, a presentation state."""


class NotDicom(DataError):
    """A file that does not begin as DICOM does."""


class Slice(NamedTuple):
    """A slice of a volume, and what its header says of it."""

    values: np.ndarray  # [H, W] float64
    file: Path
    header: Any  # of the whole file
    groups: Mapping[str, Any]  # name of a functional group -> what holds its fields
    mirror: float | None  # as ReadImage has it

    @property
    def position(self) -> Any:
        """Where the first voxel lies, in mm to the left, posterior, superior; None where nobody says."""
        holder = self.groups["PlanePositionSequence"]
        # A header has one position, which is no help to place the frames of a file.
        return None if holder is self.header and _frames(holder) > 1 else holder.get("ImagePositionPatient")

    @property
    def plane(self) -> Any:
        """Directions of a row and of a column; None where nobody says."""
        return self.groups["PlaneOrientationSequence"].get("ImageOrientationPatient")

    @property
    def depth(self) -> float:
        """The position along the normal of the plane. Both must be known."""
        return float(np.dot(_normal(self.plane), np.array(self.position, float)))


GROUPS = (
    "PixelValueTransformationSequence", "FrameVOILUTSequence", "PlanePositionSequence", "PlaneOrientationSequence",
    "PixelMeasuresSequence",
)  # fmt: skip


def read(path: Path, mode: str, unit: str | None = None) -> ReadImage:
    """One file, or a folder: the files in it are the slices of a volume. `mode` and `unit`: as `formats.read` has them.

    Raises DataError naming the file; NoImage for a file of a kind that has no pixels.
    """
    pydicom = extra("pydicom", "DICOM")
    if not path.is_dir():
        header = _header(pydicom, path)
        return _in(unit, _file(pydicom, path, header, mode), [header], path)
    headers, notes = _images(pydicom, path)
    (first, header), *others = headers.items()
    if not others and _frames(header) > 1:
        return _in(unit, _file(pydicom, first, header, mode), [header], path)._replace(notes=notes)
    slices: list[Slice] = []
    for file, own in headers.items():
        if _frames(own) > 1 or _colors(own):
            raise DataError(f"{file}: holds several frames, or colours, among other files; one such file to a folder")
        slices += _slices(pydicom, file, own)
    found = _in(unit, _volume(slices, path), [*headers.values()], path)
    return found._replace(notes=(*notes, *found.notes))


def told(path: Path, fields: Mapping[str, str]) -> dict[str, str]:
    """What the header of a file says, as text, "" where it says nothing; of a folder that of its first file by name.

    Args:
        path: a file, or a folder of slices.
        fields: name -> what DICOM calls it, such as "PatientID".

    Raises:
        DataError: no such word in DICOM, or a file that is none of DICOM's.
    """
    pydicom = extra("pydicom", "DICOM")
    unknown = [keyword for keyword in fields.values() if pydicom.datadict.tag_for_keyword(keyword) is None]
    if unknown:
        raise DataError(f"headers: {unknown[0]!r}: no such keyword of DICOM; such as PatientID, InstitutionName")
    file = path if path.is_file() else min((each for each in path.iterdir() if each.is_file()), default=path)
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[*fields.values()])
    except (pydicom.errors.InvalidDicomError, *USER_FAULTS) as exc:
        raise DataError(f"{file}: its header can't be read as DICOM: {exc}. Repair it, or leave its row out") from exc
    return {name: str(header.get(keyword, "")).strip() for name, keyword in fields.items()}


def _in(unit: str | None, picture: ReadImage, headers: Sequence[Any], where: Path) -> ReadImage:
    """A picture in a unit, None: that of its file; what is no PET (CT beside it) stays. Raises DataError."""
    if unit is None or headers[0].get("Modality", "PT") != "PT":
        return picture
    by = suv.factor(headers, where)
    window, mirror = picture.window, picture.mirror
    return picture._replace(
        array=picture.array * by, unit=unit, mirror=None if mirror is None else mirror * by,
        window=None if window is None else ((window[0] - 0.5) * by, (window[1] - 1) * by),
    )  # fmt: skip


def _header(pydicom: Any, path: Path) -> Any:
    try:
        header = pydicom.dcmread(path)
    except pydicom.errors.InvalidDicomError as exc:
        raise NotDicom(f"{path}: not a DICOM file; repair it, or leave its row out by the pattern or keep") from exc
    if not any(name in header for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
        name = getattr(kind, "name", "")
        if not name or "Image" in name or "Rows" in header:
            raise DataError(f"{path}: {name or 'a file'} whose pixels are missing; repair it, or leave its row out")
        raise NoImage(f"{path}: {name}: holds no image")
    return header


def _images(pydicom: Any, folder: Path) -> tuple[dict[Path, Any], tuple[tuple[str, str], ...]]:
    """The headers of the images in a folder, and what is to be said of its other files."""
    headers: dict[Path, Any] = {}
    notes: list[tuple[str, str]] = []
    others: list[Path] = []
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        try:
            headers[file] = _header(pydicom, file)
        except NoImage as exc:
            notes.append(("left out files of a series that hold no image", str(exc)))
        except NotDicom:
            others.append(file)
    endings = {_ending(file) for file in headers}
    for file in others:
        # What is named like the slices is a damaged slice: without it, the volume is another.
        if not file.name.startswith(".") and _ending(file) in endings:
            raise DataError(f"{file}: not a DICOM file, but named like one; repair it, or move it out of the folder")
        notes.append(("left out files of a series that are not DICOM", str(file)))
    if not headers:
        said = f"; {notes[0][1]} is none" if notes else ""
        raise DataError(f"{folder}: a folder without DICOM images; the slices of a series are needed{said}")
    series = Counter(str(header.get("SeriesInstanceUID")) for header in headers.values())
    if len(series) > 1:
        found = "; ".join(f"{uid}: {count} files" for uid, count in series.items())
        raise DataError(f"{folder}: holds {len(series)} series, {found}; one series to a folder")
    return headers, tuple(notes)


def _ending(file: Path) -> str:
    """The ending of a name; "" of names that end in a number, as names of DICOM files do."""
    ending = file.suffix.lower()
    return "" if ending[1:].isdecimal() else ending


def _frames(header: Any) -> int:
    return int(header.get("NumberOfFrames", 1) or 1)


def _colors(header: Any) -> bool:
    return int(header.get("SamplesPerPixel", 1)) > 1 or header.get("PhotometricInterpretation") == "PALETTE COLOR"


def _file(pydicom: Any, path: Path, header: Any, mode: str) -> ReadImage:
    """A single file: a plane, in grey or in colours, or a volume of frames."""
    if not _colors(header):
        slices = _slices(pydicom, path, header)
        return _volume(slices, path) if len(slices) > 1 else _seen(slices[0].values, slices)
    if _frames(header) > 1:
        raise DataError(f"{path}: frames in colour are not read; use one file for each")
    values, full = header.pixel_array, 2.0 ** int(header.BitsStored) - 1
    if header.PhotometricInterpretation == "PALETTE COLOR":
        values = pydicom.pixels.apply_color_lut(values, header)[..., :3]
        full = float(np.iinfo(values.dtype).max)
    values = values.astype(np.float64)
    if mode != "rgb":
        values = values @ np.array([0.299, 0.587, 0.114])  # the luma of ITU-R BT.601, as Pillow's grey
    return ReadImage(values, False, full, bits=int(full + 1).bit_length() - 1, unit="stored")


def _slices(pydicom: Any, path: Path, header: Any) -> list[Slice]:
    """The slice of a file, or the frames of one, after the modality transformation; MONOCHROME2."""
    try:
        stored = header.pixel_array
    except USER_FAULTS as exc:
        said = " ".join(str(exc).split())[:300]
        raise DataError(
            f"{path}: its pixels can't be read: {said}. Repair it, install a decoder if one is missing, or leave its "
            "row out"
        ) from exc
    frames = stored if _frames(header) > 1 else stored[None]
    inverted = header.get("PhotometricInterpretation") == "MONOCHROME1"
    found = []
    for index, frame in enumerate(frames):
        groups = {name: _group(header, index, name) for name in GROUPS}
        rescale = groups["PixelValueTransformationSequence"]
        values = pydicom.pixels.apply_modality_lut(frame, rescale).astype(np.float64)
        mirror = None
        if inverted:
            mirror = float(pydicom.pixels.apply_modality_lut(_ends(header), rescale).astype(np.float64).sum())
            values = mirror - values
        found.append(Slice(values, path, header, groups, mirror))
    return found


def _group(header: Any, frame: int, name: str) -> Any:
    """What holds the fields of a functional group: the item of the frame, the shared one, or the header itself."""
    own, shared = header.get("PerFrameFunctionalGroupsSequence"), header.get("SharedFunctionalGroupsSequence")
    for groups in (own[frame] if own else None, shared[0] if shared else None):
        items = groups.get(name) if groups is not None else None
        if items:
            return items[0]
    return header


def _ends(header: Any) -> np.ndarray:
    """The smallest and the largest value that can be stored."""
    bits, signed = int(header.BitsStored), int(header.get("PixelRepresentation", 0))
    return np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])


def _normal(plane: Any) -> np.ndarray:
    return np.cross(np.array(plane[:3], float), np.array(plane[3:], float))


def _volume(slices: Sequence[Slice], where: Path) -> ReadImage:
    """Slices [H, W] as a volume [H, W, slices], in the order of space; without positions, in the order of their
    numbers, which for frames is that of the file.
    """
    if len({own.values.shape for own in slices}) > 1:
        raise DataError(f"{where}: its slices are of several sizes; one series to a folder")
    if len({own.mirror for own in slices}) > 1:
        raise DataError(f"{where}: MONOCHROME1 with another rescaling for each slice is not read; give all of them one")
    if any(own.position is None or own.plane is None for own in slices):
        ordered = sorted(slices, key=lambda own: int(own.header.get("InstanceNumber", 0) or 0))
        return _seen(np.stack([own.values for own in ordered], axis=2), ordered)
    planes = np.array([own.plane for own in slices], float)
    if not np.allclose(planes, planes[0], atol=1e-2):
        raise DataError(f"{where}: its slices lie in several planes; one series of one plane to a folder or file")
    ordered = sorted(slices, key=lambda own: round(own.depth, PLACES))
    gaps = np.diff([round(own.depth, PLACES) for own in ordered])
    if not gaps.all():
        raise DataError(
            f"{where}: {len(ordered)} slices at {len(ordered) - int((gaps == 0).sum())} places: several times, echoes, "
            "segments or copies; keep one slice at each place"
        )
    found = _seen(np.stack([own.values for own in ordered], axis=2), ordered)
    if gaps.size and gaps.max() - gaps.min() > UNEVEN * gaps.min():
        said = f"{where} ({gaps.min():g} to {gaps.max():g} mm)"
        return found._replace(notes=(("volumes with slices unevenly apart, where one may be missing", said),))
    return found


def _seen(values: np.ndarray, slices: Sequence[Slice]) -> ReadImage:
    """An array with what the first of its slices says of it."""
    first = slices[0]
    shown = first.groups["FrameVOILUTSequence"]
    centre, width = (_first(shown.get(name)) for name in ("WindowCenter", "WindowWidth"))
    window = (centre, width) if centre is not None and width is not None and width > 1 else None
    bits = int(first.header.get("BitsStored") or first.header.BitsAllocated)
    return ReadImage(
        values, values.ndim == 3, None, window, first.mirror, bits, _unit(first), _affine(slices),
    )  # fmt: skip


def _first(value: Any) -> float | None:
    """Several windows may stand in a header; the first is the one that is shown."""
    if value is None or value == "":
        return None
    return float(value) if isinstance(value, int | float | str) else float(value[0])


def _unit(own: Slice) -> str:
    """The unit of a value after the modality transformation."""
    header, rescale = own.header, own.groups["PixelValueTransformationSequence"]
    said = str(rescale.get("RescaleType") or "US")
    if said != "US":  # unspecified
        return said
    if header.get("Modality") == "CT":
        return "HU"
    if header.get("Modality") == "PT" and header.get("Units"):
        return PET.get(str(header.Units), str(header.Units))
    return "unknown" if "RescaleSlope" in rescale else "stored"


def _affine(slices: Sequence[Slice]) -> np.ndarray | None:
    """[4, 4]: index [row, column, slice] -> mm to the right, anterior, superior; None where the header lacks it.

    DICOM's own directions are left, posterior, superior (PS3.3 C.7.6.2.1.1).
    """
    first, last = slices[0], slices[-1]
    if first.plane is None:
        return None
    measures = first.groups["PixelMeasuresSequence"]
    down, right = (float(value) for value in measures.get("PixelSpacing") or (1, 1))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = np.array(first.plane[3:], float) * down, np.array(first.plane[:3], float) * right
    affine[:3, 2] = _normal(first.plane) * float(measures.get("SliceThickness") or 1)
    if first.position is not None:
        affine[:3, 3] = first.position
    if len(slices) > 1 and first.position is not None and last.position is not None:
        affine[:3, 2] = (np.array(last.position, float) - affine[:3, 3]) / (len(slices) - 1)
    turned: np.ndarray = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    return turned
