"""The experiment file: TOML to frozen dataclasses and back. Every error names file, field, value, rule and way out."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from p2pfl.errors import ConfigError, nearest

_STRICT = ConfigDict(extra="forbid", strict=True)
Count = Annotated[int, Field(ge=1)]
Open = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, config=_STRICT)
class Data:
    """[data]: what is learned from, and how it is spread over the nodes."""

    source: str  # digits | breast_cancer | npz | csv | "module:function"
    partition: Literal["iid", "dirichlet", "shards", "by_site"] = "iid"
    alpha: Annotated[float, Field(gt=0)] | None = None  # dirichlet: the smaller, the less alike the nodes' classes
    per_node: Count | None = None  # shards: shards a node gets
    test_fraction: Open | None = None  # rows kept for the test where the data has no split of its own; 0.2
    path: str | None = None  # npz, csv: looked for beside the experiment file, then in the current directory
    label: str | None = None  # csv: the column to predict
    label_above: float | None = None  # csv: predict whether the label is greater than this
    site: str | None = None  # csv: the column that names the site
    split: str | None = None  # csv: the column that says train or test
    drop: list[str] | None = None  # csv: columns to leave out
    missing: Literal["error", "drop_row", "mean"] | None = None  # csv: what to do about missing values; error
    min_rows: Count | None = None  # csv: rows a site must have; 10
    small_sites: Literal["error", "drop"] | None = None  # csv: what to do about smaller ones; error
    classes: list[str] | None = None  # csv: the labels, where a single file may not hold them all
    categories: dict[str, list[str]] | None = None  # csv: the values of text columns, likewise
    standardize: Literal["node", "pooled", "none"] | None = None  # csv: mean 0, sd 1 by each site's training rows; node
    arguments: dict[str, Any] | None = None  # module:function: its arguments


@dataclass(frozen=True, config=_STRICT)
class Model:
    """[model]: what is trained."""

    name: str  # logistic | mlp | cnn | "module:function"
    hidden: list[Count] | None = None  # mlp: layer widths; [64]
    channels: list[Count] | None = None  # cnn: channels of each block; [16, 32]
    arguments: dict[str, Any] | None = None  # module:function: its arguments


@dataclass(frozen=True, config=_STRICT)
class Training:
    """[training]: the local steps of a round."""

    optimizer: dict[str, Any]  # name of an optax optimizer and its arguments
    batch_size: Count = 16
    local_steps: Count = 10


@dataclass(frozen=True, config=_STRICT)
class Topology:
    """[topology]: the graph along which models travel."""

    graph: str | None = None  # ring | complete | star | path | torus
    file: str | None = None  # .toml (generator and arguments, or edges), .graphml, .edgelist
    nodes: Count | None = None


@dataclass(frozen=True, config=_STRICT)
class AlgorithmTable:
    """[algorithm]: how nodes learn together."""

    name: str  # dsgd | local


@dataclass(frozen=True, config=_STRICT)
class ChurnEvent:
    """[[churn]]: something that happens to a node at the beginning of a round."""

    event: Literal["crash", "leave", "rejoin"]
    node: Annotated[int, Field(ge=0)]
    round: Count


@dataclass(frozen=True, config=_STRICT)
class Network:
    """[network]: how patient a live node is."""

    preset: Literal["local", "lan", "wan"] = "local"
    timing: dict[str, float] = dataclasses.field(default_factory=dict)  # single values of the preset, replaced


@dataclass(frozen=True, config=_STRICT)
class Evaluation:
    """[evaluation]: how often the nodes' models are tested."""

    every: Count = 1  # rounds; the last round is always evaluated


@dataclass(frozen=True, config=_STRICT)
class Driver:
    """[driver]: speed only; changing it never changes the meaning."""

    kind: Literal["live", "simulate"] = "live"


@dataclass(frozen=True, config=_STRICT)
class Experiment:
    """A whole experiment file."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[\w.-]+$")]
    data: Data
    model: Model
    training: Training
    topology: Topology
    algorithm: AlgorithmTable
    rounds: Count
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    churn: list[ChurnEvent] = dataclasses.field(default_factory=list)
    network: Network = dataclasses.field(default_factory=Network)
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
    driver: Driver = dataclasses.field(default_factory=Driver)
    baselines: bool = True  # also train every node alone, and on all data pooled


@dataclass(frozen=True, config=_STRICT)
class NodeFile:
    """NODE.toml: one node of a federation."""

    experiment: str  # the experiment file, the same on every machine
    node: Annotated[int, Field(ge=0)]
    listen: str  # tcp://ADDRESS:PORT
    peers: dict[str, str]  # node id -> tcp://HOST:PORT, of the neighbours at least
    out: str | None = None  # directory of this node's records; ./p2pfl-node-ID
    data: Data | None = None  # this machine's own rows, instead of its part of the experiment's data


_PATHS = (("data", "path"), ("topology", "file"))


def load(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file and apply `a.b=VALUE` overrides. Raises ConfigError."""
    table = read(path)
    for section, key in _PATHS:
        found = table.get(section)
        if isinstance(found, dict) and isinstance(found.get(key), str):
            found[key] = str(located(found[key], path.parent))
    for override in overrides:
        _override(table, override)
    return parse(table, str(path), Experiment)


def load_node(path: Path) -> NodeFile:
    """Read a node file; the paths in it become absolute. Raises ConfigError."""
    table = read(path)
    found: NodeFile = parse(table, str(path), NodeFile)
    data = found.data
    if data is not None and data.path is not None:
        data = dataclasses.replace(data, path=str(located(data.path, path.parent)))
    return dataclasses.replace(found, experiment=str(located(found.experiment, path.parent)), data=data)


def read(path: Path) -> dict[str, Any]:
    """The table in a TOML file. Raises ConfigError naming file and line."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def located(name: str, beside: Path) -> Path:
    """A file named in a file: beside that file, or else in the current directory."""
    first = (beside / name).resolve()
    here = Path(name).resolve()
    return here if here.exists() and not first.exists() else first


def _override(table: dict[str, Any], override: str) -> None:
    """Apply one `a.b=VALUE`; VALUE is TOML, and a bare word that is no TOML is a string."""
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"--set {override!r}: must be written a.b=VALUE, as in training.batch_size=32")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if not text or any(mark in text for mark in "\"'[]{}=\n"):
            raise ConfigError(f"--set {override!r}: {text!r} is not TOML: {error}") from error
        value = text
    if tuple(names) in _PATHS and isinstance(value, str):
        value = str(Path(value).resolve())
    for name in names[:-1]:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override!r}: {name} is no table; set it as a whole, as in churn=[]")
        table = inner
    table[names[-1]] = value


def parse(table: dict[str, Any], where: str, kind: type[Any]) -> Any:
    """The dataclass `kind` from a table. Raises ConfigError with a line for every fault."""
    try:
        # by way of JSON: there, strict means no guessing of scalars, and tables still become dataclasses
        return TypeAdapter(kind).validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        lines = [_fault(fault, kind) for fault in error.errors()]
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def _fault(fault: Any, kind: type[Any]) -> str:
    """One of pydantic's findings in our words."""
    *table, name = fault["loc"]
    field = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "unexpected_keyword_argument":
        return f"{field}={fault['input']!r}: no such field; {nearest(name, _fields(kind, table))}"
    if fault["type"] == "missing":
        return f"{field}: missing; it must be given"
    if fault["type"] == "literal_error":
        expected = str(fault["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        return f"{field}={fault['input']!r}: {nearest(fault['input'], expected)}"
    rule = fault["msg"].replace("Input should be", "must be").replace("a valid ", "")
    return f"{field}={fault['input']!r}: {rule}"


def _fields(kind: type[Any], table: Sequence[Any]) -> list[str]:
    """The fields of the table at this place in a file."""
    for part in table:
        if isinstance(part, int):
            continue
        types = {field.name: field.type for field in dataclasses.fields(kind)}
        named = str(types.get(str(part), ""))
        kind = next((each for each in TABLES if each.__name__ in named), kind)
    return [field.name for field in dataclasses.fields(kind)]


TABLES: tuple[type[Any], ...] = (
    Data,
    Model,
    Training,
    Topology,
    AlgorithmTable,
    ChurnEvent,
    Network,
    Evaluation,
    Driver,
    Experiment,
    NodeFile,
)
"""Every table of a file: each field of each is documented in docs/experiment.md."""


def dump(value: Experiment | NodeFile) -> str:
    """The TOML text of an experiment or node file; fields that are not set are left out."""
    return tomli_w.dumps(_plain(dataclasses.asdict(value)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
