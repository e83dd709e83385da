"""`p2pfl init DIR`: an experiment folder with comments that runs as it is. The files lie in `templates/`."""

from __future__ import annotations

import csv
import importlib.resources
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from p2pfl.errors import ConfigError, nearest

TEMPLATES = {
    "hospital": "four hospitals, each with a table of its own patients",
    "study": "graph by churn: a sweep over both",
    "lan": "two machines",
}
"""What there is, in words."""

_HEAD = ("age", "sex", "pressure", "cholesterol", "pain", "ill")
_PAIN = {"none": -1.7, "atypical": 0.4, "typical": 2.9}


class Hospital(NamedTuple):
    """A hospital whose patients are made up."""

    rows: int
    age: float  # mean, years
    reads: float  # what its laboratory makes of a cholesterol of one
    gaps: float  # share of cholesterol that was not measured


HOSPITALS = {
    "city": Hospital(220, 61.0, 1.0, 0.02),
    "coast": Hospital(60, 66.0, 1.04, 0.05),
    "north": Hospital(120, 55.0, 1.0, 0.2),
    "valley": Hospital(50, 58.0, 0.97, 0.05),
}
"""As the files of the template name them."""


def write(folder: Path, template: str) -> list[Path]:
    """Write a template into a folder, which is made, or empty; return the files, relative to it. Raises ConfigError."""
    if template not in TEMPLATES:
        raise ConfigError(f"--template {template}: {nearest(template, TEMPLATES)}")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; give a new or empty directory, as in p2pfl init my-{template}")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder}: is not empty, and nothing is overwritten; give a new directory, as in p2pfl init my-{template}"
        )
    source = importlib.resources.files("p2pfl.runs") / "templates" / template
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    if template == "hospital":
        _write_patients(folder / "data")
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _write_patients(folder: Path) -> None:
    """A table for each hospital, and one of all."""
    folder.mkdir()
    together = []
    for name, hospital in HOSPITALS.items():
        rows = [*_patients(name, hospital)]
        _table(folder / f"{name}.csv", _HEAD, rows)
        together += [[name, *row] for row in rows]
    _table(folder / "rehearsal.csv", ("hospital", *_HEAD), together)


def _table(path: Path, head: tuple[str, ...], rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened, lineterminator="\n").writerows([head, *rows])


def _patients(name: str, hospital: Hospital) -> Iterator[list[str]]:
    """Rows that are the same wherever they are drawn: who is ill follows a logistic law of the other columns."""
    draw = random.Random(name)
    for _ in range(hospital.rows):
        age, male = min(max(round(draw.gauss(hospital.age, 11)), 18), 95), draw.random() < 0.55
        pressure, cholesterol = round(draw.gauss(108 + 0.45 * age, 14)), draw.gauss(215, 38)
        pain = draw.choice([*_PAIN])
        logit = 0.1 * (age - 60) + 0.05 * (pressure - 135) + 0.03 * (cholesterol - 215) + 1.3 * male + _PAIN[pain] - 1
        ill = draw.random() < 1 / (1 + math.exp(-logit))
        read = "" if draw.random() < hospital.gaps else str(round(hospital.reads * cholesterol))
        yield [str(age), "m" if male else "f", str(pressure), read, pain, "yes" if ill else "no"]
