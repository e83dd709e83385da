"""One live node: a poll loop over its sockets and a thread that trains. Everything it decides is `Peer`'s."""

from __future__ import annotations

import json
import os
import queue
import resource
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import zmq

from p2pfl import records
from p2pfl.errors import LocalError, RemoteError
from p2pfl.live import clock
from p2pfl.live.transport import Transport
from p2pfl.live.turns import turns
from p2pfl.live.wire import Outgoing
from p2pfl.live.work import Work
from p2pfl.protocol.codec import NonFinite, decode, encode
from p2pfl.protocol.events import (
    Adopt,
    Advance,
    Done,
    Drop,
    Effect,
    Event,
    Finished,
    Leave,
    Note,
    Received,
    Refused,
    Send,
    Start,
    Tick,
)
from p2pfl.protocol.messages import Hello, Model, Offer, Push
from p2pfl.protocol.neighbour import Facts
from p2pfl.protocol.peer import Peer
from p2pfl.protocol.timing import Timing
from p2pfl.task import Task

_TICK = 0.05
"""Seconds between looks at the clock when nothing comes in."""

_DETAILS = 10
"""Dropped messages that are written down one by one, for each reason; all are counted."""


class Place(NamedTuple):
    """Where a node is and whom it talks to."""

    listen: str
    addresses: Mapping[int, str]
    federation: str
    timing: Timing
    lateness: int
    directory: Path


class Result(NamedTuple):
    """How a node's run ended; also written to result.json."""

    node: int
    life: int
    round: int
    booked: int
    voided: int
    dropped: dict[str, int]
    left: bool  # before the last round
    digest: str
    memory_peak: int  # bytes of main memory
    error: str | None


def run(task: Task, place: Place, say: Callable[[str], None], ready: Callable[[], None]) -> Result:
    """Run one node to its end. `ready` is called when all is compiled and may wait; the sockets open after it."""
    place.directory.mkdir(parents=True, exist_ok=True)
    counters = [0, 0]
    work = Work(task, place.directory, lambda: (counters[0], counters[1]))
    work.warm()
    ready()
    life = clock.life()
    work.begin(life)
    node = _Node(task, place, work, life, say, counters)
    try:
        node.loop()
        result = node.result()
        partial = place.directory / "result.partial"
        partial.write_text(json.dumps(result._asdict(), indent=1))
        partial.rename(place.directory / "result.json")
        return result
    finally:
        node.close()


class _Node:
    def __init__(
        self, task: Task, place: Place, work: Work, life: int, say: Callable[[str], None], counters: list[int]
    ) -> None:
        self._task, self._work, self._say, self._counters = task, work, say, counters
        self._events = records.Lines(place.directory / "events.jsonl")
        payload, model = work.payloads.format, work.models.format
        self._formats = {Offer: payload, Push: payload, Model: model}
        cap = max(payload.schema.frame_cap, model.schema.frame_cap)
        self._transport = Transport(place.listen, place.addresses, cap)
        facts = Facts(
            node=task.node,
            life=life,
            neighbors=tuple(place.addresses),
            plan=turns(task),
            slots=task.slots,
            rounds=task.rounds,
            federation=place.federation,
            schema=payload.schema.digest + model.schema.digest,
            payload_bytes=sum(payload.schema.nbytes),
            timing=place.timing,
            lateness=place.lateness,
            per_edge=task.per_edge,
            join_round=min((r for r in task.rejoins if r > work.last_round), default=0) if work.last_round else 0,
        )
        self._facts, self._peer = facts, Peer(facts)
        self._dropped: Counter[str] = Counter()
        self._alone = 0
        self._jobs: queue.SimpleQueue[Advance | Adopt | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Event | LocalError] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._signals: list[int] = []
        self._error: LocalError | None = None
        self._done = False
        self._worker = threading.Thread(target=self._compute, name="work", daemon=True)

    # --- the thread that computes

    def _compute(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if isinstance(job, Adopt):
                    self._work.adopt(job)
                    continue
                self._results.put(self._work.advance(job))
            except LocalError as error:
                self._results.put(error)
            os.eventfd_write(self._wake, 1)

    # --- the loop

    def loop(self) -> None:
        """Until the peer is done."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: self._signals.append(number))
        poller = zmq.Poller()
        poller.register(self._transport.socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        self._worker.start()
        ticked = clock.now()
        self._handle(Start(), ticked)
        while not self._done:
            poller.poll(int(_TICK * 1000))
            now = clock.now()
            for frames in self._transport.receive():
                self._take(frames, now)
            self._collect(now)
            if now - ticked >= _TICK:
                ticked = now
                self._tick(now)

    def _tick(self, now: float) -> None:
        for reason in self._transport.watch():
            self._drop(Drop(reason, "a connection that no neighbour introduced itself on"))
        if self._signals:
            self._signals.clear()
            self._say("leaving: asked to stop")
            self._handle(Leave(idle=False), now)
        self._handle(Tick(), now)

    def _take(self, frames: list[zmq.Frame], now: float) -> None:
        try:
            envelope = decode([frame.buffer for frame in frames], self._formats)
        except NonFinite as error:
            self._handle(Refused(error.envelope), now)
            return
        except RemoteError as error:
            self._drop(Drop(error.reason, error.detail))
            return
        if isinstance(envelope.message, Hello) and envelope.node in self._peer.neighbours:
            self._transport.introduced(frames[0])
        if envelope.payload is not None:  # keep the frames themselves: a buffer dies with its frame
            envelope = envelope._replace(payload=frames[1:])
        self._handle(Received(envelope), now)

    def _collect(self, now: float) -> None:
        while True:
            try:
                result = self._results.get_nowait()
            except queue.Empty:
                break
            if isinstance(result, LocalError):
                failure = result
                self._say(f"stopping: {failure}")
                result = Finished() if self._error else Leave(idle=True)
                self._error = self._error or failure
            self._handle(result, now)
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return

    # --- effects

    def _handle(self, event: Event, now: float) -> None:
        for effect in self._peer.handle(event, now):
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send(to, envelope):
                header = encode(envelope)
                if isinstance(envelope.payload, Outgoing):
                    going = envelope.payload
                    self._transport.send(to, (header, *going.frames), len(header) + going.nbytes)
                else:
                    self._transport.send(to, (header,), len(header))
                self._counters[:] = self._transport.bytes_sent, self._transport.bytes_received
            case Advance() | Adopt():
                self._jobs.put(effect)
            case Note():
                self._note(effect)
            case Drop():
                self._drop(effect)
            case Done():
                self._done = True

    def _note(self, note: Note) -> None:
        if note.event == "alone" and note.about == self._task.node:
            self._alone += 1
            if self._alone > 1:  # counted in the metrics: a round in which nothing arrived
                return
        self._write(note.event, note.about, note.round, note.detail)
        who = "this node" if note.about == self._task.node else f"node {note.about}"
        self._say(f"round {note.round}: {who}: {note.event}" + (f" ({note.detail})" if note.detail else ""))

    def _drop(self, drop: Drop) -> None:
        self._dropped[drop.reason] += 1
        if self._dropped[drop.reason] <= _DETAILS:
            self._write("dropped", self._task.node, self._peer.round, f"{drop.reason}: {drop.detail}")
            self._say(f"dropped a message, {drop.reason}: {drop.detail}")

    def _write(self, event: str, about: int, round: int, detail: str) -> None:
        self._events.write(
            {
                "event": event,
                "node": about,
                "by": self._task.node,
                "round": round,
                "detail": detail,
                "time": clock.now(),
            }
        )

    # --- the end

    def result(self) -> Result:
        """Save the model and say how it went. Only after `loop`."""
        self._jobs.put(None)
        self._worker.join()
        digest = self._work.save()
        return Result(
            self._task.node,
            self._work.name,
            self._peer.round,
            self._peer.booked,
            self._peer.voided,
            dict(self._dropped),
            self._peer.round < self._task.rounds,
            digest,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            str(self._error) if self._error else None,
        )

    def close(self) -> None:
        """Close sockets and files; the last words get a moment to leave."""
        self._transport.close(linger=self._facts.timing.drain)
        self._work.close()
        self._events.close()
        os.close(self._wake)
