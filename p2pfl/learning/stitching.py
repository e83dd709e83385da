"""The answer to a volume from the answers to windows of it that overlap.

Every voxel gets the mean of the probabilities of all windows that hold it, weighed by a Gaussian about the middle of
each window, of a standard deviation of an eighth of its length: near its border a network sees half of what it has
learned from. Source: Isensee et al. (2021), "nnU-Net", inference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WIDTH = 1 / 8
"""Standard deviation of the weights, by the length of the window."""


def gaussian(patch: Sequence[int]) -> np.ndarray:
    """Return the weights of the voxels of a window, [D, H, W] float32, 1 at most.

    >>> [round(float(weight), 4) for weight in gaussian((1, 1, 3)).ravel()]
    [0.0286, 1.0, 0.0286]
    """
    found = np.ones((1,) * len(patch), np.float64)
    for axis, length in enumerate(patch):
        away = (np.arange(length) - (length - 1) / 2) / (length * WIDTH)
        along = np.exp(-(away**2) / 2).reshape([-1 if i == axis else 1 for i in range(len(patch))])
        found = found * along
    return found.astype(np.float32)


class Stitching:
    """A volume that is put together window by window.

    >>> whole = Stitching((3, 1, 1), (2, 1, 1), classes=2)
    >>> whole.add(np.array([[[[[1.0, 0.0]]], [[[1.0, 0.0]]]]]), np.array([[0, 0, 0]]))
    >>> whole.add(np.array([[[[[0.0, 1.0]]], [[[0.0, 1.0]]]]]), np.array([[1, 0, 0]]))
    >>> whole.probabilities()[:, 0, 0].tolist()
    [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """

    def __init__(self, size: Sequence[int], patch: Sequence[int], classes: int) -> None:
        """`size` and `patch` [3]: voxels of the volume, and of a window."""
        self._size, self._weight = tuple(int(length) for length in size), gaussian(patch)
        self._sum = np.zeros((*self._size, classes), np.float32)
        self._total = np.zeros(self._size, np.float32)

    def add(self, probabilities: np.ndarray, start: np.ndarray) -> None:
        """Add windows [n, *patch, classes] that begin at the voxels `start` [n, 3]; what lies outside is left out."""
        for window, first in zip(probabilities, start, strict=True):
            inside, own = place(self._size, first, window.shape[:-1])
            self._sum[inside] += window[own] * self._weight[own][..., None]
            self._total[inside] += self._weight[own]

    def probabilities(self) -> np.ndarray:
        """Return the volume, [*size, classes]; 0 where no window was."""
        found: np.ndarray = self._sum / np.maximum(self._total, np.finfo(np.float32).tiny)[..., None]
        return found


def place(size: Sequence[int], first: Sequence[int], patch: Sequence[int]) -> tuple[tuple[slice, ...], ...]:
    """Return where a window lies in a volume, and which part of it does: slices of both."""
    lengths = [min(int(n), int(whole) - int(a)) for whole, a, n in zip(size, first, patch, strict=True)]
    inside = tuple(slice(int(a), int(a) + n) for a, n in zip(first, lengths, strict=True))
    return inside, tuple(slice(n) for n in lengths)
