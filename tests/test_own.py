"""What an experiment names may be a user's own, or another package's: each has an effect, and each mistake a text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
import pytest
from federations import TABLE, federation_of, looped
from small import LEAST, Case, write

import p2pfl
from p2pfl import packages, topology, tree
from p2pfl.config import experiment
from p2pfl.config.experiment import Experiment
from p2pfl.data import Samples
from p2pfl.errors import ConfigError, DataError, TopologyError
from p2pfl.federation import epochs, federation, learning
from p2pfl.methods.objectives import Objective
from p2pfl.runs import assessment, divergence, run
from p2pfl.sweeps import plan
from p2pfl.types import Algorithm, Learner, Schedule

ROOT = Path(__file__).parents[1]
HERE = __name__

# --- what is one's own


def dataset(rows: int = 40) -> p2pfl.Dataset:
    """Three classes that the first three of four features tell."""
    y = np.arange(rows, dtype=np.int32) % 3
    x = np.eye(4, dtype=np.float32)[y] + np.linspace(0, 0.1, rows, dtype=np.float32)[:, None]
    part = Samples(x, y)
    return p2pfl.Dataset(part, part, ("a", "b", "c"))


def in_turn(dataset: p2pfl.Dataset, nodes: int, seed: int, first: int = 0) -> Any:
    rows = np.arange(len(dataset.train.y))
    dealt = [rows[(node + first) % nodes :: nodes] for node in range(nodes)]
    return dealt, dealt


def hinge(outputs: Any, y: Any, margin: float = 1.0) -> Any:
    true = jnp.take_along_axis(outputs, y[:, None], axis=1)[:, 0]
    others = jnp.where(jax.nn.one_hot(y, outputs.shape[1], dtype=bool), -jnp.inf, outputs).max(axis=1)
    return jnp.maximum(0, margin + others - true)


def top2(outputs: np.ndarray, y: np.ndarray, power: float = 1.0) -> float:
    return float((np.argsort(outputs)[:, -2:] == y[:, None]).any(axis=1).mean()) ** power


def still(learning_rate: float) -> optax.GradientTransformation:
    return optax.sgd(0.0 * learning_rate)


def first_only(high: float) -> Any:
    return lambda step: jnp.where(step == 0, high, 0.0)


def shrink(optimizer: optax.GradientTransformation, by: float) -> Objective:
    def around(learner: Learner) -> Learner:
        def grad(params: Any, batch: Any, key: Any) -> Any:
            gradient, others, metrics = learner.grad(params, batch, key)
            return jax.tree.map(lambda g, w: g + by * w, gradient, params["trained"]), others, metrics

        return learner._replace(grad=grad)

    return Objective(around)


def deaf() -> Any:
    """Who has it around its algorithm mixes nothing."""
    return lambda inner: inner._replace(mix=lambda state, inbox, neighborhood: state, linear=False)


def wheel(nodes: int, seed: int) -> nx.Graph:
    if nodes == 3:
        raise ValueError("three make no wheel")
    return nx.wheel_graph(nodes)


def pairs(nodes: int, rounds: int) -> Schedule:
    """Rings of which every other edge rests in turn."""
    even = [(i, (i + 1) % nodes) for i in range(0, nodes, 2)]
    odd = [((i + 1) % nodes, (i + 2) % nodes) for i in range(0, nodes, 2)]
    both = [np.array([*edges, *((j, i) for i, j in edges)]).T for edges in (even, odd)]
    return topology.from_rounds(nodes, [(to, of, 0.5) for to, of in both])


# --- and what is none


def broken(*given: Any, **more: Any) -> Any:
    raise ValueError("it is broken")


def nothing(*given: Any, **more: Any) -> Any:
    return None


def text(*given: Any, **more: Any) -> Any:
    return "text"


def mean_loss(outputs: Any, y: Any) -> Any:
    return hinge(outputs, y).mean()


def centred(outputs: Any, y: Any) -> Any:
    return hinge(outputs, y) - hinge(outputs, y).mean()


def steps_of_two(high: float) -> Any:
    return lambda step: jnp.stack([high, high])


def no_algorithm() -> Any:
    return lambda inner: inner.name


def unknown_fact(optimizer: optax.GradientTransformation) -> Objective:
    return Objective(facts=("labls",))


def letters(nodes: int) -> nx.Graph:
    return nx.relabel_nodes(nx.cycle_graph(nodes), dict(enumerate("abcdefgh")))


def torn(nodes: int) -> nx.Graph:
    return nx.empty_graph(nodes)


def one_sided(nodes: int) -> Schedule:
    plan = topology.plan("ring", nodes)
    return plan._replace(out_weight=plan.out_weight * 0)


def some_rows(dataset: p2pfl.Dataset, nodes: int, seed: int) -> Any:
    dealt = in_turn(dataset, nodes, seed)[0]
    return [each[1:] for each in dealt], dealt


def shared_rows(dataset: p2pfl.Dataset, nodes: int, seed: int) -> Any:
    dealt = in_turn(dataset, nodes, seed)[0]
    return [dealt[0], *dealt[:-1]], dealt


def all_to_one(dataset: p2pfl.Dataset, nodes: int, seed: int) -> Any:
    rows = [np.arange(len(dataset.train.y)), *[np.zeros(0, int)] * (nodes - 1)]
    return rows, rows


CLASSES: dict[str, Any] = {
    **TABLE,
    "rounds": 2,
    "data": {"source": f"{HERE}:dataset"},
    "model": {"name": "logistic"},
    "training": {"optimizer": {"name": "sgd", "learning_rate": 0.1}, "batch_size": 4, "local_steps": 2},
    "topology": {"graph": "ring", "nodes": 4},
    "evaluation": {"every": 2},
}


def table(place: str, value: Any) -> dict[str, Any]:
    """The experiment with another value at a.b."""
    heading, _, field = place.partition(".")
    return {**CLASSES, heading: {**CLASSES[heading], field: value}}


def built(place: str, value: Any) -> federation.Federation:
    return federation_of(table(place, value))


# --- they have effects


def test_rows_are_those_that_ones_own_partition_deals() -> None:
    given = {**CLASSES["data"], "partition": f"{HERE}:in_turn", "partition_arguments": {"first": 1}}
    made = federation_of({**CLASSES, "data": given})
    assert [rows[:2].tolist() for rows in made.partition.train] == [[1, 5], [2, 6], [3, 7], [0, 4]]
    wanted = experiment.parse({**CLASSES, "data": given}, "t", Experiment)
    assert experiment.parse(tomllib.loads(experiment.dump(wanted)), "t", Experiment) == wanted


def gradient(made: federation.Federation, y: int = 0) -> np.ndarray:
    params = made.learner.init(jax.random.key(0))
    batch = {"x": jnp.ones((2, 4)), "y": jnp.full(2, y, jnp.int32)}
    leaves = tree.named_leaves(made.learner.grad(params, batch, jax.random.key(0))[0])
    return np.asarray(next(leaf for name, leaf in leaves.items() if name.endswith("bias")))


def test_the_gradient_is_that_of_ones_own_loss() -> None:
    """A hinge pushes the true class up and one other down by as much; cross entropy pushes all others down."""
    own = gradient(built("training.loss", {"name": f"{HERE}:hinge", "margin": 50.0}))
    assert sorted(own.tolist()) == [-1.0, 0.0, 1.0] and own[0] == -1.0
    plain = gradient(federation_of(CLASSES))
    assert plain[0] < 0 < min(plain[1:])


@pytest.mark.more
def test_what_is_evaluated_is_the_same_loss() -> None:
    made = built("training.loss", {"name": f"{HERE}:hinge", "margin": 50.0})
    params = made.learner.init(jax.random.key(0))
    batch = {"x": jnp.ones((2, 4)), "y": jnp.zeros(2, jnp.int32)}
    found = made.learner.evaluate(params, batch, jnp.asarray([1.0, 0.0]))["loss"]
    assert found[0] == hinge(made.learner.predict(params, batch["x"]), batch["y"], 50.0)[0] > 40 and found[1] == 0


def steps(given: Any, count: int = 2) -> list[float]:
    """The steps that the experiment's optimizer takes on gradients of 1."""
    made, found = learning.optimizer(experiment.parse(table("training.optimizer", given), "t", Experiment)), []
    state = made.init(jnp.zeros(()))
    for _ in range(count):
        step, state = made.update(jnp.ones(()), state)
        found.append(round(float(step), 5))
    return found


def test_ones_own_optimizer_and_schedule_make_the_steps() -> None:
    assert steps({"name": "sgd", "learning_rate": 0.1}) == [-0.1, -0.1]
    assert steps({"name": f"{HERE}:still", "learning_rate": 0.1}) == [0.0, 0.0]
    assert steps({"name": "sgd", "learning_rate": {"schedule": f"{HERE}:first_only", "high": 0.1}}) == [-0.1, 0.0]
    both = [{"name": "scale", "step_size": 3.0}, {"name": f"{HERE}:still", "learning_rate": 1.0}]
    assert steps(both) == [0.0, 0.0]


def test_ones_own_objective_is_in_the_gradient() -> None:
    made, plain = built("training.objective", [{"name": f"{HERE}:shrink", "by": 0.5}]), federation_of(CLASSES)
    params = plain.learner.init(jax.random.key(0))
    batch = {"x": jnp.ones((2, 4)), "y": jnp.zeros(2, jnp.int32)}
    more, less = (each.learner.grad(params, batch, jax.random.key(0))[0] for each in (made, plain))
    jax.tree.map(lambda a, b, w: np.testing.assert_allclose(a - b, 0.5 * w, atol=1e-6), more, less, params["trained"])


@pytest.mark.more
def test_ones_own_combinator_is_around_the_algorithm() -> None:
    alone = federation_of({**CLASSES, "algorithm": {"name": "local"}})
    np.testing.assert_array_equal(looped(built("algorithm.wrap", [{"name": f"{HERE}:deaf"}])), looped(alone))
    assert not np.array_equal(looped(federation_of(CLASSES)), looped(alone))


def test_nodes_talk_along_ones_own_graph_and_the_old_one_is_healed_where_there_is_none() -> None:
    made = built("topology.graph", f"{HERE}:wheel")
    assert nx.utils.graphs_equal(made.graph, nx.wheel_graph(4))
    assert epochs.named(made.experiment, 6).neighbor.shape == (1, 6, 5)  # five members more, and the hub
    three = made.planner()([0, 1, 3])
    assert "three make no wheel" in three.note and topology.union(three.schedule).number_of_edges() == 3
    changing = built("topology.graph", f"{HERE}:pairs")
    assert changing.schedule.neighbor[:, 0, 0].tolist() == [1, 3] and changing.schedule.weight.max() == 0.5


METRICS = [
    {"name": f"{HERE}:top2"},
    {"name": f"{HERE}:top2", "label": "squared", "better": "lower", "arguments": {"power": 2.0}},
]


def test_a_metric_of_ones_own_stands_beside_the_others(tmp_path: Path) -> None:
    made = built("evaluation.extra_metrics", METRICS)
    models = {node: made.learner.init(jax.random.key(node)) for node in range(4)}
    found = assessment.assess(made, models, tmp_path)
    each = json.loads((tmp_path / "assessment.json").read_text())
    values = [each["nodes"][str(node)][""]["pooled"]["top2"] for node in range(4)]
    assert len(set(values)) > 1
    assert found.figures["top2_mean"] == np.mean(values) and found.figures["top2_worst"] == min(values)
    assert found.figures["squared_worst"] == max(value**2 for value in values)
    low, high = assessment.compared(found, {})[0]["top2_mean"]
    assert low < found.figures["top2_mean"] < high and each["intervals"]["0"]["own"]["top2"]
    assert assessment.figure("top2_own_worst", ["top2"]) and not assessment.figure("top2_own_worst")


@pytest.mark.more
def test_its_figures_are_in_summary_and_report(tmp_path: Path) -> None:
    whole = {**CLASSES, "evaluation": {"every": 2, "extra_metrics": METRICS}, "baselines": True}
    summary = run.run(experiment.parse(whole, "t", Experiment), tmp_path / "run")
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary.extra_metrics == ("top2", "squared") and found["top2_own_worst"] <= found["top2_own_mean"]
    assert {"top2_local_only", "top2_pooled_own_mean"} <= set(found) and "pooled" in found["differences"]["top2_mean"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "top2 on all test rows, mean of the nodes" in page and "squared" in page


@pytest.mark.more
def test_what_the_page_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "experiment.md").read_text("utf-8")
    part = page[page.index("# One's own") :]
    module, file = (re.search(rf"^```{kind}\n(.*?)^```", part, re.DOTALL | re.MULTILINE) for kind in ("python", "toml"))
    assert module and file
    (tmp_path / "mine.py").write_text(module[1])
    head = (
        'name = "own"\nrounds = 2\nbaselines = false\nalgorithm = { name = "dsgd", wrap = [{ name = "mine:half" }] }\n'
    )
    (tmp_path / "experiment.toml").write_text(head + file[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        wanted = p2pfl.load_experiment(tmp_path / "experiment.toml", ["driver.kind=simulate", "training.local_steps=3"])
        summary = run.run(wanted, tmp_path / "run")
    finally:
        sys.modules.pop("mine", None)
    assert summary.metrics["top2_mean"] is not None and summary.metrics["top2_mean"] > 0.3


@pytest.mark.more
def test_the_verdict_on_divergence_goes_by_the_loss_that_was_trained_with(tmp_path: Path) -> None:
    """A loss of 30 is none to worry about where outputs of 0 have 50; of cross entropy it would be."""
    made = built("training.loss", {"name": f"{HERE}:hinge", "margin": 50.0})
    like = made.learner.init(jax.random.key(0))
    wrong = jax.tree.map(lambda leaf: leaf + 10 * jnp.eye(3)[0] if leaf.ndim == 1 else leaf, like)
    (tmp_path / "metrics.jsonl").write_text("")
    assert divergence.judge(made, {0: wrong}, {0: 30.0}, tmp_path) == {}
    worse = divergence.judge(made, {0: wrong}, {0: 60.0}, tmp_path)
    assert worse[0].nothing == 50.0 < worse[0].loss


def test_a_metric_of_ones_own_can_be_a_column_of_a_sweep(tmp_path: Path) -> None:
    text = 'name = "s"\nexperiment = "base.toml"\nmetrics = ["top2_own_mean"]\nseeds = [0]\n[axes]\nrounds = [1, 2]\n'
    (tmp_path / "sweep.toml").write_text(text)
    (tmp_path / "base.toml").write_text('[evaluation]\nextra_metrics = [{ name = "mine:top2" }]\n')
    assert plan.read(tmp_path / "sweep.toml").sweep.metrics == ("top2_own_mean",)
    (tmp_path / "base.toml").write_text('[evaluation]\nextra_metrics = [{ name = "mine:top2", label = "other" }]\n')
    with pytest.raises(ConfigError, match="metrics: 'top2_own_mean': "):
        plan.read(tmp_path / "sweep.toml")
    # where the table needs none, none is computed, and none refused
    (tmp_path / "sweep.toml").write_text(text.replace("top2_own_mean", "accuracy_mean"))
    (tmp_path / "base.toml").write_text(f'{LEAST}[evaluation]\nextra_metrics = [{{ name = "mine:top2" }}]\n')
    for each in plan.runs(plan.read(tmp_path / "sweep.toml")):
        assert p2pfl.build(each.wanted).metrics == ()


OWN = """
import networkx as nx
from p2pfl.algorithms import dsgd


def path(nodes):
    return nx.path_graph(nodes)


def mine(learner, optimizer):
    return dsgd(learner, optimizer)._replace(name="mine")
"""


@pytest.mark.more
def test_live_nodes_find_what_lies_beside_the_experiment_from_anywhere(tmp_path: Path) -> None:
    case = Case("mine:mine", "mine:path", 3)
    file = write(tmp_path / "study", case, rounds=2)
    (tmp_path / "study" / "mine.py").write_text(OWN)
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-m", "p2pfl", "run", str(file), "--json", "--out", "run"]
    told = subprocess.run(command, cwd=tmp_path / "elsewhere", capture_output=True, text=True, timeout=300)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["exchanges_booked"] == 4


# --- mistakes


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (
            "training.loss",
            {"name": "hinge"},
            "training.loss.name='hinge': .*focal; or \"module:function\"",
        ),
        ("training.loss", {"name": "huber"}, "training.loss.name='huber': is for another kind of data than classes"),
        ("training.loss", {"name": "focal", "gama": 1}, "training.loss.gama=1: .* did you mean 'gamma'"),
        ("training.loss", {"name": "focal", "gamma": -1}, "training.loss: loss focal: gamma=-1: must be >= 0"),
        ("training.loss", {"name": f"{HERE}:hing"}, f"module {HERE} has no function 'hing'"),
        ("training.loss", {"name": "no_such:hinge"}, "No module named 'no_such'; its folder must be the current one"),
        ("training.loss", {"name": f"{HERE}:broken"}, r"failed with ValueError: it is broken \(.*test_own.py, line"),
        ("training.loss", {"name": f"{HERE}:hinge", "marg": 1}, "argument 'marg': .* did you mean 'margin'"),
        (
            "training.loss",
            {"name": f"{HERE}:mean_loss"},
            r"returned float32\[\] for outputs \[3, 3\] and y",
        ),
        ("training.loss", {"name": f"{HERE}:nothing"}, "returned a NoneType for outputs"),
        ("training.loss", {"name": f"{HERE}:centred"}, "a row has .* by itself and .* among others; .* need a mask"),
        ("training.optimizer", {"name": f"{HERE}:broken"}, r"optimizer test_own:broken\(\): it is broken"),
        ("training.optimizer", {"name": f"{HERE}:nothing"}, "returned a NoneType, not an optax.GradientTransformation"),
        ("training.optimizer", {"name": f"{HERE}:still", "learning": 1}, "did you mean 'learning_rate'"),
        ("training.optimizer", {"name": "sgd", "learning_rate": {"schedule": f"{HERE}:nothing"}}, "not a function of"),
        ("training.optimizer", {"name": "sgd", "learning_rate": {"schedule": f"{HERE}:broken"}}, "it is broken"),
        (
            "training.optimizer",
            {"name": "sgd", "learning_rate": {"schedule": f"{HERE}:steps_of_two", "high": 1.0}},
            "schedule test_own:steps_of_two: must make a single number of a step",
        ),
        ("training.objective", [{"name": f"{HERE}:nothing"}], r"objective\[0\].name=.* NoneType, not a .*Objective"),
        ("training.objective", [{"name": f"{HERE}:shrink"}], "TypeError: shrink.. missing 1 required .*'by'"),
        ("training.objective", [{"name": f"{HERE}:unknown_fact"}], "facts=.'labls',.: did you mean 'labels'"),
        ("training.objective", [{"name": "dito"}], r"training.objective\[0\].name='dito': did you mean 'ditto'"),
        ("algorithm.wrap", [{"name": f"{HERE}:nothing"}], r"wrap\[0\].name=.* returned a NoneType, not a function"),
        ("algorithm.wrap", [{"name": f"{HERE}:no_algorithm"}], "its combinator returned a str, not an Algorithm"),
        ("algorithm.wrap", [{"name": "clap"}], r"algorithm.wrap\[0\].name='clap': did you mean 'clip'"),
        ("evaluation.extra_metrics", [{"name": f"{HERE}:broken"}], r"ValueError: it is broken \(.*test_own.py, line"),
        ("evaluation.extra_metrics", [{"name": f"{HERE}:text"}], r"returned a str for outputs \[40, 3\] and y \[40\]"),
        ("evaluation.extra_metrics", [{"name": "top3"}], "name='top3': must be written \"module:function\""),
        ("evaluation.extra_metrics", [{"name": f"{HERE}:top2", "label": "auc"}], "'auc' is what a summary calls"),
        ("evaluation.extra_metrics", [{"name": f"{HERE}:top2"}] * 2, "two are called 'top2'"),
        ("evaluation.extra_metrics", [{"name": f"{HERE}:top2", "arguments": {"pow": 1}}], "did you mean 'power'"),
    ],
)
def test_what_can_not_be_used_is_refused(place: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        built(place, value)


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        ("letters", "has the nodes a, b, c, d; must be 0 to 3 for nodes=4"),
        ("torn", "the graph is in 4 pieces"),
        ("nothing", "returned a NoneType; must be a graph of networkx or a Schedule"),
        ("one_sided", "out_weight is not the weight that the receivers give"),
        ("broken", "topology.graph='test_own:broken': its function.*ValueError: it is broken"),
    ],
)
def test_a_graph_that_can_not_be_is_refused(graph: str, said: str) -> None:
    with pytest.raises(TopologyError, match=said):
        built("topology.graph", f"{HERE}:{graph}")


@pytest.mark.parametrize(
    ("partition", "said"),
    [
        ("some_rows", "train: row 0 belongs to no node; every row must belong to exactly one"),
        ("shared_rows", "train: row 0 belongs to 2 nodes"),
        ("all_to_one", "node 1 has no training rows"),
        ("nothing", "returned a NoneType; must be a Partition"),
        ("text", "returned a str; must be a Partition"),
    ],
)
def test_a_partition_that_can_not_be_is_refused(partition: str, said: str) -> None:
    with pytest.raises(DataError, match=f"^data.partition='test_own:{partition}': {said}"):
        built("data.partition", f"{HERE}:{partition}")


def test_the_quadratic_task_has_its_own_loss() -> None:
    training = {**TABLE["training"], "loss": {"name": "huber"}}
    with pytest.raises(ConfigError, match=r"training.loss: source='quadratic' brings its own"):
        federation_of({**TABLE, "training": training})


def test_nodes_compare_what_is_their_own_by_name() -> None:
    losses = ({"name": f"{HERE}:hinge"}, {"name": f"{HERE}:hinge", "margin": 2.0}, {"name": "focal"}, None)
    digests = {federation.digest(built("training.loss", loss)) for loss in losses}
    assert len(digests) == 4
    one, other = (built("evaluation.extra_metrics", given) for given in ([], [{"name": f"{HERE}:top2"}]))
    assert federation.digest(one) == federation.digest(other)  # how a site looks at its model is its own affair


# --- packages


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that installs a package with entry points: {group: {name: value}}."""

    def install(name: str, points: dict[str, dict[str, str]]) -> None:
        place = tmp_path / f"{name}-1.2.dist-info"
        place.mkdir(parents=True)
        (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in points.items()]
        (place / "entry_points.txt").write_text("\n".join(lines))

    monkeypatch.syspath_prepend(str(tmp_path))
    yield install


def test_packages_register_names_for_everything(package: Any) -> None:
    own = {
        "p2pfl.data": {"forty": "dataset"}, "p2pfl.partitions": {"dealt": "in_turn"}, "p2pfl.losses": {"edge": "hinge"},
        "p2pfl.optimizers": {"rest": "still"}, "p2pfl.schedules": {"once": "first_only"},
        "p2pfl.objectives": {"smaller": "shrink"}, "p2pfl.wraps": {"deafness": "deaf"},
        "p2pfl.graphs": {"hub": "wheel"},
        "p2pfl.metrics": {"second": "top2"},
    }  # fmt: skip
    models = {"p2pfl.models": {"straight": "p2pfl.learning.models:logistic"}}
    algorithms = {"p2pfl.algorithms": {"plain": "p2pfl.algorithms.dsgd:dsgd"}}
    package("their-things", {group: {name: f"{HERE}:{at}" for name, at in of.items()} for group, of in own.items()})
    package("more-things", {**models, **algorithms})
    assert {*own, *models, *algorithms} == set(packages.GROUPS)
    rate = {"schedule": "once", "high": 0.1}
    made = federation_of({
        **CLASSES,
        "data": {"source": "forty", "arguments": {"rows": 44}, "partition": "dealt"},
        "model": {"name": "straight"},
        "training": {**CLASSES["training"], "loss": {"name": "edge"}, "objective": [{"name": "smaller", "by": 0.1}],
                     "optimizer": [{"name": "clip", "max_delta": 1.0}, {"name": "rest", "learning_rate": 0.1}]},
        "topology": {"graph": "hub", "nodes": 4},
        "algorithm": {"name": "plain", "wrap": [{"name": "deafness"}]},
        "evaluation": {"every": 2, "extra_metrics": [{"name": "second"}]},
    })  # fmt: skip
    assert len(made.dataset.train.y) == 44 and made.partition.train[1][:2].tolist() == [1, 5]
    assert made.graph.number_of_edges() == 6 and [each.label for each in made.metrics] == ["second"]
    assert isinstance(made.algorithm, Algorithm) and made.algorithm.name == "dsgd"
    scheduled = federation_of(table("training.optimizer", {"name": "sgd", "learning_rate": rate}))
    assert scheduled.algorithm.name == "dsgd"


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("training.loss", {"name": "edgy"}, "did you mean 'edge'"),
        ("model.name", "strait", "did you mean 'straight'"),
        ("data.partition", "dealed", "did you mean 'dealt'"),
        (
            "training.loss",
            {"name": "gone"},
            "gone': is of their-things 1.2, and importing no_such:loss failed",
        ),
        ("training.loss", {"name": "number"}, "number': is of their-things 1.2, and test_own:HERE is no function"),
        (
            "algorithm.wrap",
            [{"name": "clip", "radius": 1.0}],
            "their-things 1.2: registers 'clip' in .*\"p2pfl.wraps\"",
        ),
        ("training.optimizer", {"name": "both"}, "more-things 1.2 and their-things 1.2: registers 'both' .* several"),
    ],
)
def test_names_of_packages_that_can_not_be_used_are_refused(package: Any, place: str, value: Any, said: str) -> None:
    package("their-things", {
        "p2pfl.losses": {"edge": f"{HERE}:hinge", "gone": "no_such:loss", "number": f"{HERE}:HERE"},
        "p2pfl.models": {"straight": "p2pfl.learning.models:logistic"},
        "p2pfl.partitions": {"dealt": f"{HERE}:in_turn"},
        "p2pfl.wraps": {"clip": f"{HERE}:deaf"}, "p2pfl.optimizers": {"both": f"{HERE}:still"},
    })  # fmt: skip
    package("more-things", {"p2pfl.optimizers": {"both": f"{HERE}:nothing"}})
    with pytest.raises(ConfigError, match=said):
        built(place, value)


def test_graphs_of_packages_are_among_those_that_may_be_meant(package: Any) -> None:
    package("their-things", {"p2pfl.graphs": {"cartwheel": f"{HERE}:wheel"}})
    with pytest.raises(TopologyError, match="did you mean 'cartwheel'"):
        built("topology.graph", "cartwhel")


def test_a_name_that_is_not_used_harms_nobody(package: Any) -> None:
    package("their-things", {"p2pfl.algorithms": {"d2": f"{HERE}:broken"}})
    assert federation_of(CLASSES).algorithm.name == "dsgd"
