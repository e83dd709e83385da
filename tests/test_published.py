"""What a run leaves for a paper, through whole runs on tables whose rows are known."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from p2pfl.config import experiment
from p2pfl.config.data import EvenPartition
from p2pfl.errors import ConfigError
from p2pfl.federation.federation import build
from p2pfl.learning import intervals
from p2pfl.learning.metrics import concordance
from p2pfl.reporting import page, published
from p2pfl.reporting.run_data import Summary
from p2pfl.runs import assessment, coefficients, splits, survival
from p2pfl.runs import run as runs
from p2pfl.runs.assessment import Assessment

SITES = ("north", "south", "west")


def table(tmp_path: Path, kind: str) -> Path:
    """90 rows of three sites: two columns that tell, one that does not, one that is the sum of two."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(90, 3)).round(3)
    site = [SITES[i % 3] for i in range(90)]
    ill = (rng.random(90) < 1 / (1 + np.exp(-(1.2 * x[:, 0] - 0.8 * x[:, 1])))).astype(int)
    time, event = np.round(rng.exponential(np.exp(-x[:, 0])) * 100) + 1, (rng.random(90) < 0.7).astype(int)
    place = tmp_path / f"{kind}.csv"
    with place.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["a", "b", "c", "both", "site", *(["ill"] if kind == "classes" else ["time", "event"])])
        for i in range(90):
            outcome = [ill[i]] if kind == "classes" else [time[i], event[i]]
            lines.writerow([*x[i], round(x[i, 0] + x[i, 1], 3), site[i], *outcome])
    return place


def given(tmp_path: Path, kind: str, **more: Any) -> experiment.Experiment:
    outcome = {"label": "ill"} if kind == "classes" else {"kind": "survival", "time": "time", "event": "event"}
    fields = {
        "name": "t", "rounds": 25, "seed": 1,
        "data": {
            "source": "csv", "path": str(table(tmp_path, kind)), **outcome, "site": "site", "partition": "by_site",
            "standardize": "none", "test_fraction": 0.3,
        },
        "model": {"name": "logistic"},
        "training": {"optimizer": {"name": "sgd", "learning_rate": 0.2}, "batch_size": 21, "local_steps": 2},
        "topology": {"graph": "complete", "nodes": 3}, "algorithm": {"name": "dsgd"}, "driver": {"kind": "simulate"},
        "evaluation": {"every": 25},
    }  # fmt: skip
    fields["evaluation"] |= more  # type: ignore[operator]
    wanted: experiment.Experiment = experiment.parse(fields, "t.toml", experiment.Experiment)
    return wanted


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def left(tmp_path: Path, kind: str) -> tuple[Path, Assessment]:
    """What the first models of a federation would leave: nothing is trained."""
    made, out = build(given(tmp_path, kind)), tmp_path / "run"
    out.mkdir()
    models = {node: made.learner.init(jax.random.key(node)) for node in made.graph}
    assessed = assessment.assess(made, models, out)
    coefficients.write(made, models, out)
    survival.write(made, models, out)
    key, name = ("accuracy", "accuracy") if kind == "classes" else ("concordance", "concordance")
    known, _ = assessment.compared(assessed, {})
    Summary.of({"score": key, "score_name": name, "nodes": 3, "intervals": known, **assessed.figures}).write(out)
    page.write(out)
    return out, assessed


@pytest.mark.more
def test_without_intervals_the_figures_are_the_same(tmp_path: Path) -> None:
    made = build(given(tmp_path, "classes"))
    models = {node: made.learner.init(jax.random.key(node)) for node in made.graph}
    quick = replace(made.experiment.evaluation, intervals=False)
    without = made._replace(experiment=replace(made.experiment, evaluation=quick))
    (tmp_path / "run").mkdir()
    found = assessment.assess(without, models, tmp_path / "run")
    assert found.figures == assessment.assess(made, models).figures
    assert not found.draws and assessment.compared(found, {}) == ({}, {})
    table = json.loads((tmp_path / "run" / "assessment.json").read_text())
    assert not any(scope for node in table["intervals"].values() for scope in node.values())


def test_of_two_classes(tmp_path: Path) -> None:
    out, assessed = left(tmp_path, "classes")
    source, split = read(tmp_path / "classes.csv"), read(out / "split.csv")
    assert sorted(int(row["line"]) for row in split) == [*range(2, 92)], "every line of the file is in one part"
    assert all(source[int(row["line"]) - 2]["site"] == row["name"][8:-1] for row in split)
    in_order = sorted(split, key=lambda row: int(row["row"]))
    lines = [int(row["line"]) for row in in_order if row["part"] == "test"]
    said = [row for row in read(out / "predictions.csv") if row["node"] == "0"]
    assert [row["class"] for row in said] == [source[line - 2]["ill"] for line in lines]
    right = np.mean([(float(row["p_1"]) > 0.5) == (row["class"] == "1") for row in said])
    table = json.loads((out / "assessment.json").read_text())
    assert right == pytest.approx(table["nodes"]["0"][""]["pooled"]["accuracy"])
    confusion, own = np.array(table["confusion"]["0"]), table["nodes"]["0"][""]["own"]
    assert confusion.sum() == table["rows"]["0"]["test"]["rows"] == 9
    assert confusion.trace() / 9 == pytest.approx(own["accuracy"])
    assert table["threshold"]["0"]["chosen_on"] == "train" and 0 < table["threshold"]["0"]["threshold"] < 1
    for key in ("accuracy_mean", "auc_mean", "accuracy_own_mean", "accuracy_own_weighted"):
        found = intervals.interval(assessed.draws[key])
        value = assessed.figures[key]
        assert found is not None and value is not None
        assert found[0] <= value <= found[1] and found[1] - found[0] > 0.05

    whole = json.loads((out / "coefficients.json").read_text())
    fit, penalty = whole["logistic"], whole["penalty"]
    train = [source[int(row["line"]) - 2] for row in split if row["part"] == "train"]
    x = np.array([[float(row[name]) for name in ("a", "b", "c")] for row in train])
    sk = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x, [int(row["ill"]) for row in train])
    by_name = {row["name"]: row for row in fit["rows"]}
    assert [by_name[name]["coefficient"] for name in "abc"] == pytest.approx(sk.coef_[0], abs=1e-3)
    assert by_name["(intercept)"]["coefficient"] == pytest.approx(sk.intercept_[0], abs=1e-3)
    assert "left_out" in by_name["both"], "it is the sum of the first two"
    tried = {each["penalty"]: each["log_likelihood"] for each in penalty["tried"]}
    assert tried[penalty["penalty"]] == max(tried.values())
    assert penalty["strength"] == penalty["penalty"] / 63
    assert by_name["a"]["low"] < by_name["a"]["ratio"] < by_name["a"]["high"]
    text = (out / "report.html").read_text()
    for words in ("Coefficients", "odds ratio", "Confusion", "95 % interval", "train: 1", "ROC"):
        assert words in text


def test_a_site_of_one_event_does_not_count_as_others(tmp_path: Path) -> None:
    nodes = [{"": {"own": {"c_index": value, "calibration_slope": slope}}} for value, slope in ((0.9, 2.0), (0.6, 0.1))]
    found = assessment.figures(nodes, [1, 99])  # type: ignore[arg-type]
    assert found["c_index_own_mean"] == pytest.approx(0.75) and found["c_index_own_weighted"] == pytest.approx(0.603)
    assert found["c_index_own_worst"] == 0.6 and found["calibration_slope_own_worst"] == 2.0
    assert assessment.figure("c_index_own_weighted") and not assessment.figure("c_index_weighted")


def test_a_node_whose_model_is_not_finite_has_no_part_and_breaks_nothing(tmp_path: Path) -> None:
    for kind in ("classes", "survival"):
        made, out = build(given(tmp_path, kind)), tmp_path / f"run-{kind}"
        out.mkdir()
        models = {node: made.learner.init(jax.random.key(node)) for node in made.graph}
        models[0] = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), models[0])
        assessed = assessment.assess(made, models, out)
        coefficients.write(made, models, out)
        survival.write(made, models, out)
        for name in ("assessment.json", "coefficients.json", *(["survival.json"] if kind == "survival" else [])):
            json.loads((out / name).read_text(), parse_constant=pytest.fail)
        key = "accuracy_own_mean" if kind == "classes" else "c_index_own_mean"
        others = assessment.assess(made, {node: models[node] for node in (1, 2)})
        assert assessed.figures[key] == others.figures[key]
        np.testing.assert_allclose(assessed.draws[key], others.draws[key])


def test_a_site_whose_one_event_is_not_drawn_stays_in_the_mean() -> None:
    """Its own C is 0 and the other site's 1: no resampling may make 1 of their mean."""
    drawn = [{"own": {"c_index": np.array([0.0, np.nan])}}, {"own": {"c_index": np.array([1.0, 1.0])}}]
    known: Any = [{"": {"own": {"c_index": value}}} for value in (0.0, 1.0)]
    found = assessment.summed(drawn, known, [1, 3])
    assert found["c_index_own_mean"].tolist() == [0.5, 0.5]
    assert found["c_index_own_weighted"].tolist() == [0.75, 0.75]


def test_below_ten_events_no_interval_is_given_and_it_is_said(tmp_path: Path) -> None:
    """At no site alone, nor in the mean that counts sites alike; weighed by events the mean rests on those of all."""
    made, out = build(given(tmp_path, "survival")), tmp_path
    assessed = assessment.assess(made, {node: made.learner.init(jax.random.key(node)) for node in made.graph}, out)
    table = json.loads((out / "assessment.json").read_text())
    events = [table["rows"][node]["test"]["events"] for node in "012"]
    assert max(events) < 10 <= sum(events)
    for node, n in zip("012", events, strict=True):
        assert "c_index" not in table["intervals"][node]["own"] and "c_index" in table["intervals"][node]["pooled"]
        assert table["too_few"][node] == {"own": {"c_index": {"n": n, "of": "events"}}}
    assert {key: each.n for key, each in assessed.few.items()} == {"c_index_own_mean": min(events)}
    this = Assessment(assessed.figures, assessed.draws, assessed.few)
    known, more = assessment.compared(this, {"pooled": this})
    assert set(known) == {"c_index_mean", "c_index_own_weighted"}
    assert more["c_index_own_mean"]["pooled"] == [0.0, None, None]
    few = {key: each._asdict() for key, each in assessed.few.items()}
    summary = Summary.of({"score": "concordance", "intervals": known, "too_few": few, **assessed.figures})
    summary.write(out)
    page.write(out)
    words = f"too few events (n={min(events)})"
    assert any(line.endswith(words) and "mean of the sites" in line for line in published.told(summary))
    assert (out / "report.html").read_text().count("too few events (n=") == 4


@pytest.mark.parametrize(
    ("kind", "metric", "y", "n"),
    [
        ("classes", "auc", [0] * 30 + [1] * 4, 4), ("classes", "accuracy", [0] * 30 + [1] * 4, 34),
        ("classes", "sensitivity", [0] * 30 + [1] * 4, 4), ("classes", "specificity", [0] * 30 + [1] * 4, 30),
        ("labels", "auc", [[0, 1]] * 28 + [[1, 1], [0, 0]], 1), ("regression", "r2", [[0.5]] * 12, 12),
    ],
)  # fmt: skip
def test_what_a_score_rests_on(kind: str, metric: str, y: list[Any], n: int) -> None:
    found = intervals.basis(kind, metric, np.array(y), ("no", "yes"))
    assert found.n == n and found.few == (n < 10)


def test_differences_are_paired() -> None:
    """Two models that err on the same rows differ by nothing, however wide their own intervals are."""
    draws = np.random.default_rng(0).normal(0.7, 0.1, 500)
    one, other = (Assessment({"auc_mean": v}, {"auc_mean": draws + v - 0.7}) for v in (0.7, 0.65))
    known, more = assessment.compared(one, {"pooled": other})
    assert known["auc_mean"][1] - known["auc_mean"][0] > 0.3
    assert more["auc_mean"]["pooled"] == pytest.approx([0.05, 0.05, 0.05])


def test_of_survival_harrells_c_stands_first(tmp_path: Path) -> None:
    out, _ = left(tmp_path, "survival")
    said = read(out / "predictions.csv")
    by_node = [
        concordance(*(np.array([float(row[name]) for row in said if row["node"] == node])
                      for name in ("log_risk", "time", "event")))
        for node in "012"
    ]  # fmt: skip
    head = Summary.of(json.loads((out / "summary.json").read_text())).headed
    assert (head.score, head.score_name) == ("c_index", "Harrell's C")
    assert head.score_mean == pytest.approx(np.mean([value for value in by_node if value is not None]), abs=1e-4)
    text = (out / "report.html").read_text()
    for words in ("mean Harrell&#39;s C", "hazard ratio", "stratified by site", "Survival by risk group"):
        assert words in text
    table = json.loads((out / "survival.json").read_text())
    assert sum(group["rows"] for group in table["groups"].values()) == 27
    assert set(table["baseline"]) == {f"node {i} ({name})" for i, name in enumerate(SITES)}


def test_another_split_has_the_same_rows(tmp_path: Path) -> None:
    dataset = build(given(tmp_path, "classes")).dataset
    again = splits.redrawn(dataset, 5)
    before, after = ({*part.line.tolist()} for part in (dataset.test, again.test))  # type: ignore[union-attr]
    assert before != after and len(before) == len(after) == 27
    for site in range(3):
        assert (again.test.site == site).sum() == 9
    without = splits.without_site(dataset, 1)
    assert without.sites == ("north", "west") and len(without.test.y) == 30
    assert np.bincount(without.train.site).tolist() == [21, 21]  # type: ignore[arg-type]
    assert {*without.test.line.tolist()} == {*range(3, 92, 3)}  # type: ignore[union-attr]


@pytest.mark.more
def test_a_whole_run_is_learned_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = runs.run(given(tmp_path, "classes", splits=2, leave_site_out=True), out)
    for key in ("accuracy_mean", "auc_mean"):
        more, low, high = summary.differences[key]["pooled"]
        assert more == pytest.approx(
            summary.as_dict()[key] - summary.as_dict()[key.replace("_mean", "_pooled")], abs=1e-6
        )
        assert low <= more <= high
    repeated = json.loads((out / "splits.json").read_text())["figures"]["accuracy_mean"]
    assert len(set(repeated["values"])) == 2 and set(repeated["less"]) == {"local_only", "pooled"}
    found = json.loads((out / "left_out.json").read_text())
    assert {site: each["rows"] for site, each in found.items()} == dict.fromkeys(SITES, 30)
    for each in found.values():  # against models of the other sites together, and each by itself
        assert set(each["less"]) == set(each["less_alone"]) and each["less"] != each["less_alone"]
    told = published.repeated_told(json.loads((out / "splits.json").read_text()), found, "accuracy")
    assert [line.partition(":")[0] for line in told] == ["2 other splits"] * 3 + [
        f"left out {s} (30 rows)" for s in SITES
    ]
    assert all("AUC" in line and "less pooled" in line for line in told)
    text = (out / "report.html").read_text()
    for words in ("Learned again", "less every node alone", "Each site left out"):
        assert words in text


def test_it_is_said_where_models_lose() -> None:
    known = {"accuracy_mean": 0.61, "accuracy_majority": 0.625, "accuracy_own_mean": 0.9}
    lost = published.verdicts(Summary.of({**known, "accuracy_majority_own_mean": 0.8}))
    assert lost == ["On all test rows the models lose to always giving the most frequent class: 61.0 % against 62.5 %"]
    assert published.verdicts(Summary.of({**known, "accuracy_mean": 0.63})) == []
    told = published.verdicts(Summary.of({"intervals": {"auc_mean": [0.44, 0.8]}}))
    assert told == ["The interval of AUC reaches down to 0.5, which is what knowing nothing gives"]
    worse = {"accuracy_own_mean": {"local_only": [-0.1, -0.2, -0.05]}}
    assert "alone do better" in published.verdicts(Summary.of({"differences": worse}))[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"splits": 2, "metrics": False}, "metrics"),
        ({"leave_site_out": True}, "by_site"),
    ],
)
def test_what_cannot_be_learned_again_is_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    wanted = given(tmp_path, "classes", **more)
    if "leave_site_out" in more:
        wanted = replace(wanted, data=replace(wanted.data, partition=EvenPartition()))
    with pytest.raises(ConfigError, match=message):
        runs.run(wanted, tmp_path / "run")


@pytest.mark.parametrize("method", [{"name": "fl_mrcm"}, {"name": "vafl", "reference": 1}])
def test_no_site_is_left_out_where_an_objective_names_one(tmp_path: Path, method: dict[str, Any]) -> None:
    wanted = given(tmp_path, "classes", leave_site_out=True)
    with pytest.raises(ConfigError, match=rf"leave_site_out: numbers nodes anew, .*objective\[0\] \({method['name']}"):
        splits.check(replace(wanted, training=replace(wanted.training, objective=(method,))))
    long = replace(wanted, rounds=2000)  # enough for what vafl learns first
    splits.check(replace(long, training=replace(long.training, objective=({"name": "vafl"},))))


@pytest.mark.parametrize(
    "method",
    [
        {"name": "widths", "ratios": [1.0, 0.5, 1.0]},
        {"name": "moon", "strength": [0.5, 1.0, 2.0]},
        {"name": "tasks", "of": [0, 1, 0], "groups": [[0], [1]]},
    ],
    ids=lambda method: method["name"],
)
def test_no_site_is_left_out_where_an_objective_has_a_value_for_each(tmp_path: Path, method: dict[str, Any]) -> None:
    wanted = given(tmp_path, "classes", leave_site_out=True)
    with pytest.raises(ConfigError, match=rf"leave_site_out: .*objective\[1\] \({method['name']}\) has a value for"):
        splits.check(replace(wanted, training=replace(wanted.training, objective=({"name": "average"}, method))))


def test_what_there_cannot_be_without_a_site_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    wanted = given(tmp_path, "classes", leave_site_out=True)
    looks = experiment.Privacy(clip=1.0, delta=1e-5, noise=1.0, adversary=(1,))
    with pytest.raises(ConfigError, match=r"leave_site_out: numbers nodes anew, and privacy.adversary=\[1\]"):
        splits.check(replace(wanted, privacy=looks))
    noisy = replace(wanted.algorithm, wrap=({"name": "zip_dl", "scale": 0.1},))
    with pytest.raises(ConfigError, match="there can't be a run without site north: zip_dl: needs"):
        runs.run(replace(wanted, algorithm=noisy), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_coefficients_of_rows_whose_gaps_the_nodes_fill_in(tmp_path: Path) -> None:
    """With the mean of all training rows, which gossip tells: so do they."""
    wanted = given(tmp_path, "classes")
    place = tmp_path / "classes.csv"
    lines = place.read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    gaps = [[row[0], "" if i % 5 == 0 else row[1], row[2], row[0], *row[4:]] for i, row in enumerate(rows)]
    place.write_text("\n".join([lines[0], *map(",".join, gaps)]) + "\n")
    data = replace(wanted.data, missing="gossip", drop=("both",))  # type: ignore[arg-type]
    made = build(replace(wanted, data=data, statistics=replace(wanted.statistics, normalize=True)))
    coefficients.write(made, {}, tmp_path)
    x, y = made.dataset.train.x.astype(np.float64), made.dataset.train.y
    assert np.isnan(x).any()
    x = np.where(np.isnan(x), np.nanmean(x, axis=0), x)
    sk = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x, y)
    table = json.loads((tmp_path / "coefficients.json").read_text())["logistic"]
    assert [row["coefficient"] for row in table["rows"][1:]] == pytest.approx(sk.coef_[0], abs=1e-3)
    assert table["tested"]["auc"] is not None
