"""Noise on the weights that a node sends. A combinator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from p2pfl import tree
from p2pfl.check import at_least, one_of
from p2pfl.errors import ConfigError
from p2pfl.methods import site_facts
from p2pfl.types import Algorithm, Array, Neighborhood, Payload, State

LAWS: Mapping[str, Callable[..., Array]] = MappingProxyType(
    {"gaussian": jax.random.normal, "laplace": jax.random.laplace}
)
"""How noise is distributed: of standard deviation 1, and of Laplace's scale 1 (a standard deviation of 1.41)."""

AS_THEY_ARE = ("told", "sums", "carried", "second")
"""Parts of a payload that get no noise: what a node tells of itself, sums (which have their own), batch statistics,
second moments (of the objective "selector"), which are not below zero."""


def noise(scale: float, kind: str = "gaussian") -> Callable[[Algorithm], Algorithm]:
    """Add noise to every leaf that is sent, in proportion to how its numbers spread: w + eps, eps ~ scale sd(w).

    Both ends of an exchange mix the noisy values that were sent: x_i += w_ij (x_j + eps_j - x_i - eps_i). So the mean
    of the models over the nodes is kept exactly, as without noise; what noise moves is how far apart they are, by sum_j
    w_ij (eps_j - eps_i) at node i and round. In the source a server averages the noisy models of all sites, and the
    mean itself takes the noise in. Models come no nearer to one another than that noise; with a scale near 1 it grows
    round by round, since a leaf that spreads wider gets more.

    A leaf of one number, or whose numbers are all alike (biases at first), has no spread and gets none. Batch
    statistics travel as they are, since noise can make a variance negative: keep them at home with share = "silobn".
    A node that joins, or asks a neighbour for its model, is given it as it is. The noise of a study follows from its
    seed, for each node and message anew; where a machine has its own data only, it follows from a key of 64 bits that
    the operating system draws when the node starts. It is no differential privacy: nothing bounds what one row can do
    to a weight, and nothing is accounted for. Source: Li, Gu, Dvornek, Staib, Ventola, Duncan, "Multi-site
    fMRI analysis using privacy-preserving federated learning and domain adaptation: ABIDE results" (2020), section 3.3.

    Args:
        scale: >= 0, in units of the standard deviation of each leaf.
        kind: "gaussian", or "laplace" (then `scale` is Laplace's).

    Returns:
        A combinator for `chain`; its models need what p2pfl.methods.site_facts has for noise.

    Raises:
        ConfigError: an argument is out of bounds; when applied, an algorithm that sends nothing, running sums, or
            something else to each neighbour.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.noise(0.01)).travels
        'the model, with gaussian noise of 0.01 standard deviations'
    """
    at_least(0, scale=scale)
    one_of(LAWS, kind=kind)

    def wrap(inner: Algorithm) -> Algorithm:
        if inner.link == "none":
            raise ConfigError(f"wrap noise: {inner.name} exchanges nothing; leave noise out")
        if inner.keeps_mean == "running_sums" or inner.per_edge:
            raise ConfigError(
                f"wrap noise: {inner.name} sends running sums, in which noise would add up for ever; use an algorithm "
                "of exchanges, such as dsgd"
            )

        def send(state: State, neighborhood: Neighborhood) -> tuple[State, Payload]:
            state, payload = inner.send(state, neighborhood)
            params = inner.params(state)
            key, params = site_facts.drawn(params)
            return inner.replaced(state, params), noisy(payload, key, scale, kind)

        travels = f"{inner.travels}, with {kind} noise of {scale:g} standard deviations"
        return inner._replace(send=send, travels=travels)

    return wrap


def noisy(payload: Payload, key: Array, scale: float, kind: str) -> Payload:
    """A payload with noise on all that `noise` puts it on."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(payload)

    def one(index: int, path: tuple[Any, ...], leaf: Array) -> Array:
        apart = any(name in AS_THEY_ARE for name in tree.before_model(path))
        if apart or not leaf.ndim or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        eps = LAWS[kind](jax.random.fold_in(key, index), leaf.shape, leaf.dtype)
        return leaf + jnp.asarray(scale, leaf.dtype) * leaf.std() * eps

    return jax.tree.unflatten(structure, [one(index, *each) for index, each in enumerate(leaves)])
