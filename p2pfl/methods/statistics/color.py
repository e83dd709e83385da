"""Colours of images as few numbers, which sites average, and by which every image gets the colours of all.

Both ways work image by image, in training and in prediction alike, so that rows of a site that nobody has heard of are
treated as all others: what an image is like is seen from itself, and what it is to be like is in the model.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl.types import Array, Tree

DARKEST = 1 / 255
"""Values below it count as this, since black has no logarithm."""
FLAT = 1e-3
"""A deviation in l-alpha-beta that is not stretched further."""
TRANSPARENT = 0.15
"""Optical density, as the length of the three colours', below which a pixel counts as not stained (Macenko's beta)."""
EXTREME = 0.01
"""Share of the pixels at either end that is left out as not to be relied on (Macenko's alpha)."""
FEW = 10
"""Stained pixels below which an image does not tell its stains."""
PARALLEL = 0.01
"""The square of the sine of the angle between two stains, below which they count as one."""
LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
"""What the three cones of the eye see of red, green and blue."""
OPPONENT = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])
"""l, alpha and beta of their logarithms: light, yellow against blue, red against green; orthogonal."""
_LARGEST = {"mean": math.sqrt(3) * math.log10(255), "sd": math.log10(255), "most": math.sqrt(3) * math.log(255)}
"""What no image can be beyond, by what it is told of: nobody's say moves colours further."""
_FURTHEST = 5.0
"""Decimal logarithm, either way, beyond which what cones see is cut: a pixel far from all others stays finite."""


def lab(x: Array) -> Array:
    """Colours [..., 3] (red, green, blue in 0..1) as l, alpha and beta.

    Source: Reinhard, Ashikhmin, Gooch, Shirley, "Color transfer between images" (2001), equations 4 to 6.
    """
    return _times(jnp.log10(_times(jnp.maximum(x, DARKEST), LMS)), OPPONENT)


def rgb(x: Array) -> Array:
    """The reverse of `lab`, cut to 0..1."""
    seen = 10 ** jnp.clip(_times(x, OPPONENT.T), -_FURTHEST, _FURTHEST)
    return jnp.clip(_times(seen, np.linalg.inv(LMS)), 0, 1)


def light(x: Array) -> tuple[Array, Array]:
    """Of images [B, H, W, 3] the mean and the standard deviation over the pixels of l, alpha and beta, [B, 3] each."""
    pixels = lab(x).reshape(x.shape[0], -1, 3)
    mean = pixels.mean(axis=1)
    variance = ((pixels - mean[:, None]) ** 2).mean(axis=1)
    return mean, jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)


def reinhard(x: Array, wanted: Tree) -> Array:
    """Give images the mean and the deviation of l, alpha and beta that all have.

        l' = (l - mean of the image) sd / (sd of the image) + mean,      and so alpha and beta

    Where one brightness of each kind of light (of the cones' three) differs between sites by a factor, nothing of that
    is left; a matrix that mixes colours is undone in part. What goes, too, is what an image's mean colour says of it.

    Source: Reinhard et al., "Color transfer between images" (2001), equations 10 and 11; the image that others are made
    like is the mean of all.

    Args:
        x: [B, H, W, 3] in 0..1.
        wanted: {"mean" [3], "sd" [3]}: means over all images; all zero: not known, and x stays as it is.

    Returns:
        [B, H, W, 3] in 0..1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from p2pfl.methods.statistics.color import light, reinhard
        >>> x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3), minval=0.2, maxval=0.6)
        >>> mean, sd = light(x)
        >>> made = reinhard(0.7 * x, {"mean": mean[0], "sd": sd[0]})
        >>> bool(abs(light(made)[0][1] - mean[0]).max() < 1e-3)
        True
    """
    mean, sd = (each[:, None, None] for each in light(x))
    new_mean, new_sd = (wanted[name].astype(x.dtype)[None, None, None] for name in ("mean", "sd"))
    made = rgb((lab(x) - mean) * (new_sd / jnp.maximum(sd, FLAT)) + new_mean)
    return jnp.where(wanted["sd"].any(), made, x)


def stains(x: Array) -> tuple[Array, Array, Array]:
    """The two stains of each image, by the optical density -log(x) of its pixels.

    The plane of the two first singular vectors of the densities of stained pixels; in it the robust extremes of their
    angles, which are the stains, the one that takes more red first; of each the robust largest amount in a pixel.

    Source: Macenko, Niethammer, Marron, Borland, Woosley, Guan, Schmitt, Thomas, "A method for normalizing histology
    slides for quantitative analysis" (2009), section 2, with its parameters.

    Args:
        x: [B, H, W, 3] in 0..1, white is 1.

    Returns:
        The densities of one unit of each stain [B, 3, 2], of length 1; the 99th percentile of their amounts [B, 2];
        whether the image tells its stains [B]: of few stained pixels, or of one colour, it does not.
    """
    return jax.vmap(_stains)(_density(x))


def macenko(x: Array, wanted: Tree) -> Array:
    """Stain images anew: the amounts of both stains in every pixel stay, up to a factor each, and the stains change.

        -log x = S C,      x' = exp(-S' C most' / most)

    with the stains S of the image (`stains`), the amounts C by least squares, and the stains S' that all have. What is
    of neither stain is left out. An image that does not tell its stains stays as it is.

    Source: Macenko et al. (2009), section 3; the slide that others are made like is the mean of all images.

    Args:
        x: [B, H, W, 3] in 0..1, white is 1.
        wanted: {"stains" [3, 2], "most" [2]}: means over all images; all zero: not known, and x stays as it is.

    Returns:
        [B, H, W, 3] in 0..1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from p2pfl.methods.statistics.color import macenko, stains
        >>> amounts = jax.random.uniform(jax.random.key(0), (1, 16, 16, 2)) ** 2
        >>> pure = jnp.asarray([[0.65, 0.07], [0.70, 0.99], [0.29, 0.11]])
        >>> x = jnp.exp(-amounts @ pure.T)
        >>> found, most, tells = stains(x)
        >>> bool(tells[0]), bool(abs(macenko(x, {"stains": found[0], "most": most[0]}) - x).max() < 1e-3)
        (True, True)
    """
    found, most, tells = jax.lax.stop_gradient(stains(x))
    amounts = jnp.einsum("bij,bnj->bni", _unmixing(found), _density(x), precision="highest")
    new, new_most = wanted["stains"].astype(x.dtype), wanted["most"].astype(x.dtype)
    amounts = amounts * (new_most[None] / most)[:, None]
    made = jnp.exp(-jnp.einsum("ij,bnj->bni", new, amounts, precision="highest"))
    made = jnp.clip(made, 0, 1).reshape(x.shape)
    return jnp.where(tells[:, None, None, None] & new_most.any(), made, x)


# --- sums over rows, and what they say


@jax.jit
def lights(x: Array) -> dict[str, Array]:
    """What each image [B, H, W, 3] adds to the sums of "reinhard"."""
    mean, sd = light(x)
    return {"count": jnp.ones(x.shape[:1], x.dtype), "mean": mean, "sd": sd}


@jax.jit
def stainings(x: Array) -> dict[str, Array]:
    """What each image [B, H, W, 3] adds to the sums of "macenko": nothing where it does not tell its stains."""
    found, most, tells = stains(x)
    count = tells.astype(x.dtype)
    return {"count": count, "stains": found * count[:, None, None], "most": most * count[:, None]}


def mean_light(sums: Tree) -> Tree:
    """The mean over all images of what `light` says of each."""
    found = {name: _mean(sums, name) for name in ("mean", "sd")}
    return {"mean": jnp.clip(found["mean"], -_LARGEST["mean"], _LARGEST["mean"]), "sd": _within(found["sd"], "sd")}


def mean_stains(sums: Tree) -> Tree:
    """The mean over all images of what `stains` says of each; stains of length 1."""
    return {"stains": _unit(jnp.maximum(_mean(sums, "stains"), 0)), "most": _within(_mean(sums, "most"), "most")}


def _mean(sums: Tree, name: str) -> Array:
    count = sums["count"]
    return jnp.where(count > 0, sums[name] / jnp.where(count > 0, count, 1), 0)


def _within(values: Array, name: str) -> Array:
    return jnp.clip(values, 0, _LARGEST[name])


# --- arithmetic


def _times(x: Array, matrix: np.ndarray) -> Array:
    """[..., 3] by a matrix [3, 3] of columns: sum_j matrix[i, j] x[..., j]."""
    return jnp.matmul(x, jnp.asarray(matrix.T, x.dtype), precision="highest")


def _density(x: Array) -> Array:
    """Optical density [B, N, 3] of the N pixels of images."""
    return -jnp.log(jnp.clip(x, DARKEST, 1)).reshape(x.shape[0], -1, 3)


def _unit(columns: Array) -> Array:
    """Columns [..., 3, 2] of length 1; zeros stay."""
    square = (columns**2).sum(axis=-2, keepdims=True)
    return columns / jnp.sqrt(jnp.where(square > 0, square, 1))


def _unmixing(columns: Array) -> Array:
    """The pseudo-inverse [B, 2, 3] of columns [B, 3, 2] of length 1."""
    both = (columns[:, :, 0] * columns[:, :, 1]).sum(axis=1)[:, None, None]
    swapped = columns[:, :, ::-1]
    inverse = (columns - both * swapped) / jnp.maximum(1 - both**2, PARALLEL)
    return inverse.swapaxes(1, 2)


def _stains(density: Array) -> tuple[Array, Array, Array]:
    """`stains` of the density [N, 3] of one image."""
    stained = (density**2).sum(axis=1) > TRANSPARENT**2
    weighed = density * stained.astype(density.dtype)[:, None]
    _, vectors = jnp.linalg.eigh(jnp.matmul(weighed.T, weighed, precision="highest"))  # right singular vectors
    plane = vectors[:, :0:-1]  # the largest two
    plane = plane * jnp.where(plane.sum(axis=0) < 0, -1, 1).astype(density.dtype)[None]
    along = jnp.matmul(density, plane, precision="highest")
    angle = jnp.arctan2(along[:, 1], along[:, 0])
    ends = jnp.stack([_quantile(angle, stained, share) for share in (EXTREME, 1 - EXTREME)])
    columns = jnp.matmul(plane, jnp.stack([jnp.cos(ends), jnp.sin(ends)]), precision="highest")
    columns = _unit(jnp.maximum(columns, 0))
    columns = jnp.where(columns[0, 0] < columns[0, 1], columns[:, ::-1], columns)
    amounts = jnp.matmul(density, _unmixing(columns[None])[0].T, precision="highest")
    every = jnp.ones_like(stained)
    most = jnp.stack([_quantile(amounts[:, stain], every, 1 - EXTREME) for stain in range(2)])
    apart = 1 - (columns[:, 0] * columns[:, 1]).sum() ** 2 > PARALLEL
    tells = (stained.sum() >= FEW) & apart & (most > FLAT).all()
    return columns, jnp.maximum(most, FLAT), tells


def _quantile(values: Array, there: Array, share: float) -> Array:
    """The quantile [] of those of values [N] that are there [N], between two of them by a line; 0 of none."""
    count = there.sum()
    ordered = jnp.where(count > 0, jnp.sort(jnp.where(there, values, jnp.inf)), 0)
    last = jnp.maximum(count - 1, 0)
    at = jnp.asarray(share, values.dtype) * last.astype(values.dtype)
    low = jnp.floor(at).astype(jnp.int32)
    first, second = ordered[low], ordered[jnp.minimum(low + 1, last.astype(jnp.int32))]
    return first + (at - low.astype(values.dtype)) * (second - first)
