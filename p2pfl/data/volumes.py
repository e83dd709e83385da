"""Whole volumes as rows: one frame and one spacing for all, patches to train on, windows to answer in.

A volume is turned so that its axes grow to the right, to anterior and to superior, as closely as whole turns can
(`nibabel.as_closest_canonical`; a tilt stays), then brought to a spacing: images by linear interpolation, labels by the
nearest voxel, the edges of both at one place. A finer grid is not smoothed before it becomes a coarser one.

Patches are drawn by counter: a function of the seed, the name of the volume and the patch's number, so that every
process draws the same, in any order.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from p2pfl import random_bits
from p2pfl.check import LIST, STRICT, Count
from p2pfl.data.image import ReadImage, directions, extra
from p2pfl.errors import DataError

PATCHES = 0x9A7C
"""Purpose of randomness, as in p2pfl.random_bits."""
FRAME = "RAS"
"""Where the axes of a volume grow to: right, anterior, superior."""
SAME = 1e-3
"""Part by which a spacing may differ and still be the same: headers are written with rounding."""
PLACES = 256
"""Voxels of each class, at most, that are known of a volume to centre patches on."""
Millimetres = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, config=STRICT)
class VolumeTable:
    """[volume] of a layout, and [data.volume] instead of it."""

    spacing: Annotated[tuple[Millimetres, Millimetres, Millimetres], LIST] | None = None  # to the right, anterior,
    # superior, in mm; as each file has it unless given
    patch: Annotated[tuple[Count, Count, Count], LIST] | None = None  # voxels [depth, height, width] of a row
    patches: Count = 32  # rows that each training volume gives
    foreground: Annotated[float, Field(ge=0, le=1)] = 0.5  # share of them centred on a voxel of a class but the first
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5  # share of a window that the next one covers too, at least


def brought(picture: ReadImage, volume: VolumeTable, file: Path, labels: bool = False) -> ReadImage:
    """A volume of three axes in the common frame and spacing. Raises DataError where its file does not say its own.

    What was done is in its notes.
    """
    if picture.array.ndim != 3:
        raise DataError(f"{file}: has shape {picture.array.shape}; [volume] needs volumes of three axes")
    if picture.affine is None:
        if volume.spacing is not None:
            raise DataError(f"{file}: does not say where its voxels lie, so nobody knows their spacing; leave out "
                            "volume.spacing, or write the file as NIfTI")  # fmt: skip
        return picture
    nibabel = extra("nibabel", "volumes")
    stored = picture.affine if picture.stored_affine is None else picture.stored_affine
    if np.linalg.matrix_rank(picture.affine[:3, :3]) < 3:
        raise DataError(
            f"{file}: its affine is {picture.affine[:3].tolist()}, which flattens space; write the file anew"
        )
    turn = nibabel.orientations.io_orientation(picture.affine)
    affine = picture.affine @ nibabel.orientations.inv_ornt_aff(turn, picture.array.shape)
    array = np.ascontiguousarray(nibabel.orientations.apply_orientation(picture.array, turn))
    notes = []
    if directions(stored) != FRAME:
        notes.append(("volumes turned to right, anterior, superior", f"{file} ({directions(stored)})"))
    if volume.spacing is not None:
        now = np.linalg.norm(affine[:3, :3], axis=0)
        step = np.asarray(volume.spacing) / now
        if np.abs(step - 1).max() > SAME:
            array = _spaced(array, step, labels)
            affine = affine @ np.block(
                [[np.diag(step), (step / 2 - 0.5)[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]]
            )
            given, wanted = (" x ".join(f"{length:.3g}" for length in lengths) for lengths in (now, volume.spacing))
            notes.append((f"{'masks' if labels else 'volumes'} resampled to {wanted} mm", f"{file} ({given} mm)"))
    return picture._replace(array=array, affine=affine, stored_affine=None, notes=(*picture.notes, *notes))


def _spaced(array: np.ndarray, step: np.ndarray, labels: bool) -> np.ndarray:
    """The array on a grid whose voxels are `step` times as long, both from the same edge on."""
    from scipy.ndimage import affine_transform  # type: ignore[import-untyped]  # here: 0.1 s, and most data are planes

    size = [max(1, round(length / each)) for length, each in zip(array.shape, step, strict=True)]
    values = array if labels else array.astype(np.float32)
    found: np.ndarray = affine_transform(
        values, step, step / 2 - 0.5, tuple(size), order=0 if labels else 1, mode="nearest"
    )
    return found


def cut(array: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """A volume cut or padded with zeros about its middle to a size, so that its spacing stays.

    >>> [cut(np.arange(1, length + 1).reshape(-1, 1, 1), (3, 1, 1)).ravel().tolist() for length in (5, 1)]
    [[2, 3, 4], [0, 1, 0]]
    """
    for axis, wanted in enumerate(size):
        gap = wanted - array.shape[axis]
        if gap > 0:
            width = [(0, 0)] * array.ndim
            width[axis] = (gap // 2, gap - gap // 2)
            array = np.pad(array, width)
        elif gap < 0:
            array = array[(*(slice(None),) * axis, slice(-gap // 2, -gap // 2 + wanted))]
    return array


def places(mask: np.ndarray, classes: int) -> np.ndarray:
    """Voxels to centre patches on, [n, 4] int64: class and place of at most PLACES of each class but the first.

    Evenly spaced among all voxels of the class in the order in which they lie, so that nothing is drawn.
    """
    found = [np.zeros((0, 4), np.int64)]
    for index in range(1, classes):
        there = np.flatnonzero(mask == index)
        if len(there):
            chosen = there[np.unique(np.linspace(0, len(there) - 1, min(PLACES, len(there))).astype(np.int64))]
            at = np.stack(np.unravel_index(chosen, mask.shape), axis=1)
            found.append(np.concatenate([np.full((len(at), 1), index), at], axis=1))
    return np.concatenate(found)


def counter(name: str) -> int:
    """The number by which a volume draws: a digest of its name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def drawn(size: Sequence[int], known: np.ndarray, volume: VolumeTable, seed: int, name: str) -> np.ndarray:
    """The first voxels [patches, 3] of the patches of a volume of this size.

    `known`: of `places`. The first `foreground` of them are centred on one of these, each class equally often as drawn,
    and moved inside where they would stick out; the others lie anywhere inside. Of an axis that is shorter than the
    patch, all of it is taken.

    >>> volume = VolumeTable(patch=(4, 4, 4), patches=3, foreground=1.0)
    >>> drawn((8, 8, 8), np.array([[1, 0, 3, 7]]), volume, 0, "a").tolist()
    [[0, 1, 4], [0, 1, 4], [0, 1, 4]]
    """
    assert volume.patch is not None
    patch, inside = np.asarray(volume.patch), np.maximum(np.asarray(size) - np.asarray(volume.patch), 0)
    number = np.arange(volume.patches)[:, None]
    uniform = random_bits.uniform(random_bits.bits(PATCHES, seed, counter(name)), number, np.arange(5))
    start = np.floor(uniform[:, :3] * (inside + 1)).astype(np.int64)
    centred = round(volume.foreground * volume.patches)
    if len(known) and centred:
        classes = np.unique(known[:, 0])
        of = classes[(uniform[:centred, 3] * len(classes)).astype(np.int64)]
        first, last = np.searchsorted(known[:, 0], of), np.searchsorted(known[:, 0], of, side="right")
        at = known[first + (uniform[:centred, 4] * (last - first)).astype(np.int64), 1:]
        start[:centred] = np.clip(at - patch // 2, 0, inside)
    return start


def windows(size: Sequence[int], patch: Sequence[int], overlap: float) -> np.ndarray:
    """The first voxels [n, 3] of windows that cover a volume of this size, evenly spaced, each axis by itself.

    >>> windows((8, 4, 3), (4, 4, 4), 0.5).tolist()
    [[0, 0, 0], [2, 0, 0], [4, 0, 0]]
    """
    along = []
    for length, window in zip(size, patch, strict=True):
        room = max(length - window, 0)
        count = -(-room // max(int(window * (1 - overlap)), 1)) + 1
        along.append(np.round(np.linspace(0, room, count)).astype(np.int64).tolist())
    return np.array([*itertools.product(*along)], np.int64)


def patch_of(whole: np.ndarray, start: np.ndarray, patch: Sequence[int]) -> np.ndarray:
    """The patch of a volume [D, H, W, ...] that begins at a voxel; zeros where the volume ends before it."""
    found = whole[tuple(slice(int(a), int(a) + n) for a, n in zip(start, patch, strict=True))]
    gaps = [(0, n - length) for n, length in zip(patch, found.shape, strict=False)]
    return np.pad(found, gaps + [(0, 0)] * (found.ndim - len(gaps))) if any(gap for _, gap in gaps) else found
