"""Every node alone: the local steps of `dsgd`, and never a word to a neighbour. The baseline of every result."""

from __future__ import annotations

import optax

from p2pfl.algorithms.dsgd import DSGDState, dsgd
from p2pfl.types import Algorithm, Demands, Inbox, Learner, Neighborhood


def local(learner: Learner, optimizer: optax.GradientTransformation) -> Algorithm:
    """Local training only; `mix` leaves the model as it is."""

    def mix(state: DSGDState, inbox: Inbox, neighborhood: Neighborhood) -> DSGDState:
        return state

    return dsgd(learner, optimizer)._replace(
        name="local", mix=mix, travels="nothing", link="none", keeps_mean="nothing", demands=Demands("any")
    )
