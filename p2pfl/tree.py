"""Arithmetic on pytrees of arrays, and what the wire and the ledger need to know of one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl.types import Array, Key, Params, Tree

SKETCH = 64
"""Length of a sketch; the relative standard deviation of a squared norm taken from one is sqrt(2 / SKETCH)."""


def add(a: Tree, b: Tree) -> Tree:
    """a + b, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def subtract(a: Tree, b: Tree) -> Tree:
    """a - b, leaf by leaf."""
    return jax.tree.map(jnp.subtract, a, b)


def scaled(tree: Tree, by: Array) -> Tree:
    """tree * by [], leaf by leaf, in each leaf's dtype."""
    return jax.tree.map(lambda leaf: leaf * by.astype(leaf.dtype), tree)


def drawn(init: Callable[[Key], Tree]) -> Tree:
    """Return the shapes and dtypes of what `init` makes of a random key: nothing is computed, and nothing compiled."""
    return jax.eval_shape(lambda: init(jax.random.key(0)))


def size(tree: Tree) -> int:
    """Number of scalars."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def nbytes(tree: Tree) -> int:
    """Bytes of all leaves."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def is_model(tree: Tree) -> bool:
    """Return whether this part of a payload is a model."""
    return isinstance(tree, dict) and "trained" in tree and "carried" in tree


def mixed(params: Params) -> Params:
    """The parts of a model that are mixed."""
    return {part: params[part] for part in ("trained", "carried") if part in params}


def unmixed(params: Params) -> Params:
    """All other parts."""
    return {part: tree for part, tree in params.items() if part not in ("trained", "carried")}


def public(params: Params) -> Params:
    """The parts of a model that others may have: what a node that joins is given."""
    return {part: tree for part, tree in params.items() if part != "private"}


def consensus_distance(models: Sequence[Params]) -> float:
    """(1/n) sum_i ||x_i - mean||^2 over models, in float64."""
    leaves = [np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(m)]) for m in models]
    return spread(np.stack(leaves))


def spread(rows: np.ndarray) -> float:
    """(1/n) sum_i ||x_i - mean||^2 over rows [n, D]."""
    return float(((rows - rows.mean(axis=0)) ** 2).sum(axis=1).mean())


def finite(tree: Tree) -> bool:
    """Return whether no leaf holds NaN or infinity; of arrays in host memory.

    The sum is finite in nearly every case and costs one pass without a temporary.
    """
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(leaf)
        if array.dtype.kind in "iub":
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            if not np.isfinite(array.sum()) and not np.isfinite(array).all():
                return False
    return True


def finite_parts(tree: Tree, axes: int = 0) -> Array:
    """Return the same for each entry of the first `axes` axes, as [...] bool, in a compiled program.

    The largest magnitude is NaN where one number is: half the cost of asking each on XLA:CPU.
    """
    result: Array = jnp.ones(jax.tree.leaves(tree)[0].shape[:axes] if axes else (), bool)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            result &= jnp.isfinite(jnp.abs(leaf).max(axis=tuple(range(axes, leaf.ndim)), initial=0))
    return result


def plain(value: Any) -> Any:
    """Return a value for JSON with None for each float that is not finite: JSON has no word for it."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's path as text: `trained/hidden/0/kernel`."""
    return "/".join(str(getattr(p, "key", getattr(p, "idx", getattr(p, "name", p)))) for p in path)


def named_leaves(tree: Tree) -> dict[str, Any]:
    """Leaves by path, in the tree's own order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def before_model(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The names on the way to a leaf, as far as the part of a model that it is in: names of layers are not among them.

    >>> jax.tree_util.tree_flatten_with_path({"told": {"trained": {"own": 1}}})[0][0][0]
    (DictKey(key='told'), DictKey(key='trained'), DictKey(key='own'))
    >>> before_model(jax.tree_util.tree_flatten_with_path({"told": {"trained": {"own": 1}}})[0][0][0])
    ('told', 'trained')
    """
    names = [str(getattr(key, "key", "")) for key in path]
    ends = [place for place, name in enumerate(names) if name in ("trained", "carried")]
    return tuple(names[: ends[0] + 1] if ends else names)


def schema(tree: Tree) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """(path, dtype, shape) of every leaf: what two nodes must have in common to exchange such trees."""
    return tuple((name, np.dtype(leaf.dtype).name, tuple(leaf.shape)) for name, leaf in named_leaves(tree).items())


# --- models of unequal shapes: the smaller one is the first of every axis of the larger one

Stretches = Callable[[str], int]
"""Of a leaf's path, into how many equal stretches its axis before the last falls: of each, a smaller leaf has the first
(what a flattened image's channels are multiplied by)."""


def cut(tree: Tree, like: Tree, stretches: Stretches) -> Tree:
    """Return the part of a tree that one with the smaller leaves of `like` has; numpy stays numpy, without a copy."""

    def leaf(path: tuple[Any, ...], leaf: Array, small: Array) -> Array:
        if leaf.shape == small.shape:
            return leaf
        apart, part = (_apart(shape, stretches(path_name(path))) for shape in (leaf.shape, small.shape))
        return leaf.reshape(apart)[tuple(slice(n) for n in part)].reshape(small.shape)

    return jax.tree_util.tree_map_with_path(leaf, tree, like)


def padded(tree: Tree, like: Tree, stretches: Stretches) -> Tree:
    """Return a tree in the larger shapes of `like`, zero where it has nothing: cut(padded(x)) is x."""

    def leaf(path: tuple[Any, ...], leaf: Array, large: Array) -> Array:
        if leaf.shape == large.shape:
            return leaf
        part, whole = (_apart(shape, stretches(path_name(path))) for shape in (leaf.shape, large.shape))
        more = [(0, n - have) for n, have in zip(whole, part, strict=True)]
        return jnp.pad(leaf.reshape(part), more).reshape(large.shape)

    return jax.tree_util.tree_map_with_path(leaf, tree, like)


def filled(tree: Tree, part: Tree, stretches: Stretches) -> Tree:
    """Return a tree, in host memory, with what a tree of smaller leaves has in its place."""

    def leaf(path: tuple[Any, ...], leaf: Array, small: Array) -> Array:
        if leaf.shape == small.shape:
            return small
        whole, size = np.array(leaf), _apart(small.shape, stretches(path_name(path)))
        apart = whole.reshape(_apart(leaf.shape, stretches(path_name(path))))  # a view
        apart[tuple(slice(n) for n in size)] = np.asarray(small).reshape(size)
        return whole

    return jax.tree_util.tree_map_with_path(leaf, tree, part)


def _apart(shape: tuple[int, ...], stretches: int) -> tuple[int, ...]:
    """The shape with its axis before the last as (stretches, length of one)."""
    if stretches == 1 or len(shape) < 2:
        return shape
    return (*shape[:-2], stretches, shape[-2] // stretches, shape[-1])


def digest(tree: Tree) -> str:
    """BLAKE2 of schema and contents, 32 hex digits: equal for bitwise equal trees."""
    h = hashlib.blake2b(repr(schema(tree)).encode(), digest_size=16)
    for leaf in jax.tree.leaves(tree):
        h.update(np.ascontiguousarray(leaf).tobytes())
    return h.hexdigest()


@jax.jit  # traced once, where a program makes several of like trees
def sketch(tree: Tree) -> Array:
    """[SKETCH] float32: a count sketch, linear in the tree, whose squared norm is an unbiased estimate of the tree's.

    Entry j sums the scalars whose index is j modulo SKETCH, each under a fixed pseudo-random sign, so that sketches of
    models far apart can be added and subtracted by an observer who never sees the models.
    Source: Charikar, Chen, Farach-Colton, "Finding frequent items in data streams" (2002).
    """
    total = jnp.zeros(SKETCH, jnp.float32)
    start = 0
    for leaf in jax.tree.leaves(tree):
        flat = leaf.reshape(-1).astype(jnp.float32)
        rows = -(-flat.size // SKETCH)
        index = jnp.arange(start, start + rows * SKETCH, dtype=jnp.uint32)
        signed = jnp.pad(flat, (0, rows * SKETCH - flat.size)) * _sign(index)
        total = total + signed.reshape(rows, SKETCH).sum(axis=0)
        start += rows * SKETCH
    return total


def _sign(index: Array) -> Array:
    """[N] float32 of +-1 from the index: one round of the 32-bit finaliser of MurmurHash3."""
    h = (index ^ (index >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.where((h >> 16) & 1, jnp.float32(1), jnp.float32(-1))
