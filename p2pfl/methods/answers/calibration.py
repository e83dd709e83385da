"""Batch statistics of a model as they are on given inputs, exactly, and the layers that use them.

A step of training moves a running mean by m <- momentum m + (1 - momentum) s, s being the statistic of the batch. What
momentum a layer has is nobody's knowledge but its own, so it is measured: the same step from two values of m gives
momentum and s, as exactly as floats do. No passes are needed for it to forget; labels and gradients are not used.

Inputs are taken in chunks of at most ROWS rows. In one chunk, s is the mean and the variance of all rows at once, with
layers further on seeing what the ones before make of that; of several chunks the mean is taken by rows, and the
variance then lacks that between the chunks' means. It is training that is repeated: dropout drops, and augmentation
augments.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.methods.sharing import leaves, statistic
from p2pfl.tree import named_leaves, path_name
from p2pfl.types import Array, Key, Learner, Params, Tree

ROWS = 2048
"""Rows of one chunk at most."""
_SAME = 1e-3


def check(learner: Learner, name: str) -> None:
    """Raises ConfigError for a model without batch statistics; `name`: of the answer."""
    like = jax.eval_shape(learner.init, jax.random.key(0))
    if not jax.tree.leaves(statistics(like)):
        raise ConfigError(
            f"answers={name!r}: the model has no batch statistics (its leaves: {', '.join(leaves(like))}); give it "
            "model.norm = 'batch', or leave it out"
        )


Again = Callable[[Params, Array, Array, Key], Params]
"""(model, x [N, ...], y [1, ...], key) -> the model with the statistics of x; y: one of its answers, for the shape."""


def recalibrated(again: Again, params: Params, x: np.ndarray, y: np.ndarray, key: Key) -> Params:
    """The model with the batch statistics of the inputs x [N, ...], in chunks; `again`: what `compiled` makes.

    Raises ConfigError for statistics that are no running means.
    """
    count, label = -(-len(x) // ROWS), jnp.asarray(y[:1])
    total, rows = None, 0
    for part in np.array_split(x, count):
        found = statistics(again(params, jnp.asarray(part), label, key))
        share = len(part) / (rows := rows + len(part))
        total = found if total is None else jax.tree.map(lambda a, b, share=share: a + share * (b - a), total, found)
    return _with_statistics(params, total)


def compiled(learner: Learner) -> Again:
    """Compile the statistics of all rows of x in one chunk. Raises ConfigError as `recalibrated`."""

    def forward(params: Params, stats: Tree, x: Array, y: Array, key: Key) -> Tree:
        batch = {"x": x, "y": jnp.broadcast_to(y, (x.shape[0], *y.shape[1:]))}
        _, others, _ = learner.grad(_with_statistics(params, stats), batch, key)
        return statistics(others)

    @jax.jit
    def again(params: Params, x: Array, y: Array, key: Key) -> tuple[Tree, Array]:
        before = statistics(params)
        zero = forward(params, jax.tree.map(jnp.zeros_like, before), x, y, key)
        # from a second value that is far from the first, in the units of what is measured
        far = jax.tree.map(lambda leaf: 1 + 10 * jnp.abs(leaf) if _mean(leaf) else leaf, zero)
        moved = forward(params, far, x, y, key)

        def leaf(zero: Array, moved: Array, far: Array, before: Array) -> Array:
            if not _mean(zero):
                return before
            left = 1 - (moved - zero) / far  # 1 - momentum
            moves = left > 1e-6
            return jnp.where(moves, zero / jnp.where(moves, left, 1), before)

        found = jax.tree.map(leaf, zero, moved, far, before)
        off = jax.tree.map(
            lambda a, b: jnp.max(jnp.abs(a - b) / (1 + jnp.abs(a))) if _mean(a) else jnp.zeros(()),
            found, forward(params, found, x, y, key),
        )  # fmt: skip
        return found, jnp.max(jnp.stack([leaf.astype(jnp.float32) for leaf in jax.tree.leaves(off)]))

    def run(params: Params, x: Array, y: Array, key: Key) -> Params:
        found, off = again(params, x, y, key)
        if not float(off) < _SAME:
            raise ConfigError(
                "answers: the batch statistics of this model are no running means of what its layers see, and can't be "
                "made anew; leave recalibrated and adapted out"
            )
        return _with_statistics(params, found)

    return run


def _mean(leaf: Array) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


# --- where they lie: with the shared leaves, or with those that `share` keeps at home


def statistics(params: Params) -> Tree:
    """The batch statistics, shared and private ones."""
    own = params.get("private", {}).get("share", {}).get("leaves", {}).get("carried", {})
    return {"carried": params["carried"], "own": own}


def _with_statistics(params: Params, found: Tree) -> Params:
    return _with(params, "carried", found["carried"], found["own"])


def norms(params: Params) -> dict[str, Array]:
    """Scale and bias of the layers that have batch statistics, by path; shared ones and private ones."""
    return {path: leaf for path, leaf in trained(params).items() if _is_norm(path, params)}


def with_trained(params: Params, found: dict[str, Array]) -> Params:
    """The model with other leaves, by path, of those that are trained."""

    def replaced(prefix: str, tree: Tree) -> Tree:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: found.get(f"{prefix}{path_name(path)}", leaf), tree)

    own = params.get("private", {}).get("share", {}).get("leaves", {}).get("trained", {})
    return _with(params, "trained", replaced("", params["trained"]), replaced("own:", own))


def with_statistics_of(params: Params, other: Params) -> Params:
    """The model with the batch statistics of another."""
    return _with_statistics(params, statistics(other))


def trained(params: Params) -> dict[str, Array]:
    """The leaves that are trained, by path; private ones with "own:" in front."""
    own = params.get("private", {}).get("share", {}).get("leaves", {}).get("trained", {})
    mine = {f"own:{path}": leaf for path, leaf in named_leaves(own).items()}
    return {**named_leaves(params["trained"]), **mine}


def _is_norm(path: str, params: Params) -> bool:
    found = statistics(params)
    paths = [statistic(path) for part in found.values() for path in named_leaves(part)]
    homes = {path.rpartition("/")[0].removeprefix("batch_stats/") for path in paths}
    return path.removeprefix("own:").rpartition("/")[0] in homes


def _with(params: Params, part: str, shared: Tree, own: Tree) -> Params:
    """The model with another trained or carried part, on both sides of `share`."""
    new = {**params, part: shared}
    if "share" in params.get("private", {}):
        kept = params["private"]["share"]
        home = {**kept, "leaves": {**kept["leaves"], part: own}}
        new["private"] = {**params["private"], "share": home}
    return new
