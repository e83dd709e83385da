"""Columns that look as if they meant something else at one site: another unit, or other names of the same values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

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
