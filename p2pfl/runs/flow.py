"""Who is in the data and who is not: rows read, left out and why, parts, and missing cells, of each site.

What papers show as a flow chart and in table 1. A node that was started by hand tells its own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from p2pfl.config.data import EvenPartition
from p2pfl.data.dataset import NO_SITE, Dataset, Samples
from p2pfl.federation.federation import Federation

_FILE = "flow.json"
_MOST = 10
"""Sites that are told of one by one."""
FlowOfSites = dict[str, dict[str, Any]]
"""Site -> "read", "left_out" by reason, "training", "validation" and "test" (rows), "missing" by column (cells). Where
images are cut into several rows, "cut" is how many were, in the same unit as "read" and "left_out"."""


def flow(federation: Federation, node: int | None = None) -> FlowOfSites:
    """Count the rows of each site of the data; "" is the name of those that name none, or where there are no sites.

    node: of the data of this node alone, where it has a site of its own. Sites that were left out whole come last.
    """
    dataset = federation.dataset
    if federation.task is not None:
        return {}
    table = counted(dataset, federation.experiment.evaluation.rows)
    partition = federation.experiment.data.partition
    if node is None or not federation.pooled or partition != EvenPartition("by_site"):
        return table
    return {dataset.sites[node]: table[dataset.sites[node]]}


def counted(dataset: Dataset, tested: str = "test") -> FlowOfSites:
    """Count the rows of each site of a data set; `tested`: what its test rows are, "test" or "validation"."""
    parts = {"training": dataset.train, "validation": dataset.validation, "test": None} | {tested: dataset.test}
    rows = {part: _by_site(samples, dataset) for part, samples in parts.items()}
    known = dataset.flow
    sites = dict.fromkeys([*dataset.sites, *(site for each in known.left_out for site in sorted(each.rows))])
    result: FlowOfSites = {}
    for site in sites or {NO_SITE: None}:
        gone = {each.why: each.rows[site] for each in known.left_out if site in each.rows}
        kept = sum(counts[site] for counts in rows.values())
        cut = known.cut.get(site)
        result[site] = {
            "read": (kept if cut is None else cut) + sum(gone.values()),
            "left_out": gone,
            **({} if cut is None else {"cut": cut}),
            **{part: counts[site] for part, counts in rows.items()},
            "missing": {column: each[site] for column, each in known.missing.items() if site in each},
        }
    return result


def _by_site(samples: Samples | None, dataset: Dataset) -> Counter[str]:
    if samples is None:
        return Counter()
    if samples.site is None:
        return Counter({NO_SITE: len(samples.y)})
    counts = np.bincount(samples.site, minlength=len(dataset.sites)).tolist()
    return Counter(dict(zip(dataset.sites, counts, strict=True)))


def lines(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say in a line for each site what became of its rows, where any were left out or have missing cells."""
    said = []
    for site, each in table.items():
        if not each["left_out"] and not each["missing"]:
            continue
        parts = ", ".join(f"{each[part]} {part}" for part in ("training", "validation", "test") if each[part])
        gone = ", ".join(f"{rows} ({why})" for why, rows in each["left_out"].items())
        empty = ", ".join(f"{column!r} {cells}" for column, cells in each["missing"].items())
        text = f"rows{f' of {site!r}' if site else ''}: {each['read']} read"
        text += f"; left out {gone}" if gone else ""
        text += f"; {parts or 'none is left'}"
        said.append(text + (f"; missing cells: {empty}" if empty else ""))
    more = len(said) - _MOST
    return said if more <= 0 else [*said[:_MOST], f"{more} more sites have rows left out, or missing cells"]


def write(table: FlowOfSites, directory: Path) -> None:
    """Write flow.json into the directory of a node, where there is anything to tell."""
    if not table:
        return
    (directory / _FILE).write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read(directory: Path) -> FlowOfSites:
    """Read flow.json of a node's directory; {} where there is none."""
    path = directory / _FILE
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}
