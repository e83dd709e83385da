"""Rows that lie in a file and are read when they are asked for, so that data may be larger than memory.

`Stored` behaves as an array [N, ...] as far as rows are taken from it: `x[rows]` is an array in memory, of these rows
alone. What needs all rows at once (`np.asarray`) gets them, and they must then fit into memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt

Reader = Callable[[np.ndarray], np.ndarray]
"""(numbers [n] of rows) -> these rows, [n, ...]."""


class Stored:
    """An array [N, ...] of which only the rows that are asked for are ever in memory."""

    def __init__(
        self, read: Reader, numbers: np.ndarray, row: tuple[int, ...], dtype: npt.DTypeLike, key: str = ""
    ) -> None:
        """`numbers` [N]: what `read` knows the rows by; `row`: the shape of one; `key`: what tells their source."""
        self._read, self._numbers, self._row, self.dtype, self.key = read, numbers, row, np.dtype(dtype), key

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, ...]."""
        return (len(self._numbers), *self._row)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return 1 + len(self._row)

    @property
    def nbytes(self) -> int:
        """The bytes of it that are in memory: none, until rows are asked for."""
        return 0

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Rows by a number, a slice, or an array of numbers or of truth values: [..., *row], in memory."""
        wanted = np.asarray(self._numbers[index])
        if not wanted.size:
            return np.zeros((*wanted.shape, *self._row), self.dtype)
        found = self._read(wanted.reshape(-1)).astype(self.dtype, copy=False)
        return found.reshape(*wanted.shape, *self._row)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        found = self[:]
        return found if dtype is None else found.astype(dtype, copy=False)

    def take(self, rows: Any) -> Stored:
        """The same of some rows, with nothing read."""
        return Stored(self._read, self._numbers[rows], self._row, self.dtype, self.key)

    def astype(self, dtype: npt.DTypeLike) -> Stored:
        """The same in another dtype, with nothing read."""
        return Stored(self._read, self._numbers, self._row, dtype, self.key)

    def digest(self) -> bytes:
        """Digest of what it holds, by its source and the numbers of its rows."""
        return hashlib.blake2b(self.key.encode() + np.asarray(self._numbers, np.int64).tobytes()).digest()


def as_array(stored: Stored) -> np.ndarray:
    """The rows, typed as what they stand for: who takes rows from an array need not know where it lies."""
    return cast(np.ndarray, stored)


def part(x: np.ndarray, rows: Any) -> np.ndarray:
    """Rows of an array; of one that is stored, these with nothing read.

    >>> stored = as_array(Stored(lambda rows: rows[:, None] * np.ones(3), np.arange(10), (3,), np.float32))
    >>> part(stored, np.array([2, 5])).shape, part(stored, np.array([2, 5]))[1].tolist()
    ((2, 3), [5.0, 5.0, 5.0])
    """
    return as_array(x.take(rows)) if isinstance(x, Stored) else x[rows]
