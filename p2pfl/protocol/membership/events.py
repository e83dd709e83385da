"""Events that `Membership.handle` takes and effects that it returns."""

from __future__ import annotations

from typing import NamedTuple

from p2pfl.protocol.membership.table import Member


class MemberStart(NamedTuple):
    """Begin: the socket listens."""


class Heard(NamedTuple):
    """A message came in."""

    data: bytes


class MemberTick(NamedTuple):
    """Time has passed: something may be due."""


class Busy(NamedTuple):
    """This node will pause for up to so many seconds; 0: the pause is over."""

    seconds: float


class Progress(NamedTuple):
    """This node is in that round."""

    round: int


class MemberReborn(NamedTuple):
    """This node goes on as a new life, greater than any it was accused of."""

    life: int


class MemberAdmitted(NamedTuple):
    """There can be so many nodes now, with ids from 0 to nodes - 1: the federation has grown."""

    nodes: int


class MemberLeave(NamedTuple):
    """This node leaves for good: tell the others, then `Gone`."""


Event = MemberStart | Heard | MemberTick | Busy | Progress | MemberReborn | MemberAdmitted | MemberLeave


class Say(NamedTuple):
    """Send these bytes to an address; they may be lost."""

    address: str
    data: bytes


class Changed(NamedTuple):
    """The table has changed. A change of rounds alone is told once per period at most."""

    members: tuple[Member, ...]


class Accused(NamedTuple):
    """This node is held dead in `life`, its own or a greater one, first by `by` (-1: unknown).

    The way on is `MemberReborn` with a life above both. It comes three times at once, then once each `reborn_every`.
    """

    life: int
    by: int


class Superseded(NamedTuple):
    """A newer process runs as this node, elsewhere. This one says nothing any more."""

    life: int
    address: str


class Conflict(NamedTuple):
    """Two processes seem to run as `node`; the newer one is at `address`."""

    node: int
    address: str


class MemberDrop(NamedTuple):
    """A message was dropped."""

    reason: str
    detail: str


class Gone(NamedTuple):
    """The leaving has been said: the socket may close."""


Effect = Say | Changed | Accused | Superseded | Conflict | MemberDrop | Gone
