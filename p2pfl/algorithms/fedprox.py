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
    """The learner with the proximal term `mu` >= 0 in its local steps, on top of a penalty it may have."""
    at_least(0, mu=mu)
    inner = learner.penalty

    def penalty(trained: Tree, start: Tree) -> Tree:
        pull = jax.tree.map(lambda z, x: mu * (z - x), trained, start)
        return pull if inner is None else jax.tree.map(lambda a, b: a + b, pull, inner(trained, start))

    return learner._replace(penalty=penalty)


def fedprox(learner: Learner, optimizer: optax.GradientTransformation, mu: float = 0.01) -> Algorithm:
    """Decentralised FedProx: proximal local steps, then combine."""
    return dsgd(proximal(learner, mu), optimizer)._replace(name="fedprox")
