"""Coefficients that nodes find together, by sums that gossip adds up: those of all rows, whoever is away a while."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from test_live import P2PFL, by_hand
from test_published import given

from p2pfl import topology
from p2pfl.config.model import MlpModel
from p2pfl.data import csv
from p2pfl.data.csv import CsvTable
from p2pfl.drivers.virtual.run import run as run_virtual
from p2pfl.errors import ConfigError, Exit
from p2pfl.federation.federation import build
from p2pfl.learning.likelihood import CoxRows, LogisticRows, concluded, maximum
from p2pfl.node.result import NodeResult
from p2pfl.runs import coefficients, gossiped, virtual
from p2pfl.types import Inbox, Neighborhood

NODES = 4
SCHEDULE = topology.schedule(nx.cycle_graph(NODES))
PHASE = gossiped.Phase(4, 30)


def patients(kind: str, seed: int = 2) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rows of four sites of other sizes, columns far from 0 and of other widths, with an outcome that they tell of."""
    rng, xs, ys = np.random.default_rng(seed), [], []
    for n in (40, 90, 25, 60):
        x = rng.normal(size=(n, 3)) * [1, 30, 0.1] + [0, 500, 3]
        logit = x[:, 0] - (x[:, 1] - 500) / 40
        ill = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(float)
        time = np.ceil(rng.exponential(np.exp(-logit)) * 30 + 1)
        xs.append(x)
        ys.append(ill if kind == "classes" else np.column_stack([time, rng.random(n) < 0.6]))
    return xs, ys


def played(
    kind: str, away: Callable[[int], Collection[int]] = lambda round: (), rounds: int = PHASE.rounds
) -> list[gossiped.Fitting]:
    """The states of all nodes after so many rounds by their own functions alone; `away`: who misses a round."""
    xs, ys = patients(kind)
    facts = [gossiped.SiteRows(i, NODES, kind, xs[i], ys[i], *PHASE) for i in range(NODES)]
    programs = [gossiped.program(each, 2) for each in facts]
    states = [program.init(0) for program in programs]
    neighbor, weight = SCHEDULE.neighbor[0], SCHEDULE.weight[0]
    for round in range(1, rounds + 1):
        there = [i for i in range(NODES) if i not in away(round)]
        sent: dict[int, Any] = {}
        for i in there:
            states[i], _, sent[i], _ = programs[i].train(states[i], {}, i, round, Neighborhood(weight[i], weight[i]))
        for i in there:
            arrived = np.array([j in there for j in neighbor[i]])
            received = tuple(sent.get(int(j), sent[i]) for j in neighbor[i])
            inbox = Inbox((sent[i],) * len(received), received, arrived, np.zeros(len(received), int))
            states[i], _ = programs[i].mix(states[i], inbox, Neighborhood(weight[i], weight[i]))
    return states


def pooled(kind: str, sites: Collection[int] = range(NODES)) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and standard errors of the rows of these sites pooled (tests/test_likelihood.py: as statsmodels)."""
    xs, ys = patients(kind)
    mean, sd = (getattr(np.concatenate([xs[i] for i in sites]), name)(axis=0) for name in ("mean", "std"))
    scaled = {i: (xs[i] - mean) / sd for i in sites}
    if kind == "classes":
        x, y = np.concatenate([*scaled.values()]), np.concatenate([ys[i] for i in sites])
        best = maximum([LogisticRows(np.column_stack([np.ones(len(x)), x]), y)], 4)
        sk = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x, y)
        np.testing.assert_allclose(best.beta[1:], sk.coef_[0], atol=1e-4)
    else:
        best = maximum([CoxRows(scaled[i], ys[i][:, 0], ys[i][:, 1] > 0) for i in sites], 3)
    return best.beta[-3:] / sd, np.sqrt(np.diag(best.covariance))[-3:] / sd


def found(state: gossiped.Fitting) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and standard errors of a node, per unit of the columns, without an intercept."""
    assert state.best is not None
    best, sd = concluded(state.best.newton), gossiped.scale(state.best.width).sd
    return best.beta[-3:] / sd, np.sqrt(np.diag(best.covariance))[-3:] / sd


@pytest.mark.parametrize("kind", ["classes", "survival"])
def test_every_node_finds_what_the_rows_pooled_say(kind: str) -> None:
    beta, error = pooled(kind)
    for state in played(kind, rounds=10 * sum(PHASE) + 1):
        ours = found(state)
        np.testing.assert_allclose(ours[0], beta, rtol=1e-4)
        np.testing.assert_allclose(ours[1], error, rtol=1e-4)
        assert state.best is not None and state.best.counts.round().tolist()[::2] == [215, 4]
        np.testing.assert_allclose(NODES * state.best.share, 1, atol=1e-4)


@pytest.mark.parametrize(
    ("who", "gap"),
    [
        pytest.param(0, range(1, 60), id="who asks, for a phase and more"),
        pytest.param(2, range(20, 25), id="in a phase"),
        *(
            pytest.param(who, gap, marks=pytest.mark.more, id=f"{who}, {gap}")
            for who in (0, 2)
            for gap in (range(1, 5), range(20, 25), range(35, 140), range(100, 101))
        ),
    ],
)
def test_whoever_is_away_for_a_while_is_in_the_result(who: int, gap: range) -> None:
    """Also node 0, which is the one that asks: while it is away the next one does."""
    beta, error = pooled("classes")
    for state in played("classes", lambda round: {who} if round in gap else (), 20 * sum(PHASE) + 1):
        np.testing.assert_allclose(found(state), (beta, error), rtol=1e-3)


def test_whoever_never_comes_is_named_and_the_others_find_their_own() -> None:
    states = played("classes", lambda round: {3}, 12 * sum(PHASE) + 1)[:3]
    for state in states:
        np.testing.assert_allclose(found(state), pooled("classes", (0, 1, 2)), rtol=1e-3)
        assert state.best is not None and (state.best.share > 0).tolist() == [True] * 3 + [False]
    ended = NodeResult(0, 1, 9, 1, 0, {}, False, "")
    fit = {"logistic": {}}
    run = gossiped.FitRun(ended, gossiped.Fitted(fit, (3,), True))
    assert run.verdict.code == Exit.NOT_WHOLE and "the rows of node 3" in run.verdict.reasons[0]
    assert gossiped.FitRun(ended, gossiped.Fitted(fit, (), True)).verdict.code == Exit.DONE
    assert gossiped.FitRun(ended, gossiped.Fitted(fit, (), False)).verdict.code == Exit.NOT_WHOLE
    alone = gossiped.FitRun(ended, gossiped.Fitted({}, (0, 1, 2, 3), False))
    assert alone.verdict.reasons == ("nothing was found out together with other nodes",) and alone.lines() == []


def test_whoever_leaves_for_good_in_the_last_phase_that_matters_is_not_half_in_the_result() -> None:
    """After three rounds of averaging its sums are at the others in other parts at each: the phase does not count."""
    gone = 6 * sum(PHASE) + PHASE.asking + 3
    states = played("classes", lambda round: {1} if round >= gone else (), 14 * sum(PHASE) + 1)
    for state in (states[0], states[2], states[3]):
        assert state.best is not None and np.count_nonzero(state.best.share > 0) == 3
        np.testing.assert_allclose(found(state), pooled("classes", (0, 2, 3)), rtol=1e-3)


@pytest.mark.parametrize("kind", [pytest.param("classes", marks=pytest.mark.more), "survival"])
def test_a_federation_on_a_network_finds_what_the_sums_of_all_say(tmp_path: Path, kind: str) -> None:
    wanted = given(tmp_path, kind)
    made, phase = gossiped.planned(build(gossiped.experiment_of(wanted)))
    tasks = [gossiped.task(made, node, phase) for node in range(3)]
    run_virtual(tasks, virtual.setting(made), tmp_path)
    coefficients.write(build(wanted), {}, tmp_path)
    whole = json.loads((tmp_path / "coefficients.json").read_text())
    key = "logistic" if kind == "classes" else "stratified_by_site"
    for node in range(3):
        fit = gossiped.found(made, tmp_path / "nodes" / str(node))
        assert fit.ended and not fit.missing
        for name in ("rows", "events", "sites", "ratio", "unit"):
            assert fit.table[name] == whole[name]
        for ours, theirs in zip(fit.table[key]["rows"], whole[key]["rows"], strict=True):
            assert set(ours) == set(theirs) and ours["name"] == theirs["name"]
            for number in ("coefficient", "standard_error", "ratio", "low", "high"):
                assert ours.get(number) == pytest.approx(theirs.get(number), abs=1e-5)
    ended = gossiped.FitRun(NodeResult(0, 1, 9, 1, 0, {}, False, ""), fit)
    assert len(ended.lines()) == 1 + len(whole[key]["rows"]) and "standard error" in ended.lines()[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: replace(e, model=MlpModel("mlp", hidden=(4,))), "something else"),
        (lambda e: replace(e, statistics=replace(e.statistics, minimum=50)), "training rows, fewer than .*minimum=50"),
        (lambda e: replace(e, statistics=replace(e.statistics, minimum=15)), "rows of class '.*', fewer than .*=15"),
        (lambda e: replace(e, statistics=replace(e.statistics, noise=0.1)), "leave noise out"),
    ],
)
def test_what_has_no_coefficients_or_too_few_rows_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    made, phase = gossiped.planned(build(gossiped.experiment_of(change(given(tmp_path, "classes")))))
    with pytest.raises(ConfigError, match=message):
        gossiped.task(made, 0, phase)


def test_answers_that_an_objective_is_needed_for_are_no_part_of_a_fit(tmp_path: Path) -> None:
    wanted = given(tmp_path, "classes")
    wanted = replace(
        wanted,
        training=replace(wanted.training, objective=({"name": "ditto", "strength": 0.1},)),
        evaluation=replace(wanted.evaluation, answers=("personal",)),
    )
    made, phase = gossiped.planned(build(gossiped.experiment_of(wanted)))
    assert gossiped.task(made, 0, phase).rounds == made.experiment.rounds


@pytest.mark.live
@pytest.mark.more
def test_two_hospitals_find_them_by_hand(tmp_path: Path) -> None:
    files = by_hand(tmp_path, 5)
    nodes = [
        subprocess.Popen(
            [*P2PFL, "coefficients", str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for file in files
    ]
    texts = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], texts
    both = [csv.load(tmp_path / f"patients{node}.csv", CsvTable(label="ill", by_name=True)).train for node in (0, 1)]
    sk = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    sk.fit(np.concatenate([each.x for each in both]), np.concatenate([each.y for each in both]))
    for node, text in enumerate(texts):
        table = json.loads((tmp_path / f"records{node}" / "coefficients" / "coefficients.json").read_text())
        rows = table["logistic"]["rows"][1:]
        assert [row["coefficient"] for row in rows] == pytest.approx(sk.coef_[0], abs=1e-3)
        assert "odds ratios of '1' over 192 training rows of 2 sites" in text and "a: " in text
    again = subprocess.run([*P2PFL, "coefficients", str(files[0])], capture_output=True, text=True, check=False)
    assert again.returncode == 1 and "holds an earlier fit" in again.stderr
