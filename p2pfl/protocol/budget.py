"""How much of this node's time and lives others may take: so much a second, and some more at once. No clock."""

from __future__ import annotations


class Budget:
    """Refills by `rate` a second up to `burst`. More may be spent than is left; then nothing is left for longer."""

    def __init__(self, rate: float, burst: float, now: float, left: float | None = None) -> None:
        """`left`: what there is to begin with, if not all."""
        self._rate, self._burst = rate, burst
        self._left, self._at = burst if left is None else left, now

    def left(self, now: float) -> bool:
        """Return whether something may be spent."""
        self._left = min(self._burst, self._left + self._rate * max(0.0, now - self._at))
        self._at = max(self._at, now)
        return self._left > 0

    def full(self, now: float) -> bool:
        """Return whether all that was spent has been refilled."""
        return self.left(now) and self._left == self._burst

    def add(self, amount: float) -> None:
        """Allow so much more, up to the burst."""
        self._left = min(self._burst, self._left + amount)

    def take(self, now: float) -> bool:
        """Take one; False when there is no whole one left."""
        self.left(now)
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

    def spend(self, amount: float) -> None:
        """Take away from what was left at the last look."""
        self._left -= amount
