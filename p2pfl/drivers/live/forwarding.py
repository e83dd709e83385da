"""Messages between two that nobody can call: sealed from end to end, and forwarded by a member that both have called.

Whoever forwards reads who it is from and whom it is for, and how long it is; not what it holds. A member cannot
make one up in another's name, change one, or have one taken twice: each is sealed between the keys of its two ends, and
counted. (It may drop or delay what it forwards: that happens to any message, and the exchange stands it.)
"""

from __future__ import annotations

import secrets
import struct
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from nacl import bindings
from nacl.exceptions import CryptoError

from p2pfl.drivers.live.listener import Arrived, Listener, Volume
from p2pfl.drivers.live.zmtp import Limits
from p2pfl.errors import RemoteError
from p2pfl.protocol.budget import Budget
from p2pfl.trust.keyring import Keyring

MARK = b"\xc1r"
"""What the first frame begins with: no header of a message does, nor of a piece of one."""

_HEAD = struct.Struct(">2sII")
_INSIDE = struct.Struct(">QQHH")
_NONCE, _MAC = 24, 16

SEALED = _NONCE + _MAC + _INSIDE.size
"""Bytes that a frame gets longer."""

HEAD = _HEAD.size
"""Bytes of the frame that is more."""

FORWARDED = -1
"""The link of what came in by way of another."""

_SILENT = 5.0
"""Seconds without a word after which another way is tried."""

_NODES = 4096
"""Nodes whose counts are kept."""

_USELESS = 20.0, 200.0
"""Messages of a node by way of others that may be of no use: a second for long, and at once."""


def widened(limits: Limits) -> Limits:
    """Return what a message may be so that one of these limits can be forwarded."""
    more = (limits.frames + 1) * SEALED
    return Limits(limits.frame + SEALED, limits.frames + 1, limits.message + more)


class Ends(NamedTuple):
    """Between whom a message goes."""

    sender: int
    to: int


def is_forwarded(frames: Sequence[Any]) -> bool:
    """Return whether a message is one that is forwarded."""
    return len(frames[0]) == HEAD and bytes(memoryview(frames[0])[:2]) == MARK


def ends(frames: Sequence[Any]) -> Ends:
    """Return between whom it goes."""
    _, sender, to = _HEAD.unpack(bytes(frames[0]))
    return Ends(sender, to)


class Forwarder:
    """What one node says to, and hears of, those that it can't be in touch with itself."""

    def __init__(self, keyring: Keyring, life: int, volume: Volume | None = None) -> None:
        """`life`: greater than that of any earlier process of the node. `volume`: that is forwarded from one node to
        another; None: what may come from the node is bound enough.
        """
        self._keyring, self._life, self._sent = keyring, life, 0
        self._volume = volume
        self._between: dict[Ends, Budget] = {}  # what may still be forwarded
        self._taken: dict[int, tuple[int, int]] = {}  # life and count of the last, by node
        self._useless: dict[int, Budget] = {}
        self._ways: dict[int, tuple[int, float]] = {}  # by way of whom something came from a node, and when
        self.forwarded: Counter[Ends] = Counter()  # bytes that this node has forwarded, by whom they were between

    def admit(self, keyring: Keyring) -> None:
        """Take other keys from now on."""
        self._keyring = keyring
        for each in [each for each in self._between if None in (keyring.key_of(each.sender), keyring.key_of(each.to))]:
            del self._between[each]

    def allow(self, nbytes: float) -> None:
        """Let so many more bytes be forwarded between each two."""
        for budget in self._between.values():
            budget.add(nbytes)

    def seal(self, to: int, frames: Sequence[Any]) -> list[bytes] | None:
        """Return a message as it is forwarded; None: there is no such member."""
        shared = self._shared(to)
        if shared is None:
            return None
        self._sent += 1
        sealed = [_HEAD.pack(MARK, self._keyring.node, to)]
        for index, frame in enumerate(frames):
            nonce = secrets.token_bytes(_NONCE)
            inside = _INSIDE.pack(self._life, self._sent, index, len(frames)) + bytes(memoryview(frame))
            sealed.append(nonce + bindings.crypto_box_easy_afternm(inside, nonce, shared))
        return sealed

    def open(self, frames: Sequence[Any], now: float) -> tuple[int, list[memoryview]]:
        """Return whose message it is, and what it holds. Raises RemoteError."""
        sender, to = ends(frames)
        shared = self._shared(sender)
        if shared is None or to != self._keyring.node:
            raise RemoteError("stranger", f"forwarded for node {to}, from node {sender}")
        if not self._useless.setdefault(sender, Budget(*_USELESS, now)).left(now):
            raise RemoteError("flood", f"of node {sender}, by way of others: too many that are of no use")
        opened, stamp = [], None
        for index, frame in enumerate(frames[1:]):
            data = bytes(memoryview(frame))
            try:
                inside = bindings.crypto_box_open_easy_afternm(data[_NONCE:], data[:_NONCE], shared)
                life, count, at, many = _INSIDE.unpack_from(inside)
            except (CryptoError, ValueError, struct.error) as error:
                raise RemoteError("encryption", f"forwarded from node {sender}: does not open") from error
            if (at, many) != (index, len(frames) - 1) or stamp not in (None, (life, count)):
                raise RemoteError("encryption", f"forwarded from node {sender}: of several messages")
            stamp = life, count
            opened.append(memoryview(inside)[_INSIDE.size :])
        if stamp is None or stamp <= self._taken.get(sender, (0, 0)):
            raise RemoteError("replay", f"forwarded from node {sender}: it has come before, or out of its order")
        if sender in self._taken or len(self._taken) < _NODES:
            self._taken[sender] = stamp
        return sender, opened

    def blame(self, sender: int, now: float) -> None:
        """A message of a node was of no use."""
        self._useless.setdefault(sender, Budget(*_USELESS, now)).spend(1)

    def take(self, message: Arrived, listener: Listener, now: float) -> Arrived | None:
        """Return what came in by way of another; None: it was for another, and is on its way. Raises RemoteError."""
        sender, to = ends(message.frames)
        nbytes = sum(len(memoryview(frame)) for frame in message.frames)
        if to == self._keyring.node:
            sender, frames = self.open(message.frames, now)
            self._count(Ends(sender, to), message.node, nbytes, listener, now)
            self._ways[sender] = message.node, now  # who has both can have them in the other direction, too
            return Arrived(sender, FORWARDED, [*frames])
        if sender != message.node:
            raise RemoteError("identity", f"node {message.node} speaks for node {sender}")
        if self._keyring.key_of(to) is None or not listener.takes(to):
            raise RemoteError("forward", f"from node {sender} to node {to}, which is in no touch with this one")
        self._count(Ends(sender, to), sender, nbytes, listener, now)
        if not listener.put(to, message.frames):
            raise RemoteError("forward", f"from node {sender} to node {to}, which takes nothing now")
        self.forwarded[Ends(sender, to)] += nbytes
        return None

    def _count(self, between: Ends, by: int, nbytes: int, listener: Listener, now: float) -> None:
        """Count bytes as those between two, and not as those of whose connection they came by. Raises RemoteError."""
        if self._volume is None:
            return
        budget = self._between.setdefault(between, Budget(*self._volume, now))
        if not budget.left(now):
            raise RemoteError("flood", f"from node {between.sender} to node {between.to}: more than is forwarded")
        budget.spend(nbytes)
        listener.restore(by, nbytes)

    def ways(self, to: int, members: Sequence[int], now: float) -> list[int]:
        """Return who may forward what is for a node, the best first: `members` that both ends can call."""
        if not members:
            return []
        # both ends begin with the same one; who has brought something is good, until nothing has come for a while
        first = (self._keyring.node + to + int(now / _SILENT)) % len(members)
        rotated = [*members[first:], *members[:first]]
        way, heard = self._ways.get(to, (-1, 0.0))
        return [way, *rotated] if way in members and now - heard < _SILENT else rotated

    def _shared(self, node: int) -> bytes | None:
        key = self._keyring.key_of(node)
        return None if key is None else bindings.crypto_box_beforenm(key, self._keyring.secret)
