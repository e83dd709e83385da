"""What a Cox model says in time: survival by risk group, baseline hazards, and predicted against observed survival."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from p2pfl.data.partition import names
from p2pfl.federation.federation import Federation
from p2pfl.learning.survival_curves import Curve, breslow, groups, kaplan_meier
from p2pfl.runs.assessment import MOST, answered
from p2pfl.types import Params

GROUPS = ("low risk", "medium risk", "high risk")
NOTE = (
    "survival: risk sets lie within a site (in training, within a batch of it), so the model is a Cox model stratified "
    "by site: every site has a baseline hazard of its own. All data pooled has one for all. Harrell's C compares rows "
    "of one site (own) or of all"
)
"""What a person should know of every Cox model here."""
POINTS = 500
"""Points of a curve that are written, at most."""


def write(federation: Federation, models: Mapping[int, Params], out: Path) -> None:
    """Write survival.json, of survival alone.

    groups: of all sites' test rows, each by its own site's model, cut at the tertiles of that model's risks among the
    site's training rows: rows, events, Kaplan and Meier's curve, and what is predicted at `horizon`, the median time of
    the training rows with an event. baseline: of each site the cumulative hazard of a row with log risk 0 (Breslow).
    """
    dataset, parts = federation.dataset, federation.partition
    if dataset.kind != "survival" or not models or len(federation.graph) > MOST or not len(dataset.test.y):
        return
    trained, tested = dataset.train.y, dataset.test.y
    if not (trained[:, 1] > 0).any():
        return
    horizon = float(np.median(trained[trained[:, 1] > 0, 0]))
    run, dtype, called = (
        jax.jit(federation.learner.predict),
        federation.experiment.training.dtype,
        names(parts, dataset),
    )
    group, predicted = np.full(len(tested), -1), np.full(len(tested), np.nan)
    baseline = {}
    for node, model in models.items():
        own, test = parts.train[node], parts.test[node]
        if not len(own) or not (trained[own, 1] > 0).any():
            continue
        answer = partial(answered, run, model)
        known = answer(dataset.train.x[own].astype(dtype))[:, 0]
        if not np.isfinite(known).all():
            continue
        hazard = breslow(known, trained[own, 0], trained[own, 1] > 0)
        baseline[called[node]] = _curve(hazard)
        if len(test):
            risk = np.nan_to_num(answer(dataset.test.x[test].astype(dtype))[:, 0])
            group[test] = groups(risk, known, len(GROUPS))
            predicted[test] = np.exp(-hazard.at(horizon, 0.0)[0] * np.exp(risk.astype(np.float64)))
    table = {
        "horizon": horizon,
        "groups": {
            name: _group(tested[group == i], predicted[group == i], horizon)
            for i, name in enumerate(GROUPS)
            if (group == i).any()
        },
        "baseline": baseline,
    }
    (out / "survival.json").write_text(json.dumps(table) + "\n", "utf-8")


def _group(y: np.ndarray, predicted: np.ndarray, horizon: float) -> dict[str, Any]:
    curve = kaplan_meier(y[:, 0], y[:, 1] > 0)
    observed, error = curve.at(horizon, 1.0)
    return {
        "rows": len(y),
        "events": int((y[:, 1] > 0).sum()),
        "predicted": float(predicted.mean()),
        "observed": observed,
        "error": error,
        "last": float(y[:, 0].max()),
        "curve": _curve(curve),
    }


def _curve(curve: Curve) -> dict[str, list[float]]:
    every = max(1, -(-len(curve.time) // POINTS))
    return {name: np.asarray(values[::every], np.float64).round(6).tolist() for name, values in curve._asdict().items()}
