"""[virtual] of the experiment file: how fast nodes and network are in virtual time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from p2pfl.errors import ConfigError
from p2pfl.virtual.network import Link

_STRICT = ConfigDict(extra="forbid", strict=True)
_LIST = Field(strict=False)  # a list of Python is as good as a tuple; what is in it stays strict
Seconds = Annotated[float, Field(ge=0)]
Chance = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, config=_STRICT)
class VirtualLink:
    """[[virtual.links]]: what is different between two nodes, in both directions."""

    nodes: Annotated[tuple[Annotated[int, Field(ge=0)], ...], _LIST]  # the two
    latency: Seconds | None = None  # as in [virtual], each of them
    jitter: Seconds | None = None
    bandwidth: Rate | None = None
    loss: Chance | None = None
    reorder: Chance | None = None
    duplicate: Chance | None = None


@dataclass(frozen=True, config=_STRICT)
class Virtual:
    """[virtual]: how fast nodes and network are in virtual time; only driver.kind = "virtual" uses it."""

    step_seconds: Seconds = 0.001  # that a local step takes
    node_step_seconds: Annotated[tuple[Seconds, ...], _LIST] | None = None  # of each node, where they differ
    latency: Seconds = 0.001  # seconds that every message takes at least
    jitter: Seconds = 0.0  # up to so many seconds more
    bandwidth: Rate | None = None  # bytes/s of a link in each direction; without it, no bound
    loss: Chance = 0.0  # a message is lost on its way with this probability, unforeseen by both ends
    reorder: Chance = 0.0  # a message of the membership is held back
    duplicate: Chance = 0.0  # ... arrives twice
    links: Annotated[tuple[VirtualLink, ...], _LIST] = ()


def check(table: Virtual, nodes: int) -> None:
    """Raises ConfigError for what can't be in a federation of so many nodes."""
    given = table.node_step_seconds
    if given is not None and len(given) != nodes:
        raise ConfigError(
            f"virtual.node_step_seconds: {len(given)} numbers for {nodes} nodes; give one for each, or step_seconds"
        )
    seen: dict[tuple[int, ...], int] = {}
    for i, link in enumerate(table.links):
        where = f"virtual.links[{i}].nodes={list(link.nodes)}"
        if len(set(link.nodes)) != 2 or len(link.nodes) != 2:
            raise ConfigError(f"{where}: a link joins two nodes; write it nodes = [0, 1]")
        for node in link.nodes:
            if node >= nodes:
                raise ConfigError(f"{where}: there are nodes 0 to {nodes - 1}")
        key = tuple(sorted(link.nodes))
        if key in seen:
            raise ConfigError(f"{where}: stands in links[{seen[key]}] already; put both into one")
        seen[key] = i


def seconds(table: Virtual, nodes: int) -> tuple[float, ...]:
    """Seconds of a local step of each node."""
    return table.node_step_seconds or (table.step_seconds,) * nodes


def links(table: Virtual) -> Callable[[int, int], Link]:
    """The link from one node to another."""
    fields = Link._fields
    common = {name: getattr(table, name) for name in fields}
    special = {
        tuple(sorted(link.nodes)): _link({**common, **{k: v for k, v in asdict(link).items() if v is not None}})
        for link in table.links
    }
    rest = _link(common)
    return lambda source, to: special.get((min(source, to), max(source, to)), rest)


def _link(given: dict[str, float | None]) -> Link:
    bandwidth = given["bandwidth"]
    named = {name: given[name] or 0.0 for name in Link._fields if name != "bandwidth"}
    return Link(bandwidth=math.inf if bandwidth is None else bandwidth, **named)
