"""Stochastic gradient push with running sums: directed, time-varying and lossy graphs, without receipts.

    z_i  = x_i / w_i                                     [the model; local steps move it, x moves along]
    x_i+ = sum_j a_ij x_j,     w_i+ = sum_j a_ij w_j     [A column-stochastic: a node shares out all it has]

Source: Assran, Loizou, Ballas, Rabbat, "Stochastic gradient push for distributed deep learning" (2019), algorithm 1.
What travels is the sum of all shares ever sent over a link; the receiver takes the difference to the sum it has seen
last, so that the next message makes up for any that were lost (Hadjicostis, Vaidya, Dominguez-Garcia, "Robust
distributed average consensus via exchange of running sums", 2016). Sums grow: they are pairs of floats (value, error).

What travels: per neighbour, two models. Asks of W: column-stochastic. Keeps the mean of x and w, with what is under
way, by running sums; w begins as 1, or as the node's training rows. A joiner enters with a copied model; with every
epoch w and sums begin again. Who hears little has a small w and steps of eta g / w: much loss wants a smaller rate.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from p2pfl.algorithms.mixing import pulled, pushed, under_way, unspent
from p2pfl.check import one_of
from p2pfl.learning.local_steps import descend
from p2pfl.tree import mixed, scaled, unmixed
from p2pfl.types import Algorithm, Array, Batches, Demands, Inbox, Key, Learner, Metrics, Neighborhood, Params, Tree


class PushSumState(NamedTuple):
    """x and w (`mine`), the optimizer's state, per slot the running sums sent and last received, unmixed parts."""

    mine: Tree
    opt_state: Tree
    sent: Tree  # {"high", "low"}: the pair, each of the structure of `mine` with leading axis K
    seen: Tree
    others: Params


def push_sum(learner: Learner, optimizer: optax.GradientTransformation, by: str = "node") -> Algorithm:
    """Share the model out over directed, changing and lossy graphs: stochastic gradient push.

    Source: Assran et al. (2019), see the head of this file.

    Args:
        learner: what is learned: the first model, gradients and evaluation.
        optimizer: any optax optimizer of the local steps; its state stays at home.
        by: what counts once in the mean, "node" or "sample".

    Returns:
        The algorithm, for any driver.

    Raises:
        ConfigError: another `by`.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> p2pfl.algorithms.push_sum(learner(2), optax.sgd(0.1)).keeps_mean
        'running_sums'
    """
    one_of(("node", "sample"), by=by)

    def counts(params: Params) -> Array:
        dtype = jax.tree.leaves(params["trained"])[0].dtype
        return params["private"]["site"]["samples"].astype(dtype) if by == "sample" else jnp.ones((), dtype)

    def init(params: Params, slots: int) -> PushSumState:
        w = counts(params)
        mine = {"x": scaled(mixed(params), w), "w": w}
        sums = unspent(mine, slots)
        return PushSumState(mine, optimizer.init(params["trained"]), sums, sums, unmixed(params))

    def params(state: PushSumState) -> Params:
        model = jax.tree.map(lambda x: x / state.mine["w"].astype(x.dtype), state.mine["x"])
        return {**state.others, **model}

    def put(state: PushSumState, params: Params) -> PushSumState:
        mine = {**state.mine, "x": scaled(mixed(params), state.mine["w"])}
        return state._replace(mine=mine, others=unmixed(params))

    def local(state: PushSumState, batches: Batches, key: Key, steps: Array | None) -> tuple[PushSumState, Metrics]:
        z = params(state)
        done = descend(learner, optimizer, z, state.opt_state, batches, key, steps)
        # whatever its weight by now, a node's step counts once (for each of its samples): x moves as z does
        moved = scaled(jax.tree.map(jnp.subtract, mixed(done.params), mixed(z)), counts(z))
        mine = {**state.mine, "x": jax.tree.map(jnp.add, state.mine["x"], moved)}
        return state._replace(mine=mine, opt_state=done.opt_state, others=unmixed(done.params)), done.metrics

    def send(state: PushSumState, around: Neighborhood) -> tuple[PushSumState, Tree]:
        mine, sums = pushed(state.mine, state.sent, around.out_weight)
        return state._replace(mine=mine, sent=sums), sums

    def mix(state: PushSumState, inbox: Inbox, around: Neighborhood) -> PushSumState:
        mine, seen = pulled(state.mine, state.seen, inbox)
        return state._replace(mine=mine, seen=seen)

    def adopt(state: PushSumState, params: Params) -> PushSumState:
        return init(params, jax.tree.leaves(state.seen)[0].shape[0])

    return Algorithm(
        "push_sum", init, local, send, mix, adopt, params,
        travels="the running sum of what was shared with a neighbour", link="push", keeps_mean="running_sums",
        mass=lambda state: under_way(state.mine, state.sent, state.seen), state_class="pairwise", per_edge=True,
        linear=False, demands=Demands("column"), put=put, learner=learner,
        restart=lambda state, slots: init(params(state), slots)._replace(opt_state=state.opt_state),
    )  # fmt: skip
