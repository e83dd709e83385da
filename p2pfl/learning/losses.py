"""Losses by name for each kind of task, and losses of one's own.

What local steps make small may be another loss than that of the kind (`p2pfl.learning.targets`); the score that a run
shows stays what it is. As there, a loss comes per sample, in the dtype of the outputs, and jits and vmaps.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2pfl.check import at_least, positive, share, unaccepted
from p2pfl.errors import ConfigError
from p2pfl.learning import targets
from p2pfl.learning.targets import ABSENT, TARGETS, PerSample, masked
from p2pfl.types import Array

ROWS = 3
"""Rows that a loss of one's own is tried on."""


def _plain(kind: str) -> Callable[..., PerSample]:
    """The maker of a kind's own loss, which takes no arguments."""

    def make(classes: int) -> PerSample:
        return TARGETS[kind].loss

    return make


# ---------------------------------------------------------------------------------------------------------- classes


def cross_entropy(classes: int, smoothing: float = 0.0) -> PerSample:
    """Softmax cross entropy, of which `smoothing` is against all classes alike; outputs [B, classes], y [B].

    (1 - s) * -log p_y + s * mean of -log p_c over the classes c that the site is to see. Source: Szegedy, Vanhoucke,
    Ioffe, Shlens, Wojna, "Rethinking the Inception architecture" (2016), section 7.

    Args:
        classes: their number.
        smoothing: s, in [0, 1).

    Returns:
        The loss, per sample.

    Raises:
        ConfigError: smoothing out of bounds.

    Example:
        >>> import jax.numpy as jnp
        >>> from p2pfl.learning.losses import cross_entropy
        >>> round(cross_entropy(2, smoothing=0.2)(jnp.zeros((1, 2)), jnp.zeros(1, int)).item(), 4)
        0.6931
    """
    share(smoothing=smoothing)

    def loss(outputs: Array, y: Array, mask: Array | None = None) -> Array:
        hard = targets.cross_entropy(outputs, y)
        if not smoothing:
            return masked(hard, mask)
        seen = outputs > ABSENT / 2
        logs = jnp.where(seen, -jax.nn.log_softmax(outputs, axis=-1), 0)
        even = logs.sum(axis=-1) / seen.sum(axis=-1, dtype=outputs.dtype)
        return masked((1 - smoothing) * hard + smoothing * even, mask)

    return loss


def focal(classes: int, gamma: float = 2.0) -> PerSample:
    """Cross entropy of which a row counts less the surer it is: -(1 - p_y)^gamma log p_y; [B, classes], y [B].

    Source: Lin, Goyal, Girshick, He, Dollar, "Focal loss for dense object detection" (2017), equation 4.

    Args:
        classes: their number.
        gamma: >= 0; 0 is cross entropy.

    Returns:
        The loss, per sample.

    Raises:
        ConfigError: gamma < 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from p2pfl.learning.losses import focal
        >>> round(focal(2, gamma=1.0)(jnp.zeros((1, 2)), jnp.zeros(1, int)).item(), 4)
        0.3466
    """
    at_least(0, gamma=gamma)

    def loss(outputs: Array, y: Array, mask: Array | None = None) -> Array:
        hard = targets.cross_entropy(outputs, y)
        return masked((-jnp.expm1(-hard)) ** gamma * hard, mask) if gamma else masked(hard, mask)

    return loss


# ----------------------------------------------------------------------------------------------------------- labels


def binary_cross_entropy(classes: int, positive: Sequence[float] | None = None) -> PerSample:
    """Sigmoid cross entropy, the mean over labels, in which a 1 of label c counts positive[c] times; [B, L], y [B, L].

    Args:
        classes: labels L.
        positive: a weight of each label, > 0, for labels that are rarely 1; None: 1.

    Returns:
        The loss, per sample.

    Raises:
        ConfigError: a weight <= 0, or weights of another number than the labels.

    Example:
        >>> import jax.numpy as jnp
        >>> from p2pfl.learning.losses import binary_cross_entropy
        >>> y = jnp.asarray([[1.0, 0.0]])
        >>> round(binary_cross_entropy(2, positive=[3, 1])(jnp.zeros((1, 2)), y).item(), 4)
        1.3863
    """
    weight = _weights(classes, positive=positive)

    def loss(outputs: Array, y: Array, mask: Array | None = None) -> Array:
        if weight is None:
            return targets.binary_cross_entropy(outputs, y, mask)
        truth = y.astype(outputs.dtype)
        counts = jnp.where(truth > 0, jnp.asarray(weight, outputs.dtype), 1)
        return masked((counts * optax.sigmoid_binary_cross_entropy(outputs, truth)).mean(axis=-1), mask)

    return loss


def focal_labels(classes: int, gamma: float = 2.0, alpha: float | None = None) -> PerSample:
    """Focal loss of each label, the mean over labels; outputs [B, L], y [B, L] of 0 and 1. Source: as `focal`.

    Args:
        classes: labels L.
        gamma: >= 0.
        alpha: in (0, 1), the weight of a 1 against a 0; None: both alike.

    Returns:
        The loss, per sample.

    Raises:
        ConfigError: gamma < 0, alpha out of bounds.

    Example:
        >>> import jax.numpy as jnp
        >>> from p2pfl.learning.losses import focal_labels
        >>> round(focal_labels(2, gamma=1.0)(jnp.zeros((1, 2)), jnp.ones((1, 2))).item(), 4)
        0.3466
    """
    at_least(0, gamma=gamma)
    if alpha is not None:
        positive(alpha=alpha)
        share(alpha=alpha)

    def loss(outputs: Array, y: Array, mask: Array | None = None) -> Array:
        each = optax.sigmoid_focal_loss(outputs, y.astype(outputs.dtype), alpha=alpha, gamma=gamma)
        return masked(each.mean(axis=-1), mask)

    return loss


# ------------------------------------------------------------------------------------------------------- regression


def huber(classes: int, delta: float = 1.0) -> PerSample:
    """Half the squared error as far as `delta`, and beyond that linear, the mean over targets; outputs and y [B, T].

    Source: Huber, "Robust estimation of a location parameter" (1964).

    Args:
        classes: targets T.
        delta: > 0, in units of the targets.

    Returns:
        The loss, per sample.

    Raises:
        ConfigError: delta <= 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from p2pfl.learning.losses import huber
        >>> huber(1)(jnp.asarray([[3.0]]), jnp.zeros((1, 1))).tolist()
        [2.5]
    """
    positive(delta=delta)

    def loss(outputs: Array, y: Array, mask: Array | None = None) -> Array:
        return masked(optax.huber_loss(outputs, y.astype(outputs.dtype), delta=delta).mean(axis=-1), mask)

    return loss


def absolute_error(classes: int) -> PerSample:
    """The absolute error, the mean over targets: what makes medians; outputs and y [B, T].

    Args:
        classes: targets T.

    Returns:
        The loss, per sample.

    Example:
        >>> import jax.numpy as jnp
        >>> from p2pfl.learning.losses import absolute_error
        >>> absolute_error(1)(jnp.asarray([[3.0]]), jnp.zeros((1, 1))).tolist()
        [3.0]
    """

    def loss(outputs: Array, y: Array, mask: Array | None = None) -> Array:
        return masked(jnp.abs(outputs - y.astype(outputs.dtype)).mean(axis=-1), mask)

    return loss


# ----------------------------------------------------------------------------------------------------- segmentation


def pixel_cross_entropy(classes: int, weights: Sequence[float] | None = None) -> PerSample:
    """The mean cross entropy of the pixels, of which those of class c count weights[c]; [B, ..., C], y [B, ...].

    Args:
        classes: their number C.
        weights: of each class, > 0, for classes that are small; None: 1.

    Returns:
        The loss, per sample.

    Raises:
        ConfigError: a weight <= 0, or weights of another number than the classes.

    Example:
        >>> import jax.numpy as jnp
        >>> from p2pfl.learning.losses import pixel_cross_entropy
        >>> round(pixel_cross_entropy(2)(jnp.zeros((1, 1, 1, 2)), jnp.zeros((1, 1, 1), int)).item(), 4)
        0.6931
    """
    weight = _weights(classes, weights=weights)

    def loss(outputs: Array, y: Array, mask: Array | None = None) -> Array:
        each = optax.softmax_cross_entropy_with_integer_labels(outputs, y)
        if weight is not None:
            each = each * jnp.asarray(weight, outputs.dtype)[y]
        return masked(each.reshape(each.shape[0], -1).mean(axis=1), mask)

    return loss


# --------------------------------------------------------------------------------------------------- reconstruction


def squared_pixels(classes: int) -> PerSample:
    """The mean squared difference of all pixels; outputs and y [B, H, W, C].

    Args:
        classes: channels C.

    Returns:
        The loss, per sample.

    Example:
        >>> import jax.numpy as jnp
        >>> from p2pfl.learning.losses import squared_pixels
        >>> squared_pixels(1)(jnp.full((1, 2, 2, 1), 3.0), jnp.zeros((1, 2, 2, 1))).tolist()
        [9.0]
    """

    def loss(outputs: Array, y: Array, mask: Array | None = None) -> Array:
        return masked(((outputs - y.astype(outputs.dtype)) ** 2).mean(axis=(1, 2, 3)), mask)

    return loss


def _weights(classes: int, **named: Sequence[float] | None) -> np.ndarray | None:
    """The weights of classes, checked. Raises ConfigError."""
    [(name, given)] = named.items()
    if given is None:
        return None
    if len(given) != classes:
        raise ConfigError(f"{name}={list(given)!r}: {len(given)} weights for {classes} classes; give one for each")
    for each in given:
        positive(**{name: each})
    return np.asarray(given, np.float64)


LOSSES: Mapping[str, Mapping[str, Callable[..., PerSample]]] = MappingProxyType(
    {
        "classes": MappingProxyType({"cross_entropy": cross_entropy, "focal": focal}),
        "labels": MappingProxyType({"binary_cross_entropy": binary_cross_entropy, "focal": focal_labels}),
        "regression": MappingProxyType(
            {"squared_error": _plain("regression"), "huber": huber, "absolute_error": absolute_error}
        ),
        "survival": MappingProxyType({"cox": _plain("survival")}),
        "segmentation": MappingProxyType(
            {"cross_entropy_and_dice": _plain("segmentation"), "cross_entropy": pixel_cross_entropy}
        ),
        "reconstruction": MappingProxyType(
            {"absolute_error": _plain("reconstruction"), "squared_error": squared_pixels}
        ),
    }
)
"""Kind of task -> name -> maker; each takes the number of classes (labels, targets) and the arguments of its table."""


# -------------------------------------------------------------------------------------------------------- one's own


def own(
    function: Callable[..., Array], arguments: Mapping[str, Any], row: tuple[int, ...], y: np.ndarray, kind: str
) -> PerSample:
    """Make a loss of a function of one's own, and try it.

    Args:
        function: (outputs [B, ...], y [B, ...], **arguments) -> [B], what is to be made small for each row; outputs
            are raw, and y is as in `p2pfl.data.Dataset`. With a parameter `mask` it is given that too, [B], 0 for rows
            that must have no part in it: needed where rows are compared with each other, as in survival.
        arguments: of the function, by name.
        row: the shape of a row of outputs.
        y: [N, ...] of the data.
        kind: of the task.

    Returns:
        The loss, per sample, 0 where the mask is.

    Raises:
        ConfigError: no such argument; what it returns is not one real number for each row, or one row's depends on
            others.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from p2pfl.learning.losses import own
        >>> loss = own(lambda outputs, y, power: (abs(outputs - y) ** power).sum(-1), {"power": 2}, (1,),
        ...            np.zeros((4, 1), np.float32), "regression")
        >>> loss(jnp.full((2, 1), 3.0), jnp.zeros((2, 1)), jnp.asarray([1.0, 0.0])).tolist()
        [9.0, 0.0]
    """
    if wrong := unaccepted(function, arguments, 2):
        raise ConfigError(f"argument {wrong[0]!r}: the function has no such argument; {wrong[1]}")
    asks = "mask" in inspect.signature(function).parameters
    if kind == "survival" and not asks:
        raise ConfigError("of survival rows are compared with each other; it must take a mask, (outputs, y, mask)")
    bound = partial(function, **arguments)
    loss = with_mask(bound)
    _try(bound, loss, row, y, asks)
    return loss


def with_mask(function: Callable[..., Array]) -> PerSample:
    """Make a loss of a function that may know nothing of masks.

    Args:
        function: (outputs [B, ...], y [B, ...]) -> [B]; with a parameter `mask` it is given that too, [B].

    Returns:
        The loss, per sample, in the dtype of the outputs, 0 where the mask is.

    Example:
        >>> import jax.numpy as jnp
        >>> from p2pfl.learning.losses import with_mask
        >>> with_mask(lambda outputs, y: outputs[:, 0])(jnp.ones((2, 1)), None, jnp.asarray([0.0, 1.0])).tolist()
        [0.0, 1.0]
    """
    asks = "mask" in inspect.signature(function).parameters

    def loss(outputs: Array, y: Array, mask: Array | None = None) -> Array:
        if asks:
            there = jnp.ones(len(outputs), outputs.dtype) if mask is None else mask
            return masked(function(outputs, y, mask=there).astype(outputs.dtype), mask)
        return masked(function(outputs, y).astype(outputs.dtype), mask)

    return loss


def _try(bound: Callable[..., Array], loss: PerSample, row: tuple[int, ...], y: np.ndarray, asks: bool) -> None:
    """Raises ConfigError where a loss is not one real number for each row, or has no gradient."""
    rows = np.resize(y[:ROWS], (ROWS, *y.shape[1:]))
    like = jax.ShapeDtypeStruct((ROWS, *row), np.float32)
    truth, mask = jax.ShapeDtypeStruct(rows.shape, rows.dtype), jax.ShapeDtypeStruct((ROWS,), np.float32)
    found = jax.eval_shape(bound, like, truth, **({"mask": mask} if asks else {}))
    shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
    if shape != (ROWS,) or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        got = f"{dtype}{[*shape]}" if shape is not None else f"a {type(found).__name__}"
        raise ConfigError(
            f"returned {got} for outputs {[ROWS, *row]} and y {[*rows.shape]}; must be one real number for each row, "
            f"[{ROWS}]: no mean over rows"
        )
    jax.eval_shape(jax.grad(lambda outputs, y: loss(outputs, y).sum()), like, truth)
    if asks:
        return
    outputs = np.random.default_rng(0).normal(size=like.shape).astype(np.float32)
    together, alone = (
        loss(jnp.asarray(outputs), jnp.asarray(rows)),
        loss(jnp.asarray(outputs[:1]), jnp.asarray(rows[:1])),
    )
    if not np.allclose(together[0], alone[0], rtol=1e-3, atol=1e-5, equal_nan=True):
        raise ConfigError(
            f"a row has {float(alone[0]):.6g} by itself and {float(together[0]):.6g} among others; rows that see each "
            "other need a mask of those that count: (outputs, y, mask)"
        )
