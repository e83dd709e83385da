"""What a reader of image files returns, and the facts of several images together."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from p2pfl.data.dataset import ImageFacts, as_float32
from p2pfl.errors import DataError

WHITE: Mapping[str, float] = MappingProxyType({"bool": 1.0, "uint8": 255.0, "uint16": 65535.0})
"""Type of an array -> its largest value, where that is what white is."""
PET: Mapping[str, str] = MappingProxyType({"GML": "SUV", "BQML": "Bq/ml", "CNTS": "counts"})
"""Units of activity as DICOM has them (0054,1001) -> unit."""
DARK = 8
"""Images of 16 bits that use less than this part of their type are of 12 bits or of 8: by the type, nearly black."""

FAR = 4.0
"""The root of the mean square of images that nobody has scaled: 0..1 has less than 1, mean 0 and deviation 1 has 1."""


class ReadImage(NamedTuple):
    """The pixels of a file, and what it says of them."""

    array: np.ndarray  # a plane [H, W] or [H, W, colours], a volume of three axes, or four with frames last
    volume: bool  # the first three axes are space
    full: float | None = None  # the value of white, where the file's type says it
    window: tuple[float, float] | None = None  # centre and width of what is to be seen, where the file says them
    mirror: float | None = None  # of MONOCHROME1: what the file holds + what stands here; `window` is the file's
    bits: int = 0  # of a stored value
    unit: str = "unknown"  # of a value, as ImageFacts has it
    affine: np.ndarray | None = None  # [4, 4]: index of a voxel -> mm to the right, anterior, superior; where known
    stored_affine: np.ndarray | None = None  # the same as the file has it, of formats whose axes are turned
    notes: tuple[tuple[str, str], ...] = ()  # (what is to be said, of which file), said once for all files


def directions(affine: np.ndarray | None) -> str:
    """Where the three axes of an array grow to: letters of right, left, anterior, posterior, superior, inferior.

    "" without an affine [4, 4]. An oblique axis has the letter that is closest.
    """
    if affine is None:
        return ""
    axes = affine[:3, :3]
    closest = np.abs(axes).argmax(axis=0)
    return "".join(("RL", "AP", "SI")[place][int(axes[place, axis] < 0)] for axis, place in enumerate(closest))


def together(facts: Sequence[ImageFacts]) -> ImageFacts:
    """The facts of images of one shape: where they differ, each word, the largest bit depth, and no `intensity`."""

    def words(name: str) -> str:
        return ", ".join(sorted({getattr(fact, name) for fact in facts} - {""}))

    between = {fact.intensity for fact in facts}
    return facts[0]._replace(
        bit_depth=max(fact.bit_depth for fact in facts), unit=words("unit"), scaling=words("scaling"),
        intensity=between.pop() if len(between) == 1 else None, orientation=words("orientation"),
        photometric=words("photometric"),
    )  # fmt: skip


def is_far(images: np.ndarray) -> bool:
    """Whether images are so far from 0..1 that training on them as they are ends at chance. NaN is not far."""
    flat = as_float32(images).reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.vdot(flat, flat) > FAR**2 * flat.size)


def extra(name: str, what: str) -> Any:
    """The module `name` of the extra [medical]. Raises DataError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise DataError(f"reading {what} needs {name}, which is not installed; install p2pfl-jax[medical]") from exc
