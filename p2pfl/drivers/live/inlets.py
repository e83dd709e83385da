"""The connections by which a node that nobody can call takes messages in: it calls those that can be called.

Each is made by a thread, which greets and is done; from then on the listener reads it as one of its own. It is made
anew as long as it is wanted.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from typing import NamedTuple

from p2pfl.drivers.live import addresses, curve, zmtp
from p2pfl.drivers.live.reach import Call, Caller
from p2pfl.drivers.live.zmtp import Reader
from p2pfl.errors import RemoteError
from p2pfl.trust.keyring import Keyring

_AT_ONCE = 8
"""Calls under way, at once."""

_AGAIN = 0.5, 8.0
"""Seconds until a call that came to nothing is made again, at first and at last."""

_PATIENCE = 5.0
"""Seconds that a connection may take to come about."""


class Inlet(NamedTuple):
    """A connection that has come about."""

    node: int
    link: socket.socket
    reader: Reader


class Inlets:
    """Calls whoever is wanted, and has not been called or has hung up."""

    def __init__(self, introduction: bytes, keyring: Keyring, live: Callable[[int], bool]) -> None:
        """`live`: whether there is such a connection with a node."""
        self._introduction, self._keyring, self._live = introduction, keyring, live
        self._wanted: dict[int, str] = {}
        self._due: dict[int, float] = {}
        self._waits: dict[int, float] = {}
        self._under_way: set[int] = set()
        self._made: queue.SimpleQueue[tuple[int, Inlet | None]] = queue.SimpleQueue()

    def admit(self, keyring: Keyring) -> None:
        """Take other keys from now on."""
        self._keyring = keyring
        for node in [node for node in self._wanted if keyring.key_of(node) is None]:
            del self._wanted[node]

    def want(self, node: int, address: str) -> None:
        """Be in touch with the node at this address."""
        if node != self._keyring.node and self._wanted.get(node) != address:
            self._wanted[node] = address
            self._due.pop(node, None)

    def step(self, now: float) -> list[Inlet]:
        """Make the calls that are due; return the connections that have come about."""
        made = []
        while not self._made.empty():
            node, inlet = self._made.get()
            self._under_way.discard(node)
            wait = min(2 * self._waits.get(node, _AGAIN[0] / 2), _AGAIN[1])
            self._waits[node] = wait if inlet is None else _AGAIN[0] / 2
            self._due[node] = now + self._waits[node]
            if inlet is not None and self._keyring.key_of(node) is not None and not self._live(node):
                made.append(inlet)
            elif inlet is not None:
                inlet.link.close()
        for node, address in self._wanted.items():
            due = now >= self._due.get(node, now) and node not in self._under_way and not self._live(node)
            keys = curve.keys(self._keyring, node)
            if due and keys is not None and len(self._under_way) < _AT_ONCE:
                self._under_way.add(node)
                caller = Caller(self._introduction, keys, about=zmtp.TAKES)
                threading.Thread(target=self._call, args=(node, address, caller), name="inlet", daemon=True).start()
        return made

    def close(self) -> None:
        """Hang up what has come about and nobody has taken."""
        self._wanted.clear()
        while not self._made.empty():
            _, inlet = self._made.get()
            if inlet is not None:
                inlet.link.close()

    def _call(self, node: int, address: str, caller: Caller) -> None:
        inlet = None
        try:
            inlet = _called(node, address, caller)
        finally:
            self._made.put((node, inlet))


def _called(node: int, address: str, caller: Caller) -> Inlet | None:
    host, port = addresses.parsed(address)
    try:
        places = addresses.lookup(host, port)
    except (OSError, UnicodeError):
        return None
    for family, _, _, _, where in places:
        link = socket.socket(family)
        try:
            link.settimeout(_PATIENCE)
            link.connect(where)
            call = Call(link, caller)
            call.greet()
        except (OSError, RemoteError):
            link.close()
            continue
        return Inlet(node, link, call.reader)
    return None
