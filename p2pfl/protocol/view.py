"""From what the membership says to what a `Peer` is told."""

from __future__ import annotations

from collections.abc import Iterable

from p2pfl.protocol.events import Members, Seen
from p2pfl.protocol.membership.table import LEFT, SUSPECT, Member
from p2pfl.protocol.neighbor import ASYNC


def view(table: Iterable[Member], rounds: int, sync: str, accused: int = 0) -> Members:
    """Return who is there and whose life is over, of a whole table. `accused`: as in `Members`.

    A suspect counts as one once it has left this node's own questions unanswered: talk alone makes nobody wait less.

    Who has left after its last round counts as there: the others still have a round or two to go, and need no new graph
    for that. Without a barrier they may have many.
    """
    there, over, left, dead = [], [], [], []
    for member in sorted(table):
        finished = member.state == LEFT and member.round >= rounds and sync != ASYNC
        if member.present or finished:
            suspect = member.state == SUSPECT and member.silent
            there.append(Seen(member.node, member.life, suspect, member.round, finished, member.own, member.own_at))
        else:
            over.append((member.node, member.life))
            left += [member.node] if member.state == LEFT else []
            dead += [(member.node, min(member.round, rounds))] if member.state != LEFT else []
    return Members(tuple(there), accused, tuple(over), tuple(left), tuple(dead))
