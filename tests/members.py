"""A federation's membership in virtual time: members on a virtual network, with crashes, freezes, cuts and restarts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from p2pfl.drivers.virtual.network import Link, Network, Queue
from p2pfl.protocol.membership.events import (
    Accused,
    Admit,
    Changed,
    Effect,
    Event,
    Gone,
    Heard,
    MemberDied,
    MemberDrop,
    MemberReborn,
    MemberStart,
    MemberTick,
    OwnDocument,
    Say,
    Told,
)
from p2pfl.protocol.membership.membership import Membership
from p2pfl.protocol.membership.seeds import Seed
from p2pfl.protocol.membership.statement import Sign, Verify, statement
from p2pfl.protocol.membership.table import ALIVE, DEAD, SUSPECT, Me, MemberEntry
from p2pfl.protocol.membership.timing import LAN, ProbeTiming

CLUSTER = "federation"
FAR = Link(latency=0.002, jitter=0.01)


def address(place: int) -> str:
    return f"tcp://v:{place}"


class Keys:
    """Signatures that cost little, each node's its own: nobody here looks at the others' secrets."""

    def sign(self, node: int) -> Sign:
        return lambda said: hashlib.blake2b(said, key=b"secret of node %d" % node).digest()

    def verify(self, node: int, said: bytes, signature: bytes) -> bool:
        return self.sign(node)(said) == signature

    def signed(self, entry: MemberEntry, by: int | None = None, cluster: str = CLUSTER) -> MemberEntry:
        """An entry as its member has signed it; or as somebody else has."""
        return entry._replace(signature=self.sign(entry.node if by is None else by)(statement(cluster, entry)))


KEYS = Keys()


def keyed(node: int, keys: Any) -> dict[str, Sign | Verify]:
    """What a membership is given of keys: nothing where there are none."""
    return {"sign": keys.sign(node), "verify": keys.verify} if keys is not None else {}


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
    """Places are numbers; node n runs at place n unless said otherwise. An accused node is reborn at once.

    `keys`: what members sign with, and then links authenticate them, too. `documents`: of each node; who is told of
    another one goes on with both, line by line.
    """

    def __init__(
        self, seed: int, link: Link | Callable[[int, int], Link] = FAR, timing: ProbeTiming = LAN, keys: Any = None
    ) -> None:
        self.network = Network(seed, link if callable(link) else lambda source, to: link)
        self.queue, self.seed, self.timing = Queue(), seed, timing
        self.at: dict[int, Process] = {}
        self.said: Counter[int] = Counter()
        self.dropped: Counter[str] = Counter()
        self.reborn = True
        self.keys = keys
        self.admitted = Admit(None)
        self.documents: dict[int, bytes] = {}
        self.log: Callable[[float, int, Any], None] = lambda now, place, what: None

    @property
    def now(self) -> float:
        return self.queue.now

    def start(
        self, node: int, seeds: Sequence[int] = (0,), life: int = 1, place: int | None = None, dials: bool = False
    ) -> Process:
        """`dials`: it can't be dialled, and is reached by the connections that it has made."""
        place = node if place is None else place
        me = Me(node, life, f"dials://{node}" if dials else address(place))
        member = Membership(
            me, CLUSTER, [Seed(address(s)) for s in seeds], self.timing, self.seed, **keyed(node, self.keys),
            admitted=self.admitted, document=self.documents.get(node, b""),
        )  # fmt: skip
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
            to = int(effect.address.rsplit(":", 1)[1].removeprefix("//"))
            heard = Heard(effect.data, None if self.keys is None else process.me.node)
            for time in self.network.datagram(place, to, len(effect.data), self.now):
                self.queue.put(time, (to, None, heard))
            return
        process.effects.append((self.now, effect))
        if isinstance(effect, Changed):
            for m in effect.members:
                process.since.setdefault((m.node, m.life), {}).setdefault(m.state, self.now)
        elif isinstance(effect, Accused) and self.reborn:
            self.queue.put(self.now, (place, process, MemberReborn(effect.life + 1)))
        elif isinstance(effect, MemberDrop):
            self.dropped[effect.reason] += 1
        elif isinstance(effect, Told):
            mine, node = self.documents[process.me.node], process.me.node
            self.documents[node] = b"\n".join(sorted({*mine.split(b"\n"), *effect.document.split(b"\n")}))
            self.queue.put(self.now, (place, process, OwnDocument(self.documents[node])))
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
            if what is not None:
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
        """With its machine: it has no last word."""
        self.at[place].running = False

    def kill(self, place: int) -> None:
        """The node alone: its membership is there for a moment."""
        self.tell(place, MemberDied())

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
