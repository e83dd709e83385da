"""What can be looked up after a run: which row was in which part, and what the models said of the test rows."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from p2pfl.data import Dataset, Samples
from p2pfl.data.partition import names
from p2pfl.federation.federation import Federation
from p2pfl.learning.metrics import shared
from p2pfl.learning.targets import TARGETS
from p2pfl.runs import cases

MOST = 2_000_000
"""Numbers of predictions that are written at most; of more, those of each node on its own rows; then none."""


def write(federation: Federation, outputs: Mapping[int, np.ndarray], out: Path) -> None:
    """Write split.csv and predictions.csv, of a segmentation dice.csv instead.

    split.csv has a line for each row: its part, its number there, its node, and where the source says so the line of
    its file; public rows are a part of their own, and no node's. predictions.csv has one for each test row and node:
    the node whose model answers, the row's number among the test rows, the node whose row it is, what is true, and what
    the model says (of classes and labels, probabilities). `outputs`: node -> [N, ...] of all test rows, or of the
    node's own where nobody has all.
    """
    dataset, parts = federation.dataset, federation.partition
    called = names(parts, dataset)
    with (out / "split.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("part", "row", "node", "name", "line"))
        for part, samples, of_nodes in (("train", dataset.train, parts.train), ("test", dataset.test, parts.test)):
            line = [""] * len(samples.y) if samples.line is None else samples.line.tolist()
            for node, own in enumerate(of_nodes):
                lines.writerows((part, row, node, called[node], line[row]) for row in own.tolist())
        public, known = federation.data.public, federation.data.public_line
        if public is not None:
            line = [""] * len(public) if known is None else known.tolist()
            lines.writerows(("public", row, "", "", at) for row, at in enumerate(line))
    if dataset.kind == "segmentation":
        _write_dice(federation, outputs, out)
    if dataset.kind in ("segmentation", "reconstruction"):
        return
    whole = sum(each.size for each in outputs.values())
    own_only = federation.pooled and whole > MOST
    if own_only and whole / len(outputs) > MOST:
        return
    with (out / "predictions.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        truth, said = _columns(dataset)
        lines.writerow(("node", "row", "row_of", *truth, *said))
        lines.writerows(_rows(federation, outputs, own_only))


def _write_dice(federation: Federation, overlaps: Mapping[int, np.ndarray], out: Path) -> None:
    """Write dice.csv: a line for each node, case and class. `overlaps`: node -> of `cases.overlaps`."""
    dataset, parts, of = federation.dataset, federation.partition, cases.of_rows(federation.dataset)
    owner = np.full(int(of.max(initial=-1)) + 1, -1)
    for node, own in enumerate(parts.test):
        owner[of[own]] = node
    with (out / "dice.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("node", "case", "case_of", "class", "dice", "jaccard"))
        for node, found in overlaps.items():
            tested = np.arange(len(owner)) if federation.pooled else np.unique(of[parts.test[node]])
            dice, jaccard = shared(found)
            for place, case in enumerate(tested.tolist()):
                for index, name in enumerate(dataset.classes[1:]):
                    values = [float(f"{each[index, place]:.7g}") for each in (dice, jaccard)]
                    cells = ["" if value != value else value for value in values]
                    lines.writerow((node, case, int(owner[case]), name, *cells))


def said_of(kind: str, classes: Sequence[str]) -> list[str]:
    """The columns of what a model says of a row, an output each."""
    head = "predicted_" if kind == "regression" else "p_"
    return ["log_risk"] if kind == "survival" else [f"{head}{name}" for name in classes]


def _columns(dataset: Dataset) -> tuple[list[str], list[str]]:
    truth = {"survival": ["time", "event"], "classes": ["class"]}
    return truth.get(dataset.kind, [str(name) for name in dataset.classes]), said_of(dataset.kind, dataset.classes)


def _rows(federation: Federation, outputs: Mapping[int, np.ndarray], own_only: bool) -> Iterator[tuple[object, ...]]:
    dataset, parts = federation.dataset, federation.partition
    test: Samples = dataset.test
    owner = np.full(len(test.y), -1)
    for node, own in enumerate(parts.test):
        owner[own] = node
    for node, raw in outputs.items():
        said = np.asarray(TARGETS[dataset.kind].answer(raw), np.float64)
        own = parts.test[node]
        tested = np.arange(len(test.y)) if federation.pooled else own
        for row, answer in zip(tested, said, strict=True):
            if own_only and owner[row] != node:
                continue
            y = test.y[row]
            true = [dataset.classes[y]] if dataset.kind == "classes" else y.tolist()
            yield node, int(row), int(owner[row]), *true, *(float(f"{value:.7g}") for value in answer)
