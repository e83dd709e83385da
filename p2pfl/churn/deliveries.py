"""Draw over a schedule what is booked in which round: planned events, losses and lateness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from p2pfl import random_bits
from p2pfl.churn.events import Event
from p2pfl.churn.timeline import cut, losses, timeline
from p2pfl.types import Delivery, Schedule


def lost(probability: Any, seed: int, round: Any, sender: Any, receiver: Any) -> np.ndarray:
    """Draw which messages the network loses; the same arguments give the same draw.

    Args:
        probability: 0 to 1, of each message.
        seed: of the draw.
        round: 1, 2, ...
        sender: its id.
        receiver: its id.

    Returns:
        bool of the shape that the arguments broadcast to.

    Example:
        >>> import numpy as np
        >>> from p2pfl import churn
        >>> churn.lost(1.0, 0, 1, np.array([0, 1]), 2).tolist()
        [True, True]
    """
    if not np.any(probability):
        return np.zeros(np.broadcast_shapes(np.shape(round), np.shape(sender), np.shape(receiver)), bool)
    return random_bits.uniform(random_bits.LOSS, seed, round, sender, receiver) < probability


def losing(events: Sequence[Event], probability: float, seed: int) -> Callable[[int, int, int], bool]:
    """Tell which messages the network or an event takes away.

    Args:
        events: in any order; a round's take effect when it begins.
        probability: on every link, 0 to 1.
        seed: of the draws.

    Returns:
        (round, sender, receiver) -> whether the message is lost or cut.

    Example:
        >>> from p2pfl import churn
        >>> churn.losing([], 0.0, seed=0)(1, 0, 2)
        False
    """
    kept_back, on_links = cut(events), losses(events)

    def loses(round: int, sender: int, receiver: int) -> bool:
        whole = 1 - (1 - probability) * (1 - float(on_links(round, sender, receiver)))
        return kept_back(round, sender, receiver) or bool(lost(whole, seed, round, sender, receiver))

    return loses


class Conditions(NamedTuple):
    """The network of a study: what it loses, how late it is, and what nodes make of it.

    `rule`: "double_entry" (an exchange of which either message is lost is void at both ends), or one of the wrong ones,
    "self" and "renormalise": each end mixes what it got. `late`: each end of an exchange books it up to so many rounds
    late, at random; an edge has one open exchange at a time, and one that would be later than `lateness` at either end
    is void at both. `detection`: rounds after which a crash or a partition is known. `waits`: a node that has lost more
    than half of those that should be there takes no part.
    """

    loss: float = 0.0
    rule: str = "double_entry"
    late: int = 0
    lateness: int = 0
    link: str = "exchange"
    seed: int = 0
    detection: int = 1
    waits: bool = False


class Deliveries:
    """Draws what happens, stretch by stretch: planned events, losses, lateness. The same for every cut into stretches.

    `steps` [n]: local steps of each node in a round in which it trains. `rows` [rounds]: the row of the schedule that a
    round uses; unless given, they follow each other. `epoch` [rounds, n]: the epoch that a node is in; no exchange that
    is open outlives its own.
    """

    def __init__(
        self,
        events: Sequence[Event],
        schedule: Schedule,
        rounds: int,
        steps: np.ndarray,
        conditions: Conditions = Conditions(),  # noqa: B008 (a constant)
        rows: np.ndarray | None = None,
        epoch: np.ndarray | None = None,
    ) -> None:
        self._schedule, self._steps, self._conditions = schedule, np.asarray(steps, np.int32), conditions
        self._nodes, self._slots = schedule.neighbor.shape[1:]
        self._rows = np.arange(rounds) % len(schedule.neighbor) if rows is None else rows
        course = timeline(events, self._nodes, rounds, conditions.detection, conditions.waits)
        gap = ((0, conditions.late), (0, 0))
        self._active = np.pad(course.active, gap)  # nothing is opened that would not be booked by the end
        self._epoch = None if epoch is None else np.pad(epoch, gap)
        self._side = course.side if course.side.any() else None
        self._losses = losses(events) if any(event.event == "link_loss" for event in events) else None
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
        t = self._rows[r - 1]
        there, neighbor = self._active[r - 1], self._schedule.neighbor[t]
        me, other = np.arange(self._nodes)[:, None], np.maximum(neighbor, 0)
        arrived = (neighbor >= 0) & (self._schedule.weight[t] > 0) & there[:, None] & there[other]
        if self._side is not None:
            side = self._side[r - 1]
            arrived &= side[:, None] == side[other]
        probability: Any = given.loss
        if self._losses is not None:
            probability = 1 - (1 - given.loss) * (1 - self._losses(r, other, me))
        if np.any(probability):
            gone = lost(probability, given.seed, r, other, me)
            if given.link == "exchange" and given.rule == "double_entry":
                gone = gone | lost(probability, given.seed, r, me, other)
            arrived &= ~gone
        age = np.zeros((self._nodes, self._slots), np.int32)
        if given.late:
            arrived, age = self._delayed(r, arrived, me, other)
        steps = np.where(there & self._schedule.trains[t], self._steps, 0).astype(np.int32)
        return there, steps, arrived, age

    def _delayed(self, r: int, opens: np.ndarray, me: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        given = self._conditions
        mine, theirs = (
            np.floor(random_bits.uniform(random_bits.LATE, given.seed, r, *pair) * (given.late + 1)).astype(np.int64)
            for pair in ((me, other), (other, me))
        )
        latest = np.maximum(mine, theirs)
        stays = np.ones((self._nodes, self._slots), bool)
        for extra in range(1, given.late + 1):
            whole = self._active[r - 1 + extra]
            if self._epoch is not None:
                whole = whole & (self._epoch[r - 1 + extra] == self._epoch[r - 1])
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
