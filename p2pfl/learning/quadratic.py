"""The built-in task "quadratic": unequal quadratics, one at each node, whose optimum and fixed points are known.

    f_i(x) = 1/2 sum_d a_id (x_d - b_id)^2,       the optimum of the mean:  x*_d = sum_i a_id b_id / sum_i a_id

Everything is linear, so that theory says to the last digit where an algorithm must end, and every exact one ends in x*.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from p2pfl.check import at_least, positive
from p2pfl.data.dataset import Dataset, Samples
from p2pfl.learning.local_steps import rest
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree


class Quadratic(NamedTuple):
    """Curvatures and minima of all nodes."""

    a: np.ndarray  # [n, dim] float64 > 0
    b: np.ndarray  # [n, dim] float64

    @property
    def optimum(self) -> np.ndarray:
        """[dim] the minimum of the mean objective."""
        found: np.ndarray = (self.a * self.b).sum(axis=0) / self.a.sum(axis=0)
        return found


def quadratic(nodes: int, seed: int = 0, dim: int = 10, spread: float = 1.0, conditioning: float = 1.0) -> Quadratic:
    """Minima b ~ `spread` N(0, 1); curvatures a_id = c_d u_id, c from 1 down to 1 / `conditioning`, u in .5..1.5.

    Raises ConfigError for dim < 1, spread < 0 or conditioning < 1.
    """
    positive(dim=dim)
    at_least(0, spread=spread)
    at_least(1, conditioning=conditioning)
    rng = np.random.default_rng([seed, 0x9AD])
    scale = np.geomspace(1, 1 / conditioning, dim) if dim > 1 else np.ones(1)
    return Quadratic(scale * rng.uniform(0.5, 1.5, (nodes, dim)), spread * rng.normal(size=(nodes, dim)))


def dataset(task: Quadratic) -> Dataset:
    """One training row (a, b) per node, [n, 2 dim] float64; nothing to test."""
    x = np.concatenate([task.a, task.b], axis=1)
    none = Samples(x[:0], np.zeros(0, np.int32))
    return Dataset(Samples(x, np.zeros(len(x), np.int32)), none, ())


def learner(dim: int) -> Learner:
    """Full gradients of the node's own f_i; starts at zero."""

    def init(key: Key) -> Params:
        return {"trained": {"x": jnp.zeros((dim,), jnp.float32)}, "carried": {}}

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        a, b = batch["x"][:, :dim], batch["x"][:, dim:]
        away = params["trained"]["x"][None, :] - b
        return {"x": (a * away).mean(axis=0)}, rest(params), {"loss": (a * away**2).sum(axis=1).mean() / 2}

    def evaluate(params: Params, batch: Tree, mask: Array) -> Metrics:
        return {"score": jnp.zeros_like(mask), "loss": jnp.zeros_like(mask)}

    return Learner(init, grad, evaluate)


EXACT = ("gradient_tracking", "exact_diffusion", "d2")
"""Algorithms that end in one point on unequal data, whatever W is and whatever is lost; with one local step, in x*."""


def fixed_point(
    task: Quadratic, algorithm: str, arguments: Mapping[str, Any], w: np.ndarray, rate: float, steps: int
) -> np.ndarray | None:
    """[n, dim] where an algorithm ends with plain SGD at `rate` and `steps` local steps on the static matrix W [n, n].

    None where theory gives nothing. With H = (1 - rate a)^steps: x = W (b + H (x - b)) for adapt-then-combine. Source:
    Yuan, Ling, Yin, "On the convergence of decentralized gradient descent" (2016), and the algorithms' own papers.
    """
    a, b, one = task.a, task.b, np.eye(len(task.b))
    h, beta = (1 - rate * a) ** steps, arguments.get("beta", 0.9)
    if algorithm == "local":
        return b
    if algorithm == "gradient_tracking":
        return np.broadcast_to(task.optimum, b.shape)
    if algorithm in EXACT:  # where the local steps cancel in sum: sum_i (1 - h_i) (x - b_i) = 0
        return np.broadcast_to(((1 - h) * b).sum(axis=0) / (1 - h).sum(axis=0), b.shape)
    share = np.ones(len(b))
    if algorithm == "outer" or (algorithm == "dsgd" and arguments.get("order") != "cta"):
        if arguments.get("pairs"):
            return None
    elif steps != 1:
        return None
    elif algorithm == "dsgd":  # combine, then adapt
        return _solved(one - w, one, rate * a, b)
    elif algorithm == "dmsgd" and arguments.get("mix_momentum"):
        return _solved((one - beta * w) @ (one - w), w, rate * a, b)
    elif algorithm == "dmsgd" or (algorithm == "dfedavg" and arguments.get("keep_momentum")):
        h = 1 - rate / (1 - beta) * a
    elif algorithm == "push_sum":
        values, vectors = np.linalg.eig(w)
        perron = np.real(vectors[:, np.argmax(np.real(values))])
        share = perron / perron.sum() * len(w)
    elif algorithm not in ("qg_dsgdm", "dfedavg", "fedprox"):
        return None
    # x = W (x + (h - 1) (z - b)) with the model z = x / share
    return _solved((one - w) * share, w, 1 - h, b)


def _solved(m: np.ndarray, v: np.ndarray, pull: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[n, dim] z with m z + v P z = v P b, P = diag(pull) of each dimension."""
    each = zip(pull.T, b.T, strict=True)
    return np.stack([np.linalg.solve(m + v * p, v @ (p * b_d)) for p, b_d in each], axis=1)


def distance(models: np.ndarray, to: np.ndarray) -> float:
    """Root mean square over the nodes of the distance of each model [n, dim] to [dim] or [n, dim]."""
    return float(np.sqrt(((models - to) ** 2).sum(axis=1).mean()))
