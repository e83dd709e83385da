"""Federations in virtual time with their real computations: parity, determinism, rough networks, churn, the table."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import pytest
from click.testing import CliRunner
from federations import spoilt
from small import CASES, GATHERED, LIARS, MORE, SCHEDULED, Case, write

from p2pfl import tree
from p2pfl.cli import main
from p2pfl.config import experiment
from p2pfl.config.virtual import Virtual
from p2pfl.drivers.simulate import loop
from p2pfl.drivers.virtual.network import Link
from p2pfl.drivers.virtual.run import VirtualResult
from p2pfl.errors import ConfigError
from p2pfl.federation import federation as build
from p2pfl.federation.federation import Federation
from p2pfl.federation.tasks import tasks
from p2pfl.node import records
from p2pfl.runs import virtual
from p2pfl.runs.replay import replay
from p2pfl.runs.simulated import deliveries

QUICK = Case("gradient_tracking", "ring", 5)
ROUGH = """
[virtual]
latency = 0.005
jitter = 0.01
loss = 0.03
reorder = 0.2
duplicate = 0.1
"""


def federation(folder: Path, case: Case, more: str = "", *given: str, rounds: int = 8) -> Federation:
    """`given`: as --set."""
    file = write(folder, case, more=more, rounds=rounds, timing={})
    return build.build(experiment.load(file, ['driver.kind="virtual"', *given]))


def run(folder: Path, case: Case, more: str = "", *given: str, rounds: int = 8) -> tuple[VirtualResult, dict[str, Any]]:
    """Run a case in `folder`; how it ended, and its figures."""
    made = federation(folder, case, more, *given, rounds=rounds)
    ended = virtual.into(made, folder)
    (folder / "experiment.toml").write_text(experiment.dump(made.experiment))
    return ended, virtual.collected(made, folder, ended).summary.as_dict()


def lines(folder: Path, node: int, name: str = "metrics") -> list[dict[str, Any]]:
    return records.read(folder / "nodes" / str(node) / f"{name}.jsonl")


def everything(folder: Path) -> dict[str, bytes]:
    """All records of a run."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- parity


def plain(made: Federation) -> dict[str, str]:
    """Digests of the plain loop's models."""
    models = loop.run(tasks(made), deliveries(made), lambda node, measured, traced: None, lambda: 0.0)
    return {str(node): tree.digest(model) for node, model in enumerate(models)}


def same_as_the_loop(folder: Path, case: Case, more: str = "") -> None:
    _, figures = run(folder, case, more)
    assert figures["digests"] == plain(federation(folder, case, more))
    assert len(set(figures["digests"].values())) > 1 or case.algorithm == "fedavg"
    assert (figures["lost"], figures["left"], figures["residue"], figures["messages_dropped"]) == ([], [], 0, {})
    assert not figures["mean_residual"]
    assert all(verdict.equal for verdict in replay(folder))


@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=str)
def test_virtual_equals_the_plain_loop_to_the_bit(tmp_path: Path, case: Case) -> None:
    same_as_the_loop(tmp_path, case)


@pytest.mark.more
def test_a_lie_for_each_neighbor_is_the_same_in_virtual_time(tmp_path: Path) -> None:
    same_as_the_loop(tmp_path, Case("dsgd", "complete", 6, loss=0.1), LIARS)


@pytest.mark.more
@pytest.mark.parametrize("optimizer", [SCHEDULED, GATHERED], ids=["scheduled", "gathered"])
def test_what_an_optimizer_keeps_is_the_same_in_virtual_time(
    tmp_path: Path, optimizer: str, optax_promotes: None
) -> None:
    same_as_the_loop(tmp_path, Case("exact_diffusion", loss=0.2, optimizer=optimizer))


@pytest.mark.parametrize("case", [CASES[1], pytest.param(CASES[3], marks=pytest.mark.more)], ids=str)
def test_who_is_not_finite_is_refused_as_in_the_plain_loop(tmp_path: Path, case: Case) -> None:
    case = dataclasses.replace(case, dtype="float64")
    with jax.enable_x64(True):
        made = spoilt(federation(tmp_path, case))
        figures = virtual.collected(made, tmp_path, virtual.into(made, tmp_path)).summary.as_dict()
        assert figures["digests"] == plain(made)
    assert figures["messages_dropped"].keys() == {"nonfinite"} and figures["diverged"] == {"1": 1}
    assert not figures["mean_residual"] and figures["residue"] == 0
    measured = [row for node in range(case.nodes) for row in lines(tmp_path, node)]
    assert not any(1 in row["arrived"] for row in measured)


@pytest.mark.soak
@pytest.mark.parametrize("case", [CASES[1], *CASES[3:], *MORE], ids=str)
def test_every_algorithm_is_the_same_in_virtual_time(tmp_path: Path, case: Case) -> None:
    same_as_the_loop(tmp_path, case)


def test_the_comparison_can_fail_and_the_results_are_like_those_of_live_nodes(tmp_path: Path) -> None:
    _, figures = run(tmp_path, QUICK)
    assert figures["digests"] != plain(federation(tmp_path / "other", QUICK, "", "seed=1"))
    result = json.loads((tmp_path / "nodes" / "0" / "result.json").read_text())
    assert (result["round"], result["left"], result["error"]) == (8, False, None)
    assert (tmp_path / "nodes" / "0" / "model.safetensors").exists()


# --- rough networks


CHURN = """
[[churn]]
event = "crash"
node = 1
round = 5
[[churn]]
event = "rejoin"
node = 1
round = 20
state = "kept"
[[churn]]
event = "leave"
node = 3
round = 10
[[churn]]
event = "rejoin"
node = 3
round = 25
"""


def test_the_same_seed_leaves_the_same_records_and_a_rough_network_moves_no_mean(tmp_path: Path) -> None:
    found = []
    for name in ("one", "same"):
        ended, figures = run(tmp_path / name, QUICK, ROUGH + CHURN, rounds=60)
        found.append((ended, figures, everything(tmp_path / name)))
    assert found[0] == found[1]
    assert figures["mean_residual"] < 1e-6 or figures["residue"] > 0
    assert figures["digests"].keys() == {"0", "1", "2", "3", "4"}
    assert all(verdict.equal for verdict in replay(tmp_path / "one"))
    measured = {(row["node"], row["life"], row["round"]) for row in records.read(tmp_path / "one" / "metrics.jsonl")}
    traced = {
        (node, row["life"], row["round"])
        for node in range(QUICK.nodes)
        for row in lines(tmp_path / "one", node, "trace")
        if "booked" in row
    }
    assert measured == traced  # life means the same in both
    assert [len({life for who, life, _ in measured if who == node}) for node in range(5)] == [1, 2, 1, 2, 1]
    kept = [row for row in lines(tmp_path / "one", 1, "trace") if "kept" in row]
    assert kept[0]["kept"][1] == 4


@pytest.mark.parametrize("name", ["push_sum", pytest.param("gossip_learning", marks=pytest.mark.soak)])
def test_pushes_on_a_rough_network_end_and_replay(tmp_path: Path, name: str) -> None:
    _, figures = run(tmp_path, Case(name, "complete", 4), ROUGH, rounds=30)
    assert len(figures["digests"]) == 4
    assert all(verdict.equal for verdict in replay(tmp_path))


@pytest.mark.more
def test_a_partition_and_what_else_may_happen_replays(tmp_path: Path) -> None:
    events = """
[[churn]]
event = "partition"
groups = [[0, 1]]
round = 5
[[churn]]
event = "heal"
round = 60
[[churn]]
event = "freeze"
node = 2
round = 90
rounds = 5
[[churn]]
event = "lag"
node = 3
round = 95
rounds = 5
seconds = 0.1
"""
    pace = "[virtual]\nstep_seconds = 0.1\n"
    _, figures = run(tmp_path, Case("dsgd", "ring", 6), pace + events, 'network.alone="train"', rounds=110)
    assert len(figures["digests"]) == 6
    assert all(verdict.equal for verdict in replay(tmp_path))
    entered = [row["members"] for row in lines(tmp_path, 0, "trace") if "members" in row]
    assert [0, 1] in entered
    assert entered[-1] == [0, 1, 2, 3, 4, 5]
    assert figures["mean_residual"] < 1e-6 or figures["residue"] > 0


# --- time


def test_times_are_those_of_the_table(tmp_path: Path) -> None:
    slow = "[virtual]\nlatency = 0.3\nnode_step_seconds = [0.1, 0.1, 0.1, 2.0]\n"
    _, figures = run(tmp_path, Case("dsgd", "complete", 4), slow, 'network.preset="wan"', rounds=6)
    span = 2 * 2.0 + 0.3 + 0.3  # the slowest node's steps; then its payload, and a receipt back
    assert figures["seconds_per_round_median"] == pytest.approx(span, rel=1e-3)
    assert figures["seconds_virtual"] == pytest.approx(6 * span, abs=2.0)
    assert [len(lines(tmp_path, node)) for node in range(4)] == [6] * 4
    rounds = records.read(tmp_path / "rounds.jsonl")
    assert [row["seconds"] for row in rounds] == sorted(row["seconds"] for row in rounds)
    assert rounds[-1]["seconds"] == pytest.approx(figures["seconds_virtual"], rel=0.2)


def test_a_network_too_slow_for_the_preset_is_said(tmp_path: Path) -> None:
    far = "[[virtual.links]]\nnodes = [0, 1]\nlatency = 0.4\n"
    (text,) = virtual.notes(federation(tmp_path, QUICK, far))
    assert text.startswith("an answer takes up to 0.8 s on this network, and with network.preset='local'")
    assert virtual.notes(federation(tmp_path, QUICK, far, 'network.preset="wan"')) == []


# --- the table


def test_what_the_table_means() -> None:
    given = {
        "latency": 0.01, "bandwidth": 1e6, "loss": 0.1,
        "links": [{"nodes": [3, 1], "latency": 0.2}, {"nodes": [0, 1], "bandwidth": 5.0}],
    }  # fmt: skip
    read = experiment.parse(given, "test", Virtual)
    link = virtual.links(read)
    assert link(0, 2) == Link(0.01, 0.0, 1e6, 0.1)
    assert link(1, 3) == link(3, 1) == Link(0.2, 0.0, 1e6, 0.1)
    assert link(1, 0) == Link(0.01, 0.0, 5.0, 0.1)
    assert virtual.links(Virtual())(0, 1) == Link(latency=0.001)
    assert virtual.seconds(read, 3) == (0.001,) * 3
    assert virtual.seconds(dataclasses.replace(read, node_step_seconds=(1.0, 2.0)), 2) == (1.0, 2.0)


@pytest.mark.parametrize(
    "more, text",
    [
        (
            "node_step_seconds = [1.0]",
            r"virtual.node_step_seconds: 1 numbers for 5 nodes; give one for each, or step_seconds",
        ),
        ("links = [{ nodes = [0, 9] }]", r"virtual.links\[0\].nodes=\[0, 9\]: there are nodes 0 to 4"),
        ("links = [{ nodes = [0, 0] }]", r"nodes=\[0, 0\]: a link joins two nodes"),
        ("links = [{ nodes = [0] }]", r"nodes=\[0\]: a link joins two nodes"),
        (
            "links = [{ nodes = [0, 1] }, { nodes = [1, 0] }]",
            r"links\[1\].nodes=\[1, 0\]: is in links\[0\] already",
        ),
        ("latency = -1.0", r"virtual.latency=-1.0: "),
        ("speed = 1", r"virtual.speed=1: "),
    ],
)
def test_what_can_not_be_is_refused(tmp_path: Path, more: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        virtual.setting(federation(tmp_path, QUICK, f"[virtual]\n{more}\n"))


def test_time_and_network_are_no_part_of_what_nodes_have_in_common(tmp_path: Path) -> None:
    digests = {build.digest(federation(tmp_path / str(i), QUICK, more)) for i, more in enumerate(("", ROUGH))}
    assert len(digests) == 1


PAGE = (Path(__file__).parents[1] / "docs" / "virtual.md").read_text("utf-8")


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL), ids=["experiment", "world"])
def test_the_examples_of_the_page_run(block: str) -> None:
    exec(compile(block, "docs/virtual.md", "exec"), {})


def test_a_mistake_is_found_before_anything_runs(tmp_path: Path) -> None:
    file = write(tmp_path, QUICK, more="[virtual]\nnode_step_seconds = [1.0]\n", timing={})
    found = CliRunner().invoke(main, ["run", str(file), "--driver", "virtual", "--out", str(tmp_path / "run")])
    assert found.exit_code == 1
    assert f"{file}: virtual.node_step_seconds: 1 numbers for 5 nodes" in found.output
    assert not (tmp_path / "run").exists()
