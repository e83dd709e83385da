"""Inboxes: what the nodes of a device gather from, and the mixing of a chunk.

A payload that holds NaN or infinity is refused, as every node refuses it: the exchange is void at both ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from p2pfl.drivers.simulate.shapes import AXIS, Graph, Rounds, Shape
from p2pfl.types import Algorithm, Array, Inbox, Neighborhood, State, Tree


class Sharing(NamedTuple):
    """The leaves of the payload that are leaves of the state, and need not be written a second time."""

    structure: Any  # of the payload
    at: list[int | None]  # for each of its leaves that of the state; None: it is its own
    own: list[Any]  # shapes of its own leaves

    def payload(self, state: State, own: list[Array]) -> Tree:
        """The payload from the two."""
        leaves, rest = jax.tree.leaves(state), iter(own)
        return jax.tree.unflatten(self.structure, [next(rest) if at is None else leaves[at] for at in self.at])


def sharing(algorithm: Algorithm, shape: Shape, states: State) -> Sharing:
    """Read off the algorithm's `send`."""
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), states)
    around = Neighborhood(*(jax.ShapeDtypeStruct((shape.slots,), jnp.result_type(float)),) * 2)
    traced, out = jax.make_jaxpr(algorithm.send, return_shape=True)(one, around)
    count = len(jax.tree.leaves(out[0]))
    kept = [id(var) for var in traced.jaxpr.outvars[:count]]
    found = [kept.index(id(var)) if id(var) in kept else None for var in traced.jaxpr.outvars[count:]]
    own = [leaf for leaf, at in zip(jax.tree.leaves(out[1]), found, strict=True) if at is None]
    return Sharing(jax.tree.structure(out[1]), found, own)


class EdgeTable(NamedTuple):
    """The payloads that a device's nodes gather from: its own, and behind them those that other devices have shown."""

    mine: Tree
    shown: Tree | None


def _table(shape: Shape, payload: Tree, export: Array, apart: bool) -> EdgeTable:
    """`apart`: what others have shown need not lie behind the device's own."""
    if shape.layout.devices == 1 or (shape.halo and not shape.exports):
        return EdgeTable(payload, None)
    if not shape.halo:
        return EdgeTable(jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, AXIS, tiled=True), payload), None)
    shown = _shown(jax.tree.map(lambda leaf: leaf[export[0]], payload))
    if apart:
        return EdgeTable(payload, shown)
    return EdgeTable(jax.tree.map(lambda mine, more: jnp.concatenate([mine, more]), payload, shown), None)


def _shown(payload: Tree) -> Tree:
    """The rows [E, ...] of all devices, [devices * E, ...]; in one message for all leaves of one dtype."""
    leaves, structure = jax.tree.flatten(payload)
    dtypes = {leaf.dtype for leaf in leaves}
    found: dict[int, Array] = {}
    for dtype in dtypes:
        picked = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        rows = leaves[picked[0]].shape[0]
        whole = jnp.concatenate([leaves[i].reshape(rows, math.prod(leaves[i].shape[1:])) for i in picked], axis=1)
        everyone = jax.lax.all_gather(whole, AXIS, tiled=True)
        start = 0
        for i in picked:
            width = math.prod(leaves[i].shape[1:])
            found[i] = everyone[:, start : start + width].reshape(-1, *leaves[i].shape[1:])
            start += width
    return jax.tree.unflatten(structure, [found[i] for i in range(len(leaves))])


def _gather(shape: Shape, table: EdgeTable, index: Array) -> Tree:
    """[c, ...] the payloads in these rows of the table."""
    if table.shown is None:
        return jax.tree.map(lambda leaf: leaf[index], table.mine)
    size = shape.layout.size
    near, far = jnp.minimum(index, size - 1), jnp.maximum(index - size, 0)
    abroad = index >= size

    def both(mine: Array, shown: Array) -> Array:
        return jnp.where(abroad.reshape(-1, *(1,) * (mine.ndim - 1)), shown[far], mine[near])

    found: Tree = jax.tree.map(both, table.mine, table.shown)
    return found


class Mixing(NamedTuple):
    """A round's mixing, made ready: `read` is cut into chunks, and `chunk` mixes one."""

    read: Tree
    history: Tree
    chunk: Callable[[Any], tuple[State, Tree]]  # (state, own, chunk of read) -> (state, moved mass)


class AfterSteps(NamedTuple):
    """What a device's nodes have after the local steps of a round, [places, ...] each."""

    spare: Tree  # states, and what else their payloads hold
    models: Tree  # () unless kept
    loss: Array
    finite: Array  # bool: no number of the payload is NaN or infinite; [places, K] where it has a part for each slot


def mixing(
    algorithm: Algorithm, shape: Shape, shared: Sharing, history: Tree, done: AfterSteps, now: Rounds, around: Graph
) -> Mixing:
    """Make the mixing of a round ready."""
    payload = shared.payload(*done.spare)
    planned = around.weight > 0
    arrived = planned if now.arrived is None else now.arrived
    age = jnp.zeros(planned.shape, jnp.int32) if now.age is None else now.age
    weight = around.weight
    table = _table(shape, payload, around.export, apart=shape.mixing == "edges" and not shape.ages)
    finite = _table(shape, done.finite, around.export, apart=False).mine
    if shape.ages:
        at = now.number % (shape.ages + 1)
        new = {"sent": payload, "table": table.mine, "sent_finite": done.finite, "table_finite": finite}
        history = jax.tree.map(lambda kept, new: kept.at[at].set(new), history, new)
    arrived &= _accepted(algorithm, shape, history, done.finite, finite, now, around, age)
    if algorithm.whole:
        arrived &= (arrived | ~planned).all(axis=1, keepdims=True)
    if algorithm.weigh is not None:
        weight = jax.vmap(algorithm.weigh)(weight, arrived)
    whole = None
    if shape.mixing in ("dense", "mean"):
        whole = _dense(shape, table.mine, payload, around, arrived, weight, finite)
    mass = algorithm.mass or algorithm.params

    def chunk(item: Any) -> tuple[State, Tree]:
        state, own, (difference, active, place, index, other, arrived, age, weight) = item
        mine = shared.payload(state, own)
        if shape.mixing == "inbox":
            look = _inbox(algorithm, shape, table, history, now.number)
            inbox, nearby = jax.vmap(look)(place, mine, index, other, arrived, age, weight)
        else:
            if difference is None:
                difference = _along_edges(shape, table, mine, index, arrived, weight)
            inbox, nearby = jax.vmap(_ready)(difference, mine)
        new = jax.vmap(algorithm.mix)(state, inbox, nearby)
        if active is not None:
            new = jax.vmap(where)(active, new, state)
        return new, _moved(jax.vmap(mass)(new), jax.vmap(mass)(state))

    place = jnp.arange(shape.layout.size, dtype=jnp.int32)
    return Mixing((whole, now.active, place, around.index, around.other, arrived, age, weight), history, chunk)


def _accepted(
    algorithm: Algorithm, shape: Shape, history: Tree, mine: Array, table: Array, now: Rounds, around: Graph, age: Array
) -> Array:
    """[places, K] whether no side of an exchange, or the push that comes in, holds a number that is not finite.

    `mine` [places] and `table` [rows of the table] bool, or with a last axis K: of this round's payloads.
    """
    place, slot = jnp.arange(age.shape[0], dtype=jnp.int32)[:, None], jnp.arange(age.shape[1], dtype=jnp.int32)[None]
    then: tuple[Array, ...] = ()
    if shape.ages:
        then, mine, table = ((now.number - age) % (shape.ages + 1),), history["sent_finite"], history["table_finite"]
    received = table[(*then, around.index, *((around.other,) if algorithm.per_edge else ()))]
    if algorithm.link != "exchange":
        return received
    return received & mine[(*then, place, *((slot,) if algorithm.per_edge else ()))]


def _moved(after: Tree, before: Tree) -> Tree:
    """The sum over a chunk's nodes of what changed; node by node, since XLA:CPU sums over a leading axis slowly.

    A node whose numbers are not finite has exchanged nothing, and is left out.
    """
    leaves, structure = jax.tree.flatten(after)
    pairs = list(zip(leaves, jax.tree.leaves(before), strict=True))

    def add(i: Any, total: list[Array]) -> list[Array]:
        return [sum + jnp.where(jnp.isfinite(b[i]), a[i] - b[i], 0) for sum, (a, b) in zip(total, pairs, strict=True)]

    zeros = [jnp.zeros(leaf.shape[1:], leaf.dtype) for leaf in leaves]
    return jax.tree.unflatten(structure, jax.lax.fori_loop(0, leaves[0].shape[0] if leaves else 0, add, zeros))


def where(condition: Array, a: Tree, b: Tree) -> Tree:
    """a where the condition holds, b elsewhere, leaf by leaf."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def _inbox(
    algorithm: Algorithm, shape: Shape, table: EdgeTable, history: Tree, number: Array
) -> Callable[..., tuple[Inbox, Neighborhood]]:
    """Of one node: its inbox, the general way."""
    depth = shape.ages + 1

    def look(
        place: Array, mine: Tree, index: Array, other: Array, arrived: Array, age: Array, weight: Array
    ) -> tuple[Inbox, Neighborhood]:
        def theirs(leaf: Array) -> Array:
            found = leaf[(number - age) % depth, index] if shape.ages else leaf[index]
            return found[jnp.arange(shape.slots), other] if algorithm.per_edge else found

        def ours(leaf: Array, kept: Array | None) -> Array:
            if algorithm.per_edge:
                return leaf
            if kept is None:
                return jnp.broadcast_to(leaf[None], (shape.slots, *leaf.shape))
            return kept[(number - age) % depth, place]

        got = jax.tree.map(theirs, history["table"] if shape.ages else table.mine)
        if shape.ages:
            sent = jax.tree.map(ours, mine, history["sent"])
        else:
            sent = jax.tree.map(lambda leaf: ours(leaf, None), mine)
        # as at a node: what did not arrive is a copy of its own side, whatever the neighbour has
        got = jax.tree.map(lambda a, b: jnp.where(arrived.reshape(-1, *(1,) * (a.ndim - 1)), a, b), got, sent)
        return Inbox(sent, got, arrived, age), Neighborhood(weight, jnp.zeros_like(weight))

    return look


def _ready(difference: Tree, mine: Tree) -> tuple[Inbox, Neighborhood]:
    """Of one node: an inbox with a single slot that holds the whole sum."""
    sent = jax.tree.map(lambda leaf: jnp.zeros_like(leaf)[None], mine)
    got = jax.tree.map(lambda leaf: leaf[None], difference)
    dtype = jax.tree.leaves(mine)[0].dtype
    one = jnp.ones(1, dtype)
    return Inbox(sent, got, jnp.ones(1, bool), jnp.zeros(1, jnp.int32)), Neighborhood(one, jnp.zeros_like(one))


def _along_edges(shape: Shape, table: EdgeTable, mine: Tree, index: Array, arrived: Array, weight: Array) -> Tree:
    """[c, ...] sum_k w_k (received_k - sent_k) of a chunk's nodes, up to the last slot that any of them uses."""
    given = jnp.where(arrived, weight, 0)

    def add(k: Any, total: Tree) -> Tree:
        theirs = _gather(shape, table, index[:, k])

        def leaf(total: Array, theirs: Array, mine: Array) -> Array:
            w = given[:, k].astype(mine.dtype).reshape(-1, *(1,) * (mine.ndim - 1))
            here = arrived[:, k].reshape(w.shape)
            return total + w * jnp.where(here, theirs - mine, 0)

        return jax.tree.map(leaf, total, theirs, mine)

    total = jax.tree.map(jnp.zeros_like, mine)
    if shape.slots <= 4:
        for k in range(shape.slots):
            total = add(k, total)
        return total
    used = jnp.where(arrived.any(axis=0), jnp.arange(1, shape.slots + 1, dtype=jnp.int32), 0).max()
    return jax.lax.fori_loop(jnp.int32(0), used, add, total)


def _dense(shape: Shape, table: Tree, mine: Tree, around: Graph, arrived: Array, weight: Array, finite: Array) -> Tree:
    """[m, ...] sum_k w_k (received_k - sent_k) as a matrix product, or as a sum where all weights are equal.

    `finite` [rows of the table]: a payload that is not would spoil every sum, be its weight 0.
    """
    given = jnp.where(arrived, weight, 0)
    total = given.sum(axis=1)
    if shape.mixing == "mean":
        w = given.max(axis=1)

        many = jax.lax.psum((total > 0).sum(), AXIS)

        def mean(mine: Array) -> Array:
            real = (total > 0).reshape(-1, *(1,) * (mine.ndim - 1))
            everyone = jax.lax.psum(jnp.where(real, mine, 0).sum(axis=0), AXIS)
            scale = w.astype(mine.dtype).reshape(real.shape)
            return jnp.where(real, scale * (everyone[None] - many.astype(mine.dtype) * mine), 0)

        return jax.tree.map(mean, mine)
    rows = jax.tree.leaves(table)[0].shape[0]
    places = jnp.arange(given.shape[0], dtype=jnp.int32)[:, None]
    matrix = jnp.zeros((given.shape[0], rows), given.dtype).at[places, around.index].add(given)

    def product(table: Array, mine: Array) -> Array:
        flat = jnp.dot(matrix.astype(mine.dtype), table.reshape(rows, -1), precision="highest")
        own = total.astype(mine.dtype).reshape(-1, *(1,) * (mine.ndim - 1))
        return flat.reshape(mine.shape) - own * mine

    def some() -> Tree:
        def masked(table: Array, mine: Array) -> Array:
            here = finite.reshape(-1, *(1,) * (table.ndim - 1))
            there = (total > 0).reshape(-1, *(1,) * (mine.ndim - 1))
            return jnp.where(there, product(jnp.where(here, table, 0), mine), 0)

        return jax.tree.map(masked, table, mine)

    result: Tree = jax.lax.cond(finite.all(), lambda: jax.tree.map(product, table, mine), some)
    return result
