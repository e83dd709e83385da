"""Agreement: whether a neighbour means the same by its rows and its model, before anything is exchanged with it.

A greeting has the digest of what a node describes: its data, column by column, and the leaves of its model. Where the
digests differ, both ends tell each other the description, in pieces that fit headers; each compares it with its own and
knows in words what differs. Nothing is exchanged with who differs, and nobody waits for it. A node that has exchanged
nothing yet, and differs from more than half of its neighbours, does not belong here: it is `unfit`, and ends. So one
that differs ends, and takes nobody with it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from p2pfl.protocol.budget import Budget
from p2pfl.protocol.edges import Edges
from p2pfl.protocol.events import Drop
from p2pfl.protocol.messages import Description, Envelope
from p2pfl.protocol.neighbor import Neighbor
from p2pfl.protocol.state import PeerState

PIECE = 768
"""Bytes of a description in one message, which is a header."""

PIECES = 64
"""Of a description at most: 48 kB, compressed. What is longer is cut, and can't be compared in words."""

LONGEST = 1 << 20
"""Bytes of a description."""

_SAID, _WIDE, _KEPT = 12, 300, 1000
"""Differences that are said of one neighbour, characters of each, and differences that are counted."""

_COMPARED = 1.0, 8.0
"""Descriptions that are compared: a second for long, and at once."""


def pack(description: str) -> bytes:
    """Return a description as it travels."""
    return zlib.compress(description.encode(), 9)


def unpack(packed: bytes) -> str:
    """Return what was packed. Raises ValueError for what never was."""
    bounded = zlib.decompressobj()
    try:
        text = bounded.decompress(packed, LONGEST)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not bounded.eof:
        raise ValueError("cut off, or too long")
    return text.decode()


def digest(packed: bytes) -> str:
    """Return what a greeting has of a description: 32 hex digits."""
    return hashlib.blake2b(packed, digest_size=16).hexdigest()


def printable(line: str) -> str:
    """Cut what another node has written, and let no terminal obey it."""
    return "".join(char if char.isprintable() else "?" for char in line[:_WIDE])


def said(lines: Sequence[str]) -> str:
    """Return what differs in one line, which is not longer than a person reads."""
    more = len(lines) - _SAID
    return "; ".join((*lines[:_SAID], *((f"and {more} more",) if more > 0 else ())))


@dataclass(slots=True)
class Other:
    """A neighbour's life that differs."""

    life: int
    since: float
    told: float = -1e9  # when it was last told this node's description
    parts: int = 0
    pieces: dict[int, bytes] = field(default_factory=dict)
    lines: tuple[str, ...] | None = None  # what differs, in words; None: not known yet
    heard: bool = False  # it has this node's description

    @property
    def done(self) -> bool:
        """Both ends know."""
        return self.heard and self.lines is not None


class Agreement:
    """Know who differs, and in what. It changes no stage: that is up to `Peer`."""

    def __init__(self, state: PeerState, edges: Edges) -> None:
        self._state, self._edges = state, edges
        self._others: dict[int, Other] = {}
        self._budget = Budget(*_COMPARED, state.now)

    def differs(self, node: int) -> bool:
        """Return whether a member's present life is known to differ; what is said in another name means nothing."""
        other, seen = self._others.get(node), self._state.seen.get(node)
        return other is not None and seen is not None and seen.life == other.life

    def agrees(self, node: int, life: int) -> None:
        """A node has the same: whatever has been said before, it was not from this life of it."""
        other = self._others.get(node)
        if other is not None and other.life == life:
            del self._others[node]

    def settled(self, node: int) -> bool:
        """Return whether a node differs, and both know in what; or have had time to say so."""
        if not self.differs(node):
            return False
        other, patience = self._others[node], 2 * self._state.facts.timing.silence
        return other.done or self._state.now - other.since >= patience

    def meet(self, node: int, life: int) -> None:
        """A node differs: tell it what this one has. What it has comes from it likewise."""
        if not self._is_known(node, life):
            self._others[node] = Other(life, self._state.now)
            text = f"node {node} has other data, or another model; it is asked which"
            self._state.out.append(Drop("schema", text))
        self.remind()

    def _is_known(self, node: int, life: int) -> bool:
        """Return whether there is nothing to be learnt of this life: it differs, or another life is the member's."""
        other = self._others.get(node)
        return other is not None and (other.life == life or self.differs(node))

    def remind(self) -> None:
        """Tell those that have not got this node's description yet, every now and then."""
        state = self._state
        for node, other in self._others.items():
            if not other.done and self.differs(node) and state.now - other.told >= state.facts.timing.hello_every:
                self._tell(node, other)

    def _tell(self, node: int, other: Other) -> None:
        other.told, packed = self._state.now, pack(self._state.facts.description)
        pieces = [packed[at : at + PIECE] for at in range(0, len(packed), PIECE)][:PIECES]
        for part, piece in enumerate(pieces):
            heard = other.lines is not None
            self._state.send(Neighbor(node, other.life), Description(part, len(pieces), piece, heard))

    def hear(self, envelope: Envelope) -> None:
        """A piece of the description of one that differs has come."""
        message, state, node = envelope.message, self._state, envelope.node
        assert isinstance(message, Description)
        neighbor = state.neighbors.get(node)
        if neighbor is not None and neighbor.life == envelope.life:  # it has said hello, and has the same
            return
        if not self._is_known(node, envelope.life):
            self.meet(node, envelope.life)
        other = self._others[node]
        if other.life != envelope.life or not 0 <= message.part < message.parts <= PIECES:
            return
        other.heard = other.heard or message.heard
        if other.lines is not None:
            if not message.heard and state.now - other.told >= state.facts.timing.hello_every:
                self._tell(node, other)
            return
        if other.parts != message.parts:
            other.parts, other.pieces = message.parts, {}
        other.pieces[message.part] = message.piece
        if len(other.pieces) == other.parts:
            packed = b"".join(other.pieces[part] for part in range(other.parts))
            if digest(packed) == state.facts.schema:  # somebody has told it in this node's name that they differ
                self.agrees(node, envelope.life)
                return
            if not self._budget.take(state.now):  # it is told again, and then there may be time
                return
            try:
                found = state.facts.compare(unpack(packed))
            except (ValueError, RecursionError) as error:
                found = (f"its description can't be read ({error})",)
            other.lines = tuple(printable(line) for line in found[:_KEPT]) or ("it says nothing that differs",)
            other.pieces = {}
            state.note("differs", node, self._said(other))
            self._tell(node, other)

    @property
    def unfit(self) -> str:
        """Return why this node does not belong here; nothing where it may."""
        state = self._state
        if not self._others or self._edges.booked:
            return ""
        unlike = [node for node in state.plan.neighbors if self.differs(node)]
        if 2 * len(unlike) <= len(state.plan.neighbors):
            return ""
        if not all(map(self.settled, unlike)):
            return ""
        return "\n".join(f"node {node}: {self._said(self._others[node])}" for node in unlike)

    @staticmethod
    def _said(other: Other) -> str:
        if other.lines is None:
            return "has other data, or another model; it did not say which"
        return said(other.lines)
