"""Random bits as a pure function of integers: what a node draws depends on no order and no state, in any driver.

The function is the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
2014), applied once per integer. It decides data order and losses; it is no cryptography.
"""

from __future__ import annotations

from typing import Any

import numpy as np

BATCHES, LOSS, LATE, CHURN = 0xBA7C, 0x1055, 0x1A7E, 0xC4A2
"""One constant per purpose, so that the same seed elsewhere does not draw the same bits."""


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def bits(*keys: Any) -> np.ndarray:
    """uint64 of the shape that the integer `keys` (numbers or arrays, >= 0) broadcast to."""
    h = np.asarray(_GOLDEN)
    for key in keys:
        h = np.atleast_1d(h ^ np.asarray(key).astype(np.uint64))
        _mix(h)
    return h.reshape(np.broadcast_shapes(*(np.shape(key) for key in keys)))


def _mix(h: np.ndarray) -> None:
    """The finaliser, in place: these are the innermost loops of drawing batches."""
    shifted = np.empty_like(h)
    h += _GOLDEN
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None)):
        np.right_shift(h, np.uint64(shift), out=shifted)
        h ^= shifted
        if factor is not None:
            h *= np.uint64(factor)


def uniform(*keys: Any) -> np.ndarray:
    """float64 in [0, 1) of the shape that the keys broadcast to."""
    return (bits(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53
