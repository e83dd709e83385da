"""From a Flax module, a loss and its data's shape to a `Learner`.

NNX is what examples use; a Linen module works as well. Variables with gradients form params["trained"]; all other
float variables (batch statistics) form params["carried"]: they travel and are mixed like the weights.
"""

from __future__ import annotations

import contextlib
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
from flax import nnx
from flax.errors import ScopeParamShapeError

from p2pfl import tree
from p2pfl.check import one_of
from p2pfl.errors import USER_FAULTS, ConfigError
from p2pfl.learning import losses
from p2pfl.learning.local_steps import rest
from p2pfl.learning.targets import ABSENT, TARGETS
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree


def from_flax(
    model: Any,
    example: Array,
    classes: int,
    kind: str = "classes",
    loss: Callable[..., Array] | None = None,
    compute: str | None = None,
    still: Callable[[str], bool] | None = None,
) -> Learner:
    """Make a learner from a Flax model.

    Args:
        model: a Linen module, or a function (nnx.Rngs) -> nnx.Module: an NNX class with its arguments bound.
        example: [1, ...] one input, for its shape and dtype.
        classes: numbers that the model puts out for a row: classes, labels or targets.
        kind: what is predicted, a name of p2pfl.learning.TARGETS.
        loss: what is made small, (outputs [B, ...], y [B, ...]) -> [B]; with a parameter `mask` it is given that too,
            [B], 0 for rows that are to have no part in it. None: that of the kind.
        compute: "bfloat16": local steps compute outputs and their derivatives so, from parameters as they are. Loss,
            gradients of parameters, batch statistics and all evaluation are in the precision of the model.
        still: (path of a batch statistic, without `batch_stats`) -> whether a batch normalisation that keeps it works
            in training as in evaluation: by that statistic, which it then leaves as it is.

    A method `features(x)` of the model, which gives what its last part takes in, becomes `Learner.features`; `maps(x)`,
    the maps of its last convolution, and `from_maps(maps)`, what it puts out for them, become `Learner.maps`.

    Returns:
        The learner; batches are {"x": [B, ...], "y": [B, ...]}, y as the kind has it ([B] int32 for classes).

    Raises:
        ConfigError: another kind, the model is of another kind, it fails, its output has another shape ([B, classes]
            for classes), or a leaf is of a dtype that can't be trained or mixed: parameters are real floats, all other
            variables real floats or whole numbers.

    Example:
        >>> import jax, numpy as np, p2pfl
        >>> from flax import nnx
        >>> learner = p2pfl.from_flax(lambda rngs: nnx.Linear(4, 2, rngs=rngs), np.zeros((1, 4), np.float32), classes=2)
        >>> jax.eval_shape(learner.init, jax.random.key(0))["trained"]["kernel"].shape
        (4, 2)
    """
    one_of(TARGETS, kind=kind)
    target = TARGETS[kind]
    fits = target.loss if loss is None else losses.with_mask(loss)
    if isinstance(model, linen.Module):
        init, apply, method = _linen(model, example, still)
    elif callable(model) and not isinstance(model, nnx.Module):
        init, apply, method = _nnx(model, still)
    else:
        raise ConfigError(f"model: is an instance of {type(model).__name__}; {_RULE}")
    unroll = _check(init, apply, example, target.output(example.shape[1:], classes))
    trains = apply if compute is None else _narrowed(apply, compute)

    def objective(trained: Tree, carried: Tree, batch: Tree, key: Key) -> tuple[Array, Tree]:
        outputs, carried = trains({"trained": trained, "carried": carried}, batch["x"], key)
        each = fits(_seen(outputs, batch), batch["y"])
        if "weight" in batch:
            each = each * batch["weight"].astype(each.dtype)
        return each.mean(), carried

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        step = jax.value_and_grad(objective, has_aux=True)
        (value, carried), gradient = step(params["trained"], params["carried"], batch, key)
        return gradient, {**rest(params), "carried": carried}, {"loss": value}

    def evaluate(params: Params, batch: Tree, mask: Array) -> Metrics:
        outputs = _seen(predict(params, batch["x"]), batch)
        score = target.score(outputs, batch["y"], mask).astype(jnp.float32)
        return {"score": score, "loss": fits(outputs, batch["y"], mask)}

    def predict(params: Params, x: Array) -> Array:
        return apply(params, x, None)[0]

    features, maps, rest_of = (method(name) for name in ("features", "maps", "from_maps"))
    features = features if compute is None or features is None else _narrowed(features, compute)

    def shown(params: Params, x: Array) -> tuple[Array, Callable[[Array], Array]]:
        assert maps is not None and rest_of is not None
        of_maps = rest_of
        return maps(params, x, None)[0], lambda found: of_maps(params, found, None)[0]

    shows = shown if maps and rest_of else None
    return Learner(init, grad, evaluate, unroll, predict=predict, features=features, maps=shows)


def _seen(outputs: Array, batch: Tree) -> Array:
    """Outputs [B, ..., C] of which a batch with "classes" [C] bool sees only these."""
    if "classes" not in batch:
        return outputs
    return jnp.where(jnp.broadcast_to(batch["classes"], outputs.shape), outputs, jnp.asarray(ABSENT, outputs.dtype))


SHAPE_FAULT = ScopeParamShapeError
"""What a Linen module says of parameters of other shapes than it would make."""

_RULE = "must be a Linen module, or a function (nnx.Rngs) -> nnx.Module such as `lambda rngs: Net(rngs=rngs)`"


def _narrowed(apply: Apply, dtype: str) -> Apply:
    """The same function computed in a narrower dtype in training: what goes in is cast, and outputs are cast back."""

    def cast_to(tree: Tree, dtype: str) -> Tree:
        def leaf(leaf: Array) -> Array:
            return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        return jax.tree.map(leaf, tree)

    def narrowed(params: Params, x: Array, key: Key | None) -> tuple[Array, Tree]:
        if key is None:
            return apply(params, x, key)
        wide = jax.tree.leaves(params["trained"])[0].dtype
        inside = {**params, "trained": cast_to(params["trained"], dtype)}
        with jax.numpy_dtype_promotion("standard"):  # batch statistics stay as wide as they are
            outputs, carried = apply(inside, cast_to(x, dtype), key)
        carried = jax.tree.map(lambda new, old: new.astype(old.dtype), carried, params["carried"])
        return outputs.astype(wide), carried

    return narrowed


Init = Callable[[Key], Params]
Apply = Callable[[Params, Array, Key | None], tuple[Array, Tree]]
"""(model, inputs, key) -> (logits, new carried); key None means evaluation."""
Still = Callable[[str], bool]
"""See `from_flax`."""


Method = Callable[[str], Apply | None]
"""Of a name, that method of the model; None where it has none."""


def _nnx(make: Callable[[nnx.Rngs], Any], still: Still | None) -> tuple[Init, Apply, Method]:
    def build(key: Key) -> Any:
        return make(nnx.Rngs(key))

    try:
        abstract = nnx.eval_shape(lambda: build(jax.random.key(0)))
    except USER_FAULTS as error:
        raise ConfigError(f"model: calling it with nnx.Rngs failed: {reason(error)}; {_RULE}") from error
    if not isinstance(abstract, nnx.Module):
        raise ConfigError(f"model: the function returned no nnx.Module; {_RULE}")
    graph, (trained_like, rng_like, carried_like) = _parts(abstract)

    def init(key: Key) -> Params:
        _, (trained, _, carried) = _parts(build(key))
        whole = {"trained": nnx.to_pure_dict(trained), "carried": nnx.to_pure_dict(carried)}
        return jax.tree.map(jnp.asarray, whole)  # a variable may hold a number of Python

    def applied(method: str) -> Apply:
        def apply(params: Params, x: Array, key: Key | None) -> tuple[Array, Tree]:
            trained = _filled(trained_like, params["trained"])
            carried = _filled(carried_like, params["carried"])
            module = nnx.merge(graph, trained, _random(rng_like, key), carried)
            module.eval() if key is None else module.train()
            if key is not None and still is not None:
                for path, part in nnx.iter_modules(module):
                    if isinstance(part, nnx.BatchNorm) and still("/".join(map(str, (*path, "mean")))):
                        part.use_running_average = True
            result = getattr(module, method)(x)
            _, (_, _, carried) = _parts(module)
            return result, nnx.to_pure_dict(carried)

        return apply

    return init, applied("__call__"), lambda name: applied(name) if callable(getattr(abstract, name, None)) else None


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


def _linen(module: linen.Module, example: Array, still: Still | None) -> tuple[Init, Apply, Method]:
    def mode(method: str, training: bool) -> dict[str, Any]:
        accepted = inspect.signature(getattr(type(module), method)).parameters
        known = {"train": training, "training": training, "deterministic": not training}
        return {name: value for name, value in known.items() if name in accepted}

    def init(key: Key) -> Params:
        rngs = {"params": key, "dropout": jax.random.fold_in(key, 1)}
        variables = dict(module.init(rngs, example, **mode("__call__", False)))
        return {"trained": variables.pop("params", {}), "carried": variables}

    def applied(method: str) -> Apply:
        def apply(params: Params, x: Array, key: Key | None) -> tuple[Array, Tree]:
            variables = {"params": params["trained"], **params["carried"]}
            if key is None:
                result: Any = module.apply(variables, x, **mode(method, False), method=method)
                return result, params["carried"]
            carried, rngs = list(params["carried"]), {"dropout": key}
            with linen.intercept_methods(_stilled(still)) if still is not None else contextlib.nullcontext():
                result, new = module.apply(
                    variables, x, **mode(method, True), rngs=rngs, mutable=carried, method=method
                )
            return result, {**params["carried"], **new}

        return apply

    return init, applied("__call__"), lambda name: applied(name) if callable(getattr(module, name, None)) else None


def _stilled(still: Still) -> Callable[..., Any]:
    """What Linen asks around every method: a batch normalisation whose statistics are still works as in evaluation."""

    def around(method: Callable[..., Any], args: Any, kwargs: Any, context: linen.module.InterceptorContext) -> Any:
        part = context.module
        if isinstance(part, linen.BatchNorm) and still("/".join((*part.path, "mean"))):
            object.__setattr__(part, "use_running_average", True)  # of a module that lives for this call alone
            kwargs = {name: value for name, value in kwargs.items() if name != "use_running_average"}
        return method(*args, **kwargs)

    return around


def _check(init: Init, apply: Apply, example: Array, wanted: tuple[int, ...]) -> bool:
    """Raises ConfigError for what can't be learned; returns whether local steps should be written out (Learner.unroll).

    The model is tried as it is evaluated and as it is trained, with no number computed.
    """

    def forward(params: Params, x: Array) -> Any:
        return apply(params, x, None)[0]

    def step(params: Params, x: Array) -> Tree:
        return apply(params, x, jax.random.key(0))[1]

    doing = ""
    try:
        params = tree.drawn(init)
        _check_leaves(params)
        traced = jax.make_jaxpr(forward)(params, example)
        doing = " in training"
        carried = jax.eval_shape(step, params, example)
    except (TypeError, ValueError) as error:
        shape = f"inputs of shape {example.shape[1:]}{doing}"
        raise ConfigError(f"model: does not take {shape}: {reason(error)}") from error
    except USER_FAULTS as error:
        raise ConfigError(f"model: failed{doing} with {type(error).__name__}: {reason(error)}") from error
    kinds = [{name: f"{leaf.dtype.name}{[*leaf.shape]}" for name, leaf in tree.named_leaves(each).items()}
             for each in (params["carried"], carried)]  # fmt: skip
    for name in sorted(kinds[0].keys() | kinds[1].keys()):
        was, now = (each.get(name, "nothing") for each in kinds)
        if was != now:
            raise ConfigError(
                f"model: variable {name} is {was} before a step of training and {now} after it; must stay the same"
            )
    if len(traced.out_avals) != 1:
        raise ConfigError(f"model: {len(traced.out_avals)} arrays as output; must be one, {[*wanted]} for each row")
    got = traced.out_avals[0].shape
    if got != (example.shape[0], *wanted):
        raise ConfigError(
            f"model: output of shape {got[1:]} for inputs of shape {example.shape[1:]}; "
            f"must be {wanted}, one number per class (label, target) of the data"
        )
    return "conv_general_dilated" in str(traced) and jax.default_backend() == "cpu"


def _check_leaves(params: Params) -> None:
    """Raises ConfigError for a leaf that can't be trained, or mixed."""
    if not jax.tree.leaves(params["trained"]):
        raise ConfigError(
            "model: has no parameters, so that there is nothing to learn; give it some, as nnx.Linear has"
        )
    for name, leaf in tree.named_leaves(params["trained"]).items():
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ConfigError(
                f"model: parameter {name} is {leaf.dtype.name}; must be real: give its real and its imaginary part as "
                "two parameters"
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ConfigError(
                f"model: parameter {name} is {leaf.dtype.name}, and has no gradient; must be a float. Make it an "
                "nnx.Variable, or another collection of Linen, if it is not to be trained"
            )
    for name, leaf in tree.named_leaves(params["carried"]).items():
        if not (jnp.issubdtype(leaf.dtype, jnp.floating) or jnp.issubdtype(leaf.dtype, jnp.integer)):
            raise ConfigError(
                f"model: variable {name} is {leaf.dtype.name}; must be real floats, which are mixed, or whole numbers: "
                "keep a mask as int8 or float32, and of complex numbers the two parts"
            )


_LIBRARIES = ("site-packages", "dist-packages", str(Path(__file__).parents[1]))


def reason(error: BaseException) -> str:
    """Return what an error of a model says, and the file and line of the model that it is about, where there is one."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, jax.errors.ConcretizationTypeError | jax.errors.TracerArrayConversionError):
        text = (
            text.removesuffix(".")
            + ". Numbers are not known while a model is compiled: choose with jnp.where or jax.lax.cond instead of `if`"
        )
        text += ", and stay in jax.numpy"
    frames = [
        each
        for each in traceback.extract_tb(error.__traceback__)
        if not any(part in each.filename for part in _LIBRARIES) and not each.filename.startswith("<")
    ]
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text


def cast(learner: Learner, dtype: str) -> Learner:
    """Return a learner whose first model is of a dtype; counters stay what they are.

    Args:
        learner: of any dtype.
        dtype: "float32" or "float64"; the data must be of the same.

    Returns:
        The learner with a model of that dtype.

    Example:
        >>> import jax
        >>> from p2pfl.learning import cast, quadratic
        >>> learner = cast(quadratic.learner(2), "float16")
        >>> jax.eval_shape(learner.init, jax.random.key(0))["trained"]["x"].dtype.name
        'float16'
    """

    def init(key: Key) -> Params:
        def leaf(leaf: Array) -> Array:  # counters stay what they are
            return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        return jax.tree.map(leaf, learner.init(key))

    return learner._replace(init=init)
