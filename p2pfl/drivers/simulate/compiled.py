"""Compiled programs for whole stretches of rounds of all nodes.

Nodes lie along an axis that is spread over the devices. On each device they are computed in chunks that stay in cache:
the local steps of a chunk under vmap, chunk after chunk, from one buffer of states to another; then what other devices
need is gathered, and nodes mix, back into the first buffer. An algorithm whose mixing is linear gets
sum_k w_k (received_k - sent_k) ready made, from a loop along its edges or a matrix product; any other gets its inbox
(`gossip`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from p2pfl import tree
from p2pfl.drivers.simulate import epochs, inboxes
from p2pfl.drivers.simulate.inboxes import AfterSteps, Sharing, where
from p2pfl.drivers.simulate.shapes import AXIS, OVER, ROWS, WHOLE, Carry, Graph, Rounds, Shape, Stretch, table_rows
from p2pfl.learning.batching import VOLUME, chunk
from p2pfl.learning.local_steps import placed
from p2pfl.node.program import node_key
from p2pfl.types import Algorithm, Array, Learner, Metrics, Neighborhood, Params, State, Tree


def compile_stretch(over: Callable[[Array, Array], Algorithm], shape: Shape, mesh: Mesh) -> Callable[..., Any]:
    """Compile `(carry, stretch) -> (carry, loss [R, places], finite [R, places, ...])`, the last as in AfterSteps.

    `over` is that of a Simulation.
    """
    body = partial(_stretch, over, shape)
    carry = Carry(OVER, OVER, PartitionSpec(None, AXIS), OVER, OVER)
    graph = Graph(ROWS, ROWS, ROWS, ROWS, ROWS)
    rounds = Rounds(WHOLE, WHOLE, WHOLE, ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, WHOLE, WHOLE)
    mapped = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(carry, Stretch(WHOLE, graph, rounds, OVER, OVER, WHOLE, WHOLE)),
        out_specs=(carry, ROWS, ROWS),
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=0)


def _stretch(
    over: Callable[[Array, Array], Algorithm], shape: Shape, carry: Carry, given: Stretch
) -> tuple[Carry, Array, Array]:
    algorithm, rounds = over(given.x[0], given.y[0]), given.rounds  # the leading axis is the device
    shared = inboxes.sharing(algorithm, shape, carry.state)
    most, slots = rounds.number.shape[0], (shape.slots,) if algorithm.per_edge else ()
    losses, finite = (
        jnp.zeros((most, shape.layout.size), jnp.float32),
        jnp.ones((most, shape.layout.size, *slots), bool),
    )

    def one(r: Array, item: tuple[Carry, Array, Array]) -> tuple[Carry, Array, Array]:
        carry, losses, finite = item
        now = jax.tree.map(lambda part: part[r], rounds)
        around = jax.tree.map(lambda part: part[now.row], given.graph)
        if shape.restarts or shape.back:
            carry = carry._replace(state=epochs.begun(algorithm, shape, carry, now, given.first))
        done = _train(algorithm, shape, shared, given.seed, carry, now, around)
        state, history, drift = _mix(algorithm, shape, shared, carry, done, now, around)
        carry = Carry(state, done.spare, history, drift, done.models)
        return carry, losses.at[r].set(done.loss.astype(jnp.float32)), finite.at[r].set(done.finite)

    return jax.lax.fori_loop(jnp.int32(0), given.count, one, (carry, losses, finite))


def _mix(
    algorithm: Algorithm, shape: Shape, shared: Sharing, carry: Carry, done: AfterSteps, now: Rounds, around: Graph
) -> tuple[State, Tree, Tree]:
    """Mixing of all nodes of a device, from `done.spare` to the states: (state, history, drift)."""
    ready = inboxes.mixing(algorithm, shape, shared, carry.history, done, now, around)

    def chunk(read: Any) -> Any:
        (state, own), more = read
        return ready.chunk((state, own, more))

    drift = jax.tree.map(lambda leaf: leaf[0], carry.drift)
    state, drift = _by_chunk(shape.layout.size, shape.mixed, chunk, carry.state, (done.spare, ready.read), drift)
    return state, ready.history, jax.tree.map(lambda leaf: leaf[None], drift)


def _by_chunk(
    size: int, chunk: int, body: Callable[[Tree], tuple[Tree, Tree]], out: Tree, read: Tree, total: Tree
) -> Any:
    """Chunk after chunk: `body(chunk of read) -> (chunk of out, what is added to total)`; all of `out` is written.

    `out` is a buffer that is written in place and `read` is another: a map would clear its output first, and XLA copies
    a buffer that is read and written in one loop for every chunk.
    """

    def one(index: Array, carry: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
        out, total = carry
        start = index * chunk
        part = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, chunk), read)
        new, more = body(part)
        out = jax.tree.map(lambda leaf, part: jax.lax.dynamic_update_slice_in_dim(leaf, part, start, 0), out, new)
        return out, jax.tree.map(jnp.add, total, more)

    if size == chunk:
        new, more = body(read)
        return new, jax.tree.map(jnp.add, total, more)
    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(size // chunk), one, (out, total))


def each(chunk: int, node: Callable[..., Any]) -> Callable[..., Any]:
    """Of a function of a node, that of a chunk of nodes. One by itself is computed as it is, not under vmap.

    Under vmap all branches of a switch are computed: nodes of unequal width would each cost as much as all widths.
    """
    if chunk > 1:
        return jax.vmap(node)

    def alone(*given: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[None], node(*jax.tree.map(lambda leaf: leaf[0], given)))

    return alone


def _train(
    algorithm: Algorithm, shape: Shape, shared: Sharing, seed: Array, carry: Carry, now: Rounds, around: Graph
) -> AfterSteps:
    """Local steps of all nodes of a device, from the states to `spare`."""
    size = shape.layout.size
    ids = jax.lax.axis_index(AXIS).astype(jnp.int32) * size + jnp.arange(size, dtype=jnp.int32)
    loss_type = jax.tree.leaves(carry.state)[0].dtype

    def node(state: State, item: Any) -> tuple[State, Tree, Tree, Array, Array]:
        index, rows, steps, active, out_weight, present = item
        # as at a node: exchanges are opened with all that the schedule names
        every = present is None or algorithm.link == "exchange"
        share = out_weight if every else jnp.where(present, out_weight, 0)
        new, metrics = algorithm.local(state, rows, node_key(seed, index, now.number), steps)
        # where nobody sees a single model, who joins gets one that is mixed
        models = algorithm.params(state if algorithm.whole else new) if shape.keep else ()
        new, payload = algorithm.send(new, Neighborhood(jnp.zeros_like(share), share))
        if active is not None:
            new = where(active, new, state)
        apart = [leaf for leaf, at in zip(jax.tree.leaves(payload), shared.at, strict=True) if at is None]
        finite = tree.finite_parts(payload, 1 if algorithm.per_edge else 0)
        return new, apart, models, metrics["loss"].astype(loss_type), finite

    def all_chunks(rows: Array, steps: Array | None) -> AfterSteps:
        def chunk(read: Any) -> Any:
            state, apart, models, loss, finite = each(shape.layout.chunk, node)(*read)
            return AfterSteps((state, apart), models, loss, finite), ()

        slots = (shape.slots,) if algorithm.per_edge else ()
        written = AfterSteps(carry.spare, carry.models, jnp.zeros(size, loss_type), jnp.ones((size, *slots), bool))
        read = (carry.state, (ids, rows, steps, now.active, around.out_weight, now.present))
        done: AfterSteps = _by_chunk(size, shape.layout.chunk, chunk, written, read, ())[0]
        return done

    if not shape.resting:
        return all_chunks(now.rows, now.steps)
    return jax.lax.cond(now.trains, lambda: all_chunks(now.rows, now.steps), lambda: all_chunks(now.rows[:, :0], None))


def compile_init(algorithm: Algorithm, learner: Learner, shape: Shape, mesh: Mesh) -> Callable[[Array, Tree], Carry]:
    """`(seed, sites) -> the first carry`: every node with the same model; sites [places, ...]: what each knows."""
    layout = shape.layout

    def init(seed: Array, sites: Tree) -> Carry:
        params = learner.init(jax.random.key(seed))

        def one(_: Array, site: Tree) -> State:
            return algorithm.init(placed(params, site), shape.slots)

        state = jax.vmap(one)(jnp.arange(layout.places), sites)
        mass = jax.eval_shape(algorithm.mass or algorithm.params, jax.tree.map(lambda leaf: leaf[0], state))
        drift = jax.tree.map(lambda leaf: jnp.zeros((layout.devices, *leaf.shape), leaf.dtype), mass)
        # as they are drawn: an algorithm may begin with a part of that
        models = jax.vmap(lambda _, site: placed(params, site))(jnp.arange(layout.places), sites) if shape.keep else ()
        history: Tree = ()
        if shape.ages:
            around = Neighborhood(jnp.zeros(shape.slots), jnp.zeros(shape.slots))
            payload = jax.eval_shape(jax.vmap(lambda s: algorithm.send(s, around)[1]), state)
            slots = (shape.slots,) if algorithm.per_edge else ()
            history = {}
            for name, n in (("sent", layout.places), ("table", table_rows(shape) * layout.devices)):
                history[name] = jax.tree.map(
                    lambda leaf, n=n: jnp.zeros((shape.ages + 1, n, *leaf.shape[1:]), leaf.dtype), payload
                )
                history[f"{name}_finite"] = jnp.ones((shape.ages + 1, n, *slots), bool)
        shared = inboxes.sharing(algorithm, shape, state)
        own = [jnp.zeros((layout.places, *leaf.shape), leaf.dtype) for leaf in shared.own]
        spare = (jax.tree.map(jnp.copy, state), own)
        return Carry(state, spare, history, drift, models)

    over = NamedSharding(mesh, OVER)
    shardings = Carry(over, over, NamedSharding(mesh, PartitionSpec(None, AXIS)), over, over)
    return jax.jit(init, out_shardings=shardings)


def first_model(mesh: Mesh, models: Params) -> Params:
    """Of models [places, ...] that are all alike yet, one, on all devices."""
    one = jax.jit(lambda models: jax.tree.map(lambda leaf: leaf[0], models), out_shardings=NamedSharding(mesh, WHOLE))
    return one(models)


def compile_evaluate(
    model: Callable[[Any], Params], learner: Learner, shape: Shape, mesh: Mesh
) -> Callable[..., tuple[Array, Array, Array]]:
    """`(states, x, y, mask, owner) -> (mean score, mean score of own rows, mean loss)`, [places] each.

    x [N, ...], y [N], mask [N], owner [N]: the node that a row is the own of. Models are tested chunk by chunk.
    """

    def tested(params: Params, x: Array, y: Array, mask: Array) -> Metrics:
        """Of all rows at once, but for volumes."""
        if x.ndim <= VOLUME:
            return learner.evaluate(params, {"x": x, "y": y}, mask)

        def one(row: tuple[Array, Array, Array]) -> Metrics:
            x, y, mask = (part[None] for part in row)
            return jax.tree.map(lambda each: each[0], learner.evaluate(params, {"x": x, "y": y}, mask))

        found: Metrics = jax.lax.map(one, (x, y, mask), batch_size=chunk(x.shape[1:]))
        return found

    def evaluate(states: Any, x: Array, y: Array, mask: Array, owner: Array) -> tuple[Array, Array, Array]:
        size = shape.layout.size
        ids = jax.lax.axis_index(AXIS).astype(jnp.int32) * size + jnp.arange(size, dtype=jnp.int32)

        def node(state: Any, index: Array) -> tuple[Array, Array, Array]:
            sums = tested(model(state), x, y, mask)
            own = (owner == index).astype(jnp.float32)
            score = sums["score"].astype(jnp.float32)
            rows, mine = jnp.maximum(mask.sum(), 1), own.sum()
            share = jnp.where(mine > 0, (score * own).sum() / jnp.maximum(mine, 1), jnp.nan)
            return score.sum() / rows, share, sums["loss"].astype(jnp.float32).sum() / rows

        none = tuple(jnp.zeros(size, jnp.float32) for _ in range(3))
        found: tuple[Array, Array, Array]
        found, _ = _by_chunk(
            size, shape.layout.chunk, lambda read: (each(shape.layout.chunk, node)(*read), ()), none, (states, ids), ()
        )
        return found

    mapped = jax.shard_map(
        evaluate, mesh=mesh, in_specs=(OVER, WHOLE, WHOLE, WHOLE, WHOLE), out_specs=(OVER, OVER, OVER), check_vma=False
    )
    return jax.jit(mapped)


def fetch(array: Any, axis: int = 0) -> np.ndarray:
    """The whole array on this host, parts of other hosts included."""
    if jax.process_count() == 1 or array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def put(mesh: Mesh, spec: PartitionSpec, array: np.ndarray | None) -> Any:
    """An array on all devices of the mesh, those of other hosts included; 64 bits only where jax has them on."""
    if array is None:
        return None
    array = np.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])
