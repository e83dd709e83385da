"""Fuzz: frames that are nearly right, and what must hold of whatever takes them in.

One source of frames for three uses: hypothesis draws them (a few in every lane, the same ones each time; a million in
`make fuzz`, others each time, and what fails is made small), and a seeded `random.Random` where memory is measured.
"""

from __future__ import annotations

import gc
import json
import math
import random
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

Draw = random.Random
Take = Callable[[Draw], object]
"""Takes in one frame that it draws."""

BATCH = 20
"""Frames that the same object takes in, one after the other: hypothesis calls that an example."""

FEW, MANY = 200, 60_000
"""Frames of a test in every lane, and in `make fuzz`: with its 18 tests, more than a million there."""


def sizes(*marks: pytest.MarkDecorator) -> list[Any]:
    """The values of a parameter `frames`; `marks`: of the few."""
    return [pytest.param(FEW, id="few", marks=marks), pytest.param(MANY, id="many", marks=pytest.mark.fuzz)]


SIZES, LATER = sizes(), sizes(pytest.mark.more)
"""Of what `make test` takes, and of what is in `make test-all`."""


def fuzz(frames: int, make: Callable[[], Take]) -> None:
    """Let objects that `make` makes take in so many frames in all."""

    @settings(
        max_examples=frames // BATCH,
        derandomize=frames <= FEW,  # the same in every run of CI
        database=None,
        deadline=None,  # a machine may be busy
        suppress_health_check=[*HealthCheck],
        print_blob=True,
        phases=[phase for phase in Phase if frames > FEW or phase != Phase.shrink],
    )
    @given(st.randoms(use_true_random=False, note_method_calls=False))
    def examine(draw: Draw) -> None:
        take = make()
        for _ in range(BATCH):
            take(draw)

    examine()


def growth(take: Take, warm: int, frames: int) -> int:
    """Return by how many bytes memory has grown while so many frames were taken in, after `warm` others."""
    draw = random.Random(0)

    def taken(count: int) -> int:
        for _ in range(count):
            take(draw)
        gc.collect()  # what is in a circle is not held
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = taken(warm)
        return taken(frames) - before
    finally:
        tracemalloc.stop()


# --- nearly right


def bent(draw: Draw, data: bytes, most: int = 3) -> bytes:
    """Return these bytes with up to `most` faults: turned bits, others in their place, too few, too many."""
    result = bytearray(data)
    for _ in range(draw.randint(0, most)):
        at = draw.randrange(len(result) + 1)
        match draw.randrange(6):
            case 0 if at < len(result):
                result[at] ^= 1 << draw.randrange(8)
            case 1:
                result[at : at + 1] = bytes([draw.randrange(256)])
            case 2:
                del result[at:]
            case 3:
                result[at:at] = draw.randbytes(draw.randint(1, 9))
            case 4:
                del result[at : at + draw.randint(1, 9)]
            case _:
                result += result[at : at + 40]
    return bytes(result)


DEEP = b"\x91" * 600 + b"\xc0"
"""Arrays in arrays, deeper than anybody reads."""

WHOLE = [0, 1, 2, 3, 7, 63, 64, 65, 1 << 31, (1 << 31) - 1, 1 << 53, (1 << 53) - 1, (1 << 63) - 1, 1 << 63, -1]
"""Whole numbers at which bounds lie."""

ODD: list[Any] = [
    None, True, False, 0.0, -1.5, 1e9, 1e10, 1e308, math.nan, math.inf, -math.inf, "", "b", "v", "f", "tcp://a:1",
    "\x1b[2J", "e" * 64, "\u00e9" * 200, "tcp://" + "a" * 200 + ":1", b"", b"b", b"\xff" * 700, [], [[]], [1, 2, 3], {},
    {"a": {"b": []}}, {b"a": 1}, msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 5),
]  # fmt: skip
"""Values that a field may hold and should not."""


def odd(draw: Draw) -> Any:
    """Return any value."""
    return draw.choice(WHOLE) if draw.randrange(2) else draw.choice(ODD)


def twisted(draw: Draw, value: Any) -> Any:
    """Return nested lists and tables with something else in one place: another value, one too many, one too few."""
    if isinstance(value, list) and value and draw.randrange(8):
        at, result = draw.randrange(len(value)), [*value]
        match draw.randrange(10):
            case 0:
                del result[at]
            case 1:
                result.insert(at, draw.choice(value))
            case _:
                result[at] = twisted(draw, value[at])
        return result
    if isinstance(value, dict) and value and draw.randrange(8):
        name = draw.choice(sorted(value, key=repr))
        match draw.randrange(10):
            case 0:
                return {key: each for key, each in value.items() if key != name}
            case 1:
                return value | {str(odd(draw))[:20]: value[name]}
            case _:
                return value | {name: twisted(draw, value[name])}
    return odd(draw)


def packed(draw: Draw, value: Any) -> bytes:
    """Return a value as msgpack, and once in a while what is none."""
    match draw.randrange(12):
        case 0:
            return bent(draw, msgpack.packb(value))
        case 1:
            return draw.choice([DEEP, b"", draw.randbytes(draw.randint(1, 40))])
        case 2 | 3:
            return bytes(msgpack.packb(value))
    return bytes(msgpack.packb(twisted(draw, value)))


def said(value: Any) -> str:
    """Return it as JSON, as far as JSON can say it."""
    return json.dumps(value, default=repr, skipkeys=True)


def cut(draw: Draw, data: bytes, most: int = 6) -> Iterable[bytes]:
    """Yield the bytes in pieces, as a network delivers them."""
    at = sorted(draw.randrange(len(data) + 1) for _ in range(draw.randrange(most)))
    return (data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True))
