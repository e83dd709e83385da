"""Stochastic gradient push with running sums: directed, time-varying and lossy graphs, without receipts.

    z_i  = x_i / w_i                                     [the model; local steps move it, x moves along]
    x_i+ = sum_j a_ij x_j,     w_i+ = sum_j a_ij w_j     [A column-stochastic: a node shares out all it has]

Source: Assran, Loizou, Ballas, Rabbat, "Stochastic gradient push for distributed deep learning" (2019), algorithm 1.
What travels is not the share but the sum of all shares ever sent over that link; the receiver takes the difference to
the sum it has seen last, so that the next message makes up for any that were lost and no mass ever vanishes
(Hadjicostis, Vaidya, Dominguez-Garcia, "Robust distributed average consensus via exchange of running sums", 2016). A
sum grows with time; it is kept and sent as a pair of floats (value and rounding error), so that differences stay exact.

What travels: per neighbour, two models. Asks of W: column-stochastic. Keeps the mean of x and w, with what is under
way, by running sums. A joiner enters with a copied model; with every epoch w = 1 again, and sums start afresh. A node
that hears nothing for long keeps a small w, and a step moves its model by eta g / w: much loss wants a smaller rate.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from p2pfl.learner import descend
from p2pfl.mixing import grown, left_out, over
from p2pfl.types import Algorithm, Batches, Demands, Inbox, Key, Learner, Metrics, Neighborhood, Params, Steps, Tree


class State(NamedTuple):
    """x and w (together `mine`), the optimizer's state, and per slot the running sums sent and last received."""

    mine: Tree
    opt_state: Tree
    sent: Tree  # {"high", "low"}: the pair, each of the structure of `mine` with leading axis K
    seen: Tree


def push_sum(learner: Learner, optimizer: optax.GradientTransformation) -> Algorithm:
    """Stochastic gradient push: the mean of directed and time-varying graphs, exact under loss."""

    def init(params: Params, slots: int) -> State:
        mine = {"x": params, "w": jnp.ones((), jax.tree.leaves(params)[0].dtype)}
        zeros = jax.tree.map(lambda leaf: jnp.zeros((slots, *leaf.shape), leaf.dtype), mine)
        sums = {"high": zeros, "low": zeros}
        return State(mine, optimizer.init(params["trained"]), sums, sums)

    def params(state: State) -> Params:
        return jax.tree.map(lambda x: x / state.mine["w"].astype(x.dtype), state.mine["x"])

    def local(state: State, batches: Batches, key: Key, steps: Steps | None) -> tuple[State, Metrics]:
        z = params(state)
        done = descend(learner, optimizer, z, state.opt_state, batches, key, steps)
        # with the weight w the node's model counts w times in the mean: its step moves x as it moves z
        x = jax.tree.map(lambda x, before, after: x + (after - before), state.mine["x"], z, done.params)
        return state._replace(mine={**state.mine, "x": x}, opt_state=done.opt_state), done.metrics

    def send(state: State, neighborhood: Neighborhood) -> tuple[State, Tree]:
        share, old = neighborhood.out_weight, state.sent
        given = jax.tree.map(lambda x, e: over(share, e).astype(x.dtype) * x[None] + e, state.mine, old["low"])
        high = jax.tree.map(jnp.add, old["high"], given)
        sums = {"high": high, "low": jax.tree.map(left_out, old["high"], given, high)}
        mine = jax.tree.map(lambda leaf: leaf * (1 - share.sum()).astype(leaf.dtype), state.mine)
        return state._replace(mine=mine, sent=sums), sums

    def mix(state: State, inbox: Inbox, neighborhood: Neighborhood) -> State:
        here, new = inbox.arrived, inbox.received
        seen = jax.tree.map(lambda old, new: jnp.where(over(here, old), new.astype(old.dtype), old), state.seen, new)
        gained = grown(seen, state.seen)
        mine = jax.tree.map(lambda leaf, gain: sum(gain, start=leaf), state.mine, gained)  # one by one, in order
        return state._replace(mine=mine, seen=seen)

    def adopt(state: State, params: Params) -> State:
        return init(params, jax.tree.leaves(state.seen)[0].shape[0])

    def restart(state: State, slots: int) -> State:  # every node counts once again
        return init(params(state), slots)._replace(opt_state=state.opt_state)

    def mass(state: State) -> Tree:
        return jax.tree.map(lambda x, away: x + away.sum(axis=0), state.mine, grown(state.sent, state.seen))

    return Algorithm(
        "push_sum", init, local, send, mix, adopt, params,
        travels="the running sum of what was shared with a neighbour", link="push", keeps_mean="running_sums",
        mass=mass, state_class="pairwise", per_edge=True, linear=False, demands=Demands("column"), restart=restart,
    )  # fmt: skip
