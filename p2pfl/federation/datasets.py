"""The second stage: the rows, whose they are, and what depends on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from p2pfl import churn
from p2pfl import data as sources
from p2pfl.config.data import (
    BuiltinData,
    CsvData,
    Data,
    EvenPartition,
    FolderData,
    FunctionData,
    FunctionPartition,
    MedmnistData,
    NpzData,
    PartitionTable,
    QuadraticData,
    ScriptData,
    given,
)  # fmt: skip
from p2pfl.config.experiment import Experiment
from p2pfl.data import Dataset, degrade, dictionary, new_rows, partition
from p2pfl.data.csv import CsvTable
from p2pfl.data.dataset import left_out, prepared, split
from p2pfl.data.dictionary import Dictionary
from p2pfl.data.far_off import answers_turned
from p2pfl.data.image import DARK, is_far
from p2pfl.data.partition import Partition
from p2pfl.data.stored import Stored
from p2pfl.data.stored import part as rows_of
from p2pfl.errors import ConfigError, DataError
from p2pfl.federation import events, plugins
from p2pfl.federation.topology import Topology
from p2pfl.learning import quadratic
from p2pfl.methods.answers import HELD_BACK
from p2pfl.methods.objectives.medisecfed import NAME as TELLS
from p2pfl.methods.objectives.medisecfed import ROWS
from p2pfl.methods.watching import BEST

_PUBLIC = 0x9B11
"""Of the seed of which rows are public, so that other draws of the same seed are others."""


class Datasets(NamedTuple):
    """The data of all nodes, as far as this machine has them."""

    dataset: Dataset
    partition: Partition
    pooled: bool  # the test rows are those of all nodes
    notes: tuple[str, ...]  # what a person should know of the data
    events: tuple[churn.Event, ...]  # of [[churn]], with what depends on the data
    task: quadratic.Quadratic | None = None  # of the source "quadratic": what is to be found
    validation: tuple[np.ndarray, ...] | None = None  # where nodes watch their models: rows of dataset.validation
    public: np.ndarray | None = None  # [N, ...] x of rows that all nodes have, where a method asks for such
    public_line: np.ndarray | None = None  # [N] the lines of the file that these are from, where the source says so

    @property
    def samples(self) -> np.ndarray:
        """[n] int64: training rows of each node; -1 where only the node itself knows."""
        samples = np.array([len(rows) for rows in self.partition.train], np.int64)
        if self.pooled or self.task is not None:
            return samples
        return np.where(samples > 0, samples, -1)  # a machine that holds one node's rows


def by_sites(experiment: Experiment, dataset: Dataset | None) -> tuple[Experiment, Dataset | None]:
    """The experiment with a node for each site of its data, where it gives no number; the data, if they were read.

    `dataset`: to be taken instead of the rows that the experiment names. Raises ConfigError for data without sites.
    """
    table, data = experiment.topology, experiment.data
    uncounted = table.graph is not None and table.nodes is None
    if not uncounted or data.partition != EvenPartition("by_site") or isinstance(data, QuadraticData):
        return experiment, dataset
    dataset = read(experiment.data, experiment.seed) if dataset is None else dataset
    if not dataset.sites:
        raise ConfigError(
            "data.partition='by_site': the data has no sites; name their column (csv: site = ...), or use another"
        )
    table = dataclasses.replace(table, nodes=len(dataset.sites))
    return dataclasses.replace(experiment, topology=table), dataset


def resolve_datasets(experiment: Experiment, topology: Topology, dataset: Dataset | None = None) -> Datasets:
    """The data that the experiment names, spread over all nodes. `dataset`: these data, if read. Raises ConfigError."""
    data = experiment.data
    if isinstance(data, QuadraticData):
        return _quadratic(experiment, topology, data)
    dataset = _tested_on(read(data, experiment.seed) if dataset is None else dataset, experiment.evaluation.rows)
    dataset = _watched(experiment, dataset)
    dataset, public, line = _set_apart(experiment, dataset)
    if experiment.evaluation.splits and isinstance(dataset.train.x, Stored):
        raise ConfigError(
            "evaluation.splits: rows that are read from a cache (patches of volumes, or data.cache) are not split "
            "anew; leave it out"
        )
    parts = spread(data.partition, dataset, topology.nodes, experiment.seed)
    validation = None
    if watched(experiment) and dataset.validation is not None:  # by the rule of the training rows, as a test's
        other = dataset._replace(test=dataset.validation)
        validation = spread(data.partition, other, topology.nodes, experiment.seed).test
    planned = topology.events
    if events.by_label(experiment):
        labels = [events.labels(dataset, rows) for rows in parts.train]
        planned = events.planned(experiment, topology.schedule, labels)
    dataset = _degraded(experiment, data, dataset, parts, validation)
    notes = (*dataset.notes, *answers_turned(dataset), *partition.describe(parts, dataset))
    return Datasets(dataset, parts, True, notes, planned, validation=validation, public=public, public_line=line)


def resolve_own(experiment: Experiment, topology: Topology, node: int, own: Data, admitted: int = 0) -> Datasets:
    """The data of a machine that holds one node's rows and no other: all rows of `own` are this node's.

    `admitted`: nodes that there can be, where the federation has grown. Raises ConfigError.
    """
    if not 0 <= node < max(topology.nodes, admitted):
        raise ConfigError(
            f"node={node}: the topology has nodes 0 to {topology.nodes - 1}; one more joins them by a [[churn]] with "
            f'event = "join" and node = {topology.nodes} in the experiment file of all'
        )
    nodes = max(topology.nodes, node + 1)
    if own.partition != EvenPartition():
        raise ConfigError(
            f"data.partition={own.partition.partition!r} in a node's own [data]: all its rows are that node's; leave "
            "out partition, alpha and per_node"
        )
    if isinstance(own, QuadraticData):
        raise ConfigError("data.source='quadratic' in a node's own [data]: it has no rows; name it in the experiment")
    dataset = _tested_on(read(own, experiment.seed, by_name=True), experiment.evaluation.rows)
    dataset = _watched(experiment, dataset)
    dataset, public, _ = _set_apart(experiment, dataset, alone=True)
    events.no_labels(experiment)
    train, test, kept = [[np.zeros(0, np.int64)] * nodes for _ in range(3)]
    train[node], test[node] = np.arange(len(dataset.train.y)), np.arange(len(dataset.test.y))
    if dataset.validation is not None:
        kept[node] = np.arange(len(dataset.validation.y))
    validation = tuple(kept) if watched(experiment) else None
    parts = Partition(tuple(train), tuple(test))
    dataset = _degraded(experiment, own, dataset, parts, tuple(kept))
    return Datasets(dataset, parts, False, dataset.notes, topology.events, validation=validation, public=public)


def _degraded(
    experiment: Experiment, data: Data, dataset: Dataset, parts: Partition, validation: Sequence[np.ndarray] | None
) -> Dataset:
    """The data as [data.degrade] says; rows of each node by its settings. Raises ConfigError.

    `validation`: rows of each node, where they are dealt out.
    """
    if data.degrade is None:
        if degrade.measured(dataset):
            raise ConfigError(
                "data.degrade: missing; the data are whole k-space, of which it says what is seen, as in "
                '{ by = "undersample", acceleration = 4 }'
            )
        return dataset
    by_site = data.partition == EvenPartition("by_site")
    return degrade.degraded(dataset, parts, data.degrade, experiment.seed, by_site, validation)


def watched(experiment: Experiment) -> bool:
    """Return whether nodes test their models by validation rows while they train."""
    return experiment.training.patience is not None or BEST in experiment.evaluation.answers


def _part(rows: sources.Samples, part: np.ndarray) -> sources.Samples:
    """The rows that are marked."""
    site, line = (None if each is None else each[part] for each in (rows.site, rows.line))
    case = None if rows.case is None else rows.case._replace(
        of=rows.case.of[part], start=None if rows.case.start is None else rows.case.start[part]
    )  # fmt: skip
    return sources.Samples(rows_of(rows.x, part), rows_of(rows.y, part), site, line, case)


def _watched(experiment: Experiment, dataset: Dataset) -> Dataset:
    """The data with validation rows, where they are asked for: the data set's own, or training rows held back."""
    if not watched(experiment) or dataset.validation is not None:
        return dataset
    rows = dataset.train
    group = None if rows.case is None else rows.case.of  # who is held back is so whole
    y = rows.y if dataset.kind == "classes" else np.zeros(len(rows.y), np.int32)
    held = split(y, rows.site, 1 / HELD_BACK, experiment.seed, group)
    train, validation = (_part(rows, part) for part in (~held, held))
    asked = "training.patience" if experiment.training.patience is not None else f"evaluation.answers = [{BEST!r}]"
    note = f"{int(held.sum())} of {len(held)} training rows are held back as validation rows, for {asked}"
    return dataset._replace(train=train, validation=validation, notes=(*dataset.notes, note))


def _set_apart(
    experiment: Experiment, dataset: Dataset, alone: bool = False
) -> tuple[Dataset, np.ndarray | None, np.ndarray | None]:
    """The data without the rows that are public, and x and lines of these, where a method asks for such.

    Raises ConfigError.

    `alone`: the rows are one node's, so that nobody else has them.
    """
    asked = [(i, each) for i, each in enumerate(experiment.training.objective) if each.get("name") == TELLS]
    if not asked:
        return dataset, None, None
    where, file = f"training.objective[{asked[0][0]}]", asked[0][1].get("public")
    rows = asked[0][1].get("rows", ROWS)
    if isinstance(dataset.train.x, Stored):
        raise ConfigError(f"{where}: {TELLS} is not for rows that are read from a cache; leave data.cache out")
    if type(rows) is not int or rows < 1:
        return dataset, None, None  # the method itself says what it asks for
    if any(column.standardize in ({"node", "pooled"} if alone else {"node"}) for column in dataset.columns):
        raise ConfigError(
            f"{where}: every site scales its columns by its own rows, so that a public row would be another one at "
            'each; set data.standardize = "none", with statistics.normalize = true'
        )
    if file is not None:
        return dataset, _read_public(where, Path(str(file)), rows, dataset), None
    if alone:
        raise ConfigError(
            f"{where}.public: missing; this node has rows of its own, and public ones must be the same at all sites: "
            "name a file of them"
        )
    many = len(dataset.train.y)
    if rows >= many:
        raise ConfigError(f"{where}.rows={rows}: there are {many} training rows; set fewer of them apart")
    apart = np.zeros(many, bool)
    apart[np.random.default_rng([experiment.seed, _PUBLIC]).permutation(many)[:rows]] = True
    note = f"{rows} of {many} training rows are set apart as public rows, whose labels nobody uses"
    public = _part(dataset.train, apart)
    dataset = dataset._replace(train=_part(dataset.train, ~apart), notes=(*dataset.notes, note))
    return dataset, np.asarray(public.x), public.line


def _read_public(where: str, file: Path, rows: int, dataset: Dataset) -> np.ndarray:
    """[N, ...] the first rows of a file, as the data's own became x. Raises ConfigError."""
    if not file.exists():
        raise ConfigError(f"{where}.public={str(file)!r}: no such file")
    if dataset.recipe is None:
        raise ConfigError(f"{where}.public: nobody knows how rows of these data become inputs; leave it out")
    found = new_rows.load(file, dataset.recipe, (), dataset.train.x.shape[1:], dataset.features)
    if len(found.x) < rows:
        raise ConfigError(f"{where}.rows={rows}: {file.name} has {len(found.x)}; ask for fewer, or give more")
    if not np.isfinite(found.x[:rows]).all():
        raise ConfigError(
            f"{where}.public: {file.name} has cells that are missing, which every site would fill in by its own rows; "
            "fill them in, or leave rows out"
        )
    x = prepared(found.x[:rows], dataset.recipe.numbers).astype(dataset.train.x.dtype)
    own = dataset.train.x
    dark = x.max() <= own.max() / DARK
    if x.ndim > 2 and (dark or (is_far(x) and not is_far(own))):
        raise ConfigError(
            f"{where}.public: images of {file.name} become {x.min():.3g} to {x.max():.3g}, and the data's own are "
            f"{own.min():.3g} to {own.max():.3g}; store them in the type and the scale of the data"
        )
    return x


def resolve_script(experiment: Experiment, topology: Topology, node: int = 0) -> Datasets:
    """No data: they are in a script that takes part by itself, which may be a `node` beyond the planned ones.

    Raises ConfigError.
    """
    events.no_labels(experiment)
    nothing = sources.Samples(np.zeros((0, 1), np.float32), np.zeros(0, np.int32))
    none = (np.zeros(0, np.int64),) * max(topology.nodes, node + 1)
    return Datasets(Dataset(nothing, nothing, ()), Partition(none, none), False, (), topology.events)


def _quadratic(experiment: Experiment, topology: Topology, data: QuadraticData) -> Datasets:
    nodes = topology.nodes
    events.no_labels(experiment)
    if data.dictionary is not None:
        raise ConfigError(f"data.dictionary={data.dictionary!r}: source='quadratic' has no rows; leave it out")
    if watched(experiment):
        raise ConfigError("training.patience: source='quadratic' has no rows to validate by; leave it out")
    if data.degrade is not None:
        raise ConfigError("data.degrade: source='quadratic' has no images; leave it out")
    if experiment.other_model:
        raise ConfigError("other_model: source='quadratic' brings its own; leave it out")
    if experiment.model is not None:
        raise ConfigError(f"model.name={experiment.model.name!r}: source='quadratic' brings its own; leave [model] out")
    if experiment.training.loss is not None:
        raise ConfigError("training.loss: source='quadratic' brings its own; leave it out")
    task = quadratic.quadratic(nodes, experiment.seed, **given(data))
    parts = Partition(tuple(np.array([i]) for i in range(nodes)), (np.zeros(0, np.int64),) * nodes)
    return Datasets(quadratic.dataset(task), parts, False, (), topology.events, task)


def read(data: Data, seed: int, by_name: bool = False) -> Dataset:
    """The rows of a source. Raises ConfigError.

    `by_name`: the columns of a table are in the order of their names, since other nodes read other files. Those of a
    dictionary are in its order.
    """
    if data.dictionary is None:
        return _read(data, seed, by_name)
    meaning = dictionary.load(data.dictionary)
    try:
        dataset = _read(data, seed, by_name, meaning)
    except DataError as error:
        raise DataError(
            f"{error}\nIt is read by {data.dictionary}, whose columns are use, and whose rules hold"
        ) from error
    dictionary.hold(dataset, meaning, getattr(data, "path", data.source))
    return dataset


def _read(data: Data, seed: int, by_name: bool, meaning: Dictionary | None = None) -> Dataset:
    match data:
        case BuiltinData():
            return sources.BUILTIN[data.source](**given(data), seed=seed)
        case NpzData():
            return sources.npz.load(**given(data), seed=seed)
        case ScriptData():
            raise ConfigError("data.source='script': the rows are those of a script; name data here")
        case CsvData():
            if data.path is None:
                raise ConfigError(
                    "data.path: missing; source='csv' needs it, here or in the [data] of each node's own file"
                )
            wanted = {name: value for name, value in given(data).items() if name != "path"}
            wanted = wanted if meaning is None else dictionary.apply(wanted, meaning)
            return sources.csv.load(data.path, CsvTable(**wanted, by_name=by_name, seed=seed))
        case MedmnistData():
            return sources.medmnist.load(**given(data), seed=seed)
        case FolderData():
            return sources.folder.load(**given(data), seed=seed)
        case FunctionData():
            return _returned(data, seed)
        case QuadraticData():
            raise AssertionError("has no rows to read")


def _returned(data: FunctionData, seed: int) -> Dataset:
    """Call the user's own function; it is given `seed`, where it has an argument of that name."""
    where = f"data function {data.source!r}"
    function = plugins.chosen(data.source, "data.source", {}, "p2pfl.data")
    try:
        result = function(**plugins.seeded(function, data.arguments or {}, seed=seed))
    except plugins.FAULTS as error:
        raise DataError(f"{where}: failed with {type(error).__name__}: {error}") from error
    return sources.as_dataset(result, where)


def spread(table: PartitionTable, dataset: Dataset, nodes: int, seed: int) -> Partition:
    """Return the partition of the rows. Raises ConfigError."""
    if not isinstance(table, FunctionPartition):
        arguments: dict[str, Any] = dataclasses.asdict(table)
        return partition.PARTITIONS[arguments.pop("partition")](dataset, nodes, seed, **arguments)
    where, given = f"data.partition={table.partition!r}", table.partition_arguments or {}
    function = plugins.chosen(table.partition, "data.partition", partition.PARTITIONS, "p2pfl.partitions")
    made = plugins.called(function, "its function", where, 3, given, dataset, nodes, seed)
    return partition.checked(made, dataset, nodes, where)


def _tested_on(dataset: Dataset, rows: str) -> Dataset:
    """The data with the rows that models are tested on: `rows` is "test", or "validation" to choose by."""
    if rows == "test":
        return dataset
    if dataset.validation is None:
        raise ConfigError('evaluation.rows="validation": the data have no such rows; use "test", or data that has them')
    held = left_out("a test row, kept for the end", np.ones(len(dataset.test.y), bool), _named(dataset))
    flow = dataset.flow._replace(left_out=(*dataset.flow.left_out, *held))
    return dataset._replace(test=dataset.validation, validation=None, flow=flow)


def _named(dataset: Dataset) -> np.ndarray | None:
    """The names of the sites of the test rows, [N]."""
    return None if dataset.test.site is None else np.array(dataset.sites, object)[dataset.test.site]
