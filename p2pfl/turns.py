"""What a node's schedule means for its `Peer`: in every epoch, round by round."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from p2pfl.protocol.neighbour import Plan, Turn
from p2pfl.task import Task


def plan(task: Task) -> Callable[[tuple[int, ...]], Plan]:
    """The plan of each epoch, by its members."""

    def of(members: tuple[int, ...]) -> Plan:
        there = task.at(members)
        return Plan(turns(there), there.slots, there.neighbors)

    return of


def turns(task: Task) -> Callable[[int], Turn]:
    """The turn of each round, with what the experiment's network loses taken out.

    Both ends of an edge find the same, so that an exchange of which either message is lost is opened by neither.
    """
    me, around, lost = task.node, task.around, task.lost

    @lru_cache(maxsize=256)
    def turn(round: int) -> Turn:
        if task.link == "none":
            return Turn()
        hears, speaks = around.hears(round), around.speaks(round)
        into = {j for j in hears if lost(round, j, me)}
        out = {j for j in speaks if lost(round, me, j)}
        if task.link == "exchange":
            void = {j for j in hears if j in into or lost(round, me, j)}
            return Turn(exchange=tuple(j for j in hears if j not in void), void=tuple(sorted(void)))
        return Turn(
            hears=tuple(j for j in hears if j not in into),
            speaks=tuple(j for j in speaks if j not in out),
            lost=tuple(sorted(out)),
        )

    return turn
