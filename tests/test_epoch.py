"""The graph of an epoch: re-planned, restricted, healed; a pure function of its members."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from small import Case, write

from p2pfl import topology
from p2pfl.config import experiment
from p2pfl.federation import federation
from p2pfl.federation.tasks import tasks


def made(folder: Path, case: Case, *more: str) -> federation.Federation:
    return federation.build(experiment.load(write(folder, case), more))


def edges(schedule: object) -> set[tuple[int, int]]:
    return {(min(e), max(e)) for e in topology.union(schedule).edges}  # type: ignore[arg-type]


def test_a_ring_closes(tmp_path: Path) -> None:
    plan = made(tmp_path, Case("dsgd", nodes=6)).planner()
    assert plan(range(6)).schedule is plan((0, 1, 2, 3, 4, 5)).schedule
    left = plan((0, 1, 3, 5)).schedule
    assert edges(left) == {(0, 1), (1, 3), (3, 5), (0, 5)}
    assert (left.neighbor[:, [2, 4]] == -1).all() and not left.weight[:, [2, 4]].any()
    assert plan((3,)).schedule.weight.sum() == 0
    assert edges(plan((2, 4)).schedule) == {(2, 4)}


@pytest.mark.parametrize("members", [(0, 2, 3, 4, 6), (1, 5), (0, 1, 2, 3, 4, 5, 6)])
def test_base_averages_exactly_for_any_members(tmp_path: Path, members: tuple[int, ...]) -> None:
    schedule = made(tmp_path, Case("dsgd", "base", 7)).planner()(members).schedule
    x = np.arange(7.0)
    for t in range(len(schedule.neighbor)):
        other = x[np.maximum(schedule.neighbor[t], 0)]
        x = x + (schedule.weight[t] * (other - x[:, None])).sum(axis=1)
    ids = list(members)
    np.testing.assert_allclose(x[ids], np.mean(ids), atol=1e-12)
    away = sorted(set(range(7)) - set(ids))
    assert x[away].tolist() == away


@pytest.mark.parametrize("algorithm", ["push_sum", "epidemic", "ad_psgd", "gossip_learning", "exact_diffusion"])
def test_every_plan_is_what_its_algorithm_asks(tmp_path: Path, algorithm: str) -> None:
    graph = {"push_sum": "one_peer_exponential", "exact_diffusion": "ring"}.get(algorithm, "complete")
    plan = made(tmp_path, Case(algorithm, graph, 6)).planner()
    epoch = plan((0, 2, 3, 5))
    assert not epoch.note
    gone = np.isin(epoch.schedule.neighbor, [1, 4])
    assert not gone.any()
    assert epoch.schedule.weight[:, [0, 2, 3, 5]].any(axis=(0, 2)).all()


def test_a_graph_that_can_not_be_made_is_healed(tmp_path: Path) -> None:
    epoch = made(tmp_path, Case("dsgd", "hypercube", 8)).planner()((0, 1, 2, 3, 4, 6))
    assert "healed" in epoch.note
    assert nx.is_connected(topology.union(epoch.schedule).subgraph([0, 1, 2, 3, 4, 6]))


def test_a_graph_that_its_algorithm_can_not_stand_is_said(tmp_path: Path) -> None:
    epoch = made(tmp_path, Case("d2", "ring", 5)).planner()((0, 1, 2, 3))  # the ring of four is beyond its bound
    assert "nobody mixes" in epoch.note and epoch.schedule.weight.sum() == 0


def test_restricted_and_healed() -> None:
    path = nx.path_graph(5)
    assert set(topology.restricted(path, [0, 1, 3, 4], heal=False).edges) == {(0, 1), (3, 4)}
    assert set(topology.restricted(path, [0, 1, 3, 4], heal=True).edges) == {(0, 1), (1, 3), (3, 4)}
    assert set(topology.restricted(path, [0, 4], heal=True).edges) == {(0, 4)}
    star = nx.star_graph(4)
    assert nx.is_connected(topology.restricted(star, [1, 2, 3, 4], heal=True))
    whole = nx.cycle_graph(6)
    assert topology.restricted(whole, range(6), heal=True).edges == whole.edges
    apart = nx.Graph([(0, 1), (2, 3)])
    assert not nx.is_connected(topology.restricted(apart, [0, 1, 2], heal=True))  # nothing joined what was apart
    arrows = nx.DiGraph([(0, 1), (1, 2), (2, 0)])
    assert nx.is_strongly_connected(topology.restricted(arrows, [0, 2], heal=True))


def test_a_task_follows_its_epoch(tmp_path: Path) -> None:
    task = tasks(made(tmp_path, Case("dsgd", nodes=6)))[0]
    assert task.neighbors == (1, 5)
    later = task.at((0, 2, 3))
    assert later.neighbors == (2, 3) and later.slots == task.slots == 2
    alone = task.at((0,))
    assert alone.neighbors == () and alone.slots == 2
    inbox, around, at = alone.inbox(1, (), task.program.params(task.program.init(0)))
    assert not inbox.arrived.any() and around.weight.shape == (2,) and not at
