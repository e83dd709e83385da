"""The folders that `p2pfl init` writes are right as they are, and nothing is overwritten."""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from small import PATIENT
from test_live import P2PFL

from p2pfl import shipped
from p2pfl.cli import main
from p2pfl.config import experiment
from p2pfl.data import layout
from p2pfl.errors import ConfigError, Exit
from p2pfl.runs import init, keyed
from p2pfl.sweeps import plan

ROOT = Path(__file__).parents[1]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["init", *arguments])


@pytest.fixture(params=init.TEMPLATES)
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of each template."""
    monkeypatch.chdir(tmp_path)
    result = call("--template", request.param)
    assert result.exit_code == 0 and f"cd {request.param}" in result.output
    return tmp_path / str(request.param)


def node_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("*.toml")) if "listen" in tomllib.loads(path.read_text("utf-8")))


def test_all_files_of_a_template_can_be_read(folder: Path) -> None:
    wanted = experiment.load(folder / "experiment.toml", find=True)
    files = {path: experiment.load_node(path) for path in node_files(folder)}
    if files:
        assert [given.node for given in files.values()] == [*range(wanted.topology.nodes or 0)]
        listens = {keyed.completed(path, given)[0].address for path, given in files.items()}
        assert len(listens) == len(files) and all({*given.peers} < listens for given in files.values())
        assert all(Path(given.experiment) == folder / "experiment.toml" for given in files.values())
    if (folder / "sweep.toml").exists():
        assert len(plan.runs(plan.read(folder / "sweep.toml"))) == 24 + 2  # with the baselines of two seeds
    readme = (folder / "README.md").read_text("utf-8")
    named = set(re.findall(r"[\w/-]+\.toml", readme))
    made = {"card.toml", "two.toml", "ours.toml"}  # by the commands that stand there
    assert named - made == {path.name for path in folder.glob("*.toml")}


def test_what_stands_in_comments_can_be_read_too(folder: Path) -> None:
    """Lines as # NAME = ... of a node file, when somebody takes the # away."""
    (folder / "our-patients.csv").write_text("age,ill\n40,1\n")
    for path in node_files(folder):
        before = path.read_text("utf-8")
        path.write_text(re.sub(r"^# (?=\w+ = |\[\w+\])", "", before, flags=re.MULTILINE), "utf-8")
        assert path.read_text("utf-8") != before
        experiment.load_node(path)


def test_a_hospital_has_its_own_rows_and_the_rehearsal_all(tmp_path: Path) -> None:
    init.write(tmp_path, "hospital")
    together = rows(tmp_path / "data" / "rehearsal.csv")
    for name, hospital in init.HOSPITALS.items():
        own = rows(tmp_path / "data" / f"{name}.csv")
        assert own == [{k: v for k, v in row.items() if k != "hospital"} for row in together if row["hospital"] == name]
        assert len(own) == hospital.rows and {row["ill"] for row in own} == {"no", "yes"}
    again = tmp_path / "again"
    init.write(again, "hospital")
    assert rows(again / "data" / "rehearsal.csv") == together


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    assert call(str(there), "--template", "lan").exit_code == 0  # it is empty
    before = {path: path.read_bytes() for path in there.iterdir()}
    for at in (there, there / "first.toml"):
        result = call(str(at), "--template", "study")
        assert result.exit_code == Exit.MISTAKE
        assert re.search(r"is not empty, and nothing is overwritten|is a file; give a new or empty", result.output)
    assert {path: path.read_bytes() for path in there.iterdir()} == before
    result = call(str(there), "--template", "hospitl")
    assert result.exit_code == Exit.USAGE and "'hospital'" in result.output


def test_the_command_has_all_templates_and_the_package_their_files() -> None:
    (choice,) = (each.type for each in main.commands["init"].params if each.name == "template")
    assert isinstance(choice, click.Choice) and [*choice.choices] == [*init.TEMPLATES, *shipped.experiments()]
    assert {*shipped.experiments()} == {path.name for path in (ROOT / "experiments").iterdir() if path.is_dir()}
    folders = {path.name for path in (ROOT / "p2pfl" / "runs" / "templates").iterdir()}
    assert folders == {*init.TEMPLATES}
    assert "templates/*/*" in (ROOT / "setup.cfg").read_text("utf-8")
    with pytest.raises(ConfigError, match=r"--template brain: did you mean 'brain-3d'"):
        init.write(Path("new"), "brain")


NEEDED = {
    "churn": ["data/heart_disease_4sites.csv"], "exam": ["data/pneumoniamnist_rebuilt.npz"],
    "heart-disease": ["data/heart_disease_4sites.csv"],
    "imaging": ["data/heart_disease_4sites.csv", "data/mednist64_3300.npz", "data/pneumoniamnist_rebuilt.npz"],
    "mri-reconstruction": ["data/mednist64_3300.npz"], "pneumonia": ["data/pneumoniamnist_rebuilt.npz"],
    "private-hearts": ["data/heart_disease_4sites.csv"],
    "scanner-shift": ["data/pneumoniamnist_rebuilt.npz"], "secure": ["data/heart_disease_4sites.csv"],
    "tcga-brca": ["data/tcga_brca_6regions.csv"],
    "unequal-hospitals": ["data/pneumoniamnist_rebuilt.npz"],
}  # fmt: skip
"""What the experiments look for that is no part of p2pfl."""


@pytest.mark.parametrize("name", shipped.experiments())
def test_an_experiment_is_copied_with_all_that_it_needs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, its paths and commands those of the new folder; what is not ours is said, with its name."""
    monkeypatch.chdir(tmp_path)
    result = call("mine", "--template", name)
    assert result.exit_code == 0 and "cd mine" in result.output
    said = [line for line in result.output.splitlines() if "no part of p2pfl" in line]
    assert [line.split()[2].rstrip(",") for line in said] == [f"mine/{file}" for file in NEEDED.get(name, [])]
    copied = {path.name for path in (tmp_path / "mine").iterdir() if path.is_file()}
    assert copied == {path.name for path in (ROOT / "experiments" / name).iterdir() if path.is_file()}
    for path in (tmp_path / "mine").rglob("*.*"):
        if path.suffix not in (".toml", ".md", ".py"):
            continue
        text = path.read_text("utf-8")
        assert not re.search(rf"\.\./|experiments/{name}|shared/|checkout|parents\[", text), path.name
        table = tomllib.loads(text) if path.suffix == ".toml" else {}
        if "rounds" in table:
            experiment.load(path, find=name not in (*NEEDED, "brain-3d"))  # brain.py makes its brains
        if "axes" in table:
            plan.read(path)
        if "origin" in table:
            layout.read(path)


def test_experiments_of_other_folders_come_along_and_look_for_data_above(tmp_path: Path) -> None:
    init.write(tmp_path / "mine", "imaging")
    grounds = tomllib.loads((tmp_path / "mine/methods.toml").read_text("utf-8"))["grounds"].values()
    named = {ground["experiment"] for ground in grounds}
    assert "scanner-shift/experiment.toml" in named
    assert all((tmp_path / "mine" / name).is_file() for name in named)
    module = runpy.run_path(str(tmp_path / "mine/scanner-shift/scanners.py"))
    assert module["FILE"] == (tmp_path / "mine/data/pneumoniamnist_rebuilt.npz").resolve()


@pytest.mark.more
def test_a_wheel_has_the_experiments_and_needs_no_repository(tmp_path: Path) -> None:
    """What setup.py puts into it, used as it is installed: nothing of the checkout is on the path."""
    build = [sys.executable, "setup.py", "-q", "egg_info", "-e", str(tmp_path), "build", "-b", str(tmp_path / "build")]
    done = subprocess.run([*build, "build_py", "-d", str(tmp_path / "lib")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = subprocess.run(["git", "ls-files", *shipped.FOLDERS], cwd=ROOT, capture_output=True, text=True).stdout
    kept = {str(path.relative_to(tmp_path / "lib" / "p2pfl")) for folder in shipped.FOLDERS
            for path in (tmp_path / "lib" / "p2pfl" / folder).rglob("*") if path.is_file()}  # fmt: skip
    assert listed and {*listed.splitlines()} <= kept
    code = """
import sys
from pathlib import Path
from p2pfl import shipped
from p2pfl.cli import main
from p2pfl.data import layout
assert shipped.folder("experiments") == Path(sys.argv[1]) / "p2pfl" / "experiments"
assert layout.find("chexpert", Path()).is_relative_to(sys.argv[1])
main(["init", "brains", "--template", "brain-3d"], standalone_mode=False)
main(["init", "mesh", "--template", "mesh-digits"], standalone_mode=False)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "lib")], cwd=tmp_path, env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "brains" / "brain.py").is_file() and (
        tmp_path / "mesh/topologies/six-hospitals.graphml"
    ).is_file()


# --- they run


@pytest.mark.soak
@pytest.mark.live
def test_a_template_runs_as_it_is(folder: Path) -> None:
    done = command(folder, "run", "experiment.toml", "--json")
    summary = json.loads(done)
    assert summary["accuracy_mean"] > 0.75 and summary["accuracy_mean"] > summary["accuracy_local_only"]
    if (folder / "sweep.toml").exists():
        command(folder, "sweep", "sweep.toml", "--only", "graph=full mesh", "--only", "seed=0")
        assert (folder / "runs" / "sweep-study" / "table.md").exists()


@pytest.mark.parametrize(
    "folder",
    [pytest.param("hospital", marks=pytest.mark.more), pytest.param("lan", marks=pytest.mark.soak)],
    indirect=True,
)
def test_its_nodes_run_one_by_one(folder: Path) -> None:
    files = [path.name for path in node_files(folder)]
    text, timing = (folder / "experiment.toml").read_text("utf-8"), "".join(f"{k} = {v}\n" for k, v in PATIENT.items())
    (folder / "experiment.toml").write_text(f"{text}\n[network.timing]\n{timing}", "utf-8")
    started = [start(folder, "node", name) for name in files]
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * len(files), said
    assert all("exchanges booked, 0 voided" in out for out, _ in said)
    command(folder, "check", *(f"p2pfl-node-{number}" for number in range(len(files))))


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*P2PFL, *arguments], cwd=folder, **pipes)


def command(folder: Path, *arguments: str) -> str:
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out
