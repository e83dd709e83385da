"""DP-SGD: the gradient of each row is clipped, and their sum is noised, before anything else sees it. An objective."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from p2pfl.check import at_least, positive
from p2pfl.errors import ConfigError
from p2pfl.learning.local_steps import rest, steps_in
from p2pfl.methods import site_facts
from p2pfl.methods.noise import LAWS
from p2pfl.methods.objectives.objective import Objective
from p2pfl.methods.privacy.correlated import shared
from p2pfl.types import Algorithm, Array, Batches, Key, Learner, Metrics, Params, State, Steps, Tree

NAME = "privacy"
"""Where the count of steps lies, in params["private"]; and what begins the names of the facts of a site."""
ALLOWED, NOISE, RATE = f"{NAME}_steps", f"{NAME}_noise", f"{NAME}_rate"
"""Facts of a site: how many local steps it may ever take, its noise multiplier, and with what probability a row is in
a batch."""
AT_ONCE = 16
"""Rows whose gradients are held at the same time."""


def dp_sgd(clip: float, batch_size: int, poisson: bool = False, correlated: float = 0.0) -> Objective:
    """Make local steps differentially private: g = (sum_i g_i min(1, C / |g_i|) + s C N(0, 1)) / batch_size.

    s is the node's noise multiplier, its fact NOISE. The sum goes over the rows of a batch; |g_i| is the norm over all
    leaves. The divisor is the planned number of rows, whatever is drawn, so that it says nothing. A row whose gradient
    is not finite counts as zero. It must be the first of all objectives: the others then get what is private already.
    The node counts its steps, and takes none beyond what the fact ALLOWED says of it: then its model moves by mixing
    alone. The noise follows from the seed in studies, and comes from the operating system where data are a node's own.

    `correlated`: to the sum comes for each neighbour c C N(0, 1), which the neighbour takes away from its own sum of
    the same step: in the mean over the nodes it cancels, and who does not know what the two share sees more noise by it
    (DECOR, Allouah et al. 2024). Both must have taken as many steps before.

    Source: Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang, "Deep learning with differential privacy" (2016),
    algorithm 1.

    Args:
        clip: C, the largest norm of the gradient of a row, > 0.
        batch_size: rows of a batch, >= 1; with `poisson` how many are expected.
        poisson: every row is in a batch with the probability that the fact RATE says, by itself: of the rows that come,
            which are in an order drawn anew for each batch, the first K count, K binomial.
        correlated: c, >= 0; needs the facts of p2pfl.methods.privacy.correlated.

    Returns:
        The objective, which asks to know ALLOWED and NOISE of each node (with `poisson` RATE and "samples" too).

    Raises:
        ConfigError: an argument is out of bounds; when applied, a model with batch statistics, which are sums over rows
            without noise, or an algorithm that takes no steps that could be counted.

    Example:
        >>> import jax, jax.numpy as jnp, p2pfl
        >>> from p2pfl.learning.local_steps import placed
        >>> from p2pfl.methods.privacy import dp_sgd
        >>> from p2pfl.methods.site_facts import counting
        >>> from flax import nnx
        >>> plain = p2pfl.from_flax(lambda rngs: nnx.Linear(2, 2, rngs=rngs), jnp.zeros((1, 2)), classes=2)
        >>> private = dp_sgd(clip=1.0, batch_size=2).learner(counting(plain))
        >>> site = {"entropy": jnp.zeros(2, jnp.uint32), "privacy_noise": jnp.float32(1e-6)}
        >>> params = placed(private.init(jax.random.key(0)), site)
        >>> batch = {"x": jnp.full((2, 2), 1e3), "y": jnp.zeros(2, jnp.int32)}
        >>> gradient = private.grad(params, batch, jax.random.key(1))[0]
        >>> float(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient))) < 1.001
        True
    """
    positive(clip=clip)
    at_least(1, batch_size=batch_size)
    at_least(0, correlated=correlated)

    def wrap_learner(inner: Learner) -> Learner:
        inner = counting_steps(inner)

        def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
            counts = jnp.ones(len(batch["x"]), bool)
            if poisson:
                counts, params = _drawn(params, len(batch["x"]))
            total, loss = _clipped_sum(inner, params, batch, counts, key, clip)
            own, params = site_facts.drawn(params)
            site, taken = params["private"]["site"], params["private"][NAME]["steps"]
            total = noised(total, own, clip * site[NOISE], "gaussian", clip * correlated, site, taken)
            gradient = jax.tree.map(lambda leaf: leaf / jnp.asarray(batch_size, leaf.dtype), total)
            steps = taken + 1
            private = {**params["private"], NAME: {"steps": steps}}
            shown = loss / jnp.maximum(counts.sum(), 1).astype(loss.dtype)  # to this node alone
            return gradient, {**rest(params), "private": private}, {"loss": shown}

        return inner._replace(grad=grad)

    facts = ("entropy", "samples") if poisson else ("entropy",)
    return Objective(wrap_learner, wrap=_within_budget, facts=facts)


def counting_steps(inner: Learner) -> Learner:
    """The learner whose models count what their node has told of its rows. Raises ConfigError: see `dp_sgd`."""
    if jax.tree.leaves(jax.eval_shape(inner.init, jax.random.key(0)).get("carried", {})):
        raise ConfigError(
            "privacy: the model has batch statistics, which are sums over rows that no noise is added to; take a model "
            'without them, as with model.norm = "group"'
        )

    def init(key: Key) -> Params:
        params = inner.init(key)
        return {**params, "private": {**params.get("private", {}), NAME: {"steps": jnp.zeros((), jnp.int32)}}}

    return inner._replace(init=init)


def counted_from(state: State, steps: int) -> State:
    """Return an algorithm's state whose count of private steps is no less than this: of earlier processes."""

    def leaf(path: tuple[Any, ...], leaf: Array) -> Array:
        names = [getattr(key, "key", None) for key in path[-2:]]
        return jnp.maximum(leaf, steps) if names == [NAME, "steps"] else leaf

    found: State = jax.tree_util.tree_map_with_path(leaf, state)
    return found


def _clipped_sum(
    inner: Learner, params: Params, batch: Tree, counts: Array, key: Key, clip: float
) -> tuple[Tree, Array]:
    """The sum of the clipped gradients of the rows that count [B], and that of their losses."""
    common = {name: leaf for name, leaf in batch.items() if name == "classes"}
    rows = {name: leaf for name, leaf in batch.items() if name != "classes"}
    size, many = min(AT_ONCE, len(counts)), len(counts)
    gap = -many % size  # padded with rows that do not count
    place = jnp.concatenate([jnp.arange(many, dtype=jnp.int32), jnp.zeros(gap, jnp.int32)])
    counts = jnp.concatenate([counts, jnp.zeros(gap, bool)])

    def one(row: Tree, index: Array, on: Array) -> tuple[Tree, Array]:
        alone = {**jax.tree.map(lambda leaf: leaf[None], row), **common}
        gradient, _, metrics = inner.grad(params, alone, jax.random.fold_in(key, index))
        square = sum((leaf.astype(jnp.float32) ** 2).sum() for leaf in jax.tree.leaves(gradient))
        norm = jnp.sqrt(jnp.asarray(square, jnp.float32))
        factor = jnp.where(norm > clip, clip / jnp.maximum(norm, clip), 1)
        fine = on & jnp.isfinite(norm)
        clipped = jax.tree.map(lambda leaf: jnp.where(fine, leaf * factor.astype(leaf.dtype), 0), gradient)
        return clipped, jnp.where(on, metrics["loss"], 0)

    def add(total: tuple[Tree, Array], item: tuple[Array, Array]) -> tuple[tuple[Tree, Array], None]:
        places, on = item
        found = jax.vmap(one)(jax.tree.map(lambda leaf: leaf[places], rows), places, on)
        return jax.tree.map(lambda sum_, each: sum_ + each.sum(axis=0), total, found), None

    trained = params["trained"]
    loss = jax.eval_shape(lambda: inner.grad(params, {**jax.tree.map(lambda leaf: leaf[:1], rows), **common}, key))[2]
    first = jax.tree.map(jnp.zeros_like, trained), jnp.zeros((), loss["loss"].dtype)
    items = place.reshape(-1, size), counts.reshape(-1, size)
    total, _ = jax.lax.scan(add, first, items, unroll=len(items[0]) if inner.unroll else 1)
    return total


def noised(total: Tree, key: Key, scale: Array, law: str, correlated: float, site: Tree, turn: Array) -> Tree:
    """A tree with noise of this scale, and what the node shares with its neighbours, of the deviation `correlated`."""
    leaves, structure = jax.tree.flatten(total)

    def one(index: int, leaf: Array) -> Array:
        found = leaf + scale.astype(leaf.dtype) * LAWS[law](jax.random.fold_in(key, index), leaf.shape, leaf.dtype)
        return found + jnp.asarray(correlated, leaf.dtype) * shared(site, turn, index, leaf) if correlated else found

    return jax.tree.unflatten(structure, [one(index, leaf) for index, leaf in enumerate(leaves)])


def _drawn(params: Params, most: int) -> tuple[Array, Params]:
    """[B] bool: which rows of a batch count, of a number that is binomial, at most `most`."""
    key, params = site_facts.drawn(params)
    site = params["private"]["site"]
    many = jax.random.binomial(key, site["samples"].astype(jnp.float32), site[RATE].astype(jnp.float32))
    return jnp.arange(most, dtype=jnp.int32) < many.astype(jnp.int32), params


def _within_budget(inner: Algorithm) -> Algorithm:
    """The algorithm whose nodes take no more local steps than they are allowed."""
    if inner.learner is None:
        raise ConfigError(f"privacy: {inner.name} does not say what it learns with, so that no step could be counted")
    learner = inner.learner

    def local(state: State, batches: Batches, key: Key, steps: Steps | None) -> tuple[State, Metrics]:
        private = inner.params(state)["private"]
        left = jnp.maximum(private["site"][ALLOWED] - private[NAME]["steps"], 0)
        wanted = jnp.asarray(steps_in(batches), jnp.int32) if steps is None else steps
        after, metrics = inner.local(state, batches, key, jnp.minimum(wanted, left))
        return after, shown(learner, inner.params(state), batches, metrics, left > 0)

    return inner._replace(local=local, any_steps=False)


def shown(learner: Learner, params: Params, batches: Batches, metrics: Metrics, trains: Array) -> Metrics:
    """The metrics of a round with the loss of the model as it is, where no step was taken."""
    if not steps_in(batches):
        return metrics
    first = jax.tree.map(lambda leaf: leaf[0], batches)
    ones = jnp.ones(jax.tree.leaves(first)[0].shape[0], jnp.float32)
    as_it_is = learner.evaluate(params, first, ones)["loss"].mean()
    return {**metrics, "loss": jnp.where(trains, metrics["loss"], as_it_is.astype(metrics["loss"].dtype))}
