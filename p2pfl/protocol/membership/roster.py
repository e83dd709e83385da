"""The table of a member, with the suspicions it holds and what it still has to tell.

No letter ends a life. What would end one that is held as there (a death, a leave, a greater life) is a claim: the life
is asked, and what it answers counts; the claim is believed when no answer comes. So a true death is believed as soon as
its pings have had no answer, wherever it is told, and a forged one costs these pings.

An accusation of this node itself counts once the accuser has repeated it in answer to a question: it holds this life
for over, and no word of this life changes that. So the way on is a greater life: three at once, then one each
`reborn_every` seconds. Meanwhile this node goes on as it is with all who have not believed it. Where the two can't
reach one another, a third that reaches both asks the accuser and passes its word on: see `disputed`.

A life is bounded twice. Hearsay of a life of LIFE_CAP or more is not believed, since no clock explains it; this node
takes up any life that is at most LIFE_LEAP above its own, which is more than LIFE_CAP: whatever others can be made to
believe of it, it outdoes in one step.

Where there are keys all entries that come here are signed by their members (see `statement`), and each is held with the
statement that it came with.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from p2pfl.protocol.budget import Budget
from p2pfl.protocol.membership import spread
from p2pfl.protocol.membership.events import Accused, Conflict, Effect, MemberDrop, Superseded
from p2pfl.protocol.membership.inquiry import Inquiry
from p2pfl.protocol.membership.probe import Health
from p2pfl.protocol.membership.statement import Signatures
from p2pfl.protocol.membership.suspicion import Suspicion
from p2pfl.protocol.membership.table import ALIVE, DEAD, LEFT, NOBODY, SUSPECT, Me, Member, MemberEntry, join, rank
from p2pfl.protocol.membership.timing import ProbeTiming
from p2pfl.protocol.membership.wire import DIALS, ENTRY_CAP, REFUTES_CAP

LIFE_CAP = 1 << 42
"""Lives told by others than their owner are below this: milliseconds since 1970, up to the year 2109."""

LIFE_LEAP = 1 << 43
"""An accusation of a life that is further above this node's own is dropped."""

REFUTES_LEAP = 1 << 20
"""Refutes told by others than their owner are less than this above those that are held."""

LIVES = 3
"""Lives of one node that may begin at once, see `reborn_every` of the timing."""

LAST_LIFE = (1 << 63) - 1
"""The life in which a member that is revoked has left: there is none after it, and it is the same in all epochs."""

SAID_CAP = 1 << 52
"""Words of a member are counted below this: more is no count, and nobody goes on from there."""

_BLAME_EVERY = 4
"""Periods of probing from one suspicion that counts against this node's own health to the next."""

_VOUCHED = 64
"""Periods of probing for which others may answer for a member of which nothing new has come."""

_TOLD = 1024
"""Things the owner has been told once that are remembered."""


class Source(NamedTuple):
    """The sender of a letter. `answer`: the letter answers a question that this node has asked it."""

    node: int
    answer: bool = False


class Word(NamedTuple):
    """What a member has said itself, and when."""

    life: int
    round: int
    at: float


class Roster:
    """Everybody known, this node too. `changed` and `moved` are set by what its owner must tell, and cleared by it."""

    def __init__(self, me: Me, timing: ProbeTiming, signatures: Signatures) -> None:
        self.me, self._timing, self._signatures = me, timing, signatures
        first = signatures.signed(MemberEntry(me.node, me.life, 0, ALIVE, me.address, 0, 0, 0.0, NOBODY))
        self.entries = {me.node: first}
        self.revoked: dict[int, Member] = {}  # those that are members no more, as the owner is told of them
        self.live: dict[int, None] = {}  # others whose life is not over, in the order they were met
        self.suspicions: dict[int, Suspicion] = {}
        self.told: dict[int, Word] = {}  # what members have last said themselves of their rounds
        self.silent: set[int] = set()  # suspects that this node has asked itself, without an answer
        self.inquiries: dict[int, Inquiry] = {}  # by the member that is asked; this node's own: is there another of it?
        self.accusers: dict[int, None] = {}  # members to be asked whether they hold this node for dead
        self.doubted: dict[int, int] = {}  # members to be asked whether they hold that one for gone, which answers here
        self.disputed: dict[int, MemberEntry] = {}  # what they then say of it: it should know
        self.to_tell: list[int] = []  # ... of whom it does not know yet
        self.spread = spread.Spread()
        self.changed = True  # a life, a state, an address or a pause
        self.moved = False  # a round
        self.health = Health()
        self.effects: list[Effect] = []
        self.met: list[int] = []  # members that have come to live, since the owner last looked
        self.heard: dict[int, float] = {}  # when a member itself was last heard
        self.last_heard = 0.0  # ... anybody
        self._new: dict[int, float] = {}  # when a statement of a member last came that was not known
        self._answered: dict[int, float] = {}  # when a member last answered a question
        self._learnt: dict[int, float] = {}  # when an end of a life was learnt here
        self._once_said: dict[tuple[type[Effect], int, int], None] = {}  # (kind, node, life) of what its owner was told
        self._rebirths = Budget(1 / timing.reborn_every, LIVES, 0.0)
        self._returns: dict[int, Budget] = {}  # of nodes that are not there: lives learnt by hearsay
        self._blamed = -math.inf

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

    def pause(self, until: float, now: float) -> None:
        """This node will pause until then; 0: its pause is over. Its length is signed, in another statement."""
        mine = self.mine
        changes: dict[str, object] = {"said": mine.said + 1, "at": until}
        if until and self._signatures.there:
            changes |= {"refutes": mine.refutes + 1, "pause": _milliseconds(until - now)}
        self.say(**changes)

    def progress(self, round: int) -> None:
        """This node is in that round; it rides on what is said anyway."""
        mine = self.mine
        self.entries[mine.node] = mine._replace(said=mine.said + 1, round=round)
        self.moved = True

    # --- what is heard

    def learn(self, entry: MemberEntry, now: float, source: Source, direct: bool) -> MemberEntry | None:
        """Take an account of a member in. What its sender should hear of it in turn, if anything.

        `direct`: it is the sender's account of itself.
        """
        if entry.node == self.me.node:
            return self._of_me(entry, now, source, direct)
        if direct:
            self._hears(now)
        held, sure = self.entries.get(entry.node), direct and source.answer
        if not self._explained(held, entry, source, sure):
            return None
        if held is None:
            self._of_stranger(entry, now, direct)
            return None
        if sure:
            self._answers(held, entry, now)
        before, after = rank(held), rank(entry)
        if after > before and not sure and self._must_be_asked(held, entry, now, source):
            return None
        answer = self.disputed.get(entry.node) if direct else None
        if after > before:
            self._newer(held, entry, now)
        elif after < before:
            over = held.life > entry.life or (held.terminal and not entry.terminal)
            answer = held if direct or over else None
            if direct and entry.life < held.life and entry.address != held.address and not entry.terminal:
                self._once(held, Conflict(held.node, held.address))
        elif entry.state == SUSPECT and entry.node in self.suspicions and self.suspicions[entry.node].confirm(entry.by):
            self.spread.put(held._replace(by=entry.by))
        if after >= before or held.life == entry.life:
            self._said(self.entries[entry.node], entry, now)
        if direct and entry.life == self.entries[entry.node].life:
            self._itself(entry, now)
        return answer

    def _itself(self, entry: MemberEntry, now: float) -> None:
        """Note the round that a member itself says it is in."""
        self.heard[entry.node] = now
        before, self.told[entry.node] = self.told.get(entry.node), Word(entry.life, entry.round, now)
        self.moved = self.moved or before is None or before[:2] != (entry.life, entry.round)

    def _hears(self, now: float) -> None:
        if now - self.last_heard > 2 * self._timing.interval * self.health.stretch:
            for suspicion in self.suspicions.values():
                suspicion.again(now)
        self.last_heard = now

    def _explained(self, held: MemberEntry | None, entry: MemberEntry, source: Source, sure: bool) -> bool:
        """Return whether this can be so. Who is asked itself may say more than others may say of it."""
        life = held.life if held is not None else 0
        if entry.life > life and entry.life >= LIFE_CAP * (2 if source.answer else 1) and not sure:
            self._drop("life", f"node {entry.node} in life {entry.life}: no clock explains it")
            return False
        both = held is not None and held.life == entry.life and not held.terminal and not entry.terminal
        if both and held is not None and entry.refutes - held.refutes >= REFUTES_LEAP and not sure:
            self._drop("refutes", f"node {entry.node} has refuted {entry.refutes} times; {held.refutes} are known")
            return False
        return True

    def _of_stranger(self, entry: MemberEntry, now: float, direct: bool) -> None:
        if entry.terminal and now - entry.at >= self._timing.forget_after:
            return
        if len(self.entries) >= ENTRY_CAP:
            self._drop("full", f"node {entry.node}: {ENTRY_CAP} members are known")
            return
        if direct:
            self._itself(entry, now)
        self._hold(self._capped(entry, now), now)

    def _newer(self, held: MemberEntry, entry: MemberEntry, now: float) -> None:
        lately = held.state == ALIVE and now - self.heard.get(held.node, -math.inf) < 2 * self._timing.interval
        if lately and entry.life > held.life and entry.address != held.address and not entry.terminal:
            self._once(entry, Conflict(entry.node, entry.address))
        best = join(held, entry)
        if best.life > held.life:
            best = self._capped(best, now)
        elif not self._signatures.there:
            best = best._replace(address=held.address)  # a life stays where it is
        if best.life == held.life and not best.terminal:
            # what it said of its round and of its pauses is taken by `_said`; a pause of another statement with it
            another = self._signatures.there and best.refutes > held.refutes
            at = self._capped(entry, now).at if another else held.at
            best = best._replace(said=held.said, round=held.round, at=at)
        self._hold(best, now)

    def _said(self, held: MemberEntry, entry: MemberEntry, now: float) -> None:
        """Note what a member last said of its round and pauses; of what was said at once the first account counts."""
        if _counted(entry.said) <= _counted(held.said) or held.terminal or entry.terminal:
            return
        at = self._capped(entry, now).at
        if self._signatures.there:  # a pause is signed, and whoever tells of it again does not make it longer
            at = min(held.at, at) if entry.refutes == held.refutes else held.at
        new = held._replace(said=entry.said, round=entry.round, at=at)
        if new.at or held.at:
            self._hold(new, now)  # a pause is news, a round is not
        else:
            self.entries[new.node] = new
            self.moved = True

    def _capped(self, entry: MemberEntry, now: float) -> MemberEntry:
        if entry.terminal or not entry.at:
            return entry
        longest = self._timing.busy_cap
        if self._signatures.there:
            longest = min(longest, entry.pause / 1000)
        return entry._replace(at=min(entry.at, now + longest) if longest else 0.0)

    # --- claims about others

    def _must_be_asked(self, held: MemberEntry, entry: MemberEntry, now: float, source: Source) -> bool:
        """Return whether this account, which is newer than the held one, is not believed before the member is asked."""
        node = held.node
        if held.terminal:
            if entry.life == held.life or self._returns_of(node).take(now):
                return False
            if entry.terminal:
                self._drop("lives", f"node {node} is said to have had {LIVES} more lives, and another one")
                return True
        elif (entry.life == held.life and not entry.terminal) or node in self.silent:
            return False
        elif (
            entry.life == held.life
            and entry.state == DEAD
            and source.node != node  # who says so of itself may have died since
            and self._answered_lately(node, now)
        ):
            self._deny(entry, *source)
            return True
        self._inquire(node, now).add(entry, *source)
        return True

    def _returns_of(self, node: int) -> Budget:
        return self._returns.setdefault(node, Budget(1 / self._timing.reborn_every, LIVES, 0.0))

    def _answered_lately(self, node: int, now: float) -> bool:
        return now - self._answered.get(node, -math.inf) < self._timing.interval

    def _inquire(self, node: int, now: float) -> Inquiry:
        if node not in self.inquiries:
            self.inquiries[node] = Inquiry(now, self._timing.interval * self.health.stretch)
        return self.inquiries[node]

    def _answers(self, held: MemberEntry, entry: MemberEntry, now: float) -> None:
        """A member that was asked says this of itself: is a claim about it answered?"""
        node = held.node
        self._answered[node] = now
        if node in self.silent:
            self.silent.discard(node)
            self.changed = True
        inquiry = self.inquiries.get(node)
        if inquiry is None:
            return
        claim, inquiry.alive = inquiry.claim, entry.life == held.life and not entry.terminal
        elsewhere = claim is not None and not claim.terminal and claim.address != held.address
        if inquiry.alive and elsewhere:  # a greater life at another place is still to answer
            return
        del self.inquiries[node]
        if inquiry.alive and claim is not None:
            self._deny(claim, inquiry.source, inquiry.answer)

    def conclude(self, node: int, now: float) -> None:
        """End an inquiry whose window is over."""
        inquiry = self.inquiries.pop(node)
        claim, held = inquiry.claim, self.entries[node]
        if claim is None:
            if held.state == SUSPECT:
                self.silent.add(node)
                self.changed = True
        elif node == self.me.node:
            self._nobody_else(inquiry, claim, now)
        elif inquiry.alive or held.terminal:
            self._deny(claim, inquiry.source, inquiry.answer)
        elif rank(claim) > rank(held):
            self._newer(held, claim, now)

    def _deny(self, claim: MemberEntry, source: int, answer: bool) -> None:
        """Do not believe a claim. Should whoever has told it hold to it, the member that it is about must know."""
        if not answer:
            self.doubted[source] = claim.node
        elif claim.node in self.live and self.disputed.get(claim.node) != claim:
            self.disputed[claim.node] = claim
            self.to_tell.append(claim.node)
        by = f" by node {claim.by}" if claim.by != NOBODY else ""
        self._drop("denied", f"node {claim.node} is called {claim.state}{by}, in life {claim.life}; it says otherwise")

    def _drop(self, reason: str, detail: str) -> None:
        self.effects.append(MemberDrop(reason, detail))

    # --- what is said of this node

    def _of_me(self, entry: MemberEntry, now: float, source: Source, direct: bool) -> MemberEntry | None:
        mine = self.mine
        if entry.life == mine.life:
            mine = self._said_before(mine, entry)
        if entry.life < mine.life:
            return mine if direct else None
        if mine.terminal:
            return None
        if entry.life > mine.life or entry.terminal:
            self._against_me(entry, now, source, direct)
            return None
        if entry.address != mine.address:
            self._once(entry, Conflict(mine.node, entry.address))  # two processes that began within a millisecond
            return None
        if rank(entry) > rank(mine):  # suspected; or said to have refuted what it has not
            self._refute(entry, now, source)
        return None

    def _refute(self, entry: MemberEntry, now: float, source: Source) -> None:
        if entry.refutes - self.mine.refutes >= REFUTES_LEAP and not source.answer:
            self._drop("refutes", f"this node is said to have refuted {entry.refutes} times")
        elif entry.refutes + 1 >= REFUTES_CAP:
            self._accuse(entry, now)
        else:
            if now - self._blamed >= _BLAME_EVERY * self._timing.interval * self.health.stretch:
                self._blamed = now
                self.health.add(1)
            self._state_again(entry.refutes + 1, now)

    def _state_again(self, refutes: int, now: float) -> None:
        left = _milliseconds(self.mine.at - now) if self._signatures.there else 0
        self._hold(self.mine._replace(refutes=refutes, pause=left))

    def renew(self, now: float) -> None:
        """Give the others, with keys, a new word of a node that not all reach: see `has_spoken`."""
        mine = self.mine
        if self._signatures.there and not mine.terminal and mine.address.startswith(DIALS):
            self._state_again(mine.refutes + 1, now)

    def _against_me(self, entry: MemberEntry, now: float, source: Source, direct: bool) -> None:
        """This life is said to be over. The accuser is asked, and of a greater life elsewhere that life itself."""
        mine, node = self.mine, self.me.node
        if entry.life - mine.life > LIFE_LEAP:
            self._drop("life", f"this node in life {entry.life}, by node {source.node}: no clock explains it")
        elif entry.life > mine.life and not entry.terminal and entry.address != mine.address:
            if direct and source.answer:
                self._once(entry, Superseded(entry.life, entry.address))
                return
            self._inquire(node, now).add(entry, *source)
        elif source.answer:
            self._accuse(entry, now)
        else:
            self.accusers[source.node] = None

    def _nobody_else(self, inquiry: Inquiry, claim: MemberEntry, now: float) -> None:
        """There is no other process of this node where it was said to be: who says so holds this life for over."""
        if inquiry.answer:
            self._accuse(claim, now)
        elif inquiry.source != self.me.node:
            self.accusers[inquiry.source] = None

    def _accuse(self, entry: MemberEntry, now: float) -> None:
        """Tell the owner that it must go on as a greater life, if it has not had too many lately."""
        if (Accused, entry.node, entry.life) in self._once_said or entry.life < self.mine.life:
            return
        if not self._rebirths.take(now):
            self._drop("lives", f"node {entry.by} has this node for {entry.state}; it has had {LIVES} new lives lately")
            return
        self._once(entry, Accused(entry.life, entry.by))

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
        self.changed = self.changed or node not in self.silent
        self.silent.add(node)
        if node in self.inquiries and self.inquiries[node].claim is None:
            del self.inquiries[node]  # it has been asked
        if held.state == ALIVE:
            self._hold(held._replace(state=SUSPECT, by=self.me.node), now)
        elif held.state == SUSPECT and self.suspicions[node].confirm(self.me.node):
            self.spread.put(held._replace(by=self.me.node))

    def has_spoken(self, node: int, now: float) -> bool:
        """Return whether others may still answer for a member that this node does not reach.

        With keys, for a while after its own last word: then it is suspect, and refutes that by a new statement, which
        nobody can make up. So who answers for one that is dead does not hide that for long.
        """
        last = max(self.heard.get(node, -math.inf), self._new.get(node, -math.inf))
        return not self._signatures.there or now - last < _VOUCHED * self._timing.interval

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
        """This node goes on as a greater life; another one changes nothing."""
        if life <= self.mine.life:
            self._drop("life", f"this node can't go on as life {life}: it is in life {self.mine.life}")
            return
        self.inquiries.pop(self.me.node, None)
        self.me = self.me._replace(life=life)
        self._hold(self.mine._replace(life=life, refutes=0, state=ALIVE, by=NOBODY, at=0.0, pause=0))

    def admit(self, nodes: int) -> None:
        """There can be so many nodes now."""
        self.me = self.me._replace(nodes=max(self.me.nodes, nodes))

    def forget(self, now: float) -> None:
        """Forget those whose life ended long ago."""
        for entry in list(self.entries.values()):
            if entry.terminal and entry.node != self.me.node and now - entry.at >= self._timing.forget_after:
                del self.entries[entry.node]
                self._learnt.pop(entry.node, None)
                for known in (self.heard, self._new, self._answered, self.inquiries, self.disputed):
                    known.pop(entry.node, None)
                self.changed = True

    def expel(self, node: int) -> None:
        """A member is none any more, in no life: the owner hears that it has left in the last that there can be."""
        held = self.entries.pop(node, None)
        for known in (
            self.live, self.suspicions, self.told, self.inquiries, self.accusers, self.doubted, self.disputed,
            self.heard, self._new, self._answered, self._learnt, self._returns,
        ):  # fmt: skip
            known.pop(node, None)
        self.silent.discard(node)
        self.spread.drop(node)
        self.to_tell = [each for each in self.to_tell if each != node]
        self.doubted = {source: about for source, about in self.doubted.items() if about != node}
        for entry in [entry for entry in self.entries.values() if entry.by == node]:
            self.entries[entry.node] = entry._replace(by=NOBODY)  # which others would not hear
            if entry.node in self.spread:
                self.spread.put(self.entries[entry.node])
        # what it claims of others is of no weight any more
        claims = {about: inquiry.claim for about, inquiry in self.inquiries.items()}
        for about in [about for about, claim in claims.items() if claim is not None and claim.by == node]:
            del self.inquiries[about]
        self.disputed = {about: claim for about, claim in self.disputed.items() if claim.by != node}
        address = f"{DIALS}{node}" if held is None else held.address
        self.revoked[node] = Member(node, LAST_LIFE, 0, LEFT, address, 0, 0.0)
        self.changed = True

    def hush(self) -> None:
        """This node says nothing any more: forget what it was about to ask."""
        for pending in (self.inquiries, self.accusers, self.doubted, self.to_tell):
            pending.clear()

    def shift(self, seconds: float) -> None:
        """This node has stalled for so long: that was nobody's silence."""
        for suspicion in self.suspicions.values():
            suspicion.began += seconds
            suspicion.since += seconds
            suspicion.wait += seconds
        for inquiry in self.inquiries.values():
            inquiry.next += seconds
        self.last_heard += seconds

    # --- holding

    def _hold(self, entry: MemberEntry, now: float = 0.0) -> None:
        """Hold and tell a new account of a member; keep what depends on it in step."""
        node, before = entry.node, self.entries.get(entry.node)
        if node == self.me.node:
            entry = self._signatures.signed(entry)
        self.entries[node] = entry
        self.spread.put(entry)
        self.changed = True
        if node == self.me.node:
            return
        if before is None or (before.life, before.refutes) < (entry.life, entry.refutes):
            self._new[node] = now
        if entry.terminal:
            self.live.pop(node, None)
            if before is None or not before.terminal or before.life < entry.life:
                self._learnt[node] = now
        elif node not in self.live:
            self.live[node] = None
            self.met.append(node)
            self._learnt.pop(node, None)
        if entry.terminal or (before is not None and before.life < entry.life):
            self.inquiries.pop(node, None)
            self.disputed.pop(node, None)
        if entry.state != SUSPECT:
            self.suspicions.pop(node, None)
            self.silent.discard(node)
        elif before is None or rank(before) < rank(entry):
            self.suspicions[node] = Suspicion(now, entry.by, self._timing, self.n)
            if node not in self.silent:
                self._inquire(node, now)

    def _once(self, entry: MemberEntry, effect: Effect) -> None:
        """Tell the owner once for each life."""
        key = (type(effect), entry.node, entry.life)
        if key not in self._once_said:
            while len(self._once_said) >= _TOLD:
                del self._once_said[next(iter(self._once_said))]
            self._once_said[key] = None
            self.effects.append(effect)


def _counted(said: int) -> int:
    """Return the count of a word; what no member can have said comes before all that it says."""
    return said if said < SAID_CAP else -1


def _milliseconds(seconds: float) -> int:
    """Return what is signed of a pause, not a part of a millisecond too little."""
    return math.ceil(max(0.0, seconds) * 1000)
