"""The command line: what it prints, what it leaves behind, and what it says of mistakes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner, Result
from rich.console import Console
from small import LEAST

from p2pfl import tree
from p2pfl.cli import main
from p2pfl.config import experiment
from p2pfl.drivers.live import launcher, ports, sidecar
from p2pfl.errors import ConfigError, Exit, LocalError
from p2pfl.federation import federation as build
from p2pfl.node.result import NodeResult
from p2pfl.reporting import terminal
from p2pfl.reporting.run_data import Summary
from p2pfl.runs import node as one
from p2pfl.runs.run import run as run_experiment

TINY = LEAST.replace("[topology]", "local_steps = 2\n[topology]") + '[driver]\nkind = "simulate"\nloop = true\n'
"""It leaves all the records of a live run."""
METRICS = {  # a record per node and round: issue 2, item 7, and what the report needs beside it
    "node", "round", "train_loss", "accuracy_before_mixing", "accuracy_after_mixing", "arrived", "bytes_sent",
    "bytes_received", "seconds", "waited", "life", "accuracy_own", "age", "time",
}  # fmt: skip
SUMMARY = {
    "nodes", "rounds", "accuracy_mean", "accuracy_worst", "accuracy_local_only", "accuracy_pooled",
    "consensus_distance", "mean_residual", "seconds_per_round_median", "seconds_startup", "bytes_sent_per_node_round",
    "exchanges_booked", "exchanges_voided", "accuracy_own_mean", "accuracy_own_worst",
}  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory with one experiment file; the process is afterwards as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("DIR", "MIN_COMPILE_TIME_SECS", "MIN_ENTRY_SIZE_BYTES"):  # what the command sets is taken back
        name = f"JAX_{'PERSISTENT_CACHE' if name != 'DIR' else 'COMPILATION_CACHE'}_{name}"
        monkeypatch.setenv(name, str(tmp_path / "cache") if name.endswith("DIR") else "-1")
    (tmp_path / "exp.toml").write_text(TINY)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="p2pfl")


def run(*arguments: str, out: str = "out") -> Path:
    result = call("run", "exp.toml", "--out", out, *arguments)
    assert result.exit_code == 0, result.output
    return Path(out)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- help and mistakes


@pytest.mark.parametrize("command", [[], ["run"], ["node"], ["check"], ["chaos"], ["report"]])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(command: list[str], flag: str) -> None:
    result = call(*command, flag)
    assert result.exit_code == 0 and result.stdout.startswith(f"Usage: {' '.join(['p2pfl', *command])}")
    for name in main.commands if not command else [option.opts[0] for option in main.commands[command[0]].params[1:]]:
        assert name in result.stdout


def test_version() -> None:
    result = call("--version")
    assert result.exit_code == 0 and result.stdout.startswith("p2pfl, version ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ru"], "No such command 'ru'"),
        (["run"], "give FILE or --resume RUN"),
        (["run", "exp.toml", "--driver", "liv"], "'liv' is not one of 'live', 'virtual', 'simulate'"),
        (["run", "exp.toml", "--seed", "3"], "No such option"),
        (["run", "exp.toml", "--set"], "requires an argument"),
        (["node"], "Missing argument 'FILE'"),
        (["chaos", "exp.toml"], "Missing option '--every'"),
        (["chaos", "exp.toml", "--every", "0s"], "'0s' is no time greater than 0; write it as 10s"),
        (["chaos", "exp.toml", "--every=-1s"], "'-1s' is no time greater than 0"),
        (["chaos", "exp.toml", "--every", "soon"], "'soon' is no time"),
        (["chaos", "exp.toml", "--every", "1s", "--for", "0min"], "'0min' is no time"),
        (["report"], "Missing argument 'RUN'"),
        (["report", "nowhere"], "'nowhere' does not exist"),
    ],
)
def test_usage(place: Path, arguments: list[str], said: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2 and said in result.stderr and not result.stdout


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """No node and no training: reaching either is a failure of the test."""
    from p2pfl.drivers.simulate import loop

    monkeypatch.delattr(launcher.Launcher, "go")
    monkeypatch.delattr(loop, "run")


@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "no.toml"], "Error: no.toml: no such file"),
        (["run", "."], "Error: .: is a directory"),
        (["run", "exp.toml", "--set", "rounds"], "Error: --set 'rounds': must be written a.b=VALUE"),
        (["run", "exp.toml", "--set", "rounds=0"], "Error: exp.toml with --set: rounds=0: must be >= 1"),
        (["run", "exp.toml", "--set", "data.alpa=1"], "did you mean 'alpha'?"),
        (["run", "exp.toml", "--set", "algorithm.name=dsdg"], "Error: exp.toml: algorithm.name='dsdg': did you mean"),
        (["run", "exp.toml", "--set", "data.alpha=1"], "--set: data.alpha=1: partition='iid' does not use it"),
        (["run", "exp.toml", "--set", "topology.nodes=9999"], "Error: exp.toml: nodes=9999: more than the"),
        (["run", "exp.toml", "--set", "model.name=cnn"], "Error: exp.toml: model cnn: needs images"),
        (["run", "exp.toml", "--out", "exp.toml"], "Error: out='exp.toml': "),
        (["node", "no.toml"], "Error: no.toml: no such file"),
        (["node", "exp.toml"], "Error: exp.toml: experiment: missing; it must be given"),
        (["chaos", "no.toml", "--every", "1s"], "Error: no.toml: no such file"),
        (["chaos", ".", "--every", "1s"], "Error: .: is no live run that is under way: it has no pids.json"),
        (["chaos", ".", "--every", "1s", "--driver", "live"], "--driver and --out go with an experiment file"),
        (["chaos", "exp.toml", "--every", "9s", "--for", "9s"], "for=9: must be longer than every=9"),
        (["chaos", "exp.toml", "--every", "1h"], "every=3600: nobody would be killed: 3 rounds of"),
        (["chaos", "exp.toml", "--every", "1s", "--set", "topology.nodes=1"], "topology.nodes=1: "),
        (["report", "."], "Error: "),
    ],
)
def test_a_mistake_is_told_in_a_line_and_nothing_is_made(
    place: Path, nothing_starts: None, arguments: list[str], said: str, form: list[str]
) -> None:
    result = call(*arguments, *(form if arguments[0] == "run" else []))
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert said in result.stderr and "Traceback" not in result.output and not result.stdout
    assert [path.name for path in place.iterdir()] == ["exp.toml"]


def test_a_missing_data_file_is_told_with_both_places(place: Path, nothing_starts: None) -> None:
    folder = place / "inner"
    folder.mkdir()
    (folder / "e.toml").write_text(TINY.replace('"digits"', '"csv"\npath = "d.csv"\nlabel = "y"'))
    result = call("run", "inner/e.toml", "--out", "out")
    assert result.exit_code == 1 and not (place / "out").exists()
    text = result.stderr.replace("\n", " ")
    assert "inner/e.toml: data.path='d.csv': no such file; looked for it beside this file" in text
    assert str(folder / "d.csv") in text and str(place / "d.csv") in text


def test_a_run_directory_that_is_not_empty_is_left_alone(place: Path, nothing_starts: None) -> None:
    (place / "out").mkdir()
    (place / "out" / "thesis.txt").write_text("years of work")
    result = call("run", "exp.toml", "--out", "out")
    assert result.exit_code == 1 and "out='out': is not empty; choose another directory" in result.stderr
    assert [path.name for path in (place / "out").iterdir()] == ["thesis.txt"]
    assert (place / "out" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ConfigError, match="is not empty"):
        run_experiment(experiment.load(Path("exp.toml")), Path("out"), terminal.make(Console(), quiet=True))


@pytest.mark.parametrize("leaves", ["summary.json", "nothing"])
def test_chaos_refuses_a_run_that_is_over(place: Path, leaves: str) -> None:
    (place / "run" / "nodes" / "0").mkdir(parents=True)
    (place / "run" / "pids.json").write_text(json.dumps({"0": [os.getpid()]}))  # alive, and no node
    if leaves != "nothing":
        (place / "run" / leaves).write_text("{}")
    result = call("chaos", "run", "--every", "1s")
    assert result.exit_code == 1 and result.stderr.startswith("Error: run: is over; give a live run")


def test_a_place_that_cannot_be_written_is_no_traceback(place: Path) -> None:
    (place / "file").touch()
    result = call("run", "exp.toml", "--out", "file/out")
    assert result.exit_code == 1 and result.stderr.startswith("Error: file/out: ")


def test_mistakes_of_a_node_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoSidecar:
        """A test's process has jax at work, and must not fork."""

        def close(self) -> None:
            return

    monkeypatch.setattr(sidecar, "start", NoSidecar)
    monkeypatch.setattr(ports, "_RELEASE", 0.1)
    held = socket.create_server(("127.0.0.1", 0))  # the port of the membership: seen before anything is compiled
    taken = held.getsockname()[1]
    text = 'experiment = "exp.toml"\nnode = 1\nlisten = "tcp://127.0.0.1:5555"\npeers = ["tcp://127.0.0.1:5557"]\n'
    for changed, said in (
        (text.replace("exp.toml", "no.toml"), "node.toml: experiment='no.toml': no such file; looked for it beside"),
        (
            text.replace("127.0.0.1:5555", "0.0.0.0:5555"),
            "node.toml: listen='tcp://0.0.0.0:5555': stands for all addresses",
        ),
        (
            text.replace(":5555", ":65535"),
            "node.toml: listen='tcp://127.0.0.1:65535': the port must be from 1 to 65534",
        ),
        (
            text.replace("tcp://127.0.0.1:5555", "tcp://[::]:5555"),
            "node.toml: listen='tcp://[::]:5555': stands for all addresses",
        ),
        (
            text.replace("tcp://127.0.0.1:5557", "tcp://[::1.2]:5557"),
            "node.toml: peers='tcp://[::1.2]:5557': no IPv6 address stands in the brackets",
        ),
        (
            text.replace("127.0.0.1:5555", f"127.0.0.1:{taken - 1}"),
            f"listen='tcp://127.0.0.1:{taken}': can't listen there: Address already in use. Free the port",
        ),
        (text.replace("node = 1", "node = 3"), "node.toml: node=3: the topology has nodes 0 to 2"),
        (text + '[data]\nsource = "digit"\n', "data.source='digit': did you mean 'digits'?"),
        (
            text.replace("node = 1", "node = 3") + '[data]\nsource = "digits"\n',
            "node=3: the topology has nodes 0 to 2",
        ),
    ):
        (place / "node.toml").write_text(changed)
        result = call("node", "node.toml")
        assert result.exit_code == 1 and said in result.stderr and "Traceback" not in result.output
    held.close()
    assert {path.name for path in place.iterdir()} == {"exp.toml", "node.toml"}


# --- a run from end to end


def test_a_run_leaves_what_it_promises(place: Path) -> None:
    out = run()
    names = {path.name for path in out.iterdir()}
    assert {"experiment.toml", "metrics.jsonl", "events.jsonl", "summary.json", "report.html"} <= names
    assert experiment.load(out / "experiment.toml") == experiment.load(Path("exp.toml"))

    metrics = records(out / "metrics.jsonl")
    assert [(row["round"], row["node"]) for row in metrics] == [(r, n) for r in (1, 2, 3) for n in (0, 1, 2)]
    assert all(set(row) == METRICS for row in metrics)
    assert all(row["arrived"] == [n for n in range(3) if n != row["node"]] for row in metrics)
    size = 64 * 10 + 10
    assert all(row["bytes_sent"] == row["bytes_received"] == 2 * 4 * size for row in metrics)
    assert all(0 < row["accuracy_own"] <= 1 and row["train_loss"] > 0 for row in metrics)

    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) >= SUMMARY
    assert (summary["nodes"], summary["rounds"], summary["parameters"]) == (3, 3, size)
    assert (summary["exchanges_booked"], summary["exchanges_voided"], summary["lost"]) == (9, 0, [])
    last = [row for row in metrics if row["round"] == 3]
    assert summary["accuracy_mean"] == pytest.approx(np.mean([row["accuracy_after_mixing"] for row in last]))
    assert summary["accuracy_own_worst"] == min(row["accuracy_own"] for row in last)
    assert summary["mean_residual"] < 1e-6 and summary["bytes_sent_per_node_round"] == 2 * 4 * size
    assert summary["accuracy_local_only"] < summary["accuracy_pooled"]
    assert "<html" in (out / "report.html").read_text()

    federation = build.build(experiment.load(Path("exp.toml")))
    wanted = tree.named_leaves(build.model_shape(federation))
    for node in range(3):
        model = safetensors.numpy.load_file(out / "nodes" / str(node) / "model.safetensors")
        assert {name: leaf.shape for name, leaf in model.items()} == {k: v.shape for k, v in wanted.items()}
        assert all(np.isfinite(leaf).all() for leaf in model.values())


STREAMS = """
import os, socket, sys
from p2pfl.console import streams
streams()
print("Köln 中")
print("Köln 中", file=sys.stderr, flush=True)
sys.stdout.flush()
assert min(each.fileno() for each in socket.socketpair()) > 2, "what is started would write to it"
assert all(os.get_inheritable(number) for number in range(3))
"""


@pytest.mark.parametrize("console", ["<&- >&- 2>&-", ">&-", "2>&-", "<&-", ""])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_any_console_will_do(console: str, encoding: str) -> None:
    """One that is closed, and one that can't show what is said."""
    words = f'exec "{sys.executable}" -c "$0" {console}'
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    ended = subprocess.run(["sh", "-c", words, STREAMS], env=env, capture_output=True, timeout=60)
    shown = "Köln 中\n" if encoding == "utf-8" else "K\\xf6ln \\u4e2d\n"
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.decode(encoding) == ("" if ">&-" in console.replace("2>&-", "") else shown)
    assert ended.stderr.decode(encoding) == ("" if "2>&-" in console else shown)


@pytest.mark.parametrize(
    ("console", "code", "said"),
    [
        ("> /dev/full", Exit.FAILED, "standard output: can't be written: No space left on device\n"),
        ("2> /dev/full", 0, ""),
        ("| true", 0, ""),
    ],
)
def test_a_console_that_takes_nothing_ends_no_command_before_it_is_done(console: str, code: int, said: str) -> None:
    words = f'{{ "{sys.executable}" -c "$0"; echo $? >&3; }} {console}'
    script = "from p2pfl.cli import main; main(['topology', 'ring', '--nodes', '3'])"
    done = subprocess.run(["sh", "-c", f"exec 3>&1; {words}", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith(f"{int(code)}\n") and done.stderr == said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_with_the_code_for_it(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Whatever it is doing; what lies around it is tidied up. Afterwards the process is as it was."""
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    tidied: list[bool] = []

    def killed(*given: Any, **more: Any) -> None:
        try:
            os.kill(os.getpid(), number)
            signal.sigtimedwait([], 60.0)
        finally:
            tidied.append(True)

    monkeypatch.setattr("p2pfl.runs.run.run", killed)
    result = call("run", "exp.toml", "--out", "out")
    assert result.exit_code == 128 + number == Exit(128 + number) and tidied == [True]
    assert result.stderr == f"ended by {signal.Signals(number).name}\n"
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("rounds=0"), Exit.MISTAKE, "Error: exp.toml: rounds=0"),
        (LocalError("no luck", node=3, round=7, part="train"), Exit.FAILED, "Error: node 3, round 7, train: no luck"),
        (OSError(13, "Permission denied", "out/x"), Exit.MISTAKE, "Error: out/x: Permission denied"),
        (OSError(28, "Full", "out/x"), Exit.FAILED, "Error: out/x: can't be written: Full; make room there"),
        (OSError(28, "Full"), Exit.FAILED, "Error: out: can't be written: Full; make room there"),
    ],
)
def test_an_error_ends_a_command_with_the_code_for_it(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, said: str
) -> None:
    def fails(*given: Any, **more: Any) -> None:
        raise error

    monkeypatch.setattr("p2pfl.runs.run.run", fails)
    result = call("run", "exp.toml", "--out", "out")
    assert result.exit_code == code and result.stderr == f"{said}\n"


def test_a_run_that_is_not_whole_says_why_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Summary(nodes=3, lost=(1,), lost_unplanned={"1": "was killed (SIGKILL)"})
    monkeypatch.setattr("p2pfl.runs.run.run", lambda *given, **more: told)
    for arguments in ([], ["--json"]):
        result = call("run", "exp.toml", "--out", "out", *arguments)
        assert result.exit_code == Exit.NOT_WHOLE
        assert result.stderr == "not whole: node 1 was killed (SIGKILL)\n"


@pytest.mark.parametrize(
    ("changes", "link", "code", "said"),
    [
        ({}, "exchange", Exit.DONE, ""),
        ({"booked": 0}, "exchange", Exit.NOT_WHOLE, "trained 5 rounds alone: it has mixed with nobody"),
        (
            {"booked": 0, "unreached": ("tcp://a:1 (refused)",)}, "push", Exit.NOT_WHOLE,
            "trained 5 rounds alone: it has mixed with nobody; not reached: tcp://a:1 (refused)",
        ),
        ({"booked": 0}, "none", Exit.DONE, ""),  # an algorithm by which every node learns alone
        ({"booked": 0, "trained": 0}, "exchange", Exit.DONE, ""),  # it came back from after the last round
        (
            {"booked": 0, "trained": 0, "untrained": True, "stopped_by": "SIGTERM", "left": True}, "exchange",
            Exit.TERMINATED, "nothing was trained: the model is as it was drawn",
        ),
        ({"stopped_by": "SIGHUP", "left": True}, "exchange", Exit.HANGUP, ""),
        ({"stopped_by": "SIGHUP"}, "exchange", Exit.DONE, ""),  # after its last round
    ],
)  # fmt: skip
def test_a_node_that_was_alone_says_so_with_its_code(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], link: str, code: Exit, said: str
) -> None:
    """Whatever it has done is no result of the federation."""
    ended = NodeResult(0, 1, 5, 10, 0, {}, False, "", trained=5)._replace(**changes)
    task = types.SimpleNamespace(neighbors=(1,), link=link)
    monkeypatch.setattr("p2pfl.runs.node.run", lambda *given: one.NodeRun(ended, one.judged(ended, task)))
    result = call("node", "node.toml")
    assert result.exit_code == code and result.stderr == (f"not whole: {said}\n" if said else "")


def test_every_exit_code_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "commands.md").read_text("utf-8")
    codes = re.findall(r"^\| ([\d, ]+) \|", page, re.MULTILINE)
    assert [int(code) for row in codes for code in row.split(", ")] == sorted(Exit)


@pytest.mark.more
def test_report_writes_the_page_anew() -> None:
    out = run("--set", "baselines=false")
    page = (out / "report.html").read_text()
    (out / "report.html").unlink()
    result = call("report", str(out))
    assert result.exit_code == 0 and result.stdout == f"{out / 'report.html'}\n"
    assert len((out / "report.html").read_text()) == pytest.approx(len(page), rel=0.01)


def test_json_is_the_summary_alone() -> None:
    result = call("run", "exp.toml", "--json", "--out", "out", "--set", "baselines=false")
    assert result.exit_code == 0 and not result.stderr
    assert json.loads(result.stdout) == json.loads(Path("out/summary.json").read_text())


def test_without_a_terminal_the_output_is_plain_and_names_the_report() -> None:
    result = call("run", "exp.toml", "--set", "baselines=false")
    (out,) = Path("runs").iterdir()
    assert out.name.startswith("tiny-") and result.stdout.endswith(f"report: {out / 'report.html'}\n")
    assert "\x1b" not in result.stdout and "start: 3 nodes, 3 rounds" in result.stdout


@pytest.mark.more
def test_driver_is_short_for_set() -> None:
    Path("exp.toml").write_text(TINY.replace('"simulate"', '"live"'))
    out = run("--driver", "simulate", "--set", "baselines=false", "--set", "rounds=1")
    assert experiment.load(out / "experiment.toml").driver.kind == "simulate"


def digests(out: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((out / "summary.json").read_text())["digests"]
    return found


@pytest.mark.more
def test_the_seed_decides_everything() -> None:
    a, b = (run("--set", "baselines=false", out=name) for name in ("a", "b"))
    other = run("--set", "baselines=false", "--set", "seed=1", out="c")
    assert digests(a) == digests(b) and set(digests(a)) == {"0", "1", "2"}
    assert not set(digests(a).values()) & set(digests(other).values())
    drop = {"seconds", "waited", "time"}
    left, right = (
        [{k: v for k, v in row.items() if k not in drop} for row in records(p / "metrics.jsonl")] for p in (a, b)
    )
    assert left == right


@pytest.mark.more
def test_a_node_crashes_and_comes_back() -> None:
    churn = (
        'churn=[{event="crash", node=1, round=2}, {event="rejoin", node=1, round=4}, {event="leave", node=2, round=5}]'
    )
    out = run("--set", "rounds=5", "--set", churn)
    metrics = records(out / "metrics.jsonl")
    there = {number: [row["node"] for row in metrics if row["round"] == number] for number in range(1, 6)}
    assert there == {1: [0, 1, 2], 2: [0, 2], 3: [0, 2], 4: [0, 1, 2], 5: [0, 1]}
    assert [row["life"] for row in metrics if row["node"] == 1] == [1, 2, 2]
    assert [row["arrived"] for row in metrics if row["round"] == 3] == [[2], [0]]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["mean_residual"] < 1e-6 and summary["exchanges_booked"] == 3 + 1 + 1 + 3 + 1
    assert set(summary["digests"]) == {"0", "1"}  # node 2 has left
    assert summary["accuracy_local_only"] and summary["accuracy_pooled"]
    # the baselines know no churn
    assert len(records(out / "baselines" / "local" / "metrics.jsonl")) == 15


@pytest.mark.more
def test_accuracy_is_measured_every_so_often_and_at_the_end() -> None:
    out = run("--set", "baselines=false", "--set", "evaluation.every=2")
    rows = {row["round"]: row["accuracy_after_mixing"] for row in records(out / "metrics.jsonl")}
    assert rows[1] is None and rows[2] is not None and rows[3] is not None
