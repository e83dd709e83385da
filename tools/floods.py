"""Floods: what whoever reaches a port of a node can throw at it, as fast as a core can send; each by a process of its
own. tests/test_faults.py holds all of them to a bound, `tools/bench.py --only floods` measures what each costs.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

AT_ONCE = 1000
"""Times that what is said again and again is said by one call."""


class Flood(NamedTuple):
    """What is thrown. It calls again when it is hung up on."""

    beside: int = 0  # the port: so many behind that of the models
    first: bytes = b""  # what each connection begins with
    again: bytes = b""  # then, as fast as it is taken
    connections: int = 1  # at once
    closes: bool = False  # each connection closes when it has said how it begins
    pause: float | None = None  # of what comes again a byte goes out each so many seconds, and no more


class Target(NamedTuple):
    """What a flood has to know of a run, to be as much like its node 1 as it can."""

    introduction: bytes  # of node 1
    federation: str
    lives: tuple[int, int]  # of nodes 0 and 1
    sizes: Sequence[int]  # bytes of the tensors of a payload
    round: int
    nodes: int


# --- what is said


def frame(body: bytes, more: bool = False, command: bool = False) -> bytes:
    """A frame of ZMTP."""
    long = len(body) > 255
    size = struct.pack(">Q" if long else ">B", len(body))
    return bytes([more | 2 * long | 4 * command]) + size + body


def message(*frames: bytes) -> bytes:
    """A message of ZMTP."""
    return b"".join(frame(each, more=True) for each in frames[:-1]) + frame(frames[-1])


def floods(target: Target) -> dict[str, Flood]:
    """All there are, by name."""
    from p2pfl.drivers.live import zmtp
    from p2pfl.protocol import agreement
    from p2pfl.protocol.codec import encode
    from p2pfl.protocol.membership import wire
    from p2pfl.protocol.membership.table import ALIVE, MemberEntry
    from p2pfl.protocol.messages import Description, Envelope, Hello, Model, Offer, Ping, Push, Receipt, Want

    hand = zmtp.GREETING + zmtp.ready(b"DEALER", target.introduction)
    nobody = zmtp.GREETING + zmtp.ready(b"DEALER", b"")
    small, part = message(b"x" * 20), frame(b"x" * 64, more=True)
    ping = frame(b"\x04PING\0\0", command=True)
    life, own = target.lives
    body = [bytes(size) for size in target.sizes]

    def said(what: object, *frames: bytes) -> bytes:
        return message(encode(Envelope(1, own, life, what)), *frames)  # type: ignore[arg-type]

    def member(what: wire.Message, address: str = "tcp://127.0.0.1:9") -> bytes:
        sender = MemberEntry(1, own, 0, ALIVE, address, 0, 0, 0.0, -1)
        return message(wire.encode(wire.Datagram(target.federation, 7, sender, (), what), 0.0))

    others = [f"tcp://127.{i % 200 + 1}.{i // 200}.1:9" for i in range(AT_ONCE)]
    text = agreement.pack("[" + ",".join(f'"{i}"' for i in range(100_000)) + "]\n{}")
    pieces = [text[at : at + agreement.PIECE] for at in range(0, len(text), agreement.PIECE)][: agreement.PIECES]
    hello = Hello(life, target.federation, agreement.digest(text), 1)
    described = said(hello) + b"".join(said(Description(i, len(pieces), p, False)) for i, p in enumerate(pieces))
    lives = b"".join(
        message(encode(Envelope(1, own + i, 0, Hello(life, target.federation, "s", 0)))) for i in range(1, AT_ONCE)
    )
    return {
        # a stranger
        "models: frames of a stranger": Flood(first=nobody, again=small),
        "models: connections": Flood(first=nobody, closes=True),
        "models: 500 idle connections": Flood(connections=500),
        "models: 500 half-open handshakes": Flood(first=zmtp.GREETING[:40], connections=500),
        "models: 500 slow handshakes": Flood(again=hand, connections=500, pause=0.2),
        "membership: frames of a stranger": Flood(1, nobody, small),
        "membership: 500 idle connections": Flood(1, connections=500),
        # who says that it is a member, or is one
        "models: tiny frames": Flood(first=hand, again=small),
        "models: pings of the connection": Flood(first=hand, again=ping),
        "models: a message that never ends": Flood(first=hand, again=part),
        "models: a message byte by byte": Flood(first=hand, again=frame(b"x" * 200), pause=0.0),
        "models: a frame that is too large": Flood(first=hand + b"\x02" + struct.pack(">Q", 1 << 62), again=b"x" * 99),
        "models: connections that say who they are": Flood(first=hand + small, closes=True),
        "models: receipts": Flood(first=hand, again=said(Receipt(0))),
        "models: pings": Flood(first=hand, again=said(Ping(0, False, "", target.round))),
        "models: offers": Flood(first=hand, again=said(Offer(0, target.round, "", 0), *body)),
        "models: pushes": Flood(first=hand, again=said(Push(target.round, 0), *body)),
        "models: models": Flood(first=hand, again=said(Model(target.round, ""), *body)),
        "models: models are wanted": Flood(first=hand, again=said(Want(0))),
        "models: new lives": Flood(first=hand, again=lives),
        "models: descriptions": Flood(first=hand, again=described),
        "membership: tiny frames and pings": Flood(1, hand, small * 100 + ping),
        "membership: a message that never ends": Flood(1, hand, part),
        "membership: connections that say who they are": Flood(1, hand + small, closes=True),
        "membership: tables are asked for": Flood(1, hand, member(wire.Sync())),
        "membership: pings at other addresses": Flood(1, hand, b"".join(member(wire.Ask(2, a, 0.0)) for a in others)),
        "membership: answers to other addresses": Flood(
            1, hand, b"".join(member(wire.DirectPing(0), a) for a in others)
        ),
        "membership: in the name of many": Flood(
            1, zmtp.GREETING + zmtp.ready(b"DEALER", zmtp.introduction(target.federation, 500)), small, 200
        ),
    }


# --- throwing it


@dataclass(slots=True)
class _Link:
    socket: socket.socket
    left: bytes  # that it still has to say before it says the same again
    at: int = 0  # in what is said again, where that goes byte by byte


def throw(host: str, port: int, seconds: float, flood: Flood) -> None:
    """Throw it for so long."""
    os.nice(19)  # it shall not be this process that takes the nodes' time
    end, links = time.monotonic() + seconds, dict[int, _Link]()
    again = flood.again * max(1, AT_ONCE * 20 // max(len(flood.again), 1)) if flood.pause is None else flood.again
    due = 0.0
    with selectors.DefaultSelector() as selector:
        while (now := time.monotonic()) < end:
            for _ in range(min(flood.connections - len(links), 50)):
                made = socket.socket()
                made.setblocking(False)
                made.connect_ex((host, port + flood.beside))
                links[made.fileno()] = _Link(made, flood.first)
                selector.register(made, selectors.EVENT_READ | selectors.EVENT_WRITE)
            lost = [key.fd for key, _ in selector.select(0.02) if not _get_on(links[key.fd], again, flood)]
            if flood.pause is not None and now >= due:
                due = now + flood.pause
                lost += [file for file, link in links.items() if file not in lost and not _drip(link, again)]
            for file in lost:
                selector.unregister(links[file].socket)
                links.pop(file).socket.close()
            if lost:
                time.sleep(0.002)
            for link in links.values():  # who has nothing to say waits to be hung up on
                idle = not link.left and (flood.pause is not None or not again)
                selector.modify(link.socket, selectors.EVENT_READ | (0 if idle else selectors.EVENT_WRITE))
    for link in links.values():
        link.socket.close()


def _get_on(link: _Link, again: bytes, flood: Flood) -> bool:
    """Say what is taken; False when it is over."""
    try:
        with contextlib.suppress(BlockingIOError):
            if not link.socket.recv(1 << 16):
                return False
        if not link.left and flood.pause is None:
            link.left = again
        if link.left:
            link.left = link.left[link.socket.send(link.left) :]
    except BlockingIOError:
        return True
    except OSError:
        return False
    return bool(link.left) or not flood.closes


def _drip(link: _Link, again: bytes) -> bool:
    """Say one byte more; False when it is over."""
    if link.left or not again:
        return True
    try:
        link.socket.send(again[link.at : link.at + 1])
    except BlockingIOError:
        return True
    except OSError:
        return False
    link.at = (link.at + 1) % len(again)
    return True


def thrown(host: str, port: int, seconds: float, flood: Flood) -> subprocess.Popen[bytes]:
    """Throw it from a process of its own."""
    table = flood._replace(first=flood.first.hex(), again=flood.again.hex())._asdict()  # type: ignore[arg-type]
    started = subprocess.Popen([sys.executable, __file__, host, str(port), str(seconds)], stdin=subprocess.PIPE)
    assert started.stdin is not None
    started.stdin.write(json.dumps(table).encode())
    started.stdin.close()
    return started


def main() -> None:
    """`floods.py HOST PORT SECONDS`, with a flood on standard input."""
    table = json.load(sys.stdin)
    flood = Flood(**{**table, "first": bytes.fromhex(table["first"]), "again": bytes.fromhex(table["again"])})
    throw(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), flood)


if __name__ == "__main__":
    main()
