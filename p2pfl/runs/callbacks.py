"""The one seam of a run for logging, early stop and checkpoints: `Callback`, the same in every driver."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from p2pfl.check import at_least
from p2pfl.drivers.live import clock
from p2pfl.errors import ConfigError
from p2pfl.reporting.run_data import Score, measured
from p2pfl.runs import summary
from p2pfl.runs.progress import Watch
from p2pfl.types import Params


class RunInfo(NamedTuple):
    """What is known of a run before its first round."""

    name: str  # of the experiment; of `p2pfl.simulate`, of the algorithm
    nodes: int
    rounds: int
    evaluate_every: int  # rounds between two calls of `round`; the last round has one in any case
    algorithm: str
    driver: str  # "live", "virtual" or "simulate"
    score: Score  # what the scores of a round are: its key in files, its name, and whether it is read in percent
    out: Path | None  # the run directory; None of `p2pfl.simulate`


class RoundInfo(NamedTuple):
    """All n nodes at the end of a round that was evaluated. Arrays are [n]; NaN stands for what was not measured."""

    round: int
    active: np.ndarray  # bool: the node took part in the round
    train_loss: np.ndarray  # mean over the node's local steps
    score: np.ndarray  # of the mixed model on all test rows
    score_own: np.ndarray  # ... on the node's own test rows
    score_before: np.ndarray  # of the model before mixing, on all test rows
    seconds: float  # on this machine's clock, since `begin`
    models: Callable[[], Params] | None  # the models after this round, numpy [n, ...] each; None where they are in
    # processes of their own, or have gone on: "live" and "virtual". To be called within `round`


class Callback:
    """What is done in the course of a run; override what you need.

    For one experiment every driver makes the same calls: `begin` once, `round` once for each evaluated round, in order,
    and `end` once.

    Example:
        >>> import p2pfl
        >>> class Log(p2pfl.Callback):
        ...     def round(self, info):
        ...         print(info.round, info.score.mean())
    """

    def begin(self, info: RunInfo) -> None:
        """Begin: all is built, the baselines are trained, and no node has begun."""

    def round(self, info: RoundInfo) -> bool | None:
        """Look at a round; True ends the run here, in good order.

        An exception does so, too, and is raised by whoever runs the experiment, as soon as all that the run leaves is
        written.
        """

    def end(self, result: Any) -> None:
        """End with what the caller gets: `p2pfl.RunResult`, or `Simulated`. Not called after an exception."""


class EarlyStopping(Callback):
    """End a run whose training loss has stopped falling.

    The loss is the mean over the nodes of that of their local steps in a round. It is not the score: that is measured
    on test rows, and a run that ends where they are served best says too good things of itself.
    """

    def __init__(self, patience: int, margin: float = 0.0) -> None:
        """Set the limits.

        Args:
            patience: evaluated rounds, >= 1, without a new lowest loss, upon which the run ends.
            margin: by how much, >= 0, a loss must be lower to count as such.

        Raises:
            ConfigError: a number is out of range.

        Example:
            >>> import p2pfl
            >>> p2pfl.EarlyStopping(patience=0)
            Traceback (most recent call last):
            ...
            p2pfl.errors.ConfigError: patience=0: must be >= 1
        """
        at_least(1, patience=patience)
        at_least(0, margin=margin)
        self._patience, self._margin = patience, margin
        self._lowest, self._without = np.inf, 0

    def begin(self, info: RunInfo) -> None:
        """Forget an earlier run."""
        self._lowest, self._without = np.inf, 0

    def round(self, info: RoundInfo) -> bool:
        """Compare the loss with the lowest so far; a mean that is not finite is no new lowest."""
        loss = float(info.train_loss[info.active].mean()) if info.active.any() else np.inf
        self._without += 1
        if loss < self._lowest - self._margin:
            self._lowest, self._without = loss, 0
        return self._without >= self._patience


class Stop(NamedTuple):
    """A callback has ended the run, by its wish or by an exception."""

    round: int
    by: str


class Callbacks:
    """The callbacks of a run, on the side of whoever runs it. `stop`: who has ended it, once somebody has."""

    def __init__(self, given: Sequence[Callback] = ()) -> None:
        """Raises ConfigError for what is no callback."""
        if isinstance(given, Callback) or not isinstance(given, Sequence):
            raise ConfigError(f"callbacks: must be a list of callbacks; got {type(given).__name__}")
        for i, each in enumerate(given):
            if not isinstance(each, Callback):
                what = f"the class {each.__name__}" if isinstance(each, type) else f"a {type(each).__name__}"
                raise ConfigError(f"callbacks[{i}]: is {what}; must be an object of a class below p2pfl.Callback")
        self._given = tuple(given)
        self._info: RunInfo | None = None
        self._began = 0.0
        self._complete = False
        self.stop: Stop | None = None
        self.error: Exception | None = None  # of a callback, to be raised when the run has ended

    def __bool__(self) -> bool:
        return bool(self._given)

    @property
    def early(self) -> Stop | None:
        """The stop, where rounds were left to be made."""
        some = self.stop and self._info and self.stop.round < self._info.rounds and not self._complete
        return self.stop if some else None

    @property
    def when(self) -> str:
        """When it was stopped early and by whom; "" where it was not."""
        early, info = self.early, self._info
        return f"at round {early.round} of {info.rounds} by {early.by}" if early and info else ""

    @property
    def until(self) -> int | None:
        """The last round that counts, where that is not the experiment's."""
        return self.early.round if self.early else None

    def ended(self, out: Path) -> None:
        """The nodes whose records are in `out` have ended; if nobody has left since, the stop has come too late."""
        if self.stop is not None and summary.left(out) == summary.left(out, self.stop.round):
            self._complete = True

    def begin(self, info: RunInfo) -> None:
        """A run begins."""
        self._info = info
        for each in self._given:
            each.begin(info)
        self._began = clock.now()

    def round(
        self,
        round: int,
        active: np.ndarray,
        values: Mapping[str, np.ndarray | None],
        models: Callable[[], Params] | None = None,
    ) -> bool:
        """Tell all of a round; return whether it is the last one. `values`: [n] by their names in RoundInfo."""
        named = {
            name: np.full(len(active), np.nan)
            if (given := values.get(name)) is None
            else np.where(active, given, np.nan)
            for name in ("train_loss", "score", "score_own", "score_before")
        }
        info = RoundInfo(round=round, active=active, seconds=clock.now() - self._began, models=models, **named)
        for each in self._given:
            with (caught := _Caught()):
                if each.round(info) and self.stop is None:
                    self.stop = Stop(round, type(each).__name__)
            if caught.error is not None:
                self.stop, self.error = Stop(round, type(each).__name__), caught.error
                break
        return self.stop is not None

    def follow(self, watch: Watch, waited_for: Collection[int], models: Callable[[], Params] | None = None) -> bool:
        """Tell all of the rounds that these nodes have finished, by the records of all; return whether to end there."""
        key = watch.score.key
        names = {"train_loss": "train_loss", "score": f"{key}_after_mixing", "score_own": f"{key}_own",
                 "score_before": f"{key}_before_mixing"}  # fmt: skip
        for round, rows in watch.evaluated(waited_for):
            active = np.array([node in rows for node in watch.rounds_of])
            values = {
                name: np.array([_number(rows.get(node, {}).get(field)) for node in watch.rounds_of])
                for name, field in names.items()
            }
            if self.round(round, active, values, models):
                return True
        return False

    def end(self, result: Any) -> None:
        """A run has ended, and all that it leaves is written. Raises what a callback has raised."""
        if self.error is not None:
            raise self.error
        for each in self._given:
            each.end(result)


def _number(value: object) -> float:
    known = measured(value)
    return np.nan if known is None else known


class _Caught(contextlib.AbstractContextManager["_Caught"]):
    """Keeps an exception of a callback, whatever it is, until nodes and files are as they should be."""

    error: Exception | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, Exception):
            self.error = error
            return True
        return False
