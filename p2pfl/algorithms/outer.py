"""An outer optimizer over the neighbourhood (DiLoCo), or over random pairs (NoLoCo).

    theta_i  = the local steps of the inner optimizer from phi_i
    D_i      = phi_i - sum_j w_ij theta_j                        [the outer gradient]
    phi_i+   = one step of the outer optimizer from phi_i along D_i

Source: Douillard et al., "DiLoCo: distributed low-communication training of language models" (2023), algorithm 1: with
equal phi on a complete graph this is it. Kolehmainen et al., "NoLoCo: no-all-reduce low communication training method
for large models" (2025): over pairs, m+ = beta m + a mean(theta - phi) + a (mean(phi) - phi_i); both terms together are
-a D_i, so that the models theta alone need to travel. The outer optimizer is any of optax.

What travels: the model theta. Asks of W: symmetric. Keeps the mean of theta by exchange. A joiner copies a neighbour's
model and starts both optimizers afresh.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax

from p2pfl.algorithms.mixing import exchange_mix
from p2pfl.errors import ConfigError
from p2pfl.learning.local_steps import descend
from p2pfl.learning.optimizers import by_gradient
from p2pfl.learning.optimizers import optimizer as optimizer_of
from p2pfl.topology import sampled
from p2pfl.types import Algorithm, Batches, Inbox, Key, Learner, Metrics, Neighborhood, Params, Payload, Steps, Tree

NESTEROV: Mapping[str, Any] = {"name": "sgd", "learning_rate": 0.7, "momentum": 0.9, "nesterov": True}
"""The outer optimizer of DiLoCo."""


class OuterState(NamedTuple):
    """The model (phi, between `local` and `mix` theta), the inner optimizer's state, phi, the outer state, W theta."""

    params: Params
    opt_state: Tree
    anchor: Params
    outer_state: Tree
    mixed: Params


def outer(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    outer: Mapping[str, Any] | optax.GradientTransformation = NESTEROV,
    pairs: bool = False,
) -> Algorithm:
    """Take a step of a second optimizer along what a round has changed: DiLoCo over the neighbourhood.

    Source: Douillard et al. (2023); Kolehmainen et al. (2025), see the head of this file.

    Args:
        learner: what is learned: the first model, gradients and evaluation.
        optimizer: any optax optimizer of the local steps; its state stays at home.
        outer: the second optimizer, of optax, or its name and arguments: {"name": "sgd", "learning_rate": 0.7}.
        pairs: random pairs, drawn in every round (NoLoCo), in place of all neighbours (DiLoCo).

    Returns:
        The algorithm, for any driver.

    Raises:
        ConfigError: `outer` names no optimizer of optax.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> p2pfl.algorithms.outer(learner(2), optax.sgd(0.1), outer=optax.sgd(0.7)).name
        'outer'
    """
    if not isinstance(outer, optax.GradientTransformation):
        if "name" not in outer:
            raise ConfigError('outer: must name an optimizer, as in { name = "sgd", learning_rate = 0.7 }')
        outer = optimizer_of(**outer)
    second = by_gradient(outer, "outer")

    def init(params: Params, slots: int) -> OuterState:
        trained = params["trained"]
        return OuterState(params, optimizer.init(trained), params, second.init(trained), params)

    def local(state: OuterState, batches: Batches, key: Key, steps: Steps | None) -> tuple[OuterState, Metrics]:
        done = descend(learner, optimizer, state.params, state.opt_state, batches, key, steps)
        return state._replace(params=done.params, opt_state=done.opt_state, mixed=done.params), done.metrics

    def send(state: OuterState, neighborhood: Neighborhood) -> tuple[OuterState, Payload]:
        return state, state.params

    def mix(state: OuterState, inbox: Inbox, neighborhood: Neighborhood) -> OuterState:
        mixed = exchange_mix(state.mixed, inbox, neighborhood)
        phi = state.anchor["trained"]
        gradient = jax.tree.map(lambda a, b: a - b, phi, mixed["trained"])
        updates, outer_state = second.update(gradient, state.outer_state, phi)
        new = {**mixed, "trained": optax.apply_updates(phi, updates)}
        return OuterState(new, state.opt_state, new, outer_state, mixed)

    def adopt(state: Any, params: Params) -> OuterState:
        return init(params, 0)

    return Algorithm(
        "outer", init, local, send, mix, adopt, lambda state: state.params,
        mass=lambda state: state.mixed, plan=sampled.matchings if pairs else None, learner=learner,
    )  # fmt: skip
