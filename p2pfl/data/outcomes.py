"""Outcomes of a table: classes, several labels, numbers, or times to an event.

What an error says names the file and the line.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from p2pfl.data.columns import MOST_VALUES, exact, indices, numbers, text
from p2pfl.data.dataset import RISK, as_float32
from p2pfl.data.table import Table, is_number, same
from p2pfl.errors import DataError

Answers = tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]
"""y [N, ...] as the kind has it, class names, notes."""


def answers(
    table: Table, kind: str, columns: Sequence[str], label_above: float | None, classes: Sequence[object] | None
) -> Answers:
    """y of all rows; `columns`: of classes the label, of labels and regression one for each, of survival two.

    `label_above` and `classes` belong to the kind "classes". Raises DataError for cells that can't mean it.
    """
    if kind == "classes":
        return _classes(table, columns[0], label_above, classes)
    if kind == "labels":
        return np.stack([_binary(table, name) for name in columns], axis=1).astype(np.int32), tuple(columns), ()
    if kind == "regression":
        return as_float32(np.stack([_filled(table, name) for name in columns], axis=1)), tuple(columns), ()
    time, event = columns
    times, events = _filled(table, time), _binary(table, event)
    if not (times >= 0).all():
        row = int(np.argmin(times >= 0))
        raise DataError(
            f"{table.where}: line {table.lines[row]}: {time} is {table.column(time)[row]!r}; a time to an event must "
            "be >= 0. Leave the row out, or count from another day"
        )
    notes = () if events.any() else (f"no event: {event!r} is 0 in all {len(events)} rows",)
    return as_float32(np.stack([times, events], axis=1)), RISK, notes


def _filled(table: Table, name: str) -> np.ndarray:
    """A column of numbers without gaps: [N] float64."""
    cells = table.column(name)
    numeric = np.array([is_number(cell) for cell in cells])
    if not numeric.all():
        row = int(np.argmin(numeric))
        raise DataError(f"{table.where}: line {table.lines[row]}: {name} is {cells[row]!r}; it must be a number")
    return numbers(table, name)


def _binary(table: Table, name: str) -> np.ndarray:
    """A column of 0 and 1, or of true and false: [N] float64."""
    cells = table.column(name)
    if np.isin(cells, ("true", "false")).all():
        return (cells == "true").astype(np.float64)
    known = np.array([same(cell) in (0, 1) for cell in cells])
    if not known.all():
        row = int(np.argmin(known))
        raise DataError(
            f"{table.where}: line {table.lines[row]}: {name} is {cells[row]!r}; it must be 0 or 1, or true or false. "
            f'Derive it, as in [data.derive] {name} = {{ any_of = {{ "COLUMN" = ["VALUE"] }} }}'
        )
    return cells.astype(np.float64)


def _classes(
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
        y, names = indices(table, label, cells, classes, "classes")
    else:
        ways = "list the labels with classes"
        distinct = sorted(set(cells), key=float) if numeric.all() else text(table, label, cells, ways)
        # "1" and "1.0" are one class of a numeric label, named "1".
        listed = list(dict.fromkeys(f"{float(cell):.15g}" for cell in distinct)) if numeric.all() else distinct
        if len(listed) > MOST_VALUES:
            raise DataError(
                f"{table.where}: label {label!r} has {len(listed)} distinct values, more than {MOST_VALUES}; "
                "cut a number in two with label_above, or list the values with classes"
            )
        y, names = indices(table, label, cells, listed, "classes") if numeric.all() else exact(cells, listed)
    found = sorted(names[index] for index in set(y.tolist()))
    if len(found) > 1:
        return y, names, ()
    if classes is None or len(names) < 2:
        raise DataError(
            f"{table.where}: label {label!r} has the single class {found[0]!r} in all {len(y)} rows; "
            "two are needed. Use another label" + (" or another label_above" if label_above is not None else "")
        )
    return y, names, (f"only the class {found[0]!r} of {', '.join(names)} occurs",)
