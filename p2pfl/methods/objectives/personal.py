"""Methods with a model of the node's own beside the shared one, which is what neighbours get.

The node's own model v lies in params["private"] under the method's name; no message holds it. It begins, at the node's
first local step, as the shared model w is then: so a joiner's begins as the model that it has adopted, and a node that
comes back with its checkpoint has its own again. v is trained on the same batches as w; batch statistics too are its
own. It needs the memory of the model twice, with the optimizer's state thrice or more, and a step takes twice the time
or more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from p2pfl.check import at_least, fraction, one_of, positive
from p2pfl.data import Dataset
from p2pfl.errors import ConfigError
from p2pfl.learning.local_steps import rest
from p2pfl.learning.optimizers import by_gradient
from p2pfl.methods.objectives.objective import Objective
from p2pfl.tree import add, mixed
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree


def pfedme(
    optimizer: optax.GradientTransformation, learning_rate: float, strength: float = 15.0, steps: int = 5
) -> Objective:
    """The shared model follows the Moreau envelope of the local loss, whose minimiser theta is the node's own model.

        F(w) = min over theta of f(theta) + strength/2 |theta - w|^2,      gradient of F at w = strength (w - theta)

    theta is found by `steps` >= 1 proximal gradient steps of `learning_rate` > 0 on the batch, from w on:
    theta <- (theta - rate g(theta) + rate strength w) / (1 + rate strength). The paper takes the term of w explicitly;
    implicitly, the fixed point is the same and every `strength` > 0 is stable. As strength grows, the gradient of F
    becomes that of f. The experiment's optimizer moves w; with SGD, its rate times strength must be below 2.
    The node's own model is theta of the last batch, so a joiner has one after its first step.
    Source: T. Dinh, Tran, Nguyen, "Personalized federated learning with Moreau envelopes" (2020), algorithm 1.

    Args:
        optimizer: of the experiment, or any of optax.
        learning_rate: of the inner steps, > 0.
        strength: > 0.
        steps: inner steps, >= 1.

    Returns:
        The objective.

    Raises:
        ConfigError: an argument is out of bounds.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.pfedme(optax.sgd(0.1), learning_rate=0.1).facts
        ()
    """
    positive(learning_rate=learning_rate, strength=strength)
    at_least(1, steps=steps)

    def wrap(learner: Learner) -> Learner:
        def init(key: Key) -> Params:
            params = learner.init(key)
            return _kept(params, "pfedme", {"steps": jnp.zeros((), jnp.int32), "model": mixed(params)})

        def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
            w, own = params["trained"], _model(params, "pfedme")
            gradient, others, metrics = learner.grad(params, batch, key)

            def nearer(theta: Tree, gradient: Tree) -> Tree:
                def leaf(theta: Array, g: Array, w: Array) -> Array:
                    return (theta - learning_rate * g + learning_rate * strength * w) / (1 + learning_rate * strength)

                return jax.tree.map(leaf, theta, gradient, w)

            def step(carry: tuple[Tree, Tree], index: Array) -> tuple[tuple[Tree, Tree], None]:
                theta, _ = carry  # the statistics move once for each batch: every step starts from the same
                at = {**params, "trained": theta, "carried": own["carried"]}
                gradient, new, _ = learner.grad(at, batch, jax.random.fold_in(key, index))
                return (nearer(theta, gradient), new["carried"]), None

            first = (nearer(w, gradient), others["carried"])
            more = jnp.arange(1, steps, dtype=jnp.int32)
            unroll = max(steps - 1, 1) if learner.unroll else 1
            (theta, carried), _ = jax.lax.scan(step, first, more, unroll=unroll)
            moreau = jax.tree.map(lambda w, theta: strength * (w - theta), w, theta)
            count = params["private"]["pfedme"]["steps"] + 1
            kept = {"steps": count, "model": {"trained": theta, "carried": carried}}
            return moreau, _kept({**rest(params), **others}, "pfedme", kept), metrics

        return _answering(learner._replace(init=init, grad=grad), "pfedme")

    return Objective(wrap)


def ditto(optimizer: optax.GradientTransformation, strength: float) -> Objective:
    """The node's own model v is trained on f(v) + strength/2 |v - w|^2, `strength` >= 0; w is trained as without.

    v has its own copy of the experiment's optimizer. 0: v is trained alone; as strength grows v becomes w (SGD needs
    rate times strength below 2). The paper takes for w the model that the round began with; here it is w as it is at
    the step.
    Source: Li, Hu, Beirami, Smith, "Ditto: fair and robust federated learning through personalization" (2021), eq. 2.

    Args:
        optimizer: of the experiment, or any of optax.
        strength: >= 0.

    Returns:
        The objective.

    Raises:
        ConfigError: strength < 0.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.ditto(optax.sgd(0.1), strength=0.5).facts
        ()
    """
    at_least(0, strength=strength)

    def wrap(learner: Learner) -> Learner:
        def pull(own: Params, params: Params, batch: Tree) -> Tree:
            return jax.tree.map(lambda v, w: strength * (v - w), own["trained"], params["trained"])

        return _beside(learner, "ditto", optimizer, pull)

    return Objective(wrap)


def cusfl(optimizer: optax.GradientTransformation, strength: float, distance: str = "kl") -> Objective:
    """The node's own model v is trained on f(v) + strength D(w, v), with the shared model w as its frozen teacher.

    `distance` D of the outputs on the batch: "kl", the divergence of v's probabilities (softmax over the last axis)
    from those of w; or "squared", half the squared distance of the outputs, for anything but classes. `strength` >= 0;
    0: v is trained alone. The paper compares the features before the last layer; outputs need no knowledge of the model
    and hold for any. They are those of evaluation: no dropout, batch statistics as they are. Source: Wicaksana, Yan,
    Yang, Liu, Fan, Cheng, "Customized federated learning for multi-source decentralized medical image classification"
    (2022).

    Args:
        optimizer: of the experiment, or any of optax.
        strength: >= 0.
        distance: "kl" for classes, "squared" for anything else.

    Returns:
        The objective.

    Raises:
        ConfigError: an argument is out of bounds; when applied, nothing is predicted of the data.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.cusfl(optax.sgd(0.1), strength=0.5).facts
        ()
    """
    at_least(0, strength=strength)
    one_of(_DISTANCES, distance=distance)

    def wrap(learner: Learner) -> Learner:
        predict = learner.predict

        def pull(own: Params, params: Params, batch: Tree) -> Tree:
            teacher = predict(params, batch["x"])
            if distance == "kl" and teacher.shape[-1] == 1:
                raise ConfigError(
                    "objective cusfl: distance='kl': the model has one output, and no classes; use distance = 'squared'"
                )

            def between(trained: Tree) -> Array:
                return _DISTANCES[distance](teacher, predict({**params, **own, "trained": trained}, batch["x"])).mean()

            return jax.tree.map(lambda g: strength * g, jax.grad(between)(own["trained"]))

        return _beside(learner, "cusfl", optimizer, pull)

    def suits(dataset: Dataset) -> None:
        if dataset.kind == "classes" and not dataset.classes:
            raise ConfigError("objective cusfl: compares outputs, and this task has none; use ditto")

    return Objective(wrap, suits=suits)


def iop(optimizer: optax.GradientTransformation, strength: float) -> Objective:
    """The node's own model v takes in both gradients, its own and the one that all have accumulated in w.

        v <- v - (step of the optimizer on the local gradient at v);      v <- v + strength (w - v)

    0 < `strength` < 1; near 0 v is trained alone, near 1 it is w. w - v is what neighbours and the node itself have
    moved the shared model, less what v has already taken in: the published method has it from a server, as the global
    model of each round, and takes it once a round, in a running mean of models; here it comes from mixing with
    neighbours, at every step. v has its own copy of the experiment's optimizer.
    Source: Jiang, Yang, Chen, Dou, "IOP-FL: inside-outside personalization for federated medical image segmentation"
    (2023), inside personalization. For the outside, see `adapted` in p2pfl.methods.answers.

    Args:
        optimizer: of the experiment, or any of optax.
        strength: 0 < strength < 1.

    Returns:
        The objective.

    Raises:
        ConfigError: strength is out of bounds.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.iop(optax.sgd(0.1), strength=0.5).facts
        ()
    """
    fraction(strength=strength)

    def wrap(learner: Learner) -> Learner:
        def moved(v: Tree, w: Tree) -> Tree:
            return jax.tree.map(lambda v, w: v + strength * (w - v), v, w)

        return _beside(learner, "iop", optimizer, moved=moved)

    return Objective(wrap)


def average(optimizer: optax.GradientTransformation, decay: float = 0.99) -> Objective:
    """The node's own model is the running mean of the shared model over the local steps, batch statistics included.

        m <- m + max(1 - decay, 1 / t) (w - m),      w the shared model before the node's local step t = 1, 2, ...

    The plain mean of the first 1 / (1 - decay) models, a mean that forgets after that; 0 < `decay` < 1. Averaged
    iterates have less of the noise of single batches and of mixing. Training is as without; only memory is needed.
    Source: Polyak, Juditsky, "Acceleration of stochastic approximation by averaging" (1992).

    Args:
        optimizer: of the experiment, or any of optax.
        decay: 0 < decay < 1.

    Returns:
        The objective.

    Raises:
        ConfigError: decay is out of bounds.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.average(optax.sgd(0.1)).facts
        ()
    """
    fraction(decay=decay)

    def wrap(learner: Learner) -> Learner:
        def init(key: Key) -> Params:
            params = learner.init(key)
            return _kept(params, "average", {"steps": jnp.zeros((), jnp.int32), "model": mixed(params)})

        def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
            gradient, others, metrics = learner.grad(params, batch, key)
            steps = params["private"]["average"]["steps"] + 1

            def nearer(m: Array, w: Array) -> Array:
                if not jnp.issubdtype(m.dtype, jnp.floating):
                    return w  # a counter has no mean
                return m + jnp.maximum(1 - decay, 1 / steps.astype(m.dtype)).astype(m.dtype) * (w - m)

            mean = jax.tree.map(nearer, params["private"]["average"]["model"], mixed(params))
            kept = {"steps": steps, "model": mean}
            return gradient, _kept({**rest(params), **others}, "average", kept), metrics

        return _answering(learner._replace(init=init, grad=grad), "average")

    return Objective(wrap)


# --- what they have in common


def _kept(params: Params, name: str, state: Tree) -> Params:
    """The parts of a model with a method's own state among what is private."""
    return {**params, "private": {**params.get("private", {}), name: state}}


def _model(params: Params, name: str) -> Params:
    """The node's own trained and carried: before its first step, the shared ones."""
    state = params["private"][name]
    return jax.tree.map(lambda v, w: jnp.where(state["steps"] > 0, v, w), state["model"], mixed(params))


def _answering(learner: Learner, name: str) -> Learner:
    return learner._replace(personal=lambda params: {**params, **_model(params, name)})


def _beside(
    learner: Learner,
    name: str,
    optimizer: optax.GradientTransformation,
    pull: Callable[[Params, Params, Tree], Tree] | None = None,
    moved: Callable[[Tree, Tree], Tree] | None = None,
) -> Learner:
    """A learner with a model v of the node's own, trained by an optimizer of its own beside the shared model w.

    `pull(own parts, params, batch)`: is added to the local gradient at v. `moved(v, w)`: v after its step. Both
    gradients of a step have the same randomness. Of what other methods keep, only what w's gradient made is kept.
    """
    by_gradient(optimizer, f"objective {name}")

    def init(key: Key) -> Params:
        params = learner.init(key)
        state = {
            "steps": jnp.zeros((), jnp.int32),
            "model": mixed(params),
            "optimizer": optimizer.init(params["trained"]),
        }
        return _kept(params, name, state)

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        gradient, others, metrics = learner.grad(params, batch, key)
        own, state = _model(params, name), params["private"][name]
        towards, new, _ = learner.grad({**params, **own}, batch, key)
        if pull is not None:
            towards = add(towards, pull(own, params, batch))
        updates, memory = optimizer.update(towards, state["optimizer"], own["trained"])
        v: Any = optax.apply_updates(own["trained"], updates)
        if moved is not None:
            v = moved(v, params["trained"])
        model = {"trained": v, "carried": new["carried"]}
        kept = {"steps": state["steps"] + 1, "model": model, "optimizer": memory}
        return gradient, _kept({**rest(params), **others}, name, kept), metrics

    return _answering(learner._replace(init=init, grad=grad), name)


def _divergence(teacher: Array, student: Array) -> Array:
    """KL of the probabilities of `student` from those of `teacher`: [B, ...] without the last axis."""
    log_p, log_q = jax.nn.log_softmax(teacher, axis=-1), jax.nn.log_softmax(student, axis=-1)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def _squared(teacher: Array, student: Array) -> Array:
    return ((teacher - student) ** 2).sum(axis=-1) / 2


_DISTANCES: dict[str, Callable[[Array, Array], Array]] = {"kl": _divergence, "squared": _squared}
