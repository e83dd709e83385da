"""`p2pfl topology`: the figures as JSON and as text, its refusals, the picture, the page that describes it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from matplotlib.image import imread

from p2pfl import topology
from p2pfl.cli import main
from p2pfl.reporting import topology_figure
from p2pfl.topology.files import READERS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "topology.md").read_text("utf-8")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
                 "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"):  # fmt: skip
        monkeypatch.setenv(name, "-1")  # what the command sets is taken back


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["topology", *arguments])


def test_json_is_the_figures_and_nothing_else() -> None:
    result = run("ring", "--nodes", "16", "--json")
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert list(found) == [
        "nodes", "edges", "degree_min", "degree_mean", "degree_max", "connected", "diameter", "symmetric",
        "doubly_stochastic", "rho", "lambda_min", "spectral_gap", "period", "exact_after_period",
        "sends_per_node_to_1e-10",
    ]  # fmt: skip
    assert found == topology.describe(topology.plan("ring", 16))


def test_text_has_every_figure_and_the_words() -> None:
    result = run("base", "--nodes", "25", "--set", "k=2")
    assert result.exit_code == 0
    for key in topology.describe(topology.plan("base", 25)):
        assert re.search(rf"^{re.escape(key)} +\S", result.output, re.MULTILINE), key
    assert re.search(r"^period +6$", result.output, re.MULTILINE)
    assert re.search(r"^lambda_min +-$", result.output, re.MULTILINE)
    assert re.search(r"^exact_after_period +true$", result.output, re.MULTILINE)
    assert "Finite time: after 6 rounds all nodes hold the exact mean." in result.output


def test_arguments_weights_and_seed_reach_the_graph() -> None:
    found = json.loads(run("random_regular", "--nodes", "25", "--set", "d=4", "--json").output)
    assert abs(found["rho"] - 0.810152) < 1e-6
    assert json.loads(run("random_regular", "--nodes", "26", "--seed", "3", "--json").output) == topology.describe(
        topology.plan("random_regular", 26, seed=3)
    )
    found = json.loads(run("ring", "--nodes", "8", "--weights", "best_constant", "--json").output)
    assert abs(found["rho"] - 0.74452) < 1e-5
    found = json.loads(run("equitopo", "--nodes", "16", "--set", "variant=d_dynamic", "--json").output)
    assert found["period"] is None and not found["symmetric"]


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text("a b\nb c\n")
    assert json.loads(run("g.txt", "--json").output)["edges"] == 2
    assert json.loads(run("g.txt", "--nodes", "3", "--json").output)["nodes"] == 3
    assert json.loads(run(str(ROOT / "topologies" / "petersen.toml"), "--json").output)["rho"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["rign", "--nodes", "8"], "topology.graph='rign': did you mean 'ring'?"),
        (["mesh"], "topology.graph='mesh': you mean one of these: a full mesh is 'complete'"),
        (["rign"], "topology.graph='rign': did you mean 'ring'?"),
        (["ring"], "--nodes: missing; it must be given with a graph by name, as in ring --nodes 16"),
        (["ring", "--nodes", "0"], "topology.nodes=0: must be >= 1"),
        (["ring", "--nodes", "8", "--set", "k=1"], "no argument 'k'; it takes none"),
        (["base", "--nodes", "8", "--set", "k"], "--set 'k': must be written NAME=VALUE, as in k=2"),
        (["base", "--nodes", "8", "--set", "k=two"], "k='two': must be a whole number"),
        (["ring", "--nodes", "8", "--weights", "x"], "topology.weights='x': "),
        (["no.toml"], "topology.file='no.toml': no such file"),
        (["./ring"], "topology.file='ring': no such file"),
        (["g.txt", "--nodes", "4"], "--nodes 4: the graph in g.txt has 3; leave --nodes out"),
        (["g.txt", "--set", "k=1"], "--set k=1: goes with a graph by name; g.txt is a file"),
        (["ring", "--nodes", "8", "--draw", "x.svg"], "--draw 'x.svg': must end in .png"),
        (["ring", "--nodes", "8", "--draw", "no/x.png"], "no/x.png: No such file or directory"),
    ],
)
def test_what_cannot_be(arguments: list[str], text: str, tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text("a b\nb c\n")
    result = run(*arguments)
    assert result.exit_code == 1 and text in result.output and "Traceback" not in result.output


@pytest.mark.parametrize("graph", topology.GRAPHS)
def test_a_picture_of_every_graph(graph: str, tmp_path: Path) -> None:
    plan = topology.plan(graph, 8, rounds=14)
    topology_figure.save(plan, graph, tmp_path / "x.png")
    panels = min(len(plan.neighbor), topology_figure.PANELS)
    height, width, _ = imread(tmp_path / "x.png").shape
    across = min(panels, 4)
    assert width / height == pytest.approx(across * (2.8 if panels > 1 else 5.2) / (
        -(-panels // across) * (3.15 if panels > 1 else 5.55)), rel=0.02)  # fmt: skip
    assert np.ptp(imread(tmp_path / "x.png")) > 0.5


def test_a_picture_by_the_command() -> None:
    result = run("one_peer_exponential", "--nodes", "1", "--draw", "x.png")
    assert result.exit_code == 0 and "picture: x.png" in result.output and Path("x.png").stat().st_size > 1000


def test_a_large_picture_says_what_it_leaves_out(tmp_path: Path) -> None:
    topology_figure.save(topology.plan("complete", 120), "complete", tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


# ------------------------------------------------------------------------------------------------------------ the page


def test_every_graph_weight_file_and_option_is_documented() -> None:
    for name, family in topology.GRAPHS.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
        for argument, of in family.arguments.items():
            assert f"`{argument}` = {of.default.strip(chr(34))}" in row, (name, argument)
        assert ("directed" in row.split("|")[3].replace("undirected", "")) == (family.directed or name == "equitopo"), (
            name
        )
    for name in topology.WEIGHTS:
        assert f"| `{name}` |" in PAGE
    for ending in READERS:
        assert f"`{ending}`" in PAGE
    for option in main.commands["topology"].params:
        assert option.name == "graph" or f"| `{option.opts[0]}" in PAGE, option.name
    for key in topology.describe(topology.plan("ring", 3)):
        assert f"| `{key}` |" in PAGE


def test_the_figures_of_the_page_are_those_of_the_command() -> None:
    for command, output in re.findall(
        r"^    \$ p2pfl topology (.*)\n((?:    (?!\$).*\n|\n(?=    (?!\$)))+)", PAGE, re.MULTILINE
    ):
        expected = [line.strip() for line in output.splitlines() if line.strip()]
        said = [line.strip() for line in run(*command.split()).output.splitlines() if line.strip()]
        assert said == expected, command
    rows = re.findall(r"^\| `p2pfl topology (\S+ --nodes \d+[^`]*)` \| (\S+) \| (\S+) \| (\S+) \|$", PAGE, re.MULTILINE)
    assert len(rows) >= 8
    for command, rho, period, sends in rows:
        found = json.loads(run(*command.split(), "--json").output)
        shown = "-" if found["period"] is None else str(found["period"])
        assert (rho, period) == (f"{found['rho']:.4f}", shown), command
        assert sends == f"{found['sends_per_node_to_1e-10']:,.0f}", command
