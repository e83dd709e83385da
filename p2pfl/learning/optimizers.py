"""Optax optimizers and schedules by name, chains of them, and what can be found out about one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from p2pfl.check import unaccepted
from p2pfl.errors import USER_FAULTS, ConfigError, nearest
from p2pfl.types import Array, Tree

Choose = Callable[[object, str, Mapping[str, Callable[..., Any]], str], Callable[..., Any]]
"""(name, field, optax's own, group of entry points) -> the function that is meant. Raises ConfigError."""


def of_optax(name: object, where: str, own: Mapping[str, Callable[..., Any]], group: str) -> Callable[..., Any]:
    """Return the one of optax that a name means. Raises ConfigError."""
    if name not in own:
        raise ConfigError(f"{where}={name!r}: {nearest(name, own)}")
    return own[str(name)]


def optimizer(name: str, **arguments: Any) -> optax.GradientTransformation:
    """Return an optimizer of optax or optax.contrib by name, as an experiment file has it.

    In Python give the optimizer itself: `optax.sgd(0.1)`.

    Args:
        name: of a function there whose first argument is a learning_rate, or max_learning_rate.
        arguments: of that function; a learning rate may be a table that names a schedule of optax,
            `{"schedule": "cosine_decay_schedule", "init_value": 0.1, "decay_steps": 800}`, which counts local steps.

    Returns:
        The optimizer.

    Raises:
        ConfigError: no such optimizer, schedule or argument, or one that asks for more than a step has: gradient, loss,
            and the loss at other parameters.

    Example:
        >>> from p2pfl.learning import optimizer
        >>> optimizer("sdg", learning_rate=0.1)
        Traceback (most recent call last):
        ...
        p2pfl.errors.ConfigError: optimizer name='sdg': did you mean 'sgd'? Valid: ...
    """
    return optimizer_of({"name": name, **arguments})


def optimizer_of(
    given: Mapping[str, Any] | Sequence[Mapping[str, Any]], choose: Choose = of_optax
) -> optax.GradientTransformation:
    """Return what an experiment file calls an optimizer: one, or a list of what is done to a gradient in turn.

    A list is `optax.chain`, which hands on what each has made of the gradient to the next: `clip_by_global_norm` before
    `sgd` clips gradients, after it the steps. "MultiSteps" has all that follows it take one step for the mean of every
    so many gradients.

    Args:
        given: a table with `name` and arguments, or a list of them, of which one takes a learning rate.
        choose: brings functions by their names, those too that are not of optax.

    Returns:
        The optimizer.

    Raises:
        ConfigError: as `optimizer`; a list in which nothing, or more than one thing, takes a learning rate.

    Example:
        >>> import jax.numpy as jnp
        >>> from p2pfl.learning.optimizers import optimizer_of
        >>> clip, sgd = {"name": "clip_by_global_norm", "max_norm": 1.0}, {"name": "sgd", "learning_rate": 0.1}
        >>> made, gradient = optimizer_of([clip, sgd]), jnp.asarray([3.0, 4.0])
        >>> [round(step.item(), 3) for step in made.update(gradient, made.init(gradient))[0]]
        [-0.06, -0.08]
    """
    for i, table in enumerate([given] if isinstance(given, Mapping) else given):
        if not isinstance(name := table.get("name"), str):
            where = "optimizer" if isinstance(given, Mapping) else f"optimizer[{i}]"
            raise ConfigError(f'{where} name={name!r}: must be given, as in {{ name = "sgd", learning_rate = 0.1 }}')
    if isinstance(given, Mapping):
        text = _shown("optimizer", given)
        return _tried(_part("optimizer", given, _optimizers(), choose), text)
    if not given:
        raise ConfigError("optimizer: is an empty list; give an optimizer, such as sgd")
    rates = [str(table["name"]) for table in given if _rated(table)]
    own = [table for table in given if table.get("name") not in {*names(), *INSTEAD}]
    if len(rates) > 1 or not (rates or own):
        what = f"{' and '.join(rates)} do" if rates else "none does"
        raise ConfigError(f"optimizer: one of the list must take a learning rate, as sgd does, and {what}")
    return _tried(_chained([(f"optimizer[{i}]", table) for i, table in enumerate(given)], choose), "optimizer")


def _chained(given: Sequence[tuple[str, Mapping[str, Any]]], choose: Choose) -> optax.GradientTransformation:
    """`optax.chain` of (field, table), of which MultiSteps goes around those behind it."""
    known, parts = {**_parts(), **_optimizers()}, []
    for i, (where, table) in enumerate(given):
        if table.get("name") == MULTI:
            if not given[i + 1 :]:
                raise ConfigError(f"{where} {MULTI}: gathers gradients for what comes after it; put an optimizer there")
            inner = by_gradient(_chained(given[i + 1 :], choose), f"{where} {MULTI}")
            around = {MULTI: partial(optax.MultiSteps, inner)}
            parts.append(_part(where, table, around, choose))
            break
        parts.append(_part(where, table, known, choose))
    return optax.chain(*parts)


def _part(where: str, table: Mapping[str, Any], makers: Mapping[str, Callable[..., Any]], choose: Choose) -> Any:
    """Call the maker that a table names with the table's arguments. Raises ConfigError."""
    arguments = {key: value for key, value in table.items() if key != "name"}
    name = str(table["name"])
    if name in INSTEAD:
        raise ConfigError(f"{where} name={name!r}: {INSTEAD[name]}")
    if name not in makers and name in {*_parts(), MULTI}:
        raise ConfigError(
            f'{where} name={name!r}: takes no step by itself; put it into a list, as in [{{ name = "{name}", ... }}, '
            '{ name = "sgd", learning_rate = 0.1 }]'
        )
    maker = choose(name, f"{where} name", makers, "p2pfl.optimizers")
    if wrong := unaccepted(maker, arguments):
        raise ConfigError(f"{where} {name}: argument {wrong[0]!r}: {wrong[1]}")
    for argument in arguments:
        if argument in RATES and isinstance(arguments[argument], dict) and "schedule" not in arguments[argument]:
            raise ConfigError(
                f"{where} {name}: {argument}={arguments[argument]!r}: must be a number, or a table that names a "
                'schedule, as in { schedule = "cosine_decay_schedule", init_value = 0.1, decay_steps = 800 }'
            )
    try:
        made = maker(**{key: _scheduled(value, f"{where} {name}: {key}", choose) for key, value in arguments.items()})
    except ConfigError:
        raise
    except USER_FAULTS as error:
        raise ConfigError(f"{_shown(where, table)}: {error}") from error
    if isinstance(made, optax.MultiSteps):
        made = made.gradient_transformation()
    if not isinstance(made, optax.GradientTransformation):
        raise ConfigError(f"{where} {name}: returned a {type(made).__name__}, not an optax.GradientTransformation")
    return made


def _tried(made: optax.GradientTransformation, text: str) -> optax.GradientTransformation:
    """The optimizer, after a dry step: some arguments fail only there. Raises ConfigError, which begins with `text`."""
    return tried(made, {"kernel": jax.ShapeDtypeStruct((2, 2), np.float32)}, text)


def tried(made: optax.GradientTransformation, like: Tree, text: str) -> optax.GradientTransformation:
    """The optimizer, after a step in shapes alone on parameters `like` these. Raises ConfigError, with `text` first."""
    try:
        state, loss = jax.eval_shape(made.init, like), jax.eval_shape(lambda: jnp.zeros(()))
        step = partial(updated, made, loss_at=_square)
        after, new_state = jax.eval_shape(step, like, state, like, loss)
        _same_shapes("updates", like, after)
        _same_shapes("state", state, new_state)
    except USER_FAULTS as error:
        raise ConfigError(f"{text}: {error}") from error
    return made


def _shown(where: str, table: Mapping[str, Any]) -> str:
    """A table as a call: optimizer sgd(learning_rate=0.1)."""
    given = ", ".join(f"{key}={value!r}" for key, value in table.items() if key != "name")
    return f"{where} {table.get('name')}({given})"


RATES = ("learning_rate", "max_learning_rate")
MULTI = "MultiSteps"
"""The wrapper of optax that takes a step for every so many gradients."""
PLAIN = (
    "adaptive_grad_clip", "add_decayed_weights", "apply_every", "centralize", "clip", "clip_by_block_rms",
    "clip_by_global_norm", "ema", "keep_params_nonnegative", "normalize_by_update_norm", "scale", "trace", "zero_nans",
)  # fmt: skip
"""Transformations of optax that a list may name, besides optimizers and all `scale_by_...`."""


def _optimizers() -> dict[str, Callable[..., Any]]:
    """Name -> function of optax that takes a learning rate first."""
    return {
        key: value
        for key, value in {**vars(contrib), **vars(optax)}.items()
        if key not in INSTEAD and not key.startswith(("_", "scale_by_")) and _takes_learning_rate(value)
    }


def _parts() -> dict[str, Callable[..., Any]]:
    """Name -> function of optax that makes a transformation of gradients which no step is made of by itself."""
    scaled = {key: value for key, value in vars(optax).items() if key.startswith("scale_by_") and callable(value)}
    return {**{name: getattr(optax, name) for name in PLAIN}, **scaled}


def names() -> set[str]:
    """Return what of optax an experiment can name as an optimizer, or in a list of them."""
    return {*_optimizers(), *_parts(), MULTI}


def _rated(table: Mapping[str, Any]) -> bool:
    """Return whether an entry of a list turns a gradient into a step against it."""
    name, size = table.get("name"), table.get("step_size")
    downhill = name == "scale" and isinstance(size, int | float) and size < 0
    return downhill or name == "scale_by_learning_rate" or name in _optimizers()


# --- schedules


SCHEDULES: Mapping[str, Callable[..., optax.Schedule]] = MappingProxyType(
    {
        name: getattr(optax.schedules, name)
        for name in (
            "constant_schedule", "cosine_decay_schedule", "cosine_onecycle_schedule", "exponential_decay",
            "join_schedules", "linear_onecycle_schedule", "linear_schedule", "piecewise_constant_schedule",
            "piecewise_interpolate_schedule", "polynomial_schedule", "sgdr_schedule", "warmup_constant_schedule",
            "warmup_cosine_decay_schedule", "warmup_exponential_decay_schedule",
        )
    }
)  # fmt: skip
"""Schedules of optax by name: functions of the number of steps that an optimizer has taken."""


def schedules_in(value: Any) -> list[str]:
    """Return the names of the schedules in a table or a list, however deep."""
    if isinstance(value, Mapping):
        own = [str(value["schedule"])] if "schedule" in value else []
        return [*own, *schedules_in([*value.values()])]
    return [name for each in value for name in schedules_in(each)] if isinstance(value, list | tuple) else []


def _scheduled(value: Any, where: str, choose: Choose) -> Any:
    """An argument, in which tables that name a schedule have become the schedule. Raises ConfigError."""
    if isinstance(value, list | tuple):
        return [_scheduled(each, where, choose) for each in value]
    if not isinstance(value, dict) or "schedule" not in value:
        return value
    name = value["schedule"]
    given = {key: _scheduled(_numbered(each), where, choose) for key, each in value.items() if key != "schedule"}
    maker = choose(name, f"{where}.schedule", SCHEDULES, "p2pfl.schedules")
    if wrong := unaccepted(maker, given):
        raise ConfigError(f"{where}: schedule {name}: argument {wrong[0]!r}: {wrong[1]}")
    text = f"{where}: schedule {name}"
    try:
        made = maker(**given)
        if not callable(made):
            raise ConfigError(f"{text}: returned a {type(made).__name__}, not a function of the step")
        rate = jax.eval_shape(made, jax.ShapeDtypeStruct((), np.int32))
    except USER_FAULTS as error:
        raise ConfigError(f"{text}: {error}") from error
    if getattr(rate, "shape", None) != () or not jnp.issubdtype(rate.dtype, jnp.number):
        raise ConfigError(f"{text}: must make a single number of a step, and made {rate}")
    return made


def _numbered(value: Any) -> Any:
    """A table whose keys are whole numbers, as boundaries are, has them as numbers: keys of TOML are text."""
    if isinstance(value, dict) and value and all(str(key).isdigit() for key in value):
        return {int(key): each for key, each in value.items()}
    return value


INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "sam": "is made of two other optimizers, which a file can't name; training.objective has the same as "
        '{ name = "sharpness" }, with any optimizer. In Python give the optimizer itself',
        "schedule_free": "is made of another optimizer, which a file can't name; use schedule_free_sgd or "
        "schedule_free_adamw. In Python give the optimizer itself",
        "dpsgd": "needs the gradient of each row, and a local step has the mean over its batch; leave it out",
    }
)
"""Optimizers of optax that no file can name, and why."""


def updated(
    optimizer: optax.GradientTransformation,
    gradient: Tree,
    opt_state: Tree,
    trained: Tree,
    loss: Array,
    loss_at: Callable[[Tree], Array],
) -> tuple[Tree, Tree]:
    """Return (updates, state) of a step. `loss` []: at `trained`, whose gradient is given; `loss_at`: elsewhere.

    Optimizers that search along a line (lbfgs), scale by the loss (momo, polyak_sgd) or estimate curvature (sophia) ask
    for these, by the names that optax has for them; all others don't look.
    """
    if not isinstance(optimizer, optax.GradientTransformationExtraArgs):
        return optimizer.update(gradient, opt_state, trained)

    def value_fn(trained: Tree, obj_fn: Any = None) -> Array:  # a line search hands on what it does not know itself
        return loss_at(trained)

    return optimizer.update(
        gradient, opt_state, trained, value=loss, grad=gradient, value_fn=value_fn, obj_fn=loss_at
    )  # fmt: skip


def stepped(optimizer: optax.GradientTransformation, gradient: Tree, memory: Tree, network: Tree) -> tuple[Tree, Tree]:
    """Return (network, the optimizer's state) after a step of a network that a method trains by itself."""
    with jax.numpy_dtype_promotion("standard"):  # Adam counts in whole numbers
        updates, memory = optimizer.update(gradient, memory, network)
        return optax.apply_updates(network, updates), memory


def by_gradient(optimizer: optax.GradientTransformation, where: str) -> optax.GradientTransformation:
    """Return the optimizer, if it asks for nothing but gradients. Raises ConfigError, which begins with `where`."""
    like = {"kernel": jax.ShapeDtypeStruct((2, 2), np.float32)}
    try:
        jax.eval_shape(optimizer.update, like, jax.eval_shape(optimizer.init, like), like)
    except TypeError as error:
        if "required keyword-only" in str(error):
            raise ConfigError(
                f"{where}: its steps have gradients alone, and the optimizer asks for the loss as well ({error}); use "
                "another optimizer, such as sgd or adam"
            ) from error
    return optimizer


def _square(tree: Tree) -> Array:
    return jnp.asarray(sum((leaf**2).sum() for leaf in jax.tree.leaves(tree)))


def _same_shapes(what: str, before: Tree, after: Tree) -> None:
    """Raises ValueError where a step changes shapes or dtypes, which no scan over steps can carry."""
    kinds = [(jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)])
             for tree in (before, after)]  # fmt: skip
    if kinds[0] != kinds[1]:
        raise ValueError(f"a step changes the shape of its {what}; it can't be a local step")


def _takes_learning_rate(function: Any) -> bool:
    if not callable(function) or inspect.isclass(function):
        return False
    try:
        return next(iter(inspect.signature(function).parameters), "") in RATES
    except (TypeError, ValueError):  # builtins without a signature
        return False


def learning_rate(optimizer: optax.GradientTransformation, opt_state: Tree, trained: Tree) -> Array:
    """[] the learning rate of the next step of an optimizer for which `is_plain` holds, schedules included."""
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, trained), opt_state, trained)
    return -jax.tree.leaves(updates)[0].reshape(-1)[0]


def is_plain(optimizer: optax.GradientTransformation) -> bool:
    """Return whether an optimizer is plain SGD: every update is -rate * gradient, without memory.

    The rate may follow a schedule, and may be 0 in the first step, as where it warms up.
    """
    with jax.ensure_compile_time_eval():  # also where an algorithm is made inside a function that is being traced
        x = {"x": jnp.asarray([0.5, -2.0], jnp.float32)}
        given = {"x": jnp.asarray([3e8, -1e8], jnp.float32)}  # which whatever clips would clip
        rates, state = [], optimizer.init(x)
        try:
            for _ in range(2):
                ones, _ = optimizer.update(jax.tree.map(jnp.ones_like, x), state, x)
                step, after = optimizer.update(given, state, x)
                rest, _ = optimizer.update(jax.tree.map(jnp.zeros_like, x), after, x)
                rates.append(float(ones["x"][0]))
                same = np.allclose(np.asarray(step["x"]), rates[-1] * np.asarray(given["x"]), rtol=1e-5)
                if not same or np.asarray(rest["x"]).any():
                    return False
                state = after
        except TypeError:  # strict promotion refuses optimizers of the Adam family, which are not plain
            return False
    return max(rates) <= 0 and min(rates) < 0
