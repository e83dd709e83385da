"""A federation grows: nodes join beyond those of the graph, as the experiment plans it, in every driver."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import networkx as nx
import numpy as np
import pytest
from federations import TABLE, at_once, federation_of, looped
from small import Case, write
from test_simulate_epochs import STEP, off

from p2pfl import topology
from p2pfl.config import experiment
from p2pfl.drivers.simulate import loop
from p2pfl.errors import ConfigError, TopologyError
from p2pfl.federation import federation as build
from p2pfl.federation.epochs import planner
from p2pfl.federation.events import undisturbed
from p2pfl.federation.federation import Federation
from p2pfl.federation.tasks import tasks
from p2pfl.node import records
from p2pfl.runs import baselines, simulated, splits, virtual
from p2pfl.runs.replay import replay

JOINS = {"event": "join", "node": 8, "round": 4}


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def grown(**tables: Any) -> Federation:
    """Eight nodes, and node 8 from round 4 on."""
    given = {"topology": {"graph": "ring", "nodes": 8}, "churn": [JOINS], **tables}
    return federation_of({**TABLE, **given})


# --- the graph


def test_newcomers_get_the_two_neighbours_that_have_the_fewest() -> None:
    ring = topology.attached(nx.cycle_graph(4), [4, 5])
    assert set(ring.edges) - set(nx.cycle_graph(4).edges) == {(0, 4), (1, 4), (2, 5), (3, 5)}  # nobody becomes a hub
    star = topology.attached(nx.star_graph(3), [4])
    assert sorted(star[4]) == [1, 2]
    directed = topology.attached(nx.DiGraph([(0, 1), (1, 2), (2, 0)]), [3])
    assert sorted(directed.successors(3)) == sorted(directed.predecessors(3)) == [0, 1]
    assert sorted(topology.attached(nx.empty_graph(1), [7, 9]).edges) == [(0, 7), (0, 9), (7, 9)]
    whole = nx.cycle_graph(4)
    topology.attached(whole, [4])
    assert 4 not in whole


def test_a_graph_by_name_is_made_for_the_new_number(tmp_path: Path) -> None:
    plan = grown().planner()
    assert sorted(topology.union(plan(range(9)).schedule)[8]) == [0, 7]
    assert sorted(topology.union(plan((0, 1, 2, 8)).schedule)[8]) == [0, 2]
    cube = grown(topology={"graph": "hypercube", "nodes": 8})
    epoch = cube.planner()((0, 1, 2, 3, 4, 5, 8))
    assert "attached" in epoch.note and sorted(topology.union(epoch.schedule)[8]) == [2, 3]  # who have two left


def test_a_graph_of_a_file_keeps_its_edges(tmp_path: Path) -> None:
    (tmp_path / "line.toml").write_text("edges = [[0, 1, 0.3], [1, 2, 0.3], [2, 3, 0.3]]")
    made = grown(topology={"file": str(tmp_path / "line.toml")}, churn=[{"event": "join", "node": 4, "round": 4}])
    graph = topology.union(made.schedule)
    assert set(graph.edges) == {(0, 1), (1, 2), (2, 3), (0, 4), (3, 4)}
    np.testing.assert_allclose(
        topology.matrix(made.schedule).sum(axis=0), 1
    )  # the new edges have no weight of the file
    before = made.planner()((0, 1, 2, 3)).schedule
    assert topology.matrix(before)[0, 1] == 0.3
    weighted = dataclasses.replace(made.experiment.topology, weights="file")
    few = planner(dataclasses.replace(made.experiment, topology=weighted), made.algorithm, made.schedule, made.samples)
    assert topology.matrix(few((1, 4)).schedule)[1, 4] == 0.5  # no edge is left that has a weight


# --- planned


@pytest.mark.more
@pytest.mark.parametrize(
    "algorithm",
    [
        "gradient_tracking",
        *(
            pytest.param(name, marks=pytest.mark.more)
            for name in ("dsgd", "exact_diffusion", "push_sum", "gossip_learning")
        ),
    ],
)
def test_eight_that_grow_are_nine_of_whom_one_comes_later(algorithm: str) -> None:
    """To the bit: but for the number in the file they are one and the same run."""
    graph = "exponential" if algorithm == "push_sum" else "ring"
    parts = {"algorithm": {"name": algorithm}, "topology": {"graph": graph, "nodes": 8}}
    made = grown(**parts)
    later = grown(**{**parts, "topology": {"graph": graph, "nodes": 9}})
    assert len(made.graph) == 9 and build.terms(made).expected == tuple(range(8))
    np.testing.assert_array_equal(looped(made), looped(later))
    np.testing.assert_array_equal(at_once(made, devices=1, chunk=9), at_once(later, devices=1, chunk=9))
    never = federation_of({**TABLE, "topology": {"graph": graph, "nodes": 8}, "algorithm": {"name": algorithm}})
    assert not np.array_equal(looped(made)[:8], looped(never))


@pytest.mark.more
@pytest.mark.parametrize("algorithm", ["gradient_tracking", "exact_diffusion"])
def test_after_growth_exact_algorithms_find_the_optimum_of_all_nine(algorithm: str) -> None:
    """Of the state class sum: all corrections begin afresh."""
    joins = {"event": "join", "node": 8, "round": 40}
    made = grown(algorithm={"name": algorithm}, churn=[joins], rounds=600, evaluation={"every": 600}, **STEP)
    assert off(made, [set(range(9))]) < 1e-8


@pytest.mark.more
def test_after_growth_the_weights_of_push_sum_are_afresh() -> None:
    """Of the state class pairwise: all running sums are zero, and every member counts once again."""
    joins = {"event": "join", "node": 8, "round": 40}
    made = grown(
        algorithm={"name": "push_sum"}, churn=[joins], rounds=400, topology={"graph": "exponential", "nodes": 8},
        training={**STEP["training"], "optimizer": {"name": "sgd", "learning_rate": 0.15, }}, evaluation={"every": 400},
    )  # fmt: skip
    models = looped(made)
    assert made.task is not None
    best = (made.task.a * made.task.b).sum(axis=0) / made.task.a.sum(axis=0)
    eight = (made.task.a[:8] * made.task.b[:8]).sum(axis=0) / made.task.a[:8].sum(axis=0)
    assert abs(models.mean(axis=0) - best).max() < 0.2 * abs(eight - best).max()


def test_a_newcomer_of_an_algorithm_without_more_state_begins_with_a_members_model() -> None:
    made, traced = grown(), dict[int, list[records.Trace]]()
    course = simulated.course_of(made)
    loop.run(tasks(made), simulated.deliveries(made), lambda i, _, t: traced.setdefault(i, []).append(t), float, course)
    adopted, entered, *_ = traced[8]
    assert adopted == records.Adopted(1, 4, [0, 1, 3]) and entered == records.Entered(1, 4, list(range(9)))
    assert [t.round for t in traced[0] if isinstance(t, records.Entered)] == [1, 4]


GROWTH = """
[[churn]]
event = "join"
node = 8
round = 4
"""


@pytest.mark.parametrize("algorithm", ["dsgd", pytest.param("push_sum", marks=pytest.mark.more)])
def test_in_virtual_time_it_is_the_same_and_replays(tmp_path: Path, algorithm: str) -> None:
    """Nobody says there when a node is in time: as for any join, what came of it is what the plain loop replays."""
    graph, digests = "exponential" if algorithm == "push_sum" else "ring", []
    for nodes in (8, 9):
        folder, case = tmp_path / str(nodes), Case(algorithm, graph, nodes, dtype="float64")
        file = write(folder, case, more=GROWTH, timing={})
        made = build.build(experiment.load(file, ['driver.kind="virtual"']))
        file.write_text(experiment.dump(made.experiment))
        figures = virtual.collected(made, folder, virtual.into(made, folder)).summary.as_dict()
        assert (figures["lost"], figures["left"], figures["residue"]) == ([], [], 0)
        assert not figures["mean_residual"] or figures["mean_residual"] < 1e-12
        assert all(verdict.equal for verdict in replay(folder))
        entered = [row["members"] for row in records.read(folder / "nodes" / "0" / "trace.jsonl") if "members" in row]
        assert entered == [list(range(8)), list(range(9))]
        digests.append(figures["digests"])
    assert digests[0] == digests[1] and len(digests[0]) == 9


# --- what is refused, and what goes on


def test_what_can_not_grow_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"node 10 joins, and there is no node 8; .* without a gap: call it 8"):
        grown(churn=[{"event": "join", "node": 10, "round": 4}])
    with pytest.raises(TopologyError, match=r"d2: topology 'ring' of 6 nodes does not fit|of 6 nodes has lambda_min"):
        grown(
            algorithm={"name": "d2"}, topology={"graph": "ring", "nodes": 5},
            churn=[{"event": "join", "node": 5, "round": 4}],
        )  # fmt: skip
    # of four, five and six nodes in a ring, d2 stands five alone: here as well, whoever joins when
    for nodes, rounds, wrong in ((4, (3,), "4 nodes, before"), (3, (3, 5), "4 nodes, before"), (3, (3, 3), "")):
        joins = [{"event": "join", "node": nodes + i, "round": round} for i, round in enumerate(rounds)]
        parts = {"algorithm": {"name": "d2"}, "topology": {"graph": "ring", "nodes": nodes}, "churn": joins}
        if wrong:
            with pytest.raises(TopologyError, match=f"d2: the graph of {wrong} others join, has lambda_min"):
                grown(**parts)
        else:
            grown(**parts)
    with pytest.raises(ConfigError, match=r"node_steps: 8 numbers for 9 nodes"):
        grown(training={**TABLE["training"], "node_steps": [1] * 8})
    (tmp_path / "line.toml").write_text("edges = [[0, 1], [1, 2]]")
    of_file = grown(topology={"file": str(tmp_path / "line.toml")}, churn=[{"event": "join", "node": 3, "round": 4}])
    with pytest.raises(
        ConfigError, match=r"p2pfl chaos: leaves \[\[churn\]\] out, and the graph of .*line.toml has no"
    ):
        undisturbed(of_file.experiment, "p2pfl chaos")
    wanted = dataclasses.replace(of_file.experiment.evaluation, splits=2)
    with pytest.raises(ConfigError, match=r"evaluation.splits: leaves \[\[churn\]\] out"):
        splits.check(dataclasses.replace(of_file.experiment, evaluation=wanted))


def test_what_leaves_churn_out_has_all_nodes_that_ever_take_part() -> None:
    made = grown()
    quiet = undisturbed(made.experiment, "a test")
    assert quiet.topology.nodes == 9 and not quiet.churn
    assert len(build.build(baselines.alone(made.experiment)).graph) == 9
    plain = federation_of(TABLE).experiment
    assert undisturbed(plain, "a test") == plain and baselines.alone(plain).topology == plain.topology


def test_checkpoints_stay_those_of_the_others() -> None:
    plain = federation_of({**TABLE, "topology": {"graph": "ring", "nodes": 8}})
    steps = {"training": {**TABLE["training"], "node_steps": [1, 2] * 4}}
    uneven = federation_of({**TABLE, "topology": {"graph": "ring", "nodes": 8}, **steps})
    steps["training"]["node_steps"] = [1, 2] * 4 + [3]
    assert build.identity(grown()) == build.identity(plain) != build.identity(uneven)
    assert build.identity(grown(**steps)) == build.identity(uneven)
    assert build.digest(grown()) != build.digest(plain)  # who would go on without it is another federation
    crowd = grown(churn=[{"model": "flash_crowd", "round": 4, "nodes": [8, 9]}])
    assert len(crowd.graph) == 10 and build.identity(crowd) == build.identity(plain)
    other = grown(churn=[JOINS, {"event": "crash", "node": 2, "round": 5}])
    assert build.identity(other) != build.identity(plain)


# --- real processes

P2PFL = [sys.executable, "-m", "p2pfl"]


@pytest.mark.live
@pytest.mark.more
def test_a_fifth_process_joins_four_and_all_go_on_from_their_checkpoints(tmp_path: Path) -> None:
    joins = GROWTH.replace("8", "4").replace("round = 4", "round = 15")
    file, out = write(tmp_path, Case("gradient_tracking", nodes=4), rounds=30, timing={}, more=joins), tmp_path / "run"

    def ran(*arguments: str) -> dict[str, Any]:
        ended = subprocess.run([*P2PFL, "run", *arguments, "--json"], capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
        assert all(verdict.equal for verdict in replay(out))
        return dict(json.loads(ended.stdout))

    def trace(node: int) -> list[dict[str, Any]]:
        return records.read(out / "nodes" / str(node) / "trace.jsonl")

    first = ran(str(file), "--out", str(out))
    assert first["nodes"] == 5 and not first["lost"] and not first["residue"] and first["mean_residual"] < 1e-6
    assert [row["members"] for row in trace(0) if "members" in row] == [[0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert trace(4)[0]["adopted"][0] < 4 and trace(4)[0]["round"] >= 15
    again = ran("--resume", str(out), "--set", "rounds=45")
    assert not again["lost"] and again["mean_residual"] < 1e-6
    for node in range(5):
        assert [row["kept"][1] for row in trace(node) if "kept" in row] == [30]
        assert trace(node)[-1]["round"] == 45
