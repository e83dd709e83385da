"""Payloads of which a neighbour sees nothing, and a neighbourhood their sum: fixed point, masked. See docs/secure.md.

What goes to a receiver is the sender's model times the receiver's weight for it, in whole numbers modulo 2^bits, and
what a sender adds or subtracts for each other neighbour of that receiver. All of a neighbourhood together is the
weighted sum; less than all is uniform noise. Leaves under "told" are masked in another way, or are no secret: they go
as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from p2pfl import tree
from p2pfl.types import Payload, Tree

SPARE = {64: 10, 32: 2}
"""Bits of a masked number beyond its bound, by all its bits: what is no sum, as masks do not cancel, runs over it."""


class MaskedSums(NamedTuple):
    """How one node masks what it sends, and adds up what it gets."""

    node: int
    bits: int  # of a masked number: 32 or 64
    bound: float  # no number of a payload is beyond
    around: Callable[[tuple[int, ...]], Mapping[int, tuple[int, ...]]]  # members -> of each neighbour its neighbours
    secret: Callable[[int], bytes]  # of another node: what both have in common
    stream: Callable[[bytes, bytes, int], bytes]  # (secret, what for, bytes): random bits
    # of members (None: of all that are planned): whether who joins may have what one of them has mixed
    hands_over: Callable[[tuple[int, ...] | None], bool] = lambda members: False

    @property
    def scale(self) -> float:
        """Whole numbers to one: a weighted sum of numbers within the bound, and its rounding, never run over."""
        return float(2.0 ** (self.bits - SPARE[self.bits] - np.ceil(np.log2(self.bound))))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what travels."""
        return np.dtype(f"uint{self.bits}")

    def like(self, payload: Payload) -> Payload:
        """Return an empty payload of the shapes and dtypes that travel."""
        return _mapped(lambda leaf: np.zeros(leaf.shape, self.dtype), payload)

    def share(self, payload: Payload, weight: float) -> Payload:
        """Return the part of a sum that a payload is, by its weight, in whole numbers.

        Raises ValueError for a number that has no place there.
        """

        def leaf(path: str, leaf: Any) -> np.ndarray:
            x = np.asarray(leaf, np.float64)
            largest = float(np.abs(x).max(initial=0))
            if not largest <= self.bound:
                raise ValueError(
                    f"{path} holds {largest:.3g}, and what is masked must be within secure.bound={self.bound:g}. "
                    "Raise bound if the model is sound; else lower the learning rate"
                )
            whole = np.rint(x * (weight * self.scale)).astype(np.int64)
            return whole.astype(self.dtype)  # modulo 2^bits

        return _mapped_with_name(leaf, payload)

    def masked(self, share: Payload, receiver: int, members: tuple[int, ...], epoch: int, round: int) -> Payload:
        """Return what travels to a receiver of a share."""
        others = [j for j in self.around(members)[receiver] if j != self.node]
        context = f"p2pfl mixing {epoch} {receiver} {round}".encode()
        leaves = jax.tree.leaves(_masked_leaves(share))
        total = sum(leaf.size for leaf in leaves)
        mask = np.zeros(total, self.dtype)
        for j in others:
            bits = np.frombuffer(self.stream(self.secret(j), context, mask.nbytes), self.dtype.newbyteorder("<"))
            mask = mask + bits if self.node < j else mask - bits
        start = 0

        def leaf(leaf: np.ndarray) -> np.ndarray:
            nonlocal start
            part = mask[start : start + leaf.size].reshape(leaf.shape)
            start += leaf.size
            masked: np.ndarray = leaf + part
            return masked

        return _mapped(leaf, share)

    def mean(self, received: Sequence[Payload], own: Payload, weight: float) -> list[Payload] | None:
        """Return what each neighbour stands for in mixing: the mean of all, by their weights, of the sum `weight`.

        `received`: of a whole neighbourhood. What is told stays each neighbour's own. `own`: a payload of this node,
        for dtypes. None: they are no sum of numbers within the bound, as where masks do not cancel. Such a sum is
        uniform: with L numbers it is taken for one by a chance of about (weight / 2^(SPARE - 1))^L.
        """
        most = self.bound * (1 + 1e-9) + len(received) / self.scale / weight  # rounding
        total = received[0]
        for each in received[1:]:
            total = jax.tree.map(np.add, total, each)
        within = True

        def leaf(total: np.ndarray, own: Any) -> np.ndarray:
            nonlocal within
            value = total.view(f"int{self.bits}").astype(np.float64) / self.scale / weight
            within = within and bool(np.abs(value).max(initial=0) <= most)
            mean: np.ndarray = value.astype(own.dtype)
            return mean

        found = _mapped(leaf, total, own)
        return [_told_of(found, each) for each in received] if within else None


def _told(path: tuple[Any, ...]) -> bool:
    return "told" in tree.before_model(path)


def _mapped(make: Callable[..., Any], first: Tree, *more: Tree) -> Tree:
    """Map over what is masked; what is told stays."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, *rest: leaf if _told(path) else make(leaf, *rest), first, *more
    )


def _mapped_with_name(make: Callable[[str, Any], Any], payload: Tree) -> Tree:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.asarray(leaf) if _told(path) else make(tree.path_name(path), leaf), payload
    )


def _masked_leaves(payload: Tree) -> list[Any]:
    flat = jax.tree_util.tree_flatten_with_path(payload)[0]
    return [leaf for path, leaf in flat if not _told(path)]


def _told_of(mean: Tree, theirs: Tree) -> Tree:
    return jax.tree_util.tree_map_with_path(lambda path, a, b: b if _told(path) else a, mean, theirs)
