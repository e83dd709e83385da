"""One trunk for several tasks: each node has its task, and shares a head with the nodes of the same task alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2pfl.check import positive
from p2pfl.data import Dataset
from p2pfl.errors import ConfigError
from p2pfl.learning.local_steps import steps_in
from p2pfl.learning.targets import ABSENT
from p2pfl.methods import bulletin
from p2pfl.methods.bulletin import Bulletin
from p2pfl.methods.masking import Mask, masked
from p2pfl.methods.objectives.label_shift import seen
from p2pfl.methods.objectives.objective import Objective, of_kinds
from p2pfl.methods.sharing import pattern
from p2pfl.tree import path_name, scaled
from p2pfl.types import Algorithm, Array, Batches, Key, Learner, Metrics, Params, State, Steps, Tree

NAME, PARTS = "tasks", "tasks"
"""Of the method, and of the part of a model that has a part of its own for each task."""


def tasks(
    optimizer: optax.GradientTransformation,
    of: Sequence[int],
    groups: Sequence[Sequence[int]],
    heads: str | Sequence[str] = "**",
    temperature: float | None = None,
) -> Objective:
    """Multi-task learning with heads by task: node i has task `of[i]`, and `groups[t]` are the classes of task t.

    The model has one output for each class of all tasks. A node's loss, predictions and score see the outputs of its
    own task alone; test rows of other tasks have score and loss 0. The rest of the model, the trunk, is shared by all.
    A head's columns are mixed between nodes that both have its classes, and by nobody else (`p2pfl.methods.masking`):
    so the mean is kept, but a head is agreed on only among nodes of its task that are joined by edges between them.
    Neighbours learn the number of a node's task. `heads`: patterns of the leaves with a column (last axis) for each
    class; by default, all leaves whose last axis has that length. A model may have a
    part of its own for each task t, tasks/t: then these are the heads, whole. The built-in model "mmoe" has its gates
    there. A joiner adopts its donor's head, which nobody has trained where the donor has another task.

    With a `temperature` T the tasks have weights, which change from round to round (dynamic weight average): the
    gradient of a node with task t counts

        K e^(r_t / T) / sum over the K tasks u of e^(r_u / T),      r_u = L_u / L_u'

    times, L_u the mean of the training losses, in their latest round of local steps, of the nodes with task u, and L_u'
    in the one before that: a task that is slow to learn counts more. Every node tells all others these two losses of
    its own, in a bulletin along with the models. r is 1 until a task has two losses, and held within 0 and 2, so that
    whatever is told all weights lie between e^(-2 / T) and e^(2 / T). An optimizer that does not see how long a
    gradient is, such as Adam, does not see them.

    Source: Huang, Hu, Liu, Xue, Zhu, Song, Tan, "Federated multi-task learning for joint diagnosis of multiple mental
    disorders on MRI scans" (FMTLJD, 2023), whose formulas could not be read where this was written: an encoder that is
    trained contrastively (the objective `moon`), a classifier of experts with a gate for each task (the model "mmoe"),
    and weights of the tasks, which are here those of Liu, Johns, Davison, "End-to-end multi-task learning with
    attention" (2019).

    Args:
        optimizer: of the experiment, or any of optax.
        of: [n] the task of each node.
        groups: of each task, its classes.
        heads: patterns of the leaves with a column for each class.
        temperature: of the weights of tasks, > 0: the larger, the more alike; None: all tasks count alike.

    Returns:
        The objective.

    Raises:
        ConfigError: a task has no classes, or the temperature is out of bounds; when applied, an algorithm without
            exchanges, or a model with parts for another number of tasks.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.tasks(optax.sgd(0.1), of=[0, 1], groups=[[0, 1], [2]]).given["task"].tolist()
        [0, 1]
    """
    sets = _sets(of, groups)
    positive(temperature=1 if temperature is None else temperature)
    patterns = [pattern(text) for text in ([heads] if isinstance(heads, str) else heads)]

    def weights(params: Params) -> Array:
        rows, known = bulletin.heard(params, NAME)
        return task_weights(rows["losses"], known, np.asarray(of), len(sets), temperature or 1)

    def suits(dataset: Dataset) -> None:
        of_kinds("tasks", "classes")(dataset)
        if len(dataset.classes) != sets.shape[1]:
            raise ConfigError(
                f"objective tasks: groups names {sets.shape[1]} classes, and the data have {len(dataset.classes)}; "
                "each class must be in the group of a task"
            )

    mixing = masked(NAME, "the number of the task", _task, _heads(sets, patterns))
    given = {"task": np.asarray(of, np.int32)}
    if temperature is None:
        return Objective(lambda learner: _one_task(learner, sets), mixing, given=given, suits=suits)
    told = Bulletin(NAME, _losses, "its training losses of two rounds, to all nodes")
    return Objective(
        lambda learner: _one_task(learner, sets, weights),
        lambda inner: _telling(mixing(inner)),
        given=given, suits=suits, bulletin=told,
    )  # fmt: skip


def _one_task(learner: Learner, sets: np.ndarray, weights: Callable[[Params], Array] | None = None) -> Learner:
    """The learner that sees the outputs of the node's task. `weights`: of a model, how much each task counts."""
    _check_parts(learner, len(sets))

    def mine(params: Params) -> Array:
        return jnp.asarray(sets)[_task(params)]

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        gradient, others, metrics = learner.grad(params, seen(batch, mine(params)), key)
        return gradient if weights is None else scaled(gradient, weights(params)[_task(params)]), others, metrics

    def evaluate(params: Params, batch: Tree, mask: Array) -> Metrics:
        classes = mine(params)
        return learner.evaluate(params, seen(batch, classes), jnp.where(classes[batch["y"]], mask, 0))

    def predict(params: Params, x: Array) -> Array:
        outputs = learner.predict(params, x)
        return jnp.where(jnp.broadcast_to(mine(params), outputs.shape), outputs, jnp.asarray(ABSENT, outputs.dtype))

    return learner._replace(grad=grad, evaluate=evaluate, predict=predict)


def _heads(sets: np.ndarray, patterns: Sequence[re.Pattern[str]]) -> Mask:
    """The mask of what a node with a task holds: of heads its own columns, and of what lies apart for tasks its own."""

    def held(task: Array, like: Params) -> Params:
        apart = PARTS in like["trained"]

        def leaf(path: tuple[object, ...], leaf: Array) -> Array:
            name, last = path_name(path), leaf.shape[-1] if leaf.ndim else 0
            if apart and name.startswith(f"{PARTS}/"):
                return jnp.broadcast_to(task == int(name.split("/")[1]), (1,) * leaf.ndim)
            if apart or last != sets.shape[1] or not any(found.fullmatch(name) for found in patterns):
                return jnp.ones((1,) * leaf.ndim, bool)
            return jnp.asarray(sets)[task].reshape(*(1,) * (leaf.ndim - 1), last)

        everything = jax.tree.map(lambda leaf: jnp.ones((1,) * leaf.ndim, bool), like["carried"])
        return {"trained": jax.tree_util.tree_map_with_path(leaf, like["trained"]), "carried": everything}

    return held


def task_weights(losses: Array, known: Array, of: np.ndarray, tasks: int, temperature: float) -> Array:
    """The weight [tasks] of each task, by what nodes tell: losses [n, 2], latest first, of those that are `known` [n].

    `of`: [n or more] the task of each node. Weights have the mean 1.
    """
    ready = known & (losses[:, 1] > 0)
    member = jnp.asarray(of[: len(losses), None] == np.arange(tasks)) & ready[:, None]
    now, before = (jnp.where(member, losses[:, i, None], 0).sum(axis=0) for i in (0, 1))
    ratio = jnp.clip(jnp.where(before > 0, now / jnp.where(before > 0, before, 1), 1), 0, 2)
    return tasks * jax.nn.softmax(ratio / temperature)


def _losses(learner: Learner, x: tuple[int, ...]) -> Tree:
    dtype = jax.tree.leaves(jax.eval_shape(learner.init, jax.random.key(0))["trained"])[0].dtype
    return {"losses": jax.ShapeDtypeStruct((2,), dtype)}


def _telling(inner: Algorithm) -> Algorithm:
    """The algorithm whose nodes tell the mean loss of their local steps, and the one before it."""

    def local(state: State, batches: Batches, key: Key, steps: Steps | None) -> tuple[State, Metrics]:
        state, metrics = inner.local(state, batches, key, steps)
        if not steps_in(batches):
            return state, metrics
        params, loss = inner.params(state), metrics["loss"]
        rows, _ = bulletin.heard(params, NAME)
        mine = rows["losses"][jnp.argmax(bulletin.own(params)).astype(jnp.int32)]
        row = {"losses": jnp.stack([loss.astype(mine.dtype), mine[0]])}
        when = jnp.isfinite(loss) if steps is None else jnp.isfinite(loss) & (steps > 0)
        return inner.replaced(state, {**params, "private": bulletin.say(params, NAME, row, when)}), metrics

    return inner._replace(local=local, any_steps=False)


def _check_parts(learner: Learner, tasks: int) -> None:
    """Raises ConfigError where the model has parts for other tasks."""
    trained = jax.eval_shape(learner.init, jax.random.key(0))["trained"]
    parts = trained.get(PARTS) if isinstance(trained, dict) else None
    if isinstance(parts, dict) and [*map(str, parts)] != [*map(str, range(tasks))]:
        raise ConfigError(
            f"objective {NAME}: groups has {tasks} tasks, and the model has parts of their own for {len(parts)} "
            f"({', '.join(f'{PARTS}/{each}' for each in parts)}); give it the same groups"
        )


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
