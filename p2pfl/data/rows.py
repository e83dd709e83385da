"""The rows of a data set on disk: from files that fit a pattern, or from tables, with columns of text.

What an error says names the row's place: its file, or the line of its table.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from p2pfl.data import dicom, fastmri
from p2pfl.data.dataset import LeftOut, left_out
from p2pfl.data.layout import Join, Layout, Pivot, TableFile
from p2pfl.data.table import Table
from p2pfl.data.table import read as read_table
from p2pfl.errors import DataError, nearest

FILE = "file"
"""The column of a row that was found by a pattern: its file, as a path below the root."""
STRAY = frozenset(("Thumbs.db", "desktop.ini", "__MACOSX"))
"""Names of files and folders that are nobody's data."""
_BRACES = re.compile(r"\{([^{}]+)\}")


class Rows(NamedTuple):
    """Rows and what has been said about the others."""

    root: Path
    columns: dict[str, np.ndarray]  # name -> [N] object: text, "" where nothing is known
    places: np.ndarray  # [N] object: where a row stands, for errors
    lines: np.ndarray  # [N] line of its table, 0 of a file
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    site: str | None = None  # the column of the sites

    def column(self, name: str, field: str) -> np.ndarray:
        """The cells [N] of a column that the `field` of the layout names. Raises DataError where there is none."""
        if name not in self.columns:
            raise DataError(f"{self.root}: {field}={name!r}: no such column; {nearest(name, self.columns)}")
        return self.columns[name]

    def keep(self, mask: np.ndarray, why: str, *notes: str) -> Rows:
        """The rows where `mask` [N] is true; `why` the others are left out, and what is to be said about them."""
        columns = {name: cells[mask] for name, cells in self.columns.items()}
        places = self.columns.get(self.site) if self.site is not None else None  # it may still have to be joined
        return self._replace(
            columns=columns,
            places=self.places[mask],
            lines=self.lines[mask],
            notes=(*self.notes, *notes),
            left_out=(*self.left_out, *left_out(why, ~mask, places)),
        )


def find(layout: Layout, root: Path) -> Rows:
    """All rows that a layout speaks of, joined, with derived columns, pivoted, after `keep` and `unique`.

    Raises DataError for a root or table that is not there, for patterns that nothing fits, and for unknown columns.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder ({root.resolve()}); data.path is the root of the data set")
    rows = _from_files(layout, root) if layout.files else _from_tables(layout.tables, root)
    if layout.format == "fastmri" and FILE in rows.columns:
        told = [fastmri.described(root / name) for name in rows.columns[FILE]]
        rows.columns.update({name: np.array([each[name] for each in told], object) for name in fastmri.COLUMNS})
    rows = rows._replace(site=layout.site)
    for index, join in enumerate(layout.join):
        rows = _joined(rows, join, f"join[{index}]")
    for name, column in layout.columns.items():
        pattern = re.compile(column.pattern)
        found = [pattern.search(cell) for cell in rows.column(column.of, f"columns.{name}.of")]
        # A group that took no part in the match is None.
        cells = [(match[1 if pattern.groups else 0] or "") if match else "" for match in found]
        rows.columns[name] = np.array(cells, object)
    if layout.pivot is not None:
        rows = _pivoted(rows, layout.pivot)
    rows = _kept(rows, {name: values for name, values in layout.keep.items() if name not in layout.headers})
    if layout.unique is not None:
        first = np.zeros(len(rows.places), bool)
        first[np.unique(rows.column(layout.unique, "unique").astype(str), return_index=True)[1]] = True
        gone = int((~first).sum())
        why = f"repeats a {layout.unique!r}"
        rows = rows.keep(first, why, *([f"left out {gone} rows that repeat a {layout.unique!r}"] if gone else []))
    if layout.headers:
        _add_headers(rows, layout)
        rows = _kept(rows, {name: values for name, values in layout.keep.items() if name in layout.headers})
    return rows


def _kept(rows: Rows, keep: Mapping[str, Sequence[str]]) -> Rows:
    """The rows with one of these values in each of these columns."""
    for name, values in keep.items():
        kept = np.isin(rows.column(name, f"keep.{name}"), values)
        gone = int((~kept).sum())
        if not kept.any():
            raise DataError(f"{rows.root}: keep.{name}={list(values)!r}: no row of {len(kept)} has such a value")
        wanted = ", ".join(map(repr, values))
        why = f"{name!r} is not {wanted}"
        rows = rows.keep(kept, why, *([f"left out {gone} rows whose {why}"] if gone else []))
    return rows


def _pivoted(rows: Rows, pivot: Pivot) -> Rows:
    """A row for each value of the column `by`, the first of its lines, with a column for each value of `name`.

    Of lines that say the same thing twice the first counts. Raises DataError where a row lacks one of the columns.
    """
    import pandas as pd  # here: 0.4 s, and most layouts never need it

    by, name, value = (rows.column(getattr(pivot, field), f"pivot.{field}") for field in ("by", "name", "value"))
    for field, cells in (("by", by), ("name", name)):
        if (empty := cells == "").any():
            line = int(np.argmax(empty))
            raise DataError(
                f"{rows.places[line]}: pivot.{field}: {getattr(pivot, field)} is empty ({int(empty.sum())} of "
                f"{len(empty)} lines); a [columns] pattern may not fit it"
            )
    (row, keys), (column, names) = pd.factorize(by), pd.factorize(name)
    taken = sorted({*names} & {*rows.columns})
    if taken:
        raise DataError(f"{rows.root}: pivot.name={pivot.name!r}: makes a column {taken[0]!r}, which is there already")
    cells = np.full((len(keys), len(names)), "", object)
    cells[row[::-1], column[::-1]] = value[::-1]  # of several the first
    lacking = np.ones(cells.shape, bool)
    lacking[row, column] = False
    if lacking.any():
        key, of = np.argwhere(lacking)[0]
        count = int(lacking.any(axis=1).sum())
        raise DataError(
            f"{rows.root}: pivot: {pivot.by} {keys[key]!r} has no line for {names[of]!r} ({count} of {len(keys)} rows "
            "lack a line)"
        )
    first = np.unique(row, return_index=True)[1]
    found = {name: cells[first] for name, cells in rows.columns.items() if name not in (pivot.name, pivot.value)}
    repeated = len(by) - cells.size
    notes = (f"{repeated} lines say again what stands in one before, which counts",) if repeated else ()
    return rows._replace(
        columns={**found, **dict(zip(names, cells.T, strict=True))},
        places=rows.places[first],
        lines=rows.lines[first],
        notes=(*rows.notes, *notes),
    )


def _add_headers(rows: Rows, layout: Layout) -> None:
    """Add the columns that stand in the headers of DICOM files; "" where a row's file is not there."""
    template = layout.pixels.channels[0] if layout.pixels.channels else layout.path or f"{{{FILE}}}"
    files = paths(rows, template, "path")
    told = [dict.fromkeys(layout.headers, "") if file is None else dicom.told(file, layout.headers) for file in files]
    for name in layout.headers:
        rows.columns[name] = np.array([each[name] for each in told], object)


def _tree(root: Path) -> list[str]:
    """Every file below the root as a path relative to it, sorted. Linked folders are followed, each once."""
    found, seen = [], set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        below = Path(folder).relative_to(root).as_posix()
        found += [name if below == "." else f"{below}/{name}" for name in files]
    return sorted(found)


def _is_stray(path: str) -> bool:
    """Whether a file is one systems leave behind, as .DS_Store, ._scan.png, Thumbs.db or .ipynb_checkpoints/a.png."""
    return any(name.startswith(".") or name in STRAY for name in path.split("/"))


def listing(root: Path) -> list[str]:
    """Every file below a folder as a path relative to it, without those that systems leave behind."""
    return [name for name in _tree(root) if not _is_stray(name)]


def _from_files(layout: Layout, root: Path) -> Rows:
    tree = _tree(root)
    strays: list[str] = []
    rows: list[dict[str, str]] = []
    for index, wanted in enumerate(layout.files):
        fits = pattern(wanted.pattern)
        found = [{**fit, **wanted.add, FILE: name} for name in tree if (fit := fits(name)) is not None]
        if not _is_stray(wanted.pattern):
            strays += [row[FILE] for row in found if _is_stray(row[FILE])]
            found = [row for row in found if not _is_stray(row[FILE])]
        if not found:
            some = f"; there are {len(tree)} files, such as {tree[0]}" if tree else "; there are no files"
            raise DataError(f"{root}: files[{index}].pattern={wanted.pattern!r}: no file fits{some}")
        rows += found
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: np.array([row.get(name, "") for row in rows], object) for name in names}
    places = np.array([str(root / row[FILE]) for row in rows], object)
    notes = (f"left out files that systems leave behind: {len(strays)}, such as {strays[0]}",) if strays else ()
    return Rows(root, columns, places, np.zeros(len(rows), np.int64), notes)


def pattern(text: str) -> Callable[[str], dict[str, str] | None]:
    """A pattern of paths as a function: path -> its columns, None where it does not fit."""
    names: list[str] = []
    parts = []
    for token in re.split(r"(\{[^{}]+\}|\*\*/|\*)", text):
        name = token[1:-1] if _BRACES.fullmatch(token) else None
        if name is not None and name in names:
            parts.append(f"(?P=g{names.index(name)})")  # the same name again stands for the same text
        elif name is not None:
            parts.append(f"(?P<g{len(names)}>[^/]+?)")
            names.append(name)
        else:
            parts.append({"**/": "(?:.*/)?", "*": "[^/]*"}.get(token, re.escape(token)))
    expression = re.compile("".join(parts))

    def fits(path: str) -> dict[str, str] | None:
        match = expression.fullmatch(path)
        return match and {name: match[f"g{index}"] for index, name in enumerate(names)}

    return fits


def _below(root: Path, name: str, field: str) -> Path:
    """A path below the root. Raises DataError for one that leads out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{field}={name!r}: must be a path below {root}")
    return root / name


def _from_tables(tables: Sequence[TableFile], root: Path) -> Rows:
    parts = []
    for index, wanted in enumerate(tables):
        file = _below(root, wanted.file, f"tables[{index}].file")
        table = read_table(file, ("",), wanted.columns, wanted.delimiter).blanked()
        added = {name: np.full(len(table.cells), value, object) for name, value in wanted.add.items()}
        parts.append((table, {name: table.column(name) for name in table.names} | added))
    names = dict.fromkeys(name for _, known in parts for name in known)
    columns = {
        name: np.concatenate([found.get(name, np.full(len(table.cells), "", object)) for table, found in parts])
        for name in names
    }
    places = np.concatenate([_places(table) for table, _ in parts])
    lines = np.concatenate([table.lines for table, _ in parts])
    notes = tuple(f"{table.where}: {note}" for table, _ in parts for note in table.notes)
    return Rows(root, columns, places, lines, notes)


def _places(table: Table) -> np.ndarray:
    return np.array([f"{table.where}: line {line}" for line in table.lines], object)


def _joined(rows: Rows, join: Join, field: str) -> Rows:
    """The rows with the columns of a second table that they don't have yet."""
    file = _below(rows.root, join.file, f"{field}.file")
    table = read_table(file, ("",), join.columns, join.delimiter).blanked()
    key = join.key or join.on
    if key not in table.names:
        raise DataError(f"{table.where}: {field}: {key!r} is not a column; {nearest(key, table.names)}")
    index: dict[str, int] = {}
    for row, cell in enumerate(table.column(key)):
        index.setdefault(cell, row)  # several rows of one key: the first
    cells = rows.column(join.on, f"{field}.on")
    known = np.array([cell in index for cell in cells])
    if not known.all():
        row, gone = int(np.argmin(known)), int((~known).sum())
        if join.required or not known.any():
            raise DataError(
                f"{rows.places[row]}: {field}: {join.on} is {cells[row]!r}, which {table.where} does not have in "
                f"{key!r} ({gone} of {len(known)} rows); required = false leaves such rows out"
            )
        rows = rows.keep(
            known, f"not listed in {table.where}", f"left out {gone} rows that {table.where} does not list"
        )
    order = np.array([index[cell] for cell in rows.columns[join.on]])
    more = {name: table.column(name)[order] for name in table.names if name not in rows.columns}
    return rows._replace(columns={**rows.columns, **more})


def paths(rows: Rows, template: str, field: str) -> list[Path | None]:
    """The file (or folder) of every row by a template such as "images_*/{name}.png"; None where it is not there.

    A * stands for anything within the name of one folder; the first such file in the order of names is taken. Raises
    DataError for a column that is not there, and for a template or cell that leads out of the root.
    """
    cells = {name: rows.column(name, field) for name in _BRACES.findall(template)}
    *folders, last = template.split("/")
    if "*" in last:
        raise DataError(f"{field}={template!r}: a * stands in names of folders only, not in the name of the file")
    find = _search(rows.root, folders) if "*" in template else None
    found: list[Path | None] = []
    for row, place in enumerate(rows.places):
        own = {name: str(column[row]) for name, column in cells.items()}
        if not all(own.values()):
            raise DataError(
                f"{place}: {field}: {next(name for name in own if not own[name])} is empty, so there is no file"
            )
        if find is not None:
            found.append(find(own, filled(last, own)))
            continue
        path = _below(rows.root, filled(template, own), f"{place}: {field}")
        found.append(path if path.exists() else None)
    return found


def filled(template: str, cells: Mapping[str, str]) -> str:
    """A template with these cells for the names in braces."""
    return _BRACES.sub(lambda match: cells[match[1]], template)


def _search(root: Path, folders: Sequence[str]) -> Callable[[Mapping[str, str], str], Path | None]:
    """A function that finds a file by its name in folders of which some have a *: the tree is walked once."""
    index: dict[str, list[str]] = defaultdict(list)
    for path in _tree(root):
        index[path.rpartition("/")[2]].append(path)

    def find(cells: Mapping[str, str], name: str) -> Path | None:
        escaped = {key: glob.escape(cell) for key, cell in cells.items()}
        wanted = [filled(folder, escaped if "*" in folder else cells) for folder in folders]
        for path in index.get(name.rpartition("/")[2], ()):
            *found, _ = path.split("/")
            if len(found) == len(wanted) and all(
                fnmatch.fnmatchcase(one, other) if "*" in folder else one == other
                for one, other, folder in zip(found, wanted, folders, strict=True)
            ):
                return root / path
        return None

    return find


def listed(root: Path, name: str, field: str) -> set[str]:
    """The lines of a text file below the root, stripped, without empty ones. Raises DataError."""
    file = _below(root, name, field)
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except FileNotFoundError as exc:
        raise DataError(f"{field}={name!r}: no such file ({file.resolve()})") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{file}: can't be read as text in UTF-8: {exc}") from exc
    return {line.strip() for line in lines} - {""}
