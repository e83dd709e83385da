"""From an experiment to what it means: everything that can be wrong is found before anything starts."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from p2pfl.config import experiment
from p2pfl.config.data import BuiltinData, CsvData, Data, EvenPartition, QuadraticData, ShardsPartition
from p2pfl.config.experiment import Experiment
from p2pfl.errors import ConfigError, DataError, TopologyError
from p2pfl.federation import federation, tasks
from p2pfl.methods import statistics
from p2pfl.protocol.timing import LAN, LOCAL
from p2pfl.runs import baselines

TABLE: dict[str, Any] = {
    "name": "tiny",
    "rounds": 5,
    "data": {"source": "digits"},
    "model": {"name": "logistic"},
    "training": {"optimizer": {"name": "sgd", "learning_rate": 0.1}},
    "topology": {"graph": "ring", "nodes": 3},
    "algorithm": {"name": "dsgd"},
}


def make(**tables: Any) -> Experiment:
    """The tiny experiment with whole tables or fields replaced."""
    made: Experiment = experiment.parse({**TABLE, **tables}, "test.toml", Experiment)
    return made


def refused(said: str, kind: type[ConfigError] = ConfigError, **tables: Any) -> str:
    with pytest.raises(kind) as caught:
        federation.build(make(**tables))
    assert said in str(caught.value)
    return str(caught.value)


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    """Two sites, twelve and eighteen rows, on very different scales; one text column."""
    rng = np.random.default_rng(0)
    lines = ["site,age,colour,sick"]
    for site, rows, offset in (("north", 12, 0.0), ("south", 18, 1000.0)):
        lines += [f"{site},{offset + rng.normal():.3f},{'red' if i % 3 else 'blue'},{i % 2}" for i in range(rows)]
    path = tmp_path / "patients.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "d.npz"
    np.savez(path, x=rng.normal(size=(40, 5)).astype(np.float32), y=np.arange(40) % 2)
    return path


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """Writes a module of the user's own, under a name that no other test has."""
    monkeypatch.syspath_prepend(tmp_path)
    made: list[str] = []

    def write(text: str) -> str:
        name = f"own_{re.sub('[^a-z]', '', tmp_path.name.lower())}_{len(made)}"
        (tmp_path / f"{name}.py").write_text(text)
        made.append(name)
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


def test_the_tiny_experiment_is_right() -> None:
    made = federation.build(make())
    assert len(made.graph) == 3 and made.algorithm.name == "dsgd" and made.pooled
    assert sum(map(len, made.partition.train)) == len(made.dataset.train.y)
    assert [tasks.task(made, node).neighbors for node in range(3)] == [(1, 2), (0, 2), (0, 1)]
    assert not tasks.task(federation.build(baselines.alone(make())), 0).neighbors


# --- names


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"algorithm": {"name": "dsdg"}}, "algorithm.name='dsdg': did you mean 'dsgd'? Valid: ad_psgd, "),
        ({"topology": {"graph": "rign", "nodes": 3}}, "topology.graph='rign': did you mean 'ring'? Valid: "),
        ({"topology": {"graph": "mesh", "nodes": 3}}, "topology.graph='mesh': you mean one of these: a full mesh is "),
        ({"data": {"source": "digit"}}, "data.source='digit': did you mean 'digits'? Valid: breast_cancer, csv, "),
        (
            {"data": {"source": "zzz"}},
            "data.source='zzz': Valid: breast_cancer, csv, digits, folder, medmnist, npz, quadratic, script; or",
        ),
        (
            {"model": {"name": "mpl"}},
            "model.name='mpl': did you mean 'mlp'? Valid: cnn, cnn3d, cnn_gnn, fusion, logistic, mlp, mmoe, resnet, "
            "unet; or ",
        ),
        ({"training": {"optimizer": {"name": "sdg", "learning_rate": 0.1}}}, "did you mean 'sgd'? Valid: "),
        ({"training": {"optimizer": {"learning_rate": 0.1}}}, "training.optimizer.name: must be given, as in"),
        ({"training": {"optimizer": {"name": 3}}}, "training.optimizer.name: must be given, as in"),
        (
            {"training": {"optimizer": {"name": "sgd", "learning_rate": 0.1, "momentun": 0.9}}},
            "training.optimizer: optimizer sgd: argument 'momentun': did you mean 'momentum'? Valid: ",
        ),
        ({"training": {"optimizer": {"name": "sgd"}}}, "missing 1 required positional argument: 'learning_rate'"),
        ({"training": {"optimizer": {"name": "sgd", "learning_rate": "fast"}}}, "sgd(learning_rate='fast')"),
        ({"network": {"timing": {"silenc": 1.0}}}, "network.timing.silenc: did you mean 'silence'? Valid: bandwidth"),
        ({"network": {"timing": {"silence": -1.0}}}, "network.timing.silence=-1.0: must be > 0"),
        ({"network": {"timing": {"silence": 0}}}, "network.timing.silence=0.0: must be > 0"),
    ],
)
def test_unknown_names(tables: dict[str, Any], said: str) -> None:
    refused(said, **tables)


def test_timing_is_the_preset_with_single_values_replaced() -> None:
    assert federation.timing(make()) == LOCAL
    changed = make(network={"preset": "lan", "timing": {"silence": 4, "drain": 1}})
    assert federation.timing(changed) == LAN._replace(silence=4.0, drain=1.0)


# --- [data]: fields that are needed, and fields that nothing uses


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"alpha": 0.3}, "data.alpha=0.3: partition='iid' does not use it; leave it out"),
        ({"per_node": 2}, "data.per_node=2: partition='iid' does not use it; leave it out"),
        (
            {"partition": "shards", "per_node": 2, "alpha": 1.0},
            "data.alpha=1.0: partition='shards' does not use it; it uses: per_node",
        ),
        ({"path": "x.csv"}, "data.path='x.csv': source='digits' does not use it; it uses: "),
        ({"label": "y"}, "data.label='y': source='digits'"),
        ({"arguments": {"a": 1}}, "data.arguments={'a': 1}: source='digits'"),
        ({"standardize": "node"}, "data.standardize='node': source='digits'"),
        ({"partition": "dirichlet"}, "data.alpha: missing; partition='dirichlet' needs it"),
        ({"partition": "shards"}, "data.per_node: missing; partition='shards' needs it"),
        ({"partition": "by_site"}, "by_site: the data has no sites"),
        ({"source": "csv", "label": "y"}, "data.path: missing; source='csv' needs it"),
        ({"source": "csv", "path": "x.csv"}, "data.label: missing; source='csv' needs it"),
        ({"source": "npz"}, "data.path: missing; source='npz' needs it"),
        (
            {"source": "npz", "path": "x", "site": "s"},
            "data.site='s': source='npz' does not use it; it uses: test_fraction, path, ",
        ),
        ({"source": "npz", "path": "no.npz"}, "no.npz: no such file"),
        (
            {"source": "csv", "path": "x", "label": "y", "min_rows": 3},
            "data.min_rows=3: is used only with data.site; leave it out, or change that",
        ),
        ({"source": "csv", "path": "x", "label": "y", "small_sites": "drop"}, "data.small_sites='drop': is used only"),
        (
            {"source": "csv", "path": "x", "label": "y", "split": "s", "test_fraction": 0.3},
            "data.test_fraction=0.3: is not used where data.split is given; leave it out",
        ),
        ({"source": "a:b", "path": "x"}, "data.path='x': source='a:b' does not use it; it uses: arguments, "),
    ],
)  # fmt: skip
def test_fields_of_data(data: dict[str, Any], said: str) -> None:
    refused(said, data={"source": "digits", **data})


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"name": "logistic", "hidden": [3]}, "name='logistic' does not use it; it uses: weights, rename, fresh"),
        ({"name": "mlp", "channels": [3]}, "channels=[3]: name='mlp' does not use it; it uses: hidden, norm, weights"),
        ({"name": "logistic", "channels": [3]}, "name='logistic' does not use it; it uses: weights, rename, fresh"),
        ({"name": "mlp", "arguments": {"a": 1}}, "model.arguments={'a': 1}: name='mlp' does not use it"),
        ({"name": "cnn"}, "model cnn: needs images [height, width, channels]; the data has shape [64]. Use mlp."),
    ],
)  # fmt: skip
def test_fields_of_model(model: dict[str, Any], said: str) -> None:
    refused(said, model=model)


def test_nodes_and_sites_must_agree(csv: Path) -> None:
    data = {"source": "csv", "path": str(csv), "label": "sick", "site": "site", "partition": "by_site"}
    refused("by_site: nodes=3, but the data has 2 sites: north, south. Use nodes = 2", DataError, data=data)
    made = federation.build(make(data=data, topology={"graph": "ring", "nodes": 2}))
    assert [len(rows) for rows in made.partition.train] == [10, 14]
    assert any("hides how sites differ" in note for note in made.notes)
    for change in ({"data": {**data, "standardize": "node"}}, {"data": data, "algorithm": {"name": "local"}}):
        told = federation.build(make(**change, topology={"graph": "ring", "nodes": 2}))  # meant, or not to be helped
        assert not any("hides how sites differ" in note for note in told.notes)
    counted = federation.build(make(data=data, topology={"graph": "ring"}))  # as many nodes as there are sites
    assert counted.experiment == made.experiment and federation.digest(counted) == federation.digest(made)
    # Small sites are named before anything is said of nodes.
    small = {**data, "min_rows": 14}
    for table in ({"graph": "ring"}, {"graph": "ring", "nodes": 3}):
        refused("sites with fewer than min_rows=14 rows: 'north'", DataError, data=small, topology=table)
    nowhere = {"source": "digits", "partition": "by_site"}
    refused("data.partition='by_site': the data has no sites", data=nowhere, topology={"graph": "ring"})


def test_gaps_are_left_to_the_nodes_where_they_find_out_the_mean(csv: Path) -> None:
    """A column that one site never measures is no obstacle; nobody fills in twice, or not at all."""
    csv.write_text(re.sub(r"(?<=north,)[^,]*", "", csv.read_text()))
    data = {
        "source": "csv", "path": str(csv), "label": "sick", "site": "site", "partition": "by_site",
        "missing": "gossip", "standardize": "none", "missing_indicator": ["age"],
    }  # fmt: skip
    table: dict[str, Any] = {"data": data, "topology": {"graph": "ring"}, "statistics": {"normalize": True}}
    made = federation.build(make(**table))
    moments, x = made.sites["sums"]["moments"], made.dataset.train.x
    assert made.dataset.features[:2] == ("age", "age=missing") and x[:, 1].tolist() == [1] * 10 + [0] * 14
    assert np.isnan(x[:10, 0]).all() and not np.isnan(x[10:]).any()
    assert moments["count"].tolist() == [[0, 10, 10, 10], [14, 14, 14, 14]] and np.isfinite(moments["square"]).all()
    refused(
        "data.missing='gossip': missing cells are filled in with the mean of all nodes", **{**table, "statistics": {}}
    )
    refused("standardize='node': missing='gossip'", **{**table, "data": {**data, "standardize": "node"}})
    for name in ("selector", "fedreplay"):
        refused(
            f"training.objective {name}: looks at inputs",
            **table,
            training={**TABLE["training"], "objective": [{"name": name}]},
        )


# --- [topology] and [[churn]]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "topology: give either graph or file"),
        ({"nodes": 3}, "topology: give either graph or file"),
        ({"graph": "ring", "file": "x.toml", "nodes": 3}, "topology: give either graph or file"),
        ({"graph": "ring"}, "topology.nodes: missing; it must be given with topology.graph"),
        ({"file": "no.toml"}, "topology.file='no.toml': no such file"),
        ({"graph": "torus", "nodes": 7}, "nodes=7 is no product of two sides"),
    ],
)
def test_topology(table: dict[str, Any], said: str) -> None:
    refused(said, topology=table)


def test_nodes_may_repeat_the_file_but_not_contradict_it(tmp_path: Path) -> None:
    path = tmp_path / "g.toml"
    path.write_text("edges = [[0, 1], [1, 2]]\n")
    for table in ({"file": str(path)}, {"file": str(path), "nodes": 3}):
        assert len(federation.build(make(topology=table)).graph) == 3
    refused(f"topology.nodes=4: the graph in {path} has 3; leave nodes out", topology={"file": str(path), "nodes": 4})
    path.write_text("edges = [[0, 1], [2, 3]]\n")
    refused("is in 2 pieces", TopologyError, topology={"file": str(path)})


def event(kind: str, node: int, round: int) -> dict[str, Any]:
    return {"event": kind, "node": node, "round": round}


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([event("crash", 3, 2)], "churn[0].node=3: there are nodes 0 to 2"),
        ([event("crash", 1, 2), event("leave", 2, 6)], "churn[1].round=6: must be within 1 to rounds=5"),
        ([event("rejoin", 1, 2)], "churn: node 1 can't rejoin at round 2: it is still there"),
        ([event("crash", 1, 2), event("leave", 1, 3)], "churn: node 1 can't leave at round 3: it is already gone"),
        ([event("crash", 1, 3), event("rejoin", 1, 3)], "churn: node 1 has two events at round 3"),
        ([event("crash", node, 2) for node in range(3)], "churn: nobody is there in round 2"),
    ],
)
def test_churn(events: list[dict[str, Any]], said: str) -> None:
    refused(said, churn=events)
    own = BuiltinData(source="digits")
    with pytest.raises(ConfigError, match=re.escape(said)):
        federation.build_own(make(churn=events), 0, own)


def test_churn_that_a_driver_does_not_know() -> None:
    lag = {"event": "lag", "node": 1, "round": 2, "rounds": 2, "seconds": 0.5}
    federation.build(make(churn=[lag]))
    refused(
        'churn: lag of node 1 at round 2: the simulator knows no seconds; leave it out, or use driver.kind = "live"',
        churn=[lag], driver={"kind": "simulate"},
    )  # fmt: skip
    federation.build(make(network={"detection": 3}, driver={"kind": "simulate"}))
    refused("network.detection=3: real nodes find out by themselves; leave it out", network={"detection": 3})


def test_the_holder_of_a_class_is_found_in_the_data() -> None:
    stroke = {"model": "adversarial", "target": "holder", "class_label": "7", "round": 2}
    made = federation.build(make(churn=[stroke], data={"source": "digits", "partition": "shards", "per_node": 1}))
    rows = [int((made.dataset.train.y[rows] == 7).sum()) for rows in made.partition.train]
    assert [event.node for event in made.churn] == [int(np.argmax(rows))] and max(rows) > min(rows)
    refused("churn[0].class_label='nine': Valid: 0, 1, 2", churn=[{**stroke, "class_label": "nine"}])
    said = "churn.target='holder': needs the labels of all nodes, which are not known here; name the node"
    with pytest.raises(ConfigError, match=said):
        federation.build_own(make(churn=[stroke]), 0, BuiltinData(source="digits"))
    refused(said, churn=[stroke], data={"source": "quadratic"}, model=None)


def test_a_trace_lies_beside_the_experiment_and_its_place_means_nothing(tmp_path: Path) -> None:
    entry = {"duration": 1, "active": [0], "inactive": [30], "finish_time": 40}
    always = {**entry, "inactive": [40]}
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.json").write_text(json.dumps({"0": entry, "1": always, "2": always}))
        table = {**TABLE, "churn": [{"model": "trace", "path": "t.json", "seconds_per_round": 10.0}]}
        file = tmp_path / name / "e.toml"
        file.write_text(tomli_w.dumps(table))
        wanted = experiment.load(file, find=True)
        assert wanted.churn[0].path == str(tmp_path / name / "t.json")
        again: Experiment = experiment.parse(tomllib.loads(experiment.dump(wanted)), "again", Experiment)
        assert again == wanted
        made = federation.build(wanted)
        assert [(e.event, e.node, e.round) for e in made.churn] == [("crash", 0, 4), ("rejoin", 0, 5)]
        digests.append(federation.digest(made))
    assert digests[0] == digests[1] != federation.digest(federation.build(make()))
    (tmp_path / "b" / "t.json").unlink()
    with pytest.raises(ConfigError, match=re.escape("churn[0].path='t.json': no such file; looked for it beside")):
        experiment.load(tmp_path / "b" / "e.toml", find=True)


# --- the user's own functions

MODEL = """
from flax import linen, nnx
import jax.numpy as jnp
class Net(nnx.Module):
    def __init__(self, inputs, classes, width, rngs):
        self.a, self.b = nnx.Linear(inputs, width, rngs=rngs), nnx.Linear(width, classes, rngs=rngs)
    def __call__(self, x):
        return self.b(nnx.relu(self.a(x)))
def net(shape, classes, width=4):
    return lambda rngs: Net(shape[0], classes, width, rngs)
def linear(shape, classes):
    return linen.Dense(classes)
def wide(shape, classes):
    return linen.Dense(classes + 1)
def failing(shape, classes):
    raise KeyError("weights.bin")
def late(shape, classes):
    def make(rngs):
        raise AttributeError("no such layer")
    return make
def wrong(shape, classes):
    return 3
def wrong_input(shape, classes):
    return lambda rngs: Net(shape[0] + 1, classes, 4, rngs)
class Counts(Net):
    def __init__(self, inputs, classes, width, rngs):
        super().__init__(inputs, classes, width, rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
def counts(shape, classes):
    return lambda rngs: Counts(shape[0], classes, 4, rngs)
CONSTANT = 3
"""


def test_own_model(module: Any) -> None:
    name = module(MODEL)
    for width in (4, 7):
        made = federation.build(make(model={"name": f"{name}:net", "arguments": {"width": width}}))
        shapes = federation.model_shape(made)["trained"]
        assert shapes["a"]["kernel"].shape == (64, width) and shapes["b"]["kernel"].shape == (width, 10)
    assert federation.build(make(model={"name": f"{name}:linear"}))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("nett", "has no function 'nett'"),
        ("CONSTANT", "has no function 'CONSTANT'"),
        ("wide", "output of shape (11,) for inputs of shape (64,); must be (10,)"),
        ("failing", "failed with KeyError: 'weights.bin'"),
        ("late", "no such layer"),
        ("wrong", "is an instance of int"),
        ("wrong_input", "does not take inputs of shape (64,)"),
    ],
)
def test_wrong_own_model(module: Any, function: str, said: str) -> None:
    name = module(MODEL)
    text = refused(said, model={"name": f"{name}:{function}"})
    assert text.startswith(f"model.name='{name}:{function}': ")


def test_a_model_with_whole_numbers_is_not_shared_out(module: Any) -> None:
    name = module(MODEL)
    given = {"model": {"name": f"{name}:counts"}}
    assert federation.model_shape(federation.build(make(**given)))["carried"]["calls"].dtype == "int32"
    given["topology"] = {"graph": "exponential", "nodes": 4}
    said = "algorithm.name='push_sum': shares a model out in parts, and carried/calls of this one is int32"
    refused(said, **given, algorithm={"name": "push_sum"})


def test_wrong_arguments_of_an_own_model(module: Any) -> None:
    name = module(MODEL)
    wrong = {"name": f"{name}:net", "arguments": {"widht": 3}}
    refused("failed with TypeError: net() got an unexpected keyword", model=wrong)
    said = f"model.hidden=[3]: name='{name}:net' does not use it; it uses: arguments, weights"
    refused(said, model={"name": f"{name}:net", "hidden": [3]})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere'; its folder must be"),
        ("def net(", "importing failed with SyntaxError"),
        ("1 / 0", "importing failed with ZeroDivisionError: division by zero"),
        ("from p2pfl import no_such_name", "importing failed with ImportError"),
    ],
)
def test_module_of_a_model_that_cannot_be_imported(module: Any, text: str, said: str) -> None:
    refused(said, model={"name": f"{module(text)}:net"})


@pytest.mark.parametrize("name", ["no_such_module_anywhere:net", "no_such_package.inner:net"])
def test_no_module_of_a_model(name: str) -> None:
    refused(f"model.name='{name}': No module named 'no_such_", model={"name": name})


@pytest.mark.parametrize("name", [":net", "module:", "a-b:net", "a:b:c", "../x:net"])
def test_name_of_a_model_that_is_no_module_and_function(name: str) -> None:
    refused(f"model.name='{name}': must be written \"module:function\"", model={"name": name})


DATA = """
import numpy as np
def load(rows=30, features=4):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(rows, features)), np.arange(rows) % 2
    return x, y, x[:6], y[:6]
def failing():
    raise OSError("the disk is gone")
def three():
    return 1, 2, 3
def nan():
    x = np.full((6, 2), np.nan)
    return x, np.arange(6) % 2, x, np.arange(6) % 2
"""


def test_own_data(module: Any) -> None:
    made = federation.build(make(data={"source": f"{module(DATA)}:load", "arguments": {"rows": 36}}))
    assert [len(rows) for rows in made.partition.train] == [12, 12, 12] and made.dataset.train.x.shape == (36, 4)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("lod", "has no function 'lod'"),
        ("failing", "failed with OSError: the disk is gone"),
        ("three", "returned 3 values"),
        ("nan", "NaN"),
    ],
)
def test_wrong_own_data(module: Any, function: str, said: str) -> None:
    name = module(DATA)
    assert f"{name}:{function}" in refused(said, data={"source": f"{name}:{function}"})


def test_no_module_of_data() -> None:
    name = "no_such_module_anywhere:load"
    refused(f"data.source='{name}': No module named 'no_such_module_anywhere'; its folder must", data={"source": name})


# --- baselines


def sources(csv: Path, npz: Path) -> dict[str, dict[str, Any]]:
    plain = {"source": "csv", "path": str(csv), "label": "sick"}
    return {
        "digits": {"source": "digits", "test_fraction": 0.3},
        "breast_cancer": {"source": "breast_cancer"},
        "npz": {"source": "npz", "path": str(npz)},
        "csv": {**plain, "site": "site", "missing": "mean", "standardize": "pooled"},
        "csv by site": {**plain, "site": "site", "min_rows": 3, "small_sites": "drop", "standardize": "node"},
        "python": {"source": "", "arguments": {"rows": 40}},
    }


PARTITIONS: tuple[dict[str, Any], ...] = (
    {"partition": "iid"},
    {"partition": "dirichlet", "alpha": 1.0},
    {"partition": "shards", "per_node": 2},
)


_MORE = [pytest.param(source, marks=pytest.mark.more) for source in ("digits", "breast_cancer", "csv", "python")]


@pytest.mark.parametrize("source", ["npz", "csv by site", *_MORE])
def test_baselines_of_every_source_and_partition(csv: Path, npz: Path, module: Any, source: str) -> None:
    data = sources(csv, npz)[source]
    if source == "python":
        data["source"] = f"{module(DATA)}:load"
    for how in (*PARTITIONS, *([{"partition": "by_site"}] if source == "csv by site" else [])):
        wanted = make(
            data={**data, **how},
            topology={"graph": "star", "nodes": 2},
            training={"optimizer": TABLE["training"]["optimizer"], "batch_size": 5},
            churn=[event("crash", 1, 2)],
        )
        run, alone = federation.build(wanted), federation.build(baselines.alone(wanted))
        pooled = federation.build(baselines.pooled(wanted, 2))
        # alone: the same rows at the same nodes, no exchange, nobody lost
        assert alone.algorithm.name == "local" and not alone.churn and not alone.experiment.baselines
        for a, b in zip(run.partition.train, alone.partition.train, strict=True):
            np.testing.assert_array_equal(a, b)
        assert alone.experiment.training == wanted.training
        # pooled: one node with all rows, as they were, in batches as large as those of all nodes together
        assert len(pooled.graph) == 1 and not pooled.churn and pooled.experiment.training.batch_size == 10
        np.testing.assert_array_equal(pooled.partition.train[0], np.arange(len(run.dataset.train.y)))
        np.testing.assert_array_equal(pooled.partition.test[0], np.arange(len(run.dataset.test.y)))
        for part in ("train", "test"):
            np.testing.assert_array_equal(getattr(pooled.dataset, part).x, getattr(run.dataset, part).x)
        assert tasks.task(pooled, 0).neighbors == ()


def test_pooled_data_stay_standardized_by_site(csv: Path) -> None:
    data = {"source": "csv", "path": str(csv), "label": "sick", "site": "site", "partition": "by_site"}
    wanted = make(data=data, topology={"graph": "ring", "nodes": 2})
    train = federation.build(baselines.pooled(wanted, 2)).dataset.train
    age = train.x[:, 0]
    assert train.site is not None
    for site in (0, 1):  # a thousand years apart before
        np.testing.assert_allclose(age[train.site == site].mean(), 0, atol=1e-5)


def test_pooled_of_a_topology_file(tmp_path: Path) -> None:
    path = tmp_path / "g.toml"
    path.write_text("edges = [[0, 1], [1, 2]]\n")
    assert len(federation.build(baselines.pooled(make(topology={"file": str(path)}), 3)).graph) == 1


# --- digest


@pytest.mark.usefixtures("optax_promotes")
def test_digest_is_of_the_meaning_alone(tmp_path: Path, npz: Path) -> None:
    def digest(**tables: Any) -> str:
        return federation.digest(federation.build(make(**{"data": {"source": "npz", "path": str(npz)}, **tables})))

    same = digest()
    copy = tmp_path / "copy.npz"
    copy.write_bytes(npz.read_bytes())
    graph = tmp_path / "g.toml"
    graph.write_text("edges = [[2, 0], [1, 2], [0, 1]]\n")
    for tables in (
        {"data": {"source": "npz", "path": str(copy)}},
        {"driver": {"kind": "simulate"}},
        {"baselines": False},
        {"evaluation": {"every": 2}},
        {"network": {"preset": "lan"}},
        {"topology": {"file": str(graph)}},
    ):
        assert digest(**tables) == same, tables
    optimizer = {"name": "sgd", "learning_rate": 0.1}
    others = [
        digest(**tables)
        for tables in (
            {"seed": 1},
            {"rounds": 6},
            {"algorithm": {"name": "local"}},
            {"training": {"optimizer": {**optimizer, "learning_rate": 0.2}}},
            {"training": {"optimizer": {**optimizer, "name": "adam"}}},
            {"training": {"optimizer": optimizer, "local_steps": 3}},
            {"training": {"optimizer": optimizer, "batch_size": 3}},
            {"topology": {"graph": "path", "nodes": 3}},
            {"topology": {"graph": "ring", "nodes": 4}},
            {"model": {"name": "mlp"}},
            {"model": {"name": "mlp", "hidden": [3]}},
            {"data": {"source": "npz", "path": str(npz), "partition": "shards", "per_node": 1}},
            {"data": {"source": "digits"}},
            {"churn": [event("crash", 1, 2)]},
        )
    ]
    assert len({same, *others}) == 1 + len(others)


# --- one node's own rows


def test_build_own_takes_all_rows_for_that_node(csv: Path) -> None:
    own = CsvData(source="csv", path=str(csv), label="sick", drop=("site",))
    made = federation.build_own(make(), 2, own)
    task = tasks.task(made, 2)
    assert not made.pooled and not task.pooled and task.neighbors == (0, 1)
    np.testing.assert_array_equal(task.x, made.dataset.train.x)
    np.testing.assert_array_equal(task.own, np.arange(len(made.dataset.test.y)))
    assert [len(rows) for rows in made.partition.train] == [0, 0, len(made.dataset.train.y)]
    whole = federation.build(make(data={"source": "csv", "path": str(csv), "label": "sick", "drop": ["site"]}))
    np.testing.assert_array_equal(made.dataset.train.x, whole.dataset.train.x)
    # what the federation must have in common is what its experiment says, not what one node holds
    assert federation.digest(made) == federation.digest(federation.build(make()))


DIGITS = BuiltinData(source="digits")


@pytest.mark.parametrize(
    ("node", "own", "tables", "said"),
    [
        (3, DIGITS, {}, "node=3: the topology has nodes 0 to 2"),
        (-1, DIGITS, {}, "node=-1: the topology has nodes 0 to 2"),
        (
            0, BuiltinData(source="digits", partition=ShardsPartition("shards", 2)), {},
            "all its rows are that node's; leave out partition, alpha and per_node",
        ),
        (
            0, BuiltinData(source="digits", partition=EvenPartition("by_site")), {},
            "data.partition='by_site' in a node's own [data]",
        ),
        (0, QuadraticData(source="quadratic"), {}, "data.source='quadratic' in a node's own [data]: it has no rows"),
        (0, DIGITS, {"algorithm": {"name": "dsdg"}}, "did you mean 'dsgd'?"),
        (0, DIGITS, {"network": {"timing": {"silenc": 1}}}, "did you mean 'silence'?"),
        (0, DIGITS, {"training": {"optimizer": {"name": "sdg"}}}, "did you mean 'sgd'?"),
    ],
)  # fmt: skip
def test_build_own_refuses(node: int, own: Data, tables: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        federation.build_own(make(**tables), node, own)


def test_tasks_share_programs_of_equal_degree() -> None:
    made = tasks.tasks(federation.build(make(topology={"graph": "star", "nodes": 4})))
    assert made[1].program is made[2].program is not made[0].program
    assert [task.neighbors for task in made] == [(1, 2, 3), (0,), (0,), (0,)]


def test_averaging_waits_for_the_slowest_graph_that_is_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """One-peer exponential averages eight nodes in three rounds, and seven, of which a planned crash leaves so many, in
    more than ten: the statistics of a new epoch are read no sooner."""
    asked: list[int] = []
    rounds = statistics.rounds

    def told(*given: Any) -> int:
        asked.extend([rounds(*given[:-1]), rounds(*given)])
        return asked[-1]

    monkeypatch.setattr(statistics, "rounds", told)
    table = {
        "name": "t", "rounds": 60, "data": {"source": "digits"}, "model": {"name": "logistic"},
        "training": {"optimizer": {"name": "sgd", "learning_rate": 0.1}}, "statistics": {"gather": ["labels"]},
        "topology": {"graph": "one_peer_exponential", "nodes": 8}, "algorithm": {"name": "push_sum"},
        "churn": [{"event": "crash", "node": 2, "round": 20}], "driver": {"kind": "simulate"},
    }  # fmt: skip
    federation.build(experiment.parse(table, "t.toml", Experiment))
    assert asked[0] == 3 and asked[1] > 10
