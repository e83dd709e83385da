"""What epsilon the steps that a node has taken come to: conversion and composition by the library dp-accounting."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import NamedTuple

from p2pfl.check import at_least, fraction, one_of, positive
from p2pfl.errors import ConfigError

TAIL = 1e-3
"""Share of delta that is kept for batches that would have been larger than there is room for."""


_GRID = 1e-3
"""Of privacy losses; the coarser, the more epsilon is rounded up: here by some ten-thousandths."""
_LEAST = 0.1
"""Noise multipliers below this are not looked for: epsilon is then in the hundreds."""
_LARGE = 20.0
"""Of the epsilon of one update: more of them are added up."""


class Sampling(NamedTuple):
    """How the rows of a node get into batches."""

    rows: int  # of the node
    batch_size: int  # with Poisson sampling: expected
    poisson: bool = False
    planned: int | None = None  # steps of all passes that are planned, where others than the first may be those taken

    @property
    def rate(self) -> float:
        """The probability with which a row is in a batch."""
        return min(1.0, self.batch_size / max(self.rows, 1))

    @property
    def pass_steps(self) -> int:
        """Steps in which a row is used once, where a pass goes over all rows in whole batches."""
        return max(self.rows // self.batch_size, 1)

    def parts(self, steps: int) -> int:
        """Steps out of so many in which one row takes part, at most."""
        if self.poisson:
            return steps
        of = steps if self.planned is None else self.planned
        return min(steps, -(-of // self.pass_steps))

    def room(self, steps: int, delta: float) -> int:
        """Rows that there must be room for in a batch, so that of all steps none draws more but for TAIL of delta."""
        if not self.poisson:
            return self.batch_size
        from scipy.special import bdtrc  # type: ignore[import-untyped]  # P(more than k of n)

        allowed, most = TAIL * delta / max(steps, 1), self.batch_size
        while most < self.rows and float(bdtrc(most - 1, self.rows, self.rate)) > allowed:
            most += 1
        return min(self.rows, most)


def needed() -> None:
    """Raises ConfigError where dp-accounting is not installed."""
    if importlib.util.find_spec("dp_accounting") is None:
        raise ConfigError("privacy: needs the package dp-accounting: pip install 'p2pfl-jax[privacy]'")


def epsilon(noise: float, sampling: Sampling, steps: int, delta: float) -> float:
    """Return epsilon of so many steps of DP-SGD, for who sees the outcome of each: all messages of the node.

    A row is there or not (add or remove; without Poisson sampling: counts or is zero). Without Poisson sampling the
    order of rows is known to everybody, and a row that takes part k times is protected as by one Gaussian mechanism of
    noise / sqrt(k): nothing is amplified. With it, privacy loss distributions are composed.

    Args:
        noise: the noise multiplier, > 0.
        sampling: of the node's rows.
        steps: local steps taken, >= 0.
        delta: > 0 and < 1.

    Returns:
        Epsilon, >= 0; the conversion is that of dp-accounting, from above.

    Raises:
        ConfigError: an argument is out of bounds, or dp-accounting is not installed.

    Example:
        >>> from p2pfl.methods.privacy import Sampling, epsilon
        >>> round(epsilon(1.0, Sampling(rows=100, batch_size=10), steps=10, delta=1e-5), 2)  # one pass: once
        4.38
    """
    positive(noise=noise)
    at_least(0, steps=steps)
    fraction(delta=delta)
    if not steps:
        return 0.0
    if not sampling.poisson or noise < _LEAST:  # with so little noise sampling gains nothing, and the grid is endless
        return of_gaussian(sampling.parts(steps) / noise**2, delta)
    needed()
    from dp_accounting.pld import privacy_loss_distribution as pld

    one = pld.from_gaussian_mechanism(noise, sampling_prob=sampling.rate, value_discretization_interval=_GRID)
    found: float = one.self_compose(steps).get_epsilon_for_delta(delta * (1 - TAIL))
    return max(float(found), 0.0)


def of_gaussian(mu_squared: float, delta: float) -> float:
    """Return epsilon of a Gaussian mechanism whose sensitivity over its noise is mu. Raises ConfigError."""
    fraction(delta=delta)
    if mu_squared <= 0:
        return 0.0
    needed()
    from dp_accounting import get_epsilon_gaussian

    return float(get_epsilon_gaussian(1 / math.sqrt(mu_squared), delta))


LAWS = ("gaussian", "laplace")
"""How noise on updates is distributed."""


def of_updates(noise: float, times: int, delta: float, law: str = "gaussian") -> float:
    """Return epsilon of so many noised updates of a node, for any two sets of rows that it may have: local privacy.

    An update whose norm is at most C is at most 2 C away from any other. With Gaussian noise (norm: Euclidean) so many
    updates are one Gaussian mechanism. With Laplace noise (norm: sum of absolute values) each is (2 / noise, 0)-private
    (Dwork, McSherry, Nissim, Smith 2006), and they are composed as any such mechanisms can be (Kairouz, Oh, Viswanath
    2015, by dp-accounting), or by adding up, whichever is less.

    Args:
        noise: standard deviation, or Laplace's scale, in units of C, > 0.
        times: updates sent, >= 0.
        delta: > 0 and < 1.
        law: "gaussian" or "laplace".

    Returns:
        Epsilon, >= 0.

    Raises:
        ConfigError: an argument is out of bounds, or dp-accounting is not installed.

    Example:
        >>> from p2pfl.methods.privacy import of_updates
        >>> of_updates(1.0, times=1, delta=1e-5, law="laplace")
        2.0
    """
    positive(noise=noise)
    at_least(0, times=times)
    fraction(delta=delta)
    one_of(LAWS, law=law)
    if not times:
        return 0.0
    if law == "gaussian":
        return of_gaussian(4 * times / noise**2, delta)
    needed()
    from dp_accounting.pld import common
    from dp_accounting.pld import privacy_loss_distribution as pld

    each = 2 / noise
    added = times * each
    if times == 1 or each > _LARGE:  # the grid would be endless, and nothing is gained
        return added
    one = pld.from_privacy_parameters(common.DifferentialPrivacyParameters(each, 0), _GRID)
    return min(added, max(float(one.self_compose(times).get_epsilon_for_delta(delta)), 0.0))


def least(spent: Callable[[float], float], budget: float) -> float:
    """Return the least noise, to a thousandth and rounded up, with which `spent(noise)` is no more than the budget."""
    enough = 1.0
    while spent(enough) > budget:
        enough *= 2
    little = enough / 2
    while little > _LEAST and spent(little) <= budget:
        enough, little = little, little / 2
    while enough / little > 1.001:
        middle = math.sqrt(enough * little)
        enough, little = (middle, little) if spent(middle) <= budget else (enough, middle)
    return enough


def noise_for(budget: float, sampling: Sampling, steps: int, delta: float) -> float:
    """Return the least noise multiplier, to a thousandth, with which so many steps stay within a budget of epsilon.

    Args:
        budget: epsilon, > 0.
        sampling: of the node's rows.
        steps: local steps, >= 1.
        delta: > 0 and < 1.

    Returns:
        The noise multiplier, rounded up.

    Raises:
        ConfigError: an argument is out of bounds, or dp-accounting is not installed.

    Example:
        >>> from p2pfl.methods.privacy import Sampling, noise_for
        >>> round(noise_for(4.38, Sampling(rows=100, batch_size=10), steps=10, delta=1e-5), 2)
        1.0
    """
    positive(budget=budget)
    at_least(1, steps=steps)
    fraction(delta=delta)
    if not sampling.poisson:
        needed()
        from dp_accounting import get_sigma_gaussian

        return float(get_sigma_gaussian(budget, delta)) * math.sqrt(sampling.parts(steps)) * (1 + 1e-9)
    return least(lambda noise: epsilon(noise, sampling, steps, delta), budget)


def steps_within(budget: float, most: int, spent: Callable[[int], float]) -> int:
    """Return the largest number of steps, at most `most`, of which `spent(steps)` is no more than the budget.

    >>> steps_within(5.0, 100, lambda steps: 0.5 * steps)
    10
    """
    if spent(most) <= budget:
        return most
    fits, not_ = 0, most
    while not_ - fits > 1:
        middle = (fits + not_) // 2
        fits, not_ = (middle, not_) if spent(middle) <= budget else (fits, middle)
    return fits
