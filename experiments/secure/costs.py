"""What hiding costs: plain, masked, by homomorphic encryption, and with differential privacy, in one run.

    python experiments/secure/costs.py [--set data.path=FILE] [--set rounds=20]

Prints two tables, of models and of statistics. The experiment beside this file runs as real processes, once in each
way; homomorphic encryption, which no node carries by itself, with all nodes in this process.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import jax
import numpy as np

import p2pfl
from p2pfl.config.experiment import Experiment
from p2pfl.federation.federation import Federation
from p2pfl.federation.tasks import tasks
from p2pfl.methods import ring_sum, statistics
from p2pfl.node.replica import Replica
from p2pfl.node.task import Booked

FILE = Path(__file__).parent / "experiment.toml"
OWN_SCALE = ["statistics.normalize=false", 'data.standardize="node"']
"""Private runs refuse statistics; and models alone are what is compared."""
PRIVATE = 'privacy={clip=1.0, sampling="poisson", epsilon=10, delta=0.001}'
WAYS: dict[str, tuple[bool, list[str]]] = {
    "plain": (False, OWN_SCALE),
    "masked, 64 bits": (True, OWN_SCALE),
    "masked, 32 bits": (True, [*OWN_SCALE, "secure.bits=32"]),
    "DP, epsilon 10": (False, [*OWN_SCALE, PRIVATE]),
    "DP, epsilon 10, masked": (True, [*OWN_SCALE, PRIVATE]),
}
"""By the first, whether models are masked."""


class Cost(NamedTuple):
    """A line of a table."""

    way: str
    nbytes: float
    seconds: float
    result: str


def experiment(masked: bool, given: Sequence[str]) -> Experiment:
    """The experiment beside this file, without its masks where they are not wanted."""
    found = p2pfl.load_experiment(FILE, ["baselines=false", *given])
    return found if masked else dataclasses.replace(found, secure=None)


def trained(given: Sequence[str], folder: Path) -> list[Cost]:
    """Of each way, what a node sends and how long it takes in a round, and what comes out."""
    found = []
    for i, (way, (masked, how)) in enumerate(WAYS.items()):
        summary = p2pfl.run(experiment(masked, [*how, *given]), folder / str(i)).summary
        sent, spent = summary.bytes_sent_per_node_round, summary.seconds_per_round_median
        found.append(Cost(way, sent or 0, spent or 0, f"{100 * (summary.score_own_mean or 0):.1f} %"))
    return found


def encrypted(given: Sequence[str]) -> Cost:
    """The same training; in each round the sum of all models comes from a ring that node 0 begins."""
    federation = p2pfl.build(experiment(False, [*OWN_SCALE, *given]))
    nodes = [Replica(task) for task in tasks(federation)]
    spent, sent = [], []
    for round in range(1, federation.experiment.rounds + 1):
        began = time.perf_counter()
        payloads = [node.train(round, node.task.neighbors)[0] for node in nodes]
        leaves, structure = jax.tree.flatten(payloads[0])
        flat = np.stack([np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(each)]) for each in payloads])
        total, nbytes = around(flat)
        for i, node in enumerate(nodes):
            others = np.split((total - flat[i]) / (len(nodes) - 1), np.cumsum([leaf.size for leaf in leaves])[:-1])
            parts = [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in zip(others, leaves, strict=True)]
            mean = jax.tree.unflatten(structure, parts)
            node.mix(round, [Booked(j, 1, round, round, round, payloads[i], mean) for j in node.task.neighbors])
        spent.append(time.perf_counter() - began)
        sent.append(nbytes / len(nodes))
    score = np.mean([tested(node, federation) for node in nodes])
    return Cost("HE, a ring", float(np.mean(sent)), median(spent), f"{100 * score:.1f} %")


def tested(node: Replica, federation: Federation) -> float:
    """How much of a node's own test rows it is right of."""
    right, _ = node.task.program.evaluate(node.state, node.task.test)
    return float(right[node.task.own].mean())


def around(own: np.ndarray) -> tuple[np.ndarray, int]:
    """The sum of rows by a ring, and the bytes of all its messages, the word of the result among them."""
    ring = ring_sum.Ring(own[0])
    message = ring.message
    nbytes = len(message)
    for each in own[1:]:
        message = ring_sum.passed(message, each)
        nbytes += len(message)
    total = ring.end(message)
    return total, nbytes + (len(own) - 1) * total.nbytes


def gathered(given: Sequence[str]) -> list[Cost]:
    """Of statistics: bytes that a node sends for them until they are known, and how far a mean of all is off."""
    masked = p2pfl.build(experiment(True, given))
    sums = masked.sites["sums"]
    own = [np.asarray(leaf, np.float64).reshape(len(masked.graph), -1) for leaf in jax.tree.leaves(sums)]
    flat = np.concatenate(own, axis=1)
    neighbors, width = np.mean([degree for _, degree in masked.graph.degree]), flat.shape[1]
    table = math.prod(masked.sites["row"].shape) * 4 + len(masked.graph) * (12 + 12 + 8)
    rounds = {
        "gossip": statistics.rounds(masked.schedule, masked.experiment.statistics.tolerance, masked.experiment.rounds),
        "masked": 2 * statistics.hops(masked.schedule),
    }
    began = time.perf_counter()
    total, nbytes = around(flat)
    spent = time.perf_counter() - began
    true, n = flat.sum(axis=0), len(flat)
    off = float(np.abs(total - true).max() / np.abs(true).max())
    return [
        Cost(f"gossip, {rounds['gossip']} rounds", rounds["gossip"] * neighbors * width * 4, math.nan,
             f"within {masked.experiment.statistics.tolerance:g}"),
        Cost(f"masked, {rounds['masked']} rounds", rounds["masked"] * neighbors * table, math.nan, "to the last digit"),
        Cost("HE, a ring", nbytes / n, spent, f"{off:.0e} of the largest"),
    ]  # fmt: skip


def shown(head: str, costs: Sequence[Cost]) -> str:
    """A table for a page."""
    lines = [head, "|---|---|---|---|"]
    for each in costs:
        seconds = "as a round" if math.isnan(each.seconds) else f"{each.seconds:.3f}"
        lines.append(f"| {each.way} | {each.nbytes:,.0f} | {seconds} | {each.result} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", action="append", default=[], dest="given", metavar="FIELD=VALUE")
    given = parser.parse_args().given
    with tempfile.TemporaryDirectory() as folder:
        models = [*trained(given, Path(folder)), encrypted(given)]
    head = "| Models | bytes a node sends in a round | seconds a round | accuracy, own test patients |"
    print(shown(head, models), end="\n\n")
    print(shown("| Statistics | bytes a node sends | seconds | the sum of all |", gathered(given)))
