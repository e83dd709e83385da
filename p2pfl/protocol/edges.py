"""The exchanges with all neighbours: one end of each edge, what has been booked on it, and the counts."""

from __future__ import annotations

from p2pfl.protocol import exchange
from p2pfl.protocol.bookings import Bookings
from p2pfl.protocol.events import Booking
from p2pfl.protocol.exchange import Edge, Ended, Step
from p2pfl.protocol.messages import BOOKED, Offer, Ping, Pong
from p2pfl.protocol.neighbor import Neighbor
from p2pfl.protocol.state import PeerState
from p2pfl.protocol.timing import Lateness

_ASKS = 64
"""Pings of one neighbour whose answers are still taken: some were lost, or one that is frozen has yet to read them."""


class Edges:
    """Carry out the steps of `exchange` at a neighbour's edge; keep what is booked until a round mixes it."""

    def __init__(self, state: PeerState, lateness: Lateness) -> None:
        self.booked = self.voided = 0  # exchanges that ended so at this end, and pushes that were used
        self._state, self._lateness = state, lateness
        self._bookings = Bookings()

    def apply(self, other: Neighbor, step: Step) -> None:
        """Keep the new end, say what is to be said, count what has ended."""
        for message in step.say:
            if isinstance(message, Offer):
                side = step.edge.mine
                self._state.send(other, message, side.payload if side else None)
            elif isinstance(message, Pong):
                self._state.send(other, message._replace(round=self._state.round))
            else:
                self._state.send(other, message)
        other.edge = step.edge
        for ended in step.ended:
            self._count(other, ended)

    def ping(self, other: Neighbor) -> Ping:
        """Return the question where the other end stands, with where this one does. It may be answered once."""
        other.asks = min(other.asks + 1, _ASKS)
        return exchange.ping(other.edge)._replace(round=self._state.round)

    def ask_void(self) -> bool:
        """Ask for a void of every exchange that is open with a neighbour at hand; returns whether there is one."""
        pending = [other for other in self._state.neighbors.values() if other.pending]
        for other in pending:
            self.apply(other, exchange.ask(other.edge))
        return bool(pending)

    def forsake(self) -> None:
        """Void at this end alone what is still open: an epoch ends."""
        for other in self._state.neighbors.values():
            self.apply(other, exchange.forsake(other.edge))

    def lose(self) -> None:
        """Count an exchange that the experiment loses: neither end opens it."""
        self.voided += 1

    def end_life(self, other: Neighbor) -> None:
        """Void what is open with a life of a neighbour that is over."""
        for ended in exchange.broken(other.edge):
            self._count(other, ended)
        other.edge = Edge()

    @property
    def open(self) -> int:
        """Exchanges that are neither booked nor void."""
        return sum(other.edge.phase != exchange.IDLE for other in self._state.neighbors.values())

    def holds(self, node: int) -> bool:
        """Return whether an exchange with this neighbour is booked and not mixed yet."""
        return self._bookings.holds(node)

    def take(self, slots: int | None) -> tuple[Booking, ...]:
        """Return what the round mixes, as `Bookings.take` chooses it."""
        state = self._state
        booked = self._bookings.take(state.neighbors.values(), state.round, state.epoch, slots)
        self.booked += sum(each.mine is None for each in booked)
        return booked

    def _count(self, other: Neighbor, ended: Ended) -> None:
        if ended.outcome != BOOKED:
            self.voided += 1
            return
        assert ended.mine is not None and ended.theirs is not None
        self.booked += 1
        self._lateness.booked(self._state.now - other.opened)
        self._bookings.add(Booking(other.node, other.life, ended.number, ended.mine, ended.theirs))
