"""The event log of one node: what its `Peer` notes, and of what it drops the first of each kind and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from p2pfl.protocol.events import Drop, Note
from p2pfl.protocol.presence import UNASKED

_DETAILS = 10
"""Dropped messages that are written down one by one, for each reason; all are counted."""


class EventLog:
    """Decides what is written down. `write` takes (event, about, round, detail, rounds), as in `Note`."""

    def __init__(self, node: int, write: Callable[[str, int, int, str, int], None]) -> None:
        self._node, self._write = node, write
        self._alone = False
        self.dropped: Counter[str] = Counter()

    @property
    def useless(self) -> int:
        """Messages that were dropped and are their senders' fault: an answer is not, which another has asked for."""
        return self.dropped.total() - self.dropped[UNASKED]

    def note(self, note: Note) -> bool:
        """Write it down; return False for what is in the metrics anyway: another round in which nothing arrived."""
        if note.event == "alone" and note.about == self._node:
            if self._alone:
                return False
            self._alone = True
        self._write(note.event, note.about, note.round, note.detail, note.rounds)
        return True

    def drop(self, drop: Drop, round: int) -> bool:
        """Count it; return whether it was written down."""
        self.dropped[drop.reason] += 1
        few = self.dropped[drop.reason] <= _DETAILS
        if few:
            self._write("dropped", self._node, round, f"{drop.reason}: {drop.detail}", 0)
        return few
