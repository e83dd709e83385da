"""What an experiment does to a node's messages: partitions that keep them back, and lag that holds them up."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from p2pfl import churn
from p2pfl.drivers.live.sidecar import Sidecar
from p2pfl.drivers.live.transport import Transport

_AGAIN = 0.2
"""Seconds for which a message that asks for it is tried again. A connection on one machine takes a few milliseconds."""


class Weather(NamedTuple):
    """Of one round."""

    cut: frozenset[int] = frozenset()  # nodes that nothing is sent to or taken from
    lag: float = 0.0  # seconds that messages are held up


class Forecast:
    """The weather of each round at one node, as the experiment plans it."""

    def __init__(self, events: Sequence[churn.Event], node: int, nodes: int) -> None:
        self._cut, self._lags = churn.cut(events), churn.lags(events)
        self._node, self._nodes = node, nodes

    def of(self, round: int) -> Weather:
        """The weather of a round."""
        cut = frozenset(other for other in range(self._nodes) if self._cut(round, self._node, other))
        return Weather(cut, self._lags(round, self._node))


class Links:
    """The way out, through the weather. `weather` may be set by another thread; the sockets feel it in `turn`."""

    def __init__(self, transport: Transport, membership: Sidecar) -> None:
        self._transport, self._membership = transport, membership
        self.weather = self._felt = Weather()
        self._held: deque[tuple[float, int, Sequence[Any], int]] = deque()  # until when, to whom, what
        self._again: dict[int, tuple[float, Sequence[Any], int]] = {}  # to whom: until when, what

    def send(self, to: int, frames: Sequence[Any], nbytes: int, now: float, again: bool = False) -> None:
        """Send, now or later, in order; or not at all. `again`: try for a moment, if there is no connection yet."""
        if to in self.weather.cut:
            return
        if self.weather.lag or self._held:
            self._held.append((now + self.weather.lag, to, frames, nbytes))
        elif self._transport.send(to, frames, nbytes):
            self._again.pop(to, None)  # what has been said since is newer, and links keep order
        elif again:
            self._again[to] = now + _AGAIN, frames, nbytes

    def turn(self, now: float) -> None:
        """Let go what was held up long enough; try again what could not leave; tell the membership of new weather."""
        for to, (until, frames, nbytes) in list(self._again.items()):
            if now >= until or to in self.weather.cut or self._transport.send(to, frames, nbytes):
                del self._again[to]
        while self._held and self._held[0][0] <= now:
            _, to, frames, nbytes = self._held.popleft()
            self._transport.send(to, frames, nbytes)
        if self.weather != self._felt:
            self._felt = self.weather
            self._membership.cut(self._felt.cut)
            self._membership.lag(self._felt.lag)

    @property
    def waiting(self) -> bool:
        """Something has not left yet."""
        return bool(self._held or self._again)
