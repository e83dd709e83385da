"""`p2pfl check`: the books of all nodes together, whoever started them; and the verdict on a run, as a table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from click.testing import CliRunner, Result
from small import Case, write

from p2pfl.cli import main
from p2pfl.config import experiment
from p2pfl.data import Dataset
from p2pfl.data.builtin import digits
from p2pfl.errors import Exit
from p2pfl.federation.federation import build, precision
from p2pfl.node import records
from p2pfl.reporting.run_data import Summary
from p2pfl.runs import about, divergence
from p2pfl.runs.run import run
from p2pfl.runs.verdict import apart, verdict

NODES = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the plain loop, whose nodes leave all records."""
    folder = tmp_path_factory.mktemp("check")
    file = write(folder, Case("gradient_tracking"))
    wanted = experiment.load(file, ["driver.kind=simulate", "driver.loop=true"])
    precision(wanted)
    run(wanted, folder / "run")
    federation = build(wanted)
    for node in range(NODES):  # as a node that is started by hand writes it
        about.about(federation, node, "accuracy").write(folder / "run" / "nodes" / str(node))
    return folder / "run"


@pytest.fixture
def there(made: Path, tmp_path: Path) -> list[Path]:
    """The directories of the nodes, as they are brought together from several machines."""
    places = [tmp_path / f"from-hospital-{node}" for node in range(NODES)]
    for node, place in enumerate(places):
        shutil.copytree(made / "nodes" / str(node), place)
    return places


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["check", *map(str, arguments)])


def books(*arguments: object) -> dict[str, Any]:
    return dict(json.loads(call(*arguments, "--json").stdout))


def changed(place: Path, change: Any) -> None:
    """Change the records of a trace."""
    lines = records.read(place / "trace.jsonl")
    (place / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in change(lines)))


def test_books_that_balance(made: Path, there: list[Path]) -> None:
    for arguments in ([made], there, there[::-1]):
        result = call(*arguments)
        assert result.exit_code == Exit.DONE, result.output
        lines = result.stdout.splitlines()
        assert lines[0] == "node 0: ended after round 8; 16 exchanges booked, 0 voided, 0 rounds skipped"
        assert lines[NODES].startswith("mean residual ") and lines[NODES].endswith("residue 0")
        assert lines[-2] == "40 exchanges booked, 0 ends voided, 0 rounds skipped; messages dropped: none"
        assert lines[-1] == "links were not encrypted: node 0, 1, 2, 3, 4"
    table = books(made)
    summary = json.loads((made / "summary.json").read_text())
    assert {name: table[name] for name in ("mean_residual", "exchanges_booked", "residue", "residue_drift")} == {
        name: summary[name] for name in ("mean_residual", "exchanges_booked", "residue", "residue_drift")
    }
    assert table["incomplete"] == table["missing"] == []


def test_a_run_whose_nodes_say_nothing_is_known_by_its_summary(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "run")
    for node in range(NODES):
        (tmp_path / "run" / "nodes" / str(node) / "about.json").unlink()
    assert books(tmp_path / "run") == books(made)
    (tmp_path / "run" / "summary.json").unlink()
    result = call(tmp_path / "run")
    assert result.exit_code == Exit.MISTAKE and "is not known" in result.stderr


def test_records_that_are_missing_are_named_and_the_rest_is_balanced(there: list[Path]) -> None:
    result = call(*there[:3], there[4])
    assert result.exit_code == Exit.NOT_WHOLE
    assert "node 3: its records are missing" in result.stdout
    assert result.stderr == "not whole: the records of node 3 are missing\n"
    table = books(*there[:3], there[4])
    assert table["missing"] == [3] and table["residue"] == 0 and table["mean_residual"] < 1e-6


def test_a_node_that_has_mixed_with_nobody_is_named(there: list[Path]) -> None:
    rows = records.read(there[2] / "metrics.jsonl")
    lonely = [json.dumps({**row, "arrived": [], "age": []}) + "\n" for row in rows]
    (there[2] / "metrics.jsonl").write_text("".join(lonely))
    assert "node 2 has trained 8 rounds alone: it has mixed with nobody" in books(*there)["incomplete"]
    (there[2] / "metrics.jsonl").write_text("".join([json.dumps(rows[0]) + "\n", *lonely[1:]]))
    assert books(*there)["incomplete"] == []


def test_a_node_that_left_no_result_is_a_loss_and_one_that_failed_too(there: list[Path]) -> None:
    (there[1] / "result.json").unlink()
    ended = json.loads((there[2] / "result.json").read_text())
    (there[2] / "result.json").write_text(json.dumps({**ended, "left": True, "round": 6, "error": "no disk"}))
    (there[4] / "result.json").write_text(json.dumps({**ended, "node": 4, "left": True, "stopped_by": "SIGTERM"}))
    result = call(*there)
    assert result.exit_code == Exit.NOT_WHOLE
    for said in (
        "node 1: no result: it died after round 8, or is still at work",
        "node 2: failed in round 6: no disk",
        "node 4: left in round 8 (SIGTERM)",
    ):
        assert said in result.stdout
    table = books(*there)
    assert (table["lost"], table["left"]) == ([1, 2], [4])
    told = json.loads((there[0] / "about.json").read_text())
    for place in there:  # what the experiment has planned is no loss
        of = {**told, "node": int(place.name[-1]), "planned_losses": [1, 2]}
        (place / "about.json").write_text(json.dumps(of))
    assert call(*there).exit_code == Exit.DONE


def test_books_that_do_not_balance(there: list[Path]) -> None:
    def cooked(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        who = next(iter(lines[-1]["exchanged"]))
        lines[-1]["exchanged"][who] = records.pack(records.unpack(lines[-1]["exchanged"][who]) + 1.0)
        return lines

    changed(there[0], cooked)
    result = call(*there)
    assert result.exit_code == Exit.NOT_WHOLE
    assert result.stderr.startswith("not whole: the books do not balance: mean residual ")
    assert np.isclose(books(*there)["mean_residual"], 8 / NODES / 3**0.5)  # 64 numbers, 5 nodes, 3 parameters


def test_exchanges_of_which_one_end_knows_nothing_are_residue(there: list[Path]) -> None:
    changed(there[0], lambda lines: [line for line in lines if line["round"] < 7])
    table = books(*there)
    assert table["residue"] == 4 and table["residue_drift"] > 0


def test_rounds_that_were_skipped_are_counted(there: list[Path]) -> None:
    rows = records.read(there[3] / "metrics.jsonl")
    (there[3] / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows if row["round"] not in (3, 4))
    )
    table = books(*there)
    assert table["rounds_skipped"] == table["nodes"]["3"]["skipped"] == 2
    assert any("rounds were skipped: node 3 2" in why for why in table["incomplete"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("empty", "holds no records; give the directory of a run"),
        ("twice", "is of node 0, as"),
        ("other", "is of another federation"),
        ("nobody", "does not say whose records it holds"),
    ],
)
def test_directories_that_are_no_federation_are_refused(
    there: list[Path], tmp_path: Path, wrong: str, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "nobody").mkdir()
    (tmp_path / "nobody" / "trace.jsonl").touch()
    if wrong == "other":
        told = json.loads((there[1] / "about.json").read_text())
        (there[1] / "about.json").write_text(json.dumps({**told, "federation": "x"}))
    more = {"twice": [there[0]], "other": []}.get(wrong, [tmp_path / wrong])
    result = call(*there, *more)
    assert result.exit_code == Exit.MISTAKE and said in result.stderr


# --- the verdict


@pytest.mark.parametrize(
    ("given", "code", "reasons"),
    [
        ({}, 0, ()),
        ({"lost": (1,)}, 0, ()),  # the experiment has planned it
        ({"left": (0, 1, 2)}, 0, ()),
        ({"lost": (1,), "lost_unplanned": {"1": "was killed"}}, 3, ("node 1 was killed",)),
        ({"lost": (0, 1, 2)}, 3, ("no node ended in good order",)),
        ({"incomplete": ("x",)}, 3, ("x",)),
        (
            {"diverged": {"2": 3, "1": 5, "0": 3}},
            3,
            (
                "training has diverged: node 0, 2 from round 3 on; node 1 from round 5 on. The loss is not finite, or "
                "above that of an untrained model; lower the learning rate, or look at the rows of node 0",
            ),
        ),
        ({"interrupted": True}, 130, ("ended by SIGINT",)),
        ({"interrupted": True, "stopped_by": "SIGTERM"}, 143, ("ended by SIGTERM",)),
        (
            {"stopped_by": "SIGHUP", "lost": (1,), "lost_unplanned": {"1": "was killed"}},
            129,
            ("ended by SIGHUP", "node 1 was killed"),
        ),
    ],
)
def test_the_verdict(given: dict[str, Any], code: int, reasons: tuple[str, ...]) -> None:
    summary = Summary(nodes=3, **given)
    assert verdict(summary) == (code, reasons)
    again = Summary.of({**summary.as_dict(), "incomplete": list(reasons)})
    assert verdict(again) == (code, reasons)  # as it stands in summary.json


QUIET = {
    "name": "quiet", "rounds": 2, "data": {"source": "quadratic"}, "algorithm": {"name": "dsgd"},
    "training": {"optimizer": {"name": "sgd", "learning_rate": 0.1}}, "topology": {"graph": "ring", "nodes": 3},
}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "known", "judged"),
    [
        ({}, {"exchanges_booked": 0}, False),
        ({}, {"exchanges_booked": 1}, True),
        ({}, {}, True),  # not known
        ({}, {"exchanges_booked": 0, "interrupted": True}, True),  # before anybody could
        ({"algorithm": {"name": "local"}}, {"exchanges_booked": 0}, True),
        ({"network": {"loss": 0.9}}, {"exchanges_booked": 0}, True),  # of six
        ({"network": {"loss": 0.9}, "rounds": 1000}, {"exchanges_booked": 0}, False),
        ({"topology": {"graph": "complete", "nodes": 1}}, {"exchanges_booked": 0}, True),
    ],
)
def test_a_run_in_which_nobody_has_exchanged_anything_is_not_whole(
    more: dict[str, Any], known: dict[str, Any], judged: bool
) -> None:
    federation = build(experiment.parse({**QUIET, **more}, "quiet.toml", experiment.Experiment))
    reasons = apart(federation, Summary(nodes=3, **known))
    assert reasons == (() if judged else ("nobody has exchanged anything: each node trained alone",))


# --- a run that diverges


def spoilt() -> Dataset:
    """Digits, of which one row of one node holds a value whose square no float32 can hold."""
    whole = digits()
    x = whole.train.x.copy()
    x[1, 20] = 3e38
    return whole._replace(train=whole.train._replace(x=x))


def digits_file(folder: Path, rate: float, source: str = "digits") -> Path:
    file = folder / "experiment.toml"
    file.write_text(
        f"""name = "digits"\nrounds = 4\nbaselines = false
[data]\nsource = "{source}"\n[model]\nname = "mlp"\n[algorithm]\nname = "dsgd"
[training]\noptimizer = {{ name = "sgd", learning_rate = {rate} }}\nlocal_steps = 20
[topology]\ngraph = "ring"\nnodes = 6\n"""
    )
    return file


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def strict(text: str) -> dict[str, Any]:
    """JSON in which there is no NaN."""
    return dict(json.loads(text, parse_constant=lambda name: pytest.fail(name)))


@pytest.mark.more
@pytest.mark.parametrize("driver", ["simulate", "virtual"])
def test_one_node_diverges_and_the_others_do_not(tmp_path: Path, driver: str, optimised: None) -> None:
    file, out = digits_file(tmp_path, 0.1, f"{__name__}:spoilt"), tmp_path / "run"
    result = command("run", file, "--driver", driver, "--out", out)
    assert result.exit_code == Exit.NOT_WHOLE
    assert "not whole: training has diverged: node 3 from round 1 on. The loss is not finite" in result.stderr
    summary = strict((out / "summary.json").read_text())
    assert summary["diverged"] == {"3": 1} and summary["mean_residual"] < 1e-6 and summary["consensus_distance"] is None
    assert "training has diverged: node 3" in (out / "report.html").read_text()
    rows = [strict(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {row["node"] for row in rows if row["train_loss"] is None} == {3}
    assert all(row["accuracy_after_mixing"] > 0.6 for row in rows if row["round"] == 4 and row["node"] != 3)
    assert not any(3 in row["arrived"] for row in rows)
    assert all(strict(line) for line in (out / "rounds.jsonl").read_text().splitlines())
    if driver == "virtual":
        assert "node 3 has diverged: its training loss is not finite (round 1)" in result.stdout
        checked = call(out)
        assert checked.exit_code == Exit.NOT_WHOLE and "training has diverged: node 3 from round 1 on" in checked.stderr


@pytest.mark.more
def test_a_run_whose_models_are_worse_than_untrained_ones_has_diverged(tmp_path: Path, optimised: None) -> None:
    """All numbers are finite."""
    summary = run(experiment.load(digits_file(tmp_path, 1e6), ["driver.kind=simulate"]), tmp_path / "run")
    assert summary.diverged == dict.fromkeys("012345", 1) and verdict(summary).code == Exit.NOT_WHOLE
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert all(strict(line)["train_loss"] is not None for line in metrics.splitlines())


def test_one_node_whose_model_is_worse_than_untrained_is_a_warning(tmp_path: Path) -> None:
    federation = build(experiment.load(digits_file(tmp_path, 0.1), ["driver.kind=simulate"]))
    model = federation.learner.init(jax.random.key(0))
    models = {1: model, 2: jax.tree.map(lambda leaf: 50 * leaf, model)}
    rows = [{"node": 2, "round": round, "train_loss": loss} for round, loss in ((1, 2.2), (2, 3.0), (3, 4.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    worse = divergence.judge(federation, models, {1: 4.0, 2: 4.0}, tmp_path)
    assert worse.keys() == {2} and worse[2].since == 2 and worse[2].loss > worse[2].untrained
    assert divergence.judge(federation, models, {1: 0.5, 2: 2.2}, tmp_path) == {}  # its training loss is no suspect
    (line,) = divergence.notes(worse)
    assert line.startswith("node 2: its model fits its own training rows worse than an untrained one (loss ")
