"""FedProx: local steps that are held back to the model the round began with.

    local objective:  f_i(z) + mu/2 ||z - x_i||^2,   x_i the model at the beginning of the round

Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated optimization in heterogeneous networks" (2020), equation
2. It slows the drift of many local steps; it does not remove the bias of unequal data. `proximal` makes the objective
of any learner, for any algorithm; `fedprox` is `dsgd` with it.

What travels, W, the mean and joiners: as `dsgd`.
"""

from __future__ import annotations

import jax
import optax

from p2pfl.algorithms.dsgd import dsgd
from p2pfl.check import at_least
from p2pfl.types import Algorithm, Learner, Tree


def proximal(learner: Learner, mu: float) -> Learner:
    """Hold local steps back to the model that the round began with.

    Source: Li et al. (2020), equation 2.

    Args:
        learner: the learner, whose own penalty stays.
        mu: strength, >= 0.

    Returns:
        The learner with the term mu/2 ||z - x||^2 in its local steps, x the model that the round began with.

    Raises:
        ConfigError: mu < 0.

    Example:
        >>> import jax.numpy as jnp, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> held = p2pfl.algorithms.proximal(learner(1), mu=0.5)
        >>> held.penalty({"x": jnp.ones(1)}, {"x": jnp.zeros(1)})["x"].item()
        0.5
    """
    at_least(0, mu=mu)
    inner = learner.penalty

    def penalty(trained: Tree, start: Tree) -> Tree:
        pull = jax.tree.map(lambda z, x: mu * (z - x), trained, start)
        return pull if inner is None else jax.tree.map(lambda a, b: a + b, pull, inner(trained, start))

    return learner._replace(penalty=penalty)


def fedprox(learner: Learner, optimizer: optax.GradientTransformation, mu: float = 0.01) -> Algorithm:
    """Take proximal local steps, then combine: decentralised FedProx.

    Source: Li et al. (2020), see the head of this file.

    Args:
        learner: what is learned: the first model, gradients and evaluation.
        optimizer: any optax optimizer of the local steps; its state stays at home.
        mu: strength of the proximal term, >= 0.

    Returns:
        The algorithm, for any driver.

    Raises:
        ConfigError: mu < 0.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> p2pfl.algorithms.fedprox(learner(2), optax.sgd(0.1), mu=0.1).name
        'fedprox'
    """
    return dsgd(proximal(learner, mu), optimizer)._replace(name="fedprox", any_steps=False)
