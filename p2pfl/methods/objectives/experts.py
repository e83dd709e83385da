"""Two experts, the shared model and the node's own, and a gate that says by the input whom to trust."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from p2pfl.learning.local_steps import rest
from p2pfl.learning.optimizers import by_gradient
from p2pfl.methods.objectives.objective import Objective, of_kinds
from p2pfl.methods.objectives.personal import own_model
from p2pfl.methods.statistics.known import normalized
from p2pfl.tree import mixed
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree

NAME = "experts"


def experts(optimizer: optax.GradientTransformation) -> Objective:
    """A mixture of the shared model w and a model v of the node's own, by a gate a of the input.

        p(y | x) = a(x) p_w(y | x) + (1 - a(x)) p_v(y | x),         a(x) = sigmoid(k x + b)

    v is trained on its own loss; w and the gate are trained on that of the mixture, -log p(y | x): so a row counts for
    w by the share that w has in what is right there, and w is spared what is this site's alone: by itself it knows less
    than with plain mixing. Only w travels; v, the
    gate and their optimizer, a copy of the experiment's, stay at home. The mixture answers as `personal`, w as
    `consensus`. Of inputs the gate sees what [statistics] makes of them with the moments; missing ones are 0. Shares
    are those of losses as in evaluation, without dropout. v begins as w is at the node's first step.

    The authors' program mixes the logarithms of the probabilities, whose exponentials do not sum to one, and trains v
    on both losses together, since it clears no gradients; the paper has the mixture. Source: Li, Gu, Dvornek, Staib,
    Ventola, Duncan, "Multi-site fMRI analysis using privacy-preserving federated learning and domain adaptation: ABIDE
    results" (2020), section 3.4.1; Jacobs, Jordan, Nowlan, Hinton, "Adaptive mixtures of local experts" (1991).

    Args:
        optimizer: of the experiment, or any of optax.

    Returns:
        The objective, for data of classes.

    Raises:
        ConfigError: when applied, the optimizer needs more than gradients.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.experts(optax.sgd(0.1)).facts
        ()
    """
    by_gradient(optimizer, f"objective {NAME}")

    def wrap(learner: Learner, shape: tuple[int, ...]) -> Learner:
        def init(key: Key) -> Params:
            params = learner.init(key)
            dtype = jax.tree.leaves(params["trained"])[0].dtype
            gate = {"kernel": jnp.zeros((math.prod(shape),), dtype), "bias": jnp.zeros((), dtype)}
            state = {
                "steps": jnp.zeros((), jnp.int32),
                "model": mixed(params),
                "gate": gate,
                "optimizer": optimizer.init({"model": params["trained"], "gate": gate}),
                "answers": jnp.zeros((), jnp.int32),
            }
            return {**params, "private": {**params.get("private", {}), NAME: state}}

        def personal(params: Params) -> Params:
            private = params["private"]
            return {**params, "private": {**private, NAME: {**private[NAME], "answers": jnp.ones((), jnp.int32)}}}

        return _answering(learner)._replace(init=init, grad=_trained(learner, optimizer), personal=personal)

    return Objective(shaped=wrap, suits=of_kinds(NAME, "classes"))


def _own(params: Params) -> Params:
    """With the node's own model in place of the shared one; before its first step they are the same."""
    return {**params, **own_model(params, NAME)}


def _trained(
    learner: Learner, optimizer: optax.GradientTransformation
) -> Callable[[Params, Tree, Key], tuple[Tree, Params, Metrics]]:
    """The gradient of the shared model; on the way the own model and the gate take their step."""

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        state, mine = params["private"][NAME], _own(params)
        everyone = jnp.ones(batch["x"].shape[:1], batch["x"].dtype)
        first, second = (learner.evaluate(each, batch, everyone)["loss"] for each in (params, mine))
        counts = batch.get("weight", everyone).astype(first.dtype)

        def loss(gate: Tree) -> Array:
            return (counts * together(gate, params, batch["x"], first, second)).mean()

        value, to_gate = jax.value_and_grad(loss)(state["gate"])
        shares = jax.nn.sigmoid(opened(state["gate"], params, batch["x"]) + second - first)
        gradient, others, _ = learner.grad(params, {**batch, "weight": counts * shares}, key)
        towards, new, _ = learner.grad(mine, batch, key)
        at = {"model": mine["trained"], "gate": state["gate"]}
        updates, memory = optimizer.update({"model": towards, "gate": to_gate}, state["optimizer"], at)
        moved: Tree = optax.apply_updates(at, updates)
        model = {"trained": moved["model"], "carried": new["carried"]}
        kept = {**state, "steps": state["steps"] + 1, "model": model, "gate": moved["gate"], "optimizer": memory}
        private = {**others.get("private", params["private"]), NAME: kept}
        return gradient, {**rest(params), **others, "private": private}, {"loss": value}

    return grad


def _answering(learner: Learner) -> Learner:
    """The learner that answers by the mixture where a model says so, else by the shared model."""

    def predict(params: Params, x: Array) -> Array:
        state, shared = params["private"][NAME], learner.predict(params, x)
        logs = _logs(opened(state["gate"], params, x)[:, None])
        each = (jax.nn.log_softmax(outputs, axis=-1) for outputs in (shared, learner.predict(_own(params), x)))
        mixture = jnp.logaddexp(*(log + p for log, p in zip(logs, each, strict=True)))
        return jnp.where(state["answers"] > 0, mixture, shared)

    def evaluate(params: Params, batch: Tree, mask: Array) -> Metrics:
        state = params["private"][NAME]
        shared, mine = (learner.evaluate(each, batch, mask) for each in (params, _own(params)))
        loss = together(state["gate"], params, batch["x"], shared["loss"], mine["loss"])
        right = jnp.argmax(predict(params, batch["x"]), axis=-1) == batch["y"]
        mixture = {"score": jnp.where(mask > 0, right, False), "loss": jnp.where(mask > 0, loss, 0)}
        answers = state["answers"] > 0
        return {name: jnp.where(answers, mixture[name].astype(shared[name].dtype), shared[name]) for name in mixture}

    return learner._replace(predict=predict, evaluate=evaluate, maps=None)  # those of one expert say nothing of both


def opened(gate: Tree, params: Params, x: Array) -> Array:
    """The logit [B] of how much the shared model counts for each row of x."""
    moments = params.get("statistics", {}).get("moments")
    x = normalized(x, moments) if moments else jnp.where(jnp.isnan(x), 0, x)
    return x.reshape(x.shape[0], -1).astype(gate["kernel"].dtype) @ gate["kernel"] + gate["bias"]


def together(gate: Tree, params: Params, x: Array, first: Array, second: Array) -> Array:
    """-log of the mixture [B], of the losses [B] of both experts, each -log of what it gives to what is right."""
    open_, shut = _logs(opened(gate, params, x))
    return -jnp.logaddexp(open_ - first, shut - second)


def _logs(logit: Array) -> tuple[Array, Array]:
    """log a and log (1 - a)."""
    return jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)
