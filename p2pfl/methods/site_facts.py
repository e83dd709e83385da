"""Facts that a node knows of its own data, as arrays in params["private"]["site"]: no message holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl.data import Dataset
from p2pfl.errors import ConfigError
from p2pfl.types import Key, Learner, Params

_NOISE = 0x4E01
"""Of the seed of noise, so that other draws of the same seed are others."""
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


def pairs(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """[L, L, 4] float32: shares of training rows with both labels, neither, the second alone, the first alone.

    Raises ConfigError for data of one label a row.
    """
    if dataset.kind != "labels":
        raise ConfigError(f"pairs of labels: the data are of kind {dataset.kind!r}, and a row has one; leave them out")
    y = dataset.train.y[rows].astype(np.float64)
    both, neither, second, first = y.T @ y, (1 - y).T @ (1 - y), (1 - y).T @ y, y.T @ (1 - y)
    return (np.stack([both, neither, second, first], axis=-1) / max(len(rows), 1)).astype(np.float32)


def no_rows(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """[2] uint32: where the noise of the node comes from, see `entropy`; zeros, since no data say it."""
    return np.zeros(2, np.uint32)


FACTS: Mapping[str, Fact] = MappingProxyType({"samples": samples, "labels": labels, "pairs": pairs, "entropy": no_rows})
"""Facts by the name that methods ask for; "entropy" is what `entropy` makes of it."""


def entropy(nodes: int, seed: int | None) -> np.ndarray:
    """[n, 2] uint32: for each node the two words of a key.

    `seed`: of a study; None: keys that nobody can know, of the operating system.
    """
    words = [np.random.SeedSequence(None if seed is None else [seed, node, _NOISE]).generate_state(2)
             for node in range(nodes)]  # fmt: skip
    return np.stack(words)


def counting(learner: Learner) -> Learner:
    """The learner whose models count in params["private"]["draws"] how often their node has drawn noise.

    Apart from the key, so that a node that begins afresh counts afresh, in every driver: in a study it draws again what
    it has drawn, elsewhere it has another key.
    """

    def init(key: Key) -> Params:
        params = learner.init(key)
        return {**params, "private": {**params.get("private", {}), "draws": jnp.zeros((), jnp.int32)}}

    return learner._replace(init=init)


def drawn(params: Params) -> tuple[Key, Params]:
    """A key that the node has not used yet, of its fact "entropy", and its model, which has counted that."""
    private = params["private"]
    key = jax.random.wrap_key_data(jnp.asarray(private["site"]["entropy"]), impl="threefry2x32")
    draws = private["draws"]
    return jax.random.fold_in(key, draws), {**params, "private": {**private, "draws": draws + 1}}
