"""One suite over every row of DRIVERS: whatever runs a federation, the same files, figures and models come of it."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from small import PATIENT

import p2pfl
from p2pfl import tree
from p2pfl.config import experiment
from p2pfl.config.experiment import Driver, Experiment
from p2pfl.errors import ConfigError
from p2pfl.node import records, result
from p2pfl.reporting import terminal
from p2pfl.reporting.run_data import Summary
from p2pfl.runs.callbacks import Callback, Callbacks, RoundInfo, RunInfo
from p2pfl.runs.drivers import DRIVERS, chosen
from p2pfl.runs.run import run

NODES, ROUNDS = 4, 3
FILES = {
    "experiment.toml", "topology.json", "metrics.jsonl", "rounds.jsonl", "events.jsonl", "summary.json",
    "assessment.json", "report.html",
}  # fmt: skip
METRICS = {
    "node", "life", "round", "train_loss", "accuracy_before_mixing", "accuracy_after_mixing", "accuracy_own", "arrived",
    "bytes_sent", "time",
}  # fmt: skip
ROWS = [*DRIVERS]
Ran = Callable[[str], tuple[Path, Summary]]


def tiny(driver: str, **more: Any) -> Experiment:
    """Digits on a ring of four; `more`: other tables."""
    table = {
        "name": "tiny", "rounds": ROUNDS, "data": {"source": "digits"}, "model": {"name": "logistic"},
        "training": {"optimizer": {"name": "sgd", "learning_rate": 0.1}, "local_steps": 2},
        "topology": {"graph": "ring", "nodes": NODES}, "algorithm": {"name": "dsgd"}, "network": {"timing": PATIENT},
        "driver": {"kind": "simulate", "loop": True} if driver == "loop" else {"kind": driver}, "baselines": False,
    } | more  # fmt: skip
    parsed: Experiment = experiment.parse(table, "tiny.toml", Experiment)
    return parsed


class Seen(Callback):
    """Keeps what it is told, with the models copied while they are there."""

    def __init__(self) -> None:
        self.began: list[RunInfo] = []
        self.rounds: list[RoundInfo] = []
        self.models: list[Any] = []

    def begin(self, info: RunInfo) -> None:
        self.began.append(info)

    def round(self, info: RoundInfo) -> None:
        assert self.began
        self.rounds.append(info)
        self.models.append(info.models and info.models())


@pytest.fixture(scope="module")
def seen() -> dict[str, Seen]:
    """What a callback was told, by driver."""
    return {}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, seen: dict[str, Seen]) -> Ran:
    """Runs each driver once."""
    done: dict[str, tuple[Path, Summary]] = {}

    def of(driver: str) -> tuple[Path, Summary]:
        if driver not in done:
            out, seen[driver] = tmp_path_factory.mktemp(driver), Seen()
            done[driver] = out, run(tiny(driver), out, callbacks=Callbacks([seen[driver]]))
        return done[driver]

    return of


@pytest.mark.parametrize("driver", ROWS)
def test_it_writes_the_same_files(ran: Ran, driver: str) -> None:
    out, _ = ran(driver)
    row = DRIVERS[driver]
    there = {path.name for path in out.iterdir()}
    assert there >= FILES and not any(name.endswith(".partial") for name in there)
    assert ("nodes" in there) == row.node_records and ("pids.json" in there) == row.starts_processes
    rows = records.read(out / "metrics.jsonl")
    assert [(each["round"], each["node"]) for each in rows] == [(t, i) for t in (1, 2, 3) for i in range(NODES)]
    assert all(set(each) >= METRICS for each in rows)
    assert len({(each["node"], each["life"]) for each in rows}) == NODES  # nobody began a second life
    rounds = records.read(out / "rounds.jsonl")
    assert [each["round"] for each in rounds] == [1, 2, 3]
    assert {tuple(each) for each in rounds} == {
        ("round", "alive", "accuracy_mean", "accuracy_worst", "consensus_distance", "bytes_sent", "seconds_median",
         "seconds"),
    }  # fmt: skip
    assert (rounds[-1]["seconds"] is not None) == (driver == "virtual")


@pytest.mark.parametrize("driver", ROWS)
def test_its_summary_has_every_key_and_reads_back(ran: Ran, driver: str) -> None:
    out, summary = ran(driver)
    table = json.loads((out / "summary.json").read_text())
    assert Summary.of(table) == summary and summary.as_dict() == table
    assert set(table) == {*Summary().as_dict(), *summary.metrics}
    assert summary.metrics["auc_mean"] is not None
    known = {"name": "tiny", "nodes": NODES, "rounds": ROUNDS, "algorithm": "dsgd", "graph": "ring", "epochs": 1,
             "keeps_mean": "exchange", "residue": 0, "messages_dropped": {}, "lost": [], "left": [],
             "score": "accuracy", "driver": "simulate" if driver == "loop" else driver}  # fmt: skip
    assert known == {name: table[name] for name in known}
    assert summary.score_pooled is summary.score_local_only is None  # there were no baselines
    assert summary.mean_residual is not None and summary.mean_residual < 1e-6


@pytest.mark.parametrize("driver", ROWS)
def test_it_ends_as_the_plain_loop(ran: Ran, driver: str) -> None:
    _, summary = ran(driver)
    _, looped = ran("loop")
    assert summary.exchanges_booked == looped.exchanges_booked == ROUNDS * NODES and summary.exchanges_voided == 0
    assert summary.score_mean == pytest.approx(looped.score_mean, abs=0.01)
    assert summary.consensus_distance == pytest.approx(looped.consensus_distance, rel=1e-3)
    assert summary.digests.keys() == looped.digests.keys() == {"0", "1", "2", "3"}
    if DRIVERS[driver].to_the_bit:
        assert summary.digests == looped.digests
        assert summary.score_mean == looped.score_mean
    assert len(set(looped.digests.values())) == NODES  # the comparison can fail


@pytest.mark.parametrize("driver", ROWS)
def test_a_callback_is_told_the_same(ran: Ran, seen: dict[str, Seen], driver: str) -> None:
    """One beginning, each round once and in order, with the numbers of the records; models where they are at hand."""
    out, summary = ran(driver)
    ran("loop")
    told, looped = seen[driver], seen["loop"]
    kind = "simulate" if driver == "loop" else driver
    assert told.began == [RunInfo("tiny", NODES, ROUNDS, 1, "dsgd", kind, ("accuracy", "accuracy", True), out)]
    assert [info.round for info in told.rounds] == [1, 2, 3] and all(info.active.all() for info in told.rounds)
    for info, same in zip(told.rounds, looped.rounds, strict=True):
        for name in ("train_loss", "score", "score_own", "score_before"):
            tolerance = 0.0 if DRIVERS[driver].to_the_bit else 0.01
            np.testing.assert_allclose(getattr(info, name), getattr(same, name), atol=tolerance, rtol=0)
            assert getattr(info, name).shape == (NODES,)
    assert told.rounds[-1].score.mean() == pytest.approx(summary.score_mean, abs=1e-6)
    assert [*map(np.isfinite, (told.rounds[-1].seconds,))] == [True]
    if driver in ("live", "virtual"):
        assert told.models == [None] * ROUNDS
    else:
        (a, *_), (b, *_) = (tree.named_leaves(model).values() for model in told.models[:2])
        assert a.shape[0] == NODES and not np.array_equal(a, b)


@pytest.mark.parametrize("driver", ROWS)
def test_it_is_loaded_as_plain_arrays(ran: Ran, seen: dict[str, Seen], driver: str) -> None:
    out, summary = ran(driver)
    loaded = p2pfl.load_run(out)
    assert (loaded.summary, loaded.unread, loaded.experiment) == (summary, (), experiment.load(out / "experiment.toml"))
    frame = pd.DataFrame(loaded.metrics)
    rows = records.read(out / "metrics.jsonl")
    assert len(frame) == NODES * ROUNDS and set(frame) == set(rows[0])
    assert (frame["round"].tolist(), frame["node"].tolist()) == ([1] * 4 + [2] * 4 + [3] * 4, [0, 1, 2, 3] * 3)
    assert frame["accuracy_after_mixing"].tolist() == [row["accuracy_after_mixing"] for row in rows]
    assert frame["arrived"].tolist() == [2] * 12 and frame["arrived"].dtype == np.int64
    assert loaded.rounds["accuracy_mean"][-1] == pytest.approx(summary.score_mean, abs=1e-6)
    assert loaded.rounds["round"].tolist() == [1, 2, 3]
    assert len(loaded.events) == len(records.read(out / "events.jsonl"))
    assert list(loaded.models) == [0, 1, 2, 3]
    for node, leaves in loaded.models.items():
        assert all(isinstance(leaf, np.ndarray) for leaf in leaves.values())
        if seen[driver].models[-1] is not None:
            last = {name: leaf[node] for name, leaf in tree.named_leaves(seen[driver].models[-1]).items()}
            assert last.keys() == leaves.keys() and all(np.array_equal(leaves[name], last[name]) for name in last)
    assert set(loaded.split) == {"part", "row", "node", "name", "line"} and set(loaded.split["part"]) == {
        "train",
        "test",
    }
    if DRIVERS[driver].node_records:
        alone = p2pfl.load_run(out / "nodes" / "1")
        assert alone.metrics["round"].tolist() == [1, 2, 3] and set(alone.metrics["node"]) == set(alone.models) == {1}
        assert alone.summary.score_mean == loaded.metrics["accuracy_after_mixing"][-3]
        assert alone.summary.digests == {"1": summary.digests["1"]}
    said = np.stack([loaded.predictions[f"p_{i}"] for i in range(10)], axis=1)
    own = loaded.predictions["node"] == 0
    right = said[own].argmax(axis=1) == loaded.predictions["class"][own].astype(int)
    assert right.mean() == pytest.approx(loaded.metrics["accuracy_after_mixing"][-4], abs=1e-6)


@pytest.mark.parametrize("driver", [row for row in ROWS if DRIVERS[row].node_records])
def test_its_nodes_leave_one_kind_of_result(ran: Ran, driver: str) -> None:
    out, summary = ran(driver)
    for node in range(NODES):
        ended, known = (result.read(place / "nodes" / str(node)) for place in (out, ran("loop")[0]))
        assert ended is not None and known is not None
        assert (ended.memory_peak is None) == (not DRIVERS[driver].starts_processes)
        assert ended.trained == (None if driver == "loop" else ROUNDS)
        assert ended._replace(memory_peak=None, life=1, trained=None) == known._replace(life=1)
        assert (ended.round, ended.booked, ended.left, ended.error) == (ROUNDS, 2 * ROUNDS, False, None)
        assert ended.digest == summary.digests[str(node)]
    assert result.read(out) is None


@pytest.mark.parametrize(
    ("driver", "wrong", "text"),
    [
        pytest.param("live", {"network": {"late": 2}}, "network.late", marks=pytest.mark.more),
        ("virtual", {"network": {"detection": 3}}, "network.detection=3"),
        ("virtual", {"virtual": {"node_step_seconds": [1.0]}}, "1 numbers for 4 nodes"),
        ("simulate", {"network": {"sync": "async"}}, "network.sync='async'"),
        ("loop", {"network": {"sync": "async"}}, "network.sync='async'"),
        *((row, {"topology": {"graph": "ring"}}, "topology.nodes: missing") for row in ROWS),
    ],
)
def test_a_wrong_experiment_is_refused_before_anything_starts(
    tmp_path: Path, driver: str, wrong: dict[str, Any], text: str
) -> None:
    out = tmp_path / "out"
    said = Console(file=io.StringIO())
    with pytest.raises(ConfigError, match=text):
        run(tiny(driver, **wrong), out, terminal.make(said, quiet=False))
    assert not out.exists() and said.file.getvalue() == ""


def test_a_directory_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(ConfigError, match="is not empty"):
        run(tiny("loop"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_table_of_the_file_chooses_the_driver() -> None:
    for kind in ("live", "virtual", "simulate"):
        assert chosen(Driver(kind=kind)) is DRIVERS[kind]
        assert chosen(Driver(kind=kind, loop=True)) is DRIVERS["loop" if kind == "simulate" else kind]
    assert {field.name for field in dataclasses.fields(Driver)} == {"kind", "loop", "chunk", "devices", "checkpoint"}
