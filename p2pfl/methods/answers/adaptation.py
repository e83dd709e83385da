"""Test-time adaptation of IOP-FL: what a model is made to do on inputs without labels, and a bank of models it mixes.

    least of   entropy(p(x)) + consistency |p(x) - p(x + noise)|^2                        of classes and labels
               10 entropy(p(x)) / log C + 0.1 |p(x) - back(p(turned(x + noise)))|^2 + 1e-6 |range(p(x))|     of images

p are the model's probabilities. Of a segmentation, images are turned by a multiple of 90 degrees and mirrored, and
masks turned back; "range" is, at each pixel, the largest less the smallest probability of what is not ground within a
window, so that shapes come out smooth; its norm is over all pixels. Source of that: Jiang, Yang, Chen, Dou, "IOP-FL:
inside-outside personalization for federated medical image segmentation" (2023) and its released code, whose window is
of 21 pixels in images of 384: here it is as large a part of the image.

Routing: layer by layer, the model is the mean of those of a bank (the personal models of sites, and the shared one)
with weights softmax(r), and r is found on the inputs. In the source the weights follow from each input, by two layers
with random numbers at first, for convolutions alone; here they are the site's, begin alike, and are of any layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp

from p2pfl.methods.answers import calibration
from p2pfl.types import Array, Key, Params, Tree

ENTROPY, STEADY, SMOOTH, WINDOW = 10.0, 0.1, 1e-6, 10 / 384
"""Of images: the weights of the three parts, and half of the window's side, as part of the image's."""

Predict = Callable[[Array], Array]


def loss(kind: str, noise: float, consistency: float) -> Callable[[Predict, Array, Key], Array]:
    """What is made least, of a function from inputs [B, ...] to outputs; `kind`: a name of CERTAIN."""
    certain = CERTAIN[kind]

    def noisy(x: Array, key: Key) -> Array:
        return x + noise * x.std() * jax.random.normal(key, x.shape, x.dtype)

    def plain(run: Predict, x: Array, key: Key) -> Array:
        entropy, p = certain(run(x))
        return entropy.mean() + consistency * ((p - certain(run(noisy(x, key)))[1]) ** 2).sum(axis=-1).mean()

    def masks(run: Predict, x: Array, key: Key) -> Array:
        entropy, p = certain(run(x))
        turn = jax.random.fold_in(key, 1)
        q = turned(certain(run(turned(noisy(x, key), turn)))[1], turn, back=True)
        steady = ((p - q) ** 2).mean()
        return ENTROPY * entropy.mean() / math.log(p.shape[-1]) + STEADY * steady + SMOOTH * rough(p[..., 1:])

    return masks if kind == "segmentation" else plain


def turned(x: Array, key: Key, back: bool = False) -> Array:
    """Images [B, H, W, C], all mirrored or not, and turned by one multiple of 90 degrees (180 where H != W)."""
    quarters, mirrored = jax.random.randint(key, (), 0, 4), jax.random.bernoulli(jax.random.fold_in(key, 1))
    step = 1 if x.shape[1] == x.shape[2] else 2

    def mirror(x: Array) -> Array:
        return jnp.where(mirrored, jnp.flip(x, axis=2), x)

    def turn(x: Array) -> Array:
        kept = [jnp.rot90(x, (-k if back else k) * step, axes=(1, 2)) for k in range(4 // step)]
        return jnp.select([quarters % (4 // step) == k for k in range(4 // step)], kept)

    return mirror(turn(x)) if back else turn(mirror(x))


def rough(p: Array) -> Array:
    """The norm over all pixels of the largest less the smallest of p [B, H, W, C] within a window."""
    half = [max(1, round(size * WINDOW)) for size in p.shape[1:-1]]
    window, pad = (1, *(2 * each + 1 for each in half), 1), ((0, 0), *((each, each) for each in half), (0, 0))
    ones = (1,) * p.ndim

    def most(p: Array) -> Array:
        return jax.lax.reduce_window(p, -jnp.inf, jax.lax.max, window, ones, pad)

    return jnp.sqrt(((most(p) + most(-p)) ** 2).sum() + 1e-12)


# --- a bank


def start(bank: Sequence[Params]) -> Tree:
    """What is trained: r of each layer [K], and what is added to scale and bias of normalisation."""
    first = calibration.trained(bank[0])
    dtype = next(iter(first.values())).dtype
    layers = {_layer(path): jnp.zeros((len(bank),), dtype) for path in first}
    return {"route": layers, "norms": jax.tree.map(jnp.zeros_like, calibration.norms(bank[0]))}


def routed(bank: Sequence[Params], found: Tree) -> Params:
    """The first model of the bank with the layers that `found` makes of all."""
    leaves = [calibration.trained(model) for model in bank]

    def leaf(path: str) -> Array:
        weight = jax.nn.softmax(found["route"][_layer(path)])
        mixed = sum((weight[k] * each[path] for k, each in enumerate(leaves[1:], 1)), start=weight[0] * leaves[0][path])
        return mixed + found["norms"][path] if path in found["norms"] else mixed

    return calibration.with_trained(bank[0], {path: leaf(path) for path in leaves[0]})


def _layer(path: str) -> str:
    return path.removeprefix("own:").rpartition("/")[0]


# --- how certain an answer is


def _softmax(outputs: Array) -> tuple[Array, Array]:
    """Entropy [B, ...] and probabilities [B, ..., C]."""
    log_p = jax.nn.log_softmax(outputs, axis=-1)
    p = jnp.exp(log_p)
    return -(p * log_p).sum(axis=-1), p


def _sigmoid(outputs: Array) -> tuple[Array, Array]:
    """Entropy [B], the mean over labels, and probabilities [B, L]."""
    p = jax.nn.sigmoid(outputs)
    each = -(p * jax.nn.log_sigmoid(outputs) + (1 - p) * jax.nn.log_sigmoid(-outputs))
    return each.mean(axis=-1), p


CERTAIN: Mapping[str, Callable[[Array], tuple[Array, Array]]] = MappingProxyType(
    {"classes": _softmax, "segmentation": _softmax, "labels": _sigmoid}
)
"""By kind of task: outputs -> (entropy, probabilities)."""
