"""Which samples a node trains on: a pure function of (seed, node, round, step).

A node walks through its own rows in passes, each pass in a new random order; a batch may reach into the next pass, so
every row is used equally often and every batch has the same size, however few rows a node has.
"""

from __future__ import annotations

import numpy as np


def order(seed: int, node: int, rows: int, number: int) -> np.ndarray:
    """[rows] int64: the order of pass `number` of a node over its rows."""
    return np.random.default_rng([seed, node, number, 0xBA7C]).permutation(rows)


class Batching:
    """Sample indices of one node. Keeps the latest passes' orders, so that a round does not draw them again."""

    def __init__(self, seed: int, node: int, rows: int, batch_size: int, local_steps: int) -> None:
        self.seed, self.node, self.rows = seed, node, rows
        self.batch_size, self.local_steps = batch_size, local_steps
        self._orders: dict[int, np.ndarray] = {}

    def indices(self, round: int) -> np.ndarray:
        """[local_steps, batch_size] int64: rows for round `round` (1, 2, ...)."""
        count = self.local_steps * self.batch_size
        start = (round - 1) * count
        first, last = start // self.rows, (start + count - 1) // self.rows
        self._orders = {
            number: self._orders[number] if number in self._orders else order(self.seed, self.node, self.rows, number)
            for number in range(first, last + 1)
        }
        stream = np.concatenate([self._orders[number] for number in range(first, last + 1)])
        offset = start - first * self.rows
        return stream[offset : offset + count].reshape(self.local_steps, self.batch_size)
