"""Small federations for tests of drivers against each other: quadratics, a few rounds, every algorithm."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

PATIENT = {"start_timeout": 60.0, "silence": 60.0, "deadline_min": 61.0, "deadline_max": 61.0}
"""A slow machine must not turn a barrier into a deadline where results are compared to the bit."""


LEAST = """
name = "tiny"
rounds = 3
[data]
source = "digits"
[model]
name = "logistic"
[training]
optimizer = { name = "sgd", learning_rate = 0.1 }
[topology]
graph = "ring"
nodes = 3
[algorithm]
name = "dsgd"
"""
"""An experiment file that says no more than it must; tests replace parts of it."""


@dataclasses.dataclass(frozen=True)
class Case:
    """An algorithm and the graph it is tried on."""

    algorithm: str
    graph: str = "ring"
    nodes: int = 5
    loss: float = 0.0
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the algorithm
    dtype: str = "float32"
    optimizer: str = '{ name = "sgd", learning_rate = 0.05 }'

    def __str__(self) -> str:
        more = [*([f"loss{self.loss}"] if self.loss else []), *([self.dtype] if self.dtype != "float32" else [])]
        more += ["scheduled"] if "schedule" in self.optimizer else []
        return "-".join([self.algorithm, *map(str, self.arguments.values()), self.graph, *more])


SCHEDULED = (
    '[{ name = "clip_by_global_norm", max_norm = 0.5 }, { name = "sgd", momentum = 0.5, learning_rate = '
    '{ schedule = "warmup_constant_schedule", init_value = 0.01, peak_value = 0.1, warmup_steps = 9 } }]'
)
"""Clipped, with a memory, and a learning rate that rises: its state is more than none."""
GATHERED = (
    '[{ name = "MultiSteps", every_k_schedule = 3 }, { name = "sgd", learning_rate = '
    '{ schedule = "cosine_decay_schedule", init_value = 0.1, decay_steps = 6 } }]'
)
"""A step for every three gradients, which do not come out even with the two local steps of a round."""

CASES = (
    Case("dsgd", "base", loss=0.2),
    Case("gradient_tracking"),
    Case("push_sum", "one_peer_exponential", 6, loss=0.2),
    Case("push_sum", "exponential"),
    Case("epidemic", "complete"),
    Case("ad_psgd"),
    Case("gossip_learning", "complete"),
    Case("fedavg", "star"),
    Case("gradient_tracking", optimizer=SCHEDULED),
)
"""One of each kind: static and changing graphs, exchanges and pushes, one payload for all and one for each."""

LIARS = """
[[algorithm.wrap]]
name = "trimmed_mean"
f = 1
[[attack]]
nodes = [1]
by = "equivocation"
[[attack]]
nodes = [3]
by = "alie"
"""
"""Tables of an experiment in which one says something else to each, and one goes by what it has heard."""

MORE = (
    Case("dsgd"),
    Case("dsgd", "base", arguments={"order": "cta"}),
    Case("dmsgd"),
    Case("qg_dsgdm", loss=0.2),
    Case("exact_diffusion"),
    Case("d2", "complete", 3),
    Case("push_sum", "one_peer_exponential", 6),
    Case("epidemic", "complete", 6, arguments={"kind": "oracle"}),
    Case("ad_psgd", loss=0.2),
    Case("dfedavg"),
    Case("outer"),
    Case("outer", arguments={"pairs": True}),
    Case("fedavg", "complete"),
    Case("fedprox"),
    Case("local"),
)
"""The rest of the table of algorithms."""


def toml(case: Case, rounds: int = 8, timing: dict[str, float] = PATIENT, more: str = "") -> str:
    """The experiment file of a case; `more`: further tables."""
    table = f"""
name = "small"
rounds = {rounds}
baselines = false
[data]
source = "quadratic"
dim = 3
[training]
optimizer = {case.optimizer}
local_steps = 2
dtype = "{case.dtype}"
[topology]
graph = "{case.graph}"
nodes = {case.nodes}
[algorithm]
name = "{case.algorithm}"
[network]
loss = {case.loss}
[network.timing]
"""
    table += "".join(f"{name} = {value}\n" for name, value in timing.items())
    if case.arguments:
        table += "[algorithm.arguments]\n"
        table += "".join(f"{name} = {json.dumps(value)}\n" for name, value in case.arguments.items())
    return table + more


def write(folder: Path, case: Case, **given: Any) -> Path:
    """The experiment file in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "experiment.toml"
    file.write_text(toml(case, **given))
    return file
