"""Decentralised SGD in adapt-then-combine form (diffusion).

    x_i' = local steps of the optimizer from x_i on node i's own data
    x_i+ = x_i' + sum_j w_ij (x_j' - x_i')

Source: Lian et al., "Can decentralized algorithms outperform centralized algorithms?" (2017); Sayed, "Adaptation,
learning, and optimization over networks" (2014), for the adapt-then-combine order. Weights: Metropolis-Hastings,
w_ij = 1 / (1 + max(d_i, d_j)).

What travels: the model, after the local steps. Asks of W: symmetric, rows that sum to one. Keeps the mean by exchange.
The optimizer's state stays at home; a joiner copies a neighbour's model and starts it afresh.
"""

from __future__ import annotations

from typing import NamedTuple

import optax

from p2pfl.learner import descend
from p2pfl.mixing import exchange_mix, first_arrived
from p2pfl.types import Algorithm, Batches, Inbox, Key, Learner, Metrics, Neighborhood, Params, Payload, Steps, Tree


class State(NamedTuple):
    """x and the optimizer's state."""

    params: Params
    opt_state: Tree


def dsgd(learner: Learner, optimizer: optax.GradientTransformation) -> Algorithm:
    """Decentralised SGD (adapt, then combine) with any optax optimizer as the local step."""

    def init(params: Params, slots: int) -> State:
        return State(params, optimizer.init(params["trained"]))

    def local(state: State, batches: Batches, key: Key, steps: Steps | None) -> tuple[State, Metrics]:
        params, opt_state, metrics = descend(learner, optimizer, *state, batches, key, steps)
        return State(params, opt_state), metrics

    def send(state: State, neighborhood: Neighborhood) -> tuple[State, Payload]:
        return state, state.params

    def mix(state: State, inbox: Inbox, neighborhood: Neighborhood) -> State:
        return state._replace(params=exchange_mix(state.params, inbox, neighborhood))

    def adopt(state: State, inbox: Inbox) -> State:
        return init(first_arrived(inbox), 0)

    return Algorithm("dsgd", init, local, send, mix, adopt, lambda state: state.params)
