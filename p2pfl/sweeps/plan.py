"""The sweep file: many runs of one experiment over the product of some axes and seeds, validated before one starts.

`read` gives the sweep, `runs` every run of it, ready to be made. `p2pfl.sweeps.workers`
makes them, `p2pfl.sweeps.results` reads what came of them.
Every fault names file, field, value, rule and way out, and all are told at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass

from p2pfl.check import LIST, STRICT, Texts
from p2pfl.config import experiment, toml
from p2pfl.config.experiment import Experiment
from p2pfl.errors import ConfigError, nearest
from p2pfl.learning.targets import TARGETS
from p2pfl.reporting import run_data
from p2pfl.runs import assessment

_TOLD = 30
"""Refused combinations that are told one by one."""
Seed = Annotated[int, Field(ge=0, lt=2**31)]

_KEYS = tuple(dict.fromkeys(target.key for target in TARGETS.values()))
_NOT_SIMULATED = (
    "nodes", "rounds", "epochs", "residue_drift", "bytes_membership", "seconds_startup", "seconds_virtual",
    "seconds_per_round_longest", "memory_peak_per_node",
)  # fmt: skip
_BASELINE = re.compile("_(local_only|pooled|majority)")
METRICS = tuple(
    dict.fromkeys(
        name
        for key in _KEYS
        for name in run_data.numbers(key)
        if name not in _NOT_SIMULATED and not _BASELINE.search(name)
    )
)
"""Figures of summary.json that can be a column; those of baselines stand in rows of their own."""
ROUNDS = ("consensus_distance", *(f"{key}_{end}" for key in _KEYS for end in ("mean", "worst")))
"""Figures of rounds.jsonl that can be a curve, or reach a bound: `accuracy_mean > 0.9` is the first such round."""
ALONGSIDE = ("round", "bytes")
"""What a curve can be drawn against: the round, or the bytes that a node has sent so far."""


@dataclass(frozen=True, config=STRICT)
class Skip:
    """[[skip]]: combinations that are left out."""

    where: dict[str, Any]  # axis -> label, or a list of labels; all of them must hold
    why: str  # the reason, shown below the table


@dataclass(frozen=True, config=STRICT)
class PictureTable:
    """[picture]: picture.png."""

    x: Texts  # an axis or a metric; or "round", "bytes" or both, for curves
    y: str  # a metric, or an axis where x is a metric; of curves, a figure of rounds.jsonl
    series: str | None = None  # the axis that has colours
    panels: str | None = None  # the axis that has a panel for each of its labels
    where: dict[str, Any] = dataclasses.field(default_factory=dict)  # axis -> label or labels that are drawn; all
    log: Annotated[tuple[Literal["x", "y"], ...], LIST] = ()  # logarithmic scales
    least: float | None = None  # what is smaller is drawn here: for zero on a logarithmic scale
    titles: dict[str, str] = dataclasses.field(default_factory=dict)  # axis, metric or label -> its name in the picture


@dataclass(frozen=True, config=STRICT)
class Sweep:
    """A whole sweep file."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    experiment: str  # the experiment file that is varied, beside this file
    axes: dict[str, Any]  # name -> values of that field; or name -> { label = [overrides] }
    metrics: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]  # columns of the table
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)] = (0, 1, 2)  # mean and sd over these
    baselines: Texts | None = None  # axes that "every node alone" and "pooled" depend on; without it there are none
    columns: str | None = None  # an axis whose labels stand side by side in the table
    skip: Annotated[tuple[Skip, ...], LIST] = ()
    picture: PictureTable | None = None


class Axis(NamedTuple):
    """One axis: what each label puts into the experiment."""

    name: str
    overrides: dict[str, tuple[str, ...]]


class SweepPlan(NamedTuple):
    """A sweep that has been read and checked, but for what the experiments themselves say."""

    file: Path
    sweep: Sweep
    base: Path
    axes: tuple[Axis, ...]


class SweepRun(NamedTuple):
    """One run: its labels by axis, and where it goes below OUT/runs."""

    name: str
    labels: dict[str, str]
    seed: int
    baseline: bool
    wanted: Experiment


class Reach(NamedTuple):
    """The metric `figure < bound` or `figure > bound`: the first recorded round in which it holds."""

    figure: str
    below: bool
    bound: float


def reach(metric: str) -> Reach | None:
    """Parse a metric such as "accuracy_mean > 0.9"; None for a plain one. Raises ValueError for a bad bound."""
    found = re.fullmatch(r"(\w+) *([<>]) *(\S+)", metric)
    return Reach(found[1], found[2] == "<", float(found[3])) if found else None


def in_percent(metric: str) -> bool:
    """Return whether a metric is shown in percent."""
    return re.search(r"(^|_)(accuracy|dice)_", metric) is not None and reach(metric) is None


def read(file: Path) -> SweepPlan:
    """Read a sweep file. Raises ConfigError with a line for every fault."""
    table = toml.read(file)
    faults: list[str] = []
    picture, skips = table.get("picture"), table.get("skip")
    if isinstance(picture, dict):
        if isinstance(picture.get("x"), str):
            picture["x"] = [picture["x"]]
        _parsed(picture, f"{file}: [picture]", PictureTable, faults)
    for i, each in enumerate(skips if isinstance(skips, list) else ()):
        if isinstance(each, dict):
            _parsed(each, f"{file}: skip[{i}]", Skip, faults)
    whole = {k: v for k, v in table.items() if not faults or k not in ("picture", "skip")}
    sweep = _parsed(whole, str(file), Sweep, faults)
    if faults:
        raise ConfigError("\n".join(faults))
    axes = tuple(_axis(name, given, faults) for name, given in sweep.axes.items())
    plan = SweepPlan(file, sweep, toml.located(sweep.experiment, file.parent), axes)
    if not faults:
        faults += [*_metric_faults(sweep, _own_metrics(plan.base)), *_axis_faults(plan), *_picture_faults(plan)]
    if not plan.base.is_file():
        faults.append(f"experiment={sweep.experiment!r}: no such file; looked for it beside this file ({plan.base})")
    if faults:
        raise ConfigError("\n".join(f"{file}: {fault}" for fault in faults))
    return plan


def _parsed(table: dict[str, Any], where: str, kind: type[Any], faults: list[str]) -> Any:
    try:
        return experiment.parse(table, where, kind)
    except ConfigError as error:
        faults.append(str(error))
        return None


# --- axes


def label(value: Any) -> str:
    """Write a value of an axis: text as it is, 10.0 as 10, the rest as TOML."""
    if isinstance(value, str):
        return value
    return str(int(value)) if isinstance(value, float) and value == int(value) else json.dumps(value)


def _axis(name: str, given: Any, faults: list[str]) -> Axis:
    overrides: dict[str, tuple[str, ...]] = {}
    if name in ("seed", *ALONGSIDE):
        way = "use seeds" if name == "seed" else "take another"
        faults.append(f"axes.{name}: can't be the name of an axis; {way}")
    if isinstance(given, list) and given:
        for value in given:
            if isinstance(value, dict) or (isinstance(value, float) and not math.isfinite(value)):
                faults.append(f"axes.{name}: {value!r}: must be text, a finite number, true, false or a list")
            elif label(value) in overrides:
                faults.append(f"axes.{name}: {label(value)} stands twice")
            else:
                overrides[label(value)] = (f"{name}={json.dumps(value)}",)
    elif isinstance(given, dict) and given:
        for one, texts in given.items():
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                way = f'quote a name with dots, as in "{name}.{one}" = [...]; or give '
                faults.append(f'axes.{name}.{one}: must be a list of overrides; {way}{one} = ["A.B=VALUE"]')
            else:
                overrides[one] = tuple(texts)
    else:
        faults.append(f"axes.{name}={given!r}: must be a list of values, or a table {{ label = [overrides] }}")
    return Axis(name, overrides)


def _own_metrics(base: Path) -> list[str]:
    """The labels of the metrics that an experiment brings itself."""
    table = toml.read(base).get("evaluation") if base.is_file() else None
    given = table.get("extra_metrics") if isinstance(table, dict) else None
    tables = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    return [str(each.get("label", str(each.get("name")).rpartition(":")[2])) for each in tables]


def _metric_faults(sweep: Sweep, own: Sequence[str]) -> list[str]:
    faults = []
    for metric in sweep.metrics:
        try:
            found = reach(metric)
        except ValueError:
            faults.append(f"metrics: {metric!r}: what follows < or > must be a number")
            continue
        if found is None and metric not in METRICS and not assessment.figure(metric, own):
            faults.append(
                f"metrics: {metric!r}: {nearest(metric, METRICS)}, and those of an assessment, as auc_own_mean"
            )
        elif found is not None and found.figure not in ROUNDS:
            faults.append(f"metrics: {metric!r}: {nearest(found.figure, ROUNDS)}")
    for name, values in (("metrics", sweep.metrics), ("seeds", sweep.seeds)):
        faults += [f"{name}: {value!r} stands twice" for value in dict.fromkeys(values) if values.count(value) > 1]
    return faults


def _axis_faults(plan: SweepPlan) -> list[str]:
    sweep, names = plan.sweep, [axis.name for axis in plan.axes]
    faults = []
    if not names:
        faults.append("axes: must hold at least one axis")
    for field, given in (("baselines", sweep.baselines or ()), ("columns", [sweep.columns] if sweep.columns else ())):
        faults += [f"{field}: {name!r}: no such axis; {nearest(name, names)}" for name in given if name not in names]
    for i, skip in enumerate(sweep.skip):
        faults += [f"skip[{i}].where{fault}" for fault in _where_faults(skip.where, plan.axes)]
    directories = {"-".join(map(slug, labels)) for labels in itertools.product(*(axis.overrides for axis in plan.axes))}
    if len(directories) < math.prod(len(axis.overrides) for axis in plan.axes):
        faults.append("axes: two combinations would have one directory; labels must differ in letters and digits")
    return faults


def _where_faults(where: Mapping[str, Any], axes: Sequence[Axis]) -> list[str]:
    known = {axis.name: axis for axis in axes}
    faults = []
    for name, given in where.items():
        if name not in known:
            faults.append(f".{name}: no such axis; {nearest(name, known)}")
            continue
        for one in wanted_labels(given):
            if one not in known[name].overrides:
                faults.append(f".{name}={one!r}: {nearest(one, known[name].overrides)}")
    return faults


def wanted_labels(given: Any) -> list[str]:
    """The labels that a `where` names: one, or a list."""
    return [label(one) for one in (given if isinstance(given, list | tuple) else [given])]


def _picture_faults(plan: SweepPlan) -> list[str]:
    picture, axes, metrics = plan.sweep.picture, {axis.name: axis for axis in plan.axes}, plan.sweep.metrics
    if picture is None:
        return []
    faults = [f"picture.where{fault}" for fault in _where_faults(picture.where, plan.axes)]
    x, y = picture.x, picture.y
    used = [name for name in (picture.series, picture.panels) if name]
    faults += [f"picture: {name!r}: no such axis; {nearest(name, axes)}" for name in used if name not in axes]
    if x and set(x) <= set(ALONGSIDE):
        if y not in ROUNDS:
            faults.append(f"picture.y={y!r}: a curve shows a figure of rounds.jsonl; {nearest(y, ROUNDS)}")
        if len(x) > 1 and picture.panels:
            faults.append(f"picture.panels={picture.panels!r}: x has a panel for each of its own; leave panels out")
    elif len(x) != 1:
        faults.append(f"picture.x={list(x)!r}: must be one axis or metric, or of: {', '.join(ALONGSIDE)}")
    elif (x[0] in axes) == (y in axes) or not {x[0], y} <= {*axes, *metrics}:
        faults.append(f"picture: x={x[0]!r}, y={y!r}: one must be an axis ({', '.join(axes)}), the other of metrics")
    else:
        used.append(x[0] if x[0] in axes else y)
    for name, axis in axes.items():
        left = wanted_labels(picture.where.get(name, list(axis.overrides)))
        if name not in used and len(left) > 1:
            way = "make it series or panels, or choose one label in picture.where"
            faults.append(f"picture: axis {name!r} is not shown; {way}")
    return faults


# --- runs


def directory(out: Path, run: SweepRun) -> Path:
    """Return where a run goes."""
    return out / "runs" / run.name


def done(out: Path, run: SweepRun) -> bool:
    """Return whether this very run is there, whole."""
    path = directory(out, run)
    if not (path / "summary.json").is_file() or not (path / "experiment.toml").is_file():
        return False
    wanted, written = run.wanted, (path / "experiment.toml").read_text("utf-8")
    counted = re.search(r"^\[topology\]\n(?:\w+ = .*\n)*?nodes = (\d+)$", written, re.MULTILINE)
    if wanted.topology.nodes is None and counted:
        topology = dataclasses.replace(wanted.topology, nodes=int(counted[1]))  # a run writes down what its data say
        wanted = dataclasses.replace(wanted, topology=topology)
    return written == experiment.dump(wanted)


def slug(text: str) -> str:
    """A label as part of the name of a directory."""
    return re.sub(r"[^\w.+]+", "_", text)


def chosen(plan: SweepPlan, only: Sequence[str]) -> tuple[dict[str, list[str]], tuple[int, ...]]:
    """The labels of each axis, and the seeds, that `AXIS=LABEL` leaves. Raises ConfigError."""
    known = {axis.name: list(axis.overrides) for axis in plan.axes} | {"seed": [str(seed) for seed in plan.sweep.seeds]}
    left: dict[str, list[str]] = {}
    for text in only:
        name, sign, value = (part.strip() for part in text.partition("="))
        if not sign or name not in known:
            raise ConfigError(f"--only {text!r}: must be written AXIS=LABEL; {nearest(name, known)}")
        if value not in known[name]:
            raise ConfigError(f"--only {text!r}: {nearest(value, known[name])}")
        left.setdefault(name, []).append(value)
    kept = {name: [each for each in labels if each in left.get(name, labels)] for name, labels in known.items()}
    return kept, tuple(int(seed) for seed in kept.pop("seed"))


def combinations(plan: SweepPlan, kept: Mapping[str, Sequence[str]]) -> list[tuple[dict[str, str], str | None]]:
    """Every combination of labels, and why it is skipped; None where it is not."""
    found = []
    for labels in itertools.product(*(kept[axis.name] for axis in plan.axes)):
        by_axis = dict(zip(kept, labels, strict=True))
        found.append((by_axis, next((skip.why for skip in plan.sweep.skip if matches(by_axis, skip.where)), None)))
    return found


def matches(labels: Mapping[str, str], where: Mapping[str, Any]) -> bool:
    """Return whether a combination is among those that a `where` names."""
    return all(labels[name] in wanted_labels(given) for name, given in where.items())


def runs(plan: SweepPlan, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> list[SweepRun]:
    """Every run, in the order of the axes, baselines first. Raises ConfigError naming each combination it refuses."""
    kept, seeds = chosen(plan, only)
    _check_set(plan, overrides)
    there = [labels for labels, why in combinations(plan, kept) if why is None]
    if not there:
        raise ConfigError(f"{plan.file}: no combination is left; skip and --only leave out all of them")
    found: list[SweepRun] = []
    faults: list[str] = []
    beside = plan.sweep.baselines
    for labels in _distinct(there, beside) if beside is not None else ():
        _add(found, faults, plan, labels, seeds, overrides, baseline=True)
    for labels in there:
        _add(found, faults, plan, labels, seeds, overrides, baseline=False)
    if faults:
        raise ConfigError(many(faults))
    return found


def _check_set(plan: SweepPlan, overrides: Sequence[str]) -> None:
    """A field that an axis gives its values can't be given another."""
    fixed = {_field(text): axis.name for axis in plan.axes for texts in axis.overrides.values() for text in texts}
    for text in overrides:
        field = _field(text)
        if field in fixed:
            raise ConfigError(f"--set {text!r}: is varied by the axis {fixed[field]!r}; choose one label with --only")
        if field in ("seed", "baselines", "driver.kind"):
            raise ConfigError(f"--set {text!r}: is the sweep's own; change {plan.file}, or choose with --only")


def _field(override: str) -> str:
    return override.partition("=")[0].strip()


def _distinct(there: Sequence[Mapping[str, str]], axes: Sequence[str]) -> list[dict[str, str]]:
    """The first combination for every combination of labels of these axes alone."""
    first: dict[tuple[str, ...], dict[str, str]] = {}
    for labels in there:
        first.setdefault(tuple(labels[name] for name in axes), {name: labels[name] for name in axes})
    return list(first.values())


def _add(
    found: list[SweepRun], faults: list[str], plan: SweepPlan, labels: dict[str, str], seeds: Sequence[int],
    overrides: Sequence[str], baseline: bool,
) -> None:  # fmt: skip
    varied = [text for axis in plan.axes if axis.name in labels for text in axis.overrides[labels[axis.name]]]
    plain = ['algorithm={name="local"}', "churn=[]", "network={}"] if baseline else []
    # of the one model of all data, only an assessment knows what it is worth at each site
    assessed = any(metric not in METRICS or (baseline and "_own_" in metric) for metric in plan.sweep.metrics)
    less = ["evaluation.metrics=true"] if assessed else ["evaluation.metrics=false", "evaluation.extra_metrics=[]"]
    asked = [*less, "evaluation.intervals=false"]  # the table has the spread over seeds
    for seed in seeds:
        own = [f"seed={seed}", f"baselines={str(baseline).lower()}", 'driver.kind="simulate"', *asked]
        try:
            wanted = experiment.load(plan.base, [*overrides, *varied, *plain, *own], find=True)
        except ConfigError as error:
            faults.append(f"{plan.file}: {named(labels)}: {str(error).replace(' with --set:', ':')}")
            return
        parts = [*(["baseline"] if baseline else []), *map(slug, labels.values()), f"seed{seed}"]
        found.append(SweepRun("-".join(parts), labels, seed, baseline, wanted))


def named(labels: Mapping[str, str]) -> str:
    """Return a combination in words."""
    return ", ".join(f"{name}={value}" for name, value in labels.items()) or "baselines"


def many(faults: Sequence[str]) -> str:
    """The lines of an error, the first of them where there are very many."""
    rest = len(faults) - _TOLD
    return "\n".join([*faults[:_TOLD], *([f"... and {rest} more"] if rest > 0 else [])])
