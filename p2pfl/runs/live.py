"""`driver.kind = "live"`: a process for each node, over sockets, on this machine."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from p2pfl import churn, tree
from p2pfl.config import experiment as config
from p2pfl.config.experiment import Experiment, NodeFile
from p2pfl.data.stored import Stored
from p2pfl.drivers.live import clock, files, memory, ports, processes
from p2pfl.drivers.live.launcher import Launcher, Lives, Order
from p2pfl.errors import stopping
from p2pfl.federation.federation import Federation, model_shape
from p2pfl.learning.batching import chunk
from p2pfl.node import records, result
from p2pfl.node.free_memory import free_memory
from p2pfl.node.said import Said
from p2pfl.reporting.terminal import View
from p2pfl.runs.again import Again, plan, prepare
from p2pfl.runs.callbacks import Callbacks
from p2pfl.runs.progress import Watch
from p2pfl.runs.summary import Collected, collect, left, planned_losses, score
from p2pfl.types import Neighborhood

ENTRY = "p2pfl.cli:node_process"
"""What the processes of nodes call: the command `p2pfl node`."""

_PRELOAD = (
    "jax",
    "flax.nnx",
    "flax.linen",
    "optax",
    "zmq",
    "safetensors.numpy",
    "p2pfl.drivers.live.node",
    "p2pfl.federation.federation",
    "p2pfl.runs.node",
)

_FREEZE = 10.0
"""Seconds without a finished round after which a frozen node is thawed, or one returns: all wait for it then."""

_LEAVE = 8.0
"""Seconds that the nodes may take to leave when the run is told to end."""

_KILLED = 2.0
"""Seconds until a node that was killed is seen to have ended."""

_LONELY = 30.0
"""Seconds for which all that are left may wait for members of which none is to come back."""

_COLD = 15.0
"""Seconds, or that many of its rounds, that a node which somebody else has started may stand still in the end."""

_LOOK = 0.5
"""Seconds between looks at who else has started nodes of a run."""

_STALL = 5.0
"""Seconds, or that many of its rounds, that a node may stand still once others have finished."""


Look = Callable[[Launcher, Watch, float], bool]
"""Called many times a second while a run goes on; whether to end it there: its nodes are asked to leave."""


def _nothing(server: Launcher, watch: Watch, now: float) -> bool:
    """Let a run take its course."""
    return False


@contextlib.contextmanager
def prepared(
    experiment: Experiment, view: View, look: Look = _nothing
) -> Iterator[Callable[[Federation, Path, View, Callbacks], Collected]]:
    """Start the process that will start the nodes: it imports while this one builds and trains the baselines.

    `look`: what else happens to the nodes while they run.
    """
    files.raised()  # before anything is started that inherits it
    preload = [*_PRELOAD]
    if experiment.data.source in ("digits", "breast_cancer"):
        preload.append("sklearn.datasets")
    with Launcher(ENTRY, preload, view.say, memory.Watcher().killed) as server:
        yield partial(_run, server, look)


def check(federation: Federation) -> None:
    """Raises ConfigError where the nodes need more memory than this machine has, or more files than it allows."""
    files.fits(len(federation.graph), files.raised(), here=True)
    memory.fits(needs(federation), len(federation.graph), free_memory())


def needs(federation: Federation) -> memory.Needs:
    """Return the sizes of a node: of the one with the most neighbours and the longest rounds."""
    algorithm, slots = federation.algorithm, federation.schedule.neighbor.shape[2]
    model = model_shape(federation)
    state = jax.eval_shape(lambda p: algorithm.init(p, slots), model)
    around = Neighborhood(np.zeros(slots), np.zeros(slots))
    payload = tree.nbytes(jax.eval_shape(lambda s: algorithm.send(s, around)[1], state))
    dataset, task = federation.dataset, federation.task
    arrays = [dataset.train.x, dataset.train.y, dataset.test.x, dataset.test.y]
    arrays += [task.a, task.b] if task is not None else []
    item = np.dtype(federation.experiment.training.dtype).itemsize
    row = math.prod(dataset.train.x.shape[1:]) * item if len(dataset.train.x) else 0
    rows = max(map(len, federation.partition.train), default=0) + dataset.test.x.shape[0]  # its own, and those to test
    if isinstance(dataset.train.x, Stored):
        rows = min(chunk(dataset.test.x.shape[1:]), dataset.test.x.shape[0])  # what is looked at at once
    rows += max(map(len, federation.data.validation or ((),)))  # by which it watches its model
    return memory.Needs(
        leaves=[leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model)],
        state=tree.nbytes(state),
        payload=payload,
        received=payload // max(slots, 1) if algorithm.per_edge else payload,
        neighbors=slots,
        batches=int(federation.steps.max()) * federation.batch_size * row,
        data=sum(array.nbytes for array in arrays) + rows * row,
    )


def _orders(federation: Federation, out: Path, held: Sequence[int], again: Again) -> list[Order]:
    """Write the node files, as a person would for several machines. `held`: a port for each.

    Who is not there any more when the nodes begin, and is not to come back, has none.
    """
    nodes, events = len(federation.graph), again.events(federation.churn)
    address = {node: f"tcp://127.0.0.1:{port}" for node, port in enumerate(held)}
    together: tuple[str, ...] = ("--resume", "--after", str(again.round)) if again.round else ()
    together += tuple(word for node in again.without for word in ("--without", str(node))) if again.round else ()
    orders = []
    for node in range(nodes):
        directory = out / "nodes" / str(node)
        directory.mkdir(parents=True, exist_ok=True)
        peers = tuple(address[other] for other in range(nodes) if other != node)
        file = NodeFile("../../experiment.toml", node, address[node], peers, out=".")
        (directory / "node.toml").write_text(config.dump(file), "utf-8")
        argument = ("node", str(directory / "node.toml"), "--hold")
        back = sorted((e for e in events if e.node == node and e.event in ("rejoin", "join")), key=lambda e: e.round)
        returns = tuple(
            (*argument, "--return-in", str(event.round), *(("--resume",) if event.state == "kept" else ()))
            for event in back
        )
        later = node not in again.there or node in again.without
        if not later or returns:
            orders.append(Order(node, (*argument, *together), directory, returns, later))
    return orders


def _run(
    server: Launcher, look: Look, federation: Federation, out: Path, view: View, callbacks: Callbacks
) -> Collected:
    """Run a process for each node to their end, and collect what they leave."""
    again = plan(federation, out)
    if text := prepare(federation, out, again):
        view.say(text)
    with ports.reserved(len(federation.graph)) as held:
        return _run_at(server, look, federation, out, view, callbacks, _orders(federation, out, held, again), again)


def _told(callbacks: Callbacks, look: Look) -> Look:
    """Tell callbacks of the rounds that all have finished, but for who does not get on; then look."""
    if not callbacks:
        return look

    def both(server: Launcher, watch: Watch, now: float) -> bool:
        at_work = [node for node, member in server.members.items() if member.state == "alive"]
        gets_on = {*at_work} - {*watch.silent(at_work, now, _STALL)} - watch.waiting
        known = bool(gets_on) or not at_work  # where nobody gets on, nothing has ended
        return (known and callbacks.follow(watch, gets_on)) or look(server, watch, now)

    return both


def _run_at(
    server: Launcher, look: Look, federation: Federation, out: Path, view: View, callbacks: Callbacks,
    orders: Sequence[Order], again: Again,
) -> Collected:  # fmt: skip
    began = clock.now()
    view.say(Said(f"starting {len(orders)} node processes", "begins", nodes=len(orders)))
    every = federation.experiment.evaluation.every if callbacks else 0
    directories = {order.node: order.directory for order in orders}
    watch = Watch(federation.experiment.rounds, directories, score(federation), every, federation.liars)
    server.prepare(orders)
    pids = ", ".join(f"{node}: {member.pids[0]}" for node, member in server.members.items() if member.pids)
    view.say(Said(f"all nodes have compiled; their processes: {pids}", "ready"))
    elsewhere = Elsewhere(out, server)
    elsewhere.write()
    ready = clock.now()
    server.go()
    stopped_by = ""
    try:
        returns = _Returns(again.events(federation.churn))
        if _follow(returns, server, watch, view, _told(callbacks, look), elsewhere):
            elsewhere.stop()
            _ask_to_leave(server)
    except KeyboardInterrupt as interrupt:
        stopped_by = stopping(interrupt).name
        view.say(Said(f"{stopped_by}: asking the nodes to leave", "leaving", logging.WARNING))
        elsewhere.stop()
        _ask_to_leave(server)
    callbacks.ended(out)
    _write_launch(out, server, watch)
    seconds = clock.now() - ready
    collected = collect(federation, out, until=callbacks.until)
    lost = _lost(server, watch, elsewhere.late)
    cut_off = stopped_by or callbacks.early
    planned = planned_losses(federation, max(watch.rounds_of.values()) if cut_off else None)
    gone = left(out, callbacks.until)  # with those who were gone before all were started again
    lost |= {node: "crashed" for node in planned - server.members.keys() if node not in gone}
    summary = replace(
        collected.summary,
        driver="live",
        seconds_startup=ready - began,
        seconds_running=seconds,
        lost=tuple(sorted(lost)),
        lost_unplanned={str(node): how for node, how in sorted(lost.items()) if node not in planned},
        left=tuple(node for node in gone if node not in lost),
        interrupted=bool(stopped_by),
        stopped_by=stopped_by,
        incomplete=(server.broken,) if server.broken else (),
    )
    return collected._replace(summary=summary)


def _ask_to_leave(server: Launcher) -> None:
    """Let the nodes leave in good order; not for long, for whoever has sent the signal may send another one soon."""
    server.stop()
    limit = clock.now() + _LEAVE
    while server.running and clock.now() < limit:
        server.poll(0.05)
    for node, member in server.members.items():
        if member.state == "alive":
            server.give_up(node, f"has not left within {_LEAVE:g} s")
    limit = clock.now() + _KILLED
    while server.running and clock.now() < limit:
        server.poll(0.05)


def _lost(server: Launcher, watch: Watch, late: Collection[int]) -> dict[int, str]:
    """The nodes that died or never came, and how. `late`: those that came back when the others had finished."""
    states = {"lost": "", "failed": "", "away": "never came", "alive": "did not end", "starting": "did not begin"}
    lost = {}
    for node, member in server.members.items():
        if node in late:
            lost[node] = "came back when the others had finished"
        elif member.state in states and not _ended_elsewhere(member):
            round = watch.rounds_of[node]
            lost[node] = (member.how or states[member.state]) + (f" (after round {round})" if round else "")
    return lost


def _ended_elsewhere(member: Lives) -> bool:
    """A later life of the node, which somebody else has started, has ended in good order."""
    ended = result.read(member.order.directory)
    return member.state == "lost" and ended is not None and ended != member.before and ended.error is None


class Elsewhere:
    """Processes of nodes that somebody else has started in this run's directory: who does so adds them to pids.json."""

    def __init__(self, out: Path, server: Launcher) -> None:
        self._file, self._server = out / "pids.json", server
        self._looked, self._there = 0.0, set[int]()
        self.late: set[int] = set()  # those that had to be asked to leave, for all others had finished

    def write(self) -> None:
        """Write down the processes that the run itself has started."""
        processes.write(self._file, {node: member.pids for node, member in self._server.members.items()})

    def nodes(self, now: float) -> set[int]:
        """Return the nodes that are at work so."""
        if now - self._looked > _LOOK:
            self._looked = now
            own = {pid for member in self._server.members.values() for pid in member.pids}
            latest = {node: pids[-1] for node, pids in processes.read(self._file).items() if pids}
            self._there = {node for node, pid in latest.items() if pid not in own and processes.runs(pid, node)}
        return self._there

    def stop(self) -> None:
        """Ask them to leave."""
        for node in self.nodes(clock.now()):
            processes.send(processes.read(self._file)[node][-1], node, signal.SIGTERM)

    def end(self, nodes: Sequence[int]) -> None:
        """Ask some to leave that have come too late."""
        for node in nodes:
            if processes.send(processes.read(self._file)[node][-1], node, signal.SIGTERM):
                self.late.add(node)


def _follow(plan: _Returns, server: Launcher, watch: Watch, view: View, look: Look, elsewhere: Elsewhere) -> bool:
    """Show what happens until no node is at work any more; start and thaw the nodes that the experiment has planned.

    Returns whether it is to be ended before that.
    """
    while server.running or elsewhere.nodes(clock.now()):
        server.poll(0.05)
        now = clock.now()
        for text in watch.read():
            view.say(text)
        states = {node: member.state for node, member in server.members.items()}
        view.update(watch.status({**states, **dict.fromkeys(elsewhere.nodes(now), "alive")}, now))
        plan.look(server, watch, now)
        if look(server, watch, now):
            return True
        at_work = [node for node, state in states.items() if state == "alive"]
        if any(state == "finished" for state in states.values()):
            for node in watch.standing_still(at_work, now, _STALL):
                server.give_up(node, f"gave no sign of life since round {watch.rounds_of[node]}")
        elif at_work and not plan.more and not elsewhere.nodes(now):
            still = watch.standing_still(at_work, now, _LONELY)
            if watch.waiting.intersection(still) == {*at_work}:
                text = f"node {', '.join(map(str, still))}: wait for members that do not come; asked to leave"
                view.say(Said(text, "leaving", logging.WARNING))
                _ask_to_leave(server)
        if not server.running:  # who comes back when the others have finished would wait for them
            elsewhere.end(watch.standing_still(sorted(elsewhere.nodes(now)), now, _COLD))
    for text in watch.read():
        view.say(text)
    states = {node: member.state for node, member in server.members.items()}
    view.update(watch.status(states, clock.now()))
    return False


class _Returns:
    """The returns, joins and ends of freezes that are still to come, due when a node begins the round before."""

    def __init__(self, events: Sequence[churn.Event]) -> None:
        due = [(e.round, "call", e.node) for e in events if e.event in ("rejoin", "join")]
        due += [(e.round + e.rounds, "thaw", e.node) for e in events if e.event == "freeze"]
        self._due = sorted(due)
        self._thawed: set[int] = set()
        self._at: tuple[int, float] | None = None  # the furthest round, and when it was first seen

    @property
    def more(self) -> bool:
        """Something is still to come."""
        return bool(self._due)

    def look(self, server: Launcher, watch: Watch, now: float) -> None:
        """Do what is due by the furthest round that a node has finished, or by time where all wait for what is next."""
        furthest = max(watch.rounds_of.values(), default=0)
        if self._at is None or furthest > self._at[0]:
            self._at = (furthest, now)
        waits = now - self._at[1] > _FREEZE
        while self._due and (self._due[0][0] <= furthest + 2 or waits):
            _, kind, node = self._due.pop(0)
            if kind == "call":
                server.call(node)
            else:
                self._thawed.add(node)
            waits = False
        for node in self._thawed:  # again and again: it may be so far behind that it freezes only now
            server.thaw(node)


def _write_launch(out: Path, server: Launcher, watch: Watch) -> None:
    """Write the launcher's own events, beside those of the nodes."""
    lines = records.Lines(out / "launch.jsonl")
    for event in server.events:
        lines.write({**event, "round": watch.at(event["node"], event["time"]) + 1})
    lines.close()
