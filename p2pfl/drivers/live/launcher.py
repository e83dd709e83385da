"""Starts the node processes of a federation on this machine, carries out its planned returns, and sees them end.

Every process is the one that `p2pfl node NODE.toml` starts by hand. The launcher tells nodes nothing but "go": the
federation runs without it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from p2pfl.drivers.live import clock
from p2pfl.errors import LocalError

_STARTUP = 600.0
"""Seconds that the first process may take to load its data and compile."""

_LAGGARD = 10.0
"""Seconds, or twice what the first has needed, after which the others begin without those that are not ready."""


READY = "ready"
"""The line with which a node that holds says that all is compiled."""


class Order(NamedTuple):
    """A node to start."""

    node: int
    arguments: tuple[str, ...]  # of the p2pfl command
    directory: Path
    returns: tuple[tuple[str, ...], ...] = ()  # arguments of each planned return
    later: bool = False  # it is not there from the start: its first return is a join


@dataclass(slots=True)
class _Process:
    node: int
    pid: int
    go: int  # writing end of its standard input
    log: Path
    offset: int  # where its part of the log begins
    ready: bool = False


@dataclass(slots=True)
class _Lives:
    """The processes of a node, one life after the other."""

    order: Order
    current: _Process | None = None
    standby: _Process | None = None
    returned: int = 0
    called: int = 0  # returns that are due
    state: str = "starting"  # starting | alive | lost | left | finished | failed; away: not there, and will be
    status: int | None = None
    pids: list[int] = field(default_factory=list)


class Launcher:
    """Node processes on this machine. `say` takes a line for a person."""

    def __init__(self, entry: str, preload: Sequence[str], say: Callable[[str], None]) -> None:
        self.members: dict[int, _Lives] = {}
        self.events: list[dict[str, Any]] = []
        self._say = say
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "p2pfl.drivers.live.forkserver", str(there.fileno()), entry, *preload]
        # one computing thread a node: there are more nodes than cores, and they share them
        quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            command, pass_fds=(there.fileno(),), stdin=subprocess.DEVNULL, env={**quiet, **os.environ}
        )
        there.close()
        self._link = here
        self._selector = selectors.DefaultSelector()
        self._selector.register(here, selectors.EVENT_READ)
        self._waiting: list[tuple[_Lives, bool, int, Path, int]] = []

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing that was started is left behind."""
        for member in self.members.values():
            for process in (member.current, member.standby):
                if process is not None:
                    _signal(process.pid, signal.SIGKILL)
        self._link.close()
        try:
            self._server.wait(5)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._selector.close()

    # --- starting

    def prepare(self, orders: Sequence[Order]) -> None:
        """Start all processes and those that wait for a planned return; returns when all are compiled and hold."""
        self.members = {order.node: _Lives(order) for order in orders}
        for member in self.members.values():
            if member.order.later:
                member.state = "away"
            else:
                self._start(member, standby=False)
        for member in self.members.values():
            if member.order.returns:
                self._start(member, standby=True)
        began = clock.now()
        limit, waiting = began + _STARTUP, True  # waiting: for the first to be ready
        while late := self._unready():
            self._read(0.05)
            for member in self.members.values():
                self._look_ready(member)
                if member.state == "failed":
                    raise LocalError(
                        f"ended with status {member.status} before it was ready; see {member.order.directory}/log.txt",
                        node=member.order.node,
                        round=0,
                        part="start",
                    )
            if waiting and len(self._unready()) < len(late):
                waiting, limit = False, clock.now() + max(_LAGGARD, 2 * (clock.now() - began))
            if clock.now() > limit:
                self._say(f"not ready: node {', '.join(map(str, sorted(set(late))))}; the others begin without")
                return

    def _unready(self) -> list[int]:
        """Nodes with a process that is not ready or not even started."""
        held = [p for m in self.members.values() for p in (m.current, m.standby) if p and not p.ready]
        return [process.node for process in held] + [member.order.node for member, *_ in self._waiting]

    def go(self) -> None:
        """Let all nodes begin."""
        for member in self.members.values():
            if member.current:
                self._go(member, member.current)

    def _start(self, member: _Lives, standby: bool) -> None:
        directory = member.order.directory
        directory.mkdir(parents=True, exist_ok=True)
        held, go = os.pipe()
        path = directory / ("return.txt" if standby else "log.txt")
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        arguments = member.order.returns[member.returned] if standby else member.order.arguments
        request = json.dumps({"arguments": arguments}).encode()
        socket.send_fds(self._link, [request], [held, log])
        os.close(held)
        os.close(log)
        self._waiting.append((member, standby, go, path, path.stat().st_size))

    def _go(self, member: _Lives, process: _Process) -> None:
        member.current, member.state = process, "alive"
        try:
            os.write(process.go, b"go\n")
        except BrokenPipeError:  # it died a moment ago; its end will be read
            return
        os.close(process.go)

    def _look_ready(self, member: _Lives) -> None:
        for process in (member.current, member.standby):
            if process is not None and not process.ready:
                process.ready = READY in process.log.read_text("utf-8")[process.offset :].splitlines()

    # --- running

    def poll(self, seconds: float) -> None:
        """Read for at most so long what has become of the processes."""
        self._read(seconds)

    @property
    def running(self) -> bool:
        """Some node is still at work."""
        return any(member.state == "alive" for member in self.members.values())

    def _read(self, seconds: float) -> None:
        if not self._selector.select(seconds):
            return
        packet = self._link.recv(65536)
        if not packet:
            raise LocalError("the process that starts nodes has died", node=-1, round=0, part="start")
        answer = json.loads(packet)
        if "status" in answer:
            self._ended(answer["pid"], answer["status"])
            return
        member, standby, go, log, offset = self._waiting.pop(0)
        process = _Process(member.order.node, answer["pid"], go, log, offset)
        member.pids.append(process.pid)
        if standby:
            member.standby = process
        else:
            member.current = process

    def _ended(self, pid: int, status: int) -> None:
        member = next(m for m in self.members.values() if pid in m.pids)
        if member.standby is not None and member.standby.pid == pid:
            member.standby = None
            self._say(f"node {member.order.node} can't return: its next process ended with status {status}")
            return
        member.current, member.status = None, status
        if member.state == "starting":
            member.state = "failed" if status >= 0 else "lost"
            return
        if status == 0:
            member.state = "left" if member.returned < len(member.order.returns) else "finished"
        else:
            member.state = "lost"
            how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            self._say(f"node {member.order.node} died ({how})")
            self._event("crash", member, how)
        self._return(member)

    def call(self, node: int) -> None:
        """The next return of a node is due: it begins as soon as its earlier process has ended."""
        self.members[node].called += 1
        self._return(self.members[node])

    def _return(self, member: _Lives) -> None:
        if member.current is not None or member.standby is None or member.called <= member.returned:
            return
        process, member.standby = member.standby, None
        member.returned += 1
        self._go(member, process)
        if member.returned < len(member.order.returns):
            self._start(member, standby=True)

    def thaw(self, node: int) -> None:
        """Let a frozen node go on."""
        current = self.members[node].current
        if current is not None:
            _signal(current.pid, signal.SIGCONT)

    def _event(self, event: str, member: _Lives, detail: str) -> None:
        self.events.append({"event": event, "node": member.order.node, "detail": detail, "time": clock.now()})

    def give_up(self, node: int, why: str) -> None:
        """End a node that does nothing any more."""
        member = self.members[node]
        if member.current is not None:
            self._say(f"node {node}: {why}; ending it")
            member.order = member.order._replace(returns=member.order.returns[: member.returned])
            if member.standby is not None:
                _signal(member.standby.pid, signal.SIGKILL)
            _signal(member.current.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ask all nodes to leave."""
        for member in self.members.values():
            if member.current is not None:
                _signal(member.current.pid, signal.SIGTERM)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended, which will be read
        os.kill(pid, number)


def free_ports(count: int) -> list[int]:
    """Ports on the loopback address that nothing listens on, nor on the next, below those of outgoing connections.

    A node that returns listens on its old ports again; in between nothing else takes them by chance.
    """
    found: list[int] = []
    tried = random.Random(os.getpid()).sample(range(10_000, 32_000, 2), 11_000)
    for port in tried:
        with socket.socket() as probe, socket.socket() as beside:
            try:
                probe.bind(("127.0.0.1", port))
                beside.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise LocalError(f"no {count} pairs of free ports between 10000 and 32000", node=-1, round=0, part="start")
