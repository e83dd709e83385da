"""Images that are a little different each time they are trained on."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.scipy.ndimage import map_coordinates

from p2pfl.check import at_least
from p2pfl.data import Dataset
from p2pfl.errors import ConfigError
from p2pfl.methods.objectives.objective import Objective
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree

_STREAM = 0xA06
"""Sets the randomness of augmentation apart from that of the model (dropout)."""


def augment(
    optimizer: optax.GradientTransformation,
    shift: int = 2,
    flip: bool = False,
    rotate: float = 0.0,
    contrast: float = 0.0,
    brightness: float = 0.0,
    noise: float = 0.0,
) -> Objective:
    """Local steps see images [B, H, W, C] that are moved and lit anew, each row by itself; 0 and false do nothing.

    `shift`: pixels, up to so many along both axes. `flip`: left and right are exchanged, with probability 1/2.
    `rotate`: degrees, up to so many either way, by linear interpolation. What comes in from outside is the border's
    pixel. Then `contrast` <= 1: the distance from the image's mean is multiplied by 1 - contrast .. 1 + contrast.
    `brightness`: up to so much is added to all pixels, either way; `noise`: standard deviation of what is added to
    each; both in the units of x. Masks [B, H, W] of segmentation are moved with their images, and so are the images
    [B, H, W, C] of a reconstruction, for which what lights anew is refused. Evaluation is as without. Keeps nothing.

    Args:
        optimizer: of the experiment, or any of optax.
        shift: pixels, up to so many along both axes.
        flip: left and right, with probability 1/2.
        rotate: degrees, up to so many either way.
        contrast: <= 1.
        brightness: in units of x, up to so much either way.
        noise: standard deviation, in units of x.

    Returns:
        The objective.

    Raises:
        ConfigError: an argument is out of bounds; when the data are known, rows that are no images.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.augment(optax.sgd(0.1), shift=1).facts
        ()
    """
    at_least(0, shift=shift, rotate=rotate, contrast=contrast, brightness=brightness, noise=noise)
    if contrast > 1:
        raise ConfigError(f"contrast={contrast!r}: must be <= 1")

    def moved(x: Array, y: Array, key: Key) -> tuple[Array, Array]:
        """One image [H, W, C], and its mask or its true image where y is one."""
        height, width, _ = x.shape
        keys = jax.random.split(key, 3)
        down, right = jax.random.randint(keys[0], (2,), -shift, shift + 1) if shift else (0, 0)
        rows, columns = jnp.arange(height) - down, jnp.arange(width) - right
        if flip:
            columns = jnp.where(jax.random.bernoulli(keys[1]), width - 1 - columns, columns)
        along = y.ndim > 1 and y.shape[:2] == x.shape[:2]
        if not rotate:
            at = jnp.clip(rows, 0, height - 1)[:, None], jnp.clip(columns, 0, width - 1)[None, :]
            return x[at], y[at] if along else y
        angle = jax.random.uniform(keys[2], (), x.dtype, -1, 1) * math.radians(rotate)
        up = rows.astype(x.dtype)[:, None] - (height - 1) / 2
        side = columns.astype(x.dtype)[None, :] - (width - 1) / 2
        up, side = jnp.broadcast_arrays(up, side)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        coordinates = [cos * up - sin * side + (height - 1) / 2, sin * up + cos * side + (width - 1) / 2]

        def plane(plane: Array, order: int) -> Array:
            return map_coordinates(plane, coordinates, order=order, mode="nearest")

        def image(image: Array) -> Array:
            turned: Array = jax.vmap(lambda each: plane(each, 1), in_axes=2, out_axes=2)(image)
            return turned

        return image(x), image(y) if along and y.ndim == 3 else plane(y, 0) if along else y

    def lit(x: Array, key: Key) -> Array:
        keys = jax.random.split(key, 3)
        if contrast:
            mean = x.mean()
            x = mean + (x - mean) * (1 + contrast * jax.random.uniform(keys[0], (), x.dtype, -1, 1))
        if brightness:
            x = x + brightness * jax.random.uniform(keys[1], (), x.dtype, -1, 1)
        if noise:
            x = x + noise * jax.random.normal(keys[2], x.shape, x.dtype)
        return x

    def one(x: Array, y: Array, key: Key) -> tuple[Array, Array]:
        where, light = jax.random.split(key)
        if shift or flip or rotate:
            x, y = moved(x, y, where)
        return lit(x, light), y

    def wrap(learner: Learner) -> Learner:
        def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
            keys = jax.random.split(jax.random.fold_in(key, _STREAM), batch["x"].shape[0])
            x, y = jax.vmap(one)(batch["x"], batch["y"], keys)
            return learner.grad(params, {**batch, "x": x, "y": y}, key)

        return learner._replace(grad=grad)

    return Objective(wrap, suits=partial(_images, lit=bool(contrast or brightness)))


def _images(dataset: Dataset, lit: bool) -> None:
    if dataset.kind == "reconstruction" and lit:
        raise ConfigError(
            "objective augment: contrast and brightness light x alone, and what is reconstructed would be another "
            "image; leave them out"
        )
    shape = dataset.train.x.shape[1:]
    if len(shape) != 3:
        raise ConfigError(
            f"objective augment: needs images [height, width, channels]; a row of the data has shape {list(shape)}"
            f"{', columns and a picture in one' if dataset.picture else ''}. Leave it out"
        )
