"""Planned churn: who is there in which round, and what the network does to messages; the same for every driver.

`events`: what may happen. `rules`: what can't. `rounds`: events, round by round. `models`: what draws events. `tables`:
[[churn]] of the experiment file. `deliveries`: what is booked of a schedule.
"""

from __future__ import annotations

from p2pfl.churn.deliveries import Conditions, Deliveries, losing, lost
from p2pfl.churn.events import EVENTS, Event
from p2pfl.churn.models import MODELS, Setting
from p2pfl.churn.rounds import Timeline, active, cut, expected, lags, losses, timeline
from p2pfl.churn.rules import check
from p2pfl.churn.tables import FIELDS, ChurnEvent, expand

__all__ = [
    "EVENTS", "FIELDS", "MODELS", "ChurnEvent", "Conditions", "Deliveries", "Event", "Setting", "Timeline", "active",
    "check", "cut", "expand", "expected", "lags", "losing", "losses", "lost", "timeline",
]  # fmt: skip
