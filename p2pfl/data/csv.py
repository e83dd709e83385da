"""Tables as hospitals have them: text and numbers, gaps, sites, a given split; what is read, `p2pfl.data.table` says.

    rename       column of the file -> its name from here on
    missing_values  more cells that are missing, as in [".", "-9"], or column -> its own. Without a word, those are
                 missing that are empty or ?, NA, N/A, nan, null, None, unless categories, classes or not_applicable
                 name them
    not_applicable  column -> cells that mean "does not apply", which is not missing: a category of its own; beside
                 numbers, of which the mean of all others is filled in, a column of 0 and 1
    decimal      "." or ",": the mark of decimals in all columns; found column by column unless given, and said
    dates        how days are written, for derive
    derive       name -> a column made of others (`p2pfl.data.derive`), of which those are then left out, unless they
                 have another part or `use` names them
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
    use          columns to learn from, in this order; without it all that have no other part, but for those to `drop`
    by_name      without `use`: in the order of their names, not of the file; so it is where each site has its own file
    missing      missing cells: "error" refuses, "drop_row" leaves the row out, "mean" fills in the mean (text: the most
                 frequent value) of the train rows of the row's own site, or of all train rows where the site has none.
                 "gossip" leaves NaN in x: the node fills in the mean of all data ([statistics] normalize does it).
                 A missing label, site or group is never filled: the row is left out
    missing_indicator  columns, or true for all: beside each, one of 0 and 1 says where it was missing
    categories   column -> all its values, in order: one column "name=value" each, also for values that don't occur. A
                 text column that is not named here gets its values from the file, sorted
    coding       "one_hot": a column for every value; "treatment": none for the first value, the reference
    standardize  "node": every column, coded text too, by the mean and standard deviation of the site's own train rows
                 (as in FLamby, du Terrail et al. 2022); "pooled": of all train rows; "none".
                 Constant: divided by 1
    units        column -> its unit, in words: it changes no number, and is what sites compare
    picture      the column that names a file of each row, and how it is read (`p2pfl.data.pictures`): its pixels stand
                 behind the columns of x, as they are. A row without its picture is refused, or with another `missing`
                 left out

The file becomes a `Table`; each step takes a table and returns a smaller one with its notes, in this order: names,
missing cells, numbers, derived columns, the split column, identifiers and dates, rows with gaps and without pictures,
small sites, classes, the drawn split, coding and filling of columns, standardising, pictures.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from p2pfl.check import at_least, fraction, one_of
from p2pfl.data import derive as forms
from p2pfl.data import pictures
from p2pfl.data.columns import NOT_APPLICABLE, Coding, encode, one_spelling, scales
from p2pfl.data.dataset import (
    INDICATOR,
    NO_SITE,
    Column,
    Dataset,
    Flow,
    Moments,
    Numbers,
    Recipe,
    Samples,
    as_float32,
    plain,
    prepared,
    validate,
)  # fmt: skip
from p2pfl.data.dataset import split as draw_split
from p2pfl.data.derive import Derived
from p2pfl.data.far_off import ENOUGH, apart, far_off, goes_along, turned_round
from p2pfl.data.numerals import normalized
from p2pfl.data.outcomes import answers
from p2pfl.data.pictures import RowPicture
from p2pfl.data.suspects import refuse_suspects
from p2pfl.data.table import MISSING, Table, is_number, read, same
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
    use: Sequence[str] | None = None
    by_name: bool = False
    drop: Sequence[str] = ()
    rename: Mapping[str, str] | None = None
    derive: Mapping[str, Derived] | None = None
    dates: str | None = None
    decimal: str | None = None
    delimiter: str | None = None
    encoding: str | None = None
    sheet: str | None = None
    missing: str = "error"
    missing_values: Sequence[str] | Mapping[str, Sequence[str]] = ()
    missing_indicator: bool | Sequence[str] = False
    not_applicable: Mapping[str, Sequence[str]] | None = None
    min_rows: int = 10
    small_sites: str = "error"
    classes: Sequence[object] | None = None
    categories: Mapping[str, Sequence[object]] | None = None
    coding: str = "one_hot"
    standardize: str = "node"
    units: Mapping[str, str] | None = None
    picture: RowPicture | None = None
    test_fraction: float = 0.2
    seed: int = 0


def load(path: str | os.PathLike[str], wanted: CsvTable) -> Dataset:
    r"""Read a table (.xlsx, .parquet, or delimited text) and make of it what is wanted.

    Args:
        path: of the file.
        wanted: the columns and what is done with them; the head of this module explains the fields.

    Returns:
        x [N, F] float32, with a picture [N, F + H W C]; y as the kind has it, site [N] int32 (None without `site`);
        rows keep the order of the file.

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
    table = read(Path(path), wanted.drop, (), wanted.delimiter, wanted.encoding, wanted.sheet)
    return from_table(table, wanted, chosen=False)


def from_table(table: Table, wanted: CsvTable, chosen: bool = True) -> Dataset:
    """The same from a table that has been read. `chosen`: it holds only columns that somebody has named."""
    columns = _check(wanted)
    site, split, group, pictured = wanted.site, wanted.split, wanted.group, wanted.picture
    table, features = _prepared(table, wanted, columns)
    table = table._replace(site=site)
    if split is not None:
        table = _given_split(table, split)
    coding = _coding(wanted, features)
    table = refuse_suspects(table, features, coding.categories, features if chosen else wanted.use or ())
    never_filled = [name for name in (site, group, None if pictured is None else pictured.column) if name]
    table = _judge_missing(table, features, [*columns, *never_filled], wanted.missing)
    table = table if pictured is None else pictures.with_files(table, pictured, wanted.missing)
    if site is not None:
        table = _judge_sites(table, site, wanted.min_rows, wanted.small_sites)
    y, class_names, notes = answers(table, wanted.kind, columns, wanted.label_above, wanted.classes)
    sites, place = _places(table, site)
    if table.in_test is None:
        together = None if group is None else table.column(group).astype(str)
        in_test = draw_split(y, place, wanted.test_fraction, wanted.seed, together)
        table = table._replace(in_test=in_test)
    in_test, part_notes = _judge_parts(table, place, sites)
    raw, names, made_of, fill, code_notes = encode(table, features, coding, place, sites)
    flow = Flow(table.left_out, _gaps(table, features))
    known = raw if fill is None else np.where(np.isnan(raw), fill[place], raw)
    moments, strange = _beside_others(table, made_of, names, known, place, sites)
    mean, sd = scales(known, place, in_test, wanted.standardize, max(len(sites), 1))
    filled = fill if wanted.missing == "mean" or coding.outside else None  # else no cell is missing
    parts = [mean, sd, *([] if filled is None else [filled])]
    if all((part == part[0]).all() for part in parts):  # all sites alike
        mean, sd, *rest = (part[:1] for part in parts)
        filled = rest[0] if rest else None
    scaling = Numbers(plain(mean), plain(sd), None if filled is None else plain(filled))
    x = prepared(raw, scaling, place)
    train, test = (
        Samples(as_float32(x[part]), y[part], None if site is None else place[part], np.asarray(table.lines)[part])
        for part in (~in_test, in_test)
    )
    said = (*table.notes, *notes, *part_notes, *code_notes, *strange)
    units = wanted.units or {}
    made_of = tuple(
        column._replace(
            unit=units.get(column.name, ""),
            missing=wanted.missing + (INDICATOR if column.name in coding.marked else ""),
            standardize=wanted.standardize,
        )
        for column in made_of
    )
    recipe = Recipe("table", _fields(wanted, features, coding, made_of), scaling)
    dataset = Dataset(
        train, test, class_names, sites, names, said, None, wanted.kind, made_of, None, columns, recipe, flow,
        moments=moments,
    )  # fmt: skip
    dataset = dataset if pictured is None else _with_pictures(dataset, recipe, table, pictured)
    validate(dataset, table.where)
    return dataset


def _with_pictures(dataset: Dataset, recipe: Recipe, table: Table, wanted: RowPicture) -> Dataset:
    """The data with the picture of each row behind its columns."""
    beside = pictures.read(table, wanted)
    assert table.in_test is not None  # the caller has given or drawn it
    train, test = (
        rows._replace(x=np.concatenate([rows.x, beside.x[part]], axis=1))
        for rows, part in ((dataset.train, ~table.in_test), (dataset.test, table.in_test))
    )
    scaling = recipe.numbers._replace(first=len(dataset.features))
    fields = {**recipe.fields, "picture_shape": list(beside.shape)}
    return dataset._replace(
        train=train, test=test, notes=(*dataset.notes, *beside.notes), image=beside.facts, picture=beside.shape,
        recipe=recipe._replace(fields=fields, numbers=scaling),
    )  # fmt: skip


def _fields(wanted: CsvTable, features: Sequence[str], coding: Coding, made_of: Sequence[Column]) -> dict[str, Any]:
    """What new rows of such a table must be read by, as plain values."""
    categories = {column.name: column.categories for column in made_of if column.kind == "category"}
    return {
        "features": list(features),
        "site": wanted.site,
        "rename": dict(wanted.rename or {}),
        "derive": {
            name: {key: value for key, value in asdict(each).items() if value is not None}
            for name, each in (wanted.derive or {}).items()
        },
        "dates": wanted.dates,
        "decimal": wanted.decimal,
        "delimiter": wanted.delimiter,
        "encoding": wanted.encoding,
        "sheet": wanted.sheet,
        "missing": wanted.missing,
        "missing_values": wanted.missing_values
        if isinstance(wanted.missing_values, Mapping)
        else list(wanted.missing_values),
        "not_applicable": dict(wanted.not_applicable or {}),
        "named": [name for name, _ in (wanted.categories or {}).items()],
        "categories": {
            name: [value for value in values if not (name in coding.outside and value == NOT_APPLICABLE)]
            for name, values in categories.items()
        },
        "reference": coding.reference,
        "marked": list(coding.marked),
        "picture": None if wanted.picture is None else asdict(wanted.picture),
    }


def _beside_others(
    table: Table,
    made_of: Sequence[Column],
    names: Sequence[str],
    x: np.ndarray,
    place: np.ndarray,
    sites: Sequence[str],
) -> tuple[Moments, tuple[str, ...]]:
    """The moments of each site, and what of its rows looks as if it meant something else than at the others."""
    numeric = [names.index(column.name) for column in made_of if column.kind == "number"]
    in_train, known = ~np.asarray(table.in_test), x.copy()
    for f in numeric:
        known[table.column(names[f]) == "", f] = np.nan
    two = {
        column.name: counts
        for column in made_of
        if (counts := _values(table.column(column.name), place, in_train)) is not None
    }
    moments = _moments(known, place, ~in_train)._replace(two=two)

    def natural(name: str, site: str) -> bool:
        own = [f for f, each in enumerate(names) if each == name or each.startswith(f"{name}=")]
        value = (known[:, own[0]] == np.nanmax(known[:, own[0]])).astype(np.float64)  # behind it: where it is missing
        others = np.delete(known, own, axis=1)[in_train]
        return goes_along(value[in_train], others, place[in_train] == sites.index(site))

    turned = {
        name: turned_round(
            f"column {name!r}", dict(zip(sites or (NO_SITE,), counts, strict=True)), partial(natural, name)
        )
        for name, counts in two.items()
    }
    lines = tuple(line for each in turned.values() for line in each)
    numeric = [f for f in numeric if not turned.get(names[f])]  # it has no other unit
    enough = [site for site in range(len(sites)) if ((place == site) & in_train).sum() >= ENOUGH]
    named, at = [sites[site] for site in enough], np.ix_(enough, numeric)
    lines += far_off(moments.mean[at], moments.sd[at], [names[f] for f in numeric], named)
    for column in made_of:
        if column.kind == "category":
            cells = table.column(column.name)
            lines += apart(column.name, {sites[site]: {*cells[place == site]} - {""} for site in enough})
    return moments, lines


def _values(cells: np.ndarray, place: np.ndarray, in_train: np.ndarray) -> tuple[dict[str, int], ...] | None:
    """Value -> train rows of each site, of a column of at most two values; None of others."""
    known = in_train & (cells != "") & (cells != NOT_APPLICABLE)
    spelled = {cell: f"{float(cell):g}" if is_number(cell) else str(cell) for cell in set(cells[known])}
    if len(set(spelled.values())) > 2:
        return None
    sites = range(int(place.max()) + 1)
    return tuple(dict(Counter(spelled[cell] for cell in cells[known & (place == site)])) for site in sites)


def _gaps(table: Table, features: Sequence[str]) -> dict[str, dict[str, int]]:
    """Column -> site -> missing cells, of the columns that have any."""
    places = np.full(len(table.cells), NO_SITE, object) if table.places is None else table.places
    gaps = {name: dict(Counter(places[table.column(name) == ""].tolist())) for name in features}
    return {name: counts for name, counts in gaps.items() if counts}


def _moments(x: np.ndarray, place: np.ndarray, in_test: np.ndarray) -> Moments:
    """Mean and standard deviation of the train rows of each site; NaN: missing."""
    rows = [np.ma.masked_invalid(x[(place == site) & ~in_test]) for site in range(int(place.max()) + 1)]
    means, sds = ([getattr(each, name)(axis=0).filled(np.nan) for each in rows] for name in ("mean", "std"))
    return Moments(np.stack(means), np.stack(sds))


def _check(wanted: CsvTable) -> tuple[str, ...]:
    """Refuse arguments that can't be; returns the columns that hold what is to be predicted."""
    one_of(("error", "drop_row", "mean", "gossip"), missing=wanted.missing)
    one_of(("error", "drop"), small_sites=wanted.small_sites)
    one_of(("node", "pooled", "none"), standardize=wanted.standardize)
    one_of(("one_hot", "treatment"), coding=wanted.coding)
    one_of(ANSWERS, kind=wanted.kind)
    fraction(test_fraction=wanted.test_fraction)
    at_least(0, seed=wanted.seed, min_rows=wanted.min_rows)
    if wanted.decimal is not None:
        one_of((".", ","), decimal=wanted.decimal)
    if wanted.delimiter is not None and len(wanted.delimiter) != 1:
        raise ConfigError(f"delimiter={wanted.delimiter!r}: must be one character")
    forms.judge(wanted.derive or {})
    if wanted.picture is not None:
        pictures.judge(wanted.picture)
    for one, other, why in (
        ("label_above", "classes", "give one, not both"),
        ("use", "drop", "what use does not name is left out; give one, not both"),
    ):
        values = [getattr(wanted, name) for name in (one, other)]
        if all(value is not None and value != () and value != [] for value in values):
            raise ConfigError(f"{one}={_plain(values[0])} and {other}={_plain(values[1])}: {why}")
    if wanted.missing == "gossip" and wanted.standardize != "none":
        raise ConfigError(
            f"standardize={wanted.standardize!r}: missing='gossip' takes its mean and deviation from all nodes; use "
            'standardize = "none" and [statistics] normalize = true'
        )
    if wanted.missing_indicator and wanted.missing not in ("mean", "gossip"):
        raise ConfigError(
            f"missing_indicator: says where a cell was filled in, and missing={wanted.missing!r} fills none; "
            'use missing = "mean", or leave it out'
        )
    if wanted.group is not None and wanted.split is not None:
        raise ConfigError(
            f"group={wanted.group!r}: is used only where the split is drawn, not with split; leave it out"
        )
    return _outcomes(wanted)


def _plain(value: object) -> str:
    return repr(list(value) if isinstance(value, tuple | list) else value)


def _outcomes(wanted: CsvTable) -> tuple[str, ...]:
    """The columns that hold what is to be predicted. Raises ConfigError for what the kind does not use."""
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


def _prepared(table: Table, wanted: CsvTable, columns: Sequence[str]) -> tuple[Table, tuple[str, ...]]:
    """The table with its names, missing cells, numbers and derived columns; the columns to learn from."""
    derive = wanted.derive or {}
    table = _renamed(table, wanted.rename or {})
    made = {source for each in derive.values() for source in each.sources}
    features = _features(table, wanted, columns, made)
    pictured = None if wanted.picture is None else wanted.picture.column
    outcomes = [name for name in (*columns, wanted.site, wanted.split, wanted.group, pictured) if name is not None]
    used = [name for name in table.names if name in made or name in features or name in outcomes]
    table = cleaned(table, used, wanted, columns)
    texts = {name for name, values in (wanted.categories or {}).items() if not all(is_number(str(v)) for v in values)}
    texts |= {
        name for name in (wanted.site, wanted.split, wanted.group, pictured) if name is not None
    }  # names, whatever is in them
    table = normalized(table, [name for name in used if name not in texts], wanted.decimal, (NOT_APPLICABLE,))
    return forms.derived(table, derive, wanted.dates), features


def _renamed(table: Table, rename: Mapping[str, str]) -> Table:
    for old in rename:
        if old not in table.names:
            raise DataError(f"{table.where}: rename={old!r} is not a column; {nearest(old, table.names)}")
    names = tuple(rename.get(name, name) for name in table.names)
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{table.where}: rename makes two columns of the name {twice!r}; choose another")
    return table._replace(names=names)


def cleaned(table: Table, used: Sequence[str], wanted: CsvTable, columns: Sequence[str]) -> Table:
    """The table with "" for what is missing, and one word for what does not apply, in the columns that are used."""
    own = wanted.missing_values if isinstance(wanted.missing_values, Mapping) else {}
    every = () if isinstance(wanted.missing_values, Mapping) else wanted.missing_values
    for field, names in (("missing_values", own), ("not_applicable", wanted.not_applicable or {})):
        for name in names:
            if name not in used:
                raise DataError(f"{table.where}: {field}={name!r} is not a column that is used; {nearest(name, used)}")
    for name in used:
        words = set(map(same, (*every, *own.get(name, ()))))
        outside = set(map(same, (wanted.not_applicable or {}).get(name, ())))
        values = (wanted.categories or {}).get(name, (wanted.classes or ()) if name in columns else ())
        meant = {str(value).strip() for value in values}
        cells = table.column(name)
        new = {cell: _meaning(cell, words, outside, meant) for cell in set(cells)}
        if any(cell != meaning for cell, meaning in new.items()):
            table = table.with_column(name, np.array([new[cell] for cell in cells], object))
    return table


def _meaning(cell: str, missing: set[float | str], outside: set[float | str], values: set[str]) -> str:
    if outside and same(cell) in outside:
        return NOT_APPLICABLE
    if (missing and same(cell) in missing) or (cell.lower() in MISSING and cell not in values):
        return ""
    return cell


def _coding(wanted: CsvTable, features: Sequence[str]) -> Coding:
    """What is done to code the columns to learn from."""
    known = {name: values for name, each in (wanted.derive or {}).items() if (values := each.categories) is not None}
    marked = wanted.missing_indicator
    if not isinstance(marked, bool):
        for name in marked:
            if name not in features:
                raise DataError(f"missing_indicator={name!r} is not a column to learn from; {nearest(name, features)}")
    return Coding(
        categories={
            **{name: values for name, values in known.items() if name in features},
            **(wanted.categories or {}),
        },
        reference=wanted.coding == "treatment",
        marked=tuple(features if marked is True else marked or ()),
        outside=tuple(wanted.not_applicable or ()),
        fill=wanted.missing != "gossip",
    )


def _features(table: Table, wanted: CsvTable, columns: Sequence[str], made: set[str]) -> tuple[str, ...]:
    """Names of the columns to learn from. `made`: those that others are derived of."""
    names = tuple(dict.fromkeys((*table.names, *(wanted.derive or ()))))
    kinds = ANSWERS[wanted.kind]
    named = kinds if wanted.kind == "survival" else kinds * len(columns)  # the columns of a list all have its name
    roles: list[tuple[str, str | None]] = [
        *zip(named, columns, strict=True),
        ("site", wanted.site), ("split", wanted.split), ("group", wanted.group),
        ("picture.column", None if wanted.picture is None else wanted.picture.column),
        *(("drop", name) for name in wanted.drop), *(("use", name) for name in wanted.use or ()),
    ]  # fmt: skip
    used: dict[str, str] = {}
    for role, name in roles:
        if name is None:
            continue
        if name not in names:
            raise DataError(f"{table.where}: {role}={name!r} is not a column; {nearest(name, names)}")
        if name in used and role != used[name]:
            raise DataError(f"{table.where}: column {name!r} is both {used[name]} and {role}; it can be one of them")
        used[name] = role
    sources = made - set(wanted.derive or ())
    rest = [name for name in names if name not in used and name not in sources]
    features = tuple(wanted.use or (sorted(rest) if wanted.by_name else rest))
    for field in ("categories", "units"):
        for name in getattr(wanted, field) or ():
            if name not in names:
                raise DataError(f"{table.where}: {field}={name!r} is not a column; {nearest(name, names)}")
            if name not in features:
                said = f"both {used[name]} and {field}; it can be one of them" if name in used else "not learned from"
                raise DataError(f"{table.where}: {field}={name!r}: column {name!r} is {said}")
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
    why = np.where(values == "", f"{split!r} is empty", f"{split!r} says validation")
    return table._replace(in_test=values == "test").keep(kept, why, *notes)


def _judge_missing(table: Table, features: Sequence[str], never_filled: Sequence[str], missing: str) -> Table:
    """Leave out or refuse rows with missing cells; what "mean" is to fill stays "" for `_encode`."""
    gaps = {name: table.column(name) == "" for name in (*features, *never_filled)}
    counts = {name: int(gap.sum()) for name, gap in gaps.items() if gap.any()}
    for name, count in counts.items():
        if count == len(table.cells) and (missing != "gossip" or name in never_filled):
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
    judged = list(never_filled) if missing in ("mean", "gossip") else list(gaps)
    gone = np.any([gaps[name] for name in judged], axis=0)
    if not gone.any():
        return table
    if gone.all():
        raise DataError(f"{table.where}: every row misses a cell: {said}; leave out the emptiest columns with drop")
    columns = ", ".join(f"{name!r} ({counts[name]})" for name in judged if name in counts)
    why = np.select([gaps[name] for name in judged], [f"{name!r} is missing" for name in judged], "")
    never = " (a label or site is never filled)" if missing in ("mean", "gossip") else ""
    return table.keep(~gone, why, f"left out {int(gone.sum())} rows with missing cells in {columns}{never}")


def _judge_sites(table: Table, site: str, min_rows: int, small_sites: str) -> Table:
    counts = Counter(table.column(site))
    one_spelling(table, site, counts, "leave one out")
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
    return table.keep(
        kept, f"a site of fewer than {min_rows} rows", f"left out sites with fewer than {min_rows} rows: {said}"
    )


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
