"""From an experiment to what it means: data, learner, algorithm, graph, and the task of each node.

All that can be wrong with an experiment is found here, before a socket opens or a process starts.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import networkx as nx
import numpy as np
import optax

from p2pfl import churn as churning
from p2pfl import data as sources
from p2pfl import topology
from p2pfl.algorithms import ALGORITHMS
from p2pfl.algorithms.mixing import renormalized
from p2pfl.config.experiment import AlgorithmTable, Data, Experiment, TopologyTable
from p2pfl.data import Dataset, partition
from p2pfl.data.partition import Partition
from p2pfl.errors import ConfigError, DataError, nearest
from p2pfl.federation import epochs, learning
from p2pfl.federation import events as planned
from p2pfl.learning import quadratic
from p2pfl.methods import answers as predict
from p2pfl.methods import statistics
from p2pfl.node.plan import Terms
from p2pfl.protocol.timing import PRESETS, Timing
from p2pfl.types import Algorithm, Learner, Planning, Schedule, Tree


class Federation(NamedTuple):
    """An experiment, built."""

    experiment: Experiment
    dataset: Dataset
    partition: Partition
    graph: nx.Graph  # who may ever talk to whom, as the experiment names it
    schedule: Schedule  # what the algorithm makes of it
    learner: Learner
    make: Callable[[Learner], Algorithm]  # the algorithm, with the experiment's optimizer
    churn: tuple[churning.Event, ...]
    pooled: bool  # the test rows are those of all nodes
    notes: tuple[str, ...]  # what a person should know of the data
    sites: Tree  # [n, ...] what each node knows of its own data, where it is asked for
    task: quadratic.Quadratic | None = None  # of the source "quadratic": what is to be found

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm that learns with the federation's learner."""
        return self.make(self.learner)

    @property
    def steps(self) -> np.ndarray:
        """[n] local steps of each node in a round in which it trains."""
        training = self.experiment.training
        return np.array(training.node_steps or [training.local_steps] * len(self.graph), np.int64)

    @property
    def conditions(self) -> churning.Conditions:
        """The network as the experiment has it."""
        network, algorithm = self.experiment.network, self.algorithm
        return churning.Conditions(
            network.loss, network.rule, network.late, algorithm.lateness, algorithm.link, self.experiment.seed,
            network.detection,
        )  # fmt: skip

    @property
    def samples(self) -> np.ndarray:
        """[n] int64: training rows of each node; -1 where only the node itself knows."""
        return _samples(self.partition, self.pooled or self.task is not None)

    def planner(self) -> Callable[[Sequence[int]], epochs.Epoch]:
        """A function from members to their epoch."""
        return epochs.planner(self.experiment, self.algorithm, self.schedule, self.samples)


def build(experiment: Experiment) -> Federation:
    """Everything an experiment names. Raises ConfigError."""
    plan, events, optimizer = _before_data(experiment)
    nodes = plan.neighbor.shape[1]
    if experiment.data.source == "quadratic":
        return _quadratic(experiment, plan, optimizer, events)
    dataset = _tested_on(_dataset(experiment.data, experiment.seed), experiment.evaluation.rows)
    parts = _partition(experiment.data, dataset, nodes, experiment.seed)
    notes = (*dataset.notes, *partition.describe(parts, dataset))
    if planned.by_label(experiment):
        events = planned.events(experiment, plan, [planned.labels(dataset, rows) for rows in parts.train])
    return _assemble(experiment, dataset, parts, plan, optimizer, events, True, notes)


def build_own(experiment: Experiment, node: int, own: Data) -> Federation:
    """The same for a machine that holds one node's rows and no other: all rows of `own` are this node's."""
    plan, events, optimizer = _before_data(experiment)
    nodes = plan.neighbor.shape[1]
    if not 0 <= node < nodes:
        raise ConfigError(f"node={node}: the topology has nodes 0 to {nodes - 1}")
    if (own.partition, own.alpha, own.per_node) != ("iid", None, None):
        raise ConfigError(
            f"data.partition={own.partition!r} in a node's own [data]: all its rows are that node's; leave out "
            "partition, alpha and per_node"
        )
    dataset = _tested_on(_dataset(own, experiment.seed), experiment.evaluation.rows)
    planned.no_labels(experiment)
    empty = np.zeros(0, np.int64)
    train = [empty] * nodes
    test = [empty] * nodes
    train[node], test[node] = np.arange(len(dataset.train.y)), np.arange(len(dataset.test.y))
    parts = Partition(tuple(train), tuple(test))
    return _assemble(experiment, dataset, parts, plan, optimizer, events, False, dataset.notes)


def _before_data(experiment: Experiment) -> tuple[Schedule, tuple[churning.Event, ...], optax.GradientTransformation]:
    """All that can be wrong before the data are read."""
    plan = _graph(experiment)
    nodes = plan.neighbor.shape[1]
    events = planned.events(experiment, plan)
    timing(experiment)
    steps = experiment.training.node_steps
    if steps is not None and len(steps) != nodes:
        raise ConfigError(f"training.node_steps: {len(steps)} numbers for {nodes} nodes; give one for each node")
    data = experiment.data
    if experiment.statistics.normalize and data.source == "csv" and data.standardize != "none":
        raise ConfigError(
            f"statistics.normalize=true: data.standardize={data.standardize or 'node'!r} has scaled the rows before, "
            'and hidden what is to be found out; set data.standardize = "none"'
        )
    if steps is not None and not any(steps):
        raise ConfigError("training.node_steps: all are 0; somebody must train")
    name = experiment.algorithm.name
    if ":" not in name and name not in ALGORITHMS:
        raise ConfigError(f'algorithm.name={name!r}: {nearest(name, ALGORITHMS)}; or "module:function"')
    return plan, events, learning.optimizer(experiment)


def _assemble(
    experiment: Experiment,
    dataset: Dataset,
    parts: Partition,
    plan: Schedule,
    optimizer: optax.GradientTransformation,
    events: tuple[churning.Event, ...],
    pooled: bool,
    notes: tuple[str, ...],
    learned: Learner | None = None,
    task: quadratic.Quadratic | None = None,
) -> Federation:
    methods = learning.objectives(experiment, optimizer)
    base = learned or learning.base_learner(experiment, dataset)
    sites, said = learning.known(experiment, methods, dataset, parts.train, real=not pooled)
    learned = learning.made_learner(experiment, base, methods, optimizer, sites)
    answers = experiment.evaluation.answers
    predict.check(answers, learned, dataset.kind)
    if predict.SELECTOR in answers and not pooled:
        raise ConfigError(
            "evaluation.answers='selector': needs the models of all nodes, and this machine has one; leave it out"
        )
    apart = bool(sites) or set(jax.eval_shape(learned.init, jax.random.key(0))) > {"trained", "carried"}

    def make(learned: Learner) -> Algorithm:
        made = learning.algorithm(experiment, learned, methods, optimizer, apart)
        return made._replace(weigh=renormalized) if experiment.network.rule == "renormalise" else made

    algorithm = make(learned)
    _check_network(experiment, algorithm, plan)
    graph = topology.union(plan)
    planning = Planning(experiment.rounds, experiment.seed, _samples(parts, pooled or task is not None))
    table = experiment.topology
    plan = epochs.suited(algorithm, plan, planning, f"topology {table.graph or table.file!s} of {len(graph)} nodes")
    with_site = learning.shape(learned, sites)
    jax.eval_shape(lambda model: algorithm.init(model, 1), with_site)  # some combinators look at the model
    notes = (*notes, *said)
    if "sums" not in sites:
        return Federation(experiment, dataset, parts, graph, plan, learned, make, events, pooled, notes, sites, task)
    statistics.gossip(algorithm, 1)  # not every algorithm can
    network, tolerance = experiment.network, experiment.statistics.tolerance
    planner = epochs.planner(experiment, algorithm, plan, planning.samples)
    others = [(planner(members).schedule, members) for members in planned.memberships(events, len(graph), experiment)]
    needed = statistics.rounds(
        plan, tolerance, experiment.rounds, algorithm.link, network.loss, network.late, experiment.seed, others
    )

    def gossips(learned: Learner) -> Algorithm:
        return statistics.gossip(make(learned), needed)

    return Federation(experiment, dataset, parts, graph, plan, learned, gossips, events, pooled, notes, sites, task)


def _samples(parts: Partition, all_known: bool) -> np.ndarray:
    samples = np.array([len(rows) for rows in parts.train], np.int64)
    return samples if all_known else np.where(samples > 0, samples, -1)  # a machine that holds one node's rows


def _quadratic(
    experiment: Experiment, plan: Schedule, optimizer: optax.GradientTransformation, events: tuple[churning.Event, ...]
) -> Federation:
    table, nodes = experiment.data, plan.neighbor.shape[1]
    planned.no_labels(experiment)
    _only(table, {"dim", "spread", "conditioning"}, "source='quadratic'")
    if experiment.model is not None:
        raise ConfigError(f"model.name={experiment.model.name!r}: source='quadratic' brings its own; leave [model] out")
    given = {name: getattr(table, name) for name in ("dim", "spread", "conditioning")}
    task = quadratic.quadratic(nodes, experiment.seed, **{k: v for k, v in given.items() if v is not None})
    empty = np.zeros(0, np.int64)
    parts = Partition(tuple(np.array([i]) for i in range(nodes)), (empty,) * nodes)
    learned = quadratic.learner(task.a.shape[1])
    return _assemble(experiment, quadratic.dataset(task), parts, plan, optimizer, events, False, (), learned, task)


def _check_network(experiment: Experiment, algorithm: Algorithm, plan: Schedule) -> None:
    network, live = experiment.network, experiment.driver.kind != "simulate"
    if network.rule != "double_entry":
        if live:
            raise ConfigError(
                f"network.rule={network.rule!r}: real nodes keep double entry; the wrong rules exist for studies. "
                'Use driver.kind = "simulate"'
            )
        if algorithm.link != "exchange":
            raise ConfigError(f"network.rule={network.rule!r}: {algorithm.name} makes no exchanges; leave rule out")
    if network.detection != 1 and live:
        raise ConfigError(
            f"network.detection={network.detection}: real nodes find out by themselves; leave it out, or use "
            'driver.kind = "simulate"'
        )
    if network.sync == "async" and algorithm.keeps_mean == "running_sums":
        raise ConfigError(
            f"network.sync='async': a node that trains faster than it hears keeps a small weight in {algorithm.name}, "
            "and its steps blow up; use 'deadline', or another algorithm"
        )
    if network.sync == "async" and not live:
        raise ConfigError("network.sync='async': the simulator has no clock; use driver.kind = \"virtual\"")
    if network.late:
        if live:
            raise ConfigError('network.late: real nodes are as late as they are; use driver.kind = "simulate"')
        if algorithm.link != "exchange" or algorithm.plan is not None or len(plan.neighbor) > 1:
            raise ConfigError(
                "network.late: needs an algorithm of exchanges on a graph that stays the same; leave it out"
            )


def timing(experiment: Experiment) -> Timing:
    """The network preset with single values replaced."""
    given = experiment.network.timing
    for name, value in given.items():
        if name not in Timing._fields:
            raise ConfigError(f"network.timing.{name}: {nearest(name, Timing._fields)}")
        if not value > 0:
            raise ConfigError(f"network.timing.{name}={value!r}: must be > 0")
    return PRESETS[experiment.network.preset]._replace(**given)


def _graph(experiment: Experiment) -> Schedule:
    table = experiment.topology
    if (table.graph is None) == (table.file is None):
        raise ConfigError("topology: give either graph or file")
    if table.graph is not None:
        if not table.heal:
            raise ConfigError(
                "topology.heal=false: a graph by name is made anew for those who are left; leave heal out"
            )
        if table.nodes is None:
            raise ConfigError("topology.nodes: missing; it must be given with topology.graph")
        return epochs.named(experiment, table.nodes)
    if table.arguments:
        raise ConfigError("topology.arguments: goes with topology.graph; a .toml file holds its own arguments")
    graph = topology.load(Path(str(table.file)), experiment.seed)
    if table.nodes not in (None, len(graph)):
        raise ConfigError(f"topology.nodes={table.nodes}: the graph in {table.file} has {len(graph)}; leave nodes out")
    return topology.schedule(graph, table.weights)


def _dataset(table: Data, seed: int) -> Dataset:
    if ":" in table.source:
        _only(table, {"arguments"}, f"source={table.source!r}")
        return sources.python(table.source, seed, **(table.arguments or {}))
    if table.source not in sources.SOURCES:
        known = nearest(table.source, [*sources.SOURCES, "quadratic"])
        raise DataError(f'data.source={table.source!r}: {known}; or "module:function"')
    function = sources.SOURCES[table.source]
    accepted = inspect.signature(function).parameters
    _only(table, set(accepted), f"source={table.source!r}")
    arguments = {name: getattr(table, name) for name in accepted if getattr(table, name, None) is not None}
    for name, parameter in accepted.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise DataError(f"data.{name}: missing; source={table.source!r} needs it")
    return function(**{**arguments, "seed": seed})


def _tested_on(dataset: Dataset, rows: str) -> Dataset:
    """The data with the rows that models are tested on: `rows` is "test", or "validation" to choose by."""
    if rows == "test":
        return dataset
    if dataset.validation is None:
        raise ConfigError('evaluation.rows="validation": the data have no such rows; use "test", or data that has them')
    return dataset._replace(test=dataset.validation)


def _only(table: Data, accepted: set[str], what: str) -> None:
    """No field is set that the source or the partition does not know: a silent field would be a lie."""
    known = accepted | {"source", "partition", *_partition_arguments(table.partition)}
    takes = [field.name for field in fields(table) if field.name in known - {"source", "partition"}]
    for field in fields(table):
        value = getattr(table, field.name)
        if value is not None and field.name not in known:
            raise ConfigError(
                f"data.{field.name}={value!r}: {what} with partition={table.partition!r} does not use it; "
                f"it uses: {', '.join(takes) or 'none'}"
            )
    for name, other, wanted in _ONLY_WITH:
        value = getattr(table, name)
        if value is not None and (getattr(table, other) is not None) != wanted:
            rule = f"is used only with data.{other}" if wanted else f"is not used where data.{other} is given"
            raise ConfigError(f"data.{name}={value!r}: {rule}; leave it out, or change that")


_ONLY_WITH = (("min_rows", "site", True), ("small_sites", "site", True), ("test_fraction", "split", False))
"""Fields of [data] that mean something only where another one is given, or is not."""


def _partition_arguments(name: str) -> set[str]:
    return set(inspect.signature(partition.PARTITIONS[name]).parameters) - {"dataset", "nodes", "seed"}


def _partition(table: Data, dataset: Dataset, nodes: int, seed: int) -> Partition:
    arguments = {}
    for name in _partition_arguments(table.partition):
        value = getattr(table, name)
        if value is None:
            raise ConfigError(f"data.{name}: missing; partition={table.partition!r} needs it")
        arguments[name] = value
    return partition.PARTITIONS[table.partition](dataset, nodes, seed, **arguments)


def model_shape(federation: Federation) -> Any:
    """Shapes and dtypes of the model of a node, without making one."""
    return learning.shape(federation.learner, federation.sites)


def digest(federation: Federation) -> str:
    """What all nodes of a federation must have in common, as 32 hex digits: not where the data lies, nor the driver."""
    data = federation.experiment.data
    table = asdict(replace(federation.experiment, data=replace(data, path=None, root=None, limit=None, missing=None)))
    if data.layout is not None:  # its classes and values of labels are meant, wherever the file lies
        table["data"]["layout"] = hashlib.blake2b(Path(data.layout).read_bytes()).hexdigest()
    table["loss"] = federation.experiment.network.loss
    table["churn"] = [event._asdict() for event in federation.churn]  # what is meant, wherever a trace's file lies
    for private in ("driver", "baselines", "evaluation", "network", "topology", "virtual"):
        del table[private]
    table["schedule"] = [hashlib.blake2b(part.tobytes()).hexdigest() for part in federation.schedule]
    return hashlib.blake2b(json.dumps(table, sort_keys=True).encode(), digest_size=16).hexdigest()


def terms(federation: Federation) -> Terms:
    """What the nodes of a federation agree on."""
    wanted, nodes = federation.experiment, len(federation.graph)
    return Terms(
        nodes,
        churning.expected(federation.churn, nodes),
        digest(federation),
        timing(wanted),
        federation.algorithm.lateness,
        wanted.network.sync,
    )


def pooled(experiment: Experiment, nodes: int) -> Experiment:
    """The baseline "all data pooled": one node, all rows, as many steps, batches `nodes` times as large."""
    training = experiment.training
    steps = round(np.mean(training.node_steps)) if training.node_steps else training.local_steps
    training = replace(training, batch_size=training.batch_size * nodes, local_steps=int(steps), node_steps=None)
    data = replace(experiment.data, partition="iid", alpha=None, per_node=None)
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


ALONE = frozenset({"augment", "sharpness", "average", "missing_classes"})
"""Objectives that mean something to a model that nobody else trains."""


def precision(experiment: Experiment) -> None:
    """Let this process compute in the experiment's dtype; before anything is compiled."""
    jax.config.update("jax_enable_x64", experiment.training.dtype == "float64")
