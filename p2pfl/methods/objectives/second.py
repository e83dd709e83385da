"""A second network that is trained beside the model: a discriminator, a selector, a decoder.

It lies at params["trained"][NAME], so it travels and is mixed like the model, `algorithm.share` keeps it or parts of it
at home by its path (`NAME/**`), and the experiment's optimizer moves it. A method adds its gradient to what `beside`
makes, whose own is zero.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from p2pfl.errors import ConfigError
from p2pfl.learning.local_steps import rest
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree


def beside(learner: Learner, name: str, init: Callable[[Key], Tree]) -> Learner:
    """Put a second network beside the model of a learner, which learns, evaluates and predicts as without it.

    Args:
        learner: of the model.
        name: of the part of params["trained"] that holds the network.
        init: (key) -> a nested dict of its parameters.

    Returns:
        The learner whose models hold the network; its gradient is zero there.

    Raises:
        ConfigError: the model has a part of that name.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from p2pfl.learning.quadratic import learner
        >>> from p2pfl.methods.objectives.second import beside
        >>> both = beside(learner(2), "critic", lambda key: {"bias": jnp.zeros(3)})
        >>> sorted(jax.eval_shape(both.init, jax.random.key(0))["trained"])
        ['critic', 'x']
    """
    model = jax.eval_shape(learner.init, jax.random.key(0))["trained"]
    if not isinstance(model, dict) or name in model:
        raise ConfigError(f"objective: puts {name!r} beside the model, which has a part of that name; rename the part")

    def start(key: Key) -> Params:
        params = learner.init(key)
        second = init(jax.random.fold_in(key, sum(name.encode())))
        return {**params, "trained": {**params["trained"], name: second}}

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        gradient, others, metrics = learner.grad(alone(params, name), batch, key)
        zero = jax.tree.map(jnp.zeros_like, params["trained"][name])
        return {**gradient, name: zero}, rest(others), metrics

    def personal(params: Params) -> Params:
        assert learner.personal is not None
        own = learner.personal(alone(params, name))
        return {**own, "trained": {**own["trained"], name: params["trained"][name]}}

    def penalty(trained: Tree, first: Tree) -> Tree:
        assert learner.penalty is not None
        model, then = ({part: tree for part, tree in each.items() if part != name} for each in (trained, first))
        return {**learner.penalty(model, then), name: jax.tree.map(jnp.zeros_like, trained[name])}

    def look(params: Params, x: Array) -> tuple[Params, Array]:
        return alone(params, name), x

    return learner.viewed(look)._replace(
        init=start,
        grad=grad,
        personal=personal if learner.personal else None,
        penalty=penalty if learner.penalty else None,
    )


def alone(params: Params, name: str) -> Params:
    """The model without its second network of this name."""
    return {**params, "trained": {part: tree for part, tree in params["trained"].items() if part != name}}
