"""The compiled computations of one node: the same for every driver, so that drivers can agree to the bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl import tree
from p2pfl.learning.batching import EvalSet
from p2pfl.learning.local_steps import placed
from p2pfl.node.fit import NodeSlice
from p2pfl.types import Algorithm, Array, Inbox, Learner, Neighborhood, Params, Payload, State, Tree


class Mixed(NamedTuple):
    """The result of `Program.mix`, for the ledger: sketches (see tree.sketch)."""

    exchanged: Array  # [K, SKETCH] float32: w (received - sent) of each slot; zero where nothing arrived
    model: Array  # [SKETCH] float32: the model after mixing


class Program(NamedTuple):
    """Jitted functions of one node; see `compile`."""

    slots: int
    init: Callable[..., State]  # (seed, site = {})
    train: Callable[[State, Tree, Array, Array, Neighborhood], tuple[State, Array, Payload, Params | None]]
    mix: Callable[[State, Inbox, Neighborhood], tuple[State, Mixed]]
    adopt: Callable[[State, Params], State]
    put: Callable[[State, Params, Neighborhood], tuple[State, Payload, Params | None]]
    restart: Callable[[State, int], State]
    params: Callable[[State], Params]
    evaluate: Callable[[State, EvalSet], tuple[np.ndarray, np.ndarray]]


def compile(algorithm: Algorithm, learner: Learner, slots: int, seed: int, fit: NodeSlice | None = None) -> Program:
    """The program of a node with `slots` neighbour slots. Nothing is compiled before its first use.

    `init(seed, site)`: every node starts from the same model; `site`: what the node knows of its own data, {} where
    nothing is asked for. `train(state, batches, node, round, around)` takes the local steps and makes the payload;
    returns (state, loss, payload, model), the model after the local steps as others may have it, None where it is the
    payload itself; so does `put(state, model, around)`, but for the loss, with a model that somebody else has trained.
    `mix` takes an inbox whose `sent` and `received` are sequences of K payloads (of K parts, where the algorithm is
    `per_edge`). `evaluate` returns per row (score, loss) as float32 arrays [rows]. `params` is the model for others to
    see: with a `fit`, in the shapes of the whole one.
    """

    shown, widened = (fit.widen, fit.widened) if fit else (lambda params: params, lambda payload: payload)

    @jax.jit
    def train(
        state: State, batches: Tree, node: Array, round: Array, around: Neighborhood
    ) -> tuple[State, Array, Payload, Params | None]:
        state, metrics = algorithm.local(state, batches, node_key(seed, node, round), None)
        model = tree.public(algorithm.params(state))
        state, payload = algorithm.send(state, around)
        return state, metrics["loss"], payload, None if _same(model, payload) else model

    @jax.jit
    def put(state: State, model: Params, around: Neighborhood) -> tuple[State, Payload, Params | None]:
        state = algorithm.replaced(state, {**algorithm.params(state), **model})
        public = tree.public(algorithm.params(state))
        state, payload = algorithm.send(state, around)
        return state, payload, None if _same(public, payload) else public

    @jax.jit
    def mix(state: State, inbox: Inbox, around: Neighborhood) -> tuple[State, Mixed]:
        if not inbox.received:
            like = jax.eval_shape(algorithm.send, state, around)[1]
            empty = jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape), leaf.dtype), like)
            whole = inbox._replace(sent=empty, received=empty)
        else:
            whole = inbox._replace(sent=stack(inbox.sent), received=stack(inbox.received))
        if algorithm.weigh is not None:
            around = around._replace(weight=algorithm.weigh(around.weight, inbox.arrived))
        new = algorithm.mix(state, whole, around)
        exchanged = jnp.zeros((len(inbox.received), tree.SKETCH), jnp.float32)
        if algorithm.keeps_mean == "exchange" and inbox.received:
            weight = jnp.where(inbox.arrived, around.weight, 0).astype(jnp.float32)
            rows = [
                weight[k] * tree.sketch(widened(_difference(inbox.received[k], inbox.sent[k])))
                for k in range(weight.shape[0])
            ]
            exchanged = jnp.stack(rows)
        return new, Mixed(exchanged, tree.sketch(tree.mixed(shown(algorithm.params(new)))))

    @jax.jit
    def evaluate(state: State, x: Array, y: Array, mask: Array) -> tuple[Array, Array]:
        sums = learner.evaluate(algorithm.params(state), {"x": x, "y": y}, mask)
        return sums["score"], sums["loss"]

    @jax.jit  # with its key: each small program of its own takes a while to load
    def init(seed: Array, site: Tree) -> State:
        return algorithm.init(placed(learner.init(jax.random.key(seed)), site), slots)

    return Program(
        slots=slots,
        init=lambda seed, site=None: init(np.uint32(seed), site or {}),
        train=train,
        mix=mix,
        adopt=jax.jit(algorithm.adopt),
        put=put,
        restart=jax.jit(algorithm.restart, static_argnums=1) if algorithm.restart else lambda state, slots: state,
        params=jax.jit(lambda state: shown(algorithm.params(state))),
        evaluate=lambda state, test: _evaluated(evaluate, state, test),
    )


def _difference(received: Payload, sent: Payload) -> Payload:
    """By how much two sides differ; nothing of what is masked: bits do not differ by amounts."""

    def leaf(a: Array, b: Array) -> Array:
        return jnp.zeros_like(a) if jnp.issubdtype(a.dtype, jnp.unsignedinteger) else a - b

    return jax.tree.map(leaf, received, sent)


def _evaluated(evaluate: Callable[..., Any], state: State, test: EvalSet) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate chunk by chunk."""
    parts = [evaluate(state, *chunk) for chunk in test.chunks]
    score, loss = ([np.asarray(part[i]) for part in parts] for i in (0, 1))
    return np.concatenate(score)[: test.rows], np.concatenate(loss)[: test.rows]


def node_key(seed: int | Array, node: Array, round: Array) -> Array:
    """The random key of a node's local steps in a round."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), node), round)


def _same(model: Params, payload: Payload) -> bool:
    """Return whether the payload is the model: its very arrays, so that they need not be made twice."""
    ours, theirs = jax.tree.leaves(model), jax.tree.leaves(payload)
    return len(ours) == len(theirs) and all(a is b for a, b in zip(ours, theirs, strict=True))


def stack(payloads: Sequence[Payload]) -> Payload:
    """K payloads as one with a leading axis K."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *payloads)
