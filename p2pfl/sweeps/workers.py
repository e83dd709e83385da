"""Makes the runs of a sweep: worker processes that import once and then make one run after another.

`python -m p2pfl.sweeps.workers` is a worker: it reads an order per line of standard input, as JSON, and answers each
with a line. {"do": "check", "experiment": TOML} asks whether it can be built; {"do": "run", ..., "out": DIR} to make
it. A worker computes in one thread, so that as many as there are cores don't get in each other's way. It says "ready"
once it has imported everything; it ends when its standard input does, so that none outlives the sweep.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import subprocess
import sys
import tomllib
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from p2pfl.config import experiment
from p2pfl.config.experiment import Experiment
from p2pfl.drivers.live import clock
from p2pfl.errors import USER_FAULTS, ConfigError, P2PFLError
from p2pfl.sweeps import plan as sweeping
from p2pfl.sweeps.plan import SweepPlan, SweepRun

_FAULTS = (P2PFLError, *USER_FAULTS)
"""What a run fails with while the worker goes on. With anything else it ends, and is replaced."""
_TRIES = 2
"""Workers that a run may cost."""


class RunAnswer(NamedTuple):
    """What came of an order; `fault`: why it failed, in one line or several."""

    run: SweepRun
    fault: str | None
    seconds: float


class Shown(Protocol):
    """What shows a sweep while it goes on."""

    def say(self, text: str) -> None:
        """One line that stays."""

    def begin(self, runs: int) -> None:
        """So many runs will be made."""

    def started(self, run: SweepRun) -> None:
        """A run has been given to a worker."""

    def ended(self, answer: RunAnswer) -> None:
        """A run is done, or has failed."""


class Made(NamedTuple):
    """What a call of `sweep` did."""

    failed: dict[str, str]  # name of a run -> why
    interrupted: bool
    seconds: float


# --- the sweep's end


def sweep(plan: SweepPlan, out: Path, runs: Sequence[SweepRun], workers: int, shown: Shown) -> Made:
    """Make the runs that are not there yet. Raises ConfigError before the first one starts."""
    began, failed = clock.now(), {}
    prepare(out, plan.file)
    left = [run for run in runs if not done(out, run)]
    if len(left) < len(runs):
        shown.say(f"{len(runs) - len(left)} of {len(runs)} runs are there already")
    if not left:
        return Made({}, False, clock.now() - began)
    paths = dict.fromkeys([Path.cwd(), plan.file.resolve().parent, plan.base.resolve().parent])
    try:
        with Pool(out, min(workers, len(left)), list(paths), clock.now) as pool:
            shown.say(f"checking {len(left)} experiments")
            pool.check(left)
            shown.begin(len(left))
            for answer in pool.make(left, shown.started):
                shown.ended(answer)
                if answer.fault is not None:
                    failed[answer.run.name] = answer.fault
    except KeyboardInterrupt:
        return Made(failed, True, clock.now() - began)
    return Made(failed, False, clock.now() - began)


def directory(out: Path, run: SweepRun) -> Path:
    """Where a run goes."""
    return out / "runs" / run.name


def done(out: Path, run: SweepRun) -> bool:
    """Whether this very run is there, whole."""
    path = directory(out, run)
    if not (path / "summary.json").is_file() or not (path / "experiment.toml").is_file():
        return False
    return (path / "experiment.toml").read_text("utf-8") == experiment.dump(run.wanted)


def prepare(out: Path, file: Path) -> None:
    """Make OUT, and keep the sweep file in it. Raises ConfigError when OUT holds something other than a sweep."""
    mine = out / "sweep.toml"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not mine.is_file())):
        raise ConfigError(
            f"out={str(out)!r}: holds something other than a sweep; choose another directory, or remove it"
        )
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, mine)


def _clear(path: Path) -> None:
    """Remove a run that was not finished, or is of another experiment. Raises ConfigError when it is no run."""
    if not path.exists():
        return
    if not path.is_dir() or (any(path.iterdir()) and not (path / "experiment.toml").is_file()):
        raise ConfigError(f"{path}: is not a run; move it away, a run of the sweep belongs there")
    shutil.rmtree(path)


class Pool:
    """Worker processes. To be used in a `with`: whatever happens, they end with it."""

    def __init__(self, out: Path, workers: int, paths: Sequence[Path], now: Callable[[], float]) -> None:
        self._out, self._count, self._now = out, workers, now
        self._paths = [str(path) for path in paths]  # where modules of the experiment's own are looked for
        self._members: list[_WorkerProcess] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in list(self._members):
            self._end(member)
        self._selector.close()

    def check(self, runs: Sequence[SweepRun]) -> None:
        """Build every experiment, and nothing more. Raises ConfigError naming all combinations that are refused."""
        faults: dict[str, str] = {}
        for answer in self._orders(runs, "check"):
            if answer.fault is not None:
                faults.setdefault(sweeping.shown(answer.run.labels), answer.fault)
        if faults:
            raise ConfigError(sweeping.many([f"{labels}: {fault}" for labels, fault in faults.items()]))

    def make(self, runs: Sequence[SweepRun], started: Callable[[SweepRun], None]) -> Iterator[RunAnswer]:
        """Make the runs; answers come as they are done. Raises ConfigError when one would overwrite what is no run."""
        for run in runs:
            _clear(directory(self._out, run))
        yield from self._orders(runs, "run", started)

    def _orders(
        self, runs: Sequence[SweepRun], what: str, started: Callable[[SweepRun], None] = lambda run: None
    ) -> Iterator[RunAnswer]:
        waiting, tries, open_ = deque(runs), dict.fromkeys((run.name for run in runs), 0), len(runs)
        while open_:
            while len(self._members) < min(self._count, open_):
                self._start()
            for member in self._members:
                if member.run is None and waiting:
                    run = waiting.popleft()
                    tries[run.name] += 1
                    if tries[run.name] > 1 and what == "run":
                        _clear(directory(self._out, run))
                    self._order(member, run, what)
                    started(run)
            for key, _ in self._selector.select():
                member = key.data
                fault, answered = None, False
                if member.read():
                    for answer in member.answers():
                        answered, fault = True, answer["fault"]
                else:
                    fault = self._died(member)
                    answered = member.run is not None and tries[member.run.name] >= _TRIES
                    if member.run is not None and not answered:
                        waiting.appendleft(member.run)
                if answered and member.run is not None:
                    run, member.run, open_ = member.run, None, open_ - 1
                    yield RunAnswer(run, fault, self._now() - member.since)

    def _start(self) -> None:
        taken = {member.number for member in self._members}
        number = next(i for i in range(self._count) if i not in taken)
        member = _WorkerProcess(number, self._out / f"worker{number}.log", self._paths)
        self._members.append(member)
        self._selector.register(member.process.stdout, selectors.EVENT_READ, member)  # type: ignore[arg-type]

    def _order(self, member: _WorkerProcess, run: SweepRun, what: str) -> None:
        order = {"do": what, "experiment": experiment.dump(run.wanted), "out": str(directory(self._out, run))}
        member.run, member.since = run, self._now()
        with contextlib.suppress(BrokenPipeError):  # it has died: reading says so, and why
            member.stdin.write(json.dumps(order).encode() + b"\n")
            member.stdin.flush()

    def _died(self, member: _WorkerProcess) -> str:
        """Put a dead worker away; returns what it died of. Raises ConfigError when it never came so far as to work."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # it has closed its end; its status is a moment away
            member.process.wait(timeout=10)
        self._end(member)
        status = member.process.returncode
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        last = (member.log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1][:200]
        if not member.ready:
            raise ConfigError(f"a worker ended while it was starting ({how}): {last}")
        return f"its process ended with {how}: {last}"

    def _end(self, member: _WorkerProcess) -> None:
        if member in self._members:
            self._members.remove(member)
            self._selector.unregister(member.process.stdout)  # type: ignore[arg-type]
        member.end()


class _WorkerProcess:
    """One worker process, seen from the sweep."""

    def __init__(self, number: int, log: Path, paths: Sequence[str]) -> None:
        self.number, self.log, self.ready = number, log, False
        self.run: SweepRun | None = None
        self.since = 0.0
        self._text = b""
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        flags = "--xla_force_host_platform_device_count=1 --xla_cpu_multi_thread_eigen=false"
        path = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "p2pfl.sweeps.workers"], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=errors,
                env={"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ, **threads, "XLA_FLAGS": flags,
                     "PYTHONPATH": path},
                bufsize=0, start_new_session=True,
            )  # fmt: skip

    @property
    def stdin(self) -> Any:
        return self.process.stdin

    def read(self) -> bool:
        """Take what it has said; False when it has ended."""
        assert self.process.stdout is not None
        new = self.process.stdout.read(1 << 16) or b""
        self._text += new
        return bool(new)

    def answers(self) -> list[dict[str, Any]]:
        """Whole lines that have come, but for the one that says it is ready."""
        *lines, self._text = self._text.split(b"\n")
        said = [json.loads(line) for line in lines]
        self.ready = self.ready or any("ready" in each for each in said)
        return [each for each in said if "ready" not in each]

    def end(self) -> None:
        """Kill it, if it still lives, and wait for it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()


# --- the worker's end


def worker() -> None:
    """Answer orders until standard input ends. What libraries print goes to the log, not among the answers."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    import jax
    from rich.console import Console

    from p2pfl.federation import federation
    from p2pfl.reporting import terminal
    from p2pfl.runs import run

    answers.write(b'{"ready": true}\n')
    for line in sys.stdin.buffer:
        order = json.loads(line)
        fault = None
        try:
            wanted = experiment.parse(tomllib.loads(order["experiment"]), "the experiment", Experiment)
            federation.precision(wanted)
            if order["do"] == "run":
                run.run(wanted, Path(order["out"]), terminal.make(Console(), quiet=True))
            else:
                federation.build(wanted)
        except _FAULTS as error:
            traceback.print_exc()
            fault = str(error) if isinstance(error, P2PFLError) else f"{type(error).__name__}: {error}"
            if order["do"] == "run":  # jax has much to say: the whole of it stands in the log
                fault = (fault.splitlines() or ["it said nothing"])[0][:300]
        jax.clear_caches()  # programs of runs that are over would fill the memory
        answers.write(json.dumps({"fault": fault}).encode() + b"\n")


if __name__ == "__main__":
    worker()
