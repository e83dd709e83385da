"""Nodes of unequal width: each trains the first channels of every layer, as many as it can afford (HeteroFL)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2pfl import tree
from p2pfl.errors import ConfigError
from p2pfl.methods import masking
from p2pfl.methods.objectives.objective import Objective
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree


def widths(
    optimizer: optax.GradientTransformation,
    ratios: Sequence[float],
    layers: Sequence[str] | None = None,
    scaler: bool = True,
) -> Objective:
    """HeteroFL: node i holds the first ceil(ratios[i] C) of the C output channels of every hidden layer.

    The inputs of a layer are the outputs of the one before; what the last layer puts out is never cut. A node computes
    with what it holds, as a network of that size would; everything else of its model stays as it is. An element is
    mixed by the exchanges of two nodes that both hold it (p2pfl.methods.masking.masked), with the graph's weights: its
    mean
    over its holders is kept, and they agree on it only where they are joined by edges among themselves. Neighbours
    learn the ratio. Keeps nothing; a joiner adopts the donor's model, also what the donor does not hold. Source: Diao,
    Ding, Tarokh, "HeteroFL: computation and communication efficient federated learning for heterogeneous clients"
    (2021).

    `layers`: paths of the layers with kernels [..., in, out] in their order, the last being the output; known of the
    built-in mlp and cnn. `scaler`: outputs of hidden layers are divided by the node's ratio, the paper's Scaler, here
    in evaluation too, since a node answers with the network that it has trained. Batch normalisation would undo that:
    with it the Scaler is left out. The paper's normalisation keeps no running statistics; here they are kept, and stay
    at home with share = "silobn". Its loss without absent classes is the method `missing_classes`.

    What this does not do is save anything: the masked network costs as much as the whole, and the whole model travels.
    It says what a federation of unequal networks learns. With weight decay an optimizer shrinks also what a node does
    not hold, which none but a joiner ever sees.

    Args:
        optimizer: of the experiment, or any of optax.
        ratios: [n] the share of the channels that each node holds, > 0 and <= 1.
        layers: paths of the layers in their order; None: those of the built-in mlp and cnn.
        scaler: divide the outputs of hidden layers by the ratio.

    Returns:
        The objective.

    Raises:
        ConfigError: a ratio is out of bounds; when a model is made, its layers do not follow one another or it is
            normalised over several channels; when applied, an algorithm that sends one way.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.widths(optax.sgd(0.1), ratios=[1.0, 0.5]).given["width"].tolist()
        [1.0, 0.5]
    """
    for i, ratio in enumerate(ratios):
        if not 0 < ratio <= 1:
            raise ConfigError(f"ratios[{i}]={ratio!r}: must be > 0 and <= 1, a share of each layer's channels")

    def wrap_learner(learner: Learner) -> Learner:
        like = jax.eval_shape(learner.init, jax.random.key(0))
        cuts = layout(_shapes(like), layers)
        normed = _check_norms(like)
        hidden = {f"{layer}/{leaf}" for layer in cuts.order[:-1] for leaf in ("kernel", "bias")}

        def scales(params: Params, ratio: Array) -> Tree:
            """Return the factors of the leaves of params["trained"]."""

            def leaf(path: str, leaf: Array, mask: Array) -> Array:
                by = 1 / ratio if scaler and not normed and path in hidden else jnp.ones_like(ratio)
                return jnp.where(mask, by.astype(leaf.dtype), 0)

            masks = jax.tree.leaves(mask_of(ratio, params, cuts)["trained"])
            named = tree.named_leaves(params["trained"])
            found = [leaf(path, part, mask) for (path, part), mask in zip(named.items(), masks, strict=True)]
            return jax.tree.unflatten(jax.tree.structure(params["trained"]), found)

        def narrow(params: Params) -> Params:
            ratio = _ratio(params)
            trained = jax.tree.map(_times, params["trained"], scales(params, ratio))
            carried = jax.tree.map(_where, mask_of(ratio, params, cuts)["carried"], params["carried"])
            return {**params, "trained": trained, "carried": carried}

        def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
            ratio = _ratio(params)
            gradient, others, metrics = learner.grad(narrow(params), batch, key)
            gradient = jax.tree.map(_times, gradient, scales(params, ratio))
            masks = mask_of(ratio, params, cuts)["carried"]
            carried = jax.tree.map(_where, masks, others["carried"], params["carried"])
            return gradient, {**others, "carried": carried}, metrics

        return learner.viewed(lambda params, x: (narrow(params), x))._replace(grad=grad)

    def held(ratio: Array, params: Params) -> Params:
        return mask_of(ratio, params, layout(_shapes(params), layers))

    wrap = masking.masked("widths", "the node's width", _ratio, held)
    return Objective(wrap_learner, wrap, given={"width": np.asarray(ratios, np.float32)})


class WidthLayout(NamedTuple):
    """The axes of a model's leaves that are cut."""

    order: tuple[str, ...]  # paths of the layers
    cuts: Mapping[str, tuple[int, int]]  # of each leaf of "trained": (channels of its inputs, of its outputs), 0: whole

    def of(self, path: str) -> tuple[int, int]:
        """Of a leaf of "trained", by its path."""
        return self.cuts[path]


def layout(shapes: Mapping[str, tuple[int, ...]], layers: Sequence[str] | None) -> WidthLayout:
    """The layout of a model from the shapes of its trained leaves by path. Raises ConfigError."""
    order = tuple(layers) if layers is not None else _order(shapes)
    cuts: dict[str, tuple[int, int]] = {}
    before = 0
    for i, layer in enumerate(order):
        shape = shapes.get(f"{layer}/kernel", ())
        if len(shape) < 2:
            kernels = [path.removesuffix("/kernel") for path in shapes if path.endswith("/kernel")]
            raise ConfigError(f"layers: {layer!r} has no kernel; those that have: {', '.join(kernels) or 'none'}")
        if before and shape[-2] % before:
            raise ConfigError(
                f"layers: {layer} takes {shape[-2]} inputs, no multiple of the {before} channels of the layer before, "
                f"{order[i - 1]}; widths are for layers that follow one another. Give layers in their order"
            )
        width = 0 if i == len(order) - 1 else shape[-1]
        cuts[f"{layer}/kernel"], cuts[f"{layer}/bias"] = (before, width), (0, width)
        before = width
    hidden = {out for _, out in cuts.values()}
    for path, shape in shapes.items():
        if path not in cuts and len(shape) > 1:
            raise ConfigError(f"layers: does not name the layer of {path}; every kernel must be in it")
        cuts.setdefault(path, (0, shape[-1] if shape and shape[-1] in hidden else 0))
    return WidthLayout(order, cuts)


def mask_of(ratio: Array, params: Params, cuts: WidthLayout) -> Params:
    """Mark the elements that a node of width `ratio` [] holds: bools that broadcast to the leaves of a model."""

    def first(channels: int, size: int) -> Array:  # ceil(ratio * channels), but for rounding
        index = jnp.arange(size, dtype=jnp.int32) % channels
        return index.astype(ratio.dtype) < ratio * channels - 1e-3

    def leaf(shape: tuple[int, ...], cut: tuple[int, int]) -> Array:
        found = jnp.ones((1,) * len(shape), bool)
        if cut[1]:
            found = found & first(cut[1], shape[-1]).reshape(*(1,) * (len(shape) - 1), -1)
        if cut[0]:
            found = found & first(cut[0], shape[-2]).reshape(*(1,) * (len(shape) - 2), -1, 1)
        return found

    widths = {out for _, out in cuts.cuts.values()} - {0}
    trained = [leaf(part.shape, cuts.of(path)) for path, part in tree.named_leaves(params["trained"]).items()]
    carried = [
        leaf(part.shape, (0, part.shape[-1] if part.shape and part.shape[-1] in widths else 0))
        for part in jax.tree.leaves(params["carried"])
    ]
    return {
        "trained": jax.tree.unflatten(jax.tree.structure(params["trained"]), trained),
        "carried": jax.tree.unflatten(jax.tree.structure(params["carried"]), carried),
    }


def _ratio(params: Params) -> Array:
    ratio: Array = params["private"]["site"]["width"]
    return ratio


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    """Of all trained leaves, those that are not shared included."""
    own = params.get("private", {}).get("share", {}).get("leaves", {}).get("trained") or {}
    return {
        path: tuple(leaf.shape) for part in (params["trained"], own) for path, leaf in tree.named_leaves(part).items()
    }


def _order(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """The layers of the built-in mlp and cnn, in their order."""
    names = [path.removesuffix("/kernel") for path in shapes if path.endswith("/kernel")]
    tops = {name.split("/")[0] for name in names}

    def number(name: str) -> tuple[int, ...]:
        top, *rest = name.split("/")
        return int(rest[0]), top == "residuals", *(int(each) for each in rest[1:] if each.isdigit())

    if tops == {"layers"}:
        return tuple(sorted(names, key=number))
    if "head" in names and "blocks" in tops <= {"blocks", "residuals", "head"}:
        return (*sorted((name for name in names if name != "head"), key=number), "head")
    raise ConfigError(
        f"layers: missing; the model is none of which the order of layers is known. Give the paths of its layers in "
        f"their order, of: {', '.join(names) or 'none'}"
    )


def _check_norms(params: Params) -> bool:
    """Return whether there are batch normalisations; raises ConfigError for normalisations that have no statistics."""
    statistics = {path.removesuffix("/mean") for path in tree.named_leaves(params["carried"])}
    for path in tree.named_leaves(params["trained"]):
        home = path.removesuffix("/scale")
        if home != path and not {home, f"batch_stats/{home}"} & statistics:
            raise ConfigError(
                f"{home}: normalises over several channels, those that a node does not hold included; give the model "
                "norm = 'batch', or none"
            )
    return bool(statistics)


def _times(leaf: Array, by: Array) -> Array:
    """leaf * by, and zero where that is zero."""
    wide = jnp.broadcast_to(by, leaf.shape)
    return jnp.where(wide != 0, leaf * wide, 0)


def _where(mask: Array, leaf: Array, other: Array | None = None) -> Array:
    """The leaf where the mask holds; elsewhere the other one, or zero."""
    return jnp.where(jnp.broadcast_to(mask, leaf.shape), leaf, 0 if other is None else other)
