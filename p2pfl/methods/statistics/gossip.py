"""An algorithm whose nodes average sums along with what they learn, and train when they know the result.

A site's own sums are params["private"]["site"]["sums"]. They travel and are mixed like a model: by double entry where
the algorithm makes exchanges, by running sums where it pushes (Kempe, Dobra, Gehrke, "Gossip-based computation of
aggregate information", 2003; see `p2pfl.algorithms.push_sum`), so that nothing that is lost or late moves the mean of
the sums. What they say is a ratio of two averages: the number of nodes, and with running sums the weight of a node,
cancel.

A node takes no local step before it knows something. After a given number of rounds it writes what it found out into
params["statistics"], which then stays as it is, so that the inputs of training do not move under it.

With every new epoch of the membership the count of rounds starts again, and what is found out is written anew at its
end. Until the sums have been averaged once they start again as well, from those of the members. After that they stay:
every node holds the mean by then, so that one that goes takes an equal part of every sum, and its rows still count, as
what all have learned from them does; one that is back as it was brings what it has, and a new one its own sums on top.
(Of the old sums a part is gone by then, so that a new row counts a little more; and one that comes back with nothing
brings its own once more.) So a hospital that is away for an hour does not move the scale of all others. Who joins takes
over a neighbour's result, and trains at once.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from p2pfl.algorithms.mixing import exchange_mix, part, pulled, pushed, unspent
from p2pfl.check import at_least
from p2pfl.errors import ConfigError
from p2pfl.learning.local_steps import steps_in
from p2pfl.methods.statistics.sums import estimated
from p2pfl.types import Algorithm, Array, Batches, Inbox, Key, Metrics, Neighborhood, Params, Payload, Steps, Tree


class SumsState(NamedTuple):
    """The state of the algorithm within, the node's part of the sums, running sums, and counts of rounds."""

    inner: Any
    sums: Tree
    sent: Tree  # {"high", "low"}, leading axis K; () unless they are pushed
    seen: Tree
    since: Array  # [] int32: rounds since the sums began
    age: Array  # [] int32: rounds since the node began


def gossip(inner: Algorithm, rounds: int) -> Algorithm:
    """The algorithm that averages sums for `rounds` >= 1 rounds before it trains; the outermost wrap.

    Of an algorithm that never says a word ("local") each node takes its own sums for those of all. Who has waited for
    so many rounds, while epochs came and went, trains with what it has. Raises ConfigError for an algorithm that pushes
    without running sums: its weights keep no mean, of sums no more than of models.
    """
    at_least(1, rounds=rounds)
    if inner.link == "none":
        return _alone(inner)
    running = inner.keeps_mean == "running_sums"
    begun = partial(_begun, inner, running)
    if inner.link == "push" and not running:
        raise ConfigError(
            f"statistics: {inner.name} pushes models without keeping their mean, and would not keep that of sums; use "
            'dsgd, or on a directed graph push_sum (with by = "sample" its mean is that of fedavg)'
        )

    def init(params: Params, slots: int) -> SumsState:
        return begun(inner.init(params, slots), slots, jnp.zeros((), jnp.int32))

    def local(state: SumsState, batches: Batches, key: Key, steps: Steps | None) -> tuple[SumsState, Metrics]:
        known = inner.params(state.inner)["statistics"]["known"] > 0
        wanted = jnp.int32(steps_in(batches)) if steps is None else steps
        inside, metrics = inner.local(state.inner, batches, key, jnp.where(known, wanted, 0))
        return state._replace(inner=inside), metrics

    def send(state: SumsState, neighborhood: Neighborhood) -> tuple[SumsState, Payload]:
        inside, payload = inner.send(state.inner, neighborhood)
        if not running:
            return state._replace(inner=inside), {"inner": payload, "sums": to_each(inner, state.sums, neighborhood)}
        kept, sent = pushed(state.sums, state.sent, neighborhood.out_weight)
        return state._replace(inner=inside, sums=kept, sent=sent), {"inner": payload, "sums": sent}

    def mix(state: SumsState, inbox: Inbox, neighborhood: Neighborhood) -> SumsState:
        inside, theirs = inner.mix(state.inner, part(inbox, "inner"), neighborhood), part(inbox, "sums")
        if running:
            sums, seen = pulled(state.sums, state.seen, theirs)
        else:
            sums, seen = exchange_mix(state.sums, theirs, neighborhood), state.seen
        since, age = state.since + 1, state.age + 1
        waits = inner.params(inside)["statistics"]["known"] == 0
        due = (since == rounds) | (waits & (age == rounds))
        after = written(inner, inside, sums)
        inside = jax.tree.map(lambda new, old: jnp.where(due, new, old), after, inside)
        return SumsState(inside, sums, state.sent, seen, since, age)

    def adopt(state: SumsState, params: Params) -> SumsState:
        slots = jax.tree.leaves(state.sent)[0].shape[0] if running else 0
        return begun(inner.adopt(state.inner, params), slots, jnp.zeros((), jnp.int32))

    def restart(state: SumsState, slots: int) -> SumsState:
        fresh = begun(inner.restart(state.inner, slots) if inner.restart else state.inner, slots, state.age)
        known = inner.params(state.inner)["statistics"]["known"] > 0
        return fresh._replace(sums=jax.tree.map(lambda old, own: jnp.where(known, old, own), state.sums, fresh.sums))

    def put(state: SumsState, params: Params) -> SumsState:
        return state._replace(inner=inner.replaced(state.inner, params))

    def mass(state: SumsState) -> Tree:  # of the model alone: sums are in units of their own, and would drown it
        return (inner.mass or inner.params)(state.inner)

    return inner._replace(
        init=init, local=local, send=send, mix=mix, adopt=adopt, params=lambda state: inner.params(state.inner),
        travels=f"{inner.travels}, and sums over the data", mass=mass, restart=restart, put=put,
        any_steps=False, state_class="sum" if inner.state_class == "none" else inner.state_class,
    )  # fmt: skip


def to_each(inner: Algorithm, told: Tree, neighborhood: Neighborhood) -> Tree:
    """What is sent beside a model: the same to each neighbour, also where each gets something else of the model."""
    slots = len(neighborhood.out_weight)
    if not inner.per_edge:
        return told
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (slots, *leaf.shape)), told)


def _begun(inner: Algorithm, running: bool, inside: Any, slots: int, age: Array) -> SumsState:
    """The state of a node whose sums are its own, and not yet on their way."""
    own = inner.params(inside)["private"]["site"]["sums"]
    away: Tree = unspent(own, slots) if running else ()
    return SumsState(inside, own, away, away, jnp.zeros((), jnp.int32), age)


def written(inner: Algorithm, state: Any, sums: Tree) -> Any:
    """The state of a node that knows what the sums say."""
    model = inner.params(state)
    return inner.replaced(state, {**model, "statistics": _said(model["statistics"], sums)})


def _said(before: Tree, sums: Tree) -> Tree:
    found = {"known": jnp.ones_like(before["known"]), **estimated(sums)}
    return jax.tree.map(lambda old, new: new.astype(old.dtype), before, found)


def _alone(inner: Algorithm) -> Algorithm:
    """The algorithm whose nodes know from the start what their own data say, and nothing else."""

    def init(params: Params, slots: int) -> Any:
        own = _said(params["statistics"], params["private"]["site"]["sums"])
        return inner.init({**params, "statistics": own}, slots)

    def adopt(state: Any, params: Params) -> Any:
        return inner.adopt(state, {**params, "statistics": inner.params(state)["statistics"]})

    return inner._replace(init=init, adopt=adopt)
