"""The data dictionary: what the rows mean, so that they mean the same at every site.

    kind       what is predicted: a name of `KINDS`
    predicts   of a table: the columns that the answer is made of
    classes    names of classes, labels or targets, in the order of the model's outputs
    shape      of a row of x, of data without columns
    columns    of a table: a `Column` each, in the order in which x has them
    image      of images: `ImageFacts`

It is made from a data set (`describe`), written as a TOML file that a person reads and changes, and named in an
experiment: then every site reads its own file by it (`apply`), and is refused where it holds something else (`hold`).
Nodes compare theirs before they exchange anything (`differences`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import tomli_w
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from p2pfl.check import LIST, STRICT, Texts, one_of
from p2pfl.data import toml_file
from p2pfl.data.columns import NOT_APPLICABLE
from p2pfl.data.dataset import INDICATOR, KINDS, Column, Dataset, ImageFacts
from p2pfl.data.image import PET
from p2pfl.errors import ConfigError, DataError, nearest

FORMAT = 1
_COLUMNS = ("number", "category")
"""Kinds of columns."""


@dataclass(frozen=True, config=STRICT)
class Dictionary:
    """What the rows of a data set mean; the fields are explained at the head of this module."""

    kind: str
    classes: Texts
    predicts: Texts = ()
    shape: Annotated[tuple[int, ...], LIST] = ()
    columns: Annotated[tuple[Column, ...], LIST] = ()
    image: ImageFacts | None = None


_READ = TypeAdapter(Dictionary)


def describe(dataset: Dataset) -> Dictionary:
    """The dictionary of a data set, as it was read."""
    shape = () if dataset.columns else dataset.train.x.shape[1:]
    sizes = tuple(int(size) for size in shape)
    return Dictionary(dataset.kind, dataset.classes, dataset.predicts, sizes, dataset.columns, dataset.image)


# --- as text


def _plain(dictionary: Dictionary) -> dict[str, Any]:
    """As tables and lists; what says nothing is left out."""
    columns = [
        {name: list(value) if isinstance(value, tuple) else value for name, value in column._asdict().items() if value}
        for column in dictionary.columns
    ]
    image = {} if dictionary.image is None else dictionary.image._asdict()
    table = {
        "kind": dictionary.kind,
        "predicts": [*dictionary.predicts],
        "classes": [*dictionary.classes],
        "shape": [*dictionary.shape],
        "columns": columns,
        "image": {name: value for name, value in image.items() if value is not None},
    }
    return {name: value for name, value in table.items() if value}


def dumps(dictionary: Dictionary) -> str:
    """The dictionary as a TOML file."""
    head = '# What the rows mean: the same at every site. See docs/data.md, "The data dictionary".\n'
    return head + tomli_w.dumps({"format": FORMAT, **_plain(dictionary)})


def to_json(dictionary: Dictionary) -> str:
    """The dictionary in one line: equal for equal ones."""
    return json.dumps(_plain(dictionary), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def from_json(text: str) -> Dictionary:
    """The dictionary in such a line. Raises ValueError for anything else."""
    return _READ.validate_json(json.dumps(_whole(json.loads(text))))


def load(path: Path | str) -> Dictionary:
    """Read a dictionary file. Raises DataError: field, value, rule."""
    path, what = Path(path), "a dictionary"
    table = toml_file.table(path, what)
    if (version := table.pop("format", FORMAT)) != FORMAT:
        raise DataError(f"{path}: format={version!r}: this p2pfl reads format {FORMAT}; use the version that wrote it")
    dictionary: Dictionary = toml_file.made(Dictionary, _whole(table), path, what)
    try:
        _check(dictionary)
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from error
    return dictionary


def _whole(table: Any) -> Any:
    """The tables with what TOML has no word for."""
    if isinstance(table, dict) and isinstance(table.get("image"), dict):
        table["image"].setdefault("intensity", None)
    return table


def _check(dictionary: Dictionary) -> None:
    one_of(KINDS, kind=dictionary.kind)
    names = [column.name for column in dictionary.columns]
    for what, listed in (("columns", names), ("classes", [*dictionary.classes])):
        if twice := sorted({name for name in listed if listed.count(name) > 1}):
            raise ConfigError(f"{what}: {', '.join(map(repr, twice))} stands there more than once; names must differ")
    for column in dictionary.columns:
        if column.kind not in _COLUMNS:
            raise ConfigError(f"column {column.name!r}: kind={column.kind!r}: {nearest(column.kind, _COLUMNS)}")
        if (column.kind == "category") != bool(column.categories):
            raise ConfigError(
                f"column {column.name!r}: kind={column.kind!r} with categories={[*column.categories]!r}: a category "
                "lists all its values, a number none"
            )


# --- what differs


def differences(theirs: Dictionary, ours: Dictionary) -> tuple[str, ...]:
    """What differs, in words: column, theirs ("there"), ours ("here"); nothing where they mean the same."""
    lines = []
    if theirs.kind != ours.kind:
        lines.append(f"kind: {theirs.kind!r} there, {ours.kind!r} here")
    if theirs.predicts != ours.predicts:
        lines.append(f"predicts: {_listed(theirs.predicts)} there, {_listed(ours.predicts)} here")
    if theirs.classes != ours.classes:
        what = "classes, in another order" if sorted(theirs.classes) == sorted(ours.classes) else "classes"
        lines.append(f"{what}: {_listed(theirs.classes)} there, {_listed(ours.classes)} here")
    if theirs.shape != ours.shape:
        lines.append(f"shape of a row: {list(theirs.shape)} there, {list(ours.shape)} here")
    lines += _of_images(theirs.image, ours.image)
    there, here = ({column.name: column for column in each.columns} for each in (theirs, ours))
    for name in dict.fromkeys((*here, *there)):
        if name not in there:
            lines.append(f"column {name!r}: only here")
        elif name not in here:
            lines.append(f"column {name!r}: only there")
        else:
            lines += _of_column(there[name], here[name])
    if not lines and [*there] != [*here]:
        lines.append("columns: the same, in another order")
    return tuple(lines)


def _of_column(theirs: Column, ours: Column) -> list[str]:
    """What differs in a column of one name."""
    if theirs.kind != ours.kind:
        return [f"column {ours.name!r}: {_kind(theirs)} there, {_kind(ours)} here"]
    lines = []
    for field in ("categories", "unit", "coding", "missing", "standardize"):
        one, other = getattr(theirs, field), getattr(ours, field)
        if one == other:
            continue
        if field == "categories":
            lines.append(f"column {ours.name!r}: categories {_listed(one)} there, {_listed(other)} here")
        else:
            lines.append(f"column {ours.name!r}: {field} {one or 'not given'!r} there, {other or 'not given'!r} here")
    return lines


_WAYS: Mapping[str, str] = MappingProxyType(
    {
        "shape": "give pixels.size (or side) alike",
        "channels": 'give pixels.mode ("grey", "rgb") or pixels.channels alike',
        "bit_depth": "say what is white with pixels.window, or write all files alike",
        "unit": 'of PET either all files in one unit (DICOM: pixels.unit = "SUV"), or at every site pixels.intensity = '
        '"range" or "zscore", by which it cancels out; others are different pictures',
        "scaling": "give pixels.window or pixels.intensity alike",
        "intensity": "give pixels.window, of npz intensity, alike",
        "orientation": "write all files as NIfTI (dcm2niix makes it of DICOM), whose axes are turned to right, "
        "anterior, superior, and cut the same pixels.axis",
        "photometric": 'give pixels.mode ("grey", "rgb") alike',
    }
)
"""Field of ImageFacts -> what to do where it differs."""


def _of_images(theirs: ImageFacts | None, ours: ImageFacts | None) -> list[str]:
    """What differs in images, and the way out.

    In a physical unit it does not matter in how many bits they are stored; where each file is scaled by itself not
    whether activity is in Bq/ml or SUV, of which one is a multiple of the other in each scan.
    """
    if theirs is None or ours is None:
        return [] if theirs == ours else [f"images: {'none' if theirs is None else 'some'} there"]
    physical = theirs.unit == ours.unit not in ("stored", "unknown")
    each = theirs.scaling == ours.scaling in ("percentiles", "zscore")
    alike = {"bit_depth"} if physical else set()
    alike |= {"unit", "bit_depth"} if each and {theirs.unit, ours.unit} <= {*PET.values()} else set()
    return [
        f"images: {field} {there!r} there, {here!r} here: {_WAYS[field]}"
        for field, there, here in zip(ImageFacts._fields, theirs, ours, strict=True)
        if there != here and field not in alike
    ]


def _kind(column: Column) -> str:
    return f"a category ({_listed(column.categories)})" if column.kind == "category" else "a number"


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(map(repr, names[:most])) or "nothing"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


# --- reading by it


def apply(wanted: Mapping[str, Any], dictionary: Dictionary) -> dict[str, Any]:
    """The fields of a table's reading, completed by the dictionary. Raises DataError for one that contradicts it.

    Columns of the file that it does not name are left out.
    """
    columns = dictionary.columns
    if left_out := [column.name for column in columns if column.name in wanted.get("drop", ())]:
        raise DataError(f"data.drop={left_out!r}: the dictionary has these columns; a site can't leave them out")
    by_it = {"kind": dictionary.kind, "use": tuple(column.name for column in columns), **_rules(columns)}
    if dictionary.kind == "classes" and wanted.get("label_above") is None:
        by_it["classes"] = dictionary.classes
    result = {name: value for name, value in wanted.items() if name != "drop"}
    for name, value in by_it.items():
        given = result.get(name)
        part = isinstance(given, Mapping) and isinstance(value, Mapping)
        if given is not None and not (all(item in value.items() for item in given.items()) if part else given == value):
            raise DataError(
                f"data.{name}={given!r}: the dictionary has {value!r}; leave it out here, or change the dictionary at "
                "every site"
            )
        result[name] = value
    return result


def _rules(columns: Sequence[Column]) -> dict[str, Any]:
    """What the columns say of how a table is read, as its fields."""
    rules: dict[str, Any] = {
        "categories": {
            column.name: tuple(value for value in column.categories if value != NOT_APPLICABLE)
            for column in columns
            if column.kind == "category"
        },
        "units": {column.name: column.unit for column in columns if column.unit},
        "missing_indicator": tuple(column.name for column in columns if column.missing.endswith(INDICATOR)) or None,
    }
    if columns:
        rules["missing"] = columns[0].missing.removesuffix(INDICATOR)
        rules["standardize"] = columns[0].standardize
    codings = {column.coding for column in columns if column.kind == "category"}
    if len(codings) == 1:
        rules["coding"] = codings.pop()
    return {name: value for name, value in rules.items() if value is not None}


def hold(dataset: Dataset, dictionary: Dictionary, path: str) -> None:
    """Raise DataError where a data set holds something else. A category of the dictionary need not occur."""
    if lines := differences(dictionary, describe(dataset)):
        said = "\n".join(f"  {line}" for line in lines)
        raise DataError(
            f"{path}: the data are not what the dictionary says (there: the dictionary, here: the data)\n{said}\n"
            "Rename, derive, drop or correct what differs; or change the dictionary at every site"
        )


# --- of several files


def only_in(dictionaries: Mapping[str, Dictionary]) -> tuple[str, ...]:
    """Say which classes and categories some of several files, by name, have and others have not."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for file, each in dictionaries.items():
        if each.kind == "classes":
            found.setdefault("classes", {})[file] = each.classes
        for column in each.columns:
            if column.kind == "category":
                found.setdefault(f"column {column.name!r}", {})[file] = column.categories
    lines = []
    for what, names in found.items():
        shared = set.intersection(*map(set, names.values()))
        parts = [
            f"{_listed(own)} only in {file}"
            for file, values in names.items()
            if (own := [value for value in values if value not in shared])
        ]
        lines += [f"{what}: {'; '.join(parts)}"] if parts else []
    return tuple(lines)


def united(dictionaries: Mapping[str, Dictionary]) -> Dictionary:
    """One dictionary for several files, by name: classes and categories of all. Raises DataError for what differs else.

    Columns are in the order of their names.
    """
    (first, base), *rest = dictionaries.items()
    for name, other in rest:
        columns = {column.name: column for column in other.columns}
        merged = []
        for column in base.columns:
            match = columns.get(column.name)
            if match is not None and match.kind == column.kind == "category":
                values = tuple(dict.fromkeys((*column.categories, *match.categories)))
                columns[column.name], column = match._replace(categories=values), column._replace(categories=values)
            merged.append(column)
        if base.kind == other.kind == "classes" and {*base.classes} != {*other.classes}:
            both = tuple(sorted({*base.classes, *other.classes}))
            base, other = replace(base, classes=both), replace(other, classes=both)
        base = replace(base, columns=tuple(sorted(merged)))
        other = replace(other, columns=tuple(sorted(columns.values())))
        if lines := differences(other, base):
            said = "\n".join(f"  {line}" for line in lines)
            raise DataError(
                f"{name} and {first} differ (there: {name}, here: {first})\n{said}\nRename, derive, drop or correct "
                "what differs, so that one dictionary holds for all"
            )
    return base
