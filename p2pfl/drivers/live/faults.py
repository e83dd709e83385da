"""Fault injection: what an experiment does to a node's messages. Partitions drop them, lag delays them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from p2pfl import churn
from p2pfl.drivers.live.parcels import Letter
from p2pfl.drivers.live.sidecar import Sidecar
from p2pfl.drivers.live.transport import Transport

_AGAIN = 0.2
"""Seconds for which a message that asks for it is tried again. A connection on one machine takes a few milliseconds."""


class InjectedFaults(NamedTuple):
    """Of one round."""

    cut: frozenset[int] = frozenset()  # nodes that nothing is sent to or taken from
    lag: float = 0.0  # seconds that messages are held up


class FaultPlan:
    """The faults of each round at one node, as the experiment plans them."""

    def __init__(self, events: Sequence[churn.Event], node: int, nodes: int) -> None:
        self._cut, self._lags = churn.cut(events), churn.lags(events)
        self._node, self._nodes = node, nodes

    def grow(self, nodes: int) -> None:
        """There can be so many nodes now."""
        self._nodes = max(self._nodes, nodes)

    def of(self, round: int) -> InjectedFaults:
        """Return the faults of a round."""
        cut = frozenset(other for other in range(self._nodes) if self._cut(round, self._node, other))
        return InjectedFaults(cut, self._lags(round, self._node))


class FaultyLinks:
    """The way out, through the faults. `faults` may be set by another thread; the sockets take it over in `step`."""

    def __init__(self, transport: Transport, membership: Sidecar) -> None:
        self._transport, self._membership = transport, membership
        self._planned = self._applied = InjectedFaults()
        self.waits = False  # the node is in no round
        self._held: deque[tuple[float, int, Letter]] = deque()  # until when, to whom, what
        self.blocked: dict[int, float] = {}  # since when nothing could be sent to a node, of those of which that is so
        self.reached: set[int] = set()  # nodes that something could be sent to, once
        self._again: dict[int, tuple[float, Letter]] = {}  # to whom: until when, what

    @property
    def faults(self) -> InjectedFaults:
        """The faults of the present round. A node that waits for others is in no round: they part it, not it them."""
        return InjectedFaults() if self.waits else self._planned

    @faults.setter
    def faults(self, planned: InjectedFaults) -> None:
        """Set the faults of a round; from any thread."""
        self._planned = planned

    def send(self, to: int, letter: Letter, now: float, again: bool = False) -> None:
        """Send, now or later, in order; or not at all. `again`: try for a moment, if there is no connection yet."""
        if to in self.faults.cut:
            return
        if self.faults.lag or self._held:
            self._held.append((now + self.faults.lag, to, letter))
        elif self._sent(to, letter, now):
            self._again.pop(to, None)  # what has been said since is newer, and links keep order
        elif again:
            self._again[to] = now + _AGAIN, letter

    def step(self, now: float) -> None:
        """Send what was held up long enough; retry what could not leave; tell the membership of new faults."""
        for to, (until, letter) in list(self._again.items()):
            if now >= until or to in self.faults.cut or self._sent(to, letter, now):
                del self._again[to]
        while self._held and self._held[0][0] <= now:
            _, to, letter = self._held.popleft()
            self._sent(to, letter, now)
        if self.faults != self._applied:
            self._applied = self.faults
            self._membership.cut(self._applied.cut)
            self._membership.lag(self._applied.lag)

    def _sent(self, to: int, letter: Letter, now: float) -> bool:
        done = self._transport.send(to, letter)
        if done:
            self.reached.add(to)
            self.blocked.pop(to, None)
        else:
            self.blocked.setdefault(to, now)
        return done

    @property
    def waiting(self) -> bool:
        """Something has not left yet."""
        return bool(self._held or self._again)
