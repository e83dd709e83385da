"""What a node knows of itself from the start, and what it learns of each neighbour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from p2pfl.protocol.exchange import IDLE, Edge
from p2pfl.protocol.timing import Timing


class Facts(NamedTuple):
    """What a node knows from the start and what never changes."""

    node: int
    life: int  # greater than that of any earlier process of this node
    neighbors: Sequence[int]
    rounds: int
    federation: str  # digest of what all nodes must have in common
    schema: str  # digest of the payload's shape
    payload_bytes: int
    timing: Timing
    lateness: int  # the age in rounds at which an exchange may still be booked
    join_round: int = 0  # a returning node takes part from this round on, or from the first it finds


@dataclass(slots=True)
class Neighbour:
    """What a node knows of one neighbour."""

    node: int
    life: int = 0
    sees_me: bool = False
    ready: bool = False  # it takes part in rounds
    left: bool = False
    suspect: bool = False
    begun: bool = False  # it had begun before we met
    round: int = 0
    edge: Edge = field(default_factory=Edge)
    opened: float = 0.0
    heard: float = 0.0
    hello: float = -1e9
    pinged: float | None = None  # since when a ping is unanswered
    last_ping: float = -1e9
    wants: int | None = None

    @property
    def linked(self) -> bool:
        """Each has met the other's present life."""
        return self.life != 0 and self.sees_me and not self.left

    @property
    def usable(self) -> bool:
        """Exchanges may be opened with it."""
        return self.linked and self.ready and not self.suspect

    @property
    def awaited(self) -> bool:
        """A round waits for it."""
        return self.usable and self.edge.phase != IDLE
