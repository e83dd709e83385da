"""Labels of a data set on disk, by the [label] of its layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from p2pfl.data.dataset import RISK, as_float32
from p2pfl.data.layout import Label, Layout
from p2pfl.data.rows import Rows
from p2pfl.data.table import is_number
from p2pfl.errors import DataError, nearest


def labels(layout: Layout, rows: Rows) -> tuple[Rows, np.ndarray, tuple[str, ...]]:
    """The rows that are kept, y [N, ...] as the kind has it (of images zeros [N]: they are in files), classes.

    Raises DataError that names the place, the column and the cell of what can't be a label.
    """
    label, kind = layout.label, layout.kind
    if kind in ("segmentation", "reconstruction"):
        return rows, np.zeros(len(rows.places), np.int32), layout.classes
    named = [("column", label.column), ("time", label.time), ("event", label.event)]
    named += [("columns", name) for name in label.columns or ()]
    columns = {name: rows.column(name, f"label.{field}") for field, name in named if name is not None}
    gone = np.any([np.isin(cells, label.drop) for cells in columns.values()], axis=0)
    if gone.any():
        if gone.all():
            raise DataError(f"{rows.root}: label.drop={list(label.drop)!r}: leaves out all {len(gone)} rows")
        words = ", ".join(map(repr, label.drop))
        rows = rows.keep(~gone, f"the label is {words}", f"left out {int(gone.sum())} rows with a label {words}")
        columns = {name: cells[~gone] for name, cells in columns.items()}
    if kind == "classes" and label.column is not None:
        y = _classes(rows, label, layout.classes, label.column)
        return rows, y, layout.classes
    if kind == "labels" and label.column is not None:
        return rows, _listed(rows, label, layout.classes, label.column), layout.classes
    values = {name: _numbers(rows, label, name) for name in columns}
    if kind == "regression":
        return rows, as_float32(np.stack(list(values.values()), axis=1)), tuple(values)
    if kind == "survival":
        time, event = values[str(label.time)], _binary(rows, values, [str(label.event)])
        _refuse(rows, ~(time >= 0), str(label.time), "a time to an event must be >= 0")
        return rows, as_float32(np.stack([time, event[:, 0]], axis=1)), RISK
    y = _binary(rows, values, list(values)).astype(np.int32)
    if kind == "labels":
        return rows._replace(notes=(*rows.notes, *_readings(rows, label, columns))), y, tuple(values)
    _refuse(rows, y.sum(axis=1) != 1, "label.columns", "one of the classes must be 1, all others 0")
    return rows, y.argmax(axis=1).astype(np.int32), layout.classes


def _refuse(rows: Rows, wrong: np.ndarray, name: str, rule: str) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        cell = repr(rows.columns[name][row]) if name in rows.columns else "otherwise"
        raise DataError(
            f"{rows.places[row]}: {name} is {cell}; {rule} ({int(wrong.sum())} of {len(wrong)} rows). Map the value "
            "with label.values, or leave such rows out with label.drop"
        )


def _classes(rows: Rows, label: Label, classes: Sequence[str], name: str) -> np.ndarray:
    place = {value: index for index, value in enumerate(classes)}
    cells = [label.values.get(cell, cell) for cell in rows.columns[name]]
    y = np.array([place.get(cell, -1) for cell in cells], np.int32)
    if (y < 0).any():
        row = int(np.argmax(y < 0))
        _refuse(rows, y < 0, name, f"it must be one of the classes; {nearest(cells[row], classes)}")
    return y


def _listed(rows: Rows, label: Label, classes: Sequence[str], name: str) -> np.ndarray:
    """Labels that stand in one cell, such as "Edema|Mass"."""
    place = {value: index for index, value in enumerate(classes)}
    y = np.zeros((len(rows.places), len(classes)), np.int32)
    for row, cell in enumerate(rows.columns[name]):
        for part in str(cell).split(label.separator):
            word = label.values.get(part.strip(), part.strip())
            if word in place:
                y[row, place[word]] = 1
            elif word not in label.none:
                raise DataError(
                    f"{rows.places[row]}: {name} is {cell!r}; {word!r} is not a label, {nearest(word, classes)}. "
                    "Words that mean no label stand in label.none"
                )
    return y


def _numbers(rows: Rows, label: Label, name: str) -> np.ndarray:
    """A column as [N] float64, after label.values."""
    cells = [label.values.get(cell, cell) for cell in rows.columns[name]]
    _refuse(rows, np.array([not is_number(cell) for cell in cells]), name, "it must be a number")
    return np.array([float(cell) for cell in cells])


def _binary(rows: Rows, values: dict[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Columns of 0 and 1: [N, names]."""
    for name in names:
        _refuse(rows, ~np.isin(values[name], (0, 1)), name, "it must be 0 or 1")
    return np.stack([values[name] for name in names], axis=1)


def _readings(rows: Rows, label: Label, columns: dict[str, np.ndarray]) -> list[str]:
    """Describe what label.values turned into something else: an uncertain finding read as one is worth a note."""
    counts = Counter(cell for cells in columns.values() for cell in cells if cell in label.values)
    changed = {cell: label.values[cell] for cell in sorted(counts) if not _equal(cell, label.values[cell])}
    return [f"read {counts[cell]} label cells {cell!r} as {value}" for cell, value in changed.items()]


def _equal(cell: str, value: str) -> bool:
    return cell == value or (is_number(cell) and is_number(value) and float(cell) == float(value))
