"""A sweep: its file, its runs in worker processes, and what it writes."""

from __future__ import annotations

import dataclasses
import importlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result

from p2pfl.cli import main
from p2pfl.config import experiment
from p2pfl.errors import ConfigError, Exit
from p2pfl.federation.federation import build
from p2pfl.sweeps import plan, process, table
from p2pfl.sweeps.results import ALONE, Row, SweepTable
from p2pfl.sweeps.workers import Workers

ROOT = Path(__file__).parents[1]
BASE = """
name = "tiny"
rounds = 6
data = { source = "quadratic", dim = 2 }
training = { optimizer = { name = "sgd", learning_rate = 0.1 }, local_steps = 1, dtype = "float64" }
topology = { graph = "ring", nodes = 4 }
algorithm = { name = "dsgd" }
"""
SWEEP = """
name = "tiny"
experiment = "experiment.toml"
metrics = ["distance_to_optimum", "consensus_distance < 1.0", "mean_residual"]
seeds = [0, 1]
[axes]
"network.loss" = [0.0, 0.25]
[axes.algorithm]
dsgd = []
tracking = ["algorithm.name=gradient_tracking"]
local = ["algorithm.name=local"]
[[skip]]
where = { algorithm = "local", "network.loss" = 0.25 }
why = "it sends nothing that could be lost"
[picture]
x = "network.loss"
y = "distance_to_optimum"
series = "algorithm"
log = ["y"]
"""
# algorithms whose runs do something when they begin: their programs are traced only then
ODD = """
import json, os, signal, time
from pathlib import Path
import jax, threadpoolctl
from p2pfl.algorithms import ALGORITHMS

def made(learner, optimizer, begin):
    inner = ALGORITHMS["dsgd"](learner, optimizer)
    def local(state, batches, key, steps):
        begin()
        return inner.local(state, batches, key, steps)
    return inner._replace(local=local)

def patient(learner, optimizer, folder):
    def begin():
        Path(folder, "begun").write_text(json.dumps({
            "devices": jax.local_device_count(), "flags": os.environ["XLA_FLAGS"],
            "threads": [library["num_threads"] for library in threadpoolctl.threadpool_info()],
        }))
        while not Path(folder, "go").exists():
            time.sleep(0.01)
    return made(learner, optimizer, begin)

def raises(learner, optimizer):
    def begin():
        raise RuntimeError("no luck")
    return made(learner, optimizer, begin)

def killed(learner, optimizer, folder):
    def begin():
        with open(Path(folder, "killed"), "a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return made(learner, optimizer, begin)
"""
# stands for what a worker does, where only who makes what is of interest
LIGHT = """
import os
from pathlib import Path

def start(log, paths):
    Path(log).write_text("the last line")

def make(text, out):
    if out is None:
        return "said at length\\nand no less" if 'name = "d2"' in text or '"exponential"' in text else None
    name = Path(out).name
    if "d" in name:  # dies: 1d once, 2d always
        tries = Path(out + ".tries")
        with tries.open("a") as file:
            file.write("x")
        if "2d" in name or len(tries.read_text()) == 1:
            os._exit(7)
    return "no luck" if "f" in name else None
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "experiment.toml").write_text(BASE)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    return tmp_path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["sweep", *map(str, arguments)])


def labels(runs: list[plan.SweepRun]) -> list[str]:
    return [run.name for run in runs]


# --- the file


def test_the_runs_are_the_product_without_what_is_skipped(folder: Path) -> None:
    runs = plan.runs(plan.read(folder / "sweep.toml"))
    assert labels(runs) == [
        f"{loss}-{name}-seed{seed}"
        for loss, names in (("0", ("dsgd", "tracking", "local")), ("0.25", ("dsgd", "tracking")))
        for name in names
        for seed in (0, 1)
    ]
    lossy = next(run for run in runs if run.name == "0.25-tracking-seed1").wanted
    assert (lossy.network.loss, lossy.algorithm.name, lossy.seed) == (0.25, "gradient_tracking", 1)
    assert (lossy.driver.kind, lossy.baselines) == ("simulate", False)


def test_only_and_set_choose_and_override(folder: Path) -> None:
    only = ["algorithm=dsgd", "algorithm=local", "network.loss=0", "seed=1"]
    runs = plan.runs(plan.read(folder / "sweep.toml"), ["rounds=3"], only)
    assert labels(runs) == ["0-dsgd-seed1", "0-local-seed1"]
    assert all(run.wanted.rounds == 3 for run in runs)


def test_baselines_are_made_once_for_each_label_of_their_axes(folder: Path) -> None:
    (folder / "sweep.toml").write_text(SWEEP.replace("seeds =", 'baselines = ["network.loss"]\nseeds ='))
    runs = [run for run in plan.runs(plan.read(folder / "sweep.toml")) if run.baseline]
    assert labels(runs) == [f"baseline-{loss}-seed{seed}" for loss in ("0", "0.25") for seed in (0, 1)]
    assert {(run.wanted.algorithm.name, run.wanted.network.loss, run.wanted.baselines) for run in runs} == {
        ("local", 0.0, True)
    }


FAULTS: list[tuple[str, str, tuple[str, ...]]] = [
    ("seeds = [0, 1]", "seeds = [0, 0]", ("seeds: 0 stands twice",)),
    ("seeds = [0, 1]", "sedes = [0, 1]", ("sedes=[0, 1]: no such field", "did you mean 'seeds'?")),
    ("seeds = [0, 1]", "seeds = []", ("seeds=[]",)),
    ('"mean_residual"]', '"mean_residue"]', ("metrics: 'mean_residue'", "did you mean 'mean_residual'?")),
    ("distance < 1.0", "distance < low", ("metrics: 'consensus_distance < low'", "must be a number")),
    ("consensus_distance < 1.0", "residue < 1.0", ("metrics: 'residue < 1.0'", "consensus_distance")),
    ("[0.0, 0.25]\n", "[0.0, 0]\n", ("axes.network.loss: 0 stands twice",)),
    ("[0.0, 0.25]\n", "0.25\n", ("axes.network.loss=0.25: must be a list",)),
    ('"network.loss" =', "network.loss =", ("axes.network.loss: must be a list of overrides", "quote a name")),
    ("dsgd = []", 'dsgd = "x"', ("axes.algorithm.dsgd: must be a list of overrides",)),
    ("dsgd = []", '"local!" = []\n"local?" = []', ("two combinations would have one directory",)),
    ("why =", "because =", ("skip[0]: because=", "no such field", "skip[0]: why: missing")),
    ('algorithm = "local", ', 'algorithm = "locl", ', ("skip[0].where.algorithm='locl'", "did you mean 'local'?")),
    ('algorithm = "local", ', 'algo = "local", ', ("skip[0].where.algo: no such axis; did you mean 'algorithm'?",)),
    ('x = "network.loss"', 'x = "loss"', ("picture: x='loss', y='distance_to_optimum'", "one must be an axis")),
    ('y = "distance_to_optimum"', 'y = "residue"', ("picture: x='network.loss', y='residue'",)),
    ('series = "algorithm"', "", ("picture: axis 'algorithm' is not shown",)),
    ('series = "algorithm"', 'series = "algoritm"', ("picture: 'algoritm': no such axis; did you mean 'algorithm'?",)),
    ('log = ["y"]', 'log = ["z"]', ("[picture]: log[0]='z'",)),
    ('x = "network.loss"', 'x = "round"', ("picture.y='distance_to_optimum': a curve shows",)),
    ("experiment.toml", "experimant.toml", ("experiment='experimant.toml': no such file",)),
    ("[axes.algorithm]", "[axes.seed]", ("axes.seed: can't be the name of an axis; use seeds",)),
]


@pytest.mark.parametrize(("old", "new", "said"), FAULTS)
def test_every_fault_of_the_file_is_told(folder: Path, old: str, new: str, said: tuple[str, ...]) -> None:
    assert old in SWEEP
    (folder / "sweep.toml").write_text(SWEEP.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        plan.read(folder / "sweep.toml")
    assert all(text in str(caught.value) for text in said), caught.value
    assert all(line.startswith(str(folder / "sweep.toml")) for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("overrides", "only", "said"),
    [
        ([], ["algorithm"], "must be written AXIS=LABEL"),
        ([], ["algorithm=dsg"], "did you mean 'dsgd'?"),
        ([], ["algorithm=local", "network.loss=0.25"], "no combination is left"),
        (["network.loss=0.5"], [], "is varied by the axis 'network.loss'"),
        (["seed=3"], [], "is the sweep's own"),
        (["rounds=0"], [], "rounds=0"),
    ],
)
def test_a_fault_of_the_command_is_told(folder: Path, overrides: list[str], only: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        plan.runs(plan.read(folder / "sweep.toml"), overrides, only)


def test_combinations_that_cannot_be_read_are_told_all_at_once(folder: Path) -> None:
    (folder / "sweep.toml").write_text(SWEEP.replace('["algorithm.name=local"]', '["algorithm.nam=1"]'))
    with pytest.raises(ConfigError) as caught:
        plan.runs(plan.read(folder / "sweep.toml"))
    assert "network.loss=0, algorithm=local" in str(caught.value) and "algorithm.nam" in str(caught.value)


# --- the runs


def odd(name: str, **arguments: object) -> str:
    inner = ", ".join(f'{key}=\\"{value}\\"' for key, value in arguments.items())
    return f'["algorithm.name=\\"odd_algorithms:{name}\\"", "algorithm.arguments={{{inner}}}"]'


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep whose last algorithm waits for a file; the others are not made with loss."""
    folder = tmp_path_factory.mktemp("story")
    text = SWEEP.replace("[[skip]]", f"patient = {odd('patient', folder=folder)}\n[[skip]]")
    text = text.replace('algorithm = "local", "n', 'algorithm = ["dsgd", "tracking", "local"], "n')
    (folder / "experiment.toml").write_text(BASE)
    (folder / "sweep.toml").write_text(text.replace("seeds = [0, 1]", "seeds = [1]"))
    (folder / "odd_algorithms.py").write_text(ODD)
    return folder


class Interrupted(NamedTuple):
    """What a sweep left that Ctrl-C ended while a run was being made."""

    status: int
    said: str
    children: list[int]  # its processes
    summaries: dict[str, int]  # name of a run -> when its summary was written, ns


@pytest.fixture(scope="module")
def interrupted(story: Path) -> Interrupted:
    command = [sys.executable, "-m", "p2pfl", "sweep", "sweep.toml", "--out", "out", "--workers", "1", "--lifeline"]
    process = subprocess.Popen(  # its lifeline: it waits for a file, and may wait for longer than these tests last
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=story,
        start_new_session=True, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: (story / "begun").exists() or process.poll() is not None)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        process.wait(60)  # before its lifeline is closed
        said, _ = process.communicate()
    finally:
        process.kill()
        process.wait()
    return Interrupted(process.returncode, said, [int(child) for child in children], summaries(story))


def summaries(story: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in story.glob("out/runs/*/summary.json")}


@pytest.mark.more
def test_ctrl_c_stops_cleanly(story: Path, interrupted: Interrupted) -> None:
    assert interrupted.status == 130
    assert interrupted.said.endswith("run the same command again to continue\n"), interrupted.said
    assert "Traceback" not in interrupted.said
    assert interrupted.children
    wait_for(lambda: not any(map(alive, interrupted.children)))
    assert set(interrupted.summaries) == {f"0-{name}-seed1" for name in ("dsgd", "tracking", "local")}
    assert "| 0 | patient | – | never | – |" in (story / "out" / "table.md").read_text()  # noqa: RUF001


@pytest.mark.more
def test_a_worker_computes_in_one_thread(story: Path, interrupted: Interrupted) -> None:
    begun = json.loads((story / "begun").read_text())
    assert begun["threads"]
    assert set(begun["threads"]) == {1}
    assert begun["devices"] == 1
    assert "multi_thread_eigen=false" in begun["flags"]


@pytest.mark.more
def test_a_sweep_goes_on_where_it_stopped(story: Path, interrupted: Interrupted) -> None:
    out = story / "out"
    assert (out / "runs/0-patient-seed1/experiment.toml").exists(), "begun, and not finished"
    (out / "runs/0-dsgd-seed1/summary.json").unlink()
    other = (out / "runs/0-tracking-seed1/experiment.toml").read_text().replace("rounds = 6", "rounds = 7")
    (out / "runs/0-tracking-seed1/experiment.toml").write_text(other)
    (story / "go").touch()
    result = call(story / "sweep.toml", "--out", out, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "1 of 5 runs are there already" in result.output
    again = summaries(story)
    assert len(again) == 5
    assert {name for name, written in interrupted.summaries.items() if again[name] == written} == {"0-local-seed1"}

    whole = json.loads((out / "table.json").read_text())
    algorithms = ["dsgd", "tracking", "local", "patient", "patient"]
    assert [row["labels"]["algorithm"] for row in whole["rows"]] == algorithms
    run = json.loads((out / "runs/0-local-seed1/summary.json").read_text())
    assert whole["rows"][2]["metrics"]["distance_to_optimum"]["by_seed"] == [run["distance_to_optimum"]]
    text = (out / "table.md").read_text()
    assert "| 0.25 | patient |" in text
    assert "- it sends nothing that could be lost: network.loss=0.25, algorithm=dsgd; network.loss=0.25" in text
    assert (out / "picture.png").read_bytes().startswith(b"\x89PNG")
    known = {key for key, value in run.items() if isinstance(value, float)}
    assert known <= {*plan.METRICS, "seconds_startup"}, "a new figure of a summary should be a metric, too"

    last = call(story / "sweep.toml", "--out", out, "--json")
    assert last.exit_code == 0, last.output
    assert json.loads(last.output)["rows"] == whole["rows"]
    assert summaries(story) == again


def test_what_is_no_sweep_is_not_touched(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("precious")
    result = call(folder / "sweep.toml", "--out", folder / "mine")
    assert result.exit_code == 1 and "holds something other than a sweep" in result.output
    in_the_way = folder / "out" / "runs" / "0-dsgd-seed0"
    in_the_way.mkdir(parents=True)
    (folder / "out" / "sweep.toml").write_text(SWEEP)
    (in_the_way / "thesis.txt").write_text("precious")
    result = call(folder / "sweep.toml", "--out", folder / "out", "--only", "algorithm=dsgd", "--only", "seed=0")
    assert result.exit_code == 1 and "is not a run" in result.output
    assert (in_the_way / "thesis.txt").read_text() == "precious"


@pytest.mark.more
def test_a_run_that_fails_is_named_and_the_others_are_made(folder: Path) -> None:
    (folder / "odd_algorithms.py").write_text(ODD)
    rows = f"raises = {odd('raises')}\ndsgd = []\nkilled = {odd('killed', folder=folder)}\n"
    text = re.sub(r"dsgd = \[\].*?\[\[skip\]\].*?(?=\[picture\])", lambda _: rows, SWEEP, flags=re.DOTALL)
    (folder / "sweep.toml").write_text(text)
    arguments = [folder / "sweep.toml", "--out", folder / "out", "--only", "network.loss=0", "--only", "seed=0"]
    result = call(*arguments, "--workers", 1)
    assert result.exit_code == Exit.NOT_WHOLE
    assert "failed: 0-raises-seed0, 0-killed-seed0; " in result.output
    assert (folder / "killed").read_text() == "xx", "it is tried once more, and no more"
    text = (folder / "out" / "table.md").read_text()
    for said in ("RuntimeError: no luck", "ended with signal 9: it said nothing", "| 0 | killed | failed |"):
        assert said in text
    assert {path.parent.name for path in folder.glob("out/runs/*/summary.json")} == {"0-dsgd-seed0"}


def test_a_worker_that_cannot_start_ends_the_sweep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "flax.py").write_text("raise ImportError('broken installation')")
    monkeypatch.chdir(folder)
    result = call(folder / "sweep.toml", "--out", folder / "out", "--workers", 1)
    assert result.exit_code == 1 and "a worker ended while it was starting (exit status 1)" in result.output
    assert "broken installation" in result.output


# --- who makes what


@pytest.fixture
def light(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (folder / "light_worker.py").write_text(LIGHT)
    monkeypatch.syspath_prepend(folder)
    module = importlib.import_module("light_worker")
    for name in ("start", "make"):
        monkeypatch.setattr(process, name, getattr(module, name))
    return module


def test_a_combination_that_cannot_be_built_is_told_before_anything_starts(folder: Path, light: ModuleType) -> None:
    text = SWEEP.replace('local = ["algorithm.name=local"]', 'local = ["algorithm.name=d2"]')
    text = text.replace("tracking = [", 'tracking = ["topology.graph=exponential", ')
    (folder / "sweep.toml").write_text(text)
    result = call(folder / "sweep.toml", "--out", folder / "out")
    assert result.exit_code == 1
    for said in (
        "network.loss=0, algorithm=tracking: ",
        "network.loss=0.25, algorithm=tracking: ",
        "network.loss=0, algorithm=local: said at length\nand no less",
    ):
        assert said in result.output
    assert not (folder / "out" / "runs").exists()


def test_a_worker_that_dies_is_replaced_and_its_run_is_tried_once_more(folder: Path, light: ModuleType) -> None:
    (run, *_) = plan.runs(plan.read(folder / "sweep.toml"))
    runs = [run._replace(name=name) for name in ("a", "1d", "2d", "bf", "2d again", "c", "e")]
    (folder / "runs").mkdir()
    started: list[str] = []
    with Workers(folder, 2, []) as workers:
        workers.check(runs)
        answers = list(workers.make(runs, lambda run: started.append(run.name)))
        assert [worker.pid for worker in multiprocessing.active_children()]
    assert not multiprocessing.active_children()
    died = "its process ended with exit status 7: the last line"
    assert {answer.run.name: answer.fault for answer in answers} == {
        "a": None, "1d": None, "2d": died, "bf": "no luck", "2d again": died, "c": None, "e": None,
    }  # fmt: skip
    assert len(answers) == len(runs)
    assert Counter(started) == {"a": 1, "1d": 2, "2d": 2, "bf": 1, "2d again": 2, "c": 1, "e": 1}


def test_a_worker_that_died_while_it_had_nothing_to_do_is_replaced(folder: Path, light: ModuleType) -> None:
    run = plan.runs(plan.read(folder / "sweep.toml"))[0]._replace(name="a")
    with Workers(folder, 1, []) as workers:
        workers.check([run])
        (worker,) = multiprocessing.active_children()
        worker.kill()
        worker.join()
        assert [answer.fault for answer in workers.make([run], lambda run: None)] == [None]


def test_what_cannot_be_built_is_told_whole(folder: Path) -> None:
    (run, *_) = plan.runs(plan.read(folder / "sweep.toml"), [], ["algorithm=dsgd"])
    assert process.make(experiment.dump(run.wanted), None) is None
    wrong = dataclasses.replace(run.wanted, algorithm=dataclasses.replace(run.wanted.algorithm, name="d2"))
    fault = process.make(experiment.dump(wrong), None)
    assert fault is not None
    assert "d2" in fault


def test_a_fault_that_no_run_may_have_ends_the_process_and_stands_in_its_log() -> None:
    code = (
        "class Unknown(Exception): pass\n"
        "from p2pfl.sweeps import process\n"
        "with process._or_end(): pass\n"
        "with process._or_end(): raise Unknown('no luck')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.endswith("Unknown: no luck\n")


OUTLIVES = """
import multiprocessing, os, signal, sys
from p2pfl.sweeps import process
def work(told):
    process._end_with_the_sweep()
    told.send(os.getpid())
    signal.raise_signal(signal.SIGSTOP)  # whatever it is doing, be it nothing
    signal.pause()
if __name__ == "__main__":
    mine, its = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=work, args=(its,))
    child.start()
    print(mine.recv(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_no_worker_outlives_a_sweep_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "sweep.py").write_text(OUTLIVES)
    sweep = subprocess.run([sys.executable, str(tmp_path / "sweep.py")], stdout=subprocess.PIPE, check=False)
    assert sweep.returncode == -signal.SIGKILL
    wait_for(lambda: not alive(int(sweep.stdout)))


@pytest.mark.more
@pytest.mark.parametrize("command", ["run", "sweep"])
def test_a_command_with_a_lifeline_ends_with_whoever_holds_it(folder: Path, command: str) -> None:
    (folder / "odd_algorithms.py").write_text(ODD)
    text = SWEEP.replace("dsgd = []", f"dsgd = {odd('patient', folder=folder)}")
    (folder / "sweep.toml").write_text(text)
    name = '--set=algorithm.name="odd_algorithms:patient"', f'--set=algorithm.arguments={{folder="{folder}"}}'
    words = (
        ["sweep.toml", "--workers", "1"] if command == "sweep" else ["experiment.toml", "--driver", "simulate", *name]
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "p2pfl", command, *words, "--out", "out", "--lifeline"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: (folder / "begun").exists() or process.poll() is not None)
        said, _ = process.communicate(timeout=60)  # which closes its standard input
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143, said


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


# --- what is written


def row(values: list[float | None], **more: Any) -> Row:
    given: dict[str, Any] = {"labels": {"a": "1"}, "what": "", "failed": {}, "directories": [], **more}
    return Row(seeds=tuple(range(len(values))), values={"accuracy_mean": values}, **given)


def test_figures_are_written_as_a_person_reads_them() -> None:
    nan = float("nan")
    assert table.cell("accuracy_mean", [0.9, 0.92]) == "91.0 ± 1.4"
    assert table.cell("accuracy_mean", [0.9, None, 0.92]) == "91.0 ± 1.4 (2 of 3)"
    assert table.cell("mean_residual", [1e-15]) == "1.00e-15"
    assert table.cell("bytes_sent_per_node_round", [1152.4]) == "1,152"
    assert table.cell("distance_to_optimum", [1.0, nan]) == "diverges"
    assert table.cell("accuracy_mean > 0.9", [None, None]) == "never"
    assert table.cell("accuracy_mean > 0.9", [7.0, 9.0]) == "8 ± 1.41"


def test_what_is_not_finite_is_text_in_the_json() -> None:
    made = SweepTable("t", ["a"], ["accuracy_mean"], [row([1.0, float("inf"), None])], [])
    figures = table.as_json(made, 1.0)["rows"][0]["metrics"]["accuracy_mean"]
    assert figures == {"mean": "nan", "sd": None, "by_seed": [1.0, "inf", None]}


def test_baselines_stand_below_the_combinations_they_belong_to() -> None:
    rows = [row([0.9], labels={"a": "1", "b": "x"}), row([0.5], what=ALONE, labels={"a": "1"})]
    made = SweepTable("t", ["a", "b"], ["accuracy_mean"], rows, [])
    assert table.markdown(made, "a").splitlines()[-2:] == ["| x | 90.0 |", "| every node alone | 50.0 |"]
    assert table.markdown(made, None).splitlines()[-1] == "| 1 | every node alone | 50.0 |"


def test_the_page_names_every_field_default_and_metric() -> None:
    page = (ROOT / "docs" / "sweep.md").read_text("utf-8")
    for kind, heading in (
        (plan.Sweep, "## The sweep file"),
        (plan.Skip, "### [[skip]]"),
        (plan.PictureTable, "### [picture]"),
    ):
        text = re.split(r"^###? ", page.split(f"{heading}\n")[1], flags=re.MULTILINE)[0]
        found = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", text, flags=re.MULTILINE))
        assert set(found) == {field.name for field in dataclasses.fields(kind)}
        for field in dataclasses.fields(kind):
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                assert found[field.name] == "required", field.name
                continue
            value = field.default_factory() if callable(field.default_factory) else field.default
            shown = "–" if value is None else f"`{json.dumps(value)}`"  # noqa: RUF001
            assert found[field.name] == shown, field.name
    assert all(f"`{metric}`" in page for metric in (*plan.METRICS, *plan.ROUNDS, *plan.ALONGSIDE))


def test_the_example_of_the_page_is_read(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "sweep.md").read_text("utf-8")
    (tmp_path / "sweep.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    digits = (ROOT / "experiments/heterogeneity/experiment.toml").read_text()
    (tmp_path / "experiment.toml").write_text(digits)
    assert len(plan.runs(plan.read(tmp_path / "sweep.toml"))) == 3 * (3 + 4)


def test_a_run_directory_is_judged_by_its_experiment(folder: Path) -> None:
    run = plan.runs(plan.read(folder / "sweep.toml"))[0]
    assert not plan.done(folder, run)
    assert plan.directory(folder, run) == folder / "runs" / "0-dsgd-seed0"


def test_a_run_whose_nodes_the_data_count_is_there(folder: Path) -> None:
    """It has written their number down, which the sweep leaves out."""
    rows = "\n".join(f"{'abc'[i % 3]},{i % 7},{i // 3 % 2}" for i in range(30))
    (folder / "rows.csv").write_text(f"site,age,ill\n{rows}\n")
    table = f'{{ source = "csv", path = "{folder}/rows.csv", site = "site", label = "ill", partition = "by_site" }}'
    text = BASE.replace('{ source = "quadratic", dim = 2 }', table).replace(", nodes = 4", "")
    (folder / "experiment.toml").write_text(text.replace("float64", "float32") + 'model = { name = "logistic" }\n')
    (folder / "sweep.toml").write_text(SWEEP.replace('"distance_to_optimum", ', "").split("[picture]")[0])
    run = plan.runs(plan.read(folder / "sweep.toml"))[0]
    out = plan.directory(folder, run)
    out.mkdir(parents=True)
    (out / "summary.json").write_text("{}")
    written = experiment.dump(build(run.wanted).experiment)
    assert run.wanted.topology.nodes is None and "nodes = 3\n" in written
    for text, there in ((written, True), (written.replace("rounds = 6", "rounds = 7"), False)):
        (out / "experiment.toml").write_text(text)
        assert plan.done(folder, run) == there
    (folder / "sweep.toml").write_text(SWEEP.replace("dsgd = []", 'dsgd = ["topology.nodes=4"]'))
    (out / "experiment.toml").write_text(written)  # of three
    assert not plan.done(folder, plan.runs(plan.read(folder / "sweep.toml"))[0])
