"""The inside of a worker process of a sweep: it imports once, and then makes one run after another in one thread.

Only text comes in and goes out: an experiment as TOML and a path, and why a run failed. Nothing is imported above that
would start threads before `start` has said how many there may be.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import tomllib
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from p2pfl.drivers.live.lifeline import die_with_parent

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_cpu_multi_thread_eigen=false",
}
"""So that as many workers as there are cores don't get in each other's way."""


def start(log: str, paths: Sequence[str]) -> None:
    """Import everything. `log`: file for all that is printed. `paths`: where modules of the user's are looked for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep ends its workers itself
    _end_with_the_sweep()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update({"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ, **ONE_THREAD})
    sys.path[:0] = paths
    with _or_end():
        importlib.import_module("p2pfl.runs.run")  # with all that it stands on


def make(text: str, out: str | None) -> str | None:
    """Run an experiment into `out`, or without it only build it. Return why that failed, None if it did not."""
    import jax

    from p2pfl.config import experiment
    from p2pfl.errors import P2PFLError
    from p2pfl.federation import federation, plugins
    from p2pfl.runs import run

    with _or_end():
        try:
            parsed = experiment.parse(tomllib.loads(text), "the experiment", experiment.Experiment)
            federation.precision(parsed)
            if out is None:
                federation.build(parsed)
            else:
                run.run(parsed, Path(out))
        except (P2PFLError, *plugins.FAULTS) as error:
            traceback.print_exc()
            fault = str(error) if isinstance(error, P2PFLError) else f"{type(error).__name__}: {error}"
            # of a run jax has much to say: the whole of it stands in the log
            return fault if out is None else (fault.splitlines() or ["it said nothing"])[0][:300]
        finally:
            jax.clear_caches()  # programs of runs that are over would fill the memory
    return None


@contextlib.contextmanager
def _or_end() -> Iterator[None]:
    """End the process on any other fault, with the reason in its log: no object of the user's goes to the sweep."""
    whole = False
    try:
        yield
        whole = True
    finally:
        if not whole:
            traceback.print_exc()
            os._exit(1)


def _end_with_the_sweep() -> None:
    """Outlive the sweep by nothing, however it ends, whatever this process is doing: the kernel sees to that."""
    sweep = multiprocessing.parent_process()
    if sweep is not None and sweep.pid is not None:
        die_with_parent(sweep.pid)
