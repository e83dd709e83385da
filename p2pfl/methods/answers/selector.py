"""A choice among the personal models of sites, row by row: where does this image come from?

The selector, which the objective `selector` has trained by gossip, looks at what a row is like, not at what it shows; a
row that looks surely like one site's is answered by the personal model of that site, any other by the shared model.
Each node chooses by its own selector, among the personal models that are there: a process that has all nodes (a
simulation, and `p2pfl run` at its end) has those of all, a node by itself has its own and no other, so that a row is
answered by it where the row surely looks like the node's own, and by the shared model else.

Source: Xu, Li, Guo, Yang, Roth, Hatamizadeh, Zhao, Xu, Huang, Xu, "Closing the generalization gap of cross-silo
federated medical image segmentation" (FedSM, 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl.check import share
from p2pfl.errors import ConfigError
from p2pfl.methods import appearance
from p2pfl.types import Learner, Params

SHARED = -1
"""The choice of the shared model."""
GAMMA = 0.9
"""The source's: a site's model answers where its probability is above this."""


class Selector(NamedTuple):
    """`choose(x [N, ...]) -> [N] int`: the site whose personal model answers, or SHARED. `predict(shared, x) ->
    outputs`, `shared` being the model that answers for all others."""

    choose: Callable[[np.ndarray], np.ndarray]
    predict: Callable[[Params, np.ndarray], np.ndarray]


def check(learner: Learner) -> None:
    """Raises ConfigError for a learner that trains no selector."""
    like = jax.eval_shape(learner.init, jax.random.key(0))
    if appearance.SELECTOR not in like.get("private", {}):
        raise ConfigError(
            "answers='selector': nothing trains a selector of sites; add the objective selector, and one that brings "
            "personal models, such as soft_pull"
        )


def selector(learner: Learner, params: Params, personals: Mapping[int, Params], gamma: float = GAMMA) -> Selector:
    """The choice of a node among the personal models that are there.

    `params`: the node's model, which holds its selector. `personals`: by node. `gamma`, 0 <= gamma < 1: a site's model
    answers where its probability is above this. Raises ConfigError.
    """
    share(gamma=gamma)
    find, run = jax.jit(lambda x: appearance.likely(params, x)), jax.jit(learner.predict)
    there = np.array(sorted(personals), np.int64)

    def choose(x: np.ndarray) -> np.ndarray:
        if not len(x):
            return np.zeros(0, np.int64)
        probability = np.asarray(find(jnp.asarray(x)))
        best = probability.argmax(axis=1)
        return np.where((probability.max(axis=1) > gamma) & np.isin(best, there), best, SHARED)

    def answer(shared: Params, x: np.ndarray) -> np.ndarray:
        chosen, whole = choose(x), jnp.asarray(x)
        outputs = np.array(run(shared, whole))
        for i in np.unique(chosen[chosen != SHARED]).tolist():
            outputs[chosen == i] = np.asarray(run(personals[i], whole))[chosen == i]
        return outputs

    return Selector(choose, answer)
