"""From an experiment to what it means, in four stages, each made of the experiment and the one before:

    Topology    the graph, and what is planned to happen
    Datasets    the rows, and whose they are
    Learning    what is learned and how
    Federation  all of it

All that can be wrong with an experiment is found here, before a socket opens or a process starts; what is cheap to find
before the data are read.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import networkx as nx
import numpy as np

from p2pfl.algorithms import ALGORITHMS
from p2pfl.churn import Conditions, Event, expected, there
from p2pfl.config.data import CsvData, Data, FolderData, ScriptData
from p2pfl.config.experiment import Experiment
from p2pfl.config.model import MmoeModel
from p2pfl.data import Dataset
from p2pfl.data.partition import Partition
from p2pfl.errors import ConfigError, nearest
from p2pfl.federation import attacks, epochs, secure
from p2pfl.federation import learning as stage
from p2pfl.federation.datasets import Datasets, by_sites, resolve_datasets, resolve_own, resolve_script
from p2pfl.federation.events import founders, joining, newcomers
from p2pfl.federation.learning import Learning, ScriptedSteps, resolve_learning
from p2pfl.federation.metrics import OwnMetric, resolve_metrics
from p2pfl.federation.plugins import chosen
from p2pfl.federation.topology import Topology, resolve_topology
from p2pfl.learning import quadratic
from p2pfl.methods import compose
from p2pfl.methods.objectives.medisecfed import NAME as TELLS
from p2pfl.node.plan import Terms
from p2pfl.packages import claimed
from p2pfl.protocol.neighbor import WAIT
from p2pfl.protocol.strangers import GRAPH
from p2pfl.protocol.timing import PRESETS, Timing
from p2pfl.types import Algorithm, Learner, Schedule, Tree

_SHOWN = 60
"""Characters of a field that another federation is told of."""


class Federation(NamedTuple):
    """An experiment, built: the four stages, and short names for what stands in them."""

    experiment: Experiment
    topology: Topology
    data: Datasets
    learning: Learning
    metrics: tuple[OwnMetric, ...] = ()  # of one's own, beside those of the kind of task

    @property
    def graph(self) -> nx.Graph:
        """The graph of who may ever talk to whom, as the experiment names it."""
        return self.topology.graph

    @property
    def dataset(self) -> Dataset:
        """The rows."""
        return self.data.dataset

    @property
    def partition(self) -> Partition:
        """The rows of each node."""
        return self.data.partition

    @property
    def churn(self) -> tuple[Event, ...]:
        """The events that are planned."""
        return self.data.events

    @property
    def pooled(self) -> bool:
        """The flag that the test rows are those of all nodes."""
        return self.data.pooled

    @property
    def task(self) -> quadratic.Quadratic | None:
        """Of the source "quadratic": what is to be found."""
        return self.data.task

    @property
    def samples(self) -> np.ndarray:
        """[n] int64: training rows of each node; -1 where only the node itself knows."""
        return self.data.samples

    @property
    def learner(self) -> Learner:
        """The learner."""
        return self.learning.learner

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm, with that learner."""
        return self.learning.algorithm

    @property
    def make(self) -> Callable[[Learner], Algorithm]:
        """The algorithm of another learner."""
        return self.learning.make

    @property
    def schedule(self) -> Schedule:
        """The schedule that the algorithm makes of the graph."""
        return self.learning.schedule

    @property
    def sites(self) -> Tree:
        """[n, ...] what each node knows of its own data, where it is asked for."""
        return self.learning.sites

    @property
    def liars(self) -> frozenset[int]:
        """The nodes that lie, of which no figure is."""
        return attacks.liars(self.experiment)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes that a person should read on the data."""
        return (*self.data.notes, *self.learning.notes)

    @property
    def batch_size(self) -> int:
        """Rows of a local step; of the source "quadratic" one, since a node has no other and it is long."""
        if self.learning.private is not None:
            return self.learning.private.batch_size
        return 1 if self.task is not None else self.experiment.training.batch_size

    @property
    def used(self) -> np.ndarray | None:
        """[n] training rows of each node that a pass over them uses; None: all."""
        return self.learning.private.used if self.learning.private is not None else None

    @property
    def steps(self) -> np.ndarray:
        """[n] local steps of each node in a round in which it trains."""
        training = self.experiment.training
        own = training.node_steps or ()
        more = len(self.partition.train) - len(own)  # a node that joins beyond the planned ones has none of its own
        return np.array([*own, *[training.local_steps] * more], np.int64)

    @property
    def conditions(self) -> Conditions:
        """The network as the experiment has it."""
        network, algorithm = self.experiment.network, self.algorithm
        return Conditions(
            network.loss, network.rule, network.late, algorithm.lateness, algorithm.link, self.experiment.seed,
            network.detection, network.alone == WAIT,
        )  # fmt: skip

    def planner(self) -> Callable[[Sequence[int]], epochs.Epoch]:
        """A function from members to their epoch."""
        return epochs.planner(self.experiment, self.algorithm, self.schedule, self.samples)

    def with_algorithm(self, make: Callable[[Learner], Algorithm]) -> Federation:
        """The same with another algorithm, for the same schedule."""
        return self._replace(learning=self.learning._replace(make=make, algorithm=make(self.learner), sliced=None))


def build(experiment: Experiment, dataset: Dataset | None = None) -> Federation:
    """Make of an experiment what it means.

    Args:
        experiment: of `load_experiment`.
        dataset: to be taken instead of the rows that the experiment names.

    Returns:
        Data, partition, graph, schedule, learner and algorithm.

    Raises:
        ConfigError: all that can be wrong with an experiment, before a socket opens or a process starts.

    Example:
        >>> import p2pfl
        >>> from p2pfl.config.experiment import Experiment, parse
        >>> table = {
        ...     "name": "tiny", "rounds": 1, "data": {"source": "quadratic"}, "algorithm": {"name": "dsgd"},
        ...     "training": {"optimizer": {"name": "sgd", "learning_rate": 0.1}},
        ...     "topology": {"graph": "ring", "nodes": 3},
        ... }
        >>> p2pfl.build(parse(table, "tiny.toml", Experiment)).schedule.neighbor.shape
        (1, 3, 2)
    """
    experiment, dataset = by_sites(experiment, dataset)
    topology = resolve_topology(experiment)
    check(experiment, topology)
    data = resolve_datasets(experiment, topology, dataset)
    return _built(experiment, topology, data)


def build_own(experiment: Experiment, node: int, own: Data, admitted: int = 0) -> Federation:
    """The same for a machine that holds one node's rows and no other: all rows of `own` are this node's.

    `admitted`: nodes that there can be by the word of whoever vouches for that; then `node` may have an id beyond those
    of the experiment. What all have in common (`digest`, `identity`) stays that of the experiment.
    """
    topology = resolve_topology(experiment)
    check(experiment, topology, own)
    data = resolve_own(experiment, topology, node, own, admitted)
    return _built(experiment, topology, data)


def _built(experiment: Experiment, topology: Topology, data: Datasets) -> Federation:
    metrics = resolve_metrics(experiment, data.dataset)
    return Federation(experiment, topology, data, resolve_learning(experiment, topology, data), metrics)


def build_script(experiment: Experiment, script: ScriptedSteps, node: int = 0) -> Federation:
    """The same for a script that brings rows, model and local steps; `experiment.data` has the source "script".

    `node`: it is this one, which may have been admitted beyond those of the experiment.
    """
    _script(experiment)
    topology = resolve_topology(experiment)
    timing(experiment)
    attacks.check(experiment, topology.nodes)
    secure.check(experiment)
    _named(experiment)
    data = resolve_script(experiment, topology, node)
    return Federation(experiment, topology, data, resolve_learning(experiment, topology, data, script))


def _script(experiment: Experiment) -> None:
    """Raises ConfigError for what a script does by itself, and for what asks for rows that it does not show."""
    given = {
        "model": experiment.model,
        "other_model": experiment.other_model,
        "training.loss": experiment.training.loss,
        "training.objective": experiment.training.objective,
        "training.compute": experiment.training.compute,
        "training.freeze": experiment.training.freeze,
        "training.lora": experiment.training.lora,
        "training.patience": experiment.training.patience,
        "evaluation.extra_metrics": experiment.evaluation.extra_metrics,
        "statistics": experiment.statistics.gather or experiment.statistics.normalize,
        "evaluation.answers": experiment.evaluation.answers,
        "privacy": experiment.privacy,
        "attack.by='label_flip'": any(each.by == "label_flip" for each in experiment.attack),
    }
    for name, value in given.items():
        if value:
            raise ConfigError(f"{name}: data.source='script' has no rows and no model to go with it; leave it out")
    for wrap in experiment.algorithm.wrap:
        if facts := compose.FACTS.get(str(wrap.get("name"))):
            raise ConfigError(
                f"algorithm.wrap: {wrap['name']} asks for the {', '.join(facts)} of each node, which nobody knows of "
                "a script; leave it out"
            )


def check(experiment: Experiment, topology: Topology, own: Data | None = None) -> None:
    """Raises ConfigError for what can be seen to be wrong before the data are read. `own`: of a node with own rows."""
    nodes = topology.nodes
    if isinstance(experiment.data, ScriptData):
        raise ConfigError(
            "data.source='script': rows and local steps are those of scripts that take part by p2pfl.join; start them, "
            "or name data here"
        )
    timing(experiment)
    attacks.check(experiment, nodes)
    secure.check(experiment)
    steps, data = experiment.training.node_steps, own or experiment.data
    if steps is not None and len(steps) != nodes:
        raise ConfigError(f"training.node_steps: {len(steps)} numbers for {nodes} nodes; give one for each node")
    if isinstance(data, CsvData):
        _check_table(experiment, data)
    if steps is not None and not any(steps):
        raise ConfigError("training.node_steps: all are 0; somebody must train")
    _named(experiment)
    _check_tasks(experiment)
    _check_models(experiment, nodes)
    stage.optimizer(experiment)


def _named(experiment: Experiment) -> None:
    """Raises ConfigError for an algorithm that nobody knows, and for a name of ours that a package has taken."""
    claimed(stage.own_names(experiment))
    chosen(experiment.algorithm.name, "algorithm.name", ALGORITHMS, "p2pfl.algorithms")


def _check_tasks(experiment: Experiment) -> None:
    """Raises ConfigError where the model's tasks are not those of the objective."""
    others = {f"other_model[{i}]": table.model for i, table in enumerate(experiment.other_model)}
    for field, model in {"model": experiment.model, **others}.items():
        if not isinstance(model, MmoeModel):
            continue
        groups = [[*group] for group in model.groups or ()]
        for i, given in enumerate(experiment.training.objective):
            if given.get("name") == "tasks" and given.get("groups") != groups:
                raise ConfigError(
                    f"{field}.groups={groups}: training.objective[{i}].groups is {given.get('groups')}; write the same "
                    "in both: the tasks of the model must be those of the objective"
                )


def _check_models(experiment: Experiment, nodes: int) -> None:
    """Raises ConfigError where nodes have unlike models that nobody can exchange, or that nobody has."""
    tables, training = experiment.other_model, experiment.training
    told = Counter(node for table in tables for node in table.nodes)
    for i, table in enumerate(tables):
        where = f"other_model[{i}].nodes={[*table.nodes]}"
        if not table.nodes:
            raise ConfigError(f"{where}: names nobody; name the nodes whose model it is, or leave the table out")
        for node in table.nodes:
            if node >= nodes:
                raise ConfigError(f"{where}: there is no node {node}; there are {nodes}, 0 to {nodes - 1}")
            if told[node] > 1:
                raise ConfigError(f"{where}: node {node} is named twice; a node has one model")
        if table.model.weights is not None or table.model.rename or table.model.fresh:
            raise ConfigError(f"other_model[{i}].weights: models of several architectures begin anew; leave it out")
    if not tables:
        return
    telling = any(each.get("name") == TELLS for each in training.objective)
    if not telling and experiment.algorithm.name != "local":
        raise ConfigError(
            "other_model: models of unlike architecture can't be mixed; exchange predictions, by training.objective = "
            f'[{{ name = "{TELLS}" }}], or let all nodes have the same model'
        )
    given = {
        "model.weights": experiment.model is not None and experiment.model.weights is not None,
        "training.freeze": training.freeze is not None,
        "evaluation.leave_site_out": experiment.evaluation.leave_site_out,
    }
    for field, said in given.items():
        if said:
            raise ConfigError(f"{field}: does not go with [[other_model]]; leave one of the two out")


def _check_table(experiment: Experiment, data: CsvData) -> None:
    """Raises ConfigError where a table is scaled twice, or filled in by nobody."""
    normalize = experiment.statistics.normalize
    if normalize and data.standardize != "none":
        raise ConfigError(
            f"statistics.normalize=true: data.standardize={data.standardize or 'node'!r} has scaled the rows before, "
            'and hidden what is to be found out; set data.standardize = "none"'
        )
    if data.missing == "gossip" and not normalize:
        raise ConfigError(
            "data.missing='gossip': missing cells are filled in with the mean of all nodes, which nobody finds out; "
            "set statistics.normalize = true"
        )
    looks = [each["name"] for each in experiment.training.objective if each.get("name") in ("selector", "fedreplay")]
    if data.missing == "gossip" and looks:
        raise ConfigError(
            f"training.objective {looks[0]}: looks at inputs before data.missing='gossip' has filled them in; leave it "
            "out"
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


def model_shape(federation: Federation) -> Any:
    """Shapes and dtypes of the model of a node, without making one."""
    return stage.shape(federation.learner, federation.sites)


def _private_left_out(federation: Federation) -> dict[str, Any]:
    """The experiment, without what is a machine's own matter."""
    table, data = asdict(federation.experiment), federation.experiment.data
    for private in (
        "path",
        "root",
        "limit",
        "missing",
        "dictionary",
        "cache",
    ):  # what it says is compared column by column
        table["data"].pop(private, None)
    if isinstance(data, CsvData) and data.picture is not None:  # as private as where the table lies
        del table["data"]["picture"]["folder"]
    if isinstance(weights := (table["model"] or {}).get("weights"), str):  # what it holds is meant, wherever it lies
        table["model"]["weights"] = hashlib.blake2b(Path(weights).read_bytes(), digest_size=16).hexdigest()
    for given in table["training"]["objective"]:
        if isinstance(file := given.get("reference"), str) and Path(file).is_file():  # what it holds is meant
            given["reference"] = hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()
        public = federation.data.public
        if given.get("name") == TELLS and public is not None:  # what models see of them, wherever they lie
            given["public"] = hashlib.blake2b(public.tobytes(), digest_size=16).hexdigest()
    if isinstance(data, FolderData):  # its classes and values of labels are meant, wherever the file lies
        table["data"]["layout"] = hashlib.blake2b(Path(data.layout).read_bytes()).hexdigest()
    table["loss"], table["alone"] = federation.experiment.network.loss, federation.experiment.network.alone
    for private in ("driver", "baselines", "evaluation", "network", "topology", "virtual"):
        del table[private]
    return table


def _common(federation: Federation) -> dict[str, Any]:
    """Return what all nodes must have in common: not where the data lies, nor the driver."""
    table = _private_left_out(federation)
    table["churn"] = [event._asdict() for event in federation.churn]  # what is meant, wherever a trace's file lies
    table["schedule"] = [hashlib.blake2b(part.tobytes()).hexdigest() for part in federation.schedule]
    return table


def digest(federation: Federation) -> str:
    """Return 32 hex digits of what all nodes must have in common."""
    return hashlib.blake2b(json.dumps(_common(federation), sort_keys=True).encode(), digest_size=16).hexdigest()


def identity(federation: Federation) -> str:
    """Return 32 hex digits of what states of nodes must have in common that are to go on with each other.

    As `digest`, but the same for every number of rounds: a run that has ended may be given more. And the same whoever
    is to join beyond the nodes of the experiment's graph: the others go on with what they have kept.
    """
    table, nodes = _private_left_out(federation), len(federation.graph)
    schedule = federation.schedule
    if newcomers(federation.experiment):
        nodes = founders(federation.experiment)
        schedule = federation.planner()(range(nodes)).schedule
        steps = table["training"]["node_steps"]
        table["training"]["node_steps"] = None if steps is None else steps[:nodes]
    table["churn"] = [
        {k: v for k, v in each.items() if k != "path"}
        for each, given in zip(table["churn"], federation.experiment.churn, strict=True)
        if min(joining(given), default=0) < nodes
    ]
    del table["rounds"]
    neighbor, weight, out_weight, trains = (part[0, :nodes] for part in schedule)
    used = neighbor >= 0  # how many slots there are depends on the rounds where a graph is drawn
    parts = (neighbor[used], weight[used], out_weight[used], trains)
    table["schedule"] = [hashlib.blake2b(part.tobytes()).hexdigest() for part in parts]
    return hashlib.blake2b(json.dumps(table, sort_keys=True).encode(), digest_size=16).hexdigest()


def fields(federation: Federation) -> dict[str, str]:
    """Return the same field by field, in words as a person would write them; long values are cut, and have a digest."""
    table = _common(federation)
    table["network"] = {"loss": table.pop("loss"), "alone": table.pop("alone")}
    table[GRAPH] = hashlib.blake2b("".join(table.pop("schedule")).encode(), digest_size=8).hexdigest()
    table["topology"] = asdict(federation.experiment.topology)
    return dict(_flat(table, ""))


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else str(key))
        return
    text = value if isinstance(value, str) else "not set" if value is None else json.dumps(value, sort_keys=True)
    if len(text) > _SHOWN:
        text = f"{text[:_SHOWN]}... ({hashlib.blake2b(text.encode(), digest_size=6).hexdigest()})"
    yield name[:_SHOWN], text


def terms(federation: Federation) -> Terms:
    """Return what the nodes of a federation agree on."""
    wanted, nodes = federation.experiment, len(federation.graph)
    return Terms(
        nodes,
        expected(federation.churn, nodes),
        digest(federation),
        timing(wanted),
        federation.algorithm.lateness,
        wanted.network.sync,
        wanted.network.alone,
        there(federation.churn, nodes) if federation.churn else None,
        fields(federation),
    )


def precision(experiment: Experiment) -> None:
    """Let this process compute in the experiment's dtype; before anything is compiled."""
    jax.config.update("jax_enable_x64", experiment.training.dtype == "float64")
