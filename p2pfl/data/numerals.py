"""Cells as people and their programs write them: decimal commas, thousands, booleans, dates.

What a cell means is decided for a whole column, always alike, and said. What may mean two things is refused by name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from p2pfl.data.table import Table, is_number
from p2pfl.errors import DataError

_OTHER = {".": ",", ",": "."}
_SPACES = " \u00a0\u2009\u202f'\u2019"
"""What groups thousands beside a point and a comma."""
_NAMES = {".": "decimal point", ",": "decimal comma"}
_GROUPED = re.compile(r"[+-]?\d{1,3}(\.\d{3})+", re.ASCII)
_DATE = re.compile(
    r"(\d{4}[-/]\d{1,2}[-/]\d{1,2}|\d{1,2}[./-]\d{1,2}[./-](\d{4}|\d{2}))([T ]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?)?"
    r"(Z|[+-]\d{2}:?\d{2})?|\d{1,2}:\d{2}:\d{2}",
    re.ASCII,
)


def is_date(cell: str) -> bool:
    """Return whether a cell looks like a date or a time with seconds, in whatever order; 1:20 is a titre."""
    return _DATE.fullmatch(cell) is not None


def plain(cell: str, decimal: str) -> str | None:
    """A number as a program writes it, of one whose decimals stand behind `decimal`; None where it is no such number.

    Thousands may be grouped by the other one of point and comma, by spaces or by apostrophes.

    >>> plain("1.234,5", ","), plain("1 234", "."), plain("1,4", ".")
    ('1234.5', '1234', None)
    """
    match = _NUMERALS[decimal].fullmatch(cell)
    if match is None or not (match[2] or match[3] or match[5]):
        return cell if is_number(cell) and "." not in cell else None  # infinite
    whole = match[2] or (match[3] or "").replace(match[4] or " ", "")
    return f"{match[1]}{whole}{'' if match[5] is None else '.' + match[5]}{match[6] or ''}"


def _numeral(decimal: str) -> re.Pattern[str]:
    group = f"[{re.escape(_OTHER[decimal])}{_SPACES}]"
    whole = rf"(\d+)|([1-9]\d{{0,2}}(?:({group})\d{{3}}(?:\4\d{{3}})*))"
    return re.compile(rf"([+-]?)(?:{whole})?(?:{re.escape(decimal)}(\d*))?(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


_NUMERALS = {decimal: _numeral(decimal) for decimal in _OTHER}


def _ways(cell: str) -> tuple[str | None, str | None]:
    """A number with a decimal point, and with a decimal comma."""
    if is_number(cell) and not _GROUPED.fullmatch(cell):  # as most are
        return cell, None if "." in cell else cell
    return plain(cell, "."), plain(cell, ",")


class _Style(NamedTuple):
    """What the cells of a column say about how numbers are written in it: cells, for each way to read them."""

    ways: dict[str, tuple[str | None, str | None]]  # all cells, as `_ways` has them
    point: tuple[str, ...]  # numbers only with a decimal point
    comma: tuple[str, ...]  # numbers only with a decimal comma
    either: tuple[str, ...]  # two different numbers

    @property
    def known(self) -> str | None:
        """The mark of decimals, as far as one cell says it."""
        return "." if self.point else "," if self.comma else None


def _style(counts: Counter[str]) -> _Style | None:
    """Of a column of numbers; None of any other."""
    read = {cell: _ways(cell) for cell in counts}
    numeric = sum(counts[cell] for cell, ways in read.items() if any(ways))
    if 2 * numeric <= counts.total():
        return None
    return _Style(
        read,
        tuple(cell for cell, (point, comma) in read.items() if point and not comma),
        tuple(cell for cell, (point, comma) in read.items() if comma and not point),
        tuple(cell for cell, (point, comma) in read.items() if point and comma and float(point) != float(comma)),
    )


def normalized(table: Table, names: Sequence[str], decimal: str | None, kept: Sequence[str]) -> Table:
    """The table with numbers written with a decimal point and without groups, and booleans as true and false.

    names: of the columns. decimal: the mark of decimals in all of them; None: found column by column. `kept`: cells
    that stay as they are. Raises DataError for a column whose numbers can be read in two ways.
    """
    counts = {name: Counter(table.column(name).tolist()) for name in names}
    cells = {name: Counter({c: n for c, n in each.items() if c and c not in kept}) for name, each in counts.items()}
    styles = {name: _style(column) for name, column in cells.items()}
    found = {style.known for style in styles.values() if style}
    said: dict[str, list[str]] = {}
    for name, style in styles.items():
        words = {cell.lower() for cell in cells[name]}
        if words and words <= {"true", "false"}:
            table = table.with_column(name, _lowered(table.column(name), kept))
        if style is None:
            continue
        mark = _mark(table, name, style, found) if decimal is None else _told(table, name, style, decimal)
        new = {cell: way for cell, ways in style.ways.items() if (way := ways[mark == ","]) not in (None, cell)}
        first = next(iter(new), None)
        if first is None:
            continue
        column = table.column(name)
        row = int(np.argmax(column == first))
        how = _NAMES[mark] if mark in first and mark == "," else "grouped thousands"
        said.setdefault(how, []).append(f"{name!r} (line {table.lines[row]}: {first!r} is {new[first]})")
        table = table.with_column(name, np.array([new.get(cell, cell) for cell in column], object))
    notes = [f"numbers with {'a ' * (how == _NAMES[',']) + how}: {', '.join(places)}" for how, places in said.items()]
    return table._replace(notes=(*table.notes, *notes))


def _lowered(column: np.ndarray, kept: Sequence[str]) -> np.ndarray:
    return np.array([cell if cell in kept else cell.lower() for cell in column], object)


def _told(table: Table, name: str, style: _Style, decimal: str) -> str:
    """The mark of decimals that the user has given, if it is that of every cell."""
    other = style.comma if decimal == "." else style.point
    if other:
        raise DataError(
            f"{table.where}: line {table.lines[int(np.argmax(table.column(name) == other[0]))]}: {name} is "
            f"{other[0]!r}, which is no number with decimal = {decimal!r}; leave decimal out, or correct the cell"
        )
    return decimal


def _mark(table: Table, name: str, style: _Style, found: set[str | None]) -> str:
    """The mark of decimals in a column of numbers. `found`: the marks of all columns of the file."""
    column = table.column(name)

    def at(cell: str) -> str:
        return f"line {table.lines[int(np.argmax(column == cell))]} holds {cell!r}"

    if style.point and style.comma:
        raise DataError(
            f"{table.where}: column {name!r} has a decimal point and a decimal comma: {at(style.point[0])}, "
            f'{at(style.comma[0])}. Write one, or leave the column out: drop = ["{name}"]'
        )
    if style.known or not style.either:
        return style.known or "."
    commas = [cell for cell in style.either if "," in cell]
    # A file is written by one program: what its other columns say holds for one that says nothing. But a point is a
    # decimal point to every program, and so must not become a thousand times as much by what stands elsewhere.
    if len(commas) == len(style.either) and len(found - {None}) == 1:
        return next(iter(found - {None})) or "."
    if not commas and "," not in found:
        return "."
    cell = style.either[0]
    raise DataError(
        f"{table.where}: column {name!r}: {at(cell)}, which is {plain(cell, '.')} or {plain(cell, ',')}; say which "
        'with decimal = "." or decimal = ","'
    )
