"""The models that an experiment can name: Flax NNX, small, and fast where XLA:CPU is slow.

Each maker takes the input's shape without the batch axis and the number of classes, which is that of outputs, and
returns a function `(nnx.Rngs) -> nnx.Module`.

Nodes can share a model in part, by the paths of its leaves: each module's text says them. Whatever `norm`, `dropout`
and `residual` add is made last, so that all other parameters start as without it. Each has a method `features`: what
its last part, a U-Net's decoder, takes in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from flax import nnx

from p2pfl.check import one_of, positive, share
from p2pfl.errors import ConfigError
from p2pfl.types import Array

Make = Callable[[nnx.Rngs], nnx.Module]
MOMENTUM = 0.9
"""What a step leaves of the running mean and variance in batch normalisation."""
NORMS = ("batch", "group")
"""Batch normalisation (Ioffe and Szegedy 2015) and group normalisation (Wu and He 2018), the latter in two groups."""


def _norms(norm: str | None, widths: Sequence[int], rngs: nnx.Rngs) -> Any:
    """A normalisation of each width; none at all without `norm`."""
    if norm is None:
        return nnx.List([])
    if norm == "batch":
        return nnx.List([nnx.BatchNorm(width, momentum=MOMENTUM, rngs=rngs) for width in widths])
    return nnx.List([nnx.GroupNorm(width, num_groups=math.gcd(width, 2), rngs=rngs) for width in widths])


def _normed(norms: Any, index: int, x: Array) -> Array:
    return norms[index](x) if len(norms) else x


class MLP(nnx.Module):
    """Fully connected layers with ReLU between them; without hidden layers, multinomial logistic regression.

    Paths: layers/I, norms/I (between layer I and its ReLU).
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int], classes: int, norm: str | None = None, *, rngs: nnx.Rngs
    ) -> None:
        widths = [inputs, *hidden, classes]
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.norms = _norms(norm, hidden, rngs)

    def features(self, x: Array) -> Array:
        """x [B, ...] -> the inputs of the last layer [B, width of the last hidden one]."""
        x = x.reshape(x.shape[0], -1)
        for index, layer in enumerate(self.layers[:-1]):
            x = nnx.relu(_normed(self.norms, index, layer(x)))
        return x

    def __call__(self, x: Array) -> Array:
        """x [B, ...] -> logits [B, classes]."""
        return self.layers[-1](self.features(x))


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


def double(x: Array) -> Array:
    """Every pixel of [B, H, W, C] four times: [B, 2 H, 2 W, C]."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class Residual(nnx.Module):
    """x + f(x), where f is twice: normalisation, ReLU, 3 x 3 convolution.

    Source: He, Zhang, Ren, Sun (2016), "Identity mappings in deep residual networks". Paths: convs/I, norms/I.
    """

    def __init__(self, channels: int, norm: str | None, *, rngs: nnx.Rngs) -> None:
        self.convs = nnx.List([Conv(channels, channels, rngs=rngs) for _ in range(2)])
        self.norms = _norms(norm, [channels] * 2, rngs)

    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> the same shape."""
        y = x
        for index, conv in enumerate(self.convs):
            y = conv(nnx.relu(_normed(self.norms, index, y)))
        return x + y


class CNN(nnx.Module):
    """Blocks of 3 x 3 convolution, ReLU and 2 x 2 max pooling, then a linear layer.

    Paths: blocks/I, norms/I (between block I and its ReLU), residuals/I (between block I and its norm), head (after a
    dropout).
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: Sequence[int],
        classes: int,
        norm: str | None = None,
        dropout: float = 0.0,
        residual: bool = False,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        height, width, inputs = shape
        widths = [inputs, *channels]
        self.blocks = nnx.List([Conv(a, b, rngs=rngs) for a, b in itertools.pairwise(widths)])
        scale = 2 ** len(channels)
        self.head = nnx.Linear((height // scale) * (width // scale) * widths[-1], classes, rngs=rngs)
        self.norms = _norms(norm, channels, rngs)
        self.residuals = nnx.List([Residual(c, norm, rngs=rngs) for c in channels] if residual else [])
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None

    def maps(self, x: Array) -> Array:
        """x [B, H, W, C] -> what the last block gives [B, h, w, channels]."""
        for index, block in enumerate(self.blocks):
            x = block(x)
            if len(self.residuals):
                x = self.residuals[index](x)
            x = max_pool(nnx.relu(_normed(self.norms, index, x)))
        return x

    def features(self, x: Array) -> Array:
        """x [B, H, W, C] -> the inputs of the head, before dropout [B, pixels * channels]."""
        return self.maps(x).reshape(x.shape[0], -1)

    def from_maps(self, maps: Array) -> Array:
        """maps [B, h, w, channels] -> logits [B, classes]."""
        x = maps.reshape(maps.shape[0], -1)
        return self.head(x if self.dropout is None else self.dropout(x))

    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> logits [B, classes]."""
        return self.from_maps(self.maps(x))


class Twice(nnx.Module):
    """Twice a 3 x 3 convolution, normalisation and ReLU. Paths: convs/I, norms/I."""

    def __init__(self, inputs: int, outputs: int, norm: str | None, *, rngs: nnx.Rngs) -> None:
        self.convs = nnx.List([Conv(a, outputs, rngs=rngs) for a in (inputs, outputs)])
        self.norms = _norms(norm, [outputs] * 2, rngs)

    def __call__(self, x: Array) -> Array:
        """x [B, H, W, inputs] -> [B, H, W, outputs]."""
        for index, conv in enumerate(self.convs):
            x = nnx.relu(_normed(self.norms, index, conv(x)))
        return x


class UNet(nnx.Module):
    """A U-Net: halved by max pooling, doubled by repetition, with what was there at each size put beside it.

    Sizes that can't be halved so often are padded with zeros below and on the right, and cut off at the end.
    Source: Ronneberger, Fischer, Brox (2015). Paths: encoder/I (0: full size), decoder/I (0: smallest size), each with
    convs/J and norms/J; head.
    """

    def __init__(
        self, inputs: int, channels: Sequence[int], classes: int, norm: str | None = None, *, rngs: nnx.Rngs
    ) -> None:
        pairs, back = itertools.pairwise([inputs, *channels]), itertools.pairwise(channels[::-1])
        self.encoder = nnx.List([Twice(a, b, norm, rngs=rngs) for a, b in pairs])
        self.decoder = nnx.List([Twice(deep + flat, flat, norm, rngs=rngs) for deep, flat in back])
        self.head = nnx.Linear(channels[0], classes, rngs=rngs)

    def encoded(self, x: Array) -> list[Array]:
        """x [B, H, W, C] -> what the encoder gives at each size, the smallest last."""
        _, height, width, _ = x.shape
        whole = 2 ** len(self.decoder)
        x = jnp.pad(x, ((0, 0), (0, -height % whole), (0, -width % whole), (0, 0)))
        found = []
        for index, block in enumerate(self.encoder):
            x = block(max_pool(x) if index else x)
            found.append(x)
        return found

    def features(self, x: Array) -> Array:
        """x [B, H, W, C] -> what the encoder gives at the smallest size [B, h, w, channels]."""
        return self.encoded(x)[-1]

    def maps(self, x: Array) -> Array:
        """x [B, H, W, C] -> the inputs of the head [B, H, W, channels]."""
        _, height, width, _ = x.shape
        *beside, x = self.encoded(x)
        for block in self.decoder:
            x = block(jnp.concatenate([double(x), beside.pop()], axis=-1))
        return x[:, :height, :width, :]

    def from_maps(self, maps: Array) -> Array:
        """maps [B, H, W, channels] -> logits [B, H, W, classes]."""
        return self.head(maps)

    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> logits [B, H, W, classes]."""
        return self.from_maps(self.maps(x))


def logistic(shape: tuple[int, ...], classes: int) -> Make:
    """Multinomial logistic regression."""
    return mlp(shape, classes, hidden=())


def mlp(shape: tuple[int, ...], classes: int, hidden: Sequence[int] = (64,), norm: str | None = None) -> Make:
    """A fully connected network with `hidden` layer widths; norm: one of NORMS, or None. Raises ConfigError."""
    for width in hidden:
        positive(hidden=width)
    _check_norm(norm)
    return lambda rngs: MLP(math.prod(shape), hidden, classes, norm, rngs=rngs)


def cnn(
    shape: tuple[int, ...],
    classes: int,
    channels: Sequence[int] = (16, 32),
    norm: str | None = None,
    dropout: float = 0.0,
    residual: bool = False,
) -> Make:
    """A convolutional network for images [H, W, C] with a block per entry of `channels`.

    norm: one of NORMS, or None. dropout: the share of the inputs of the last layer that a local step leaves out.
    residual: with a residual block after each convolution. Raises ConfigError.
    """
    _check_images("cnn", shape, channels, "Use mlp.")
    _check_norm(norm)
    _check_channels(channels, norm)
    share(dropout=dropout)
    if min(shape[:2]) < 2 ** len(channels):
        raise ConfigError(f"model cnn: {len(channels)} blocks halve a {shape[0]} x {shape[1]} image to nothing")
    return lambda rngs: CNN(shape, channels, classes, norm, dropout, residual, rngs=rngs)


def unet(shape: tuple[int, ...], classes: int, channels: Sequence[int] = (16, 32), norm: str | None = None) -> Make:
    """A network for the segmentation of images [H, W, C], each entry of `channels` at half the size of the one before.

    norm: one of NORMS, or None. Raises ConfigError.
    """
    _check_images("unet", shape, channels, "Use another model.")
    _check_norm(norm)
    _check_channels(channels, norm)
    if not channels:
        raise ConfigError("channels=(): must have one entry or more; give one for each size of the image")
    if min(shape[:2]) < 2 ** (len(channels) - 1):
        raise ConfigError(
            f"model unet: {len(channels)} channels halve a {shape[0]} x {shape[1]} image {len(channels) - 1} times, "
            "to nothing; give fewer"
        )
    return lambda rngs: UNet(shape[2], channels, classes, norm, rngs=rngs)


def _check_channels(channels: Sequence[int], norm: str | None) -> None:
    # XLA on the CPU (of jax 0.10.2) compiles a wrong gradient of the convolution before such a normalisation
    if norm == "batch" and 1 in channels:
        raise ConfigError(
            f"channels={tuple(channels)!r}: a single channel can't be normalised by batch; use two or more"
        )


def _check_images(name: str, shape: tuple[int, ...], channels: Sequence[int], way_out: str) -> None:
    if len(shape) != 3:
        raise ConfigError(
            f"model {name}: needs images [height, width, channels]; the data has shape {list(shape)}. {way_out}"
        )
    for width in channels:
        positive(channels=width)


def _check_norm(norm: str | None) -> None:
    if norm is not None:
        one_of(NORMS, norm=norm)


MODELS: Mapping[str, Callable[..., Make]] = MappingProxyType(
    {"logistic": logistic, "mlp": mlp, "cnn": cnn, "unet": unet}
)
"""The built-in models by name."""
