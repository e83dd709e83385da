"""The listening end of a node's connections: whatever comes in, the work and the memory that it costs have a bound.

A connection says in its first frame which node of the federation it is from, or is hung up; or that it brings a
question, and is hung up with the answer. Where there are keys it proves first which one it holds: one that
is none of the federation's is hung up, and a member cannot say that it is another. Who was a member is told so, where
it asks. Each turn reads a few messages of each connection and goes on in the next: who sends much delays nobody else.
A connection has a budget of messages, and a node one of bytes; what comes beyond that is not read, and waits at its own
end, by TCP. A node has a budget of messages that are of no use, and of connections; when that is spent, the connection
is hung up.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from p2pfl.drivers.live import addresses, zmtp
from p2pfl.drivers.live.curve import Answering, KeyPair
from p2pfl.drivers.live.inlets import Inlet
from p2pfl.drivers.live.zmtp import Command, Frame, Limits, Reader
from p2pfl.errors import RemoteError
from p2pfl.protocol import questions
from p2pfl.protocol.budget import Budget
from p2pfl.protocol.questions import Asker
from p2pfl.trust.keyring import Keyring

_SHARE = 16
"""Messages of a connection in one turn ..."""

_SHARE_BYTES = 1 << 22
"""... or bytes."""

_TURN = 256
"""Messages in one turn."""

_INTRODUCTION = 5.0
"""Seconds in which a connection must have said who it is."""

_STRANGERS = 64
"""Connections at a time that have not; one more, and the oldest goes."""

_ACCEPTS = 100.0
"""Connections a second; more wait in the system's queue."""

_SAME = 2
"""Connections from one node: it may come back before the end of its earlier one is known."""

_CONNECTIONS = 1024
"""Connections in all; one more, and the one that was silent for longest goes."""

_UNFINISHED = 60.0
"""Seconds without a byte after which a message under way is given up."""

_REFILL = 0.05
"""Seconds until a budget that was spent is looked at again."""

_TIDY = 0.25
"""Seconds between looks at who takes too long."""

_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""Seconds, seconds and times: an end that is gone without a word is hung up after 25 s."""


_LARGE = 1 / 16
"""What a large message counts."""

_CONNECTS = 5.0, 10.0
"""Connections that a node may make: a second for long, and at once."""

_OVERDUE = 2.0
"""Seconds for which more may wait to be read than a connection may bring: what is read later than that helps nobody."""

_BARRED = 5.0
"""Seconds for which a node that has sent too much makes no other connection."""

_QUEUE = 64
"""Frames that may wait to be written to a node that nobody can call."""

_USELESS = 20.0, 200.0
"""Messages of a node that may be of no use: a second for long, and at once."""

_FAREWELLS = 1.0, 4.0
"""Times that those who were members are told so: a second for long, and at once."""


class Volume(NamedTuple):
    """Bytes that may come from one node."""

    rate: float  # a second, for long
    burst: float  # at once


class Allowance(NamedTuple):
    """What may come by one connection."""

    limits: Limits  # of a message
    rate: float  # messages a second, for long
    burst: float  # messages at once
    unit: float  # bytes that count as one message more
    large: float = math.inf  # bytes from which on a message counts as a part of one only: of these few fit on a link
    volume: Volume | None = None  # of all connections of a node together; None: what `unit` says is enough


class Arrived(NamedTuple):
    """A message that has come in."""

    node: int  # whose connection it came by ...
    link: int  # ... and which, for `blame`
    frames: list[Frame]


class _Connection:
    inlet = False  # this node has made it

    def __init__(self, link: socket.socket, now: float, own: KeyPair | None) -> None:
        self.link, self.reader = link, Reader(zmtp.NULL if own is None else zmtp.CURVE)
        self.handshake = None if own is None else Answering(own)
        self.opened = self.heard = now
        self.node: int | None = None  # it has not said yet
        self.asks = False  # it brings a question
        self.budget = Budget(0.0, 1.0, now)  # ... and may say that
        self.behind: float | None = None  # since when there has always been something left to read

        self.out: deque[memoryview] | None = None  # what waits to be written; None: nothing is written to it

    @property
    def way(self) -> tuple[bool, bool]:
        """Return what it is for: of those for the same a node needs one."""
        return self.inlet, self.out is None

    def say(self, data: bytes) -> None:
        """Send, as far as the system takes it at once: nobody waits here."""
        with contextlib.suppress(OSError):
            self.link.send(data)

    def tell(self, body: bytes) -> None:
        """Send a message of one frame."""
        self.say(zmtp.message(body, self.reader.sealing))

    def write(self) -> None:
        """Write what waits, as far as the system takes it. Raises OSError."""
        assert self.out is not None
        with contextlib.suppress(BlockingIOError):
            while self.out:
                count = self.link.send(self.out[0])
                if count < len(self.out[0]):
                    self.out[0] = self.out[0][count:]
                else:
                    self.out.popleft()


class _Costs:
    """What a node may still cost, by whatever connections it has or makes."""

    def __init__(self, now: float, volume: Volume | None) -> None:
        self.connects, self.useless = Budget(*_CONNECTS, now), Budget(*_USELESS, now)
        self.volume = None if volume is None else Budget(*volume, now)

    def left(self, now: float) -> bool:
        """Return whether more of its bytes are read."""
        return self.volume is None or self.volume.left(now)

    def whole(self, now: float) -> bool:
        """Return whether nothing has to be remembered."""
        return all(each is None or each.full(now) for each in (self.connects, self.useless, self.volume))


class Listener:
    """Takes messages in. `dropped` counts, by reason, what was hung up. OSError when `address` can't be bound."""

    def __init__(
        self, address: str, federation: str, nodes: int, allowance: Allowance, now: float,
        about: bytes = b"", answer: Callable[[int], bytes] | None = None,
        answers: Callable[[bytes, Asker, float], bytes] | None = None, keyring: Keyring | None = None,
        records: Callable[[], bytes] = bytes,
    ) -> None:  # fmt: skip
        """`address`: tcp://HOST:PORT. `nodes`: that there can be; others are strangers. `about`: what is said to
        whoever connects. `answer`: told which node has connected, returns what it is told if it asks. `answers`: given
        a question of whoever brings one, and who that is, returns what it is told. `keyring`: whose keys are taken;
        None: none are asked for, and nothing is sealed. `records`: returns those of the federation, which show whoever
        was a member, and asks, that it is none any more; b"": there are none.
        """
        self._federation, self._nodes, self._allowance = federation, nodes, allowance
        self._keyring, self._own = keyring, None if keyring is None else KeyPair(keyring.public, keyring.secret)
        self._about = zmtp.properties(b"ROUTER", about=about)
        self._hello = zmtp.greeting(zmtp.CURVE, listens=True) if keyring else zmtp.GREETING + zmtp.command(
            b"READY", self._about
        )  # fmt: skip
        self._answer = answer
        self._answers = answers
        self._records, self._farewells = records, Budget(*_FAREWELLS, now)
        self._socket = _listening(address)
        self._epoll = select.epoll()
        self._epoll.register(self._socket, select.EPOLLIN)
        self._connections: dict[int, _Connection] = {}  # by file descriptor
        self._takers: dict[int, int] = {}  # connections by which nodes are written to that nobody can call
        self._ready: dict[int, None] = {}  # with something to read, in the order of their turns
        self._paused: set[int] = set()  # that have spent their budget
        self._costs: dict[int, _Costs] = {}
        self._accepts = Budget(_ACCEPTS, _STRANGERS, now)
        self._accepting = True
        self._tidied = now
        self._told: list[tuple[str, str]] = []
        self.dropped: Counter[str] = Counter()
        self.nbytes = 0  # that came in, of messages

    def fileno(self) -> int:
        """To poll for input."""
        return self._epoll.fileno()

    @property
    def delay(self) -> float:
        """Return in how many seconds to call `receive` again, whatever `fileno` says."""
        if self._ready:
            return 0.0
        return _REFILL if self._paused or not self._accepting else math.inf

    def receive(self, now: float) -> Iterator[Arrived]:
        """Return the messages of this turn."""
        self._resume(now)
        for file, events in self._epoll.poll(0):
            if file == self._socket.fileno():
                self._accept(now)
                continue
            if events & select.EPOLLOUT:
                self._write(file)
            if events & ~select.EPOLLOUT and file in self._connections:
                self._ready[file] = None
        left = _TURN
        for file in [*self._ready]:
            if left <= 0:
                break
            del self._ready[file]
            for message in self._read(file, min(_SHARE, left), now):
                left -= 1
                yield message
        if now - self._tidied > _TIDY:
            self._tidied = now
            self._tidy(now)

    def takes(self, node: int) -> bool:
        """Return whether a node has called that nobody can call, and what is for it is taken here."""
        return node in self._takers

    def put(self, node: int, frames: Sequence[Any]) -> bool:
        """Send to one that `takes`, in order; False when it takes nothing now."""
        file = self._takers.get(node)
        connection = None if file is None else self._connections[file]
        if file is None or connection is None or connection.out is None or len(connection.out) >= _QUEUE:
            return False
        last = len(frames) - 1
        sealing = connection.reader.sealing
        for index, each in enumerate(frames):
            body, more = bytes(memoryview(each)), int(index < last)
            connection.out.append(memoryview(zmtp.frame(body, more) if sealing is None else sealing.seal(more, body)))
        self._write(file)
        return True

    def _write(self, file: int) -> None:
        connection = self._connections[file]
        try:
            connection.write()
        except OSError:
            self._closed(file, connection)
            return
        if file not in self._paused:
            self._epoll.modify(file, self._wanted(connection))

    def adopt(self, inlet: Inlet, now: float) -> None:
        """Read from now on what comes by a connection that this node has made."""
        inlet.link.setblocking(False)
        _keep_alive(inlet.link)
        connection = _Connection(inlet.link, now, None)
        connection.reader, connection.inlet = inlet.reader, True
        self._connections[inlet.link.fileno()] = connection
        self._epoll.register(inlet.link, select.EPOLLIN)
        self._cost(inlet.node, now)
        self._known(connection, inlet.node, now)
        self._ready[inlet.link.fileno()] = None  # what came with the greeting has been read already

    def adopted(self, node: int) -> bool:
        """Return whether there is such a connection with a node."""
        return any(each.inlet and each.node == node for each in self._connections.values())

    def admit(self, keyring: Keyring) -> None:
        """Take other keys from now on, and hang up on whoever holds one that is no longer taken."""
        self._keyring = keyring
        for file, connection in [*self._connections.items()]:
            if connection.node is not None and connection.node not in keyring.members:
                self._hang_up(file, "revoked", "its key is no longer one of the federation")

    def blame(self, message: Arrived, now: float) -> None:
        """A message was of no use."""
        if message.link not in self._connections:
            return
        useless = self._costs[message.node].useless
        if not useless.left(now):
            self._bar(message.link, "too many messages that are of no use")
        useless.spend(1)

    def grow(self, nodes: int) -> None:
        """There can be so many nodes now."""
        self._nodes = max(self._nodes, nodes)

    def allow(self, messages: float, nbytes: float = 0.0) -> None:
        """Let so many more messages come by each connection, and so many more bytes from each node."""
        for connection in self._connections.values():
            if connection.node is not None:
                connection.budget.add(messages)
        for cost in self._costs.values():
            if cost.volume is not None:
                cost.volume.add(nbytes)

    def restore(self, node: int, nbytes: int) -> None:
        """So many bytes of a node were counted elsewhere."""
        cost = self._costs.get(node)
        if cost is not None and cost.volume is not None:
            cost.volume.add(nbytes)

    def told(self) -> list[tuple[str, str]]:
        """Return why connections were hung up since the last call: reason and detail."""
        told, self._told = self._told, []
        return told

    def close(self) -> None:
        """Hang up on everybody."""
        for connection in self._connections.values():
            connection.link.close()
        self._connections.clear()
        self._epoll.close()
        self._socket.close()

    @staticmethod
    def _wanted(connection: _Connection) -> int:
        return select.EPOLLIN | (select.EPOLLOUT if connection.out else 0)

    # --- reading

    def _read(self, file: int, most: int, now: float) -> Iterator[Arrived]:
        """Yield messages of a connection, as many as it may bring and this turn has room for."""
        connection = self._connections.get(file)
        if connection is None:
            return
        nbytes = 0
        try:
            while most > 0 and nbytes < _SHARE_BYTES:
                if not self._may_bring(connection, now):
                    connection.behind = now if connection.behind is None else connection.behind
                    self._epoll.unregister(file)
                    self._paused.add(file)
                    return
                item = connection.reader.next()
                if item is None:
                    count = connection.link.recv_into(connection.reader.space)
                    if not count:
                        self._closed(file, connection)
                        return
                    connection.reader.took(count)
                    connection.heard = now
                    nbytes += count
                    continue
                most -= 1
                if (message := self._take(file, connection, item, now)) is not None:
                    yield message
                if self._connections.get(file) is not connection:  # what came was so useless that it is gone
                    return
        except BlockingIOError:
            connection.behind = None
            return
        except RemoteError as error:
            self._hang_up(file, error.reason, error.detail)
            return
        except OSError:
            self._closed(file, connection)
            return
        self._ready[file] = None  # behind the others

    def _take(self, file: int, connection: _Connection, item: Command | list[Frame], now: float) -> Arrived | None:
        if connection.node is None:
            self._first(file, connection, item, now)
            return None
        size = 0 if isinstance(item, Command) else sum(map(len, item))
        connection.budget.spend((_LARGE if size >= self._allowance.large else 1) + size / self._allowance.unit)
        if (volume := self._cost(connection.node, now).volume) is not None:
            volume.spend(size)
        if isinstance(item, Command):  # that ask for an answer which this end does not owe: it sends no PING
            return None
        self.nbytes += size
        return Arrived(connection.node, file, item)

    def _first(self, file: int, connection: _Connection, item: Command | list[Frame], now: float) -> None:
        """Take in who it is, or what it asks."""
        if connection.handshake is not None and connection.handshake.session is None:
            if not isinstance(item, Command):
                raise RemoteError("plaintext", "a message before both ends have agreed on keys")
            answer = connection.handshake.take(item, self._about)
            if connection.handshake.said is not None:
                self._take_leave(connection, answer, now)
                self._proved(connection, None)  # a stranger is told nothing
                connection.reader.sealing, item = connection.handshake.session, connection.handshake.said
            connection.say(answer)
            if isinstance(item, Command) and connection.handshake.said is not item:
                return
        if connection.asks and self._answers is not None and not isinstance(item, Command):
            answer = self._answers(b"".join(item), self._asker(connection), now)
            with contextlib.suppress(OSError):  # what it does not take at once it does not get
                connection.link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * questions.CAP)
            connection.tell(answer)
            self._remove(file)
        elif connection.asks or not isinstance(item, Command):
            raise RemoteError("handshake", "a message before it has said who it is")
        elif (said := zmtp.identity(item)) == zmtp.QUESTION and self._answers is not None:
            connection.asks, connection.reader.limits = True, Limits(questions.CAP, 1, questions.CAP)
        else:
            node = zmtp.introduced(said, self._federation)
            self._proved(connection, node)
            connection.out = deque() if zmtp.takes(item) else None
            self._introduced(connection, node, now)
            if connection.out is not None:
                self._takers[node] = file
            told = b"" if self._answer is None else self._answer(node)
            if told and zmtp.asks(item):
                connection.tell(told)

    def _take_leave(self, connection: _Connection, ready: bytes, now: float) -> None:
        """Tell whoever was a member, and asks, by the records that it is none any more: its last word may be lost."""
        handshake, records = connection.handshake, self._records()
        former = {} if self._keyring is None else self._keyring.former
        if handshake is None or handshake.said is None or handshake.session is None or handshake.key not in former:
            return
        if records and zmtp.asks(handshake.said) and self._farewells.take(now):
            with contextlib.suppress(OSError):
                connection.link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(records) + questions.CAP)
            connection.say(ready + zmtp.message(zmtp.REVOKED + records, handshake.session))

    def _asker(self, connection: _Connection) -> Asker:
        """Return who asks, by the key that it has proved to hold."""
        handshake = connection.handshake
        node = None if handshake is None or self._keyring is None else self._keyring.node_of(handshake.key)
        return Asker(node, _here(connection.link))

    def _proved(self, connection: _Connection, node: int | None) -> None:
        """Raise RemoteError unless the key that it has proved to hold is that of the node it says it is; None: any."""
        if self._keyring is None or connection.handshake is None:
            return
        key = connection.handshake.key
        holder = self._keyring.node_of(key)
        if holder is None and key in self._keyring.former:
            raise RemoteError("revoked", f"{self._keyring.former[key]}, whose key has been revoked")
        if holder is None:
            raise RemoteError("stranger", "whose key is none of the federation's")
        if node is not None and holder != node:
            raise RemoteError("identity", f"says it is node {node}, with the key of node {holder}")

    def _introduced(self, connection: _Connection, node: int, now: float) -> None:
        if node >= self._nodes:
            raise RemoteError("handshake", f"says it is node {node}; there are {self._nodes}")
        connects = self._cost(node, now).connects
        if not connects.left(now):
            raise RemoteError("flood", f"says it is node {node}, which has connected too often")
        connects.spend(1)
        self._known(connection, node, now)

    def _cost(self, node: int, now: float) -> _Costs:
        if node not in self._costs:
            self._costs[node] = _Costs(now, self._allowance.volume)
        return self._costs[node]

    def _may_bring(self, connection: _Connection, now: float) -> bool:
        """Return whether more is read of a connection now."""
        known = connection.node is None or self._cost(connection.node, now).left(now)
        return known and connection.budget.left(now)

    def _known(self, connection: _Connection, node: int, now: float) -> None:
        """It is known whose connection it is."""
        connection.node, connection.reader.limits = node, self._allowance.limits
        rate, burst = self._allowance.rate, self._allowance.burst
        connection.budget = Budget(rate, burst, now, rate / 10)
        others = {file: each for file, each in self._connections.items() if each is not connection}
        same = [file for file, each in others.items() if each.node == node and each.way == connection.way]
        known = [file for file, each in others.items() if each.node is not None]
        for files, most in ((same, _SAME), (known, _CONNECTIONS)):
            if len(files) >= most:
                idle = min(files, key=lambda file: others[file].heard)
                self._hang_up(idle, "connection", f"one of {len(files) + 1}; at most {most}")
                return

    # --- connections

    def _accept(self, now: float) -> None:
        while self._accepts.left(now):
            try:
                link, _ = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:  # above all: no file descriptor is left
                self._tell("connection", f"can't be accepted: {error.strerror}")
                self._accepts.spend(_ACCEPTS)
                continue
            self._accepts.spend(1)
            link.setblocking(False)
            _keep_alive(link)
            self._connections[link.fileno()] = _Connection(link, now, self._own)
            self._epoll.register(link, select.EPOLLIN)
            with contextlib.suppress(OSError):  # it has gone already, which will be read
                link.send(self._hello)
            unknown = [file for file, other in self._connections.items() if other.node is None]
            if len(unknown) > _STRANGERS:
                self._hang_up(unknown[0], "handshake", "too many at once have not said who they are")
        self._epoll.modify(self._socket, 0)
        self._accepting = False

    def _resume(self, now: float) -> None:
        """Go on with those whose budget has refilled."""
        if not self._accepting and self._accepts.left(now):
            self._accepting = True
            self._epoll.modify(self._socket, select.EPOLLIN)
        for file in [*self._paused]:
            if self._may_bring(self._connections[file], now):
                self._paused.discard(file)
                self._epoll.register(file, self._wanted(self._connections[file]))
                self._ready[file] = None

    def _tidy(self, now: float) -> None:
        for file, connection in [*self._connections.items()]:
            if connection.node is None and now - connection.opened > _INTRODUCTION:
                self._hang_up(file, "handshake", f"has not said who it is in {_INTRODUCTION} s")
            elif connection.behind is not None and now - connection.behind > _OVERDUE:
                self._bar(file, f"more than it may for {_OVERDUE} s")
            elif file not in self._paused and connection.reader.unfinished and now - connection.heard > _UNFINISHED:
                self._hang_up(file, "connection", f"silent for {_UNFINISHED} s in the middle of a message")
        here = {connection.node for connection in self._connections.values()}
        for node, cost in [*self._costs.items()]:
            if node not in here and cost.whole(now):
                del self._costs[node]

    def _closed(self, file: int, connection: _Connection) -> None:
        """The other end has closed."""
        if connection.node is None:
            self._tell("connection", "closed before it had said who it is")
        elif connection.reader.unfinished:
            self._tell("connection", f"of node {connection.node}: closed in the middle of a message")
        self._remove(file)

    def _hang_up(self, file: int, reason: str, detail: str) -> None:
        node = self._connections[file].node
        self._tell(reason, detail if node is None else f"of node {node}: {detail}")
        self._remove(file)

    def _bar(self, file: int, detail: str) -> None:
        node = self._connections[file].node
        if node is not None:
            self._costs[node].connects.spend(_BARRED * _CONNECTS[0])
        self._hang_up(file, "flood", detail)

    def _remove(self, file: int) -> None:
        self._ready.pop(file, None)
        self._paused.discard(file)
        connection = self._connections.pop(file)
        connection.link.close()  # which takes it out of the epoll
        if connection.node is not None and self._takers.get(connection.node) == file:
            del self._takers[connection.node]

    def _tell(self, reason: str, detail: str) -> None:
        self.dropped[reason] += 1
        if len(self._told) < _STRANGERS:
            self._told.append((reason, detail))


def _keep_alive(link: socket.socket) -> None:
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        link.setsockopt(socket.IPPROTO_TCP, option, value)


def _here(link: socket.socket) -> bool:
    """Return whether the other end is on this machine: nobody else has the address that it has called."""
    try:
        return bool(link.getpeername()[0] == link.getsockname()[0])
    except OSError:  # it has gone
        return False


def _listening(address: str) -> socket.socket:
    listening = addresses.bound(address)
    try:
        listening.setblocking(False)
        listening.listen(128)
    except OSError:
        listening.close()
        raise
    return listening
