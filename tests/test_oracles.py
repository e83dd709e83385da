"""Closed forms and measured figures that the algorithms must meet; each with what must fail it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nodes import CHUNK, STEPS, Nodes, distance, learner, planned

from p2pfl import topology
from p2pfl.algorithms import ALGORITHMS
from p2pfl.algorithms.mixing import UNROLLED, counted, exchange_mix, left_out, renormalized
from p2pfl.churn import Event
from p2pfl.learning.quadratic import Quadratic, fixed_point
from p2pfl.types import Algorithm, Inbox, Neighborhood

ETA = 0.1


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def bench(name: str, graph: str, nodes: int, rate: float = ETA, rounds: int = 1, **arguments: Any) -> Nodes:
    algorithm = ALGORITHMS[name](learner(), optax.sgd(rate), **arguments)
    return Nodes(algorithm, planned(algorithm, graph, nodes, rounds))


# ------------------------------------------------------------------------------------------------------- fixed points


def test_the_fixed_point_of_equal_curvatures_mode_by_mode() -> None:
    """Along an eigenvector of W to lambda: lambda eta a b_k / (1 - lambda + lambda eta a); the mean is exact."""
    nodes, a = bench("dsgd", "ring", 8), 0.8
    task = Quadratic(np.full_like(nodes.task.a, a), nodes.task.b)
    _, trace = nodes.run(500, task=task)
    values, vectors = np.linalg.eigh(topology.matrix(nodes.schedule))
    expected = vectors @ ((values * ETA * a / (1 - values + values * ETA * a))[:, None] * (vectors.T @ task.b))
    assert distance(trace.x[-1], expected) < 1e-12
    assert distance(trace.x[-1].mean(axis=0), task.optimum) < 1e-12


@pytest.mark.more
def test_momentum_is_a_larger_learning_rate_and_quasi_global_momentum_is_not() -> None:
    """Against runs of dsgd itself: DmSGD ends where DSGD does at eta / (1 - beta), QG-DSGDm where it does at eta."""
    ends = {
        name: bench(kind, "ring", 8, rate, **given).run(1000)[1].x[-1]
        for name, kind, rate, given in [
            ("dsgd", "dsgd", ETA, {}),
            ("larger", "dsgd", ETA / (1 - 0.5), {}),
            ("dmsgd", "dmsgd", ETA, {"beta": 0.5}),
            ("qg", "qg_dsgdm", ETA, {"beta": 0.5}),
        ]
    }
    assert distance(ends["dmsgd"], ends["larger"]) < 1e-12
    assert distance(ends["qg"], ends["dsgd"]) < 1e-12
    assert distance(ends["larger"], ends["dsgd"]) > 1e-2


@pytest.mark.more
def test_quasi_global_momentum_follows_a_schedule_of_learning_rates() -> None:
    """It divides by the rate that was used, down to zero; then the momentum stays, and does not grow by x / 0."""
    optimizer = optax.sgd(optax.linear_schedule(ETA, 0.0, 50))
    nodes = Nodes(algorithm := ALGORITHMS["qg_dsgdm"](learner(), optimizer), planned(algorithm, "complete", 4))
    state, trace = nodes.run(2 * CHUNK, task=Quadratic(nodes.task.a, np.broadcast_to(nodes.task.b[:1], (4, 2))))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert distance(trace.x[-1], trace.x[-2]) < 1e-8  # optax computes in float32: compiled, the zero may be 2e-9
    later = nodes.run(CHUNK, start=state, first=201)[0]
    assert np.array_equal(later.momentum["x"], state.momentum["x"]) and np.asarray(state.momentum["x"]).any()


def test_fedprox_holds_local_steps_back() -> None:
    """Two steps from x: z2 = z1 - eta (a (z1 - b) + mu (z1 - x)), z1 = x - eta a (x - b); then W."""
    nodes, mu = bench("fedprox", "ring", 8, mu=2.0), 2.0
    _, trace = nodes.run(CHUNK, STEPS)
    x, w = np.asarray(nodes.models["trained"]["x"]), topology.matrix(nodes.schedule)
    for _ in range(CHUNK):
        z = x - ETA * nodes.task.a * (x - nodes.task.b)
        x = w @ (z - ETA * (nodes.task.a * (z - nodes.task.b) + mu * (z - x)))
    assert distance(trace.x[-1], x) < 1e-12
    assert distance(bench("dsgd", "ring", 8).run(CHUNK, STEPS)[1].x[-1], x) > 1e-3


def test_diloco_on_a_complete_graph() -> None:
    """phi+ = one Nesterov step of SGD from phi along phi - mean(theta): all nodes are one, by a loop in numpy."""
    nodes = bench("outer", "complete", 4)
    one = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), nodes.models)
    _, trace = nodes.run(CHUNK, STEPS, start=nodes.init(one))
    phi, m = np.asarray(one["trained"]["x"])[0], np.zeros(2)
    for _ in range(CHUNK):
        theta = nodes.task.b + (1 - ETA * nodes.task.a) ** STEPS * (phi - nodes.task.b)
        away = phi - theta.mean(axis=0)
        m = away + 0.9 * m
        phi = phi - 0.7 * (away + 0.9 * m)
    assert distance(trace.x[-1], phi) < 1e-12


def test_dfedavg_starts_its_momentum_afresh_in_each_round() -> None:
    def by_hand(keep: bool) -> np.ndarray:
        x, m = np.asarray(nodes.models["trained"]["x"]), 0.0
        for _ in range(CHUNK):
            m = m if keep else 0.0
            for _ in range(STEPS):
                m = 0.9 * m + nodes.task.a * (x - nodes.task.b)
                x = x - ETA * m
            x = w @ x
        return x

    for keep in (False, True):
        nodes = bench("dfedavg", "ring", 8, keep_momentum=keep)
        w = topology.matrix(nodes.schedule)
        x = nodes.run(CHUNK, STEPS)[1].x[-1]
        assert distance(x, by_hand(keep)) < 1e-11
        assert distance(x, by_hand(not keep)) > 1e-3


@pytest.mark.parametrize("name", ["exact_diffusion", "d2"])
def test_corrected_diffusion_is_the_recursion_of_the_papers(name: str) -> None:
    """x+ = V (2 x - x(before) - eta (g(x) - g(x before))), x1 = V (x0 - eta g(x0))."""
    nodes = bench(name, "ring", 9)
    w, (a, b) = topology.matrix(nodes.schedule), nodes.task
    v = w if name == "d2" else (np.eye(9) + w) / 2
    before = np.asarray(nodes.models["trained"]["x"])
    x = v @ (before - ETA * a * (before - b))
    _, trace = nodes.run(CHUNK)
    for r in range(CHUNK):
        assert distance(trace.x[r], x) < 1e-12
        x, before = v @ (2 * x - before - ETA * a * (x - before)), x


@pytest.mark.parametrize("form", ["atc", "diging"])
def test_gradient_tracking_is_the_recursion_of_the_papers(form: str) -> None:
    """y = g(x) at first; both orders of combining and adapting."""
    nodes = bench("gradient_tracking", "ring", 8, form=form)
    w, (a, b), x = topology.matrix(nodes.schedule), nodes.task, np.asarray(nodes.models["trained"]["x"])
    y = a * (x - b)
    _, trace = nodes.run(CHUNK)
    for r in range(CHUNK):
        before = x
        x = w @ (x - ETA * y) if form == "atc" else w @ x - ETA * y
        # the code combines the correction y - g: for ATC that is W (y + g+ - g) up to where g+ - g is combined
        y = w @ y + a * (x - before)
        assert distance(trace.x[r], x) < 1e-11


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_the_tracked_mean_is_the_mean_gradient(loss: float) -> None:
    """mean(y) = mean(g), and so mean(c) = 0, in every round whatever is lost."""
    nodes = bench("gradient_tracking", "ring", 8)
    state, trace = nodes.run(CHUNK, loss=loss)
    assert abs(trace.mass[1]["x"]).max() < 1e-12
    trained, _ = nodes.train(state, nodes.data(), jnp.ones(8, jnp.int32), nodes.around())
    gradient = nodes.task.a * (trace.x[-1] - nodes.task.b)
    assert distance(np.asarray(trained.direction["x"]).mean(axis=0), gradient.mean(axis=0)) < 1e-12
    assert np.abs(np.asarray(trained.direction["x"]) - gradient).max() > 1e-3  # each node's is another


# ---------------------------------------------------------------- decision 1: what a missing message does, in miniature


@pytest.mark.parametrize("name", [pytest.param("gradient_tracking", marks=pytest.mark.more), "exact_diffusion"])
def test_only_double_entry_is_exact_under_loss(name: str) -> None:
    """Ring of 16, unequal quadratics, a tenth of the messages lost: SCIENCE.md, decision 1."""
    nodes = bench(name, "ring", 16)
    wrong = Nodes(nodes.algorithm._replace(weigh=renormalized), nodes.schedule)
    rounds = {"gradient_tracking": 2400, "exact_diffusion": 600}[name]
    ends = {
        "double_entry": nodes.run(rounds, loss=0.1)[1].x,  # these still come closer, and the others no longer move
        "self": nodes.run(600, loss=0.1, rule="self")[1].x,
        "renormalise": wrong.run(600, loss=0.1, rule="renormalise")[1].x,
    }
    away = {rule: float(np.sqrt(((x[-1] - nodes.task.optimum) ** 2).sum(axis=1).mean())) for rule, x in ends.items()}
    assert away["double_entry"] < 1e-9
    assert away["self"] > 1e-2 and away["renormalise"] > 1e-2
    # and without it all agree far better than they are right: consensus is no test of correctness
    spread = np.sqrt(((ends["self"][-1] - ends["self"][-1].mean(axis=0)) ** 2).sum(axis=1).mean())
    assert spread < away["self"]


def test_wrong_rules_agree_on_a_wrong_mean() -> None:
    """Averaging alone, 10 % of the messages lost."""
    nodes = bench("dsgd", "ring", 8)
    wrong = Nodes(nodes.algorithm._replace(weigh=renormalized), nodes.schedule)
    mean = np.asarray(nodes.models["trained"]["x"]).mean(axis=0)
    for runs, rule, drift in ((nodes, "double_entry", 0.0), (nodes, "self", 1e-2), (wrong, "renormalise", 1e-2)):
        x = runs.run(200, 0, loss=0.1, rule=rule)[1].x[-1]
        assert np.ptp(x, axis=0).max() < 1e-9
        assert distance(x, mean) < 1e-12 if not drift else distance(x, mean) > drift


@pytest.mark.more
def test_late_exchanges() -> None:
    """Added to SCIENCE.md: gradient tracking stands lateness 3, only slower; exact diffusion 1, and diverges at 3."""
    tracking = bench("gradient_tracking", "ring", 8, 0.05)
    _, trace = tracking.run(1000, loss=0.05, late=3)
    away = [distance(trace.x[r], tracking.task.optimum) for r in (300, 600, -1)]
    assert away[2] < 1e-8 and away[1] < away[0] / 10
    assert distance(tracking.run(400, loss=0.05)[1].x[300], tracking.task.optimum) < away[0] / 10
    exact = bench("exact_diffusion", "ring", 8, 0.05)
    assert exact.algorithm.lateness == 1
    assert distance(exact.run(1000, loss=0.05, late=1)[1].x[-1], exact.task.optimum) < 1e-10
    # what it does not stand: three rounds, or one round where three quarters are void; in time, that is no harm
    for given, rounds, stands in (
        ({"loss": 0.05, "late": 3, "lateness": 3}, 500, False),
        ({"loss": 0.5, "late": 1}, 500, False),
        ({"loss": 0.5}, 2500, True),
    ):
        away = distance(exact.run(rounds, **given)[1].x[-1], exact.task.optimum)
        assert away < 1e-10 if stands else away > 10


# -------------------------------------------------------------------------------------------------------- contraction


def test_a_ring_of_25_contracts_at_its_rate() -> None:
    """Squared distance to consensus: .958550 a round, (1 + 2 cos(2 pi / 25))^2 / 9."""
    x = bench("dsgd", "ring", 25).run(400, 0)[1].x
    square = ((x - x.mean(axis=1, keepdims=True)) ** 2).sum(axis=(1, 2))
    assert abs((square[-1] / square[-101]) ** 0.01 - 0.958550) < 1e-6


@pytest.mark.parametrize("q, expected", [
    (0.0, 0.901081), (0.3, 0.937321),
    *(pytest.param(*more, marks=pytest.mark.more) for more in ((0.1, 0.913786), (0.5, 0.958355))),
])  # fmt: skip
def test_links_that_fail(q: float, expected: float) -> None:
    """Edges of a ring of 16 void with probability q: lam_max(E[W^T W] - J), in closed form and by our own losses."""
    schedule = topology.plan("ring", 16)
    w = topology.matrix(schedule)
    mean, spread = (1 - q) * w + q * np.eye(16), np.zeros((16, 16))
    for i, j in topology.pairs(schedule):
        edge = np.eye(16)[i] - np.eye(16)[j]
        spread += q * (1 - q) * w[i, j] ** 2 * 2 * np.outer(edge, edge)  # (l l^T)^2 = 2 l l^T
    values, vectors = np.linalg.eigh(mean @ mean + spread - np.full((16, 16), 1 / 16))
    assert abs(values[-1] - expected) < 1e-6
    rounds = 2000
    nodes = bench("dsgd", "ring", 16)
    what = nodes.deliveries(rounds, loss=1 - (1 - q) ** 0.5, seed=1)
    worst = jnp.asarray(vectors[:, -1])

    def left(arrived: Any) -> Any:  # of the worst vector of norm one, by the mixing of all algorithms
        def mix(x: Any, others: Any, here: Any, weight: Any) -> Any:
            ages = jnp.zeros(nodes.slots, jnp.int32)
            inbox = Inbox(jnp.broadcast_to(x, (nodes.slots,)), others, here, ages)
            return exchange_mix(x, inbox, Neighborhood(weight, weight))

        return (
            jax.vmap(mix)(worst, worst[nodes.wires.neighbor[0]], arrived, jnp.asarray(schedule.weight[0])) ** 2
        ).sum()

    found = np.asarray(jax.jit(jax.vmap(left))(what.arrived))
    assert abs(found.mean() - expected) <= max(3 * found.std() / rounds**0.5, 1e-6)


# ----------------------------------------------------------------------------------------------------------- push-sum


def naive(it: Algorithm) -> Algorithm:
    """Push-sum whose lost shares are gone: the receiver's account goes on as if it had got them."""

    def mix(state: Any, inbox: Inbox, around: Neighborhood) -> Any:
        return it.mix(state, inbox, around)._replace(seen=inbox.received)

    return it._replace(mix=mix)


@pytest.mark.parametrize("graph", [pytest.param("exponential", marks=pytest.mark.more), "one_peer_exponential"])
def test_running_sums_lose_nothing(graph: str) -> None:
    """30 % loss: w with what is under way is n in every round, and all agree on the mean of the beginning."""
    nodes = bench("push_sum", graph, 16)
    mean = np.asarray(nodes.models["trained"]["x"]).mean(axis=0)
    state, trace = nodes.run(300, 0, loss=0.3)
    assert abs(trace.mass["w"] * 16 - 16).max() < 1e-12
    assert distance(trace.mass["x"]["trained"]["x"], mean) < 1e-12
    assert distance(trace.x[-1], mean) < 1e-12
    assert np.ptp(np.asarray(state.mine["w"])) > 1e-3  # the weights themselves differ: it is the quotient that agrees
    lossy = Nodes(naive(nodes.algorithm), nodes.schedule)
    state, trace = lossy.run(CHUNK, 0, loss=0.3)
    assert np.asarray(state.mine["w"]).sum() < 1e-4  # of 16
    assert distance(trace.x[40], mean) > 1e-2  # in the end, w underflows and x is not even a number


@pytest.mark.more
def test_push_sum_in_float32_is_as_exact_after_long_runs(optimised: None) -> None:
    """Sums grow with the rounds; their differences stay exact, and nothing drifts but by the roundings of x."""
    it = ALGORITHMS["push_sum"](learner(), optax.sgd(ETA))
    nodes = Nodes(it, planned(it, "exponential", 8), dtype=np.float32)
    mean = np.asarray(nodes.models["trained"]["x"], np.float64).mean(axis=0)
    state, trace = nodes.run(3000, 0, loss=0.3)
    sums = np.asarray(state.sent["high"]["w"])
    assert sums[sums > 0].min() > 500  # a sum of float32 of that size has steps of 6e-5
    # 3000 rounds round x of order 1 to 6e-8 each, at random; without the second float it drifts by 1e-3
    assert distance(trace.x[-1], mean) < 1e-5
    total, other = np.float32(2**24), np.float32(1.5)
    assert left_out(total, other, total + other) == np.float32(-0.5)


def test_push_sum_on_an_irregular_directed_graph_is_unbiased_in_the_mean() -> None:
    """Degrees differ, so that w does; averaging still gives the plain mean, and the fixed point is the formula's."""
    heard = [[1, 2, 5], [0], [1], [2, 0], [3], [4, 0]]  # of node i
    arcs = np.array([(i, j) for i, row in enumerate(heard) for j in row])
    out = np.bincount(arcs[:, 1], minlength=6)
    schedule = topology.from_rounds(6, [(arcs[:, 0], arcs[:, 1], 1 / (1 + out[arcs[:, 1]]))])
    assert topology.sums(schedule) == "column"
    it = ALGORITHMS["push_sum"](learner(), optax.sgd(ETA))
    nodes = Nodes(it, topology.stable(schedule))
    _, trace = nodes.run(300, 0, loss=0.3)
    assert distance(trace.x[-1], np.asarray(nodes.models["trained"]["x"]).mean(axis=0)) < 1e-12
    expected = fixed_point(nodes.task, "push_sum", {}, topology.matrix(schedule), ETA, 1)
    assert expected is not None
    assert distance(nodes.run(1000)[1].x[-1], expected) < 1e-9


def test_a_node_that_comes_back_is_a_new_epoch() -> None:
    """Node 3 dies, and begins a new life with a neighbour's model: all restart, mass is whole again, and all agree."""
    nodes = bench("push_sum", "exponential", 8)
    gone = [Event("crash", 3, 20), Event("rejoin", 3, 101)]
    state, _ = nodes.run(CHUNK, 0, what=nodes.deliveries(CHUNK, 0, gone[:1], loss=0.3))
    back = jnp.arange(8) == 3
    fresh = jax.vmap(nodes.algorithm.adopt)(state, jax.tree.map(lambda p: jnp.roll(p, 1, axis=0), nodes.params(state)))
    restart = nodes.algorithm.restart
    assert restart is not None
    others = jax.vmap(lambda one: restart(one, nodes.slots))(state)
    start = jax.tree.map(lambda a, b: jnp.where(back.reshape(-1, *(1,) * (a.ndim - 1)), a, b), fresh, others)
    _, trace = nodes.run(2 * CHUNK, 0, start=start, loss=0.3, first=101)
    assert np.ptp(trace.mass["w"]) < 1e-12  # no more is lost
    assert abs(trace.mass["w"][-1] - 1).max() < 1e-12  # and every member counts once
    assert np.ptp(trace.x[-1], axis=0).max() < 1e-12
    widest = abs(np.asarray(nodes.models["trained"]["x"])).max()
    assert abs(trace.x).max() <= widest
    # if its neighbours went on with the sums of its former life, they would take back all it ever gave
    wrong = jax.tree.map(lambda a, b: jnp.where(back.reshape(-1, *(1,) * (a.ndim - 1)), a, b), fresh, state)
    for begin, sound in ((start, True), (wrong, False)):
        trained, payload = nodes.train(begin, nodes.data(), jnp.zeros(8, jnp.int32), nodes.around())
        after = nodes.mix(trained, nodes.inbox(payload, nodes.wires.weight[0] > 0), nodes.around())
        assert (np.asarray(after.mine["w"]).min() > 0) == sound


# ---------------------------------------------------------------------------------------------------- gossip learning


def merged(mine: float, age: float, other: float, theirs: float, limit: int | None) -> tuple[float, float]:
    it = ALGORITHMS["gossip_learning"](learner(), optax.sgd(ETA), limit=limit)
    model = {"trained": {"x": jnp.full(2, mine)}, "carried": {"z": jnp.asarray(mine)}}
    sent = {"model": jax.tree.map(lambda leaf: jnp.full_like(leaf, other)[None], model), "age": jnp.float32([theirs])}
    state = it.init(model, 1)._replace(age=jnp.float32(age))
    inbox = Inbox(sent, sent, jnp.ones(1, bool), jnp.zeros(1, jnp.int32))
    after = it.mix(state, inbox, Neighborhood(jnp.ones(1), jnp.ones(1)))
    return float(it.params(after)["trained"]["x"][0]), float(after.age)


@pytest.mark.parametrize(
    "age, theirs, limit, expected",
    [(0, 0, None, 5), (1, 3, None, 7), (3, 1, None, 3), (1, 3, 2, 7), (1, 3, 1, 9), (3, 1, 1, 1), (2, 2, 0, 5)],
)
def test_models_merge_by_age(age: int, theirs: int, limit: int | None, expected: float) -> None:
    """1 and 9: the older counts for more; beyond the limit it counts alone."""
    assert merged(1.0, age, 9.0, theirs, limit) == (expected, max(age, theirs))


# -------------------------------------------------------------------------------------------------------------- mixing


def test_slots_are_added_in_one_fixed_order(optimised: None) -> None:
    """In float32, (1 + 2^25) - 2^25 is 0 and 1 + (2^25 - 2^25) is 1. Weights are powers of two: products are exact."""
    weight, big = np.array([0.5, 0.25, 0.125], np.float32), np.float32(2**25)
    difference = np.array([big, -2 * big, 8], np.float32)

    def mixed(order: list[int]) -> np.ndarray:
        inbox = Inbox(
            jnp.zeros(3, jnp.float32), jnp.asarray(difference[order]), jnp.ones(3, bool), jnp.zeros(3, jnp.int32)
        )
        around = Neighborhood(jnp.asarray(weight[order]), jnp.asarray(weight[order]))
        return np.asarray(jax.jit(exchange_mix)(jnp.float32(1), inbox, around))

    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        x = np.float32(1)
        for k in order:
            x = x + weight[k] * difference[k]
        assert np.array_equal(mixed(order), x)
    assert not np.array_equal(mixed([0, 1, 2]), mixed([2, 0, 1]))


def test_a_hub_of_many_slots_mixes_alike() -> None:
    """Above UNROLLED slots the sum is a product; what did not arrive is not looked at there either."""
    rng, slots = np.random.default_rng(0), 3 * UNROLLED
    x, sent, received = rng.normal(size=(2, 3)), rng.normal(size=(slots, 2, 3)), rng.normal(size=(slots, 2, 3))
    weight, here = rng.random(slots) / slots, rng.random(slots) < 0.7
    expected = x + 0.5 * np.einsum("k,kab->ab", weight * here, received - sent)
    spoiled = np.where(here[:, None, None], received, np.nan)
    inbox = Inbox(*map(jnp.asarray, (sent, spoiled, here)), jnp.zeros(slots, jnp.int32))
    found = exchange_mix(jnp.asarray(x), inbox, Neighborhood(jnp.asarray(weight), jnp.asarray(weight)), 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_weights_of_what_arrived() -> None:
    weight, here = jnp.asarray([0.2, 0.3, 0.1, 0.0]), jnp.asarray([True, False, True, True])
    np.testing.assert_allclose(renormalized(weight, here), np.array([0.2, 0, 0.1, 0]) / 0.7, rtol=1e-15)
    np.testing.assert_allclose(counted(weight, here), np.array([1, 0, 1, 0]) / 3, rtol=1e-15)
    whole = jnp.asarray([1.0, 0.0])  # a leaf of FedAvg's star, which keeps nothing of its own
    assert np.array_equal(renormalized(whole, jnp.asarray([True, False])), [1, 0])
    assert np.array_equal(renormalized(whole, jnp.asarray([False, False])), [0, 0])
    for rule in (renormalized, counted):
        assert rule(jnp.zeros(0), jnp.zeros(0, bool)).shape == (0,)
        assert not np.asarray(rule(weight, jnp.zeros(4, bool))).any()
