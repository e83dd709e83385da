"""Columns that nobody has named and nobody means to learn from: identifiers and dates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Sequence

import numpy as np

from p2pfl.data.numerals import is_date
from p2pfl.data.table import Table, is_number
from p2pfl.errors import DataError

_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
_IDENTIFIERS = re.compile(
    r"((patient|subject|case|record|row|study|sample|person|participant|hospital|encounter|visit)?[ _.-]*"
    r"(id|ids|identifier|uid|guid|uuid|number|no|nr)|row[ _.-]?names?|mrn|pid|unnamed: ?\d+|__index_level_\d+__|)",
    re.IGNORECASE,
)
"""Names that programs and people give to identifiers; "" is that of the row numbers that R and pandas write."""
_FEW = 10
"""Rows below which any column may have another value in each."""


def refuse_suspects(table: Table, features: Sequence[str], categories: Container[str], named: Container[str]) -> Table:
    """The table, with a note on columns that may be identifiers.

    features: columns to learn from. categories: those whose values are known. named: those that somebody wants by
    name. Raises DataError for what must be an identifier, and for dates.
    """
    notes = []
    for name in features:
        cells = [cell for cell in table.column(name) if cell]
        if name in categories or not cells:
            continue
        counts = Counter(cells)
        dates = [cell for cell in counts if is_date(cell)]
        if 2 * sum(counts[cell] for cell in dates) > len(cells):
            line = table.lines[int(np.argmax(table.column(name) == dates[0]))]
            raise DataError(
                f"{table.where}: column {name!r}: line {line} holds {dates[0]!r}, a date or time, from which nothing "
                "is learned as it is. Derive what it tells, as in [data.derive] age = "
                f'{{ years_from = "{name}", to = "OTHER DATE" }}, or use drop = ["{name}"]'
            )
        if name in named:
            continue
        why = _identifier(name, cells, len(table.cells))
        if why:
            raise DataError(
                f"{table.where}: column {name!r} looks like an identifier: {why}. Leave it out with "
                f'drop = ["{name}"], or name it in use to learn from it'
            )
        if _whole(cells) and len(cells) >= 2 * _FEW:
            notes.append(f"column {name!r} has another whole number in each row; drop it if it is an identifier")
    return table._replace(notes=(*table.notes, *notes))


def _whole(cells: Sequence[str]) -> bool:
    """Return whether there is another whole number in each row."""
    return len(set(cells)) == len(cells) and all(_WHOLE.fullmatch(cell) for cell in cells)


def _identifier(name: str, cells: Sequence[str], rows: int) -> str:
    """Return why a column must be an identifier; "" where it need not be."""
    distinct = len(set(cells))
    if len(cells) < _FEW or 2 * distinct < len(cells):
        return ""
    if _IDENTIFIERS.fullmatch(name):
        return f"it is called so, and has {distinct} values in {len(cells)} rows"
    if distinct < len(cells):
        return ""
    if _whole(cells):
        if rows != len(cells):
            return ""
        numbers = sorted(map(int, cells))
        if numbers[0] in (0, 1) and numbers[-1] - numbers[0] == len(numbers) - 1:
            return f"it numbers the rows from {numbers[0]} to {numbers[-1]}"
        return ""
    if not any(map(is_number, cells)):
        return "it is text, and another one in each row"
    return ""
