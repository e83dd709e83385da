"""Gossip learning: every node sends its model to one random neighbour; models meet weighted by their age.

    on receiving (x', t'):   x <- (t x + t' x') / (t + t'),   t <- max(t, t'),    then local steps, each adding 1 to t
    limited merge:           |t - t'| > limit:  the older model replaces the younger

Source: Ormandi, Hegedus, Jelasity, "Gossip learning with linear models on fully distributed data" (2013), algorithm 1;
Hegedus, Danner, Jelasity, "Decentralized learning works: an empirical comparison of gossip learning and federated
learning" (2021) for the weights by age; Danner, Hegedus, Jelasity, "Improving gossip learning via limited model
merging" (2023) for the limit.

What travels: the model and its age. Nothing waits, nothing asks for a receipt, and the mean wanders. Asks nothing of W.
A joiner copies a model, at age 0.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from p2pfl.check import at_least
from p2pfl.learning.local_steps import descend, steps_in
from p2pfl.topology import sampled
from p2pfl.types import Algorithm, Batches, Demands, Inbox, Key, Learner, Metrics, Neighborhood, Params, Steps, Tree


class GossipState(NamedTuple):
    """x, the optimizer's state, and t: local steps behind the model."""

    params: Params
    opt_state: Tree
    age: Tree


def gossip_learning(learner: Learner, optimizer: optax.GradientTransformation, limit: int | None = None) -> Algorithm:
    """Push the model to one random neighbour; models merge weighted by their age.

    Source: Ormandi, Hegedus, Jelasity (2013), see the head of this file.

    Args:
        learner: what is learned: the first model, gradients and evaluation.
        optimizer: any optax optimizer of the local steps; its state stays at home.
        limit: local steps; of models whose ages differ by more the older replaces the younger. None merges all.

    Returns:
        The algorithm, for any driver.

    Raises:
        ConfigError: limit < 0.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> p2pfl.algorithms.gossip_learning(learner(2), optax.sgd(0.1), limit=100).travels
        'the model and its age'
    """
    at_least(0, limit=0 if limit is None else limit)

    def init(params: Params, slots: int) -> GossipState:
        return GossipState(params, optimizer.init(params["trained"]), jnp.zeros((), jnp.float32))

    def local(state: GossipState, batches: Batches, key: Key, steps: Steps | None) -> tuple[GossipState, Metrics]:
        done = descend(learner, optimizer, state.params, state.opt_state, batches, key, steps)
        taken = steps_in(batches) if steps is None else steps
        return GossipState(done.params, done.opt_state, state.age + jnp.asarray(taken, jnp.float32)), done.metrics

    def send(state: GossipState, neighborhood: Neighborhood) -> tuple[GossipState, Tree]:
        return state, {"model": state.params, "age": state.age}

    def mix(state: GossipState, inbox: Inbox, neighborhood: Neighborhood) -> GossipState:
        x, t = state.params, state.age
        for k in range(inbox.arrived.shape[0]):
            other = jax.tree.map(lambda leaf, k=k: leaf[k], inbox.received)
            here = inbox.arrived[k] & (neighborhood.weight[k] > 0)
            total = t + other["age"]
            theirs = jnp.where(total > 0, other["age"] / jnp.where(total > 0, total, 1), 0.5)
            if limit is not None:
                far = jnp.abs(t - other["age"]) > limit
                theirs = jnp.where(far, (other["age"] > t).astype(theirs.dtype), theirs)

            def leaf(a: Tree, b: Tree, here: Tree = here, theirs: Tree = theirs) -> Tree:
                return jnp.where(here, a + theirs.astype(a.dtype) * (b.astype(a.dtype) - a), a)

            x, t = jax.tree.map(leaf, x, other["model"]), jnp.where(here, jnp.maximum(t, other["age"]), t)
        return state._replace(params=x, age=t)

    def adopt(state: Any, params: Params) -> GossipState:
        return init(params, 0)

    return Algorithm(
        "gossip_learning", init, local, send, mix, adopt, lambda state: state.params,
        travels="the model and its age", link="push", keeps_mean="nothing", linear=False, demands=Demands("any"),
        plan=partial(sampled.pushes, s=1), learner=learner,
    )  # fmt: skip
