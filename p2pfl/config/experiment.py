"""The experiment file: TOML to frozen dataclasses and back. Every error names file, field, value, rule and way out.

Lists of the file become tuples, so that an experiment can't be changed through them; tables without fixed fields
(`optimizer`, `arguments`, `categories`, `timing`, `peers`) are plain dicts, which nobody may change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field
from pydantic.dataclasses import dataclass

from p2pfl.check import LIST, STRICT, Count, Texts
from p2pfl.config import attack, churn, data, model, toml
from p2pfl.config.attack import AttackTable
from p2pfl.config.churn import ChurnTable, Nodes
from p2pfl.config.data import Data, DataFile, DataTable
from p2pfl.config.model import ModelTable, OtherModel
from p2pfl.config.virtual import Virtual, VirtualLink
from p2pfl.data import layout
from p2pfl.errors import ConfigError

Address = Annotated[str, Field(pattern=toml.ADDRESS)]


@dataclass(frozen=True, config=STRICT)
class Lora:
    """[training.lora]: the model is frozen, and thin matrices beside its kernels are trained."""

    rank: Count
    alpha: Annotated[float, Field(gt=0)] | None = None  # what a product counts, over the rank; the rank
    matching: Texts = ("**/kernel",)  # patterns of kernels that get adapters
    train: Texts = ()  # patterns of leaves that are trained whole
    freeze_a: bool = False  # the first of both matrices stays as it is drawn


@dataclass(frozen=True, config=STRICT)
class Training:
    """[training]: the local steps of a round."""

    optimizer: dict[str, Any] | Annotated[tuple[dict[str, Any], ...], LIST] = dataclasses.field(default_factory=dict)
    # name of an optax optimizer and its arguments, or a list of such, as optax.chain has them
    batch_size: Count = 16
    local_steps: Count = 10
    node_steps: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], LIST] | None = None
    # local steps of each node, where they differ; then local_steps is not used
    dtype: Literal["float32", "float64"] = "float32"  # of the model and the data
    loss: dict[str, Any] | None = None  # name of a loss and its arguments; that of the kind of task
    objective: Annotated[tuple[dict[str, Any], ...], LIST] = ()  # what is done to the local loss, in order
    compute: Literal["bfloat16"] | None = None  # of local steps; parameters and gradients stay as `dtype` says
    freeze: Texts | None = None  # patterns of leaves that are neither trained nor sent
    patience: Count | None = None  # evaluations without a better validation score after which a node trains no more
    lora: Lora | None = None  # adapters of kernels, which are trained and sent instead


@dataclass(frozen=True, config=STRICT)
class Privacy:
    """[privacy]: what local steps tell of the rows is differentially private: DP-SGD, or noise on whole updates."""

    clip: Annotated[float, Field(gt=0)]  # largest norm of the gradient of a row, or of an update
    delta: Annotated[float, Field(gt=0, lt=1)]  # of (epsilon, delta)
    noise: Annotated[float, Field(gt=0)] | None = None  # standard deviation of the noise on their sum, or on an
    # update, in units of clip; None: as little as keeps all rounds within epsilon
    epsilon: Annotated[float, Field(gt=0)] | None = None  # budget: a node trains no more before it is exceeded
    sampling: Literal["passes", "poisson"] = "passes"  # how rows get into batches
    of: Literal["rows", "updates"] = "rows"  # what is clipped and noised: gradients of rows, or the update of a round
    law: Literal["gaussian", "laplace"] = "gaussian"  # of the noise; laplace is for updates
    correlated: Annotated[float, Field(gt=0)] | None = None  # standard deviation of the noise that each pair of
    # neighbours shares, and that cancels between them, in units of clip
    adversary: Literal["neighbours", "neighbour", "stranger"] | Nodes = "neighbours"
    # who epsilon is meant against: all neighbours of a node together, one other node, a stranger, or these nodes


@dataclass(frozen=True, config=STRICT)
class Secure:
    """[secure]: nodes mask what they send, and masks cancel in sums: nobody sees what a single node has sent."""

    mixing: bool = True  # of what is mixed; the sums of [statistics] are masked in any case
    colluders: Annotated[int, Field(ge=0, lt=1000)] = 1  # neighbours that may work together with the one that mixes
    bits: Literal[32, 64] = 64  # of a masked number
    bound: Annotated[float, Field(gt=0)] | None = None  # what no number that is mixed is beyond: 2^20, of 32 bits 2^6


@dataclass(frozen=True, config=STRICT)
class TopologyTable:
    """[topology]: the graph along which models travel."""

    graph: str | None = None  # a name of p2pfl.topology.GRAPHS, or "module:function"
    file: str | None = None  # .toml (generator and arguments, or edges), .graphml, .json (node-link), .edgelist
    nodes: Count | None = None
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the graph, such as k of base
    heal: bool = True  # a graph of a file is joined together again when nodes are gone
    weights: str | None = None  # metropolis | max_degree | best_constant | uniform_out | file
    take_part: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of the nodes that takes part in a round


@dataclass(frozen=True, config=STRICT)
class AlgorithmTable:
    """[algorithm]: how nodes learn together."""

    name: str  # a name of p2pfl.ALGORITHMS, or "module:function"
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the algorithm, such as beta of dmsgd
    share: str | Texts | None = None  # leaves that travel: patterns, a preset, or "module:function"
    wrap: Annotated[tuple[dict[str, Any], ...], LIST] = ()  # combinators around it, the first innermost


@dataclass(frozen=True, config=STRICT)
class Statistics:
    """[statistics]: what the nodes find out about all data together, by gossip, before or while they train."""

    gather: Texts = ()  # names of p2pfl.methods.statistics.GATHERED: moments, labels, amplitude, ...
    normalize: bool = False  # inputs by the mean and standard deviation of all data
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-4  # relative error at which training begins
    minimum: Count = 10  # rows (of a class) that a site must have to say anything about them
    noise: Annotated[float, Field(ge=0)] = 0.0  # standard deviation added to each sum, in units of one row's part


@dataclass(frozen=True, config=STRICT)
class NetworkTable:
    """[network]: what is lost and how late it is, and how patient a live node is."""

    preset: Literal["local", "lan", "wan"] = "local"
    timing: dict[str, float] = dataclasses.field(default_factory=dict)  # single values of the preset, replaced
    loss: Annotated[float, Field(ge=0, lt=1)] = 0.0  # a message is lost with this probability
    sync: Literal["barrier", "deadline", "async"] = "deadline"  # how long a round waits for neighbours
    alone: Literal["wait", "train"] = "wait"  # who has lost more than half of the others
    rule: Literal["double_entry", "renormalise", "self"] = "double_entry"  # the others are wrong: for studies
    late: Annotated[int, Field(ge=0, lt=1000)] = 0  # simulate: an end books up to so many rounds late
    detection: Annotated[int, Field(ge=0, lt=1000)] = 1  # simulate: rounds until a crash or a partition is known


@dataclass(frozen=True, config=STRICT)
class Metric:
    """[[evaluation.extra_metrics]]: a metric beside those of the kind of task."""

    name: str  # "module:function", or one that a package has registered
    label: str | None = None  # what it is called in files; the function's name
    better: Literal["higher", "lower"] = "higher"
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the function


@dataclass(frozen=True, config=STRICT)
class Evaluation:
    """[evaluation]: how often the nodes' models are tested."""

    every: Count = 1  # rounds; the last round is always evaluated
    rows: Literal["test", "validation"] = "test"  # to choose by: validation, where the data has such rows
    metrics: bool = True  # also all metrics of the task, at the end and at every site
    extra_metrics: Annotated[tuple[Metric, ...], LIST] = ()  # metrics of one's own beside them
    splits: Annotated[int, Field(ge=0, lt=1000)] = 0  # other splits of the rows that all is simulated on again
    intervals: bool = True  # of 95 %, by resampling test rows; most of what an assessment takes
    leave_site_out: bool = False  # also learn without each site in turn, and test on all its rows
    answers: Texts = ()  # names of p2pfl.methods.answers.ANSWERS: models tested at the end beside the node's own


@dataclass(frozen=True, config=STRICT)
class Driver:
    """[driver]: speed only; changing it never changes the meaning."""

    kind: Literal["live", "virtual", "simulate"] = "live"
    loop: bool = False  # simulate: node after node, with the records of a live run
    chunk: Count | None = None  # simulate: nodes that are computed at once; without it, by measurement
    devices: Count | None = None  # simulate: devices to spread the nodes over
    checkpoint: Annotated[int, Field(ge=0, lt=2**31)] = 10  # rounds from one to the next; 0: none


@dataclass(frozen=True, config=STRICT)
class Experiment:
    """A whole experiment file."""

    name: Annotated[str, Field(pattern=toml.NAME)]
    data: DataTable
    topology: TopologyTable
    algorithm: AlgorithmTable
    rounds: Count
    training: Training = dataclasses.field(default_factory=Training)
    statistics: Statistics = dataclasses.field(default_factory=Statistics)
    privacy: Privacy | None = None  # noise on what local steps learn of single rows
    secure: Secure | None = None  # masks on what is sent, which cancel in sums
    model: ModelTable | None = None  # must be given, but for the source quadratic
    other_model: Annotated[tuple[OtherModel, ...], LIST] = ()  # nodes with a model of another architecture
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    churn: Annotated[tuple[ChurnTable, ...], LIST] = ()
    attack: Annotated[tuple[AttackTable, ...], LIST] = ()  # nodes that lie
    network: NetworkTable = dataclasses.field(default_factory=NetworkTable)
    virtual: Virtual = dataclasses.field(default_factory=Virtual)
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
    driver: Driver = dataclasses.field(default_factory=Driver)
    baselines: bool = True  # also train every node alone, and on all data pooled


@dataclass(frozen=True, config=STRICT)
class NodeFile:
    """NODE.toml: one node of a federation."""

    experiment: str  # the experiment file, the same on every machine
    node: Annotated[int, Field(ge=0)] | None = None  # with a federation it follows from that, as the next three do
    listen: Address | None = None  # tcp://ADDRESS:PORT; the membership listens on the port after it
    peers: Annotated[tuple[Address, ...], LIST] = ()  # other nodes; one that is there is enough to find all
    address: Address | None = None  # how the others reach this node; as `listen`
    federation: str | None = None  # the federation file: who takes part, with which keys
    key: str | None = None  # this site's private key, a file that its owner alone can read
    plaintext: bool = False  # without keys, and yet beyond this machine: models and membership in the clear
    out: str | None = None  # directory of its records, beside this file; ./p2pfl-node-ID
    data: DataTable | None = None  # this machine's own rows, with what the experiment's [data] says of all
    metrics: Annotated[str, Field(pattern=toml.HOST_PORT)] | None = None  # where Prometheus finds figures of this node


def load(path: Path | str, overrides: Sequence[str] = (), find: bool = False) -> Experiment:
    """Read an experiment file and apply overrides.

    Args:
        path: of the file.
        overrides: "a.b=VALUE", where VALUE is TOML.
        find: the files that it names must be there; a node that brings its own rows has no need of the experiment's.

    Returns:
        The experiment; paths in the file are taken from its folder, those of overrides from the current one, and become
        absolute.

    Raises:
        ConfigError: the file is missing or no TOML, or a field can't mean anything, with a line for every fault.

    Example:
        >>> import p2pfl
        >>> p2pfl.load_experiment("no-such-file.toml")
        Traceback (most recent call last):
        ...
        p2pfl.errors.ConfigError: no-such-file.toml: no such file; the full path is ...
    """
    path = Path(path)
    table = toml.read(path)
    _no_sweep(table, path)
    _no_node(table, path)
    given = {}
    for found, key, _ in _paths(table):
        name = found[key]
        found[key] = str(toml.located(name, path.parent))
        given[found[key]] = name
    _layouts(table.get("data"), path)
    overridden = [toml.overridden_by(table, override) for override in overrides]
    _no_keys(table, path, overridden)
    for found, key, _ in _paths(table):
        found[key] = str(Path(found[key]).resolve())
    wanted: Experiment = parse(table, str(path), Experiment, overridden)
    for found, key, field in _paths(table) if find else ():
        if key != "cache" and not Path(found[key]).exists():  # a cache is made
            raise ConfigError(toml.not_found(path, field, given.get(found[key]), found[key]))
    return wanted


def _paths(table: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Every path that stands in an experiment file: (its table, its key there, the field as a person writes it)."""
    churn = table.get("churn")
    places = [(table.get("data"), name, f"data.{name}") for name in ("path", "dictionary", "cache")]
    places += [(table.get("topology"), "file", "topology.file"), (table.get("model"), "weights", "model.weights")]
    places += [(each, "path", f"churn[{i}].path") for i, each in enumerate(churn if isinstance(churn, list) else ())]
    training = table.get("training")
    named = training.get("objective") if isinstance(training, dict) else None
    for i, each in enumerate(named if isinstance(named, list) else ()):  # a number there is a node
        places += [(each, key, f"training.objective[{i}].{key}") for key in ("public", "reference")]
    for found, key, field in places:
        if isinstance(found, dict) and isinstance(found.get(key), str):
            yield found, key, field


def _layouts(data: Any, path: Path) -> None:
    """The layout that [data] names becomes the path of its file."""
    if isinstance(data, dict) and isinstance(data.get("layout"), str):
        data["layout"] = str(layout.find(data["layout"], path.parent))


def load_data(path: Path, given: Sequence[str]) -> Data:
    """The [data] of a file of rows by itself. `given`: "NAME=VALUE", its fields. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give a table, an .npz, or an experiment or node file with [data]")
    table = {"data": {"source": "npz" if path.suffix == ".npz" else "csv", "path": str(path.resolve())}}
    overridden = [toml.overridden_by(table, f"data.{each}") for each in given]
    rows: DataFile = parse(table, str(path), DataFile, overridden)
    return rows.data


def is_node(path: Path) -> bool:
    """Return whether this is a node file, and no experiment. Raises ConfigError, also where it is a sweep."""
    table = toml.read(path)
    _no_sweep(table, path)
    return "experiment" in table


def _no_sweep(table: dict[str, Any], path: Path) -> None:
    """Raises ConfigError where a file is a sweep, which has an `experiment` as a node file has."""
    if "axes" in table:
        raise ConfigError(
            f"{path}: is a sweep, for p2pfl sweep; give the experiment that it varies ({table.get('experiment')!r}), "
            "or a node file"
        )


def _no_node(table: dict[str, Any], path: Path) -> None:
    """Raises ConfigError where a file is that of a node or of a federation, and no experiment."""
    if "experiment" in table:
        raise ConfigError(
            f"{path}: is a node file, for p2pfl node; give the experiment that it names ({table['experiment']!r})"
        )
    if "quorum" in table and "member" in table:
        raise ConfigError(
            f"{path}: is a federation file, which says who takes part; give the experiment, or a node file that "
            f"names both: p2pfl federation accept {path} --key NAME.key --node-file node.toml writes one"
        )


_OF_A_SITE = ("federation", "key", "plaintext", "listen", "address", "peers")
"""What NODE.toml says of one site, and nothing that is the same at every site can."""


def _no_keys(table: dict[str, Any], path: Path, overridden: Sequence[tuple[str, ...]]) -> None:
    """Raises ConfigError where an experiment says what the file of a node does."""
    network = table.get("network")
    for place, inside in (((), table), (("network",), network if isinstance(network, dict) else {})):
        name = next((name for name in _OF_A_SITE if name in inside), None)
        if name is not None:
            where = f"{path} with --set" if (*place, name) in overridden else path
            raise ConfigError(
                f"{where}: {'.'.join((*place, name))}={inside[name]!r}: is said of one site, and an experiment is the "
                "same at every site. It belongs into the site's node file: p2pfl federation accept FILE --key NAME.key "
                f"--experiment {path} --node-file node.toml writes one, p2pfl node node.toml runs it. p2pfl run starts "
                "all nodes on this machine, on its loopback, without keys; leave it out here"
            )


def load_node(path: Path) -> NodeFile:
    """Read a node file; the paths in it become absolute. Raises ConfigError, also when a file it names is missing."""
    table = toml.read(path)
    _no_sweep(table, path)
    rows, named = table.get("data"), dict[str, str]()
    if isinstance(rows, dict):
        _layouts(rows, path)
        named = _located(rows, path)
        common = toml.located(str(table.get("experiment")), path.parent)
        table["data"] = _added(toml.read(common).get("data"), common, rows) if common.is_file() else rows
    node: NodeFile = parse(table, str(path), NodeFile)
    file = toml.located(node.experiment, path.parent)
    if not file.is_file():
        raise ConfigError(toml.not_found(path, "experiment", node.experiment, str(file)))
    for key, name in named.items():
        if not Path(table["data"][key]).exists():
            raise ConfigError(toml.not_found(path, f"data.{key}", name, table["data"][key]))
    for name in ("node", "listen"):
        if node.federation is None and getattr(node, name) is None:
            raise ConfigError(f"{path}: {name}: {toml.MISSING_PLACE}")
    return dataclasses.replace(node, experiment=str(file))


def _located(rows: dict[str, Any], file: Path) -> dict[str, str]:
    """The paths in a [data] become absolute; returns those that stand there, by field."""
    named = {key: rows[key] for key in ("path", "dictionary", "cache") if isinstance(rows.get(key), str)}
    for key, name in named.items():
        rows[key] = str(toml.located(name, file.parent))
    named.pop("cache", None)  # which is made
    return named


def _added(common: Any, file: Path, own: dict[str, Any]) -> dict[str, Any]:
    """The [data] of a node: that of the experiment, with what the node's own says; nothing of another source."""
    if not isinstance(common, dict):
        return own
    _layouts(common, file)
    _located(common, file)
    if own.get("source", common.get("source")) != common.get("source"):
        return {**{name: value for name, value in common.items() if name == "dictionary"}, **own}
    whole = {name: value for name, value in common.items() if name not in data.DEALT}
    for name, value in own.items():
        both = isinstance(value, dict) and isinstance(whole.get(name), dict)
        whole[name] = {**whole[name], **value} if both else value
    for one, other in data.EITHER:  # what the node says of one is meant instead of the other
        if one in own and other not in own:
            whole.pop(other, None)
        elif other in own and one not in own:
            whole.pop(one, None)
    return whole


TABLES: Mapping[str, tuple[type[Any], ...]] = MappingProxyType(
    {
        "Top level": (Experiment,),
        "[data]": data.KINDS,
        "[data.degrade]": data.DEGRADE,
        "[model]": model.KINDS,
        "[[other_model]]": (OtherModel,),
        "[training]": (Training,),
        "[training.lora]": (Lora,),
        "[topology]": (TopologyTable,),
        "[algorithm]": (AlgorithmTable,),
        "[statistics]": (Statistics,),
        "[privacy]": (Privacy,),
        "[secure]": (Secure,),
        "[[churn]]": churn.KINDS,
        "[[attack]]": attack.KINDS,
        "[network]": (NetworkTable,),
        "[virtual]": (Virtual,),
        "[[virtual.links]]": (VirtualLink,),
        "[evaluation]": (Evaluation,),
        "[[evaluation.extra_metrics]]": (Metric,),
        "[driver]": (Driver,),
        "NODE.toml": (NodeFile,),
    }
)
"""Every table of a file, with its dataclasses: each field of each is documented under this heading."""


def parse(table: dict[str, Any], where: str, kind: type[Any], overridden: Sequence[tuple[str, ...]] = ()) -> Any:
    """The dataclass `kind` from a table. Raises ConfigError with a line for every fault."""
    return toml.parse(table, where, kind, overridden)


def dump(value: Experiment | NodeFile) -> str:
    """The TOML text of an experiment or node file; fields that are not set are left out."""
    return tomli_w.dumps(toml.plain(value))
