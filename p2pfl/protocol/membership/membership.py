"""A member of the federation as a pure machine. `handle(event, now)` returns what is to be done.

Nobody is in charge. Each period a member asks one other whether it is there; if neither it nor those asked to ask it
hear an answer, the other is suspect, and dead when it does not refute that in time. Who is said to be dead, to have
left or to be a greater life is asked before that is believed. What is learnt rides on these messages and on gossip.
Tables are told whole to a random member now and then, and to those believed dead as well: a partition of any length
heals. The rules for whose word counts are in `table` and `roster`.

Where there are keys, what a member says of itself is signed by it (`statement`), and every link has authenticated the
member at its other end: a message in another's name is nobody's. A document travels along (`documents`).

Sources: SWIM, DSN 2002; Lifeguard, arXiv 1707.00788.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Container, Iterable, Sequence

from p2pfl.errors import ConfigError, RemoteError
from p2pfl.protocol.membership import spread, wire
from p2pfl.protocol.membership.documents import Documents
from p2pfl.protocol.membership.events import (
    Admit,
    Busy,
    Changed,
    Effect,
    Event,
    Expelled,
    Gone,
    Heard,
    Known,
    MemberAdmitted,
    MemberDied,
    MemberDrop,
    MemberLeave,
    MemberReborn,
    MemberStart,
    MemberTick,
    OwnDocument,
    Progress,
    Say,
    Superseded,
    Told,
    Unwanted,
)
from p2pfl.protocol.membership.inquiry import Inquiry
from p2pfl.protocol.membership.probe import Probe, Relay, RoundRobin, Trips
from p2pfl.protocol.membership.roster import Roster, Source, Word
from p2pfl.protocol.membership.seeds import Seed, Seeds
from p2pfl.protocol.membership.statement import Sign, Signatures, Verify
from p2pfl.protocol.membership.table import DEAD, LEFT, NOBODY, SUSPECT, Me, Member, MemberEntry
from p2pfl.protocol.membership.timing import ProbeTiming, check
from p2pfl.protocol.membership.wire import (
    Ack,
    Ask,
    Datagram,
    DirectPing,
    DocumentCopy,
    Gossip,
    Message,
    Nack,
    Sync,
    Synced,
)

PIGGYBACK = 24
"""Entries that ride on a message at most: some two kilobytes, or four where they are signed."""

_RELAYS = 256
"""Probes made for others at a time."""

_QUESTIONS = 1024
"""Questions whose answers are known as such."""

_FAREWELLS = 24
"""Members that a leaver tells at first, and one that has died at a time: they believe it at once, the others when it no
longer answers."""

_HELLOS = 20
"""Rounds of greeting the seeds after the first has answered; the others are tried on at the pace of the dead."""


class Membership:
    """One member. Time comes only by `now`; `wake` is when a Tick is next due."""

    def __init__(
        self,
        me: Me,
        cluster: str,
        seeds: Sequence[Seed],
        timing: ProbeTiming,
        seed: int,
        sign: Sign | None = None,
        verify: Verify | None = None,
        admitted: Admit = Admit(None),  # noqa: B008
        document: bytes = b"",
    ) -> None:
        """`sign`, `verify`: both where there are keys, else neither. `document`: b"" for none."""
        _check(me, cluster, seeds, admitted, document)
        self._cluster, self._timing = cluster, check(timing)
        self._draw = random.Random(f"{seed}/{me.node}/{me.life}")
        self._signatures = Signatures(cluster, sign, verify)
        self._documents = Documents(document, timing.interval)
        self._roster = Roster(me, timing, self._signatures)
        self._seeds = Seeds(seeds, me.address)
        self._list: frozenset[int] | None = None  # of those that are admitted; None: all below `nodes`
        self._health, self._trips, self._order = self._roster.health, Trips(), RoundRobin(self._draw)
        self._probe: Probe | None = None
        self._relays: dict[int, Relay] = {}
        self._numbers = random.Random(self._draw.getrandbits(40))  # of questions: no other is to foresee them
        self._questions: dict[int, int] = {}  # number -> whom; NOBODY: whoever is at an address
        self._timers: dict[str, float] = {}  # what is due when; nothing before Start
        self._steps: dict[str, Callable[[], None]] = {
            "hello": self._hello,
            "probe": self._next_probe,
            "ask": self._ask,
            "gossip": self._gossip,
            "sync": self._sync,
            "retry": self._retry,
            "farewell": self._farewell,
            "leave": self._gone,
        }
        self._hellos = 0
        self._words: set[int] = set()  # numbers of the letters that say that this life is over,
        self._receipts: set[int] = set()  # members that have answered one of them ...
        self._sure: set[int] = set()  # ... and that have asked, and were told
        self._answered: dict[int, float] = {}  # when a node was last told what it said wrong
        self._checked: dict[int, float] = {}  # when a node was last asked whether it holds to what it has said
        self._last_gossip = self._last_changed = -math.inf
        self._quiet = False  # superseded, or gone
        self._parting = False  # has begun to say that it leaves
        self._out: list[Effect] = []
        self._now = 0.0
        self.wake = math.inf
        self._admit(admitted)

    @property
    def members(self) -> tuple[Member, ...]:
        """Everybody known, this node too, and who is revoked, ascending node."""
        silent = self._roster.silent
        members = (entry.member for entry in self._roster.entries.values())
        known = (
            member._replace(silent=member.node in silent, own=told.round, own_at=told.at)
            for member, told in ((member, self._told(member)) for member in members)
        )
        return tuple(sorted([*known, *self._roster.revoked.values()], key=lambda member: member.node))

    def _told(self, member: Member) -> Word:
        """Return what this life of a member has said itself."""
        if member.node == self._roster.me.node:
            return Word(member.life, member.round, 0.0)
        told = self._roster.told.get(member.node)
        return told if told is not None and told.life == member.life else Word(member.life, 0, 0.0)

    @property
    def document(self) -> bytes:
        """Return the document of this node; b"" for none."""
        return self._documents.data

    @property
    def score(self) -> int:
        """Return how ill this node finds itself: 0 to 7."""
        return self._health.score

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take an event in; what is to be done, in order."""
        self._now, self._out = now, []
        if self._quiet and not isinstance(event, MemberReborn):
            return []
        self._catch_up()
        match event:
            case MemberStart():
                self._start()
            case Heard(data, by):
                self._hear(data, by)
            case Known(entries):
                self._recall(entries)
            case Admit():
                self._admit(event)
            case OwnDocument() | Unwanted():
                self._document(event)
            case Busy(seconds):
                self._busy(seconds)
            case Progress(round):
                self._roster.progress(round)
            case MemberReborn(life):
                self._roster.reborn(life)
                if self._quiet and self._roster.mine.life == life and self._roster.me.node in self._admitted:
                    self._quiet = False
                    self._start()
                self._soon("gossip")
            case MemberAdmitted(nodes):
                self._roster.admit(nodes)
                self._soon("sync")  # others may have told this node of them before, and do so once
            case MemberLeave():
                self._part(LEFT, self._timing.leave)
            case MemberDied():
                if self._roster.mine.state != LEFT:
                    self._part(DEAD, self._timing.interval)
            case MemberTick():
                pass
        self._settle()
        self._run()
        self._report()
        return self._out

    def _busy(self, seconds: float) -> None:
        mine = self._roster.mine
        until = self._now + min(seconds, self._timing.busy_cap) if seconds > 0 else 0.0
        if not mine.terminal and (until or mine.at):
            self._roster.pause(until, self._now)
            self._soon("gossip")  # before the pause begins

    # --- time

    def _soon(self, name: str) -> None:
        if self._timers:
            self._timers[name] = self._now

    def _start(self) -> None:
        period = self._timing.interval
        self._timers = {
            "hello": self._now,
            "probe": self._now + period * self._draw.random(),
            "sync": self._now + period * self._draw.uniform(1, 4),  # soon: at a start much is said at once
            "retry": self._now + self._timing.retry_dead * self._draw.random(),
        }
        self._roster.last_heard = self._now
        self._roster.spread.put(self._roster.mine)

    def _catch_up(self) -> None:
        """Called too late: what this node did not hear or do meanwhile counts against nobody."""
        late = self._now - self.wake
        if late <= self._timing.late:
            return
        self._timers = {name: due + late for name, due in self._timers.items()}
        self._relays = {seq: relay._replace(due=relay.due + late) for seq, relay in self._relays.items()}
        if self._probe is not None:
            self._probe.began += late
        self._roster.shift(late)

    def _run(self) -> None:
        """Do what is due."""
        due = [name for name, time in self._timers.items() if time <= self._now]
        for name in sorted(due, key=[*self._steps].index):
            if not self._quiet:
                self._timers[name] = math.inf
                self._steps[name]()
                self._settle()
        for node in [node for node, inquiry in self._roster.inquiries.items() if inquiry.next <= self._now]:
            self._inquire(node, self._roster.inquiries[node])
            self._settle()
        for seq in [seq for seq, relay in self._relays.items() if relay.due <= self._now]:
            relay = self._relays.pop(seq)
            self._say(relay.asker, relay.address, Nack(), relay.seq)
        expiry = self._roster.expire(self._now) if self._timers else math.inf
        self._settle()
        relays = (relay.due for relay in self._relays.values())
        inquiries = (inquiry.next for inquiry in self._roster.inquiries.values())
        self.wake = math.inf if self._quiet else min([expiry, *self._timers.values(), *relays, *inquiries])

    def _settle(self) -> None:
        """Carry over what the roster has found."""
        for node in self._roster.met:
            self._order.add(node)
        self._roster.met.clear()
        for effect in self._roster.effects:
            self._out.append(effect)
            if isinstance(effect, Superseded):
                self._silence()
        self._roster.effects.clear()
        if len(self._roster.spread) and self._timers and (self._roster.live or self._roster.recently_dead(self._now)):
            due = max(self._now, self._last_gossip + self._timing.gossip_every)
            self._timers["gossip"] = min(self._timers.get("gossip", math.inf), due)

    def _report(self) -> None:
        if self._roster.changed or (self._roster.moved and self._now - self._last_changed >= self._timing.interval):
            self._roster.changed = self._roster.moved = False
            self._last_changed = self._now
            self._out.append(Changed(self.members))

    def _silence(self) -> None:
        self._quiet = True
        self._timers.clear()
        self._relays.clear()
        self._roster.hush()
        self._probe = None

    # --- messages

    def _say(
        self,
        to: int | None,
        address: str,
        message: Message,
        seq: int,
        first: Iterable[MemberEntry] = (),
        news: bool = True,
    ) -> None:
        """Send a message, with news on it: `first`, then what is to be spread. `to`: None for whoever is there."""
        entries = list(first)
        if news and not isinstance(message, Sync | Synced):
            most = spread.limit(self._timing.retransmit, self._roster.n)
            rest, there = self._roster.spread.take(most, PIGGYBACK - len(entries)), {e.node for e in entries}
            entries += [entry for entry in rest if entry.node not in there]
        datagram = Datagram(self._cluster, seq, self._roster.mine, entries, message, self._documents.digest)
        self._out.append(Say(address, wire.encode(datagram, self._now), to))

    def _tell(
        self, entry: MemberEntry, message: Message, seq: int, first: Iterable[MemberEntry] = (), news: bool = True
    ) -> None:
        """Send a message to a member, where it is held to be or says that it is."""
        self._say(entry.node, entry.address, message, seq, first, news)

    def _question(self, whom: int) -> int:
        """Return the number of a new question; `whom`: NOBODY for whoever is at an address."""
        while len(self._questions) >= _QUESTIONS:
            del self._questions[next(iter(self._questions))]
        seq = self._numbers.getrandbits(52)
        self._questions[seq] = whom
        return seq

    def _table(self) -> list[MemberEntry]:
        return [entry for node, entry in self._roster.entries.items() if node != self._roster.me.node]

    def _hear(self, data: bytes, by: int | None) -> None:
        try:
            datagram = wire.decode(data, self._cluster, self._now)
        except RemoteError as error:
            self._drop(error.reason, error.detail)
            return
        if not self._authentic(datagram.sender, by):
            return
        sender, me = datagram.sender, self._roster.me
        if (sender.node, sender.life, sender.address) == (me.node, me.life, me.address):
            self._seeds.myself(datagram.seq)
            if self._questions.get(datagram.seq) != NOBODY:  # not one to an address that turns out to be its own
                self._drop("reflected", "this node's own message has come back")
            return
        asked = self._questions.get(datagram.seq) in (sender.node, NOBODY)
        source = Source(sender.node, asked and isinstance(datagram.message, Ack | Synced))
        told = [self._answered_for(entry, sender.node) for entry in datagram.entries]
        entries = [entry for entry in told if self._belongs(entry)]
        belongs = self._belongs(sender)
        if not belongs or len(entries) < len(told):
            self._stranger(sender, told)
        if self._signatures.there and not (belongs and self._signed([sender], sender.node)):
            return
        entries = self._signed(entries, sender.node)
        answers = [self._roster.learn(sender, self._now, source, direct=True)] if belongs else []
        answers += [self._roster.learn(entry, self._now, source, direct=False) for entry in entries]
        self._settle()
        if not self._quiet and belongs:
            self._follow_up()
            self._answer(datagram, [entry for entry in answers if entry is not None])
            self._compare(sender, datagram)

    def _authentic(self, sender: MemberEntry, by: int | None) -> bool:
        """Return whether the sender of a message is who the link says it is; with keys, every link says so."""
        if by == sender.node or (by is None and not self._signatures.there):
            return True
        link = "a link that has authenticated nobody" if by is None else f"the link of node {by}"
        self._drop("sender", f"node {sender.node} speaks through {link}")
        return False

    def _signed(self, entries: list[MemberEntry], by: int) -> list[MemberEntry]:
        """Return those entries that their members have signed: all where there are no keys."""
        if not self._signatures.there:
            return entries
        wrong = {entry: reason for entry in entries if (reason := self._signatures.wrong(entry, by, self._now))}
        for reason in dict.fromkeys(wrong.values()):
            nodes = sorted({entry.node for entry, why in wrong.items() if why == reason})
            more = f" and {len(nodes) - 1} others" if len(nodes) > 1 else ""
            what = "no signature of its own" if reason == "signature" else "more new signatures than are checked"
            self._drop(reason, f"node {nodes[0]}{more}, by node {by}: {what}", blame=reason == "signature")
        return [entry for entry in entries if entry not in wrong]

    def _drop(self, reason: str, detail: str, blame: bool = True) -> None:
        self._out.append(MemberDrop(reason, detail, blame))

    def _belongs(self, entry: MemberEntry) -> bool:
        """Return whether an account names nobody from outside the federation."""
        return entry.node in self._admitted and (entry.by == NOBODY or entry.by in self._admitted)

    def _answered_for(self, entry: MemberEntry, by: int) -> MemberEntry:
        """Return an account whose accuser is one that counts here.

        Who is admitted is not known to all at the same time: a member that is suspect must be able to refute that, and
        so whoever passes on a suspicion of one that is revoked here suspects in its place. Of a death that is no use.
        """
        strange = self._list is not None and entry.state == SUSPECT and entry.by not in self._admitted
        return entry._replace(by=by) if strange else entry

    @property
    def _admitted(self) -> Container[int]:
        """Who may be a member."""
        return range(self._roster.me.nodes) if self._list is None else self._list

    def _stranger(self, sender: MemberEntry, entries: list[MemberEntry]) -> None:
        named = {id for entry in (sender, *entries) for id in (entry.node, entry.by)} - {NOBODY}
        outside = sorted(node for node in named if node not in self._admitted)
        more = f" and {len(outside) - 1} others" if len(outside) > 1 else ""
        text = f"node {outside[0]}{more}, by node {sender.node}"
        if self._list is None:
            self._drop("stranger", f"{text}: there are nodes 0 to {self._roster.me.nodes - 1}")
        else:  # a member that has not yet heard who is revoked is not to blame
            self._drop("stranger", f"{text}: not admitted to the federation", blame=not self._belongs(sender))

    # --- who may be a member

    def _admit(self, admitted: Admit) -> None:
        """Take in who may be a member, and forget who may not any more."""
        roster, me = self._roster, self._roster.me
        nodes, never = admitted.nodes, admitted.revoked | roster.revoked.keys()
        self._list = None if nodes is None else nodes - never
        if me.node not in self._admitted:
            self._out.append(Expelled())
            self._silence()
            return
        for node in sorted({*roster.entries, *admitted.revoked} - roster.revoked.keys()):
            if node not in self._admitted:
                if node in roster.live and self._documents.data:  # a last word: it may not have heard of it
                    self._tell(roster.entries[node], DocumentCopy(self._documents.data), 0, news=False)
                self._expel(node)
        self._seeds.keep(self._admitted)

    def _expel(self, node: int) -> None:
        self._roster.expel(node)
        self._signatures.forget(node)
        self._documents.forget(node)
        self._receipts.discard(node)
        for known in (self._answered, self._checked):
            known.pop(node, None)
        self._relays = {seq: relay for seq, relay in self._relays.items() if node not in (relay.target, relay.asker)}
        if self._probe is not None:
            self._probe.asked.discard(node)
            if self._probe.target == node:
                self._probe = None

    def _recall(self, entries: Iterable[MemberEntry]) -> None:
        """Take in what an earlier process of this life knew."""
        known = [entry for entry in entries if self._belongs(entry)]
        for entry in self._signed(known, self._roster.me.node):
            self._roster.learn(entry, self._now, Source(NOBODY), direct=False)

    # --- the document

    def _document(self, event: OwnDocument | Unwanted) -> None:
        if isinstance(event, Unwanted):
            self._documents.refuse(event.digest, event.by)
            self._drop("document", f"what node {event.by} has sent is none")
        elif len(event.data) > wire.DOCUMENT_CAP:
            self._drop("document", f"{len(event.data)} bytes; at most {wire.DOCUMENT_CAP}: the one before stays")
        elif self._documents.put(event.data) and self._timers:
            live = [*self._roster.live]
            for node in self._draw.sample(live, min(self._timing.fanout, len(live))):
                self._tell_document(self._roster.entries[node], b"")

    def _tell_document(self, entry: MemberEntry, theirs: bytes) -> None:
        """Tell a member this node's document, unless it has it or has been told not long ago."""
        if self._documents.tells(entry.node, theirs, self._now):
            self._tell(entry, DocumentCopy(self._documents.data), 0, news=False)

    def _compare(self, sender: MemberEntry, datagram: Datagram) -> None:
        """Take in the document of a member, or tell it this node's, where they differ."""
        if isinstance(datagram.message, DocumentCopy):
            told = Told(datagram.message.data, sender.node)
            why = self._documents.came(told, datagram.digest, self._now)
            if why is None:
                self._out.append(told)
            elif why:
                self._drop(why, f"the document of node {sender.node}")
        entry = self._roster.entries.get(sender.node)
        if entry is not None and not entry.terminal:
            self._tell_document(entry, datagram.digest)

    def _follow_up(self) -> None:
        """Ask who says that somebody is gone, this node or one that answers it, whether it holds to that.

        In its answer it will say it again. Who is disputed for that hears of it, and asks in turn.
        """
        roster, me = self._roster, self._roster.me.node
        for node, about in {**roster.doubted, **dict.fromkeys(roster.accusers, me)}.items():
            fresh = self._checked.get(node, -math.inf) + self._timing.ack_min
            if node in roster.entries and node not in (me, about) and self._now >= fresh:
                self._checked[node] = self._now
                told = [roster.entries[about]] if about in roster.live else []
                self._tell(roster.entries[node], DirectPing(node), self._question(node), told, news=False)
        for node in roster.to_tell:
            if node in roster.disputed:
                self._tell(roster.entries[node], Gossip(), 0, [roster.disputed[node]], news=False)
        for done in (roster.accusers, roster.doubted, roster.to_tell):
            done.clear()

    def _answer(self, datagram: Datagram, wrong: list[MemberEntry]) -> None:
        sender, seq = datagram.sender, datagram.seq
        match datagram.message:
            case DirectPing(target):
                if target == self._roster.me.node:
                    self._tell(sender, Ack(), seq, wrong[:PIGGYBACK])
                    self._assured(sender.node)
                    return
                self._drop("target", f"a ping of node {sender.node} for node {target}")
            case Sync():
                self._tell(sender, Synced(), seq, self._table())
                return
            case Synced():
                self._seeds.answered(seq, sender.node)
            case Ask(target, address, wait):
                if target in self._admitted:
                    self._relay(datagram, target, address, wait)
            case Ack():
                self._acked(datagram)
            case Nack():
                if self._probe is not None and seq == self._probe.seq and sender.node in self._probe.asked:
                    self._probe.nacks.add(sender.node)
        fresh = self._answered.get(sender.node, -math.inf) + self._timing.gossip_every
        if wrong and self._now >= fresh:
            self._answered[sender.node] = self._now
            self._tell(sender, Gossip(), 0, wrong[:PIGGYBACK])

    # --- probing

    def _next_probe(self) -> None:
        """The period is over: judge its probe, begin the next."""
        probe, roster = self._probe, self._roster
        if probe is not None and not probe.reached and probe.target in roster.live:
            self._health.add(probe.against(len(roster.live)))
            roster.suspect(probe.target, self._now)
        self._remind()
        stretch = self._health.stretch
        self._timers["probe"] = self._now + self._timing.interval * stretch
        target = self._order.next(roster.live)
        self._probe = None
        if target is None:
            return
        self._probe = Probe(target, self._question(target), self._now)
        self._timers["ask"] = self._now + self._trips.timeout(self._timing) * stretch
        self._ping(target, self._probe.seq)

    def _ping(self, target: int, seq: int, news: bool = True) -> None:
        held = self._roster.entries[target]
        self._tell(held, DirectPing(target), seq, [held] if held.state == SUSPECT else [], news)

    def _inquire(self, node: int, inquiry: Inquiry) -> None:
        """Ask a member that is said to be gone, where it is held to be and where it is said to be.

        News do not ride along: they are told a bounded number of times, and this one may be gone.
        """
        if not inquiry.ask():
            self._roster.conclude(node, self._now)
            self._follow_up()
            return
        claim, there = inquiry.claim, node != self._roster.me.node
        if there:
            self._ping(node, self._question(node), news=False)
        elsewhere = claim is not None and not (there and claim.address == self._roster.entries[node].address)
        if claim is not None and elsewhere and not claim.terminal:
            self._tell(claim, DirectPing(node), self._question(node), news=False)

    def _remind(self) -> None:
        """Tell some of those that this node suspects so, each once a period at most: they can refute it."""
        suspicions = self._roster.suspicions
        for node in sorted(suspicions, key=lambda node: suspicions[node].told)[: self._timing.fanout]:
            suspicions[node].told = self._now
            self._ping(node, self._question(node))

    def _ask(self) -> None:
        """No answer in time: ask others to ping."""
        probe = self._probe
        if probe is None or probe.reached or probe.target not in self._roster.live:
            return
        others = [n for n in self._roster.live if n != probe.target and n not in self._roster.suspicions]
        probe.asked = set(self._draw.sample(others, min(self._timing.ask, len(others))))
        wait = max(0.0, 0.8 * (self._timers["probe"] - self._now))
        target = self._roster.entries[probe.target]
        for node in sorted(probe.asked):
            self._tell(self._roster.entries[node], Ask(probe.target, target.address, wait), probe.seq)

    def _relay(self, datagram: Datagram, target: int, address: str, wait: float) -> None:
        """Ping a member for another. With keys only where the member itself says that it is: nobody else can."""
        sender, held = datagram.sender, self._roster.entries.get(target)
        if len(self._relays) >= _RELAYS:
            self._drop("relays", f"node {sender.node} asks for a ping; {_RELAYS} are under way")
            return
        seq = self._question(target)
        wait = min(wait, self._timing.interval * 8)
        self._relays[seq] = Relay(target, sender.node, sender.address, datagram.seq, self._now + wait)
        if self._signatures.there:
            if held is None:
                return
            address = held.address
        suspected = [held] if held is not None and held.state == SUSPECT else []
        self._say(target, address, DirectPing(target), seq, suspected)

    def _acked(self, datagram: Datagram) -> None:
        sender, probe = datagram.sender, self._probe
        if datagram.seq in self._words:  # an answer that was under way before tells of nothing
            self._receipts.add(sender.node)
        relay = self._relays.get(datagram.seq)
        if relay is not None and relay.target == sender.node:
            del self._relays[datagram.seq]
            self._say(relay.asker, relay.address, Ack(), relay.seq, [self._roster.entries[sender.node]])
        if probe is None or datagram.seq != probe.seq or probe.reached:
            return
        vouched = sender.node in probe.asked and self._roster.has_spoken(probe.target, self._now)
        if sender.node == probe.target or vouched:
            probe.reached = True
            self._health.add(-1)
            if sender.node == probe.target:
                self._trips.add(self._now - probe.began)

    # --- telling

    def _targets(self, count: int) -> list[MemberEntry]:
        """Some members to tell news to: of those that live, and of those that died not long ago."""
        nodes = [*self._roster.live, *self._roster.recently_dead(self._now)]
        return [self._roster.entries[node] for node in self._draw.sample(nodes, min(count, len(nodes)))]

    def _gossip(self) -> None:
        for entry in self._targets(self._timing.fanout):
            if len(self._roster.spread):
                self._tell(entry, Gossip(), 0)
        self._last_gossip = self._now

    def _sync(self) -> None:
        self._roster.forget(self._now)
        self._roster.renew(self._now)
        self._timers["sync"] = self._now + self._timing.sync_every * self._draw.uniform(0.75, 1.25)
        if self._roster.live:
            node = self._draw.choice([*self._roster.live])
            self._tell(self._roster.entries[node], Sync(), self._question(node), self._table())

    def _retry(self) -> None:
        self._timers["retry"] = self._now + self._timing.retry_dead * self._draw.uniform(0.75, 1.25)
        dead = [Seed(entry.address, entry.node) for entry in self._roster.dead()]
        places: dict[str, Seed] = {}
        for seed in [*dead, *self._seeds.unanswered(self._roster.entries)]:
            places.setdefault(seed.address, seed)
        if places:
            self._greet(self._draw.choice([*places.values()]))

    def _hello(self) -> None:
        """Greet seeds: until one has answered, and for some time those that have not."""
        waiting = self._seeds.unanswered(self._roster.entries)
        self._hellos += 1
        if not waiting or (self._roster.live and self._hellos > _HELLOS):
            return
        self._timers["hello"] = self._now + self._timing.hello_every * self._draw.uniform(0.75, 1.25)
        for seed in self._draw.sample(waiting, min(self._timing.fanout, len(waiting))):
            self._greet(seed)

    def _greet(self, seed: Seed) -> None:
        seq = self._question(NOBODY)
        self._seeds.ask(seq, seed.address)
        self._say(seed.node, seed.address, Sync(), seq, self._table())

    # --- leaving, and a last word

    def _part(self, state: str, most: float) -> None:
        """Say that this life is over, for so many seconds at most. Who hears of it asks, and believes the answer."""
        self._roster.say(state=state, at=self._now)
        self._receipts.clear()
        self._sure.clear()
        self._timers |= {"probe": math.inf, "leave": self._now + most, "farewell": self._now}

    def _farewell(self) -> None:
        """Say so to some members until enough have given their receipt; the rest learn it from them.

        Of one that leaves, whose node waits for that, a few are enough. Of one that has died all: nobody waits, and its
        neighbors would wait for it.
        """
        died, live = self._roster.mine.state == DEAD, self._roster.live
        left = [node for node in live if node not in self._receipts]
        if len(live) - len(left) >= (len(live) if died else min(self._timing.fanout, len(live))):
            self._gone()
            return
        self._timers["farewell"] = self._now + self._timing.gossip_every
        most, self._parting = self._timing.fanout if self._parting and not died else _FAREWELLS, True
        for node in self._draw.sample(left, min(most, len(left))):
            self._words.add(seq := self._question(node))
            self._ping(node, seq)

    def _assured(self, node: int) -> None:
        """A member has asked, and was answered. When all have of one that has died, it need not stay for more."""
        self._sure.add(node)
        if self._roster.mine.state == DEAD and self._roster.live.keys() <= self._sure:
            self._timers["leave"] = self._now

    def _gone(self) -> None:
        self._silence()
        self._out.append(Gone())


def _check(me: Me, cluster: str, seeds: Sequence[Seed], admitted: Admit, document: bytes) -> None:
    """Raise ConfigError for what no membership can begin with."""
    if not 0 < len(cluster) <= wire.CLUSTER_CAP:
        raise ConfigError(f"cluster={cluster!r}: 1 to {wire.CLUSTER_CAP} characters. Shorten it.")
    for address in (me.address, *(seed.address for seed in seeds)):
        if not wire.good_address(address):
            raise ConfigError(f"address={address!r}: as in tcp://10.0.0.1:7000. Write it so.")
    if wire.dialer(me.address) not in (None, me.node):
        raise ConfigError(f"address={me.address!r}: is that of another node than {me.node}. Write its own.")
    if admitted.nodes is not None and me.node not in admitted.nodes - admitted.revoked:
        raise ConfigError(f"node={me.node}: is no member of the federation. Ask its members to add it.")
    if len(document) > wire.DOCUMENT_CAP:
        raise ConfigError(f"document={len(document)} bytes: at most {wire.DOCUMENT_CAP}. Shorten it.")
