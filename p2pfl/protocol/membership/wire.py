"""Messages of the membership as bytes: one msgpack array [version, cluster, kind, seq, sender, entries, fields...].

What does not fit raises RemoteError with a one-word reason, before anything of it is used. Times travel as seconds
from now: no clock of another node is trusted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from p2pfl.errors import RemoteError
from p2pfl.protocol.membership.table import STATES, MemberEntry

VERSION = 1

MESSAGE_CAP = 1 << 19
"""Bytes of a message at most."""

ENTRY_CAP = 2048
"""Entries of a message at most: a table is told whole, so this many members can be known."""

ADDRESS_CAP = 128
"""Characters of an address at most."""

_ADDRESS = re.compile(r"tcp://(?:[\w.*-]+|\[[0-9a-f:.]+(?:%[\w.-]+)?\]):(\d{1,5})", re.ASCII | re.IGNORECASE)

CLUSTER_CAP = 64
"""Characters of a cluster's name at most."""

REFUTES_CAP = 1 << 53
"""Refutes of a life are below this."""

_COUNT = 1 << 53
_NODE = 1 << 31
_LIFE = 1 << 63
_SECONDS = 1e9


class DirectPing(NamedTuple):
    """Are you there? Only for the member `target`."""

    target: int


class Ack(NamedTuple):
    """The member you asked for is there."""


class Ask(NamedTuple):
    """Ping `target` at `address` for me; say so if it has not answered after `wait` seconds."""

    target: int
    address: str
    wait: float


class Nack(NamedTuple):
    """The member you asked me to ping has not answered me; but I am there."""


class Gossip(NamedTuple):
    """The entries are all of it."""


class Sync(NamedTuple):
    """The entries are my whole table; tell me yours."""


class Synced(NamedTuple):
    """The entries are my whole table, in answer to yours."""


Message = DirectPing | Ack | Ask | Nack | Gossip | Sync | Synced

KINDS: tuple[type[Any], ...] = (DirectPing, Ack, Ask, Nack, Gossip, Sync, Synced)
"""A message's place here is its number on the wire: append only."""


class Datagram(NamedTuple):
    """A message, with what its sender says of itself and of others. `seq` ties an answer to its question."""

    cluster: str
    seq: int
    sender: MemberEntry
    entries: Sequence[MemberEntry]
    message: Message


def encode(datagram: Datagram, now: float) -> bytes:
    """The bytes of a datagram that is sent now."""
    kind = KINDS.index(type(datagram.message))
    entries = [_packed(entry, now) for entry in datagram.entries]
    sender = _packed(datagram.sender, now)
    data: bytes = msgpack.packb([VERSION, datagram.cluster, kind, datagram.seq, sender, entries, *datagram.message])
    return data


def decode(data: bytes, cluster: str, now: float) -> Datagram:
    """The datagram in these bytes, which came in now. Raises RemoteError.

    Reasons: `size` (more than MESSAGE_CAP bytes or ENTRY_CAP entries), `message` (not msgpack, wrong types or values),
    `version`, `cluster` (another federation's), `kind`.
    """
    if len(data) > MESSAGE_CAP:
        raise RemoteError("size", f"{len(data)} bytes; at most {MESSAGE_CAP}")
    try:
        array = msgpack.unpackb(data, strict_map_key=True)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise RemoteError("message", f"not msgpack: {error}"[:200]) from error
    if not isinstance(array, list) or not array:
        raise RemoteError("message", "not an array")
    version = array[0]
    if type(version) is not int or version != VERSION:
        raise RemoteError("version", f"{version!r:.40}; this is {VERSION}")
    if len(array) < 6:
        raise RemoteError("message", f"an array of {len(array)}; at least 6")
    _, name, kind, seq, sender, entries, *fields = array
    if name != cluster:
        raise RemoteError("cluster", f"{name!r:.80}; this is {cluster!r}")
    if type(kind) is not int or not 0 <= kind < len(KINDS):
        raise RemoteError("kind", f"{kind!r:.40}")
    if not _below(seq, _COUNT) or not isinstance(entries, list):
        raise RemoteError("message", "sequence number or entries")
    if len(entries) > ENTRY_CAP:
        raise RemoteError("size", f"{len(entries)} entries; at most {ENTRY_CAP}")
    message = _message(KINDS[kind], fields)
    return Datagram(cluster, seq, _entry(sender, now), [_entry(entry, now) for entry in entries], message)


def sender(data: bytes, cluster: str, now: float) -> int | None:
    """Return the sender of these bytes; None when they are no datagram of this cluster."""
    try:
        return decode(data, cluster, now).sender.node
    except RemoteError:
        return None


def good_address(value: object) -> bool:
    """Return whether this can be an address: tcp://HOST:PORT, ASCII, of bounded length; IPv6 in brackets."""
    if not isinstance(value, str) or len(value) > ADDRESS_CAP:
        return False
    match = _ADDRESS.fullmatch(value)
    return match is not None and int(match[1]) < 1 << 16


def _below(value: object, limit: int, least: int = 0) -> bool:
    return type(value) is int and least <= value < limit


def _seconds(value: object) -> bool:
    return type(value) is float and 0 <= value <= _SECONDS


def _message(kind: type[Any], fields: list[Any]) -> Any:
    if len(fields) != len(kind._fields):
        raise RemoteError("message", f"{kind.__name__} has {len(kind._fields)} fields, not {len(fields)}")
    checks = {"target": lambda v: _below(v, _NODE), "address": good_address, "wait": _seconds}
    for name, value in zip(kind._fields, fields, strict=True):
        if not checks[name](value):
            raise RemoteError("message", f"{kind.__name__}.{name}={value!r:.40}")
    return kind(*fields)


def _packed(entry: MemberEntry, now: float) -> list[Any]:
    seconds = now - entry.at if entry.terminal else entry.at - now if entry.at else 0.0
    return [
        entry.node, entry.life, entry.refutes, STATES.index(entry.state), entry.address, entry.said, entry.round,
        min(max(seconds, 0.0), _SECONDS), entry.by,
    ]  # fmt: skip


def _entry(value: object, now: float) -> MemberEntry:
    if not isinstance(value, list) or len(value) != 9:
        raise RemoteError("message", "an entry is an array of 9")
    node, life, refutes, state, address, said, round, seconds, by = value
    good = (
        _below(node, _NODE)
        and _below(life, _LIFE)
        and _below(refutes, REFUTES_CAP)
        and _below(state, len(STATES))
        and good_address(address)
        and _below(said, _COUNT)
        and _below(round, _COUNT)
        and _seconds(seconds)
        and _below(by, _NODE, -1)
    )
    if not good:
        raise RemoteError("message", f"entry {value!r}"[:200])
    entry = MemberEntry(node, life, refutes, STATES[state], address, said, round, 0.0, by)
    if entry.terminal:
        return entry._replace(at=now - seconds)
    return entry._replace(at=now + seconds if seconds else 0.0)
