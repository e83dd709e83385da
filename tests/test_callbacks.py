"""Callbacks: who ends a run early, by wish or by an exception, leaves it whole, in every driver; results as arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
from test_drivers import ROWS, tiny
from test_face import ARRAYS, ring, sgd

import p2pfl
from p2pfl.config.experiment import Experiment
from p2pfl.drivers.live import processes
from p2pfl.errors import ConfigError
from p2pfl.reporting.run_data import Score
from p2pfl.runs.callbacks import Callbacks, RoundInfo, RunInfo
from p2pfl.runs.drivers import DRIVERS
from p2pfl.runs.progress import Watch
from p2pfl.runs.run import run
from p2pfl.runs.verdict import verdict


def rows(*quick: str) -> list[Any]:
    """Every driver; those that are not named in the longer lane. test_drivers.py compares the calls of all."""
    more = pytest.mark.more
    live = {row: [pytest.mark.live] * DRIVERS[row].starts_processes for row in ROWS}
    return [pytest.param(row, marks=[*live[row], *([] if row in quick else [more])]) for row in ROWS]


INFO = RunInfo("t", 2, 9, 1, "dsgd", "simulate", Score(), None)


class Ends(p2pfl.Callback):
    """Ends a run after a round, by wish or by an exception."""

    def __init__(self, round: int, error: Exception | None = None) -> None:
        self.at, self.error = round, error
        self.seen: list[int] = []
        self.result: Any = None

    def round(self, info: RoundInfo) -> bool:
        self.seen.append(info.round)
        if info.round == self.at and self.error:
            raise self.error
        return info.round == self.at

    def end(self, result: Any) -> None:
        self.result = result


class Mine(Exception):
    """As of a library that p2pfl does not know."""


def long(driver: str) -> Experiment:
    """More rounds than are made, tested every second one."""
    return tiny(driver, rounds=40, evaluation={"every": 2, "metrics": driver == "virtual"})


def nobody_left(out: Path) -> bool:
    """Whether no process of a run is there."""
    known = processes.read(out / "pids.json") if (out / "pids.json").is_file() else {}
    return not any(processes.runs(pid, node) for node, pids in known.items() for pid in pids)


# ------------------------------------------------------------------------------------------------- ends of whole runs


@pytest.mark.parametrize("driver", rows("simulate"))
def test_a_run_that_is_stopped_early_is_whole(tmp_path: Path, driver: str) -> None:
    """Its figures are those of the round in which it was stopped; it ends with 0, and says who has stopped it."""
    ends, after = Ends(4), Ends(40)
    loaded = p2pfl.run(long(driver), tmp_path / "out", callbacks=[ends, after])
    summary = loaded.summary
    assert ends.seen == after.seen == [2, 4] and ends.result is loaded
    assert (summary.rounds, summary.stopped_early) == (4, "at round 4 of 40 by Ends")
    assert (summary.lost, summary.left, summary.incomplete, summary.stopped_by) == ((), (), (), "")
    assert verdict(summary).code == 0 and nobody_left(tmp_path / "out")
    counted = loaded.metrics["round"] == 4
    assert summary.score_mean == pytest.approx(loaded.metrics["accuracy_after_mixing"][counted].mean(), abs=1e-6)
    assert list(loaded.models) == [0, 1, 2, 3] and ("auc_mean" in summary.metrics) == (driver == "virtual")
    last = loaded.metrics["round"].max()
    assert last == 4 if driver in ("simulate", "loop") else 4 <= last < 40
    assert "It was stopped early at round 4 of 40 by Ends." in (tmp_path / "out" / "report.html").read_text("utf-8")
    assert any("mixed with nobody" in note for note in summary.notes) == (last > 4)
    if driver in ("simulate", "loop"):  # as if the experiment had had so many rounds
        short = run(tiny(driver, rounds=4, evaluation={"every": 2, "metrics": False}), tmp_path / "short")
        assert summary.digests == short.digests and summary.score_mean == short.score_mean
        assert summary.exchanges_booked == short.exchanges_booked == 16
    if driver in ("loop", "live"):
        assert all(verdict.equal for verdict in p2pfl.replay(tmp_path / "out"))


@pytest.mark.parametrize("driver", rows("loop"))
def test_what_a_callback_raises_reaches_the_caller_when_the_run_is_in_order(tmp_path: Path, driver: str) -> None:
    error, after = Mine("no"), Ends(40)
    with pytest.raises(Mine) as raised:
        p2pfl.run(long(driver), tmp_path / "out", callbacks=[Ends(2, error), after])
    assert raised.value is error and after.seen == [] and after.result is None and nobody_left(tmp_path / "out")
    summary = p2pfl.load_run(tmp_path / "out").summary
    assert summary.incomplete == ("the callback Ends failed after round 2: Mine('no')",)
    assert summary.stopped_early == "at round 2 of 40 by Ends" and verdict(summary).code == 3
    assert summary.score_mean is not None and (tmp_path / "out" / "report.html").is_file()


@pytest.mark.more
@pytest.mark.parametrize("driver", ["simulate", "loop", "virtual"])
def test_what_was_planned_for_later_has_not_happened(tmp_path: Path, driver: str) -> None:
    """A run is stopped while one node is away, before another has come, and after a third has left."""
    churn = [
        {"event": "crash", "node": 2, "round": 2}, {"event": "rejoin", "node": 2, "round": 6},
        {"event": "leave", "node": 0, "round": 3}, {"event": "join", "node": 1, "round": 8},
    ]  # fmt: skip
    experiment = tiny(driver, rounds=12, churn=churn, evaluation={"metrics": False})
    loaded = p2pfl.run(experiment, tmp_path / "out", callbacks=[Ends(4)])
    assert loaded.summary.stopped_early == "at round 4 of 12 by Ends" and verdict(loaded.summary).code == 0
    active = [loaded.metrics["node"][loaded.metrics["round"] == round].tolist() for round in (1, 2, 3, 4)]
    assert active == [[0, 2, 3], [0, 3], [3], [3]]
    if driver == "loop":  # whose summary does not say who was there
        assert list(loaded.models) == [3]
    else:
        assert (loaded.summary.lost, loaded.summary.left, list(loaded.models)) == ((2,), (0,), [0, 3])
    assert not [event for event in loaded.events if event["event"] in ("joined", "rejoined")]


@pytest.mark.more
@pytest.mark.parametrize("driver", ["virtual", pytest.param("live", marks=pytest.mark.live)])
def test_who_is_away_is_not_waited_for(tmp_path: Path, driver: str) -> None:
    """A node that dies and comes back: each round is told once and in order, without it while it is away."""
    churn = [{"event": "crash", "node": 2, "round": 3}, {"event": "rejoin", "node": 2, "round": 6}]
    seen: list[RoundInfo] = []

    class Keeps(p2pfl.Callback):
        def round(self, info: RoundInfo) -> None:
            seen.append(info)

    p2pfl.run(tiny(driver, rounds=8, churn=churn), tmp_path / "out", callbacks=[Keeps()])
    assert [info.round for info in seen] == [1, 2, 3, 4, 5, 6, 7, 8]
    away = [info.round for info in seen if not info.active[2]]
    assert away[:3] == [3, 4, 5] and all(info.active[[0, 1, 3]].all() for info in seen)
    assert np.isnan(seen[3].score[2]) and np.isnan(seen[3].train_loss[2]) and np.isfinite(seen[3].score[0])


# ------------------------------------------------------------------------------------------------------------ arrays


@pytest.fixture
def quickly() -> Any:
    """What is compiled runs once or twice."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.more
def test_a_simulation_that_is_stopped_is_one_of_fewer_rounds(quickly: None) -> None:
    """Models, history and the models that the callback saw, to the bit."""
    models: list[Any] = []

    class Third(p2pfl.Callback):
        def round(self, info: RoundInfo) -> bool:
            assert info.models is not None
            models.append(info.models())
            return info.round == 3

    algorithm = sgd()
    stopped = p2pfl.simulate(algorithm, ARRAYS, schedule=ring(), rounds=20, devices=1, callbacks=[Third()])
    short = p2pfl.simulate(algorithm, ARRAYS, schedule=ring(), rounds=3, devices=1)
    assert stopped.stopped_early == "at round 3 of 20 by Third" and short.stopped_early == ""
    jax.tree.map(np.testing.assert_array_equal, stopped.models, short.models)
    jax.tree.map(np.testing.assert_array_equal, models[-1], short.models)
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: not np.array_equal(a, b), models[0], models[-1])))
    assert stopped.outcome.rounds == 3 and stopped.outcome.booked == short.outcome.booked
    for given, same in zip(stopped.history, short.history, strict=True):
        np.testing.assert_array_equal(given, same)
    frame = pd.DataFrame(short.metrics)
    assert frame.shape == (12, 6)
    assert frame[frame["node"] == 1]["accuracy_after_mixing"].tolist() == short.history.score[:, 1].tolist()


@pytest.mark.more
def test_an_exception_in_a_simulation_is_raised(quickly: None) -> None:
    ends = Ends(1, Mine("no"))
    with pytest.raises(Mine, match="no"):
        p2pfl.simulate(sgd(), ARRAYS, schedule=ring(), rounds=5, devices=1, callbacks=[ends])
    assert ends.seen == [1] and ends.result is None
    last = Ends(5)
    result = p2pfl.simulate(sgd(), ARRAYS, schedule=ring(), rounds=5, devices=1, callbacks=[last])
    assert last.result is result and result.stopped_early == ""  # the last round ends it anyway


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (p2pfl.EarlyStopping(3), "callbacks: must be a list of callbacks; got EarlyStopping"),
        ([p2pfl.EarlyStopping], r"callbacks\[0\]: is the class EarlyStopping; must be an object of a class below"),
        ([print], r"callbacks\[0\]: is a builtin_function_or_method"),
    ],
)
def test_what_is_no_callback_is_refused_at_once(given: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        p2pfl.simulate(sgd(), ARRAYS, schedule=ring(), rounds=5, callbacks=given)
    with pytest.raises(ConfigError, match=text):
        p2pfl.run(tiny("loop"), tmp_path / "out", callbacks=given)
    assert not (tmp_path / "out").exists()


def test_where_several_hosts_simulate_together_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="callbacks: can't be where several hosts simulate together"):
        p2pfl.run(tiny("simulate"), tmp_path / "out", callbacks=[p2pfl.Callback()])
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------------------- the parts


def told(callbacks: Callbacks, losses: list[float]) -> int | None:
    """The round after which they end a run with these mean losses of two nodes."""
    callbacks.begin(INFO)
    for round, loss in enumerate(losses, 1):
        if callbacks.round(round, np.array([True, False]), {"train_loss": np.array([loss, 99.0])}):
            return round
    return None


@pytest.mark.parametrize(
    ("patience", "margin", "losses", "at"),
    [
        (2, 0.0, [3, 2, 1, 1, 1, 1], 5),
        (2, 0.0, [3, 2, 2.5, 1, 1.5, 0.5, 0.4], None),
        (1, 0.5, [3, 2.4, 2.0, 1.6], 3),
        (2, 0.0, [np.nan, np.nan], 2),
        (2, 0.0, [1, np.nan, 0.5, np.inf, np.nan], 5),
    ],
)
def test_early_stopping_waits_for_a_lower_loss(patience: int, margin: float, losses: list[float], at: int) -> None:
    early = p2pfl.EarlyStopping(patience, margin)
    callbacks = Callbacks([early])
    assert told(callbacks, losses) == at
    assert told(Callbacks([early]), losses) == at  # a second run is another one
    assert callbacks.when == (f"at round {at} of 9 by EarlyStopping" if at else "")


def lines(place: Path, node: int, rounds: list[int], life: int = 1) -> None:
    """Records of a node."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / "metrics.jsonl").open("a") as file:
        for round in rounds:
            row = {"node": node, "life": life, "round": round, "train_loss": life / round,
                   "accuracy_before_mixing": None, "accuracy_after_mixing": 0.5, "accuracy_own": None,
                   "arrived": [1, 2], "age": [0, 3], "bytes_sent": 7, "seconds": 0.1, "waited": 0.0,
                   "time": float(round)}  # fmt: skip
            file.write(json.dumps(row) + "\n")


def test_a_round_is_told_when_those_who_get_on_have_finished_it(tmp_path: Path) -> None:
    places = {node: tmp_path / str(node) for node in range(3)}
    watch = Watch(7, places, Score(), evaluate_every=2)

    def news(*waited_for: int) -> dict[int, dict[int, float]]:
        watch.read()
        found = watch.evaluated(waited_for)
        return {round: {node: row["train_loss"] for node, row in rows.items()} for round, rows in found}

    for node in (0, 1):
        lines(places[node], node, [1, 2, 3])
    lines(places[2], 2, [1])
    assert news(0, 1, 2) == {}
    lines(places[2], 2, [2])
    assert news(0, 1, 2) == {2: {0: 0.5, 1: 0.5, 2: 0.5}} and news(0, 1, 2) == {}
    lines(places[0], 0, [4, 5])
    lines(places[1], 1, [4, 5, 6])
    assert news(0, 1, 2) == {}
    assert news(0, 1) == {4: {0: 0.25, 1: 0.25}}  # node 2 is silent
    lines(places[2], 2, [4, 7])  # too late, and then it has skipped
    lines(places[0], 0, [6], life=2)
    lines(places[0], 0, [6], life=3)  # trained again: the later life counts
    assert news(0, 1, 2) == {6: {0: 0.5, 1: 1 / 6}}
    lines(places[0], 0, [7])
    assert news() == {7: {0: 1 / 7, 2: 1 / 7}}  # all have ended


def test_who_needs_long_for_a_round_is_not_silent(tmp_path: Path) -> None:
    places = {node: tmp_path / str(node) for node in range(2)}
    watch = Watch(7, places, Score(), evaluate_every=1)
    watch.status({0: "alive", 1: "alive"}, 100.0)
    assert watch.silent([0, 1], 104.0, 5.0) == []
    lines(places[0], 0, [1])
    (places[0] / "metrics.jsonl").write_text((places[0] / "metrics.jsonl").read_text().replace("0.1", "60.0"))
    watch.read()
    watch.status({0: "alive", 1: "alive"}, 160.0)
    assert watch.silent([0, 1], 161.0, 5.0) == [] and watch.silent([0, 1], 500.0, 5.0) == [0, 1]


def test_what_is_left_of_a_run_is_loaded(tmp_path: Path) -> None:
    """Of one that was cut off before it merged its nodes' records, and of one node by itself."""
    for node in (0, 1):
        lines(tmp_path / "nodes" / str(node), node, [1, 2])
        about = {"node": node, "name": "t", "nodes": 2, "rounds": 9, "parameters": 3, "link": "exchange",
                 "keeps_mean": "exchange", "score": "accuracy"}  # fmt: skip
        (tmp_path / "nodes" / str(node) / "about.json").write_text(json.dumps(about))
    lines(tmp_path / "nodes" / "1", 1, [2], life=2)
    with (tmp_path / "nodes" / "1" / "metrics.jsonl").open("a") as torn:
        torn.write('{"node": 1, "rou')
    whole, alone = p2pfl.load_run(tmp_path), p2pfl.load_run(tmp_path / "nodes" / "0")
    assert whole.metrics["node"].tolist() == [0, 1, 0, 1] and whole.metrics["round"].tolist() == [1, 1, 2, 2]
    assert whole.metrics["life"].tolist() == [1, 1, 1, 2]  # the later life
    assert (whole.metrics["arrived"].tolist(), whole.metrics["age"].tolist()) == ([2] * 4, [3] * 4)
    assert whole.metrics["life"].dtype == np.int64 and whole.metrics["train_loss"].dtype == np.float64
    assert np.isnan(whole.metrics["accuracy_own"]).all() and whole.unread == (
        "metrics.jsonl: 1 line could not be read",
    )
    assert (whole.summary.name, whole.summary.nodes, whole.summary.score_mean) == ("t", 2, 0.5)
    assert alone.metrics["node"].tolist() == [0, 0] and alone.summary.score_mean == 0.5
    assert whole.models == alone.models == whole.split == whole.predictions == {} and alone.rounds == {}
    with pytest.raises(ConfigError, match=r"experiment\.toml"):
        alone.experiment  # noqa: B018
    for nothing in (tmp_path / "nodes", tmp_path / "missing"):
        with pytest.raises(ConfigError, match="holds no run"):
            p2pfl.load_run(nothing)
