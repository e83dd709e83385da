"""Baselines of a run: every node alone, one model on all data pooled, the most frequent class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from p2pfl.config.data import EvenPartition
from p2pfl.config.experiment import AlgorithmTable, Experiment, TopologyTable
from p2pfl.data.stored import Stored
from p2pfl.federation.events import founders, newcomers
from p2pfl.federation.federation import Federation, build
from p2pfl.reporting.run_data import FIRST
from p2pfl.reporting.terminal import View
from p2pfl.runs import assessment, models, simulated
from p2pfl.runs.assessment import Assessment
from p2pfl.runs.summary import score


class Baselines(NamedTuple):
    """What a run is compared with."""

    figures: Mapping[str, float | None] = MappingProxyType({})  # by their names in the summary
    assessed: Mapping[str, Assessment] = MappingProxyType({})  # "local_only", "pooled"


def train(federation: Federation, out: Path, view: View) -> Baselines:
    """Train every node alone, and one model on all data."""
    experiment, nodes, shown = federation.experiment, len(federation.graph), score(federation)
    more = "; what is trained already stays as it is" if (out / "baselines").is_dir() else ""
    view.say(f"baselines: training every node alone, then one model on all data pooled{more}")
    figures: dict[str, float | None] = {**assessment.majority(federation)}
    assessed = {}
    for name, other, key in (
        ("local", alone(experiment), "local_only"),
        ("pooled", pooled(experiment, nodes), "pooled"),
    ):
        place = out / "baselines" / name
        place.mkdir(parents=True, exist_ok=True)  # of a run that is resumed it is there, with what is known by now
        known, assessed[key] = baseline(federation, other, place, key, experiment.driver.checkpoint)
        figures.update(known)
    exact = FIRST.get(shown.key)
    shown = exact if exact is not None and figures.get(f"{exact.key}_pooled") is not None else shown
    by_itself, together = (shown.text(figures.get(f"{shown.key}_{key}")) for key in ("local_only", "pooled"))
    view.say(f"baselines: alone {by_itself} mean {shown.name}, pooled {together}")
    return Baselines(figures, assessed)


def baseline(
    federation: Federation, other: Experiment, place: Path, name: str, every: int = 0
) -> tuple[dict[str, float | None], Assessment]:
    """Train a baseline; returns its figures (accuracy_NAME for accuracy_mean, accuracy_NAME_worst, ...) and draws.

    `every`: rounds from one checkpoint to the next, 0 for none; it goes on from one that is there.
    """
    # rows that are dealt by their class, which a reconstruction has let go, are read anew, and degraded as they were
    again = other.data.degrade is not None and not isinstance(other.data.partition, EvenPartition)
    built = build(other, None if again else federation.dataset)
    models.describe(built).write(place)
    if isinstance(built.dataset.train.x, Stored):  # whose rows the vectorised driver would hold all at once
        result = simulated.one_by_one(built, place)
    else:
        result = simulated.into(built, place, lambda status: None, every=every)
    one = len(result.whole) == 1 < len(federation.graph)
    if len(result.whole) == 1:  # one model of all data, at each site
        model = next(iter(result.whole.values()))
        built = built._replace(topology=federation.topology, data=federation.data)
        result = result._replace(whole=dict.fromkeys((i for i in federation.graph if i not in federation.liars), model))
    assessed = assessment.assess(built, result.whole, place) if other.evaluation.metrics else Assessment()
    figures: dict[str, float | None] = {}
    for key, value in {**result.summary.as_dict(), **assessed.figures}.items():
        if one and "_own" in key and key not in assessed.figures:
            continue  # of the one node that all rows are the own ones of
        for end in ("_own_mean", "_own_weighted", "_own_worst", "_mean", "_worst"):
            if value is not None and key.endswith(end):
                figures[f"{key.removesuffix(end)}_{name}{'' if end == '_mean' else end}"] = value
                break
    return figures, assessed


ALONE = frozenset({"augment", "sharpness", "average", "missing_classes", "ridge", "class_weights"})
"""Objectives that mean something to a model that nobody else trains."""


def pooled(experiment: Experiment, nodes: int) -> Experiment:
    """The baseline "all data pooled": one node, all rows, as many steps, batches `nodes` times as large."""
    training = experiment.training
    steps = round(np.mean(training.node_steps)) if training.node_steps else training.local_steps
    training = replace(training, batch_size=training.batch_size * nodes, local_steps=int(steps), node_steps=None)
    data = replace(experiment.data, partition=EvenPartition())
    plain = alone(experiment)
    training = replace(training, objective=plain.training.objective)
    topology = TopologyTable(graph="complete", nodes=1)
    return replace(plain, data=data, training=training, topology=topology, attack=(), other_model=())


def alone(experiment: Experiment) -> Experiment:
    """The baseline "every node alone": the same, with no exchange and nobody lost. Liars are none of those scored."""
    network = replace(experiment.network, loss=0.0, rule="double_entry", late=0)
    kept = tuple(each for each in experiment.training.objective if each["name"] in ALONE)
    training = replace(experiment.training, objective=kept)
    evaluation = replace(experiment.evaluation, answers=())
    known = replace(experiment.statistics, minimum=1, noise=0.0)  # of one's own, which nobody is told
    topology = experiment.topology
    if more := newcomers(experiment):  # with all that ever take part; nobody exchanges anything, whatever the graph
        topology = TopologyTable(graph="complete", nodes=founders(experiment) + more)
    return replace(
        experiment, algorithm=AlgorithmTable("local"), churn=(), network=network, training=training,
        topology=topology, evaluation=evaluation, statistics=known, privacy=None, secure=None,
        baselines=False,
    )  # fmt: skip
