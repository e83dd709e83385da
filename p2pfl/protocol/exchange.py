"""The double-entry exchange on one edge: booked by both ends or by neither.

An end of an edge is the value `Edge`; what happens to it are the pure functions below, which return the new end and
what to say. Exchanges are numbered per edge; an edge has one open exchange at a time.

    idle --open--> open --(payload and receipt)--> booked: number + 1, idle
                    |
                    `--ask--> asking --(the peer's answer)--> booked or void: number + 1, idle

What the ends have opened in different epochs of the membership is void when both hold both sides: their weights, and
the sums that hold within an epoch, would not fit.

An end books by itself only when it holds the peer's payload and the peer's receipt for its own. An end that asks for a
void no longer books by itself: the peer grants (void at both ends) unless it has booked, which it could only do with
the asker's receipt, so that the asker can then book too. The rules are explored exhaustively in tests/test_exchange.py.
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar

from p2pfl.errors import RemoteError
from p2pfl.protocol.messages import BOOKED, VOID, AskVoid, Closed, Message, Offer, Ping, Pong, Receipt

IDLE, OPEN, ASKING = "idle", "open", "asking"


P = TypeVar("P")


class Side(NamedTuple, Generic[P]):
    """One end's part of an exchange, and the epoch in which it was made.

    The payload of this node's side is as the driver made it (`events.Trained`), that of the peer's as it came in.
    """

    payload: P
    round: int
    epoch: int = 0


class Edge(NamedTuple):
    """One end of an edge."""

    number: int = 0  # of the current exchange
    phase: str = IDLE
    mine: Side[Any] | None = None
    theirs: Side[Any] | None = None  # the peer's side of the current exchange, once it is here
    receipt: bool = False  # the peer has mine
    last: str = ""  # how exchange number - 1 ended
    forsaken: bool = False  # ... at this end alone


class Ended(NamedTuple):
    """An exchange that ended at this end. `mine` and `theirs` are both there when it is booked."""

    number: int
    outcome: str
    mine: Side[Any] | None
    theirs: Side[Any] | None


class Step(NamedTuple):
    """The effect of an event on an end: the end now, what to say (an Offer takes `edge.mine`), what has ended."""

    edge: Edge
    say: tuple[Message, ...] = ()
    ended: tuple[Ended, ...] = ()


def open(edge: Edge, mine: Side[Any]) -> Step:
    """Begin exchange `edge.number`; only on an idle edge."""
    if edge.phase != IDLE:
        raise ValueError(f"open: exchange {edge.number} is {edge.phase}; an edge has one open exchange")
    edge = edge._replace(phase=OPEN, mine=mine)
    return _booked_if_due(edge, (_offer(edge),))


def ask(edge: Edge) -> Step:
    """Ask for a void of the open exchange: it has become older than its algorithm stands."""
    if edge.phase != OPEN:
        return Step(edge)
    return Step(edge._replace(phase=ASKING), (AskVoid(edge.number),))


def ping(edge: Edge) -> Ping:
    """Return where this end stands, as a question."""
    return Ping(edge.number, edge.theirs is not None, edge.last, 0)


def receive(edge: Edge, message: Message, side: Side[Any] | None = None) -> Step:
    """Return what a message does to this end; `side` comes with an Offer. RemoteError for what no honest peer says."""
    match message:
        case Offer():
            return _on_offer(edge, message, side)
        case Receipt(number):
            _no_future(edge, number)
            return _booked_if_due(_receipted(edge), ()) if number == edge.number else Step(edge)
        case AskVoid(number):
            _no_future(edge, number)
            if number != edge.number:
                return Step(edge, (_told(edge, number),) if number < edge.number else ())
            new, ended = _resolve(edge, VOID)
            return Step(new, (Closed(number, VOID),), ended)
        case Closed(number, outcome):
            return _on_result(edge, number, outcome)
        case Ping(number, have, last):
            step = _on_standing(edge, number, have, last)
            return step._replace(say=(*step.say, Pong(*ping(step.edge))))
        case Pong(number, have, last):
            return _after_loss(_on_standing(edge, number, have, last), number, have)
    raise ValueError(f"receive: {type(message).__name__} is not about an exchange")


def refuse(edge: Edge, message: Offer) -> Step:
    """Refuse an Offer whose payload can't be used: no receipt, and a void is asked for. The peer can't have booked."""
    _no_future(edge, message.number)
    ended: tuple[Ended, ...] = ()
    if message.number == edge.number + 1:
        edge, ended = _resolve(edge, message.last)
    if message.number < edge.number:
        return Step(edge, (_told(edge, message.number),), ended)
    return Step(edge._replace(phase=ASKING), (AskVoid(edge.number),), ended)


def forsake(edge: Edge) -> Step:
    """Void the open exchange at this end alone: a new epoch begins, and the peer, silent but not dead, can't be asked.

    Should it have booked, that is residue, found by whoever sees the records of both ends.
    """
    if edge.phase == IDLE:
        return Step(edge)
    new, ended = _resolve(edge, VOID)
    return Step(new._replace(forsaken=True), (), ended)


def broken(edge: Edge) -> tuple[Ended, ...]:
    """Return what ends with the peer's life: what is unresolved is void here.

    The peer may have booked it: that is residue, found by whoever sees the records of both ends.
    """
    return () if edge.phase == IDLE else (Ended(edge.number, VOID, edge.mine, edge.theirs),)


def _offer(edge: Edge) -> Offer:
    assert edge.mine is not None
    return Offer(edge.number, edge.mine.round, edge.last, edge.mine.epoch)


def _told(edge: Edge, number: int) -> Closed:
    """Say how an earlier exchange ended. Links keep order, so a question can only be about the last one."""
    if number != edge.number - 1:
        raise RemoteError("number", f"exchange {number} is long over; this end is at {edge.number}")
    return Closed(number, edge.last)


def _no_future(edge: Edge, number: int) -> None:
    """The ends are never more than one apart. What is ahead and neither an Offer nor a standing has overtaken what was
    lost before it: it changes nothing, and the next ping tells."""
    if number > edge.number + 1:
        raise RemoteError("number", f"exchange {number} from the future; this end is at {edge.number}")


def _receipted(edge: Edge) -> Edge:
    """The peer has mine. A receipt in advance would book what it does not have, without ever sending it."""
    if edge.mine is None:
        raise RemoteError("booking", f"exchange {edge.number}: a receipt for what was never offered")
    return edge._replace(receipt=True)


def _resolve(edge: Edge, outcome: str) -> tuple[Edge, tuple[Ended, ...]]:
    if outcome == BOOKED and (edge.theirs is None or edge.mine is None):
        raise RemoteError("booking", f"exchange {edge.number} is said to be booked, but was never whole here")
    if outcome not in (BOOKED, VOID):
        raise RemoteError("booking", f"exchange {edge.number} ended without an outcome")
    ended = Ended(edge.number, outcome, edge.mine, edge.theirs)
    return Edge(number=edge.number + 1, last=outcome), (ended,)


def _booked_if_due(edge: Edge, say: tuple[Message, ...], ended: tuple[Ended, ...] = ()) -> Step:
    if edge.phase == OPEN and edge.theirs is not None and edge.receipt:
        assert edge.mine is not None
        edge, more = _resolve(edge, BOOKED if edge.mine.epoch == edge.theirs.epoch else VOID)
        ended = ended + more
    return Step(edge, say, ended)


def _on_offer(edge: Edge, message: Offer, side: Side[Any] | None) -> Step:
    _no_future(edge, message.number)
    ended: tuple[Ended, ...] = ()
    if message.number == edge.number + 1:  # the peer has resolved the current one; its offer says how
        edge, ended = _resolve(edge, message.last)
    if message.number < edge.number:
        return Step(edge, (_told(edge, message.number),), ended)
    return _booked_if_due(edge._replace(theirs=side), (Receipt(edge.number),), ended)


def _on_result(edge: Edge, number: int, outcome: str) -> Step:
    _no_future(edge, number)
    if number == edge.number:
        new, ended = _resolve(edge, outcome)
        return Step(new, (), ended)
    if number == edge.number - 1 and edge.last != outcome and not edge.forsaken:
        raise RemoteError("booking", f"exchange {number} ended {edge.last!r} here, {outcome!r} there")
    return Step(edge)


def _on_standing(edge: Edge, number: int, have: bool, last: str) -> Step:
    """The peer says where it stands."""
    _no_future(edge, number)
    if number == edge.number + 1:
        new, ended = _resolve(edge, last)
        return Step(new, (), ended)
    if number == edge.number and have:
        return _booked_if_due(_receipted(edge), ())
    return Step(edge)


def _after_loss(step: Step, number: int, have: bool) -> Step:
    """An answer to my ping came behind all I had said before it on a link that keeps order: what it lacks was lost."""
    edge = step.edge
    behind = number < edge.number or (number == edge.number and not have)
    if not behind or edge.phase == IDLE or edge.mine is None:
        again: tuple[Message, ...] = (AskVoid(edge.number),) if edge.phase == ASKING and number <= edge.number else ()
        return step._replace(say=(*step.say, *again))
    void = (AskVoid(edge.number),) if edge.phase == ASKING else ()
    return step._replace(say=(*step.say, _offer(edge), *void))
