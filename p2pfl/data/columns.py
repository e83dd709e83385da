"""Coding of the columns to learn from: text as columns of 0 and 1, gaps filled, everything standardised.

Every function takes a `Table`; what it says names the file and the line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from p2pfl.data.dataset import Column, mean_and_sd
from p2pfl.data.table import Table, is_number, same
from p2pfl.errors import ConfigError, DataError, nearest

MOST_VALUES = 50  # of a text column or a label; more is a name, not a category
NOT_APPLICABLE = "does not apply"
"""The cell, and the category, of what does not apply to a row: it is not missing."""


class Coding(NamedTuple):
    """How the columns to learn from become numbers."""

    categories: Mapping[str, Sequence[object]]  # column -> its values, in order
    reference: bool = False  # no column for the first value of a category
    marked: Sequence[str] = ()  # columns beside which one says where they were missing
    outside: Sequence[str] = ()  # columns that do not apply to every row
    fill: bool = True  # what is missing by what is known here; else it stays NaN


def indices(
    table: Table, column: str, cells: np.ndarray, values: Sequence[object], argument: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Index [N] of every cell among the `values` that the user gave, -1 where it is empty, and their names.

    "1" and "1.0" are one value, and so are "Yes" and "yes", unless both are given. Raises DataError for a cell that is
    none of them, ConfigError for equal values.
    """
    names = tuple(str(value).strip() for value in values)
    place = {same(name): index for index, name in enumerate(names)}
    if not names or len(place) != len(names):
        raise ConfigError(f"{argument}: {list(names)!r} for column {column!r}: must be different values, at least one")
    folded = {name.casefold(): index for index, name in enumerate(names)}
    if len(folded) != len(names):
        folded = {}
    found = {cell: place.get(same(cell), folded.get(cell.casefold(), -1)) for cell in set(cells)}
    for row, cell in enumerate(cells):
        if found[cell] < 0 and cell != "":
            raise DataError(
                f"{table.where}: line {table.lines[row]}: {column} is {cell!r}, not among {argument}; "
                + nearest(cell, names)
            )
    return np.array([-1 if cell == "" else found[cell] for cell in cells], np.int32), names


def exact(cells: np.ndarray, values: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Index of every cell among all the `values` that occur, letter by letter."""
    place = {value: index for index, value in enumerate(values)}
    return np.array([place.get(cell, -1) for cell in cells], np.int32), tuple(values)


def text(table: Table, name: str, cells: np.ndarray, ways: str) -> tuple[str, ...]:
    """The values of a column of text, sorted. `ways`: how else to say what its values are, for errors.

    Raises DataError for a column of numbers with cells that are none, for values that differ in case only, and for more
    values than a category has.
    """
    values = tuple(sorted({cell for cell in cells if cell}))

    def line(cell: str) -> int:
        return int(table.lines[int(np.argmax(cells == cell))])

    numeric, filled = sum(map(is_number, cells)), sum(map(bool, cells))
    if 2 * numeric > filled:
        slip = next(cell for cell in cells if cell and not is_number(cell))
        raise DataError(
            f"{table.where}: line {line(slip)}: {name} is {slip!r}, and {numeric} of {filled} cells of this column are "
            f'numbers. Correct it, say that it is missing with missing_values = ["{slip}"], or {ways}'
        )
    one_spelling(table, name, values, ways)
    if len(values) > MOST_VALUES:
        first = next(cell for cell in cells if cell and not is_number(cell))
        raise DataError(
            f"{table.where}: column {name!r} is text (line {line(first)} holds {first!r}) and has {len(values)} "
            f"distinct values, more than {MOST_VALUES}. Leave it out, put values together with [data.derive], or {ways}"
        )
    return values


def one_spelling(table: Table, name: str, values: Iterable[str], ways: str) -> None:
    """Raises DataError where two of the `values` of a column differ in case only. `ways`: what else to do about it."""
    folded: dict[str, str] = {}
    for value in values:
        other = folded.setdefault(value.casefold(), value)
        if other != value:
            first, second = (table.lines[int(np.argmax(table.column(name) == each))] for each in (other, value))
            raise DataError(
                f"{table.where}: column {name!r} holds {other!r} (line {first}) and {value!r} (line {second}), which "
                f"differ in case only. Write one, or {ways}"
            )


class Encoded(NamedTuple):
    """The columns to learn from as numbers."""

    x: np.ndarray  # [N, F] float64; NaN where a cell is missing
    names: tuple[str, ...]  # [F]
    columns: tuple[Column, ...]  # what x is made of
    fill: np.ndarray | None  # [places, F] float64: what NaN becomes; None where it stays
    notes: tuple[str, ...]


def encode(table: Table, features: Sequence[str], coding: Coding, place: np.ndarray, sites: Sequence[str]) -> Encoded:
    """Make numbers of cells; nothing is filled in or scaled yet. `place` [N] is an index into `sites`, 0 without."""
    blocks: list[np.ndarray] = []
    fills: list[np.ndarray] = []
    names: list[str] = []
    columns: list[Column] = []
    notes: list[str] = []
    for name in features:
        cells = table.column(name)
        outside = cells == NOT_APPLICABLE
        if name not in coding.categories and all(is_number(cell) for cell in cells[~outside] if cell):
            values = numbers(table.with_column(name, np.where(outside, "", cells)), name)
            picked, filled = _picked(table, name, values, place, sites, _mean, outside) if coding.fill else _STAYS
            block, fill, own = values[:, None], picked[:, None], [name]
            if name in coding.outside:
                block, own = np.column_stack([block, outside]), [name, f"{name}={NOT_APPLICABLE}"]
                fill = np.column_stack([fill, np.zeros(len(fill))])
            columns.append(Column(name, "number", coding=NOT_APPLICABLE if name in coding.outside else ""))
        else:
            index, categories = _categories(table, name, cells, coding)
            chosen = np.where(index < 0, np.nan, index)
            picked, filled = _picked(table, name, chosen, place, sites, _most_frequent) if coding.fill else _STAYS
            shown = range(int(coding.reference), len(categories))
            block, own = chosen[:, None] == np.array(shown), [f"{name}={categories[value]}" for value in shown]
            block, fill = np.where(np.isnan(chosen)[:, None], np.nan, block), picked[:, None] == np.array(shown)
            columns.append(Column(name, "category", categories, coding="treatment" if coding.reference else "one_hot"))
        gaps = int((cells == "").sum())
        if gaps and not coding.fill:
            filled = (f"{gaps} missing cells of {name!r} are filled in when the mean of all nodes is known",)
        if name in coding.marked:
            block, own = np.column_stack([block, cells == ""]), [*own, f"{name}=missing"]
            fill = np.column_stack([fill, np.zeros(len(fill))])
        blocks.append(block.astype(np.float64))
        fills.append(fill.astype(np.float64))
        names.extend(own)
        notes.extend(filled)
    whole = np.concatenate(fills, axis=1) if coding.fill else None
    return Encoded(np.concatenate(blocks, axis=1), tuple(names), tuple(columns), whole, tuple(notes))


def _categories(table: Table, name: str, cells: np.ndarray, coding: Coding) -> tuple[np.ndarray, tuple[str, ...]]:
    """A column as the index [N] into its values, -1 where missing; the values, what does not apply at the end."""
    last = [NOT_APPLICABLE] if name in coding.outside else []
    if name in coding.categories:
        return indices(table, name, cells, [*coding.categories[name], *last], f"categories[{name!r}]")
    here = np.where(cells == NOT_APPLICABLE, "", cells)
    ways = f'list the values of the column: categories = {{ "{name}" = [...] }}'
    return exact(cells, [*text(table, name, here, ways), *last])


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


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


def _most_frequent(values: np.ndarray) -> float:
    """Ties: the first in the order of the values."""
    found, counts = np.unique(values, return_counts=True)
    return float(found[np.argmax(counts)])


_STAYS: tuple[np.ndarray, tuple[str, ...]] = (np.zeros(0), ())
"""Of columns whose gaps stay NaN."""


def _picked(
    table: Table,
    name: str,
    values: np.ndarray,
    place: np.ndarray,
    sites: Sequence[str],
    pick: Callable[[np.ndarray], float],
    outside: np.ndarray | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """What the NaN of `values` [N] become at each place: `pick` of its known train values, or of those of all; notes.

    outside: [N] bool, those that are not missing: the column does not apply to them.
    """
    gap = np.isnan(values)
    known = ~gap & ~np.asarray(table.in_test)
    if not known.any():
        raise DataError(
            f'{table.where}: column {name!r} is missing in all train rows, nothing to fill with; use drop = ["{name}"]'
        )
    every, picked, borrowed = pick(values[known]), [], []
    for index in range(max(len(sites), 1)):
        own = known & (place == index)
        picked.append(pick(values[own]) if own.any() else every)
        if not own.any() and (gap & (place == index)).any():
            borrowed.append(repr(sites[index]))
    missing = int((gap if outside is None else gap & ~outside).sum())
    if not missing:
        return np.array(picked), ()
    what = "mean" if pick is _mean else "most frequent value"
    whose = "of the train rows" + (" of the row's own site" if sites else "")
    note = f"filled {missing} missing cells of {name!r} with the {what} {whose}"
    more = f"; at {', '.join(borrowed)}, which has none, of all train rows" if borrowed else ""
    return np.array(picked), (note + more,)


def scales(
    x: np.ndarray, place: np.ndarray, in_test: np.ndarray, standardize: str, places: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [places, F] by which x [N, F] is scaled: of the train rows of each place ("node"), of
    all ("pooled"), or 0 and 1 ("none")."""
    if standardize == "none":
        return np.zeros((places, x.shape[1])), np.ones((places, x.shape[1]))
    whose = [(place == index if standardize == "node" else np.ones(len(x), bool)) for index in range(places)]
    found = [mean_and_sd(x[rows & ~in_test]) for rows in whose]
    return np.stack([mean for mean, _ in found]), np.stack([sd for _, sd in found])
