"""Low-rank adapters: kernels that stay as they are, and what is trained beside each, two thin matrices.

    W + (alpha / rank) A B          A [inputs, rank] drawn, B [rank, outputs] zero, W frozen

Source: Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, "LoRA: low-rank adaptation of large language models" (2021),
equation 3, for kernels [inputs, outputs] (there the transposed). A kernel [h, w, inputs, outputs] of a convolution is
taken as the matrix [h w inputs, outputs] that it is to a patch: a convolution with `rank` outputs, then one of 1 x 1.

Only adapters, and what is named to be trained whole, are trained, travel and are mixed. A and B are mixed each by
itself, and the mean of products is not the product of means: between two nodes, mean(A B) = mean(A) mean(B) + (A_1 -
A_2) (B_1 - B_2) / 4, so that mixing moves a model by what their difference is worth, which falls as they agree, and the
mean of the models that `keeps_mean` speaks of is that of A and of B. With `freeze_a` A is the same at all nodes, and
mixing B is mixing the models, exactly (Sun, Li, Li, Ding, "Improving LoRA in privacy-preserving federated learning",
2024: FFA-LoRA), for half of what can be learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from p2pfl import tree
from p2pfl.check import at_least, positive
from p2pfl.errors import ConfigError
from p2pfl.methods.freezing import freeze
from p2pfl.methods.sharing import Predicate, leaves, matching
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree

KERNEL, A, B = "w", "a", "b"
"""What a leaf that is adapted becomes: the leaf itself, and its two factors."""


def lora(
    learner: Learner,
    rank: int,
    alpha: float | None = None,
    matched: Sequence[str] = ("**/kernel",),
    train: Sequence[str] = (),
    freeze_a: bool = False,
) -> Learner:
    """Freeze a model, and train adapters of its kernels.

    Source: Hu et al. (2021), see the head of this file. A is normal with variance 1 / inputs, which the paper leaves
    open. A step computes the gradient of the whole kernel, and of it those of A and B: what is saved are bytes and
    the optimizer's memory, not time.

    Args:
        learner: of the whole model.
        rank: of the product A B, >= 1.
        alpha: what the product counts, over the rank, > 0; None: the rank, so that it counts once.
        matched: patterns of kernels that get adapters, as in p2pfl.methods.predicate.
        train: patterns of leaves that are trained whole, batch statistics included.
        freeze_a: A stays as it is drawn, the same at all nodes.

    Returns:
        The learner, whose kernels KERNEL lie as KERNEL/a and KERNEL/b in params["trained"].

    Raises:
        ConfigError: a number is out of bounds, a pattern matches nothing, or an adapter would be no smaller than what
            it adapts.

    Example:
        >>> import jax, numpy as np, p2pfl
        >>> whole = p2pfl.from_flax(p2pfl.learning.models.mlp((64,), 10), np.zeros((1, 64), np.float32), 10)
        >>> thin = p2pfl.methods.lora(whole, rank=2, train=["layers/1/**"])
        >>> [*p2pfl.tree.named_leaves(jax.eval_shape(thin.init, jax.random.key(0))["trained"])]
        ['layers/0/kernel/a', 'layers/0/kernel/b', 'layers/1/bias', 'layers/1/kernel']
    """
    at_least(1, rank=rank)
    positive(alpha=rank if alpha is None else alpha)
    factor = (rank if alpha is None else alpha) / rank
    like = jax.eval_shape(learner.init, jax.random.key(0))
    whole = whole_of(train, leaves(like))
    shapes = _chosen(like["trained"], rank, matched, whole)

    def adapted(trained: Tree, key: Key) -> Tree:
        keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))

        def leaf(path: str, kernel: Array) -> Tree:
            inputs, outputs = shapes[path]
            drawn = jax.random.normal(keys[path], (inputs, rank), kernel.dtype)
            return {KERNEL: kernel, A: drawn * inputs**-0.5, B: jnp.zeros((rank, outputs), kernel.dtype)}

        return _at(trained, shapes, leaf)

    def merged(trained: Tree) -> Tree:
        def leaf(path: str, parts: Tree) -> Array:
            return parts[KERNEL] + factor * (parts[A] @ parts[B]).reshape(parts[KERNEL].shape)

        return _at(trained, shapes, leaf)

    def plain(params: Params) -> Params:
        return {**params, "trained": merged(params["trained"])}

    def init(key: Key) -> Params:
        params = learner.init(key)
        return {**params, "trained": adapted(params["trained"], jax.random.fold_in(key, _DRAW))}

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        trained, back = jax.vjp(merged, params["trained"])
        gradient, others, metrics = learner.grad({**params, "trained": trained}, batch, key)
        return back(gradient)[0], others, metrics

    def frozen(path: str) -> bool:
        home, _, last = path.rpartition("/")
        if home in shapes:
            return last == KERNEL or (last == A and freeze_a)
        return not whole(path)

    def look(params: Params, x: Array) -> tuple[Params, Array]:
        return plain(params), x

    return freeze(learner.viewed(look)._replace(init=init, grad=grad, plain=plain), frozen)


_DRAW = 0x10A
"""Folded into the key of a first model for A, so that all else is drawn as without."""


def whole_of(train: Sequence[str], paths: Sequence[str] | None) -> Predicate:
    """Return whether a leaf is trained whole, by its path. Raises ConfigError for a pattern that matches nothing."""
    return matching(train, paths, "lora.train") if train else lambda path: False


def _chosen(trained: Tree, rank: int, matched: Sequence[str], whole: Predicate) -> dict[str, tuple[int, int]]:
    """The kernels that are adapted, as matrices: path -> (inputs, outputs). Raises ConfigError."""
    kernels = {path: leaf.shape for path, leaf in tree.named_leaves(trained).items() if leaf.ndim > 1}
    left = [path for path in kernels if not whole(path)]
    chosen = matching(matched, left, "lora.matching")
    found = {path: (math.prod(kernels[path][:-1]), kernels[path][-1]) for path in left if chosen(path)}
    if not found:
        raise ConfigError(
            f"lora.matching={[*matched]}: leaves no kernel to adapt; there are {', '.join(left) or 'none'}"
        )
    for path, (inputs, outputs) in found.items():
        if rank * (inputs + outputs) >= inputs * outputs:
            raise ConfigError(
                f"lora.rank={rank}: an adapter of {path} has {rank * (inputs + outputs)} numbers, and the kernel, "
                f"{inputs} x {outputs}, {inputs * outputs}; lower the rank, train it whole (lora.train), or leave it "
                "out of lora.matching"
            )
    return found


def _at(whole: Tree, paths: Collection[str], change: Callable[[str, Any], Any], at: str = "") -> Any:
    """A nested dict in which what lies at these paths is changed."""
    if at in paths:
        return change(at, whole)
    if not isinstance(whole, dict):
        return whole
    return {name: _at(part, paths, change, f"{at}/{name}" if at else str(name)) for name, part in whole.items()}
