"""Rounds: where the federation is, how far this node follows its neighbors, and whether it may go on by itself.

No single voice decides. A node takes over a later round only where more than half of those that should be there are
known to have reached it, or as far as its own standing still explains that the others are further on. A node that has
had no more than half of them beside it, and finds more again, goes back to the round that a majority has reached, if it
has run ahead: no training of the others is skipped for that of a few.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable

from p2pfl.protocol.neighbor import KEPT, WAIT
from p2pfl.protocol.state import PeerState


def reached(rounds: Iterable[int], members: int) -> int:
    """Return the last round that more than half of so many members have reached; 0 where no majority is known."""
    ordered = sorted(rounds, reverse=True)
    return ordered[members // 2] if members // 2 < len(ordered) else 0


class CommonRound:
    """Know what is known of the others' rounds. It changes no stage and begins no round: that is up to `Peer`."""

    def __init__(self, state: PeerState) -> None:
        self.alone = 0  # rounds that this node has trained without half of the expected members
        self._state = state
        self._split = False  # half of the expected members or more have been away, and nothing has come of it yet
        self._credit = 0.0  # rounds that this node has missed by standing still, and not made up for
        self._since = 0  # rounds that it has begun since it last stood still
        self._began: float | None = None  # the present round
        self._took: deque[float] = deque(maxlen=16)  # seconds of the latest rounds
        self._near: tuple[tuple[int, ...], frozenset[int]] = (), frozenset()  # members, and the neighbors among them
        self._still = 0.0  # seconds of the present round in which this node computed or stood still

    # --- who is there

    @property
    def expected(self) -> frozenset[int]:
        """Nodes that should be there now: as planned, but for those that have left in good order."""
        state = self._state
        told = (seen.round for seen in state.seen.values())
        now = max(state.round, state.facts.join_round - 1, *state.over.values(), *told, *self._known().values())
        planned = state.facts.planned(min(now + 1, state.facts.rounds))
        return (planned - state.left - self._as_planned()) | {state.facts.node}

    def _as_planned(self) -> set[int]:
        """Members that have died about when the experiment lets them; what was last heard of their rounds is old."""
        facts, over = self._state.facts, self._state.over
        if facts.there is None:
            return set()
        return {n for n, last in over.items() if any(n not in facts.planned(last + i) for i in range(1, KEPT + 1))}

    @property
    def lonely(self) -> bool:
        """Return whether more than half of the expected members are lost."""
        return 2 * self._present() < len(self.expected)

    @property
    def waits(self) -> bool:
        """Return whether this node trains no further round before others are there."""
        return self._state.facts.alone == WAIT and self.lonely

    def comes(self, round: int) -> bool:
        """Return whether a node is to come back in a round and has not been there yet: it is worth waiting for.

        Its neighbors wait until it has joined, the others until it is a member: of its round they hear late.
        """
        facts, known, seen = self._state.facts, self._known(), self._state.seen
        if facts.there is None or round < 2:
            return False
        back = facts.there(round) - facts.there(round - 1) - {facts.node}
        if not back <= seen.keys():
            return True
        joins = [node for node in back if max(seen[node].round, known[node]) < round - 1]
        if not joins:
            return False
        members = tuple(sorted({facts.node, *seen}))
        if self._near[0] != members:
            self._near = members, frozenset(facts.plan(members).neighbors)
        return not self._near[1].isdisjoint(joins)

    @property
    def standing(self) -> str:
        """Return how many are there, for a person."""
        return f"{self._present()} are there, and {len(self.expected)} should be"

    def look(self) -> None:
        """See whether a majority is there: the members have changed, or a round is over."""
        self._split = self._split or 2 * self._present() <= len(self.expected)

    def _present(self) -> int:
        """Members there whom nobody suspects, expected or not: who suspects most of them is rather cut off itself."""
        return 1 + sum(not seen.suspect for seen in self._state.seen.values())

    def _known(self) -> dict[int, int]:
        """Return the round of each of the others who are there, the latest that it has told this node itself."""
        state, known = self._state, dict[int, int]()
        for node, seen in state.seen.items():
            other, own = state.neighbors.get(node), seen.round if seen.own is None else seen.own
            known[node] = max(own, other.round) if other and other.life == seen.life else own
        return known

    # --- where they are

    @property
    def home(self) -> int | None:
        """Return the round to go back to: of the majority that this node has found again, and has run ahead of.

        By more than neighbors may be apart in any case: who is ahead by less is waited for in its next exchanges.
        """
        state = self._state
        if not self._split:
            return None
        expected = len(self.expected)
        if 2 * self._present() <= expected:
            return None
        majority = reached([state.round, *self._known().values()], expected)
        return majority if 0 < majority < state.round - KEPT else None

    def settled(self) -> None:
        """The majority is there, and it is known where; what is to be done about it is done."""
        known, expected = [self._state.round, *self._known().values()], len(self.expected)
        self._split = self._split and not (2 * self._present() > expected and reached(known, expected))

    def limit(self) -> int:
        """Return the last round that this node may take over from neighbors."""
        state = self._state
        majority = reached([state.round, *self._known().values()], len(self.expected))
        return max(majority, state.round + 1 + int(self._credit))

    # --- what this node has missed

    def begins(self) -> None:
        """A round begins."""
        state = self._state
        if self._began is not None:
            self._took.append(state.now - self._began)
        self._began, self._still = state.now, 0.0
        self.alone += self.lonely
        self._since += 1
        if self._since > KEPT:  # by now it would have heard of what it has missed
            self._credit = 0.0

    def stood_still(self, seconds: float) -> None:
        """This node has computed, or not been awake, for so long: meanwhile the others could go on without it."""
        self._still += seconds

    def joined(self) -> None:
        """It comes to others, as a joiner or as a new life: they have gone on while it was under way to them."""
        self._missed(float(KEPT))

    def ends(self) -> None:
        """The round is over: count what this node has missed, compared with how long its rounds take."""
        usual = statistics.median(self._took) if self._took else self._state.facts.timing.deadline_min
        self._missed(self._still / max(usual, 1e-3) - 1)

    def skips(self, rounds: int) -> None:
        """So many rounds are skipped."""
        self._credit = max(0.0, self._credit - rounds)

    def _missed(self, rounds: float) -> None:
        if rounds >= 1:
            self._credit, self._since = self._credit + rounds, 0
