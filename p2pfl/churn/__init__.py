"""Planned churn: who is there in which round, and what the network does to messages; the same for every driver.

`events`: what may happen. `rules`: what can't. `timeline`: events, round by round. `models`: what draws events.
`deliveries`: what is booked of a schedule.
`course`: the epochs.
"""

from __future__ import annotations

from p2pfl.churn.deliveries import Conditions, Deliveries, losing, lost
from p2pfl.churn.events import EVENTS, Event
from p2pfl.churn.models import MODELS, ChurnSetting
from p2pfl.churn.rules import check
from p2pfl.churn.timeline import Timeline, active, alone, cut, expected, lags, losses, there, timeline

__all__ = [
    "EVENTS",
    "MODELS",
    "ChurnSetting",
    "Conditions",
    "Deliveries",
    "Event",
    "Timeline",
    "active",
    "alone",
    "check",
    "cut",
    "expected",
    "lags",
    "losing",
    "losses",
    "lost",
    "there",
    "timeline",
]  # fmt: skip
