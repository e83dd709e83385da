"""The liars of an experiment: what its [[attack]] tables ask for, checked, and what they make of learner and algorithm.

Nodes that lie are no part of a run's figures: every mean, and the worst node, is of the honest ones.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from p2pfl.config import attack as tables
from p2pfl.config.experiment import Experiment
from p2pfl.data import Dataset
from p2pfl.errors import ConfigError
from p2pfl.methods.attack import flipping, lying
from p2pfl.types import Algorithm, Array, Learner

_LIE = 0x11E5
"""Of the seed of lies, so that other draws of the same seed are others."""


def liars(experiment: Experiment) -> frozenset[int]:
    """Return the nodes that lie."""
    return frozenset(node for table in experiment.attack for node in table.nodes)


def check(experiment: Experiment, nodes: int) -> None:
    """Raises ConfigError for attacks that can't be meant. `nodes`: how many there are."""
    told = Counter(node for table in experiment.attack for node in set(table.nodes))
    for i, table in enumerate(experiment.attack):
        where = f"attack[{i}].nodes={[*table.nodes]}"
        if not table.nodes:
            raise ConfigError(f"{where}: names nobody; name the nodes that lie, or leave the table out")
        for node in table.nodes:
            if node >= nodes:
                raise ConfigError(f"{where}: there is no node {node}; there are {nodes}, 0 to {nodes - 1}")
            if told[node] > 1 or table.nodes.count(node) > 1:
                raise ConfigError(f"{where}: node {node} is named twice; a node lies in one way")
        if table.by in tables.EACH and experiment.network.late:
            raise ConfigError(
                f"attack[{i}].by={table.by!r}: tells each neighbour something else, which network.late does not keep "
                "apart; leave late out"
            )
    if not experiment.attack:
        return
    if sum(table.by in tables.EACH for table in experiment.attack) > 1:
        raise ConfigError(f"attack: {' and '.join(tables.EACH)} may be in one table only; leave the others out")
    if len(told) == nodes:
        raise ConfigError(
            f"attack: all {nodes} nodes lie, and nobody is left whose model counts; leave somebody honest"
        )
    if experiment.evaluation.leave_site_out:
        raise ConfigError("evaluation.leave_site_out: numbers nodes anew, and attack names them; leave one of them out")
    if any(each.get("name") == "widths" for each in experiment.training.objective):
        raise ConfigError("attack: lies are of one shape, and the objective widths has several; leave one of them out")


def facts(experiment: Experiment, nodes: int) -> dict[str, np.ndarray]:
    """Return what nodes know of their part in it, where there are liars.

    "liar" [n] int32: the number of their table, from 1 on; 0 of the honest. "lie" [n, 2] uint32: words of a key.
    """
    if not experiment.attack:
        return {}
    mark = np.zeros(nodes, np.int32)
    for i, table in enumerate(experiment.attack):
        mark[[node for node in table.nodes if node < nodes]] = i + 1
    words = [np.random.SeedSequence([experiment.seed, node, _LIE]).generate_state(2) for node in range(nodes)]
    return {"liar": mark, "lie": np.stack(words)}


def told(experiment: Experiment, algorithm: Algorithm) -> Algorithm:
    """The algorithm in which liars lie. Raises ConfigError."""
    chosen = [(i, each) for i, each in enumerate(experiment.attack) if each.by != "label_flip"]
    for i, table in sorted(chosen, key=lambda each: each[1].by in tables.EACH):  # what is per edge lies outermost
        scale = getattr(table, "scale", None)
        try:
            algorithm = lying(table.by, scale, i + 1)(algorithm)
        except ConfigError as error:
            raise ConfigError(f"attack[{i}]: {error}") from error
    return algorithm


def learned(experiment: Experiment, learner: Learner, dataset: Dataset) -> Learner:
    """The learner of which some nodes learn from wrong labels, where [[attack]] says so. Raises ConfigError."""
    for i, table in enumerate(experiment.attack):
        if table.by != "label_flip":
            continue
        if dataset.kind not in ("classes", "labels") or not dataset.classes:
            raise ConfigError(f"attack[{i}].by='label_flip': the data have no labels to flip; use another attack")
        last = 1 if dataset.kind == "labels" else len(dataset.classes) - 1

        def flip(y: Array, last: int = last) -> Array:
            return last - y

        learner = flipping(learner, flip, i + 1)
    return learner


def notes(experiment: Experiment) -> tuple[str, ...]:
    """Say who lies, and whom figures are of."""
    if not experiment.attack:
        return ()
    listed = "; ".join(f"{', '.join(map(str, table.nodes))} by {table.by}" for table in experiment.attack)
    return (f"attack: of the nodes lie {listed}. All figures are those of the honest nodes",)
