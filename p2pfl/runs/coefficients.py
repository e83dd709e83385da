"""Coefficients of a linear model as a paper gives them: ratios with standard errors and intervals, over all sites.

The maximum of the likelihood of all training rows, and its observed information, are found by Newton's method on sums
that every site adds up over its own rows (p2pfl.learning.likelihood): no row is needed, and the result is that of the
rows pooled. Whoever has run the nodes adds the sums after the run. Beside each coefficient stands what the run has
trained: it has converged where both agree. Of two classes and of survival, the latter stratified by site as it is
trained, and with one baseline hazard for all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from p2pfl.config.data import CsvData
from p2pfl.federation.federation import Federation
from p2pfl.learning import intervals, metrics
from p2pfl.learning.likelihood import (
    CoxRows,
    Likelihood,
    LogisticRows,
    Maximum,
    OneStratum,
    cross_validated,
    maximum,
    penalized,
)  # fmt: skip
from p2pfl.learning.risk_sets import Baseline
from p2pfl.methods.objectives.medisecfed import NAME as TELLS
from p2pfl.types import Params

INTERCEPT = "(intercept)"
MOST = 500
"""Columns of which coefficients are given."""


class Scale(NamedTuple):
    """The columns in units of their standard deviation over all training rows, for the arithmetic."""

    mean: np.ndarray  # [F], of what is known
    sd: np.ndarray  # [F]; 1 for a constant

    def of(self, x: np.ndarray) -> np.ndarray:
        """Rows in these units [N, F]; what is missing is the mean, as the nodes fill it in."""
        scaled: np.ndarray = (x.astype(np.float64) - self.mean) / self.sd
        return np.where(np.isnan(scaled), 0, scaled)


def asked(federation: Federation) -> bool:
    """Return whether a federation learns a linear model that has a table of coefficients."""
    experiment, dataset = federation.experiment, federation.dataset
    told = any(each.get("name") == TELLS for each in experiment.training.objective)  # then what is shared is no model
    unlike = told or bool(experiment.other_model)
    linear = experiment.model is not None and experiment.model.name == "logistic" and not unlike
    flat = dataset.train.x.ndim == 2 and dataset.train.x.shape[1] <= MOST and not dataset.picture
    known = dataset.kind == "survival" or (dataset.kind == "classes" and len(dataset.classes) == 2)
    return linear and flat and known


def write(federation: Federation, models: Mapping[int, Params], out: Path) -> tuple[str, ...]:
    """Write coefficients.json, for the models that have such a table; returns what a person should know of it."""
    if not asked(federation) or not federation.pooled:
        return ()
    dataset = federation.dataset
    sites = [rows for rows in federation.partition.train if len(rows)]
    scale = _scale(dataset.train.x)
    trained = [_trained(federation, model, scale) for model in models.values()]
    table: dict[str, Any] = {
        "kind": dataset.kind,
        "outcome": "event" if dataset.kind == "survival" else dataset.classes[1],
        "ratio": "hazard ratio" if dataset.kind == "survival" else "odds ratio",
        "unit": unit(federation),
        "rows": len(dataset.train.y),
        "events": _events(dataset.train.y, dataset.kind),
        "sites": len(sites),
    }
    notes = []
    for name, made in _fits(federation, sites, scale).items():
        found = maximum(made, len(_names(federation)))
        table[name] = fit(federation, found, scale, trained)
        if isinstance(made[0], OneStratum):
            table[name]["baseline"] = baseline(made[0].baseline(found.beta))
        if name in ("logistic", "stratified_by_site"):
            table["penalty"] = _penalty(federation, sites, scale)
        endless = [each["name"] for each in table[name]["rows"] if "endless" in each]
        if endless:
            notes.append(
                f"coefficients, {name.replace('_', ' ')}: no finite estimate for {', '.join(endless)}: a value of "
                "the column goes with one outcome alone; leave it out, or merge rare values"
            )
    (out / "coefficients.json").write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    return tuple(notes)


FOLDS, GRID = 5, (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Folds of a cross-validation, and what it tries: penalties of the sum over all training rows."""
MUCH = 2e9
"""Training rows times columns squared up to which a penalty is looked for."""
_PURPOSE = 0xF01D


def _penalty(federation: Federation, sites: Sequence[np.ndarray], scale: Scale) -> dict[str, Any]:
    """The ridge penalty that cross-validation chooses, on the inputs as the model sees them; {} for much data.

    Every site deals its own rows into folds, those with an event apart. `strength`: for the objective "ridge", whose
    loss is a mean over rows.
    """
    train = federation.dataset.train
    many, columns = len(train.y), len(_names(federation))
    if many * columns**2 > MUCH:
        return {}
    seen = scale if federation.experiment.statistics.normalize else scale._replace(sd=np.ones_like(scale.sd))
    outcome = train.y[:, 1] > 0 if federation.dataset.kind == "survival" else train.y == 1
    rng = np.random.default_rng([federation.experiment.seed, _PURPOSE])
    fold = np.zeros(many, np.int64)
    for rows in sites:
        for part in (rows[outcome[rows]], rows[~outcome[rows]]):
            fold[rng.permutation(part)] = np.arange(len(part)) % FOLDS
    key = "logistic" if federation.dataset.kind == "classes" else "stratified_by_site"
    whole = _fits(federation, sites, seen)[key]
    folds = []
    for k in range(FOLDS):
        left = [rest for rows in sites if len(rest := rows[fold[rows] != k])]
        folds.append((_fits(federation, left, seen)[key], whole))
    on = np.array([float(name != INTERCEPT) for name in _names(federation)])
    tried = [(each, cross_validated(folds, each * on)) for each in GRID]
    known = [(value, each) for each, value in tried if value is not None]
    if not known:
        return {}
    best = max(known)[1]
    beta = penalized(whole, best * on)
    return {
        "penalty": best,
        "strength": best / many,
        "tried": [{"penalty": each, "log_likelihood": value} for each, value in tried],
        "tested": {} if beta is None else _tested(federation, beta, seen),
    }


def _events(y: np.ndarray, kind: str) -> int:
    return int((y[:, 1] > 0).sum()) if kind == "survival" else int((y == 1).sum())


def _names(federation: Federation) -> list[str]:
    dataset = federation.dataset
    names = [*dataset.features] or [f"x{i}" for i in range(dataset.train.x.shape[1])]
    return names if dataset.kind == "survival" else [INTERCEPT, *names]


def unit(federation: Federation) -> str:
    """Return in words what a ratio is for."""
    data = federation.experiment.data
    if not isinstance(data, CsvData) or data.standardize == "none":
        return "a unit of the column"
    whose = "all sites" if data.standardize == "pooled" else "the row's own site"
    return f"a standard deviation of the training rows of {whose}"


def _scale(x: np.ndarray) -> Scale:
    wide = np.ma.masked_invalid(x.astype(np.float64))
    sd, reach = (np.ma.filled(part, 0.0) for part in (wide.std(axis=0), np.ma.ptp(wide, axis=0)))
    return Scale(np.ma.filled(wide.mean(axis=0), 0.0), np.where(reach > 0, sd, 1.0))


def _fits(federation: Federation, sites: Sequence[np.ndarray], scale: Scale) -> dict[str, Sequence[Likelihood]]:
    """The likelihoods whose maximum is asked for, by name: of each, what the sites add."""
    train = federation.dataset.train
    x = scale.of(train.x)
    if federation.dataset.kind == "classes":
        one = np.column_stack([np.ones(len(x)), x])
        return {"logistic": [LogisticRows(one[rows], train.y[rows].astype(np.float64)) for rows in sites]}
    cox = [CoxRows(x[rows], train.y[rows, 0].astype(np.float64), train.y[rows, 1] > 0) for rows in sites]
    return {"stratified_by_site": cox, "one_baseline_hazard": [OneStratum(tuple(cox))]}


def fit(federation: Federation, found: Maximum, scale: Scale, trained: list[np.ndarray]) -> dict[str, Any]:
    """The table of one fit, per unit of each column."""
    names, first = _names(federation), int(federation.dataset.kind == "classes")
    to_units = np.diag(np.concatenate([np.ones(first), 1 / scale.sd]))
    if first:
        to_units[0, 1:] = -scale.mean / scale.sd
    beta = to_units @ found.beta
    inner = np.where(np.isfinite(found.covariance), found.covariance, 0)
    error = np.sqrt(np.diag(to_units @ inner @ to_units.T))
    seen = [to_units @ each for each in trained if np.isfinite(each).all()]
    half = float(stats.norm.ppf((1 + intervals.LEVEL) / 2))
    rows = []
    for i, name in enumerate(names):
        row: dict[str, Any] = {"name": name, "trained": fmean(float(each[i]) for each in seen) if seen else None}
        if not found.kept[i]:
            row["left_out"] = "a combination of the columns before it"
        elif not found.finite[i]:
            row["endless"] = "up" if beta[i] > 0 else "down"
        elif found.converged:
            z = float(beta[i] / error[i])
            row |= {
                "coefficient": float(beta[i]),
                "standard_error": float(error[i]),
                "ratio": float(np.exp(beta[i])),
                "low": float(np.exp(beta[i] - half * error[i])),
                "high": float(np.exp(beta[i] + half * error[i])),
                "p": float(2 * stats.norm.sf(abs(z))),
            }
        rows.append(row)
    table = {
        "converged": found.converged,
        "steps": found.steps,
        "log_likelihood": found.likelihood,
        "numbers_of_a_site": found.steps * (1 + len(names) + len(names) * (len(names) + 1) // 2),
        "rows": rows,
    }
    if found.converged and federation.pooled:
        table["tested"] = _tested(federation, found.beta, scale)
    return table


def baseline(hazard: Baseline) -> dict[str, Any]:
    """A baseline hazard as coefficients.json has it: of a patient with the mean of every column."""
    return {
        "time": hazard.time.tolist(),
        "cumulative_hazard": hazard.cumulative.tolist(),
        "hazard_after": hazard.after,
    }


def _tested(federation: Federation, beta: np.ndarray, scale: Scale) -> dict[str, Any]:
    """Metrics of the fit on the test rows of all: the pooled baseline that no optimizer has a part in."""
    dataset = federation.dataset
    if not len(dataset.test.y):
        return {}
    x = scale.of(dataset.test.x)
    if dataset.kind == "survival":
        return dict(metrics.assess("survival", (x @ beta)[:, None], dataset.test.y, dataset.classes))
    logit = np.column_stack([np.ones(len(x)), x]) @ beta
    return dict(metrics.assess("classes", np.column_stack([0 * logit, logit]), dataset.test.y, dataset.classes))


def _trained(federation: Federation, model: Params, scale: Scale) -> np.ndarray:
    """The coefficients that a model has learned, in standard deviations of the columns: it is linear in its inputs."""
    points = np.vstack([scale.mean, scale.mean + np.diag(scale.sd)]).astype(federation.experiment.training.dtype)
    outputs = np.asarray(federation.learner.predict(model, points), np.float64)
    margin = outputs[:, 0] if federation.dataset.kind == "survival" else outputs[:, 1] - outputs[:, 0]
    slopes = margin[1:] - margin[0]
    return slopes if federation.dataset.kind == "survival" else np.concatenate([margin[:1], slopes])
