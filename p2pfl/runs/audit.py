"""`p2pfl audit RUN | EXPERIMENT`: what a neighbour could learn, measured: the leak report.

    RUN/audit/audit.json   what was attacked, how, and how near each attack has come
    RUN/audit/audit.npz    rows that were found, beside the true ones that are nearest

The run's messages are computed again by the plain loop, from its experiment and seeds; attacks then have what one node
was sent of them, what all know, and that node's own rows (`p2pfl.methods.audit.Overheard`). The truth only scores.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import networkx as nx
import numpy as np

from p2pfl import tree
from p2pfl.config import experiment as config
from p2pfl.config import toml
from p2pfl.config.experiment import Evaluation, Experiment, Privacy
from p2pfl.data import Dataset
from p2pfl.data.stored import Stored, part
from p2pfl.drivers.simulate import loop
from p2pfl.errors import ConfigError
from p2pfl.federation import privacy, secure, tasks
from p2pfl.federation.datasets import watched
from p2pfl.federation.federation import Federation, build, precision
from p2pfl.learning.batching import one
from p2pfl.methods import audit as attacks
from p2pfl.methods.audit import LocalChange, Overheard, PublicFacts, Search
from p2pfl.methods.audit.heard import bounds, flat, shaped
from p2pfl.methods.audit.score import Nearness, nearness
from p2pfl.methods.privacy import joint_view
from p2pfl.node.program import node_key
from p2pfl.runs import run as runs
from p2pfl.runs import simulated, summary
from p2pfl.topology import matrix
from p2pfl.types import Batches, Params, Tree

FOLDER, TABLE, ARRAYS = "audit", "audit.json", "audit.npz"
LINEAR = ("dsgd", "dfedavg", "dmsgd", "fedprox")
"""Algorithms that send the model after the local steps and mix it by the graph's weights."""
WRAPS = ("cast", "noise")
"""Combinators by which what is sent still is a model."""
SEARCHED = 512
"""Rows that are searched for at once, at most."""
SHOWN = 8
"""Pairs of rows that are kept of each attack."""
GRAPH_ROUNDS = 6
"""Rounds of messages that are solved, at most."""
CANDIDATES = 1000
"""Rows whose membership is asked for, at most."""
DEALT = ("iid", "dirichlet", "shards")
"""Partitions by which rows of a class are alike at all nodes: they are dealt at random."""


ELSEWHERE = (
    "the audit computes all messages again, and for that it must have the rows of all nodes. Audit the experiment with "
    "rows that are on this machine, as for a rehearsal: p2pfl audit EXPERIMENT.toml --set data.path=ROWS.csv"
)
"""Why nodes with rows of their own can't be audited, and what can."""


class AuditQuestion(NamedTuple):
    """What is attacked, and how."""

    node: int = 0  # who listens
    victim: int | None = None  # whom it attacks; its first neighbour
    rounds: int | None = None  # that are computed again; all
    steps: tuple[int, ...] = ()  # local steps of settings beside the experiment's own; 1
    batches: tuple[int, ...] = ()  # rows of a step in them; 1
    noise: tuple[float, ...] = (0.001, 0.01, 0.1)  # multipliers of [privacy] in the smallest of them
    iterations: int = 400
    shadows: int = 16
    seed: int = 0


class Case(NamedTuple):
    """A setting whose messages are attacked."""

    steps: int
    batch_size: int
    noise: float  # multiplier of [privacy]; 0: none
    masked: bool


class Transcript(NamedTuple):
    """Everything that was sent, and what it was made of: the auditor's, of which a node gets its own part."""

    federation: Federation
    plain: Federation  # the same without [privacy]
    weights: np.ndarray  # [T, n, n]
    payloads: Mapping[tuple[int, int], Tree]  # (round, sender), without masks
    masked: bool = False  # [secure]: nodes got sums of these alone


class _Gathered:
    """What an audit has found so far."""

    def __init__(self) -> None:
        self.table: dict[str, Any] = {"inversion": [], "graph": {}, "membership": {}, "notes": []}
        self.arrays: dict[str, np.ndarray] = {}


def audit(
    run: Path, asked: AuditQuestion, out: Path | None = None, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Attack what a node of a run was sent, and write down how near the attacks have come.

    Args:
        run: the directory of a run.
        asked: who attacks whom, and how.
        out: directory to write to; RUN/audit unless given.
        say: takes a line of progress.

    Returns:
        What `audit.json` holds.

    Raises:
        ConfigError: the run has something that can't be attacked here, or there is no such node.
    """
    experiment = config.load(_file_of(run))
    precision(experiment)
    check(experiment, asked)
    bare, left_out = _bare(experiment, asked.rounds)
    federation = build(bare)
    _check_data(federation)
    victim = _victim(federation, asked)
    say(f"computing the messages of {bare.rounds} rounds again")
    told = overhear(bare, federation)._replace(masked=secure.mixing(experiment) is not None)
    gathered = _Gathered()
    gathered.table |= _about(told, asked, victim, left_out)
    _invert_all(told, asked, victim, gathered, say)
    say("solving for nodes over the graph")
    _over_graph(told, asked, gathered)
    say("asking who was trained on")
    _memberships(told, asked, victim, gathered)
    _of_models(told, asked, victim, gathered)
    out = out or run / FOLDER
    out.mkdir(parents=True, exist_ok=True)
    plain = tree.plain(gathered.table)
    (out / TABLE).write_text(json.dumps(plain, indent=1) + "\n", "utf-8")
    np.savez_compressed(out / ARRAYS, **gathered.arrays)  # type: ignore[arg-type]
    found: dict[str, Any] = plain
    return found


def simulate(
    file: Path, overrides: Sequence[str], out: Path | None, asked: AuditQuestion, say: Callable[[str], None]
) -> Path:
    """Simulate an experiment, without baselines, into a run directory that can be audited; returns it.

    Raises ConfigError before anything starts, also for what can't be audited.
    """
    if file.is_file() and config.is_node(file) and "data" in toml.read(file):
        raise ConfigError(f"{file}: is the file of a node with rows of its own; {ELSEWHERE}")
    experiment = config.load(file, overrides, find=True)
    check(experiment, asked)
    rounds = min(asked.rounds or experiment.rounds, experiment.rounds)
    churn = experiment.churn if rounds == experiment.rounds else ()  # what is planned may lie beyond
    wanted = replace(
        experiment, baselines=False, driver=replace(experiment.driver, kind="simulate"), rounds=rounds, churn=churn
    )
    precision(experiment)
    federation = build(_bare(experiment, asked.rounds)[0])  # what can't be attacked is found before it is simulated
    _check_data(federation)
    _victim(federation, asked)
    out = out or runs.default_out(f"audit-{experiment.name}")
    say(f"simulating {wanted.rounds} rounds into {out}")
    runs.run(wanted, out)
    return out


# --- what can be audited


def _file_of(run: Path) -> Path:
    """The experiment of a run. Raises ConfigError for what is none, and for nodes that had rows of their own."""
    if (own := summary.own_rows(run)) is not None:
        node, file = own
        raise ConfigError(f"{file}: node {node} trained on rows of its own; {ELSEWHERE}")
    file = run / "experiment.toml"
    if not file.is_file() and (run / "about.json").is_file():
        raise ConfigError(f"{run}: is the directory of a single node; {ELSEWHERE}")
    if not file.is_file():
        raise ConfigError(f"{run}: has no experiment.toml; give the directory of a run, or an experiment file")
    if not any((run / name).is_file() for name in ("summary.json", "metrics.jsonl", "rounds.jsonl")):
        raise ConfigError(f"{run}: holds an experiment and no run of it; give {file}, which is simulated then")
    return file


def check(experiment: Experiment, asked: AuditQuestion) -> None:
    """Raises ConfigError for what can't be attacked here, before anything is computed."""
    table, training = experiment.algorithm, experiment.training
    if experiment.data.source in ("quadratic", "script"):
        raise ConfigError(f"data.source={experiment.data.source!r}: has no rows that could be told; nothing to audit")
    if table.name not in LINEAR or table.arguments.get("order") == "cta":
        raise ConfigError(
            f"algorithm.name={table.name!r}: the audit knows what is in the messages of {', '.join(LINEAR)} alone, "
            "which send the model after the local steps; audit the experiment with --set 'algorithm.name=\"dsgd\"'"
        )
    for i, given in enumerate(table.wrap):
        if given.get("name") not in WRAPS:
            raise ConfigError(
                f"algorithm.wrap[{i}]: with {given.get('name')} a neighbour is not sent a model as it is, or does not "
                f"mix it by the graph's weights; audited are {', '.join(WRAPS)}. Leave it out: what masks leave of "
                "messages is a line of every report, and in the first round robust rules change nothing of what is sent"
            )
    for i, given in enumerate(training.objective):
        if given.get("name") not in privacy.OBJECTIVES:
            raise ConfigError(
                f"training.objective[{i}]: the audit does not know how {given.get('name')} makes models of rows; "
                f"audited are {', '.join(sorted(privacy.OBJECTIVES))}"
            )
    if experiment.statistics.gather or experiment.statistics.normalize:
        raise ConfigError("statistics: the first rounds exchange sums and no models that were trained; leave them out")
    if table.arguments.get("mix_momentum"):
        raise ConfigError(
            "algorithm.arguments.mix_momentum: momentum then travels beside the model, and holds the gradient as it "
            "is: who is sent it needs no attack. Audited is what models alone tell; leave it out"
        )
    private = experiment.privacy
    if private and private.correlated is not None:
        raise ConfigError(
            f"privacy.correlated={private.correlated:g}: a neighbour knows the noise that it shares with its victim "
            "and would take it off first, which attacks here do not, so that they would find too little; what is "
            "proved of it is in privacy.json. Leave it out, to attack what lies under each node's own noise"
        )
    if private and private.noise is None and (asked.rounds or experiment.rounds) < experiment.rounds:
        raise ConfigError(
            f"rounds={asked.rounds}: with privacy.epsilon alone the noise follows from how many rounds there are; "
            "leave it out, or give privacy.noise"
        )
    for name in ("steps", "batches", "noise"):
        if any(not value > 0 for value in getattr(asked, name)):
            raise ConfigError(f"{name}={list(getattr(asked, name))}: each must be > 0")
    for name in ("rounds", "iterations"):
        if (value := getattr(asked, name)) is not None and value < 1:
            raise ConfigError(f"{name}={value}: must be >= 1")


def _check_data(federation: Federation) -> None:
    """Raises ConfigError for data that can't be attacked here."""
    data = federation.dataset
    if data.kind != "classes":
        raise ConfigError(
            f"data: of the kind {data.kind}; rows are searched for by the classes that labels can be, so audited are "
            "classes alone"
        )
    if isinstance(data.train.x, Stored):
        raise ConfigError("data: volumes are too large to be searched for; audited are images and tables")
    if not np.isfinite(data.train.x).all():
        raise ConfigError("data: has missing values, which can't be searched for; fill them in")


def _bare(experiment: Experiment, rounds: int | None) -> tuple[Experiment, list[str]]:
    """The experiment without what befalls it, and what that is. Without masks: what they leave is worked out later."""
    network, table = experiment.network, experiment.topology
    given = {
        "churn": bool(experiment.churn), "attack": bool(experiment.attack), "network.loss": network.loss > 0,
        "network.late": network.late > 0, "topology.take_part": table.take_part < 1,
        "rows held back for validation": watched(experiment),
    }  # fmt: skip
    wanted = min(rounds or experiment.rounds, experiment.rounds)
    bare = replace(
        experiment, rounds=wanted, churn=(), attack=(), baselines=False, secure=None,
        network=replace(network, loss=0.0, late=0), topology=replace(table, take_part=1.0),
        evaluation=Evaluation(every=wanted, metrics=False), training=replace(experiment.training, patience=None),
    )  # fmt: skip
    return bare, [name for name, is_there in given.items() if is_there]


def _victim(federation: Federation, asked: AuditQuestion) -> int:
    """Whom the node attacks. Raises ConfigError."""
    nodes = len(federation.graph)
    if not 0 <= asked.node < nodes:
        raise ConfigError(f"node={asked.node}: must be from 0 to {nodes - 1}")
    around = _linked(matrix(federation.schedule, 0), asked.node)
    if len(federation.partition.train[asked.node]) < 2:
        raise ConfigError(f"node={asked.node}: has fewer than 2 training rows of its own; choose another one")
    victim = around[0] if asked.victim is None and around else asked.victim
    if victim is None or victim not in around:
        raise ConfigError(
            f"victim={victim}: in the first round node {asked.node} is sent the models of "
            f"{', '.join(map(str, around)) or 'nobody'}; choose one of them"
        )
    return victim


# --- the messages, and what one node has of them


def overhear(experiment: Experiment, built: Federation | None = None) -> Transcript:
    """Run an experiment by the plain loop, and keep what is sent in the first rounds and in the last.

    `built`: of the experiment, where it has been. Raises ConfigError, LocalError.
    """
    federation = built or build(experiment)
    plain = federation if experiment.privacy is None else build(replace(experiment, privacy=None))
    payloads: dict[tuple[int, int], Tree] = {}

    def listen(round: int, sender: int, receiver: int, payload: Tree) -> None:
        if (round, sender) not in payloads and (round <= GRAPH_ROUNDS or round == experiment.rounds):
            whole = jax.tree.map(lambda leaf: np.asarray(leaf).astype(_wide(leaf.dtype)), tree.mixed(payload))
            payloads[round, sender] = whole

    loop.run(
        tasks.tasks(federation), simulated.deliveries(federation), lambda node, measured, traced: None, lambda: 0.0,
        listen=listen,
    )  # fmt: skip
    weights = np.stack([matrix(federation.schedule, row) for row in range(len(federation.schedule.neighbor))])
    return Transcript(federation, plain, weights, payloads)


def _wide(dtype: Any) -> Any:
    """What half a precision is widened to, as a node does that mixes it."""
    return np.float32 if jax.numpy.issubdtype(dtype, jax.numpy.floating) and dtype.itemsize < 4 else dtype


def heard_by(told: Transcript, node: int, masked: bool = False) -> Overheard:
    """Return what one node has: its neighbours' messages, the experiment's facts, its own rows. No row of another."""
    federation, plain = told.federation, told.plain
    experiment, data = federation.experiment, federation.dataset.train
    algorithm, rule = plain.algorithm, experiment.training.optimizer
    rows = federation.partition.train[node]
    x = np.asarray(part(data.x, rows)).astype(experiment.training.dtype)
    payloads = {
        (round, sender): payload for (round, sender), payload in told.payloads.items()
        if sender == node or (not masked and sender in _linked(told.weights[(round - 1) % len(told.weights)], node))
    }  # fmt: skip
    task = tasks.task(plain, node)
    first = task.program.params(task.program.init(experiment.seed, task.site))

    def local(params: Params, batches: Batches, node: int, round: int) -> Params:
        state, _ = algorithm.local(algorithm.init(params, 1), batches, node_key(experiment.seed, node, round), None)
        return algorithm.params(state)

    steady = isinstance(rule, dict) and rule.keys() == {"name", "learning_rate"} and rule["name"] == "sgd"
    rate = rule["learning_rate"] if steady and isinstance(rule, dict) else None
    facts = PublicFacts(
        plain.learner, local, federation.steps, federation.experiment.training.batch_size,
        float(rate) if isinstance(rate, int | float) else None, told.weights, len(federation.dataset.classes), masked,
    )  # fmt: skip
    picture = picture_of(federation.dataset)
    low, high = bounds(x, bool(picture))
    mixed = {round: _mixed(told, node, round) for round in sorted({key[0] for key in payloads})}
    return Overheard(node, facts, first, payloads, mixed, x, np.asarray(part(data.y, rows)), low, high, picture)


def _linked(weights: np.ndarray, node: int) -> list[int]:
    """The others whose models a node is sent in a round, by its weights [n, n]."""
    return [int(j) for j in np.flatnonzero(weights[node]) if j != node]


def picture_of(dataset: Dataset) -> tuple[int, ...]:
    """Return the shape of a row as an image [H, W, C]; () of a table. Columns pixel_0_0, pixel_0_1, ... are one."""
    shape = dataset.train.x.shape[1:]
    if len(shape) == 3:
        return shape
    places = [re.fullmatch(r"pixel_(\d+)_(\d+)", name) for name in dataset.features]
    if not places or not all(places):
        return ()
    height, width = (max(int(each[axis]) for each in places if each) + 1 for axis in (1, 2))
    return (height, width, 1) if height * width == shape[0] else ()


def _mixed(told: Transcript, node: int, round: int) -> Tree:
    """The node's own model after the mixing of a round: the weighted sum of what it has been sent."""
    weight = told.weights[(round - 1) % len(told.weights)][node]
    rows = [weight[j] * flat(told.payloads[round, int(j)]) for j in np.flatnonzero(weight)]
    return shaped(np.sum(rows, axis=0), told.payloads[round, node])


def change_of(heard: Overheard, victim: int) -> LocalChange:
    """Return what a neighbour's local steps of the first round have changed, as a node works it out.

    With masks: what those of all its neighbours have changed, in the weighted mean, as if they were one.
    """
    facts, first = heard.facts, flat(heard.first)
    sent = _sent(heard, victim, 1)
    many = len(_linked(facts.weights[0], heard.node)) if facts.masked else 1
    change = shaped(flat(sent) - first, sent)
    return LocalChange(victim, 1, heard.first, change, int(facts.steps[victim]), facts.batch_size * many)


def _sent(heard: Overheard, victim: int, round: int) -> Tree:
    """What a node was sent by its victim in a round; with masks the weighted mean of what all its neighbours have sent.

    That is the sum that it mixes, without its own part.
    """
    facts, me = heard.facts, heard.node
    if not facts.masked:
        return heard.payloads[round, victim]
    weight, own = facts.weights[(round - 1) % len(facts.weights)][me], heard.payloads[round, me]
    sum_of_others = flat(heard.mixed[round]) - weight[me] * flat(own)
    return shaped(sum_of_others / (weight.sum() - weight[me]), own)


def _last(told: Transcript, heard: Overheard, victim: int) -> tuple[int, Params]:
    """The last round in which a node was sent something of its victim, and the model that it then has of it."""
    last = max(
        round for round, sender in told.payloads
        if sender == victim and victim in _linked(told.weights[(round - 1) % len(told.weights)], heard.node)
    )  # fmt: skip
    return last, {**heard.first, **_sent(heard, victim, last)}


# --- the truth, which scores


def places_of(federation: Federation, node: int, rounds: Sequence[int]) -> np.ndarray:
    """Return which of its rows a node has trained on in these rounds, each once."""
    used = None if federation.used is None else int(federation.used[node])
    own, steps = federation.partition.train[node], int(federation.steps[node])
    drawn = one(federation.experiment.seed, node, len(own), steps, federation.batch_size, used)
    return np.unique(np.concatenate([drawn.indices(round)[0].ravel() for round in rounds]))


def rows_of(federation: Federation, node: int, rounds: Sequence[int]) -> np.ndarray:
    """Return these rows: [M, ...]."""
    own = federation.partition.train[node][places_of(federation, node, rounds)]
    return np.asarray(part(federation.dataset.train.x, own)).astype(federation.experiment.training.dtype)


def _true_change(told: Transcript, first: np.ndarray, node: int, round: int) -> np.ndarray:
    """What a node has in truth contributed in a round, [D]; `first` [D]: the model that all began with."""
    before = first if round == 1 else flat(_mixed(told, node, round - 1))
    return flat(told.payloads[round, node]) - before


# --- inversion


def _cases(federation: Federation, victim: int, asked: AuditQuestion, masked: bool) -> list[Case]:
    """The settings that are attacked: the experiment's own, the same with masks (or without), and others."""
    private = federation.learning.private
    noise = private.noise[victim] if private else 0.0
    own = Case(int(federation.steps[victim]), federation.experiment.training.batch_size, noise, masked)
    grid = [
        Case(each, size, 0.0, masked)
        for each in sorted({*asked.steps} or {1})
        for size in sorted({*asked.batches} or {1})
    ]
    least = min(grid, key=lambda case: case.steps * case.batch_size)
    noisy = [least._replace(noise=noise) for noise in sorted(asked.noise)]
    found = [own, own._replace(masked=not masked), *grid, *noisy]
    return [case for i, case in enumerate(found) if case not in found[:i]]


def _with(experiment: Experiment, case: Case) -> Experiment:
    """One round of the experiment in this setting."""
    table = None
    if case.noise:
        table = replace(experiment.privacy or Privacy(clip=1.0, delta=1e-5), noise=case.noise, epsilon=None)
    training = replace(experiment.training, local_steps=case.steps, batch_size=case.batch_size, node_steps=None)
    evaluation = replace(experiment.evaluation, every=1)
    return replace(experiment, rounds=1, training=training, privacy=table, evaluation=evaluation)


def _invert_all(
    told: Transcript, asked: AuditQuestion, victim: int, gathered: _Gathered, say: Callable[[str], None]
) -> None:
    """Attack the messages of the first round in every setting."""
    experiment = told.federation.experiment
    cases = _cases(told.federation, victim, asked, told.masked)
    if asked.noise and importlib.util.find_spec("dp_accounting") is None:
        cases = [case for case in cases if not case.noise or case == cases[0] or case == cases[1]]
        gathered.table["notes"].append("no setting with noise: that needs pip install 'p2pfl-jax[privacy]'")
    known: dict[Case, Transcript] = {}
    for i, case in enumerate(cases):
        alike = case._replace(masked=False)
        if alike not in known:
            known[alike] = overhear(_with(experiment, case))
        there = known[alike]
        say(f"attacking {said(case)}")
        heard = heard_by(there, asked.node, case.masked)
        change = change_of(heard, victim)
        found = invert_by_all(change, heard, asked)
        whose = _linked(told.weights[0], asked.node) if case.masked else [victim]
        truth = np.unique(np.concatenate([rows_of(there.federation, j, [1]) for j in whose]), axis=0)
        for attack, rows in found.items():
            near = nearness(rows, truth, heard.low, heard.high)
            gathered.table["inversion"].append(
                {
                    "case": i, "said": said(case), "own": i == 0, "steps": case.steps, "batch_size": case.batch_size,
                    "noise": case.noise, "masks": case.masked, "attack": attack, "rows": len(truth),
                    **_figures(near),
                }
            )  # fmt: skip
            _keep(gathered, f"{i}/{attack}", rows, truth, near, heard.picture)
        if case.steps * change.rows > SEARCHED:
            gathered.table["notes"].append(
                f"{said(case)}: {case.steps * change.rows} rows are more than the {SEARCHED} that are searched for at "
                "once; only the closed form was tried"
            )


def invert_by_all(change: LocalChange, heard: Overheard, asked: AuditQuestion) -> dict[str, np.ndarray]:
    """Return the rows that each attack finds, by its name; "guess": those of somebody who has been sent nothing.

    The guess of a row is the mean of the node's own rows of its class, so it knows the labels of an attack.
    """
    y = attacks.labels(change, heard)
    found = {"guess": np.stack([_mean_of(heard, int(label)) for label in y])}
    divided = attacks.closed_form(change, heard.x.shape[1:])
    if divided is not None:
        found["closed form"] = np.stack([divided.astype(heard.x.dtype)] * len(y))  # of several rows one mixture
    if change.steps * change.rows <= SEARCHED:
        for attack in ("dlg", "cosine"):
            search = Search(attack, asked.iterations)
            found[attack] = attacks.invert(change, heard, search, asked.seed).x
    return found


def _mean_of(heard: Overheard, label: int) -> np.ndarray:
    rows = heard.x[heard.y == label]
    mean: np.ndarray = (rows if len(rows) else heard.x).mean(axis=0)
    return mean


def said(case: Case) -> str:
    """Return a setting in words."""
    noise = f"noise {case.noise:.3g}" if case.noise else "no noise"
    steps = f"{case.steps} local step{'s' if case.steps > 1 else ''}"
    rows = f"{case.batch_size} row{'s' if case.batch_size > 1 else ''}"
    return f"{steps} of {rows}, {noise}{', masks' if case.masked else ''}"


def _figures(near: Nearness) -> dict[str, float]:
    return {"psnr": near.psnr, "best": near.best, "ssim": near.ssim}


def _keep(
    gathered: _Gathered, name: str, rows: np.ndarray, truth: np.ndarray, near: Nearness, picture: tuple[int, ...]
) -> None:
    """Keep the nearest pairs for the page."""
    mine, theirs = (list(each) for each in zip(*near.pairs[:SHOWN], strict=True))
    for which, kept in (("found", rows[mine]), ("true", truth[theirs])):
        laid_out = kept.reshape(len(kept), *picture) if picture else kept
        gathered.arrays[f"{name}/{which}"] = laid_out.astype(np.float32)


# --- over the graph


def _over_graph(told: Transcript, asked: AuditQuestion, gathered: _Gathered) -> None:
    """Solve for contributions of all nodes, and search for rows of those farthest away that are solved for."""
    federation, experiment = told.federation, told.federation.experiment
    if experiment.algorithm.wrap:
        gathered.table["notes"].append("over the graph: not solved, since algorithm.wrap changes what is mixed")
        return
    distance: dict[int, int] = nx.single_source_shortest_path_length(federation.graph, asked.node)
    rounds = min(experiment.rounds, GRAPH_ROUNDS, max(distance.values()) + 1)
    nodes = len(federation.graph)
    if joint_view.too_large(told.weights, rounds, range(nodes)):
        gathered.table["notes"].append(f"over the graph: not solved, since {nodes} nodes take minutes")
        return
    heard = heard_by(told, asked.node, told.masked)
    known = attacks.knowledge(told.weights, rounds, asked.node, told.masked)
    exact, steady = attacks.exact(known), attacks.solve_steady(known, heard)
    solved = attacks.solve(known, heard, exact)
    masked = attacks.knowledge(told.weights, rounds, asked.node, masked=True)
    hidden = {node for node, _ in attacks.exact(masked)}, set(attacks.steady(masked))
    first = flat(heard.first)
    rows = [
        {
            "node": node, "distance": distance.get(node),
            "rounds": [each.round for each in solved if each.node == node],
            "off": max((_off(each.change, _true_change(told, first, node, each.round)) for each in solved
                        if each.node == node), default=None),
            "steady": node in steady,
            "steady_off": _off(steady[node], _true_change(told, first, node, 1)) if node in steady else None,
            "masked": node in hidden[0],
            "masked_steady": node in hidden[1],
        }
        for node in range(nodes) if node != asked.node
    ]  # fmt: skip
    gathered.table["graph"] = {
        "rounds": rounds, "masks": told.masked, "rank": int(np.linalg.matrix_rank(_stacked(known))),
        "unknown": rounds * (nodes - 1), "nodes": rows,
    }  # fmt: skip
    far = [
        *[each for each in solved if each.start is not None and distance[each.node] > 1][-1:],
        *[each for each in solved if each.start is not None and each.round > 1 and distance[each.node] == 1][:1],
    ]
    for each in far:
        assert each.start is not None
        _search_far(told, asked, gathered, heard, (each.node, each.round), each.change, each.start, "exact")
    beyond = [node for node in steady if distance[node] > 1 and not any(each.node == node for each in solved)]
    for node in beyond[:1]:
        _search_far(told, asked, gathered, heard, (node, 1), steady[node], np.zeros_like(steady[node]), "steady")


def _stacked(known: attacks.Knowledge) -> np.ndarray:
    honest = [node for node in range(known.matrix.shape[2]) if node != known.node]
    found: np.ndarray = known.matrix[:, :, honest].reshape(len(known.matrix), -1)
    return found


def _search_far(
    told: Transcript, asked: AuditQuestion, gathered: _Gathered, heard: Overheard, whose: tuple[int, int],
    change: np.ndarray, start: np.ndarray, how: str,
) -> None:  # fmt: skip
    """Search for the rows of a contribution that was solved for, and add what was found."""
    facts, (node, round) = heard.facts, whose
    like = heard.payloads[1, heard.node]
    begun = {**heard.first, **shaped(flat(heard.first) + start, like)}
    steps = int(facts.steps[node])
    wanted = LocalChange(node, round, begun, shaped(change, like), steps, facts.batch_size)
    rounds = [round] if how == "exact" else list(range(1, gathered.table["graph"]["rounds"] + 1))
    truth = np.unique(rows_of(told.federation, node, rounds), axis=0)
    found = []
    for attack, rows in invert_by_all(wanted, heard, asked).items():
        near = nearness(rows, truth, heard.low, heard.high)
        found.append({"node": node, "round": round, "how": how, "attack": attack, **_figures(near)})
        _keep(gathered, f"graph {node} {round} {how}/{attack}", rows, truth, near, heard.picture)
    gathered.table["graph"].setdefault("inversion", []).extend(found)


def _off(found: np.ndarray, truth: np.ndarray) -> float:
    """By how much a contribution that was solved for is off, relative to it."""
    return float(np.linalg.norm(found - truth)) / max(float(np.linalg.norm(truth)), 1e-30)


# --- of models


def _memberships(told: Transcript, asked: AuditQuestion, victim: int, gathered: _Gathered) -> None:
    """Ask of rows of the victim, and as many that nobody was trained on, which are which."""
    federation = told.federation
    heard = heard_by(told, asked.node, told.masked)
    last, params = _last(told, heard, victim)
    x, y, member = _candidates(federation, victim, asked.seed)
    same_site = _others(federation, victim)[1]
    table: dict[str, Any] = {"round": last, "rows": len(y), "same_site": same_site}
    if not same_site and not _dealt(federation):
        gathered.table["notes"].append(
            f"membership: node {victim} has no test rows of its own, so the others are of all nodes; what differs from "
            "node to node tells them apart, too, as the guess says"
        )
    if len(y):
        scores = {
            "guess": attacks.by_loss(heard, heard.first, x, y),
            "loss": attacks.by_loss(heard, params, x, y),
            "shadows": attacks.by_shadows(heard, params, x, y, asked.shadows, seed=asked.seed),
        }
        for name, score in scores.items():
            found = attacks.told(score, member)
            table[name] = found._asdict() if found else None
    gathered.table["membership"] = table


def _dealt(federation: Federation) -> bool:
    """Whether rows of a class are alike at all nodes."""
    return federation.experiment.data.partition.partition in DEALT


def _others(federation: Federation, victim: int) -> tuple[np.ndarray, bool]:
    """The test rows that a node's training rows are told from, [M]; whether they are its own.

    Its own, where it has some and nodes may differ in more than their classes: rows of another site, with another
    scanner, would be told from its rows by a model that was trained on neither.
    """
    own = federation.partition.test[victim]
    if _dealt(federation) or not len(own):
        return np.arange(len(federation.dataset.test.y)), False
    return own, True


def _candidates(federation: Federation, victim: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the victim and test rows, as many of each class: x [N, ...], y [N], and which are the victim's [N]."""
    rng, data, others = np.random.default_rng(seed), federation.dataset, _others(federation, victim)[0]
    own, dtype = federation.partition.train[victim], federation.experiment.training.dtype
    inside, outside = np.asarray(part(data.train.y, own)), np.asarray(part(data.test.y, others))
    picked_in, picked_out = [], []
    for label in np.unique(inside):
        a, b = (np.flatnonzero(y == label) for y in (inside, outside))
        many = min(len(a), len(b), max(CANDIDATES // (2 * len(np.unique(inside))), 1))
        picked_in.append(rng.permutation(a)[:many])
        picked_out.append(rng.permutation(b)[:many])
    mine, theirs = np.concatenate(picked_in), np.concatenate(picked_out)
    x = np.concatenate([part(data.train.x, own[mine]), part(data.test.x, others[theirs])]).astype(dtype)
    y = np.concatenate([inside[mine], outside[theirs]])
    return x, y, np.arange(len(y)) < len(mine)


def _of_models(told: Transcript, asked: AuditQuestion, victim: int, gathered: _Gathered) -> None:
    """Ask the victim's last model what its classes look like, and count the equations for a row."""
    federation = told.federation
    heard = heard_by(told, asked.node, told.masked)
    last, params = _last(told, heard, victim)
    found = attacks.class_images(heard, params, asked.iterations)
    own = federation.partition.train[victim]
    x, y = (np.asarray(part(each, own)) for each in (federation.dataset.train.x, federation.dataset.train.y))
    there = np.unique(y)
    means = np.stack([x[y == label].mean(axis=0) for label in there])
    guessed = np.stack([_mean_of(heard, int(label)) for label in there])

    def near(rows: np.ndarray) -> float:
        pairs = zip(rows, means, strict=True)
        return float(np.mean([nearness(a[None], b[None], heard.low, heard.high).psnr for a, b in pairs]))

    gathered.table["model"] = {"round": last, "psnr": near(found[there]), "guess": near(guessed)}
    ranks = attacks.rank_index(heard.first, heard.x[0], int(heard.y[0]))
    if ranks is None:
        gathered.table["notes"].append("rank analysis: of plain mlp, logistic and cnn models alone")
    else:
        gathered.table["rank"] = {"index": ranks.total, "layers": [each._asdict() for each in ranks.layers]}


def _about(told: Transcript, asked: AuditQuestion, victim: int, left_out: list[str]) -> dict[str, Any]:
    """What is attacked."""
    federation, experiment = told.federation, told.federation.experiment
    notes = [
        f"computed again by the plain loop, from the experiment's file and seeds: the messages of "
        f"{experiment.rounds} rounds, and of one round in every other setting",
    ]
    if left_out:
        notes.append(f"without {', '.join(left_out)} of the experiment")
    if experiment.privacy is None:
        notes.append("lines with noise are with [privacy] of clip = 1")
    elif experiment.privacy.of == "updates":
        notes.append(f"lines with noise are with {experiment.privacy.law} noise on the clipped update of a round")
    if told.masked:
        notes.append(
            f"with the masks of [secure] node {asked.node} is sent a sum: whatever is said of node {victim}'s model is "
            "said of the weighted mean of all its neighbours' models"
        )
    notes.append("an attack that finds nothing proves nothing: others may do better")
    return {
        "name": experiment.name, "node": asked.node, "victim": victim, "rounds": experiment.rounds,
        "masks": told.masked, "nodes": len(federation.graph), "classes": list(federation.dataset.classes),
        "shape": list(federation.dataset.train.x.shape[1:]), "iterations": asked.iterations, "notes": notes,
    }  # fmt: skip
