"""A table of a file as text: cells that remember their line.

Delimited text and sheets of Excel are read by pandas, Parquet by pyarrow, every cell as it was written: what a cell
means is for those to judge who know the column.
"""

from __future__ import annotations

import csv
import datetime
import io
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from p2pfl.data.dataset import NO_SITE, LeftOut, left_out
from p2pfl.errors import USER_FAULTS, DataError, nearest

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})
DELIMITERS = ",;\t|"
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf(inity)?)", re.ASCII | re.IGNORECASE)
_EXTRA = "it is an extra: pip install 'p2pfl-jax[tables]', or save the table as .csv"


class Table(NamedTuple):
    """Rows with what has been said about them so far."""

    where: str
    names: tuple[str, ...]
    cells: np.ndarray  # [N, columns] object: stripped text, "" where missing
    lines: np.ndarray  # [N] line in the file at which the row begins, counted from 1; of a sheet its row
    in_test: np.ndarray | None = None  # [N] bool, once the split is known
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    site: str | None = None  # the column of the sites, as soon as it is known

    def column(self, name: str) -> np.ndarray:
        """The cells [N] of one column."""
        return self.cells[:, self.names.index(name)]

    @property
    def places(self) -> np.ndarray | None:
        """The site [N] of every row, as it is written; None where there are no sites."""
        return None if self.site is None else self.column(self.site)

    def keep(self, mask: np.ndarray, why: str | np.ndarray, *notes: str) -> Table:
        """The rows where `mask` [N] is true; `why` the others are left out (of each, [N]), and what is said of them."""
        in_test = None if self.in_test is None else self.in_test[mask]
        return self._replace(
            cells=self.cells[mask],
            lines=self.lines[mask],
            in_test=in_test,
            notes=(*self.notes, *notes),
            left_out=(*self.left_out, *left_out(why, ~mask, self.places)),
        )

    def with_column(self, name: str, cells: np.ndarray) -> Table:
        """The same with these cells [N] under this name, in the place of what was there, or as the last column."""
        if name in self.names:
            wide = self.cells.copy()
            wide[:, self.names.index(name)] = cells
            return self._replace(cells=wide)
        return self._replace(names=(*self.names, name), cells=np.column_stack([self.cells, cells]))

    def blanked(self) -> Table:
        """The same, "" where a cell is one of the words for what is missing."""
        cells = [["" if cell.lower() in MISSING else cell for cell in row] for row in self.cells]
        return self._replace(cells=np.array(cells, object).reshape(self.cells.shape))


class _Cells(NamedTuple):
    """A file as it lies: the header is its first row."""

    rows: np.ndarray  # [R, columns] object: stripped text
    lines: np.ndarray  # [R]
    notes: tuple[str, ...] = ()


def is_number(cell: str) -> bool:
    """Return whether a cell is a number. Stricter than float(): no underscores, no digits of other scripts."""
    return _NUMBER.fullmatch(cell) is not None


def same(cell: object) -> float | str:
    """Return what two spellings of one value share: "1" and "1.0" are one number."""
    text = str(cell).strip()
    return float(text) if is_number(text) else text


def read(
    file: Path,
    drop: Sequence[str],
    columns: Sequence[str] = (),
    delimiter: str | None = None,
    encoding: str | None = None,
    sheet: str | None = None,
) -> Table:
    """Read a file with a header: .xlsx or .xlsm (the first sheet, or `sheet`), .parquet, and any other as text.

    Of text the header says the delimiter (comma, semicolon, tab or bar) unless it is given, and the encoding is that
    of a byte-order mark, or UTF-8, or else Windows-1252, which is said. `drop`: only "" matters here, the permission
    for one column without a name. `columns`: names, for a file without a header.

    Raises DataError for a file that is missing, empty, of another encoding or badly quoted, and for ragged rows and bad
    headers.
    """
    where, kind = str(file), file.suffix.lower()
    if not file.is_file():
        raise DataError(f"{where}: no such file ({file.resolve()})")
    if kind in (".xls", ".xlsb", ".ods", ".sav", ".dta", ".sas7bdat"):
        raise DataError(f"{where}: a {kind} file is not read; save it as .xlsx, .parquet or 'CSV UTF-8'")
    if kind not in (".xlsx", ".xlsm") and sheet is not None:
        raise DataError(f"{where}: sheet={sheet!r}: only .xlsx and .xlsm have sheets; leave it out")
    if kind in _BINARY and (delimiter or encoding):
        raise DataError(f"{where}: delimiter and encoding are of text, and a {kind} has neither; leave them out")
    found = _BINARY[kind](file, sheet) if kind in _BINARY else _delimited(file, delimiter, encoding)
    # A blank line, or a row of a spreadsheet that holds nothing: not even the header may stand there.
    full = np.array([any(row) for row in found.rows], bool)
    if not full.any():
        raise DataError(f"{where}: the file is empty; a header and rows are needed")
    first = 0 if columns else int(np.argmax(full)) + 1
    names = _header(list(columns or found.rows[first - 1]), where, drop)
    if len(names) != found.rows.shape[1]:
        raise DataError(f"{where}: has {found.rows.shape[1]} columns, and {len(names)} names are given: {list(names)}")
    full[:first] = False
    if not full.any():
        raise DataError(f"{where}: a header only; rows are needed")
    blank = len(full) - first - int(full[first:].sum())
    notes = (*found.notes, *([f"left out {blank} rows of empty cells"] if blank else []))
    gone = (LeftOut("an empty row", {NO_SITE: blank}),) if blank else ()
    return Table(where, names, found.rows[full], found.lines[full], notes=notes, left_out=gone)


def _header(names: list[str], where: str, drop: Sequence[str]) -> tuple[str, ...]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{where}: column {twice[0]!r} stands in the header {names.count(twice[0])} times; rename one")
    if "" in names and "" not in drop:  # a table written with its row numbers, which nobody should learn from
        raise DataError(f'{where}: column {names.index("") + 1} has no name; name it, or leave it out with drop = [""]')
    return tuple(names)


def of_frame(frame: Any) -> Table:
    """The table of a pandas DataFrame: its cells as text, its rows counted from 1."""
    names = _header([str(name).strip() for name in frame.columns], "the table", ("",))
    plain = frame.astype(object).where(frame.notna(), None)  # pandas has several words for nothing
    rows = [
        [_as_text(cell, f"the table: row {row}") for cell in line]
        for row, line in enumerate(plain.itertuples(index=False, name=None), 1)
    ]
    cells = np.array(rows, object).reshape(len(rows), len(names))
    return Table("the table", names, cells, np.arange(1, len(rows) + 1))


# --- delimited text


def _delimited(file: Path, delimiter: str | None, encoding: str | None) -> _Cells:
    import pandas as pd  # here: 0.4 s, and a run on images never needs it

    text, notes = _text(file, encoding)
    before = re.match(r"\s*?(?=[^\r\n]*\S)", text)
    if before is None:
        raise DataError(f"{file}: the file is empty; a header and rows are needed")
    skipped, head = _breaks(before[0]), re.split(r"[\r\n]", text[before.end() :], maxsplit=1)[0]
    told = re.fullmatch(r'"?sep=(.)"?\s*', head)  # Excel writes its delimiter into a first line
    if told:
        delimiter, skipped = delimiter or told[1], skipped + 1
    # csv.Sniffer guesses quotes too, and guesses wrong in short files; the header alone says the delimiter.
    head = re.sub(r'"[^"]*"', "", head)
    delimiter = delimiter or max(DELIMITERS, key=head.count)

    def frame(**more: Any) -> np.ndarray:
        # The engine "python" leaves NaN where a row is too short; the others fill it up in silence.
        found = pd.read_csv(
            io.StringIO(text, newline=""), sep=delimiter, header=None, dtype=object, keep_default_na=False,
            skip_blank_lines=False, skipinitialspace=True, skiprows=skipped, index_col=False, engine="python", **more,
        )  # fmt: skip
        return found.to_numpy(object)

    try:
        width = frame(nrows=1).shape[1]
        cells = frame(names=range(width + 1))  # one more than there are, for rows that are too long
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as exc:
        raise DataError(f"{file}: {_unreadable(text, delimiter, skipped)}") from exc
    given = np.array([[isinstance(cell, str) for cell in row] for row in cells])
    stripped = np.where(given, cells, "")
    breaks = [sum(map(_breaks, row)) for row in stripped] if '"' in text else [0] * len(cells)
    starts = 1 + skipped + np.arange(len(cells)) + np.concatenate([[0], np.cumsum(breaks[:-1])]).astype(np.int64)
    stripped = np.array([[cell.strip() for cell in row] for row in stripped], object)
    blank = (given.sum(axis=1) <= 1) & (stripped == "").all(axis=1)
    ragged = ~blank & ((given.sum(axis=1) != width) | given[:, -1])
    if ragged.any():
        row = int(np.argmax(ragged))
        raise DataError(f"{file}: {_ragged(int(starts[row]), int(given[row].sum()), width, delimiter)}")
    return _Cells(stripped[~blank, :width], starts[~blank], notes)


def _text(file: Path, encoding: str | None) -> tuple[str, tuple[str, ...]]:
    """The text of a file; notes."""
    try:
        raw = file.read_bytes()
    except OSError as exc:
        raise DataError(f"{file}: can't be read: {exc}") from exc
    marked = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    tried = (encoding,) if encoding else ("utf-16",) if marked else ("utf-8-sig", "cp1252")
    for name in tried:
        try:
            text = raw.decode(name)
        except LookupError as exc:
            raise DataError(f"{file}: encoding={name!r}: no such encoding; try utf-8, cp1252 or latin-1") from exc
        except UnicodeError as exc:
            failed = exc
            continue
        if "\0" in text:
            raise DataError(f'{file}: holds bytes of 0, as UTF-16 does; say so with encoding = "utf-16"')
        if name != "cp1252" or encoding:
            return text, ()
        line, odd = next((n, x) for n, x in enumerate(re.split(r"\r\n|\r|\n", text), 1) if not x.isascii())
        return text, (
            f"read as Windows-1252 (Latin-1), since it is not UTF-8; line {line} is then {odd.strip()[:40]!r}",
        )
    raise DataError(f"{file}: not {' or '.join(tried)} ({failed}); give its encoding, or save it as 'CSV UTF-8'")


def _breaks(cell: str) -> int:
    return len(re.findall(r"\r\n|\r|\n", cell))


def _ragged(line: int, cells: int, width: int, delimiter: str) -> str:
    return (
        f"line {line} has {cells} cells, the header {width} columns (delimiter {delimiter!r}); quote a cell that holds "
        "the delimiter, or give another delimiter"
    )


def _unreadable(text: str, delimiter: str, skipped: int) -> str:
    """Say which line of a text can't be read, which pandas does not."""
    lines = io.StringIO(text, newline="")
    for _ in range(skipped):
        lines.readline()
    # strict: an unclosed quote is an error. Without it the rest of the file would silently become one cell.
    reader, before, width = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True), 0, 0
    try:
        for row in reader:
            width = width or len(row)
            if len(row) > width:
                return _ragged(skipped + before + 1, len(row), width, delimiter)
            before = reader.line_num
    except csv.Error as exc:
        return f"the row from line {skipped + before + 1} can't be read: {exc}; look at its quotes"
    return "can't be read as a table of delimited text"


# --- other files


def _sheet(file: Path, sheet: str | None) -> _Cells:
    import pandas as pd

    try:
        with pd.ExcelFile(file, engine="openpyxl") as book:
            names = [str(name) for name in book.sheet_names]
            if sheet is not None and sheet not in names:
                raise DataError(f"{file}: sheet={sheet!r}: no such sheet; {nearest(sheet, names)}")
            chosen = sheet or names[0]
            frame = pd.read_excel(book, sheet_name=chosen, header=None, dtype=object, keep_default_na=False)
    except ImportError as exc:
        raise DataError(f"{file}: a sheet is read with openpyxl; {_EXTRA}") from exc
    except DataError:
        raise
    except (*USER_FAULTS, zipfile.BadZipFile) as exc:
        raise DataError(f"{file}: can't be read as a workbook of Excel: {exc}") from exc
    notes = (f"read the sheet {chosen!r}, the first of {len(names)}",) if sheet is None and len(names) > 1 else ()
    cells = frame.to_numpy(object)
    rows = [[_as_text(cell, f"{file}: line {row}") for cell in line] for row, line in enumerate(cells, 1)]
    return _Cells(np.array(rows, object).reshape(cells.shape), np.arange(1, len(cells) + 1), notes)


def _parquet(file: Path, _: str | None) -> _Cells:
    try:
        import pyarrow.parquet as pq
    except ImportError as exc:
        raise DataError(f"{file}: Parquet is read with pyarrow; {_EXTRA}") from exc
    try:
        table = pq.read_table(file)
        columns = [column.to_pylist() for column in table.columns]
    except USER_FAULTS as exc:
        raise DataError(f"{file}: can't be read as Parquet: {exc}") from exc
    texts = [
        [name.strip(), *(_as_text(cell, f"{file}: line {row}: {name}") for row, cell in enumerate(column, 2))]
        for name, column in zip(table.column_names, columns, strict=True)
    ]
    return _Cells(np.array(texts, object).reshape(len(texts), table.num_rows + 1).T, np.arange(1, table.num_rows + 2))


def _as_text(value: Any, where: str) -> str:
    """A typed cell as it would stand in delimited text."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value != value:  # NaN, and the NaT of pandas
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(" ")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, list | dict | bytes):
        raise DataError(f"{where} holds a {type(value).__name__}; a cell must be a number, a text or a date")
    return str(value)


_BINARY: Mapping[str, Callable[[Path, str | None], _Cells]] = MappingProxyType(
    {".xlsx": _sheet, ".xlsm": _sheet, ".parquet": _parquet}
)
"""Suffix of a file that is no text -> what reads it."""
