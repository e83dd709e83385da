"""From a federation to the tasks of its nodes."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from p2pfl import churn, tree
from p2pfl.data import dictionary
from p2pfl.data.far_off import beside_all
from p2pfl.data.stored import part as rows_of
from p2pfl.errors import ConfigError
from p2pfl.federation import secure
from p2pfl.federation.epochs import Epoch
from p2pfl.federation.federation import Federation
from p2pfl.federation.learning import shape
from p2pfl.learning import batching
from p2pfl.learning.batching import eval_set
from p2pfl.learning.targets import TARGETS
from p2pfl.methods import statistics
from p2pfl.methods.privacy.dp_sgd import ALLOWED, counted_from
from p2pfl.node.fit import Growth, NodeSlice, growth
from p2pfl.node.program import compile
from p2pfl.node.task import Held, StepBudget, Task, node_schedule
from p2pfl.types import Algorithm, Neighborhood, Params, Payload, Tree


def tasks(federation: Federation) -> list[Task]:
    """The tasks of all nodes, for drivers that run them in one process: equal programs are compiled once."""
    plan, shapes = federation.planner(), unequal(federation)
    made = [task(federation, node, plan, shapes) for node in range(len(federation.graph))]

    def same(each: Task) -> tuple[int, int]:
        return each.program.slots, each.fit.level if each.fit else 0

    programs = {same(each): each.program for each in made}
    return [each._replace(program=programs[same(each)], test=made[0].test) for each in made]


class Unequal(NamedTuple):
    """How messages differ in shape: by the nodes at their ends, or by the round."""

    fit: Callable[[int], NodeSlice | None]
    growth: Growth | None


def unequal(federation: Federation) -> Unequal:
    """How the messages of a federation differ in shape."""
    return Unequal(fitting(federation), growing(federation))


def fitting(federation: Federation) -> Callable[[int], NodeSlice | None]:
    """How the models of nodes go together, by node, where they are of unequal shapes."""
    sliced, sites = federation.learning.sliced, federation.sites
    if sliced is None:
        return lambda node: None
    around = Neighborhood(np.zeros(1), np.zeros(1))
    payloads, models = [], []
    for learner, algorithm in zip(sliced.learners, sliced.algorithms, strict=True):
        state = jax.eval_shape(lambda model, algorithm=algorithm: algorithm.init(model, 1), shape(learner, sites))
        payloads.append(jax.eval_shape(lambda state, algorithm=algorithm: algorithm.send(state, around)[1], state))
        models.append(tree.public(jax.eval_shape(algorithm.params, state)))
    _check_slices(sliced.algorithms[0], payloads, models[0])
    whole = shape(sliced.learners[0], sites)
    return lambda node: NodeSlice(sliced.levels[node], sliced.levels, payloads, models, whole, sliced.stretches)


def growing(federation: Federation) -> Growth | None:
    """What of a payload travels in a round, where that depends on the round."""
    algorithm, around = federation.algorithm, Neighborhood(np.zeros(1), np.zeros(1))
    if algorithm.travelling is None or algorithm.per_edge:  # what is told to each is told whole
        return None
    model = shape(federation.learner, federation.sites)
    payload = jax.eval_shape(lambda model: algorithm.send(algorithm.init(model, 1), around)[1], model)
    return growth(payload, algorithm.travelling, federation.experiment.rounds)


def _check_slices(algorithm: Algorithm, payloads: Sequence[Payload], model: Params) -> None:
    """Raises ConfigError where what a narrow node sends is no part, by leaves of the model, of what a wide one does."""
    whole = tree.named_leaves(payloads[0])
    known = {leaf.partition("/")[2] for leaf in tree.named_leaves(tree.mixed(model))}
    for each in payloads[1:]:
        for name, leaf in tree.named_leaves(each).items():
            given = whole.get(name)
            if given is not None and given.shape == leaf.shape:
                continue
            of_model = any(name == path or name.endswith(f"/{path}") for path in known)
            if given is None or not of_model or any(n > have for n, have in zip(leaf.shape, given.shape, strict=False)):
                raise ConfigError(
                    f"objective widths: {algorithm.name} with its combinators sends {name}, of which a narrow node has "
                    "no part of what a wide one has; leave the combinator out, or widths"
                )


def task(
    federation: Federation,
    node: int,
    plan: Callable[[Sequence[int]], Epoch] | None = None,
    shapes: Unequal | None = None,
) -> Task:
    """Return the task of one node. `plan`, `shapes`: of the federation, for those who make several tasks."""
    plan, shapes = plan or federation.planner(), shapes or unequal(federation)
    own = shapes.fit(node)
    experiment, dataset, parts = federation.experiment, federation.dataset, federation.partition
    algorithm, rows, training = federation.algorithm, parts.train[node], experiment.training
    learner, sliced = federation.learner, federation.learning.sliced
    if sliced is not None and own is not None:
        learner, algorithm = sliced.learners[own.level], sliced.algorithms[own.level]
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
        program=compile(algorithm, learner, part.slots(algorithm.per_edge), seed, own),
        slots=part.slots(algorithm.per_edge),
        within=lambda members: node_schedule(plan(members).schedule, node),
        note=lambda members: plan(members).note,
        seed=seed,
        rounds=experiment.rounds,
        x=rows_of(dataset.train.x, rows).astype(dtype),
        y=rows_of(dataset.train.y, rows),
        site=jax.tree.map(lambda rows: np.asarray(rows[node]), federation.sites),
        batching=_batching(federation, node),
        test=eval_set(dataset.test.x.astype(dtype), dataset.test.y, dataset.kind == "survival"),
        own=parts.test[node],
        pooled=federation.pooled,
        evaluate_every=experiment.evaluation.every,
        events=federation.churn,
        held=_held(federation, node),
        patient=training.patience is not None,
        score=TARGETS[dataset.kind].key,
        meaning=dictionary.to_json(meaning),
        learned=None if federation.pooled else _beside_all(federation, node),
        compare=lambda theirs: dictionary.differences(dictionary.from_json(theirs), meaning),
        fit=own,
        growth=shapes.growth,
        part=experiment.topology.take_part,
        budget=None if (private := federation.learning.private) is None else StepBudget(
            int(private.objective.given[ALLOWED][node]), private.terms(node), counted_from,
            1 if private.table.of == "updates" else None,
        ),
        sums=secure.sums(experiment, node, lambda members: plan(members).schedule, whole),
        due=secure.due(experiment, federation.schedule),
    )  # fmt: skip


def _batching(federation: Federation, node: int) -> batching.Batching:
    """Which rows a node trains on. Where it draws them in secret, from data of its own, nobody may guess them."""
    seed, private = federation.experiment.seed, federation.learning.private
    if private is not None and private.table.sampling == "poisson" and not federation.pooled:
        seed = secrets.randbits(63)
    many = max(len(federation.partition.train[node]), 1)
    used = None if federation.used is None else int(federation.used[node])
    return batching.one(seed, node, many, int(federation.steps[node]), federation.batch_size, used)


def _held(federation: Federation, node: int) -> Held | None:
    """The validation rows by which a node watches its model; None where it does not."""
    rows, kept = federation.data.validation, federation.dataset.validation
    if rows is None or kept is None:
        return None
    sizes = np.array([len(each) for each in rows])
    places = batching.in_batches(sizes, federation.batch_size)[node]
    own = rows[node] if len(rows[node]) else np.zeros(1, np.int64)  # of a node without any, anything
    x = rows_of(kept.x, own).astype(federation.experiment.training.dtype)
    return Held(x, rows_of(kept.y, own), places)


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
