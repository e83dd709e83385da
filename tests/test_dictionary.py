"""The data dictionary: written, read, applied, compared; and what two nodes say that do not mean the same."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from click.testing import CliRunner

from p2pfl.cli import main
from p2pfl.config import experiment as config
from p2pfl.config.data import CsvData
from p2pfl.data import dictionary
from p2pfl.data.dataset import Column, ImageFacts
from p2pfl.data.dictionary import Dictionary
from p2pfl.data.far_off import far_off
from p2pfl.errors import DataError, Exit
from p2pfl.federation import datasets, federation, tasks
from p2pfl.methods import statistics

TWO = 'kind = "classes"\nclasses = ["a", "b"]\n'
COLUMNS = ("age", "sex", "size", "outcome")


def write(
    path: Path,
    order: tuple[str, ...] = COLUMNS,
    sex: str = "fm",
    outcomes: tuple[str, str] = ("ill", "well"),
    by: float = 1,
) -> Path:
    """60 patients, the same in every file but for what is asked for."""
    draw = random.Random(0)
    lines = [",".join(order)]
    for _ in range(60):
        row = {
            "age": draw.randint(30, 80),
            "sex": draw.choice(sex),
            "size": round(draw.gauss(17, 3) * by, 2),
            "outcome": draw.choice(outcomes),
        }
        lines.append(",".join(str(row[name]) for name in order))
    path.write_text("\n".join(lines) + "\n")
    return path


def rows(path: Path, **given: Any) -> Any:
    return datasets.read(CsvData(source="csv", path=str(path), label="outcome", **given), 0, by_name=True)


@pytest.fixture
def agreed(tmp_path: Path) -> Path:
    """A dictionary file that holds for `write`."""
    path = tmp_path / "dictionary.toml"
    path.write_text(dictionary.dumps(dictionary.describe(rows(write(tmp_path / "first.csv")))))
    return path


def test_it_is_what_it_was_written_from(tmp_path: Path, agreed: Path) -> None:
    made = dictionary.describe(rows(tmp_path / "first.csv"))
    assert [column.name for column in made.columns] == ["age", "sex", "size"] and made.classes == ("ill", "well")
    assert dictionary.load(agreed) == made == dictionary.from_json(dictionary.to_json(made))


def test_the_order_of_columns_in_a_file_means_nothing(tmp_path: Path, agreed: Path) -> None:
    """Not by name, and not by a dictionary that has them in another order."""
    one = rows(write(tmp_path / "one.csv"))
    turned = write(tmp_path / "turned.csv", order=("outcome", "size", "sex", "age"))
    other = rows(turned)
    assert one.features == other.features == ("age", "sex=f", "sex=m", "size")
    np.testing.assert_array_equal(one.train.x, other.train.x)
    meaning = dictionary.load(agreed)
    agreed.write_text(dictionary.dumps(dataclasses.replace(meaning, columns=meaning.columns[::-1])))
    third = rows(turned, dictionary=str(agreed))
    assert third.features == ("size", "sex=f", "sex=m", "age")
    np.testing.assert_array_equal(third.train.x, one.train.x[:, [3, 1, 2, 0]])


def test_what_the_dictionary_does_not_name_is_left_out(tmp_path: Path, agreed: Path) -> None:
    meaning = dictionary.load(agreed)
    agreed.write_text(dictionary.dumps(dataclasses.replace(meaning, columns=meaning.columns[:2])))
    assert rows(write(tmp_path / "all.csv"), dictionary=str(agreed)).features == ("age", "sex=f", "sex=m")


@pytest.mark.parametrize(
    "given",
    [
        {"coding": "treatment", "missing": "mean", "missing_indicator": ("size",)},
        {"missing": "mean", "missing_indicator": True, "standardize": "none"},
        {"not_applicable": {"size": (".",)}, "units": {"age": "years"}},
    ],
)
def test_a_table_is_read_as_it_was_described(tmp_path: Path, given: dict[str, Any]) -> None:
    file = write(tmp_path / "a.csv")
    lines = file.read_text().split("\n")
    lines[3] = lines[3].split(",")[0] + ",f,." + ",ill" if "not_applicable" in given else lines[3]
    file.write_text("\n".join(lines))
    first = rows(file, **given)
    path = tmp_path / "dictionary.toml"
    path.write_text(dictionary.dumps(dictionary.describe(first)))
    kept = {name: value for name, value in given.items() if name == "not_applicable"}  # a site's own codes
    again = rows(file, dictionary=str(path), **kept)
    assert again.features == first.features and again.columns == first.columns
    np.testing.assert_array_equal(again.train.x, first.train.x)


def test_a_site_that_lacks_a_category_has_its_column_by_the_dictionary(tmp_path: Path, agreed: Path) -> None:
    women = rows(write(tmp_path / "women.csv", sex="f"), dictionary=str(agreed), standardize="node")
    assert women.features == ("age", "sex=f", "sex=m", "size")


@pytest.mark.parametrize(
    ("given", "fields", "said"),
    [
        ({"sex": "fx"}, {}, "sex is 'x', not among categories['sex']"),
        ({}, {"drop": ("size",)}, "data.drop=['size']: the dictionary has these columns"),
        ({"outcomes": ("ill", "healthy")}, {}, "outcome is 'healthy'"),
        ({"order": ("age", "sex", "outcome")}, {}, "use='size' is not a column"),
        ({}, {"units": {"size": "mm"}}, "data.units={'size': 'mm'}: the dictionary has {}"),
        ({}, {"classes": ("well", "ill")}, "data.classes=('well', 'ill'): the dictionary has ('ill', 'well')"),
        ({}, {"standardize": "none"}, "data.standardize='none': the dictionary has 'node'"),
    ],
    ids=["category", "dropped", "class", "column", "unit", "order of classes", "scaling"],
)
def test_a_file_that_holds_something_else_is_refused(
    tmp_path: Path, agreed: Path, given: dict[str, Any], fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        rows(write(tmp_path / "other.csv", **given), dictionary=str(agreed), **fields)
    assert said in str(caught.value) and (str(agreed) in str(caught.value) or "the dictionary" in str(caught.value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind = ", "not a dictionary in TOML"),
        ('kind = "classes"', "classes"),
        ('kind = "class"\nclasses = ["a", "b"]', "kind='class': did you mean 'classes'?"),
        ('kind = "classes"\nclasses = ["a", "a"]', "'a' stands there more than once"),
        ('kind = "classes"\nclasses = ["a", "b"]\ncolumns = [{ name = "x", kind = "text" }]', "kind='text'"),
        (
            'kind = "classes"\nclasses = ["a", "b"]\ncolumns = [{ name = "x", kind = "category" }]',
            "lists all its values",
        ),
        ("format = 7\n" + TWO, "format=7"),
    ],
)
def test_dictionaries_that_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "dictionary.toml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        dictionary.load(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


AGE, SEX = Column("age", "number", unit="years"), Column("sex", "category", ("f", "m"), coding="one_hot")
OURS = Dictionary("classes", ("no", "yes"), ("ill",), (), (AGE, SEX))


CT = ImageFacts((64, 64), 1, 12, "HU", "fixed", (-1000.0, 400.0), "LPS", "MONOCHROME2")


def test_images_are_compared_as_they_become_rows() -> None:
    """In Hounsfield units it does not matter in how many bits they are stored; without a unit it does."""
    scans = Dictionary("classes", ("no", "yes"), (), (64, 64, 1), (), CT)
    assert dictionary.from_json(dictionary.to_json(scans)) == scans

    def other(**facts: Any) -> Dictionary:
        return Dictionary("classes", ("no", "yes"), (), (64, 64, 1), (), CT._replace(**facts))

    assert dictionary.differences(other(bit_depth=16), scans) == ()
    depth, unit = dictionary.differences(other(bit_depth=16, unit="stored"), scans)
    assert depth.startswith("images: bit_depth 16 there, 12 here: ") and "pixels.window" in depth
    assert unit.startswith("images: unit 'stored' there, 'HU' here: ")
    (turned,) = dictionary.differences(other(orientation="RAS"), scans)
    assert turned.startswith("images: orientation 'RAS' there, 'LPS' here: ") and "as NIfTI (dcm2niix" in turned
    assert dictionary.differences(Dictionary("classes", ("no", "yes"), (), (64, 64, 1)), scans) == (
        "images: none there",
    )
    for field in ImageFacts._fields:
        odd = {"shape": (32, 32), "channels": 3, "bit_depth": 16, "intensity": (0.0, 1.0)}.get(field, "another")
        unlike = [scans, other(**{field: odd, **({"unit": "stored"} if field == "bit_depth" else {})})]
        lines = dictionary.differences(*unlike)
        (line,) = [line for line in lines if line.startswith(f"images: {field} ")]
        assert ": " in line.removeprefix(f"images: {field} ") and len(line) < 300, "with the way out, and none is cut"
    unscaled = other(scaling="percentiles", intensity=None)
    assert dictionary.from_json(dictionary.to_json(unscaled)) == unscaled


@pytest.mark.parametrize("scaling", ["percentiles", "zscore", "fixed"])
def test_activity_in_another_unit_cancels_out_where_each_file_is_scaled_by_itself(scaling: str) -> None:
    """CT beside it is another picture."""

    def pet(unit: str) -> Dictionary:
        facts = CT._replace(unit=unit, scaling=scaling, intensity=None)
        return Dictionary("classes", ("no", "yes"), (), (64, 64, 1), (), facts)

    lines = dictionary.differences(pet("Bq/ml"), pet("SUV"))
    if scaling == "fixed":
        (line,) = lines
        assert line.startswith("images: unit 'Bq/ml' there, 'SUV' here: ") and 'pixels.intensity = "range"' in line
    else:
        assert lines == () and dictionary.differences(pet("HU"), pet("SUV"))


@pytest.mark.parametrize(
    ("theirs", "lines"),
    [
        (OURS, ()),
        (
            Dictionary("classes", ("yes", "no"), ("ill",), (), (AGE, SEX)),
            ("classes, in another order: 'yes', 'no' there, 'no', 'yes' here",),
        ),
        (dataclasses.replace(OURS, predicts=("died",)), ("predicts: 'died' there, 'ill' here",)),
        (Dictionary("labels", ("no", "yes"), ("ill",), (), (AGE, SEX)), ("kind: 'labels' there, 'classes' here",)),
        (Dictionary("classes", ("no", "yes"), ("ill",), (), (SEX, AGE)), ("columns: the same, in another order",)),
        (Dictionary("classes", ("no", "yes"), ("ill",), (), (AGE,)), ("column 'sex': only here",)),
        (
            Dictionary("classes", ("no", "yes"), ("ill",), (), (AGE._replace(unit="months"), SEX)),
            ("column 'age': unit 'months' there, 'years' here",),
        ),
        (
            dataclasses.replace(OURS, columns=(AGE._replace(unit=""), SEX._replace(categories=("female", "male")))),
            (
                "column 'age': unit 'not given' there, 'years' here",
                "column 'sex': categories 'female', 'male' there, 'f', 'm' here",
            ),
        ),
        (
            Dictionary("classes", ("no", "yes"), ("ill",), (), (AGE, Column("sex", "number"))),
            ("column 'sex': a number there, a category ('f', 'm') here",),
        ),
    ],
)  # fmt: skip
def test_what_differs_is_said_column_by_column(theirs: Dictionary, lines: tuple[str, ...]) -> None:
    assert dictionary.differences(theirs, OURS) == lines


def test_one_dictionary_for_several_files(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.csv"), write(tmp_path / "b.csv", order=COLUMNS[::-1], sex="fx")]
    command = ["data", "describe", *map(str, files), "--set", "label=outcome"]
    told = CliRunner().invoke(main, command)
    assert told.exit_code == Exit.DONE
    (tmp_path / "dictionary.toml").write_text(told.stdout)
    made = dictionary.load(tmp_path / "dictionary.toml")
    assert made.columns[1] == Column("sex", "category", ("f", "m", "x"), coding="one_hot", standardize="node")
    assert f"column 'sex': 'm' only in {files[0]}; 'x' only in {files[1]}" in told.stderr
    with pytest.raises(DataError, match="column 'age': only there"):
        dictionary.united({"a": dictionary.describe(rows(files[0], drop=("age",))), "b": made})
    failed = CliRunner().invoke(main, command[:-2])
    assert failed.exit_code == Exit.MISTAKE and "data.label: missing" in failed.stderr


@pytest.mark.parametrize(
    ("factors", "named"),
    [
        ((1, 1, 1, 1), []),
        ((1, 1, 10, 1), ["c"]),  # mm for cm
        ((1, 0.1, 1, 1), ["b"]),
        ((1, 38.67), ["b"]),  # cholesterol in mg/dl for mmol/l
        ((1, 1.4, 0.8, 1.2), []),  # other patients
        ((1,), []),
    ],
)
def test_another_unit_at_one_site_is_said(factors: tuple[float, ...], named: list[str]) -> None:
    rng = np.random.default_rng(0)
    values = [factor * rng.normal((17.0, -0.5, 60.0), (3.0, 1.0, 11.0), (200, 3)) for factor in factors]
    sites = "abcd"[: len(factors)]
    lines = far_off(np.stack([v.mean(0) for v in values]), np.stack([v.std(0) for v in values]), ["x", "y", "z"], sites)
    assert [line.split("site '")[1][0] for line in lines] == named * 3
    assert all(line.endswith("another unit?") for line in lines)


def test_a_column_may_be_constant_at_a_site_unless_that_is_far_from_the_others() -> None:
    ones = np.array([[0.0], [0.3], [1.0]]), np.array([[0.0], [0.46], [0.0]])
    assert far_off(*ones, ["x"], ["a", "b", "c"]) == ()
    cholesterol = np.array([[247.0], [0.0], [251.0], [np.nan]]), np.array([[52.0], [0.0], [59.0], [np.nan]])
    assert far_off(*cholesterol, ["chol"], ["a", "b", "c", "d"]) == (
        "column 'chol': 0 in all rows at site 'b', 249 (sd 55.5) elsewhere: missing?",
    )


def test_a_site_that_lacks_a_column_hides_no_unit_error_of_the_others() -> None:
    mean, sd = np.array([[17.0], [171.0], [np.nan]]), np.array([[3.0], [31.0], [np.nan]])
    assert len(far_off(mean, sd, ["size"], ["a", "b", "c"])) == 1


def test_a_unit_error_in_a_file_of_several_sites_is_said(tmp_path: Path) -> None:
    """In what a run says of its data: simulated by site as live."""
    lines = [write(tmp_path / f"{site}.csv", by=by).read_text().split() for site, by in (("a", 1), ("b", 1), ("c", 10))]
    head, tables = lines[0][0], [each[1:] for each in lines]
    text = [f"{head},site", *(f"{row},{site}" for site, rows in zip("abc", tables, strict=True) for row in rows)]
    (tmp_path / "all.csv").write_text("\n".join(text) + "\n")
    notes = [note for note in rows(tmp_path / "all.csv", site="site").notes if "unit" in note]
    assert len(notes) == 1 and notes[0].startswith("column 'size': mean 1") and "at site 'c'" in notes[0]


def test_a_unit_error_shows_in_the_gossiped_moments(tmp_path: Path) -> None:
    """Each of three hospitals knows its own rows alone. Those without the error see it: the spread over all is wide."""
    (tmp_path / "experiment.toml").write_text(
        'name = "three"\nrounds = 60\n[data]\nsource = "csv"\nlabel = "outcome"\nstandardize = "none"\ndrop = ["sex"]\n'
        '[statistics]\nnormalize = true\n[model]\nname = "logistic"\n[topology]\ngraph = "ring"\nnodes = 3\n'
        '[training]\noptimizer = { name = "sgd", learning_rate = 0.1 }\n[algorithm]\nname = "dsgd"\n'
    )
    wanted = config.load(tmp_path / "experiment.toml")
    built = []
    for node, by in enumerate((1, 1, 10)):
        own = CsvData(source="csv", path=str(write(tmp_path / f"{node}.csv", by=by)), label="outcome", drop=("sex",))
        built.append(federation.build_own(wanted, node, dataclasses.replace(own, standardize="none")))
    sums = [jax.tree.map(lambda part, i=i: part[i], each.sites["sums"]) for i, each in enumerate(built)]
    found = statistics.estimated(jax.tree.map(lambda *parts: sum(parts), *sums))
    lines = []
    for node, each in enumerate(built):
        learned = tasks.task(each, node).learned
        assert learned is not None and learned({"statistics": {"known": 0, **found}}) is None
        lines.append(learned({"statistics": {"known": 1, **found}}))
    assert [len(each or ()) for each in lines] == [1, 1, 0]
    assert all(
        each and each[0].startswith("column 'size': mean 1") and each[0].endswith("another unit?") for each in lines[:2]
    )


def test_other_names_of_the_same_values_at_one_site_are_said(tmp_path: Path) -> None:
    """One file of three sites, one of which writes u and v where the others write f and m."""
    lines = [
        write(tmp_path / f"{site}.csv", sex=sex).read_text().split()
        for site, sex in (("a", "fm"), ("b", "f"), ("c", "uv"))
    ]
    text = [
        lines[0][0] + ",site",
        *(f"{row},{site}" for site, rows in zip("abc", lines, strict=True) for row in rows[1:]),
    ]
    (tmp_path / "all.csv").write_text("\n".join(text) + "\n")
    notes = [note for note in rows(tmp_path / "all.csv", site="site").notes if "names" in note]
    assert len(notes) == 1 and notes[0].startswith("column 'sex': site 'c' has 'u', 'v', which no other site has")
