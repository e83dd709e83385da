"""Assessment of the models at the end: every metric of the task, at every site, for every model that may answer.

What a run shows each round is one score; this is what stands in a paper's table. All drivers leave models, and this
reads models, so that it is the same whatever ran.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl.config.data import EvenPartition
from p2pfl.data import Dataset, Samples
from p2pfl.data.partition import names
from p2pfl.data.stored import part
from p2pfl.federation import learning
from p2pfl.federation.federation import Federation, model_shape
from p2pfl.federation.metrics import KNOWN
from p2pfl.learning import intervals, local_steps, metrics
from p2pfl.learning.batching import chunk
from p2pfl.methods import answers as predict
from p2pfl.methods.watching import BEST
from p2pfl.node import model_file
from p2pfl.runs import cases, predictions
from p2pfl.runs import models as models_of
from p2pfl.runs.cases import Answerer
from p2pfl.types import Params

MOST = 64
"""Nodes up to which all are assessed."""
_ROWS = 2048
"""Rows that are answered at once."""
LOWER = frozenset({"log_loss", "brier", "ece", "mae", "rmse", "nmse"})
"""Metrics of which less is better."""
IDEAL: Mapping[str, float] = MappingProxyType({"calibration_slope": 1.0, "calibration_intercept": 0.0})
"""Metrics of which neither more nor less is better."""
MUCH = 20_000
"""Test rows times models times classes up to which an interval is of 1000 resamplings; of 200 up to a hundred times
that, and then of none."""
OWN_DRAWS = 200
"""Resamplings, at most, that a metric of one's own has an interval of: its function is called for each."""
CONFUSED = 10
"""Classes up to which a confusion matrix is written."""
SCOPES = ("pooled", "own")
"""Test rows of all nodes together; of each node its own."""


class Assessment(NamedTuple):
    """What is found out about the models at the end."""

    figures: Mapping[str, float | None] = MappingProxyType({})  # of a summary, by name
    draws: Mapping[str, np.ndarray] = MappingProxyType({})  # figure of a node's own model -> [draws] resampled
    few: Mapping[str, intervals.Basis] = MappingProxyType({})  # figure -> on how few events it rests for an interval


def assess(federation: Federation, models: Mapping[int, Params], out: Path | None = None) -> Assessment:
    """The figures of a summary, by name: METRIC_mean and METRIC_worst over the nodes on the test rows of all,
    METRIC_own_mean, METRIC_own_weighted and METRIC_own_worst with each node on its own; for answers besides the model
    itself with the answer's name in front. `models`: of the nodes that are there at the end. `out`: writes
    assessment.json, with all metrics of every node, predictions.csv, and the models that answer. Nothing where there is
    nothing to test, and for more than 64 nodes.
    """
    dataset = federation.dataset
    if not models or len(federation.graph) > MOST:
        return Assessment()
    tuned = _tuned(federation, models)
    chosen = _selectors(federation, models, tuned)
    if out is not None:
        models_of.write_answers(out, tuned)
    if not len(dataset.test.y):
        return Assessment()
    answers = _answers(federation, models, tuned, chosen)
    weight = _resampled(federation, len(models))
    outputs = {node: _outputs(federation, node, answers[node]) for node in models}
    result = {node: _of(federation, node, outputs[node], answers[node]) for node in models}
    sizes = [rows(federation, node)[1] for node in models]
    drawn = {node: _drawn(federation, node, outputs[node][""], weight, answers[node][""]) for node in models}
    lower = LOWER | {each.label for each in federation.metrics if each.lower}
    draws = summed(list(drawn.values()), list(result.values()), sizes)
    whole = Assessment(figures(list(result.values()), sizes, lower), draws, _few(federation, result, draws))
    if out is not None:
        judged = {node: _intervals(federation, node, outputs[node][""], drawn[node]) for node in models}
        table = {
            "kind": dataset.kind,
            "classes": list(dataset.classes),
            "names": {str(node): name for node, name in enumerate(names(federation.partition, dataset))},
            "nodes": {str(node): each for node, each in result.items()},
            "rows": {str(node): _counted(federation, node) for node in models},
            "intervals": {str(node): each for node, (each, _) in judged.items()},
            "too_few": {str(node): few for node, (_, few) in judged.items()},
            "resampled": len(weight),
            **({"best": watched(models)} if federation.data.validation is not None else {}),
            "threshold": _thresholds(federation, models, {node: each[""] for node, each in outputs.items()}),
            "confusion": _confusion(federation, {node: each[""] for node, each in outputs.items()}),
            **_curves(federation, {node: each[""] for node, each in outputs.items()}),
        }
        (out / "assessment.json").write_text(json.dumps(table, indent=1) + "\n", "utf-8")
        predictions.write(federation, {node: each[""] for node, each in outputs.items()}, out)
    return whole


Assessed = dict[str, dict[str, metrics.Found]]
"""Answer -> scope -> metric -> value."""
Drawn = dict[str, dict[str, np.ndarray]]
"""Scope -> metric -> [draws]."""


def watched(models: Mapping[int, Params]) -> dict[str, dict[str, float]]:
    """What nodes have seen on their validation rows: the best score, its round, and where training ended (0: not)."""
    found = {node: model["private"][BEST] for node, model in models.items()}
    return {
        str(node): {"score": float(best["score"]), "round": int(best["round"]), "ended": int(best["ended"])}
        for node, best in found.items()
        if int(best["round"])
    }


def ended(federation: Federation, models: Mapping[int, Params]) -> list[str]:
    """Say which nodes have ended their local training by their validation rows."""
    if federation.experiment.training.patience is None:
        return []
    called = names(federation.partition, federation.dataset)
    stopped = {called[int(node)]: each["ended"] for node, each in watched(models).items() if each["ended"]}
    listed = ", ".join(f"{name} after round {round}" for name, round in [*stopped.items()][:MOST])
    return [f"training.patience: {len(stopped)} of {len(models)} nodes trained no more: {listed or 'none'}"]


def rows(federation: Federation, node: int) -> tuple[int, int]:
    """Return the test rows of a node and how much they count in a mean over nodes: rows, of survival events, of a
    segmentation volumes or patients.
    """
    own = federation.partition.test[node]
    if federation.dataset.kind == "segmentation":
        return len(own), len(np.unique(cases.of_rows(federation.dataset)[own]))
    y = federation.dataset.test.y[own]
    return len(y), int((y[:, 1] > 0).sum()) if federation.dataset.kind == "survival" else len(y)


def _outputs(federation: Federation, node: int, answers: Mapping[str, Answerer]) -> dict[str, np.ndarray]:
    """Of one node, what each answer puts out for the rows it is tested on: all, or its own where nobody has all.

    Of a segmentation, what `cases.overlaps` has of these rows.
    """
    if federation.dataset.kind == "segmentation":
        return {name: cases.overlaps(federation, answer, _tested(federation, node)) for name, answer in answers.items()}
    return {name: _raw(federation, node, answer) for name, answer in answers.items()}


def _tested(federation: Federation, node: int) -> np.ndarray:
    """The test rows that a node answers."""
    return np.arange(len(federation.dataset.test.y)) if federation.pooled else federation.partition.test[node]


def _raw(federation: Federation, node: int, answer: Answerer) -> np.ndarray:
    x = federation.dataset.test.x.astype(federation.experiment.training.dtype)
    return answer(x[_tested(federation, node)])


def _scopes(federation: Federation, node: int, whole: bool = True) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scope -> (places in the outputs of a node, rows of the test) that belong to it.

    `whole`: of a segmentation cases instead of rows.
    """
    own, count = federation.partition.test[node], len(federation.dataset.test.y)
    if whole and federation.dataset.kind == "segmentation":
        of = cases.of_rows(federation.dataset)
        own, count = np.unique(of[own]), int(of.max(initial=-1)) + 1
    if not federation.pooled:
        return {"own": (np.arange(len(own)), own)}
    every = np.arange(count)
    return {"own": (own, own), "pooled": (every, every)}


def _answers_of(dataset: Dataset, tested: np.ndarray) -> np.ndarray:
    """What is true of test rows, which says on how many a figure rests; of a segmentation only their number."""
    return tested if dataset.kind == "segmentation" else dataset.test.y[tested]


def _of(
    federation: Federation, node: int, outputs: Mapping[str, np.ndarray], answers: Mapping[str, Answerer]
) -> Assessed:
    """Of one node."""
    dataset, scopes = federation.dataset, _scopes(federation, node)
    result: Assessed = {}
    for name, out in outputs.items():
        if dataset.kind == "segmentation":
            known = {scope: metrics.of_overlaps(out[places], dataset.classes) for scope, (places, _) in scopes.items()}
        else:
            known = {
                scope: metrics.assess(dataset.kind, out[places], dataset.test.y[tested], dataset.classes)
                for scope, (places, tested) in scopes.items()
            }
        result[name] = known
        if federation.metrics:
            raw = _raw(federation, node, answers[name]) if dataset.kind == "segmentation" else out
            for scope, (places, tested) in _scopes(federation, node, whole=False).items():
                own = {each.label: each.of(raw[places], dataset.test.y[tested]) for each in federation.metrics}
                known[scope] = {**known[scope], **own}
    return result


def _resampled(federation: Federation, models: int) -> np.ndarray:
    """How often each test row is drawn, [draws, N], with the rows of its own node; fewer draws for many rows."""
    tested, of = federation.partition.test, cases.of_rows(federation.dataset)
    site = np.zeros(int(of.max(initial=-1)) + 1, np.int64)
    for node, own in enumerate(tested):
        site[of[own]] = node
    pixels = federation.dataset.kind in ("segmentation", "reconstruction")  # what is resampled is a number an image
    work = len(site) * models * (1 if pixels else len(federation.dataset.classes))
    draws = intervals.DRAWS if work <= MUCH else intervals.DRAWS // 5 if work <= 100 * MUCH else 0
    draws = draws if federation.experiment.evaluation.intervals else 0
    return intervals.resampled(site, draws, federation.experiment.seed)


def _drawn(federation: Federation, node: int, outputs: np.ndarray, weight: np.ndarray, answer: Answerer) -> Drawn:
    dataset = federation.dataset
    if not len(weight):
        return {}
    if dataset.kind == "segmentation":
        known = {
            scope: intervals.of_overlaps(outputs[places], dataset.classes, weight[:, tested])
            for scope, (places, tested) in _scopes(federation, node).items()
        }
        if not federation.metrics or dataset.test.case is not None:  # whole cases are drawn, and a metric takes rows
            return known
        raw = _raw(federation, node, answer)
        return {
            scope: known[scope]
            | _drawn_own(federation, raw[places], dataset.test.y[tested], weight[:OWN_DRAWS, tested])
            for scope, (places, tested) in _scopes(federation, node).items()
        }
    return {
        scope: intervals.draws(
            dataset.kind, outputs[places], dataset.test.y[tested], dataset.classes, weight[:, tested]
        )
        | _drawn_own(federation, outputs[places], dataset.test.y[tested], weight[:OWN_DRAWS, tested])
        for scope, (places, tested) in _scopes(federation, node).items()
    }


def _drawn_own(federation: Federation, outputs: np.ndarray, y: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of one's own of each resampling, by name: [draws], NaN where one is not defined there."""
    if not federation.metrics or not len(y):
        return {}
    rows = [np.repeat(np.arange(len(y)), drawn.astype(np.int64)) for drawn in weight]
    found = {each.label: [each.of(outputs[at], y[at]) for at in rows] for each in federation.metrics}
    return {name: np.array([math.nan if one is None else one for one in values]) for name, values in found.items()}


def _intervals(
    federation: Federation, node: int, outputs: np.ndarray, drawn: Drawn
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scope -> metric -> [low, high] of a node's model; and of what has too few events for one, what it rests on.

    An AUC of two classes is by DeLong, all else resampled.
    """
    dataset = federation.dataset
    found = {
        scope: {name: intervals.interval(values) for name, values in each.items()} for scope, each in drawn.items()
    }
    if dataset.kind == "classes" and len(dataset.classes) == 2 and federation.experiment.evaluation.intervals:
        for scope, (places, tested) in _scopes(federation, node).items():
            margin = (outputs[places, 1] - outputs[places, 0]).astype(np.float64)
            if np.isfinite(margin).all():
                of_scope = found.setdefault(scope, {})
                of_scope["auc"] = intervals.delong_interval(margin, dataset.test.y[tested] == 1)
    few = _too_few(federation, node, found)
    known = {
        scope: {name: each for name, each in of_scope.items() if name not in few.get(scope, {})}
        for scope, of_scope in found.items()
    }
    return known, few


def _too_few(
    federation: Federation, node: int, metrics_of: Mapping[str, Iterable[str]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Scope -> metric -> what it rests on, of these metrics that have too few events at a node for an interval."""
    dataset, scopes = federation.dataset, _scopes(federation, node)
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for scope, each in metrics_of.items():
        for name in each:
            y = _answers_of(dataset, scopes[scope][1])
            found = intervals.basis(dataset.kind, name, y, dataset.classes)
            if found.few:
                result.setdefault(scope, {})[name] = found._asdict()
    return result


def _few(federation: Federation, known: Mapping[int, Assessed], figures: Iterable[str]) -> dict[str, intervals.Basis]:
    """Of figures that are means over nodes, those that rest on too few events for an interval, and on how many.

    In a mean over sites alike, the site with the fewest counts as much as any other; where sites count by their rows or
    events, the figure rests on those of all.
    """
    dataset, result = federation.dataset, {}
    for key in figures:
        name = re.sub("(_own_mean|_own_weighted|_mean)$", "", key)
        scope = "own" if "_own_" in key[len(name) :] else "pooled"
        found = [
            intervals.basis(
                dataset.kind, name, _answers_of(dataset, _scopes(federation, node)[scope][1]), dataset.classes
            )
            for node, each in known.items()
            if each[""].get(scope, {}).get(name) is not None
        ]
        if not found:
            continue
        rests = found[0]._replace(n=sum(each.n for each in found)) if key.endswith("_weighted") else min(found)
        if rests.few:
            result[key] = rests
    return result


def _counted(federation: Federation, node: int) -> dict[str, Any]:
    """What stands beside the scores of a node: its own test rows, and of how many each class or event is."""
    dataset, parts = federation.dataset, federation.partition
    result: dict[str, Any] = {}
    for name, samples, own in (("train", dataset.train, parts.train[node]), ("test", dataset.test, parts.test[node])):
        result[name] = {"rows": len(own)}
        if dataset.kind == "segmentation":
            if samples.case is not None:
                result[name]["cases"] = len(np.unique(samples.case.of[own]))
            continue
        y = samples.y[own]
        if dataset.kind == "classes":
            result[name]["classes"] = np.bincount(y, minlength=len(dataset.classes)).tolist()
        elif dataset.kind == "labels":
            result[name]["labels"] = y.sum(axis=0).tolist()
        elif dataset.kind == "survival":
            result[name]["events"] = int((y[:, 1] > 0).sum())
            result[name]["median_time"] = float(np.median(y[:, 0])) if len(y) else None
    if dataset.kind == "classes" and len(parts.train[node]) and len(parts.test[node]):
        result["majority"] = _majority(dataset, parts.train[node], parts.test[node])
    return result


def _confusion(federation: Federation, outputs: Mapping[int, np.ndarray]) -> dict[str, list[list[int]]]:
    """Node -> the confusion matrix of its own test rows, true class by predicted class; of few classes alone."""
    dataset = federation.dataset
    if dataset.kind != "classes" or len(dataset.classes) > CONFUSED:
        return {}
    result = {}
    for node, out in outputs.items():
        places, tested = _scopes(federation, node)["own"]
        result[str(node)] = metrics.confusion(out[places], dataset.test.y[tested]).tolist()
    return result


def _thresholds(
    federation: Federation, models: Mapping[int, Params], outputs: Mapping[int, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Of two classes: node -> a threshold chosen on its validation rows, or where it has none on its training rows, and
    what comes of it on its own test rows."""
    dataset = federation.dataset
    if dataset.kind != "classes" or len(dataset.classes) != 2:
        return {}
    run, dtype, result = jax.jit(federation.learner.predict), federation.experiment.training.dtype, {}
    for node, model in models.items():
        own = own_of(federation, node, model)
        kept = own.validation is not None and len(np.unique(own.validation.y)) == 2
        chosen = own.validation if kept and own.validation is not None else own.train
        places, tested = _scopes(federation, node)["own"]
        found = metrics.threshold(answered(run, model, chosen.x.astype(dtype)), chosen.y) if len(chosen.y) else None
        if found is not None and len(tested) and np.isfinite(outputs[node]).all():
            reached = metrics.at_threshold(outputs[node][places], dataset.test.y[tested], found)
            result[str(node)] = {"chosen_on": "validation" if kept else "train", **reached._asdict()}
    return result


def _curves(federation: Federation, outputs: Mapping[int, np.ndarray]) -> dict[str, dict[str, list[list[float]]]]:
    """Of two classes "roc" and "calibration": node -> points (across, up) of its own test rows."""
    dataset = federation.dataset
    if dataset.kind != "classes" or len(dataset.classes) != 2:
        return {}
    found: dict[str, dict[str, list[list[float]]]] = {"roc": {}, "calibration": {}}
    for node, out in outputs.items():
        places, tested = _scopes(federation, node)["own"]
        y, own = dataset.test.y[tested], out[places]
        if len(np.unique(y)) == 2 and np.isfinite(own).all():
            found["roc"][str(node)] = [each.tolist() for each in metrics.roc(own, y)]
            found["calibration"][str(node)] = [each.tolist() for each in metrics.observed_shares(own, y)]
    return found


def summed(nodes: list[Drawn], known: list[Assessed], sizes: list[int]) -> dict[str, np.ndarray]:
    """The draws of means over the nodes in which a metric is defined, by the name of the figure.

    Where it is not defined in a resampling, as where the one event of a site is not drawn, the node counts with what it
    has on all its rows: left out, it would move the mean from one set of sites to another.
    """
    result = {}
    for scope in SCOPES:
        found = [each.get(scope, {}) for each in nodes]
        for name in dict.fromkeys(name for each in found for name in each):
            values = [each[""].get(scope, {}).get(name) for each in known]
            pairs = [(each[name], value) for each, value in zip(found, values, strict=True) if name in each]
            wide = [np.where(np.isfinite(drawn), drawn, value) for drawn, value in pairs if value is not None]
            there = [name in each and value is not None for each, value in zip(found, values, strict=True)]
            for key, weight in _weights(name, scope, sizes):
                factor = np.asarray(weight, np.float64)[there]
                if factor.sum():
                    result[key] = factor @ np.stack(wide) / factor.sum()
    return result


def _weights(name: str, scope: str, sizes: list[int]) -> list[tuple[str, list[int]]]:
    """The figures that are means of a metric over nodes, and how much each node counts."""
    if scope == "pooled":
        return [(f"{name}_mean", [1] * len(sizes))]
    return [(f"{name}_own_mean", [1] * len(sizes)), (f"{name}_own_weighted", sizes)]


def compared(
    this: Assessment, others: Mapping[str, Assessment]
) -> tuple[dict[str, list[float]], dict[str, dict[str, list[float | None]]]]:
    """Return the intervals of figures, [low, high]; and of each what this run has more than each baseline, paired.

    The latter are figure -> baseline -> [difference, low, high]. Paired: both on the same resampled rows. Where a
    figure rests on too few events there is no interval, and low and high are None.
    """
    known: dict[str, list[float]] = {}
    more: dict[str, dict[str, list[float | None]]] = {}
    for key, drawn in this.draws.items():
        value, found = this.figures.get(key), intervals.interval(drawn)
        if value is None or found is None:
            continue
        if key not in this.few:
            known[key] = [*found]
        for name, other in others.items():
            theirs, those = other.figures.get(key), other.draws.get(key)
            if theirs is not None and those is not None and len(those) == len(drawn):
                between = intervals.interval(drawn - those)
                if between is not None:
                    limits = (None, None) if key in this.few else between
                    more.setdefault(key, {})[name] = [value - theirs, *limits]
    return known, more


def _tuned(federation: Federation, models: Mapping[int, Params]) -> dict[int, dict[str, Params]]:
    """What each node makes of its model, by the name of the answer, with what is to be chosen among."""
    asked = federation.experiment.evaluation.answers
    names = [name for name in asked if name not in (predict.SELECTOR, predict.ROUTED, "consensus")]
    personal, banks = models_of.personal(federation.learner), {predict.SELECTOR, predict.ROUTED} & {*asked}
    if banks and personal not in names:
        names.append(personal)
    own = {node: own_of(federation, node, model) for node, model in models.items()} if names else {}
    trained = {node: each for node, each in own.items() if len(each.train.y)}
    if not trained:
        return {}
    make = _prepared(federation, names)
    found = {node: {name: answer.params for name, answer in make(each).items()} for node, each in trained.items()}
    if predict.ROUTED in asked:
        bank, mix = tuple(each[personal] for each in found.values()), _prepared(federation, [predict.ROUTED])
        for node, each in trained.items():
            found[node][predict.ROUTED] = mix(each._replace(bank=bank))[predict.ROUTED].params
    return found


def _selectors(
    federation: Federation, models: Mapping[int, Params], tuned: Mapping[int, Mapping[str, Params]]
) -> dict[int, predict.Selector]:
    """Of each node, its choice among the personal models that are here, where it is asked for."""
    if predict.SELECTOR not in federation.experiment.evaluation.answers:
        return {}
    name = models_of.personal(federation.learner)
    personals = {node: each[name] for node, each in tuned.items()}
    return {node: predict.selector(federation.learner, model, personals) for node, model in models.items()}


def _answers(
    federation: Federation,
    models: Mapping[int, Params],
    tuned: Mapping[int, Mapping[str, Params]],
    chosen: Mapping[int, predict.Selector],
) -> dict[int, dict[str, Answerer]]:
    """The models that may answer at each node, by name; "" is the model itself."""
    run = jax.jit(federation.learner.predict)
    result: dict[int, dict[str, Answerer]] = {}
    for node, model in models.items():
        found = {"": model, "consensus": model, **tuned.get(node, {})}
        names = ["", *(name for name in federation.experiment.evaluation.answers if name in found)]
        result[node] = {name: partial(answered, run, found[name]) for name in names}
        if node in chosen:
            result[node][predict.SELECTOR] = partial(chosen[node].predict, model)
    return result


def _prepared(federation: Federation, names: list[str]) -> Callable[[predict.Own], dict[str, predict.Answer]]:
    experiment = federation.experiment
    optimizer, training = learning.optimizer(experiment), experiment.training
    return predict.prepared(
        names, federation.learner, optimizer, federation.dataset.kind, training.batch_size, experiment.seed
    )


def own_of(federation: Federation, node: int, model: Params) -> predict.Own:
    """Return what a node makes its answers of. Validation rows are its site's, or an equal part of them."""
    data, parts = federation.dataset, federation.partition
    train, test, kept = parts.train[node], parts.test[node], data.validation
    if kept is not None and federation.data.validation is not None:
        mine = federation.data.validation[node]
        kept = Samples(part(kept.x, mine), part(kept.y, mine))
    elif kept is not None and federation.experiment.evaluation.rows == "test":
        by_site = federation.experiment.data.partition == EvenPartition("by_site") and kept.site is not None
        rows = np.flatnonzero(kept.site == node) if by_site else np.arange(node, len(kept.y), len(federation.graph))
        kept = Samples(part(kept.x, rows), part(kept.y, rows))
    else:
        kept = None
    own = Samples(part(data.train.x, train), part(data.train.y, train))
    return predict.Own(node, model, own, kept, part(data.test.x, test) if len(test) else None)


def answered(run: Callable[[Params, Any], Any], model: Params, x: np.ndarray) -> np.ndarray:
    """A model's outputs for x [N, ...], chunk by chunk. `run`: of the learner, jitted."""
    size = chunk(x.shape[1:], _ROWS)
    return np.concatenate([np.asarray(run(model, jnp.asarray(x[at : at + size]))) for at in range(0, len(x), size)])


def figures(nodes: list[Assessed], sizes: list[int], lower: frozenset[str] = LOWER) -> dict[str, float | None]:
    """Means and worsts over nodes; `sizes`: how much each counts in METRIC_own_weighted; `lower`: less is better."""
    result: dict[str, float | None] = {}
    for answer in nodes[0]:
        for scope in SCOPES:
            for name in nodes[0][answer].get(scope, {}):
                values = [each[answer][scope][name] for each in nodes]
                known = [value for value in values if value is not None]
                for key, weights in _weights(name, scope, sizes):
                    pairs = [(v, w) for v, w in zip(values, weights, strict=True) if v is not None and w]
                    total = sum(w for _, w in pairs)
                    result[_key(answer, key)] = sum(v * w for v, w in pairs) / total if total else None
                worst = _key(answer, name, "own" if scope == "own" else "", "worst")
                result[worst] = _worst(name, known, lower) if known else None
    return result


def _key(*parts: str) -> str:
    return "_".join(part for part in parts if part)


def _worst(name: str, values: list[float], lower: frozenset[str]) -> float:
    if name in IDEAL:
        return max(values, key=lambda value: abs(value - IDEAL[name]))
    return max(values) if name in lower else min(values)


def figure(name: str, own: Collection[str] = ()) -> bool:
    """Return whether a figure of a summary is one of an assessment: ANSWER_METRIC_mean, METRIC_own_worst and so on.

    `own`: labels of metrics of one's own.
    """
    stem = re.fullmatch(r"(.+?)(_own)?_(mean|worst)|(.+?)_own_weighted", name)
    if stem is None:
        return False
    return any(
        (stem[1] or stem[4]) == (f"{answer}_{metric}" if answer else metric)
        for answer in ("", *predict.ANSWERS, predict.SELECTOR)
        for metric in (*KNOWN, *own)
    )


def majority(federation: Federation) -> dict[str, float]:
    """Accuracy of the most frequent class: of all training rows on all test rows, and of each site on its own."""
    dataset, parts = federation.dataset, federation.partition
    if dataset.kind != "classes":
        return {}
    every = [np.arange(len(part.y)) for part in (dataset.train, dataset.test)]
    figures = {"accuracy_majority": _majority(dataset, *every)}
    own = [
        _majority(dataset, rows, test)
        for rows, test in zip(parts.train, parts.test, strict=True)
        if len(rows) and len(test)
    ]
    if own:
        figures.update(accuracy_majority_own_mean=fmean(own), accuracy_majority_own_worst=min(own))
    return figures


def _majority(dataset: Dataset, train: np.ndarray, test: np.ndarray) -> float:
    return float((dataset.test.y[test] == np.bincount(dataset.train.y[train]).argmax()).mean())


def loaded(federation: Federation, arrays: Mapping[str, np.ndarray], node: int) -> Params:
    """A node's model from its leaves by path, as model.safetensors holds them, with what the file keeps to itself."""
    model = models_of.unflattened(model_shape(federation), arrays, Path(model_file.NAME))
    site = jax.tree.map(lambda rows: rows[node], federation.sites)
    return jax.tree.map(jnp.asarray, local_steps.placed(model, site))
