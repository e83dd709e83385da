"""Weights of neighbours beyond the graph's: by rows, loss, batch statistics or labels. Combinators.

    wrap = [{ name = "by_labels", sharpness = 2.0 }]

A node tells its neighbours, in every payload, what they weigh it by. Both ends of an exchange then know both sides, and
derive the weight of the exchange from them. What that does to the mean of the models:

    by_samples          w_ij min(1, n_j / n_i)                   the mean weighted by n is kept, by exchange
    by_loss             w_ij u_j / (w_ii u_i + sum_k w_ik u_k)   no mean is kept: the rows are convex, not symmetric
    by_loss, symmetric; by_similarity; by_labels
                        w_ij f_ij, f_ij = f_ji in (0, 1]         the plain mean is kept, by exchange

What an end books is fixed by what the two have sent each other, also when it is booked late.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from p2pfl.check import at_least, positive, share
from p2pfl.errors import ConfigError
from p2pfl.learning.local_steps import steps_in
from p2pfl.tree import is_model, mixed, named_leaves
from p2pfl.types import (
    Algorithm,
    Array,
    Batches,
    Inbox,
    Key,
    Metrics,
    Neighborhood,
    Params,
    Payload,
    State,
    Steps,
    Tree,
)

Weights = Callable[[Tree, Tree, Inbox, Array], Array]
"""(told [K], heard [K], inbox of the inner algorithm, planned weights [K]) -> weights [K]."""


def by_samples() -> Callable[[Algorithm], Algorithm]:
    """A node counts as much as it has training rows: W'[i, j] = w_ij min(1, n_j / n_i).

    n_i W'[i, j] is symmetric, so that every exchange keeps the sum of n_i x_i: models agree on the mean of all rows
    pooled, and with `gradient_tracking` or `exact_diffusion` on the minimum of the pooled objective. A node without
    rows takes and does not give. An edge moves no more than its smaller end has, so that a small node between two large
    ones is a bottleneck; push_sum with by = "sample" has none. Publishes each node's number of rows to its neighbours.
    Source of the weights: Metropolis et al. (1953), Hastings (1970), whose chain has the stationary distribution n.

    Returns:
        A combinator for `chain`.

    Raises:
        ConfigError: when applied, an algorithm without exchanges, or one that asks for W's smallest eigenvalue, which
            these weights can make smaller.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.by_samples()).travels
        'the model, with its number of rows'
    """

    def wrap(inner: Algorithm) -> Algorithm:
        exchanges("by_samples", inner, 'push_sum with by = "sample" is the same for pushes')
        if inner.demands.above is not None:
            raise ConfigError(
                f"wrap by_samples: {inner.name} asks that no eigenvalue of W is below {inner.demands.above:g}, which "
                "such weights don't keep; use exact_diffusion"
            )

        def rows(state: State) -> Array:
            samples: Array = inner.params(state)["private"]["site"]["samples"]
            return samples

        def weights(told: Tree, heard: Tree, inbox: Inbox, planned: Array) -> Array:
            mine = jnp.where(told > 0, told, 1)
            return planned * jnp.where(told > 0, jnp.minimum(1, heard / mine), 1).astype(planned.dtype)

        def mass(state: State) -> Tree:
            whole = inner.mass(state) if inner.mass else mixed(inner.params(state))
            return jax.tree.map(lambda leaf: leaf * rows(state).astype(leaf.dtype), whole)

        return told(inner, rows, weights, "its number of rows")._replace(mass=mass)

    return wrap


def by_loss(
    q: float, bound: float = 10.0, decay: float = 0.8, symmetric: bool = False
) -> Callable[[Algorithm], Algorithm]:
    """A node counts by its training loss l, as u = l^q: q < 0 suppresses nodes that fit badly, q > 0 favours them.

    Rows are w_ij u_j / (w_ii u_i + sum_k w_ik u_k), k over what arrived; l is a running mean over rounds in which the
    node trains, `decay` the share that stays. The mean is not kept. For constant u and symmetric W the chain is
    reversible, and models end in sum_i pi_i x_i with pi_i ~ u_i (w_ii u_i + sum_k w_ik u_k): with equal losses around
    it, a node counts about u_i. Sources, both of an average over all nodes: for q < 0 Li, Xu, Cao, Liu, Zhang, Chen,
    Dai, "Integrated CNN and federated learning for COVID-19 detection on chest X-ray images" (2022); for q > 0 Hosseini
    et al., "Proportionally fair hospital collaborations in federated learning of histopathology images" (2023).

    Losses are told, not proved: a node that tells 0 would draw all others to it. `bound` limits what it can gain: u_j
    counts between u_i / bound and u_i bound.

    `symmetric`: weights w_ij (min(l_i, l_j) / max(l_i, l_j))^-q instead, at least w_ij / bound, the same at both ends:
    the plain mean is kept. Nobody can be favoured then. What remains: a node that fits much worse, or better, than its
    neighbours is mixed with them more slowly, in both directions, so that while training goes on it disturbs them less.

    Args:
        q: exponent, not 0; < 0 with `symmetric`.
        bound: u_j counts between u_i / bound and u_i bound; >= 1.
        decay: what a round leaves of the running mean of the loss, 0 to 1.
        symmetric: one factor at both ends, which keeps the mean.

    Returns:
        A combinator for `chain`.

    Raises:
        ConfigError: an argument is out of bounds; when applied, an algorithm without exchanges, or without `symmetric`
            one whose corrections must have the sum zero.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.by_loss(-1.0)).keeps_mean
        'nothing'
    """
    at_least(1, bound=bound)
    share(decay=decay)
    if not abs(q) > 0:
        raise ConfigError(f"q={q!r}: must be < 0, to suppress nodes that fit badly, or > 0, to favour them")
    if symmetric and q > 0:
        raise ConfigError(
            f"q={q!r}: symmetric weights can only slow an exchange down; give q < 0, or leave symmetric out"
        )

    def ratio(told: Tree, heard: Tree) -> Array:
        """[K] log of u_j / u_i within the bound; 0 where one of the two has no loss yet."""
        tiny = jnp.finfo(told.dtype).tiny
        apart = q * (jnp.log(jnp.maximum(heard, tiny)) - jnp.log(jnp.maximum(told, tiny)))
        limit = jnp.log(jnp.asarray(bound, told.dtype))
        return jnp.where((told < 0) | (heard < 0), 0, jnp.clip(apart, -limit, limit))

    def slower(told: Tree, heard: Tree, inbox: Inbox, planned: Array) -> Array:
        return planned * jnp.exp(-jnp.abs(ratio(told, heard))).astype(planned.dtype)

    def rows(told: Tree, heard: Tree, inbox: Inbox, planned: Array) -> Array:
        u = jnp.exp(ratio(told, heard)).astype(planned.dtype)  # the node's own is 1
        given = jnp.where(inbox.arrived, planned * u, 0)
        own = 1 - jnp.where(inbox.arrived, planned, 0).sum()  # what did not arrive is as if it had no edge
        return given / jnp.maximum(own + given.sum(), jnp.finfo(planned.dtype).tiny)

    def wrap(inner: Algorithm) -> Algorithm:
        exchanges("by_loss", inner)
        if not symmetric and inner.state_class != "none":
            raise ConfigError(
                f"wrap by_loss: {inner.name} needs weights that keep the mean, and a row by loss keeps none; use "
                "symmetric = true, or an algorithm such as dsgd"
            )

        def unknown(params: Params) -> Array:
            return jnp.full((), -1, jax.tree.leaves(params["trained"])[0].dtype)

        def local(state: State, batches: Batches, key: Key, steps: Steps | None) -> tuple[State, Metrics]:
            after, metrics = inner.local(state.inner, batches, key, steps)
            old, new = state.own, metrics["loss"].astype(state.own.dtype)
            known = ((steps_in(batches) if steps is None else steps) > 0) & jnp.isfinite(new)
            new = jnp.maximum(new, 0)
            new = jnp.where(old < 0, new, decay * old + (1 - decay) * new)
            return Beside(after, jnp.where(known, new, old)), metrics

        lifted = beside(inner, unknown)._replace(local=local, any_steps=False)
        found = told(lifted, lambda state: state.own, slower if symmetric else rows, "its training loss")
        return found if symmetric else found._replace(keeps_mean="nothing")

    return wrap


def by_similarity(sharpness: float, publish: bool = False) -> Callable[[Algorithm], Algorithm]:
    """Neighbours with other batch statistics count less: w_ij exp(-sharpness d^2), so that both ends slow down alike.

    d^2 is the mean over all channels of ((mu_i - mu_j)^2 + (sd_i - sd_j)^2) / ((var_i + var_j) / 2): the squared
    Wasserstein-2 distance of the Gaussians that the channels' running means and variances stand for, in units of their
    variance. The plain mean is kept. Source of the distance: Lu et al., "Personalized federated learning with adaptive
    batchnorm for healthcare" (FedAP, 2022); there rows ~ 1 / d are made of it, once, from the statistics that one model
    has at each site, and batch normalisation stays at home.

    Statistics are read off the payload. Those that are mixed become alike, and say little; those that stay at home
    (share = "silobn" or "fedbn", as in FedAP) tell more, and travel only with `publish`: a mean and a variance per
    channel then reach the neighbours in every round, and are mixed into nothing.

    Args:
        sharpness: > 0.
        publish: send statistics that stay at home along, for comparison alone.

    Returns:
        A combinator for `chain`.

    Raises:
        ConfigError: sharpness <= 0; when applied, an algorithm without exchanges; when a model is made, one without
            statistics to compare.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.by_similarity(1.0)).keeps_mean
        'exchange'
    """
    positive(sharpness=sharpness)

    def wrap(inner: Algorithm) -> Algorithm:
        exchanges("by_similarity", inner)

        def hidden(params: Params) -> tuple[Array, ...]:
            """Return what is told besides the payload: nothing where statistics travel anyway."""
            if _statistics(params["carried"]):
                return ()
            kept = params.get("private", {}).get("share", {}).get("leaves", {}).get("carried") or {}
            found = _statistics(kept)
            if not found:
                raise ConfigError(
                    "wrap by_similarity: the model has no batch statistics to compare; give it norm = 'batch', or use "
                    "by_labels"
                )
            if not publish:
                raise ConfigError(
                    "publish=False: the batch statistics stay at home, so that neighbours can't compare them; "
                    "publish = true sends them along, or share them"
                )
            return found

        def init(params: Params, slots: int) -> State:
            hidden(params)
            return inner.init(params, slots)

        def weights(told: Tree, heard: Tree, inbox: Inbox, planned: Array) -> Array:
            if not told:
                told, heard = (_statistics(model(side)["carried"], 1) for side in (inbox.sent, inbox.received))
            (mean, var), (other_mean, other_var) = told, heard
            var, other_var = jnp.maximum(var, 0), jnp.maximum(other_var, 0)
            apart = (mean - other_mean) ** 2 + (jnp.sqrt(var) - jnp.sqrt(other_var)) ** 2
            distance = (apart / ((var + other_var) / 2 + 1e-5)).mean(axis=1)
            return planned * jnp.exp(-sharpness * distance).astype(planned.dtype)

        def tell(state: State) -> Tree:
            return hidden(inner.params(state))

        return told(inner, tell, weights, "its batch statistics" if publish else "")._replace(init=init)

    return wrap


def by_labels(sharpness: float, like: bool = True, minimum: int = 10) -> Callable[[Algorithm], Algorithm]:
    """Neighbours count by their label distributions p: w_ij exp(-sharpness h), the same at both ends.

    h = 1 - sum_c sqrt(p_ic p_jc), the squared Hellinger distance, in 0..1: those who are alike mix more. like = False
    takes 1 - h: those who complement each other mix more, so that neighbourhoods come nearer to the whole; the idea of
    Bellet, Kermarrec, Lavoie, "D-Cliques: compensating for data heterogeneity with topology in decentralized federated
    learning" (2022), without their graph. The plain mean is kept.

    Publishes the share of each class to the neighbours, where `minimum` rows or more have it; smaller classes are told
    as absent. A node that tells of no class is weighed as the graph has it.

    Args:
        sharpness: > 0.
        like: those who are alike mix more; false: those who are not.
        minimum: rows from which on a class is told, >= 1.

    Returns:
        A combinator for `chain`.

    Raises:
        ConfigError: an argument is out of bounds; when applied, an algorithm without exchanges.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> base = p2pfl.algorithms.dsgd(learner(2), optax.sgd(0.1))
        >>> p2pfl.methods.chain(base, p2pfl.methods.by_labels(2.0)).travels
        'the model, with the shares of its classes'
    """
    positive(sharpness=sharpness)
    at_least(1, minimum=minimum)

    def wrap(inner: Algorithm) -> Algorithm:
        exchanges("by_labels", inner)

        def distribution(state: State) -> Array:
            counts = inner.params(state)["private"]["site"]["labels"]
            counts = jnp.where(counts >= minimum, counts, 0)
            found: Array = counts / jnp.maximum(counts.sum(), 1)
            return found

        def weights(told: Tree, heard: Tree, inbox: Inbox, planned: Array) -> Array:
            mine, theirs = (side.astype(planned.dtype) for side in (told, heard))
            alike = jnp.sqrt(jnp.maximum(mine * theirs, 0)).sum(axis=1)
            known = (mine.sum(axis=1) > 0) & (theirs.sum(axis=1) > 0)
            apart = jnp.clip(1 - alike if like else alike, 0, 1)
            return planned * jnp.where(known, jnp.exp(-sharpness * apart), 1)

        return told(inner, distribution, weights, "the shares of its classes")

    return wrap


# --- what they are made of


class Beside(NamedTuple):
    """The state of an algorithm, and what a combinator keeps beside it."""

    inner: State
    own: Tree


def beside(inner: Algorithm, first: Callable[[Params], Tree]) -> Algorithm:
    """The same algorithm with a `Beside` as its state. `first(model)` -> what a life, and a joiner, begins with."""

    def init(params: Params, slots: int) -> Beside:
        return Beside(inner.init(params, slots), first(params))

    def local(state: Beside, batches: Batches, key: Key, steps: Steps | None) -> tuple[Beside, Metrics]:
        after, metrics = inner.local(state.inner, batches, key, steps)
        return state._replace(inner=after), metrics

    def send(state: Beside, neighborhood: Neighborhood) -> tuple[Beside, Payload]:
        after, payload = inner.send(state.inner, neighborhood)
        return state._replace(inner=after), payload

    def mix(state: Beside, inbox: Inbox, neighborhood: Neighborhood) -> Beside:
        return state._replace(inner=inner.mix(state.inner, inbox, neighborhood))

    def adopt(state: Beside, params: Params) -> Beside:
        return Beside(inner.adopt(state.inner, params), first(params))

    def put(state: Beside, params: Params) -> Beside:
        return state._replace(inner=inner.replaced(state.inner, params))

    mass, restart = inner.mass, inner.restart
    return inner._replace(
        init=init,
        local=local,
        send=send,
        mix=mix,
        adopt=adopt,
        params=lambda state: inner.params(state.inner),
        put=put,
        mass=(lambda state: mass(state.inner)) if mass else None,
        restart=(lambda state, slots: state._replace(inner=restart(state.inner, slots))) if restart else None,
    )


def told(inner: Algorithm, tell: Callable[[State], Tree], weights: Weights, what: str) -> Algorithm:
    """The algorithm whose payload is {"inner": its own, "told": tell(state)}, and whose weights are made of both sides.

    `weights` must look at what was sent and received alone, never at the state, so that both ends see the same.
    """

    def send(state: State, neighborhood: Neighborhood) -> tuple[State, Payload]:
        state, payload = inner.send(state, neighborhood)
        return state, {"inner": payload, "told": tell(state)}

    def mix(state: State, inbox: Inbox, neighborhood: Neighborhood) -> State:
        within = inbox._replace(sent=inbox.sent["inner"], received=inbox.received["inner"])
        weight = weights(inbox.sent["told"], inbox.received["told"], within, neighborhood.weight)
        return inner.mix(state, within, neighborhood._replace(weight=weight))

    travels = f"{inner.travels}, with {what}" if what else inner.travels
    return inner._replace(send=send, mix=mix, travels=travels, linear=False)


def exchanges(name: str, inner: Algorithm, instead: str = "use an algorithm of exchanges, such as dsgd") -> None:
    """Raises ConfigError for an algorithm that makes no exchanges: what a node tells would not be answered."""
    if inner.link == "none":
        raise ConfigError(f"wrap {name}: {inner.name} exchanges nothing; leave {name} out")
    if inner.link != "exchange" or inner.per_edge:
        raise ConfigError(
            f"wrap {name}: {inner.name} sends one way, so that the two ends of an edge do not know what the other has "
            f"sent; {instead}"
        )


def model(payload: Payload) -> Params:
    """The first model in a payload."""
    found: Params = next(part for part in jax.tree.leaves(payload, is_leaf=is_model) if is_model(part))
    return found


def _statistics(carried: Tree, batch: int = 0) -> tuple[Array, ...]:
    """Running means and variances of all channels, [D] each, after `batch` leading axes; () where there are none."""
    found = named_leaves(carried)
    homes = [path[: -len("mean")] for path in found if path.endswith("mean") and f"{path[:-4]}var" in found]

    def flat(name: str) -> Array:
        leaves = [found[home + name] for home in homes]
        return jnp.concatenate([leaf.reshape(*leaf.shape[:batch], -1) for leaf in leaves], axis=batch)

    return (flat("mean"), flat("var")) if homes else ()
