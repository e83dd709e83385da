"""What a curious neighbour has: what it was sent, what all know of the experiment, and its own rows. Nothing else.

All attacks of this package take an `Overheard` or a part of it. Whoever scores them holds what they found against the
truth, which they never see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from p2pfl import tree
from p2pfl.types import Batches, Learner, Params, Tree


class PublicFacts(NamedTuple):
    """The facts that the experiment file tells everybody."""

    learner: Learner  # without the noise of [privacy]
    local: Callable[[Params, Batches, int, int], Params]  # (model, batches, node, round) -> after the local steps
    steps: np.ndarray  # [n] local steps of each node in a round
    batch_size: int  # rows of one
    rate: float | None  # learning rate where steps are those of plain SGD; None: others
    weights: np.ndarray  # [T, n, n] W of each round, used in turn
    classes: int
    masked: bool = False  # a node learns the weighted sum of its neighbours alone, and no single payload


class Overheard(NamedTuple):
    """All that one node has to attack others with."""

    node: int
    facts: PublicFacts
    first: Params  # with which all begin; it follows from the seed, which all know
    payloads: Mapping[tuple[int, int], Tree]  # (round, sender) -> "trained" and "carried"; its own among them
    mixed: Mapping[int, Tree]  # its own model after the mixing of a round
    x: np.ndarray  # [N, ...] its own training rows
    y: np.ndarray  # [N] int32
    low: np.ndarray  # the smallest and the largest value of an input, as its own rows have them; [] or [...]
    high: np.ndarray
    picture: tuple[int, ...] = ()  # a row as an image [H, W, C], where it is one; () of a table


def flat(part: Tree) -> np.ndarray:
    """Return all floats of a model that travel, in one row: [D] float64.

    >>> import jax.numpy as jnp
    >>> flat({"trained": {"b": jnp.ones(2), "a": jnp.zeros(1)}, "carried": {}}).tolist()
    [0.0, 1.0, 1.0]
    """
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree.mixed(part)) if _real(leaf)]
    return np.concatenate(leaves)


def shaped(row: np.ndarray, like: Tree) -> Tree:
    """Return the tree of which `flat` makes this row; leaves that are no floats are those of `like`."""
    leaves, structure = jax.tree.flatten(tree.mixed(like))
    found, at = [], 0
    for leaf in leaves:
        if not _real(leaf):
            found.append(np.asarray(leaf))
            continue
        size = int(np.prod(leaf.shape))
        found.append(row[at : at + size].reshape(leaf.shape).astype(leaf.dtype))
        at += size
    return jax.tree.unflatten(structure, found)


def bounds(x: np.ndarray, picture: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return between which values inputs lie, by rows x [N, ...]: of columns each its own, of images one for all.

    >>> [each.tolist() for each in bounds(np.array([[0.0, 5.0], [1.0, 7.0]]), picture=False)]
    [[0.0, 5.0], [1.0, 7.0]]
    """
    low, high = (x.min(), x.max()) if picture else (x.min(axis=0), x.max(axis=0))
    high = np.where(high > low, high, low + 1)
    return np.asarray(low, x.dtype), np.asarray(high, x.dtype)


def _real(leaf: np.ndarray) -> bool:
    return bool(jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating))
