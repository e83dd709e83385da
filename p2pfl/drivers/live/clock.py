"""The only place that reads a clock. No other node's clock is ever trusted."""

from __future__ import annotations

import time


def now() -> float:
    """Seconds, monotonic; only differences mean anything."""
    return time.monotonic()


def life() -> int:
    """A number for this life of the node that is greater than that of any earlier one: milliseconds since 1970.

    It orders the lives of one node by that node's own clock; it is never compared with another node's.
    """
    return time.time_ns() // 1_000_000


def pause(seconds: float) -> None:
    """Do nothing for a while: where nothing tells that what is waited for has come, as a port that gets free."""
    time.sleep(seconds)
