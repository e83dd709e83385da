"""Who is in the data and who is not, and why: counted where rows are left out, and shown to the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from p2pfl.config import experiment
from p2pfl.data import csv
from p2pfl.data.csv import CsvTable
from p2pfl.federation.federation import build
from p2pfl.reporting import page, published, run_data, tables
from p2pfl.reporting.run_data import Summary
from p2pfl.runs import flow


def table(tmp_path: Path) -> Path:
    """Sites north (20 rows), south (20) and west (3): 3 answers and 1 site are missing, 4 rows are in no part."""
    lines = ["age,chol,site,ill,part"]
    for i in range(43):
        site = "west" if i >= 40 else ("north", "south")[i % 2]
        ill = "" if i in (0, 1, 2) else str((i // 2) % 2)
        part = "" if i in (3, 5, 7, 9) else "test" if i % 5 == 0 else "train"
        chol = "" if i in (1, 10, 12, 13) else str(200 + i)
        lines.append(f"{30 + i % 7},{chol},{'' if i == 4 else site},{ill},{part}")
    place = tmp_path / "patients.csv"
    place.write_text("\n".join([*lines, ",,,,", ""]))
    return place


def given(tmp_path: Path, **data: Any) -> experiment.Experiment:
    fields = {
        "name": "t", "rounds": 1, "topology": {"graph": "complete"}, "algorithm": {"name": "dsgd"},
        "data": {
            "source": "csv", "path": str(table(tmp_path)), "label": "ill", "site": "site", "split": "part",
            "missing": "mean", "small_sites": "drop", "partition": "by_site", **data,
        },
        "training": {"optimizer": {"name": "sgd", "learning_rate": 0.1}}, "model": {"name": "logistic"},
    }  # fmt: skip
    wanted: experiment.Experiment = experiment.parse(fields, "t.toml", experiment.Experiment)
    return wanted


def test_every_row_of_the_file_is_in_a_part_or_left_out_for_a_reason(tmp_path: Path) -> None:
    made = build(given(tmp_path))
    found = flow.flow(made)
    assert {site: each["read"] for site, each in found.items()} == {"north": 19, "south": 20, "west": 3, "": 2}
    north, south = found["north"], found["south"]
    assert north["left_out"] == {"'ill' is missing": 2}, "rows 0 and 2; 4 is in no part of this site"
    assert south["left_out"] == {"'part' is empty": 4, "'ill' is missing": 1}
    assert found["west"]["left_out"] == {"a site of fewer than 10 rows": 3}
    assert found[""]["left_out"] == {"an empty row": 1, "'site' is missing": 1}
    assert (north["training"], north["test"]) == tuple(
        int((part.site == 0).sum())
        for part in (made.dataset.train, made.dataset.test)  # type: ignore[union-attr]
    )
    assert (north["missing"], south["missing"]) == ({"chol": 2}, {"chol": 1}), "row 1 has no answer, and is gone"
    assert flow.flow(made, 1) == {"south": south}, "a node that is started by hand tells its own"


def test_each_row_counts_with_its_first_reason(tmp_path: Path) -> None:
    wanted = CsvTable(label="ill", split="part", drop=("site",), missing="drop_row", test_fraction=0.2)
    dataset = csv.load(table(tmp_path), wanted)
    (all_rows,) = flow.counted(dataset).values()
    assert all_rows["left_out"] == {
        "an empty row": 1, "'part' is empty": 4, "'chol' is missing": 4, "'ill' is missing": 2,
    }  # fmt: skip
    assert all_rows["read"] == 44 and not all_rows["missing"]


def test_rows_that_are_kept_for_the_end_are_not_tested_on(tmp_path: Path) -> None:
    place = tmp_path / "rows.npz"
    x, y = np.zeros((12, 2), np.float32), np.arange(12) % 2
    parts = {"train": x[:6], "val": x[6:10], "test": x[10:]}
    labels = {"train": y[:6], "val": y[6:10], "test": y[10:]}
    np.savez(place, **{f"{k}_images": v for k, v in parts.items()}, **{f"{k}_labels": v for k, v in labels.items()})
    fields = {
        "name": "t", "rounds": 1, "topology": {"graph": "complete", "nodes": 2}, "algorithm": {"name": "dsgd"},
        "data": {"source": "npz", "path": str(place)}, "evaluation": {"rows": "validation"},
        "training": {"optimizer": {"name": "sgd", "learning_rate": 0.1}}, "model": {"name": "logistic"},
    }  # fmt: skip
    (found,) = flow.flow(build(experiment.parse(fields, "t.toml", experiment.Experiment))).values()
    assert (found["read"], found["training"], found["validation"], found["test"]) == (12, 6, 4, 0)
    assert found["left_out"] == {"a test row, kept for the end": 2}


def test_the_page_shows_the_flow(tmp_path: Path) -> None:
    found = flow.flow(build(given(tmp_path)))
    Summary(name="t", flow=found).write(tmp_path)
    again = json.loads((tmp_path / "summary.json").read_text())["flow"]
    assert again == found
    shown = published.flow(again)
    assert shown is not None
    assert shown.steps[0] == "44 rows read" and "3 left out: &#39;ill&#39; is missing" not in shown.steps
    assert "3 left out: 'ill' is missing" in shown.steps
    kept = sum(found[site][part] for site in ("north", "south") for part in ("training", "test"))
    assert sum(int(number.split()[0]) for number in shown.steps[-1].split(", ")) == kept
    assert shown.rows[-1][:3] == ("all", "44", "12") and shown.sites == ["north", "south"]
    (table,) = [each for each in tables.tables(run_data.read(tmp_path)) if each.name == "flow"]
    assert table.rows[-1][:3] == ["all", 44, 12]
    text = page.write(tmp_path).read_text()
    for words in ("44 rows read", "no site named", "&#39;site&#39; is missing", "Missing cells of the rows"):
        assert words in text


def test_a_node_leaves_its_own_flow_for_all_to_be_put_together(tmp_path: Path) -> None:
    found = flow.flow(build(given(tmp_path)))
    flow.write(found, tmp_path)
    assert flow.read(tmp_path) == found and flow.read(tmp_path / "elsewhere") == {}
    (line,) = [line for line in flow.lines(found) if "south" in line]
    assert line == (
        "rows of 'south': 20 read; left out 4 ('part' is empty), 1 ('ill' is missing); 12 training, 3 test; "
        "missing cells: 'chol' 1"
    )
