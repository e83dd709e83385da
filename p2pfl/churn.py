"""Planned churn: who is there in which round.

An event stands for the beginning of its round: a node that crashes at round 20 has finished round 19 and dies before it
trains in round 20; one that rejoins at round 40 takes the model that a neighbour has after training in round 39, and
takes part from round 40 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from p2pfl import draws
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


def lost(probability: float, seed: int, round: Any, sender: Any, receiver: Any) -> np.ndarray:
    """bool of the shape the arguments broadcast to: the network loses this message."""
    if not probability:
        return np.zeros(np.broadcast_shapes(np.shape(round), np.shape(sender), np.shape(receiver)), bool)
    return draws.uniform(draws.LOSS, seed, round, sender, receiver) < probability


class Conditions(NamedTuple):
    """The network of a study: what it loses, how late it is, and what nodes make of it.

    `rule`: "double_entry" (an exchange of which either message is lost is void at both ends), or one of the wrong ones,
    "self" and "renormalise": each end mixes what it got. `late`: each end of an exchange books it up to so many rounds
    late, at random; an edge has one open exchange at a time, and one that would be later than `lateness` at either end
    is void at both.
    """

    loss: float = 0.0
    rule: str = "double_entry"
    late: int = 0
    lateness: int = 0
    link: str = "exchange"
    seed: int = 0


class Deliveries:
    """Draws what happens, stretch by stretch: planned events, losses, lateness. The same for every cut into stretches.

    `steps` [n]: local steps of each node in a round in which it trains.
    """

    def __init__(
        self,
        events: Sequence[Event],
        schedule: Schedule,
        rounds: int,
        steps: np.ndarray,
        conditions: Conditions = Conditions(),  # noqa: B008 (a constant)
    ) -> None:
        self._schedule, self._steps, self._conditions = schedule, np.asarray(steps, np.int32), conditions
        self._nodes, self._slots = schedule.neighbor.shape[1:]
        self._active = active(events, self._nodes, rounds + conditions.late)
        self._active[rounds:] = False  # nothing is opened that would not be booked by the end
        self._round = 0
        self._free = np.zeros((self._nodes, self._slots), np.int64)  # from which round on a slot may open an exchange
        self._due: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}  # round -> (node, slot, age)

    def take(self, rounds: int) -> Delivery:
        """The next so many rounds."""
        parts = [self._next() for _ in range(rounds)]
        shape = (0, self._nodes, self._slots)
        if not parts:
            none = np.zeros((0, self._nodes))
            return Delivery(none.astype(bool), none.astype(np.int32), np.zeros(shape, bool), np.zeros(shape, np.int32))
        return Delivery(*(np.stack(part) for part in zip(*parts, strict=True)))

    def _next(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        self._round += 1
        r, given = self._round, self._conditions
        t = (r - 1) % len(self._schedule.neighbor)
        there, neighbor = self._active[r - 1], self._schedule.neighbor[t]
        me, other = np.arange(self._nodes)[:, None], np.maximum(neighbor, 0)
        arrived = (neighbor >= 0) & (self._schedule.weight[t] > 0) & there[:, None] & there[other]
        if given.loss:
            gone = lost(given.loss, given.seed, r, other, me)
            if given.link == "exchange" and given.rule == "double_entry":
                gone = gone | lost(given.loss, given.seed, r, me, other)
            arrived &= ~gone
        age = np.zeros((self._nodes, self._slots), np.int32)
        if given.late:
            arrived, age = self._delayed(r, arrived, me, other)
        steps = np.where(there & self._schedule.trains[t], self._steps, 0).astype(np.int32)
        return there, steps, arrived, age

    def _delayed(self, r: int, opens: np.ndarray, me: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        given = self._conditions
        mine, theirs = (
            np.floor(draws.uniform(draws.LATE, given.seed, r, *pair) * (given.late + 1)).astype(np.int64)
            for pair in ((me, other), (other, me))
        )
        latest = np.maximum(mine, theirs)
        stays = np.ones((self._nodes, self._slots), bool)
        for extra in range(1, given.late + 1):
            whole = self._active[r - 1 + extra]
            stays &= (latest < extra) | (whole[:, None] & whole[other])
        opens = opens & (self._free <= r) & (latest <= given.lateness) & stays
        self._free = np.where(opens, r + latest + 1, self._free)
        for later in range(given.late + 1):
            node, slot = np.nonzero(opens & (mine == later))
            self._due.setdefault(r + later, []).append((node, slot, np.full(len(node), later, np.int32)))
        arrived, age = np.zeros(opens.shape, bool), np.zeros(opens.shape, np.int32)
        for node, slot, a in self._due.pop(r):
            arrived[node, slot], age[node, slot] = True, a
        return arrived, age
