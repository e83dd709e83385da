"""Choose how to simulate: the cheapest mixing, what fits into memory, and by measurement, how many nodes at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl import tree
from p2pfl.errors import ConfigError
from p2pfl.node.free_memory import free_memory
from p2pfl.node.program import node_key
from p2pfl.types import Algorithm, Neighborhood, Params, Schedule

CANDIDATES = (1, 8)
"""Nodes at once that are tried."""

_LOOP = 0.2
"""What the loop around a chunk of one adds to its local steps, about (two CPU cores, 10,000 parameters)."""
_DENSE_AT = 32
"""A matrix product costs as much as gathering along about n / 32 edges a node (measured on two CPU cores)."""
_DENSE_NODES = 4096
_SPARE = 0.9
"""Share of the free memory that a simulation may plan with."""


def mixing(algorithm: Algorithm, schedule: Schedule, drawn: bool, late: bool) -> str:
    """Choose how to mix: "inbox" (the general way), "edges", "dense" (a matrix product) or "mean" (a sum)."""
    if not algorithm.linear or late or algorithm.per_edge:
        return "inbox"
    nodes, slots = schedule.neighbor.shape[1:]
    weight = schedule.weight
    if slots == nodes - 1 > 1 and not drawn and algorithm.weigh is None and np.ptp(weight) <= 1e-12:
        return "mean"
    used = float((weight > 0).sum()) / max(weight.shape[0] * nodes, 1)
    return "dense" if used * _DENSE_AT >= nodes > 4 and nodes <= _DENSE_NODES else "edges"


class Measurement(NamedTuple):
    """The chunk that was chosen, and the seconds a node's local steps took with each that was tried."""

    chunk: int
    seconds: dict[int, float]


def chunk(
    algorithm: Algorithm, params: Params, slots: int, batches: Any, most: int, now: Callable[[], float]
) -> Measurement:
    """Try the local steps of 1 and of 8 nodes at once on one device. `params`, `batches` [S, B, ...]: of one node."""
    state = algorithm.init(params, slots)
    seconds = {count: _seconds(algorithm, state, slots, count, batches, now) for count in CANDIDATES if count <= most}
    # around a chunk of few nodes there is more of a loop than is tried here: it must win clearly
    best = min(seconds, key=lambda count: seconds[count] * (1 + _LOOP / count))
    return Measurement(best, seconds)


def _seconds(algorithm: Algorithm, state: Any, slots: int, count: int, batches: Any, now: Callable[[], float]) -> float:
    """Of one node's local steps, with `count` nodes at once, chunk after chunk as the simulation does it."""
    around = Neighborhood(jnp.zeros(slots), jnp.zeros(slots))
    chunks = 2 * max(CANDIDATES) // count

    def one(state: Any, index: Any, batches: Any) -> Any:
        return algorithm.send(algorithm.local(state, batches, node_key(0, index, index), None)[0], around)[0]

    def many(states: Any, ids: Any, batches: Any) -> Any:
        return jax.lax.map(lambda chunk: jax.vmap(one)(chunk[0], chunk[1], batches), (states, ids))

    run = jax.jit(many)
    states = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (chunks, count, *leaf.shape)), state)
    own = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), batches)
    ids = jnp.zeros((chunks, count), jnp.int32)
    states = jax.block_until_ready(run(states, ids, own))
    times: list[float] = []
    while len(times) < 3 or (sum(times) < 0.1 and len(times) < 100):
        began = now()
        states = jax.block_until_ready(run(states, ids, own))
        times.append(now() - began)
    return min(times) / (chunks * count)  # whatever else the machine does only adds


def memory(
    algorithm: Algorithm, params: Params, slots: int, nodes: int, mixing: str, ages: int, keep: bool
) -> tuple[int, int]:
    """(bytes for each node, bytes besides) that a simulation holds at its peak. `params`: a model, or its shapes."""
    state = jax.eval_shape(lambda p: algorithm.init(p, slots), params)
    around = Neighborhood(np.zeros(slots, np.float32), np.zeros(slots, np.float32))
    payload = tree.nbytes(jax.eval_shape(lambda s: algorithm.send(s, around)[1], state))
    each = 2 * tree.nbytes(state) + 2 * payload + (tree.nbytes(params) if keep else 0) + 2 * ages * payload
    if mixing == "dense":  # and a copy without what is not finite
        each += 2 * payload
    dense = 4 * nodes * nodes if mixing == "dense" else 0
    return each, dense


def fits(each: int, besides: int, nodes: int, free: int | None, hosts: int = 1) -> None:
    """Raises ConfigError when a simulation would not fit into `free` bytes of each of `hosts`, saying what would."""
    if free is None:
        return
    each = -(-each // hosts)
    wanted, given = each * nodes + besides, int(free * _SPARE)
    if wanted > given:
        fitting = max(int((given - besides) / max(each, 1)), 0)
        raise ConfigError(
            f"topology.nodes={nodes}: simulating them needs about {wanted / 2**30:.1f} GB, and {free / 2**30:.1f} GB "
            f"are free; about {fitting} nodes of this model and algorithm fit. Use fewer nodes, a smaller model, or "
            "devices on several hosts"
        )


def free_bytes(devices: Sequence[Any]) -> int | None:
    """Free bytes of this host's devices together; None where nobody tells."""
    devices = [device for device in devices if device.process_index == jax.process_index()]
    if devices[0].platform == "cpu":
        return free_memory()
    stats = [device.memory_stats() for device in devices]
    if any(each is None or "bytes_limit" not in each for each in stats):
        return None
    return sum(each["bytes_limit"] - each.get("bytes_in_use", 0) for each in stats)
