"""Decoded rows in a file beside those that they were decoded from: made once, mapped into memory by whoever needs them.

A cache is a folder, PLACE/KEY, whose name is a digest of the files (name, size, time of change) and of all settings by
which they were read, so that a cache of anything else is another one:

    x            float32, row after row
    y            class indices of masks, row after row, in the smallest type that holds them
    index.jsonl  a line for each entry of the layout: shapes of its rows, facts, notes, where its classes are

A line is written after the rows that it speaks of are on the disk. So a cache that was interrupted is cut to its last
whole line and goes on from there; two processes that make one at once take turns by a lock that the kernel lets go of
when its holder ends, and the second finds it made. A cache that is whole is opened without a lock, or without the right
to write.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from p2pfl.data import volumes
from p2pfl.data.dataset import ImageFacts
from p2pfl.data.image import is_far
from p2pfl.data.pixels import Arrays, Entry
from p2pfl.errors import DataError

FORMAT = 1
FOLDER = ".p2pfl-cache"
"""Beside the files; a name that no pattern fits."""
STEP = 64 << 20
"""Bytes after which rows are brought to the disk and their lines written."""
TOLD = 20
"""Lines of progress, at most."""


class CachedRow(NamedTuple):
    """A row in a cache."""

    entry: int
    shape: tuple[int, ...]  # of x, channels last
    x: int  # where its first number stands
    y: int
    places: np.ndarray  # as volumes.places has them


class Cached(NamedTuple):
    """The rows of a cache, and what was said of them."""

    key: str
    rows: tuple[CachedRow, ...]
    x: np.ndarray  # all numbers, mapped
    y: np.ndarray  # ... of masks; none but for segmentation
    facts: tuple[ImageFacts, ...]
    notes: tuple[tuple[str, str], ...]
    spans: tuple[Span, ...]

    def image(self, row: int) -> np.ndarray:
        """x of a row, mapped."""
        own = self.rows[row]
        return self.x[own.x : own.x + int(np.prod(own.shape))].reshape(own.shape)

    def mask(self, row: int) -> np.ndarray:
        """y of a row, mapped."""
        own = self.rows[row]
        return self.y[own.y : own.y + int(np.prod(own.shape[:-1]))].reshape(own.shape[:-1])


class Span(NamedTuple):
    """The values of an entry."""

    low: float
    high: float
    far: bool  # as image.is_far has it


def span(x: Sequence[np.ndarray]) -> Span:
    """Return the values of arrays, one at least."""
    return Span(min(float(row.min()) for row in x), max(float(row.max()) for row in x), any(map(is_far, x)))


def key(settings: Any, entries: Sequence[Entry], root: Path) -> str:
    """Digest of files and settings (plain values), 32 hex digits. Raises DataError for a file that is gone."""
    h = hashlib.blake2b(json.dumps([FORMAT, settings], sort_keys=True).encode(), digest_size=16)
    for entry in entries:
        for file in (*entry.files, *([entry.mask] if entry.mask is not None else [])):
            inner = sorted(each for each in file.iterdir() if each.is_file()) if file.is_dir() else [file]
            for each in inner:
                try:
                    known = each.stat()
                except OSError as exc:
                    raise DataError(f"{each}: can't be read: {exc.strerror}") from exc
                name = os.path.relpath(each, root)
                h.update(json.dumps([name, known.st_size, known.st_mtime_ns, entry.frames]).encode())
        h.update(b"/")
    return h.hexdigest()


def cached(
    place: Path, key: str, count: int, classes: int, read: Callable[[int], Iterator[Arrays]],
    say: Callable[[str], None] | None = None,
) -> Cached:  # fmt: skip
    """The cache of a key, which is made, or finished, where it is not whole.

    Args:
        place: the folder of all caches.
        key: of `key`.
        count: entries.
        classes: of masks; 0 where there are none.
        read: the arrays of all entries from this one on, in order.
        say: told how far it is; None: lines on the standard error.

    Raises:
        DataError: it is not there and can't be written; what `read` raises.
    """
    folder, dtype = place / key, np.min_scalar_type(max(classes - 1, 0))
    lines = _lines(folder)
    if len(lines) < count:
        try:
            for each in (place, folder):  # pictures of patients: for their owner alone
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(folder / "lock", say or _told):
                _finish(folder, count, classes, dtype, read, say or _told)
        except OSError as exc:
            raise DataError(
                f"{folder}: the decoded rows can't be kept there: {exc.strerror or exc}. Name a folder that can be "
                'written, and that has room, as in data.cache = "/scratch/p2pfl"'
            ) from exc
        lines = _lines(folder)
    return _opened(folder, key, lines, dtype)


def _told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _locked(file: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a file for this process alone; the kernel lets go of it when the process ends, however it ends."""
    with file.open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process decodes into {file.parent}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _lines(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of an index; one that was not written to its end, and what comes behind it, do not count."""
    try:
        text = (folder / "index.jsonl").read_bytes()
    except OSError:
        return []
    found = []
    for line in text.split(b"\n")[:-1]:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _sizes(lines: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Numbers of x, and of y, that the lines speak of."""
    shapes = [shape for line in lines for shape in line["shapes"]]
    return sum(int(np.prod(shape)) for shape in shapes), sum(int(np.prod(shape[:-1])) for shape in shapes)


def _finish(
    folder: Path, count: int, classes: int, dtype: np.dtype[Any], read: Callable[[int], Iterator[Arrays]],
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Read and write what is not there yet."""
    lines = _lines(folder)
    if len(lines) >= count:
        return
    numbers, labels = _sizes(lines)
    ends = {"x": 4 * numbers, "y": labels * dtype.itemsize if classes else 0}
    ends["index.jsonl"] = sum(len(line) + 1 for line in _raw(folder)[: len(lines)])
    with contextlib.ExitStack() as stack:
        x, y, index = (stack.enter_context((folder / name).open("ab")) for name in ("x", "y", "index.jsonl"))
        for file, name in ((x, "x"), (y, "y"), (index, "index.jsonl")):
            if os.fstat(file.fileno()).st_size < ends[name]:
                raise DataError(f"{folder}: holds less than its index says: it is damaged; remove this folder")
            file.truncate(ends[name])
        waiting: list[bytes] = []
        bytes_ = 0

        def settle() -> None:
            nonlocal bytes_
            for file in (x, y):
                file.flush()
                os.fsync(file.fileno())
            index.write(b"".join(waiting))
            index.flush()
            os.fsync(index.fileno())
            waiting.clear()
            bytes_ = 0

        shown = max(1, count // TOLD)
        for number, found in enumerate(_decoded(read(len(lines))), len(lines) + 1):
            for row in found.x:
                x.write(np.ascontiguousarray(row, np.float32).data)
                bytes_ += row.nbytes
            for mask in found.y:
                y.write(np.ascontiguousarray(mask, dtype).data)
            waiting.append(json.dumps(_line(found, classes)).encode() + b"\n")
            if bytes_ >= STEP or number == count:
                settle()
            if count >= TOLD and (number % shown == 0 or number == count):
                say(f"decoding into {folder}: {number} of {count}")


def _decoded(entries: Iterator[Arrays]) -> Iterator[Arrays]:
    """The same; a file of the data that can't be read is no fault of the cache's folder."""
    try:
        yield from entries
    except OSError as exc:
        raise DataError(f"{exc.filename or 'the data'}: can't be read: {exc.strerror or exc}") from exc


def _raw(folder: Path) -> list[bytes]:
    try:
        return (folder / "index.jsonl").read_bytes().split(b"\n")[:-1]
    except OSError:
        return []


def _line(found: Arrays, classes: int) -> dict[str, Any]:
    return {
        "shapes": [list(row.shape) for row in found.x],
        "facts": None if found.facts is None else found.facts._asdict(),
        "notes": found.notes,
        "span": span(found.x) if found.x else None,
        "places": [volumes.places(mask, classes).tolist() if mask.ndim == 3 else [] for mask in found.y],
    }


def _opened(folder: Path, key: str, lines: Sequence[dict[str, Any]], dtype: np.dtype[Any]) -> Cached:
    rows: list[CachedRow] = []
    at, labels = 0, 0
    for entry, line in enumerate(lines):
        for index, shape in enumerate(line["shapes"]):
            known = line["places"][index] if line["places"] else []
            found = np.asarray(known, np.int64).reshape(-1, 4)
            rows.append(CachedRow(entry, tuple(shape), at, labels, found))
            at, labels = at + int(np.prod(shape)), labels + int(np.prod(shape[:-1]))
    facts = [_facts(line["facts"]) for line in lines if line["facts"] is not None]
    notes = [(what, where) for line in lines for what, where in line["notes"]]
    spans = [Span(*line["span"]) for line in lines if line["span"] is not None]
    masks = any(line["places"] for line in lines)
    return Cached(
        key, tuple(rows), _mapped(folder / "x", np.dtype(np.float32), at), _mapped(folder / "y", dtype, labels * masks),
        tuple(facts), tuple(notes), tuple(spans),
    )  # fmt: skip


def _mapped(file: Path, dtype: np.dtype[Any], size: int) -> np.ndarray:
    if not size:
        return np.zeros(0, dtype)
    try:
        return np.memmap(file, dtype, "r", shape=(size,))
    except (OSError, ValueError) as exc:
        raise DataError(f"{file}: is damaged: {exc}; remove the folder {file.parent}, and it is made anew") from exc


def _facts(given: dict[str, Any]) -> ImageFacts:
    """Facts from what JSON leaves of them."""
    between = given["intensity"]
    return ImageFacts(**{**given, "shape": tuple(given["shape"]), "intensity": between and tuple(between)})
