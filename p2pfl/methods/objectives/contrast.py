"""Models pulled towards what all have, and pushed off what each had before: of parameters FedMRI, of features MOON."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2pfl.check import at_least, positive
from p2pfl.errors import ConfigError, nearest
from p2pfl.learning.local_steps import steps_in
from p2pfl.methods.alongside import added
from p2pfl.methods.objectives.objective import Objective, finder
from p2pfl.methods.sharing import whole
from p2pfl.tree import add, is_model, mixed, named_leaves, scaled
from p2pfl.types import (
    Algorithm,
    Array,
    Batches,
    Inbox,
    Key,
    Learner,
    Metrics,
    Neighborhood,
    Params,
    State,
    Steps,
    Tree,
)  # fmt: skip

NAME, MOON = "fedmri", "moon"
LEAST = 1e-3
"""Length below which features count as that long, where an angle between them is taken."""


def fedmri(
    optimizer: optax.GradientTransformation, strength: float = 0.01, part: str = "encoder", neighbors: int = 2
) -> Objective:
    """The shared encoder w is trained on f(w) + strength R(w), the weighted contrastive regulariser of FedMRI.

        R(w) = |w - g| / sum over k of |w - w_k|,      |.| the sum of absolute values over all parameters of the encoder

    g is the encoder that the round began with: what a server would have averaged is here what the node has mixed. The
    w_k are encoders before that mixing: the node's own, and those that came from the first `neighbors` of its
    neighbours (in the order of their numbers); of the paper's clients, those that a node hears of. There is no R before
    the first mixing, and none where it moved nothing. Use it with `share = "split"`, by which decoders stay at home:
    both together are FedMRI, of which there is the half in image space; the paper runs a second network on k-space, and
    tells no more of it. What is kept, 2 + `neighbors` encoders, is private.
    Source: Feng, Yan, Wang, Xu, Shao, Fu, "Specificity-preserving federated learning for MR image reconstruction"
    (2023), section III.C; the sums are those of the authors' program (github.com/chunmeifeng/FedMRI, engine.py).

    Args:
        optimizer: of the experiment, or any of optax.
        strength: of R, which has no unit, >= 0.
        part: of the model, by name, all of which must be shared.
        neighbors: how many neighbours' encoders are kept, >= 0.

    Returns:
        The objective.

    Raises:
        ConfigError: an argument is out of bounds; when applied, the model has no such part, not all of it is shared, or
            the algorithm sends something else than models (then `neighbors` must be 0).

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.fedmri(optax.sgd(0.1), strength=0.1).facts
        ()
    """
    at_least(0, strength=strength, neighbors=neighbors)

    def learner(inner: Learner) -> Learner:
        return _regularised(inner, strength, part, neighbors)

    return Objective(learner, lambda inner: _remembering(inner, part, neighbors))


def _regularised(inner: Learner, strength: float, part: str, neighbors: int) -> Learner:
    """The learner with R in its gradient, from what its model remembers."""
    model = jax.eval_shape(inner.init, jax.random.key(0))["trained"]
    if part not in model:
        raise ConfigError(f"objective {NAME}: part={part!r}: {nearest(part, [*map(str, model)])}")

    def init(key: Key) -> Params:
        params = inner.init(key)
        encoder = params["trained"][part]
        before = jax.tree.map(lambda leaf: jnp.zeros((1 + neighbors, *leaf.shape), leaf.dtype), encoder)
        memory = {"start": encoder, "before": before, "known": jnp.zeros((1 + neighbors,), jnp.int32)}
        return {**params, "private": {**params.get("private", {}), NAME: memory}}

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        gradient, others, metrics = inner.grad(params, batch, key)
        memory = params["private"][NAME]
        step = jax.value_and_grad(lambda encoder: contrast(encoder, **memory))
        value, towards = step(params["trained"][part])
        pull = jax.tree.map(lambda leaf: jnp.asarray(strength, leaf.dtype) * leaf, towards)
        loss = metrics["loss"] + jnp.asarray(strength, value.dtype) * value
        return {**gradient, part: add(gradient[part], pull)}, others, {**metrics, "loss": loss}

    return inner._replace(init=init, grad=grad)


def contrast(encoder: Tree, start: Tree, before: Tree, known: Array) -> Array:
    """R of `fedmri`: [], 0 where nothing is known. `before`: leading axis k, of which those count that are `known`."""
    near = sum(_absolute(w - g).sum() for w, g in zip(*map(jax.tree.leaves, (encoder, start)), strict=True))

    def off(w: Array, others: Array) -> Array:
        each = _absolute(w[None] - others).reshape(len(others), -1).sum(axis=1)
        return jnp.where(known > 0, each, 0).sum()

    far = sum(off(w, others) for w, others in zip(*map(jax.tree.leaves, (encoder, before)), strict=True))
    there = far > 0
    return jnp.where(there, near / jnp.where(there, far, 1), jnp.zeros_like(far))


def _absolute(x: Array) -> Array:
    """|x|, whose gradient at 0 is 0: where an encoder has not moved yet, nothing pulls."""
    return x * jax.lax.stop_gradient(jnp.sign(x))


def _remembering(inner: Algorithm, part: str, neighbors: int) -> Algorithm:
    """The algorithm that remembers the encoder of the round's beginning, and those before the last mixing."""
    _judge(inner, part)

    def put(state: State, memory: Tree) -> State:
        params = inner.params(state)
        return inner.replaced(state, {**params, "private": {**params["private"], NAME: memory}})

    def local(state: State, batches: Batches, key: Key, steps: Steps | None) -> tuple[State, Metrics]:
        params = inner.params(state)
        memory = {**params["private"][NAME], "start": params["trained"][part]}
        return inner.local(put(state, memory), batches, key, steps)

    def mix(state: State, inbox: Inbox, neighborhood: Neighborhood) -> State:
        params = inner.params(state)
        memory, own = params["private"][NAME], params["trained"][part]
        seen = min(neighbors, inbox.arrived.shape[0])
        if seen and not is_model(inbox.received):
            raise ConfigError(
                f"objective {NAME}: {inner.name} sends something else than models, or an objective before this one "
                "adds to them; give this one first, or neighbors = 0"
            )
        arrived = jnp.concatenate([jnp.ones(1, bool), inbox.arrived[:seen], jnp.zeros(neighbors - seen, bool)])
        theirs = inbox.received["trained"][part] if seen else jax.tree.map(lambda leaf: leaf[None][:0], own)

        def newer(old: Array, own: Array, theirs: Array) -> Array:
            new = jnp.concatenate([own[None], theirs[:seen].astype(own.dtype), old[1 + seen :]])
            return jnp.where(arrived.reshape(-1, *(1,) * own.ndim), new, old)

        before = jax.tree.map(newer, memory["before"], own, theirs)
        known = jnp.maximum(memory["known"], arrived.astype(memory["known"].dtype))
        return put(inner.mix(state, inbox, neighborhood), {**memory, "before": before, "known": known})

    return inner._replace(local=local, mix=mix, linear=False)


def _judge(inner: Algorithm, part: str) -> None:
    """Raises ConfigError where not all of the part is shared."""
    if inner.learner is None:
        return
    params = jax.eval_shape(inner.learner.init, jax.random.key(0))
    whole, shared = params["private"][NAME]["start"], params["trained"].get(part)
    if shared is None or [*named_leaves(shared)] != [*named_leaves(whole)]:
        raise ConfigError(f'objective {NAME}: all of {part!r} must be shared; use algorithm.share = "split"')


# --- of features


def moon(
    optimizer: optax.GradientTransformation, strength: float | Sequence[float] = 1.0, temperature: float = 0.5
) -> Objective:
    """Features become like those of the model that all have, and unlike those of the node's own before it was mixed.

        f(w) + strength_i C(w),    C(w) = mean over rows of  -log(e^(s(w, g) / t) / (e^(s(w, g) / t) + e^(s(w, b) / t)))

    s(w, v) is the cosine of a row's features by the models w and v; g is the model that the round began with, which is
    what mixing has made, b what the node's latest local steps left before that mixing, t the `temperature`. There is
    no C before the first mixing. g and b are frozen: their features are those of evaluation, those of w of training.
    The features are what the model's last part takes in, without the projection that the source puts behind them. Both
    models are kept, at home; nothing more travels. Where nothing is mixed g is b, and C has no gradient.

    It also stands for the encoder of FMTLJD, whose formulas could not be read where this was written: a "federated
    contrastive learning-based feature extractor", with loss weights that are said to vary from client to client (give
    `strength` a number for each node). Sources: Li, He, Song, "Model-contrastive federated learning" (MOON, 2021);
    Huang, Hu, Liu, Xue, Zhu, Song, Tan, "Federated multi-task learning for joint diagnosis of multiple mental disorders
    on MRI scans" (FMTLJD, 2023).

    Args:
        optimizer: of the experiment, or any of optax.
        strength: of C, >= 0; for all nodes, or [n] of each.
        temperature: > 0.

    Returns:
        The objective.

    Raises:
        ConfigError: an argument is out of bounds; when applied, the model does not say what its features are.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.moon(optax.sgd(0.1), strength=[1, 5]).given["moon"].tolist()
        [1.0, 5.0]
    """
    positive(temperature=temperature)
    each = strength if isinstance(strength, Sequence) else None
    for one in [strength] if each is None else each:
        at_least(0, strength=one)  # type: ignore[arg-type]

    def of(params: Params) -> Array:
        return jnp.asarray(strength) if each is None else params["private"]["site"][MOON]

    def learner(inner: Learner) -> Learner:
        find = finder(MOON, inner)

        def init(key: Key) -> Params:
            params = inner.init(key)
            return added(
                params, MOON, {"start": mixed(params), "before": mixed(params), "known": jnp.zeros((), jnp.int32)}
            )

        def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
            gradient, others, metrics = inner.grad(params, batch, key)
            memory = params["private"][MOON]
            near, far = (find({**params, **memory[name]}, batch["x"], None)[0] for name in ("start", "before"))

            def apart(trained: Tree) -> Array:
                return contrastive(find({**params, "trained": trained}, batch["x"], key)[0], near, far, temperature)

            value, towards = jax.value_and_grad(apart)(params["trained"])
            by = jnp.where(memory["known"] > 0, of(params).astype(value.dtype), 0)
            return add(gradient, scaled(towards, by)), others, {**metrics, "loss": metrics["loss"] + by * value}

        return inner._replace(init=init, grad=grad)

    given = {} if each is None else {MOON: np.asarray(each, np.float32)}
    return Objective(learner, _recalling, given=given)


def contrastive(features: Array, near: Array, far: Array, temperature: float) -> Array:
    """C of `moon`: [], of features [B, ...] of a model, and of the two that it is compared with."""

    def direction(x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        return x / jnp.sqrt((x**2).sum(axis=1, keepdims=True) + jnp.asarray(LEAST**2, x.dtype))

    mine = direction(features)
    like, unlike = ((mine * direction(other)).sum(axis=1) / temperature for other in (near, far))
    return jax.nn.softplus(unlike - like).mean()


def _recalling(inner: Algorithm) -> Algorithm:
    """The algorithm that remembers the model that a round begins with, and the one that its local steps leave."""

    def local(state: State, batches: Batches, key: Key, steps: Steps | None) -> tuple[State, Metrics]:
        if not steps_in(batches):
            return inner.local(state, batches, key, steps)
        params = inner.params(state)
        memory = params["private"][MOON]
        begun = inner.replaced(state, added(params, MOON, {**memory, "start": mixed(whole(params))}))
        after, metrics = inner.local(begun, batches, key, steps)
        params, trained = inner.params(after), jnp.asarray(True) if steps is None else steps > 0
        left = {**params["private"][MOON], "before": mixed(whole(params)), "known": jnp.ones((), jnp.int32)}
        kept = jax.tree.map(lambda new, old: jnp.where(trained, new, old), left, memory)
        return inner.replaced(after, added(params, MOON, kept)), metrics

    return inner._replace(local=local, any_steps=False)
