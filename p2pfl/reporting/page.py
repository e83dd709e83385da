"""A run directory as one page, `report.html`, that can be attached to an e-mail: no script, nothing from a network.

Reads what a run has written (`summary.json`, `topology.json`, `rounds.jsonl`, `metrics.jsonl`, `events.jsonl`,
`experiment.toml`, `baselines/`). Nearly all of it may be missing or cut off: what was not measured is shown as such;
see `run_data`.
"""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from p2pfl.reporting import leaks, published, run_data, style, terminal
from p2pfl.reporting.run_data import AWAY, DASH, Absence, RunData, Summary, measured

EVENT_ROWS = 60
"""Rows of the table of events, at most; one more counts the rest."""
TOLD = 3
"""Absences that the headline tells one by one; more are counted."""
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
    "running_sums": "running sums: the next message makes up for what was lost",
    "nothing": "this algorithm does not keep the mean",
}


def write(run: Path) -> Path:
    """Write `report.html` into the run directory `run`. The same files give the same bytes."""
    read = run_data.read(Path(run))
    page = Path(run) / "report.html"
    page.write_text(_render(read), encoding="utf-8")
    return page


# ---------------------------------------------------------------- words


def headline(summary: Summary, absent: list[Absence]) -> str:
    """Say what happened, in plain words."""
    summary = summary.headed
    nodes, rounds, shown = measured(summary.nodes), measured(summary.rounds), summary.shown.text
    who = "The nodes" if nodes is None else "1 node" if nodes == 1 else f"{nodes:,.0f} nodes"
    where = f" on {GRAPHS.get(summary.graph, f'the graph {summary.graph}')}" if summary.graph else ""
    long = "" if rounds is None else f" in {rounds:,.0f} round{'' if rounds == 1 else 's'}"
    own_only = measured(summary.score_mean) is None and terminal.has_own(summary)
    mean, worst = (
        (summary.score_own_mean, summary.score_own_worst) if own_only else (summary.score_mean, summary.score_worst)
    )
    if measured(mean) is None:
        text = f"{who}{where} ran{long or ' to the end'}; {summary.score_name} was not measured"
    else:
        own = " on their own test data" if own_only else ""
        text = f"{who}{where} reached {shown(mean)} mean {summary.score_name}{own}"
        text += ("" if measured(worst) is None else f" (worst node {shown(worst)})") + long
    beside = [
        words + shown(value)
        for words, value in (
            ("alone they reach ", summary.score_local_only),
            ("all data pooled ", summary.score_pooled),
        )
        if measured(mean) is not None and measured(value) is not None
    ]
    if len(beside) == 1 and beside[0].startswith("all"):
        beside = [beside[0].replace("pooled", "pooled reach")]
    sentences = [text + ("; " + ", ".join(beside) if beside else ""), *published.verdicts(summary)]
    sentences += [f"It was stopped early {summary.stopped_early}"] if summary.stopped_early else []
    sentences += _churn(summary, absent)
    sentences += [line[0].upper() + line[1:] for line in terminal.rounds_lost(summary)]
    if summary.incomplete:
        sentences.append(f"The run is not whole: {'; '.join(summary.incomplete)}")
    return " ".join(f"{sentence}." for sentence in sentences)


def _churn(summary: Summary, absent: list[Absence]) -> list[str]:
    told = {absence.node for absence in absent}
    untold = [node for node in summary.lost if node not in told]
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
    rounds = sorted(int(event["round"]) for event in members if measured(event.get("round")) is not None)
    details = list(dict.fromkeys(str(event["detail"]) for event in members if event.get("detail")))
    span = DASH if not rounds else f"{rounds[0]}" if rounds[0] == rounds[-1] else f"{rounds[0]} to {rounds[-1]}"
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


def _render(run: RunData) -> str:
    from p2pfl.reporting import figures  # here: it brings matplotlib, half a second that no start should pay

    summary = run.summary
    rows = terminal.results(summary)
    template = importlib.resources.files("p2pfl.reporting").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "size": terminal.size, "duration": terminal.duration, "figure": terminal.figure, "whole": _whole,
    }  # fmt: skip
    return environment.from_string(template).render(
        name=summary.name or "A run of p2pfl",
        summary=summary,
        head=summary.headed,
        topology=run.topology,
        headline=headline(summary, run.absences),
        rows=rows,
        own=terminal.has_own(summary.headed),
        dash=DASH,
        incomplete=any(DASH in row[:3] for row in rows),
        assessed=published.sites(run.assessed),
        flow=published.flow(summary.flow),
        cohort=published.cohort(run.assessed),
        confusion=published.confusion(run.assessed),
        intervals=published.compared(summary),
        coefficients=published.coefficients(run.coefficients),
        over_splits=published.over_splits(run.splits, summary.score, summary.extra_metrics),
        left_out=published.left_out(run.left_out, summary.extra_metrics),
        leaked=leaks.tables(run.leaked),
        leak=leaks.headline(run.leaked) if run.leaked else "",
        leak_notes=run.leaked.get("notes", []),
        pictures={name: picture._replace(svg=Markup(picture.svg)) for name, picture in figures.pictures(run).items()},
        light=list(zip(style.CSS, style.LIGHT, strict=True)),
        events=grouped(run.events),
        event_count=len(run.events),
        mean_kept=MEAN_KEPT.get(summary.keeps_mean, ""),
        dropped=None if summary.messages_dropped is None else sorted(summary.messages_dropped.items(), key=_most),
        notes=[*summary.notes],
        unread=run.unread,
        experiment=run.experiment,
    )


def _most(item: tuple[str, object]) -> tuple[float, str]:
    return -(measured(item[1]) or 0.0), item[0]


def _whole(text: str) -> Markup:
    """`text` with every percentage kept on one line."""
    return Markup(re.sub(r"(\d[\d.,]* %)", r'<span class="whole">\1</span>', str(escape(text))))
