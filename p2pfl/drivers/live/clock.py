"""The only place that reads a clock. No other node's clock is ever trusted."""

from __future__ import annotations

import time


def now() -> float:
    """Seconds, monotonic; only differences mean anything."""
    return time.monotonic()


def spent() -> float:
    """Seconds that all processors have worked for this process; only differences mean anything.

    What else runs on the machine is not in them.
    """
    return time.process_time()


def life() -> int:
    """Milliseconds since 1970 by this machine's clock: a new life of a node is at least that, see `p2pfl.node.life`.

    It may go back; it is never compared with another node's.
    """
    return time.time_ns() // 1_000_000


def pause(seconds: float) -> None:
    """Do nothing for a while: where nothing tells that what is waited for has come, as a port that gets free."""
    time.sleep(seconds)
