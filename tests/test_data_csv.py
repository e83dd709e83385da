"""The csv source, by columns: the files it reads, labels, coding, and the words of every refusal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pfl.data import Column, Dataset, csv
from p2pfl.errors import ConfigError, DataError

HEART = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "heart_disease_4sites.csv"
HEART_ARGUMENTS: dict[str, Any] = {
    "label": "num", "label_above": 0, "site": "site", "split": "flamby", "drop": ["slope", "ca", "thal"]
}  # fmt: skip


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


# ------------------------------------------------------------------------------------------------------ the real file


def heart() -> Path:
    if not HEART.is_file():
        pytest.skip("heart_disease_4sites.csv is not in ../shared/data; it is never part of the repository")
    return HEART


def test_heart_disease_is_the_split_of_flamby() -> None:
    found = load(heart(), **HEART_ARGUMENTS)
    assert found.sites == ("cleveland", "hungarian", "switzerland", "va")
    assert np.bincount(found.train.site).tolist() == [199, 172, 30, 85]  # type: ignore[arg-type]
    assert np.bincount(found.test.site).tolist() == [104, 89, 16, 45]  # type: ignore[arg-type]
    assert found.train.x.shape[1] == len(found.features) == 10 and found.classes == ("<=0", ">0")
    assert found.notes == (
        "left out 180 rows whose 'flamby' is empty: they belong to neither part",
        "column 'chol': 0 in all rows at site 'switzerland', 247.1 (sd 68.01) elsewhere: missing?",
    )
    for site in range(4):
        own = found.train.x[found.train.site == site]
        np.testing.assert_allclose(own.mean(0), 0, atol=1e-5)
        assert np.all(np.isclose(own.std(0), 1, atol=1e-5) | (np.ptp(own, axis=0) == 0))


def test_heart_disease_without_the_split_has_gaps_that_are_named_or_filled() -> None:
    arguments = {**HEART_ARGUMENTS, "split": None, "drop": ["slope", "ca", "thal", "flamby"]}
    with pytest.raises(DataError, match=r"'trestbps' \(\d+\).*'chol' \(\d+\)"):
        load(heart(), **arguments)
    filled = load(heart(), **arguments, missing="mean")
    assert len(filled.train.y) + len(filled.test.y) == 920 and len(filled.notes) >= 5
    assert len(load(heart(), **arguments, missing="drop_row").train.y) < len(filled.train.y)


# --------------------------------------------------------------------------------------------- files as they are found


def test_delimiters_quotes_bom_line_ends_and_blank_lines(tmp_path: Path) -> None:
    plain = load(write(tmp_path, body()), label="out", site="site")
    text = (tmp_path / "t.csv").read_text()
    quoted = "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in text.splitlines())
    for variant in (
        text.replace(",", ";"), text.replace(",", "\t"), text.replace(",", ", "), "\ufeff" + text, quoted,
        text.replace("\n", "\r\n"), text.replace("\n", "\r"), text.rstrip("\n"), text + "\n\n  \n", "\n" + text,
        text.replace("\n", "\n\n"), text.replace(",", ' ; '),
    ):  # fmt: skip
        assert same(plain, load(write(tmp_path, variant.encode()), label="out", site="site")), variant[:60]
    marked = load(write(tmp_path, (text + ",,,\n,,,\n").encode()), label="out", site="site")
    assert marked.notes == ("left out 2 rows of empty cells",) and marked.flow.left_out == (("an empty row", {"": 2}),)
    assert same(plain, marked._replace(notes=(), flow=plain.flow))


def test_quoted_delimiters_and_line_breaks_and_line_numbers_after_them(tmp_path: Path) -> None:
    rows = body()
    rows[3][1] = '"x,\ny"'
    found = load(write(tmp_path, rows), label="out", site="site")
    assert "sex=x,\ny" in found.features
    rows[5][0] = "inf"  # row 5 stands in line 7 of the file, and one line further because of the broken cell
    with pytest.raises(DataError, match="line 8: age is 'inf'"):
        load(write(tmp_path, rows), label="out", site="site")


LINES = b"age,sex,site,out\n1,f,a,yes\n2,m,b,no\n"


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        (b"", {}, "the file is empty"),
        (b"\n\n", {}, "the file is empty"),
        (b"age,out\n", {"site": None}, "a header only"),
        (b"age,age,out\n1,2,a\n", {"site": None}, "'age' stands in the header 2 times"),
        (b",age,out\n0,2,a\n", {"site": None}, r'column 1 has no name.*drop = \[""\]'),
        (LINES + b"3,f,a\n", {}, r"line 4 has 3 cells, the header 4 columns.*quote"),
        (LINES + b'3,"f,a,no\n4,m,a,no\n', {}, "the row from line 4 can't be read.*quotes"),
        (b"age,site,out\n1,\x81,b\n", {}, "not utf-8-sig or cp1252.*encoding.*CSV UTF-8"),
        ("age,site,out\n1,ä,b\n".encode("latin-1"), {"encoding": "utf-8"}, "not utf-8 .*encoding"),
        ("age,site,out\n1,ä,b\n".encode("utf-16-le"), {}, "holds bytes of 0.*utf-16"),
        (LINES, {"encoding": "utf8x"}, "encoding='utf8x': no such encoding"),
        (LINES, {"sheet": "A"}, "sheet='A': only .xlsx"),
        (LINES, {"label": "ouT"}, r"label='ouT' is not a column; did you mean 'out'"),
        (LINES, {"site": "sit"}, r"site='sit' is not a column; did you mean 'site'"),
        (LINES, {"split": "part"}, r"split='part' is not a column; .*age, out, sex, site"),
        (LINES, {"drop": ["agee"]}, r"drop='agee' is not a column; did you mean 'age'"),
        (LINES, {"categories": {"sx": ["f"]}}, r"categories='sx' is not a column; did you mean 'sex'"),
        (LINES, {"drop": ["out"]}, "'out' is both label and drop"),
        (LINES, {"site": "out"}, "'out' is both label and site"),
        (LINES, {"drop": ["age", "sex"]}, "no column left to learn from"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: bytes, arguments: dict[str, Any], words: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=words) as caught:
        load(path, **{"label": "out", "site": "site", **arguments})
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named_with_its_resolved_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"none.csv: no such file \\({tmp_path.resolve() / 'none.csv'}\\)"):
        load("none.csv", label="out")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"missing": "drop"}, "missing='drop': did you mean 'drop_row'"),
        ({"small_sites": "keep"}, "small_sites='keep'"),
        ({"standardize": "site"}, "standardize='site'"),
        ({"test_fraction": 0.0}, "test_fraction=0"),
        ({"seed": -1}, "seed=-1"),
        ({"label_above": 0, "classes": ["a", "b"]}, "give one, not both"),
        ({"classes": ["yes", "yes"]}, "must be different"),
    ],
)
def test_arguments_that_are_refused(tmp_path: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(write(tmp_path, body()), label="out", **arguments)


# --------------------------------------------------------------------------------------------------- labels and columns


def test_text_is_coded_and_numbers_are_kept(tmp_path: Path) -> None:
    rows = body()
    found = load(write(tmp_path, rows), label="out", site="site", standardize="none")
    assert found.features == ("age", "sex=f", "sex=m") and found.classes == ("no", "yes") and found.sites == ("a", "b")
    assert sorted(both(found, "age")) == sorted(float(np.float32(float(row[0]))) for row in rows)
    number = Column("age", "number", missing="error", standardize="none")
    assert found.columns == (number, Column("sex", "category", ("f", "m"), coding="one_hot"))
    assert both(found, "sex=f") == [1 - value for value in both(found, "sex=m")] and sum(both(found, "sex=f")) == 20
    # Rows keep together: age is different in every row and finds its sex, site and label again.
    by_age = {np.float32(float(row[0])): row[1:] for row in rows}
    assert found.train.site is not None
    for x, y, site in zip(found.train.x, found.train.y, found.train.site, strict=True):
        assert by_age[x[0]] == ["f" if x[1] else "m", found.sites[site], found.classes[y]]


def test_boolean_words_are_text_and_categories_fix_values_and_order(tmp_path: Path) -> None:
    rows = [[row[0], ("True", "false")[i % 2], row[2], row[3]] for i, row in enumerate(body())]
    assert load(write(tmp_path, rows), label="out", drop=("site",)).features == ("age", "sex=false", "sex=true")
    fixed = {"sex": ["false", "True", "unknown"]}
    found = load(write(tmp_path, rows), label="out", drop=["site"], categories=fixed, standardize="none")
    assert found.features == ("age", "sex=false", "sex=True", "sex=unknown") and sum(both(found, "sex=unknown")) == 0
    with pytest.raises(DataError, match=r"line 3: sex is 'false', not among categories\['sex'\]; .*Valid: True"):
        load(write(tmp_path, rows), label="out", drop=["site"], categories={"sex": ["True"]})
    # A number can be a category too, however it is written.
    coded = [[row[0], ("1.0", "2")[i % 2], row[2], row[3]] for i, row in enumerate(body())]
    path = write(tmp_path, coded)
    found = load(path, label="out", drop=["site"], categories={"sex": [1, 2, 3]}, standardize="none")
    assert found.features[1:] == ("sex=1", "sex=2", "sex=3") and sum(both(found, "sex=1")) == 20


@pytest.mark.parametrize(
    ("values", "arguments", "classes", "coded"),
    [
        (["b", "a", "c", "a"], {}, ("a", "b", "c"), [1, 0, 2, 0]),
        (["10", "9", "9.0", "10"], {}, ("9", "10"), [1, 0, 0, 1]),
        (["0", "1", "2.5", "-3"], {"label_above": 0}, ("<=0", ">0"), [0, 1, 1, 0]),
        (["b", "a", "a", "b"], {"classes": ["b", "x", "a"]}, ("b", "x", "a"), [0, 2, 2, 0]),
        (["1.0", "0", "0", "1"], {"classes": [1, 0]}, ("1", "0"), [0, 1, 1, 0]),
    ],
)
def test_labels(
    tmp_path: Path, values: list[str], arguments: dict[str, Any], classes: tuple[str, ...], coded: list[int]
) -> None:
    rows = [[str(i), value] for i, value in enumerate(values * 10)]
    found = load(write(tmp_path, rows, "n,out"), label="out", use=["n"], standardize="none", **arguments)
    assert found.classes == classes
    for part in (found.train, found.test):
        assert [coded[int(n) % 4] for n in part.x[:, 0]] == part.y.tolist()


@pytest.mark.parametrize(
    ("values", "arguments", "words"),
    [
        (["a"] * 20, {}, "single class 'a' in all 20 rows"),
        (["1", "2"] * 10, {"label_above": 5}, "single class '<=5'.*another label_above"),
        (["1", "b"] * 10, {"label_above": 0}, "line 3: out is 'b'; label_above=0 needs numbers"),
        (["a", "b"] * 10, {"classes": ["a", "c"]}, "line 3: out is 'b', not among classes; .*Valid: a, c"),
        ([f"{i / 7}" for i in range(60)], {}, "'out' has 60 distinct values, more than 50.*label_above"),
    ],
)
def test_labels_that_are_refused(tmp_path: Path, values: list[str], arguments: dict[str, Any], words: str) -> None:
    path = write(tmp_path, [[str(i), value] for i, value in enumerate(values)], "n,out")
    with pytest.raises(DataError, match=words):
        load(path, label="out", use=["n"], **arguments)


def test_a_hospital_that_has_one_of_the_given_classes_is_told_so(tmp_path: Path) -> None:
    path = write(tmp_path, [[str(i), "a"] for i in range(20)], "n,out")
    assert load(path, label="out", use=["n"], classes=["a", "b"]).notes == ("only the class 'a' of a, b occurs",)


@pytest.mark.parametrize("cell", ["inf", "-Infinity", "1e999", "1e39"])
def test_infinite_numbers_are_refused(tmp_path: Path, cell: str) -> None:
    rows = body()
    rows[4][0] = cell
    with pytest.raises(DataError, match=f"line 6: age is '{cell}'; numbers must be finite"):
        load(write(tmp_path, rows), label="out", site="site")
