"""The models that an experiment can name: Flax NNX, small, and fast where XLA:CPU is slow.

Each maker takes the input's shape without the batch axis and the number of classes, which is that of outputs, and
returns a function `(nnx.Rngs) -> nnx.Module`.

Nodes can share a model in part, by the paths of its leaves: each module's text says them. Whatever `norm`, `dropout`
and `residual` add is made last, so that all other parameters start as without it. Each has a method `features`: what
its last part, a U-Net's decoder, takes in.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from flax import nnx

from p2pfl.check import at_least, one_of, positive, share
from p2pfl.errors import ConfigError
from p2pfl.types import Array

Make = Callable[[nnx.Rngs], nnx.Module]
MOMENTUM = 0.9
"""What a step leaves of the running mean and variance in batch normalisation."""
NORMS = ("batch", "group")
"""Batch normalisation (Ioffe and Szegedy 2015) and group normalisation (Wu and He 2018), the latter in two groups."""

STEMS = ("small", "large")
"""The first convolution of a ResNet: 3 x 3; or 7 x 7 with stride 2 and 3 x 3 max pooling, which quarters an image."""


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
    """A convolution over two axes or three, zero padding, written as shifted slices and one matrix product.

    The same function as nnx.Conv. XLA:CPU runs this form several times faster inside a loop over local steps, and many
    times faster with a weight per node. Over three axes only the slices of a plane are laid beside each other, nine for
    a size of 3 and not 27: the product is taken for each shift along the first axis at once, and its parts are shifted
    and added up. kernel [size ** axes * inputs, outputs]. With `stride` s, over two axes, only every s-th row and
    column is computed, from the first on.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 3,
        axes: int = 2,
        stride: int = 1,
        bias: bool = True,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.size, self.axes, self.stride = size, axes, stride
        kernel = nnx.initializers.lecun_normal()(rngs.params(), (size**axes * inputs, outputs), jnp.float32)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None

    def __call__(self, x: Array) -> Array:
        """x [B, ..., inputs] -> [B, ..., outputs], with as many axes between as the convolution has.

        Each is 1 / stride as long, rounded up.
        """
        kernel = self.kernel[...]
        if self.axes == 2:
            y = jnp.concatenate(shifted(x, self.size, self.stride), axis=-1) @ kernel
        else:
            outputs, depth, before = kernel.shape[-1], x.shape[1], (self.size - 1) // 2
            x = jnp.pad(x, ((0, 0), (before, self.size - 1 - before), *((0, 0),) * 3))
            plane = jnp.concatenate(shifted(x, self.size), axis=-1)
            beside = kernel.reshape(self.size, -1, outputs).swapaxes(0, 1).reshape(-1, self.size * outputs)
            product = plane @ beside
            parts = [product[:, i : i + depth, ..., i * outputs : (i + 1) * outputs] for i in range(self.size)]
            y = sum(parts[1:], parts[0])
        return y if self.bias is None else y + self.bias[...].reshape(*(1,) * (y.ndim - 1), -1)


def shifted(x: Array, size: int, stride: int = 1, fill: float = 0.0) -> list[Array]:
    """What a window of `size` x `size` sees of [..., H, W, C]: size * size arrays [..., H / stride, W / stride, C]."""
    *ahead, height, width, _ = x.shape
    before = (size - 1) // 2
    pad = (before, size - 1 - before)
    padded = jnp.pad(x, (*((0, 0),) * len(ahead), pad, pad, (0, 0)), constant_values=fill)
    down, right = ((-(-side // stride) - 1) * stride + 1 for side in (height, width))
    return [padded[..., i : i + down : stride, j : j + right : stride, :] for i in range(size) for j in range(size)]


def max_pool(x: Array) -> Array:
    """Max pooling by two along every axis of [B, ..., C] between; what is odd at an end is left out.

    The gradient goes to the larger of two, of equal ones to the first: by a choice, and not, as that of `jnp.max`, by
    who equals the maximum. XLA may compute both anew and round them unlike; then nobody equals it, and 0 / 0 is NaN.
    """
    for axis in range(1, x.ndim - 1):
        end = x.shape[axis] // 2 * 2
        first, second = (x[(*(slice(None),) * axis, slice(start, end, 2))] for start in (0, 1))
        x = jnp.where((first >= second) | jnp.isnan(first), first, second)
    return x


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

    def maps(self, x: Array) -> Array:
        """x [B, H, W, C] or [B, D, H, W, C] -> what the last block gives, [B, h, w, channels] of [B, H, W, C]."""
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
    the three of a volume. With `residual` its output is added to the image. Sources: Ronneberger, Fischer, Brox (2015);
    over three axes Cicek et al. (2016), "3D U-Net". Paths: encoder/I (0: full size), decoder/I (0: smallest size), each
    with convs/J and norms/J; head.
    """

    def __init__(
        self,
        inputs: int,
        channels: Sequence[int],
        classes: int,
        norm: str | None = None,
        axes: int = 2,
        residual: bool = False,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.residual = residual
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

    def maps(self, x: Array) -> Array:
        """x [B, ..., C] -> the inputs of the head [B, ..., channels], two axes or three between.

        With `residual` the image lies behind them, as further channels.
        """
        image, space = x, x.shape[1:-1]
        *beside, x = self.encoded(x)
        for block in self.decoder:
            x = block(jnp.concatenate([double(x), beside.pop()], axis=-1))
        x = x[:, *(slice(length) for length in space), :]
        return jnp.concatenate([x, image], axis=-1) if self.residual else x

    def from_maps(self, maps: Array) -> Array:
        """maps [B, ..., channels] -> outputs [B, ..., classes]."""
        inputs = self.head.in_features
        outputs = self.head(maps[..., :inputs])
        return outputs + maps[..., inputs:] if self.residual else outputs

    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> logits [B, H, W, classes]; [B, D, H, W, C] -> [B, D, H, W, classes]."""
        return self.from_maps(self.maps(x))


class BasicBlock(nnx.Module):
    """ReLU of s(x) + f(x): f is a 3 x 3 convolution, normalisation and ReLU, then a convolution and a normalisation.

    The first convolution has the stride. s is x itself, or where shapes differ a 1 x 1 convolution and a normalisation.
    Source: He, Zhang, Ren, Sun (2016), "Deep residual learning for image recognition". Paths: convs/I, norms/I, and
    where there is one, shortcut/conv and shortcut/norm.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str, *, rngs: nnx.Rngs) -> None:
        first = Conv(inputs, outputs, stride=stride, bias=False, rngs=rngs)
        self.convs = nnx.List([first, Conv(outputs, outputs, bias=False, rngs=rngs)])
        self.norms = _norms(norm, [outputs] * 2, rngs)
        other = stride > 1 or inputs != outputs
        self.shortcut = ConvNorm(inputs, outputs, 1, stride, norm, rngs=rngs) if other else None

    def __call__(self, x: Array) -> Array:
        """x [B, H, W, inputs] -> [B, H / stride, W / stride, outputs]."""
        y = nnx.relu(self.norms[0](self.convs[0](x)))
        y = self.norms[1](self.convs[1](y))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ConvNorm(nnx.Module):
    """A convolution without bias, and its normalisation. Paths: conv, norm."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, norm: str, *, rngs: nnx.Rngs) -> None:
        self.conv = Conv(inputs, outputs, size, stride=stride, bias=False, rngs=rngs)
        self.norm = _norms(norm, [outputs], rngs)[0]

    def __call__(self, x: Array) -> Array:
        """x [B, H, W, inputs] -> [B, H / stride, W / stride, outputs]."""
        return self.norm(self.conv(x))


class ResNetEncoder(nnx.Module):
    """A stem, and stages of basic blocks, each but the first at half the size of the one before.

    Paths: stem/conv, stem/norm, stages/I/J: block J of stage I.
    """

    def __init__(
        self, inputs: int, channels: Sequence[int], blocks: Sequence[int], norm: str, stem: str, *, rngs: nnx.Rngs
    ) -> None:
        self.pooled = stem == "large"
        size, stride = (7, 2) if self.pooled else (3, 1)
        self.stem = ConvNorm(inputs, channels[0], size, stride, norm, rngs=rngs)
        stages = []
        for index, (before, width) in enumerate(itertools.pairwise([channels[0], *channels])):
            first = BasicBlock(before, width, 2 if index else 1, norm, rngs=rngs)
            others = [BasicBlock(width, width, 1, norm, rngs=rngs) for _ in range(blocks[index] - 1)]
            stages.append(nnx.List([first, *others]))
        self.stages = nnx.List(stages)

    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, h, w, channels]."""
        x = nnx.relu(self.stem(x))
        if self.pooled:  # 3 x 3, stride 2; what lies outside is no maximum, after a ReLU
            x = functools.reduce(jnp.maximum, shifted(x, 3, 2))
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return x


class ResNet(nnx.Module):
    """A residual network: an encoder, the mean over all places, a linear layer. Paths: encoder, head."""

    def __init__(
        self,
        inputs: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        classes: int,
        norm: str,
        stem: str,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.encoder = ResNetEncoder(inputs, channels, blocks, norm, stem, rngs=rngs)
        self.head = nnx.Linear(channels[-1], classes, rngs=rngs)

    def maps(self, x: Array) -> Array:
        """x [B, H, W, C] -> the encoder's output [B, h, w, channels]."""
        return self.encoder(x)

    def features(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, channels], the mean of the encoder's output over all places."""
        return self.maps(x).mean(axis=(1, 2))

    def from_maps(self, maps: Array) -> Array:
        """maps [B, h, w, channels] -> logits [B, classes]."""
        return self.head(maps.mean(axis=(1, 2)))

    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> logits [B, classes]."""
        return self.from_maps(self.maps(x))


class NodeFeatures(nnx.Module):
    """An encoder that gives features of their own for each label: blocks of a CNN, then a layer for each label.

    Paths: blocks/I, norms/I (between block I and its ReLU), nodes.
    """

    def __init__(
        self, shape: tuple[int, ...], channels: Sequence[int], labels: int, width: int, norm: str | None = None, *,
        rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        height, wide, inputs = shape
        self.blocks = nnx.List([Conv(a, b, rngs=rngs) for a, b in itertools.pairwise([inputs, *channels])])
        scale = 2 ** len(channels)
        self.nodes = nnx.Linear((height // scale) * (wide // scale) * channels[-1], labels * width, rngs=rngs)
        self.norms = _norms(norm, channels, rngs)
        self.width = width

    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, labels, width]."""
        for index, block in enumerate(self.blocks):
            x = max_pool(nnx.relu(_normed(self.norms, index, block(x))))
        return nnx.relu(self.nodes(x.reshape(x.shape[0], -1))).reshape(x.shape[0], -1, self.width)


PAIRS = 4
"""Numbers that are known of an edge between two labels: shares of rows with both, with neither, with one, the other."""


class EdgeConvolution(nnx.Module):
    """A graph convolution whose weights depend on the edge: x_i <- x_i K + b + mean over j of x_j M(e_ij).

    M(e) = tanh(e E + c), as a matrix. Source: Gilmer, Schoenholz, Riley, Vinyals, Dahl, "Neural message passing for
    quantum chemistry" (2017). Paths: own, edges.
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs) -> None:
        self.own = nnx.Linear(inputs, outputs, rngs=rngs)
        self.edges = nnx.Linear(PAIRS, inputs * outputs, rngs=rngs)
        self.shape = (inputs, outputs)

    def __call__(self, x: Array, edges: Array) -> Array:
        """x [B, L, inputs], edges [L, L, PAIRS] -> [B, L, outputs]; no label has an edge to itself."""
        labels = x.shape[1]
        others = (1 - jnp.eye(labels, dtype=x.dtype))[:, :, None, None]
        weights = jnp.tanh(self.edges(edges)).reshape(labels, labels, *self.shape) * others
        heard = jnp.einsum("bjc,ijcd->bid", x, weights) / max(labels - 1, 1)
        return self.own(x) + heard


class LabelGraph(nnx.Module):
    """A graph network over labels, which all have edges to one another; `pairs` says how they go together.

    Paths: layers/I, the last one to one number for each label; of what is carried, pairs [L, L, PAIRS].
    """

    def __init__(self, labels: int, width: int, depth: int, *, rngs: nnx.Rngs) -> None:
        widths = [width] * depth + [1]
        self.layers = nnx.List([EdgeConvolution(width, out, rngs=rngs) for out in widths])
        self.pairs = nnx.Variable(jnp.zeros((labels, labels, PAIRS), jnp.float32))

    def __call__(self, x: Array) -> Array:
        """x [B, L, width] -> [B, L]."""
        edges = self.pairs[...].astype(x.dtype)
        for layer in self.layers[:-1]:
            x = x + nnx.relu(layer(x, edges))
        return self.layers[-1](x, edges)[..., 0]


class CnnGnn(nnx.Module):
    """A CNN that gives features for each label, and a graph network that says by them which labels there are.

    Source: Chakravarty, Kar, Sethuraman, Sheet, "Federated learning for site aware chest radiograph screening" (2021),
    and the authors' program; one layer for each label instead of two, without their normalisations, and no layer that
    makes three channels of one. Paths: encoder, gnn.
    """

    def __init__(
        self, shape: tuple[int, ...], channels: Sequence[int], labels: int, width: int, depth: int,
        norm: str | None = None, *, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        self.encoder = NodeFeatures(shape, channels, labels, width, norm, rngs=rngs)
        self.gnn = LabelGraph(labels, width, depth, rngs=rngs)

    def features(self, x: Array) -> Array:
        """x [B, H, W, C] -> the features of each label [B, labels, width]."""
        return self.encoder(x)

    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> logits [B, labels]."""
        return self.gnn(self.encoder(x))


class Trunk(nnx.Module):
    """Blocks of a CNN, if any, then fully connected layers, each with ReLU. Paths: blocks/I, layers/I."""

    def __init__(
        self, shape: tuple[int, ...], channels: Sequence[int], hidden: Sequence[int], *, rngs: nnx.Rngs
    ) -> None:
        self.blocks = nnx.List([Conv(a, b, rngs=rngs) for a, b in itertools.pairwise([shape[-1], *channels])])
        scale = 2 ** len(channels)
        flat = math.prod(length // scale for length in shape[:-1]) * [shape[-1], *channels][-1]
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise([flat, *hidden])])
        self.width = [flat, *hidden][-1]

    def __call__(self, x: Array) -> Array:
        """x [B, ...] -> [B, width]."""
        for block in self.blocks:
            x = max_pool(nnx.relu(block(x)))
        x = x.reshape(x.shape[0], -1)
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return x


class GatedHead(nnx.Module):
    """The part of one task: a gate that says whom of the experts to hear, and a layer for its outputs.

    Paths: gate, head.
    """

    def __init__(self, inputs: int, experts: int, width: int, outputs: int, *, rngs: nnx.Rngs) -> None:
        self.gate = nnx.Linear(inputs, experts, use_bias=False, rngs=rngs)
        self.head = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: Array, heard: Array) -> Array:
        """x [B, inputs], what the experts say [B, experts, width] -> [B, outputs]."""
        return self.head(jnp.einsum("be,bew->bw", nnx.softmax(self.gate(x)), heard))


class MultiGate(nnx.Module):
    """A trunk, experts for all tasks, and for each task a gate over them and a head.

        y_t = head_t(sum over experts e of g_te(h) relu(A_e h + b_e)),     g_t(h) = softmax(G_t h),     h = encoder(x)

    Source: Ma, Zhao, Yi, Chen, Hong, Chi, "Modeling task relationships in multi-task learning with multi-gate
    mixture-of-experts" (2018), whose towers of several layers are one layer here. Paths: encoder,
    experts (kernel [features, experts * width]), tasks/T with gate and head.
    """

    def __init__(
        self, shape: tuple[int, ...], channels: Sequence[int], hidden: Sequence[int], groups: Sequence[Sequence[int]],
        experts: int, width: int, *, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        self.encoder = Trunk(shape, channels, hidden, rngs=rngs)
        inputs = self.encoder.width
        self.experts = nnx.Linear(inputs, experts * width, rngs=rngs)
        self.tasks = nnx.List([GatedHead(inputs, experts, width, len(group), rngs=rngs) for group in groups])
        listed = [each for group in groups for each in group]
        self.order = tuple(listed.index(each) for each in range(len(listed)))
        self.shape = (experts, width)

    def features(self, x: Array) -> Array:
        """x [B, ...] -> what the encoder gives [B, features]."""
        return self.encoder(x)

    def __call__(self, x: Array) -> Array:
        """x [B, ...] -> logits [B, classes]."""
        x = self.encoder(x)
        heard = nnx.relu(self.experts(x)).reshape(x.shape[0], *self.shape)
        outputs = jnp.concatenate([task(x, heard) for task in self.tasks], axis=-1)
        return jnp.stack([outputs[:, place] for place in self.order], axis=-1)


class CrossNetwork(nnx.Module):
    """Products of inputs, of one degree more with each layer: x_l+1 = x_0 (x_l . w_l) + b_l + x_l.

    Source: Wang, Fu, Fu, Wang, "Deep & cross network for ad click predictions" (2017), equation 3. Paths: layers/I (w_l
    as a kernel [inputs, 1]), biases/I.
    """

    def __init__(self, inputs: int, depth: int, *, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(inputs, 1, use_bias=False, rngs=rngs) for _ in range(depth)])
        self.biases = nnx.List([nnx.Param(jnp.zeros((inputs,), jnp.float32)) for _ in range(depth)])

    def __call__(self, x: Array) -> Array:
        """x [B, inputs] -> the same shape."""
        first = x
        for layer, bias in zip(self.layers, self.biases, strict=True):
            x = first * layer(x) + bias[...][None] + x
        return x


class Fusion(nnx.Module):
    """A network for a picture and the columns beside it: an encoder of the picture, crossed with the columns.

    The mean of a ResNet's encoder over all places is laid beside the columns; a cross network and fully connected
    layers see both, and a linear layer takes in what they give. Sources: Dayan et al., "Federated learning for
    predicting clinical outcomes in patients with COVID-19" (2021), EXAM, whose ResNet-34 has spatial attention between
    its convolutions besides, and which embeds categories where here they are columns of 0 and 1; Wang et al. (2017).
    Rows are flat, as `p2pfl.data.dataset` has them. Paths: encoder, cross, deep/I, head.
    """

    def __init__(
        self, picture: tuple[int, ...], columns: int, channels: Sequence[int], blocks: Sequence[int], norm: str,
        stem: str, hidden: Sequence[int], crosses: int, classes: int, *, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        self.picture, self.columns = tuple(picture), columns
        self.encoder = ResNetEncoder(picture[-1], channels, blocks, norm, stem, rngs=rngs)
        both = columns + channels[-1]
        self.cross = CrossNetwork(both, crosses, rngs=rngs)
        self.deep = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise([both, *hidden])])
        self.head = nnx.Linear(both + (hidden[-1] if hidden else 0), classes, rngs=rngs)

    def features(self, x: Array) -> Array:
        """x [B, columns + picture] -> what cross network and layers give [B, columns + channels + hidden]."""
        pixels = x[:, self.columns :].reshape(x.shape[0], *self.picture)
        both = jnp.concatenate([x[:, : self.columns], self.encoder(pixels).mean(axis=(1, 2))], axis=1)
        crossed, deep = self.cross(both), both
        for layer in self.deep:
            deep = nnx.relu(layer(deep))
        return jnp.concatenate([crossed, deep], axis=1) if len(self.deep) else crossed

    def __call__(self, x: Array) -> Array:
        """x [B, columns + picture] -> logits [B, classes]."""
        return self.head(self.features(x))


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


def unet(
    shape: tuple[int, ...],
    classes: int,
    channels: Sequence[int] = (16, 32),
    norm: str | None = None,
    residual: bool = False,
) -> Make:
    """A network from images [H, W, C] to images, or volumes [D, H, W, C]: for segmentation and reconstruction.

    Each entry of `channels` is at half the size of the one before. norm: one of NORMS, or None. residual: what it puts
    out is added to the image, so that of a reconstruction only what is wrong with the image has to be learned. Raises
    ConfigError.
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
    if residual and shape[-1] != classes:
        raise ConfigError(
            f"residual=true: adds an image of {shape[-1]} channels to an output of {classes}; is for reconstruction"
        )
    return lambda rngs: UNet(shape[-1], channels, classes, norm, len(shape) - 1, residual, rngs=rngs)


def _image(shape: tuple[int, ...]) -> str:
    return f"a {' x '.join(map(str, shape[:-1]))} {'image' if len(shape) == 3 else 'volume'}"


def resnet(
    shape: tuple[int, ...],
    classes: int,
    channels: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    norm: str | None = None,
    stem: str = "small",
) -> Make:
    """A residual network of basic blocks for images [H, W, C]; ResNet-18 has channels 64, 128, 256, 512.

    channels: of each stage, each at half the size of the one before; None: 16, 32, 64, 128. blocks: of each stage;
    None: two. norm: one of NORMS; None: group. stem: one of STEMS. Raises ConfigError.
    """
    _check_images("resnet", shape, (), (3,), "Use cnn3d." if len(shape) == 4 else "Use mlp.")
    channels, depth, norm = _stages("resnet", channels, blocks, norm, stem)
    return lambda rngs: ResNet(shape[2], channels, depth, classes, norm, stem, rngs=rngs)


def fusion(
    shape: tuple[int, ...],
    classes: int,
    picture: tuple[int, ...] = (),
    channels: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    norm: str | None = None,
    stem: str = "small",
    hidden: Sequence[int] = (64,),
    crosses: int = 2,
) -> Make:
    """A network for columns and a picture in one row [columns + H * W * C]; `picture`: (H, W, C), of the data.

    channels, blocks, norm, stem: of the picture's encoder, as of `resnet`. hidden: widths of the fully connected
    layers; crosses: layers of the cross network, of either 0 or more, but not of both none. Raises ConfigError.

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> make = fusion((5 + 8 * 8 * 1,), 2, picture=(8, 8, 1), channels=(4, 8), hidden=(16,))
    >>> jax.eval_shape(lambda x: make(nnx.Rngs(0))(x), jnp.zeros((3, 69))).shape
    (3, 2)
    """
    if not picture or len(shape) != 1:
        raise ConfigError(
            f"model fusion: needs rows of columns with a picture behind them (data.picture of source='csv'); a row of "
            f"the data has shape {list(shape)} and no picture. Use {'mlp' if len(shape) == 1 else 'cnn or resnet'}"
        )
    channels, depth, norm = _stages("fusion", channels, blocks, norm, stem)
    for width in hidden:
        positive(hidden=width)
    at_least(0, crosses=crosses)
    if not hidden and not crosses:
        raise ConfigError("hidden=[] and crosses=0: a picture and its columns would never meet; give one of them")
    columns = shape[0] - math.prod(picture)
    return lambda rngs: Fusion(
        picture, columns, channels, depth, norm, stem, hidden, crosses, classes, rngs=rngs
    )  # fmt: skip


def cnn_gnn(
    shape: tuple[int, ...],
    classes: int,
    channels: Sequence[int] = (16, 32),
    width: int = 16,
    depth: int = 2,
    norm: str | None = None,
) -> Make:
    """A convolutional network with features for each label, and a graph network over the labels.

    `classes`: labels. channels: of the blocks. width: features of a label. depth: graph convolutions before the last.
    norm: one of NORMS, or None, in the blocks. How labels go together is filled in by the objective "label_graph".
    Raises ConfigError.
    """
    _check_images("cnn_gnn", shape, channels, (3,), "Use another model.")
    _check_norm(norm)
    _check_channels(channels, norm)
    positive(width=width, depth=depth)
    if not channels or min(shape[:2]) < 2 ** len(channels):
        raise ConfigError(
            f"model cnn_gnn: {len(channels)} blocks of a {shape[0]} x {shape[1]} image, each of which halves it; give "
            "one or more, and no more than that leaves something of it"
        )
    return lambda rngs: CnnGnn(shape, channels, classes, width, depth, norm, rngs=rngs)


def mmoe(
    shape: tuple[int, ...],
    classes: int,
    groups: Sequence[Sequence[int]] | None = None,
    channels: Sequence[int] | None = None,
    hidden: Sequence[int] = (64,),
    experts: int = 4,
    width: int = 16,
) -> Make:
    """A multi-gate mixture of experts, for several tasks of one trunk: use it with the objective "tasks".

    groups: of each task, its classes, each class in one; None: one task. channels: blocks of a CNN, for images; None:
    none. hidden: layers behind them. experts: how many, each of one layer of `width`. Raises ConfigError.

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> make = mmoe((8,), classes=4, groups=[[0, 3], [1, 2]])
    >>> jax.eval_shape(lambda x: make(nnx.Rngs(0))(x), jnp.zeros((2, 8))).shape
    (2, 4)
    """
    parts = [[*range(classes)]] if groups is None else [[*group] for group in groups]
    if not all(parts) or sorted(each for group in parts for each in group) != [*range(classes)]:
        raise ConfigError(
            f"groups={parts}: must name each of the {classes} classes, 0 to {classes - 1}, in one task, and give each "
            "task one or more"
        )
    positive(experts=experts, width=width)
    for size in hidden:
        positive(hidden=size)
    if channels:
        _check_images("mmoe", shape, channels, (3,), "Leave channels out.")
        if min(shape[:2]) < 2 ** len(channels):
            raise ConfigError(f"model mmoe: {len(channels)} blocks halve {_image(shape)} to nothing")
    return lambda rngs: MultiGate(shape, channels or (), hidden, parts, experts, width, rngs=rngs)


def _stages(
    name: str, channels: Sequence[int] | None, blocks: Sequence[int] | None, norm: str | None, stem: str
) -> tuple[Sequence[int], Sequence[int], str]:
    """Channels and blocks of each stage of a residual network, and its normalisation. Raises ConfigError."""
    channels = (16, 32, 64, 128) if channels is None else channels
    norm = "group" if norm is None else norm
    for width in channels:
        positive(channels=width)
    one_of(NORMS, norm=norm)
    one_of(STEMS, stem=stem)
    _check_channels(channels, norm)
    depth = (2,) * len(channels) if blocks is None else tuple(blocks)
    for number in depth:
        positive(blocks=number)
    if not channels or len(depth) != len(channels):
        raise ConfigError(
            f"model {name}: {len(channels)} channels and {len(depth)} blocks; give one of each for each stage"
        )
    return channels, depth, norm


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
    {
        "logistic": logistic,
        "mlp": mlp,
        "cnn": cnn,
        "cnn3d": cnn3d,
        "unet": unet,
        "resnet": resnet,
        "cnn_gnn": cnn_gnn,
        "mmoe": mmoe,
        "fusion": fusion,
    }
)
"""The built-in models by name."""
