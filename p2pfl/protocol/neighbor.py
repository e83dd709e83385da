"""Facts of a node from the start, and what it learns of each neighbour."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from p2pfl.errors import RemoteError
from p2pfl.protocol.exchange import IDLE, Edge, Side
from p2pfl.protocol.timing import Timing

KEPT = 16
"""Pushes of one neighbour that wait for their round. One that is not awaited by its neighbours may be ahead of them by
as many rounds as the graph is wide; whatever is more is dropped, the oldest first."""


class RoundPlan(NamedTuple):
    """The plan of a round for this node: ids of neighbours, ascending."""

    exchange: tuple[int, ...] = ()  # an exchange is opened with each
    receives_from: tuple[int, ...] = ()  # each pushes to this node
    sends_to: tuple[int, ...] = ()  # this node pushes to each
    void: tuple[int, ...] = ()  # the experiment loses the exchange with each of these: neither end opens it
    lost: tuple[int, ...] = ()  # the experiment loses the push to each of these


class EpochPlan(NamedTuple):
    """The plan of an epoch for this node."""

    at: Callable[[int], RoundPlan]  # of a round; every node in the epoch has the same schedule
    slots: int  # bookings that one round can mix
    neighbors: tuple[int, ...]  # over all rounds
    steady: bool = False  # every round has the same


BARRIER, DEADLINE, ASYNC = "barrier", "deadline", "async"
SYNCS = (BARRIER, DEADLINE, ASYNC)
"""How long a round waits: for everybody who is no dead one; until an adaptive deadline; not at all."""

WAIT, TRAIN = "wait", "train"
"""What a node does that has lost more than half of the expected members: no further round, or all of them alone."""


class Facts(NamedTuple):
    """Facts that a node knows from the start and that never change."""

    node: int
    life: int  # greater than that of any earlier process of this node
    nodes: int  # that are planned, with ids from 0 to nodes - 1; others may be admitted, this node among them
    expected: tuple[int, ...]  # members that a start waits for, as long as nobody has begun
    plan: Callable[[tuple[int, ...]], EpochPlan]  # of an epoch's members, ascending, this node among them
    rounds: int
    federation: str  # digest of what all nodes must have in common
    schema: str  # digest of the description
    payload_bytes: int
    timing: Timing
    lateness: int  # the age in rounds at which an exchange may still be booked
    per_edge: bool = False  # there is a payload for each neighbour
    exchanges: bool = True  # what the algorithm does with its neighbours; else it pushes, or nothing
    sync: str = DEADLINE
    join_round: int = 0  # a returning node takes part from this round on, or from the first it finds
    kept_round: int = 0  # it comes back with its own state from after this round; 0: with nothing
    together: bool = False  # with all others, who were stopped as well: nobody has begun, and all begin in join_round
    alone: str = WAIT  # or TRAIN
    there: Callable[[int], frozenset[int]] | None = None  # nodes that should be there in a round; None: all, always
    description: str = ""  # of the data and of the model, which all nodes must have alike
    compare: Callable[[str], Sequence[str]] = lambda theirs: ()  # with another's: what differs, in words; or ValueError

    def planned(self, round: int) -> frozenset[int]:
        """Return the nodes that should be there in a round."""
        return frozenset(range(self.nodes)) if self.there is None else self.there(round)


def epoch_of(lives: Iterable[tuple[int, int]], over: Iterable[tuple[int, int]] = ()) -> int:
    """Return the epoch of these members, (node, life) each: 63 bits of a digest.

    `over`: lives that were and are no more. Both only ever grow, so that no epoch comes twice: a node that joins and
    dies leaves behind another epoch than the one it found, also for who has never heard of it in time.
    """
    text = " ".join(f"{node}:{life}" for node, life in sorted(lives))
    text += "".join(f" -{node}:{life}" for node, life in sorted(over))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(slots=True)
class Neighbor:
    """All that a node knows of one neighbour."""

    node: int
    life: int = 0
    sees_me: bool = False
    ready: bool = False  # it takes part in rounds
    left: bool = False
    finished: bool = False  # it left after the last round
    suspect: bool = False  # it answers no ping
    doubted: bool = False  # the membership suspects it
    away: bool = False  # it is no member
    begun: bool = False  # it had begun before we met
    round: int = 0
    since: int = 0  # the first round of a life that joined later; 0: it was there from the beginning, or is not known
    edge: Edge = field(default_factory=Edge)
    opened: float = 0.0
    pushed: int = 0  # the round of its latest push
    pushes: list[Side] = field(default_factory=list)  # not used yet, by round
    heard: float = 0.0
    hello: float = -1e9
    pinged: float | None = None  # since when a ping is unanswered
    last_ping: float = -1e9
    wants: int | None = None
    served: float = -1e9  # when it was last given this node's model
    asks: int = 0  # pings that it may yet answer
    excused: float = 0.0  # until when its messages get on, so that a round waits for it beyond the deadline ...
    counted: int = 0  # ... by so many bytes in this round

    @property
    def linked(self) -> bool:
        """Each has met the other's present life."""
        return self.life != 0 and self.sees_me and not self.left and not self.away

    @property
    def usable(self) -> bool:
        """Exchanges may be opened with it."""
        return self.linked and self.ready and not self.suspect and not self.doubted

    @property
    def pending(self) -> bool:
        """An exchange with it is open."""
        return self.usable and self.edge.phase != IDLE

    def store(self, side: Side) -> None:
        """Keep a push for the round it is for. RemoteError for what no honest peer says."""
        if side.round <= self.pushed:
            raise RemoteError("number", f"push of round {side.round} after that of {self.pushed}")
        self.pushed = side.round
        self.pushes.append(side)
        del self.pushes[:-KEPT]

    def keep_planned(self, epoch: int, plan: EpochPlan) -> None:
        """Drop pushes that came before their epoch began here, in rounds in which the schedule has none."""
        self.pushes = [s for s in self.pushes if s.epoch != epoch or self.node in plan.at(s.round).receives_from]

    def newest(self, round: int, epoch: int) -> Side | None:
        """Return the newest push of an epoch and of a round up to this one."""
        return next((side for side in reversed(self.pushes) if side.round <= round and side.epoch == epoch), None)

    def take(self, round: int) -> None:
        """Drop the push of this round, which has been used, and the older ones, which it makes up for."""
        self.pushes = [side for side in self.pushes if side.round > round]
