"""Allowances: what others can make this node do is bounded by the minute."""

from __future__ import annotations


class Allowance:
    """`most` at once, and one more every so many seconds. No clock: time comes by `now`."""

    def __init__(self, most: int, every: float) -> None:
        self._most, self._every = most, every
        self._left = float(most)
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Take one; False when there is none left."""
        self._left = min(self._most, self._left + max(0.0, now - self._at) / self._every)
        self._at = max(self._at, now)
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
