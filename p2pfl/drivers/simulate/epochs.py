"""The beginning of a round in which the membership has changed: who is new, and who enters another epoch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from p2pfl import tree
from p2pfl.drivers.simulate.inboxes import where
from p2pfl.drivers.simulate.shapes import AXIS, Carry, Rounds, Shape
from p2pfl.learning.local_steps import placed
from p2pfl.types import Algorithm, Array, Params, State, Tree


def begun(algorithm: Algorithm, shape: Shape, carry: Carry, now: Rounds, first: Params | None) -> State:
    """The states of a device's nodes, before their local steps. `first`: the model that all begin with."""
    state = carry.state
    if shape.back:
        back, donor = jnp.asarray(now.back), jnp.asarray(now.donor)
        state = jax.lax.cond(
            (back >= 0).any(),
            lambda state: _new(algorithm, shape, state, carry.models, first, back, donor),
            lambda state: state,
            state,
        )
    restart = algorithm.restart
    if shape.restarts and restart is not None:
        enters = jnp.asarray(now.enters)

        def afresh(state: State) -> State:
            return jax.vmap(where)(enters, jax.vmap(lambda one: restart(one, shape.slots))(state), state)

        state = jax.lax.cond(enters.any(), afresh, lambda state: state, state)
    return state


def _new(
    algorithm: Algorithm, shape: Shape, state: State, models: Tree, model: Params, back: Array, donor: Array
) -> State:
    """Nodes in the places `back` begin afresh, with the models that those in `donor` had in the round before.

    A model that holds NaN or infinity is refused.
    """
    size = shape.layout.size
    start = jax.lax.axis_index(AXIS).astype(jnp.int32) * size

    def given(leaf: Array) -> Array:  # a donor lies on one device, and all see its model
        here = (donor >= start) & (donor < start + size)
        rows = leaf[jnp.clip(donor - start, 0, size - 1)]
        return jax.lax.psum(jnp.where(here.reshape(-1, *(1,) * (rows.ndim - 1)), rows, 0), AXIS)

    def begin(before: State) -> State:
        site = algorithm.params(before).get("private", {}).get("site", {})  # its data are still there
        return algorithm.init(placed(model, site), shape.slots)

    rows = jnp.clip(back - start, 0, size - 1)
    first = jax.vmap(begin)(jax.tree.map(lambda leaf: leaf[rows], state))
    taken = jax.tree.map(given, models)
    adopted = jax.vmap(algorithm.adopt)(first, taken)
    new = jax.vmap(where)((donor >= 0) & tree.finite_parts(taken, 1), adopted, first)
    mine = (back >= start) & (back < start + size)
    place = jnp.where(mine, back - start, size)  # beyond the last place: dropped
    written: State = jax.tree.map(lambda leaf, rows: leaf.at[place].set(rows, mode="drop"), state, new)
    return written
