"""Timing of rounds: presets, each written as what it changes of the one before, and the adaptive deadline."""

from __future__ import annotations

import statistics
from collections import deque
from typing import NamedTuple


class Timing(NamedTuple):
    """Seconds, unless said otherwise. Read when used, and per node.

    deadline_min > silence + ping_every: a dead neighbour is found to be silent before any round goes on without a
    living one, so that its death costs one wait and no exchange between others.

    A start waits for max(start_timeout, START_PER_NODE x nodes, what this node has taken to compile): where all share a
    machine, each of them has to open its sockets first, and a machine that compiles slowly opens them slowly.
    """

    hello_every: float = 0.1  # until the neighbour has answered
    start_timeout: float = 1.5  # at least; once this node is ready: who is not met by then is left behind at the start
    ping_every: float = 0.1  # while waiting for a neighbour that says nothing
    silence: float = 0.5  # pinged and unheard for so long: suspect, nobody waits for it
    bandwidth: float = 50e6  # bytes/s a link has at least: silence and deadlines stretch by payload / bandwidth
    retry_every: float = 0.5  # pings to a suspect, so that it is found when it comes back
    deadline_min: float = 0.8  # a round waits for a neighbour that answers pings until
    deadline_max: float = 1.2  # median + deadline_mads x MAD of the lateness seen, within these bounds,
    deadline_mads: float = 8.0
    patience: float = 3.0  # ... the upper one stretched to this many of the node's own training times
    drain: float = 1.0  # at the end, for exchanges that are still open


LOCAL = Timing()
LAN = LOCAL._replace(start_timeout=600.0, silence=2.0, bandwidth=5e6, deadline_min=3.0, deadline_max=10.0, drain=5.0)
WAN = LAN._replace(
    hello_every=0.5,
    ping_every=0.5,
    silence=6.0,
    bandwidth=0.5e6,
    retry_every=2.0,
    deadline_min=9.0,
    deadline_max=60.0,
    drain=20.0,
)

PRESETS = {"local": LOCAL, "lan": LAN, "wan": WAN}


SLOWEST = 10.0
"""A link on which a message gets on may be so many times slower than `bandwidth` before a round stops waiting."""

PASSES = 2.0
"""Payloads whose bytes may prolong one round's wait for a neighbour: there is one in each direction."""

START_PER_NODE = 0.1
"""Seconds that a start waits for each node of the federation, at least."""


def starting(timing: Timing, nodes: int, compiled: float = 0.0) -> Timing:
    """Return the timing of a node in a federation of so many, which has taken so many seconds to compile."""
    return timing._replace(start_timeout=max(timing.start_timeout, START_PER_NODE * nodes, compiled))


class Lateness:
    """Lateness of the neighbours and training time of this node, over the last rounds."""

    def __init__(self) -> None:
        self._late: deque[float] = deque(maxlen=64)
        self._training: deque[float] = deque(maxlen=16)

    def booked(self, seconds: float) -> None:
        """Note that an exchange was booked so long after this end was ready."""
        self._late.append(seconds)

    def trained(self, seconds: float) -> None:
        """Note that a round's local steps took so long."""
        self._training.append(seconds)

    def deadline(self, timing: Timing, payload_bytes: int) -> float:
        """Return how long to wait for a live neighbour in this round."""
        stretch = payload_bytes / timing.bandwidth
        own = statistics.median(self._training) if self._training else 0.0
        most = max(timing.deadline_max + stretch, timing.patience * own)
        if len(self._late) < 8:
            return max(most, timing.deadline_min)
        median = statistics.median(self._late)
        mad = statistics.median(abs(late - median) for late in self._late)
        return max(timing.deadline_min + stretch, min(most, median + timing.deadline_mads * mad))
