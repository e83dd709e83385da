"""A federation in a virtual world: the nodes' real computations, their records, and what became of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from p2pfl import churn
from p2pfl.churn import Event
from p2pfl.drivers.virtual.network import Link
from p2pfl.drivers.virtual.node import NodeSetup, VirtualNode
from p2pfl.drivers.virtual.scripted_churn import Script
from p2pfl.drivers.virtual.world import World
from p2pfl.node import records
from p2pfl.node.plan import Terms, facts
from p2pfl.node.result import NodeResult
from p2pfl.node.task import Task
from p2pfl.node.worker import Host, Worker
from p2pfl.protocol.events import Event as PeerEvent
from p2pfl.protocol.events import Leave, Received, Refused
from p2pfl.protocol.membership.timing import ProbeTiming
from p2pfl.protocol.messages import CARRIERS, Envelope, Model
from p2pfl.protocol.timing import starting
from p2pfl.types import State

_SEEDS = 8
"""Other nodes whose addresses a node is given at most; one that is there is enough."""

_PATIENCE = 4.0
"""Nobody has got on for so many times the longest wait that there is: something waits for ever."""


Begun = Callable[[int, Sequence[int]], bool]
"""Takes a round that the first node begins and the nodes that are at work; whether to end the run there."""


class VirtualSetting(NamedTuple):
    """The setting of a run, besides the nodes' tasks."""

    seed: int  # of the network's chances and of the membership's
    terms: Terms
    probe_timing: ProbeTiming
    seconds: Sequence[float]  # that a local step of each node takes
    link: Callable[[int, int], Link]  # of each direction
    events: tuple[Event, ...] = ()
    unplanned: tuple[Event, ...] = ()  # happen as well, and no node expects them


class VirtualResult(NamedTuple):
    """The end of a virtual run: what became of the nodes, and when."""

    lost: tuple[int, ...]  # crashed, and not back
    left: tuple[int, ...]  # in good order, before the last round
    began: float  # virtual seconds at which the first round began
    ended: float  # ... and at which the last node had finished
    bytes_membership: int  # that the memberships said, all nodes together


class Snapshot(NamedTuple):
    """The state of a node after a round."""

    state: State
    table: dict[str, Any]


class Memory:
    """Keeps a node's latest state as a store would, in memory: arrays do not change."""

    def __init__(self) -> None:
        self.latest: Snapshot | None = None

    def save(self, state: State, table: dict[str, Any]) -> str | None:
        """Never goes wrong."""
        self.latest = Snapshot(state, table)
        return None

    def load(self, like: Callable[[dict[str, Any]], State]) -> tuple[Snapshot | None, list[str]]:
        """The latest; there is nothing to say about it."""
        return self.latest, []


def run(
    tasks: Sequence[Task],
    setting: VirtualSetting,
    out: Path,
    begun: Begun = lambda round, at_work: False,
    say: Callable[[str], None] = lambda text: None,
) -> VirtualResult:
    """Run the tasks of all nodes to their end; their records are in `out`/nodes/ID, as those of live nodes.

    The records' times are virtual seconds. `begun` is called when the first node begins a round, with the nodes that
    are at work; where it says so, all are asked to leave. Raises LocalError when nodes wait for ever.
    """
    return _VirtualRun(tasks, setting, out, begun, say).run()


class _VirtualRun:
    def __init__(
        self,
        tasks: Sequence[Task],
        setting: VirtualSetting,
        out: Path,
        begun: Begun,
        say: Callable[[str], None],
    ) -> None:
        self._tasks, self._setting, self._begun, self._say = tasks, setting, begun, say
        self._directories = {task.node: out / "nodes" / str(task.node) for task in tasks}
        self._lines = {}
        for node, directory in self._directories.items():
            directory.mkdir(parents=True, exist_ok=True)
            self._lines[node] = records.Lines(directory / "events.jsonl")
        self._launch = records.Lines(out / "launch.jsonl")
        self._memories = {task.node: Memory() for task in tasks}
        self._works: dict[int, Worker] = {}
        events = setting.events
        self.world = World(setting.seed, setting.link, churn.cut(events), churn.lags(events))
        self.world.ends.append(self._over)  # before the script, which may begin the next life at once
        self._script = Script(self.world, (*events, *setting.unplanned), len(tasks), self._begin)
        self._first: float | None = None

    def run(self) -> VirtualResult:
        """To the end."""
        try:
            self._script.start()
            self.world.run(patience=self._patience())
        finally:
            for work in self._works.values():
                work.close()
            for lines in (*self._lines.values(), self._launch):
                lines.close()
        nodes = self.world.nodes
        return VirtualResult(
            lost=tuple(i for i, node in sorted(nodes.items()) if not node.done),
            left=tuple(i for i, node in sorted(nodes.items()) if node.done and node.peer.round < node.facts.rounds),
            began=self._first or 0.0,
            ended=max((node.ended for node in nodes.values()), default=0.0),
            bytes_membership=self.world.said,
        )

    def _patience(self) -> float:
        terms, alone = self._setting.terms, self._setting.probe_timing.alone
        timing = starting(terms.timing, terms.nodes)
        own = max(self._setting.seconds) * max(task.batching.width for task in self._tasks)
        longest = max(timing.start_timeout, timing.deadline_max, timing.drain, alone, timing.patience * own)
        return _PATIENCE * (longest + own + 60.0)

    # --- lives

    def _begin(self, node: int, join_round: int, kept: bool) -> None:
        task, setting, memory = self._tasks[node], self._setting, self._memories[node]
        if any(event.node == node and event.round == join_round for event in setting.unplanned):
            join_round = 0  # nobody has told it
        mine: list[VirtualNode] = []
        host = Host(
            now=lambda: self.world.now,
            traffic=lambda: (mine[0].sent, mine[0].received) if mine else (0, 0),
            happens=lambda round: self._happens(node, round),
            say=self._say,
            store=memory,
            every=1,
        )
        work = Worker(task, self._directories[node], host)
        if kept and memory.latest is not None:
            work.resume()
        life = self.world.life(node)
        work.begin(life)
        payload, model = work.payloads, work.models

        def taken(envelope: Envelope) -> PeerEvent:
            """As it comes out of a codec: raw frames, and none with a number that is not finite."""
            frames, message = envelope.payload.frames, envelope.message
            assert isinstance(message, CARRIERS)
            known = model if isinstance(message, Model) else payload
            fit = known.of(envelope.node, message.round).finite(frames)
            return Received(envelope._replace(payload=frames)) if fit else Refused(envelope._replace(payload=None))

        others = [j for j in range(len(self._tasks)) if j != node and j not in task.neighbors]
        given = NodeSetup(
            computing=work,
            seconds=lambda round: self._seconds(work, round),
            probe_timing=setting.probe_timing,
            seeds=(*task.neighbors, *others)[:_SEEDS],
            taken=taken,
            log=lambda event, about, round, detail, rounds: self._log(node, event, about, round, detail, rounds),
        )
        self._works[node] = work
        mine.append(VirtualNode(self.world, facts(task, work, setting.terms, life, join_round), given))
        self.world.add(mine[0])

    def _happens(self, node: int, round: int) -> str | None:
        if round > self.world.began:
            self._first = self.world.now if self._first is None else self._first
            nodes = self.world.nodes.items()
            at_work = [i for i, each in nodes if each.up and not (each.done or each.frozen or each.peer.waits)]
            if self._begun(round, at_work):
                self.world.at(0.0, self._leave)
        return self._script.fate(node, round)

    def _leave(self) -> None:
        """Ask all nodes to leave, as a signal does."""
        self._script.end()
        for node in list(self.world.nodes.values()):
            if node.up and not node.done:
                node.handle(Leave(idle=False))

    def _seconds(self, work: Worker, round: int) -> float:
        schedule, node = work.task.schedule, work.task.node
        trains = bool(schedule.trains[schedule.row(round)])
        return float(self._setting.seconds[node]) * work.task.batching.width if trains else 0.0

    def _over(self, node: VirtualNode) -> None:
        """A life is over, in good order or not."""
        me, work = node.facts.node, self._works.pop(node.facts.node)
        if node.done:
            self._result(node, work)
        else:
            self._launch.write(records.event("crash", me, None, node.peer.round, "planned", self.world.now))
        work.close()

    # --- records

    def _result(self, node: VirtualNode, work: Worker) -> None:
        NodeResult(
            node=node.facts.node,
            life=work.life,
            round=node.peer.round,
            booked=node.peer.booked,
            voided=node.peer.voided,
            dropped=dict(sorted(node.event_log.dropped.items())),
            left=node.peer.told < node.facts.rounds,
            digest=work.save(),
            error=str(node.error) if node.error else None,
            alone=node.peer.alone,
            records_dropped=work.records_dropped + self._lines[node.facts.node].dropped,
            diverged=work.replica.diverged(),
            trace_whole=work.trace_whole,
            trained=work.trained,
            untrained=work.untrained,
        ).write(self._directories[node.facts.node])

    def _log(self, by: int, event: str, about: int, round: int, detail: str, rounds: int) -> None:
        self._lines[by].write(records.event(event, about, by, round, detail, self.world.now, rounds))
