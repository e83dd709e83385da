"""Noise that two neighbours share, and that cancels between them: one adds it, the other takes it away."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl.types import Array, Tree

SHARED, SIGN = "privacy_shared", "privacy_sign"
"""Facts of a site: the words of the keys that it shares with its neighbours, and whether it adds that noise or takes it
away; 0 where there is no neighbour."""
_PAIR = 0xDEC0
"""Of the seed of a pair, so that other draws of the same seed are others."""


class Pairs(NamedTuple):
    """What each node shares with its neighbours."""

    words: np.ndarray  # [n, D, 2] uint32
    sign: np.ndarray  # [n, D] float32: 1, -1, or 0 where a node has fewer than D neighbours


def pairs(linked: np.ndarray, seed: int) -> Pairs:
    """Return the keys of all pairs of neighbours, of a study: they follow from the seed. `linked`: [n, n] bool.

    >>> import numpy as np
    >>> two = pairs(np.array([[False, True], [True, False]]), seed=0)
    >>> two.sign.ravel().tolist(), bool((two.words[0] == two.words[1]).all())
    ([1.0, -1.0], True)
    """
    nodes, most = len(linked), max(int(linked.sum(axis=1).max(initial=0)), 1)
    words, sign = np.zeros((nodes, most, 2), np.uint32), np.zeros((nodes, most), np.float32)
    for i in range(nodes):
        for place, j in enumerate(np.flatnonzero(linked[i])):
            pair = [seed, min(i, int(j)), max(i, int(j)), _PAIR]
            words[i, place], sign[i, place] = np.random.SeedSequence(pair).generate_state(2), 1 if i < j else -1
    return Pairs(words, sign)


def shared(site: Tree, turn: Array, index: int, leaf: Array) -> Array:
    """The sum of what a node adds and takes away of all neighbours' noise, of standard deviation 1 each.

    `turn`: how often the node has drawn of it, the same at both ends; `index`: of the leaf, whose shape it has.
    """

    def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        words, sign = pair
        key = jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")
        drawn = jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, turn), index), leaf.shape, leaf.dtype)
        return total + sign.astype(leaf.dtype) * drawn, None

    found: Array = jax.lax.scan(add, jnp.zeros_like(leaf), (jnp.asarray(site[SHARED]), jnp.asarray(site[SIGN])))[0]
    return found
