"""CURVE, the security of ZeroMQ's connections, as both ends speak it: commands in, commands out, then sealed frames.

ZMTP 3 with the mechanism CURVE (RFC 26, rfc.zeromq.org/spec/26; libzmq speaks the same): each end proves that it holds
the secret of a public key that the other knows, and both agree on keys of this connection alone, so that what was
recorded cannot be opened by whoever steals a site's key later. What is sealed cannot be read, changed, repeated or sent
back: each direction counts its frames. The arithmetic is libsodium's, by PyNaCl.
"""

from __future__ import annotations

import secrets
import struct
from typing import NamedTuple

from nacl import bindings
from nacl._sodium import ffi, lib
from nacl.exceptions import CryptoError

from p2pfl.drivers.live import zmtp
from p2pfl.drivers.live.zmtp import Command, Frame
from p2pfl.errors import RemoteError
from p2pfl.trust.keyring import Keyring

_KEY, _NONCE, _MAC = 32, 8, 16

_HELLO = struct.Struct(f">2s72x{_KEY}s{_NONCE}s{64 + _MAC}s")
_COOKIE = 96
_WELCOME = struct.Struct(f">16s{_KEY + _COOKIE + _MAC}s")
_VOUCH = 16 + 2 * _KEY + _MAC

_VERSION = b"\1\0"

_LAST = 1 << 63
"""Frames in one direction of a connection."""


class KeyPair(NamedTuple):
    """The keys of one end."""

    public: bytes  # 32 bytes of X25519
    secret: bytes  # 32 bytes, never shown

    def __repr__(self) -> str:
        """Without the secret."""
        return f"KeyPair(public={self.public.hex()})"


class Keys(NamedTuple):
    """The keys of a connection to be made."""

    own: KeyPair
    theirs: bytes  # the public key of whoever must be at its other end


def keys(keyring: Keyring, node: int | None) -> Keys | None:
    """Return the keys of a connection to a node; None where it is no member."""
    theirs = None if node is None else keyring.key_of(node)
    return None if theirs is None else Keys(KeyPair(keyring.public, keyring.secret), theirs)


class Session:
    """The keys of one connection: seals what goes out, opens what comes in."""

    def __init__(self, shared: bytes, ours: bytes, theirs: bytes, sent: int, taken: int) -> None:
        """`shared`: of both ends. `ours`, `theirs`: b"C" and b"S", whose frames are whose. The last counts so far."""
        self._shared = shared
        self._ours, self._theirs = b"CurveZMQMESSAGE" + ours, b"CurveZMQMESSAGE" + theirs
        self._sent, self._taken = sent, taken

    def seal(self, flags: int, body: bytes) -> bytes:
        """Return the frame on the wire in which a frame travels. `flags`: of what it holds."""
        self._sent += 1
        nonce = struct.pack(">Q", self._sent)
        plain = bytes([flags]) + body
        return zmtp.frame(
            b"\x07MESSAGE" + nonce + bindings.crypto_box_easy_afternm(plain, self._ours + nonce, self._shared)
        )

    def open(self, frame: Frame) -> tuple[int, memoryview]:
        """Return the flags of what travels in a frame, and it. Raises RemoteError."""
        if len(frame) < zmtp.SEALED or bytes(frame[:8]) != b"\x07MESSAGE":
            raise RemoteError("encryption", "a frame that is not sealed")
        nonce = bytes(frame[8:16])
        (count,) = struct.unpack(">Q", nonce)
        if not self._taken < count < _LAST:
            raise RemoteError("encryption", "a frame that has come before, or out of its order")
        if isinstance(frame, memoryview) and not frame.readonly:
            flags, body = self._open_in_place(frame, self._theirs + nonce)
        else:
            plain = _opened(bytes(frame[16:]), self._theirs + nonce, self._shared, "a frame")
            flags, body = plain[0], memoryview(plain)[1:]
        self._taken = count
        return flags, body

    def _open_in_place(self, frame: memoryview, nonce: bytes) -> tuple[int, memoryview]:
        """Open a large frame where it lies: what travels in it begins at its byte 16, aligned as the frame itself is.

        PyNaCl's own function copies it three times, which takes longer than to open it.
        """
        held = ffi.from_buffer("unsigned char[]", frame, require_writable=True)
        at, size = held + 16, len(frame) - 16
        if lib.crypto_box_open_easy_afternm(held + 15, at, size, nonce, self._shared):
            raise RemoteError("encryption", "a frame does not open")
        return frame[15], frame[16 : 15 + size - _MAC]


class Answering:
    """The listening end of a handshake. `done` once the other end has proved whose key it holds."""

    def __init__(self, own: KeyPair) -> None:
        self._own = own
        self._short = KeyPair(*bindings.crypto_box_keypair())  # of this connection
        self._cookie = secrets.token_bytes(_COOKIE)
        self._theirs = b""  # its key of this connection
        self.key = b""  # which it has proved to hold, once it is done
        self.said: Command | None = None  # what it says of itself, as READY says it
        self.session: Session | None = None

    def take(self, command: Command, about: bytes) -> bytes:
        """Take a command in and return the answer. `about`: what READY says of this end. Raises RemoteError."""
        if command.name == b"HELLO" and not self._theirs:
            return self._hello(command.body)
        if command.name == b"INITIATE" and self._theirs and self.session is None:
            return self._initiate(command.body, about)
        raise RemoteError("handshake", f"{command.name!r:.40} at the wrong place of CURVE")

    def _hello(self, body: bytes) -> bytes:
        if len(body) != _HELLO.size:
            raise RemoteError("handshake", f"HELLO of {len(body)} bytes")
        version, self._theirs, nonce, box = _HELLO.unpack(body)
        if version != _VERSION:
            raise RemoteError("handshake", f"CURVE version {version!r}")
        _unboxed(box, b"CurveZMQHELLO---" + nonce, self._theirs, self._own.secret, "HELLO: it has another key of ours")
        nonce = secrets.token_bytes(16)
        box = bindings.crypto_box_easy(
            self._short.public + self._cookie, b"WELCOME-" + nonce, self._theirs, self._own.secret
        )
        return zmtp.command(b"WELCOME", nonce + box)

    def _initiate(self, body: bytes, about: bytes) -> bytes:
        if len(body) < _COOKIE + _NONCE + _MAC + _KEY + _VOUCH or body[:_COOKIE] != self._cookie:
            raise RemoteError("handshake", f"INITIATE of {len(body)} bytes, or with the cookie of another")
        nonce, shared = body[_COOKIE : _COOKIE + _NONCE], _shared(self._theirs, self._short.secret)
        plain = _opened(body[_COOKIE + _NONCE :], b"CurveZMQINITIATE" + nonce, shared, "INITIATE")
        key, vouch, said = plain[:_KEY], plain[_KEY : _KEY + _VOUCH], plain[_KEY + _VOUCH :]
        vouched = _unboxed(vouch[16:], b"VOUCH---" + vouch[:16], key, self._short.secret, "what vouches for its key")
        if vouched != self._theirs + self._own.public:
            raise RemoteError("handshake", "what vouches for its key is of another connection")
        self.key, self.said = key, Command(b"READY", said)
        self.session = Session(shared, b"S", b"C", 1, struct.unpack(">Q", nonce)[0])
        nonce = struct.pack(">Q", 1)
        return zmtp.command(
            b"READY", nonce + bindings.crypto_box_easy_afternm(about, b"CurveZMQREADY---" + nonce, shared)
        )


class Calling:
    """The calling end of a handshake, with whoever holds the secret of `key`."""

    def __init__(self, own: KeyPair, key: bytes) -> None:
        self._own, self.key = own, key
        self._short = KeyPair(*bindings.crypto_box_keypair())
        self._shared = b""
        self.said: Command | None = None  # what the listening end says of itself
        self.session: Session | None = None

    @property
    def met(self) -> bool:
        """The other end holds the key that was expected."""
        return bool(self._shared)

    def hello(self) -> bytes:
        """Return what is said first, after the greeting."""
        nonce = struct.pack(">Q", 1)
        box = bindings.crypto_box_easy(bytes(64), b"CurveZMQHELLO---" + nonce, self.key, self._short.secret)
        return zmtp.command(b"HELLO", _HELLO.pack(_VERSION, self._short.public, nonce, box))

    def take(self, command: Command, about: bytes) -> bytes:
        """Take a command in and return the answer, if there is one. `about`: what this end is. Raises RemoteError."""
        if command.name == b"WELCOME" and not self._shared:
            return self._welcome(command.body, about)
        if command.name == b"READY" and self._shared and self.session is None:
            nonce = command.body[:_NONCE]
            said = _opened(command.body[_NONCE:], b"CurveZMQREADY---" + nonce, self._shared, "READY")
            self.said = Command(b"READY", said)
            self.session = Session(self._shared, b"C", b"S", 2, struct.unpack(">Q", nonce)[0])
            return b""
        raise RemoteError("handshake", f"{command.name!r:.40} at the wrong place of CURVE")

    def _welcome(self, body: bytes, about: bytes) -> bytes:
        if len(body) != _WELCOME.size:
            raise RemoteError("handshake", f"WELCOME of {len(body)} bytes")
        nonce, box = _WELCOME.unpack(body)
        plain = _unboxed(box, b"WELCOME-" + nonce, self.key, self._short.secret, "WELCOME")
        theirs, cookie = plain[:_KEY], plain[_KEY:]
        self._shared = _shared(theirs, self._short.secret)
        nonce = secrets.token_bytes(16)
        vouch = nonce + bindings.crypto_box_easy(
            self._short.public + self.key, b"VOUCH---" + nonce, theirs, self._own.secret
        )
        nonce = struct.pack(">Q", 2)
        plain = self._own.public + vouch + about
        box = bindings.crypto_box_easy_afternm(plain, b"CurveZMQINITIATE" + nonce, self._shared)
        return zmtp.command(b"INITIATE", cookie + nonce + box)


def _shared(public: bytes, secret: bytes) -> bytes:
    try:
        return bindings.crypto_box_beforenm(public, secret)
    except CryptoError as error:  # a key that is no good, such as all zeros
        raise RemoteError("encryption", "a key that is none") from error


def _unboxed(box: bytes, nonce: bytes, public: bytes, secret: bytes, what: str) -> bytes:
    return _opened(box, nonce, _shared(public, secret), what)


def _opened(box: bytes, nonce: bytes, shared: bytes, what: str) -> bytes:
    try:
        return bindings.crypto_box_open_easy_afternm(box, nonce, shared)
    except (CryptoError, ValueError) as error:
        raise RemoteError("encryption", f"{what} does not open") from error
