"""A replica whose local steps somebody else takes: a loop of the user's own, in another thread of this process.

The node's computing thread, before it can train in a round, waits for what that loop hands in: a model that it has
trained (`give`), or batches for the algorithm's own local steps (`steps`, and `release` when they are done with). When
the round is mixed, the loop gets the model back (`take`). Nothing that the loop holds is shared with the node: what it
hands in is copied, and what it gets is a copy, so that it may change or donate either.

A loop that has stopped waiting for a round owes nothing: the round goes on without it, and its model is
what the next `take` returns.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from p2pfl import tree
from p2pfl.node import records
from p2pfl.node.replica import Replica
from p2pfl.node.task import Booked, Task
from p2pfl.types import Array, Neighborhood, Params, Payload, State, Tree


class Given(NamedTuple):
    """A model that the loop has trained."""

    model: Params  # numpy; the parts that are mixed
    loss: float | None  # of its steps, if it says so
    version: int  # of the node's model that the loop has trained on


class Steps(NamedTuple):
    """Batches for the algorithm's own local steps, [S, B, ...]."""

    batches: Tree


class Released(NamedTuple):
    """What the local steps have led to may be sent."""


class NoMore(NamedTuple):
    """Nothing more will be handed in."""


Request = Given | Steps | Released | NoMore


class Returned(NamedTuple):
    """What the loop gets of a round."""

    round: int
    model: Params  # numpy; the parts that are mixed
    mixed_with: tuple[int, ...]  # neighbours, ascending
    version: int


class Handover(Replica):
    """See the module. What a method is called by stands with it: "in the loop" or "in the node"."""

    def __init__(self, task: Task) -> None:
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._returned: queue.SimpleQueue[Returned | None] = queue.SimpleQueue()
        self._losses: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self.entered = threading.Event()  # into a round: with its own model, or that of others
        self._next: Request | None = None
        self._stopped = False
        self._owes = False  # the loop waits for the model of this round
        self._counts = 0  # local steps of the latest round that have a loss
        self._booked: tuple[int, ...] = ()
        self._versions = 0  # models that this node began or came back with, each of which is news to the loop
        super().__init__(task)
        self.newest = Returned(0, self._own(), (), 0)
        """The model after the latest mixing, and of what round it is."""

    # --- in the loop

    def give(self, model: Params, loss: float | None, version: int) -> None:
        """Hand in a model for the next round."""
        self._requests.put(Given(model, loss, version))

    def steps(self, batches: Tree) -> None:
        """Hand in batches for the next round; `loss` waits until the steps are taken."""
        while not self._losses.empty():  # of steps whose loss nobody has waited for
            self._losses.get()
        self._requests.put(Steps(batches))

    def loss(self, timeout: float) -> float | None:
        """Return the mean loss of these steps; None where the node has ended. Raises queue.Empty."""
        return self._losses.get(timeout=timeout)

    def release(self) -> None:
        """Let the round of these steps go on."""
        self._requests.put(Released())

    def take(self, timeout: float) -> Returned | None:
        """Return the model of a round that was handed in; None where the node has ended. Raises queue.Empty."""
        return self._returned.get(timeout=timeout)

    def stop(self) -> None:
        """Hand in nothing more; in any thread."""
        self._requests.put(NoMore())

    # --- in the node

    def ended(self) -> None:
        """The node has ended: nobody shall wait for it any more."""
        self._returned.put(None)
        self._losses.put(None)
        self.entered.set()

    def begins(self, round: int) -> bool:
        """Wait for the loop. Of rounds that are skipped, and of what a loop has left undone, nothing is kept."""
        self.entered.set()
        while self._next is None or isinstance(self._next, Released):
            self._next = self._requests.get()
        return not isinstance(self._next, NoMore)

    def ends(self, round: int) -> None:
        """Return the model to the loop."""
        self.newest = Returned(round, self._own(), self._booked, self._versions)
        if self._owes:
            self._owes = False
            self._returned.put(self.newest)

    def mix(self, round: int, booked: Sequence[Booked]) -> list[Booked]:
        """As any node does."""
        mixed = super().mix(round, booked)
        self._booked = tuple(sorted(each.node for each in mixed))
        return mixed

    def adopt(self, model: Params, node: int, life: int, round: int) -> records.Adopted:
        """As any node does; the loop has not seen that model."""
        record = super().adopt(model, node, life, round)
        self._news(round)
        return record

    def renew(self, life: int, round: int, kept: tuple[int, int] | None = None) -> records.Kept:
        """As any node does; the loop has not seen a model that was kept."""
        record = super().renew(life, round, kept)
        if kept is not None:
            self._news(kept[1])
        return record

    def _news(self, round: int) -> None:
        self._versions += 1
        self.newest = Returned(round, self._own(), (), self._versions)

    def _computed(
        self, round: int, receivers: tuple[int, ...], steps: int | None
    ) -> tuple[State, Array, Payload, Params | None]:
        request, self._next, around = self._next, None, self.task.outgoing(round, receivers)
        if isinstance(request, Steps):
            return self._trained(request, round, around)
        own = tree.mixed(self.task.program.params(self.state))
        given = isinstance(request, Given)
        # who comes to others, or back, goes on with their model, and not with what it has made of another one
        model = request.model if isinstance(request, Given) and request.version == self._versions else own
        state, payload, public = self.task.program.put(self.state, model, around)
        loss = request.loss if isinstance(request, Given) else None
        self._counts, self._owes = int(loss is not None), given
        return state, np.float32(math.nan if loss is None else loss), self._parts(payload), public

    def _trained(self, request: Steps, round: int, around: Neighborhood) -> tuple[State, Array, Payload, Params | None]:
        """Take the algorithm's own local steps, and wait until the loop lets the round go on."""
        node = self.task.node
        state, loss, payload, model = self.task.program.train(
            self.state, request.batches, np.int32(node), np.int32(round), around
        )
        self._counts, self._owes = 1, True
        self._losses.put(float(loss))
        following = self._requests.get()
        if isinstance(following, NoMore):  # whose turn comes after this round
            self._next, self._owes = following, False
        return state, loss, self._parts(payload), model

    def _steps(self, round: int, steps: int | None) -> int:
        return self._counts

    def _own(self) -> Params:
        """A copy of the parts of the model that are mixed, in host memory."""
        return jax.tree.map(np.array, tree.mixed(self.task.program.params(self.state)))
