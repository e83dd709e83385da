"""`p2pfl node NODE.toml`: one node of a federation, on whatever machine it is."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from p2pfl.config import experiment as config
from p2pfl.drivers.live import files, ports, sidecar
from p2pfl.drivers.live import node as live
from p2pfl.drivers.live.launcher import READY
from p2pfl.drivers.live.lifeline import Lifeline
from p2pfl.drivers.live.settings import Place, membership_address
from p2pfl.errors import ConfigError, Exit
from p2pfl.federation import tasks
from p2pfl.federation.federation import Federation, build, build_own, identity, precision, terms
from p2pfl.node import model_file, result
from p2pfl.node.plan import Terms
from p2pfl.node.result import NodeResult
from p2pfl.node.task import Task
from p2pfl.runs import about, assessment, flow, keyed, models
from p2pfl.runs.keyed import CompleteNode
from p2pfl.runs.verdict import RunVerdict


class Together(NamedTuple):
    """All nodes of a run were stopped, and this one begins with the others."""

    after: int = 0  # this round; 0: none of that
    without: tuple[int, ...] = ()  # nodes that have kept nothing, and come in later


class NodeRun(NamedTuple):
    """What has become of a node."""

    result: NodeResult
    verdict: RunVerdict


def run(
    file: Path,
    out: Path | None,
    hold: bool,
    resume: bool,
    say: Callable[[str], None],
    returns: int | None = None,
    again: Together = Together(),  # noqa: B008 (a constant)
) -> NodeRun:
    """Run the node in `file` to its end; returns how it ended, and the verdict on that. Raises ConfigError at once.

    `hold`: wait for a line on standard input when all is compiled, and leave when standard input ends: whoever has
    started the node is gone. `resume`: go on from the checkpoint that an earlier process of the node has left in its
    directory, if there is one. `returns`: the round of the planned return or join that this process is.
    """
    given, _ = keyed.completed(file, config.load_node(file))
    source = Path(given.experiment)
    sys.path[:0] = [str(Path.cwd()), str(source.parent)]
    experiment = config.load(source)
    directory = out or records_of(file, given)
    if result.read(directory) is not None and not (resume or hold):  # one that is held comes back as planned
        raise ConfigError(
            f"out={str(directory)!r}: holds the records of a finished run; give another with --out, or --resume"
        )
    if not hold:  # else whoever has started it holds them for it
        ports.demand((given.listen, membership_address(given.listen)), say)
    limit = files.raised()  # before anything is started that inherits it
    membership = sidecar.start()
    lifeline = Lifeline() if hold else None
    try:
        precision(experiment)
        own = given.data
        federation = build_own(experiment, given.node, own) if own else build(experiment)
        if given.node not in federation.graph:
            raise ConfigError(f"{file}: node={given.node}: the topology has nodes 0 to {len(federation.graph) - 1}")
        files.fits(len(federation.graph), limit, here=False)
        task = tasks.task(federation, given.node)
        for note in (*federation.notes, *flow.lines(flow.flow(federation, given.node))):
            say(note)
        rows = f"{len(task.y)} training rows, neighbours {list(task.neighbors)}"
        say(f"node {given.node} of {len(federation.graph)}: {rows}")
        place = Place(
            listen=given.listen,
            address=given.address,
            peers=given.peers,
            terms=_terms(federation, again),
            probe_timing=experiment.network.preset,
            directory=directory,
            every=experiment.driver.checkpoint,
            resume=resume,
            returns=returns or 0,
            after=again.after,
            kept_by=identity(federation),
        )
        directory.mkdir(parents=True, exist_ok=True)
        _describe(federation, task, directory, alone=not hold)
        flow.write(flow.flow(federation, given.node), directory)

        def ready() -> None:
            if lifeline is not None:
                say(READY)
                lifeline.wait()

        ended = live.run(task, place, membership, say, ready)
    finally:
        membership.close()
    verdict = judged(ended, task)
    if experiment.evaluation.metrics and not hold and not ended.untrained:  # held: whoever runs the experiment does it
        _assess(federation, given.node, directory, say, alone=not ended.booked and bool(verdict.reasons))
    say(
        f"done at round {ended.round}: {ended.booked} exchanges booked, {ended.voided} voided, "
        f"dropped {ended.dropped or 'nothing'}; model {ended.digest} in {directory}"
    )
    return NodeRun(ended, verdict)


def records_of(file: Path, given: CompleteNode) -> Path:
    """Return the directory of a node's records."""
    return file.parent / given.out if given.out else Path(f"p2pfl-node-{given.node}")


def _terms(federation: Federation, again: Together) -> Terms:
    """What the nodes agree on; a start in the middle waits for whoever should be there then, and can be."""
    known = terms(federation)
    if not again.after:
        return known
    there = known.there(min(again.after + 1, federation.experiment.rounds)) if known.there else range(known.nodes)
    return known._replace(expected=sorted({*there} - {*again.without}))


def judged(ended: NodeResult, task: Task) -> RunVerdict:
    """Judge whether what a node has done is a result of the federation. A signal is told before all else."""
    reasons = []
    if ended.untrained:
        reasons.append("nothing was trained: the model is as it was drawn")
    elif ended.trained and not ended.booked and task.neighbors and task.link != "none":
        reasons.append(f"trained {ended.trained} rounds alone: it has mixed with nobody")
    if reasons and ended.unreached:
        reasons.append(f"not reached: {', '.join(ended.unreached)}")
    if ended.diverged:
        reasons.append(
            f"training has diverged: the loss is not finite from round {ended.diverged} on; lower the learning rate, "
            "or look at the rows"
        )
    code = Exit.NOT_WHOLE if reasons else Exit.DONE
    if ended.stopped_by and ended.left:
        code = Exit(128 + signal.Signals[ended.stopped_by])
    return RunVerdict(code, tuple(reasons))


def _describe(federation: Federation, task: Task, directory: Path, alone: bool) -> None:
    """Write down what the records and the model mean; the latter by whoever runs the experiment, unless `alone`."""
    about.about(federation, task.node, task.score).write(directory)
    if alone:
        models.describe(federation, task.node).write(directory)


def _assess(federation: Federation, node: int, directory: Path, say: Callable[[str], None], alone: bool) -> None:
    """Test the model that the node has ended with on its own rows, and say how good it is."""
    arrays = model_file.read(directory / model_file.NAME)
    figures = assessment.assess(federation, {node: assessment.loaded(federation, arrays)}, directory).figures
    own_rows = {name.removesuffix("_own_mean"): value for name, value in figures.items() if name.endswith("_own_mean")}
    listed = [f"{name} {value:.3f}" for name, value in own_rows.items() if value is not None]
    whose = "a model trained alone, on its own test rows" if alone else "on its own test rows"
    say(f"{whose}: {', '.join(listed) or 'nothing to test'}")
