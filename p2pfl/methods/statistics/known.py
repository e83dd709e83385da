"""A learner that uses what is known of all data together."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from p2pfl.errors import ConfigError
from p2pfl.methods.statistics.sums import estimated
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree


def learned(learner: Learner, like: Tree, normalize: bool) -> Learner:
    """The learner whose models hold params["statistics"]: "known" [] (0 or 1), and each estimate by its name.

    `like`: one site's sums, or their shapes. With `normalize`, inputs are scaled by the mean and the standard deviation
    of all data; where an "amplitude" is gathered, every image is given it (see `harmonised`) before that. As long as
    nothing is known, both leave inputs as they are. What looks at params["statistics"] goes around this learner.
    Raises ConfigError for `normalize` without "moments".
    """
    if normalize and "moments" not in like:
        raise ConfigError('statistics.normalize=true: needs the moments; add them, as in gather = ["moments"]')

    def init(key: Key) -> Params:
        params = learner.init(key)
        dtype = jax.tree.leaves(params["trained"])[0].dtype
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), like)
        return {**params, "statistics": {"known": jnp.zeros((), dtype), **estimated(nothing)}}

    def seen(params: Params, x: Array) -> Array:
        found = params["statistics"]
        if "amplitude" in found:
            x = harmonised(x, found["amplitude"])
        return normalized(x, found["moments"]) if normalize else x

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        return learner.grad(params, {**batch, "x": seen(params, batch["x"])}, key)

    return learner.viewed(lambda params, x: (params, seen(params, x)))._replace(init=init, grad=grad)


def normalized(x: Array, moments: Tree) -> Array:
    """(x - mean) / sd by the last axis of x [B, ..., F], 0 where x is NaN; `moments`: {"mean" [F], "sd" [F]}.

    So what is missing is filled in with the mean of all data. A picture behind F columns stays as it is.
    """
    columns = moments["mean"].shape[0]
    if columns < x.shape[-1]:
        return jnp.concatenate([normalized(x[..., :columns], moments), x[..., columns:]], axis=-1)
    mean, sd = (moments[name].astype(x.dtype).reshape(*(1,) * (x.ndim - 1), -1) for name in ("mean", "sd"))
    return jnp.where(jnp.isnan(x), 0, (x - mean) / sd)


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
