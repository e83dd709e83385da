"""A site's sums over its own training rows, and what sums over all sites say.

    moments     {"count" [F], "sum" [F], "square" [F]}   per feature, of the rows where it is known (not NaN); of images
                                                         per channel, where a row's part is the mean over its pixels;
                                                         not of a picture behind columns, which stays as it is
                                                                                          -> {"mean" [F], "sd" [F]}
    labels      {"count" [C]}                            rows of each class                        -> share [C]
    amplitude   {"count" [], "sum" [H, W // 2 + 1, C]}   of the spectrum of images, the half that real ones have
                                                                                          -> mean [H, W // 2 + 1, C]
    reinhard    {"count" [], "mean" [3], "sd" [3]}       of l, alpha and beta of each image      -> means of both [3]
    macenko     {"count" [], "stains" [3, 2], "most" [2]}    of the images that tell them, see `color`  -> means of both

A sum says something about every row in it, and a neighbour sees a site's own sums in the first round, unless they are
`masked_sums`; then what all sites' sums say of a small one is in the total still. So a site with
fewer rows than `minimum` says nothing, and nothing about a class or a feature of which it has fewer, nor about stains
that fewer of its images tell; `noise` blurs the rest. That is disclosure control, as statistical offices do it, and no
differential privacy: the noise is measured by the largest part that a row of the site has, which is itself a fact of
its data, and it is drawn anew whenever a node is started.

Squares are of x itself: in float32 the standard deviation of a feature whose mean is hundreds of them away from zero
loses its digits, and beyond 700 it counts as constant. Shift such a feature, or compute in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl.check import at_least, one_of
from p2pfl.data import Dataset
from p2pfl.errors import ConfigError
from p2pfl.methods import site_facts
from p2pfl.methods.statistics import color
from p2pfl.types import Array, Tree

_CHUNK = 256
_PURPOSE = 0x57A7
_ROUGHLY = 1e-3
"""Colours may be so far outside of 0..1."""
_ROUNDING = 16
"""A variance within so many units of rounding of the mean square is none: the column is constant."""

Parts = Callable[[np.ndarray], dict[str, np.ndarray]]
"""x [B, ...] -> what each row adds to the sums, leaves [B, ...]."""


class Statistic(NamedTuple):
    """A statistic that can be gathered."""

    sums: Callable[[Dataset, np.ndarray], tuple[Tree, Tree]]  # of rows: the sums, and the most that one row adds
    estimate: Callable[[Tree], Tree]  # of the sums over all rows, up to a factor: what they say; jits
    look: Callable[[Array, Tree], Array] | None = (
        None  # images [B, ...] as the estimate wants them; all zero: as they are
    )


def gathered(
    names: Sequence[str], dataset: Dataset, rows: np.ndarray, minimum: int, noise: float, rng: np.random.Generator
) -> Tree:
    """The sums of one site over its training rows, by name: a tree of float64 arrays, all zero for too few rows.

    `minimum`: rows that a site must have, of each class for "labels", of each feature for "moments", and images that
    tell their stains for "macenko". `noise`: standard deviation of Gaussian noise on every sum, in units of the most
    that one of the site's rows adds to it (to a count: 1). `rng`: where the noise comes from; for real data one that
    the operating system has seeded. Raises ConfigError for a name that is not of GATHERED, and for data that have no
    such thing.
    """
    at_least(1, minimum=minimum)
    at_least(0, noise=noise)
    found = {}
    for name in dict.fromkeys(names):
        one_of(GATHERED, gather=name)
        sums, most = GATHERED[name].sums(dataset, rows if len(rows) >= minimum else rows[:0])
        sums = {part: np.where(sums["count"] < minimum, 0, values) for part, values in sums.items()}
        if noise and len(rows) >= minimum:
            sums = jax.tree.map(
                lambda leaf, most: leaf + noise * most * rng.standard_normal(np.shape(leaf)), sums, most
            )
        found[name] = jax.tree.map(np.float64, sums)
    return found


def stacked(
    names: Sequence[str],
    dataset: Dataset,
    parts: Sequence[np.ndarray],
    minimum: int,
    noise: float,
    seed: int | None,
    dtype: str = "float32",
) -> Tree:
    """The sums of all sites, leaves [n, ...] of `dtype`, that of training. `parts`: training rows of each site; `seed`
    None: noise that nobody can know.

    Raises ConfigError as `gathered` does.
    """
    found = []
    for site, rows in enumerate(parts):
        rng = np.random.default_rng(None if seed is None else [seed, site, _PURPOSE])
        found.append(gathered(names, dataset, rows, minimum, noise, rng))
    return jax.tree.map(lambda *leaves: np.stack(leaves).astype(dtype), *found)


def notes(names: Sequence[str], dataset: Dataset, parts: Sequence[np.ndarray], minimum: int) -> tuple[str, ...]:
    """Name the sites that have rows and say nothing; `parts`: training rows of each."""
    said = []
    there = [site for site, rows in enumerate(parts) if len(rows)]
    small = [site for site in there if len(parts[site]) < minimum]
    if small and names:
        said.append(
            f"statistics: {len(small)} of {len(there)} sites ({', '.join(map(str, small[:8]))}"
            f"{', ...' if len(small) > 8 else ''}) have fewer than {minimum} training rows and say nothing about them"
        )
    if "labels" in names:
        counts = [site_facts.labels(dataset, parts[site]) for site in there if site not in small]
        some = sum(bool(((count > 0) & (count < minimum)).any()) for count in counts)
        if some:
            said.append(
                f"statistics: {some} of {len(there)} sites have fewer than {minimum} rows of some class, and count none"
            )
    return tuple(said)


def estimated(sums: Tree) -> Tree:
    """Estimate statistics from sums over all sites, by name, in their dtype; a factor common to all does not matter.

    What nobody has said anything about is mean 0 and standard deviation 1, and zeros for all others.
    """
    return {name: GATHERED[name].estimate(sums[name]) for name in sums}


# --- sums


def _by_row(parts: Parts) -> Callable[[Dataset, np.ndarray], tuple[Tree, Tree]]:
    """Sums in float64, chunk by chunk."""

    def sums(dataset: Dataset, rows: np.ndarray) -> tuple[Tree, Tree]:
        x = dataset.train.x
        x = x[:, : len(dataset.features)] if dataset.picture else x
        like = parts(np.zeros((1, *x.shape[1:]), np.float64))
        total = {name: np.zeros(part.shape[1:]) for name, part in like.items()}
        most = {name: np.full(part.shape[1:], float(name == "count")) for name, part in like.items()}
        for start in range(0, len(rows), _CHUNK):
            for name, part in parts(np.asarray(x[rows[start : start + _CHUNK]], np.float64)).items():
                total[name] += part.sum(axis=0)
                most[name] = np.maximum(most[name], np.abs(part).max(axis=0))
        return total, most

    return sums


def _moments(x: np.ndarray) -> dict[str, np.ndarray]:
    between, known = tuple(range(1, x.ndim - 1)), ~np.isnan(x)
    x = np.where(known, x, 0)
    return {name: part.mean(axis=between) for name, part in (("count", known), ("sum", x), ("square", x**2))}


def _amplitude(x: np.ndarray) -> dict[str, np.ndarray]:
    if x.ndim != 4:
        raise ConfigError(f"gather='amplitude': a row of x has shape {x.shape[1:]}; only images have one: leave it out")
    return {"count": np.ones(len(x)), "sum": np.abs(np.fft.rfft2(x, axes=(1, 2)))}


def _colored(name: str, parts: Callable[[Array], dict[str, Array]]) -> Parts:
    """What each image in colour adds; `parts` sees chunks of one size, so that it is compiled once."""

    def each(x: np.ndarray) -> dict[str, np.ndarray]:
        if x.ndim != 4 or x.shape[-1] != 3:
            raise ConfigError(
                f"gather={name!r}: a row of x has shape {x.shape[1:]}; only images in red, green and blue have "
                "colours: leave it out"
            )
        if x.min() < -_ROUGHLY or x.max() > 1 + _ROUGHLY:
            raise ConfigError(
                f"gather={name!r}: values from {x.min():.3g} to {x.max():.3g}; colours must be in 0..1, where 1 is "
                "white: leave out what scales them (data.standardize), or say data.intensity"
            )
        whole = np.zeros((_CHUNK, *x.shape[1:]), np.float32)
        whole[: len(x)] = x
        return {name: np.asarray(part, np.float64)[: len(x)] for name, part in parts(jnp.asarray(whole)).items()}

    return each


def _labels(dataset: Dataset, rows: np.ndarray) -> tuple[Tree, Tree]:
    count = site_facts.labels(dataset, rows).astype(np.float64)
    return {"count": count}, {"count": np.ones_like(count)}


# --- what they say, and images that look like it


def _ratio(sums: Array, count: Array) -> Array:
    """sums / count; 0 where nobody is counted."""
    return jnp.where(count > 0, sums / jnp.where(count > 0, count, 1), 0)


def _mean_and_sd(sums: Tree) -> Tree:
    mean, second = (_ratio(sums[name], sums["count"]) for name in ("sum", "square"))
    variance = second - mean**2
    varies = variance > _ROUNDING * jnp.finfo(variance.dtype).eps * second
    return {"mean": mean, "sd": jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1)), 1)}


def _distribution(sums: Tree) -> Array:
    counts = jnp.maximum(sums["count"], 0)  # noise may have made them negative
    return _ratio(counts, counts.sum(axis=0, keepdims=True))


def _mean_amplitude(sums: Tree) -> Array:
    return jnp.maximum(_ratio(sums["sum"], sums["count"]), 0)


def harmonised(x: Array, amplitude: Array) -> Array:
    """Images [B, H, W, C] with the given amplitude of the spectrum [H, W // 2 + 1, C], and each its own phase.

        x^ = F^-1(A exp(i phase(F x)))

    An amplitude that is all zero is not known, and leaves x as it is. Source: Jiang, Wang, Dou, "HarmoFL: harmonizing
    local and global drifts in federated learning on heterogeneous medical images" (2022), equation of the amplitude
    normalisation. The amplitude holds contrast and texture; what is where, and whether it is bright or dark, is in the
    phase: an inverted film stays inverted.
    """
    spectrum = jnp.fft.rfft2(x, axes=(1, 2))
    size = jnp.abs(spectrum)
    some, whole = size > 0, jnp.where(size > 0, size, 1)
    wanted = amplitude.astype(x.dtype)[None]
    real = wanted * jnp.where(some, spectrum.real / whole, 1)
    imaginary = wanted * jnp.where(some, spectrum.imag / whole, 0)
    changed = jnp.fft.irfft2(jax.lax.complex(real, imaginary), s=x.shape[1:3], axes=(1, 2))
    return jnp.where(amplitude.any(), changed.astype(x.dtype), x)


GATHERED: Mapping[str, Statistic] = MappingProxyType(
    {
        "moments": Statistic(_by_row(_moments), _mean_and_sd),
        "labels": Statistic(_labels, _distribution),
        "amplitude": Statistic(_by_row(_amplitude), _mean_amplitude, harmonised),
        "reinhard": Statistic(_by_row(_colored("reinhard", color.lights)), color.mean_light, color.reinhard),
        "macenko": Statistic(_by_row(_colored("macenko", color.stainings)), color.mean_stains, color.macenko),
    }
)
"""What can be gathered, by name."""
