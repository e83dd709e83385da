"""Files of pixels as arrays: pictures, DICOM, NIfTI, MetaImage, numpy, and tables of time series.

Every reader takes a path and returns a `ReadImage`, or raises DataError that names the file. pydicom and nibabel are
imported where they are needed: they are extras.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from p2pfl.data.image import ReadImage, extra
from p2pfl.errors import USER_FAULTS, DataError

FAULTS = (*USER_FAULTS, SyntaxError, zlib.error)
"""What readers of damaged files fail with; each of the libraries has more of its own, all of them below these."""


def read(path: Path, format: str, mode: str) -> ReadImage:
    """One file of a format of FORMATS (dicom: or a folder with the slices of one series). `mode`: grey or rgb pictures;
    raw: as it is, for masks. Raises DataError naming the file.
    """
    try:
        found = FORMATS[format](path, mode)
    except DataError:
        raise
    except FAULTS as exc:
        what = str(exc).replace("\n", " ")[:200] or type(exc).__name__
        raise DataError(f"{path}: can't be read as {format}: {what}. Repair the file, or leave its row out") from exc
    if found.array.size == 0:
        raise DataError(f"{path}: holds no pixels")
    return found


def _image(path: Path, mode: str) -> ReadImage:
    """PNG, JPEG, TIFF and what else Pillow reads; the first frame, turned upright by its EXIF tag (274, Orientation).

    16-bit grey stays so, of colours 8 bits are read.
    """
    from PIL import Image, ImageOps  # here: 40 ms, and a run on tables never needs it

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as exc:
        raise DataError(f"{path}: {exc}; shrink the image before it is read") from exc
    # Pillow's conversion to 8 bits cuts 16-bit grey at 255 instead of scaling it.
    deep = upright.mode.startswith("I") or upright.mode == "F"
    if deep or (mode == "raw" and upright.mode in ("1", "L", "P")):
        array = np.asarray(upright)
        array = np.stack([array] * 3, axis=2) if mode == "rgb" else array
    else:
        array = np.asarray(upright.convert("RGB" if mode == "rgb" else "L"))
    full = {"b": 1.0, "u": float(np.iinfo(array.dtype).max) if array.dtype.kind == "u" else 0.0}
    # Pillow gives 16-bit PNG as int32: what it holds is 0..65535.
    white = full.get(array.dtype.kind, 65535.0 if array.dtype.kind == "i" else None)
    bits = 8 * array.dtype.itemsize if white is None else int(white + 1).bit_length() - 1
    return ReadImage(array, False, white, bits=bits, unit="stored")


def _dicom(path: Path, mode: str) -> ReadImage:
    """One DICOM file, or a folder: the files in it are the slices of a volume, ordered along the normal of the plane.

    Stored values go through RescaleSlope and RescaleIntercept (PS3.3 C.11.1.1).
    """
    pydicom = extra("pydicom", "DICOM")
    if path.is_dir():
        slices = [_dicom_values(pydicom, file) for file in sorted(path.iterdir()) if file.is_file()]
        if not slices:
            raise DataError(f"{path}: a folder without files; the slices of a series are needed")
        if len({values.shape for values, _ in slices}) > 1:
            raise DataError(f"{path}: its slices are of several sizes; one series to a folder")
        ordered = sorted(slices, key=lambda found: _along(found[1]))
        return _seen(np.stack([values for values, _ in ordered], axis=2), True, ordered[0][1])
    values, header = _dicom_values(pydicom, path)
    colors = int(header.get("SamplesPerPixel", 1)) > 1
    frames = int(header.get("NumberOfFrames", 1) or 1) > 1
    if colors and frames:
        raise DataError(f"{path}: frames in colour are not read; use one file for each")
    if colors and mode != "rgb":
        values = values @ np.array([0.299, 0.587, 0.114])  # the luma of ITU-R BT.601, as Pillow's grey
    found = _seen(np.moveaxis(values, 0, 2) if frames else values, frames, header)
    return found._replace(full=2.0 ** int(header.BitsStored) - 1) if colors else found


def _dicom_values(pydicom: Any, path: Path) -> tuple[np.ndarray, Any]:
    try:
        header = pydicom.dcmread(path)
        values = header.pixel_array.astype(np.float64)
    except pydicom.errors.InvalidDicomError as exc:
        raise DataError(f"{path}: not a DICOM file") from exc
    slope, intercept = header.get("RescaleSlope", 1), header.get("RescaleIntercept", 0)
    return values * float(slope) + float(intercept), header


def _along(header: Any) -> tuple[float, int]:
    """Return the place of a slice: its position on the normal of its plane; else its number in the series."""
    position, plane = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
    number = int(header.get("InstanceNumber", 0) or 0)
    if position is None or plane is None:
        return 0.0, number
    normal = np.cross(np.array(plane[:3], float), np.array(plane[3:], float))
    return round(float(np.dot(normal, np.array(position, float))), 3), number


def _seen(values: np.ndarray, volume: bool, header: Any) -> ReadImage:
    centre, width = (_first(header.get(name)) for name in ("WindowCenter", "WindowWidth"))
    window = (centre, width) if centre is not None and width is not None and width > 1 else None
    return ReadImage(
        values, volume, None, window, header.get("PhotometricInterpretation") == "MONOCHROME1",
        bits=int(header.BitsStored), unit=_unit(header), affine=_affine(header),
    )  # fmt: skip


def _unit(header: Any) -> str:
    """The unit of a value after rescaling: Hounsfield units, standardised uptake value, ..."""
    said = str(header.get("RescaleType") or "US")
    if said != "US":  # unspecified
        return said
    if header.get("Modality") == "CT":
        return "HU"
    if header.get("Modality") == "PT":
        return {"GML": "SUV", "BQML": "Bq/ml"}.get(str(header.get("Units")), str(header.get("Units") or "unknown"))
    return "unknown" if "RescaleSlope" in header else "stored"


def _affine(header: Any) -> np.ndarray | None:
    """Directions of the rows, columns and slices of an array [row, column, slice], in mm to the right, anterior,
    superior (DICOM's own are left, posterior, superior: PS3.3 C.7.6.2.1.1).
    """
    plane, spacing = header.get("ImageOrientationPatient"), header.get("PixelSpacing", (1, 1))
    if plane is None:
        return None
    along_row, along_column = np.array(plane[:3], float), np.array(plane[3:], float)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along_column * float(spacing[0]), along_row * float(spacing[1])
    affine[:3, 2] = np.cross(along_row, along_column)
    flipped: np.ndarray = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    return flipped


def _first(value: Any) -> float | None:
    """Several windows may stand in a header; the first is the one that is shown."""
    if value is None or value == "":
        return None
    return float(value) if isinstance(value, int | float | str) else float(value[0])


def _nifti(path: Path, mode: str) -> ReadImage:
    """NIfTI (.nii, .nii.gz), turned to the axes right, anterior, superior that are closest."""
    nibabel = extra("nibabel", "NIfTI")
    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError) as exc:
        raise DataError(f"{path}: not a NIfTI file") from exc
    found = _space(path, np.asanyarray(image.dataobj))
    return found._replace(bits=8 * image.header.get_data_dtype().itemsize, affine=image.affine)


def _space(path: Path, array: np.ndarray) -> ReadImage:
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3, 4):
        raise DataError(f"{path}: has shape {array.shape}; a plane, a volume or frames of one are needed")
    return ReadImage(array, array.ndim > 2, bits=8 * array.dtype.itemsize)


_ELEMENTS = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip


def _mhd(path: Path, mode: str) -> ReadImage:
    """MetaImage (.mhd with its .raw or .zraw, or .mha): text "Key = value", then x fastest; axes as [x, y, z]."""
    content = path.read_bytes()
    end = content.find(b"ElementDataFile")
    stop = content.find(b"\n", end)
    head = content[: stop if stop >= 0 else len(content)] if end >= 0 else b""
    fields = dict(line.split("=", 1) for line in head.decode("ascii").splitlines() if "=" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    element, data = _ELEMENTS.get(fields.get("ElementType", "")), fields.get("ElementDataFile", "")
    if element is None or not data or fields.get("ElementNumberOfChannels", "1") != "1":
        raise DataError(f"{path}: not a MetaImage of one number per voxel (ElementType, ElementDataFile)")
    if data != "LOCAL" and Path(data).name != data:
        raise DataError(f"{path}: ElementDataFile = {data}: must be a file beside it")
    raw = content[stop + 1 :] if data == "LOCAL" else (path.parent / data).read_bytes()
    shape = [int(size) for size in fields["DimSize"].split()]
    big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")) == "True"
    dtype = np.dtype((">" if big else "<") + element)
    size = int(np.prod(shape)) * dtype.itemsize
    if fields.get("CompressedData") == "True":
        raw = zlib.decompressobj().decompress(raw, size)
    if len(raw) < size:
        raise DataError(f"{path}: {len(raw)} bytes of voxels; DimSize = {fields['DimSize']} needs {size}")
    return _space(path, np.frombuffer(raw[:size], dtype).reshape(shape, order="F"))


def _npy(path: Path, mode: str) -> ReadImage:
    """A numpy array; never one of Python objects. [H, W, 3] is in colour in mode rgb, else a volume."""
    array = np.load(path, allow_pickle=False)
    if array.dtype.kind not in "buif":
        raise DataError(f"{path}: has dtype {array.dtype}; it must hold numbers")
    if mode == "rgb" and array.ndim == 3 and array.shape[2] == 3:
        return ReadImage(array, False, 255.0 if array.dtype == np.uint8 else None, bits=8 * array.dtype.itemsize)
    return _space(path, array)._replace(full=255.0 if array.dtype == np.uint8 else None)


def correlations(path: Path) -> np.ndarray:
    """Text of numbers, a line for each time and a column for each region (as .1D): the correlations of all pairs of
    regions, [regions (regions - 1) / 2] float32. A region that never changes correlates with none: 0.
    """
    try:
        series = np.loadtxt(path, ndmin=2)
    except FAULTS as exc:
        raise DataError(f"{path}: can't be read as numbers: {exc}") from exc
    if series.shape[0] < 2 or series.shape[1] < 2:
        raise DataError(f"{path}: has shape {series.shape}; at least two times and two regions are needed")
    centred = series - series.mean(axis=0)
    norm = np.sqrt((centred**2).sum(axis=0))
    unit = centred / np.where(norm > 0, norm, 1.0)
    pairs: np.ndarray = (unit.T @ unit)[np.triu_indices(series.shape[1], 1)].astype(np.float32)
    return pairs


FORMATS: Mapping[str, Callable[[Path, str], ReadImage]] = MappingProxyType(
    {"image": _image, "dicom": _dicom, "nifti": _nifti, "mhd": _mhd, "npy": _npy}
)
"""Name -> reader (path, mode)."""
