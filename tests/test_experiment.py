"""The experiment file: what it means, and what it says of every mistake in it."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
from small import LEAST

from p2pfl.config import experiment
from p2pfl.config.churn import NodeEvent, RejoinEvent
from p2pfl.config.data import CsvData, DataFile, DirichletPartition, given
from p2pfl.config.experiment import TABLES, Experiment, NodeFile
from p2pfl.errors import ConfigError

# a source, a partition and a model with fields of their own
WIDE = LEAST.replace('"digits"', '"csv"\npath = "/x.csv"\npartition = "dirichlet"\nalpha = 2.0').replace(
    "logistic", "mlp"
)
FULL = """
name = "all-of.it_1"
seed = 7
rounds = 9
baselines = false
[data]
source = "csv"
partition = "dirichlet"
alpha = 0.5
path = "/data/patients.csv"
label = "num"
label_above = 0
site = "site"
split = "part"
drop = ["id", ""]
missing = "mean"
min_rows = 5
small_sites = "drop"
categories = { "chest pain" = ["none", "typical"], sex = ["0", "1"] }
standardize = "pooled"
[model]
name = "mlp"
hidden = [32, 16]
[training]
optimizer = { name = "adamw", learning_rate = 1e-3, b1 = 0.8, nesterov = true }
batch_size = 8
local_steps = 2
[topology]
file = "/graphs/hospitals.toml"
[algorithm]
name = "dsgd"
[[churn]]
event = "crash"
node = 1
round = 2
[[churn]]
event = "rejoin"
node = 1
round = 4
[network]
preset = "wan"
timing = { silence = 4, deadline_min = 9.5 }
[evaluation]
every = 3
[driver]
kind = "simulate"
"""
NODE = """
experiment = "experiment.toml"
node = 1
listen = "tcp://0.0.0.0:5555"
address = "tcp://10.0.0.9:5555"
peers = ["tcp://10.0.0.1:5555", "tcp://host-2.example.org:5556"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "exp" / "experiment.toml"
    path.parent.mkdir()
    path.write_text(LEAST)
    return path


def load(path: Path, text: str, *overrides: str) -> Experiment:
    path.write_text(text)
    return experiment.load(path, overrides)


def refused(path: Path, *overrides: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        experiment.load(path, overrides, **options)
    text = str(caught.value)
    for jargon in ("Input should", "a valid", "pydantic", "Error", " object ", "tuple", "String"):
        assert jargon not in text
    return text


# --- loading and defaults


def test_defaults(file: Path) -> None:
    found = experiment.load(file)
    assert (found.seed, found.churn, found.baselines) == (0, (), True)
    assert (found.data.partition.partition, found.training.batch_size, found.training.local_steps) == ("iid", 16, 10)
    assert (found.network.preset, found.network.timing, found.evaluation.every) == ("local", {}, 1)
    assert found.driver.kind == "live"
    assert given(found.data) == {}


def test_everything_is_read(file: Path) -> None:
    found = load(file, FULL)
    assert found.churn == (NodeEvent("crash", 1, 2), RejoinEvent("rejoin", 1, 4))
    assert isinstance(found.data, CsvData) and found.data.partition == DirichletPartition("dirichlet", 0.5)
    assert found.data.categories == {"chest pain": ("none", "typical"), "sex": ("0", "1")}
    assert found.data.label_above == 0.0 and isinstance(found.data.label_above, float)
    assert found.model.hidden == (32, 16) and found.data.drop == ("id", "")
    assert found.training.optimizer == {"name": "adamw", "learning_rate": 1e-3, "b1": 0.8, "nesterov": True}
    assert found.network.timing == {"silence": 4.0, "deadline_min": 9.5}


@pytest.mark.parametrize("text", [LEAST, FULL])
def test_dump_and_load_are_inverse(file: Path, text: str) -> None:
    found = load(file, text)
    assert load(file, experiment.dump(found)) == found


EXPERIMENTS = [
    path
    for folder in ("experiments", "topologies")
    for path in sorted((Path(__file__).parents[1] / folder).glob("**/*.toml"))
    if {"rounds", "algorithm"} <= set(tomllib.loads(path.read_text("utf-8")))
]


def within(dumped: Any, said: Any) -> Any:
    """Of a table within a table what the file says of it: its other fields are dumped with their defaults."""
    return {key: dumped[key] for key in said} if isinstance(said, dict) else dumped


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_is_dumped_says_what_the_file_says(path: Path, tmp_path: Path) -> None:
    """Every experiment of the repository: nothing is lost, nothing but defaults is added, tables stay flat."""
    found, table = experiment.load(path), tomllib.loads(path.read_text("utf-8"))
    dumped = tomllib.loads(experiment.dump(found))
    assert load(tmp_path / "again.toml", experiment.dump(found)) == found
    for name, value in table.items():
        if isinstance(value, dict):
            paths = {"path", "file", "layout"}  # they become absolute
            assert {key: within(dumped[name][key], value[key]) for key in value if key not in paths} == {
                key: each for key, each in value.items() if key not in paths
            }
        elif name != "churn":
            assert dumped[name] == value
    assert set(dumped["data"]) == set(table["data"]) | {"partition"}
    assert [set(each) for each in dumped["churn"]] == [set(each) for each in table.get("churn", [])]


def test_node_file_dump_and_load(file: Path) -> None:
    path = file.parent / "node.toml"
    path.write_text(NODE)
    found = experiment.load_node(path)
    assert found.experiment == str(file.resolve()) and found.peers[1] == "tcp://host-2.example.org:5556"
    path.write_text(experiment.dump(found))
    assert experiment.load_node(path) == found


def test_the_example_in_the_repository_loads() -> None:
    for path in (Path(__file__).parents[1] / "experiments").glob("*/experiment.toml"):
        assert experiment.load(path).name


def test_a_byte_order_mark_and_windows_line_ends_are_no_mistake(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + LEAST.strip().replace("\n", "\r\n").encode())
    assert experiment.load(file).name == "tiny"


def test_nothing_can_be_changed_through_a_list(file: Path) -> None:
    found = load(file, FULL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.rounds = 4  # type: ignore[misc]
    for value in (found.churn, found.model.hidden, found.data.drop, *found.data.categories.values()):  # type: ignore[union-attr]
        assert isinstance(value, tuple)
    # from Python a list may be given, though a type checker would rather not
    events: Any = [NodeEvent("leave", 1, 2)]
    assert dataclasses.replace(found, churn=events).churn == tuple(events)


# --- --set


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("rounds=5", "rounds", 5),
        (" rounds = 5 # five", "rounds", 5),
        ("training.batch_size=32", "training.batch_size", 32),
        ("name=bare-word", "name", "bare-word"),
        ("name='quoted'", "name", "quoted"),
        ('name="true"', "name", "true"),
        ("baselines=false", "baselines", False),
        ("data.alpha=1", "data.partition.alpha", 1.0),
        ("data.label=chest pain", "data.label", "chest pain"),
        ("data.label=a.b", "data.label", "a.b"),
        ("model.hidden=[]", "model.hidden", ()),
        ("model.hidden=[4, 2]", "model.hidden", (4, 2)),
        ("churn=[]", "churn", ()),
        ('churn=[{event="leave", node=0, round=2}]', "churn", (NodeEvent("leave", 0, 2),)),
        ('driver={kind="simulate"}', "driver.kind", "simulate"),
        ("driver.kind=simulate", "driver.kind", "simulate"),
        ("training.optimizer.learning_rate=0.5", "training.optimizer", {"name": "sgd", "learning_rate": 0.5}),
        ('data.categories."chest pain"=["a"]', "data.categories", {"chest pain": ("a",)}),
        ("data.categories.'a.b=c'=[\"x=y\"]", "data.categories", {"a.b=c": ("x=y",)}),
        ("network.timing.silence=2", "network.timing", {"silence": 2.0}),
    ],
)
def test_set(file: Path, override: str, field: str, value: Any) -> None:
    found: Any = load(file, WIDE, override)
    for name in field.split("."):
        found = getattr(found, name)
    assert found == value and type(found) is type(value)


def test_the_last_set_counts_and_others_stay(file: Path) -> None:
    found = experiment.load(file, ["rounds=5", "rounds=6", "seed=1"])
    assert found == dataclasses.replace(experiment.load(file), rounds=6, seed=1)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rounds", "must be written a.b=VALUE, as in training.batch_size=32"),
        ("=3", "must be written a.b=VALUE"),
        ("data.=3", "must be written a.b=VALUE"),
        ("a b=3", "must be written a.b=VALUE"),
        ("rounds=", "'' is not TOML"),
        ("rounds= ", "' ' is not TOML"),
        ("model.hidden=[1", "'[1' is not TOML: Unclosed array"),
        ('name="q', "is not TOML: Unterminated string"),
        ("rounds=1\nseed=3", "holds more than one value; give --set once for each"),
        ("rounds=" + "9" * 5000, "must be a whole number"),
        ("model.hidden=" + "[" * 9999, "is not TOML"),
        ("data.source.name=x", "data.source is no table; set it as a whole"),
        ("churn.0.round=3", "churn is no table; set it as a whole, as in churn=[]"),
    ],
)
def test_bad_set(file: Path, override: str, said: str) -> None:
    file.write_text(LEAST + "[[churn]]\nevent = 'crash'\nnode = 1\nround = 2\n")
    text = refused(file, override)
    assert said in text and "--set" in text


def test_a_fault_says_whether_it_stands_in_the_file_or_in_a_set(file: Path) -> None:
    file.write_text(LEAST.replace("rounds = 3", "rounds = 0"))
    assert refused(file, "seed=-1").splitlines() == [
        f"{file}: rounds=0: must be >= 1",
        f"{file} with --set: seed=-1: must be >= 0",
    ]
    assert f"{file} with --set: modle=" in refused(file, "modle.name=mlp")
    assert f"{file} with --set: model.hidden[1]='a'" in refused(file, "model.name=mlp", 'model.hidden=[1, "a"]')
    said = "with --set: data.alpha=1: partition='iid' does not use it; leave it out"
    assert said in refused(file, "data.alpha=1") and "data.alpha" not in refused(file)


# --- paths


def test_paths_beside_the_file_come_first_then_the_current_directory(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    file.write_text(LEAST.replace('graph = "ring"\nnodes = 3', 'file = "g.toml"') + "")
    text = file.read_text().replace('"digits"', '"npz"\npath = "sub/d.npz"')
    beside, inside = file.parent / "sub" / "d.npz", here / "sub" / "d.npz"

    def path() -> str:
        data: Any = load(file, text).data
        return str(data.path)

    assert path() == str(beside)  # neither is there
    inside.parent.mkdir()
    inside.touch()
    assert path() == str(inside)
    beside.parent.mkdir()
    beside.touch()
    assert path() == str(beside)
    assert load(file, text).topology.file == str(file.parent / "g.toml")
    (here / "g.toml").touch()
    assert load(file, text).topology.file == str(here / "g.toml")


@pytest.mark.parametrize("override", ["data.path=d.npz", "data.path='d.npz'", 'data={source="npz", path="d.npz"}'])
def test_a_path_of_set_is_taken_from_the_current_directory(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    (file.parent / "d.npz").touch()
    monkeypatch.chdir(tmp_path)
    data: Any = experiment.load(file, ["data.source=npz", override]).data
    assert data.path == str(tmp_path / "d.npz")
    assert experiment.load(file, ["topology.file=g.toml"]).topology.file == str(tmp_path / "g.toml")


def test_an_absolute_path_stays(file: Path) -> None:
    data: Any = load(file, FULL).data
    assert data.path == "/data/patients.csv"


def test_a_missing_file_is_told_with_both_places(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file.write_text(LEAST.replace('"digits"', '"npz"\npath = "sub/d.npz"'))
    assert experiment.load(file)  # a node with its own rows has no need of it
    text = refused(file, find=True)
    assert text.startswith(f"{file}: data.path='sub/d.npz': no such file")
    assert str(file.parent / "sub/d.npz") in text and str(tmp_path / "sub/d.npz") in text
    text = refused(file, "data.path=x.npz", find=True)
    assert f"data.path='{tmp_path / 'x.npz'}': no such file" in text and "beside" not in text
    file.write_text(LEAST.replace('graph = "ring"', 'file = "g.toml"'))
    assert f"topology.file='g.toml': no such file; looked for it beside this file ({file.parent}/g.toml)" in refused(
        file, find=True
    )


def test_node_file_paths(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = file.parent / "node.toml"
    path.write_text(NODE + '[data]\nsource = "csv"\npath = "own.csv"\n')
    with pytest.raises(ConfigError, match=r"data\.path='own\.csv': no such file; looked for it beside this file"):
        experiment.load_node(path)
    (tmp_path / "own.csv").touch()
    found = experiment.load_node(path)
    assert isinstance(found.data, CsvData) and found.data.path == str(tmp_path / "own.csv")
    file.unlink()
    with pytest.raises(ConfigError, match=r"experiment='experiment\.toml': no such file; looked for it beside"):
        experiment.load_node(path)


COMMON = """[data]
source = "csv"
label = "ill"
use = ["age", "sex"]
site = "site"
partition = "by_site"
split = "part"
rename = { Alter = "age" }
categories = { sex = ["f", "m"] }
"""


def test_a_node_adds_to_the_data_of_the_experiment(file: Path, tmp_path: Path) -> None:
    """Field by field, of tables entry by entry; not what deals rows to nodes, nor the other of two."""
    file.write_text(LEAST.replace('[data]\nsource = "digits"\n', COMMON))
    assert isinstance(experiment.load(file).data, CsvData)
    path = file.parent / "node.toml"
    (file.parent / "own.csv").touch()
    path.write_text(NODE + '[data]\npath = "own.csv"\ntest_fraction = 0.5\nrename = { Geschlecht = "sex" }\n')
    assert experiment.load_node(path).data == CsvData(
        source="csv", path=str(file.parent / "own.csv"), label="ill", use=("age", "sex"), test_fraction=0.5,
        rename={"Alter": "age", "Geschlecht": "sex"}, categories={"sex": ("f", "m")},
    )  # fmt: skip
    path.write_text(NODE + '[data]\npath = "own.csv"\ndrop = ["id"]\nlabel = "y"\n')
    found = experiment.load_node(path).data
    assert isinstance(found, CsvData) and (found.use, found.drop, found.label) == (None, ("id",), "y")
    path.write_text(NODE + '[data]\nsource = "npz"\npath = "own.csv"\n')
    assert given(experiment.load_node(path).data) == {"path": str(file.parent / "own.csv")}  # type: ignore[arg-type]


# --- mistakes in the file


def edited(field: str, toml: str) -> str:
    """FULL with one field set to another text, whatever that is."""
    table, _, name = field.rpartition(".")
    head, done = "", False
    lines: list[str] = []
    for line in [*FULL.splitlines(), "[]"]:
        if line.startswith("["):
            if head == table and not done:
                lines, done = [*lines, f"{name} = {toml}"], True
            head = line.strip("[]")
        if head == table and line.split(" = ")[0] == name and not done:
            line, done = f"{name} = {toml}", True
        lines.append(line)
    assert done, field
    return "\n".join(lines[:-1]) + "\n"


@pytest.mark.parametrize(
    ("field", "toml", "said"),
    [
        ("rounds", '"a"', "rounds='a': must be a whole number"),
        ("rounds", "1.5", "rounds=1.5: must be a whole number"),
        ("rounds", "3.0", "rounds=3.0: must be a whole number"),
        ("rounds", "true", "rounds=true: must be a whole number"),
        ("rounds", "[3]", "rounds=[3]: must be a whole number"),
        ("rounds", "0", "rounds=0: must be >= 1"),
        ("rounds", "-3", "rounds=-3: must be >= 1"),
        ("rounds", "9999999999", "rounds=9999999999: must be < 2147483648"),
        ("seed", "-1", "seed=-1: must be >= 0"),
        ("seed", "2147483648", "seed=2147483648: must be < 2147483648"),
        ("seed", "nan", "seed=nan: must be a finite number"),
        ("name", "3", "name=3: must be text, in quotes"),
        ("name", '""', "name='': must be one or more letters, digits, '_', '.' or '-'"),
        ("name", '"a/b"', "name='a/b': must be one or more letters, digits"),
        ("baselines", '"yes"', "baselines='yes': must be true or false"),
        ("baselines", "1", "baselines=1: must be true or false"),
        ("data.source", "3", "data.source=3: must be text, in quotes"),
        ("data.source", "2020-01-02", "data.source='2020-01-02': no field takes a date or time; as text"),
        ("data.partition", '"dirichle"', "data.partition='dirichle': did you mean 'dirichlet'? Valid: by_site, "),
        ("data.partition", "3", "data.partition=3: must be text, in quotes"),
        ("data.missing", '"drop"', "data.missing='drop': did you mean 'drop_row'? Valid: drop_row, error, gossip, "),
        ("data.alpha", '"0.3"', "data.alpha='0.3': must be a number"),
        ("data.alpha", "true", "data.alpha=true: must be a number"),
        ("data.alpha", "0", "data.alpha=0: must be > 0"),
        ("data.alpha", "-0.5", "data.alpha=-0.5: must be > 0"),
        ("data.alpha", "nan", "data.alpha=nan: must be a finite number"),
        ("data.alpha", "inf", "data.alpha=inf: must be a finite number"),
        ("data.test_fraction", "1.0", "data.test_fraction=1.0: must be < 1"),
        ("data.test_fraction", "0.0", "data.test_fraction=0.0: must be > 0"),
        ("data.label_above", "-inf", "data.label_above=-inf: must be a finite number"),
        ("data.min_rows", "0", "data.min_rows=0: must be >= 1"),
        ("data.drop", '"id"', "data.drop='id': must be a list, in square brackets"),
        ("data.drop", "[1]", "data.drop[0]=1: must be text, in quotes"),
        ("data.categories", '["a"]', "data.categories=['a']: must be a table, as in { name = VALUE }"),
        ("data.categories", "{a = [1]}", "data.categories.a[0]=1: must be text, in quotes"),
        ("model.hidden", "64", "model.hidden=64: must be a list, in square brackets"),
        ("model.hidden", "[64, 0]", "model.hidden[1]=0: must be >= 1"),
        ("algorithm.arguments", "{x = [1, nan]}", "algorithm.arguments.x[1]=nan: must be a finite number"),
        ("training.optimizer", '"sgd"', "training.optimizer='sgd': must be a table, as in { name = VALUE }"),
        ("training.optimizer", "{name = 'sgd', learning_rate = nan}", "learning_rate=nan: must be a finite number"),
        ("training.batch_size", "8.0", "training.batch_size=8.0: must be a whole number"),
        ("training.local_steps", "0", "training.local_steps=0: must be >= 1"),
        ("topology.nodes", "0", "topology.nodes=0: must be >= 1"),
        ("network.preset", '"local_"', "network.preset='local_': did you mean 'local'? Valid: lan, local, wan"),
        ("network.timing", "{silence = true}", "network.timing.silence=true: must be a number"),
        ("network.timing", "{silence = nan}", "network.timing.silence=nan: must be a finite number"),
        ("evaluation.every", "0", "evaluation.every=0: must be >= 1"),
        ("driver.kind", '"liv"', "driver.kind='liv': did you mean 'live'? Valid: live, simulate"),
        ("churn.event", '"crsh"', "churn[0].event='crsh': did you mean 'crash'? Valid: crash, freeze, heal, join, "),
        ("churn.node", "-1", "churn[0].node=-1: must be >= 0"),
        ("churn.round", "0", "churn[0].round=0: must be >= 1"),
        # unknown fields: the nearest name, and the list of that very table
        ("rouns", "3", "rouns=3: no such field; did you mean 'rounds'? Valid: algorithm, attack, baselines, churn, "),
        ("data.alpa", "3", "data.alpa=3: no such field; did you mean 'alpha'? Valid: alpha, categories, classes, "),
        ("model.hiden", "[3]", "model.hiden=[3]: no such field; did you mean 'hidden'? Valid: fresh, hidden, name, "),
        ("training.batch", "3", "training.batch=3: no such field; did you mean 'batch_size'? Valid: batch_size, "),
        ("topology.node", "3", "topology.node=3: no such field; did you mean 'nodes'? Valid: arguments, file, "),
        ("algorithm.nam", "3", "algorithm.nam=3: no such field; did you mean 'name'? Valid: arguments, name, sh"),
        ("churn.nod", "3", "churn[0].nod=3: no such field; did you mean 'node'? Valid: event, node, round"),
        ("network.timings", "{}", "network.timings={}: no such field; did you mean 'timing'? Valid: alone, "),
        ("evaluation.zzz", "3", "evaluation.zzz=3: no such field; Valid: answers, every, extra_metrics, "),
        ("driver.kin", "3", "driver.kin=3: no such field; did you mean 'kind'? Valid: checkpoint, "),
    ],
)  # fmt: skip
def test_a_mistake_names_file_field_value_and_rule(file: Path, field: str, toml: str, said: str) -> None:
    file.write_text(edited(field, toml))
    text = refused(file)
    assert text.startswith(f"{file}: ") and said in text
    assert len(text.splitlines()) == 1


PARTED = "[[churn]]\nevent = 'partition'\nround = 2\n"
LOST = "[[churn]]\nevent = 'link_loss'\nround = 2\nrounds = 1\nloss = 0.5\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LEAST.replace("rounds = 3\n", ""), "rounds: missing; it must be given"),
        (LEAST.replace('[algorithm]\nname = "dsgd"\n', ""), "algorithm: missing; a table [algorithm] must be given"),
        (LEAST.replace('source = "digits"', ""), "data.source: missing; it must be given"),
        (LEAST + '[[churn]]\nevent = "crash"\nnode = true\n', "churn[0].node=true: must be a whole number"),
        (
            LEAST + "[[churn]]\nevent = 'partition'\nround = 2\ngroups = [[0, -1]]\n",
            "churn[0].groups[0][1]=-1: must be >= 0",
        ),
        (LEAST + LOST + "links = [[0]]\n", "churn[0].links[0][1]: missing; it must be given"),
        (LEAST + LOST + "links = [[0, 1, 2]]\n", "churn[0].links[0]=[0, 1, 2]: must hold at most 2"),
        (LEAST + LOST.replace("0.5", "1.5") + "nodes = [0]\n", "churn[0].loss=1.5: must be less than or equal to 1"),
        ("churn = [3]\n" + LEAST, "churn[0]=3: must be a table with event or model"),
        ("churn = 3\n" + LEAST, "churn=3: must be a list, in square brackets"),
        ("driver = 3\n" + LEAST, "driver=3: must be a table with the fields kind"),
        ("[churn]\nevent = 'crash'\n" + LEAST.replace("\nname", "\n[x]\nname", 1), "churn={'event': 'crash'}: must be"),
        ("data = 3\n" + LEAST.replace('[data]\nsource = "digits"\n', ""), "data=3: must be a table with source"),
        (LEAST.replace('"digits"', '"npz"'), "data.path: missing; source='npz' needs it"),
        (LEAST + "[modle]\n", "modle={}: no such field; did you mean 'model'?"),
    ],
)
def test_missing_and_misplaced_tables(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    assert f"{file}: {said}" in refused(file)


def test_all_faults_are_told_one_per_line(file: Path) -> None:
    file.write_text(edited("data.alpha", "-1").replace("rounds = 9", "round = 9").replace('"crash"', '"crsh"'))
    lines = refused(file).splitlines()
    assert len(lines) == 4 and all(line.startswith(f"{file}: ") for line in lines)
    assert {line.split(": ")[1].split("=")[0] for line in lines} == {"rounds", "round", "data.alpha", "churn[0].event"}


def test_a_long_value_is_cut_short(file: Path) -> None:
    file.write_text(LEAST.replace("rounds = 3", f'rounds = "{"x" * 5000}"'))
    assert len(refused(file)) < len(str(file)) + 120


# --- no experiment file at all


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "name: missing"),
        (b"name = \n", "not TOML: Invalid value (at line 1, column 8): name ="),
        (b"name = 'a'\nrounds 3\n", "not TOML: Expected '=' after a key"),
        (b"rounds = 3\nrounds = 4\n", "not TOML: Cannot overwrite a value (at line 2, column 11): rounds = 4"),
        (b"[data]\n[data]\n", "not TOML: Cannot declare"),
        (b"[data]\n[data]\n", " twice (at line 2, column 6): [data]"),
        (b'name = "a\n', ' (at line 1, column 10): name = "a'),
        (b"x = [1,\n", "not TOML: "),
        (b"x = " + b"[" * 9999, "not TOML: "),
        (b"x = " + b"9" * 9999, "not TOML: "),
        (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "not a text in UTF-8 (byte 0); a TOML file is needed"),
        (b"\x00" * 50, "not TOML: "),
        (b"site,age\nva,3\n", "not TOML: Expected '=' after a key in a key/value pair (at line 1, column 5): site,age"),
    ],
)  # fmt: skip
def test_what_is_no_toml(file: Path, text: bytes, said: str) -> None:
    file.write_bytes(text)
    found = refused(file)
    assert found.startswith(f"{file}: ") and said in found


def test_an_empty_file_lacks_every_field(file: Path) -> None:
    file.write_text("")
    missing = [line.split(": ")[1] for line in refused(file).splitlines()]
    assert sorted(missing) == ["algorithm", "data", "name", "rounds", "topology"]


def test_no_such_file_and_a_directory(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(Path("x.toml")) == f"x.toml: no such file; the full path is {tmp_path / 'x.toml'}"
    assert "is a directory; give the file, as in exp/experiment.toml" in refused(Path("exp"))
    assert "can't be read" in refused(file / "below")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("node = 1", "node = -1", "node=-1: must be >= 0"),
        ("node = 1", 'node = "1"', "node='1': must be a whole number"),
        ("node = 1", "", "node: missing; it must be given"),
        (
            "listen = ",
            "lisen = ",
            "lisen='tcp://0.0.0.0:5555': no such field; did you mean 'listen'? Valid: address, data, ",
        ),
        ("tcp://0.0.0.0:5555", "0.0.0.0:5555", "listen='0.0.0.0:5555': must be written tcp://HOST:PORT"),
        ("tcp://0.0.0.0:5555", "tcp://0.0.0.0", "listen='tcp://0.0.0.0': must be written tcp://HOST:PORT"),
        ("tcp://10.0.0.1:5555", "http://10.0.0.1:5555", "peers[0]='http://10.0.0.1:5555': must be written tcp://"),
        (
            "tcp://0.0.0.0:5555",
            "tcp://::1:5555",
            "listen='tcp://::1:5555': must be written tcp://HOST:PORT, as in tcp://1",
        ),
        ("tcp://10.0.0.1:5555", "tcp://[::1]", "peers[0]='tcp://[::1]': must be written tcp://HOST:PORT"),
        ("tcp://10.0.0.9:5555", "tcp://köln:5555", "address='tcp://köln:5555': must be written tcp://HOST:PORT"),
        ("peers", "data = {sorce = 'csv'}\npeers", "data.sorce='csv': no such field; did you mean 'source'?"),
        ("peers = [", "peers = [3, ", "peers[0]=3: must be text"),
    ],
)
def test_mistakes_in_a_node_file(file: Path, old: str, new: str, said: str) -> None:
    path = file.parent / "node.toml"
    path.write_text(NODE.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        experiment.load_node(path)
    assert f"{path}: {said}" in str(caught.value)


def test_tables_names_every_dataclass_of_the_module() -> None:
    known = {kind for kinds in TABLES.values() for kind in kinds}
    found = {each for each in vars(experiment).values() if dataclasses.is_dataclass(each)} - {DataFile}
    assert found <= known and NodeFile in found and {CsvData, DirichletPartition, NodeEvent} <= known


def test_a_sweep_is_taken_for_nothing_else(tmp_path: Path) -> None:
    """It names an experiment, as a node file does."""
    file = tmp_path / "sweep.toml"
    file.write_text('name = "s"\nexperiment = "experiment.toml"\nmetrics = ["accuracy_mean"]\n[axes]\nrounds = [1]\n')
    for read in (experiment.is_node, experiment.load_node, experiment.load):
        with pytest.raises(ConfigError, match=r"sweep\.toml: is a sweep, .*'experiment\.toml'\), or a node file"):
            read(file)


@pytest.mark.parametrize(
    ("text", "given", "said"),
    [
        (NODE, (), ": is a node file, for p2pfl node; give the experiment that it names ('"),
        ('name = "h"\nquorum = "majority"\n[[member]]\nname = "a"\n', (), ": is a federation file, which says who"),
        ('[network]\nfederation = "ours.toml"\n', (), ": network.federation='ours.toml': is said of one site, and"),
        ('key = "north.key"\n', (), ": key='north.key': is said of one site, and"),
        ("", ("network.plaintext=true",), " with --set: network.plaintext=True: is said of one site, and"),
    ],
)
def test_who_takes_part_is_no_matter_of_an_experiment(
    tmp_path: Path, text: str, given: tuple[str, ...], said: str
) -> None:
    """It stands in each site's node file; `p2pfl run` has no keys, and needs none."""
    file = tmp_path / "file.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        experiment.load(file, given)
    assert str(caught.value).startswith(f"{file}{said}") and "p2pfl" in str(caught.value)
