"""Decentralised momentum SGD.

    m_i+ = beta m_i + g_i(x_i)
    x_i+ = sum_j w_ij (x_j - eta m_j+)          and, if the momentum travels too:  m_i+ = sum_j w_ij m_j+

Source: Yu, Jin, Yang, "On the linear speedup analysis of communication efficient momentum SGD for distributed
non-convex optimization" (2019). Momentum does not help against unequal data: the fixed point is that of `dsgd` at the
learning rate eta / (1 - beta).

What travels: the model; with `mix_momentum` the model and the momentum. Asks of W: symmetric. Keeps the mean by
exchange. A joiner copies a neighbour's model and starts with no momentum.
"""

from __future__ import annotations

import optax

from p2pfl.algorithms.dsgd import DSGDState, dsgd
from p2pfl.algorithms.mixing import exchange_mix, part
from p2pfl.check import share
from p2pfl.types import Algorithm, Inbox, Learner, Neighborhood, Payload


def dmsgd(
    learner: Learner, optimizer: optax.GradientTransformation, beta: float = 0.9, mix_momentum: bool = False
) -> Algorithm:
    """Take steps of SGD with heavy-ball momentum, then mix.

    Source: Yu, Jin, Yang (2019), see the head of this file.

    Args:
        learner: what is learned: the first model, gradients and evaluation.
        optimizer: any optax optimizer of the local steps; its state stays at home.
        beta: 0 <= beta < 1 of the heavy-ball momentum, before the optimizer.
        mix_momentum: the momentum travels and is mixed, too.

    Returns:
        The algorithm, for any driver.

    Raises:
        ConfigError: beta is out of bounds.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> p2pfl.algorithms.dmsgd(learner(2), optax.sgd(0.1), mix_momentum=True).travels
        'the model and its momentum'
    """
    share(beta=beta)
    base = dsgd(learner, optax.chain(optax.trace(beta), optimizer))._replace(name="dmsgd", any_steps=False)
    if not mix_momentum:
        return base

    def send(state: DSGDState, neighborhood: Neighborhood) -> tuple[DSGDState, Payload]:
        return state, {"model": state.params, "momentum": state.opt_state[0].trace}

    def mix(state: DSGDState, inbox: Inbox, neighborhood: Neighborhood) -> DSGDState:
        trace, *rest = state.opt_state
        momentum = exchange_mix(trace.trace, part(inbox, "momentum"), neighborhood)
        return state._replace(
            params=exchange_mix(state.params, part(inbox, "model"), neighborhood),
            opt_state=(trace._replace(trace=momentum), *rest),
        )

    return base._replace(send=send, mix=mix, travels="the model and its momentum")
