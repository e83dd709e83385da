"""One node as a plain object around its compiled program: what the plain loop and the replay are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from p2pfl.errors import LocalError
from p2pfl.program import Mixed
from p2pfl.task import Accuracy, Booked, Task, evaluated, part
from p2pfl.types import Params, Payload, State


class Node:
    """A life of a node: its state, and what it has sent in the latest `keep` rounds."""

    def __init__(self, task: Task, life: int = 1, keep: int = 1) -> None:
        self.task, self.life, self.keep = task, life, keep
        self.state: State = task.program.init(task.seed)
        self.payloads: dict[int, Payload] = {}  # by round
        self.models: dict[int, Params] = {}  # after the local steps, by round
        self.round = 0  # the last it has trained in
        self.loss = 0.0
        self.before: Accuracy | None = None

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
        for kept in (self.payloads, self.models):
            for old in [r for r in kept if r <= round - self.keep]:
                del kept[old]
        self.before = evaluated(task, self.state, round)

    def said(self, to: int, round: int) -> Payload:
        """What a neighbour got, or was to get, of a round's payload."""
        payload = self.payloads[round]
        return part(payload, self.task.slot(to)) if self.task.per_edge else payload

    def mix(self, round: int, booked: Sequence[Booked]) -> tuple[Mixed, dict[int, int]]:
        """Mix what was booked; also returns neighbour -> slot."""
        inbox, around, slots = self.task.inbox(round, booked, self.payloads[self.round])
        self.state, mixed = self.task.program.mix(self.state, inbox, around)
        return mixed, slots

    def adopt(self, model: Params) -> None:
        """Begin with the model of a neighbour."""
        self.state = self.task.program.adopt(self.state, model)

    def renew(self, neighbours: Sequence[int]) -> None:
        """These neighbours have begun a new life."""
        if self.task.per_edge and neighbours:
            slots = np.isin(np.arange(self.task.slots), [self.task.slot(j) for j in neighbours])
            self.state = self.task.program.renew(self.state, slots)
