"""Data: arrays in, arrays out. Built-in sets, .npz, .csv, MedMNIST, folders as they are, and functions of the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from p2pfl.data import builtin, csv, folder, medmnist, npz
from p2pfl.data.builtin import breast_cancer, digits
from p2pfl.data.dataset import (
    Column,
    Dataset,
    ImageFacts,
    Numbers,
    Recipe,
    Samples,
    as_float32,
    encode_labels,
    validate,
)
from p2pfl.data.image import is_far
from p2pfl.data.partition import PARTITIONS, Partition, by_site, dirichlet, iid, shards
from p2pfl.errors import DataError

__all__ = [
    "BUILTIN",
    "PARTITIONS",
    "Column",
    "Dataset",
    "ImageFacts",
    "Numbers",
    "Partition",
    "Recipe",
    "Samples",
    "as_dataset",
    "breast_cancer",
    "builtin",
    "by_site",
    "csv",
    "digits",
    "dirichlet",
    "folder",
    "from_arrays",
    "iid",
    "medmnist",
    "npz",
    "shards",
    "validate",
]

BUILTIN: Mapping[str, Callable[..., Dataset]] = MappingProxyType(
    {"digits": builtin.digits, "breast_cancer": builtin.breast_cancer}
)
"""Data sets that come with scikit-learn, by name."""


def as_dataset(result: object, where: str) -> Dataset:
    """Make a checked data set of what a function of the user's own has returned.

    Args:
        result: a Dataset, or (x_train, y_train, x_test, y_test), as `from_arrays` takes them.
        where: what the text of an error begins with.

    Returns:
        The data set; images far from 0..1 are noted.

    Raises:
        DataError: anything else, or data that `validate` refuses.

    Example:
        >>> import numpy as np, p2pfl
        >>> p2pfl.data.as_dataset((np.eye(2), [0, 1], np.eye(2), [1, 0]), "mine").train.y.tolist()
        [0, 1]
    """
    dataset = result if isinstance(result, Dataset) else _from_returned(result, where)
    validate(dataset, where)
    if dataset.train.x.ndim > 2 and is_far(dataset.train.x):
        said = f"{where}: images are far from 0..1, where training can diverge; scale them in the function"
        return dataset._replace(notes=(*dataset.notes, said))
    return dataset


def _from_returned(found: object, where: str) -> Dataset:
    """(x_train, y_train, x_test, y_test) as a Dataset."""
    if not isinstance(found, (tuple, list)) or len(found) != 4:
        what = f"{len(found)} values" if isinstance(found, (tuple, list)) else f"a {type(found).__name__}"
        raise DataError(f"{where}: returned {what}; a Dataset or (x_train, y_train, x_test, y_test) is needed")
    try:
        x_train, y_train, x_test, y_test = (np.asarray(part) for part in found)
    except ValueError as exc:  # nested lists of unequal length
        raise DataError(f"{where}: returned what can't be made an array: {exc}") from exc
    return from_arrays(x_train, y_train, x_test, y_test, where)


def from_arrays(
    x_train: npt.ArrayLike, y_train: npt.ArrayLike, x_test: npt.ArrayLike, y_test: npt.ArrayLike, where: str = "arrays"
) -> Dataset:
    """Make a data set of classes from arrays.

    Args:
        x_train: [N, ...] numbers; cast to float32, never scaled.
        y_train: [N] or [N, 1] whole numbers or text: the label of each row.
        x_test: [M, ...] numbers, rows to test on.
        y_test: [M] or [M, 1] labels; the classes are all labels of both parts, in order.
        where: what the text of an error begins with.

    Returns:
        The data set; `validate` says whether it can be trained on.

    Raises:
        DataError: x holds no numbers, or y no labels.

    Example:
        >>> import numpy as np, p2pfl
        >>> p2pfl.data.from_arrays(np.eye(2), ["ill", "well"], np.eye(2), ["well", "well"]).classes
        ('ill', 'well')
    """
    parts = {"x_train": np.asarray(x_train), "x_test": np.asarray(x_test)}
    for name, x in parts.items():
        if x.dtype.kind not in "buif":
            raise DataError(f"{where}: {name} has dtype {x.dtype}; it must hold numbers")
    labels = {"y_train": np.asarray(y_train), "y_test": np.asarray(y_test)}
    (train, test), classes = encode_labels(labels, None, where)
    x, x_other = (as_float32(part) for part in parts.values())
    return Dataset(Samples(x, train), Samples(x_other, test), classes)
