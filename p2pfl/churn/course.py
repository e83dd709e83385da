"""The epochs of a simulated run: who is a member of what in which round, and the graph of that.

Membership is perfect, but for a delay: a crash or a partition is known some rounds late, all else at once. A node's
epoch is the members that it can reach, with their lives; whenever it changes, the node re-plans its graph and restarts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from p2pfl.churn import Event, Timeline, timeline
from p2pfl.errors import ConfigError
from p2pfl.types import Schedule

Plan = Callable[[Sequence[int]], tuple[Schedule, str]]
"""Of members, the schedule of their epoch, over the ids of all nodes, and what a person should know of it."""


class Course(NamedTuple):
    """The membership round by round; row r - 1 of an array is round r."""

    timeline: Timeline
    members: tuple[tuple[int, ...], ...]  # of each epoch
    epoch: np.ndarray  # [R, n] int32: into `members`; -1: the node is none
    enters: np.ndarray  # [R, n] bool: takes part in another epoch than the one it took part in last, or in its first
    donor: np.ndarray  # [R, n] int32: of a node that comes with nothing, whose model it takes; -1: nobody's
    schedule: Schedule  # the rows that rounds use, each put together from those of its epochs
    row: np.ndarray  # [R] int64: of the schedule
    turn: np.ndarray  # [R, n] int64: rounds with local steps up to this one, by the node's present epoch
    notes: tuple[str, ...]  # what a person should know of the epochs' graphs

    @property
    def epochs(self) -> int:
        """Of how many epochs one node was a part, at most."""
        return int(self.enters.sum(axis=0).max())


def course(
    events: Sequence[Event],
    nodes: int,
    rounds: int,
    detection: int,
    plan: Plan,
    steady: bool = False,
    waits: bool = False,
) -> Course:
    """The course of checked events. `steady`: every epoch's graph must stay the same. Raises ConfigError.

    `waits`: who has lost more than half of those that should be there takes no part.
    """
    when = timeline(events, nodes, rounds, detection, waits)
    members, epoch = epochs(when)
    last, enters = np.full(nodes, -1, np.int32), np.zeros((rounds, nodes), bool)
    for r in range(rounds):
        enters[r] = when.active[r] & (epoch[r] != last)
        last = np.where(when.active[r], epoch[r], last)
    made, notes = _EpochRows(when, members, epoch), list[str]()
    for ids in dict.fromkeys(members[e] for e in np.unique(epoch[epoch >= 0])):
        schedule, note = plan(ids)
        made.add(ids, schedule, steady)
        notes += [note] if note else []
    return Course(when, members, epoch, enters, made.donor, *made.together(), made.turn, tuple(dict.fromkeys(notes)))


def epochs(when: Timeline) -> tuple[tuple[tuple[int, ...], ...], np.ndarray]:
    """The members of all epochs, and [R, n] which epoch a node is in.

    No epoch comes twice: one that ends and has the same members later is another one, so that who stood still in
    between restarts with the others.
    """
    rounds, nodes = when.known.shape
    before, members = dict[tuple[bytes, bytes], int](), list[tuple[int, ...]]()
    epoch = np.full((rounds, nodes), -1, np.int32)
    parts = (when.known, when.known_side, when.life)
    for r in range(rounds):
        if r and all(np.array_equal(part[r], part[r - 1]) for part in parts):
            epoch[r] = epoch[r - 1]
            continue
        now = dict[tuple[bytes, bytes], int]()
        for side in np.unique(when.known_side[r, when.known[r]]):
            ids = np.flatnonzero(when.known[r] & (when.known_side[r] == side))
            key = ids.tobytes(), when.life[r, ids].tobytes()
            now[key] = before.get(key, len(members))
            if key not in before:
                members.append(tuple(ids.tolist()))
            epoch[r, ids] = now[key]
        before = now
    return tuple(members), epoch


class _EpochRows:
    """Gathers the rows of all epochs, one set of members after the other."""

    def __init__(self, when: Timeline, members: Sequence[tuple[int, ...]], epoch: np.ndarray) -> None:
        self._when, self._shape = when, epoch.shape
        self._rounds: dict[tuple[int, ...], list[int]] = {}  # in which these are the members of an epoch
        for r, row in enumerate(epoch):
            for e in np.unique(row[row >= 0]):
                self._rounds.setdefault(members[e], []).append(r)
        self._parts: list[list[tuple[int, int]]] = [[] for _ in range(epoch.shape[0])]  # round -> [(set, its row)]
        self._rows: dict[
            tuple[int, int], tuple[np.ndarray, Schedule]
        ] = {}  # (set, row) -> (ids, their part of the row)
        self._many = 0
        self.turn = np.zeros(epoch.shape, np.int64)
        self.donor = np.full(epoch.shape, -1, np.int32)

    def add(self, members: tuple[int, ...], schedule: Schedule, steady: bool) -> None:
        """The schedule of these members."""
        period, ids, rounds = len(schedule.neighbor), np.asarray(members), np.asarray(self._rounds[members])
        if steady and period > 1:
            raise ConfigError(
                f"network.late: the graph of the {len(ids)} members that are left changes from round to round; leave "
                "late out, or choose another graph"
            )
        trains = schedule.trains[:, ids]
        turns = np.cumsum(trains, axis=0)
        whole, t = np.divmod(rounds, period)
        self.turn[np.ix_(rounds, ids)] = whole[:, None] * turns[-1] + turns[t]
        for r, row in zip(rounds.tolist(), t.tolist(), strict=True):
            self._parts[r].append((self._many, row))
        for row in np.unique(t).tolist():
            self._rows[self._many, row] = ids, Schedule(*(part[row, ids] for part in schedule))
        self._many += 1
        for r in rounds.tolist():
            for i in ids[self._when.fresh[r, ids]].tolist():
                near = np.unique(schedule.neighbor[:, i])
                self.donor[r, i] = self._first(r, i, [*near[near >= 0].tolist(), *members])

    def _first(self, r: int, i: int, ids: Sequence[int]) -> int:
        """The first of them that took part in the round before, and can be reached. Nobody comes in round 1."""
        side = self._when.side[r]
        return next((j for j in ids if self._when.active[[r - 1, r], j].all() and side[i] == side[j]), -1)

    def together(self) -> tuple[Schedule, np.ndarray]:
        """The schedule of all rows that rounds use, and which of them each uses."""
        used: dict[tuple[tuple[int, int], ...], int] = {}
        row = np.array([used.setdefault(tuple(parts), len(used)) for parts in self._parts])
        slots = max((part.neighbor.shape[1] for _, part in self._rows.values()), default=0)
        shape = (len(used), self._shape[1])
        neighbor = np.full((*shape, slots), -1, np.int32)
        weight, out_weight = np.zeros((2, *shape, slots))
        trains = np.zeros(shape, bool)
        for parts, t in used.items():
            for key in parts:
                ids, part = self._rows[key]
                width = part.neighbor.shape[1]
                neighbor[t, ids, :width] = part.neighbor
                weight[t, ids, :width], out_weight[t, ids, :width] = part.weight, part.out_weight
                trains[t, ids] = part.trains
        return Schedule(neighbor, weight, out_weight, trains), row
