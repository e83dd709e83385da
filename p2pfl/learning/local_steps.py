"""The local steps that algorithms share, and the parts of a model that they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

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
    """What the local steps of a round did."""

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
    """S local steps of the optimizer on the node's own batches; the mean loss over the steps taken.

    With `steps`, batches from index `steps` on leave everything as it is. `direct` makes of each gradient what the
    optimizer gets (a correction, a momentum); with `directions`, its mean comes back. The optimizer's state comes back
    and is kept from round to round. A learner's `penalty` is added to each gradient, taken from the round's first
    model.
    """
    count = steps_in(batches)
    start, total = params["trained"], None
    if directions:
        total = jax.tree.map(jnp.zeros_like, start)

    def step(carry: tuple[Params, Tree, Tree], item: tuple[Array, Tree]) -> tuple[tuple[Params, Tree, Tree], Array]:
        index, batch = item
        params, opt_state, total = carry
        gradient, others, metrics = learner.grad(params, batch, jax.random.fold_in(key, index))
        if learner.penalty is not None:
            gradient = jax.tree.map(jnp.add, gradient, learner.penalty(params["trained"], start))
        if direct is not None:
            gradient = direct(gradient)
        updates, new_state = optimizer.update(gradient, opt_state, params["trained"])
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
