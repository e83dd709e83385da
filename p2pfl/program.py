"""The compiled computations of one node: the same for every driver, so that drivers can agree to the bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl import tree
from p2pfl.types import Algorithm, Array, Inbox, Learner, Neighborhood, Params, Payload, State, Tree

CHUNK = 512
"""Rows of one call of the compiled evaluation; the last chunk is padded, so that one program serves every data set."""


class Mixed(NamedTuple):
    """What `Program.mix` did, for the ledger: sketches (see tree.sketch)."""

    moved: Array  # [SKETCH] float32: how far mixing moved the model
    exchanged: Array  # [K, SKETCH] float32: how far each slot's exchange should have moved it; zero where none arrived
    model: Array  # [SKETCH] float32: the model after mixing


class Program(NamedTuple):
    """Jitted functions of one node; see `compile`."""

    init: Callable[[int], State]
    train: Callable[[State, Tree, Array, Array, Neighborhood], tuple[State, Array, Payload]]
    mix: Callable[[State, Inbox, Neighborhood], tuple[State, Mixed]]
    adopt: Callable[[State, Inbox], State]
    params: Callable[[State], Params]
    evaluate: Callable[[State, EvalSet], tuple[np.ndarray, np.ndarray]]


class EvalSet(NamedTuple):
    """Test rows on the device, in chunks of one size."""

    chunks: tuple[tuple[Array, Array, Array], ...]  # (x, y, mask)
    rows: int


def eval_set(x: np.ndarray, y: np.ndarray) -> EvalSet:
    """Chunks and pads test rows x [N, ...] and y [N]."""
    size = min(CHUNK, len(y)) or 1
    chunks = []
    for start in range(0, len(y), size):
        part_x, part_y = x[start : start + size], y[start : start + size]
        gap = size - len(part_y)
        mask = np.pad(np.ones(len(part_y), np.float32), (0, gap))
        padded = np.pad(part_x, ((0, gap),) + ((0, 0),) * (x.ndim - 1)), np.pad(part_y, (0, gap))
        chunks.append((jnp.asarray(padded[0]), jnp.asarray(padded[1]), jnp.asarray(mask)))
    return EvalSet(tuple(chunks), len(y))


def compile(algorithm: Algorithm, learner: Learner, slots: int, seed: int) -> Program:
    """The program of a node with `slots` neighbours. Nothing is compiled before its first use.

    `init(seed)`: every node starts from the same model. `train(state, batches, node, round, around)` takes the local
    steps and makes the payload; returns (state, loss, payload). `mix` takes an inbox whose `sent` and `received` are
    sequences of K payloads. `evaluate` returns per row (correct, loss) as float32 arrays [rows].
    """

    @jax.jit
    def train(
        state: State, batches: Tree, node: Array, round: Array, around: Neighborhood
    ) -> tuple[State, Array, Payload]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), node), round)
        state, metrics = algorithm.local(state, batches, key, None)
        state, payload = algorithm.send(state, around)
        return state, metrics["loss"], payload

    @jax.jit
    def mix(state: State, inbox: Inbox, around: Neighborhood) -> tuple[State, Mixed]:
        if not inbox.received:  # a node without neighbours
            return state, Mixed(
                jnp.zeros(tree.SKETCH), jnp.zeros((0, tree.SKETCH)), tree.sketch(algorithm.params(state))
            )
        new = algorithm.mix(state, inbox._replace(sent=stack(inbox.sent), received=stack(inbox.received)), around)
        model = algorithm.params(new)
        moved = tree.sketch(tree.subtract(model, algorithm.params(state)))
        weight = jnp.where(inbox.arrived, around.weight, 0.0)
        exchanged = [
            weight[k] * tree.sketch(tree.subtract(inbox.received[k], inbox.sent[k])) for k in range(weight.shape[0])
        ]
        return new, Mixed(moved, jnp.stack(exchanged), tree.sketch(model))

    @jax.jit
    def evaluate(state: State, x: Array, y: Array, mask: Array) -> tuple[Array, Array]:
        sums = learner.evaluate(algorithm.params(state), {"x": x, "y": y}, mask)
        return sums["correct"], sums["loss"]

    @jax.jit
    def adopt(state: State, inbox: Inbox) -> State:
        return algorithm.adopt(state, inbox._replace(sent=stack(inbox.sent), received=stack(inbox.received)))

    @jax.jit
    def init(key: Array) -> State:
        return algorithm.init(learner.init(key), slots)

    def evaluate_all(state: State, test: EvalSet) -> tuple[np.ndarray, np.ndarray]:
        parts = [evaluate(state, *chunk) for chunk in test.chunks]
        correct = [np.asarray(part[0]) for part in parts]
        loss = [np.asarray(part[1]) for part in parts]
        return np.concatenate(correct)[: test.rows], np.concatenate(loss)[: test.rows]

    return Program(
        init=lambda seed: init(jax.random.key(seed)),
        train=train,
        mix=mix,
        adopt=adopt,
        params=jax.jit(algorithm.params),
        evaluate=evaluate_all,
    )


def stack(payloads: Sequence[Payload]) -> Payload:
    """K payloads as one with a leading axis K."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *payloads)


def shapes(program: Program, state: State, batches: Tree, around: Neighborhood) -> Any:
    """The payload's shapes and dtypes, without running anything."""
    return jax.eval_shape(program.train, state, batches, np.int32(0), np.int32(1), around)[2]
