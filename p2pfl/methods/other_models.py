"""Nodes with models of unlike architecture, for a method that exchanges something else than models.

Every node has the arrays of all architectures, so that one program serves them all; it computes with its own and leaves
the others as they were drawn. Which is its own is the fact ARCHITECTURE of its site: its place among the learners.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree

ARCHITECTURE = "architecture"
"""Of params["private"]["site"]; a model that was given to no node is of the first."""


def together(learners: Sequence[Learner]) -> Learner:
    """Return the learner of nodes of which each has the model of one of these.

    Args:
        learners: of each architecture, for the same rows and outputs.

    Returns:
        The learner; params["trained"] and params["carried"] hold the parts of each by its place, "0", "1", ...

    Example:
        >>> import jax
        >>> from p2pfl.learning.quadratic import learner
        >>> from p2pfl.methods.other_models import together
        >>> sorted(jax.eval_shape(together([learner(2), learner(3)]).init, jax.random.key(0))["trained"])
        ['0', '1']
    """
    places = [str(i) for i in range(len(learners))]

    def own(params: Params, place: str) -> Params:
        return {**params, "trained": params["trained"][place], "carried": params["carried"][place]}

    def by_architecture(params: Params, does: Callable[[Learner, str, Params], Any]) -> Any:
        at = jnp.asarray(params.get("private", {}).get("site", {}).get(ARCHITECTURE, 0), jnp.int32)

        def branch(place: str, learner: Learner) -> Callable[[Params], Any]:
            return lambda params: does(learner, place, params)

        return jax.lax.switch(at, [branch(*pair) for pair in zip(places, learners, strict=True)], params)

    def init(key: Key) -> Params:
        made = [learner.init(key) for learner in learners]
        return {part: dict(zip(places, (each[part] for each in made), strict=True)) for part in ("trained", "carried")}

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        def one(learner: Learner, place: str, params: Params) -> tuple[Tree, Params, Metrics]:
            gradient, others, metrics = learner.grad(own(params, place), batch, key)
            nothing = jax.tree.map(jnp.zeros_like, params["trained"])
            carried = {**params["carried"], place: others["carried"]}
            return {**nothing, place: gradient}, {**others, "carried": carried}, metrics

        found: tuple[Tree, Params, Metrics] = by_architecture(params, one)
        return found

    def evaluate(params: Params, batch: Tree, mask: Array) -> Metrics:
        found: Metrics = by_architecture(
            params, lambda learner, place, params: learner.evaluate(own(params, place), batch, mask)
        )
        return found

    def predict(params: Params, x: Array) -> Array:
        found: Array = by_architecture(params, lambda learner, place, params: learner.predict(own(params, place), x))
        return found

    unroll = any(learner.unroll for learner in learners)
    return Learner(init, grad, evaluate, unroll, predict=predict)
