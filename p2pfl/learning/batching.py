"""Choose the samples that a node trains on: a pure function of (seed, node, turn, step).

A node walks through its own rows in passes, each pass in a new random order; a batch may reach into the next pass, so
every row is used equally often and every batch has the same size, however few rows a node has. Where `used` says so a
pass takes only the first so many rows of its order. Turns are the rounds in which a node trains, 1, 2, ...
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from p2pfl import random_bits
from p2pfl.data.stored import Stored
from p2pfl.types import Array

_BLOCK = 1 << 15
"""Keys that are drawn and sorted at once, so that they stay in cache."""


def orders(seed: int, node: np.ndarray, rows: np.ndarray, number: np.ndarray) -> np.ndarray:
    """[n, max rows] int64: for each node the order of its pass `number` over its rows; behind them, anything."""
    width = int(rows.max())
    column = np.arange(width, dtype=np.uint64)
    low = np.uint64((1 << max(width - 1, 1).bit_length()) - 1)
    found = np.empty((len(node), width), np.int64)
    step = max(1, _BLOCK // width)
    for start in range(0, len(node), step):
        here = slice(start, start + step)
        keys = random_bits.bits(random_bits.BATCHES, seed, node[here, None], number[here, None], column[None, :])
        # sorting keys that carry their row in the lowest bits is several times faster than an argsort
        keys &= ~low
        keys |= column
        if rows[here].min() < width:
            keys[column[None, :] >= rows[here, None]] = ~np.uint64(0)
        keys.sort(axis=1)
        keys &= low
        found[here] = keys
    return found


class Batching:
    """Sample indices of nodes, all at once. Keeps the latest orders, so that a round does not draw them again.

    `node`, `rows`, `steps`: [n] ids, numbers of training rows, local steps of a turn. `used`: [n] rows of a pass that
    are used, >= 1; None: all.
    """

    def __init__(
        self, seed: int, node: np.ndarray, rows: np.ndarray, steps: np.ndarray, batch_size: int,
        used: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.seed, self.batch_size = seed, batch_size
        self.node, self.rows, self.steps = (np.asarray(a, np.int64) for a in (node, rows, steps))
        self.used = self.rows if used is None else np.asarray(used, np.int64)
        self.width = int(self.steps.max(initial=0))
        even = len(self.node) > 0 and not np.ptp(self.rows) and not np.ptp(self.steps) and self.width > 0
        self._even = even and used is None
        self._number = np.full(len(self.node), -1)
        self._order = np.zeros((len(self.node), int(self.rows.max(initial=1))), np.int64)

    def indices(self, turn: int) -> np.ndarray:
        """[n, max steps, batch_size] int64: rows of each node for its turn `turn` (1, 2, ...).

        Steps beyond a node's own repeat its first row.
        """
        size = self.batch_size
        count = self.steps * size
        start = (turn - 1) * count
        if self._even and count[0] >= self.rows[0]:
            return self._whole_passes(int(start[0]), int(count[0]))
        position = start[:, None] + np.arange(self.width * size)
        number, offset = np.divmod(position, self.used[:, None])
        inside = np.arange(self.width * size) < count[:, None]
        found = np.zeros(position.shape, np.int64)
        first, last = start // self.used, np.where(count > 0, (start + count - 1) // self.used, -1)
        for extra in range(int((last - first).max(initial=-1)) + 1):
            due = np.flatnonzero(first + extra <= last)
            self._draw(due, first[due] + extra)
            here = inside[due] & (number[due] == (first[due] + extra)[:, None])
            place = np.minimum(np.where(here, offset[due], 0), self.rows[due, None] - 1)  # `used` may be more
            taken = np.take_along_axis(self._order[due], place, axis=1)
            found[due] = np.where(here, taken, found[due])
        return found.reshape(len(self.node), self.width, size)

    def _whole_passes(self, start: int, count: int) -> np.ndarray:
        """The same where all nodes have equally many rows, and no more than a turn takes: all passes at once."""
        rows, nodes = int(self.rows[0]), len(self.node)
        first, last = start // rows, (start + count - 1) // rows
        passes = last - first + 1
        node, number = np.repeat(self.node, passes), np.tile(np.arange(first, last + 1), nodes)
        drawn = orders(self.seed, node, np.full(nodes * passes, rows), number).reshape(nodes, passes * rows)
        offset = start - first * rows
        return drawn[:, offset : offset + count].reshape(nodes, self.width, self.batch_size)

    def _draw(self, due: np.ndarray, number: np.ndarray) -> None:
        """Bring the orders of these nodes to these passes."""
        new = self._number[due] != number
        due, number = due[new], number[new]
        if due.size:
            drawn = orders(self.seed, self.node[due], self.rows[due], number)
            self._order[due, : drawn.shape[1]] = drawn
            self._number[due] = number


def one(seed: int, node: int, rows: int, steps: int, batch_size: int, used: int | None = None) -> Batching:
    """The batching of a single node."""
    first = None if used is None else np.array([used])
    return Batching(seed, np.array([node]), np.array([rows]), np.array([steps]), batch_size, first)


def in_batches(rows: np.ndarray, batch_size: int) -> np.ndarray:
    """[n, V, batch_size] int64: numbers 0 to rows[i] - 1 of each node, in as many batches as the most rows need."""
    most = -(-int(rows.max(initial=0)) // batch_size)
    number = np.arange(most * batch_size).reshape(1, most, batch_size)
    return np.where(number < rows.reshape(-1, 1, 1), number, 0)


# --- rows to evaluate on

VOLUME = 4
"""Axes of a row that is a volume, channels included."""
CHUNK = 512
"""Rows of one call of the compiled evaluation; the last chunk is padded, so that one program serves every data set."""
NUMBERS = 1 << 20
"""Numbers of inputs of one call where rows are volumes: a network over them holds a hundred times as many at once."""


def chunk(row: Sequence[int], most: int | None = None) -> int:
    """Return how many rows of this shape are evaluated at once, `most` (CHUNK) of them.

    >>> chunk((28, 28, 1)), chunk((32, 32, 32, 1)), chunk((64, 64, 64, 4))
    (512, 32, 1)
    """
    most = CHUNK if most is None else most
    return max(1, min(most, NUMBERS // math.prod(row))) if len(row) == VOLUME else most


class EvalSet(NamedTuple):
    """Test rows on the device, in chunks of one size."""

    chunks: Iterable[tuple[Array, Array, Array]]  # (x, y, mask); of rows that are stored, read each time
    rows: int


class _ChunksRead:
    """The chunks of rows that are stored, which are read whenever they are gone through."""

    def __init__(self, x: np.ndarray, y: np.ndarray, size: int) -> None:
        self._x, self._y, self._size = x, y, size

    def __iter__(self) -> Iterator[tuple[Array, Array, Array]]:
        return _chunks(self._x, self._y, self._size)


def eval_set(x: np.ndarray, y: np.ndarray, whole: bool = False) -> EvalSet:
    """Chunks and pads test rows x [N, ...] and y [N, ...]; `whole`: in one, where rows are compared with each other."""
    size = (len(y) if whole else min(chunk(x.shape[1:]), len(y))) or 1
    stored = isinstance(x, Stored) and not whole
    return EvalSet(_ChunksRead(x, y, size) if stored else tuple(_chunks(x, y, size)), len(y))


def _chunks(x: np.ndarray, y: np.ndarray, size: int) -> Iterator[tuple[Array, Array, Array]]:
    for start in range(0, len(y), size):
        part_x, part_y = x[start : start + size], y[start : start + size]
        gap = size - len(part_y)
        mask = np.pad(np.ones(len(part_y), np.float32), (0, gap))
        padded = (np.pad(part, ((0, gap),) + ((0, 0),) * (part.ndim - 1)) for part in (part_x, part_y))
        rows, answers = padded
        yield jax.device_put((rows, answers, mask))  # which, unlike jnp.asarray, compiles nothing
