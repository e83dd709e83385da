"""What a member says of itself, as it signs it; and which signatures of others this node takes for good.

A statement is (node, life, refutes, alive or left, address, length of a pause) of one cluster: what others could use
to end a life, to move it or to keep a dead one on the list. An entry travels with the latest statement of its member;
that it is suspect, or dead, is said by others beside it. Rounds, and how long a pause still lasts, are not signed: they
change with every round and every hop. A relay that lies about them is believed no further than this: a pause ends
early, or lasts once as long as it was signed for; a round of hearsay is shown to people and makes no majority; and the
member, who hears of it, says it again as its latest word.

How to sign and to verify is handed in: nothing here knows of keys. Each signature is checked once. A link may bring so
many that are new; and so many that are wrong, after which it is not believed for a while. Who passes on what members
sign in floods is not to blame for that.
"""

from __future__ import annotations

from collections.abc import Callable

import msgpack

from p2pfl.protocol.budget import Budget
from p2pfl.protocol.membership.table import LEFT, MemberEntry
from p2pfl.protocol.membership.wire import ENTRY_CAP

Sign = Callable[[bytes], bytes]
"""Takes a statement of this node; its signature."""

Verify = Callable[[int, bytes, bytes], bool]
"""Takes a node, a statement and a signature; whether that node has signed it."""

CHECKS = 100.0, 512.0
"""New signatures that a link may bring: a second for long, and at once. Of a larger table the rest comes by others."""

WRONGS = 3.0, 64.0
"""Wrong ones: a second for long, and at once. After that none is looked at that is new."""

_KNOWN = 4 * ENTRY_CAP
"""Signatures that were found good and are remembered."""


def statement(cluster: str, entry: MemberEntry) -> bytes:
    """Return what the member of an entry has signed: the same bytes for an alive one, a suspect and a dead one."""
    left = entry.state == LEFT
    data: bytes = msgpack.packb(
        ["member", cluster, entry.node, entry.life, entry.refutes, left, entry.address, entry.pause]
    )
    return data


class Signatures:
    """Signs what this node says of itself, and checks what others are said to have said of themselves."""

    def __init__(self, cluster: str, sign: Sign | None, verify: Verify | None) -> None:
        self._cluster, self._sign, self._verify = cluster, sign, verify
        self._own = b"", b""  # the latest statement of this node, and its signature
        self._known: dict[tuple[bytes, bytes], None] = {}
        self._checks: dict[int, tuple[Budget, Budget]] = {}  # of each link: of new ones, and of wrong ones

    @property
    def there(self) -> bool:
        """There are keys."""
        return self._sign is not None

    def signed(self, entry: MemberEntry) -> MemberEntry:
        """Return what this node says of itself with its signature, where there are keys."""
        if self._sign is None:
            return entry
        said = statement(self._cluster, entry)
        if said != self._own[0]:
            self._own = said, self._sign(said)
        return entry._replace(signature=self._own[1])

    def wrong(self, entry: MemberEntry, by: int, now: float) -> str:
        """Return why an entry that came by the link of a member is not heard; "" where it is.

        `signature`: it is wrong, or by a link that has brought too many wrong ones; `checks`: one new one too many.
        """
        if self._verify is None:
            return ""
        said = statement(self._cluster, entry)
        if (said, entry.signature) == self._own or (said, entry.signature) in self._known:
            return ""
        checks, wrongs = self._checks.setdefault(by, (Budget(*CHECKS, now), Budget(*WRONGS, now)))
        if not wrongs.left(now):
            return "signature"
        if not checks.take(now):
            return "checks"
        if not entry.signature or not self._verify(entry.node, said, entry.signature):
            wrongs.spend(1.0)
            return "signature"
        while len(self._known) >= _KNOWN:
            del self._known[next(iter(self._known))]
        self._known[said, entry.signature] = None
        return ""

    def forget(self, node: int) -> None:
        """A member is none any more."""
        self._checks.pop(node, None)
