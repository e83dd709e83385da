"""The process that live/sidecar starts: the member, its sockets, and the link to its node.

One ROUTER that everybody sends to, one DEALER to each address. ZeroMQ reconnects by itself and in silence; nothing is
concluded from a socket about whether the other end lives. What can't be sent now is dropped: late is useless here.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

import setproctitle
import zmq

from p2pfl.drivers.live import clock
from p2pfl.errors import ConfigError
from p2pfl.protocol.membership import wire
from p2pfl.protocol.membership.events import (
    Accused,
    Busy,
    Changed,
    Conflict,
    Event,
    Gone,
    Heard,
    MemberDrop,
    MemberLeave,
    MemberReborn,
    MemberStart,
    MemberTick,
    Progress,
    Say,
    Superseded,
)
from p2pfl.protocol.membership.membership import Membership
from p2pfl.protocol.membership.table import Me
from p2pfl.protocol.membership.timing import ProbeTiming

_QUEUE = 64
"""Messages that may wait on a connection."""

_CONNECTING = 8
"""Messages that may wait for a connection to come up ..."""

_FRESH = 0.5
"""... for so many seconds: a first message is not lost only because nobody has called there before."""

_IDLE = 60.0
"""Seconds after which an address that nothing was sent to is hung up."""

_ROWS = 256
"""Members in a packet."""

_TOLD_EVERY = 1.0
"""Seconds between words about dropped messages."""


class MemberSockets:
    """The sockets of a member. `dropped` is called with a reason and a detail."""

    def __init__(self, listen: str, dropped: Callable[[str, str], None]) -> None:
        self._dropped = dropped
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 4096)
        self.router = self._context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 0)
        self.router.setsockopt(zmq.MAXMSGSIZE, wire.MESSAGE_CAP)
        self._alive(self.router)
        self.router.bind(listen)
        self._dealers: dict[str, zmq.Socket[bytes]] = {}
        self._used: dict[str, float] = {}
        self.waiting: dict[str, deque[tuple[float, bytes]]] = {}  # until when, what; for a connection to come up

    @staticmethod
    def _alive(socket: zmq.Socket[bytes]) -> None:
        """Let a connection that carries nothing be made anew soon: TCP alone tries an old one for minutes."""
        socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 4000)

    def dealer(self, address: str) -> zmq.Socket[bytes]:
        """The socket to an address."""
        if address not in self._dealers:
            dealer = self._context.socket(zmq.DEALER)
            for option, value in (
                (zmq.IMMEDIATE, 1),
                (zmq.SNDHWM, _QUEUE),
                (zmq.LINGER, 0),
                (zmq.RECONNECT_IVL, 50),
                (zmq.CONNECT_TIMEOUT, 2000),
            ):
                dealer.setsockopt(option, value)
            self._alive(dealer)
            try:
                dealer.connect(address)
            except zmq.ZMQError:
                dealer.close()
                raise
            self._dealers[address] = dealer
        return self._dealers[address]

    def send(self, address: str, data: bytes, now: float) -> None:
        """Send, or drop; a message to an address that has just been called may wait for a moment."""
        try:
            dealer = self.dealer(address)
            dealer.send(data, zmq.NOBLOCK)
        except zmq.Again:
            self.waiting.setdefault(address, deque(maxlen=_CONNECTING)).append((now + _FRESH, data))
        except zmq.ZMQError as error:
            self._dropped("address", f"{address}: {error}")
        self._used[address] = now

    def flush(self, now: float) -> None:
        """Send what waited for connections that are up, drop what has waited for too long."""
        for address in [*self.waiting]:
            queue = self.waiting[address]
            try:
                while queue:
                    if queue[0][0] >= now:
                        self._dealers[address].send(queue[0][1], zmq.NOBLOCK)
                    queue.popleft()
                del self.waiting[address]
            except zmq.Again:
                continue

    def receive(self) -> list[bytes]:
        """Return the datagrams that have come in."""
        found: list[bytes] = []
        while True:
            try:
                frames = self.router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return found
            if len(frames) == 2:
                found.append(frames[1])
            else:
                self._dropped("frames", f"{len(frames) - 1} of them; a message has one")

    def hang_up(self, now: float) -> None:
        """Close the sockets to addresses that nothing is sent to."""
        for address, time in [*self._used.items()]:
            if now - time > _IDLE:
                del self._used[address]
                self.waiting.pop(address, None)
                dealer = self._dealers.pop(address, None)
                if dealer is not None:
                    dealer.close()


class MemberProcess:
    """The member of a node, and what the node says to it over `link`."""

    def __init__(self, link: socket.socket, packet: int) -> None:
        self._link, self._packet = link, packet
        link.setblocking(False)
        self._poller = zmq.Poller()
        self._poller.register(link, zmq.POLLIN)
        self._sockets: MemberSockets | None = None
        self._member: Membership | None = None
        self._probe_timing: ProbeTiming | None = None
        self._cluster = ""
        self._beat = 0.0
        self._busy_until = 0.0
        self._cut: frozenset[int] = frozenset()
        self._lag = 0.0
        self._delayed: list[tuple[float, int, str, bytes]] = []
        self._order = itertools.count()
        self._changed = False
        self._outbox: deque[dict[str, Any]] = deque()
        self._drops: dict[str, str] = {}  # not yet told: the latest detail of each reason
        self._drops_told = -math.inf
        self._tidied = 0.0
        self.over = False

    def step(self) -> None:
        """Wait for something, and do what is due."""
        self._await()
        now = clock.now()
        self._listen_to_node(now)
        if self.over or self._sockets is None or self._member is None:
            return
        if self._stalled(now):
            self._sockets.receive()  # what came for a node that is not there is nobody's any more
        else:
            for data in self._sockets.receive():
                if not self._is_cut(data, now):
                    self._handle(Heard(data), now)
            if self._member.wake <= now:
                self._handle(MemberTick(), now)
        while self._delayed and self._delayed[0][0] <= now:
            _, _, address, data = heapq.heappop(self._delayed)
            self._sockets.send(address, data, now)
        self._sockets.flush(now)
        if now - self._tidied > _IDLE:
            self._tidied = now
            self._sockets.hang_up(now)
        self._tell_node(now)

    def _await(self) -> None:
        now = clock.now()
        due = now + 1.0
        if self._member is not None and self._sockets is not None:
            if not self._stalled(now):
                due = min(due, self._member.wake)
            if self._delayed:
                due = min(due, self._delayed[0][0])
            for address, queue in self._sockets.waiting.items():
                due = min(due, queue[0][0])
                self._poller.register(self._sockets.dealer(address), zmq.POLLOUT)
        self._poller.poll(max(0, math.ceil((due - now) * 1000)))
        if self._sockets is not None:
            for address in self._sockets.waiting:
                self._poller.unregister(self._sockets.dealer(address))

    # --- the network

    def _handle(self, event: Event, now: float) -> None:
        assert self._member is not None
        for effect in self._member.handle(event, now):
            match effect:
                case Say(address, data):
                    self._send(address, data, now)
                case Changed():
                    self._changed = True
                case MemberDrop(reason, detail):
                    self._dropped(reason, detail)
                case Gone():
                    self._outbox.append({"event": "Gone"})
                case Accused() | Superseded() | Conflict():
                    self._outbox.append({"event": type(effect).__name__, **effect._asdict()})

    def _send(self, address: str, data: bytes, now: float) -> None:
        assert self._member is not None and self._sockets is not None
        if self._cut and any(m.address == address and m.node in self._cut for m in self._member.members):
            return
        if self._lag:
            heapq.heappush(self._delayed, (now + self._lag, next(self._order), address, data))
        else:
            self._sockets.send(address, data, now)

    def _is_cut(self, data: bytes, now: float) -> bool:
        return bool(self._cut) and wire.sender(data, self._cluster, now) in self._cut

    def _stalled(self, now: float) -> bool:
        """Return whether the node has shown no life for too long."""
        assert self._probe_timing is not None
        return now > max(self._beat, self._busy_until) + self._probe_timing.stalled_after

    def _dropped(self, reason: str, detail: str) -> None:
        self._drops[reason] = detail

    # --- the node

    def _listen_to_node(self, now: float) -> None:
        while True:
            try:
                packet = self._link.recv(self._packet)
            except BlockingIOError:
                return
            except ConnectionResetError:
                packet = b""
            if not packet:
                self.over = True
                return
            self._beat = now  # whatever it says, it is there
            what = json.loads(packet)
            match what.pop("do"):
                case "begin":
                    self._begin(now, **what)
                case "beat":
                    pass
                case "cut":
                    self._cut = frozenset(what["nodes"])
                case "lag":
                    self._lag = what["seconds"]
                case "busy":
                    self._busy_until = now + what["seconds"] if what["seconds"] > 0 else 0.0
                    self._handle(Busy(what["seconds"]), now)
                case "progress":
                    self._handle(Progress(what["round"]), now)
                case "reborn":
                    self._handle(MemberReborn(what["life"]), now)
                case "leave":
                    self._handle(MemberLeave(), now)

    def _begin(self, now: float, me: list[Any], cluster: str, seeds: list[str], timing: list[Any], listen: str) -> None:
        self._probe_timing, self._cluster = ProbeTiming(*timing), cluster
        try:
            # nobody else is to foresee the numbers of its questions
            seed = int.from_bytes(os.urandom(8))
            member = Membership(Me(*me), cluster, seeds, self._probe_timing, seed)
            self._sockets = MemberSockets(listen, self._dropped)
        except ConfigError as error:
            self._link.send(json.dumps({"error": str(error)}).encode())
            return
        except zmq.ZMQError as error:
            text = f"listen={listen!r}: can't listen there: {error}. Free the port or choose another."
            self._link.send(json.dumps({"error": text}).encode())
            return
        self._link.send(b"{}")
        self._poller.register(self._sockets.router, zmq.POLLIN)
        self._member = member
        setproctitle.setproctitle(f"p2pfl membership of node {me[0]}")
        self._handle(MemberStart(), now)

    def _tell_node(self, now: float) -> None:
        """Pass on what has happened, as far as the node takes it in; of the table the latest."""
        if self._drops and now - self._drops_told >= _TOLD_EVERY:
            self._drops_told = now
            for reason, detail in self._drops.items():
                self._outbox.append({"event": "MemberDrop", "reason": reason, "detail": detail})
            self._drops.clear()
        if self._changed and not any("table" in what for what in self._outbox):
            assert self._member is not None
            self._changed = False
            rows = [[*member] for member in self._member.members]
            for start in range(0, len(rows), _ROWS):
                part = rows[start : start + _ROWS]
                self._outbox.append({"table": part, "more": start + _ROWS < len(rows)})
        try:
            while self._outbox:
                self._link.send(json.dumps(self._outbox[0]).encode())
                self._outbox.popleft()
        except BlockingIOError:
            return  # the node has much to read; it will be tried again in the next step
        except (BrokenPipeError, ConnectionResetError):
            self.over = True


def run(link: socket.socket, packet: int) -> None:
    """Until the node's end of the link closes."""
    process = MemberProcess(link, packet)
    while not process.over:
        process.step()
