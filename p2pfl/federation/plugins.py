"""Functions by name: p2pfl's own, those of installed packages, and a user's; and calls with what a file says."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from flax.errors import FlaxError

from p2pfl.check import unaccepted
from p2pfl.errors import USER_FAULTS, ConfigError, nearest
from p2pfl.learning import flax
from p2pfl.packages import owner, registered, single

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


def theirs(group: str, name: str, where: str) -> Callable[..., Any] | None:
    """Return a function that is not p2pfl's own: a user's "module:function", or one that a package has registered.

    None where nobody has one of that name. Raises ConfigError where it can't be had.
    """
    if ":" in name:
        return function(name, where)
    entries = registered(group).get(name)
    if not entries:
        return None
    entry = single(group, name, entries)
    try:
        found = entry.load()
    except (*FAULTS, SyntaxError) as error:
        raise ConfigError(
            f"{where}={name!r}: is of {owner(entry)}, and importing {entry.value} failed with "
            f"{type(error).__name__}: {error}"
        ) from error
    if not callable(found):
        raise ConfigError(f"{where}={name!r}: is of {owner(entry)}, and {entry.value} is no function")
    return found


def chosen(name: object, where: str, own: Mapping[str, Callable[..., Any]], group: str) -> Callable[..., Any]:
    """Return the function that a name means: one of p2pfl's `own`, of a package, or a user's. Raises ConfigError."""
    text = str(name)
    if text in own:
        return own[text]
    found = theirs(group, text, where) if isinstance(name, str) else None
    if found is None:
        raise ConfigError(f"{where}={name!r}: {unknown(text, own, group)}")
    return found


def unknown(name: str, own: Collection[str], group: str) -> str:
    """The end of an error text on a name that nobody has: the nearest ones, of packages too."""
    names = {*own, *registered(group)}
    listed = f"{nearest(name, names)}; or" if names else "must be written"
    return f'{listed} "module:function"'


def called(
    maker: Callable[..., Any], what: str, where: str, first: int, arguments: Mapping[str, Any], *positional: Any
) -> Any:
    """Call a maker whose arguments from number `first` on stand in the experiment."""
    if wrong := unaccepted(maker, arguments, first):
        raise ConfigError(f"{where}.{wrong[0]}={arguments[wrong[0]]!r}: {what} has no such argument; {wrong[1]}")
    try:
        return maker(*positional, **arguments)
    except ConfigError as error:
        raise ConfigError(f"{where}: {what}: {error}") from error
    except FAULTS as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ConfigError(f"{where}: {what}({given}): {type(error).__name__}: {flax.reason(error)}") from error


def seeded(maker: Callable[..., Any], arguments: Mapping[str, Any], **known: Any) -> dict[str, Any]:
    """The arguments, and of `known` (a seed) what the maker has an argument for and the file says nothing of."""
    accepted = inspect.signature(maker).parameters
    return {**{name: value for name, value in known.items() if name in accepted}, **arguments}
