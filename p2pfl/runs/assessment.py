"""Assessment of the models at the end: every metric of the task, at every site, for every model that may answer.

What a run shows each round is one score; this is what stands in a paper's table. All drivers leave models, and this
reads models, so that it is the same whatever ran.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl import tree
from p2pfl.data import Samples
from p2pfl.data.partition import names
from p2pfl.federation import learning
from p2pfl.federation.federation import Federation, model_shape
from p2pfl.learning import metrics
from p2pfl.learning.targets import TARGETS
from p2pfl.methods import answers as predict
from p2pfl.types import Params

MOST = 64
"""Nodes up to which all are assessed."""
_ROWS = 2048
"""Rows that are answered at once."""
KNOWN = frozenset(
    name for kind in TARGETS for name in metrics.names(kind, ("no", "yes") if kind == "classes" else ("one",))
)
"""Metrics of all kinds of tasks."""
LOWER = frozenset({"log_loss", "brier", "ece", "mae", "rmse"})
"""Metrics of which less is better."""
SCOPES = ("pooled", "own")
"""Test rows of all nodes together; of each node its own."""

Answerer = Callable[[np.ndarray], np.ndarray]
"""x [N, ...] -> outputs [N, ...]."""


def assess(federation: Federation, models: Mapping[int, Params], out: Path | None = None) -> dict[str, float | None]:
    """The figures of a summary, by name: METRIC_mean and METRIC_worst over the nodes on the test rows of all,
    METRIC_own_mean and METRIC_own_worst with each node on its own; for answers besides the model itself with the
    answer's name in front. `models`: of the nodes that are there at the end. `out`: writes assessment.json, with all
    metrics of every node. {} where there is nothing to test, and for more than 64 nodes.
    """
    dataset = federation.dataset
    if not models or not len(dataset.test.y) or len(federation.graph) > MOST:
        return {}
    answers = _answers(federation, models)
    result = {node: _of(federation, node, answers[node]) for node in models}
    if out is not None:
        table = {
            "kind": dataset.kind,
            "classes": list(dataset.classes),
            "names": {str(node): name for node, name in enumerate(names(federation.partition, dataset))},
            "nodes": {str(node): each for node, each in result.items()},
        }
        (out / "assessment.json").write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    return figures(list(result.values()))


Assessed = dict[str, dict[str, metrics.Found]]
"""Answer -> scope -> metric -> value."""


def _of(federation: Federation, node: int, answers: Mapping[str, Answerer]) -> Assessed:
    """Of one node."""
    dataset, own = federation.dataset, federation.partition.test[node]
    x, y = dataset.test.x.astype(federation.experiment.training.dtype), dataset.test.y
    rows = np.arange(len(y)) if federation.pooled else own
    places = np.searchsorted(rows, own)
    result: Assessed = {}
    for name, answer in answers.items():
        outputs = answer(x[rows])
        scopes = {"own": (outputs[places], y[own])}
        if federation.pooled:
            scopes["pooled"] = (outputs, y)
        result[name] = {scope: metrics.assess(dataset.kind, *both, dataset.classes) for scope, both in scopes.items()}
    return result


def _answers(federation: Federation, models: Mapping[int, Params]) -> dict[int, dict[str, Answerer]]:
    """The models that may answer at each node, by name; "" is the model itself."""
    experiment, learner = federation.experiment, federation.learner
    run = jax.jit(learner.predict)
    result: dict[int, dict[str, Answerer]]
    result = {node: {"": partial(_answered, run, model)} for node, model in models.items()}
    names = [name for name in experiment.evaluation.answers if name != predict.SELECTOR]
    own = {node: _own(federation, node, model) for node, model in models.items()}
    trained = {node: each for node, each in own.items() if len(each.train.y)}
    if names and trained:
        make = _prepared(federation, names)
        for node, each in trained.items():
            result[node].update({name: partial(_answered, run, answer.params) for name, answer in make(each).items()})
    if predict.SELECTOR in experiment.evaluation.answers and len(trained) > 1:
        name = "personal" if learner.personal else "fine_tuned"
        make = _prepared(federation, [name])
        personals = [make(each)[name].params for each in trained.values()]
        inputs = [each.train.x for each in trained.values()]
        chosen = predict.selector(learner, personals, inputs)
        for node, model in models.items():
            result[node][predict.SELECTOR] = partial(chosen.predict, model)
    return result


def _prepared(federation: Federation, names: list[str]) -> Callable[[predict.Own], dict[str, predict.Answer]]:
    experiment = federation.experiment
    optimizer, training = learning.optimizer(experiment), experiment.training
    return predict.prepared(
        names, federation.learner, optimizer, federation.dataset.kind, training.batch_size, experiment.seed
    )


def _own(federation: Federation, node: int, model: Params) -> predict.Own:
    """Return what a node makes its answers of. Validation rows are its site's, or an equal part of them."""
    data, parts = federation.dataset, federation.partition
    train, test, kept = parts.train[node], parts.test[node], data.validation
    if kept is not None and federation.experiment.evaluation.rows == "test":
        by_site = federation.experiment.data.partition == "by_site" and kept.site is not None
        rows = np.flatnonzero(kept.site == node) if by_site else np.arange(node, len(kept.y), len(federation.graph))
        kept = Samples(kept.x[rows], kept.y[rows])
    else:
        kept = None
    return predict.Own(
        node, model, Samples(data.train.x[train], data.train.y[train]), kept, data.test.x[test] if len(test) else None
    )


def _answered(run: Callable[[Params, Any], Any], model: Params, x: np.ndarray) -> np.ndarray:
    """The model's outputs, chunk by chunk."""
    return np.concatenate([np.asarray(run(model, jnp.asarray(x[at : at + _ROWS]))) for at in range(0, len(x), _ROWS)])


def figures(nodes: list[Assessed]) -> dict[str, float | None]:
    """Means and worsts over nodes."""
    result: dict[str, float | None] = {}
    for answer in nodes[0]:
        for scope in SCOPES:
            for name in nodes[0][answer].get(scope, {}):
                known = [value for each in nodes if (value := each[answer][scope][name]) is not None]
                key = "_".join(part for part in (answer, name, "own" if scope == "own" else "") if part)
                result[f"{key}_mean"] = fmean(known) if known else None
                worst = max if name in LOWER else min
                result[f"{key}_worst"] = worst(known) if known else None
    return result


def figure(name: str) -> bool:
    """Return whether a figure of a summary is one of an assessment: ANSWER_METRIC_mean, METRIC_own_worst and so on."""
    stem = re.fullmatch(r"(.+?)(_own)?_(mean|worst)", name)
    if stem is None:
        return False
    return any(
        stem[1] == (f"{answer}_{metric}" if answer else metric)
        for answer in ("", *predict.ANSWERS, predict.SELECTOR)
        for metric in KNOWN
    )


def majority(federation: Federation) -> dict[str, float]:
    """Accuracy of the most frequent class: of all training rows on all test rows, and of each site on its own."""
    dataset, parts = federation.dataset, federation.partition
    if dataset.kind != "classes":
        return {}

    def of(rows: np.ndarray, test: np.ndarray) -> float:
        return float((dataset.test.y[test] == np.bincount(dataset.train.y[rows]).argmax()).mean())

    figures = {"accuracy_majority": of(np.arange(len(dataset.train.y)), np.arange(len(dataset.test.y)))}
    own = [of(rows, test) for rows, test in zip(parts.train, parts.test, strict=True) if len(rows) and len(test)]
    if own:
        figures.update(accuracy_majority_own_mean=fmean(own), accuracy_majority_own_worst=min(own))
    return figures


def loaded(federation: Federation, arrays: Mapping[str, np.ndarray]) -> Params:
    """A node's model from its leaves by path, as model.safetensors holds them."""
    like = model_shape(federation)
    leaves = [jnp.asarray(arrays[name]) for name in tree.named_leaves(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
