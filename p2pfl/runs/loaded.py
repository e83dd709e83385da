"""A run directory as a value for programs: figures, columns, events, models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from p2pfl.config import experiment as config
from p2pfl.config.experiment import Experiment
from p2pfl.errors import ConfigError
from p2pfl.learning.targets import TARGETS
from p2pfl.node import model_file, records, result
from p2pfl.reporting import run_data
from p2pfl.reporting.run_data import Summary
from p2pfl.runs import about, summary
from p2pfl.runs import models as models_of


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run has left in its directory, or a node that was started by hand in its own.

    Columns are arrays of one length by name: `pandas.DataFrame(run.metrics)` takes them as they are. What may be large
    is read when it is first asked for.
    """

    path: Path
    summary: Summary  # of a node by itself, what its own records say
    metrics: Mapping[str, np.ndarray]  # metrics.jsonl as columns, a row for each node and round
    rounds: Mapping[str, np.ndarray]  # rounds.jsonl as columns; of a node by itself nothing
    events: tuple[dict[str, Any], ...]  # events.jsonl
    unread: tuple[str, ...] = ()  # what could not be read, in words

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment as it was run. Raises ConfigError where the directory does not hold it."""
        return config.load(self.path / "experiment.toml")

    @cached_property
    def models(self) -> Mapping[int, dict[str, np.ndarray]]:
        """Of each node that ended in good order, its final model: arrays by path, as in "trained/inner/kernel"."""
        stacked = self.path / models_of.STACKED
        if stacked.is_file():
            arrays = model_file.read(stacked)
            there = {*models_of.nodes_of(stacked)} - {*self.summary.lost}
            return {node: {name: leaf[node] for name, leaf in arrays.items()} for node in sorted(there)}
        places = [(node, path) for node, path in _places(self.path).items() if result.read(path) is not None]
        files = {node: path / model_file.NAME for node, path in places}
        return {node: model_file.read(file) for node, file in files.items() if file.is_file()}

    @cached_property
    def split(self) -> Mapping[str, np.ndarray]:
        """split.csv as columns: part, row, node, name, line (NaN where unknown). Empty where it is missing."""
        return _table(self.path / "split.csv")

    @cached_property
    def predictions(self) -> Mapping[str, np.ndarray]:
        """predictions.csv as columns: what each node's model says of the test rows. Empty where it is missing."""
        return _table(self.path / "predictions.csv")


def load_run(path: Path | str) -> RunResult:
    """Read a run directory, of whatever driver, or the directory of a node that was started by hand.

    Args:
        path: what `p2pfl run` or `p2pfl node` has left; it may have been cut off.

    Returns:
        Summary, columns, events and models, as plain arrays.

    Raises:
        ConfigError: the directory holds no run.

    Example:
        >>> import p2pfl
        >>> p2pfl.load_run("no-such-run")
        Traceback (most recent call last):
        ...
        p2pfl.errors.ConfigError: no-such-run: holds no run; give a directory that p2pfl run or p2pfl node has written
    """
    path, unread = Path(path), list[str]()
    places = _places(path)
    if not places and not any((path / name).is_file() for name in ("summary.json", "metrics.jsonl")):
        raise ConfigError(f"{path}: holds no run; give a directory that p2pfl run or p2pfl node has written")
    whole = (path / "metrics.jsonl").is_file()  # what it merges of its nodes a run writes at its end
    metrics = run_data.columns([path] if whole else [*places.values()], "metrics.jsonl", unread)
    known = (path / "summary.json").is_file()
    return RunResult(
        path=path,
        summary=run_data.read(path).summary if known else _own(path, places),
        metrics=metrics,
        rounds=run_data.columns([path], "rounds.jsonl", unread),
        events=tuple(run_data.events([path] if whole else [*places.values()], unread)),
        unread=tuple(unread),
    )


def _places(path: Path) -> dict[int, Path]:
    """The directories of nodes: of a run, or the one that this itself is."""
    if (path / "nodes").is_dir():
        return summary.directories(path)
    own = about.read(path) or result.read(path)
    return {} if own is None else {own.node: path}


def _own(path: Path, places: Mapping[int, Path]) -> Summary:
    """Return what records say of a run that has left no summary, or of a node by itself."""
    told = next((found for place in places.values() if (found := about.read(place)) is not None), None)
    if told is not None:
        kind = next((kind for kind, target in TARGETS.items() if target.key == told.score), "classes")
        shown = summary.score_of(kind)
        known = Summary(
            format=records.FORMAT, name=told.name, nodes=told.nodes, rounds=told.rounds, parameters=told.parameters,
            keeps_mean=told.keeps_mean, score=shown.key, score_name=shown.name, score_in_percent=shown.in_percent,
        )  # fmt: skip
    else:
        known = run_data.read(path).summary
    of_nodes = [*places.values()] or [path]
    rows = [row for place in of_nodes for row in run_data.lines(place / "metrics.jsonl", [])]
    figures = summary.scores(rows, max((row["round"] for row in rows), default=0), known.score)
    if not places:
        return replace(known, **figures)
    ended = {node: each for node, place in places.items() if (each := result.read(place)) is not None}
    return replace(
        known,
        **figures,
        **summary.traffic(rows),
        **summary.outcome(rows, ended, "exchange" if told is None else told.link),
        digests={str(node): each.digest for node, each in ended.items()},
        rounds_alone={str(node): each.alone for node, each in ended.items() if each.alone},
        diverged={str(node): each.diverged for node, each in ended.items() if each.diverged},
        left=tuple(node for node, each in ended.items() if each.left),
    )


def _table(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    names = {"name": str, "class": str}  # a class may be called 1, or NA
    frame = pd.read_csv(path, dtype=names, keep_default_na=False, na_values={"line": [""]})
    return {str(name): frame[name].to_numpy() for name in frame.columns}
