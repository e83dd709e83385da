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
    """A convolution over two axes or three, stride 1, zero padding, written as shifted slices and one matrix product.

    The same function as nnx.Conv. XLA:CPU runs this form several times faster inside a loop over local steps, and many
    times faster with a weight per node. Over three axes only the slices of a plane are laid beside each other, nine for
    a size of 3 and not 27: the product is taken for each shift along the first axis at once, and its parts are shifted
    and added up. kernel [size ** axes * inputs, outputs].
    """

    def __init__(self, inputs: int, outputs: int, size: int = 3, axes: int = 2, *, rngs: nnx.Rngs) -> None:
        self.size, self.axes = size, axes
        kernel = nnx.initializers.lecun_normal()(rngs.params(), (size**axes * inputs, outputs), jnp.float32)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(self, x: Array) -> Array:
        """x [B, ..., inputs] -> [B, ..., outputs], with as many axes between as the convolution has."""
        *_, height, width, _ = x.shape
        before = (self.size - 1) // 2
        pad = (before, self.size - 1 - before)
        padded = jnp.pad(x, ((0, 0), *(pad,) * self.axes, (0, 0)))
        slices = [padded[..., i : i + height, j : j + width, :] for i in range(self.size) for j in range(self.size)]
        plane, kernel = jnp.concatenate(slices, axis=-1), self.kernel[...]
        bias = self.bias[...].reshape(*(1,) * (x.ndim - 1), -1)
        if self.axes == 2:
            return plane @ kernel + bias
        outputs = kernel.shape[-1]
        beside = kernel.reshape(self.size, -1, outputs).swapaxes(0, 1).reshape(-1, self.size * outputs)
        product, depth = plane @ beside, x.shape[1]
        parts = [product[:, i : i + depth, ..., i * outputs : (i + 1) * outputs] for i in range(self.size)]
        return sum(parts[1:], parts[0]) + bias


def max_pool(x: Array) -> Array:
    """Max pooling by two along every axis of [B, ..., C] between; what is odd at an end is left out."""
    batch, *space, channels = x.shape
    x = x[:, *(slice(length // 2 * 2) for length in space), :]
    halves = [size for length in space for size in (length // 2, 2)]
    return x.reshape(batch, *halves, channels).max(axis=tuple(range(2, 2 * len(space) + 1, 2)))


def double(x: Array) -> Array:
    """Every pixel of [B, ..., C] twice along every axis between: [B, 2 H, 2 W, C] of [B, H, W, C]."""
    for axis in range(1, x.ndim - 1):
        x = jnp.repeat(x, 2, axis=axis)
    return x


class Residual(nnx.Module):
    """x + f(x), where f is twice: normalisation, ReLU, convolution of size 3.

    Source: He, Zhang, Ren, Sun (2016), "Identity mappings in deep residual networks". Paths: convs/I, norms/I.
    """

    def __init__(self, channels: int, norm: str | None, axes: int = 2, *, rngs: nnx.Rngs) -> None:
        self.convs = nnx.List([Conv(channels, channels, axes=axes, rngs=rngs) for _ in range(2)])
        self.norms = _norms(norm, [channels] * 2, rngs)

    def __call__(self, x: Array) -> Array:
        """x [B, ..., C] -> the same shape."""
        y = x
        for index, conv in enumerate(self.convs):
            y = conv(nnx.relu(_normed(self.norms, index, y)))
        return x + y


class CNN(nnx.Module):
    """Blocks of convolution of size 3, ReLU and max pooling by 2, then a linear layer; over two axes or three.

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
        *space, inputs = shape
        widths, axes = [inputs, *channels], len(space)
        self.blocks = nnx.List([Conv(a, b, axes=axes, rngs=rngs) for a, b in itertools.pairwise(widths)])
        scale = 2 ** len(channels)
        self.head = nnx.Linear(math.prod(length // scale for length in space) * widths[-1], classes, rngs=rngs)
        self.norms = _norms(norm, channels, rngs)
        self.residuals = nnx.List([Residual(c, norm, axes, rngs=rngs) for c in channels] if residual else [])
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None

    def features(self, x: Array) -> Array:
        """x [B, H, W, C] or [B, D, H, W, C] -> the inputs of the head, before dropout [B, pixels * channels]."""
        for index, block in enumerate(self.blocks):
            x = block(x)
            if len(self.residuals):
                x = self.residuals[index](x)
            x = max_pool(nnx.relu(_normed(self.norms, index, x)))
        return x.reshape(x.shape[0], -1)

    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> logits [B, classes]."""
        x = self.features(x)
        return self.head(x if self.dropout is None else self.dropout(x))


class Twice(nnx.Module):
    """Twice a convolution of size 3, normalisation and ReLU. Paths: convs/I, norms/I."""

    def __init__(self, inputs: int, outputs: int, norm: str | None, axes: int = 2, *, rngs: nnx.Rngs) -> None:
        self.convs = nnx.List([Conv(a, outputs, axes=axes, rngs=rngs) for a in (inputs, outputs)])
        self.norms = _norms(norm, [outputs] * 2, rngs)

    def __call__(self, x: Array) -> Array:
        """x [B, ..., inputs] -> [B, ..., outputs]."""
        for index, conv in enumerate(self.convs):
            x = nnx.relu(_normed(self.norms, index, conv(x)))
        return x


class UNet(nnx.Module):
    """A U-Net: halved by max pooling, doubled by repetition, with what was there at each size put beside it.

    Sizes that can't be halved so often are padded with zeros at their ends, and cut off at last. Over two axes, or over
    the three of a volume. Sources: Ronneberger, Fischer, Brox (2015); over three axes Cicek et al. (2016), "3D U-Net".
    Paths: encoder/I (0: full size), decoder/I (0: smallest size), each with convs/J and norms/J; head.
    """

    def __init__(
        self,
        inputs: int,
        channels: Sequence[int],
        classes: int,
        norm: str | None = None,
        axes: int = 2,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        pairs, back = itertools.pairwise([inputs, *channels]), itertools.pairwise(channels[::-1])
        self.encoder = nnx.List([Twice(a, b, norm, axes, rngs=rngs) for a, b in pairs])
        self.decoder = nnx.List([Twice(deep + flat, flat, norm, axes, rngs=rngs) for deep, flat in back])
        self.head = nnx.Linear(channels[0], classes, rngs=rngs)

    def encoded(self, x: Array) -> list[Array]:
        """x [B, H, W, C] or [B, D, H, W, C] -> what the encoder gives at each size, the smallest last."""
        whole = 2 ** len(self.decoder)
        x = jnp.pad(x, ((0, 0), *((0, -length % whole) for length in x.shape[1:-1]), (0, 0)))
        found = []
        for index, block in enumerate(self.encoder):
            x = block(max_pool(x) if index else x)
            found.append(x)
        return found

    def features(self, x: Array) -> Array:
        """x [B, ..., C] -> what the encoder gives at the smallest size, [B, h, w, channels] of [B, H, W, C]."""
        return self.encoded(x)[-1]

    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> logits [B, H, W, classes]; [B, D, H, W, C] -> [B, D, H, W, classes]."""
        space = x.shape[1:-1]
        *beside, x = self.encoded(x)
        for block in self.decoder:
            x = block(jnp.concatenate([double(x), beside.pop()], axis=-1))
        outputs: Array = self.head(x)[:, *(slice(length) for length in space), :]
        return outputs


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
    _check_images("cnn", shape, channels, (3,), "Use cnn3d." if len(shape) == 4 else "Use mlp.")
    return _cnn("cnn", shape, classes, channels, norm, dropout, residual)


def cnn3d(
    shape: tuple[int, ...],
    classes: int,
    channels: Sequence[int] = (16, 32),
    norm: str | None = None,
    dropout: float = 0.0,
    residual: bool = False,
) -> Make:
    """The same for volumes [D, H, W, C]: convolutions and pooling along all three axes. Raises ConfigError.

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> make = cnn3d((8, 8, 8, 1), classes=3)
    >>> jax.eval_shape(lambda x: make(nnx.Rngs(0))(x), jnp.zeros((2, 8, 8, 8, 1))).shape
    (2, 3)
    """
    _check_images("cnn3d", shape, channels, (4,), "Use cnn." if len(shape) == 3 else "Use mlp.")
    return _cnn("cnn3d", shape, classes, channels, norm, dropout, residual)


def _cnn(
    name: str, shape: tuple[int, ...], classes: int, channels: Sequence[int], norm: str | None, dropout: float,
    residual: bool,
) -> Make:  # fmt: skip
    _check_norm(norm)
    _check_channels(channels, norm)
    share(dropout=dropout)
    if min(shape[:-1]) < 2 ** len(channels):
        raise ConfigError(f"model {name}: {len(channels)} blocks halve {_image(shape)} to nothing")
    return lambda rngs: CNN(shape, channels, classes, norm, dropout, residual, rngs=rngs)


def unet(shape: tuple[int, ...], classes: int, channels: Sequence[int] = (16, 32), norm: str | None = None) -> Make:
    """A network for the segmentation of images [H, W, C] or volumes [D, H, W, C].

    Each entry of `channels` is at half the size of the one before. norm: one of NORMS, or None. Raises ConfigError.
    """
    _check_images("unet", shape, channels, (3, 4), "Use another model.")
    _check_norm(norm)
    _check_channels(channels, norm)
    if not channels:
        raise ConfigError("channels=(): must have one entry or more; give one for each size of the image")
    if min(shape[:-1]) < 2 ** (len(channels) - 1):
        raise ConfigError(
            f"model unet: {len(channels)} channels halve {_image(shape)} {len(channels) - 1} times, to nothing; give "
            "fewer"
        )
    return lambda rngs: UNet(shape[-1], channels, classes, norm, len(shape) - 1, rngs=rngs)


def _image(shape: tuple[int, ...]) -> str:
    return f"a {' x '.join(map(str, shape[:-1]))} {'image' if len(shape) == 3 else 'volume'}"


def _check_channels(channels: Sequence[int], norm: str | None) -> None:
    # XLA on the CPU (of jax 0.10.2) compiles a wrong gradient of the convolution before such a normalisation
    if norm == "batch" and 1 in channels:
        raise ConfigError(
            f"channels={tuple(channels)!r}: a single channel can't be normalised by batch; use two or more"
        )


_OF_AXES = {3: "images [height, width, channels]", 4: "volumes [depth, height, width, channels]"}


def _check_images(
    name: str, shape: tuple[int, ...], channels: Sequence[int], axes: Sequence[int], way_out: str
) -> None:
    if len(shape) not in axes:
        needed = " or ".join(_OF_AXES[count] for count in axes)
        raise ConfigError(f"model {name}: needs {needed}; the data has shape {list(shape)}. {way_out}")
    for width in channels:
        positive(channels=width)


def _check_norm(norm: str | None) -> None:
    if norm is not None:
        one_of(NORMS, norm=norm)


MODELS: Mapping[str, Callable[..., Make]] = MappingProxyType(
    {"logistic": logistic, "mlp": mlp, "cnn": cnn, "cnn3d": cnn3d, "unet": unet}
)
"""The built-in models by name."""
