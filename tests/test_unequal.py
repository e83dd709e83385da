"""Nodes that are not alike: unequal widths, deputies, fairness, a share of them in each round; in every driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federations import federation_of
from small import PATIENT

from p2pfl import tree
from p2pfl.config import experiment
from p2pfl.config.experiment import Experiment
from p2pfl.data.dataset import Dataset, Samples
from p2pfl.drivers.simulate import engine
from p2pfl.drivers.simulate.simulation import Evaluated, How
from p2pfl.errors import ConfigError
from p2pfl.federation import federation
from p2pfl.federation.tasks import growing, tasks
from p2pfl.node import records
from p2pfl.node.replica import Replica
from p2pfl.node.task import Booked
from p2pfl.reporting.run_data import Summary
from p2pfl.runs import simulated
from p2pfl.runs.run import run
from p2pfl.topology.sampled import selected

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
HEARTS, MEDNIST = SHARED / "heart_disease_4sites.csv", SHARED / "mednist64_3300.npz"
DRIVERS = [
    pytest.param(name, marks=pytest.mark.more) for name in ("loop", "virtual", "simulate", "live")
]  # fmt: skip


def table(**more: Any) -> dict[str, Any]:
    return {
        "name": "unequal", "rounds": 3, "data": {"source": "digits"}, "model": {"name": "mlp", "hidden": [32]},
        "training": {"optimizer": {"name": "sgd", "learning_rate": 0.1}, "local_steps": 2},
        "topology": {"graph": "ring", "nodes": 4}, "algorithm": {"name": "dsgd"}, "network": {"timing": PATIENT},
        "baselines": False, **more,
    }  # fmt: skip


def ran(driver: str, out: Path, **more: Any) -> Summary:
    kind = {"kind": "simulate", "loop": True} if driver == "loop" else {"kind": driver}
    parsed: Experiment = experiment.parse(table(driver=kind, **more), "unequal.toml", Experiment)
    return run(parsed, out)


def objective(*methods: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"training": {**table()["training"], "objective": list(methods)}, **more}


# ----------------------------------------------------------------------------------------------------- unequal widths

WIDTHS = objective({"name": "widths", "ratios": [1.0, 0.25, 1.0, 0.5]})
IN_PART = {
    "training": {**WIDTHS["training"], "freeze": ["layers/0/bias"], "patience": 1}, "evaluation": {"every": 1},
}  # fmt: skip
"""A layer's bias is frozen, and who gets no better ends its training."""


@pytest.fixture(scope="module")
def widths(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Summary]]:
    """Runs each driver once."""
    done: dict[str, tuple[Path, Summary]] = {}

    def of(driver: str) -> tuple[Path, Summary]:
        if driver not in done:
            out = tmp_path_factory.mktemp(driver)
            done[driver] = out, ran(driver, out, **IN_PART)
        return done[driver]

    return of


def parameters(ratio: float, biases: int = 1) -> int:
    hidden = int(32 * ratio)
    return 64 * hidden + biases * hidden + hidden * 10 + 10


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_message_is_the_slice_of_the_narrower_end_and_all_drivers_agree(
    widths: Callable[[str], tuple[Path, Summary]], driver: str
) -> None:
    """On the ring 1, 1/4, 1, 1/2 every edge has a narrow end; models are those of the plain loop, live to the bit. What
    is frozen does not travel, and nodes keep the best models of their widths."""
    out, summary = widths(driver)
    of_node = {0: (0.25, 0.5), 1: (0.25, 0.25), 2: (0.25, 0.5), 3: (0.5, 0.5)}
    for row in records.read(out / "metrics.jsonl"):
        wanted = 4 * sum(parameters(ratio, biases=0) for ratio in of_node[row["node"]])
        assert wanted <= row["bytes_sent"] < wanted + 2500 * (driver == "live") + 600 * (driver == "virtual") + 1
    whole = 4 * 2 * parameters(1)
    assert summary.bytes_sent_per_node_round is not None and summary.bytes_sent_per_node_round < 0.6 * whole
    if driver != "simulate":  # computes some sums in another order: test_simulate.py
        assert summary.digests == widths("loop")[1].digests


@pytest.mark.more
def test_a_narrow_node_freezes_and_keeps_what_it_holds() -> None:
    """Of the frozen kernel and of the best model it has its part, which is that of a wide node; files are as wide."""
    training = {**IN_PART["training"], "freeze": ["layers/0/kernel"]}
    made = tasks(federation_of(table(**{**IN_PART, "training": training})))
    own = [each.program.init(0, each.site) for each in made[:2]]
    assert tree.size(own[1].own["best"]["model"]["trained"]) == parameters(0.25) - 64 * 8
    wide, narrow = (tree.named_leaves(each.program.params(state)) for each, state in zip(made, own, strict=False))
    for name, axis in (("frozen/trained/layers/0/kernel", 1), ("best/model/trained/layers/1/kernel", 0)):
        one, other = (np.moveaxis(np.asarray(leaves[f"private/{name}"]), axis, 0) for leaves in (wide, narrow))
        assert one.shape == other.shape and np.array_equal(one[:8], other[:8]) and one[8:].any() and not other[8:].any()


def test_a_narrow_node_holds_nothing_but_its_slice() -> None:
    """Its state, its optimizer's and what it sends have the smaller shapes; nodes of one width share a program."""
    made = tasks(federation_of(table(**WIDTHS, algorithm={"name": "gradient_tracking"})))
    sizes = [tree.size(each.program.init(0, each.site).params["trained"]) for each in made]
    assert sizes == [parameters(ratio) for ratio in (1, 0.25, 1, 0.5)]
    assert made[0].program is made[2].program and made[1].program is not made[3].program
    fit = made[0].fit
    assert fit is not None and [fit.meets(node) for node in (0, 1, 2, 3, 99)] == [0, 2, 0, 1, 0]


@pytest.mark.parametrize(
    "more, text",
    [
        (objective({"name": "ditto", "strength": 1.0}, {"name": "widths", "ratios": [0.5] * 4}), "name widths first"),
        ({**WIDTHS, "algorithm": {"name": "dsgd", "wrap": [{"name": "fourier", "start": 0.5, "rounds": 2}]}},
         r"algorithm.wrap\[0\]: fourier takes all channels"),
        ({**WIDTHS, "model": {"name": "unequal_models:declared"}}, "model: does not compute with the first channels"),
        ({**WIDTHS, "algorithm": {"name": "push_sum"}}, "wrap widths: push_sum sends one way"),
        ({"training": {**WIDTHS["training"], "lora": {"rank": 1}}}, "training.lora: does not go with the objective"),
    ],
)  # fmt: skip
def test_what_goes_with_no_widths_is_refused(
    more: dict[str, Any], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unequal_models.py").write_text(
        "import flax.linen as nn\n\n\nclass Net(nn.Module):\n    @nn.compact\n    def __call__(self, x):\n"
        "        return nn.Dense(10, name='layers_1')(nn.relu(nn.Dense(8, name='layers_0')(x)))\n\n\n"
        "def declared(shape, classes):\n    return Net()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    if "model" in more:
        layers = {"name": "widths", "ratios": [1.0, 0.25, 1.0, 0.5], "layers": ["layers_0", "layers_1"]}
        more = {**objective(layers), "model": more["model"]}
    with pytest.raises(ConfigError, match=text):
        federation_of(table(**more))


# ---------------------------------------------------------------------------------------- a square that grows by rounds


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Summary]]:
    """Runs each driver once, with messages that grow in the first four rounds."""
    done: dict[str, tuple[Path, Summary]] = {}
    wrap = {"name": "fourier", "start": 0.2, "rounds": 4, "end": 0.8}

    def of(driver: str) -> tuple[Path, Summary]:
        if driver not in done:
            out = tmp_path_factory.mktemp(driver)
            done[driver] = out, ran(driver, out, rounds=5, algorithm={"name": "dsgd", "wrap": [wrap]})
        return done[driver]

    return of


@pytest.mark.parametrize(
    "driver",
    [pytest.param("virtual", marks=pytest.mark.soak), *(each for each in DRIVERS if each.values != ("virtual",))],
)
def test_a_message_has_the_square_of_its_round_and_all_drivers_agree(
    waves: Callable[[str], tuple[Path, Summary]], driver: str
) -> None:
    """Of both kernels the amplitudes with |f| < L / 2, those of f and -f once; L is .2 + .15 a round, up to .8."""
    out, summary = waves(driver)
    for row in records.read(out / "metrics.jsonl"):
        side = min(0.2 + 0.15 * row["round"], 0.8) / 2
        low = [
            (abs(np.fft.fftfreq(n)) < side).sum() * (np.fft.rfftfreq(m) < side).sum() for n, m in ((64, 32), (32, 10))
        ]
        wanted = 2 * 4 * (sum(low) + 32 + 10 + 1)
        assert wanted <= row["bytes_sent"] < wanted + 2500 * (driver == "live") + 600 * (driver == "virtual") + 1
    if driver != "simulate":
        assert summary.digests == waves("loop")[1].digests
    else:
        each = [row["bytes_sent"] for row in records.read(out / "metrics.jsonl") if row["node"] == 0]
        assert summary.bytes_sent_per_node_round == pytest.approx(np.mean(each))


@pytest.mark.parametrize("by", ["equivocation", "dissensus"])
def test_what_a_liar_tells_each_neighbour_is_told_whole(by: str) -> None:
    made = federation_of(lied(by))
    assert made.algorithm.travelling is not None and growing(made) is None


@pytest.mark.more
def test_with_a_lie_for_each_beside_a_square_that_grows_drivers_agree(tmp_path: Path) -> None:
    digests = [ran(kind, tmp_path / kind, **lied("equivocation")).digests for kind in ("loop", "virtual")]
    assert digests[0] == digests[1]
    ran("simulate", tmp_path / "simulate", **lied("dissensus"))


def lied(by: str) -> dict[str, Any]:
    wrap = {"name": "fourier", "start": 0.2, "rounds": 4, "end": 0.8}
    return table(algorithm={"name": "dsgd", "wrap": [wrap]}, attack=[{"nodes": [1], "by": by}])


# ------------------------------------------------------------------------------------------------ a share in each round


def test_a_share_is_drawn_evenly_and_never_empty_and_by_the_seed() -> None:
    drawn = np.array([selected(10, 0.3, 1, r) for r in range(1, 400)])
    assert (drawn.sum(axis=1) == 3).all()
    assert abs(drawn.mean(axis=0) - 0.3).max() < 0.08 and (
        selected(3, 0.01, 1, 5).sum(),
        selected(4, 1.0, 1, 1).sum(),
    ) == (1, 4)
    again, other = ([selected(10, 0.3, seed, r) for r in range(1, 400)] for seed in (1, 2))
    assert (again == drawn).all() and (other != drawn).any()


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_five_steps_of_each_round_and_node_are_in_the_records(driver: str, tmp_path: Path) -> None:
    """Selection, local training, sending, mixing, what is kept: who is not selected keeps its model as it is."""
    topology = {"graph": "complete", "nodes": 5, "take_part": 0.6}
    summary = ran(driver, tmp_path, rounds=4, topology=topology, model={"name": "logistic"})
    rows = {(row["round"], row["node"]): row for row in records.read(tmp_path / "metrics.jsonl")}
    assert len(rows) == 20
    for (round, node), row in rows.items():
        there = np.flatnonzero(selected(5, 0.6, 0, round)).tolist()
        others = [other for other in there if other != node]
        assert row["takes_part"] == (node in there)
        if node in there:
            assert row["steps"] == 2 and row["train_loss"] > 0
            assert row["sends_to"] == row["arrived"] == others and row["kept"] == pytest.approx(1 - 2 / 5)
        else:
            assert (row["steps"], row["sends_to"], row["arrived"], row["kept"]) == (0, [], [], 1.0)
            before = rows.get((round - 1, node))
            assert before is None or row["accuracy_after_mixing"] == before["accuracy_after_mixing"]
    assert summary.mean_residual is not None and summary.mean_residual < 1e-6
    if driver == "live":
        log = (tmp_path / "nodes" / "0" / "log.txt").read_text()
        assert "selected" not in log  # at the level info


def test_the_five_steps_are_a_line_of_the_log() -> None:
    steps = records.RoundSteps(True, 2, [1, 4], [4], 0.6)
    assert str(steps) == "selected, 2 local steps, sent to [1, 4], mixed with [4], kept its own by 0.6"
    assert str(steps._replace(takes_part=False)) == "not selected, keeps its model"


def test_an_algorithm_that_asks_for_one_graph_refuses_a_share() -> None:
    with pytest.raises(ConfigError, match=r"d2: .* changes from round to round"):
        federation_of(table(topology={"graph": "ring", "nodes": 5, "take_part": 0.5}, algorithm={"name": "d2"}))


# ------------------------------------------------------------------------------------------------------------ fairness


@pytest.mark.more
@pytest.mark.skipif(not HEARTS.exists(), reason="needs ../shared/data/heart_disease_4sites.csv")
def test_fairness_on_four_hospitals() -> None:
    """Proportional fairness evens the hospitals' losses and keeps the mean accuracy; weights by loss even the
    accuracies, and cost a few hundredths of their mean."""
    evened = [{"name": "proportional", "baseline": 1.0, "least": 0.1}]
    cases = ({}, {"methods": evened}, {"wrap": [{"name": "by_loss", "q": 1.0}]})
    plain, fair, weighed = (_sites(hearts(**given)) for given in cases)
    assert np.std(fair.loss) < 0.6 * np.std(plain.loss)
    assert np.mean(fair.accuracy) > np.mean(plain.accuracy) - 0.02
    assert np.std(weighed.accuracy) < 0.6 * np.std(plain.accuracy)
    assert np.mean(weighed.accuracy) > np.mean(plain.accuracy) - 0.06


class Sites(NamedTuple):
    """Of each site, its own model on its own rows."""

    accuracy: np.ndarray  # on its test rows
    loss: np.ndarray  # on its training rows


def _sites(given: dict[str, Any]) -> Sites:
    made = federation_of(given)
    models, data, parts = simulated.simulate_federation(made).models, made.dataset, made.partition
    evaluate = jax.jit(made.learner.evaluate)

    def of(node: int, rows: np.ndarray, samples: Any, what: str) -> float:
        model = jax.tree.map(lambda leaf: jnp.asarray(leaf[node]), models)
        batch = {"x": jnp.asarray(samples.x[rows], jnp.float32), "y": jnp.asarray(samples.y[rows])}
        return float(evaluate(model, batch, jnp.ones(len(rows)))[what].mean())

    return Sites(
        np.array([of(node, rows, data.test, "score") for node, rows in enumerate(parts.test)]),
        np.array([of(node, rows, data.train, "loss") for node, rows in enumerate(parts.train)]),
    )


def hearts(methods: Sequence[dict[str, Any]] = (), wrap: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    return {
        "name": "hearts", "seed": 0, "rounds": 40,
        "data": {"source": "csv", "path": str(HEARTS), "label": "num", "label_above": 0, "site": "site",
                 "split": "flamby", "drop": ["slope", "ca", "thal"], "partition": "by_site", "standardize": "none",
                 "categories": {"cp": ["1.0", "2.0", "3.0", "4.0"], "restecg": ["0.0", "1.0", "2.0"]}},
        "statistics": {"normalize": True}, "model": {"name": "logistic"},
        "training": {"optimizer": {"name": "sgd", "learning_rate": 0.05}, "batch_size": 8, "local_steps": 20,
                     "objective": [*methods]},
        "topology": {"graph": "complete", "nodes": 4}, "algorithm": {"name": "dsgd", "wrap": [*wrap]},
        "driver": {"kind": "simulate"}, "evaluation": {"every": 40},
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- tasks

TASKS = [[0, 3, 5], [1, 2, 4]]  # abdomen, chest and head by CT; breast by MRI, chest by X-ray, hand


@pytest.mark.skipif(not MEDNIST.exists(), reason="needs ../shared/data/mednist64_3300.npz")
@pytest.mark.parametrize(
    "seeds", [pytest.param([2], marks=pytest.mark.more), pytest.param([*range(3)], marks=pytest.mark.soak)]
)
def test_a_small_site_gains_by_a_trunk_that_sites_of_another_task_share(seeds: list[int]) -> None:
    """Nine images of three kinds at one site; three sites have 400 each of three other kinds. With heads by task the
    small one gains over itself alone, and plain mixing, in which the others unlearn its kinds, is worse than that."""
    alone, plain, shared = (
        np.mean([_small_site(kind, seed) for seed in seeds]) for kind in ("alone", "plain", "tasks")
    )
    assert shared > alone + 0.08 and plain < alone - 0.1


def _small_site(kind: str, seed: int) -> float:
    """Accuracy of the small site's model on test rows of its own task."""
    methods = [] if kind == "plain" else [{"name": "tasks", "of": [0, 1, 1, 1], "groups": TASKS}]
    given = table(
        seed=seed, rounds=30, model={"name": "mlp", "hidden": [32, 16]}, topology={"graph": "complete", "nodes": 4},
        evaluation={"every": 30}, driver={"kind": "simulate"},
        training={"optimizer": {"name": "sgd", "learning_rate": 0.1}, "local_steps": 5, "objective": methods},
    )  # fmt: skip
    made = federation.build(experiment.parse(given, "unequal.toml", Experiment), mednist())
    work, rng = simulated.work_of(made), np.random.default_rng(seed)
    few = [rng.permutation(np.flatnonzero(work.y == each))[:3] for each in TASKS[0]]
    many = rng.permutation(np.flatnonzero(np.isin(work.y, TASKS[1])))
    own = np.where(np.isin(work.test_y, TASKS[0]), 0, 1).astype(np.int32)
    work = work._replace(rows=[np.concatenate(few), *np.array_split(many, 3)], owner=own)
    if kind == "alone":
        whole = work.schedule
        work = work._replace(schedule=whole._replace(weight=0 * whole.weight, out_weight=0 * whole.out_weight))
    seen: list[Evaluated] = []
    engine.run(work, How(4, 1, False), lambda _, found: seen.extend(found), lambda: 0.0)
    assert seen[-1].score_own is not None
    return float(seen[-1].score_own[0])


def mednist() -> Dataset:
    """Six kinds of pictures, as 16 x 16."""
    raw = np.load(MEDNIST)

    def part(name: str) -> Samples:
        x = raw[f"{name}_images"].astype(np.float32).reshape(-1, 16, 4, 16, 4).mean(axis=(2, 4)) / 255
        return Samples(x.reshape(len(x), -1), raw[f"{name}_labels"].ravel().astype(np.int32))

    return Dataset(part("train"), part("test"), ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT"))


# --------------------------------------------------------------------------------------------------------- retrogress


class Retrogress(NamedTuple):
    """What mixing does to the models at home: own test rows, mean over nodes, by round."""

    before: np.ndarray
    after: np.ndarray

    @property
    def drop(self) -> float:
        return float((self.before - self.after).mean())


def retrogress(personal: bool = False, rounds: int = 8, **more: Any) -> Retrogress:
    """Sites with classes of their own, all with all: the score of each model before it is mixed, and right after."""
    data = {"source": "digits", "partition": "dirichlet", "alpha": 0.3}
    topology = {"graph": "complete", "nodes": 4}
    training = {"optimizer": {"name": "sgd", "learning_rate": 0.1}, "local_steps": 10, **more.pop("training", {})}
    made = federation_of(table(rounds=rounds, data=data, topology=topology, training=training, **more))
    nodes = [Replica(task) for task in tasks(made)]
    learner = made.learner

    @jax.jit
    def scores(model: Any, x: Any, y: Any) -> Any:
        model = learner.personal(model) if personal and learner.personal else model
        return learner.evaluate(model, {"x": x, "y": y}, jnp.ones(len(y)))["score"].mean()

    def own(node: Replica) -> float:
        rows = made.partition.test[node.task.node]
        x, y = made.dataset.test.x[rows].astype(np.float32), made.dataset.test.y[rows]
        return float(scores(node.task.program.params(node.state), x, y))

    before, after = [], []
    for round in range(1, rounds + 1):
        for node in nodes:
            node.train(round, node.task.neighbors)
        before.append(np.mean([own(node) for node in nodes]))
        for i, node in enumerate(nodes):
            booked = [
                Booked(j, 1, round, round, round, node.side(j, round), nodes[j].sent(i, round))
                for j in node.task.neighbors
            ]
            node.mix(round, booked)
        after.append(np.mean([own(node) for node in nodes]))
    return Retrogress(np.array(before), np.array(after))


WAVES = {"algorithm": {"name": "dsgd", "wrap": [{"name": "fourier", "start": 0.3, "rounds": 40}]}}


@pytest.mark.more
def test_mixing_degrades_amplitudes_less_than_models_and_the_own_model_of_a_deputy_not_at_all() -> None:
    plain, waves = retrogress(), retrogress(**WAVES)
    own = retrogress(personal=True, training={"objective": [{"name": "deputy"}]}, **WAVES)
    assert plain.drop > 0.02 and waves.drop < 0.5 * plain.drop and own.drop == 0
    assert own.after[-1] > plain.after[-1] + 0.02
