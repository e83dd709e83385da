"""The built-in residual network, against the same network written with Flax's own layers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from p2pfl import tree
from p2pfl.errors import ConfigError
from p2pfl.learning import models


def images(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def conv(inputs: int, outputs: int, size: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    pad = ((size // 2, size // 2),) * 2
    return nnx.Conv(inputs, outputs, (size, size), strides=stride, padding=pad, use_bias=False, rngs=rngs)


def normal(norm: str, width: int, rngs: nnx.Rngs) -> nnx.Module:
    if norm == "batch":
        return nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
    return nnx.GroupNorm(width, num_groups=2, rngs=rngs)


class Plain(nnx.Module):
    """ResNet as He et al. have it, layer by layer, in the order in which the built-in one is made."""

    def __init__(self, channels: list[int], blocks: list[int], norm: str, large: bool, rngs: nnx.Rngs) -> None:
        self.large = large
        self.stem = nnx.List(
            [conv(3, channels[0], *((7, 2) if large else (3, 1)), rngs), normal(norm, channels[0], rngs)]
        )
        self.blocks = nnx.List([])
        before = channels[0]
        for stage, width in enumerate(channels):
            for index in range(blocks[stage]):
                stride = 2 if stage and not index else 1
                parts = [conv(before, width, 3, stride, rngs), conv(width, width, 3, 1, rngs)]
                parts += [normal(norm, width, rngs) for _ in range(2)]
                if stride > 1 or before != width:
                    parts += [conv(before, width, 1, stride, rngs), normal(norm, width, rngs)]
                self.blocks.append(nnx.List(parts))
                before = width
        self.head = nnx.Linear(channels[-1], 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.stem[1](self.stem[0](x)))
        if self.large:
            x = nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for parts in self.blocks:
            y = nnx.relu(parts[2](parts[0](x)))
            y = parts[3](parts[1](y))
            x = nnx.relu(y + (parts[5](parts[4](x)) if len(parts) > 4 else x))
        return self.head(x.mean(axis=(1, 2)))


def ours(module: Any) -> list[Any]:
    """The layers of the built-in one, in the order of `theirs`."""
    blocks = [block for stage in module.encoder.stages for block in stage]
    parts = [[*block.convs, *block.norms, *([block.shortcut.conv, block.shortcut.norm] if block.shortcut else [])]
             for block in blocks]  # fmt: skip
    return [module.encoder.stem.conv, module.encoder.stem.norm, *(part for each in parts for part in each), module.head]


def theirs(module: Plain) -> list[Any]:
    return [*module.stem, *(part for parts in module.blocks for part in parts), module.head]


def count(module: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


@pytest.mark.more
@pytest.mark.parametrize(
    "channels, blocks, norm, stem, side",
    [
        ([4, 6], [2, 1], "batch", "small", 9),
        ([4, 8], [1, 1], "group", "large", 9),
    ],
)
def test_a_resnet_is_the_same_network_of_flax_layers(
    channels: list[int], blocks: list[int], norm: str, stem: str, side: int
) -> None:
    """Equal outputs, in evaluation and in training, and equal gradients of the input."""
    mine = nnx.jit(lambda: models.resnet((side, side, 3), 5, channels, blocks, norm, stem)(nnx.Rngs(0)))()
    plain = nnx.jit(lambda: Plain(channels, blocks, norm, stem == "large", nnx.Rngs(1)))()
    assert count(mine) == count(plain)
    rng = np.random.default_rng(1)
    for a, b in zip(ours(mine), theirs(plain), strict=True):
        for name, leaf in nnx.to_pure_dict(nnx.state(b, (nnx.Param, nnx.BatchStat))).items():
            values = rng.normal(size=leaf.shape)
            value = jnp.asarray(np.abs(values) + 0.1 if name == "var" else values, jnp.float32)
            getattr(b, name)[...] = value
            getattr(a, name)[...] = value.reshape(getattr(a, name)[...].shape)
    x = images(2, side, side, 3)

    def changed(x: jax.Array, module: nnx.Module) -> jax.Array:
        return (module(x) ** 2).mean()

    in_use = [
        nnx.jit(lambda module, x: (module(x), jax.grad(changed)(x, module))),
        nnx.jit(lambda module, x: (module(x),)),
    ]
    for mode, run in zip((nnx.Module.eval, nnx.Module.train), in_use, strict=True):
        mode(mine), mode(plain)
        for a, b in zip(run(mine, x), run(plain, x), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


@pytest.mark.more
def test_resnet_18_has_the_parameters_of_resnet_18() -> None:
    """11,689,512 with the large stem and 1000 classes, as torchvision counts them."""
    make = models.resnet((224, 224, 3), 1000, [64, 128, 256, 512], norm="batch", stem="large")
    assert count(nnx.eval_shape(lambda: make(nnx.Rngs(0)))) == 11_689_512


def test_its_parts_and_its_features() -> None:
    module = nnx.eval_shape(lambda: models.resnet((8, 8, 1), 3, [4, 6], [1, 1])(nnx.Rngs(0)))
    names = tree.named_leaves(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    assert {name.split("/")[0] for name in names} == {"encoder", "head"}
    assert {"encoder/stem/conv/kernel", "encoder/stages/1/0/shortcut/norm/scale"} <= {*names}
    assert nnx.eval_shape(lambda m, x: m.features(x), module, images(2, 8, 8, 1)).shape == (2, 6)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"channels": [4, 4], "blocks": [2]}, "2 channels and 1 blocks"),
        ({"channels": []}, "0 channels"),
        ({"norm": "layer"}, "norm='layer'"),
        ({"stem": "huge"}, "stem='huge'"),
        ({"channels": [4], "blocks": [0]}, "blocks=0"),
    ],
)
def test_a_resnet_that_can_not_be(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        models.resnet((8, 8, 1), 3, **options)
    with pytest.raises(ConfigError, match="needs images"):
        models.resnet((8,), 3)
