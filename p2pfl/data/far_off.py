"""Columns that look as if they meant something else at one site: another unit, or other names of the same values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import numpy as np

from p2pfl.data.dataset import NO_SITE, Dataset

ENOUGH = 20
"""Train rows of a site that is compared with others."""
_RARE, _MIRRORED = 20.0, 4.0
"""Per cent of the rows up to which a value is rare (it is usual from 100 less these on), and how much nearer to the
others the mirror of a site's odds must be than these themselves. So its odds are at least 16 times those of any other
site, and all others agree. With 20 rows that is not chance: a value of 20 % is in 16 of 20 rows once in a hundred
million. In the data of experiments/heart-disease and tcga-brca, 41 columns of two values, one is so by nature at a
site: the only region whose patients are nearly all Asian."""
_ALIKE, _SEVERAL = 1.0, 5
"""Standard deviations of chance by which the correlations of a column must be the same at a site as at the others, for
it to be another population, and how many columns that takes. In those data that tells the one from all 81 cases of a
rare value that is turned round at a site."""
_APART, _WIDER, _CONSTANT = 5.0, 6.0, 2.0
"""Standard deviations between the means, and the factor between the standard deviations, from which on it is said. cm
for mm is a factor of 10; hospitals whose patients differ are rarely one standard deviation apart. The last is for a
site where all rows have one value, as where 0 stands for what was not measured."""


def apart(column: str, values: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """Say which sites share no value of a category with any other site: the same under other names?

    >>> apart("sex", {"a": {"f", "m"}, "b": {"m"}, "c": {"male", "female"}})
    ("column 'sex': site 'c' has 'female', 'male', which no other site has: the same under other names?",)
    """
    lines = []
    for site, own in values.items():
        others = {value for other, theirs in values.items() if other != site for value in theirs}
        if own and others and not others & {*own}:
            listed = ", ".join(map(repr, sorted(own)[:8]))
            lines.append(
                f"column {column!r}: site {site!r} has {listed}, which no other site has: the same under other names?"
            )
    return tuple(lines)


def turned_round(
    what: str, counts: Mapping[str, Mapping[str, int]], natural: Callable[[str], bool] = lambda site: False
) -> tuple[str, ...]:
    """Say at which site one of two values is as usual as it is rare at all others: 0 and 1 the other way round?

    Args:
        what: the column, or the answer, as the line begins.
        counts: site -> value -> rows. Sites of few rows have no say, and where all together have not two values nothing
            is said. Of two sites it can't be known which one is off; the line names the second.
        natural: whether there is a reason to hold a site's rows for right.

    >>> turned_round("column 'sex'", {"a": {"0": 96, "1": 4}, "b": {"0": 90, "1": 10}, "c": {"0": 3, "1": 57}})
    ("column 'sex': 1 in 95 % of rows at site 'c', and in 4 to 10 % elsewhere: turned round?",)
    """
    values = sorted({value for each in counts.values() for value, rows in each.items() if rows})
    known = {site: each for site, each in counts.items() if sum(each.values()) >= ENOUGH}
    if len(values) != 2 or len(known) < 2:
        return ()
    one, other = (np.array([each.get(value, 0) for each in known.values()], np.float64) for value in values[::-1])
    share, odds = 100 * one / (one + other), np.log((one + 0.5) / (other + 0.5))
    lines = []
    for s, site in enumerate(known):
        rest = np.delete(odds, s)
        if (np.sign(rest) == -np.sign(odds[s])).all() and (np.minimum(share, 100 - share) <= _RARE).all():
            apart, mirrored = (np.maximum(rest.min() - at, at - rest.max()) for at in (odds[s], -odds[s]))
            if mirrored * _MIRRORED <= apart and not natural(site):
                low, high = (f"{part:.0f}" for part in (np.delete(share, s).min(), np.delete(share, s).max()))
                lines.append(
                    f"{what}: {values[1]} in {share[s]:.0f} % of rows at site {site!r}, and in "
                    f"{low if low == high else f'{low} to {high}'} % elsewhere: turned round?"
                )
    return tuple(lines[-1:] if len(known) == 2 else lines)


def goes_along(value: np.ndarray, others: np.ndarray, here: np.ndarray) -> bool:
    """Return whether a column goes along with others at a site as it does elsewhere: then it is not turned round.

    Args:
        value: [N], of two values.
        others: [N, F], the columns that are not made of it; NaN where they are not known.
        here: [N] bool, the rows of the site.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        known = np.where(np.isnan(others), np.nanmean(others, axis=0), others) if np.isnan(others).any() else others
        one, other = (_correlations(value[rows], known[rows]) for rows in (here, ~here))
        there = np.isfinite(one) & np.isfinite(other)
        cosine = one[there] @ other[there] / np.sqrt((one[there] ** 2).sum() * (other[there] ** 2).sum())
    return bool(there.sum() >= _SEVERAL and cosine * np.sqrt(there.sum()) > _ALIKE)


def _correlations(value: np.ndarray, others: np.ndarray) -> np.ndarray:
    centered, wide = value - value.mean(), others - others.mean(axis=0)
    found: np.ndarray = centered @ wide / np.sqrt((centered @ centered) * (wide**2).sum(axis=0))
    return found


def answers(dataset: Dataset) -> dict[str, dict[str, dict[str, int]]]:
    """Count the answers that are one of two: what -> site -> value -> train rows; of a site without a name "" ."""
    y, kind = dataset.train.y, dataset.kind
    if kind == "classes" and len(dataset.classes) == 2:
        columns = {f"label {dataset.predicts[0]!r}" if dataset.predicts else "label": (y, dataset.classes)}
    elif kind == "labels":
        columns = {f"label {name!r}": (y[:, i], ("0", "1")) for i, name in enumerate(dataset.classes)}
    elif kind == "survival":
        columns = {f"event {dataset.predicts[1]!r}" if dataset.predicts else "event": (y[:, 1] > 0, ("0", "1"))}
    else:
        return {}
    site = np.zeros(len(y), np.int32) if dataset.train.site is None else dataset.train.site
    return {
        what: {
            name: dict(zip(names, np.bincount(column[site == place], minlength=2).tolist(), strict=True))
            for place, name in enumerate(dataset.sites or (NO_SITE,))
        }
        for what, (column, names) in columns.items()
    }


def answers_turned(dataset: Dataset) -> tuple[str, ...]:
    """Say at which sites one of two classes, a label or the event looks the other way round."""
    x, site = dataset.train.x, dataset.train.site
    if site is None:
        return ()

    def natural(column: int, name: str) -> bool:
        y = dataset.train.y if dataset.kind == "classes" else dataset.train.y[:, column]
        return x.ndim == 2 and goes_along(y.astype(np.float64), x.astype(np.float64), site == dataset.sites.index(name))

    return tuple(
        line
        for at, (what, counts) in enumerate(answers(dataset).items())
        for line in turned_round(what, counts, partial(natural, 1 if dataset.kind == "survival" else at))
    )


def beside_all(
    mean: np.ndarray, sd: np.ndarray, all_mean: np.ndarray, all_sd: np.ndarray, columns: Sequence[str]
) -> tuple[str, ...]:
    """Say which columns of one site are far from those of all sites together, it among them.

    Where one of them has another unit, the spread over all is far wider than that of a site without: so those say it.

    Args:
        mean, sd: [F], of the site's training rows.
        all_mean, all_sd: [F], of all training rows.
        columns: F names.

    >>> beside_all(np.array([17.0]), np.array([3.0]), np.array([55.2]), np.array([66.6]), ["size"])
    ("column 'size': mean 17 (sd 3) here, 55.2 (sd 66.6) over all sites: does one have another unit?",)
    """
    wider = (sd > 0) & (all_sd > _WIDER * sd) & (np.abs(all_mean - mean) > _CONSTANT * sd)
    return tuple(
        f"column {columns[f]!r}: mean {mean[f]:.4g} (sd {sd[f]:.4g}) here, {all_mean[f]:.4g} (sd {all_sd[f]:.4g}) over "
        "all sites: does one have another unit?"
        for f in map(int, np.flatnonzero(wider | (np.abs(all_mean - mean) > _APART * np.maximum(sd, all_sd))))
    )


def far_off(mean: np.ndarray, sd: np.ndarray, columns: Sequence[str], sites: Sequence[str]) -> tuple[str, ...]:
    """Say which columns are far off at which sites, before any scaling.

    Args:
        mean: [S, F], of the training rows of each site; NaN where it has none of a column.
        sd: [S, F]; 0 where a column is constant there.
        columns: F names.
        sites: S names.

    Returns:
        A line for each that is far from more than half of the others. Of two sites it can't be known which one is off;
        the line names the second.

    >>> far_off(np.array([[17.0], [16.5], [171.0]]), np.array([[3.0], [3.1], [31.0]]), ["size"], ["a", "b", "c"])
    ("column 'size': mean 171 (sd 31) at site 'c', 16.75 (sd 3.05) elsewhere: another unit?",)
    """
    lines: list[str] = []
    for f, column in enumerate(columns):
        known = np.flatnonzero(np.isfinite(mean[:, f]))
        center, width = mean[known, f], sd[known, f]
        narrow, wide = np.minimum(width[:, None], width), np.maximum(width[:, None], width)
        far = (wide > 0) & (np.abs(center[:, None] - center) > _APART * wide)
        far |= (narrow > 0) & (wide > _WIDER * narrow)
        odd = 2 * far.sum(axis=1) > len(known) - 1
        if odd.size and odd.all():  # of two sites either may be off
            odd[0] = False
        for s, site in enumerate(known):
            rest = ~odd & (np.arange(len(known)) != s)
            if not rest.any():
                continue
            usual, around = float(np.median(center[rest])), float(np.median(width[rest]))
            constant = width[s] == 0 < around and abs(center[s] - usual) > _CONSTANT * width[rest].max()
            if constant or odd[s]:
                here = f"{center[s]:.4g} in all rows" if constant else f"mean {center[s]:.4g} (sd {width[s]:.4g})"
                why = "missing?" if constant else "another unit?"
                elsewhere = f"{usual:.4g} (sd {around:.4g}) elsewhere"
                lines.append(f"column {column!r}: {here} at site {sites[int(site)]!r}, {elsewhere}: {why}")
    return tuple(lines)
