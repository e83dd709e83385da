"""Gossip: each entry is told a bounded number of times, those told least first.

Source: Das, Gupta, Motivala, "SWIM: scalable weakly-consistent infection-style process group membership protocol",
DSN 2002, section 4.1.
"""

from __future__ import annotations

import math

from p2pfl.protocol.membership.table import MemberEntry


def limit(retransmit: int, n: int) -> int:
    """Return how often an entry is told among n members: retransmit x ceil(log10(n + 1))."""
    return retransmit * math.ceil(math.log10(n + 1))


class Spread:
    """Entries to tell, one for each member: what is newer replaces what is older."""

    def __init__(self) -> None:
        self._told: dict[int, tuple[int, int]] = {}  # times told, minus its order
        self._entries: dict[int, MemberEntry] = {}
        self._order = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, node: int) -> bool:
        return node in self._entries

    def put(self, entry: MemberEntry) -> None:
        """Tell this of its member from now on."""
        self._order += 1
        self._entries[entry.node] = entry
        self._told[entry.node] = (0, -self._order)

    def drop(self, node: int) -> None:
        """Tell no more of a member."""
        self._entries.pop(node, None)
        self._told.pop(node, None)

    def take(self, most: int, count: int) -> list[MemberEntry]:
        """Up to `count` entries for one message, the least told and then the newest first; at `most` they are done."""
        chosen = sorted(self._told, key=self._told.__getitem__)[:count]
        found = [self._entries[node] for node in chosen]
        for node in chosen:
            told, order = self._told[node]
            if told + 1 >= most:
                del self._told[node], self._entries[node]
            else:
                self._told[node] = (told + 1, order)
        return found
