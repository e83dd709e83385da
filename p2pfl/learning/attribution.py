"""Attribution: which pixels, columns or regions an answer of a model rests on.

Each takes a score, a function of rows x [N, ...] to numbers [N], such as the log odds of a class; each row's number
depends on that row alone. Nothing here knows of classes, files or pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl.check import at_least, positive
from p2pfl.types import Array

Score = Callable[[Array], Array]
"""Rows x [N, ...] -> [N]."""
_AT_ONCE = 64
"""Rows that pass through the model together."""


class Integrated(NamedTuple):
    """Integrated gradients of rows."""

    values: np.ndarray  # [N, ...] like x: what each number adds to the score, from the baseline on
    off: np.ndarray  # [N] |sum of the values - (score - score of the baseline)|
    change: np.ndarray  # [N] score - score of the baseline
    steps: int


def integrated_gradients(
    score: Score, x: np.ndarray, baseline: np.ndarray, tolerance: float = 1e-3, most: int = 4096
) -> Integrated:
    """Integrate the gradient of a score along the straight way from a baseline to each row.

        a_i = (x_i - b_i) integral over t in 0..1 of  d score(b + t (x - b)) / d x_i

    Its sum is score(x) - score(b), the axiom of completeness. The integral is a midpoint sum, of twice as many steps
    until that holds within `tolerance` of the change (and of 1, where the change is less) in all rows, or `most` are
    taken: `off` says by how much it does not.
    Source: Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks" (2017), equations 1 and 3.

    Args:
        score: see Score.
        x: [N, ...] floats.
        baseline: like a row of x, or like x.
        tolerance: > 0, relative.
        most: steps at most, >= 32.

    Returns:
        Values, what is left of completeness, and steps.

    Raises:
        ConfigError: an argument is out of bounds.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from p2pfl.learning.attribution import integrated_gradients
        >>> found = integrated_gradients(lambda x: (x ** 2).sum(axis=1), np.ones((1, 2), np.float32), np.zeros(2))
        >>> found.values.round(4).tolist()
        [[1.0, 1.0]]
    """
    positive(tolerance=tolerance)
    at_least(32, most=most)
    begin = np.broadcast_to(np.asarray(baseline, x.dtype), x.shape)
    slope = jax.grad(lambda rows: score(rows).sum())

    @jax.jit
    def mean_slope(row: Array, start: Array, at: Array) -> Array:
        """Of one row, over `at` [S] between 0 and 1."""

        def part(t: Array) -> Array:
            ways = t.reshape(-1, *(1,) * row.ndim)
            return slope(start[None] + ways * (row - start)[None]).sum(axis=0)

        parts: Array = jax.lax.map(part, at.reshape(-1, min(len(at), _AT_ONCE)))
        return parts.sum(axis=0) / len(at)

    run = jax.jit(score)
    ends = [np.concatenate([np.asarray(run(jnp.asarray(each[None]))) for each in rows]) for rows in (x, begin)]
    change = np.asarray(ends[0], np.float64) - ends[1]
    steps = 32
    while True:
        at = jnp.asarray((np.arange(steps) + 0.5) / steps, x.dtype)
        mean = [np.asarray(mean_slope(jnp.asarray(a), jnp.asarray(b), at)) for a, b in zip(x, begin, strict=True)]
        values = np.stack(mean).astype(np.float64) * (x.astype(np.float64) - begin)
        off = np.abs(values.reshape(len(x), -1).sum(axis=1) - change)
        if (off <= tolerance * np.maximum(np.abs(change), 1)).all() or 2 * steps > most:
            return Integrated(values, off, change, steps)
        steps *= 2


def occlusion(score: Score, x: np.ndarray, baseline: np.ndarray, size: int, stride: int) -> np.ndarray:
    """By how much the score falls where a square of a picture is hidden: [N, H, W], or [N, D, H, W] of volumes.

    Every square of `size` pixels is set to the baseline in turn, `stride` pixels apart and to the last edge; a pixel
    gets the mean over the squares that hide it. Source: Zeiler, Fergus, "Visualizing and understanding convolutional
    networks" (2014), section 4.2, with the score's fall instead of the class's probability.

    Args:
        score: see Score.
        x: [N, H, W, C], or [N, D, H, W, C].
        baseline: like a row of x, like x, or a number.
        size: side of the square in pixels, >= 1.
        stride: from one to the next in pixels, >= 1.

    Returns:
        The fall of the score at each pixel, > 0 where the pixel speaks for the score.

    Raises:
        ConfigError: an argument is out of bounds.

    Example:
        >>> import numpy as np
        >>> from p2pfl.learning.attribution import occlusion
        >>> picture = np.zeros((1, 2, 2, 1), np.float32)
        >>> picture[0, 0, 0] = 3
        >>> occlusion(lambda x: x.sum(axis=(1, 2, 3)), picture, np.zeros(()), size=1, stride=1)[0].tolist()
        [[3.0, 0.0], [0.0, 0.0]]
    """
    at_least(1, size=size, stride=stride)
    space = x.shape[1:-1]
    firsts = [[*dict.fromkeys((*range(0, max(side - size, 0), stride), max(side - size, 0)))] for side in space]
    corners = np.stack(np.meshgrid(*firsts, indexing="ij"), axis=-1).reshape(-1, len(space))
    grid = np.stack(np.meshgrid(*map(np.arange, space), indexing="ij"), axis=-1)
    hides = np.stack([((grid >= corner) & (grid < corner + size)).all(axis=-1) for corner in corners])
    begin = np.broadcast_to(np.asarray(baseline, x.dtype), x.shape)

    @jax.jit
    def fall(row: Array, start: Array) -> Array:
        def hidden(mask: Array) -> Array:
            return score(jnp.where(mask[..., None], start, row)[None])[0]

        return score(row[None])[0] - jax.lax.map(hidden, jnp.asarray(hides), batch_size=_AT_ONCE)

    covered = hides.sum(axis=0)
    pairs = zip(x, begin, strict=True)
    falls = np.stack([np.asarray(fall(jnp.asarray(row), jnp.asarray(start)), np.float64) for row, start in pairs])
    return np.asarray(np.einsum("nk,k...->n...", falls, hides.astype(np.float64)) / covered)


def grad_cam(maps: Callable[[Array], tuple[Array, Score]], x: np.ndarray) -> np.ndarray:
    """Weigh the feature maps of a network's last convolution by what they mean to the score: [N, H, W].

        L = relu(sum_k a_k A^k),      a_k the mean over the map of  d score / d A^k

    Negative evidence is left out, and the map, which is coarse, is interpolated linearly to the size of x.
    Source: Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization" (2017),
    equations 1 and 2.

    Args:
        maps: of rows x, (maps A [N, h, w, K], the score of such maps [N]).
        x: [N, H, W, C].

    Returns:
        [N, H, W] >= 0, or [N, D, H, W] of volumes.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from p2pfl.learning.attribution import grad_cam
        >>> grad_cam(lambda x: (x, lambda a: a.sum(axis=(1, 2, 3))), np.ones((1, 2, 2, 1), np.float32)).shape
        (1, 2, 2)
    """

    @jax.jit
    def one(row: Array) -> Array:
        found, score = maps(row[None])
        slope = jax.grad(lambda a: score(a).sum())(found)
        weight = slope.mean(axis=tuple(range(1, slope.ndim - 1)), keepdims=True)
        coarse = jax.nn.relu((weight * found).sum(axis=-1))[0]
        return jax.image.resize(coarse, row.shape[:-1], "linear")

    return np.stack([np.asarray(one(jnp.asarray(row)), np.float64) for row in x])


class Importance(NamedTuple):
    """How much a figure falls when a column is shuffled."""

    mean: np.ndarray  # [G] over the repeats; NaN where the figure is not defined
    sd: np.ndarray  # [G]
    figure: float | None  # as it is


def permutation_importance(
    figure: Callable[[np.ndarray], float | None],
    x: np.ndarray,
    groups: Sequence[Sequence[int]],
    repeats: int,
    seed: int,
) -> Importance:
    """By how much a figure falls when the values of a column are shuffled over the rows.

    Columns that are correlated share what they know: none of them may seem to matter. Sources: Breiman, "Random
    forests" (2001), section 10; Fisher, Rudin, Dominici, "All models are wrong, but many are useful" (2019).

    Args:
        figure: see Figure.
        x: [N, F].
        groups: places of columns that belong together, as the values of a category, and are shuffled together.
        repeats: shuffles of each, >= 1.
        seed: of the shuffles.

    Returns:
        Mean and standard deviation of the fall of each group.

    Raises:
        ConfigError: repeats < 1.

    Example:
        >>> import numpy as np
        >>> from p2pfl.learning.attribution import permutation_importance
        >>> x = np.arange(8.0).reshape(4, 2)
        >>> found = permutation_importance(lambda x: -np.abs(np.diff(x[:, 0])).sum(), x, [[0], [1]], 3, seed=0)
        >>> bool(found.mean[0] > 0), float(found.mean[1])
        (True, 0.0)
    """
    at_least(1, repeats=repeats)
    before = figure(x)
    nothing = np.full(len(groups), np.nan)
    if before is None:
        return Importance(nothing, nothing, None)
    rng = np.random.default_rng(seed)
    falls = np.full((len(groups), repeats), np.nan)
    for g, columns in enumerate(groups):
        for r in range(repeats):
            shuffled = x.copy()
            shuffled[:, columns] = x[rng.permutation(len(x))][:, columns]
            after = figure(shuffled)
            falls[g, r] = np.nan if after is None else before - after
    return Importance(falls.mean(axis=1), falls.std(axis=1), before)
