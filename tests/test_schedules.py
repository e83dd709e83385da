"""Optimizers in lists, schedules of the learning rate, accumulation: what they do, and that all drivers do the same."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federations import CHURN, NETWORK, TABLE, at_once, federation_of, looped

from p2pfl.algorithms import ALGORITHMS
from p2pfl.errors import ConfigError
from p2pfl.learning import optimizers, quadratic
from p2pfl.learning.optimizers import SCHEDULES, optimizer_of

SGD = {"name": "sgd", "learning_rate": 0.1}
CLIP = {"name": "clip_by_global_norm", "max_norm": 1.0}
GATHER = {"name": "MultiSteps", "every_k_schedule": 2}
FALLING = {"schedule": "linear_schedule", "init_value": 0.4, "end_value": 0.0, "transition_steps": 4}
PAGE = Path(__file__).parents[1] / "docs" / "experiment.md"


def steps(given: Any, *gradients: Any) -> list[Any]:
    """The steps that an optimizer takes on gradients."""
    made, found = optimizer_of(given), []
    params = jnp.zeros_like(jnp.asarray(gradients[0], jnp.float32))
    state = made.init(params)
    for gradient in gradients:
        step, state = made.update(jnp.asarray(gradient, jnp.float32), state, params)
        found.append(np.asarray(step).round(6).tolist())
    return found


def test_a_list_hands_on_what_each_has_made_of_the_gradient() -> None:
    assert steps([CLIP, SGD], [3.0, 4.0]) == pytest.approx(np.array([[-0.06, -0.08]]))
    assert steps([SGD, CLIP], [3.0, 4.0]) == pytest.approx(np.array([[-0.3, -0.4]]))
    assert steps([SGD, CLIP], [30.0, 40.0]) == pytest.approx(np.array([[-0.6, -0.8]]))


def test_many_gradients_make_one_step_and_a_schedule_counts_steps(optax_promotes: None) -> None:
    assert steps([GATHER, SGD], 1.0, 3.0, 5.0, 5.0) == pytest.approx([0, -0.2, 0, -0.5])
    assert steps({"name": "sgd", "learning_rate": FALLING}, *[1.0] * 5) == pytest.approx([-0.4, -0.3, -0.2, -0.1, 0])


@pytest.mark.more
def test_what_stands_before_and_behind_is_done_to_each_and_to_the_mean(optax_promotes: None) -> None:
    gathered = [GATHER, {"name": "sgd", "learning_rate": FALLING}]
    assert steps(gathered, *[1.0] * 4) == pytest.approx([0, -0.4, 0, -0.3])
    assert steps([CLIP, GATHER, SGD], 1.0, 9.0) == pytest.approx([0, -0.1])  # clips each
    assert steps([GATHER, CLIP, SGD], 0.5, 9.0) == pytest.approx([0, -0.1])  # clips the mean
    assert steps([SGD, {"name": "apply_every", "k": 2}], 1.0, 3.0) == pytest.approx([0, -0.4])


ARGUMENTS: dict[str, dict[str, Any]] = {
    "constant_schedule": {"value": 0.1},
    "cosine_decay_schedule": {"init_value": 0.1, "decay_steps": 8},
    "cosine_onecycle_schedule": {"transition_steps": 8, "peak_value": 0.1},
    "exponential_decay": {"init_value": 0.1, "transition_steps": 4, "decay_rate": 0.5},
    "linear_onecycle_schedule": {"transition_steps": 8, "peak_value": 0.1},
    "linear_schedule": {"init_value": 0.1, "end_value": 0.0, "transition_steps": 8},
    "piecewise_constant_schedule": {"init_value": 0.1, "boundaries_and_scales": {"4": 0.1}},
    "piecewise_interpolate_schedule": {
        "interpolate_type": "linear", "init_value": 0.1, "boundaries_and_scales": {"4": 0.1},
    },
    "polynomial_schedule": {"init_value": 0.1, "end_value": 0.0, "power": 2, "transition_steps": 8},
    "sgdr_schedule": {"cosine_kwargs": [{"init_value": 0.0, "peak_value": 0.1, "decay_steps": 4, "warmup_steps": 2}]},
    "warmup_constant_schedule": {"init_value": 0.0, "peak_value": 0.1, "warmup_steps": 4},
    "warmup_cosine_decay_schedule": {"init_value": 0.0, "peak_value": 0.1, "warmup_steps": 2, "decay_steps": 8},
    "warmup_exponential_decay_schedule": {
        "init_value": 0.0, "peak_value": 0.1, "warmup_steps": 2, "transition_steps": 4, "decay_rate": 0.5,
    },
}  # fmt: skip


def numbered(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        key: {int(at): each for at, each in value.items()} if isinstance(value, dict) else value
        for key, value in arguments.items()
    }


@pytest.mark.parametrize(
    "name",
    ["exponential_decay", *(pytest.param(n, marks=pytest.mark.more) for n in ARGUMENTS if n != "exponential_decay")],
)
def test_a_schedule_is_that_of_optax(name: str, optax_promotes: None) -> None:
    wanted = getattr(optax.schedules, name)(**numbered(ARGUMENTS[name]))
    found = steps({"name": "sgd", "learning_rate": {"schedule": name, **ARGUMENTS[name]}}, *[1.0] * 9)
    assert found == pytest.approx([-float(wanted(step)) for step in range(9)], abs=2e-6)


def test_every_schedule_has_a_row() -> None:
    assert {*ARGUMENTS, "join_schedules"} == {*SCHEDULES}
    theirs = {name for name, value in vars(optax.schedules).items() if inspect.isfunction(value)}
    theirs = {name for name in theirs if name.endswith(("_schedule", "_decay"))}
    assert theirs <= {*SCHEDULES}


@pytest.mark.more
def test_schedules_are_joined(optax_promotes: None) -> None:
    flat = {"schedule": "constant_schedule", "value": 0.5}
    both = {"schedule": "join_schedules", "schedules": [flat, FALLING], "boundaries": [2]}
    found = steps({"name": "sgd", "learning_rate": both}, *[1.0] * 4)
    assert found == pytest.approx([-0.5, -0.5, -0.4, -0.3])


@pytest.mark.parametrize("gathered", [False, pytest.param(True, marks=pytest.mark.more)])
def test_double_precision_stays(gathered: bool, optax_promotes: None) -> None:
    cosine = {"schedule": "cosine_decay_schedule", "init_value": 0.1, "decay_steps": 8}
    with jax.enable_x64(True):
        made = optimizer_of([*([GATHER] if gathered else []), CLIP, {**SGD, "learning_rate": cosine}])
        params = {"w": jnp.ones((2, 2), jnp.float64)}
        state = made.init(params)
        step, after = made.update(params, state, params)
        assert step["w"].dtype == np.float64
        kinds = [[leaf.dtype for leaf in jax.tree.leaves(each)] for each in (state, after)]
        assert kinds[0] == kinds[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "optimizer: is an empty list"),
        ([CLIP], "one of the list must take a learning rate, as sgd does, and none does"),
        ([SGD, {"name": "adam", "learning_rate": 0.1}], "must take a learning rate, as sgd does, and sgd and adam do"),
        ([{"name": "scale_by_sign"}, {"name": "scale", "step_size": 0.1}], "and none does"),
        ([SGD, GATHER], r"optimizer\[1\] MultiSteps: gathers gradients for what comes after it"),
        ([GATHER, {"name": "lbfgs"}], r"optimizer\[0\] MultiSteps: .* asks for the loss"),
        (
            [{**GATHER, "every_k": 2}, SGD],
            r"optimizer\[0\] MultiSteps: argument 'every_k': did you mean 'every_k_schedule'",
        ),
        (
            [{"name": "clip_by_globl_norm"}, SGD],
            r"optimizer\[0\] name='clip_by_globl_norm': did you mean 'clip_by_glob",
        ),
        ([{"max_norm": 1.0}, SGD], r"optimizer\[0\] name=None: must be given"),
        ([{"name": "sam"}, SGD], r"optimizer\[0\] name='sam': is made of two other"),
        (GATHER, "'MultiSteps': takes no step by itself; put it into a list"),
        ({**SGD, "learning_rate": {"init_value": 0.1}}, "must be a number, or a table that names a schedule"),
        (
            {**SGD, "learning_rate": {"schedule": "cosine_decay"}},
            "schedule='cosine_decay': did you mean 'cosine_decay_sc",
        ),
        ({**SGD, "learning_rate": {**FALLING, "end": 1}}, "schedule linear_schedule: argument 'end': did you mean"),
        ({**SGD, "learning_rate": {"schedule": "linear_schedule"}}, "missing 3 required .*'init_value'"),
        ({**SGD, "momentum": FALLING}, r"optimizer sgd\(learning_rate=0.1, momentum="),
    ],
)
def test_what_is_no_list_and_no_schedule_is_refused(given: Any, said: str, optax_promotes: None) -> None:
    with pytest.raises(ConfigError, match=said):
        optimizer_of(given)


def test_what_the_page_shows_is_an_optimizer(optax_promotes: None) -> None:
    text = PAGE.read_text("utf-8")
    part = text[text.index("### Optimizers") : text.index("### Losses")]
    tables = [tomllib.loads(each) for each in re.findall(r"^```toml\n(.*?)^```", part, re.DOTALL | re.MULTILINE)]
    given = [table["training"]["optimizer"] for table in tables]
    assert [len(each) for each in given] == [3, 3]
    for each in given:
        optimizer_of(each)
    named = [name for name in optimizers.PLAIN if f"`{name}`" not in part]
    assert named == []


# --- in a federation


def counts(state: Any) -> set[int]:
    """What the counters of an optimizer's state say."""
    return {int(leaf) for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == np.int32 and leaf.ndim == 0}


@pytest.mark.parametrize(
    "name",
    [
        "dsgd",
        "push_sum",
        *(pytest.param(n, marks=pytest.mark.more) for n in ALGORITHMS if n not in ("dsgd", "push_sum")),
    ],
)
def test_who_adopts_begins_the_schedule_and_an_epoch_does_not(name: str) -> None:
    it = quadratic.learner(2)
    algorithm = ALGORITHMS[name](it, optimizer_of({**SGD, "learning_rate": FALLING}))
    batches = {"x": jnp.ones((3, 1, 4)), "y": jnp.zeros((3, 1))}
    state = algorithm.init(it.init(jax.random.key(0)), 2)
    assert counts(state) == {0}
    state, _ = algorithm.local(state, batches, jax.random.key(0), jnp.asarray(2, jnp.int32))
    assert counts(state) == {2}  # of three: the third is not taken
    assert counts(algorithm.adopt(state, it.init(jax.random.key(0)))) == {0}
    if algorithm.restart:
        assert counts(algorithm.restart(state, 2)) == {2}


@pytest.mark.more
def test_who_comes_back_with_what_it_had_goes_on_and_who_has_nothing_begins_again() -> None:
    """The only step is the first one; a node of that comes back with nothing takes it a second time."""
    once = {"schedule": "piecewise_constant_schedule", "init_value": 0.5, "boundaries_and_scales": {"1": 0.0}}
    training = {**TABLE["training"], "optimizer": {**SGD, "learning_rate": once}, "local_steps": 1}
    base = {**TABLE, "rounds": 5, "training": training, "topology": {"graph": "complete", "nodes": 3}}
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        ends = {}
        for state in ("kept", "lost"):
            gone = [
                {"event": "crash", "node": 2, "round": 3},
                {"event": "rejoin", "node": 2, "round": 4, "state": state},
            ]
            ends[state] = looped(federation_of({**base, "churn": gone}))
        whole = looped(federation_of(base))
    np.testing.assert_allclose(ends["kept"], whole, atol=1e-12)  # all agreed after the first round
    assert np.abs(ends["lost"] - whole).max() > 1e-3


@pytest.mark.more
@pytest.mark.parametrize("algorithm", ["gradient_tracking", "exact_diffusion", "outer"])
def test_all_nodes_at_once_gather_as_the_plain_loop_does(algorithm: str) -> None:
    """A rejoined node, one that had kept half a step, and steps that do not come out even with rounds."""
    cosine = {"schedule": "cosine_decay_schedule", "init_value": 0.1, "decay_steps": 5}
    given = [{**GATHER, "every_k_schedule": 3}, {"name": "clip", "max_delta": 0.5}, {**SGD, "learning_rate": cosine}]
    again = [
        *CHURN,
        {"event": "crash", "node": 4, "round": 3},
        {"event": "rejoin", "node": 4, "round": 4, "state": "kept"},
    ]
    table = {**TABLE, "churn": again, "training": {**TABLE["training"], "optimizer": given}}
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        made = federation_of({**table, "algorithm": {"name": algorithm}})
        np.testing.assert_allclose(at_once(made, devices=1, chunk=4), looped(made), rtol=1e-12, atol=1e-13)


@pytest.mark.more
def test_leaves_of_ones_own_have_the_same_list(optax_promotes: None) -> None:
    training = {**NETWORK["training"], "optimizer": [CLIP, {**SGD, "learning_rate": FALLING}], "dtype": "float32"}
    table = {**NETWORK, "training": {**training, "objective": [{"name": "ditto", "strength": 0.5}]}}
    made = federation_of({**table, "algorithm": {"name": "dsgd", "share": "fedbn"}})
    np.testing.assert_allclose(at_once(made), looped(made), rtol=1e-4, atol=1e-5)
