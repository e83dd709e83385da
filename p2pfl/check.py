"""Checks of arguments that say `name=value` and the rule in one line, all raising ConfigError; and types of the fields
of files that a person writes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from p2pfl.errors import ConfigError, nearest


def positive(**named: float) -> None:
    """Every value is > 0."""
    for name, value in named.items():
        if not value > 0:
            raise ConfigError(f"{name}={value!r}: must be > 0")


def at_least(least: float, **named: float) -> None:
    """Every value is >= `least`."""
    for name, value in named.items():
        if not value >= least:
            raise ConfigError(f"{name}={value!r}: must be >= {least}")


def whole(least: int, **named: int) -> None:
    """Every value is a whole number >= `least`."""
    for name, value in named.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name}={value!r}: must be a whole number >= {least}")


def fraction(**named: float) -> None:
    """Every value lies strictly between 0 and 1."""
    for name, value in named.items():
        if not 0 < value < 1:
            raise ConfigError(f"{name}={value!r}: must be > 0 and < 1")


def one_of(valid: Collection[str], **named: str) -> None:
    """Every value is one of `valid`; the text names the nearest."""
    for name, value in named.items():
        if value not in valid:
            raise ConfigError(f"{name}={value!r}: {nearest(value, valid)}")


def share(**named: float) -> None:
    """Every value is >= 0 and < 1."""
    for name, value in named.items():
        if not 0 <= value < 1:
            raise ConfigError(f"{name}={value!r}: must be >= 0 and < 1")


def unaccepted(function: Callable[..., Any], given: Iterable[str], first: int = 0) -> tuple[str, str] | None:
    """Return the first of `given` that is no argument of a function, from its number `first` on, and what is; or None.

    >>> unaccepted(one_of, ["named", "vaild"]), unaccepted(lambda a, b: a, ["a", "bb"], 1)
    (None, ('a', 'Valid: b'))
    """
    accepted = inspect.signature(function).parameters
    if any(each.kind is each.VAR_KEYWORD for each in accepted.values()):
        return None
    names = [*accepted][first:]
    wrong = next((each for each in given if each not in names), None)
    return None if wrong is None else (wrong, nearest(wrong, names) if names else "it takes none")


STRICT = ConfigDict(extra="forbid", strict=True)
"""How a table of a file becomes a dataclass of pydantic: no unknown fields, no guessing of values."""
LIST = Field(strict=False)
"""Of a tuple: a list of Python is as good; what is in it stays strict."""
Count = Annotated[int, Field(ge=1, lt=2**31)]
Texts = Annotated[tuple[str, ...], LIST]
