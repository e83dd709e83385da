"""A sweep: its file, its runs in worker processes, and what it writes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from p2pfl.cli import main
from p2pfl.errors import ConfigError
from p2pfl.sweeps import plan as sweep
from p2pfl.sweeps import table as sweep_view
from p2pfl.sweeps import workers

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
# dies at its first training step, every time or once: the programs are traced only when the run begins
FRAGILE = """
import os
from pathlib import Path
from p2pfl.algorithms import ALGORITHMS

def fragile(learner, optimizer, how, mark):
    made = ALGORITHMS["dsgd"](learner, optimizer)
    def local(state, batches, key, steps):
        seen = Path(mark)
        times = int(seen.read_text()) if seen.exists() else 0
        if how == "raises":
            raise RuntimeError("no luck")
        if how == "always" or (how == "once" and not times):
            seen.write_text(str(times + 1))
            os._exit(7)
        return made.local(state, batches, key, steps)
    return made._replace(local=local)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "experiment.toml").write_text(BASE)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    return tmp_path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["sweep", *map(str, arguments)])


def labels(runs: list[sweep.SweepRun]) -> list[str]:
    return [run.name for run in runs]


# --- the file


def test_the_runs_are_the_product_without_what_is_skipped(folder: Path) -> None:
    plan = sweep.read(folder / "sweep.toml")
    runs = sweep.runs(plan)
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
    plan = sweep.read(folder / "sweep.toml")
    only = ["algorithm=dsgd", "algorithm=local", "network.loss=0", "seed=1"]
    runs = sweep.runs(plan, ["rounds=3"], only)
    assert labels(runs) == ["0-dsgd-seed1", "0-local-seed1"]
    assert all(run.wanted.rounds == 3 for run in runs)


def test_baselines_are_made_once_for_each_label_of_their_axes(folder: Path) -> None:
    (folder / "sweep.toml").write_text(SWEEP.replace("seeds =", 'baselines = ["network.loss"]\nseeds ='))
    runs = [run for run in sweep.runs(sweep.read(folder / "sweep.toml")) if run.baseline]
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
        sweep.read(folder / "sweep.toml")
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
        sweep.runs(sweep.read(folder / "sweep.toml"), overrides, only)


def test_combinations_that_cannot_be_read_are_told_all_at_once(folder: Path) -> None:
    (folder / "sweep.toml").write_text(SWEEP.replace('["algorithm.name=local"]', '["algorithm.nam=1"]'))
    with pytest.raises(ConfigError) as caught:
        sweep.runs(sweep.read(folder / "sweep.toml"))
    assert "network.loss=0, algorithm=local" in str(caught.value) and "algorithm.nam" in str(caught.value)


# --- the runs


def test_a_combination_that_cannot_be_built_is_told_before_anything_starts(folder: Path) -> None:
    text = SWEEP.replace('local = ["algorithm.name=local"]', 'local = ["algorithm.name=d2"]')
    text = text.replace("tracking = [", 'tracking = ["topology.graph=exponential", ')
    (folder / "sweep.toml").write_text(text)
    result = call(folder / "sweep.toml", "--out", folder / "out")
    assert result.exit_code == 1
    for said in (
        "network.loss=0, algorithm=tracking: ",
        "network.loss=0.25, algorithm=tracking: ",
        "algorithm=local: ",
    ):
        assert said in result.output
    assert not (folder / "out" / "runs").exists()


def test_a_sweep_goes_on_where_it_stopped(folder: Path) -> None:
    out = folder / "out"
    first = call(folder / "sweep.toml", "--out", out)
    assert first.exit_code == 0, first.output
    made = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("runs/*/summary.json")}
    assert len(made) == 10

    table = json.loads((out / "table.json").read_text())
    assert [row["labels"] for row in table["rows"]][:2] == [
        {"network.loss": "0", "algorithm": "dsgd"},
        {"network.loss": "0", "algorithm": "tracking"},
    ]
    run = json.loads((out / "runs/0-tracking-seed1/summary.json").read_text())
    assert table["rows"][1]["metrics"]["distance_to_optimum"]["by_seed"][1] == run["distance_to_optimum"]
    text = (out / "table.md").read_text()
    assert "| 0.25 | tracking |" in text and "- it sends nothing that could be lost: network.loss=0.25" in text
    assert (out / "picture.png").read_bytes().startswith(b"\x89PNG")
    known = {key for key, value in run.items() if isinstance(value, float)}
    assert known <= {*sweep.METRICS, "seconds_startup"}, "a new figure of a summary should be a metric, too"

    (out / "runs/0-dsgd-seed0/summary.json").unlink()  # as if it had been interrupted
    half = (out / "runs/0-dsgd-seed1/experiment.toml").read_text()
    (out / "runs/0-dsgd-seed1/experiment.toml").write_text(half.replace("rounds = 6", "rounds = 7"))
    second = call(folder / "sweep.toml", "--out", out, "--json")
    assert second.exit_code == 0, second.output
    again = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("runs/*/summary.json")}
    assert {name for name in made if made[name] != again[name]} == {"0-dsgd-seed0", "0-dsgd-seed1"}
    assert json.loads(second.output)["rows"] == table["rows"]


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
    assert result.exit_code == 1 and "is no run" in result.output
    assert (in_the_way / "thesis.txt").read_text() == "precious"


def test_a_run_that_fails_is_named_and_the_others_are_made(folder: Path) -> None:
    (folder / "fragile_algorithm.py").write_text(FRAGILE)

    def fragile(how: str) -> str:
        given = {"how": how, "mark": str(folder / how)}
        inner = ", ".join(f'{key}=\\"{value}\\"' for key, value in given.items())
        return f'["algorithm.name=\\"fragile_algorithm:fragile\\"", "algorithm.arguments={{{inner}}}"]'

    text = re.sub(r"\[axes\.algorithm\].*?\[\[skip\]\].*?\[picture\]", "[axes.algorithm]\ndsgd = []\n"
                  + "".join(f"{how} = {fragile(how)}\n" for how in ("once", "always", "raises")) + "[picture]", SWEEP,
                  flags=re.DOTALL)  # fmt: skip
    (folder / "sweep.toml").write_text(text)
    arguments = [folder / "sweep.toml", "--out", folder / "out", "--only", "network.loss=0", "--only", "seed=0"]
    result = call(*arguments, "--workers", 1)
    assert result.exit_code == 1
    assert "failed: 0-always-seed0, 0-raises-seed0; " in result.output
    assert (folder / "always").read_text() == "2", "it is tried once more, and no more"
    text = (folder / "out" / "table.md").read_text()
    assert "exit status 7" in text and "RuntimeError: no luck" in text and "| 0 | always | failed |" in text
    assert {path.parent.name for path in folder.glob("out/runs/*/summary.json")} == {"0-dsgd-seed0", "0-once-seed0"}


def test_ctrl_c_stops_cleanly_and_a_later_call_goes_on(folder: Path) -> None:
    out, file = folder / "out", folder / "sweep.toml"
    # so many runs that the signal comes in time, however busy the machine is
    file.write_text(re.sub(r"^seeds = .*$", f"seeds = {list(range(60))}", file.read_text(), flags=re.MULTILINE))
    command = [sys.executable, "-m", "p2pfl", "sweep", str(file), "--out", str(out), "--workers", "1"]
    # its own session, so that the signal reaches it alone, and its workers are found
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_for(lambda: len(list(out.glob("runs/*/summary.json"))) >= 1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130 and b"run the same command again to continue" in said, said
    assert not any(alive(int(pid)) for pid in children)
    before = {path for path in out.glob("runs/*/summary.json")}
    assert 1 <= len(before) < 300
    assert (out / "table.md").exists()
    chosen = [path for path in before if path.parent.name.endswith(("-seed0", "-seed1"))]
    result = call(file, "--out", out, "--only", "seed=0", "--only", "seed=1")
    assert result.exit_code == 0 and f"{len(chosen)} of 10 runs are there already" in result.output


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_a_worker_that_cannot_start_ends_the_sweep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "flax.py").write_text("raise ImportError('broken installation')")
    monkeypatch.chdir(folder)
    result = call(folder / "sweep.toml", "--out", folder / "out")
    assert result.exit_code == 1 and "a worker ended while it was starting (exit status 1)" in result.output
    assert "broken installation" in result.output


# --- what is written


def row(values: list[float | None], **more: Any) -> sweep_view.Row:
    given: dict[str, Any] = {"labels": {"a": "1"}, "what": "", "failed": {}, "directories": [], **more}
    return sweep_view.Row(seeds=tuple(range(len(values))), values={"accuracy_mean": values}, **given)


def test_figures_are_written_as_a_person_reads_them() -> None:
    nan = float("nan")
    assert sweep_view.cell("accuracy_mean", [0.9, 0.92]) == "91.0 ± 1.4"
    assert sweep_view.cell("accuracy_mean", [0.9, None, 0.92]) == "91.0 ± 1.4 (2 of 3)"
    assert sweep_view.cell("mean_residual", [1e-15]) == "1.00e-15"
    assert sweep_view.cell("bytes_sent_per_node_round", [1152.4]) == "1,152"
    assert sweep_view.cell("distance_to_optimum", [1.0, nan]) == "diverges"
    assert sweep_view.cell("accuracy_mean > 0.9", [None, None]) == "never"
    assert sweep_view.cell("accuracy_mean > 0.9", [7.0, 9.0]) == "8 ± 1.41"


def test_what_is_not_finite_is_text_in_the_json() -> None:
    table = sweep_view.Table("t", ["a"], ["accuracy_mean"], [row([1.0, float("inf"), None])], [])
    figures = sweep_view.as_json(table, 1.0)["rows"][0]["metrics"]["accuracy_mean"]
    assert figures == {"mean": "nan", "sd": None, "by_seed": [1.0, "inf", None]}


def test_baselines_stand_below_the_combinations_they_belong_to() -> None:
    rows = [row([0.9], labels={"a": "1", "b": "x"}), row([0.5], what=sweep_view.ALONE, labels={"a": "1"})]
    table = sweep_view.Table("t", ["a", "b"], ["accuracy_mean"], rows, [])
    assert sweep_view.markdown(table, "a").splitlines()[-2:] == ["| x | 90.0 |", "| every node alone | 50.0 |"]
    assert sweep_view.markdown(table, None).splitlines()[-1] == "| 1 | every node alone | 50.0 |"


def test_the_page_names_every_field_default_and_metric() -> None:
    page = (ROOT / "docs" / "sweep.md").read_text("utf-8")
    for kind, heading in (
        (sweep.Sweep, "## The sweep file"),
        (sweep.Skip, "### [[skip]]"),
        (sweep.PictureTable, "### [picture]"),
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
    assert all(f"`{metric}`" in page for metric in (*sweep.METRICS, *sweep.ROUNDS, *sweep.ALONGSIDE))


def test_the_example_of_the_page_is_read(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "sweep.md").read_text("utf-8")
    (tmp_path / "sweep.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    digits = (ROOT / "experiments/heterogeneity/experiment.toml").read_text()
    (tmp_path / "experiment.toml").write_text(digits)
    assert len(sweep.runs(sweep.read(tmp_path / "sweep.toml"))) == 3 * (3 + 4)


def test_a_run_directory_is_judged_by_its_experiment(folder: Path) -> None:
    run = sweep.runs(sweep.read(folder / "sweep.toml"))[0]
    assert not workers.done(folder, run)
    assert workers.directory(folder, run) == folder / "runs" / "0-dsgd-seed0"
