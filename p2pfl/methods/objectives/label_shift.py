"""Methods that know how the labels of a site differ from those of all."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from p2pfl.check import positive
from p2pfl.data import Dataset
from p2pfl.errors import ConfigError
from p2pfl.methods.objectives.objective import Objective, of_kinds
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree


def fedsld(optimizer: optax.GradientTransformation, bound: float = 10.0) -> Objective:
    """The loss of a sample of class c counts p(c) / p_i(c) times: as if every site had the labels of all.

    p: shares of the classes among all data, params["statistics"]["labels"] [C]; p_i: among the node's own, from
    params["private"]["site"]["labels"]. The weight is held within 1 / `bound` and `bound` > 1, and 1 until p is known.
    A class that a site lacks stays lacking, so the weights of such a site have a mean below 1; one that is too rare to
    be told of has weight 1. Multiplies weights that a batch already has. Keeps nothing; a joiner is given p with the
    model. For data with one class a row. Source: Luo, Wu, "FedSLD: federated learning with shared label distribution
    for medical image classification" (2022).

    Args:
        optimizer: of the experiment, or any of optax.
        bound: the largest weight of a sample, > 1.

    Returns:
        The objective.

    Raises:
        ConfigError: bound <= 1; when a model is made, the labels of all data are not gathered.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.fedsld(optax.sgd(0.1)).facts
        ('labels',)
    """
    if not bound > 1:
        raise ConfigError(f"bound={bound!r}: must be > 1")

    def wrap(learner: Learner) -> Learner:
        like = jax.eval_shape(learner.init, jax.random.key(0))
        if "labels" not in like.get("statistics", {}):
            raise ConfigError(
                'objective fedsld: nobody knows the labels of all data; set statistics.gather = ["labels"]'
            )

        def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
            dtype = jax.tree.leaves(params["trained"])[0].dtype
            weight = _ratio(params, bound).astype(dtype)[batch["y"]]
            if "weight" in batch:
                weight = batch["weight"].astype(dtype) * weight
            return learner.grad(params, {**batch, "weight": weight}, key)

        return learner._replace(grad=grad)

    return Objective(wrap, facts=("labels",), suits=of_kinds("fedsld", "classes"))


def class_weights(optimizer: optax.GradientTransformation, of: Sequence[float]) -> Objective:
    """The loss of a sample of class c counts of[c]: what a rare class is worth, the same at every site.

    Multiplies weights that a batch already has. Probabilities are then no longer those of the data: choose a threshold
    and look at the calibration. Keeps nothing. For data with one class a row.

    Args:
        optimizer: of the experiment, or any of optax.
        of: a weight for each class, in the order of the classes, > 0.

    Returns:
        The objective.

    Raises:
        ConfigError: a weight <= 0; for the data, weights of another number than the classes.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.class_weights(optax.sgd(0.1), of=[1, 5]).facts
        ()
    """
    for each in of:
        positive(of=each)

    def wrap(learner: Learner) -> Learner:
        def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
            dtype = jax.tree.leaves(params["trained"])[0].dtype
            weight = jnp.asarray(of, dtype)[batch["y"]]
            if "weight" in batch:
                weight = batch["weight"].astype(dtype) * weight
            return learner.grad(params, {**batch, "weight": weight}, key)

        return learner._replace(grad=grad)

    def suits(dataset: Dataset) -> None:
        of_kinds("class_weights", "classes")(dataset)
        if len(of) != len(dataset.classes):
            raise ConfigError(
                f"objective class_weights: of={list(of)!r}: {len(of)} weights for the classes "
                f"{', '.join(dataset.classes)}; give one for each"
            )

    return Objective(wrap, suits=suits)


def missing_classes(optimizer: optax.GradientTransformation) -> Objective:
    """Masked cross entropy: outputs of classes that a site lacks have no part in its loss, and no gradient.

    So a site does not teach the shared model that what it has never seen does not exist. Evaluation is as without: the
    model answers with all classes. Keeps nothing. For data with classes or labels.
    Source: Diao, Ding, Tarokh, "HeteroFL" (2021), section 3, masked cross entropy.

    Args:
        optimizer: of the experiment, or any of optax.

    Returns:
        The objective.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.missing_classes(optax.sgd(0.1)).facts
        ('labels',)
    """

    def wrap(learner: Learner) -> Learner:
        def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
            return learner.grad(params, seen(batch, params["private"]["site"]["labels"] > 0), key)

        return learner._replace(grad=grad)

    return Objective(wrap, facts=("labels",), suits=of_kinds("missing_classes", "classes", "labels"))


def seen(batch: Tree, classes: Array) -> Tree:
    """The batch whose loss sees the outputs of `classes` [C] bool alone, and of those that it has already seen."""
    return {**batch, "classes": batch["classes"] & classes if "classes" in batch else classes}


def _ratio(params: Params, bound: float) -> Array:
    """[C] p(c) / p_i(c) within the bound; 1 for classes that the site lacks or nobody tells of, and until then."""
    own, everybody = params["private"]["site"]["labels"], params["statistics"]["labels"]
    mine, all_ = own / jnp.maximum(own.sum(), 1), everybody / jnp.where(everybody.sum() > 0, everybody.sum(), 1)
    ratio = all_.astype(mine.dtype) / jnp.where(mine > 0, mine, 1)
    usable = (mine > 0) & (all_ > 0) & (params["statistics"]["known"] > 0)  # 0: too few anywhere to be told
    return jnp.where(usable, jnp.clip(ratio, 1 / bound, bound), 1)
