"""Noise on what leaves a site, beyond that on steps: correlated, on updates, on messages; and chunks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
import pytest
from test_private_steps import FAST, KEY, begun, linear, made, norm_of, rows, weights

from p2pfl.algorithms import dmsgd, dsgd, gradient_tracking
from p2pfl.errors import ConfigError
from p2pfl.federation.federation import build, model_shape
from p2pfl.learning.local_steps import placed
from p2pfl.methods import chain, shatter
from p2pfl.methods.privacy import (
    covariance,
    dp_sgd,
    epsilon,
    noised_updates,
    of_all_messages,
    of_gaussian,
    of_updates,
    projection,
)
from p2pfl.methods.privacy.correlated import SHARED, SIGN, pairs
from p2pfl.methods.privacy.dp_sgd import ALLOWED
from p2pfl.methods.site_facts import counting, entropy
from p2pfl.methods.zip_dl import zero_sum
from p2pfl.runs.privacy import write
from p2pfl.runs.run import run
from p2pfl.runs.simulated import message_sizes
from p2pfl.types import Inbox, Neighborhood

DELTA = 1e-5
TORUS = nx.convert_node_labels_to_integers(nx.grid_2d_graph(4, 4, periodic=True))
GRAPHS = {
    "ring": nx.cycle_graph(16), "complete": nx.complete_graph(16), "torus": TORUS, "star": nx.star_graph(15),
    "karate": nx.karate_club_graph(),
}  # fmt: skip


GONE = [{"event": "crash", "node": 3, "round": 4}]


# --- what neighbours share: DECOR


@pytest.mark.parametrize(
    "name, stranger, neighbour",
    [
        ("ring", 0.300897, 0.422524), ("complete", 0.252342, 0.269154), ("torus", 0.260692, 0.281159),
        ("star", 0.286974, 4.0), ("karate", 0.158645, 4.0),
    ],
)  # fmt: skip
def test_what_neighbours_share_protects_as_the_authors_code_says(name: str, stranger: float, neighbour: float) -> None:
    """Renyi's divergence of order 2 of one step, own noise 1 and shared noise 10, of a change of norm 2."""
    graph = GRAPHS[name]
    linked = nx.to_numpy_array(graph, weight=None) > 0
    own = np.ones(len(graph))

    def worst(lookers: tuple[int, ...]) -> float:
        seen = of_all_messages(covariance(own, 10.0, linked, lookers), lookers)
        assert not seen[[*lookers]].any()
        return 4 * float(seen.max())

    assert worst(()) == pytest.approx(stranger, abs=1e-6)
    assert max(worst((node,)) for node in graph) == pytest.approx(neighbour, abs=1e-6)
    assert max(4 * of_all_messages(covariance(own, 10.0, linked, [*graph[node]]), [*graph[node]])[node]
               for node in graph) == pytest.approx(4.0, abs=1e-9)  # fmt: skip


def test_with_much_shared_noise_a_stranger_sees_the_sum_alone() -> None:
    linked = nx.to_numpy_array(nx.cycle_graph(7)) > 0
    assert of_all_messages(covariance(np.full(7, 2.0), 1e5, linked)) == pytest.approx(1 / (7 * 4), rel=1e-5)


def test_a_view_of_correlated_noise_never_tells_more_than_all_messages() -> None:
    """And a coalition sees no less than any of its members; without shared noise it is what it was."""
    graph = nx.cycle_graph(6)
    linked = nx.to_numpy_array(graph) > 0
    found = {}
    for lookers in ({1}, {1, 4}):
        noise_of = covariance(np.ones(6), 3.0, linked, lookers)
        everything = of_all_messages(noise_of, lookers)
        found[len(lookers)] = projection(weights(graph), 4, lookers, noise=noise_of)
        for node in {*range(6)} - lookers:
            assert np.linalg.eigvalsh(found[len(lookers)][node])[-1] <= everything[node] + 1e-9
    assert np.linalg.eigvalsh(found[2][0] - found[1][0])[0] >= -1e-9
    plain = projection(weights(graph), 4, {1}, noise=covariance(np.ones(6)))
    np.testing.assert_allclose(plain, projection(weights(graph), 4, {1}), atol=1e-9)
    np.testing.assert_allclose(projection(weights(graph), 4, {1}, noise=4 * np.eye(6)), plain / 4, atol=1e-9)


@pytest.mark.more
def test_what_neighbours_share_cancels_in_the_mean_and_is_another_in_each_step() -> None:
    linked = nx.to_numpy_array(nx.cycle_graph(4)) > 0
    found = pairs(linked, seed=3)
    made_private = dp_sgd(1.0, 5, correlated=50.0).learner
    assert made_private is not None
    learner, batch = made_private(counting(linear())), rows(5)

    def gradient(node: int, steps: int) -> dict[str, Any]:
        params = begun(learner, **{SHARED: jnp.asarray(found.words[node]), SIGN: jnp.asarray(found.sign[node])})
        params["private"]["privacy"]["steps"] = jnp.int32(steps)
        result: dict[str, Any] = learner.grad(params, batch, KEY)[0]
        return result

    plain = dp_sgd(1.0, 5).learner
    assert plain is not None
    without = plain(counting(linear())).grad(begun(learner), batch, KEY)[0]
    each = [gradient(node, 0) for node in range(4)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 4, *each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), mean, without)
    assert min(norm_of(jax.tree.map(jnp.subtract, one, without)) for one in each) > 5  # some 10 sqrt(2) in 8 numbers
    assert norm_of(jax.tree.map(jnp.subtract, each[0], gradient(0, 1))) > 5


def test_a_budget_against_one_neighbour_takes_less_noise_of_a_nodes_own() -> None:
    """And says of every adversary what it comes to."""
    budget = {"clip": 1.0, "epsilon": 3.0, "delta": DELTA}
    alone = build(made(privacy=budget)).learning.private
    shared = build(made(privacy={**budget, "correlated": 20.0, "adversary": "neighbour"})).learning.private
    assert alone is not None and shared is not None
    assert max(shared.noise) < 0.75 * min(alone.noise)
    for node in range(5):
        spent = {who: shared.spent(node, shared.planned[node], who) for who in shared.seen}
        assert 2.9 < (spent["neighbour"] or 0) <= 3.0 < (spent["neighbours"] or 0)
        assert (spent["stranger"] or 9) < (spent["neighbour"] or 0)
    named = build(made(privacy={**budget, "correlated": 20.0, "adversary": [0, 1]})).learning.private
    assert named is not None and named.spent(0, 12, "nodes 0, 1") is None
    assert (named.spent(2, 12, "nodes 0, 1") or 9) <= 3.0
    assert named.noise[0] > shared.noise[0]  # two see more than one


def test_who_shares_noise_stops_when_its_neighbours_do() -> None:
    """A coalition knows of itself whatever it does, so that its own members would have steps left."""
    budget = {"clip": 1.0, "noise": 2.0, "epsilon": 0.15, "delta": DELTA, "sampling": "poisson"}
    table = {**budget, "correlated": 20.0, "adversary": [0, 1]}
    steps = build(made(privacy=table)).learning.private
    assert steps is not None and len({*steps.allowed}) == 1 and 0 < steps.allowed[0] < steps.planned[0]


# --- whole updates


def test_updates_are_accounted_for_by_their_formulas() -> None:
    assert of_updates(1.0, 1, DELTA, "laplace") == 2.0 and of_updates(0.5, 1, DELTA, "laplace") == 4.0
    assert of_updates(4.0, 3, DELTA) == of_gaussian(4 * 3 / 16, DELTA)
    assert of_updates(4.0, 0, DELTA) == 0
    few, many = of_updates(20.0, 2, DELTA, "laplace"), of_updates(20.0, 100, DELTA, "laplace")
    assert few == pytest.approx(0.2, rel=1e-2)  # adding up is the best there is
    each = 0.1  # 100 mechanisms of randomised response, by counting who of them tells the truth
    truth = math.exp(each) / (1 + math.exp(each))
    k = np.arange(101)
    log = np.array([math.lgamma(101) - math.lgamma(i + 1) - math.lgamma(101 - i) for i in k])
    p = np.exp(log + k * math.log(truth) + (100 - k) * math.log(1 - truth))
    loss = (2 * k - 100) * each
    delta = float((p * np.maximum(0, 1 - np.exp(many - loss))).sum())
    assert delta == pytest.approx(DELTA, rel=0.15) and many < 100 * each


@pytest.mark.more
@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_an_update_moves_a_model_by_its_clip_at_most_whatever_the_rows_are(law: str) -> None:
    whole = noised_updates(0.5, law)
    assert whole.learner is not None and whole.wrap is not None
    learner = whole.learner(counting(linear()))
    algorithm = whole.wrap(dsgd(learner, optax.sgd(10.0, momentum=0.9)))
    size = (
        (lambda tree: float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(tree))))
        if law == "laplace"
        else norm_of
    )

    def moved(steps: int, allowed: int = 9, scale: float = 3.0, noise: float = 1e-9) -> tuple[float, int]:
        params = begun(learner, noise, **{ALLOWED: jnp.int32(allowed)})
        batches = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), rows(5, scale))
        state, metrics = algorithm.local(algorithm.init(params, 2), batches, KEY, jnp.int32(steps))
        assert bool(jnp.isfinite(metrics["loss"])) or not math.isfinite(scale)
        after = algorithm.params(state)
        by = jax.tree.map(jnp.subtract, after["trained"], params["trained"])
        return size(by), int(after["private"]["privacy"]["steps"])

    assert moved(3) == (pytest.approx(0.5, rel=1e-5), 1)
    assert moved(0) == (0.0, 0) and moved(3, allowed=0) == (0.0, 0)
    assert moved(3, scale=math.inf) == (pytest.approx(0, abs=1e-6), 1)
    assert moved(3, noise=100.0)[0] > 50


@pytest.mark.more
def test_the_noise_of_updates_has_its_scale() -> None:
    for law, deviation in (("gaussian", 1.0), ("laplace", math.sqrt(2))):
        whole = noised_updates(0.5, law)
        assert whole.learner is not None and whole.wrap is not None
        learner = whole.learner(counting(linear(400)))
        algorithm = whole.wrap(dsgd(learner, optax.sgd(0.1)))
        params = begun(learner, 4.0, **{ALLOWED: jnp.int32(9)})
        batches = {"x": jnp.zeros((1, 4, 400)), "y": jnp.zeros((1, 4), jnp.int32)}
        after = algorithm.params(algorithm.local(algorithm.init(params, 1), batches, KEY, None)[0])
        by = np.asarray(after["trained"]["kernel"] - params["trained"]["kernel"])
        assert by.std() == pytest.approx(2.0 * deviation, rel=0.1)


def test_an_algorithm_that_sends_more_than_the_model_is_refused() -> None:
    whole = noised_updates(1.0)
    assert whole.wrap is not None
    with pytest.raises(ConfigError, match="gradient_tracking sends more of the local steps than the model"):
        whole.wrap(gradient_tracking(linear(), optax.sgd(0.1)))
    with pytest.raises(ConfigError, match="dmsgd sends more of the local steps than the model"):
        whole.wrap(dmsgd(linear(), optax.sgd(0.1), mix_momentum=True))
    assert whole.wrap(dmsgd(linear(), optax.sgd(0.1))).name == "dmsgd"


# --- messages: Zip-DL


@pytest.mark.more
def test_noise_on_messages_is_another_for_each_neighbour_and_cancels() -> None:
    share = jnp.asarray([0.2, 0.3, 0.1, 0.0])
    model = {"trained": {"w": jnp.ones(5000)}, "carried": {"n": jnp.ones(3)}}
    sent = zero_sum(model, KEY, share, 2.0)
    apart = np.asarray(sent["trained"]["w"] - 1)
    np.testing.assert_allclose(np.asarray(share) @ apart, 0, atol=1e-5)
    w = np.asarray(share)
    assert apart.std(axis=1) == pytest.approx(2 * np.sqrt(np.where(w > 0, 1 - w**2 / (w @ w), 0)), rel=0.05)
    assert (np.asarray(sent["carried"]["n"]) == 1).all()


def test_what_all_neighbours_know_of_noise_that_cancels_is_all_and_what_one_knows_is_not() -> None:
    """Own noise of 1 and messages of noise 10; that of one's own remains where that of messages is solved for."""
    graph = nx.complete_graph(4)
    plain, zipped = (projection(weights(graph), 3, {1}, zip_dl=scale) for scale in (0.0, 10.0))
    together = projection(weights(graph), 3, {1, 2, 3}, zip_dl=10.0)
    np.testing.assert_allclose(together[0], np.eye(3), atol=1e-6)
    assert np.trace(plain[0]) > 1
    assert np.linalg.eigvalsh(plain[0] - zipped[0])[0] >= -1e-9 and np.trace(zipped[0]) < 0.2 * np.trace(plain[0])
    once = projection(weights(graph), 1, {1}, zip_dl=10.0)  # one message: 1 / (1 + 100 (1 - 1 / 3))
    assert once[0, 0, 0] == pytest.approx(1 / (1 + 100 * 2 / 3), rel=1e-6)


@pytest.mark.parametrize("graph", [nx.complete_graph(4), nx.cycle_graph(5)], ids=["complete", "ring"])
@pytest.mark.parametrize("lookers", [{0}, {0, 2}])
def test_who_looks_knows_the_noise_on_its_own_messages(graph: nx.Graph, lookers: set[int]) -> None:
    """Against the Gaussian written out: what lookers have drawn themselves hides nothing when it comes back."""
    weight, rounds, scale = weights(graph)[0], 3, 10.0
    nodes = len(weight)
    honest = [node for node in range(nodes) if node not in lookers]
    edges = [(r, i, j) for r in range(rounds) for i in honest for j in graph[i]]

    def messages(added: dict[tuple[int, int], float], draws: dict[tuple[int, int, int], float]) -> list[float]:
        """All that lookers are sent, of contributions (round, node) and of draws (round, from, to)."""
        x, told = np.zeros(nodes), []
        for r in range(rounds):
            x = x + [added.get((r, i), 0.0) for i in range(nodes)]
            out = {}
            for i in range(nodes):
                w = weight[[*graph[i]], i]
                drawn = np.array([draws.get((r, i, j), 0.0) for j in graph[i]])
                sent = x[i] + scale * (drawn - w * (w @ drawn) / (w @ w))
                out |= {(i, j): float(each) for j, each in zip(graph[i], sent, strict=True)}
            told += [out[j, i] for i in lookers for j in graph[i]]
            x = np.array([weight[i, i] * x[i] + sum(weight[i, j] * out[j, i] for j in graph[i]) for i in range(nodes)])
        return told

    a = np.array([messages({(r, i): 1.0}, {}) for i in honest for r in range(rounds)]).T
    c = np.array([messages({}, {edge: 1.0}) for edge in edges]).T
    seen = a.T @ np.linalg.pinv(a @ a.T + c @ c.T, rcond=1e-12) @ a
    found = projection(weights(graph), rounds, lookers, zip_dl=scale)
    for at, node in enumerate(honest):
        block = slice(at * rounds, (at + 1) * rounds)
        np.testing.assert_allclose(found[node], seen[block, block], atol=1e-7)


@pytest.mark.more
def test_noise_on_messages_counts_against_who_asks_for_no_model_alone(tmp_path: Path) -> None:
    """A neighbour that asks for a model, as one that joins does, gets it bare: the figure is that without the noise."""

    def told(wraps: list[dict[str, Any]], **arguments: Any) -> Any:
        algorithm = {"name": "dsgd", "wrap": wraps, "arguments": arguments}
        said = write(build(made(algorithm=algorithm, rounds=3, privacy__adversary=[1, 3], privacy__correlated=1.0)),
                     {}, tmp_path)  # fmt: skip
        return json.loads((tmp_path / "privacy.json").read_text()), "\n".join(said)

    plain, _ = told([])
    zipped, said = told([{"name": "zip_dl", "scale": 0.1}])
    assert set(plain["single_nodes"]) == set(plain["coalition"]) - {"nodes"} == {"rests_on", "epsilon"}
    for kind in ("single_nodes", "coalition"):
        assert zipped[kind]["epsilon"] == plain[kind]["epsilon"]
    bare, quiet = (zipped["single_nodes"][key] for key in ("epsilon", "asking_for_no_model"))
    assert all(quiet[i][j] <= bare[i][j] + 1e-9 for i in bare for j in bare[i])
    assert min(bare["0"].values()) > min(quiet["0"].values()) + 0.1
    named, quiet = (zipped["coalition"][key] for key in ("epsilon", "asking_for_no_model"))
    assert quiet["0"] < named["0"] - 0.1 and quiet["2"] == pytest.approx(named["2"], rel=1e-3)  # 1 and 3 are 2's all
    assert "for a single other node that asks for no model" in said
    assert told([], order="cta")[0]["single_nodes"] is None  # asked, it tells of steps that it has not sent yet


# --- chunks: Shatter


@pytest.mark.more
def test_a_chunk_is_a_part_and_all_of_them_are_the_model_and_mixing_is_the_mean_of_what_came() -> None:
    learner = counting(linear(6))  # 6 * 2 + 2 numbers
    algorithm = chain(dsgd(learner, optax.sgd(0.1)), shatter(3))

    def node(i: int) -> Any:
        model = placed(learner.init(jax.random.key(i)), {"entropy": jnp.asarray(entropy(4, 1)[i])})
        leaves, structure = jax.tree.flatten(model["trained"])  # no two numbers are alike
        unlike = [100 * i + 20 * k + 1 + jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape)
                  for k, leaf in enumerate(leaves)]  # fmt: skip
        return algorithm.init({**model, "trained": jax.tree.unflatten(structure, unlike)}, 3)

    around = Neighborhood(jnp.full(3, 0.25), jnp.full(3, 0.25))
    states, sent = zip(*[algorithm.send(node(i), around) for i in range(4)], strict=True)
    flat = [np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(algorithm.params(s)["trained"])])
            for s in states]  # fmt: skip
    chunks = np.asarray(sent[0]["chunk"])
    assert chunks.shape == (3, 5)
    assert sorted(chunks.ravel()[chunks.ravel() != 0].tolist()) == sorted(flat[0][flat[0] != 0].tolist())
    received = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *[jax.tree.map(lambda leaf: leaf[0], sent[j]) for j in (1, 2, 3)]
    )  # node 0 is the first neighbour of each
    arrived = jnp.asarray([True, True, False])
    inbox = Inbox(sent[0], received, arrived, jnp.zeros(3, jnp.int32))
    after = algorithm.params(algorithm.mix(states[0], inbox, around))["trained"]
    mixed = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(after)])
    wanted = []
    for p in range(14):
        came = [flat[j][p] for j in (1, 2) if flat[j][p] in np.asarray(received["chunk"][j - 1])]
        wanted.append(np.mean([flat[0][p], *came]))
    np.testing.assert_allclose(mixed, wanted, atol=1e-6)
    again = algorithm.send(states[0], around)[1]
    assert not np.array_equal(again["chunk"], chunks)  # dealt anew


def test_what_sends_each_something_else_stands_last_and_alone() -> None:
    for wrap, told in (
        ([{"name": "zip_dl", "scale": 0.1}, {"name": "cast"}], "give it last"),
        ([{"name": "zip_dl", "scale": 0.1}, {"name": "shatter", "chunks": 2}], "give one such"),
        ([{"name": "median", "f": 0}, {"name": "zip_dl", "scale": 0.1}], "median compares what came with"),
        ([{"name": "by_samples"}, {"name": "zip_dl", "scale": 0.1}], "by_samples and zip_dl: .*the graph's weights"),
        ([{"name": "by_loss", "q": -1}, {"name": "shatter", "chunks": 2}], "by_loss and shatter: .*graph's weights"),
        ([{"name": "zip_dl", "scale": 0}], "scale=0: must be > 0"),
        ([{"name": "shatter", "chunks": 1}], "chunks=1: must be a whole number >= 2"),
    ):
        with pytest.raises(ConfigError, match=told):
            build(made(privacy=None, algorithm={"name": "dsgd", "wrap": wrap}))
    with pytest.raises(ConfigError, match="zip_dl"):  # nodes of one neighbour would send the model as it is
        build(
            made(
                topology={"graph": "star", "nodes": 5},
                algorithm={"name": "dsgd", "wrap": [{"name": "zip_dl", "scale": 0.1}]},
            )
        )


def test_who_has_one_neighbour_left_sends_it_nothing_rather_than_the_bare_model() -> None:
    wrap = [{"name": "zip_dl", "scale": 0.1}]
    graph = {"graph": "complete", "nodes": 4}
    federation = build(made(privacy=None, topology=graph, algorithm={"name": "dsgd", "wrap": wrap}))
    three, two = federation.planner()((0, 1, 3)), federation.planner()((1, 3))
    assert not three.note and ((three.schedule.weight[0] > 0).sum(axis=1) == [2, 2, 0, 2]).all()
    assert not (two.schedule.weight > 0).any() and not (two.schedule.out_weight > 0).any()
    assert two.note == (
        "too few neighbours for zip_dl, which needs 2, has node 1, 3: it mixes with nobody until there are more"
    )


# --- experiments


@pytest.mark.parametrize(
    "more, told",
    [
        ({"privacy__law": "laplace"}, "is for whole updates"),
        ({"privacy__of": "updates", "privacy__sampling": "poisson"}, 'sampling="poisson": does nothing for of'),
        ({"privacy__adversary": "stranger"}, "adversary='stranger': does nothing without privacy.correlated"),
        ({"privacy__adversary": [5]}, r"adversary=\[5\]: must name some, and not all, of the nodes 0 to 4"),
        ({"privacy__adversary": [0, 1, 2, 3, 4]}, "must name some, and not all"),
        ({"privacy__of": "updates", "privacy__law": "laplace", "privacy__correlated": 1.0}, "is Gaussian"),
        ({"privacy__correlated": 1.0, "churn": GONE}, "come out of step"),
        ({"privacy__correlated": 1.0, "topology": {"graph": "ring", "nodes": 5, "take_part": 0.5}}, "come out of step"),
        ({"privacy__correlated": 1.0, "training__node_steps": [1, 2, 2, 2, 2]}, "all nodes must take as many steps"),
        ({"privacy__correlated": 1.0, "algorithm": {"name": "local"}}, "nobody has a neighbour"),
        ({"privacy__correlated": 1.0, "algorithm": {"name": "fedavg"}, "topology": {"graph": "star", "nodes": 5}},
         "the hub and the others take turns"),
        ({"privacy__adversary": [0], "privacy__epsilon": 1e-3}, "first round cost node 1"),
        ({"privacy": {"clip": 1.0, "delta": 1e-5, "epsilon": 1.0, "correlated": 9.0}}, "nothing against all neigh"),
        ({"privacy__of": "updates", "privacy__epsilon": 1e-3}, "the update of the first round costs node 0"),
        ({"privacy__of": "updates", "algorithm": {"name": "gradient_tracking"}}, "sends more of the local steps"),
        ({"privacy__of": "updates", "algorithm": {"name": "dmsgd", "arguments": {"mix_momentum": True}}},
         r"dmsgd sends more of the local steps .*\(the model and its momentum\)"),
        ({"privacy__of": "updates", "model": {"name": "mlp", "hidden": [4], "norm": "batch"}}, "has batch statistics"),
    ],
)  # fmt: skip
def test_what_does_nothing_or_not_what_it_says_is_refused(more: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build(made(**more))


@pytest.mark.parametrize("field", ["clip", "noise", "epsilon", "correlated"])
def test_a_clip_without_noise_can_not_be_written(field: str) -> None:
    with pytest.raises(ConfigError, match=f"privacy.{field}"):
        made(**{f"privacy__{field}": 0.0})


def test_what_is_noised_for_nothing_is_said() -> None:
    """Private leaves with noise on them; an optimizer by which shared noise does not cancel."""
    other = {"training__optimizer": {"name": "rmsprop", "learning_rate": 0.1}, "privacy__correlated": 2.0}
    told = "\n".join(build(made(algorithm={"name": "dsgd", "share": ["**/kernel"]}, **other)).notes)
    assert "leaves that never leave the node are noised like all others" in told
    assert "with another optimizer some of it stays" in told
    whole = "\n".join(build(made(algorithm={"name": "dsgd", "share": ["**/kernel"]}, privacy__of="updates")).notes)
    assert "noised like all others" not in whole and "for all of its rows together, whatever they are" in whole


@pytest.mark.more
@pytest.mark.parametrize("of", ["rows", "updates"])
def test_noise_is_on_the_first_message_and_not_added_after_mixing(of: str) -> None:
    federation = build(made(privacy__of=of, privacy__noise=50.0))
    algorithm, sites = federation.algorithm, federation.sites
    site = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), sites)
    params = placed(federation.learner.init(KEY), site)
    dataset = federation.dataset.train
    batches = {
        "x": jnp.asarray(dataset.x[:32].reshape(2, 16, -1), jnp.float32),
        "y": jnp.asarray(dataset.y[:32].reshape(2, 16)),
    }
    state, _ = jax.jit(algorithm.local)(algorithm.init(params, 2), batches, KEY, jnp.int32(2))
    around = Neighborhood(jnp.full(2, 1 / 3), jnp.full(2, 1 / 3))
    state, sent = algorithm.send(state, around)
    trained, first = sent["trained"], params["trained"]
    assert norm_of(jax.tree.map(jnp.subtract, trained, first)) > 5  # far beyond any clipped step
    pair = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), sent)
    inbox = Inbox(pair, pair, jnp.ones(2, bool), jnp.zeros(2, jnp.int32))
    after = algorithm.params(algorithm.mix(state, inbox, around))["trained"]
    jax.tree.map(np.testing.assert_array_equal, after, trained)


@pytest.mark.more
def test_nodes_that_are_gone_are_counted_by_a_bound(tmp_path: Path) -> None:
    for driver in ({"kind": "simulate"}, {"kind": "simulate", "loop": True}):
        out = tmp_path / str(len(driver))
        done = run(made(churn=GONE, driver=driver), out)
        told = json.loads((out / "privacy.json").read_text())["nodes"]
        assert {node: each["bound"] for node, each in told.items()} == {str(i): i == 3 for i in range(5)}
        assert 6 <= told["3"]["steps"] <= 8 and told["0"]["steps"] == 12
        assert told["3"]["epsilon"] == pytest.approx(epsilon_of(told["3"]), rel=1e-6)
        assert "the most of the 5 nodes, of 1 of which a bound is known" in "\n".join(done.notes)


def test_rounds_that_were_cut_short_or_that_a_trace_lacks_are_within_the_bound(tmp_path: Path) -> None:
    federation, trace = build(made(churn=GONE)), tmp_path / "nodes" / "3" / "trace.jsonl"
    models = {node: {"private": {"privacy": {"steps": np.int32(12)}}} for node in (0, 1, 2, 4)}
    trace.parent.mkdir(parents=True)

    def at_most(*begun: tuple[int, int]) -> int:
        trace.write_text("".join(json.dumps({"life": life, "round": round}) + "\n" for life, round in begun))
        write(federation, models, tmp_path, everyone=True)
        return int(json.loads((tmp_path / "privacy.json").read_text())["nodes"]["3"]["steps"])

    assert at_most((1, 1)) == 2 * 3  # as planned, whatever lines are lost
    assert at_most((1, 1), (2, 1), (2, 2)) == 2 * (3 + 2)  # each of the two lives may have begun one more


def epsilon_of(told: dict[str, Any]) -> float:
    from p2pfl.methods.privacy import Sampling

    return epsilon(told["noise"], Sampling(told["rows"], 16, planned=12), told["steps"], DELTA)


def test_each_adversary_has_a_figure_of_its_own(tmp_path: Path) -> None:
    more = {"privacy__correlated": 5.0, "privacy__adversary": [1, 3]}
    models = {node: {"private": {"privacy": {"steps": np.int32(12)}}} for node in range(5)}
    said = "\n".join(write(build(made(**more)), models, tmp_path))
    told = json.loads((tmp_path / "privacy.json").read_text())
    zero, one = told["nodes"]["0"]["against"], told["nodes"]["1"]["against"]
    assert zero["stranger"] < zero["neighbour"] <= zero["nodes 1, 3"] <= zero["neighbours"]
    assert set(one) == {"stranger", "neighbour", "neighbours"}
    assert told["coalition"]["nodes"] == [1, 3] and set(told["coalition"]["epsilon"]) == {"0", "2", "4"}
    for node, seen in told["coalition"]["epsilon"].items():
        assert seen <= told["nodes"][node]["against"]["nodes 1, 3"] + 1e-6
    assert "for any single other node, even if it reads all messages" in said and "for nodes 1, 3 epsilon is" in said


@pytest.mark.parametrize("more, told", [({}, "sums"), ({"secure": {"mixing": False}}, "told")])
@pytest.mark.parametrize("given", [{"name": "dsgd", "wrap": [{"name": "zip_dl", "scale": 0.1}]}, {"name": "push_sum"}])
def test_sums_of_statistics_go_to_each_neighbour_beside_what_differs(
    given: dict[str, Any], more: dict[str, Any], told: str
) -> None:
    graph = {"graph": "complete", "nodes": 4}
    federation = build(made(privacy=None, statistics={"normalize": True}, topology=graph, algorithm=given, **more))
    algorithm, around = federation.algorithm, Neighborhood(np.zeros(3), np.zeros(3))
    payload = jax.eval_shape(lambda p: algorithm.send(algorithm.init(p, 3), around)[1], model_shape(federation))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(payload)} == {3} and payload[told]


# --- effects


def scored(tmp_path: Path, name: str, **more: Any) -> float:
    settings = {"rounds": 20, "training__optimizer": FAST, **more}
    settings["evaluation"] = {"every": settings["rounds"]}
    done = run(made(**settings), tmp_path / name)
    return float(done.score_mean or 0)


@pytest.mark.more
def test_against_one_neighbour_shared_noise_costs_less_accuracy_than_a_nodes_own(tmp_path: Path) -> None:
    """Eight nodes that all hear all, the same epsilon against any single one, each with as little noise as does."""
    budget = {"clip": 1.0, "epsilon": 1.0, "delta": DELTA}
    graph = {"graph": "complete", "nodes": 8}
    own = scored(tmp_path, "own", topology=graph, privacy=budget)
    shared = {**budget, "correlated": 200.0, "adversary": "neighbour"}
    assert scored(tmp_path, "shared", topology=graph, privacy=shared) > own + 0.1


@pytest.mark.soak
def test_updates_cost_more_than_rows_and_laplace_more_than_gauss(tmp_path: Path) -> None:
    def at(name: str, **more: Any) -> float:
        privacy = {"clip": 1.0, "epsilon": 30.0, "delta": DELTA, **more}
        return scored(tmp_path, name, rounds=10, privacy=privacy)

    rows_, gauss = at("rows"), at("gauss", of="updates")
    laplace = at("laplace", of="updates", law="laplace", clip=10.0)
    assert rows_ > gauss + 0.05 and gauss > laplace + 0.05


@pytest.mark.more
def test_noise_that_cancels_costs_less_than_noise_that_does_not(tmp_path: Path) -> None:
    """On each message noise of .3: another for each neighbour with the sum zero, or one for all, kept in the model."""
    zipped = {"name": "dsgd", "wrap": [{"name": "zip_dl", "scale": 0.3}]}
    plain = scored(tmp_path, "plain", privacy=None)
    cancels = scored(tmp_path, "zip", privacy=None, algorithm=zipped)
    stays = scored(tmp_path, "own", privacy={"clip": 10.0, "noise": 0.03, "delta": DELTA, "of": "updates"})
    assert cancels > plain - 0.05 and cancels > stays + 0.05


@pytest.mark.soak
def test_chunks_are_a_fraction_of_the_bytes_and_train_far_better_than_alone(tmp_path: Path) -> None:
    """Unlike rows, eight nodes that all hear all, a seventh of the model in each message; whole ones train better."""
    more = {
        "topology": {"graph": "complete", "nodes": 8}, "privacy": None,
        "data": {"source": "digits", "partition": "dirichlet", "alpha": 0.3},
    }  # fmt: skip
    chunks = {"name": "dsgd", "wrap": [{"name": "shatter", "chunks": 7}]}
    plain, alone = scored(tmp_path, "plain", **more), scored(tmp_path, "alone", **more, algorithm={"name": "local"})
    assert alone + 0.2 < scored(tmp_path, "chunks", **more, algorithm=chunks) < plain - 0.03
    sizes = [message_sizes(build(made(**more, **one))).nbytes.sum() for one in ({}, {"algorithm": chunks})]
    assert sizes[1] < sizes[0] / 6


@pytest.mark.more
def test_every_driver_tells_each_neighbour_the_same(tmp_path: Path) -> None:
    """Nodes on a virtual network and the plain loop, to the bit: also where a message knows whom it is for."""
    digests, wrap = [], {"name": "zip_dl", "scale": 0.1}
    for kind in ({"kind": "virtual"}, {"kind": "simulate", "loop": True}):
        more = {"algorithm": {"name": "dsgd", "wrap": [wrap]}, "driver": kind, "rounds": 3, "privacy__of": "updates"}
        digests.append(run(made(**more, evaluation={"every": 3}), tmp_path / kind["kind"]).digests)
    assert len(digests[0]) == 5 and digests[0] == digests[1]
