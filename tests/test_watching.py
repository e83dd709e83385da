"""Nodes that watch their models by validation rows: the best is kept, training ends, whoever runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from click.testing import CliRunner

import p2pfl
from p2pfl.algorithms import ALGORITHMS
from p2pfl.cli import main
from p2pfl.config import experiment
from p2pfl.config.experiment import Experiment
from p2pfl.errors import ConfigError
from p2pfl.federation import federation
from p2pfl.learning import models
from p2pfl.learning.flax import from_flax
from p2pfl.methods import compose, watching
from p2pfl.runs import assessment, simulated
from p2pfl.types import Inbox, Neighborhood

AHEAD, HELD, BATCH = 2, 7, 4
LEARNER = watching.placed(from_flax(models.mlp((3,), 2, hidden=(4,)), jnp.zeros((1, 3)), 2))
AROUND = Neighborhood(jnp.full(2, 0.25), jnp.full(2, 0.25))


def batches(seed: int = 0, steps: int = 2) -> dict[str, jax.Array]:
    """Seven validation rows in two batches of four, which are the same in every round, and then those of the steps."""
    x = np.concatenate([np.random.default_rng(9).normal(size=(AHEAD, BATCH, 3)),
                        np.random.default_rng(seed).normal(size=(steps, BATCH, 3))])  # fmt: skip
    return {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(x.sum(axis=2) > 0, jnp.int32)}


def watched(name: str = "dsgd", rate: float = 0.0, **arguments: Any) -> tuple[Any, Any]:
    """An algorithm, and its first state."""
    algorithm = compose.withhold(ALGORITHMS[name](LEARNER, optax.sgd(rate)))
    made = watching.watch(algorithm, LEARNER, AHEAD, **arguments)
    params = LEARNER.init(jax.random.key(0))
    params = {**params, "private": {**params["private"], "site": {watching.HELD: jnp.int32(HELD)}}}
    return made, made.init(params, 2)


@jax.jit
def scored(params: Any) -> jax.Array:
    data = {name: leaf[:AHEAD].reshape(AHEAD * BATCH, *leaf.shape[2:])[:HELD] for name, leaf in batches().items()}
    return LEARNER.evaluate(params, data, jnp.ones(HELD))["score"].mean()


def test_the_best_model_is_kept_and_training_ends() -> None:
    """By hand: models of known score come in by mixing after rounds 1 to 4; two that are no better, and it is over."""
    made, state = watched(rate=0.1, every=1, patience=2)
    local = jax.jit(lambda state, batches: made.local(state, batches, jax.random.key(0), None))
    first, found = made.params(state), []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        trained = jax.tree.map(lambda leaf, rng=rng: rng.normal(size=leaf.shape).astype(np.float32), first["trained"])
        found.append((float(scored({**first, "trained": trained})), seed, trained))
    found.sort(key=lambda each: each[:2])
    worst, best = found[0], found[-1]
    assert worst[0] < best[0]
    for round, (_, _, trained) in enumerate([best, worst, worst, best], 1):
        before = made.params(state)["trained"]
        state, _ = local(state, batches(round))
        kept = made.params(state)["private"]["best"]
        assert (round == 4) == (int(kept["ended"]) == 3)
        moved = not np.array_equal(before["layers"][0]["kernel"], made.params(state)["trained"]["layers"][0]["kernel"])
        assert moved == (round < 4)
        if round > 1:
            assert float(kept["score"]) == pytest.approx(best[0]) and int(kept["round"]) == 1
            jax.tree.map(np.testing.assert_array_equal, watching.best_of(made.params(state))["trained"], best[2])
        state = made.replaced(state, {**made.params(state), "trained": trained})
    after, metrics = local(state, batches(5))
    assert int(made.params(after)["private"]["best"]["ended"]) == 3 and float(metrics["loss"]) > 0
    jax.tree.map(np.testing.assert_array_equal, made.params(after)["trained"], best[2])


@pytest.mark.parametrize("at_once", [3, None])
def test_validation_rows_are_scored_a_few_at_a_time(at_once: int | None) -> None:
    """Of volumes a network over all of them would not fit into memory. The score is the same."""
    seen: set[int] = set()

    def evaluate(params: Any, batch: dict[str, jax.Array], mask: jax.Array) -> dict[str, jax.Array]:
        seen.add(len(mask))
        return LEARNER.evaluate(params, batch, mask)

    base, counting = compose.withhold(ALGORITHMS["dsgd"](LEARNER, optax.sgd(0.1))), LEARNER._replace(evaluate=evaluate)
    made, (_, state) = watching.watch(base, counting, AHEAD, 1, at_once=at_once), watched(every=1)
    jax.eval_shape(lambda state: made.local(state, batches(), jax.random.key(0), None), state)
    assert seen == {at_once or AHEAD * BATCH, BATCH}  # and the loss of a batch, of who has ended
    params, held = made.params(state), {name: leaf[:AHEAD] for name, leaf in batches().items()}
    found = jax.jit(watching._scored, static_argnums=(0, 4))(LEARNER, params, held, jnp.int32(HELD), at_once)
    assert float(found) == pytest.approx(float(scored(params)), rel=1e-6)


@pytest.mark.more
def test_validation_is_due_as_evaluation_is_and_not_in_rounds_without_steps() -> None:
    made, state = watched(rate=0.0, every=2, patience=1)
    since = []
    for round in range(1, 7):
        steps = jnp.int32(0 if round == 2 else 2)
        state, _ = made.local(state, batches(round), jax.random.key(round), steps)
        since.append(int(made.params(state)["private"]["best"]["since"]))
    # rounds of training are 1, 3, 4, 5, 6: the third of them sees the model after two, the fifth that after four
    assert since == [0, 0, 0, 0, 0, 1]
    assert int(made.params(state)["private"]["best"]["ended"]) == 4
    empty = jax.tree.map(lambda leaf: leaf[:0], batches())
    again, _ = made.local(state, empty, jax.random.key(7), None)
    jax.tree.map(np.testing.assert_array_equal, again.own, state.own)


@pytest.mark.more
@pytest.mark.parametrize("name", ["dsgd", "push_sum"])
def test_nothing_of_it_travels_or_is_mixed(name: str) -> None:
    made, state = watched(name, 0.1, every=1)
    plain = compose.withhold(ALGORITHMS[name](LEARNER, optax.sgd(0.1)))
    other = plain.init(made.params(state), 2)
    state, _ = made.local(state, batches(), jax.random.key(0), None)
    bare = {key: leaf[AHEAD:] for key, leaf in batches().items()}
    other, _ = plain.local(other, bare, jax.random.key(0), jnp.int32(2))
    (state, sent), (other, expected) = made.send(state, AROUND), plain.send(other, AROUND)
    jax.tree.map(np.testing.assert_array_equal, sent, expected)
    slots = sent if made.per_edge else jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), sent)
    inbox = Inbox(slots, jax.tree.map(lambda leaf: leaf * 1, slots), jnp.ones(2, bool), jnp.zeros(2, jnp.int32))
    mixed, alone = made.mix(state, inbox, AROUND), plain.mix(other, inbox, AROUND)
    jax.tree.map(np.testing.assert_array_equal, made.params(mixed)["trained"], plain.params(alone)["trained"])
    jax.tree.map(np.testing.assert_array_equal, mixed.own, state.own)


# --- in an experiment

TABLE: dict[str, Any] = {
    "name": "watch", "rounds": 40, "data": {"source": "digits", "partition": "dirichlet", "alpha": 0.5},
    "model": {"name": "mlp", "hidden": [16]},
    "training": {"optimizer": {"name": "sgd", "learning_rate": 0.1}, "batch_size": 8, "local_steps": 2, "patience": 3},
    "topology": {"graph": "ring", "nodes": 4}, "algorithm": {"name": "dsgd"},
    "driver": {"kind": "simulate"}, "evaluation": {"every": 2, "answers": ["best"]}, "baselines": False,
}  # fmt: skip


def parsed(**changes: Any) -> Experiment:
    found: Experiment = experiment.parse({**TABLE, **changes}, "t", Experiment)
    return found


@pytest.mark.more
def test_validation_rows_follow_the_rule_of_the_training_rows_and_are_not_trained_on() -> None:
    made = federation.build(parsed())
    assert made.data.validation is not None and made.dataset.validation is not None
    rows = np.concatenate(made.data.validation)
    assert sorted(rows.tolist()) == list(range(len(made.dataset.validation.y)))
    assert len(made.dataset.train.y) + len(rows) == 1438 and len(rows) == 288
    for train, held in zip(made.partition.train, made.data.validation, strict=True):
        shares = [np.bincount(part.y[own], minlength=10) / len(own) for part, own in
                  ((made.dataset.train, train), (made.dataset.validation, held))]  # fmt: skip
        assert np.abs(shares[0] - shares[1]).max() < 0.1
    assert any("288 of 1438 training rows are held back" in note for note in made.notes)


@pytest.mark.parametrize(
    "changes, text",
    [
        (
            {"data": {"source": "quadratic"}, "model": None, "evaluation": {}},
            "source='quadratic' has no rows to validate",
        ),
        ({"training": {**TABLE["training"], "patience": 0}}, "patience"),
    ],
)
def test_what_a_person_gets_wrong(changes: dict[str, Any], text: str) -> None:
    table = {name: value for name, value in {**TABLE, **changes}.items() if value is not None}
    with pytest.raises(ConfigError, match=text):
        federation.build(experiment.parse(table, "t", Experiment))


DRIVERS = (["simulate"], ["simulate", "--set", "driver.loop=true"], ["virtual"])


@pytest.mark.more
def test_the_loop_the_virtual_network_and_the_simulation_end_alike(tmp_path: Path) -> None:
    """Loop and virtual network to the bit, and what is said; the compiled simulation in the same rounds."""
    file = tmp_path / "experiment.toml"
    table = {**TABLE["training"], "patience": 2, "dtype": "float64"}
    file.write_text(experiment.dump(parsed(training=table, rounds=14)))
    found = []
    for i, driver in enumerate(DRIVERS):
        out = tmp_path / str(i)
        result = CliRunner().invoke(main, ["run", str(file), "--out", str(out), "--json", "--driver", *driver])
        assert result.exit_code == 0, result.output
        assessed = json.loads((out / "assessment.json").read_text())
        found.append((json.loads((out / "summary.json").read_text()), assessed["best"]))
    (simulated, first), (looped, second), (virtual, third) = found
    assert looped["digests"] == virtual["digests"] and second == third
    ends = [{node: each["ended"] for node, each in best.items()} for best in (first, second)]
    assert ends[0] == ends[1] and any(ends[0].values())
    assert simulated["best_accuracy_own_mean"] == pytest.approx(looped["best_accuracy_own_mean"])


@pytest.mark.more
@pytest.mark.usefixtures("optimised")
def test_nodes_that_overfit_stop_and_their_best_model_is_better_than_the_last(tmp_path: Path) -> None:
    """Few rows, noisy labels, a wide network: the last model has learned the noise by heart, the best one has not."""
    digits, rng = p2pfl.data.digits(), np.random.default_rng(0)
    rows = rng.permutation(len(digits.train.y))[:200]
    wrong = rng.random(200) < 0.3
    y = np.where(wrong, rng.integers(0, 10, 200), digits.train.y[rows]).astype(np.int32)
    noisy = digits._replace(train=p2pfl.Samples(digits.train.x[rows], y))
    sgd = {"optimizer": {"name": "sgd", "learning_rate": 0.3}, "batch_size": 8, "local_steps": 10}
    changes = {"rounds": 60, "model": {"name": "mlp", "hidden": [64]}, "data": {"source": "digits"}}
    found = []
    for patience in ({}, {"patience": 4}):
        made = federation.build(parsed(**changes, training={**sgd, **patience}), noisy)
        out = tmp_path / str(len(found))
        out.mkdir()
        result = simulated.into(made, out, lambda status: None)
        figures = assessment.assess(made, result.whole).figures
        found.append((figures["accuracy_mean"], figures["best_accuracy_mean"]))
        ended = [each["ended"] for each in assessment.watched(result.whole).values()]
        assert all(ended) == bool(patience)
    (last, best), (stopped, both) = found
    assert last is not None and best is not None and best > last + 0.03
    assert stopped is not None and both is not None and min(stopped, both) > last + 0.05
