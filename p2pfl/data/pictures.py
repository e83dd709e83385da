"""Pictures beside the columns of a table: a column names the file of each row, whose pixels stand behind the numbers.

A row of x is [P + H W C]: P numbers, then the picture (`p2pfl.data.dataset.Dataset.picture`). A picture is read as that
of a layout is (`p2pfl.data.pixels`), scaled by itself or by its type, and never filled in.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic.dataclasses import dataclass

from p2pfl.check import LIST, STRICT, Count
from p2pfl.data.dataset import ImageFacts
from p2pfl.data.image import is_far, together
from p2pfl.data.layout import Label, Layout, Pixels, Range, judge_values
from p2pfl.data.pixels import Entry, add, judge_scale, read_all
from p2pfl.data.table import Table
from p2pfl.errors import DataError, nearest


@dataclass(frozen=True, config=STRICT)
class RowPicture:
    """[data.picture]: the column that names the picture of each row, and how it becomes numbers."""

    column: str  # its cells are paths
    folder: str = "."  # where they begin: below the folder of the table, or a path of its own
    format: Literal["image", "dicom", "nifti", "mhd", "npy"] = "image"
    size: Annotated[tuple[Count, Count], LIST] | None = None  # [height, width]; as the files have it
    mode: Literal["grey", "rgb"] = "grey"
    intensity: Literal["auto", "full", "range", "zscore", "none"] = "auto"
    window: Range | None = None  # [centre, width], instead of `intensity`
    unit: Literal["SUV"] | None = None  # of PET in DICOM
    axis: Literal[0, 1, 2] = 2  # of a volume: the axis whose slice in the middle is taken


_SHOWN = 80
"""Characters of a cell that are shown of it."""


class Pictures(NamedTuple):
    """The pictures of a table's rows."""

    x: np.ndarray  # [N, H * W * C] float32
    shape: tuple[int, ...]  # [H, W, C]
    facts: ImageFacts  # of all of them
    notes: tuple[str, ...]


def judge(wanted: RowPicture) -> None:
    """Raises ConfigError for fields that don't go together."""
    judge_values(_pixels(wanted), wanted.format, "picture")


def _pixels(wanted: RowPicture) -> Pixels:
    return Pixels(
        size=wanted.size or (), mode=wanted.mode, intensity=wanted.intensity, window=wanted.window, unit=wanted.unit,
        axis=wanted.axis,
    )  # fmt: skip


def files(table: Table, wanted: RowPicture) -> list[Path]:
    """The file of every row, there or not. Raises DataError for a column that is not there, and a path that leads out
    of the folder: a table comes from others, and names no file that they were not given.
    """
    if wanted.column not in table.names:
        raise DataError(
            f"{table.where}: picture.column={wanted.column!r} is not a column; {nearest(wanted.column, table.names)}"
        )
    root, cells = Path(table.where).parent / wanted.folder, [str(cell) for cell in table.column(wanted.column)]
    for cell, line in zip(cells, table.lines, strict=True):
        way = Path(os.path.normpath(cell))
        if cell and (way.anchor or not way.parts or way.parts[0] == ".."):
            raise DataError(
                f"{table.where}: line {line}: {wanted.column} is {_shown(cell)}: must be a path below picture.folder"
            )
    return [root / cell for cell in cells]


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= _SHOWN else f"{cell[:_SHOWN]}...")


def _there(file: Path, where: str) -> bool:
    """Whether there is such a file. Raises DataError, `where` in front, where the disk does not say it."""
    try:
        return file.exists()
    except OSError as exc:  # a name that is too long, a folder that may not be read
        raise DataError(f"{where}: {exc.strerror or type(exc).__name__}") from exc


def with_files(table: Table, wanted: RowPicture, missing: str) -> Table:
    """The rows whose file is there. Raises DataError where others are not to be left out (missing = "error")."""
    found, cells = files(table, wanted), [str(cell) for cell in table.column(wanted.column)]
    said = [
        f"{table.where}: line {line}: {wanted.column} is {_shown(cell)}"
        for cell, line in zip(cells, table.lines, strict=True)
    ]
    there = np.array(
        [cell != "" and _there(file, where) for cell, file, where in zip(cells, found, said, strict=True)], bool
    )
    if there.all():
        return table
    row, gone = int(np.argmin(there)), int((~there).sum())
    if missing == "error" or not there.any():
        raise DataError(
            f"{said[row]}: no such file{f' ({found[row].absolute()})' if cells[row] else ''}; {gone} of {len(there)} "
            "rows have none. picture.folder says where paths begin; "
            'missing = "drop_row" leaves such rows out'
        )
    return table.keep(there, "its picture is not there", f"left out {gone} rows whose pictures are not there")


def read(table: Table, wanted: RowPicture, shape: tuple[int, ...] | None = None) -> Pictures:
    """Read the picture of every row. `shape`: (H, W, C) of those that a model has learned from, which says how they are
    scaled, too; None: it is to learn from these.

    Raises DataError that names the file of what can't be read or does not fit.
    """
    layout = Layout("pictures", "", "classes", wanted.format, Label(column=""), pixels=_pixels(wanted))
    x: list[np.ndarray] = []
    facts: list[ImageFacts] = []
    said: dict[str, list[str]] = {}
    found = files(table, wanted)
    for file, line, row in zip(found, table.lines, read_all(layout, [Entry((file,)) for file in found]), strict=True):
        if not row.x:
            raise DataError(f"{table.where}: line {line}: {file} holds no image; leave the row out")
        for what, where in row.notes:
            said.setdefault(what, []).append(where)
        if shape is not None and row.x[0].shape != shape:
            raise DataError(
                f"{table.where}: line {line}: {file} has shape {[*row.x[0].shape]}; the model has learned from "
                f"pictures of shape {[*shape]}. Give one of that shape"
            )
        add(x, row.x[0], f"{table.where}: line {line}: {file}", found[0], ". Give picture.size")
        assert row.facts is not None  # it has an image
        facts.append(row.facts)
    notes = tuple(f"{what}: {len(places)}, such as {places[0]}" for what, places in said.items())
    pixels, known = np.stack(x).reshape(len(x), -1), together(facts)
    if shape is None:
        values = float(pixels.min()), float(pixels.max())
        judge_scale(known, layout.pixels, values, is_far(pixels), table.where, "", "picture")
    return Pictures(pixels, x[0].shape, known, notes)
