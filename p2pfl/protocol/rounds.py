"""Rounds: where the federation is, how far this node follows its neighbors, and whether it may go on by itself.

No single voice decides. A node takes over a later round only where more than half of those that should be there are
known to have reached it, or as far as its own standing still explains that the others are further on. A node that has
had no more than half of them beside it, and finds more again, goes back to the round that a majority has reached, if it
has run ahead: no training of the others is skipped for that of a few.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

from p2pfl.protocol.neighbor import KEPT, WAIT
from p2pfl.protocol.state import JOINING, STARTING, PeerState

_FASTER = 2.0
"""Times that a machine is faster than this one, at most, for the two nodes of a federation to find each other again in
the same round after one of them stood still. There is no majority to tell where the federation is."""


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
        self._waited = False  # for others, and it has begun no round since
        self._enough: float | None = None  # since when enough are there, for one that has waited
        self._credit = 0.0  # rounds that this node has missed by standing still, and not made up for
        self._since = 0  # rounds that it has begun since it last stood still
        self._began: float | None = None  # the present round
        self._took: deque[float] = deque(maxlen=16)  # seconds of the latest rounds ...
        self._worked: deque[float] = deque(maxlen=16)  # ... and of those in which this node computed
        self._near: tuple[tuple[int, ...], frozenset[int]] = (), frozenset()  # members, and the neighbors among them
        self._still = 0.0  # seconds of the present round in which this node computed or stood still

    # --- who is there

    @property
    def expected(self) -> frozenset[int]:
        """Nodes that should be there now: as planned, but for those that have left in good order."""
        state = self._state
        told = (seen.round for seen in state.seen.values())
        now = max(state.round, state.facts.join_round - 1, *state.over.values(), *told, *self._known().values())
        planned = state.facts.planned(min(now + 1, state.facts.rounds)) - self._as_planned()
        grown = {node for node in (*state.seen, *state.over) if node >= state.facts.nodes}  # once they have been there
        return ((planned | grown) - state.left) | {state.facts.node}

    def _as_planned(self) -> set[int]:
        """Members that have died about when the experiment lets them; what was last heard of their rounds is old."""
        facts, over = self._state.facts, self._state.over
        if facts.there is None:
            return set()
        return {n for n, last in over.items() if any(n not in facts.planned(last + i) for i in range(1, KEPT + 1))}

    @property
    def lonely(self) -> bool:
        """Return whether more than half of the expected members are lost, or answer no ping.

        Where a process hangs its membership goes on for a while.
        """
        hang = [node for node, other in self._state.neighbors.items() if other.suspect]
        return 2 * (self._present() - sum(self._is_there(node) for node in hang)) < len(self.expected)

    def waits(self, already: bool) -> bool:
        """Return whether this node trains no further round before others are there. `already`: so far it does.

        Then it goes on once a majority is known to be in a later round, or all are there and have said where; or else a
        little after enough are there: the others are about to come in, and so is what they say.
        """
        state = self._state
        if state.facts.alone != WAIT or self.lonely:
            self._enough = None
            self._waited = state.facts.alone == WAIT
            return self._waited
        if not already or self.majority > state.round or (self.expected <= {state.facts.node, *self._heard()}):
            return False
        self._enough = state.now if self._enough is None else self._enough
        return state.now - self._enough < 2 * state.facts.timing.silence

    def _heard(self) -> list[int]:
        """Return those who have said themselves where they are."""
        return [node for node, round in self._known().items() if round]

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
        """See whether a majority is there: the members have changed, or a round begins. Before its first, nobody is."""
        started = self._state.stage not in (STARTING, JOINING)
        self._split = self._split or (started and 2 * self._present() <= len(self.expected))

    def _present(self) -> int:
        """Members there whom nobody suspects, expected or not: who suspects most of them is rather cut off itself."""
        return 1 + sum(map(self._is_there, self._state.seen))

    def _is_there(self, node: int) -> bool:
        seen = self._state.seen.get(node)
        return seen is not None and not seen.suspect

    def _known(self, by_now: bool = False) -> dict[int, int]:
        """Return the round of each of the others who are there, the latest that it has told this node itself.

        `by_now`: where it is if it has since gone on as fast as this node.
        """
        state, known, usual = self._state, dict[int, int](), self._usual if by_now else math.inf
        for node, seen in state.seen.items():
            other, own = state.neighbors.get(node), seen.round if seen.own is None else seen.own
            if own and seen.own_at is not None:
                own += int(max(0.0, state.now - seen.own_at) / usual)
            known[node] = max(own, other.round) if other and other.life == seen.life else own
        return known

    @property
    def _usual(self) -> float:
        """Seconds of a round."""
        usual = statistics.median(self._took) if self._took else self._state.facts.timing.deadline_min
        return max(usual, 1e-3)

    # --- where they are

    @property
    def majority(self) -> int:
        """Return the round that more than half of those that should be there are known to have reached, or 0."""
        return reached([self._state.round, *self._known().values()], len(self.expected))

    @property
    def home(self) -> int | None:
        """Return the round to go back to: of the majority that this node has found again, and has run ahead of.

        By more than neighbors may be apart in any case: who is ahead by less is waited for in its next exchanges. Who
        is no neighbour is heard of now and then, so what it has said is too little by now.
        """
        state = self._state
        if not self._split:
            return None
        expected = len(self.expected)
        if 2 * self._present() <= expected:
            return None
        majority = reached([state.round, *self._known(by_now=True).values()], expected)
        return majority if 0 < majority < state.round - KEPT else None

    def settled(self) -> None:
        """What is to be done about it is done, if the majority is there and it is known where."""
        self._waited = False
        self._split = self._split and not (2 * self._present() > len(self.expected) and self.majority)

    @property
    def found(self) -> int:
        """Return the round of the majority that this node has waited for, and goes on with; or 0."""
        return self.majority if self._waited else 0

    def limit(self) -> int:
        """Return the last round that this node may take over from neighbors."""
        return max(self.majority, self._state.round + 1 + int(self._credit))

    # --- what this node has missed

    def begins(self) -> None:
        """A round begins."""
        state = self._state
        if self._began is not None:
            self._took.append(state.now - self._began)
        self._began, self._still = state.now, 0.0
        self.alone += self.lonely
        self.look()
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
        missed = self._still / self._usual - 1
        if missed >= 1 and len(self.expected) == 2 and self._worked:  # the other has gone on, and waits for nobody
            missed = max(missed, _FASTER * self._still / max(statistics.median(self._worked), 1e-3) - 1)
        self._missed(missed)
        self._worked.append(self._still)

    def skips(self, rounds: int) -> None:
        """So many rounds are skipped."""
        self._credit = max(0.0, self._credit - rounds)

    def _missed(self, rounds: float) -> None:
        if rounds >= 1:
            self._credit, self._since = self._credit + rounds, 0
