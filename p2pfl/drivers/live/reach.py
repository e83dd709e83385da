"""Why a node is not reached at an address: looked at in threads, by calling there as a node of the federation does.

ZeroMQ connects in silence, again and again, whatever is wrong. A person has to know whether it is the name, the port, a
firewall, or another federation; and in what the experiment of that one differs, for which it is asked.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import threading
from typing import NamedTuple

from p2pfl.drivers.live import addresses, clock, zmtp
from p2pfl.drivers.live.settings import models_address
from p2pfl.drivers.live.zmtp import Command, Kind, Limits, Reader
from p2pfl.errors import RemoteError
from p2pfl.protocol import strangers
from p2pfl.protocol.strangers import Stranger, Strangers

_AGAIN = 10.0
"""Seconds after which an address is looked at again."""

_AT_ONCE = 8
"""Addresses that are looked at, at once."""

_PATIENCE = 2.0
"""Seconds that a connection may take to come about, and the other end to say what it is."""

_HANGS_UP = 0.5
"""Seconds in which a node of another federation hangs up."""

ANSWER = Limits(1 << 14, 1, 1 << 14)
"""What a node may say to who has introduced itself."""

_OTHER = "is of another federation: its experiment differs from this one"

REACHED = ""
"""A node of this federation takes connections there."""


class Reachability:
    """Knows what was last seen at addresses; `strangers` who has answered there that it runs something else."""

    def __init__(self, introduction: bytes, ours: Strangers) -> None:
        self._introduction, self._ours = introduction, ours
        self._known: dict[str, str] = {}
        self.strangers: dict[str, Stranger] = {}
        self._due: dict[str, float] = {}
        self._under_way: set[str] = set()

    def why(self, address: str, now: float) -> str | None:
        """Return why nobody is reached there, or REACHED; None while it is not known."""
        due = now >= self._due.get(address, now)
        if due and address not in self._under_way and len(self._under_way) < _AT_ONCE:
            self._due[address] = now + _AGAIN
            self._under_way.add(address)
            threading.Thread(target=self._look, args=(address,), name="reach", daemon=True).start()
        return self._known.get(address)

    def again(self) -> None:
        """Look at all addresses anew: somebody there may have changed."""
        self._due.clear()

    def _look(self, address: str) -> None:
        try:
            found = examine(address, self._introduction)
            seen = found.why
            stranger = ask(models_address(address), self._ours) if found.how == LookEnd.OTHER else None
            if stranger is None:
                self.strangers.pop(address, None)
            else:
                self.strangers[address] = stranger
                seen = f"node {stranger.node} there runs another experiment: {stranger.said}"
            self._known[address] = seen
        finally:
            self._under_way.discard(address)


def ask(address: str, ours: Strangers) -> Stranger | None:
    """Ask a node of another federation, where it takes models, in what its experiment differs; None: it does not say.

    Takes seconds.
    """
    host, port = addresses.parsed(address)
    try:
        places = addresses.lookup(host, port)
    except (OSError, UnicodeError):
        return None
    for family, _, _, _, where in places:
        with contextlib.suppress(OSError, RemoteError), socket.socket(family) as link:
            link.settimeout(_PATIENCE)
            link.connect(where)
            link.sendall(zmtp.GREETING + zmtp.ready(b"DEALER", zmtp.COMPARES) + zmtp.message(ours.question()))
            return ours.understand(_answer(link))
    return None


def _answer(link: socket.socket) -> bytes:
    """Read the one message that comes, in time however it drips. Raises OSError, RemoteError."""
    reader, limit = Reader(), clock.now() + _PATIENCE
    reader.limits = Limits(strangers.CAP, 1, strangers.CAP)
    while True:
        item = reader.next()
        if (left := limit - clock.now()) <= 0:
            raise RemoteError("handshake", f"gives no whole answer in {_PATIENCE} s")
        if item is None:
            link.settimeout(left)
            count = link.recv_into(reader.space)
            if not count:
                raise RemoteError("handshake", "hangs up without an answer")
            reader.took(count)
        elif not isinstance(item, Command):
            return b"".join(item)


class Look(NamedTuple):
    """What was seen at an address."""

    how: LookEnd
    why: str  # nobody of this federation is reached there, for a person; REACHED
    kind: Kind | None = None  # what listens there, where it says so
    said: bytes = b""  # by a node that answers whoever has said who it is, as one of `p2pfl doctor` does


class LookEnd(enum.Enum):
    """How a look at an address has ended."""

    REACHED = "reached"  # a node of this federation takes connections there
    NO_NAME = "no name"  # the name stands for no address
    REFUSED = "refused"  # the machine is there, and nothing listens
    NO_ANSWER = "no answer"  # what is sent there is dropped
    NO_WAY = "no way"  # this machine knows no way there
    NO_NODE = "no node"  # something else listens
    SILENT = "silent"  # something listens and says nothing
    OTHER = "other"  # a node of another federation


def examine(address: str, introduction: bytes) -> Look:
    """Return what is seen at an address by who introduces itself so. Takes seconds."""
    host, port = addresses.parsed(address)
    try:
        places = addresses.lookup(host, port)
    except (OSError, UnicodeError) as error:
        return Look(
            LookEnd.NO_NAME, f"can't be resolved: {error.strerror if isinstance(error, OSError) else 'no name'}"
        )
    seen = [_call(family, where, introduction) for family, _, _, _, where in places]
    telling = {LookEnd.REACHED: 0, LookEnd.OTHER: 1}  # of several addresses of a name, what is most to the point
    best = min(seen, key=lambda each: telling.get(each.how, 2))
    return best if best.how == LookEnd.REACHED else best._replace(why="; ".join(dict.fromkeys(one.why for one in seen)))


def _call(family: int, where: tuple[str, int], introduction: bytes) -> Look:
    port = f"port {where[1]}"
    try:
        link = socket.socket(family)
    except OSError as error:  # a machine without IPv6, or without a file to spare
        return Look(LookEnd.NO_WAY, f"{error.strerror}")
    with link:
        link.settimeout(_PATIENCE)
        try:
            link.connect(where)
        except ConnectionRefusedError:
            return Look(LookEnd.REFUSED, f"refused: nothing listens at {port}")
        except TimeoutError:
            return Look(LookEnd.NO_ANSWER, f"no answer from {port}: a firewall, or the machine is off")
        except OSError as error:
            return Look(LookEnd.NO_WAY, f"{error.strerror}")
        try:
            link.sendall(zmtp.GREETING + zmtp.ready(b"DEALER", introduction, zmtp.ASKS))
            return _listen(link, port)
        except (OSError, RemoteError):
            return Look(LookEnd.NO_NODE, f"what listens at {port} is no node")


def _listen(link: socket.socket, port: str) -> Look:
    """Hear what the other end says of itself, and whether it hangs up. Raises OSError, RemoteError: it is no node."""
    reader, kind, limit = Reader(), None, clock.now() + _PATIENCE
    ready = False
    while True:
        while (item := reader.next()) is not None:
            if isinstance(item, Command):
                if not ready:  # it has greeted: from here on only who finds no fault with the introduction stays
                    kind, ready = zmtp.kind(item), True
                    reader.limits, limit = ANSWER, clock.now() + _HANGS_UP
            else:
                return Look(LookEnd.REACHED, REACHED, kind, bytes(item[0]))
        if (left := limit - clock.now()) <= 0:
            break
        link.settimeout(left)
        try:
            count = link.recv_into(reader.space)
        except TimeoutError:
            break
        except OSError:
            count = 0
        if not count:
            return _hung_up(ready, kind, port)
        reader.took(count)
    return (
        Look(LookEnd.REACHED, REACHED, kind) if ready else Look(LookEnd.SILENT, f"what listens at {port} says nothing")
    )


def _hung_up(ready: bool, kind: Kind | None, port: str) -> Look:
    if not ready:
        return Look(LookEnd.NO_NODE, f"what listens at {port} is no node")
    return Look(LookEnd.OTHER, f"the node at {port} {_OTHER}", kind)
