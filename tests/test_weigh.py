"""How neighbours are weighed: rows and factors by hand, what becomes of the mean, where models end, what is refused.

That drivers agree is tested in test_partial.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nodes import CHUNK, DIM, Nodes, distance, equal, planned

from p2pfl.algorithms import ALGORITHMS
from p2pfl.errors import ConfigError
from p2pfl.learning import quadratic
from p2pfl.learning.local_steps import rest
from p2pfl.methods.compose import cast, chain, withhold
from p2pfl.methods.weighting import by_labels, by_loss, by_samples, by_similarity
from p2pfl.topology import matrix
from p2pfl.types import Algorithm, Learner

N = 8
ROWS = np.array([20.0, 80, 40, 30, 60, 50, 20, 40])
LABELS = np.array([[30, 0, 5], [30, 0, 40], [0, 90, 0], [9, 9, 9], [10, 20, 30], [0, 0, 50], [12, 12, 0], [7, 100, 11]])


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def learner(rate: float = 1.0) -> Learner:
    """f_i of the built-in task, whose gradients count `rate`; the loss of a batch is the curvature a_i0, a constant."""
    inner = quadratic.learner(DIM)

    def grad(params: Any, batch: Any, key: Any) -> Any:
        gradient = inner.grad(params, batch, key)[0]
        return jax.tree.map(lambda g: rate * g, gradient), rest(params), {"loss": batch["x"][0, 0]}

    return inner._replace(grad=grad)


def bench(name: str, *wraps: Any, rate: float = 0.0, graph: str = "ring", **arguments: Any) -> Nodes:
    """All nodes with batch statistics, and with what they know of their data. A rate of 0: nothing but mixing."""
    algorithm = chain(withhold(ALGORITHMS[name](learner(rate), optax.sgd(0.1), **arguments)), *wraps)
    nodes = Nodes(algorithm, planned(algorithm, graph, N))
    rng = np.random.default_rng(1)
    carried = {"norm": {"mean": rng.normal(size=(N, 3)), "var": rng.uniform(0.5, 2, (N, 3))}}
    site = {"samples": ROWS, "labels": LABELS.astype(float)}
    nodes.models = jax.tree.map(jnp.asarray, {**nodes.models, "carried": carried, "private": {"site": site}})
    return nodes


def x_of(models: Any) -> np.ndarray:
    return np.asarray(models["trained"]["x"])


def once(nodes: Nodes, arrived: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Models before and after the mixing of one round."""
    state, payload = nodes.train(nodes.start, nodes.data(), jnp.ones(N, jnp.int32), nodes.around())
    here = nodes.wires.weight[0] > 0 if arrived is None else arrived
    return x_of(nodes.params(state)), x_of(nodes.params(nodes.mix(state, nodes.inbox(payload, here), nodes.around())))


def moved(nodes: Nodes, factor: np.ndarray, x: np.ndarray, arrived: Any = None) -> np.ndarray:
    """x_i + sum_k w_ik factor[i, k] (x_k - x_i), by hand."""
    w = matrix(nodes.schedule, 0) * factor
    np.fill_diagonal(w, 0)
    return x + w @ x - w.sum(axis=1, keepdims=True) * x


# ---------------------------------------------------------------------------------------------------------- by samples


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_by_samples_agrees_on_the_mean_of_all_rows(loss: float) -> None:
    nodes = bench("dsgd", by_samples())
    _, trace = nodes.run(3 * CHUNK, loss=loss)
    wanted = (ROWS[:, None] * x_of(nodes.models)).sum(axis=0) / ROWS.sum()
    assert distance(trace.x[-1], wanted) < 1e-6
    assert abs(trace.moved).max() < 1e-13  # of n x, the mass


def test_by_samples_makes_gradient_tracking_find_the_pooled_minimum() -> None:
    """sum_i n_i a_i (x - b_i) = 0, also where a fifth of the messages is lost; without it, the plain one."""
    nodes = bench("gradient_tracking", by_samples(), rate=1.0)
    _, trace = nodes.run(10 * CHUNK, loss=0.2)
    a, b = nodes.task.a, nodes.task.b
    pooled = (ROWS[:, None] * a * b).sum(axis=0) / (ROWS[:, None] * a).sum(axis=0)
    assert distance(trace.x[-1], pooled) < 1e-8
    assert distance(nodes.task.optimum, pooled) > 0.1


def test_who_has_no_rows_takes_and_does_not_give() -> None:
    nodes = bench("dsgd", by_samples())
    site = nodes.models["private"]["site"]
    nodes.models["private"]["site"] = {**site, "samples": jnp.asarray(ROWS).at[2].set(0.0)}
    before, after = once(nodes)
    w = matrix(nodes.schedule, 0)
    assert distance(after[2], w[2] @ before) < 1e-15
    assert distance(after[1], before[1] + w[1, 0] * ROWS[0] / ROWS[1] * (before[0] - before[1])) < 1e-15


# ------------------------------------------------------------------------------------------------- push-sum by samples


def test_push_sum_by_samples_agrees_on_the_mean_of_all_rows() -> None:
    nodes = bench("push_sum", graph="exponential", by="sample")
    _, trace = nodes.run(CHUNK, loss=0.2)
    wanted = (ROWS[:, None] * x_of(nodes.models)).sum(axis=0) / ROWS.sum()
    assert distance(trace.x[-1], wanted) < 1e-9
    assert distance(wanted, x_of(nodes.models).mean(axis=0)) > 0.05
    assert abs(trace.moved).max() < 1e-12


def test_a_step_of_push_sum_counts_as_often_as_the_node_has_rows() -> None:
    """And a restart of the membership begins with the same weights, at the models as they are."""
    nodes = bench("push_sum", rate=1.0, graph="exponential", by="sample")
    around = jax.tree.map(lambda leaf: leaf[0], nodes.around())
    state = jax.tree.map(lambda leaf: leaf[0], nodes.start)
    batches = jax.tree.map(lambda leaf: leaf[0], nodes.data())
    algorithm = nodes.algorithm
    after, _ = algorithm.local(state, batches, jax.random.key(0), jnp.int32(1))
    step = x_of(algorithm.params(after)) - x_of(algorithm.params(state))
    assert abs(step).min() > 1e-3
    assert algorithm.mass and algorithm.restart
    gained = algorithm.mass(after)["x"]["trained"]["x"] - algorithm.mass(state)["x"]["trained"]["x"]
    assert distance(np.asarray(gained), ROWS[0] * step) < 1e-12
    after, _ = algorithm.send(after, around)
    assert float(after.mine["w"]) < ROWS[0]
    begun = algorithm.restart(after, nodes.slots)
    assert float(begun.mine["w"]) == ROWS[0]
    assert distance(x_of(algorithm.params(begun)), x_of(algorithm.params(after))) < 1e-12


# ------------------------------------------------------------------------------------------------------------- by loss


@pytest.mark.parametrize("q", [-2.0, 1.0])
def test_by_loss_ends_where_its_chain_says(q: float) -> None:
    """pi_i ~ u_i (w_ii u_i + sum_k w_ik u_k), u = l^q."""
    nodes = bench("dsgd", by_loss(q, bound=1e6))
    _, trace = nodes.run(3 * CHUNK)
    u, w = nodes.task.a[:, 0] ** q, matrix(nodes.schedule, 0)
    pi = u * (w @ u)
    wanted = (pi / pi.sum()) @ x_of(nodes.models)
    assert distance(trace.x[-1], wanted) < 1e-9
    assert distance(wanted, x_of(nodes.models).mean(axis=0)) > 0.02
    assert nodes.algorithm.keeps_mean == "nothing"


def test_a_row_by_loss_by_hand() -> None:
    """Convex over what arrived, in which the node's own part is what is left of the graph's weights."""
    bound = 1.3
    nodes = bench("dsgd", by_loss(-1.0, bound))
    arrived = np.asarray(nodes.wires.weight[0] > 0) & (np.arange(N)[:, None] != 3)
    arrived[5, 0] = False
    before, after = once(nodes, arrived)
    loss = nodes.task.a[:, 0]
    ratios = np.clip(loss[:, None] / loss[None, :], 1 / bound, bound)  # u_j / u_i
    assert (ratios == bound).any() and ((ratios > 1 / bound) & (ratios < 1)).any()
    for i in range(N):
        w = nodes.wires.weight[0, i] * arrived[i]
        u = ratios[i, nodes.wires.neighbor[0, i]]
        row = w * u / (1 - w.sum() + (w * u).sum())
        expected = before[i] + row @ (before[nodes.wires.neighbor[0, i]] - before[i])
        assert distance(after[i], expected) < 1e-14
    assert distance(after[3], before[3]) == 0


def test_a_liar_gains_no_more_than_the_bound() -> None:
    """A loss of 0 counts `bound` times: the liar can't replace its neighbours' models."""
    nodes = bench("dsgd", by_loss(-1.0, bound=4.0), graph="complete")
    data = nodes.data()
    data["x"] = data["x"].at[:, :, :, 0].set(1.0).at[0, :, :, 0].set(0.0)
    state, payload = nodes.train(nodes.start, data, jnp.ones(N, jnp.int32), nodes.around())
    assert np.asarray(payload["told"]).tolist() == [0.0] + [1.0] * 7
    mixed = nodes.mix(state, nodes.inbox(payload, nodes.wires.weight[0] > 0), nodes.around())
    x, after = x_of(nodes.models), x_of(nodes.params(mixed))
    assert distance(after[1], (4 * x[0] + x[1:].sum(axis=0)) / 11) < 1e-14


def test_the_loss_is_a_running_mean_over_rounds_with_steps() -> None:
    wrapped = bench("dsgd", by_loss(-1.0, decay=0.75))
    one = jax.tree.map(lambda leaf: leaf[0], (wrapped.start, wrapped.data()))
    state, data = one
    losses = []
    for value, steps in ((2.0, 1), (4.0, 2), (9.0, 0), (np.inf, 1)):
        batches = {"x": data["x"].at[:, :, 0].set(value)}
        state, _ = wrapped.algorithm.local(state, batches, jax.random.key(0), jnp.int32(steps))
        losses.append(float(state.own))
    assert losses == [2.0, 2.5, 2.5, 2.5]
    joined = wrapped.algorithm.adopt(state, wrapped.algorithm.params(state))
    assert float(joined.own) == -1 and joined.inner.opt_state == state.inner.opt_state


def test_who_has_no_loss_yet_is_weighed_by_the_graph() -> None:
    nodes = bench("dsgd", by_loss(-3.0))
    w, x = matrix(nodes.schedule, 0), x_of(nodes.models)
    state, payload = nodes.train(nodes.start, nodes.data(), jnp.ones(N, jnp.int32).at[0].set(0), nodes.around())
    assert float(payload["told"][0]) == -1
    mixed = nodes.mix(state, nodes.inbox(payload, nodes.wires.weight[0] > 0), nodes.around())
    after = x_of(nodes.params(mixed))
    assert distance(after[0], w[0] @ x) < 1e-15
    u = np.array([1, 1, np.clip((nodes.task.a[1, 0] / nodes.task.a[2, 0]) ** 3, 0.1, 10)])  # at node 1, of 0, 1, 2
    assert distance(after[1], (w[1, :3] * u) @ x[:3] / (w[1, :3] @ u)) < 1e-14


# ------------------------------------------------------------------------------------------------- factors at both ends


def by_hand(kind: str, nodes: Nodes) -> np.ndarray:
    """[n, n] the factors."""
    if kind == "loss":
        loss = nodes.task.a[:, 0]
        apart = loss[:, None] / loss[None, :]
        return np.maximum(np.minimum(apart, 1 / apart) ** 2, 1 / 10)
    if kind in ("like", "unlike"):
        counts = np.where(LABELS < 10, 0, LABELS)
        p = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        alike = np.sqrt(p[:, None] * p[None]).sum(axis=2)
        known = counts.sum(axis=1) > 0
        return np.where(known[:, None] & known, np.exp(-2 * (1 - alike if kind == "like" else alike)), 1)
    norm = nodes.models["carried"]["norm"]
    mean, var = np.asarray(norm["mean"]), np.asarray(norm["var"])
    apart = (mean[:, None] - mean) ** 2 + (np.sqrt(var)[:, None] - np.sqrt(var)) ** 2
    return np.exp(-0.5 * (apart / ((var[:, None] + var) / 2 + 1e-5)).mean(axis=2))


KINDS: dict[str, Any] = {
    "loss": lambda: by_loss(-2.0, symmetric=True),
    "similarity": lambda: by_similarity(0.5),
    "like": lambda: by_labels(2.0),
    "unlike": lambda: by_labels(2.0, like=False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_by_hand(kind: str) -> None:
    nodes = bench("dsgd", KINDS[kind]())
    before, after = once(nodes)
    factor = by_hand(kind, nodes)
    assert distance(factor, factor.T) < 1e-15 and (factor > 0).all() and (factor <= 1).all()
    assert np.ptp(factor[np.asarray(matrix(nodes.schedule, 0)) > 0]) > 0.1
    assert distance(after, moved(nodes, factor, before)) < 1e-14


@pytest.mark.more
def test_factors_keep_the_mean_also_of_late_and_lost_and_rounded_messages() -> None:
    nodes = bench("gradient_tracking", *(make() for make in KINDS.values()), cast(), rate=1.0)
    assert nodes.algorithm.keeps_mean == "exchange"
    assert nodes.algorithm.travels == (
        "the model and a direction, with its training loss, with the shares of its classes, with the shares of its "
        "classes, as bfloat16"
    )
    _, trace = nodes.run(CHUNK, loss=0.2)
    assert abs(trace.moved).max() < 1e-12
    plain = bench("gradient_tracking", cast(), rate=1.0).run(CHUNK, loss=0.2)[1]
    assert distance(trace.x[10], plain.x[10]) > 1e-3
    _, trace = nodes.run(CHUNK, loss=0.2, late=3)  # an exchange is booked earlier at one end; in the end all are
    assert abs(trace.moved).max() > 1e-3
    assert abs(trace.moved.sum(axis=0)).max() < 1e-12


def test_what_did_not_arrive_is_not_looked_at() -> None:
    wraps = [by_samples(), by_loss(1.0), *(make() for make in KINDS.values())]
    nodes = bench("dsgd", *wraps)
    state, payload = nodes.train(nodes.start, nodes.data(), jnp.ones(N, jnp.int32), nodes.around())
    inbox = nodes.inbox(payload, np.zeros((N, 2), bool))
    junk = inbox._replace(received=jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), inbox.received))
    assert equal(nodes.mix(state, junk, nodes.around()), state)


# ---------------------------------------------------------------------------------- statistics that do not travel


def kept(nodes: Nodes) -> Nodes:
    """The same nodes with batch statistics at home."""
    carried = nodes.models["carried"]
    private = {**nodes.models["private"], "share": {"leaves": {"trained": {}, "carried": carried}}}
    nodes.models = {**nodes.models, "carried": {}, "private": private}
    return nodes


def test_statistics_at_home_are_compared_only_where_they_are_published() -> None:
    nodes = bench("dsgd", by_similarity(0.5, publish=True))
    factor = by_hand("similarity", nodes)
    before, after = once(kept(nodes))
    assert distance(after, moved(nodes, factor, before)) < 1e-14
    with pytest.raises(ConfigError, match="publish=False: the batch statistics stay at home"):
        _ = kept(bench("dsgd", by_similarity(0.5))).start
    nodes = bench("dsgd", by_similarity(0.5))
    nodes.models = {**nodes.models, "carried": {}}
    with pytest.raises(ConfigError, match="the model has no batch statistics to compare; give it norm = 'batch'"):
        _ = nodes.start


# ---------------------------------------------------------------------------------------------------------- refusals


def wrapped(name: str, wrap: Any, **arguments: Any) -> Algorithm:
    return chain(ALGORITHMS[name](learner(), optax.sgd(0.1), **arguments), wrap)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: by_loss(0.0), "q=0.0: must be < 0.*or > 0"),
        (lambda: by_loss(float("nan")), "q=nan: must be"),
        (lambda: by_loss(-1.0, bound=0.5), "bound=0.5: must be >= 1"),
        (lambda: by_loss(-1.0, decay=1.0), "decay=1.0: must be >= 0 and < 1"),
        (lambda: by_loss(1.0, symmetric=True), "q=1.0: symmetric weights can only slow"),
        (lambda: by_similarity(0.0), "sharpness=0.0: must be > 0"),
        (lambda: by_labels(-1.0), "sharpness=-1.0: must be > 0"),
        (lambda: by_labels(1.0, minimum=0), "minimum=0: must be >= 1"),
        (lambda: wrapped("gradient_tracking", by_loss(1.0)), "gradient_tracking needs weights that keep the mean"),
        (lambda: wrapped("d2", by_samples()), "wrap by_samples: d2 asks that no eigenvalue.*use exact_diffusion"),
        (lambda: wrapped("push_sum", by_samples()), "push_sum sends one way.*push_sum with by = \"sample\""),
        (lambda: wrapped("push_sum", by_loss(1.0)), "push_sum sends one way.*use an algorithm of exchanges, such as"),
        (lambda: wrapped("epidemic", by_labels(1.0)), "epidemic sends one way"),
        (lambda: wrapped("gossip_learning", by_similarity(1.0)), "gossip_learning sends one way"),
        (lambda: wrapped("local", by_samples()), "local exchanges nothing; leave by_samples out"),
    ],
)  # fmt: skip
def test_what_is_refused(make: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()
