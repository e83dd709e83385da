"""The local steps that algorithms share, and the parts of a model that they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from p2pfl.learning.optimizers import updated
from p2pfl.types import Array, Batches, Key, Learner, Metrics, Params, Steps, Tree


def rest(params: Params) -> Params:
    """All parts of a model but the one with gradients."""
    return {part: tree for part, tree in params.items() if part != "trained"}


def placed(params: Params, site: Tree) -> Params:
    """A first model, given to a node: with what the node knows of its own data, where that is asked for."""
    return {**params, "private": {**params.get("private", {}), "site": site}} if site else params


def steps_in(batches: Batches) -> int:
    """S, of batches of S local steps."""
    return int(jax.tree.leaves(batches)[0].shape[0])


class Descent(NamedTuple):
    """The result of the local steps of a round."""

    params: Params
    opt_state: Tree
    metrics: Metrics
    direction: Tree  # mean over the steps taken of what was given to the optimizer; () unless asked for


def descend(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: Tree,
    batches: Batches,
    key: Key,
    steps: Steps | None = None,
    direct: Callable[[Tree], Tree] | None = None,
    directions: bool = False,
) -> Descent:
    """Take the local steps of a round on the node's own batches.

    A learner's `penalty` is added to each gradient, taken from the round's first model.

    Args:
        learner: whose gradients are taken.
        optimizer: of the steps.
        params: the model at first.
        opt_state: the optimizer's state, kept from round to round.
        batches: tree [S, B, ...]: samples of S steps.
        key: of the round, for dropout and the like.
        steps: [] int32: batches from this one on leave everything as it is; None: all S.
        direct: makes of each gradient what the optimizer gets (a correction, a momentum).
        directions: return the mean of what the optimizer got, too.

    Returns:
        Model, optimizer state, mean loss over the steps taken, and that direction.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from p2pfl.learning import descend, quadratic
        >>> learner, sgd = quadratic.learner(1), optax.sgd(0.5)
        >>> params = learner.init(jax.random.key(0))
        >>> batches = {"x": jnp.ones((2, 1, 2)), "y": jnp.zeros((2, 1))}  # f(x) = (x - 1)^2 / 2, two steps
        >>> done = descend(learner, sgd, params, sgd.init(params["trained"]), batches, jax.random.key(0))
        >>> done.params["trained"]["x"].item()
        0.75
    """
    count = steps_in(batches)
    start, total = params["trained"], None
    if directions:
        total = jax.tree.map(jnp.zeros_like, start)

    def step(carry: tuple[Params, Tree, Tree], item: tuple[Array, Tree]) -> tuple[tuple[Params, Tree, Tree], Array]:
        index, batch = item
        params, opt_state, total = carry
        own = jax.random.fold_in(key, index)
        gradient, others, metrics = learner.grad(params, batch, own)
        raw = gradient
        if learner.penalty is not None:
            gradient = jax.tree.map(jnp.add, gradient, learner.penalty(params["trained"], start))
        if direct is not None:
            gradient = direct(gradient)

        def loss_at(trained: Tree) -> Array:
            """The loss elsewhere; with what was added to the gradient here, so that the two go together."""
            loss = learner.grad({**params, "trained": trained}, batch, own)[2]["loss"]
            if gradient is raw:
                return loss
            parts = jax.tree.map(
                lambda g, r, a, b: ((g - r) * (a - b)).sum(), gradient, raw, trained, params["trained"]
            )
            return loss + sum(jax.tree.leaves(parts))

        updates, new_state = updated(optimizer, gradient, opt_state, params["trained"], metrics["loss"], loss_at)
        trained = optax.apply_updates(params["trained"], updates)
        if directions:
            total = jax.tree.map(jnp.add, total, gradient)
        new = ({**others, "trained": trained}, new_state, total)
        if steps is not None:
            new = jax.tree.map(lambda a, b: jnp.where(index < steps, a, b), new, carry)
        return new, metrics["loss"]

    items = (jnp.arange(count, dtype=jnp.int32), batches)
    carry, losses = jax.lax.scan(step, (params, opt_state, total), items, unroll=max(count, 1) if learner.unroll else 1)
    if steps is None:
        taken = jnp.asarray(max(count, 1), losses.dtype)
    else:
        losses = jnp.where(jnp.arange(count, dtype=jnp.int32) < steps, losses, 0)
        taken = jnp.maximum(steps, 1).astype(losses.dtype)
    params, opt_state, total = carry
    direction = jax.tree.map(lambda leaf: leaf / taken.astype(leaf.dtype), total) if directions else ()
    return Descent(params, opt_state, {"loss": losses.sum() / taken}, direction)
