"""How a node's part in a run ended: result.json, written and read here alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

_FILE = "result.json"


class NodeResult(NamedTuple):
    """What result.json holds. A node that crashed and never came back leaves none."""

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

    def write(self, directory: Path) -> None:
        """Write result.json into the node's directory, whole or not at all."""
        partial = directory / "result.partial"
        partial.write_text(json.dumps(self._asdict(), indent=1), "utf-8")
        partial.rename(directory / _FILE)


def read(directory: Path) -> NodeResult | None:
    """Read the result of a node from its directory; None where it has not ended in good order."""
    path = directory / _FILE
    return NodeResult(**json.loads(path.read_text("utf-8"))) if path.exists() else None
