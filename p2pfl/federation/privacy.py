"""What [privacy] means for the nodes of an experiment: how many local steps each may take, and who learns how much."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import optax

from p2pfl.config.experiment import Experiment, Privacy
from p2pfl.data.partition import names
from p2pfl.errors import ConfigError
from p2pfl.federation.datasets import Datasets, watched
from p2pfl.federation.topology import Topology
from p2pfl.learning.optimizers import by_gradient
from p2pfl.methods.objectives import Objective
from p2pfl.methods.privacy import Sampling, accountant, dp_sgd, joint_view
from p2pfl.methods.privacy.dp_sgd import ALLOWED, NOISE, RATE
from p2pfl.methods.robust import RULES
from p2pfl.topology import matrix

OBJECTIVES = frozenset({"fedprox", "ridge", "class_weights", "augment", "average"})
"""Objectives that ask rows for nothing but their gradients, one by one."""
WRAPS = frozenset({"cast", "clip", "fourier", "noise", *RULES})
"""Combinators that tell others nothing of the rows."""
LINEAR = frozenset({"dsgd"})
"""Algorithms in which a model is a sum of contributions that mixing weighs as planned."""
UNLIMITED = np.iinfo(np.int32).max


class PrivateSteps(NamedTuple):
    """The local steps of the nodes, differentially private."""

    table: Privacy
    objective: Objective
    sampling: tuple[Sampling | None, ...]  # of each node; None: only the node itself knows its rows
    noise: tuple[float, ...]  # noise multiplier of each node; 0: unknown
    planned: tuple[int, ...]  # local steps of each node, if it takes part in every round
    allowed: tuple[int, ...]  # within the budget
    batch_size: int  # rows that there is room for
    used: np.ndarray | None  # [n] rows of a pass: see p2pfl.learning.batching

    def terms(self, node: int) -> str:
        """Return what a step of a node costs, in words that are the same while it is the same."""
        own, table = self.sampling[node], self.table
        rows = "unknown rows" if own is None else f"{own.rows} rows in batches of {own.batch_size}"
        return f"noise {self.noise[node]:.6g}, clip {table.clip:g}, {table.sampling}, {rows}"

    def spent(self, node: int, steps: int) -> float | None:
        """Return epsilon of so many steps of a node, for who sees all its messages; None where its rows are unknown."""
        own = self.sampling[node]
        return None if own is None else accountant.epsilon(self.noise[node], own, steps, self.table.delta)


def resolve(experiment: Experiment, data: Datasets, optimizer: optax.GradientTransformation) -> PrivateSteps | None:
    """Return what [privacy] means; None without. Raises ConfigError for what goes past the noise, or buys nothing."""
    table = experiment.privacy
    if table is None:
        return None
    accountant.needed()
    _check(experiment, data, optimizer)
    training, rows, poisson = experiment.training, data.samples, table.sampling == "poisson"
    for node, many in enumerate(rows):
        if 0 <= many < training.batch_size:
            raise ConfigError(
                f"training.batch_size={training.batch_size}: node {node} has {many} training rows; with [privacy] a "
                "batch takes every row once at most, so give a smaller one"
            )
    own = training.node_steps or ()
    a_round = [*own, *[training.local_steps] * (len(rows) - len(own))]
    planned = tuple(experiment.rounds * steps for steps in a_round)
    gaps = bool(data.events) or experiment.topology.take_part < 1  # then steps that are taken are not those before
    sampling = tuple(
        None if many < 0 else Sampling(int(many), training.batch_size, poisson, most if gaps else None)
        for many, most in zip(rows, planned, strict=True)
    )

    kinds = {each: _terms(table, *each) for each in {*zip(sampling, planned, strict=True)}}
    noise, allowed = zip(*(kinds[each] for each in zip(sampling, planned, strict=True)), strict=True)
    room = max((one.room(most, table.delta) for one, most in zip(sampling, planned, strict=True) if one), default=1)
    found = dp_sgd(table.clip, training.batch_size, poisson)
    given: Mapping[str, np.ndarray] = {
        ALLOWED: np.array([UNLIMITED if table.epsilon is None else most for most in allowed], np.int32),
        NOISE: np.array(noise, np.float32),
    }
    if poisson:
        given = {**given, RATE: np.array([one.rate if one else 0.0 for one in sampling], np.float32)}
    used = [room if poisson else one.pass_steps * one.batch_size if one else 1 for one in sampling]
    steps = PrivateSteps(
        table, found._replace(given=MappingProxyType(given)), sampling, noise, planned, allowed, room, np.array(used)
    )
    _check_budget(steps, a_round)
    return steps


def _terms(table: Privacy, own: Sampling | None, planned: int) -> tuple[float, int]:
    """The noise multiplier of a node, and the local steps that its budget allows, of those planned."""
    if own is None:
        return 0.0, 0
    if table.noise is None:
        assert table.epsilon is not None
        return accountant.noise_for(table.epsilon, own, planned, table.delta), planned
    if table.epsilon is None:
        return table.noise, planned
    noise = table.noise

    def spent(steps: int) -> float:
        return accountant.epsilon(noise, own, steps, table.delta)

    return noise, accountant.steps_within(table.epsilon, planned, spent)


def _check(experiment: Experiment, data: Datasets, optimizer: optax.GradientTransformation) -> None:
    """Raises ConfigError for what tells others of the rows without noise."""
    training, kind, table = experiment.training, data.dataset.kind, experiment.privacy
    if table is not None and table.noise is None and table.epsilon is None:
        raise ConfigError(
            "privacy.noise: must be given, or privacy.epsilon, for which as little noise is taken as will do"
        )
    if data.task is not None or experiment.data.source == "script":
        raise ConfigError(f"privacy: data.source={experiment.data.source!r} has no rows to protect; leave it out")
    if kind == "survival":
        raise ConfigError(
            "privacy: of survival a row's part in the loss depends on all rows that are at risk with it, so that none "
            "can be clipped by itself; leave it out"
        )
    for i, given in enumerate(training.objective):
        if given.get("name") not in OBJECTIVES:
            raise ConfigError(
                f"training.objective[{i}]: {given.get('name')} takes more of the rows than their clipped gradients; "
                f"with [privacy] use {', '.join(sorted(OBJECTIVES))}, or leave [privacy] out"
            )
    for i, given in enumerate(experiment.algorithm.wrap):
        if given.get("name") not in WRAPS:
            raise ConfigError(
                f"algorithm.wrap[{i}]: {given.get('name')} tells neighbours something of the rows without noise; with "
                f"[privacy] use {', '.join(sorted(WRAPS))}, or leave [privacy] out"
            )
    if table is not None and not data.pooled and table.sampling == "passes":
        raise ConfigError(
            'privacy.sampling="passes": is for studies; a node may go over rows again after a crash, of which passes '
            'know nothing: give sampling = "poisson"'
        )
    if data.pooled and any(event.event in ("crash", "rejoin") and event.state == "lost" for event in data.events):
        raise ConfigError(
            "churn: a node that comes back without its state has forgotten what it has spent; with [privacy] give "
            'state = "kept" (a real node keeps its count beside its checkpoints)'
        )
    if experiment.statistics.gather or experiment.statistics.normalize:
        raise ConfigError(
            "statistics: sums over rows are told without accounting for them; with [privacy] leave them out, and scale "
            "columns by constants that all know"
        )
    if watched(experiment):
        raise ConfigError(
            "training.patience (or the answer best): when a node stops tells of its validation rows; leave it out with "
            "[privacy]"
        )
    by_gradient(optimizer, "privacy")  # no noise is added to losses


def _check_budget(steps: PrivateSteps, a_round: list[int]) -> None:
    """Raises ConfigError for a budget that the first round exceeds."""
    budget = steps.table.epsilon
    for node, (own, allowed, first) in enumerate(zip(steps.sampling, steps.allowed, a_round, strict=True)):
        if budget is None or own is None or allowed >= first:
            continue
        spent = steps.spent(node, first)
        raise ConfigError(
            f"privacy.epsilon={budget:g}: the {first} local steps of the first round cost node {node}, of {own.rows} "
            f"rows, {spent:.3g}; raise privacy.noise or epsilon, or take fewer local steps"
        )


def notes(experiment: Experiment, data: Datasets, steps: PrivateSteps) -> tuple[str, ...]:
    """Say what the plan costs, who stops early, and what is not protected."""
    table, called = steps.table, names(data.partition, data.dataset)
    known = [node for node, own in enumerate(steps.sampling) if own is not None]
    costs = {node: steps.spent(node, min(steps.allowed[node], steps.planned[node])) for node in known}
    said = []
    if known:
        worst = max(known, key=lambda node: costs[node] or 0)
        said.append(
            f"privacy: all that {called[worst]} sends in {experiment.rounds} rounds is ({costs[worst]:.3g}, "
            f"{table.delta:g})-differentially private for each of its rows, for whoever sees all of it"
            + (" (the most of all nodes)" if len(known) > 1 else "")
        )
    early = [called[node] for node in known if steps.allowed[node] < steps.planned[node]]
    if early:
        said.append(
            f"privacy.epsilon={table.epsilon:g}: {', '.join(early[:10])} will take no local step after "
            f"{min(steps.allowed[node] for node in known)} of {max(steps.planned)}, and go on mixing"
        )
    if table.sampling == "passes":
        said.append("privacy: batches go over the rows in an order that all may know, so that nothing is amplified")
    large = [called[node] for node in known if table.delta * (steps.sampling[node] or Sampling(1, 1)).rows >= 1]
    if large:
        said.append(
            f"privacy.delta={table.delta:g}: is not below 1 / rows at {', '.join(large[:10])}, and so says little"
        )
    if any(column.standardize == "node" for column in data.dataset.columns):
        said.append(
            "privacy: columns are scaled by the mean and deviation of a site's own rows, which is not accounted for"
        )
    if experiment.algorithm.share is not None:
        said.append("privacy: leaves that never leave the node are noised like all others; only what travels needs it")
    return tuple(said)


def by_distance(experiment: Experiment, topology: Topology, steps: PrivateSteps) -> dict[str, dict[str, float]] | None:
    """Epsilon of each node for each single other one, by the linear view of the planned rounds; None: not to be had.

    It takes the gradients of the other honest nodes as given: see p2pfl.methods.privacy.joint_view.
    """
    weights = np.stack([matrix(topology.schedule, row) for row in range(len(topology.schedule.neighbor))])
    nodes, rounds = weights.shape[1], experiment.rounds
    rule = experiment.training.optimizer  # at one rate: what is added in each round is noised alike
    plain = isinstance(rule, dict) and rule.keys() == {"name", "learning_rate"} and rule["name"] == "sgd"
    steady = plain and isinstance(rule, dict) and isinstance(rule["learning_rate"], int | float)
    fits = experiment.algorithm.name in LINEAR and not experiment.algorithm.wrap and steady
    network, told = experiment.network, experiment.churn or experiment.attack
    lossy = told or network.loss or network.late or experiment.topology.take_part < 1
    largest = max(len(joint_view.seen_by(weights, [node])) for node in range(nodes))
    if not fits or lossy or joint_view.too_large(nodes, rounds, largest) or None in steps.sampling:
        return None
    table: dict[str, dict[str, float]] = {str(node): {} for node in range(nodes)}
    most = [steps.spent(node, steps.allowed[node]) or 0.0 for node in range(nodes)]  # of all together
    adding = max(-(-steps.allowed[node] * rounds // max(steps.planned[node], 1)) for node in range(nodes))
    for looker in range(nodes):
        seen = joint_view.projection(weights, rounds, {looker}, adding)
        for node in range(nodes):
            if node != looker:
                mu = _mu_squared(seen[node], steps, node, rounds)
                table[str(node)][str(looker)] = min(most[node], accountant.of_gaussian(mu, steps.table.delta))
    return table


def _mu_squared(view: np.ndarray, steps: PrivateSteps, node: int, rounds: int) -> float:
    """mu^2 of what is seen of a node, a row's part in each round against the noise of its own steps.

    That of the node's other steps of the round may depend on the row, and hides nothing here.
    """
    own = steps.sampling[node]
    assert own is not None
    a_round = steps.planned[node] // rounds
    most = own.parts(steps.allowed[node])
    at_once = min(own.parts(a_round) + (0 if own.poisson else 1), a_round)
    change = np.full(len(view), np.sqrt(at_once) / steps.noise[node])
    return joint_view.sensitivity(view, change, most)
