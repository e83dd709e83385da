"""The type of an objective, apart from the table of them, so that others can bring their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl import tree
from p2pfl.data import Dataset
from p2pfl.errors import USER_FAULTS, ConfigError
from p2pfl.learning.flax import reason
from p2pfl.methods.bulletin import Bulletin
from p2pfl.methods.compose import Wrap
from p2pfl.types import Array, Features, Key, Learner, Params


class Slices(NamedTuple):
    """Nodes whose models are slices of a whole one (p2pfl.tree.cut), by level; level 0 is the whole.

    Where all nodes lie in arrays of one shape, the objective's own `learner` and `around` stand for them all.
    """

    levels: tuple[int, ...]  # of each node
    learners: tuple[Callable[[Learner], Learner], ...]  # what is done to the learner of the nodes of each level
    stretches: Callable[[Params], tree.Stretches]  # of the shapes of the whole model


class Objective(NamedTuple):
    """A method: what it does to the learner, and where it needs that, to the algorithm.

    `shaped`: what it does to the learner, given the shape of a row of the data too.
    `facts`: what it asks to know of each site, names of p2pfl.methods.site_facts.FACTS, then found
    in params["private"]["site"].
    `given`: the same, where the experiment says it for each node: name -> [n, ...].
    `suits`: raises ConfigError for data that it can't be used with.
    `bulletin`: what nodes tell all others of themselves for it; then params["private"]["site"]["node"] [n] is 1 at
    the place of the node itself among those planned, else 0.
    `around`: what it asks of the algorithm with all combinators, where all nodes lie in arrays of one shape.
    `slices`: where nodes have models of unequal shapes.
    `ahead`: local steps that a node takes before the method does anything to its model: it learns something else first.
    Such a method is refused where nobody would take more, and where models are chosen by validation rows meanwhile.
    `awaits`: nodes whose local steps it waits for, without which it never begins; None: all that are planned.
    `shown`: makes the method that has rows [N, ...] which are public, where it asks for such; without them it knows the
    shapes of its models alone, which is enough to use one. It exchanges no models, so those of nodes may differ.
    """

    learner: Callable[[Learner], Learner] | None = None
    wrap: Wrap | None = None
    facts: tuple[str, ...] = ()
    given: Mapping[str, np.ndarray] = MappingProxyType({})
    suits: Callable[[Dataset], None] | None = None
    bulletin: Bulletin | None = None
    around: Wrap | None = None
    slices: Slices | None = None
    shaped: Callable[[Learner, tuple[int, ...]], Learner] | None = None
    ahead: int = 0
    awaits: tuple[int, ...] | None = ()
    shown: Callable[[np.ndarray], Objective] | None = None


def finder(name: str, learner: Learner) -> Features:
    """The function that finds the features; `name`: of the method. Raises ConfigError where the model has none."""
    if learner.features is None:
        raise ConfigError(
            f"objective {name}: works on features, and the model does not say what they are; give it a method "
            "features(x) that returns what its last part takes in"
        )
    return learner.features


def featured(name: str, learner: Learner, x: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """The features [1, ...] of one row of x, of this shape; `name`: of the method. Raises ConfigError."""
    find = finder(name, learner)

    def first(key: Key) -> Array:
        params = learner.init(key)
        return find(params, jnp.zeros((1, *x), jax.tree.leaves(params["trained"])[0].dtype), None)[0]

    try:
        found = jax.eval_shape(first, jax.random.key(0))
    except USER_FAULTS as error:
        raise ConfigError(f"objective {name}: the model's method features(x) failed: {reason(error)}") from error
    if not isinstance(found, jax.ShapeDtypeStruct) or found.shape[:1] != (1,):
        raise ConfigError(
            f"objective {name}: the model's method features(x) must return one array, with a row for each of x"
        )
    return found


def of_kinds(name: str, *kinds: str) -> Callable[[Dataset], None]:
    """`suits` of a method for data of these kinds alone."""

    def suits(dataset: Dataset) -> None:
        if dataset.kind not in kinds:
            raise ConfigError(
                f"objective {name}: is for data of kind {' or '.join(kinds)}, and these are of kind {dataset.kind}; "
                "leave it out"
            )

    return suits
