"""Liars: what each says, that they follow all the same, who is scored, what is refused, and what rules make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federations import NETWORK, TABLE, federation_of, flat

from p2pfl import tree
from p2pfl.algorithms import ALGORITHMS
from p2pfl.config import attack as tables
from p2pfl.config import experiment
from p2pfl.config.experiment import Experiment
from p2pfl.errors import ConfigError, TopologyError
from p2pfl.learning import quadratic
from p2pfl.methods.attack import LIES, lying
from p2pfl.methods.compose import withhold
from p2pfl.methods.robust import RULES
from p2pfl.runs import simulated
from p2pfl.runs.run import run
from p2pfl.types import Algorithm, Inbox, Neighborhood

K = 3
RNG = np.random.default_rng(0)
OWN, OTHERS = RNG.normal(size=4), RNG.normal(size=(K, 4))


def liar(by: str, scale: float | None = None, lies: bool = True, slots: int = K) -> tuple[Algorithm, Any]:
    """The algorithm, and the state of a liar (or of an honest node) with the model OWN."""
    base = ALGORITHMS["dsgd"](quadratic.learner(4), optax.sgd(0.1))
    site = {"liar": jnp.int32(lies), "lie": jnp.arange(2, dtype=jnp.uint32)}
    algorithm = lying(by, scale)(withhold(base))
    model = {"trained": {"x": jnp.asarray(OWN)}, "carried": {}, "private": {"site": site}}
    return algorithm, algorithm.init(model, slots)


AROUND = Neighborhood(jnp.full(K, 0.25, jnp.float32), jnp.full(K, 0.25, jnp.float32))


def told(algorithm: Algorithm, state: Any) -> tuple[Any, np.ndarray]:
    state, payload = algorithm.send(state, AROUND)
    return state, np.asarray(payload["trained"]["x"])


def heard(algorithm: Algorithm, state: Any, arrived: Any = (True,) * K) -> Any:
    """The state after OTHERS have arrived; what the node has sent is what `send` makes."""
    state, payload = algorithm.send(state, AROUND)
    sent = payload if algorithm.per_edge else jax.tree.map(lambda x: jnp.broadcast_to(x, (K, *x.shape)), payload)
    received = {"trained": {"x": jnp.asarray(OTHERS, sent["trained"]["x"].dtype)}, "carried": {}}
    inbox = Inbox(sent, received, jnp.asarray(arrived), jnp.zeros(K, jnp.int32))
    return algorithm.mix(state, inbox, AROUND)


def test_every_attack_of_the_file_is_one_that_there_is() -> None:
    named = {name for kind in tables.KINDS for name in get_args(get_type_hints(kind)["by"])}
    assert named == {*LIES, "label_flip"}
    scaled = {*get_args(get_type_hints(tables.ScaledAttack)["by"])}
    assert scaled == {name for name, lie in LIES.items() if lie.scale is not None}
    assert set(tables.EACH) == {name for name, lie in LIES.items() if lie.each}


@pytest.mark.more
@pytest.mark.parametrize("by", LIES)
def test_honest_nodes_say_what_they_have_and_liars_follow_as_if_they_were(by: str) -> None:
    honest, state = liar(by, lies=False)
    _, said = told(honest, state)
    assert (said == np.float32(OWN)).all()
    wanted = np.float32(OWN) + 0.25 * (OTHERS - OWN).sum(axis=0)
    for lies in (False, True):
        algorithm, state = liar(by, lies=lies)
        model = algorithm.params(heard(algorithm, state))["trained"]["x"]
        np.testing.assert_allclose(model, wanted, rtol=1e-5)
    assert algorithm.keeps_mean == "nothing" and not algorithm.linear


@pytest.mark.more
@pytest.mark.parametrize(
    "by, scale, wanted",
    [
        ("sign_flip", None, lambda x, every: -x),
        ("sign_flip", 10.0, lambda x, every: -10 * x),
        ("scaling", None, lambda x, every: 100 * x),
        ("nan", None, lambda x, every: np.full(4, np.nan)),
        ("alie", None, lambda x, every: x + every.mean(axis=0) - 1.5 * every.std(axis=0, ddof=1)),
        ("ipm", 0.5, lambda x, every: -0.5 * (x + every.mean(axis=0))),
        ("mimic", None, lambda x, every: x + every[1]),
        ("dissensus", 2.0, lambda x, every: np.stack([
            x + every[i] - 2 * sum(every[j] - every[i] for j in (1, 2, 3)) for i in (1, 2, 3)
        ])),
    ],
)  # fmt: skip
def test_what_a_liar_says(by: str, scale: float | None, wanted: Any) -> None:
    """`every`: the closed neighbourhood of the round before, less the liar's own model of then; x is its own of now."""
    algorithm, state = liar(by, scale)
    state = heard(algorithm, state)
    x = np.asarray(algorithm.params(state)["trained"]["x"])
    every = np.concatenate([np.zeros((1, 4)), OTHERS - OWN])
    np.testing.assert_allclose(told(algorithm, state)[1], wanted(x, every), rtol=1e-5, atol=1e-5)


@pytest.mark.more
def test_what_did_not_arrive_is_not_heard() -> None:
    algorithm, state = liar("mimic")
    state = heard(algorithm, state, (False, True, True))
    x = np.asarray(algorithm.params(state)["trained"]["x"])
    np.testing.assert_allclose(told(algorithm, state)[1], x + OTHERS[1] - OWN, rtol=1e-5)


@pytest.mark.more
def test_noise_is_drawn_anew_and_an_equivocator_keeps_to_its_lies() -> None:
    algorithm, state = liar("noise")
    state, first = told(algorithm, state)
    assert (told(algorithm, state)[1] != first).all()
    algorithm, state = liar("random")
    assert (told(algorithm, state)[1] >= 0).all()
    algorithm, state = liar("equivocation")
    state, said = told(algorithm, state)
    assert said.shape == (K, 4) and len({row.tobytes() for row in said}) == K
    np.testing.assert_allclose(said.mean(axis=0), OWN, rtol=1e-5)  # each by itself looks like a model near the others
    np.testing.assert_array_equal(told(algorithm, state)[1], said)


# ------------------------------------------------------------------------------------------------------ in a federation

NODES = {"graph": "complete", "nodes": 8}


def lied(*attacks: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**TABLE, "topology": NODES, "attack": [*attacks], **more}


@pytest.mark.parametrize(
    "attacks, more, text",
    [
        ([{"nodes": [8], "by": "nan"}], {}, r"attack\[0\].nodes=\[8\]: there is no node 8; there are 8, 0 to 7"),
        ([{"nodes": [], "by": "nan"}], {}, r"attack\[0\].nodes=\[\]: names nobody"),
        ([{"nodes": [1, 1], "by": "nan"}], {}, r"attack\[0\].nodes=\[1, 1\]: node 1 is named twice"),
        ([{"nodes": [1], "by": "nan"}, {"nodes": [2, 1], "by": "alie"}], {}, r"attack\[0\].* node 1 is named twice"),
        ([{"nodes": [*range(8)], "by": "nan"}], {}, r"attack: all 8 nodes lie"),
        ([{"nodes": [1], "by": "sign_flp"}], {}, r'attack\[0\].by=.*sign_flp.*did you mean .*sign_flip'),
        ([{"nodes": [1]}], {}, r"attack\[0\].by: missing"),
        ([{"nodes": [1], "by": "nan", "scale": 1.0}], {}, r"attack\[0\].scale"),
        ([{"nodes": [1], "by": "ipm", "scale": 0.0}], {}, r"attack\[0\].scale"),
        ([{"nodes": [1], "by": "dissensus"}, {"nodes": [2], "by": "equivocation"}], {}, r"may be in one table only"),
        ([{"nodes": [1], "by": "dissensus"}], {"network": {"late": 1}}, r"which network.late does not keep apart"),
        ([{"nodes": [1], "by": "nan"}], {"algorithm": {"name": "push_sum"}}, r"attack\[0\]: .*push_sum sends each"),
        ([{"nodes": [1], "by": "nan"}], {"evaluation": {"leave_site_out": True}}, r"leave_site_out: numbers nodes"),
        ([{"nodes": [1], "by": "label_flip"}], {}, r"attack\[0\].by='label_flip': the data have no labels"),
    ],
)  # fmt: skip
def test_what_is_refused(attacks: list[dict[str, Any]], more: dict[str, Any], text: str) -> None:
    with jax.enable_x64(True), pytest.raises((ConfigError, TopologyError), match=text):
        federation_of(lied(*attacks, **more))


@pytest.mark.more
def test_who_learns_from_wrong_labels_sends_what_it_has() -> None:
    """Its steps are those of a node whose labels are y -> 9 - y; all others take their own."""
    table = {**NETWORK, "rounds": 1, "evaluation": {"every": 1}, "algorithm": {"name": "local"},
             "model": {"name": "logistic"}}  # fmt: skip
    with jax.enable_x64(True):
        plain = federation_of(table)
        flipped = federation_of({**table, "attack": [{"nodes": [1], "by": "label_flip"}]})
        turned = plain.dataset._replace(train=plain.dataset.train._replace(y=9 - plain.dataset.train.y))
        parts = plain.data._replace(dataset=turned)
        of = [
            tree.mixed(simulated.simulate_federation(each).models)
            for each in (plain, plain._replace(data=parts), flipped)
        ]
    for node, wanted in ((0, of[0]), (1, of[1]), (2, of[0])):
        for a, b in zip(jax.tree.leaves(of[2]), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a[node], b[node], rtol=1e-9)
    assert abs(flat(of[0]) - flat(of[1])).max() > 1e-3


@pytest.mark.parametrize(
    "loop", [pytest.param(False, marks=pytest.mark.more), pytest.param(True, marks=pytest.mark.soak)]
)
def test_figures_are_those_of_the_honest(tmp_path: Path, loop: bool) -> None:
    table = {
        **NETWORK, "rounds": 3, "evaluation": {"every": 1}, "topology": {"graph": "complete", "nodes": 4},
        "model": {"name": "logistic"}, "attack": [{"nodes": [0], "by": "label_flip"}, {"nodes": [2], "by": "random"}],
        "driver": {"kind": "simulate", "loop": loop}, "baselines": True,
        "training": {**NETWORK["training"], "dtype": "float32"},
    }  # fmt: skip
    wanted: Experiment = experiment.parse(table, "it.toml", Experiment)
    summary = run(wanted, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = {row["node"]: row["accuracy_after_mixing"] for row in rows if row["round"] == 3}
    assert set(last) == {0, 1, 2, 3}  # records are of all
    assert summary.score_mean == pytest.approx((last[1] + last[3]) / 2)
    assert summary.score_worst == min(last[1], last[3])
    assessed = json.loads((tmp_path / "run" / "assessment.json").read_text())
    assert set(assessed["nodes"]) == {"1", "3"}
    alone = [json.loads(line) for line in (tmp_path / "run/baselines/local/metrics.jsonl").read_text().splitlines()]
    by_itself = {row["node"]: row["accuracy_after_mixing"] for row in alone if row["round"] == 3}
    assert summary.as_dict()["accuracy_local_only"] == pytest.approx((by_itself[1] + by_itself[3]) / 2)
    assert any("of the nodes lie 0 by label_flip; 2 by random" in note for note in summary.notes)


# ------------------------------------------------------------------------------------------------------------- effects

DIGITS = {
    **TABLE, "rounds": 15, "data": {"source": "digits"}, "model": {"name": "logistic"},
    "training": {"optimizer": {"name": "sgd", "learning_rate": 0.5}, "batch_size": 16, "local_steps": 5},
    "evaluation": {"every": 15, "metrics": False},
}  # fmt: skip


def worst(graph: dict[str, Any], wrap: list[dict[str, Any]], *attacks: dict[str, Any]) -> float:
    """Accuracy of the worst honest node."""
    made = federation_of({**DIGITS, "topology": graph, "algorithm": {"name": "dsgd", "wrap": wrap}, "attack": attacks})
    models = simulated.simulate_federation(made).models
    test = made.dataset.test
    batch, mask = {"x": jnp.asarray(test.x, jnp.float32), "y": jnp.asarray(test.y)}, jnp.ones(len(test.y))
    score = jax.jit(jax.vmap(lambda model: made.learner.evaluate(model, batch, mask)["score"].mean()))(models)
    return float(min(score[node] for node in range(8) if node not in made.liars))


LIES_OF_TWO = {"nodes": [2, 5], "by": "sign_flip", "scale": 10.0}


@pytest.mark.more
def test_two_liars_of_eight_spoil_plain_mixing_and_not_what_outliers_weigh(optimised: None) -> None:
    """All with all, -10 times their models: DOS is within two points of no liars, though the rows of two are missing.

    On a ring it fails altogether: of three models none is an outlier.
    """
    clean = worst(NODES, [])
    assert clean > 0.88  # seen: .91
    assert worst(NODES, [], LIES_OF_TWO) < 0.2  # .05
    assert worst(NODES, [{"name": "dos"}], LIES_OF_TWO) > clean - 0.025  # .897
    assert worst({"graph": "ring", "nodes": 8}, [{"name": "dos"}], LIES_OF_TWO) < 0.2  # .0


@pytest.mark.soak
@pytest.mark.parametrize("name", [*sorted({*RULES} - {"dos"}), "clip"])
def test_no_rule_is_spoilt_by_as_many_liars_as_it_expects(name: str, optimised: None) -> None:
    for f, graph in ((2, NODES), *([] if "krum" in name else [(1, {"graph": "ring", "nodes": 8})])):
        least = 0.8 if f == 1 else 0.87  # seen: .88 to .90, on the ring .87 of trimmed_mean
        assert worst(graph, [{"name": name, "f": f}], LIES_OF_TWO) > least
