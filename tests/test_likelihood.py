"""Likelihoods from sums of sites, against statsmodels and lifelines on the rows pooled."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from p2pfl.learning import likelihood
from p2pfl.learning.likelihood import CoxRows, LogisticRows, OneStratum
from p2pfl.learning.risk_sets import EventTimes, Stretches, few, stretches
from p2pfl.learning.survival_curves import breslow, groups, kaplan_meier

RNG = np.random.default_rng(5)
X = RNG.normal(size=(300, 3))
SITE = np.arange(300) % 4
Y = (RNG.random(300) < 1 / (1 + np.exp(-(0.3 + X @ [1, -0.5, 0.2])))).astype(int)
TIME = np.round(RNG.exponential(np.exp(-(X @ [0.7, -0.3, 0.1]) - 0.4 * SITE)) * 100) + 1
EVENT = RNG.random(300) < 0.6
COX = tuple(CoxRows(X[k == SITE], TIME[k == SITE], EVENT[k == SITE]) for k in range(4))


def test_logistic_regression_is_that_of_statsmodels() -> None:
    one = np.column_stack([np.ones(300), X])
    found = likelihood.maximum([LogisticRows(one[k == SITE], Y[k == SITE]) for k in range(4)], 4)
    # statsmodels 0.15.0: Logit(Y, add_constant(X)).fit(): params, bse
    assert found.beta == pytest.approx([0.31117174, 0.97600169, -0.41164402, 0.16823215], abs=1e-7)
    error = np.sqrt(np.diag(found.covariance))
    assert error == pytest.approx([0.12924364, 0.15669871, 0.12625301, 0.13529078], abs=1e-7)


@pytest.mark.parametrize(
    ("sites", "beta", "error", "value"),
    [  # statsmodels 0.15.0: PHReg(TIME, X, EVENT, ties="efron", strata=SITE or None).fit(): params, bse, llf;
        # lifelines 0.30.3, CoxPHFitter: the same to 2e-6. Up to 7 events are at one time, 4 of a site.
        (COX, [0.67922715, -0.30221728, 0.11077541], [0.08744862, 0.07783851, 0.07705922], -600.60576168),
        ((OneStratum(COX),), [0.5896989, -0.23285057, 0.08123973], [0.07912564, 0.07541827, 0.07849422], -863.50865313),
    ],
    ids=["stratified by site", "one baseline hazard"],
)
def test_cox_regression_is_that_of_statsmodels(
    sites: tuple[likelihood.Likelihood, ...], beta: list[float], error: list[float], value: float
) -> None:
    found = likelihood.maximum(sites, 3)
    assert found.beta == pytest.approx(beta, abs=1e-7)
    assert np.sqrt(np.diag(found.covariance)) == pytest.approx(error, abs=1e-7)
    assert found.likelihood == pytest.approx(value, abs=1e-6)


PIECES = OneStratum(COX, Stretches(np.array([20.0, 60.0, 120.0])))


def test_a_hazard_constant_in_stretches_of_time_is_that_of_statsmodels() -> None:
    found = likelihood.maximum([PIECES], 3)
    # statsmodels 0.15.0: GLM(event, [x, one column for each stretch], family=Poisson(), offset=log(time at risk)) on a
    # row for each patient and stretch: params, bse, and the hazards exp(params)
    assert found.beta == pytest.approx([0.5706318269, -0.2246030708, 0.0764133765], abs=1e-7)
    assert np.sqrt(np.diag(found.covariance)) == pytest.approx([0.0780531766, 0.0750701456, 0.0783040361], abs=1e-7)
    hazard, baseline = np.array([0.0116188236, 0.0083109355, 0.0091783305, 0.0078757584]), PIECES.baseline(found.beta)
    assert baseline.cumulative == pytest.approx(np.cumsum(hazard[:3] * [20, 40, 60]), rel=1e-7)
    assert baseline.time.tolist() == [20, 60, 120] and baseline.after == pytest.approx(hazard[3], rel=1e-7)


def test_the_baseline_hazard_is_that_of_lifelines() -> None:
    """lifelines 0.30.3, CoxPHFitter().fit(...).baseline_cumulative_hazard_: of a row with the mean of every column."""
    mean = X.mean(axis=0)
    sites = OneStratum(tuple(rows._replace(x=rows.x - mean) for rows in COX))
    curve = sites.baseline(likelihood.maximum([sites], 3).beta)
    wanted = {2.0: 0.008307, 12.0: 0.136146, 55.0: 0.506840, 844.0: 7.848310}
    assert [curve.cumulative[curve.time == time][0] for time in wanted] == pytest.approx([*wanted.values()], abs=2e-6)


@pytest.mark.parametrize(("many", "far"), [(5, 1.1), (10, 0.35), (20, 0.12), (50, 0.03)])
def test_with_more_stretches_of_time_coefficients_are_those_of_all_event_times(many: int, far: float) -> None:
    """Of 2,000 patients of whom 1,484 die, at a hazard that grows: off by `far` standard errors, at most."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 4))
    x[:, 3] = x[:, 3] > 1
    died = rng.weibull(1.7, 2000) * np.exp(-(x @ [0.7, -0.5, 0.3, 1.0]) / 1.7) * 1000
    left = rng.uniform(200, 3000, 2000)
    rows = CoxRows(x, np.minimum(died, left), died <= left)
    logs = np.log(rows.time[rows.event])
    exact = likelihood.maximum([rows], 4)
    times = stretches(logs.mean(), logs.std(), many)
    pieces = likelihood.maximum([OneStratum((rows,), times)], 4)
    tied = likelihood.maximum([rows._replace(time=times.of(rows.time))], 4)  # as is often done
    error = np.sqrt(np.diag(exact.covariance))
    off, off_tied = (float((np.abs(each.beta - exact.beta) / error).max()) for each in (pieces, tied))
    assert far / 2 < off < far and off_tied > 3 * off
    assert np.sqrt(np.diag(pieces.covariance)) == pytest.approx(error, rel=0.02)


def test_score_and_information_are_derivatives() -> None:
    beta, step = np.array([0.3, -0.2, 0.1]), 1e-5
    for rows in (*COX[:1], OneStratum(COX), LogisticRows(X, Y), PIECES):
        at = rows.sums(beta)
        for i, e in enumerate(np.eye(3) * step):
            up, down = rows.sums(beta + e), rows.sums(beta - e)
            assert at.score[i] == pytest.approx((up.likelihood - down.likelihood) / 2 / step, rel=1e-5)
            assert at.information[i] == pytest.approx((down.score - up.score) / 2 / step, rel=1e-5, abs=1e-4)


def test_a_column_that_is_a_sum_of_others_is_left_out() -> None:
    kinds = np.eye(3)[np.arange(300) % 3]
    x = np.column_stack([np.ones(300), kinds, X])
    found = likelihood.maximum([LogisticRows(x, Y)], 7)
    without = likelihood.maximum([LogisticRows(np.delete(x, 3, axis=1), Y)], 6)
    assert found.kept.tolist() == [True, True, True, False, True, True, True]
    assert np.delete(found.beta, 3) == pytest.approx(without.beta, rel=1e-6)


def test_a_column_that_parts_the_outcomes_has_no_estimate_and_spoils_no_other() -> None:
    # Of the rows that have the column on none has an event: its hazard ratio tends to 0.
    rare = ((np.arange(300) % 7 == 0) & ~EVENT).astype(float)
    sites = [rows._replace(x=np.column_stack([rare[k == SITE], rows.x])) for k, rows in enumerate(COX)]
    found = likelihood.maximum(sites, 4)
    assert found.converged and found.finite.tolist() == [False, True, True, True] and found.beta[0] < -5
    left = [CoxRows(*(each[rare[k == SITE] == 0] for each in rows)) for k, rows in enumerate(COX)]
    without = likelihood.maximum(left, 3)  # the limit: as if these rows had never been at risk
    assert found.beta[1:] == pytest.approx(without.beta, abs=1e-4)
    assert np.diag(found.covariance)[1:] == pytest.approx(np.diag(without.covariance), rel=1e-3)


@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize("sites", [1, 4])
def test_a_column_that_orders_the_times_has_no_estimate(others: int, sites: int) -> None:
    # whoever has more of it dies later: the likelihood rises with its coefficient for ever, to that of no other order
    time = np.arange(300.0)[RNG.permutation(300)]
    x = np.column_stack([time / time.std(), X[:, :others]])
    cox = tuple(CoxRows(x[k == SITE % sites], time[k == SITE % sites], np.ones(300, bool)[k == SITE % sites])
                for k in range(sites))  # fmt: skip
    found = likelihood.maximum([OneStratum(cox)], 1 + others)
    assert found.converged and not found.finite[0] and found.beta[0] < -5
    assert found.likelihood == pytest.approx(0, abs=1e-6) and np.isnan(found.covariance[0, 0])


def test_the_sums_of_risk_sets_that_differ_by_much_are_right() -> None:
    rng = np.random.default_rng(2)
    time, event = np.round(rng.random(60) * 20), rng.random(60) < 0.7
    x = np.column_stack([-100 * time + rng.normal(size=60), rng.normal(size=60)])  # 2000 over all: exp(-2000) is 0
    sites = tuple(CoxRows(x[k::3], time[k::3], event[k::3]) for k in range(3))
    found = OneStratum(sites).sums(np.array([1.0, 0.5]))
    value, score, second = 0.0, np.zeros(2), np.zeros((2, 2))
    for at in np.unique(time[event]):  # the definition, each risk set by itself, relative to its largest
        eta = x @ [1, 0.5]
        risk, dying = np.flatnonzero(time >= at), np.flatnonzero((time == at) & event)
        r = np.exp(np.minimum(eta - eta[risk].max(), 0))
        for i, one in enumerate(dying):
            w = np.concatenate([r[risk], -i / len(dying) * r[dying]])
            rows = x[np.concatenate([risk, dying])]
            mean = w @ rows / w.sum()
            value += eta[one] - eta[risk].max() - np.log(w.sum())
            score += x[one] - mean
            second += (rows * w[:, None]).T @ rows / w.sum() - np.outer(mean, mean)
    assert found.likelihood == pytest.approx(value, rel=1e-10)
    assert found.score == pytest.approx(score, rel=1e-8, abs=1e-8)
    assert found.information == pytest.approx(second, rel=1e-6, abs=1e-6)


def test_a_penalty_is_scikit_learns() -> None:
    one = np.column_stack([np.ones(300), X])
    sites = [LogisticRows(one[k == SITE], Y[k == SITE]) for k in range(4)]
    found = likelihood.penalized(sites, 20 * np.array([0.0, 1, 1, 1]))
    sk = LogisticRegression(C=1 / 20, tol=1e-10, max_iter=1000).fit(X, Y)
    assert found == pytest.approx([*sk.intercept_, *sk.coef_[0]], abs=1e-5)


def test_cross_validation_is_that_of_rows_held_out() -> None:
    one, fold, penalty = np.column_stack([np.ones(300), X]), np.arange(300) % 5, np.array([0.0, 20, 20, 20])
    folds, by_hand = [], 0.0
    for k in range(5):
        keep = [(s == SITE) & (fold != k) for s in range(4)]
        folds.append(([LogisticRows(one[m], Y[m]) for m in keep], [LogisticRows(one, Y)]))
        sk = LogisticRegression(C=1 / 20, tol=1e-10, max_iter=1000).fit(X[fold != k], Y[fold != k])
        by_hand += np.log(sk.predict_proba(X[fold == k])[np.arange(60), Y[fold == k]]).sum()
    assert likelihood.cross_validated(folds, penalty) == pytest.approx(by_hand, abs=1e-4)


def test_curves_by_hand() -> None:
    time, event = np.array([1.0, 2, 2, 3, 4]), np.array([True, True, False, False, True])
    curve = kaplan_meier(time, event)
    assert curve.time.tolist() == [1, 2, 4] and curve.value == pytest.approx([0.8, 0.6, 0.0])
    assert curve.error[:2] == pytest.approx([0.8 * (0.2 / 4) ** 0.5, 0.6 * (0.2 / 4 + 1 / 12) ** 0.5])
    assert curve.at(0.5, 1.0) == (1.0, 0.0) and curve.at(3.9, 1.0)[0] == pytest.approx(0.6)
    hazard = breslow(np.log([1.0, 2, 3, 4, 5]), time, event)
    assert hazard.value == pytest.approx([1 / 15, 1 / 15 + 1 / 14, 1 / 15 + 1 / 14 + 1 / 5])
    assert groups(np.array([-1, 0, 9]), np.arange(9)).tolist() == [0, 0, 2]


def test_what_tells_of_few_by_hand() -> None:
    time, event = np.array([1.0, 2, 2, 3, 4]), np.array([True, True, False, False, True])
    assert few(time, event, EventTimes(np.array([1.0, 2, 4])), 1) == ""
    assert few(time, event, EventTimes(np.array([1.0, 2, 4])), 2) == "1 events from 1 on and before 2"
    assert few(time, event, EventTimes(np.array([2.0])), 2) == "1 events before 2"  # 1.0 is none of the times
    assert few(time, event, Stretches(np.array([2.0])), 2) == "1 events after 2"
    assert few(time, event, Stretches(np.zeros(0)), 3) == "" and few(time, event, Stretches(np.zeros(0)), 4) != ""
