"""The tables of the report as numbers in full: what `published` and `terminal` print, for files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from p2pfl.reporting import page, published, terminal
from p2pfl.reporting.run_data import RunData, Summary

NAMES = (
    "results", "intervals", "other-splits", "sites-left-out",
    *(f"coefficients-{key.replace('_', '-')}" for key in published.TITLES),
    "flow", "rows-of-each-site", "metrics-of-each-site", "confusion", "events", "run",
)  # fmt: skip
"""Of the files of all tables that there may be."""
Cell = str | int | float | None
"""None: not measured."""
LIMITS = ("low", "high")


class ReportTable(NamedTuple):
    """A table of the report."""

    name: str  # of its file
    caption: str
    heads: list[str]
    rows: list[list[Cell]]


def tables(run: RunData) -> list[ReportTable]:
    """Return every table that the run has data for, in the order of the page."""
    made = [
        _results(run.summary), _intervals(run.summary), _over_splits(run), _left_out(run),
        *(_coefficients(run.coefficients, key) for key in published.TITLES), _flow(run.summary), _cohort(run.assessed),
        _sites(run.assessed), _confusion(run.assessed), _events(run), _facts(run.summary),
    ]  # fmt: skip
    return [table for table in made if table is not None and table.rows]


def _three(value: object, interval: object) -> list[Cell]:
    """A value and its interval."""
    known = interval if isinstance(interval, list) and len(interval) == 2 else [None, None]
    return [_cell(value), *map(_cell, known)]


def _less(found: object) -> list[Cell]:
    return [*map(_cell, found)] if isinstance(found, list) and len(found) == 3 else [None] * 3


def _cell(value: object) -> Cell:
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else None


def _with_limits(names: Iterable[str]) -> list[str]:
    return [f"{name}{end}" for name in names for end in ("", *(f"_{limit}" for limit in LIMITS))]


# ---------------------------------------------------------------- all sites together


def _results(summary: Summary) -> ReportTable:
    key, name = summary.headed.score, summary.headed.score_name
    ends = ("mean", "worst", "own_mean", "own_worst")
    caption = (
        f"{name} on the common test set, mean and worst of the nodes; own: of every node on test data of its own. "
        f"{'As fractions.' if summary.headed.score_in_percent else ''}"
    ).strip()
    rows: list[list[Cell]] = [[label, *values] for label, *values in terminal.scores(summary)]
    return ReportTable("results", caption, ["run", *(f"{key}_{end}" for end in ends)], rows)


def _intervals(summary: Summary) -> ReportTable:
    rows: list[list[Cell]] = []
    figures = summary.as_dict()
    for key, words in published.figures(summary.score, summary.extra_metrics):
        if key in summary.intervals or key in summary.too_few:
            less = summary.differences.get(key, {})
            value = _three(figures.get(key), summary.intervals.get(key))
            rows.append([key, words, *value, *_less(less.get("local_only")), *_less(less.get("pooled"))])
    heads = ["figure", "in_words", *_with_limits(("value", "less_every_node_alone", "less_all_data_pooled"))]
    caption = (
        "Figures of the run with 95 % intervals: test rows resampled within sites. Differences are paired, this run "
        "less the other on the same resampled rows. No interval: too few events, or rows of a class, at a site."
    )
    return ReportTable("intervals", caption, heads, rows)


def _over_splits(run: RunData) -> ReportTable | None:
    shown = published.over_splits(run.splits, run.summary.score, run.summary.extra_metrics)
    if shown is None:
        return None
    rows: list[list[Cell]] = []
    for key, words in published.figures(run.summary.score, run.summary.extra_metrics):
        found = run.splits["figures"].get(key)
        if isinstance(found, dict):
            less = found.get("less", {})
            mean = [_cell(found.get("mean")), _cell(found.get("sd"))]
            rows.append([key, words, *mean, *_less(less.get("local_only")), *_less(less.get("pooled"))])
    heads = ["figure", "in_words", "mean", "sd", *_with_limits(("less_every_node_alone", "less_all_data_pooled"))]
    return ReportTable("other-splits", shown.caption, heads, rows)


def _left_out(run: RunData) -> ReportTable | None:
    shown = published.left_out(run.left_out, run.summary.extra_metrics)
    if shown is None:
        return None
    names = dict.fromkeys(name for found in run.left_out.values() for name in found.get("figures", {}))
    rows: list[list[Cell]] = []
    for site, found in run.left_out.items():
        values = [_three(found["figures"].get(name), found.get("intervals", {}).get(name)) for name in names]
        less = [_less(found.get(which, {}).get(name)) for which in ("less_alone", "less") for name in names]
        rows.append([site, _cell(found.get("rows")), *(cell for part in (*values, *less) for cell in part)])
    ends = ("less_every_node_alone", "less_pooled")
    heads = ["site", "rows", *_with_limits(names), *_with_limits(f"{name}_{end}" for end in ends for name in names)]
    return ReportTable("sites-left-out", shown.caption, heads, rows)


def _coefficients(table: Mapping[str, Any], key: str) -> ReportTable | None:
    shown = next((fit for fit in published.coefficients(table) if fit.key == key), None)
    if shown is None:
        return None
    numbers = ("low", "high", "p", "coefficient", "standard_error", "trained")
    rows: list[list[Cell]] = []
    for row in table[key].get("rows", []):
        note = f"reference: {row['left_out']}" if "left_out" in row else ""
        note = f"no finite estimate ({row['endless']}): goes with one outcome alone" if "endless" in row else note
        rows.append(
            [_cell(row.get("name")), _cell(row.get("ratio")), *(_cell(row.get(name)) for name in numbers), note]
        )
    ratio = shown.ratio.replace(" ", "_")
    heads = ["column", ratio, "low", "high", "p", "coefficient", "standard_error", "as_trained", "note"]
    return ReportTable(f"coefficients-{key.replace('_', '-')}", f"{shown.title}. {shown.caption}", heads, rows)


# ---------------------------------------------------------------- every site


def _counted(assessed: Mapping[str, Any]) -> dict[str, Any]:
    counted = assessed.get("rows")
    return counted if isinstance(counted, dict) else {}


def _flow(summary: Summary) -> ReportTable | None:
    shown = published.flow(summary.flow)
    if shown is None:
        return None
    rows: list[list[Cell]] = []
    for site, read, gone, why, *parts in shown.rows:
        read, gone, *parts = (text.replace(",", "") for text in (read, gone, *parts))
        rows.append([site, int(read), int(gone), why, *map(int, parts)])
    heads = ["site", "read", "left_out", "why", *published.PARTS]
    return ReportTable("flow", "Rows of every site, from what was read to the parts.", heads, rows)


def _cohort(assessed: Mapping[str, Any]) -> ReportTable | None:
    shown = published.cohort(assessed)
    if shown is None:
        return None
    kind, classes = assessed.get("kind"), [str(name) for name in assessed.get("classes", [])]
    heads, rows = ["site"], []
    for part in ("train", "test"):
        heads.append(f"{part}_rows")
        heads += [f"{part}_events", f"{part}_median_time"] if kind == "survival" else []
        heads += [f"{part}_{name}" for name in classes] if kind in ("classes", "labels") else []
    for node, beside in _counted(assessed).items():
        row: list[Cell] = [published.site_name(assessed, node)]
        for part in (beside.get("train", {}), beside.get("test", {})):
            row.append(_cell(part.get("rows")))
            row += [_cell(part.get("events")), _cell(part.get("median_time"))] if kind == "survival" else []
            if kind in ("classes", "labels"):
                counts = part.get(str(kind))
                row += map(_cell, counts) if isinstance(counts, list) else [None] * len(classes)
        rows.append(row)
    return ReportTable("rows-of-each-site", "Rows of every site, of each part and outcome.", heads, rows)


def _sites(assessed: Mapping[str, Any]) -> ReportTable | None:
    nodes, limits, chosen = (assessed.get(key) or {} for key in ("nodes", "intervals", "threshold"))
    if not nodes:
        return None
    metrics = [*next(iter(nodes.values())).get("", {}).get("own", {})]
    at = ("threshold", "sensitivity", "specificity")
    rows: list[list[Cell]] = []
    for node, answers in nodes.items():
        beside = _counted(assessed).get(node, {})
        for answer, result in answers.items():
            known = limits.get(node, {}).get("own", {}) if not answer else {}
            values = [_three(result["own"].get(name), known.get(name)) for name in metrics]
            picked = chosen.get(node, {}) if not answer else {}
            rows.append([
                published.site_name(assessed, node), answer or "its model", _cell(beside.get("test", {}).get("rows")),
                _cell(published.events(beside.get("test", {}))), *(cell for value in values for cell in value),
                _cell(beside.get("majority")), *(_cell(picked.get(name)) for name in at),
            ])  # fmt: skip
    heads = ["site", "answer", "rows", "events", *_with_limits(metrics), "accuracy_of_the_most_frequent_class"]
    heads += ["chosen_threshold", "sensitivity_at_it", "specificity_at_it"]
    caption = (
        "Each node's model on the node's own test rows, after the last mixing, with 95 % intervals: an AUC of two "
        "classes by DeLong, all others by resampling the rows. Sensitivity and specificity are at a probability of "
        "1/2; a chosen threshold has the largest sum of both on the node's validation rows, or its training rows where "
        "it has none."
    )
    return _without_empty(ReportTable("metrics-of-each-site", caption, heads, rows))


def _without_empty(table: ReportTable) -> ReportTable:
    """Leave out columns in which nothing was measured."""
    kept = [i for i in range(len(table.heads)) if any(row[i] is not None for row in table.rows)]
    return table._replace(heads=[table.heads[i] for i in kept], rows=[[row[i] for i in kept] for row in table.rows])


def _confusion(assessed: Mapping[str, Any]) -> ReportTable | None:
    for shown in published.confusion(assessed):
        rows: list[list[Cell]] = [[name, *counts] for name, counts in shown.rows]
        return ReportTable("confusion", shown.caption, ["true", *(f"taken_for_{name}" for name in shown.classes)], rows)
    return None


# ---------------------------------------------------------------- the run


def _events(run: RunData) -> ReportTable:
    names = ("event", "nodes", "rounds", "count", "by", "detail")
    rows = [[_cell(row[name]) for name in names] for row in page.grouped(run.events)]
    heads = ["event", "node", "round", "times", "said_by", "detail"]
    return ReportTable("events", "Events; similar ones share a row. events.jsonl has each.", heads, rows)


def _facts(summary: Summary) -> ReportTable:
    names = (
        "algorithm", "graph", "nodes", "rounds", "stopped_early", "parameters", "seconds_per_round_median",
        "seconds_total", "seconds_startup", "seconds_virtual", "bytes_sent_per_node_round", "keeps_mean",
        "mean_residual", "residue", "residue_drift", "exchanges_booked", "exchanges_voided", "consensus_distance",
    )  # fmt: skip
    table = summary.as_dict()
    rows: list[list[Cell]] = [[name, _cell(table[name])] for name in names if table[name] not in (None, "")]
    dropped: Sequence[tuple[str, object]] = [*(summary.messages_dropped or {}).items()]
    rows += [[f"messages_dropped_{reason}", _cell(count)] for reason, count in dropped]
    return ReportTable("run", "The run and its books; docs/run-directory.md says how each figure is computed.",
                 ["figure", "value"], rows)  # fmt: skip
