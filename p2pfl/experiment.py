"""The experiment file: TOML to frozen dataclasses and back. Every error names file, field, value, rule and way out.

Lists of the file become tuples, so that an experiment can't be changed through them; tables without fixed fields
(`optimizer`, `arguments`, `categories`, `timing`, `peers`) are plain dicts, which nobody may change.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from p2pfl.churn import ChurnEvent
from p2pfl.errors import ConfigError, nearest
from p2pfl.virtual.table import Virtual, VirtualLink

_STRICT = ConfigDict(extra="forbid", strict=True)
_LIST = Field(strict=False)  # a list of Python is as good as a tuple; what is in it stays strict
_NAME, _ADDRESS = r"^[\w.-]+$", r"^tcp://[^/\s]+:\d{1,5}$"
Count = Annotated[int, Field(ge=1, lt=2**31)]
Texts = Annotated[tuple[str, ...], _LIST]
Counts = Annotated[tuple[Count, ...], _LIST]
Address = Annotated[str, Field(pattern=_ADDRESS)]
Open = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, config=_STRICT)
class Data:
    """[data]: what is learned from, and how it is spread over the nodes."""

    source: str  # digits | breast_cancer | npz | csv | quadratic | "module:function"
    partition: Literal["iid", "dirichlet", "shards", "by_site"] = "iid"
    alpha: Annotated[float, Field(gt=0)] | None = None  # dirichlet: the smaller, the less alike the nodes' classes
    per_node: Count | None = None  # shards: shards a node gets
    test_fraction: Open | None = None  # rows kept for the test where the data has no split of its own; 0.2
    path: str | None = None  # npz, csv: looked for beside the experiment file, then in the current directory
    label: str | None = None  # csv: the column to predict
    label_above: float | None = None  # csv: predict whether the label is greater than this
    site: str | None = None  # csv: the column that names the site
    split: str | None = None  # csv: the column that says train or test
    drop: Texts | None = None  # csv: columns to leave out
    missing: Literal["error", "drop_row", "mean"] | None = None  # csv: what to do about missing values; error
    min_rows: Count | None = None  # csv: rows a site must have; 10
    small_sites: Literal["error", "drop"] | None = None  # csv: what to do about smaller ones; error
    classes: Texts | None = None  # csv: the labels, where a single file may not hold them all
    categories: dict[str, Texts] | None = None  # csv: the values of text columns, likewise
    standardize: Literal["node", "pooled", "none"] | None = None  # csv: mean 0, sd 1 by each site's training rows; node
    dim: Count | None = None  # quadratic: parameters; 10
    spread: Annotated[float, Field(ge=0)] | None = None  # quadratic: how far apart the nodes' minima lie; 1
    conditioning: Annotated[float, Field(ge=1)] | None = None  # quadratic: largest over smallest curvature; 1
    arguments: dict[str, Any] | None = None  # module:function: its arguments


@dataclass(frozen=True, config=_STRICT)
class Model:
    """[model]: what is trained."""

    name: str  # logistic | mlp | cnn | "module:function"
    hidden: Counts | None = None  # mlp: layer widths; [64]
    channels: Counts | None = None  # cnn: channels of each block; [16, 32]
    arguments: dict[str, Any] | None = None  # module:function: its arguments


@dataclass(frozen=True, config=_STRICT)
class Training:
    """[training]: the local steps of a round."""

    optimizer: dict[str, Any]  # name of an optax optimizer and its arguments
    batch_size: Count = 16
    local_steps: Count = 10
    node_steps: Counts | None = None  # local steps of each node, where they differ; then local_steps is not used
    dtype: Literal["float32", "float64"] = "float32"  # of the model and the data


@dataclass(frozen=True, config=_STRICT)
class Topology:
    """[topology]: the graph along which models travel."""

    graph: str | None = None  # a name of p2pfl.topology.GRAPHS
    file: str | None = None  # .toml (generator and arguments, or edges), .graphml, .json (node-link), .edgelist
    nodes: Count | None = None
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the graph, such as k of base
    heal: bool = True  # a graph of a file is joined together again when nodes are gone
    weights: str | None = None  # metropolis | max_degree | best_constant | uniform_out | file


@dataclass(frozen=True, config=_STRICT)
class AlgorithmTable:
    """[algorithm]: how nodes learn together."""

    name: str  # a name of p2pfl.ALGORITHMS, or "module:function"
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the algorithm, such as beta of dmsgd
    wrap: Annotated[tuple[dict[str, Any], ...], _LIST] = ()  # combinators around it, the first innermost


@dataclass(frozen=True, config=_STRICT)
class Network:
    """[network]: what is lost and how late it is, and how patient a live node is."""

    preset: Literal["local", "lan", "wan"] = "local"
    timing: dict[str, float] = dataclasses.field(default_factory=dict)  # single values of the preset, replaced
    loss: Annotated[float, Field(ge=0, lt=1)] = 0.0  # a message is lost with this probability
    sync: Literal["barrier", "deadline", "async"] = "deadline"  # how long a round waits for neighbours
    rule: Literal["double_entry", "renormalise", "self"] = "double_entry"  # the others are wrong: for studies
    late: Annotated[int, Field(ge=0, lt=1000)] = 0  # simulate: an end books up to so many rounds late
    detection: Annotated[int, Field(ge=0, lt=1000)] = 1  # simulate: rounds until a crash or a partition is known


@dataclass(frozen=True, config=_STRICT)
class Evaluation:
    """[evaluation]: how often the nodes' models are tested."""

    every: Count = 1  # rounds; the last round is always evaluated


@dataclass(frozen=True, config=_STRICT)
class Driver:
    """[driver]: speed only; changing it never changes the meaning."""

    kind: Literal["live", "virtual", "simulate"] = "live"
    method: Literal["auto", "loop", "map", "vmap", "sharded"] = "auto"  # simulate: how; auto measures
    chunk: Count | None = None  # simulate: nodes that are computed at once
    devices: Count | None = None  # simulate: devices to spread the nodes over
    checkpoint: Annotated[int, Field(ge=0, lt=2**31)] = 10  # live: rounds from one checkpoint to the next; 0: none


@dataclass(frozen=True, config=_STRICT)
class Experiment:
    """A whole experiment file."""

    name: Annotated[str, Field(pattern=_NAME)]
    data: Data
    training: Training
    topology: Topology
    algorithm: AlgorithmTable
    rounds: Count
    model: Model | None = None  # must be given, but for the source quadratic
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    churn: Annotated[tuple[ChurnEvent, ...], _LIST] = ()
    network: Network = dataclasses.field(default_factory=Network)
    virtual: Virtual = dataclasses.field(default_factory=Virtual)
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
    driver: Driver = dataclasses.field(default_factory=Driver)
    baselines: bool = True  # also train every node alone, and on all data pooled


@dataclass(frozen=True, config=_STRICT)
class NodeFile:
    """NODE.toml: one node of a federation."""

    experiment: str  # the experiment file, the same on every machine
    node: Annotated[int, Field(ge=0)]
    listen: Address  # tcp://ADDRESS:PORT; the membership listens on the port after it
    peers: Annotated[tuple[Address, ...], _LIST] = ()  # other nodes; one that is there is enough to find all
    address: Address | None = None  # how the others reach this node; as `listen`
    out: str | None = None  # directory of its records, beside this file; ./p2pfl-node-ID
    data: Data | None = None  # this machine's own rows, instead of its part of the experiment's data


def load(path: Path, overrides: Sequence[str] = (), find: bool = False) -> Experiment:
    """Read an experiment file and apply `a.b=VALUE` overrides. Raises ConfigError.

    Paths in the file become absolute (see `located`); those of overrides are taken from the current directory. With
    `find`, the files it names must be there; a node that brings its own rows has no need of the experiment's.
    """
    table = read(path)
    given = {}
    for found, key, _ in _paths(table):
        name = found[key]
        found[key] = str(located(name, path.parent))
        given[found[key]] = name
    overridden = [_override(table, override) for override in overrides]
    for found, key, _ in _paths(table):
        found[key] = str(Path(found[key]).resolve())
    wanted: Experiment = parse(table, str(path), Experiment, overridden)
    for found, key, field in _paths(table) if find else ():
        if not Path(found[key]).is_file():
            raise ConfigError(_not_found(path, field, given.get(found[key]), found[key]))
    return wanted


def _paths(table: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Every path that stands in an experiment file: (its table, its key there, the field as a person writes it)."""
    churn = table.get("churn")
    places = [(table.get("data"), "path", "data.path"), (table.get("topology"), "file", "topology.file")]
    places += [(each, "path", f"churn[{i}].path") for i, each in enumerate(churn if isinstance(churn, list) else ())]
    for found, key, field in places:
        if isinstance(found, dict) and isinstance(found.get(key), str):
            yield found, key, field


def load_node(path: Path) -> NodeFile:
    """Read a node file; the paths in it become absolute. Raises ConfigError, also when a file it names is missing."""
    found: NodeFile = parse(read(path), str(path), NodeFile)
    data, experiment = found.data, located(found.experiment, path.parent)
    if not experiment.is_file():
        raise ConfigError(_not_found(path, "experiment", found.experiment, str(experiment)))
    if data is not None and data.path is not None:
        rows = located(data.path, path.parent)
        if not rows.is_file():
            raise ConfigError(_not_found(path, "data.path", data.path, str(rows)))
        data = dataclasses.replace(data, path=str(rows))
    return dataclasses.replace(found, experiment=str(experiment), data=data)


def read(path: Path) -> dict[str, Any]:
    """The table in a TOML file. Raises ConfigError naming file and line."""
    text = ""
    try:
        text = path.read_text("utf-8-sig")
        return tomllib.loads(text)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; the full path is {path.resolve()}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a directory; give the file, as in {path / 'experiment.toml'}") from error
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text in UTF-8 (byte {error.start}); a TOML file is needed") from error
    except (ValueError, RecursionError) as error:  # ValueError: also whole numbers of thousands of digits
        line = re.search(r"at line (\d+)", str(error))
        shown = text.split("\n")[int(line[1]) - 1].strip()[:60] if line else ""
        raise ConfigError(f"{path}: not TOML: {error}{shown and f': {shown}'}") from error


def located(name: str, beside: Path) -> Path:
    """A file named in a file: beside that file, or else in the current directory."""
    first = (beside / name).resolve()
    here = Path(name).resolve()
    return here if here.exists() and not first.exists() else first


def _not_found(path: Path, field: str, name: str | None, full: str) -> str:
    """`name`: as it stands in the file; None where --set has given it."""
    if name is None or Path(name).is_absolute():
        return f"{path}: {field}={full!r}: no such file; give another path, or put the file there"
    beside, here = (path.parent / name).resolve(), Path(name).resolve()
    places = f"beside this file ({beside}) and in the current directory ({here})"
    return f"{path}: {field}={name!r}: no such file; looked for it {places}"


_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=(.*)""", re.DOTALL)


def _override(table: dict[str, Any], override: str) -> tuple[str, ...]:
    """Apply one `a.b=VALUE`; VALUE is TOML, and a bare word that is no TOML is a string. Returns (a, b)."""
    match = _KEY.fullmatch(override)
    if not match:
        raise ConfigError(f"--set {override!r}: must be written a.b=VALUE, as in training.batch_size=32")
    key, text = match.groups()
    names = tuple(part.strip("\"'") for part in re.findall(r"""[\w-]+|"[^"]*"|'[^']*'""", key))
    try:
        parsed = tomllib.loads(f"value = {text}")
        value = parsed.pop("value")
    except (ValueError, RecursionError) as error:
        if not text.strip() or any(mark in text for mark in "\"'[]{}=\n"):
            said = str(error).replace("at line 1, column", "at column")
            raise ConfigError(
                f"--set {override!r}: {text!r} is not TOML: {said}; text with special characters stands in quotes"
            ) from error
        parsed, value = {}, text.strip()
    if parsed:
        raise ConfigError(f"--set {override!r}: holds more than one value; give --set once for each")
    for depth, name in enumerate(names[:-1]):
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            whole = ".".join(names[: depth + 1])
            raise ConfigError(f"--set {override!r}: {whole} is no table; set it as a whole, as in churn=[]")
        table = inner
    table[names[-1]] = value
    return names


def parse(table: dict[str, Any], where: str, kind: type[Any], overridden: Sequence[tuple[str, ...]] = ()) -> Any:
    """The dataclass `kind` from a table. Raises ConfigError with a line for every fault.

    `overridden`: the fields that don't stand in the file but come from --set; an error says so.
    """
    faults = {place: f"{_path(place)}={_shown(value)}: {rule}" for place, value, rule in _unfit(table, ())}
    found = None
    try:
        # by way of JSON: there, strict means no guessing of scalars, and tables still become dataclasses
        found = TypeAdapter(kind).validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            faults.setdefault(fault["loc"], _fault(fault, kind))
    if not faults:
        return found
    lines = []
    for place, text in faults.items():
        from_set = any(all(a == b for a, b in zip(names, place, strict=False)) for names in overridden)
        lines.append(f"{where}{' with --set' if from_set else ''}: {text}")
    raise ConfigError("\n".join(lines))


def _unfit(value: Any, place: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any, str]]:
    """What TOML can say and no field can mean: (place, value, rule)."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _unfit(item, (*place, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unfit(item, (*place, index))
    elif isinstance(value, float) and not math.isfinite(value):
        yield place, value, "must be a finite number"
    elif isinstance(value, datetime.date | datetime.time):
        yield place, str(value), f'no field takes a date or time; as text it stands in quotes: "{value}"'


_RULES = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text, in quotes",
    "tuple_type": "must be a list, in square brackets",
    "dict_type": "must be a table, as in {{ name = VALUE }}",
    "greater_than": "must be > {gt:g}",
    "greater_than_equal": "must be >= {ge:g}",
    "less_than": "must be < {lt}",
    "too_long": "must hold at most {max_length}",
}
_PATTERNS = {
    _NAME: "must be one or more letters, digits, '_', '.' or '-'",
    _ADDRESS: "must be written tcp://HOST:PORT, as in tcp://192.168.0.7:5555",
}


def _fault(fault: Any, kind: type[Any]) -> str:
    """One of pydantic's findings in our words."""
    *table, name = fault["loc"]
    field, value, context = _path(fault["loc"]), _shown(fault["input"]), fault.get("ctx", {})
    if fault["type"] == "unexpected_keyword_argument":
        return f"{field}={value}: no such field; {nearest(name, _fields(kind, table))}"
    if fault["type"] == "missing":
        inner = _kind(kind, fault["loc"])
        return f"{field}: missing; " + (f"a table [{field}] must be given" if inner else "it must be given")
    if fault["type"] == "literal_error":
        expected = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        return f"{field}={value}: {nearest(fault['input'], expected)}"
    if fault["type"] == "dataclass_type":
        return f"{field}={value}: must be a table with the fields {', '.join(_fields(kind, fault['loc']))}"
    if fault["type"] == "string_pattern_mismatch":
        return f"{field}={value}: {_PATTERNS[context['pattern']]}"
    rule = _RULES.get(fault["type"], fault["msg"].replace("Input should be", "must be"))
    return f"{field}={value}: {rule.format(**context)}"


def _path(place: Sequence[str | int]) -> str:
    """The field at a place as a person writes it: churn[0].event."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def _shown(value: Any) -> str:
    """A value of the file in an error's text."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(kind: type[Any], place: Sequence[str | int]) -> type[Any] | None:
    """The dataclass of the table at a place in a file; None where there is a plain value."""
    found: type[Any] | None = kind
    for part in place:
        if isinstance(part, str):
            types = {field.name: str(field.type) for field in dataclasses.fields(found)} if found else {}
            words = re.findall(r"\w+", types.get(part, ""))
            found = next((each for each in TABLES if each.__name__ in words), None)
    return found


def _fields(kind: type[Any], place: Sequence[str | int]) -> list[str]:
    """The fields of the table at a place in a file."""
    return [field.name for field in dataclasses.fields(_kind(kind, place) or kind)]


TABLES: tuple[type[Any], ...] = (
    Data, Model, Training, Topology, AlgorithmTable, ChurnEvent, Network, Virtual, VirtualLink,
    Evaluation, Driver, Experiment, NodeFile,
)  # fmt: skip
"""Every table of a file: each field of each is documented in docs/experiment.md."""


def dump(value: Experiment | NodeFile) -> str:
    """The TOML text of an experiment or node file; fields that are not set are left out."""
    return tomli_w.dumps(_plain(dataclasses.asdict(value)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
