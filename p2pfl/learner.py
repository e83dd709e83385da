"""From a Flax module, a loss and its data's shape to a `Learner`; and the local steps that algorithms share.

NNX is what examples use; a Linen module works as well. Variables with gradients form params["trained"]; all other
float variables (batch statistics) form params["carried"]: they travel and are mixed like the weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from p2pfl.check import one_of
from p2pfl.errors import ConfigError, nearest
from p2pfl.targets import TARGETS
from p2pfl.types import Array, Batches, Key, Learner, Metrics, Params, Steps, Tree


def from_flax(model: Any, example: Array, classes: int, kind: str = "classes") -> Learner:
    """A learner from a Flax model.

    `model`: a Linen module, or a function `(nnx.Rngs) -> nnx.Module` (an NNX class with its arguments bound).
    `example`: [1, ...] one input, for its shape and dtype. `kind`: what is predicted, a name of p2pfl.targets.TARGETS.
    Batches are {"x": [B, ...], "y": [B, ...]}, y as the kind has it ([B] int32 for classes).
    Raises ConfigError when the model is of another kind or its output has another shape ([B, classes] for classes).
    """
    one_of(TARGETS, kind=kind)
    target = TARGETS[kind]
    if isinstance(model, linen.Module):
        init, apply = _linen(model, example)
    elif callable(model) and not isinstance(model, nnx.Module):
        init, apply = _nnx(model)
    else:
        raise ConfigError(f"model: is an instance of {type(model).__name__}; {_RULE}")
    unroll = _check_output(init, apply, example, target.output(example.shape[1:], classes))

    def objective(trained: Tree, carried: Tree, batch: Tree, key: Key) -> tuple[Array, Tree]:
        outputs, carried = apply({"trained": trained, "carried": carried}, batch["x"], key)
        losses = target.loss(_seen(outputs, batch), batch["y"])
        if "weight" in batch:
            losses = losses * batch["weight"].astype(losses.dtype)
        return losses.mean(), carried

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        step = jax.value_and_grad(objective, has_aux=True)
        (value, carried), gradient = step(params["trained"], params["carried"], batch, key)
        return gradient, {**rest(params), "carried": carried}, {"loss": value}

    def evaluate(params: Params, batch: Tree, mask: Array) -> Metrics:
        outputs = _seen(predict(params, batch["x"]), batch)
        score = target.score(outputs, batch["y"], mask).astype(jnp.float32)
        return {"correct": score, "loss": target.loss(outputs, batch["y"], mask)}

    def predict(params: Params, x: Array) -> Array:
        return apply(params, x, None)[0]

    return Learner(init, grad, evaluate, unroll, predict=predict)


ABSENT = -1e9
"""The output of a class that is not to be seen: its probability is 0."""


def _seen(outputs: Array, batch: Tree) -> Array:
    """Outputs [B, ..., C] of which a batch with "classes" [C] bool sees only these."""
    if "classes" not in batch:
        return outputs
    return jnp.where(jnp.broadcast_to(batch["classes"], outputs.shape), outputs, jnp.asarray(ABSENT, outputs.dtype))


def rest(params: Params) -> Params:
    """All parts of a model but the one with gradients."""
    return {part: tree for part, tree in params.items() if part != "trained"}


def placed(params: Params, site: Tree) -> Params:
    """A first model, given to a node: with what the node knows of its own data, where that is asked for."""
    return {**params, "private": {**params.get("private", {}), "site": site}} if site else params


def steps_in(batches: Batches) -> int:
    """S, of batches of S local steps."""
    return int(jax.tree.leaves(batches)[0].shape[0])


_RULE = "must be a Linen module, or a function (nnx.Rngs) -> nnx.Module such as `lambda rngs: Net(rngs=rngs)`"

Init = Callable[[Key], Params]
Apply = Callable[[Params, Array, Key | None], tuple[Array, Tree]]
"""(model, inputs, key) -> (logits, new carried); key None means evaluation."""


def _nnx(make: Callable[[nnx.Rngs], Any]) -> tuple[Init, Apply]:
    def build(key: Key) -> Any:
        return make(nnx.Rngs(key))

    try:
        abstract = nnx.eval_shape(build, jax.random.key(0))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model: calling it with nnx.Rngs failed: {error}; {_RULE}") from error
    if not isinstance(abstract, nnx.Module):
        raise ConfigError(f"model: the function returned no nnx.Module; {_RULE}")
    graph, (trained_like, rng_like, carried_like) = _parts(abstract)

    def init(key: Key) -> Params:
        _, (trained, _, carried) = _parts(build(key))
        return {"trained": nnx.to_pure_dict(trained), "carried": nnx.to_pure_dict(carried)}

    def apply(params: Params, x: Array, key: Key | None) -> tuple[Array, Tree]:
        trained = _filled(trained_like, params["trained"])
        carried = _filled(carried_like, params["carried"])
        module = nnx.merge(graph, trained, _random(rng_like, key), carried)
        module.eval() if key is None else module.train()
        logits = module(x)
        _, (_, _, carried) = _parts(module)
        return logits, nnx.to_pure_dict(carried)

    return init, apply


def _parts(module: Any) -> tuple[Any, list[Any]]:
    """The module's graph, and its states: with gradients, random, all others."""
    graph, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
    return graph, states


def _filled(like: Any, values: Tree) -> Any:
    """An NNX state of the structure of `like` that holds `values`."""
    state = jax.tree.map(lambda leaf: leaf, like)
    nnx.replace_by_pure_dict(state, values)
    return state


def _random(like: Any, key: Key | None) -> Any:
    """An NNX random state drawn from `key`, so that dropout depends on (node, round, step) and nothing else."""
    leaves, structure = jax.tree.flatten(like)
    key = jax.random.key(0) if key is None else key
    fresh = [
        jax.random.fold_in(key, i)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.zeros(leaf.shape, leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, fresh)


def _linen(module: linen.Module, example: Array) -> tuple[Init, Apply]:
    accepted = inspect.signature(type(module).__call__).parameters

    def mode(training: bool) -> dict[str, Any]:
        known = {"train": training, "training": training, "deterministic": not training}
        return {name: value for name, value in known.items() if name in accepted}

    def init(key: Key) -> Params:
        rngs = {"params": key, "dropout": jax.random.fold_in(key, 1)}
        variables = dict(module.init(rngs, example, **mode(False)))
        return {"trained": variables.pop("params", {}), "carried": variables}

    def apply(params: Params, x: Array, key: Key | None) -> tuple[Array, Tree]:
        variables = {"params": params["trained"], **params["carried"]}
        if key is None:
            logits: Any = module.apply(variables, x, **mode(False))
            return logits, params["carried"]
        carried = list(params["carried"])
        logits, new = module.apply(variables, x, **mode(True), rngs={"dropout": key}, mutable=carried)
        return logits, dict(new)

    return init, apply


def _check_output(init: Init, apply: Apply, example: Array, wanted: tuple[int, ...]) -> bool:
    """Raises ConfigError on a wrong output; returns whether local steps should be written out (see Learner.unroll)."""

    def forward(key: Key, x: Array) -> Any:
        return apply(init(key), x, None)[0]

    try:
        traced = jax.make_jaxpr(forward)(jax.random.key(0), example)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model: does not take inputs of shape {example.shape[1:]}: {error}") from error
    if len(traced.out_avals) != 1:
        raise ConfigError(f"model: {len(traced.out_avals)} arrays as output; must be one, {[*wanted]} for each row")
    got = traced.out_avals[0].shape
    if got != (example.shape[0], *wanted):
        raise ConfigError(
            f"model: output of shape {got[1:]} for inputs of shape {example.shape[1:]}; "
            f"must be {wanted}, one number per class (label, target) of the data"
        )
    return jax.default_backend() == "cpu" and "conv_general_dilated" in str(traced)


def optimizer(name: str, **arguments: Any) -> optax.GradientTransformation:
    """Any optax optimizer by name that steps on gradients alone. Raises ConfigError for another name or argument."""
    makers = {
        key: value
        for key, value in vars(optax).items()
        if callable(value) and not key.startswith("_") and not inspect.isclass(value) and _takes_learning_rate(value)
    }
    if name not in makers:
        raise ConfigError(f"optimizer name={name!r}: {nearest(name, makers)}")
    accepted = inspect.signature(makers[name]).parameters
    for argument in arguments:
        if argument not in accepted:
            raise ConfigError(f"optimizer {name}: argument {argument!r}: {nearest(argument, accepted)}")
    like = {"kernel": jax.ShapeDtypeStruct((2, 2), np.float32)}
    try:
        made = makers[name](**arguments)
        # A dry step: some arguments fail only here, and L-BFGS asks for more than gradients.
        jax.eval_shape(made.update, like, jax.eval_shape(made.init, like), like)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ConfigError(f"optimizer {name}({given}): {error}") from error
    return made


def _takes_learning_rate(function: Callable[..., Any]) -> bool:
    try:
        return next(iter(inspect.signature(function).parameters), "") == "learning_rate"
    except (TypeError, ValueError):  # builtins without a signature
        return False


def cast(learner: Learner, dtype: str) -> Learner:
    """The learner with a model of `dtype`, "float32" or "float64"; the data must be of the same."""

    def init(key: Key) -> Params:
        def leaf(leaf: Array) -> Array:  # counters stay what they are
            return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        return jax.tree.map(leaf, learner.init(key))

    return learner._replace(init=init)


class Descent(NamedTuple):
    """What the local steps of a round did."""

    params: Params
    opt_state: Tree
    metrics: Metrics
    direction: Tree  # mean over the steps taken of what was given to the optimizer; () unless asked for


def descend(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: Tree,
    batches: Batches,
    key: Key,
    steps: Steps | None = None,
    direct: Callable[[Tree], Tree] | None = None,
    directions: bool = False,
) -> Descent:
    """S local steps of the optimizer on the node's own batches; the mean loss over the steps taken.

    With `steps`, batches from index `steps` on leave everything as it is. `direct` makes of each gradient what the
    optimizer gets (a correction, a momentum); with `directions`, its mean comes back. The optimizer's state comes back
    and is kept from round to round. A learner's `penalty` is added to each gradient, taken from the round's first
    model.
    """
    count = steps_in(batches)
    start, total = params["trained"], None
    if directions:
        total = jax.tree.map(jnp.zeros_like, start)

    def step(carry: tuple[Params, Tree, Tree], item: tuple[Array, Tree]) -> tuple[tuple[Params, Tree, Tree], Array]:
        index, batch = item
        params, opt_state, total = carry
        gradient, others, metrics = learner.grad(params, batch, jax.random.fold_in(key, index))
        if learner.penalty is not None:
            gradient = jax.tree.map(jnp.add, gradient, learner.penalty(params["trained"], start))
        if direct is not None:
            gradient = direct(gradient)
        updates, new_state = optimizer.update(gradient, opt_state, params["trained"])
        trained = optax.apply_updates(params["trained"], updates)
        if directions:
            total = jax.tree.map(jnp.add, total, gradient)
        new = ({**others, "trained": trained}, new_state, total)
        if steps is not None:
            new = jax.tree.map(lambda a, b: jnp.where(index < steps, a, b), new, carry)
        return new, metrics["loss"]

    items = (jnp.arange(count, dtype=jnp.int32), batches)
    carry, losses = jax.lax.scan(step, (params, opt_state, total), items, unroll=max(count, 1) if learner.unroll else 1)
    if steps is None:
        taken = jnp.asarray(max(count, 1), losses.dtype)
    else:
        losses = jnp.where(jnp.arange(count, dtype=jnp.int32) < steps, losses, 0)
        taken = jnp.maximum(steps, 1).astype(losses.dtype)
    params, opt_state, total = carry
    direction = jax.tree.map(lambda leaf: leaf / taken.astype(leaf.dtype), total) if directions else ()
    return Descent(params, opt_state, {"loss": losses.sum() / taken}, direction)


def learning_rate(optimizer: optax.GradientTransformation, opt_state: Tree, trained: Tree) -> Array:
    """[] the learning rate of the next step of an optimizer for which `is_plain` holds, schedules included."""
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, trained), opt_state, trained)
    return -jax.tree.leaves(updates)[0].reshape(-1)[0]


def is_plain(optimizer: optax.GradientTransformation) -> bool:
    """Whether the optimizer is plain SGD: every update is -rate * gradient, with no memory of earlier gradients."""
    with jax.ensure_compile_time_eval():  # also where an algorithm is made inside a function that is being traced
        x = {"x": jnp.asarray([0.5, -2.0], jnp.float32)}
        given = {"x": jnp.asarray([3.0, -1.0], jnp.float32)}
        try:
            ones, _ = optimizer.update(jax.tree.map(jnp.ones_like, x), optimizer.init(x), x)
            first, state = optimizer.update(given, optimizer.init(x), x)
            rest, _ = optimizer.update(jax.tree.map(jnp.zeros_like, x), state, x)
        except TypeError:  # strict promotion refuses optimizers of the Adam family, which are not plain
            return False
        rate = float(ones["x"][0])
        same = np.allclose(np.asarray(first["x"]), rate * np.asarray(given["x"]), rtol=1e-5)
    return rate < 0 and same and not np.asarray(rest["x"]).any()
