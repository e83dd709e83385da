"""Watching: each node tests its model on validation rows of its own, keeps the best, and may end its training by it.

Before the local steps of a round, where an evaluation was due, the model that the last mixing has made is scored on the
node's validation rows. The best so far is kept at home, in params["private"]["best"]; after `patience` evaluations
without a better one the node takes no local step any more. It goes on mixing, with the weights it had: so the mean is
kept, nobody loses a neighbour, and the others train on; but what its rows say is heard less and less, as in any run in
which a node trains less than others. Each node decides by its own rows alone, and tells nobody: validation scores of a
site never leave it. It goes on scoring, since the others may make its model better than it could. A node that has ended
does not begin again; a new life of it does.

Source: Prechelt, "Early stopping - but when?" (1998), its third class of criteria, on one node's rows: stop when the
error has not fallen in so many strips.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from p2pfl.check import at_least
from p2pfl.learning.local_steps import steps_in
from p2pfl.methods.weighting import Beside, beside
from p2pfl.tree import mixed
from p2pfl.types import (
    Algorithm,
    Array,
    Batches,
    Key,
    Learner,
    Metrics,
    Params,
    Steps,
    Tree,
)

BEST = "best"
"""Where what is kept lies, in params["private"]."""
HELD = "held"
"""A site's fact: of how many rows the validation is."""


def placed(learner: Learner) -> Learner:
    """The learner whose models have a place for the best one: `watch` fills it."""

    def init(key: Key) -> Params:
        params = learner.init(key)
        return {**params, "private": {**params.get("private", {}), BEST: _nothing(params)}}

    return learner._replace(init=init)


def _nothing(params: Params) -> Tree:
    zero, score = jnp.zeros((), jnp.int32), jnp.asarray(-jnp.inf, jnp.float32)
    return {"model": _model(params), "score": score, "round": zero, "since": zero, "ended": zero}


def _model(params: Params) -> Tree:
    """What of a model may change: the parts that are mixed, and the leaves that stay at home."""
    share = params.get("private", {}).get("share")
    return mixed(params) if share is None else {**mixed(params), "leaves": share["leaves"]}


def best_of(params: Params) -> Params:
    """The best model that a node has had, of the one that it has now."""
    model, private = dict(params["private"][BEST]["model"]), params["private"]
    if "leaves" in model:
        private = {**private, "share": {**private["share"], "leaves": model.pop("leaves")}}
    return {**params, **model, "private": private}


def watch(
    inner: Algorithm, learner: Learner, ahead: int, every: int, patience: int | None = None, at_once: int | None = None
) -> Algorithm:
    """The algorithm whose nodes score their models by validation rows.

    Args:
        inner: the algorithm.
        learner: what it learns with; that of `placed`.
        ahead: the first so many batches of a round hold the validation rows, the same in every round, padded; how many
            rows are meant says the fact HELD.
        every: rounds between two evaluations, >= 1.
        patience: evaluations without a better score after which the node trains no more, >= 1; None: it never ends.
        at_once: so many validation rows are scored at once, >= 1; None: all, as where they are compared.

    Returns:
        The algorithm; its local steps are on the other batches.

    Raises:
        ConfigError: a number is out of bounds.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> kept = p2pfl.methods.watching.placed(learner(2))
        >>> base = p2pfl.algorithms.dsgd(kept, optax.sgd(0.1))
        >>> p2pfl.methods.watching.watch(base, kept, ahead=1, every=1, patience=3).name
        'dsgd'
    """
    at_least(1, every=every, patience=1 if patience is None else patience, at_once=1 if at_once is None else at_once)

    def init(params: Params, slots: int) -> Beside:
        bare, best = _parted(params)
        return Beside(inner.init(bare, slots), {BEST: best, "rounds": jnp.zeros((), jnp.int32)})

    def local(state: Beside, batches: Batches, key: Key, steps: Steps | None) -> tuple[Beside, Metrics]:
        count = steps_in(batches) - ahead
        if count <= 0:  # a round without local steps has no batches at all
            after, metrics = inner.local(state.inner, jax.tree.map(lambda leaf: leaf[:0], batches), key, None)
            return state._replace(inner=after), metrics
        held, rows = (
            jax.tree.map(lambda leaf, part=part: leaf[part], batches) for part in (slice(ahead), slice(ahead, None))
        )
        wanted, params = jnp.int32(count) if steps is None else steps, inner.params(state.inner)
        score = _scored(learner, params, held, params["private"]["site"][HELD], at_once)
        own = _seen(params, state.own, score, wanted > 0, every, patience)
        ended = own[BEST]["ended"] > 0
        after, metrics = inner.local(state.inner, rows, key, jnp.where(ended, 0, wanted))
        first = jax.tree.map(lambda leaf: leaf[0], rows)
        ones = jnp.ones(jax.tree.leaves(first)[0].shape[0], jnp.float32)
        as_it_is = learner.evaluate(params, first, ones)["loss"].mean()
        loss = jnp.where(ended, as_it_is.astype(metrics["loss"].dtype), metrics["loss"])  # of steps there are none
        return Beside(after, own), {**metrics, "loss": loss}

    def adopt(state: Beside, params: Params) -> Beside:
        return state._replace(inner=inner.adopt(state.inner, params))

    def whole(state: Beside) -> Params:
        params = inner.params(state.inner)
        return {**params, "private": {**params["private"], BEST: state.own[BEST]}}

    def put(state: Beside, params: Params) -> Beside:
        bare, best = _parted(params)
        return Beside(inner.replaced(state.inner, bare), {**state.own, BEST: best})

    around = beside(inner, lambda params: ())
    return around._replace(init=init, local=local, adopt=adopt, params=whole, put=put, any_steps=False)


def _parted(params: Params) -> tuple[Params, Tree]:
    private = dict(params["private"])
    best = private.pop(BEST)
    return {**params, "private": private}, best


def _seen(params: Params, own: Tree, score: Array, on: Array, every: int, patience: int | None) -> Tree:
    """What a node knows after the evaluation that is due before a round. `on` [] bool: it is a round of training."""
    old, rounds, rows = own[BEST], own["rounds"], params["private"]["site"][HELD]
    due = on & (rounds > 0) & (rounds % every == 0) & (rows > 0)
    better = due & (score > old["score"])
    since = jnp.where(better, 0, old["since"] + due.astype(jnp.int32))
    over = jnp.zeros((), bool) if patience is None else since >= patience
    best = {
        "model": jax.tree.map(lambda new, kept: jnp.where(better, new, kept), _model(params), old["model"]),
        "score": jnp.where(better, score, old["score"]),
        "round": jnp.where(better, rounds, old["round"]),
        "since": since,
        "ended": jnp.where((old["ended"] == 0) & over, rounds, old["ended"]),
    }
    return {BEST: best, "rounds": rounds + on.astype(jnp.int32)}


def _scored(learner: Learner, params: Params, held: Batches, rows: Array, at_once: int | None) -> Array:
    """[] float32: the mean score of the first `rows` rows of batches, at most `at_once` of them together."""
    count = math.prod(jax.tree.leaves(held)[0].shape[:2])
    size = count if at_once is None else min(at_once, count)
    calls = -(-count // size)

    def chunks(leaf: Array) -> Array:
        flat = leaf.reshape(-1, *leaf.shape[2:])
        padded = jnp.pad(flat, ((0, calls * size - count), *((0, 0),) * (flat.ndim - 1)))
        return padded.reshape(calls, size, *flat.shape[1:])

    def of(each: tuple[Batches, Array]) -> Array:
        return learner.evaluate(params, *each)["score"].sum()

    mask = (jnp.arange(calls * size, dtype=jnp.int32) < rows).astype(jnp.float32).reshape(calls, size)
    total = jax.lax.map(of, (jax.tree.map(chunks, held), mask)).sum()
    return (total / jnp.maximum(rows, 1).astype(total.dtype)).astype(jnp.float32)
