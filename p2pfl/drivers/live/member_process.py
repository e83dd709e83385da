"""The process that live/sidecar starts: the member, its sockets, and the link to its node.

One listener that everybody sends to, one DEALER to each address. ZeroMQ reconnects by itself and in silence; nothing is
concluded from a socket about whether the other end lives. What can't be sent now is dropped: late is useless here.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import os
import socket
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any

import setproctitle
import zmq

from p2pfl.drivers.live import clock, packets, ports, versions, zmtp
from p2pfl.drivers.live.addresses import Names
from p2pfl.drivers.live.forwarding import FORWARDED, Forwarder, is_forwarded, widened
from p2pfl.drivers.live.inlets import Inlets
from p2pfl.drivers.live.listener import Allowance, Arrived, Listener
from p2pfl.drivers.live.transport import dealer, keys_to
from p2pfl.drivers.live.zmtp import Limits
from p2pfl.errors import ConfigError, RemoteError
from p2pfl.protocol.membership import wire
from p2pfl.protocol.membership.events import (
    Accused,
    Admit,
    Busy,
    Changed,
    Conflict,
    Event,
    Expelled,
    Gone,
    Heard,
    Known,
    MemberAdmitted,
    MemberDrop,
    MemberLeave,
    MemberReborn,
    MemberStart,
    MemberTick,
    OwnDocument,
    Progress,
    Say,
    Superseded,
    Told,
    Unwanted,
)
from p2pfl.protocol.membership.membership import Membership
from p2pfl.protocol.membership.seeds import Seed
from p2pfl.protocol.membership.table import ALIVE, DEAD, LEFT, NOBODY, Me, Member, MemberEntry
from p2pfl.protocol.membership.timing import ProbeTiming
from p2pfl.trust.keyring import Keyring

_QUEUE = 64
"""Messages that may wait on a connection."""

_CONNECTING = 8
"""Messages that may wait for a connection to come up ..."""

_FRESH = 0.5
"""... for so many seconds: a first message is not lost only because nobody has called there before."""

_NAMED = 0.05
"""Seconds between looks at whether a name that something waits for has been looked up."""

_IDLE = 60.0
"""Seconds after which an address that nothing was sent to is hung up."""

_STRANGE = 64
"""Addresses at which no member is known that there is a socket to: one more, and the one not used for longest goes.
Whoever is asked to ping, or to answer, at an address that a message has would else have one for each."""

_LAST_WORD = 1000
"""Milliseconds in which a member that is revoked may still be told so."""

_ROWS = 256
"""Members in a packet."""

_TOLD_EVERY = 1.0
"""Seconds between words about dropped messages."""

_DOCUMENTS = 16
"""Documents that may wait for the node; what is not forwarded is told again by who has it."""


_ALLOWANCE = Allowance(Limits(wire.MESSAGE_CAP, 1, wire.MESSAGE_CAP), rate=100.0, burst=200.0, unit=8192.0)
"""What a member may say: a hundred small messages a second, or some of the largest kind. It says about five."""

_SHORT = (
    (zmq.CONNECT_TIMEOUT, 2000),
    (zmq.TCP_MAXRT, 4000),
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, 1),
    (zmq.TCP_KEEPALIVE_INTVL, 1),
    (zmq.TCP_KEEPALIVE_CNT, 3),
)
"""A connection that carries nothing is made anew soon: TCP alone tries an old one for minutes."""


class MemberSockets:
    """The sockets of a member. `dropped` is called with a reason and a detail. OSError: `listen` can't be bound."""

    def __init__(
        self, listen: str, node: int, cluster: str, dropped: Callable[[str, str], None],
        nodes: int = 1 << 31, keyring: Keyring | None = None, calls: bool = False, records: Callable[[], bytes] = bytes,
    ) -> None:  # fmt: skip
        """`nodes`: that there can be; others are strangers. `calls`: nobody can call this member, so that it calls
        whoever can be called. `records`: see Listener.
        """
        self._dropped, self._keyring = dropped, keyring
        self.known: Collection[str] = ()  # where members are
        about = versions.here(node, versions.MEMBERSHIP).encode()
        allowance = _ALLOWANCE if keyring is None else _ALLOWANCE._replace(limits=widened(_ALLOWANCE.limits))
        self.listener = Listener(
            listen, cluster, nodes, allowance, clock.now(), about, keyring=keyring, records=records
        )
        self._forwarder = None if keyring is None else Forwarder(keyring, clock.life())
        self._inlets: Inlets | None = None
        if keyring is not None and calls:
            self._inlets = Inlets(zmtp.introduction(cluster, node), keyring, self.listener.adopted)
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 4096)
        self._introduction = zmtp.introduction(cluster, node)
        self._names = Names()
        self.dealers: dict[str, zmq.Socket[bytes]] = {}
        self._numbers: dict[str, str] = {}  # where a dealer connects to ...
        self._whose: dict[str, int | None] = {}  # ... and the node that must be there; None: not known
        self._took: dict[str, float] = {}  # when it was made or has last taken a message
        self._used: dict[str, float] = {}
        self.waiting: dict[str, deque[tuple[float, bytes]]] = {}  # until when, what; for a connection to come up

    def dealer(self, address: str, now: float) -> zmq.Socket[bytes]:
        """Return the socket to an address. Raises ZMQError; Again while its name is not known."""
        numbers = self._names.numbers(address, now)
        if numbers is None:
            raise zmq.Again
        if address in self.dealers and self._numbers[address] != numbers:
            self.dealers.pop(address).close()
        if address not in self.dealers:
            self._make_room(address)
            keys = keys_to(self._whose.get(address), self._keyring)
            self.dealers[address] = dealer(self._context, self._introduction, keys, _QUEUE, 50, numbers, *_SHORT)
            self._numbers[address], self._took[address] = numbers, now
        return self.dealers[address]

    def admit(self, keyring: Keyring) -> None:
        """Take other keys from now on, and hang up on whoever no longer has one."""
        before, self._keyring = self._keyring, keyring
        for each in (self._forwarder, self._inlets):
            if each is not None:
                each.admit(keyring)
        for address, node in self._whose.items():
            gone = before is not None and node is not None and before.key_of(node) != keyring.key_of(node)
            if gone and address in self.dealers:
                self.dealers.pop(address).close(_LAST_WORD)
        self.listener.admit(keyring)

    def send(self, address: str, data: bytes, now: float, node: int | None = None) -> None:
        """Send, or drop; a message to an address that has just been called may wait for a moment.

        `node`: whom it is for; with keys, nobody else can take it.
        """
        if wire.dialer(address) is not None:
            if node is not None:
                self._forwarded(node, data, now)
            return
        if self._whose.get(address) != node and address in self.dealers and self._keyring is not None:
            self.dealers.pop(address).close()
        self._whose[address] = node
        if self._inlets is not None and node is not None:
            self._inlets.want(node, address)
        try:
            self.dealer(address, now).send(data, zmq.NOBLOCK)
            self._took[address] = now
        except zmq.Again:
            self.waiting.setdefault(address, deque(maxlen=_CONNECTING)).append((now + _FRESH, data))
            if address in self.dealers:
                self._names.blocked(address, self._took[address], now)
        except zmq.ZMQError as error:
            self._dropped("address", f"{address}: {error}")
        self._used[address] = now

    def _forwarded(self, node: int, data: bytes, now: float) -> bool:
        """Send to a member that nobody can call: by the connection that it has made, or by way of another."""
        if self.listener.takes(node):
            return self.listener.put(node, [data])
        if self._inlets is None or self._forwarder is None or (sealed := self._forwarder.seal(node, [data])) is None:
            return False
        whose = {other: address for address, other in self._whose.items() if other is not None}
        for way in self._forwarder.ways(node, sorted(whose), now):
            with contextlib.suppress(zmq.ZMQError):
                self.dealer(whose[way], now).send_multipart(sealed, zmq.NOBLOCK)
                return True
        return False

    @property
    def calling(self) -> list[zmq.Socket[bytes]]:
        """The sockets that something waits for, to poll for output."""
        return [self.dealers[address] for address in self.waiting if address in self.dealers]

    def flush(self, now: float) -> None:
        """Send what waited for connections that are up, drop what has waited for too long."""
        for address in [*self.waiting]:
            queue = self.waiting.get(address)
            if queue is None:  # it had to make room
                continue
            try:
                while queue:
                    if queue[0][0] >= now:
                        self.dealer(address, now).send(queue[0][1], zmq.NOBLOCK)
                        self._took[address] = now
                    queue.popleft()
                del self.waiting[address]
            except zmq.Again:
                continue
            except zmq.ZMQError:
                del self.waiting[address]

    def receive(self, now: float) -> Iterator[Arrived]:
        """Return datagrams that have come in, a bounded number."""
        for inlet in () if self._inlets is None else self._inlets.step(now):
            self.listener.adopt(inlet, now)
        for message in self.listener.receive(now):
            if self._forwarder is None or not is_forwarded(message.frames):
                yield message
                continue
            try:
                mine = self._forwarder.take(message, self.listener, now)
            except RemoteError as error:
                self._dropped(error.reason, f"of node {message.node}: {error.detail}")
                continue
            if mine is not None:
                yield mine
        for reason, detail in self.listener.told():
            self._dropped(reason, detail)

    def blame(self, message: Arrived, now: float) -> None:
        """A datagram was of no use."""
        if self._forwarder is not None and message.link == FORWARDED:
            self._forwarder.blame(message.node, now)
        else:
            self.listener.blame(message, now)

    def close(self) -> None:
        """Close all sockets."""
        if self._inlets is not None:
            self._inlets.close()
        for each in self.dealers.values():
            each.close()
        self.listener.close()
        self._context.term()

    def hang_up(self, now: float) -> None:
        """Close the sockets to addresses that nothing is sent to."""
        for address, time in [*self._used.items()]:
            if now - time > _IDLE:
                self._forget(address)

    def _make_room(self, address: str) -> None:
        """Close a socket to where no member is known, if there are many such and this is one more."""
        if address in self.known or len(self.dealers) < _STRANGE:
            return
        strange = [each for each in self.dealers if each not in self.known]
        if len(strange) >= _STRANGE:
            self._forget(min(strange, key=lambda each: self._used.get(each, 0.0)))

    def _forget(self, address: str) -> None:
        for kept in (self._used, self.waiting, self._numbers, self._took, self._whose):
            kept.pop(address, None)
        dealer = self.dealers.pop(address, None)
        if dealer is not None:
            dealer.close()


class MemberProcess:
    """The member of a node, and what the node says to it over `link`."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
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
        self._keys: Keyring | None = None
        self._senders: dict[int, Arrived] = {}  # by whose link each member's last document came
        self._delayed: list[tuple[float, int, str, bytes, int | None]] = []
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
            for _ in self._sockets.receive(now):  # what came for a node that is not there is nobody's any more
                pass
        else:
            for message in self._sockets.receive(now):
                data = bytes(message.frames[0])
                if not self._is_cut(data, now):
                    self._handle(Heard(data, None if self._keys is None else message.node), now, message)
            if self._member.wake <= now:
                self._handle(MemberTick(), now)
        while self._delayed and self._delayed[0][0] <= now:
            _, _, address, data, node = heapq.heappop(self._delayed)
            self._sockets.send(address, data, now, node)
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
            due = min(due, now + self._sockets.listener.delay)
            for address, queue in self._sockets.waiting.items():
                due = min(due, queue[0][0], math.inf if address in self._sockets.dealers else now + _NAMED)
        calling = [] if self._sockets is None else self._sockets.calling
        for each in calling:
            self._poller.register(each, zmq.POLLOUT)
        self._poller.poll(max(0, math.ceil((due - now) * 1000)))
        for each in calling:
            self._poller.unregister(each)

    # --- the network

    def _handle(self, event: Event, now: float, message: Arrived | None = None) -> None:
        """Let the member take an event in. `message`: that it was in."""
        assert self._member is not None and self._sockets is not None
        for effect in self._member.handle(event, now):
            match effect:
                case Say(address, data, node):
                    self._send(address, data, node, now)
                case Changed(members):
                    self._changed = True
                    self._sockets.known = {member.address for member in members}
                case MemberDrop(reason, detail, blame):
                    self._dropped(reason, detail)
                    if message is not None and blame:
                        self._sockets.blame(message, now)
                case Told(document, by):
                    self._told(document, by, message)
                case Accused() | Superseded() | Conflict() | Expelled() | Gone():
                    self._outbox.append({"event": type(effect).__name__, **effect._asdict()})

    def _told(self, document: bytes, by: int, message: Arrived | None) -> None:
        """Pass a document on; who brought it is remembered, should it be none."""
        if sum("told" in what for what in self._outbox) < _DOCUMENTS:
            self._outbox.append({"told": packets.pack_bytes(document), "by": by})
        if message is not None:
            self._senders[by] = message._replace(frames=[])

    def _send(self, address: str, data: bytes, node: int | None, now: float) -> None:
        assert self._member is not None and self._sockets is not None
        if self._cut:
            there = [m.node for m in self._member.members if m.address == address] if node is None else [node]
            if any(each in self._cut for each in there):
                return
        if self._lag:
            heapq.heappush(self._delayed, (now + self._lag, next(self._order), address, data, node))
        else:
            self._sockets.send(address, data, now, node)

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
                what = packets.receive(self._link)
            except BlockingIOError:
                return
            except ConnectionResetError:
                what = None
            if what is None:
                self.over = True
                return
            self._beat = now  # whatever it says, it is there
            if self._member is None and what["do"] != "begin":  # said to an earlier process, which has died
                continue
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
                case "grow":
                    assert self._sockets is not None
                    self._sockets.listener.grow(what["nodes"])
                    self._handle(MemberAdmitted(what["nodes"]), now)
                case "leave":
                    self._handle(MemberLeave(), now)
                case "document":
                    self._handle(OwnDocument(packets.unpack_bytes(what["document"])), now)
                case "admit":
                    keys = packets.unpack_keyring(what["keys"])
                    assert self._sockets is not None
                    self._handle(_admitted(keys, what["revoked"]), now)  # with a last word to who is revoked
                    self._keys = keys
                    self._sockets.admit(keys)
                case "unwanted":
                    self._unwanted(bytes.fromhex(what["digest"]), what["by"], now)

    def _unwanted(self, digest: bytes, by: int, now: float) -> None:
        """What a member has sent as its document is none, and its link is to blame."""
        assert self._sockets is not None
        self._handle(Unwanted(digest, by), now)
        if by in self._senders:
            self._sockets.blame(self._senders[by], now)

    def _begin(
        self,
        now: float,
        me: list[Any],
        cluster: str,
        seeds: list[list[Any]],
        timing: list[Any],
        listen: str,
        known: list[Any],
        keys: dict[str, Any] | None,
        revoked: list[int],
        document: str,
    ) -> None:
        """Bind and join. `known`: the members that an earlier process of this life knew."""
        self._probe_timing, self._cluster = ProbeTiming(*timing), cluster
        self._keys = None if keys is None else packets.unpack_keyring(keys)
        try:
            # nobody else is to foresee the numbers of its questions
            seed = int.from_bytes(os.urandom(8))
            member = Membership(
                Me(*me),
                cluster,
                [Seed(*each) for each in seeds],
                self._probe_timing,
                seed,
                sign=None if keys is None else self._sign,
                verify=None if keys is None else self._verify,
                admitted=_admitted(self._keys, revoked),
                document=packets.unpack_bytes(document),
            )
            self._sockets = ports.listening(listen, lambda: self._open(listen, Me(*me)))
        except ConfigError as error:
            packets.send(self._link, {"error": str(error)})
            return
        packets.send(self._link, {"pid": os.getpid()})
        self._poller.register(self._sockets.listener.fileno(), zmq.POLLIN)
        self._member = member
        setproctitle.setproctitle(f"p2pfl membership of node {me[0]}")
        self._handle(MemberStart(), now)
        if known:  # so that they are probed, and nobody is held for gone meanwhile
            self._handle(Known(tuple(_entry(packets.unpack_member(row), now) for row in known)), now)

    def _open(self, listen: str, me: Me) -> MemberSockets:
        calls = wire.dialer(me.address) is not None

        def records() -> bytes:
            return b"" if self._member is None else self._member.document

        return MemberSockets(listen, me.node, self._cluster, self._dropped, me.nodes, self._keys, calls, records)

    def _sign(self, statement: bytes) -> bytes:
        assert self._keys is not None
        return self._keys.sign(statement)

    def _verify(self, node: int, statement: bytes, signature: bytes) -> bool:
        assert self._keys is not None
        return self._keys.verify(node, statement, signature)

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
            rows = [packets.pack_member(member) for member in self._member.members]
            for start in range(0, len(rows), _ROWS):
                part = rows[start : start + _ROWS]
                self._outbox.append({"table": part, "more": start + _ROWS < len(rows)})
        try:
            while self._outbox:
                packets.send(self._link, self._outbox[0])
                self._outbox.popleft()
        except BlockingIOError:
            return  # the node has much to read; it will be tried again in the next step
        except (BrokenPipeError, ConnectionResetError):
            self.over = True


def _entry(member: Member, now: float) -> MemberEntry:
    """An account of a member that an earlier process has told the node of; a suspicion it hears again if it holds."""
    state = member.state if member.state in (DEAD, LEFT) else ALIVE
    at = now if state != ALIVE else max(member.busy, 0.0)
    return MemberEntry(
        member.node, member.life, member.refutes, state, member.address, 0, member.round, at, NOBODY,
        member.pause, member.signature,
    )  # fmt: skip


def _admitted(keys: Keyring | None, revoked: list[int]) -> Admit:
    return Admit(None) if keys is None else Admit(frozenset(keys.verify_keys), frozenset(revoked))


def run(link: socket.socket) -> None:
    """Until the node's end of the link closes."""
    process = MemberProcess(link)
    while not process.over:
        process.step()
