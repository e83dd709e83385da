"""The words everything else is written in: types that carry no behaviour.

A decentralised learning algorithm is a value, `Algorithm`: pure JAX functions that know nothing of sockets, clocks,
files or randomness. Every driver runs the very same value.

Shapes use K = neighbour slots of a node (ascending node id), S = local steps, B = batch size, n = nodes, T = period.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = Any
"""A jax.Array, or the numpy array or scalar that a driver hands to a jitted function."""
NodeId = int
Tree = Any
Params = Tree
"""The model: a tree of float arrays in two parts, "trained" (has gradients) and "carried" (batch statistics)."""
Payload = Tree
"""What an algorithm sends to its neighbours in a round: a tree of arrays."""
State = Any
"""What an algorithm keeps from round to round; only the algorithm looks inside."""
Batches = Tree
"""Samples of S local steps: a tree of arrays [S, B, ...]."""
Metrics = dict[str, Array]
Key = Array
Steps = Array
"""[] int32: how many of the S local steps this node takes."""


class Neighborhood(NamedTuple):
    """All that one node may know of the graph in one round."""

    weight: Array  # [K] float32: mixing weight of each neighbour slot; 0 = empty slot
    out_degree: Array  # [] int32


class Inbox(NamedTuple):
    """What a round hands to `mix`: the two sides of the exchanges booked in it."""

    sent: Payload  # tree, leading axis K: my side of each exchange
    received: Payload  # tree, leading axis K: the neighbour's side
    arrived: Array  # [K] bool: booked in this round
    age: Array  # [K] int32: rounds since the exchange was opened


class Algorithm(NamedTuple):
    """A decentralised learning algorithm. Every function is pure and jits.

    Declarations: `keeps_mean` says what keeps the mean of the models ("exchange": both ends of an exchange book it or
    neither; "nothing"), `lateness` the largest age in rounds at which an exchange may still be booked, `mixes` whether
    it talks to neighbours at all, `state_class` what happens to its state at join and leave ("none": a joiner copies a
    neighbour's model).
    """

    name: str
    init: Callable[[Params, int], State]  # (model, K) -> state
    local: Callable[[State, Batches, Key, Steps], tuple[State, Metrics]]
    send: Callable[[State, Neighborhood], tuple[State, Payload]]
    mix: Callable[[State, Inbox, Neighborhood], State]  # slots are added in one fixed order
    adopt: Callable[[State, Inbox], State]  # join or rejoin
    params: Callable[[State], Params]  # the model to evaluate
    keeps_mean: str = "exchange"
    lateness: int = 8
    mixes: bool = True
    state_class: str = "none"


class Learner(NamedTuple):
    """What is learned; knows nothing of peers.

    `init(key)` -> Params. `grad(params, batch, key)` -> (gradient with the structure of params["trained"], new value of
    params["carried"], {"loss": []}). `evaluate(params, batch, mask)` -> {"correct": [B], "loss": [B]} per sample, zero
    where the mask is 0, so that sums over samples and nodes add up. `unroll` asks for local steps written out instead
    of scanned: XLA:CPU runs a convolution inside a loop several times slower.
    """

    init: Callable[[Key], Params]
    grad: Callable[[Params, Tree, Key], tuple[Tree, Tree, Metrics]]
    evaluate: Callable[[Params, Tree, Array], Metrics]
    unroll: bool = False


class Schedule(NamedTuple):
    """The planned graph, used as round % T. Empty slots hold neighbour -1 and weight 0."""

    neighbor: np.ndarray  # [T, n, K] int32
    weight: np.ndarray  # [T, n, K] float32
    out_degree: np.ndarray  # [T, n] int32


class Delivery(NamedTuple):
    """What happened in a run, or was drawn: who was there and which exchanges were booked."""

    active: np.ndarray  # [R, n] bool
    steps: np.ndarray  # [R, n] int32: local steps taken
    arrived: np.ndarray  # [R, n, K] bool
    age: np.ndarray  # [R, n, K] int32
