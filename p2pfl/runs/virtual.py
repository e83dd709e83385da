"""`driver.kind = "virtual"`: an experiment in virtual time, with the records and figures of a live run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from p2pfl.churn import Event
from p2pfl.config.virtual import Virtual
from p2pfl.drivers.live import clock
from p2pfl.drivers.virtual.network import Link
from p2pfl.drivers.virtual.run import Begun, VirtualResult, VirtualSetting
from p2pfl.drivers.virtual.run import run as run_virtual
from p2pfl.errors import ConfigError
from p2pfl.federation import tasks
from p2pfl.federation.federation import Federation, terms
from p2pfl.protocol.membership.timing import PROBE_TIMINGS
from p2pfl.reporting.terminal import View
from p2pfl.runs import resume
from p2pfl.runs.callbacks import Callbacks
from p2pfl.runs.progress import Watch
from p2pfl.runs.summary import Collected, collect, left, score


def setting(federation: Federation, unplanned: tuple[Event, ...] = ()) -> VirtualSetting:
    """Return what an experiment says of time and network. Raises ConfigError."""
    experiment, nodes = federation.experiment, len(federation.graph)
    check(experiment.virtual, nodes)
    return VirtualSetting(
        seed=experiment.seed,
        terms=terms(federation),
        probe_timing=PROBE_TIMINGS[experiment.network.preset],
        seconds=seconds(experiment.virtual, nodes),
        link=links(experiment.virtual),
        events=federation.churn,
        unplanned=unplanned,
    )


def notes(federation: Federation) -> list[str]:
    """Return notes on the network that the experiment describes."""
    experiment = federation.experiment
    probe_timing, link, preset = (
        PROBE_TIMINGS[experiment.network.preset],
        links(experiment.virtual),
        experiment.network.preset,
    )
    nodes = len(federation.graph)
    farthest = max((link(i, j).latency + link(i, j).jitter for i in range(nodes) for j in range(i)), default=0.0)
    if 2 * farthest <= probe_timing.ack_max:
        return []
    return [
        f"an answer takes up to {2 * farthest:g} s on this network, and with network.preset={preset!r} a node "
        f"is suspected after {probe_timing.ack_max:g} s: rounds will continue without it. Use a more patient preset"
    ]


def into(
    federation: Federation,
    out: Path,
    begun: Begun = lambda round, at_work: False,
    say: Callable[[str], None] = lambda text: None,
    unplanned: tuple[Event, ...] = (),
) -> VirtualResult:
    """Run a federation in virtual time; its records are in `out`/nodes/ID. See `virtual.run.run`."""
    for note in notes(federation):
        say(note)
    return run_virtual(tasks.tasks(federation), setting(federation, unplanned), out, begun, say)


def run(
    federation: Federation, out: Path, view: View, callbacks: Callbacks, unplanned: tuple[Event, ...] = ()
) -> Collected:
    """Run a federation in virtual time, and collect what its nodes leave.

    `unplanned`: what befalls nodes beside the churn of the experiment, and nobody expects.
    """
    began = clock.now()
    resume.again(out, view.say)
    nodes = list(federation.graph)
    directories = {node: out / "nodes" / str(node) for node in nodes}
    every = federation.experiment.evaluation.every if callbacks else 0
    watch = Watch(federation.experiment.rounds, directories, score(federation), every, federation.liars)
    shown = [began]

    def begun(round: int, at_work: Sequence[int]) -> bool:
        late = clock.now() - shown[0] > 0.2
        if late or callbacks:
            for text in watch.read():
                view.say(text)
        if late:
            shown[0] = clock.now()
            view.update(watch.status(dict.fromkeys(nodes, "alive"), clock.now()))
        return not callbacks.stop and callbacks.follow(watch, at_work)

    ended = into(federation, out, begun, view.say, unplanned)
    for text in watch.read():
        view.say(text)
    if not callbacks.stop:
        callbacks.follow(watch, ())
    callbacks.ended(out)
    seconds = clock.now() - began
    result = collected(federation, out, ended, callbacks.until)
    return result._replace(summary=replace(result.summary, seconds_startup=0.0, seconds_running=seconds))


def collected(federation: Federation, out: Path, ended: VirtualResult, until: int | None = None) -> Collected:
    """Return what came of a run in virtual time, from the records of its nodes. `until`: see `summary.collect`."""
    result = collect(federation, out, ended.began, until)
    summary = replace(
        result.summary,
        driver="virtual",
        lost=ended.lost,
        left=left(out, until) if until else ended.left,
        seconds_virtual=round(ended.ended - ended.began, 6),
        bytes_membership=ended.bytes_membership,
    )
    return result._replace(summary=summary)


def check(table: Virtual, nodes: int) -> None:
    """Raises ConfigError for what can't be in a federation of so many nodes."""
    given = table.node_step_seconds
    if given is not None and len(given) != nodes:
        raise ConfigError(
            f"virtual.node_step_seconds: {len(given)} numbers for {nodes} nodes; give one for each, or step_seconds"
        )
    seen: dict[tuple[int, ...], int] = {}
    for i, link in enumerate(table.links):
        where = f"virtual.links[{i}].nodes={list(link.nodes)}"
        if len(set(link.nodes)) != 2 or len(link.nodes) != 2:
            raise ConfigError(f"{where}: a link joins two nodes; write it nodes = [0, 1]")
        for node in link.nodes:
            if node >= nodes:
                raise ConfigError(f"{where}: there are nodes 0 to {nodes - 1}")
        key = tuple(sorted(link.nodes))
        if key in seen:
            raise ConfigError(f"{where}: is in links[{seen[key]}] already; merge the two")
        seen[key] = i


def seconds(table: Virtual, nodes: int) -> tuple[float, ...]:
    """Seconds of a local step of each node."""
    return table.node_step_seconds or (table.step_seconds,) * nodes


def links(table: Virtual) -> Callable[[int, int], Link]:
    """The link from one node to another."""
    fields = Link._fields
    common = {name: getattr(table, name) for name in fields}
    special = {
        tuple(sorted(link.nodes)): _link({**common, **{k: v for k, v in asdict(link).items() if v is not None}})
        for link in table.links
    }
    rest = _link(common)
    return lambda source, to: special.get((min(source, to), max(source, to)), rest)


def _link(given: dict[str, float | None]) -> Link:
    bandwidth = given["bandwidth"]
    named = {name: given[name] or 0.0 for name in Link._fields if name != "bandwidth"}
    return Link(bandwidth=math.inf if bandwidth is None else bandwidth, **named)
