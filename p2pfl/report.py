"""A run directory as one page, `report.html`, that can be attached to an e-mail: no script, nothing from a network.

Reads what a run has written (`summary.json`, `topology.json`, `rounds.jsonl`, `metrics.jsonl`, `events.jsonl`,
`experiment.toml`, `baselines/`). Nearly all of it may be missing or cut off: what was not measured is shown as such;
lines that can't be read are counted and said. `metrics.jsonl` is read once, line by line, into tables of at most
`COLUMNS` columns, so that a run of any length fits in memory and on the page.

`p2pfl.plots` is imported only when a page is written: it brings matplotlib, half a second that nobody who merely starts
a run should pay.
"""

from __future__ import annotations

import importlib.resources
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup, escape

from p2pfl import view
from p2pfl.errors import ConfigError

COLUMNS = 400
"""Points of a line, at most."""
EVENT_ROWS = 60
"""Rows of the table of events, at most; one more counts the rest."""
TOLD = 3
"""Absences that the headline tells one by one; more are counted."""
AWAY = {"crash": "crashed", "lost": "was lost", "left": "left", "detected": "was found lost"}
BACK = ("rejoined", "recovered", "joined")
SERIES = ("accuracy_mean", "accuracy_worst", "consensus_distance", "bytes_sent", "seconds_median")
GRAPHS = {
    "ring": "a ring",
    "star": "a star",
    "line": "a line",
    "path": "a path",
    "grid": "a grid",
    "torus": "a torus",
    "complete": "a complete graph",
    "full": "a complete graph",
    "exponential": "an exponential graph",
    "erdos_renyi": "a random graph",
}
MEAN_KEPT = {
    "exchange": "both ends of an exchange mix, or neither does",
    "running_sums": "running sums: whatever was lost on the way is in the next message",
    "nothing": "this algorithm does not keep the mean",
}


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
    life: np.ndarray  # [n, C]: 0 = no record
    waited: np.ndarray  # [n, C]: mean over the column
    measure: str  # what accuracy this is

    def final(self) -> dict[int, float]:
        """The last accuracy that was measured of every node."""
        last = {}
        for node, row in zip(self.ids, self.accuracy, strict=True):
            known = np.flatnonzero(np.isfinite(row))
            last[node] = float(row[known[-1]]) if known.size else math.nan
        return last


class Run(NamedTuple):
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


def write(run: Path) -> Path:
    """Write `report.html` into the run directory `run`. The same files give the same bytes."""
    read = _read(Path(run))
    page = Path(run) / "report.html"
    page.write_text(_render(read), encoding="utf-8")
    return page


# ---------------------------------------------------------------- reading


def _read(run: Path) -> Run:
    if not any((run / name).is_file() for name in ("summary.json", "metrics.jsonl", "rounds.jsonl")):
        raise ConfigError(f"run={str(run)!r}: holds no summary.json, metrics.jsonl or rounds.jsonl; must be of a run")
    unread: list[str] = []
    series = _series(run / "rounds.jsonl", unread)
    summary = _object(run / "summary.json", unread)
    for name, key in (("local", "accuracy_local_only"), ("pooled", "accuracy_pooled")):
        final = _series(run / "baselines" / name / "rounds.jsonl", unread)
        for field, target in (("accuracy_mean", key), ("accuracy_worst", f"{key}_worst")):
            known = final[field][np.isfinite(final[field])]
            if view.measured(summary.get(target)) is None and known.size:
                summary[target] = float(known[-1])
    events = [event for event in _lines(run / "events.jsonl", unread) if isinstance(event.get("event"), str)]
    toml = run / "experiment.toml"
    return Run(
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
    number = view.measured(value)
    return math.nan if number is None else number


def _series(path: Path, unread: list[str]) -> dict[str, np.ndarray]:
    rows = [[_number(record.get(key)) for key in ("round", *SERIES)] for record in _lines(path, unread)]
    table = np.array(rows, dtype=float).reshape(-1, 1 + len(SERIES))
    table = table[np.isfinite(table[:, 0])]
    return dict(zip(("round", *SERIES), table.T, strict=True))


def _last_round(series: Mapping[str, np.ndarray], summary: Mapping[str, Any]) -> int:
    known = [int(_number(summary.get("rounds")))] if view.measured(summary.get("rounds")) is not None else []
    return max([*known, *(int(number) for number in series["round"][-1:]), 0])


class _Row:
    """One node while `metrics.jsonl` is read."""

    def __init__(self, columns: int) -> None:
        self.round, self.own, self.common, self.waited = (np.full(columns, np.nan) for _ in range(4))
        self.life, self.count = np.zeros(columns, np.int32), np.zeros(columns, np.int32)


def _nodes(path: Path, last: int, unread: list[str]) -> Nodes:
    columns = min(COLUMNS, last + 1)
    rows: dict[int, _Row] = {}
    for record in _lines(path, unread):
        node, number = view.measured(record.get("node")), view.measured(record.get("round"))
        if node is None or number is None:
            continue
        row = rows.setdefault(int(node), _Row(columns))
        column = min(max(int(number), 0) * columns // (last + 1), columns - 1)
        common = record.get("accuracy_after_mixing")
        if common is None:
            common = record.get("accuracy_before_mixing")
        for values, value in ((row.common, common), (row.own, record.get("accuracy_own"))):
            if math.isfinite(_number(value)):
                values[column], row.round[column] = _number(value), number
        row.life[column] = int(view.measured(record.get("life")) or 1)
        waited = view.measured(record.get("waited"))
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
    known = [event for event in events if view.measured(event.get("node")) is not None]
    told = {int(event["node"]) for event in known if event["event"] in ("crash", "lost", "left")}
    open_at: dict[int, Absence] = {}
    seen: set[int] = set()
    found: list[Absence] = []
    for event in sorted(known, key=lambda event: view.measured(event.get("round")) or 0):
        node, kind, now = int(event["node"]), event["event"], int(view.measured(event.get("round")) or 0)
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


# ---------------------------------------------------------------- words


def headline(summary: Mapping[str, Any], absent: list[Absence]) -> str:
    """What happened, in plain words."""
    nodes, rounds = view.measured(summary.get("nodes")), view.measured(summary.get("rounds"))
    who = "The nodes" if nodes is None else "1 node" if nodes == 1 else f"{nodes:,.0f} nodes"
    graph = summary.get("graph")
    where = "" if not graph else f" on {GRAPHS.get(str(graph), f'the graph {graph}')}"
    long = "" if rounds is None else f" in {rounds:,.0f} round{'' if rounds == 1 else 's'}"
    common = view.measured(summary.get("accuracy_mean")) is not None
    key = "accuracy" if common or not view.has_own(summary) else "accuracy_own"
    mean, worst = (view.measured(summary.get(f"{key}_{which}")) for which in ("mean", "worst"))
    if mean is None:
        text = f"{who}{where} ran{long or ' to the end'}; accuracy was not measured"
    else:
        own = "" if key == "accuracy" else " on their own test data"
        text = f"{who}{where} reached {view.percent(mean)} mean accuracy{own}"
        text += ("" if worst is None else f" (worst node {view.percent(worst)})") + long
    beside = [
        words + view.percent(summary.get(name))
        for words, name in (("alone they reach ", "accuracy_local_only"), ("all data pooled ", "accuracy_pooled"))
        if mean is not None and view.measured(summary.get(name)) is not None
    ]
    if len(beside) == 1 and beside[0].startswith("all"):
        beside = [beside[0].replace("pooled", "pooled reach")]
    sentences = [text + ("; " + ", ".join(beside) if beside else ""), *_churn(summary, absent)]
    return " ".join(f"{sentence}." for sentence in sentences)


def _churn(summary: Mapping[str, Any], absent: list[Absence]) -> list[str]:
    lost = summary.get("lost")
    told = {absence.node for absence in absent}
    untold = [node for node in (lost if isinstance(lost, list) else []) if isinstance(node, int) and node not in told]
    if len(absent) + len(untold) > TOLD:
        away = [absence for absence in absent if absence.out is not None]
        gone, back = {absence.node for absence in away} | set(untold), {a.node for a in away if a.back is not None}
        joined = {absence.node for absence in absent if absence.out is None}
        some = "all" if back == gone else f"{len(back):,}" if back else "none"
        sentences = [f"{len(gone):,} nodes went away, {some} of them came back"] if gone else []
        return sentences + ([f"{len(joined):,} nodes joined late"] if joined else [])
    sentences = []
    for absence in absent:
        if absence.out is None:
            sentences.append(f"Node {absence.node} joined at round {absence.back}")
            continue
        text = f"Node {absence.node} {AWAY[absence.kind]} at round {absence.out}"
        if absence.back is not None:
            text += f" and was back at round {absence.back}"
        elif absence.kind != "left":
            text += " and did not come back"
        sentences.append(text)
    return sentences + [f"Node {node} was lost" for node in untold]


def grouped(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events as rows of a table: one per kind and node; one per kind if those would be too many."""
    for fine in (True, False):
        groups: dict[tuple[str, object], list[dict[str, Any]]] = {}
        for event in events:
            groups.setdefault((event["event"], str(event.get("node")) if fine else None), []).append(event)
        if len(groups) <= EVENT_ROWS:
            break
    rows = [_event_row(kind, members) for (kind, _), members in groups.items()]
    rows.sort(key=lambda row: (row["first"], row["event"], row["nodes"]))
    rest = sum(row["count"] for row in rows[EVENT_ROWS:])
    if rest:
        rows[EVENT_ROWS:] = [_event_row("of other kinds", []) | {"count": rest}]
    return rows


def _event_row(kind: str, members: list[dict[str, Any]]) -> dict[str, Any]:
    rounds = sorted(int(event["round"]) for event in members if view.measured(event.get("round")) is not None)
    details = list(dict.fromkeys(str(event["detail"]) for event in members if event.get("detail")))
    span = view.DASH if not rounds else f"{rounds[0]}" if rounds[0] == rounds[-1] else f"{rounds[0]} to {rounds[-1]}"
    detail = details[0][:200] if details else ""
    return {
        "event": kind,
        "nodes": _named({str(event["node"]) for event in members if event.get("node") is not None}, "nodes"),
        "by": _named({str(event["by"]) for event in members if event.get("by") is not None}, "nodes"),
        "first": rounds[0] if rounds else 0,
        "rounds": span,
        "count": len(members),
        "detail": detail if len(details) < 2 else f"{detail} (and {len(details) - 1} other texts)",
    }


def _named(names: set[str], noun: str) -> str:
    if len(names) > 8:
        return f"{len(names):,} {noun}"
    return ", ".join(sorted(names, key=lambda name: (len(name), name)))


# ---------------------------------------------------------------- the page


def _render(run: Run) -> str:
    from p2pfl import plots  # brings matplotlib: see the head of this module

    summary = run.summary
    dropped = summary.get("messages_dropped")
    notes = summary.get("notes")
    rows = view.results(summary)
    template = importlib.resources.files("p2pfl").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": view.percent, "size": view.size, "duration": view.duration, "figure": view.figure, "whole": _whole,
    }  # fmt: skip
    return environment.from_string(template).render(
        name=str(summary.get("name") or "A run of p2pfl"),
        summary=summary,
        topology=run.topology,
        headline=headline(summary, run.absences),
        rows=rows,
        own=view.has_own(summary),
        dash=view.DASH,
        incomplete=any(view.DASH in row[:3] for row in rows),
        assessed=view.sites_table(run.assessed),
        pictures={name: picture._replace(svg=Markup(picture.svg)) for name, picture in plots.pictures(run).items()},
        events=grouped(run.events),
        event_count=len(run.events),
        mean_kept=MEAN_KEPT.get(str(summary.get("keeps_mean")), ""),
        dropped=sorted(dropped.items(), key=_most) if isinstance(dropped, dict) else None,
        notes=[str(note) for note in notes] if isinstance(notes, list) else [],
        unread=run.unread,
        experiment=run.experiment,
    )


def _most(item: tuple[str, object]) -> tuple[float, str]:
    return -(view.measured(item[1]) or 0.0), item[0]


def _whole(text: str) -> Markup:
    """`text` with every percentage kept on one line."""
    return Markup(re.sub(r"(\d[\d.,]* %)", r'<span class="whole">\1</span>', str(escape(text))))
