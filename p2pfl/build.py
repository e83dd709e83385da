"""From an experiment to what it means: data, learner, algorithm, graph, and the task of each node.

All that can be wrong with an experiment is found here, before a socket opens or a process starts.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
from flax.errors import FlaxError

from p2pfl import churn, learner, models, partition, topology
from p2pfl import data as sources
from p2pfl.algorithms import ALGORITHMS
from p2pfl.batching import Batching
from p2pfl.data import Dataset
from p2pfl.errors import ConfigError, DataError, nearest
from p2pfl.experiment import Data, Experiment
from p2pfl.partition import Partition
from p2pfl.program import compile, eval_set
from p2pfl.protocol.timing import PRESETS, Timing
from p2pfl.task import Task
from p2pfl.types import Algorithm, Learner, Schedule

# What a user's code fails with. Others pass through as they are: nothing here may catch all exceptions there are.
_FAULTS = (
    ArithmeticError, AssertionError, AttributeError, FlaxError, LookupError, NameError, OSError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip


class Federation(NamedTuple):
    """An experiment, built."""

    experiment: Experiment
    dataset: Dataset
    partition: Partition
    graph: nx.Graph
    schedule: Schedule
    learner: Learner
    optimizer: optax.GradientTransformation
    algorithm: Algorithm
    churn: tuple[churn.Event, ...]
    pooled: bool  # the test rows are those of all nodes
    notes: tuple[str, ...]  # what a person should know of the data


def build(experiment: Experiment) -> Federation:
    """Everything an experiment names. Raises ConfigError."""
    graph = _graph(experiment)
    nodes = len(graph)
    events = tuple(churn.Event(e.event, e.node, e.round) for e in experiment.churn)
    churn.check(events, nodes, experiment.rounds)
    timing(experiment)
    _check_algorithm(experiment)
    optimizer = _optimizer(experiment)
    dataset = _dataset(experiment.data, experiment.seed)
    parts = _partition(experiment.data, dataset, nodes, experiment.seed)
    notes = (*dataset.notes, *partition.describe(parts, dataset))
    return _assemble(experiment, dataset, parts, graph, optimizer, events, True, notes)


def build_own(experiment: Experiment, node: int, own: Data) -> Federation:
    """The same for a machine that holds one node's rows and no other: all rows of `own` are this node's."""
    graph = _graph(experiment)
    events = tuple(churn.Event(e.event, e.node, e.round) for e in experiment.churn)
    churn.check(events, len(graph), experiment.rounds)
    if not 0 <= node < len(graph):
        raise ConfigError(f"node={node}: the topology has nodes 0 to {len(graph) - 1}")
    timing(experiment)
    _check_algorithm(experiment)
    if (own.partition, own.alpha, own.per_node) != ("iid", None, None):
        raise ConfigError(
            f"data.partition={own.partition!r} in a node's own [data]: all its rows are that node's; leave out "
            "partition, alpha and per_node"
        )
    optimizer = _optimizer(experiment)
    dataset = _dataset(own, experiment.seed)
    empty = np.zeros(0, np.int64)
    train = [empty] * len(graph)
    test = [empty] * len(graph)
    train[node], test[node] = np.arange(len(dataset.train.y)), np.arange(len(dataset.test.y))
    parts = Partition(tuple(train), tuple(test))
    return _assemble(experiment, dataset, parts, graph, optimizer, events, False, dataset.notes)


def _assemble(
    experiment: Experiment,
    dataset: Dataset,
    parts: Partition,
    graph: nx.Graph,
    optimizer: optax.GradientTransformation,
    events: tuple[churn.Event, ...],
    pooled: bool,
    notes: tuple[str, ...],
) -> Federation:
    learned = _learner(experiment, dataset)
    algorithm = ALGORITHMS[experiment.algorithm.name](learned, optimizer)
    plan = topology.schedule(graph)
    return Federation(experiment, dataset, parts, graph, plan, learned, optimizer, algorithm, events, pooled, notes)


def timing(experiment: Experiment) -> Timing:
    """The network preset with single values replaced."""
    given = experiment.network.timing
    for name, value in given.items():
        if name not in Timing._fields:
            raise ConfigError(f"network.timing.{name}: {nearest(name, Timing._fields)}")
        if not value > 0:
            raise ConfigError(f"network.timing.{name}={value!r}: must be > 0")
    return PRESETS[experiment.network.preset]._replace(**given)


def _graph(experiment: Experiment) -> nx.Graph:
    table = experiment.topology
    if (table.graph is None) == (table.file is None):
        raise ConfigError("topology: give either graph or file")
    if table.graph is not None:
        if table.nodes is None:
            raise ConfigError("topology.nodes: missing; it must be given with topology.graph")
        return topology.build(table.graph, table.nodes)
    graph = topology.load(Path(str(table.file)), experiment.seed)
    if table.nodes not in (None, len(graph)):
        raise ConfigError(f"topology.nodes={table.nodes}: the graph in {table.file} has {len(graph)}; leave nodes out")
    return graph


def _check_algorithm(experiment: Experiment) -> None:
    name = experiment.algorithm.name
    if name not in ALGORITHMS:
        raise ConfigError(f"algorithm.name={name!r}: {nearest(name, ALGORITHMS)}")


def _optimizer(experiment: Experiment) -> optax.GradientTransformation:
    arguments = dict(experiment.training.optimizer)
    if not isinstance(arguments.get("name"), str):
        raise ConfigError('training.optimizer.name: must be given, as in { name = "sgd", learning_rate = 0.1 }')
    try:
        return learner.optimizer(**arguments)
    except ConfigError as error:
        raise ConfigError(f"training.optimizer: {error}") from error


def _dataset(table: Data, seed: int) -> Dataset:
    if ":" in table.source:
        _only(table, {"arguments"}, f"source={table.source!r}")
        return sources.python(table.source, **(table.arguments or {}))
    if table.source not in sources.SOURCES:
        raise DataError(f'data.source={table.source!r}: {nearest(table.source, sources.SOURCES)}; or "module:function"')
    function = sources.SOURCES[table.source]
    accepted = inspect.signature(function).parameters
    _only(table, set(accepted), f"source={table.source!r}")
    arguments = {name: getattr(table, name) for name in accepted if getattr(table, name, None) is not None}
    for name, parameter in accepted.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise DataError(f"data.{name}: missing; source={table.source!r} needs it")
    return function(**{**arguments, "seed": seed})


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


def _learner(experiment: Experiment, dataset: Dataset) -> Learner:
    """The model that is named, tried on the shape of the data."""
    table, shape, classes = experiment.model, dataset.train.x.shape[1:], len(dataset.classes)
    given = {name: value for name, value in asdict(table).items() if name != "name" and value is not None}
    where, example = f"model.name={table.name!r}", jnp.asarray(dataset.train.x[:1])
    if ":" not in table.name:
        if table.name not in models.MODELS:
            raise ConfigError(f'{where}: {nearest(table.name, models.MODELS)}; or "module:function"')
        return learner.from_flax(_call(models.MODELS[table.name], shape, classes, given, where), example, classes)
    maker = function(table.name, "model.name")
    arguments = {**given.pop("arguments", {}), **given}
    try:
        return learner.from_flax(maker(shape, classes, **arguments), example, classes)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except _FAULTS as error:
        raise ConfigError(f"{where}: failed with {type(error).__name__}: {error}") from error


def _call(maker: Callable[..., Any], shape: Any, classes: int, given: Mapping[str, Any], where: str) -> Any:
    accepted = list(inspect.signature(maker).parameters)[2:]
    for name, value in given.items():
        if name not in accepted:
            raise ConfigError(
                f"model.{name}={value!r}: {where} does not use it; it uses: {', '.join(accepted) or 'none'}"
            )
    return maker(shape, classes, **given)


def function(name: str, where: str) -> Callable[..., Any]:
    """The user's function "module:function". Raises ConfigError."""
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        raise ConfigError(f'{where}={name!r}: must be written "module:function", as in "my_models:net"')
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{where}={name!r}: {error}; its folder must be the current one or the experiment's"
        ) from error
    except (*_FAULTS, ImportError, SyntaxError) as error:
        raise ConfigError(f"{where}={name!r}: importing failed with {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ConfigError(f"{where}={name!r}: module {module} has no function {attribute!r}")
    return found


def tasks(federation: Federation) -> list[Task]:
    """The tasks of all nodes, for drivers that run them in one process: equal programs are compiled once."""
    made = [task(federation, node) for node in range(len(federation.graph))]
    programs = {len(each.neighbors): each.program for each in made}
    return [each._replace(program=programs[len(each.neighbors)], test=made[0].test) for each in made]


def task(federation: Federation, node: int) -> Task:
    """What one node trains on and with."""
    experiment, dataset, parts = federation.experiment, federation.dataset, federation.partition
    rows, mixes = parts.train[node], federation.algorithm.mixes
    around = tuple(topology.neighbors(federation.schedule, node)) if mixes else ()
    events = [event for event in federation.churn if event.node == node]
    return Task(
        node=node,
        neighbors=around,
        weight=topology.metropolis,
        program=compile(federation.algorithm, federation.learner, len(around), experiment.seed),
        seed=experiment.seed,
        rounds=experiment.rounds,
        x=dataset.train.x[rows],
        y=dataset.train.y[rows],
        batching=Batching(
            experiment.seed, node, len(rows), experiment.training.batch_size, experiment.training.local_steps
        ),
        test=eval_set(dataset.test.x, dataset.test.y),
        own=parts.test[node],
        pooled=federation.pooled,
        evaluate_every=experiment.evaluation.every,
        crashes=frozenset(event.round for event in events if event.event == "crash"),
        leaves=frozenset(event.round for event in events if event.event == "leave"),
        rejoins=frozenset(event.round for event in events if event.event == "rejoin"),
    )


def model_shape(federation: Federation) -> Any:
    """Shapes and dtypes of the model, without making one."""
    return jax.eval_shape(federation.learner.init, jax.random.key(0))


def digest(federation: Federation) -> str:
    """What all nodes of a federation must have in common, as 32 hex digits: not where the data lies, nor the driver."""
    table = asdict(replace(federation.experiment, data=replace(federation.experiment.data, path=None)))
    for private in ("driver", "baselines", "evaluation", "network", "topology"):
        del table[private]
    table["edges"] = sorted(sorted(edge) for edge in federation.graph.edges)
    return hashlib.blake2b(json.dumps(table, sort_keys=True).encode(), digest_size=16).hexdigest()


def pooled(experiment: Experiment, nodes: int) -> Experiment:
    """The baseline "all data pooled": one node, all rows, as many steps, batches `nodes` times as large."""
    training = replace(experiment.training, batch_size=experiment.training.batch_size * nodes)
    data = replace(experiment.data, partition="iid", alpha=None, per_node=None)
    graph = replace(experiment.topology, graph="complete", file=None, nodes=1)
    return replace(alone(experiment), data=data, training=training, topology=graph)


def alone(experiment: Experiment) -> Experiment:
    """The baseline "every node alone": the same, with no exchange and nobody lost."""
    return replace(experiment, algorithm=replace(experiment.algorithm, name="local"), churn=(), baselines=False)
