"""What [privacy] means for the nodes of an experiment: how many local steps each may take, and who learns how much."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple

import networkx as nx
import numpy as np
import optax

from p2pfl.config.experiment import Experiment, Privacy
from p2pfl.data.partition import names
from p2pfl.errors import ConfigError
from p2pfl.federation.datasets import Datasets, watched
from p2pfl.federation.topology import Topology
from p2pfl.learning.optimizers import by_gradient
from p2pfl.methods.objectives import Objective
from p2pfl.methods.privacy import Sampling, accountant, dp_sgd, joint_view, noised_updates
from p2pfl.methods.privacy.correlated import SHARED, SIGN, pairs
from p2pfl.methods.privacy.dp_sgd import ALLOWED, NOISE, RATE
from p2pfl.methods.robust import RULES
from p2pfl.topology import matrix

OBJECTIVES = frozenset({"fedprox", "ridge", "class_weights", "augment", "average"})
"""Objectives that ask rows for nothing but their gradients, one by one."""
WRAPS = frozenset({"cast", "clip", "fourier", "noise", "zip_dl", "shatter", *RULES})
"""Combinators that tell others nothing of the rows."""
LINEAR = frozenset({"dsgd"})
"""Algorithms in which a model is a sum of contributions that mixing weighs as planned."""
UNLIMITED = np.iinfo(np.int32).max
MOST_PAIRED = 512
"""Nodes up to which noise that neighbours share is looked at: every one of them is taken for curious in turn."""


class PrivateSteps(NamedTuple):
    """What the nodes tell of their rows, differentially private: local steps, or the update of each round."""

    table: Privacy
    objective: Objective
    sampling: tuple[Sampling | None, ...]  # of each node; None: only the node itself knows its rows
    noise: tuple[float, ...]  # noise multiplier of each node; 0: unknown
    planned: tuple[int, ...]  # local steps (or updates) of each node, if it takes part in every round
    allowed: tuple[int, ...]  # within the budget
    batch_size: int  # rows that there is room for
    used: np.ndarray | None  # [n] rows of a pass: see p2pfl.learning.batching
    linked: np.ndarray  # [n, n] bool: who shares noise with whom
    seen: Mapping[str, tuple[float, ...]]  # adversary -> the noise multiplier of each node as that one sees it

    def terms(self, node: int) -> str:
        """Return what a step of a node costs, in words that are the same while it is the same."""
        own, table = self.sampling[node], self.table
        rows = "unknown rows" if own is None else f"{own.rows} rows in batches of {own.batch_size}"
        of = "" if table.of == "rows" else f", {table.law} on updates"
        shared = "" if table.correlated is None else f", {table.correlated:g} shared"
        return f"noise {self.noise[node]:.6g}, clip {table.clip:g}, {table.sampling}, {rows}{of}{shared}"

    def spent(self, node: int, steps: int, adversary: str = "neighbours") -> float | None:
        """Return epsilon of so many steps (or updates) of a node, for an adversary, a key of `seen`, that sees all.

        None where the node's rows are unknown, and for a coalition that the node belongs to.
        """
        own, noise = self.sampling[node], self.seen[adversary][node]
        return None if own is None or not noise else _cost(self.table, noise, own, steps)

    @property
    def against(self) -> str:
        """The adversary that the budget is meant against, a key of `seen`."""
        return _called(self.table.adversary)


def _called(adversary: str | tuple[int, ...]) -> str:
    """An adversary, in words."""
    return adversary if isinstance(adversary, str) else f"nodes {', '.join(map(str, sorted(set(adversary))))}"


def _cost(table: Privacy, noise: float, own: Sampling, steps: int) -> float:
    """Epsilon of so many steps or updates at a noise multiplier."""
    if table.of == "updates":
        return accountant.of_updates(noise, steps, table.delta, table.law)
    return accountant.epsilon(noise, own, steps, table.delta)


def _enough(table: Privacy, own: Sampling | None, planned: int) -> float:
    """The noise multiplier that whoever the budget is meant against must see, where it is not given; 0: unknown."""
    if own is None:
        return 0.0
    if table.noise is not None:
        return table.noise
    assert table.epsilon is not None
    if not planned:
        return 1.0
    if table.of == "rows":
        return accountant.noise_for(table.epsilon, own, planned, table.delta)
    return accountant.least(lambda noise: _cost(table, noise, own, planned), table.epsilon)


def resolve(
    experiment: Experiment, data: Datasets, optimizer: optax.GradientTransformation, graph: nx.Graph
) -> PrivateSteps | None:
    """Return what [privacy] means; None without. Raises ConfigError for what goes past the noise, or buys nothing."""
    table = experiment.privacy
    if table is None:
        return None
    accountant.needed()
    _check(experiment, data, optimizer)
    _check_table(table, experiment, data, graph)
    training, rows, poisson = experiment.training, data.samples, table.sampling == "poisson"
    for node, many in enumerate(rows):
        if 0 <= many < training.batch_size and table.of == "rows":
            raise ConfigError(
                f"training.batch_size={training.batch_size}: node {node} has {many} training rows; with [privacy] a "
                "batch takes every row once at most, so give a smaller one"
            )
    own = training.node_steps or ()
    a_round = [*own, *[training.local_steps] * (len(rows) - len(own))]
    if table.of == "updates":
        a_round = [min(steps, 1) for steps in a_round]
    planned = tuple(experiment.rounds * steps for steps in a_round)
    gaps = bool(data.events) or experiment.topology.take_part < 1  # then steps that are taken are not those before
    sampling = tuple(
        None if many < 0 else Sampling(int(many), training.batch_size, poisson, most if gaps else None)
        for many, most in zip(rows, planned, strict=True)
    )
    each = [*zip(sampling, planned, strict=True)]
    enough = {kind: _enough(table, *kind) for kind in {*each}}
    linked = _linked(graph, len(rows))
    noise = _own_noise(table, tuple(enough[kind] for kind in each), linked)
    seen = _seen(table, noise, linked)
    sights = [*zip(each, noise if table.correlated is None else seen[_called(table.adversary)], strict=True)]
    within = {(kind, sight): _allowed(table, sight, *kind) for kind, sight in {*sights}}
    allowed = tuple(within[sight] for sight in sights)
    if table.correlated is not None:  # who stopped before its neighbours would leave them with what it takes away
        allowed = (min(allowed),) * len(allowed)
    room = max((one.room(most, table.delta) for one, most in each if one), default=1)
    used = [room if poisson else one.pass_steps * one.batch_size if one else 1 for one in sampling]
    whole = table.of == "updates"
    steps = PrivateSteps(
        table, _objective(experiment, sampling, noise, allowed, linked), sampling, noise, planned, allowed,
        training.batch_size if whole else room, None if whole else np.array(used), linked, seen,
    )  # fmt: skip
    _check_budget(steps, a_round)
    return steps


def _objective(
    experiment: Experiment, sampling: tuple[Sampling | None, ...], noise: tuple[float, ...], allowed: tuple[int, ...],
    linked: np.ndarray,
) -> Objective:  # fmt: skip
    """What is done to local steps, with what each node knows for it."""
    table = experiment.privacy
    assert table is not None
    given: dict[str, np.ndarray] = {
        ALLOWED: np.array([UNLIMITED if table.epsilon is None else most for most in allowed], np.int32),
        NOISE: np.array(noise, np.float32),
    }
    if table.sampling == "poisson":
        given[RATE] = np.array([one.rate if one else 0.0 for one in sampling], np.float32)
    if table.correlated is not None:
        given[SHARED], given[SIGN] = pairs(linked, experiment.seed)
    shared = table.correlated or 0.0
    if table.of == "updates":
        found = noised_updates(table.clip, table.law, shared)
    else:
        found = dp_sgd(table.clip, experiment.training.batch_size, table.sampling == "poisson", shared)
    return found._replace(given=MappingProxyType(given))


def _linked(graph: nx.Graph, nodes: int) -> np.ndarray:
    """[n, n] bool: who is a neighbour of whom."""
    linked = np.zeros((nodes, nodes), bool)
    for i, j in graph.edges:
        linked[i, j] = linked[j, i] = i != j
    return linked


def _own_noise(table: Privacy, enough: tuple[float, ...], linked: np.ndarray) -> tuple[float, ...]:
    """The noise multiplier of each node's own noise, of what whoever the budget is meant against must see."""
    if table.correlated is None or table.noise is not None:
        return enough
    adversary = _called(table.adversary)

    def lacking(own: float) -> float:  # one for all nodes, so that no node is seen through another's
        seen = _seen(table, (own,) * len(enough), linked)[adversary]
        return max((need / sight for need, sight in zip(enough, seen, strict=True) if sight), default=0.0)

    return (accountant.least(lacking, 1.0),) * len(enough)


def _seen(table: Privacy, noise: tuple[float, ...], linked: np.ndarray) -> dict[str, tuple[float, ...]]:
    """Adversary -> the noise multiplier of each node as it is for that one; 0 at nodes that belong to it."""
    nodes, named = len(noise), table.adversary
    within = () if isinstance(named, str) else tuple(sorted(set(named)))
    found = {"neighbours": noise, "neighbour": noise, "stranger": noise}
    if within:
        found[_called(named)] = tuple(0.0 if node in within else own for node, own in enumerate(noise))
    if table.correlated is None:
        return found

    def seen(lookers: Collection[int]) -> np.ndarray:
        hidden = joint_view.covariance(np.array(noise), table.correlated or 0.0, linked, lookers)
        return joint_view.of_all_messages(hidden, lookers)

    by = {"stranger": seen(()), "neighbour": np.max([seen({node}) for node in range(nodes)], axis=0)}
    if within:
        by[_called(named)] = seen(within)
    return {**found, **{who: tuple(float(1 / np.sqrt(mu)) if mu else 0.0 for mu in each) for who, each in by.items()}}


def _allowed(table: Privacy, noise: float, own: Sampling | None, planned: int) -> int:
    """How many of the planned steps the budget of a node allows, at the noise that it is meant to be seen through."""
    if own is None:
        return 0
    if table.epsilon is None or table.noise is None or not noise:
        return planned

    def spent(steps: int) -> float:
        return _cost(table, noise, own, steps)

    return accountant.steps_within(table.epsilon, planned, spent)


def _check_table(table: Privacy, experiment: Experiment, data: Datasets, graph: nx.Graph) -> None:
    """Raises ConfigError for settings of [privacy] that would do nothing, or not what they say."""
    nodes = len(graph)
    if table.law == "laplace" and table.of == "rows":
        raise ConfigError(
            'privacy.law="laplace": is for whole updates, of which the sum of absolute values is clipped; give '
            'of = "updates", or leave law out'
        )
    if table.of == "updates" and table.sampling == "poisson":
        raise ConfigError(
            'privacy.sampling="poisson": does nothing for of = "updates", which protects all rows of a node together, '
            "whichever are drawn; leave it out"
        )
    if not isinstance(table.adversary, str):
        strange = [node for node in table.adversary if node >= nodes]
        if strange or not table.adversary or len(set(table.adversary)) >= nodes:
            raise ConfigError(
                f"privacy.adversary={[*table.adversary]}: must name some, and not all, of the nodes 0 to {nodes - 1}"
            )
    elif table.adversary != "neighbours" and table.correlated is None:
        raise ConfigError(
            f"privacy.adversary={table.adversary!r}: does nothing without privacy.correlated: whoever sees a node's "
            "messages sees them through its own noise alone; leave it out, or give correlated"
        )
    if table.correlated is not None:
        _check_correlated(table, experiment, data, graph)


def _check_correlated(table: Privacy, experiment: Experiment, data: Datasets, graph: nx.Graph) -> None:
    """Raises ConfigError where noise that neighbours share would not cancel, or be no secret."""
    where, steps = f"privacy.correlated={table.correlated:g}", experiment.training.node_steps
    if not data.pooled:
        raise ConfigError(
            f"{where}: needs a secret that each pair of neighbours has and nobody else, and nodes with data of their "
            "own agree on none yet; leave it out (studies draw it from the seed)"
        )
    if table.law != "gaussian":
        raise ConfigError(f"{where}: is Gaussian, and accounted for together with Gaussian noise; leave law out")
    if data.events or experiment.topology.take_part < 1:
        raise ConfigError(
            f"{where}: cancels where both neighbours take every step; with churn or topology.take_part they would "
            "come out of step; leave one of the two out"
        )
    if steps is not None and len({min(each, 1) if table.of == "updates" else each for each in steps}) > 1:
        raise ConfigError(
            f"training.node_steps={[*steps]}: with {where} all nodes must take as many steps, so that what they share "
            "cancels; leave one of the two out"
        )
    if experiment.algorithm.name == "fedavg":
        raise ConfigError(
            f"{where}: cancels where both neighbours take every step, and of fedavg the hub and the others take turns; "
            "use dsgd"
        )
    if not graph.number_of_edges() or experiment.algorithm.name == "local":
        raise ConfigError(f"{where}: nobody has a neighbour to share noise with; leave it out")
    if len(graph) > MOST_PAIRED:
        raise ConfigError(f"{where}: {len(graph)} nodes are too many to work out; {MOST_PAIRED} at most")
    if table.adversary == "neighbours" and table.noise is None:
        raise ConfigError(
            f"{where}: does nothing against all neighbours of a node together, who know all of it, and the budget is "
            'meant against them; give adversary = "neighbour", "stranger" or a list of nodes, or leave it out'
        )


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
    if data.pooled and any(event.event == "rejoin" and event.state == "lost" for event in data.events):
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
        spent, whole = steps.spent(node, first, steps.against), steps.table.of == "updates"
        if spent is None:  # it is of those whom the budget is meant against, and stops with the others
            continue
        what = "update" if whole else f"{first} local steps"
        raise ConfigError(
            f"privacy.epsilon={budget:g}: the {what} of the first round cost{'s' * whole} node {node}, of {own.rows} "
            f"rows, {spent:.3g}; raise privacy.noise or epsilon{'' if whole else ', or take fewer local steps'}"
        )


def notes(experiment: Experiment, data: Datasets, steps: PrivateSteps) -> tuple[str, ...]:
    """Say what the plan costs, who stops early, and what is not protected."""
    table, called, against = steps.table, names(data.partition, data.dataset), steps.against
    known = [node for node, own in enumerate(steps.sampling) if own is not None and steps.seen[against][node]]
    costs = {node: steps.spent(node, min(steps.allowed[node], steps.planned[node]), against) for node in known}
    what = "each of its rows" if table.of == "rows" else "all of its rows together, whatever they are"
    said = []
    if known:
        worst = max(known, key=lambda node: costs[node] or 0)
        said.append(
            f"privacy: all that {called[worst]} sends in {experiment.rounds} rounds is ({costs[worst]:.3g}, "
            f"{table.delta:g})-differentially private for {what}, for {WHO.get(against, against)}"
            + (" (the most of all nodes)" if len(known) > 1 else "")
        )
    early = [called[node] for node in known if steps.allowed[node] < steps.planned[node]]
    if early:
        told = "local step" if table.of == "rows" else "update"
        said.append(
            f"privacy.epsilon={table.epsilon:g}: {', '.join(early[:10])} will take no {told} after "
            f"{min(steps.allowed[node] for node in known)} of {max(steps.planned)}, and go on mixing"
        )
    if table.sampling == "passes" and table.of == "rows":
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
    if experiment.algorithm.share is not None and table.of == "rows":
        said.append("privacy: leaves that never leave the node are noised like all others; only what travels needs it")
    if table.correlated is not None and not _is_linear(experiment):
        said.append(
            "privacy.correlated: what neighbours share cancels in the mean where steps are plain sgd; with another "
            "optimizer some of it stays"
        )
    return tuple(said)


WHO: Mapping[str, str] = MappingProxyType(
    {
        "neighbours": "whoever sees all of it",
        "neighbour": "any single other node, even if it reads all messages of all nodes",
        "stranger": "a stranger who reads all messages of all nodes",
    }
)
"""Adversaries, keys of `PrivateSteps.seen`, in words; a coalition is called by its nodes."""


def _is_linear(experiment: Experiment) -> bool:
    """Return whether a step is a gradient at a rate: then what cancels in gradients cancels in the mean of models."""
    rule = experiment.training.optimizer
    return experiment.privacy is not None and (
        experiment.privacy.of == "updates" or (isinstance(rule, dict) and rule.get("name") == "sgd")
    )


def by_distance(
    experiment: Experiment, topology: Topology, steps: PrivateSteps, asks: bool = True
) -> dict[str, dict[str, float]] | None:
    """Epsilon of each node for each single other one, by the linear view of the planned rounds; None: not to be had.

    `asks`: as in `by_view`. It takes the gradients of the other honest nodes as given: see
    p2pfl.methods.privacy.joint_view.
    """
    nodes = len(topology.schedule.neighbor[0])
    found: dict[str, dict[str, float]] = {str(node): {} for node in range(nodes)}
    most = most_for(steps, "neighbour")
    for looker in range(nodes):
        seen = by_view(experiment, topology, steps, {looker}, most, asks)
        if seen is None:
            return None
        for node, spent in seen.items():
            found[str(node)][str(looker)] = spent
    return found


def most_for(steps: PrivateSteps, adversary: str) -> list[float]:
    """Epsilon of each node, for an adversary, a key of `seen`, that sees every step of all that are planned."""
    return [steps.spent(node, allowed, adversary) or 0.0 for node, allowed in enumerate(steps.allowed)]


def by_view(
    experiment: Experiment, topology: Topology, steps: PrivateSteps, lookers: Collection[int], most: list[float],
    asks: bool = True,
) -> dict[int, float] | None:  # fmt: skip
    """Epsilon of each other node for a coalition, by the linear view of the planned rounds; None: not to be had.

    `most`: of each node, of `most_for` this coalition, which sees no more than all. `asks`: it may ask its neighbours
    for their models in any round, as one that joins does, and so see them without the noise that "zip_dl" puts on
    messages; else that noise counts.
    """
    table, rounds = steps.table, experiment.rounds
    weights = np.stack([matrix(topology.schedule, row) for row in range(len(topology.schedule.neighbor))])
    nodes, spread = weights.shape[1], _zip_dl(experiment)
    network, told = experiment.network, experiment.churn or experiment.attack
    lossy = told or network.loss or network.late or experiment.topology.take_part < 1
    fits = experiment.algorithm.name in LINEAR and spread is not None and table.law == "gaussian"
    fits = fits and experiment.algorithm.arguments.get("order") != "cta"  # who is asked tells of steps not sent yet
    if not fits or lossy or spread is None or None in steps.sampling:
        return None
    spread = 0.0 if asks else spread
    if joint_view.too_large(weights, rounds, lookers, bool(spread)):
        return None
    adding = max(-(-steps.allowed[node] * rounds // max(steps.planned[node], 1)) for node in range(nodes))
    noise = joint_view.covariance(np.array(steps.noise), table.correlated or 0.0, steps.linked, lookers)
    seen = joint_view.projection(weights, rounds, lookers, adding, noise, spread)
    found = {}
    for node in sorted({*range(nodes)} - {*lookers}):
        mu = _mu_squared(seen[node], steps, node, rounds)
        found[node] = min(most[node], accountant.of_gaussian(mu, table.delta))
    return found


def noise_on_messages(experiment: Experiment) -> bool:
    """Whether messages have noise that counts in the linear view, for who asks for no model."""
    return bool(_zip_dl(experiment))


def _zip_dl(experiment: Experiment) -> float | None:
    """Standard deviation of the noise on messages by "zip_dl", in the units of `clip`; None: no linear view."""
    rule, table, wraps = experiment.training.optimizer, experiment.privacy, experiment.algorithm.wrap
    assert table is not None
    plain = isinstance(rule, dict) and rule.keys() == {"name", "learning_rate"} and rule["name"] == "sgd"
    rate = rule["learning_rate"] if plain and isinstance(rule, dict) else None  # what is added in each round is alike
    if not isinstance(rate, int | float) and table.of == "rows":
        return None
    unit = table.clip if table.of == "updates" else table.clip * float(rate or 0) / experiment.training.batch_size
    if not wraps:
        return 0.0
    if len(wraps) > 1 or wraps[0].get("name") != "zip_dl" or not unit:
        return None
    return float(wraps[0]["scale"]) / unit


def _mu_squared(view: np.ndarray, steps: PrivateSteps, node: int, rounds: int) -> float:
    """mu^2 of what is seen of a node, a row's part in each round against the noise of its own steps.

    That of the node's other steps of the round may depend on the row, and hides nothing here. Of updates, against those
    of any other rows.
    """
    own = steps.sampling[node]
    assert own is not None
    if steps.table.of == "updates":
        return joint_view.sensitivity(view, np.full(len(view), 2.0), steps.allowed[node])
    a_round = steps.planned[node] // rounds
    most = own.parts(steps.allowed[node])
    at_once = min(own.parts(a_round) + (0 if own.poisson else 1), a_round)
    return joint_view.sensitivity(view, np.full(len(view), np.sqrt(at_once)), most)
