"""Low-level features of a row: what it is like, not what it shows; and a network that tells sites apart by them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from p2pfl.methods import bulletin
from p2pfl.types import Array, Params, Tree

SELECTOR, TABLE = "selector", "appearance"
"""What it keeps in params["private"]: the network, and what all sites tell of their features (a bulletin)."""
DECILES = 9
SMALL = 1e-3
"""Deviation below which a feature counts as the same everywhere."""


def features(x: Array) -> Array:
    """Describe rows by their light and texture.

    Args:
        x: [B, ..., C] images or volumes: of each channel the mean, the standard deviation, nine deciles, and the mean
            difference of neighbours. [B, F] rows of numbers: they themselves.

    Returns:
        [B, number of features].

    Source: none; statistics of the first order, and one of the second, which is what scanners differ in.

    Example:
        >>> import jax.numpy as jnp
        >>> from p2pfl.methods.appearance import features
        >>> features(jnp.ones((2, 8, 8, 3))).shape
        (2, 36)
    """
    if x.ndim < 3:
        return x
    pixels = x.reshape(x.shape[0], -1, x.shape[-1])
    parts = [pixels.mean(axis=1)[:, None], pixels.std(axis=1)[:, None]]
    ordered, last = jnp.sort(pixels, axis=1), pixels.shape[1] - 1
    parts += [ordered[:, round(last * decile / (DECILES + 1))][:, None] for decile in range(1, DECILES + 1)]
    rough = [jnp.abs(jnp.diff(x, axis=axis)).mean(axis=tuple(range(1, x.ndim - 1))) for axis in range(1, x.ndim - 1)]
    parts.append(sum(rough[1:], start=rough[0])[:, None])
    return jnp.concatenate(parts, axis=1).reshape(x.shape[0], -1)


def scaled(params: Params, found: Array) -> Array:
    """Features [B, F] less the mean of all sites that have been heard, in deviations over all their rows."""
    rows, known = bulletin.heard(params, TABLE)
    share = known.astype(found.dtype) / jnp.maximum(known.sum(), 1).astype(found.dtype)
    mean, square = (share @ rows[name].astype(found.dtype) for name in ("mean", "square"))
    deviation = jnp.sqrt(jnp.maximum(square - mean**2, 0)) + SMALL
    return (found - mean[None]) / deviation[None]


def outputs(layer: Tree, found: Array) -> Array:
    """[B, n] of a selector's layer, for scaled features [B, F]."""
    return found @ layer["kernel"].astype(found.dtype) + layer["bias"].astype(found.dtype)[None]


def likely(params: Params, x: Array) -> Array:
    """[B, n] probabilities, by a node's selector, that rows x [B, ...] are of each of the planned sites."""
    layer = params["private"][SELECTOR]["model"]["layer"]
    return jax.nn.softmax(outputs(layer, scaled(params, features(x))), axis=-1)
