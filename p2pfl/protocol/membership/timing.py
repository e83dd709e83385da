"""Timing of probes: presets, each written as what it changes of another."""

from __future__ import annotations

import math
from typing import NamedTuple

from p2pfl.errors import ConfigError


class ProbeTiming(NamedTuple):
    """Seconds, unless said otherwise. n = members that are neither dead nor left; h = health score + 1 = 1 .. 8.

    A period of probing lasts interval x h. A ping waits clamp(3 x p99 of the round trips seen, ack_min, ack_max) x h,
    then `ask` others are asked to ping, then the member is suspect. A suspicion lasts from
    low = suspicion x max(1, log10 n) x interval, when suspicion - 2 others confirm it, to stretch x low, when nobody
    does; times (h + 1) / 2. So a member that is silent for less than interval + low is declared dead by nobody.

    Who hears that a member is gone asks it, five times within interval x h, and believes it when no answer comes.
    """

    interval: float
    ack_min: float
    ack_max: float
    ask: int  # members asked to ping in my place
    suspicion: float  # a factor
    stretch: float  # a factor
    gossip_every: float
    fanout: int  # members told at a time
    retransmit: int  # an entry is told retransmit x ceil(log10(n + 1)) times
    gossip_dead: float  # those dead for less are told as well
    sync_every: float  # the whole table, with a member
    retry_dead: float  # the whole table, with a dead member or with a seed that has not answered
    forget_after: float  # the dead and the left are forgotten
    hello_every: float  # to the seeds, while this node starts
    busy_cap: float  # of an announced pause; what is announced beyond it is not believed
    alone: float  # who hears nobody at all is rather cut off itself, and declares nobody dead for so long
    late: float  # called so much later than due, this node itself has stalled: its waits are prolonged by that
    leave: float  # a leaver waits for receipts at most
    stalled_after: float  # the owner has shown no life for so long: this node stops answering
    reborn_every: float  # three lives of a node at once, then one each so many seconds: what accusations can cost


LAN = ProbeTiming(
    interval=0.4,
    ack_min=0.1,
    ack_max=0.2,
    ask=3,
    suspicion=3.0,
    stretch=2.0,
    gossip_every=0.1,
    fanout=3,
    retransmit=4,
    gossip_dead=30.0,
    sync_every=15.0,
    retry_dead=5.0,
    forget_after=6 * 3600.0,
    hello_every=0.25,
    busy_cap=600.0,
    alone=15.0,
    late=0.25,
    leave=2.0,
    stalled_after=30.0,
    reborn_every=20.0,
)
# one machine: no loss, but nodes compete for its cores: interval + low = 1.75 s of silence before a death
LOCAL = LAN._replace(
    interval=0.25,
    ack_min=0.05,
    ack_max=0.125,
    suspicion=6.0,
    stretch=1.1,
    gossip_every=0.05,
    sync_every=5.0,
    retry_dead=2.0,
    hello_every=0.1,
    alone=6.0,
    leave=1.0,
)
WAN = LAN._replace(
    interval=2.0,
    ack_min=0.5,
    ack_max=1.0,
    suspicion=5.0,
    stretch=3.0,
    gossip_every=0.4,
    gossip_dead=60.0,
    sync_every=60.0,
    retry_dead=15.0,
    forget_after=24 * 3600.0,
    hello_every=1.0,
    busy_cap=1800.0,
    alone=60.0,
    late=1.0,
    leave=5.0,
    stalled_after=60.0,
)

PROBE_TIMINGS = {"local": LOCAL, "lan": LAN, "wan": WAN}


def check(timing: ProbeTiming) -> ProbeTiming:
    """The same timing. Raises ConfigError for one that can't work."""
    for name, value in timing._asdict().items():
        if not (type(value) in (int, float) and math.isfinite(value) and value > 0):
            raise ConfigError(f"{name}={value!r}: a finite number > 0. Start from one of {', '.join(PROBE_TIMINGS)}.")
    if not timing.ack_min <= timing.ack_max <= timing.interval / 2:
        raise ConfigError(
            f"ack_max={timing.ack_max}: from ack_min={timing.ack_min} to half of interval={timing.interval}, "
            "so that others can still be asked. Lengthen the interval."
        )
    for name in ("suspicion", "stretch"):
        if getattr(timing, name) < 1:
            raise ConfigError(f"{name}={getattr(timing, name)}: a factor >= 1. Take a larger one.")
    return timing
