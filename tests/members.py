"""A federation's membership in virtual time: members on a virtual network, with crashes, freezes, cuts and restarts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from p2pfl.drivers.virtual.network import Link, Network, Queue
from p2pfl.protocol.membership.events import (
    Accused,
    Changed,
    Effect,
    Event,
    Gone,
    Heard,
    MemberDrop,
    MemberReborn,
    MemberStart,
    MemberTick,
    Say,
)
from p2pfl.protocol.membership.membership import Membership
from p2pfl.protocol.membership.table import ALIVE, DEAD, SUSPECT, Me
from p2pfl.protocol.membership.timing import LAN, ProbeTiming

CLUSTER = "federation"
FAR = Link(latency=0.002, jitter=0.01)


def address(place: int) -> str:
    return f"tcp://v:{place}"


class Process:
    """A member at a place. `since[(node, life)]`: state -> when this member first held it."""

    def __init__(self, member: Membership, me: Me) -> None:
        self.member, self.me = member, me
        self.running = True
        self.frozen = 0.0
        self.waking = float("inf")
        self.effects: list[tuple[float, Effect]] = []
        self.since: dict[tuple[int, int], dict[str, float]] = {}


class World:
    """Places are numbers; node n runs at place n unless said otherwise. An accused node is reborn at once."""

    def __init__(self, seed: int, link: Link | Callable[[int, int], Link] = FAR, timing: ProbeTiming = LAN) -> None:
        self.network = Network(seed, link if callable(link) else lambda source, to: link)
        self.queue, self.seed, self.timing = Queue(), seed, timing
        self.at: dict[int, Process] = {}
        self.said: Counter[int] = Counter()
        self.dropped: Counter[str] = Counter()
        self.reborn = True
        self.log: Callable[[float, int, Any], None] = lambda now, place, what: None

    @property
    def now(self) -> float:
        return self.queue.now

    def start(self, node: int, seeds: Sequence[int] = (0,), life: int = 1, place: int | None = None) -> Process:
        place = node if place is None else place
        me = Me(node, life, address(place))
        member = Membership(me, CLUSTER, [address(s) for s in seeds], self.timing, self.seed)
        self.at[place] = Process(member, me)
        self.tell(place, MemberStart())
        return self.at[place]

    def all(self, n: int, every: float = 0.0, settle: float = 20.0) -> World:
        """n members that know one seed each, started one by one; and time until they know each other."""
        for node in range(n):
            self.start(node, [0 if node else 1])
            self.run(every)
        self.run(settle)
        for node in range(n):
            assert self.living(node) == list(range(n)), f"seed {self.seed}: node {node} knows {self.living(node)}"
        return self

    def tell(self, place: int, event: Event) -> None:
        process, now = self.at[place], self.queue.now
        self.log(now, place, event)
        for effect in process.member.handle(event, now):
            self._carry_out(place, process, effect)
        if process.member.wake < process.waking:
            process.waking = max(now, process.member.wake)
            self.queue.put(process.waking, (place, process, None))

    def _carry_out(self, place: int, process: Process, effect: Effect) -> None:
        self.log(self.now, place, effect)
        if isinstance(effect, Say):
            self.said[place] += 1
            to = int(effect.address.rsplit(":", 1)[1])
            for time in self.network.datagram(place, to, len(effect.data), self.now):
                self.queue.put(time, (to, None, effect.data))
            return
        process.effects.append((self.now, effect))
        if isinstance(effect, Changed):
            for m in effect.members:
                process.since.setdefault((m.node, m.life), {}).setdefault(m.state, self.now)
        elif isinstance(effect, Accused) and self.reborn:
            self.queue.put(self.now, (place, process, MemberReborn(effect.life + 1)))
        elif isinstance(effect, MemberDrop):
            self.dropped[effect.reason] += 1
        elif isinstance(effect, Gone):
            process.running = False

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let so much time pass; or less, until something is so, which is looked at every 20 ms."""
        end = self.now + seconds
        looked = self.now
        while self.queue.due <= end:
            time, (place, process, what) = self.queue.next()
            there = self.at.get(place)
            if there is None or not there.running or (process is not None and process is not there):
                continue
            if there.frozen > time:
                self.queue.put(there.frozen, (place, process, what))
                continue
            if isinstance(what, bytes):
                self.tell(place, Heard(what))
            elif what is not None:
                self.tell(place, what)
            elif time >= there.waking:
                there.waking = float("inf")
                self.tell(place, MemberTick())
            if until is not None and time - looked >= 0.02:
                looked = time
                if until():
                    return True
        self.queue.put(end, (-1, None, None))
        self.queue.now = end
        return until is not None and until()

    def crash(self, place: int) -> None:
        self.at[place].running = False

    def freeze(self, place: int, seconds: float) -> None:
        self.at[place].frozen = self.now + seconds

    # --- what is held

    def running(self) -> list[int]:
        return [place for place, process in self.at.items() if process.running]

    def held(self, place: int, node: int) -> Any:
        return next((m for m in self.at[place].member.members if m.node == node), None)

    def living(self, place: int) -> list[int]:
        return [m.node for m in self.at[place].member.members if m.state in (ALIVE, SUSPECT)]

    def view(self, place: int) -> tuple[tuple[int, int], ...]:
        """What an epoch is the digest of."""
        return tuple((m.node, m.life) for m in self.at[place].member.members if m.state in (ALIVE, SUSPECT))

    def views(self) -> set[tuple[tuple[int, int], ...]]:
        return {self.view(place) for place in self.running()}

    def first(self, state: str, node: int, life: int = 1) -> float:
        """When anybody first held this state of a node."""
        times = [p.since.get((node, life), {}).get(state, float("inf")) for p in self.at.values()]
        return min(times)

    def last(self, state: str, node: int, life: int = 1) -> float:
        """When all that run held this state of a node; infinity when they do not."""
        running = [self.at[p] for p in self.running() if self.at[p].me.node != node]
        return max(p.since.get((node, life), {}).get(state, float("inf")) for p in running)

    def deaths(self) -> int:
        """How many lives anybody has held dead."""
        return len({key for p in self.at.values() for key, states in p.since.items() if DEAD in states})

    def of(self, kind: type) -> list[tuple[float, int, Any]]:
        """Effects of a kind: when, at which place, what."""
        return [(t, place, e) for place, p in self.at.items() for t, e in p.effects if isinstance(e, kind)]
