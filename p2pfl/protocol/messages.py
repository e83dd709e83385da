"""The messages of the protocol, and the envelope they travel in."""

from __future__ import annotations

from typing import Any, NamedTuple

VERSION = 5

BOOKED, VOID = "b", "v"
"""How an exchange ended."""


class Hello(NamedTuple):
    """A greeting: who I am and what I run; said until the other end has said it too.

    `sees`: the life of yours I have met, or 0. `schema`: digest of my description. `round`: where I am; 0 = not begun.
    """

    sees: int
    federation: str
    schema: str
    round: int


class Offer(NamedTuple):
    """My side of exchange `number`, with the payload behind it; `last` tells how the exchange before it ended."""

    number: int
    round: int
    last: str
    epoch: int


class Receipt(NamedTuple):
    """I hold your payload of exchange `number`."""

    number: int


class AskVoid(NamedTuple):
    """Let exchange `number` be void."""

    number: int


class Closed(NamedTuple):
    """Exchange `number` has ended so at my end."""

    number: int
    outcome: str


class Ping(NamedTuple):
    """Are you there, and where do we stand? `have`: I hold your payload of exchange `number`."""

    number: int
    have: bool
    last: str
    round: int


class Pong(NamedTuple):
    """The answer to a ping, with the same fields from my end."""

    number: int
    have: bool
    last: str
    round: int


class Want(NamedTuple):
    """Send me your model as soon as you have trained in round `round`."""

    round: int


class Model(NamedTuple):
    """A model that was wanted: mine after the local steps of round `round`, behind it. `digest`: of its bytes."""

    round: int
    digest: str


class Bye(NamedTuple):
    """I leave; start no exchange with me."""

    round: int


class Push(NamedTuple):
    """My payload of round `round` for you, behind it; no receipt is asked for."""

    round: int
    epoch: int


class Description(NamedTuple):
    """A piece of the description of my data and model, for one that runs others: `part` of `parts`, compressed.

    `heard`: I have all of yours.
    """

    part: int
    parts: int
    piece: bytes
    heard: bool


Message = Hello | Offer | Receipt | AskVoid | Closed | Ping | Pong | Want | Model | Bye | Push | Description

KINDS: tuple[type[Any], ...] = (
    Hello, Offer, Receipt, AskVoid, Closed, Ping, Pong, Want, Model, Bye, Push, Description,
)  # fmt: skip
"""A message's place here is its number on the wire: append only."""

CARRIERS = (Offer, Push, Model)
"""Messages with a payload behind them."""


class Envelope(NamedTuple):
    """A message with its sender's id and life, and the life of the receiver it is meant for (0: any)."""

    node: int
    life: int
    to: int
    message: Message
    payload: Any = None
