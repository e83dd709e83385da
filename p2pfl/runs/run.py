"""Runs an experiment on this machine, with its baselines, and leaves a run directory."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from p2pfl import churn, tree
from p2pfl.config import experiment
from p2pfl.config.experiment import Experiment, NodeFile
from p2pfl.drivers.live import clock
from p2pfl.drivers.live.launcher import Launcher, Order, free_ports
from p2pfl.errors import ConfigError
from p2pfl.federation import baselines
from p2pfl.federation import federation as building
from p2pfl.federation.federation import Federation
from p2pfl.learning import targets
from p2pfl.node import records
from p2pfl.reporting import page
from p2pfl.reporting.terminal import View
from p2pfl.runs import assessment, ledger, simulated, summary, virtual
from p2pfl.runs.progress import Watch
from p2pfl.runs.simulated import Collected

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
)

_FREEZE = 10.0
"""Seconds without a finished round after which a frozen node is let go on: then all wait for it."""

_STALL = 5.0
"""Seconds, or that many of its rounds, that a node may stand still once others have finished."""


def run(wanted: Experiment, out: Path, view: View) -> dict[str, Any]:
    """Run an experiment into the directory `out`; returns the summary. Raises ConfigError before anything starts."""
    started = clock.now()
    fresh(out)
    building.precision(wanted)
    if jax.process_index() > 0:  # one of several hosts: the first one writes
        simulated.into(building.build(wanted), out, lambda status: None)
        return {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_server(wanted, view)) if wanted.driver.kind == "live" else None
        federation = building.build(wanted)
        if wanted.driver.kind == "virtual":
            virtual.setting(federation)  # a mistake in it is found before anything runs
        out.mkdir(parents=True, exist_ok=True)
        _describe(federation, out)
        for note in federation.notes:
            view.say(note)
        baselines = _baselines(federation, out, view) if wanted.baselines and not federation.task else {}
        if server:
            found = _live(federation, out, view, server)
        else:
            found = (_virtual if wanted.driver.kind == "virtual" else _simulated)(federation, out, view)
    return _conclude(federation, out, found, baselines, started, view)


def fresh(out: Path) -> None:
    """Raises ConfigError when the directory holds something: nothing of an earlier run is overwritten."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out={str(out)!r}: is not empty; choose another directory, or remove it")


def _describe(federation: Federation, out: Path) -> None:
    (out / "experiment.toml").write_text(experiment.dump(federation.experiment), "utf-8")
    edges = sorted(sorted(edge) for edge in federation.graph.edges)
    table = federation.experiment.topology
    graph = table.graph or Path(str(table.file)).stem
    (out / "topology.json").write_text(json.dumps({"graph": graph, "nodes": len(federation.graph), "edges": edges}))


# --- baselines and simulation


def _baselines(federation: Federation, out: Path, view: View) -> dict[str, Any]:
    """Train every node alone, and one node on all data; the figures beside the run's."""
    wanted, nodes = federation.experiment, len(federation.graph)
    view.say("baselines: training every node alone, then one model on all data pooled")
    found: dict[str, Any] = {}
    found.update(assessment.majority(federation))
    for name, other, key in (
        ("local", baselines.alone(wanted), "local_only"),
        ("pooled", baselines.pooled(wanted, nodes), "pooled"),
    ):
        where = out / "baselines" / name
        where.mkdir(parents=True)
        found.update(_baseline(federation, other, where, key))
    view.say(
        f"baselines: alone {_percent(found['accuracy_local_only'])} mean accuracy, "
        f"pooled {_percent(found['accuracy_pooled'])}"
    )
    return found


def _baseline(federation: Federation, other: Experiment, where: Path, name: str) -> dict[str, Any]:
    """The figures of a baseline: accuracy_NAME for accuracy_mean, accuracy_NAME_worst, accuracy_NAME_own_mean, ..."""
    built = building.build(other)
    result = simulated.into(built, where, lambda status: None)
    if len(result.whole) == 1:  # one model of all data, at each site
        model = next(iter(result.whole.values()))
        built = built._replace(topology=federation.topology, data=federation.data)
        result = result._replace(whole=dict.fromkeys(federation.graph, model))
    figures = {**result.figures, **(assessment.assess(built, result.whole, where) if other.evaluation.metrics else {})}
    found = {}
    for key, value in figures.items():
        for end in ("_own_mean", "_own_worst", "_mean", "_worst"):
            if key.endswith(end):
                found[f"{key.removesuffix(end)}_{name}{'' if end == '_mean' else end}"] = value
                break
    return found


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _simulated(federation: Federation, out: Path, view: View) -> Collected:
    began = clock.now()
    if federation.experiment.driver.method == "loop":
        simulated.loop_into(federation, out, view.update)
        found = collect(federation, out)
    else:
        found = simulated.into(federation, out, view.update)
    seconds = {"seconds_startup": 0.0, "seconds_running": clock.now() - began}
    figures = {**seconds, "lost": [], "driver": "simulate", **found.figures}
    return found._replace(figures=figures)


def _virtual(federation: Federation, out: Path, view: View) -> Collected:
    began = clock.now()
    nodes = list(federation.graph)
    watch = Watch(federation.experiment.rounds, {node: out / "nodes" / str(node) for node in nodes})
    shown = [began]

    def begun(round: int) -> None:
        if clock.now() - shown[0] > 0.2:
            shown[0] = clock.now()
            for text in watch.read():
                view.say(text)
            view.update(watch.status(dict.fromkeys(nodes, "alive"), clock.now()))

    ended = virtual.into(federation, out, begun, view.say)
    for text in watch.read():
        view.say(text)
    seconds = {"seconds_startup": 0.0, "seconds_running": clock.now() - began}
    found = collect(federation, out)
    virtual.timed(out, ended)
    return found._replace(figures={**seconds, **virtual.figures(ended), **found.figures})


# --- live


def _server(wanted: Experiment, view: View) -> Launcher:
    """The process that will start the nodes; it imports while this one builds and trains the baselines."""
    preload = [*_PRELOAD]
    if wanted.data.source in ("digits", "breast_cancer"):
        preload.append("sklearn.datasets")
    return Launcher(ENTRY, preload, view.say)


def _orders(federation: Federation, out: Path) -> list[Order]:
    """Write the node files, as a person would for several machines."""
    nodes = len(federation.graph)
    ports = free_ports(nodes)
    address = {node: f"tcp://127.0.0.1:{port}" for node, port in enumerate(ports)}
    orders = []
    for node in range(nodes):
        directory = out / "nodes" / str(node)
        directory.mkdir(parents=True)
        peers = tuple(address[other] for other in range(nodes) if other != node)
        file = NodeFile("../../experiment.toml", node, address[node], peers, out=".")
        (directory / "node.toml").write_text(experiment.dump(file), "utf-8")
        argument = ("node", str(directory / "node.toml"), "--hold")
        back = [event for event in federation.churn if event.node == node and event.event in ("rejoin", "join")]
        returns = tuple(argument + (("--resume",) if event.state == "kept" else ()) for event in back)
        later = node not in churn.expected(federation.churn, nodes)
        orders.append(Order(node, argument, directory, returns, later))
    return orders


def _live(federation: Federation, out: Path, view: View, server: Launcher) -> Collected:
    wanted = federation.experiment
    began = clock.now()
    orders = _orders(federation, out)
    view.say(f"starting {len(orders)} node processes")
    watch = Watch(wanted.rounds, {order.node: order.directory for order in orders})
    server.prepare(orders)
    pids = ", ".join(f"{node}: {member.pids[0]}" for node, member in server.members.items())
    view.say(f"all compiled; process of each node: {pids}")
    (out / "pids.json").write_text(json.dumps({node: member.pids for node, member in server.members.items()}))
    ready = clock.now()
    server.go()
    interrupted = False
    try:
        _follow(federation, server, watch, view)
    except KeyboardInterrupt:
        interrupted = True
        view.say("interrupted: asking the nodes to leave")
        server.stop()
        limit = clock.now() + 10
        while server.running and clock.now() < limit:
            server.poll(0.05)
    _say_launch(out, server, watch)
    lost = sorted(node for node, member in server.members.items() if member.state in ("lost", "failed"))
    left = summary.left(out)
    figures = {
        "seconds_startup": ready - began,
        "seconds_running": clock.now() - ready,
        "lost": lost,
        "left": left,
        "driver": "live",
        **({"interrupted": True} if interrupted else {}),
    }
    found = collect(federation, out)
    return found._replace(figures={**figures, **found.figures})


def _follow(federation: Federation, server: Launcher, watch: Watch, view: View) -> None:
    """Show what happens until no node is at work any more; call back and let go on whom the experiment has planned."""
    plan = _Returns(federation.churn)
    while server.running:
        server.poll(0.05)
        now = clock.now()
        for text in watch.read():
            view.say(text)
        states = {node: member.state for node, member in server.members.items()}
        view.update(watch.status(states, now))
        plan.look(server, watch, now)
        if any(state == "finished" for state in states.values()):
            for node in watch.standing_still([n for n, s in states.items() if s == "alive"], now, _STALL):
                server.give_up(node, f"no sign of life since round {watch.rounds_of[node]}")
    for text in watch.read():
        view.say(text)
    states = {node: member.state for node, member in server.members.items()}
    view.update(watch.status(states, clock.now()))


class _Returns:
    """Returns, joins and ends of freezes that are still to come. They are due when somebody begins the round before."""

    def __init__(self, events: Sequence[churn.Event]) -> None:
        due = [(e.round, "call", e.node) for e in events if e.event in ("rejoin", "join")]
        due += [(e.round + e.rounds, "thaw", e.node) for e in events if e.event == "freeze"]
        self._due = sorted(due)
        self._thawed: set[int] = set()
        self._at = (0, 0.0)

    def look(self, server: Launcher, watch: Watch, now: float) -> None:
        """What is due by the furthest round that somebody has finished; or, where all wait for the frozen, by time."""
        furthest = max(watch.rounds_of.values(), default=0)
        if furthest > self._at[0]:
            self._at = (furthest, now)
        waits = now - self._at[1] > _FREEZE
        while self._due and (self._due[0][0] <= furthest + 2 or (waits and self._due[0][1] == "thaw")):
            _, kind, node = self._due.pop(0)
            if kind == "call":
                server.call(node)
            else:
                self._thawed.add(node)
            waits = False
        for node in self._thawed:  # again and again: it may be so far behind that it freezes only now
            server.thaw(node)


def _say_launch(out: Path, server: Launcher, watch: Watch) -> None:
    """The launcher's own events, beside those of the nodes."""
    lines = records.Lines(out / "launch.jsonl")
    for event in server.events:
        lines.write({**event, "round": watch.at(event["node"], event["time"]) + 1})
    lines.close()


# --- the end


def collect(federation: Federation, out: Path) -> Collected:
    """Figures and models from the records of nodes."""
    wanted = federation.experiment
    metrics = summary.merge(out)
    summary.rounds(out, metrics)
    ended: set[tuple[int, int]] = set()
    digests = {}
    for node, path in summary.directories(out).items():
        if (path / "result.json").exists():
            result = json.loads((path / "result.json").read_text("utf-8"))
            ended.add((node, result["life"]))
            digests[str(node)] = result["digest"]
    size = tree.size(tree.mixed(building.model_shape(federation)))
    books = ledger.balance(
        summary.directories(out), ended, size, federation.algorithm.link, federation.algorithm.keeps_mean
    )
    figures = {
        **summary.accuracies(metrics, wanted.rounds),
        **summary.traffic(metrics),
        **summary.outcome(out, federation.algorithm.link),
        **books._asdict(),
        "digests": digests,
    }
    plan = federation.planner()
    notes = dict.fromkeys(plan(members).note for members in summary.memberships(out))
    whole = {node: assessment.loaded(federation, leaves) for node, leaves in summary.leaves(out).items()}
    return Collected(figures, summary.models(out), [note for note in notes if note], whole)


def _conclude(
    federation: Federation, out: Path, found: Collected, baselines: dict[str, Any], started: float, view: View
) -> dict[str, Any]:
    wanted = federation.experiment
    for note in found.notes:
        view.say(note)
    assessed = assessment.assess(federation, found.whole, out) if wanted.evaluation.metrics else {}
    table = {
        "format": records.FORMAT,
        "name": wanted.name,
        "nodes": len(federation.graph),
        "rounds": wanted.rounds,
        "algorithm": federation.algorithm.name,
        "graph": json.loads((out / "topology.json").read_text())["graph"],
        "parameters": tree.size(tree.mixed(building.model_shape(federation))),
        "score": targets.TARGETS[federation.dataset.kind].score_name,
        **baselines,
        **assessed,
        **found.figures,
        **simulated.distances(federation, found.models),
        "keeps_mean": federation.algorithm.keeps_mean,
        "seconds_total": clock.now() - started,
        "notes": [*federation.notes, *found.notes],
    }
    partial = out / "summary.partial"
    partial.write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    partial.rename(out / "summary.json")
    page.write(out)
    return table


def default_out(name: str) -> Path:
    """A new directory below runs/ in the current one, named after the experiment and the time."""
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
