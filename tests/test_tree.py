"""Trees: names, sizes, digests, and the sketch by which an observer adds up what nodes did."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2pfl import tree
from p2pfl.types import Tree


class Pair(NamedTuple):
    first: jax.Array
    second: list[jax.Array]


def normal(seed: int, *shapes: tuple[int, ...]) -> Tree:
    rng = np.random.default_rng(seed)
    return {f"leaf{i}": jnp.asarray(rng.normal(size=shape), jnp.float32) for i, shape in enumerate(shapes)}


SHAPES = ((7, 5), (), (130,), (3, 2, 11))


def test_add_and_subtract_are_inverse() -> None:
    a = {"x": jnp.arange(6, dtype=jnp.int32), "y": [jnp.ones((2, 3))]}
    assert tree.digest(tree.subtract(tree.add(a, a), a)) == tree.digest(a)


def test_size_and_bytes_count_scalars() -> None:
    a = {"x": jnp.zeros((7, 5)), "y": jnp.zeros((), jnp.int32), "z": jnp.zeros((3,), jnp.bfloat16)}
    assert tree.size(a) == 35 + 1 + 3
    assert tree.nbytes(a) == 4 * 35 + 4 + 2 * 3


def test_named_leaves_are_paths_in_the_trees_own_order() -> None:
    a = {"trained": {"hidden": [jnp.zeros(1), jnp.ones(2)], "a": {3: jnp.zeros(3)}}, "carried": Pair(jnp.zeros(4), [])}
    names = tree.named_leaves(a)
    assert list(names) == ["carried/first", "trained/a/3", "trained/hidden/0", "trained/hidden/1"]
    assert [leaf.shape for leaf in names.values()] == [leaf.shape for leaf in jax.tree.leaves(a)]
    assert tree.schema(a)[1] == ("trained/a/3", "float32", (3,))


def test_digest_is_equal_for_equal_trees_wherever_they_live() -> None:
    a = normal(0, *SHAPES)
    assert tree.digest(a) == tree.digest(jax.tree.map(np.asarray, a)) == tree.digest(jax.tree.map(jnp.copy, a))
    transposed = {"x": np.arange(6, dtype=np.float32).reshape(2, 3).T}  # not contiguous
    assert tree.digest(transposed) == tree.digest({"x": np.ascontiguousarray(transposed["x"])})


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.array([[1, 2], [3, np.nextafter(np.float32(4), np.float32(5))]], np.float32)},  # one bit
        {"x": np.array([[1, 2], [-0.0, 4]], np.float32)},  # the sign of a zero
        {"x": np.array([[1, 2, 3, 4]], np.float32)},  # the shape
        {"x": np.array([[1, 2], [3, 4]], np.float32).view(np.int32)},  # the dtype, with the same bytes
        {"y": np.array([[1, 2], [3, 4]], np.float32)},  # the name
        {"x": [np.array([[1, 2], [3, 4]], np.float32)]},  # the path
    ],
)
def test_digest_changes_with(other: Tree) -> None:
    assert tree.digest(other) != tree.digest({"x": np.array([[1, 2], [3, 4]], np.float32)})


def test_sketch_is_linear_and_antisymmetric() -> None:
    a, b = normal(1, *SHAPES), normal(2, *SHAPES)
    weighted = jax.tree.map(lambda x, y: 3 * x - 0.5 * y, a, b)
    # float32: sums of about 4 terms in each entry
    np.testing.assert_allclose(tree.sketch(weighted), 3 * tree.sketch(a) - 0.5 * tree.sketch(b), atol=2e-5)
    assert np.array_equal(tree.sketch(tree.subtract(a, b)), -tree.sketch(tree.subtract(b, a)))
    assert not tree.sketch(jax.tree.map(jnp.zeros_like, a)).any()


def test_every_scalar_stands_in_one_entry_with_sign_one() -> None:
    """The sketch of a unit vector is a unit vector, at the scalar's index modulo SKETCH."""
    eye = jnp.eye(200, dtype=jnp.float32)
    sketches = np.asarray(jax.vmap(lambda row: tree.sketch({"x": row}))(eye))
    assert np.array_equal(np.abs(sketches).sum(axis=1), np.ones(200))
    assert np.array_equal(np.abs(sketches).argmax(axis=1), np.arange(200) % tree.SKETCH)


def test_the_squared_norm_is_unbiased_over_vectors() -> None:
    shapes = ((100, 7), (33,))
    scale = np.random.default_rng(3).lognormal(size=733)  # very unequal coordinates
    vectors = (np.random.default_rng(4).normal(size=(600, 733)) * scale).astype(np.float32)

    def ratio(row: jax.Array) -> jax.Array:
        x = {"a": row[:700].reshape(shapes[0]), "b": row[700:]}
        return (tree.sketch(x) ** 2).sum() / (row**2).sum()

    ratios = np.asarray(jax.vmap(ratio)(vectors), np.float64)
    assert abs(ratios.mean() - 1) < 3 * ratios.std() / np.sqrt(len(ratios))
    assert ratios.std() < 2 * np.sqrt(2 / tree.SKETCH)


def test_the_squared_norm_is_unbiased_over_signs() -> None:
    """Unit signs would pass the test above; here a constant vector meets the signs of many places."""

    def ratio(block: jax.Array) -> jax.Array:
        row = jnp.zeros((300, 512), jnp.float32).at[block].set(1.0)
        return (tree.sketch({"x": row}) ** 2).sum() / 512

    ratios = np.asarray(jax.vmap(ratio)(jnp.arange(300, dtype=jnp.int32)), np.float64)
    assert abs(ratios.mean() - 1) < 3 * ratios.std() / np.sqrt(len(ratios))


def test_signs_are_balanced() -> None:
    count = 1 << 18
    signs = np.asarray(tree._sign(jnp.arange(count, dtype=jnp.uint32)))
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 3 / np.sqrt(count)
    entries = signs.reshape(-1, tree.SKETCH).mean(axis=0) * np.sqrt(count / tree.SKETCH)  # about N(0, 1) each
    assert np.abs(entries).max() < 4.5
    assert 0.7 < entries.std() < 1.4


def test_leaves_are_not_confused() -> None:
    """Equal values in another leaf, or at another place of a leaf, are another sketch."""
    x, zero = jnp.arange(1, 65, dtype=jnp.float32), jnp.zeros(64)
    one, two = tree.sketch({"a": x, "b": zero}), tree.sketch({"a": zero, "b": x})
    assert np.array_equal(np.abs(one), np.abs(two))
    assert not np.array_equal(one, two)
