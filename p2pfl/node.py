"""`p2pfl node NODE.toml`: one node of a federation, on whatever machine it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from p2pfl import build as building
from p2pfl import experiment, tasks
from p2pfl.errors import ConfigError
from p2pfl.live import node as live
from p2pfl.live.launch import READY
from p2pfl.live.node import Place


def run(file: Path, out: Path | None, hold: bool, say: Callable[[str], None]) -> str | None:
    """Run the node in `file` to its end; returns what went wrong, if anything did. Raises ConfigError at once."""
    given = experiment.load_node(file)
    source = Path(given.experiment)
    sys.path[:0] = [str(Path.cwd()), str(source.parent)]
    wanted = experiment.load(source)
    building.precision(wanted)
    directory = out or (file.parent / given.out if given.out else Path(f"p2pfl-node-{given.node}"))
    if (directory / "result.json").exists():
        raise ConfigError(f"out={str(directory)!r}: holds the records of a finished run; give another with --out")
    own = given.data
    federation = building.build_own(wanted, given.node, own) if own else building.build(wanted)
    if given.node not in federation.graph:
        raise ConfigError(f"{file}: node={given.node}: the topology has nodes 0 to {len(federation.graph) - 1}")
    task = tasks.task(federation, given.node)
    addresses = {}
    for neighbour in task.neighbors:
        if str(neighbour) not in given.peers:
            raise ConfigError(f"{file}: peers: no address of node {neighbour}, a neighbour of node {given.node}")
        addresses[neighbour] = given.peers[str(neighbour)]
    for note in federation.notes:
        say(note)
    say(f"node {given.node} of {len(federation.graph)}: {len(task.y)} training rows, neighbours {list(task.neighbors)}")
    place = Place(
        listen=given.listen,
        addresses=addresses,
        federation=building.digest(federation),
        timing=building.timing(wanted),
        lateness=federation.algorithm.lateness,
        directory=directory,
    )

    def ready() -> None:
        if hold:
            say(READY)
            sys.stdin.readline()
        say(f"listening on {given.listen}")

    result = live.run(task, place, say, ready)
    say(
        f"done at round {result.round}: {result.booked} exchanges booked, {result.voided} voided, "
        f"dropped {result.dropped or 'nothing'}; model {result.digest} in {directory}"
    )
    return result.error
