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
    """The local steps of the round are done; `payload` is what the neighbours shall get."""

    payload: Any


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
    """An exchange with a neighbour, booked by both ends."""

    node: int
    life: int
    number: int
    mine: Side
    theirs: Side
    age: int


class Advance(NamedTuple):
    """Mix what was booked in `finished`, then train in round `next`; None: no more."""

    finished: int
    booked: tuple[Booking, ...]
    waited: float
    next: int | None


class Adopt(NamedTuple):
    """Take over a neighbour's model, its payload of round `round`."""

    node: int
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
