"""`p2pfl chaos experiment.toml`: what is left of the training when a node is killed every so often, and comes back.

The experiment runs twice, undisturbed and disturbed, for the same length. *Goodput* is the useful local steps per
second of the second run as a share of those of the first, over the same span of time: from the first round that
anybody has finished to the end of the disturbance. The local steps of a node in a round are useful once, however often
it trains that round; those that it trained without half of the others are not.

Real processes are killed with SIGKILL and come back by seconds. Where time is virtual, or a simulation has none, the
same kills happen at the beginning of rounds, each of which takes `round_seconds`; the nodes of a virtual run do not
expect them.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from p2pfl.churn import Event, timeline
from p2pfl.config.churn import NodeEvent, RejoinEvent
from p2pfl.config.experiment import Experiment
from p2pfl.drivers.live.launcher import Launcher
from p2pfl.errors import ConfigError, Exit, LocalError, Stopped
from p2pfl.federation.events import undisturbed
from p2pfl.federation.federation import Federation, build
from p2pfl.node import records
from p2pfl.reporting.run_data import Score, Summary
from p2pfl.reporting.terminal import View
from p2pfl.runs import drivers, live, virtual
from p2pfl.runs.progress import Watch
from p2pfl.runs.run import fresh
from p2pfl.runs.run import run as run_experiment
from p2pfl.runs.verdict import RunVerdict, verdict

_STANDBY = 0.25
"""Of the time from one kill to the next, when the process of who is next begins: by then who was killed is back."""

BACK = 2.0
"""Seconds until a node is there again where no process has to be started: about what a real one takes."""

_ROUNDS = 1_000_000
"""Rounds of a live run that ends by time."""

SIDES = ("undisturbed", "disturbed")
"""The two runs, and their directories."""


class Wanted(NamedTuple):
    """What to do to a run."""

    every: float  # seconds from one kill to the next
    seconds: float | None = None  # of the run; to its last round unless given
    seed: int = 0  # of who is killed


class Kill(NamedTuple):
    """A node that is killed, and when it is back: in seconds, or at the beginning of these rounds."""

    node: int
    at: float
    back: float | None  # None: it did not return


class Work(NamedTuple):
    """The useful local steps of a run."""

    began: float  # the time of the first round that anybody has finished
    seconds: float  # counted from there
    steps: int

    @property
    def per_second(self) -> float:
        """Useful local steps in a second."""
        return self.steps / self.seconds if self.seconds > 0 else 0.0


class _Run(NamedTuple):
    """One of the two."""

    summary: Summary
    rows: list[dict[str, Any]]  # of metrics.jsonl
    counted: list[dict[str, Any]]  # those whose steps are counted
    lasted: float  # seconds from its first round to the end of the disturbance


class Chaos(NamedTuple):
    """What came of both runs; chaos.json has the same."""

    every: float
    seed: int
    seconds: float  # over which steps are counted
    round_seconds: float | None  # None: by the clock
    undisturbed: Work
    disturbed: Work
    goodput: float
    kills: tuple[Kill, ...]
    back_seconds_mean: float | None  # from a kill to the next round that the node has finished
    accuracy: tuple[float | None, float | None]  # of both: the last that each node knows, in the mean
    summaries: tuple[Summary, Summary]
    verdict: RunVerdict

    def as_dict(self) -> dict[str, Any]:
        """Return the table that stands in chaos.json."""
        calm, rough = self.summaries
        names = ("seconds_running", "mean_residual", "residue", "rounds_skipped", "rounds_repeated", "rounds_alone")
        rows = (("undisturbed", self.undisturbed, calm, 0), ("disturbed", self.disturbed, rough, 1))
        sides = {
            side: {
                "steps": work.steps,
                "steps_per_second": work.per_second,
                calm.score: self.accuracy[i],
                **{name: summary.as_dict()[name] for name in names},
            }
            for side, work, summary, i in rows
        }
        plain = ("every", "seed", "seconds", "round_seconds", "goodput", "back_seconds_mean")
        return {
            "name": calm.name,
            "driver": calm.driver,
            "nodes": calm.nodes,
            **{name: getattr(self, name) for name in plain},
            **sides,
            "kills": [kill._asdict() for kill in self.kills],
            "incomplete": [*self.verdict.reasons],
        }


# --- who, when, and how much is left: pure


def victim(seed: int, number: int, at_work: Iterable[int], nodes: int) -> int | None:
    """Return whom the kill of this number (0, 1, ...) befalls: drawn from those at work.

    None where more than half of the nodes would be gone at once.
    """
    there = sorted(at_work)
    if nodes - len(there) + 1 > nodes // 2:
        return None
    return int(there[np.random.default_rng([seed, number]).integers(len(there))])


def plan(wanted: Wanted, nodes: int, rounds: int, round_seconds: float, back: float = BACK) -> list[Kill]:
    """Return the kills of a run whose rounds take so long: a node dies every `every` seconds and is back `back` later.

    Whatever happens in a round happens at its beginning: in the first that begins then or later, and no node twice. Who
    could not be back by the last round is spared.
    """

    def begins(seconds: float) -> int:
        return 1 + int(np.ceil(round(seconds / round_seconds, 9)))

    kills: list[Kill] = []
    for number in range(int(rounds * round_seconds / wanted.every)):
        seconds = (number + 1) * wanted.every
        at = begins(seconds)
        returns = max(at + 1, begins(seconds + back))
        gone = {kill.node for kill in kills if kill.back is not None and kill.back >= at}
        node = victim(wanted.seed, number, set(range(nodes)) - gone, nodes)
        if node is not None and returns <= rounds:
            kills.append(Kill(node, at, returns))
    return kills


def work(rows: Iterable[Mapping[str, Any]], steps: Sequence[int], seconds: float, alone: int = 0) -> Work:
    """Return the useful local steps of a run within so many seconds of its first round.

    `rows`: of metrics.jsonl. `steps`: of each node in a round. `alone`: steps without half of the others. The first
    round only begins the count; a round that a node has trained twice counts once.
    """
    inside = sorted(rows, key=lambda row: float(row["time"]))
    began = float(inside[0]["time"]) if inside else 0.0
    counted = [row for row in inside if began < row["time"] <= began + seconds]
    seen = {(row["node"], row["round"] - before) for row in counted for before in range(records.span(row))}
    return Work(began, seconds, max(0, sum(int(steps[node]) for node, _ in seen) - alone))


def returned(kills: Sequence[Kill], rows: Sequence[Mapping[str, Any]]) -> list[Kill]:
    """Return the kills with the time at which a new life of the node had finished a round."""
    result = []
    for kill in kills:
        before = max((row["life"] for row in rows if row["node"] == kill.node and row["time"] <= kill.at), default=0)
        later = (row["time"] for row in rows if row["node"] == kill.node and row["life"] > before)
        result.append(kill._replace(back=min((time for time in later if time > kill.at), default=None)))
    return result


def timed(kills: Sequence[Kill], rows: Sequence[Mapping[str, Any]]) -> list[Kill]:
    """Return kills that are given in rounds with the time at which the node had finished its last round before."""
    result = []
    for kill in kills:
        before = [row["time"] for row in rows if row["node"] == kill.node and row["round"] < kill.at]
        result.append(Kill(kill.node, max(before, default=0.0), None))
    return result


def last_scores(rows: Iterable[Mapping[str, Any]], key: str) -> float | None:
    """Return the mean over the nodes of the last score that each has."""
    known: dict[int, float] = {}
    for row in sorted(rows, key=lambda row: float(row["time"])):
        if row[f"{key}_after_mixing"] is not None:
            known[row["node"]] = float(row[f"{key}_after_mixing"])
    return fmean(known.values()) if known else None


def round_seconds(federation: Federation) -> float:
    """Return what a round takes by [virtual]: the local steps of the slowest node, a message on the slowest link."""
    table, nodes = federation.experiment.virtual, len(federation.graph)
    training = max(s * int(n) for s, n in zip(virtual.seconds(table, nodes), federation.steps, strict=True))
    link = virtual.links(table)
    farthest = max((link(i, j).latency + link(i, j).jitter / 2 for i, j in federation.graph.edges), default=0.0)
    return float(training + farthest)


# --- both runs


def chaos(experiment: Experiment, wanted: Wanted, out: Path, view: View) -> Chaos:
    """Run an experiment undisturbed into `out`/undisturbed and disturbed into `out`/disturbed; writes chaos.json.

    The churn of the experiment is left out, so that the runs differ by the kills alone; so are its baselines. Raises
    ConfigError before anything starts.
    """
    if not wanted.every > 0:
        raise ConfigError(f"every={wanted.every:g}: must be > 0 seconds")
    if wanted.seconds is not None and not wanted.seconds > wanted.every:
        raise ConfigError(f"for={wanted.seconds:g}: must be longer than every={wanted.every:g}, or nobody is killed")
    fresh(out)
    experiment = replace(undisturbed(experiment, "p2pfl chaos"), baselines=False)
    federation = build(experiment)
    if len(federation.graph) < 2:
        raise ConfigError("topology.nodes=1: nobody would be left when the node is killed; give two at least")
    both = _live if experiment.driver.kind == "live" else _by_rounds
    result = both(federation, wanted, out, view)
    (out / "chaos.json").write_text(json.dumps(result.as_dict(), indent=1), "utf-8")
    return result


class _Killer:
    """Kills nodes of a live run as time goes by, and has them started again; it is the run's `Look`.

    For the next who is killed a process stands by, so that a return takes no longer than one that was planned.
    """

    def __init__(self, wanted: Wanted, rounds: int, kills: bool) -> None:
        self.kills: list[Kill] = []
        self.ended: float | None = None  # the disturbance
        self._wanted, self._rounds, self._kills, self._number = wanted, rounds, kills, 0
        self._began: float | None = None
        self._next: int | None = None

    def look(self, server: Launcher, watch: Watch, now: float) -> bool:
        """Do what is due."""
        if self._began is None and all(watch.rounds_of.values()):
            self._began = now
        if self._began is None or self.ended is not None:
            return False
        if any(member.state == "finished" for member in server.members.values()):
            self.ended = now
            return False
        if self._wanted.seconds is not None and now - self._began >= self._wanted.seconds:
            self.ended = now
            return True
        if self._kills and self._left(watch, now) > 2 * BACK:  # who could not be back by the end is spared
            self._strike(server, now)
        return False

    def _left(self, watch: Watch, now: float) -> float:
        """Return the seconds until the end, as the run has gone so far."""
        took = now - (self._began or now)
        if self._wanted.seconds is not None:
            return self._wanted.seconds - took
        furthest = max(watch.rounds_of.values())
        return took / furthest * (self._rounds - furthest) if took else 3 * BACK

    def _strike(self, server: Launcher, now: float) -> None:
        """Kill who is next, if it is time, and choose another."""
        assert self._began is not None
        if now < self._began + (self._number + _STANDBY) * self._wanted.every:
            return
        at_work = {node for node, member in server.members.items() if member.state == "alive"}
        if self._next is None or self._next not in at_work:
            self._next = victim(self._wanted.seed, self._number, at_work, len(server.members))
            if self._next is not None:
                server.stand_by(self._next)
        if now < self._began + (self._number + 1) * self._wanted.every:
            return
        if self._next is not None:
            self.kills.append(Kill(self._next, now, None))
            server.kill(self._next)
            server.again(self._next)
        self._number, self._next = self._number + 1, None


def _live(federation: Federation, wanted: Wanted, out: Path, view: View) -> Chaos:
    """Run real processes twice."""
    experiment = federation.experiment
    if wanted.seconds is not None:
        experiment = replace(experiment, rounds=_ROUNDS)
    runs: list[_Run] = []
    kills: list[Kill] = []
    for side in SIDES:
        view.say(f"{side}:")
        killer = _Killer(wanted, experiment.rounds, kills=side == SIDES[1])
        driver = drivers.chosen(experiment.driver)._replace(prepare=partial(live.prepared, look=killer.look))
        summary = _whole(run_experiment(experiment, out / side, view, driver))
        rows = records.read(out / side / "metrics.jsonl")
        if killer.ended is None or not rows:
            text = f"{side}: ended before every node had finished a round; see {out / side}"
            raise LocalError(text, node=-1, round=0, part="chaos")
        runs.append(_Run(summary, rows, rows, killer.ended - min(row["time"] for row in rows)))
        kills = killer.kills
    return _compared(federation, wanted, runs, returned(kills, runs[1].counted), None)


def _by_rounds(federation: Federation, wanted: Wanted, out: Path, view: View) -> Chaos:
    """Run a federation twice whose time is counted in rounds."""
    experiment, nodes = federation.experiment, len(federation.graph)
    took = round_seconds(federation)
    if not took > 0:
        raise ConfigError("virtual.step_seconds=0: a round takes no time, and no kill has its round; give a number > 0")
    rounds = experiment.rounds if wanted.seconds is None else max(1, round(wanted.seconds / took))
    kills = plan(wanted, nodes, rounds, took)
    if not kills:
        raise ConfigError(
            f"every={wanted.every:g}: nobody would be killed: {rounds} rounds of {took:g} s ([virtual]) are "
            f"{rounds * took:g} s, and a node is back after {BACK:g} s; give a shorter every, or a longer for"
        )
    events = [Event("crash", kill.node, int(kill.at)) for kill in kills]
    events += [Event("rejoin", kill.node, int(kill.back), "kept") for kill in kills if kill.back is not None]
    simulated = experiment.driver.kind == "simulate"
    runs: list[_Run] = []
    for side, unplanned in zip(SIDES, ((), tuple(events)), strict=True):
        view.say(f"{side}:")
        churn_of = tuple(map(_planned, unplanned)) if simulated else ()  # without a clock all is planned
        made, driver = replace(experiment, rounds=rounds, churn=churn_of), drivers.chosen(experiment.driver)
        if not simulated:
            start = partial(virtual.run, unplanned=unplanned)
            driver = driver._replace(prepare=drivers.at_once(start))
        summary = _whole(run_experiment(made, out / side, view, driver))
        rows = records.read(out / side / "metrics.jsonl")
        counted = _in_rounds(unplanned, nodes, rounds, took) if simulated else rows
        lasted = max(row["time"] for row in counted) - min(row["time"] for row in counted)
        runs.append(_Run(summary, rows, counted, lasted))
    counted = runs[1].counted
    return _compared(federation, wanted, runs, returned(timed(kills, counted), counted), took)


def _planned(event: Event) -> NodeEvent | RejoinEvent:
    """Return an event as an experiment plans it."""
    if event.event == "crash":
        return NodeEvent("crash", event.node, event.round)
    return RejoinEvent("rejoin", event.node, event.round, "kept")


def _in_rounds(events: Sequence[Event], nodes: int, rounds: int, took: float) -> list[dict[str, Any]]:
    """Return who trains in which round of a simulation, which has no clock, as records."""
    when = timeline(events, nodes, rounds)
    return [
        {"node": int(node), "round": int(r) + 1, "time": (int(r) + 1) * took, "life": int(when.life[r, node])}
        for r, node in np.argwhere(when.active)
    ]


def _whole(summary: Summary) -> Summary:
    """Raises Stopped where a signal has ended the run."""
    if summary.stopped_by:
        raise Stopped(signal.Signals[summary.stopped_by])
    return summary


def _compared(
    federation: Federation, wanted: Wanted, runs: Sequence[_Run], kills: Sequence[Kill], took: float | None
) -> Chaos:
    """Compare both runs."""
    calm, rough = runs
    seconds = min(calm.lasted, rough.lasted)
    steps = federation.steps.tolist()
    works = [
        work(run.counted, steps, seconds, sum(steps[int(node)] * n for node, n in run.summary.rounds_alone.items()))
        for run in runs
    ]
    key = calm.summary.score
    away = [kill.back - kill.at for kill in kills if kill.back is not None]
    return Chaos(
        every=wanted.every,
        seed=wanted.seed,
        seconds=seconds,
        round_seconds=took,
        undisturbed=works[0],
        disturbed=works[1],
        goodput=works[1].steps / works[0].steps if works[0].steps else 0.0,
        kills=tuple(kills),
        back_seconds_mean=fmean(away) if away else None,
        accuracy=(last_scores(calm.rows, key), last_scores(rough.rows, key)),
        summaries=(calm.summary, rough.summary),
        verdict=judge(calm.summary, rough.summary, kills),
    )


def judge(calm: Summary, rough: Summary, kills: Sequence[Kill]) -> RunVerdict:
    """Judge both runs: neither who was killed and has returned counts as lost, nor what those skipped meanwhile."""
    there = {str(kill.node) for kill in kills if kill.back is not None}
    lost = {node: how for node, how in rough.lost_unplanned.items() if node not in there or int(node) in rough.lost}
    skipped = {node: rounds for node, rounds in rough.rounds_skipped.items() if node not in there}
    own = verdict(replace(rough, lost_unplanned=lost, rounds_skipped=skipped, incomplete=()))
    never = [f"node {kill.node} did not return" for kill in kills if kill.back is None and kill.node not in rough.lost]
    reasons = (*(f"undisturbed: {why}" for why in verdict(calm).reasons), *own.reasons, *never)
    return RunVerdict(Exit.NOT_WHOLE if reasons else Exit.DONE, tuple(dict.fromkeys(reasons)))


def table(result: Chaos) -> Table:
    """Return both runs as a table for the terminal."""
    calm, rough = result.summaries
    score = Score(calm.score, calm.score_name, calm.score_in_percent)
    shown = Table(
        title=f"{calm.name}: goodput {100 * result.goodput:.1f} %", title_justify="left", caption_justify="left"
    )
    for head in ("", *SIDES):
        shown.add_column(head, justify="right" if head else "left", no_wrap=True)
    works = (result.undisturbed, result.disturbed)
    shown.add_row("useful local steps/s", *(f"{each.per_second:.1f}" for each in works), style="bold")
    shown.add_row(score.name, *(score.text(each) for each in result.accuracy))
    shown.add_row(
        "mean residual", *("-" if s.mean_residual is None else f"{s.mean_residual:.2g}" for s in (calm, rough))
    )
    shown.add_row("rounds skipped", *(str(sum(s.rounds_skipped.values())) for s in (calm, rough)))
    back = "" if result.back_seconds_mean is None else f", training again after {result.back_seconds_mean:.1f} s"
    by = "" if result.round_seconds is None else f", of {result.round_seconds:g} s a round"
    shown.caption = f"over {result.seconds:.1f} s{by}; {len(result.kills)} kills{back}"
    return shown
