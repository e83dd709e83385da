"""The task of a node: all that a driver needs to know of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from p2pfl.churn import Event
from p2pfl.learning.batching import Batching, EvalSet
from p2pfl.node.fit import Growth, NodeSlice
from p2pfl.node.masked import MaskedSums
from p2pfl.node.program import Program
from p2pfl.types import Inbox, Neighborhood, Payload, Schedule, State, Tree


class NodeSchedule(NamedTuple):
    """One node's rows of a schedule; round r uses row (r - 1) % T."""

    neighbor: np.ndarray  # [T, K] int32, ascending; -1 behind them
    weight: np.ndarray  # [T, K] W[i, j]
    out_weight: np.ndarray  # [T, K] W[j, i]
    trains: np.ndarray  # [T] bool

    def row(self, round: int) -> int:
        """Return the row of a round."""
        return (round - 1) % len(self.neighbor)

    def neighbors(self) -> tuple[int, ...]:
        """Return everyone it ever receives from or sends to, ascending."""
        return tuple(int(j) for j in np.unique(self.neighbor) if j >= 0)

    def receives_from(self, round: int) -> tuple[int, ...]:
        """Return neighbours whose value it takes in this round; on an undirected graph also those that take its own."""
        t = self.row(round)
        return tuple(int(j) for j in self.neighbor[t, self.weight[t] > 0])

    def sends_to(self, round: int) -> tuple[int, ...]:
        """Return neighbours that take its value in this round."""
        t = self.row(round)
        return tuple(int(j) for j in self.neighbor[t, self.out_weight[t] > 0])

    def weight_of(self, node: int, round: int) -> float:
        """Return W[i, j] in this round; 0 where nothing comes from j."""
        t = self.row(round)
        return float(self.weight[t, self.neighbor[t] == node].sum())

    def out_weight_of(self, node: int, round: int) -> float:
        """Return W[j, i] in this round; 0 where nothing goes to j."""
        t = self.row(round)
        return float(self.out_weight[t, self.neighbor[t] == node].sum())

    def exchange_weight(self, node: int, mine: int, theirs: int) -> float:
        """Return the weight of an exchange that this end opened in round `mine` and the other in `theirs`.

        Both ends know both rounds, and W is symmetric: so both find the same.
        """
        return self.weight_of(node, max(mine, theirs)) or self.weight_of(node, min(mine, theirs))

    def slots(self, per_edge: bool) -> int:
        """Return the places that a program needs.

        Those of the busiest round, and on a changing graph two more for late exchanges.
        """
        ids = self.neighbors()
        if per_edge or len(self.neighbor) == 1:
            return len(ids)
        return min(len(ids), int((self.neighbor >= 0).sum(axis=1).max()) + 2)

    def turn(self, round: int) -> int:
        """Return how many rounds up to this one, it included, have local steps."""
        whole, rest = divmod(round, len(self.trains))
        return int(whole * self.trains.sum() + self.trains[:rest].sum())


def node_schedule(schedule: Schedule, node: int) -> NodeSchedule:
    """Return a node's part of the schedule."""
    return NodeSchedule(*(part[:, node] for part in schedule))


class StepBudget(NamedTuple):
    """How many local steps a node may take in all its lives, each of which tells of its rows."""

    steps: int
    terms: str  # what a step costs: of other terms no count of earlier processes means anything
    counted: Callable[[State, int], State]  # a state, and what earlier processes have taken: one that counts them
    a_round: int | None = None  # counted in a round; None: its local steps


class Held(NamedTuple):
    """Validation rows of a node, which are the same in every round; those that are stored are read when one begins."""

    x: np.ndarray  # [N, ...]
    y: np.ndarray
    places: np.ndarray  # [V, B] in x and y: batches, the last of them filled up


class Task(NamedTuple):
    """The data and the program of a node; nothing of the network."""

    node: int
    neighbors: tuple[int, ...]  # everyone it ever exchanges with, ascending
    schedule: NodeSchedule
    link: str  # of the algorithm: exchange | push | none
    per_edge: bool  # of the algorithm: slot k of program and payload then stands for neighbors[k], in every round
    lost: Callable[[int, int, int], bool]  # (round, sender, receiver): the experiment's network loses this message
    program: Program
    slots: int  # places for neighbours; of a program, whatever it was made with
    within: Callable[[tuple[int, ...]], NodeSchedule]  # this node's part of the schedule while these are the members
    note: Callable[[tuple[int, ...]], str]  # what a person should know of that epoch
    seed: int
    rounds: int
    x: np.ndarray  # the node's own training rows
    y: np.ndarray
    site: Tree  # what the node knows of its own data, where the algorithm or the learner asks for it
    batching: Batching
    test: EvalSet
    own: np.ndarray  # the test rows that are this node's own
    pooled: bool  # the test rows are those of all nodes, not only its own
    evaluate_every: int
    events: tuple[Event, ...] = ()  # that the experiment plans, of all nodes and of the network
    held: Held | None = None  # validation rows that go before the batches of a round of training
    patient: bool = False  # the node may end its training by them
    score: str = "accuracy"  # what a model is scored by: a key of p2pfl.learning.targets
    meaning: str = ""  # what the rows mean, in one line: the dictionary of the data
    compare: Callable[[str], Sequence[str]] = lambda theirs: ()  # with another's: what differs, in words; or ValueError
    learned: Callable[[Tree], Sequence[str] | None] | None = None  # of its rows beside all, in words; None: not yet
    fit: NodeSlice | None = None  # where nodes have models of unequal shapes
    growth: Growth | None = None  # where what travels depends on the round
    part: float = 1.0  # share of the nodes that takes part in a round
    budget: StepBudget | None = None  # where local steps are counted
    sums: MaskedSums | None = None  # where nobody sees what a single node sends
    due: int = 0  # the round at whose end statistics of all data must be known; 0: none

    def at(self, members: tuple[int, ...]) -> Task:
        """Return the same task in the epoch of these members, this node among them. Slots never become fewer."""
        part = self.within(members)
        return self._replace(
            schedule=part, neighbors=part.neighbors(), slots=max(self.slots, part.slots(self.per_edge))
        )

    def batches(self, round: int) -> dict[str, np.ndarray]:
        """Return the rows of the round's local steps, [S, B, ...]; S is 0 in a round without."""
        trains = bool(self.schedule.trains[self.schedule.row(round)])
        rows = self.batching.indices(self.schedule.turn(round))[0] if trains else np.zeros((0, 1), np.int64)
        found = {"x": self.x[rows], "y": self.y[rows]}
        if self.held is None or not trains:
            return found
        return {
            name: np.concatenate([getattr(self.held, name)[self.held.places], part]) for name, part in found.items()
        }

    @property
    def ahead(self) -> int:
        """The batches that go before those of the local steps."""
        return 0 if self.held is None else len(self.held.places)

    def slot(self, node: int) -> int:
        """Return the slot of a neighbour, where slots are fixed."""
        return self.neighbors.index(node)

    def outgoing(self, round: int, receivers: tuple[int, ...]) -> Neighborhood:
        """Return what `send` needs: the shares of those that the schedule names in this round.

        `receivers`: where algorithms push, the only ones who get anything; exchanges are opened with all who are there.
        """
        weight = np.zeros(self.slots)
        share = np.zeros(self.slots)
        named = [j for j in self.schedule.sends_to(round) if j in receivers or self.link == "exchange"]
        for k, j in enumerate(named):
            share[self.slot(j) if self.per_edge else k] = self.schedule.out_weight_of(j, round)
        return Neighborhood(weight, share)

    def inbox(self, round: int, booked: Sequence[Booked], own: Payload) -> tuple[Inbox, Neighborhood, dict[int, int]]:
        """Return what `mix` needs: at most one booking of each neighbour, at most as many as there are slots.

        Slots follow the neighbours' ids. What the schedule names and was not booked has its weight and did not arrive.
        `own`: this round's payload, to fill the sides of such slots. Also returns neighbour -> slot.
        """
        slots = self.slots
        theirs = {each.node: each for each in booked}
        ids = sorted({*theirs, *self.schedule.receives_from(round)})
        while len(ids) > slots:  # late bookings of a graph that changes take the places of what did not come
            ids.remove(next(j for j in ids if j not in theirs))
        at = {j: self.slot(j) if self.per_edge else k for k, j in enumerate(ids)}
        sent = [part(own, k) if self.per_edge else own for k in range(slots)]
        received = list(sent)
        arrived, age, weight = np.zeros(slots, bool), np.zeros(slots, np.int32), np.zeros(slots)
        for j, k in at.items():
            weight[k] = self.schedule.weight_of(j, round)
            if j in theirs:
                one = theirs[j]
                sent[k], received[k] = one.sent, one.received
                arrived[k], age[k] = True, round - one.mine
                weight[k] = (
                    self.schedule.exchange_weight(j, one.mine, one.theirs)
                    if self.link == "exchange"
                    else self.schedule.weight_of(j, one.theirs)
                )
        return Inbox(tuple(sent), tuple(received), arrived, age), Neighborhood(weight, np.zeros(slots)), at


class Booked(NamedTuple):
    """An exchange, or a push that came in: opened here in round `mine`, by the neighbour `node` in round `theirs`."""

    node: int
    life: int  # the neighbour's
    number: int  # of the exchange; of a push its round
    mine: int
    theirs: int
    sent: Payload  # this node's side of it: for an algorithm that is per_edge, its part
    received: Payload


def part(payload: Payload, slot: int) -> Payload:
    """Return what goes to one slot of a payload that is per_edge."""
    return jax.tree.map(lambda leaf: leaf[slot], payload)


Scores = tuple[float | None, float | None]
"""On the pooled test rows, and on the node's own; None where there are none."""


def evaluated(task: Task, state: State, round: int) -> Scores | None:
    """Return the score of a node's model, or None in a round that is not evaluated."""
    if round % task.evaluate_every and round != task.rounds:
        return None
    if not task.test.rows:  # a task without labels, such as the quadratic one
        return None, None
    score, _ = task.program.evaluate(state, task.test)
    own = float(score[task.own].mean()) if len(task.own) else None
    return (float(score.mean()) if task.pooled else None), own
