"""Plugins: a user's functions by name, and calls of makers whose arguments stand in an experiment."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from flax.errors import FlaxError

from p2pfl.errors import USER_FAULTS, ConfigError, nearest

FAULTS = (*USER_FAULTS, FlaxError)
"""What a user's functions fail with, models of flax among them."""


def function(name: str, where: str) -> Callable[..., Any]:
    """The user's function "module:function". Raises ConfigError."""
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        raise ConfigError(f'{where}={name!r}: must be written "module:function", as in "my_models:net"')
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{where}={name!r}: {error}; its folder must be the current one or the experiment's"
        ) from error
    except (*FAULTS, SyntaxError) as error:
        raise ConfigError(f"{where}={name!r}: importing failed with {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ConfigError(f"{where}={name!r}: module {module} has no function {attribute!r}")
    return found


def called(
    maker: Callable[..., Any], what: str, where: str, first: int, arguments: Mapping[str, Any], *positional: Any
) -> Any:
    """Call a maker whose arguments from number `first` on stand in the experiment."""
    accepted = list(inspect.signature(maker).parameters)[first:]
    for name, value in arguments.items():
        if name not in accepted:
            known = nearest(name, accepted) if accepted else "it takes none"
            raise ConfigError(f"{where}.{name}={value!r}: {what} has no such argument; {known}")
    try:
        return maker(*positional, **arguments)
    except ConfigError as error:
        raise ConfigError(f"{where}: {what}: {error}") from error
    except FAULTS as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ConfigError(f"{where}: {what}({given}): {type(error).__name__}: {error}") from error
