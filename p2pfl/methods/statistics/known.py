"""A learner that uses what is known of all data together."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from p2pfl.errors import ConfigError
from p2pfl.methods.statistics.sums import GATHERED, estimated
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree


def learned(learner: Learner, like: Tree, normalize: bool) -> Learner:
    """The learner whose models hold params["statistics"]: "known" [] (0 or 1), and each estimate by its name.

    `like`: one site's sums, or their shapes. With `normalize`, inputs are scaled by the mean and the standard deviation
    of all data; where something is gathered that images should look like ("amplitude", "reinhard", "macenko"), they are
    made so before that. As long as nothing is known, both leave inputs as they are. What looks at params["statistics"]
    goes around this learner. Raises ConfigError for `normalize` without "moments", and for two looks.
    """
    if normalize and "moments" not in like:
        raise ConfigError('statistics.normalize=true: needs the moments; add them, as in gather = ["moments"]')

    looks = {name: look for name in like if (look := GATHERED[name].look)}
    if len(looks) > 1:
        raise ConfigError(
            f"statistics.gather: {' and '.join(looks)} each make images look like all, by what they looked like before "
            "the other has changed them; choose one"
        )

    def init(key: Key) -> Params:
        params = learner.init(key)
        dtype = jax.tree.leaves(params["trained"])[0].dtype
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), like)
        return {**params, "statistics": {"known": jnp.zeros((), dtype), **estimated(nothing)}}

    def seen(params: Params, x: Array) -> Array:
        found = params["statistics"]
        for name, look in looks.items():
            x = look(x, found[name])
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
