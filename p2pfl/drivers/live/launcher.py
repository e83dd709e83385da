"""Starts the node processes of a federation on this machine, carries out its planned returns, and sees them end.

Every process is the one that `p2pfl node NODE.toml` starts by hand. The launcher tells nodes nothing but "go": the
federation runs without it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
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
from p2pfl.errors import Exit, LocalError
from p2pfl.node import result
from p2pfl.node.said import Said

_STARTUP = 600.0
"""Seconds that the first process may take to load its data and compile."""

_LAGGARD = 10.0
"""Seconds, or twice what the first has needed, after which the others begin without those that are not ready."""

_TAIL = 1 << 14
"""Bytes at the end of a log in which its last line is looked for."""

READY = "ready"
"""The line with which a node that holds says that all is compiled."""

ASKED = (Exit.HANGUP, Exit.INTERRUPTED, Exit.TERMINATED)
"""Exit codes of a node that a signal has asked to leave, and that has left in good order."""


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
    handle: int  # a pidfd: it stands for this very process, whatever becomes of its number
    go: int  # writing end of its standard input: it ends when this closes
    log: Path
    offset: int  # where its part of the log begins
    before: result.NodeResult | None  # what an earlier life of the node has left
    ready: bool = False


@dataclass(slots=True)
class Lives:
    """The processes of a node, one life after the other."""

    order: Order
    current: _Process | None = None
    standby: _Process | None = None
    returned: int = 0
    called: int = 0  # returns that are due
    unplanned: int = 0  # returns that the experiment has not planned, see `again`
    before: result.NodeResult | None = None  # what was there when its latest life began, of an earlier one
    state: str = "starting"  # starting | alive | lost | left | finished | failed; away: not there, and will be
    how: str = ""  # its latest life ended, where it did not in good order
    given_up: str = ""  # why it is being ended from here
    pids: list[int] = field(default_factory=list)


class _Request(NamedTuple):
    """A process that was asked for and is not there yet."""

    member: Lives
    standby: bool
    go: int
    log: Path
    offset: int


class Launcher:
    """Node processes on this machine. `say` takes a line for a person.

    `killed`: asked how it can have come about that a process was killed by SIGKILL; "" where nothing is known.
    """

    def __init__(
        self, entry: str, preload: Sequence[str], say: Callable[[str], None], killed: Callable[[], str] = lambda: ""
    ) -> None:
        self.members: dict[int, Lives] = {}
        self.events: list[dict[str, Any]] = []
        self.broken = ""  # what has happened to the process that forks the nodes
        self._say, self._killed = say, killed
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        module = "p2pfl.drivers.live.forkserver"
        command = [sys.executable, "-m", module, str(os.getpid()), str(there.fileno()), entry, *preload]
        # one computing thread a node: there are more nodes than cores, and they share them
        quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        found = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}  # modules of a user's own
        self._server = subprocess.Popen(
            command,
            pass_fds=(there.fileno(),),
            stdin=subprocess.DEVNULL,
            env={**quiet, **os.environ, **found},
            process_group=0,  # a person's Ctrl-C is for the launcher, which ends the nodes
        )
        there.close()
        self._link = here
        self._selector = selectors.DefaultSelector()
        self._selector.register(here, selectors.EVENT_READ)
        self._waiting: list[_Request] = []

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing that was started is left behind."""
        for process in self._processes():
            _signal(process, signal.SIGKILL)
            self._let_go(process)
        for request in self._waiting:  # it may run without anybody having said so: its standard input ends
            os.close(request.go)
        self._selector.close()
        self._link.close()
        if not any(member.pids for member in self.members.values()):  # it still imports, for seconds, and sees nothing
            self._server.kill()
        self._reap()

    def _reap(self) -> int:
        """See the end of the process that forks; its exit status."""
        try:
            return self._server.wait(5)
        except subprocess.TimeoutExpired:
            self._server.kill()
            return self._server.wait()

    def _processes(self) -> list[_Process]:
        return [process for member in self.members.values() for process in (member.current, member.standby) if process]

    @property
    def pid(self) -> int:
        """Of the process that forks the nodes."""
        return self._server.pid

    # --- starting

    def prepare(self, orders: Sequence[Order]) -> None:
        """Start all processes and those that wait for a planned return; returns when all are compiled and hold."""
        self.members = {order.node: Lives(order) for order in orders}
        for member in self.members.values():
            if member.order.later:
                member.state = "away"
            else:
                self._start(member, standby=False)
        for member in self.members.values():
            if member.order.returns:
                self._start(member, standby=True)
        self._look()
        began = clock.now()
        limit, waiting = began + _STARTUP, True  # waiting: for the first to be ready
        while late := self._unready():
            self._read(0.05)
            self._look()
            if waiting and len(self._unready()) < len(late):
                waiting, limit = False, clock.now() + max(_LAGGARD, 2 * (clock.now() - began))
            if clock.now() > limit:
                text = f"not ready: node {', '.join(map(str, sorted(set(late))))}; the others begin without"
                self._say(Said(text, "absent", logging.WARNING))
                return

    def _look(self) -> None:
        """See who is ready. Raises LocalError where the start has failed."""
        if self.broken:
            raise LocalError(f"{self.broken}, and no node can be started", node=-1, round=0, part="start")
        for member in self.members.values():
            self._look_ready(member)
            if member.state == "failed":
                raise LocalError(member.how, node=member.order.node, round=0, part="start")

    def _unready(self) -> list[int]:
        """Nodes with a process that is not ready or not even started."""
        held = [process.node for process in self._processes() if not process.ready]
        return held + [request.member.order.node for request in self._waiting]

    def go(self) -> None:
        """Let all nodes begin."""
        for member in self.members.values():
            if member.current:
                self._go(member, member.current)

    def _start(self, member: Lives, standby: bool) -> None:
        if self.broken:
            return
        directory = member.order.directory
        directory.mkdir(parents=True, exist_ok=True)
        held, go = os.pipe()
        path = directory / ("return.txt" if standby else "log.txt")
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        arguments = member.order.returns[member.returned] if standby else member.order.arguments
        self._waiting.append(_Request(member, standby, go, path, path.stat().st_size))
        try:
            socket.send_fds(self._link, [json.dumps({"arguments": arguments}).encode()], [held, log])
        except (BrokenPipeError, ConnectionResetError):
            self._break()
        finally:
            os.close(held)
            os.close(log)

    def _go(self, member: Lives, process: _Process) -> None:
        member.current, member.state = process, "alive"
        process.before = member.before = result.read(member.order.directory)
        with contextlib.suppress(BrokenPipeError):  # it died a moment ago; its end will be read
            os.write(process.go, b"go\n")

    def _look_ready(self, member: Lives) -> None:
        for process in (member.current, member.standby):
            if process is not None and not process.ready:
                process.ready = READY in _said(process.log, process.offset)

    # --- running

    def poll(self, seconds: float) -> None:
        """Read for at most so long what has become of the processes."""
        self._read(seconds)

    @property
    def running(self) -> bool:
        """Some node is still at work."""
        return any(member.state == "alive" for member in self.members.values())

    def _read(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._link:
                self._take()
            else:  # nobody but the kernel tells any more
                self._ended(key.data, None)

    def _take(self) -> None:
        """Take in what the process that forks has to say."""
        try:
            packet, handles, _, _ = socket.recv_fds(self._link, 65536, 1)
        except ConnectionResetError:
            packet, handles = b"", []
        if not packet:
            self._break()
            return
        answer = json.loads(packet)
        if "status" in answer:
            process = next((each for each in self._processes() if each.pid == answer["pid"]), None)
            if process is not None:
                self._ended(process, answer["status"])
            return
        member, standby, go, log, offset = self._waiting.pop(0)
        process = _Process(member.order.node, answer["pid"], handles[0], go, log, offset, None)
        member.pids.append(process.pid)
        if standby:
            member.standby = process
            self._return(member)  # it may be due already
        else:
            member.current = process

    def _break(self) -> None:
        """The process that forks has died. The nodes need nobody to go on; their ends are watched from here."""
        status = self._reap()
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        self.broken = f"the process that starts nodes has died ({how})"
        self._say(Said(f"{self.broken}; those that are there go on without it", "crash", logging.ERROR))
        self._selector.unregister(self._link)
        for request in self._waiting:
            os.close(request.go)
        self._waiting.clear()
        for process in self._processes():
            self._selector.register(process.handle, selectors.EVENT_READ, process)

    def _let_go(self, process: _Process) -> None:
        """Forget a process that has ended, or is about to."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(process.handle)
        os.close(process.handle)
        os.close(process.go)

    def _ended(self, process: _Process, status: int | None) -> None:
        """Take note of the end of a process. `status`: None where nobody could see it."""
        member = self.members[process.node]
        self._let_go(process)
        how = self._how(process, status)
        if member.standby is process:
            member.standby = None
            text = f"node {process.node} can't return; its next process {how}"
            self._say(Said(text, "crash", logging.ERROR, process.node))
            return
        if member.given_up:
            how, member.given_up = f"{member.given_up}, and was killed", ""
        member.current, before = None, member.state
        if status is None:
            now = result.read(member.order.directory)
            good = now is not None and now != process.before and now.error is None
            stopped = good and now is not None and now.left
        else:
            good, stopped = status == Exit.DONE or status in ASKED, status in ASKED
            ended = result.read(member.order.directory) if good else None
            stopped = stopped or (ended is not None and ended.left)  # as planned
        if before == "starting":
            member.state, member.how = ("failed" if (status or 0) >= 0 else "lost"), how
        elif good:
            there_is_more = member.returned < len(member.order.returns) - member.unplanned
            member.state, member.how = ("left" if stopped or there_is_more else "finished"), ""
        else:
            member.state, member.how = "lost", how
        if not good and member.state == "lost":
            self._say(Said(f"node {process.node} {how}", "crash", logging.ERROR, process.node))
            self._event("crash", member, how)
        if before != "starting":
            self._return(member)

    def _how(self, process: _Process, status: int | None) -> str:
        """Say how a process ended, behind the name of its node."""
        if status is None:
            return f"ended with no result; see {process.log}"
        if status >= 0:
            last = _last_line(process.log, process.offset)
            return f"failed: {last or f'it ended with status {status}'}; see {process.log}"
        if status == -signal.SIGKILL:
            why = self._killed()
            return "was killed (SIGKILL)" + (f": {why}" if why else "")
        return f"was killed ({signal.Signals(-status).name}); see {process.log}"

    def call(self, node: int) -> None:
        """The next return of a node is due: it begins as soon as its earlier process has ended."""
        self.members[node].called += 1
        self._return(self.members[node])

    def stand_by(self, node: int) -> None:
        """Start the process with which the node will return `again`: it compiles, and holds until then."""
        member = self.members[node]
        if member.returned == len(member.order.returns):
            more = (*member.order.arguments, "--resume")
            member.order = member.order._replace(returns=(*member.order.returns, more))
            member.unplanned += 1
            self._start(member, standby=True)

    def again(self, node: int) -> None:
        """Start the node again with what it has kept, as soon as its process has ended."""
        self.stand_by(node)
        self.call(node)

    def kill(self, node: int) -> None:
        """Kill the process of a node, as whoever tries what the others make of that."""
        current = self.members[node].current
        if current is not None:
            _signal(current, signal.SIGKILL)

    def _return(self, member: Lives) -> None:
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
            _signal(current, signal.SIGCONT)

    def _event(self, event: str, member: Lives, detail: str) -> None:
        self.events.append({"event": event, "node": member.order.node, "detail": detail, "time": clock.now()})

    def give_up(self, node: int, why: str) -> None:
        """End a node that does nothing any more."""
        member = self.members[node]
        if member.current is not None:
            self._say(Said(f"node {node} {why}; ending it", "crash", logging.ERROR, node))
            member.given_up = why
            member.order = member.order._replace(returns=member.order.returns[: member.returned])
            if member.standby is not None:
                _signal(member.standby, signal.SIGKILL)
            _signal(member.current, signal.SIGKILL)

    def stop(self) -> None:
        """Ask all nodes to leave."""
        for member in self.members.values():
            if member.current is not None:
                _signal(member.current, signal.SIGTERM)


def _signal(process: _Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended, which will be read
        signal.pidfd_send_signal(process.handle, number)


def _said(log: Path, offset: int) -> list[str]:
    """The lines of a log from a byte on."""
    with log.open("rb") as file:
        file.seek(offset)
        return file.read().decode("utf-8", "replace").splitlines()


def _last_line(log: Path, offset: int) -> str:
    """The last line of a log from `offset` on that says something; an error without the words around it."""
    with log.open("rb") as file:
        file.seek(max(offset, log.stat().st_size - _TAIL))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("Error: ") if lines and lines[-1] != READY else ""
