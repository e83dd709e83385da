"""Suspicions: each lasts until it is a death, the shorter the more members confirm it.

Source: Dadgar, Phillips, Currey, "Lifeguard: local health awareness for more accurate failure detection", 2018
(arXiv 1707.00788), local health aware suspicion.
"""

from __future__ import annotations

import math

from p2pfl.protocol.membership.timing import ProbeTiming


def bounds(timing: ProbeTiming, n: int) -> tuple[float, float, int]:
    """(low, high, k) for n members: seconds with k confirmations, seconds with none, and k itself."""
    low = timing.suspicion * max(1.0, math.log10(max(n, 1))) * timing.interval
    k = max(0, int(timing.suspicion) - 2)
    if n - 2 < k:  # there are not so many others who could confirm
        k = 0
    return low, low * timing.stretch, k


def timeout(low: float, high: float, k: int, confirmed: int) -> float:
    """Seconds from the first suspicion to the death, when `confirmed` members have confirmed it; k of them are needed.

    max(low, high - (high - low) ln(confirmed + 1) / ln(k + 1)); low when k = 0.
    """
    if k == 0:
        return low
    return max(low, high - (high - low) * math.log(confirmed + 1) / math.log(k + 1))


class Suspicion:
    """A suspicion that is held of a member, since when and by whom."""

    def __init__(self, since: float, by: int, timing: ProbeTiming, n: int) -> None:
        self.began = self.since = since
        self._low, self._high, self._k = bounds(timing, n)
        self._by = {by}
        self.told = since  # when the member was last told of it
        self.wait = 0.0  # not before then

    def confirm(self, by: int) -> bool:
        """Another member suspects too; False when that changes nothing."""
        if by in self._by or len(self._by) > self._k:
            return False
        self._by.add(by)
        return True

    def again(self, now: float) -> None:
        """Count from now: this node could not have heard a refutation before."""
        self.since = now

    def due(self, factor: float) -> float:
        """Return when it becomes a death, for a node whose health stretches its waits by `factor`."""
        return max(self.wait, self.since + factor * timeout(self._low, self._high, self._k, len(self._by) - 1))
