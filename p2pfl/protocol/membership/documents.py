"""The document of this node, such as the records of a federation: who is told it, and whose is taken in.

Its bytes mean nothing here. Every message has the digest of its sender's document; whoever hears another one than its
own tells the sender its document, so that both end with what comes of the two. What a merge makes is told to a few at
once. How often: one member once in `_EVERY` periods of probing, the less often the more often it was told the same in
vain (two that can't agree cost little), and all together once in a period and so many bytes a second. What a member may
send is bounded in the same way.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from p2pfl.protocol.budget import Budget
from p2pfl.protocol.membership.events import Told
from p2pfl.protocol.membership.wire import DIGEST

_EVERY = 5
"""Periods of probing from one time that a member is told to the next."""

_AT_ONCE = 4.0
"""Members that are told at once; for long, one in a period of probing."""

_DOUBLINGS = 6
"""Told the same so often in vain, a member is told 64 times less often."""

_BYTES = float(1 << 19), float(1 << 20)
"""Told to all members together: a second for long, and at once."""

_SENDS = 4.0
"""Documents that a member may send at once; for long, twice as many as it would tell."""

_UNWANTED = 8.0
"""A document that is none counts as so many more."""

_REFUSED = 256
"""Documents that are none and are remembered."""


class Sent(NamedTuple):
    """The last time that a member was told."""

    at: float
    pair: tuple[bytes, bytes]  # digests: what it was told, and what it had
    times: int


class Documents:
    """See the module. `data`: b"" for none, and then nobody is told and none is taken in."""

    def __init__(self, data: bytes, interval: float) -> None:
        self.data, self.digest = data, digest(data)
        self._every = _EVERY * interval
        self._sent: dict[int, Sent] = {}
        self._bytes, self._times = Budget(*_BYTES, 0.0), Budget(1 / interval, _AT_ONCE, 0.0)
        self._sends: dict[int, Budget] = {}  # of each member
        self._passed: dict[bytes, float] = {}  # digests that the owner was told, and when
        self._refused: dict[bytes, None] = {}

    def put(self, data: bytes) -> bool:
        """Take up another document of this node; returns whether it is another."""
        before, self.data, self.digest = self.digest, data, digest(data)
        return self.digest != before

    def tells(self, node: int, theirs: bytes, now: float) -> bool:
        """Return whether a member that has the document `theirs` is told this one now; it then counts as told."""
        if not self.data or theirs == self.digest:
            return False
        last, pair = self._sent.get(node), (self.digest, theirs)
        times = last.times + 1 if last is not None and last.pair == pair else 0
        if last is not None and now < last.at + self._every * (1 << min(max(times - 1, 0), _DOUBLINGS)):
            return False
        if not (self._bytes.left(now) and self._times.take(now)):
            return False
        self._bytes.spend(float(len(self.data)))
        self._sent[node] = Sent(now, pair, times)
        return True

    def came(self, told: Told, theirs: bytes, now: float) -> str | None:
        """Return why what a member has sent is not taken in, in a word; "" when it is not needed, None when it is.

        `theirs`: the digest that came with it.
        """
        sends = self._sends.setdefault(told.by, Budget(2 / self._every, _SENDS, now))
        if not sends.left(now):
            return "flood"
        sends.spend(1.0)
        if digest(told.document) != theirs or theirs in self._refused:
            sends.spend(_UNWANTED)
            return "document"
        if not self.data or theirs == self.digest or now < self._passed.get(theirs, -self._every) + self._every:
            return ""
        for passed in [each for each, at in self._passed.items() if now >= at + self._every]:
            del self._passed[passed]
        self._passed[theirs] = now
        return None

    def refuse(self, theirs: bytes, by: int) -> None:
        """The owner finds that what a member has sent is none."""
        while len(self._refused) >= _REFUSED:
            del self._refused[next(iter(self._refused))]
        self._refused[theirs] = None
        if by in self._sends:
            self._sends[by].spend(_UNWANTED)

    def forget(self, node: int) -> None:
        """A member is none any more."""
        self._sent.pop(node, None)
        self._sends.pop(node, None)


def digest(document: bytes) -> bytes:
    """Return the digest of a document; b"" where there is none."""
    return hashlib.blake2b(document, digest_size=DIGEST).digest() if document else b""
