"""Methods with a model of the node's own beside the shared one, which is what neighbours get.

The node's own model v lies in params["private"] under the method's name; no message holds it, but that of `soft_pull`.
It begins, at the node's
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

from p2pfl.check import at_least, fraction, positive
from p2pfl.learning.local_steps import rest
from p2pfl.learning.optimizers import by_gradient
from p2pfl.methods.alongside import added, alongside
from p2pfl.methods.objectives.objective import Objective, finder
from p2pfl.tree import add, mixed
from p2pfl.types import Algorithm, Array, Inbox, Key, Learner, Metrics, Neighborhood, Params, State, Tree


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
            return added(params, "pfedme", {"steps": jnp.zeros((), jnp.int32), "model": mixed(params)})

        def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
            w, own = params["trained"], own_model(params, "pfedme")
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
            return moreau, added({**rest(params), **others}, "pfedme", kept), metrics

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
        def pull(own: Params, params: Params, batch: Tree, key: Key) -> Tree:
            return jax.tree.map(lambda v, w: strength * (v - w), own["trained"], params["trained"])

        return _beside(learner, "ditto", optimizer, pull)

    return Objective(wrap)


def cusfl(optimizer: optax.GradientTransformation, strength: float) -> Objective:
    """The node's own model v is trained on f(v) + strength/2 mean (h(v) - h(w))^2, w the shared model, its teacher.

    h: the features, what the model's last part takes in (`Learner.features`), on the batch; the mean is over rows and
    features. `strength` >= 0; 0: v is trained alone. Nothing but the features is pulled, so that v's last part is the
    site's own. The teacher is frozen: its features are those of evaluation, with no dropout and batch statistics as
    they are; those of v are of training. A linear model's features are its inputs: there v is trained alone. Source:
    Wicaksana, Yan, Yang, Liu, Fan, Cheng, "Customized federated learning for multi-source decentralized medical image
    classification" (2022), whose shared model is a server's; here it is what the node has of it.

    Args:
        optimizer: of the experiment, or any of optax.
        strength: >= 0.

    Returns:
        The objective.

    Raises:
        ConfigError: strength < 0; when applied, the model does not say what its features are.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.cusfl(optax.sgd(0.1), strength=0.5).facts
        ()
    """
    at_least(0, strength=strength)

    def wrap(learner: Learner) -> Learner:
        find = finder("cusfl", learner)

        def pull(own: Params, params: Params, batch: Tree, key: Key) -> Tree:
            teacher = find(params, batch["x"], None)[0]

            def between(trained: Tree) -> Array:
                student = find({**params, **own, "trained": trained}, batch["x"], key)[0]
                return strength / 2 * ((student - teacher) ** 2).mean()

            return jax.grad(between)(own["trained"])

        return _beside(learner, "cusfl", optimizer, pull)

    return Objective(wrap)


def iop(optimizer: optax.GradientTransformation, strength: float) -> Objective:
    """The node's own model v takes in two gradients: its own, at v, and that of all others, which mixing brings.

        v <- v - (step of the optimizer on the local gradient at v) + strength c,      c = (w mixed - w own) / steps

    w own is the shared model as the node's `steps` local steps of a round leave it, w mixed what neighbours make of it:
    c is what the others' gradients have moved it by, for each step, and is taken in at the steps of the next round.
    0 < `strength` < 1; near 0 v is trained alone, near 1 it goes as w does. With SGD it rests where its own gradient is
    `strength` times that at w. Of a quadratic loss that is a point on the line from the own minimum to w, the same in
    all directions; one that is pulled to w (`ditto`) yields in flat directions alone. v has its own copy of the
    experiment's optimizer. With algorithm.name = "local" it is trained alone.
    Source: Jiang, Yang, Chen, Dou, "IOP-FL: inside-outside personalization for federated medical image segmentation"
    (2023), inside personalization, which accumulates global and local gradients. Its released code does so in a running
    mean, over rounds, of the model that leaves local steps, so that both are those at w; here the local one is that at
    v, and there is no server to have the global one from. For the outside see `routed` in p2pfl.methods.answers.

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
        def moved(v: Tree, params: Params) -> Tree:
            return jax.tree.map(lambda v, c: v + strength * c, v, params["private"]["iop"]["common"])

        beside = _beside(learner, "iop", optimizer, moved=moved)

        def init(key: Key) -> Params:
            params = beside.init(key)
            zeros = jax.tree.map(jnp.zeros_like, params["trained"])
            none = jnp.zeros((), jnp.int32)
            return added(params, "iop", {**params["private"]["iop"], "common": zeros, "mixed": none, "taken": none + 1})

        return beside._replace(init=init)

    return Objective(wrap, wrap=_common)


def _common(inner: Algorithm) -> Algorithm:
    """The algorithm that notes what mixing has moved the shared model by, for each of the local steps before it.

    Where a round mixes more than once, their sum.
    """
    if inner.link == "none":
        return inner

    def mix(state: State, inbox: Inbox, neighborhood: Neighborhood) -> State:
        before = inner.params(state)["trained"]
        state = inner.mix(state, inbox, neighborhood)
        params = inner.params(state)
        own = params["private"]["iop"]
        anew = own["steps"] > own["mixed"]
        taken = jnp.where(anew, own["steps"] - own["mixed"], own["taken"])

        def leaf(common: Array, before: Array, after: Array) -> Array:
            return jnp.where(anew, 0, common) + (after - before) / taken.astype(after.dtype)

        common = _laid(leaf, own["common"], before, params["trained"])
        kept = {**own, "common": common, "mixed": own["steps"], "taken": taken}
        return inner.replaced(state, added(params, "iop", kept))

    return inner._replace(mix=mix)


def _laid(leaf: Callable[..., Array], whole: Tree, *parts: Tree) -> Tree:
    """`leaf` of a model's leaves and those of parts of it, which lack what is kept at home; there the leaf stays."""
    if not isinstance(whole, dict):
        return leaf(whole, *parts)
    return {
        name: _laid(leaf, each, *(part[name] for part in parts)) if name in parts[0] else each
        for name, each in whole.items()
    }


def soft_pull(optimizer: optax.GradientTransformation, keep: float = 0.7) -> Objective:
    """The node's own model v is trained alone, and pulled in every round towards the own models of its neighbours.

        v <- (step of the optimizer on the local gradient at v) in local steps;     then
        v_i <- keep v_i + (1 - keep) sum_j w_ij v_j

    SoftPull: the source has keep v_i + (1 - keep) mean of the v_j of all others, from a server. On a complete graph of
    n nodes with weights 1/n the above is that, with keep + (1 - keep)/n for its lambda; on others v is pulled towards
    near nodes, and through them towards all. 0 < `keep` < 1: near 1 v is trained alone, near 0 all have one model. The
    mean of all v is kept, whatever is lost. The shared model is trained as without. **Own models travel**: messages
    hold two models. v has its own copy of the experiment's optimizer; with algorithm.name = "local" it is alone.
    Source: Xu, Li, Guo, Yang, Roth, Hatamizadeh, Zhao, Xu, Huang, Xu, "Closing the generalization gap of cross-silo
    federated medical image segmentation" (FedSM, 2022). Its selector is the objective `selector`.

    Args:
        optimizer: of the experiment, or any of optax.
        keep: 0 < keep < 1.

    Returns:
        The objective.

    Raises:
        ConfigError: keep is out of bounds; when applied, an algorithm that sends one way.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.soft_pull(optax.sgd(0.1)).facts
        ()
    """
    fraction(keep=keep)

    def wrap(learner: Learner) -> Learner:
        return _beside(learner, "soft_pull", optimizer)

    return Objective(wrap, wrap=alongside("soft_pull", "the node's own model", 1 - keep))


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
            return added(params, "average", {"steps": jnp.zeros((), jnp.int32), "model": mixed(params)})

        def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
            gradient, others, metrics = learner.grad(params, batch, key)
            steps = params["private"]["average"]["steps"] + 1

            def nearer(m: Array, w: Array) -> Array:
                if not jnp.issubdtype(m.dtype, jnp.floating):
                    return w  # a counter has no mean
                return m + jnp.maximum(1 - decay, 1 / steps.astype(m.dtype)).astype(m.dtype) * (w - m)

            mean = jax.tree.map(nearer, params["private"]["average"]["model"], mixed(params))
            kept = {"steps": steps, "model": mean}
            return gradient, added({**rest(params), **others}, "average", kept), metrics

        return _answering(learner._replace(init=init, grad=grad), "average")

    return Objective(wrap)


# --- what they have in common


def own_model(params: Params, name: str) -> Params:
    """The node's own trained and carried: before its first step, the shared ones."""
    state = params["private"][name]
    return jax.tree.map(lambda v, w: jnp.where(state["steps"] > 0, v, w), state["model"], mixed(params))


def _answering(learner: Learner, name: str) -> Learner:
    return learner._replace(personal=lambda params: {**params, **own_model(params, name)})


def _beside(
    learner: Learner,
    name: str,
    optimizer: optax.GradientTransformation,
    pull: Callable[[Params, Params, Tree, Key], Tree] | None = None,
    moved: Callable[[Tree, Params], Tree] | None = None,
) -> Learner:
    """A learner with a model v of the node's own, trained by an optimizer of its own beside the shared model w.

    `pull(own parts, params, batch, key)`: is added to the local gradient at v. `moved(v, params)`: v after its step.
    Both gradients of a step have the same randomness. Of what other methods keep, only what w's gradient made is kept.
    """
    by_gradient(optimizer, f"objective {name}")

    def init(key: Key) -> Params:
        params = learner.init(key)
        state = {
            "steps": jnp.zeros((), jnp.int32),
            "model": mixed(params),
            "optimizer": optimizer.init(params["trained"]),
        }
        return added(params, name, state)

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        gradient, others, metrics = learner.grad(params, batch, key)
        own, state = own_model(params, name), params["private"][name]
        towards, new, _ = learner.grad({**params, **own}, batch, key)
        if pull is not None:
            towards = add(towards, pull(own, params, batch, key))
        updates, memory = optimizer.update(towards, state["optimizer"], own["trained"])
        v: Any = optax.apply_updates(own["trained"], updates)
        if moved is not None:
            v = moved(v, params)
        model = {"trained": v, "carried": new["carried"]}
        kept = {**state, "steps": state["steps"] + 1, "model": model, "optimizer": memory}
        return gradient, added({**rest(params), **others}, name, kept), metrics

    return _answering(learner._replace(init=init, grad=grad), name)
