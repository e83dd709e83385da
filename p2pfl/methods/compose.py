"""Combinators: each makes of an algorithm another one, and they compose in the manner of optax.

    chain(dsgd(learner, optimizer), clip(1.0), cast("bfloat16"))

The first one given lies innermost: what it does to an inbox is what the algorithm sees, and what the algorithm sends
passes it first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp

from p2pfl.check import one_of
from p2pfl.errors import ConfigError
from p2pfl.methods.fourier import fourier
from p2pfl.methods.noise import noise
from p2pfl.methods.robust import RULES, clip, dos, geometric_median, krum, median, monna, multi_krum, trimmed_mean
from p2pfl.methods.shatter import shatter
from p2pfl.methods.weighting import by_labels, by_loss, by_samples, by_similarity
from p2pfl.methods.zip_dl import zip_dl
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
        "zip_dl": zip_dl,
        "shatter": shatter,
        "trimmed_mean": trimmed_mean,
        "median": median,
        "krum": krum,
        "multi_krum": multi_krum,
        "geometric_median": geometric_median,
        "monna": monna,
        "dos": dos,
    }
)
"""Makers of combinators by the name that an experiment gives them."""

WEIGHED = ("by_samples", "by_loss", "by_similarity", "by_labels")
"""Those that weigh neighbours, which the rules in RULES do not look at."""

UNLIKE = ("zip_dl", "shatter")
"""Those that send each neighbour something else."""


def check(names: Sequence[str]) -> None:
    """Raises ConfigError for combinators, by name, of which one would undo what another does."""
    rules, weighed = ([name for name in names if name in those] for those in (RULES, WEIGHED))
    if len(rules) > 1:
        raise ConfigError(
            f"{rules[0]} and {rules[1]}: each puts its own result in the place of the weighted sum; give one. Models "
            "are replaced by the mean of those nearest to them, before a rule, by its argument nnm = true"
        )
    if rules and weighed:
        raise ConfigError(f"{weighed[0]} and {rules[0]}: a robust rule looks at no weights; leave one of the two out")
    unlike = [name for name in names if name in UNLIKE]
    if not unlike:
        return
    if names[-1] not in UNLIKE or len(unlike) > 1:
        raise ConfigError(
            f"{unlike[0]}: sends each neighbour something else, and nothing can stand around that; give one such "
            "combinator, and give it last"
        )
    compares = [name for name in names if name in (*RULES, "clip", "fourier")]
    if compares:
        raise ConfigError(
            f"{compares[0]} and {unlike[0]}: {compares[0]} compares what came with what a node has sent, which is now "
            "something else to each; leave one of the two out"
        )
    if weighed:
        raise ConfigError(
            f"{weighed[0]} and {unlike[0]}: what {unlike[0]} sends is made for the graph's weights, and {weighed[0]} "
            "puts others in their place; leave one of the two out"
        )


FACTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "by_samples": ("samples",),
        "by_labels": ("labels",),
        "noise": ("entropy",),
        "zip_dl": ("entropy",),
        "shatter": ("entropy",),
    }
)
"""What combinators ask to know of each site, by their names: names of p2pfl.methods.site_facts.FACTS."""
