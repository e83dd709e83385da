"""A run directory as data: what a run writes into it, and what the page and its figures read out of it.

`Summary` and `RoundRow` are the files summary.json and rounds.jsonl as types: whoever runs an experiment fills them in
and writes them; whoever shows one reads them here. Nearly all of a directory may be missing or cut off: lines that
can't be read are counted and said. `metrics.jsonl` is read once, line by line, into tables of at most `COLUMNS`
columns, so that a run of any length fits in memory and on the page.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from p2pfl import tree
from p2pfl.errors import ConfigError

DASH = "\N{EN DASH}"
"""Stands where a figure was not measured."""
_OF_THE_SCORE = ("score_name", "score_in_percent")


class Score(NamedTuple):
    """The score of a run: its name in files and in words, and whether it is a percentage."""

    key: str = "accuracy"
    name: str = "accuracy"
    in_percent: bool = True

    def text(self, value: object) -> str:
        """A value of it, as a person reads it.

        >>> Score().text(0.9618), Score("explained", "R2", False).text(-0.31)
        ('96.2 %', '-0.310')
        """
        number = measured(value)
        if number is None:
            return DASH
        return f"{100 * number:.1f} %" if self.in_percent else f"{number:.3f}"


FIRST: Mapping[str, Score] = MappingProxyType({"concordance": Score("c_index", "Harrell's C", False)})
"""The score of each round -> that of the assessment which a table of results and a headline give instead."""


def measured(value: object) -> float | None:
    """`value` as a float if it is a finite number, else None: what was not measured is null, absent or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def named(row: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A record as a file has it: the values of the score are called by its key."""
    return {f"{key}{k[5:]}" if k.startswith("score_") and k not in _OF_THE_SCORE else k: v for k, v in row.items()}


# ---------------------------------------------------------------- what a run writes


class RoundRow(NamedTuple):
    """A record of rounds.jsonl. In the file `score_` is the score's key, as in accuracy_mean."""

    round: int
    alive: list[int] | int  # the nodes that were there; of a simulation, how many
    score_mean: float | None  # after mixing, on the test rows of all; None in rounds that are not evaluated
    score_worst: float | None
    consensus_distance: float | None
    bytes_sent: int  # by all nodes
    seconds_median: float
    seconds: float | None = None  # virtual time: from the first round's beginning until the last node had finished


@dataclass(frozen=True)
class Summary:
    """summary.json: what came of a run. None, "" or nothing stands for what was not measured, or is not known.

    In the file the values of the score are called by its key, as in accuracy_mean, accuracy_pooled_own_worst.
    docs/run-directory.md says how each figure is computed.
    """

    format: int = 1  # of the records, see p2pfl.node.records.FORMAT; 1 where a file does not say
    name: str = ""
    nodes: int | None = None
    rounds: int | None = None
    algorithm: str = ""
    graph: str = ""
    parameters: int | None = None  # of a model, those that are mixed
    driver: str = ""
    # the score: of this run and of what it is compared with, over the nodes that reached the end
    score: str = Score().key
    score_name: str = Score().name
    score_in_percent: bool = Score().in_percent
    score_mean: float | None = None
    score_worst: float | None = None
    score_before_mixing_mean: float | None = None
    score_own_mean: float | None = None
    score_own_worst: float | None = None
    score_local_only: float | None = None
    score_local_only_worst: float | None = None
    score_local_only_own_mean: float | None = None
    score_local_only_own_worst: float | None = None
    score_pooled: float | None = None
    score_pooled_worst: float | None = None
    score_pooled_own_mean: float | None = None
    score_pooled_own_worst: float | None = None
    score_majority: float | None = None
    score_majority_own_mean: float | None = None
    score_majority_own_worst: float | None = None
    train_loss_mean: float | None = None
    # truth
    consensus_distance: float | None = None
    distance_to_optimum: float | None = None
    distance_to_fixed_point: float | None = None
    keeps_mean: str = ""
    mean_residual: float | None = None
    residue: int | None = None
    residue_drift: float | None = None
    exchanges_booked: int | None = None
    exchanges_voided: int | None = None
    messages_dropped: Mapping[str, int] | None = None
    epochs: int | None = None
    # cost
    bytes_sent_per_node_round: float | None = None
    bytes_membership: int | None = None
    seconds_startup: float | None = None
    seconds_running: float | None = None
    seconds_total: float | None = None
    seconds_virtual: float | None = None
    seconds_first_round: float | None = None
    seconds_per_round_median: float | None = None
    seconds_per_round_longest: float | None = None
    seconds_processor_per_round: float | None = None
    steps_per_second: float | None = None
    memory_peak: int | None = None
    memory_peak_per_node: int | None = None
    simulated_by: Mapping[str, Any] | None = None
    # the nodes
    rounds_skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)  # by node, what was not planned
    rounds_repeated: Mapping[str, int] = dataclasses.field(default_factory=dict)
    rounds_alone: Mapping[str, int] = dataclasses.field(default_factory=dict)
    diverged: Mapping[str, int] = dataclasses.field(default_factory=dict)  # node -> the round from which on
    lost: tuple[int, ...] = ()
    lost_unplanned: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of these, and how it came about
    left: tuple[int, ...] = ()
    resumed: tuple[int, ...] = ()  # the round after which it went on, each time
    interrupted: bool = False
    stopped_by: str = ""  # the signal that did it
    stopped_early: str = ""  # by a callback: "at round 12 of 60 by EarlyStopping"; `rounds` are then those that count
    incomplete: tuple[str, ...] = ()  # why the run is not whole, each a line for a person
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    flow: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # site -> rows read, left out by reason, parts
    intervals: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # figure -> [low, high], 95 %
    too_few: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # figure without an interval -> n, of what
    differences: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # figure -> baseline -> [value, low, high]
    extra_metrics: tuple[str, ...] = ()  # of these, what the experiment has brought itself
    metrics: Mapping[str, float | None] = dataclasses.field(default_factory=dict)  # of the assessment, by name

    @property
    def shown(self) -> Score:
        """The score, to show values of it."""
        return Score(self.score, self.score_name, self.score_in_percent)

    @property
    def headed(self) -> Summary:
        """The same by the score that stands first: for concordance within batches Harrell's C, where it is known."""
        first = FIRST.get(self.score)
        if first is None or all(
            measured(self.metrics.get(f"{first.key}{end}")) is None for end in ("_mean", "_own_mean")
        ):
            return self
        named = {"score": first.key, "score_name": first.name, "score_in_percent": first.in_percent}
        known = Summary.of({**named, **self.metrics})
        scores = [each.name for each in dataclasses.fields(self) if each.name.startswith("score")]
        return dataclasses.replace(self, **{name: getattr(known, name) for name in scores})

    @property
    def skipped_share(self) -> float:
        """The share of all nodes' rounds that was skipped, 0 to 1."""
        return sum(self.rounds_skipped.values()) / max(1, (self.nodes or 0) * (self.rounds or 0))

    def as_dict(self) -> dict[str, Any]:
        """The table that stands in the file."""
        table = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "metrics"}
        plain = {key: dict(v) if isinstance(v, Mapping) else [*v] if isinstance(v, tuple) else v
                 for key, v in table.items()}  # fmt: skip
        result: dict[str, Any] = tree.plain({**self.metrics, **named(plain, self.score)})
        return result

    def adding(self, table: Mapping[str, float | None]) -> Summary:
        """Return the same with more figures, by their names in the file; what is known already stays as it is."""
        more = Summary.of({"score": self.score, **table})
        names = [each.name for each in dataclasses.fields(self) if each.name != "metrics"]
        new = {name: getattr(more, name) for name in names if getattr(self, name) is None}
        return dataclasses.replace(self, **new, metrics={**self.metrics, **more.metrics})

    def write(self, run: Path) -> None:
        """Write summary.json, whole or not at all."""
        partial = run / "summary.partial"
        partial.write_text(json.dumps(self.as_dict(), indent=1) + "\n", "utf-8")
        partial.rename(run / "summary.json")

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Summary:
        """The summary in a table as the file has it; what is missing or of another type is not known."""
        key = _value("str", table.get("score")) or Score().key
        known: dict[str, Any] = {}
        rest = dict(table)
        for each in dataclasses.fields(cls):
            name = next(iter(named({each.name: None}, key)))
            value = _value(str(each.type), rest.pop(name, None))
            if value is not None:
                known[each.name] = value
        metrics = {name: v for name, v in rest.items() if v is None or _value("float", v) is not None}
        return cls(**known, metrics=metrics)


def _value(kind: str, value: object) -> Any:
    """A value of a file as a field of this type has it; None where it is of another type."""
    if kind.startswith(("int", "float")):
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if kind.startswith("tuple"):
        like = int if "int" in kind else str
        return tuple(each for each in value if isinstance(each, like)) if isinstance(value, list) else None
    return value if isinstance(value, {"str": str, "bool": bool}.get(kind, dict)) else None


def write_rounds(run: Path, rows: Iterable[RoundRow], key: str) -> None:
    """Write rounds.jsonl. `key`: of the score."""
    lines = [json.dumps(tree.plain(named(row._asdict(), key)), separators=(",", ":")) + "\n" for row in rows]
    (run / "rounds.jsonl").write_text("".join(lines), "utf-8")


def numbers(key: str) -> tuple[str, ...]:
    """The names of all numbers of a summary whose score has this key."""
    kinds = ("int | None", "float | None")
    of_type = {each.name: None for each in dataclasses.fields(Summary) if str(each.type) in kinds}
    return tuple(named(of_type, key))


# ---------------------------------------------------------------- what the page reads

COLUMNS = 400
"""Points of a line, at most."""
AWAY = {"crash": "crashed", "lost": "was lost", "left": "left", "detected": "was found lost"}
BACK = ("rejoined", "recovered", "joined")
SERIES = ("score_mean", "score_worst", "consensus_distance", "bytes_sent", "seconds_median")
"""Fields of `RoundRow` that are drawn."""


class Absence(NamedTuple):
    """A node was away from round `out` (None: it was not there before) until round `back` (None: for good)."""

    node: int
    kind: str  # a key of AWAY, or "joined"
    out: int | None
    back: int | None


class Nodes(NamedTuple):
    """`metrics.jsonl`, thinned: a row per node, a column per step of rounds; NaN where nothing was measured."""

    ids: list[int]
    round: np.ndarray  # [n, C]: the round that `score` belongs to
    score: np.ndarray  # [n, C]: the last one measured in the column
    life: np.ndarray  # [n, C] int64: differs between lives; 0 = no record
    waited: np.ndarray  # [n, C]: mean over the column
    own: bool  # it is of each node's own test rows

    def final(self) -> dict[int, float]:
        """The last score that was measured of every node."""
        last = {}
        for node, row in zip(self.ids, self.score, strict=True):
            known = np.flatnonzero(np.isfinite(row))
            last[node] = float(row[known[-1]]) if known.size else math.nan
        return last


class RunData(NamedTuple):
    """All that the page shows."""

    summary: Summary
    topology: dict[str, Any]
    series: dict[str, np.ndarray]  # "round" and SERIES, one entry per round
    nodes: Nodes
    events: list[dict[str, Any]]
    absences: list[Absence]
    experiment: str
    unread: list[str]  # what could not be read, in words
    assessed: dict[str, Any]  # assessment.json
    coefficients: dict[str, Any]  # coefficients.json
    survival: dict[str, Any]  # survival.json
    splits: dict[str, Any]  # splits.json
    left_out: dict[str, Any]  # left_out.json
    explained: dict[str, Any]  # explanations/explanations.json
    shown: dict[str, np.ndarray]  # explanations/explanations.npz
    leaked: dict[str, Any]  # audit/audit.json
    leaked_rows: dict[str, np.ndarray]  # audit/audit.npz


def read(run: Path) -> RunData:
    """All that the directory of a run holds. Raises ConfigError when it is none."""
    if not any((run / name).is_file() for name in ("summary.json", "metrics.jsonl", "rounds.jsonl")):
        raise ConfigError(
            f"run={str(run)!r}: holds no summary.json, metrics.jsonl or rounds.jsonl; give the directory of a run"
        )
    unread: list[str] = []
    summary = Summary.of(_object(run / "summary.json", unread) or _cut_off(run))
    series = _series(run / "rounds.jsonl", summary.score, unread)
    for name, which in (("local", "local_only"), ("pooled", "pooled")):
        final = _series(run / "baselines" / name / "rounds.jsonl", summary.score, unread)
        for field, end in (("score_mean", ""), ("score_worst", "_worst")):
            known = final[field][np.isfinite(final[field])]
            if known.size:
                summary = summary.adding({f"{summary.score}_{which}{end}": float(known[-1])})
    events = [event for event in lines(run / "events.jsonl", unread) if isinstance(event.get("event"), str)]
    toml = run / "experiment.toml"
    return RunData(
        summary=summary,
        topology=_object(run / "topology.json", unread),
        series=series,
        nodes=_nodes(run / "metrics.jsonl", summary.score, _last_round(series, summary), unread),
        events=events,
        absences=absences(events),
        experiment=toml.read_text(encoding="utf-8", errors="replace") if toml.is_file() else "",
        unread=unread,
        assessed=_object(run / "assessment.json", unread),
        coefficients=_object(run / "coefficients.json", unread),
        survival=_object(run / "survival.json", unread),
        splits=_object(run / "splits.json", unread),
        left_out=_object(run / "left_out.json", unread),
        explained=_object(run / "explanations" / "explanations.json", unread),
        shown=_arrays(run / "explanations" / "explanations.npz", unread),
        leaked=_object(run / "audit" / "audit.json", unread),
        leaked_rows=_arrays(run / "audit" / "audit.npz", unread),
    )


def _arrays(path: Path, unread: list[str]) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        unread.append(f"{path.name}: {error}")
        return {}


def _object(path: Path, unread: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        table = None
    if not isinstance(table, dict):
        unread.append(f"{path.name} could not be read")
        return {}
    return table


def _cut_off(run: Path) -> dict[str, Any]:
    """Return the summary of a run that was cut off: the score by which its first record is measured."""
    record = next(lines(run / "metrics.jsonl", []), {})
    keys = [name.removesuffix("_after_mixing") for name in record if name.endswith("_after_mixing")]
    return {"score": keys[0], "score_name": keys[0], "score_in_percent": keys[0] == Score().key} if keys else {}


def lines(path: Path, unread: list[str]) -> Iterator[dict[str, Any]]:
    """Return the records of a .jsonl file; a line cut off by a crash is counted in `unread`, not fatal."""
    if not path.is_file():
        return
    bad = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
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
    number = measured(value)
    return math.nan if number is None else number


_WHOLE = frozenset({"node", "life", "round", "arrived", "age", "bytes_sent", "bytes_received", "alive"})
"""Fields of a record that are whole numbers."""


def columns(directories: Iterable[Path], file: str, unread: list[str]) -> dict[str, np.ndarray]:
    """Return a .jsonl file of records of rounds as columns, a row for each node and round, by round and node.

    `directories`: those that have a part of it. Of a round that a node has trained again the later life counts. NaN
    where nothing was measured. Of a list there is its length, of `age` the largest. `unread`: takes what could not be
    read, in words.
    """
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for row in (row for directory in directories for row in lines(directory / file, unread)):
        if measured(row.get("round")) is not None:
            rows[int(row["round"]), int(row.get("node", 0))] = row
    ordered = [rows[key] for key in sorted(rows)]
    names = dict.fromkeys(name for row in ordered for name in row)
    return {name: _column(name, [row.get(name) for row in ordered]) for name in names}


def events(directories: Iterable[Path], unread: list[str]) -> list[dict[str, Any]]:
    """Return the records of events.jsonl, those of several directories by time."""
    found = [row for directory in directories for row in lines(directory / "events.jsonl", unread)]
    return sorted((row for row in found if isinstance(row.get("event"), str)), key=lambda row: _number(row.get("time")))


def _column(name: str, values: list[Any]) -> np.ndarray:
    lists = [each for each in values if isinstance(each, list)]
    if lists:
        of = max if name == "age" else len
        values = [of([0, *each] if name == "age" else each) if isinstance(each, list) else each for each in values]
    numbers = np.array([_number(each) for each in values], float)
    whole = name in _WHOLE and bool(np.isfinite(numbers).all())
    return numbers.astype(np.int64) if whole else numbers


def _series(path: Path, score: str, unread: list[str]) -> dict[str, np.ndarray]:
    keys = tuple(named(dict.fromkeys(("round", *SERIES)), score))
    rows = [[_number(record.get(key)) for key in keys] for record in lines(path, unread)]
    table = np.array(rows, dtype=float).reshape(-1, 1 + len(SERIES))
    table = table[np.isfinite(table[:, 0])]
    return dict(zip(("round", *SERIES), table.T, strict=True))


def _last_round(series: Mapping[str, np.ndarray], summary: Summary) -> int:
    return max([int(measured(summary.rounds) or 0), *(int(number) for number in series["round"][-1:])])


class _NodeRow:
    """One node while `metrics.jsonl` is read."""

    def __init__(self, columns: int) -> None:
        self.round, self.own, self.common, self.waited = (np.full(columns, np.nan) for _ in range(4))
        self.life, self.count = np.zeros(columns, np.int64), np.zeros(columns, np.int32)


def _nodes(path: Path, score: str, last: int, unread: list[str]) -> Nodes:
    columns = min(COLUMNS, last + 1)
    rows: dict[int, _NodeRow] = {}
    for record in lines(path, unread):
        node, number = measured(record.get("node")), measured(record.get("round"))
        if node is None or number is None:
            continue
        row = rows.setdefault(int(node), _NodeRow(columns))
        column = min(max(int(number), 0) * columns // (last + 1), columns - 1)
        common = record.get(f"{score}_after_mixing")
        if common is None:
            common = record.get(f"{score}_before_mixing")
        for values, value in ((row.common, common), (row.own, record.get(f"{score}_own"))):
            if math.isfinite(_number(value)):
                values[column], row.round[column] = _number(value), number
        row.life[column] = int(measured(record.get("life")) or 1)
        waited = measured(record.get("waited"))
        if waited is not None:
            waited /= measured(record.get("rounds")) or 1
            row.count[column] += 1
            before = 0.0 if row.count[column] == 1 else row.waited[column]
            row.waited[column] = before + (waited - before) / row.count[column]
    ids = sorted(rows)
    tables = {
        key: np.array([getattr(rows[node], key) for node in ids]).reshape(-1, columns)
        for key in ("round", "common", "own", "life", "waited")
    }
    common_set = bool(np.isfinite(tables["common"]).any())
    shown: np.ndarray = tables["common"] if common_set else tables["own"]
    own_only = not common_set and bool(np.isfinite(shown).any())
    return Nodes(ids, tables["round"], shown, tables["life"], tables["waited"], own_only)


def absences(events: list[dict[str, Any]]) -> list[Absence]:
    """Return who was away from when to when, by the order of rounds: many nodes may say the same, and some say it late.

    "detected" opens an absence only if nobody says of that node that it crashed, was lost or left.
    """
    known = [event for event in events if measured(event.get("node")) is not None]
    told = {int(event["node"]) for event in known if event["event"] in ("crash", "lost", "left")}
    open_at: dict[int, Absence] = {}
    seen: set[int] = set()
    result: list[Absence] = []
    for event in sorted(known, key=lambda event: measured(event.get("round")) or 0):
        node, kind, now = int(event["node"]), event["event"], int(measured(event.get("round")) or 0)
        if kind in AWAY and node not in open_at and not (kind == "detected" and node in told):
            open_at[node] = Absence(node, kind, now, None)
        elif kind in BACK and node in open_at:
            result.append(open_at.pop(node)._replace(back=now))
        elif kind == "joined" and now > 1 and node not in seen:
            result.append(Absence(node, "joined", None, now))
        if kind in BACK:
            seen.add(node)
    return sorted([*result, *open_at.values()], key=lambda absence: (_first(absence), absence.node))


def _first(absence: Absence) -> int:
    return absence.out if absence.out is not None else absence.back or 0
