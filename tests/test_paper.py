"""Figures and tables of the report as files: those of the page, in full, and nothing of anybody else is lost."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from test_report import CHURN, make_run

from p2pfl.cli import main
from p2pfl.errors import ConfigError
from p2pfl.reporting import page, paper, published, run_data, tables, terminal
from p2pfl.reporting.style import LIGHT, ON_PAGE

INTERVALS = {"auc_mean": [0.8123456789, 0.9], "auc_own_mean": [0.7, 0.85], "accuracy_mean": [0.9, 0.97]}
DIFFERENCES = {"auc_mean": {"local_only": [0.1, 0.05, 0.15], "pooled": [-0.01, -0.02, 0.001]}}
ROW = {"coefficient": 0.5, "standard_error": 0.1, "ratio": 1.6487212707, "low": 1.35, "high": 2.0, "p": 5.7e-7}
FIT = {
    "steps": 4, "rows": [
        {"name": "(intercept)", "trained": 0.1, **ROW}, {"name": "age", "trained": 0.4, **ROW},
        {"name": "sex=f", "trained": None, "left_out": "a combination of the columns before it"},
        {"name": "rare", "trained": 2.0, "endless": "up"},
    ],
}  # fmt: skip
COEFFICIENTS = {"ratio": "odds ratio", "unit": "a unit of the column", "outcome": "ill", "rows": 40, "events": 20,
                "sites": 2, "logistic": FIT}  # fmt: skip
CURVE = {"time": [1.0, 2.0], "value": [0.9, 0.7], "error": [0.05, 0.1]}
SURVIVAL = {"horizon": 2.0, "groups": {
    name: {"events": 3, "rows": 9, "last": 4.0, "curve": CURVE, "predicted": p, "observed": p - 0.1, "error": 0.05}
    for name, p in (("low risk", 0.9), ("high risk", 0.6))
}}  # fmt: skip
OWN = {"auc": 0.8123456789, "accuracy": 0.75, "brier": None}
ASSESSED = {
    "kind": "classes", "classes": ["well", "ill"], "names": {"0": "node 0 (north)", "1": "node 1 (south)"},
    "nodes": {"0": {"": {"own": OWN}, "personal": {"own": OWN}}, "1": {"": {"own": {**OWN, "auc": 0.5}}}},
    "rows": {node: {"train": {"rows": 20, "classes": [12, 8]}, "test": {"rows": 10, "classes": [6, 4]}, "majority": 0.6}
             for node in ("0", "1")},
    "intervals": {"0": {"own": {"auc": [0.7, 0.9]}}}, "threshold": {"0": {"threshold": 0.4, "sensitivity": 1.0}},
    "confusion": {"0": [[5, 1], [1, 3]], "1": [[6, 0], [2, 2]]},
    "roc": {"0": [[0, 0, 1], [0, 1, 1]]}, "calibration": {"0": [[0.2, 0.8], [0.1, 0.9]]},
}  # fmt: skip
SPLITS = {"splits": 3, "figures": {"auc_mean": {"mean": 0.81234, "sd": 0.02, "less": {"pooled": [0.1, 0.0, 0.2]}}}}
LEFT_OUT = {"north": {"rows": 30, "figures": {"auc": 0.7123456}, "intervals": {"auc": [0.6, 0.8]},
                      "less": {"auc": [0.01, -0.1, 0.1]}}}  # fmt: skip


def whole(place: Path, **changed: Any) -> Path:
    """A run with every figure and table."""
    place.mkdir()
    given: dict[str, Any] = {"auc_mean": 0.8765432109, "auc_own_mean": 0.8, "intervals": INTERVALS,
                             "differences": DIFFERENCES}  # fmt: skip
    run = make_run(place, events=CHURN, **given, **changed)
    for name, table in (("coefficients", COEFFICIENTS), ("survival", SURVIVAL), ("assessment", ASSESSED),
                        ("splits", SPLITS), ("left_out", LEFT_OUT)):  # fmt: skip
        (run / f"{name}.json").write_text(json.dumps(table))
    return run


def cells(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and what was written of it."""
    place = tmp_path_factory.mktemp("paper")
    run = whole(place / "run")
    result = paper.write(run, place / "out")
    assert result == (place / "out" / "index.csv", 10, 10)
    return run, place / "out"


def test_the_index_names_every_file_with_what_the_page_says(written: tuple[Path, Path]) -> None:
    run, out = written
    head, *rows = cells(out / "index.csv")
    assert head == ["file", "shows", "caption"] and all(row[2] for row in rows)
    assert sorted(path.name for path in out.iterdir()) == sorted(["index.csv", *(row[0] for row in rows)])
    text = page.write(run).read_text("utf-8")
    for name, shows, caption in rows:
        assert name.endswith(".csv") == (shows == "")
        if shows:
            assert shows.replace("'", "&#39;") in text or shows in text, name
            assert re.sub("'", "&#39;", caption) in text, name


EXPLAINED = ("explanations", "importance", "leaks", "reconstructed")
"""Figures of `p2pfl explain` and `p2pfl audit`, which nobody has called for this run."""


@pytest.mark.more
def test_figures_are_those_of_the_page_in_light_colours(written: tuple[Path, Path]) -> None:
    _, out = written
    known = {*LIGHT, "#000000"}
    names = {path.stem for path in out.iterdir() if path.suffix == ".svg"}
    assert names == {path.stem for path in out.iterdir() if path.suffix == ".png"}
    others = {"forest-stratified-by-site", "forest-one-baseline-hazard", *(paper.FIGURES[name] for name in EXPLAINED)}
    assert names == set(paper.FIGURES.values()) - others
    for name in names:
        text = (out / f"{name}.svg").read_text("utf-8")
        ElementTree.fromstring(text)
        used = set(re.findall(r"#[0-9a-f]{6}\b", text))
        assert not used & {*ON_PAGE} and (used <= known or name == "topology"), name
        assert "<text" not in text and not re.search(r"20\d\d-\d\d-\d\dT", text)
        with Image.open(out / f"{name}.png") as image:
            assert image.info["dpi"] == pytest.approx((300, 300), rel=1e-3)
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        assert (pixels == 255).all(axis=1).mean() > 0.3, "a white ground"
        ink = np.abs(pixels[::7].astype(int) - [27, 31, 36]).sum(axis=1).min()
        assert ink < 12 and len(np.unique(pixels[::7], axis=0)) > 20, name


def test_tables_are_those_of_the_page_in_full(written: tuple[Path, Path]) -> None:
    """Every number of a file, rounded, is the text of the page."""
    run, out = written
    read = run_data.read(run)
    _, *results = cells(out / "results.csv")
    for row, shown in zip(results, terminal.results(read.summary), strict=True):
        texts = [read.summary.shown.text(float(each)) if each else None for each in row[1:]]
        assert [row[0], *texts] == [shown.label, *(text if "%" in text else None for text in shown[1:])]
    head, *intervals = cells(out / "intervals.csv")
    assert intervals[0][:5] == [
        "auc_mean",
        "AUC on all test rows, mean of the nodes",
        "0.8765432109",
        "0.8123456789",
        "0.9",
    ]
    for row, compared in zip(intervals, published.compared(read.summary), strict=True):
        each = [float(cell) if cell else None for cell in row[2:]]
        texts = [published.between(each[i], each[i + 1 : i + 3], signed=i > 0) for i in (0, 3, 6)]
        assert [row[1], *texts] == [*compared]
    head, *rows = cells(out / "coefficients-logistic.csv")
    (fit,) = published.coefficients(read.coefficients)
    assert head[:2] == ["column", "odds_ratio"] and rows[1][1] == "1.6487212707"
    for row, texts in zip(rows, fit.rows, strict=True):
        assert row[0] == texts["name"] and (row[1] == "") == (texts["ratio"] in ("reference", "no finite one"))
    assert [row[-1] for row in rows] == ["", "", "reference: a combination of the columns before it",
                                         "no finite estimate (up): goes with one outcome alone"]  # fmt: skip
    head, *rows = cells(out / "metrics-of-each-site.csv")
    table = published.sites(read.assessed)
    assert table is not None and [row[:2] for row in rows] == [[site, answer] for site, answer, _ in table.rows]
    first = dict(zip(head, rows[0], strict=True))
    assert (first["auc"], first["auc_low"], first["rows"], first["events"]) == ("0.8123456789", "0.7", "10", "4")
    assert first["chosen_threshold"] == "0.4" and "brier" not in head  # nothing was measured
    assert cells(out / "rows-of-each-site.csv")[1] == ["node 0 (north)", "20", "12", "8", "10", "6", "4"]
    assert cells(out / "confusion.csv") == [["true", "taken_for_well", "taken_for_ill"], ["well", "11", "1"],
                                            ["ill", "3", "5"]]  # fmt: skip
    assert cells(out / "other-splits.csv")[1][2:] == ["0.81234", "0.02", "", "", "", "0.1", "0.0", "0.2"]
    assert cells(out / "sites-left-out.csv")[1] == ["north", "30", "0.7123456", "0.6", "0.8", "", "", "",
                                                     "0.01", "-0.1", "0.1"]  # fmt: skip
    assert [row[0] for row in cells(out / "events.csv")[1:]] == ["crash", "detected", "rejoined"]
    assert dict(row for row in cells(out / "run.csv"))["mean_residual"] == "2.5e-08"
    assert {path.stem for path in out.iterdir() if path.suffix == ".csv"} - {"index"} <= set(tables.NAMES)


def test_own_files_are_replaced_and_others_stay(tmp_path: Path) -> None:
    """Another run into the same directory: what it has no figure of goes; a stranger's file in the way is refused."""
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "out"
    first.mkdir()
    second.mkdir()
    (first / "summary.json").write_text("{}")
    (first / "topology.json").write_text(json.dumps({"graph": "ring", "nodes": 2, "edges": [[0, 1]]}))
    (first / "assessment.json").write_text(json.dumps({**ASSESSED, "roc": {}, "calibration": {}}))
    lines = [{"event": "crash", "node": 0, "round": 1}]
    (second / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (second / "summary.json").write_text("{}")
    out.mkdir()
    (out / "mine.tex").write_text("mine")
    (out / "topology.svg").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds topology\.svg, which no index\.csv of an earlier call names"):
        paper.write(first, out)
    assert sorted(path.name for path in out.iterdir()) == ["mine.tex", "topology.svg"]
    (out / "topology.svg").unlink()
    paper.write(first, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "results.csv").write_text("spoilt")
    paper.write(first, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert paper.write(second, out)[1:] == (0, 2)
    assert sorted(path.name for path in out.iterdir()) == ["events.csv", "index.csv", "mine.tex", "results.csv"]
    (out / "index.csv").write_text("file;caption\nmine.tex;mine\n")
    with pytest.raises(ConfigError, match=r"holds events\.csv, index\.csv, results\.csv"):
        paper.write(second, out)
    (out / "index.csv").write_text(
        "file,shows,caption\n../second/summary.json,,\nmine.tex,,\nevents.csv,,\nresults.csv,,\n"
    )
    paper.write(second, out)
    assert (second / "summary.json").is_file() and (out / "mine.tex").read_text() == "mine"
    with pytest.raises(ConfigError, match="is a file; give a directory"):
        paper.write(second, out / "mine.tex")


def test_from_the_terminal(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    make_run(run, rounds=4)
    said = CliRunner().invoke(main, ["report", str(run), "--figures", str(tmp_path / "a" / "b")])
    assert (said.exit_code, said.output) == (
        0, f"{run / 'report.html'}\n5 figures and 2 tables: {tmp_path / 'a' / 'b' / 'index.csv'}\n",
    )  # fmt: skip
    (tmp_path / "file").write_text("mine")
    said = CliRunner().invoke(main, ["report", str(run), "--figures", str(tmp_path / "file")])
    assert said.exit_code == 1 and "is a file; give a directory" in said.output
