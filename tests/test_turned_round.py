"""0 and 1 the other way round at one site: said where it is so, and not where hospitals differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pfl.config.experiment import load
from p2pfl.data import csv
from p2pfl.data.csv import CsvTable
from p2pfl.data.dataset import Dataset
from p2pfl.data.far_off import answers, answers_turned, goes_along, turned_round
from p2pfl.federation.federation import build
from p2pfl.runs import describe

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"


def counts(*shares: float, rows: int = 100) -> dict[str, dict[str, int]]:
    """Sites a, b, ... with these shares of 1."""
    return {
        name: {"0": rows - round(p * rows), "1": round(p * rows)} for name, p in zip("abcdef", shares, strict=False)
    }


@pytest.mark.parametrize(
    ("shares", "site"),
    [
        ((0.04, 0.96, 0.03, 0.06), "b"), ((0.96, 0.9, 0.05), "c"), ((0.0, 0.02, 1.0), "c"), ((0.05, 0.95), "b"),
        ((0.2, 0.15, 0.85), "c"),
        # hospitals that differ: all on one side, or not far from a half, or no mirror of the others, or two and two
        ((0.04, 0.3, 0.03), ""), ((0.46, 0.38, 1.0, 0.78), ""), ((0.02, 0.03, 0.6), ""), ((0.01, 0.01, 0.82), ""),
        ((0.05, 0.04, 0.95, 0.96), ""), ((0.3, 0.3, 0.7), ""), ((0.05,), ""), ((0.0, 0.0, 0.0), ""),
    ],
)  # fmt: skip
def test_which_site_is_named(shares: tuple[float, ...], site: str) -> None:
    found = turned_round("column 'x'", counts(*shares))
    assert [line.split("site ")[1][1] for line in found] == [*site]


def test_few_rows_have_no_say_and_other_values_count_alike() -> None:
    assert not turned_round("x", {**counts(0.04, 0.05), "c": {"1": 19}})
    assert turned_round("x", {**counts(0.04, 0.05), "c": {"1": 20}})
    words = {site: {"no": each["0"], "yes": each["1"]} for site, each in counts(0.04, 0.05, 0.95).items()}
    assert turned_round("x", words) == ("x: yes in 95 % of rows at site 'c', and in 4 to 5 % elsewhere: turned round?",)
    assert not turned_round("x", {**words, "d": {"maybe": 30}}), "three values"


def patients(tmp_path: Path, turned: str = "", natural: bool = False) -> Path:
    """Three sites of 60 rows; smoking is rare, and goes with five other columns, with the label and with death.

    `turned`: the column of 0 and 1 that is the other way round at site c. `natural`: nearly all at c do smoke.
    """
    rng = np.random.default_rng(5)
    lines = ["smoker,ill,died,time,v,w,x,y,z,site"]
    for i in range(180):
        site = "abc"[i % 3]
        usual = 0.92 if natural and site == "c" else 0.08
        smoker = int(rng.random() < usual)
        ill, died = (int(rng.random() < (0.5 if smoker else 0.06)) for _ in range(2))
        found = {"smoker": smoker, "ill": ill, "died": died}
        found |= {turned: 1 - found[turned]} if turned and site == "c" else {}
        numbers = [*found.values(), 1 + i, *(round(float(rng.normal() + 2 * smoker), 3) for _ in range(5))]
        lines.append(",".join(map(str, [*numbers, site])))
    place = tmp_path / f"{turned or 'right'}.csv"
    place.write_text("\n".join(lines) + "\n")
    return place


def read(place: Path, kind: str = "classes", **more: Any) -> Dataset:
    outcome: dict[str, Any] = {"label": "ill", "drop": ("time", "died")}
    if kind == "survival":
        outcome = {"kind": "survival", "time": "time", "event": "died", "drop": ("ill",)}
    if "use" in more:
        del outcome["drop"]
    return csv.load(place, CsvTable(**outcome, site="site", standardize="none", **more))


def test_a_column_that_is_turned_round_is_said_and_another_population_is_not(tmp_path: Path) -> None:
    (line,) = [note for note in read(patients(tmp_path, "smoker")).notes if "turned" in note]
    assert line.startswith("column 'smoker': 1 in 83 %") and "at site 'c'" in line
    for place in (patients(tmp_path), patients(tmp_path, natural=True)):
        assert not [note for note in read(place).notes if "turned" in note or "unit" in note]


def test_a_column_that_says_where_another_is_missing_is_not_taken_for_it(tmp_path: Path) -> None:
    more: Any = {"missing": "mean", "missing_indicator": ("smoker",)}
    for place, lines in ((patients(tmp_path, "smoker"), 1), (patients(tmp_path, natural=True), 0)):
        text = place.read_text().splitlines()
        where = text[0].split(",").index("smoker")
        for row in range(1, len(text), 9):  # whose one missing cell tells nothing
            cells = text[row].split(",")
            cells[where] = ""
            text[row] = ",".join(cells)
        place.write_text("\n".join(text) + "\n")
        assert sum("turned" in note for note in read(place, **more).notes) == lines


def test_without_other_columns_another_population_can_not_be_told(tmp_path: Path) -> None:
    found = read(patients(tmp_path, natural=True), use=("smoker", "x"))
    assert [note for note in found.notes if "turned" in note], "a question, since nothing speaks against it"


@pytest.mark.parametrize(("kind", "column"), [("classes", "ill"), ("survival", "died")])
def test_so_are_labels_and_events(tmp_path: Path, kind: str, column: str) -> None:
    lines = answers_turned(read(patients(tmp_path, column), kind))
    assert len(lines) == 1 and f"{column!r}: 1 in" in lines[0] and "at site 'c'" in lines[0]
    assert answers_turned(read(patients(tmp_path), kind)) == ()


def test_files_of_several_sites_are_compared_with_each_other(tmp_path: Path) -> None:
    header, *lines = patients(tmp_path, "ill").read_text().splitlines()
    files = []
    for site in "abc":
        own = [line.rpartition(",")[0] for line in lines if line.endswith(f",{site}")]
        files.append(tmp_path / f"{site}.csv")
        files[-1].write_text("\n".join([header.rpartition(",")[0], *own]) + "\n")
    said: list[str] = []
    describe.describe(files, ["label=ill", "drop=['time','died']"], said.append)
    assert (
        [line for line in said if "turned" in line]
        == [line for line in said if line.startswith("label 'ill': 1 in") and f"site '{files[2]}'" in line]
        != []
    )


def test_correlations_tell_another_population_from_a_slip() -> None:
    rng = np.random.default_rng(0)
    value, here = (rng.random(200) < 0.3).astype(float), np.arange(200) < 60
    others = rng.normal(size=(200, 8)) + value[:, None]
    others[::7, 2] = np.nan
    assert goes_along(value, others, here) and not goes_along(np.where(here, 1 - value, value), others, here)
    assert not goes_along(value, others[:, :3], here), "three columns say little"


@pytest.mark.more
@pytest.mark.skipif(not DATA.exists(), reason="the hospitals' data are no part of the repository")
@pytest.mark.parametrize(("name", "columns", "rare"), [("heart-disease", 4, 0), ("tcga-brca", 39, 89)])
def test_real_hospitals_that_differ_raise_no_alarm_and_slips_do(name: str, columns: int, rare: int) -> None:
    """As they are: none. A rare value of any column turned round at any site: all."""
    made = build(load(ROOT / "experiments" / name / "experiment.toml"))
    assert not [note for note in made.notes if "turned" in note]
    dataset = made.dataset
    assert dataset.moments is not None and dataset.train.site is not None
    x, tried, told = dataset.train.x.astype(float), 0, 0
    two = [f for f, feature in enumerate(dataset.features) if feature in dataset.moments.two]
    assert len(two) == columns - len(answers(dataset))
    for f in two:
        for s, site in enumerate(dataset.sites):
            value = np.where(dataset.train.site == s, 1 - x[:, f], x[:, f])
            shares = {
                other: {str(v): int((value[dataset.train.site == i] == v).sum()) for v in (0, 1)}
                for i, other in enumerate(dataset.sites)
            }
            others = np.delete(x, f, axis=1)
            tried += any(f"site {site!r}" in line for line in turned_round("x", shares))

            def natural(other: str, value: Any = value, others: Any = others) -> bool:
                return goes_along(value, others, dataset.train.site == dataset.sites.index(other))

            told += any(f"site {site!r}" in line for line in turned_round("x", shares, natural))
    assert told == tried == rare
