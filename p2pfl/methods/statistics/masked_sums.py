"""An algorithm whose nodes add up sums that nobody sees, and train when they know the result.

Each node masks its own sums: with every other node it has a secret in common, from which both derive the same random
numbers, that one adds and the other subtracts. A table with a row for each node goes from neighbour to neighbour; in
whole numbers modulo 2^96 the masks cancel in the sum of all rows, to the bit, and nowhere else. First nonces go around,
so that no two runs have masks in common; a row is made once, when all nonces are here, so that there are no two sums
whose difference is one site's. See docs/secure.md. Source: pairwise masks as in Bonawitz et al., "Practical secure
aggregation for privacy-preserving machine learning" (2017), section 4.0, without a server and without recovery: a node
that goes before its row has come around leaves the sums unknown.

Masks hide a row from all who have not all other nodes' help. What a node says about others is not checked: a liar can
make the sums wrong, as it can with sums that are seen.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl.algorithms.mixing import over, part
from p2pfl.check import at_least
from p2pfl.errors import ConfigError
from p2pfl.learning.local_steps import steps_in
from p2pfl.methods.statistics.chacha import WORDS, blocks
from p2pfl.methods.statistics.gossip import gossip, to_each, written
from p2pfl.types import (
    Algorithm,
    Array,
    Batches,
    Inbox,
    Key,
    Metrics,
    Neighborhood,
    Params,
    Payload,
    State,
    Steps,
    Tree,
)

MOST = 256
"""Nodes of which there is such a table at most: each makes a mask with each other."""
LIMBS = 3
"""Words of a number, the lowest first."""
_BELOW = 48
"""Bits after the point; there are 96."""
LARGEST = 2.0**47
"""What a sum of all sites is below."""


class SumsTable(NamedTuple):
    """What a node has heard of all nodes: it travels whole."""

    nonces: Array  # [n, 3] uint32
    met: Array  # [n] int32: 1 where the nonce is here
    rows: Array  # [n, L, LIMBS] uint32: masked sums
    said: Array  # [n] int32: 1 where the row is here
    tags: Array  # [n, 3] uint32: of all nonces, as whoever made the row knew them


class SumsTableState(NamedTuple):
    """The state of the algorithm within, the table, and a count of rounds."""

    inner: Any
    table: SumsTable
    age: Array  # [] int32: rounds since the node began


def masked(inner: Algorithm, founders: np.ndarray, like: Tree, rounds: int) -> Algorithm:
    """The algorithm that adds masked sums up before it trains; the outermost wrap.

    Args:
        inner: of a learner whose models have params["statistics"], and params["private"]["site"] what `facts` gives.
        founders: [n] bool: the nodes whose sums these are; all of them must take part.
        like: the sums of one site, or their shapes.
        rounds: >= 1: rounds after which a node that has all rows uses them; those in which word of all has gone around
            twice, so that all begin to train at once.

    Returns:
        The algorithm; one that never says a word ("local") takes a node's own sums for those of all.

    Raises:
        ConfigError: more than MOST nodes.
    """
    at_least(1, rounds=rounds)
    if len(founders) > MOST:
        raise ConfigError(
            f"secure: {len(founders)} nodes gather statistics, each with a mask for each other; there may be {MOST}. "
            "Leave [secure] out, or [statistics]"
        )
    if inner.link == "none":
        return gossip(inner, rounds)

    def site(state: State) -> Tree:
        return inner.params(state)["private"]["site"]

    def begun(inside: State) -> SumsTableState:
        return SumsTableState(inside, _empty(site(inside), len(founders)), jnp.zeros((), jnp.int32))

    def local(state: SumsTableState, batches: Batches, key: Key, steps: Steps | None) -> tuple[SumsTableState, Metrics]:
        known = inner.params(state.inner)["statistics"]["known"] > 0
        wanted = jnp.int32(steps_in(batches)) if steps is None else steps
        inside, metrics = inner.local(state.inner, batches, key, jnp.where(known, wanted, 0))
        return state._replace(inner=inside), metrics

    def send(state: SumsTableState, neighborhood: Neighborhood) -> tuple[SumsTableState, Payload]:
        inside, payload = inner.send(state.inner, neighborhood)
        told = to_each(inner, state.table._asdict(), neighborhood)
        return state._replace(inner=inside), {"inner": payload, "told": told}

    def mix(state: SumsTableState, inbox: Inbox, neighborhood: Neighborhood) -> SumsTableState:
        inside = inner.mix(state.inner, part(inbox, "inner"), neighborhood)
        table = _heard(state.table, SumsTable(**inbox.received["told"]), inbox.arrived)
        table, age = _spoken(table, site(inside), jnp.asarray(founders)), state.age + 1
        known = inner.params(inside)["statistics"]["known"] > 0
        due = _whole(table, jnp.asarray(founders)) & (age >= rounds) & ~known
        sums = _unpacked(_total(jnp.where(founders[:, None, None], table.rows, jnp.uint32(0))), like)
        after = written(inner, inside, sums)
        inside = jax.tree.map(lambda new, old: jnp.where(due, new, old), after, inside)
        return SumsTableState(inside, table, age)

    def adopt(state: SumsTableState, params: Params) -> SumsTableState:
        return begun(inner.adopt(state.inner, params))

    def restart(state: SumsTableState, slots: int) -> SumsTableState:
        return state._replace(inner=inner.restart(state.inner, slots) if inner.restart else state.inner)

    return inner._replace(
        init=lambda params, slots: begun(inner.init(params, slots)), local=local, send=send, mix=mix, adopt=adopt,
        params=lambda state: inner.params(state.inner), travels=f"{inner.travels}, and masked sums over the data",
        mass=lambda state: (inner.mass or inner.params)(state.inner), restart=restart if inner.restart else None,
        put=lambda state, params: state._replace(inner=inner.replaced(state.inner, params)),
        linear=False, any_steps=False,
    )  # fmt: skip


# --- what a node knows of itself


def facts(sums: Tree, secrets: np.ndarray, nonces: np.ndarray) -> dict[str, Any]:
    """What the nodes know of themselves, by name, leading axis n: for params["private"]["site"].

    Args:
        sums: [n, ...] of each site.
        secrets: [n, planned, 8] uint32: what a node has in common with each planned one.
        nonces: [n, 3] uint32.

    Returns:
        "row", "secrets", "nonce" and "place".

    Raises:
        ConfigError: a sum is too large for fixed point, or none.
    """
    n = len(nonces)
    flat = np.concatenate([np.asarray(leaf, np.float64).reshape(n, -1) for leaf in jax.tree.leaves(sums)], axis=1)
    largest = float(np.abs(flat).max(initial=0))
    if not largest < LARGEST / n:
        raise ConfigError(
            f"secure: a site's sum of [statistics] is {largest:.3g}; as whole numbers of which masks cancel it must be "
            f"below {LARGEST / n:.3g}. Scale the column, or leave [secure] out"
        )
    place = np.arange(n, dtype=np.int32)
    return {"row": in_fixed_point(flat), "secrets": secrets, "nonce": nonces, "place": place}


def in_fixed_point(x: np.ndarray) -> np.ndarray:
    """[..., LIMBS] uint32: numbers float64 [...] in fixed point, cut towards 0; negative ones as two's complement."""
    size, sign = np.abs(x), np.where(x < 0, -1, 1).astype(np.int64)
    high = np.floor(size / 2.0**16)
    rest = (size - high * 2.0**16) * 2.0**16  # exact: nothing but powers of two, and digits that are there
    middle = np.floor(rest)
    low = np.floor((rest - middle) * 2.0**32)
    limbs, carry = [], np.zeros(size.shape, np.int64)
    for each in (low, middle, high):
        limb = sign * each.astype(np.int64) + carry
        limbs.append(limb & 0xFFFFFFFF)
        carry = limb >> 32
    return np.stack(limbs, axis=-1).astype(np.uint32)


def words(raw: bytes) -> np.ndarray:
    """[N] uint32 of bytes."""
    return np.frombuffer(raw, "<u4").astype(np.uint32)


# --- the table


def _empty(site: Tree, nodes: int) -> SumsTable:
    """What a node knows that has heard nothing: its own nonce."""
    own = jnp.arange(nodes, dtype=jnp.int32) == site["place"]
    nonces = jnp.where(own[:, None], site["nonce"][None], jnp.uint32(0))
    rows = jnp.zeros((nodes, *site["row"].shape), jnp.uint32)
    return SumsTable(nonces, own.astype(jnp.int32), rows, jnp.zeros(nodes, jnp.int32), jnp.zeros_like(nonces))


def _heard(table: SumsTable, theirs: SumsTable, arrived: Array) -> SumsTable:
    """The table with what it lacks and a neighbour has. `theirs`: leading axis K."""
    for k in range(arrived.shape[0]):  # slot by slot, so that every driver ends with the same
        news = arrived[k] & (table.met == 0) & (theirs.met[k] > 0)
        nonces = jnp.where(over(news, table.nonces), theirs.nonces[k], table.nonces)
        told = arrived[k] & (table.said == 0) & (theirs.said[k] > 0)
        rows = jnp.where(over(told, table.rows), theirs.rows[k], table.rows)
        tags = jnp.where(over(told, table.tags), theirs.tags[k], table.tags)
        table = SumsTable(nonces, table.met | news.astype(jnp.int32), rows, table.said | told.astype(jnp.int32), tags)
    return table


def _spoken(table: SumsTable, site: Tree, founders: Array) -> SumsTable:
    """The table with the node's own row, once all nonces are here."""
    own = jnp.arange(len(founders), dtype=jnp.int32) == site["place"]
    # one that is not planned has no row
    speaks = ((table.met > 0) | ~founders).all() & (own & founders).any() & ~(own & (table.said > 0)).any()

    def spoken() -> SumsTable:
        row = _added(site["row"], _mask(site, table.nonces, founders))
        rows = jnp.where(over(own, table.rows), row[None], table.rows)
        tags = jnp.where(own[:, None], _tag(table.nonces, founders)[None], table.tags)
        return table._replace(rows=rows, said=table.said | own.astype(jnp.int32), tags=tags)

    found: SumsTable = jax.lax.cond(speaks, spoken, lambda: table)
    return found


def _tag(nonces: Array, founders: Array) -> Array:
    """[3] uint32 of all nonces in their order: rows made with others do not add up."""
    total = jnp.zeros(3, jnp.uint32)
    for i in range(nonces.shape[0]):
        mixed = (total * jnp.uint32(0x9E3779B1)) ^ nonces[i]
        total = jnp.where(founders[i], mixed ^ (mixed >> jnp.uint32(15)), total)
    return total


def _whole(table: SumsTable, founders: Array) -> Array:
    """[] bool: the rows of all are here, and were made with the nonces that this node knows."""
    fits = (table.tags == _tag(table.nonces, founders)[None]).all(axis=1)
    return (((table.said > 0) & fits) | ~founders).all()


def _mask(site: Tree, nonces: Array, founders: Array) -> Array:
    """[L, LIMBS] uint32: what a node adds to its row: of each other node the pair's random numbers, or minus them."""
    me, length = site["place"], site["row"].shape[0]

    def one(j: Array, total: Array) -> Array:
        stream = pad(site["secrets"][j], nonces[jnp.minimum(me, j)], nonces[jnp.maximum(me, j)], length)
        signed = jnp.where(me < j, stream, _negative(stream))
        return jnp.where(founders[j] & (me != j), _added(total, signed), total)

    nothing = jnp.zeros((length, LIMBS), jnp.uint32)
    found: Array = jax.lax.fori_loop(jnp.int32(0), jnp.int32(len(nonces)), one, nothing)
    return found


def pad(secret: Array, low: Array, high: Array, length: int) -> Array:
    """[length, LIMBS] uint32: the random numbers of a pair, by its secret [8] and the nonces [3] of both."""
    key = blocks(secret, low, 0, 1)[0, : secret.shape[0]]
    needed = -(-length * LIMBS // WORDS)
    return blocks(key, high, 0, needed).reshape(-1)[: length * LIMBS].reshape(length, LIMBS)


# --- numbers of 96 bits


def _added(a: Array, b: Array) -> Array:
    """a + b modulo 2^96, of numbers in limbs."""
    carry, limbs = jnp.zeros(a.shape[:-1], jnp.uint32), []
    for i in range(LIMBS):
        half = a[..., i] + b[..., i]
        limb = half + carry
        limbs.append(limb)
        carry = ((half < b[..., i]) | (limb < carry)).astype(jnp.uint32)
    return jnp.stack(limbs, axis=-1)


def _negative(a: Array) -> Array:
    """-a modulo 2^96."""
    one = jnp.zeros_like(a).at[..., 0].set(1)
    return _added(~a, one)


def _total(rows: Array) -> Array:
    """[L, LIMBS]: the sum of rows [n, L, LIMBS]."""
    found: Array = jax.lax.fori_loop(
        jnp.int32(0), jnp.int32(rows.shape[0]), lambda i, total: _added(total, rows[i]), jnp.zeros_like(rows[0])
    )
    return found


def _unpacked(total: Array, like: Tree) -> Tree:
    """The sums, of the shapes and dtypes of `like`, that numbers in limbs [L, LIMBS] stand for."""
    leaves, structure = jax.tree.flatten(like)
    dtype = leaves[0].dtype
    below = (total[..., -1] >> jnp.uint32(31)) > 0
    size = jnp.where(below[..., None], _negative(total), total).astype(dtype)
    value = sum(size[..., i] * jnp.asarray(2.0 ** (32 * i - _BELOW), dtype) for i in range(LIMBS))
    flat, start, found = jnp.where(below, -value, value), 0, []
    for leaf in leaves:
        found.append(flat[start : start + leaf.size].reshape(leaf.shape).astype(leaf.dtype))
        start += leaf.size
    return jax.tree.unflatten(structure, found)
