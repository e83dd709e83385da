"""Membership in its own small process: what the node's process compiles or copies delays no answer.

While the node's process compiled for jax and copied arrays of 44 MB, 99 of 100 pings of a sidecar were answered within
27 ms and all within 47; of a thread in the node's process within 138 and 176 (two busy cores, 1000 pings each).

The process is forked early, and joined to the node by a socket pair that carries one JSON object a packet. It ends at
once when the node's end closes, so that a dead node does not go on answering; and it falls silent when the node's loop
has shown no life for long. Ctrl-C and SIGTERM are for the node, which says what follows. No pickle.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

from p2pfl.drivers.live import clock
from p2pfl.drivers.live.member_process import run
from p2pfl.errors import ConfigError, LocalError
from p2pfl.protocol.membership.events import Accused, Changed, Conflict, Gone, MemberDrop, Superseded
from p2pfl.protocol.membership.table import Me, Member
from p2pfl.protocol.membership.timing import PROBE_TIMINGS, ProbeTiming, check

PACKET = 1 << 17
"""Bytes of a packet at most."""

_BEAT = 0.25
"""Seconds between the signs of life that are passed on."""

_ANSWER = 10.0
"""Seconds the process may take to take something in: it is starved of the machine's cores, at worst."""


MemberEvent = Changed | Accused | Superseded | Conflict | MemberDrop | Gone
"""What the process passes on. Pauses in the table end by `live.clock`; of drops, the latest of each reason."""

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Accused, Superseded, Conflict, MemberDrop, Gone)}


class Sidecar:
    """The node's end of it. Nothing here waits for the network."""

    def __init__(self, pid: int, link: socket.socket) -> None:
        self.pid = pid
        self._link = link
        self._link.setblocking(False)
        self._node = -1
        self._beaten = 0.0
        self._table: list[Member] = []  # the part of it that has come in
        self._ended = False

    def begin(self, me: Me, cluster: str, seeds: Sequence[str], probe_timing: str | ProbeTiming, listen: str) -> None:
        """Bind `listen` and join; `me.address` is what others are told.

        `probe_timing`: one of PROBE_TIMINGS by name, or a value. ConfigError when `listen` can't be bound.
        """
        if isinstance(probe_timing, str):
            if probe_timing not in PROBE_TIMINGS:
                raise ConfigError(f"probe_timing={probe_timing!r}: one of {', '.join(PROBE_TIMINGS)}. Choose one.")
            probe_timing = PROBE_TIMINGS[probe_timing]
        check(probe_timing)
        self._node = me.node
        begin = {"me": me, "cluster": cluster, "seeds": [*seeds], "timing": probe_timing, "listen": listen}
        self._say({"do": "begin", **begin})
        self._wait(select.POLLIN)
        answer = json.loads(self._receive() or self._over())
        if "error" in answer:
            raise ConfigError(answer["error"])

    def busy(self, seconds: float) -> None:
        """This node will pause for up to so many seconds; 0: the pause is over."""
        self._say({"do": "busy", "seconds": seconds})

    def progress(self, round: int) -> None:
        """This node is in that round."""
        self._say({"do": "progress", "round": round})

    def reborn(self, life: int) -> None:
        """The answer to Accused: go on as this life, which must be greater."""
        self._say({"do": "reborn", "life": life})

    def leave(self) -> None:
        """Tell the others; `Gone` follows."""
        self._say({"do": "leave"})

    def cut(self, nodes: Iterable[int]) -> None:
        """Drop everything to and from these nodes, and no others: partitions of experiments."""
        self._say({"do": "cut", "nodes": sorted(nodes)})

    def lag(self, seconds: float) -> None:
        """Delay what is sent from now on by so many seconds; 0 ends it."""
        self._say({"do": "lag", "seconds": seconds})

    def beat(self) -> None:
        """The node's loop is alive: call it in every turn."""
        now = clock.now()
        if now - self._beaten >= _BEAT:
            self._beaten = now
            self._say({"do": "beat"}, wait=False)

    def fileno(self) -> int:
        """To poll for input."""
        return self._link.fileno()

    def read(self) -> list[MemberEvent]:
        """Return what has happened since. LocalError when the process has ended by itself."""
        result: list[MemberEvent] = []
        while (packet := self._receive()) is not None:
            what = json.loads(packet)
            if "table" not in what:
                result.append(_KINDS[what.pop("event")](**what))
                continue
            self._table += [Member(*row) for row in what["table"]]
            if not what["more"]:
                result.append(Changed(tuple(self._table)))
                self._table = []
        return result

    def close(self) -> None:
        """End the process; it says nothing more to anybody."""
        self._link.close()
        if not self._ended:
            self._ended = True
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # somebody has collected it
                os.kill(self.pid, signal.SIGKILL)  # it would end by itself, but not if it has been stopped
                os.waitpid(self.pid, 0)

    def _receive(self) -> bytes | None:
        try:
            packet = self._link.recv(PACKET)
        except BlockingIOError:
            return None
        return packet or self._over()

    def _say(self, what: dict[str, Any], wait: bool = True) -> None:
        packet = json.dumps(what).encode()
        try:
            self._link.send(packet)
        except BlockingIOError:
            if not wait:
                return
            self._wait(select.POLLOUT)
            self._link.send(packet)
        except (BrokenPipeError, ConnectionResetError):
            self._over()

    def _wait(self, for_what: int) -> None:
        poll = select.poll()
        poll.register(self._link, for_what)
        if not poll.poll(_ANSWER * 1000):
            raise LocalError(
                f"the membership process takes nothing in for {_ANSWER} s", node=self._node, round=0, part="membership"
            )

    def _over(self) -> bytes:
        raise LocalError("the membership process has ended", node=self._node, round=0, part="membership")


def start() -> Sidecar:
    """Fork the process. Before any thread is started and before jax has a backend."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        its.close()
        return Sidecar(pid, mine)
    code = 70
    try:
        _detach(its)
        run(its, PACKET)
        code = 0
    finally:
        if code:
            traceback.print_exception(*sys.exc_info())
            sys.stderr.flush()
        os._exit(code)


def _detach(link: socket.socket) -> None:
    """Keep nothing of the parent but the link and where to write errors: above all no parent's end of another link."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    gc.freeze()  # what the parent had is not ours to finalise
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    for file in [int(name) for name in os.listdir("/proc/self/fd")]:
        if file > 2 and file != link.fileno():
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(file)
