"""Asynchronous decentralised parallel SGD: pairs of nodes average, while both go on training.

    x_i, x_j <- (x_i + x_j) / 2,      x_i <- x_i - eta g_i(x_i as it was when the gradient was begun)

Source: Lian, Zhang, Zhang, Liu, "Asynchronous decentralized parallel stochastic gradient descent" (2018), algorithm 1.
In each round every node has at most one partner, drawn along the graph; the pair is a double-entry exchange, so that
the averaging is atomic, and it carries the models from before the local steps, so that none waits for the gradient.
Without a barrier an exchange is booked some rounds late: the mean stays right, since both ends add opposite amounts.

What travels: the model before the local steps. Asks of W: symmetric (a graph in which edges go both ways). A joiner
copies a neighbour's model.
"""

from __future__ import annotations

import optax

from p2pfl.algorithms.dsgd import dsgd
from p2pfl.topology import sampled
from p2pfl.types import Algorithm, Learner


def ad_psgd(learner: Learner, optimizer: optax.GradientTransformation) -> Algorithm:
    """Average with one random neighbour at a time, gradients at the model from before: AD-PSGD.

    Source: Lian et al. (2018), see the head of this file.

    Args:
        learner: what is learned: the first model, gradients and evaluation.
        optimizer: any optax optimizer of the local steps; its state stays at home.

    Returns:
        The algorithm, for any driver.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> p2pfl.algorithms.ad_psgd(learner(2), optax.sgd(0.1)).lateness
        16
    """
    return dsgd(learner, optimizer, order="cta")._replace(name="ad_psgd", plan=sampled.matchings, lateness=16)
