"""The csv source, by rows: missing cells, the split, small sites, standardising."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pfl.data import Dataset, csv
from p2pfl.errors import ConfigError, DataError


def load(path: Path | str, **wanted: Any) -> Dataset:
    return csv.load(path, csv.CsvTable(**wanted))


def body(n: int = 40, sites: Sequence[str] = ("a", "b"), seed: int = 0) -> list[list[str]]:
    """Rows of age, sex, site, out: numbers (all different), text, sites in turn, labels yes and no."""
    rng = np.random.default_rng(seed)
    return [
        [f"{rng.normal(50, 9):.1f}{i:03d}", "fm"[i % 2], sites[i % len(sites)], ("yes", "no")[(i // 2) % 2]]
        for i in range(n)
    ]


def write(tmp_path: Path, rows: list[list[str]] | bytes, head: str = "age,sex,site,out", end: str = "\n") -> Path:
    path = tmp_path / "t.csv"
    path.write_bytes(rows if isinstance(rows, bytes) else end.join([head, *map(",".join, rows), ""]).encode())
    return path


def both(found: Dataset, column: str) -> list[float]:
    """All values of one column, train before test."""
    index = found.features.index(column)
    return [float(value) for part in (found.train, found.test) for value in part.x[:, index]]


def same(one: Dataset, other: Dataset) -> bool:
    pairs = ((one.train, other.train), (one.test, other.test))
    return one[2:-1] == other[2:-1] and all(np.array_equal(a.x, b.x) and np.array_equal(a.y, b.y) for a, b in pairs)


# ------------------------------------------------------------------------------------------------------- missing cells


def gappy() -> list[list[str]]:
    """Cells missing in rows 0, 1 (age), 2 (sex) and 5 (label), written in different ways."""
    rows = body()
    rows[0][0], rows[1][0], rows[2][1], rows[5][3] = "", " nan ", "N/A", "?"
    return rows


def test_missing_cells_are_refused_by_default_with_counts_and_ways_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, gappy()), label="out", site="site")
    words = str(caught.value)
    assert "'age' (2), 'sex' (1), 'out' (1)" in words
    assert 'missing = "drop_row" or missing = "mean"' in words and "drop = ['age', 'sex']" in words


@pytest.mark.parametrize("cell", ["", "?", "NA", "n/a", "nan", "NaN", "null", "None", "NONE", "  "])
def test_words_for_a_missing_cell(tmp_path: Path, cell: str) -> None:
    rows = body()
    rows[3][0] = cell
    found = load(write(tmp_path, rows), label="out", site="site", missing="drop_row")
    assert len(found.train.y) + len(found.test.y) == 39
    assert found.notes == ("left out 1 rows with missing cells in 'age' (1)",)


def test_drop_row_leaves_out_every_row_with_a_gap(tmp_path: Path) -> None:
    found = load(write(tmp_path, gappy()), label="out", site="site", missing="drop_row")
    assert len(found.train.y) + len(found.test.y) == 36
    assert found.notes == ("left out 4 rows with missing cells in 'age' (2), 'sex' (1), 'out' (1)",)


def parted() -> list[list[str]]:
    """Two sites of ages 0..9 and 100..109; every fifth row is test."""
    rows = []
    for site, start in (("a", 0), ("b", 100)):
        for i in range(10):
            part = "test" if i % 5 == 4 else "train"
            rows.append([str(start + i), "fmm"[i % 3], site, ("yes", "no")[i % 2], part])
    return rows


HEAD = "age,sex,site,out,part"


@pytest.mark.parametrize("site", ["site", None])
def test_mean_is_of_the_train_rows_of_the_own_site(tmp_path: Path, site: str | None) -> None:
    rows = parted()
    rows[0][0] = "?"  # a train row of a
    ages = [float(row[0]) for row in rows[1:] if row[4] == "train" and (site is None or row[2] == "a")]
    expected = float(np.mean(ages))
    arguments: dict[str, Any] = {"label": "out", "site": site, "split": "part", "drop": [] if site else ["site"]}
    found = load(write(tmp_path, rows, HEAD), **arguments, missing="mean", standardize="none")
    assert found.train.x[0, 0] == pytest.approx(expected)
    own = " of the row's own site" if site else ""
    assert found.notes == (f"filled 1 missing cells of 'age' with the mean of the train rows{own}",)


def test_mean_of_text_is_the_most_frequent_and_a_site_without_any_borrows(tmp_path: Path) -> None:
    rows = parted()
    for row in rows[10:]:
        row[0] = ""
    rows[4][1] = ""  # a test row; the train rows of a: f m m f m m f m -> m
    path = write(tmp_path, rows, HEAD)
    found = load(path, label="out", site="site", split="part", missing="mean", standardize="none")
    mean = np.mean([0, 1, 2, 3, 5, 6, 7, 8])
    assert np.allclose(found.train.x[8:, 0], mean) and np.allclose(found.test.x[2:, 0], mean)
    assert found.test.x[0].tolist() == [4, 0, 1]
    assert found.notes == (
        "filled 10 missing cells of 'age' with the mean of the train rows of the row's own site; at 'b', which has "
        "none, of all train rows",
        "filled 1 missing cells of 'sex' with the most frequent value of the train rows of the row's own site",
    )


def test_labels_and_sites_are_never_filled(tmp_path: Path) -> None:
    rows = gappy()
    rows[6][2] = ""
    found = load(write(tmp_path, rows), label="out", site="site", missing="mean")
    assert len(found.train.y) + len(found.test.y) == 38
    assert found.notes[0] == (
        "left out 2 rows with missing cells in 'out' (1), 'site' (1) (a label or site is never filled)"
    )
    assert len(found.notes) == 3


def test_columns_without_anything_to_fill_with(tmp_path: Path) -> None:
    rows = parted()
    for row in rows:
        row[0] = "" if row[4] == "train" else row[0]
    with pytest.raises(DataError, match=r"'age' is missing in all train rows.*drop = \[\"age\"\]"):
        load(write(tmp_path, rows, HEAD), label="out", split="part", missing="mean")
    for missing in ("error", "drop_row", "mean"):
        with pytest.raises(DataError, match=r"'sex' is missing in all 40 rows; use drop = \[\"sex\"\]"):
            emptied = [[row[0], "NA", *row[2:]] for row in body()]
            load(write(tmp_path, emptied), label="out", missing=missing)


# ------------------------------------------------------------------------------------------ split, sites, standardising


def test_a_given_split_leaves_out_what_belongs_to_neither_before_gaps_are_judged(tmp_path: Path) -> None:
    rows = parted()
    rows[1][4], rows[1][0], rows[2][4], rows[3][4], rows[5][4] = "", "", "VAL", " Validation ", "TRAIN"
    path = write(tmp_path, rows, HEAD)
    found = load(path, label="out", site="site", split="part", min_rows=5, standardize="none")
    assert found.train.x[:5, 0].tolist() == [0, 5, 6, 7, 8] and found.test.x[:, 0].tolist() == [4, 9, 104, 109]
    assert found.notes == (
        "left out 1 rows whose 'part' is empty: they belong to neither part",
        "left out 2 rows whose 'part' says validation",
    )
    rows[6][4] = "tets"
    with pytest.raises(DataError, match="line 8: part is 'tets'; a split column says train or test"):
        load(write(tmp_path, rows, HEAD), label="out", split="part")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": "train", "b": "train"}, "no test rows among 20"),
        ({"a": "test", "b": "test"}, "no train rows among 20"),
        ({"b": "test"}, "no train rows at site 'b'"),
    ],
)
def test_parts_that_must_not_be_empty(tmp_path: Path, change: dict[str, str], words: str) -> None:
    rows = [[*row[:4], change.get(row[2], row[4])] for row in parted()]
    with pytest.raises(DataError, match=words):
        load(write(tmp_path, rows, HEAD), label="out", site="site", split="part")


def test_a_site_without_test_rows_is_said(tmp_path: Path) -> None:
    rows = [[*row[:4], "train" if row[2] == "b" else row[4]] for row in parted()]
    found = load(write(tmp_path, rows, HEAD), label="out", site="site", split="part")
    assert found.notes[1:] == ("site 'b' has no test rows",)


@pytest.mark.parametrize("seed", range(4))
def test_the_drawn_split_is_stratified_seeded_and_loses_nothing(tmp_path: Path, seed: int) -> None:
    path = write(tmp_path, body(200, sites=("a", "b", "b", "b", "c"), seed=seed))
    found = load(path, label="out", site="site", test_fraction=0.25, seed=seed, standardize="none")
    assert np.bincount(found.test.site).tolist() == [10, 30, 10]  # type: ignore[arg-type]
    assert len(set(both(found, "age"))) == 200 and len(found.test.y) == 50
    assert same(found, load(path, label="out", site="site", test_fraction=0.25, seed=seed, standardize="none"))
    other = load(path, label="out", site="site", test_fraction=0.25, seed=seed + 1, standardize="none")
    assert not same(found, other)


def test_small_sites_are_refused_by_name_or_left_out(tmp_path: Path) -> None:
    rows = body(40) + body(9, sites=("tiny",), seed=1)
    with pytest.raises(DataError, match=r"fewer than min_rows=10 rows: 'tiny' \(9 rows\).*small_sites = \"drop\""):
        load(write(tmp_path, rows), label="out", site="site")
    found = load(write(tmp_path, rows), label="out", site="site", small_sites="drop")
    assert found.sites == ("a", "b") and found.notes == ("left out sites with fewer than 10 rows: 'tiny' (9 rows)",)
    assert load(write(tmp_path, rows), label="out", site="site", min_rows=9).sites == ("a", "b", "tiny")
    # Counted after all dropping: a gap makes a site of ten a site of nine.
    ten = body(40) + body(10, sites=("ten",), seed=1)
    ten[44][0] = ""
    with pytest.raises(DataError, match=r"'ten' \(9 rows\)"):
        load(write(tmp_path, ten), label="out", site="site", missing="drop_row")
    with pytest.raises(DataError, match="every site has fewer than min_rows=99"):
        load(write(tmp_path, rows), label="out", site="site", min_rows=99, small_sites="drop")


@pytest.mark.parametrize("site", ["site", None])
@pytest.mark.parametrize("standardize", ["node", "pooled", "none"])
def test_standardising_uses_the_train_rows_of_its_group(tmp_path: Path, standardize: str, site: str | None) -> None:
    rows = [[str(float(row[0]) + 500 * (row[2] == "b")), *row[1:]] for row in body()]
    arguments: dict[str, Any] = {"label": "out", "site": site, "drop": [] if site else ["site"]}
    raw = load(write(tmp_path, rows), **arguments, standardize="none")
    found = load(write(tmp_path, rows), **arguments, standardize=standardize)
    per_site = site is not None and standardize == "node"
    for index in range(2 if per_site else 1):
        train, test = (
            np.asarray(part.site) == index if per_site else np.ones(len(part.y), bool) for part in (raw.train, raw.test)
        )
        mean, sd = raw.train.x[train].mean(0, np.float64), raw.train.x[train].astype(np.float64).std(0)
        # Among the rows of one site the sex is constant here: 0 after the mean is taken off, divided by 1.
        mean, sd = (0.0, 1.0) if standardize == "none" else (mean, np.where(sd == 0, 1, sd))
        np.testing.assert_allclose(found.train.x[train], (raw.train.x[train] - mean) / sd, atol=1e-4)
        np.testing.assert_allclose(found.test.x[test], (raw.test.x[test] - mean) / sd, atol=1e-4)
