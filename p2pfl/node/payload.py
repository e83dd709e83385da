"""Payloads as frames: from trees to what goes out, from what came in back to trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from p2pfl import tree
from p2pfl.protocol.codec import Format, Schema, schema_of
from p2pfl.types import Payload

Frames = Sequence[Any]
"""A payload as it came in: buffers, one per tensor."""


class Outgoing(NamedTuple):
    """A payload as the computation sees it and as it goes out: made once, whatever the number of neighbours."""

    tree: Payload
    frames: tuple[memoryview, ...]  # one per tensor
    nbytes: int


NOTHING = Outgoing(None, (), 0)
"""What goes out behind a message without a payload."""


def outgoing(payload: Payload, travels: Payload | None = None) -> Outgoing:
    """Make one raw frame per tensor, without a copy where the tensor is in host memory.

    `travels`: the part of it that goes out; None: all of it.
    """
    arrays = [
        np.ascontiguousarray(leaf).reshape(-1) for leaf in jax.tree.leaves(payload if travels is None else travels)
    ]
    frames = tuple(array.view(np.uint8).data for array in arrays)
    return Outgoing(payload, frames, sum(array.nbytes for array in arrays))


class Incoming:
    """From raw frames back to trees like one that is given, and whether they are fit to be used.

    `others`: trees that come in instead; `which`: of a node and a round, which of all these it sends, 0 for `like`.
    """

    def __init__(
        self, like: Payload, others: Sequence[Payload] = (), which: Callable[[int, int], int] = lambda node, round: 0
    ) -> None:
        self._all, self._which = [self, *map(Incoming, others)], which
        leaves, self._structure = jax.tree.flatten(like)
        self._like = [(np.dtype(leaf.dtype), tuple(leaf.shape)) for leaf in leaves]
        sizes = [int(np.prod(shape)) * dtype.itemsize for dtype, shape in self._like]
        self.leaves = tree.schema(like)
        self.schema: Schema = schema_of(self.leaves, sizes)

    def of(self, node: int, round: int) -> Incoming:
        """Return the same for what this node sends in a message of that round."""
        return self._all[self._which(node, round)]

    @property
    def format(self) -> Format:
        """For the codec."""
        return Format(self.schema, self.finite, None if len(self._all) == 1 else lambda *of: self.of(*of).format)

    @property
    def schemas(self) -> list[Schema]:
        """Of all that can come in, in the same order at all nodes."""
        return [each.schema for each in self._all]

    def tree(self, frames: Frames) -> Payload:
        """Return the payload in these frames, as views of them."""
        leaves = [
            np.frombuffer(memoryview(frame), dtype).reshape(shape)
            for frame, (dtype, shape) in zip(frames, self._like, strict=True)
        ]
        return jax.tree.unflatten(self._structure, leaves)

    def finite(self, frames: Frames) -> bool:
        """Return whether there is no NaN and no infinity."""
        return tree.finite(self.tree(frames))
