"""A world in which the network and the clock are values: nodes, the messages between them, and what happens when.

Nothing waits. What a node computes is computed at once, and is there after the time that it would take. The same seed
and the same calls make the same run, whatever machine it is on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from p2pfl.drivers.virtual.network import Link, Network, Queue
from p2pfl.drivers.virtual.node import VirtualNode, node_at, weight
from p2pfl.errors import ConfigError, LocalError
from p2pfl.protocol.codec import encode
from p2pfl.protocol.events import Leave, Received
from p2pfl.protocol.membership import events as membership
from p2pfl.protocol.messages import Envelope


class World:
    """`link(source, to)` describes the network, and is asked for each message.

    `nodes` holds the latest life of each. `network` may be cut and healed at any time; `kept_back(round, sender,
    receiver)` says what a planned partition holds back: a message arrives when neither end is in a round that does.
    `lag(round, node)`: seconds by which all that the node sends is late.
    """

    def __init__(
        self,
        seed: int,
        link: Callable[[int, int], Link],
        kept_back: Callable[[int, int, int], bool] = lambda round, sender, receiver: False,
        lag: Callable[[int, int], float] = lambda round, node: 0.0,
    ) -> None:
        self.seed = seed
        self.queue = Queue()
        self.nodes: dict[int, VirtualNode] = {}
        self.network = Network(seed, self._delayed)
        self.began = 0  # the furthest round that any node has begun
        self.said = 0  # bytes of the memberships, all nodes together
        self.ends: list[Callable[[VirtualNode], None]] = []  # called for each life that is over
        self._link, self._kept_back, self._lag = link, kept_back, lag

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return self.queue.now

    def at(self, delay: float, call: Callable[..., None], *arguments: Any) -> None:
        """Let something happen after so many seconds."""
        self.when(self.now + delay, call, *arguments)

    def when(self, time: float, call: Callable[..., None], *arguments: Any) -> None:
        """Let something happen at a time; at once, if that has passed."""
        self.queue.put(max(time, self.now), (call, arguments))

    # --- nodes

    def life(self, node: int) -> int:
        """The name of a new life of a node, greater than any it had: milliseconds, as of a real one."""
        old = self.nodes[node].peer.life if node in self.nodes else 0
        return max(old + 1, 1 + int(self.now * 1000))

    def add(self, node: VirtualNode) -> None:
        """Begin a life of a node, now. ConfigError when it has another one."""
        me = node.facts.node
        if me in self.nodes:
            if self.nodes[me].up:
                raise ConfigError(f"node={me}: is still there; let it crash or leave before it begins a new life")
            self.nodes[me].vanish()  # who listens there from now on is another
        self.nodes[me] = node
        node.start()

    def over(self, node: VirtualNode) -> None:
        """A life is over; tell whoever wants to know."""
        for call in self.ends:
            call(node)

    # --- messages

    def _delayed(self, source: int, to: int) -> Link:
        link = self._link(source, to)
        lag = self._lag(self.nodes[source].round, source)
        return link._replace(latency=link.latency + lag) if lag else link

    def send(self, source: VirtualNode, to: int, envelope: Envelope) -> None:
        """From peer to peer, on a link that keeps order; a node that is not there is not connected."""
        other = self.nodes.get(to)
        size = weight(envelope, len(encode(envelope)), source.facts.payload_bytes)
        if other is None or not other.up or self._kept_back(source.round, source.facts.node, to):
            return
        source.sent += size
        arrival = self.network.stream(source.facts.node, to, size, self.now)
        if arrival is not None:
            self.when(arrival, self._deliver, source.facts.node, other, envelope, size)

    def _deliver(self, source: int, other: VirtualNode, envelope: Envelope, size: int) -> None:
        """Only to the life that it was sent to: a connection ends with either end's life."""
        if not other.up or not self._reaches(source, other):
            return
        other.received += size
        other.handle(Received(envelope) if envelope.payload is None else other.given.taken(envelope))

    def say(self, source: VirtualNode, to: str, data: bytes) -> None:
        """From membership to membership, as datagrams."""
        me, other = source.facts.node, node_at(to)
        if other is None or self._kept_back(source.round, me, other):
            return
        self.said += len(data)
        for arrival in self.network.datagram(me, other, len(data), self.now):
            self.when(arrival, self._hear, me, other, data)

    def _hear(self, source: int, to: int, data: bytes) -> None:
        other = self.nodes.get(to)
        if other is not None and self._reaches(source, other):
            other.member(membership.Heard(data, source))

    def _reaches(self, source: int, other: VirtualNode) -> bool:
        """Return whether a message arrives: what is under way when the link is cut is lost."""
        me = other.facts.node
        return self.network.up(source, me) and not self._kept_back(other.round, source, me)

    # --- time

    def run(self, until: float = math.inf, patience: float = math.inf) -> None:
        """Let happen what will, until nothing more does or up to this time.

        LocalError when no node is in a new round after `patience` seconds: then something waits for ever.
        """
        progress, since = -1, self.now
        while self.queue.due <= until and len(self.queue):
            _, (call, arguments) = self.queue.next()
            call(*arguments)
            rounds = self._progress() if self.now - since > patience else progress
            if rounds != progress:
                progress, since = rounds, self.now
            elif self.now - since > patience and self._stop_waiting():
                since = self.now
            elif self.now - since > patience:
                stages = ", ".join(f"{n}: {v.peer.stage} {v.peer.round}" for n, v in self.nodes.items() if v.up)
                raise LocalError(
                    f"no node has finished a round for {patience:g} virtual seconds; the nodes are at: {stages}",
                    node=-1,
                    round=self.began,
                    part="virtual",
                )

    def _stop_waiting(self) -> bool:
        """Let those leave who wait for members that do not come; return whether there are any."""
        waiting = [node for node in self.nodes.values() if node.up and not node.done and node.peer.waits]
        for node in waiting:
            node.handle(Leave(idle=False))
        return bool(waiting)

    def _progress(self) -> int:
        return sum(node.peer.round + node.done for node in self.nodes.values()) + len(self.nodes)
