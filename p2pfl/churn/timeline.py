"""Events, round by round: who is there, who is known to be there, who can reach whom."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from p2pfl.churn.events import Event


class Timeline(NamedTuple):
    """Arrays [rounds, nodes]; row r - 1 is round r.

    `known` and `known_side` are what a perfect membership service would say that learns of a crash or a partition some
    rounds late, and of all else at once. Node i then takes those j for members for which known[j] holds and
    known_side[j] == known_side[i].
    """

    active: np.ndarray  # bool: takes part: trains, and may exchange
    present: np.ndarray  # bool: is there, even if it stands still
    known: np.ndarray  # bool: counts as a member
    side: np.ndarray  # int16: messages arrive between equal ones; 0: of the rest, or nothing is parted
    known_side: np.ndarray  # int16
    life: np.ndarray  # int32: 1, and one more for each time the node came back
    kept: np.ndarray  # bool: comes back in this round as it was
    fresh: np.ndarray  # bool: comes in this round with nothing but its data


def timeline(events: Sequence[Event], nodes: int, rounds: int, detection: int = 0, waits: bool = False) -> Timeline:
    """Return events round by round.

    Args:
        events: that `check` lets pass.
        nodes: their number n.
        rounds: of the run.
        detection: rounds after which a crash or partition is known, >= 0.
        waits: who is `alone` takes no part.

    Returns:
        Arrays [rounds, nodes]; row r - 1 is round r.

    Example:
        >>> from p2pfl import churn
        >>> events = [churn.Event("crash", node=1, round=2)]
        >>> churn.timeline(events, nodes=2, rounds=3).present.tolist()
        [[True, True], [True, False], [True, False]]
    """
    shape = (rounds, nodes)
    present, known, frozen = np.ones(shape, bool), np.ones(shape, bool), np.zeros(shape, bool)
    kept, fresh = np.zeros(shape, bool), np.zeros(shape, bool)
    life = np.ones(shape, np.int32)
    for event in sorted(events, key=lambda e: e.round):
        kind, i, r = event.event, event.node, event.round - 1
        if kind in ("crash", "leave"):
            present[r:, i] = False
            known[r + (detection if kind == "crash" else 0) :, i] = False
        elif kind == "join":
            present[:r, i] = known[:r, i] = False
            fresh[r, i] = True
        elif kind == "rejoin":
            present[r:, i] = known[r:, i] = True
            life[r:, i] += 1
            (kept if event.state == "kept" else fresh)[r, i] = True
        elif kind == "freeze":
            frozen[r : r + event.rounds, i] = True
    side, known_side = np.zeros(shape, np.int16), np.zeros(shape, np.int16)
    before = 0  # the last round of the partition before, where this one follows at once: it is believed in until then
    for start, end, groups in _partitions(events):
        row = np.zeros(nodes, np.int16)
        row[list(groups)] = list(groups.values())
        side[start - 1 : end] = row
        if detection and before == start - 1 > 0:
            known_side[start - 1 : end] = known_side[start - 2]
        known_side[start - 1 + detection : end] = row
        before = rounds if end is None else end
    when = Timeline(present & ~frozen, present, known, side, known_side, life, kept, fresh)
    return when._replace(active=when.active & ~alone(when)) if waits else when


def active(events: Sequence[Event], nodes: int, rounds: int) -> np.ndarray:
    """Tell who takes part in which round.

    Args:
        events: that `check` lets pass.
        nodes: their number n.
        rounds: of the run.

    Returns:
        [rounds, nodes] bool; row r - 1 is round r.

    Example:
        >>> from p2pfl import churn
        >>> events = [churn.Event("crash", node=1, round=2)]
        >>> churn.active(events, nodes=2, rounds=2).tolist()
        [[True, True], [True, False]]
    """
    return timeline(events, nodes, rounds).active


def expected(events: Sequence[Event], nodes: int) -> tuple[int, ...]:
    """Tell who is there from the start.

    Args:
        events: in any order; a round's take effect when it begins.
        nodes: their number n.

    Returns:
        Ids, ascending: all but those that join later.

    Example:
        >>> from p2pfl import churn
        >>> churn.expected([churn.Event("join", node=1, round=5)], nodes=3)
        (0, 2)
    """
    later = {event.node for event in events if event.event == "join"}
    return tuple(node for node in range(nodes) if node not in later)


def there(events: Sequence[Event], nodes: int) -> Callable[[int], frozenset[int]]:
    """Tell who should be there in a round, as planned: also who stands still, or is parted from others.

    Args:
        events: that `check` lets pass.
        nodes: their number n.

    Returns:
        round -> ids.

    Example:
        >>> from p2pfl import churn
        >>> sorted(churn.there([churn.Event("crash", node=1, round=2)], nodes=3)(2))
        [0, 2]
    """
    comes: dict[int, list[tuple[int, bool]]] = {event.node: [] for event in events if event.event in _COMING}
    for event in sorted(events, key=lambda e: e.round):
        if event.event in _COMING:
            comes[event.node].append((event.round, _COMING[event.event]))
    changes = sorted({round for turns in comes.values() for round, _ in turns})
    always = frozenset(range(nodes)) - comes.keys()

    @lru_cache(maxsize=8)
    def since(at: int) -> frozenset[int]:
        """After so many of the changes."""
        now = changes[at - 1] if at else 0
        back = []
        for node, turns in comes.items():
            past = [is_there for round, is_there in turns if round <= now]
            back += [node] if (past[-1] if past else not turns[0][1]) else []
        return always | frozenset(back)

    return lambda round: since(bisect_right(changes, round))


_COMING: Mapping[str, bool] = MappingProxyType({"join": True, "rejoin": True, "crash": False, "leave": False})
"""Events after which a node is there, or is not."""


def alone(when: Timeline) -> np.ndarray:
    """Tell who has lost more than half of those that should be there: only a partition can do that.

    Args:
        when: of `timeline`, with the rounds until a partition is known.

    Returns:
        bool, of the shape of its arrays.

    Example:
        >>> from p2pfl import churn
        >>> when = churn.timeline([churn.Event("partition", -1, 2, groups=((0,),))], nodes=3, rounds=2)
        >>> churn.alone(when).tolist()
        [[False, False, False], [True, False, False]]
    """
    if not when.known_side.any():
        return np.zeros(when.known.shape, bool)
    beside = np.zeros(when.known.shape, np.int64)
    for side in np.unique(when.known_side):
        here = when.known_side == side
        beside = np.where(here, (when.known & here).sum(axis=1, keepdims=True), beside)
    lost = 2 * beside < when.present.sum(axis=1, keepdims=True)
    return np.asarray(lost & when.present)


def _partitions(events: Sequence[Event]) -> list[tuple[int, int | None, dict[int, int]]]:
    """(first round, last one or None, node -> 1, 2, ... of its group) of each partition, in their order."""
    turns = sorted((e for e in events if e.event in ("partition", "heal")), key=lambda e: e.round)
    ends = [*(event.round - 1 for event in turns[1:]), None]
    return [
        (event.round, end, {node: number for number, group in enumerate(event.groups, 1) for node in group})
        for event, end in zip(turns, ends, strict=False)
        if event.event == "partition"
    ]


def cut(events: Sequence[Event]) -> Callable[[int, int, int], bool]:
    """Tell which messages partitions keep back.

    Args:
        events: in any order; a round's take effect when it begins.

    Returns:
        (round, sender, receiver) -> whether a partition keeps the message back.

    Example:
        >>> from p2pfl import churn
        >>> keeps_back = churn.cut([churn.Event("partition", -1, 3, groups=((0, 1),))])
        >>> keeps_back(3, 0, 2), keeps_back(3, 0, 1), keeps_back(2, 0, 2)
        (True, False, False)
    """
    parts = _partitions(events)
    starts = [start for start, _, _ in parts]

    def kept_back(round: int, sender: int, receiver: int) -> bool:
        at = bisect_right(starts, round) - 1
        if at < 0:
            return False
        _, end, groups = parts[at]
        return (end is None or round <= end) and groups.get(sender, 0) != groups.get(receiver, 0)

    return kept_back


def losses(events: Sequence[Event]) -> Callable[[Any, Any, Any], Any]:
    """Tell with which probability "link_loss" loses a message.

    Args:
        events: in any order; a round's take effect when it begins.

    Returns:
        (round, sender, receiver) -> probability; the arguments may be arrays.

    Example:
        >>> from p2pfl import churn
        >>> probability = churn.losses([churn.Event("link_loss", -1, 1, rounds=2, nodes=(0,), loss=0.5)])
        >>> float(probability(1, 0, 2)), float(probability(3, 0, 2))
        (0.5, 0.0)
    """
    told = [event for event in events if event.event == "link_loss"]

    def probability(round: Any, sender: Any, receiver: Any) -> Any:
        arrives = np.ones(np.broadcast_shapes(np.shape(round), np.shape(sender), np.shape(receiver)))
        low, high = np.minimum(sender, receiver), np.maximum(sender, receiver)
        for event in told:
            on = np.zeros(arrives.shape, bool)
            if event.nodes:
                on |= np.isin(sender, event.nodes) | np.isin(receiver, event.nodes)
            for a, b in event.links:
                on |= (low == min(a, b)) & (high == max(a, b))
            on &= (np.asarray(round) >= event.round) & (np.asarray(round) < event.round + event.rounds)
            arrives = np.where(on, arrives * (1 - event.loss), arrives)
        return 1 - arrives

    return probability


def lags(events: Sequence[Event]) -> Callable[[int, int], float]:
    """Tell by how much the messages are late that a node sends in a round.

    Args:
        events: in any order; a round's take effect when it begins.

    Returns:
        (round, node) -> seconds.

    Example:
        >>> from p2pfl import churn
        >>> seconds = churn.lags([churn.Event("lag", 0, 2, rounds=1, seconds=0.3)])
        >>> seconds(1, 0), seconds(2, 0)
        (0, 0.3)
    """
    told = [event for event in events if event.event == "lag"]

    def seconds(round: int, node: int) -> float:
        return sum(e.seconds for e in told if e.node == node and e.round <= round < e.round + e.rounds)

    return seconds
