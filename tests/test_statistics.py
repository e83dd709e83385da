"""Gossiped statistics, against numpy on all rows pooled."""

from __future__ import annotations

import dataclasses
import doctest
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federations import looped

import p2pfl
from p2pfl import topology
from p2pfl.algorithms import ALGORITHMS
from p2pfl.config import experiment
from p2pfl.data import Dataset, Samples
from p2pfl.errors import ConfigError
from p2pfl.federation import federation as build
from p2pfl.learning.flax import cast
from p2pfl.methods import compose, statistics
from p2pfl.methods.statistics import averaging
from p2pfl.runs import simulated
from p2pfl.types import Inbox, Neighborhood

TOLERANCE = 1e-4
FEATURES, CLASSES = 5, 3


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def flat(rows: int = 240, seed: int = 0) -> Dataset:
    """Features of very different scale, the last one constant; three classes, one of them rare."""
    rng = np.random.default_rng(seed)
    x = rng.normal([0, 5, -40, 100, 7], [1, 2, 0.1, 30, 0], (rows, FEATURES)).astype(np.float32)
    y = rng.choice(CLASSES, rows, p=[0.5, 0.4, 0.1]).astype(np.int32)
    return Dataset(Samples(x, y), Samples(x[:0], y[:0]), ("a", "b", "c"))  # models are looked at, not tested


def images(rows: int = 24, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    x = (rng.random((rows, 6, 7, 2)) * rng.uniform(0.2, 1, (rows, 1, 1, 2))).astype(np.float32)
    y = rng.integers(0, 2, rows).astype(np.int32)
    return Dataset(Samples(x, y), Samples(x, y), ("a", "b"))


def cut(rows: int, sizes: Sequence[int]) -> list[np.ndarray]:
    assert sum(sizes) <= rows
    return np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])


def own(names: Sequence[str], dataset: Dataset, rows: np.ndarray, minimum: int = 1, noise: float = 0.0) -> Any:
    return statistics.gathered(names, dataset, rows, minimum, noise, np.random.default_rng(3))


def total(sums: Any, sites: Sequence[int] | slice = slice(None)) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf[sites]).sum(axis=0), sums)


# ---------------------------------------------------------------------------------------------------------------- sums


def test_sums_over_sites_are_of_what_is_known() -> None:
    """A feature that one site never measures is filled in with the mean of the others; nobody tells of fewer rows than
    the minimum."""
    data = flat()
    x, parts = data.train.x, cut(240, [10, 200, 30])
    x[:10, 1] = np.nan
    x[10:110, 3] = np.nan
    x[210:235, 0] = np.nan  # of 30 rows 5 are left
    found = statistics.estimated(total(statistics.stacked(("moments",), data, parts, 10, 0, 0)))["moments"]
    told = x.astype(np.float64)
    told[235:, 0] = np.nan
    np.testing.assert_allclose(found["mean"], np.nanmean(told, axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(found["sd"])[[0, 1, 3]], np.nanstd(told, axis=0)[[0, 1, 3]], rtol=1e-5)
    filled = np.asarray(statistics.normalized(jnp.asarray(x), found))
    assert (filled[np.isnan(x)] == 0).all() and np.isfinite(filled).all()


def test_sums_over_sites_say_what_all_rows_say() -> None:
    data = flat()
    parts = cut(240, [10, 200, 30])
    found = statistics.estimated(total(statistics.stacked(("moments", "labels"), data, parts, 1, 0, 0)))
    x = data.train.x.astype(np.float64)
    np.testing.assert_allclose(found["moments"]["mean"], x.mean(axis=0), rtol=1e-5, atol=1e-6)
    off = abs(np.asarray(found["moments"]["sd"][:4]) / x.std(axis=0)[:4] - 1)
    assert (off < [1e-5, 1e-5, 0.02, 1e-5]).all()  # the third lies 400 standard deviations from zero, in float32
    assert found["moments"]["sd"][4] == 1  # constant
    np.testing.assert_allclose(found["labels"], np.bincount(data.train.y) / 240, rtol=1e-6)


def test_images_have_moments_by_channel_and_a_mean_amplitude() -> None:
    data = images()
    sums = statistics.stacked(("moments", "amplitude"), data, cut(24, [4, 20]), 1, 0, 0)
    found, x = statistics.estimated(total(sums)), data.train.x.astype(np.float64)
    np.testing.assert_allclose(found["moments"]["mean"], x.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(found["moments"]["sd"], x.std(axis=(0, 1, 2)), rtol=1e-5)
    whole = np.abs(np.fft.fft2(x, axes=(1, 2))).mean(axis=0)
    np.testing.assert_allclose(found["amplitude"], whole[:, :4], rtol=1e-5, atol=1e-6)


def test_estimates_are_ratios_and_nothing_said_is_the_identity() -> None:
    names = ("moments", "labels")
    sums = own(names, flat(), np.arange(240))
    scaled = jax.tree.map(lambda leaf: leaf * np.float32(0.25), sums)
    jax.tree.map(np.testing.assert_array_equal, *(statistics.estimated(each) for each in (sums, scaled)))
    blurred = statistics.estimated({"labels": {"count": np.array([30.0, -3.0, 10.0])}})["labels"]
    np.testing.assert_allclose(blurred, [0.75, 0, 0.25])
    nothing = statistics.estimated(own(names, flat(), np.arange(0)))
    assert not nothing["moments"]["mean"].any() and (nothing["moments"]["sd"] == 1).all()
    assert not nothing["labels"].any()


def test_a_small_site_and_a_small_class_say_nothing() -> None:
    data = flat()
    names = ("moments", "labels")
    few = own(names, data, np.arange(3), minimum=4, noise=2.0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(few))
    rows = np.concatenate([np.flatnonzero(data.train.y == 0)[:20], np.flatnonzero(data.train.y == 2)[:3]])
    assert own(names, data, rows, minimum=4)["labels"]["count"].tolist() == [20, 0, 0]
    parts = [np.arange(3), rows, np.arange(100, 200)]
    with_it, without = (
        statistics.estimated(total(statistics.stacked(names, data, p, 4, 0, 0))) for p in (parts, parts[1:])
    )
    jax.tree.map(np.testing.assert_array_equal, with_it, without)
    said = statistics.notes(names, data, [*parts, np.arange(0)], 4)
    assert said[0].startswith("statistics: 1 of 3 sites (0) have fewer than 4 training rows")
    assert said[1].startswith("statistics: 1 of 3 sites have fewer than 4 rows of some class") and len(said) == 2
    assert statistics.notes(names, data, [np.arange(240)], 4) == () == statistics.notes((), data, parts, 500)


def test_noise_is_in_units_of_one_row_and_seeded() -> None:
    data, rows = flat(), np.arange(100)
    exact = own(["moments", "labels"], data, rows)
    drawn = [
        statistics.gathered(["moments", "labels"], data, rows, 1, 2.0, np.random.default_rng(s)) for s in range(400)
    ]

    def spread(*path: str) -> np.ndarray:
        values: Any = [each[path[0]][path[1]] - exact[path[0]][path[1]] for each in drawn]
        return np.std(np.stack(values), axis=0)

    most = np.abs(data.train.x[rows]).max(axis=0)
    np.testing.assert_allclose(spread("moments", "sum"), 2 * most, rtol=0.15)
    np.testing.assert_allclose(spread("moments", "count"), 2, rtol=0.15)
    np.testing.assert_allclose(spread("labels", "count"), [2] * CLASSES, rtol=0.15)
    first, again, other = (statistics.stacked(["labels"], data, [rows, rows], 1, 1.0, s) for s in (0, 0, None))
    np.testing.assert_array_equal(first["labels"]["count"], again["labels"]["count"])
    assert (first["labels"]["count"] != other["labels"]["count"]).all()
    assert (first["labels"]["count"][0] != first["labels"]["count"][1]).all()


def test_what_can_not_be_gathered_is_refused() -> None:
    with pytest.raises(ConfigError, match="gather='momnets': did you mean 'moments'"):
        own(["momnets"], flat(), np.arange(9))
    with pytest.raises(ConfigError, match=r"gather='amplitude': a row of x has shape \(5,\); only images"):
        own(["amplitude"], flat(), np.arange(9))
    with pytest.raises(ConfigError, match="noise=-1: must be >= 0"):
        own(["moments"], flat(), np.arange(9), noise=-1)
    with pytest.raises(ConfigError, match="kind 'regression', which has no labels"):
        own(["labels"], flat()._replace(kind="regression"), np.arange(9))


# ----------------------------------------------------------------------------------------------------------- averaging


@pytest.mark.parametrize(
    "graph, nodes, link, wanted",
    [
        ("complete", 8, "exchange", 1), ("base", 8, "exchange", 3), ("one_peer_exponential", 8, "push", 3),
        ("ring", 1, "exchange", 1), ("ring", 8, "none", 1),
    ],
)  # fmt: skip
def test_finite_time_graphs_take_one_period(graph: str, nodes: int, link: str, wanted: int) -> None:
    assert statistics.rounds(topology.plan(graph, nodes), TOLERANCE, 100, link) == wanted


def test_rounds_follow_the_contraction_of_the_graph() -> None:
    """On a ring the slowest mode decays by its eigenvalue: ten times the precision is a known number of rounds more."""
    ring = topology.plan("ring", 12)
    needed = [statistics.rounds(ring, tolerance, 2000) for tolerance in (1e-3, 1e-6)]
    rate = (1 + 2 * np.cos(2 * np.pi / 12)) / 3
    assert needed[1] - needed[0] == pytest.approx(np.log(1e-3) / np.log(rate), abs=1)
    assert statistics.rounds(ring, 1e-3, 2000, late=2) == 3 * needed[0]
    assert statistics.rounds(ring, 1e-3, 2000, loss=0.3) > 1.5 * needed[0]
    seven = topology.plan("one_peer_exponential", 7)
    more = statistics.rounds(topology.plan("complete", 7), 1e-3, 2000, others=[(seven, range(7))])
    assert more == statistics.rounds(seven, 1e-3, 2000) > 3


def test_a_graph_that_is_too_slow_or_never_mixes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"statistics.tolerance=1e-06: is not reached on this graph in 20 rounds"):
        statistics.rounds(topology.plan("ring", 12), 1e-6, 20)
    with pytest.raises(ConfigError, match="never hear of each other"):
        statistics.rounds(topology.from_rounds(4, [(np.array([0, 1]), np.array([1, 0]), 0.5)]), 1e-2, 50)


@pytest.mark.parametrize("graph, loss", [("ring", 0.0), ("ring", 0.2), ("exponential", 0.2), ("base", 0.2)])
def test_an_average_is_within_its_tolerance_at_every_node(graph: str, loss: float) -> None:
    rng = np.random.default_rng(1)
    values = [{"n": rng.integers(1, 1000), "s": rng.random((2, 3)) ** 4} for _ in range(9)]
    found = statistics.average(values, topology.plan(graph, 9), 1e-3, loss)
    mean = jax.tree.map(lambda *leaves: np.mean(np.stack(leaves), axis=0), *values)
    for each in found:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), each, mean)
    if loss == 0:  # it stops when it is good enough, not later
        assert max(abs(each["n"] - mean["n"]) / mean["n"] for each in found) > 1e-6


def test_averaging_by_itself() -> None:
    assert doctest.testmod(averaging).failed == 0
    ring = topology.plan("ring", 3)
    with pytest.raises(ConfigError, match="values: 2 for 3 nodes"):
        statistics.average([1.0, 2.0], ring, 0.1)
    with pytest.raises(ConfigError, match="different structure or shapes"):
        statistics.average([np.zeros(2), np.zeros(3), np.zeros(2)], ring, 0.1)


# ----------------------------------------------------------------------------------------------------- in an experiment


def federation(
    algorithm: str, graph: str, nodes: int = 8, rounds: int = 1, gather: tuple[str, ...] = ("moments", "labels"),
    wait: int | None = None, data: Dataset | None = None, optimizer: Any = None, normalize: bool = True,
    parts: Sequence[np.ndarray] | None = None, batch_size: int = 4, **more: Any,
) -> build.Federation:  # fmt: skip
    """`rounds` after those that averaging needs. Site i has 10 + 5 i rows."""
    data = data or flat(270)
    table = {
        "name": "t", "rounds": 400, "data": {"source": "digits"}, "model": {"name": "logistic"},
        "training": {"optimizer": {"name": "sgd", "learning_rate": 0.05}, "local_steps": 2, "dtype": "float64",
                     "batch_size": batch_size},
        "topology": {"graph": graph, "nodes": nodes}, "algorithm": {"name": algorithm},
        "driver": {"kind": "simulate"}, "evaluation": {"every": 400}, "baselines": False, **more,
    }  # fmt: skip
    made = build.build(experiment.parse(table, "t.toml", experiment.Experiment))
    pieces = tuple(parts or cut(len(data.train.y), [10 + 5 * i for i in range(nodes)]))
    base = p2pfl.from_flax(_logistic(data), jnp.asarray(data.train.x[:1]), len(data.classes))
    wanted = optimizer or optax.sgd(0.05)
    planned = wait or statistics.rounds(
        made.schedule, TOLERANCE, 400, ALGORITHMS[algorithm](base, optax.sgd(0.1)).link, **_loss(made)
    )
    sums = statistics.stacked(gather, data, pieces, 1, 0, 0, "float64")
    learner = statistics.learned(cast(base, "float64"), jax.tree.map(lambda leaf: leaf[0], sums), normalize)

    def make(learner: Any) -> Any:
        return statistics.gossip(compose.withhold(ALGORITHMS[algorithm](learner, wanted)), planned)

    nothing = tuple(np.zeros(0, np.int64) for _ in pieces)
    wanted_rounds = planned + rounds if wait is None else rounds
    return made._replace(
        experiment=dataclasses.replace(made.experiment, rounds=wanted_rounds),
        data=made.data._replace(dataset=data, partition=made.partition._replace(train=pieces, test=nothing)),
        learning=made.learning._replace(learner=learner, algorithm=make(learner), make=make, sites={"sums": sums}),
    )


def _loss(made: build.Federation) -> dict[str, Any]:
    return {"loss": made.experiment.network.loss, "late": made.experiment.network.late, "seed": made.experiment.seed}


def _logistic(data: Dataset) -> Any:
    from p2pfl.learning import models

    return models.MODELS["logistic"](data.train.x.shape[1:], len(data.classes))


def run(made: build.Federation) -> Any:
    outcome = simulated.simulate_federation(made, devices=1, chunk=len(made.graph))
    assert outcome.drift < 1e-14  # of the models
    return outcome.models


def same(made: build.Federation, models: Any) -> None:
    """As the plain loop has it; with XLA's optimiser, without which the last bit of a first model, drawn in float32,
    depends on the program around."""
    mine = [np.asarray(leaf).reshape(len(made.graph), -1) for leaf in jax.tree.leaves(models)]
    np.testing.assert_allclose(np.concatenate(mine, axis=1), looped(made), rtol=1e-9, atol=1e-10)


def knows(
    found: Any, made: build.Federation, node: int, sites: Mapping[int, float] | Sequence[int],
    tolerance: float = TOLERANCE,
) -> None:  # fmt: skip
    """The node's estimates are those of the rows of these sites, where given by how much each counts; averages are off
    by `tolerance`, ratios by twice."""
    counts = sites if isinstance(sites, Mapping) else dict.fromkeys(sites, 1.0)
    rows = np.concatenate([made.partition.train[i] for i in counts])
    weight = np.concatenate([np.full(len(made.partition.train[i]), count) for i, count in counts.items()])
    weight = weight / weight.sum()
    x, y = made.dataset.train.x[rows].astype(np.float64), made.dataset.train.y[rows]
    mine = jax.tree.map(lambda leaf: np.asarray(leaf[node]), found["statistics"])
    mean = weight @ x
    sd = np.sqrt(weight @ (x - mean) ** 2)
    assert mine["known"] == 1
    # a row's weight in the ratios is off by 2 x tolerance: by so much of the spread is the mean, wherever it lies
    assert (abs(mine["moments"]["mean"] - mean) <= 2 * tolerance * sd + 1e-9).all()
    assert (abs(mine["moments"]["sd"][:4] / sd[:4] - 1) <= 2 * tolerance + 1e-7).all()
    assert mine["moments"]["sd"][4] == 1
    share = np.bincount(y, weight, minlength=CLASSES)
    assert (abs(mine["labels"] - share) <= 2 * tolerance * share + 1e-12).all()


@pytest.mark.parametrize(
    "algorithm, graph, more",
    [
        pytest.param("dsgd", "ring", {}, marks=pytest.mark.soak),
        pytest.param("gradient_tracking", "base", {"network": {"loss": 0.2}}, marks=pytest.mark.more),
        pytest.param("push_sum", "exponential", {"network": {"loss": 0.2}}, marks=pytest.mark.more),
        pytest.param("push_sum", "one_peer_exponential", {}, marks=pytest.mark.soak),
        pytest.param("dsgd", "ring", {"network": {"late": 2}}, marks=pytest.mark.soak),
        pytest.param("ad_psgd", "ring", {}, marks=pytest.mark.soak),
        pytest.param("exact_diffusion", "ring", {}, marks=pytest.mark.soak),
    ],
)
def test_every_node_knows_what_all_rows_say(
    optimised: None, float64: None, algorithm: str, graph: str, more: dict[str, Any]
) -> None:
    made = federation(algorithm, graph, rounds=2, **more)
    found = run(made)
    for node in range(8):
        knows(found, made, node, range(8))
    if algorithm != "push_sum":  # with epochs it is, below
        same(made, found)


CHURN = [
    {"event": "crash", "node": 2, "round": 20}, {"event": "join", "node": 8, "round": 40},
    {"event": "leave", "node": 1, "round": 62}, {"event": "rejoin", "node": 2, "round": 64},
]  # fmt: skip
EIGHT = tuple(range(8))


@pytest.mark.parametrize(
    "algorithm, graph, lengths",
    [
        pytest.param("dsgd", "base", (84,), marks=pytest.mark.more),
        pytest.param("dsgd", "base", (39, 41, 61), marks=pytest.mark.soak),
        pytest.param("gradient_tracking", "base", (39, 61, 84), marks=pytest.mark.soak),
    ],
)
def test_who_goes_still_counts_and_who_comes_is_counted(
    optimised: None, float64: None, algorithm: str, graph: str, lengths: tuple[int, ...]
) -> None:
    """Epochs begin in rounds 1, 21, 40, 62 and 64; what is known is written at the end of the 18th round of each.

    Who goes takes an equal part of every sum along: 7/8 of all rows are left, and node 8 brings its own on top of that.
    After the next one has left, 8/9 of these are there, to which node 2 adds its rows once more.
    """
    for rounds in lengths:
        events = [event for event in CHURN if event["round"] <= rounds]
        made = federation(algorithm, graph, 9 if rounds > 39 else 8, rounds, wait=18, churn=events)
        found = run(made)
        first = dict.fromkeys(EIGHT, 1.0)
        joined = {**dict.fromkeys(EIGHT, 7 / 8), 8: 1.0}
        again = {i: 8 / 9 * count for i, count in joined.items()}
        known = {39: first, 41: first, 61: joined, 84: {**again, 2: again[2] + 1}}[rounds]
        there = {39: {2}, 41: {2}, 61: {2}, 84: {1}}[rounds]
        for node in {*EIGHT, *((8,) if rounds > 39 else ())} - there:
            knows(found, made, node, known, 2e-3)
        if rounds == 41:  # node 8 trains from the round on in which it came
            first_model = made.learner.init(jax.random.key(0))["trained"]
            assert abs(jax.tree.leaves(found["trained"])[0][8] - jax.tree.leaves(first_model)[0]).max() > 0
        if graph == "base":
            same(made, found)


@pytest.mark.more
def test_who_is_gone_before_anything_is_known_does_not_count(float64: None) -> None:
    """Half averaged sums start again with the epoch, from those of its members."""
    made = federation("dsgd", "base", 8, 40, wait=18, churn=[{"event": "crash", "node": 2, "round": 5}])
    found = run(made)
    for node in set(EIGHT) - {2}:
        knows(found, made, node, sorted(set(EIGHT) - {2}), 2e-3)


def solo(name: str, rounds: int, data: Dataset | None = None) -> tuple[Any, Any, Any]:
    """An algorithm that gossips, its first model, and a round of it in which nobody is heard."""
    data = flat() if data is None else data
    base = cast(p2pfl.from_flax(_logistic(data), jnp.asarray(data.train.x[:1]), CLASSES), "float64")
    sums = jax.tree.map(jnp.asarray, own(["moments"], data, np.arange(50)))
    learner = statistics.learned(base, sums, True)
    plain = ALGORITHMS[name](learner, optax.sgd(optax.linear_schedule(0.1, 0.0, 10)))
    made = statistics.gossip(compose.withhold(plain), rounds)
    params = {**learner.init(jax.random.key(1)), "private": {"site": {"sums": sums}}}
    x, y = jnp.asarray(data.train.x[:8], jnp.float64), jnp.asarray(data.train.y[:8])
    batches = {"x": x.reshape(2, 4, 5), "y": y.reshape(2, 4)}
    nobody = Neighborhood(jnp.zeros(1), jnp.zeros(1))

    @jax.jit
    def round(state: Any) -> Any:
        state, payload = made.send(made.local(state, batches, jax.random.key(0), None)[0], nobody)
        whole = payload if made.per_edge else jax.tree.map(lambda leaf: leaf[None], payload)
        inbox = Inbox(whole, whole, jnp.zeros(1, bool), jnp.zeros(1, jnp.int32))
        return made.mix(state, inbox, nobody)

    return made, params, round


@pytest.mark.parametrize(
    "name",
    [
        *("gradient_tracking", "push_sum"),
        *(pytest.param(n, marks=pytest.mark.more) for n in ("exact_diffusion", "outer", "qg_dsgdm")),
        *(pytest.param(n, marks=pytest.mark.soak) for n in ("ad_psgd", "d2", "dfedavg", "dmsgd", "dsgd", "fedprox")),
    ],
)
def test_no_algorithm_moves_before_it_knows(float64: None, name: str) -> None:
    """Nor does its optimizer: a schedule of learning rates begins when training does."""
    made, params, round = solo(name, 2)
    first = made.init(params, 1)
    state = round(round(first))
    jax.tree.map(np.testing.assert_allclose, made.params(state)["trained"], params["trained"])
    jax.tree.map(np.testing.assert_array_equal, state.inner.opt_state, first.inner.opt_state)
    assert made.params(state)["statistics"]["known"] == 1
    moved = made.params(round(state))["trained"]
    assert abs(jax.tree.leaves(moved)[1] - jax.tree.leaves(params["trained"])[1]).max() > 1e-3


@pytest.mark.parametrize("name", ["dsgd", "push_sum"])
def test_an_estimate_is_written_once_an_epoch_and_stays(float64: None, name: str) -> None:
    made, params, round = solo(name, 2)

    def double(state: Any) -> Any:  # so that an estimate of other sums can be told
        return state._replace(sums={"moments": {**state.sums["moments"], "sum": 2 * state.sums["moments"]["sum"]}})

    def mean(state: Any) -> float:
        return float(made.params(state)["statistics"]["moments"]["mean"][1])

    state = round(made.init(params, 1))
    assert mean(state) == 0
    state = round(state)
    own_mean = mean(state)
    assert own_mean == pytest.approx(5, abs=1)
    state = round(round(double(state)))
    assert mean(state) == own_mean  # frozen
    state = made.restart(state, 1)  # an epoch: the sums stay, and are read once more
    assert mean(state) == own_mean and mean(round(state)) == own_mean
    assert mean(round(round(state))) == pytest.approx(2 * own_mean)
    other = jax.tree.map(lambda leaf: leaf + 1, made.params(state)["trained"])
    put = made.put(state, {**made.params(state), "trained": other})
    jax.tree.map(np.testing.assert_allclose, made.params(put)["trained"], other)
    jax.tree.map(np.testing.assert_array_equal, put.sums, state.sums)
    joined = made.adopt(made.init(params, 1), made.params(round(round(state))))
    assert mean(joined) == pytest.approx(2 * own_mean) and made.params(joined)["statistics"]["known"] == 1


def test_epochs_that_come_and_go_do_not_keep_a_node_from_training(float64: None) -> None:
    """A node that has waited as long as averaging takes begins, with what the last epoch's sums say so far."""
    made, params, round = solo("dsgd", 3)
    state = made.init(params, 1)
    for known in (0, 0, 1):
        state = round(made.restart(state, 1))
        assert made.params(state)["statistics"]["known"] == known


def test_alone_a_site_knows_itself(float64: None) -> None:
    made, params, _ = solo("local", 50)
    state = made.init(params, 1)
    x = flat().train.x[:50].astype(np.float64)
    assert made.params(state)["statistics"]["known"] == 1
    np.testing.assert_allclose(made.params(state)["statistics"]["moments"]["mean"], x.mean(axis=0))
    donor = {**params, "statistics": jax.tree.map(lambda leaf: leaf + 5, params["statistics"])}
    adopted = made.params(made.adopt(state, donor))["statistics"]
    jax.tree.map(np.testing.assert_array_equal, adopted, made.params(state)["statistics"])
    assert made.travels == "nothing" and not isinstance(made.send(state, None)[1].get("sums"), dict)


@pytest.mark.parametrize("name", ["epidemic", "gossip_learning", "fedavg"])
def test_algorithms_that_keep_no_mean_are_refused(name: str) -> None:
    data = flat()
    base = p2pfl.from_flax(_logistic(data), jnp.asarray(data.train.x[:1]), CLASSES)
    with pytest.raises(ConfigError, match=f"statistics: {name} pushes models without keeping their mean.*push_sum"):
        statistics.gossip(ALGORITHMS[name](base, optax.sgd(0.1)), 3)


@pytest.mark.parametrize("gaps", [False, True])
def test_training_is_that_on_data_normalized_before(float64: None, gaps: bool) -> None:
    """Gradient descent in numpy, two steps of a round with the learning rates 0.1 and 0.09, on normalised rows; what is
    missing is the mean of what is known."""
    data = flat()
    if gaps:
        data.train.x[np.random.default_rng(1).random(data.train.x.shape) < 0.3] = np.nan
        assert np.isnan(data.train.x[:8]).any(axis=1).sum() > 3
    made, params, round = solo("dsgd", 2, data)
    rows = np.arange(8).reshape(2, 4)
    x = data.train.x.astype(np.float64)
    x = (x - np.nanmean(x[:50], axis=0)) / np.where(np.arange(FEATURES) < 4, np.nanstd(x[:50], axis=0), 1)
    x = np.nan_to_num(x)
    bias, kernel = (np.asarray(leaf) for leaf in jax.tree.leaves(params["trained"]))
    for batch, rate in zip(rows, (0.1, 0.09), strict=True):
        odds = np.exp(x[batch] @ kernel + bias)
        error = (odds / odds.sum(axis=1, keepdims=True) - np.eye(CLASSES)[data.train.y[batch]]) / len(batch)
        bias, kernel = bias - rate * error.sum(axis=0), kernel - rate * x[batch].T @ error
    ours = made.params(round(round(round(made.init(params, 1)))))["trained"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jax.tree.leaves(ours), [bias, kernel])


# ------------------------------------------------------------------------------------------------------------ its use


def test_the_learner_sees_what_is_known_and_passes_the_rest_on() -> None:
    data = flat()
    base = p2pfl.from_flax(_logistic(data), jnp.asarray(data.train.x[:1]), CLASSES)
    sums = own(["moments"], data, np.arange(24))
    learner = statistics.learned(base, sums, True)
    params = learner.init(jax.random.key(0))
    x, y, key, mask = jnp.asarray(data.train.x[:24]), jnp.asarray(data.train.y[:24]), jax.random.key(1), jnp.ones(24)
    np.testing.assert_array_equal(learner.predict(params, x), base.predict(params, x))  # nothing known yet
    params["statistics"] = {"known": jnp.ones(()), **statistics.estimated(sums)}
    params["private"] = {"other": jnp.ones(2)}
    looked = statistics.normalized(x, params["statistics"]["moments"])
    batch, seen = {"x": x, "y": y, "weight": jnp.arange(24.0)}, {"x": looked, "y": y, "weight": jnp.arange(24.0)}
    ours, theirs = jax.jit(learner.grad)(params, batch, key), jax.jit(base.grad)(params, seen, key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)
    assert set(ours[1]) == {"carried", "statistics", "private"}
    losses = [jax.jit(each.evaluate)(params, what, mask)["loss"] for each, what in ((learner, batch), (base, seen))]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    np.testing.assert_allclose(learner.predict(params, x), base.predict(params, looked), atol=1e-4)
    with pytest.raises(ConfigError, match="normalize=true: needs the moments"):
        statistics.learned(base, {"labels": sums["moments"]}, True)


def test_an_amplitude_replaces_the_images_own_and_nothing_else() -> None:
    """The learner looks at images of the common amplitude, and normalises these."""
    data = images()
    base = p2pfl.from_flax(_logistic(data), jnp.asarray(data.train.x[:1]), 2)
    sums = own(["moments", "amplitude"], data, np.arange(1))
    learner = statistics.learned(base, sums, True)
    params, x = learner.init(jax.random.key(0)), jnp.asarray(data.train.x)
    np.testing.assert_array_equal(learner.predict(params, x), base.predict(params, x))
    params["statistics"] = known = {"known": jnp.ones(()), **statistics.estimated(sums)}
    changed = statistics.harmonised(x, known["amplitude"])
    np.testing.assert_allclose(changed[0], x[0], atol=1e-6)  # it was its own
    spectrum, before = (np.fft.rfft2(image, axes=(1, 2)) for image in (changed, x))
    np.testing.assert_allclose(np.abs(spectrum), np.broadcast_to(known["amplitude"], spectrum.shape), atol=1e-4)
    np.testing.assert_allclose(np.cos(np.angle(spectrum) - np.angle(before)), 1, atol=1e-3)
    looked = statistics.normalized(changed, known["moments"])
    np.testing.assert_allclose(learner.predict(params, x), base.predict(params, looked), rtol=1e-5, atol=1e-5)


def test_scanners_of_different_contrast_look_alike_but_an_inverted_film_stays_inverted() -> None:
    """What an amplitude can mend, and what it can't: brightness is in the phase."""
    rng = np.random.default_rng(0)
    spectrum = np.fft.rfft2(rng.normal(size=(1, 16, 16, 1)), axes=(1, 2))
    smooth = np.fft.irfft2(spectrum / (1 + np.arange(9)[:, None]) ** 2, axes=(1, 2))
    image = np.asarray((smooth - smooth.min()) / np.ptp(smooth), np.float32)
    common = jnp.abs(jnp.fft.rfft2(jnp.asarray(image[0]), axes=(0, 1)))

    def alike(other: np.ndarray) -> float:
        seen = (np.asarray(statistics.harmonised(jnp.asarray(x), common)).ravel() for x in (image, other))
        return float(np.corrcoef(*seen)[0, 1])

    assert alike(image * np.float32(0.3) + np.float32(0.2)) > 0.999
    assert alike(1 - image) < -0.9
