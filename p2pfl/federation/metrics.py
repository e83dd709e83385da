"""Metrics of one's own: functions that [evaluation] names, beside all metrics of the kind of task."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from p2pfl.check import unaccepted
from p2pfl.config.experiment import Experiment, Metric
from p2pfl.data import Dataset
from p2pfl.errors import ConfigError
from p2pfl.federation.plugins import FAULTS, chosen
from p2pfl.learning import flax, metrics
from p2pfl.learning.targets import TARGETS

ROWS = 256
"""Rows that a metric is tried on, at most; ..."""
NUMBERS = 1 << 22
"""... and outputs of all these rows."""
KNOWN = frozenset(
    name for kind in TARGETS for name in metrics.names(kind, ("no", "yes") if kind == "classes" else ("one",))
)
"""Metrics of all kinds of tasks."""
TAKEN = KNOWN | {target.key for target in TARGETS.values()} | {"train_loss", "score"}
"""What a summary calls something else."""


class OwnMetric(NamedTuple):
    """A metric of one's own."""

    label: str  # what it is called in files
    lower: bool  # less is better
    function: Callable[[np.ndarray, np.ndarray], object]  # (outputs [N, ...] raw, y [N, ...]) -> a number or None

    def of(self, outputs: np.ndarray, y: np.ndarray) -> float | None:
        """Return its value; None where it is not defined: no rows, outputs that are not finite, or the function fails.

        What it warns of is not told: in resampled rows it may well be undefined.
        """
        if not len(y) or not np.isfinite(outputs).all():
            return None
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                value = self.function(outputs, y)
            except FAULTS:
                return None
        return _number(value)


def label(table: Metric) -> str:
    """What a metric is called in files."""
    return table.label or table.name.rpartition(":")[2]


def resolve_metrics(experiment: Experiment, dataset: Dataset) -> tuple[OwnMetric, ...]:
    """The metrics that [evaluation] names, tried on rows of the data. Raises ConfigError."""
    tables = experiment.evaluation.extra_metrics
    if tables and not experiment.evaluation.metrics:
        raise ConfigError("evaluation.extra_metrics: metrics = false computes none; leave one of the two out")
    dtype = experiment.training.dtype
    made = [_made(table, f"evaluation.extra_metrics[{i}]", dataset, dtype) for i, table in enumerate(tables)]
    labels = [each.label for each in made]
    twice = next((each for each in labels if labels.count(each) > 1), None)
    if twice is not None:
        raise ConfigError(f"evaluation.extra_metrics: two are called {twice!r}; give one of them another label")
    return tuple(made)


def _made(table: Metric, where: str, dataset: Dataset, dtype: str) -> OwnMetric:
    name, called = f"{where}.name={table.name!r}", label(table)
    if not re.fullmatch(r"[A-Za-z]\w*", called):
        raise ConfigError(f"{where}.label={called!r}: must be letters, digits and '_', and begin with a letter")
    if called in TAKEN:
        raise ConfigError(f"{where}: {called!r} is what a summary calls something else; give another label")
    if called.endswith(("_own", "_worst", "_mean", "_weighted", "_local_only", "_pooled")):
        raise ConfigError(f"{where}.label={called!r}: files put such an ending behind it; give another label")
    function = chosen(table.name, f"{where}.name", {}, "p2pfl.metrics")
    if wrong := unaccepted(function, table.arguments, 2):
        raise ConfigError(f"{where}.arguments.{wrong[0]}: no such argument; {wrong[1]}")
    bound = partial(function, **table.arguments)
    samples = dataset.test if len(dataset.test.y) else dataset.train
    row = TARGETS[dataset.kind].output(dataset.train.x.shape[1:], len(dataset.classes))
    y = samples.y[_spread(samples.y, dataset.kind, max(1, min(ROWS, NUMBERS // max(1, math.prod(row)))))]
    outputs = np.random.default_rng(0).normal(size=(len(y), *row)).astype(dtype)
    try:
        value = bound(outputs, y)
    except FAULTS as error:
        raise ConfigError(f"{name}: failed with {type(error).__name__}: {flax.reason(error)}") from error
    if value is not None and not _is_number(value):
        raise ConfigError(
            f"{name}: returned a {type(value).__name__} for outputs {[*outputs.shape]} and y {[*y.shape]}; must be one "
            "number, or None where it is not defined"
        )
    return OwnMetric(called, table.better == "lower", bound)


def _spread(y: np.ndarray, kind: str, most: int) -> np.ndarray:
    """Places of rows, at most so many, in which all classes are as they are among all."""
    order: Sequence[int] | np.ndarray = np.argsort(y, kind="stable") if kind == "classes" else np.arange(len(y))
    return np.asarray(order)[np.unique(np.linspace(0, len(y) - 1, min(most, len(y))).astype(np.int64))]


def _is_number(value: object) -> bool:
    plain = isinstance(value, int | float | np.number) and not isinstance(value, complex | np.complexfloating)
    return plain or (getattr(value, "shape", None) == () and getattr(value, "dtype", np.dtype("O")).kind in "iuf")


def _number(value: object) -> float | None:
    """A finite number, or None."""
    if value is None or not _is_number(value):
        return None
    number = float(value)  # type: ignore[arg-type]
    return number if math.isfinite(number) else None
