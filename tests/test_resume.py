"""A run that goes on: simulations to the same bits, live nodes together, and what is refused."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import networkx as nx
import numpy as np
import pytest
import safetensors.numpy
from federations import TABLE, federation_of
from small import LEAST
from test_live import P2PFL
from test_peer import Node, World
from test_simulate_epochs import MUCH

from p2pfl.config import experiment as config
from p2pfl.config.experiment import Experiment
from p2pfl.drivers.simulate import keeping
from p2pfl.errors import ConfigError, Exit
from p2pfl.federation.federation import Federation, digest, identity
from p2pfl.node import records
from p2pfl.node.checkpoint import CURRENT, PREVIOUS, Store
from p2pfl.protocol.events import Members, Seen
from p2pfl.protocol.timing import LOCAL
from p2pfl.reporting.run_data import Summary
from p2pfl.runs import again, origin, resume
from p2pfl.runs.origin import Beginning, Origin
from p2pfl.runs.run import run

MORE = pytest.mark.more
BASE = {**TABLE, "training": {k: v for k, v in TABLE["training"].items() if k != "dtype"}}
"""In single precision."""


def wanted(**more: Any) -> Experiment:
    table = {**BASE, "driver": {"kind": "simulate", "checkpoint": 2, "devices": 1}, **more}
    parsed: Experiment = config.parse(table, "t.toml", Experiment)
    return parsed


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints as often as they are asked for, however short the time."""
    monkeypatch.setattr(keeping, "_LEAST", 0.0)
    monkeypatch.setattr(keeping, "_SHARE", 0)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C."""


def until(
    monkeypatch: pytest.MonkeyPatch, experiment: Experiment, out: Path, round: int, resumes: bool = False
) -> None:
    """Run until a checkpoint of this round or a later one is written, and end there as Ctrl-C would."""
    save = Store.save

    def saved(store: Store, state: Any, table: dict[str, Any]) -> str | None:
        wrong = save(store, state, table)
        if store.directory == out and table["round"] >= round:
            raise Interrupted
        return wrong

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(Store, "save", saved)
        run(experiment, out, resumes=resumes)


def same(one: Path, other: Path) -> None:
    """Models to the bit; records of rounds but for the time; figures of the summary but for time and what is noted."""
    models = [safetensors.numpy.load_file(each / "models.safetensors") for each in (one, other)]
    assert models[0].keys() == models[1].keys()
    for name, leaf in models[0].items():
        assert leaf.tobytes() == models[1][name].tobytes(), name
    for name in ("metrics.jsonl", "rounds.jsonl", "events.jsonl"):
        lines = [[_timeless(row) for row in records.read(each / name)] for each in (one, other)]
        assert lines[0] == lines[1], name
    summaries = [_timeless(json.loads((each / "summary.json").read_text())) for each in (one, other)]
    assert summaries[0] == summaries[1]


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    other = ("time", "memory_peak", "steps_per_second", "resumed", "notes")
    return {name: value for name, value in row.items() if name not in other and not name.startswith("seconds")}


CHURN = {"churn": MUCH, "network": {"alone": "train"}, "algorithm": {"name": "gradient_tracking"}}


@pytest.mark.parametrize(
    ("more", "at"),
    [
        pytest.param({**CHURN, "rounds": 15}, (6,), id="churn"),  # before one comes with nothing
        pytest.param({**CHURN, "rounds": 15}, (4, 9), id="churn, twice", marks=pytest.mark.soak),
        pytest.param({"rounds": 9}, (1, 6), id="plain", marks=MORE),
        pytest.param(
            {"rounds": 12, "network": {"late": 3, "loss": 0.1}, "algorithm": {"name": "gradient_tracking"}},
            (5, 7), id="late", marks=MORE,
        ),
        pytest.param(
            {"rounds": 9, "network": {"loss": 0.3}, "algorithm": {"name": "push_sum"},
             "topology": {"graph": "one_peer_exponential", "nodes": 9}}, (3, 5), id="push", marks=MORE,
        ),
        pytest.param(
            {"rounds": 9, "algorithm": {"name": "epidemic"}, "topology": {"graph": "complete", "nodes": 9}},
            (2, 8), id="drawn", marks=MORE,
        ),
        pytest.param({**CHURN, "rounds": 15, "algorithm": {"name": "dsgd"}}, (7, 11), id="churn, dsgd", marks=MORE),
    ],
)  # fmt: skip
def test_a_simulation_goes_on_to_the_same_bits(
    more: dict[str, Any], at: Sequence[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted once or twice; the figures, the records and the models are those of one run."""
    experiment = wanted(**more)
    run(experiment, tmp_path / "whole")
    out = tmp_path / "twice"
    for turn, round in enumerate(at):
        until(monkeypatch, experiment, out, round, resumes=turn > 0)
        assert not (out / "summary.json").exists()
        experiment = resume.wanted(out)
    summary = run(experiment, out, resumes=True)
    same(tmp_path / "whole", out)
    assert len(summary.resumed) == len(at) and all(a >= b for a, b in zip(summary.resumed, at, strict=True))
    assert [note for note in summary.notes if note.startswith("resumed: goes on after round ")]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, marks=MORE, id="plain"),
        pytest.param(
            {"network": {"late": 3}, "algorithm": {"name": "gradient_tracking"}}, marks=pytest.mark.soak, id="late",
        ),
        pytest.param(
            {"algorithm": {"name": "epidemic"}, "topology": {"graph": "complete", "nodes": 9}},
            marks=pytest.mark.soak, id="drawn",
        ),
        pytest.param({**CHURN, "churn": [each for each in MUCH if each["round"] < 8]}, marks=MORE, id="churn"),
    ],
)  # fmt: skip
def test_more_rounds_are_those_of_the_longer_run(more: dict[str, Any], tmp_path: Path) -> None:
    run(wanted(rounds=17, **more), tmp_path / "longer")
    short = tmp_path / "short"
    run(wanted(rounds=10, **more), short)
    with pytest.raises(ConfigError, match=r"has finished its 10 rounds.*--set rounds=N, N greater than 10"):
        resume.wanted(short)
    summary = run(resume.wanted(short, ["rounds=17"]), short, resumes=True)
    same(tmp_path / "longer", short)
    assert summary.rounds == 17 and "rounds = 17" in (short / "experiment.toml").read_text()
    assert summary.resumed == ((10,) if not more.get("network", {}).get("late") else summary.resumed)


@MORE
def test_baselines_that_are_trained_stay_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"source": "digits"}
    model = {"name": "logistic"}
    more = {"data": data, "model": model, "topology": {"graph": "ring", "nodes": 3}, "baselines": True}
    run(wanted(rounds=6, **more), tmp_path / "whole")
    out = tmp_path / "out"
    until(monkeypatch, wanted(rounds=6, **more), out, 1)
    before = {each: each.stat().st_mtime_ns for each in (out / "baselines").glob("*/checkpoint.safetensors")}
    assert len(before) == 2
    run(resume.wanted(out), out, resumes=True)
    same(tmp_path / "whole", out)
    assert before == {each: each.stat().st_mtime_ns for each in before}, "nothing was trained"
    run(wanted(rounds=9, **more), tmp_path / "longer")
    run(resume.wanted(out, ["rounds=9"]), out, resumes=True)
    same(tmp_path / "longer", out)


@MORE
@pytest.mark.parametrize("driver", [{"kind": "simulate", "loop": True}, {"kind": "virtual"}], ids=["loop", "virtual"])
def test_who_keeps_no_checkpoints_comes_to_the_same_bits(driver: dict[str, Any], tmp_path: Path) -> None:
    experiment = wanted(rounds=8, driver=driver)
    first, longer, out = (run(each, tmp_path / name) for each, name in (
        (experiment, "first"), (wanted(rounds=12, driver=driver), "longer"), (experiment, "out"),
    ))  # fmt: skip
    (tmp_path / "out" / "summary.json").unlink()  # it was interrupted
    summary = run(resume.wanted(tmp_path / "out"), tmp_path / "out", resumes=True)
    assert summary.digests == first.digests and summary.resumed == (0,) and out.digests == first.digests
    assert "resumed: begins again; rounds 1 to 8 are trained again" in summary.notes
    summary = run(resume.wanted(tmp_path / "out", ["rounds=12"]), tmp_path / "out", resumes=True)
    assert summary.digests == longer.digests
    assert _timeless(summary.as_dict()) == _timeless(longer.as_dict())


@MORE
def test_a_torn_checkpoint_is_said_and_the_one_before_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, out = wanted(rounds=9), tmp_path / "out"
    run(experiment, tmp_path / "whole")
    until(monkeypatch, experiment, out, 5)
    (out / CURRENT).write_bytes((out / CURRENT).read_bytes()[:-40])
    summary = run(resume.wanted(out), out, resumes=True)
    same(tmp_path / "whole", out)
    assert 0 < summary.resumed[0] < 5
    until(monkeypatch, wanted(rounds=9), tmp_path / "none", 5)
    for name in (CURRENT, PREVIOUS):
        (tmp_path / "none" / name).unlink(missing_ok=True)
    assert run(resume.wanted(tmp_path / "none"), tmp_path / "none", resumes=True).resumed == (0,)
    same(tmp_path / "whole", tmp_path / "none")


# --- what is refused


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The directory of a run of 10 rounds that was interrupted after round 4."""
    experiment, out = wanted(rounds=10), tmp_path / "run"
    out.mkdir()
    (out / "experiment.toml").write_text(config.dump(experiment))
    Origin(resume.meaning(experiment), "rows", 10, "", (Beginning(0, 0),)).write(out)
    (out / "rounds.jsonl").write_text('{"round":4}\n')
    return out


def test_what_may_change_is_changed(stopped: Path) -> None:
    given = ["rounds=12", "driver.chunk=3", "driver.devices=1", "driver.checkpoint=7"]
    experiment = resume.wanted(stopped, given)
    assert (experiment.rounds, experiment.driver.chunk, experiment.driver.checkpoint) == (12, 3, 7)
    assert resume.wanted(stopped, ["rounds=5"]).rounds == 5, "it was interrupted, and may be shorter"


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["seed=1"], "--set seed=1: would make another experiment of .*only rounds, driver.chunk, driver.devices, dr"),
        (["driver.kind=live"], "would make another experiment"),
        (["rounds=4"], "rounds=4: the run has done 4 already; it must be greater"),
        (["rounds=none"], "rounds"),
    ],
)
def test_what_may_not_is_refused(stopped: Path, overrides: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        resume.wanted(stopped, overrides)


def test_what_is_no_run_that_can_go_on_is_refused(stopped: Path, tmp_path: Path) -> None:
    def refused(why: str, run: Path = stopped) -> None:
        with pytest.raises(ConfigError, match=why):
            resume.wanted(run)

    refused("no-such: is not a run directory", tmp_path / "no-such")
    refused("is not a run directory; it must hold experiment.toml", tmp_path)
    Summary(rounds=10).write(stopped)
    refused("has finished its 10 rounds")
    Summary(rounds=10, interrupted=True).write(stopped)
    assert resume.wanted(stopped).rounds == 10
    Summary(rounds=4, stopped_early="at round 4 of 10 by Log").write(stopped)
    assert resume.wanted(stopped).rounds == 10, "whoever has ended it early, or failed in it, may let it go on"
    with origin.held(stopped):
        refused("is still going on")
    text = (stopped / "experiment.toml").read_text()
    (stopped / "experiment.toml").write_text(text.replace("seed = 0", "seed = 5"))
    refused("is not what the run began with; somebody has changed it")
    (stopped / "experiment.toml").write_text(text)
    (stopped / "run.json").write_text("{")
    refused("run.json: is garbled")
    (stopped / "run.json").unlink()
    refused("holds no run.json")


def test_nodes_that_are_still_leaving_are_waited_for(stopped: Path) -> None:
    code = "import time; print(flush=True); time.sleep(600)"
    command = [sys.executable, "-c", code, "node", "/3/node.toml"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as node:
        try:
            assert node.stdout and node.stdout.readline()
            (stopped / "pids.json").write_text(json.dumps({"3": [node.pid]}))
            with pytest.raises(ConfigError, match=rf"node 3 is still at work \(process {node.pid}\)"):
                resume.wanted(stopped)
        finally:
            node.kill()
    assert resume.wanted(stopped).rounds == 10


def test_other_rows_and_other_first_rounds_are_refused(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = federation_of({**BASE, "rounds": 12})
    with pytest.raises(ConfigError, match=r"rows, or whose they are, are not those that .* began with"):
        resume.check(made, stopped, origin.rows_digest(made))
    assert resume.check(made, stopped, "rows").rounds == 10
    other = made.schedule._replace(weight=made.schedule.weight * 0.5)
    shorter = made._replace(learning=made.learning._replace(schedule=other))
    monkeypatch.setattr(resume, "build", lambda experiment, dataset: shorter)
    with pytest.raises(ConfigError, match=r"rounds=12: algorithm.name='dsgd' makes another schedule of more rounds"):
        resume.check(made, stopped, "rows")


def test_file_and_run_are_wrong_usage(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from p2pfl.cli import main

    for arguments, why in (
        ([], "give FILE or --resume RUN"),
        (["e.toml", "--resume", "r"], "not both: RUN has its experiment"),
        (["--resume", "r", "--out", "x", "--driver", "live"], "leave --out and --driver out"),
    ):
        done = CliRunner().invoke(main, ["run", *arguments])
        assert done.exit_code == Exit.USAGE and why in done.output
    done = CliRunner().invoke(main, ["run", "--resume", str(tmp_path)])
    assert done.exit_code == Exit.MISTAKE and "is not a run directory" in done.output


# --- live nodes


class Stopped(World):
    """Nodes that were all stopped: some with a state from the round before."""

    def inform(self, node: Node) -> None:
        there = tuple(Seen(n, life, False, self.nodes[n].peer.told) for n, life in sorted(self.members.items()))
        node.handle(Members(there, over=tuple(self.past.items())))


@pytest.mark.parametrize("seed", range(5))
def test_nodes_that_were_all_stopped_begin_in_one_round_as_if_it_were_the_first(seed: int) -> None:
    class Together(Stopped):
        facts: ClassVar[dict[str, Any]] = {"join_round": 21, "together": True}
        differing: ClassVar[dict[int, dict[str, Any]]] = {node: {"kept_round": 20 - node % 2} for node in range(6)}

    hasty = LOCAL._replace(silence=0.05)  # for whom others have begun does not wait for all to come
    world = Together(nx.cycle_graph(6), rounds=40, seed=seed, timing=hasty)
    world.run()
    for node in world.nodes.values():
        assert sorted(node.finished_at) == list(range(21, 41)), "nobody skips a round, or has one more"
        assert all(len(node.mixed_with[round]) == 2 for round in range(21, 41)), "everybody mixes with all, at once"
        assert {note.event for note in node.notes} <= {"paused"}
    assert sum(node.value for node in world.nodes.values()) == pytest.approx(15)


def test_a_checkpoint_is_of_any_number_of_rounds_and_nodes_that_meet_are_not() -> None:
    one, longer, other = (federation_of({**BASE, **more}) for more in ({}, {"rounds": 99}, {"seed": 1}))
    assert identity(one) == identity(longer) != identity(other)
    assert len({digest(each) for each in (one, longer, other)}) == 3


def federation(nodes: int = 4, **more: Any) -> Federation:
    return federation_of({**BASE, "rounds": 50, "topology": {"graph": "ring", "nodes": nodes}, **more})


def keep(made: Federation, out: Path, kept: dict[int, Sequence[int]], reached: int = 0) -> None:
    """Nodes with checkpoints from after these rounds, in this order, and records up to a round."""
    for node, rounds in kept.items():
        place = out / "nodes" / str(node)
        place.mkdir(parents=True)
        for round in rounds:
            assert Store(place, identity(made)).save({"x": np.zeros(1)}, {"round": round, "life": 1}) is None
        rows = [{"round": round, "node": node, "event": "late"} for round in range(1, reached + 1)]
        for name in ("metrics.jsonl", "events.jsonl"):
            (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("kept", "found"),
    [
        ({0: (10, 20), 1: (10, 20), 2: (10, 20), 3: (10, 20)}, (20, (), {})),
        ({0: (10, 20), 1: (10, 20), 2: (10,), 3: (10, 20)}, (10, (), {})),
        ({0: (20, 23), 1: (20, 24), 2: (20, 24), 3: (20, 23)}, (20, (), {})),
        ({0: (23,), 1: (24,), 2: (24,), 3: (23,)}, (24, (), {0: 23, 3: 23})),
        ({0: (10, 20), 1: (10, 20), 2: (), 3: (10, 20)}, (20, (2,), {})),
        ({0: (), 1: (), 2: (), 3: ()}, (0, (), {})),
        ({0: (50,), 1: (50,), 2: (50,), 3: (50,)}, (50, (), {})),
    ],
)
def test_nodes_go_on_after_the_last_round_that_all_have_kept(
    tmp_path: Path, kept: dict[int, Sequence[int]], found: tuple[int, tuple[int, ...], dict[int, int]]
) -> None:
    made = federation()
    keep(made, tmp_path, kept, reached=25)
    plan = again.plan(made, tmp_path)
    assert (plan.round, plan.without, dict(plan.late)) == found and plan.reached == 25
    again.prepare(made, tmp_path, plan)
    for node, rounds in kept.items():
        place = tmp_path / "nodes" / str(node)
        left = [table["round"] for table in Store(place, identity(made)).tables()]
        assert left == sorted((round for round in rounds if round <= plan.round), reverse=True)
        rows = [row["round"] for row in records.read(place / "metrics.jsonl")]
        assert rows == list(range(1, min(plan.round, 25) + 1))


def test_who_has_crashed_for_good_is_not_asked_and_half_must_have_kept_something(tmp_path: Path) -> None:
    crash = [{"event": "crash", "node": 3, "round": 15}, {"event": "join", "node": 2, "round": 30}]
    made = federation(churn=crash)
    keep(made, tmp_path, {0: (10, 20), 1: (20,), 2: (), 3: (10,)})
    plan = again.plan(made, tmp_path)
    assert (plan.round, plan.there, plan.without) == (20, {0, 1}, ())
    assert [(event.event, event.node) for event in plan.events(made.churn)] == [("join", 2)]
    with pytest.raises(ConfigError, match=r"node 1, 2, 3 of 4 have no checkpoint, and half of the nodes must have one"):
        again.plan(federation(), _only(federation(), tmp_path / "one"))


def _only(made: Federation, out: Path) -> Path:
    keep(made, out, {0: (10,), 1: (), 2: (), 3: ()})
    return out


def test_the_end_of_nodes_that_go_on_is_told_no_more(tmp_path: Path) -> None:
    made = federation()
    keep(made, tmp_path, {node: (20,) for node in range(4)})
    rows = [("late", 1, 20), ("left", 1, 20), ("removed", 2, 20), ("detected", 3, 19), ("left", 2, 21)]
    lines = [{"event": event, "node": node, "round": round} for event, node, round in rows]
    (tmp_path / "nodes" / "0" / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    again.prepare(made, tmp_path, again.plan(made, tmp_path))
    kept = [(row["event"], row["round"]) for row in records.read(tmp_path / "nodes" / "0" / "events.jsonl")]
    assert kept == [("late", 20), ("detected", 19)]


LIVE = (
    LEAST.replace("rounds = 3", "rounds = 200\nbaselines = false")
    .replace("nodes = 3", "nodes = 4")
    .replace('"dsgd"', '"gradient_tracking"')
    + "[evaluation]\nevery = 10\n"
)


def _command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*P2PFL, "run", *arguments, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _reaches(process: subprocess.Popen[str], out: Path, round: int) -> None:
    """Every node has finished a round."""
    paths, limit = [out / "nodes" / str(node) / "metrics.jsonl" for node in range(4)], time.monotonic() + 300
    while not all(path.exists() and path.read_bytes().count(b"\n") >= round for path in paths):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)


@contextlib.contextmanager
def _under_way(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A live run of which every node has finished 60 rounds, and its directory."""
    (folder / "experiment.toml").write_text(LIVE)
    with _command(str(folder / "experiment.toml"), "--out", str(folder / "run")) as process:
        try:
            _reaches(process, folder / "run", 60)
            yield process, folder / "run"
        finally:
            process.kill()  # nothing, if it has ended


def _resumed(out: Path, *arguments: str) -> dict[str, Any]:
    with _command("--resume", str(out), *arguments) as process:
        said, err = process.communicate(timeout=300)
    assert process.returncode == Exit.DONE, err
    summary: dict[str, Any] = json.loads(said)
    return summary


def _whole(out: Path, rounds: int) -> None:
    """Every node has recorded no round twice, and the last one; every round was recorded."""
    for node in range(4):
        rows = [row["round"] for row in records.read(out / "nodes" / str(node) / "metrics.jsonl")]
        assert rows == sorted(set(rows)) and rows[-1] == rounds
    assert [row["round"] for row in records.read(out / "rounds.jsonl")] == list(range(1, rounds + 1))


@pytest.mark.live
@MORE
def test_a_live_run_of_which_every_process_is_killed_goes_on(tmp_path: Path) -> None:
    """Then it is given more rounds, with a torn checkpoint, and one node without any."""
    with _under_way(tmp_path) as (process, out):
        pids = json.loads((out / "pids.json").read_text())
        for pid in (process.pid, *itertools.chain.from_iterable(pids.values())):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
    _gone(out)
    summary = _resumed(out)
    (after,) = summary["resumed"]
    assert after >= 50 and after % 10 == 0
    assert summary["lost"] == summary["left"] == [] and summary["mean_residual"] < 1e-6
    _whole(out, 200)
    equal = subprocess.run([*P2PFL, "replay", str(out), "--json"], capture_output=True, text=True, check=True)
    assert all(verdict["equal"] for verdict in json.loads(equal.stdout))
    current = out / "nodes" / "1" / CURRENT
    current.write_bytes(current.read_bytes()[:-9])
    for name in (CURRENT, PREVIOUS):
        (out / "nodes" / "2" / name).unlink()
    summary = _resumed(out, "--set", "rounds=300")
    assert summary["resumed"] == [after, 190]
    assert "rounds 191 to 200 are trained again; node 2 has no checkpoint and comes in with" in summary["notes"][1]
    _whole(out, 300)
    joined = [row for row in records.read(out / "nodes" / "2" / "events.jsonl") if row["event"] == "joined"]
    assert len(joined) == 1 and joined[0]["detail"].startswith("with the model of node ")


def _gone(out: Path) -> None:
    """Until no process of the run is left: the nodes' own processes end with them."""
    limit = time.monotonic() + 60
    while True:
        try:
            resume.wanted(out)
        except ConfigError as error:
            assert "still" in str(error) and time.monotonic() < limit
            time.sleep(0.05)
        else:
            return


@pytest.mark.live
@MORE
def test_a_live_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    with _under_way(tmp_path) as (process, out):
        process.send_signal(signal.SIGINT)
        stopped, _ = process.communicate(timeout=60)
    assert process.returncode == Exit.INTERRUPTED and json.loads(stopped)["left"] == [0, 1, 2, 3]
    summary = _resumed(out)
    assert not summary["interrupted"] and summary["left"] == [] and summary["incomplete"] == []
    assert summary["mean_residual"] < 1e-6 and len(summary["resumed"]) == 1
    _whole(out, 200)
