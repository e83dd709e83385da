"""Optax optimizers by name, and what can be found out about one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2pfl.errors import ConfigError, nearest
from p2pfl.types import Array, Tree


def optimizer(name: str, **arguments: Any) -> optax.GradientTransformation:
    """Return an optax optimizer by name, as an experiment file has it.

    In Python give the optimizer itself: `optax.sgd(0.1)`.

    Args:
        name: of a function of optax that takes a learning_rate.
        arguments: of that function.

    Returns:
        The optimizer.

    Raises:
        ConfigError: no such optimizer or argument, or one that asks for more than gradients.

    Example:
        >>> from p2pfl.learning import optimizer
        >>> optimizer("sdg", learning_rate=0.1)
        Traceback (most recent call last):
        ...
        p2pfl.errors.ConfigError: optimizer name='sdg': did you mean 'sgd'? Valid: ...
    """
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
