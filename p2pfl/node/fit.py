"""Messages of unequal shapes: between nodes whose models are unequal, and from round to round.

What travels between two nodes of unequal models is what both have. The models are slices of a whole one, by level: 0
has all of it, and each further level the first of every axis of the one before. A message holds the slice of the
narrower of its two ends; whoever holds more puts it in the place of its own numbers, of which the others stay as they
are: so both ends move by w (received - sent) where they have the same, and by nothing elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from p2pfl import tree
from p2pfl.types import Params, Payload, Tree


class NodeSlice(NamedTuple):
    """The place of a node among nodes whose models are slices of one."""

    level: int  # of this node; 0: the whole model
    levels: Sequence[int]  # of every node
    payloads: Sequence[Payload]  # shapes of what an algorithm sends, by level
    models: Sequence[Params]  # ... of what a node that joins is given
    whole: Params  # shapes of the whole model, with what is private
    stretches: tree.Stretches

    def meets(self, node: int) -> int:
        """Return the level of what this node and another have in common; a stranger has what this one has."""
        return max(self.level, self.levels[node]) if node < len(self.levels) else self.level

    def payload(self, node: int, payload: Payload) -> Payload:
        """Return what another node gets of a payload."""
        return tree.cut(payload, self.payloads[self.meets(node)], self.stretches)

    def model(self, node: int, model: Params) -> Params:
        """Return what another node gets of a model."""
        return tree.cut(model, self.models[self.meets(node)], self.stretches)

    def into(self, mine: Tree, theirs: Tree) -> Tree:
        """Return this node's payload or model, with what has come in its place."""
        return tree.filled(mine, theirs, self.stretches)

    def widened(self, payload: Payload) -> Payload:
        """Return a payload in the shapes of the whole, zero elsewhere: so sketches of all nodes can be added up."""
        return tree.padded(payload, self.payloads[0], self.stretches)

    def widen(self, params: Params) -> Params:
        """Return a model in the shapes of the whole one, zero elsewhere."""
        return tree.padded(params, self.whole, self.stretches)


class Growth(NamedTuple):
    """What of a payload travels in a message of a round, where that depends on the round: of every axis the first.

    Whoever gets it puts it in the place of its own numbers, as above.
    """

    payloads: Sequence[Payload]  # shapes: of the whole, then of all else that travels in some round
    which: Sequence[int]  # of them, of each round from 1 on; the last one of all later rounds

    def of(self, round: int) -> int:
        """Return which of the shapes a message of a round has."""
        return self.which[min(max(round, 1), len(self.which)) - 1]

    def payload(self, round: int, payload: Payload) -> Payload:
        """Return what travels of a payload in a round."""
        return tree.cut(payload, self.payloads[self.of(round)], lambda path: 1)

    def into(self, mine: Payload, theirs: Payload) -> Payload:
        """Return this node's payload with what has come in its place."""
        return tree.filled(mine, theirs, lambda path: 1)


def growth(
    payload: Payload, travelling: Callable[[str, tuple[int, ...], int], tuple[int, ...]] | None, rounds: int
) -> Growth | None:
    """The growth of an algorithm's payload (its shapes) over the rounds of a run; None where all of it travels."""
    if travelling is None:
        return None
    names = {name: (leaf.shape, leaf.dtype) for name, leaf in tree.named_leaves(payload).items()}
    whole = tuple(shape for shape, _ in names.values())
    found, which = [whole], list[int]()
    for round in range(1, rounds + 1):
        shapes = tuple(travelling(name, shape, round) for name, (shape, _) in names.items())
        found += [] if shapes in found else [shapes]
        which.append(found.index(shapes))
        if shapes == whole:
            break
    structure, dtypes = jax.tree.structure(payload), [dtype for _, dtype in names.values()]
    payloads = [
        jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*each) for each in zip(shapes, dtypes, strict=True)])
        for shapes in found
    ]
    return Growth(payloads, which)
