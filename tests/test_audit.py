"""What a neighbour gets: attacks against what they are said to attain, and against what they may know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from click.testing import CliRunner

from p2pfl import topology
from p2pfl.cli import main
from p2pfl.config import experiment as config
from p2pfl.config.data import EvenPartition
from p2pfl.config.experiment import Experiment
from p2pfl.data import Dataset, Samples
from p2pfl.errors import ConfigError
from p2pfl.federation.federation import build
from p2pfl.learning import from_flax, models
from p2pfl.methods import audit as attacks
from p2pfl.methods.audit import Overheard
from p2pfl.methods.audit.heard import flat, shaped
from p2pfl.methods.audit.score import nearness
from p2pfl.reporting import leaks
from p2pfl.runs import audit as audits
from p2pfl.runs.audit import AuditQuestion, Case, Transcript

TABLE: Mapping[str, Any] = {
    "name": "leak", "rounds": 1, "baselines": False,
    "data": {"source": "digits", "partition": "iid"},
    "model": {"name": "mlp", "hidden": [32]},
    "training": {"optimizer": {"name": "sgd", "learning_rate": 0.1}, "batch_size": 1, "local_steps": 1},
    "topology": {"graph": "ring", "nodes": 4}, "algorithm": {"name": "dsgd"}, "driver": {"kind": "simulate"},
}  # fmt: skip


def experiment(**given: Any) -> Experiment:
    """The experiment with these fields of [training], or other tables in place of its own."""
    training = {name: given.pop(name) for name in ("batch_size", "local_steps") if name in given}
    table = {**TABLE, **given, "training": {**TABLE["training"], **training}}
    return config.parse(table, "leak.toml", Experiment)


def attacked(told: Transcript, iterations: int = 200) -> dict[str, float]:
    """PSNR of each attack of node 0 on node 1, in the first round."""
    heard = audits.heard_by(told, 0)
    found = audits.invert_by_all(audits.change_of(heard, 1), heard, AuditQuestion(iterations=iterations))
    truth = audits.rows_of(told.federation, 1, [1])
    return {name: nearness(rows, truth, heard.low, heard.high).psnr for name, rows in found.items()}


# --- reconstruction


def test_one_row_comes_back_in_closed_form_and_noise_lowers_that_monotonically() -> None:
    pytest.importorskip("dp_accounting")
    own = experiment()
    found = []
    for noise in (0.0, 0.01, 0.1):
        told = audits.overhear(audits._with(own, Case(1, 1, noise, False)))
        heard = audits.heard_by(told, 0)
        row = attacks.closed_form(audits.change_of(heard, 1), heard.x.shape[1:])
        assert row is not None
        found.append(nearness(row[None], audits.rows_of(told.federation, 1, [1]), heard.low, heard.high).psnr)
    assert found[0] > 60
    assert found == sorted(found, reverse=True) and found[1] > 15 and found[-1] < 12


@pytest.mark.more
def test_noise_on_updates_is_attacked_as_it_is() -> None:
    pytest.importorskip("dp_accounting")
    own = experiment(privacy={"clip": 1.0, "delta": 1e-5, "noise": 1.0, "of": "updates"})
    found = []
    for noise in (1e-4, 0.1):
        told = audits.overhear(audits._with(own, Case(1, 1, noise, False)))
        heard = audits.heard_by(told, 0)
        row = attacks.closed_form(audits.change_of(heard, 1), heard.x.shape[1:])
        assert row is not None
        found.append(nearness(row[None], audits.rows_of(told.federation, 1, [1]), heard.low, heard.high).psnr)
    assert found[0] > 25 and found[1] < 15


@pytest.mark.more
def test_searches_find_four_rows_of_a_step_and_neither_they_nor_a_guess_find_those_of_eight_steps_of_32(
    optax_promotes: None,
) -> None:
    four = attacked(audits.overhear(experiment(batch_size=4)), 200)
    assert min(four["dlg"], four["cosine"]) > 18 > four["guess"]
    many = attacked(audits.overhear(experiment(batch_size=32, local_steps=8)), 30)
    assert max(many[name] for name in ("closed form", "dlg", "cosine")) < 12


@pytest.mark.more
def test_a_mixture_is_what_the_closed_form_finds_of_several_rows() -> None:
    """Of two rows a combination of both, with the shares that the biases have: no row, and no rounding either."""
    x = np.random.default_rng(0).uniform(size=(2, 6)).astype(np.float32)
    learner = from_flax(models.logistic((6,), 3), x[:1], 3)
    params = learner.init(jax.random.key(0))
    gradient, _, _ = learner.grad(params, {"x": jnp.asarray(x), "y": jnp.array([0, 1], jnp.int32)}, jax.random.key(0))
    change = attacks.LocalChange(1, 1, params, {"trained": gradient, "carried": {}}, 1, 2)
    found = attacks.closed_form(change, (6,))
    assert found is not None
    share = np.linalg.lstsq(x.T.astype(np.float64), found, rcond=None)
    np.testing.assert_allclose(x.T @ share[0], found, atol=1e-5)
    assert nearness(found[None], x, np.zeros(()), np.ones(())).psnr < 40


@pytest.mark.more
def test_labels_follow_from_the_last_bias() -> None:
    told = audits.overhear(experiment())
    heard = audits.heard_by(told, 0)
    federation = told.federation
    place = audits.places_of(federation, 1, [1])
    truth = federation.dataset.train.y[federation.partition.train[1][place]]
    assert attacks.labels(audits.change_of(heard, 1), heard).tolist() == truth.tolist()
    many = audits.overhear(experiment(batch_size=16))
    heard, federation = audits.heard_by(many, 0), many.federation
    place = audits.places_of(federation, 1, [1])
    truth = np.bincount(federation.dataset.train.y[federation.partition.train[1][place]], minlength=10)
    found = np.bincount(attacks.labels(audits.change_of(heard, 1), heard), minlength=10)
    assert found.sum() == 16 and np.abs(found - truth).sum() <= 4


# --- what an attack may know


@pytest.mark.more
def test_an_attack_needs_nothing_that_a_neighbour_has_not(optax_promotes: None) -> None:
    """Rows of others, and messages that are not the node's, are spoiled before the attack: it finds the same."""
    told = audits.overhear(experiment(rounds=2))
    heard = audits.heard_by(told, 0)
    before = everything(heard)
    assert {key[1] for key in heard.payloads} == {0, 1, 3}  # of the ring of four node 2 is no neighbour
    own = told.federation.partition.train[0]
    others = np.setdiff1d(np.arange(len(told.federation.dataset.train.x)), own)
    np.testing.assert_array_equal(heard.x, told.federation.dataset.train.x[own])
    for data in (told.federation.dataset.train, told.plain.dataset.train):
        data.x[others], data.y[others] = np.nan, 0
    told.federation.dataset.test.x[:] = np.nan
    for key in [key for key in told.payloads if key[1] == 2]:
        for leaf in jax.tree.leaves(told.payloads[key]):
            leaf[...] = np.nan
    for mine, now in zip(before, everything(audits.heard_by(told, 0)), strict=True):
        np.testing.assert_array_equal(mine, now)
    secrets = {row.tobytes() for row in np.asarray(told.federation.dataset.train.x)[others]}
    assert not any(row.tobytes() in secrets for row in heard.x)


def everything(heard: Overheard) -> list[np.ndarray]:
    """What all attacks find, of what a node has and nothing else."""
    change = audits.change_of(heard, 1)
    params = {**heard.first, **heard.payloads[2, 1]}
    known = attacks.knowledge(heard.facts.weights, 2, 0)
    return [
        *audits.invert_by_all(change, heard, AuditQuestion(iterations=5)).values(),
        attacks.class_images(heard, params, 5),
        attacks.by_loss(heard, params, heard.x, heard.y),
        attacks.by_shadows(heard, params, heard.x, heard.y, shadows=2, steps=5),
        *attacks.solve_steady(known, heard).values(),
        *(each.change for each in attacks.solve(known, heard, attacks.exact(known))),
    ]


@pytest.mark.more
def test_of_a_masked_run_a_node_has_sums_alone_and_they_are_what_is_attacked(
    tmp_path: Path, optax_promotes: None
) -> None:
    """Four nodes that hear all, one row a step: unmasked the row comes back, of the sum of three no row does."""
    masked = experiment(
        rounds=2, topology={"graph": "complete", "nodes": 4}, secure={"colluders": 1}, network={"sync": "barrier"}
    )
    (tmp_path / "leak.toml").write_text(config.dump(masked), "utf-8")
    asked = AuditQuestion(iterations=5, shadows=2, noise=())
    run = audits.simulate(tmp_path / "leak.toml", (), tmp_path / "run", asked, lambda text: None)
    found = audits.audit(run, asked)
    exact = {(row["own"], row["masks"]): row["psnr"] for row in found["inversion"] if row["attack"] == "closed form"}
    assert exact.keys() == {(True, True), (False, False)}  # the run as it is has masks
    assert exact[False, False] > 60 and exact[True, True] < 30
    assert not any(row["rounds"] for row in found["graph"]["nodes"])
    assert "in the sum of its neighbours" in leaks.headline(found)
    assert not any("with masks" in table.heads for table in leaks.tables(found))
    assert found["membership"]["round"] == 2


@pytest.mark.more
def test_with_masks_what_a_node_has_of_another_is_the_mean_of_its_neighbours() -> None:
    told = audits.overhear(experiment(rounds=2, topology={"graph": "complete", "nodes": 3}))
    heard = audits.heard_by(told, 0, masked=True)
    assert {key[1] for key in heard.payloads} == {0}
    last, model = audits._last(told, heard, 1)
    mean = (flat(told.payloads[2, 1]) + flat(told.payloads[2, 2])) / 2
    assert last == 2
    np.testing.assert_allclose(flat(model), mean, atol=1e-6)


# --- over the graph


def weights(graph: nx.Graph) -> np.ndarray:
    schedule = topology.schedule(graph, None)
    return np.stack([topology.matrix(schedule, row) for row in range(len(schedule.neighbor))])


@pytest.mark.parametrize(
    ("graph", "rounds", "exact", "steady"),
    [
        (nx.complete_graph(4), 2, {(i, r) for i in (1, 2, 3) for r in (1, 2)}, {1, 2, 3}),
        (nx.star_graph(3), 2, {(i, r) for i in (1, 2, 3) for r in (1, 2)}, {1, 2, 3}),  # from the hub
        # fresh contributions of others hide one another behind the neighbours; those that stay the same do not
        (nx.cycle_graph(6), 3, {(1, 1), (5, 1)}, {1, 2, 3, 4, 5}),
        (nx.cycle_graph(6), 2, {(1, 1), (5, 1)}, {1, 2, 4, 5}),
        (nx.path_graph(4), 3, {(1, 1)}, {1, 2, 3}),
    ],
)
def test_who_is_solved_for(graph: nx.Graph, rounds: int, exact: set[tuple[int, int]], steady: set[int]) -> None:
    known = attacks.knowledge(weights(graph), rounds, 0)
    assert set(attacks.exact(known)) == exact
    assert set(attacks.steady(known)) == steady
    masked = attacks.knowledge(weights(graph), rounds, 0, masked=True)
    assert set(attacks.exact(masked)) <= exact
    assert (1, 1) in attacks.exact(masked) or graph.degree[0] > 1  # a single neighbour is hidden by no mask


@pytest.mark.more
def test_contributions_that_are_solved_for_are_the_true_ones_and_a_row_comes_back_over_the_graph() -> None:
    """From the hub of a star everybody is solved for in every round: the row of round 2 comes back in closed form."""
    told = audits.overhear(experiment(rounds=2, topology={"graph": "complete", "nodes": 3}))
    heard = audits.heard_by(told, 0)
    known = attacks.knowledge(told.weights, 2, 0)
    for each in attacks.solve(known, heard, attacks.exact(known)):
        truth = audits._true_change(told, flat(heard.first), each.node, each.round)
        assert np.linalg.norm(each.change - truth) < 1e-3 * np.linalg.norm(truth)
        assert each.start is not None
        change = attacks.LocalChange(each.node, each.round, heard.first, shaped(each.change, heard.first), 1, 1)
        found = attacks.closed_form(change, heard.x.shape[1:])
        assert found is not None
        near = nearness(found[None], audits.rows_of(told.federation, each.node, [each.round]), heard.low, heard.high)
        assert near.psnr > 50


@pytest.mark.more
def test_steady_contributions_of_who_is_no_neighbour_are_solved_for_nearly() -> None:
    """On a line, all rows in every step, at a small rate: a node at distance 3 is solved for, nearly."""
    own = experiment(rounds=4, batch_size=3600, topology={"graph": "path", "nodes": 4})
    rule = {"name": "sgd", "learning_rate": 1e-2}
    told = audits.overhear(replace(own, training=replace(own.training, optimizer=rule)))
    heard = audits.heard_by(told, 0)
    found = attacks.solve_steady(attacks.knowledge(told.weights, 4, 0), heard)
    assert sorted(found) == [1, 2, 3]
    truth = audits._true_change(told, flat(heard.first), 3, 1)
    assert np.linalg.norm(found[3] - truth) < 0.3 * np.linalg.norm(truth)
    other = audits._true_change(told, flat(heard.first), 2, 1)
    assert np.linalg.norm(found[3] - other) > 2 * np.linalg.norm(found[3] - truth)


# --- of a model


@pytest.mark.more
def test_members_are_told_from_others_where_a_model_knows_its_rows_by_heart_and_not_before_it_was_trained(
    optax_promotes: None,
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 20)).astype(np.float32)
    y = rng.integers(0, 2, 240).astype(np.int32)
    told = audits.overhear(experiment())
    learner = from_flax(models.mlp((20,), 2, (32,)), x[:1], 2)
    first = learner.init(jax.random.key(0))
    facts = audits.heard_by(told, 0).facts._replace(learner=learner, classes=2, batch_size=16)
    heard = audits.heard_by(told, 0)._replace(facts=facts, first=first, x=x[160:], y=y[160:])
    trained = attacks.fitted(learner, first, x[:80], y[:80], np.tile(np.arange(80), (1, 1000, 1)), 0)[0]
    member = np.arange(160) < 80
    for score in (attacks.by_loss, attacks.by_shadows):
        known = attacks.told(score(heard, trained, x[:160], y[:160]), member)
        blank = attacks.told(score(heard, first, x[:160], y[:160]), member)
        assert known is not None and blank is not None
        assert known.auc > 0.8 and abs(blank.auc - 0.5) < 0.15


@pytest.mark.more
def test_rows_are_told_from_test_rows_of_the_same_site_where_sites_differ() -> None:
    """Sites whose inputs lie apart: by them alone a model that was trained on nothing would tell rows of others."""
    rng, site = np.random.default_rng(0), np.repeat(np.arange(3, dtype=np.int32), 60)
    x = (rng.normal(size=(180, 4)) + 10 * site[:, None]).astype(np.float32)
    rows = Samples(x, rng.integers(0, 2, 180).astype(np.int32), site)
    data = Dataset(rows, rows, ("no", "yes"), sites=("a", "b", "c"))
    own = experiment(topology={"graph": "complete", "nodes": 3}, data={"source": "digits", "partition": "by_site"})
    federation = build(own, data)
    found, _, member = audits._candidates(federation, 2, 0)
    assert len(found) == 120 and audits._others(federation, 2)[1]
    apart = attacks.told(found.mean(axis=1), member)
    assert apart is not None and abs(apart.auc - 0.5) < 0.1
    dealt = federation._replace(experiment=replace(own, data=replace(own.data, partition=EvenPartition("iid"))))
    assert not audits._others(dealt, 2)[1] and len(audits._others(dealt, 2)[0]) == 180


@pytest.mark.more
def test_what_is_found_of_a_class_the_model_takes_for_it_more_surely(optax_promotes: None) -> None:
    told = audits.overhear(experiment())
    heard = audits.heard_by(told, 0)
    params = {**heard.first, **heard.payloads[1, 1]}
    found = attacks.class_images(heard, params, 100)
    middle = np.broadcast_to((heard.low + heard.high) / 2, found.shape).astype(found.dtype)
    before, after = (attacks.by_loss(heard, params, x, np.arange(10)) for x in (middle, found))
    assert (after > before + 1).all()  # log odds: its class is likelier by a factor of e and more


@pytest.mark.more
def test_a_layer_has_as_many_equations_as_its_kernel_and_what_gets_through_allow() -> None:
    x = np.random.default_rng(0).uniform(size=(8, 8, 1)).astype(np.float32)

    def ranks(make: Any) -> attacks.RankIndex:
        found = attacks.rank_index(from_flax(make, x[None], 3).init(jax.random.key(0)), x, 1)
        assert found is not None
        return found

    dense = ranks(models.mlp((8, 8, 1), 3, (16,)))
    assert dense.total == 0 and [each.rank for each in dense.layers] == [64, 16]
    thin, wide = (ranks(models.cnn((8, 8, 1), 3, (channels,))) for channels in (1, 8))
    # a single channel lets a number through for four pixels at most, and its kernel has nine: at most 16 + 9
    assert thin.layers[0].rank is not None and thin.layers[0].rank <= 25
    assert wide.layers[0].rank == 64 and thin.total is not None and thin.total < 0 == wide.total
    assert attacks.rank_index(from_flax(models.unet((8, 8, 1), 3, (4,)), x[None], 3, "segmentation").init(
        jax.random.key(0)), x, 1) is None  # fmt: skip


# --- the command


@pytest.mark.more
def test_a_leak_report_of_an_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optax_promotes: None) -> None:
    monkeypatch.chdir(tmp_path)
    Path("leak.toml").write_text(config.dump(experiment(rounds=2)), "utf-8")
    cheap = ["--iterations", "5", "--shadows", "2", "--noise", "", "--out", "run", "--json"]
    done = CliRunner().invoke(main, ["audit", "leak.toml", *cheap], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    page = Path("run/report.html").read_text("utf-8")
    assert "What a neighbour gets" in page and "Rows that came back" in page
    assert "data:image/png" in page and "img-src data:" in page  # else a browser shows none of them
    found = json.loads(done.stdout)
    assert found == json.loads(Path("run/audit/audit.json").read_text("utf-8"))
    exact = [row for row in found["inversion"] if row["attack"] == "closed form" and row["own"]]
    assert exact[0]["psnr"] > 60 and found["graph"]["nodes"][1]["distance"] == 2
    assert {row["masks"] for row in found["inversion"]} == {True, False}
    member = found["membership"]
    assert not member["same_site"] and 0.3 < member["guess"]["auc"] < 0.7  # digits are dealt at random
    text = "\n".join(leaks.lines(found))
    assert "by the model before the first round" in text
    assert "closed form" in text and "LiRA" in text and "with masks" in text
    refused = CliRunner().invoke(main, ["audit", "run", "--set", "rounds=1"])
    assert refused.exit_code == 1 and "--set" in refused.output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"source": "quadratic"}, "model": None}, "has no rows"),
        ({"algorithm": {"name": "push_sum"}}, "algorithm.name='push_sum'"),
        ({"algorithm": {"name": "dsgd", "arguments": {"order": "cta"}}}, "algorithm.name='dsgd'"),
        ({"algorithm": {"name": "dsgd", "wrap": [{"name": "fourier"}]}}, r"algorithm.wrap\[0\]: with fourier"),
        (
            {"algorithm": {"name": "dsgd", "wrap": [{"name": "zip_dl", "scale": 0.1}]}},
            r"algorithm.wrap\[0\]: with zip_dl",
        ),
        (
            {"algorithm": {"name": "dsgd", "wrap": [{"name": "shatter", "chunks": 4}]}},
            r"algorithm.wrap\[0\]: with shatter",
        ),
        ({"algorithm": {"name": "dmsgd", "arguments": {"mix_momentum": True}}}, "mix_momentum"),
        ({"privacy": {"clip": 1.0, "delta": 1e-5, "noise": 1.0, "correlated": 2.0}}, "privacy.correlated=2"),
        ({"statistics": {"gather": ["labels"]}}, "statistics"),
    ],
)
def test_what_cannot_be_attacked_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        audits.check(experiment(**change), AuditQuestion())


def test_nodes_with_rows_of_their_own_and_what_is_no_run_are_refused(tmp_path: Path) -> None:
    study, run, node = (tmp_path / name for name in ("study", "run", "node"))
    (run / "nodes" / "0").mkdir(parents=True)
    for folder in (study, node):
        folder.mkdir()
    for folder in (study, run):
        (folder / "experiment.toml").write_text(config.dump(experiment()), "utf-8")
    (run / "summary.json").write_text("{}", "utf-8")
    file = run / "nodes" / "0" / "node.toml"
    file.write_text('experiment = "../../experiment.toml"\nnode = 0\n[data]\npath = "own.csv"\n', "utf-8")
    (node / "about.json").write_text("{}", "utf-8")
    for what, said in (
        (run, "node 0 trained on rows of its own"), (file, "of a node with rows of its own"),
        (node, "of a single node"), (study, "no run of it"),
    ):  # fmt: skip
        refused = CliRunner().invoke(main, ["audit", str(what)])
        assert refused.exit_code == 1 and said in refused.output
        assert not any(tmp_path.rglob("audit"))


def test_the_report_says_what_of_the_experiment_was_left_out() -> None:
    own = experiment(churn=[{"event": "crash", "node": 1, "round": 1}], network={"loss": 0.1})
    patient = replace(own, training=replace(own.training, patience=2))
    bare, left_out = audits._bare(patient, None)
    assert left_out == ["churn", "network.loss", "rows held back for validation"]
    assert bare.training.patience is None and not bare.churn and not bare.network.loss


def test_objectives_and_numbers_that_mean_nothing_are_refused() -> None:
    own = experiment()
    for name in ("moon", "medisecfed"):  # of the latter no model travels
        given = replace(own, training=replace(own.training, objective=({"name": name},)))
        with pytest.raises(ConfigError, match=name):
            audits.check(given, AuditQuestion())
    for asked in (AuditQuestion(steps=(0,)), AuditQuestion(noise=(-1.0,))):
        with pytest.raises(ConfigError, match="must be > 0"):
            audits.check(own, asked)
    with pytest.raises(ConfigError, match="choose one of them"):
        audits._victim(build(own), AuditQuestion(victim=2))
