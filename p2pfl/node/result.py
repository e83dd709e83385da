"""The result of a node: result.json, written and read here alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from p2pfl.errors import ConfigError
from p2pfl.node.records import FORMAT

_FILE = "result.json"


class NodeResult(NamedTuple):
    """The content of result.json. A node that crashed and never came back leaves none."""

    node: int
    life: int  # the name of its last life, as the neighbours know it
    round: int  # the last it took part in
    booked: int  # exchanges that it mixed; pushes that came in
    voided: int  # ends of exchanges that it gave up; 0 in the plain loop, where nothing is opened in vain
    dropped: dict[str, int]  # messages by reason; none in the plain loop, which sends none
    left: bool  # before the last round
    digest: str  # of its final model
    memory_peak: int | None = None  # bytes of main memory; None where nodes share a process
    error: str | None = None  # what it stopped for
    stopped_by: str | None = None  # the signal that asked it to leave
    alone: int = 0  # rounds that it trained without half of those that should have been there
    records_dropped: int = 0  # lines of its records that could not be written, or that were beyond a file's bound
    diverged: int | None = None  # the round from which on its training loss, or at the end its model, is not finite
    trace_whole: bool = True  # else the run can't be replayed, and has no ledger
    trained: int | None = None  # rounds that its last process has trained; None where that is not counted
    untrained: bool = False  # its model is as it was drawn: neither trained, nor kept, nor taken from another node
    unreached: tuple[str, ...] = ()  # of one that has exchanged nothing: where others were not reached, and why
    forwarded: dict[str, int] | None = None  # bytes that it has forwarded, sealed, by "FROM to TO"; None: none
    encrypted: bool = False  # links were sealed, and members proved their keys

    def write(self, directory: Path) -> None:
        """Write result.json into the node's directory, whole or not at all."""
        partial = directory / "result.partial"
        partial.write_text(json.dumps({"format": FORMAT, **self._asdict()}, indent=1), "utf-8")
        partial.rename(directory / _FILE)


def read(directory: Path) -> NodeResult | None:
    """Read the result of a node from its directory; None where it has not ended in good order.

    Raises ConfigError for a format that a later version has written.
    """
    path = directory / _FILE
    if not path.exists():
        return None
    table = json.loads(path.read_text("utf-8"))
    if (format := table.pop("format", 1)) > FORMAT:
        raise ConfigError(
            f"{path}: format={format}: this p2pfl reads formats 1 to {FORMAT}; use the version that made the run, or a "
            "later one"
        )
    # a plain loop of format 1 left some out
    return NodeResult(
        **{"round": 0, "booked": 0, **{name: table[name] for name in NodeResult._fields if name in table}}
    )
