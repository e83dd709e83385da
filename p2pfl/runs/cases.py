"""What a segmentation is scored by: an image, or the volume or patient that rows are pieces of.

A model answers piece by piece, and of each piece only counts are kept, so that no more than one volume is in memory:
slices add up, windows that overlap are put together first (`p2pfl.learning.stitching`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from p2pfl.data import Dataset
from p2pfl.data.dataset import Cases
from p2pfl.data.stored import part
from p2pfl.federation.federation import Federation
from p2pfl.learning import metrics
from p2pfl.learning.batching import chunk
from p2pfl.learning.stitching import Stitching, place

Answerer = Callable[[np.ndarray], np.ndarray]
"""x [N, ...] -> outputs [N, ...]."""


def of_rows(dataset: Dataset) -> np.ndarray:
    """Return the case of each test row, [N] int64: its own number where rows are whole."""
    case = dataset.test.case
    return np.arange(len(dataset.test.y)) if case is None or dataset.kind != "segmentation" else case.of


def overlaps(federation: Federation, answer: Answerer, rows: np.ndarray) -> np.ndarray:
    """Return `metrics.overlaps` of the cases that test rows are pieces of, in the order of their numbers.

    [cases, classes - 1, 3]; NaN where an output is not finite.
    """
    case, of = federation.dataset.test.case, of_rows(federation.dataset)[rows]
    found = []
    if case is not None and case.start is not None:
        for each in np.unique(of):
            found.append(_stitched(federation, answer, rows[of == each], case, int(each)))
        return np.concatenate([np.zeros((0, len(federation.dataset.classes) - 1, 3)), *found])
    cases, place_of = np.unique(of, return_inverse=True)
    total = np.zeros((len(cases), len(federation.dataset.classes) - 1, 3))
    np.add.at(total, place_of, _counted(federation, answer, rows))
    return total


def _counted(federation: Federation, answer: Answerer, rows: np.ndarray) -> np.ndarray:
    """Of each row by itself."""
    dataset, dtype = federation.dataset, federation.experiment.training.dtype
    classes, size = len(dataset.classes), chunk(dataset.test.x.shape[1:])
    found = [np.zeros((0, classes - 1, 3))]
    for at in range(0, len(rows), size):
        own = rows[at : at + size]
        outputs = answer(dataset.test.x[own].astype(dtype))
        counts = metrics.overlaps(outputs.argmax(axis=-1), dataset.test.y[own], classes)
        found.append(np.where(np.isfinite(outputs).all(), counts, np.nan))
    return np.concatenate(found)


def _stitched(federation: Federation, answer: Answerer, rows: np.ndarray, case: Cases, number: int) -> np.ndarray:
    """Of a volume that is answered window by window: [1, classes - 1, 3]."""
    dataset, dtype = federation.dataset, federation.experiment.training.dtype
    assert case.start is not None and case.size is not None
    size, patch, classes = case.size[number], dataset.test.x.shape[1:-1], len(dataset.classes)
    whole, truth, finite = Stitching(size, patch, classes), np.zeros(size, np.int32), True
    step = chunk(dataset.test.x.shape[1:])
    for at in range(0, len(rows), step):
        own = rows[at : at + step]
        outputs = answer(part(dataset.test.x, own)[:].astype(dtype))
        finite = finite and bool(np.isfinite(outputs).all())
        whole.add(metrics.softmax(outputs), case.start[own])
        for mask, first in zip(dataset.test.y[own], case.start[own], strict=True):
            inside, window = place(size, first, patch)
            truth[inside] = mask[window]
    counts = metrics.overlaps(whole.probabilities().argmax(axis=-1)[None], truth[None], classes)
    return counts if finite else np.full_like(counts, np.nan)
