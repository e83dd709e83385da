"""Chunks of a model, another for each neighbour: no message of a round has a whole one. A combinator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from p2pfl import tree
from p2pfl.check import whole
from p2pfl.errors import ConfigError
from p2pfl.methods import site_facts
from p2pfl.methods.noise import AS_THEY_ARE
from p2pfl.methods.weighting import exchanges
from p2pfl.types import Algorithm, Array, Inbox, Neighborhood, Payload, State


def shatter(chunks: int) -> Callable[[Algorithm], Algorithm]:
    """Cut the model into chunks anew in each round, and send each neighbour one of them. Of Shatter.

    The numbers of a model are dealt at random to `chunks` chunks of one size; the k-th neighbour of a node gets the
    k-th (modulo `chunks`). A node takes for each number the mean of its own and of those that came:
    x_p+ = (x_p + sum_{j: p came from j} x_jp) / (1 + how many came). A message has 1 / chunks of the bytes, and its
    receiver sees so many of the sender's numbers in a round, and others in the next.

    What of the source is here: chunks at random, disjoint, each to somebody else; the mean number by number; no noise.
    What is not: **virtual nodes**. In the source a chunk goes out by one of a node's several addresses along a graph
    that is drawn anew, so that its receiver does not know whose it is. Here an exchange has two ends that know one
    another, and the graph is the experiment's: a chunk is partial, and not anonymous. The source's figures (attacks
    infeasible from 16 chunks on) rest on both. Nothing is bounded: it is no differential privacy, and as many
    neighbours as there are chunks have the whole model together. **Who asks for a model gets a whole one**: one that
    joins does, and any neighbour may, in every round. The mean over the nodes is not kept, and the graph's weights are
    not looked at.

    Source: Biswas, Even, Kermarrec, Massoulié, Pires, Sharma, de Vos, "Noiseless privacy-preserving decentralized
    learning" (Shatter, 2025).

    Args:
        chunks: how many, >= 2. With fewer neighbours some are not sent in a round, with more some go to several.

    Returns:
        A combinator for `chain`, the last one; its models need the fact "entropy".

    Raises:
        ConfigError: chunks is no whole number >= 2; when applied, an algorithm without exchanges, or whose corrections
            must sum up over the nodes.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.shatter(2)).travels
        'a chunk of 2 of the model, another to each neighbour'
    """
    whole(2, chunks=chunks)

    def wrap(inner: Algorithm) -> Algorithm:
        exchanges("shatter", inner)
        if inner.state_class != "none":
            raise ConfigError(
                f"wrap shatter: {inner.name} needs mixing that keeps the mean, and chunks keep none; use an algorithm "
                "such as dsgd"
            )

        def send(state: State, neighborhood: Neighborhood) -> tuple[State, Payload]:
            state, payload = inner.send(state, neighborhood)
            key, params = site_facts.drawn(inner.params(state))
            share = jnp.asarray(neighborhood.out_weight)
            out = share > 0
            there = out | ~out.any()  # where places are padded it says so; else each is a neighbour's
            which = ((jnp.cumsum(there) - 1) % chunks).astype(jnp.int32)
            deal = jax.random.bits(key, (2,), jnp.uint32)
            numbers, rest = _numbers(payload)
            places = _places(deal, len(numbers), chunks)[which]
            told = {
                "chunk": jnp.concatenate([numbers, jnp.zeros(1, numbers.dtype)])[places],
                "deal": jnp.broadcast_to(deal[None], (len(which), 2)),
                "which": which,
                "rest": [jnp.broadcast_to(leaf[None], (len(which), *leaf.shape)) for leaf in rest],
            }
            return inner.replaced(state, params), told

        def mix(state: State, inbox: Inbox, neighborhood: Neighborhood) -> State:
            own = inner.send(state, neighborhood)[1]
            slots, (numbers, _) = len(inbox.arrived), _numbers(own)
            if not slots:
                return inner.mix(state, inbox._replace(sent=_several(own, 0), received=_several(own, 0)), neighborhood)
            size, heard = len(numbers), inbox.received
            weight = jnp.asarray(neighborhood.weight).astype(numbers.dtype)
            arrived = inbox.arrived & (weight > 0)
            which = jnp.clip(heard["which"], 0, chunks - 1)
            places = jax.vmap(lambda deal, which: _places(deal, size, chunks)[which])(heard["deal"], which)
            places = jnp.where(arrived[:, None], places, size)  # the last place is nobody's
            values = jnp.where(arrived[:, None], heard["chunk"], 0).astype(numbers.dtype)
            row = jnp.arange(slots, dtype=jnp.int32)[:, None]
            came = jnp.zeros((slots, size + 1), bool).at[row, places].set(True)[:, :size]
            theirs = jnp.zeros((slots, size + 1), numbers.dtype).at[row, places].set(values)[:, :size]
            share = 1 / (1 + came.sum(axis=0)).astype(numbers.dtype)
            lever = jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1), 0)  # so that inner's weights are undone
            moved = jnp.where(came, numbers[None] + lever[:, None] * share[None] * (theirs - numbers[None]), numbers)
            received = jax.vmap(lambda row, rest: _together(own, row, rest))(moved, heard["rest"])
            mine = jnp.broadcast_to(numbers, (slots, size))
            sent = jax.vmap(lambda row, rest: _together(own, row, rest))(mine, inbox.sent["rest"])
            return inner.mix(state, inbox._replace(sent=sent, received=received, arrived=arrived), neighborhood)

        travels = f"a chunk of {chunks} of {inner.travels}, another to each neighbour"
        return inner._replace(send=send, mix=mix, travels=travels, per_edge=True, linear=False, keeps_mean="nothing")

    return wrap


def _dealt(path: tuple[Any, ...], leaf: Array) -> bool:
    """Whether a leaf of a payload is one of the model, whose numbers are dealt out."""
    apart = any(name in AS_THEY_ARE and name != "carried" for name in tree.before_model(path))
    return not apart and bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _numbers(payload: Payload) -> tuple[Array, list[Array]]:
    """([D] the numbers of the model in a payload, all other leaves)."""
    pairs = jax.tree_util.tree_flatten_with_path(payload)[0]
    dealt = [leaf for path, leaf in pairs if _dealt(path, leaf)]
    dtype = jnp.result_type(*dealt)
    numbers = jnp.concatenate([leaf.astype(dtype).ravel() for leaf in dealt])
    return numbers, [leaf for path, leaf in pairs if not _dealt(path, leaf)]


def _together(like: Payload, numbers: Array, rest: list[Array]) -> Payload:
    """The payload of these numbers and other leaves."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(like)
    others, leaves, start = iter(rest), [], 0
    for path, leaf in pairs:
        if not _dealt(path, leaf):
            leaves.append(next(others))
            continue
        leaves.append(numbers[start : start + leaf.size].reshape(leaf.shape).astype(leaf.dtype))
        start += leaf.size
    return jax.tree.unflatten(structure, leaves)


def _several(payload: Payload, slots: int) -> Payload:
    """A payload at each of so many slots."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (slots, *leaf.shape)), payload)


def _places(deal: Array, size: int, chunks: int) -> Array:
    """[chunks, M] int32: which numbers of a model are in which chunk; `size` where a chunk has fewer than M."""
    most = math.ceil(size / chunks)
    order = jax.random.permutation(jax.random.wrap_key_data(deal, impl="threefry2x32"), size).astype(jnp.int32)
    return jnp.concatenate([order, jnp.full(most * chunks - size, size, jnp.int32)]).reshape(most, chunks).T
