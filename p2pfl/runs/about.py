"""What a node's directory says of its federation, so that its records can be read without the experiment's data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from p2pfl import tree
from p2pfl.federation.federation import Federation, model_shape, terms
from p2pfl.runs.summary import planned_losses

_FILE = "about.json"


class About(NamedTuple):
    """The content of about.json. All but `node` is the same at every node of a federation."""

    node: int
    name: str  # of the experiment
    nodes: int
    rounds: int
    parameters: int  # of a model, those that are mixed
    link: str  # of the algorithm, as `keeps_mean`
    keeps_mean: str
    score: str  # what scores are called by in the records
    federation: str = ""  # digest of what all nodes have in common
    planned_losses: tuple[int, ...] = ()  # nodes that the experiment plans to lose
    sums: bool = False  # a node knows the sum of its neighbours alone

    def write(self, directory: Path) -> None:
        """Write about.json into the node's directory."""
        (directory / _FILE).write_text(json.dumps(self._asdict(), indent=1), "utf-8")


def about(federation: Federation, node: int, score: str) -> About:
    """Return what there is to say of a node of a federation."""
    return About(
        node=node,
        name=federation.experiment.name,
        nodes=len(federation.graph),
        rounds=federation.experiment.rounds,
        parameters=tree.size(tree.mixed(model_shape(federation))),
        link=federation.algorithm.link,
        keeps_mean=federation.algorithm.keeps_mean,
        score=score,
        federation=terms(federation).federation,
        planned_losses=tuple(sorted(planned_losses(federation))),
        sums=federation.algorithm.whole,
    )


def read(directory: Path) -> About | None:
    """Read about.json of a directory; None where there is none, or it is of another version."""
    path = directory / _FILE
    if not path.is_file():
        return None
    table = json.loads(path.read_text("utf-8"))
    if not set(table) >= set(About._fields) - set(About._field_defaults):
        return None
    known = {name: table[name] for name in About._fields if name in table}
    return About(**{**known, "planned_losses": tuple(known.get("planned_losses", ()))})
