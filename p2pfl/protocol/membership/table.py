"""The table of members, and how two accounts of one are joined.

An entry is ordered by rank = (life, terminal, refutes, suspect): a greater life beats all of an earlier one; within a
life left beats dead beats everything else; a suspicion is beaten by an alive with more refutes. Only the member itself
raises its life or its refutes. `join` takes the greater, so tables form a join-semilattice: whatever the order in which
members hear of each other, and however often, they end with the same table. No alive ever beats a death of its life:
who has left a view comes back only as a greater life.

What `join` takes is held at once, but for what would end a life that is held as there: that is believed once the life
has been asked and does not answer, or says so itself (see `inquiry` and `roster`). No letter ends a life.

Where there are keys, an entry holds a statement that its member has signed (see `statement`): who suspects it or holds
it dead adds a word to that. So node, life, refutes, address and the length of a pause are the member's own, whoever
relays them, and of two entries the statement of the greater is taken whole.
"""

from __future__ import annotations

from typing import NamedTuple

ALIVE, SUSPECT, DEAD, LEFT = "alive", "suspect", "dead", "left"

STATES = (ALIVE, SUSPECT, DEAD, LEFT)
"""A state's place here is its number on the wire."""

NOBODY = -1
"""The accuser of an entry that accuses nobody."""


class Me(NamedTuple):
    """The identity of this node; `address` is where its membership socket listens, tcp://HOST:PORT.

    `nodes`: ids of the federation go from 0 to nodes - 1, where nobody says who is admitted; what names another is not
    heard.
    """

    node: int
    life: int
    address: str
    nodes: int = 1 << 31


class Member(NamedTuple):
    """An entry of this node's table. `round` is the last one heard of.

    `busy`: until when, by this node's clock, the member has announced a pause; 0 for none. `silent`: this node itself
    has asked it, and heard no answer; a suspect that is not silent is only talked about. `own`: the last round that it
    has said itself, where `round` may be hearsay, and `own_at` when, by this node's clock; 0: none.
    `pause` and `signature`: as in its entry.
    """

    node: int
    life: int
    refutes: int
    state: str
    address: str
    round: int
    busy: float
    silent: bool = False
    own: int = 0
    own_at: float = 0.0
    pause: int = 0
    signature: bytes = b""

    @property
    def present(self) -> bool:
        """Return whether it is neither dead nor has left."""
        return self.state in (ALIVE, SUSPECT)


class MemberEntry(NamedTuple):
    """An account of a member, as it travels.

    `said` counts what the member has said of `round` and of its pauses. `at`: a pause lasts until then (0: none), or
    a terminal state is known since then. `by`: who accuses. `signature`: the member's own, where there are keys;
    `pause`: milliseconds that a pause may last, as the member has signed it.
    """

    node: int
    life: int
    refutes: int
    state: str
    address: str
    said: int
    round: int
    at: float
    by: int
    pause: int = 0
    signature: bytes = b""

    @property
    def terminal(self) -> bool:
        """Return whether this life is over."""
        return self.state in (DEAD, LEFT)

    @property
    def member(self) -> Member:
        """The part for the owner of a table."""
        busy = 0.0 if self.terminal else self.at
        return Member(
            self.node, self.life, self.refutes, self.state, self.address, self.round, busy,
            pause=self.pause, signature=self.signature,
        )  # fmt: skip


def rank(entry: MemberEntry) -> tuple[int, int, int, bool]:
    """Return the rank by which one of two accounts of a member wins."""
    terminal = {DEAD: 1, LEFT: 2}.get(entry.state, 0)
    return entry.life, terminal, entry.refutes, entry.state == SUSPECT


def join(one: MemberEntry, other: MemberEntry) -> MemberEntry:
    """The least account of a member that holds what both say."""
    if one.life != other.life:
        return max(one, other, key=lambda entry: entry.life)
    first, second = rank(one), rank(other)
    if first == second:  # of one rank: the same, but for who accuses (and for two processes of one life)
        best = max(one, other, key=lambda entry: (entry.address, entry.pause, entry.signature))
        best = best._replace(by=min(one.by, other.by))
    else:
        best = one if first > second else other
    latest = one if one.said >= other.said else other
    at = latest.at
    if best.terminal:
        at = min(entry.at for entry in (one, other) if entry.terminal)
    return best._replace(said=latest.said, round=latest.round, at=at)
