"""Coding of the columns to learn from: text as columns of 0 and 1, gaps filled, everything standardised.

Every function takes a `Table`; what it says names the file and the line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from p2pfl.data.dataset import Column, mean_and_sd
from p2pfl.data.table import Table, is_number
from p2pfl.errors import ConfigError, DataError, nearest

MOST_VALUES = 50  # of a text column or a label; more is a name, a date or a decimal comma, not a category


def _same(value: object) -> float | str:
    """Return what two spellings of one value share: "1" and "1.0" are one number."""
    text = str(value).strip()
    return float(text) if is_number(text) else text


def indices(
    table: Table, column: str, cells: np.ndarray, values: Sequence[object], argument: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Index [N] of every cell among the `values` that the user gave, -1 where it is empty, and their names.

    "1" and "1.0" are one value. Raises DataError for a cell that is none of them, ConfigError for equal values.
    """
    names = tuple(str(value).strip() for value in values)
    place = {_same(name): index for index, name in enumerate(names)}
    if not names or len(place) != len(names):
        raise ConfigError(f"{argument}: {list(names)!r} for column {column!r}: must be different values, at least one")
    for row, cell in enumerate(cells):
        if _same(cell) not in place and cell != "":
            raise DataError(
                f"{table.where}: line {table.lines[row]}: {column} is {cell!r}, not among {argument}; "
                + nearest(cell, names)
            )
    return np.array([place.get(_same(cell), -1) for cell in cells], np.int32), names


def exact(cells: np.ndarray, values: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Index of every cell among all the `values` that occur, letter by letter."""
    place = {value: index for index, value in enumerate(values)}
    return np.array([place.get(cell, -1) for cell in cells], np.int32), tuple(values)


def encode(
    table: Table,
    features: Sequence[str],
    categories: Mapping[str, Sequence[object]],
    place: np.ndarray,
    sites: Sequence[str],
) -> tuple[np.ndarray, tuple[str, ...], tuple[Column, ...], tuple[str, ...]]:
    """x [N, F] float64 without gaps, names of its columns, the columns that they are made of, notes."""
    blocks: list[np.ndarray] = []
    names: list[str] = []
    columns: list[Column] = []
    notes: list[str] = []
    for name in features:
        cells = table.column(name)
        if name not in categories and all(is_number(cell) for cell in cells if cell):
            known, filled = _fill(table, name, numbers(table, name), place, sites, _mean)
            blocks.append(known[:, None])
            names.append(name)
            columns.append(Column(name, "number"))
        else:
            if name in categories:
                index, values = indices(table, name, cells, categories[name], f"categories[{name!r}]")
            else:
                index, values, remark = _text(table, name)
                notes.extend(remark)
            chosen, filled = _fill(table, name, np.where(index < 0, np.nan, index), place, sites, _most_frequent)
            blocks.append((chosen[:, None] == np.arange(len(values))).astype(np.float64))
            names.extend(f"{name}={value}" for value in values)
            columns.append(Column(name, "category", values, coding="one_hot"))
        notes.extend(filled)
    return np.concatenate(blocks, axis=1), tuple(names), tuple(columns), tuple(notes)


def numbers(table: Table, name: str) -> np.ndarray:
    """A numeric column as [N] float64, NaN where a cell is missing."""
    values = np.array([float(cell) if cell else np.nan for cell in table.column(name)])
    wrong = np.abs(values) > np.finfo(np.float32).max
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{table.where}: line {table.lines[row]}: {name} is {table.column(name)[row]!r}; numbers must be finite "
            "(and within float32). Empty the cell if the value is unknown"
        )
    return values


def _text(table: Table, name: str) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """A text column as the index [N] into its sorted values, -1 where missing; the values; notes."""
    cells = table.column(name)
    values = tuple(sorted({cell for cell in cells if cell}))
    row = next(index for index, cell in enumerate(cells) if cell and not is_number(cell))
    reason = f"since line {table.lines[row]} holds {cells[row]!r}, which is no number"
    if len(values) > MOST_VALUES:
        raise DataError(
            f"{table.where}: column {name!r} is text, {reason}, and has {len(values)} distinct values, more than "
            f'{MOST_VALUES}. Use drop = ["{name}"], or write numbers with a decimal point'
        )
    numeric = sum(is_number(cell.replace(",", ".")) for cell in cells)
    # A slip of the pen in a column of numbers must not turn it into categories unsaid.
    notes = (f"column {name!r} is read as text, {reason}",) if 2 * numeric > len(cells) else ()
    return *exact(cells, values), notes


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


def _most_frequent(values: np.ndarray) -> float:
    """Ties: the first in the order of the values."""
    found, counts = np.unique(values, return_counts=True)
    return float(found[np.argmax(counts)])


def _fill(
    table: Table,
    name: str,
    values: np.ndarray,
    place: np.ndarray,
    sites: Sequence[str],
    pick: Callable[[np.ndarray], float],
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Fill the NaN of `values` [N] with `pick` of the known train values of the row's own place, or of all places."""
    gap = np.isnan(values)
    if not gap.any():
        return values, ()
    known = ~gap & ~np.asarray(table.in_test)
    if not known.any():
        raise DataError(
            f'{table.where}: column {name!r} is missing in all train rows, nothing to fill with; use drop = ["{name}"]'
        )
    filled, borrowed = values.copy(), []
    for index in np.unique(place[gap]):
        own = known & (place == index)
        if not own.any():
            borrowed.append(repr(sites[index]))
        filled[gap & (place == index)] = pick(values[own if own.any() else known])
    what = "mean" if pick is _mean else "most frequent value"
    whose = "of the train rows" + (" of the row's own site" if sites else "")
    note = f"filled {int(gap.sum())} missing cells of {name!r} with the {what} {whose}"
    return filled, (note + (f"; at {', '.join(borrowed)}, which has none, of all train rows" if borrowed else ""),)


def standardized(x: np.ndarray, place: np.ndarray, in_test: np.ndarray, standardize: str) -> np.ndarray:
    """x [N, F] with mean 0 and sd 1 over the train rows of each place ("node"), of all ("pooled"), or as it is."""
    if standardize == "none":
        return x
    groups = place if standardize == "node" else np.zeros_like(place)
    scaled = np.empty_like(x)
    for group in np.unique(groups):
        rows = groups == group
        mean, sd = mean_and_sd(x[rows & ~in_test])
        scaled[rows] = (x[rows] - mean) / sd
    return scaled
