"""[virtual] of the experiment file: how fast nodes and network are in virtual time."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from p2pfl.check import LIST, STRICT

Seconds = Annotated[float, Field(ge=0)]
Chance = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, config=STRICT)
class VirtualLink:
    """[[virtual.links]]: what is different between two nodes, in both directions."""

    nodes: Annotated[tuple[Annotated[int, Field(ge=0)], ...], LIST]  # the two
    latency: Seconds | None = None  # as in [virtual], each of them
    jitter: Seconds | None = None
    bandwidth: Rate | None = None
    loss: Chance | None = None
    reorder: Chance | None = None
    duplicate: Chance | None = None


@dataclass(frozen=True, config=STRICT)
class Virtual:
    """[virtual]: how fast nodes and network are in virtual time; only driver.kind = "virtual" uses it."""

    step_seconds: Seconds = 0.001  # that a local step takes
    node_step_seconds: Annotated[tuple[Seconds, ...], LIST] | None = None  # of each node, where they differ
    latency: Seconds = 0.001  # seconds that every message takes at least
    jitter: Seconds = 0.0  # up to so many seconds more
    bandwidth: Rate | None = None  # bytes/s of a link in each direction; without it, no bound
    loss: Chance = 0.0  # a message is lost on its way with this probability, unforeseen by both ends
    reorder: Chance = 0.0  # a message of the membership is held back
    duplicate: Chance = 0.0  # ... arrives twice
    links: Annotated[tuple[VirtualLink, ...], LIST] = ()
