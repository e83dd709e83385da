"""Messages as frames: every kind there and back, and what is refused."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

from p2pfl.errors import RemoteError
from p2pfl.node.payload import Incoming, outgoing
from p2pfl.protocol import messages
from p2pfl.protocol.codec import Format, NonFinite, Schema, decode, digest, encode
from p2pfl.protocol.messages import CARRIERS, KINDS, VERSION, Envelope, Model, Offer, Push

PAYLOAD = Format(Schema("p", (4, 8)), lambda frames: frames[0] != b"nan!")
MODEL = Format(Schema("m", (16,)), lambda frames: True)
FORMATS = {Offer: PAYLOAD, Push: PAYLOAD, Model: MODEL}
SAMPLE = {
    "sees": 3,
    "federation": "f",
    "schema": "s",
    "part": 3,
    "parts": 4,
    "piece": b"abc",
    "heard": True,
    "round": 2,
    "number": 1,
    "last": "",
    "outcome": "b",
    "have": True,
    "epoch": 11,
    "digest": digest([b"x" * 16]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_there_and_back(kind: type[Any]) -> None:
    envelope = Envelope(1, 2, 3, kind(**{name: SAMPLE[name] for name in kind._fields}))
    frames = {Offer: [b"1234", b"12345678"], Push: [b"1234", b"12345678"], Model: [b"x" * 16]}.get(kind, [])
    assert decode([encode(envelope), *frames], FORMATS) == envelope._replace(payload=frames or None)
    with pytest.raises(RemoteError, match="frames"):
        decode([encode(envelope), *frames, b"more"], FORMATS)


def test_a_kind_has_its_own_schema() -> None:
    """A push with the frames of a model is no push."""
    for message, frames in ((Push(1, 2), [b"x" * 16]), (Model(1, ""), [b"1234", b"12345678"])):
        with pytest.raises(RemoteError, match="frames"):
            decode([encode(Envelope(1, 2, 3, message)), *frames], FORMATS)
    with pytest.raises(NonFinite):
        decode([encode(Envelope(1, 2, 3, Push(1, 2))), b"nan!", b"12345678"], FORMATS)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ([VERSION + 1, 0, 1, 1, 1], "version"),
        ([VERSION - 1, 0, 1, 1, 1], "version"),
        ([VERSION, len(KINDS), 1, 1, 1], "kind"),
        ([VERSION, KINDS.index(Push), 1, 1, 1, -1, 2], "header"),
        ([VERSION, KINDS.index(Push), 1, 1, 1, 1, 1, 1], "header"),
        ([VERSION, KINDS.index(Offer), 1, 1, 1, 0, 1, "x", 2], "header"),
        ([VERSION, KINDS.index(Push), -1, 1, 1, 1, 2], "header"),
        ([VERSION], "header"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(header: list[Any], reason: str) -> None:
    with pytest.raises(RemoteError) as error:
        decode([msgpack.packb(header), b"1234", b"12345678"], FORMATS)
    assert error.value.reason == reason


def test_numbers_on_the_wire_stay() -> None:
    """A message's place in KINDS is its number on the wire: append only."""
    names = ["Hello", "Offer", "Receipt", "AskVoid", "Closed", "Ping", "Pong", "Want", "Model", "Bye", "Push"]
    names += ["Description"]
    assert [kind.__name__ for kind in KINDS] == names
    assert {kind.__name__ for kind in CARRIERS} == {"Offer", "Push", "Model"}
    assert messages.VERSION == 5


def test_trees_go_there_and_back_with_scalars_and_float64() -> None:
    tree = {"x": np.arange(6, dtype=np.float64).reshape(2, 3), "w": np.float32(0.5), "n": np.zeros((0, 2), np.int32)}
    incoming = Incoming(tree)
    going = outgoing(tree)
    frames = [bytes(frame) for frame in going.frames]
    assert tuple(map(len, frames)) == incoming.schema.nbytes
    assert going.nbytes == sum(map(len, frames)) == 6 * 8 + 4
    back = incoming.tree(frames)
    for name, leaf in tree.items():
        assert back[name].dtype == np.asarray(leaf).dtype
        assert back[name].shape == np.asarray(leaf).shape
        assert np.array_equal(back[name], leaf)
    assert incoming.finite(frames)
    bad = outgoing({**tree, "w": np.float32("inf")})
    assert not incoming.finite([bytes(frame) for frame in bad.frames])
