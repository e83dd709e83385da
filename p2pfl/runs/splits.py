"""The same experiment on other splits of its rows, and without each site in turn: simulated, whatever ran.

What one run says of its test rows it says of one split. Here all is learned again on each of several others, with both
baselines, so that a difference comes with an interval that holds for splits and seeds too.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from p2pfl.config.data import EvenPartition
from p2pfl.config.experiment import Experiment
from p2pfl.data import Dataset, Samples
from p2pfl.data.dataset import split as draw_split
from p2pfl.drivers.live import clock
from p2pfl.errors import ConfigError
from p2pfl.federation import learning
from p2pfl.federation.datasets import read
from p2pfl.federation.events import undisturbed
from p2pfl.federation.federation import Federation, build
from p2pfl.learning import intervals
from p2pfl.learning.targets import TARGETS
from p2pfl.methods.objectives.medisecfed import NAME as TELLS
from p2pfl.reporting import published, terminal
from p2pfl.reporting.terminal import View
from p2pfl.runs import assessment, baselines, simulated
from p2pfl.runs.assessment import Assessment

COMPARED = ("local_only", "pooled")


class Runs(NamedTuple):
    """What came of one split: the run, and its baselines."""

    this: Assessment
    others: dict[str, Assessment]


def check(experiment: Experiment) -> None:
    """Refuse what can't be repeated, or left out. Raises ConfigError."""
    wanted = experiment.evaluation
    if (wanted.splits or wanted.leave_site_out) and not wanted.metrics:
        raise ConfigError("evaluation.metrics=false: splits and leave_site_out give metrics; leave metrics out")
    _apart(experiment)
    if wanted.leave_site_out:
        by_site = isinstance(part := experiment.data.partition, EvenPartition) and part.partition == "by_site"
        if not by_site:
            raise ConfigError('evaluation.leave_site_out: needs a node for each site; use data.partition = "by_site"')
        if experiment.topology.graph is None:
            raise ConfigError("evaluation.leave_site_out: needs a graph by name, which can be made for a node fewer")
        for i, given in enumerate(experiment.training.objective):
            name, named = given.get("name"), given.get("reference") is not None
            if name == "fl_mrcm" or (name == "vafl" and named):
                raise ConfigError(
                    f"evaluation.leave_site_out: numbers nodes anew, and training.objective[{i}] ({name}) has "
                    "one of them as its reference; leave one of the two out"
                )
        looks = experiment.privacy.adversary if experiment.privacy else ""
        if isinstance(looks, tuple):
            raise ConfigError(
                f"evaluation.leave_site_out: numbers nodes anew, and privacy.adversary={[*looks]} names some of them; "
                "leave one of the two out"
            )
        for i, method in enumerate(learning.objectives(experiment, learning.optimizer(experiment))):
            if method.given:
                name = experiment.training.objective[i]["name"]
                raise ConfigError(
                    f"evaluation.leave_site_out: numbers nodes anew, and training.objective[{i}] ({name}) has a value "
                    "for each of them; leave one of the two out"
                )
    if wanted.splits and experiment.topology.graph is None:
        undisturbed(experiment, "evaluation.splits")


def tried(federation: Federation) -> None:
    """Refuse before anything is trained what there can't be with a node fewer. Raises ConfigError."""
    if not federation.experiment.evaluation.leave_site_out:
        return
    try:
        _left(federation, 0)
    except ConfigError as error:
        name = federation.dataset.sites[0]
        raise ConfigError(f"evaluation.leave_site_out: there can't be a run without site {name}: {error}") from error


def _apart(experiment: Experiment) -> None:
    """Raises ConfigError where training rows are public, which can't be drawn anew or tested on with the others."""
    for i, given in enumerate(experiment.training.objective):
        for field in ("splits", "leave_site_out"):
            alone = given.get("name") == TELLS and given.get("public") is None
            if alone and getattr(experiment.evaluation, field):
                raise ConfigError(
                    f"evaluation.{field}: deals all rows out anew, and training.objective[{i}] ({TELLS}) has set some "
                    "of them apart as public rows; name a file of such: public = ..."
                )


def write(federation: Federation, out: Path, view: View) -> None:
    """Write splits.json and left_out.json, as far as [evaluation] asks for them."""
    wanted, table, found = federation.experiment.evaluation, {}, {}
    if wanted.splits:
        table = repeated(federation, out, view)
        (out / "splits.json").write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    if wanted.leave_site_out:
        found = left_out(federation, out, view)
        (out / "left_out.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    for line in published.repeated_told(table, found, TARGETS[federation.dataset.kind].key):
        view.say(line)


# --- other splits


def repeated(federation: Federation, out: Path, view: View) -> dict[str, Any]:
    """Figures on `evaluation.splits` other splits, each with another seed of everything.

    figures: name -> values, mean, sd, and less: baseline -> [mean difference, low, high]. The interval is the corrected
    resampled t-test's, since splits share rows. Source: Nadeau and Bengio (2003), "Inference for the generalization
    error", equation 21.
    """
    many, began = federation.experiment.evaluation.splits, clock.now()
    runs, rows = [], []
    for k in range(1, many + 1):
        left = f", {terminal.duration((clock.now() - began) / (k - 1) * (many - k + 1))} left" if k > 1 else ""
        view.say(f"split {k} of {many}{left}")
        quiet = undisturbed(federation.experiment, "evaluation.splits")
        experiment = replace(quiet, seed=quiet.seed + k)
        built = build(experiment)
        if np.array_equal(_rows_of(built), _rows_of(federation)):  # the data bring a split of their own
            built = build(experiment, redrawn(_whole(federation), experiment.seed))
        rows.append(len(built.dataset.test.y) / len(built.dataset.train.y))
        runs.append(_all(built, out / "splits" / str(k)))
    figures = {}
    for name in runs[0].this.draws:
        values = [run.this.figures.get(name) for run in runs]
        known = np.array([np.nan if value is None else value for value in values])
        less = {}
        for other in COMPARED:
            theirs = np.array([_value(run.others[other].figures.get(name)) for run in runs])
            found = _corrected(known - theirs, float(np.mean(rows)))
            if found is not None:
                less[other] = found
        some = known[np.isfinite(known)]
        if len(some):
            sd = float(some.std(ddof=1)) if len(some) > 1 else None
            figures[name] = {"values": values, "mean": float(some.mean()), "sd": sd, "less": less}
    return {"splits": many, "figures": figures}


def _rows_of(federation: Federation) -> np.ndarray:
    """The test rows before anything was drawn for them. Of training rows a seed may hold some back, or set apart."""
    test = federation.dataset.test
    return test.y if federation.experiment.data.degrade is not None else test.x


def _whole(federation: Federation) -> Dataset:
    """The data to be split anew: images that are degraded by the node that gets them, as they were before."""
    data = federation.experiment.data
    return federation.dataset if data.degrade is None else read(data, federation.experiment.seed)


def _value(value: float | None) -> float:
    return np.nan if value is None else value


def _corrected(differences: np.ndarray, ratio: float) -> list[float] | None:
    """Mean, low and high of paired differences over splits; `ratio`: test rows to training rows."""
    known = differences[np.isfinite(differences)]
    if len(known) < 2:
        return None
    error = np.sqrt((1 / len(known) + ratio) * known.var(ddof=1))
    half = float(stats.t.ppf((1 + intervals.LEVEL) / 2, len(known) - 1) * error)
    mean = float(known.mean())
    return [mean, mean - half, mean + half]


def redrawn(dataset: Dataset, seed: int) -> Dataset:
    """The same rows in another split, of as many test rows, stratified by site and class."""
    whole = _joined(dataset.train, dataset.test)
    fraction = len(dataset.test.y) / len(whole.y)
    in_test = draw_split(whole.y, whole.site, fraction, seed)
    return dataset._replace(train=_rows(whole, ~in_test), test=_rows(whole, in_test))


def _joined(first: Samples, second: Samples) -> Samples:
    pairs = zip(first, second, strict=True)
    return Samples(*(None if a is None or b is None else np.concatenate([a, b]) for a, b in pairs))  # type: ignore[arg-type]


def _rows(samples: Samples, chosen: np.ndarray) -> Samples:
    return Samples(*(None if part is None else part[chosen] for part in samples))  # type: ignore[arg-type]


def _all(federation: Federation, place: Path) -> Runs:
    """Simulate a federation and its baselines."""
    experiment = federation.experiment
    others = {}
    for name, other in (
        ("local_only", baselines.alone(experiment)),
        ("pooled", baselines.pooled(experiment, len(federation.graph))),
    ):
        directory = place / name
        directory.mkdir(parents=True, exist_ok=True)
        others[name] = baselines.baseline(federation, other, directory, name)[1]
    result = simulated.into(federation, place, lambda status: None)
    return Runs(assessment.assess(federation, result.whole), others)


# --- without each site


def left_out(federation: Federation, out: Path, view: View) -> dict[str, Any]:
    """Figures on all rows of each site, of models that learned without it: site -> rows, figures, intervals, less.

    figures: of the mean over the nodes' models, by metric; less: what they have more than one model that learned on all
    data of the other sites pooled; less_alone: than the mean over models that each learned at one of them alone.
    """
    dataset, table = federation.dataset, {}
    for site, name in enumerate(dataset.sites):
        view.say(f"without site {name}")
        built = _left(federation, site)
        runs = _all(built, out / "left_out" / str(site))
        known, less = assessment.compared(runs.this, runs.others)
        names = [key for key in runs.this.figures if key.endswith("_mean") and not key.endswith("_own_mean")]
        table[name] = {
            "rows": len(built.dataset.test.y),
            "figures": {key.removesuffix("_mean"): runs.this.figures[key] for key in names},
            "intervals": {key.removesuffix("_mean"): known[key] for key in names if key in known},
            "too_few": {
                key.removesuffix("_mean"): runs.this.few[key]._asdict() for key in names if key in runs.this.few
            },
            **{
                field: {key.removesuffix("_mean"): less[key][of] for key in names if of in less.get(key, {})}
                for field, of in (("less", "pooled"), ("less_alone", "local_only"))
            },
        }
    return table


def _left(federation: Federation, site: int) -> Federation:
    """The federation without a site. Raises ConfigError."""
    # of fewer nodes than masks may need; masks change no figure
    quiet = replace(undisturbed(federation.experiment, "evaluation.leave_site_out"), secure=None)
    return build(without(quiet, site), without_site(federation.dataset, site))


def without(experiment: Experiment, site: int) -> Experiment:
    """The experiment of all nodes but one; it has no churn."""
    nodes = experiment.topology.nodes
    steps = experiment.training.node_steps
    training = replace(experiment.training, node_steps=None if steps is None else steps[:site] + steps[site + 1 :])
    topology = replace(experiment.topology, nodes=None if nodes is None else nodes - 1)
    return replace(experiment, topology=topology, training=training)


def without_site(dataset: Dataset, site: int) -> Dataset:
    """Training rows of all other sites; all rows of this one to be tested on, which are nobody's own."""
    train, test = dataset.train, dataset.test
    if train.site is None or test.site is None:
        raise ConfigError("evaluation.leave_site_out: the data has no sites; name their column (csv: site = ...)")
    kept = _rows(train, train.site != site)
    assert kept.site is not None
    kept = kept._replace(site=kept.site - (kept.site > site).astype(np.int32))
    theirs = _joined(_rows(train, train.site == site), _rows(test, test.site == site))
    theirs = theirs._replace(site=np.zeros(len(theirs.y), np.int32))  # of the first node, as somebody's they must be
    sites = dataset.sites[:site] + dataset.sites[site + 1 :]
    return dataset._replace(train=kept, test=theirs, sites=sites, validation=None)
