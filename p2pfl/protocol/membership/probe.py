"""Probes: whom to ask next, how long an answer may take, and how far this node trusts itself.

Sources: SWIM, DSN 2002, sections 3 and 4.3 (round robin in random order, indirect probes); Lifeguard, arXiv 1707.00788
(local health multiplier, nacks).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection
from typing import NamedTuple

from p2pfl.protocol.membership.timing import ProbeTiming


class RoundRobin:
    """Round robin over the members, each pass in a new random order: between two turns of a member lie at most
    2 n - 2 others."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._rest: list[int] = []

    def add(self, node: int) -> None:
        """Give a new member a turn somewhere in this pass."""
        self._rest.insert(self._draw.randint(0, len(self._rest)), node)

    def next(self, live: Collection[int]) -> int | None:
        """Return whose turn it is, of those that live; None when nobody does."""
        for _ in range(2):
            while self._rest:
                node = self._rest.pop()
                if node in live:
                    return node
            self._rest = sorted(live)
            self._draw.shuffle(self._rest)
        return None


class Health:
    """The health score of this node: 0 (well) to 7. It stretches what this node waits."""

    def __init__(self) -> None:
        self.score = 0

    def add(self, points: int) -> None:
        """Points against this node's health; a good probe is -1."""
        self.score = min(7, max(0, self.score + points))

    @property
    def stretch(self) -> int:
        """h of the timing: periods and answers may take so many times longer."""
        return self.score + 1


class Trips:
    """Round trips seen lately, in seconds."""

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=128)

    def add(self, seconds: float) -> None:
        """An answer took so long."""
        self._seen.append(seconds)

    def timeout(self, timing: ProbeTiming) -> float:
        """clamp(3 x p99, ack_min, ack_max); ack_max as long as few were seen."""
        if len(self._seen) < 8:
            return timing.ack_max
        p99 = sorted(self._seen)[int(0.99 * (len(self._seen) - 1))]
        return min(timing.ack_max, max(timing.ack_min, 3 * p99))


class Probe:
    """The probe of this period: whom, since when, and who has been asked to help."""

    def __init__(self, target: int, seq: int, began: float) -> None:
        self.target, self.seq, self.began = target, seq, began
        self.reached = False
        self.asked: set[int] = set()
        self.nacks: set[int] = set()

    def against(self, others: int) -> int:
        """Points against this node's own health when the probe has failed and it knows so many others.

        One for each member that was asked and did not even say no. With one other member nobody can tell who is ill.
        """
        if self.asked:
            return len(self.asked - self.nacks)
        return 1 if others > 1 else 0


class Relay(NamedTuple):
    """A probe made for somebody else."""

    target: int
    asker: int
    address: str  # where it is
    seq: int  # the asker's
    due: float  # say by then that there was no answer
