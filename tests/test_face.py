"""The front door, as a stranger meets it: ten lines that run, that checkers understand, and that say what is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
import pytest

import p2pfl
from p2pfl.config.experiment import Experiment, parse
from p2pfl.data import Partition
from p2pfl.drivers.simulate.simulation import Evaluated
from p2pfl.errors import ConfigError, DataError, TopologyError
from p2pfl.learning.models import mlp
from p2pfl.runs import simulated
from p2pfl.types import Algorithm, Learner, Schedule

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(7)
X, Y = RNG.normal(size=(40, 4)).astype(np.float32), RNG.integers(0, 2, 40)
ARRAYS = (X, Y, X[:10], Y[:10])


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly() -> Iterator[None]:
    """What is compiled here runs once or twice: XLA's optimizations would take longer than all of it."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def linear(classes: int = 2) -> Learner:
    return p2pfl.from_flax(mlp((4,), classes, hidden=()), jnp.asarray(X[:1]), classes)


def ring(nodes: int = 4) -> Schedule:
    return p2pfl.topology.schedule(nx.cycle_graph(nodes))


def sgd(learner: Learner | None = None) -> Algorithm:
    return p2pfl.dsgd(learner or linear(), optax.sgd(0.1))


# ---------------------------------------------------------------------------------------------------------- it runs


@pytest.mark.parametrize("page", ["README.md", "docs/algorithms.md"])
def test_what_a_page_shows_runs(page: str) -> None:
    """The blocks of Python, one after another, but for what starts processes: a run, and a node of a script's own."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert sum("p2pfl.simulate(" in block for block in blocks) == 1
    names: dict[str, Any] = {}
    for block in blocks:
        if "p2pfl.run(" not in block and "p2pfl.join(" not in block:
            exec(compile(block, page, "exec"), names)
    score = names["result"].history.score
    assert score.shape[1] == 8 and score[-1].min() > 0.5 > 0.3 > score[0].min()


def test_arrays_and_an_experiment_file_end_in_the_same_bits() -> None:
    """Digits on a ring of 4: models, evaluations and mean are those of the file with the same values."""
    table = {
        "name": "t", "rounds": 5, "seed": 3, "data": {"source": "digits", "partition": "dirichlet", "alpha": 0.5},
        "model": {"name": "mlp", "hidden": [16]}, "topology": {"graph": "ring", "nodes": 4},
        "training": {"optimizer": {"name": "sgd", "learning_rate": 0.1}, "batch_size": 8, "node_steps": [1, 2, 3, 4]},
        "algorithm": {"name": "gradient_tracking"}, "evaluation": {"every": 2}, "driver": {"kind": "simulate"},
        "baselines": False,
    }  # fmt: skip
    evaluated: list[Evaluated] = []
    federation = p2pfl.build(parse(table, "t", Experiment))
    expected = simulated.simulate_federation(federation, progress=lambda _, since: evaluated.extend(since))
    dataset = p2pfl.data.digits(seed=3)
    learner = p2pfl.from_flax(mlp((64,), 10, hidden=(16,)), dataset.train.x[:1], classes=10)
    result = p2pfl.simulate(
        p2pfl.algorithms.gradient_tracking(learner, optax.sgd(0.1)),
        dataset,
        schedule=ring(),
        rounds=5,
        partition=p2pfl.data.dirichlet(dataset, 4, 3, alpha=0.5),
        batch_size=8,
        local_steps=[1, 2, 3, 4],
        seed=3,
        evaluate_every=2,
    )
    jax.tree.map(np.testing.assert_array_equal, result.models, expected.models)
    assert result.history.round.tolist() == [2, 4, 5]
    for name in ("train_loss", "score", "score_own", "score_before"):
        np.testing.assert_array_equal(getattr(result.history, name), np.stack([getattr(e, name) for e in evaluated]))
    assert result.history.consensus_distance.tolist() == [e.consensus_distance for e in evaluated]
    assert result.outcome.drift == expected.drift


def test_callbacks_and_rows_of_ones_own() -> None:
    rounds: list[int] = []

    class Rounds(p2pfl.Callback):
        def round(self, info: p2pfl.RoundInfo) -> None:
            rounds.append(info.round)

    own = (np.arange(5), np.arange(5, 10), np.arange(0), np.arange(0))
    partition = Partition(tuple(np.arange(i, 40, 4) for i in range(4)), own)
    result = p2pfl.simulate(
        sgd(), ARRAYS, schedule=ring(), rounds=3, partition=partition, evaluate_every=2, devices=1,
        callbacks=[Rounds()],
    )  # fmt: skip
    assert rounds == result.history.round.tolist() == [2, 3]
    assert np.isnan(result.history.score_own[:, 2:]).all() and not np.isnan(result.history.score_own[:, :2]).any()


def test_what_is_private_stays_so() -> None:
    """A learner that keeps leaves at home: the others come to agree, these do not."""
    kept = p2pfl.methods.keep(linear(), optax.sgd(0.1), lambda path: path.endswith("kernel"))
    graph = p2pfl.topology.plan("complete", 4)
    model = p2pfl.simulate(sgd(kept), ARRAYS, schedule=graph, rounds=2, devices=1).models
    shared, private = (jax.tree.leaves(part)[0] for part in (model["trained"], model["private"]["share"]["leaves"]))
    assert np.ptp(shared, axis=0).max() < 1e-6 < 1e-4 < np.ptp(private, axis=0).max()


@pytest.mark.more
def test_double_precision_is_that_of_the_model() -> None:
    jax.config.update("jax_enable_x64", True)
    learner = p2pfl.learning.cast(linear(), "float64")
    result = p2pfl.simulate(sgd(learner), ARRAYS, schedule=ring(), rounds=1, local_steps=1, devices=1)
    assert {leaf.dtype for leaf in jax.tree.leaves(result.models["trained"])} == {np.dtype("float64")}
    assert result.outcome.drift < 1e-16


def test_an_algorithm_is_given_its_rows_and_not_their_numbers() -> None:
    """An algorithm of a user may look at the batches of a round."""
    seen: list[Any] = []
    base = sgd()

    def local(state: Any, batches: Any, key: Any, steps: Any) -> Any:
        seen.append(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batches))
        return base.local(state, batches, key, steps)

    looking = base._replace(local=local)
    p2pfl.simulate(looking, ARRAYS, schedule=ring(), rounds=1, local_steps=3, batch_size=5, devices=1)
    assert {"x": ((3, 5, 4), np.dtype("float32")), "y": ((3, 5), np.dtype("int32"))} in seen


@pytest.mark.parametrize("name", p2pfl.algorithms.ALGORITHMS)
def test_every_algorithm_says_what_it_learns_with(name: str) -> None:
    learner = linear()
    made = p2pfl.algorithms.ALGORITHMS[name](learner, optax.sgd(0.1))
    assert made.learner is learner or (name == "fedprox" and made.learner.evaluate is learner.evaluate)
    if made.link == "exchange":
        assert p2pfl.methods.chain(made, p2pfl.methods.clip(1.0), p2pfl.methods.cast()).learner is made.learner


# ------------------------------------------------------------------------------------------------ it says what is wrong


def refusals() -> dict[str, tuple[Callable[[], dict[str, Any]], type[Exception], str]]:
    """What is given instead, the error, and its text."""
    few = Partition((np.arange(4),) * 3, (np.arange(0),) * 3)
    empty = Partition((np.arange(4), np.arange(0), np.arange(4), np.arange(4)), (np.arange(0),) * 4)
    beyond = Partition((np.arange(41),) * 4, (np.arange(0),) * 4)
    directed = nx.DiGraph([(i, (i + 1) % 4) for i in range(4)])
    return {
        "no algorithm": (lambda: {"algorithm": p2pfl.dsgd}, ConfigError, "is a function; must be an Algorithm"),
        "no learner": (
            lambda: {"algorithm": sgd()._replace(learner=None)}, ConfigError, "give Algorithm(..., learner=learner)",
        ),
        "a graph": (
            lambda: {"schedule": nx.cycle_graph(4)}, ConfigError,
            "schedule: is a Graph; must be a Schedule. p2pfl.topology.schedule(graph) makes one",
        ),
        "a directed graph": (
            lambda: {"schedule": p2pfl.topology.schedule(directed)}, TopologyError,
            "dsgd: the schedule of 4 nodes does not fit; dsgd needs symmetric weights",
        ),
        "a graph for d2": (
            lambda: {"algorithm": p2pfl.algorithms.d2(linear(), optax.sgd(0.1)), "schedule": ring(4)}, TopologyError,
            "lambda_min = -0.3333",
        ),
        "no rounds": (lambda: {"rounds": 0}, ConfigError, "rounds=0: must be >= 1"),
        "no rows": (lambda: {"batch_size": -1}, ConfigError, "batch_size=-1: must be >= 1"),
        "no steps": (lambda: {"local_steps": 0}, ConfigError, "local_steps: all are 0; somebody must train"),
        "negative steps": (lambda: {"local_steps": [1, -1, 1, 1]}, ConfigError, "must be whole numbers >= 0"),
        "steps of others": (lambda: {"local_steps": [1, 2]}, ConfigError, "local_steps: 2 numbers for 4 nodes"),
        "never": (lambda: {"evaluate_every": 0}, ConfigError, "evaluate_every=0: must be >= 1"),
        "a negative seed": (lambda: {"seed": -1}, ConfigError, "seed=-1: must be >= 0"),
        "no chunk": (lambda: {"chunk": 0}, ConfigError, "chunk=0: must be >= 1"),
        "no devices": (lambda: {"devices": 0}, ConfigError, "devices=0: must be >= 1"),
        "three arrays": (
            lambda: {"dataset": ARRAYS[:3]}, ConfigError,
            "dataset: is 3 values; must be a Dataset or (x_train, y_train, x_test, y_test)",
        ),
        "not finite": (lambda: {"dataset": (X * np.nan, Y, X, Y)}, DataError, "dataset: train.x"),
        "unequal rows": (lambda: {"dataset": (X, Y[:-1], X, Y)}, DataError, "train.x has 40 rows, train.y has 39"),
        "other rows": (lambda: {"dataset": (X[:, :3], Y, X[:, :3], Y)}, ConfigError, "the learner does not take rows"),
        "other classes": (
            lambda: {"algorithm": sgd(linear(3))}, ConfigError,
            "dataset: of 2 classes, and the learner's output for a row has shape (3,); must be (2,). Make",
        ),
        "rows of 3 nodes": (lambda: {"partition": few}, ConfigError, "train: rows of 3 nodes, and the schedule has 4"),
        "a node with nothing": (lambda: {"partition": empty}, ConfigError, "partition.train[1]: is empty"),
        "rows that are not there": (lambda: {"partition": beyond}, ConfigError, "train[0]: rows must be from 0 to 39"),
        "a list": (lambda: {"partition": [[0], [1]]}, ConfigError, "partition: is a list; must be a Partition"),
        "more nodes than rows": (lambda: {"schedule": ring(41)}, DataError, "nodes=41: more than the 40 train rows"),
        "sites": (
            lambda: {"algorithm": p2pfl.algorithms.push_sum(linear(), optax.sgd(0.1), by="sample")}, ConfigError,
            "push_sum asks for 'private' in the model",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("case", refusals())
def test_what_can_not_be_meant_is_refused_before_anything_is_compiled(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, kind, text = refusals()[case]
    monkeypatch.setattr("p2pfl.drivers.simulate.engine.run", lambda *_: pytest.fail("it was begun"))
    arguments = {"algorithm": sgd(), "dataset": ARRAYS, "schedule": ring(), "rounds": 2, **given()}
    with pytest.raises(kind) as refused:
        p2pfl.simulate(arguments.pop("algorithm"), arguments.pop("dataset"), **arguments)
    assert type(refused.value) is kind and text in str(refused.value)


# ------------------------------------------------------------------------------------------------------- an experiment

EXPERIMENT = """
name = "small"
rounds = 2
baselines = false
data = { source = "quadratic", dim = 2 }
topology = { graph = "ring", nodes = 3 }
training = { optimizer = { name = "sgd", learning_rate = 0.1 }, local_steps = 1 }
algorithm = { name = "mine:lazy" }
driver = { kind = "simulate" }
"""
MINE = """
import p2pfl

def lazy(learner, optimizer):
    return p2pfl.dsgd(learner, optimizer)._replace(name="lazy")
"""


def test_an_experiment_runs_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """With an algorithm beside it; without `out` into a new directory below runs/. Nothing is printed."""
    (tmp_path / "there").mkdir()
    file = tmp_path / "there" / "small.toml"
    file.write_text(EXPERIMENT, "utf-8")
    (file.parent / "mine.py").write_text(MINE, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    before = sys.path[:]
    ran = p2pfl.run(str(file))
    assert sys.path == before
    (out,) = (tmp_path / "runs").iterdir()
    assert out.name.startswith("small-") and (out / "summary.json").is_file()
    assert (ran.summary.algorithm, ran.summary.nodes, ran.summary.rounds) == ("lazy", 3, 2)
    assert ran.path == out.relative_to(tmp_path) and list(ran.models) == [0, 1, 2]
    assert ran.metrics["node"].tolist() == [0, 1, 2] * 2 and np.isnan(ran.metrics["accuracy_own"]).all()
    again = p2pfl.run(p2pfl.load_experiment(file, ["rounds=3", 'algorithm.name="dsgd"']), tmp_path / "mine")
    assert again.summary.rounds == 3 and (tmp_path / "mine" / "summary.json").is_file()
    assert capfd.readouterr().out == ""
    with pytest.raises(ConfigError, match="mine"):
        p2pfl.run(file, tmp_path / "mine")


# ------------------------------------------------------------------------------------------------------------ checkers

RIGHT = """
from pathlib import Path
from typing import assert_type

import networkx as nx
import numpy as np
import optax
from flax import nnx

import p2pfl

x, y = np.zeros((64, 4), np.float32), np.arange(64) % 2
learner = p2pfl.from_flax(lambda rngs: nnx.Linear(4, 2, rngs=rngs), x[:1], classes=2)
algorithm = p2pfl.algorithms.gradient_tracking(learner, optax.sgd(0.1))
wrapped = p2pfl.methods.chain(algorithm, p2pfl.methods.clip(1.0), p2pfl.methods.by_loss(-1.0, symmetric=True))
schedule = p2pfl.topology.schedule(nx.cycle_graph(8))
result = p2pfl.simulate(wrapped, (x, y, x, y), schedule=schedule, rounds=20)
dataset = p2pfl.data.digits()
experiment = p2pfl.load_experiment("mine.toml", ["rounds=3"])
assert_type(learner, p2pfl.Learner)
assert_type(p2pfl.dsgd(learner, optax.sgd(0.1), order="cta"), p2pfl.Algorithm)
assert_type(wrapped, p2pfl.Algorithm)
assert_type(schedule, p2pfl.Schedule)
assert_type(dataset, p2pfl.Dataset)
assert_type(dataset.train, p2pfl.Samples)
assert_type(experiment, p2pfl.Experiment)
assert_type(p2pfl.run(experiment, Path("out"), callbacks=[p2pfl.EarlyStopping(5)]), p2pfl.RunResult)
assert_type(p2pfl.load_run("out").summary.rounds, int | None)
assert_type(p2pfl.load_model("out", node=0), p2pfl.LoadedModel)
assert_type(p2pfl.ConfigError("text"), p2pfl.ConfigError)
print(result.history.score[-1].mean(), p2pfl.build(experiment).schedule, [v.equal for v in p2pfl.replay("out")])
"""
WRONG = """
import numpy as np
import optax

import p2pfl

x, y = np.zeros((64, 4), np.float32), np.arange(64) % 2
learner = p2pfl.from_flax(lambda rngs: rngs, x[:1], classes="two")
p2pfl.dsdg(learner, optax.sgd(0.1))
p2pfl.simulate(p2pfl.dsgd(learner, optax.sgd(0.1)), (x, y, x, y), schedule=8, rounds=20)
p2pfl.topology.plan("ring", nodes="8")
"""
FAULTS = [8, 9, 10, 11]
"""The lines of WRONG that are."""


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A directory with what a stranger writes."""
    (tmp_path / "right.py").write_text(RIGHT, "utf-8")
    (tmp_path / "wrong.py").write_text(WRONG, "utf-8")
    return tmp_path


def checked(directory: Path, *command: str) -> str:
    """What a checker says."""
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=directory, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr  # there are faults to be found
    return done.stdout


def test_mypy_sees_the_types(scripts: Path) -> None:
    said = checked(
        scripts, "mypy", "--strict", "--config-file=", "--ignore-missing-imports", "--follow-imports=silent",
        f"--cache-dir={ROOT / '.mypy_cache' / 'stranger'}", "right.py", "wrong.py",
    )  # fmt: skip
    assert [(file, int(line)) for file, line in re.findall(r"^(\w+\.py):(\d+): error", said, re.MULTILINE)] == [
        ("wrong.py", line) for line in FAULTS
    ], said


@pytest.mark.more
def test_pyright_sees_the_types(scripts: Path) -> None:
    """With basedpyright, which is pyright with all that it needs in the package."""
    settings = {"typeCheckingMode": "standard", "extraPaths": [str(ROOT)]}
    (scripts / "pyrightconfig.json").write_text(json.dumps(settings), "utf-8")
    said = checked(scripts, "basedpyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(scripts))
    faults = [each for each in json.loads(said)["generalDiagnostics"] if each["severity"] == "error"]
    found = sorted((Path(each["file"]).name, each["range"]["start"]["line"] + 1) for each in faults)
    assert found == [("wrong.py", line) for line in FAULTS], said
