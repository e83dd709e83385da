"""The table [data] of an experiment: for each source what it takes, and for each partition.

A field that is not given is None, and what it then means stands with the function that reads the source.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from p2pfl.check import LIST, STRICT, Count, Texts
from p2pfl.config.unions import Tagged, fields_of, inlined, members, refusal
from p2pfl.data.degrade import Degrade
from p2pfl.data.derive import Derived
from p2pfl.data.pictures import RowPicture
from p2pfl.data.volumes import VolumeTable

Open = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class EvenPartition:
    """partition = "iid" or "by_site": nothing else is to be said."""

    partition: Literal["iid", "by_site"] = "iid"


@dataclass(frozen=True, config=STRICT)
class DirichletPartition:
    """partition = "dirichlet"."""

    partition: Literal["dirichlet"]
    alpha: Annotated[float, Field(gt=0)]  # the smaller, the less alike the nodes' classes


@dataclass(frozen=True, config=STRICT)
class ShardsPartition:
    """partition = "shards"."""

    partition: Literal["shards"]
    per_node: Count  # shards a node gets


@dataclass(frozen=True, config=STRICT)
class FunctionPartition:
    """The value that a function of the user's own returns."""

    partition: str  # "module:function"
    partition_arguments: dict[str, Any] | None = None  # its arguments


PartitionTable = EvenPartition | DirichletPartition | ShardsPartition | FunctionPartition
DEALT = ("partition", "alpha", "per_node", "partition_arguments", "site", "min_rows", "small_sites")
"""Fields that deal rows to nodes, which a node that brings its own rows does not take from the experiment."""
EITHER = (("use", "drop"), ("split", "test_fraction"), ("split", "group"), ("classes", "label_above"))
"""Fields of which one may be given."""
_PARTITION = tuple(dict.fromkeys(name for kind in members(PartitionTable) for name in fields_of(kind)))


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SourceTable:
    """The fields of every [data]: the source, and how the rows are spread over the nodes."""

    source: str
    partition: Annotated[PartitionTable, Tagged(("partition",), inline=True, group="p2pfl.partitions")] = (
        EvenPartition()
    )
    dictionary: str | None = None  # a file that says what the rows mean, the same at every site; found as `path` is
    degrade: Annotated[Degrade, Tagged(("by",))] | None = None  # what is done to images, to be undone: a reconstruction

    _gather = model_validator(mode="before")(inlined("partition", _PARTITION))


@dataclass(frozen=True, config=STRICT, kw_only=True)
class BuiltinData(SourceTable):
    """A data set of scikit-learn."""

    source: Literal["digits", "breast_cancer"]
    test_fraction: Open | None = None  # rows kept for the test; 0.2


@dataclass(frozen=True, config=STRICT, kw_only=True)
class NpzData(SourceTable):
    """An .npz file."""

    source: Literal["npz"]
    test_fraction: Open | None = None  # rows kept for the test where the file has no split of its own; 0.2
    path: str  # looked for beside the experiment file, then in the current directory
    intensity: Annotated[tuple[float, float], LIST] | None = None  # the values that become 0 and 1; as the type says

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.intensity is not None and not self.intensity[0] < self.intensity[1]:
            raise refusal("must be [low, high]: the values that become 0 and 1", "intensity")
        return self


@dataclass(frozen=True, config=STRICT, kw_only=True)
class CsvData(SourceTable):
    """A table: .csv, .xlsx or .parquet."""

    source: Literal["csv"]
    test_fraction: Open | None = None  # rows kept for the test where there is no split; 0.2
    path: str | None = None  # beside the experiment file, or in the current directory; None: only the nodes have rows
    kind: Literal["classes", "labels", "regression", "survival"] | None = None  # what is predicted; classes
    label: str | None = None  # classes: the column to predict
    labels: Texts | None = None  # labels: columns of 0 and 1
    targets: Texts | None = None  # regression: columns of numbers
    time: str | None = None  # survival: the column of the time to the event, or to the last visit
    event: str | None = None  # survival: the column that says whether the event was seen, 0 or 1
    label_above: float | None = None  # predict whether the label is greater than this
    site: str | None = None  # the column that names the site
    split: str | None = None  # the column that says train or test
    group: str | None = None  # the column, such as the patient, whose rows no drawn split parts
    use: Texts | None = None  # columns to learn from, in this order
    drop: Texts | None = None  # columns to leave out
    rename: dict[str, str] | None = None  # column of the file -> its name from here on
    derive: dict[str, Derived] | None = None  # name -> a column made of others
    dates: str | None = None  # how days are written, as strptime has it, for derive
    decimal: Literal[".", ","] | None = None  # the mark of decimals; found column by column
    delimiter: str | None = None  # of text; found by the header
    encoding: str | None = None  # of text; UTF-8, or else Windows-1252
    sheet: str | None = None  # of a workbook; the first
    missing: Literal["error", "drop_row", "mean", "gossip"] | None = None  # missing cells; error
    missing_values: Texts | dict[str, Texts] | None = None  # more cells that are missing, of all columns or of some
    missing_indicator: bool | Texts | None = None  # columns, or all, beside which one says where they were missing
    not_applicable: dict[str, Texts] | None = None  # column -> cells that mean: does not apply
    min_rows: Count | None = None  # rows a site must have; 10
    small_sites: Literal["error", "drop"] | None = None  # what to do about smaller ones; error
    classes: Texts | None = None  # the labels, where a single file may not hold them all
    categories: dict[str, Texts] | None = None  # the values of text columns, likewise
    coding: Literal["one_hot", "treatment"] | None = None  # of categories; treatment leaves out the first; one_hot
    standardize: Literal["node", "pooled", "none"] | None = None  # mean 0, sd 1 by each site's training rows; node
    units: dict[str, str] | None = None  # the units of columns, in words, for sites to compare
    picture: RowPicture | None = None  # a picture beside the columns of each row

    @model_validator(mode="after")
    def _used(self) -> Self:
        """Refuse fields that mean something only where another one is given, or is not."""
        if self.use and self.drop:
            raise refusal("what data.use does not name is left out; give one, not both", "drop")
        for field in ("min_rows", "small_sites"):
            if getattr(self, field) is not None and self.site is None:
                raise refusal("is used only with data.site; leave it out, or change that", field)
        if self.test_fraction is not None and self.split is not None:
            raise refusal("is not used where data.split is given; leave it out, or change that", "test_fraction")
        return self


@dataclass(frozen=True, config=STRICT, kw_only=True)
class MedmnistData(SourceTable):
    """A subset of MedMNIST."""

    source: Literal["medmnist"]
    subset: str  # its name, such as pneumoniamnist
    size: Count | None = None  # pixels of a side; 28
    root: str | None = None  # where its files lie; ~/.medmnist


@dataclass(frozen=True, config=STRICT, kw_only=True)
class FolderData(SourceTable):
    """A data set as it lies on disk."""

    source: Literal["folder"]
    test_fraction: Open | None = None  # rows kept for the test where the layout has none; 0.2
    path: str  # its root; looked for beside the experiment file, then in the current directory
    missing: Literal["error", "drop_row"] | None = None  # missing files; error
    layout: str  # a name of experiments/data, or the path of a .toml
    side: Count | None = None  # pixels of a side, instead of the layout's size
    limit: Count | None = None  # rows at most, for a try
    volume: VolumeTable | None = None  # whole volumes instead of slices, and how they become rows
    cache: bool | str | None = None  # keep decoded rows in a file: true, beside the data, or a folder


@dataclass(frozen=True, config=STRICT, kw_only=True)
class QuadraticData(SourceTable):
    """A quadratic function for each node, instead of data: what is to be found is known."""

    source: Literal["quadratic"]
    dim: Count | None = None  # parameters; 10
    spread: Annotated[float, Field(ge=0)] | None = None  # how far apart the nodes' minima lie; 1
    conditioning: Annotated[float, Field(ge=1)] | None = None  # largest over smallest curvature; 1


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ScriptData(SourceTable):
    """No rows: they are those of the scripts that take part by `p2pfl.join`, and so are model and local steps."""

    source: Literal["script"]


@dataclass(frozen=True, config=STRICT, kw_only=True)
class FunctionData(SourceTable):
    """The value that a function of the user's own returns."""

    source: str  # "module:function"
    arguments: dict[str, Any] | None = None  # its arguments


Data = BuiltinData | NpzData | CsvData | MedmnistData | FolderData | QuadraticData | ScriptData | FunctionData
"""[data]: what is learned from, and how it is spread over the nodes."""
DataTable = Annotated[Data, Tagged(("source",), group="p2pfl.data")]
KINDS = (*members(PartitionTable), *members(Data))
"""The dataclasses of [data]."""
DEGRADE = members(Degrade)
"""The dataclasses of [data.degrade]."""


@dataclass(frozen=True, config=STRICT)
class DataFile:
    """A file of rows by itself, as if an experiment had named it."""

    data: DataTable


_COMMON = ("source", "partition", "dictionary", "degrade")


def given(data: Data) -> dict[str, Any]:
    """The fields of a source that are given, by name, but for those that every source has."""
    own = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    return {name: value for name, value in own.items() if value is not None and name not in _COMMON}
