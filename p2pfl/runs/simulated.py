"""A simulated run: its records and figures, by the same names as a live one."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import jax
import numpy as np

from p2pfl import tree
from p2pfl.churn import Event
from p2pfl.churn.course import Course, course
from p2pfl.drivers.live import clock
from p2pfl.drivers.simulate import engine, feed, loop
from p2pfl.drivers.simulate.keeping import Keeper
from p2pfl.drivers.simulate.plan import tested_in
from p2pfl.drivers.simulate.simulation import Evaluated, How, Look, Outcome, Simulation, by_step, make_work
from p2pfl.drivers.simulate.voids import Divergence
from p2pfl.federation import secure
from p2pfl.federation.federation import Federation, identity, model_shape
from p2pfl.federation.tasks import tasks, unequal
from p2pfl.node import model_file, records
from p2pfl.node.checkpoint import Store
from p2pfl.node.result import NodeResult
from p2pfl.reporting.run_data import RoundRow, Score, Summary
from p2pfl.reporting.terminal import NodeStatus, Status, View
from p2pfl.runs import models as models_of
from p2pfl.runs import origin, resume, summary
from p2pfl.runs.assessment import MOST
from p2pfl.runs.callbacks import Callbacks
from p2pfl.runs.progress import Watch
from p2pfl.runs.summary import Collected, collect, score
from p2pfl.types import Delivery, Neighborhood, Params

_LISTED = 64
"""Neighbours up to which a record lists who was heard."""


def simulate_federation(
    federation: Federation,
    *,
    chunk: int | None = None,
    devices: int | None = None,
    progress: Callable[[int, list[Evaluated]], None] | None = None,
    now: Callable[[], float] | None = None,
) -> Outcome:
    """Simulate a federation (of `p2pfl.build(experiment)`), all nodes at once.

    `chunk`: nodes that are computed at once (None: by measurement where `now`, a clock in seconds, is given),
    `devices`: how many they are spread over (None: all). `progress` takes the last round that is done and what was
    evaluated since the last call. Raises ConfigError when it does not fit into memory. Float64 needs jax_enable_x64.
    """
    how = How(chunk, devices, measure=now is not None)
    return engine.run(work_of(federation), how, progress or _quiet, now or (lambda: 0.0))


def work_of(federation: Federation) -> Simulation:
    """Return what a federation asks the simulator to do."""
    experiment, data = federation.experiment, federation.dataset
    owner = [-1] * len(data.test.y)
    for node, rows in enumerate(federation.partition.test):
        for row in rows:
            owner[row] = node
    dtype, planned = experiment.training.dtype, course_of(federation)
    x, y, own, held = data.train.x, data.train.y, federation.partition.train, None
    if (kept := federation.data.validation) is not None and data.validation is not None:
        own = tuple(np.concatenate([mine, len(y) + more]) for mine, more in zip(own, kept, strict=True))
        x, y = np.concatenate([x, data.validation.x]), np.concatenate([y, data.validation.y])
        held = np.array([len(more) for more in kept])
    return make_work(
        algorithm=federation.algorithm,
        learner=federation.learner,
        over=by_step(federation.make, federation.learner),
        schedule=planned.schedule if planned else federation.schedule,
        seed=experiment.seed,
        rounds=experiment.rounds,
        x=x.astype(dtype),
        y=y,
        rows=own,
        held=held,
        steps=federation.steps,
        batch_size=federation.batch_size,
        test_x=data.test.x.astype(dtype),
        test_y=data.test.y,
        owner=owner,
        evaluate_every=experiment.evaluation.every,
        events=federation.churn,
        conditions=federation.conditions,
        sites=federation.sites,
        course=planned,
        part=experiment.topology.take_part,
        used=federation.used,
        unscored=federation.liars,
    )


def course_of(federation: Federation) -> Course | None:
    """The epochs of a federation with planned churn; None without. Raises ConfigError."""
    if not federation.churn:
        return None
    given = federation.conditions

    def plan(members: Sequence[int]) -> Any:
        return federation.planner()(members)  # a new one each time: it would keep all schedules, and few come twice

    rounds = federation.experiment.rounds
    made = course(federation.churn, len(federation.graph), rounds, given.detection, plan, given.late > 0, given.waits)
    return made if secure.mixing(federation.experiment) is None else _without_donors(federation, made)


def _without_donors(federation: Federation, made: Course) -> Course:
    """The same where nobody is given a model by members of a graph that hands none over."""
    planner, donor = federation.planner(), made.donor.copy()
    for r, i in zip(*np.nonzero(donor >= 0), strict=True):
        if not secure.hands_over(planner(made.members[made.epoch[r - 1, donor[r, i]]]).schedule):
            donor[r, i] = -1
    return made._replace(donor=donor)


def _quiet(round: int, evaluated: list[Evaluated]) -> None:
    return None


def run(federation: Federation, out: Path, view: View, callbacks: Callbacks) -> Collected:
    """Simulate a federation, all nodes at once."""
    began = clock.now()
    every = federation.experiment.driver.checkpoint
    result = into(federation, out, view.update, callbacks, every, view.say)
    return _timed(result, clock.now() - began)


def run_loop(federation: Federation, out: Path, view: View, callbacks: Callbacks) -> Collected:
    """Run the plain loop, and collect what its nodes leave."""
    began = clock.now()
    resume.again(out, view.say)
    loop_into(federation, out, view.update, callbacks)
    result = collect(federation, out, until=callbacks.until)
    return _timed(result, clock.now() - began)


def one_by_one(federation: Federation, out: Path) -> Collected:
    """Run the plain loop, which nobody looks at, into `out`; what an earlier one has left there is done anew."""
    shutil.rmtree(out / "nodes", ignore_errors=True)
    loop_into(federation, out, lambda status: None)
    return collect(federation, out)


def _timed(result: Collected, seconds: float) -> Collected:
    timed = replace(result.summary, driver="simulate", seconds_startup=0.0, seconds_running=seconds)
    return result._replace(summary=timed)


def into(
    federation: Federation,
    out: Path,
    update: Callable[[Status], None],
    callbacks: Callbacks | None = None,
    every: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Collected:
    """Simulate all nodes at once; writes metrics.jsonl, rounds.jsonl, events.jsonl and models.safetensors.

    `every`: rounds from one checkpoint to the next, 0 for none. It goes on from a checkpoint that is there already.
    """
    driver, look = federation.experiment.driver, looked(callbacks) if callbacks else None
    work, writes = work_of(federation), jax.process_index() == 0
    kept = _Records(federation, work, out if writes else None, update, say)
    keeper = None
    if every and jax.process_count() == 1:
        store = Store(out, identity(federation))
        keeper = Keeper(store, every, clock.now, kept.beside, kept.begin, say)
    else:
        kept.begin(0, {}, None)
    unlike = federation.learning.sliced is not None or federation.experiment.other_model
    chunk = driver.chunk or (1 if unlike else None)  # each at its own cost
    outcome = engine.run(work, How(chunk, driver.devices), kept.progress, clock.now, look, keeper, clock.spent)
    (last,) = kept.last
    if writes:
        kept.close()
        summary.write_lines(out / "events.jsonl", _events(federation, outcome.rounds))
        came = [*federation.graph]
        if work.course:
            came = np.flatnonzero(work.course.timeline.present[: outcome.rounds].any(axis=0)).tolist()
        nodes = ",".join(map(str, came))
        model_file.write(out / models_of.STACKED, outcome.models, {models_of.NODES: nodes})
    known = _figures(federation, outcome, last, kept.payload, kept.seconds / outcome.rounds)
    known = replace(known, **_membership(federation, work.course, outcome.rounds))
    since = {
        node: int(round)
        for node, round in enumerate(outcome.diverged)
        if round and node not in known.lost and node not in federation.liars
    }
    known = replace(known, diverged={str(node): round for node, round in since.items()})
    names = tree.named_leaves(tree.mixed(outcome.models))
    ends = [i for i in range(len(federation.graph)) if last.active[i] and i not in federation.liars]
    models = [{name: leaf[i] for name, leaf in names.items()} for i in ends] if len(ends) <= 4096 else []
    whole = {i: jax.tree.map(lambda leaf, i=i: leaf[i], outcome.models) for i in ends[: MOST + 1]}
    loss = {i: float(last.train_loss[i]) for i in whole}
    return Collected(known, models, work.course.notes if work.course else (), whole, loss)


def looked(callbacks: Callbacks) -> Look:
    """Tell callbacks of what was evaluated."""

    def look(one: Evaluated, models: Callable[[], Params]) -> bool:
        values = {name: getattr(one, name) for name in ("train_loss", "score", "score_own", "score_before")}
        return callbacks.round(one.round, one.active, values, models)

    return look


class _Records:
    """The records of a simulation while it goes on. `out`: where they are written; None: nowhere."""

    def __init__(
        self,
        federation: Federation,
        work: Simulation,
        out: Path | None,
        update: Callable[[Status], None],
        say: Callable[[str], None],
    ) -> None:
        self._say = say
        self.payload, self.last = message_sizes(federation), list[Evaluated]()
        self._work, self._out, self._update, self._shown = work, out, update, score(federation)
        self._files: tuple[records.Lines, ...] = ()  # of nodes, of rounds
        self._began = clock.now()

    @property
    def seconds(self) -> float:
        """Since it began, in all processes; not what lay between them."""
        return clock.now() - self._began

    def begin(self, round: int, table: Mapping[str, Any], last: Evaluated | None) -> None:
        """Go on after a round, 0 for the beginning: what is recorded of later ones will come again."""
        self._began = clock.now() - table.get("seconds", 0.0)
        self.last[:] = [] if last is None else [last]
        if self._out is None:
            return
        paths = [self._out / name for name in ("metrics.jsonl", "rounds.jsonl")]
        if (start := origin.begins(self._out, round, reached(paths[1]))) is not None:
            self._say(origin.note(start))
        for path in paths:
            records.cut(path, lambda row: row["round"] <= round and tested_in(self._work, row["round"]))
        self._files = tuple(records.Lines(path, self._shown.key) for path in paths)

    def beside(self) -> dict[str, Any]:
        """Return what a checkpoint is to hold of these; what is recorded so far is not lost any more."""
        for lines in self._files:
            lines.sync()
        return {"seconds": self.seconds}

    def progress(self, round: int, evaluated: list[Evaluated]) -> None:
        """Write down what was evaluated, and show it."""
        for one in evaluated:
            self.last[:] = [one]
            if self._files:
                for record in _measured(self._work, one, self.payload, self.seconds):
                    self._files[0].write(record)
                self._files[1].write(_round(self._work, one, self.payload, self.seconds / max(round, 1))._asdict())
        self._update(_status(self._work, round, self.last[0] if self.last else None, self._began, self._shown))

    def close(self) -> None:
        """Close the files."""
        for lines in self._files:
            lines.close()


def reached(path: Path) -> int:
    """The last round in a file of records; 0 for none."""
    return max((row["round"] for row in records.read(path)), default=0)


class MessageSizes(NamedTuple):
    """Bytes of what goes to one neighbour in a round: of the level that the two have in common."""

    nbytes: np.ndarray  # [rounds, levels] int64; the last row is that of all later rounds
    level: np.ndarray  # [n] int64

    def sent(self, neighbor: np.ndarray, sends: np.ndarray, round: int) -> np.ndarray:
        """[..., n] bytes that nodes send in a round to those of their neighbours [..., n, K] that are marked."""
        common = np.maximum(self.level[:, None], self.level[np.maximum(neighbor, 0)])
        nbytes = self.nbytes[min(round, len(self.nbytes)) - 1]
        return np.asarray(np.where(sends, nbytes[common], 0).sum(axis=-1))


def message_sizes(federation: Federation) -> MessageSizes:
    """Return the bytes of messages without sending any."""
    algorithm, slots = federation.algorithm, federation.schedule.neighbor.shape[2]
    nodes, shapes = federation.schedule.neighbor.shape[1], unequal(federation)
    fit, grown = shapes.fit(0), shapes.growth
    if fit is not None:
        return MessageSizes(np.array([[tree.nbytes(each) for each in fit.payloads]]), np.array(fit.levels))
    if grown is not None:
        sizes = np.array([tree.nbytes(each) for each in grown.payloads])
        return MessageSizes(sizes[np.array(grown.which)][:, None], np.zeros(nodes, np.int64))
    state = jax.eval_shape(lambda p: algorithm.init(p, slots), model_shape(federation))
    around = Neighborhood(np.zeros(slots), np.zeros(slots))
    total = tree.nbytes(jax.eval_shape(lambda s: algorithm.send(s, around)[1], state))
    each = total // max(slots, 1) if algorithm.per_edge else total
    return MessageSizes(np.array([[each]]), np.zeros(nodes, np.int64))


def _measured(work: Simulation, one: Evaluated, payload: MessageSizes, time: float) -> list[dict[str, Any]]:
    neighbor, sent = one.neighbor, payload.sent(one.neighbor, one.arrived, one.round)
    lives = work.course.timeline.life[one.round - 1] if work.course else np.ones(len(one.active), int)
    listed = neighbor.shape[1] <= _LISTED

    def value(array: np.ndarray | None, i: int) -> float | None:
        return None if array is None or np.isnan(array[i]) else float(array[i])

    five = _five_steps(work, one) if work.part < 1 else {}
    return [
        {
            "node": int(i), "life": int(lives[i]), "round": one.round, "train_loss": float(one.train_loss[i]),
            "score_before_mixing": value(one.score_before, i),
            "score_after_mixing": value(one.score, i), "score_own": value(one.score_own, i),
            "arrived": neighbor[i][one.arrived[i]].tolist() if listed else int(one.arrived[i].sum()),
            "bytes_sent": int(sent[i]), "time": time, **five.get(i, {}),
        }
        for i in np.flatnonzero(one.active).tolist()
    ]  # fmt: skip


def _five_steps(work: Simulation, one: Evaluated) -> dict[int, dict[str, Any]]:
    """By node, the fields of `records.RoundSteps` beside those that every record has."""
    at = work.course.row[one.round - 1] if work.course else (one.round - 1) % len(work.schedule.neighbor)
    weight, out, trains = (part[at] for part in (work.schedule.weight, work.schedule.out_weight, work.schedule.trains))
    there = trains | (weight > 0).any(axis=1) | (out > 0).any(axis=1)
    kept = 1 - np.where(one.arrived, weight, 0).sum(axis=1)
    return {
        int(i): {
            "takes_part": bool(there[i]), "steps": int(work.steps[i]) * int(trains[i]),
            "sends_to": one.neighbor[i][out[i] > 0].tolist(), "kept": float(kept[i]),
        }
        for i in np.flatnonzero(one.active)
    }  # fmt: skip


def _round(work: Simulation, one: Evaluated, payload: MessageSizes, seconds: float) -> RoundRow:
    scores = None if one.score is None else one.score[one.active & work.scored]
    return RoundRow(
        round=one.round,
        alive=int(one.active.sum()),
        score_mean=None if scores is None else float(scores.mean()),
        score_worst=None if scores is None else float(scores.min()),
        consensus_distance=one.consensus_distance,
        bytes_sent=int(payload.sent(one.neighbor, one.arrived, one.round).sum()),
        seconds_median=seconds,
    )


def _events(federation: Federation, rounds: int) -> list[dict[str, Any]]:
    return [
        {
            "event": _NAMES.get(e.event, e.event),
            "node": e.node if e.node >= 0 else None,
            "round": e.round,
            "detail": _detail(e),
            "time": float(e.round),
        }
        for e in sorted(federation.churn, key=lambda e: (e.round, e.node))
        if e.round <= rounds
    ]


_NAMES = {"rejoin": "joined", "join": "joined", "leave": "left"}


def _detail(event: Event) -> str:
    """Describe a planned event."""
    more = {
        "rejoin": "as it was" if event.state == "kept" else "with nothing but its data",
        "join": "for the first time",
        "freeze": f"for {event.rounds} rounds",
        "link_loss": f"{event.loss:g} for {event.rounds} rounds",
        "partition": " | ".join(", ".join(map(str, group)) for group in event.groups) + " | the rest",
    }
    return f"planned: {more[event.event]}" if event.event in more else "planned"


def _status(work: Simulation, round: int, one: Evaluated | None, began: float, shown: Score) -> Status:
    rounds, many = work.rounds, len(work.steps)
    there = work.course.timeline.present[max(round, 1) - 1] if work.course else np.ones(many, bool)
    known = one.score if one is not None else None
    nodes = tuple(
        NodeStatus(i, "alive" if there[i] else "lost", round, None if known is None else float(known[i]))
        for i in range(many)
    )
    left = (clock.now() - began) / max(round, 1) * (rounds - round)
    there = there & work.scored
    mean, worst = (None, None) if known is None else (float(known[there].mean()), float(known[there].min()))
    return Status(round, rounds, nodes, mean, worst, 0, left, shown)


def _figures(
    federation: Federation, outcome: Outcome, last: Evaluated, payload: MessageSizes, seconds: float
) -> Summary:
    scored = last.active & ~np.isin(np.arange(len(last.active)), [*federation.liars])

    def mean_worst(array: np.ndarray | None) -> tuple[float | None, float | None]:
        known = np.zeros(0) if array is None else array[scored]
        known = known[~np.isnan(known)]
        return (fmean(known.tolist()), float(known.min())) if known.size else (None, None)

    mean, worst = mean_worst(last.score)
    own, own_worst = mean_worst(last.score_own)
    nodes, rounds = len(federation.graph), outcome.rounds
    halves = 2 if federation.algorithm.link == "exchange" else 1
    timed = max(outcome.rounds_timed, 1)
    planned = federation.schedule.weight > 0  # of unequal messages those that are lost count like the others
    unlike = range(1, min(rounds, len(payload.nbytes)) + 1)
    sent = [float(payload.sent(federation.schedule.neighbor, planned, round).sum()) for round in unlike]
    each = (sum(sent) + (rounds - len(sent)) * sent[-1]) / rounds / max(planned.sum(), 1)
    return replace(
        summary.blank(federation),
        score_mean=mean,
        score_worst=worst,
        score_before_mixing_mean=mean_worst(last.score_before)[0],
        score_own_mean=own,
        score_own_worst=own_worst,
        train_loss_mean=float(last.train_loss[scored].mean()),
        seconds_per_round_median=outcome.seconds / timed if outcome.rounds_timed else seconds,
        bytes_sent_per_node_round=each * outcome.booked / nodes / rounds,
        consensus_distance=last.consensus_distance,
        exchanges_booked=outcome.booked // halves,
        exchanges_voided=(outcome.planned - outcome.booked) // halves,
        messages_dropped={},
        mean_residual=None if federation.algorithm.keeps_mean == "nothing" else outcome.drift,
        residue=0,
        digests=_digests(outcome, last),
        seconds_first_round=outcome.seconds_first,
        memory_peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        seconds_processor_per_round=outcome.spent,
        steps_per_second=outcome.steps_taken / outcome.seconds if outcome.rounds_timed else None,
        simulated_by={
            "chunk": outcome.chunk,
            "devices": outcome.devices,
            "mixing": outcome.mixing,
            "seconds_per_node_by_chunk": {str(k): v for k, v in outcome.measured.items()},
        },
    )


def _membership(federation: Federation, course: Course | None, rounds: int) -> dict[str, Any]:
    """Count the epochs, and name who was not there after the last of these rounds."""
    if course is None:
        return {"epochs": 1}
    gone = set(np.flatnonzero(~course.timeline.present[rounds - 1]).tolist())
    last = {event.node: event.event for event in sorted(federation.churn, key=lambda e: e.round)
            if event.event in ("crash", "leave") and event.round <= rounds}  # fmt: skip
    gone &= last.keys()  # the others were to join later
    return {
        "epochs": course._replace(enters=course.enters[:rounds]).epochs,
        "lost": tuple(sorted(node for node in gone if last[node] == "crash")),
        "left": tuple(sorted(node for node in gone if last[node] == "leave")),
    }


def _digests(outcome: Outcome, last: Evaluated) -> dict[str, str]:
    """Of the models of nodes that reached the end, where they are few."""
    if len(last.active) > _LISTED:
        return {}
    return {
        str(i): tree.digest(jax.tree.map(lambda leaf, i=i: leaf[i], outcome.models))
        for i in np.flatnonzero(last.active).tolist()
    }


# --- the plain loop


def loop_into(
    federation: Federation, out: Path, update: Callable[[Status], None], callbacks: Callbacks | None = None
) -> None:
    """Run the plain loop, with the records that live nodes write in `out`/nodes."""
    work, made = work_of(federation), tasks(federation)
    delivery = feed.deliveries(work).take(federation.experiment.rounds)
    directories = {task.node: out / "nodes" / str(task.node) for task in made}
    files: list[tuple[records.Lines, records.Lines]] = []
    for task in made:
        directory = directories[task.node]
        directory.mkdir(parents=True)
        metrics = records.Lines(directory / "metrics.jsonl", task.score)
        files.append((metrics, records.Lines(directory / "trace.jsonl")))
    every = federation.experiment.evaluation.every if callbacks else 0
    watch = Watch(federation.experiment.rounds, directories, score(federation), every, federation.liars)
    shown = [0.0]
    loss, divergence = np.zeros(delivery.steps.shape), Divergence(len(made))

    def record(node: int, measured: records.Measured, traced: records.Trace) -> None:
        if isinstance(traced, records.Traced):
            files[node][0].write(measured)
            loss[measured.round - 1, node] = measured.train_loss
        files[node][1].write(traced)
        now = clock.now()
        if now - shown[0] > 0.1:
            shown[0] = now
            watch.read()
            update(watch.status(dict.fromkeys(federation.graph, "alive"), now))

    rounds = work.rounds

    def look(round: int, models: Callable[[], list[Params]]) -> bool:
        nonlocal rounds
        if not callbacks:
            return False
        watch.read()
        if not callbacks.follow(watch, (), lambda: jax.tree.map(lambda *leaves: np.stack(leaves), *models())):
            return False
        rounds = round
        return True

    models = loop.run(made, delivery, record, clock.now, work.course, look)
    divergence.read(1, loss[:rounds], delivery.steps[:rounds])
    for node, model in enumerate(models):
        model_file.write(directories[node] / model_file.NAME, model)
        if work.course is None or work.course.timeline.present[rounds - 1, node]:
            ended = _result(node, records.read(directories[node] / "trace.jsonl"), model)
            since = int(divergence.since[node]) or (0 if tree.finite(model) else rounds)
            ended._replace(diverged=since or None).write(directories[node])
    for pair in files:
        for lines in pair:
            lines.close()


def _result(node: int, trace: list[dict[str, Any]], model: Params) -> NodeResult:
    """Return the result of a node that was there at the end, by its trace."""
    return NodeResult(
        node=node,
        life=trace[-1]["life"] if trace else 1,
        round=trace[-1]["round"] if trace else 0,
        booked=sum(len(row.get("booked", ())) for row in trace),
        voided=0,
        dropped={},
        left=False,
        digest=tree.digest(model),
    )


def deliveries(federation: Federation) -> Delivery:
    """The deliveries of all rounds."""
    return feed.deliveries(work_of(federation)).take(federation.experiment.rounds)
