"""Decentralised SGD, adapt-then-combine (diffusion) or combine-then-adapt (D-PSGD as published).

    adapt, then combine:   x_i+ = sum_j w_ij (x_j - eta g_j(x_j))
    combine, then adapt:   x_i+ = sum_j w_ij x_j - eta g_i(x_i)

Source: Lian et al., "Can decentralized algorithms outperform centralized algorithms?" (2017), equation of algorithm 1
for the second order; Sayed, "Adaptation, learning, and optimization over networks" (2014) for the first. On unequal
data both stop at a biased fixed point, the second slightly farther from the optimum; its payload does not wait for the
gradient.

What travels: the model, after the local steps or before them. Asks of W: symmetric. Keeps the mean by exchange. The
optimizer's state stays at home; a joiner copies a neighbour's model and starts it afresh.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import optax

from p2pfl.algorithms.mixing import exchange_mix
from p2pfl.check import one_of
from p2pfl.learning.local_steps import descend
from p2pfl.types import Algorithm, Batches, Inbox, Key, Learner, Metrics, Neighborhood, Params, Payload, Steps, Tree


class DSGDState(NamedTuple):
    """x, the optimizer's state, and what this round sends (combine-then-adapt: x before the local steps)."""

    params: Params
    opt_state: Tree
    before: Params | None


def dsgd(learner: Learner, optimizer: optax.GradientTransformation, order: str = "atc") -> Algorithm:
    """Take local steps and average with the neighbours: decentralised SGD, with any optimizer.

    Source: Lian et al. (2017); Sayed (2014), see the head of this file.

    Args:
        learner: what is learned: the first model, gradients and evaluation.
        optimizer: any optax optimizer of the local steps; its state stays at home.
        order: "atc", adapt then combine, or "cta", combine then adapt.

    Returns:
        The algorithm, for any driver.

    Raises:
        ConfigError: another order.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1), order="cta").travels
        'the model before the local steps'
    """
    one_of(("atc", "cta"), order=order)
    first = order == "cta"  # send first

    def init(params: Params, slots: int) -> DSGDState:
        return DSGDState(params, optimizer.init(params["trained"]), params if first else None)

    def local(state: DSGDState, batches: Batches, key: Key, steps: Steps | None) -> tuple[DSGDState, Metrics]:
        done = descend(learner, optimizer, state.params, state.opt_state, batches, key, steps)
        return DSGDState(done.params, done.opt_state, state.params if first else None), done.metrics

    def send(state: DSGDState, neighborhood: Neighborhood) -> tuple[DSGDState, Payload]:
        return state, state.before if first else state.params

    def mix(state: DSGDState, inbox: Inbox, neighborhood: Neighborhood) -> DSGDState:
        return state._replace(params=exchange_mix(state.params, inbox, neighborhood))

    def adopt(state: Any, params: Params) -> DSGDState:
        return init(params, 0)

    travels = "the model before the local steps" if first else "the model"
    return Algorithm(
        "dsgd", init, local, send, mix, adopt, lambda state: state.params, travels, any_steps=not first, learner=learner
    )  # fmt: skip
