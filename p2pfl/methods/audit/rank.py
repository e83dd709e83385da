"""Rank analysis: how much of a row follows from a step's gradient by linear equations alone, layer by layer.

From the last layer back, the input x of a layer z = f(x) is solved for by what is known of it: the gradient of its
parameters is linear in x, with dL/dz for coefficients ("gradient constraints"), and z itself is, as far as the layers
behind tell of it ("weight constraints"). Where equations are fewer than numbers of x, no closed form recovers it.

Source: Zhu, Blaschko, "R-GAP: Recursive gradient attack on privacy" (2021), the rank analysis. Theirs is for
convolutions with invertible activations; here, where ReLU or pooling lets nothing of a z through, there is no equation
for it, and dense layers count as layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import isqrt, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from p2pfl.learning.models import max_pool, shifted
from p2pfl.types import Array, Params, Tree

LARGEST = 1600
"""Numbers of a layer's input beyond which its equations are not counted: that takes minutes."""


class LayerRank(NamedTuple):
    """The equations for the input of a layer."""

    layer: str
    unknown: int
    rank: int | None  # independent equations; None: not counted


class RankIndex(NamedTuple):
    """The rank analysis of a model at one row."""

    layers: tuple[LayerRank, ...]
    total: float | None  # sum_i (d - i + 1) / d (rank_i - unknown_i) over the d layers; None: one was not counted


class _Layer(NamedTuple):
    """A layer of a chain."""

    name: str
    params: Tree
    apply: Callable[[Tree, Array], Array]  # (parameters, input without batch axis) -> z
    through: Callable[[Array], Array]  # z -> the input of the next one


def rank_index(params: Params, x: np.ndarray, y: int) -> RankIndex | None:
    """Return the rank analysis of a multilayer perceptron or a convolutional network of this package.

    Args:
        params: the model, with its parameters by the paths of `p2pfl.learning.models.MLP` or `CNN`.
        x: one row; what follows depends on it through what ReLU and pooling let through.
        y: its label.

    Returns:
        For each layer its unknowns and its independent equations; None for models that are no such chain (with
        normalisation, residual blocks, or of another kind).

    Example:
        >>> import jax, numpy as np
        >>> from p2pfl.learning import from_flax, models
        >>> x = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4, 1)
        >>> learner = from_flax(models.mlp((4, 4, 1), 3, (8,)), x[None], 3)
        >>> rank_index(learner.init(jax.random.key(0)), x, 1).layers[0]
        LayerRank(layer='layers/0', unknown=16, rank=16)
    """
    chain = _chain(params["trained"], x.shape)
    if chain is None:
        return None
    found, at = [], jnp.asarray(x)
    for place, layer in enumerate(chain):
        found.append(_of_layer(chain, place, at, y))
        at = layer.through(layer.apply(layer.params, at))
    deep = len(found)
    total = None
    if all(each.rank is not None for each in found):
        total = sum((deep - i) / deep * ((each.rank or 0) - each.unknown) for i, each in enumerate(found))
    return RankIndex(tuple(found), total)


def _of_layer(chain: list[_Layer], place: int, at: Array, y: int) -> LayerRank:
    layer, unknown = chain[place], int(prod(at.shape))
    if unknown > LARGEST:
        return LayerRank(layer.name, unknown, None)

    def behind(z: Array) -> Array:
        for each, next in itertools.pairwise(chain[place:]):
            z = next.apply(next.params, each.through(z))
        return optax.softmax_cross_entropy_with_integer_labels(z, jnp.asarray(y, jnp.int32))

    @jax.jit
    def linear(at: Array) -> tuple[Array, Array, Array]:
        """Both kinds of equations, and which numbers of z reach the next layer."""
        z = layer.apply(layer.params, at)
        back = jax.grad(behind)(z)

        def gradient(x: Array) -> Array:
            _, pull = jax.vjp(lambda p: layer.apply(p, x), layer.params)
            return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(pull(back)[0])])

        passed = jax.grad(lambda z: layer.through(z).sum())(z).ravel() != 0
        return jax.jacrev(gradient)(at), jax.jacrev(lambda x: layer.apply(layer.params, x).ravel())(at), passed

    of_gradient, of_weights, passed = map(np.asarray, linear(at))
    equations = [of_gradient.reshape(-1, unknown), of_weights.reshape(-1, unknown)[passed]]
    scaled = [each / max(float(np.abs(each).max(initial=0)), 1e-30) for each in equations if len(each)]
    gram = sum(each.astype(np.float64).T @ each.astype(np.float64) for each in scaled)
    size = np.linalg.eigvalsh(gram)
    return LayerRank(layer.name, unknown, int((size > 1e-9 * max(size.max(), 1e-30)).sum()))


def _chain(trained: Tree, shape: tuple[int, ...]) -> list[_Layer] | None:
    """The layers of an MLP or a CNN by its parameters; None for others."""
    names = set(trained)
    if names == {"layers"}:
        layers = [(f"layers/{i}", trained["layers"][i]) for i in sorted(trained["layers"])]
        return [
            _Layer(name, part, _dense, nnx.relu if i < len(layers) - 1 else _as_it_is)
            for i, (name, part) in enumerate(layers)
        ]
    if names != {"blocks", "head"} or len(shape) != 3:
        return None
    blocks = [
        _Layer(f"blocks/{i}", trained["blocks"][i], _convolved, _pooled) for i in sorted(trained["blocks"])
    ]  # fmt: skip
    return [*blocks, _Layer("head", trained["head"], _dense, _as_it_is)]


def _dense(p: Any, x: Array) -> Array:
    return x.ravel() @ p["kernel"] + p["bias"]


def _convolved(p: Any, x: Array) -> Array:
    size = isqrt(p["kernel"].shape[0] // x.shape[-1])
    y = jnp.concatenate(shifted(x, size), axis=-1) @ p["kernel"]
    return y + p["bias"][None, None]


def _pooled(z: Array) -> Array:
    return max_pool(nnx.relu(z)[None])[0]


def _as_it_is(z: Array) -> Array:
    return z
