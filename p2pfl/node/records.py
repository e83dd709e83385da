"""Records of a run: metrics, trace and events, a line each, whole lines at once, nothing held back."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from p2pfl import tree
from p2pfl.node.said import Said

FORMAT = 2
"""Of the records of a run. In format 1 `life` in metrics.jsonl counts the lives of a node (1, 2, ...); from 2 on it is
the name of a life, here as in every other file. A result.json or summary.json that says no format is of format 1."""


class Measured(NamedTuple):
    """A record of metrics.jsonl: one node in one round, or in several, see `recorded`: then bytes and seconds are those
    of all, what else there is that of the last. Scores are None in rounds that are not evaluated.

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
    rounds: int | None = None  # that the record stands for, this one and those just before it; None: this one alone,
    booked: int | None = None  # ... and else how many exchanges were booked in them. Neither field is in the file then
    takes_part: bool | None = None  # where a share of the nodes does in each round: the five steps of the process with
    steps: int | None = None  # `arrived`: whether the node is selected, its local steps,
    sends_to: list[int] | None = None  # neighbours that its model goes to,
    kept: float | None = None  # and the weight that its own model kept when all was mixed


class RoundSteps(NamedTuple):
    """The five steps of a node in a round: selection, local training, sending, mixing, what is kept."""

    takes_part: bool
    steps: int
    sends_to: list[int]
    mixed_with: list[int]
    kept: float

    def __str__(self) -> str:
        if not self.takes_part:
            return "not selected, keeps its model"
        return (
            f"selected, {self.steps} local steps, sent to {self.sends_to}, mixed with {self.mixed_with}, "
            f"kept its own by {self.kept:.3g}"
        )


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


def recorded(round: int) -> bool:
    """Return whether a round ends a record of metrics.jsonl: each up to 100,000, each hundredth up to 10 million, and
    each ten thousandth after that. The record has the sums of those that it stands for, so that none is lost.
    """
    return round <= 100_000 or round % (100 if round <= 10_000_000 else 10_000) == 0


def together(earlier: Measured, later: Measured) -> Measured:
    """Return one record of rounds that follow one another in a life."""
    return later._replace(
        train_loss=later.train_loss if math.isfinite(earlier.train_loss) else earlier.train_loss,
        score_before_mixing=_latest(later.score_before_mixing, earlier.score_before_mixing),
        score_after_mixing=_latest(later.score_after_mixing, earlier.score_after_mixing),
        score_own=_latest(later.score_own, earlier.score_own),
        bytes_sent=earlier.bytes_sent + later.bytes_sent,
        bytes_received=earlier.bytes_received + later.bytes_received,
        seconds=round(earlier.seconds + later.seconds, 6),
        waited=round(earlier.waited + later.waited, 6),
        rounds=(earlier.rounds or 1) + (later.rounds or 1),
        booked=_booked(earlier) + _booked(later),
    )


def _latest(later: float | None, earlier: float | None) -> float | None:
    return earlier if later is None else later


def _booked(record: Measured) -> int:
    return len(record.arrived) if record.booked is None else record.booked


def span(row: Mapping[str, Any]) -> int:
    """Return how many rounds a record of metrics.jsonl stands for."""
    return int(row.get("rounds", 1))


def exchanges(row: Mapping[str, Any]) -> int:
    """Return how many exchanges were booked in them."""
    return int(row["booked"]) if "booked" in row else len(row["arrived"])


CAPS = {"trace.jsonl": 64 << 20, "events.jsonl": 16 << 20}
"""Bytes of a file at most, by its name; the rest is dropped. metrics.jsonl grows ever slower instead: `recorded`."""

OPTIONAL = ("exchanged", "model", "rounds", "booked", "takes_part", "steps", "sends_to", "kept")
"""Fields that a record without them does not have."""


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
            if value is not None or k not in OPTIONAL
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
            text = f"{self._path} {why}: records are dropped from here on, and training goes on{lost}"
            self._say(Said(text, "records", logging.ERROR))

    def sync(self) -> None:
        """Let what is written outlive a power failure, as far as the disk can."""
        with contextlib.suppress(OSError):
            os.fsync(self._file)

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


def last(path: Path) -> dict[str, Any] | None:
    """Read the last whole record of a file of JSON lines, and not what is before it; None where there is none."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        size, part = file.seek(0, os.SEEK_END), 1 << 16
        while True:
            file.seek(max(0, size - part))
            text = file.read()
            lines = text[: text.rfind(b"\n") + 1].splitlines()
            if len(lines) > 1 or (lines and part >= size):  # the first may begin in the middle
                return dict(json.loads(lines[-1]))
            if part >= size:
                return None
            part *= 8


def cut(path: Path, keeps: Callable[[dict[str, Any]], bool]) -> None:
    """Keep the records of a file for which that holds, whole or not at all; a torn last line goes."""
    if path.exists():
        kept = [json.dumps(row, separators=(",", ":")) + "\n" for row in read(path) if keeps(row)]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept), "utf-8")
        partial.replace(path)


def pack(array: np.ndarray) -> str:
    """Write a float64 array as base64 text."""
    return base64.b64encode(np.asarray(array, "<f8").tobytes()).decode("ascii")


def unpack(text: str) -> np.ndarray:
    """Read the float64 array that `pack` wrote."""
    return np.frombuffer(base64.b64decode(text), "<f8")
