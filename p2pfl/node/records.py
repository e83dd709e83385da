"""Records of a run: metrics, trace and events, a line each, whole lines at once, nothing held back."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from p2pfl import tree

FORMAT = 2
"""Of the records of a run. In format 1 `life` in metrics.jsonl counts the lives of a node (1, 2, ...); from 2 on it is
the name of a life, here as in every other file. A result.json or summary.json that says no format is of format 1."""


class Measured(NamedTuple):
    """A record of metrics.jsonl: one node in one round. Scores are None in rounds that are not evaluated.

    In the file `score_` is the name of what the task is scored by, as in accuracy_own: see `Lines`.
    """

    node: int
    life: int  # the name of this life that the neighbours know; greater with each
    round: int
    train_loss: float  # mean over the local steps; null in the file where it is not finite
    score_before_mixing: float | None  # on the pooled test rows
    score_after_mixing: float | None
    score_own: float | None  # after mixing, on the node's own test rows
    arrived: list[int]  # neighbours whose exchanges were booked
    age: list[int]  # ... rounds since each was opened
    bytes_sent: int
    bytes_received: int
    seconds: float  # from the end of the round before to the end of this one
    waited: float  # of these, for neighbours
    time: float  # the node's own monotonic clock, seconds


class Traced(NamedTuple):
    """A record of trace.jsonl: what a round did, enough to compute it again. Arrays are `pack`ed, [tree.SKETCH]."""

    life: int
    round: int
    booked: list[list[int]]  # [neighbour, its life, number of the exchange, round it was opened in here, there]
    spoke: list[int]  # of an algorithm that pushes: neighbours that got a share in this round
    exchanged: dict[str, str] | None  # "neighbour:life" -> how far the exchanges with it should have moved the model so
    # far. None: not written in this round, see `sketched`; the record has no such field
    model: str | None  # the model after mixing, likewise
    trained: bool = True  # in this round; else it only mixed what came late, or more than one mixing could hold


class Sketches(NamedTuple):
    """A record of trace.jsonl: the sketches of `Traced` after a round, where its own record has none and they count."""

    life: int
    round: int
    exchanged: dict[str, str]
    model: str


class Began(NamedTuple):
    """A record of trace.jsonl: an algorithm that pushes is about to train in a round, and what it will send depends on
    who is there. Whoever gets that may go on with it, even if this life ends before it records the round itself."""

    life: int
    round: int
    began: list[int]  # neighbours that get a share; what Traced then calls `spoke`


class Adopted(NamedTuple):
    """A record of trace.jsonl: a life that began with a neighbour's model, from after its local steps in `theirs`."""

    life: int
    round: int  # the first it trains in
    adopted: list[int]  # [neighbour, its life, round]


class Entered(NamedTuple):
    """A record of trace.jsonl: before it trains in this round, the life enters the epoch of these members."""

    life: int
    round: int
    members: list[int]


class Kept(NamedTuple):
    """A record of trace.jsonl: a life that goes on with the state that an earlier one of the node had after a round."""

    life: int
    round: int  # the first it can train in
    kept: list[int]  # [the earlier life, the round]


Trace = Traced | Sketches | Began | Adopted | Entered | Kept


def sketched(round: int) -> bool:
    """Return whether the mixing of a round is written down with its sketches, nine tenths of a record: in the rounds
    up to 1000, in each tenth up to 10,000, in each hundredth after that. They are the same at all nodes.
    """
    return round <= 1000 or round % (10 if round <= 10_000 else 100) == 0


CAPS = {"trace.jsonl": 64 << 20, "events.jsonl": 16 << 20}
"""Bytes of a file at most, by its name; the rest is dropped. metrics.jsonl, from which sums are taken, has no bound."""


class Lines:
    """A file of JSON lines. A line is written by one call, so that a kill can't tear what came before it.

    What can't be written is dropped, and said once: a full disk costs records, not the training. `dropped` counts.
    """

    def __init__(self, path: Path, score: str = "accuracy", say: Callable[[str], None] = lambda text: None) -> None:
        """`score`: what fields `score_...` are called by in the file, a key of p2pfl.learning.targets."""
        self._path, self._score, self._say = path, score, say
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._size = os.fstat(self._file).st_size
        self._cap = CAPS.get(path.name)
        self.dropped = 0

    def write(self, record: Measured | Trace | dict[str, Any]) -> None:
        """Append one record, or drop it."""
        table = record if isinstance(record, dict) else record._asdict()
        fields = {
            f"{self._score}{k[5:]}" if k.startswith("score_") else k: value
            for k, value in table.items()
            if value is not None or k not in ("exchanged", "model")
        }
        text = (json.dumps(tree.plain(fields), separators=(",", ":")) + "\n").encode()
        if self._cap is not None and self._size + len(text) > self._cap:
            self._drop(f"has {self._cap >> 20} MB, which is its bound")
            return
        try:
            written = os.write(self._file, text)
            if written < len(text):  # the disk was full in the middle
                os.ftruncate(self._file, self._size)
        except OSError as error:
            self._drop(f"can't be written: {error.strerror}")
            return
        if written < len(text):
            self._drop("can't be written: no room for a whole record")
        else:
            self._size += written

    def _drop(self, why: str) -> None:
        self.dropped += 1
        if self.dropped == 1:
            lost = "; the run can't be replayed, and has no ledger" if self._path.name == "trace.jsonl" else ""
            self._say(f"{self._path} {why}: records are dropped from here on, and training goes on{lost}")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def event(
    name: str, about: int, by: int | None, round: int, detail: str, time: float, rounds: int = 0
) -> dict[str, Any]:
    """Make a record of events.jsonl. `by`: the node that says so; `rounds`: that it has cost, where it has."""
    table: dict[str, Any] = {"event": name, "node": about, "round": round, "detail": detail, "time": time}
    return table | ({} if by is None else {"by": by}) | ({"rounds": rounds} if rounds else {})


def read(path: Path) -> list[dict[str, Any]]:
    """Read the records of a file of JSON lines; a torn last line (a full disk, a crash of the machine) is left out."""
    if not path.exists():
        return []
    text = path.read_text("utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def pack(array: np.ndarray) -> str:
    """Write a float64 array as base64 text."""
    return base64.b64encode(np.asarray(array, "<f8").tobytes()).decode("ascii")


def unpack(text: str) -> np.ndarray:
    """Read the float64 array that `pack` wrote."""
    return np.frombuffer(base64.b64decode(text), "<f8")
