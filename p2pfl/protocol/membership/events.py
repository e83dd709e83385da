"""Events that `Membership.handle` takes and effects that it returns."""

from __future__ import annotations

from typing import NamedTuple

from p2pfl.protocol.membership.table import Member, MemberEntry


class MemberStart(NamedTuple):
    """Begin: the socket listens."""


class Heard(NamedTuple):
    """A message came in. `by`: the member that the link has authenticated; None where links authenticate nobody."""

    data: bytes
    by: int | None = None


class Known(NamedTuple):
    """What an earlier process of this life knew: hearsay that nobody has to be asked for."""

    entries: tuple[MemberEntry, ...]


class Admit(NamedTuple):
    """These may be members, and nobody else; None: every id below `Me.nodes`.

    `revoked`: ids that were members and are none any more, of which no life ever counts. All nodes are to be told the
    same ids, since they are part of what an epoch is; whoever was admitted and is so no more is one in any case.
    """

    nodes: frozenset[int] | None
    revoked: frozenset[int] = frozenset()


class OwnDocument(NamedTuple):
    """The document of this node from now on: its own, or what came of it and a `Told`."""

    data: bytes


class Unwanted(NamedTuple):
    """What `by` has sent as its document, see `Told`, is none: nobody who sends it is heard, and `by` less often."""

    digest: bytes
    by: int


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


class MemberDied(NamedTuple):
    """This node has died, and what speaks for it has not: tell the others, then `Gone`. Who has left says nothing more.

    Nobody but a node's own membership can know: it says so of this life alone, and in answer to who asks.
    """


Event = (
    MemberStart
    | Heard
    | Known
    | MemberTick
    | Busy
    | Progress
    | MemberReborn
    | MemberAdmitted
    | MemberLeave
    | MemberDied
    | Admit
    | OwnDocument
    | Unwanted
)


class Say(NamedTuple):
    """Send these bytes to an address; they may be lost. `node`: whom they are for; None: whoever is at the address.

    The address dials://NODE is of a member that can't be dialled: they go by a connection that it has made.
    """

    address: str
    data: bytes
    node: int | None = None


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


class Expelled(NamedTuple):
    """This node is not admitted any more. It says nothing from now on."""


class Told(NamedTuple):
    """A member has another document. The way on is `OwnDocument`, with what comes of both, or `Unwanted`."""

    document: bytes
    by: int


class MemberDrop(NamedTuple):
    """A message was dropped. `blame`: its sender is to blame, and no third."""

    reason: str
    detail: str
    blame: bool = True


class Gone(NamedTuple):
    """The leaving, or the death, has been said: the socket may close."""


Effect = Say | Changed | Accused | Superseded | Conflict | Expelled | Told | MemberDrop | Gone
