"""The verdict on a run: is it whole, and if not, why; as an exit code and as lines for a person."""

from __future__ import annotations

import signal
from typing import NamedTuple

from p2pfl.errors import Exit
from p2pfl.federation.federation import Federation
from p2pfl.reporting.run_data import Summary

LISTED = 8
"""Nodes that have diverged up to which all are named."""
SKIPPED = 0.01
"""Share of all nodes' rounds that may be skipped in a run that is whole: a moment's pause of a node costs a few."""

CHANCE = 20
"""Exchanges that should have come about, where messages are lost, for their lack to be no chance."""


class RunVerdict(NamedTuple):
    """How a run has ended."""

    code: Exit
    reasons: tuple[str, ...]  # why it is not whole, each a line for a person; none where it is


def verdict(summary: Summary) -> RunVerdict:
    """Judge a run by its summary, whoever made it.

    A run is whole when somebody ended in good order, nobody was lost but whom the experiment had planned to lose,
    nobody ended without half of the others, at most SKIPPED of the rounds were skipped, no node has diverged, and
    nothing else is in `summary.incomplete`, where a driver says what it alone knows. A signal is told before all else.
    """
    reasons = [*summary.incomplete]
    stopped_by = summary.stopped_by or ("SIGINT" if summary.interrupted else "")
    if stopped_by:
        reasons.append(f"ended by {stopped_by}")
    if summary.nodes is not None and 0 < summary.nodes <= len(summary.lost):
        reasons.append("no node ended in good order")
    reasons += [f"node {node} {how}" for node, how in summary.lost_unplanned.items()]
    if summary.skipped_share > SKIPPED:
        told = ", ".join(f"node {node} {rounds}" for node, rounds in summary.rounds_skipped.items())
        reasons.append(f"{100 * summary.skipped_share:.1f} % of the nodes' rounds were skipped: {told}")
    ended_alone = {node: rounds for node, rounds in summary.rounds_alone.items() if int(node) in summary.left}
    reasons += [
        f"node {node} ended without half of the others, after {n} rounds alone" for node, n in ended_alone.items()
    ]
    reasons += diverged(summary)
    ended = Exit.NOT_WHOLE if reasons else Exit.DONE
    code = Exit(128 + signal.Signals[stopped_by]) if stopped_by else ended
    return RunVerdict(code, tuple(dict.fromkeys(reasons)))


def apart(federation: Federation, summary: Summary) -> tuple[str, ...]:
    """Say that nobody has exchanged anything, where the experiment would have had it: its nodes trained alone, each."""
    rounds, rows = federation.experiment.rounds, federation.schedule.neighbor[: federation.experiment.rounds]
    network = federation.experiment.network
    through = (1 - network.loss) * (1 - network.late)
    expected = (rows >= 0).sum() * rounds / len(rows) * through**2
    meant = federation.algorithm.link == "none" or expected < (1 if through == 1 else CHANCE)
    if meant or summary.interrupted or summary.exchanges_booked or summary.exchanges_booked is None:
        return ()
    return ("nobody has exchanged anything: each node trained alone",)


def diverged(summary: Summary) -> list[str]:
    """Say which nodes have diverged, the first one first: it may have taken the others along."""
    since = sorted((round, int(node)) for node, round in summary.diverged.items())
    if not since:
        return []
    by_round: dict[int, list[str]] = {}
    for round, node in since[:LISTED]:
        by_round.setdefault(round, []).append(str(node))
    told = "; ".join(f"node {', '.join(nodes)} from round {round} on" for round, nodes in by_round.items())
    more = f", and {len(since) - LISTED} more" if len(since) > LISTED else ""
    return [
        f"training has diverged: {told}{more}. The loss is not finite, or above that of an untrained model; lower the "
        f"learning rate, or look at the rows of node {since[0][1]}"
    ]
