"""Evaluation of all models in the middle of a simulation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from p2pfl import tree
from p2pfl.drivers.simulate import compiled
from p2pfl.drivers.simulate.shapes import Carry, Shape
from p2pfl.drivers.simulate.simulation import Evaluated, Simulation
from p2pfl.types import Array


class Testing:
    """Evaluation of all models: begun when a round is dispatched, read when it is done."""

    def __init__(self, work: Simulation, shape: Shape, mesh: Mesh) -> None:
        self.work, self.shape = work, shape
        self.after = compiled.compile_evaluate(work.algorithm.params, work.learner, shape, mesh)
        self.before = compiled.compile_evaluate(lambda model: model, work.learner, shape, mesh)
        self.distance = jax.jit(self._distance)

    def _distance(self, state: Any, active: Array | None) -> Array:
        """Over all nodes, or over those who are there."""
        nodes = self.shape.layout.nodes
        total: Any = 0.0
        for leaf in jax.tree.leaves(tree.mixed(jax.vmap(self.work.algorithm.params)(state))):
            x = leaf[:nodes]
            if active is None:
                total = total + ((x - x.mean(axis=0, keepdims=True)) ** 2).sum() / nodes
            else:
                here, many = active.reshape(-1, *(1,) * (x.ndim - 1)), active.sum().astype(x.dtype)
                mean = jnp.where(here, x, 0).sum(axis=0, keepdims=True) / many
                total = total + jnp.where(here, (x - mean) ** 2, 0).sum() / many
        return jnp.asarray(total)

    def start(self, carry: Carry, test: Any, active: np.ndarray | None) -> Any:
        """Dispatch. `active` [n]: those who are there, where not all of them need be."""
        distance = self.distance(carry.state, active)
        if test is None:
            return None, None, distance
        before = self.before(carry.models, *test) if self.shape.keep else None
        return self.after(carry.state, *test), before, distance

    def finish(
        self, round: int, active: np.ndarray, loss: np.ndarray, arrived: np.ndarray, neighbor: np.ndarray, begun: Any
    ) -> Evaluated:
        """Read."""
        after, before, distance = begun
        nodes = self.shape.layout.nodes
        share, own = (None, None) if after is None else (compiled.fetch(part)[:nodes] for part in after[:2])
        earlier = None if before is None else compiled.fetch(before[0])[:nodes]
        return Evaluated(round, active, loss, share, own, earlier, float(compiled.fetch(distance)), arrived, neighbor)
