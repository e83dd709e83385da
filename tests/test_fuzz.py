"""Whatever comes in, nothing but the documented faults come out, all of it is counted, and memory stays flat.

A few frames each here; `make fuzz` takes a million. Whole peers are in test_fuzz_peer.py, files in test_fuzz_files.py.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import test_transport
from fuzzing import SIZES, WHOLE, Draw, Take, bent, cut, fuzz, growth, packed, said, twisted

from p2pfl.data import dictionary
from p2pfl.drivers.live import zmtp
from p2pfl.drivers.live.parcels import Letter, ParcelsIn, ParcelsOut, is_answer, is_parcel
from p2pfl.drivers.live.zmtp import Command, Kind, Limits, Reader
from p2pfl.errors import RemoteError
from p2pfl.node.payload import Incoming
from p2pfl.node.plan import differences
from p2pfl.protocol import agreement
from p2pfl.protocol.codec import decode, digest, encode
from p2pfl.protocol.events import Progressed
from p2pfl.protocol.membership import documents, wire
from p2pfl.protocol.membership.events import (
    Accused,
    Changed,
    Heard,
    MemberDrop,
    MemberReborn,
    MemberStart,
    MemberTick,
    Say,
    Superseded,
)
from p2pfl.protocol.membership.membership import Membership
from p2pfl.protocol.membership.seeds import Seed
from p2pfl.protocol.membership.table import ALIVE, Me, MemberEntry
from p2pfl.protocol.membership.timing import LAN
from p2pfl.protocol.membership.wire import Datagram
from p2pfl.protocol.messages import BOOKED, CARRIERS, KINDS, VERSION, VOID
from p2pfl.protocol.strangers import Strangers

FLAT = 50_000
"""Bytes by which memory may grow over some hundred frames: counters, caches of small numbers, and what of a frame is
still held. A hundredth of what the frames themselves have."""


# --- models: headers and tensors

TREE = {"w": np.zeros((3, 2), np.float32), "n": np.zeros(4, np.int32), "none": np.zeros((0, 2), np.float64)}
INCOMING = Incoming(TREE)
FORMATS = dict.fromkeys(CARRIERS, INCOMING.format)
GOOD = [np.ones(size, np.uint8).tobytes() for size in INCOMING.schema.nbytes]
NAN = [np.full(6, np.nan, np.float32).tobytes(), *GOOD[1:]]
OF_CODEC = {"header", "version", "kind", "frames", "digest", "nonfinite"}
FIELDS: dict[str, list[Any]] = {
    "sees": [0, 1, 5], "federation": ["f"], "schema": ["s"], "part": [0, 1], "parts": [1, 2], "piece": [b"x"],
    "heard": [True, False], "have": [True, False], "last": ["", BOOKED, VOID], "outcome": [BOOKED, VOID],
    "digest": [digest(GOOD), digest(NAN), "d"], "number": [0, 1], "round": [0, 1, 9], "epoch": [0, 77],
}  # fmt: skip


def header(draw: Draw) -> list[Any]:
    kind = draw.randrange(len(KINDS))
    return [VERSION, kind, draw.randrange(4), 5, 7, *(draw.choice(FIELDS[name]) for name in KINDS[kind]._fields)]


def tensors(draw: Draw) -> list[bytes]:
    match draw.randrange(6):
        case 0:
            return []
        case 1:
            return [bent(draw, frame) for frame in GOOD]
        case 2:
            return draw.choice([GOOD[:-1], [*GOOD, b""], GOOD[::-1], [b"".join(GOOD)]])
        case 3:
            return NAN
    return GOOD


def codec() -> Take:
    def take(draw: Draw) -> None:
        frames = [packed(draw, header(draw)), *tensors(draw)]
        if not draw.randrange(50):
            frames = frames[1:]
        try:
            envelope = decode(frames, FORMATS)
        except RemoteError as error:
            assert error.reason in OF_CODEC
            return
        assert decode([encode(envelope), *(envelope.payload or ())], FORMATS) == envelope

    return take


@pytest.mark.parametrize("frames", SIZES)
def test_of_models_only_well_formed_messages_come_in(frames: int) -> None:
    fuzz(frames, codec)


# --- connections

LIMITS = Limits(frame=70_000, frames=4, message=100_000)
IDENTITY = zmtp.introduction("federation", 3)
KIND = Kind("0.1.0", 5, 1, 3, "models").encode()

OPENINGS = {"plain": lambda: zmtp.GREETING + zmtp.ready(b"DEALER", IDENTITY, KIND)}
"""What a connection begins with, by its mechanism."""


def framed(body: bytes, flags: int) -> bytes:
    short = len(body) < 256
    size = len(body).to_bytes(1 if short else 8, "big")
    return bytes([flags | (0 if short else 2)]) + size + body


def stream(draw: Draw, opening: bytes) -> bytes:
    """What comes in on a connection, nearly right."""
    parts = [bent(draw, opening, 1)] if not draw.randrange(3) else [opening]
    for _ in range(draw.randrange(5)):
        body = bytes(draw.choice([0, 1, 20, 255, 256, 5000, 33_000, 69_000]))
        flags = draw.choice([0, 0, 0, 1, 1, 4, 4, 5, 8, 255])
        parts.append(framed(b"\x04PING" + body[:300] if flags == 4 else body, flags))
        if not draw.randrange(12):
            parts.append(b"\x02" + draw.choice(WHOLE[:-1]).to_bytes(8, "big"))  # is announced and never comes
    return bent(draw, b"".join(parts), draw.choice([0, 0, 0, 1]))


def read(pieces: Any) -> list[Any]:
    """What a reader makes of these bytes as they come; the last is why they are refused, where they are."""
    reader, items = Reader(), list[Any]()
    try:
        for piece in pieces:
            while piece:
                space = reader.space
                part, piece = piece[: len(space)], piece[len(space) :]
                space[: len(part)] = part
                reader.took(len(part))
                while (item := reader.next()) is not None:
                    if isinstance(item, Command) and not items:
                        assert zmtp.introduced(zmtp.identity(item), "federation") >= 0
                        zmtp.kind(item), zmtp.asks(item)
                        reader.limits = LIMITS
                    items.append(item if isinstance(item, Command) else [bytes(each) for each in item])
                assert reader._bytes <= LIMITS.message and len(reader._frames) <= LIMITS.frames
                assert len(reader._buffer) == zmtp._BUFFER
    except RemoteError as error:
        assert error.reason in ("handshake", "size")
        items.append(error.reason)
    return items


def connections(opening: str) -> Callable[[], Take]:
    def make() -> Take:
        def take(draw: Draw) -> None:
            data = stream(draw, OPENINGS[opening]())
            assert read(cut(draw, data)) == read([data])

        return take

    return make


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("frames", SIZES)
def test_what_comes_in_on_a_connection_is_the_same_however_it_is_cut(frames: int, opening: str) -> None:
    try:
        fuzz(frames, connections(opening))
    except AssertionError as error:
        raise AssertionError(f"mechanism {opening}") from error


def good(data: bytes) -> bool:
    """Whether a connection that brings this and closes has said all that a node says, and nothing else."""
    items = read([data])
    if not items or not isinstance(items[0], Command) or isinstance(items[-1], str):
        return False
    whole = zmtp.introduced(zmtp.identity(items[0]), "federation") < 10
    return whole and read([data, framed(b"the end", 0)])[-1] == [b"the end"]  # nothing has come in part


def test_every_connection_that_goes_wrong_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_transport, "LIMITS", LIMITS)
    monkeypatch.setattr(test_transport, "FEDERATION", "federation")
    draw, at, bad = Draw(5), test_transport.Bench(), 0
    with at.stack:
        for _ in range(150):
            data = stream(draw, OPENINGS["plain"]())
            bad += not good(data)
            with contextlib.suppress(OSError), at.call() as link:  # it may be hung up on in the middle
                link.sendall(data)
            while at.turn(0.3) or at.listener._connections:
                pass
        assert bad > 30 and at.listener.dropped.total() == bad


# --- parcels

PIECE, SIZES_OF = 100, [(350, 0, 7, 643), (50, 50)]
TOTAL = max(map(sum, SIZES_OF))


class Way:
    """One end of parcels in both directions: it is sent what another end would send, nearly."""

    def __init__(self) -> None:
        self.out, self.inbox, self.now = ParcelsOut(SIZES_OF, PIECE), ParcelsIn(SIZES_OF), 0.0
        self.other, self.bad = ParcelsOut(SIZES_OF, PIECE), 0
        self.number = 0

    def letter(self, draw: Draw) -> Letter:
        self.number += 1
        body = [bytes(size) for size in SIZES_OF[0]]
        return Letter((b"letter", *body), TOTAL + 6, draw.choice(["Offer", "Push", "Model"]), (5, draw.randint(1, 3)))

    def __call__(self, draw: Draw) -> None:
        self.now += draw.choice([0.0, 0.1, 0.6, 40.0])
        for way in (self.out, self.other):
            if way.idle:
                way.add(1, self.letter(draw), self.now)
        portion = self.out.next(1, self.now)
        if portion is not None:
            self.out.took(1, portion, self.now)
        portion = self.other.next(1, self.now)
        if portion is None:
            self.other.give_up(self.now)
            return
        self.other.took(1, portion, self.now)
        frames = [bytes(frame) for frame in portion.frames]
        if draw.randrange(3):
            at = draw.randrange(len(frames))
            frames[at] = bent(draw, frames[at])
        if not draw.randrange(4):  # an answer, to what has not been asked perhaps
            frames[0] = frames[0][:1] + b"\x02" + frames[0][2:]
            frames = frames[: draw.randint(1, 2)]
        self.take(draw.randrange(3), frames)
        assert self.inbox.nbytes <= 3 * TOTAL
        self.out.give_up(self.now)
        self.inbox.forget(self.now)

    def take(self, node: int, frames: list[bytes]) -> None:
        if not is_parcel(frames):
            return
        try:
            if is_answer(frames):
                assert isinstance(self.out.answered(1, frames, self.now), Progressed | None)
                return
            taken = self.inbox.take(node, frames, self.now)
        except RemoteError as error:
            assert error.reason == "parcel"
            self.bad += 1
            return
        if taken.message is not None:
            assert tuple(len(frame) for frame in taken.message[1:]) in SIZES_OF
        assert taken.answer is None or len(taken.answer) < 60


@pytest.mark.parametrize("frames", SIZES)
def test_pieces_of_large_messages(frames: int) -> None:
    fuzz(frames, Way)


def test_after_any_pieces_an_honest_parcel_comes_whole() -> None:
    """A minute later at the latest, what a parcel was said to be before does not matter."""
    draw, way = Draw(3), Way()
    for _ in range(500):
        way(draw)
    for node, tag in ((0, b"\xff" * 24), (1, bytes(24))):  # the greatest there can be, and whole at once
        parts = [bytes(size) for size in SIZES_OF[1]]
        way.take(node, [b"\xc1\x00" + tag + bytes(8 + 4) + b"\x01", b"letter", *parts])
    way.now += 61.0
    way.inbox.forget(way.now)
    for node in range(3):
        honest, came = ParcelsOut(SIZES_OF, PIECE), deque[Any]()
        honest.add(1, way.letter(draw), way.now)
        while not came:
            portion = honest.next(1, way.now)
            assert portion is not None
            honest.took(1, portion, way.now)
            way.now += 0.4
            taken = way.inbox.take(node, portion.frames, way.now)
            if taken.answer is not None:
                honest.answered(1, [taken.answer], way.now)
            came += [taken.message] if taken.message is not None else []
        assert [len(frame) for frame in came[0]] == [6, *SIZES_OF[0]]


# --- the membership

CLUSTER, NODES = "federation", 6
ADDRESSES = ["tcp://v:0", "tcp://v:1", "tcp://10.0.0.1:7000", "tcp://[fd00::7]:1", "tcp://v:65535"]
OF_WIRE = {"size", "message", "version", "cluster", "kind"}


def entry(draw: Draw) -> list[Any]:
    life = draw.choice([1, 2, 3, 1 << 41, 1 << 42, 1 << 43, (1 << 63) - 1])
    refutes = draw.choice([0, 1, 5, 1 << 20, (1 << 53) - 1])
    said, round = (draw.choice([0, 1, 2, 9, 1 << 52, (1 << 53) - 1]) for _ in range(2))
    seconds = draw.choice([0.0, 0.5, 30.0, 1e6, 1e9])
    address = draw.choice(ADDRESSES)
    return [
        draw.randrange(NODES + 2),
        life,
        refutes,
        draw.randrange(4),
        address,
        said,
        round,
        seconds,
        draw.randint(-1, NODES),
        *draw.choice([[], [], [0, bytes(64)], [10**6, b"signature"], [1, b""]]),
    ]


def datagram(draw: Draw, asked: list[int]) -> bytes:
    """A datagram, nearly right. `asked`: numbers of questions that have gone out."""
    kind = draw.randrange(len(wire.KINDS))
    fields = {
        "target": draw.randrange(NODES + 1),
        "address": draw.choice(ADDRESSES),
        "wait": draw.choice([0.0, 0.1, 1e9]),
        "data": draw.choice([b"", b"theirs", bytes(300)]),
    }
    seq = draw.choice([0, 5, *asked[-6:]])
    body = [fields[name] for name in wire.KINDS[kind]._fields]
    about = [entry(draw) for _ in range(draw.choice([0, 0, 1, 3]))]
    digest = draw.choice([[], [], [bytes(16)], [documents.digest(b"theirs")], [b"short"]])
    return packed(draw, [wire.VERSION, CLUSTER, kind, seq, entry(draw), about, *body, *digest])


class MemberTarget:
    """A whole membership in virtual time. `dropped`: what it has dropped, by cause; `bad`: what can't be read."""

    def __init__(self) -> None:
        self.now, self.asked = 0.0, list[int]()
        self.dropped, self.bad = Counter[str](), 0
        self.begin(2)

    def begin(self, life: int) -> None:
        self.life = life
        me, seeds = Me(0, life, "tcp://v:0", NODES), [Seed("tcp://v:1")]
        self.member = Membership(me, CLUSTER, seeds, LAN, 0, document=b"mine")
        self.carry_out(self.member.handle(MemberStart(), self.now))

    def __call__(self, draw: Draw) -> None:
        self.now += draw.choice([0.0, 0.001, 0.05, 0.5, 20.0])
        if self.member.wake <= self.now:
            self.carry_out(self.member.handle(MemberTick(), self.now))
        data, reason = datagram(draw, self.asked), ""
        try:
            wire.decode(data, CLUSTER, self.now)
        except RemoteError as error:
            reason = error.reason
            assert reason in OF_WIRE
        effects = self.member.handle(Heard(data), self.now)
        drops = [effect.reason for effect in effects if isinstance(effect, MemberDrop)]
        if reason:
            self.bad += 1
            assert drops[:1] == [reason]
        self.carry_out(effects)
        if any(isinstance(effect, Superseded) for effect in effects):  # its owner ends, and is started again
            self.begin(self.life + 1)
        for effect in effects:
            if isinstance(effect, Accused):
                self.carry_out(self.member.handle(MemberReborn(effect.life + 1), self.now))

    def carry_out(self, effects: list[Any]) -> None:
        for effect in effects:
            match effect:
                case Say(address, data):
                    assert wire.good_address(address)
                    said = wire.decode(data, CLUSTER, self.now)
                    self.asked = [*self.asked, said.seq][-20:]
                case MemberDrop(reason, detail):
                    self.dropped[reason] += 1
                    assert len(detail) < 1000
                case Changed(members):
                    assert len(members) <= NODES and all(0 <= each.node < NODES for each in members)
        assert any(member.node == 0 for member in self.member.members)
        assert len(self.member._relays) <= 256 and len(self.member._questions) <= 1024


@pytest.mark.parametrize("frames", SIZES)
def test_a_whole_membership_hears_anything(frames: int) -> None:
    fuzz(frames, MemberTarget)


def test_every_datagram_that_cannot_be_read_is_counted_by_its_cause() -> None:
    draw, target = Draw(1), MemberTarget()
    for _ in range(3000):
        target(draw)
    assert target.bad > 1000 and sum(target.dropped[reason] for reason in OF_WIRE) == target.bad
    assert {"message", "version", "cluster", "kind", "stranger"} <= target.dropped.keys()
    first = MemberEntry(1, 1 << 44, 0, ALIVE, "tcp://v:1", 1, 1, 0.0, -1)  # an honest one is heard as before
    data = wire.encode(Datagram(CLUSTER, 7, first, [], wire.DirectPing(0)), target.now)
    answered = [effect for effect in target.member.handle(Heard(data), target.now) if isinstance(effect, Say)]
    assert any(isinstance(wire.decode(say.data, CLUSTER, target.now).message, wire.Ack) for say in answered)


# --- what differs: strangers, descriptions

FIELDS_OF = {"name": "study", "rounds": "20", "topology.graph": "ring", "graph": "g", "seed": "0"}


def zipped(draw: Draw, text: str) -> bytes:
    match draw.randrange(6):
        case 0:
            return bent(draw, agreement.pack(text))
        case 1:
            return zlib.compress(draw.choice([b"\xff\xfe", b"0" * (1 << 21), b"[" * 5000, b'"\\ud800"', b"9" * 5000]))
    return agreement.pack(bent(draw, text.encode(), 2).decode("utf-8", "replace") if not draw.randrange(3) else text)


class Asked:
    """A node that strangers ask, and that asks them."""

    def __init__(self) -> None:
        self.here, self.now = Strangers(0, FIELDS_OF, 0.0), 0.0
        self.counted, self.bad = 0, 0

    def __call__(self, draw: Draw) -> None:
        self.now += draw.choice([0.0, 0.3, 1.0])
        table = {"node": draw.randrange(4), "fields": FIELDS_OF | {draw.choice([*FIELDS_OF]): "another"}}
        answer = {"node": draw.randrange(4), "differs": {draw.choice([*FIELDS_OF, "new"]): draw.choice(["x", None])}}
        for question, ask in ((table, lambda data: self.here.answer(data, self.now)), (answer, self.here.understand)):
            text = said(twisted(draw, question) if draw.randrange(3) else question)
            try:
                told = ask(zipped(draw, text))
            except RemoteError as error:
                assert error.reason in ("flood", "handshake", "size")
                continue
            assert len(told) <= 1 << 16 if isinstance(told, bytes) else told.said.isprintable()
        assert len(self.here.news()) <= 16


@pytest.mark.parametrize("frames", SIZES)
def test_strangers_ask_and_answer_anything(frames: int) -> None:
    fuzz(frames, Asked)


ROWS = {
    "kind": "classes", "predicts": ["ill"], "classes": ["no", "yes"],
    "columns": [
        {"name": "age", "kind": "number", "unit": "years", "missing": "median", "standardize": "zscore"},
        {"name": "sex", "kind": "category", "categories": ["f", "m"], "coding": "one_hot"},
    ],
    "image": {
        "shape": [3, 2], "channels": 1, "bit_depth": 8, "unit": "stored", "scaling": "fixed", "intensity": [0.0, 255.0],
        "orientation": "", "photometric": "",
    },
}  # fmt: skip
LEAVES = {"model a/w": "float32 [3, 2]", "model a/b": "float32 [2]"}


def descriptions() -> Take:
    ours = dictionary.from_json(json.dumps(ROWS))
    here = f"{dictionary.to_json(ours)}\n{json.dumps(LEAVES)}"

    def compare(theirs: str) -> Any:
        return dictionary.differences(dictionary.from_json(theirs), ours)

    def take(draw: Draw) -> None:
        rows, leaves = (said(twisted(draw, each)) for each in (ROWS, LEAVES))
        text = f"{rows}\n{leaves}" if draw.randrange(5) else bent(draw, here.encode()).decode("utf-8", "replace")
        try:
            lines = differences(agreement.unpack(zipped(draw, text)), here, compare)
        except (ValueError, RecursionError):  # what `Agreement.hear` is ready for
            return
        assert all(isinstance(agreement.printable(line), str) for line in lines)

    return take


@pytest.mark.parametrize("frames", SIZES)
def test_another_node_describes_anything(frames: int) -> None:
    fuzz(frames, descriptions)


# --- memory

TARGETS: dict[str, Callable[[], Take]] = {
    "codec": codec, "connections": connections("plain"), "parcels": Way, "membership": MemberTarget, "strangers": Asked,
    "descriptions": descriptions,
}  # fmt: skip


@pytest.mark.more
@pytest.mark.parametrize("name", TARGETS)
def test_memory_stays_flat(name: str) -> None:
    frames = 400 if name == "connections" else 1000  # which are dear
    assert growth(TARGETS[name](), frames // 2, frames) < FLAT
