"""All nodes of a graph at once: the functions of an algorithm under vmap, with the inboxes between them, in rounds.

The bench of the tests of algorithms. It is written apart from the drivers, and simpler: what it says, they must say.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl import topology, tree
from p2pfl.algorithms.mixing import over
from p2pfl.churn import Conditions, Deliveries, Event
from p2pfl.learning import quadratic
from p2pfl.learning.quadratic import Quadratic
from p2pfl.topology import requirements
from p2pfl.types import Algorithm, Delivery, Inbox, Learner, Neighborhood, Planning, Schedule, Tree

DIM, STEPS, AGES, CHUNK = 2, 2, 4, 100
"""Size of the model, steps of a batch, ages that are kept (0 to 3), rounds of a compiled stretch."""


def learner() -> Learner:
    """f_i of the built-in task, and in the model a number that is carried: each step brings it half way to one."""
    inner = quadratic.learner(DIM)

    def init(key: Any) -> Tree:
        return {**inner.init(key), "carried": {"z": jnp.zeros(())}}

    def grad(params: Tree, batch: Tree, key: Any) -> Any:
        gradient, _, metrics = inner.grad(params, batch, key)
        z = params["carried"]["z"]
        return gradient, {"carried": {"z": z + (1 - z) / 2}}, metrics

    return inner._replace(init=init, grad=grad)


def planned(algorithm: Algorithm, graph: str, nodes: int, rounds: int = 1, **given: Any) -> Schedule:
    """What build.py makes of a graph for an algorithm."""
    schedule = topology.plan(graph, nodes, rounds=rounds, **given)
    if algorithm.plan is not None:
        schedule = algorithm.plan(schedule, Planning(rounds, 0, samples(nodes)))
    requirements.check(algorithm, schedule, f"topology {graph} of {nodes} nodes")
    return topology.stable(schedule) if algorithm.per_edge else schedule


def samples(nodes: int) -> np.ndarray:
    return np.arange(1, nodes + 1) * 10


class Wires(NamedTuple):
    """A schedule as arrays, and in which slot of its neighbour a node stands."""

    neighbor: Any  # [T, n, K]
    weight: Any
    out_weight: Any
    back: Any


class Trace(NamedTuple):
    """After each of R rounds."""

    x: np.ndarray  # [R, n, DIM] the trained part of the models
    moved: np.ndarray  # [R, size] by how much mixing moved the mean of the mass
    mass: Any  # the mean of the mass before mixing, a tree of [R, ...]


class Nodes:
    """`run` compiles once: steps, curvatures, losses and ages are given to it. Start: random models."""

    def __init__(self, algorithm: Algorithm, schedule: Schedule, seed: int = 0, dtype: Any = np.float64) -> None:
        self.algorithm, self.schedule, self.dtype = algorithm, schedule, dtype
        self.n, self.slots = schedule.neighbor.shape[1:]
        self.task = quadratic.quadratic(self.n, seed, DIM)
        rng = np.random.default_rng(seed)
        models = {"trained": {"x": rng.normal(size=(self.n, DIM))}, "carried": {"z": rng.normal(size=self.n)}}
        self.models = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), models)
        self.wires = Wires(
            np.maximum(schedule.neighbor, 0), schedule.weight, schedule.out_weight,
            np.maximum(topology.reverse(schedule), 0),
        )  # fmt: skip
        self.params = jax.vmap(algorithm.params)
        self.mass = jax.vmap(algorithm.mass or algorithm.params)
        self.train = jax.jit(self._train)
        self.mix = jax.jit(self._mix)
        self._now = jax.jit(self._inbox)
        self._scan = jax.jit(self._rounds)
        self._drawn: dict[Any, Delivery] = {}

    @cached_property
    def start(self) -> Any:
        return jax.jit(self.init)(self.models)

    def init(self, models: Tree) -> Any:
        return jax.vmap(lambda p: self.algorithm.init(p, self.slots))(models)

    def data(self, task: Quadratic | None = None) -> Tree:
        """The same batch of one row in each of the steps."""
        x = quadratic.dataset(task or self.task).train.x[:, None, None]
        return {"x": jnp.asarray(np.broadcast_to(x, (self.n, STEPS, 1, 2 * DIM)), self.dtype)}

    def around(self, t: int = 0) -> Neighborhood:
        """Of all nodes, in row t of the schedule."""
        return Neighborhood(jnp.asarray(self.wires.weight[t]), jnp.asarray(self.wires.out_weight[t]))

    # --- one round

    def _train(self, state: Any, data: Tree, steps: Any, around: Neighborhood) -> tuple[Any, Any]:
        keys = jax.vmap(jax.random.key)(jnp.arange(self.n, dtype=jnp.int32))
        state, _ = jax.vmap(self.algorithm.local)(state, data, keys, steps)
        return jax.vmap(self.algorithm.send)(state, around)

    def _mix(self, state: Any, inbox: Inbox, around: Neighborhood) -> Any:
        if self.algorithm.weigh is not None:
            around = around._replace(weight=jax.vmap(self.algorithm.weigh)(around.weight, inbox.arrived))
        return jax.vmap(self.algorithm.mix)(state, inbox, around)

    def inbox(self, payload: Any, arrived: Any, t: int = 0) -> Inbox:
        """What is exchanged now, in row t of the schedule."""
        wires = jax.tree.map(lambda leaf: leaf[t], self.wires)
        history = jax.tree.map(lambda leaf: leaf[None], payload)
        return self._now(history, 0, wires, jnp.asarray(arrived), jnp.zeros((self.n, self.slots), jnp.int32))

    def _inbox(self, history: Tree, number: Any, wires: Wires, arrived: Any, age: Any) -> Inbox:
        """`history`: payloads by round % depth, [depth, n, ...]."""
        me, slot = jnp.arange(self.n)[:, None], jnp.arange(self.slots)[None, :]

        def sides(leaf: Any) -> tuple[Any, Any]:
            at = (number - age) % leaf.shape[0]
            if self.algorithm.per_edge:
                return leaf[at, me, slot], leaf[at, wires.neighbor, wires.back]
            return leaf[at, me], leaf[at, wires.neighbor]

        both = jax.tree.map(sides, history)
        sent, received = (jax.tree.map(lambda _, b, i=i: b[i], history, both) for i in (0, 1))
        return Inbox(sent, received, arrived, age)

    # --- many rounds

    def _rounds(
        self, state: Any, history: Tree, first: Any, data: Tree, wires: Wires, what: Delivery
    ) -> tuple[Any, Tree, Trace]:
        period = wires.neighbor.shape[0]

        def one(carry: tuple[Any, Any], item: Any) -> tuple[Any, Trace]:
            (before, history), (number, now) = carry, item
            here = jax.tree.map(lambda leaf: leaf[(number - 1) % period], wires)
            around = Neighborhood(here.weight, here.out_weight)
            state, payload = self._train(before, data, now.steps, around)
            history = jax.tree.map(lambda kept, new: kept.at[number % AGES].set(new), history, payload)
            mixed = self._mix(state, self._inbox(history, number, here, now.arrived, now.age), around)
            kept = jax.tree.map(lambda leaf: leaf.mean(axis=0), (self.mass(state), self.mass(mixed)))
            moved = jnp.concatenate([(b - a).ravel() for a, b in zip(*map(jax.tree.leaves, kept), strict=True)])
            state = jax.tree.map(lambda a, b: jnp.where(over(now.active, a), a, b), mixed, before)
            return (state, history), Trace(self.params(state)["trained"]["x"], moved, kept[0])

        numbers = first + jnp.arange(len(what.steps), dtype=jnp.int32)
        (state, history), trace = jax.lax.scan(one, (state, history), (numbers, what))
        return state, history, trace

    def _nothing_sent(self, state: Any) -> Tree:
        payload = jax.eval_shape(lambda s: jax.vmap(self.algorithm.send)(s, self.around())[1], state)
        return jax.tree.map(lambda leaf: jnp.zeros((AGES, *leaf.shape), leaf.dtype), payload)

    def deliveries(
        self, rounds: int, steps: Any = 1, events: Sequence[Event] = (), schedule: Schedule | None = None, **given: Any
    ) -> Delivery:
        """What happens in the first so many rounds under Conditions(**given); drawn once, since that takes its time."""
        drawn = (rounds, np.asarray(steps).tobytes(), tuple(events), id(schedule), *sorted(given.items()))
        if drawn not in self._drawn:
            given = {"lateness": self.algorithm.lateness, "link": self.algorithm.link, **given}
            steps = np.broadcast_to(np.asarray(steps, np.int32), (self.n,))
            conditions = Conditions(**given)
            self._drawn[drawn] = Deliveries(events, schedule or self.schedule, rounds, steps, conditions).take(rounds)
        return self._drawn[drawn]

    def run(
        self,
        rounds: int,
        steps: Any = 1,
        *,
        start: Any = None,
        task: Quadratic | None = None,
        what: Delivery | None = None,
        wires: Wires | None = None,
        first: int = 1,
        **given: Any,
    ) -> tuple[Any, Trace]:
        """`rounds` rounds, a multiple of CHUNK, from round `first` on."""
        assert rounds % CHUNK == 0
        what = what or self.deliveries(rounds, steps, **given)
        state, traces = self.start if start is None else start, []
        history = self._nothing_sent(state)
        for r in range(0, rounds, CHUNK):
            part = Delivery(*(leaf[r : r + CHUNK] for leaf in what))
            state, history, trace = self._scan(
                state, history, np.int32(first + r), self.data(task), wires or self.wires, part
            )
            traces.append(jax.tree.map(np.asarray, trace))
        return state, jax.tree.map(lambda *parts: np.concatenate(parts), *traces)


def equal(a: Tree, b: Tree) -> bool:
    """Bitwise."""
    return tree.schema(a) == tree.schema(b) and tree.digest(a) == tree.digest(b)


def distance(x: np.ndarray, to: np.ndarray) -> float:
    """The largest, of all nodes and dimensions."""
    return float(abs(x - to).max())


def rms(x: np.ndarray, to: np.ndarray) -> float:
    """Over nodes, dimensions and rounds."""
    return float(np.sqrt(((x - to) ** 2).mean()))
