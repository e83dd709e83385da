"""The models that an experiment can name: Flax NNX, small, and fast where XLA:CPU is slow.

Each maker takes the input's shape without the batch axis and the number of classes, and returns a function
`(nnx.Rngs) -> nnx.Module`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import jax.numpy as jnp
from flax import nnx

from p2pfl.check import positive
from p2pfl.errors import ConfigError
from p2pfl.types import Array

Make = Callable[[nnx.Rngs], nnx.Module]


class MLP(nnx.Module):
    """Fully connected layers with ReLU between them; without hidden layers, multinomial logistic regression."""

    def __init__(self, inputs: int, hidden: Sequence[int], classes: int, *, rngs: nnx.Rngs) -> None:
        widths = [inputs, *hidden, classes]
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(widths)])

    def __call__(self, x: Array) -> Array:
        """x [B, ...] -> logits [B, classes]."""
        x = x.reshape(x.shape[0], -1)
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class Conv(nnx.Module):
    """A convolution, stride 1, zero padding, written as shifted slices and one matrix product.

    The same function as nnx.Conv. XLA:CPU runs this form several times faster inside a loop over local steps, and many
    times faster with a weight per node. kernel [size * size * inputs, outputs].
    """

    def __init__(self, inputs: int, outputs: int, size: int = 3, *, rngs: nnx.Rngs) -> None:
        self.size = size
        kernel = nnx.initializers.lecun_normal()(rngs.params(), (size * size * inputs, outputs), jnp.float32)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(self, x: Array) -> Array:
        """x [B, H, W, inputs] -> [B, H, W, outputs]."""
        _, height, width, _ = x.shape
        before = (self.size - 1) // 2
        pad = (before, self.size - 1 - before)
        padded = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
        slices = [padded[:, i : i + height, j : j + width, :] for i in range(self.size) for j in range(self.size)]
        return jnp.concatenate(slices, axis=-1) @ self.kernel[...] + self.bias[...].reshape(1, 1, 1, -1)


def max_pool(x: Array) -> Array:
    """2 x 2 max pooling of [B, H, W, C]; an odd last row or column is left out."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2, :]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


class CNN(nnx.Module):
    """Blocks of 3 x 3 convolution, ReLU and 2 x 2 max pooling, then a linear layer."""

    def __init__(self, shape: tuple[int, ...], channels: Sequence[int], classes: int, *, rngs: nnx.Rngs) -> None:
        height, width, inputs = shape
        widths = [inputs, *channels]
        self.blocks = nnx.List([Conv(a, b, rngs=rngs) for a, b in itertools.pairwise(widths)])
        scale = 2 ** len(channels)
        self.head = nnx.Linear((height // scale) * (width // scale) * widths[-1], classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> logits [B, classes]."""
        for block in self.blocks:
            x = max_pool(nnx.relu(block(x)))
        return self.head(x.reshape(x.shape[0], -1))


def logistic(shape: tuple[int, ...], classes: int) -> Make:
    """Multinomial logistic regression."""
    return mlp(shape, classes, hidden=())


def mlp(shape: tuple[int, ...], classes: int, hidden: Sequence[int] = (64,)) -> Make:
    """A fully connected network with `hidden` layer widths."""
    for width in hidden:
        positive(hidden=width)
    return lambda rngs: MLP(math.prod(shape), hidden, classes, rngs=rngs)


def cnn(shape: tuple[int, ...], classes: int, channels: Sequence[int] = (16, 32)) -> Make:
    """A convolutional network for images [H, W, C] with a block per entry of `channels`."""
    if len(shape) != 3:
        raise ConfigError(
            f"model cnn: needs images [height, width, channels]; the data has shape {list(shape)}. Use mlp."
        )
    for width in channels:
        positive(channels=width)
    if min(shape[:2]) < 2 ** len(channels):
        raise ConfigError(f"model cnn: {len(channels)} blocks halve a {shape[0]} x {shape[1]} image to nothing")
    return lambda rngs: CNN(shape, channels, classes, rngs=rngs)


MODELS: Mapping[str, Callable[..., Make]] = MappingProxyType({"logistic": logistic, "mlp": mlp, "cnn": cnn})
"""The built-in models by name."""
