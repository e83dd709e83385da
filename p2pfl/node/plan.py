"""The plan that a node's task gives its `Peer`: its facts, and the schedule of every epoch, round by round."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from p2pfl.node.task import Task
from p2pfl.node.worker import Worker
from p2pfl.protocol import agreement
from p2pfl.protocol.neighbor import WAIT, EpochPlan, Facts, RoundPlan
from p2pfl.protocol.timing import Timing, starting


class Terms(NamedTuple):
    """The terms that the nodes of a federation have agreed on, besides their tasks."""

    nodes: int
    expected: Sequence[int]  # members that a start waits for
    federation: str  # digest of what all have in common
    timing: Timing
    lateness: int
    sync: str
    alone: str = WAIT  # what a node does that has lost more than half of those that should be there
    there: Callable[[int], frozenset[int]] | None = None  # nodes that should be there in a round; None: all, always
    fields: Mapping[str, str] = MappingProxyType({})  # what all have in common, in words


def facts(
    task: Task,
    work: Worker,
    terms: Terms,
    life: int,
    join_round: int,
    compiled: float = 0.0,
    together: bool = False,
) -> Facts:
    """Return the facts that a life of a node knows from the start; `join_round` and `together` as in `Facts`.

    `compiled`: seconds that this node has taken to compile.
    """
    payload = work.payloads.schema
    description = describe(task, work)
    return Facts(
        node=task.node,
        life=life,
        nodes=terms.nodes,
        expected=tuple(terms.expected),
        plan=plan(task),
        rounds=task.rounds,
        federation=terms.federation,
        schema=agreement.digest(agreement.pack(description)),
        payload_bytes=sum(payload.nbytes),
        timing=starting(terms.timing, terms.nodes, compiled),
        lateness=terms.lateness,
        per_edge=task.per_edge or task.fit is not None or task.sums is not None,
        exchanges=task.link == "exchange",
        sync=terms.sync,
        join_round=join_round,
        kept_round=work.kept[1] if work.kept else 0,
        together=together,
        alone=terms.alone,
        there=terms.there,
        description=description,
        compare=lambda theirs: differences(theirs, description, task.compare),
    )


def describe(task: Task, work: Worker) -> str:
    """What a node tells of itself where another runs something else: what its rows mean, and the leaves it sends."""
    leaves = {f"model {name}": f"{dtype} {[*shape]}" for name, dtype, shape in work.models.leaves}
    if work.payloads.leaves != work.models.leaves:
        leaves |= {f"payload {name}": f"{dtype} {[*shape]}" for name, dtype, shape in work.payloads.leaves}
    return f"{task.meaning}\n{json.dumps(leaves, separators=(',', ':'))}"


def differences(theirs: str, ours: str, compare: Callable[[str], Sequence[str]]) -> list[str]:
    """What differs in another's description, in words; ValueError for none. `compare`: of what the rows mean."""
    (their_rows, _, their_leaves), (rows, _, leaves) = theirs.partition("\n"), ours.partition("\n")
    lines = list(compare(their_rows)) if their_rows != rows else []
    there, here = json.loads(their_leaves), json.loads(leaves)
    if not isinstance(there, dict):
        raise ValueError("no leaves")
    for name in dict.fromkeys((*here, *there)):
        one, other = there.get(name, "nothing"), here.get(name, "nothing")
        if one != other:
            lines.append(f"{str(name)[:80]}: {str(one)[:40]} there, {other} here")
    return lines


def plan(task: Task) -> Callable[[tuple[int, ...]], EpochPlan]:
    """The plan of each epoch, by its members."""

    def of(members: tuple[int, ...]) -> EpochPlan:
        there = task.at(members)
        return EpochPlan(round_plans(there), there.slots, there.neighbors, len(there.schedule.neighbor) == 1)

    return of


def round_plans(task: Task) -> Callable[[int], RoundPlan]:
    """Return the plan of each round, with what the experiment's network loses taken out.

    Both ends of an edge find the same, so that an exchange of which either message is lost is opened by neither.
    """
    me, schedule, lost = task.node, task.schedule, task.lost

    @lru_cache(maxsize=256)
    def planned(round: int) -> RoundPlan:
        if task.link == "none":
            return RoundPlan()
        receives_from, sends_to = schedule.receives_from(round), schedule.sends_to(round)
        into = {j for j in receives_from if lost(round, j, me)}
        out = {j for j in sends_to if lost(round, me, j)}
        if task.link == "exchange":
            void = {j for j in receives_from if j in into or lost(round, me, j)}
            return RoundPlan(exchange=tuple(j for j in receives_from if j not in void), void=tuple(sorted(void)))
        return RoundPlan(
            receives_from=tuple(j for j in receives_from if j not in into),
            sends_to=tuple(j for j in sends_to if j not in out),
            lost=tuple(sorted(out)),
        )

    return planned
