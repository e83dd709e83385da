"""Why a node is not reached at an address: looked at in threads, by calling there as a node of the federation does.

ZeroMQ connects in silence, again and again, whatever is wrong. A person has to know whether it is the name, the port, a
firewall, or another federation; and in what the experiment of that one differs, for which it is asked.
"""

from __future__ import annotations

import contextlib
import enum
import queue
import socket
import threading
from collections.abc import Callable
from typing import NamedTuple

from p2pfl.drivers.live import addresses, clock, versions, zmtp
from p2pfl.drivers.live.curve import Calling, Keys
from p2pfl.drivers.live.settings import models_address
from p2pfl.drivers.live.zmtp import Command, Frame, Kind, Limits, Reader
from p2pfl.errors import RemoteError
from p2pfl.protocol import questions
from p2pfl.protocol.membership.wire import DOCUMENT_CAP, dialer
from p2pfl.protocol.questions import DIFFERS
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
"""What a node may say to who has introduced itself ..."""

_FAREWELL = Limits(len(zmtp.REVOKED) + DOCUMENT_CAP, 1, len(zmtp.REVOKED) + DOCUMENT_CAP)
"""... or a member to who was one."""

_OTHER = "is of another federation: its experiment differs from this one"

_UNKNOWN = "does not take this node's key: its federation file is older than ours, or we are no members any more"
_OTHER_KEY = "has another key than the federation's file says of it"
_REVOKED = "says that we are no members any more: the others have revoked us"
_PLAIN = "was started without keys: nothing that is sent there is encrypted"

_MEMBERS = "it speaks to members of its federation alone; ask by its node file, or with --key and --federation"

_KEYS = {"key": "", "plaintext": _PLAIN, "encryption": _OTHER_KEY}
"""Reasons that are matters of keys, and what is said of them; "": what the error says."""

REACHED = ""
"""A node of this federation takes connections there."""


class _HungUpError(ConnectionError):
    """The other end has closed."""


class Reachability:
    """Knows what was last seen at addresses; `strangers` who has answered there that it runs something else."""

    def __init__(
        self, introduction: bytes, ours: Strangers, keys: Callable[[str], Keys | None] = lambda address: None
    ) -> None:
        """`keys`: of a connection to an address of models or of the membership; None where there are none."""
        self._introduction, self._ours, self._keys = introduction, ours, keys
        self._known: dict[str, str] = {}
        self.strangers: dict[str, Stranger] = {}
        self._told: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self._due: dict[str, float] = {}
        self._under_way: set[str] = set()

    def why(self, address: str, now: float) -> str | None:
        """Return why nobody is reached there, or REACHED; None while it is not known, and where nobody can call."""
        if dialer(address) is not None:
            return None
        due = now >= self._due.get(address, now)
        if due and address not in self._under_way and len(self._under_way) < _AT_ONCE:
            self._due[address] = now + _AGAIN
            self._under_way.add(address)
            threading.Thread(target=self._look, args=(address,), name="reach", daemon=True).start()
        return self._known.get(address)

    def told(self) -> list[tuple[str, bytes]]:
        """Return the records of the federation by which members have said that this node is none, and where."""
        told = []
        while not self._told.empty():
            told.append(self._told.get())
        return told

    def again(self) -> None:
        """Look at all addresses anew: somebody there may have changed."""
        self._due.clear()

    def _look(self, address: str) -> None:
        try:
            keys = self._keys(address)
            found = examine(address, Caller(self._introduction, keys, zmtp.ASKS))
            seen = found.why
            if found.how == LookEnd.KEY and found.said:
                self._told.put((address, found.said))
            stranger = ask(models_address(address), self._ours, keys) if found.how == LookEnd.OTHER else None
            if stranger is None:
                self.strangers.pop(address, None)
            else:
                self.strangers[address] = stranger
                seen = f"node {stranger.node} there runs another experiment: {stranger.said}"
            self._known[address] = seen
        finally:
            self._under_way.discard(address)


class Caller(NamedTuple):
    """Who calls, as it says, and the keys of the connection; None: it has none."""

    identity: bytes
    keys: Keys | None = None
    about: bytes = b""  # zmtp.ASKS, TAKES


class Call:
    """A connection to somebody, from the calling end, which waits for what is said there."""

    def __init__(self, link: socket.socket, who: Caller) -> None:
        self._link, self._who = link, who
        self.reader = Reader(zmtp.NULL if who.keys is None else zmtp.CURVE)
        self._limit = clock.now() + _PATIENCE

    def greet(self) -> Command:
        """Greet the other end; return what it says of itself. Raises OSError, TimeoutError, RemoteError."""
        who = self._who
        about = zmtp.properties(b"DEALER", who.identity, who.about)
        if who.keys is None:
            self._link.sendall(zmtp.GREETING + zmtp.command(b"READY", about))
            return self._said()
        calling = Calling(*who.keys)
        self._link.sendall(zmtp.greeting(zmtp.CURVE) + calling.hello())
        while calling.said is None:
            known = calling.met
            try:
                self._link.sendall(calling.take(self._said(), about))
            except _HungUpError as error:
                raise RemoteError("key", _UNKNOWN if known else _OTHER_KEY) from error
        self.reader.sealing = calling.session
        return calling.said

    def more(self, seconds: float) -> None:
        """Wait for so long from now on."""
        self._limit = clock.now() + seconds

    def next(self) -> Command | list[Frame]:
        """Return the next that comes. Raises OSError, TimeoutError, RemoteError."""
        while (item := self.reader.next()) is None:
            if (left := self._limit - clock.now()) <= 0:
                raise TimeoutError
            self._link.settimeout(left)
            count = self._link.recv_into(self.reader.space)
            if not count:
                raise _HungUpError
            self.reader.took(count)
        return item

    def _said(self) -> Command:
        if not isinstance(item := self.next(), Command):
            raise RemoteError("handshake", "a message instead of a command")
        return item


def ask(address: str, ours: Strangers, keys: Keys | None = None) -> Stranger | None:
    """Ask a node of another federation, where it takes models, in what its experiment differs; None: it does not say.

    `keys`: as in `Caller`. Takes seconds.
    """
    with contextlib.suppress(RemoteError):
        return ours.understand(answered(address, questions.question(DIFFERS, ours.question()), keys))
    return None


def answered(address: str, question: bytes, keys: Keys | None = None) -> bytes:
    """Put a question to the node at an address, where it takes models; return its answer. Takes seconds.

    `keys`: as in `Caller`.

    RemoteError, with the reason for a person: nobody is reached there, or no answer comes.
    """
    host, port = addresses.parsed(address)
    try:
        places = addresses.lookup(host, port)
    except (OSError, UnicodeError) as error:
        raise RemoteError("address", _unresolved(error)) from error
    why = dict[str, None]()
    for family, _, _, _, where in places:
        link = _connected(family, where)
        if isinstance(link, Look):
            why[link.why] = None
            continue
        with link:
            try:
                return _answer(link, Call(link, Caller(zmtp.QUESTION, keys)), question)
            except (OSError, RemoteError) as error:
                why[f"no answer from port {where[1]}: {_text(error)}"] = None
    raise RemoteError("address", "; ".join(why))


def _answer(link: socket.socket, call: Call, question: bytes) -> bytes:
    """Greet, ask, and return the one message that comes. Raises OSError, RemoteError."""
    try:
        kind = zmtp.kind(call.greet())
    except _HungUpError as error:
        raise RemoteError("handshake", "what listens there is no node") from error
    call.reader.limits = Limits(questions.CAP, 1, questions.CAP)
    call.more(2 * _PATIENCE)
    try:
        link.sendall(zmtp.message(question, call.reader.sealing))
        while isinstance(item := call.next(), Command):
            pass
    except ConnectionError as error:  # it may hang up before all of the question is there
        raise RemoteError("handshake", _silence(kind)) from error
    return b"".join(item)


def _text(error: OSError | RemoteError) -> str:
    if isinstance(error, TimeoutError):
        return "nothing has come in for seconds"
    if not isinstance(error, RemoteError):
        return error.strerror or str(error)
    if error.reason in _KEYS:
        return f"the node there {_KEYS[error.reason] or error.detail}"
    return _MEMBERS if error.reason == "mechanism" else error.detail


def _silence(kind: Kind | None) -> str:
    """Say why what listens, which says that it is this, hangs up without an answer."""
    if kind is None:
        return "it hangs up, and does not say what it is"
    if kind.port == versions.MEMBERSHIP:
        return f"it is the port of the membership of node {kind.node}; ask at the port before it"
    return f"node {kind.node} of p2pfl {kind.version} hangs up: it is asked too often, or knows no such question"


class Look(NamedTuple):
    """What was seen at an address."""

    how: LookEnd
    why: str  # nobody of this federation is reached there, for a person; REACHED
    kind: Kind | None = None  # what listens there, where it says so
    said: bytes = b""  # by a node of `p2pfl doctor`, which answers; or, with KEY, the records by which we are no member


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
    KEY = "key"  # a node whose key, or keys, are not those that were expected


def examine(address: str, who: Caller) -> Look:
    """Return what is seen at an address by who calls there. Takes seconds."""
    host, port = addresses.parsed(address)
    try:
        places = addresses.lookup(host, port)
    except (OSError, UnicodeError) as error:
        return Look(LookEnd.NO_NAME, _unresolved(error))
    seen = [_call(family, where, who) for family, _, _, _, where in places]
    # of several addresses of a name, what is most to the point
    telling = {LookEnd.REACHED: 0, LookEnd.OTHER: 1, LookEnd.KEY: 1}
    best = min(seen, key=lambda each: telling.get(each.how, 2))
    return best if best.how == LookEnd.REACHED else best._replace(why="; ".join(dict.fromkeys(one.why for one in seen)))


def _unresolved(error: OSError | UnicodeError) -> str:
    return f"can't be resolved: {error.strerror if isinstance(error, OSError) else 'no name'}"


def _connected(family: int, where: tuple[str, int]) -> socket.socket | Look:
    """Return a connection, or what is seen instead."""
    port = f"port {where[1]}"
    try:
        link = socket.socket(family)
    except OSError as error:  # a machine without IPv6, or without a file to spare
        return Look(LookEnd.NO_WAY, f"{error.strerror}")
    link.settimeout(_PATIENCE)
    try:
        link.connect(where)
        return link
    except ConnectionRefusedError:
        seen = Look(LookEnd.REFUSED, f"refused: nothing listens at {port}")
    except TimeoutError:
        seen = Look(LookEnd.NO_ANSWER, f"no answer from {port}: a firewall, or the machine is off")
    except OSError as error:
        seen = Look(LookEnd.NO_WAY, f"{error.strerror}")
    link.close()
    return seen


def _call(family: int, where: tuple[str, int], who: Caller) -> Look:
    port, link = f"port {where[1]}", _connected(family, where)
    if isinstance(link, Look):
        return link
    with link:
        call = Call(link, who)
        try:
            kind = zmtp.kind(call.greet())
        except RemoteError as error:
            if error.reason in _KEYS:
                return Look(LookEnd.KEY, f"the node at {port} {_KEYS[error.reason] or error.detail}")
            return Look(LookEnd.NO_NODE, f"what listens at {port} is no node")
        except TimeoutError:
            return Look(LookEnd.SILENT, f"what listens at {port} says nothing")
        except OSError:
            return Look(LookEnd.NO_NODE, f"what listens at {port} is no node")
        return _listen(call, kind, port)


def _listen(call: Call, kind: Kind | None, port: str) -> Look:
    """Hear whether the other end, which has greeted, hangs up: only who finds no fault with the introduction stays."""
    call.reader.limits = ANSWER if call.reader.sealing is None else _FAREWELL
    call.more(_HANGS_UP)
    try:
        item = _message(call)
    except TimeoutError:
        return Look(LookEnd.REACHED, REACHED, kind)
    except RemoteError:
        return Look(LookEnd.NO_NODE, f"what listens at {port} is no node")
    except OSError:
        return Look(LookEnd.OTHER, f"the node at {port} {_OTHER}", kind)
    said = bytes(item[0])
    if said.startswith(zmtp.REVOKED) and call.reader.sealing is not None:
        return Look(LookEnd.KEY, f"the node at {port} {_REVOKED}", kind, said.removeprefix(zmtp.REVOKED))
    return Look(LookEnd.REACHED, REACHED, kind, said)


def _message(call: Call) -> list[Frame]:
    """Return the message that comes; what has begun to come gets its time, once, however much is said in it."""
    try:
        return _heard(call)
    except TimeoutError:
        if not call.reader.unfinished:
            raise
    call.more(_PATIENCE)
    return _heard(call)


def _heard(call: Call) -> list[Frame]:
    while isinstance(item := call.next(), Command):
        pass
    return item
