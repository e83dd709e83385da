"""What adversarial methods are made of: a discriminator of features, its losses, and the reversal of a gradient.

A discriminator tells from features where they come from; whoever makes the features is trained so that it can't, by
the reversed gradient of the discriminator's loss (`reverse`) or by a loss of its own (`confusion`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from p2pfl.types import Array, Key, Learner, Params, Tree

ENOUGH = 4
"""Feature maps are pooled to so many places along each side before a discriminator sees them."""


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def reverse(x: Array, scale: float = 1.0) -> Array:
    """x, whose gradient is turned round on its way back: d/dx = -`scale` times what comes.

    Source: Ganin, Ustinova, Ajakan, Germain, Larochelle, Laviolette, Marchand, Lempitsky, "Domain-adversarial training
    of neural networks" (2016), equations 16 and 17.

    Args:
        x: any array.
        scale: of the reversed gradient.

    Returns:
        x as it is.

    Example:
        >>> import jax
        >>> from p2pfl.methods.objectives.adversary import reverse
        >>> jax.grad(lambda x: reverse(x, 0.5) ** 2)(3.0).item()
        -3.0
    """
    return x


reverse.defvjp(lambda x, scale: (x, None), lambda scale, _, g: (-jnp.asarray(scale, g.dtype) * g,))


def discriminator(
    key: Key, features: tuple[int, ...], outputs: int, hidden: Sequence[int] = (32,), dtype: Any = jnp.float32
) -> Tree:
    """The parameters of a small network that tells `outputs` sources of features apart; `judge` applies it.

    Args:
        key: of its first weights (LeCun's normal ones; biases are zero).
        features: shape of the features of one row, without the batch axis.
        outputs: how many logits.
        hidden: widths between.
        dtype: of the parameters, which are drawn in float32.

    Returns:
        {"layers": {I: {"kernel", "bias"}}}

    Example:
        >>> import jax
        >>> from p2pfl.methods.objectives.adversary import discriminator
        >>> discriminator(jax.random.key(0), (8,), 3)["layers"]["0"]["kernel"].shape
        (8, 32)
    """
    widths = [width(features), *hidden, outputs]
    made = {}
    for index, (inputs, outs) in enumerate(pairwise(widths)):
        draw = jax.nn.initializers.lecun_normal()
        kernel = draw(jax.random.fold_in(key, index), (inputs, outs), jnp.float32)
        made[str(index)] = {"kernel": kernel.astype(dtype), "bias": jnp.zeros((outs,), dtype)}
    return {"layers": made}


def judge(network: Tree, features: Array) -> Array:
    """The logits [B, outputs] of a `discriminator` for features [B, ...]; between layers leaky ReLUs of slope 0.2."""
    x, layers = flat(features), network["layers"]
    for index in range(len(layers)):
        layer = layers[str(index)]
        x = x @ layer["kernel"] + layer["bias"][None]
        x = x if index == len(layers) - 1 else jax.nn.leaky_relu(x, 0.2)
    return x


def features_of(learner: Learner, params: Params, trained: Tree, x: Array, key: Key) -> Array:
    """The features [B, D] of a model whose parameters are `trained`, in training, as a discriminator sees them."""
    assert learner.features is not None  # whoever works on features has asked for them: `objective.featured`
    return flat(learner.features({**params, "trained": trained}, x, key)[0])


def flat(features: Array) -> Array:
    """Features [B, ...] as one row of numbers [B, D] each, after maps [B, H, W, ..., C] were pooled.

    By the mean, to at most ENOUGH places along each side; what is left over at the far end is left out.
    """
    x = features
    for axis, places in enumerate(_pooled(features.shape[1:])[:-1], start=1):
        size = x.shape[axis] // places
        cut = jax.lax.slice_in_dim(x, 0, size * places, axis=axis)
        x = cut.reshape(*x.shape[:axis], places, size, *x.shape[axis + 1 :]).mean(axis=axis + 1)
    return x.reshape(x.shape[0], -1)


def width(features: tuple[int, ...]) -> int:
    """D of `flat`, for features of this shape without the batch axis."""
    return math.prod(_pooled(features))


def _pooled(features: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a row of features after pooling."""
    return (*(min(size, ENOUGH) for size in features[:-1]), *features[-1:])


def telling(logits: Array, source: Array) -> Array:
    """Cross entropy [B] of a discriminator's logits [B, S] with the true sources [B] (whole numbers)."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log_p, source[:, None], axis=-1)[:, 0]


def telling_two(logits: Array, first: Array | bool) -> Array:
    """Cross entropy [B] of logits [B, 1] of two sources; `first`: bools [B], or one for all."""
    logit = logits[:, 0]
    return jnp.where(jnp.broadcast_to(jnp.asarray(first), logit.shape), jax.nn.softplus(-logit), jax.nn.softplus(logit))


def confusion(logits: Array, among: Array | None = None) -> Array:
    """Cross entropy [B] of the uniform distribution with a discriminator's logits [B, S]: least where it can't tell.

        -1/S sum_s log p_s,      at least log S

    Source: Tzeng, Hoffman, Darrell, Saenko, "Simultaneous deep transfer across domains and tasks" (2015), equation 3.

    Args:
        logits: [B, S].
        among: [S] bool: the sources that there are; None: all. Logits of others should be out of the way (very low).

    Returns:
        [B]

    Example:
        >>> import jax.numpy as jnp
        >>> from p2pfl.methods.objectives.adversary import confusion
        >>> f"{confusion(jnp.zeros((1, 4)))[0]:.4f}"  # log 4
        '1.3863'
    """
    log_p = jax.nn.log_softmax(logits, axis=-1)
    if among is None:
        return -log_p.mean(axis=-1)
    count = jnp.maximum(among.sum(), 1).astype(logits.dtype)
    return -jnp.where(among[None], log_p, 0).sum(axis=-1) / count
