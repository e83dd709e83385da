"""The layout of a data set on disk: one TOML file that says where rows, images, labels, sites and splits are found.

docs/data.md explains it field by field. A layout is data: nothing in it is executed. Patterns and templates speak of
columns: a row has columns by the names in braces of a `files` pattern, by the header of a table, and by [columns].
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from p2pfl import shipped
from p2pfl.check import LIST, STRICT, Count, Texts
from p2pfl.data import toml_file
from p2pfl.data.volumes import VolumeTable
from p2pfl.errors import ConfigError, DataError, nearest

Adds = dict[str, str]
Range = Annotated[tuple[float, float], LIST]
FOLDER = Path("experiments") / "data"
"""Where the layouts of known data sets lie, below the current directory or beside the experiment file."""


@dataclass(frozen=True, config=STRICT)
class Files:
    """[[files]]: every file that fits a pattern is a row."""

    pattern: str  # path below the root; {name} is part of a folder's or file's name and becomes a column, * is anything
    add: Adds = Field(default_factory=dict)  # columns with one value for all of these rows


@dataclass(frozen=True, config=STRICT)
class TableFile:
    """[[tables]]: every row of a delimited file is a row."""

    file: str  # path below the root
    columns: Texts = ()  # names of the columns of a file without a header
    delimiter: str | None = None  # found by the header unless given; " " is any white space
    add: Adds = Field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class Join:
    """[[join]]: columns of a second table, by a column that both have."""

    file: str
    on: str  # the column of the rows
    key: str | None = None  # the same in the second table, where it is called otherwise
    columns: Texts = ()
    delimiter: str | None = None
    required: bool = True  # a row that the second table lacks is refused; else left out


@dataclass(frozen=True, config=STRICT)
class PatternColumn:
    """[columns.NAME]: a column made of another by a regular expression: its first group, or all that it matches."""

    of: str
    pattern: str


@dataclass(frozen=True, config=STRICT)
class Pivot:
    """[pivot]: of a table with a line for each label of a row: lines of one row become one, with a column for each."""

    by: str  # the column that tells rows apart
    name: str  # the column whose values become columns
    value: str  # the column of what stands in them


@dataclass(frozen=True, config=STRICT)
class Label:
    """[label]: what is to be predicted."""

    column: str | None = None  # classes: the column; labels: the column that lists them, with `separator`
    columns: Texts | None = None  # one for each class (one-hot), label or target
    separator: str | None = None  # labels in one column: what stands between two
    none: Texts = ()  # labels in one column: words that are no label
    values: Adds = Field(default_factory=dict)  # cell or pixel -> class, or "0" or "1" of a label, or a number
    drop: Texts = ()  # cells whose rows are left out
    time: str | None = None  # survival
    event: str | None = None  # survival
    mask: str | None = None  # segmentation: template of the file of the mask


@dataclass(frozen=True, config=STRICT)
class Split:
    """[split]: which rows are for training, testing and validation; without it the test rows are drawn."""

    column: str
    train: Texts = ()  # values of the column
    test: Texts = ()
    validation: Texts = ()
    ignore: Texts = ()  # rows of these values are left out
    lists: dict[Literal["train", "test", "validation"], str] = Field(default_factory=dict)  # files that list values


@dataclass(frozen=True, config=STRICT)
class Pixels:
    """[pixels]: from a file to an array."""

    size: Annotated[tuple[Count, ...], LIST] = ()  # [height, width]; of whole volumes [depth, height, width]
    mode: Literal["grey", "rgb"] = "grey"  # image
    channels: Texts = ()  # templates of the files that make up the channels, instead of `path`
    intensity: Literal["auto", "full", "range", "zscore", "none"] = "auto"
    window: Range | None = None  # [centre, width], instead of `intensity`
    unit: Literal["SUV"] | None = None  # of PET in DICOM: what Bq/ml are converted to, before all else
    slices: Literal["middle", "all", "volume"] | Annotated[tuple[int, int], LIST] = "middle"  # of a volume
    axis: Annotated[int, Field(ge=0, le=2)] = 2  # of a volume: the axis that is cut
    frames: Texts = ()  # columns that hold the number of a frame (from 0) on the last axis of a 4-D file
    foreground: bool = False  # segmentation: leave out slices that hold the first class only


@dataclass(frozen=True, config=STRICT)
class Features:
    """[features]: columns to learn from, with format = "table"; as the fields of source = "csv"."""

    columns: Texts
    categories: dict[str, Texts] | None = None
    missing: Literal["error", "drop_row", "mean"] = "error"
    standardize: Literal["node", "pooled", "none"] = "node"
    small_sites: Literal["error", "drop"] = "error"


@dataclass(frozen=True, config=STRICT)
class Layout:
    """A whole layout file."""

    name: str  # of the data set
    origin: str  # where the data set is got, and what says that it lies so
    kind: Literal["classes", "labels", "regression", "survival", "segmentation", "reconstruction"]
    format: Literal["image", "dicom", "nifti", "mhd", "npy", "series", "table", "fastmri"]
    label: Label
    classes: Texts = ()  # of classes and segmentation, in order: every site must have the same
    files: Annotated[tuple[Files, ...], LIST] = ()
    tables: Annotated[tuple[TableFile, ...], LIST] = ()
    join: Annotated[tuple[Join, ...], LIST] = ()
    columns: dict[str, PatternColumn] = Field(default_factory=dict)
    pivot: Pivot | None = None  # made after `columns`, before `keep`
    headers: Adds = Field(default_factory=dict)  # column -> what it is called in the header of the row's DICOM file
    keep: dict[str, Texts] = Field(default_factory=dict)  # column -> its values that are kept
    unique: str | None = None  # column: of rows with one value only the first is kept
    path: str | None = None  # template of the row's file, for rows of a table
    site: str | None = None  # column
    group: str | None = None  # column: rows that stay together when the split is drawn, such as the patient
    min_rows: Annotated[int, Field(ge=0)] = 0  # sites with fewer rows are left out
    split: Split | None = None
    pixels: Pixels = Field(default_factory=Pixels)
    volume: VolumeTable | None = None  # of whole volumes: their frame, spacing, patches
    features: Features | None = None


def find(name: str, beside: Path) -> Path:
    """The file of a layout: a path to a .toml, or a name looked for as experiments/data/NAME.toml.

    Looked for in `beside` (where the experiment lies) and every folder above it, then in the current directory, then
    among those that come with p2pfl.
    Raises DataError with the places and the layouts that are there.
    """
    if name.endswith(".toml"):
        places = [beside / name, Path(name)]
    else:
        here = beside.resolve()
        places = [folder / f"{name}.toml" for folder in (here, here / "data")]
        places += [folder / FOLDER / f"{name}.toml" for folder in (here, *here.parents, Path.cwd())]
        places.append(shipped.folder("experiments") / FOLDER.name / f"{name}.toml")
    found = next((place for place in places if os.path.isfile(place)), None)  # false also of what can be no name
    if found is None:
        known = sorted(
            {file.stem for place in places for file in place.parent.glob("*.toml") if FOLDER.name in file.parts}
        )
        said = nearest(name, known) if known and not name.endswith(".toml") else "give the path of a .toml"
        searched = ", ".join(dict.fromkeys(str(place.resolve()) for place in (places[0], places[-1])))
        raise DataError(f"data.layout={name!r}: no such layout; looked for {searched}; {said}")
    return found.resolve()


def read(file: Path) -> Layout:
    """Read and check a layout. Raises DataError with file, field, value and rule, a line for each fault."""
    layout: Layout = toml_file.made(Layout, toml_file.table(file, "a layout"), file, "a layout")
    return judged(layout, str(file))


def judged(layout: Layout, where: str) -> Layout:
    """A layout whose fields go together. Raises DataError that begins with `where`."""
    try:
        _judge(layout)
    except ConfigError as exc:
        raise DataError(f"{where}: {exc}") from exc
    return layout


def _judge(layout: Layout) -> None:
    """Check fields that belong together, which pydantic can't see. Raises ConfigError."""
    if bool(layout.files) == bool(layout.tables):
        raise ConfigError("files and tables: give one of them; a second table is a [[join]]")
    if layout.tables and layout.format != "table" and layout.path is None and not layout.pixels.channels:
        raise ConfigError(
            'path: missing; the rows of tables need the template of their file, as in "images/{name}.png"'
        )
    if (layout.format == "table") != (layout.features is not None):
        raise ConfigError('features: goes with format = "table", and with no other')
    if (layout.kind == "reconstruction") != (layout.format == "fastmri"):
        raise ConfigError(
            f'kind={layout.kind!r}: reconstruction goes with format = "fastmri", and with no other; of other images '
            "[data.degrade] makes one"
        )
    if layout.kind == "segmentation":
        if layout.format not in ("image", "dicom", "nifti", "mhd", "npy"):
            raise ConfigError(f"format={layout.format!r}: has no pixels to segment; use another kind")
    elif layout.pixels.foreground:
        raise ConfigError('pixels.foreground=true: goes with kind = "segmentation"')
    whole = layout.pixels.slices == "volume"
    if layout.format == "fastmri" and (whole or layout.pixels.size):
        raise ConfigError('pixels: k-space is read by slices, at its own size; leave size and slices = "volume" out')
    if layout.pixels.size and len(layout.pixels.size) != (3 if whole else 2):
        rule = "[depth, height, width]" if whole else "[height, width]"
        raise ConfigError(f"pixels.size={list(layout.pixels.size)}: must be {rule}")
    _judge_volume(layout)
    judge_values(layout.pixels, layout.format, "pixels")
    if layout.headers and layout.format != "dicom":
        raise ConfigError(f'headers: are those of format = "dicom"; format={layout.format!r} has none')
    if layout.split is not None and bool(layout.split.lists) == bool(layout.split.train or layout.split.test):
        raise ConfigError("split: give the values of the column (train, test, ...), or files that list them (lists)")
    _judge_label(layout)
    for name, column in layout.columns.items():
        try:
            re.compile(column.pattern)
        except re.error as exc:
            raise ConfigError(f"columns.{name}.pattern={column.pattern!r}: no regular expression: {exc}") from exc


def judge_values(pixels: Pixels, format: str, where: str) -> None:
    """Check the fields that say what values of pixels become. Raises ConfigError that begins with `where`."""
    if pixels.window is not None and (pixels.intensity != "auto" or pixels.window[1] <= 0):
        raise ConfigError(f"{where}.window: must be [centre, width > 0], and intensity must be left out")
    if pixels.unit is not None and format != "dicom":
        raise ConfigError(f'{where}.unit="SUV": is of PET with format = "dicom"; format={format!r} can\'t say its unit')


def _judge_volume(layout: Layout) -> None:
    volume, pixels = layout.volume, layout.pixels
    if volume is None:
        return
    if pixels.slices != "volume":
        raise ConfigError('volume: is of whole volumes; give pixels.slices = "volume" too')
    if layout.format not in ("dicom", "nifti", "mhd", "npy"):
        raise ConfigError(f"volume: format={layout.format!r} holds no volumes; leave it out")
    if volume.patch is not None and layout.kind != "segmentation":
        raise ConfigError(
            f'volume.patch: goes with kind = "segmentation"; a patch has no answer of kind {layout.kind!r}. Give '
            "pixels.size = [depth, height, width], to which volumes are cut or padded"
        )
    if volume.patch is not None and pixels.size:
        raise ConfigError("volume.patch and pixels.size: give one; patches are of volumes as they are")
    if volume.patch is None and not pixels.size:
        raise ConfigError("volume: needs patch, or pixels.size, so that rows are of one shape")


LABELS: dict[str, Sequence[tuple[str, ...]]] = {
    "classes": (("column",), ("columns",)),
    "labels": (("columns",), ("column", "separator")),
    "regression": (("columns",),),
    "survival": (("time", "event"),),
    "segmentation": (("mask",),),
    "reconstruction": ((),),
}
"""Kind -> the ways to say what is to be predicted: fields of [label] that must be given together."""


def _judge_label(layout: Layout) -> None:
    fields = ("column", "columns", "separator", "time", "event", "mask")
    given = {name for name in fields if getattr(layout.label, name) is not None}
    ways = LABELS[layout.kind]
    if given not in [set(way) for way in ways]:
        said = "; or ".join(" and ".join(way) or "none of them" for way in ways)
        raise ConfigError(f"label: kind={layout.kind!r} needs {said}. Given: {', '.join(sorted(given)) or 'none'}")
    if layout.format == "table" and (layout.label.values or layout.label.drop or layout.label.separator):
        raise ConfigError('label: with format = "table" values, drop and separator are not used; use keep and classes')
    named = layout.kind in ("regression", "survival") or (layout.kind == "labels" and layout.label.separator is None)
    if named and layout.classes:
        raise ConfigError(f"classes: kind={layout.kind!r} takes its names from [label]; leave it out")
    if not named and not layout.classes:
        raise ConfigError("classes: missing; every site must have the same, in the same order")
    if (
        layout.kind == "classes"
        and layout.label.columns is not None
        and len(layout.label.columns) != len(layout.classes)
    ):
        raise ConfigError("label.columns: must be one for each of classes")
