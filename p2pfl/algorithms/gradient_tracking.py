"""Gradient tracking: every node follows an estimate y of the mean gradient, and all reach the optimum itself.

    adapt, then combine:   x+ = W (x - eta y),     y+ = W y + g(x+) - g(x)
    DIGing:                x+ = W x - eta y,       y+ = W y + g(x+) - g(x)          with y = g(x) at first

Source: Di Lorenzo, Scutari, "NEXT: in-network nonconvex optimization" (2016) for the first; Nedic, Olshevsky, Shi,
"Achieving geometric convergence for distributed optimization over time-varying graphs" (2017) for DIGing. Written with
the correction c = y - g, so that y is combined in the same exchange as x and any optimizer and number of local steps
will do: d_i = mean of g_i + c_i over the local steps, c_i+ = c_i + sum_j w_ij (d_j - d_i). With one step this is the
above; with several it is K-GT (Liu, Lin, Koloskova, Stich, "Decentralized gradient tracking with local steps", 2023).

What travels: the model and the direction d, twice a model. Asks of W: symmetric. Keeps the mean by exchange, and with
it the sum of the corrections, which is zero (mean y = mean g). It stands late exchanges, only slower. A joiner copies a
neighbour's model and has no correction; a leaver takes its share of the sum away.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from p2pfl.algorithms.mixing import exchange_mix, part
from p2pfl.check import one_of
from p2pfl.learning.local_steps import descend
from p2pfl.types import Algorithm, Batches, Inbox, Key, Learner, Metrics, Neighborhood, Params, Payload, Steps, Tree


class TrackingState(NamedTuple):
    """x, the optimizer's state, c, and what travels: x (before or after the local steps) and d."""

    params: Params
    opt_state: Tree
    correction: Tree
    model: Params | None
    direction: Tree


def gradient_tracking(learner: Learner, optimizer: optax.GradientTransformation, form: str = "atc") -> Algorithm:
    """Follow an estimate of the mean gradient, so that all reach the optimum itself.

    Source: Di Lorenzo, Scutari (2016); Nedic, Olshevsky, Shi (2017), see the head of this file.

    Args:
        learner: what is learned: the first model, gradients and evaluation.
        optimizer: any optax optimizer of the local steps; its state stays at home.
        form: "atc" or "diging".

    Returns:
        The algorithm, for any driver.

    Raises:
        ConfigError: another form.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> p2pfl.algorithms.gradient_tracking(learner(2), optax.sgd(0.1)).travels
        'the model and a direction'
    """
    one_of(("atc", "diging"), form=form)

    def init(params: Params, slots: int) -> TrackingState:
        zeros = jax.tree.map(jnp.zeros_like, params["trained"])
        return TrackingState(
            params, optimizer.init(params["trained"]), zeros, params if form == "diging" else None, zeros
        )

    def local(state: TrackingState, batches: Batches, key: Key, steps: Steps | None) -> tuple[TrackingState, Metrics]:
        def direct(gradient: Tree) -> Tree:
            return jax.tree.map(jnp.add, gradient, state.correction)

        done = descend(learner, optimizer, state.params, state.opt_state, batches, key, steps, direct, directions=True)
        before = state.params if form == "diging" else None
        return TrackingState(done.params, done.opt_state, state.correction, before, done.direction), done.metrics

    def send(state: TrackingState, neighborhood: Neighborhood) -> tuple[TrackingState, Payload]:
        return state, {"model": state.params if form == "atc" else state.model, "direction": state.direction}

    def mix(state: TrackingState, inbox: Inbox, neighborhood: Neighborhood) -> TrackingState:
        return state._replace(
            params=exchange_mix(state.params, part(inbox, "model"), neighborhood),
            correction=exchange_mix(state.correction, part(inbox, "direction"), neighborhood),
        )

    def adopt(state: Any, params: Params) -> TrackingState:
        return init(params, 0)

    def restart(state: TrackingState, slots: int) -> TrackingState:  # y <- g
        return state._replace(correction=jax.tree.map(jnp.zeros_like, state.correction))

    return Algorithm(
        "gradient_tracking", init, local, send, mix, adopt, lambda state: state.params,
        travels="the model and a direction", state_class="sum",
        mass=lambda state: (state.params, state.correction), restart=restart, learner=learner,
    )  # fmt: skip
