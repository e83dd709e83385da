"""What adversarial methods are made of: against closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2pfl.methods.objectives import adversary


def test_reverse_turns_the_gradient_of_what_is_before_it_and_of_nothing_else() -> None:
    def loss(w: jax.Array, v: jax.Array) -> jax.Array:
        return v * adversary.reverse(3 * w, 0.5)

    value, (to_w, to_v) = jax.value_and_grad(loss, argnums=(0, 1))(2.0, 5.0)
    assert (value, to_w, to_v) == (30, -0.5 * 3 * 5, 6)


def test_losses_are_those_by_hand() -> None:
    logits = jnp.asarray([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    source = jnp.asarray([2, 0], jnp.int32)
    np.testing.assert_allclose(adversary.telling(logits, source), -np.log(p[[0, 1], [2, 0]]), rtol=1e-5)
    np.testing.assert_allclose(adversary.confusion(logits), -np.log(p).mean(axis=1), rtol=1e-5)
    two = logits.at[:, 2].set(-1e9)  # of a source that is not there
    q = np.exp(logits[:, :2]) / np.exp(logits[:, :2]).sum(axis=1, keepdims=True)
    among = jnp.asarray([True, True, False])
    np.testing.assert_allclose(adversary.confusion(two, among), -np.log(q).mean(axis=1), rtol=1e-5)
    one = jnp.asarray([[2.0], [-1.0]])
    first = 1 / (1 + np.exp(-one[:, 0]))
    np.testing.assert_allclose(adversary.telling_two(one, True), -np.log(first), rtol=1e-5)
    mixed = adversary.telling_two(one, jnp.asarray([True, False]))
    np.testing.assert_allclose(mixed, [-np.log(first[0]), -np.log(1 - first[1])], rtol=1e-5)


@pytest.mark.parametrize("shape", [(6,), (5, 9, 3), (3, 2)])
def test_a_discriminator_takes_features_of_any_shape_and_pools_large_maps(shape: tuple[int, ...]) -> None:
    network = adversary.discriminator(jax.random.key(0), shape, 3, hidden=(7,))
    features = jax.random.normal(jax.random.key(1), (2, *shape))
    assert adversary.judge(network, features).shape == (2, 3)
    flat = adversary.flat(features)
    assert flat.shape == (2, adversary.width(shape)) and flat.shape[1] <= 48
    layers = network["layers"]
    hidden = jax.nn.leaky_relu(flat @ layers["0"]["kernel"], 0.2)
    np.testing.assert_allclose(adversary.judge(network, features), hidden @ layers["1"]["kernel"], rtol=1e-5)
    if shape == (5, 9, 3):
        np.testing.assert_allclose(flat.reshape(2, 4, 4, 3)[:, 0, 1], features[:, 0, 2:4].mean(axis=1), rtol=1e-5)
