"""What a node says of itself at its ports: the version of p2pfl and of its protocols."""

from __future__ import annotations

import functools

from p2pfl import packages
from p2pfl.drivers.live.zmtp import Kind
from p2pfl.protocol import messages
from p2pfl.protocol.membership import wire

MODELS, MEMBERSHIP = "models", "membership"
"""What a port is for."""


@functools.cache
def version() -> str:
    """Return the version of p2pfl that is installed here."""
    return packages.version("p2pfl-jax") or "unknown"


def here(node: int, port: str) -> Kind:
    """Return what listens at a port of a node here."""
    return Kind(version(), messages.VERSION, wire.VERSION, node, port)
