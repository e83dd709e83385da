"""A bulletin: what every node tells all others of itself that is no model, such as the mean of its features.

A table with a row for each planned node lies in params["private"][NAME] of each node. A node writes its own row in
local steps (`say`), and sends the whole table along with every payload; of each row the newest is kept (`carried`), so
that it comes to everybody over any connected graph, as a rumour does: an anti-entropy of last-writer-wins registers
(Demers et al., "Epidemic algorithms for replicated database maintenance", 1987). Nothing is averaged, so nothing is
lost by a message that is. A method reads the rows of all (`heard`): a row nobody has heard yet has version 0, and
counts for nothing. Where rows are large, a message holds a single one (`in_turn`): of those that a node knows the one
that it has sent least often since it was new, so that news goes first ("rumor mongering", ibid.).

A row is hearsay: a neighbour could make one up for somebody else. Its numbers are finite and within `bound`, and a node
never takes its own row from others. A node beyond those that were planned (a federation that grows) has no row: it
hears, and tells nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from p2pfl.algorithms.mixing import over
from p2pfl.methods.weighting import exchanges
from p2pfl.types import Algorithm, Array, Inbox, Learner, Neighborhood, Params, Payload, State, Tree


class Bulletin(NamedTuple):
    """What nodes tell of themselves."""

    name: str  # of the table among what is private
    row: Callable[[Learner, tuple[int, ...]], Tree]  # (learner, shape of a row of x) -> shapes of what one node tells
    what: str  # in words, for a person who asks what travels
    bound: float = 1e6  # the largest absolute value of a number that is taken from others
    passed_on: bool = True  # False: a node sends its own row alone, so that only its neighbours hear it
    in_turn: bool = False  # True: of what it passes on, a node sends one row in each message, for rows that are large


def placed(learner: Learner, bulletin: Bulletin, nodes: int, x: tuple[int, ...]) -> Learner:
    """The learner whose models hold the table, in which nobody has said anything. `x`: shape of a row of the data."""
    row = bulletin.row(learner, x)

    def init(key: Array) -> Params:
        params = learner.init(key)
        dtype = jax.tree.leaves(params["trained"])[0].dtype
        rows = jax.tree.map(lambda leaf: jnp.zeros((nodes, *leaf.shape), dtype), row)
        table = {"rows": rows, "version": jnp.zeros((nodes,), jnp.int32)}
        table = {**table, "sent": jnp.zeros((nodes,), jnp.int32)} if bulletin.in_turn else table
        return {**params, "private": {**params.get("private", {}), bulletin.name: table}}

    return learner._replace(init=init)


def bytes_sent(params: Params, bulletin: Bulletin) -> int:
    """How many bytes of the table go along with each message. `params`: shapes of a model that holds it."""
    rows = jax.tree.leaves(params["private"][bulletin.name]["rows"])
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in rows)
    one = bulletin.in_turn or not bulletin.passed_on
    return held // rows[0].shape[0] if one else held


def heard(params: Params, name: str) -> tuple[Tree, Array]:
    """The rows of all nodes, leading axis n, and [n] bool: of which node one has been heard, oneself included."""
    table = params["private"][name]
    return table["rows"], table["version"] != 0


def own(params: Params) -> Array:
    """[n] bool: true at the node itself."""
    found: Array = params["private"]["site"]["node"] > 0
    return found


def say(params: Params, name: str, row: Tree, when: Array | bool = True) -> Params:
    """Return params["private"] with the node's own row written anew; as it was where `when` [] does not hold."""
    private, mine = params["private"], own(params) & when
    table = private[name]

    def leaf(rows: Array, new: Array) -> Array:
        return jnp.where(over(mine, rows), new.astype(rows.dtype)[None], rows)

    next_ = table["version"] + mine.astype(jnp.int32)
    version = jnp.where(mine & (next_ == 0), 1, next_)  # 0 is a row that nobody has said
    told = {"rows": jax.tree.map(leaf, table["rows"], row), "version": version}
    return {**private, name: {**told, "sent": jnp.where(mine, 0, table["sent"])} if "sent" in table else told}


def carried(bulletin: Bulletin) -> Callable[[Algorithm], Algorithm]:
    """Make of an algorithm one that carries the table along with its payload. A combinator.

    Raises ConfigError, when applied, for an algorithm that sends one way; one that sends nothing stays as it is.
    """

    def wrap(inner: Algorithm) -> Algorithm:
        if inner.link == "none":
            return inner
        exchanges(bulletin.name, inner)

        def send(state: State, neighborhood: Neighborhood) -> tuple[State, Payload]:
            state, payload = inner.send(state, neighborhood)
            params = inner.params(state)
            private, table = params["private"], params["private"][bulletin.name]
            if bulletin.in_turn:
                table, told = next_of(table)
                state = inner.replaced(state, {**params, "private": {**private, bulletin.name: table}})
                return state, {"inner": payload, "told": told}
            return state, {"inner": payload, "told": table if bulletin.passed_on else alone(table, own(params))}

        def mix(state: State, inbox: Inbox, neighborhood: Neighborhood) -> State:
            within = inbox._replace(sent=inbox.sent["inner"], received=inbox.received["inner"])
            state = inner.mix(state, within, neighborhood)
            params = inner.params(state)
            private, told = params["private"], inbox.received["told"]
            one = bulletin.in_turn or not bulletin.passed_on
            told = told if not one else jax.vmap(partial(placed_at, nodes=len(own(params))))(told)
            table = merged(private[bulletin.name], own(params), told, inbox.arrived, bulletin.bound, bulletin.passed_on)
            return inner.replaced(state, {**params, "private": {**private, bulletin.name: table}})

        travels = f"{inner.travels}, with {bulletin.what}"
        return inner._replace(send=send, mix=mix, linear=False, travels=travels)

    return wrap


def alone(table: Tree, mine: Array) -> Tree:
    """A node's own row of a table, and which it is: {"rows", "version" [], "node" []}; -1 for a node without a row."""
    return _at(table, jnp.argmax(mine).astype(jnp.int32), mine.any())


def next_of(table: Tree) -> tuple[Tree, Tree]:
    """The table once its next row was sent, and that row, as `alone` has it; -1 for a node that has heard nothing."""
    known, sent = table["version"] != 0, table["sent"]
    at = jnp.argmin(jnp.where(known, sent, jnp.iinfo(jnp.int32).max)).astype(jnp.int32)
    once = (jnp.arange(sent.shape[0], dtype=jnp.int32) == at) & known
    return {**table, "sent": sent + once.astype(jnp.int32)}, _at(table, at, known.any())


def _at(table: Tree, at: Array, there: Array) -> Tree:
    row = jax.tree.map(lambda leaf: leaf[at], {"rows": table["rows"], "version": table["version"]})
    return {**row, "node": jnp.where(there, at, -1).astype(jnp.int32)}


def placed_at(told: Tree, nodes: int) -> Tree:
    """A table of `nodes` versions, all 0 but that of a row that was told by itself, which is all in "rows" [1, ...]."""
    here = jnp.arange(nodes, dtype=jnp.int32) == told["node"].astype(jnp.int32)
    rows = jax.tree.map(lambda leaf: leaf[None], told["rows"])
    return {"rows": rows, "version": jnp.where(here, told["version"], 0)}


def merged(table: Tree, mine: Array, theirs: Tree, arrived: Array, bound: float, passed_on: bool = True) -> Tree:
    """The newest of every row. `theirs`: tables of K neighbours, of which those that have `arrived` [K] count.

    Of the node's own row the numbers stay, and its version becomes the newest that is known: so whoever comes back with
    an old table is heard again. Versions are compared as serial numbers (RFC 1982): the one after the largest int32 is
    the smallest, so that nobody can make up a version that the node itself could not follow. `passed_on`: rows of
    others come along; where each tells its own alone, what it tells now counts, so that one that begins afresh is
    heard. `theirs` may hold one row of each neighbour, [K, 1, ...] (`placed_at`).
    """
    rows, version, sent = table["rows"], table["version"], table.get("sent")
    for k in range(arrived.shape[0]):  # slot by slot, so that every driver ends with the same
        told = theirs["version"][k].astype(jnp.int32)
        later = (version == 0) | (told - version > 0) if passed_on else told != version
        newer = arrived[k] & (told != 0) & later

        def leaf(rows: Array, new: Array, k: int = k, newer: Array = newer) -> Array:
            new = jnp.clip(new[k].astype(rows.dtype), -bound, bound)
            return jnp.where(over(newer & ~mine, rows), new, rows)

        rows = jax.tree.map(leaf, rows, theirs["rows"])
        version = jnp.where(newer, told, version)
        sent = None if sent is None else jnp.where(newer, 0, sent)
    return {"rows": rows, "version": version, **({} if sent is None else {"sent": sent})}
