"""The compiled computations of one node: what mixing says it did, and evaluation in chunks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from p2pfl import tree
from p2pfl.algorithms import dsgd, local
from p2pfl.learning import batching, models
from p2pfl.learning.batching import CHUNK, eval_set
from p2pfl.learning.flax import from_flax
from p2pfl.node import program
from p2pfl.node.program import Program
from p2pfl.types import Inbox, Learner, Neighborhood, Tree

pytestmark = pytest.mark.usefixtures("optimised_module")

FEATURES, CLASSES, SLOTS = 5, 3, 3
LEARNER = from_flax(models.mlp((FEATURES,), CLASSES, hidden=(4,)), jnp.zeros((1, FEATURES)), CLASSES)
SGD = optax.sgd(0.1, momentum=0.9)


@pytest.fixture(scope="module")
def compiled() -> Program:
    return program.compile(dsgd(LEARNER, SGD), LEARNER, SLOTS, seed=3)


def around(*weight: float) -> Neighborhood:
    return Neighborhood(np.array(weight, np.float32), np.array(weight, np.float32))


def data(rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    return rng.normal(size=(rows, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, rows).astype(np.int32)


def close(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def test_every_node_starts_from_the_same_model(compiled: Program) -> None:
    assert tree.digest(compiled.init(3)) == tree.digest(compiled.init(3))
    assert tree.digest(compiled.init(3)) != tree.digest(compiled.init(4))
    assert tree.schema(compiled.params(compiled.init(3))) == tree.schema(LEARNER.init(jax.random.key(0)))


@pytest.mark.parametrize("arrived", [(True, True, True), (False, True, True), (False, False, False)])
def test_mix_says_what_it_did(compiled: Program, arrived: tuple[bool, ...]) -> None:
    state, weight = compiled.init(0), (0.25, 0.2, 0.3)
    sent = tuple(compiled.params(compiled.init(seed)) for seed in (0, 5, 6))  # two exchanges are late
    received = tuple(compiled.params(compiled.init(seed)) for seed in (1, 2, 3))
    inbox = Inbox(sent, received, np.array(arrived), np.zeros(3, np.int32))
    new, mixed = compiled.mix(state, inbox, around(*weight))
    old_model, model = compiled.params(state), compiled.params(new)
    # float32: the sketches add some ten terms of order one
    moved = tree.sketch(tree.subtract(model, old_model))
    close(mixed.model, tree.sketch(model))
    close(mixed.exchanged.sum(axis=0), moved)
    for k in range(SLOTS):
        expected = arrived[k] * weight[k] * np.asarray(tree.sketch(tree.subtract(received[k], sent[k])))
        close(mixed.exchanged[k], expected)
    assert bool(np.abs(moved).max() > 1e-2) == any(arrived)


def test_the_two_ends_of_an_exchange_write_the_opposite(compiled: Program) -> None:
    mine, theirs = compiled.params(compiled.init(1)), compiled.params(compiled.init(2))
    rest = (mine,) * (SLOTS - 1)
    arrived, age = np.array([True, False, False]), np.zeros(SLOTS, np.int32)
    _, here = compiled.mix(compiled.init(1), Inbox((mine, *rest), (theirs, *rest), arrived, age), around(0.3, 0.3, 0.3))
    _, there = compiled.mix(
        compiled.init(2), Inbox((theirs, *rest), (mine, *rest), arrived, age), around(0.3, 0.3, 0.3)
    )
    assert np.array_equal(here.exchanged, -there.exchanged)
    assert np.abs(here.exchanged[0]).max() > 1e-2


def test_local_does_not_move(compiled: Program) -> None:
    alone = program.compile(local(LEARNER, SGD), LEARNER, SLOTS, seed=3)
    payload = (compiled.params(compiled.init(1)),) * SLOTS
    inbox = Inbox(payload, payload[::-1], np.ones(SLOTS, bool), np.zeros(SLOTS, np.int32))
    new, mixed = alone.mix(alone.init(0), inbox, around(0.2, 0.2, 0.2))
    assert tree.digest(new) == tree.digest(alone.init(0))
    assert not mixed.exchanged.any()


def test_a_node_without_neighbors(compiled: Program) -> None:
    state = compiled.init(0)
    new, mixed = compiled.mix(state, Inbox((), (), np.zeros(0, bool), np.zeros(0, np.int32)), around())
    assert tree.digest(new) == tree.digest(state)
    assert mixed.exchanged.shape == (0, tree.SKETCH)
    close(mixed.model, tree.sketch(compiled.params(state)))


def test_train_is_the_local_steps_and_the_payload(compiled: Program) -> None:
    algorithm, state = dsgd(LEARNER, SGD), compiled.init(0)
    x, y = data(2 * 6)
    batches = {"x": x.reshape(2, 6, FEATURES), "y": y.reshape(2, 6)}
    new, loss, payload, model = compiled.train(state, batches, np.int32(4), np.int32(7), around(0.2, 0.2, 0.2))
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 4), 7)
    expected, metrics = algorithm.local(state, jax.tree.map(jnp.asarray, batches), key, None)
    jax.tree.map(close, new, expected)
    close(loss, metrics["loss"])
    assert tree.digest(payload) == tree.digest(compiled.params(new))
    assert model is None  # it is the payload itself


def test_a_model_that_is_not_the_payload_comes_beside_it() -> None:
    cta = program.compile(dsgd(LEARNER, SGD, order="cta"), LEARNER, SLOTS, seed=3)
    x, y = data(6)
    batches = {"x": x.reshape(1, 6, FEATURES), "y": y.reshape(1, 6)}
    new, _, payload, model = cta.train(cta.init(0), batches, np.int32(0), np.int32(1), around(0.2, 0.2, 0.2))
    assert tree.digest(model) == tree.digest(cta.params(new))
    assert tree.digest(payload) == tree.digest(cta.params(cta.init(0)))


def test_randomness_is_of_seed_node_and_round() -> None:
    """A learner whose gradient is its key's normal draw."""

    def grad(params: Tree, batch: Tree, key: Any) -> tuple[Tree, Tree, dict[str, Any]]:
        return jax.random.normal(key, (3,)), {"carried": {}}, {"loss": jnp.float32(0)}

    noise = Learner(lambda key: {"trained": jnp.zeros(3), "carried": {}}, grad, lambda *a: {})
    seen = set()
    for seed in (0, 1):
        it = program.compile(dsgd(noise, optax.sgd(1.0)), noise, 0, seed)
        for node, round in ((0, 1), (1, 1), (1, 2), (2, 1)):
            for _ in range(2):  # the same again
                state, *_ = it.train(it.init(0), {"x": np.zeros((1, 1))}, np.int32(node), np.int32(round), around())
                seen.add(tree.digest(state))
    assert len(seen) == 2 * 4


def test_adopt_takes_over_a_model(compiled: Program) -> None:
    model = compiled.params(compiled.init(3))
    assert tree.digest(compiled.adopt(compiled.init(0), model)) == tree.digest(compiled.init(3))


@pytest.mark.parametrize("rows", [1, 5, 8, 13])
def test_padded_evaluation_is_unpadded(compiled: Program, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(batching, "CHUNK", 8)
    x, y = data(rows)
    test = eval_set(x, y)
    assert test.rows == rows
    assert {len(mask) for _, _, mask in test.chunks} == {min(rows, 8)}
    assert sum(float(mask.sum()) for _, _, mask in test.chunks) == rows
    correct, loss = compiled.evaluate(compiled.init(0), test)
    whole = jax.jit(LEARNER.evaluate)(
        compiled.params(compiled.init(0)), {"x": jnp.asarray(x), "y": jnp.asarray(y)}, jnp.ones(rows)
    )
    assert correct.shape == loss.shape == (rows,)
    assert np.array_equal(correct, whole["score"])
    close(loss, whole["loss"])


def test_a_whole_chunk_and_a_bit(compiled: Program) -> None:
    rows = CHUNK + 1
    x, y = data(rows)
    test = eval_set(x, y)
    assert [len(mask) for _, _, mask in test.chunks] == [CHUNK, CHUNK]
    correct, loss = compiled.evaluate(compiled.init(0), test)
    one, one_loss = compiled.evaluate(compiled.init(0), eval_set(x[-1:], y[-1:]))
    assert (correct.shape, correct[-1]) == ((rows,), one[0])
    close(loss[-1], one_loss[0])
