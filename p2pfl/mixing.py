"""How a node's value and its booked exchanges become its new value."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from p2pfl.types import Array, Inbox, Neighborhood, Tree


def exchange_mix(x: Tree, inbox: Inbox, neighborhood: Neighborhood) -> Tree:
    """x + sum_k w_k (received_k - sent_k) over the exchanges booked in this round.

    The other end of an exchange adds the exact opposite, so the sum of x over all nodes stays what it was, whatever is
    lost or late. Slots are added one by one in their fixed order, so that every driver rounds alike.
    """
    weight = jnp.where(inbox.arrived, neighborhood.weight, 0.0).astype(jnp.float32)

    def leaf(x: Array, sent: Array, received: Array) -> Array:
        for k in range(weight.shape[0]):
            x = x + weight[k].astype(x.dtype) * (received[k] - sent[k])
        return x

    return jax.tree.map(leaf, x, inbox.sent, inbox.received)


def first_arrived(inbox: Inbox) -> Tree:
    """The payload received in the first slot that has one."""
    slot = jnp.argmax(inbox.arrived)
    return jax.tree.map(lambda leaf: leaf[slot], inbox.received)
