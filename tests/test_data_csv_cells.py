"""The csv source, by cells: files of every make, and what people and programs write into a cell."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from p2pfl.data import Dataset, csv
from p2pfl.data.derive import FORMS, Derived
from p2pfl.errors import ConfigError, DataError

N = 30


def load(path: Path | str, **wanted: Any) -> Dataset:
    wanted = {"label": "out", "standardize": "none", **wanted}
    return csv.load(path, csv.CsvTable(**wanted))


def write(tmp_path: Path, columns: dict[str, Sequence[object]], delimiter: str = ";", encoding: str = "utf-8") -> Path:
    """A file of N rows: each column repeats its cells; the label `out` is a and b in turn, and `x` a number."""
    columns = {"x": [f"{i / 7:.4f}" for i in range(N)], **columns, "out": ["a", "b"]}
    rows = [[str(cells[i % len(cells)]) for cells in columns.values()] for i in range(N)]
    path = tmp_path / "t.csv"
    path.write_bytes("".join(delimiter.join(row) + "\n" for row in [list(columns), *rows]).encode(encoding))
    return path


def column(found: Dataset, name: str) -> list[float]:
    """The values of one column by x, that is in the order of the file."""
    x = np.concatenate([found.train.x, found.test.x])
    x = x[np.argsort(x[:, found.features.index("x")])]
    return [round(float(value), 4) for value in x[:, found.features.index(name)]]


def said(found: Dataset) -> str:
    return " | ".join(found.notes)


# --------------------------------------------------------------------------------------------------------------- files


def test_sheets_and_parquet_are_the_text_file(tmp_path: Path) -> None:
    days = [datetime.datetime(2020, 1, 1 + i % 28) for i in range(N)]
    frame = pd.DataFrame(
        {"x": [i / 7 for i in range(N)], "dose": [1, 2, None] * 10, "smoker": [True, False, True] * 10, "day": days,
         "out": ["a", "b"] * 15},
    )  # fmt: skip
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    with pd.ExcelWriter(tmp_path / "t.xlsx") as book:
        pd.DataFrame({"nothing": [1]}).to_excel(book, sheet_name="notes", index=False)
        frame.to_excel(book, sheet_name="rows", index=False)
    derive = {"days": Derived(years_from="day", to="day")}
    arguments: dict[str, Any] = {"missing": "mean", "derive": derive}
    text, parquet = (load(tmp_path / name, **arguments) for name in ("t.csv", "t.parquet"))
    sheet = load(tmp_path / "t.xlsx", **arguments, sheet="rows")
    assert text.features == ("x", "dose", "smoker=false", "smoker=true", "days")
    for other in (parquet, sheet):
        assert other._replace(recipe=text.recipe)[2:-1] == text[2:-1]
        np.testing.assert_allclose(other.train.x, text.train.x, rtol=1e-6)
        np.testing.assert_array_equal(other.test.y, text.test.y)
    with pytest.raises(DataError, match="label='out' is not a column"):
        load(tmp_path / "t.xlsx")  # the first sheet
    with pytest.raises(DataError, match=r"sheet='row': no such sheet; did you mean 'rows'"):
        load(tmp_path / "t.xlsx", sheet="row")
    frame.loc[4, "dose"] = float("inf")
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    with pytest.raises(DataError, match="line 6: dose is 'inf'"):
        load(tmp_path / "t.parquet", **arguments)
    for name in ("t.xlsx", "t.parquet"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 no such thing")
        with pytest.raises(DataError, match="can't be read as"):
            load(tmp_path / name)
    (tmp_path / "t.xls").touch()
    with pytest.raises(DataError, match=r"a \.xls file is not read; save it as \.xlsx"):
        load(tmp_path / "t.xls")


def test_a_list_in_a_cell_of_parquet_is_named(tmp_path: Path) -> None:
    pd.DataFrame({"x": [[1, 2], [3]], "out": ["a", "b"]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="line 2: x holds a list"):
        load(tmp_path / "t.parquet")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_text_in_the_encodings_of_hospitals(tmp_path: Path, encoding: str) -> None:
    found = load(write(tmp_path, {"befund": ["größer", "kleiner", "größer"]}, encoding=encoding))
    assert found.features == ("x", "befund=größer", "befund=kleiner") and sum(column(found, "befund=größer")) == 20
    assert ("line 2" in said(found) and "größer" in said(found)) is (encoding == "cp1252")
    if encoding == "cp1252":
        assert not load(tmp_path / "t.csv", encoding="latin-1").notes


def test_the_delimiter_is_that_of_the_header_or_as_told(tmp_path: Path) -> None:
    path = write(tmp_path, {'"size, in mm, at night"': ["1", "2"]}, ";")
    assert load(path).features == ("x", "size, in mm, at night")
    path.write_text("sep=|\n" + path.read_text().replace(";", "|"))
    assert load(path).features == ("x", "size, in mm, at night")
    path = write(tmp_path, {"a,b": ["1", "2"]}, "^")
    assert load(path, delimiter="^").features == ("x", "a,b")
    with pytest.raises(ConfigError, match=r"delimiter='\^\^': must be one character"):
        load(path, delimiter="^^")


def test_the_line_of_a_fault_is_that_of_the_file_after_quoted_line_breaks(tmp_path: Path) -> None:
    text = 'x;note;out\n\n1;"two\r\nlines";a\n2;"and\n\nthree";b\n'
    (tmp_path / "t.csv").write_bytes((text + "x;y\n").encode())
    with pytest.raises(DataError, match="line 8 has 2 cells, the header 3 columns"):
        load(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes((text + "3;y;a;b;c;d\n").encode())
    with pytest.raises(DataError, match="line 8 has 6 cells, the header 3 columns"):
        load(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes((text + '3;"y;a\n').encode())
    with pytest.raises(DataError, match=r"the row from line 8 can't be read.*quotes"):
        load(tmp_path / "t.csv")


# ------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("cells", "other", "arguments", "numbers"),
    [
        (["1,4", "2", "3,25"], [], {}, [1.4, 2, 3.25]),
        (["0,123", "2,345"], [], {}, [0.123, 2.345]),
        (["1.234,5", "2.345"], [], {}, [1234.5, 2345]),
        (["1,234.5", "2,345"], [], {}, [1234.5, 2345]),
        (["1,234,567", "12"], [], {"decimal": "."}, [1234567, 12]),
        (["1.234.567", "12"], [], {}, [1234567, 12]),
        (["1 234", "12"], [], {}, [1234, 12]),
        (["1'234,5", "12"], [], {}, [1234.5, 12]),
        (["1.234", "12"], [], {}, [1.234, 12]),
        (["1,234", "12"], [], {"decimal": ","}, [1.234, 12]),
        (["1,234", "12"], [], {"decimal": "."}, [1234, 12]),
        (["1,234", "12"], ["0,5"], {"use": ["x", "n"]}, "or"),  # what is not used says nothing
        (["1,234", "12"], ["0,5"], {}, "or"),  # x has points, the other column commas
        (["1,234", "12"], [], {}, [1234, 12]),  # x has points
        (["1.234", "12"], ["0,5"], {}, "or"),
        (["1.5", "1,5"], [], {}, "a decimal point and a decimal comma: line 2 holds '1.5', line 3 holds '1,5'"),
        (["1,5", "2"], [], {"decimal": "."}, "line 2: n is '1,5', which is no number with decimal = '.'"),
    ],
)
def test_numbers_as_they_are_written(
    tmp_path: Path, cells: list[str], other: list[str], arguments: dict[str, Any], numbers: list[float] | str
) -> None:
    path = write(tmp_path, {"n": cells, **({"m": other} if other else {})})
    if arguments.get("use"):
        numbers = [1234, 12]
    if arguments.get("decimal") == ",":
        path.write_text("\n".join(line.replace(".", ",", 1) for line in path.read_text().splitlines()))
    if isinstance(numbers, str):
        with pytest.raises(DataError, match=f"column 'n'.*{numbers}|{numbers}"):
            load(path, **arguments)
        return
    found = load(path, **arguments)
    assert "n" in found.features  # never one column for each value
    assert column(found, "n")[: len(cells)] == pytest.approx(numbers, rel=1e-6)
    assert ("'n' (line 2: " in said(found)) == (cells != ["1.234", "12"])


def test_few_numbers_with_a_decimal_comma_are_no_categories_and_the_model_sees_them(tmp_path: Path) -> None:
    """The report: `;`, "1,4", fewer than 50 distinct values became one-hot."""
    found = load(write(tmp_path, {"crp": ["1,4", "0,9", "2,2"]}))
    assert found.features == ("x", "crp") and [each.kind for each in found.columns] == ["number", "number"]
    assert found.notes == ("numbers with a decimal comma: 'crp' (line 2: '1,4' is 1.4)",)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (
            ["1", "2", "4O"],
            r"line 4: c is '4O', and 20 of 30 cells of this column are numbers.*missing_values = \[\"4O",
        ),
        (["1", "2", "<0.5"], "line 4: c is '<0.5'"),
        (["1", "#N/A", "2"], "line 3: c is '#N/A'"),
        (["Male", "male", "f"], r"'Male' \(line 2\) and 'male' \(line 3\), which differ in case only.*categories"),
        (["2020-01-31", "2021-05-06"], "line 2 holds '2020-01-31', a date.*derive"),
        (["31.01.2020", "06.05.2021"], "line 2 holds '31.01.2020', a date"),
        (["1/31/20 12:30"], "a date"),
        (["12:30:00", "08:15:30"], "line 2 holds '12:30:00', a date or time"),
        ([f"v{i % 8}{i % 7}" for i in range(N)], "'c' looks like an identifier: it is text, and another one in each"),
        (range(1, N + 1), "'c' looks like an identifier: it numbers the rows from 1 to 30.*use"),
        (range(N - 1, -1, -1), "'c' looks like an identifier"),
    ],
)
def test_columns_that_nobody_can_mean(tmp_path: Path, cells: Sequence[object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load(write(tmp_path, {"c": cells}))


@pytest.mark.parametrize("name", ["id", "Patient_ID", "rownames", "MRN", "Unnamed: 0", "case no"])
def test_identifiers_are_refused_by_their_name_unless_used_by_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, {name: [1000 + 3 * (i // 2) for i in range(N)]})
    with pytest.raises(DataError, match=f"'{name}' looks like an identifier: it is called so, and has 15 values in 30"):
        load(path)
    assert load(path, use=["x", name]).features == ("x", name) and load(path, drop=[name]).features == ("x",)
    few = write(tmp_path, {name: [1, 2, 3]})
    assert load(few).features == ("x", name)
    path = write(tmp_path, {"count": [1000 + 3 * i for i in range(N)]})
    assert said(load(path)) == "column 'count' has another whole number in each row; drop it if it is an identifier"


def test_use_is_what_is_learned_from_in_its_order_and_nothing_else_is_judged(tmp_path: Path) -> None:
    path = write(tmp_path, {"id": range(N), "day": ["2020-01-01"], "b": ["1", "4"], "gap": ["", "1"], "a": ["3", "5"]})
    assert load(path, use=["b", "x", "a"]).features == ("b", "x", "a")
    with pytest.raises(DataError, match=r"use='c' is not a column; .*"):
        load(path, use=["c"])
    with pytest.raises(ConfigError, match=r"use=\['a'\] and drop=\['b'\]"):
        load(path, use=["a"], drop=["b"])


# ---------------------------------------------------------------------------------------------------- classes, booleans


@pytest.mark.parametrize(
    ("cells", "arguments", "classes"),
    [
        (["TRUE", "false", "True"], {}, ("false", "true")),
        (["TRUE", "false", "True"], {"classes": ["TRUE", "FALSE"]}, ("TRUE", "FALSE")),
        (["Yes", "no", "yes"], {"classes": ["no", "yes"]}, ("no", "yes")),
        (["1.0", "2", "1"], {}, ("1", "2")),
        (["1,0", "2", "1"], {}, ("1", "2")),
        (["1,0", "2", "1"], {"classes": ["2", "1"]}, ("2", "1")),
        (["none", "mild", "none"], {"classes": ["none", "mild"]}, ("none", "mild")),
    ],
)
def test_one_class_is_one_however_it_is_written(
    tmp_path: Path, cells: list[str], arguments: dict[str, Any], classes: tuple[str, ...]
) -> None:
    path = write(tmp_path, {"y": cells})
    found = load(path, label="y", drop=["out"], **arguments)
    assert found.classes == classes
    assert sorted(np.bincount(np.concatenate([found.train.y, found.test.y]))) == [10, 20]


def test_a_label_in_two_spellings_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, {"y": ["Yes", "no", "yes"]})
    with pytest.raises(
        DataError, match=r"'y' holds 'Yes' \(line 2\) and 'yes' \(line 4\).*list the labels with classes"
    ):
        load(path, label="y", drop=["out"])


def test_codes_are_categories_however_they_are_written_and_names_stay_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, {"g": ["1,0", "2", "1"], "titre": ["1:20", "1:40"], "ward": ["1,234", "2.345"]})
    found = load(path, categories={"g": ["1", "2"]}, site="ward")
    assert found.features == ("x", "g=1", "g=2", "titre=1:20", "titre=1:40") and sum(column(found, "g=1")) == 20
    assert found.sites == ("1,234", "2.345")
    path = write(tmp_path, {"ward": ["North", "north"]})
    with pytest.raises(DataError, match=r"'North' \(line 2\) and 'north' \(line 3\), which differ in case only"):
        load(path, site="ward")


def test_an_event_may_be_true_or_false(tmp_path: Path) -> None:
    path = write(tmp_path, {"t": ["3", "4,5"], "dead": ["TRUE", "false", "False"]})
    found = load(path, label=None, kind="survival", time="t", event="dead", drop=["out"])
    assert sum(float(part.y[:, 1].sum()) for part in (found.train, found.test)) == 10


# -------------------------------------------------------------------------------------------- missing, does not apply


def test_codes_of_what_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path, {"n": ["1", "-9", ".", "3"], "m": ["-9", "5"]})
    found = load(path, missing="mean", missing_values=["-9.0", "."], missing_indicator=["n"])
    assert found.features == ("x", "n", "n=missing", "m")
    assert column(found, "n=missing")[:4] == [0, 1, 1, 0] and 1 <= column(found, "n")[1] <= 3
    assert set(column(found, "m")) == {5}
    found = load(path, missing="mean", missing_values={"n": ["-9", "."]}, missing_indicator=True)
    assert found.features == ("x", "x=missing", "n", "n=missing", "m", "m=missing")
    assert column(found, "m")[:2] == [-9, 5] and set(column(found, "m=missing")) == {0}
    with pytest.raises(DataError, match="missing_values='k' is not a column that is used"):
        load(path, missing_values={"k": ["."]})
    with pytest.raises(DataError, match="missing_indicator='k' is not a column to learn from"):
        load(path, missing="mean", missing_values=["."], missing_indicator=["k"])
    with pytest.raises(ConfigError, match="missing_indicator: says where a cell was filled in"):
        load(path, missing="drop_row", missing_indicator=True)


def test_what_does_not_apply_is_not_missing(tmp_path: Path) -> None:
    path = write(tmp_path, {"births": ["2", "n.a.", "4"], "pain": ["none", "typical", "NA"], "dose": ["1", "2"]})
    outside = {"births": ["n.a."], "pain": ["NA"]}
    found = load(path, missing="error", not_applicable=outside, categories={"pain": ["none", "typical"]})
    assert found.features[1:] == (
        "births", "births=does not apply", "pain=none", "pain=typical", "pain=does not apply", "dose",
    )  # fmt: skip
    assert column(found, "births=does not apply")[:3] == [0, 1, 0] and column(found, "pain=does not apply")[:3] == [
        0,
        0,
        1,
    ]
    assert 2 < column(found, "births")[1] < 4 and not found.notes
    # "none" is a value where the values are listed, and missing where nobody says so.
    with pytest.raises(DataError, match=r"missing cells in 'pain' \(20\)"):
        load(path, not_applicable={"births": ["n.a."]})


# -------------------------------------------------------------------------------------------------------------- coding


def test_reference_coding_is_identifiable(tmp_path: Path) -> None:
    path = write(tmp_path, {"g": ["a", "b", "c"], "s": ["f", "m"]})
    one_hot, treatment = (load(path, coding=coding) for coding in ("one_hot", "treatment"))
    assert treatment.features == ("x", "g=b", "g=c", "s=m") and len(one_hot.features) == 6
    for found, rank in ((one_hot, 5), (treatment, 5)):  # with a constant: x, 2 of g, 1 of s and 1
        design = np.column_stack([found.train.x, np.ones(len(found.train.x))])
        assert np.linalg.matrix_rank(design) == rank
    assert treatment.columns[1].coding == "treatment" and treatment.columns[1].categories == ("a", "b", "c")


# ----------------------------------------------------------------------------------------------- names, derived columns


def cells_of(tmp_path: Path, columns: dict[str, Sequence[object]], derived: Derived, **more: Any) -> list[float]:
    """The first cells of the column `new`, which is derived."""
    used = {"use": ["x", "new"], "missing": "mean", **more}
    return column(load(write(tmp_path, columns), derive={"new": derived}, **used), "new")[:3]


@pytest.mark.parametrize(
    ("columns", "derived", "expected"),
    [
        ({"h": ["180", "1,5", "-2"]}, Derived(of="h", scale=0.1, offset=1.0), [19, 1.15, 0.8]),
        ({"a": ["1", "2", "3"]}, Derived(of="a", map={"1": "10", "2": "20", "3": "30"}), [10, 20, 30]),
        ({"a": ["u", "2", "3"]}, Derived(of="a", map={"u": "0"}, others="1"), [0, 1, 1]),
        # 2020 has 366 days; the difference of two dates is that of Python's datetime.
        ({"a": ["2020-01-01"], "b": ["2021-01-01", "02.01.2020"], "c": ["2020-01-31"]}, Derived(days_from="a", to="b"),
         [366, 1, 366]),
        ({"a": ["2020-01-01"], "b": ["2021-01-01", "", ""], "c": ["2020-01-31"]},
         Derived(days_from="a", to="b", or_to="c"), [366, 30, 30]),
        ({"a": ["1950-06-15"], "b": ["2020-06-15"]}, Derived(years_from="a", to="b"), [70.0028] * 3),
        ({"a": ["1", "2", "9"], "b": ["dead", "alive"]}, Derived(any_of={"a": ["1.0", "9"], "b": ["dead"]}), [1, 0, 1]),
        ({"a": ["2020-01-01", "", "?"]}, Derived(given="a"), [1, 0, 0]),
        ({"a": ["1", "", ""], "b": ["5", "6", "7"]}, Derived(first_of=["a", "b"]), [1, 6, 7]),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_derived_numbers(
    tmp_path: Path, columns: dict[str, Sequence[object]], derived: Derived, expected: list[float]
) -> None:
    assert cells_of(tmp_path, columns, derived) == pytest.approx(expected, abs=1e-4)


def test_any_of_is_missing_where_it_can_not_be_known(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": ["1", "", "0"], "b": ["0", "0", "0"]})
    derive = {"new": Derived(any_of={"a": ("1",), "b": ("1",)})}
    found = load(path, derive=derive, use=["x", "new"], missing="drop_row")
    assert column(found, "new")[:3] == [1, 0, 1] and "'new' (10)" in said(found)


def test_a_column_that_a_site_does_not_have_is_filled_in_by_the_others(tmp_path: Path) -> None:
    path = write(tmp_path, {"sex": ["f", "m"]})
    derive = {"ldl": Derived(absent=True), "stage": Derived(absent=True)}
    arguments: dict[str, Any] = {"derive": derive, "use": ["x", "ldl", "stage"], "categories": {"stage": ["1", "2"]}}
    found = load(path, missing="gossip", **arguments)
    assert found.features == ("x", "ldl", "stage=1", "stage=2") and np.isnan(found.train.x[:, 1:]).all()
    assert "30 missing cells of 'ldl' are filled in when the mean of all nodes is known" in found.notes
    with pytest.raises(DataError, match="'ldl' is missing in all 30 rows"):
        load(path, missing="mean", **arguments)


def test_derived_categories_have_all_their_values_at_every_site(tmp_path: Path) -> None:
    path = write(tmp_path, {"age": ["39", "40", "60"], "sex": ["1", "1", "1"]})
    derive = {
        "band": Derived(of="age", cut=(40, 50, 60)),
        "sex": Derived(of="sex", map={"1": "m", "2": "f"}),
    }
    found = load(path, derive=derive)
    assert found.features[1:] == ("sex=m", "sex=f", "band=<40", "band=40-50", "band=50-60", "band=>=60")
    assert [column(found, f"band={label}")[:3] for label in ("<40", "40-50", ">=60")] == [
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
    ]
    # What a column is made of is not learned from itself, unless it is named.
    assert load(path, derive=derive, use=["x", "age", "band"]).features[:2] == ("x", "age")


def test_two_registries_meet_without_a_script(tmp_path: Path) -> None:
    """Other names, units, codes, dates and outcomes: the same rows."""
    day = datetime.date(2019, 3, 1)
    ends = [day + datetime.timedelta(days=40 + 3 * i) for i in range(N)]
    here = tmp_path / "here.csv"
    here.write_text("chol,sex,days,died,x\n" + "".join(
        f"{5 + i / 10:.1f},{'fm'[i % 2]},{40 + 3 * i},{int(i % 3 == 0)},{i}.5\n" for i in range(N)
    ))  # fmt: skip
    there = tmp_path / "there.csv"
    there.write_text("Cholesterin;Geschlecht;Diagnose;Tod;Letzter Kontakt;x\n" + "".join(
        f"{50 + i};{1 + i % 2};{day:%d.%m.%Y};{f'{ends[i]:%d.%m.%Y}' if i % 3 == 0 else ''};{ends[i]:%d.%m.%Y};{i},5\n"
        for i in range(N)
    ))  # fmt: skip
    common: dict[str, Any] = {
        "label": None, "kind": "survival", "time": "days", "event": "died", "use": ["x", "chol", "sex"],
        "categories": {"sex": ["f", "m"]}, "units": {"chol": "mmol/l"},
    }  # fmt: skip
    own = {
        "rename": {"Cholesterin": "chol", "Geschlecht": "sex"},
        "derive": {
            "chol": Derived(of="chol", scale=0.1),
            "sex": Derived(of="sex", map={"1": "f", "2": "m"}),
            "days": Derived(days_from="Diagnose", to="Tod", or_to="Letzter Kontakt"),
            "died": Derived(given="Tod"),
        },
    }
    one, other = load(here, **common), load(there, **common, **own)
    assert one.columns == other.columns and one.features == other.features
    for a, b in ((one.train, other.train), (one.test, other.test)):
        np.testing.assert_allclose(a.x, b.x, rtol=1e-6)
        np.testing.assert_array_equal(a.y, b.y)


def test_every_form_of_a_derived_column_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text("utf-8")
    assert all(f"`{{ {form} = " in page or f", {form} = " in page or f"`{form}`" in page for form in FORMS)


@pytest.mark.parametrize(
    ("derived", "words"),
    [
        (Derived(), "derive.new: give one of cut, map"),
        (Derived(of="c", cut=(1,), scale=2.0), "derive.new: give one of .*; given: cut, scale"),
        (Derived(cut=(1.0,)), "derive.new: of: missing; cut needs it"),
        (Derived(days_from="a"), "derive.new: to: missing; days_from needs it"),
        (Derived(given="a", of="b"), "derive.new: of='b': given does not use it"),
        (Derived(of="c", cut=(2, 1)), r"derive.new: cut=\[2.*each greater"),
        (Derived(of="c", cut=(2,), labels=("a",)), r"derive.new: labels=\['a'\]: must be 2 different names"),
        (Derived(of="c", map={}), "derive.new: map: is empty"),
        (Derived(given="k"), "derive.new: 'k' is not a column; "),
        (Derived(of="c", map={"1": "2"}), "line 3: c is 'q', which derive.new.map does not name.*others"),
        (Derived(of="c", scale=2.0), "line 3: c is 'q'; derive.new needs a number"),
        (Derived(days_from="c", to="c"), "line 2: c is '1'; derive.new needs a date such as 1950-12-31.*dates ="),
    ],
)
def test_derivations_that_are_refused(tmp_path: Path, derived: Derived, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(write(tmp_path, {"c": ["1", "q"]}), derive={"new": derived}, use=["x", "new"])


def test_dates_are_read_as_they_are_said_to_be_written(tmp_path: Path) -> None:
    columns = {"a": ["02/01/2020"], "b": ["03/01/2020"]}
    derived = Derived(days_from="a", to="b")
    assert cells_of(tmp_path, columns, derived, dates="%m/%d/%Y")[0] == 29
    assert cells_of(tmp_path, columns, derived, dates="%d/%m/%Y")[0] == 1
    typed = {"a": ["2020-01-02"], "b": ["03/01/2020"]}  # as a sheet has it, beside one that is text there
    assert cells_of(tmp_path, typed, derived, dates="%d/%m/%Y")[0] == 1
    with pytest.raises(DataError, match=r"line 2: a is '02/01/2020'; derive\.new needs a date such as"):
        cells_of(tmp_path, columns, derived)


def test_renaming_is_refused_where_it_hides_a_column(tmp_path: Path) -> None:
    path = write(tmp_path, {"c": ["1", "2"]})
    assert load(path, rename={"c": "x", "x": "c"}).features == ("c", "x")
    with pytest.raises(DataError, match="rename='d' is not a column"):
        load(path, rename={"d": "e"})
    with pytest.raises(DataError, match="rename makes two columns of the name 'x'"):
        load(path, rename={"c": "x"})
