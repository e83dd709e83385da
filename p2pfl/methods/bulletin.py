"""A bulletin: what every node tells all others of itself that is no model, such as the mean of its features.

A table with a row for each planned node lies in params["private"][NAME] of each node. A node writes its own row in
local steps (`say`), and sends the whole table along with every payload; of each row the newest is kept (`carried`), so
that it comes to everybody over any connected graph, as a rumour does: an anti-entropy of last-writer-wins registers
(Demers et al., "Epidemic algorithms for replicated database maintenance", 1987). Nothing is averaged, so nothing is
lost by a message that is. A method reads the rows of all (`heard`): a row nobody has heard yet has version 0, and
counts for nothing.

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


def placed(learner: Learner, bulletin: Bulletin, nodes: int, x: tuple[int, ...]) -> Learner:
    """The learner whose models hold the table, in which nobody has said anything. `x`: shape of a row of the data."""
    row = bulletin.row(learner, x)

    def init(key: Array) -> Params:
        params = learner.init(key)
        dtype = jax.tree.leaves(params["trained"])[0].dtype
        rows = jax.tree.map(lambda leaf: jnp.zeros((nodes, *leaf.shape), dtype), row)
        table = {"rows": rows, "version": jnp.zeros((nodes,), jnp.int32)}
        return {**params, "private": {**params.get("private", {}), bulletin.name: table}}

    return learner._replace(init=init)


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
    return {**private, name: {"rows": jax.tree.map(leaf, table["rows"], row), "version": version}}


def carried(bulletin: Bulletin) -> Callable[[Algorithm], Algorithm]:
    """Make of an algorithm one that carries the table along with its payload. A combinator.

    Raises ConfigError, when applied, for an algorithm that sends one way; one that sends nothing stays as it is.
    """

    def wrap(inner: Algorithm) -> Algorithm:
        if inner.link == "none":
            return inner
        exchanges(bulletin.name, inner)

        def send(state: State, neighborhood: Neighborhood) -> tuple[State, Payload]:
            table = inner.params(state)["private"][bulletin.name]
            mine = own(inner.params(state))
            state, payload = inner.send(state, neighborhood)
            return state, {"inner": payload, "told": table if bulletin.passed_on else alone(table, mine)}

        def mix(state: State, inbox: Inbox, neighborhood: Neighborhood) -> State:
            within = inbox._replace(sent=inbox.sent["inner"], received=inbox.received["inner"])
            state = inner.mix(state, within, neighborhood)
            params = inner.params(state)
            private, told = params["private"], inbox.received["told"]
            told = told if bulletin.passed_on else jax.vmap(partial(placed_at, nodes=len(own(params))))(told)
            table = merged(private[bulletin.name], own(params), told, inbox.arrived, bulletin.bound, bulletin.passed_on)
            return inner.replaced(state, {**params, "private": {**private, bulletin.name: table}})

        travels = f"{inner.travels}, with {bulletin.what}"
        return inner._replace(send=send, mix=mix, linear=False, travels=travels)

    return wrap


def alone(table: Tree, mine: Array) -> Tree:
    """A node's own row of a table, and which it is: {"rows", "version" [], "node" []}; -1 for a node without a row."""
    at = jnp.argmax(mine).astype(jnp.int32)
    row = jax.tree.map(lambda leaf: leaf[at], {"rows": table["rows"], "version": table["version"]})
    return {**row, "node": jnp.where(mine.any(), at, -1).astype(jnp.int32)}


def placed_at(told: Tree, nodes: int) -> Tree:
    """A table of `nodes` rows in which the one that `alone` made is all that is said."""
    here = jnp.arange(nodes, dtype=jnp.int32) == told["node"].astype(jnp.int32)
    rows = jax.tree.map(lambda leaf: jnp.where(over(here, leaf[None]), leaf[None], jnp.zeros_like(leaf[None])),
                        told["rows"])  # fmt: skip
    return {"rows": rows, "version": jnp.where(here, told["version"], 0)}


def merged(table: Tree, mine: Array, theirs: Tree, arrived: Array, bound: float, passed_on: bool = True) -> Tree:
    """The newest of every row. `theirs`: tables of K neighbours, of which those that have `arrived` [K] count.

    Of the node's own row the numbers stay, and its version becomes the newest that is known: so whoever comes back with
    an old table is heard again. Versions are compared as serial numbers (RFC 1982): the one after the largest int32 is
    the smallest, so that nobody can make up a version that the node itself could not follow. `passed_on`: rows of
    others come along; where each tells its own alone, what it tells now counts, so that one that begins afresh is
    heard.
    """
    rows, version = table["rows"], table["version"]
    for k in range(arrived.shape[0]):  # slot by slot, so that every driver ends with the same
        told = theirs["version"][k].astype(jnp.int32)
        later = (version == 0) | (told - version > 0) if passed_on else told != version
        newer = arrived[k] & (told != 0) & later

        def leaf(rows: Array, new: Array, k: int = k, newer: Array = newer) -> Array:
            new = jnp.clip(new[k].astype(rows.dtype), -bound, bound)
            return jnp.where(over(newer & ~mine, rows), new, rows)

        rows = jax.tree.map(leaf, rows, theirs["rows"])
        version = jnp.where(newer, told, version)
    return {"rows": rows, "version": version}
