"""Curves of survival: Kaplan and Meier's, Breslow's baseline hazard, and the risk groups that curves are drawn of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Curve(NamedTuple):
    """A step function of time: value[i] from time[i] on, up to the next."""

    time: np.ndarray  # [T] ascending
    value: np.ndarray  # [T]
    error: np.ndarray  # [T] its standard error

    def at(self, when: float, before: float) -> tuple[float, float]:
        """The value at a time, and its standard error; `before`: the value before the first time."""
        place = int(np.searchsorted(self.time, when, side="right")) - 1
        return (before, 0.0) if place < 0 else (float(self.value[place]), float(self.error[place]))


def kaplan_meier(time: np.ndarray, event: np.ndarray) -> Curve:
    """Return the share that survives each event time; time [N], event [N] bool.

    Standard errors by Greenwood. Source: Kaplan and Meier (1958), "Nonparametric estimation from incomplete
    observations".
    """
    when, deaths, there = _risk_sets(time, event)
    value = np.cumprod(1 - deaths / there)
    left = there - deaths
    summed = np.cumsum(np.divide(deaths, there * left, out=np.zeros(len(when)), where=left > 0))
    return Curve(when, value, value * np.sqrt(summed))


def breslow(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> Curve:
    """Return the cumulative baseline hazard of a Cox model; risk [N] x beta, time [N], event [N] bool.

    Source: Breslow (1972), discussion of Cox. The standard error is that of known coefficients.
    """
    when = np.unique(time[event])
    order = np.argsort(time, kind="stable")
    total = np.concatenate([np.cumsum(np.exp(risk[order].astype(np.float64))[::-1])[::-1], [0.0]])
    there = total[np.searchsorted(time[order], when)]
    deaths = np.bincount(np.searchsorted(when, time[event]), minlength=len(when))
    return Curve(when, np.cumsum(deaths / there), np.sqrt(np.cumsum(deaths / there**2)))


def _risk_sets(time: np.ndarray, event: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Event times, deaths at each, and rows that are there until then."""
    when = np.unique(time[event])
    deaths = np.bincount(np.searchsorted(when, time[event]), minlength=len(when))
    return when, deaths, (len(time) - np.searchsorted(np.sort(time), when)).astype(np.float64)


def groups(risk: np.ndarray, of: np.ndarray, many: int = 3) -> np.ndarray:
    """Return the group of each row, 0 the least risk: risk [N] cut at the quantiles of the risks `of` [M]."""
    cuts = np.quantile(of, np.arange(1, many) / many)
    return np.searchsorted(cuts, risk, side="right")
