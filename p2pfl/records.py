"""What a run writes down: metrics, trace and events, a line each, whole lines at once, nothing held back."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Measured(NamedTuple):
    """A record of metrics.jsonl: one node in one round. Accuracies are None in rounds that are not evaluated."""

    node: int
    life: int  # 1, and one more for each time the node came back
    round: int
    train_loss: float  # mean over the local steps
    accuracy_before_mixing: float | None  # on the pooled test rows
    accuracy_after_mixing: float | None
    accuracy_own: float | None  # after mixing, on the node's own test rows
    arrived: list[int]  # neighbours whose exchanges were booked
    age: list[int]  # ... rounds since each was opened
    bytes_sent: int
    bytes_received: int
    seconds: float  # from the end of the round before to the end of this one
    waited: float  # of these, for neighbours
    time: float  # the node's own monotonic clock, seconds


class Traced(NamedTuple):
    """A record of trace.jsonl: what a round did to the node's ledger. Arrays are `pack`ed, [tree.SKETCH] each."""

    life: int  # the name of this life that the neighbours know
    round: int
    booked: list[list[int]]  # [neighbour, its life, number of the exchange, age]
    moved: str  # how far mixing has moved the model since the node's life began
    exchanged: dict[str, str]  # "neighbour:life" -> how far the exchanges with it should have moved the model
    model: str  # the model after mixing


class Lines:
    """A file of JSON lines. A line is written by one call, so that a kill can't tear what came before it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, record: Measured | Traced | dict[str, Any]) -> None:
        """Append one record."""
        fields = record if isinstance(record, dict) else record._asdict()
        os.write(self._file, (json.dumps(fields, separators=(",", ":")) + "\n").encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; a torn last line (a full disk, a crash of the machine) is left out."""
    if not path.exists():
        return []
    text = path.read_text("utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def pack(array: np.ndarray) -> str:
    """A float64 array as base64 text."""
    return base64.b64encode(np.asarray(array, "<f8").tobytes()).decode("ascii")


def unpack(text: str) -> np.ndarray:
    """The float64 array of `pack`."""
    return np.frombuffer(base64.b64decode(text), "<f8")
