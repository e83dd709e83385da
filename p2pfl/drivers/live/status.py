"""What a live node tells of how it stands: who may know it, how often, and how fast its rounds go by."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping

from p2pfl.drivers.live.settings import models_address
from p2pfl.errors import RemoteError
from p2pfl.node import status
from p2pfl.node.status import SELF, SILENT, ReportedMember, StatusReport
from p2pfl.protocol.budget import Budget
from p2pfl.protocol.events import Drop
from p2pfl.protocol.membership.table import Member
from p2pfl.protocol.questions import Asker

_ANSWERS = 2.0, 10.0
"""Questions of those who may know it that are answered: a second for long, and at once ..."""

_REFUSALS = 1.0, 8.0
"""... and of all others that are told why they are not; more are hung up without a word."""

_LATELY = 60.0
"""Seconds over which rounds are counted, to say how long the rest of them will take."""

_LOOK = 1.0
"""Seconds between counts."""


class Pace:
    """How long the rounds that are left will take, by those of the last minute."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()  # when, and the round then

    def count(self, round: int, now: float) -> None:
        """The node is in this round."""
        if self._counts and (round < self._counts[-1][1] or now - self._counts[-1][0] > 10 * _LATELY):
            self._counts.clear()  # it has gone back, or this machine has slept
        if not self._counts or now - self._counts[-1][0] >= _LOOK:
            self._counts.append((now, round))
        while self._counts[-1][0] - self._counts[0][0] > _LATELY:
            self._counts.popleft()

    def left(self, rounds: int, round: int, now: float) -> float | None:
        """Return the seconds until the last of so many rounds; None where the node has not got on lately."""
        if round >= rounds:
            return 0.0
        if not self._counts or round <= self._counts[0][1]:
            return None
        return (rounds - round) * (now - self._counts[0][0]) / (round - self._counts[0][1])


class StatusDesk:
    """Answers who asks how this node stands: with keys members of the federation, without them this machine alone."""

    def __init__(
        self, report: Callable[[float], StatusReport], drop: Callable[[Drop], None], keyed: bool, now: float
    ) -> None:
        """`report`: how it stands, at a time. `keyed`: links have keys."""
        self._report, self._drop, self._keyed = report, drop, keyed
        self._answers, self._refusals = Budget(*_ANSWERS, now), Budget(*_REFUSALS, now)

    def answer(self, asked: bytes, asker: Asker, now: float) -> bytes:
        """Return the answer. RemoteError: too many have asked, or what was asked is no question."""
        if asked:
            raise RemoteError("handshake", "asks how this node stands, and says something besides")
        if asker.node is None if self._keyed else not asker.here:
            if not self._refusals.take(now):
                raise RemoteError("flood", "too many strangers ask how this node stands")
            self._drop(Drop("refused", "a stranger asks how this node stands"))
            return status.refusal(self._keyed)
        if not self._answers.take(now):
            raise RemoteError("flood", "too many ask how this node stands")
        return status.encode(self._report(now))


def members(
    me: ReportedMember, table: Iterable[Member], silent: Collection[int], names: Mapping[int, str]
) -> list[ReportedMember]:
    """Return the members that a node reports: itself, and those of its table. `silent`: that do not answer it."""
    others = [
        ReportedMember(
            node=each.node,
            name=names.get(each.node, ""),
            state=SILENT if each.present and each.node in silent else each.state,
            round=max(0, each.round),
            address=models_address(each.address)[:200],
        )
        for each in table
        if each.node != me.node
    ]
    assert me.state == SELF
    return sorted((me, *others), key=lambda each: each.node)
