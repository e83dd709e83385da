"""`p2pfl coefficients NODE.toml`: coefficients with standard errors by the nodes themselves, without their rows.

The nodes of a federation take the steps of Newton's method together: at coefficients that all know, each adds up its
own rows (log likelihood, score, observed information), and these sums are averaged by gossip, over the same exchanges
as models in training. So every node ends with the maximum of the likelihood of all rows, and its standard errors. Of
two classes, and of survival stratified by site; with --unstratified also with one baseline hazard for all, whose steps
take sums over risk sets first, and then, as all know the hazards, sums of products of columns (learning/risk_sets.py).

It is a little federation of its own, of the same nodes at the same addresses, before, after or without training. Time
goes in phases. At the beginning of one the nodes tell each other what is asked, which is what the node with the lowest
number asks; then each begins with its own sums, and they are averaged for as many rounds as the graph needs to agree.
First how wide every column is (and how long it takes to an event, or which event times there are), then what Newton's
method wants. Beside its sums a node averages a 1 of its own: so each
knows of all whose rows are in the result, and how much they count. A phase that somebody left or missed is no phase: it
is asked again. Whoever comes late, or was away, takes part from the next one on.
"""

from __future__ import annotations

import hashlib
import json
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from p2pfl import tree
from p2pfl.config import experiment as config
from p2pfl.config.experiment import AlgorithmTable, Experiment
from p2pfl.drivers.live import files, ports, sidecar
from p2pfl.drivers.live import node as live
from p2pfl.drivers.live.settings import Place, membership_address
from p2pfl.errors import ConfigError, Exit
from p2pfl.federation import tasks
from p2pfl.federation.events import undisturbed
from p2pfl.federation.federation import Federation, build, build_own, precision, terms
from p2pfl.learning import batching, risk_sets
from p2pfl.learning.batching import EvalSet
from p2pfl.learning.likelihood import Ascent, CoxRows, Likelihood, LogisticRows, Sums, ascended, ascent, concluded
from p2pfl.learning.risk_sets import EventTimes, Hazards, RiskSums, Times, few, hazards, risk_sums, stretches
from p2pfl.methods import statistics
from p2pfl.node import model_file
from p2pfl.node.plan import Terms
from p2pfl.node.program import Mixed, Program
from p2pfl.node.result import NodeResult
from p2pfl.node.task import Task
from p2pfl.runs import coefficients, flow, keyed
from p2pfl.runs.coefficients import Scale
from p2pfl.runs.verdict import RunVerdict
from p2pfl.types import Inbox, Neighborhood, Params, Payload

KEYS = ("logistic", "stratified_by_site", "one_baseline_hazard")
"""The fits of coefficients.json that are found here."""
_FILE = "coefficients.json"
EXACT: Literal["exact"] = "exact"
Unstratified = int | Literal["exact"]
"""Of the fit with one baseline hazard: in how many stretches of time it is constant, or that it is free."""
MOST_TIMES = 500
"""Event times of all sites, or stretches, up to which there is such a fit."""
NONE = np.zeros(0)
TOLERANCE = 1e-7
"""Share of a sum by which an average may be off, at any node."""
PHASES = 32
"""Phases of a fit: one for the width of columns, and as many as Newton's method may take where a coefficient has no
finite estimate, so that the likelihood rises by ever less in each."""
_MOST_EVENTS = 10_000_000
"""Events of all sites, at most: what others say of them costs as much memory."""
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


class Phase(NamedTuple):
    """The rounds of a phase."""

    asking: int  # in which it is told what is asked
    averaging: int  # of sums
    parts: int = 1  # times that there are sums to be averaged

    @property
    def length(self) -> int:
        """Of a phase."""
        return self.asking + self.parts * self.averaging

    @property
    def rounds(self) -> int:
        """Of all phases of a fit, and one to close the last."""
        return PHASES * self.length + 1


class SiteRows(NamedTuple):
    """The rows of a node, and what all nodes know from the start."""

    node: int
    nodes: int
    kind: str  # "classes" or "survival"
    x: np.ndarray  # [N, F] float64; NaN: missing
    y: np.ndarray
    phase: Phase
    unstratified: Unstratified | None = None  # the fit with one baseline hazard is found, too
    minimum: int = 0  # rows of which sums tell, at least

    @property
    def fits(self) -> tuple[str, ...]:
        """What is found, of KEYS."""
        return KEYS[:1] if self.kind == "classes" else KEYS[1:] if self.unstratified else KEYS[1:2]

    @property
    def columns(self) -> int:
        """The number of coefficients."""
        return self.x.shape[1] + (self.kind == "classes")

    @property
    def wide(self) -> np.ndarray:
        """The columns whose widths are asked for [N, F]; with the logarithms of event times, for stretches of time."""
        if self.unstratified in (None, EXACT):
            return self.x
        time, event = self.y[:, 0].astype(np.float64), self.y[:, 1] > 0
        seen = event & (time > 0)
        return np.column_stack([self.x, np.where(seen, np.log(np.where(seen, time, 1)), np.nan)])

    @property
    def risk_table(self) -> tuple[int, int]:
        """Places of risk sets, and the numbers of each."""
        if self.unstratified is None:
            return 0, 0
        exact = self.unstratified == EXACT
        return (MOST_TIMES if exact else int(self.unstratified)), 1 + (1 + exact) * (1 + self.columns)

    @property
    def length(self) -> int:
        """The length of sums."""
        own = 1 + self.columns + self.columns * (self.columns + 1) // 2
        more = 1 + int(np.prod(self.risk_table)) if self.unstratified else 0
        return 3 + max(3 * self.wide.shape[1], own + more)


class Asked(NamedTuple):
    """What a phase asks for: sums of columns, or of the likelihoods."""

    node: int  # who asks
    width: np.ndarray  # [3, F] sums of columns; all 0: they are asked for
    trial: np.ndarray  # [fits, P] coefficients, of columns in units of their deviation
    events: np.ndarray  # [T] event times, where they are asked for

    @property
    def rank(self) -> tuple[bool, int]:
        """The order of those who ask: the least is heard."""
        return not self.width.any(), self.node


class Reached(NamedTuple):
    """How far Newton's method of a fit has come, and by whose rows."""

    newton: Ascent
    width: np.ndarray  # [3, F] sums of columns
    counts: np.ndarray  # [3] rows, events, sites
    share: np.ndarray  # [nodes] how much the sums of each counted in the last phase
    events: np.ndarray  # [T] event times, where they are asked for
    hazard: np.ndarray  # [T] with one baseline hazard: what it is at each place


class Half(NamedTuple):
    """What is known when the first sums of a phase are averaged."""

    sums: np.ndarray
    held: np.ndarray
    by: Hazards


class Fitting(NamedTuple):
    """The state of a node."""

    at: tuple[Reached, ...]  # of each fit
    asked: Asked
    phase: int
    part: int  # of the phase: 0: sums are not yet on their way
    sums: np.ndarray  # [length], averaged so far
    held: np.ndarray  # [fits, nodes], whose sums these are
    known: np.ndarray  # event times heard of, where they are asked for
    half: Half | None = None
    best: tuple[Reached | None, ...] = (None, None)  # where a method has come to its end, by as many nodes as ever


def experiment_of(given: Experiment) -> Experiment:
    """The experiment of a fit: the same data, model and graph; nothing is trained. Raises ConfigError."""
    if given.secure is not None:
        raise ConfigError(
            "p2pfl coefficients: the experiment asks for [secure], and a fit sends each site's sums without masks; "
            "give a node file whose experiment has none, where that is allowed"
        )
    return replace(
        undisturbed(given, "p2pfl coefficients"),
        name=f"{given.name}-coefficients",
        rounds=_MOST,
        algorithm=AlgorithmTable("dsgd"),
        network=replace(given.network, sync="deadline", loss=0.0, late=0),
        training=replace(given.training, objective=(), node_steps=None),
        evaluation=replace(given.evaluation, answers=(), extra_metrics=()),
        baselines=False,
    )


def agreed(federation: Federation, unstratified: Unstratified | None = None) -> Terms:
    """What the nodes of a fit agree on before anything is exchanged: also what is to be found."""
    known = terms(federation)
    if unstratified is None:
        return known
    digest = hashlib.blake2b(f"{known.federation} --unstratified {unstratified}".encode(), digest_size=16).hexdigest()
    return known._replace(federation=digest, fields={**known.fields, "--unstratified": str(unstratified)})


def planned(federation: Federation, unstratified: Unstratified | None = None) -> tuple[Federation, Phase]:
    """The federation with as many rounds as a fit takes, and those of a phase. Raises ConfigError."""
    if isinstance(unstratified, int) and not 1 <= unstratified <= MOST_TIMES:
        raise ConfigError(f"--unstratified {unstratified}: must be 1 to {MOST_TIMES} stretches of time, or exact")
    averaging = statistics.rounds(federation.schedule, TOLERANCE, _MOST // PHASES, "exchange")
    heard = statistics.hops(federation.schedule) + 2  # for one that misses a word
    phase = Phase(heard, averaging, 2 if unstratified else 1)
    return federation._replace(experiment=replace(federation.experiment, rounds=phase.rounds)), phase


def task(
    federation: Federation, node: int, phase: Phase, unstratified: Unstratified | None = None
) -> tuple[Task, SiteRows]:
    """The task of a node of a fit, and its rows. Raises ConfigError for rows of which none is found, and for few."""
    if not coefficients.asked(federation):
        raise ConfigError(
            'coefficients: are those of model.name = "logistic" on two classes, or of survival, on a table of at '
            f"most {coefficients.MOST} columns; this experiment learns something else"
        )
    made, kind = tasks.task(federation, node), federation.dataset.kind
    if unstratified and kind != "survival":
        raise ConfigError(f"--unstratified {unstratified}: is of survival, and the data have {kind}; leave it out")
    _disclosed(federation, node, made)
    if np.isnan(made.x).any() and not federation.experiment.statistics.normalize:
        raise ConfigError(
            "coefficients: cells are missing, and nobody fills them in; use [statistics] normalize = true"
        )
    x, minimum = made.x.astype(np.float64), federation.experiment.statistics.minimum
    facts = SiteRows(node, len(federation.graph), kind, x, np.asarray(made.y), phase, unstratified, minimum)
    if unstratified == EXACT:
        _exactly(facts)
    made = made._replace(
        program=program(facts, made.slots),
        batching=batching.one(made.seed, node, max(len(made.y), 1), 0, 1),
        test=EvalSet((), 0),
        own=np.zeros(0, np.int64),
        learned=None,
        evaluate_every=federation.experiment.rounds,
    )
    return made, facts


def _exactly(facts: SiteRows) -> None:
    """Raises ConfigError where sums at every event time are too many, or tell of single patients."""
    own = own_events(facts)
    if len(own) > MOST_TIMES:
        raise ConfigError(
            f"--unstratified exact: node {facts.node} has {len(own)} event times, and those of all sites may be "
            f"{MOST_TIMES}; use --unstratified N"
        )
    if found := withheld(facts, EventTimes(own)):
        raise ConfigError(
            f"--unstratified exact: node {facts.node} has {found}: a neighbour sees sums over the patients at risk at "
            "every event time, and what two of them differ by are the columns of who left in between. Use "
            "--unstratified N, or lower minimum at every site"
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
    phase = facts.phase

    def train(
        state: Fitting, batches: Any, node: Any, round: Any, around: Neighborhood
    ) -> tuple[Fitting, Any, Payload, Params]:
        number, within = divmod(int(round) - 1, phase.length)
        if number > state.phase:
            state = _asking(facts, number, _closed(facts, state))
        if within == phase.asking:
            state = _begun(facts, state)
        elif within == phase.asking + phase.averaging:
            state = _halfway(facts, state)
        asked = state.asked
        model = {"tag": np.array([state.phase, state.part, asked.node]), "width": asked.width, "trial": asked.trial}
        if facts.unstratified == EXACT:
            model["times"] = _padded(asked.events if within < phase.asking else state.known)
        return state, np.float32(0), {**model, "sums": state.sums, "held": state.held}, model

    def mix(state: Fitting, inbox: Inbox, around: Neighborhood) -> tuple[Fitting, Mixed]:
        slots = len(inbox.received)
        for k, (sent, received) in enumerate(zip(inbox.sent, inbox.received, strict=True)):
            if not inbox.arrived[k] or received["tag"][0] != state.phase:
                continue
            if facts.unstratified == EXACT:
                state = state._replace(known=_united(state.known, _unpadded(received["times"])))
            if not state.part:
                heard = received["width"].copy(), received["trial"].copy(), _unpadded(received.get("times", NONE))
                theirs = Asked(int(received["tag"][2]), *heard)
                state = state._replace(asked=min(state.asked, theirs, key=lambda each: each.rank))
            elif sent["tag"][1] == state.part and (sent["tag"] == received["tag"]).all():
                weight = float(around.weight[k])
                sums = state.sums + weight * (received["sums"] - sent["sums"])
                held = state.held + weight * (received["held"] - sent["held"])
                state = state._replace(sums=sums, held=held)
        # `held` is the ledger here, and says more than sketches would
        nothing = Mixed(np.zeros((slots, tree.SKETCH), np.float32), np.zeros(tree.SKETCH, np.float32))
        return state, nothing

    def adopt(state: Fitting, model: Params) -> Fitting:
        at = tuple(
            each._replace(newton=ascent(facts.columns)._replace(beta=beta), width=np.array(model["width"]))
            for each, beta in zip(state.at, np.array(model["trial"]), strict=True)
        )
        known = _united(state.known, _unpadded(model.get("times", NONE)))
        return _asking(facts, int(model["tag"][0]), state._replace(at=at, known=known))

    return Program(
        slots=slots,
        init=lambda seed, site=None: _asking(facts, 0, _nothing(facts)),
        train=train,
        put=_nobody,
        mix=mix,
        adopt=adopt,
        restart=lambda state, slots: state,
        params=lambda state: _params(facts, state),
        evaluate=lambda state, test: (np.zeros(0), np.zeros(0)),
    )


def _nobody(state: Fitting, model: Params, around: Neighborhood) -> tuple[Fitting, Payload, Params | None]:
    raise AssertionError("nobody else computes here")


def _nothing(facts: SiteRows) -> Fitting:
    """The state of a node that knows nothing."""
    width, none, own = np.zeros((3, facts.wide.shape[1])), np.zeros(facts.nodes), own_events(facts)
    at = (Reached(ascent(facts.columns), width, np.zeros(3), none, own, NONE),) * len(facts.fits)
    asked = Asked(facts.node, width, np.stack([each.newton.trial for each in at]), own)
    best = (None,) * len(at)
    return Fitting(at, asked, 0, 0, np.zeros(facts.length), np.zeros((len(at), facts.nodes)), own, None, best)


def _asking(facts: SiteRows, phase: int, state: Fitting) -> Fitting:
    """The state at the beginning of a phase: a node asks for what it needs itself, until it hears of another."""
    trial = np.stack([each.newton.trial for each in state.at])
    asked = Asked(facts.node, state.at[0].width, trial, state.known)
    empty = np.zeros(facts.length), np.zeros((len(state.at), facts.nodes))
    return state._replace(asked=asked, phase=phase, part=0, sums=empty[0], held=empty[1], half=None)


def _begun(facts: SiteRows, state: Fitting) -> Fitting:
    """The state when averaging begins: a node holds its own sums, and nobody else's."""
    asked, sums, held = state.asked, np.zeros(facts.length), np.zeros((len(facts.fits), facts.nodes))
    happened = facts.y[:, 1] > 0 if facts.kind == "survival" else facts.y == 1
    sums[:3] = [len(facts.x), int(happened.sum()), float(len(facts.x) > 0)]
    held[:, facts.node] = 1.0
    if not asked.width.any():
        own = _widths(facts).ravel()
    else:
        own = _packed(rows(facts, scale(asked.width)).sums(asked.trial[0]))
        if facts.unstratified:
            times = times_of(facts, asked.width, asked.events)
            if withheld(facts, times):
                held[1] = 0.0
            else:
                own = np.concatenate([own, _tabled(facts, risk_sums(*_cox(facts, asked), asked.trial[1], times))])
    sums[3 : 3 + len(own)] = own
    return state._replace(part=1, sums=sums, held=held)


def _halfway(facts: SiteRows, state: Fitting) -> Fitting:
    """The state when half of a phase is over: the hazards of all are known, by which a node counts its own rows."""
    asked, nodes = state.asked, int(np.count_nonzero(state.held[0]))
    if state.part != 1 or not asked.width.any() or not _whole(state.held[1], nodes):
        return state
    times = times_of(facts, asked.width, asked.events)
    total = _untabled(facts, nodes * state.sums, times)
    if total is None:
        return state
    by = hazards(total)
    sums, held = np.zeros(facts.length), np.zeros_like(state.held)
    if state.held[1, facts.node]:  # else it holds its sums back
        own, beta = _cox(facts, asked), asked.trial[1]
        packed = _packed(Sums(0.0, *risk_sets.slopes(*own, beta, times, risk_sums(*own, beta, times), by)))
        sums[: len(packed)], held[1, facts.node] = packed, 1.0
    return state._replace(part=2, sums=sums, held=held, half=Half(state.sums, state.held, by))


def _closed(facts: SiteRows, state: Fitting) -> Fitting:
    """The state at the end of a phase: what was averaged is known, and Newton's method goes on."""
    asked, half = state.asked, state.half
    sums, held = (half.sums, half.held) if half else (state.sums, state.held)
    nodes = int(np.count_nonzero(held[0]))
    counts, total = nodes * sums[:3], nodes * sums[3:]
    if not state.part or (not asked.width.any() and not _whole(held[0], nodes)):
        return state  # somebody left, or came late: it is asked again
    if not asked.width.any():
        width = total[: asked.width.size].reshape(asked.width.shape)
        fresh = Reached(ascent(facts.columns), width, counts, held[0], state.known, NONE)
        later = fresh._replace(share=np.zeros(facts.nodes))  # who takes part in it is not known yet
        return state._replace(at=(fresh, later)[: len(state.at)])
    if _whole(held[0], nodes):
        state = _advanced(facts, state, 0, _unpacked(total, facts.columns), held[0], counts, NONE)
    if half and _whole(state.held[1], nodes) and ((state.held[1] > 0) == (held[1] > 0)).all():
        by, (_, score, information) = half.by, _unpacked(nodes * state.sums, facts.columns)
        share = held[1] * nodes / np.count_nonzero(held[1])
        found = Sums(by.likelihood, score - by.ties.score, information - by.ties.information)
        state = _advanced(facts, state, 1, found, share, counts, by.breslow)
    return state


def _whole(held: np.ndarray, nodes: int) -> bool:
    """Whether the sums of all that are in an average of so many nodes count alike: nobody left, or came late."""
    there = held > 0
    return bool(there.any() and (np.abs(nodes * held[there] - 1) <= _HELD).all())


def _advanced(
    facts: SiteRows, state: Fitting, fit: int, total: Sums, share: np.ndarray, counts: np.ndarray, hazard: np.ndarray
) -> Fitting:
    """The state when a fit has taken in the sums of all."""
    at, asked, there = state.at[fit], state.asked, share > 0
    trial = asked.trial[fit]
    known = at.newton if _goes_on(at, asked, trial, there) else ascent(facts.columns)._replace(beta=trial)
    if known.done:
        return state
    newton = ascended(known, total, _SLACK, _RISE)
    better = newton.found is total
    at = Reached(newton, asked.width, counts, share, asked.events, hazard if better else at.hazard)
    best = state.best[fit]
    more = best is None or np.count_nonzero(there) >= np.count_nonzero(best.share > 0)
    best = at if newton.done and more else best
    return state._replace(at=_put(state.at, fit, at), best=_put(state.best, fit, best))


def _put(values: tuple[Any, ...], place: int, value: Any) -> tuple[Any, ...]:
    return (*values[:place], value, *values[place + 1 :])


def _goes_on(at: Reached, asked: Asked, trial: np.ndarray, there: np.ndarray) -> bool:
    """Whether what was asked is what this node's own method has asked for, of the same nodes."""
    near = np.abs(trial - at.newton.trial) <= _NEAR * (1 + np.abs(trial))
    same = np.allclose(asked.width, at.width, rtol=_NEAR) and (there == (at.share > 0)).all()
    return bool(near.all() and same and np.array_equal(asked.events, at.events))


# --- one baseline hazard for all


def own_events(facts: SiteRows) -> np.ndarray:
    """A node's own event times, where those of all are asked for; [T] ascending."""
    return np.unique(facts.y[facts.y[:, 1] > 0, 0].astype(np.float64)) if facts.unstratified == EXACT else NONE


def times_of(facts: SiteRows, width: np.ndarray, known: np.ndarray) -> Times:
    """Where risk sets are taken: at all event times, or in as many stretches of time as are wanted."""
    if facts.unstratified == EXACT:
        return EventTimes(known)
    by = scale(width[:, -1:])
    return stretches(float(by.mean[0]), float(by.sd[0]), int(facts.unstratified or 1))


def withheld(facts: SiteRows, times: Times) -> str:
    """Why a node holds its sums over risk sets back; "" where it does not."""
    time, event = facts.y[:, 0].astype(np.float64), facts.y[:, 1] > 0
    if isinstance(times, EventTimes):
        if times.size > MOST_TIMES:
            return f"more than {MOST_TIMES} event times with all other sites"
        if not np.isin(time[event], times.time).all():
            return "event times that the others have not heard of yet"
    small = few(time, event, times, facts.minimum)
    return f"{small}, fewer than statistics.minimum={facts.minimum}" if small else ""


def _cox(facts: SiteRows, asked: Asked) -> CoxRows:
    found = rows(facts, scale(asked.width))
    assert isinstance(found, CoxRows)
    return found


def _tabled(facts: SiteRows, sums: RiskSums) -> np.ndarray:
    """Sums over risk sets as numbers in a row; of places that there are none of, 0."""
    many, wide = facts.risk_table
    columns = [sums.deaths[:, None], sums.at_risk, sums.dying]
    table = np.zeros((many, wide))
    table[: len(sums.deaths)] = np.concatenate(columns, axis=1)[:, :wide]
    return np.concatenate([[sums.value], table.ravel()])


def _untabled(facts: SiteRows, total: np.ndarray, times: Times) -> RiskSums | None:
    """The sums over risk sets of all sites, from all sums; None where these can be no sums of rows."""
    columns, (many, wide) = facts.columns, facts.risk_table
    own = total[3 + 1 + columns + columns * (columns + 1) // 2 :]
    table = own[1 : 1 + many * wide].reshape(many, wide)[: times.size]
    at_risk, dying = table[:, 1 : 2 + columns], table[:, 2 + columns :]
    deaths = np.rint(table[:, 0])
    if (deaths < 0).any() or deaths.sum() > _MOST_EVENTS or (at_risk[:, 0] < 0).any():
        return None
    return RiskSums(float(own[0]), deaths.astype(np.int64), at_risk, dying if times.efron else np.zeros_like(at_risk))


def _united(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.union1d(own, others)[: MOST_TIMES + 1]


def _padded(times: np.ndarray) -> np.ndarray:
    return np.concatenate([times, np.full(MOST_TIMES + 1 - len(times), -1.0)])


def _unpadded(times: np.ndarray) -> np.ndarray:
    return np.array(times[times >= 0])


# --- sums as numbers in a row


def _widths(facts: SiteRows) -> np.ndarray:
    """Of each column the known rows, sum and sum of squares: [3, F]."""
    wide = facts.wide
    known = ~np.isnan(wide)
    x = np.where(known, wide, 0)
    return np.stack([known.sum(axis=0), x.sum(axis=0), (x**2).sum(axis=0)])


def scale(width: np.ndarray) -> Scale:
    """The columns in units of their standard deviation over all rows, from the sums of `_widths`."""
    count, total, square = width
    some = np.maximum(count, 1e-9)
    mean = np.where(count > 0, total / some, 0)
    variance = np.where(count > 0, square / some - mean**2, 0)
    varies = variance > 1e-12 * np.maximum(square / some, 1e-300)
    return Scale(mean, np.where(varies, np.sqrt(np.where(varies, variance, 1)), 1.0))


def _of_columns(facts: SiteRows, by: Scale) -> Scale:
    """Without what was asked beside the columns."""
    many = facts.x.shape[1]
    return Scale(by.mean[:many], by.sd[:many])


def rows(facts: SiteRows, by: Scale) -> Likelihood:
    """The likelihood of a node's own rows."""
    x = _of_columns(facts, by).of(facts.x)
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


def _params(facts: SiteRows, state: Fitting) -> Params:
    """What a node ends with, as the arrays of a model: of each fit its own."""
    reached = zip(facts.fits, state.best, state.at, strict=True)
    return {"trained": {key: _of_fit(facts, best or at) for key, best, at in reached}}


def _of_fit(facts: SiteRows, at: Reached) -> dict[str, np.ndarray]:
    newton, columns = at.newton, len(at.newton.beta)
    found = newton.found or Sums(0.0, np.zeros(columns), np.zeros((columns, columns)))
    known = newton.found is not None
    flags = [found.likelihood, newton.steps, newton.converged, newton.done, newton.most, known]
    kept = np.zeros(columns) if newton.kept is None else newton.kept
    arrays = {
        "beta": newton.beta, "information": found.information, "kept": np.asarray(kept, np.float64),
        "flags": np.array(flags, np.float64), "share": at.share, "width": at.width, "counts": at.counts,
    }  # fmt: skip
    if facts.unstratified:
        hazard = np.zeros(facts.risk_table[0])
        hazard[: len(at.hazard)] = at.hazard
        arrays |= {"hazard": hazard, "events": _padded(at.events)}
    return arrays


class Fitted(NamedTuple):
    """What a node has found out together with the others."""

    table: dict[str, Any]  # as coefficients.json has it
    missing: tuple[int, ...]  # nodes whose rows are not in it, or not as much as those of others
    ended: bool  # Newton's method has come to its end
    apart: str = ""  # why the fit with one baseline hazard, which was wanted, is not that of all

    @property
    def known(self) -> bool:
        """The flag that there is a fit."""
        return any(key in self.table for key in KEYS)


def found(federation: Federation, directory: Path, facts: SiteRows) -> Fitted:
    """What a node's directory holds after a fit; `facts`: of the node that it is of."""
    arrays = model_file.read(directory / model_file.NAME)
    leaves = {key: _leaves(arrays, key) for key in facts.fits}
    first = leaves[facts.fits[0]]
    count, events, sites = (round(float(value)) for value in first["counts"])
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
    for key, leaf in leaves.items():
        likelihood, steps, converged, done, most, known = leaf["flags"]
        if known:
            columns = len(leaf["beta"])
            sums = Sums(float(likelihood), np.zeros(columns), leaf["information"])
            over = bool(converged and done)
            ended = Ascent(
                leaf["beta"], np.zeros(columns), sums, leaf["kept"] > 0, 0, int(steps), over, most=float(most)
            )
            by = _of_columns(facts, scale(leaf["width"]))
            table[key] = coefficients.fit(federation, concluded(ended), by, [])
    apart = ""
    if facts.unstratified:
        last = leaves[facts.fits[1]]
        times = times_of(facts, last["width"], _unpadded(last["events"]))
        apart = _apart(facts, first, last, times)
        if facts.fits[1] in table:
            hazard = risk_sets.baseline(times, last["hazard"][: times.size])
            table[facts.fits[1]] |= {"times": facts.unstratified, "baseline": coefficients.baseline(hazard)}
    return Fitted(table, lacking(first["share"]), bool(first["flags"][3]), apart)


def _leaves(arrays: Mapping[str, np.ndarray], key: str) -> dict[str, np.ndarray]:
    """The arrays of a fit, by name."""
    split = {tuple(name.split("/")[-2:]): value for name, value in arrays.items()}
    return {name: value for (fit, name), value in split.items() if fit == key}


def _apart(facts: SiteRows, first: Mapping[str, np.ndarray], last: Mapping[str, np.ndarray], times: Times) -> str:
    """Why the fit with one baseline hazard is not that of all rows, in words; "": it is."""
    key = "one baseline hazard"
    if times.size > MOST_TIMES:
        return f"{key}: all sites have more than {MOST_TIMES} event times; use --unstratified N"
    missing = lacking(last["share"])
    if not missing:
        return "" if last["flags"][3] else f"{key}: Newton's method has not come to an end; run it again"
    text = f"{key}: the rows of node {', '.join(map(str, missing))} are not in this fit"
    if facts.node in missing and (why := withheld(facts, times)):
        return f"{text}: this site has {why}, and holds its sums back. {_way(facts, last['width'])}"
    if set(missing) <= set(lacking(first["share"])):
        return text
    return f"{text}: their sites hold back sums over few patients, or they were away. Use fewer stretches of time"


def _way(facts: SiteRows, width: np.ndarray) -> str:
    """The way out for a site whose sums tell of few."""
    lower = "lower minimum at every site"
    if facts.unstratified == EXACT:
        return f"Use --unstratified N, or {lower}"
    for many in range(facts.risk_table[0] - 1, 0, -1):
        if not withheld(facts, times_of(facts._replace(unstratified=many), width, NONE)):
            return f"Use --unstratified {many}, which does for this site, or {lower}"
    return lower.capitalize()


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
        elif self.fit.apart:
            reasons.append(self.fit.apart)
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
        said = [
            f"{table['ratio']}s of {table['outcome']!r} over {table['rows']} training rows of {table['sites']} sites "
            f"with {table['events']} of it, each for {table['unit']}, with 95 % intervals"
        ]
        fits = [key for key in KEYS if key in table]
        for key in fits:
            said += [f"{key.replace('_', ' ')}:"] if len(fits) > 1 else []
            said += [_line(row) for row in table[key]["rows"]]
        return said


def _line(row: Mapping[str, Any]) -> str:
    """A coefficient in words."""
    if "ratio" not in row:
        return f"{row['name']}: {row.get('left_out') or 'no finite estimate'}"
    return (
        f"{row['name']}: {row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f}), coefficient "
        f"{row['coefficient']:.4f}, standard error {row['standard_error']:.4f}, p {row['p']:.3g}"
    )


def shown(unstratified: Unstratified) -> str:
    """What the fit with one baseline hazard tells others, in words: said before anything is sent."""
    if unstratified == EXACT:
        return (
            "--unstratified exact: every site learns the times of this site's events, and a neighbour sees sums over "
            "its patients at risk at each event time of all; what two of these differ by are the columns of who left "
            "in between, often a single patient"
        )
    return (
        f"--unstratified {unstratified}: a neighbour sees how many events this site has in each of {unstratified} "
        "stretches of time, and sums over its patients at risk in each"
    )


def run(file: Path, out: Path | None, say: Callable[[str], None], unstratified: Unstratified | None = None) -> FitRun:
    """Run the node in `file` through a fit; writes coefficients.json into its directory. Raises ConfigError at once.

    out: the directory; unless given, "coefficients" in that of the node. unstratified: of survival, the fit with one
    baseline hazard for all is found, too: constant in so many stretches of time, or free at every event time.
    """
    given, keyring = keyed.completed(file, config.load_node(file))
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
        federation, phase = planned(federation, unstratified)
        wanted, facts = task(federation, given.node, phase, unstratified)
        for note in (*federation.data.notes, *flow.lines(flow.flow(federation, given.node))):
            say(note)
        say(
            f"node {given.node} of {len(federation.graph)}: {len(wanted.y)} training rows; {wanted.rounds} rounds, up "
            f"to {PHASES - 1} steps of Newton's method of {phase.length} each"
        )
        if unstratified:
            say(shown(unstratified))
        place = Place(
            listen=given.listen, address=given.address, peers=given.peers, terms=agreed(federation, unstratified),
            probe_timing=experiment.network.preset, directory=directory, every=0, resume=False,
            trusted=keyed.trusted(given, keyring, say), calls=given.calls,
        )  # fmt: skip
        ended = live.run(wanted, place, membership, say, lambda: None)
    finally:
        membership.close()
    # after a fault of its own the directory may hold no model, or an earlier one
    nobody = Fitted({}, tuple(sorted(federation.graph)), False)
    fit = nobody if ended.error else found(federation, directory, facts)
    found_out = FitRun(ended, fit)
    say(f"done at round {ended.round}: {ended.booked} exchanges booked")
    if not found_out.verdict.reasons:  # else it is to be run again, here
        (directory / _FILE).write_text(json.dumps(fit.table, indent=1) + "\n", "utf-8")
        say(f"coefficients: {directory / _FILE}")
    return found_out
