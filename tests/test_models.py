"""The built-in models, against Flax's own layers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from p2pfl import models
from p2pfl.errors import ConfigError


def images(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    "size, height, width, inputs, outputs",
    [(3, 7, 5, 2, 3), (5, 9, 6, 1, 2), (1, 4, 3, 2, 5), (4, 6, 7, 1, 2), (3, 1, 1, 2, 3)],
)
def test_conv_is_flax_conv(size: int, height: int, width: int, inputs: int, outputs: int) -> None:
    ours = models.Conv(inputs, outputs, size, rngs=nnx.Rngs(1))
    flax = nnx.Conv(inputs, outputs, (size, size), rngs=nnx.Rngs(1))
    kernel, bias, x = images(size, size, inputs, outputs), images(outputs), images(3, height, width, inputs)
    ours.kernel[...], ours.bias[...] = kernel.reshape(-1, outputs), bias
    flax.kernel[...], flax.bias[...] = kernel, bias

    @nnx.jit
    def outputs_and_gradient(module: nnx.Module) -> tuple[jax.Array, nnx.State]:
        gradient = nnx.grad(lambda m: (m(x) ** 2).sum())(module)
        return module(x), gradient

    (mine, my_gradient), (theirs, gradient) = outputs_and_gradient(ours), outputs_and_gradient(flax)
    # float32 sums of size * size * inputs terms of order one, in another order
    np.testing.assert_allclose(mine, theirs, atol=1e-5)
    scale = float(jnp.abs(gradient.kernel[...]).max())
    np.testing.assert_allclose(my_gradient.kernel[...].reshape(kernel.shape), gradient.kernel[...], atol=1e-5 * scale)
    np.testing.assert_allclose(my_gradient.bias[...], gradient.bias[...], atol=1e-5 * scale)


def test_conv_starts_as_flax_conv_does() -> None:
    """lecun_normal over the same fan-in: the same variance of the weights."""
    ours = models.Conv(16, 64, rngs=nnx.Rngs(1)).kernel[...]
    assert np.isclose(float(ours.var()), 1 / (9 * 16), rtol=0.1)


@pytest.mark.parametrize("height, width", [(8, 6), (7, 5), (2, 3), (1, 4)])
def test_max_pool_is_flax_max_pool(height: int, width: int) -> None:
    x = images(2, height, width, 3)
    if height == 1:
        assert models.max_pool(x).shape == (2, 0, 2, 3)
    else:
        assert np.array_equal(models.max_pool(x), nnx.max_pool(x, (2, 2), (2, 2)))


@pytest.mark.parametrize(
    "make, shape, count",
    [
        (models.logistic((4, 3), 5), (4, 3), 12 * 5 + 5),
        (models.mlp((12,), 5, hidden=(7,)), (12,), 12 * 7 + 7 + 7 * 5 + 5),
        (models.mlp((2, 3, 2), 5, hidden=(7, 6)), (2, 3, 2), 12 * 7 + 7 + 7 * 6 + 6 + 6 * 5 + 5),
        (models.cnn((9, 7, 2), 5, channels=(3,)), (9, 7, 2), 9 * 2 * 3 + 3 + 4 * 3 * 3 * 5 + 5),
        (models.cnn((9, 7, 2), 5, channels=(3, 4)), (9, 7, 2), 9 * 2 * 3 + 3 + 9 * 3 * 4 + 4 + 2 * 1 * 4 * 5 + 5),
    ],
)
def test_shapes_and_counts(make: models.Make, shape: tuple[int, ...], count: int) -> None:
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    assert nnx.eval_shape(lambda m, x: m(x), module, images(6, *shape)).shape == (6, 5)
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module))) == count


def test_logistic_is_linear() -> None:
    module = models.logistic((4,), 3)(nnx.Rngs(0))
    x, y = images(2, 4), images(4, 2).reshape(2, 4)
    zero = module(jnp.zeros((2, 4)))
    together = module(x + y)
    np.testing.assert_allclose(together + zero, module(x) + module(y), atol=1e-5)


def test_a_hidden_layer_is_not_linear() -> None:
    module = models.mlp((4,), 3, hidden=(8,))(nnx.Rngs(0))
    x = images(5, 4)
    assert float(jnp.abs(module(x) + module(-x) - 2 * module(0 * x)).max()) > 1e-2


def test_the_same_seed_makes_the_same_model() -> None:
    for name, make in models.MODELS.items():
        one, two, other = (jax.tree.leaves(nnx.state(make((8, 8, 1), 3)(nnx.Rngs(seed)))) for seed in (0, 0, 1))
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True)), name
        assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True)), name


@pytest.mark.parametrize(
    "name, shape, arguments, text",
    [
        ("cnn", (64,), {}, r"model cnn: needs images .* the data has shape \[64\]\. Use mlp"),
        ("cnn", (8, 3, 1), {}, "model cnn: 2 blocks halve a 8 x 3 image to nothing"),
        ("cnn", (8, 8, 1), {"channels": (4, 0)}, "channels=0: must be > 0"),
        ("mlp", (8,), {"hidden": (4, -1)}, "hidden=-1: must be > 0"),
    ],
)
def test_what_cannot_be_is_refused(name: str, shape: tuple[int, ...], arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        models.MODELS[name](shape, 3, **arguments)
