"""A model after its run: whoever has the run directory alone predicts what the run did."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from click.testing import CliRunner
from PIL import Image

import p2pfl
from p2pfl.cli import main
from p2pfl.config import experiment
from p2pfl.config.experiment import Experiment
from p2pfl.errors import ConfigError, DataError

SITES = ("Bonn", "Köln", "Ulm")
TABLE: dict[str, Any] = {
    "name": "use",
    "rounds": 6,
    "data": {
        "source": "csv", "label": "ill", "site": "hospital", "partition": "by_site", "standardize": "none",
        "missing": "gossip", "drop": ["note"], "derive": {"old": {"of": "age", "cut": [40.0, 60.0]}},
        "rename": {"CRP (mg/l)": "crp"},
    },
    "model": {"name": "mlp", "hidden": [4]},
    "training": {"optimizer": {"name": "sgd", "learning_rate": 0.1}, "batch_size": 8, "local_steps": 2},
    "statistics": {"normalize": True},
    "topology": {"graph": "complete", "nodes": 3},
    "algorithm": {"name": "dsgd"},
    "evaluation": {"every": 6, "answers": ["fine_tuned"]},
    "driver": {"kind": "simulate"},
    "baselines": False,
}  # fmt: skip
OWN: dict[str, Any] = {
    **TABLE,
    "data": {**{k: v for k, v in TABLE["data"].items() if k != "derive"}, "standardize": "node", "missing": "mean",
             "not_applicable": {"crp": ["never"]}, "missing_indicator": ["age"]},
    "model": {"name": "mlp", "hidden": [4], "norm": "batch"},
    "training": {**TABLE["training"], "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.5}},
    "statistics": {},
    "algorithm": {"name": "dsgd", "share": "fedbn"},
    "evaluation": {"every": 6, "answers": ["recalibrated"]},
}  # fmt: skip
"""Every site scales and fills in by its own rows, and keeps the normalisation layers."""


def write(file: Path, **odd: Sequence[str]) -> pd.DataFrame:
    """120 rows of three hospitals, with gaps. `odd`: cells of a column that come now and then."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(120):
        sex, stage, age = rng.choice(["m", "f", "f"]), rng.choice(["I", "II", "III"]), rng.normal(50 + 5 * (i % 3), 12)
        ill = rng.random() < 1 / (1 + np.exp(-(age - 52) / 8 - (stage == "III")))
        cells = {"sex": sex, "age": f"{age:.1f}", "CRP (mg/l)": f"{rng.exponential(5):.2f}", "stage": stage}
        cells = {name: "" if rng.random() < 0.1 else cell for name, cell in cells.items()}
        cells |= {name: each[i % len(each)] for name, each in odd.items() if i % 7 == 3}
        rows.append({"hospital": SITES[i % 3], **cells, "note": f"n{i}", "ill": "yes" if ill else "no"})
    frame = pd.DataFrame(rows)
    frame.to_csv(file, index=False)
    return frame


def run(folder: Path, table: dict[str, Any]) -> Path:
    """A run of which nothing but its directory is left."""
    table = {**table, "data": {**table["data"], "path": str(folder / "data.csv")}}
    p2pfl.run(experiment.parse(table, "use.toml", Experiment), folder / "ran")
    (folder / "data.csv").rename(folder / "gone.csv")
    shutil.move(folder / "ran", folder / "run")
    return folder / "run"


def apart(place: Path, frame: pd.DataFrame) -> float:
    """How far what each node's model says of the test rows is from what the run has written of them."""
    split = pd.read_csv(place / "split.csv")
    line = split[split.part == "test"].set_index("row").line
    said = pd.read_csv(place / "predictions.csv")
    columns = [name for name in said.columns if name.startswith("p_")]
    worst = []
    for node in said.node.unique().tolist():
        mine = said[said.node == node]
        answered = p2pfl.load_model(place, node=node)(frame)[line.loc[mine.row].to_numpy() - 2]
        worst.append(np.abs(answered - mine[columns].to_numpy()).max())
    assert len(worst) == 3
    return float(max(worst))


@pytest.fixture(scope="module")
def gossiped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("gossiped")
    frame = write(folder / "data.csv")
    return run(folder, TABLE), frame.drop(columns=["ill"])


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("own")
    frame = write(folder / "data.csv", **{"CRP (mg/l)": ["never"]})
    return run(folder, OWN), frame.drop(columns=["ill"])


def command(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(word) for word in words])
    return done.exit_code, done.output


def answers(file: Path) -> np.ndarray:
    with file.open(encoding="utf-8", newline="") as opened:
        return np.array([[float(row["p_no"]), float(row["p_yes"])] for row in csv.DictReader(opened)])


def test_a_run_directory_predicts_what_the_run_did(gossiped: tuple[Path, pd.DataFrame]) -> None:
    """With categories, gaps, derived and renamed columns, and the moments that the nodes gossiped."""
    place, frame = gossiped
    assert apart(place, frame) < 1e-6
    assert apart(place, frame.drop(columns=["hospital", "note"])) < 1e-6  # all nodes scale alike
    assert apart(place, frame[frame.columns[::-1]]) < 1e-6  # columns go by their names


def test_a_table_with_other_words_for_nothing_is_the_same(gossiped: tuple[Path, pd.DataFrame]) -> None:
    place, frame = gossiped
    model = p2pfl.load_model(place)
    np.testing.assert_array_equal(model(frame.convert_dtypes()), model(frame))


def test_predict_writes_what_load_model_says(gossiped: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    place, frame = gossiped
    frame.drop(columns=["note"]).assign(more=1).to_csv(tmp_path / "new.csv", index=False)
    code, said = command("predict", place, "--data", tmp_path / "new.csv", "--out", tmp_path / "out.csv")
    assert code == 0 and "the mean of the models of 3 nodes answers 120 rows" in said and "not used: 'more'" in said
    found = answers(tmp_path / "out.csv")
    np.testing.assert_allclose(found, p2pfl.load_model(place)(frame), atol=1e-6)
    each = np.stack([p2pfl.load_model(place, node=node)(frame) for node in range(3)])
    assert np.abs(each.mean(axis=0) - found).max() < 0.02  # one round of mixing on a complete graph has made them one
    with (tmp_path / "out.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["line"] for row in rows[:2]] == ["2", "3"]
    assert [row["predicted"] for row in rows] == [("no", "yes")[i] for i in found.argmax(axis=1)]


def test_without_a_node_it_is_the_mean_of_what_is_mixed(gossiped: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    """Of those that were there at the end; of their models, and not of what each knows of its own rows."""
    place, _ = gossiped
    shutil.copy(place / "model.json", tmp_path)
    leaves = safetensors.numpy.load_file(place / "models.safetensors")
    factor = np.array([1.0, 2.0, 6.0], np.float32)
    leaves = {name: leaf * factor.reshape(3, *(1,) * (leaf.ndim - 1)) if name.startswith("trained") else leaf
              for name, leaf in leaves.items()}  # fmt: skip
    safetensors.numpy.save_file(leaves, tmp_path / "models.safetensors", {"nodes": "0,1,2"})
    for gone, who in (([], [0, 1, 2]), ([1], [0, 2])):
        (tmp_path / "summary.json").write_text(json.dumps({"lost": gone}))
        model = p2pfl.load_model(tmp_path)
        assert model.said == f"the mean of the models of {len(who)} nodes"
        kernel = leaves["trained/layers/0/kernel"][who].mean(axis=0)
        np.testing.assert_allclose(model.params["trained"]["layers"][0]["kernel"], kernel, rtol=1e-6)
    leaves["trained/layers/0/kernel"][2, 0, 0] = np.nan
    safetensors.numpy.save_file(leaves, tmp_path / "models.safetensors", {"nodes": "0,1,2"})
    (tmp_path / "damaged").mkdir()
    shutil.copy(place / "model.json", tmp_path / "damaged")
    (tmp_path / "damaged" / "models.safetensors").write_bytes((place / "models.safetensors").read_bytes()[:-4])
    with pytest.raises(ConfigError, match=r"models.safetensors: can't be read as models"):
        p2pfl.load_model(tmp_path / "damaged")
    with pytest.raises(DataError, match=r"is not finite \(trained/layers/0/kernel\)"):
        p2pfl.load_model(tmp_path)


class Stops(p2pfl.Callback):
    """After the first evaluated round."""

    def round(self, info: p2pfl.RoundInfo) -> bool:
        return True


@pytest.mark.more
@pytest.mark.parametrize(
    ("driver", "churn"),
    [
        ({"kind": "simulate", "loop": True}, {"event": "leave", "node": 1, "round": 3}),
        ({"kind": "simulate"}, {"event": "leave", "node": 1, "round": 3}),
        ({"kind": "simulate"}, {"event": "join", "node": 1, "round": 6}),
    ],
    ids=["left, loop", "left", "never came"],
)  # fmt: skip
def test_who_was_not_there_at_the_end_is_not_in_the_mean(tmp_path: Path, driver: Any, churn: Any) -> None:
    frame = write(tmp_path / "data.csv")
    data = {**TABLE["data"], "standardize": "node", "missing": "mean", "path": str(tmp_path / "data.csv")}
    table = {**TABLE, "data": data, "statistics": {}, "driver": driver, "churn": [churn], "evaluation": {"every": 2}}
    stops = [Stops()] if churn["event"] == "join" else []
    ran = p2pfl.run(experiment.parse(table, "use.toml", Experiment), tmp_path / "run", callbacks=stops)
    assert sorted(ran.models) == ([0, 2] if "loop" in driver or stops else [0, 1, 2])
    model = p2pfl.load_model(tmp_path / "run")
    assert model.said == "the mean of the models of 2 nodes"
    name = "trained/layers/0/kernel"
    kernel = np.mean([ran.models[node][name] for node in (0, 2)], axis=0)
    np.testing.assert_allclose(model.params["trained"]["layers"][0]["kernel"], kernel, rtol=1e-6)
    assert model(frame.drop(columns=["ill"])).shape == (120, 2)


def test_what_answers_beside_the_model_is_saved(gossiped: tuple[Path, pd.DataFrame]) -> None:
    """`fine_tuned` of a node scores on the test rows what the assessment says that it does."""
    place, frame = gossiped
    split = pd.read_csv(place / "split.csv")
    table = json.loads((place / "assessment.json").read_text("utf-8"))
    for node in range(3):
        mine = split[(split.part == "test") & (split.node == node)]
        said = p2pfl.load_model(place, node, "fine_tuned")(frame)[mine.line.to_numpy() - 2]
        truth = pd.read_csv(place.parent / "gone.csv").ill.to_numpy()[mine.line.to_numpy() - 2] == "yes"
        loss = -np.log(np.where(truth, said[:, 1], said[:, 0])).mean()
        assert loss == pytest.approx(table["nodes"][str(node)]["fine_tuned"]["own"]["log_loss"], rel=1e-4)
        assert np.abs(said - p2pfl.load_model(place, node)(frame)[mine.line.to_numpy() - 2]).max() > 1e-3


def test_rows_that_do_not_fit_are_refused_by_name(gossiped: tuple[Path, pd.DataFrame]) -> None:
    place, frame = gossiped
    model = p2pfl.load_model(place)
    for wrong, words in (
        (frame.drop(columns=["age", "CRP (mg/l)"]), r"lacks the columns 'CRP \(mg/l\)', 'age'"),
        (frame.assign(stage="IV"), "column 'stage' holds 'IV' .*the model knows 'I', 'II', 'III'"),
        (frame.assign(age="old"), "column 'age' holds 'old'.*was a column of numbers|age is 'old'"),
    ):
        with pytest.raises(DataError, match=f"(?s){words}"):
            model(wrong)
    with pytest.raises(DataError, match=r"x: has shape \[2, 3\]; must be \[rows, 9\]"):
        model(np.zeros((2, 3)))
    assert model(frame[:0].reindex(range(2))).shape == (2, 2)  # nothing is known of these rows: means answer


def test_mistakes_are_told_with_the_way_out(gossiped: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    place, frame = gossiped
    frame.to_csv(tmp_path / "new.csv", index=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.csv").write_text("mine")
    new, out = tmp_path / "new.csv", tmp_path / "out.csv"
    for words, said in (
        ((tmp_path / "no", "--data", new, "--out", out), "no such directory"),
        ((tmp_path / "empty", "--data", new, "--out", out), "has no model.json: no run and no model"),
        ((place, "--data", new, "--out", out, "--node", 3), "node=3: no such model; there are models of node 0, 1, 2"),
        ((place, "--data", new, "--out", out, "--node", 0, "--answer", "tuned"), "did you mean 'fine_tuned'"),
        ((place, "--data", new, "--out", out, "--answer", "fine_tuned"), "say whose with --node"),
        ((place, "--data", new, "--out", out, "--answer", "selector"), "is not saved; name it in evaluation.answers"),
        ((place, "--data", new, "--out", tmp_path / "there.csv"), "is there already"),
        ((place, "--data", new, "--out", tmp_path / "no" / "out.csv"), "no such folder"),
        ((place, "--data", tmp_path / "no.csv", "--out", out), "no such file"),
    ):
        code, output = command("predict", *words)
        assert code == 1 and said in output, output
    assert not out.exists() and (tmp_path / "there.csv").read_text() == "mine"
    with pytest.raises(ConfigError, match="holds no model: the run has not ended"):
        shutil.copy(place / "model.json", tmp_path / "empty")
        p2pfl.load_model(tmp_path / "empty")


@pytest.mark.more
def test_what_is_a_sites_own_is_used_for_its_rows(own: tuple[Path, pd.DataFrame]) -> None:
    """Scaling, filling in and private leaves of each site; no answer where nobody says whose."""
    place, frame = own
    assert apart(place, frame) < 1e-6
    with pytest.raises(ConfigError, match=r"a part of the model for itself .*say whose with --node: node 0 \(Bonn\)"):
        p2pfl.load_model(place)
    one, other = (p2pfl.load_model(place, node) for node in (0, 1))
    rows = frame.drop(columns=["hospital"])
    assert np.abs(one(rows) - other(rows)).max() > 1e-3
    mine = (frame.hospital == SITES[0]).to_numpy()
    np.testing.assert_array_equal(one(rows)[mine], one(frame)[mine])  # without the column the node's own scaling
    with pytest.raises(DataError, match="holds 'Mainz'; the model has learned from 'Bonn', 'Köln', 'Ulm'"):
        one(frame.assign(hospital="Mainz"))
    assert np.abs(p2pfl.load_model(place, 0, "recalibrated")(rows) - one(rows)).max() > 1e-4


@pytest.mark.more
@pytest.mark.parametrize("loop", [False, True])
def test_the_choice_among_the_models_of_all_is_saved(loop: bool, tmp_path: Path) -> None:
    """It scores on the test rows what the assessment says that it does, whichever way the models lie."""
    frame = write(tmp_path / "data.csv")
    frame["age"] = 30.0 + 40 * frame.hospital.map(SITES.index) + np.arange(120) % 7  # one sees whose rows they are
    frame.to_csv(tmp_path / "data.csv", index=False)
    data = {**TABLE["data"], "standardize": "pooled", "missing": "mean"}
    training = {**TABLE["training"], "objective": [{"name": "selector", "learning_rate": 1.0}]}
    place = run(tmp_path, {**TABLE, "data": data, "statistics": {}, "driver": {"kind": "simulate", "loop": loop},
                           "training": training, "evaluation": {"every": 6, "answers": ["selector"]}})  # fmt: skip
    split = pd.read_csv(place / "split.csv").query("part == 'test'")
    truth = (frame.ill == "yes").to_numpy()[split.line.to_numpy() - 2]
    table = json.loads((place / "assessment.json").read_text("utf-8"))
    for node in range(3):
        said = p2pfl.load_model(place, node, "selector")(frame.drop(columns=["ill"]))[split.line.to_numpy() - 2]
        loss = -np.log(np.where(truth, said[:, 1], said[:, 0])).mean()
        assert loss == pytest.approx(table["nodes"][str(node)]["selector"]["pooled"]["log_loss"], rel=1e-4)
        plain = p2pfl.load_model(place, node)(frame)[split.line.to_numpy() - 2]
        tuned = p2pfl.load_model(place, int(split.node.iloc[0]), "fine_tuned")(frame)[split.line.to_numpy() - 2]
        assert (np.abs(said - plain).max(axis=1) > 1e-4).any() and (np.abs(said - tuned).max(axis=1) < 1e-6).any()
    assert p2pfl.load_model(place, answer="selector").said.startswith("the selector")
    code, text = command("export", place, "--to", "safetensors", "--answer", "selector", "--out", tmp_path / "no")
    assert code == 1 and "is a choice among models" in text


# --- exports

ALONE = """
import pathlib, sys
import numpy as np
from jax import export
sys.modules["p2pfl"] = None  # whoever imports it fails
content = pathlib.Path(sys.argv[1]).read_bytes()
model = export.deserialize(bytearray(content))
np.save(sys.argv[3], model.call(np.load(sys.argv[2])))
np.save(sys.argv[3].replace("out", "one"), model.call(np.load(sys.argv[2])[:1]))
"""


@pytest.mark.more
def test_an_exported_function_runs_where_p2pfl_can_not_be_imported(
    gossiped: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    """Equal to load_model, for any number of rows, with cells that are missing."""
    pytest.importorskip("flatbuffers")
    place, _ = gossiped
    model = p2pfl.load_model(place, node=1)
    x = np.random.default_rng(1).normal(size=(7, 9), scale=20).astype(np.float32)
    x[0], x[1, 2] = np.nan, np.nan
    np.save(tmp_path / "x.npy", x)
    assert command("export", place, "--to", "stablehlo", "--node", 1, "--out", tmp_path / "made")[0] == 0
    words = [tmp_path / "made" / "model.stablehlo", tmp_path / "x.npy", tmp_path / "out.npy"]
    subprocess.run([sys.executable, "-c", ALONE, *map(str, words)], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), model(x), atol=2e-6)
    np.testing.assert_allclose(np.load(tmp_path / "one.npy"), model(x[:1]), atol=2e-6)


def test_an_export_is_a_model_with_its_card(gossiped: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    place, frame = gossiped
    made = tmp_path / "made"
    code, said = command("export", place, "--to", "safetensors", "--out", made)
    assert code == 0 and "the mean of the models of 3 nodes" in said
    np.testing.assert_array_equal(p2pfl.load_model(made)(frame), p2pfl.load_model(place)(frame))
    assert "the mean of the models of 3 nodes" in p2pfl.load_model(made).said
    card = (made / "model-card.md").read_text("utf-8")
    known = json.loads((place / "assessment.json").read_text("utf-8"))
    counts = known["rows"]["0"]["train"]
    assert f"| node 0 (Bonn) | {counts['rows']} (no {counts['classes'][0]}, yes {counts['classes'][1]}) |" in card
    low, high = known["intervals"]["0"]["pooled"]["auc"]
    assert f"{known['nodes']['0']['']['pooled']['auc']:.3f} ({low:.3f} to {high:.3f})" in card
    few = known["too_few"]["0"]["own"]["auc"]  # of a site by itself there is too little for an interval
    assert f"{known['nodes']['0']['']['own']['auc']:.3f}, too few {few['of']} (n={few['n']})" in card
    for words in ("Sums over each site's rows: moments, of at least 10 rows", "dsgd, 6 rounds on complete", "jax "):
        assert words in card, words
    assert str(tmp_path.parent) not in (made / "model.json").read_text("utf-8")  # not where anybody's files lie
    for words, text in (
        ((place, "--to", "safetensors", "--out", made), "is not empty"),
        ((place, "--to", "hdf5", "--out", tmp_path / "new"), "Valid: onnx, orbax, safetensors, stablehlo"),
        ((place, "--to", "orbax", "--node", 7, "--out", tmp_path / "new"), "node=7: no such model"),
    ):
        code, said = command("export", *words)
        assert code == 1 and text in said, said
    assert not (tmp_path / "new").exists()


@pytest.mark.more
def test_an_export_of_a_site_holds_no_more_than_predicts(own: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    """Its own scaling and leaves; not those of others, and no optimizer that has seen its rows."""
    place, frame = own
    rows = frame.drop(columns=["hospital"])
    assert command("export", place, "--to", "safetensors", "--out", tmp_path / "all")[0] == 1
    assert command("export", place, "--to", "safetensors", "--node", 2, "--out", tmp_path / "made")[0] == 0
    np.testing.assert_array_equal(p2pfl.load_model(tmp_path / "made")(rows), p2pfl.load_model(place, 2)(rows))
    facts = json.loads((tmp_path / "made" / "model.json").read_text("utf-8"))
    assert len(facts["recipe"]["numbers"]["mean"]) == 1 and [*facts["nodes"]] == ["2"] and facts["sites"] == []
    for words in ("orbax", "stablehlo"):
        pytest.importorskip("flatbuffers")
        assert command("export", place, "--to", words, "--node", 2, "--out", tmp_path / words)[0] == 0
        code, said = command("predict", tmp_path / words, "--data", place, "--out", tmp_path / "no.csv")
        assert code == 1 and "is an export to another format" in said
    from orbax.checkpoint import StandardCheckpointer

    leaves = StandardCheckpointer().restore(tmp_path / "orbax" / "checkpoint")
    saved = safetensors.numpy.load_file(tmp_path / "made" / "model.safetensors")
    np.testing.assert_array_equal(leaves["trained"]["layers"]["1"]["kernel"], saved["trained/layers/1/kernel"])
    assert "private" in leaves and "optimizer" not in leaves["private"]["share"]
    seen = [name for name in saved if name.startswith("private/share/optimizer")]
    before = safetensors.numpy.load_file(place / "models.safetensors")
    assert any(before[name].any() for name in seen) and not any(saved[name].any() for name in seen)


@pytest.mark.more
def test_onnx_is_made_where_its_library_is(gossiped: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    """And where it is not, what to install stands there, and the way without it."""
    place, _ = gossiped
    code, said = command("export", place, "--to", "onnx", "--out", tmp_path / "made")
    if importlib.util.find_spec("jax2onnx") is None:
        assert code == 1 and "pip install 'p2pfl-jax[onnx]'; or export to stablehlo" in said
        assert not (tmp_path / "made").exists()
    else:
        assert code == 0 and (tmp_path / "made" / "model.onnx").exists()


# --- other kinds of rows and of tasks

PLAIN: dict[str, Any] = {**{k: v for k, v in TABLE.items() if k not in ("statistics",)}, "rounds": 2,
                         "evaluation": {"every": 2}, "model": {"name": "logistic"}}  # fmt: skip


def ran(folder: Path, data: dict[str, Any], **more: Any) -> Path:
    p2pfl.run(experiment.parse({**PLAIN, "data": data, **more}, "use.toml", Experiment), folder / "run")
    return folder / "run"


def said(place: Path, node: int, start: str) -> tuple[np.ndarray, np.ndarray]:
    """What a run says that a node's model says of the test rows, and the lines (or numbers) of those rows."""
    split, table = pd.read_csv(place / "split.csv"), pd.read_csv(place / "predictions.csv")
    mine = table[table.node == node]
    lines = split[split.part == "test"].set_index("row").line.loc[mine.row]
    return mine[[name for name in mine.columns if name.startswith(start)]].to_numpy(), lines.to_numpy()


@pytest.mark.more
@pytest.mark.parametrize(
    ("kind", "start", "columns"),
    [
        ({"kind": "survival", "time": "days", "event": "dead"}, "log_risk", ["line", "log_risk", "risk"]),
        ({"kind": "regression", "targets": ["days"], "drop": ["dead"]}, "predicted_", ["line", "predicted_days"]),
        ({"kind": "labels", "labels": ["dead", "ill"]}, "p_", ["line", "p_dead", "p_ill", "predicted_dead",
                                                               "predicted_ill"]),
    ],
)  # fmt: skip
def test_other_kinds_of_tasks(kind: dict[str, Any], start: str, columns: list[str], tmp_path: Path) -> None:
    """Written as they are called, and equal to what the run has written."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({name: rng.normal(size=60).round(3) for name in ("age", "crp")})
    frame = frame.assign(
        days=(rng.exponential(size=60) * np.exp(frame.age) * 100).round(1),
        dead=rng.integers(0, 2, 60),
        ill=(frame.crp > 0) * 1,
    )
    frame.to_csv(tmp_path / "data.csv", index=False)
    drop = [*kind.get("drop", ()), *(["ill"] if kind["kind"] != "labels" else ["days"])]
    table = {"source": "csv", "path": str(tmp_path / "data.csv"), **kind, "drop": drop}
    place = ran(tmp_path, table, training={**TABLE["training"], "optimizer": {"name": "sgd", "learning_rate": 0.01}})
    frame[["crp", "age"]].to_excel(tmp_path / "new.xlsx", index=False)
    code, text = command("predict", place, "--data", tmp_path / "new.xlsx", "--out", tmp_path / "out.csv", "--node", 1)
    assert code == 0, text
    made = pd.read_csv(tmp_path / "out.csv")
    assert made.columns.tolist() == columns
    was, lines = said(place, 1, start)
    found = made.set_index("line").loc[lines, [name for name in columns if name.startswith(start)]].to_numpy()
    np.testing.assert_allclose(found[:, : was.shape[1]], was, rtol=2e-6, atol=2e-6)
    if kind["kind"] == "survival":
        np.testing.assert_allclose(made.risk, np.exp(made.log_risk), rtol=1e-5)


@pytest.mark.more
def test_images_of_an_npz_are_given_as_they_lie_there(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    images = np.where(y[:, None, None] == 1, 200, 40) + rng.integers(0, 40, (40, 6, 6))
    images = images.astype(np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=y, classes=np.array(["dark", "light"]))
    place = ran(tmp_path, {"source": "npz", "path": str(tmp_path / "data.npz")}, model={"name": "cnn", "channels": [2]})
    np.savez(tmp_path / "new.npz", images=images)
    code, text = command("predict", place, "--data", tmp_path / "new.npz", "--out", tmp_path / "out.csv", "--node", 0)
    assert code == 0, text
    model, dataset = p2pfl.load_model(place, 0), p2pfl.data.npz.load(tmp_path / "data.npz")
    was = pd.read_csv(place / "predictions.csv").query("node == 0")
    raw = np.rint(dataset.test.x * 255).astype(np.uint8)
    np.testing.assert_allclose(model(raw), was[["p_dark", "p_light"]].to_numpy(), atol=1e-6)
    np.testing.assert_allclose(answers_of(tmp_path / "out.csv"), model(images[..., None]), atol=1e-6)
    with pytest.raises(DataError, match="holds fractions of 0 to 1, and this model takes 0 to 255"):
        model(dataset.test.x)
    np.savez(tmp_path / "small.npz", images=images[:, :5, :5])
    code, text = command("predict", place, "--data", tmp_path / "small.npz", "--out", tmp_path / "no.csv")
    assert code == 1 and "rows of shape [5, 5, 1]; the model takes rows of shape [6, 6, 1]" in text


def answers_of(file: Path) -> np.ndarray:
    table = pd.read_csv(file)
    found: np.ndarray = table[[name for name in table.columns if name.startswith("p_")]].to_numpy()
    return found


@pytest.mark.more
@pytest.mark.parametrize("masks", [False, True])
def test_a_folder_of_images_without_labels(masks: bool, tmp_path: Path) -> None:
    """Read as in training, whatever the folders are called; masks go into an .npz."""
    rng = np.random.default_rng(0)
    for name, bright in (("dark", 30), ("light", 200)):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / "masks").mkdir(exist_ok=True)
        for i in range(10):
            pixels = (bright + rng.integers(0, 40, (12, 12))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{name}{i}.png")
            Image.fromarray((pixels > 100).astype(np.uint8)).save(tmp_path / "data" / "masks" / f"{name}{i}.png")
    label = '[label]\nmask = "masks/{image}.png"\n' if masks else '[label]\ncolumn = "kind"\n'
    (tmp_path / "layout.toml").write_text(
        f'name = "shades"\norigin = "here"\nkind = "{"segmentation" if masks else "classes"}"\nformat = "image"\n'
        f'classes = ["dark", "light"]\n[[files]]\n'
        'pattern = "{kind}/{image}.png"\n[keep]\nkind = ["dark", "light"]\n'
        f"{label}[pixels]\nsize = [8, 8]\n"
    )
    model = {"name": "unet", "channels": [2, 2]} if masks else {"name": "logistic"}
    data = {"source": "folder", "path": str(tmp_path / "data"), "layout": str(tmp_path / "layout.toml")}
    place = ran(tmp_path, data, model=model)
    (tmp_path / "new").mkdir()
    for name in ("dark3", "light4"):
        shutil.copy(tmp_path / "data" / name[:-1] / f"{name}.png", tmp_path / "new")
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "layout.toml").unlink()
    out = tmp_path / ("out.npz" if masks else "out.csv")
    code, text = command("predict", place, "--data", tmp_path / "new", "--out", out)
    assert code == 0, text
    if masks:
        with np.load(out) as found:
            assert found["predicted"].shape == (2, 8, 8) and found["files"].tolist() == ["dark3.png", "light4.png"]
        assert command("predict", place, "--data", tmp_path / "new", "--out", tmp_path / "out.csv")[0] == 1
    else:
        table = pd.read_csv(out)
        assert table.file.tolist() == ["dark3.png", "light4.png"] and table.columns.tolist()[2:4] == [
            "p_dark",
            "p_light",
        ]
        assert table.p_light[1] > table.p_light[0]


@pytest.mark.more
def test_images_are_reconstructed_into_an_array_or_into_pictures(tmp_path: Path) -> None:
    """From .npz, whose bytes are scaled as in training; the model takes away some of the noise."""
    rng = np.random.default_rng(0)
    whole = np.kron(rng.random((40, 3, 3)), np.ones((1, 4, 4)))
    np.savez(tmp_path / "data.npz", images=(255 * whole).astype(np.uint8), labels=np.arange(40) % 2)
    data = {"source": "npz", "path": str(tmp_path / "data.npz"), "degrade": {"by": "noise", "noise": 0.2}}
    optimizer = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}
    training = {"optimizer": optimizer, "batch_size": 8, "local_steps": 60}
    place = ran(tmp_path, data, model={"name": "unet", "channels": [4], "residual": True}, training=training)
    noisy = np.clip(whole[:5] + rng.normal(size=whole[:5].shape) * 0.2, 0, 1)
    np.savez(tmp_path / "new.npz", images=(255 * noisy).astype(np.uint8))
    code, text = command("predict", place, "--data", tmp_path / "new.npz", "--out", tmp_path / "out.npz")
    assert code == 0, text
    with np.load(tmp_path / "out.npz") as found:
        images = found["predicted"][..., 0]
        assert found["rows"].tolist() == [0, 1, 2, 3, 4] and found["classes"].tolist() == ["grey"]
    assert ((images - whole[:5]) ** 2).mean() < 0.9 * ((noisy - whole[:5]) ** 2).mean()
    assert command("predict", place, "--data", tmp_path / "new.npz", "--out", tmp_path / "pictures")[0] == 0
    shown = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "pictures").iterdir())]
    np.testing.assert_allclose(np.stack(shown) / 255, np.clip(images, 0, 1), atol=0.003)
    code, text = command("predict", place, "--data", tmp_path / "new.npz", "--out", tmp_path / "out.csv")
    assert code == 1 and "predictions of kind 'reconstruction' are images; give it a name that ends in .npz" in text
    code, text = command("explain", place)
    assert code == 1 and "answers with images, of which there is nothing to explain" in text
