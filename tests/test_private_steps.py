"""DP-SGD, its accountant, and what single nodes of a graph see of each other."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from flax import nnx
from scipy.stats import norm

from p2pfl.config.experiment import Experiment, parse
from p2pfl.errors import ConfigError, LocalError
from p2pfl.federation.federation import build
from p2pfl.federation.tasks import tasks
from p2pfl.learning.batching import one
from p2pfl.learning.flax import from_flax
from p2pfl.learning.local_steps import placed
from p2pfl.methods.privacy import (
    Sampling,
    dp_sgd,
    epsilon,
    noise_for,
    of_gaussian,
    projection,
    sensitivity,
    steps_within,
)
from p2pfl.methods.privacy.dp_sgd import ALLOWED, AT_ONCE, NOISE, RATE
from p2pfl.methods.site_facts import counting, entropy
from p2pfl.node.checkpoint import Store
from p2pfl.node.spending import AHEAD, SpendingFile
from p2pfl.node.worker import Host, Worker
from p2pfl.protocol.events import Advance
from p2pfl.runs.run import run
from p2pfl.topology import matrix, schedule
from p2pfl.types import Learner, Params, Tree

KEY = jax.random.key(0)
DELTA = 1e-5


# --- the accountant


def test_a_gaussian_mechanism_has_the_epsilon_of_its_formula() -> None:
    for mu in (0.1, 1.0, 3.0):
        found = of_gaussian(mu**2, DELTA)
        delta = norm.cdf(mu / 2 - found / mu) - math.exp(found) * norm.cdf(-mu / 2 - found / mu)  # Balle and Wang 2018
        assert delta == pytest.approx(DELTA, rel=1e-6)
    assert of_gaussian(0.0, DELTA) == 0


def test_whoever_takes_part_k_times_is_protected_as_once_with_less_noise() -> None:
    once = Sampling(rows=100, batch_size=10)  # a pass has ten steps
    assert once.parts(1) == once.parts(10) == 1 and once.parts(11) == 2
    assert epsilon(1.0, once, 10, DELTA) == epsilon(1.0, once, 1, DELTA) == of_gaussian(1.0, DELTA)
    assert epsilon(2.0, once, 40, DELTA) == pytest.approx(of_gaussian(1.0, DELTA), rel=1e-9)
    assert epsilon(1.0, once, 0, DELTA) == 0


@pytest.mark.parametrize("noise, rate", [(1.0, 0.1), (2.0, 0.5)])
def test_a_step_of_poisson_sampling_has_the_epsilon_of_its_integral(noise: float, rate: float) -> None:
    """delta(epsilon) = E max(0, p - e^epsilon q) of a row that is gone: p a mixture, q none; integrated here."""
    rows = 1000
    found = epsilon(noise, Sampling(rows, int(rate * rows), poisson=True), 1, 1e-3)
    x = np.linspace(-20 * noise, 20 * noise, 400_001)
    without = norm.pdf(x, 0, noise)
    with_ = (1 - rate) * without + rate * norm.pdf(x, 1, noise)
    removed, added = (np.trapezoid(np.maximum(0, p - math.exp(found) * q), x)
                      for p, q in ((with_, without), (without, with_)))  # fmt: skip
    assert max(removed, added) == pytest.approx(1e-3, rel=2e-2)


def test_many_steps_of_poisson_sampling_are_accounted_for_as_published() -> None:
    """TensorFlow Privacy's tutorial: 256 of 60,000 rows, noise 1.1, 60 epochs: 2.92 by Renyi, from above."""
    sampled = Sampling(rows=60_000, batch_size=256, poisson=True)
    assert 2.3 < epsilon(1.1, sampled, 14_063, DELTA) < 2.92
    assert 300 < sampled.room(14_063, DELTA) < 400  # 256 expected, of standard deviation 16


@pytest.mark.more
def test_a_budget_is_never_exceeded() -> None:
    sampling = Sampling(rows=60, batch_size=6, poisson=True)

    def spent(steps: int) -> float:
        return epsilon(2.0, sampling, steps, DELTA)

    steps = steps_within(2.0, 200, spent)
    assert spent(steps) <= 2.0 < spent(steps + 1)
    assert steps_within(1e-9, 200, spent) == 0 and steps_within(1e9, 200, spent) == 200


@pytest.mark.more
@pytest.mark.parametrize("poisson", [False, True])
def test_the_least_noise_for_a_budget_spends_it(poisson: bool) -> None:
    sampling = Sampling(rows=60, batch_size=6, poisson=poisson)
    noise = noise_for(3.0, sampling, 50, DELTA)
    assert 2.97 <= epsilon(noise, sampling, 50, DELTA) <= 3.0


# --- what nodes see of each other


def weights(graph: nx.Graph) -> np.ndarray:
    return matrix(schedule(graph))[None]


def seen(graph: nx.Graph, rounds: int, contributing: int | None = None) -> dict[int, np.ndarray]:
    """Distance from node 0 -> what it sees of a node so far away."""
    found = projection(weights(graph), rounds, {0}, contributing)
    return {away: found[node] for node, away in nx.single_source_shortest_path_length(graph, 0).items() if away}


def test_with_fresh_noise_who_is_far_sees_little() -> None:
    """Twenty rounds of noise 1 and the same change in all: Renyi's divergence of order 2 (local: 20)."""
    torus = nx.convert_node_labels_to_integers(nx.grid_2d_graph(4, 4, periodic=True))
    for graph, known in (
        (nx.cycle_graph(16), [12.03, 4.86, 1.976, 0.755, 0.263, 0.083, 0.024, 0.011]),
        (torus, [14.97, 2.42, 1.18, 0.872]),
    ):
        views = seen(graph, 20)
        alike = [views[away].sum() for away in sorted(views)]
        assert alike == pytest.approx(known, rel=1e-2, abs=6e-4)
        bounds = [sensitivity(views[away], np.ones(20)) for away in sorted(views)]
        assert all(one <= bound + 1e-9 <= 20 + 2e-9 for one, bound in zip(alike, bounds, strict=True))
        assert bounds[-1] < 1


@pytest.mark.parametrize("nodes, rounds, away", [(8, 4, 4), (8, 6, 3), (16, 12, 8), (16, 40, 8)])
def test_one_noise_does_not_protect_many_messages(nodes: int, rounds: int, away: int) -> None:
    """One draw of noise and free gossip: whoever waits long enough solves for it, however far away."""
    view = seen(nx.cycle_graph(nodes), rounds, contributing=1)[away]
    assert sensitivity(view, np.ones(1)) == pytest.approx(1.0, abs=1e-6)


def test_all_neighbours_together_see_everything_and_nobody_more_than_that() -> None:
    graph = nx.cycle_graph(6)
    both = projection(weights(graph), 5, {1, 5})
    np.testing.assert_allclose(both[0], np.eye(5), atol=1e-9)
    assert not both[1].any() and not both[5].any()
    for looker in range(1, 6):
        alone = projection(weights(graph), 5, {looker})[0]
        assert np.linalg.eigvalsh(alone)[-1] <= 1 + 1e-9
        assert np.linalg.eigvalsh(both[0] - alone)[0] >= -1e-9  # more eyes see more


def test_a_view_that_is_too_large_is_refused() -> None:
    with pytest.raises(ConfigError, match="5000 rounds of 16 nodes: too many"):
        projection(weights(nx.cycle_graph(16)), 5000, {0})


# --- the mechanism


def linear(features: int = 3) -> Learner:
    return from_flax(lambda rngs: nnx.Linear(features, 2, rngs=rngs), jnp.zeros((1, features)), classes=2)


def begun(learner: Learner, noise: float = 1e-9, **site: Any) -> Params:
    own = {"entropy": jnp.asarray(entropy(1, 0)[0]), NOISE: jnp.float32(noise), **site}
    return placed(learner.init(KEY), own)


def norm_of(tree: Tree) -> float:
    return float(jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(tree))))


def rows(many: int, scale: float = 3.0) -> Tree:
    x = scale * jax.random.normal(KEY, (many, 3))
    return {"x": x, "y": (x[:, 0] > 0).astype(jnp.int32)}


@pytest.mark.parametrize("many", [1, 5, AT_ONCE, 2 * AT_ONCE + 3])
def test_the_gradient_is_the_sum_of_the_clipped_ones_of_all_rows(many: int) -> None:
    clip, plain = 0.7, linear()
    private = dp_sgd(clip, many).learner
    assert private is not None
    learner, batch = private(counting(plain)), rows(many)
    params = begun(learner)
    total = jax.tree.map(jnp.zeros_like, params["trained"])
    clipped = 0
    for i in range(many):
        own = plain.grad(params, jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batch), KEY)[0]
        factor = min(1.0, clip / norm_of(own))
        clipped += factor < 1
        total = jax.tree.map(lambda sum_, g, factor=factor: sum_ + factor * g, total, own)
    found, after, metrics = learner.grad(params, batch, KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b / many, atol=1e-6), found, total)
    assert clipped > 0 and (many == 1 or clipped < many)
    assert after["private"]["privacy"]["steps"] == 1 and after["private"]["draws"] == 1
    np.testing.assert_allclose(metrics["loss"], plain.grad(params, batch, KEY)[2]["loss"], rtol=1e-5)


def test_a_row_moves_a_step_by_the_clipped_norm_at_most_whatever_it_is() -> None:
    private = dp_sgd(1.0, 8).learner
    assert private is not None
    learner, batch = private(counting(linear())), rows(8)
    params = begun(learner, 2.0)
    before = learner.grad(params, batch, KEY)[0]
    for value in (0.0, 1e6, jnp.nan, jnp.inf):
        other = {**batch, "x": batch["x"].at[2].set(value)}
        moved = jax.tree.map(jnp.subtract, learner.grad(params, other, KEY)[0], before)
        assert norm_of(moved) <= 2 / 8 + 1e-6  # replaced: what it was is gone, what it is has come
    assert norm_of(moved) <= 1 / 8 + 1e-6  # not finite: gone


def test_noise_has_its_standard_deviation_and_is_another_each_time() -> None:
    private = dp_sgd(0.5, 4).learner
    assert private is not None
    learner = private(counting(linear(200)))
    params, batch = begun(learner, 3.0), {"x": jnp.zeros((4, 200)), "y": jnp.zeros(4, jnp.int32)}
    first, after, _ = learner.grad(params, batch, KEY)
    second = learner.grad({**after, "trained": params["trained"]}, batch, KEY)[0]
    assert float(first["kernel"].std()) == pytest.approx(0.5 * 3 / 4, rel=0.1)
    assert float(jnp.corrcoef(first["kernel"].ravel(), second["kernel"].ravel())[0, 1]) == pytest.approx(0, abs=0.2)
    jax.tree.map(np.testing.assert_array_equal, first, learner.grad(params, batch, KEY)[0])  # a study: by the seed


def test_poisson_sampling_counts_a_binomial_number_of_rows() -> None:
    private = dp_sgd(1.0, 4, poisson=True).learner
    assert private is not None
    learner = private(counting(linear()))
    one_row = {"x": jnp.ones((12, 3)), "y": jnp.zeros(12, jnp.int32)}  # all alike: the gradient counts them
    params = begun(learner, samples=jnp.float32(40), **{RATE: jnp.float32(0.1)})
    single = norm_of(linear().grad(params, jax.tree.map(lambda leaf: leaf[:1], one_row), KEY)[0])
    counts, step = [], jax.jit(learner.grad)
    for _ in range(200):
        gradient, after, _ = step(params, one_row, KEY)
        params = {**after, "trained": params["trained"]}
        counts.append(round(4 * norm_of(gradient) / min(single, 1.0)))
    assert np.mean(counts) == pytest.approx(4, abs=0.5) and np.var(counts) == pytest.approx(3.6, abs=1.2)


def test_what_rows_a_batch_takes() -> None:
    """Passes of whole batches take a row once at most; for Poisson sampling each step has an order of its own."""
    passes = one(0, 0, 10, 3, 4, used=8)
    for turn in range(1, 4):
        for start in range(0, 2, 2):
            both = passes.indices(turn)[0][start : start + 2]
            assert len(both.ravel()) == 8
    stream = np.concatenate([passes.indices(turn)[0] for turn in range(1, 5)]).reshape(-1, 8)
    assert all(len(set(each.tolist())) == 8 for each in stream)
    fresh = one(0, 0, 10, 2, 6, used=6)
    steps = np.concatenate([fresh.indices(turn)[0] for turn in range(1, 4)])
    assert all(len(set(each.tolist())) == 6 for each in steps) and len({*map(tuple, steps.tolist())}) == 6
    roomy = one(0, 0, 4, 2, 6, used=6)  # more room than rows: those beyond repeat one, and never count
    assert all(set(each[:4].tolist()) == {0, 1, 2, 3} for each in roomy.indices(1)[0])


# --- experiments


def wanted(**more: Any) -> dict[str, Any]:
    table: dict[str, Any] = {
        "name": "t", "rounds": 6, "seed": 1,
        "data": {"source": "digits"}, "model": {"name": "logistic"},
        "training": {"optimizer": {"name": "sgd", "learning_rate": 0.2}, "batch_size": 16, "local_steps": 2},
        "privacy": {"clip": 1.0, "noise": 1.0, "delta": 1e-5},
        "topology": {"graph": "ring", "nodes": 5}, "algorithm": {"name": "dsgd"},
        "driver": {"kind": "simulate"}, "evaluation": {"every": 6}, "baselines": False,
    }  # fmt: skip
    for path, value in more.items():
        head, _, tail = path.partition("__")
        table[head] = {**table.get(head, {}), tail: value} if tail else value
    return table


FAST = {"name": "sgd", "learning_rate": 1.0}


def made(**more: Any) -> Experiment:
    found: Experiment = parse(wanted(**more), "t.toml", Experiment)
    return found


@pytest.mark.parametrize(
    "more, told",
    [
        (
            {"privacy__epsilon": 1e-3},
            r"epsilon=0.001: the 2 local steps of the first round cost node 0, of \d+",
        ),
        ({"model": {"name": "mlp", "hidden": [4], "norm": "batch"}}, "the model has batch statistics"),
        ({"training__objective": [{"name": "fedsld"}]}, r"training.objective\[0\]: fedsld takes more of the rows"),
        ({"algorithm__wrap": [{"name": "by_loss", "q": 1}]}, r"algorithm.wrap\[0\]: by_loss tells neighbours"),
        ({"statistics": {"normalize": True}}, "statistics: sums over rows are told without accounting"),
        ({"training__patience": 2}, "training.patience"),
        ({"training__batch_size": 400}, r"batch_size=400: node 0 has \d+ training rows"),
        ({"training__optimizer": {"name": "polyak_sgd"}}, "asks for the loss as well"),
        ({"training__objective": [{"name": "missing_classes"}]}, "missing_classes takes more of the rows than their"),
        ({"privacy": {"clip": 1.0, "delta": 1e-5}}, "privacy.noise: must be given, or privacy.epsilon"),
        ({"data": {"source": "quadratic"}, "model": None}, "privacy: data.source='quadratic' has no rows to protect"),
    ],
)
def test_what_goes_past_the_noise_or_buys_nothing_is_refused(more: dict[str, Any], told: str) -> None:
    table = wanted(**more)
    if table["model"] is None:
        del table["model"]
    with pytest.raises(ConfigError, match=told):
        build(parse(table, "t.toml", Experiment))


def test_training_stops_before_the_budget_is_exceeded_and_says_so(tmp_path: Path) -> None:
    budget = epsilon(1.0, Sampling(287, 16), 2 * 17, 1e-5)  # two passes: the third begins in round 18
    done = run(made(rounds=24, privacy__epsilon=budget + 1e-6), tmp_path / "run")
    told = json.loads((tmp_path / "run" / "privacy.json").read_text())
    for each in told["nodes"].values():
        assert each["stopped"] and each["epsilon"] <= budget + 1e-6
        assert each["steps"] == 2 * (each["rows"] // 16)
    for node, others in told["single_nodes"]["epsilon"].items():
        assert 0 < min(others.values()) <= max(others.values()) <= told["nodes"][node]["epsilon"]
    said = "\n".join(done.notes)
    assert "will take no local step after" in said and "the budget is used up at" in said
    assert "follows from the seed" in said and "at distance 2" in said


@pytest.mark.more
@pytest.mark.parametrize("sampling", ["passes", "poisson"])
def test_noise_costs_accuracy(tmp_path: Path, sampling: str) -> None:
    scores = []
    for noise in (1e-6, 30.0):
        more = {"training__optimizer": FAST, "privacy__noise": noise, "privacy__sampling": sampling}
        done = run(made(rounds=30, evaluation={"every": 30}, **more), tmp_path / f"{noise}")
        scores.append(done.score_mean)
    assert scores[0] > 0.8 and scores[1] < scores[0] - 0.2


def test_no_process_takes_private_steps_that_another_has_taken(tmp_path: Path) -> None:
    """A node of real time whose process was killed: what it may have taken is counted, and written down before."""
    file = SpendingFile(tmp_path)
    assert file.read("") == 0
    federation = build(made(rounds=40, privacy__epsilon=9.0))
    task = tasks(federation)[0]
    assert task.budget is not None
    terms = task.budget.terms
    allowed, steps = int(task.site[ALLOWED]), task.batching.width

    def begun(store: Store) -> Worker:
        host = Host(lambda: 0.0, lambda: (0, 0), lambda round: None, lambda line: None, store, 0, spending=file)
        return Worker(task, tmp_path, host)

    store = Store(tmp_path, "f")
    work = begun(store)
    work.begin(1)
    for round in range(1, 4):
        work.advance(Advance(0, (), 0.0, round))
        work.score, work.loss = 0.9, 0.3
        assert work.for_others() == (None, None)  # no noise is on them
    assert file.read(terms) == AHEAD * steps  # of this process, killed now; nothing is in a checkpoint
    again = begun(store)
    again.begin(2)
    counted = task.program.params(again.replica.state)["private"]["privacy"]["steps"]
    assert int(counted) == AHEAD * steps
    for round in range(4, 40):
        again.advance(Advance(0, (), 0.0, round))
    assert int(task.program.params(again.replica.state)["private"]["privacy"]["steps"]) == allowed == file.read(terms)
    with pytest.raises(ValueError, match="counts steps on other terms"):
        file.read(terms.replace("noise 1", "noise 5"))
    (tmp_path / "spent.json").write_text("{")
    with pytest.raises(LocalError, match="says how many private steps were taken, and can't be read"):
        begun(store).begin(3)


def test_a_process_that_goes_on_from_a_checkpoint_draws_other_noise(tmp_path: Path) -> None:
    """Else two lives' messages of one round would differ by what rows say, with no noise."""
    federation = build(made(rounds=40))
    task, store = tasks(federation)[0], Store(tmp_path, "f")

    def begun(words: list[int]) -> Worker:
        site = {**task.site, "entropy": np.array(words, np.uint32)}
        host = Host(lambda: 0.0, lambda: (0, 0), lambda round: None, lambda line: None, store, 1)
        return Worker(task._replace(site=site), tmp_path, host)

    first = begun([1, 2])
    first.begin(1)
    first.advance(Advance(0, (), 0.0, 1))
    first.checkpoint()
    kept = jax.tree.map(np.asarray, task.program.params(first.replica.state)["trained"])
    models = []
    for words in ([1, 2], [3, 4]):
        again = begun(words)
        again.resume()
        again.begin(2)
        after = task.program.params(again.replica.state)
        jax.tree.map(np.testing.assert_array_equal, after["trained"], kept)
        again.advance(Advance(0, (), 0.0, 2))
        models.append(np.asarray(task.program.params(again.replica.state)["trained"]["layers"][0]["kernel"]))
    assert np.abs(models[0] - models[1]).max() > 1e-3


def test_where_rounds_are_left_out_a_row_may_be_in_as_many_passes_as_are_planned() -> None:
    whole = Sampling(rows=100, batch_size=10)
    assert whole.parts(10) == 1 and whole._replace(planned=100).parts(10) == 10
    assert whole._replace(planned=30).parts(10) == 3
    federation = build(made(rounds=18, topology={"graph": "ring", "nodes": 5, "take_part": 0.6}))
    assert federation.learning.private is not None
    own = federation.learning.private.sampling[0]
    assert own is not None and own.planned == 36 and own.parts(4) == 2
