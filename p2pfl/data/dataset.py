"""The data set that every source returns, and the few pure steps that the sources share.

A data set is arrays: train rows, test rows, and the names of classes, sites and features. Everything that a source left
out or filled in stands in `notes`, in words, to be shown to the user. What is to be predicted is its `kind`:

    classes       y [N] int32: index into classes
    labels        y [N, L] int32, 0 or 1: which of the L labels a row has; classes are the names of the labels
    regression    y [N, T] float32: T numbers; classes are the names of the targets
    survival      y [N, 2] float32: (time >= 0, 1 if the event was seen then and 0 if the row was censored)
    segmentation  y [N, H, W] int32: the class of each pixel of x [N, H, W, C]; of volumes
                  [N, D, H, W, C] y [N, D, H, W]
    reconstruction  y [N, H, W, C] float32 in 0..1: the image of which x [N, H, W, ...] was made; classes: its channels

x, and y of a segmentation, may be `p2pfl.data.stored.Stored`: rows that are read when they are asked for.

Rows of two inputs, columns and a picture, are flat: x [N, P + H W C] has P columns, and behind them the picture of
shape `Dataset.picture`, pixel by pixel as numpy lays it out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from p2pfl.check import at_least, fraction
from p2pfl.data.stored import Stored
from p2pfl.errors import DataError, nearest

# One constant per purpose of randomness, so that the same seed elsewhere does not draw the same numbers.
SPLIT_PURPOSE = 0x5917

KINDS: Mapping[str, tuple[type, tuple[str, ...]]] = MappingProxyType(
    {
        "classes": (np.int32, ("rows",)),
        "labels": (np.int32, ("rows", "labels")),
        "regression": (np.float32, ("rows", "targets")),
        "survival": (np.float32, ("rows", "2")),
        "segmentation": (np.int32, ("rows", "height", "width")),
        "reconstruction": (np.float32, ("rows", "height", "width", "channels")),
    }
)
"""What is predicted -> dtype and axes of y; see the head of this module."""
RISK = ("risk",)
"""The classes of a survival data set: the model's one output, the logarithm of the relative risk."""
_COUNTS = {1: "one axis", 2: "two axes", 3: "three axes", 4: "four axes"}


class Cases(NamedTuple):
    """The volume, or the patient, that each row of a segmentation is a piece of: what is scored as one."""

    of: np.ndarray  # [N] int64: the case of each row, 0, 1, ...; the rows of one stand together
    start: np.ndarray | None = None  # [N, 3] int64: of windows, where each begins in its volume; None: pieces of which
    # none lies on another, as slices
    size: np.ndarray | None = None  # [cases, 3] int64: voxels of each volume, of windows


class Samples(NamedTuple):
    """Rows of one part of a data set."""

    x: np.ndarray  # [N, ...] float32
    y: np.ndarray  # [N, ...] what is to be predicted, by Dataset.kind; of "classes" [N] int32
    site: np.ndarray | None = None  # [N] int32: index into Dataset.sites
    line: np.ndarray | None = None  # [N] int: the line of the file that a row is from, where it is from one
    case: Cases | None = None  # of a segmentation, where rows are pieces of something


INDICATOR = "+indicator"
"""Behind what is done about missing cells: a column of 0 and 1 beside it says where they were."""


class Column(NamedTuple):
    """A source column of a table, as plain values: what two sites must mean alike by it."""

    name: str
    kind: str  # "number" or "category"
    categories: tuple[str, ...] = ()  # of a category: all its values, in order
    unit: str = ""  # as the owner writes it; "" where nothing is said
    coding: str = ""  # of a category "one_hot" or "treatment"; of a number, whether it may not apply to a row
    missing: str = "error"  # what is done about missing cells, as the field of the source has it
    standardize: str = "none"  # by whose mean and standard deviation it is scaled: "node", "pooled" or "none"


class ImageFacts(NamedTuple):
    """What the images of a data set are, as plain values: nodes that differ show one model two kinds."""

    shape: tuple[int, ...]  # height and width, of volumes height, width and depth, in pixels of a row of x
    channels: int
    bit_depth: int  # of a stored value; the largest where files differ
    unit: str  # of a stored value: "HU", "SUV", ...; "stored": none; "unknown": the format can't say
    scaling: str  # "fixed": by `intensity`; what each file is scaled by: "window", "percentiles", "zscore"; or "none"
    intensity: tuple[float, float] | None  # the values, in `unit`, that become 0 and 1 in every file; None: not "fixed"
    orientation: str  # where height, width and depth grow to: "RAS" is right, anterior, superior; "" of plain images
    photometric: str  # of a row of x: "MONOCHROME2" (more is brighter), "RGB"; "" where nobody says


class Moments(NamedTuple):
    """Of the train rows of each site before anything was scaled; without sites, of all."""

    mean: np.ndarray  # [S, F] float64, of cells that are not missing; NaN where all are
    sd: np.ndarray  # [S, F] float64; 0 where a column is constant
    two: Mapping[str, tuple[Mapping[str, int], ...]] = MappingProxyType({})  # column of at most two values -> of each
    # site, value -> train rows


class Numbers(NamedTuple):
    """From the numbers of a source to x: (filled - mean) / sd, cut to 0..1 where `clip` says so.

    Each is a row for every site that has its own, or one alone, of as many numbers as the last axis of x has, or one.
    """

    mean: tuple[tuple[float, ...], ...]  # [places, F]
    sd: tuple[tuple[float, ...], ...]
    fill: tuple[tuple[float, ...], ...] | None = None  # what NaN becomes; None where it stays
    clip: bool = False
    first: int | None = None  # only so many numbers of the last axis: what is behind them, a picture, stays as it is


class Recipe(NamedTuple):
    """How rows of a source became x, so that new ones can go through the same: see p2pfl.data.new_rows."""

    reader: str  # what reads such rows: "table", "arrays" or "files"
    fields: Mapping[str, Any]  # what it must know, as plain values
    numbers: Numbers


NO_SITE = ""
"""The site of a row that names none, and of all rows where there are no sites."""


class LeftOut(NamedTuple):
    """Rows that a source has read and left out for one reason."""

    why: str
    rows: Mapping[str, int]  # site -> how many


class Flow(NamedTuple):
    """What became of the rows that were read; the rest are those of the data set."""

    left_out: tuple[LeftOut, ...] = ()  # in the order in which they were
    missing: Mapping[str, Mapping[str, int]] = MappingProxyType({})  # column -> site -> empty cells of the rows kept
    cut: Mapping[str, int] = MappingProxyType({})  # site -> rows of the source that were cut into several, as slices


def left_out(why: str | np.ndarray, gone: np.ndarray, site: np.ndarray | None) -> tuple[LeftOut, ...]:
    """Count the rows that are left out by reason and site; nothing for none.

    Args:
        why: the reason, or one for each row, [N].
        gone: [N] bool.
        site: [N] names of the sites; None: there are none.

    Example:
        >>> left_out("no answer", np.array([True, False, True]), np.array(["a", "a", "b"]))
        (LeftOut(why='no answer', rows={'a': 1, 'b': 1}),)
    """
    places = np.full(len(gone), NO_SITE, object) if site is None else site
    counts: dict[str, dict[str, int]] = {}
    for reason, place in zip(np.broadcast_to(np.asarray(why, object), len(gone))[gone], places[gone], strict=True):
        own = counts.setdefault(str(reason), {})
        own[str(place)] = own.get(str(place), 0) + 1
    return tuple(LeftOut(reason, rows) for reason, rows in counts.items())


class Dataset(NamedTuple):
    """Train and test rows with the names of what is in them."""

    train: Samples
    test: Samples
    classes: tuple[str, ...]  # names of classes, labels or targets: one for each number that a model puts out
    sites: tuple[str, ...] = ()
    features: tuple[str, ...] = ()  # names of the columns of a flat x, but for a picture; () where they have none
    notes: tuple[str, ...] = ()  # what was left out or filled in, in words
    validation: Samples | None = None  # rows that are neither trained on nor tested on, where the data set has them
    kind: str = "classes"  # a name of KINDS
    columns: tuple[Column, ...] = ()  # of a table: the columns that x is made of, in order; () where there are none
    image: ImageFacts | None = None  # of a source that reads images
    predicts: tuple[str, ...] = ()  # of a table: the columns that y is made of
    recipe: Recipe | None = None  # None: nobody says how x was made, as of a function of the user's own
    flow: Flow = Flow()  # who was left out and why, and what was missing
    picture: tuple[int, ...] = ()  # [H, W, C] of the picture that lies behind the columns of a flat x; () for none
    moments: Moments | None = None  # of a table


def validate(dataset: Dataset, where: str) -> None:
    """Refuse a data set that training could not use.

    Holds: a kind of KINDS, float32 x, y of the kind's dtype and shape, int32 site, equal lengths, equal row shapes, no
    NaN (but in x, where columns are filled in later: Column.missing is "gossip") and nothing infinite, labels and sites
    within their names, at least two classes (of labels, targets and risks: one), at least one train row and one test
    row.

    Args:
        dataset: to look at.
        where: where it came from, the head of an error.

    Raises:
        DataError: the part ("train.x"), how many entries are wrong, and the first row (counted from 0).

    Example:
        >>> import numpy as np, p2pfl
        >>> rows = p2pfl.Samples(np.full((1, 2), np.nan, np.float32), np.zeros(1, np.int32))
        >>> p2pfl.data.validate(p2pfl.Dataset(rows, rows, ("a", "b")), "mine")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        p2pfl.errors.DataError: mine: train.x ...
    """
    _validate_names(dataset, where)
    parts = [("train", dataset.train), ("test", dataset.test)]
    parts += [] if dataset.validation is None else [("validation", dataset.validation)]
    for part, samples in parts:
        _validate_part(samples, part, dataset, where)
    row_train = dataset.train.x.shape[1:]
    for part, samples in parts[1:]:
        if samples.x.shape[1:] != row_train:
            raise DataError(
                f"{where}: a row of train.x has shape {row_train}, a row of {part}.x {samples.x.shape[1:]}; "
                "they must be equal"
            )
    behind = math.prod(dataset.picture) if dataset.picture else 0
    if (dataset.features or behind) and row_train != (len(dataset.features) + behind,):
        said = f" and a picture {list(dataset.picture)}" if behind else ""
        raise DataError(f"{where}: {len(dataset.features)} feature names{said} for rows of shape {row_train}")


def _validate_names(dataset: Dataset, where: str) -> None:
    if dataset.kind not in KINDS:
        raise DataError(f"{where}: kind={dataset.kind!r}: {nearest(dataset.kind, KINDS)}")
    for what, names in (("classes", dataset.classes), ("sites", dataset.sites), ("features", dataset.features)):
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise DataError(f"{where}: {what} holds {', '.join(map(repr, twice))} more than once; names must differ")
    if dataset.kind == "survival" and dataset.classes != RISK:
        raise DataError(f"{where}: classes={dataset.classes!r}: survival has the single output {RISK!r}")
    if dataset.kind in ("classes", "segmentation") and len(dataset.classes) < 2:
        raise DataError(f"{where}: a single class {dataset.classes!r}; at least two are needed to learn anything")
    if not dataset.classes:
        raise DataError(f"{where}: classes is empty; kind={dataset.kind!r} needs at least one name")


def _validate_part(samples: Samples, part: str, dataset: Dataset, where: str) -> None:
    y_dtype, y_axes = KINDS[dataset.kind]
    named: list[tuple[str, Any, type, tuple[str, ...]]] = [
        ("x", samples.x, np.float32, ("rows", "...")),
        ("y", samples.y, y_dtype, y_axes),
    ]
    if (samples.site is not None) != bool(dataset.sites):
        raise DataError(
            f"{where}: {part}.site is {'None' if samples.site is None else 'given'}, but sites={dataset.sites!r}; "
            "give both or neither"
        )
    if samples.site is not None:
        named.append(("site", samples.site, np.int32, ("rows",)))
    for name, array, dtype, axes in named:
        if not isinstance(array, np.ndarray | Stored):
            raise DataError(f"{where}: {part}.{name} is a {type(array).__name__}; it must be a numpy array")
        if array.dtype != dtype:
            raise DataError(f"{where}: {part}.{name} has dtype {array.dtype}; it must be {np.dtype(dtype).name}")
        volumes = dataset.kind == "segmentation" and name == "y" and array.ndim == samples.x.ndim - 1 == 4
        if (array.ndim != len(axes) and not volumes) if name != "x" else (array.ndim < 2):
            count = "two or more axes" if name == "x" else f"{_COUNTS[len(axes)]}"
            raise DataError(
                f"{where}: {part}.{name} has shape {array.shape}; it must have {count}, [{', '.join(axes)}]"
            )
        if len(array) != len(samples.y):
            raise DataError(
                f"{where}: {part}.{name} has {len(array)} rows, {part}.y has {len(samples.y)}; they must be equal"
            )
    if not len(samples.y):
        raise DataError(f"{where}: no {part} rows; at least one is needed")
    _validate_answers(samples, dataset, f"{where}: {part}")
    if samples.site is not None:
        _validate_range(samples.site, len(dataset.sites), f"{where}: {part}.site", "sites")
    if isinstance(samples.x, Stored):
        return  # what is in it was looked at when it was written
    later = any(column.missing.removesuffix(INDICATOR) == "gossip" for column in dataset.columns)
    _validate_finite(np.where(np.isnan(samples.x), 0, samples.x) if later else samples.x, f"{where}: {part}.x")


def _validate_answers(samples: Samples, dataset: Dataset, where: str) -> None:
    """The shape and the values of y, by kind; its dtype and number of axes are known to be right."""
    y, kind, names = samples.y, dataset.kind, dataset.classes
    if kind in ("labels", "regression", "survival"):
        width = 2 if kind == "survival" else len(names)
        if y.shape[1] != width:
            of = "time and event" if kind == "survival" else ", ".join(names)
            raise DataError(f"{where}.y has {y.shape[1]} columns; kind={kind!r} needs {width}: {of}")
    if kind == "segmentation" and (samples.x.ndim not in (4, 5) or samples.x.shape[:-1] != y.shape):
        raise DataError(
            f"{where}.x has shape {samples.x.shape}, {where}.y {y.shape}; a mask [N, H, W] must have a class for each "
            "pixel of the images [N, H, W, C], and of volumes [N, D, H, W, C] one [N, D, H, W] for each voxel"
        )
    if isinstance(y, Stored):
        return
    if kind == "reconstruction":
        space = dataset.image is not None and dataset.image.unit == "k-space"  # of which images are still to be made
        _validate_images(samples, names, where, space)
    if kind in ("classes", "segmentation"):
        _validate_range(y, len(names), f"{where}.y", "classes")
    elif kind == "labels":
        _validate_range(y, 2, f"{where}.y", "values: without and with the label")
    else:
        _validate_finite(y, f"{where}.y")
    if kind == "survival":
        for wrong, rule in ((y[:, 0] < 0, "times must be >= 0"), (~np.isin(y[:, 1], (0, 1)), "events must be 0 or 1")):
            if wrong.any():
                row = int(np.argmax(wrong))
                raise DataError(f"{where}.y: {rule}; {int(wrong.sum())} are not, first in row {row}: {y[row].tolist()}")


def _validate_images(samples: Samples, names: Sequence[str], where: str, space: bool) -> None:
    """Of a reconstruction: as many pixels in x as in y, a channel for each name, and y within 0..1."""
    x, y = samples.x, samples.y
    if x.ndim != 4 or (x.shape[:3] != y.shape[:3] and not space):
        raise DataError(
            f"{where}.x has shape {x.shape}, {where}.y {y.shape}; both must be images of one height and width, "
            "[N, H, W, C]"
        )
    if y.shape[3] != len(names):
        raise DataError(f"{where}.y has {y.shape[3]} channels; {len(names)} are named: {', '.join(names)}")
    outside = (y < 0) | (y > 1)
    if outside.any():
        row = int(np.argmax(outside.reshape(len(y), -1).any(axis=1)))
        raise DataError(
            f"{where}.y holds {int(outside.sum())} values outside 0..1, first in row {row}: {float(y[outside][0]):g}; "
            "PSNR and SSIM are of images of this range, so scale them to it"
        )


def _validate_finite(array: np.ndarray, what: str) -> None:
    wrong = ~np.isfinite(array)
    if wrong.any():
        nan = int(np.isnan(array).sum())
        row = int(np.argmax(wrong.reshape(len(wrong), -1).any(axis=1)))
        raise DataError(
            f"{what} holds {nan} NaN and {int(wrong.sum()) - nan} infinite values among {wrong.size}, "
            f"first in row {row}; fill them or leave these rows out"
        )


def _validate_range(index: np.ndarray, size: int, what: str, names: str) -> None:
    wrong = (index < 0) | (index >= size)
    if wrong.any():
        row = int(np.argmax(wrong.reshape(len(wrong), -1).any(axis=1)))
        raise DataError(
            f"{what} holds {int(wrong.sum())} values outside 0..{size - 1} ({size} {names}), "
            f"first in row {row}: {int(index[wrong][0])}"
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


def split(
    y: np.ndarray, site: np.ndarray | None, test_fraction: float, seed: int, group: np.ndarray | None = None
) -> np.ndarray:
    """Draw the test rows, stratified by (site, label) as far as whole rows allow: [N] bool, True = test.

    y [N] int; of other kinds than "classes" y [N, ...], and the rows are stratified by site alone. site [N] int or
    None. Every site gives round(test_fraction * rows) test rows (at least 1 where it has two rows or more), cut over
    its labels by largest remainder; the last row of a (site, label) always stays in train. With `group` [N] (any
    values) the same is done with whole groups, each with the site and label of its first row: no group is parted.
    Raises ConfigError for a fraction outside (0, 1) or a negative seed.
    """
    fraction(test_fraction=test_fraction)
    at_least(0, seed=seed)
    if group is not None:
        _, first, member = np.unique(group, return_index=True, return_inverse=True)
        own = split(y[first], None if site is None else site[first], test_fraction, seed)
        return own[member]
    label = y if y.ndim == 1 else np.zeros(len(y), np.int32)
    rng = np.random.default_rng([seed, SPLIT_PURPOSE])
    in_test = np.zeros(len(y), bool)
    places = np.zeros(len(y), np.int64) if site is None else site
    for place in np.unique(places):
        rows = np.flatnonzero(places == place)
        labels, sizes = np.unique(label[rows], return_counts=True)
        wanted = min(max(round(test_fraction * len(rows)), 1), len(rows) - 1)
        counts = np.minimum(apportion(wanted, sizes), sizes - 1)
        while counts.sum() < wanted and (counts < sizes - 1).any():  # what a small label could not give
            counts[np.argmax(np.where(counts < sizes - 1, sizes - 1 - counts, -1))] += 1
        for value, count in zip(labels, counts, strict=True):
            in_test[rng.permutation(rows[label[rows] == value])[:count]] = True
    return in_test


def mean_and_sd(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [F] and standard deviation [F] of the columns of x [N, F], in float64; a constant column gets sd 1."""
    wide = np.asarray(x, np.float64)
    sd = wide.std(axis=0)
    # Rounding makes the sd of a constant column 1e-17 instead of 0, hence the look at the range.
    constant = (np.ptp(wide, axis=0) == 0) | (sd == 0)
    return wide.mean(axis=0), np.where(constant, 1.0, sd)


def prepared(x: np.ndarray, numbers: Numbers, place: np.ndarray | int = 0) -> np.ndarray:
    """Fill in and scale x [N, ...] float64, as `numbers` says for the `place` of each row ([N], or one of all)."""
    if numbers.first is not None:
        columns = prepared(x[..., : numbers.first], numbers._replace(first=None), place)
        return np.concatenate([columns, x[..., numbers.first :]], axis=-1)
    at = (np.asarray(place) if len(numbers.mean) > 1 else np.zeros_like(place)).reshape(-1)

    def of(part: tuple[tuple[float, ...], ...]) -> np.ndarray:
        rows: np.ndarray = np.asarray(part, np.float64)[at]
        return rows.reshape(len(at), *(1,) * (x.ndim - 2), rows.shape[1])

    known = x if numbers.fill is None else np.where(np.isnan(x), of(numbers.fill), x)
    scaled: np.ndarray = (known - of(numbers.mean)) / of(numbers.sd)
    return np.clip(scaled, 0, 1) if numbers.clip else scaled


def plain(rows: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """Rows [N, F] as plain values."""
    return tuple(map(tuple, rows.tolist()))


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


def multi_labels(
    raw: Mapping[str, np.ndarray], names: Sequence[str] | None, where: str
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Multi-label arrays [N, L] of 0 and 1 as int32, and the names of the labels ("0", "1", ... without `names`).

    Raises DataError for other values, for different widths, for names of another number, and for labels of which every
    row has exactly one: that is one-hot, and one class per row is meant.
    """
    widths = {array.shape[1] for array in raw.values()}
    if len(widths) > 1:
        raise DataError(f"{where}: {', '.join(raw)} have {sorted(widths)} columns; they must be equal")
    width = widths.pop()
    for name, array in raw.items():
        known = np.isin(array, (0, 1)) if array.dtype.kind in "biuf" else np.zeros(array.shape, bool)
        if not known.all():
            row = int(np.argmin(known.all(axis=1)))
            raise DataError(f"{where}: {name} row {row} holds {array[row].tolist()!r}; labels of a row are 0 or 1")
    if all((array.sum(axis=1) == 1).all() for array in raw.values()):
        raise DataError(
            f"{where}: {next(iter(raw))} has {width} columns and one 1 in every row: one-hot, not multi-label; "
            "store their argmax over axis 1"
        )
    if names is not None and len(names) != width:
        raise DataError(f"{where}: {len(names)} class names for {width} labels; one for each is needed")
    return [array.astype(np.int32) for array in raw.values()], tuple(names or map(str, range(width)))


def _label_column(array: np.ndarray, name: str, where: str) -> np.ndarray:
    """One array of labels as [N] int64 or [N] text."""
    if array.ndim == 2 and array.shape[1] > 1:
        raise DataError(
            f"{where}: {name} has {array.shape[1]} columns; one label per row is needed. Several labels per row are "
            'a Dataset of kind "labels" (multi-label); one-hot labels: store their argmax over axis 1'
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
