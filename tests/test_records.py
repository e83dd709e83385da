"""Records of a run: whole lines or none, bounded, and a full disk costs records and not the training."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from small import Case, write

from p2pfl.config import experiment
from p2pfl.errors import ConfigError
from p2pfl.federation import federation as build
from p2pfl.node import records, result
from p2pfl.reporting.run_data import Summary
from p2pfl.runs import chaos, check, virtual
from p2pfl.runs.replay import replay
from p2pfl.runs.summary import collect, directories

CHURN = """
[[churn]]
event = "crash"
node = 1
round = 25
[[churn]]
event = "rejoin"
node = 1
round = 32
state = "kept"
[driver]
checkpoint = 10
"""


class Disk:
    """A disk that takes so many bytes of each file, and then no more; `path`: of which files."""

    def __init__(self, room: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room, self._write = room, os.write
        self._name = name
        monkeypatch.setattr(os, "write", self.write)

    def write(self, file: int, data: bytes) -> int:
        if not os.readlink(f"/proc/self/fd/{file}").endswith(self._name):
            return self._write(file, data)
        left = self.room - os.fstat(file).st_size
        if left <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._write(file, data[:left])


def test_a_full_disk_tears_no_line_and_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, told = Disk(100, "events.jsonl", monkeypatch), []  # type: ignore[var-annotated]
    lines = records.Lines(tmp_path / "events.jsonl", say=told.append)
    for number in range(20):
        lines.write({"number": number, "text": "x" * 10})
    assert [row["number"] for row in records.read(tmp_path / "events.jsonl")] == [0, 1, 2]
    assert lines.dropped == 17
    (text,) = told
    assert "events.jsonl can't be written: no room for a whole record: records are dropped from here on" in text
    disk.room = 1000
    lines.write({"number": 20})
    lines.close()
    assert records.read(tmp_path / "events.jsonl")[-1] == {"number": 20}


def test_a_file_has_a_bound_over_all_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(records.CAPS, "trace.jsonl", 2 << 20)
    told: list[str] = []
    for _ in range(3):
        lines = records.Lines(tmp_path / "trace.jsonl", say=told.append)
        for _ in range(20):
            lines.write({"text": "x" * 100_000})
        lines.close()
    assert (2 << 20) - 100_100 < (tmp_path / "trace.jsonl").stat().st_size <= 2 << 20
    assert (
        "has 2 MB, which is its bound: records are dropped from here on, and training goes on; the run can't" in told[0]
    )
    assert len(told) == 2


def test_the_rounds_with_sketches_become_fewer() -> None:
    assert all(records.sketched(round) for round in range(1, 1001))
    assert sum(map(records.sketched, range(1001, 10_001))) == 900
    assert sum(map(records.sketched, range(10_001, 110_001))) == 1000


def run(folder: Path, case: Case, more: str = CHURN) -> tuple[Path, Summary, Sequence[str]]:
    """The directory, the figures and the notes of a run in virtual time."""
    file = write(folder, case, rounds=60, timing={}, more=more)
    federation = build.build(experiment.load(file, ['driver.kind="virtual"']))
    out = folder / "out"
    out.mkdir()
    (out / "experiment.toml").write_text(experiment.dump(federation.experiment))
    virtual.into(federation, out)
    collected = collect(federation, out)
    return out, collected.summary, collected.notes


@pytest.mark.parametrize(
    "case", [pytest.param(Case("gradient_tracking"), marks=pytest.mark.more), Case("dsgd", "complete", 3)], ids=str
)
def test_the_ledger_needs_few_sketches_and_the_replay_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    """With a crash, a life that goes on from a checkpoint, and another epoch."""
    figures = []
    for name, sketched in (("every", lambda round: True), ("few", lambda round: False)):
        monkeypatch.setattr(records, "sketched", sketched)
        (tmp_path / name).mkdir()
        out, summary, _ = run(tmp_path / name, case)
        figures.append((summary.mean_residual, summary.residue, summary.residue_drift, summary.digests))
        assert all(verdict.equal for verdict in replay(out))
        size = sum((path / "trace.jsonl").stat().st_size for path in directories(out).values())
        assert (size / 60 / case.nodes < 500) == (name == "few")
    assert figures[0] == figures[1]
    assert figures[0][0] is not None and figures[0][0] < 1e-6


def test_the_rounds_with_a_record_become_fewer() -> None:
    assert all(map(records.recorded, (1, 99_999, 100_000, 100_100, 10_000_000, 10_010_000)))
    assert sum(map(records.recorded, range(100_001, 110_001))) == 100
    assert sum(map(records.recorded, range(10_000_001, 10_100_001))) == 10


@pytest.mark.more
@pytest.mark.parametrize("more", [CHURN, CHURN.replace("crash", "leave")])
def test_fewer_records_of_the_metrics_lose_no_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str) -> None:
    runs = {}
    for name, recorded in (("every", lambda round: True), ("few", lambda round: round < 5 or round % 7 == 0)):
        monkeypatch.setattr(records, "recorded", recorded)
        (tmp_path / name).mkdir()
        runs[name] = run(tmp_path / name, Case("gradient_tracking"), more)
    (_, every, _), (out, few, _) = runs["every"], runs["few"]
    for field in (
        "exchanges_booked",
        "bytes_sent_per_node_round",
        "score_mean",
        "residue",
        "digests",
        "rounds_skipped",
    ):
        assert getattr(every, field) == getattr(few, field), field
    one, other = (records.read(place / "metrics.jsonl") for place, _, _ in runs.values())
    assert len(other) < len(one) / 4 and {"rounds", "booked"} & one[0].keys() == set()
    for field in ("bytes_sent", "bytes_received", "seconds", "waited"):
        assert sum(row[field] for row in one) == pytest.approx(sum(row[field] for row in other))
    rounds = [
        sorted((row["node"], row["round"] - i) for row in rows for i in range(records.span(row)))
        for rows in (one, other)
    ]
    assert rounds[0] == rounds[1]
    steps = [2] * 5
    assert (
        chaos.work(one, steps, 1e9).steps - chaos.work(other, steps, 1e9).steps <= 2 * 5
    )  # what the first record stands for
    for node, place in directories(out).items():
        rows = records.read(place / "metrics.jsonl")
        assert records.last(place / "metrics.jsonl") == rows[-1]
        assert check._end(node, result.read(place), rows).skipped == 0


def test_a_record_of_several_rounds_has_their_sums_and_else_the_last_of_them() -> None:
    one = records.Measured(3, 1, 7, 0.5, None, 0.6, 0.7, [1, 2], [0, 3], 100, 90, 0.25, 0.125, 10.0)
    two = records.Measured(3, 1, 8, 0.4, None, None, 0.8, [2], [0], 50, 40, 0.5, 0.0, 10.5)
    both = records.together(one, two)
    assert both == records.Measured(3, 1, 8, 0.4, None, 0.6, 0.8, [2], [0], 150, 130, 0.75, 0.125, 10.5, 2, 3)
    third = records.together(both, two._replace(round=9, train_loss=float("nan"), arrived=[]))
    assert (third.rounds, third.booked, third.bytes_sent) == (3, 3, 200)
    assert math.isnan(records.together(third, two).train_loss)  # that it has diverged is not lost
    row = third._asdict()
    assert (records.span(row), records.exchanges(row)) == (3, 3)
    assert (records.span({}), records.exchanges({"arrived": [4, 5]})) == (1, 2)


def test_the_last_record_is_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert records.last(path) is None
    for text, last in (("", None), ('{"a": 1', None), ('{"a": 1}\n', {"a": 1}), ('{"a": 1}\n{"a": 2}\n{"a', {"a": 2})):
        path.write_text(text)
        assert records.last(path) == last
    path.write_text("".join(json.dumps({"a": number, "x": "y" * 300_000}) + "\n" for number in range(4)) + '{"a": 9')
    assert (records.last(path) or {})["a"] == 3


def test_a_run_on_a_full_disk_trains_to_its_end_and_says_what_it_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Disk(20_000, "nodes/0/trace.jsonl", monkeypatch)
    out, summary, notes = run(tmp_path, Case("gradient_tracking"), more="")
    results = {node: result.read(path) for node, path in directories(out).items()}
    assert [each.round for each in results.values() if each] == [60] * 5
    assert [each.trace_whole for each in results.values() if each] == [False, True, True, True, True]
    assert results[0] is not None and results[0].records_dropped > 20 and results[0].error is None
    assert (summary.mean_residual, summary.residue) == (None, None)
    assert "records of node 0 were dropped: no ledger, and no replay" in notes
    with pytest.raises(ConfigError, match="the trace of node 0 is not whole"):
        replay(out)
    assert all(json.loads(line) for line in (out / "nodes" / "0" / "trace.jsonl").read_text().splitlines())
