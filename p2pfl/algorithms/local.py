"""Every node alone: the local steps of `dsgd`, and never a word to a neighbour. The baseline of every result."""

from __future__ import annotations

import optax

from p2pfl.algorithms.dsgd import DSGDState, dsgd
from p2pfl.types import Algorithm, Demands, Inbox, Learner, Neighborhood


def local(learner: Learner, optimizer: optax.GradientTransformation) -> Algorithm:
    """Train every node alone; `mix` leaves the model as it is.

    The baseline of every result; source: none.

    Args:
        learner: what is learned: the first model, gradients and evaluation.
        optimizer: any optax optimizer of the local steps; its state stays at home.

    Returns:
        The algorithm, for any driver.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> p2pfl.algorithms.local(learner(2), optax.sgd(0.1)).link
        'none'
    """

    def mix(state: DSGDState, inbox: Inbox, neighborhood: Neighborhood) -> DSGDState:
        return state

    return dsgd(learner, optimizer)._replace(
        name="local", mix=mix, travels="nothing", link="none", keeps_mean="nothing", demands=Demands("any")
    )
