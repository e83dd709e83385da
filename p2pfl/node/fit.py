"""Nodes whose models are of unequal shapes: what travels between two of them is what both have.

The models are slices of a whole one, by level: 0 has all of it, and each further level the first of every axis of the
one before. A message holds the slice of the narrower of its two ends; whoever holds more puts it in the place of its
own numbers, of which the others stay as they are: so both ends move by w (received - sent) where they have the same,
and by nothing elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
