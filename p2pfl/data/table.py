"""A delimited text file as a table of cells that remember their line."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from p2pfl.errors import DataError

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})
DELIMITERS = ",;\t"
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf(inity)?)", re.ASCII | re.IGNORECASE)


class Table(NamedTuple):
    """Rows with what has been said about them so far."""

    where: str
    names: tuple[str, ...]
    cells: np.ndarray  # [N, columns] object: stripped text, "" where missing
    lines: np.ndarray  # [N] line in the file at which the row begins, counted from 1
    in_test: np.ndarray | None = None  # [N] bool, once the split is known
    notes: tuple[str, ...] = ()

    def column(self, name: str) -> np.ndarray:
        """The cells [N] of one column."""
        return self.cells[:, self.names.index(name)]

    def keep(self, mask: np.ndarray, *notes: str) -> Table:
        """The rows where `mask` [N] is true, with what is to be said about the others."""
        in_test = None if self.in_test is None else self.in_test[mask]
        return self._replace(
            cells=self.cells[mask], lines=self.lines[mask], in_test=in_test, notes=(*self.notes, *notes)
        )


def is_number(cell: str) -> bool:
    """Return whether a cell is a number. Stricter than float(): no underscores, no digits of other scripts."""
    return _NUMBER.fullmatch(cell) is not None


def read(file: Path, drop: Sequence[str], columns: Sequence[str] = (), delimiter: str | None = None) -> Table:
    """Read a UTF-8 file with a header, by which comma, semicolon or tab is found unless `delimiter` is given. `drop`:
    only "" matters here, the permission for one column without a name. `columns`: names, for a file without a header.

    Raises DataError for a file that is missing, empty, not UTF-8 or badly quoted, and for ragged rows and bad headers.
    """
    where = str(file)
    if not file.is_file():
        raise DataError(f"{where}: no such file ({file.resolve()})")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise DataError(f"{where}: not UTF-8 ({exc.reason} at byte {exc.start}); save it as 'CSV UTF-8'") from exc
    except OSError as exc:
        raise DataError(f"{where}: can't be read: {exc}") from exc
    # csv.Sniffer guesses quotes too, and guesses wrong in short files; the header alone says the delimiter.
    head = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = delimiter or max(DELIMITERS, key=head.count)
    rows, lines = _rows(text, delimiter, where)
    if not rows:
        raise DataError(f"{where}: the file is empty; a header and rows are needed")
    if columns:
        rows, lines = [list(columns), *rows], [0, *lines]
    names = _header(rows[0], where, drop)
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(names):
            raise DataError(
                f"{where}: line {line} has {len(row)} cells, the header {len(names)} columns "
                f"(delimiter {delimiter!r}); quote a cell that holds the delimiter"
            )
    # Spreadsheets append rows of delimiters only; they hold nothing that could be judged.
    kept = [index for index in range(1, len(rows)) if any(rows[index])]
    if not kept:
        raise DataError(f"{where}: a header only; rows are needed")
    cells = np.array([["" if c.lower() in MISSING else c for c in rows[i]] for i in kept], object)
    blank = len(rows) - 1 - len(kept)
    notes = (f"left out {blank} rows of empty cells",) if blank else ()
    return Table(where, names, cells, np.array([lines[i] for i in kept]), notes=notes)


def _rows(text: str, delimiter: str, where: str) -> tuple[list[list[str]], list[int]]:
    """Stripped cells of every row that is not a blank line, and the line at which each begins."""
    # strict: an unclosed quote is an error. Without it the rest of the file would silently become one cell.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    before = 0
    try:
        for row in reader:
            if len(row) > 1 or any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row])
                lines.append(before + 1)
            before = reader.line_num
    except csv.Error as exc:
        raise DataError(f"{where}: the row from line {before + 1} can't be read: {exc}; look at its quotes") from exc
    return rows, lines


def _header(names: list[str], where: str, drop: Sequence[str]) -> tuple[str, ...]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{where}: column {twice[0]!r} stands in the header {names.count(twice[0])} times; rename one")
    if "" in names and "" not in drop:  # a table written with its row numbers, which nobody should learn from
        raise DataError(f'{where}: column {names.index("") + 1} has no name; name it, or leave it out with drop = [""]')
    return tuple(names)
