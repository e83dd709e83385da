"""What a reader of image files returns, and the facts of several images together."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from p2pfl.data.dataset import ImageFacts
from p2pfl.errors import DataError


class ReadImage(NamedTuple):
    """The pixels of a file, and what it says of them."""

    array: np.ndarray  # a plane [H, W] or [H, W, colours], a volume of three axes, or four with frames last
    volume: bool  # the first three axes are space
    full: float | None = None  # the value of white, where the file's type says it
    window: tuple[float, float] | None = None  # centre and width of what is to be seen, where the file says them
    invert: bool = False  # the smallest value is white
    bits: int = 0  # of a stored value
    unit: str = "unknown"  # of a value, as ImageFacts has it
    affine: np.ndarray | None = None  # [4, 4]: index of a voxel -> mm to the right, anterior, superior; where known


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


def extra(name: str, what: str) -> Any:
    """The module `name` of the extra [medical]. Raises DataError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise DataError(f"reading {what} needs {name}, which is not installed; install p2pfl-jax[medical]") from exc
