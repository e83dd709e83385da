"""Combinators: each makes of an algorithm another one, and they compose in the manner of optax.

    chain(dsgd(learner, optimizer), clip(1.0), cast("bfloat16"))

The first one given lies innermost: what it does to an inbox is what the algorithm sees, and what the algorithm sends
passes it first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from p2pfl.check import one_of, positive
from p2pfl.errors import ConfigError
from p2pfl.methods.fourier import fourier
from p2pfl.methods.noise import noise
from p2pfl.methods.weighting import by_labels, by_loss, by_samples, by_similarity
from p2pfl.tree import is_model, mixed
from p2pfl.types import Algorithm, Array, Inbox, Neighborhood, Params, Payload, State, Tree

Wrap = Callable[[Algorithm], Algorithm]


def chain(algorithm: Algorithm, *wraps: Wrap) -> Algorithm:
    """Put combinators around an algorithm.

    What is sent passes the first one first; what arrives passes it last. Source: the manner of optax.

    Args:
        algorithm: the innermost.
        wraps: combinators, the first one innermost.

    Returns:
        The algorithm with each of them around it.

    Raises:
        ConfigError: a combinator can't be put around what is inside.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.cast(), p2pfl.methods.clip(1.0)).travels
        'the model, as bfloat16'
    """
    for wrap in wraps:
        algorithm = wrap(algorithm)
    return algorithm


def cast(dtype: str = "bfloat16") -> Wrap:
    """Let payloads travel in 16 bits: half the bytes.

    Single numbers (an age) and whole numbers travel as they are. Both ends of an exchange mix the rounded values, in
    the precision of the model, so that the mean is kept as before.

    Args:
        dtype: "bfloat16" or "float16".

    Returns:
        A combinator for `chain`.

    Raises:
        ConfigError: another dtype; when applied, an algorithm that sends running sums, whose differences rounding would
            eat.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.cast("float16")).travels
        'the model, as float16'
    """
    one_of(("bfloat16", "float16"), dtype=dtype)

    def wrap(inner: Algorithm) -> Algorithm:
        if inner.keeps_mean == "running_sums":
            raise ConfigError(f"wrap cast: {inner.name} sends running sums, which must not be rounded; leave cast out")

        def send(state: State, neighborhood: Neighborhood) -> tuple[State, Payload]:
            state, payload = inner.send(state, neighborhood)
            return state, jax.tree.map(rounded, payload)

        def rounded(leaf: Array) -> Array:
            return leaf.astype(dtype) if leaf.ndim and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        def mix(state: State, inbox: Inbox, neighborhood: Neighborhood) -> State:
            like = jax.eval_shape(inner.send, state, neighborhood)[1]

            def back(leaf: Array, like: Array) -> Array:
                return leaf.astype(like.dtype)

            sent, received = (jax.tree.map(back, side, like) for side in (inbox.sent, inbox.received))
            return inner.mix(state, inbox._replace(sent=sent, received=received), neighborhood)

        # not linear: a driver that summed the differences itself would do it in the rounded numbers
        return inner._replace(send=send, mix=mix, travels=f"{inner.travels}, as {dtype}", linear=False)

    return wrap


def clip(radius: float) -> Wrap:
    """Clip what an exchange may move: z_j = x_i + (x_j - x_i) min(1, radius / |x_j - x_i|).

    Both ends clip alike, so that the mean is kept; one bad neighbour can't move a model far. Own models and networks
    that travel alongside (the objectives "soft_pull" and "selector") are not clipped. Source: He, Karimireddy,
    Jaggi, "Byzantine-robust decentralized learning via ClippedGossip" (2022), equation of algorithm 1.

    Args:
        radius: the largest norm, > 0, in units of the model.

    Returns:
        A combinator for `chain`.

    Raises:
        ConfigError: radius <= 0; when applied, an algorithm whose payload is no place to measure distance in.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.clip(1.0)).linear
        False
    """
    positive(radius=radius)

    def wrap(inner: Algorithm) -> Algorithm:
        if inner.keeps_mean == "running_sums":
            raise ConfigError(f"wrap clip: {inner.name} sends running sums, which can't be clipped; leave clip out")
        if inner.name == "gossip_learning":
            raise ConfigError(
                "wrap clip: gossip_learning merges by age, which is no part of a distance; leave clip out"
            )

        def mix(state: State, inbox: Inbox, neighborhood: Neighborhood) -> State:
            pairs = list(zip(_moved(inbox.sent), _moved(inbox.received), strict=True))

            def square(sent: Array, received: Array) -> Array:
                return ((received - sent) ** 2).reshape(sent.shape[0], -1).sum(axis=1).astype(jnp.float32)

            norm = jnp.sqrt(sum(square(*pair) for pair in pairs) + jnp.float32(1e-30))
            factor = jnp.minimum(1, radius / norm)

            def leaf(path: tuple[Any, ...], sent: Array, received: Array) -> Array:
                if _told(path):
                    return received
                scale = factor.astype(sent.dtype).reshape(-1, *(1,) * (sent.ndim - 1))
                return sent + (received - sent) * scale

            received = jax.tree_util.tree_map_with_path(leaf, inbox.sent, inbox.received)
            return inner.mix(state, inbox._replace(received=received), neighborhood)

        return inner._replace(mix=mix, linear=False)

    return wrap


def _told(path: tuple[Any, ...]) -> bool:
    """Return whether a leaf is no part of the shared model: what a node tells of itself, what travels alongside."""
    return any(getattr(key, "key", None) in ("told", "sums", "own") for key in path)


def _moved(payload: Payload) -> list[Array]:
    """The leaves of a payload that mixing moves."""
    return [leaf for path, leaf in jax.tree_util.tree_flatten_with_path(payload)[0] if not _told(path)]


def withhold(inner: Algorithm) -> Algorithm:
    """Keep what is not mixed ("private", "statistics") out of payloads; the innermost wrap of a model that has such.

    What does not travel looks to the algorithm as if every neighbour had the same: mixing leaves it as it is. Whoever
    adopts a model keeps what is private.

    Args:
        inner: the algorithm.

    Returns:
        The same, which sends and mixes only what is shared.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.withhold).travels
        'the model'
    """

    def send(state: State, neighborhood: Neighborhood) -> tuple[State, Payload]:
        state, payload = inner.send(state, neighborhood)
        return state, _mixed_parts(payload)

    def mix(state: State, inbox: Inbox, neighborhood: Neighborhood) -> State:
        own = inner.send(state, neighborhood)[1]
        slots = inbox.arrived.shape[0]

        def whole(own: Tree, side: Tree) -> Tree:
            if not is_model(own):
                return side
            rest = {part: tree for part, tree in own.items() if part not in side}
            return {**side, **jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (slots, *leaf.shape)), rest)}

        sent, received = (jax.tree.map(whole, own, side, is_leaf=is_model) for side in (inbox.sent, inbox.received))
        return inner.mix(state, inbox._replace(sent=sent, received=received), neighborhood)

    def adopt(state: State, params: Params) -> State:
        own = inner.params(state)
        kept = {part: own[part] for part in ("private",) if part in own}
        return inner.adopt(state, {**params, **kept})

    def mass(state: State) -> Tree:
        return _mixed_parts((inner.mass or inner.params)(state))

    if inner.per_edge:  # sends no models, but sums of its own, of what is mixed
        return inner._replace(adopt=adopt)
    return inner._replace(send=send, mix=mix, adopt=adopt, mass=mass)


def _mixed_parts(tree: Tree) -> Tree:
    """A tree in which every model has only its parts that are mixed."""
    return jax.tree.map(lambda leaf: mixed(leaf) if is_model(leaf) else leaf, tree, is_leaf=is_model)


WRAPS: Mapping[str, Callable[..., Wrap]] = MappingProxyType(
    {
        "cast": cast,
        "clip": clip,
        "by_samples": by_samples,
        "by_loss": by_loss,
        "by_similarity": by_similarity,
        "by_labels": by_labels,
        "fourier": fourier,
        "noise": noise,
    }
)
"""Makers of combinators by the name that an experiment gives them."""

FACTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"by_samples": ("samples",), "by_labels": ("labels",), "noise": ("entropy",)}
)
"""What combinators ask to know of each site, by their names: names of p2pfl.methods.site_facts.FACTS."""
