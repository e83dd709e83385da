"""`p2pfl chaos RUN`: kill nodes of a live run that is under way, and start each again as `p2pfl node ... --resume`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from p2pfl.drivers.live import clock, processes
from p2pfl.errors import ConfigError
from p2pfl.runs.chaos import victim

_LOOK = 0.1
"""Seconds between looks at who is at work."""


@dataclass(slots=True)
class _Child:
    """A node that was started from here."""

    process: subprocess.Popen[bytes]
    log: Path
    recorded: int  # bytes of its metrics.jsonl when it was started


def attach(run: Path, every: float, seconds: float | None, seed: int, say: Callable[[str], None]) -> None:
    """Kill a node of the live run in the directory `run` every so often, and start it again with what it has kept.

    Until so many seconds are over, or the run is; those that were started here run to its end, and leave when this
    process ends. Raises ConfigError for a run that is over or was not started by `p2pfl run` with real processes.
    """
    attached = _Attached(run, seed, say)
    try:
        attached.follow(every, seconds)
    finally:
        attached.end()


class _Attached:
    def __init__(self, run: Path, seed: int, say: Callable[[str], None]) -> None:
        self._run, self._seed, self._say = run, seed, say
        self._file = run / "pids.json"
        self._children: dict[int, _Child] = {}
        if not self._file.is_file():
            raise ConfigError(f"{run}: is no live run that is under way: it has no pids.json; start one with p2pfl run")
        if (run / "summary.json").exists() or not self._at_work():
            raise ConfigError(f"{run}: is over; give a live run that is under way, or an experiment file")
        self._nodes = len(processes.read(self._file))

    def follow(self, every: float, seconds: float | None) -> None:
        """Until the run is over."""
        began, number = clock.now(), 0
        while at_work := self._at_work():
            clock.pause(_LOOK)
            self._tell_ended()
            passed = clock.now() - began
            if passed < (number + 1) * every or (seconds is not None and passed >= seconds):
                continue
            node = victim(self._seed, number, self._training(at_work), self._nodes)
            number += 1
            if node is not None:
                self._strike(node)
        self._say("the run is over")

    def end(self) -> None:
        """Let those that are still there leave: their standard input ends."""
        for child in self._children.values():
            assert child.process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                child.process.stdin.close()
        for child in self._children.values():
            child.process.wait()

    def _at_work(self) -> set[int]:
        """Nodes whose latest process is there."""
        listed = processes.read(self._file)
        return {node for node, pids in listed.items() if pids and processes.runs(pids[-1], node)}

    def _training(self, at_work: set[int]) -> set[int]:
        """Those of them that have finished a round since they were started from here."""
        under_way = {node for node, child in self._children.items() if self._recorded(node) <= child.recorded}
        return at_work - under_way

    def _recorded(self, node: int) -> int:
        file = self._run / "nodes" / str(node) / "metrics.jsonl"
        return file.stat().st_size if file.exists() else 0

    def _tell_ended(self) -> None:
        for node, child in list(self._children.items()):
            code = child.process.poll()
            if code is not None:
                self._say(f"node {node} has ended with {code}" + (f"; see {child.log}" if code else ""))
                del self._children[node]

    def _strike(self, node: int) -> None:
        """Kill a node, and start it again."""
        listed = processes.read(self._file)
        pid = listed[node][-1]
        if not processes.send(pid, node, signal.SIGKILL):
            return
        if node in self._children:
            self._children.pop(node).process.wait()
        directory = self._run / "nodes" / str(node)
        log = directory / "log.txt"
        file = str((directory / "node.toml").resolve())
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "p2pfl", "node", file, "--resume", "--hold"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ},
                process_group=0,  # a person's Ctrl-C is for this process, whose end lets the nodes leave
            )
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
        self._children[node] = _Child(process, log, self._recorded(node))
        processes.write(self._file, {**listed, node: [*listed[node], process.pid]})
        self._say(f"node {node} (process {pid}) was killed, and is started again as process {process.pid}")
