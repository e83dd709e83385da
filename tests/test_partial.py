"""Parts of leaves: what two models have in common, networks of unequal width, amplitudes of low frequencies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federations import MECHANISMS, NETWORK, federation_of
from nodes import Nodes, distance, equal, planned
from nodes import learner as small

from p2pfl import topology, tree
from p2pfl.algorithms import ALGORITHMS
from p2pfl.config import experiment
from p2pfl.drivers.simulate import engine
from p2pfl.drivers.simulate.simulation import How
from p2pfl.errors import ConfigError
from p2pfl.federation import federation
from p2pfl.learning import flax, local_steps, models
from p2pfl.methods import sharing
from p2pfl.methods.compose import chain, withhold
from p2pfl.methods.fourier import amplitudes, fourier, moved
from p2pfl.methods.objectives.hetero_width import layout, mask_of, widths
from p2pfl.runs import simulated
from p2pfl.types import Algorithm, Inbox, Learner, Neighborhood

SGD = optax.sgd(0.1)
PNEUMONIA = Path(__file__).resolve().parents[2] / "shared" / "data" / "pneumoniamnist_rebuilt.npz"


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


# ------------------------------------------------------------------------------------------ networks of unequal width


def network(model: Any, shape: tuple[int, ...], ratio: float, classes: int = 3, **arguments: Any) -> Any:
    """(the masked learner, its parameters at a node of that width)."""
    base = flax.cast(flax.from_flax(model, example(shape), classes), "float64")
    objective = widths(SGD, [ratio], **arguments)
    assert objective.learner
    made = objective.learner(base)
    site = {"width": jnp.asarray(objective.given["width"][0], jnp.float64)}
    return made, local_steps.placed(noisy(made.init(key(0))), site)


def example(shape: tuple[int, ...]) -> Any:
    return jnp.zeros((1, *shape), jnp.float32)


def noisy(params: Any) -> Any:
    """Nothing is zero or one by chance."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + rng.uniform(0.1, 0.5, leaf.shape), params)


def batch(shape: tuple[int, ...], classes: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {"x": jnp.asarray(rng.normal(size=(6, *shape))), "y": jnp.asarray(rng.integers(0, classes, 6), jnp.int32)}


def cut(params: Any, like: Any, masks: Any) -> Any:
    """The elements that a mask holds, as the smaller model that they are."""

    def leaf(leaf: Any, like: Any, mask: Any) -> Any:
        held = np.broadcast_to(mask, leaf.shape)
        assert held.sum() == like.size
        return jnp.asarray(np.asarray(leaf)[held].reshape(like.shape))

    return {part: jax.tree.map(leaf, params[part], like[part], masks[part]) for part in ("trained", "carried")}


def smaller(kind: str, norm: str | None, ratio: float) -> tuple[Any, Any, tuple[int, ...]]:
    """(the whole model, the model of that width, the shape of an input)."""
    if kind == "mlp":
        sizes = (8, 5)
        less = tuple(int(np.ceil(ratio * size)) for size in sizes)
        return models.mlp((4,), 3, hidden=sizes, norm=norm), models.mlp((4,), 3, hidden=less, norm=norm), (4,)
    sizes, residual = (4, 6), kind == "residual"
    less = tuple(int(np.ceil(ratio * size)) for size in sizes)
    whole, part = (models.cnn((4, 4, 2), 3, channels=c, norm=norm, residual=residual) for c in (sizes, less))
    return whole, part, (4, 4, 2)


def everything(net: Learner, params: Any, data: Any) -> Any:
    """The gradient, the new values of all else, the loss, outputs and scores."""
    return *net.grad(params, data, key(0)), net.predict(params, data["x"]), net.evaluate(params, data, jnp.ones(6))


@pytest.mark.parametrize(
    "kind, norm, ratio",
    [
        pytest.param("mlp", "batch", 0.3, marks=pytest.mark.more),
        pytest.param("cnn", None, 0.5, marks=pytest.mark.soak),
        pytest.param("residual", "batch", 0.5, marks=pytest.mark.soak),
        pytest.param("residual", None, 0.25, marks=pytest.mark.soak),
    ],
)
def test_a_slice_is_the_smaller_network(kind: str, norm: str | None, ratio: float) -> None:
    """The same outputs, loss, gradient and batch statistics as a model that has only those channels: in arrays of the
    whole shape, and as the slice that a node by itself holds."""
    whole, part, shape = smaller(kind, norm, ratio)
    with jax.numpy_dtype_promotion("standard"):  # Flax's batch norm refuses strict float64
        made, params = network(whole, shape, ratio, scaler=False)
        other = flax.cast(flax.from_flax(part, example(shape), 3), "float64")
        masks = mask_of(jnp.asarray(ratio), params, layout(shapes(params), None))
        less = cut(params, jax.eval_shape(other.init, key(0)), masks)
        data = batch(shape)
        objective = widths(SGD, [ratio], scaler=False)
        assert objective.slices
        alone = objective.slices.learners[-1](flax.cast(flax.from_flax(whole, example(shape), 3), "float64"))
        assert tree.schema(jax.eval_shape(alone.init, key(0))) == tree.schema(jax.eval_shape(other.init, key(0)))
        (gradient, others, *found), (wanted, after, *expected), (sliced, _, *by_itself) = (
            jax.jit(partial(everything, net))(of, data) for net, of in ((made, params), (other, less), (alone, less))
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), (by_itself, sliced), (expected, wanted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), found, expected)
    held = cut({"trained": gradient, "carried": others["carried"]}, less, masks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12), held["trained"], wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), held["carried"], after["carried"])
    assert equal(others["private"], params["private"])

    def outside(mask: Any, after: Any, before: Any) -> None:
        np.testing.assert_array_equal(*(np.where(mask, 0, leaf) for leaf in (after, before)))

    jax.tree.map(outside, masks["trained"], gradient, jax.tree.map(jnp.zeros_like, gradient))
    jax.tree.map(outside, masks["carried"], others["carried"], jax.tree.map(jnp.zeros_like, others["carried"]))


def shapes(params: Any) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in tree.named_leaves(params["trained"]).items()}


@pytest.mark.more
def test_the_scaler_divides_what_hidden_layers_put_out() -> None:
    """By hand: relu(relu(x A / r) B / r) C, and with batch normalisation no such thing."""
    r, shape = 0.5, (4,)
    made, params = network(models.mlp(shape, 3, hidden=(8, 6)), shape, r)
    layers = [jax.tree.map(np.asarray, params["trained"]["layers"][i]) for i in range(3)]
    x = np.asarray(batch(shape)["x"])
    for layer, width in zip(layers, (4, 3, 3), strict=True):
        x = (x @ layer["kernel"][: x.shape[1]] + layer["bias"])[:, :width]
        x = x if layer is layers[2] else np.maximum(x / r, 0)
    np.testing.assert_allclose(jax.jit(made.predict)(params, batch(shape)["x"]), x, rtol=1e-12)
    with jax.numpy_dtype_promotion("standard"):
        nets = [network(models.mlp(shape, 3, (8,), "batch"), shape, r, scaler=scaler) for scaler in (False, True)]
        same = {str(jax.make_jaxpr(made.predict)(params, batch(shape)["x"])) for made, params in nets}
    assert len(same) == 1


def test_the_scaler_is_in_the_gradient() -> None:
    """The gradient is that of the loss that is reported, by differences."""
    made, params = network(models.mlp((4,), 3, hidden=(8,)), (4,), 0.5)
    data = batch((4,))

    @jax.jit
    def loss(trained: Any) -> Any:
        return made.grad({**params, "trained": trained}, data, key(0))[2]["loss"]

    gradient = jax.jit(made.grad)(params, data, key(0))[0]
    direction = noisy(jax.tree.map(jnp.zeros_like, gradient))
    step = 1e-6
    up, down = (jax.tree.map(lambda a, d, by=by: a + by * d, params["trained"], direction) for by in (step, -step))
    slope = sum(float((g * d).sum()) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    assert abs((loss(up) - loss(down)) / (2 * step) - slope) < 1e-7 * abs(slope)


LAYERS = ["layers/0", "layers/1"]


@pytest.mark.parametrize(
    "model, shape, arguments, text",
    [
        (models.mlp((4,), 3, hidden=(8,), norm="group"), (4,), {}, "norms/0: normalises over several channels"),
        (models.unet((4, 4, 1), 3), (4, 4, 1), {}, "layers: missing; .* of: decoder/0/convs/0"),
        (models.mlp((4,), 3, hidden=(8,)), (4,), {"layers": ["layers/0", "layers/2"]}, "'layers/2' has no kernel"),
        (models.mlp((4,), 3, hidden=(8,)), (4,), {"layers": ["layers/0"]}, "does not name the layer of layers/1"),
        (models.mlp((4,), 3, hidden=(8,)), (4,), {"layers": LAYERS[::-1]}, "layers/0 takes 4 inputs, no multiple of"),
        (models.mlp((4,), 3, hidden=(8,)), (4,), {"ratios": [1.0, 0.0]}, r"ratios\[1\]=0.0: must be > 0 and <= 1"),
    ],
)  # fmt: skip
def test_models_that_have_no_widths(model: Any, shape: Any, arguments: dict[str, Any], text: str) -> None:
    base = flax.from_flax(model, example(shape), 3, "segmentation" if len(shape) == 3 else "classes")
    with pytest.raises(ConfigError, match=text):
        objective = widths(SGD, **{"ratios": [0.5], **arguments})
        objective.learner(base)  # type: ignore[misc]


def test_layers_of_a_model_of_ones_own() -> None:
    """Given in their order they are as good as known ones; also where the last layer is not shared."""
    like = jax.eval_shape(flax.from_flax(models.mlp((4,), 3, hidden=(8, 6)), example((4,)), 3).init, key(0))
    known = layout(shapes(like), None)
    given = layout(shapes(like), [f"layers/{i}" for i in range(3)])
    assert known == given and known.of("layers/2/kernel") == (6, 0) and known.of("layers/1/bias") == (0, 6)


def key(seed: int) -> Any:
    return jax.random.key(seed)


# ---------------------------------------------------------------------------------------------- what two have in common


def narrow(name: str, ratios: list[float], given: Any = None) -> tuple[Learner, Algorithm]:
    """(learner, algorithm) of an mlp 4-8-3."""
    base = flax.cast(flax.from_flax(models.mlp((4,), 3, hidden=(8,)), example((4,)), 3), "float64")
    objective = widths(SGD, ratios)
    assert objective.learner and objective.around
    made: Learner = objective.learner(base)
    made = sharing.keep(made, SGD, sharing.predicate(given, made)) if given else made
    return made, objective.around(withhold(ALGORITHMS[name](made, SGD)))


def ring(
    name: str, ratios: list[float], given: Any = None, junk: bool = False, change: Any = lambda state: state
) -> tuple[Any, Any, np.ndarray]:
    """(states before and after one round of exchanges on a ring, W). Nodes begin with models of their own.

    `change`: of the states at first. `junk`: nothing arrives, and what is received is no number.
    """
    made, algorithm = narrow(name, ratios, given)
    schedule = topology.plan("ring", len(ratios), rounds=1)
    neighbor = schedule.neighbor[0]

    @jax.jit
    def round(width: Any) -> Any:
        keys = jax.vmap(key)(jnp.arange(len(ratios), dtype=jnp.int32))
        around = Neighborhood(*(jnp.asarray(part[0]) for part in (schedule.weight, schedule.out_weight)))
        site = {"width": width}
        states = jax.vmap(lambda k, s: algorithm.init(local_steps.placed(made.init(k), s), neighbor.shape[1]))(
            keys, site
        )
        states, payload = jax.vmap(algorithm.send)(change(states), around)
        received = jax.tree.map(lambda leaf: leaf[neighbor], payload)
        sent = jax.tree.map(lambda leaf, other: jnp.broadcast_to(leaf[:, None], other.shape), payload, received)
        received = jax.tree.map(lambda leaf: leaf * jnp.nan if junk else leaf, received)
        arrived = jnp.full(neighbor.shape, not junk)
        inbox = Inbox(sent, received, arrived, jnp.zeros(neighbor.shape, jnp.int32))
        return states, jax.vmap(algorithm.mix)(states, inbox, around)

    before, after = jax.tree.map(np.asarray, round(jnp.asarray(ratios)))
    return before, after, topology.matrix(schedule, 0)


def apart(states: Any) -> Any:
    """With the direction i everywhere at node i."""
    return states._replace(
        direction=jax.tree.map(
            lambda leaf: jnp.broadcast_to(jnp.arange(5.0).reshape(5, *(1,) * (leaf.ndim - 1)), leaf.shape),
            states.direction,
        )
    )


def test_an_element_is_mixed_by_those_who_hold_it() -> None:
    """On a ring of widths 1, 1/2, 1/2, 1, 1/4, by hand; models and directions alike."""
    before, after, w = ring("gradient_tracking", [1.0, 0.5, 0.5, 1.0, 0.25], change=apart)
    columns = (np.arange(8) < np.array([[8], [4], [4], [8], [2]]))[:, None, :]

    def wanted(x: np.ndarray, held: np.ndarray, start: np.ndarray) -> np.ndarray:
        masks = np.broadcast_to(held, x.shape)
        pairs = w[:, :, None, None] * masks[:, None] * masks[None]
        return start + (pairs * (x[None] - x[:, None])).sum(axis=1)

    for layer, held in ((0, columns), (1, columns.transpose(0, 2, 1))):
        x, y = (state.params["trained"]["layers"][layer]["kernel"] for state in (before, after))
        assert distance(y, wanted(x, held, x)) < 1e-15
        assert distance(y.mean(axis=0), x.mean(axis=0)) < 1e-15
        d, c = before.direction["layers"][layer]["kernel"], after.correction["layers"][layer]["kernel"]
        assert distance(c, wanted(d, held, 0 * d)) < 1e-14 and abs(c).max() > 0.5
    x, y = (state.params["trained"]["layers"][0]["kernel"] for state in (before, after))
    # nobody beside node 3 holds its channels 4 to 7; no node changes what it does not hold
    assert equal(y[3, :, 4:], x[3, :, 4:]) and equal(y[4, :, 2:], x[4, :, 2:]) and not equal(y[3, :, :4], x[3, :, :4])


def test_a_private_last_layer_changes_no_mask_and_junk_that_did_not_arrive_no_model() -> None:
    """Which layer is the last is seen of the whole model, not of what is shared."""
    before, after, _ = ring("dsgd", [1.0, 0.5, 1.0], "private_head")
    x, y = (state.params["trained"]["layers"][0]["kernel"] for state in (before, after))
    assert equal(y[1, :, 4:], x[1, :, 4:]) and distance(y[1, :, :4], x.mean(axis=0)[:, :4]) < 1e-15
    assert equal(*ring("dsgd", [1.0, 0.5, 1.0], "private_head", junk=True)[:2])


def test_one_way_algorithms_cannot_be_masked() -> None:
    with pytest.raises(ConfigError, match=r"wrap widths: epidemic sends one way.*use an algorithm of exchanges"):
        narrow("epidemic", [1.0, 0.5])
    assert narrow("local", [1.0, 0.5])[1].link == "none"


# -------------------------------------------------------------------------------------------------------------- fourier


def low(mine: Any, theirs: Any, reach: Any) -> Any:
    """A kernel with the amplitudes of another one within the square of that side."""
    return mine + moved(mine, amplitudes(theirs, 1.0) - amplitudes(mine, 1.0), reach, 1.0)


@pytest.mark.parametrize("shape", [(6, 5), (3, 3, 2, 4), (3, 2, 4)])
def test_amplitudes_of_low_frequencies(shape: tuple[int, ...]) -> None:
    """None at reach 0, all at 1, and in between the square; the phase and the other amplitudes stay."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=shape)) for _ in range(2))
    assert distance(np.asarray(low(a, b, jnp.float32(0))), np.asarray(a)) == 0
    assert distance(np.asarray(low(a, 2 * a, jnp.float32(1))), np.asarray(2 * a)) < 1e-14  # equal phases: all of it

    def spectrum(x: Any) -> np.ndarray:
        x = np.asarray(x)
        if x.ndim == 4:
            h, w, i, o = x.shape
            x = np.array([[x[p // o, q // i, q % i, p % o] for q in range(w * i)] for p in range(h * o)])
        return np.fft.fft2(x.reshape(-1, x.shape[-1]))

    ours, theirs, found = spectrum(a), spectrum(b), spectrum(low(a, b, jnp.float32(0.5)))
    rows, columns = (abs(np.fft.fftfreq(n)) for n in ours.shape)
    inside = (rows[:, None] < 0.25) & (columns < 0.25)
    assert 0 < inside.sum() < inside.size
    wanted = np.where(inside, abs(theirs), abs(ours)) * np.exp(1j * np.angle(ours))
    assert distance(found, wanted) < 1e-13


def test_a_kernel_of_zeros_has_the_phase_zero() -> None:
    a = low(jnp.zeros((4, 4)), jnp.ones((4, 4)), jnp.float32(1))
    assert distance(np.asarray(a), np.ones((4, 4))) < 1e-15


def kernels(algorithm: Algorithm, slots: int = 2) -> tuple[Any, Any, Any]:
    """A state with a kernel and a bias, the payload of another model, and that model."""
    none: dict[str, Any] = {"carried": {}}
    models = [
        {"trained": {"kernel": jnp.asarray(rng.normal(size=(4, 6))), "bias": jnp.asarray(rng.normal(size=6))}, **none}
        for rng in map(np.random.default_rng, range(2))
    ]
    around = Neighborhood(jnp.ones(slots) / 3, jnp.zeros(slots))
    state, other = (algorithm.init(model, slots) for model in models)
    return state, algorithm.send(other, around)[1], models[1]["trained"]


def test_mixing_by_fourier() -> None:
    """A kernel by amplitudes at the reach of the round, a bias as ever; the number of the round is taken over."""
    algorithm = chain(ALGORITHMS["dsgd"](small(), SGD), fourier(0.2, rounds=10, end=0.8))
    assert algorithm.keeps_mean == "nothing" and not algorithm.linear
    state, payload, theirs = kernels(algorithm)
    around = Neighborhood(jnp.array([0.25, 0.5]), jnp.zeros(2))
    mine = algorithm.send(state, around)[1]
    sent, received = (jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), side) for side in (mine, payload))
    received["told"] = jnp.array([10, 5], jnp.int32)
    inbox = Inbox(sent, received, jnp.array([False, True]), jnp.zeros(2, jnp.int32))
    mix = jax.jit(algorithm.mix)
    after = mix(state, inbox, around)
    ours = state.inner.params["trained"]
    wanted = low(ours["kernel"], theirs["kernel"], jnp.float32(0.5))
    got = after.inner.params["trained"]
    assert distance(np.asarray(got["kernel"]), np.asarray(ours["kernel"] + wanted) / 2) < 1e-12
    assert distance(np.asarray(got["bias"]), np.asarray(ours["bias"] + theirs["bias"]) / 2) < 1e-15
    assert int(after.own) == 5
    junk = inbox._replace(
        received=jax.tree.map(lambda leaf: leaf if leaf.dtype == jnp.int32 else leaf.at[0].set(jnp.nan), received)
    )
    assert equal(mix(state, junk, around), after)
    assert int(algorithm.adopt(after, after.inner.params).own) == 0


@pytest.mark.parametrize("end, shape", [(1.0, (4, 4)), (0.5, (1, 2)), (0.6, (3, 2))])
def test_nothing_of_a_kernel_travels_but_its_low_amplitudes(end: float, shape: tuple[int, int]) -> None:
    """Of 4 x 6 numbers the amplitudes of the largest square, those of f and -f once: no phase, and fewer bytes."""
    _, payload, theirs = kernels(chain(ALGORITHMS["dsgd"](small(), SGD), fourier(0.0, rounds=10, end=end)))
    sent = payload["inner"]["trained"]
    whole = np.abs(np.fft.fft2(theirs["kernel"]))
    rows = [row for row in (0, 1, 3, 2) if end == 1 or abs(np.fft.fftfreq(4)[row]) < end / 2]  # the lowest first
    assert sent["kernel"].shape == shape and sent["bias"].shape == (6,)
    assert distance(np.asarray(sent["kernel"]), whole[rows][:, : shape[1]]) < 1e-13
    assert tree.nbytes(sent["kernel"]) <= tree.nbytes(theirs["kernel"]) * 2 / 3


def test_rounds_are_counted() -> None:
    algorithm = chain(ALGORITHMS["dsgd"](small(), SGD), fourier(0.0, rounds=2))
    nodes = Nodes(algorithm, planned(algorithm, "ring", 4))
    state = nodes.start
    for expected in (1, 2, 3):  # beyond the rounds in which it grows: what is late belongs to one before
        state, payload = nodes.train(state, nodes.data(), jnp.ones(4, jnp.int32), nodes.around())
        state = nodes.mix(state, nodes.inbox(payload, nodes.wires.weight[0] > 0), nodes.around())
        assert state.own.tolist() == [expected] * 4


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: fourier(-0.1, 5), "start=-0.1: must be >= 0"),
        (lambda: fourier(0.5, 5, end=0.4), "end=0.4: must be >= start=0.5 and <= 1"),
        (lambda: fourier(0.5, 5, end=1.1), "end=1.1: must be >= start=0.5 and <= 1"),
        (lambda: fourier(0.5, 0), "rounds=0: must be > 0"),
        (lambda: fourier(0.0, 5, end=0.0), "end=0.0: must be > 0"),
        (lambda: chain(ALGORITHMS["exact_diffusion"](small(), SGD), fourier(0.5, 5)), "exact_diffusion needs"),
        (lambda: chain(ALGORITHMS["push_sum"](small(), SGD), fourier(0.5, 5)), "wrap fourier: push_sum sends one way"),
    ],
)  # fmt: skip
def test_what_is_refused(make: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()


# ---------------------------------------------------------------------------------------------------------- drivers


@pytest.mark.more
def test_a_narrow_node_trains_what_it_holds_and_nothing_else() -> None:
    """The same run in the plain loop: test_simulate.py."""
    with jax.numpy_dtype_promotion("standard"):  # Flax's batch norm refuses strict float64
        made = federation_of(MECHANISMS["weights and widths"])
        kernel = tree.named_leaves(simulated.simulate_federation(made).models)["trained/layers/0/kernel"]
        first = np.asarray(jax.jit(made.learner.init)(key(0))["trained"]["layers"][0]["kernel"])
    assert not kernel[1, :, 2:].any() and distance(kernel[1, :, :2], first[:, :2]) > 0.01


@pytest.mark.parametrize(
    "which, seeds, least, worst",
    [
        pytest.param("digits", range(1, 2), 0.0, -0.005, marks=pytest.mark.more),
        pytest.param("digits", range(5), 0.005, -0.005, marks=pytest.mark.soak),
        pytest.param("pneumonia", range(5), 0.005, -0.005, marks=pytest.mark.soak),
        pytest.param("missing", range(4), 0.02, -0.02, marks=pytest.mark.soak),
    ],
)
def test_wide_nodes_gain_by_narrow_ones(which: str, seeds: range, least: float, worst: float) -> None:
    """The claim of HeteroFL: wide nodes are no worse for narrow ones beside them than the wide ones by themselves.

    "missing": wide nodes miss three classes that narrow ones have, and each node leaves out of its loss what it lacks;
    without that, wide nodes unlearn in channels that narrow ones miss.
    """
    if which == "pneumonia" and not PNEUMONIA.exists():
        pytest.skip("needs ../shared/data/pneumoniamnist_rebuilt.npz")
    better = [_of_wide(which, seed) - _of_wide(which, seed, alone=True) for seed in seeds]
    assert np.mean(better) > least and min(better) > worst


def _of_wide(which: str, seed: int, alone: bool = False) -> float:
    """The accuracy of four wide nodes among four narrow ones, or alone, after 40 rounds, all with all."""
    wide, missing = (slice(0, 8, 2), True) if which == "missing" else (slice(0, 4), False)
    images = which == "pneumonia"
    table = {
        **NETWORK, "seed": seed, "rounds": 40,
        "data": {"source": "npz", "path": str(PNEUMONIA)} if images else {"source": "digits"},
        "algorithm": {"name": "dsgd"}, "model": {"name": "mlp", "hidden": [32 if missing else 64]},
        "topology": {"graph": "complete", "nodes": 8}, "training": {
            "optimizer": {"name": "sgd", "learning_rate": 0.02 if images else 0.1}, "batch_size": 16, "local_steps": 5,
            "objective": [
                {"name": "missing_classes"},
                {"name": "widths", "ratios": [1.0, 0.25] * 4 if missing else [1.0] * 4 + [0.25] * 4},
            ],
        },
        "driver": {"kind": "simulate"}, "evaluation": {"every": 40},
    }  # fmt: skip
    with jax.enable_x64(False):
        work = simulated.work_of(federation.build(experiment.parse(table, "test.toml", experiment.Experiment)))
        if missing:
            has = (range(0, 7), range(3, 10))
            rows = [np.array([row for row in rows if work.y[row] in has[i % 2]]) for i, rows in enumerate(work.rows)]
            labels = np.stack([np.bincount(work.y[part], minlength=10) for part in rows]).astype(np.float32)
            work = work._replace(rows=rows, sites={**work.sites, "labels": labels})
        if alone:
            work = work._replace(
                schedule=topology.plan("complete", 4, rounds=1), rows=work.rows[wide], steps=work.steps[wide],
                sites=jax.tree.map(lambda part: part[wide], work.sites), owner=np.full_like(work.owner, -1),
            )  # fmt: skip
        seen: list[Any] = []
        engine.run(work, How(1, 1, False), lambda _, found: seen.extend(found), lambda: 0.0)
    return float(seen[-1].score[slice(None) if alone else wide].mean())
