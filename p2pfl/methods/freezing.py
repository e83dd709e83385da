"""Freezing: leaves of a model that no step changes and no message holds.

    freeze = ["encoder/**"]              what matches stays as the first model has it

A frozen leaf lies in params["private"]["frozen"], at every node the same from the first model on. Algorithms,
optimizers and objectives see a smaller model: weight decay and momenta do not reach it, and its bytes are not sent. A
leaf is named as in p2pfl.methods.sharing, batch statistics included.
"""

from __future__ import annotations

import jax

from p2pfl import tree
from p2pfl.errors import ConfigError
from p2pfl.learning.local_steps import rest
from p2pfl.methods.sharing import Predicate, leaves, parted, together
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree

FROZEN = "frozen"
"""Where the leaves lie, in params["private"]."""


def freeze(learner: Learner, frozen: Predicate) -> Learner:
    """Keep leaves of a model as they are.

    A batch normalisation whose statistics are frozen must normalise by them in training, too, for what is trained
    behind it to see what it will see in use: that is the model's own doing, see `still` of p2pfl.learning.from_flax.

    Args:
        learner: of the whole model.
        frozen: (path of a leaf) -> whether it is frozen.

    Returns:
        The learner whose models keep these leaves in params["private"].

    Raises:
        ConfigError: nothing with a gradient is left to train.

    Example:
        >>> import jax, numpy as np, p2pfl
        >>> make = p2pfl.learning.models.cnn((8, 8, 1), 2)
        >>> whole = p2pfl.from_flax(make, np.zeros((1, 8, 8, 1), np.float32), 2)
        >>> part = p2pfl.methods.freeze(whole, lambda path: path.startswith("blocks/"))
        >>> [*jax.eval_shape(part.init, jax.random.key(0))["trained"]]
        ['head']
    """
    like = jax.eval_shape(learner.init, jax.random.key(0))
    if all(frozen(path) for path in tree.named_leaves(like["trained"])):
        raise ConfigError(
            f"freeze: leaves nothing to train; the leaves are {', '.join(leaves(like))}. A node that only mixes has "
            "training.node_steps 0"
        )

    def moves(path: str) -> bool:
        return not frozen(path)

    def whole(params: Params) -> Params:
        private = dict(params["private"])
        still = private.pop(FROZEN)
        return {**params, **together(params, still), "private": private}

    def init(key: Key) -> Params:
        params = learner.init(key)
        moving, still = parted(params, moves)
        return {**params, **moving, "private": {**params.get("private", {}), FROZEN: still}}

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        gradient, others, metrics = learner.grad(whole(params), batch, key)
        moving, _ = parted({"trained": gradient, "carried": others["carried"]}, moves)
        private = {**others.get("private", {}), FROZEN: params["private"][FROZEN]}
        return moving["trained"], {**rest(others), "carried": moving["carried"], "private": private}, metrics

    def look(params: Params, x: Array) -> tuple[Params, Array]:
        return whole(params), x

    plain, find = learner.plain, learner.features

    def features(params: Params, x: Array, key: Key | None) -> tuple[Array, Tree]:
        assert find is not None
        found, carried = find(whole(params), x, key)
        return found, parted({**params, "carried": carried}, moves)[0]["carried"]

    return learner.viewed(look)._replace(
        init=init, grad=grad, features=features if find else None,
        plain=whole if plain is None else lambda params: plain(whole(params)),
    )  # fmt: skip
