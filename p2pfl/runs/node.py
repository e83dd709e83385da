"""`p2pfl node NODE.toml`: one node of a federation, on whatever machine it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import safetensors.numpy

from p2pfl.config import experiment as config
from p2pfl.config.experiment import NodeFile
from p2pfl.drivers.live import node as live
from p2pfl.drivers.live import sidecar
from p2pfl.drivers.live.launcher import READY
from p2pfl.drivers.live.lifeline import Lifeline
from p2pfl.drivers.live.settings import Place
from p2pfl.errors import ConfigError
from p2pfl.federation import tasks
from p2pfl.federation.federation import build, build_own, precision, terms
from p2pfl.node import result
from p2pfl.node.result import NodeResult
from p2pfl.runs import about, assessment

_NO_HOST = ("0.0.0.0", "*", "[::]")


def run(
    file: Path, out: Path | None, hold: bool, resume: bool, say: Callable[[str], None], returns: int | None = None
) -> NodeResult:
    """Run the node in `file` to its end; returns how it ended. Raises ConfigError at once.

    `hold`: wait for a line on standard input when all is compiled, and leave when standard input ends: whoever has
    started the node is gone. `resume`: go on from the checkpoint that an earlier process of the node has left in its
    directory, if there is one. `returns`: the round of the planned return or join that this process is.
    """
    given = config.load_node(file)
    address = _address(file, given)
    source = Path(given.experiment)
    sys.path[:0] = [str(Path.cwd()), str(source.parent)]
    experiment = config.load(source)
    directory = out or (file.parent / given.out if given.out else Path(f"p2pfl-node-{given.node}"))
    if result.read(directory) is not None and not (resume or hold):  # one that is held comes back as planned
        raise ConfigError(
            f"out={str(directory)!r}: holds the records of a finished run; give another with --out, or --resume"
        )
    membership = sidecar.start()
    lifeline = Lifeline() if hold else None
    try:
        precision(experiment)
        own = given.data
        federation = build_own(experiment, given.node, own) if own else build(experiment)
        if given.node not in federation.graph:
            raise ConfigError(f"{file}: node={given.node}: the topology has nodes 0 to {len(federation.graph) - 1}")
        task = tasks.task(federation, given.node)
        for note in federation.notes:
            say(note)
        say(
            f"node {given.node} of {len(federation.graph)}: {len(task.y)} training rows, "
            f"neighbours {list(task.neighbors)}"
        )
        place = Place(
            listen=given.listen,
            address=address,
            peers=given.peers,
            terms=terms(federation),
            probe_timing=experiment.network.preset,
            directory=directory,
            every=experiment.driver.checkpoint,
            resume=resume,
            returns=returns or 0,
        )
        directory.mkdir(parents=True, exist_ok=True)
        about.about(federation, given.node, task.score).write(directory)

        def ready() -> None:
            if lifeline is not None:
                say(READY)
                lifeline.wait()

        ended = live.run(task, place, membership, say, ready)
    finally:
        membership.close()
    if experiment.evaluation.metrics and not hold:  # else whoever runs the experiment does it
        arrays = safetensors.numpy.load_file(directory / "model.safetensors")
        figures = assessment.assess(federation, {given.node: assessment.loaded(federation, arrays)}, directory).figures
        own_rows = {
            name.removesuffix("_own_mean"): value for name, value in figures.items() if name.endswith("_own_mean")
        }
        listed = [f"{name} {value:.3f}" for name, value in own_rows.items() if value is not None]
        say(f"on its own test rows: {', '.join(listed) or 'nothing to test'}")
    say(
        f"done at round {ended.round}: {ended.booked} exchanges booked, {ended.voided} voided, "
        f"dropped {ended.dropped or 'nothing'}; model {ended.digest} in {directory}"
    )
    return ended


def _address(file: Path, given: NodeFile) -> str:
    """Return how the others reach the node. Raises ConfigError."""
    address = given.address or given.listen
    host = address.removeprefix("tcp://").rpartition(":")[0]
    if host in _NO_HOST:
        raise ConfigError(
            f"{file}: listen={given.listen!r}: stands for all addresses of this machine, and the others must know one; "
            'give one of them, as in address = "tcp://192.168.0.7:5555"'
        )
    for name, value in (("listen", given.listen), ("address", address), *(("peers", peer) for peer in given.peers)):
        if not 1 <= int(value.rpartition(":")[2]) <= 65534:
            raise ConfigError(
                f"{file}: {name}={value!r}: the port must be from 1 to 65534, for the next one is used as well"
            )
    return address
