"""Strangers: nodes whose experiment differs, so that they are of another federation. Both ends are told in what.

Nothing is exchanged with them: not even the handshake of a connection is. But one that is not reached where a node of
the same federation should be asks there what differs: its question has the fields of its own experiment, and the answer
those that are others here. So nobody learns more than that: who does not know the experiment's name, and most of its
fields, is told nothing. What a stranger asks ends nothing; what it answers, at an address that a person has given, may.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from p2pfl.errors import RemoteError
from p2pfl.protocol.agreement import pack, printable, said, unpack
from p2pfl.protocol.budget import Budget
from p2pfl.protocol.questions import CAP

_NAME, _VALUE = 120, 100
"""Characters of a field's name, and of its value."""

_RATE = 1.0, 8.0
"""Questions that are answered: a second for long, and at once."""

_PATIENCE = 12.0
"""Seconds for which one whose neighbours run another experiment lets them ask what differs, before it leaves: they look
at an address each ten."""

_TOLD = 16
"""Strangers that a person is told of because they have asked."""

_NODES = 1 << 31

GRAPH = "graph"
"""The field that is the graph as it is meant; those that begin as follows say how it was written."""

_WRITTEN = "topology."


class Stranger(NamedTuple):
    """A node of another federation."""

    node: int
    said: str  # what differs, for a person


class Strangers:
    """What one node tells them, and has heard of them. `fields`: of its experiment, in words."""

    def __init__(self, node: int, fields: Mapping[str, str], now: float) -> None:
        self._node, self._fields = node, fields
        self._budget = Budget(*_RATE, now)
        self._told: dict[Stranger, None] = {}
        self._news: list[Stranger] = []
        self._askers: set[int] = set()  # nodes that have asked this one, and know what differs
        self._since: float | None = None  # since when most neighbours are known to be strangers

    def question(self) -> bytes:
        """Return what this node asks at an address where it is not let in."""
        return pack(json.dumps({"node": self._node, "fields": {**self._fields}}))

    def answer(self, question: bytes, now: float) -> bytes:
        """Return what is answered. RemoteError for what no honest node asks, and for one that knows too little."""
        if not self._budget.take(now):
            raise RemoteError("flood", "too many ask what differs")
        table = _read(question)
        node, theirs = table.get("node"), table.get("fields")
        if type(node) is not int or not 0 <= node < _NODES or not _texts(theirs):
            raise RemoteError("handshake", "asks what differs, and does not say what it has")
        alike = sum(theirs.get(name) == value for name, value in self._fields.items())
        if theirs.get("name") != self._fields.get("name") or 2 * alike <= len(self._fields.keys() | theirs.keys()):
            raise RemoteError("handshake", f"node {node} of something else altogether asks what differs")
        differing = _differing(theirs, self._fields)
        if differing and node != self._node:
            self._askers.add(node)
            self._hear(Stranger(node, _lines(theirs, self._fields, differing)))
        return pack(json.dumps({"node": self._node, "differs": {name: self._fields.get(name) for name in differing}}))

    def understand(self, answer: bytes) -> Stranger:
        """Return who has answered, and what differs. RemoteError for what no honest node answers."""
        table = _read(answer)
        node, differs = table.get("node"), table.get("differs")
        if type(node) is not int or not 0 <= node < _NODES or not isinstance(differs, dict):
            raise RemoteError("handshake", "an answer that names no node")
        theirs = {**self._fields, **{name: value for name, value in differs.items() if value is not None}}
        for name in [name for name, value in differs.items() if value is None]:
            theirs.pop(name, None)
        if not _texts(theirs) or not (differing := _differing(theirs, self._fields)):
            raise RemoteError("handshake", f"node {node} says nothing that differs")
        return Stranger(node, _lines(theirs, self._fields, differing))

    def unfit(self, neighbors: Iterable[int], strangers: Iterable[Stranger], now: float) -> str:
        """Return why a node that has met nobody does not belong here, one line a neighbour; "" where it may.

        Most of its neighbours must be strangers, who have answered this node; those get the time to ask it, in turn.
        """
        near, unlike = {*neighbors}, {stranger.node: stranger for stranger in strangers}
        differ = sorted(near & unlike.keys())
        if 2 * len(differ) <= len(near):
            self._since = None
            return ""
        self._since = now if self._since is None else self._since
        if not self._askers.issuperset(differ) and now - self._since < _PATIENCE:
            return ""
        return "\n".join(f"node {node}: {unlike[node].said}" for node in differ)

    def _hear(self, stranger: Stranger) -> None:
        if stranger not in self._told and len(self._told) < _TOLD:
            self._told[stranger] = None
            self._news.append(stranger)

    def news(self) -> list[Stranger]:
        """Return who has asked since the last call, each once."""
        news, self._news = self._news, []
        return news


def _read(packed: bytes) -> dict[str, Any]:
    if len(packed) > CAP:
        raise RemoteError("size", f"{len(packed)} bytes of fields; at most {CAP}")
    try:
        table = json.loads(unpack(packed))
    except (ValueError, RecursionError) as error:
        raise RemoteError("handshake", f"fields that can't be read: {error}"[:200]) from error
    if not isinstance(table, dict):
        raise RemoteError("handshake", "fields that are none")
    return table


def _texts(fields: object) -> TypeGuard[dict[str, str]]:
    return isinstance(fields, dict) and all(
        isinstance(value, str) and len(name) <= _NAME and len(value) <= _VALUE for name, value in fields.items()
    )


def _differing(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """Return the names of fields that differ; how a graph is written matters only where another one is meant."""
    names = [name for name in dict.fromkeys((*ours, *theirs)) if theirs.get(name) != ours.get(name)]
    return names if GRAPH in names else [name for name in names if not name.startswith(_WRITTEN)]


def _lines(theirs: Mapping[str, str], ours: Mapping[str, str], names: Sequence[str]) -> str:
    written = any(name.startswith(_WRITTEN) for name in names)
    told, nothing = [name for name in names if name != GRAPH or not written], "nothing"
    return said([printable(f"{n}: {theirs.get(n, nothing)} there, {ours.get(n, nothing)} here") for n in told])
