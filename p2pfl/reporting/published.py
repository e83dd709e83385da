"""What a run's paper would print: intervals beside scores, who is in the data, coefficients, and plain verdicts.

From `Summary`, assessment.json and coefficients.json to texts; the page and the terminal print them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from p2pfl.reporting.run_data import DASH, Summary, measured

SHOWN = ("c_index", "auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "brier", "r2", "mae", "rmse",
         "dice_mean", "iou_mean", "psnr", "ssim", "nmse")  # fmt: skip
"""Metrics whose intervals the report gives for all sites together."""
NAMES = {
    "c_index": "Harrell's C", "auc": "AUC", "r2": "R2", "mae": "MAE", "rmse": "RMSE", "brier": "Brier score",
    "dice_mean": "Dice", "iou_mean": "Jaccard", "ece": "calibration error", "psnr": "PSNR in dB",
    "ssim": "SSIM", "nmse": "NMSE",
}  # fmt: skip
MEANS = {
    "mean": "on all test rows, mean of the nodes",
    "own_mean": "on own test rows, mean of the sites",
    "own_weighted": "on own test rows, sites weighted by {}",
}


def named(metric: str) -> str:
    """A metric in words."""
    return NAMES.get(metric, metric.replace("_", " "))


def number(value: object, digits: int | None = None) -> str:
    """A number with three digits behind the point, or so many in all; a dash where there is none."""
    known = measured(value)
    return DASH if known is None else f"{known:.3f}" if digits is None else f"{known:,.{digits}g}"


def between(value: object, interval: object, signed: bool = False, few: object = None) -> str:
    """A value with its interval in brackets, as far as they are known; `few`: on how little it rests for one.

    >>> between(0.8, [0.7, 0.9]), between(0.8, None), between(0.8, None, few={"n": 1, "of": "events"})
    ('0.800 (0.700 to 0.900)', '0.800', '0.800, too few events (n=1)')
    """
    known = measured(value)
    if known is None:
        return DASH
    form = "{:+.3f}" if signed else "{:.3f}"
    text = form.format(known)
    if isinstance(interval, list) and len(interval) == 2 and None not in map(measured, interval):
        text += f" ({form.format(interval[0])} to {form.format(interval[1])})"
    elif isinstance(few, Mapping):
        text += f", too few {few.get('of')} (n={few.get('n')})"
    return text


# ---------------------------------------------------------------- all sites together


class Compared(NamedTuple):
    """A figure of a run with its interval, and what it has more than the baselines."""

    label: str
    value: str
    alone: str
    pooled: str


def figures(score: str, extra: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return the figures over all sites that may have an interval, in order: name, words. `score`: of the run.

    `extra`: metrics of one's own, which come last.
    """
    unit = "events" if score == "concordance" else "rows"
    return [
        (f"{metric}_{end}", f"{named(metric)} {words.format(unit)}")
        for metric in (*SHOWN, *extra)
        for end, words in MEANS.items()
    ]


def compared(summary: Summary) -> list[Compared]:
    """Return the figures that have an interval, in the order of SHOWN; then those of metrics of one's own."""
    rows = []
    for key, label in figures(summary.score, summary.extra_metrics):
        if key not in summary.intervals and key not in summary.too_few:
            continue
        less = summary.differences.get(key, {})
        value = summary.metrics.get(key, summary.as_dict().get(key))
        texts = [
            between(found[0], found[1:], signed=True) if isinstance(found := less.get(which), list) else DASH
            for which in ("local_only", "pooled")
        ]
        shown = between(value, summary.intervals.get(key), few=summary.too_few.get(key))
        rows.append(Compared(label, shown, *texts))
    return rows


def told(summary: Summary) -> list[str]:
    """Return lines for below a table of results: the first score and metrics of one's own, and the verdicts."""
    first = summary.headed.score
    unit = "events" if first == "c_index" else "rows"
    lines = []
    for metric in (first, *summary.extra_metrics):
        for end, words in MEANS.items():
            key = f"{metric}_{end}"
            value, few = summary.as_dict().get(key), summary.too_few.get(key)
            if (few or key in summary.intervals) and measured(value) is not None:
                less = summary.differences.get(key, {}).get("local_only")
                more = f"; less alone {between(less[0], less[1:], signed=True)}" if isinstance(less, list) else ""
                shown = between(value, summary.intervals.get(key), few=few)
                lines.append(f"{named(metric)} {words.format(unit)}: {shown}{more}")
    return [*lines, *verdicts(summary)]


def verdicts(summary: Summary) -> list[str]:
    """Say where a run does no better than no model, or than a node by itself; a sentence each, without a full stop."""
    shown, said = summary.shown.text, []
    for where, ours, majority in (
        ("all test rows", summary.score_mean, summary.score_majority),
        ("their own test rows, mean of the sites", summary.score_own_mean, summary.score_majority_own_mean),
    ):
        if measured(ours) is not None and measured(majority) is not None and ours <= majority:  # type: ignore[operator]
            said.append(
                f"On {where} the models lose to always giving the most frequent class: {shown(ours)} against "
                f"{shown(majority)}"
            )
    worthless = {"c_index_mean": 0.5, "auc_mean": 0.5, "r2_mean": 0.0}
    for key, nothing in worthless.items():
        interval = summary.intervals.get(key)
        if isinstance(interval, list) and measured(interval[0]) is not None and interval[0] <= nothing:
            metric = named(key.removesuffix("_mean"))
            said.append(f"The interval of {metric} reaches down to {nothing:g}, which is what knowing nothing gives")
    first = summary.headed.score
    less = summary.differences.get(f"{first}_own_mean", {}).get("local_only")
    if isinstance(less, list) and measured(less[2]) is not None and less[2] < 0:
        said.append("At the sites' own test rows, nodes that learn alone do better")
    return said


# ---------------------------------------------------------------- every site


class Sites(NamedTuple):
    """Metrics of every site on its own test rows."""

    metrics: list[str]
    rows: list[tuple[str, str, list[str]]]  # (site, which model answered, a text for each metric)


def _nodes(assessed: Mapping[str, Any], key: str = "nodes") -> dict[str, Any]:
    found = assessed.get(key)
    return found if isinstance(found, dict) else {}


def site_name(assessed: Mapping[str, Any], node: str) -> str:
    """The name of a node's site."""
    return str(_nodes(assessed, "names").get(node, f"node {node}"))


def sites(assessed: Mapping[str, Any]) -> Sites | None:
    """From assessment.json: rows, events and metrics of each site, with intervals; None where it has nothing."""
    nodes = _nodes(assessed)
    if not nodes:
        return None
    metrics = [name for name in next(iter(nodes.values())).get("", {}).get("own", {}) if not name.startswith("dice_")]
    counted, limits, few = (_nodes(assessed, key) for key in ("rows", "intervals", "too_few"))
    some = any(events(each.get("test", {})) is not None for each in counted.values())
    majority = any("majority" in each for each in counted.values())
    chosen = _nodes(assessed, "threshold")
    heads = [*(["rows"] if counted else []), *(["events"] if some else [])]
    rows = []
    for node, answers in nodes.items():
        beside = counted.get(node, {})
        test = beside.get("test", {})
        head = [str(test.get("rows", DASH)), str(events(test) if events(test) is not None else DASH)][: len(heads)]
        for answer, result in answers.items():
            known = limits.get(node, {}).get("own", {}) if not answer else {}
            rare = few.get(node, {}).get("own", {}) if not answer else {}
            values = [between(result["own"].get(name), known.get(name), few=rare.get(name)) for name in metrics]
            last = [number(beside.get("majority"))] if majority else []
            if chosen:
                at = chosen.get(node, {}) if not answer else {}
                last += [number(at.get(name)) for name in ("threshold", "sensitivity", "specificity")]
            rows.append((site_name(assessed, node), answer or "its model", [*head, *values, *last]))
    tail = ["accuracy of the most frequent class"] if majority else []
    tail += ["chosen threshold", "sensitivity at it", "specificity at it"] if chosen else []
    return Sites([*heads, *map(named, metrics), *tail], rows)


def events(part: Mapping[str, Any]) -> int | None:
    """Return the events of survival, or the rows of the second of two classes."""
    if "events" in part:
        return int(part["events"])
    classes = part.get("classes", [])
    return int(classes[1]) if len(classes) == 2 else None


class FlowTable(NamedTuple):
    """Who is in the data and who is not."""

    steps: list[str]  # of all sites, from what was read to the parts
    rows: list[tuple[str, ...]]  # of each site: its name, read, left out, why, training, validation, test
    sites: list[str]
    missing: list[tuple[str, list[str]]]  # of each column with missing cells: its name, and a text for each site


PARTS = ("training", "validation", "test")


def flow(table: Mapping[str, Any]) -> FlowTable | None:
    """From the `flow` of a summary: rows read, left out and why, and missing cells, of each site; None without one."""
    sites = {str(site): each for site, each in table.items() if isinstance(each, dict)}
    if not sites:
        return None
    names = {site: site or ("no site named" if len(sites) > 1 else "all") for site in sites}
    gone: dict[str, int] = {}
    missing: dict[str, dict[str, int]] = {}
    for site, each in sites.items():
        for why, rows in (each.get("left_out") or {}).items():
            gone[why] = gone.get(why, 0) + int(rows)
        for column, cells in (each.get("missing") or {}).items():
            missing.setdefault(str(column), {})[site] = int(cells)
    counts = {name: sum(int(each.get(name) or 0) for each in sites.values()) for name in ("read", "cut", *PARTS)}
    steps = [f"{counts['read']:,} rows read", *(f"{rows:,} left out: {why}" for why, rows in gone.items())]
    steps += [f"{counts['cut']:,} cut into slices, a row each"] if counts["cut"] else []
    steps.append(", ".join(f"{counts[part]:,} {part}" for part in PARTS if counts[part]))
    rows = [(names[site], *_flow_row(each)) for site, each in sites.items()]
    if len(sites) > 1:
        rows.append(("all", *_flow_row({**counts, "left_out": gone})))
    filled = [site for site in sites if any(sites[site].get(part) for part in PARTS)]
    shares = [
        (
            column,
            [_share(cells.get(site, 0), sum(int(sites[site].get(part) or 0) for part in PARTS)) for site in filled],
        )
        for column, cells in missing.items()
    ]
    return FlowTable(steps, rows, [names[site] for site in filled], shares)


def _flow_row(each: Mapping[str, Any]) -> tuple[str, ...]:
    gone = each.get("left_out") or {}
    why = ", ".join(f"{reason} ({rows:,})" if len(gone) > 1 else str(reason) for reason, rows in gone.items())
    read, *parts = (f"{int(each.get(name) or 0):,}" for name in ("read", *PARTS))
    return read, f"{sum(gone.values()):,}", why, *parts


def _share(count: int, of: int) -> str:
    return f"{count:,} ({100 * count / of:.0f} %)" if count and of else f"{count:,}"


class Cohort(NamedTuple):
    """Rows of every site: what papers call table 1."""

    heads: list[str]
    rows: list[tuple[str, list[str]]]


def cohort(assessed: Mapping[str, Any]) -> Cohort | None:
    """From assessment.json: rows of each part and outcome at each site, and of all; None where it does not say."""
    counted = _nodes(assessed, "rows")
    if not counted:
        return None
    classes, kind = [str(name) for name in assessed.get("classes", [])], assessed.get("kind")
    heads: list[str] = []
    pick: list[tuple[str, str, int | None]] = []
    for part in ("train", "test"):
        heads.append(f"{part}: rows")
        pick.append((part, "rows", None))
        if kind == "survival":
            heads += [f"{part}: events", f"{part}: median time"]
            pick += [(part, "events", None), (part, "median_time", None)]
        elif kind in ("classes", "labels") and len(classes) <= 10:
            heads += [f"{part}: {name}" for name in classes]
            pick += [(part, str(kind), i) for i in range(len(classes))]
    rows, total = [], [0] * len(pick)
    for node, beside in counted.items():
        values = []
        for at, (part, key, index) in enumerate(pick):
            value = beside.get(part, {}).get(key)
            value = value[index] if index is not None and isinstance(value, list) else value
            total[at] += value if isinstance(value, int) else 0
            rows_of = beside.get(part, {}).get("rows") or 0
            share = f" ({100 * value / rows_of:.0f} %)" if key not in ("rows", "median_time") and rows_of else ""
            values.append(
                DASH if value is None else f"{value:,.0f}{share}" if isinstance(value, int) else f"{value:,.6g}"
            )
        rows.append((site_name(assessed, node), values))
    rows.append(("all", [DASH if key == "median_time" else f"{total[at]:,}" for at, (_, key, _) in enumerate(pick)]))
    return Cohort(heads, rows)


class Confusion(NamedTuple):
    """Rows of each class, by the class that they are taken for."""

    caption: str
    classes: list[str]
    rows: list[tuple[str, list[int]]]


def confusion(assessed: Mapping[str, Any]) -> list[Confusion]:
    """From assessment.json: the confusion matrix of all sites added up, each model on its own site's test rows."""
    tables = [*_nodes(assessed, "confusion").values()]
    classes = [str(name) for name in assessed.get("classes", [])]
    if not tables:
        return []
    added = [[sum(table[i][j] for table in tables) for j in range(len(classes))] for i in range(len(classes))]
    caption = (
        "Confusion matrix: each site's own test rows by the site's model, all sites added up; assessment.json has each."
    )
    return [Confusion(caption, classes, list(zip(classes, added, strict=True)))]


# ---------------------------------------------------------------- learned again


class Learned(NamedTuple):
    """A table of what came of learning again."""

    caption: str
    heads: list[str]
    rows: list[list[str]]


def over_splits(table: Mapping[str, Any], score: str, extra: Sequence[str] = ()) -> Learned | None:
    """From splits.json: figures over other splits; `score`: of the run, whose name says how sites are weighted.

    `extra`: metrics of one's own.
    """
    known, rows = table.get("figures") or {}, []
    for key, label in figures(score, extra):
        found = known.get(key)
        if not isinstance(found, dict):
            continue
        less = [found.get("less", {}).get(which) for which in ("local_only", "pooled")]
        texts = [between(each[0], each[1:], signed=True) if isinstance(each, list) else DASH for each in less]
        spread = f"{number(found.get('mean'))} \N{PLUS-MINUS SIGN} {number(found.get('sd'))}"
        rows.append([label, spread, *texts])
    caption = (
        f"All learned again on {table.get('splits')} other splits of the rows, with other seeds, simulated: mean and "
        "standard deviation. Differences are paired by split, with 95 % intervals by the corrected resampled t-test of "
        "Nadeau and Bengio (2003)."
    )
    heads = ["", "this run", "less every node alone", "less all data pooled"]
    return Learned(caption, heads, rows) if rows else None


def left_out(table: Mapping[str, Any], extra: Sequence[str] = ()) -> Learned | None:
    """From left_out.json: each site's rows by models that learned without it. `extra`: metrics of one's own."""
    metrics = [metric for metric in SHOWN if any(metric in found.get("figures", {}) for found in table.values())][:6]
    metrics += extra if metrics else ()
    rows = []
    for site, found in table.items():
        limits, few = found.get("intervals", {}), found.get("too_few", {})
        values = [between(found["figures"].get(m), limits.get(m), few=few.get(m)) for m in metrics]
        less = [found.get(which, {}).get(metrics[0]) if metrics else None for which in ("less_alone", "less")]
        more = [between(each[0], each[1:], signed=True) if isinstance(each, list) else DASH for each in less]
        rows.append([str(site), f"{found.get('rows'):,}", *values, *more])
    caption = (
        "Each site left out: all its rows, by models that learned at the other sites alone; the mean over the nodes. "
        "Simulated; the last columns are against the mean over models that each learned at one of the other sites, "
        "and against one model on all their data pooled."
    )
    first = named(metrics[0]) if metrics else ""
    heads = ["site", "rows", *map(named, metrics), f"{first} less every node alone", f"{first} less pooled"]
    return Learned(caption, heads, rows) if rows else None


def repeated_told(splits: Mapping[str, Any], left: Mapping[str, Any], score: str) -> list[str]:
    """Return lines for the terminal: of splits.json and left_out.json the first metric, of at most ten sites."""
    lines, over, out = [], over_splits(splits, score), left_out(left)
    if over is not None:
        metric = next(named(each) for each in SHOWN if any(row[0].startswith(f"{named(each)} ") for row in over.rows))
        for label, spread, alone, pooled in over.rows:
            if label.startswith(f"{metric} "):
                lines.append(
                    f"{splits.get('splits')} other splits: {label}: {spread}; less alone {alone}; less pooled {pooled}"
                )
    if out is not None:
        lines += [
            f"left out {row[0]} ({row[1]} rows): {out.heads[2]} {row[2]}, {row[-2]} less alone, {row[-1]} less pooled"
            for row in out.rows
        ]
        lines = lines[: len(lines) - len(out.rows) + 10]
    return lines


# ---------------------------------------------------------------- coefficients

TITLES = {
    "logistic": "Logistic regression",
    "stratified_by_site": "Cox model stratified by site",
    "one_baseline_hazard": "Cox model with one baseline hazard for all sites",
}
_WHAT = {
    "logistic": "",
    "stratified_by_site": " Risk sets lie within a site, as in training: every site has a baseline hazard of its own.",
    "one_baseline_hazard": " Risk sets go across sites, by sums at the event times of all: not what was trained.",
}


class Fit(NamedTuple):
    """A table of coefficients."""

    key: str
    title: str
    ratio: str
    caption: str
    rows: list[dict[str, str]]


def coefficients(table: Mapping[str, Any]) -> list[Fit]:
    """From coefficients.json, the fits that are in it."""
    fits = []
    for key, title in TITLES.items():
        fit = table.get(key)
        if isinstance(fit, dict):
            rows = [_coefficient(row) for row in fit.get("rows", [])]
            fits.append(Fit(key, title, str(table.get("ratio", "ratio")), _caption(key, table, fit), rows))
    return fits


def _caption(key: str, table: Mapping[str, Any], fit: Mapping[str, Any]) -> str:
    text = (
        f"Maximum likelihood over {table.get('rows'):,} training rows of {table.get('sites')} sites with "
        f"{table.get('events'):,} of {table.get('outcome')!r}, by sums of the sites: {fit.get('steps')} steps, in each "
        f"the score and the observed information. A ratio is for {table.get('unit')}. As trained: the mean of the "
        "coefficients of the run's models; the run has converged where it is the same."
    )
    tested = fit.get("tested") or {}
    metric = "c_index" if "c_index" in tested else "auc"
    if measured(tested.get(metric)) is not None:
        text += f" On all test rows this fit has {named(metric)} {number(tested[metric])}."
    penalty = table.get("penalty") or {}
    if key != "one_baseline_hazard" and measured(penalty.get("penalty")) is not None:
        reached = penalty.get("tested", {}).get(metric)
        line = f'{{ name = "ridge", strength = {penalty["strength"]:.3g} }}'
        text += (
            f" Of the ridge penalties tried, cross-validation over the sites' own folds chooses {penalty['penalty']:g} "
            f"on all rows, as by the objective {line}; {named(metric)} is then {number(reached)}."
        )
    return text + _WHAT[key]


def _coefficient(row: Mapping[str, Any]) -> dict[str, str]:
    name, trained = str(row.get("name")), number(row.get("trained"))
    empty = dict.fromkeys(("interval", "p", "coefficient", "error"), DASH)
    if "left_out" in row:
        return {**empty, "name": name, "ratio": "reference", "interval": str(row["left_out"]), "trained": trained}
    if "endless" in row:
        why = "goes with one outcome alone"
        return {**empty, "name": name, "ratio": "no finite one", "interval": why, "trained": trained}
    p = measured(row.get("p"))
    return {
        "name": name, "trained": trained, "ratio": number(row.get("ratio")),
        "interval": f"{number(row.get('low'))} to {number(row.get('high'))}",
        "p": DASH if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}",
        "coefficient": number(row.get("coefficient")), "error": number(row.get("standard_error")),
    }  # fmt: skip
