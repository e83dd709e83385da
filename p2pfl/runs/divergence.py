"""Judge whether a run has made its models worse than an untrained one, though every number in it is finite.

A loss that is not finite is seen by each node itself; that training with too large a step ends at chance is seen here,
by the nodes' own training rows. Losses of single batches are noise, and what fits other rows badly may be overfit: so
a node counts only if its training loss in the last round is above that of a model that says nothing (all outputs 0),
and its final model fits its own training rows worse than that and worse than the model it began with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl.federation import learning
from p2pfl.federation.federation import Federation
from p2pfl.learning.batching import chunk
from p2pfl.learning.local_steps import placed
from p2pfl.learning.targets import TARGETS, PerSample
from p2pfl.node import records
from p2pfl.types import Array, Params

ROWS = 256
"""Training rows of a node that are looked at, at most."""


class Worse(NamedTuple):
    """A node whose final model fits its own training rows worse than an untrained one."""

    since: int  # the first round from which on its training loss was above `nothing`
    loss: float  # of its final model
    untrained: float
    nothing: float  # of outputs that are all 0


def judge(
    federation: Federation, models: Mapping[int, Params], loss: Mapping[int, float], out: Path
) -> dict[int, Worse]:
    """Return the nodes whose models are worse than untrained.

    `models`: final ones; `loss`: the last training loss of each, NaN where it is not finite (such a node is left out);
    `out`: the run directory, with metrics.jsonl. Nothing is computed for nodes whose last training loss is not suspect.
    """
    if federation.task is not None:
        return {}
    finite = [node for node in models if math.isfinite(loss.get(node, math.nan))]
    suspect = {node: bound for node, bound in _bounds(federation, finite).items() if loss[node] > bound}
    if not suspect:
        return {}
    learner, seed = federation.learner, federation.experiment.seed
    evaluate = jax.jit(learner.evaluate)

    def mean(params: Params, node: int) -> float:
        x, y = _rows(federation, node)
        total = evaluate(params, {"x": x, "y": y}, jnp.ones(len(y), x.dtype))["loss"]
        return float(jnp.asarray(total, jnp.float32).mean())

    result = {}
    for node, nothing in suspect.items():
        site = jax.tree.map(lambda rows, node=node: jnp.asarray(rows[node]), federation.sites)
        untrained = mean(placed(learner.init(jax.random.key(seed)), site), node)
        trained = mean(models[node], node)
        if not trained <= max(untrained, nothing):
            result[node] = Worse(0, trained, untrained, nothing)
    first = _since(out, {node: suspect[node] for node in result})
    return {node: worse._replace(since=first[node]) for node, worse in result.items()}


def since(federation: Federation, diverged: Mapping[str, int], out: Path) -> dict[str, int]:
    """Return from which round on nodes have diverged whose numbers became infinite at last: the losses before count."""
    if federation.task is not None or not diverged:
        return dict(diverged)
    earlier = _since(out, _bounds(federation, [int(node) for node in diverged]))
    return {node: min(round, earlier.get(int(node), round)) for node, round in diverged.items()}


def notes(worse: Mapping[int, Worse]) -> list[str]:
    """Return a line for a person of each node."""
    return [
        f"node {node}: its model fits its own training rows worse than an untrained one (loss {each.loss:.3g}, "
        f"untrained {each.untrained:.3g}), from round {each.since} on; look at its rows, or lower the learning rate"
        for node, each in sorted(worse.items(), key=lambda item: (item[1].since, item[0]))
    ]


def _rows(federation: Federation, node: int) -> tuple[Array, Array]:
    """Return rows of a node, as many of each: over and over where it has fewer, so that one program does for all."""
    data, parts = federation.dataset.train, federation.partition.train
    rows = np.resize(parts[node], min(chunk(data.x.shape[1:], ROWS), max(map(len, parts))))
    return jnp.asarray(data.x[rows].astype(federation.experiment.training.dtype)), jnp.asarray(data.y[rows])


def _bounds(federation: Federation, nodes: Iterable[int]) -> dict[int, float]:
    """Return the loss of outputs that are all 0, of each node that has rows."""
    dataset, result = federation.dataset, {}
    fits = learning.loss(federation.experiment, dataset)
    for node in nodes:
        if len(federation.partition.train[node]):
            x, y = _rows(federation, node)
            output = TARGETS[dataset.kind].output(x.shape[1:], len(dataset.classes))
            result[node] = float(_nothing(fits, jnp.zeros((len(y), *output), x.dtype), y))
    return result


@partial(jax.jit, static_argnums=0)
def _nothing(fits: PerSample, zeros: Array, y: Array) -> Array:
    """Return the mean loss of outputs that are all 0, which are given: XLA takes seconds to fold those of volumes."""
    return fits(zeros, y).mean()


def _since(out: Path, bounds: Mapping[int, float]) -> dict[int, int]:
    """Return the first recorded round from which on the training loss of each node was above its bound."""
    since: dict[int, int] = {}
    last = dict.fromkeys(bounds, 0)
    for row in records.read(out / "metrics.jsonl") if bounds else []:
        node, value = row["node"], row["train_loss"]
        if node not in bounds:
            continue
        last[node] = row["round"]
        if value is None or value > bounds[node]:
            since.setdefault(node, row["round"])
        elif value:  # 0: a round without local steps
            since.pop(node, None)
    return {node: since.get(node, last[node]) for node in bounds}
