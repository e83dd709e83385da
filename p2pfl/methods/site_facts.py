"""Facts that a node knows of its own data, as arrays in params["private"]["site"]: no message holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from p2pfl.data import Dataset
from p2pfl.errors import ConfigError

Fact = Callable[[Dataset, np.ndarray], np.ndarray]
"""(data, training rows of a node) -> what is known of them."""


def samples(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """[] float32: how many training rows."""
    return np.float32(len(rows))  # type: ignore[return-value]


def labels(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """[C] float32: training rows of each class, or rows that have each label. Raises ConfigError for other kinds."""
    y = dataset.train.y[rows]
    if dataset.kind == "classes":
        return np.bincount(y, minlength=len(dataset.classes)).astype(np.float32)
    if dataset.kind == "labels":
        return y.sum(axis=0).astype(np.float32)
    raise ConfigError(f"counts of labels: the data are of kind {dataset.kind!r}, which has no labels to count")


FACTS: Mapping[str, Fact] = MappingProxyType({"samples": samples, "labels": labels})
"""Facts by the name that methods ask for."""
