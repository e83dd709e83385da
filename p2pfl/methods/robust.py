"""Robust rules: what a node makes of its neighbours' models where some of them may be lies. Combinators.

    wrap = [{ name = "trimmed_mean", f = 1 }]

A rule looks at the closed neighbourhood: a node's own model and those that arrived, n of them, of which f may be
anything. Models are compared as a whole: all leaves that mixing moves. A rule puts its result in the place of the
weighted sum, so that the graph's weights have no part in it (but for `clip`), and a driver that computes that sum by
itself can't (`linear` is false).

The books: what an exchange would have moved is still booked by both ends or by neither, but two ends no longer mix
opposite amounts. No rule keeps the mean of the models (`keeps_mean` is "nothing", and a run shows no residual of it);
`clip` with a radius that is given does, since both ends clip alike. Algorithms whose corrections must sum up over the
nodes are refused.

Before every rule stands a gate: a model that is not finite, or whose norm is more than GATE times the median of the
norms in the neighbourhood (and more than GATE), is as if it had not arrived. (Drivers refuse what is not finite before
that, at both ends.) Where fewer models are left than the rule needs for its f, the node keeps its own in that round.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from p2pfl import tree
from p2pfl.algorithms.mixing import over
from p2pfl.check import one_of, positive, whole
from p2pfl.errors import ConfigError
from p2pfl.methods.weighting import exchanges
from p2pfl.types import Algorithm, Array, Inbox, Neighborhood, Payload, State

GATE = 1e3
"""A model whose norm is so many times that of the median one is no model."""


class ClosedNeighborhood(NamedTuple):
    """A closed neighbourhood: row 0 is the node's own model, and the others follow by slot."""

    rows: list[Array]  # leaves [n, ...]: models less the node's own, zero where absent
    square: Array  # [n, n] squared distances of the models
    present: Array  # [n] bool
    count: Array  # [] int32: of those that are present
    cosine: Callable[[], Array]  # -> [n, n] cosine distances of the models themselves


Weights = Callable[[ClosedNeighborhood], Array]
"""[n] weights, which sum up to one: of whose models the result is the weighted sum."""
Coordinates = Callable[[Array, ClosedNeighborhood], Array]
"""Of a leaf [n, ...] its result [...], number by number."""


class Rule(NamedTuple):
    """A rule: exactly one of `weights` and `coordinates`."""

    name: str
    f: int
    models: int  # that a neighbourhood must have, the node's own among them
    weights: Weights | None = None
    coordinates: Coordinates | None = None
    nnm: bool = False  # each model is replaced by the mean of the n - f nearest to it first


# --- the rules


def trimmed_mean(f: int, nnm: bool = False) -> Callable[[Algorithm], Algorithm]:
    """Mean of each number, without its f smallest and its f largest values.

    Equivariant to the order of neighbours, to translation and to scaling. f = 0 is the plain mean. Source: Yin, Chen,
    Ramchandran, Bartlett, "Byzantine-robust distributed learning: towards optimal statistical rates" (2018).

    Args:
        f: models of a closed neighbourhood that may be lies, >= 0; it must have more than 2 f.
        nnm: each model is first replaced by the mean of the n - f nearest to it (nearest-neighbour mixing; Allouah et
            al., "Fixing by mixing: a recipe for optimal Byzantine ML under heterogeneity", 2023).

    Returns:
        A combinator for `chain`.

    Raises:
        ConfigError: f is no whole number >= 0; when applied, an algorithm without exchanges, or whose corrections must
            sum up over the nodes.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.trimmed_mean(1)).demands.models
        3
    """
    whole(0, f=f)

    def coordinates(leaf: Array, seen: ClosedNeighborhood) -> Array:
        ordered = _ordered(leaf, seen)
        place = jnp.arange(len(leaf), dtype=jnp.int32)
        kept = (place >= f) & (place < seen.count - f)
        total = jnp.where(over(kept, ordered), ordered, 0).sum(axis=0)
        return total / jnp.maximum(seen.count - 2 * f, 1).astype(leaf.dtype)

    return _wrap(Rule("trimmed_mean", f, 2 * f + 1, coordinates=coordinates, nnm=nnm))


def median(f: int = 0, nnm: bool = False) -> Callable[[Algorithm], Algorithm]:
    """Median of each number; of an even number of models the mean of the two in the middle.

    Equivariant to the order of neighbours, to translation and to scaling. The rule itself knows no f; it is given to
    have a neighbourhood refused that is too small for it. Source: Yin, Chen, Ramchandran, Bartlett (2018), see
    `trimmed_mean`.

    Args:
        f: models of a closed neighbourhood that may be lies, >= 0; it must have more than 2 f.
        nnm: see `trimmed_mean`; with f = 0 it makes the plain mean of all.

    Returns:
        A combinator for `chain`.

    Raises:
        ConfigError: as `trimmed_mean`.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.median()).keeps_mean
        'nothing'
    """
    whole(0, f=f)

    def coordinates(leaf: Array, seen: ClosedNeighborhood) -> Array:
        ordered = _ordered(leaf, seen)
        below, above = (jnp.take(ordered, at, axis=0) for at in ((seen.count - 1) // 2, seen.count // 2))
        return (below + above) / 2

    return _wrap(Rule("median", f, 2 * f + 1, coordinates=coordinates, nnm=nnm))


SCORES = {"blanchard": 2, "byzfl": 1}
"""Of how many others a model's score is the sum of squared distances: n - f less this."""


def krum(f: int, score: str = "blanchard", nnm: bool = False) -> Callable[[Algorithm], Algorithm]:
    """The one model with the least score: the sum of its squared distances to the n - f - 2 others nearest to it.

    Equivariant to the order of neighbours (but for ties), to translation and to scaling. It throws away all models but
    one, also with f = 0. Source: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine learning with adversaries:
    Byzantine tolerant gradient descent" (2017), section 4.

    Args:
        f: models of a closed neighbourhood that may be lies, >= 0; it must have more than 2 f + 2.
        score: "blanchard", of the n - f - 2 nearest others as in the source; "byzfl", of the n - f - 1 nearest, as the
            library byzfl has it.
        nnm: see `trimmed_mean`.

    Returns:
        A combinator for `chain`.

    Raises:
        ConfigError: as `trimmed_mean`, and for another score.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.krum(1)).demands.models
        5
    """
    whole(0, f=f)
    one_of(SCORES, score=score)
    return _wrap(Rule("krum", f, 2 * f + 3, lambda seen: _best(seen, f, SCORES[score], jnp.int32(1)), nnm=nnm))


def multi_krum(
    f: int, m: int | None = None, score: str = "blanchard", nnm: bool = False
) -> Callable[[Algorithm], Algorithm]:
    """The mean of the m models with the least scores of `krum`.

    Equivariant as `krum`. f = 0 is the plain mean, unless m is given. Source: Blanchard et al. (2017), see `krum`.

    Args:
        f: models of a closed neighbourhood that may be lies, >= 0; it must have more than 2 f + 2.
        m: models of which the mean is taken, >= 1; None: n - f, as in byzfl. More than n - f of those that arrived are
            never taken.
        score: see `krum`.
        nnm: see `trimmed_mean`.

    Returns:
        A combinator for `chain`.

    Raises:
        ConfigError: as `krum`, and for m < 1.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.multi_krum(1)).linear
        False
    """
    whole(0, f=f)
    one_of(SCORES, score=score)
    if m is not None:
        whole(1, m=m)

    def weights(seen: ClosedNeighborhood) -> Array:
        most = seen.count - f
        return _best(seen, f, SCORES[score], most if m is None else jnp.minimum(m, most))

    return _wrap(Rule("multi_krum", f, 2 * f + 3, weights, nnm=nnm))


def geometric_median(
    f: int = 0, nu: float = 0.1, steps: int = 8, nnm: bool = False
) -> Callable[[Algorithm], Algorithm]:
    """The point with the least sum of distances to all models, by smoothed Weiszfeld steps from the node's own model.

    A step is z+ = sum_k v_k / max(nu, |v_k - z|) / sum_k 1 / max(nu, |v_k - z|). The source starts at zero, which for
    gradients is near and for models is not; so here it is the node's own. Equivariant to the order of neighbours and to
    translation; to scaling where nu is scaled along. The rule itself knows no f, see `median`. Source: Pillutla,
    Kakade, Harchaoui, "Robust aggregation for federated learning" (2022), algorithm 2; nu and steps as in the code of
    He, Karimireddy, Jaggi (2022).

    Args:
        f: models of a closed neighbourhood that may be lies, >= 0; it must have more than 2 f.
        nu: > 0, in units of the model: nearer than that counts as being there.
        steps: >= 1.
        nnm: see `median`.

    Returns:
        A combinator for `chain`.

    Raises:
        ConfigError: as `trimmed_mean`, and for nu or steps out of bounds.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.geometric_median(1)).demands.models
        3
    """
    whole(0, f=f)
    positive(nu=nu)
    whole(1, steps=steps)

    def weights(seen: ClosedNeighborhood) -> Array:
        return weiszfeld(seen, jnp.sqrt(seen.square[0]), nu, steps)

    return _wrap(Rule("geometric_median", f, 2 * f + 1, weights, nnm=nnm))


def monna(f: int, nnm: bool = False) -> Callable[[Algorithm], Algorithm]:
    """Mean of the n - f models that are nearest to the node's own, which is one of them: nearest-neighbour averaging.

    Equivariant to the order of neighbours (but for ties), to translation and to scaling. f = 0 is the plain mean.
    Source: Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, "Robust collaborative learning with linear gradient
    overhead" (MoNNA, 2023), whose guarantee is for complete graphs and for local steps with momentum.

    Args:
        f: models of a closed neighbourhood that may be lies, >= 0; it must have more than 2 f.
        nnm: see `trimmed_mean`.

    Returns:
        A combinator for `chain`.

    Raises:
        ConfigError: as `trimmed_mean`.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.monna(1)).keeps_mean
        'nothing'
    """
    whole(0, f=f)
    return _wrap(Rule("monna", f, 2 * f + 1, lambda seen: _nearest(seen.square[0], seen, f), nnm=nnm))


def dos() -> Callable[[Algorithm], Algorithm]:
    """Weighted mean by softmax(-r), r the outlier score of a model among all: distance-based outlier suppression.

    r is the mean of two COPOD scores: of the rows of the matrix of Euclidean distances of all models, and of that of
    cosine distances. COPOD is that of the library PyOD, which the source calls: of each column the negative logarithms
    of both tails of its empirical distribution, chosen by the sign of its skewness, summed over columns. Equivariant to
    the order of neighbours and to scaling, not to translation, since cosines are taken of the models themselves. It has
    no f and no other argument, and is no plain mean without liars either. Ranks of fewer than five models say little.
    Source: Alkhunaizi, Kamzolov, Takáč, Nandakumar, "Suppressing poisoning attacks on federated learning for medical
    imaging" (2022).

    Returns:
        A combinator for `chain`.

    Raises:
        ConfigError: when applied, an algorithm without exchanges, or whose corrections must sum up over the nodes.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.dos()).demands.models
        3
    """

    def weights(seen: ClosedNeighborhood) -> Array:
        score = (copod(jnp.sqrt(seen.square), seen.present) + copod(seen.cosine(), seen.present)) / 2
        return jax.nn.softmax(jnp.where(seen.present, -score, -jnp.inf))

    return _wrap(Rule("dos", 0, 3, weights))


def clip(radius: float | None = None, f: int | None = None) -> Callable[[Algorithm], Algorithm]:
    """Clip what an exchange may move: z_j = x_i + (x_j - x_i) min(1, radius / |x_j - x_i|). Clipped gossip.

    With a radius that is given both ends clip alike, so that the mean is kept; one bad neighbour can't move a model
    far. With f instead each node takes as radius the distance of the (f + 1)-th farthest of the models that arrived, as
    the source's code does by default (with f = 1): the f farthest come no nearer than an honest one may be. That radius
    follows from a node's own neighbours, so the mean is not kept. The weights are the graph's. Own models and networks
    that travel alongside (the objectives "soft_pull" and "selector") are not clipped. Equivariant to the order of
    neighbours and to translation; to scaling with f, or where the radius is scaled along. f = 0 is no clipping.
    Source: He, Karimireddy, Jaggi, "Byzantine-robust decentralized learning via ClippedGossip" (2022), equation of
    algorithm 1.

    Args:
        radius: the largest norm, > 0, in units of the model.
        f: neighbours that may lie, >= 0; there must be more than f.

    Returns:
        A combinator for `chain`.

    Raises:
        ConfigError: neither or both are given, or one is out of bounds; when applied, an algorithm whose payload is no
            place to measure distance in, and with f as `trimmed_mean`.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.clip(1.0)).linear
        False
    """
    if (radius is None) == (f is None):
        raise ConfigError("clip needs either radius, or f to take it from the neighbours' distances, and not both")
    if radius is not None:
        positive(radius=radius)
    if f is not None:
        whole(0, f=f)

    def wrap(inner: Algorithm) -> Algorithm:
        if inner.keeps_mean == "running_sums":
            raise ConfigError(f"wrap clip: {inner.name} sends running sums, which can't be clipped; leave clip out")
        if inner.name == "gossip_learning":
            raise ConfigError(
                "wrap clip: gossip_learning merges by age, which is no part of a distance; leave clip out"
            )
        if f is not None:
            _suits("clip", inner)

        def mix(state: State, inbox: Inbox, neighborhood: Neighborhood) -> State:
            arrived = inbox.arrived
            if f is not None and not len(arrived):
                return inner.mix(state, inbox, neighborhood)
            if f is not None:
                arrived = _gated(inbox, neighborhood)
                arrived &= arrived.sum() > f
            norm = jnp.sqrt(_squares(inbox) + 1e-30)
            limit: Any = radius if f is None else -jnp.sort(jnp.where(arrived, -norm, jnp.inf))[f]
            factor = jnp.minimum(1, limit / norm)

            def leaf(path: tuple[Any, ...], sent: Array, received: Array) -> Array:
                if told(path, sent):
                    return received
                return jnp.where(over(arrived, sent), sent + (received - sent) * over(factor.astype(sent.dtype), sent),
                                 sent)  # fmt: skip

            received = jax.tree_util.tree_map_with_path(leaf, inbox.sent, inbox.received)
            return inner.mix(state, inbox._replace(received=received, arrived=arrived), neighborhood)

        if f is None:
            return inner._replace(mix=mix, linear=False)
        return _demanding(inner, f + 2, f"clip with f = {f}")._replace(mix=mix)

    return wrap


RULES = ("trimmed_mean", "median", "krum", "multi_krum", "geometric_median", "monna", "dos")
"""Rules that put their result in the place of the weighted sum: one of them at a time."""


# --- what they are made of


def _wrap(rule: Rule) -> Callable[[Algorithm], Algorithm]:
    """The combinator of a rule."""

    def wrap(inner: Algorithm) -> Algorithm:
        _suits(rule.name, inner)

        def mix(state: State, inbox: Inbox, neighborhood: Neighborhood) -> State:
            if not len(inbox.arrived):  # no slots
                return inner.mix(state, inbox, neighborhood)
            arrived = _gated(inbox, neighborhood)
            seen = _seen(inbox, arrived)
            moves = _combined(rule, seen)
            enough = seen.count >= rule.models
            weight = jnp.where(arrived, neighborhood.weight, 0).sum()
            share = jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1), 0)
            left = iter(moves)

            def leaf(path: tuple[Any, ...], sent: Array, received: Array) -> Array:
                if told(path, sent):
                    return received
                move = jnp.where(enough, next(left), 0)
                return sent.astype(move.dtype) + (move * share.astype(move.dtype))[None]

            received = jax.tree_util.tree_map_with_path(leaf, inbox.sent, inbox.received)
            return inner.mix(state, inbox._replace(received=received, arrived=arrived), neighborhood)

        named = rule.name if rule.name == "dos" else f"{rule.name} with f = {rule.f}"
        return _demanding(inner, rule.models, named)._replace(mix=mix)

    return wrap


def _demanding(inner: Algorithm, models: int, rule: str) -> Algorithm:
    """The algorithm with what a rule asks of a neighbourhood, and without what it takes away."""
    asked = inner.demands
    asked = asked if asked.models >= models else asked._replace(models=models, rule=rule)
    return inner._replace(linear=False, keeps_mean="nothing", demands=asked)


def _suits(name: str, inner: Algorithm) -> None:
    """Raises ConfigError for an algorithm that a rule which keeps no mean can't stand around."""
    exchanges(name, inner)
    if inner.state_class != "none":
        raise ConfigError(
            f"wrap {name}: {inner.name} needs mixing that keeps the mean, and a robust rule keeps none; use an "
            "algorithm such as dsgd, or clip with a radius"
        )


def told(path: tuple[Any, ...], leaf: Array) -> bool:
    """Return whether a leaf is no part of the shared model: what a node tells of itself, what travels alongside; or is
    a whole number, which nothing lies between."""
    apart = {"told", "sums", "own"} & {*tree.before_model(path)}
    return bool(apart) or not jnp.issubdtype(leaf.dtype, jnp.floating)


def _moved(payload: Payload) -> list[Array]:
    """The leaves of a payload that mixing moves, in one precision of 32 bits at least."""
    leaves = [leaf for path, leaf in jax.tree_util.tree_flatten_with_path(payload)[0] if not told(path, leaf)]
    wide = any(leaf.dtype == jnp.float64 for leaf in leaves)
    return [leaf.astype(jnp.float64 if wide else jnp.float32) for leaf in leaves]


def _norms(leaves: list[Array]) -> Array:
    """[n] squared norms of rows that lie in leaves [n, ...]."""
    return functools.reduce(jnp.add, [(leaf**2).reshape(leaf.shape[0], -1).sum(axis=1) for leaf in leaves])


def _squares(inbox: Inbox) -> Array:
    """[K] squared distances of what was received from what was sent."""
    pairs = zip(_moved(inbox.received), _moved(inbox.sent), strict=True)
    return _norms([received - sent for received, sent in pairs])


def _gated(inbox: Inbox, neighborhood: Neighborhood) -> Array:
    """[K] whether a model has arrived that may be looked at: see the head of this file."""
    arrived = inbox.arrived & (neighborhood.weight > 0)
    theirs, own = (_norms(_moved(side)) for side in (inbox.received, inbox.sent))
    norm = jnp.sqrt(jnp.concatenate([own[:1], jnp.where(arrived, theirs, jnp.inf)]))
    norm = jnp.where(jnp.isfinite(norm), norm, jnp.inf)
    middle = jnp.sort(norm)[arrived.sum() // 2]
    limit = GATE * jnp.maximum(middle, 1)
    return arrived & (norm[1:] <= limit) & jnp.isfinite(norm[1:])


def _seen(inbox: Inbox, arrived: Array) -> ClosedNeighborhood:
    """The closed neighbourhood of a node."""
    sent, received = _moved(inbox.sent), _moved(inbox.received)
    present = jnp.concatenate([jnp.ones(1, bool), arrived])
    rows = [
        jnp.concatenate([jnp.zeros_like(mine[:1]), jnp.where(over(arrived, mine), theirs - mine, 0)])
        for mine, theirs in zip(sent, received, strict=True)
    ]

    def cosine() -> Array:
        models = [
            jnp.concatenate([mine[:1], jnp.where(over(arrived, mine), theirs, 0)])
            for mine, theirs in zip(sent, received, strict=True)
        ]
        norm = jnp.sqrt(_norms(models))
        product = functools.reduce(jnp.add, map(_products, models)) / jnp.maximum(norm[:, None] * norm[None, :], 1e-30)
        return jnp.where(jnp.eye(len(norm), dtype=bool), 0, 1 - product)

    return ClosedNeighborhood(rows, distances(rows), present, present.sum().astype(jnp.int32), cosine)


def _products(leaf: Array) -> Array:
    """[n, n] inner products of rows."""
    flat = leaf.reshape(leaf.shape[0], -1)
    return jnp.dot(flat, flat.T, precision="highest")


def distances(rows: list[Array]) -> Array:
    """[n, n] squared distances of rows; of differences, since inner products of a lie would drown others."""
    found = [_norms([leaf - leaf[i : i + 1] for leaf in rows]) for i in range(rows[0].shape[0])]
    return jnp.stack(found)


def _combined(rule: Rule, seen: ClosedNeighborhood) -> list[Array]:
    """By how much the rule moves the node's own model: of each leaf."""
    if rule.nnm:
        mean = jax.vmap(lambda square: _nearest(square, seen, rule.f))(seen.square)
        rows = [jnp.tensordot(mean.astype(leaf.dtype), leaf, 1, precision="highest") for leaf in seen.rows]
        seen = seen._replace(rows=rows, square=distances(rows))
    if rule.coordinates is not None:
        return [rule.coordinates(leaf, seen) for leaf in seen.rows]
    assert rule.weights is not None
    weights = rule.weights(seen)
    return [_sum(weights, leaf) for leaf in seen.rows]


def _sum(weights: Array, leaf: Array) -> Array:
    """[...] the weighted sum of rows [n, ...]."""
    total: Array = (over(weights.astype(leaf.dtype), leaf) * leaf).sum(axis=0)
    return total


def _ordered(leaf: Array, seen: ClosedNeighborhood) -> Array:
    """[n, ...] each number's values in ascending order; those of models that are absent stand last."""
    return jnp.sort(jnp.where(over(seen.present, leaf), leaf, jnp.inf), axis=0)


def _ranks(values: Array, present: Array) -> Array:
    """[n] int32: how many of those present have a smaller value; of equals, the first in order."""
    place = jnp.arange(len(values), dtype=jnp.int32)
    equal = (values[None, :] == values[:, None]) & (place[None, :] < place[:, None])
    before = (values[None, :] < values[:, None]) | equal
    return (before & present[None, :]).sum(axis=1).astype(jnp.int32)


def _nearest(square: Array, seen: ClosedNeighborhood, f: int) -> Array:
    """[n] weights of the mean of the n - f models of which `square` [n], squared distances, is least."""
    chosen = seen.present & (_ranks(square, seen.present) < seen.count - f)
    return chosen.astype(square.dtype) / jnp.maximum(seen.count - f, 1).astype(square.dtype)


def _best(seen: ClosedNeighborhood, f: int, less: int, m: Array) -> Array:
    """[n] weights of the mean of the `m` models with the least scores of Krum."""
    own = jnp.eye(len(seen.present), dtype=bool)
    others = seen.present[None, :] & ~own

    def score(square: Array, others: Array) -> Array:
        return jnp.where(others & (_ranks(square, others) < seen.count - f - less), square, 0).sum()

    scores = jnp.where(seen.present, jax.vmap(score)(seen.square, others), jnp.inf)
    chosen = seen.present & (_ranks(scores, seen.present) < m)
    return chosen.astype(scores.dtype) / jnp.maximum(m, 1).astype(scores.dtype)


def weiszfeld(seen: ClosedNeighborhood, first: Array, nu: float, steps: int) -> Array:
    """[n] weights of the smoothed geometric median after so many steps. `first` [n]: distances from where it starts."""

    def weights(distance: Array) -> Array:
        beta = jnp.where(seen.present, 1 / jnp.maximum(distance, nu), 0)
        return beta / beta.sum()

    def step(_: int, now: Array) -> Array:
        at = [_sum(now, leaf) for leaf in seen.rows]
        return weights(jnp.sqrt(_norms([leaf - z[None] for leaf, z in zip(seen.rows, at, strict=True)])))

    found: Array = jax.lax.fori_loop(1, steps, step, weights(first))
    return found


def copod(table: Array, present: Array) -> Array:
    """[n] outlier scores of the rows of a matrix [n, n]; rows and columns that are absent have no part.

    Source: Li, Zhao, Botta, Ionescu, Hu, "COPOD: copula-based outlier detection" (2020), as in PyOD.
    """
    count = present.sum().astype(table.dtype)
    here = present[None, :, None]

    def tail(reached: Array) -> Array:  # [row, other, column]
        return -jnp.log((reached & here).sum(axis=1).astype(table.dtype) / count)

    left, right = (tail(table[None, :, :] <= table[:, None, :]), tail(table[None, :, :] >= table[:, None, :]))
    mean = jnp.where(present[:, None], table, 0).sum(axis=0) / count
    apart = jnp.where(present[:, None], table - mean[None], 0)
    second, third = ((apart**power).sum(axis=0) / count for power in (2, 3))
    level = second <= (jnp.finfo(table.dtype).eps * mean) ** 2  # all alike: no skewness
    sign = jnp.where(level, 0, jnp.sign(third))[None]
    skewed = jnp.where(sign < 0, left, jnp.where(sign > 0, right, left + right))
    each = jnp.maximum(skewed, (left + right) / 2)
    total: Array = jnp.where(present[:, None] & present[None, :], each, 0).sum(axis=1)
    return total
