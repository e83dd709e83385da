"""Federated averaging, the baseline everybody asks for, as what it is on a graph.

    on a star, two rounds:       gather: the hub takes sum_k (n_k / N) x_k;   copy: the leaves take the hub's model
    on a complete graph, one:    every node takes sum_k (n_k / N) x_k

Source: McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-efficient learning of deep networks from
decentralized data" (2017), algorithm 1, all clients in every round; n_k are the nodes' training rows. In the copying
round nobody trains. The hub has data of its own and takes part like any other. What does not arrive is left out of the
average, as the paper leaves out clients that are not there.

What travels: the model, one way. Asks for a star or a complete graph. The mean by samples is what it takes; the plain
mean is not kept. A joiner copies a model.
"""

from __future__ import annotations

import optax

from p2pfl.algorithms.dsgd import dsgd
from p2pfl.algorithms.mixing import renormalized
from p2pfl.topology import sampled
from p2pfl.types import Algorithm, Demands, Learner


def fedavg(learner: Learner, optimizer: optax.GradientTransformation) -> Algorithm:
    """Average by samples: gather and copy on a star, at once on a complete graph.

    Source: McMahan et al. (2017), see the head of this file.

    Args:
        learner: what is learned: the first model, gradients and evaluation.
        optimizer: any optax optimizer of the local steps; its state stays at home.

    Returns:
        The algorithm, for any driver.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> p2pfl.algorithms.fedavg(learner(2), optax.sgd(0.1)).demands.weights
        'row'
    """
    return dsgd(learner, optimizer)._replace(
        name="fedavg", plan=sampled.star_phases, link="push", keeps_mean="nothing", demands=Demands("row"),
        weigh=renormalized, any_steps=False,
    )  # fmt: skip
