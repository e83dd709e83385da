"""Frames over ZeroMQ: one listener that everybody sends to, one DEALER to each node that something is sent to.

A link keeps order in each direction and loses what was on it when it breaks; nothing is concluded from a socket about
whether the other end lives. Large messages travel in pieces, as `parcels` has it, and outlast a break. Of the others,
those to a neighbour that is not connected are dropped, unless they come behind a large one. What comes in is bounded by
`listener`, for work and memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import zmq
from zmq.utils import z85

from p2pfl.drivers.live import clock, curve, parcels, ports, versions, zmtp
from p2pfl.drivers.live.addresses import Names
from p2pfl.drivers.live.curve import Keys
from p2pfl.drivers.live.forwarding import FORWARDED, Ends, Forwarder, is_forwarded, widened
from p2pfl.drivers.live.inlets import Inlets
from p2pfl.drivers.live.listener import Allowance, Arrived, Listener, Volume
from p2pfl.drivers.live.parcels import PIECE, WINDOW, Letter, ParcelsIn, ParcelsOut
from p2pfl.drivers.live.zmtp import Limits
from p2pfl.errors import RemoteError
from p2pfl.protocol.codec import HEADER_CAP, Schema
from p2pfl.protocol.events import Progressed
from p2pfl.protocol.membership.wire import dialer
from p2pfl.protocol.questions import Asker
from p2pfl.trust.keyring import Keyring

_QUEUE = 64
"""Messages that may wait for one neighbour. The protocol has a handful under way; more means that it reads nothing."""

_STUCK = 30.0
"""Seconds after which a socket that has taken nothing is made anew: what was at its end may have been no node."""

_RATE = 200.0
"""Messages a second that are taken from a connection, for long ..."""

_BURST = 1000.0
"""... so many at once ..."""

_ROUND = 3.0
"""... and so many more in each round of this node. An exchange takes two; tiny models make 600 rounds a second."""

_PER_PIECE = 1.0
"""... and for each piece of the largest payload: every second one is answered."""

_BYTES = 8e6, 8e6
"""Bytes of a node, a second for long and at once; or of its largest payloads ..."""

_PAYLOADS = 2.0, 4.0
"""... so many, where that is more (at once: so many more) ..."""

_PAYLOADS_PER_ROUND = 3.0
"""... and so many more in each round of this node. An exchange takes one, and one more where it was lost."""

_LAST = 50
"""Milliseconds between looks at what is still under way when a node closes."""


def dealer(
    context: zmq.Context[Any], introduction: bytes, keys: Keys | None, queue: int, reconnect: int, address: str,
    *more: tuple[int, int],
) -> zmq.Socket[bytes]:  # fmt: skip
    """Make a socket that sends to an address, and says who it is whenever it connects. Raises ZMQError.

    `keys`: None: nothing is sealed. `reconnect`: in milliseconds, always. `more`: options and their values.

    Nothing is read from it: whatever sits at the other end may put one message into it and then waits.
    """
    made = context.socket(zmq.DEALER)
    for option, value in (
        (zmq.IMMEDIATE, 1),
        (zmq.SNDHWM, queue),
        (zmq.RCVHWM, 1),
        (zmq.MAXMSGSIZE, 1024),
        (zmq.LINGER, 0),
        # always the same short wait: with a growing one, a node that comes back is not heard for many rounds
        (zmq.RECONNECT_IVL, reconnect),
        (zmq.IPV6, int("[" in address)),
        *more,
    ):
        made.setsockopt(option, value)
    made.setsockopt(zmq.ROUTING_ID, introduction)
    if keys is not None:
        made.curve_publickey, made.curve_secretkey = map(z85.encode, keys.own)
        made.curve_serverkey = z85.encode(keys.theirs)
    try:
        made.connect(address)
    except zmq.ZMQError:
        made.close()
        raise
    return made


def keys_to(node: int | None, keyring: Keyring | None) -> Keys | None:
    """Return the keys of a link to a node; None: none are wanted. Raises ZMQError, Again, for one that has no key."""
    if keyring is None:
        return None
    found = curve.keys(keyring, node)
    if found is None:
        raise zmq.Again
    return found


class Transport:
    """Sockets of one node. `dropped` counts what could not be sent."""

    def __init__(
        self,
        listen: str,
        node: int,
        nodes: int,
        federation: str,
        schemas: Sequence[Schema],
        piece: int = PIECE,
        answers: Callable[[bytes, Asker, float], bytes] | None = None,
        keyring: Keyring | None = None,
        life: int = 0,
        calls: bool = False,
    ) -> None:
        """`schemas`: of all that can come in; `answers`, `keyring`: see Listener. `life`: see Forwarder.
        `calls`: nobody can call this node, so that it calls whoever can be called.

        ConfigError when `listen` can't be bound.
        """
        formats = [schema.nbytes for schema in schemas]
        largest, whole = max(map(sum, formats)), WINDOW * piece
        limits = Limits(
            max(HEADER_CAP, min(whole, max(schema.frame_cap for schema in schemas))),
            2 + max(map(len, formats)),
            2 * HEADER_CAP + min(whole, largest),
        )
        self._parcels_out, self._parcels_in = ParcelsOut(formats, piece), ParcelsIn(formats)
        self._per_round = _ROUND + (_PER_PIECE * -(-largest // piece) if largest > whole else 0.0)
        self._progress: Counter[tuple[int, int, int]] = Counter()  # bytes, by node, its life, this node's life
        limits = limits if keyring is None else widened(limits)
        payload = largest + HEADER_CAP
        volume = Volume(max(_BYTES[0], _PAYLOADS[0] * payload), _BYTES[1] + _PAYLOADS[1] * payload)
        self._bytes_per_round = _PAYLOADS_PER_ROUND * payload
        allowance = Allowance(limits, _RATE, _BURST, unit=float("inf"), large=piece / 2, volume=volume)
        about = versions.here(node, versions.MODELS).encode()
        self._listener = ports.listening(
            listen,
            lambda: Listener(
                listen, federation, nodes, allowance, clock.now(), about, answers=answers, keyring=keyring
            ),
        )
        self._keyring = keyring
        self._forwarder = None if keyring is None else Forwarder(keyring, life, volume)
        self._inlets: Inlets | None = None
        if keyring is not None and calls:
            self._inlets = Inlets(zmtp.introduction(federation, node), keyring, self._listener.adopted)
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 4096)
        self._introduction = zmtp.introduction(federation, node)
        self._addresses: dict[int, str] = {}
        self._names = Names()
        self._dealers: dict[int, zmq.Socket[bytes]] = {}
        self._numbers: dict[int, str] = {}  # where a dealer connects to
        self._took: dict[int, float] = {}  # when a dealer was made or has last taken a message
        self.dropped: Counter[str] = Counter()
        self._faults: list[tuple[str, str]] = []  # in pieces that came in: reason and detail; blame bounds them
        self.bytes_sent = 0

    @property
    def bytes_received(self) -> int:
        """Of all messages."""
        return self._listener.nbytes

    def know(self, node: int, address: str) -> None:
        """Note where a node is; a link to where it was before is given up."""
        if self._addresses.get(node) == address:
            return
        self._addresses[node] = address
        if node in self._dealers:
            self._dealers.pop(node).close(0)
        if self._inlets is not None and dialer(address) is None:
            self._inlets.want(node, address)

    def admit(self, keyring: Keyring) -> None:
        """Take other keys from now on: what is under way to who no longer has one is for nobody, links are hung up."""
        before, self._keyring = self._keyring, keyring
        for each in (self._forwarder, self._inlets):
            if each is not None:
                each.admit(keyring)
        for node in [*self._dealers]:
            if before is not None and before.key_of(node) != keyring.key_of(node):
                self._dealers.pop(node).close(0)
                self._parcels_out.lose(node)
        self._listener.admit(keyring)

    def grow(self, nodes: int) -> None:
        """There can be so many nodes now: those that were strangers before may connect."""
        self._listener.grow(nodes)

    def lose(self, node: int) -> None:
        """A node is not there any more: what is under way to it is for nobody."""
        self._parcels_out.lose(node)

    def withdraw(self, node: int) -> None:
        """A node has joined: it needs no model any more."""
        self._parcels_out.withdraw(node)
        self._pump(node, clock.now())

    def _dealer(self, node: int, now: float) -> zmq.Socket[bytes]:
        """Return the socket to a node. Raises ZMQError; Again while its name is not known."""
        numbers = self._names.numbers(self._addresses[node], now)
        if numbers is None:
            raise zmq.Again
        if node in self._dealers and self._numbers[node] != numbers:
            self._dealers.pop(node).close(0)
        if node not in self._dealers:
            keys = keys_to(node, self._keyring)
            self._dealers[node] = dealer(self._context, self._introduction, keys, _QUEUE, 20, numbers)
            self._numbers[node], self._took[node] = numbers, now
        return self._dealers[node]

    def fileno(self) -> int:
        """To poll for input."""
        return self._listener.fileno()

    @property
    def delay(self) -> float:
        """Return in how many seconds to call `receive` again, whatever `fileno` says."""
        return self._listener.delay

    def send(self, to: int, letter: Letter) -> bool:
        """Send a message without copying large ones; False when the node is not connected yet or reads nothing."""
        now = clock.now()
        if to in self._addresses and self._parcels_out.add(to, letter, now):
            return self._pump(to, now)
        sent = self._put(to, letter.frames, letter.nbytes, now)
        self.dropped["unsent"] += not sent
        return sent

    def _pump(self, to: int, now: float) -> bool:
        """Send what may go to a node; False when the socket takes nothing."""
        while (portion := self._parcels_out.next(to, now)) is not None:
            if not self._put(to, portion.frames, portion.nbytes, now):
                return False
            self._parcels_out.took(to, portion, now)
        return True

    def _put(self, to: int, frames: Sequence[Any], nbytes: int, now: float) -> bool:
        if to not in self._addresses:
            return False
        if dialer(self._addresses[to]) is not None:
            return self._forwarded(to, frames, nbytes, now)
        try:
            self._dealer(to, now).send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            if to in self._dealers:
                self._names.blocked(self._addresses[to], self._took[to], now)
                if now - self._took[to] > _STUCK:
                    self._dealers.pop(to).close(0)
            return False
        except zmq.ZMQError:
            return False
        self._took[to] = now
        self.bytes_sent += nbytes
        return True

    def _forwarded(self, to: int, frames: Sequence[Any], nbytes: int, now: float) -> bool:
        """Send to a node that nobody can call: by the connection that it has made, or by way of another."""
        if self._listener.takes(to):
            done = self._listener.put(to, frames)
            self.bytes_sent += nbytes * done
            return done
        if self._inlets is None or self._forwarder is None or (sealed := self._forwarder.seal(to, frames)) is None:
            return False
        own = self._keyring.node if self._keyring is not None else to
        members = sorted(node for node, address in self._addresses.items() if node != own and dialer(address) is None)
        size = sum(map(len, sealed))
        return any(self._put(way, sealed, size, now) for way in self._forwarder.ways(to, members, now))

    def _arrived(self, now: float) -> Iterator[Arrived]:
        """Return what has come in, also by way of others."""
        for message in self._listener.receive(now):
            if self._forwarder is None or not is_forwarded(message.frames):
                yield message
                continue
            try:
                mine = self._forwarder.take(message, self._listener, now)
            except RemoteError as error:
                self._faults.append((error.reason, f"of node {message.node}: {error.detail}"))
                continue
            if mine is not None:
                yield mine

    def receive(self) -> Iterator[Arrived]:
        """Return messages that have come in, a bounded number."""
        now = clock.now()
        for message in self._arrived(now):
            if not parcels.is_parcel(message.frames):
                yield message
                continue
            try:
                whole = self._take(message, now)
            except RemoteError as error:
                self._faults.append((error.reason, f"of node {message.node}: {error.detail}"))
                self.blame(message)
                continue
            if whole is not None:
                yield message._replace(frames=whole)

    def _take(self, message: Arrived, now: float) -> list[Any] | None:
        """Take in a piece, or an answer to one; return the message that is whole with it."""
        if parcels.is_answer(message.frames):
            self._note(self._parcels_out.answered(message.node, message.frames, now))
            self._pump(message.node, now)
            return None
        taken = self._parcels_in.take(message.node, message.frames, now)
        self._note(taken.progress)
        if taken.useless:
            self.blame(message)
        if taken.answer is not None:
            self._put(message.node, [taken.answer], len(taken.answer), now)
        return taken.message

    def _note(self, progress: Progressed | None) -> None:
        if progress is not None:
            self._progress[progress[:3]] += progress.nbytes

    def step(self) -> list[Progressed]:
        """Go on with what is under way; return what parcels have got on since the last call."""
        now = clock.now()
        for inlet in () if self._inlets is None else self._inlets.step(now):
            self._listener.adopt(inlet, now)
        for to in self._parcels_out.waiting:
            self._pump(to, now)
        self._parcels_out.give_up(now)
        self._parcels_in.forget(now)
        self.dropped.update(self._parcels_out.dropped)
        self._parcels_out.dropped.clear()
        told = [Progressed(*between, nbytes) for between, nbytes in self._progress.items()]
        self._progress.clear()
        return told

    def progress(self, rounds: int) -> None:
        """This node has got on by so many rounds: there is more that its neighbours have to say."""
        self._listener.allow(self._per_round * rounds, self._bytes_per_round * rounds)
        if self._forwarder is not None:
            self._forwarder.allow(self._bytes_per_round * rounds)

    def blame(self, message: Arrived) -> None:
        """A message was of no use: after many, the connection is hung up."""
        if self._forwarder is not None and message.link == FORWARDED:
            self._forwarder.blame(message.node, clock.now())
        else:
            self._listener.blame(message, clock.now())

    @property
    def forwarded(self) -> Mapping[Ends, int]:
        """Bytes that this node has forwarded, by whom they were between."""
        return {} if self._forwarder is None else self._forwarder.forwarded

    def watch(self) -> list[tuple[str, str]]:
        """Return what was wrong with connections since the last call: reason and detail."""
        faults, self._faults = self._faults, []
        return self._listener.told() + faults

    def close(self, linger: float) -> None:
        """Close all sockets; what is on its way may take `linger` seconds more."""
        limit, poller = clock.now() + linger, zmq.Poller()
        poller.register(self._listener.fileno(), zmq.POLLIN)
        while not self._parcels_out.idle and clock.now() < limit:
            poller.poll(_LAST)
            for _ in self.receive():
                pass
            self.step()
        if self._inlets is not None:
            self._inlets.close()
        for each in self._dealers.values():
            each.setsockopt(zmq.LINGER, int(linger * 1000))
            each.close()
        self._listener.close()
        self._context.term()
