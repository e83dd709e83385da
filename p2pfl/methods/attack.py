"""Attacks: what a node that lies sends in the place of its model. Combinators, for studies of robust rules.

    [[attack]]
    nodes = [2, 5]
    by = "sign_flip"

A liar trains, mixes and keeps its books as any node does, with the model that it has; it only sends another one. So it
follows the others, and its lies stay near enough to be believed. What it says besides (numbers of rows, sums, losses)
stays true. Sums over an exchange do not cancel any more, so no mean is kept (`keeps_mean` is "nothing").

A liar knows its own model of the round, and of its neighbours those that arrived in the round before, lies among them:
it takes what they were away from its own then, and adds that to its own now. The papers' attackers know the honest
models of the round itself. In the first round such a liar has heard nothing, and takes all for equal to its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from p2pfl.algorithms.mixing import over
from p2pfl.check import one_of, positive
from p2pfl.errors import ConfigError
from p2pfl.methods.robust import told
from p2pfl.methods.weighting import Beside, beside
from p2pfl.types import Algorithm, Array, Inbox, Key, Learner, Metrics, Neighborhood, Params, Payload, State, Tree


class Telling(NamedTuple):
    """What a liar makes a leaf of."""

    leaf: Array  # the truth [...]
    heard: Array  # what `hear` has made of this leaf; [] zero where there is none
    key: Key  # of this leaf and message
    lasting: Key  # of this leaf, the same in every round
    scale: float
    there: Array  # [slots] bool: that a neighbour has


class Lie(NamedTuple):
    """A way to lie."""

    tell: Callable[[Telling], Array]  # -> [...], or [slots, ...] with `each`
    scale: float | None = None  # the usual; None: there is none
    each: bool = False  # something else to each neighbour
    hear: Callable[[Array, Array], Array] | None = None  # (neighbours less own [K, ...], arrived [K]) -> what is kept


def _noise(now: Telling) -> Array:
    return now.leaf + now.scale * now.leaf.std() * jax.random.normal(now.key, now.leaf.shape, now.leaf.dtype)


def _random(now: Telling) -> Array:
    return now.scale * jax.random.uniform(now.key, now.leaf.shape, now.leaf.dtype)


def _mean(apart: Array, arrived: Array) -> Array:
    """Of the closed neighbourhood, less the liar's own."""
    return jnp.where(over(arrived, apart), apart, 0).sum(axis=0) / (1 + arrived.sum()).astype(apart.dtype)


def _mean_and_deviation(apart: Array, arrived: Array) -> Array:
    mean, many = _mean(apart, arrived), arrived.sum().astype(apart.dtype)
    square = jnp.where(over(arrived, apart), (apart - mean[None]) ** 2, 0).sum(axis=0) + mean**2
    return jnp.stack([mean, jnp.sqrt(square / jnp.maximum(many, 1))])


def _first(apart: Array, arrived: Array) -> Array:
    return jnp.where(arrived.any(), jnp.take(apart, jnp.argmax(arrived), axis=0), 0)


def _each(apart: Array, arrived: Array) -> Array:
    return jnp.where(over(arrived, apart), apart, 0)


def _alie(now: Telling) -> Array:
    mean, deviation = (jnp.broadcast_to(part, now.leaf.shape) for part in (now.heard[0], now.heard[1]))
    return now.leaf + mean - now.scale * deviation


def _dissensus(now: Telling) -> Array:
    many = now.there.sum().astype(now.leaf.dtype)
    rest = now.heard.sum(axis=0, keepdims=True) - many * now.heard  # of all neighbours less the one
    return now.leaf[None] + now.heard - now.scale * rest


def _equivocation(now: Telling) -> Array:
    way = now.leaf.std() * jax.random.normal(now.lasting, now.leaf.shape, now.leaf.dtype)
    place, many = jnp.cumsum(now.there) - 1, now.there.sum()  # places that no neighbour has are nobody's
    share = 1 - 2 * place.astype(now.leaf.dtype) / jnp.maximum(many - 1, 1).astype(now.leaf.dtype)
    return now.leaf[None] + now.scale * over(share, now.leaf[None]) * way[None]


LIES: Mapping[str, Lie] = MappingProxyType(
    {
        "sign_flip": Lie(lambda now: -now.scale * now.leaf, 1.0),
        "scaling": Lie(lambda now: now.scale * now.leaf, 100.0),
        "noise": Lie(_noise, 1.0),
        "random": Lie(_random, 1.0),
        "nan": Lie(lambda now: jnp.full_like(now.leaf, jnp.nan)),
        "alie": Lie(_alie, 1.5, hear=_mean_and_deviation),
        "ipm": Lie(lambda now: -now.scale * (now.leaf + now.heard), 0.1, hear=_mean),
        "mimic": Lie(lambda now: now.leaf + now.heard, hear=_first),
        "dissensus": Lie(_dissensus, 1.5, each=True, hear=_each),
        "equivocation": Lie(_equivocation, 1.0, each=True),
    }
)
"""Lies by name; "label_flip" is none of them: such a node sends what it has, and has learned from wrong labels."""


def lying(by: str, scale: float | None = None, mark: int = 1) -> Callable[[Algorithm], Algorithm]:
    """Let the nodes that are marked send lies; the outermost combinator of models, around every defence.

    x is the liar's own model, m and s the mean and the standard deviation of its closed neighbourhood (see the head of
    this file), x_i that of the neighbour a message goes to:

        sign_flip      -scale x                                  scale 1
        scaling        scale x                                   100     Alkhunaizi et al. (2022)
        noise          x + scale sd(leaf) N(0, 1)                1
        random         scale U(0, 1)                             1       Alkhunaizi et al. (2022)
        nan            not a number
        alie           m - scale s                               1.5     Baruch et al., "A little is enough" (2019)
        ipm            -scale m                                  0.1     Xie et al., "Fall of empires" (2020)
        mimic          the model of the neighbour of least id            Karimireddy et al. (2022); it is fixed
        dissensus      x_i - scale sum_j (x_j - x_i)             1.5     He, Karimireddy, Jaggi (2022)
        equivocation   x + scale c_i sd(leaf) u                  1       u ~ N(0, 1) once; c_i from 1 to -1 by neighbour

    In dissensus j runs over the liar's neighbours, which it takes for those of i; so it is the source's attack on a
    complete graph with one liar, and elsewhere as near as a liar can see.

    Args:
        by: a name of LIES.
        scale: > 0; None: the usual, above.
        mark: the value of the fact "liar" at the nodes that do this.

    Returns:
        A combinator for `chain`; its models need the facts "liar" and "lie" in params["private"]["site"].

    Raises:
        ConfigError: another name, scale <= 0, or one where there is none; when applied, an algorithm that sends running
            sums.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> from p2pfl.methods.attack import lying
        >>> lying("equivocation")(p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))).per_edge
        True
    """
    one_of(LIES, by=by)
    lie = LIES[by]
    if scale is not None and lie.scale is None:
        raise ConfigError(f"scale={scale!r}: {by} has none; leave it out")
    if scale is not None:
        positive(scale=scale)
    much = scale or lie.scale or 1.0

    def wrap(inner: Algorithm) -> Algorithm:
        if inner.link == "none":  # there is nobody to lie to
            return inner
        if inner.per_edge or inner.keeps_mean == "running_sums":
            raise ConfigError(
                f"attack {by}: {inner.name} sends each neighbour something of its own, or running sums, and attacks "
                "are lies about a model; use an algorithm such as dsgd"
            )

        def init(params: Params, slots: int) -> Beside:
            state = inner.init(params, slots)
            return Beside(state, (jnp.zeros((), jnp.int32), _memory(lie, inner, state, slots)))

        def send(state: Beside, neighborhood: Neighborhood) -> tuple[Beside, Payload]:
            (drawn, kept), out = state.own, jnp.asarray(neighborhood.out_weight) > 0
            there = out | ~out.any()  # where places are padded it says so; else each is a neighbour's
            after, truth = inner.send(state.inner, neighborhood)
            site = inner.params(after)["private"]["site"]
            payload = _payload(lie, truth, kept, site, drawn, much, there, mark)
            return Beside(after, (drawn + 1, kept)), payload

        def mix(state: Beside, inbox: Inbox, neighborhood: Neighborhood) -> Beside:
            truth, liar = inner.send(state.inner, neighborhood)[1], _liar(inner.params(state.inner), mark)

            def honest(leaf: Array, sent: Array) -> Array:
                return jnp.where(liar, jnp.broadcast_to(leaf[None], sent.shape), sent)

            sent = jax.tree.map(honest, truth, inbox.sent)  # a liar mixes with what it has, not with what it said
            drawn, kept = state.own
            if lie.hear is not None and len(inbox.arrived):
                pairs = zip(_lied(truth), _lied(inbox.received), strict=True)
                kept = [lie.hear(theirs - own[None], inbox.arrived) for own, theirs in pairs]
            return Beside(inner.mix(state.inner, inbox._replace(sent=sent), neighborhood), (drawn, kept))

        def adopt(state: Beside, params: Params) -> Beside:
            return state._replace(inner=inner.adopt(state.inner, params))

        def restart(state: Beside, slots: int) -> Beside:
            within = inner.restart(state.inner, slots) if inner.restart else state.inner
            return Beside(within, (state.own[0], _memory(lie, inner, within, slots)))

        made = beside(inner, lambda params: ())._replace(init=init, send=send, mix=mix, adopt=adopt)
        restarts = restart if lie.hear is not None else made.restart
        return made._replace(linear=False, keeps_mean="nothing", per_edge=lie.each, restart=restarts)

    return wrap


def _memory(lie: Lie, inner: Algorithm, state: State, slots: int) -> Tree:
    """Nothing heard yet, in the shapes of what will be."""
    if lie.hear is None:
        return ()
    around = Neighborhood(jnp.zeros(slots), jnp.zeros(slots))
    like = jax.eval_shape(inner.send, state, around)[1]
    many = slots if lie.each else 1
    arrived = jax.ShapeDtypeStruct((many,), jnp.bool_)
    stacked = [jax.ShapeDtypeStruct((many, *leaf.shape), leaf.dtype) for leaf in _lied(like)]
    kept = [jax.eval_shape(lie.hear, leaf, arrived) for leaf in stacked]
    return [jnp.zeros(leaf.shape, leaf.dtype) for leaf in kept]


def _payload(
    lie: Lie, truth: Payload, kept: Tree, site: Tree, drawn: Array, scale: float, there: Array, mark: int
) -> Payload:
    """What goes out: of a liar a lie, of anybody else the truth."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(truth)
    heard, lasting = iter(kept), jax.random.wrap_key_data(jnp.asarray(site["lie"]), impl="threefry2x32")
    key, liar = jax.random.fold_in(lasting, drawn + 1), site["liar"] == mark

    def one(index: int, path: tuple[Any, ...], leaf: Array) -> Array:
        whole = jnp.broadcast_to(leaf[None], (len(there), *leaf.shape)) if lie.each else leaf
        if told(path, leaf):
            return whole
        memory = next(heard) if lie.hear is not None else jnp.zeros((), leaf.dtype)
        now, always = (jax.random.fold_in(each, index) for each in (key, jax.random.fold_in(lasting, 0)))
        said = lie.tell(Telling(leaf, memory, now, always, scale, there))
        return jnp.where(liar, said.astype(leaf.dtype), whole)

    return jax.tree.unflatten(structure, [one(index, *each) for index, each in enumerate(leaves)])


def _lied(payload: Payload) -> list[Array]:
    """The leaves that liars lie about."""
    return [leaf for path, leaf in jax.tree_util.tree_flatten_with_path(payload)[0] if not told(path, leaf)]


def _liar(params: Params, mark: int) -> Array:
    """[] bool."""
    found: Array = params["private"]["site"]["liar"] == mark
    return found


def flipping(learner: Learner, flip: Callable[[Array], Array], mark: int) -> Learner:
    """The learner of which the marked nodes learn from wrong labels: `flip` of batches' y.

    Source: Tolpegin et al., "Data poisoning attacks against federated learning systems" (2020).
    """

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        site = params.get("private", {}).get("site", {})
        if "liar" not in site:
            return learner.grad(params, batch, key)
        y = jnp.where(site["liar"] == mark, flip(batch["y"]), batch["y"])
        return learner.grad(params, {**batch, "y": y}, key)

    return learner._replace(grad=grad)
