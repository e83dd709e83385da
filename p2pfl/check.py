"""Checks of arguments that say `name=value` and the rule in one line. All raise ConfigError."""

from __future__ import annotations

from collections.abc import Collection

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
