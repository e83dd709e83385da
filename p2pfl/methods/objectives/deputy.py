"""A model of the node's own that no mixing touches, and a deputy that is mixed and taught by it (PRR-FL)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from p2pfl.check import at_least, fraction
from p2pfl.errors import ConfigError
from p2pfl.learning.local_steps import rest
from p2pfl.learning.optimizers import by_gradient
from p2pfl.methods.objectives.objective import Objective, of_kinds
from p2pfl.methods.objectives.personal import own_model
from p2pfl.tree import mixed
from p2pfl.types import Algorithm, Array, Inbox, Key, Learner, Metrics, Neighborhood, Params, State, Tree

NAME = "deputy"
RECOVER, EXCHANGE, SUBLIMATE = 1, 2, 3
"""Who teaches: the own model the deputy; each the other; the deputy the own model."""


def deputy(
    optimizer: optax.GradientTransformation, recover: float = 0.7, sublimate: float = 0.9, decay: float = 0.8
) -> Objective:
    """Deputy-enhanced transfer: what is shared and mixed is a deputy, and the model that answers is never mixed.

    Both are trained on the same batches. Mixing degrades the deputy (retrogress), so that it is taken in by degrees:
    with s the score of a model on the node's own batches since the last mixing,

        recover     at first, and while s_deputy < recover s_own       the deputy learns from the own model, too
        exchange    until s_deputy >= sublimate s_own                  each learns from the other
        sublimate   while s_deputy >= sublimate s_own                  the own model learns from the deputy

    Who learns from the other has the divergence KL(teacher || student) of the outputs beside its loss; the teacher is
    held fixed. A stage is left for the next at the next batch at the earliest, and a mixing begins with the first.
    With `wrap = [{ name = "fourier" }]` the deputies are mixed as in the paper. Source: Chen, Zhu, Yang, Yuan,
    "Personalized retrogress-resilient framework for real-world medical federated learning" (2021), deputy-enhanced
    transfer; the stages and 0.7 and 0.9 are those of its published program.

    There the score is the macro F1 on all training rows, looked at before each of five passes; here it is the accuracy
    on the batches of this round, as a running mean that is looked at before each step. The own model is private, has an
    optimizer of its own, and answers as `personal`; a joiner's begins as the deputy that it has adopted.

    Args:
        optimizer: of the experiment, or any of optax; the own model has a copy of it.
        recover: 0 <= recover <= sublimate, a share of the own model's score.
        sublimate: recover <= sublimate, such a share.
        decay: what a step leaves of the running mean of the scores, 0 to 1.

    Returns:
        The objective.

    Raises:
        ConfigError: an argument is out of bounds; for the data, rows without classes.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.deputy(optax.sgd(0.1)).facts
        ()
    """
    at_least(0, recover=recover)
    fraction(decay=decay)
    if not recover <= sublimate:
        raise ConfigError(f"sublimate={sublimate!r}: must be >= recover={recover!r}, a share of the own model's score")

    def wrap_learner(learner: Learner) -> Learner:
        by_gradient(optimizer, f"objective {NAME}")

        def init(key: Key) -> Params:
            params = learner.init(key)
            dtype = jax.tree.leaves(params["trained"])[0].dtype
            state = {
                "steps": jnp.zeros((), jnp.int32),  # since the life began
                "stage": jnp.zeros((), jnp.int32),  # 0: nothing has been looked at since the last mixing
                "scores": jnp.zeros(2, dtype),  # of the own model, of the deputy
                "model": mixed(params),
                "optimizer": optimizer.init(params["trained"]),
            }
            return {**params, "private": {**params.get("private", {}), NAME: state}}

        def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
            state, own = params["private"][NAME], {**params, **own_model(params, NAME)}
            scores, stage = _looked(learner, state, (own, params), batch, (recover, sublimate), decay)
            gradient, others, metrics = learner.grad(params, batch, key)
            mine, new, _ = learner.grad(own, batch, key)
            taught = stage <= EXCHANGE  # the deputy is
            gradient = _added(gradient, _towards(learner, params, own, batch), taught)
            mine = _added(mine, _towards(learner, own, params, batch), stage >= EXCHANGE)
            updates, memory = optimizer.update(mine, state["optimizer"], own["trained"])
            trained: Any = optax.apply_updates(own["trained"], updates)
            kept = {
                "steps": state["steps"] + 1, "stage": stage, "scores": scores, "optimizer": memory,
                "model": {"trained": trained, "carried": new["carried"]},
            }  # fmt: skip
            private = {**others.get("private", {}), NAME: kept}
            return gradient, {**rest(params), **others, "private": private}, metrics

        return learner._replace(init=init, grad=grad, personal=lambda params: {**params, **own_model(params, NAME)})

    return Objective(wrap_learner, wrap=_from_the_first, suits=of_kinds(NAME, "classes"))


def _looked(
    learner: Learner, state: Tree, models: tuple[Params, Params], batch: Tree, bounds: tuple[float, float], decay: float
) -> tuple[Array, Array]:
    """The running scores of both models with this batch, and the stage that follows from them."""
    rows = jnp.ones(batch["y"].shape[0], state["scores"].dtype)
    now = jnp.stack([learner.evaluate(each, batch, rows)["score"].mean() for each in models])
    fresh = state["stage"] == 0
    scores = jnp.where(fresh, now.astype(state["scores"].dtype), decay * state["scores"] + (1 - decay) * now)
    scores = scores.astype(state["scores"].dtype)
    recover, sublimate = (scores[1] >= bound * scores[0] for bound in bounds)
    further = jnp.where(state["stage"] == RECOVER, EXCHANGE, jnp.where(sublimate, SUBLIMATE, EXCHANGE))
    return scores, jnp.where(fresh | ~recover, RECOVER, further).astype(jnp.int32)


def _from_the_first(inner: Algorithm) -> Algorithm:
    """The same, with the deputy's stages begun anew where something was mixed."""

    def mix(state: State, inbox: Inbox, neighborhood: Neighborhood) -> State:
        after = inner.mix(state, inbox, neighborhood)
        params = inner.params(after)
        kept = params["private"][NAME]
        kept = {**kept, "stage": jnp.where(inbox.arrived.any(), 0, kept["stage"])}
        return inner.replaced(after, {**params, "private": {**params["private"], NAME: kept}})

    return inner._replace(mix=mix, linear=False)  # whether anything arrived is no part of a sum


def _towards(learner: Learner, student: Params, teacher: Params, batch: Tree) -> Tree:
    """The gradient, in the student, of the mean of KL(teacher || student) over a batch."""
    known = jax.nn.log_softmax(learner.predict(teacher, batch["x"]))

    def apart(trained: Tree) -> Array:
        said = jax.nn.log_softmax(learner.predict({**student, "trained": trained}, batch["x"]))
        return (jnp.exp(known) * (known - said)).sum(axis=-1).mean()

    return jax.grad(apart)(student["trained"])


def _added(gradient: Tree, more: Tree, when: Array) -> Tree:
    return jax.tree.map(lambda g, m: g + jnp.where(when, m, 0).astype(g.dtype), gradient, more)
