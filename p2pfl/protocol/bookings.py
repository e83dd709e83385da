"""Bookings of a node that wait to be mixed."""

from __future__ import annotations

from collections.abc import Collection

from p2pfl.protocol.events import Booking
from p2pfl.protocol.neighbor import Neighbor


class Bookings:
    """Exchanges booked and not yet mixed. Pushes wait at their neighbours."""

    def __init__(self) -> None:
        self._waiting: list[Booking] = []

    def add(self, booking: Booking) -> None:
        """Keep an exchange that was booked."""
        self._waiting.append(booking)

    def holds(self, node: int) -> bool:
        """Return whether one with this neighbour is not mixed yet."""
        return any(each.node == node for each in self._waiting)

    def take(self, neighbors: Collection[Neighbor], round: int, epoch: int, slots: int | None) -> tuple[Booking, ...]:
        """Return what this round mixes: of each neighbour the oldest exchange or the newest push.

        Where there are more than slots the oldest go first, and the rest waits for the next round. `slots` None: all.
        """
        chosen: list[Booking] = []
        for booking in sorted(self._waiting, key=lambda each: (each.opened, each.node, each.number)):
            if slots is None or all(each.node != booking.node for each in chosen):
                chosen.append(booking)
        for other in neighbors:
            side = other.newest(round, epoch)
            if side is not None:
                chosen.append(Booking(other.node, other.life, side.round, None, side))
        if slots is not None:
            chosen = sorted(chosen, key=lambda each: each.opened)[:slots]
        taken = {id(each) for each in chosen}  # payloads don't compare
        self._waiting = [each for each in self._waiting if id(each) not in taken]
        pushed = {each.node: each.theirs.round for each in chosen if each.mine is None}
        for other in neighbors:
            if other.node in pushed:
                other.take(pushed[other.node])
        return tuple(sorted(chosen, key=lambda each: (each.node, each.life, each.number)))
