"""Runs computed again from their traces: live ones with deaths, returns and freezes, and those of the plain loop."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from small import CASES, Case, write
from test_live import CHURN, Started, start  # noqa: F401 (a fixture)

from p2pfl.cli import main
from p2pfl.config import experiment
from p2pfl.errors import ConfigError, DataError, Exit
from p2pfl.federation import federation as build
from p2pfl.node import records
from p2pfl.reporting import run_data
from p2pfl.runs import simulated, summary
from p2pfl.runs.replay import replay

LEAVE = """
[[churn]]
event = "leave"
node = 2
round = 20
"""
QUICK = {"start_timeout": 60.0}
GRADIENT_TRACKING = Case("gradient_tracking")
PUSH_SUM = Case("push_sum", "one_peer_exponential", 6)


def looped(folder: Path, case: Case, rounds: int = 24, more: str = "") -> Path:
    """A run directory of the plain loop."""
    file = write(folder, case, rounds=rounds, more=more)
    federation = build.build(experiment.load(file, ('driver.kind="simulate"', "driver.loop=true")))
    out = folder / "out"
    out.mkdir()
    (out / "experiment.toml").write_text(experiment.dump(federation.experiment))
    simulated.loop_into(federation, out, lambda status: None)
    return out


def trace(run: Path, node: int) -> list[dict[str, object]]:
    return records.read(run / "nodes" / str(node) / "trace.jsonl")


def rewrite(run: Path, node: int, lines: list[dict[str, object]]) -> None:
    (run / "nodes" / str(node) / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case.loss or case.algorithm == "gossip_learning" else pytest.mark.more)
        for case in CASES
    ],
    ids=str,
)
def test_the_plain_loop_with_churn_is_replayed(tmp_path: Path, case: Case) -> None:
    run = looped(tmp_path, case, more=CHURN + LEAVE)
    verdicts = replay(run)
    assert [verdict.node for verdict in verdicts] == [node for node in range(case.nodes) if node != 2]
    assert [verdict for verdict in verdicts if not verdict.equal] == []
    assert {verdict.node: verdict.life for verdict in verdicts}[1] == 2
    assert [line["adopted"] for line in trace(run, 1) if "adopted" in line]


@pytest.mark.live
@pytest.mark.soak  # test_live.py has a crash, a return, a kill and a freeze in one run, and replays it
@pytest.mark.parametrize("case", [GRADIENT_TRACKING, PUSH_SUM], ids=str)
def test_a_live_crash_and_return_is_replayed(start: Callable[..., Started], tmp_path: Path, case: Case) -> None:  # noqa: F811
    run = start(file=write(tmp_path / "case", case, rounds=400, timing=QUICK, more=CHURN))
    summary = run.end()
    assert summary["lost"] == []
    lives = {line["life"] for line in trace(run.out, 1)}
    assert len(lives) == 2
    entered = [
        line["members"] for node in range(case.nodes) if node != 1 for line in trace(run.out, node) if "members" in line
    ]
    assert len(entered) > case.nodes - 1
    verdicts = replay(run.out)
    assert len(verdicts) == case.nodes
    assert [verdict for verdict in verdicts if not verdict.equal] == []


@pytest.mark.live
@pytest.mark.soak  # as above
@pytest.mark.parametrize("case", [PUSH_SUM, GRADIENT_TRACKING], ids=str)
def test_a_live_kill_and_a_freeze_at_any_moment_are_replayed(
    start: Callable[..., Started],  # noqa: F811
    tmp_path: Path,
    case: Case,
) -> None:
    """The killed node may have sent what it has not recorded; the frozen one comes back into later rounds."""
    run = start(file=write(tmp_path / "case", case, rounds=700, timing=QUICK))
    run.reaches(1, 25)
    os.kill(run.pid(1), signal.SIGKILL)
    run.reaches(2, 60)
    os.kill(run.pid(2), signal.SIGSTOP)
    before = (run.out / "nodes" / "3" / "metrics.jsonl").read_bytes().count(b"\n")
    run.reaches(3, before + 20)
    os.kill(run.pid(2), signal.SIGCONT)
    assert run.end(code=Exit.NOT_WHOLE)["lost"] == [1]
    verdicts = replay(run.out)
    assert [verdict.node for verdict in verdicts] == [node for node in range(case.nodes) if node != 1]
    assert [verdict for verdict in verdicts if not verdict.equal] == []


def test_what_one_killed_has_sent_and_not_recorded_is_computed_on_demand(tmp_path: Path) -> None:
    """The trace of a life that was killed ends before what others have of it."""
    run = looped(tmp_path, PUSH_SUM, more=CHURN)
    lines = trace(run, 1)
    last = max(line["round"] for line in lines if line["life"] == 1)  # type: ignore[type-var]
    cut = next(line for line in lines if line["life"] == 1 and line["round"] == last)
    began = {"life": 1, "round": last, "began": cut["spoke"]}
    rewrite(run, 1, [began if line is cut else line for line in lines])
    assert all(verdict.equal for verdict in replay(run))
    rewrite(run, 1, [{**began, "began": []} if line is cut else line for line in lines])
    assert not all(verdict.equal for verdict in replay(run))  # the shares it gave are part of what it sent


def test_a_trace_that_was_changed_is_found_out(tmp_path: Path) -> None:
    run = looped(tmp_path, GRADIENT_TRACKING, rounds=6)
    told = CliRunner().invoke(main, ["replay", str(run)])
    assert told.exit_code == 0, told.output
    assert told.output.splitlines()[1:] == [f"node {node}: equal" for node in range(5)]
    lines = trace(run, 3)
    lines[5]["booked"] = lines[5]["booked"][:1]  # type: ignore[index]
    rewrite(run, 3, lines)
    told = CliRunner().invoke(main, ["replay", str(run), "--json"])
    assert told.exit_code == Exit.NOT_WHOLE
    assert "nodes differ: node 2, 3, 4" in told.output
    verdicts = json.loads(told.stdout[told.stdout.index("[") : told.stdout.rindex("]") + 1])
    assert [verdict["equal"] for verdict in verdicts] == [True, True, False, False, False]
    assert all(0 < verdict["difference"] < 1 for verdict in verdicts[2:])


def test_a_trace_with_a_gap_is_refused(tmp_path: Path) -> None:
    run = looped(tmp_path, GRADIENT_TRACKING, rounds=6)
    rewrite(run, 3, trace(run, 3)[:2] + trace(run, 3)[3:])
    with pytest.raises(DataError, match="the records are not whole"):
        replay(run)


def test_what_cannot_be_replayed_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run directory"):
        replay(tmp_path)
    run = looped(tmp_path, GRADIENT_TRACKING, rounds=2)
    file = run / "nodes" / "0" / "node.toml"
    file.write_text('[data]\nsource = "csv"\n')
    with pytest.raises(ConfigError, match="rows of its own"):
        replay(run)
    file.unlink()
    for node in range(5):
        rewrite(run, node, [])
    with pytest.raises(ConfigError, match="holds no trace"):
        replay(run)


NAMES = {1: 1_790_000_000_001, 2: 1_790_000_060_002}


def named(run: Path, format: int) -> None:
    """Name the lives of a run of the plain loop as those of a live run, in the records of a format."""
    for place in (run / "nodes").iterdir():
        node = int(place.name)
        lines: list[dict[str, Any]] = records.read(place / "trace.jsonl")
        for line in lines:
            line["life"] = NAMES[line["life"]]
            if "booked" in line:
                line["booked"] = [[j, NAMES[life], *more] for j, life, *more in line["booked"]]
                pairs = ((*who.split(":"), total) for who, total in line["exchanged"].items())
                line["exchanged"] = {f"{j}:{NAMES[int(life)]}": total for j, life, total in pairs}
            if "adopted" in line:
                j, life, round = line["adopted"]
                line["adopted"] = [j, NAMES[life], round]
        rewrite(run, node, lines)
        result = json.loads((place / "result.json").read_text())
        result["life"] = NAMES[result["life"]]
        assert result.pop("format") == 2
        (place / "result.json").write_text(json.dumps(result | ({} if format == 1 else {"format": format})))
        rows = records.read(place / "metrics.jsonl")
        if format > 1:
            rows = [{**row, "life": NAMES[row["life"]]} for row in rows]
        (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("format", [1, 2])
def test_runs_of_both_formats_are_replayed_and_reported(tmp_path: Path, format: int) -> None:
    run = looped(tmp_path, GRADIENT_TRACKING, more=CHURN)
    named(run, format)
    verdicts = {verdict.node: verdict for verdict in replay(run)}
    assert all(verdict.equal for verdict in verdicts.values())
    assert {node: verdict.life for node, verdict in verdicts.items()} == {
        **dict.fromkeys(range(5), NAMES[1]),
        1: NAMES[2],
    }
    run_data.write_rounds(run, summary.rounds(run, summary.merge(run), "accuracy"), "accuracy")
    data = run_data.read(run)
    lives = {node: set(row[row > 0].tolist()) for node, row in zip(data.nodes.ids, data.nodes.life, strict=True)}
    assert lives[1] == ({1, 2} if format == 1 else set(NAMES.values()))
    assert len(lives[0]) == 1
    told = CliRunner().invoke(main, ["report", str(run)])
    assert told.exit_code == 0, told.output
    assert (run / "report.html").exists()


def test_a_run_of_a_later_format_is_refused(tmp_path: Path) -> None:
    run = looped(tmp_path, GRADIENT_TRACKING, rounds=2)
    named(run, 3)
    with pytest.raises(ConfigError, match=r"result\.json: format=3: this p2pfl reads formats 1 to 2"):
        replay(run)


def test_payloads_are_kept_no_longer_than_needed(tmp_path: Path) -> None:
    from p2pfl.drivers.simulate.replay import Name, _Replay
    from p2pfl.federation.tasks import tasks

    run = looped(tmp_path, GRADIENT_TRACKING, rounds=12)
    federation = build.build(experiment.load(run / "experiment.toml"))
    computed = _Replay(tasks(federation), {node: trace(run, node) for node in range(5)}, [Name(0, 1)])
    computed.compute()
    for life in computed.lives.values():
        assert list(life.node.payloads) == [12]
        assert list(life.node.models) == [12]
