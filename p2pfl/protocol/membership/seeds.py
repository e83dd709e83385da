"""The addresses a node starts from, and who has been found there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from p2pfl.protocol.membership.table import NOBODY, MemberEntry


class Seeds:
    """An address may be written otherwise than its member writes it: who answers from there is remembered."""

    def __init__(self, addresses: Iterable[str], mine: str) -> None:
        self._node = {address: NOBODY for address in addresses if address != mine}
        self._asked: dict[int, str] = {}  # by the number of the question

    def unanswered(self, entries: Mapping[int, MemberEntry]) -> list[str]:
        """Those where no member is known to live."""
        there = {entry.address for entry in entries.values() if not entry.terminal}
        return [
            address
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
