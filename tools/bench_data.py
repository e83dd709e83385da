"""Rows in the shape of scikit-learn's digits, as many as thousands of nodes need; there is nothing to be learned."""

from __future__ import annotations

import numpy as np


def small(nodes: int, rows: int = 32) -> tuple[np.ndarray, ...]:
    """64 features, 10 classes, `rows` for each node."""
    rng = np.random.default_rng(0)
    x = rng.random((nodes * rows, 64), np.float32)
    y = rng.integers(0, 10, nodes * rows)
    y[:10] = np.arange(10)
    return x, y, x[:100], np.arange(100) % 10


def images(nodes: int, rows: int = 64) -> tuple[np.ndarray, ...]:
    """28 x 28 grey images, 2 classes, `rows` for each node."""
    rng = np.random.default_rng(0)
    x = rng.random((nodes * rows, 28, 28, 1), np.float32)
    y = rng.integers(0, 2, nodes * rows)
    y[:2] = 0, 1
    return x, y, x[:20], np.arange(20) % 2
