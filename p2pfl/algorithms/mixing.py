"""Mix a node's value with its booked exchanges."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from p2pfl.types import Array, Inbox, Neighborhood, Tree

UNROLLED = 32
"""Slots up to which mixing is written out slot by slot."""


def exchange_mix(x: Tree, inbox: Inbox, neighborhood: Neighborhood, scale: float = 1.0) -> Tree:
    """x + scale * sum_k w_k (received_k - sent_k) over the exchanges booked in this round.

    `inbox.sent` and `inbox.received`: trees of the structure of x, leading axis K. The other end of an exchange adds
    the exact opposite, so the sum of x over all nodes stays what it was, whatever is lost or late. Slots are added one
    by one in their fixed order (up to UNROLLED of them). What did not arrive is not looked at.
    """
    weight = jnp.where(inbox.arrived, neighborhood.weight, 0)
    if scale != 1.0:
        weight = weight * jnp.asarray(scale, weight.dtype)

    def leaf(x: Array, sent: Array, received: Array) -> Array:
        # a hub of hundreds of slots would be hundreds of operations
        if weight.shape[0] > UNROLLED:
            difference = received.astype(x.dtype) - sent.astype(x.dtype)
            difference = jnp.where(over(inbox.arrived, difference), difference, 0)
            return x + jnp.tensordot(weight.astype(x.dtype), difference, 1)
        for k in range(weight.shape[0]):
            difference = received[k].astype(x.dtype) - sent[k].astype(x.dtype)
            x = x + weight[k].astype(x.dtype) * jnp.where(inbox.arrived[k], difference, 0)
        return x

    return jax.tree.map(leaf, x, inbox.sent, inbox.received)


def renormalized(weight: Array, arrived: Array) -> Array:
    """[K] weights in which what arrived, and the node's own value, share the weight of what did not."""
    here = jnp.where(arrived, weight, 0)
    total = 1 - weight.sum() + here.sum()
    return jnp.where(total > 1e-12, here / jnp.where(total > 1e-12, total, 1), 0)


def counted(weight: Array, arrived: Array) -> Array:
    """[K] weights of the plain mean over the node's own value and all that arrived."""
    here = (arrived & (weight > 0)).astype(weight.dtype)
    return here / (1 + here.sum())


def part(inbox: Inbox, name: str) -> Inbox:
    """The inbox of one part of a payload that is a dict."""
    return inbox._replace(sent=inbox.sent[name], received=inbox.received[name])


def over(slots: Array, leaf: Array) -> Array:
    """Reshape a value per slot [K] so that it broadcasts over a leaf [K, ...]."""
    return slots.reshape(-1, *(1,) * (leaf.ndim - 1))


def left_out(a: Array, b: Array, total: Array) -> Array:
    """Return the exact rounding error of total = a + b. Source: Knuth, TAOCP 2, 4.2.2, theorem B (two-sum)."""
    kept = total - a
    return (a - (total - kept)) + (b - kept)


def grown(sums: dict[str, Tree], before: dict[str, Tree]) -> Tree:
    """By how much running sums, kept as pairs {"high": value, "low": rounding error}, have grown."""
    high, low = (jax.tree.map(jnp.subtract, sums[half], before[half]) for half in ("high", "low"))
    return jax.tree.map(jnp.add, high, low)


# --- running sums


def unspent(mine: Tree, slots: int) -> dict[str, Tree]:
    """Running sums, to or from `slots` neighbours, of which nothing has been said yet."""
    zeros = jax.tree.map(lambda leaf: jnp.zeros((slots, *leaf.shape), leaf.dtype), mine)
    return {"high": zeros, "low": zeros}


def pushed(mine: Tree, sums: dict[str, Tree], share: Array) -> tuple[Tree, dict[str, Tree]]:
    """Divide a node's mass `mine` into (what it keeps, the running sums it sends).

    `share` [K]: the part of its mass that goes to each slot. `sums`: all it has ever shared, leading axis K, as pairs
    (see `grown`).
    """
    given = jax.tree.map(lambda x, e: over(share, e).astype(x.dtype) * x[None] + e, mine, sums["low"])
    high = jax.tree.map(jnp.add, sums["high"], given)
    low = jax.tree.map(left_out, sums["high"], given, high)
    kept = jax.tree.map(lambda leaf: leaf * (1 - share.sum()).astype(leaf.dtype), mine)
    return kept, {"high": high, "low": low}


def pulled(mine: Tree, seen: dict[str, Tree], inbox: Inbox) -> tuple[Tree, dict[str, Tree]]:
    """Take in the neighbours' running sums; return (the node's mass, the sums it has seen last)."""
    here, new = inbox.arrived, inbox.received
    last = jax.tree.map(lambda old, new: jnp.where(over(here, old), new.astype(old.dtype), old), seen, new)
    gained = grown(last, seen)
    return jax.tree.map(lambda leaf, gain: sum(gain, start=leaf), mine, gained), last  # one by one, in order


def under_way(mine: Tree, sums: dict[str, Tree], seen: dict[str, Tree]) -> Tree:
    """A node's mass, with what it has shared out and less what it has got: over all nodes, with what is under way."""
    return jax.tree.map(lambda x, away: x + away.sum(axis=0), mine, grown(sums, seen))
