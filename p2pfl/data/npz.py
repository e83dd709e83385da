"""Images or feature rows from a numpy .npz file, in the layout of MedMNIST or as plain images and labels."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from p2pfl.data.dataset import Dataset, Samples, as_float32, encode_labels, multi_labels, split, validate
from p2pfl.errors import DataError

PAIRS = (("images", "labels"), ("x", "y"))
MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels")
VALIDATION = ("val_images", "val_labels")
MOST_CHANNELS = 4  # grey, two of something, RGB, RGBA; a longer last axis is space


def load(path: str | os.PathLike[str], test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Read an .npz: MedMNIST's keys (Yang et al. 2023), or "images" and "labels", or "x" and "y".

    uint8 images become float32 in 0..1, other numbers are kept as they are; [N, H, W] becomes [N, H, W, 1] and a volume
    [N, D, H, W] becomes [N, D, H, W, 1]. Labels: [N] or [N, 1], whole numbers or text, or [N, L] of 0 and 1, which is
    the kind "labels" (as in ChestMNIST); an array "classes" names them. Plain pairs are split at random, stratified by
    label.

    Args:
        path: of the file.
        test_fraction: of plain pairs, > 0 and < 1.
        seed: of the split, >= 0.

    Returns:
        The data set; MedMNIST's validation rows become `validation`.

    Raises:
        DataError: the file is missing, damaged or holds Python objects (never unpickled), or keys, shapes and labels do
            not fit.
        ConfigError: a fraction outside (0, 1).

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
    arrays, keys = _read(file, where)
    dataset = _parts(arrays, where) if "train_images" in arrays else _pair(arrays, where, test_fraction, seed)
    dataset = dataset._replace(notes=_notes(keys, arrays))
    validate(dataset, where)
    return dataset


def _parts(arrays: dict[str, np.ndarray], where: str) -> Dataset:
    """MedMNIST's keys."""
    names = [part for part in ("train", "test", "val") if f"{part}_images" in arrays]
    y, classes, kind = _labels({f"{part}_labels": arrays[f"{part}_labels"] for part in names}, arrays, where)
    parts = {}
    for part, labels in zip(names, y, strict=True):
        x = _images(arrays[f"{part}_images"], f"{part}_images", where)
        _same_length(x, labels, f"{part}_images", f"{part}_labels", where)
        parts[part] = Samples(x, labels)
    validation = parts.get("val")
    # A file that was cut down for a try may keep the key and no rows.
    validation = validation if validation is not None and len(validation.y) else None
    return Dataset(parts["train"], parts["test"], classes, validation=validation, kind=kind)


def _pair(arrays: dict[str, np.ndarray], where: str, test_fraction: float, seed: int) -> Dataset:
    """Images and labels without a split."""
    image_key, label_key = next(pair for pair in PAIRS if pair[0] in arrays)
    pixels = _images(arrays[image_key], image_key, where)
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


def _read(file: Path, where: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays that are used, by key, and the keys of all."""
    if not file.is_file():
        raise DataError(f"{where}: no such file ({file.resolve()})")
    if not zipfile.is_zipfile(file):
        raise DataError(f"{where}: not an .npz file (a zip of arrays); write it with numpy.savez_compressed")
    try:
        with np.load(file, allow_pickle=False) as found:
            keys = list(found.files)
            return {key: found[key] for key in _wanted(keys, where)}, keys
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


def _images(array: np.ndarray, key: str, where: str) -> np.ndarray:
    """float32 with a channel axis where rows are images."""
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
    return as_float32(array) / np.float32(255) if array.dtype == np.uint8 else as_float32(array)


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
