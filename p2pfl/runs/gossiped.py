"""`p2pfl coefficients NODE.toml`: coefficients with standard errors by the nodes themselves, without their rows.

The nodes of a federation take the steps of Newton's method together: at coefficients that all know, each adds up its
own rows (log likelihood, score, observed information), and these sums are averaged by gossip, over the same exchanges
as models in training. So every node ends with the maximum of the likelihood of all rows, and its standard errors. Of
two classes, and of survival stratified by site.

It is a little federation of its own, of the same nodes at the same addresses, before, after or without training. Time
goes in phases. At the beginning of one the nodes tell each other what is asked, which is what the node with the lowest
number asks; then each begins with its own sums, and they are averaged for as many rounds as the graph needs to agree.
First how wide every column is, then what Newton's method wants. Beside its sums a node averages a 1 of its own: so each
knows of all whose rows are in the result, and how much they count. A phase that somebody left or missed is no phase: it
is asked again. Whoever comes late, or was away, takes part from the next one on.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from p2pfl import tree
from p2pfl.config import experiment as config
from p2pfl.config.experiment import AlgorithmTable, Experiment
from p2pfl.drivers.live import files, ports, sidecar
from p2pfl.drivers.live import node as live
from p2pfl.drivers.live.settings import Place, membership_address
from p2pfl.errors import ConfigError, Exit
from p2pfl.federation import tasks
from p2pfl.federation.federation import Federation, build, build_own, precision, terms
from p2pfl.learning import batching
from p2pfl.learning.batching import EvalSet
from p2pfl.learning.likelihood import Ascent, CoxRows, Likelihood, LogisticRows, Sums, ascended, ascent, concluded
from p2pfl.methods import statistics
from p2pfl.node import model_file
from p2pfl.node.program import Mixed, Program
from p2pfl.node.result import NodeResult
from p2pfl.node.task import Task
from p2pfl.runs import coefficients, flow, keyed
from p2pfl.runs.coefficients import Scale
from p2pfl.runs.verdict import RunVerdict
from p2pfl.types import Inbox, Neighborhood, Params, Payload, Schedule

KEYS = ("logistic", "stratified_by_site")
"""The fits of coefficients.json that are found here."""
_FILE = "coefficients.json"
TOLERANCE = 1e-7
"""Share of a sum by which an average may be off, at any node."""
PHASES = 32
"""Phases of a fit: one for the width of columns, and as many as Newton's method may take where a coefficient has no
finite estimate, so that the likelihood rises by ever less in each."""
_MOST = 100_000
"""Rounds of a phase, at most."""
_SLACK = 1e-3
"""What a log likelihood may seem to fall by, since nodes are not at the same coefficients to the last digit."""
_RISE = 1e-8
"""What it still rises by in the last step: more than sums that are off by 1e-5 make of it."""
_NEAR = 1e-3
"""How far apart two nodes' coefficients may be, beside 1 and themselves, for their sums to be of one thing."""
_HELD = 1e-4
"""How far the share of a site in the result may be from that of all others."""


class SiteRows(NamedTuple):
    """The rows of a node, and what all nodes know from the start."""

    node: int
    nodes: int
    kind: str  # "classes" or "survival"
    x: np.ndarray  # [N, F] float64; NaN: missing
    y: np.ndarray
    asking: int  # rounds of a phase in which it is told what is asked
    rounds: int  # of a phase in which sums are averaged

    @property
    def columns(self) -> int:
        """The number of coefficients."""
        return self.x.shape[1] + (self.kind == "classes")

    @property
    def length(self) -> int:
        """The length of sums."""
        return 3 + max(3 * self.x.shape[1], 1 + self.columns + self.columns * (self.columns + 1) // 2)


class Asked(NamedTuple):
    """What a phase asks for: sums of columns, or of the likelihood."""

    node: int  # who asks
    width: np.ndarray  # [3, F] sums of columns; all 0: they are asked for
    trial: np.ndarray  # [P] coefficients, of columns in units of their deviation

    @property
    def rank(self) -> tuple[bool, int]:
        """The order of those who ask: the least is heard."""
        return not self.width.any(), self.node


class Reached(NamedTuple):
    """How far Newton's method has come, and by whose rows."""

    newton: Ascent
    width: np.ndarray  # [3, F] sums of columns
    counts: np.ndarray  # [3] rows, events, sites
    share: np.ndarray  # [nodes] how much the sums of each counted in the last phase


class Fitting(NamedTuple):
    """The state of a node."""

    at: Reached
    asked: Asked
    phase: int
    begun: bool  # the sums of this phase are on their way
    sums: np.ndarray  # [length], averaged so far
    held: np.ndarray  # [nodes], whose sums these are
    best: Reached | None = None  # where the method has come to its end, by as many nodes as ever


def experiment_of(given: Experiment) -> Experiment:
    """The experiment of a fit: the same data, model and graph; nothing is trained."""
    return replace(
        given,
        name=f"{given.name}-coefficients",
        rounds=_MOST,
        algorithm=AlgorithmTable("dsgd"),
        churn=(),
        network=replace(given.network, sync="deadline", loss=0.0, late=0),
        training=replace(given.training, objective=(), node_steps=None),
        evaluation=replace(given.evaluation, answers=(), extra_metrics=()),
        baselines=False,
    )


class Phase(NamedTuple):
    """The rounds of a phase."""

    asking: int
    averaging: int

    @property
    def rounds(self) -> int:
        """Of all phases of a fit, and one to close the last."""
        return PHASES * (self.asking + self.averaging) + 1


def planned(federation: Federation) -> tuple[Federation, Phase]:
    """The federation with as many rounds as a fit takes, and those of a phase. Raises ConfigError."""
    averaging = statistics.rounds(federation.schedule, TOLERANCE, _MOST // PHASES, "exchange")
    phase = Phase(_heard(federation.schedule), averaging)
    return federation._replace(experiment=replace(federation.experiment, rounds=phase.rounds)), phase


def _heard(schedule: Schedule) -> int:
    """Rounds until every node has heard of every other, and two more for one that misses a word."""
    nodes, round = schedule.neighbor.shape[1], 0
    known = np.eye(nodes, dtype=bool)
    while not known.all():
        row = schedule.neighbor[round % len(schedule.neighbor)]
        heard = [[node, *(int(j) for j in row[node] if j >= 0)] for node in range(nodes)]
        known, round = np.array([known[of].any(axis=0) for of in heard]), round + 1
    return round + 2


def task(federation: Federation, node: int, phase: Phase) -> Task:
    """The task of a node of a fit. Raises ConfigError for rows of which no coefficients are found, and for few."""
    if not coefficients.asked(federation):
        raise ConfigError(
            'coefficients: are those of model.name = "logistic" on two classes, or of survival, on a table of at '
            f"most {coefficients.MOST} columns; this experiment learns something else"
        )
    made = tasks.task(federation, node)
    _disclosed(federation, node, made)
    if np.isnan(made.x).any() and not federation.experiment.statistics.normalize:
        raise ConfigError(
            "coefficients: cells are missing, and nobody fills them in; use [statistics] normalize = true"
        )
    x, kind = made.x.astype(np.float64), federation.dataset.kind
    facts = SiteRows(node, len(federation.graph), kind, x, np.asarray(made.y), *phase)
    return made._replace(
        program=program(facts, made.slots),
        batching=batching.one(made.seed, node, max(len(made.y), 1), 0, 1),
        test=EvalSet((), 0),
        own=np.zeros(0, np.int64),
        learned=None,
        evaluate_every=federation.experiment.rounds,
    )


def _disclosed(federation: Federation, node: int, made: Task) -> None:
    """Raises ConfigError where a site's sums would tell of few of its patients, as [statistics] would withhold them."""
    table, y = federation.experiment.statistics, np.asarray(made.y)
    if table.noise:
        raise ConfigError("coefficients: sums are sent as they are, without statistics.noise; leave noise out")
    counts = {"training rows": len(y)}
    if federation.dataset.kind == "survival":
        counts["events"] = int((y[:, 1] > 0).sum())
    else:
        counts |= {f"rows of class {name!r}": int((y == i).sum()) for i, name in enumerate(federation.dataset.classes)}
    known = (~np.isnan(made.x)).sum(axis=0)
    counts |= {f"rows that know {name!r}": int(n) for name, n in zip(federation.dataset.features, known, strict=False)}
    for what, count in counts.items():
        if 0 < count < table.minimum:
            raise ConfigError(
                f"coefficients: node {node} has {count} {what}, fewer than statistics.minimum={table.minimum}: a "
                "neighbour sees a site's own sums, and those of so few tell of single patients. Lower minimum at every "
                "site"
            )


def program(facts: SiteRows, slots: int) -> Program:
    """The computations of a node, in float64 on the host."""

    def train(
        state: Fitting, batches: Any, node: Any, round: Any, around: Neighborhood
    ) -> tuple[Fitting, Any, Payload, Params]:
        phase, within = divmod(int(round) - 1, facts.asking + facts.rounds)
        if phase > state.phase:
            state = _asking(facts, phase, _closed(facts, state))
        if within == facts.asking:
            state = _begun(facts, state)
        asked, tag = state.asked, np.array([state.phase, state.begun, state.asked.node])
        payload = {"tag": tag, "width": asked.width, "trial": asked.trial, "sums": state.sums, "held": state.held}
        model = {"tag": tag, "width": asked.width, "trial": asked.trial}
        return state, np.float32(0), payload, model

    def mix(state: Fitting, inbox: Inbox, around: Neighborhood) -> tuple[Fitting, Mixed]:
        slots = len(inbox.received)
        for k, (sent, received) in enumerate(zip(inbox.sent, inbox.received, strict=True)):
            if not inbox.arrived[k] or received["tag"][0] != state.phase:
                continue
            if not state.begun:
                theirs = Asked(int(received["tag"][2]), received["width"].copy(), received["trial"].copy())
                state = state._replace(asked=min(state.asked, theirs, key=lambda each: each.rank))
            elif sent["tag"][1] and (sent["tag"] == received["tag"]).all():
                weight = float(around.weight[k])
                sums = state.sums + weight * (received["sums"] - sent["sums"])
                held = state.held + weight * (received["held"] - sent["held"])
                state = state._replace(sums=sums, held=held)
        # `held` is the ledger here, and says more than sketches would
        nothing = Mixed(np.zeros((slots, tree.SKETCH), np.float32), np.zeros(tree.SKETCH, np.float32))
        return state, nothing

    def adopt(state: Fitting, model: Params) -> Fitting:
        newton = ascent(facts.columns)._replace(beta=np.array(model["trial"]))
        known = state.at._replace(newton=newton, width=np.array(model["width"]))
        return _asking(facts, int(model["tag"][0]), state._replace(at=known))

    return Program(
        slots=slots,
        init=lambda seed, site=None: _asking(facts, 0, _nothing(facts)),
        train=train,
        put=_nobody,
        mix=mix,
        adopt=adopt,
        restart=lambda state, slots: state,
        params=_params,
        evaluate=lambda state, test: (np.zeros(0), np.zeros(0)),
    )


def _nobody(state: Fitting, model: Params, around: Neighborhood) -> tuple[Fitting, Payload, Params | None]:
    raise AssertionError("nobody else computes here")


def _nothing(facts: SiteRows) -> Fitting:
    """The state of a node that knows nothing."""
    width, none = np.zeros((3, facts.x.shape[1])), np.zeros(facts.nodes)
    at = Reached(ascent(facts.columns), width, np.zeros(3), none)
    return Fitting(at, Asked(facts.node, width, at.newton.trial), 0, False, np.zeros(facts.length), none)


def _asking(facts: SiteRows, phase: int, state: Fitting) -> Fitting:
    """The state at the beginning of a phase: a node asks for what it needs itself, until it hears of another."""
    asked = Asked(facts.node, state.at.width, state.at.newton.trial)
    return state._replace(
        asked=asked, phase=phase, begun=False, sums=np.zeros(facts.length), held=np.zeros(facts.nodes)
    )


def _begun(facts: SiteRows, state: Fitting) -> Fitting:
    """The state when averaging begins: a node holds its own sums, and nobody else's."""
    asked, sums, held = state.asked, np.zeros(facts.length), np.zeros(facts.nodes)
    events = facts.y[:, 1] > 0 if facts.kind == "survival" else facts.y == 1
    own = _packed(rows(facts, scale(asked.width)).sums(asked.trial)) if asked.width.any() else _widths(facts).ravel()
    sums[:3], sums[3 : 3 + len(own)] = [len(facts.x), int(events.sum()), float(len(facts.x) > 0)], own
    held[facts.node] = 1.0
    return state._replace(begun=True, sums=sums, held=held)


def _closed(facts: SiteRows, state: Fitting) -> Fitting:
    """The state at the end of a phase: what was averaged is known, and Newton's method goes on."""
    at, asked, there = state.at, state.asked, state.held > 0
    nodes = np.count_nonzero(there)
    if not state.begun or (np.abs(nodes * state.held[there] - 1) > _HELD).any():
        return state  # somebody left, or came late: it is asked again
    counts, total = nodes * state.sums[:3], nodes * state.sums[3:]
    if not asked.width.any():
        width = total[: asked.width.size].reshape(asked.width.shape)
        return state._replace(at=Reached(ascent(facts.columns), width, counts, state.held))
    known = at.newton if _goes_on(at, asked, there) else ascent(facts.columns)._replace(beta=asked.trial)
    if known.done:
        return state
    newton = ascended(known, _unpacked(total, facts.columns), _SLACK, _RISE)
    at = Reached(newton, asked.width, counts, state.held)
    more = state.best is None or nodes >= np.count_nonzero(state.best.share > 0)
    return state._replace(at=at, best=at if newton.done and more else state.best)


def _goes_on(at: Reached, asked: Asked, there: np.ndarray) -> bool:
    """Whether what was asked is what this node's own method has asked for, of the same nodes."""
    near = np.abs(asked.trial - at.newton.trial) <= _NEAR * (1 + np.abs(asked.trial))
    same = np.allclose(asked.width, at.width, rtol=_NEAR) and (there == (at.share > 0)).all()
    return bool(near.all() and same)


def _widths(facts: SiteRows) -> np.ndarray:
    """Of each column the known rows, sum and sum of squares: [3, F]."""
    known = ~np.isnan(facts.x)
    x = np.where(known, facts.x, 0)
    return np.stack([known.sum(axis=0), x.sum(axis=0), (x**2).sum(axis=0)])


def scale(width: np.ndarray) -> Scale:
    """The columns in units of their standard deviation over all rows, from the sums of `_widths`."""
    count, total, square = width
    some = np.maximum(count, 1e-9)
    mean = np.where(count > 0, total / some, 0)
    variance = np.where(count > 0, square / some - mean**2, 0)
    varies = variance > 1e-12 * np.maximum(square / some, 1e-300)
    return Scale(mean, np.where(varies, np.sqrt(np.where(varies, variance, 1)), 1.0))


def rows(facts: SiteRows, by: Scale) -> Likelihood:
    """The likelihood of a node's own rows."""
    x = by.of(facts.x)
    if facts.kind == "classes":
        return LogisticRows(np.column_stack([np.ones(len(x)), x]), facts.y.astype(np.float64))
    return CoxRows(x, facts.y[:, 0].astype(np.float64), facts.y[:, 1] > 0)


def _packed(sums: Sums) -> np.ndarray:
    return np.concatenate([[sums.likelihood], sums.score, sums.information[np.triu_indices(len(sums.score))]])


def _unpacked(values: np.ndarray, columns: int) -> Sums:
    upper, information = np.triu_indices(columns), np.zeros((columns, columns))
    information[upper] = values[1 + columns : 1 + columns + len(upper[0])]
    information.T[upper] = information[upper]
    return Sums(float(values[0]), values[1 : 1 + columns], information)


def _params(state: Fitting) -> Params:
    """What a node ends with, as the arrays of a model."""
    at = state.best or state.at
    newton, columns = at.newton, len(at.newton.beta)
    found = newton.found or Sums(0.0, np.zeros(columns), np.zeros((columns, columns)))
    known = newton.found is not None
    flags = [found.likelihood, newton.steps, newton.converged, newton.done, newton.most, known]
    kept = np.zeros(columns) if newton.kept is None else newton.kept
    return {
        "trained": {
            "beta": newton.beta, "information": found.information, "kept": np.asarray(kept, np.float64),
            "flags": np.array(flags, np.float64), "share": at.share, "width": at.width, "counts": at.counts,
        }
    }  # fmt: skip


class Fitted(NamedTuple):
    """What a node has found out together with the others."""

    table: dict[str, Any]  # as coefficients.json has it
    missing: tuple[int, ...]  # nodes whose rows are not in it, or not as much as those of others
    ended: bool  # Newton's method has come to its end

    @property
    def known(self) -> bool:
        """The flag that there is a fit."""
        return any(key in self.table for key in KEYS)


def found(federation: Federation, directory: Path) -> Fitted:
    """What a node's directory holds after a fit."""
    arrays = model_file.read(directory / model_file.NAME)
    leaf = {name.rpartition("/")[2]: value for name, value in arrays.items()}
    likelihood, steps, converged, done, most, known = leaf["flags"]
    columns = len(leaf["beta"])
    count, events, sites = (round(float(value)) for value in leaf["counts"])
    missing = lacking(leaf["share"])
    dataset = federation.dataset
    table: dict[str, Any] = {
        "kind": dataset.kind,
        "outcome": "event" if dataset.kind == "survival" else dataset.classes[1],
        "ratio": "hazard ratio" if dataset.kind == "survival" else "odds ratio",
        "unit": coefficients.unit(federation),
        "rows": count,
        "events": events,
        "sites": sites,
        "gossiped": True,
    }
    if known:
        sums = Sums(float(likelihood), np.zeros(columns), leaf["information"])
        ended = Ascent(
            leaf["beta"], np.zeros(columns), sums, leaf["kept"] > 0, 0, int(steps), bool(converged and done),
            most=float(most),
        )  # fmt: skip
        key = "logistic" if dataset.kind == "classes" else "stratified_by_site"
        table[key] = coefficients.fit(federation, concluded(ended), scale(leaf["width"]), [])
    return Fitted(table, missing, bool(done))


def lacking(share: np.ndarray) -> tuple[int, ...]:
    """Return the nodes whose rows do not count as those of most do; `share` [nodes]: how much the sums of each do.

    >>> lacking(np.array([0.5, 0.5, 0.0])), lacking(np.zeros(2))
    ((2,), (0, 1))
    """
    there = np.count_nonzero(share > 0)
    return tuple(int(i) for i in np.flatnonzero(np.abs(there * share - 1) > _HELD))


class FitRun(NamedTuple):
    """How a node has ended, and what it has found."""

    result: NodeResult
    fit: Fitted

    @property
    def verdict(self) -> RunVerdict:
        """Whether what was found is that of all nodes."""
        reasons = []
        if not self.fit.known:
            reasons.append("nothing was found out together with other nodes")
        elif self.fit.missing:
            listed = ", ".join(map(str, self.fit.missing))
            reasons.append(f"the rows of node {listed} are not in the result as all others are; run it again")
        elif not self.fit.ended:
            reasons.append("Newton's method has not come to an end; run it again")
        if reasons and self.result.unreached:
            reasons.append(f"not reached: {', '.join(self.result.unreached)}")
        code = Exit.NOT_WHOLE if reasons else Exit.DONE
        if self.result.stopped_by and self.result.left:
            code = Exit(128 + signal.Signals[self.result.stopped_by])
        return RunVerdict(code, tuple(reasons))

    def lines(self) -> list[str]:
        """For a person: a line for each coefficient."""
        table = self.fit.table
        if not self.fit.known:
            return []
        key = next(each for each in KEYS if each in table)
        said = [
            f"{table['ratio']}s of {table['outcome']!r} over {table['rows']} training rows of {table['sites']} sites "
            f"with {table['events']} of it, each for {table['unit']}, with 95 % intervals"
        ]
        for row in table[key]["rows"]:
            if "ratio" in row:
                said.append(
                    f"{row['name']}: {row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f}), coefficient "
                    f"{row['coefficient']:.4f}, standard error {row['standard_error']:.4f}, p {row['p']:.3g}"
                )
            else:
                said.append(f"{row['name']}: {row.get('left_out') or 'no finite estimate'}")
        return said


def run(file: Path, out: Path | None, say: Callable[[str], None]) -> FitRun:
    """Run the node in `file` through a fit; writes coefficients.json into its directory. Raises ConfigError at once.

    out: the directory; unless given, "coefficients" in that of the node.
    """
    given, _ = keyed.completed(file, config.load_node(file))
    source = Path(given.experiment)
    sys.path[:0] = [str(Path.cwd()), str(source.parent)]
    experiment = experiment_of(config.load(source))
    base = file.parent / given.out if given.out else Path(f"p2pfl-node-{given.node}")
    directory = out or base / "coefficients"
    if (directory / _FILE).exists():
        raise ConfigError(f"out={str(directory)!r}: holds an earlier fit; give another with --out, or remove it")
    ports.demand((given.listen, membership_address(given.listen)), say)
    limit = files.raised()  # before anything is started that inherits it
    membership = sidecar.start()
    try:
        precision(experiment)
        federation = build_own(experiment, given.node, given.data) if given.data else build(experiment)
        if given.node not in federation.graph:
            raise ConfigError(f"{file}: node={given.node}: the topology has nodes 0 to {len(federation.graph) - 1}")
        files.fits(len(federation.graph), limit, here=False)
        federation, phase = planned(federation)
        wanted = task(federation, given.node, phase)
        for note in (*federation.data.notes, *flow.lines(flow.flow(federation, given.node))):
            say(note)
        say(
            f"node {given.node} of {len(federation.graph)}: {len(wanted.y)} training rows; {wanted.rounds} rounds, up "
            f"to {PHASES - 1} steps of Newton's method of {sum(phase)} each"
        )
        place = Place(
            listen=given.listen, address=given.address, peers=given.peers, terms=terms(federation),
            probe_timing=experiment.network.preset, directory=directory, every=0, resume=False,
        )  # fmt: skip
        ended = live.run(wanted, place, membership, say, lambda: None)
    finally:
        membership.close()
    # after a fault of its own the directory may hold no model, or an earlier one
    fit = Fitted({}, tuple(sorted(federation.graph)), False) if ended.error else found(federation, directory)
    found_out = FitRun(ended, fit)
    say(f"done at round {ended.round}: {ended.booked} exchanges booked")
    if not found_out.verdict.reasons:  # else it is to be run again, here
        (directory / _FILE).write_text(json.dumps(fit.table, indent=1) + "\n", "utf-8")
        say(f"coefficients: {directory / _FILE}")
    return found_out
