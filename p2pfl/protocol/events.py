"""What goes into a `Peer` and what comes out of it."""

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


class Trained(NamedTuple):
    """The local steps of the round are done.

    `payload`: what the neighbours shall get; with `Facts.per_edge` a mapping with what each of them shall get. `model`:
    for a neighbour that joins; None where it is the payload itself.
    """

    payload: Any
    model: Any = None


class Finished(NamedTuple):
    """The last `Advance` has been carried out."""


class Tick(NamedTuple):
    """Some time has passed."""


class Leave(NamedTuple):
    """The node shall leave in good order; `idle`: no `Trained` is to come any more."""

    idle: bool


Event = Start | Received | Refused | Trained | Finished | Tick | Leave

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

    `booked` holds at most one booking per neighbour and `Facts.slots` in all, but for the last Advance, which holds all
    there is. Before the training: the neighbours in `renew` have begun a new life; those in `speak` get a share.
    """

    finished: int
    booked: tuple[Booking, ...]
    waited: float
    next: int | None
    speak: tuple[int, ...] = ()
    renew: tuple[int, ...] = ()


class Adopt(NamedTuple):
    """Begin with a neighbour's model, from after its local steps in round `round`."""

    node: int
    life: int
    round: int
    payload: Any


class Note(NamedTuple):
    """Something that a person or the record should know. `about`: the node it is about."""

    event: str
    about: int
    round: int
    detail: str = ""


class Drop(NamedTuple):
    """A message was dropped."""

    reason: str
    detail: str


class Done(NamedTuple):
    """Nothing more will happen."""


Effect = Send | Advance | Adopt | Note | Drop | Done
