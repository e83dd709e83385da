"""Where images lie in space: a mask belongs on the voxels of its image, and the channels of a row on one another."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from p2pfl.data.image import ReadImage, extra
from p2pfl.errors import DataError

CLOSE = 0.1
"""Part of a voxel that corners may lie apart: headers are written with rounding."""
LOST = 0.01
"""Part of a mask that may lie outside of its image."""


class Grid(NamedTuple):
    """Where the voxels of a volume lie."""

    size: tuple[int, ...]  # [3]
    affine: np.ndarray  # [4, 4]: index of a voxel -> mm to the right, anterior, superior


def of_file(image: ReadImage) -> Grid | None:
    """The voxels of an image as its file has them, before it was turned; None where it does not say where they lie."""
    if image.affine is None:
        return None
    size = tuple(image.array.shape[:3])
    if image.stored_affine is None:
        return Grid(size, image.affine)
    turn = extra("nibabel", "volumes").io_orientation(image.stored_affine)
    return Grid(tuple(size[int(axis)] for axis in turn[:, 0]), image.stored_affine)


def onto(labels: np.ndarray, affine: np.ndarray, grid: Grid) -> np.ndarray:
    """Labels [a, b, c], whose voxels lie as `affine` says, on other voxels: the nearest of each.

    >>> coarse = np.array([[2, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    >>> onto(np.array([[[1]], [[2]]]), coarse, Grid((4, 1, 1), np.eye(4))).ravel().tolist()
    [1, 1, 2, 2]
    """
    from scipy.ndimage import affine_transform  # type: ignore[import-untyped]  # here: 0.1 s, and most data are planes

    matrix = np.linalg.inv(affine) @ grid.affine
    found: np.ndarray = affine_transform(labels, matrix[:3, :3], matrix[:3, 3], grid.size, order=0, mode="nearest")
    return found


def fitted(mask: ReadImage, image: ReadImage, mask_file: Path, file: Path) -> ReadImage:
    """The mask on the grid of its image: as it is, or, if its grid is another one, by the nearest of its voxels.

    Raises DataError where a grid of the same size lies elsewhere (one of the two headers is wrong), where a header says
    nothing (the identity), and where a part of the mask lies outside of the image.
    """
    if mask.affine is None or image.affine is None or _together(mask, image):
        return mask
    way = (
        "If their voxels are the same, write the mask with the affine of the image; else resample it with "
        "nibabel.processing.resample_from_to(mask, image, order=0)"
    )
    same_size = mask.array.shape[:3] == image.array.shape[:3]
    if same_size or any(_is_unset(own) for own in (mask, image)):
        raise DataError(f"{mask_file}: lies elsewhere than {file}: {_affines(mask, image)}. {way}")
    array, whole = _cube(mask.array), _cube(image.array).shape[:3]
    to_image = np.linalg.inv(image.affine) @ mask.affine
    places = to_image[:3, :3] @ np.argwhere(array.reshape(*array.shape[:3], -1).any(axis=3)).T + to_image[:3, 3:]
    # A voxel of the mask that is larger than those of the image may stand out by half of its own size.
    edge = np.abs(to_image[:3, :3]).sum(axis=1, keepdims=True) / 2
    outside = ((places < -0.5 - edge) | (places > np.array(whole)[:, None] - 0.5 + edge)).any(axis=0)
    if outside.size and outside.mean() > LOST:
        raise DataError(
            f"{mask_file}: {100 * outside.mean():.0f} % of it lie outside of {file}: {_affines(mask, image)}. {way}"
        )
    return mask._replace(
        array=_resampled(array, np.linalg.inv(to_image), whole, mask.array.ndim == 4, image.volume),
        volume=image.volume,
        affine=image.affine,
        notes=(*mask.notes, ("masks resampled to the voxels of their image", str(mask_file))),
    )


def same_place(other: ReadImage, first: ReadImage, other_file: Path, first_file: Path) -> None:
    """Raise DataError where two channels of a row lie on other voxels, as their headers say."""
    if other.affine is None or first.affine is None or _together(other, first):
        return
    raise DataError(
        f"{other_file}: lies elsewhere than {first_file}, another channel of its row: {_affines(other, first)}; their "
        f"sizes are {other.array.shape[:3]} and {first.array.shape[:3]}. Register and resample them to one grid"
    )


def _together(one: ReadImage, other: ReadImage) -> bool:
    """Whether all corners of two grids of one size are at the same place."""
    if one.array.shape[:3] != other.array.shape[:3]:
        return False
    assert one.affine is not None and other.affine is not None
    ends = [(0, size - 1) for size in _cube(one.array).shape[:3]]
    corners = np.array([(*corner, 1) for corner in itertools.product(*ends)], float).T
    apart = np.linalg.norm(((one.affine - other.affine) @ corners)[:3], axis=0)
    voxel = np.linalg.norm(other.affine[:3, :3], axis=0).min()
    return bool(apart.max() <= CLOSE * voxel)


def _cube(array: np.ndarray) -> np.ndarray:
    return array[..., None] if array.ndim == 2 else array


def _resampled(array: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...], frames: bool, volume: bool) -> np.ndarray:
    """The nearest voxel at matrix [4, 4] @ index, 0 outside; each frame on a fourth axis by itself."""
    from scipy.ndimage import affine_transform  # here: 0.1 s, and most data are planes

    parts = [array[..., i] for i in range(array.shape[3])] if frames else [array]
    found = [affine_transform(part, matrix[:3, :3], matrix[:3, 3], shape, order=0) for part in parts]
    whole = np.stack(found, axis=3) if frames else found[0]
    return np.asarray(whole if volume else whole[:, :, 0])


def _is_unset(image: ReadImage) -> bool:
    """Whether the header says nothing: the identity, or an affine that flattens space."""
    affine = _stored(image)
    return affine is not None and (bool((affine == np.eye(4)).all()) or np.linalg.matrix_rank(affine) < 4)


def _stored(image: ReadImage) -> np.ndarray | None:
    return image.affine if image.stored_affine is None else image.stored_affine


def _affines(one: ReadImage, other: ReadImage) -> str:
    """The two affines, as their files have them."""

    def rows(affine: np.ndarray | None) -> str:
        return str([[round(float(value), 3) + 0.0 for value in row] for row in ([] if affine is None else affine[:3])])

    return f"its affine is {rows(_stored(one))}, the other's {rows(_stored(other))}"
