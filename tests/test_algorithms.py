"""One table of all algorithms with their variants, one suite run over every row."""

from __future__ import annotations

import ast
import inspect
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
import pytest
from nodes import CHUNK, STEPS, Nodes, Wires, distance, equal, learner, planned, rms, samples

from p2pfl import algorithms, topology, tree
from p2pfl.algorithms import ALGORITHMS
from p2pfl.config import experiment
from p2pfl.errors import TopologyError
from p2pfl.federation import federation as build
from p2pfl.federation.plugins import function
from p2pfl.learning import quadratic
from p2pfl.learning.quadratic import Quadratic
from p2pfl.methods import compose
from p2pfl.methods.robust import RULES
from p2pfl.reporting.run_data import DASH
from p2pfl.topology import requirements
from p2pfl.types import Algorithm, Inbox, Neighborhood, Tree

ETA, ROUNDS = 0.1, 1000


class Row(NamedTuple):
    """An algorithm with arguments, the graph it is tested on, and what it promises there.

    `ends`: where it ends on unequal quadratics: at the "optimum"; at its "fixed" point (quadratic.fixed_point); in a
    "cycle" of the schedule's period; at the optimum by "samples", in which node i counts samples_i times; or "near" the
    optimum, nearer with a smaller learning rate. `agrees`: what a round without steps leaves of the disagreement:
    "rho" (||W - J||), "half" (of (I + W) / 2), "outer" (of the outer optimizer), "random" (it falls), "never", or all
    is gone after so many rounds.
    """

    name: str
    graph: str
    ends: str
    agrees: str | int
    nodes: int
    arguments: dict[str, Any]

    def __str__(self) -> str:
        given = (f"{key}={getattr(value, 'get', {}.get)('name', value)}" for key, value in self.arguments.items())
        return "-".join([self.name, *given, self.graph])


def row(name: str, graph: str, ends: str, agrees: str | int, nodes: int = 8, **arguments: Any) -> Row:
    return Row(name, graph, ends, agrees, nodes, arguments)


HEAVY_BALL = {"name": "sgd", "learning_rate": 0.8, "momentum": 0.5}
ROWS = [
    row("dsgd", "star", "fixed", "rho"),
    row("dsgd", "ring", "fixed", "rho", order="cta"),
    row("dmsgd", "ring", "fixed", "rho"),
    row("dmsgd", "star", "fixed", "rho", beta=0.5, mix_momentum=True),
    row("qg_dsgdm", "ring", "fixed", "rho"),
    row("qg_dsgdm", "two_cliques", "fixed", "rho", beta=0.8, mu=0.5),
    row("gradient_tracking", "ring", "optimum", "rho"),
    row("gradient_tracking", "ring", "optimum", "rho", form="diging"),
    row("exact_diffusion", "hypercube", "optimum", "half"),
    row("d2", "ring", "optimum", "rho", nodes=9),
    row("push_sum", "exponential", "fixed", "rho"),
    row("push_sum", "one_peer_exponential", "cycle", 3),
    row("epidemic", "complete", "near", "random"),
    row("epidemic", "complete", "near", "random", kind="oracle", sends=3),
    row("ad_psgd", "complete", "near", "random"),
    row("gossip_learning", "complete", "near", "random"),
    row("gossip_learning", "complete", "near", "random", limit=4),
    row("dfedavg", "ring", "fixed", "rho"),
    row("dfedavg", "ring", "fixed", "rho", beta=0.5, keep_momentum=True),
    row("outer", "ring", "fixed", "outer"),
    row("outer", "complete", "near", "random", outer=HEAVY_BALL, pairs=True),
    row("fedavg", "star", "samples", 2),
    row("fedavg", "complete", "samples", 1),
    row("fedprox", "ring", "fixed", "rho", mu=0.5),
    row("local", "ring", "fixed", "never"),
]
FIRST = {row.name: row for row in reversed(ROWS)}
"""Of each algorithm, the row that the fast tests try; its other arguments and graphs are tried by `make test-all`."""


def rows(*conditions: Callable[[Row], bool]) -> Any:
    """Mark a test of all rows for which the conditions hold."""
    chosen = [row for row in ROWS if all(condition(row) for condition in conditions)]
    mark = pytest.mark.more
    return pytest.mark.parametrize(
        "row", [pytest.param(row, marks=() if row is FIRST[row.name] else mark) for row in chosen], ids=str
    )


over_rows = rows()


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def make(row: Row) -> Algorithm:
    return ALGORITHMS[row.name](learner(), optax.sgd(ETA), **row.arguments)


@cache
def nodes_of(row: str) -> Nodes:
    found = next(r for r in ROWS if str(r) == row)
    algorithm = make(found)
    return Nodes(algorithm, planned(algorithm, found.graph, found.nodes, ROUNDS))


@cache
def warm(nodes: Nodes) -> Any:
    """A state in which nothing is zero any more, after rounds in which some messages were lost."""
    return nodes.run(CHUNK, loss=0.2)[0]


def a_round(nodes: Nodes, state: Any, t: int = 0) -> tuple[Any, Inbox, Neighborhood]:
    """Trained, with what the schedule sends in its row t."""
    around = nodes.around(t)
    trained, payload = nodes.train(state, nodes.data(), jnp.full(nodes.n, STEPS, jnp.int32), around)
    return trained, nodes.inbox(payload, nodes.wires.weight[t] > 0, t), around


def of(all: Tree, i: Any) -> Tree:
    """Of node i, or of several; taken by numpy, since jax would compile a program for each shape."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[np.asarray(i)]), all)


def close(a: Tree, b: Tree, tolerance: float) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


# ---------------------------------------------------------------------------------------------------- the table itself


def test_the_table_is_complete() -> None:
    """All algorithms, and each argument of each with another value than its default (but what test_weigh.py tries)."""
    assert {row.name for row in ROWS} == set(ALGORITHMS)
    for name, maker in ALGORITHMS.items():
        for argument in list(inspect.signature(maker).parameters.values())[2:]:
            if (name, argument.name) == ("push_sum", "by"):
                continue
            others = [r.arguments[argument.name] for r in ROWS if r.name == name and argument.name in r.arguments]
            assert any(value != argument.default for value in others), f"{name}: {argument.name}"


def test_an_algorithm_is_one_file_of_under_90_lines() -> None:
    """The head with equation and paper counts; what explains arguments and shows an example in a docstring does not."""
    files = [path for path in Path(algorithms.__file__).parent.glob("*.py") if path.stem not in ("__init__", "mixing")]
    assert {path.stem for path in files} == set(ALGORITHMS)
    for path in files:
        text = path.read_text("utf-8")
        explained = sum(
            (node.body[0].end_lineno or 0) - node.body[0].lineno
            for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and ast.get_docstring(node)
        )  # fmt: skip
        assert len(text.splitlines()) - explained < 90, path.name


def test_an_algorithm_file_says_what_it_is() -> None:
    """Equation, paper, what travels, what it asks of W, what a joiner gets; no clock, socket, file or randomness."""
    for name, maker in ALGORITHMS.items():
        module = inspect.getmodule(maker)
        text = str(module.__doc__)
        assert "\n\n    " in text or name in ("local",), f"{name}: no equation"
        if name != "local":
            assert "Source: " in text, name
            assert all(word in text for word in ("ravels", "oiner", "W")) or "as `" in text or "those of `" in text, (
                name
            )
        assert not re.search(r"\b(time|socket|open|random)\b[.(]", inspect.getsource(module)), name


@over_rows
def test_declarations_fit_together(row: Row) -> None:
    it = make(row)
    assert it.name == row.name
    assert it.link in ("exchange", "push", "none")
    assert it.keeps_mean in ("exchange", "running_sums", "nothing")
    assert it.state_class in ("none", "sum", "pairwise")
    assert it.demands.weights in ("symmetric", "column", "row", "any")
    assert (it.keeps_mean == "exchange") == (
        it.link == "exchange"
    )  # an exchange keeps it, nothing else does by receipts
    assert it.link != "exchange" or it.demands.weights == "symmetric"
    assert it.keeps_mean != "running_sums" or (it.per_edge and it.demands.weights == "column")
    assert (it.restart is not None) == (it.state_class != "none")
    assert it.per_edge or it.state_class != "pairwise"  # what is kept per slot needs slots that stay
    assert not (it.per_edge and it.linear)
    assert it.demands.above is None or it.demands.why
    assert it.lateness >= 0 and it.travels
    assert it.weigh is None or it.link == "push"  # both ends of an exchange use the planned weight


# ----------------------------------------------------------------------------------------------------- where they end


def samples_optimum(task: Quadratic, steps: int) -> np.ndarray:
    """Where FedAvg stands still: sum_i n_i (1 - h_i) (x - b_i) = 0 with h = (1 - eta a)^steps."""
    pull = samples(len(task.a))[:, None] * (1 - (1 - ETA * task.a) ** steps)
    return (pull * task.b).sum(axis=0) / pull.sum(axis=0)


def cycle(nodes: Nodes) -> np.ndarray:
    """[n, DIM] the models after the last row of the schedule, in the cycle of x <- W_t (x - eta a (x - b))."""
    found = []
    for a, b in zip(nodes.task.a.T, nodes.task.b.T, strict=True):
        linear, constant = np.eye(nodes.n), np.zeros(nodes.n)
        for t in range(len(nodes.schedule.neighbor)):
            w = topology.matrix(nodes.schedule, t)
            linear = w @ np.diag(1 - ETA * a) @ linear
            constant = w @ ((1 - ETA * a) * constant + ETA * a * b)
        found.append(np.linalg.solve(np.eye(nodes.n) - linear, constant))
    return np.stack(found, axis=1)


def end(row: Row, nodes: Nodes) -> np.ndarray:
    if row.ends == "optimum":
        return nodes.task.optimum
    if row.ends == "samples":
        return samples_optimum(nodes.task, 1)
    if row.ends == "cycle":
        return cycle(nodes)
    found = quadratic.fixed_point(nodes.task, row.name, row.arguments, topology.matrix(nodes.schedule), ETA, 1)
    assert found is not None
    return found


@over_rows
def test_it_ends_where_theory_says(row: Row) -> None:
    nodes = nodes_of(str(row))
    if row.ends != "near":
        # every round leaves at most .97 of what was left, and .97^990 < 1e-13; rounding of order 1 is smaller still
        _, trace = nodes.run(ROUNDS)
        rounds = ROUNDS - 1 if row.ends != "cycle" else ROUNDS - ROUNDS % 3 - 1
        assert distance(trace.x[rounds], end(row, nodes)) < 1e-9
        if row.ends == "fixed":
            assert distance(trace.x[rounds], nodes.task.optimum) > 1e-2  # it is biased, and is not called exact
        return
    # random graphs: no point to end in, but the noise is that of one step, and falls with the learning rate
    quarter = Quadratic(nodes.task.a / 4, nodes.task.b)
    away = [rms(nodes.run(ROUNDS, task=task)[1].x[-500:], nodes.task.optimum) for task in (nodes.task, quarter)]
    alone = rms(nodes.task.b, nodes.task.optimum)
    assert away[0] < alone / 2
    assert away[1] < 0.7 * away[0]


@rows(lambda row: row.ends == "optimum")
def test_exact_ones_are_exact_under_loss(row: Row) -> None:
    """A tenth of the exchanges is void."""
    nodes = nodes_of(str(row))
    _, trace = nodes.run(ROUNDS, loss=1 - 0.9**0.5, seed=3)
    assert distance(trace.x[-1], nodes.task.optimum) < 1e-10


# ---------------------------------------------------------------------------------------------------------- consensus


def outer_rate(w: np.ndarray, rate: float, momentum: float) -> float:
    """Of SGD with Nesterov momentum along (I - W) phi: m+ = D + beta m, phi+ = phi - rate (D + beta m+)."""
    found = 0.0
    for mode in 1 - np.sort(np.linalg.eigvalsh(w))[:-1]:
        step = [[1 - rate * (1 + momentum) * mode, -rate * momentum**2], [mode, momentum]]
        found = max(found, float(abs(np.linalg.eigvals(np.array(step))).max()))
    return found


def rate(row: Row, nodes: Nodes) -> float:
    w = topology.matrix(nodes.schedule)
    if row.agrees == "outer":
        return outer_rate(w, 0.7, 0.9)
    if row.agrees == "half":
        w = (np.eye(nodes.n) + w) / 2
    return float(np.sort(abs(np.linalg.eigvals(w)))[-2])


def disagreement(x: np.ndarray) -> np.ndarray:
    """[R] of [R, n, DIM]."""
    return np.linalg.norm(x - x.mean(axis=1, keepdims=True), axis=(1, 2))


@over_rows
def test_without_steps_they_agree_at_the_rate_of_the_graph(row: Row) -> None:
    nodes = nodes_of(str(row))
    _, trace = nodes.run(CHUNK, steps=0)
    away = disagreement(np.concatenate([np.asarray(nodes.models["trained"]["x"])[None], trace.x]))
    if row.agrees == "never":
        assert np.ptp(away) == 0
    elif isinstance(row.agrees, int):
        assert (away[1 : row.agrees] > 1e-3).all()
        assert away[row.agrees] < 1e-14
    elif row.agrees == "random":
        assert away[-1] < 1e-6 * away[0]  # a round leaves at most .83 of it, in the mean; .83^100 = 1e-8
    else:
        expected = rate(row, nodes)
        # up to the round in which rounding (1e-16 of the start) is still a thousandth of what is left
        last = min(CHUNK, int(np.log(1e-12) / np.log(expected)))
        found = (away[last] / away[last // 2]) ** (1 / (last - last // 2))
        # outer: complex modes turn, so that their norm breathes; push_sum: the next mode is .46, close to .5
        assert abs(found / expected - 1) < {"outer": 0.05, "push_sum": 0.02}.get(row.name, 2e-3)


# ---------------------------------------------------------------------------------------------------------- the mean


@over_rows
def test_mixing_keeps_the_mean_as_declared(row: Row) -> None:
    """Of the mass: models (with corrections), push-sum's x and w with what is under way."""
    nodes = nodes_of(str(row))
    it = nodes.algorithm
    # where next to nothing arrives, push-sum's steps of eta / w are long, and models far away
    for loss, steps in ((0.0, STEPS), (0.3, STEPS), (0.9, 0 if it.keeps_mean == "running_sums" else STEPS)):
        _, trace = nodes.run(CHUNK, steps, loss=loss)
        if it.keeps_mean == "nothing" and it.link != "none":
            assert abs(trace.moved).max() > 1e-3  # to declare more would be wrong
        else:
            assert abs(trace.moved).max() <= 1e-12
    if it.link == "exchange" and it.plan is None:
        for late in (1, 3):  # an exchange is booked earlier at one end; in the end all are
            _, trace = nodes.run(CHUNK, STEPS, loss=0.3, late=late, lateness=3)
            assert abs(trace.moved).max() > 1e-3
            scale = abs(trace.moved).sum(axis=0).max()
            assert abs(trace.moved.sum(axis=0)).max() <= 1e-12 * max(scale, 1)


@rows(lambda row: make(row).link == "exchange")
def test_dropping_at_one_end_moves_the_mean(row: Row) -> None:
    """The negative of the test above: with the rule "self" each end mixes what it got."""
    nodes = nodes_of(str(row))
    _, trace = nodes.run(CHUNK, STEPS, loss=0.1, rule="self")
    assert abs(trace.moved).max() > 1e-3


# ----------------------------------------------------------------------------------------- a value, pure and portable


@over_rows
@pytest.mark.parametrize("compiled", [True, pytest.param(False, marks=pytest.mark.more)])
def test_one_node_by_itself_is_the_node_among_all(row: Row, compiled: bool) -> None:
    """Alone, and also step by step, as under vmap: it sees its Neighborhood and inbox, and no graph or id."""
    nodes = nodes_of(str(row))
    it, start = nodes.algorithm, warm(nodes)
    state, inbox, around = a_round(nodes, start)
    mixed = nodes.mix(state, inbox, around)

    def one(state: Any, data: Tree, key: Any, inbox: Inbox, around: Neighborhood) -> Any:
        trained, metrics = it.local(state, data, key, jnp.int32(STEPS))
        trained, payload = it.send(trained, around)
        weight = around.weight if it.weigh is None else it.weigh(around.weight, inbox.arrived)
        after = it.mix(trained, inbox, around._replace(weight=weight))
        return trained, payload, after, it.params(after), metrics

    _, payload = nodes.train(start, nodes.data(), jnp.full(nodes.n, STEPS, jnp.int32), around)
    for i in (0, nodes.n - 1):
        with jax.disable_jit(not compiled):
            found = jax.jit(one)(
                *(of(x, i) for x in (start, nodes.data())), jax.random.key(i), of(inbox, i), of(around, i)
            )
        assert found[-1]["loss"].shape == ()
        # rounding of fused operations may differ from that of single ones
        close(found[:-1], tuple(of(x, i) for x in (state, payload, mixed, nodes.params(mixed))), 1e-13)


@over_rows
def test_names_of_nodes_play_no_part(row: Row) -> None:
    """The same graph under other ids, slots in the same order: bitwise the same models."""
    nodes = nodes_of(str(row))
    new = np.random.default_rng(5).permutation(nodes.n)  # node i is called new[i]
    old = np.argsort(new)
    renamed = Wires(*(np.ascontiguousarray(leaf[:, old]) for leaf in nodes.wires))
    renamed = renamed._replace(neighbor=new[renamed.neighbor].astype(np.int32))
    what = nodes.deliveries(CHUNK, loss=0.2)
    other = what._replace(**{k: np.ascontiguousarray(v[:, old]) for k, v in what._asdict().items()})
    task = Quadratic(nodes.task.a[old], nodes.task.b[old])
    _, trace = nodes.run(CHUNK, what=what)
    _, moved = nodes.run(CHUNK, start=of(nodes.start, old), task=task, wires=renamed, what=other)
    assert np.array_equal(moved.x, trace.x[:, old])


@over_rows
def test_the_dtype_stays(row: Row) -> None:
    """Of state, payload and model; strict promotion is on, so that nothing is widened on the way."""
    algorithm = make(row)
    schedule = planned(algorithm, row.graph, row.nodes, 2)
    for dtype in ("float32", "float64", "bfloat16"):
        nodes = Nodes(algorithm, schedule, dtype=jnp.dtype(dtype))
        steps, around, here = jnp.full(nodes.n, STEPS, jnp.int32), nodes.around(), nodes.wires.weight[0] > 0

        def round(state: Any, nodes: Nodes = nodes, steps: Any = steps, around: Any = around, here: Any = here) -> Any:
            trained, payload = nodes._train(state, nodes.data(), steps, around)
            return trained, payload, nodes._mix(trained, nodes.inbox(payload, here), around), nodes.params(trained)

        start = jax.eval_shape(nodes.init, nodes.models)
        shapes = jax.eval_shape(round, start)
        for state in (shapes[0], shapes[2]):
            assert tree.schema(state) == tree.schema(start)
        assert tree.schema(shapes[3]) == tree.schema(nodes.models)
        kinds = {name.split("/")[-1]: kind for name, kind, _ in tree.schema(shapes[1])}
        assert kinds.pop("age", "float32") == "float32"  # a count, whatever the model
        assert set(kinds.values()) == {dtype}
    near, data = of(around, 0), of(nodes.data(), 0)

    @jax.jit
    def alone(state: Any) -> Any:  # node 0 in bfloat16, whose neighbours send one and a half times what it sends
        state, _ = algorithm.local(state, data, jax.random.key(0), jnp.int32(STEPS))
        state, payload = algorithm.send(state, near)
        if not algorithm.per_edge:
            payload = jax.tree.map(lambda leaf: jnp.stack([leaf] * nodes.slots), payload)
        received = jax.tree.map(lambda leaf: leaf * jnp.asarray(1.5, leaf.dtype), payload)
        return algorithm.mix(state, Inbox(payload, received, here[0], jnp.zeros(nodes.slots, jnp.int32)), near)

    state = algorithm.init(of(nodes.models, 0), nodes.slots)
    for _ in range(3):
        state = alone(state)
    assert tree.schema(algorithm.params(state)) == tree.schema(of(nodes.models, 0))
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(state))


@over_rows
def test_a_checkpoint_goes_on_bitwise(row: Row) -> None:
    """As named numpy arrays and back, into the structure that `init` makes."""
    nodes = nodes_of(str(row))
    what = nodes.deliveries(2 * CHUNK, loss=0.2)
    whole, _ = nodes.run(2 * CHUNK, what=what)
    half, _ = nodes.run(CHUNK, what=what._replace(**{k: v[:CHUNK] for k, v in what._asdict().items()}))
    named = {name: np.asarray(leaf).tobytes() for name, leaf in tree.named_leaves(half).items()}
    like, structure = jax.tree.flatten(nodes.start)
    assert len(named) == len(like)  # no two leaves have one name
    leaves = [
        jnp.asarray(np.frombuffer(named[name], leaf.dtype).reshape(leaf.shape))
        for name, leaf in tree.named_leaves(nodes.start).items()
    ]
    rest = what._replace(**{k: v[CHUNK:] for k, v in what._asdict().items()})
    restored, _ = nodes.run(CHUNK, start=jax.tree.unflatten(structure, leaves), what=rest, first=CHUNK + 1)
    assert equal(restored, whole)


# ------------------------------------------------------------------------------------------------ what does not arrive


@over_rows
@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e6])
def test_what_did_not_arrive_is_not_looked_at(row: Row, junk: float) -> None:
    nodes = nodes_of(str(row))
    state, inbox, around = a_round(nodes, warm(nodes))
    some = inbox.arrived & jnp.asarray(np.random.default_rng(1).random((nodes.n, nodes.slots)) < 0.6)
    spoiled = jax.tree.map(
        lambda leaf: jnp.where(some.reshape(*some.shape, *(1,) * (leaf.ndim - 2)), leaf, junk), inbox.received
    )
    clean = nodes.mix(state, inbox._replace(arrived=some), around)
    assert equal(nodes.mix(state, inbox._replace(arrived=some, received=spoiled), around), clean)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(clean))
    if nodes.algorithm.link != "none":
        assert not equal(nodes.params(nodes.mix(state, inbox, around)), nodes.params(clean))  # the rest does matter


@over_rows
def test_a_round_in_which_nothing_arrives(row: Row) -> None:
    """Is one with nobody around: the node goes on by itself, with as many slots as it may have, or none."""
    nodes = nodes_of(str(row))
    it = nodes.algorithm
    state, inbox, around = a_round(nodes, nodes.start)
    nothing = nodes.mix(state, inbox._replace(arrived=jnp.zeros_like(inbox.arrived)), around)
    own = nodes.params(nothing)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(nothing))
    if row.name != "outer":  # whose outer step is taken along its own local steps
        # push-sum has halved both x and w, so that its quotient may be rounded otherwise
        close(own, nodes.params(state), 1e-15)
    empty = Neighborhood(jnp.zeros(0), jnp.zeros(0))
    lone, _ = it.local(it.init(of(nodes.models, 0), 0), of(nodes.data(), 0), jax.random.key(0), jnp.int32(STEPS))
    lone, payload = it.send(lone, empty)
    none = payload if it.per_edge else jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape), leaf.dtype), payload)
    lone = it.mix(lone, Inbox(none, none, jnp.zeros(0, bool), jnp.zeros(0, jnp.int32)), empty)
    close(it.params(lone), of(own, 0), 1e-14)


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in ("fedavg", "epidemic")], ids=str)
def test_the_average_is_over_what_arrived(row: Row) -> None:
    """FedAvg: by training rows, of those that are there; EL-Local: their plain mean; EL-Oracle: as planned."""
    nodes = nodes_of(str(row))
    state, inbox, around = a_round(nodes, nodes.start)
    some = np.asarray(inbox.arrived) & (np.random.default_rng(4).random((nodes.n, nodes.slots)) < 0.6)
    found = np.asarray(
        nodes.params(nodes.mix(state, inbox._replace(arrived=jnp.asarray(some)), around))["trained"]["x"]
    )
    x, weight = np.asarray(nodes.params(state)["trained"]["x"]), np.where(some, around.weight, 0)
    own = 1 - np.asarray(around.weight).sum(axis=1)
    if row.arguments.get("kind") == "oracle":
        own = 1 - weight.sum(axis=1)
    elif row.name == "epidemic":
        weight, own = some.astype(float), np.ones(nodes.n)
    assert some.any() and not some.all()
    total = own[:, None] * x + np.einsum("nk,nkd->nd", weight, x[nodes.wires.neighbor[0]])
    there = own + weight.sum(axis=1)
    for i in range(nodes.n):
        assert distance(found[i], total[i] / there[i] if there[i] else x[i]) < 1e-13


@over_rows
def test_slots_that_rest_change_nothing(row: Row) -> None:
    """A slot of weight zero: whatever lies in it, and whether it is said to have arrived."""
    nodes = nodes_of(str(row))
    state, inbox, around = a_round(nodes, warm(nodes))
    rest = around._replace(weight=around.weight.at[:, 0].set(0))
    silent = nodes.mix(state, inbox._replace(arrived=inbox.arrived.at[:, 0].set(False)), rest)
    if nodes.algorithm.per_edge:  # running sums are worth having whenever they come
        junk = jax.tree.map(lambda leaf: leaf.at[:, 0].set(7), inbox.received)
        there = nodes.mix(state, inbox._replace(arrived=inbox.arrived.at[:, 0].set(False), received=junk), rest)
    else:
        junk = jax.tree.map(lambda leaf: leaf.at[:, 0].set(7), inbox.received)
        there = nodes.mix(state, inbox._replace(received=junk), rest)
    close(there, silent, 0.0)


@over_rows
def test_a_round_without_steps_leaves_the_model(row: Row) -> None:
    nodes = nodes_of(str(row))
    none, _ = nodes.train(nodes.start, nodes.data(), jnp.zeros(nodes.n, jnp.int32), nodes.around())
    some, _ = nodes.train(nodes.start, nodes.data(), jnp.ones(nodes.n, jnp.int32), nodes.around())
    close(nodes.params(none), nodes.models, 1e-15)
    assert not np.allclose(nodes.params(some)["trained"]["x"], nodes.models["trained"]["x"], atol=1e-3)


@over_rows
def test_where_any_steps_will_do_the_model_says_all_that_a_round_has_done(row: Row) -> None:
    """Whoever takes the steps and hands in the model (`p2pfl.join`) sends and mixes what the algorithm would."""
    nodes = nodes_of(str(row))
    it, state = nodes.algorithm, warm(nodes)
    assert it.any_steps == (row.name in ("dsgd", "epidemic", "local") and row.arguments.get("order") != "cta")
    if not it.any_steps:
        return
    trained, inbox, around = a_round(nodes, state)
    _, payload = nodes.train(state, nodes.data(), jnp.full(nodes.n, STEPS, jnp.int32), around)
    handed = jax.vmap(it.replaced)(state, nodes.params(trained))
    handed, sent = jax.vmap(it.send)(handed, around)
    close(sent, payload, 0.0)
    close(nodes.params(nodes.mix(handed, inbox, around)), nodes.params(nodes.mix(trained, inbox, around)), 0.0)


@over_rows
def test_linear_mixing_is_the_sum_of_differences(row: Row) -> None:
    """So that a driver may give it that sum in a single slot."""
    nodes = nodes_of(str(row))
    if not nodes.algorithm.linear or nodes.algorithm.link == "none":
        return
    state, inbox, around = a_round(nodes, warm(nodes))
    some = inbox.arrived & jnp.asarray(np.random.default_rng(1).random((nodes.n, nodes.slots)) < 0.6)
    it, weight = nodes.algorithm, around.weight
    if it.weigh is not None:
        weight = jax.vmap(it.weigh)(weight, some)
    given = np.where(some, weight, 0)
    total = jax.tree.map(
        lambda r, s: jnp.asarray(np.einsum("nk,nk...->n...", given, np.asarray(r) - np.asarray(s)))[:, None],
        inbox.received, inbox.sent,
    )  # fmt: skip
    one = jnp.ones((nodes.n, 1))
    zeros = jax.tree.map(jnp.zeros_like, total)
    whole = Inbox(zeros, total, one.astype(bool), jnp.zeros((nodes.n, 1), jnp.int32))
    ready = jax.vmap(it.mix)(state, whole, Neighborhood(one, one))
    close(ready, nodes.mix(state, inbox._replace(arrived=some), around), 1e-12)


# ------------------------------------------------------------------------------------------------------ join and leave


@over_rows
def test_a_joiner_has_the_donors_model_and_nothing_else(row: Row) -> None:
    nodes = nodes_of(str(row))
    it, state = nodes.algorithm, warm(nodes)
    given = nodes.params(of(state, jnp.roll(jnp.arange(nodes.n), 1)))
    adopted = jax.jit(jax.vmap(it.adopt))(state, given)
    assert equal(nodes.params(adopted), given)
    assert equal(adopted, nodes.init(given))  # momentum, corrections, sums and ages start afresh
    assert not equal(state, adopted)
    if it.state_class == "sum":
        assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.correction))
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(adopted.correction))
    if it.state_class == "pairwise":
        assert np.array_equal(adopted.mine["w"], np.ones(nodes.n))
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves((adopted.sent, adopted.seen)))


@rows(lambda row: make(row).restart is not None)
def test_a_new_epoch_keeps_the_model_and_what_is_summed_starts_afresh(row: Row) -> None:
    """Model and optimizer stay; all else is as `init` makes it, with as many slots as the new epoch has."""
    nodes = nodes_of(str(row))
    it, state = nodes.algorithm, warm(nodes)
    for slots in (nodes.slots, nodes.slots + 2, 0):
        begun = jax.jit(jax.vmap(lambda one, slots=slots: it.restart(one, slots)))(state)
        close(nodes.params(begun), nodes.params(state), 1e-15)
        assert equal(begun.opt_state, state.opt_state)
        first = jax.vmap(lambda p, slots=slots: it.init(p, slots))(nodes.params(state))._replace(
            opt_state=state.opt_state
        )
        if "direction" in first._fields:  # what travels is made anew before it does
            begun, first = (part._replace(direction=(), model=()) for part in (begun, first))
        assert equal(begun, first)
        assert not equal(state, begun)


# ------------------------------------------------------------------------------------------------- what they ask of W


@over_rows
def test_a_graph_that_does_not_fit_is_refused_with_a_way_out(row: Row) -> None:
    """`planned`, which made each row's schedule, has checked that its own graph fits."""
    it = make(row)
    graph = nx.DiGraph([(0, 1), (1, 2), (2, 0), (0, 2)])
    heavy = nx.DiGraph()
    heavy.add_weighted_edges_from([(0, 1, 0.9), (0, 2, 0.9), (1, 0, 0.5), (2, 0, 0.5)])
    directed, rows = topology.schedule(graph), topology.schedule(heavy)
    for given, weights, texts in (
        (directed, "symmetric", [f"{row.name}: G does not fit", 'weights = "metropolis"', "push_sum"]),
        (rows, "column", [f"{row.name}: G does not fit", 'Use weights = "uniform_out"']),
    ):
        if it.demands.weights == weights:
            with pytest.raises(TopologyError) as error:
                requirements.check(it, given, "G")
            assert all(text in str(error.value) for text in texts)
        elif it.demands.weights == "any":
            requirements.check(it, given, "G")
    if row.name == "fedavg":
        with pytest.raises(TopologyError, match=r"fedavg: needs a star or a complete graph"):
            planned(it, "ring", 8)
    if it.plan is not None and it.link == "exchange":
        with pytest.raises(TopologyError, match=r"(undirected|'complete')"):
            planned(it, "exponential", 8)


# --------------------------------------------------------------------------------------------------- docs/algorithms.md

PAGE = (Path(__file__).parents[1] / "docs" / "algorithms.md").read_text("utf-8")
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ALGORITHMS),
    ("dsgd", {"order": "cta"}), ("dmsgd", {"mix_momentum": True}), ("epidemic", {"kind": "oracle"}),
]  # fmt: skip
WEIGHTS = {"symmetric": "symmetric", "column": "columns sum to one", "row": "rows sum to one", "any": "nothing"}
KEPT = {"exchange": "double entry", "running_sums": "running sums", "nothing": DASH}


def cells(it: Algorithm) -> list[str]:
    asked = WEIGHTS[it.demands.weights] + (f", eigenvalues > {it.demands.above:.4f}" if it.demands.above else "")
    late = str(it.lateness) if it.link == "exchange" else DASH
    return [it.travels, it.link, asked, KEPT[it.keeps_mean], late, it.state_class]


def declared() -> str:
    """The table of the page, from the declarations."""
    lines = []
    for name, given in sorted(VARIANTS, key=lambda variant: [*ALGORITHMS].index(variant[0])):
        said = "".join(f" `{key} = {json.dumps(value)}`" for key, value in given.items())
        lines.append(
            " | ".join([f"| `{name}`{said}", *cells(ALGORITHMS[name](learner(), optax.sgd(ETA), **given))]) + " |"
        )
    return "\n".join(lines)


def test_the_page_declares_what_the_algorithms_declare() -> None:
    assert declared() in PAGE, f"docs/algorithms.md should hold this table:\n{declared()}"
    known = [cells(ALGORITHMS[name](learner(), optax.sgd(ETA), **given)) for name, given in VARIANTS]
    assert all(cells(make(row)) in known for row in ROWS)  # no variant declares anything else


def heading(name: str) -> str:
    parts = re.split(rf"^### `{name}`$", PAGE, flags=re.MULTILINE)
    assert len(parts) == 2, f"docs/algorithms.md has {len(parts) - 1} headings ### `{name}`"
    return re.split(r"^##", parts[1], flags=re.MULTILINE)[0]


def test_the_page_has_every_robust_rule_and_its_arguments() -> None:
    """In two tables of their own; their equations are held by test_robust.py."""
    text = re.split(r"^##", PAGE.split("### Robust rules")[1], flags=re.MULTILINE)[0]
    listed = [re.findall(r"`(\w+)`", row) for row in re.findall(r"^\| (`.+?) \|", text, flags=re.MULTILINE)]
    names = {name for row in listed for name in row}
    assert {*RULES} < names
    arguments = {each for rule in RULES for each in inspect.signature(compose.WRAPS[rule]).parameters}
    assert names - {*RULES} == arguments | {"name"}


@pytest.mark.parametrize("name", [*ALGORITHMS, *(each for each in compose.WRAPS if each not in RULES)])
def test_the_page_has_every_argument_and_its_default(name: str) -> None:
    maker: Any = ALGORITHMS.get(name) or compose.WRAPS[name]
    text = heading(name)
    assert "\n    " in text or name in ("local", "cast"), "no equation"
    found = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", text, flags=re.MULTILINE))
    parameters = list(inspect.signature(maker).parameters.values())[2 * (name in ALGORITHMS) :]
    assert set(found) == {p.name for p in parameters}
    for p in parameters:
        if p.default is p.empty or p.default is None:
            assert found[p.name] == ("required" if p.default is p.empty else DASH)
        else:
            said = tomllib.loads(f"value = {found[p.name].strip('`')}")["value"]
            assert said == p.default and type(said) is (dict if isinstance(p.default, Mapping) else type(p.default))


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write your own: the file is short, is built by name, keeps the mean, and ends where it says."""
    (source,) = re.findall(r"^```python\n(\"\"\".*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(source.splitlines()) < 90
    (tmp_path / "lazy_diffusion.py").write_text(source, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    (table,) = re.findall(r"^```toml\n(.*?)^```", PAGE.split("## Write your own")[1], re.DOTALL | re.MULTILINE)
    given = tomllib.loads(table)
    rest = {
        "name": "t", "rounds": 3, "data": {"source": "quadratic"}, "topology": {"graph": "ring", "nodes": 8},
        "training": {"optimizer": {"name": "sgd", "learning_rate": ETA}, "batch_size": 1, "local_steps": 1},
        "driver": {"kind": "simulate"},
    }  # fmt: skip
    federation = build.build(experiment.parse({**rest, **given}, "docs", experiment.Experiment))
    assert federation.algorithm.name == "lazy_diffusion"
    maker = function(given["algorithm"]["name"], "docs")
    it = maker(learner(), optax.sgd(ETA), **given["algorithm"]["arguments"])
    nodes = Nodes(it, planned(it, "ring", 8))
    _, trace = nodes.run(ROUNDS, loss=0.2)
    assert abs(trace.moved).max() <= 1e-12
    w = topology.matrix(nodes.schedule)
    lazy = 0.5 * np.eye(8) + 0.5 * w
    expected = quadratic.fixed_point(nodes.task, "dsgd", {}, lazy, ETA, 1)
    assert expected is not None and distance(nodes.run(ROUNDS)[1].x[-1], expected) < 1e-9
