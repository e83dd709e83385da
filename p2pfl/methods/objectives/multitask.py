"""One trunk for several tasks: each node has its task, and shares a head with the nodes of the same task alone."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2pfl.data import Dataset
from p2pfl.errors import ConfigError
from p2pfl.learning.targets import ABSENT
from p2pfl.methods.masking import masked
from p2pfl.methods.objectives.label_shift import seen
from p2pfl.methods.objectives.objective import Objective, of_kinds
from p2pfl.methods.sharing import pattern
from p2pfl.tree import path_name
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree


def tasks(
    optimizer: optax.GradientTransformation,
    of: Sequence[int],
    groups: Sequence[Sequence[int]],
    heads: str | Sequence[str] = "**",
) -> Objective:
    """Multi-task learning with heads by task: node i has task `of[i]`, and `groups[t]` are the classes of task t.

    The model has one output for each class of all tasks. A node's loss, predictions and score see the outputs of its
    own task alone; test rows of other tasks have score and loss 0. The rest of the model, the trunk, is shared by all.
    A head's columns are mixed between nodes that both have its classes, and by nobody else (`p2pfl.methods.masking`):
    so the mean is kept, but a head is agreed on only among nodes of its task that are joined by edges between them.
    Neighbours learn the number of a node's task. `heads`: patterns of the leaves with a column (last axis) for each
    class; by default, all leaves whose last axis has that length. Keeps nothing. A joiner adopts its donor's head,
    which nobody has trained where the donor has another task. Source: Huang, Hu, Liu, Xue, Zhu, Song, Tan, "Federated
    multi-task learning for joint diagnosis of multiple mental disorders on MRI scans" (FMTLJD, 2023): its shared
    encoder with a head for each task. Its contrastive training of the encoder, its classifier, a mixture of experts
    with a gate for each task, and its weights of losses are left out: their formulas could not be read where this was
    written.

    Args:
        optimizer: of the experiment, or any of optax.
        of: [n] the task of each node.
        groups: of each task, its classes.
        heads: patterns of the leaves with a column for each class.

    Returns:
        The objective.

    Raises:
        ConfigError: a task has no classes; when applied, an algorithm without exchanges.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.tasks(optax.sgd(0.1), of=[0, 1], groups=[[0, 1], [2]]).given["task"].tolist()
        [0, 1]
    """
    sets = _sets(of, groups)
    patterns = [pattern(text) for text in ([heads] if isinstance(heads, str) else heads)]
    given = {"task": np.asarray(of, np.int32)}

    def mine(params: Params) -> Array:
        return jnp.asarray(sets)[_task(params)]

    def wrap(learner: Learner) -> Learner:
        def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
            return learner.grad(params, seen(batch, mine(params)), key)

        def evaluate(params: Params, batch: Tree, mask: Array) -> Metrics:
            classes = mine(params)
            return learner.evaluate(params, seen(batch, classes), jnp.where(classes[batch["y"]], mask, 0))

        def predict(params: Params, x: Array) -> Array:
            outputs = learner.predict(params, x)
            return jnp.where(jnp.broadcast_to(mine(params), outputs.shape), outputs, jnp.asarray(ABSENT, outputs.dtype))

        return learner._replace(grad=grad, evaluate=evaluate, predict=predict)

    def suits(dataset: Dataset) -> None:
        of_kinds("tasks", "classes")(dataset)
        if len(dataset.classes) != sets.shape[1]:
            raise ConfigError(
                f"objective tasks: groups names {sets.shape[1]} classes, and the data have {len(dataset.classes)}; "
                "each class must be in the group of a task"
            )

    def held(task: Array, like: Params) -> Params:
        """Mark what a node with this task holds: of heads, its own columns."""

        def leaf(path: tuple[object, ...], leaf: Array) -> Array:
            last = leaf.shape[-1] if leaf.ndim else 0
            if last != sets.shape[1] or not any(found.fullmatch(path_name(path)) for found in patterns):
                return jnp.ones((1,) * leaf.ndim, bool)
            return jnp.asarray(sets)[task].reshape(*(1,) * (leaf.ndim - 1), last)

        everything = jax.tree.map(lambda leaf: jnp.ones((1,) * leaf.ndim, bool), like["carried"])
        return {"trained": jax.tree_util.tree_map_with_path(leaf, like["trained"]), "carried": everything}

    mixing = masked("tasks", "the number of the task", _task, held)
    return Objective(wrap, mixing, given=given, suits=suits)


def _task(params: Params) -> Array:
    """[] int32: the number of the node's task."""
    found: Array = params["private"]["site"]["task"]
    return found


def _sets(of: Sequence[int], groups: Sequence[Sequence[int]]) -> np.ndarray:
    """[tasks, classes] bool: the classes of each task."""
    known = sorted({c for group in groups for c in group})
    if not groups or any(not group for group in groups) or known != list(range(len(known))):
        raise ConfigError(
            f"groups={[list(g) for g in groups]}: must name every class 0 .. C - 1 in the task that has it, and give "
            "each task one or more"
        )
    for i, task in enumerate(of):
        if not 0 <= task < len(groups):
            raise ConfigError(f"of={list(of)}: node {i} has task {task}; groups has tasks 0 to {len(groups) - 1}")
    found = np.zeros((len(groups), len(known)), bool)
    for task, group in enumerate(groups):
        found[task, list(group)] = True
    return found
