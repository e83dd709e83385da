"""Sums over the risk sets of a Cox model with one baseline hazard for the rows of all sites: they add up over sites.

Two rounds give score and information. In the first, each site adds up its own rows that are at risk at each time
(`risk_sums`); what all sites have says how high the hazard is at each, and what the mean of those at risk (`hazards`).
In the second, each adds up how far its rows are from these means (`slopes`): sums of such differences keep their digits
where a coefficient has no finite estimate, also where averages are exact to seven digits only. Times are either the
event times of all sites (`EventTimes`), with Efron's ties, or stretches of time (`Stretches`) in each of which the
hazard is constant, so that no site learns when an event was. Source: Lu et al. (2015), "WebDISCO: a web service for
distributed Cox model learning without patient-level data sharing"; Holford (1980) and Laird and Olivier (1981) for
hazards that are constant in pieces. In float64, on the host.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

_HIGHEST = 600.0
"""The logarithm of a relative risk beyond which it is cut, so that sums stay finite: a step has gone too far."""
_LEAST = 1e-300
"""What a sum over those at risk is at least, to divide by it."""


class EventTimes(NamedTuple):
    """All distinct event times: the baseline hazard may be anything. Events at one time are ties, after Efron."""

    time: np.ndarray  # [T] ascending

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.time)

    @property
    def efron(self) -> bool:
        """The flag that the sums of those who die are needed, too: true."""
        return True

    def of(self, time: np.ndarray) -> np.ndarray:
        """Return the place of each event [D] in 0 .. T - 1."""
        return np.searchsorted(self.time, time)

    def at_risk(self, values: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Return the sums [T, ...] of `values` [N, ...] over the rows whose time [N] is not before each."""
        order = np.argsort(time, kind="stable")
        total = np.concatenate([np.cumsum(values[order][::-1], axis=0)[::-1], np.zeros((1, *values.shape[1:]))])
        summed: np.ndarray = total[np.searchsorted(time[order], self.time)]
        return summed

    def exposure(self, hazard: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Return the sum of the hazards [T] up to each row's time [N]."""
        summed: np.ndarray = np.concatenate([[0.0], np.cumsum(hazard)])[self.left(time) + 1]
        return summed

    def left(self, time: np.ndarray) -> np.ndarray:
        """Return the last place at which a row is at risk [N]; -1: at none."""
        return np.searchsorted(self.time, time, side="right") - 1

    def named(self, place: int) -> str:
        """Return in words when a row was there for the last time whose last place is this one."""
        before = f" before {self.time[place + 1]:.6g}" if place + 1 < self.size else ""
        return (f"from {self.time[place]:.6g} on{' and' if before else ''}" if place >= 0 else "") + before


class Stretches(NamedTuple):
    """Stretches of time (0, end[0]], (end[0], end[1]], ..., beyond the last end: in each the hazard is constant.

    A row is at risk for as long as it is there, so that sums are those of times at risk, and a hazard is one of a unit
    of time.
    """

    end: np.ndarray  # [T - 1] > 0, ascending

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.end) + 1

    @property
    def efron(self) -> bool:
        """The flag that the sums of those who die are needed, too: false."""
        return False

    def of(self, time: np.ndarray) -> np.ndarray:
        """Return the place of each event."""
        return np.searchsorted(self.end, time)

    def at_risk(self, values: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Return the sums of values times the time at risk in each stretch."""
        summed: np.ndarray = self._there(time).T @ values
        return summed

    def exposure(self, hazard: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Return the hazard of a unit of time, times the time at risk."""
        summed: np.ndarray = self._there(time) @ hazard
        return summed

    def left(self, time: np.ndarray) -> np.ndarray:
        """Return the stretch in which a row's time ends."""
        return self.of(time)

    def named(self, place: int) -> str:
        """Return the ends of a stretch."""
        end = [0.0, *self.end]
        return f"between {end[place]:.6g} and {end[place + 1]:.6g}" if place < len(self.end) else f"after {end[-1]:.6g}"

    def _there(self, time: np.ndarray) -> np.ndarray:
        """The time that each row is at risk in each stretch, [N, T]."""
        begin, end = np.concatenate([[0.0], self.end]), np.concatenate([self.end, [np.inf]])
        there: np.ndarray = np.clip(time[:, None] - begin, 0, end - begin)
        return there


Times: TypeAlias = EventTimes | Stretches
"""Where risk sets are taken."""


def stretches(mean: float, deviation: float, many: int) -> Stretches:
    """Return stretches with about equally many events in each, of what is known of the times of events.

    Args:
        mean: of the logarithm of the times at which there was an event.
        deviation: its standard deviation.
        many: stretches, at least 1.

    Returns:
        Those whose ends are the quantiles of a log-normal distribution.

    Example:
        >>> from p2pfl.learning.risk_sets import stretches
        >>> stretches(6.0, 1.0, 4).end.round().tolist()
        [206.0, 403.0, 792.0]
    """
    return Stretches(np.exp(mean + deviation * stats.norm.ppf(np.arange(1, many) / many)))


class RiskSums(NamedTuple):
    """What rows say at coefficients; of several sites, the sums of theirs."""

    value: float  # the log relative risks of those with an event
    deaths: np.ndarray  # [T] events
    at_risk: np.ndarray  # [T, 1 + P] relative risk r of those at risk, and r times their columns
    dying: np.ndarray  # [T, 1 + P] the same of those with an event there; 0 without ties


def risk_sums(
    x: np.ndarray, time: np.ndarray, event: np.ndarray, beta: np.ndarray, times: Times, shift: float = 0.0
) -> RiskSums:
    """Return the sums of a site's rows.

    Args:
        x: [N, P] float64.
        time: [N].
        event: [N] bool.
        beta: [P] coefficients.
        times: where risk sets are taken; all event times are among them.
        shift: taken off all log relative risks, by every site alike: it cancels out.

    Returns:
        The sums.

    Example:
        >>> import numpy as np
        >>> from p2pfl.learning.risk_sets import EventTimes, risk_sums
        >>> x, time, event = np.array([[1.0], [2.0], [3.0]]), np.array([1.0, 2, 2]), np.array([True, True, False])
        >>> risk_sums(x, time, event, np.zeros(1), EventTimes(np.array([1.0, 2]))).at_risk.tolist()
        [[3.0, 6.0], [2.0, 5.0]]
    """
    eta = x @ beta - shift
    both = _relative(eta)[:, None] * np.column_stack([np.ones(len(x)), x])
    then, dying = times.of(time[event]), np.zeros((times.size, 1 + len(beta)))
    if times.efron:
        np.add.at(dying, then, both[event])
    return RiskSums(
        float(eta[event].sum()),
        np.bincount(then, minlength=times.size),
        times.at_risk(both, time),
        dying,
    )


def added(sums: list[RiskSums]) -> RiskSums:
    """Return the sums of several sites."""
    return RiskSums(*(sum(parts[1:], parts[0]) for parts in zip(*sums, strict=True)))


class Slopes(NamedTuple):
    """First and second derivatives of the log likelihood, or parts of them."""

    score: np.ndarray  # [P]
    information: np.ndarray  # [P, P] the negative of the second


class Hazards(NamedTuple):
    """What the sums of all sites say."""

    likelihood: float  # its logarithm
    center: np.ndarray  # [T, P] the mean of the columns of those at risk
    hazard: np.ndarray  # [T] of a row of relative risk 1
    dead: np.ndarray  # [T] what of it those do not find who die there: ties are those of Efron
    breslow: np.ndarray  # [T] the hazard by events / those at risk
    ties: Slopes  # what ties take off the slopes of all sites


def hazards(total: RiskSums) -> Hazards:
    """Return likelihood, means and hazards of the sums of all sites.

    Of d events at one time, with ties, each finds 0, 1/d, ..., (d - 1)/d of those that have one dead already.

    Example:
        >>> import numpy as np
        >>> from p2pfl.learning.risk_sets import EventTimes, hazards, risk_sums
        >>> x, time, event = np.array([[1.0], [2.0], [3.0]]), np.array([1.0, 2, 2]), np.array([True, True, False])
        >>> found = hazards(risk_sums(x, time, event, np.zeros(1), EventTimes(np.array([1.0, 2]))))
        >>> found.center.tolist(), found.hazard.round(3).tolist()
        ([[2.0], [2.5]], [0.333, 0.5])
    """
    deaths, many = total.deaths, len(total.deaths)
    whole = np.maximum(total.at_risk[:, :1], _LEAST)
    center = total.at_risk[:, 1:] / whole
    at = np.repeat(np.arange(many), deaths)
    part = (np.arange(len(at)) - np.repeat(np.cumsum(deaths) - deaths, deaths)) / deaths[at]
    left = total.at_risk[at] - part[:, None] * total.dying[at]
    there = np.maximum(left[:, 0], _LEAST)
    # the mean of who is left, less that of all: from what the dead differ by, so that it is 0 without ties
    off = -part[:, None] * (total.dying[at, 1:] - total.dying[at, :1] * center[at]) / there[:, None]
    return Hazards(
        total.value - float(np.log(there).sum()),
        center,
        np.bincount(at, 1 / there, many),
        np.bincount(at, part / there, many),
        deaths / whole[:, 0],
        Slopes(off.sum(axis=0), off.T @ off),
    )


def slopes(
    x: np.ndarray, time: np.ndarray, event: np.ndarray, beta: np.ndarray, times: Times, own: RiskSums, by: Hazards,
    shift: float = 0.0,
) -> Slopes:  # fmt: skip
    """Return what a site's rows add to score and information: how far they are from the means of those at risk.

    The sum over all sites, less `by.ties`, is score and information. Arguments as of `risk_sums`; own: its result for
    these rows. by: of the sums of all sites.

    Example:
        >>> import numpy as np
        >>> from p2pfl.learning.risk_sets import EventTimes, hazards, risk_sums, slopes
        >>> x, time, event = np.array([[1.0], [2.0], [3.0]]), np.array([1.0, 2, 2]), np.array([True, True, False])
        >>> times = EventTimes(np.array([1.0, 2]))
        >>> own = risk_sums(x, time, event, np.zeros(1), times)
        >>> found = slopes(x, time, event, np.zeros(1), times, own, hazards(own))
        >>> found.score.tolist(), found.information.round(4).tolist()
        ([-1.5], [[0.9167]])
    """
    risk = _relative(x @ beta - shift)
    weight, then = risk * times.exposure(by.hazard, time), times.of(time[event])
    count = by.hazard[:, None] * own.at_risk
    if times.efron:
        weight[event] -= risk[event] * by.dead[then]
        count -= by.dead[:, None] * own.dying
    # (x - c) (x - c)' of every row and place: x x' - x c' - c x' + c c'
    cross = count[:, 1:].T @ by.center
    about = (by.center * count[:, :1]).T @ by.center
    products = (x * weight[:, None]).T @ x
    return Slopes((x[event] - by.center[then]).sum(axis=0), products - cross - cross.T + about)


class Baseline(NamedTuple):
    """The hazard of a row of relative risk 1."""

    time: np.ndarray  # [K] ascending
    cumulative: np.ndarray  # [K] up to each; of event times a step there, of stretches a line in between
    after: float  # of a unit of time after the last


def baseline(times: Times, hazard: np.ndarray) -> Baseline:
    """Return the cumulative hazard of a hazard [T] (`Hazards.breslow`) at its times.

    Example:
        >>> import numpy as np
        >>> from p2pfl.learning.risk_sets import Stretches, baseline
        >>> found = baseline(Stretches(np.array([10.0, 30.0])), np.array([0.1, 0.2, 0.3]))
        >>> found.time.tolist(), found.cumulative.tolist(), found.after
        ([10.0, 30.0], [1.0, 5.0], 0.3)
    """
    if isinstance(times, Stretches):
        long = np.diff(times.end, prepend=0.0)
        return Baseline(times.end, np.cumsum(hazard[:-1] * long), float(hazard[-1]))
    return Baseline(times.time, np.cumsum(hazard), 0.0)


def _relative(eta: np.ndarray) -> np.ndarray:
    risk: np.ndarray = np.exp(np.minimum(eta, _HIGHEST))
    return risk


def few(time: np.ndarray, event: np.ndarray, times: Times, minimum: int) -> str:
    """Return where sums of a site's rows tell of few of them; "" where nowhere.

    What two risk sets that follow each other differ by is those who have left in between, so these must be none, or at
    least `minimum`; and so must be the events of one place, whose number is told.

    Args:
        time: [N].
        event: [N] bool.
        times: where risk sets are taken.
        minimum: rows.

    Returns:
        The first place that fails, in words.

    Example:
        >>> import numpy as np
        >>> from p2pfl.learning.risk_sets import Stretches, few
        >>> time, event = np.array([1.0, 2, 3, 8, 9]), np.array([True, True, False, False, False])
        >>> few(time, event, Stretches(np.array([5.0])), 3)
        '2 events between 0 and 5'
    """
    for what, whose in (("events", event), ("patients who leave", np.ones(len(time), bool))):
        counts = np.bincount(times.left(time[whose]) + 1, minlength=times.size + 1)
        for place in np.flatnonzero((counts > 0) & (counts < minimum)):
            return f"{counts[place]} {what} {times.named(int(place) - 1).strip()}"
    return ""
