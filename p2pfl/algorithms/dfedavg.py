"""Decentralised federated averaging: several local momentum steps between two exchanges.

    z_i  = K local steps:  m <- beta m + g_i(z),  z <- z - eta m       from z = x_i, and m = 0 or as it was
    x_i+ = sum_j w_ij z_j

Source: Sun, Li, Wang, "Decentralized federated averaging" (2021), algorithms 1 and 2 (DFedAvg, DFedAvgM). K is the
experiment's `local_steps`. Local steps drift apart on unequal data, by about K eta zeta.

What travels: the model. Asks of W: symmetric. Keeps the mean by exchange. A joiner copies a neighbour's model.
"""

from __future__ import annotations

import optax

from p2pfl.algorithms.dmsgd import dmsgd
from p2pfl.algorithms.dsgd import DSGDState
from p2pfl.types import Algorithm, Batches, Key, Learner, Metrics, Steps


def dfedavg(
    learner: Learner, optimizer: optax.GradientTransformation, beta: float = 0.9, keep_momentum: bool = False
) -> Algorithm:
    """DFedAvgM with 0 <= `beta` < 1 (0: DFedAvg); momentum starts at zero in every round unless it is kept."""
    base = dmsgd(learner, optimizer, beta)._replace(name="dfedavg")
    if keep_momentum:
        return base

    def local(state: DSGDState, batches: Batches, key: Key, steps: Steps | None) -> tuple[DSGDState, Metrics]:
        rest = state.opt_state[1:]
        fresh = optax.trace(beta).init(state.params["trained"])
        return base.local(state._replace(opt_state=(fresh, *rest)), batches, key, steps)

    return base._replace(local=local)
