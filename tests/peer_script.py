"""Scripted events for a few real peers: a script is the lines of a transcript that begin with `$`.

    $ nodes 2 rounds=3          peers 0 and 1, each the other's neighbour; below are the options
    $ begin                     all start, meet, and are told to train round 1; without a word
    $ start 0                   a node starts
    $ members 0 1 2?            every node is told who is there (? suspect); those left out are over
    $ members 0 1 > 2           ... only node 2 is told
    $ train 0                   what node 0 was told to compute is done: Trained, or Finished
    $ deliver 0>1 1>0           the oldest message on each of these links arrives
    $ deliver                   all that is under way arrives, and what comes of it
    $ lose 0>1                  the oldest message on a link is lost
    $ cut 0>1, mend 0>1         all that is said on it is lost, until it is mended
    $ spoil 0>1                 it arrives with a payload that can't be used
    $ say 2>0 Offer 0 1 b       node 2 says something that its peer did not; an epoch is that of the receiver
    $ progress 1>0 8            so many bytes of a large message have got on between them, as node 0 sees it
    $ wait 3                    so many seconds pass; every node is told the time each second
    $ live 3                    ... and what is said meanwhile arrives
    $ freeze 1, thaw 1, kill 1, restart 1 kept_round=3, leave 1, leave 1 idle, accuse 1
    $ newcomer 2                a node beyond those of $ nodes is there, and not started yet
    $ admit 0 1 3               nodes 0 and 1 are told that there can be 3 nodes
    $ finish 1                  the computing gives up: Finished, whatever it was told
    $ state                     where everybody is
    $ quietly COMMAND           without a word

Links keep order, and break with the life of either end. Options of nodes: graph=path|complete, push (push instead of
exchange), meet=2 (the schedule has an exchange in every second round only), bandwidth=40, and every field of `Facts`
with a number or a word.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any

from p2pfl.protocol.events import (
    Admitted,
    Adopt,
    Advance,
    Done,
    Drop,
    Event,
    Finished,
    Leave,
    Members,
    Note,
    Progressed,
    Reborn,
    Received,
    Refused,
    Seen,
    Send,
    Start,
    Tick,
    Trained,
)
from p2pfl.protocol.messages import KINDS, Envelope, Message
from p2pfl.protocol.neighbor import EpochPlan, Facts, RoundPlan
from p2pfl.protocol.peer import Peer
from p2pfl.protocol.timing import LOCAL

TIMING = LOCAL._replace(
    hello_every=2.0, start_timeout=4.0, ping_every=2.0, silence=4.0, retry_every=4.0,
    deadline_min=8.0, deadline_max=8.0, patience=0.0, drain=4.0,
    bandwidth=1e18,
)  # fmt: skip


def short(event: Any) -> str:
    """Without payloads and epochs."""
    match event:
        case Send(to, envelope):
            return f"-> {to}: {sent(envelope)}"
        case Received(envelope):
            return f"<- {envelope.node}: {sent(envelope)}"
        case Refused(envelope):
            return f"<- {envelope.node}: {sent(envelope)}, which can't be used"
        case Advance():
            booked = [(b.node, b.number, b.opened, b.theirs.round) for b in event.booked]
            return f"advance {event.finished} -> {event.next}: mixes {booked}, members {event.members}" + (
                f", pushes to {event.speak}" if event.speak else ""
            )
        case Members():
            seen = [(s.node, s.life) + ((s.round,) if s.round else ()) for s in event.seen]
            accused = ", this node is held for dead" if event.accused else ""
            return f"members {seen}, over {sorted(event.over)}{accused}"
        case Adopt(node, _, round, _):
            return f"adopt the model of {node} after round {round}"
        case Note(name, about, round, detail):
            return f"note {name}, about {about}, round {round}" + (f": {detail}" if detail else "")
        case Drop(reason, detail):
            return f"drop {reason}: {detail}"
        case Reborn(life):
            return f"reborn as life {life}"
        case Progressed(other, _, _, nbytes):
            return f"Progressed, {nbytes} bytes with {other}"
        case Admitted(nodes):
            return f"Admitted, {nodes} nodes"
        case Leave(idle):
            return "Leave, idle" if idle else "Leave"
    return type(event).__name__


def sent(envelope: Envelope) -> str:
    """A message, with [life of the sender > life it is for] unless both are 1."""
    lives = "" if (envelope.life, envelope.to) == (1, 1) else f" [{envelope.life}>{envelope.to}]"
    return said(envelope.message) + lives


def said(message: Message) -> str:
    """A message without what is the same for all."""
    fields = {name: value for name, value in message._asdict().items() if name not in ("epoch", "federation", "schema")}
    return f"{type(message).__name__}({', '.join(f'{name}={value}' for name, value in fields.items())})"


class Script:
    """See the module. `lines` is the transcript so far."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.now = 0.0
        self.peers: dict[int, Peer] = {}
        self.alive: set[int] = set()  # and started
        self.cut: set[tuple[int, int]] = set()
        self.frozen: dict[int, list[Event]] = {}
        self.links: dict[tuple[int, int], deque[Envelope]] = {}
        self.jobs: dict[int, deque[Advance]] = {}
        self.over: dict[int, int] = {}
        self.members: dict[int, bool] = {}  # node -> suspected

    def run(self, command: str) -> None:
        """Carry out one line of a script."""
        verb, *words = command.split()
        if verb == "quietly":
            with self.silence():
                self.run(" ".join(words))
            return
        getattr(self, f"do_{verb}")(*words)

    @contextlib.contextmanager
    def silence(self) -> Any:
        kept, self.lines = self.lines, []
        yield
        self.lines = kept

    # --- the nodes

    def do_nodes(self, count: str, *options: str) -> None:
        given: dict[str, Any] = dict(option.partition("=")[::2] for option in options)
        self.count, self.graph = int(count), given.pop("graph", "complete")
        self.push, self.every = given.pop("push", None) is not None, int(given.pop("meet", 1))
        self.timing = TIMING._replace(bandwidth=float(given.pop("bandwidth", TIMING.bandwidth)))
        self.facts = {"rounds": 3, "lateness": 8, **{key: number(value) for key, value in given.items()}}
        for node in range(self.count):
            self.add(node, 1)

    def add(self, node: int, life: int, **more: Any) -> None:
        facts: dict[str, Any] = {
            "nodes": self.count, "expected": tuple(range(self.count)), "federation": "f", "schema": "s",
            "payload_bytes": 8, "timing": self.timing, "plan": lambda members: self.plan(node, members),
            **self.facts, **more,
        }  # fmt: skip
        self.peers[node] = Peer(Facts(node, life, **facts))
        self.jobs[node] = deque()
        for other in {*range(self.count), *self.peers}:
            self.links[node, other], self.links[other, node] = deque(), deque()

    def plan(self, node: int, members: tuple[int, ...]) -> EpochPlan:
        near = tuple(j for j in members if j != node and (self.graph != "path" or abs(j - node) == 1))

        def at(round: int) -> RoundPlan:
            if self.push:
                return RoundPlan(receives_from=near, sends_to=near)
            return RoundPlan(exchange=near if round % self.every == 0 else ())

        return EpochPlan(at, max(len(near), 1), near, self.every == 1)

    def do_newcomer(self, node: str) -> None:
        self.add(int(node), 1)

    def do_admit(self, *words: str) -> None:
        for node in words[:-1]:
            self.handle(int(node), Admitted(int(words[-1])))

    def do_start(self, *nodes: str) -> None:
        for node in map(int, nodes):
            self.alive.add(node)
            self.handle(node, Start())

    def do_begin(self) -> None:
        with self.silence():
            self.do_start(*map(str, self.peers))
            self.do_members(*map(str, self.peers))
            self.do_deliver()
        assert all(peer.stage == "training" for peer in self.peers.values())

    def do_members(self, *words: str) -> None:
        told = [int(word) for word in words[words.index(">") + 1 :]] if ">" in words else sorted(self.alive)
        there = words[: words.index(">")] if ">" in words else words
        self.members = {int(word.rstrip("?")): word.endswith("?") for word in there}
        self.over = {node: peer.life for node, peer in self.peers.items() if node not in self.members}
        for node in told:
            self.inform(node)

    def inform(self, node: int, accused: int = 0) -> None:
        seen = [Seen(j, self.peers[j].life, doubt, self.peers[j].round) for j, doubt in sorted(self.members.items())]
        self.handle(node, Members(tuple(seen), accused, tuple(self.over.items())))

    def do_accuse(self, node: str) -> None:
        self.inform(int(node), accused=self.peers[int(node)].life)

    def do_kill(self, node: str) -> None:
        self.alive.discard(int(node))
        for (source, to), link in self.links.items():
            if int(node) in (source, to):
                link.clear()

    def do_restart(self, node: str, *options: str) -> None:
        me = int(node)
        more = {name: number(value) for name, _, value in (option.partition("=") for option in options)}
        self.do_kill(node)
        self.add(me, self.peers[me].life + 1, **more)
        self.do_start(node)

    def do_freeze(self, node: str) -> None:
        self.frozen[int(node)] = []

    def do_thaw(self, node: str) -> None:
        for event in self.frozen.pop(int(node)):
            self.handle(int(node), event)

    def do_leave(self, node: str, idle: str = "") -> None:
        if idle:  # which is the answer to an Advance
            self.jobs[int(node)].clear()
        self.handle(int(node), Leave(idle=bool(idle)))

    def do_train(self, *nodes: str) -> None:
        for node in map(int, nodes):
            job = self.jobs[node].popleft()
            self.handle(node, Finished() if job.next is None else Trained(job.next))

    def do_finish(self, node: str) -> None:
        self.jobs[int(node)].clear()
        self.handle(int(node), Finished())

    # --- the network

    def do_deliver(self, *links: str) -> None:
        if links:
            for link in links:
                self.arrive(link)
            return
        while waiting := [pair for pair, link in sorted(self.links.items()) if link]:
            for source, to in waiting:
                self.arrive(f"{source}>{to}")

    def arrive(self, link: str, usable: bool = True) -> None:
        envelope = self.links[ends(link)].popleft()
        self.handle(ends(link)[1], Received(envelope) if usable else Refused(envelope._replace(payload=None)))

    def do_spoil(self, *links: str) -> None:
        for link in links:
            self.arrive(link, usable=False)

    def do_lose(self, *links: str) -> None:
        for link in links:
            self.lines.append(f"        lost {link}: {sent(self.links[ends(link)].popleft())}")

    def do_cut(self, *links: str) -> None:
        self.cut.update(map(ends, links))

    def do_mend(self, *links: str) -> None:
        self.cut.difference_update(map(ends, links))

    def do_say(self, link: str, kind: str, *fields: str) -> None:
        source, to = ends(link)
        peer = self.peers[to]
        message = next(each for each in KINDS if each.__name__ == kind)
        values = [number(field.replace("nothing", "")) for field in fields if "=" not in field]
        lives = {name: int(value) for name, _, value in (field.partition("=") for field in fields if "=" in field)}
        if "epoch" in message._fields:
            values.append(lives.pop("epoch", peer.state.epoch))
        life = self.peers[source].life if source in self.peers else 1
        envelope = Envelope(source, lives.get("life", life), lives.get("to", peer.life), message(*values))
        self.handle(to, Received(envelope))

    def do_progress(self, link: str, nbytes: str) -> None:
        source, to = ends(link)
        self.handle(to, Progressed(source, self.peers[source].life, self.peers[to].life, int(nbytes)))

    # --- time

    def do_wait(self, seconds: str) -> None:
        for _ in range(int(seconds)):
            self.now += 1.0
            for node in sorted(self.alive - self.frozen.keys()):
                self.handle(node, Tick())

    def do_live(self, seconds: str) -> None:
        for _ in range(int(seconds)):
            self.do_wait("1")
            self.do_deliver()

    def do_state(self) -> None:
        for node, peer in sorted(self.peers.items()):
            if node in self.alive:
                edges = [
                    f"; exchange {o.edge.number} with {j} {o.edge.phase}"
                    for j, o in sorted(peer.state.neighbors.items())
                ]
                where = f"node {node} is {peer.stage} in round {peer.round}, life {peer.life}"
                self.lines.append(f"        {where}, booked {peer.booked}, voided {peer.voided}{''.join(edges)}")

    def handle(self, node: int, event: Event) -> None:
        if node not in self.alive:
            return
        if node in self.frozen:
            self.frozen[node].append(event)
            return
        effects = self.peers[node].handle(event, self.now)
        if effects or not isinstance(event, Tick):
            self.lines.append(f"{self.now:4g} s  node {node} {short(event)}")
        self.lines += [f"            {short(effect)}" for effect in effects]
        for effect in effects:
            match effect:
                case Send(to, envelope) if to in self.alive and (node, to) not in self.cut:
                    self.links[node, to].append(envelope)
                case Advance():
                    assert not self.jobs[node], "the Advance before is not answered yet"
                    self.jobs[node].append(effect)
                case Done():
                    self.alive.discard(node)


def ends(link: str) -> tuple[int, int]:
    source, to = link.split(">")
    return int(source), int(to)


def number(word: str) -> Any:
    """A number where it is one, a truth, or the word."""
    if word in ("True", "False"):
        return word == "True"
    return int(word) if word.lstrip("-").isdigit() else word


def play(text: str) -> str:
    """Return a transcript with what its script brings about now."""
    head = [line for line in text.split("$", 1)[0].rstrip().splitlines()]
    script = Script()
    script.lines = [*head, ""]
    for line in text.splitlines():
        if line.startswith("$ "):
            script.lines.append(line)
            script.run(line[2:])
    return "\n".join(script.lines) + "\n"
