"""Alongside the model: a tree of a method's own, among what is private, that travels and is mixed by itself.

It lies at params["private"][NAME]["model"], beside the number of local steps that it has seen ("steps"), is sent with
every payload, and is mixed by the weights of the graph in the very same exchanges: t <- t + scale sum_j w_ij (t_j - t).
So it keeps its mean whatever is lost, and no algorithm's corrections, no optimizer and no `algorithm.share` touch it.
Whoever has not trained yet has nothing to say, and hears nothing. What is to be trained by the experiment's optimizer
like the model is `objectives.second`; what is told and not averaged a `bulletin`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from p2pfl.algorithms.mixing import exchange_mix, part
from p2pfl.methods.weighting import exchanges
from p2pfl.types import Algorithm, Batches, Inbox, Key, Metrics, Neighborhood, Params, Payload, State, Steps, Tree


def alongside(
    name: str, what: str, scale: float = 1.0, after: Callable[[Tree], Tree] | None = None
) -> Callable[[Algorithm], Algorithm]:
    """Make of an algorithm one that carries a method's own tree along. A combinator.

    Args:
        name: of the method among what is private.
        what: the tree in words, for a person who asks what travels.
        scale: of what mixing moves it by, 0 < scale <= 1.
        after: makes of params["private"][name] another, once a round, after the local steps and before it is sent.

    Returns:
        The combinator; an algorithm that sends nothing takes only `after`.

    Raises:
        ConfigError: when applied, an algorithm that sends one way.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> from p2pfl.methods.alongside import alongside
        >>> alongside("own", "an own model")(p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))).travels
        'the model, with an own model'
    """

    def wrap(inner: Algorithm) -> Algorithm:
        def kept(state: State, own: Tree) -> State:
            return inner.replaced(state, added(inner.params(state), name, own))

        def local(state: State, batches: Batches, key: Key, steps: Steps | None) -> tuple[State, Metrics]:
            state, metrics = inner.local(state, batches, key, steps)
            return (state if after is None else kept(state, after(_own(inner.params(state), name)))), metrics

        def send(state: State, neighborhood: Neighborhood) -> tuple[State, Payload]:
            own = _own(inner.params(state), name)
            state, payload = inner.send(state, neighborhood)
            begun = (own["steps"] > 0).astype(jnp.int32)
            return state, {"inner": payload, "own": {"model": own["model"], "begun": begun}}

        def mix(state: State, inbox: Inbox, neighborhood: Neighborhood) -> State:
            state = inner.mix(state, part(inbox, "inner"), neighborhood)
            theirs, own = part(inbox, "own"), _own(inner.params(state), name)
            both = inbox.arrived & (theirs.sent["begun"] > 0) & (theirs.received["begun"] > 0)
            booked = part(theirs, "model")._replace(arrived=both)
            return kept(state, {**own, "model": exchange_mix(own["model"], booked, neighborhood, scale)})

        made = inner._replace(local=local, any_steps=inner.any_steps and after is None)
        if inner.link == "none":
            return made
        exchanges(name, inner)
        return made._replace(send=send, mix=mix, linear=False, travels=f"{inner.travels}, with {what}")

    return wrap


def _own(params: Params, name: str) -> Tree:
    return params["private"][name]


def added(params: Params, name: str, own: Tree) -> Params:
    """The parts of a model with a method's own tree among what is private."""
    return {**params, "private": {**params.get("private", {}), name: own}}
