"""Epidemic learning: the graph is drawn anew in every round.

    EL-Local:    every node sends its model to s random others; x_i+ = mean of its own and those it received
    EL-Oracle:   a random s-regular graph; x_i+ = mean of its own and its s neighbours'

Source: de Vos, Farhadkhani, Guerraoui, Kermarrec, Pires, Sharma, "Epidemic learning: boosting decentralized learning
with randomized communication" (2023), algorithm 1. In expectation one round of Local leaves (1/s)(1 - (1 - s/(n-1))^n)
- 1/(n-1) of the mean squared deviation, one of Oracle (1/(s+1))(1 - s/(n-1)).

What travels: the model. Local waits for nobody and needs no receipt, and its mean wanders; Oracle is a double-entry
exchange on symmetric weights, and keeps the mean. Others are drawn among the neighbours in the given graph (Oracle: a
complete one). A joiner copies a model.
"""

from __future__ import annotations

import optax

from p2pfl.algorithms.dsgd import dsgd
from p2pfl.algorithms.mixing import counted
from p2pfl.check import at_least, one_of
from p2pfl.topology import sampled
from p2pfl.types import Algorithm, Demands, Learner, Planning, Schedule


def epidemic(
    learner: Learner, optimizer: optax.GradientTransformation, kind: str = "local", sends: int = 2
) -> Algorithm:
    """Draw the graph anew in every round: epidemic learning.

    Source: de Vos et al. (2023), see the head of this file.

    Args:
        learner: what is learned: the first model, gradients and evaluation.
        optimizer: any optax optimizer of the local steps; its state stays at home.
        kind: "local", where every node sends to random others, or "oracle", a random regular graph.
        sends: models that a node sends in a round, >= 1.

    Returns:
        The algorithm, for any driver.

    Raises:
        ConfigError: another kind, or sends < 1.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> p2pfl.algorithms.epidemic(learner(2), optax.sgd(0.1), kind="oracle", sends=3).link
        'exchange'
    """
    one_of(("local", "oracle"), kind=kind)
    at_least(1, sends=sends)
    base = dsgd(learner, optimizer)._replace(name="epidemic")

    def regular(schedule: Schedule, planning: Planning) -> Schedule:
        return sampled.regular(schedule, planning, sends)

    def pushes(schedule: Schedule, planning: Planning) -> Schedule:
        return sampled.pushes(schedule, planning, sends)

    if kind == "oracle":
        return base._replace(plan=regular)
    return base._replace(plan=pushes, link="push", keeps_mean="nothing", demands=Demands("any"), weigh=counted)
