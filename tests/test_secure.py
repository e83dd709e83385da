"""Sums nobody sees: what travels is uniform, what is learned is the sum, and less than all of it is nothing."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import nacl.bindings
import networkx as nx
import numpy as np
import pytest
import tenseal
from federations import at_once, federation_of, looped
from scipy.stats import chisquare
from small import Case, write

from p2pfl import topology, tree
from p2pfl.config import experiment
from p2pfl.drivers.simulate import loop
from p2pfl.drivers.virtual.run import Memory
from p2pfl.drivers.virtual.world import World
from p2pfl.errors import ConfigError, LocalError, RemoteError
from p2pfl.federation import federation as build
from p2pfl.federation import secure
from p2pfl.federation.federation import Federation
from p2pfl.federation.tasks import tasks
from p2pfl.methods import ring_sum, statistics
from p2pfl.methods.statistics import chacha
from p2pfl.methods.statistics.masked_sums import LIMBS, _total, _unpacked, in_fixed_point
from p2pfl.node import model_file, records, secrets
from p2pfl.node.masked import MaskedSums
from p2pfl.node.replica import Replica
from p2pfl.node.task import Booked, Task
from p2pfl.node.worker import Host, Worker
from p2pfl.protocol.messages import Offer
from p2pfl.runs import gossiped, keyed, simulated, virtual
from p2pfl.trust import keyring, keys, masks

SECURE = '\n[secure]\ncolluders = 1\n[network]\nsync = "barrier"\n'


SECURED: dict[str, Any] = {
    "name": "t", "rounds": 4, "data": {"source": "digits"}, "model": {"name": "logistic"},
    "training": {"optimizer": {"name": "sgd", "learning_rate": 0.1}},
    "topology": {"graph": "complete", "nodes": 5}, "algorithm": {"name": "dsgd"}, "secure": {},
    "network": {"sync": "barrier"},
}  # fmt: skip


def uniform(raw: bytes) -> float:
    """The p-value of bytes as draws of a uniform one."""
    return float(chisquare(np.bincount(np.frombuffer(raw, np.uint8), minlength=256)).pvalue)


# --- secrets


def rings(nodes: int, federation: str = "f") -> list[keyring.Keyring]:
    private = [keys.PrivateKey(bytes([i + 1]) * 32) for i in range(nodes)]
    public, names = {i: each.public for i, each in enumerate(private)}, {i: f"site {i}" for i in range(nodes)}
    return [keyring.of(private[i], i, public, names, federation) for i in range(nodes)]


def test_two_sites_agree_on_a_secret_that_no_other_pair_and_no_other_federation_has() -> None:
    first = rings(4)
    found = {frozenset((i, j)): masks.of_keys(first[i])(j) for i in range(4) for j in range(4) if i != j}
    for pair, secret in found.items():
        i, j = sorted(pair)
        assert masks.of_keys(first[i])(j) == masks.of_keys(first[j])(i) == secret
    assert len(set(found.values())) == 6
    assert masks.of_keys(rings(4, "g")[0])(1) not in found.values()
    with pytest.raises(KeyError):
        masks.of_keys(first[0])(4)


def test_bits_differ_with_whatever_they_are_for_and_are_uniform() -> None:
    one, other = (masks.stream(bytes([k]) * 32, b"round 1", 1 << 16) for k in (1, 2))
    assert one != other and one != masks.stream(bytes([1]) * 32, b"round 2", 1 << 16)
    assert one[:100] == masks.stream(bytes([1]) * 32, b"round 1", 100)
    assert uniform(one) > 1e-3 and uniform(bytes(a ^ b for a, b in zip(one, other, strict=True))) > 1e-3


def test_what_jax_computes_is_chacha20() -> None:
    rng = np.random.default_rng(0)
    key, nonce = rng.bytes(32), rng.bytes(12)
    found = np.asarray(chacha.blocks(statistics.words(key), statistics.words(nonce), 1, 5)).astype("<u4").tobytes()
    sealed = nacl.bindings.crypto_aead_chacha20poly1305_ietf_encrypt(bytes(320), None, nonce, key)
    assert found == sealed[:320]


# --- whole numbers of which masks cancel


def sums(nodes: int, bits: int = 64, bound: float = 64.0) -> list[MaskedSums]:
    """Of nodes that all hear each other."""

    def around(members: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
        return {i: tuple(j for j in members if j != i) for i in members}

    return [MaskedSums(i, bits, bound, around, masks.of_seed(3, i), masks.stream) for i in range(nodes)]


def model(seed: int, size: int = 3000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"a": rng.normal(size=size).astype(np.float32), "b": rng.normal(size=(2, 3)).astype(np.float32)}


@pytest.mark.parametrize("bits", [32, 64])
def test_the_sum_of_masked_models_is_that_of_plain_ones_to_the_bit_and_less_is_noise(bits: int) -> None:
    made, members, weight = sums(5, bits), tuple(range(5)), 0.2
    shares = {i: made[i].share(model(i), weight) for i in range(1, 5)}
    sent = {i: made[i].masked(shares[i], 0, members, epoch=7, round=2) for i in shares}

    def total(parts: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *leaves: functools.reduce(np.add, leaves), *parts)

    assert tree.digest(total([*sent.values()])) == tree.digest(total([*shares.values()]))
    for few in ([1], [1, 2], [1, 2, 3], [2, 3, 4]):
        assert uniform(total([sent[i] for i in few])["a"].tobytes()) > 1e-3
        assert uniform(total([shares[i] for i in few])["a"].tobytes()) < 1e-12  # what is not masked is not uniform
    means = made[0].mean([*sent.values()], model(0), 4 * weight)
    assert means is not None
    true = np.mean([model(i)["a"].astype(np.float64) for i in shares], axis=0)
    np.testing.assert_allclose(means[0]["a"], true, atol=4 / made[0].scale + 1e-7)
    assert means[0]["a"].dtype == np.float32 and means[0]["b"].shape == (2, 3)


def test_masks_are_of_one_epoch_one_round_and_one_receiver() -> None:
    made, members = sums(4), (0, 1, 2, 3)
    share = made[1].share(model(1), 0.3)
    sent = [made[1].masked(share, *at) for at in ((0, members, 7, 2), (0, members, 7, 3), (0, members, 8, 2),
                                                  (2, members, 7, 2))]  # fmt: skip
    for i, one in enumerate(sent):
        for other in sent[:i]:  # the difference of two says nothing
            assert uniform((one["a"] - other["a"]).tobytes()) > 1e-3
    others = [made[i].masked(made[i].share(model(i), 0.3), 0, members, 7, 2) for i in (2, 3)]
    assert made[0].mean([sent[0], *others], model(0), 0.9) is not None
    assert made[0].mean([sent[1], *others], model(0), 0.9) is None  # of two rounds


@pytest.mark.parametrize("bits", [32, 64])
def test_what_is_no_sum_is_seen_and_numbers_at_the_bound_are_one(bits: int) -> None:
    made, few = sums(4, bits), {"a": np.full(3, -64.0, np.float32)}
    parts = [made[i].masked(made[i].share(few, 0.25), 0, (0, 1, 2, 3), 7, 2) for i in (1, 2, 3)]
    means = made[0].mean(parts, few, 0.75)
    assert means is not None
    np.testing.assert_allclose(means[0]["a"], few["a"], rtol=1e-6)
    value = np.array([0, 0, int(1.5 * 64 * 0.75 * made[0].scale)]).astype(made[0].dtype)
    nothing = np.zeros(3, made[0].dtype)
    assert made[0].mean([{"a": value}, {"a": nothing}, {"a": nothing}], few, 0.75) is None
    rng = np.random.default_rng(0)
    noise = [{"a": rng.integers(0, 2**bits, 3, made[0].dtype)} for _ in range(1000)]
    taken = sum(made[0].mean([each, {"a": nothing}, {"a": nothing}], few, 0.75) is not None for each in noise)
    assert taken < (90 if bits == 32 else 1)  # 53 of (0.75 / 2)^3


def test_a_number_that_has_no_place_ends_the_node_and_is_named() -> None:
    one = sums(3)[0]
    for value in (65.0, np.nan, -np.inf):
        with pytest.raises(ValueError, match=r"a/b holds .*secure.bound=64"):
            one.share({"a": {"b": np.array([0.0, value])}}, 0.5)
    np.testing.assert_array_equal(one.share({"told": np.array([3], np.int32)}, 0.5)["told"], [3])


# --- graphs


def test_who_solves_for_a_single_model_is_found() -> None:
    def w(graph: nx.Graph) -> np.ndarray:
        found = topology.matrix(topology.schedule(graph)).copy()
        np.fill_diagonal(found, 0)
        return found

    assert secure.solvable(w(nx.complete_graph(5)), 3) is None  # two are left besides
    assert secure.solvable(w(nx.complete_graph(5)), 4) is not None
    assert secure.solvable(w(nx.cycle_graph(6)), 1) is None
    group, victim = secure.solvable(w(nx.cycle_graph(6)), 2) or ((), 0)
    assert len(group) == 2 and victim not in group
    path = w(nx.path_graph(3))
    assert secure.solvable(path, 1) == ((0,), 1)  # one neighbour


def test_the_part_of_a_graph_in_which_all_have_enough_goes_on() -> None:
    graph = nx.complete_graph(5)
    graph.add_edges_from([(4, 5), (5, 6), (6, 4)])
    left, resting = secure.core(topology.schedule(graph), 3)
    assert resting == (5, 6)
    w = topology.matrix(left, 0, "row")
    assert (w[5:, :5] == 0).all() and (w[:5, 5:] == 0).all() and ((w[:5, :5] > 0).sum(axis=1) == 5).all()
    np.testing.assert_allclose(w, w.T)
    assert secure.core(topology.schedule(nx.cycle_graph(5)), 3)[1] == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("gone, rests", [((), False), ((5,), True), ((3, 5), True)])
def test_where_those_who_are_left_solve_for_a_single_model_nobody_mixes(gone: tuple[int, ...], rests: bool) -> None:
    """Of an octahedron without one a wheel is left, in which all have enough neighbours: the sum of the hub less that
    of a rim node is of one node alone."""
    whole = topology.schedule(nx.octahedral_graph())  # opposite: 0 and 5, 1 and 4, 2 and 3
    asked = experiment.parse(SECURED, "t", experiment.Experiment)
    secure.check_graph(whole, 3, 1)
    members = [i for i in range(6) if i not in gone]
    graph = topology.schedule(nx.convert_node_labels_to_integers(nx.octahedral_graph().subgraph(members)))
    left, said = secure.resting(asked, graph, members)
    assert bool((left.weight > 0).any()) != rests and bool(said) == rests
    if gone == (5,):
        assert ((graph.weight[0] > 0).sum(axis=1) >= 3).all() and "would solve for the model of node" in said


# --- models, in every driver


def small(folder: Path, case: Case, more: str = SECURE, rounds: int = 6, *given: str) -> Federation:
    file = write(folder, case, rounds=rounds, timing={})
    text = file.read_text().replace("[network]\nloss = 0.0\n[network.timing]\n", more)
    file.write_text(text)
    return build.build(experiment.load(file, ['driver.kind="virtual"', *given]))


def of_loop(made: Federation) -> list[Any]:
    course = simulated.course_of(made)
    return loop.run(tasks(made), simulated.deliveries(made), lambda *given: None, lambda: 0.0, course)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case("dsgd", "complete", 4), marks=pytest.mark.more),
        pytest.param(Case("gradient_tracking", "complete", 5), marks=pytest.mark.soak),
    ],
    ids=str,
)  # fmt: skip
def test_masked_models_end_in_the_bits_of_the_plain_loop_and_near_those_without(
    tmp_path: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that travels in virtual time is uniform; books balance; without masks the models are the same but for
    rounding."""
    seen, send = [], World.send

    def heard(self: World, source: Any, to: int, envelope: Any) -> None:
        if isinstance(envelope.message, Offer):
            seen.append(b"".join(bytes(frame) for frame in envelope.payload.frames))
        send(self, source, to, envelope)

    monkeypatch.setattr(World, "send", heard)
    made = small(tmp_path, case, SECURE, 40)
    figures = virtual.collected(made, tmp_path, virtual.into(made, tmp_path)).summary
    assert figures.digests == {str(i): tree.digest(each) for i, each in enumerate(of_loop(made))}
    assert figures.residue == 0 and figures.mean_residual is not None and figures.mean_residual < 1e-6
    assert len(seen) == 40 * case.nodes * (case.nodes - 1) and uniform(b"".join(seen)) > 1e-3
    plain = build.build(dataclasses.replace(made.experiment, secure=None))
    np.testing.assert_allclose(looped(made), looped(plain), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(looped(made), at_once(made), rtol=1e-4, atol=1e-5)


@pytest.mark.more
def test_where_masks_do_not_cancel_nothing_is_mixed_and_records_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node 1 has secrets of another run: only its own neighbourhood is without it, and whole."""
    other, said = masks.of_seed, list[str]()

    def of_seed(seed: int, node: int) -> masks.Secret:
        return other(seed + (node == 1), node)

    monkeypatch.setattr(masks, "of_seed", of_seed)
    made = small(tmp_path, Case("dsgd", "complete", 4), SECURE, 3)
    figures = virtual.collected(made, tmp_path, virtual.into(made, tmp_path, say=said.append)).summary
    assert figures.residue and figures.residue == 3 * 3  # of each edge of node 1 its end alone has booked
    for node in range(4):
        there = tmp_path / "nodes" / str(node)
        traced = [line for line in records.read(there / "trace.jsonl") if "booked" in line]
        measured = records.read(there / "metrics.jsonl")
        assert [len(line["booked"]) for line in traced] == [3 * (node == 1)] * 3
        assert [len(line["arrived"]) for line in measured] == [3 * (node == 1)] * 3
    assert sum("masks do not cancel" in line for line in said) == 3 * 3


OCTAHEDRON = ("topology.arguments.k=4", "topology.arguments.p=0.0")  # on six nodes: all but the one opposite are beside


def test_what_is_handed_over_is_the_mean_of_all_or_the_first_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an octahedron nodes that are opposite have the same neighbours: of what one knows and the other has mixed the
    difference is the other's model."""
    found, train = dict[int, Replica](), Replica.train

    def trained(self: Replica, *args: Any) -> Any:
        found[self.task.node] = self
        return train(self, *args)

    monkeypatch.setattr(Replica, "train", trained)
    for graph, given, whole in (("complete", (), True), ("watts_strogatz", OCTAHEDRON, False)):
        made = small(tmp_path / graph, Case("dsgd", graph, 6), SECURE, 3, *given)
        assert secure.hands_over(made.schedule) == whole
        assert whole or any("begins with the first model" in note for note in made.notes)
        of_loop(made)
        models = [np.asarray(jax.tree.leaves(found[i].given(0, 3))[0]) for i in range(6)]
        first = np.asarray(jax.tree.leaves(made.learner.init(jax.random.key(made.experiment.seed))["trained"])[0])
        assert np.ptp(models, axis=0).max() < 1e-5  # nobody's own
        assert np.allclose(models[0], first) != whole
        alone = [np.asarray(jax.tree.leaves(found[i].payloads[3])[0]) for i in range(6)]
        assert np.ptp(alone, axis=0).max() > 1e-2


CHURN = """
[[churn]]
event = "crash"
node = 1
round = 4
[[churn]]
event = "rejoin"
node = 1
round = 8
"""


@pytest.mark.more
def test_who_drops_out_reveals_nothing_and_who_comes_back_gets_no_single_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round of the one that is gone is void, its neighbours go on in another epoch with other masks; what is handed
    to one that comes back is nobody's own model."""
    offers, given, own, send, train = {}, [], [], World.send, Replica.train  # type: ignore[var-annotated]

    def heard(self: World, source: Any, to: int, envelope: Any) -> None:
        message = envelope.message
        if isinstance(message, Offer):
            at = message.epoch, message.round, to
            frames = [np.frombuffer(frame, np.uint64) for frame in envelope.payload.frames]
            offers.setdefault(at, {})[source.facts.node] = np.concatenate(frames)
        elif type(message).__name__ == "Model":
            given.append(b"".join(bytes(frame) for frame in envelope.payload.frames))
        send(self, source, to, envelope)

    def trained(self: Replica, *args: Any) -> Any:
        found = train(self, *args)
        own.append(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(found[0])))
        return found

    monkeypatch.setattr(World, "send", heard)
    monkeypatch.setattr(Replica, "train", trained)
    made = small(tmp_path, Case("dsgd", "complete", 5), SECURE + CHURN, 12)
    figures = virtual.collected(made, tmp_path, virtual.into(made, tmp_path)).summary
    assert figures.lost == () and figures.exchanges_booked > 0 and np.isfinite(figures.consensus_distance or np.nan)
    less, members = [], {1: 5, 2: 4, 3: 5}
    for place, epoch in enumerate(dict.fromkeys(epoch for epoch, _, _ in offers), start=1):
        for each in (each for (of, _, _), each in offers.items() if of == epoch):
            if len(each) == members[place] - 1:  # of a whole neighbourhood the sum is a small number
                assert (np.abs(sum(each.values()).view(np.int64)) < 2.0**56).all()
            for few in range(1, min(len(each) + 1, members[place] - 1)):  # of less it is anything
                less.append(sum([*each.values()][:few]).tobytes())
    assert len(less) > 100 and uniform(b"".join(less)) > 1e-3
    assert given and not {*given} & {*own}
    assert len({epoch for epoch, _, _ in offers}) == 3  # all, without the one, with it again


@pytest.mark.more
def test_of_a_round_in_which_one_drops_out_half_way_a_neighbour_learns_nothing_and_the_next_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes 0 and 2 have the word of node 1 in round 4, and nodes 3 and 4 have not: to them all that came is uniform,
    and so is its difference from what comes in the next epoch, of the same nodes, which is a sum."""
    offers, send = dict[tuple[int, int, int], dict[int, np.ndarray]](), World.send

    def heard(self: World, source: Any, to: int, envelope: Any) -> None:
        message = envelope.message
        if isinstance(message, Offer):
            if source.facts.node == 1 and message.round == 4 and to > 2:
                self.at(0.0, source.crash)
                return
            frames = [np.frombuffer(frame, np.uint64) for frame in envelope.payload.frames]
            offers.setdefault((message.epoch, message.round, to), {})[source.facts.node] = np.concatenate(frames)
        send(self, source, to, envelope)

    monkeypatch.setattr(World, "send", heard)
    made = small(tmp_path, Case("dsgd", "complete", 5), SECURE, 8, "data.dim=200")
    assert virtual.collected(made, tmp_path, virtual.into(made, tmp_path)).summary.lost == (1,)
    first, then = dict.fromkeys(epoch for epoch, _, _ in offers)
    following = min(round for epoch, round, _ in offers if epoch == then)
    assert {*offers[first, 4, 0]} == {1, 2, 3, 4}
    for node, others in ((3, (0, 2, 4)), (4, (0, 2, 3))):
        came, again = offers[first, 4, node], offers[then, following, node]
        assert {*came} == {*again} == {*others}
        assert (np.abs(np.sum([*again.values()], axis=0).view(np.int64)) < 2.0**56).all()
        for few in (few for n in (1, 2, 3) for few in itertools.combinations(others, n)):
            part, redone = (np.sum([each[i] for i in few], axis=0) for each in (came, again))
            assert uniform(part.tobytes()) > 1e-4 and uniform((part - redone).tobytes()) > 1e-4
        traced = [line for line in records.read(tmp_path / "nodes" / str(node) / "trace.jsonl") if "booked" in line]
        booked = {line["round"]: len(line["booked"]) for line in traced}
        assert booked[3] == 4 and booked[4] == 0 and booked[following] == 3


# --- statistics


def counted(secure_table: dict[str, Any] | None, **more: Any) -> Federation:
    table: dict[str, Any] = {
        "name": "t", "rounds": 8, "data": {"source": "digits"}, "model": {"name": "logistic"},
        "training": {"optimizer": {"name": "sgd", "learning_rate": 0.1}, "batch_size": 8, "local_steps": 1},
        "topology": {"graph": "ring", "nodes": 5}, "algorithm": {"name": "dsgd"}, "evaluation": {"every": 8},
        "statistics": {"gather": ["labels", "moments"]}, "driver": {"kind": "simulate"}, "baselines": False,
    }  # fmt: skip
    return federation_of({**table, **({} if secure_table is None else {"secure": secure_table}), **more})


class Heard(NamedTuple):
    """A run of the plain loop, and all that was sent in it."""

    made: Federation
    models: list[Any]
    sent: list[tuple[int, int, Any]]  # (round, node, payload)


@pytest.fixture(scope="module")
def heard() -> Heard:
    made, sent, train = counted({"mixing": False}), [], Replica.train  # type: ignore[var-annotated]

    def trained(self: Replica, round: int, *args: Any) -> Any:
        found = train(self, round, *args)
        sent.append((round, self.task.node, jax.tree.map(np.asarray, found[0])))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replica, "train", trained)
        return Heard(made, of_loop(made), sent)


def in_whole(row: np.ndarray) -> list[int]:
    return [int(low) + (int(middle) << 32) + (int(high) << 64) for low, middle, high in row]


@pytest.mark.more
def test_masked_sums_are_those_of_all_to_the_bit_and_a_row_tells_nothing(heard: Heard) -> None:
    sites = heard.made.sites
    total = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64).sum(axis=0), sites["sums"])
    wanted = statistics.estimated(total)
    for each in heard.models:
        assert float(each["statistics"]["known"]) == 1
        np.testing.assert_allclose(each["statistics"]["labels"], wanted["labels"], rtol=1e-6)
        np.testing.assert_allclose(each["statistics"]["moments"]["mean"], wanted["moments"]["mean"], rtol=1e-5)
    rows = {node: payload["told"]["rows"][node] for round, node, payload in heard.sent if round == 8}
    plain = {node: np.asarray(sites["row"][node], np.uint32) for node in rows}
    for node, row in rows.items():
        assert uniform(row.astype("<u4").tobytes()) > 1e-3
        assert uniform(plain[node].tobytes()) < 1e-12
        assert not (row == plain[node]).any(axis=1).any()
    for few in ([0, 1, 2, 3], [1, 3, 4]):  # of less than all nothing is known
        part = [sum(column) % 2**96 for column in zip(*(in_whole(rows[i]) for i in few), strict=True)]
        assert uniform(b"".join(each.to_bytes(12, "little") for each in part)) > 1e-3
    masked, plainly = ([in_whole(each[node]) for node in rows] for each in (rows, plain))
    assert [sum(column) % 2**96 for column in zip(*masked, strict=True)] == [
        sum(column) % 2**96 for column in zip(*plainly, strict=True)
    ]


@pytest.mark.more
def test_all_drivers_find_the_same_and_nobody_speaks_or_trains_before(heard: Heard) -> None:
    flat = np.stack([np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(m["trained"])]) for m in heard.models])
    found = simulated.simulate_federation(heard.made).models["trained"]
    simulated_flat = np.concatenate([np.asarray(leaf).reshape(5, -1) for leaf in jax.tree.leaves(found)], axis=1)
    np.testing.assert_allclose(flat, simulated_flat, rtol=1e-4, atol=1e-5)
    assert secure.rounds(heard.made.experiment, heard.made.schedule) == 4  # a ring of five: two hops, twice
    first = heard.made.learner.init(jax.random.key(0))["trained"]
    for round, _, payload in heard.sent:
        same = all(
            np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(payload["inner"]["trained"]), jax.tree.leaves(first), strict=True)
        )
        assert same == (round <= 4)
        if round <= 2:
            assert not payload["told"]["said"].any() and not payload["told"]["rows"].any()  # nonces first


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"name": "dsgd", "wrap": [{"name": "zip_dl", "scale": 0.01}]}, marks=pytest.mark.more),
        pytest.param({"name": "push_sum"}, marks=pytest.mark.soak),
    ],
)
def test_masked_sums_go_with_what_sends_each_neighbour_something_else(given: dict[str, Any]) -> None:
    made = counted({"mixing": False}, algorithm=given)
    models, found = of_loop(made), simulated.simulate_federation(made).models
    assert (np.asarray(found["statistics"]["known"]) == 1).all()
    wanted = statistics.estimated(
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64).sum(axis=0), made.sites["sums"])
    )
    for i, each in enumerate(models):
        np.testing.assert_allclose(each["statistics"]["labels"], wanted["labels"], rtol=1e-6)
        for a, b in zip(jax.tree.leaves(each["trained"]), jax.tree.leaves(found["trained"]), strict=True):
            np.testing.assert_allclose(a, b[i], rtol=1e-4, atol=1e-5)


@pytest.mark.more
def test_numbers_of_96_bits_add_up_as_whole_numbers_do() -> None:
    rows = np.random.default_rng(0).integers(0, 2**32, (4, 500, LIMBS), dtype=np.uint32)
    found = _total(jnp.asarray(rows))
    columns = zip(*map(in_whole, rows), strict=True)
    assert in_whole(np.asarray(found)) == [sum(each) % 2**96 for each in columns]
    values = np.array([0.0, 1.0, -1.0, 2.5, -1e-9, 123456.789, -(2.0**40)])
    unpacked = _unpacked(jnp.asarray(in_fixed_point(values)), np.zeros(len(values), np.float32))
    np.testing.assert_allclose(unpacked, values, rtol=1e-6, atol=2.0**-48)


@pytest.mark.more
def test_a_node_that_goes_before_its_row_has_come_around_leaves_nothing_to_learn() -> None:
    made = counted({"mixing": False}, rounds=6)
    every = tasks(made)
    delivery = simulated.deliveries(made)
    active = np.array(delivery.active)
    active[2:, 3] = False  # it has told its nonce, and no row
    arrived = np.array(delivery.arrived)
    arrived[2:, 3] = False
    for r in range(2, 6):
        for i in range(5):
            arrived[r, i] &= made.schedule.neighbor[0, i] != 3
    gone = delivery._replace(active=active, arrived=arrived)
    with pytest.raises(LocalError, match="the masked sums of some node have not come around"):
        loop.run(every, gone, lambda *given: None, lambda: 0.0)


# --- with keys


class Goes:
    """What a site goes by while it runs."""

    def __init__(self, ring: keyring.Keyring | None) -> None:
        self.keyring = ring


@pytest.mark.more
def test_with_keys_masks_are_made_of_them_and_without_there_is_no_run_of_own_rows() -> None:
    first, goes = rings(5), [Goes(each) for each in rings(5)]
    made = tasks(counted({"colluders": 1}, topology={"graph": "complete", "nodes": 5}, network={"sync": "barrier"}))
    found = [keyed.masking("n.toml", task, cast(Any, goes[i]), True) for i, task in enumerate(made)]
    for i, task in enumerate(found):
        assert task.sums is not None and task.sums.secret((i + 1) % 5) == masks.of_keys(first[i])((i + 1) % 5)
        assert (
            np.asarray(task.site["secrets"][(i + 1) % 5]) == statistics.words(masks.of_keys(first[i])((i + 1) % 5))
        ).all()
    assert made[0].sums is not None and made[0].sums.secret(1) != masks.of_keys(first[0])(1)
    goes[0].keyring = None  # a member that is revoked while a round with it is under way
    assert found[0].sums is not None and len(found[0].sums.secret(1)) == masks.BYTES
    with pytest.raises(ConfigError, match=r"n.toml: federation: missing, and the experiment asks for \[secure\]"):
        keyed.masking("n.toml", made[0], None, True)
    assert keyed.masking("n.toml", made[0], None, False) is made[0]
    with pytest.raises(ConfigError, match="node 4 of the experiment is no member of the federation file"):
        keyed.masking("n.toml", made[0], cast(Any, Goes(rings(4)[0])), True)


def test_a_file_of_a_model_has_no_secrets_and_a_process_puts_in_its_own(tmp_path: Path) -> None:
    site = {
        "entropy": np.ones(2, np.uint32), "samples": np.ones(()), "sums": {"labels": np.ones(3)},
        "secrets": np.ones((2, 8), np.uint32), "row": np.ones((3, 3), np.uint32),
    }  # fmt: skip
    file = tmp_path / model_file.NAME
    model_file.write(file, {"trained": {"w": np.ones(2)}, "private": {"site": site}})
    found = model_file.read(file)
    kept = {name.removeprefix("private/site/") for name, leaf in found.items() if leaf.any()}
    assert len(found) == 6 and kept == {"trained/w", "samples"}
    del site["secrets"]  # without masks everybody is told of the sums
    model_file.write(file, {"private": {"site": site}})
    assert model_file.read(file)["private/site/sums/labels"].all()
    state = (secrets.without_secrets({"private": {"site": site}}), np.ones(1))
    assert not state[0]["private"]["site"]["entropy"].any() and state[0]["private"]["site"]["row"].all()
    again = secrets.with_own(state, {"entropy": np.full(2, 7, np.uint32), "row": np.zeros(1)})
    assert (again[0]["private"]["site"]["entropy"] == 7).all() and again[0]["private"]["site"]["row"].all()
    assert secrets.with_own(again, {})[0]["private"]["site"]["entropy"].all()


def worker(task: Task, folder: Path, shelf: Memory) -> Worker:
    return Worker(task, folder, Host(lambda: 0.0, lambda: (0, 0), lambda round: None, lambda text: None, shelf, 1))


@pytest.mark.more
def test_a_checkpoint_has_no_secrets_and_who_goes_on_has_those_of_its_keys(tmp_path: Path) -> None:
    task, shelf = tasks(counted({"mixing": False}))[0], Memory()
    first = worker(task, tmp_path, shelf)
    first.begin(1)
    first.replica.train(1, ())
    first.checkpoint()
    first.close()

    def site(state: Any) -> Any:
        return task.program.params(state)["private"]["site"]

    assert shelf.latest is not None
    assert site(first.replica.state)["secrets"].any() and not site(shelf.latest.state)["secrets"].any()
    again = worker(task._replace(site={**task.site, "secrets": task.site["secrets"] + 1}), tmp_path, shelf)
    again.resume()
    np.testing.assert_array_equal(site(again.replica.state)["secrets"], task.site["secrets"] + 1)
    np.testing.assert_array_equal(site(again.replica.state)["row"], task.site["row"])


def test_who_goes_on_from_a_checkpoint_hands_over_what_it_had_mixed_last(tmp_path: Path) -> None:
    made, shelf = small(tmp_path, Case("dsgd", "complete", 4), SECURE, 3), Memory()
    every = [Replica(task) for task in tasks(made)]
    first = worker(every[0].task, tmp_path, shelf)
    first.begin(1)
    for each in (*every[1:], first.replica):
        each.train(1, ())
    own = first.replica.side(1, 1)
    mixed = [Booked(j, 1, 1, 1, 1, own, every[j].sent(0, 1)) for j in (1, 2, 3)]
    assert len(first.replica.mix(1, mixed)) == 3
    shown = tree.digest(tree.public(first.replica.task.program.params(first.replica.state)))
    first.replica.train(2, ())
    first.checkpoint()  # after a round in which it mixed with nobody
    first.close()
    again = worker(every[0].task, tmp_path, shelf)
    again.resume()
    again.replica.train(3, ())
    program, task = again.task.program, again.task
    begun = tree.digest(tree.public(program.params(program.init(task.seed, task.site))))
    assert tree.digest(again.replica.given(1, 3)) == shown != begun


# --- homomorphic encryption


@pytest.mark.more
def test_a_ring_adds_up_what_only_the_first_can_read() -> None:
    own = np.random.default_rng(0).normal(0, 100, (4, 5000))  # more than a ciphertext holds
    ring = ring_sum.Ring(own[0])
    seen = [ring.message]
    for each in own[1:]:
        seen.append(ring_sum.passed(seen[-1], each))
    again = ring_sum.passed(seen[0], own[1])
    assert again != seen[1]  # what comes out is encrypted anew, so that it tells nothing beside what came in
    public = ring_sum._unpacked(seen[-1])[0]
    assert not tenseal.context_from(public).is_private()
    with pytest.raises(RemoteError, match="and here there are 3"):
        ring_sum.passed(seen[-1], own[0][:3])
    np.testing.assert_allclose(ring.end(seen[-1]), own.sum(axis=0), atol=1e-4)
    with pytest.raises(ValueError, match="a sum is read once"):
        ring.end(seen[-1])
    for wrong in (np.full(3, 1e9), np.full(3, np.nan), np.zeros(0)):
        with pytest.raises(ConfigError, match="ring: "):
            ring_sum.Ring(wrong)


# --- what can't be meant


@pytest.mark.parametrize(
    "table, text",
    [
        ({"network": {"sync": "deadline"}}, r'a round needs everyone; set network.sync = "barrier"'),
        ({"topology": {"graph": "ring", "nodes": 5}}, r"node 0 has 2 neighbours.*must have 3.*secure.colluders = 0"),
        ({"network": {"sync": "barrier", "loss": 0.1}}, r"network.loss=0.1: with \[secure\]"),
        ({"algorithm": {"name": "push_sum"}}, r"secure: push_sum.*sends one way"),
        ({"algorithm": {"name": "dsgd", "wrap": [{"name": "clip", "radius": 1.0}]}}, r"looks at each neighbour's"),
        ({"attack": [{"nodes": [0], "by": "label_flip"}, {"nodes": [1], "by": "noise"}]}, r"attack\[1\].by='noise'"),
        ({"topology": {"graph": "base", "nodes": 5}}, r"the graph changes from round to round"),
        ({"topology": {"graph": "complete", "nodes": 5, "take_part": 0.5}}, r"topology.take_part=0.5"),
        ({"secure": {"bound": 1e20}}, r"secure.bound=1e\+20: leaves no place behind the point"),
        ({"secure": {"colluders": 3}}, r"node 0 has 4 neighbours.*must have 5"),
        ({"secure": {"mixing": False}}, r"secure.mixing=false: nothing is masked"),
        ({"secure": {"mixing": False}, "statistics": {"gather": ["labels"]}, "rounds": 1}, r"rounds=1: word of all"),
    ],
)  # fmt: skip
def test_what_needs_single_models_is_refused_before_anything_starts(table: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        federation_of({**SECURED, **table})


@pytest.mark.parametrize("table", [{}, {"secure": {"mixing": False}, "statistics": {"gather": ["moments"]}}])
def test_a_fit_of_coefficients_which_has_no_masks_is_refused(table: dict[str, Any]) -> None:
    asked = experiment.parse({**SECURED, **table}, "t", experiment.Experiment)
    with pytest.raises(ConfigError, match=r"p2pfl coefficients: the experiment asks for \[secure\]"):
        gossiped.experiment_of(asked)


def test_early_churn_and_many_nodes_are_refused_where_sums_are_masked() -> None:
    with pytest.raises(ConfigError, match=r"crash in round 3: of a node that is away before word of all"):
        counted({"mixing": False}, churn=[{"event": "crash", "node": 2, "round": 3}])
    counted({"mixing": False}, churn=[{"event": "crash", "node": 2, "round": 5}])
