"""Membership in its own small process: what the node's process compiles or copies delays no answer.

While the node's process compiled for jax and copied arrays of 44 MB, 99 of 100 pings of a sidecar were answered within
27 ms and all within 47; of a thread in the node's process within 138 and 176 (two busy cores, 1000 pings each).

The process is joined to the node by a socket pair (`packets`), and has all from there that it needs, keys too. It ends
at once when the node's end closes, so that a dead node does not go on answering; and it falls silent when the node's
loop has shown no life for long. A small parent, forked early, forks it: where it dies it is forked again, and goes on
as the same life at the same address, from what the node knows. Where both die, a Python of its own starts both again.
Ctrl-C and SIGTERM are for the node, which says what follows. No pickle.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from p2pfl.drivers.live import clock, packets
from p2pfl.drivers.live.member_process import run
from p2pfl.drivers.live.packets import PACKET
from p2pfl.errors import ConfigError, LocalError
from p2pfl.protocol.membership import documents
from p2pfl.protocol.membership.events import Accused, Changed, Conflict, Expelled, Gone, MemberDrop, Superseded, Told
from p2pfl.protocol.membership.seeds import Seed
from p2pfl.protocol.membership.table import Me, Member
from p2pfl.protocol.membership.timing import PROBE_TIMINGS, ProbeTiming, check
from p2pfl.protocol.membership.wire import DOCUMENT_CAP
from p2pfl.trust.keyring import Keyring

_BEAT = 0.25
"""Seconds between the signs of life that are passed on."""

_ANSWER = 10.0
"""Seconds the process may take to begin: it is starved of the machine's cores, at worst."""

_RESTARTS = 5
"""Times that the process is started again ..."""

_SPAN = 60.0
"""... in so many seconds: what kills it that often would go on."""

_STUCK = 5.0
"""Seconds for which nothing is taken in, after which the parent that should have started another is ended as well."""

_SPAWNED = 3
"""The file by which a process that was spawned is joined to its node."""

_KNOWN = 512
"""Members that it is told of then; the others it hears of from them."""


class Restarted(NamedTuple):
    """The process has died, and another goes on."""

    how: str  # it died


MemberEvent = Changed | Accused | Superseded | Conflict | Expelled | Told | MemberDrop | Gone | Restarted
"""What the process passes on. Pauses in the table end by `live.clock`; of drops, the latest of each reason."""

_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Accused, Superseded, Conflict, Expelled, MemberDrop, Gone)
}

_IN_BEGIN = ("reborn", "grow", "admit", "document")
"""What is said so is in what another process begins with."""


class Sidecar:
    """The node's end of it. Nothing here waits for the network."""

    def __init__(self, pid: int, link: socket.socket) -> None:
        self.pid = pid  # of the parent of ...
        self.member_pid = 0  # ... the process that is the member
        self._link = link
        self._link.setblocking(False)
        self._node = -1
        self._beaten = 0.0
        self._table: list[Member] = []  # the part of it that has come in
        self._known: tuple[Member, ...] = ()
        self._said: dict[str, dict[str, Any]] = {}  # the latest of each kind: what another process must be told
        self._owed: dict[str, dict[str, Any]] = {}  # ... and has not been yet
        self._busy_until = 0.0
        self._restarts: list[float] = []
        self._full: float | None = None  # since when it takes nothing in
        self.lost = self._told = False  # it has ended and does not come back; the node has been told

    def begin(
        self,
        me: Me,
        cluster: str,
        seeds: Sequence[Seed],
        probe_timing: str | ProbeTiming,
        listen: str,
        keys: Keyring | None = None,
        revoked: Collection[int] = (),
        document: bytes = b"",
    ) -> None:
        """Bind `listen` and join; `me.address` is what others are told.

        `probe_timing`: one of PROBE_TIMINGS by name, or a value. `keys`: whose members are admitted, and nobody else;
        None where there are no keys. `revoked` and `document`: as in `events`. ConfigError where `listen` is taken.
        """
        if isinstance(probe_timing, str):
            if probe_timing not in PROBE_TIMINGS:
                raise ConfigError(f"probe_timing={probe_timing!r}: one of {', '.join(PROBE_TIMINGS)}. Choose one.")
            probe_timing = PROBE_TIMINGS[probe_timing]
        check(probe_timing)
        self._node = me.node
        begin = {"me": me, "cluster": cluster, "seeds": [*seeds], "timing": probe_timing, "listen": listen, "known": []}
        trust = {"keys": None if keys is None else packets.pack_keyring(keys), "revoked": sorted(revoked)}
        self._say({"do": "begin", **begin, **trust, "document": packets.pack_bytes(document)})
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        if not poll.poll(_ANSWER * 1000):
            raise self._error(f"the membership process does not begin in {_ANSWER} s")
        answer = self._receive()
        if answer is None:
            raise self._error("the membership process has ended")
        if "error" in answer:
            raise ConfigError(answer["error"])
        if "died" in answer:
            raise self._error(f"the membership process has ended: {answer['died']}")
        self.member_pid = answer["pid"]

    def busy(self, seconds: float) -> None:
        """This node will pause for up to so many seconds; 0: the pause is over."""
        self._busy_until = clock.now() + seconds
        self._say({"do": "busy", "seconds": seconds})

    def progress(self, round: int) -> None:
        """This node is in that round."""
        self._say({"do": "progress", "round": round})

    def reborn(self, life: int) -> None:
        """The answer to Accused: go on as this life, which must be greater."""
        me = Me(*self._said["begin"]["me"])
        self._said["begin"]["me"] = me._replace(life=life)
        self._say({"do": "reborn", "life": life})

    def grow(self, nodes: int) -> None:
        """There can be so many nodes now: the federation has grown."""
        me = Me(*self._said["begin"]["me"])
        self._said["begin"]["me"] = me._replace(nodes=max(me.nodes, nodes))
        self._say({"do": "grow", "nodes": nodes})

    def leave(self) -> None:
        """Tell the others; `Gone` follows."""
        self._say({"do": "leave"})

    def cut(self, nodes: Iterable[int]) -> None:
        """Drop everything to and from these nodes, and no others: partitions of experiments."""
        self._say({"do": "cut", "nodes": sorted(nodes)})

    def lag(self, seconds: float) -> None:
        """Delay what is sent from now on by so many seconds; 0 ends it."""
        self._say({"do": "lag", "seconds": seconds})

    def admit(self, keys: Keyring, revoked: Collection[int] = ()) -> None:
        """Go by other keys, where it began with some: their members are admitted. `revoked`: as in `Admit`."""
        begin = self._said["begin"]
        before = {node for node, _, _ in begin["keys"]["members"]}
        revoked = sorted({*begin["revoked"], *revoked, *(before - keys.verify_keys.keys())})
        begin |= {"keys": packets.pack_keyring(keys), "revoked": revoked}
        self._say({"do": "admit", "keys": begin["keys"], "revoked": revoked})

    def document(self, data: bytes) -> None:
        """Tell the others this from now on: what came of a `Told`, or of something of this node's own. ConfigError."""
        if len(data) > DOCUMENT_CAP:
            raise ConfigError(f"document={len(data)} bytes: at most {DOCUMENT_CAP}. Shorten it.")
        self._said["begin"]["document"] = packets.pack_bytes(data)
        self._say({"do": "document", "document": self._said["begin"]["document"]})

    def unwanted(self, told: Told) -> None:
        """What a member has told is no document: do not hear it again."""
        self._say({"do": "unwanted", "digest": documents.digest(told.document).hex(), "by": told.by})

    def beat(self) -> None:
        """The node's loop is alive: call it in every turn."""
        now = clock.now()
        if now - self._beaten >= _BEAT:
            self._beaten = now
            self._say({"do": "beat"})

    def fileno(self) -> int:
        """To poll for input."""
        return self._link.fileno()

    def read(self) -> list[MemberEvent]:
        """Return what has happened since. LocalError, once, when the process has ended and can't be started again."""
        result: list[MemberEvent] = []
        while not self.lost and (what := self._receive()) is not None:
            if "died" in what:
                result.append(self._again(what["died"]))
            elif "error" in what:  # of one that was started again
                self.lost = self._told = True
                raise self._error(what["error"])
            elif "pid" in what:
                self.member_pid = what["pid"]
            elif "told" in what:
                result.append(Told(packets.unpack_bytes(what["told"]), what["by"]))
            elif "table" not in what:
                result.append(_KINDS[what.pop("event")](**what))
            else:
                self._table += [packets.unpack_member(row) for row in what["table"]]
                if not what["more"]:
                    self._known, self._table = tuple(self._table), []
                    result.append(Changed(self._known))
        if self.lost and not self._told:
            result.append(self._anew())
        return result

    def _anew(self) -> MemberEvent:
        """Start both processes again where both have died."""
        event = self._again("with the process that starts it")
        if not isinstance(event, Restarted):
            self._told = True
            return event
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # somebody has collected it
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        other = spawn()
        os.dup2(other.fileno(), self._link.fileno(), inheritable=False)  # whoever polls it goes on doing so
        other._link.close()
        self.pid, self.lost = other.pid, False
        self._pay()
        return event

    def _again(self, how: str) -> MemberEvent:
        """Let another process go on where this one has died."""
        now = clock.now()
        self._restarts = [time for time in self._restarts if now - time < _SPAN] + [now]
        if len(self._restarts) > _RESTARTS:
            self.lost = self._told = True
            raise self._error(f"the membership process has ended {len(self._restarts)} times in {_SPAN} s: {how}")
        if "leave" in self._said:  # it has said so to some
            return Gone()
        self.member_pid, self._table, said = 0, [], self._said
        others = [member for member in self._known if member.node not in (self._node, *said["begin"]["revoked"])]
        said["begin"]["known"] = [packets.pack_member(member) for member in others[:_KNOWN]]
        if "busy" in said:
            said["busy"]["seconds"] = max(0.0, self._busy_until - now)
        self._owed = {kind: said[kind] for kind in ("begin", "cut", "lag", "progress", "busy") if kind in said}
        self._pay()
        return Restarted(how)

    def _pay(self) -> None:
        """Tell a process that has just been started what it has to know, as far as it takes it in."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self._owed:
                kind = next(iter(self._owed))
                packets.send(self._link, self._owed[kind])
                del self._owed[kind]

    def close(self) -> None:
        """End the process; it says nothing more to anybody."""
        self._link.close()
        if self.pid:
            # both would end by themselves, but not where they have been stopped; the parent first, or it forks again
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # somebody has collected it
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
            with contextlib.suppress(ProcessLookupError):
                if self.member_pid:
                    os.kill(self.member_pid, signal.SIGKILL)
            self.pid = self.member_pid = 0

    def _receive(self) -> dict[str, Any] | None:
        """Return what it says; None where it says nothing, and where it will say nothing any more."""
        try:
            what = packets.receive(self._link)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            what = None
        self.lost = self.lost or what is None
        return what

    def _say(self, what: dict[str, Any]) -> None:
        """Tell the process; one that takes nothing in for some seconds is ended, and another told instead."""
        kind = what["do"]
        if kind != "beat":
            self._said[kind] = what
        if self._owed:
            if kind != "beat" and not (kind in _IN_BEGIN and "begin" in self._owed):
                self._owed[kind] = what
            self._pay()
            return
        try:
            packets.send(self._link, what)
            self._full = None
        except BlockingIOError:
            now = clock.now()
            self._full = now if self._full is None else self._full
            with contextlib.suppress(ProcessLookupError):
                if now - self._full > _STUCK:
                    os.kill(self.pid, signal.SIGKILL)
                if self.member_pid:
                    os.kill(self.member_pid, signal.SIGKILL)
        except (BrokenPipeError, ConnectionResetError):
            return  # which `read` will find

    def _error(self, text: str) -> LocalError:
        return LocalError(text, node=self._node, round=0, part="membership")


def start() -> Sidecar:
    """Fork the process and its parent. Before any thread is started and before jax has a backend."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        its.close()
        return Sidecar(pid, mine)
    code = 70
    try:
        _detach(its)
        _keep(its)
        code = 0
    finally:
        if code:
            traceback.print_exception(*sys.exc_info())
            sys.stderr.flush()
        os._exit(code)


def spawn() -> Sidecar:
    """Start the same by a Python of its own, which takes a tenth of a second or two.

    For a node in a process that is somebody else's: it may have threads, and jax may be at work in it, which no fork
    survives for sure.
    """
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    package = str(Path(__file__).resolve().parents[3])  # wherever the process has found it
    code = f"import sys; sys.path.insert(0, {package!r}); from {__name__} import spawned; spawned()"
    command = [sys.executable, "-c", code]
    with its:
        placed = [(os.POSIX_SPAWN_DUP2, its.fileno(), _SPAWNED)]
        pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=placed)
    return Sidecar(pid, mine)


def spawned() -> None:
    """Be the process that `spawn` starts, until its end."""
    link = socket.socket(fileno=_SPAWNED)
    _detach(link)
    _keep(link)


def _keep(link: socket.socket) -> None:
    """Fork the process, and again when it dies, until it ends because the node's end of the link has closed.

    In the child this returns when it has ended so.
    """
    link.setblocking(False)
    while True:
        pid = os.fork()
        if not pid:
            run(link)
            return
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 0:
            return
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        try:
            with contextlib.suppress(BlockingIOError):
                while link.recv(PACKET):  # it was for the one that has died
                    pass
            select.select([], [link], [])
            packets.send(link, {"died": how})
        except (BrokenPipeError, ConnectionResetError):
            return


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
