"""Events of the membership as the peer, the event log and the driver take them: the same for every driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from p2pfl.errors import LocalError
from p2pfl.protocol.events import Drop, Members, Note
from p2pfl.protocol.membership import events
from p2pfl.protocol.membership.table import Member
from p2pfl.protocol.view import view


class Standing(NamedTuple):
    """The standing of a node when its membership says something."""

    node: int
    round: int
    members: Callable[[], Sequence[Member]]  # all that the membership knows
    rounds: int  # of the run
    sync: str


def meaning(event: events.Effect, at: Standing) -> Members | Note | Drop | LocalError | None:
    """Return what an event of the membership means; None: nothing besides what a driver does with it.

    `Members` is for the peer, `Note` and `Drop` are for the event log; LocalError: this node must end.
    """
    match event:
        case events.Changed(members):
            return view(members, at.rounds, at.sync)
        case events.Accused(life):
            return view(at.members(), at.rounds, at.sync, accused=life)
        case events.Conflict(node, address):
            return Note("conflict", node, at.round, f"two processes say they are it; one at {address}")
        case events.MemberDrop(reason, detail):
            return Drop(reason, detail)
        case events.Superseded(_, address):
            text = f"has been started again at {address}; this process is the older"
            return LocalError(text, node=at.node, round=at.round, part="membership")
        case events.Expelled():
            text = "is no member of the federation any more: its other members have revoked it"
            return LocalError(text, node=at.node, round=at.round, part="membership")
    return None
