"""A small conditional variational autoencoder: it learns what rows of each class look like, and makes others like them.

Of images [H, W, C] both halves are convolutions, of all other rows they are dense. The decoder alone makes
rows: of a class and of numbers z that are drawn from a standard normal distribution. Sources: Kingma, Welling,
"Auto-encoding variational Bayes" (2014); Sohn, Lee, Yan, "Learning structured output representation using deep
conditional generative models" (2015).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from p2pfl.learning.models import double, shifted
from p2pfl.types import Array, Key, Tree

ENOUGH = 4
"""Images are halved until no side is longer, and a decoder begins there."""
SMALL = 1e-6
"""The least mean square error that counts, and the least number of rows that are divided by."""
SPREAD = 6.0
"""The largest absolute value of the logarithm of a variance that an encoder says."""


class Sizes(NamedTuple):
    """The sizes of an autoencoder."""

    x: tuple[int, ...]  # shape of a row
    classes: int
    latent: int  # numbers z of a row
    hidden: int  # width of the dense layer next to z
    channels: int  # of each convolution, for images

    @property
    def halvings(self) -> int:
        """How often an image is halved."""
        longest = max(self.x[:-1], default=1)
        return max(math.ceil(math.log2(longest / ENOUGH)), 0)

    @property
    def images(self) -> bool:
        """Whether rows are images, of which both halves are convolutions."""
        return len(self.x) == 3

    @property
    def start(self) -> tuple[int, ...]:
        """The shape that a decoder's convolutions begin with."""
        by = 2**self.halvings
        return (*(-(-side // by) for side in self.x[:-1]), self.channels)


def autoencoder(key: Key, sizes: Sizes) -> Tree:
    """Draw the first parameters of an encoder and a decoder.

    Args:
        key: of the weights (LeCun's normal ones; biases are zero).
        sizes: of both.

    Returns:
        {"encoder": {"convs", "layers"}, "decoder": {"layers", "convs"}} in float32; each a dict of {"kernel", "bias"}.

    Example:
        >>> import jax
        >>> from p2pfl.methods.objectives.variational import Sizes, autoencoder
        >>> made = autoencoder(jax.random.key(0), Sizes((8, 8, 1), classes=3, latent=2, hidden=5, channels=4))
        >>> made["decoder"]["layers"]["0"]["kernel"].shape, made["decoder"]["convs"]["0"]["kernel"].shape
        ((5, 5), (36, 4))
    """

    def layers(which: int, *widths: tuple[int, int]) -> Tree:
        return _layers(jax.random.fold_in(key, which), *widths)

    def convs(which: int, *widths: tuple[int, int]) -> Tree:
        return convolutions(jax.random.fold_in(key, which), *widths)

    latent, hidden, channels = sizes.latent + sizes.classes, sizes.hidden, sizes.channels
    if not sizes.images:
        flat = math.prod(sizes.x)
        encoder = {"convs": {}, "layers": layers(0, (flat + sizes.classes, hidden), (hidden, 2 * sizes.latent))}
        return {"encoder": encoder, "decoder": {"layers": layers(1, (latent, hidden), (hidden, flat)), "convs": {}}}
    begins, colours = math.prod(sizes.start), sizes.x[-1]
    down = [(channels if i else colours, channels) for i in range(max(sizes.halvings, 1))]
    up = [(channels, channels)] * sizes.halvings
    encoder = {
        "convs": convs(0, *down),
        "layers": layers(1, (begins + sizes.classes, hidden), (hidden, 2 * sizes.latent)),
    }
    decoder = {"layers": layers(2, (latent, hidden), (hidden, begins)), "convs": convs(3, *up, (channels, colours))}
    return {"encoder": encoder, "decoder": decoder}


def encoded(encoder: Tree, sizes: Sizes, x: Array, classes: Array) -> tuple[Array, Array]:
    """Mean and log variance, [B, latent] each, of z given rows x [B, ...] and their classes [B, C] (0, 1)."""
    if sizes.images:
        stride = 2 if sizes.halvings else 1
        for index in range(len(encoder["convs"])):
            x = jax.nn.relu(convolved(encoder["convs"][str(index)], x, stride))
    h = jnp.concatenate([x.reshape(x.shape[0], -1), classes], axis=-1)
    h = jax.nn.relu(_dense(encoder["layers"]["0"], h))
    mean, spread = jnp.split(_dense(encoder["layers"]["1"], h), 2, axis=-1)
    return mean, jnp.clip(spread, -SPREAD, SPREAD)


def decoded(decoder: Tree, sizes: Sizes, z: Array, classes: Array) -> Array:
    """Rows [B, ...] of z [B, latent] and classes [B, C] (0, 1): the mean of what x is like."""
    h = jax.nn.relu(_dense(decoder["layers"]["0"], jnp.concatenate([z, classes], axis=-1)))
    h = _dense(decoder["layers"]["1"], h)
    if not sizes.images:
        return h.reshape(-1, *sizes.x)
    h = jax.nn.relu(h.reshape(-1, *sizes.start))
    last = len(decoder["convs"]) - 1
    for index in range(last):
        h = jax.nn.relu(convolved(decoder["convs"][str(index)], double(h)))
    h = convolved(decoder["convs"][str(last)], h)
    return h[:, : sizes.x[0], : sizes.x[1]]


def bound(network: Tree, sizes: Sizes, x: Array, classes: Array, weight: Array, key: Key) -> Array:
    """What is made small: the negative evidence lower bound of a batch, in nats a row, less a constant.

        D/2 log(mean square error) + KL(q(z | x, c) || N(0, 1))

    The variance of x given z is the one that fits best, one for all D numbers of a row, so that no weight between the
    two terms must be chosen. Source: Rybkin, Daniilidis, Levine, "Simple and effective VAE training with calibrated
    decoders" (2021), optimal sigma.

    Args:
        network: of `autoencoder`.
        sizes: of it.
        x: [B, ...] rows.
        classes: [B, C] 1 for the row's class, else 0.
        weight: [B] 0 for rows that are to have no part.
        key: of the draws of z.

    Returns:
        []

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from p2pfl.methods.objectives.variational import Sizes, autoencoder, bound
        >>> sizes = Sizes((6,), classes=2, latent=2, hidden=4, channels=0)
        >>> made = autoencoder(jax.random.key(0), sizes)
        >>> bound(made, sizes, jnp.ones((3, 6)), jnp.eye(2)[jnp.array([0, 1, 1])], jnp.ones(3), jax.random.key(1)).shape
        ()
    """
    mean, spread = encoded(network["encoder"], sizes, x, classes)
    z = mean + jnp.exp(spread / 2) * jax.random.normal(key, mean.shape, mean.dtype)
    error = (decoded(network["decoder"], sizes, z, classes) - x).reshape(x.shape[0], -1)
    rows = jnp.maximum(weight.sum(), SMALL)
    numbers = error.shape[1]
    square = (weight * (error**2).mean(axis=1)).sum() / rows
    divergence = ((mean**2 + jnp.exp(spread) - spread - 1) / 2).sum(axis=1)
    return numbers / 2 * jnp.log(square + SMALL) + (weight * divergence).sum() / rows


def convolutions(key: Key, *widths: tuple[int, int]) -> Tree:
    """Draw convolutions of size 3, of (inputs, outputs) channels each: {I: {"kernel", "bias"}}."""
    return _layers(key, *((9 * inputs, outputs) for inputs, outputs in widths))


def convolved(layer: Tree, x: Array, stride: int = 1) -> Array:
    """One of them, of [B, H, W, C] with zeros around, as p2pfl.learning.models.Conv computes it."""
    return jnp.concatenate(shifted(x, 3, stride), axis=-1) @ layer["kernel"] + layer["bias"].reshape(1, 1, 1, -1)


def _layers(key: Key, *widths: tuple[int, int]) -> Tree:
    draw = jax.nn.initializers.lecun_normal()
    return {
        str(index): {"kernel": draw(jax.random.fold_in(key, index), pair, jnp.float32),
                     "bias": jnp.zeros((pair[1],), jnp.float32)}
        for index, pair in enumerate(widths)
    }  # fmt: skip


def _dense(layer: Tree, x: Array) -> Array:
    return x @ layer["kernel"] + layer["bias"][None]
