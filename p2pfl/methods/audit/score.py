"""How near an attack has come, by the truth. Nothing that attacks imports this."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import optimize  # type: ignore[import-untyped]

from p2pfl.learning import metrics


class Nearness(NamedTuple):
    """How near rows that were found are to the true ones."""

    psnr: float  # dB: the mean over pairs
    best: float  # ... of the pair that is nearest
    ssim: float  # the mean; NaN of tables, and of images smaller than its window
    pairs: tuple[tuple[int, int], ...]  # (found, true), the nearest first


def nearness(found: np.ndarray, truth: np.ndarray, low: np.ndarray, high: np.ndarray) -> Nearness:
    """Pair found rows with true ones so that all together are nearest, and measure each pair.

    Args:
        found: [N, ...] rows of an attack, in any order.
        truth: [M, ...] the rows that were trained on.
        low: the smallest value of an input, [] or [...]; a range from there to `high` is 1 for PSNR and SSIM.
        high: the largest.

    Returns:
        Of min(N, M) pairs, each row in one at most.

    Example:
        >>> import numpy as np
        >>> nearness(np.eye(2), np.eye(2)[::-1], np.zeros(()), np.ones(())).pairs
        ((0, 1), (1, 0))
    """
    a, b = (_laid_out((rows.astype(np.float64) - low) / (high - low)) for rows in (found, truth))
    flat_a, flat_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    far = (flat_a**2).sum(axis=1)[:, None] + (flat_b**2).sum(axis=1)[None, :] - 2 * flat_a @ flat_b.T
    mine, theirs = optimize.linear_sum_assignment(far)
    like = metrics.likeness(a[mine], b[theirs])
    order = np.argsort(-like.psnr, kind="stable")
    known = like.ssim[np.isfinite(like.ssim)]
    return Nearness(
        float(like.psnr.mean()), float(like.psnr.max()), float(known.mean()) if len(known) else float("nan"),
        tuple((int(mine[i]), int(theirs[i])) for i in order),
    )  # fmt: skip


def _laid_out(rows: np.ndarray) -> np.ndarray:
    """Rows as images [N, H, W, C]: of a volume slices beside each other, of a table one line."""
    if rows.ndim == 4:
        return rows
    return rows.reshape(len(rows), 1, -1, 1) if rows.ndim == 2 else rows.reshape(len(rows), *rows.shape[1:3], -1)
