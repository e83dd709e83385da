"""Nodes of unequal width: each trains the first channels of every layer, as many as it can afford (HeteroFL)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2pfl import tree
from p2pfl.errors import ConfigError
from p2pfl.methods import masking
from p2pfl.methods.freezing import FROZEN
from p2pfl.methods.objectives.objective import Objective, Slices
from p2pfl.types import Algorithm, Array, Key, Learner, Metrics, Params, State, Tree


def widths(
    optimizer: optax.GradientTransformation,
    ratios: Sequence[float],
    layers: Sequence[str] | None = None,
    scaler: bool = True,
) -> Objective:
    """HeteroFL: node i holds the first ceil(ratios[i] C) of the C output channels of every hidden layer.

    The inputs of a layer are the outputs of the one before; what the last layer puts out is never cut. A node holds,
    computes and sends nothing but that slice: its model has the smaller shapes, with one compiled step for each ratio,
    and what travels between two nodes is the slice of the narrower one. An element is mixed by the exchanges of two
    nodes that both hold it, with the graph's weights: its mean over its holders is kept, and they agree on it only
    where they are joined by edges among themselves. Source: Diao, Ding, Tarokh, "HeteroFL: computation and
    communication efficient federated learning for heterogeneous clients" (2021); there a server averages each element
    over those that hold it.

    A joiner takes of its donor's model what both hold; the rest of its own stays as it was drawn. The simulator keeps
    all nodes in arrays of the whole shape, zero where a node holds nothing, and computes with the slices; files have
    models of that shape, too.

    `layers`: paths of the layers with kernels [..., in, out] in their order, the last being the output; known of the
    built-in mlp and cnn. `scaler`: outputs of hidden layers are divided by the node's ratio, the paper's Scaler, here
    in evaluation too, since a node answers with the network that it has trained. Batch normalisation would undo that:
    with it the Scaler is left out. The paper's normalisation keeps no running statistics; here they are kept, and stay
    at home with share = "silobn". Its loss without absent classes is the method `missing_classes`. What is frozen
    (training.freeze) is frozen in every slice, and the best model of a node that watches its own is of its width.

    Args:
        optimizer: of the experiment, or any of optax.
        ratios: [n] the share of the channels that each node holds, > 0 and <= 1.
        layers: paths of the layers in their order; None: those of the built-in mlp and cnn.
        scaler: divide the outputs of hidden layers by the ratio.

    Returns:
        The objective.

    Raises:
        ConfigError: a ratio is out of bounds; when a model is made, its layers do not follow one another, it is
            normalised over several channels, or an objective before this one keeps a model of its own; when applied, an
            algorithm that sends one way.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.widths(optax.sgd(0.1), ratios=[1.0, 0.5]).slices.levels
        (0, 1)
    """
    for i, ratio in enumerate(ratios):
        if not 0 < ratio <= 1:
            raise ConfigError(f"ratios[{i}]={ratio!r}: must be > 0 and <= 1, a share of each layer's channels")
    steps = tuple(sorted({1.0, *map(float, ratios)}, reverse=True))
    used = tuple(sorted({*map(float, ratios)}, reverse=True))
    one = partial(_sliced, layers=layers, scaler=scaler)

    def stretches(params: Params) -> tree.Stretches:
        return layout(_shapes(params), layers).stretches

    def held(ratio: Array, params: Params) -> Params:
        return tree.mixed(mask_of(ratio, params, layout(_shapes(params), layers)))

    def around(inner: Algorithm) -> Algorithm:
        return _in_whole_arrays(masking.masked("widths", "the node's width", _ratio, held)(inner), layers)

    return Objective(
        learner=lambda learner: _joint(learner, used, layers, scaler),
        given={"width": np.asarray(ratios, np.float32)},
        around=around,
        slices=Slices(
            levels=tuple(steps.index(float(ratio)) for ratio in ratios),
            learners=tuple(partial(one, ratio=ratio) for ratio in steps),
            stretches=stretches,
        ),
    )


# --- the learner of one width, and of all


def _sliced(learner: Learner, ratio: float, layers: Sequence[str] | None, scaler: bool) -> Learner:
    """The learner of a node of one width: its model has the shapes of the slice."""
    like = jax.eval_shape(learner.init, jax.random.key(0))
    if "private" in like:
        raise ConfigError(
            f"objective widths: an objective before it keeps a model of its own ({', '.join(like['private'])}), whose "
            "width nobody has said; name widths first in training.objective"
        )
    cuts = layout(_shapes(like), layers, like["carried"])
    small, normed = cuts.slice(like, ratio), _check_norms(like)
    hidden = {f"{layer}/{leaf}" for layer in cuts.order[:-1] for leaf in ("kernel", "bias")}

    def scaled(trained: Tree) -> Tree:
        def leaf(path: Any, leaf: Array) -> Array:
            return leaf / ratio if tree.path_name(path) in hidden else leaf

        return jax.tree_util.tree_map_with_path(leaf, trained) if scaler and not normed and ratio < 1 else trained

    def seen(params: Params) -> Params:
        return {**params, "trained": scaled(params["trained"])}

    def init(key: Key) -> Params:
        return tree.cut(learner.init(key), small, cuts.stretches)

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        gradient, others, metrics = learner.grad(seen(params), batch, key)
        return scaled(gradient), others, metrics

    return learner.viewed(lambda params, x: (seen(params), x))._replace(init=init, grad=grad)


def _joint(learner: Learner, ratios: Sequence[float], layers: Sequence[str] | None, scaler: bool) -> Learner:
    """The learner of all widths: models lie in arrays of the whole shape, and each is computed with as its slice."""
    nets = [_sliced(learner, ratio, layers, scaler) for ratio in ratios]
    small = [jax.eval_shape(net.init, jax.random.key(0)) for net in nets]
    like = jax.eval_shape(learner.init, jax.random.key(0))
    stretches = layout(_shapes(like), layers, like["carried"]).stretches

    def by_width(params: Params, does: Callable[[Learner, Params], Any]) -> Any:
        """Do something with the slice of a model that its node holds, and the learner of that width."""

        def branch(net: Learner, small: Params) -> Callable[[Params], Any]:
            def of(params: Params) -> Any:
                return does(net, {**params, **tree.cut(tree.mixed(params), small, stretches)})

            return of

        known = jnp.asarray(ratios, _ratio(params).dtype)
        level = jnp.argmin(jnp.abs(known - _ratio(params))).astype(jnp.int32)
        return jax.lax.switch(level, [branch(*pair) for pair in zip(nets, small, strict=True)], params)

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        def whole(net: Learner, params: Params) -> tuple[Tree, Params, Metrics]:
            gradient, others, metrics = net.grad(params, batch, key)
            carried = tree.padded(others["carried"], like["carried"], stretches)
            return tree.padded(gradient, like["trained"], stretches), {**others, "carried": carried}, metrics

        found: tuple[Tree, Params, Metrics] = by_width(params, whole)
        return found

    def evaluate(params: Params, batch: Tree, mask: Array) -> Metrics:
        found: Metrics = by_width(params, lambda net, params: net.evaluate(params, batch, mask))
        return found

    def predict(params: Params, x: Array) -> Array:
        found: Array = by_width(params, lambda net, params: net.predict(params, x))
        return found

    return learner._replace(grad=grad, evaluate=evaluate, predict=predict, features=None, maps=None)  # of each width


def _in_whole_arrays(inner: Algorithm, layers: Sequence[str] | None) -> Algorithm:
    """The algorithm whose models lie in arrays of the whole shape: zero where their node holds nothing."""

    def init(params: Params, slots: int) -> State:
        mask = mask_of(_ratio(params), params, layout(_shapes(params), layers))
        return inner.init(jax.tree.map(_where, mask, params), slots)

    def adopt(state: State, params: Params) -> State:
        own = inner.params(state)
        cuts = layout(_shapes(own), layers)
        both = tree.mixed(mask_of(_ratio(own), own, cuts))
        if "site" in params.get("private", {}):  # the simulator hands over all of a donor
            both = jax.tree.map(jnp.logical_and, both, tree.mixed(mask_of(_ratio(params), own, cuts)))
        given = jax.tree.map(_where, both, tree.mixed(params), tree.mixed(own))
        return inner.adopt(state, {**params, **given})

    return inner._replace(init=init, adopt=adopt)


# --- which parts of a model


class WidthLayout(NamedTuple):
    """The axes of a model's leaves that are cut."""

    order: tuple[str, ...]  # paths of the layers
    cuts: Mapping[str, tuple[int, int]]  # of each leaf: (channels of its inputs, of its outputs), 0: whole
    inputs: Mapping[str, int]  # of each kernel: the stretches of its inputs, each of so many channels

    def of(self, path: str) -> tuple[int, int]:
        """Of a leaf by its path, or by one that ends like it: of an optimizer's state, a momentum, a payload."""
        return self.cuts.get(self._known(path), (0, 0))

    def stretches(self, path: str) -> int:
        """Return into how many stretches the inputs of a kernel fall, by such a path."""
        return self.inputs.get(self._known(path), 1)

    def _known(self, path: str) -> str:
        names = path.split("/")
        ends = ("/".join(names[i:]) for i in range(len(names)))
        return next((end for end in ends if end in self.cuts), "")

    def slice(self, like: Params, ratio: float) -> Params:
        """Return the shapes of the slice of a model that a node of this width holds."""

        def leaf(path: Any, leaf: Any) -> Any:
            name, shape = tree.path_name(path), list(leaf.shape)
            before, out = self.of(name)
            if out:
                shape[-1] = channels(out, ratio)
            if before:
                shape[-2] = self.stretches(name) * channels(before, ratio)
            return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)

        return jax.tree_util.tree_map_with_path(leaf, like)


def channels(count: int, ratio: float) -> int:
    """Return how many of so many channels a node of this width holds: ceil(ratio count), but for rounding."""
    return max(1, math.ceil(ratio * count - 1e-3))


def layout(
    shapes: Mapping[str, tuple[int, ...]], layers: Sequence[str] | None, carried: Tree | None = None
) -> WidthLayout:
    """The layout of a model, from its trained leaves' shapes by path and its statistics. Raises ConfigError."""
    order = tuple(layers) if layers is not None else _order(shapes)
    cuts: dict[str, tuple[int, int]] = {}
    inputs: dict[str, int] = {}
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
        inputs[f"{layer}/kernel"] = shape[-2] // before if before else 1
        before = width
    hidden = {out for _, out in cuts.values()}
    for path, shape in shapes.items():
        if path not in cuts and len(shape) > 1:
            raise ConfigError(f"layers: does not name the layer of {path}; every kernel must be in it")
        cuts.setdefault(path, (0, shape[-1] if shape and shape[-1] in hidden else 0))
    for path, leaf in tree.named_leaves(carried or {}).items():
        cuts.setdefault(path, (0, leaf.shape[-1] if leaf.shape and leaf.shape[-1] in hidden else 0))
    return WidthLayout(order, cuts, inputs)


def mask_of(ratio: Array, params: Params, cuts: WidthLayout) -> Params:
    """Mark the elements that a node of width `ratio` [] holds: bools that broadcast to the leaves of a model."""
    hidden = {out for _, out in cuts.cuts.values()} - {0}

    def first(channels: int, size: int) -> Array:  # as `channels` counts them
        index = jnp.arange(size, dtype=jnp.int32) % channels
        return index.astype(ratio.dtype) < jnp.maximum(ratio * channels - 1e-3, 0.5)

    def leaf(path: Any, leaf: Array) -> Array:
        name = tree.path_name(path)
        before, out = cuts.of(name)
        if "carried" in name.split("/") and leaf.ndim and leaf.shape[-1] in hidden:
            out = leaf.shape[-1]
        found = jnp.ones((1,) * leaf.ndim, bool)
        if out and leaf.ndim and leaf.shape[-1] == out:
            found = found & first(out, leaf.shape[-1]).reshape(*(1,) * (leaf.ndim - 1), -1)
        if before and leaf.ndim > 1 and leaf.shape[-2] == before * cuts.stretches(name):
            found = found & first(before, leaf.shape[-2]).reshape(*(1,) * (leaf.ndim - 2), -1, 1)
        return found

    return jax.tree_util.tree_map_with_path(leaf, params)


def _ratio(params: Params) -> Array:
    ratio: Array = params["private"]["site"]["width"]
    return ratio


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    """Of all leaves of the model but its statistics, those that are not shared, or frozen, included."""
    private = params.get("private", {})
    own, still = private.get("share", {}).get("leaves", {}), private.get(FROZEN, {})
    return {
        path: tuple(leaf.shape)
        for part in (params, own, still)
        for path, leaf in tree.named_leaves(part.get("trained") or {}).items()
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


def _where(mask: Array, leaf: Array, other: Array | None = None) -> Array:
    """The leaf where the mask holds; elsewhere the other one, or zero."""
    if not jnp.issubdtype(leaf.dtype, jnp.number) and leaf.dtype != bool:
        return leaf  # a random key
    return jnp.where(jnp.broadcast_to(mask, leaf.shape), leaf, jnp.zeros((), leaf.dtype) if other is None else other)
