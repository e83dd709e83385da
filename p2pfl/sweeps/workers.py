"""Makes the runs of a sweep in worker processes, each of which imports once and then makes one run after another.

What a worker does is `p2pfl.sweeps.process`. Each stands behind an executor of its own: one that dies takes no other's
run with it, and it is known which run it was making.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Self

from p2pfl.config import experiment
from p2pfl.drivers.live import clock
from p2pfl.errors import ConfigError, stopping
from p2pfl.runs import origin
from p2pfl.sweeps import process
from p2pfl.sweeps.plan import SweepPlan, SweepRun, directory, done, many, named
from p2pfl.sweeps.results import Made, RunAnswer
from p2pfl.sweeps.table import Progressing

_TRIES = 2
"""Workers that a run may cost."""


def make_all(plan: SweepPlan, out: Path, runs: Sequence[SweepRun], count: int, shown: Progressing) -> Made:
    """Make the runs that are not there yet, `count` at once. Raises ConfigError before the first one starts."""
    began = clock.now()
    _able()
    prepare(out, plan.file)
    with origin.held(out):
        return _made(plan, out, runs, count, shown, began)


def _made(plan: SweepPlan, out: Path, runs: Sequence[SweepRun], count: int, shown: Progressing, began: float) -> Made:
    failed = {}
    left = [run for run in runs if not done(out, run)]
    if len(left) < len(runs):
        shown.say(f"{len(runs) - len(left)} of {len(runs)} runs are there already")
    if not left:
        return Made({}, False, clock.now() - began)
    for run in left:
        _refuse(directory(out, run))
    paths = dict.fromkeys([Path.cwd(), plan.file.resolve().parent, plan.base.resolve().parent])
    try:
        with Workers(out, min(count, len(left)), list(paths)) as workers:
            shown.say(f"checking {len(left)} experiments")
            workers.check(left)
            shown.begin(len(left))
            for answer in workers.make(left, shown.started):
                shown.ended(answer)
                if answer.fault is not None:
                    failed[answer.run.name] = answer.fault
    except KeyboardInterrupt as error:
        return Made(failed, stopping(error), clock.now() - began)
    return Made(failed, 0, clock.now() - began)


def prepare(out: Path, file: Path) -> None:
    """Make OUT, and keep the sweep file in it. Raises ConfigError when OUT holds something other than a sweep."""
    mine = out / "sweep.toml"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not mine.is_file())):
        raise ConfigError(
            f"out={str(out)!r}: holds something other than a sweep; choose another directory, or remove it"
        )
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, mine)


def _able() -> None:
    """Raise ConfigError where there can be no workers: what they wait for each other by lies in /dev/shm."""
    try:
        multiprocessing.get_context("spawn").Lock()
    except OSError as error:
        raise ConfigError(
            f"/dev/shm: can't be used: {error.strerror}; the workers of a sweep need it. Mount it writable, or "
            "make the runs one by one with p2pfl run"
        ) from error


def _refuse(path: Path) -> None:
    """Raise ConfigError where something that is not a run stands in the way of one."""
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not (path / "experiment.toml").is_file())):
        raise ConfigError(f"{path}: is not a run; move it away, a run of the sweep belongs there")


class Workers:
    """Worker processes. To be used in a `with`: whatever happens, they end with it."""

    def __init__(self, out: Path, count: int, paths: Sequence[Path]) -> None:
        self._out, self._paths = out, [str(path) for path in paths]
        self._idle = list(reversed(range(count)))  # numbers of the workers that have nothing to do
        self._members: dict[int, _WorkerProcess] = {}
        self._others = set(multiprocessing.active_children())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in set(multiprocessing.active_children()) - self._others:
            child.kill()
        for member in self._members.values():
            member.executor.shutdown()

    def check(self, runs: Sequence[SweepRun]) -> None:
        """Build every experiment, and nothing more. Raises ConfigError naming all combinations that are refused."""
        faults: dict[str, str] = {}
        for answer in self._answers(runs, lambda run: None):
            if answer.fault is not None:
                faults.setdefault(named(answer.run.labels), answer.fault)
        if faults:
            raise ConfigError(many([f"{labels}: {fault}" for labels, fault in faults.items()]))

    def make(self, runs: Sequence[SweepRun], started: Callable[[SweepRun], None]) -> Iterator[RunAnswer]:
        """Make the runs; answers come as they are done. What is there of a run is removed."""

        def place(run: SweepRun) -> Path:
            path = directory(self._out, run)
            if path.exists():  # a run that was not finished, or is of another experiment
                shutil.rmtree(path)
            started(run)
            return path

        return self._answers(runs, place)

    def _answers(self, runs: Sequence[SweepRun], place: Callable[[SweepRun], Path | None]) -> Iterator[RunAnswer]:
        waiting, tries = deque(runs), Counter[str]()
        at_work: dict[Future[str | None], tuple[int, SweepRun, float]] = {}
        while waiting or at_work:
            while waiting and self._idle:
                number, run = self._idle.pop(), waiting.popleft()
                tries[run.name] += 1
                if number not in self._members:
                    self._members[number] = _WorkerProcess(self._out / f"worker{number}.log", self._paths)
                future = self._members[number].order(experiment.dump(run.wanted), place(run))
                at_work[future] = (number, run, clock.now())
            for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                number, run, since = at_work.pop(future)
                self._idle.append(number)
                try:
                    fault = future.result()
                except BrokenProcessPool:
                    fault = self._members.pop(number).died()
                    if tries[run.name] < _TRIES:
                        waiting.appendleft(run)
                        continue
                yield RunAnswer(run, fault, clock.now() - since)


class _WorkerProcess:
    """One worker process, seen from the sweep."""

    def __init__(self, log: Path, paths: list[str]) -> None:
        self._log = log
        log.unlink(missing_ok=True)  # what it says here is no earlier one's
        # spawned, not forked: JAX has threads
        self.executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), process.start, (str(log), paths))
        before = set(multiprocessing.active_children())
        self._ready = self.executor.submit(os.getpid)
        self._process = next(iter(set(multiprocessing.active_children()) - before), None)

    def order(self, text: str, out: Path | None) -> Future[str | None]:
        """Have a run made, or only built; BrokenProcessPool in the future where the process has died."""
        try:
            return self.executor.submit(process.make, text, None if out is None else str(out))
        except BrokenProcessPool as error:
            future: Future[str | None] = Future()
            future.set_exception(error)
            return future

    def died(self) -> str:
        """Return what the process died of. Raises ConfigError when it never came so far as to work."""
        self.executor.shutdown()
        status = 0 if self._process is None else self._process.exitcode or 0
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        text = self._log.read_text("utf-8", "replace") if self._log.exists() else ""
        last = (text.strip().splitlines() or ["it said nothing"])[-1][:200]
        if self._ready.exception() is not None:
            raise ConfigError(f"a worker ended while it was starting ({how}): {last}")
        return f"its process ended with {how}: {last}"
