"""Messages as frames: one msgpack header, then one raw frame per tensor. No pickle, no trust.

The header is an array: [version, kind, node, life, to, fields...]. What does not fit raises RemoteError with a one-word
reason, before anything of it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgpack

from p2pfl.errors import RemoteError
from p2pfl.protocol.messages import BOOKED, CARRIERS, KINDS, VERSION, VOID, Envelope, Model

HEADER_CAP = 1024
"""Bytes of a header at most."""

_LIFE = 1 << 63
_INDEX = 1 << 53


class Schema(NamedTuple):
    """The shape of a payload on the wire, agreed by its digest when nodes meet."""

    digest: str
    nbytes: tuple[int, ...]  # of each tensor frame

    @property
    def frame_cap(self) -> int:
        """Bytes of the largest frame that can be right."""
        return max(HEADER_CAP, *self.nbytes)


def schema_of(leaves: Sequence[tuple[str, str, tuple[int, ...]]], nbytes: Sequence[int]) -> Schema:
    """Return the schema of a payload with these (path, dtype, shape) leaves."""
    return Schema(hashlib.blake2b(repr(tuple(leaves)).encode(), digest_size=16).hexdigest(), tuple(nbytes))


class Format(NamedTuple):
    """The payload format of a kind of message. `finite`: no NaN and no infinity in these frames.

    `of`: the format of what a node sends in a round, by both, where that depends on them.
    """

    schema: Schema
    finite: Callable[[Sequence[Any]], bool]
    of: Callable[[int, int], Format] | None = None


def encode(envelope: Envelope) -> bytes:
    """Return the header frame of a message; the payload's frames go behind it as they are."""
    kind = KINDS.index(type(envelope.message))
    return msgpack.packb([VERSION, kind, envelope.node, envelope.life, envelope.to, *envelope.message])


def decode(frames: Sequence[Any], formats: Mapping[type[Any], Format]) -> Envelope:
    """Return the message in these buffers; `formats`: of each of CARRIERS. Raises RemoteError.

    Reasons: `header` (not msgpack, too long, wrong types or values), `version`, `kind`, `frames` (number or size of the
    tensor frames), `digest` (a model whose bytes are not those announced), `nonfinite` (a payload with NaN or infinity;
    the error carries the envelope without its payload).
    """
    if not frames or memoryview(frames[0]).nbytes > HEADER_CAP:
        raise RemoteError("header", "missing or too long")
    try:
        header = msgpack.unpackb(frames[0], strict_map_key=True)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise RemoteError("header", f"not msgpack: {error}") from error
    if not isinstance(header, list) or len(header) < 5:
        raise RemoteError("header", "not an array of five or more")
    version, kind, node, life, to, *fields = header
    if version != VERSION or type(version) is not int:
        raise RemoteError("version", f"{version!r}; this is {VERSION}")
    if type(kind) is not int or not 0 <= kind < len(KINDS):
        raise RemoteError("kind", repr(kind)[:40])
    message = _message(KINDS[kind], fields)
    if not (_within(node, 1 << 31) and _within(life, _LIFE) and _within(to, _LIFE)):
        raise RemoteError("header", "node or life out of range")
    envelope = Envelope(node, life, to, message)
    if KINDS[kind] not in CARRIERS:
        if len(frames) > 1:
            raise RemoteError("frames", f"{KINDS[kind].__name__} carries no tensors")
        return envelope
    payload = list(frames[1:])
    form = formats[KINDS[kind]]
    schema, finite, _ = form if form.of is None else form.of(node, message.round)
    sizes = tuple(memoryview(frame).nbytes for frame in payload)
    if sizes != schema.nbytes:
        raise RemoteError(
            "frames",
            f"{len(sizes)} tensors of {sum(sizes)} bytes; the schema has {len(schema.nbytes)} of {sum(schema.nbytes)}",
        )
    if isinstance(message, Model) and message.digest != digest(payload):
        raise RemoteError("digest", f"the model of node {node} is not the one that it announced")
    if not finite(payload):
        raise NonFinite(envelope)
    return envelope._replace(payload=payload)


def digest(frames: Sequence[Any]) -> str:
    """Return the digest of the bytes of a payload, 32 hex digits."""
    total = hashlib.blake2b(digest_size=16)
    for frame in frames:
        total.update(frame)
    return total.hexdigest()


class NonFinite(RemoteError):
    """A well-formed message whose payload holds NaN or infinity."""

    def __init__(self, envelope: Envelope) -> None:
        super().__init__("nonfinite", f"payload of node {envelope.node} holds NaN or infinity")
        self.envelope = envelope


def _within(value: object, limit: int) -> bool:
    return type(value) is int and 0 <= value < limit


_CHECKS: dict[str, Callable[[object], bool]] = {
    "number": lambda v: _within(v, _INDEX),
    "round": lambda v: _within(v, _INDEX),
    "sees": lambda v: _within(v, _LIFE),
    "last": lambda v: v in (BOOKED, VOID, ""),
    "outcome": lambda v: v in (BOOKED, VOID),
    "have": lambda v: type(v) is bool,
    "heard": lambda v: type(v) is bool,
    "federation": lambda v: isinstance(v, str) and len(v) <= 64,
    "schema": lambda v: isinstance(v, str) and len(v) <= 64,
    "epoch": lambda v: _within(v, _LIFE),
    "digest": lambda v: isinstance(v, str) and len(v) <= 64,
    "part": lambda v: _within(v, 64),
    "parts": lambda v: _within(v, 65),
    "piece": lambda v: isinstance(v, bytes) and len(v) <= 768,
}


def _message(kind: type[Any], fields: list[object]) -> Any:
    names = kind._fields
    if len(fields) != len(names):
        raise RemoteError("header", f"{kind.__name__} has {len(names)} fields, not {len(fields)}")
    for name, value in zip(names, fields, strict=True):
        if not _CHECKS[name](value):
            raise RemoteError("header", f"{kind.__name__}.{name}={value!r:.40}")
    return kind(*fields)
