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
    """Take several local momentum steps between two exchanges: DFedAvgM.

    Source: Sun, Li, Wang (2021), see the head of this file.

    Args:
        learner: what is learned: the first model, gradients and evaluation.
        optimizer: any optax optimizer of the local steps; its state stays at home.
        beta: 0 <= beta < 1 of the heavy-ball momentum; 0 is DFedAvg.
        keep_momentum: the momentum goes on from round to round; else it starts at zero in each.

    Returns:
        The algorithm, for any driver.

    Raises:
        ConfigError: beta is out of bounds.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> p2pfl.algorithms.dfedavg(learner(2), optax.sgd(0.1), beta=0.5).travels
        'the model'
    """
    base = dmsgd(learner, optimizer, beta)._replace(name="dfedavg")
    if keep_momentum:
        return base

    def local(state: DSGDState, batches: Batches, key: Key, steps: Steps | None) -> tuple[DSGDState, Metrics]:
        rest = state.opt_state[1:]
        fresh = optax.trace(beta).init(state.params["trained"])
        return base.local(state._replace(opt_state=(fresh, *rest)), batches, key, steps)

    return base._replace(local=local)
