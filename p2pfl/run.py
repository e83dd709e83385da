"""Runs an experiment on this machine, with its baselines, and leaves a run directory."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from p2pfl import build as building
from p2pfl import churn, experiment, records, report, summary, tree
from p2pfl.build import Federation
from p2pfl.errors import ConfigError
from p2pfl.experiment import Experiment, NodeFile
from p2pfl.live import clock
from p2pfl.live.launch import Launcher, Order, free_ports
from p2pfl.simulate import loop
from p2pfl.view import View
from p2pfl.watch import Watch

ENTRY = "p2pfl.cli:node_process"
"""What the processes of nodes call: the command `p2pfl node`."""

_PRELOAD = ("jax", "flax.nnx", "flax.linen", "optax", "zmq", "safetensors.numpy", "p2pfl.live.node", "p2pfl.build")

_STALL = 5.0
"""Seconds, or that many of its rounds, that a node may stand still once others have finished."""


def run(wanted: Experiment, out: Path, view: View) -> dict[str, Any]:
    """Run an experiment into the directory `out`; returns the summary. Raises ConfigError before anything starts."""
    started = clock.now()
    fresh(out)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_server(wanted, view)) if wanted.driver.kind == "live" else None
        federation = building.build(wanted)
        out.mkdir(parents=True, exist_ok=True)
        _describe(federation, out)
        for note in federation.notes:
            view.say(note)
        baselines = _baselines(federation, out, view) if wanted.baselines else {}
        found = _live(federation, out, view, server) if server else _simulated(federation, out, view)
    return _conclude(federation, out, {**baselines, **found}, started, view)


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


# --- baselines and the plain loop


def _loop(federation: Federation, out: Path, progress: Callable[[int, list[Any]], None]) -> list[dict[str, Any]]:
    """Run the plain loop, with the records of a live run in `out`."""
    wanted = federation.experiment
    tasks = building.tasks(federation)
    delivery = churn.planned(federation.churn, federation.schedule, wanted.rounds, wanted.training.local_steps)
    files: list[tuple[records.Lines, records.Lines]] = []
    for task in tasks:
        directory = out / "nodes" / str(task.node)
        directory.mkdir(parents=True)
        files.append((records.Lines(directory / "metrics.jsonl"), records.Lines(directory / "trace.jsonl")))

    def record(node: int, measured: records.Measured, traced: records.Traced) -> None:
        files[node][0].write(measured)
        files[node][1].write(traced)
        progress(node, [measured])

    models = loop.run(tasks, delivery, record, clock.now)
    for node, model in enumerate(models):
        arrays = {name: np.ascontiguousarray(leaf) for name, leaf in tree.named_leaves(model).items()}
        safetensors.numpy.save_file(arrays, out / "nodes" / str(node) / "model.safetensors")
        gone = not delivery.active[-1, node]
        last = records.read(out / "nodes" / str(node) / "trace.jsonl")
        ended: dict[str, Any] = {
            "node": node,
            "life": last[-1]["life"] if last else 1,
            "left": bool(gone),
            "voided": 0,
            "dropped": {},
            "digest": tree.digest(model),
        }
        if not gone:
            (out / "nodes" / str(node) / "result.json").write_text(json.dumps(ended, indent=1))
    for metrics, trace in files:
        metrics.close()
        trace.close()
    return summary.merge(out)


def _baselines(federation: Federation, out: Path, view: View) -> dict[str, Any]:
    """Train every node alone, and one node on all data; the figures beside the run's."""
    wanted, nodes = federation.experiment, len(federation.graph)
    view.say("baselines: training every node alone, then one model on all data pooled")
    found: dict[str, Any] = {}
    labels = federation.dataset.train.y
    majority = np.bincount(labels).argmax()
    found["accuracy_majority"] = float((federation.dataset.test.y == majority).mean())
    for name, other, key in (
        ("local", building.alone(wanted), "accuracy_local_only"),
        ("pooled", building.pooled(wanted, nodes), "accuracy_pooled"),
    ):
        where = out / "baselines" / name
        where.mkdir(parents=True)
        metrics = _loop(building.build(other), where, lambda node, measured: None)
        summary.rounds(where, metrics)
        result = summary.accuracies(metrics, wanted.rounds)
        found[key] = result["accuracy_mean"]
        found[f"{key}_worst"] = result["accuracy_worst"]
        found[f"{key}_own_mean"], found[f"{key}_own_worst"] = result["accuracy_own_mean"], result["accuracy_own_worst"]
    view.say(
        f"baselines: alone {_percent(found['accuracy_local_only'])} mean accuracy, "
        f"pooled {_percent(found['accuracy_pooled'])}"
    )
    return found


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _simulated(federation: Federation, out: Path, view: View) -> dict[str, Any]:
    watch = Watch(federation.experiment.rounds, {node: out / "nodes" / str(node) for node in federation.graph})
    shown = [0.0]

    def progress(node: int, measured: list[Any]) -> None:
        now = clock.now()
        if now - shown[0] > 0.1:
            shown[0] = now
            watch.read()
            view.update(watch.status(dict.fromkeys(federation.graph, "alive"), now))

    began = clock.now()
    _loop(federation, out, progress)
    return {"seconds_startup": 0.0, "seconds_running": clock.now() - began, "lost": [], "driver": "simulate"}


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
        peers = {str(other): address[other] for other in sorted(federation.graph.neighbors(node))}
        file = NodeFile("../../experiment.toml", node, address[node], peers, out=".")
        (directory / "node.toml").write_text(experiment.dump(file), "utf-8")
        returns = sum(event.event == "rejoin" and event.node == node for event in federation.churn)
        orders.append(Order(node, ("node", str(directory / "node.toml"), "--hold"), directory, returns))
    return orders


def _live(federation: Federation, out: Path, view: View, server: Launcher) -> dict[str, Any]:
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
        _follow(server, watch, view)
    except KeyboardInterrupt:
        interrupted = True
        view.say("interrupted: asking the nodes to leave")
        server.stop()
        limit = clock.now() + 10
        while server.running and clock.now() < limit:
            server.poll(0.05)
    _say_launch(out, server, watch)
    lost = sorted(node for node, member in server.members.items() if member.state in ("lost", "failed"))
    left = sorted(node for node, member in server.members.items() if member.state == "left")
    return {
        "seconds_startup": ready - began,
        "seconds_running": clock.now() - ready,
        "lost": lost,
        "left": left,
        "driver": "live",
        **({"interrupted": True} if interrupted else {}),
    }


def _follow(server: Launcher, watch: Watch, view: View) -> None:
    """Show what happens until no node is at work any more."""
    while server.running:
        server.poll(0.05)
        now = clock.now()
        for text in watch.read():
            view.say(text)
        states = {node: member.state for node, member in server.members.items()}
        view.update(watch.status(states, now))
        if any(state == "finished" for state in states.values()):
            for node in watch.standing_still([n for n, s in states.items() if s == "alive"], now, _STALL):
                server.give_up(node, f"no sign of life since round {watch.rounds_of[node]}")
    for text in watch.read():
        view.say(text)
    states = {node: member.state for node, member in server.members.items()}
    view.update(watch.status(states, clock.now()))


def _say_launch(out: Path, server: Launcher, watch: Watch) -> None:
    """The launcher's own events, beside those of the nodes."""
    lines = records.Lines(out / "launch.jsonl")
    for event in server.events:
        lines.write({**event, "round": watch.at(event["node"], event["time"]) + 1})
    lines.close()


# --- the end


def _conclude(federation: Federation, out: Path, found: dict[str, Any], started: float, view: View) -> dict[str, Any]:
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
    size = tree.size(building.model_shape(federation))
    kept = summary.ledger(out, ended, size)
    table = {
        "name": wanted.name,
        "nodes": len(federation.graph),
        "rounds": wanted.rounds,
        "algorithm": federation.algorithm.name,
        "graph": json.loads((out / "topology.json").read_text())["graph"],
        "parameters": size,
        **summary.accuracies(metrics, wanted.rounds),
        **found,
        **summary.traffic(metrics),
        **summary.outcome(out),
        "mean_residual": kept.mean_residual,
        "residue": kept.residue,
        "keeps_mean": federation.algorithm.keeps_mean,
        "seconds_total": clock.now() - started,
        "notes": list(federation.notes),
        "digests": digests,
    }
    partial = out / "summary.partial"
    partial.write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    partial.rename(out / "summary.json")
    report.write(out)
    return table


def default_out(name: str) -> Path:
    """A new directory below runs/ in the current one, named after the experiment and the time."""
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
