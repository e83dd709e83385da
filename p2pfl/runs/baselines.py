"""What a run is compared with: every node alone, one model on all data pooled, the most frequent class."""

from __future__ import annotations

from pathlib import Path

from p2pfl.config.experiment import Experiment
from p2pfl.federation import federation as building
from p2pfl.federation.federation import Federation
from p2pfl.reporting.terminal import View
from p2pfl.runs import assessment, simulated
from p2pfl.runs.summary import score


def train(federation: Federation, out: Path, view: View) -> dict[str, float | None]:
    """Train every node alone, and one model on all data; returns their figures, by their names in the summary."""
    experiment, nodes, shown = federation.experiment, len(federation.graph), score(federation)
    view.say("baselines: training every node alone, then one model on all data pooled")
    figures: dict[str, float | None] = {**assessment.majority(federation)}
    for name, other, key in (
        ("local", building.alone(experiment), "local_only"),
        ("pooled", building.pooled(experiment, nodes), "pooled"),
    ):
        place = out / "baselines" / name
        place.mkdir(parents=True)
        figures.update(_baseline(federation, other, place, key))
    alone, pooled = (shown.text(figures.get(f"{shown.key}_{key}")) for key in ("local_only", "pooled"))
    view.say(f"baselines: alone {alone} mean {shown.name}, pooled {pooled}")
    return figures


def _baseline(federation: Federation, other: Experiment, place: Path, name: str) -> dict[str, float | None]:
    """The figures of a baseline: accuracy_NAME for accuracy_mean, accuracy_NAME_worst, accuracy_NAME_own_mean, ..."""
    built = building.build(other)
    result = simulated.into(built, place, lambda status: None)
    if len(result.whole) == 1:  # one model of all data, at each site
        model = next(iter(result.whole.values()))
        built = built._replace(partition=federation.partition, graph=federation.graph)
        result = result._replace(whole=dict.fromkeys(federation.graph, model))
    assessed = assessment.assess(built, result.whole, place) if other.evaluation.metrics else {}
    figures: dict[str, float | None] = {}
    for key, value in {**result.summary.as_dict(), **assessed}.items():
        for end in ("_own_mean", "_own_worst", "_mean", "_worst"):
            if value is not None and key.endswith(end):
                figures[f"{key.removesuffix(end)}_{name}{'' if end == '_mean' else end}"] = value
                break
    return figures
