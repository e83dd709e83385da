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
"""The model: a dict of trees of arrays. "trained" (has gradients) and "carried" (batch statistics) travel and mix.

"statistics", where there is one, is what the nodes found out about all data together: whoever joins gets it. "private",
where there is one, never leaves the node: leaves that are not shared, a model of its own, and under "site" what the
node knows of its own data. Neither is mixed by an algorithm.
"""
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
    """All that one node may know of the graph in one round.

    Slots are the neighbours it hears from or speaks to in that round. On an undirected graph the two weights are equal.
    """

    weight: Array  # [K] W[i, j]: what this node i gives to the value of the neighbour j in each slot; 0 = hears nothing
    out_weight: Array  # [K] W[j, i]: the share of this node's value that goes to the neighbour; 0 = says nothing


class Inbox(NamedTuple):
    """The input of `mix` in a round: the two sides of what was booked in it."""

    sent: Payload  # tree, leading axis K: my side of each exchange
    received: Payload  # tree, leading axis K: the neighbour's side
    arrived: Array  # [K] bool: booked in this round
    age: Array  # [K] int32: rounds since the exchange was opened


class Demands(NamedTuple):
    """Demands of an algorithm on the weight matrix W (W[i, j]: what node i gives to the value of j); checked at build.

    `weights`: "symmetric" (and rows that sum to one, so doubly stochastic: what a double-entry exchange needs),
    "column" (columns sum to one; the graph may be directed), "row" (rows sum to one) or "any". `above`: every
    eigenvalue of W must be greater than this; None asks nothing. `why`: the reason, for the text of a refusal.
    `models`: so many a node that mixes must have, its own and its neighbours', 0 for as many as there are; `rule`: what
    asks for them. `rests`: a node that has fewer, when others are gone, must not even send its own.
    """

    weights: str = "symmetric"
    above: float | None = None
    why: str = ""
    models: int = 0
    rule: str = ""
    rests: bool = False


class Algorithm(NamedTuple):
    """A decentralised learning algorithm: six pure functions and what it declares. Every function jits and vmaps.

    A round is `local` (the local steps), `send` (the payload for the neighbours), `mix` (once, with all that was
    booked, be it nothing). Slots have leading axis K.

    `travels`: the payload in words. `link`: how it travels: "exchange" (double entry: both ends mix or neither),
    "push" (one way, no receipt) or "none". `keeps_mean`: what keeps the mean of `mass` over the nodes while they mix:
    "exchange", "running_sums" (a push algorithm whose next message makes up for a lost one) or "nothing". `mass`: of a
    state, what that mean is taken of; None: the model. `lateness`: the largest age in rounds at which an exchange may
    still be booked. `state_class` says what join and leave do: "none" (a joiner copies a neighbour's model), "sum"
    (the nodes' states have an invariant sum: a leaver takes its share away, a joiner starts with none), "pairwise"
    (kept per neighbour: both ends start afresh when one of them does). `per_edge`: the payload has a leading axis K, a
    part for each slot; slots then stand for the same neighbour in every round. `linear`: mix depends on the inbox
    through sum_k w_k (received_k - sent_k) alone, so that a driver may compute that as a matrix product. `plan`: makes
    of the graph the schedule that the algorithm runs on; None: the graph itself. `restart`: a new epoch of the
    membership begins, with K slots: whatever has an invariant sum over the nodes, and whatever is kept for a neighbour,
    starts afresh, model and optimizer stay; given with every state_class but "none". `put`: the state with another
    model in it, all else as it is; None: `state._replace(params=...)`. `weigh`: of the planned weights [K] and what
    arrived [K], the weights that drivers hand to `mix`; None: as planned. `any_steps`: all that `local`
    does is to move the model, so that somebody else may take the steps and hand in the model they lead to
    (`p2pfl.join`). `travelling`: (path of a leaf of the payload, its shape, round) -> the shape of what of it travels
    in a message of that round, the first of every axis; None: all of it, always. `whole`: a node mixes all
    neighbours that the graph names in a round, or none: it knows nothing but their sum. `learner`: what it learns with,
    by which `p2pfl.simulate` evaluates it.
    """

    name: str
    init: Callable[[Params, int], State]  # (model, K) -> state
    local: Callable[[State, Batches, Key, Steps | None], tuple[State, Metrics]]  # steps None: all S
    send: Callable[[State, Neighborhood], tuple[State, Payload]]
    mix: Callable[[State, Inbox, Neighborhood], State]  # slots are added in one fixed order
    adopt: Callable[[State, Params], State]  # join or rejoin with the model of a neighbour
    params: Callable[[State], Params]  # the model to evaluate
    travels: str = "the model"
    link: str = "exchange"
    keeps_mean: str = "exchange"
    mass: Callable[[State], Tree] | None = None
    lateness: int = 8
    state_class: str = "none"
    per_edge: bool = False
    linear: bool = True
    demands: Demands = Demands()
    plan: Callable[[Schedule, Planning], Schedule] | None = None
    weigh: Callable[[Array, Array], Array] | None = None
    restart: Callable[[State, int], State] | None = None
    put: Callable[[State, Params], State] | None = None
    any_steps: bool = False
    travelling: Callable[[str, tuple[int, ...], int], tuple[int, ...]] | None = None
    whole: bool = False
    learner: Learner | None = None

    def replaced(self, state: State, params: Params) -> State:
        """The state with another model in it: what `put` says, or the usual."""
        return self.put(state, params) if self.put else state._replace(params=params)


class Planning(NamedTuple):
    """The facts that an algorithm may draw its schedule from, besides the graph."""

    rounds: int  # of the run: a schedule that is drawn anew in each round has this period
    seed: int
    samples: np.ndarray  # [n] int64: training rows of each node; -1 where only the node itself knows them
    part: float = 1.0  # share of the nodes that take part in a round


Features = Callable[[Params, Array, Key | None], tuple[Array, Tree]]
"""(model, inputs x, key or None) -> (features, new carried): see `Learner`."""
Maps = Callable[[Params, Array], tuple[Array, Callable[[Array], Array]]]
"""(model, inputs x) -> (maps of the last convolution, maps -> outputs): see `Learner`."""


class Learner(NamedTuple):
    """A learner: a model, its gradient and its evaluation; knows nothing of peers.

    `init(key)` -> Params. `grad(params, batch, key)` -> (gradient with the structure of params["trained"], new values
    of all other parts of params, {"loss": []}). `evaluate(params, batch, mask)` -> {"score": [B], "loss": [B]} per
    sample, zero where the mask is 0, so that sums over samples and nodes add up; "score" is that of the kind of
    task, 1 or 0 for classes: right or wrong. `unroll` asks for local steps written out instead of scanned: XLA:CPU runs
    a convolution inside a loop several times slower. `penalty(trained, start)` -> a gradient with the structure of
    `trained`, added in every local step; `start` is the model of the round's first step. `predict(params, x)` ->
    outputs [B, ...]; of a task that has nothing to predict none, [B, 0]. `personal(params)` -> params whose model is
    the node's own; None where it has none. `plain(params)` -> params whose "trained" and "carried" are those of the
    model as Flax has it, what is frozen, adapted or kept at home put together; None where they are so anyway.
    `features(params, x, key)` -> (what the last part of the model, its head or
    decoder, takes in [B, ...], new params["carried"]), as in training; with key None as in evaluation, which carries
    nothing on; None where the model has no method of that name. `maps(params, x)` -> (the maps [B, ..., K] of the last
    convolution, the function that makes outputs of them), as in evaluation; None where the model has no methods `maps`
    and `from_maps`.
    A batch is {"x": [B, ...], "y": [B, ...]}, and may have "weight" [B]: how much each sample counts, and "classes" [C]
    bool: which outputs its loss sees.
    """

    init: Callable[[Key], Params]
    grad: Callable[[Params, Tree, Key], tuple[Tree, Params, Metrics]]
    evaluate: Callable[[Params, Tree, Array], Metrics]
    unroll: bool = False
    penalty: Callable[[Tree, Tree], Tree] | None = None
    predict: Callable[[Params, Array], Array] = lambda params, x: x.reshape(len(x), -1)[:, :0]
    personal: Callable[[Params], Params] | None = None
    features: Features | None = None
    maps: Maps | None = None
    plain: Callable[[Params], Params] | None = None

    def viewed(self, look: Callable[[Params, Array], tuple[Params, Array]]) -> Learner:
        """Return the learner that evaluates, predicts and finds features with what `look` makes of (params, x).

        `grad` stays as it is, and what features carry on has the structure that `look` gives.
        """
        find, show = self.features, self.maps

        def evaluate(params: Params, batch: Tree, mask: Array) -> Metrics:
            seen, x = look(params, batch["x"])
            return self.evaluate(seen, {**batch, "x": x}, mask)

        def features(params: Params, x: Array, key: Key | None) -> tuple[Array, Tree]:
            assert find is not None
            return find(*look(params, x), key)

        def maps(params: Params, x: Array) -> tuple[Array, Callable[[Array], Array]]:
            assert show is not None
            return show(*look(params, x))

        return self._replace(
            evaluate=evaluate,
            predict=lambda params, x: self.predict(*look(params, x)),
            features=features if find else None,
            maps=maps if show else None,
        )


class Schedule(NamedTuple):
    """The planned graph: round r = 1, 2, ... uses row (r - 1) % T.

    W[i, j] is what node i, the receiver, gives to the value of node j. The slots of a node hold its in- and
    out-neighbours of that round in ascending order; empty slots, at the end, hold neighbour -1 and weights 0.
    """

    neighbor: np.ndarray  # [T, n, K] int32
    weight: np.ndarray  # [T, n, K] float64: W[i, j] of the neighbour j in the slot
    out_weight: np.ndarray  # [T, n, K] float64: W[j, i]; on undirected graphs the same as weight
    trains: np.ndarray  # [T, n] bool: the node takes its local steps in this round; otherwise it only mixes


class Delivery(NamedTuple):
    """Deliveries of a run, as they happened or were drawn: who was there, what was booked. Slots: of the schedule.

    An exchange booked at age a in round r was opened in round r - a, in the same slot.
    """

    active: np.ndarray  # [R, n] bool
    steps: np.ndarray  # [R, n] int32: local steps taken
    arrived: np.ndarray  # [R, n, K] bool
    age: np.ndarray  # [R, n, K] int32
