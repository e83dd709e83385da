"""A shared encoder that is pulled towards what all have, and pushed off what each had before: FedMRI."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from p2pfl.check import at_least
from p2pfl.errors import ConfigError, nearest
from p2pfl.methods.objectives.objective import Objective
from p2pfl.tree import add, is_model, named_leaves
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

NAME = "fedmri"


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
