"""Sharing parts of leaves: an element is mixed by the exchanges of two nodes that both hold it. A combinator.

Whole leaves are shared or kept by p2pfl.methods.sharing.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from p2pfl.methods.weighting import exchanges
from p2pfl.tree import is_model, named_leaves
from p2pfl.types import (
    Algorithm,
    Array,
    Inbox,
    Neighborhood,
    Params,
    Payload,
    State,
    Tree,
)

Mask = Callable[[Tree, Params], Params]
"""(what a node tells of itself, the shapes of a model) -> {"trained", "carried"} of bools that broadcast to leaves."""


def masked(name: str, what: str, tell: Callable[[Params], Tree], mask_of: Mask) -> Callable[[Algorithm], Algorithm]:
    """Mix elements of leaves that both ends hold, and no others.

    Models are masked, and whatever else in a payload has the structure of model["trained"] (a direction, a momentum).
    Both ends mask alike, so that the mean of every element is kept, over its holders and over all; what a node does not
    hold never changes by mixing. With the graph's weights, the holders of an element agree on it only where they are
    joined by edges among themselves.

    Args:
        name: of the method, for the text of a refusal.
        what: in words, what a node tells.
        tell: (model) -> what a node tells its neighbours of itself, a number or a few.
        mask_of: (what is told, shapes of a model) -> bools that broadcast to the leaves of "trained" and "carried": the
            elements that the node holds.

    Returns:
        A combinator for `chain`.

    Raises:
        ConfigError: when applied, an algorithm that sends one way; one that sends nothing stays as it is.

    Example:
        >>> import jax, jax.numpy as jnp, optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> def all_of_it(told, like):
        ...     return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), like)
        >>> wrap = p2pfl.methods.masked("mine", "a one", lambda model: jnp.ones(()), all_of_it)
        >>> wrap(p2pfl.dsgd(learner(2), optax.sgd(0.1))).travels
        'the model, with a one'
    """

    def wrap(inner: Algorithm) -> Algorithm:
        if inner.link == "none":
            return inner
        exchanges(name, inner)

        def send(state: State, neighborhood: Neighborhood) -> tuple[State, Payload]:
            state, payload = inner.send(state, neighborhood)
            return state, {"inner": payload, "told": tell(inner.params(state))}

        def mix(state: State, inbox: Inbox, neighborhood: Neighborhood) -> State:
            like = inner.params(state)

            def both(told: Tree, heard: Tree) -> Params:
                return jax.tree.map(jnp.logical_and, mask_of(told, like), mask_of(heard, like))

            masks = jax.vmap(both)(inbox.sent["told"], inbox.received["told"])

            def is_trained(part: Tree) -> bool:
                return list(named_leaves(part)) == list(named_leaves(like["trained"]))

            def leaf(mask: Array, sent: Array, received: Array) -> Array:
                return jnp.where(jnp.broadcast_to(mask, sent.shape), received, sent)

            def part(sent: Tree, received: Tree) -> Tree:
                if is_model(sent):
                    pairs = {name: (sent[name], received[name]) for name in ("trained", "carried")}
                    return {
                        **received,
                        **{name: jax.tree.map(leaf, masks[name], *pair) for name, pair in pairs.items()},
                    }
                return jax.tree.map(leaf, masks["trained"], sent, received) if is_trained(sent) else received

            sent, received = inbox.sent["inner"], inbox.received["inner"]
            received = jax.tree.map(part, sent, received, is_leaf=lambda node: is_model(node) or is_trained(node))
            return inner.mix(state, inbox._replace(sent=sent, received=received), neighborhood)

        return inner._replace(send=send, mix=mix, linear=False, travels=f"{inner.travels}, with {what}")

    return wrap
