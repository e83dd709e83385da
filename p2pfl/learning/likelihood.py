"""Likelihoods of linear models as sums over sites: log likelihood, score and observed information, and their maximum.

All that a site adds are three sums over its own rows at coefficients that all know: 1 + P + P (P + 1) / 2 numbers. So
the maximum over all rows and its standard errors need no row to leave a site: Newton's method on added sums is Newton's
method on the rows pooled. In float64, on the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from p2pfl.learning import risk_sets
from p2pfl.learning.risk_sets import Baseline, EventTimes, RiskSums, Times

STEPS = 50
"""Steps of Newton's method at most; where more are needed, the maximum lies at infinity."""
_ALIASED = 1e-9
"""Share of a column that is its own, below which it is a combination of those before it."""
_RISE = 1e-10
"""What the logarithm of the likelihood still rises in the last step."""
_HALVINGS = 30
"""Times that a step which goes too far is halved."""
_FLAT = 1e-8
"""Information of a direction, as a share of the largest, below which there is none."""
_STILL = 1e-3
"""The part that a finite coefficient has in such a direction, at most."""
_FALLS = 500.0
"""What the largest x beta at risk may fall by before its exponentials are taken of another: exp(-745) is 0."""


class Sums(NamedTuple):
    """What rows say of coefficients."""

    likelihood: float  # its logarithm
    score: np.ndarray  # [P] its gradient
    information: np.ndarray  # [P, P] the negative of its second derivatives


class Likelihood(Protocol):
    """Of the rows of a site, or of several; a likelihood is a sum over them."""

    def sums(self, beta: np.ndarray) -> Sums:
        """At coefficients [P]."""


class LogisticRows(NamedTuple):
    """Likelihood of a logistic regression of y on x."""

    x: np.ndarray  # [N, P] float64; an intercept is a column of ones
    y: np.ndarray  # [N] 0 or 1
    offset: np.ndarray | float = 0.0  # [N] added to x beta

    def sums(self, beta: np.ndarray) -> Sums:
        """At coefficients [P]."""
        logit = self.x @ beta + self.offset
        value = float((self.y * logit - np.logaddexp(0, logit)).sum())
        p = np.exp(-np.logaddexp(0, -logit))
        return Sums(value, self.x.T @ (self.y - p), (self.x * (p * (1 - p))[:, None]).T @ self.x)


class CoxRows(NamedTuple):
    """Likelihood of a Cox model whose risk sets are among these rows: one stratum; ties are those of Efron."""

    x: np.ndarray  # [N, P] float64
    time: np.ndarray  # [N]
    event: np.ndarray  # [N] bool

    def sums(self, beta: np.ndarray) -> Sums:
        """At coefficients [P]."""
        return OneStratum((self,)).sums(beta)


class OneStratum(NamedTuple):
    """Sites of a Cox model whose risk sets go across all of them, so that there is one baseline hazard.

    The sums over a risk set are sums over sites (p2pfl.learning.risk_sets).
    """

    sites: tuple[CoxRows, ...]
    at: Times | None = None  # where risk sets are taken; None: at the event times of all sites

    @property
    def times(self) -> Times:
        """Where risk sets are taken."""
        return self.at or EventTimes(np.unique(np.concatenate([site.time[site.event] for site in self.sites])))

    def sums(self, beta: np.ndarray) -> Sums:
        """At coefficients [P]."""
        if self.at is not None:
            times, shift, own = self._risk_sums(beta)
            by = risk_sets.hazards(risk_sets.added(own))
            parts = [
                risk_sets.slopes(*site, beta, times, each, by, shift)
                for site, each in zip(self.sites, own, strict=True)
            ]
            score, information = (np.sum(part, axis=0) for part in zip(*parts, strict=True))
            return Sums(by.likelihood, score - by.ties.score, information - by.ties.information)
        return self._of_all_times(beta)

    def _of_all_times(self, beta: np.ndarray) -> Sums:
        """The same at the event times of all: in stretches of them, so that no risk set counts for nothing."""
        grid = np.unique(np.concatenate([site.time[site.event] for site in self.sites]))
        eta = [site.x @ beta for site in self.sites]
        value = sum(float(each[site.event].sum()) for site, each in zip(self.sites, eta, strict=True))
        score = np.sum([site.x[site.event].sum(axis=0) for site in self.sites], axis=0)
        second = np.zeros((len(beta), len(beta)))
        for times, shift in _stretches(self.sites, eta, grid):
            # where the outcomes are parted, exp(x beta) of the last at risk is nothing beside that of the first
            risk = [np.exp(np.minimum(each - shift, 0)) for each in eta]
            at, part, left = self._left(grid[times], risk)
            mean = left[:, 1:] / left[:, :1]
            hazard = np.concatenate([[0.0], np.cumsum(np.bincount(at, 1 / left[:, 0], len(grid[times])))])
            dead = np.bincount(at, part / left[:, 0], len(grid[times]))
            value -= float(np.log(left[:, 0]).sum()) + shift * len(at)
            score = score - mean.sum(axis=0)
            for site, r in zip(self.sites, risk, strict=True):
                weight = r * hazard[np.searchsorted(grid[times], site.time, side="right")]
                here = site.event & (site.time >= grid[times][0]) & (site.time <= grid[times][-1])
                weight[here] -= r[here] * dead[np.searchsorted(grid[times], site.time[here])]
                second += (site.x * weight[:, None]).T @ site.x
            second -= mean.T @ mean
        return Sums(value, score, second)

    def _left(self, grid: np.ndarray, risk: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each death at these times: the time's place, the part of those who die then that it finds dead already,
        and the sums of r and of r x over who is left, [deaths, 1 + P]."""
        columns = self.sites[0].x.shape[1]
        at_risk, dying = (np.zeros((len(grid), 1 + columns)) for _ in range(2))
        deaths = np.zeros(len(grid), np.int64)
        for site, r in zip(self.sites, risk, strict=True):
            order = np.argsort(site.time, kind="stable")
            first = np.searchsorted(site.time[order], grid)  # the risk set of a time: all that are not before it
            both = np.column_stack([r, site.x * r[:, None]])
            at_risk += _after(both[order], first)
            here = site.event & (site.time >= grid[0]) & (site.time <= grid[-1])
            then = np.searchsorted(grid, site.time[here])
            np.add.at(dying, then, both[here])
            deaths += np.bincount(then, minlength=len(grid))
        # Efron: of d that die at one time each finds 0, 1/d, ..., (d - 1)/d of them dead already
        at = np.repeat(np.arange(len(grid)), deaths)
        part = (np.arange(len(at)) - np.repeat(np.cumsum(deaths) - deaths, deaths)) / deaths[at]
        return at, part, at_risk[at] - part[:, None] * dying[at]

    def baseline(self, beta: np.ndarray) -> Baseline:
        """The hazard of a row whose columns are all 0 (Breslow), at coefficients [P]."""
        times, shift, own = self._risk_sums(beta)
        return risk_sets.baseline(times, risk_sets.hazards(risk_sets.added(own)).breslow * np.exp(-shift))

    def _risk_sums(self, beta: np.ndarray) -> tuple[Times, float, list[RiskSums]]:
        """Where they are taken, what is taken off all log relative risks, and those of each site."""
        times, highest = self.times, [float((site.x @ beta).max()) for site in self.sites if len(site.x)]
        shift = max(highest, default=0.0)
        return times, shift, [risk_sets.risk_sums(*site, beta, times, shift) for site in self.sites]


def _stretches(sites: Sequence[CoxRows], eta: Sequence[np.ndarray], grid: np.ndarray) -> Iterator[tuple[slice, float]]:
    """Cut event times [T] where the largest x beta of a risk set has fallen far: (times, that of the first of them).

    Within a stretch no sum of exp(x beta - shift) over a risk set vanishes. There is one, but where a combination of
    the columns orders the times.
    """
    largest = np.full(len(grid), -np.inf)
    for site, each in zip(sites, eta, strict=True):
        order = np.argsort(site.time, kind="stable")
        above = np.append(np.maximum.accumulate(each[order][::-1])[::-1], -np.inf)
        largest = np.maximum(largest, above[np.searchsorted(site.time[order], grid)])
    begin = 0
    while begin < len(grid):
        end = begin + int(np.searchsorted(-largest[begin:], _FALLS - largest[begin], side="right"))
        yield slice(begin, end), float(largest[begin])
        begin = end


def _after(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The sums of `values` [N, ...] from each place of `first` [T] on: [T, ...]."""
    total = np.concatenate([np.cumsum(values[::-1], axis=0)[::-1], np.zeros((1, *values.shape[1:]))])
    return total[first]


class Maximum(NamedTuple):
    """The maximum of a likelihood."""

    beta: np.ndarray  # [P]; 0 where a column is aliased
    covariance: np.ndarray  # [P, P] the inverse of the observed information; NaN where there is no finite estimate
    kept: np.ndarray  # [P] bool: not aliased, that is no combination of the columns before it
    finite: np.ndarray  # [P] bool: kept, and the likelihood does not rise for ever in this coefficient
    likelihood: float
    steps: int
    converged: bool


class Ascent(NamedTuple):
    """Newton's method under way: it asks for the sums over all rows at `trial`, and `ascended` takes them in."""

    beta: np.ndarray  # [P] the best so far
    step: np.ndarray  # [P] from there
    found: Sums | None = None  # at beta
    kept: np.ndarray | None = None  # [P] bool, as in Maximum
    halvings: int = 0
    steps: int = 0
    converged: bool = False  # this step is the last
    done: bool = False
    most: float = 0.0  # information of any direction, at the beginning

    @property
    def trial(self) -> np.ndarray:
        """The coefficients [P] at which sums are asked for."""
        return self.beta + self.step / 2**self.halvings


def ascent(columns: int) -> Ascent:
    """Return the beginning of Newton's method for so many coefficients: all 0."""
    return Ascent(np.zeros(columns), np.zeros(columns))


def ascended(before: Ascent, sums: Sums, slack: float = _RISE, rise: float = _RISE) -> Ascent:
    """Return what follows from the sums at `before.trial`: another step, or half of the one that went too far.

    slack: what the likelihood may fall by in a step, as its sums are exact to no less. rise: what it is to rise by in
    the last one, at most.
    """
    if before.done:
        return before
    if before.found is not None and sums.likelihood < before.found.likelihood - slack:
        halvings = before.halvings + 1
        return before._replace(halvings=halvings, done=halvings == _HALVINGS)
    after = before._replace(beta=before.trial, found=sums, halvings=0, step=np.zeros(len(before.beta)))
    if before.found is None:
        after = after._replace(most=float(np.linalg.eigvalsh(sums.information).max(initial=0.0)))
    kept = independent(sums.information) if before.kept is None else before.kept
    if before.converged or not kept.any() or before.steps == STEPS:
        return after._replace(kept=kept, converged=before.converged or not kept.any(), done=True)
    step = np.zeros(len(after.beta))
    step[kept] = np.linalg.lstsq(sums.information[np.ix_(kept, kept)], sums.score[kept], rcond=1e-15)[0]
    return after._replace(kept=kept, step=step, steps=before.steps + 1, converged=float(sums.score @ step) < rise)


def concluded(after: Ascent) -> Maximum:
    """Return the maximum that was found; after sums have been taken in at least once."""
    assert after.found is not None and after.kept is not None
    kept, columns = after.kept, len(after.beta)
    covariance, finite = np.full((columns, columns), np.nan), kept.copy()
    if after.converged and kept.any():
        value, vector = np.linalg.eigh(after.found.information[np.ix_(kept, kept)])
        flat = value <= _FLAT * max(value.max(), after.most)  # directions in which the likelihood rose for ever
        finite[kept] = (np.abs(vector[:, flat]) < _STILL).all(axis=1)
        inverse = (vector[:, ~flat] / value[~flat]) @ vector[:, ~flat].T
        chosen = finite[kept]
        covariance[np.ix_(finite, finite)] = inverse[np.ix_(chosen, chosen)]
    return Maximum(after.beta, covariance, kept, finite, after.found.likelihood, after.steps, after.converged)


def maximum(sites: Sequence[Likelihood], columns: int) -> Maximum:
    """Maximise the sum of the sites' likelihoods over `columns` coefficients by Newton's method, from 0.

    Where a column parts the outcomes (as one of which no row has an event), the likelihood rises for ever with its
    coefficient, and comes no further: such coefficients are not `finite`, and all others are what they tend to.
    """
    at = ascent(columns)
    while not at.done:
        at = ascended(at, added(sites, at.trial))
    return concluded(at)


def penalized(sites: Sequence[Likelihood], penalty: np.ndarray) -> np.ndarray | None:
    """Return the coefficients [P] at which the sum of likelihoods less penalty/2 beta^2 is largest; penalty [P] >= 0.

    None where Newton's method does not come to an end, as where a coefficient without a penalty has no estimate.
    """
    beta = np.zeros(len(penalty))
    for _ in range(STEPS):
        found = added(sites, beta)
        slope, curvature = found.score - penalty * beta, found.information + np.diag(penalty)
        step = np.linalg.lstsq(curvature, slope, rcond=1e-15)[0]
        value = found.likelihood - (penalty * beta**2).sum() / 2
        for halving in range(30):
            there = beta + step / 2**halving
            if added(sites, there).likelihood - (penalty * there**2).sum() / 2 >= value - _RISE:
                beta = there
                break
        if slope @ step < _RISE:
            return beta
    return None


def cross_validated(
    folds: Sequence[tuple[Sequence[Likelihood], Sequence[Likelihood]]], penalty: np.ndarray
) -> float | None:
    """Return the cross-validated log likelihood of a penalty [P]; folds: (rows without the fold, all rows), by site.

    Of each fold what all rows say less what those without it say, at the coefficients of those without it: so it is
    defined for a Cox model too, whose rows do not stand alone. All that leaves a site are sums. Source: Verweij and Van
    Houwelingen (1993), "Cross-validation in survival analysis".
    """
    total = 0.0
    for without, whole in folds:
        beta = penalized(without, penalty)
        if beta is None:
            return None
        total += sum(each.sums(beta).likelihood for each in whole) - sum(each.sums(beta).likelihood for each in without)
    return total


def added(sites: Sequence[Likelihood], beta: np.ndarray) -> Sums:
    """Return the sums over all sites."""
    each = [site.sums(beta) for site in sites]
    return Sums(
        sum(one.likelihood for one in each),
        np.sum([one.score for one in each], axis=0),
        np.sum([one.information for one in each], axis=0),
    )


def independent(gram: np.ndarray) -> np.ndarray:
    """Return which columns are no combination of those before them, [P] bool, from their products [P, P]."""
    left = gram.astype(np.float64).copy()
    kept = np.zeros(len(left), bool)
    for column in range(len(left)):
        own = left[column, column]
        if own > _ALIASED * max(gram[column, column], 1e-300) and own > 0:
            kept[column] = True
            left -= np.outer(left[:, column], left[column]) / own
    return kept
