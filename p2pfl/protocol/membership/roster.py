"""The table of a member, with the suspicions it holds and what it still has to tell."""

from __future__ import annotations

import math

from p2pfl.protocol.membership import spread
from p2pfl.protocol.membership.events import Accused, Conflict, Effect, MemberDrop, Superseded
from p2pfl.protocol.membership.probe import Health
from p2pfl.protocol.membership.suspicion import Suspicion
from p2pfl.protocol.membership.table import ALIVE, DEAD, LEFT, NOBODY, SUSPECT, Me, MemberEntry, join, rank
from p2pfl.protocol.membership.timing import ProbeTiming
from p2pfl.protocol.membership.wire import ENTRY_CAP, REFUTES_CAP

SAID_CAP = 1 << 52
"""What a member is told that an earlier process of its life has said is taken up below this; more is no count."""


class Roster:
    """Everybody known, this node too. `changed` and `moved` are set by what its owner must tell, and cleared by it."""

    def __init__(self, me: Me, timing: ProbeTiming) -> None:
        self.me, self._timing = me, timing
        self.entries = {me.node: MemberEntry(me.node, me.life, 0, ALIVE, me.address, 0, 0, 0.0, NOBODY)}
        self.live: dict[int, None] = {}  # others whose life is not over, in the order they were met
        self.suspicions: dict[int, Suspicion] = {}
        self.spread = spread.Spread()
        self.changed = True  # a life, a state, an address or a pause
        self.moved = False  # a round
        self.health = Health()
        self.effects: list[Effect] = []
        self.met: list[int] = []  # members that have come to live, since the owner last looked
        self.heard: dict[int, float] = {}  # when a member itself was last heard
        self.last_heard = 0.0  # ... anybody
        self._learnt: dict[int, float] = {}  # when an end of a life was learnt here
        self._once_said: set[tuple[type[Effect], int, int]] = set()  # (kind, node, life) of what its owner was told

    @property
    def mine(self) -> MemberEntry:
        """Return what this node says of itself."""
        return self.entries[self.me.node]

    @property
    def n(self) -> int:
        """Members whose life is not over, this node too."""
        return len(self.live) + 1

    def recently_dead(self, now: float) -> list[int]:
        """Members whose death this node has learnt not long ago: they may yet be there."""
        since = now - self._timing.gossip_dead
        return [node for node, time in self._learnt.items() if time > since and self.entries[node].state == DEAD]

    def dead(self) -> list[MemberEntry]:
        """Members that are dead and not forgotten."""
        return [entry for entry in self.entries.values() if entry.state == DEAD and entry.node != self.me.node]

    def say(self, **changes: object) -> None:
        """Change what this node says of itself, and tell it."""
        self._hold(self.mine._replace(**changes))  # type: ignore[arg-type]

    def progress(self, round: int) -> None:
        """This node is in that round; it rides on what is said anyway."""
        mine = self.mine
        self.entries[mine.node] = mine._replace(said=mine.said + 1, round=round)
        self.moved = True

    # --- what is heard

    def learn(self, entry: MemberEntry, now: float, direct: bool) -> MemberEntry | None:
        """Take an account of a member in. What its sender should hear of it in turn, if anything.

        `direct`: it is the sender's account of itself.
        """
        if entry.node == self.me.node:
            return self._of_me(entry, direct)
        if direct:
            self._hears(now)
        held = self.entries.get(entry.node)
        if held is None:
            self._of_stranger(entry, now, direct)
            return None
        before, after = rank(held), rank(entry)
        answer = None
        if after > before:
            self._newer(held, entry, now)
        elif after < before:
            over = held.terminal and held.life == entry.life and not entry.terminal
            answer = held if direct or over else None
            if direct and entry.life < held.life and entry.address != held.address and not entry.terminal:
                self._once(held, Conflict(held.node, held.address))
        elif entry.state == SUSPECT and entry.node in self.suspicions and self.suspicions[entry.node].confirm(entry.by):
            self.spread.put(held._replace(by=entry.by))
        if after >= before or held.life == entry.life:
            self._said(self.entries[entry.node], entry, now)
        if direct and entry.life == self.entries[entry.node].life:
            self.heard[entry.node] = now
        return answer

    def _hears(self, now: float) -> None:
        if now - self.last_heard > 2 * self._timing.interval * self.health.stretch:
            for suspicion in self.suspicions.values():
                suspicion.again(now)
        self.last_heard = now

    def _of_stranger(self, entry: MemberEntry, now: float, direct: bool) -> None:
        if entry.terminal and now - entry.at >= self._timing.forget_after:
            return
        if len(self.entries) >= ENTRY_CAP:
            self.effects.append(MemberDrop("full", f"node {entry.node}: {ENTRY_CAP} members are known"))
            return
        if direct:
            self.heard[entry.node] = now
        self._hold(self._capped(entry, now), now)

    def _newer(self, held: MemberEntry, entry: MemberEntry, now: float) -> None:
        lately = held.state == ALIVE and now - self.heard.get(held.node, -math.inf) < 2 * self._timing.interval
        if lately and entry.life > held.life and entry.address != held.address and not entry.terminal:
            self._once(entry, Conflict(entry.node, entry.address))
        best = join(held, entry)
        if best.life > held.life:
            best = self._capped(best, now)
        elif not best.terminal:  # what it said of its round and of its pauses is taken by `_said`
            best = best._replace(said=held.said, round=held.round, at=held.at)
        self._hold(best, now)

    def _said(self, held: MemberEntry, entry: MemberEntry, now: float) -> None:
        """Note what a member last said of its round and pauses; of what was said at once the first account counts."""
        if entry.said <= held.said or held.terminal or entry.terminal:
            return
        entry = self._capped(entry, now)
        new = held._replace(said=entry.said, round=entry.round, at=entry.at)
        if new.at or held.at:
            self._hold(new, now)  # a pause is news, a round is not
        else:
            self.entries[new.node] = new
            self.moved = True

    def _capped(self, entry: MemberEntry, now: float) -> MemberEntry:
        return entry if entry.terminal else entry._replace(at=min(entry.at, now + self._timing.busy_cap))

    def _of_me(self, entry: MemberEntry, direct: bool) -> MemberEntry | None:
        mine = self.mine
        if entry.life == mine.life:
            mine = self._said_before(mine, entry)
        if entry.life < mine.life:
            return mine if direct else None
        ends = entry.state in (DEAD, LEFT)
        if entry.life > mine.life and not ends and entry.address != mine.address:
            self._once(entry, Superseded(entry.life, entry.address))
        elif entry.life > mine.life or (ends and mine.state != LEFT):
            if ends and rank(entry) > rank(mine):
                self._hold(join(mine, entry)._replace(address=mine.address))
            self._once(entry, Accused(entry.life, entry.by))
        elif entry.address != mine.address and not ends:
            self._once(entry, Conflict(mine.node, entry.address))  # two processes that began within a millisecond
        elif not mine.terminal and not ends:
            if entry.refutes + 1 >= REFUTES_CAP:
                self._once(entry, Accused(entry.life, entry.by))
            elif rank(entry) > rank(mine):  # suspected; or said to have refuted what it has not
                self.health.add(1)
                self._hold(mine._replace(refutes=entry.refutes + 1))
        return None

    def _said_before(self, mine: MemberEntry, entry: MemberEntry) -> MemberEntry:
        """What an earlier process of this life has said of its round counts no longer: say it again, as the latest."""
        other = entry.said == mine.said and (entry.round, bool(entry.at)) != (mine.round, bool(mine.at))
        if (entry.said > mine.said or other) and not entry.terminal and entry.said < SAID_CAP:
            mine = self.entries[mine.node] = mine._replace(said=entry.said + 1)
        return mine

    # --- what this node finds out

    def suspect(self, node: int, now: float) -> None:
        """This node's own probe has failed: suspect the member, or confirm that it is suspected."""
        held = self.entries[node]
        if held.state == ALIVE:
            self._hold(held._replace(state=SUSPECT, by=self.me.node), now)
        elif held.state == SUSPECT and self.suspicions[node].confirm(self.me.node):
            self.spread.put(held._replace(by=self.me.node))

    def expire(self, now: float) -> float:
        """Declare those dead that have been suspect for long enough; when the next one may be.

        Not during a pause that the member has announced; nor, for a while, when this node hears nobody at all, though
        several should be there.
        """
        alone = self.n > 2 and now - self.last_heard > 2 * self._timing.interval
        factor = (self.health.stretch + 1) / 2
        for node, suspicion in list(self.suspicions.items()):
            if suspicion.due(factor) > now:
                continue
            held = self.entries[node]
            if held.at > now:
                suspicion.wait = held.at
            elif alone and now < suspicion.began + self._timing.alone:
                suspicion.wait = now + self._timing.interval
            else:
                self._hold(held._replace(state=DEAD, by=self.me.node, at=now), now)
        return min((suspicion.due(factor) for suspicion in self.suspicions.values()), default=math.inf)

    def reborn(self, life: int) -> None:
        """This node goes on as a greater life."""
        if life <= self.mine.life:
            raise ValueError(f"life={life}: greater than {self.mine.life}, the last one")
        self.me = self.me._replace(life=life)
        self._hold(self.mine._replace(life=life, refutes=0, state=ALIVE, by=NOBODY, at=0.0))

    def forget(self, now: float) -> None:
        """Forget those whose life ended long ago."""
        for entry in list(self.entries.values()):
            if entry.terminal and entry.node != self.me.node and now - entry.at >= self._timing.forget_after:
                del self.entries[entry.node]
                self._learnt.pop(entry.node, None)
                self.heard.pop(entry.node, None)
                self.changed = True

    def shift(self, seconds: float) -> None:
        """This node has stalled for so long: that was nobody's silence."""
        for suspicion in self.suspicions.values():
            suspicion.began += seconds
            suspicion.since += seconds
            suspicion.wait += seconds
        self.last_heard += seconds

    # --- holding

    def _hold(self, entry: MemberEntry, now: float = 0.0) -> None:
        """Hold and tell a new account of a member; keep what depends on it in step."""
        node, before = entry.node, self.entries.get(entry.node)
        self.entries[node] = entry
        self.spread.put(entry)
        self.changed = True
        if node == self.me.node:
            return
        if entry.terminal:
            self.live.pop(node, None)
            if before is None or not before.terminal or before.life < entry.life:
                self._learnt[node] = now
        elif node not in self.live:
            self.live[node] = None
            self.met.append(node)
            self._learnt.pop(node, None)
        if entry.state != SUSPECT:
            self.suspicions.pop(node, None)
        elif before is None or rank(before) < rank(entry):
            self.suspicions[node] = Suspicion(now, entry.by, self._timing, self.n)

    def _once(self, entry: MemberEntry, effect: Effect) -> None:
        """Tell the owner once for each life."""
        key = (type(effect), entry.node, entry.life)
        if key not in self._once_said:
            self._once_said.add(key)
            self.effects.append(effect)
