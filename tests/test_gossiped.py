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
from p2pfl.config.experiment import load
from p2pfl.config.model import MlpModel
from p2pfl.data import csv
from p2pfl.data.csv import CsvTable
from p2pfl.drivers.virtual.run import run as run_virtual
from p2pfl.errors import ConfigError, Exit
from p2pfl.federation.federation import build
from p2pfl.learning import metrics
from p2pfl.learning.likelihood import CoxRows, LogisticRows, OneStratum, concluded, maximum
from p2pfl.learning.risk_sets import EventTimes, stretches
from p2pfl.node import model_file
from p2pfl.node.result import NodeResult
from p2pfl.protocol.strangers import Strangers
from p2pfl.runs import coefficients, gossiped, virtual
from p2pfl.types import Inbox, Neighborhood

FOLDER = Path(__file__).parents[1] / "experiments"
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
    kind: str, away: Callable[[int], Collection[int]] = lambda round: (), rounds: int = PHASE.rounds, *more: Any
) -> list[gossiped.Fitting]:
    """The states of all nodes after so many rounds by their own functions alone; `away`: who misses a round.

    more: the phase, and what else a node's facts hold.
    """
    xs, ys = patients(kind)
    more = more or (PHASE,)
    facts = [gossiped.SiteRows(i, NODES, kind, xs[i], ys[i], *more) for i in range(NODES)]
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


def found(state: gossiped.Fitting, fit: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and standard errors of a node, per unit of the columns, without an intercept."""
    reached = state.best[fit]
    assert reached is not None
    best, sd = concluded(reached.newton), gossiped.scale(reached.width).sd[:3]
    return best.beta[-3:] / sd, np.sqrt(np.diag(best.covariance))[-3:] / sd


@pytest.mark.parametrize("kind", ["classes", "survival"])
def test_every_node_finds_what_the_rows_pooled_say(kind: str) -> None:
    beta, error = pooled(kind)
    for state in played(kind, rounds=10 * PHASE.length + 1):
        ours = found(state)
        np.testing.assert_allclose(ours[0], beta, rtol=1e-4)
        np.testing.assert_allclose(ours[1], error, rtol=1e-4)
        (best,) = state.best
        assert best is not None and best.counts.round().tolist()[::2] == [215, 4]
        np.testing.assert_allclose(NODES * best.share, 1, atol=1e-4)


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
    for state in played("classes", lambda round: {who} if round in gap else (), 20 * PHASE.length + 1):
        np.testing.assert_allclose(found(state), (beta, error), rtol=1e-3)


def test_whoever_never_comes_is_named_and_the_others_find_their_own() -> None:
    states = played("classes", lambda round: {3}, 12 * PHASE.length + 1)[:3]
    for state in states:
        np.testing.assert_allclose(found(state), pooled("classes", (0, 1, 2)), rtol=1e-3)
        (best,) = state.best
        assert best is not None and (best.share > 0).tolist() == [True] * 3 + [False]
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
    gone = 6 * PHASE.length + PHASE.asking + 3
    states = played("classes", lambda round: {1} if round >= gone else (), 14 * PHASE.length + 1)
    for state in (states[0], states[2], states[3]):
        (best,) = state.best
        assert best is not None and np.count_nonzero(best.share > 0) == 3
        np.testing.assert_allclose(found(state), pooled("classes", (0, 2, 3)), rtol=1e-3)


@pytest.mark.parametrize("kind", [pytest.param("classes", marks=pytest.mark.more), "survival"])
def test_a_federation_on_a_network_finds_what_the_sums_of_all_say(tmp_path: Path, kind: str) -> None:
    wanted = given(tmp_path, kind)
    made, phase = gossiped.planned(build(gossiped.experiment_of(wanted)))
    tasks, facts = zip(*(gossiped.task(made, node, phase) for node in range(3)), strict=True)
    run_virtual(tasks, virtual.setting(made), tmp_path)
    coefficients.write(build(wanted), {}, tmp_path)
    whole = json.loads((tmp_path / "coefficients.json").read_text())
    key = "logistic" if kind == "classes" else "stratified_by_site"
    for node in range(3):
        fit = gossiped.found(made, tmp_path / "nodes" / str(node), facts[node])
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
    assert gossiped.task(made, 0, phase)[0].rounds == made.experiment.rounds


# --- one baseline hazard for all

TWICE = gossiped.Phase(4, 30, 2)


def one_baseline(sites: Collection[int], times: Any) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and standard errors with one baseline hazard for the rows of these sites pooled."""
    xs, ys = patients("survival")
    x, y = np.concatenate([xs[i] for i in sites]), np.concatenate([ys[i] for i in sites])
    sd = x.std(axis=0)
    best = maximum([OneStratum((CoxRows((x - x.mean(axis=0)) / sd, y[:, 0], y[:, 1] > 0),), times)], 3)
    return best.beta / sd, np.sqrt(np.diag(best.covariance)) / sd


def all_times(sites: Collection[int], unstratified: Any) -> Any:
    """Where risk sets are taken, from the rows of these sites pooled."""
    y = np.concatenate([patients("survival")[1][i] for i in sites])
    times = y[y[:, 1] > 0, 0]
    if unstratified == "exact":
        return EventTimes(np.unique(times))
    return stretches(float(np.log(times).mean()), float(np.log(times).std()), unstratified)


@pytest.mark.parametrize("unstratified", ["exact", 8])
def test_every_node_finds_one_baseline_hazard_for_all(unstratified: Any) -> None:
    """Beside the fit stratified by site, which stays what it is."""
    states = played("survival", lambda round: (), 10 * TWICE.length + 1, TWICE, unstratified)
    times = all_times(range(NODES), unstratified)
    for state in states:
        np.testing.assert_allclose(found(state), pooled("survival"), rtol=1e-4)
        np.testing.assert_allclose(found(state, 1), one_baseline(range(NODES), times), rtol=1e-4)
    assert np.abs(found(states[0])[0] / found(states[0], 1)[0] - 1).max() > 1e-3, "they are two models"


@pytest.mark.parametrize(
    ("who", "gap"),
    [
        pytest.param(2, range(1, 200), id="comes late, with event times that nobody has heard of"),
        pytest.param(0, range(40, 110), marks=pytest.mark.more, id="who asks, in both halves"),
        pytest.param(1, range(100, 102), marks=pytest.mark.more, id="when the second half begins"),
    ],
)
def test_whoever_is_away_is_in_the_fit_with_one_baseline_hazard(who: int, gap: range) -> None:
    away = {round: {who} for round in gap}
    states = played("survival", lambda round: away.get(round, ()), 16 * TWICE.length + 1, TWICE, "exact")
    wanted = one_baseline(range(NODES), all_times(range(NODES), "exact"))
    for state in states:
        np.testing.assert_allclose(found(state, 1), wanted, rtol=1e-3)
    facts = gossiped.SiteRows(who, NODES, "survival", *(each[who] for each in patients("survival")), TWICE, "exact")
    others = all_times([i for i in range(NODES) if i != who], "exact")
    assert gossiped.withheld(facts, others) == "event times that the others have not heard of yet"
    assert not gossiped.withheld(facts, all_times(range(NODES), "exact"))


def test_a_site_of_small_risk_sets_holds_back_what_tells_of_them_and_no_more() -> None:
    """Node 2 has three events in the first of three stretches of time; all others have more in each."""
    states = played("survival", lambda round: (), 12 * TWICE.length + 1, TWICE, 3, 4)
    wanted = one_baseline((0, 1, 3), all_times(range(NODES), 3))
    for node, state in enumerate(states):
        np.testing.assert_allclose(found(state), pooled("survival"), rtol=1e-4)
        np.testing.assert_allclose(found(state, 1), wanted, rtol=1e-2)
        facts = gossiped.SiteRows(node, NODES, "survival", *(each[node] for each in patients("survival")), TWICE, 3, 4)
        last = state.at[1]
        why = gossiped.withheld(facts, gossiped.times_of(facts, last.width, last.events))
        assert why == ("3 events between 0 and 13.1463, fewer than statistics.minimum=4" if node == 2 else "")
        assert gossiped.lacking(last.share) == (2,) and not gossiped.lacking(state.at[0].share)


@pytest.mark.parametrize("unstratified", ["exact", pytest.param(8, marks=pytest.mark.more)])
def test_where_nobody_has_an_event_there_is_nothing_to_be_found(
    monkeypatch: pytest.MonkeyPatch, unstratified: Any
) -> None:
    xs, ys = patients("survival")
    monkeypatch.setattr(f"{__name__}.patients", lambda kind: (xs, [y * [1, 0] for y in ys]))
    for state in played("survival", lambda round: (), 3 * TWICE.length + 1, TWICE, unstratified):
        assert all(best is not None and not best.newton.kept.any() for best in state.best)


@pytest.mark.parametrize("lie", [-1e9, 1e300, 1e18])
def test_what_can_be_no_sums_of_rows_ends_nobody(lie: float) -> None:
    """A member with a bug says that there were so many events: the phase is void for the fit, and nothing is raised."""
    xs, ys = patients("survival")
    facts = gossiped.SiteRows(0, NODES, "survival", xs[0], ys[0], TWICE, 8)
    state = played("survival", lambda round: (), TWICE.length + TWICE.asking + TWICE.averaging, TWICE, 8)[0]
    program = gossiped.program(facts, 2)
    around = Neighborhood(SCHEDULE.weight[0, 0], SCHEDULE.weight[0, 0])
    told = state._replace(sums=np.full_like(state.sums, lie))
    told, *_ = program.train(told, {}, 0, TWICE.length + TWICE.asking + TWICE.averaging + 1, around)
    right, *_ = program.train(state, {}, 0, TWICE.length + TWICE.asking + TWICE.averaging + 1, around)
    assert (told.part, told.half) == (1, None) and right.part == 2


@pytest.mark.parametrize(("unstratified", "many"), [("exact", None), pytest.param(6, 5, marks=pytest.mark.more)])
def test_a_network_finds_both_fits_and_the_baseline_hazard(tmp_path: Path, unstratified: Any, many: int | None) -> None:
    given_one = given(tmp_path, "survival")
    wanted = replace(given_one, statistics=replace(given_one.statistics, minimum=1))
    made, phase = gossiped.planned(build(gossiped.experiment_of(wanted)), unstratified)
    tasks, facts = zip(*(gossiped.task(made, node, phase, unstratified) for node in range(3)), strict=True)
    run_virtual(tasks, virtual.setting(made), tmp_path)
    coefficients.write(build(wanted), {}, tmp_path)
    whole = json.loads((tmp_path / "coefficients.json").read_text())
    fits = ("stratified_by_site", "one_baseline_hazard")
    for node in range(3):
        fit = gossiped.found(made, tmp_path / "nodes" / str(node), facts[node])
        assert (
            fit.ended
            and not fit.missing
            and not fit.apart
            and fit.table["one_baseline_hazard"]["times"] == unstratified
        )
        for key in fits if unstratified == "exact" else fits[:1]:
            for ours, theirs in zip(fit.table[key]["rows"], whole[key]["rows"], strict=True):
                for number in ("coefficient", "standard_error"):
                    assert ours.get(number) == pytest.approx(theirs.get(number), abs=1e-5)
        baseline = fit.table["one_baseline_hazard"]["baseline"]
        if many is None:
            assert baseline["time"] == whole["one_baseline_hazard"]["baseline"]["time"]
            both = (each["cumulative_hazard"] for each in (baseline, whole["one_baseline_hazard"]["baseline"]))
            np.testing.assert_allclose(*both, rtol=1e-4)
        else:
            assert len(baseline["time"]) == many and baseline["hazard_after"] > 0
            assert np.all(np.diff([0, *baseline["cumulative_hazard"]]) >= 0)
    ended = gossiped.FitRun(NodeResult(0, 1, 9, 1, 0, {}, False, ""), fit)
    assert [line for line in ended.lines() if line.endswith(":")] == ["stratified by site:", "one baseline hazard:"]
    assert ended.verdict.code == Exit.DONE
    held = gossiped.FitRun(ended.result, fit._replace(apart="one baseline hazard: ..."))
    assert held.verdict.code == Exit.NOT_WHOLE and held.verdict.reasons == ("one baseline hazard: ...",)


@pytest.mark.parametrize(
    ("kind", "unstratified", "minimum", "message"),
    [
        ("classes", 5, 1, "is of survival, and the data have classes"),
        ("survival", 501, 1, "must be 1 to 500"),
        ("survival", "exact", 2, r"node 0 has 1 events from .* on.*fewer than statistics.minimum=2: a neighbour"),
    ],
)
def test_what_has_no_one_baseline_hazard_is_refused(
    tmp_path: Path, kind: str, unstratified: Any, minimum: int, message: str
) -> None:
    wanted = given(tmp_path, kind)
    wanted = replace(wanted, statistics=replace(wanted.statistics, minimum=minimum))
    with pytest.raises(ConfigError, match=message):
        made, phase = gossiped.planned(build(gossiped.experiment_of(wanted)), unstratified)
        gossiped.task(made, 0, phase, unstratified)


def test_nodes_that_want_another_fit_say_what_differs(tmp_path: Path) -> None:
    made, _ = gossiped.planned(build(gossiped.experiment_of(given(tmp_path, "survival"))))
    all_terms = [gossiped.agreed(made, each) for each in (None, 5, 6, "exact")]
    assert len({each.federation for each in all_terms}) == 4
    ours, theirs = (Strangers(node, terms.fields, 0.0) for node, terms in enumerate(all_terms[1:3]))
    assert theirs.understand(ours.answer(theirs.question(), 0.0)).said == "--unstratified: 5 there, 6 here"


ORACLE = (
    ("age_at_index", 0.018978, 0.007837),
    ("ajcc_pathologic_m_MX", -0.682032, 0.357883),
    ("ajcc_pathologic_n_N2", -0.546177, 0.622456),
    ("ajcc_pathologic_stage_Stage IIIC", -0.323550, 0.534733),
    ("treatment_or_therapy_yes", -0.700218, 0.350728),
)
"""statsmodels 0.15.0, PHReg(T, x, E, ties="efron"), x without the seven columns that are combinations of others, on
TCGA's training patients: column, coefficient, standard error. lifelines 0.30.3, CoxPHFitter: the same to 1e-8 on the
columns with a finite estimate."""
TCGA = FOLDER.parents[1] / "shared" / "data" / "tcga_brca_6regions.csv"


@pytest.mark.skipif(not TCGA.exists(), reason="the hospitals' data are no part of the repository")
@pytest.mark.parametrize(
    ("unstratified", "c"),
    [pytest.param("exact", 0.839, marks=pytest.mark.soak), pytest.param(20, 0.836, marks=pytest.mark.more)],
)
def test_six_regions_find_one_baseline_hazard_for_all(tmp_path: Path, unstratified: Any, c: float) -> None:
    """Those of ORACLE, by regions that gossip; with 20 stretches of time off by .15 standard errors at most."""
    wanted = load(FOLDER / "tcga-brca" / "experiment.toml", ["statistics.minimum=1"])
    made, phase = gossiped.planned(build(gossiped.experiment_of(wanted)), unstratified)
    tasks, facts = zip(*(gossiped.task(made, node, phase, unstratified) for node in range(6)), strict=True)
    run_virtual(tasks, virtual.setting(made), tmp_path)
    tables = [gossiped.found(made, tmp_path / "nodes" / str(node), facts[node]) for node in range(6)]
    assert all(each.ended and not each.missing and not each.apart for each in tables)
    far = []
    for node, each in enumerate(tables):
        rows = {row["name"]: row for row in each.table["one_baseline_hazard"]["rows"]}
        strata = {row["name"]: row for row in each.table["stratified_by_site"]["rows"]}
        for name, beta, error in ORACLE:
            if unstratified == "exact":
                assert rows[name]["coefficient"] == pytest.approx(beta, abs=1e-3)
                assert rows[name]["standard_error"] == pytest.approx(error, abs=1e-3)
            assert rows[name]["standard_error"] == pytest.approx(error, rel=0.01)
            far.append(abs(rows[name]["coefficient"] - beta) / error)
        assert "endless" in rows["race_white"] and "endless" in strata["race_white"]
        # the regions' baseline hazards differ: so do the fits, and by more than the stretches
        both = [(rows[name], strata[name]) for name, *_ in ORACLE]
        assert max(abs(a["coefficient"] - b["coefficient"]) / a["standard_error"] for a, b in both) > 0.4
        arrays = model_file.read(tmp_path / "nodes" / str(node) / model_file.NAME)
        scores = [c_index(made.dataset.test, arrays, key) for key in ("one_baseline_hazard", "stratified_by_site")]
        assert scores == pytest.approx([c, 0.834], abs=0.001)  # those of experiments/tcga-brca/README.md
    assert max(far) < (1e-3 if unstratified == "exact" else 0.15)


def c_index(test: Any, arrays: dict[str, np.ndarray], key: str) -> float:
    """Harrell's C of a fit, as a node has it in its directory."""
    leaf = {name.rpartition("/")[2]: value for name, value in arrays.items() if f"/{key}/" in name}
    scale = gossiped.scale(leaf["width"][:, : test.x.shape[1]])
    return float(metrics.assess("survival", (scale.of(test.x) @ leaf["beta"])[:, None], test.y, ("risk",))["c_index"])


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


@pytest.mark.more
def test_two_hospitals_find_one_baseline_hazard_by_hand(tmp_path: Path) -> None:
    files, rng = by_hand(tmp_path, 5), np.random.default_rng(3)
    for file in (*files, tmp_path / "experiment.toml"):
        survival = 'kind = "survival"\ntime = "days"\nevent = "ill"'
        file.write_text(file.read_text().replace('label = "ill"', survival))
    for node in (0, 1):
        head, *lines = (tmp_path / f"patients{node}.csv").read_text().split()
        days = np.ceil(rng.exponential([np.exp(-float(line.split(",")[0])) * 300 for line in lines])) + 1
        longer = [f"{line},{day:g}" for line, day in zip(lines, days, strict=True)]
        (tmp_path / f"patients{node}.csv").write_text("\n".join([f"{head},days", *longer]) + "\n")
    wanting = CsvTable(kind="survival", time="days", event="ill", by_name=True)
    both = [csv.load(tmp_path / f"patients{node}.csv", wanting).train for node in (0, 1)]
    sites = tuple(CoxRows(each.x.astype(float), each.y[:, 0].astype(float), each.y[:, 1] > 0) for each in both)
    logs = np.log(np.concatenate([site.time[site.event] for site in sites]))
    wanted = maximum([OneStratum(sites, stretches(logs.mean(), logs.std(), 2))], 3)
    error = np.sqrt(np.diag(wanted.covariance))
    command = [*P2PFL, "coefficients", "--unstratified", "2"]
    nodes = [
        subprocess.Popen([*command, str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for file in files
    ]
    texts = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], texts
    for node, text in enumerate(texts):
        table = json.loads((tmp_path / f"records{node}" / "coefficients" / "coefficients.json").read_text())
        assert table["rows"] == 192 and {"stratified_by_site", "one_baseline_hazard"} < table.keys()
        fit = table["one_baseline_hazard"]
        assert len(fit["baseline"]["time"]) == 1
        assert [row["coefficient"] for row in fit["rows"]] == pytest.approx(wanted.beta, abs=1e-3)
        assert [row["standard_error"] for row in fit["rows"]] == pytest.approx(error, abs=1e-3)
        said = text.split("listening on")[0]  # before anything is sent
        assert "--unstratified 2: a neighbour sees how many events this site has in each of 2 stretches" in said
