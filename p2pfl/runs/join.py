"""`p2pfl.join`: a live node in a process that is somebody else's, which trains as it likes and mixes when it likes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from p2pfl import tree
from p2pfl.config import experiment as config
from p2pfl.config.data import ScriptData
from p2pfl.config.experiment import Experiment, NodeFile
from p2pfl.drivers.live import files, ports, sidecar
from p2pfl.drivers.live.node import LiveNode
from p2pfl.drivers.live.settings import Place, membership_address
from p2pfl.errors import ConfigError
from p2pfl.federation import tasks
from p2pfl.federation.federation import Federation, build, build_own, build_script, model_shape, terms, timing
from p2pfl.federation.learning import ScriptedSteps
from p2pfl.learning.local_steps import placed
from p2pfl.node import result
from p2pfl.node.handover import Handover
from p2pfl.node.said import whole
from p2pfl.node.task import Task
from p2pfl.protocol.timing import starting
from p2pfl.runs import about, keyed
from p2pfl.runs.keyed import CompleteNode
from p2pfl.runs.peers import Peers, log
from p2pfl.runs.script_model import ScriptModel, double, leaves_of, shared, stepless
from p2pfl.types import Learner, Tree

ROUNDS = 1_000_000
"""Rounds of a federation whose scripts say themselves when it is over."""


def join(
    file: Path | str | None = None,
    params: Tree = None,
    *,
    node: int | None = None,
    listen: str | None = None,
    peers: Sequence[str] = (),
    address: str | None = None,
    topology: Mapping[str, Any] | None = None,
    algorithm: Mapping[str, Any] | str | None = None,
    network: Mapping[str, Any] | None = None,
    rounds: int | None = None,
    seed: int | None = None,
    checkpoint: int | None = None,
    learner: Learner | None = None,
    optimizer: optax.GradientTransformation | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    federation: Path | str | None = None,
    key: Path | str | None = None,
    plaintext: bool = False,
) -> Peers:
    """Take part in a federation with a training loop of one's own: a live node, as a library.

    What `p2pfl node` is, it is: the same protocol, membership, double entry, and what [algorithm] puts around it. It
    returns when its sockets are open; the first `mix` waits for the others. Lines for a person go to the logger
    "p2pfl". It takes no signal and forks nothing, so that it lives in a notebook as well.

    Args:
        file: a node file, as of `p2pfl node`. Its experiment has data.source = "script", where all nodes are scripts;
            or is any other, whose model `params` then is. Without a file, the following say what would stand in it.
        params: the first model: a tree of arrays (jax or numpy), equal at all nodes. Floating-point leaves travel, as
            far as algorithm.share lets them; whole numbers, booleans and random keys stay as they are given.
        node: which node of the topology this is, from 0 on.
        listen: tcp://ADDRESS:PORT; the membership listens on the port after it.
        peers: such addresses of other nodes; one that is there is enough.
        address: how the others reach this node; as `listen`.
        topology: the table [topology] of an experiment, as in {"graph": "ring", "nodes": 4}.
        algorithm: the table [algorithm], or a name; "dsgd" unless given.
        network: the table [network]; the preset is "lan" unless it says another.
        rounds: how many there are at most; the same at all nodes. A million unless given.
        seed: of what is drawn, the same at all nodes; 0 unless given.
        checkpoint: rounds from one to the next, 10 unless given; 0: none. In a file it is driver.checkpoint.
        learner: for `Peers.local`: whose gradients are taken; its model has the leaves of `params`.
        optimizer: for `Peers.local`: of the local steps.
        out: directory of the node's records; "p2pfl-node-N" unless given here or in the file.
        resume: go on from the checkpoint in `out`, if there is one; `Peers.start` has the model then.
        federation: the federation file, with which `node`, `listen`, `peers` and `address` follow from `key`.
        key: the file of this site's private key.
        plaintext: without keys, and yet beyond this machine: models and membership in the clear.

    Returns:
        The peers, to be used in a `with`: at its end the node leaves in good order.

    Raises:
        ConfigError: a file, a field or `params` can't mean anything, or a port is not free; before anything starts.

    Example:
        >>> import numpy as np, p2pfl
        >>> p2pfl.join(params={"w": np.zeros(3)}, node=0, listen="tcp://127.0.0.1:5700")
        Traceback (most recent call last):
        ...
        p2pfl.errors.ConfigError: join: topology: missing; give it as in topology={"graph": "ring", "nodes": 4}
    """
    place = {
        "node": node, "listen": listen, "peers": list(peers) or None, "address": address,
        "plaintext": plaintext or None, "federation": None if federation is None else str(federation),
        "key": None if key is None else str(key),
    }  # fmt: skip
    told = {
        "topology": topology, "algorithm": algorithm, "network": network, "rounds": rounds, "seed": seed,
        "checkpoint": checkpoint,
    }  # fmt: skip
    if file is None:
        told_of, experiment, where = _told(place, told)
    else:
        _only_file(file, {**place, **told})
        told_of, where = config.load_node(Path(file)), str(file)
        experiment = config.load(Path(told_of.experiment))
    given, keyring = keyed.completed(where, told_of)
    directory = Path(out) if out else _directory(file, given)
    if result.read(directory) is not None and not resume:
        raise ConfigError(
            f"out={str(directory)!r}: holds the records of a finished run; give another as out=..., or resume=True"
        )
    built, shapes = _built(experiment, given, params, learner, optimizer)
    nodes = max(len(built.graph), given.admitted)
    if not 0 <= given.node < nodes:
        raise ConfigError(f"{where}: node={given.node}: the topology has nodes 0 to {len(built.graph) - 1}")
    ports.demand((given.listen, membership_address(given.listen)), log.info)
    files.fits(nodes, files.raised(), here=False)
    place_of = Place(
        listen=given.listen, address=given.address, peers=given.peers, terms=terms(built),
        probe_timing=experiment.network.preset, directory=directory, every=experiment.driver.checkpoint, resume=resume,
        trusted=keyed.trusted(given, keyring, log.info), calls=given.calls, admitted=given.admitted,
    )  # fmt: skip
    with shapes.precision():
        masked = keyed.masking(where, tasks.task(built, given.node), place_of.trusted, True)
        return _started(built, shapes, place_of, masked)


def _say(text: str) -> None:
    """What the node says, in the log of the script."""
    log.log(whole(text).level, "%s", text)


def _started(federation: Federation, shapes: ScriptModel, place: Place, task: Task) -> Peers:
    """Start the node. Raises ConfigError."""
    node = task.node
    for event in task.events:
        if event.node == node and event.event in ("crash", "freeze"):
            raise ConfigError(
                f"churn: node {node} is to {event.event} in round {event.round}, and this process is not p2pfl's to "
                "end or to stop; leave it out, and do it yourself"
            )

    def init(seed: int, site: Tree = None) -> Any:
        whole = {**federation.learner.init(jax.random.key(seed)), **shapes.begin}
        return federation.algorithm.init(placed(whole, site), task.slots)

    task = task._replace(program=task.program._replace(init=init))
    place.directory.mkdir(parents=True, exist_ok=True)
    about.about(federation, node, task.score).write(place.directory)
    handover = Handover(task)
    with contextlib.ExitStack() as unless_made:
        membership = sidecar.spawn()
        unless_made.callback(membership.close)
        live = LiveNode(task, place, membership, _say, handover, shapes.precision)
        unless_made.pop_all()  # the node closes it itself
    limits = starting(timing(federation.experiment), len(federation.graph))
    made = Peers(live, handover, shapes, limits.start_timeout + 2 * limits.silence, place, node)
    made._start()
    return made


def _told(place: Mapping[str, Any], told: Mapping[str, Any]) -> tuple[NodeFile, Experiment, str]:
    """The node file and the experiment that the arguments of `join` stand for."""
    for name in ("node", "listen"):
        if place[name] is None and place["federation"] is None:
            raise ConfigError(f"join: {name}: missing; give it, or federation and key, or a node file")
    if told["topology"] is None:
        raise ConfigError('join: topology: missing; give it as in topology={"graph": "ring", "nodes": 4}')
    algorithm = told["algorithm"] or "dsgd"
    table = {
        "name": "script",
        "data": {"source": "script"},
        "topology": {**told["topology"]},
        "algorithm": {"name": algorithm} if isinstance(algorithm, str) else {**algorithm},
        "network": {"preset": "lan", **(told["network"] or {})},
        "rounds": ROUNDS if told["rounds"] is None else told["rounds"],
        **({} if told["seed"] is None else {"seed": told["seed"]}),
        **({} if told["checkpoint"] is None else {"driver": {"checkpoint": told["checkpoint"]}}),
    }
    written = {name: value for name, value in place.items() if value is not None}
    given: NodeFile = config.parse({"experiment": "", **written}, "join", NodeFile)
    experiment: Experiment = config.parse(table, "join", Experiment)
    return given, experiment, "join"


def _only_file(file: Path | str, told: Mapping[str, Any]) -> None:
    """Raises ConfigError for arguments that stand in the file already."""
    both = [name for name, value in told.items() if value is not None]
    if both:
        raise ConfigError(f"join: {', '.join(both)}: given beside {file}, where that stands; leave it out")


def _directory(file: Path | str | None, given: CompleteNode) -> Path:
    if file is not None and given.out:
        return Path(file).parent / given.out
    return Path(f"p2pfl-node-{given.node}")


def _built(
    experiment: Experiment,
    given: CompleteNode,
    params: Tree,
    learner: Learner | None,
    optimizer: optax.GradientTransformation | None,
) -> tuple[Federation, ScriptModel]:
    """The federation, and how its model lies in the script's. Raises ConfigError."""
    leaves = leaves_of(params)
    if (learner is None) != (optimizer is None):
        raise ConfigError("join: learner and optimizer: `local` needs both; give the other one, too")
    if not isinstance(experiment.data, ScriptData):
        if learner is not None:
            raise ConfigError("join: learner: the experiment names a model and an optimizer; leave learner out")
        with double(experiment.training.dtype == "float64"):
            own = given.data
            federation = build_own(experiment, given.node, own, given.admitted) if own else build(experiment)
            return federation, ScriptModel(federation, params, leaves, tree.mixed(model_shape(federation)), steps=True)
    with double(any(np.dtype(leaf.dtype) == np.float64 for leaf in leaves.values())):
        if learner is None or optimizer is None:
            model = {"trained": shared(experiment, leaves), "carried": {}}
            federation = build_script(experiment, ScriptedSteps(stepless(model), optax.identity()), given.node)
            return federation, ScriptModel(federation, params, leaves, model, steps=False)
        if experiment.algorithm.share is not None:
            raise ConfigError("algorithm.share: does not go with a learner of a script; leave out one of them")
        federation = build_script(experiment, ScriptedSteps(learner, optimizer), given.node)
        return federation, ScriptModel(federation, params, leaves, tree.mixed(model_shape(federation)), steps=True)
