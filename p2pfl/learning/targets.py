"""Targets: the loss, the score and the shape of the output of each kind of task.

Outputs are what the model returns, before any softmax or sigmoid. Loss and score come per sample, so that sums over
rows and nodes add up. All of it jits and vmaps, in float32 and float64: results have the dtype of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from p2pfl.types import Array

SMOOTH = 1.0
"""Added above and below in the soft Dice, so that a class that is nowhere divides nothing by nothing."""
ABSENT = -1e9
"""The output of a class that is not to be seen: its probability is 0."""
EXACT = 1e-10
"""Mean squared difference of images below which they are the same: 100 dB."""
ROWS = 256
"""Rows that are compared with all others at once in `concordant`: bounds its memory, changes no result."""


class PerSample(Protocol):
    """A loss or a score: one number for each sample."""

    def __call__(self, outputs: Array, y: Array, mask: Array | None = None) -> Array:
        """outputs [B, ...], y [B, ...], mask [B] (None: all 1) -> [B], 0 where the mask is 0.

        A row whose mask is 0 has no part in the values of other rows either.
        """


class Target(NamedTuple):
    """A kind of task: how well outputs fit, and the shape that they must have.

    Shapes of y: see p2pfl.data.Dataset. The mean of `score` is what a run shows each round; higher is better.
    """

    name: str
    loss: PerSample  # what the local steps make small
    score: PerSample
    key: str  # what the score is called in files
    score_name: str  # ... and in words
    in_percent: bool  # a fraction of something, so that a person reads it in percent
    output: Callable[[tuple[int, ...], int], tuple[int, ...]]  # (shape of a row of x, classes) -> of a row of outputs
    answer: Callable[[Array], Array]  # outputs -> probabilities; where there are none, the outputs


def masked(values: Array, mask: Array | None) -> Array:
    """Return values [B], 0 where the mask [B] is 0; None: all of them."""
    return values if mask is None else jnp.where(mask > 0, values, 0)


def _vector(row: tuple[int, ...], classes: int) -> tuple[int, ...]:
    return (classes,)


def _same(outputs: Array) -> Array:
    return outputs


def _softmax(outputs: Array) -> Array:
    return jax.nn.softmax(outputs, axis=-1)


# ---------------------------------------------------------------------------------------------------------- classes


def cross_entropy(outputs: Array, y: Array, mask: Array | None = None) -> Array:
    """Softmax cross entropy; outputs [B, classes], y [B] int32."""
    return masked(optax.softmax_cross_entropy_with_integer_labels(outputs, y), mask)


def right(outputs: Array, y: Array, mask: Array | None = None) -> Array:
    """1 where the largest output is that of the class, else 0; outputs [B, classes], y [B] int32."""
    return masked((outputs.argmax(axis=-1).astype(y.dtype) == y).astype(outputs.dtype), mask)


# ----------------------------------------------------------------------------------------------------------- labels


def binary_cross_entropy(outputs: Array, y: Array, mask: Array | None = None) -> Array:
    """Sigmoid cross entropy, the mean over labels; outputs [B, L], y [B, L] of 0 and 1."""
    return masked(optax.sigmoid_binary_cross_entropy(outputs, y.astype(outputs.dtype)).mean(axis=-1), mask)


def labels_right(outputs: Array, y: Array, mask: Array | None = None) -> Array:
    """Share of the labels that are right, a probability above 1/2 meaning 1; outputs [B, L], y [B, L] of 0 and 1."""
    return masked(((outputs > 0) == (y > 0)).mean(axis=-1, dtype=outputs.dtype), mask)


# ------------------------------------------------------------------------------------------------------- regression


def squared_error(outputs: Array, y: Array, mask: Array | None = None) -> Array:
    """Half the squared error, the mean over targets; outputs and y [B, T]."""
    return masked(((outputs - y.astype(outputs.dtype)) ** 2).mean(axis=-1) / 2, mask)


def explained(outputs: Array, y: Array, mask: Array | None = None) -> Array:
    """1 - squared error, the mean over targets; outputs and y [B, T].

    Its mean is R2 where the targets are standardised: mean 0 and variance 1 over the rows that it is taken of. With
    the mean and variance of the training rows, it compares with predicting the training mean. In other units it says
    nothing: then see `p2pfl.learning.metrics`.
    """
    return masked(1 - ((outputs - y.astype(outputs.dtype)) ** 2).mean(axis=-1), mask)


# --------------------------------------------------------------------------------------------------------- survival


def cox(outputs: Array, y: Array, mask: Array | None = None) -> Array:
    """Cox's negative log partial likelihood within the batch; outputs [B, 1] log risk, y [B, 2] (time, event).

    l_i = -event_i (eta_i - log sum of exp eta_j over the risk set: all j with time_j >= time_i). So ties are those of
    Breslow. A batch without an event has loss and gradient 0. In B log B.
    Sources: Cox (1972), "Regression models and life-tables"; Breslow (1974).
    """
    eta, time, event = _survival(outputs, y)
    # Ascending in -time: rows that are left out come last, where no risk set reaches.
    late = -time if mask is None else jnp.where(mask > 0, -time, jnp.inf)
    order = jnp.argsort(late)
    total = jax.lax.cumlogsumexp(eta[order])
    last = jnp.searchsorted(late[order], late, side="right") - 1  # of its risk set, ties included
    return masked(jnp.where(event, total[last] - eta, 0), mask)


def concordant(outputs: Array, y: Array, mask: Array | None = None) -> Array:
    """Share of a row's comparable pairs in which risk agrees with time; outputs [B, 1], y [B, 2] (time, event).

    Comparable: two rows of the batch of which the earlier one is an event, or of which one is an event and the other
    censored at the same time. Equal risks count half; a row without any pair counts 1/2. Both rows of a pair count it:
    were it the earlier one alone, the mean would sink to 1/2 with the share of censored rows, however good the model.
    That mean is near Harrell's C-index but not the same, and of this batch alone: the exact one is in
    `p2pfl.learning.metrics`.
    """
    eta, time, event = _survival(outputs, y)
    there = jnp.ones(time.shape, bool) if mask is None else mask > 0

    def of_row(row: tuple[Array, Array, Array]) -> Array:
        risk, when, dies = row
        first = dies & ((time > when) | ((time == when) & ~event)) & there
        second = event & ((time < when) | ((time == when) & ~dies)) & there
        above = ((eta < risk).astype(eta.dtype) + (eta <= risk).astype(eta.dtype)) / 2
        below = ((eta > risk).astype(eta.dtype) + (eta >= risk).astype(eta.dtype)) / 2
        won = jnp.where(first, above, 0) + jnp.where(second, below, 0)
        pairs = first.sum(dtype=eta.dtype) + second.sum(dtype=eta.dtype)
        return jnp.where(pairs > 0, won.sum() / jnp.maximum(pairs, 1), jnp.asarray(0.5, eta.dtype))

    shares: Array = jax.lax.map(of_row, (eta, time, event), batch_size=ROWS)
    return masked(shares, mask)


def _survival(outputs: Array, y: Array) -> tuple[Array, Array, Array]:
    """eta [B], time [B], event [B] bool."""
    return outputs[:, 0], y[:, 0].astype(outputs.dtype), y[:, 1] > 0


# ----------------------------------------------------------------------------------------------------- segmentation


def cross_entropy_and_dice(outputs: Array, y: Array, mask: Array | None = None) -> Array:
    """Half the mean cross entropy of the pixels, half 1 - soft Dice; outputs [B, ..., classes], y [B, ...] int32.

    Of images [B, H, W], or of the voxels of volumes [B, D, H, W]. Soft Dice of a class: (2 sum p g + 1) / (sum p + sum
    g + 1), p its probabilities, g its pixels; the mean over the classes but the first, which is background. Source:
    Milletari, Navab, Ahmadi (2016), "V-Net", without its squares.
    """
    space = _space(outputs)
    entropy = optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean(axis=space)
    p, g = _softmax(outputs)[..., 1:], _pixels(y, outputs)
    both, size = (p * g).sum(axis=space), (p + g).sum(axis=space)
    soft = (2 * both + SMOOTH) / (size + SMOOTH)
    return masked((entropy + 1 - soft.mean(axis=-1)) / 2, mask)


def dice(outputs: Array, y: Array, mask: Array | None = None) -> Array:
    """Dice of the classes with the largest outputs; outputs [B, ..., classes], y [B, ...] int32.

    2 |P and G| / (|P| + |G|), the mean over the classes but the first that are in truth or prediction; 1 where both
    are background alone.
    """
    p, g = _pixels(outputs.argmax(axis=-1).astype(y.dtype), outputs), _pixels(y, outputs)
    both, size = (p * g).sum(axis=_space(outputs)), (p + g).sum(axis=_space(outputs))
    found = (size > 0).sum(axis=-1, dtype=outputs.dtype)
    total = (2 * both / jnp.maximum(size, 1)).sum(axis=-1)
    return masked(jnp.where(found > 0, total / jnp.maximum(found, 1), 1), mask)


def _pixels(y: Array, outputs: Array) -> Array:
    """[B, ..., classes - 1]: 1 where the pixel is of the class, the first class left out."""
    return jax.nn.one_hot(y, outputs.shape[-1], dtype=outputs.dtype)[..., 1:]


def _space(outputs: Array) -> tuple[int, ...]:
    """The axes of space of [B, ..., classes]."""
    return tuple(range(1, outputs.ndim - 1))


# --------------------------------------------------------------------------------------------------- reconstruction


def absolute_pixels(outputs: Array, y: Array, mask: Array | None = None) -> Array:
    """The mean absolute difference of all pixels; outputs and y [B, H, W, C]."""
    return masked(jnp.abs(outputs - y.astype(outputs.dtype)).mean(axis=(1, 2, 3)), mask)


def psnr(outputs: Array, y: Array, mask: Array | None = None) -> Array:
    """Peak signal to noise of each image in dB: 10 log10(1 / mean squared difference), of images in 0..1.

    The range of the data is 1 for all images, not the maximum of each: so decibels of rows and sites compare. At most
    100, which a mean squared difference of 1e-10 has. outputs and y [B, H, W, C].
    """
    error = ((outputs - y.astype(outputs.dtype)) ** 2).mean(axis=(1, 2, 3))
    return masked(-10 * jnp.log10(jnp.maximum(error, EXACT)), mask)


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        target.name: target
        for target in (
            Target("classes", cross_entropy, right, "accuracy", "accuracy", True, _vector, _softmax),
            Target(
                "labels",
                binary_cross_entropy,
                labels_right,
                "accuracy",
                "accuracy of labels",
                True,
                _vector,
                jax.nn.sigmoid,
            ),
            Target("regression", squared_error, explained, "explained", "R2", False, _vector, _same),
            Target("survival", cox, concordant, "concordance", "concordance", False, lambda row, classes: (1,), _same),
            Target(
                "segmentation",
                cross_entropy_and_dice,
                dice,
                "dice",
                "Dice",
                True,
                lambda row, classes: (*row[:-1], classes),
                _softmax,
            ),
            Target(
                "reconstruction",
                absolute_pixels,
                psnr,
                "psnr",
                "PSNR in dB",
                False,
                lambda row, classes: (*row[:2], classes),
                _same,
            ),
        )
    }
)
"""The kinds of task by name, those of `p2pfl.data.Dataset.kind`."""
