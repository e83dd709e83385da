"""What a node knows of itself that no file of it holds: where its noise comes from, and what hides its sums.

Facts by name in params["private"]["site"], see p2pfl.methods.site_facts. Everywhere else than in files they are as any.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from p2pfl.types import Tree

_SECRETS = ("entropy", "secrets")
"""The words that noise follows from; what the node has in common with single others, of which masks are made."""
_SUMS = ("sums", "row")
"""What masks hide from everybody: the node's own sums, as they are and in fixed point."""


def without_secrets(state: Tree) -> Tree:
    """Return a state, or a model, for a checkpoint: with zeros for what this process gives another one (`with_own`)."""
    return _zeroed(state, _SECRETS)


def for_file(params: Tree) -> Tree:
    """Return a model for a file that others may read: where sums are masked, the node's own are zero as well."""
    masked = any(_fact(path) == "secrets" for path, _ in jax.tree_util.tree_flatten_with_path(params)[0])
    return _zeroed(params, (*_SECRETS, *_SUMS) if masked else _SECRETS)


def with_own(state: Tree, site: Tree) -> Tree:
    """Return a state with the secrets of this process: what an earlier one has drawn as noise is not drawn again.

    `site`: what the node knows of itself here.
    """

    def leaf(path: tuple[Any, ...], leaf: Any) -> Any:
        name = _fact(path)
        return site[name] if name in _SECRETS and name in site else leaf

    return jax.tree_util.tree_map_with_path(leaf, state)


def _fact(path: tuple[Any, ...]) -> str:
    """Return the name of the fact that a leaf is of; "" of any other leaf."""
    names = [getattr(key, "key", None) for key in path]
    return next((str(fact) for place, fact in itertools.pairwise(names) if place == "site"), "")


def _zeroed(tree: Tree, facts: Collection[str]) -> Tree:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.zeros(leaf.shape, leaf.dtype) if _fact(path) in facts else leaf, tree
    )
