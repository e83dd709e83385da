"""Images or feature rows from a numpy .npz file, in the layout of MedMNIST or as plain images and labels."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from p2pfl.data.dataset import (
    Dataset,
    ImageFacts,
    Numbers,
    Recipe,
    Samples,
    as_float32,
    encode_labels,
    multi_labels,
    split,
    validate,
)  # fmt: skip
from p2pfl.data.image import DARK, WHITE, is_far
from p2pfl.errors import ConfigError, DataError

Range = tuple[float, float]

PAIRS = (("images", "labels"), ("x", "y"))
MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels")
VALIDATION = ("val_images", "val_labels")
IMAGES = ("train_images", "test_images", "val_images", *(image for image, _ in PAIRS))
MOST_CHANNELS = 4  # grey, two of something, RGB, RGBA; a longer last axis is space


def load(
    path: str | os.PathLike[str],
    test_fraction: float = 0.2,
    seed: int = 0,
    intensity: tuple[float, float] | None = None,
) -> Dataset:
    """Read an .npz: MedMNIST's keys (Yang et al. 2023), or "images" and "labels", or "x" and "y".

    Images of uint8 and uint16 become float32 in 0..1 by the largest value of their type. Other numbers are kept as
    they are; images far from 0..1 need `intensity`. [N, H, W] becomes [N, H, W, 1] and a volume [N, D, H, W] becomes
    [N, D, H, W, 1]. Labels: [N] or [N, 1], whole numbers or text, or [N, L] of 0 and 1, which is the kind "labels" (as
    in ChestMNIST); an array "classes" names them. Plain pairs are split at random, stratified by label.

    Args:
        path: of the file.
        test_fraction: of plain pairs, > 0 and < 1.
        seed: of the split, >= 0.
        intensity: the values that become 0 and 1, whatever the type; what lies outside is cut to them.

    Returns:
        The data set; MedMNIST's validation rows become `validation`.

    Raises:
        DataError: the file is missing, damaged or holds Python objects (never unpickled), or keys, shapes and labels do
            not fit; or images whose scale nobody says: wide types that are nearly dark, floats far from 0..1.
        ConfigError: a fraction outside (0, 1), or an intensity that is no range.

    Example:
        >>> import pathlib, tempfile, numpy as np, p2pfl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "mine.npz"
        ...     np.savez(file, x=np.eye(10), y=np.arange(10) % 2)
        ...     p2pfl.data.npz.load(file).train.x.shape
        (8, 10)
    """
    file = Path(path)
    where = str(path)
    if intensity is not None and not intensity[0] < intensity[1] < np.inf:
        raise ConfigError(f"intensity={list(intensity)}: must be [low, high]: the values that become 0 and 1")
    arrays, keys = _read(file, where, _wanted)
    raw = {key: images(arrays[key], key, where) for key in IMAGES if key in arrays}
    between, notes = _scaling(raw, intensity, where)
    x = {key: _scaled(array, between) for key, array in raw.items()}
    dataset = _parts(arrays, x, where) if "train_images" in arrays else _pair(arrays, x, where, test_fraction, seed)
    low, high = (0.0, 1.0) if between is None else between
    scaling = Numbers(((low,),), ((high - low,),), None, between is not None)
    dataset = dataset._replace(
        notes=(*_notes(keys, arrays), *notes),
        image=_facts(next(iter(raw.values())), between),
        recipe=Recipe("arrays", {}, scaling),
    )
    validate(dataset, where)
    return dataset


def pictures(path: str | os.PathLike[str]) -> np.ndarray:
    """Read images without labels from an .npz: "images", or "x".

    Args:
        path: of the file.

    Returns:
        [N, H, W, C] float32, scaled as `load` does.

    Raises:
        DataError: the file is missing, damaged or holds Python objects (never unpickled), or no images; or images that
            are not finite, or whose scale nobody says.

    Example:
        >>> import pathlib, tempfile, numpy as np
        >>> from p2pfl.data import npz
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "some.npz"
        ...     np.savez(file, images=np.full((2, 4, 4, 3), 51, np.uint8))
        ...     npz.pictures(file)[0, 0, 0].tolist()
        [0.20000000298023224, 0.20000000298023224, 0.20000000298023224]
    """
    where = str(path)
    arrays, _ = _read(Path(path), where, _pictured)
    ((key, array),) = arrays.items()
    found = images(array, key, where)
    if found.ndim != 4 or not len(found):
        raise DataError(f"{where}: {key} has shape {array.shape}; it must hold some images [N, H, W] or [N, H, W, C]")
    between, _ = _scaling({key: found}, None, where)
    x = _scaled(found, between)
    if not np.isfinite(x).all():
        raise DataError(f"{where}: {key} holds values that are not finite; leave such images out")
    return x


def _pictured(keys: list[str], where: str) -> list[str]:
    for key in ("images", "x"):
        if key in keys:
            return [key]
    raise DataError(f"{where}: no images. Needed: images, or x. Found: {', '.join(keys) or 'nothing'}")


def _parts(arrays: dict[str, np.ndarray], x: dict[str, np.ndarray], where: str) -> Dataset:
    """MedMNIST's keys."""
    names = [part for part in ("train", "test", "val") if f"{part}_images" in arrays]
    y, classes, kind = _labels({f"{part}_labels": arrays[f"{part}_labels"] for part in names}, arrays, where)
    parts = {}
    for part, labels in zip(names, y, strict=True):
        _same_length(x[f"{part}_images"], labels, f"{part}_images", f"{part}_labels", where)
        parts[part] = Samples(x[f"{part}_images"], labels)
    validation = parts.get("val")
    # A file that was cut down for a try may keep the key and no rows.
    validation = validation if validation is not None and len(validation.y) else None
    return Dataset(parts["train"], parts["test"], classes, validation=validation, kind=kind)


def _pair(
    arrays: dict[str, np.ndarray], x: dict[str, np.ndarray], where: str, test_fraction: float, seed: int
) -> Dataset:
    """Images and labels without a split."""
    image_key, label_key = next(pair for pair in PAIRS if pair[0] in arrays)
    pixels = x[image_key]
    (y,), classes, kind = _labels({label_key: arrays[label_key]}, arrays, where)
    _same_length(pixels, y, image_key, label_key, where)
    in_test = split(y, None, test_fraction, seed)
    train, test = Samples(pixels[~in_test], y[~in_test]), Samples(pixels[in_test], y[in_test])
    return Dataset(train, test, classes, kind=kind)


def _labels(
    raw: dict[str, np.ndarray], arrays: dict[str, np.ndarray], where: str
) -> tuple[list[np.ndarray], tuple[str, ...], str]:
    """y of each array, class names, kind."""
    names = _class_names(arrays, where)
    if all(array.ndim == 2 and array.shape[1] > 1 for array in raw.values()):
        return *multi_labels(raw, names, where), "labels"
    return *encode_labels(raw, names, where), "classes"


def _read(
    file: Path, where: str, wanted: Callable[[list[str], str], list[str]]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays that are used, by key, and the keys of all. `wanted`: of the keys, those that are used."""
    if not file.is_file():
        raise DataError(f"{where}: no such file ({file.resolve()})")
    if not zipfile.is_zipfile(file):
        raise DataError(f"{where}: not an .npz file (a zip of arrays); write it with numpy.savez_compressed")
    try:
        with np.load(file, allow_pickle=False) as found:
            keys = list(found.files)
            return {key: found[key] for key in wanted(keys, where)}, keys
    except ValueError as exc:  # what numpy raises for an array of Python objects, and for a damaged header
        raise DataError(
            f"{where}: {exc}. Arrays of Python objects are never read; store plain numbers or text of fixed width"
        ) from exc
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as exc:
        raise DataError(f"{where}: the file is damaged or can't be read: {exc}") from exc


def _wanted(keys: list[str], where: str) -> list[str]:
    names = ["classes"] if "classes" in keys else []
    if any(key in keys for key in MEDMNIST):
        lacking = [key for key in MEDMNIST if key not in keys]
        if lacking:
            raise DataError(
                f"{where}: lacks {', '.join(lacking)}; MedMNIST's layout needs {', '.join(MEDMNIST)}. "
                f"Found: {', '.join(keys)}"
            )
        return [*MEDMNIST, *(VALIDATION if all(key in keys for key in VALIDATION) else ()), *names]
    for pair in PAIRS:
        if all(key in keys for key in pair):
            return [*pair, *names]
    raise DataError(
        f"{where}: no arrays to learn from. Needed: {', '.join(MEDMNIST)}; or images and labels; or x and y. "
        f"Found: {', '.join(keys) or 'nothing'}"
    )


def _class_names(arrays: dict[str, np.ndarray], where: str) -> list[str] | None:
    if "classes" not in arrays:
        return None
    names = arrays["classes"]
    if names.ndim != 1:
        raise DataError(f"{where}: classes has shape {names.shape}; it must be a list of names, [classes]")
    # Names given as bytes are decoded, so that "WBC" is not shown as "b'WBC'".
    return [str(name) for name in (names.astype(str) if names.dtype.kind == "S" else names).tolist()]


def images(array: np.ndarray, key: str, where: str) -> np.ndarray:
    """The array with a channel axis where rows are images."""
    if array.dtype.kind not in "buif":
        raise DataError(f"{where}: {key} has dtype {array.dtype}; it must hold numbers")
    if array.ndim not in (2, 3, 4, 5):
        raise DataError(
            f"{where}: {key} has shape {array.shape}; it must be rows [N, F], images [N, H, W] or [N, H, W, C], "
            "or volumes [N, D, H, W] or [N, D, H, W, C]"
        )
    space = array.shape[1:]
    if len(space) == 3 and space[0] <= MOST_CHANNELS < min(space[1:]):
        raise DataError(
            f"{where}: {key} has shape {array.shape}, which looks like channels before height and width; "
            "put them last: numpy.moveaxis(images, 1, -1)"
        )
    if len(space) == 2 or (len(space) == 3 and space[-1] > MOST_CHANNELS):
        array = array[..., None]
    return array


def _scaling(
    raw: dict[str, np.ndarray], intensity: tuple[float, float] | None, where: str
) -> tuple[Range | None, tuple[str, ...]]:
    """The values that become 0 and 1, None to leave all as they are; and what is to be said."""
    raw = {key: array for key, array in raw.items() if array.size}
    if not raw:
        return None, ()  # there are no rows, as `validate` says
    low, high = min(array.min() for array in raw.values()), max(array.max() for array in raw.values())
    if intensity is not None:
        between = float(intensity[0]), float(intensity[1])
        return between, _cut(raw, between)
    key, first = next(iter(raw.items()))
    rows = first.ndim == 2
    whole = {array.dtype.name for array in raw.values()} & WHITE.keys() - ({"uint16"} if rows else set())
    what = f"{where}: {key} holds {low:g} to {high:g} as {first.dtype}"
    way = (
        "say at every node which values become 0 and 1: intensity = [low, high], such as [0, 255] for 8 bits, "
        "[0, 4095] for 12, [-1000, 1000] for Hounsfield units"
    )
    if len(whole) > 1 or (whole and any(array.dtype.name not in whole for array in raw.values())):
        dtypes = ", ".join(f"{key} {array.dtype}" for key, array in raw.items())
        raise DataError(f"{where}: images of several types ({dtypes}); store one type, or {way}")
    if whole:
        white = WHITE[whole.pop()]
        if white > WHITE["uint8"] and high <= white / DARK:
            raise DataError(f"{what}, whose white is {white:g}: nearly black by that; {way}")
        return (0.0, white), ()
    if not any(is_far(array) for array in raw.values()):
        return None, ()
    if rows:
        return None, (
            f"{key} is learned from as it is, {low:g} to {high:g}; numbers far from 0..1 can make it diverge",
        )
    raise DataError(f"{what}, far from 0..1, where training diverges; {way}")


def _cut(raw: dict[str, np.ndarray], between: Range) -> tuple[str, ...]:
    outside = sum(int(((array < between[0]) | (array > between[1])).sum()) for array in raw.values())
    share = outside / sum(array.size for array in raw.values())
    said = f"intensity = [{between[0]:g}, {between[1]:g}]: {share:.2g} of all values lie outside and were cut to it"
    return (said,) if outside else ()


def _scaled(array: np.ndarray, between: Range | None) -> np.ndarray:
    """[N, ...] float32; what is not finite stays so, for `validate` to say it."""
    x = as_float32(array)
    if between is None:
        return x
    if array.dtype.kind == "f" and not np.isfinite(x).all():
        return x
    low, high = np.float32(between[0]), np.float32(between[1])
    x = (x - low) / (high - low)
    return np.clip(x, 0, 1, out=x)


def _facts(images: np.ndarray, between: Range | None) -> ImageFacts | None:
    """Of images [N, H, W, C] and volumes [N, D, H, W, C]; None of rows."""
    if images.ndim == 2:
        return None
    *space, channels = images.shape[1:]
    shape = (*space[1:], space[0]) if len(space) == 3 else tuple(space)
    scaling = "none" if between is None else "fixed"
    return ImageFacts(shape, channels, 8 * images.dtype.itemsize, "unknown", scaling, between, "", "")


def _same_length(x: np.ndarray, y: np.ndarray, image_key: str, label_key: str, where: str) -> None:
    if len(x) != len(y):
        raise DataError(f"{where}: {image_key} has {len(x)} rows, {label_key} has {len(y)}; they must be equal")


def _notes(keys: list[str], arrays: dict[str, np.ndarray]) -> tuple[str, ...]:
    unused = [key for key in keys if key not in arrays]
    notes = []
    if "val_images" in arrays:
        kept = len(arrays["val_images"])
        notes.append(f'kept {kept} validation rows ({", ".join(VALIDATION)}) for [evaluation] rows = "validation"')
    if unused:
        notes.append(
            f"not used: {', '.join(unused)}"
            + (
                ""
                if "train_images" in arrays
                else ". The split is by row: if one of these says which rows belong together (one patient, one slide), "
                "such rows may stand in train and in test, and the test is then too kind"
            )
        )
    return tuple(notes)
