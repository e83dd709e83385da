"""The plan of a simulation: what mixing, how many nodes at once on which devices, how long a stretch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from p2pfl import tree
from p2pfl.drivers.simulate import autotune
from p2pfl.drivers.simulate.layout import NodeLayout, exported, layout
from p2pfl.drivers.simulate.shapes import AXIS, Shape
from p2pfl.drivers.simulate.simulation import How, Simulation
from p2pfl.learning.batching import Batching
from p2pfl.types import Params

_INPUT = 1 << 26
"""Bytes of sample indices that a stretch is given at most."""
_LONGEST = 256
_WORTH = 50_000
"""Local steps of a whole simulation from which on it is worth a second to measure how many nodes to compute at once."""
_CACHE = _MIXED = 1 << 21
_KEPT = 1 << 29
"""Bytes of models from before mixing that are kept for evaluation."""

Clock = Callable[[], float]


class EnginePlan(NamedTuple):
    """A plan of how a simulation is computed."""

    work: Simulation
    shape: Shape
    mesh: Mesh
    exports: int  # nodes of a device that others need, at most
    batching: Batching
    longest: int  # rounds of a stretch at most
    measured: dict[int, float]  # seconds of a node's local steps by the nodes at once that were tried


def plan(work: Simulation, how: How, now: Clock) -> EnginePlan:
    """Decide how to simulate. Raises ConfigError when it does not fit into memory."""
    devices = jax.devices()[: how.devices]
    nodes, slots = work.schedule.neighbor.shape[1:]
    mixing = autotune.mixing(work.algorithm, work.schedule, work.drawn, bool(work.late))
    params = jax.eval_shape(work.first, jax.random.key(0))
    back = int(work.course.timeline.fresh.sum(axis=1).max()) if work.course else 0
    keep = back > 0 or nodes * tree.nbytes(params) <= _KEPT
    needs = autotune.memory(work.algorithm, params, slots, nodes, mixing, work.late, keep)
    autotune.fits(*needs, nodes, autotune.free_bytes(devices), jax.process_count())
    at_once, measured = _at_once(work, how, params, -(-nodes // len(devices)), now)
    at = layout(nodes, len(devices), at_once)
    width = max((len(part) for row in exported(work.schedule, at) for part in row), default=0)
    halo = at.devices > 1 and 2 * width <= at.size
    decided = Shape(
        layout=at,
        slots=slots,
        halo=halo,
        exports=width if halo else 0,
        mixed=_mixed(at, tree.nbytes(params)),
        mixing=mixing,
        ages=work.late,
        keep=keep,
        resting=not work.schedule.trains.any(axis=1).all(),
        restarts=work.course is not None and bool(work.course.enters.any()),
        back=back,
    )
    batching = Batching(work.seed, np.arange(nodes), np.maximum(work.sizes, 1), work.steps, work.batch_size, work.used)
    each = nodes * (work.ahead().shape[1] + batching.width) * work.batch_size * 4 + nodes * slots * 6 * work.drawn
    gaps = [after - before for before, after in itertools.pairwise([0, *stops(work)])]
    longest = max(1, min(_INPUT // max(each, 1), _LONGEST, work.rounds, max(gaps)))
    mesh = Mesh(np.array(devices[: at.devices]), (AXIS,))
    return EnginePlan(work, decided, mesh, width, batching, longest, measured)


def _at_once(work: Simulation, how: How, params: Params, most: int, now: Clock) -> tuple[int, dict[int, float]]:
    """Return how many nodes to compute at once on a device, and the seconds with each number that was tried."""
    at_once, measured = how.chunk or _guess(work, params), dict[int, float]()
    steps = len(work.steps) * work.rounds * int(work.steps.max())
    if how.chunk is None and how.measure and most > 1 and steps >= _WORTH:
        at_once, measured = _measured(work, most, now)
    if jax.process_count() > 1:  # all hosts must run one program, whatever each has measured
        at_once = int(multihost_utils.broadcast_one_to_all(np.int32(at_once)))
    return at_once, measured


def _guess(work: Simulation, params: Params) -> int:
    """Without measuring: images one node at a time, anything else as many nodes as stay in a core's cache."""
    if work.learner.unroll or work.x.ndim > 2:
        return 1
    return max(1, min(8, _CACHE // max(3 * tree.nbytes(params), 1)))


def _measured(work: Simulation, most: int, now: Clock) -> autotune.Measurement:
    first = work.rows[0][:1] if len(work.rows[0]) else np.zeros(1, np.int64)
    rows = np.broadcast_to(first, (work.ahead().shape[1] + int(work.steps.max()), work.batch_size))
    batches = {"x": jnp.asarray(work.x[rows]), "y": jnp.asarray(work.y[rows])}
    slots = work.schedule.neighbor.shape[2]
    return autotune.chunk(work.algorithm, work.first(jax.random.key(0)), slots, batches, most, now)


def _mixed(at: NodeLayout, nbytes: int) -> int:
    """Nodes to mix at once: as many chunks of training as make a few megabytes, since each node costs little."""
    chunks = at.size // at.chunk
    most = max(1, _MIXED // max(nbytes * at.chunk, 1))
    return at.chunk * max(count for count in range(1, chunks + 1) if chunks % count == 0 and count <= most)


def stops(work: Simulation) -> list[int]:
    """Return the rounds after which something has to be done."""
    return [r for r in range(1, work.rounds + 1) if tested_in(work, r)]


def tested_in(work: Simulation, round: int) -> bool:
    """Return whether all models are evaluated after a round."""
    return round % work.evaluate_every == 0 or round == work.rounds
