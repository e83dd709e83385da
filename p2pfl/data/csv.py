"""Tables as hospitals have them: text and numbers, gaps, sites, a given split; read with the standard library.

    kind         what is to be predicted: "classes" (by `label`), "labels" (several columns of 0 and 1: `labels`),
                 "regression" (columns of numbers: `targets`), "survival" (columns `time`, >= 0, and `event`, 1 where it
                 was seen and 0 where the row was censored)
    label        column to predict: text or numbers -> classes in sorted order, or in the order of `classes`; with
                 `label_above=0` the two classes "<=0" and ">0" of a numeric column
    site         column of natural sites, sorted by name; a site of fewer than `min_rows` rows is refused, or left out
                 with `small_sites="drop"`
    split        column that says train or test; rows where it is empty, or says val, are left out before anything is
                 judged. Without it `test_fraction` of the rows, stratified by site and label, drawn from `seed`
    group        column, such as the patient: rows of one group are never parted by the split that is drawn
    drop         columns to leave out
    missing      cells that are empty or ?, NA, N/A, nan, null, None: "error" refuses, "drop_row" leaves the row out,
                 "mean" fills in the mean (text: the most frequent value) of the train rows of the row's own site, or of
                 all train rows where the site has none. A missing label, site or group is never filled: the row is
                 left out
    categories   column -> all its values, in order: one column "name=value" each, also for values that don't occur. A
                 text column that is not named here gets its values from the file, sorted
    standardize  "node": every column, coded text too, by the mean and standard deviation of the site's own train rows
                 (as in FLamby, du Terrail et al. 2022); "pooled": of all train rows; "none".
                 Constant: divided by 1

The file becomes a `Table`; each step takes a table and returns a smaller one with its notes, in this order: the split
column, missing cells, small sites, classes, the drawn split, coding and filling of columns, standardising.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from p2pfl.check import at_least, fraction, one_of
from p2pfl.data.columns import encode, standardized
from p2pfl.data.dataset import Dataset, Samples, as_float32, validate
from p2pfl.data.dataset import split as draw_split
from p2pfl.data.outcomes import answers
from p2pfl.data.table import Table, read
from p2pfl.errors import ConfigError, DataError, nearest

ANSWERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"classes": ("label",), "labels": ("labels",), "regression": ("targets",), "survival": ("time", "event")}
)
"""Kind -> the arguments that name its columns."""
_VALIDATION = ("val", "valid", "validation")


class CsvTable(NamedTuple):
    """The reading of a table; the fields are explained at the head of this module."""

    kind: str = "classes"
    label: str | None = None
    labels: Sequence[str] | None = None
    targets: Sequence[str] | None = None
    time: str | None = None
    event: str | None = None
    label_above: float | None = None
    site: str | None = None
    split: str | None = None
    group: str | None = None
    drop: Sequence[str] = ()
    missing: str = "error"
    min_rows: int = 10
    small_sites: str = "error"
    classes: Sequence[object] | None = None
    categories: Mapping[str, Sequence[object]] | None = None
    standardize: str = "node"
    test_fraction: float = 0.2
    seed: int = 0


def load(path: str | os.PathLike[str], wanted: CsvTable) -> Dataset:
    r"""Read a .csv (UTF-8; comma, semicolon or tab) and make of it what is wanted.

    Args:
        path: of the file.
        wanted: the columns and what is done with them; the head of this module explains the fields.

    Returns:
        x [N, F] float32, y as the kind has it, site [N] int32 (None without `site`); rows keep the order of the file.

    Raises:
        DataError: file, column, line and way out of what does not fit.
        ConfigError: a wrong field.

    Example:
        >>> import pathlib, tempfile, p2pfl
        >>> from p2pfl.data.csv import CsvTable
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "mine.csv"
        ...     _ = file.write_text("age,ill\n" + "".join(f"{40 + i},{'yes' if i % 2 else 'no'}\n" for i in range(20)))
        ...     p2pfl.data.csv.load(file, CsvTable(label="ill")).classes
        ('no', 'yes')
    """
    _check(wanted)
    return from_table(read(Path(path), wanted.drop), wanted)


def from_table(table: Table, wanted: CsvTable) -> Dataset:
    """The same from a table that has been read."""
    columns = _check(wanted)
    site, split, group = wanted.site, wanted.split, wanted.group
    features = _features(table, wanted, columns)
    if split is not None:
        table = _given_split(table, split)
    table = _judge_missing(table, features, [*columns, *(name for name in (site, group) if name)], wanted.missing)
    if site is not None:
        table = _judge_sites(table, site, wanted.min_rows, wanted.small_sites)
    y, class_names, notes = answers(table, wanted.kind, columns, wanted.label_above, wanted.classes)
    sites, place = _places(table, site)
    if table.in_test is None:
        together = None if group is None else table.column(group).astype(str)
        in_test = draw_split(y, place, wanted.test_fraction, wanted.seed, together)
        table = table._replace(in_test=in_test)
    in_test, part_notes = _judge_parts(table, place, sites)
    x, names, code_notes = encode(table, features, wanted.categories or {}, place, sites)
    x = standardized(x, place, in_test, wanted.standardize)
    train, test = (
        Samples(as_float32(x[part]), y[part], None if site is None else place[part], np.asarray(table.lines)[part])
        for part in (~in_test, in_test)
    )
    said = (*table.notes, *notes, *part_notes, *code_notes)
    dataset = Dataset(train, test, class_names, sites, names, said, kind=wanted.kind)
    validate(dataset, table.where)
    return dataset


def _check(wanted: CsvTable) -> tuple[str, ...]:
    """Refuse arguments that can't be; returns the columns that hold what is to be predicted."""
    one_of(("error", "drop_row", "mean"), missing=wanted.missing)
    one_of(("error", "drop"), small_sites=wanted.small_sites)
    one_of(("node", "pooled", "none"), standardize=wanted.standardize)
    one_of(ANSWERS, kind=wanted.kind)
    fraction(test_fraction=wanted.test_fraction)
    at_least(0, seed=wanted.seed, min_rows=wanted.min_rows)
    if wanted.label_above is not None and wanted.classes is not None:
        raise ConfigError(
            f"label_above={wanted.label_above!r} and classes={list(wanted.classes)!r}: give one, not both"
        )
    if wanted.group is not None and wanted.split is not None:
        raise ConfigError(
            f"group={wanted.group!r}: is used only where the split is drawn, not with split; leave it out"
        )
    takes = (*ANSWERS[wanted.kind], *(("label_above", "classes") if wanted.kind == "classes" else ()))
    for name in (*(name for names in ANSWERS.values() for name in names), "label_above", "classes"):
        value = getattr(wanted, name)
        if value is not None and name not in takes:
            raise ConfigError(
                f"{name}={value!r}: kind={wanted.kind!r} does not use it; it uses: {', '.join(takes)}. "
                "Leave it out, or change kind"
            )
    columns: list[str] = []
    for name in ANSWERS[wanted.kind]:
        value = getattr(wanted, name)
        if not value:
            said = "" if wanted.kind == "classes" else f" with kind={wanted.kind!r}"
            raise DataError(f"data.{name}: missing; source='csv'{said} needs it")
        columns += [value] if isinstance(value, str) else value
    return tuple(columns)


def _features(table: Table, wanted: CsvTable, columns: Sequence[str]) -> tuple[str, ...]:
    """Names of the columns to learn from."""
    kinds = ANSWERS[wanted.kind]
    named = kinds if wanted.kind == "survival" else kinds * len(columns)  # the columns of a list all have its name
    roles: list[tuple[str, str | None]] = [
        *zip(named, columns, strict=True),
        ("site", wanted.site), ("split", wanted.split), ("group", wanted.group),
        *(("drop", name) for name in wanted.drop), *(("categories", name) for name in wanted.categories or ()),
    ]  # fmt: skip
    used: dict[str, str] = {}
    for role, name in roles:
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
