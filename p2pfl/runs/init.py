"""`p2pfl init DIR`: an experiment folder with comments that runs as it is, or a copy of a folder of experiments/.

The files of the former lie in `templates/`, those of the latter where `p2pfl.shipped` finds them.
"""

from __future__ import annotations

import csv
import importlib.resources
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from p2pfl import shipped
from p2pfl.errors import ConfigError, nearest

TEMPLATES = {
    "hospital": "four hospitals, each with a table of its own patients",
    "study": "graph by churn: a sweep over both",
    "lan": "two machines",
}
"""What there is, in words, beside the names of `p2pfl.shipped.experiments`."""
_AROUND = (  # what lies around an experiment in the repository -> in a folder of its own
    (r'\.parents\[3\] / "shared" / "data"', '.parent / "data"'),
    (r"(?:\.\./)*shared/data/", "data/"),
    (r"beside the\s+checkout", "in this folder"),
    (r"(?:\.\./)+topologies/", "topologies/"),
    (r"from the root of the\s+repository", "from this folder"),
    (r"\[([^\]]+)\]\((?:\.\./)+[^)]*\)", r"\1"),  # a link to a page that is not there
    (r'"\.\./([\w-]+/[\w-]+\.toml)"', r'"\1"'),  # an experiment of another folder, which is copied, too
)

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
    known = [*TEMPLATES, *shipped.experiments()]
    if template not in known:
        raise ConfigError(f"--template {template}: {nearest(template, known)}")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; give a new or empty directory, as in p2pfl init my-{template}")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder}: is not empty, and nothing is overwritten; give a new directory, as in p2pfl init my-{template}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if template in TEMPLATES:
        for file in (importlib.resources.files("p2pfl.runs") / "templates" / template).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    else:
        _copy_experiment(shipped.folder("experiments") / template, folder)
    if template == "hospital":
        _write_patients(folder / "data")
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _copy_experiment(source: Path, folder: Path) -> None:
    """Copy the files of an experiment, and the graphs and experiments that they name; commands and paths become those
    of the folder.
    """
    for file in source.iterdir():
        if file.suffix in (".toml", ".md", ".py"):
            before = file.read_text("utf-8")
            text = _moved(before, source.name)
            (folder / file.name).write_text(text, "utf-8")
            for other in {*re.findall(r'"\.\./([\w-]+/[\w-]+\.toml)"', before)}:
                _copy_named(source.parent / other, folder / Path(other).parent)
            for name in {*re.findall(r"(?<![\w/])topologies/([\w-]+\.\w+)", text)}:
                (folder / "topologies").mkdir(exist_ok=True)
                (folder / "topologies" / name).write_bytes((shipped.folder("topologies") / name).read_bytes())
        elif file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())


def _moved(text: str, name: str) -> str:
    """The text of a file of an experiment of this name, with commands and paths of a folder of its own."""
    text = re.sub(rf"^ *cd experiments/{name}\b.*\n", "", text, flags=re.MULTILINE)
    for pattern, by in ((f"experiments/{name}/", ""), *_AROUND):
        text = re.sub(pattern, by, text)
    return text


def _copy_named(file: Path, folder: Path) -> None:
    """Copy an experiment file that one of another folder names, with the modules beside it; data are a folder above."""
    folder.mkdir(exist_ok=True)
    for each in (file, *file.parent.glob("*.py")):
        text = _moved(each.read_text("utf-8"), file.parent.name)
        (folder / each.name).write_text(text.replace('.parent / "data"', '.parent.parent / "data"'), "utf-8")


def wanted(folder: Path) -> list[str]:
    """Return the files of data that are not ours and that the experiments of a folder need, relative to it."""
    texts = [file.read_text("utf-8") for pattern in ("*.toml", "*.py") for file in sorted(folder.rglob(pattern))]
    named = re.compile(r'(?:"data/|\.parent / "data" / ")([\w.-]+)"')
    return [f"data/{name}" for name in sorted({name for text in texts for name in named.findall(text)})
            if not (folder / "data" / name).exists()]  # fmt: skip


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
