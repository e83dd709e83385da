"""A selector: a network that tells from which site a row comes, trained by gossip, for the answer `selector`.

It is the third part of the "super model" of FedSM, beside the shared model and the own models of all sites:

    objective = [{ name = "soft_pull" }, { name = "selector" }]          evaluation.answers = ["selector"]
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from p2pfl.check import at_least, positive
from p2pfl.learning.local_steps import rest
from p2pfl.methods import appearance, bulletin
from p2pfl.methods.alongside import added, alongside
from p2pfl.methods.bulletin import Bulletin
from p2pfl.methods.objectives.objective import Objective
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree

BETA1, BETA2, TINY = 0.9, 0.999, 1e-8
"""Of Adam."""


def selector(optimizer: optax.GradientTransformation, learning_rate: float = 0.1, minimum: int = 10) -> Objective:
    """A network that tells from which site a row comes is trained by gossip, for the answer `selector`.

    It sees low-level features of a row (p2pfl.methods.appearance): softmax regression on the n planned sites. A site's
    rows have one label, the site itself, so that local steps would end in "all are mine": as the source's authors do,
    there is one step a round, by the gradient over all its batches, and the moments of Adam are averaged along with the
    network. Each site tells the running mean and mean square of its features, by which all scale alike: what two
    messages differ by are the means over the rows of the batches in between. A site of fewer than `minimum`
    training rows tells nothing, and is not told from. All sites count alike, whatever their number of rows. A node
    beyond those that were planned has no label: it mixes, and learns nothing. The source takes VGG-11 on whole
    images; on features, a linear network needs no more images than a site has. The model is trained as without.
    Source: Xu, Li, Guo, Yang, Roth, Hatamizadeh, Zhao, Xu, Huang, Xu, "Closing the generalization gap of cross-silo
    federated medical image segmentation" (FedSM, 2022).

    Args:
        optimizer: of the experiment; not used.
        learning_rate: of the selector's own Adam, > 0.
        minimum: training rows below which a site tells nothing, >= 1.

    Returns:
        The objective; the network lies in params["private"]["selector"].

    Raises:
        ConfigError: learning_rate <= 0, minimum < 1; when applied, an algorithm that sends one way.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.selector(optax.sgd(0.1)).bulletin.what
        "mean and mean square of each site's features of light and texture"
    """
    positive(learning_rate=learning_rate)
    at_least(1, minimum=minimum)

    def after(state: Tree) -> Tree:
        return _stepped(state, learning_rate)

    def wrap(learner: Learner) -> Learner:
        return _learned(learner, minimum)

    beside = alongside(appearance.SELECTOR, "the selector of sites", after=after)
    return Objective(wrap, beside, facts=("samples",), bulletin=TOLD)


def _row(learner: Learner, x: tuple[int, ...]) -> Tree:
    found = jax.eval_shape(appearance.features, jax.ShapeDtypeStruct((1, *x), jnp.float32))
    return {name: jax.ShapeDtypeStruct(found.shape[1:], found.dtype) for name in ("mean", "square")}


TOLD = Bulletin(appearance.TABLE, _row, "mean and mean square of each site's features of light and texture")


def _learned(learner: Learner, minimum: int) -> Learner:
    """The learner that gathers the selector's gradient in its local steps."""
    like = jax.eval_shape(learner.init, jax.random.key(0))["private"][appearance.TABLE]["rows"]["mean"]
    sites, count = like.shape

    def init(key: Key) -> Params:
        layer = {"kernel": jnp.zeros((count, sites), like.dtype), "bias": jnp.zeros((sites,), like.dtype)}
        none = jnp.zeros((), jnp.int32)
        model = {"layer": layer, "first": layer, "second": layer}
        return added(learner.init(key), appearance.SELECTOR, {
            "model": model, "sum": layer, "seen": none, "steps": none, "rounds": none,
        })  # fmt: skip

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        gradient, others, metrics = learner.grad(params, batch, key)
        whole = {**rest(params), **others}
        state, mine = whole["private"][appearance.SELECTOR], bulletin.own(params)
        found = appearance.features(batch["x"])
        enough = whole["private"]["site"]["samples"] >= minimum
        row = _told(whole, mine, found, state["steps"])
        whole, mine = {**whole, "private": bulletin.say(whole, appearance.TABLE, row, enough)}, mine & enough
        scaled, label = appearance.scaled(whole, found), mine.astype(found.dtype)

        def loss(layer: Tree) -> Array:
            return -(jax.nn.log_softmax(appearance.outputs(layer, scaled), axis=-1) @ label).mean()

        total = jax.tree.map(jnp.add, state["sum"], jax.grad(loss)(state["model"]["layer"]))
        planned = mine.any().astype(jnp.int32)
        state = {**state, "sum": total, "seen": state["seen"] + planned, "steps": state["steps"] + planned}
        return gradient, added(whole, appearance.SELECTOR, state), metrics

    return learner._replace(init=init, grad=grad)


def _told(params: Params, mine: Array, found: Array, steps: Array) -> Tree:
    """The node's own row: the mean over its batches, `steps` before this one, of the features and of their squares."""
    rows, batches = params["private"][appearance.TABLE]["rows"], (steps + 1).astype(found.dtype)

    def mean(rows: Array, new: Array) -> Array:
        old = jnp.where(mine[:, None], rows, 0).sum(axis=0)
        return old + (new.mean(axis=0) - old) / batches

    return {"mean": mean(rows["mean"], found), "square": mean(rows["square"], found**2)}


def _stepped(state: Tree, learning_rate: float) -> Tree:
    """The selector after the step of a round, if there was a gradient."""
    seen, model = state["seen"], state["model"]

    def moments(first: Array, second: Array, total: Array) -> tuple[Array, Array]:
        g = total / jnp.maximum(seen, 1).astype(total.dtype)
        return BETA1 * first + (1 - BETA1) * g, BETA2 * second + (1 - BETA2) * g**2

    pairs = jax.tree.map(moments, model["first"], model["second"], state["sum"])
    first, second = (jax.tree.map(lambda _, pair, i=i: pair[i], model["first"], pairs) for i in (0, 1))
    rounds = state["rounds"] + 1

    def leaf(layer: Array, first: Array, second: Array) -> Array:
        t = rounds.astype(layer.dtype)
        size = jnp.sqrt(jnp.maximum(second, 0) / (1 - BETA2**t))  # a neighbour could tell less than nothing
        return layer - learning_rate * (first / (1 - BETA1**t)) / (size + TINY)

    new = {"layer": jax.tree.map(leaf, model["layer"], first, second), "first": first, "second": second}
    kept = jax.tree.map(lambda new, old: jnp.where(seen > 0, new, old), new, model)
    return {
        **state, "model": kept, "sum": jax.tree.map(jnp.zeros_like, state["sum"]), "seen": jnp.zeros_like(seen),
        "rounds": jnp.where(seen > 0, rounds, state["rounds"]),
    }  # fmt: skip
