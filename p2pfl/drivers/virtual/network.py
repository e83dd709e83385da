"""A network and a clock that are values: when what is said arrives, if it does; nothing here waits.

Seconds and bytes. Everything is drawn from the seed, so the same calls in the same order give the same times.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from p2pfl import random_bits

_NETWORK = 0x4E7
"""The purpose of these draws, see p2pfl.random_bits."""

_BLOCK = 4096
"""Draws made at a time."""


class Link(NamedTuple):
    """One direction between two nodes. The last three are probabilities of each message."""

    latency: float = 0.0  # seconds that every message takes at least
    jitter: float = 0.0  # up to so many seconds more, uniform
    bandwidth: float = math.inf  # bytes/s
    loss: float = 0.0
    reorder: float = 0.0  # of a datagram to be held back, so that those behind it may overtake
    duplicate: float = 0.0  # of a datagram to arrive twice


class Network:
    """Says when messages between nodes arrive. `link(source, to)` describes a direction and is asked each time.

    A cut or a partition acts when a message is sent; a driver that also loses what is under way asks `up` at arrival.
    """

    def __init__(self, seed: int, link: Callable[[int, int], Link]) -> None:
        self._seed, self._link = seed, link
        self._cut: set[tuple[int, int]] = set()
        self._group: dict[int, int] = {}
        self._free: dict[tuple[int, int], float] = {}  # when a stream has sent what it was given
        self._last: dict[tuple[int, int, bool], float] = {}  # the latest arrival on a stream or among datagrams
        self._drawn = 0
        self._draws: list[float] = []

    def cut(self, source: int, to: int) -> None:
        """Lose everything from `source` to `to`; the other direction stays as it is."""
        self._cut.add((source, to))

    def partition(self, groups: Iterable[Iterable[int]]) -> None:
        """Let nodes talk only within their group; those that no group names form one more. Replaces the last one."""
        self._group = {node: number for number, group in enumerate(groups) for node in group}

    def heal(self) -> None:
        """End the partition and all cuts."""
        self._cut.clear()
        self._group = {}

    def up(self, source: int, to: int) -> bool:
        """Return whether anything can get from `source` to `to` now."""
        return (source, to) not in self._cut and self._group.get(source, -1) == self._group.get(to, -1)

    def datagram(self, source: int, to: int, nbytes: int, now: float) -> list[float]:
        """Return the times at which a message sent alone arrives: none, one or two.

        Datagrams do not wait for streams nor for one another: each has the link's bandwidth for itself.
        """
        link = self._link(source, to)
        if not self.up(source, to) or self._chance(link.loss):
            return []
        arrival = self._arrival(link, now + nbytes / link.bandwidth, (source, to, False), self._chance(link.reorder))
        if not self._chance(link.duplicate):
            return [arrival]
        return [arrival, arrival + self._draw() * (link.latency + link.jitter)]

    def stream(self, source: int, to: int, nbytes: int, now: float) -> float | None:
        """Return the time at which a message on a link that keeps order arrives; None when it is lost.

        It waits until what was sent before it is through: a large message delays those behind it, also when it is lost.
        """
        link = self._link(source, to)
        if not self.up(source, to):
            return None
        sent = max(now, self._free.get((source, to), -math.inf)) + nbytes / link.bandwidth
        self._free[source, to] = sent
        return None if self._chance(link.loss) else self._arrival(link, sent, (source, to, True), False)

    def _arrival(self, link: Link, sent: float, direction: tuple[int, int, bool], late: bool) -> float:
        time = sent + link.latency + (link.jitter * self._draw() if link.jitter else 0.0)
        if late:
            return time + self._draw() * (link.latency + link.jitter)
        time = max(time, self._last.get(direction, -math.inf))
        self._last[direction] = time
        return time

    def _chance(self, probability: float) -> bool:
        return probability > 0 and self._draw() < probability

    def _draw(self) -> float:
        if not self._draws:
            block = np.arange(self._drawn, self._drawn + _BLOCK)
            self._draws = random_bits.uniform(self._seed, _NETWORK, block)[::-1].tolist()
            self._drawn += _BLOCK
        return self._draws.pop()


class Queue:
    """A queue of what will happen, in order of time, then of entry. `now` is the time of the last taken."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = 0
        self._heap: list[tuple[float, int, Any]] = []

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def due(self) -> float:
        """Return the time of the next thing; infinity when there is none."""
        return self._heap[0][0] if self._heap else math.inf

    def put(self, time: float, item: Any) -> None:
        """Let `item` happen at `time`, which is not before now."""
        if not time >= self.now:
            raise ValueError(f"time={time}: not before now, which is {self.now}")
        heapq.heappush(self._heap, (time, self._order, item))
        self._order += 1

    def next(self) -> tuple[float, Any]:
        """Jump to the next thing that happens: its time and the item. IndexError when there is none."""
        self.now, _, item = heapq.heappop(self._heap)
        return self.now, item
