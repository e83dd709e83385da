"""What every source of data returns, and the few pure steps that the sources share.

A data set is arrays: train rows, test rows, and the names of classes, sites and features. Everything that a source left
out or filled in stands in `notes`, in words, to be shown to the user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from p2pfl.check import at_least, fraction
from p2pfl.errors import DataError, nearest

# One constant per purpose of randomness, so that the same seed elsewhere does not draw the same numbers.
SPLIT_PURPOSE = 0x5917


class Samples(NamedTuple):
    """Rows of one part of a data set."""

    x: np.ndarray  # [N, ...] float32
    y: np.ndarray  # [N] int32: index into Dataset.classes
    site: np.ndarray | None = None  # [N] int32: index into Dataset.sites


class Dataset(NamedTuple):
    """Train and test rows with the names of what is in them."""

    train: Samples
    test: Samples
    classes: tuple[str, ...]
    sites: tuple[str, ...] = ()
    features: tuple[str, ...] = ()  # names of the columns of a flat x; () where they have none
    notes: tuple[str, ...] = ()  # what was left out or filled in, in words


def validate(dataset: Dataset, where: str) -> None:
    """Refuse a data set that training could not use; `where` says where it came from.

    Holds: float32 x, int32 y and site, equal lengths, equal row shapes, no NaN and nothing infinite, labels and sites
    within their names, at least two classes, at least one train row and one test row.
    Raises DataError with the part ("train.x"), how many entries are wrong, and the first row (counted from 0).
    """
    _validate_names(dataset, where)
    for part, samples in (("train", dataset.train), ("test", dataset.test)):
        _validate_part(samples, part, dataset, where)
    row_train, row_test = dataset.train.x.shape[1:], dataset.test.x.shape[1:]
    if row_train != row_test:
        raise DataError(
            f"{where}: a row of train.x has shape {row_train}, a row of test.x {row_test}; they must be equal"
        )
    if dataset.features and row_train != (len(dataset.features),):
        raise DataError(f"{where}: {len(dataset.features)} feature names for rows of shape {row_train}")


def _validate_names(dataset: Dataset, where: str) -> None:
    for what, names in (("classes", dataset.classes), ("sites", dataset.sites), ("features", dataset.features)):
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise DataError(f"{where}: {what} holds {', '.join(map(repr, twice))} more than once; names must differ")
    if len(dataset.classes) < 2:
        raise DataError(f"{where}: a single class {dataset.classes!r}; at least two are needed to learn anything")


def _validate_part(samples: Samples, part: str, dataset: Dataset, where: str) -> None:
    named: list[tuple[str, Any, type]] = [("x", samples.x, np.float32), ("y", samples.y, np.int32)]
    if (samples.site is not None) != bool(dataset.sites):
        raise DataError(
            f"{where}: {part}.site is {'None' if samples.site is None else 'given'}, but sites={dataset.sites!r}; "
            "give both or neither"
        )
    if samples.site is not None:
        named.append(("site", samples.site, np.int32))
    for name, array, dtype in named:
        if not isinstance(array, np.ndarray):
            raise DataError(f"{where}: {part}.{name} is a {type(array).__name__}; it must be a numpy array")
        if array.dtype != dtype:
            raise DataError(f"{where}: {part}.{name} has dtype {array.dtype}; it must be {np.dtype(dtype).name}")
        if (array.ndim != 1) if name != "x" else (array.ndim < 2):
            rule = "two or more axes, [rows, ...]" if name == "x" else "one axis, [rows]"
            raise DataError(f"{where}: {part}.{name} has shape {array.shape}; it must have {rule}")
        if len(array) != len(samples.y):
            raise DataError(
                f"{where}: {part}.{name} has {len(array)} rows, {part}.y has {len(samples.y)}; they must be equal"
            )
    if not len(samples.y):
        raise DataError(f"{where}: no {part} rows; at least one is needed")
    _validate_range(samples.y, len(dataset.classes), f"{where}: {part}.y", "classes")
    if samples.site is not None:
        _validate_range(samples.site, len(dataset.sites), f"{where}: {part}.site", "sites")
    wrong = ~np.isfinite(samples.x)
    if wrong.any():
        nan = int(np.isnan(samples.x).sum())
        row = int(np.argmax(wrong.reshape(len(wrong), -1).any(axis=1)))
        raise DataError(
            f"{where}: {part}.x holds {nan} NaN and {int(wrong.sum()) - nan} infinite values among {wrong.size}, "
            f"first in row {row}; fill them or leave these rows out"
        )


def _validate_range(index: np.ndarray, size: int, what: str, names: str) -> None:
    wrong = (index < 0) | (index >= size)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{what} holds {int(wrong.sum())} values outside 0..{size - 1} ({size} {names}), "
            f"first in row {row}: {int(index[row])}"
        )


def apportion(total: int, shares: npt.ArrayLike) -> np.ndarray:
    """Cut `total` things into whole numbers in proportion to `shares` [n] (>= 0, not all 0): [n] int64.

    The largest remainders are rounded up, so the sum is `total` exactly, every entry is within 1 of its quota, and a
    share of 0 gets 0. Equal remainders: the lower index first.
    """
    weight = np.asarray(shares, np.float64)
    quota = total * (weight / weight.sum())
    counts: np.ndarray = np.floor(quota).astype(np.int64)
    order = np.argsort(counts - quota, kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return counts


def split(y: np.ndarray, site: np.ndarray | None, test_fraction: float, seed: int) -> np.ndarray:
    """Draw the test rows, stratified by (site, label) as far as whole rows allow: [N] bool, True = test.

    y [N] int, site [N] int or None. Every site gives round(test_fraction * rows) test rows (at least 1 where it has two
    rows or more), cut over its labels by largest remainder; the last row of a (site, label) always stays in train.
    Raises ConfigError for a fraction outside (0, 1) or a negative seed.
    """
    fraction(test_fraction=test_fraction)
    at_least(0, seed=seed)
    rng = np.random.default_rng([seed, SPLIT_PURPOSE])
    in_test = np.zeros(len(y), bool)
    groups = np.zeros(len(y), np.int64) if site is None else site
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        labels, sizes = np.unique(y[rows], return_counts=True)
        wanted = min(max(round(test_fraction * len(rows)), 1), len(rows) - 1)
        counts = np.minimum(apportion(wanted, sizes), sizes - 1)
        while counts.sum() < wanted and (counts < sizes - 1).any():  # what a small label could not give
            counts[np.argmax(np.where(counts < sizes - 1, sizes - 1 - counts, -1))] += 1
        for label, count in zip(labels, counts, strict=True):
            in_test[rng.permutation(rows[y[rows] == label])[:count]] = True
    return in_test


def mean_and_sd(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [F] and standard deviation [F] of the columns of x [N, F], in float64; a constant column gets sd 1."""
    wide = np.asarray(x, np.float64)
    sd = wide.std(axis=0)
    # Rounding makes the sd of a constant column 1e-17 instead of 0, hence the look at the range.
    constant = (np.ptp(wide, axis=0) == 0) | (sd == 0)
    return wide.mean(axis=0), np.where(constant, 1.0, sd)


def as_float32(x: np.ndarray) -> np.ndarray:
    """Cast to float32. What is too large becomes infinite without a warning: `validate` is what says it."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(x, np.float32)


def encode_labels(
    raw: Mapping[str, np.ndarray], names: Sequence[str] | None, where: str
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Code labels as class indices: ([N] int32 for each array of `raw`, class names).

    raw: name -> [N] or [N, 1] integers, whole-numbered floats, booleans or text. With `names`, text labels must be
    among them and numbers are indices into them; without, the classes are the sorted values of all arrays together.
    Raises DataError for several label columns, fractional or NaN labels, unknown labels and other dtypes.
    """
    flat = [_label_column(array, name, where) for name, array in raw.items()]
    text = any(column.dtype.kind == "U" for column in flat)
    if text and any(column.dtype.kind != "U" for column in flat):
        raise DataError(f"{where}: labels are text in one of {', '.join(raw)} and numbers in another; use one kind")
    if names is None:
        values = np.unique(np.concatenate(flat))
        coded = [np.searchsorted(values, column).astype(np.int32) for column in flat]
        return coded, tuple(str(value) for value in values.tolist())
    classes = tuple(str(name) for name in names)
    coded = []
    for name, column in zip(raw, flat, strict=True):
        known = np.isin(column, np.asarray(classes)) if text else (column >= 0) & (column < len(classes))
        if not known.all():
            row = int(np.argmin(known))
            valid = nearest(column[row], classes) if text else f"Valid: 0..{len(classes) - 1}"
            raise DataError(f"{where}: {name} row {row} has label {column[row].item()!r}, not a class. {valid}")
        index = [classes.index(str(value)) for value in column] if text else column
        coded.append(np.asarray(index, np.int32))
    return coded, classes


def _label_column(array: np.ndarray, name: str, where: str) -> np.ndarray:
    """One array of labels as [N] int64 or [N] text."""
    if array.ndim == 2 and array.shape[1] > 1:
        raise DataError(
            f"{where}: {name} has {array.shape[1]} columns; one label per row is needed (multi-label data is not "
            "supported). One-hot labels: store their argmax over axis 1"
        )
    if array.ndim not in (1, 2):
        raise DataError(f"{where}: {name} has shape {array.shape}; labels must be [rows] or [rows, 1]")
    column = array.reshape(-1)
    if column.dtype.kind in "US":
        return column.astype(str)
    if column.dtype.kind not in "biuf":
        raise DataError(f"{where}: {name} has dtype {column.dtype}; labels must be whole numbers or text")
    if column.dtype.kind == "f":
        whole = np.isfinite(column) & (column == np.round(column))
        if not whole.all():
            row = int(np.argmin(whole))
            raise DataError(f"{where}: {name} row {row} is {column[row].item()!r}; labels are whole numbers or text")
    return column.astype(np.int64)
