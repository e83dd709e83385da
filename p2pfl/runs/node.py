"""`p2pfl node NODE.toml`: one node of a federation, on whatever machine it is."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from p2pfl.config import experiment as config
from p2pfl.config.experiment import Experiment
from p2pfl.drivers.live import addresses, files, ports, sidecar
from p2pfl.drivers.live import node as live
from p2pfl.drivers.live.launcher import READY
from p2pfl.drivers.live.lifeline import Lifeline
from p2pfl.drivers.live.metrics import Exporter
from p2pfl.drivers.live.settings import Place, membership_address
from p2pfl.errors import ConfigError, Exit
from p2pfl.federation import tasks
from p2pfl.federation.federation import Federation, build, build_own, identity, precision, terms
from p2pfl.node import model_file, result
from p2pfl.node.plan import Terms
from p2pfl.node.result import NodeResult
from p2pfl.node.said import Said, whole
from p2pfl.node.task import Task
from p2pfl.runs import about, assessment, flow, keyed, models, privacy
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
    admitted: int = 0,
    metrics: str | None = None,
) -> NodeRun:
    """Run the node in `file` to its end; returns how it ended, and the verdict on that. Raises ConfigError at once.

    `hold`: wait for a line on standard input when all is compiled, and leave when standard input ends: whoever has
    started the node is gone. `resume`: go on from the checkpoint that an earlier process of the node has left in its
    directory, if there is one. `returns`: the round of the planned return or join that this process is. `admitted`:
    nodes that there can be, by the word of whoever vouches for that, where they are more than the experiment plans.
    `metrics`: HOST:PORT where Prometheus finds figures of the node, instead of the file's.
    """
    loaded = config.load_node(file)
    given, keyring = keyed.completed(file, loaded)
    log, say = say, lambda text: log(whole(text, given.node))
    trusted = keyed.trusted(given, keyring, say)
    admitted = max(admitted, given.admitted)
    sys.path[:0] = [str(Path.cwd()), str(Path(given.experiment).parent)]
    experiment = config.load(given.experiment)
    directory = out or records_of(file, given)
    if not (resume or hold):  # one that is held comes back as planned
        _unused(directory)
    if not hold:  # else whoever has started it holds them for it
        ports.demand((given.listen, membership_address(given.listen)), say)
    limit = files.raised()  # before anything is started that inherits it
    with contextlib.ExitStack() as opened:
        membership = sidecar.start()
        opened.callback(membership.close)
        lifeline = Lifeline() if hold else None
        exporter = _exporter(metrics or loaded.metrics, opened, say)
        precision(experiment)
        federation = _meant(file, given, experiment, admitted)
        count = max(len(federation.graph), admitted)
        files.fits(count, limit, here=False)
        task = keyed.masking(file, tasks.task(federation, given.node), trusted, given.data is not None)
        _introduce(federation, task, count, say)
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
            admitted=admitted,
            kept_by=identity(federation),
            trusted=trusted,
            calls=given.calls,
        )
        directory.mkdir(parents=True, exist_ok=True)
        _describe(federation, task, directory, alone=not hold)
        flow.write(flow.flow(federation, given.node), directory)

        def ready() -> None:
            if lifeline is not None:
                print(READY, flush=True)  # an answer to whoever has started it, and no line of a log
                lifeline.wait()

        ended = live.run(task, place, membership, say, ready, exporter.show if exporter else None)
    verdict = judged(ended, task)
    if experiment.evaluation.metrics and not hold and not ended.untrained:  # held: whoever runs the experiment does it
        _assess(federation, given.node, directory, say, alone=not ended.booked and bool(verdict.reasons))
    say(_done(ended, directory))
    return NodeRun(ended, verdict)


def _unused(directory: Path) -> None:
    """Raises ConfigError for a directory that has the records of a run."""
    if result.read(directory) is not None:
        raise ConfigError(
            f"out={str(directory)!r}: holds the records of a finished run; give another with --out, or --resume"
        )


def _meant(file: Path, given: CompleteNode, experiment: Experiment, admitted: int) -> Federation:
    """Return what the node's experiment means. Raises ConfigError, also for a node that it does not plan."""
    own = given.data
    federation = build_own(experiment, given.node, own, admitted) if own else build(experiment)
    if given.node not in federation.graph and not (own and given.node < admitted):
        why = f"the topology has nodes 0 to {len(federation.graph) - 1}"
        if given.node < admitted:
            why += ", and a node that joins beyond them brings rows of its own; give it a [data]"
        raise ConfigError(f"{file}: node={given.node}: {why}")
    return federation


def _introduce(federation: Federation, task: Task, nodes: int, say: Callable[[str], None]) -> None:
    """Say which node it is, of how many, and what became of its rows."""
    for note in (*federation.notes, *flow.lines(flow.flow(federation, task.node))):
        say(Said(note, "rows"))
    rows = f"{len(task.y)} training rows, neighbours {list(task.neighbors)}"
    say(Said(f"node {task.node} of {nodes}: {rows}", "begins", rows=len(task.y)))


def _done(ended: NodeResult, directory: Path) -> Said:
    """The last line of a node."""
    text = f"done at round {ended.round}: {ended.booked} exchanges booked, {ended.voided} voided, "
    text += f"dropped {ended.dropped or 'nothing'}; model {ended.digest} in {directory}"
    return Said(text, "done", round=ended.round, booked=ended.booked, voided=ended.voided, dropped=ended.dropped)


def _exporter(address: str | None, opened: contextlib.ExitStack, say: Callable[[str], None]) -> Exporter | None:
    """Let Prometheus ask at an address until all is closed. Raises ConfigError."""
    if address is None:
        return None
    exporter = Exporter(address)
    opened.callback(exporter.close)
    exporter.start()
    text, inside = f"metrics at http://{address}/metrics", addresses.parsed(address).loopback
    say(
        Said(
            text if inside else f"{text}: whoever reaches it may read them",
            "metrics",
            logging.INFO if inside else logging.WARNING,
        )
    )
    return exporter


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
    model = {node: assessment.loaded(federation, arrays, node)}
    for spent in privacy.write(federation, model, directory):
        say(Said(spent, "privacy"))
    figures = assessment.assess(federation, model, directory).figures
    own_rows = {name.removesuffix("_own_mean"): value for name, value in figures.items() if name.endswith("_own_mean")}
    listed = [f"{name} {value:.3f}" for name, value in own_rows.items() if value is not None]
    whose = "a model trained alone, on its own test rows" if alone else "on its own test rows"
    say(Said(f"{whose}: {', '.join(listed) or 'nothing to test'}", "assessed", scores=own_rows))
