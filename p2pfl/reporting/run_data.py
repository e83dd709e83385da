"""A run directory as data: what the page and its figures show.

Nearly all of it may be missing or cut off: lines that can't be read are counted and said. `metrics.jsonl` is read once,
line by line, into tables of at most `COLUMNS` columns, so that a run of any length fits in memory and on the page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.reporting import terminal

COLUMNS = 400
"""Points of a line, at most."""
AWAY = {"crash": "crashed", "lost": "was lost", "left": "left", "detected": "was found lost"}
BACK = ("rejoined", "recovered", "joined")
SERIES = ("accuracy_mean", "accuracy_worst", "consensus_distance", "bytes_sent", "seconds_median")


class Absence(NamedTuple):
    """A node was away from round `out` (None: it was not there before) until round `back` (None: for good)."""

    node: int
    kind: str  # a key of AWAY, or "joined"
    out: int | None
    back: int | None


class Nodes(NamedTuple):
    """`metrics.jsonl`, thinned: a row per node, a column per step of rounds; NaN where nothing was measured."""

    ids: list[int]
    round: np.ndarray  # [n, C]: the round that `accuracy` belongs to
    accuracy: np.ndarray  # [n, C]: the last one measured in the column
    life: np.ndarray  # [n, C] int64: differs between lives; 0 = no record
    waited: np.ndarray  # [n, C]: mean over the column
    measure: str  # what accuracy this is

    def final(self) -> dict[int, float]:
        """The last accuracy that was measured of every node."""
        last = {}
        for node, row in zip(self.ids, self.accuracy, strict=True):
            known = np.flatnonzero(np.isfinite(row))
            last[node] = float(row[known[-1]]) if known.size else math.nan
        return last


class RunData(NamedTuple):
    """All that the page shows."""

    summary: dict[str, Any]
    topology: dict[str, Any]
    series: dict[str, np.ndarray]  # "round" and SERIES, one entry per round
    nodes: Nodes
    events: list[dict[str, Any]]
    absences: list[Absence]
    experiment: str
    unread: list[str]  # what could not be read, in words
    assessed: dict[str, Any]  # assessment.json


def read(run: Path) -> RunData:
    """All that the directory of a run holds. Raises ConfigError when it is none."""
    if not any((run / name).is_file() for name in ("summary.json", "metrics.jsonl", "rounds.jsonl")):
        raise ConfigError(f"run={str(run)!r}: holds no summary.json, metrics.jsonl or rounds.jsonl; must be of a run")
    unread: list[str] = []
    series = _series(run / "rounds.jsonl", unread)
    summary = _object(run / "summary.json", unread)
    for name, key in (("local", "accuracy_local_only"), ("pooled", "accuracy_pooled")):
        final = _series(run / "baselines" / name / "rounds.jsonl", unread)
        for field, target in (("accuracy_mean", key), ("accuracy_worst", f"{key}_worst")):
            known = final[field][np.isfinite(final[field])]
            if terminal.measured(summary.get(target)) is None and known.size:
                summary[target] = float(known[-1])
    events = [event for event in _lines(run / "events.jsonl", unread) if isinstance(event.get("event"), str)]
    toml = run / "experiment.toml"
    return RunData(
        summary=summary,
        topology=_object(run / "topology.json", unread),
        series=series,
        nodes=_nodes(run / "metrics.jsonl", _last_round(series, summary), unread),
        events=events,
        absences=absences(events),
        experiment=toml.read_text(encoding="utf-8", errors="replace") if toml.is_file() else "",
        unread=unread,
        assessed=_object(run / "assessment.json", unread) if (run / "assessment.json").is_file() else {},
    )


def _object(path: Path, unread: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        unread.append(f"{path.name} could not be read")
        return {}
    return found


def _lines(path: Path, unread: list[str]) -> Iterator[dict[str, Any]]:
    """The records of a .jsonl file; a line cut off by a crash is counted, not fatal."""
    if not path.is_file():
        return
    bad = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                bad += bool(line.strip())
                continue
            if isinstance(record, dict):
                yield record
            else:
                bad += 1
    if bad:
        unread.append(f"{path.name}: {bad} line{'s' if bad > 1 else ''} could not be read")


def _number(value: object) -> float:
    number = terminal.measured(value)
    return math.nan if number is None else number


def _series(path: Path, unread: list[str]) -> dict[str, np.ndarray]:
    rows = [[_number(record.get(key)) for key in ("round", *SERIES)] for record in _lines(path, unread)]
    table = np.array(rows, dtype=float).reshape(-1, 1 + len(SERIES))
    table = table[np.isfinite(table[:, 0])]
    return dict(zip(("round", *SERIES), table.T, strict=True))


def _last_round(series: Mapping[str, np.ndarray], summary: Mapping[str, Any]) -> int:
    known = [int(_number(summary.get("rounds")))] if terminal.measured(summary.get("rounds")) is not None else []
    return max([*known, *(int(number) for number in series["round"][-1:]), 0])


class _NodeRow:
    """One node while `metrics.jsonl` is read."""

    def __init__(self, columns: int) -> None:
        self.round, self.own, self.common, self.waited = (np.full(columns, np.nan) for _ in range(4))
        self.life, self.count = np.zeros(columns, np.int64), np.zeros(columns, np.int32)


def _nodes(path: Path, last: int, unread: list[str]) -> Nodes:
    columns = min(COLUMNS, last + 1)
    rows: dict[int, _NodeRow] = {}
    for record in _lines(path, unread):
        node, number = terminal.measured(record.get("node")), terminal.measured(record.get("round"))
        if node is None or number is None:
            continue
        row = rows.setdefault(int(node), _NodeRow(columns))
        column = min(max(int(number), 0) * columns // (last + 1), columns - 1)
        common = record.get("accuracy_after_mixing")
        if common is None:
            common = record.get("accuracy_before_mixing")
        for values, value in ((row.common, common), (row.own, record.get("accuracy_own"))):
            if math.isfinite(_number(value)):
                values[column], row.round[column] = _number(value), number
        row.life[column] = int(terminal.measured(record.get("life")) or 1)
        waited = terminal.measured(record.get("waited"))
        if waited is not None:
            row.count[column] += 1
            before = 0.0 if row.count[column] == 1 else row.waited[column]
            row.waited[column] = before + (waited - before) / row.count[column]
    ids = sorted(rows)
    tables = {
        key: np.array([getattr(rows[node], key) for node in ids]).reshape(-1, columns)
        for key in ("round", "common", "own", "life", "waited")
    }
    common_set = bool(np.isfinite(tables["common"]).any())
    accuracy = tables["common"] if common_set else tables["own"]
    own_only = not common_set and bool(np.isfinite(accuracy).any())
    measure = "accuracy on own test data" if own_only else "accuracy"
    return Nodes(ids, tables["round"], accuracy, tables["life"], tables["waited"], measure)


def absences(events: list[dict[str, Any]]) -> list[Absence]:
    """Who was away from when to when, by the order of rounds: many nodes may say the same, and some say it late.

    "detected" opens an absence only if nobody says of that node that it crashed, was lost or left.
    """
    known = [event for event in events if terminal.measured(event.get("node")) is not None]
    told = {int(event["node"]) for event in known if event["event"] in ("crash", "lost", "left")}
    open_at: dict[int, Absence] = {}
    seen: set[int] = set()
    found: list[Absence] = []
    for event in sorted(known, key=lambda event: terminal.measured(event.get("round")) or 0):
        node, kind, now = int(event["node"]), event["event"], int(terminal.measured(event.get("round")) or 0)
        if kind in AWAY and node not in open_at and not (kind == "detected" and node in told):
            open_at[node] = Absence(node, kind, now, None)
        elif kind in BACK and node in open_at:
            found.append(open_at.pop(node)._replace(back=now))
        elif kind == "joined" and now > 1 and node not in seen:
            found.append(Absence(node, "joined", None, now))
        if kind in BACK:
            seen.add(node)
    return sorted([*found, *open_at.values()], key=lambda absence: (_first(absence), absence.node))


def _first(absence: Absence) -> int:
    return absence.out if absence.out is not None else absence.back or 0
