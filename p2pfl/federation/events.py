"""The events that an experiment plans: [[churn]], made out for its graph, its seed and, where need be, its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from p2pfl import churn, topology
from p2pfl.churn import course
from p2pfl.config.churn import Adversarial, expand
from p2pfl.config.experiment import Experiment
from p2pfl.data import Dataset
from p2pfl.errors import ConfigError
from p2pfl.protocol.neighbor import WAIT
from p2pfl.types import Schedule


def planned(
    experiment: Experiment, plan: Schedule, labels: Sequence[Mapping[str, int]] | None = None
) -> tuple[churn.Event, ...]:
    """All events. `labels`: of each node, class -> rows; without them, a model that asks for them draws none.

    Raises ConfigError.
    """
    if not experiment.churn:
        return ()
    setting = churn.ChurnSetting(
        plan.neighbor.shape[1], experiment.rounds, experiment.seed, topology.union(plan), labels
    )
    found = expand(experiment.churn, setting)
    late = next((event for event in found if event.event == "lag"), None)
    if late is not None and experiment.driver.kind == "simulate":
        raise ConfigError(
            f"churn: lag of node {late.node} at round {late.round}: the simulator knows no seconds; leave it out, or "
            'use driver.kind = "live"'
        )
    if experiment.network.alone == WAIT:
        _not_all_alone(experiment, found, setting.nodes)
    return found


def _not_all_alone(experiment: Experiment, events: Sequence[churn.Event], nodes: int) -> None:
    when = churn.timeline(events, nodes, experiment.rounds, experiment.network.detection, waits=True)
    nobody = np.flatnonzero(~when.active.any(axis=1))
    if nobody.size:
        raise ConfigError(
            f"network.alone='wait': from round {nobody[0] + 1} on no group of the partition holds half of the nodes: "
            'all would wait for each other; set network.alone = "train", or part them otherwise'
        )


def by_label(experiment: Experiment) -> bool:
    """Return whether a model asks who holds a class."""
    return any(isinstance(each, Adversarial) and each.target == "holder" for each in experiment.churn)


def no_labels(experiment: Experiment) -> None:
    """Raises ConfigError when a model asks who holds a class, where nobody can tell."""
    if by_label(experiment):
        raise ConfigError(
            "churn.target='holder': needs the labels of all nodes, which are not known here; name the node, with "
            'event = "crash"'
        )


def labels(dataset: Dataset, rows: np.ndarray) -> dict[str, int]:
    """The training rows of each class among these. Raises ConfigError where there are no classes."""
    if dataset.kind != "classes":
        raise ConfigError(
            f"churn.target='holder': asks who holds a class, and the data are of kind {dataset.kind!r}; name the node"
        )
    counts = np.bincount(dataset.train.y[rows], minlength=len(dataset.classes)).tolist()
    return dict(zip(dataset.classes, counts, strict=True))


def memberships(events: Sequence[churn.Event], nodes: int, experiment: Experiment) -> list[tuple[int, ...]]:
    """The members of every epoch that is planned, and of those with one or two nodes fewer than all: what may come."""
    when = churn.timeline(events, nodes, experiment.rounds, experiment.network.detection)
    found = {tuple(members) for members in course.epochs(when)[0]}
    found |= {tuple(range(nodes - gone)) for gone in (1, 2) if nodes - gone > 1}
    return sorted(found - {tuple(range(nodes))})
