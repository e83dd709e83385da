"""Data: arrays in, arrays out. Built-in sets, .npz, .csv, MedMNIST, folders as they are, and functions of the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from p2pfl.data import builtin, csv, folder, medmnist, npz
from p2pfl.data.dataset import Dataset, Samples, as_float32, encode_labels, validate
from p2pfl.errors import DataError

__all__ = ["BUILTIN", "Dataset", "Samples", "as_dataset", "builtin", "csv", "folder", "medmnist", "npz", "validate"]

BUILTIN: Mapping[str, Callable[..., Dataset]] = MappingProxyType(
    {"digits": builtin.digits, "breast_cancer": builtin.breast_cancer}
)
"""Data sets that come with scikit-learn, by name."""


def as_dataset(result: object, where: str) -> Dataset:
    """The data that a function of the user's own has returned, checked.

    It is a Dataset, or (x_train, y_train, x_test, y_test): x [N, ...] numbers (cast to float32, never scaled), y [N] or
    [N, 1] whole numbers or text. Raises DataError, with `where` at its head, for anything else, and for data that
    `validate` refuses.
    """
    dataset = result if isinstance(result, Dataset) else _from_arrays(result, where)
    validate(dataset, where)
    return dataset


def _from_arrays(found: object, where: str) -> Dataset:
    """(x_train, y_train, x_test, y_test) as a Dataset."""
    if not isinstance(found, (tuple, list)) or len(found) != 4:
        what = f"{len(found)} values" if isinstance(found, (tuple, list)) else f"a {type(found).__name__}"
        raise DataError(f"{where}: returned {what}; a Dataset or (x_train, y_train, x_test, y_test) is needed")
    try:
        x_train, y_train, x_test, y_test = (np.asarray(part) for part in found)
    except ValueError as exc:  # nested lists of unequal length
        raise DataError(f"{where}: returned what can't be made an array: {exc}") from exc
    for name, x in (("x_train", x_train), ("x_test", x_test)):
        if x.dtype.kind not in "buif":
            raise DataError(f"{where}: {name} has dtype {x.dtype}; it must hold numbers")
    (train, test), classes = encode_labels({"y_train": y_train, "y_test": y_test}, None, where)
    return Dataset(Samples(as_float32(x_train), train), Samples(as_float32(x_test), test), classes)
