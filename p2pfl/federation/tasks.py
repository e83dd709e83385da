"""From a federation to the tasks of its nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from p2pfl import churn
from p2pfl.data import dictionary
from p2pfl.data.far_off import beside_all
from p2pfl.data.stored import part as rows_of
from p2pfl.federation.epochs import Epoch
from p2pfl.federation.federation import Federation
from p2pfl.learning import batching
from p2pfl.learning.batching import eval_set
from p2pfl.learning.targets import TARGETS
from p2pfl.methods import statistics
from p2pfl.node.program import compile
from p2pfl.node.task import Task, node_schedule
from p2pfl.types import Tree


def tasks(federation: Federation) -> list[Task]:
    """The tasks of all nodes, for drivers that run them in one process: equal programs are compiled once."""
    plan = federation.planner()
    made = [task(federation, node, plan) for node in range(len(federation.graph))]
    programs = {each.program.slots: each.program for each in made}
    return [each._replace(program=programs[each.program.slots], test=made[0].test) for each in made]


def task(federation: Federation, node: int, plan: Callable[[Sequence[int]], Epoch] | None = None) -> Task:
    """Return the task of one node. `plan`: of `federation.planner()`, for those who make several tasks."""
    plan = plan or federation.planner()
    experiment, dataset, parts = federation.experiment, federation.dataset, federation.partition
    algorithm, rows, training = federation.algorithm, parts.train[node], experiment.training
    planned = federation.schedule.neighbor.shape[1]
    whole = federation.schedule if node < planned else plan((*range(planned), node)).schedule
    part = node_schedule(whole, node)
    ids = part.neighbors()
    dtype, seed = np.dtype(training.dtype), experiment.seed
    # what a link loses is known to both ends, who open no exchange then; a partition nobody is told of
    known = [event for event in federation.churn if event.event == "link_loss"]

    meaning = dictionary.describe(dataset)
    return Task(
        node=node,
        neighbors=ids,
        schedule=part,
        link=algorithm.link,
        per_edge=algorithm.per_edge,
        lost=churn.losing(known, experiment.network.loss, seed),
        program=compile(algorithm, federation.learner, part.slots(algorithm.per_edge), seed),
        slots=part.slots(algorithm.per_edge),
        within=lambda members: node_schedule(plan(members).schedule, node),
        note=lambda members: plan(members).note,
        seed=seed,
        rounds=experiment.rounds,
        x=rows_of(dataset.train.x, rows).astype(dtype),
        y=rows_of(dataset.train.y, rows),
        site=jax.tree.map(lambda rows: np.asarray(rows[node]), federation.sites),
        batching=batching.one(seed, node, max(len(rows), 1), int(federation.steps[node]), federation.batch_size),
        test=eval_set(dataset.test.x.astype(dtype), dataset.test.y, dataset.kind == "survival"),
        own=parts.test[node],
        pooled=federation.pooled,
        evaluate_every=experiment.evaluation.every,
        events=federation.churn,
        score=TARGETS[dataset.kind].key,
        meaning=dictionary.to_json(meaning),
        learned=None if federation.pooled else _beside_all(federation, node),
        compare=lambda theirs: dictionary.differences(dictionary.from_json(theirs), meaning),
    )


def _beside_all(federation: Federation, node: int) -> Callable[[Tree], Sequence[str] | None] | None:
    """How a node that brings its own rows finds out that a column of them is far from those of all others."""
    features = federation.dataset.features
    sums = federation.sites.get("sums", {}) if isinstance(federation.sites, dict) else {}
    if "moments" not in sums or not features:
        return None
    mine = jax.tree.map(lambda part: np.asarray(part[node]), sums["moments"])
    own = statistics.estimated({"moments": mine})["moments"]

    def learned(params: Tree) -> Sequence[str] | None:
        found = params["statistics"]
        if not found["known"]:
            return None
        of_all = found["moments"]
        mean, sd, all_mean, all_sd = (
            np.asarray(part, np.float64) for part in (own["mean"], own["sd"], of_all["mean"], of_all["sd"])
        )
        return beside_all(mean, sd, all_mean, all_sd, features)

    return learned
