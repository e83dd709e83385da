"""The built-in models, against Flax's own layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from p2pfl import tree
from p2pfl.errors import ConfigError
from p2pfl.learning import flax as learner
from p2pfl.learning import models
from p2pfl.learning.targets import TARGETS
from p2pfl.types import Learner


def images(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


MORE = [(5, 9, 6, 1, 2), (1, 4, 3, 2, 5), (4, 6, 7, 1, 2), (3, 1, 1, 2, 3)]
"""Sizes, heights, widths, inputs and outputs of convolutions: odd and even ones, one that sees no neighbour."""


@pytest.mark.parametrize(
    "size, height, width, inputs, outputs",
    [(3, 7, 5, 2, 3), *(pytest.param(*more, marks=pytest.mark.more) for more in MORE)],
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


# ------------------------------------------------------------------------------- normalisation, dropout, residuals


IMAGE, CLASSES = (8, 6, 2), 3


def made(make: models.Make, shape: tuple[int, ...] = IMAGE) -> Learner:
    """Of a model whose output is one logit per class."""
    return learner.from_flax(make, jnp.zeros((1, *shape), jnp.float32), CLASSES)


@nnx.jit
def run(module: nnx.Module, x: jax.Array) -> jax.Array:
    """Compiled: several times cheaper than operation by operation."""
    return module(x)


def new(make: models.Make) -> nnx.Module:
    return nnx.jit(lambda: make(nnx.Rngs(0)))()


def leaves(make: models.Make) -> tree.Tree:
    _, trained, carried = nnx.split(make(nnx.Rngs(0)), nnx.Param, ...)
    carried = {path: leaf for path, leaf in nnx.to_flat_state(carried) if isinstance(leaf, nnx.BatchStat)}
    return {"trained": nnx.to_pure_dict(trained), "carried": nnx.to_pure_dict(nnx.from_flat_state(carried))}


def paths(make: models.Make) -> set[str]:
    """trained/KIND/..., carried/KIND/... without the indices."""
    named = tree.named_leaves(jax.eval_shape(lambda: leaves(make)))
    return {"/".join(part for part in name.split("/") if not part.isdigit()) for name in named}


LAYER = {"kernel", "bias"}
SCALE = {"scale", "bias"}


@pytest.mark.parametrize(
    "make, trained",
    [
        (models.mlp(IMAGE, CLASSES), {"layers": LAYER}),
        (models.mlp(IMAGE, CLASSES, norm="group"), {"layers": LAYER, "norms": SCALE}),
        (models.cnn(IMAGE, CLASSES), {"blocks": LAYER, "head": LAYER}),
        (models.cnn(IMAGE, CLASSES, norm="batch"), {"blocks": LAYER, "head": LAYER, "norms": SCALE}),
        (
            models.cnn(IMAGE, CLASSES, norm="batch", dropout=0.5, residual=True),
            {"blocks": LAYER, "head": LAYER, "norms": SCALE, "residuals/convs": LAYER, "residuals/norms": SCALE},
        ),
        (models.unet(IMAGE, CLASSES), {"encoder/convs": LAYER, "decoder/convs": LAYER, "head": LAYER}),
        (
            models.unet(IMAGE, CLASSES, norm="batch"),
            {
                "encoder/convs": LAYER, "decoder/convs": LAYER, "head": LAYER,
                "encoder/norms": SCALE, "decoder/norms": SCALE,
            },
        ),
    ],
)  # fmt: skip
def test_the_paths_that_nodes_share_models_by(make: models.Make, trained: dict[str, set[str]]) -> None:
    found = paths(make)
    assert {name for name in found if name.startswith("trained/")} == {
        f"trained/{at}/{leaf}" for at, names in trained.items() for leaf in names
    }
    carried = {name.removeprefix("carried/") for name in found if name.startswith("carried/")}
    norms = {at for at in trained if at.endswith("norms")}
    assert carried in (set(), {f"{at}/{leaf}" for at in norms for leaf in ("mean", "var")})


@pytest.mark.parametrize(
    "name, options",
    [
        ("mlp", {"norm": "batch"}),
        ("cnn", {"norm": "group", "dropout": 0.5, "residual": True, "channels": (4, 4)}),
    ],
)
def test_what_an_option_adds_changes_no_first_value(name: str, options: dict[str, object]) -> None:
    plainly = {key: value for key, value in options.items() if key == "channels"}
    plain, more = (tree.named_leaves(leaves(models.MODELS[name](IMAGE, CLASSES, **o))) for o in (plainly, options))
    assert set(plain) < set(more)
    assert all(np.array_equal(plain[path], more[path]) for path in plain)


@pytest.mark.parametrize(
    "make, dtype",
    [
        (models.mlp(IMAGE, CLASSES, hidden=(8,), norm="group"), "float32"),
        pytest.param(
            models.cnn(IMAGE, CLASSES, (4,), norm="batch", dropout=0.3, residual=True), "float64",
            marks=pytest.mark.more,
        ),
    ],
    ids=["mlp", "cnn"],
)  # fmt: skip
def test_a_step_of_several_nodes_at_once(make: models.Make, dtype: str) -> None:
    """Gradient of every layer, new statistics of every normalisation, and nothing changes its dtype."""
    jax.config.update("jax_enable_x64", dtype == "float64")
    it = learner.cast(made(make), dtype)
    data = {"x": images(2, 7, *IMAGE).astype(dtype), "y": np.arange(14, dtype=np.int32).reshape(2, 7) % CLASSES}

    @jax.jit
    @jax.vmap
    def step(key: jax.Array, data: tree.Tree) -> Any:
        params = it.init(key)
        return params, it.grad(params, data, key)

    # Flax asks for the greater of float64 and float32, which strict promotion refuses.
    with jax.numpy_dtype_promotion("strict" if dtype == "float32" else "standard"):
        nodes, (gradient, others, _) = step(jax.random.split(jax.random.key(0), 2), data)
    carried = others["carried"]
    assert tree.schema(gradient) == tree.schema(nodes["trained"])
    assert tree.schema(carried) == tree.schema(nodes["carried"])
    assert {leaf.dtype for leaf in jax.tree.leaves((gradient, carried))} == {np.dtype(dtype)}
    before, after = (tree.named_leaves(each) for each in (nodes["carried"], carried))
    assert all((np.asarray(before[name]) != np.asarray(after[name])).all() for name in before)
    assert all(np.asarray(leaf).any() for name, leaf in tree.named_leaves(gradient).items() if "kernel" in name)


def test_batch_normalisation_lies_before_the_relu() -> None:
    """In training each hidden unit has mean 0 and variance 1 over the batch; its statistics move by a tenth."""
    module = new(models.mlp((4,), CLASSES, hidden=(16,), norm="batch"))
    x = images(500, 4) * 3 + 1
    hidden = np.asarray(run(module.layers[0], x), np.float64)
    module.train()
    out = run(module, x)
    normal = (hidden - hidden.mean(axis=0)) / np.sqrt(hidden.var(axis=0) + 1e-5)
    expected = run(module.layers[1], jnp.asarray(np.maximum(normal, 0), jnp.float32))
    np.testing.assert_allclose(out, expected, atol=1e-4)
    np.testing.assert_allclose(module.norms[0].mean[...], 0.1 * hidden.mean(axis=0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(module.norms[0].var[...], 0.9 + 0.1 * hidden.var(axis=0), rtol=1e-3)


def test_group_normalisation_is_of_two_groups_and_one_row() -> None:
    even, odd = models._norms("group", [6, 5], nnx.Rngs(0))
    maps = np.asarray(run(even, images(5, 8, 6, 6) * 7 + 3)).reshape(5, 48, 2, 3)
    np.testing.assert_allclose(maps.mean(axis=(1, 3)), np.zeros((5, 2)), atol=1e-5)
    np.testing.assert_allclose(maps.var(axis=(1, 3)), np.ones((5, 2)), rtol=1e-3)
    assert even.num_groups == 2 and odd.num_groups == 1


def test_a_residual_that_adds_nothing_is_the_plain_network() -> None:
    x = images(5, *IMAGE)

    @jax.jit
    def outputs() -> tuple[jax.Array, ...]:
        plain, module = (models.cnn(IMAGE, CLASSES, (4,), residual=on)(nnx.Rngs(0)) for on in (False, True))
        full = module(x)
        module.residuals[0].convs[1].kernel[...] *= 0
        return plain(x), full, module(x)

    plain, full, nothing = outputs()
    assert not np.allclose(plain, full, atol=1e-3)
    np.testing.assert_allclose(plain, nothing, rtol=1e-6, atol=1e-6)


def test_dropout_is_for_training() -> None:
    x = images(5, *IMAGE)

    @jax.jit
    def outputs() -> tuple[jax.Array, ...]:
        plain, module = (models.cnn(IMAGE, CLASSES, (4,), dropout=share)(nnx.Rngs(0)) for share in (0.0, 0.5))
        module.train()
        one, two = module(x), module(x)
        module.eval()
        return plain(x), module(x), one, two

    plain, tested, one, two = outputs()
    np.testing.assert_allclose(tested, plain, rtol=1e-6, atol=1e-6)
    assert not np.allclose(one, two, atol=1e-2) and not np.allclose(one, plain, atol=1e-2)


# ------------------------------------------------------------------------------------------------------ segmentation


@pytest.mark.parametrize("height, width", [(8, 8), (7, 5), (4, 9), (13, 6)])
@pytest.mark.parametrize("channels", [(3,), (3, 4), (3, 4, 5)])
def test_a_unet_of_any_size(height: int, width: int, channels: tuple[int, ...]) -> None:
    module = nnx.eval_shape(lambda: models.unet((height, width, 2), CLASSES, channels)(nnx.Rngs(0)))
    out = nnx.eval_shape(lambda m, x: m(x), module, images(2, height, width, 2))
    assert out.shape == (2, *TARGETS["segmentation"].output((height, width, 2), CLASSES))


@pytest.mark.more
def test_an_odd_size_is_padded_and_cut() -> None:
    x = images(2, 7, 5, 2)

    @jax.jit
    def outputs() -> tuple[jax.Array, jax.Array]:
        module = models.unet((7, 5, 2), CLASSES, (3, 4))(nnx.Rngs(0))
        return module(x), module(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))))

    odd, whole = outputs()
    assert whole.shape == (2, 8, 6, CLASSES)
    np.testing.assert_allclose(odd, whole[:, :7, :5], rtol=1e-5, atol=1e-6)


def test_a_unet_sees_far_and_keeps_what_is_near() -> None:
    """Two convolutions each: pixel 16 comes from 14..18, at half the size 7..9, from 5..11, so 10..23, from 8..25."""

    @jax.jit
    def moved(share: float) -> jax.Array:
        module = models.unet((32, 2, 1), 2, (8, 8))(nnx.Rngs(0))
        module.encoder[1].convs[1].kernel[...] *= share
        return jax.grad(lambda x: module(x)[0, 16, 0, 0])(images(1, 32, 2, 1))

    reach = np.flatnonzero(np.asarray(moved(1.0))[0, :, 0, 0])
    assert reach.min() == 8 and reach.max() == 25
    reach = np.flatnonzero(np.asarray(moved(0.0))[0, :, 0, 0])  # nothing comes from below: what lies beside still does
    assert len(reach) > 3 and reach.min() >= 12 and reach.max() <= 20


def test_doubling() -> None:
    x = images(2, 3, 4, 2)
    assert np.array_equal(models.double(x), np.kron(x, np.ones((1, 2, 2, 1))))
    assert np.array_equal(models.max_pool(models.double(x)), x)


@pytest.mark.soak
def test_a_unet_learns_to_segment() -> None:
    """Bright squares on noise, with the loss and the score of segmentation."""
    rng = np.random.default_rng(0)
    y = np.zeros((24, 9, 8), np.int32)
    for i, (row, column) in enumerate(rng.integers(0, 5, (24, 2))):
        y[i, row : row + 4, column : column + 3] = 1
    x = (y + 0.4 * rng.normal(size=y.shape))[..., None].astype(np.float32)
    target, optimizer = TARGETS["segmentation"], optax.sgd(0.2, momentum=0.9)
    graph, trained = nnx.split(models.unet((9, 8, 1), 2, (4, 8))(nnx.Rngs(0)), nnx.Param)

    @jax.jit
    def learned(trained: nnx.State) -> jax.Array:
        def step(_: int, carry: Any) -> Any:
            trained, state = carry
            gradient = jax.grad(lambda t: target.loss(nnx.merge(graph, t)(x[:16]), y[:16]).mean())(trained)
            updates, state = optimizer.update(gradient, state)
            return optax.apply_updates(trained, updates), state

        trained, _ = jax.lax.fori_loop(0, 60, step, (trained, optimizer.init(trained)))
        return target.score(nnx.merge(graph, trained)(x[16:]), y[16:]).mean()

    assert float(learned(trained)) > 0.85


# ------------------------------------------------------------------------------------------------------- of the table


@pytest.mark.more
def test_the_same_seed_makes_the_same_model() -> None:
    for name, maker in models.MODELS.items():
        shape = {"cnn3d": (8, 8, 8, 1), "fusion": (2 + 64,)}.get(name, (8, 8, 1))
        deep = name in ("cnn", "cnn3d", "unet", "resnet", "cnn_gnn", "fusion")
        given = {"picture": (8, 8, 1)} if name == "fusion" else {}
        make = maker(shape, 3, **given, **({"channels": (2, 2)} if deep else {}))
        one, two, other = (jax.tree.leaves(nnx.state(make(nnx.Rngs(seed)))) for seed in (0, 0, 1))
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True)), name
        assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True)), name


@pytest.mark.parametrize(
    "name, shape, arguments, text",
    [
        ("cnn", (64,), {}, r"model cnn: needs images .* the data has shape \[64\]\. Use mlp"),
        ("cnn", (8, 3, 1), {}, "model cnn: 2 blocks halve a 8 x 3 image to nothing"),
        ("cnn", (8, 8, 1), {"channels": (4, 0)}, "channels=0: must be > 0"),
        ("mlp", (8,), {"hidden": (4, -1)}, "hidden=-1: must be > 0"),
        ("mlp", (8,), {"norm": "layer"}, "norm='layer': .*Valid: batch, group"),
        ("cnn", (8, 8, 1), {"norm": "bach"}, "norm='bach': did you mean 'batch'"),
        ("cnn", (8, 8, 1), {"dropout": 1.0}, "dropout=1.0: must be >= 0 and < 1"),
        ("unet", (64,), {}, r"model unet: needs images .* the data has shape \[64\]\. Use another model"),
        ("unet", (8, 1, 1), {}, "model unet: 2 channels halve a 8 x 1 image 1 times, to nothing; give fewer"),
        ("unet", (8, 8, 1), {"channels": ()}, r"channels=\(\): must have one entry or more"),
        ("unet", (8, 8, 1), {"channels": (4, 0)}, "channels=0: must be > 0"),
        ("unet", (8, 8, 1), {"norm": "none"}, "norm='none': "),
    ],
)
def test_what_cannot_be_is_refused(name: str, shape: tuple[int, ...], arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        models.MODELS[name](shape, 3, **arguments)


@pytest.mark.more
@pytest.mark.parametrize("maker", [models.cnn, models.unet])
def test_a_single_channel_is_not_normalized_by_batch(maker: Any, optimised: None) -> None:
    """XLA compiles a wrong gradient there: with two channels the compiled gradient is the plain one."""
    with pytest.raises(ConfigError, match="a single channel can't be normalised by batch"):
        maker((4, 4, 2), 3, channels=(1, 2), norm="batch")
    rng = np.random.default_rng(1)
    net = learner.from_flax(models.cnn((4, 4, 2), 3, channels=(2, 2), norm="batch"), jnp.zeros((1, 4, 4, 2)), 3)
    data = {
        "x": jnp.asarray(rng.normal(size=(6, 4, 4, 2)), jnp.float32),
        "y": jnp.asarray([0, 1, 2, 0, 1, 2], jnp.int32),
    }
    params = net.init(jax.random.key(0))
    compiled = jax.jit(net.grad)(params, data, jax.random.key(0))[0]
    with jax.disable_jit():
        plain = net.grad(params, data, jax.random.key(0))[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), compiled, plain)


# ------------------------------------------------------------------------------------------------------------- volumes


@pytest.mark.parametrize("size, shape", [(3, (5, 4, 6)), (2, (3, 5, 4)), (1, (2, 2, 2))])
def test_a_convolution_over_three_axes_is_that_of_flax(size: int, shape: tuple[int, int, int]) -> None:
    ours = new(lambda rngs: models.Conv(2, 3, size, axes=3, rngs=rngs))
    theirs = nnx.Conv(2, 3, (size,) * 3, padding="SAME", rngs=nnx.Rngs(1))
    theirs.kernel[...] = ours.kernel[...].reshape(size, size, size, 2, 3)
    x = images(2, *shape, 2)
    np.testing.assert_allclose(run(ours, x), run(theirs, x), atol=1e-5)


def test_pooling_and_doubling_go_along_every_axis() -> None:
    x = images(2, 4, 5, 6, 3)
    pooled = np.asarray(models.max_pool(x))
    assert pooled.shape == (2, 2, 2, 3, 3)
    np.testing.assert_array_equal(pooled[:, 1, 0, 2], np.asarray(x)[:, 2:4, 0:2, 4:6].max(axis=(1, 2, 3)))
    np.testing.assert_array_equal(models.max_pool(models.double(x)), x)


def test_the_gradient_of_pooling_is_a_choice_and_divides_by_nothing() -> None:
    """Of `jnp.max` it is divided by how many equal the maximum: none, where XLA rounds what it computes twice unlike.

    So it was with the U-Net of experiments/brain-3d, compiled without XLA's optimiser: NaN after the first step.
    """
    x = images(2, 4, 5, 3)

    def pooled(x: jax.Array) -> jax.Array:
        return (models.max_pool(x) * images(2, 2, 2, 3)).sum()

    assert "div" not in str(jax.make_jaxpr(jax.grad(pooled))(x))
    weight, ours = np.asarray(images(2, 2, 2, 3)), np.asarray(jax.jit(jax.grad(pooled))(x))
    weight = np.repeat(np.repeat(weight, 2, axis=1), 2, axis=2)
    largest = np.repeat(np.repeat(models.max_pool(x), 2, axis=1), 2, axis=2) == x[:, :, :4]
    np.testing.assert_array_equal(ours[:, :, :4], np.where(largest, weight, 0))
    assert not ours[:, :, 4].any()
    broken, equal = x.at[0, 1, 1, 1].set(jnp.nan), jnp.ones((1, 2, 2, 1))
    assert int(jnp.isnan(models.max_pool(broken)).sum()) == 1
    assert jax.grad(lambda x: models.max_pool(x).sum())(equal).reshape(-1).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("shape", [(6, 5, 4, 2), (8, 8, 8, 1)])
def test_networks_over_volumes_have_the_paths_of_those_over_images(shape: tuple[int, ...]) -> None:
    flat = (8, 8, shape[-1])
    assert paths(models.unet(shape, CLASSES, norm="batch")) == paths(models.unet(flat, CLASSES, norm="batch"))
    options: dict[str, Any] = {"channels": (4, 4), "norm": "group", "dropout": 0.5, "residual": True}
    assert paths(models.cnn3d(shape, CLASSES, **options)) == paths(models.cnn(flat, CLASSES, **options))
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    masks = jax.eval_shape(lambda x: models.unet(shape, CLASSES)(nnx.Rngs(0))(x), x)
    assert masks.shape == (2, *TARGETS["segmentation"].output(shape, CLASSES)) == (2, *shape[:-1], CLASSES)
    assert jax.eval_shape(lambda x: models.cnn3d(shape, CLASSES)(nnx.Rngs(0))(x), x).shape == (2, CLASSES)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: models.cnn((8, 8, 8, 1), 2), "needs images.*Use cnn3d"),
        (lambda: models.cnn3d((8, 8, 1), 2), "needs volumes.*Use cnn"),
        (lambda: models.cnn3d((8, 3, 8, 1), 2), "2 blocks halve a 8 x 3 x 8 volume to nothing"),
        (lambda: models.unet((8, 1, 8, 1), 2), "halve a 8 x 1 x 8 volume 1 times"),
        (lambda: models.unet((8,), 2), "needs images .* or volumes"),
    ],
)
def test_volumes_that_do_not_fit_a_network_are_refused(make: Callable[[], models.Make], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()
