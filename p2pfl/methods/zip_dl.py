"""Noise on messages, another for each neighbour, that cancels in the average. A combinator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from p2pfl import tree
from p2pfl.algorithms.mixing import over
from p2pfl.check import positive
from p2pfl.methods import site_facts
from p2pfl.methods.noise import AS_THEY_ARE
from p2pfl.methods.weighting import exchanges
from p2pfl.types import Algorithm, Array, Neighborhood, Payload, State


def zip_dl(scale: float) -> Callable[[Algorithm], Algorithm]:
    """Send each neighbour j the model with noise of its own: x_i + n_ij, with sum_j w_ji n_ij = 0. Zip-DL.

    n_ij ~ N(0, scale^2), less what makes the weighted sum of a node's messages differ from none. So a single neighbour
    sees noise, the mean over all nodes sees none, nobody has to agree on anything with anybody, and a round is one
    message an edge, as ever. Noise is drawn anew in every round; its standard deviation at one neighbour is
    scale (1 - w^2 / sum w^2)^(1/2).

    What it does not do: all neighbours of a node together know that the sum is zero, and solve for the model. Nor
    has the model such noise that a node gives to one that joins, or to any neighbour that asks for it: what is said
    here is of neighbours that ask for none. Nothing bounds what a row does to the model, which is why it is no
    differential privacy by itself: with [privacy] (a clip, and noise of a node's own) the report says what a single
    other node sees through both, if it asks for no model, and through the node's own noise alone, if it does
    (p2pfl.methods.privacy.joint_view). Numbers of all leaves get noise of one deviation, however they spread, other
    than by the combinator `noise`. Where an exchange is lost, both ends leave it out: the mean is still kept, by double
    entry, and only the sum of what did arrive is not zero.

    Source: Biswas, Frey, Gaudel, Kermarrec, Lerévérend, Pires, Sharma, Taïani, "Low-cost privacy-preserving
    decentralized learning" (Zip-DL, 2025). Its own accounting, pairwise network privacy, is not computed here.

    Args:
        scale: standard deviation of what is drawn, > 0, in units of the model.

    Returns:
        A combinator for `chain`, the last one; its models need the fact "entropy".

    Raises:
        ConfigError: scale <= 0; when applied, an algorithm without exchanges. TopologyError when planned: a node with
            fewer than two neighbours, whose noise would have to be zero.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.zip_dl(0.1)).keeps_mean
        'exchange'
    """
    positive(scale=scale)

    def wrap(inner: Algorithm) -> Algorithm:
        exchanges("zip_dl", inner)

        def send(state: State, neighborhood: Neighborhood) -> tuple[State, Payload]:
            state, payload = inner.send(state, neighborhood)
            key, params = site_facts.drawn(inner.params(state))
            share = jnp.asarray(neighborhood.out_weight)
            return inner.replaced(state, params), zero_sum(payload, key, share, scale)

        asked = inner.demands
        asked = asked if asked.models >= 3 else asked._replace(models=3, rule="zip_dl", rests=True)
        travels = f"{inner.travels}, with noise of {scale:g} that cancels over the neighbours"
        return inner._replace(send=send, travels=travels, per_edge=True, linear=False, demands=asked)

    return wrap


def zero_sum(payload: Payload, key: Array, share: Array, scale: float) -> Payload:
    """A payload for each slot [K, ...], with noise of which the sum over slots, by their shares [K], is zero."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(payload)

    def one(index: int, path: tuple[Any, ...], leaf: Array) -> Array:
        whole = jnp.broadcast_to(leaf[None], (len(share), *leaf.shape))
        if any(name in AS_THEY_ARE for name in tree.before_model(path)) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return whole
        weight = share.astype(leaf.dtype)
        square = (weight**2).sum()
        drawn = jax.random.normal(jax.random.fold_in(key, index), whole.shape, leaf.dtype)
        mean = jnp.tensordot(weight, drawn, 1) / jnp.where(square > 0, square, 1)
        kept = drawn - over(weight, drawn) * mean[None]
        return whole + jnp.asarray(scale, leaf.dtype) * jnp.where(over(weight, kept) > 0, kept, 0)

    return jax.tree.unflatten(structure, [one(index, *each) for index, each in enumerate(leaves)])
