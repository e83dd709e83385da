"""Labels as a graph: a site's own graph network hears how labels go together there."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from p2pfl.check import at_least
from p2pfl.errors import ConfigError
from p2pfl.methods.objectives.objective import Objective, of_kinds
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree

NAME, PART, EDGES = "label_graph", "gnn", "pairs"


def label_graph(optimizer: optax.GradientTransformation, alone: int = 1, together: int = 2) -> Objective:
    """The graph network of the model "cnn_gnn" sees how labels go together at its site, and is trained in two stages.

        edge between labels a and b: shares of the site's training rows with both, neither, b alone, a alone

    With share = "split" the encoder is shared and each site has a graph network of its own, as in the source. Counts
    never leave the site. Of every `alone` + `together` local steps, the first `alone` have gradients of the graph
    network only, the others of all: the source's program trains the graph network alone for a third of each round, so
    local_steps should be a multiple. An optimizer with momentum moves the encoder on meanwhile, by what it remembers;
    the source starts a new one for each stage. Source: Chakravarty, Kar, Sethuraman, Sheet, "Federated learning for
    site aware chest radiograph screening" (2021), and the authors' program.

    Args:
        optimizer: of the experiment, or any of optax.
        alone: steps of the graph network alone, >= 0; 0: all is trained in every step.
        together: steps of the whole, >= 1.

    Returns:
        The objective, for data of several labels.

    Raises:
        ConfigError: an argument is out of bounds; when a model is made, it has no part "gnn" with "pairs".

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.label_graph(optax.sgd(0.1)).facts
        ('pairs',)
    """
    at_least(0, alone=alone)
    at_least(1, together=together)

    def wrap(learner: Learner) -> Learner:
        like = jax.eval_shape(learner.init, jax.random.key(0))
        if EDGES not in like["carried"].get(PART, {}):
            raise ConfigError(
                'objective label_graph: is for the model "cnn_gnn", whose part "gnn" has edges; leave it out'
            )

        def with_edges(carried: Tree, edges: Array) -> Tree:
            return {**carried, PART: {**carried[PART], EDGES: edges}}

        def seen(params: Params) -> Params:
            edges = params["private"]["site"]["pairs"].astype(params["carried"][PART][EDGES].dtype)
            return {**params, "carried": with_edges(params["carried"], edges)}

        def init(key: Key) -> Params:
            params = learner.init(key)
            return {**params, "private": {**params.get("private", {}), NAME: {"steps": jnp.zeros((), jnp.int32)}}}

        def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
            gradient, others, metrics = learner.grad(seen(params), batch, key)
            steps, private = params["private"][NAME]["steps"], others["private"]
            whole = steps % (alone + together) >= alone

            def kept(path: tuple[Any, ...], leaf: Array) -> Array:
                return leaf if getattr(path[0], "key", None) == PART else jnp.where(whole, leaf, 0)

            gradient = jax.tree_util.tree_map_with_path(kept, gradient)
            carried = with_edges(others["carried"], params["carried"][PART][EDGES])  # what a site counts is not mixed
            private = {**private, NAME: {"steps": steps + 1}}
            return gradient, {**others, "carried": carried, "private": private}, metrics

        return learner.viewed(lambda params, x: (seen(params), x))._replace(init=init, grad=grad)

    return Objective(wrap, facts=("pairs",), suits=of_kinds(NAME, "labels"))
