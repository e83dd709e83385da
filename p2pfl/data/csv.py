"""Tables as hospitals have them: text and numbers, gaps, sites, a given split; read with the standard library.

    label        column to predict: text or numbers -> classes in sorted order, or in the order of `classes`; with
                 `label_above=0` the two classes "<=0" and ">0" of a numeric column
    site         column of natural sites, sorted by name; a site of fewer than `min_rows` rows is refused, or left out
                 with `small_sites="drop"`
    split        column that says train or test; rows where it is empty, or says val, are left out before anything is
                 judged. Without it `test_fraction` of the rows, stratified by site and label, drawn from `seed`
    drop         columns to leave out
    missing      cells that are empty or ?, NA, N/A, nan, null, None: "error" refuses, "drop_row" leaves the row out,
                 "mean" fills in the mean (text: the most frequent value) of the train rows of the row's own site, or of
                 all train rows where the site has none. A missing label or site is never filled: the row is left out
    categories   column -> all its values, in order: one column "name=value" each, also for values that don't occur. A
                 text column that is not named here gets its values from the file, sorted
    standardize  "node": every column, coded text too, by the mean and standard deviation of the site's own train rows
                 (as in FLamby, du Terrail et al. 2022); "pooled": of all train rows; "none". Constant: divided by 1

The file becomes a `Table`; each step takes a table and returns a smaller one with its notes, in this order: the split
column, missing cells, small sites, classes, the drawn split, coding and filling of columns, standardising.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from p2pfl.check import at_least, fraction, one_of
from p2pfl.data.dataset import Dataset, Samples, as_float32, mean_and_sd, validate
from p2pfl.data.dataset import split as draw_split
from p2pfl.data.table import Table, is_number, read
from p2pfl.errors import ConfigError, DataError, nearest

MOST_VALUES = 50  # of a text column or a label; more is a name, a date or a decimal comma, not a category
_VALIDATION = ("val", "valid", "validation")


def load(
    path: str | os.PathLike[str],
    *,
    label: str,
    site: str | None = None,
    split: str | None = None,
    drop: Sequence[str] = (),
    missing: str = "error",
    min_rows: int = 10,
    small_sites: str = "error",
    label_above: float | None = None,
    classes: Sequence[object] | None = None,
    categories: Mapping[str, Sequence[object]] | None = None,
    standardize: str = "node",
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Read a .csv (UTF-8; comma, semicolon or tab); the arguments are explained at the head of this module.

    x [N, F] float32, y [N] int32, site [N] int32 (None without `site`); rows keep the order of the file.
    Raises DataError with file, column, line and way out for what does not fit; ConfigError for a wrong argument.
    """
    one_of(("error", "drop_row", "mean"), missing=missing)
    one_of(("error", "drop"), small_sites=small_sites)
    one_of(("node", "pooled", "none"), standardize=standardize)
    fraction(test_fraction=test_fraction)
    at_least(0, seed=seed, min_rows=min_rows)
    if label_above is not None and classes is not None:
        raise ConfigError(f"label_above={label_above!r} and classes={list(classes)!r}: give one, not both")
    categories = {} if categories is None else categories
    drop = (drop,) if isinstance(drop, str) else tuple(drop)
    table = read(Path(path), drop)
    features = _features(table, label, site, split, drop, tuple(categories))
    if split is not None:
        table = _given_split(table, split)
    table = _judge_missing(table, features, [label] if site is None else [label, site], missing)
    if site is not None:
        table = _judge_sites(table, site, min_rows, small_sites)
    y, class_names, notes = _labels(table, label, label_above, classes)
    sites, place = _places(table, site)
    if table.in_test is None:
        table = table._replace(in_test=draw_split(y, place, test_fraction, seed))
    in_test, part_notes = _judge_parts(table, place, sites)
    x, names, code_notes = _encode(table, features, categories, place, sites)
    x = _standardized(x, place, in_test, standardize)
    train, test = (
        Samples(as_float32(x[part]), y[part], None if site is None else place[part]) for part in (~in_test, in_test)
    )
    dataset = Dataset(train, test, class_names, sites, names, (*table.notes, *notes, *part_notes, *code_notes))
    validate(dataset, table.where)
    return dataset


def _features(
    table: Table, label: str, site: str | None, split: str | None, drop: Sequence[str], coded: Sequence[str]
) -> tuple[str, ...]:
    """Names of the columns to learn from."""
    roles = [("label", label), ("site", site), ("split", split), *(("drop", name) for name in drop)]
    used: dict[str, str] = {}
    for role, name in (*roles, *(("categories", name) for name in coded)):
        if name is None:
            continue
        if name not in table.names:
            raise DataError(f"{table.where}: {role}={name!r} is not a column; {nearest(name, table.names)}")
        if name in used and role != used[name]:
            raise DataError(f"{table.where}: column {name!r} is both {used[name]} and {role}; it can be one of them")
        used[name] = role
    features = tuple(name for name in table.names if used.get(name, "categories") == "categories")
    if not features:
        raise DataError(f"{table.where}: no column left to learn from beside {', '.join(used)}")
    return features


def _given_split(table: Table, split: str) -> Table:
    values = np.array([value.lower() for value in table.column(split)], object)
    known = np.isin(values, ("train", "test", "", *_VALIDATION))
    if not known.all():
        row = int(np.argmin(known))
        raise DataError(
            f"{table.where}: line {table.lines[row]}: {split} is {table.column(split)[row]!r}; "
            "a split column says train or test (empty or val: left out)"
        )
    empty, validation = int((values == "").sum()), int(np.isin(values, _VALIDATION).sum())
    notes = []
    if empty:
        notes.append(f"left out {empty} rows whose {split!r} is empty: they belong to neither part")
    if validation:
        notes.append(f"left out {validation} rows whose {split!r} says validation")
    kept = np.isin(values, ("train", "test"))
    return table._replace(in_test=values == "test").keep(kept, *notes)


def _judge_missing(table: Table, features: Sequence[str], never_filled: Sequence[str], missing: str) -> Table:
    """Leave out or refuse rows with missing cells; what "mean" is to fill stays "" for `_encode`."""
    gaps = {name: table.column(name) == "" for name in (*features, *never_filled)}
    counts = {name: int(gap.sum()) for name, gap in gaps.items() if gap.any()}
    for name, count in counts.items():
        if count == len(table.cells):
            raise DataError(f'{table.where}: column {name!r} is missing in all {count} rows; use drop = ["{name}"]')
    if not counts:
        return table
    said = ", ".join(f"{name!r} ({count})" for name, count in counts.items())
    if missing == "error":
        droppable = [name for name in counts if name in features]
        columns = f", or leave the columns out: drop = {droppable}" if droppable else ""
        raise DataError(
            f'{table.where}: missing cells in {said}; missing = "error" stands none. '
            f'Use missing = "drop_row" or missing = "mean"{columns}'
        )
    judged = list(never_filled) if missing == "mean" else list(gaps)
    gone = np.any([gaps[name] for name in judged], axis=0)
    if not gone.any():
        return table
    if gone.all():
        raise DataError(f"{table.where}: every row misses a cell: {said}; leave out the emptiest columns with drop")
    columns = ", ".join(f"{name!r} ({counts[name]})" for name in judged if name in counts)
    never = " (a label or site is never filled)" if missing == "mean" else ""
    return table.keep(~gone, f"left out {int(gone.sum())} rows with missing cells in {columns}{never}")


def _judge_sites(table: Table, site: str, min_rows: int, small_sites: str) -> Table:
    counts = Counter(table.column(site))
    small = sorted(name for name, count in counts.items() if count < min_rows)
    if not small:
        return table
    said = ", ".join(f"{name!r} ({counts[name]} rows)" for name in small)
    if small_sites == "error":
        raise DataError(
            f"{table.where}: sites with fewer than min_rows={min_rows} rows: {said}. "
            'Use small_sites = "drop" to leave them out, or a smaller min_rows'
        )
    kept = ~np.isin(table.column(site), small)
    if not kept.any():
        raise DataError(f"{table.where}: every site has fewer than min_rows={min_rows} rows: {said}; lower min_rows")
    return table.keep(kept, f"left out sites with fewer than {min_rows} rows: {said}")


def _same(value: object) -> float | str:
    """What two spellings of one value share: "1" and "1.0" are one number."""
    text = str(value).strip()
    return float(text) if is_number(text) else text


def _indices(
    table: Table, column: str, cells: np.ndarray, values: Sequence[object], argument: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Index of every cell among the `values` that the user gave, and their names."""
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


def _exact(cells: np.ndarray, values: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Index of every cell among all the `values` that occur, letter by letter."""
    place = {value: index for index, value in enumerate(values)}
    return np.array([place.get(cell, -1) for cell in cells], np.int32), tuple(values)


def _labels(
    table: Table, label: str, label_above: float | None, classes: Sequence[object] | None
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """y [N] int32, class names, notes."""
    cells = table.column(label)
    numeric = np.array([is_number(cell) for cell in cells])
    if label_above is not None:
        if not numeric.all():
            row = int(np.argmin(numeric))
            raise DataError(
                f"{table.where}: line {table.lines[row]}: {label} is {cells[row]!r}; "
                f"label_above={label_above!r} needs numbers. Leave it out for text labels"
            )
        y = (cells.astype(np.float64) > label_above).astype(np.int32)
        names: tuple[str, ...] = (f"<={label_above:g}", f">{label_above:g}")
    elif classes is not None:
        y, names = _indices(table, label, cells, classes, "classes")
    else:
        distinct = sorted(set(cells), key=float) if numeric.all() else sorted(set(cells))
        # "1" and "1.0" are one class of a numeric label, named "1".
        listed = list(dict.fromkeys(f"{float(cell):.15g}" for cell in distinct)) if numeric.all() else distinct
        if len(listed) > MOST_VALUES:
            raise DataError(
                f"{table.where}: label {label!r} has {len(listed)} distinct values, more than {MOST_VALUES}; "
                "cut a number in two with label_above, or list the values with classes"
            )
        y, names = _indices(table, label, cells, listed, "classes") if numeric.all() else _exact(cells, listed)
    found = sorted(names[index] for index in set(y.tolist()))
    if len(found) > 1:
        return y, names, ()
    if classes is None or len(names) < 2:
        raise DataError(
            f"{table.where}: label {label!r} has the single class {found[0]!r} in all {len(y)} rows; "
            "two are needed. Use another label" + (" or another label_above" if label_above is not None else "")
        )
    return y, names, (f"only the class {found[0]!r} of {', '.join(names)} occurs",)


def _places(table: Table, site: str | None) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the sites, and the site of every row: [N] int32. Without sites: no names, and all rows in one place."""
    if site is None:
        return (), np.zeros(len(table.cells), np.int32)
    sites = sorted(set(table.column(site)))
    place = {name: index for index, name in enumerate(sites)}
    return tuple(sites), np.array([place[name] for name in table.column(site)], np.int32)


def _judge_parts(table: Table, place: np.ndarray, sites: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The test rows [N] bool, once every place has rows to learn from; notes."""
    assert table.in_test is not None  # the caller has given or drawn it
    in_test = table.in_test
    for part, rows in (("train", ~in_test), ("test", in_test)):
        if not rows.any():
            raise DataError(
                f"{table.where}: no {part} rows among {len(rows)}; mark some in the split column, or use a file with "
                "more rows"
            )
    lacking = [name for index, name in enumerate(sites) if in_test[place == index].all()]
    if lacking:
        raise DataError(
            f"{table.where}: no train rows at site {', '.join(map(repr, lacking))}; mark some in the split column, or "
            "leave the site out of the file"
        )
    silent = [name for index, name in enumerate(sites) if not in_test[place == index].any()]
    return in_test, tuple(f"site {name!r} has no test rows" for name in silent)


def _encode(
    table: Table,
    features: Sequence[str],
    categories: Mapping[str, Sequence[object]],
    place: np.ndarray,
    sites: Sequence[str],
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """x [N, F] float64 without gaps, names of its columns, notes."""
    blocks: list[np.ndarray] = []
    names: list[str] = []
    notes: list[str] = []
    for name in features:
        cells = table.column(name)
        if name not in categories and all(is_number(cell) for cell in cells if cell):
            numbers, filled = _fill(table, name, _numbers(table, name), place, sites, _mean)
            blocks.append(numbers[:, None])
            names.append(name)
        else:
            if name in categories:
                index, values = _indices(table, name, cells, categories[name], f"categories[{name!r}]")
            else:
                index, values, remark = _text(table, name)
                notes.extend(remark)
            chosen, filled = _fill(table, name, np.where(index < 0, np.nan, index), place, sites, _most_frequent)
            blocks.append((chosen[:, None] == np.arange(len(values))).astype(np.float64))
            names.extend(f"{name}={value}" for value in values)
        notes.extend(filled)
    return np.concatenate(blocks, axis=1), tuple(names), tuple(notes)


def _numbers(table: Table, name: str) -> np.ndarray:
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
    return *_exact(cells, values), notes


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


def _standardized(x: np.ndarray, place: np.ndarray, in_test: np.ndarray, standardize: str) -> np.ndarray:
    """x [N, F] with mean 0 and sd 1 over the train rows of each place, of all, or as it is."""
    if standardize == "none":
        return x
    groups = place if standardize == "node" else np.zeros_like(place)
    scaled = np.empty_like(x)
    for group in np.unique(groups):
        rows = groups == group
        mean, sd = mean_and_sd(x[rows & ~in_test])
        scaled[rows] = (x[rows] - mean) / sd
    return scaled
