"""The experiments that a federation is compared with: every node alone, and all data pooled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from p2pfl.config.data import EvenPartition
from p2pfl.config.experiment import AlgorithmTable, Experiment, TopologyTable

ALONE = frozenset({"augment", "sharpness", "average", "missing_classes"})
"""Objectives that mean something to a model that nobody else trains."""


def pooled(experiment: Experiment, nodes: int) -> Experiment:
    """The baseline "all data pooled": one node, all rows, as many steps, batches `nodes` times as large."""
    training = experiment.training
    steps = round(np.mean(training.node_steps)) if training.node_steps else training.local_steps
    training = replace(training, batch_size=training.batch_size * nodes, local_steps=int(steps), node_steps=None)
    data = replace(experiment.data, partition=EvenPartition())
    plain = alone(experiment)
    training = replace(training, objective=plain.training.objective)
    return replace(plain, data=data, training=training, topology=TopologyTable(graph="complete", nodes=1))


def alone(experiment: Experiment) -> Experiment:
    """The baseline "every node alone": the same, with no exchange and nobody lost."""
    network = replace(experiment.network, loss=0.0, rule="double_entry", late=0)
    kept = tuple(each for each in experiment.training.objective if each["name"] in ALONE)
    training = replace(experiment.training, objective=kept)
    evaluation = replace(experiment.evaluation, answers=())
    known = replace(experiment.statistics, minimum=1, noise=0.0)  # of one's own, which nobody is told
    return replace(
        experiment, algorithm=AlgorithmTable("local"), churn=(), network=network, training=training,
        evaluation=evaluation, statistics=known, baselines=False,
    )  # fmt: skip
