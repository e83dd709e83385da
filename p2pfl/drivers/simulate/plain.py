"""One node as a plain object around its compiled program: what the plain loop and the replay are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from p2pfl.errors import LocalError
from p2pfl.node.program import Mixed
from p2pfl.node.task import Booked, Scores, Task, evaluated, part
from p2pfl.types import Params, Payload, State


class Node:
    """A life of a node: its state, and what it has sent in the latest `keep` rounds."""

    def __init__(self, task: Task, life: int = 1, keep: int = 1) -> None:
        self.whole, self.task, self.life, self.keep = task, task, life, keep
        self.state: State = task.program.init(task.seed, task.site)
        self.payloads: dict[int, Payload] = {}  # by round
        self.models: dict[int, Params] = {}  # after the local steps, by round
        self.order: dict[int, tuple[int, ...]] = {}  # the neighbours of the epoch, by round: whose the parts are
        self.round = 0  # the last it has trained in
        self.loss = 0.0
        self.before: Scores | None = None

    def train(self, round: int, speak: tuple[int, ...], steps: int | None = None) -> None:
        """The local steps of a round (the first `steps` of them) and the payload. Raises LocalError."""
        task, batches = self.task, self.task.batches(round)
        if steps is not None:
            batches = {name: rows[:steps] for name, rows in batches.items()}
        try:
            self.state, loss, payload, model = task.program.train(
                self.state, batches, np.int32(task.node), np.int32(round), task.outgoing(round, speak)
            )
        except (ArithmeticError, ValueError, TypeError, RuntimeError) as error:
            raise LocalError(str(error), node=task.node, round=round, part="train") from error
        self.round, self.loss = round, float(loss)
        self.payloads[round], self.models[round] = payload, payload if model is None else model
        self.order[round] = task.neighbors
        self.forget(
            [r for r in self.payloads if r <= round - self.keep], [r for r in self.models if r <= round - self.keep]
        )
        self.before = evaluated(task, self.state, round)

    def said(self, to: int, round: int) -> Payload:
        """What a neighbour got, or was to get, of a round's payload."""
        payload = self.payloads[round]
        return part(payload, self.order[round].index(to)) if self.task.per_edge else payload

    def forget(self, payloads: Sequence[int], models: Sequence[int]) -> None:
        """Rounds whose payloads, and whose models, are needed no more."""
        for round in payloads:
            del self.payloads[round], self.order[round]
        for round in models:
            del self.models[round]

    def mix(self, round: int, booked: Sequence[Booked]) -> tuple[Mixed, dict[int, int]]:
        """Mix what was booked; also returns neighbour -> slot."""
        inbox, around, slots = self.task.inbox(round, booked, self.payloads[self.round])
        self.state, mixed = self.task.program.mix(self.state, inbox, around)
        return mixed, slots

    def adopt(self, model: Params) -> None:
        """Begin with the model of a neighbour."""
        self.state = self.task.program.adopt(self.state, model)

    def enter(self, members: tuple[int, ...]) -> None:
        """A new epoch of these members begins: its graph, and what has an invariant sum over the nodes afresh."""
        self.task = self.whole.at(members)
        self.state = self.task.program.restart(self.state, self.task.slots)
