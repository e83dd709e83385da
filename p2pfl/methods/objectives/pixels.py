"""Small networks that work on the pixels of images: generators and critics."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from p2pfl.data import Dataset
from p2pfl.errors import ConfigError
from p2pfl.learning.models import shifted
from p2pfl.types import Array, Key, Tree

_LOOK, _ROUGHLY = 64, 1e-3
"""So many rows are looked at; what rounding adds to a colour."""


def in_color(name: str, dataset: Dataset) -> None:
    """Raises ConfigError for rows that are no images in red, green and blue in 0..1; `name`: of the method.

    Of their values the first rows are looked at, since all of them may not be in memory.
    """
    shape = dataset.train.x.shape[1:]
    if len(shape) != 3 or shape[-1] != 3:
        raise ConfigError(
            f"objective {name}: needs images [height, width, 3] in red, green and blue; a row of the data has shape "
            f"{[*shape]}. Leave it out"
        )
    some = np.asarray(dataset.train.x[:_LOOK])
    if some.size and (some.min() < -_ROUGHLY or some.max() > 1 + _ROUGHLY):
        raise ConfigError(
            f"objective {name}: values from {some.min():.3g} to {some.max():.3g}; colours must be in 0..1, where 1 is "
            "white: leave out what scales them (data.standardize), or say data.intensity"
        )


def network(key: Key, channels: Sequence[int], size: int, dtype: DTypeLike = jnp.float32) -> Tree:
    """Parameters of convolutions of `size` x `size`, the last of 1 x 1: {"layers": {I: {"kernel", "bias"}}}."""
    made, last = {}, len(channels) - 2
    for index, (inputs, outputs) in enumerate(pairwise(channels)):
        rows = inputs * (1 if index == last else size**2)
        draw = jax.nn.initializers.he_normal()
        kernel = draw(jax.random.fold_in(key, index), (rows, outputs), jnp.float32)
        made[str(index)] = {"kernel": kernel.astype(dtype), "bias": jnp.zeros((outputs,), dtype)}
    return {"layers": made}


def convolved(parameters: Tree, x: Array, size: int, stride: int = 1) -> Array:
    """What a `network` makes of [B, H, W, C]; leaky ReLUs of slope 0.2 between, `stride` in all layers but the last."""
    layers = parameters["layers"]
    for index in range(len(layers)):
        layer, last = layers[str(index)], index == len(layers) - 1
        seen = x if last else jnp.concatenate(shifted(x, size, stride), axis=-1)
        x = seen @ layer["kernel"] + layer["bias"][None, None, None]
        x = x if last else jax.nn.leaky_relu(x, 0.2)
    return x
