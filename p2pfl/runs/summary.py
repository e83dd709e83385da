"""What came of a run, from its records: the figures of summary.json and the series of rounds.jsonl."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import safetensors.numpy

from p2pfl.node import records
from p2pfl.tree import consensus_distance

Rows = Sequence[dict[str, Any]]
MIXED = ("trained", "carried")
"""Parts of a model that are mixed."""


def directories(run: Path) -> dict[int, Path]:
    """The records of each node."""
    found = {int(path.name): path for path in (run / "nodes").iterdir() if path.name.isdigit()}
    return dict(sorted(found.items()))


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


def rounds(run: Path, metrics: Rows) -> list[dict[str, Any]]:
    """One record per round; also written to rounds.jsonl."""
    models: dict[int, dict[int, np.ndarray]] = defaultdict(dict)
    for node, path in directories(run).items():
        for row in records.read(path / "trace.jsonl"):
            if "model" in row:
                models[row["round"]][node] = records.unpack(row["model"])
    by_round: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in metrics:
        by_round[row["round"]].append(row)
    rows = [_round(number, by_round[number], list(models[number].values())) for number in sorted(by_round)]
    write_lines(run / "rounds.jsonl", rows)
    return rows


def _round(number: int, rows: Rows, models: list[np.ndarray]) -> dict[str, Any]:
    accuracy = [row["accuracy_after_mixing"] for row in rows if row["accuracy_after_mixing"] is not None]
    distance = None
    if models:
        stacked = np.stack(models)
        distance = float(((stacked - stacked.mean(axis=0)) ** 2).sum(axis=1).mean())
    return {
        "round": number,
        "alive": [row["node"] for row in rows],
        "accuracy_mean": fmean(accuracy) if accuracy else None,
        "accuracy_worst": min(accuracy, default=None),
        "consensus_distance": distance,
        "bytes_sent": sum(row["bytes_sent"] for row in rows),
        "seconds_median": median(row["seconds"] for row in rows),
    }


def final(metrics: Rows, last_round: int) -> list[dict[str, Any]]:
    """The last record of every node that reached the last round."""
    return [row for row in metrics if row["round"] == last_round]


def accuracies(metrics: Rows, last_round: int) -> dict[str, float | None]:
    """Mean and worst over the nodes that reached the last round."""
    rows = final(metrics, last_round)
    pooled = [row["accuracy_after_mixing"] for row in rows if row["accuracy_after_mixing"] is not None]
    before = [row["accuracy_before_mixing"] for row in rows if row["accuracy_before_mixing"] is not None]
    own = [row["accuracy_own"] for row in rows if row["accuracy_own"] is not None]
    return {
        "accuracy_mean": fmean(pooled) if pooled else None,
        "accuracy_worst": min(pooled, default=None),
        "accuracy_before_mixing_mean": fmean(before) if before else None,
        "accuracy_own_mean": fmean(own) if own else None,
        "accuracy_own_worst": min(own, default=None),
    }


def traffic(metrics: Rows) -> dict[str, float | None]:
    """Time and bytes of a round; the first round of a life is left out of the time."""
    first: dict[tuple[int, int], int] = {}
    for row in metrics:
        first.setdefault((row["node"], row["life"]), row["round"])
    seconds = [row["seconds"] for row in metrics if row["round"] != first[row["node"], row["life"]]]
    return {
        "seconds_per_round_median": median(seconds) if seconds else None,
        "seconds_per_round_longest": max(seconds, default=None),
        "bytes_sent_per_node_round": fmean(row["bytes_sent"] for row in metrics) if metrics else None,
    }


def leaves(run: Path) -> dict[int, dict[str, np.ndarray]]:
    """The final models of the nodes that reached the end: all leaves, by path."""
    found = {}
    for node, path in directories(run).items():
        if (path / "result.json").exists() and not json.loads((path / "result.json").read_text("utf-8"))["left"]:
            found[node] = safetensors.numpy.load_file(path / "model.safetensors")
    return found


def models(run: Path) -> list[dict[str, np.ndarray]]:
    """Of these, what is mixed."""
    return [
        {name: leaf for name, leaf in model.items() if name.split("/")[0] in MIXED} for model in leaves(run).values()
    ]


def left(run: Path) -> list[int]:
    """Nodes that have left in good order before the end."""
    places = {node: path / "result.json" for node, path in directories(run).items()}
    return [node for node, path in places.items() if path.exists() and json.loads(path.read_text("utf-8"))["left"]]


def epochs(run: Path) -> dict[int, list[tuple[int, ...]]]:
    """The members of each epoch that a node was a part of, in order."""
    return {
        node: [tuple(row["members"]) for row in records.read(path / "trace.jsonl") if "members" in row]
        for node, path in directories(run).items()
    }


def memberships(run: Path) -> list[tuple[int, ...]]:
    """Every set of members that was an epoch's, once."""
    return sorted({members for found in epochs(run).values() for members in found})


def outcome(run: Path, link: str) -> dict[str, Any]:
    """Of the nodes that ended in good order: exchanges booked and voided, dropped messages, consensus distance.

    `link`: of the algorithm. An exchange is booked at both its ends, a push only where it came in.
    """
    dropped: Counter[str] = Counter()
    ended, voided, peaks = models(run), 0, []
    for path in directories(run).values():
        if not (path / "result.json").exists():
            continue
        result = json.loads((path / "result.json").read_text("utf-8"))
        dropped.update(result["dropped"])
        voided += result["voided"]
        if "memory_peak" in result:
            peaks.append(result["memory_peak"])
    metrics = [row for path in directories(run).values() for row in records.read(path / "metrics.jsonl")]
    return {
        "consensus_distance": consensus_distance(ended) if ended else None,
        "exchanges_booked": sum(len(row["arrived"]) for row in metrics) // (2 if link == "exchange" else 1),
        "exchanges_voided": voided,
        "epochs": max(map(len, epochs(run).values()), default=0),
        "memory_peak_per_node": max(peaks, default=None),
        "messages_dropped": dict(sorted(dropped.items())),
    }
