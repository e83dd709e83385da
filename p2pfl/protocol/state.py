"""The state that the parts of a `Peer` share: where the node is, whom it knows, and its effects so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from p2pfl.protocol.events import Effect, Note, Seen, Send
from p2pfl.protocol.messages import Envelope, Message
from p2pfl.protocol.neighbor import EpochPlan, Facts, Neighbor, RoundPlan

STARTING, JOINING, TRAINING, EXCHANGING, SETTLING = "starting", "joining", "training", "exchanging", "settling"
WAITING, LEAVING, CLOSING, DONE = "waiting", "leaving", "closing", "done"


@dataclass(slots=True)
class PeerState:
    """The state of one node. Only `Peer` and the parts that it owns write to it; drivers read."""

    facts: Facts
    life: int  # the present one: greater than `facts.life` after the others held the node for dead
    round: int  # that the node is in, or was in last; before its first, the one that it comes back from, or 0
    stage: str = STARTING
    nodes: int = field(init=False)  # ids go from 0 to nodes - 1: as planned, and more where others were admitted
    # the membership: written by `Presence`
    seen: dict[int, Seen] = field(default_factory=dict)  # the other members
    members: tuple[int, ...] = ()  # of the epoch; none before the first
    epoch: int = 0
    left: frozenset[int] = frozenset()  # nodes that have left in good order
    over: dict[int, int] = field(default_factory=dict)  # members whose life is over: the round that they were last in
    ahead: int = 0  # the epoch of those who are there now
    plan: EpochPlan = field(default_factory=lambda: EpochPlan(lambda round: RoundPlan(), 0, ()))
    neighbors: dict[int, Neighbor] = field(default_factory=dict)
    # time, in seconds of the driver's clock
    now: float = 0.0  # of the present event
    since: float = 0.0  # when the node began to wait for what it waits for now
    deadline: float = 0.0  # of the round
    out: list[Effect] = field(default_factory=list)  # the effects of the present event

    def __post_init__(self) -> None:
        self.nodes = max(self.facts.nodes, self.facts.node + 1)

    def send(self, to: Neighbor, message: Message, payload: Any = None) -> None:
        """Say something to the present life of a neighbour."""
        self.out.append(Send(to.node, Envelope(self.facts.node, self.life, to.life, message, payload)))

    def note(self, event: str, about: int, detail: str = "", rounds: int = 0) -> None:
        """Tell the record, and a person."""
        self.out.append(Note(event, about, self.round, detail, rounds))
