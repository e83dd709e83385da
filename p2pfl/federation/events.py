"""The events that an experiment plans: [[churn]], made out for its graph, its seed and, where need be, its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from p2pfl import churn, topology
from p2pfl.churn import course
from p2pfl.config.churn import Adversarial, Churn, FlashCrowd, NodeEvent, expand
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


def founders(experiment: Experiment) -> int:
    """The number of nodes that the experiment's graph has: those that join beyond it are not counted.

    Raises ConfigError.
    """
    table = experiment.topology
    return table.nodes or len(topology.load(Path(str(table.file)), experiment.seed))


def joining(table: Churn) -> frozenset[int]:
    """Return the nodes that a table of [[churn]] names to join."""
    if isinstance(table, NodeEvent) and table.event == "join":
        return frozenset([table.node])
    return frozenset(table.nodes or ()) if isinstance(table, FlashCrowd) else frozenset()


def newcomers(experiment: Experiment) -> int:
    """How many nodes join beyond those of the experiment's graph, as planned. Raises ConfigError for a gap in ids."""
    joins = frozenset[int]().union(*map(joining, experiment.churn))
    uncounted = experiment.topology.graph is not None and experiment.topology.nodes is None  # the data's sites are
    if not joins or uncounted:
        return 0
    nodes = founders(experiment)
    joins = frozenset(node for node in joins if node >= nodes)
    for node in range(nodes, nodes + len(joins)):
        if node not in joins:
            raise ConfigError(
                f"churn: node {max(joins)} joins, and there is no node {node}; the graph has nodes 0 to {nodes - 1}, "
                f"and those that join beyond it are numbered from {nodes} on without a gap: call it {node}, or let "
                f"node {node} join as well"
            )
    return len(joins)


def growing(experiment: Experiment, events: Sequence[churn.Event]) -> list[tuple[int, ...]]:
    """The members at the beginning, and after each round in which some join beyond the graph, but for the last."""
    if not newcomers(experiment):
        return []
    nodes = founders(experiment)
    joins = [event for event in events if event.event == "join" and event.node >= nodes]
    rounds = sorted({event.round for event in joins})
    return [(*range(nodes), *sorted(e.node for e in joins if e.round < round)) for round in rounds]


def undisturbed(experiment: Experiment, what: str) -> Experiment:
    """The same without churn, with all nodes from the beginning that ever take part.

    Raises ConfigError, which begins with `what` asks for it, where the graph of a file has no place for them.
    """
    quiet, more = replace(experiment, churn=()), newcomers(experiment)
    if not more:
        return quiet
    if experiment.topology.graph is None:
        raise ConfigError(
            f"{what}: leaves [[churn]] out, and the graph of {experiment.topology.file} has no place for those that "
            "join it; use a graph by name"
        )
    return replace(quiet, topology=replace(experiment.topology, nodes=founders(experiment) + more))


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
