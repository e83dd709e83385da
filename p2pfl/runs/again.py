"""Where the nodes of a live run go on that were all stopped: after which round, who with what, and what comes again."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from p2pfl.churn import Event, there
from p2pfl.errors import ConfigError
from p2pfl.federation.federation import Federation, identity
from p2pfl.node import records
from p2pfl.node.checkpoint import Store
from p2pfl.runs import origin

_ENDS = ("left", "removed", "detected", "crash")
"""Events that tell of a node's end."""


class Again(NamedTuple):
    """The nodes begin after a round; round 0: at the beginning."""

    round: int = 0
    there: frozenset[int] = frozenset()  # nodes that take part in the next round, as planned
    without: tuple[int, ...] = ()  # of these, who has kept nothing: it comes in a round later, with a neighbour's model
    late: Mapping[int, int] = MappingProxyType({})  # of these, whose state is from an earlier round
    reached: int = 0  # the last round that a node had recorded

    def events(self, churn: Sequence[Event]) -> list[Event]:
        """What is still to happen, as planned, and the returns of those who have kept nothing.

        They are called when somebody has finished a round: who met the others before that would begin with them, with a
        model as it was drawn.
        """
        back = [Event("rejoin", node, self.round + 3) for node in self.without]
        return [*(event for event in churn if event.round > self.round), *back]


def plan(federation: Federation, out: Path) -> Again:
    """Find out where the nodes of a run can go on. Raises ConfigError where too few have kept anything.

    After the last round from after which every node has a checkpoint, which all have written in the same rounds: then
    the state of the federation is one that it has been in. Where there is none, after the last one that any node has
    kept, each with its own.
    """
    nodes, rounds = len(federation.graph), federation.experiment.rounds
    places = {node: out / "nodes" / str(node) for node in range(nodes)}
    known = identity(federation)
    kept = {node: [table["round"] for table in Store(path, known).tables()] for node, path in places.items()}
    reached = max((row["round"] for path in places.values() for row in records.read(path / "metrics.jsonl")), default=0)
    planned = there(federation.churn, nodes)
    choices = sorted({round for each in kept.values() for round in each}, reverse=True)
    for round in choices:
        present = planned(min(round + 1, rounds))
        if all(round in kept[node] for node in present if kept[node]):
            break
    else:
        if not choices:
            return Again(0, planned(1), reached=reached)
        round = choices[0]
    present = planned(min(round + 1, rounds))
    without = tuple(sorted(node for node in present if not kept[node]))
    if 2 * len(without) > len(present):
        raise ConfigError(
            f"{out}: node {', '.join(map(str, without))} of {len(present)} have no checkpoint, and half of the nodes "
            "must have one to go on; put their directories back, or run the experiment anew with --out DIR"
        )
    late = {node: max(kept[node]) for node in sorted(present) if kept[node] and round not in kept[node]}
    return Again(round, present, without, late, reached)


def prepare(federation: Federation, out: Path, again: Again) -> str:
    """Let the records end where the nodes go on; returns what a person should know of it, "" of a first start."""
    known = identity(federation)
    for node in federation.graph:
        place = out / "nodes" / str(node)
        Store(place, known).rewind(again.round)
        records.cut(place / "metrics.jsonl", lambda row: row["round"] <= again.round)
        records.cut(place / "events.jsonl", lambda row: _stays(row, again))
        goes_on = node in again.there or any(event.node == node for event in again.events(federation.churn))
        names = ("result.json",) if again.round else ("result.json", "trace.jsonl")
        for name in names if goes_on else ():
            with contextlib.suppress(FileNotFoundError):
                (place / name).unlink()
    records.cut(out / "launch.jsonl", lambda row: _stays(row, again))
    more = [f"node {node} has no checkpoint and comes in with a neighbour's model" for node in again.without]
    more += [f"node {node} goes on with what it had after round {round}" for node, round in again.late.items()]
    start = origin.begins(out, again.round, again.reached, more)
    return "" if start is None else origin.note(start)


def _stays(row: Mapping[str, Any], again: Again) -> bool:
    """An event has come about before the nodes go on, and is none of the end of a node that goes on."""
    ends = row["round"] == again.round and row["event"] in _ENDS and row["node"] in again.there
    return row["round"] <= again.round and not ends
