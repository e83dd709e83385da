"""Files of pixels as arrays: pictures, DICOM, NIfTI, MetaImage, numpy, and tables of time series.

Every reader takes a path and returns a `ReadImage`, or raises DataError that names the file. pydicom and nibabel are
imported where they are needed: they are extras.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from p2pfl.data import dicom
from p2pfl.data.image import WHITE, ReadImage, extra
from p2pfl.errors import USER_FAULTS, DataError

FAULTS = (*USER_FAULTS, SyntaxError, zlib.error)
"""What readers of damaged files fail with; each of the libraries has more of its own, all of them below these."""


def read(path: Path, format: str, mode: str, unit: str | None = None) -> ReadImage:
    """One file of a format of FORMATS (dicom: or a folder with the slices of one series). `mode`: grey or rgb pictures;
    raw: as it is, for masks. `unit`: SUV, of PET in dicom. Raises DataError naming the file.
    """
    try:
        found = FORMATS[format](path, mode) if unit is None else dicom.read(path, mode, unit)
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
        # By a file object, and not by its path: then Pillow maps nothing into memory, which mixes the rows of an
        # uncompressed TIFF that its tag turns by 90 degrees (Pillow 13.0).
        with path.open("rb") as file, Image.open(file) as image:
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
    # What Pillow gives as int32 is 16-bit grey of older releases, or a TIFF of 32 bits, whose type says nothing.
    deep16 = array.dtype.kind == "i" and array.size > 0 and 0 <= array.min() <= array.max() <= WHITE["uint16"]
    white = WHITE["uint16"] if deep16 else WHITE.get(array.dtype.name)
    bits = 8 * array.dtype.itemsize if white is None else int(white + 1).bit_length() - 1
    return ReadImage(array, False, white, bits=bits, unit="stored")


def _nifti(path: Path, mode: str) -> ReadImage:
    """NIfTI (.nii, .nii.gz), turned to the axes right, anterior, superior that are closest."""
    nibabel = extra("nibabel", "NIfTI")
    try:
        stored = nibabel.load(path)
        image = nibabel.as_closest_canonical(stored)
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError) as exc:
        raise DataError(f"{path}: not a NIfTI file") from exc
    found = _space(path, np.asanyarray(image.dataobj))
    bits = 8 * image.header.get_data_dtype().itemsize
    return found._replace(bits=bits, affine=image.affine, stored_affine=stored.affine)


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
    found = _space(path, np.frombuffer(raw[:size], dtype).reshape(shape, order="F"))
    return found._replace(affine=_mhd_affine(fields) if len(shape) == 3 else None)


def _mhd_affine(fields: Mapping[str, str]) -> np.ndarray:
    """[4, 4]: index [x, y, z] -> mm to the right, anterior, superior; MetaImage's own are left, posterior, superior."""

    def numbers(names: Sequence[str], default: str) -> np.ndarray:
        return np.array(next((fields[name] for name in names if name in fields), default).split(), float)

    axes = numbers(("TransformMatrix", "Orientation", "Rotation"), "1 0 0 0 1 0 0 0 1").reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3] = axes.T * numbers(("ElementSpacing", "ElementSize"), "1 1 1")
    affine[:3, 3] = numbers(("Offset", "Position", "Origin"), "0 0 0")
    turned: np.ndarray = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    return turned


def _npy(path: Path, mode: str) -> ReadImage:
    """A numpy array; never one of Python objects. [H, W, 3] is in colour in mode rgb, else a volume."""
    array = np.load(path, allow_pickle=False)
    if array.dtype.kind not in "buif":
        raise DataError(f"{path}: has dtype {array.dtype}; it must hold numbers")
    if mode == "rgb" and array.ndim == 3 and array.shape[2] == 3:
        return ReadImage(array, False, WHITE.get(array.dtype.name), bits=8 * array.dtype.itemsize)
    return _space(path, array)._replace(full=WHITE.get(array.dtype.name))


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
    {"image": _image, "dicom": dicom.read, "nifti": _nifti, "mhd": _mhd, "npy": _npy}
)
"""Name -> reader (path, mode)."""
