"""One live node: a poll loop over its sockets and a thread that trains. Everything it decides is `Peer`'s."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import resource
import signal
import threading
import traceback
from collections.abc import Callable

import zmq

from p2pfl.drivers.live import clock, curve, files, ports, versions, zmtp
from p2pfl.drivers.live.curve import Keys
from p2pfl.drivers.live.faults import FaultPlan, FaultyLinks
from p2pfl.drivers.live.listener import Arrived
from p2pfl.drivers.live.parcels import Letter
from p2pfl.drivers.live.reach import REACHED, Reachability
from p2pfl.drivers.live.settings import Place, membership_address, models_address
from p2pfl.drivers.live.sidecar import Restarted, Sidecar
from p2pfl.drivers.live.status import Pace, StatusDesk, members
from p2pfl.drivers.live.status_line import Situation, StatusLine, directions
from p2pfl.drivers.live.transport import Transport
from p2pfl.errors import USER_FAULTS, ConfigError, LocalError, RemoteError
from p2pfl.node import records
from p2pfl.node.checkpoint import Store
from p2pfl.node.event_log import EventLog
from p2pfl.node.life import LifeFile
from p2pfl.node.membership import Standing, meaning
from p2pfl.node.payload import NOTHING, Outgoing
from p2pfl.node.plan import facts
from p2pfl.node.replica import Replica
from p2pfl.node.result import NodeResult
from p2pfl.node.said import Said, level_of, whole
from p2pfl.node.spending import SpendingFile
from p2pfl.node.status import FORMAT, MEMBERS, SELF, LateNode, ReportedMember, StatusReport, finite, first
from p2pfl.node.task import Task
from p2pfl.node.worker import Host, Worker
from p2pfl.protocol.codec import NonFinite, decode, digest, encode
from p2pfl.protocol.events import (
    Admitted,
    Adopt,
    Advance,
    Done,
    Drop,
    Effect,
    Event,
    Finished,
    Leave,
    Members,
    Note,
    Reborn,
    Received,
    Refused,
    Send,
    Start,
    Tick,
    Unfit,
)
from p2pfl.protocol.membership.events import Changed, Gone, Told
from p2pfl.protocol.membership.seeds import Seed
from p2pfl.protocol.membership.table import Me, Member
from p2pfl.protocol.messages import Hello, Model, Offer, Push
from p2pfl.protocol.peer import Peer
from p2pfl.protocol.questions import DIFFERS, STATUS, Asker, Questions
from p2pfl.protocol.strangers import Strangers

_TICK = 0.05
"""Seconds between looks at the clock when nothing comes in."""

_REASONS = 3.0
"""Seconds that a node which met nobody looks for the reasons in the end, where it does not know them yet."""

_SHOW = 1.0
"""Seconds between the times that `show` is told how a node stands."""

_RECOMPILES = 30.0
"""Seconds that a new epoch may keep a node busy compiling, as it tells the others."""


def run(
    task: Task, place: Place, membership: Sidecar, say: Callable[[str], None], ready: Callable[[], None],
    show: Callable[[StatusReport], None] | None = None,
) -> NodeResult:  # fmt: skip
    """Run one node to its end. `ready` is called when all is compiled and may wait; the sockets open after it, and then
    `say` is told where it listens.

    `membership`: of `sidecar.start()`, before jax computes anything. `show`: as of LiveNode.
    """
    return LiveNode(task, place, membership, say, show=show).run(ready)


class LiveNode:
    """One node; see `run`. `ask_to_leave` and `grow` are for other threads, and so is what tells how it stands.

    `replica`: of the task, as `Worker` has it. `within`: entered by each thread that computes, such as a precision.
    `show`: told how it stands, now and then, in the thread of its loop.
    """

    def __init__(
        self,
        task: Task,
        place: Place,
        membership: Sidecar,
        say: Callable[[str], None],
        replica: Replica | None = None,
        within: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
        show: Callable[[StatusReport], None] | None = None,
    ) -> None:
        self._task, self._place, self._membership, self._log = task, place, membership, say
        self._within, self._show = within, show
        place.directory.mkdir(parents=True, exist_ok=True)
        self._counters = (0, 0)
        store = Store(place.directory, place.kept_by or place.terms.federation)
        spending = SpendingFile(place.directory)
        host = Host(
            clock.now, lambda: self._counters, self._happens, self._say, store, place.every, self._mixed, spending
        )
        with within():
            self._work = Worker(task, place.directory, host, replica)
        self._event_log = EventLog(task.node, self._write)
        self._life = LifeFile(place.directory, self._say)
        self._compiled = 0.0  # seconds that it took
        self._jobs: queue.SimpleQueue[Advance | Adopt | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Event | LocalError] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._opened = contextlib.ExitStack()
        self._opened.callback(os.close, self._wake)
        self._signals: list[int] = []
        self._stopped_by: str | None = None
        self._error: LocalError | None = None
        self._done = self._busy = False
        self._unfit = ""  # why it does not belong here: the rows or the model ...
        self._unlike = ""  # ... or the experiment, which is
        self._fault_plan = FaultPlan(task.events, task.node, place.terms.nodes)
        self._table: tuple[Member, ...] = ()  # as the membership last told it
        self._pace = Pace()
        self._began = self._shown = clock.now()  # listening; and when `show` was called last
        self._strangers = Strangers(task.node, place.terms.fields, clock.now())
        self._desk = StatusDesk(self.status, self._drop, place.trusted is not None, clock.now())
        introduction = zmtp.introduction(place.terms.federation, task.node)
        self._reach = Reachability(introduction, self._strangers, self._keys_at)
        self._trusted = place.trusted
        self._status, self._heard = StatusLine(), dict[int, float]()  # when each node was last heard
        self._told = -1  # the round that the membership has been told ...
        self._reached = 0  # ... and the transport
        self._past = 0  # what the experiment plans up to this round is over
        self._asked = False  # by another thread, to leave
        self._admitted = place.admitted  # nodes that there can be
        self._worker = threading.Thread(target=self._compute, name="work", daemon=True)
        self._at: Callable[[], int | None] = lambda: None  # in which round it is, once it is in one

    def _say(self, text: str) -> None:
        """Say a line, with which node it is and in which round."""
        self._log(whole(text, self._task.node, self._at()))

    def run(self, ready: Callable[[], None], listening: Callable[[], None] = lambda: None) -> NodeResult:
        """Run it to its end, once. `ready` as in `run` of this module; `listening` is called when its sockets are open.

        In the main thread of a process SIGTERM, SIGINT and SIGHUP let it leave; else they are whose thread that is.
        """
        with self._within():
            return self._ran(ready, listening)

    def _ran(self, ready: Callable[[], None], listening: Callable[[], None]) -> NodeResult:
        try:
            self.warm()
            ready()
            self.open()
            self._say(Said(f"listening on {self._place.listen}", "listening", address=self._place.listen))
            listening()
            try:
                self.loop()
            except USER_FAULTS as error:
                if not self.broken(error):
                    raise
            result = self.result()
            try:
                result.write(self._place.directory)
            except OSError as error:
                text = f"{self._place.directory}/result.json: can't be written: {error.strerror}; make room"
                self._say(Said(text, "result", logging.ERROR))
                result = result._replace(error=result.error or text)
            self.belongs()
            return result
        finally:
            self.close()
            self._membership.close()

    def ask_to_leave(self) -> None:
        """Let it leave in good order, soon; from any thread."""
        self._asked = True
        self._work.replica.stop()

    def grow(self, nodes: int) -> None:
        """Let there be so many nodes from now on, ids 0 to nodes - 1: the federation has grown. From any thread.

        Whoever vouches for that calls it. Fewer than before changes nothing.
        """
        self._admitted = max(self._admitted, nodes)

    @property
    def peer(self) -> Peer:
        """Its side of the protocol, to look at. Only after `open`."""
        return self._peer

    @property
    def members(self) -> tuple[int, ...]:
        """The nodes that are there, this one among them, ascending."""
        return tuple(sorted({self._task.node, *(member.node for member in self._table if member.present)}))

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received."""
        return self._counters

    @property
    def dropped(self) -> dict[str, int]:
        """Messages that were dropped, by reason."""
        return dict(self._event_log.dropped)

    def warm(self) -> None:
        """Compile; no socket is open yet."""
        began = clock.now()
        self._work.replica.warm()
        self._compiled = clock.now() - began

    def open(self) -> None:
        """Bind the sockets, open the records; from here on the node exists for the others."""
        task, place, work = self._task, self._place, self._work
        own = membership_address(place.listen)
        ports.await_free((place.listen, own), self._say)
        payload, model = work.payloads.format, work.models.format
        self._formats = {Offer: payload, Push: payload, Model: model}
        if place.resume:
            for note in work.resume():
                self._say(Said(note, "resumed"))
        terms = place.terms
        schemas = [*work.payloads.schemas, *work.models.schemas]
        life = self._life.next(clock.life(), work.kept[0] if work.kept else 0)
        nodes = max(terms.nodes, task.node + 1)  # until those are let in who have been admitted
        keyring = None if self._trusted is None else self._trusted.keyring
        self._transport = Transport(
            place.listen, task.node, nodes, terms.federation, schemas, answers=self._questions().answer,
            keyring=keyring, life=life, calls=place.calls,
        )  # fmt: skip
        self._began = clock.now()
        self._links = FaultyLinks(self._transport, self._membership)
        work.begin(life)
        self._opened.callback(work.close)
        self._events = records.Lines(place.directory / "events.jsonl", say=self._say)
        self._opened.callback(self._events.close)
        self._opened.callback(self._part)
        later = [e.round for e in task.events if e.node == task.node and e.event in ("rejoin", "join")]
        later = [round for round in later if round > work.last_round]
        join_round = min(later, default=0) if work.last_round or task.node not in place.terms.expected else 0
        join_round = place.returns or join_round
        # what was planned for an earlier process has befallen it, also in the round that it did not finish
        self._past = max(join_round - 1, work.last_round + 1 if work.last_round else 0)
        if place.after:  # whatever came later comes again
            join_round, self._past = place.after + 1, place.after
        self._peer = Peer(facts(task, work, place.terms, life, join_round, self._compiled, place.after > 0))
        self._at = lambda: self._peer.round
        me = Me(task.node, life, membership_address(place.address), nodes)
        trusted, where = self._trusted, {} if self._trusted is None else self._trusted.places
        seeds = [Seed(membership_address(address), where.get(address)) for address in place.peers]
        trust = () if trusted is None else (keyring, trusted.revoked, trusted.packed)
        self._membership.begin(me, place.terms.federation, seeds, place.probe_timing, own, *trust)
        if place.calls:
            for address, node in where.items():
                self._transport.know(node, address)

    def _keys_at(self, address: str) -> Keys | None:
        """Return the keys of a connection to an address, of models or of the membership; None where there are none."""
        if self._trusted is None or self._trusted.keyring is None:
            return None
        known = {member.address: member.node for member in self._table}
        known |= {membership_address(at): node for at, node in self._trusted.places.items()}
        found = known.get(address, known.get(membership_address(address)))
        return curve.keys(self._trusted.keyring, found)

    @property
    def _revoked(self) -> frozenset[int]:
        """Nodes that were members."""
        return frozenset() if self._trusted is None else self._trusted.revoked

    def _trust(self, now: float) -> None:
        """Go by a federation file that has changed."""
        assert self._trusted is not None
        keyring = self._trusted.keyring
        if keyring is None:
            text = "is no member of the federation any more: the others have revoked it"
            self._fail(LocalError(text, node=self._task.node, round=self._peer.round, part="federation"))
            self._handle(Leave(idle=False), now)
            return
        self._transport.admit(keyring)
        self._membership.document(self._trusted.packed)  # first: it is the last word to who is revoked
        self._membership.admit(keyring, self._trusted.revoked)
        self.grow(self._trusted.nodes)

    def _hear_records(self, told: Told, now: float) -> bool:
        """Take in what a member has of the federation file; return whether it is one."""
        if self._trusted is None:
            return True
        try:
            if self._trusted.hear(told.document):
                self._trust(now)
        except RemoteError as error:
            self._drop(Drop(error.reason, f"the federation file of node {told.by}: {error.detail}"))
            return False
        return True

    def _ask_whether_a_member(self, now: float) -> None:
        """Where nobody is heard any more, ask those who should be there: the others may have revoked this node, and
        the last word of it be lost. What counts are the signatures of the records that they show.
        """
        if self._trusted is None or self._error is not None:
            return
        me = self._task.node
        if not any(each.present and not each.silent and each.node != me for each in self._table):
            for address, node in self._trusted.places.items():
                if node != me:
                    self._reach.why(membership_address(address), now)
        for address, document in self._reach.told():
            self._hear_records(Told(document, self._trusted.places.get(models_address(address), me)), now)

    def _questions(self) -> Questions:
        """What this node answers whoever brings a question."""

        def differs(asked: bytes, asker: Asker, now: float) -> bytes:
            return self._strangers.answer(asked, now)

        return Questions({DIFFERS: differs, STATUS: self._desk.answer})

    def _happens(self, round: int) -> str | None:
        """Return what the experiment has planned for this node at the beginning of a round. In the computing thread."""
        self._links.faults = self._fault_plan.of(round)
        past, self._past = self._past, max(self._past, round)
        for event in self._task.events:
            if event.node != self._task.node or not past < event.round <= round:  # what it skipped befalls it now
                continue
            if event.event == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            elif event.event == "freeze":  # until whoever runs the experiment lets it go on
                os.kill(os.getpid(), signal.SIGSTOP)
            elif event.event == "leave":
                return "leave"
        return None

    # --- the thread that computes

    def _mixed(self, measured: records.Measured, did: records.RoundSteps) -> None:
        """Say what has become of a round, to who wants to know of each."""
        took = f"{measured.seconds:.3g} s, of which it waited {measured.waited:.3g} s"
        text = f"round {measured.round}: {did}; loss {measured.train_loss:.4g}, {took}"
        more = {**did._asdict(), "loss": finite(measured.train_loss)}
        self._say(Said(text, "round", logging.DEBUG, round=measured.round, **more))

    def _compute(self) -> None:
        with self._within():
            self._work_off()

    def _work_off(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if isinstance(job, Adopt):
                    self._work.adopt(job)
                    continue
                done = self._work.advance(job)
                if done is not None:
                    self._results.put(done)
            except LocalError as error:
                self._results.put(error)
            os.eventfd_write(self._wake, 1)

    # --- the loop

    def loop(self) -> None:
        """Until the peer is done. Only after `open`."""
        main = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if main else ():
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, lambda number, frame: self._signals.append(number))
        poller = zmq.Poller()
        poller.register(self._transport.fileno(), zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        poller.register(self._membership.fileno(), zmq.POLLIN)
        self._poller = poller
        self._worker.start()
        ticked = clock.now()
        self._handle(Start(), ticked)
        self._grow(ticked)
        while not self._done:
            poller.poll(int(1000 * min(self._transport.delay, 0.001 if self._links.waiting else _TICK)))
            now = clock.now()
            for message in self._transport.receive():
                self._take(message, now)
            self._collect(now)
            if self._peer.round != self._reached:  # it may have gone back
                self._transport.progress(max(1, self._peer.round - self._reached))
                self._reached = self._peer.round
            self._read_membership(now)
            self._links.step(now)
            self._get_on(now)
            if now - ticked >= _TICK:
                ticked = now
                self._tick(now)

    def _tick(self, now: float) -> None:
        for reason, detail in self._transport.watch():
            self._drop(Drop(reason, f"a connection {detail}"))
        if self._signals:
            self._stopped_by = self._stopped_by or signal.Signals(self._signals[0]).name
            self._signals.clear()
            self._say(Said(f"leaving: asked to stop ({self._stopped_by})", "leaving", logging.WARNING))
            self._handle(Leave(idle=False), now)
        if self._asked:
            self._handle(Leave(idle=False), now)
        if self._trusted is not None and self._trusted.look(now):
            self._trust(now)
        self._ask_whether_a_member(now)
        self._grow(now)
        self._handle(Tick(), now)
        self._membership.beat()
        self._pace.count(self._peer.round, now)
        if self._show is not None and now - self._shown >= _SHOW:
            self._shown = now
            self._show(self.status(now))
        self._tell(now)
        self._meet_strangers(now)
        self._links.waits = self._peer.waits
        if self._peer.told != self._told:
            self._told = self._peer.told
            self._membership.progress(self._told)

    def status(self, now: float) -> StatusReport:
        """Return how it stands, for whoever operates it. In the thread of its loop."""
        task, terms, peer, work = self._task, self._place.terms, self._peer, self._work
        here, (sent, received) = versions.here(task.node, versions.MODELS), self._counters
        keyring = None if self._trusted is None else self._trusted.keyring
        names = {} if keyring is None else keyring.names
        score, loss = work.for_others()
        me = ReportedMember(task.node, names.get(task.node, ""), SELF, peer.round, self._place.address[:200])
        told, more = first(members(me, self._table, peer.silent, names))
        return StatusReport(
            format=FORMAT,
            node=task.node,
            name=me.name,
            experiment=terms.fields.get("name", "")[:200],
            federation=terms.federation,
            version=here.version,
            protocols=(here.protocol, here.membership),
            encrypted=self._trusted is not None,
            uptime=now - self._began,
            life=peer.life,
            stage=peer.stage,
            round=peer.round,
            rounds=task.rounds,
            seconds_left=self._pace.left(task.rounds, peer.round, now),
            waiting=peer.waits,
            leaving=self._why_leaving[:200],
            members=told,
            more_members=more,
            missing=self._missing()[:MEMBERS],
            late=tuple(LateNode(node, seconds) for node, seconds in peer.late.items())[:MEMBERS],
            booked=peer.booked,
            voided=peer.voided,
            open=peer.open,
            bytes_sent=sent,
            bytes_received=received,
            bytes_forwarded=sum(self._transport.forwarded.values()),
            dropped=dict(self._event_log.dropped),
            score_name=task.score,
            score=finite(score),
            loss=finite(loss),
            rounds_alone=peer.alone,
            records_dropped=work.records_dropped + self._events.dropped,
        )

    @property
    def _why_leaving(self) -> str:
        """Why it is about to end; nothing where it is not."""
        if self._error is not None:
            return str(self._error)
        if self._stopped_by or self._asked:
            return f"asked to stop ({self._stopped_by or 'by its script'})"
        unlike = "its experiment, its data or its model is not that of its neighbours"
        return unlike if self._unlike or self._unfit else ""

    def _there(self) -> dict[int, str]:
        """Return who is there, and where; who has left after its last round is missed by nobody."""
        counted = [each for each in self._table if each.present or each.round >= self._task.rounds]
        return {member.node: models_address(member.address) for member in counted} | {self._task.node: ""}

    def _missing(self) -> tuple[int, ...]:
        """Return the nodes that should be there and are not."""
        there = self._there()
        return tuple(node for node in self._expected if node not in there)

    @property
    def _expected(self) -> list[int]:
        """Nodes that should be there."""
        return [node for node in self._place.terms.expected if node not in self._revoked]

    def _grow(self, now: float) -> None:
        """Let those in who have been admitted: first where they are heard, then where this node tells of them."""
        nodes = self._admitted
        if nodes <= self._peer.state.nodes:
            return
        try:
            files.fits(nodes, files.raised(), here=False)
        except ConfigError as error:  # what is there already goes on
            self._say(Said(str(error), "files", logging.ERROR))
        self._handle(Admitted(nodes), now)
        self._fault_plan.grow(nodes)
        self._transport.grow(nodes)
        self._membership.grow(nodes)

    def _tell(self, now: float) -> None:
        """Say how it goes, if that is due."""
        if self._stopped_by or self._asked:  # nothing is hoped for any more
            return
        work = self._work
        there, missing = self._there(), self._missing()
        neighbors = {node: there[node] for node in work.task.neighbors if node in there}
        awaited = self._peer.awaited
        asked = [node for node in neighbors if node in awaited or node not in self._heard]
        unreached, unheard = directions(neighbors, self._heard, self._links.blocked, asked, now)
        situation = Situation(
            round=self._peer.round,
            rounds=self._task.rounds,
            there=len(there),
            expected=max(len(self._expected), len(there)),
            missing=missing,
            score=None if work.score is None else (self._task.score, work.score),
            awaited=self._status.long(awaited, now),
            unreached=unreached,
            unheard=unheard,
            address=self._place.address,
            peers=tuple(self._place.peers),
            strange=self._strange() if missing else (),
            uncallable="" if self._trusted is None else self._trusted.uncallable,
        )
        situation = situation._replace(why=self._why(situation, now))
        if (line := self._status.next(situation, now)) is not None:
            self._say(Said(line, "status"))

    def _meet_strangers(self, now: float) -> None:
        """Tell of those whose experiment differs; leave where most neighbours are such, once they can know it, too.

        Who asks is told of, and ends nothing: only what is answered at addresses that this node was given does.
        """
        for stranger in self._strangers.news():
            self._note(Note("differs", stranger.node, self._peer.round, f"another experiment: {stranger.said}"))
            self._reach.again()
        if self._unlike or self._peer.booked or any(m.present and m.node != self._task.node for m in self._table):
            return
        self._unlike = self._strangers.unfit(self._task.neighbors, tuple(self._reach.strangers.values()), now)
        if self._unlike:
            self._say(Said("leaving: its experiment is not that of its neighbours", "leaving", logging.ERROR))
            self._handle(Leave(idle=False), now)

    def _strange(self) -> tuple[str, ...]:
        """Return the addresses, of its peers and of members, where somebody should be whom this node never reached."""
        known = {models_address(each.address): each for each in self._table if each.node not in self._revoked}
        former = {models_address(each.address) for each in self._table if each.node in self._revoked}
        given = [address for address in self._place.peers if address not in known and address not in former]
        gone = [at for at, member in known.items() if not member.present and member.node not in self._links.reached]
        return (*given, *gone)

    def _why(self, now: Situation, time: float) -> dict[str, str]:
        """Return why nobody is reached at addresses, as far as that is known by now."""
        own = now.address
        why = {at: self._reach.why(membership_address(at), time) for at in now.strange}
        why |= {at: self._reach.why(at, time) for _, at in now.unreached}
        if now.there > 1:
            return {at: said for at, said in why.items() if said}
        silent = [at for at, said in why.items() if said == REACHED]
        told = {at: said for at, said in why.items() if said}
        told |= {at: f"takes connections and does not answer: does it reach us at {own}?" for at in silent}
        if (silent or now.uncallable) and (said := self._reach.why(membership_address(own), time)):
            told[own] = said
        return told

    def _unreached(self) -> tuple[str, ...]:
        """Return where others were not reached and why, at the end of a node that has exchanged nothing."""
        if self._peer.booked or self._task.link == "none" or not self._task.neighbors:
            return ()
        there = [member for member in self._table if member.present and member.node != self._task.node]
        blocked = tuple((m.node, models_address(m.address)) for m in there if m.node in self._links.blocked)
        situation = Situation(
            0, 0, 1 + len(there), 2, unreached=blocked, address=self._place.address, strange=self._strange()
        )
        limit = clock.now() + (0.0 if self._stopped_by or self._asked else _REASONS)
        while len(why := self._why(situation, now := clock.now())) < len(situation.strange) and now < limit:
            clock.pause(_TICK)
        return tuple(f"{at} ({said})" for at, said in why.items())

    def _read_membership(self, now: float) -> None:
        """Take in what the membership says; without one, the node leaves."""
        try:
            events = self._membership.read()
        except LocalError as lost:
            self._poller.unregister(self._membership.fileno())
            self._fail(lost)
            self._handle(Leave(idle=False), now)
            return
        for event in events:
            if isinstance(event, Restarted):
                detail = f"its process died ({event.how}); another goes on in its place"
                self._note(Note("membership", self._task.node, self._peer.round, detail))
                continue
            if isinstance(event, Told):
                if not self._hear_records(event, now):
                    self._membership.unwanted(event)
                continue
            if isinstance(event, Changed):
                for member in event.members:
                    self._transport.know(member.node, models_address(member.address))
                    if not member.present:
                        self._transport.lose(member.node)
                self._table = event.members
            task, sync = self._task, self._place.terms.sync
            match meaning(event, Standing(task.node, self._peer.round, lambda: self._table, task.rounds, sync)):
                case Members() as members:
                    self._handle(members, now)
                case Note() as note:
                    self._note(note)
                case Drop() as drop:
                    self._drop(drop)
                case LocalError() as error:
                    self._fail(error)
                    self._handle(Leave(idle=False), now)

    def broken(self, error: Exception) -> bool:
        """The loop has failed, which is a fault of this program: note it. False where there is nothing to save yet."""
        if not self._worker.is_alive():
            return False
        at = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} (in {at.filename}, line {at.lineno})"
        self._fail(LocalError(text, node=self._task.node, round=self._peer.round, part="loop"))
        return True

    def belongs(self) -> None:
        """Raise ConfigError where this node runs something else than its neighbours."""
        if self._unlike:
            raise ConfigError(
                f"node {self._task.node} runs another experiment than its neighbours (there: theirs, here: its own); "
                f"nothing was exchanged\n{self._unlike}\nGive all nodes the same experiment file"
            )
        if self._unfit:
            raise ConfigError(
                f"node {self._task.node} has other data, or another model, than its neighbours (there: theirs, here: "
                f"its own); nothing was exchanged\n{self._unfit}\nGive all sites one dictionary (p2pfl data describe), "
                "and rename, derive or correct what differs"
            )

    def _fail(self, failure: LocalError) -> None:
        self._say(Said(f"stopping: {failure}", "stopping", logging.ERROR))
        self._error = self._error or failure

    def _take(self, message: Arrived, now: float) -> None:
        try:
            envelope = decode(message.frames, self._formats)
        except NonFinite as error:
            self._handle(Refused(error.envelope), now)
            return
        except RemoteError as error:
            self._drop(Drop(error.reason, error.detail))
            self._transport.blame(message)
            return
        if envelope.node != message.node:
            self._drop(Drop("sender", f"node {message.node} speaks for node {envelope.node}"))
            self._transport.blame(message)
            return
        if envelope.node in self._links.faults.cut:
            return
        if envelope.node < self._peer.state.nodes:
            self._heard[envelope.node] = now
        useless = self._event_log.useless
        self._handle(Received(envelope), now)
        if isinstance(envelope.message, Hello | Offer | Push) and envelope.message.round:
            self._transport.withdraw(envelope.node)
        if self._event_log.useless > useless:
            self._transport.blame(message)

    def _get_on(self, now: float) -> None:
        """Go on with what is under way in pieces, and tell the peer of it."""
        for progress in self._transport.step():
            if progress.node not in self._links.faults.cut:
                self._heard[progress.node] = now
                self._handle(progress, now)

    def _collect(self, now: float) -> None:
        while True:
            try:
                result = self._results.get_nowait()
            except queue.Empty:
                break
            if isinstance(result, LocalError):
                again = self._error is not None
                self._fail(result)
                result = Finished() if again else Leave(idle=True)
            if self._busy:
                self._busy = False
                self._membership.busy(0.0)
            self._handle(result, now)
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return

    # --- effects

    def _handle(self, event: Event, now: float) -> None:
        if isinstance(event, Leave):  # whoever computes need not wait for steps of a round any more
            self._work.replica.stop()
        for effect in self._peer.handle(event, now):
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send(to, envelope):
                going: Outgoing = envelope.payload or NOTHING
                if isinstance(envelope.message, Model):
                    envelope = envelope._replace(message=envelope.message._replace(digest=digest(going.frames)))
                header = encode(envelope)
                again = isinstance(envelope.message, Hello)  # a link that is only being made shall not cost a period
                kind, nbytes = type(envelope.message).__name__, len(header) + going.nbytes
                letter = Letter((header, *going.frames), nbytes, kind, (envelope.life, envelope.to))
                self._links.send(to, letter, clock.now(), again)
                self._counters = self._transport.bytes_sent, self._transport.bytes_received
            case Reborn(life):
                self._life.keep(life)
                self._membership.reborn(life)
            case Advance() | Adopt():
                if isinstance(effect, Advance) and effect.members is not None:  # which may have to be compiled
                    self._membership.busy(_RECOMPILES)
                    self._busy = True
                self._jobs.put(effect)
            case Note():
                self._note(effect)
            case Drop():
                self._drop(effect)
            case Unfit(reason):
                self._unfit = reason
                text = "leaving: its data, or its model, are not those of its neighbours"
                self._say(Said(text, "leaving", logging.ERROR))
                self._handle(Leave(idle=False), clock.now())
            case Done():
                self._done = True

    def _note(self, note: Note) -> None:
        if self._event_log.note(note):
            who = "this node" if note.about == self._task.node else f"node {note.about}"
            text = f"round {note.round}: {who}: {note.event}" + (f" ({note.detail})" if note.detail else "")
            self._say(Said(text, note.event, level_of(note.event), round=note.round, about=note.about))

    def _drop(self, drop: Drop) -> None:
        if self._event_log.drop(drop, self._peer.round):
            text = f"dropped a message, {drop.reason}: {drop.detail}"
            self._say(Said(text, "dropped", logging.WARNING, reason=drop.reason))
        elif str(count := self._event_log.dropped[drop.reason]).strip("0") == "1":  # 100, 1000, ...
            text = f"dropped {count} messages so far, {drop.reason}"
            self._say(Said(text, "dropped", logging.DEBUG, reason=drop.reason, count=count))

    def _write(self, event: str, about: int, round: int, detail: str, rounds: int) -> None:
        self._events.write(records.event(event, about, self._task.node, round, detail, clock.now(), rounds))

    # --- the end

    def result(self) -> NodeResult:
        """Save the model and say how it went. Only after `loop`."""
        self._work.replica.stop()  # after a fault of the loop it may still wait for what a script hands in
        self._jobs.put(None)
        self._worker.join()
        self._work.checkpoint()
        try:
            saved = self._work.save()
        except LocalError as error:
            self._fail(error)
            saved = self._work.digest()
        return NodeResult(
            self._task.node,
            self._work.life,
            self._peer.round,
            self._peer.booked,
            self._peer.voided,
            dict(self._event_log.dropped),
            self._peer.told < self._task.rounds,
            saved,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            str(self._error) if self._error else None,
            self._stopped_by,
            self._peer.alone,
            self._work.records_dropped + self._events.dropped,
            self._work.replica.diverged(),
            self._work.trace_whole,
            self._work.trained,
            self._work.untrained,
            self._unreached(),
            {f"{ends.sender} to {ends.to}": count for ends, count in self._transport.forwarded.items()} or None,
            self._trusted is not None,
        )

    def close(self) -> None:
        """Say good-bye and close what was opened."""
        self._opened.close()

    def _part(self) -> None:
        """Tell the membership, and close the sockets; the last words get a moment to leave."""
        ends = (self._done or self._error is not None) and not self._membership.lost
        if ends:
            self._membership.progress(self._peer.told)
            self._membership.leave()
        self._transport.close(linger=self._place.terms.timing.drain)
        if ends:
            self._wait_left()
        self._membership.close()

    def _wait_left(self) -> None:
        limit = clock.now() + self._place.terms.timing.drain
        poller = zmq.Poller()
        poller.register(self._membership.fileno(), zmq.POLLIN)
        while (left := limit - clock.now()) > 0:
            poller.poll(int(left * 1000))
            try:
                if any(isinstance(event, Gone) for event in self._membership.read()):
                    return
            except LocalError:  # it has ended: there is nothing to wait for
                return
