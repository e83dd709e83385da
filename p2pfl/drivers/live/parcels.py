"""Parcels: a large message travels in pieces, and what a broken link has cut is gone on with. No socket.

A way is all that one node has for another, in the order in which it was said. What is small goes as it is. A larger
message is a parcel: its pieces go out a few at a time, the receiver says how much of it it holds, and nothing that was
said later leaves before all of it is held. So the order of a link stays, and a loss costs the pieces that were on the
link. Only these receipts of the layer itself overtake what waits.

A piece that comes behind a gap, because the link broke between, is answered with what is held, and the sender goes on
from there. One who hears nothing asks by an empty piece: on a link that keeps order, a gap before it was lost.
"""

from __future__ import annotations

import struct
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from p2pfl.errors import RemoteError
from p2pfl.protocol.codec import HEADER_CAP
from p2pfl.protocol.events import Progressed

PIECE = 1 << 20
"""Bytes of a piece."""

WINDOW = 4
"""Pieces that may be on the link: what a break can cost, so that a message that is not larger goes as it is. A round
trip of 50 ms leaves 80 MB/s ..."""

ASIDE = "Model"
"""... and of this kind, which is for a node that joins, one ..."""

_APART = 0.3
"""... each so many seconds: 3.5 MB/s, so that the rounds of its donor are not disturbed."""

_ASK = 0.5
"""Seconds without a word after which the sender asks what is held."""

GIVEN_UP = 30.0
"""Seconds without a word after which all that is on a way is dropped."""

_FORGOTTEN = 60.0
"""Seconds without a piece after which what has come of a parcel is dropped."""

_TURNS = 64
"""Times that a parcel goes back at most: who says so for ever makes nobody send for ever."""

_QUEUE = 64
"""Messages that may wait on one way. The protocol has a handful under way; more means that nothing gets through."""

MARK = b"\xc1"
"""First byte of what belongs to parcels: no value of msgpack begins with it, and hence no header of a message."""

_HEAD = struct.Struct(">cBQQQQIB")
_PIECE, _ASKS, _HELD = 0, 1, 2


class Letter(NamedTuple):
    """A message as it goes out."""

    frames: Sequence[Any]  # the header first
    nbytes: int
    kind: str = ""  # of two that wait, a later one with a payload makes an earlier one of its kind useless
    lives: tuple[int, int] = (0, 0)  # of the sender and of the receiver; what was said between earlier ones is void


class ParcelId(NamedTuple):
    """Which parcel: of two from one node, the later one is greater."""

    life: int  # of the sender
    to: int  # the life it is for
    number: int


class _Head(NamedTuple):
    """What each piece, and each answer, begins with."""

    what: int  # _PIECE, _ASKS: a piece that asks for an answer, or _HELD: the answer
    tag: ParcelId
    at: int  # where the piece begins, or how much is held
    turn: int  # how often the sender had gone back when it sent the piece; an answer repeats it
    form: int  # which of the agreed formats the tensors have; of an answer: 1 behind a gap

    def packed(self) -> bytes:
        return _HEAD.pack(MARK, self.what, *self.tag, self.at, self.turn, self.form)


def is_parcel(frames: Sequence[Any]) -> bool:
    """Return whether a message that came in is a piece or an answer to one."""
    return bytes(memoryview(frames[0])[:1]) == MARK


def _head(frame: Any) -> _Head:
    try:
        _, what, life, to, number, at, turn, form = _HEAD.unpack(frame)
    except struct.error as error:
        raise RemoteError("parcel", f"a head of {memoryview(frame).nbytes} bytes") from error
    return _Head(what, ParcelId(life, to, number), at, turn, form)


# --- the way out


class Portion(NamedTuple):
    """Something for the socket. Say `took` when it has been taken."""

    frames: Sequence[Any]
    nbytes: int
    end: int | None  # of the piece in its parcel; None: a whole message


class _Parcel:
    def __init__(self, letter: Letter, tag: ParcelId, form: int, now: float) -> None:
        self.letter, self.tag, self.form = letter, tag, form
        self.total = sum(memoryview(frame).nbytes for frame in letter.frames[1:])
        self.sent = self.held = self.turn = 0
        self.said = now  # when something of it was last sent


class _Way:
    def __init__(self, now: float) -> None:
        self.lives = (0, 0)
        self.moved = now  # when something has last got through
        self.queue: deque[Letter] = deque()
        self.parcel: _Parcel | None = None


class ParcelsOut:
    """What is on its way to others. `dropped` counts messages that were given up."""

    def __init__(self, formats: Sequence[tuple[int, ...]], piece: int = PIECE) -> None:
        """`formats`: bytes of each tensor, of every kind of payload; the same at all nodes."""
        self._formats, self._piece, self._whole = list(dict.fromkeys(formats)), piece, WINDOW * piece
        self._ways: dict[int, _Way] = {}
        self._number = 0
        self.dropped: Counter[str] = Counter()

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return not self._ways

    @property
    def waiting(self) -> list[int]:
        """Nodes for which something is under way."""
        return [*self._ways]

    def add(self, to: int, letter: Letter, now: float) -> bool:
        """Take a message for a node; False: it is not for this layer, and may go at once as it is."""
        way = self._ways.get(to)
        if way is not None and any(new > old for new, old in zip(letter.lives, way.lives, strict=True)):
            del self._ways[to]
            way = None
        large = letter.nbytes > self._whole
        if way is None:
            if not large:
                return False
            way = self._ways[to] = _Way(now)
        way.lives = max(way.lives, letter.lives)
        if large:
            if self._again(way, letter):
                return True
            way.queue = deque(each for each in way.queue if each.kind != letter.kind or each.nbytes <= self._whole)
        elif way.queue and way.queue[-1].frames[0] == letter.frames[0]:  # a question that is asked again and again
            return True
        if len(way.queue) >= _QUEUE:
            self.dropped["unsent"] += 1
        else:
            way.queue.append(letter)
        return True

    def _again(self, way: _Way, letter: Letter) -> bool:
        """The very message is under way: the header names the exchange, the round, or the digest. Or some model is.

        Who asks for one again, since the link was broken for a while, gets the rest of what has come in part.
        """
        if way.parcel is not None and letter.kind == ASIDE == way.parcel.letter.kind:
            return True
        under_way = [*way.queue, *([way.parcel.letter] if way.parcel else [])]
        return any(each.nbytes > self._whole and each.frames[0] == letter.frames[0] for each in under_way)

    def next(self, to: int, now: float) -> Portion | None:
        """Return what may go to a node now; None: nothing."""
        way = self._ways.get(to)
        if way is None:
            return None
        if way.parcel is None:
            letter = way.queue[0]
            if letter.nbytes <= self._whole:
                return Portion(letter.frames, letter.nbytes, None)
            sizes = tuple(memoryview(frame).nbytes for frame in letter.frames[1:])
            self._number += 1
            tag = ParcelId(*letter.lives, self._number)
            way.parcel = _Parcel(way.queue.popleft(), tag, self._formats.index(sizes), now)
        parcel = way.parcel
        aside = parcel.letter.kind == ASIDE
        most = min(parcel.held + (1 if aside else WINDOW) * self._piece, parcel.total)
        end = min(parcel.sent + self._piece, most)
        if aside and parcel.sent and now - parcel.said < _APART:
            end = 0
        if end <= parcel.sent:
            if now - max(parcel.said, way.moved) < _ASK:
                return None
            end = parcel.sent
        asks = end == parcel.sent or end == most or parcel.sent // self._piece % 2
        head = _Head(_ASKS if asks else _PIECE, parcel.tag, parcel.sent, parcel.turn, parcel.form).packed()
        parts = [head, parcel.letter.frames[0], *_cut(parcel.letter.frames[1:], parcel.sent, end)]
        return Portion(parts, len(head) + len(parcel.letter.frames[0]) + end - parcel.sent, end)

    def took(self, to: int, portion: Portion, now: float) -> None:
        """The socket has taken it."""
        way = self._ways[to]
        if portion.end is None:
            way.queue.popleft()
            way.moved = now
            self._tidy(to, way)
            return
        assert way.parcel is not None
        way.parcel.sent, way.parcel.said = portion.end, now

    def answered(self, node: int, frames: Sequence[Any], now: float) -> Progressed | None:
        """Take in how much a node holds. RemoteError for what no honest one says."""
        head = _head(frames[0])
        if len(frames) != 1:
            raise RemoteError("parcel", "an answer that carries something")
        way = self._ways.get(node)
        if way is None or way.parcel is None or way.parcel.tag != head.tag:  # an answer to what is over
            return None
        parcel = way.parcel
        if head.at > parcel.sent and head.turn == parcel.turn:
            raise RemoteError("parcel", f"holds {head.at} bytes, and {parcel.sent} were sent")
        if head.at > parcel.total:
            raise RemoteError("parcel", f"holds {head.at} bytes of {parcel.total}")
        gained, way.moved = max(0, head.at - parcel.held), now
        if head.form and head.turn == parcel.turn:  # it may hold less than it did, having given up what had come
            parcel.sent = parcel.held = head.at
            parcel.turn += 1
            if parcel.turn > _TURNS:
                self._drop(node, way)
                return None
        else:
            parcel.held = max(parcel.held, head.at)
            parcel.sent = max(parcel.sent, parcel.held)
        if parcel.held == parcel.total:
            way.parcel = None
            self._tidy(node, way)
        return Progressed(node, head.tag.to, head.tag.life, gained) if gained else None

    def give_up(self, now: float) -> None:
        """Drop what has been under way for long without a word."""
        for to, way in [*self._ways.items()]:
            if now - way.moved > GIVEN_UP:
                self._drop(to, way)

    def lose(self, to: int) -> None:
        """Drop what is under way to a node that is not there any more."""
        if (way := self._ways.get(to)) is not None:
            self._drop(to, way)

    def withdraw(self, to: int) -> None:
        """Drop what is under way of a model to a node that has joined: it has another, and what is behind it waits."""
        way = self._ways.get(to)
        if way is not None:
            if way.parcel is not None and way.parcel.letter.kind == ASIDE:
                way.parcel = None
            way.queue = deque(each for each in way.queue if each.kind != ASIDE or each.nbytes <= self._whole)
            self._tidy(to, way)

    def _drop(self, to: int, way: _Way) -> None:
        self.dropped["unsent"] += len(way.queue) + (way.parcel is not None)
        del self._ways[to]

    def _tidy(self, to: int, way: _Way) -> None:
        if way.parcel is None and not way.queue:
            del self._ways[to]


def _cut(frames: Sequence[Any], start: int, end: int) -> Iterator[memoryview]:
    """Yield the bytes from `start` to `end` of these frames one behind the other, without a copy."""
    at = 0
    for frame in frames:
        view = memoryview(frame).cast("B") if memoryview(frame).nbytes else memoryview(b"")
        first, last = max(start - at, 0), min(end - at, len(view))
        if first < last:
            yield view[first:last]
        at += len(view)


# --- the way in


class Taken(NamedTuple):
    """What a piece has brought."""

    message: list[Any] | None = None  # that is whole now: header, tensors
    answer: bytes | None = None  # to go to the sender
    progress: Progressed | None = None
    useless: bool = False  # it has brought nothing, or made what had come useless: honest nodes do so after a break


class _Coming:
    """What has come of a parcel. One buffer for each tensor: no page of it is taken before something is written."""

    def __init__(self, tag: ParcelId, form: int, header: bytes, sizes: Sequence[int]) -> None:
        self.tag, self.form, self.header, self.total = tag, form, header, sum(sizes)
        self.frames: list[memoryview] | None = [np.empty(size, np.uint8).data for size in sizes]
        self.held, self.heard = 0, 0.0

    def put(self, parts: Sequence[Any]) -> None:
        assert self.frames is not None
        for part in parts:
            view = memoryview(part)
            for place in _cut(self.frames, self.held, self.held + len(view)):
                place[:], view = view[: len(place)], view[len(place) :]
                self.held += len(place)


class ParcelsIn:
    """Puts together what comes in, one parcel of a node at a time."""

    def __init__(self, formats: Sequence[tuple[int, ...]]) -> None:
        self._formats = list(dict.fromkeys(formats))
        self._coming: dict[int, _Coming] = {}

    @property
    def nbytes(self) -> int:
        """Of the buffers that are held."""
        return sum(each.total for each in self._coming.values() if each.frames is not None)

    def take(self, node: int, frames: Sequence[Any], now: float) -> Taken:
        """Take in a piece. RemoteError for what no honest node sends; nothing is kept of it."""
        head = _head(frames[0])
        if len(frames) < 2 or memoryview(frames[1]).nbytes > HEADER_CAP:
            raise RemoteError("parcel", "a piece without a header, or with one that is too long")
        if head.what not in (_PIECE, _ASKS) or head.form >= len(self._formats):
            raise RemoteError("parcel", f"kind {head.what}, format {head.form}; there are {len(self._formats)}")
        sizes, parts = self._formats[head.form], frames[2:]
        size = sum(memoryview(part).nbytes for part in parts)
        if head.at + size > sum(sizes):
            raise RemoteError("parcel", f"{size} bytes at {head.at}; the schema has {sum(sizes)}")
        coming = self._coming.get(node)
        if coming is not None and head.tag < coming.tag:  # of an earlier connection; what it is of has been given up
            return Taken(useless=True)
        given_up = False
        if coming is None or head.tag > coming.tag:
            if head.at:
                return Taken(answer=_answer(head, 0, gap=True), useless=size > 0)
            given_up = coming is not None and coming.frames is not None
            coming = self._coming[node] = _Coming(head.tag, head.form, bytes(frames[1]), sizes)
        elif coming.form != head.form or coming.header != bytes(frames[1]):
            raise RemoteError("parcel", "two pieces of a parcel are not of the same message")
        coming.heard = now
        if head.at != coming.held or coming.frames is None:  # behind a gap, or it has come before
            return Taken(answer=_answer(head, coming.held, gap=head.at > coming.held), useless=size > 0)
        coming.put(parts)
        answer = _answer(head, coming.held, gap=False) if head.what == _ASKS else None
        progress = Progressed(node, head.tag.life, head.tag.to, size) if size else None
        if coming.held < coming.total:
            return Taken(None, answer, progress, given_up)
        message, coming.frames = [coming.header, *coming.frames], None
        return Taken(message, answer, progress, given_up)

    def forget(self, now: float) -> None:
        """Drop what has come of parcels that nobody goes on with; and what was the latest of a node, long ago."""
        for node, coming in [*self._coming.items()]:
            if now - coming.heard > _FORGOTTEN:
                del self._coming[node]


def is_answer(frames: Sequence[Any]) -> bool:
    """Return whether a message of this layer answers a piece."""
    return bytes(memoryview(frames[0])[1:2]) == bytes([_HELD])


def _answer(head: _Head, held: int, gap: bool) -> bytes:
    return _Head(_HELD, head.tag, held, head.turn, int(gap)).packed()
