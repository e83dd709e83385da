"""Frames over ZeroMQ: one ROUTER that everybody sends to, one DEALER to each node that something is sent to.

A link keeps order in each direction and loses what was on it when it breaks; nothing is concluded from a socket about
whether the other end lives. Messages to a neighbour that is not connected are dropped, not queued.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from p2pfl.errors import ConfigError

_QUEUE = 64
"""Messages that may wait for one neighbour. The protocol has a handful under way; more means that it reads nothing."""

_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
)


class Transport:
    """Sockets of one node. `dropped` counts what never became a message."""

    def __init__(self, listen: str, frame_cap: int) -> None:
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 4096)
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self._router.setsockopt(zmq.RCVHWM, 0)  # a frozen or slow reader is bounded by the senders' queues
        self._router.setsockopt(zmq.MAXMSGSIZE, frame_cap)
        self._monitor = self._router.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | sum(_FAILED))
        self._known: set[int] = set()  # file descriptors of connections that a neighbour has introduced itself on
        self.dropped: Counter[str] = Counter()
        self.bytes_sent = self.bytes_received = 0
        try:
            self._router.bind(listen)
        except zmq.ZMQError as error:
            self.close(0)
            raise ConfigError(
                f"listen={listen!r}: can't listen there: {error}. Free the port or choose another."
            ) from error
        self._addresses: dict[int, str] = {}
        self._dealers: dict[int, zmq.Socket[bytes]] = {}

    def know(self, node: int, address: str) -> None:
        """Note where a node is; a link to where it was before is given up."""
        if self._addresses.get(node) == address:
            return
        self._addresses[node] = address
        if node in self._dealers:
            self._dealers.pop(node).close(0)

    def _dealer(self, node: int) -> zmq.Socket[bytes]:
        if node not in self._dealers:
            dealer = self._context.socket(zmq.DEALER)
            dealer.setsockopt(zmq.IMMEDIATE, 1)
            dealer.setsockopt(zmq.SNDHWM, _QUEUE)
            # always the same short wait: with a growing one, a node that comes back is not heard for many rounds
            dealer.setsockopt(zmq.RECONNECT_IVL, 20)
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.connect(self._addresses[node])
            self._dealers[node] = dealer
        return self._dealers[node]

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """To poll for input."""
        return self._router

    def send(self, to: int, frames: Sequence[Any], nbytes: int) -> bool:
        """Send frames without copying large ones; False when the node is not connected yet or reads nothing."""
        if to not in self._addresses:
            self.dropped["unsent"] += 1
            return False
        try:
            self._dealer(to).send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self.dropped["unsent"] += 1
            return False
        self.bytes_sent += nbytes
        return True

    def receive(self) -> Iterator[list[zmq.Frame]]:
        """Return the messages that have come in: the frames of each, without the routing id."""
        while True:
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self.bytes_received += sum(len(frame) for frame in frames[1:])
            yield frames[1:]

    def introduced(self, frame: zmq.Frame) -> None:
        """A neighbour has introduced itself on the connection this frame came by."""
        self._known.add(int(frame.get(zmq.SRCFD)))

    def watch(self) -> list[str]:
        """Connections that were refused, or closed without a neighbour having introduced itself; their reasons."""
        found: list[str] = []
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            if event["event"] in _FAILED:
                found.append("handshake")
            elif event["event"] == zmq.EVENT_DISCONNECTED:
                if event["value"] not in self._known:
                    found.append("connection")
                self._known.discard(event["value"])
        self.dropped.update(found)
        return found

    def close(self, linger: float) -> None:
        """Close all sockets; what is on its way may take `linger` seconds more."""
        for dealer in getattr(self, "_dealers", {}).values():
            dealer.setsockopt(zmq.LINGER, int(linger * 1000))
            dealer.close()
        self._router.disable_monitor()
        self._monitor.close(0)
        self._router.close(0)
        self._context.term()
