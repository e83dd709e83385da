"""Planned churn: who is there in which round.

An event stands for the beginning of its round: a node that crashes at round 20 has finished round 19 and dies before it
trains in round 20; one that rejoins at round 40 takes the model that a neighbour has after training in round 39, and
takes part from round 40 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from p2pfl.errors import ConfigError, nearest
from p2pfl.types import Delivery, Schedule


class Event(NamedTuple):
    """Something that happens to a node at the beginning of a round."""

    event: str  # crash | leave | rejoin
    node: int
    round: int


EVENTS = ("crash", "leave", "rejoin")


def check(events: Sequence[Event], nodes: int, rounds: int) -> None:
    """Raises ConfigError for events that can't happen: unknown kinds, nodes or rounds, a wrong order, nobody left."""
    for i, event in enumerate(events):
        where = f"churn[{i}]"
        if event.event not in EVENTS:
            raise ConfigError(f"{where}.event={event.event!r}: {nearest(event.event, EVENTS)}")
        if not 0 <= event.node < nodes:
            raise ConfigError(f"{where}.node={event.node}: there are nodes 0 to {nodes - 1}")
        if not 1 <= event.round <= rounds:
            raise ConfigError(f"{where}.round={event.round}: must be within 1 to rounds={rounds}")
    for node in sorted({event.node for event in events}):
        gone, last = False, 0
        for event in sorted((e for e in events if e.node == node), key=lambda e: e.round):
            if event.round == last:
                raise ConfigError(f"churn: node {node} has two events at round {event.round}; one round holds one")
            if (event.event == "rejoin") != gone:
                state = "is still there" if event.event == "rejoin" else "is already gone"
                raise ConfigError(f"churn: node {node} can't {event.event} at round {event.round}: it {state}")
            gone, last = event.event != "rejoin", event.round
    empty = np.flatnonzero(~active(events, nodes, rounds).any(axis=1))
    if empty.size:
        raise ConfigError(f"churn: nobody is there in round {empty[0] + 1}; leave at least one node")


def active(events: Sequence[Event], nodes: int, rounds: int) -> np.ndarray:
    """[rounds, nodes] bool: who takes part in round r (row r - 1)."""
    present = np.ones((rounds, nodes), bool)
    for event in sorted(events, key=lambda e: e.round):
        present[event.round - 1 :, event.node] = event.event == "rejoin"
    return present


def planned(events: Sequence[Event], schedule: Schedule, rounds: int, local_steps: int) -> Delivery:
    """The delivery of a run with the planned events alone: an exchange is booked when both ends are there."""
    period, nodes, slots = schedule.neighbor.shape
    there = active(events, nodes, rounds)
    neighbor = schedule.neighbor[np.arange(rounds) % period]
    other = (
        np.take_along_axis(there[:, None, :].repeat(nodes, axis=1), np.maximum(neighbor, 0), axis=2) if slots else None
    )
    arrived = np.zeros((rounds, nodes, slots), bool) if other is None else other & there[:, :, None] & (neighbor >= 0)
    steps = np.where(there, local_steps, 0).astype(np.int32)
    return Delivery(there, steps, arrived, np.zeros((rounds, nodes, slots), np.int32))
