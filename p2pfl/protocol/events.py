"""Events that go into a `Peer` and effects that come out of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from p2pfl.protocol.exchange import Side
from p2pfl.protocol.messages import Envelope

# --- events: what happens to a node


class Start(NamedTuple):
    """The node is ready to train."""


class Received(NamedTuple):
    """A well-formed message came in."""

    envelope: Envelope


class Refused(NamedTuple):
    """A well-formed message came in whose payload can't be used."""

    envelope: Envelope


class Progressed(NamedTuple):
    """So many bytes of a large message have come in from a life of another node, or been acknowledged by it.

    `to`: the life of this node that the message is to or from.
    """

    node: int
    life: int
    to: int
    nbytes: int


class Trained(NamedTuple):
    """The local steps of the round are done.

    `payload`: what the neighbours shall get; with `Facts.per_edge` a mapping with what each of them shall get. `model`:
    for a neighbour that joins, or a mapping with what each shall get; None where it is the payload itself.
    """

    payload: Any
    model: Any = None


class Finished(NamedTuple):
    """The last `Advance` has been carried out."""


class Tick(NamedTuple):
    """Some time has passed."""


class Leave(NamedTuple):
    """Leave in good order. `idle`: no `Trained` is to come any more."""

    idle: bool


class Seen(NamedTuple):
    """A member, as the membership sees it.

    `round`: where it was when it last said so; 0: not begun. `gone`: it has left after the last round. `own`: the last
    round that this node has heard from itself, where `round` may be what others say; `own_at`: when that was.
    """

    node: int
    life: int
    suspect: bool = False
    round: int = 0
    gone: bool = False
    own: int | None = None  # None: as `round`
    own_at: float | None = None  # None: now


class Members(NamedTuple):
    """Everybody who is neither dead nor has left before the end, this node among them.

    `accused`: the life of this node that the others hold for dead, or a greater one that they know of; 0: none. It goes
    on as a life above that and above its own, with what it has. `over`: (node, life) of
    those that are no members any more: they are part of what tells one epoch from an earlier one of the same members.
    `left`: nodes of these that have left in good order, and are not expected any more. `ended`: (node, round) of the
    others, the round that it has last said it is in.
    """

    seen: tuple[Seen, ...]
    accused: int = 0
    over: tuple[tuple[int, int], ...] = ()
    left: tuple[int, ...] = ()
    ended: tuple[tuple[int, int], ...] = ()


class Admitted(NamedTuple):
    """There can be so many nodes now, with ids from 0 to nodes - 1: the federation has grown.

    Whoever vouches for that says it; no peer can. Fewer than before is no news: an id that was given stays given.
    """

    nodes: int


Event = Start | Received | Refused | Progressed | Trained | Finished | Tick | Leave | Members | Admitted

# --- effects: what a node shall do


class Send(NamedTuple):
    """Send a message to a neighbour; `envelope.payload` goes behind it as it is."""

    to: int
    envelope: Envelope


class Booking(NamedTuple):
    """An exchange with a neighbour, booked by both ends; or a push that came in, to which there is no side of mine."""

    node: int
    life: int
    number: int  # of the exchange; of a push its round
    mine: Side | None
    theirs: Side

    @property
    def opened(self) -> int:
        """The round it was opened in at this end; of a push, its round."""
        return self.mine.round if self.mine else self.theirs.round


class Advance(NamedTuple):
    """Mix what was booked in `finished`, then train in round `next`; None: no more.

    `booked` holds at most one booking per neighbour and `Plan.slots` in all; the last Advance of an epoch holds all
    there is. Before the training: with `members` a new epoch begins, in which this node's life is `life`; the
    neighbours in `speak` get a share of what is sent.
    """

    finished: int
    booked: tuple[Booking, ...]
    waited: float
    next: int | None
    speak: tuple[int, ...] = ()
    members: tuple[int, ...] | None = None  # None: the epoch goes on
    life: int = 0
    epoch: int = 0  # the name of the epoch that `next` is in: no other has it, in this run or in another


class Adopt(NamedTuple):
    """Begin with a neighbour's model, as it was after its local steps in round `round`."""

    node: int
    life: int
    round: int
    payload: Any


class Note(NamedTuple):
    """Something that a person or the record should know. `about`: the node it is about.

    `rounds`: that it has cost: not trained, or trained again.
    """

    event: str
    about: int
    round: int
    detail: str = ""
    rounds: int = 0


class Drop(NamedTuple):
    """A message was dropped."""

    reason: str
    detail: str


class Unfit(NamedTuple):
    """This node has other data or another model than more than half of its neighbours: it ends, for that reason."""

    reason: str


class Reborn(NamedTuple):
    """Tell the membership that this node goes on as this life, greater than the one before."""

    life: int


class Done(NamedTuple):
    """Nothing more will happen."""


Effect = Send | Advance | Adopt | Note | Drop | Reborn | Unfit | Done
