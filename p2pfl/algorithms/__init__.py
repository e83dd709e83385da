"""Decentralised learning algorithms, one file each, and the table of their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from p2pfl.algorithms.dsgd import dsgd
from p2pfl.algorithms.local import local
from p2pfl.types import Algorithm

ALGORITHMS: Mapping[str, Callable[..., Algorithm]] = MappingProxyType({"dsgd": dsgd, "local": local})
"""Makers `(learner, optimizer, **arguments) -> Algorithm` by name."""

__all__ = ["ALGORITHMS", "dsgd", "local"]
