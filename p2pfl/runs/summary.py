"""Summarise a run from the records of its nodes: figures of the summary, rounds.jsonl, and the final models."""

from __future__ import annotations

import json
import math
import tomllib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from p2pfl import churn, tree
from p2pfl.config.experiment import Training
from p2pfl.federation.federation import Federation, model_shape
from p2pfl.learning import quadratic
from p2pfl.learning.targets import TARGETS
from p2pfl.node import model_file, records, result
from p2pfl.node.result import NodeResult
from p2pfl.reporting import run_data
from p2pfl.reporting.run_data import RoundRow, Score, Summary
from p2pfl.runs import assessment, ledger
from p2pfl.topology import matrix
from p2pfl.types import Params

Rows = Sequence[dict[str, Any]]
MIXED = ("trained", "carried")
"""Parts of a model that are mixed."""


class Collected(NamedTuple):
    """The outcome of a run: what a driver knows of its summary, and the final models, leaves by path."""

    summary: Summary
    models: Sequence[Mapping[str, np.ndarray]]
    notes: Sequence[str] = ()  # what a person should know of the graphs of its epochs
    whole: Mapping[int, Params] = MappingProxyType({})  # all parts of the final model of each node that is there
    loss: Mapping[int, float] = MappingProxyType({})  # the last training loss of each; NaN where it is not finite


def score(federation: Federation) -> Score:
    """Return what the models of a federation are measured by."""
    return score_of(federation.dataset.kind)


def score_of(kind: str) -> Score:
    """Return what models are measured by, by the kind of the task."""
    target = TARGETS[kind]
    return Score(target.key, target.score_name, target.in_percent)


def blank(federation: Federation) -> Summary:
    """Return the summary of a run of which nothing is known but what it is measured by."""
    shown = score(federation)
    return Summary(score=shown.key, score_name=shown.name, score_in_percent=shown.in_percent)


def collect(federation: Federation, out: Path, began: float | None = None, until: int | None = None) -> Collected:
    """Merge the records of the nodes of a run, and return its figures and models.

    `began`: where time is virtual, the seconds at which the first round began. `until`: the last round that counts,
    where the nodes were asked to leave then; who had finished it has reached the end.
    """
    shown, places = score(federation), directories(out)
    results = {node: ended for node, path in places.items() if (ended := result.read(path)) is not None}
    metrics = merge(out)
    liars = federation.liars
    run_data.write_rounds(out, rounds(out, metrics, shown.key, began, liars), shown.key)
    size = tree.size(tree.mixed(model_shape(federation)))
    lives = {(node, each.life) for node, each in results.items()}
    torn = sorted(node for node, each in results.items() if not each.trace_whole)
    algorithm = federation.algorithm
    books = ledger.balance(
        places, lives, size, algorithm.link, algorithm.keeps_mean, whole=not torn, sums=algorithm.whole
    )
    arrays = {node: leaf for node, leaf in leaves(out, results, until).items() if node not in liars}
    scored = [row for row in metrics if row["node"] not in liars]
    mixed = [{path: x for path, x in leaf.items() if path.split("/")[0] in MIXED} for leaf in arrays.values()]
    summary = replace(
        blank(federation),
        **scores(scored, until or federation.experiment.rounds, shown.key),
        **traffic(metrics),
        **outcome(metrics, results, federation.algorithm.link),
        **books._asdict(),
        consensus_distance=tree.consensus_distance(mixed) if mixed else None,
        epochs=max(map(len, epochs(out).values()), default=0),
        digests={str(node): each.digest for node, each in results.items()},
        rounds_skipped=skipped(federation, out),
        rounds_repeated=cost(records.read(out / "events.jsonl"), "returned"),
        rounds_alone={str(node): each.alone for node, each in results.items() if each.alone},
        diverged={str(node): each.diverged for node, each in results.items() if each.diverged and node not in liars},
    )
    plan = federation.planner()
    notes = dict.fromkeys(plan(members).note for members in memberships(out))
    if torn:
        notes[f"records of node {', '.join(map(str, torn))} were dropped: no ledger, and no replay"] = None
    whole = {node: assessment.loaded(federation, leaf, node) for node, leaf in arrays.items()}
    loss = {row["node"]: math.nan if row["train_loss"] is None else row["train_loss"] for row in metrics}
    return Collected(
        summary, mixed, [note for note in notes if note], whole, {node: loss[node] for node in whole if node in loss}
    )


def left(run: Path, until: int | None = None) -> tuple[int, ...]:
    """Return the nodes that have left in good order before the end. `until`: see `collect`."""
    results = {node: result.read(path) for node, path in directories(run).items()}
    return tuple(node for node, ended in results.items() if ended is not None and _gone(ended, until))


def _gone(ended: NodeResult, until: int | None) -> bool:
    return ended.left and (until is None or ended.round < until)


def skipped(federation: Federation, run: Path) -> dict[str, int]:
    """Return, by node, the rounds that it skipped to follow the others, but for those that it was to stand still in."""
    nodes, rounds = len(federation.graph), federation.experiment.rounds
    events = [row for row in records.read(run / "events.jsonl") if row["event"] == "skipped"]
    if not events:
        return {}
    if federation.churn:  # row["round"] is the last one before those that are skipped
        given = federation.conditions
        takes_part = churn.timeline(federation.churn, nodes, rounds, given.detection, given.waits).active
        kept = [int(takes_part[row["round"] : row["round"] + row["rounds"], row["node"]].sum()) for row in events]
        events = [{**row, "rounds": each} for row, each in zip(events, kept, strict=True)]
    return cost(events, "skipped")


def cost(events: Rows, name: str) -> dict[str, int]:
    """Return, by node, the rounds that events of this name have cost it."""
    total: Counter[str] = Counter()
    for row in events:
        if row["event"] == name:
            total[str(row["node"])] += row.get("rounds", 0)
    return {node: rounds for node, rounds in sorted(total.items(), key=lambda each: int(each[0])) if rounds}


def planned_losses(federation: Federation, until: int | None = None) -> set[int]:
    """Return the nodes that the experiment plans to be gone after round `until`, its last one unless given.

    The last that it says of them by then is that they crash; or that they join, and that is still to come.
    """
    until = federation.experiment.rounds if until is None else until
    events = sorted(federation.churn, key=lambda each: each.round)
    kinds = ("crash", "leave", "rejoin", "join")
    last = {each.node: each.event for each in events if each.event in kinds and each.round <= until}
    later = {each.node for each in events if each.event == "join"} - last.keys()
    return later | {node for node, event in last.items() if event == "crash"}


# --- records


def directories(run: Path) -> dict[int, Path]:
    """The records of each node."""
    places = {int(path.name): path for path in (run / "nodes").iterdir() if path.name.isdigit()}
    return dict(sorted(places.items()))


def own_rows(run: Path) -> tuple[int, Path] | None:
    """Return a node of a run that had rows of its own, which are not here, and its file; None: there is none."""
    places = directories(run) if (run / "nodes").is_dir() else {}
    for node, path in places.items():
        file = path / "node.toml"
        if file.is_file() and "data" in tomllib.loads(file.read_text("utf-8")):
            return node, file
    return None


def merge(run: Path) -> list[dict[str, Any]]:
    """Write metrics.jsonl and events.jsonl of the run from those of its nodes; returns the metrics in order."""
    nodes = directories(run).values()
    metrics = [row for path in nodes for row in records.read(path / "metrics.jsonl")]
    metrics.sort(key=lambda row: (row["round"], row["node"], row["life"]))
    write_lines(run / "metrics.jsonl", metrics)
    events = [row for path in nodes for row in records.read(path / "events.jsonl")]
    events += records.read(run / "launch.jsonl")
    events.sort(key=lambda row: (row["time"], row["node"]))
    write_lines(run / "events.jsonl", events)
    return metrics


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows), "utf-8")


def rounds(
    run: Path, metrics: Rows, key: str, began: float | None = None, liars: Collection[int] = ()
) -> list[RoundRow]:
    """Return one record per round. `key`: of the score; `began`: see `collect`; `liars`: have no part in scores."""
    models: dict[int, dict[int, np.ndarray]] = defaultdict(dict)
    for node, path in directories(run).items():
        for row in records.read(path / "trace.jsonl"):
            if "model" in row and node not in liars:
                models[row["round"]][node] = records.unpack(row["model"])
    by_round: dict[int, dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in metrics:  # of a round that a node has trained again the later life counts
        by_round[row["round"]][row["node"]] = row
    return [
        _round(number, list(by_round[number].values()), list(models[number].values()), key, began, liars)
        for number in sorted(by_round)
    ]


def _round(
    number: int, rows: Rows, models: list[np.ndarray], key: str, began: float | None, liars: Collection[int]
) -> RoundRow:
    scores = _known([row for row in rows if row["node"] not in liars], f"{key}_after_mixing")
    return RoundRow(
        round=number,
        alive=[row["node"] for row in rows],
        score_mean=fmean(scores) if scores else None,
        score_worst=min(scores, default=None),
        consensus_distance=tree.spread(np.stack(models)) if models else None,
        bytes_sent=sum(row["bytes_sent"] // records.span(row) for row in rows),
        seconds_median=median(row["seconds"] / records.span(row) for row in rows),
        seconds=None if began is None else round(max(row["time"] for row in rows) - began, 6),
    )


def _known(rows: Rows, name: str) -> list[float]:
    return [row[name] for row in rows if row[name] is not None]


def scores(metrics: Rows, last_round: int, key: str) -> dict[str, Any]:
    """Return means and worsts over the nodes that reached the last round."""
    rows = [row for row in metrics if row["round"] == last_round]
    pooled, own = _known(rows, f"{key}_after_mixing"), _known(rows, f"{key}_own")
    before = _known(rows, f"{key}_before_mixing")
    return {
        "score_mean": fmean(pooled) if pooled else None,
        "score_worst": min(pooled, default=None),
        "score_before_mixing_mean": fmean(before) if before else None,
        "score_own_mean": fmean(own) if own else None,
        "score_own_worst": min(own, default=None),
    }


def traffic(metrics: Rows) -> dict[str, Any]:
    """Return time and bytes of a round; the first round of a life is left out of the time."""
    first: dict[tuple[int, int], int] = {}
    for row in metrics:
        first.setdefault((row["node"], row["life"]), row["round"])
    later = (row for row in metrics if row["round"] != first[row["node"], row["life"]])
    seconds = [row["seconds"] / records.span(row) for row in later]
    return {
        "seconds_per_round_median": median(seconds) if seconds else None,
        "seconds_per_round_longest": max(seconds, default=None),
        "bytes_sent_per_node_round": sum(row["bytes_sent"] for row in metrics) / max(1, sum(map(records.span, metrics)))
        if metrics
        else None,
    }


def outcome(metrics: Rows, results: Mapping[int, NodeResult], link: str) -> dict[str, Any]:
    """Return exchanges booked and voided, and dropped messages, of the nodes that ended in good order.

    `link`: of the algorithm. An exchange is booked at both its ends, a push only where it came in.
    """
    dropped: Counter[str] = Counter()
    for each in results.values():
        dropped.update(each.dropped)
    peaks = [each.memory_peak for each in results.values() if each.memory_peak is not None]
    return {
        "exchanges_booked": sum(map(records.exchanges, metrics)) // (2 if link == "exchange" else 1),
        "exchanges_voided": sum(each.voided for each in results.values()),
        "memory_peak_per_node": max(peaks, default=None),
        "messages_dropped": dict(sorted(dropped.items())),
    }


def leaves(run: Path, results: Mapping[int, NodeResult], until: int | None = None) -> dict[int, dict[str, np.ndarray]]:
    """Return the final models of the nodes that reached the end: all leaves, by path. `until`: see `collect`."""
    places = directories(run)
    there = [node for node, each in results.items() if not _gone(each, until)]
    return {node: model_file.read(places[node] / model_file.NAME) for node in there}


def epochs(run: Path) -> dict[int, list[tuple[int, ...]]]:
    """Return the members of each epoch that a node was a part of, in order."""
    return {
        node: [tuple(row["members"]) for row in records.read(path / "trace.jsonl") if "members" in row]
        for node, path in directories(run).items()
    }


def memberships(run: Path) -> list[tuple[int, ...]]:
    """Return every set of members that was an epoch's, once."""
    return sorted({members for each in epochs(run).values() for members in each})


# --- the quadratic task


def distances(federation: Federation, models: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float | None]:
    """Return, for the source "quadratic", how far the models are from where they should be; nothing for others."""
    task, experiment = federation.task, federation.experiment
    if task is None or not models:
        return {}
    x = np.stack([np.asarray(model["trained/x"], np.float64) for model in models])
    to_optimum = quadratic.distance(x, task.optimum)
    training, table = experiment.training, experiment.algorithm
    lossy = experiment.network.loss > 0 or experiment.network.late > 0
    rate = _rate(training)
    same = len(x) == len(federation.graph) and training.node_steps is None and not experiment.churn and not table.wrap
    known = not lossy or table.name in (*quadratic.EXACT, "local")
    to_fixed = None
    if same and rate is not None and known and len(federation.schedule.neighbor) == 1 and len(x) <= 2048:
        fixed = quadratic.fixed_point(
            task, table.name, table.arguments, matrix(federation.schedule),
            rate, training.local_steps,
        )  # fmt: skip
        to_fixed = None if fixed is None else quadratic.distance(x, fixed)
    return {"distance_to_optimum": to_optimum, "distance_to_fixed_point": to_fixed}


def _rate(training: Training) -> float | None:
    """Return the learning rate of plain sgd; None of another optimizer, and of a schedule."""
    given = training.optimizer
    rate = given.get("learning_rate") if isinstance(given, dict) else None
    plain = isinstance(rate, int | float) and given == {"name": "sgd", "learning_rate": rate}
    return float(rate) if plain and rate is not None else None
