"""Pure averaging: each node takes its own random numbers in the first round, and from then on nobody learns.

The source "quadratic" starts every node at zero and gives each a minimum b, drawn from a normal distribution. One
Newton step leads from zero to b, and every later step is empty. What then travels and how it is mixed is the built-in
algorithm `of`, untouched.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from p2pfl.algorithms import ALGORITHMS
from p2pfl.types import Algorithm, Key, Learner, Metrics, Params, Tree


def averaging(learner: Learner, optimizer: optax.GradientTransformation, of: str = "dsgd") -> Algorithm:
    """The algorithm `of` on numbers that stay as they are drawn; the experiment's optimizer is not used."""
    once = optax.sgd(lambda step: jnp.where(step == 0, 1.0, 0.0))

    def newton(params: Params, batch: Tree, key: Key) -> tuple[Tree, Tree, Metrics]:
        def slope(value: float) -> Tree:
            return learner.grad(jax.tree.map(lambda leaf: jnp.full_like(leaf, value), params), batch, key)[0]

        gradient, carried, metrics = learner.grad(params, batch, key)
        step = jax.tree.map(lambda here, one, zero: here / (one - zero), gradient, slope(1.0), slope(0.0))
        return step, carried, metrics

    return ALGORITHMS[of](learner._replace(grad=newton), once)
