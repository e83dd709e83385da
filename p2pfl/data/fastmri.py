"""Volumes of fastMRI: measured k-space and the images that were made of it, in HDF5.

A file holds a volume: `kspace` [slices, H, W] complex64 of a single coil, lowest frequency in the middle, and
`reconstruction_esc` [slices, h, w] float32, the middle of the magnitude of its inverse Fourier transform; attributes
`acquisition`, `patient_id` and `max`. Which of the columns of k-space are to be seen is said by [data.degrade], where
the masks of all other images are. Source: Zbontar et al., "fastMRI: an open dataset and benchmarks for accelerated MRI"
(2018), section 4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from p2pfl.data.dataset import ImageFacts
from p2pfl.data.image import extra
from p2pfl.errors import DataError

KSPACE, IMAGES = "kspace", "reconstruction_esc"
UNIT = "k-space"
"""What ImageFacts.unit is of x that holds k-space: the real and the imaginary part [H, W, 2]."""
COLUMNS = ("acquisition", "patient", "kspace")
"""Columns that a row of such a layout has beside those of its path: two attributes, and height and width of k-space, as
in "640x368"."""


class KSpace(NamedTuple):
    """The slices of a file, in units of its brightest pixel."""

    space: np.ndarray  # [S, H, W, 2] float32: real and imaginary part of k-space
    images: np.ndarray  # [S, h, w, 1] float32 in 0..1
    facts: ImageFacts


def described(file: Path) -> dict[str, str]:
    """The COLUMNS of a file. Raises DataError for a file that is none of fastMRI's of a single coil."""
    with _opened(file) as found:
        _, height, width = found[KSPACE].shape
        named = {"acquisition": "acquisition", "patient": "patient_id"}
        texts = {name: str(found.attrs.get(attribute, "")) for name, attribute in named.items()}
        return {**texts, "kspace": f"{height}x{width}"}


def read(file: Path, slices: str | tuple[int, int]) -> KSpace:
    """Read a file.

    Args:
        file: of a single coil.
        slices: "middle", "all", or the first and the one after the last.

    Returns:
        The slices.

    Raises:
        DataError: no such file, or one that holds something else; none of its slices is among `slices`.
    """
    with _opened(file) as found:
        count = found[KSPACE].shape[0]
        first, last = {"middle": (count // 2, count // 2 + 1), "all": (0, count)}.get(str(slices), (0, 0))
        if isinstance(slices, tuple):
            first, last = max(slices[0], 0), min(slices[1], count)
        if first >= last:
            raise DataError(f"{file}: pixels.slices={slices!r}: none of its {count} slices lies there")
        space, images = found[KSPACE][first:last], found[IMAGES][first:last]
        brightest = float(found[IMAGES][()].max())
    if not (np.isfinite(space).all() and np.isfinite(images).all() and brightest > 0):
        raise DataError(f"{file}: holds numbers that are not finite, or no image at all. Leave its row out")
    parts = np.stack([space.real, space.imag], axis=-1).astype(np.float32) / np.float32(brightest)
    pixels = np.clip(images.astype(np.float32) / np.float32(brightest), 0, 1)[..., None]
    facts = ImageFacts(images.shape[1:], 1, 32, UNIT, "maximum", None, "", "MONOCHROME2")
    return KSpace(parts, pixels, facts)


def _opened(file: Path) -> Any:
    """The file, in which k-space and images are there and fit. Raises DataError."""
    h5py = extra("h5py", "fastMRI")
    try:
        found = h5py.File(file, "r")
    except OSError as exc:
        raise DataError(f"{file}: can't be read as HDF5: {exc}. Repair the file, or leave its row out") from exc
    said = _fault(found)
    if said:
        found.close()
        raise DataError(f"{file}: {said}")
    return found


def _fault(found: Any) -> str:
    """What keeps a file from being used; "" for nothing."""
    if KSPACE not in found:
        return f"holds no {KSPACE}; files of fastMRI do"
    if found[KSPACE].ndim == 4:
        return f"{KSPACE} has shape {found[KSPACE].shape}: of several coils; only those of a single coil are read"
    if IMAGES not in found:
        return f"holds no {IMAGES}: of the part that is for the challenge, from which nothing can be learned"
    space, images = found[KSPACE], found[IMAGES]
    fits = space.ndim == images.ndim == 3 and space.dtype.kind == "c" and images.dtype.kind == "f"
    if not fits or len(space) != len(images) or any(a < b for a, b in zip(space.shape, images.shape, strict=True)):
        return (
            f"{KSPACE} {space.dtype}{[*space.shape]}, {IMAGES} {images.dtype}{[*images.shape]}; must be complex and "
            "real, [slices, height, width] each, images not larger than k-space"
        )
    return ""
