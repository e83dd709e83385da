"""Combinators: what they do to payloads and mixing, that they keep the mean, and in which order they stand."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nodes import CHUNK, STEPS, Nodes, distance, equal, learner, planned

from p2pfl import tree
from p2pfl.algorithms import ALGORITHMS
from p2pfl.errors import ConfigError
from p2pfl.methods.compose import RULES, WRAPS, cast, chain, clip
from p2pfl.types import Algorithm, Inbox, Neighborhood

pytestmark = pytest.mark.usefixtures("optimised_module")  # XLA may leave a rounding out when it optimises

EXCHANGES = ["dsgd", "gradient_tracking", "exact_diffusion"]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def bench(algorithm: Algorithm, graph: str = "ring", **given: Any) -> Nodes:
    return Nodes(algorithm, planned(algorithm, graph, 8), **given)


def made(name: str, **arguments: Any) -> Algorithm:
    return ALGORITHMS[name](learner(), optax.sgd(0.1), **arguments)


@cache
def plain(name: str) -> np.ndarray:
    return bench(made(name)).run(CHUNK, STEPS, loss=0.2)[1].x[-1]


def payload_bytes(algorithm: Algorithm, dtype: Any = np.float64) -> tuple[int, set[str]]:
    nodes = bench(algorithm, dtype=dtype)
    _, payload = nodes.train(nodes.start, nodes.data(), jnp.ones(8, jnp.int32), nodes.around())
    arrays = [leaf for leaf in jax.tree.leaves(payload) if leaf.ndim > 1]
    return tree.nbytes(arrays), {leaf.dtype.name for leaf in arrays}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_cast_halves_the_bytes(dtype: str) -> None:
    whole, _ = payload_bytes(made("dsgd"), np.float32)
    half, kinds = payload_bytes(chain(made("dsgd"), cast(dtype)), np.float32)
    assert (2 * half, kinds) == (whole, {dtype})
    assert chain(made("dsgd"), cast(dtype)).travels == f"the model, as {dtype}"


def test_cast_leaves_single_numbers_alone() -> None:
    """An age of 70,000 steps is more than float16 holds; as infinity it would make models of no number at all."""
    wrapped = chain(made("gossip_learning"), cast("float16"))
    model = {"trained": {"x": jnp.ones(2)}, "carried": {"z": jnp.ones(())}}
    state = wrapped.init(model, 1)._replace(age=jnp.float32(70000))
    state, payload = wrapped.send(state, Neighborhood(jnp.ones(1), jnp.ones(1)))
    assert payload["age"].dtype == np.float32 and payload["model"]["trained"]["x"].dtype == np.float16
    received = jax.tree.map(lambda leaf: leaf[None], payload)
    inbox = Inbox(received, received, jnp.ones(1, bool), jnp.zeros(1, jnp.int32))
    after = wrapped.mix(state, inbox, Neighborhood(jnp.ones(1), jnp.ones(1)))
    assert np.isfinite(wrapped.params(after)["trained"]["x"]).all() and float(after.age) == 70000


@pytest.mark.parametrize("name", EXCHANGES)
@pytest.mark.parametrize(
    "wraps",
    [
        pytest.param((cast(),), id="cast", marks=pytest.mark.more),
        pytest.param((clip(0.05),), id="clip", marks=pytest.mark.more),
        pytest.param((clip(0.5), cast("float16")), id="both"),
    ],
)
def test_the_mean_is_kept(name: str, wraps: Any) -> None:
    nodes = bench(chain(made(name), *wraps))
    _, trace = nodes.run(CHUNK, STEPS, loss=0.2)
    assert abs(trace.moved).max() <= 1e-12
    assert distance(trace.x[-1], plain(name)) > 1e-6  # it did something


def test_a_driver_that_sums_differences_itself_gets_no_rounded_ones() -> None:
    """Summed in bfloat16, they would move the mean by parts in a thousand: so no wrapped mixing is called linear."""
    assert made("dsgd").linear
    assert not chain(made("dsgd"), cast()).linear and not chain(made("dsgd"), clip(1.0)).linear


def test_cast_rounds_what_travels_and_nothing_else() -> None:
    """x + sum w (bf16(x_j) - bf16(x_i)), in the model's own precision."""
    nodes = bench(chain(made("dsgd"), cast()))
    trained, payload = nodes.train(nodes.start, nodes.data(), jnp.zeros(8, jnp.int32), nodes.around())
    mixed = nodes.mix(trained, nodes.inbox(payload, nodes.wires.weight[0] > 0), nodes.around())
    x = np.asarray(nodes.models["trained"]["x"])
    rounded = np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float64))
    others = rounded[nodes.wires.neighbor[0]]
    expected = x + (nodes.wires.weight[0][..., None] * (others - rounded[:, None])).sum(axis=1)
    assert distance(np.asarray(nodes.params(mixed)["trained"]["x"]), expected) < 1e-15
    assert distance(rounded, x) > 1e-4


# --------------------------------------------------------------------------------------------------------------- clip


def test_clip_bounds_what_a_neighbor_moves() -> None:
    """One neighbour sends something huge: a model moves by its weight times the radius, in that very direction."""
    radius = 0.5
    nodes = bench(chain(made("dsgd"), clip(radius)), "complete")
    trained, payload = nodes.train(nodes.start, nodes.data(), jnp.zeros(8, jnp.int32), nodes.around())
    inbox = nodes.inbox(payload, nodes.wires.weight[0] > 0)
    only = inbox._replace(arrived=inbox.arrived & (jnp.arange(7) == 2)[None, :])
    for size in (1e3, 1e30):
        bad = jax.tree.map(lambda leaf, size=size: leaf.at[:, 2].set(size), inbox.received)
        mixed = nodes.mix(trained, only._replace(received=bad), nodes.around())
        moved = np.concatenate(
            [
                np.asarray(a).reshape(8, -1) - np.asarray(b).reshape(8, -1)
                for a, b in zip(*(jax.tree.leaves(nodes.params(s)) for s in (mixed, trained)), strict=True)
            ],
            axis=1,
        )
        norm = np.linalg.norm(moved, axis=1)
        # the norm is computed in float32; an infinite one clips to nothing
        assert (norm <= radius / 8 * (1 + 1e-6)).all()
        if size < 1e10:
            assert (norm >= radius / 8 * (1 - 1e-6)).all()
            assert (moved > 0).all()
    plain = nodes.mix(trained, only, nodes.around())
    assert not equal(plain, trained)


@pytest.mark.more
def test_clip_at_a_large_radius_is_no_clip() -> None:
    plain, clipped = (bench(it).run(CHUNK, STEPS)[1].x for it in (made("dsgd"), chain(made("dsgd"), clip(1e9))))
    assert distance(plain, clipped) < 1e-13  # sent + (received - sent) is rounded once more
    tight = bench(chain(made("dsgd"), clip(1e-9))).run(CHUNK, STEPS)[1].x
    alone = bench(made("local")).run(CHUNK, STEPS)[1].x
    assert distance(tight, alone) < 1e-6


def test_clip_does_not_look_at_what_did_not_arrive() -> None:
    nodes = bench(chain(made("dsgd"), clip(0.5)))
    trained, payload = nodes.train(nodes.start, nodes.data(), jnp.ones(8, jnp.int32), nodes.around())
    inbox = nodes.inbox(payload, np.zeros((8, 2), bool))
    junk = inbox._replace(received=jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), inbox.received))
    assert equal(nodes.mix(trained, junk, nodes.around()), trained)


# -------------------------------------------------------------------------------------------------------------- chain


def test_the_first_wrap_lies_innermost() -> None:
    """The payload passes it first, and the inbox last: told by wraps that write down what they see."""
    seen: list[str] = []

    def named(name: str) -> Any:
        def wrap(inner: Algorithm) -> Algorithm:
            def send(state: Any, around: Neighborhood) -> Any:
                state, payload = inner.send(state, around)
                seen.append(f"send {name}")
                return state, payload

            def mix(state: Any, inbox: Inbox, around: Neighborhood) -> Any:
                seen.append(f"mix {name}")
                return inner.mix(state, inbox, around)

            return inner._replace(send=send, mix=mix)

        return wrap

    it = chain(made("dsgd"), named("first"), named("second"))
    around = Neighborhood(jnp.zeros(0), jnp.zeros(0))
    state, payload = it.send(it.init({"trained": {"x": jnp.ones(2)}, "carried": {}}, 0), around)
    none = jax.tree.map(lambda leaf: leaf[None][:0], payload)
    it.mix(state, Inbox(none, none, jnp.zeros(0, bool), jnp.zeros(0, jnp.int32)), around)
    assert seen == ["send first", "send second", "mix second", "mix first"]
    assert chain(it) is it


@pytest.mark.more
def test_clip_and_cast_in_either_order() -> None:
    """Clipping what was rounded, or rounding what is clipped later: the same, since clipping changes no payload."""
    one, other = (chain(made("dsgd"), *wraps) for wraps in ((clip(0.5), cast()), (cast(), clip(0.5))))
    x, y = (bench(it).run(CHUNK, STEPS, loss=0.2)[1].x for it in (one, other))
    assert distance(x, y) < 0.02  # in the second, differences are taken and clipped in bfloat16: 8 bits
    for it in (one, other):
        assert payload_bytes(it)[1] == {"bfloat16"}


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "wrap, text",
    [
        (lambda: cast("float64"), "dtype='float64': .*Valid: bfloat16, float16"),
        (lambda: cast("bfloat"), "dtype='bfloat': did you mean 'bfloat16'"),
        (lambda: clip(0.0), "radius=0.0: must be > 0"),
        (lambda: clip(-1.0), "radius=-1.0: must be > 0"),
        (lambda: clip(float("nan")), "radius=nan: must be > 0"),
        (lambda: chain(made("push_sum"), cast()), "wrap cast: push_sum sends running sums.*; leave cast out"),
        (lambda: chain(made("push_sum"), clip(1.0)), "wrap clip: push_sum sends running sums.*; leave clip out"),
        (
            lambda: chain(made("gossip_learning"), clip(1.0)),
            "wrap clip: gossip_learning merges by age.*; leave clip out",
        ),
    ],
)
def test_what_cannot_be_wrapped(wrap: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        wrap()


def test_the_table_of_wraps() -> None:
    assert WRAPS["cast"] is cast and WRAPS["clip"] is clip
    weighed = {"by_samples", "by_loss", "by_similarity", "by_labels"}
    assert set(WRAPS) == {"cast", "clip", "fourier", "noise", "zip_dl", "shatter", *weighed, *RULES}
