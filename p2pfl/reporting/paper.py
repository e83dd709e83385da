"""The report of a run as files for a paper: every figure as PNG and SVG, every table as CSV, and an index of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from p2pfl.errors import ConfigError
from p2pfl.reporting import published, run_data, tables

INDEX, HEADS = "index.csv", ["file", "shows", "caption"]
FIGURES = {
    "score": "score-by-round", "consensus": "consensus-distance-by-round", "topology": "topology",
    "traffic": "bytes-sent-by-round", "time": "seconds-by-round", "survival": "survival-by-risk-group",
    "observed": "survival-predicted-and-observed", "roc": "roc-of-each-site", "calibration": "calibration-of-each-site",
    "explanations": "explanations-of-images", "importance": "importance-of-columns",
    "leaks": "what-a-neighbour-gets", "reconstructed": "rows-that-came-back",
    **{key: f"forest-{key.replace('_', '-')}" for key in published.TITLES},
}  # fmt: skip
"""Name of a figure -> of its files."""
OWN = (
    *(f"{name}.{kind}" for name in FIGURES.values() for kind in ("png", "svg")),
    *(f"{name}.csv" for name in tables.NAMES),
)
"""Files that there may be, besides the index."""


class Written(NamedTuple):
    """What was written."""

    path: Path  # of the index
    figures: int
    tables: int


def write(run: Path, out: Path) -> Written:
    """Write figures and tables of the run directory `run` into `out`, which is made where it is missing.

    Files that an earlier call has written there, which its index names, are replaced, and removed where this run has no
    such figure or table; all others stay. Raises ConfigError, before anything is written, where one of these has a name
    that is needed.
    """
    from p2pfl.reporting import figures  # here: it brings matplotlib, as in `page`

    read = run_data.read(run)
    earlier = _earlier(out)
    made = tables.tables(read)
    out.mkdir(parents=True, exist_ok=True)
    drawn = figures.save(read, {name: out / file for name, file in FIGURES.items()})
    for table in made:
        _csv(out / f"{table.name}.csv", table.heads, table.rows)
    rows = [
        [f"{FIGURES[name]}.{kind}", each.alt, each.caption] for name, each in drawn.items() for kind in ("png", "svg")
    ]
    rows += [[f"{table.name}.csv", "", table.caption] for table in made]
    _csv(out / INDEX, HEADS, rows)
    for name in {*earlier} - {INDEX, *(row[0] for row in rows)}:  # which this run does not have
        (out / name).unlink(missing_ok=True)
    return Written(out / INDEX, len(drawn), len(made))


def _earlier(out: Path) -> list[str]:
    """Return the files that an earlier call has left. Raises ConfigError where others are in the way."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"figures={str(out)!r}: is a file; give a directory")
    listed: list[str] = []
    if (out / INDEX).is_file():
        with (out / INDEX).open(encoding="utf-8", errors="replace", newline="") as file:
            head, *rows = list(csv.reader(file)) or [[]]
        listed = [row[0] for row in rows if row] if head == HEADS else listed
        listed = [INDEX, *(name for name in listed if name in OWN)] if head == HEADS else []
    foreign = sorted(name for name in (INDEX, *OWN) if name not in listed and (out / name).exists())
    if foreign:
        raise ConfigError(
            f"figures={str(out)!r}: holds {', '.join(foreign)}, which no {INDEX} of an earlier call names; give "
            "another directory, or remove what is in the way"
        )
    return listed


def _csv(path: Path, heads: Sequence[str], rows: Iterable[Sequence[tables.Cell]]) -> None:
    """Numbers in full; nothing between the commas where nothing was measured."""
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(heads)
        lines.writerows(rows)
