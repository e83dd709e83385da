"""The verdict on a run: is it whole, and if not, why; as an exit code and as lines for a person."""

from __future__ import annotations

import signal
from typing import NamedTuple

from p2pfl.errors import Exit
from p2pfl.reporting.run_data import Summary


class RunVerdict(NamedTuple):
    """How a run has ended."""

    code: Exit
    reasons: tuple[str, ...]  # why it is not whole, each a line for a person; none where it is


def verdict(summary: Summary) -> RunVerdict:
    """Judge a run by its summary, whoever made it.

    A run is whole when somebody ended in good order, nobody was lost but whom the experiment had planned to lose, and
    nothing else is in `summary.incomplete`, where a driver says what it alone knows. A signal is told before all else.
    """
    reasons = [*summary.incomplete]
    stopped_by = summary.stopped_by or ("SIGINT" if summary.interrupted else "")
    if stopped_by:
        reasons.append(f"ended by {stopped_by}")
    if summary.nodes is not None and 0 < summary.nodes <= len(summary.lost):
        reasons.append("no node ended in good order")
    reasons += [f"node {node} {how}" for node, how in summary.lost_unplanned.items()]
    ended = Exit.NOT_WHOLE if reasons else Exit.DONE
    code = Exit(128 + signal.Signals[stopped_by]) if stopped_by else ended
    return RunVerdict(code, tuple(dict.fromkeys(reasons)))
