"""Quasi-global momentum: momentum along the way that the mixed model takes, not the local gradients.

    x_i'  = x_i - eta (beta m_i + g_i(x_i))                       [each of the local steps, m fixed within a round]
    x_i+  = sum_j w_ij x_j'
    m_i+  = mu m_i + (1 - mu) (x_i - x_i+) / (eta S)              [S local steps at the learning rate eta]

Source: Lin, Karimireddy, Stich, Jaggi, "Quasi-global momentum: accelerating decentralized deep learning on
heterogeneous data" (2021), algorithm 1; here the heavy-ball form. It damps noise and oscillation; the fixed point is
that of `dsgd`. eta is read off the optimizer in each round, so that a schedule of learning rates is divided by the rate
it used.

What travels: the model. Asks of W: symmetric. Keeps the mean by exchange. A joiner copies a neighbour's model and
starts with no momentum.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from p2pfl.algorithms.mixing import exchange_mix
from p2pfl.check import share
from p2pfl.errors import ConfigError
from p2pfl.learning.local_steps import descend, steps_in
from p2pfl.learning.optimizers import is_plain, learning_rate
from p2pfl.types import Algorithm, Batches, Inbox, Key, Learner, Metrics, Neighborhood, Params, Steps, Tree


class QGState(NamedTuple):
    """x, the optimizer's state, m, x before the round's local steps, and eta times the steps taken."""

    params: Params
    opt_state: Tree
    momentum: Tree
    start: Tree
    rate: Tree


def qg_dsgdm(
    learner: Learner, optimizer: optax.GradientTransformation, beta: float = 0.9, mu: float | None = None
) -> Algorithm:
    """Take momentum along the way of the mixed model: quasi-global momentum.

    Source: Lin et al. (2021), see the head of this file.

    Args:
        learner: what is learned: the first model, gradients and evaluation.
        optimizer: any optax optimizer of the local steps; its state stays at home.
        beta: 0 <= beta < 1, how much of the momentum goes into a step.
        mu: 0 <= mu < 1, what a round leaves of the momentum; None: beta.

    Returns:
        The algorithm, for any driver.

    Raises:
        ConfigError: beta or mu is out of bounds, or the optimizer is not plain SGD.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> p2pfl.algorithms.qg_dsgdm(learner(2), optax.sgd(0.1)).name
        'qg_dsgdm'
    """
    mu = beta if mu is None else mu
    share(beta=beta, mu=mu)
    if not is_plain(optimizer):
        raise ConfigError("qg_dsgdm: brings its own momentum; the optimizer must be sgd without momentum")

    def init(params: Params, slots: int) -> QGState:
        trained = params["trained"]
        zeros = jax.tree.map(jnp.zeros_like, trained)
        return QGState(
            params, optimizer.init(trained), zeros, trained, jnp.zeros((), jax.tree.leaves(trained)[0].dtype)
        )

    def local(state: QGState, batches: Batches, key: Key, steps: Steps | None) -> tuple[QGState, Metrics]:
        start, count = state.params["trained"], steps_in(batches)
        rate = learning_rate(optimizer, state.opt_state, start) * jnp.asarray(
            count if steps is None else steps, state.rate.dtype
        )

        def direct(gradient: Tree) -> Tree:
            return jax.tree.map(lambda g, m: g + beta * m, gradient, state.momentum)

        done = descend(learner, optimizer, state.params, state.opt_state, batches, key, steps, direct)
        return QGState(done.params, done.opt_state, state.momentum, start, rate.astype(state.rate.dtype)), done.metrics

    def send(state: QGState, neighborhood: Neighborhood) -> tuple[QGState, Tree]:
        return state, state.params

    def mix(state: QGState, inbox: Inbox, neighborhood: Neighborhood) -> QGState:
        mixed = exchange_mix(state.params, inbox, neighborhood)
        moving = state.rate > 1e-7  # eta may be scheduled to zero, or to its rounding, and a round may have no steps
        rate = jnp.where(moving, state.rate, 1)

        def follow(m: Tree, before: Tree, after: Tree) -> Tree:
            return jnp.where(moving, mu * m + (1 - mu) * (before - after) / rate.astype(m.dtype), m)

        momentum = jax.tree.map(follow, state.momentum, state.start, mixed["trained"])
        return state._replace(params=mixed, momentum=momentum)

    def adopt(state: Any, params: Params) -> QGState:
        return init(params, 0)

    return Algorithm("qg_dsgdm", init, local, send, mix, adopt, lambda state: state.params, learner=learner)
