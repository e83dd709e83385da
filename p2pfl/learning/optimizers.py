"""Optax optimizers by name, and what can be found out about one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from p2pfl.errors import ConfigError, nearest
from p2pfl.types import Array, Tree


def optimizer(name: str, **arguments: Any) -> optax.GradientTransformation:
    """Return an optimizer of optax or optax.contrib by name, as an experiment file has it.

    In Python give the optimizer itself: `optax.sgd(0.1)`.

    Args:
        name: of a function there whose first argument is a learning_rate, or max_learning_rate.
        arguments: of that function.

    Returns:
        The optimizer.

    Raises:
        ConfigError: no such optimizer or argument, or one that asks for more than a step has: gradient, loss, and the
            loss at other parameters.

    Example:
        >>> from p2pfl.learning import optimizer
        >>> optimizer("sdg", learning_rate=0.1)
        Traceback (most recent call last):
        ...
        p2pfl.errors.ConfigError: optimizer name='sdg': did you mean 'sgd'? Valid: ...
    """
    makers = {
        key: value
        for key, value in {**vars(contrib), **vars(optax)}.items()
        if key not in INSTEAD and not key.startswith(("_", "scale_by_")) and _takes_learning_rate(value)
    }
    if name in INSTEAD:
        raise ConfigError(f"optimizer name={name!r}: {INSTEAD[name]}")
    if name not in makers:
        raise ConfigError(f"optimizer name={name!r}: {nearest(name, makers)}")
    accepted = inspect.signature(makers[name]).parameters
    for argument in arguments:
        if argument not in accepted:
            raise ConfigError(f"optimizer {name}: argument {argument!r}: {nearest(argument, accepted)}")
    like = {"kernel": jax.ShapeDtypeStruct((2, 2), np.float32)}
    try:
        made = makers[name](**arguments)
        # a dry step: some arguments fail only here
        step = partial(updated, made, loss=jnp.zeros(()), loss_at=_square)
        state = jax.eval_shape(made.init, like)
        after, new_state = jax.eval_shape(step, like, state, like)
        _same_shapes("updates", like, after)
        _same_shapes("state", state, new_state)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ConfigError(f"optimizer {name}({given}): {error}") from error
    return made


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
        return next(iter(inspect.signature(function).parameters), "") in ("learning_rate", "max_learning_rate")
    except (TypeError, ValueError):  # builtins without a signature
        return False


def learning_rate(optimizer: optax.GradientTransformation, opt_state: Tree, trained: Tree) -> Array:
    """[] the learning rate of the next step of an optimizer for which `is_plain` holds, schedules included."""
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, trained), opt_state, trained)
    return -jax.tree.leaves(updates)[0].reshape(-1)[0]


def is_plain(optimizer: optax.GradientTransformation) -> bool:
    """Return whether an optimizer is plain SGD: every update is -rate * gradient, without memory."""
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
