"""Messages of the membership as bytes: one msgpack array [version, cluster, kind, seq, sender, entries, fields...].

What only federations with keys have is not there without: the last two of an entry (the length of a pause, and the
signature of its member), and behind the fields the digest of the sender's document. What does not fit raises
RemoteError with a one-word reason, before anything of it is used. Times travel as seconds from now: no clock of another
node is trusted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from p2pfl.errors import RemoteError
from p2pfl.protocol.membership.table import STATES, MemberEntry

VERSION = 2

MESSAGE_CAP = 1 << 19
"""Bytes of a message at most."""

ENTRY_CAP = 2048
"""Entries of a message at most: a table is told whole, so this many members can be known."""

ADDRESS_CAP = 128
"""Characters of an address at most."""

DIALS = "dials://"
"""What the address of a member begins with that can't be dialled."""

_ADDRESS = re.compile(r"tcp://(?:[\w.*-]+|\[[0-9a-f:.]+(?:%[\w.-]+)?\]):(\d{1,5})", re.ASCII | re.IGNORECASE)

_DIALS = re.compile(r"dials://(0|[1-9]\d{0,9})", re.ASCII)

CLUSTER_CAP = 64
"""Characters of a cluster's name at most."""

SIGNATURE_CAP = 64
"""Bytes of a signature at most."""

DIGEST = 16
"""Bytes of the digest of a document."""

DOCUMENT_CAP = 1 << 18
"""Bytes of a document at most."""

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


class DocumentCopy(NamedTuple):
    """My document, whose digest the datagram has: yours is another."""

    data: bytes


Message = DirectPing | Ack | Ask | Nack | Gossip | Sync | Synced | DocumentCopy

KINDS: tuple[type[Any], ...] = (DirectPing, Ack, Ask, Nack, Gossip, Sync, Synced, DocumentCopy)
"""A message's place here is its number on the wire: append only."""


class Datagram(NamedTuple):
    """A message, with what its sender says of itself and of others. `seq` ties an answer to its question.

    `digest`: of the sender's document; b"" where it has none.
    """

    cluster: str
    seq: int
    sender: MemberEntry
    entries: Sequence[MemberEntry]
    message: Message
    digest: bytes = b""


def encode(datagram: Datagram, now: float) -> bytes:
    """The bytes of a datagram that is sent now."""
    kind = KINDS.index(type(datagram.message))
    entries = [_packed(entry, now) for entry in datagram.entries]
    sender = _packed(datagram.sender, now)
    digest = [datagram.digest] if datagram.digest else []
    data: bytes = msgpack.packb(
        [VERSION, datagram.cluster, kind, datagram.seq, sender, entries, *datagram.message, *digest]
    )
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
    digest = fields.pop() if len(fields) > len(KINDS[kind]._fields) else b""
    if digest != b"" and not (isinstance(digest, bytes) and len(digest) == DIGEST):
        raise RemoteError("message", f"digest {digest!r:.40}")
    message = _message(KINDS[kind], fields)
    return Datagram(cluster, seq, _entry(sender, now), [_entry(entry, now) for entry in entries], message, digest)


def sender(data: bytes, cluster: str, now: float) -> int | None:
    """Return the sender of these bytes; None when they are no datagram of this cluster."""
    try:
        return decode(data, cluster, now).sender.node
    except RemoteError:
        return None


def good_address(value: object) -> bool:
    """Return whether this can be an address: tcp://HOST:PORT, ASCII, of bounded length; IPv6 in brackets.

    Or dials://NODE, of a member that dials out and can't be dialled: its own connections are the way to it.
    """
    if not isinstance(value, str) or len(value) > ADDRESS_CAP:
        return False
    if value.startswith(DIALS):
        return dialer(value) is not None
    match = _ADDRESS.fullmatch(value)
    return match is not None and int(match[1]) < 1 << 16


def dialer(address: str) -> int | None:
    """Return the node that an address of the form dials://NODE names; None where it is of another form."""
    match = _DIALS.fullmatch(address)
    return int(match[1]) if match is not None and int(match[1]) < _NODE else None


def _placed(address: object, node: int) -> bool:
    """Return whether this can be the address of that node."""
    return good_address(address) and dialer(str(address)) in (None, node)


def _below(value: object, limit: int, least: int = 0) -> bool:
    return type(value) is int and least <= value < limit


def _seconds(value: object) -> bool:
    return type(value) is float and 0 <= value <= _SECONDS


def _message(kind: type[Any], fields: list[Any]) -> Any:
    if len(fields) != len(kind._fields):
        raise RemoteError("message", f"{kind.__name__} has {len(kind._fields)} fields, not {len(fields)}")
    checks = {
        "target": lambda v: _below(v, _NODE),
        "address": good_address,
        "wait": _seconds,
        "data": lambda v: isinstance(v, bytes) and 0 < len(v) <= DOCUMENT_CAP,
    }
    for name, value in zip(kind._fields, fields, strict=True):
        if not checks[name](value):
            raise RemoteError("message", f"{kind.__name__}.{name}={value!r:.40}")
    made = kind(*fields)
    if isinstance(made, Ask) and not _placed(made.address, made.target):
        raise RemoteError("message", f"{made.address} is not node {made.target}")
    return made


def _packed(entry: MemberEntry, now: float) -> list[Any]:
    seconds = now - entry.at if entry.terminal else entry.at - now if entry.at else 0.0
    signed = [entry.pause, entry.signature] if entry.signature else []
    return [
        entry.node, entry.life, entry.refutes, STATES.index(entry.state), entry.address, entry.said, entry.round,
        min(max(seconds, 0.0), _SECONDS), entry.by, *signed,
    ]  # fmt: skip


def _entry(value: object, now: float) -> MemberEntry:
    if not isinstance(value, list) or len(value) not in (9, 11):
        raise RemoteError("message", "an entry is an array of 9, or of 11 where it is signed")
    node, life, refutes, state, address, said, round, seconds, by, *signed = value
    pause, signature = signed or (0, b"")
    good = (
        _below(node, _NODE)
        and _below(life, _LIFE)
        and _below(refutes, REFUTES_CAP)
        and _below(state, len(STATES))
        and _placed(address, node)
        and _below(said, _COUNT)
        and _below(round, _COUNT)
        and _seconds(seconds)
        and _below(by, _NODE, -1)
        and _below(pause, _COUNT)
        and isinstance(signature, bytes)
        and len(signature) <= SIGNATURE_CAP
        and bool(signature) == bool(signed)
    )
    if not good:
        raise RemoteError("message", f"entry {value!r}"[:200])
    entry = MemberEntry(node, life, refutes, STATES[state], address, said, round, 0.0, by, pause, signature)
    if entry.terminal:
        return entry._replace(at=now - seconds)
    return entry._replace(at=now + seconds if seconds else 0.0)
