"""ZMTP 3, the protocol of ZeroMQ on a connection, as the listening end reads it: bytes in, messages out, all bounded.

libzmq does not listen for strangers. Where it bounds its queue, a PING behind a full one aborts the process when the
connection closes (libzmq 4.3.5: "Assertion failed: !_io_error"); where it does not, memory has no bound; and it counts
whole messages, so that one that never ends has none either way. How what travels is sealed: see `curve`.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple, Protocol

import numpy as np

from p2pfl.errors import RemoteError

NULL, CURVE = b"NULL", b"CURVE"
"""Security mechanisms: none, and that of `curve`."""


def greeting(mechanism: bytes, listens: bool = False) -> bytes:
    """Return what each end says first: version 3.0, and how it wants what travels to be kept."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + bytes([listens]) + bytes(31)


GREETING = greeting(NULL)
"""What each end says first that has no keys."""

SEALED = 33
"""Bytes that a sealed frame is longer than what travels in it."""

_MORE, _LONG, _COMMAND = 1, 2, 4
"""Flags of a frame."""

_COMMAND_CAP = 1024
"""Bytes of a command at most."""

_BUFFER = 1 << 16
"""Bytes that are read at once where no large frame is under way."""

_LARGE = 1 << 15
"""Bytes from which on a frame is read to where it stays: its arrays are views of it."""

_ABOUT, ASKS, TAKES = b"X-p2pfl", b"?", b"<"
"""The property of READY that says what listens; and of who connects that it asks, or that it is to be written to by
this connection, since nobody can call it."""

_KIND = re.compile(rb"([\w.+-]{1,40}) (\d{1,9}) (\d{1,9}) (\d{1,10}) (models|membership)", re.ASCII)

Frame = bytes | memoryview
"""A frame of a message."""


class Limits(NamedTuple):
    """What a message may be."""

    frame: int  # bytes of a frame
    frames: int  # of a message
    message: int  # bytes of all its frames


class Command(NamedTuple):
    """A command of the protocol itself."""

    name: bytes
    body: bytes


class Sealing(Protocol):
    """The keys of one connection, as `curve.Session` has them."""

    def seal(self, flags: int, body: bytes) -> bytes:
        """Return the frame on the wire in which a frame travels."""

    def open(self, frame: Frame) -> tuple[int, memoryview]:
        """Return the flags of what travels in a frame, and it. Raises RemoteError."""


def properties(kind: bytes, identity: bytes = b"", about: bytes = b"") -> bytes:
    """Return what an end of a connection says of itself. `about`: see `Kind`, or ASKS."""
    return b"".join(
        bytes([len(name)]) + name + struct.pack(">I", len(value)) + value
        for name, value in ((b"Socket-Type", kind), (b"Identity", identity), *([(_ABOUT, about)] if about else []))
    )


def command(name: bytes, body: bytes) -> bytes:
    """Return the frame of a command."""
    return frame(bytes([len(name)]) + name + body, _COMMAND)


def ready(kind: bytes, identity: bytes = b"", about: bytes = b"") -> bytes:
    """Return the command by which an end without keys says what it is."""
    return command(b"READY", properties(kind, identity, about))


def frame(body: bytes, flags: int = 0) -> bytes:
    """Return a frame as it travels where nothing is sealed."""
    return bytes([flags | _LONG]) + struct.pack(">Q", len(body)) + body


def message(body: bytes, sealing: Sealing | None = None) -> bytes:
    """Return a message of one frame."""
    return frame(body) if sealing is None else sealing.seal(0, body)


def identity(command: Command) -> bytes:
    """Return who the other end says it is. Raises RemoteError unless this is how it says so."""
    return _properties(command).get(b"identity", b"")


def _properties(command: Command) -> dict[bytes, bytes]:
    """What READY says, by name in small letters; the first of each. Raises RemoteError."""
    if command.name != b"READY":
        raise RemoteError("handshake", f"{command.name!r:.40} instead of READY")
    body, at = command.body, 0
    found: dict[bytes, bytes] = {}
    while at < len(body):
        length = body[at]
        name, at = body[at + 1 : at + 1 + length], at + 1 + length
        if at + 4 > len(body):
            raise RemoteError("handshake", "READY ends in the middle of a property")
        (length,) = struct.unpack_from(">I", body, at)
        value, at = body[at + 4 : at + 4 + length], at + 4 + length
        found.setdefault(name.lower(), value)
    return found


class Kind(NamedTuple):
    """What listens at a port, as it says to whoever connects; with keys, to members alone."""

    version: str  # of p2pfl
    protocol: int  # of models
    membership: int  # protocol of the membership
    node: int
    port: str  # what it is for: "models" or "membership"

    def encode(self) -> bytes:
        """For READY."""
        return " ".join(map(str, self)).encode()


def kind(command: Command) -> Kind | None:
    """Return what the listening end is; None where it does not say, as before 0.1.0 or where it is no node."""
    match = _KIND.fullmatch(_properties(command).get(_ABOUT.lower(), b""))
    if match is None:
        return None
    version, protocol, membership, node, port = (part.decode("ascii") for part in match.groups())
    return Kind(version, int(protocol), int(membership), int(node), port)


def asks(command: Command) -> bool:
    """Return whether who introduces itself so wants to be told something, and reads it: no node's own socket does."""
    return _properties(command).get(_ABOUT.lower()) == ASKS


def takes(command: Command) -> bool:
    """Return whether who introduces itself so takes in here what others have for it."""
    return _properties(command).get(_ABOUT.lower()) == TAKES


def introduction(federation: str, node: int) -> bytes:
    """Return the identity of a node's connections: ZeroMQ says it anew each time that it connects."""
    return f"p2pfl/1 {federation} {node}".encode()


QUESTION = b"p2pfl/1 asks"
"""The identity of a connection that brings one question, see p2pfl.protocol.questions, and gets one answer."""

REVOKED = b"revoked "
"""What a message begins with by which whoever was a member is told that it is none any more; the records that say so
follow."""


def introduced(identity: bytes, federation: str) -> int:
    """Return the node whose introduction this is. Raises RemoteError."""
    head, _, number = identity.rpartition(b" ")
    if head != f"p2pfl/1 {federation}".encode() or not number.isdigit() or len(number) > 10:
        raise RemoteError("handshake", f"says it is {identity!r:.100}; no node of this federation")
    return int(number)


class Reader:
    """Cuts what comes in on a connection into messages and commands. Holds one unfinished message at most.

    Read into `space`, say how much with `took`, then take the items until there is none.
    """

    def __init__(self, mechanism: bytes = NULL) -> None:
        self.limits = Limits(0, 0, 0)  # who has not said who it is has nothing else to say
        self.sealing: Sealing | None = None  # once both ends have agreed on keys
        self._mechanism = mechanism.ljust(20, b"\0")
        self._buffer = bytearray(_BUFFER)
        self._start = self._end = 0  # of what is in the buffer and not yet used
        self._greeted = False
        self._large: memoryview | None = None  # a large frame under way, of which ...
        self._filled = 0  # ... so many bytes have come
        self._flags = self._size = 0  # of the frame under way
        self._frames: list[Frame] = []
        self._bytes = 0  # of the frames of the message under way

    @property
    def unfinished(self) -> bool:
        """Something has come in part."""
        return bool(self._frames) or self._large is not None or self._start < self._end

    @property
    def space(self) -> memoryview:
        """To read into."""
        if self._large is not None:
            return self._large[self._filled :]
        if self._start:
            rest = self._buffer[self._start : self._end]
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        return memoryview(self._buffer)[self._end :]

    def took(self, count: int) -> None:
        """So many bytes have been read into `space`."""
        if self._large is not None:
            self._filled += count
        else:
            self._end += count

    def next(self) -> Command | list[Frame] | None:
        """Return the next command or message; None: there is no whole one yet. Raises RemoteError."""
        if not self._greeted and not self._greeting():
            return None
        while (frame := self._frame()) is not None:
            flags = self._flags
            if self.sealing is not None:
                flags, frame = self.sealing.open(frame)
                self._check(flags, len(frame))
            if flags & _COMMAND:
                return _command(bytes(frame))
            self._frames.append(frame)
            self._bytes += len(frame)
            if not flags & _MORE:
                frames, self._frames, self._bytes = self._frames, [], 0
                return frames
        return None

    def _greeting(self) -> bool:
        have = bytes(self._buffer[: min(self._end, len(GREETING))])
        if have[:1] not in (b"", b"\xff") or (len(have) > 9 and not have[9] & 1) or (len(have) > 10 and have[10] < 3):
            raise RemoteError("handshake", "not ZMTP 3")
        if len(have) < len(GREETING):
            return False
        if have[12:32] != self._mechanism:
            theirs, ours = (each.rstrip(b"\0") for each in (have[12:32], self._mechanism))
            reason = {NULL: "plaintext", CURVE: "mechanism"}.get(theirs, "handshake")
            raise RemoteError(reason, f"security mechanism {theirs!r:.40}; this is {ours.decode('ascii')}")
        self._start, self._greeted = len(GREETING), True
        return True

    def _frame(self) -> Frame | None:
        """Return the next frame, whose flags are then in `_flags`."""
        if self._large is None and not self._begin():
            return None
        if self._large is not None:
            if self._filled < len(self._large):
                return None
            frame: Frame = self._large
            self._large = None
            return frame
        frame = bytes(memoryview(self._buffer)[self._start : self._start + self._size])
        self._start += self._size
        return frame

    def _begin(self) -> bool:
        """Read the head of a frame; return whether the frame can be gone on with: a small one is all there."""
        have = self._end - self._start
        if not have:
            return False
        flags = self._buffer[self._start]
        head = 9 if flags & _LONG else 2
        if have < head:
            return False
        size = struct.unpack_from(">Q" if flags & _LONG else ">B", self._buffer, self._start + 1)[0]
        if self.sealing is None:
            self._check(flags, size)
        else:
            self._check(0, max(0, size - SEALED))  # of what travels in it the flags are not known yet
        if size < _LARGE:
            if have < head + size:
                return False
            self._start += head
            self._size = size
        else:  # no page of it is taken before something is written there
            self._large = np.empty(size, np.uint8).data
            self._filled = min(size, have - head)
            self._start += head
            self._large[: self._filled] = memoryview(self._buffer)[self._start : self._start + self._filled]
            self._start += self._filled
        self._flags = flags
        return True

    def _check(self, flags: int, size: int) -> None:
        limits = self.limits
        if flags & ~(_MORE | _LONG | _COMMAND) or (flags & _COMMAND and flags & _MORE):
            raise RemoteError("handshake", f"a frame with flags {flags:#x}")
        if flags & _COMMAND:
            if size > _COMMAND_CAP:
                raise RemoteError("size", f"a command of {size} bytes; at most {_COMMAND_CAP}")
            return
        if size > limits.frame or self._bytes + size > limits.message:
            raise RemoteError("size", f"a frame of {size} bytes; at most {limits.frame}, a message {limits.message}")
        if len(self._frames) >= limits.frames:
            raise RemoteError("size", f"a message of more than {limits.frames} frames")


def _command(body: bytes) -> Command:
    length = body[0] if body else 0
    return Command(body[1 : 1 + length], body[1 + length :])
