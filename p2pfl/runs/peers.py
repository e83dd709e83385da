"""The other nodes as a script sees them that takes part in a federation by `p2pfl.join`.

The node's loop and its computing run in threads of their own, its membership in a process beside it. What the script
hands in and gets back goes through `node/handover.py`, and is copied on the way.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, NoReturn, Self, TypeVar

import jax

from p2pfl.drivers.live import clock
from p2pfl.drivers.live.node import LiveNode
from p2pfl.drivers.live.settings import Place
from p2pfl.errors import USER_FAULTS, ConfigError, LocalError, P2PFLError
from p2pfl.node.handover import Handover, Returned
from p2pfl.node.result import NodeResult
from p2pfl.protocol.state import JOINING, STARTING, WAITING
from p2pfl.runs.script_model import ScriptModel
from p2pfl.types import Params, Tree

_LOOK = 0.1
"""Seconds between looks at whether the node still has something to wait for."""

T = TypeVar("T")


def _later() -> NoReturn:
    """It is not there yet."""
    raise queue.Empty


log = logging.getLogger("p2pfl")


class Report(NamedTuple):
    """How a node stands; see `Peers.report`."""

    node: int
    round: int  # the last that is mixed
    members: tuple[int, ...]  # nodes that are there, this one among them
    mixed_with: tuple[int, ...]  # neighbours whose models went into that round
    booked: int  # exchanges so far, and pushes that came in
    voided: int  # exchanges given up
    alone: int  # rounds without half of the nodes that should have been there
    dropped: dict[str, int]  # messages by reason
    bytes_sent: int
    bytes_received: int


class Peers:
    """The other nodes, as a script sees them that takes part by `join`. Not to be made by hand.

    Attributes: `node`, its number; `directory`, where its records and its model lie.
    """

    def __init__(
        self, live: LiveNode, handover: Handover, shapes: ScriptModel, most: float, place: Place, node: int
    ) -> None:
        self.node, self.directory = node, place.directory
        self._live, self._handover, self._shapes, self._most = live, handover, shapes, most
        self._version = 0  # of the node's model that the script has seen
        self._open = False  # a round was handed in, and its end not seen
        self._owed: Params | None = None  # the model that was handed in for it, if one was
        self._stepped = False  # local steps were taken and not mixed
        self._opened = threading.Event()
        self._ended: NodeResult | None = None
        self._error: P2PFLError | None = None
        self._over = self._told = self._lonely = self._left = False
        self._thread = threading.Thread(target=self._run, name=f"p2pfl-node-{node}", daemon=True)

    # --- what there is to know

    @property
    def members(self) -> tuple[int, ...]:
        """The nodes that are there, this one among them, ascending."""
        return self._live.members

    @property
    def round(self) -> int:
        """The last round that is mixed; 0 before the first."""
        return self._handover.newest.round

    @property
    def over(self) -> bool:
        """The node has ended: after its last round, by `leave`, or for a reason that `mix` raises."""
        return self._over

    @property
    def params(self) -> Tree:
        """The model after the latest round that is mixed, of the structure of what was given to `join`."""
        return self._shapes.back(self._handover.newest.model)

    def report(self) -> Report:
        """How the node stands."""
        latest, peer, (sent, received) = self._handover.newest, self._live.peer, self._live.traffic
        return Report(
            self.node, latest.round, self.members, latest.mixed_with, peer.booked, peer.voided, peer.alone,
            self._live.dropped, sent, received,
        )  # fmt: skip

    # --- rounds

    def start(self, timeout: float | None = None) -> Tree:
        """Wait for the others, and return the model to begin with: to be called before the first step, or not at all.

        Whoever comes to others that have begun gets their model, whoever comes back with `resume` its own; everybody
        else gets what was given to `join`.

        Args:
            timeout: seconds, > 0; None: the network's start_timeout.

        Returns:
            `params`, as soon as the node is in a round, or after so many seconds.

        Raises:
            ConfigError: the other nodes run something else.
            LocalError: the node has ended, for that reason.
        """
        self._wait(lambda seconds: self._handover.entered.wait(seconds) or _later(), self._limit(timeout))
        if self._over:
            self._end()
        latest = self._handover.newest
        self._version = latest.version
        return self._shapes.back(latest.model)

    def mix(self, params: Tree = None, *, loss: float | None = None, timeout: float | None = None) -> Tree:
        """Hand in the model, take part in a round, and return the model that it is mixed to.

        It waits for neighbours as long as the network's deadlines say. Where too few are there to begin with, or to go
        on with, it waits for `timeout` seconds, and then returns what it was given: the round stays open, and what is
        booked in it later is added by the next call. Of a node that has just joined others, or come back, the first
        call returns their model (or its own kept one): what was trained on another one is dropped. `start` avoids that.

        Args:
            params: a tree like the one given to `join`; None after `local`, which has moved the node's own model.
            loss: mean training loss of the steps since the last call, for the records.
            timeout: seconds, > 0; None: the network's start_timeout.

        Returns:
            A tree like `params`: arrays of the same kinds, shapes and dtypes, all of them new.

        Raises:
            ConfigError: another structure, shape or dtype; an algorithm that takes its own steps and was given none;
                the other nodes run something else.
            LocalError: the node has ended, for that reason.
        """
        if params is None:
            return self._mix_own(timeout)
        if self._stepped:
            raise ConfigError("mix(params): `local` has taken this round's steps; call mix() without params")
        if not self._shapes.any_steps:
            raise ConfigError(
                f"mix(params): {self._shapes.why}, so that a model alone does not say what a round has done; give its "
                "local steps to peers.local(batches), and then call peers.mix()"
            )
        handed = self._shapes.travelling(params)
        limit = self._limit(timeout)
        if not self._settled(limit, handed):
            return params
        self._open, self._owed = True, handed
        self._handover.give(handed, None if loss is None else float(loss), self._version)
        returned = self._take(limit)
        return params if returned is None else self._shapes.back(returned.model, params)

    def local(self, batches: Tree, *, timeout: float | None = None) -> float:
        """Take the algorithm's own local steps of a round, on the node's own model; `mix()` then mixes it.

        For algorithms that keep more than a model (gradient tracking, push-sum, momentum that is shared), which need
        their own steps; any other can be driven so as well.

        Args:
            batches: {"x": [S, B, ...], "y": [S, B, ...]}, S local steps of B rows.
            timeout: as of `mix`.

        Returns:
            The mean loss over the steps.

        Raises:
            ConfigError: the node has no learner, or it does not take such batches; the steps of this round are taken.
            LocalError: the node has ended; or too few were there within `timeout`, and the text says whether to call it
                again, or `mix`.
        """
        if self._stepped:
            raise ConfigError("local(batches): the steps of this round are taken; call mix() first")
        batches = self._shapes.batches(batches)
        limit = self._limit(timeout)
        if not self._settled(limit, None):
            raise self._gone("the round before is still open, for too few are there to mix with; call local again")
        self._handover.steps(batches)
        self._stepped = True
        loss = self._wait(self._handover.loss, limit)
        if loss is None:
            raise self._gone("the round of these steps has not begun yet; call mix() to go on")
        return loss

    def _mix_own(self, timeout: float | None) -> Tree:
        if not self._stepped:
            raise ConfigError("mix(): no local steps were taken; call peers.local(batches) before, or give mix a model")
        self._stepped, self._open = False, True
        self._handover.release()
        self._take(self._limit(timeout))
        return self.params

    def _limit(self, timeout: float | None) -> float:
        if timeout is not None and not timeout > 0:
            raise ConfigError(f"timeout={timeout!r}: must be > 0 seconds")
        return self._most if timeout is None else timeout

    def _settled(self, limit: float, handed: Params | None) -> bool:
        """Wait for a round that was left open; what was booked in it is added to what is handed in now.

        False: it is still open, or the node has ended.
        """
        if self._over:
            self._end()
            return False
        if not self._open:
            return True
        owed, returned = self._owed, self._take(limit)
        if returned is None:
            return False
        if handed is not None and owed is not None:
            for leaf, after, before in zip(*map(jax.tree.leaves, (handed, returned.model, owed)), strict=True):
                leaf += after - before
        return True

    def _take(self, limit: float) -> Returned | None:
        """Wait for the round's model; None where nobody is there to mix with, or the node has ended."""
        returned = self._wait(self._handover.take, limit)
        if returned is None:
            return None
        if self._owed is not None and returned.version != self._version:
            log.warning(
                "node %d goes on with the model of the others (or its own kept one): what was trained on another one "
                "is dropped. Begin with params = peers.start(), and nothing is", self.node,
            )  # fmt: skip
        self._version, self._lonely = returned.version, False
        self._open, self._owed = False, None
        return returned

    def _wait(self, get: Callable[[float], T | None], limit: float) -> T | None:
        """Wait for something of the node: as long as it waits for neighbours, and for `limit` where too few are there.

        None: it has not come, or will not. Raises what the node has ended with.
        """
        since = clock.now()
        while True:
            try:
                found = get(_LOOK)
            except queue.Empty:
                if self._over:  # and whatever came before its end has been taken
                    break
                if self._live.peer.stage not in (STARTING, JOINING, WAITING):
                    since = clock.now()
                elif clock.now() - since > limit:
                    if not self._lonely:
                        log.warning("node %d: too few are there to mix with (%s)", self.node, self.members)
                    self._lonely = True
                    return None
                continue
            if found is not None:
                return found
            break
        self._end()
        return None

    def _end(self) -> None:
        """The node has ended: say so once, or raise why."""
        self._thread.join()
        self._over = True
        if self._error is not None:
            raise self._error
        if not self._told:
            log.warning("node %d has ended after round %d; models come back as they are given", self.node, self.round)
        self._told = True

    def _gone(self, why: str) -> LocalError:
        over = "the node has ended" if self._over else why
        return LocalError(over, node=self.node, round=self.round, part="local")

    # --- coming and going

    def leave(self) -> NodeResult:
        """Leave in good order, with a checkpoint and the model in `directory`; return how it went.

        Raises:
            LocalError, ConfigError: what the node has ended with; a second call returns the result again.
        """
        self._live.ask_to_leave()
        self._thread.join()
        atexit.unregister(self._quit)
        first, self._left, self._over, self._told = not self._left, True, True, True
        if self._error is not None and (first or self._ended is None):
            raise self._error
        assert self._ended is not None
        return self._ended

    def __enter__(self) -> Self:
        """The peers."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave; an error of the script counts before one of the node."""
        if error is None:
            self.leave()
        else:
            with contextlib.suppress(P2PFLError):
                self.leave()

    def _quit(self) -> None:
        """The interpreter ends."""
        with contextlib.suppress(P2PFLError):
            self.leave()

    def _start(self) -> None:
        """Start the threads, and wait until the sockets are open. Raises what that fails with."""
        self._thread.start()
        self._opened.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        atexit.register(self._quit)

    def _run(self) -> None:
        """Be the node; in its thread."""
        try:
            ended = self._live.run(lambda: None, self._opened.set)
            self._ended = ended
            if ended.error is not None:
                self._error = LocalError(ended.error, node=self.node, round=ended.round, part="node")
        except P2PFLError as error:
            self._error = error
        except USER_FAULTS as error:
            text = f"{type(error).__name__}: {error}"
            self._error = LocalError(text, node=self.node, round=self.round, part="node")
        finally:
            self._over = True
            self._handover.ended()
            self._opened.set()
