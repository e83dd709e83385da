"""Exact diffusion (NIDS): diffusion whose bias is corrected away, at the cost of one model a round.

    psi_i  = x_i - eta g_i(x_i)
    phi_i  = psi_i + x_i - psi_i(of the round before)
    x_i+   = sum_j v_ij phi_j,                V = (I + W) / 2

Source: Yuan, Ying, Zhao, Sayed, "Exact diffusion for distributed optimization and learning" (2017), algorithm 1; Li,
Shi, Yan, "A decentralized proximal-gradient method" (2019). Written with the correction c = x - psi(of the round
before), to which every exchange adds what it adds to x: so a voided exchange is as if its edge had not been there.

What travels: the corrected model phi. Asks of W: symmetric. Keeps the mean by exchange, and with it the sum of the
corrections, which is zero. It stands exchanges that are one round late, while not more than half are void, and diverges
at three. A joiner copies a neighbour's model and has no correction; a leaver takes its share of the sum away.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from p2pfl.algorithms.mixing import exchange_mix
from p2pfl.learning.local_steps import descend, steps_in
from p2pfl.tree import mixed
from p2pfl.types import Algorithm, Batches, Inbox, Key, Learner, Metrics, Neighborhood, Params, Payload, Steps, Tree


class DiffusionState(NamedTuple):
    """x (between `local` and `mix`: phi), the optimizer's state, and c."""

    params: Params
    opt_state: Tree
    correction: Params


def exact_diffusion(learner: Learner, optimizer: optax.GradientTransformation) -> Algorithm:
    """Reach the optimum on unequal data, for every symmetric W: exact diffusion.

    Source: Yuan, Ying, Zhao, Sayed (2017), see the head of this file.

    Args:
        learner: what is learned: the first model, gradients and evaluation.
        optimizer: any optax optimizer of the local steps; its state stays at home.

    Returns:
        The algorithm, for any driver.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> p2pfl.algorithms.exact_diffusion(learner(2), optax.sgd(0.1)).state_class
        'sum'
    """
    return corrected("exact_diffusion", learner, optimizer, 0.5)


def corrected(name: str, learner: Learner, optimizer: optax.GradientTransformation, scale: float) -> Algorithm:
    """Corrected diffusion with V = I + scale (W - I): exact diffusion for 1/2, D2 for 1."""

    def init(params: Params, slots: int) -> DiffusionState:
        return DiffusionState(params, optimizer.init(params["trained"]), jax.tree.map(jnp.zeros_like, mixed(params)))

    def local(state: DiffusionState, batches: Batches, key: Key, steps: Steps | None) -> tuple[DiffusionState, Metrics]:
        done = descend(learner, optimizer, state.params, state.opt_state, batches, key, steps)
        some = steps_in(batches) > 0 if steps is None else steps > 0

        def correct(psi: Any, c: Any) -> Any:  # a round without a step has nothing to correct
            return jnp.where(some, psi + c, psi)

        phi = jax.tree.map(correct, mixed(done.params), state.correction)
        return DiffusionState({**done.params, **phi}, done.opt_state, state.correction), done.metrics

    def send(state: DiffusionState, neighborhood: Neighborhood) -> tuple[DiffusionState, Payload]:
        return state, state.params

    def mix(state: DiffusionState, inbox: Inbox, neighborhood: Neighborhood) -> DiffusionState:
        apart = inbox._replace(sent=mixed(inbox.sent), received=mixed(inbox.received))
        return state._replace(
            params=exchange_mix(state.params, inbox, neighborhood, scale),
            correction=exchange_mix(state.correction, apart, neighborhood, scale),
        )

    def adopt(state: Any, params: Params) -> DiffusionState:
        return init(params, 0)

    def restart(state: DiffusionState, slots: int) -> DiffusionState:  # the next step is one of DSGD
        return state._replace(correction=jax.tree.map(jnp.zeros_like, state.correction))

    return Algorithm(
        name, init, local, send, mix, adopt, lambda state: state.params,
        travels="the corrected model", state_class="sum", lateness=1,
        mass=lambda state: (mixed(state.params), state.correction), restart=restart, learner=learner,
    )  # fmt: skip
