"""The connections of a node, tried before it runs: its two ports, its own address, the others, in both directions.

Whether others reach this node no third one finds out: two that are tried at the same time see each other call,
and each tells the other what it sees at the addresses of its own file. An address that somebody else names is never
called. What comes in is bounded as it is for a node.
"""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import select
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from p2pfl.drivers.live import addresses, clock, curve, reach, versions, zmtp
from p2pfl.drivers.live.curve import Keys
from p2pfl.drivers.live.listener import Allowance, Listener
from p2pfl.drivers.live.reach import Caller, Look, LookEnd
from p2pfl.drivers.live.settings import membership_address
from p2pfl.drivers.live.zmtp import Limits
from p2pfl.protocol.agreement import printable
from p2pfl.protocol.membership import wire
from p2pfl.trust.keyring import Keyring

_ALLOWANCE = Allowance(Limits(wire.MESSAGE_CAP, 8, wire.MESSAGE_CAP), rate=100.0, burst=200.0, unit=8192.0)
"""What a node that runs may say meanwhile; nothing of it is used."""

_AT_ONCE = 8
"""Addresses that are looked at, at once."""

_AGAIN = 1.0
"""Seconds after which an address is looked at again."""

_TOGETHER = 8.0
"""Seconds for two that are tried at the same time, where neither waits on purpose."""

_LINGER = 2.5
"""Seconds in which another sees to its end what it has begun to look at."""

_TICK = 0.05
"""Seconds between looks at what the threads have seen."""

_ACCOUNTS, _TEXT = 64, 200
"""Of what another tells: addresses at most, characters of a text."""


class TriedNode(NamedTuple):
    """The node whose connections are tried."""

    listen: str
    address: str  # as the others reach it
    node: int
    nodes: int
    federation: str | None  # digest of what all have in common; None: the experiment can't be read
    peers: Sequence[str]
    keyring: Keyring | None = None
    whose: Mapping[str, int] = MappingProxyType({})  # nodes by their addresses, where there are keys

    def keys(self, address: str) -> Keys | None:
        """Return those of a connection to an address."""
        return None if self.keyring is None else curve.keys(self.keyring, self.whose.get(address))


class Account(NamedTuple):
    """What another node sees at an address of its own file."""

    address: str
    node: int  # which it has found there; -1: not known
    models: str | None  # why it is not reached, or reach.REACHED; None: it has not looked yet
    membership: str | None

    @property
    def reached(self) -> bool:
        """Both ports are."""
        return self.models == self.membership == reach.REACHED


class Contact(NamedTuple):
    """What was seen of another node."""

    address: str
    models: Look | None = None  # None: not yet
    membership: Look | None = None
    accounts: Sequence[Account] | None = None  # what it sees itself, where it is being tried, too

    @property
    def reached(self) -> bool:
        """Both ports are."""
        return all(seen is not None and seen.how == LookEnd.REACHED for seen in (self.models, self.membership))

    @property
    def node(self) -> int:
        """Which it says it is; -1: it says nothing."""
        kinds = [seen.kind for seen in (self.models, self.membership) if seen is not None and seen.kind is not None]
        return kinds[0].node if kinds else -1


class Connections(NamedTuple):
    """What has come of it."""

    taken: Mapping[str, OSError]  # addresses of this node that can't be listened at, and why
    own: Contact
    is_own: bool  # what is reached at its own address is this
    contacts: Sequence[Contact]  # of `peers`
    callers: Mapping[str, frozenset[int]]  # nodes that have called, by versions.MODELS and MEMBERSHIP
    strangers: Sequence[str]  # of callers that were hung up, what was wrong
    listened: bool
    local: bool  # this machine itself has the host of its own address

    def calls(self, node: int) -> tuple[bool, bool]:
        """Whether a node has called at the port for models and at that of the membership."""
        return node in self.callers[versions.MODELS], node in self.callers[versions.MEMBERSHIP]


class Checkup:
    """Tries the connections of a node."""

    def __init__(self, wanted: TriedNode, say: Callable[[str], None]) -> None:
        """`say` is told what changes meanwhile."""
        self._wanted, self._say = wanted, say
        self._federation = wanted.federation or secrets.token_hex(16)  # nobody else is of that one
        self._introduction = zmtp.introduction(self._federation, wanted.node)
        self._contacts = {address: Contact(address) for address in dict.fromkeys((wanted.address, *wanted.peers))}
        self._due = dict.fromkeys(self._contacts, 0.0)
        self._under_way: set[str] = set()
        self._seen: queue.SimpleQueue[tuple[str, Look, Look]] = queue.SimpleQueue()
        self._callers: dict[str, set[int]] = {versions.MODELS: set(), versions.MEMBERSHIP: set()}
        self._listeners: list[Listener] = []
        self._taken: dict[str, OSError] = {}
        self._strangers: dict[str, None] = {}

    def run(self, wait: float) -> Connections:
        """Look at every address at least once; for up to `wait` seconds until all are reached and reach this node."""
        limit, lingers = clock.now() + wait, 0.0
        with contextlib.ExitStack() as opened:
            self._listen(opened)
            while True:
                now = clock.now()
                self._take(now)
                if not lingers:
                    self._look(now)
                self._hear(now)
                if lingers:
                    if now >= lingers:
                        break
                elif self._complete and self._looked:
                    lingers = now + (_LINGER if any(each.accounts is not None for each in self._others) else 0.0)
                elif self._looked and now >= max(limit, self._until(limit - wait)):
                    break
        callers = {port: frozenset(nodes) - {self._wanted.node} for port, nodes in self._callers.items()}
        own = self._contacts[self._wanted.address]
        contacts = [self._contacts[address] for address in dict.fromkeys(self._wanted.peers)]
        return Connections(
            self._taken, own, self._is_own(own), contacts, callers,
            [*self._strangers], bool(self._listeners), addresses.local(addresses.parsed(self._wanted.address).host),
        )  # fmt: skip

    @property
    def _others(self) -> list[Contact]:
        return [contact for address, contact in self._contacts.items() if address != self._wanted.address]

    @property
    def _looked(self) -> bool:
        """All addresses were looked at."""
        return all(each.models is not None for each in self._contacts.values())

    @property
    def _complete(self) -> bool:
        """There is nothing to wait for: all are reached, and have called, if they can."""
        others, listens = self._others, bool(self._listeners)
        return bool(others or not listens) and all(
            each.reached and (not listens or self._has_called(each)) for each in others
        )

    def _has_called(self, contact: Contact) -> bool:
        """At both ports; of a node that runs, at one: it calls the other when this node is a member."""
        called = [contact.node in nodes for nodes in self._callers.values()]
        return any(called) if contact.accounts is None else all(called)

    def _until(self, began: float) -> float:
        """Return when to end where nobody waits on purpose: another that is tried, too, is worth some seconds."""
        return began + (_TOGETHER if any(each.accounts is not None for each in self._others) else 0.0)

    def _is_own(self, own: Contact) -> bool:
        if self._listeners:
            return all(self._wanted.node in nodes for nodes in self._callers.values())
        return own.reached and own.node == self._wanted.node

    # --- the others' way here

    def _listen(self, opened: contextlib.ExitStack) -> None:
        """Listen as the node would: at both its ports, or at neither."""
        wanted, made = self._wanted, contextlib.ExitStack()
        for port, address in (
            (versions.MODELS, wanted.listen),
            (versions.MEMBERSHIP, membership_address(wanted.listen)),
        ):
            about, answer = versions.here(wanted.node, port).encode(), self._answer(port)
            try:
                listener = Listener(
                    address,
                    self._federation,
                    wanted.nodes,
                    _ALLOWANCE,
                    clock.now(),
                    about,
                    answer,
                    keyring=wanted.keyring,
                )
            except OSError as error:
                self._taken[address] = error
                continue
            made.callback(listener.close)
            self._listeners.append(listener)
        if self._taken:
            self._listeners.clear()
            made.close()
        opened.push(made)

    def _answer(self, port: str) -> Callable[[int], bytes]:
        """What a node that calls is told: what is seen here at the addresses where it may be."""

        def answer(node: int) -> bytes:
            callers = self._callers[port]
            if node not in callers and node != self._wanted.node:
                self._say(f"node {node} reaches the port for {port} here")
            callers.add(node)
            accounts = [_account(each) for each in self._others if each.node in (-1, node)]
            del accounts[_ACCOUNTS:]
            while len(told := json.dumps({"accounts": accounts}).encode()) > reach.ANSWER.frame:
                accounts.pop()  # or the other end would take this for no node at all
            return told

        return answer

    def _hear(self, now: float) -> None:
        """Take in who calls, for a tick."""
        poll = select.poll()
        for listener in self._listeners:
            poll.register(listener.fileno(), select.POLLIN)
        poll.poll(_TICK * 1000)
        for listener in self._listeners:
            for _ in listener.receive(now):  # what it says is for a node
                pass
            for reason, detail in listener.told():
                if reason == "handshake" and len(self._strangers) < _ACCOUNTS:
                    self._strangers[detail] = None

    # --- the way there

    def _look(self, now: float) -> None:
        for address, due in sorted(self._due.items(), key=lambda each: each[1]):  # whoever has waited longest
            contact = self._contacts[address]
            again = not contact.reached or contact.accounts is not None
            if again and now >= due and address not in self._under_way and len(self._under_way) < _AT_ONCE:
                self._under_way.add(address)
                threading.Thread(target=self._examine, args=(address,), name="checkup", daemon=True).start()

    def _examine(self, address: str) -> None:
        caller = Caller(self._introduction, self._wanted.keys(address), zmtp.ASKS)
        models, membership = (reach.examine(at, caller) for at in (address, membership_address(address)))
        self._seen.put((address, models, membership))

    def _take(self, now: float) -> None:
        """Note what was seen."""
        while not self._seen.empty():
            address, models, membership = self._seen.get()
            self._under_way.discard(address)
            self._due[address] = now + _AGAIN
            before = self._contacts[address]
            if (
                before.models is not None and before.models.how == LookEnd.REACHED
            ):  # who was there has ended, or is busy
                models = models if models.how == LookEnd.REACHED else before.models
            if before.membership is not None and before.membership.how == LookEnd.REACHED:
                membership = membership if membership.how == LookEnd.REACHED else before.membership
            said = models.said or membership.said
            accounts = _accounts(said) if address != self._wanted.address else None
            made = Contact(address, models, membership, before.accounts if accounts is None else accounts)
            self._contacts[address] = made
            if address != self._wanted.address and _shown(made) != _shown(before):
                self._say(f"{address}: {_shown(made)}")


def _shown(contact: Contact) -> str:
    if contact.models is None or contact.membership is None:
        return ""
    whys = [seen.why for seen in (contact.models, contact.membership) if seen.how != LookEnd.REACHED]
    return "; ".join(dict.fromkeys(whys)) or "reached"


def _account(contact: Contact) -> Account:
    whys = [None if seen is None else seen.why[:_TEXT] for seen in (contact.models, contact.membership)]
    return Account(contact.address, contact.node, whys[0], whys[1])


def _accounts(said: bytes) -> list[Account] | None:
    """Return what another tells of what it sees; None where it tells nothing that can be read."""
    try:
        table = json.loads(said) if said else None
    except (ValueError, RecursionError):
        return None
    rows = table.get("accounts") if isinstance(table, dict) else None
    if not isinstance(rows, list):
        return None
    return [made for row in rows[:_ACCOUNTS] if (made := _checked(row)) is not None]


def _checked(row: Any) -> Account | None:
    if not (isinstance(row, list) and len(row) == 4 and isinstance(row[0], str) and type(row[1]) is int):
        return None
    if not all(text is None or isinstance(text, str) for text in row[2:]):
        return None
    models, membership = (None if text is None else printable(text[:_TEXT]) for text in row[2:])
    return Account(printable(row[0][:_TEXT]), row[1], models, membership)
