"""The addresses a node starts from, and who has been found there."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

from p2pfl.protocol.membership.table import NOBODY, MemberEntry


class Seed(NamedTuple):
    """An address to start from; `node`: who is there, where that is known."""

    address: str
    node: int | None = None


class Seeds:
    """An address may be written otherwise than its member writes it: who answers from there is remembered."""

    def __init__(self, seeds: Iterable[Seed], mine: str) -> None:
        self._seeds = {seed.address: seed for seed in seeds if seed.address != mine}
        self._node = {seed.address: NOBODY if seed.node is None else seed.node for seed in self._seeds.values()}
        self._asked: dict[int, str] = {}  # by the number of the question

    def unanswered(self, entries: Mapping[int, MemberEntry]) -> list[Seed]:
        """Those where no member is known to live."""
        there = {entry.address for entry in entries.values() if not entry.terminal}
        return [
            self._seeds[address]
            for address, node in self._node.items()
            if address not in there and not (node in entries and not entries[node].terminal)
        ]

    def ask(self, seq: int, address: str) -> None:
        """This question went to this address."""
        if address in self._node:
            while len(self._asked) >= 4 * len(self._node):
                del self._asked[next(iter(self._asked))]  # the oldest
            self._asked[seq] = address

    def answered(self, seq: int, node: int) -> None:
        """This member has answered the question."""
        address = self._asked.pop(seq, None)
        if address in self._node:
            self._node[address] = node

    def myself(self, seq: int) -> None:
        """The question came back to who asked it: it is a name of its own address."""
        self._node.pop(self._asked.pop(seq, ""), None)

    def keep(self, nodes: Container[int]) -> None:
        """Give up those where somebody else was known to be than these nodes."""
        for address, node in [*self._node.items()]:
            if node != NOBODY and node not in nodes:
                del self._node[address]
