"""Robust rules: each is its definition by oracle rows, what it is equivariant to, needs, and does to books."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federations import TABLE, federation_of
from scipy.stats import skew

from p2pfl import topology
from p2pfl.algorithms import ALGORITHMS
from p2pfl.errors import ConfigError, TopologyError
from p2pfl.learning import quadratic
from p2pfl.methods import robust
from p2pfl.methods.compose import WRAPS, cast, chain
from p2pfl.methods.robust import RULES, clip, dos, geometric_median, krum, median, monna, multi_krum, trimmed_mean
from p2pfl.runs import simulated
from p2pfl.topology import requirements
from p2pfl.types import Algorithm, Inbox, Neighborhood

Wrap = Callable[[Algorithm], Algorithm]
ORACLE = np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9], [2, 3, 4], [100, -100, 50]])
"""Four models and a lie; of these byzfl gives the results below with f = 1."""
HONEST = [3.5, 4.5, 5.5]
RNG = np.random.default_rng(0)
SOME = RNG.normal(size=(7, 4))
TO = np.array([3.0, -1, 0, 2])
ONE_OF_EACH: dict[str, Wrap] = {
    "trimmed_mean": trimmed_mean(1), "median": median(1), "krum": krum(1), "multi_krum": multi_krum(1),
    "geometric_median": geometric_median(1), "monna": monna(1), "dos": dos(), "clip": clip(f=1),
}  # fmt: skip


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def base() -> Algorithm:
    return ALGORITHMS["dsgd"](quadratic.learner(2), optax.sgd(0.1))


@cache
def compiled(wrap: Wrap) -> tuple[Algorithm, Any]:
    algorithm = wrap(base())
    return algorithm, jax.jit(algorithm.mix)


def mixed(wrap: Wrap, rows: np.ndarray, own: int = 0, arrived: Any = None, weight: Any = None) -> np.ndarray:
    """Where a node ends whose model is row `own` and whose neighbours have the others.

    A model lies in two leaves, of which one is called as what travels beside models is: a layer may be.
    """
    algorithm, mix = compiled(wrap)

    def model(x: np.ndarray) -> Any:
        return {"trained": {"a": jnp.asarray(x[..., :1]), "own": jnp.asarray(x[..., 1:])}, "carried": {}}

    others = np.delete(rows, own, axis=0)
    slots = len(others)
    state = algorithm.init(model(rows[own]), slots)
    sent = np.broadcast_to(rows[own], others.shape)
    here = np.ones(slots, bool) if arrived is None else np.asarray(arrived)
    inbox = Inbox(model(sent), model(others), jnp.asarray(here), jnp.zeros(slots, jnp.int32))
    weights = np.full(slots, 1 / (slots + 1)) if weight is None else np.asarray(weight)
    found = algorithm.params(mix(state, inbox, Neighborhood(jnp.asarray(weights), weights)))
    return np.concatenate([np.asarray(found["trained"][name]) for name in ("a", "own")])


# ----------------------------------------------------------------------------------------------------------- by oracle


@pytest.mark.parametrize(
    "wrap, wanted",
    [
        (trimmed_mean(1), [13 / 3, 10 / 3, 19 / 3]),
        (median(1), [4, 3, 6]),
        (krum(1, score="byzfl"), [4, 5, 6]),
        (krum(1), [2, 3, 4]),  # of n - f - 2 = 2 others: 3 + 12 is less than 3 + 27, 12 + 27 and 27 + 75
        (multi_krum(1), HONEST),
        (multi_krum(1, m=2), [1.5, 2.5, 3.5]),
        (monna(1), HONEST),
        (trimmed_mean(1, nnm=True), HONEST),  # of honest models the four nearest are the honest ones
        (median(1, nnm=True), HONEST),
        (krum(1, nnm=True), HONEST),
        (multi_krum(1, nnm=True), HONEST),
        (monna(1, nnm=True), HONEST),
    ],
)
@pytest.mark.parametrize("own", [0, pytest.param(2, marks=pytest.mark.more)])
def test_a_rule_is_its_definition(wrap: Wrap, wanted: list[float], own: int) -> None:
    np.testing.assert_allclose(mixed(wrap, ORACLE, own), wanted, rtol=1e-9)


@pytest.mark.more
def test_the_geometric_median_of_the_library_and_where_many_steps_end() -> None:
    """byzfl takes three steps from zero; here they begin at the node's own model, and many end at a zero gradient."""
    seen = robust.ClosedNeighborhood([jnp.asarray(ORACLE)], robust.distances([jnp.asarray(ORACLE)]), jnp.ones(5, bool),
                       jnp.int32(5), lambda: jnp.zeros((5, 5)))  # fmt: skip
    weights = robust.weiszfeld(seen, jnp.linalg.norm(jnp.asarray(ORACLE), axis=1), 0.1, 3)
    np.testing.assert_allclose(np.asarray(weights) @ ORACLE, [3.3094, 3.4202, 5.0793], atol=5e-5)
    z = mixed(geometric_median(nu=1e-9, steps=3000), SOME)
    apart = SOME - z
    np.testing.assert_allclose((apart / np.linalg.norm(apart, axis=1, keepdims=True)).sum(axis=0), 0, atol=1e-3)
    ends = [mixed(geometric_median(steps=400), ORACLE, own) for own in range(4)]
    np.testing.assert_allclose(ends, [ends[0]] * 4, atol=1e-6)  # wherever it begins


@pytest.mark.more
def test_clipped_gossip_takes_the_second_largest_distance() -> None:
    weight = np.array([0.1, 0.3, 0.2, 0.25])
    apart = np.delete(ORACLE, 1, axis=0) - ORACLE[1]
    norm = np.linalg.norm(apart, axis=1)
    for f in (0, 1, 2):
        radius = np.sort(norm)[::-1][f]
        wanted = ORACLE[1] + weight @ (apart * np.minimum(1, radius / norm)[:, None])
        np.testing.assert_allclose(mixed(clip(f=f), ORACLE, 1, weight=weight), wanted, rtol=1e-9)
        np.testing.assert_allclose(mixed(clip(radius), ORACLE, 1, weight=weight), wanted, rtol=1e-9)


def copod(table: np.ndarray) -> np.ndarray:
    """As PyOD has it, with the tails counted and the skewness of scipy."""
    left = -np.log((table[None] <= table[:, None]).mean(axis=1))
    right = -np.log((table[None] >= table[:, None]).mean(axis=1))
    sign = np.sign(np.nan_to_num(skew(table, axis=0)))
    skewed = -left * np.sign(sign - 1) + right * np.sign(sign + 1)
    return np.asarray(np.maximum(skewed, (left + right) / 2).sum(axis=1))


@pytest.mark.more
@pytest.mark.parametrize("rows", [ORACLE, SOME + 1])
def test_dos_weighs_by_the_outlier_scores_of_two_matrices(rows: np.ndarray) -> None:
    euclid = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    norm = np.linalg.norm(rows, axis=1)
    cosine = 1 - rows @ rows.T / norm[:, None] / norm[None]
    np.fill_diagonal(cosine, 0)
    weight = np.exp(-(copod(euclid) + copod(cosine)) / 2)
    wanted = weight / weight.sum() @ rows
    for own in range(len(rows)):
        np.testing.assert_allclose(mixed(dos(), rows, own), wanted, rtol=1e-9)


# ------------------------------------------------------------------------------------------------------- equivariance


@pytest.mark.more
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_what_a_rule_is_equivariant_to(name: str) -> None:
    rule = ONE_OF_EACH[name]
    found = mixed(rule, SOME)
    order = np.array([0, 4, 2, 6, 1, 5, 3])
    np.testing.assert_allclose(mixed(rule, SOME[order]), found, rtol=1e-9)
    moved = mixed(rule, SOME + TO) - TO
    if name == "dos":  # cosines are taken of the models themselves
        assert abs(moved - found).max() > 1e-3
    else:
        np.testing.assert_allclose(moved, found, rtol=1e-6, atol=1e-9)
    scaled = mixed(geometric_median(1, nu=0.3) if name == "geometric_median" else rule, 3 * SOME) / 3
    np.testing.assert_allclose(scaled, found, rtol=1e-9)


@pytest.mark.more
def test_a_radius_that_is_given_is_in_units_of_the_model() -> None:
    assert abs(mixed(clip(0.5), 3 * SOME) / 3 - mixed(clip(0.5), SOME)).max() > 0.01
    np.testing.assert_allclose(mixed(clip(1.5), 3 * SOME) / 3, mixed(clip(0.5), SOME), rtol=1e-9)


@pytest.mark.more
@pytest.mark.parametrize(
    "wrap", [trimmed_mean(0), multi_krum(0), monna(0), trimmed_mean(0, nnm=True), median(nnm=True), clip(f=0)]
)
def test_without_liars_to_expect_it_is_the_plain_mean(wrap: Wrap) -> None:
    np.testing.assert_allclose(mixed(wrap, SOME, 3), SOME.mean(axis=0), rtol=1e-9)


@pytest.mark.more
@pytest.mark.parametrize("wrap", [krum(0), median(), geometric_median(), dos()])
def test_and_these_never_are(wrap: Wrap) -> None:
    assert abs(mixed(wrap, SOME, 3) - SOME.mean(axis=0)).max() > 1e-3


# --------------------------------------------------------------------------------------------------- gate, absentees


@pytest.mark.more
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_what_is_no_model_is_as_if_it_had_not_arrived(name: str) -> None:
    """Absent, not finite, or so large that no honest model can be it: the rule is that of the rest."""
    rule, rest = ONE_OF_EACH[name], mixed(ONE_OF_EACH[name], SOME[:-1])
    weight = np.full(6, 1 / 6)
    absent = mixed(rule, SOME, arrived=[True] * 5 + [False], weight=weight)
    np.testing.assert_allclose(absent, rest, rtol=1e-9)
    for junk in (np.nan, np.inf, 1e30, 1e200, -4000.0):
        spoilt = SOME.copy()
        spoilt[-1] = junk
        np.testing.assert_allclose(mixed(rule, spoilt, weight=weight), rest, rtol=1e-9)
        np.testing.assert_allclose(mixed(rule, spoilt, arrived=[True] * 5 + [False], weight=weight), rest, rtol=1e-9)


@pytest.mark.more
@pytest.mark.parametrize(
    "wrap, left",
    [
        (trimmed_mean(2), 4),
        (krum(1), 4),
        (multi_krum(1), 4),
        (multi_krum(1, m=6), 4),
        (monna(2), 4),
        (median(2), 4),
        (dos(), 2),
    ],
)
def test_of_too_few_models_a_node_keeps_its_own(wrap: Wrap, left: int) -> None:
    here = np.arange(6) < left - 1
    np.testing.assert_array_equal(mixed(wrap, SOME, arrived=here), SOME[0])
    assert abs(mixed(wrap, SOME, arrived=np.arange(6) < left) - SOME[0]).max() > 1e-3


@pytest.mark.more
def test_clipping_needs_more_neighbors_than_may_lie() -> None:
    np.testing.assert_array_equal(mixed(clip(f=2), SOME, arrived=np.arange(6) < 2), SOME[0])


@pytest.mark.more
def test_a_rule_is_not_rounded_to_what_travels() -> None:
    """Models travel in 16 bits; a median of them that is moved by a 16-bit number would stay where it is."""
    rows = (1 + 1e-3 * SOME[:5]).astype(np.float32)
    rounded = np.asarray(jnp.asarray(rows).astype(jnp.bfloat16).astype(jnp.float32))
    own = rows[0] - rounded[0]
    for wrap in (lambda it: chain(it, trimmed_mean(1), cast()), lambda it: chain(it, cast(), trimmed_mean(1))):
        algorithm = wrap(base())
        found = _through(algorithm, rows)
        np.testing.assert_allclose(found, np.sort(rounded, axis=0)[1:-1].mean(axis=0) + own, atol=1e-6)


def _through(algorithm: Algorithm, rows: np.ndarray) -> np.ndarray:
    """As nodes do it: each sends what the algorithm makes of its model."""
    around = Neighborhood(jnp.full(4, 0.2, jnp.float32), jnp.full(4, 0.2, jnp.float32))
    states = [algorithm.init({"trained": {"x": jnp.asarray(row)}, "carried": {}}, 4) for row in rows]
    sent = [algorithm.send(state, around)[1] for state in states]
    own = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (4, *leaf.shape)), sent[0])
    received = jax.tree.map(lambda *leaves: jnp.stack(leaves), *sent[1:])
    after = algorithm.mix(states[0], Inbox(own, received, jnp.ones(4, bool), jnp.zeros(4, jnp.int32)), around)
    return np.asarray(algorithm.params(after)["trained"]["x"])


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("name", RULES)
def test_a_neighborhood_that_is_too_small_is_refused_with_the_numbers(name: str) -> None:
    given = {} if name == "dos" else {"f": 2 if "krum" not in name else 1}
    algorithm = WRAPS[name](**given)(base())
    least = algorithm.demands.models
    requirements.check(algorithm, topology.plan("complete", least), "G")
    text = rf"^{name}.*: needs {least} models, a node's own among them, and in G node 0 has {least - 1}, with those of"
    with pytest.raises(TopologyError, match=text):
        requirements.check(algorithm, topology.plan("complete", least - 1), "G")


@pytest.mark.parametrize(
    "wrap, more, text",
    [
        ([{"name": "trimmed_mean", "f": 2}], {}, r"with f = 2: needs 5 models.* ring of 9 nodes node 0 has 3, with"),
        ([{"name": "trimmed_mean"}], {}, r"algorithm.wrap\[0\]: .*f"),
        ([{"name": "trimmed_mean", "f": 1.5}], {}, r"algorithm.wrap\[0\]: .*f=1.5: must be a whole number >= 0"),
        ([{"name": "krum", "f": 0, "score": "krm"}], {}, r"score='krm'"),
        ([{"name": "geometric_median", "nu": 0.0}], {}, r"nu=0.0: must be > 0"),
        ([{"name": "clip"}], {}, r"clip needs either radius, or f"),
        ([{"name": "clip", "radius": 1.0, "f": 1}], {}, r"clip needs either radius, or f"),
        ([{"name": "median"}, {"name": "dos"}], {}, r"algorithm.wrap: median and dos: each puts its own result"),
        ([{"name": "by_samples"}, {"name": "monna", "f": 1}], {}, r"by_samples and monna: a robust rule looks at no"),
        ([{"name": "median"}], {"name": "gradient_tracking"}, r"wrap median: gradient_tracking needs mixing that"),
        ([{"name": "clip", "f": 1}], {"name": "exact_diffusion"}, r"wrap clip: exact_diffusion needs mixing that"),
        ([{"name": "median"}], {"name": "local"}, r"wrap median: local exchanges nothing"),
        ([{"name": "median"}], {"name": "fedavg"}, r"wrap median: fedavg sends one way"),
    ],
)  # fmt: skip
def test_what_is_refused(wrap: list[Any], more: dict[str, Any], text: str) -> None:
    with pytest.raises((ConfigError, TopologyError), match=text):
        federation_of({**TABLE, "algorithm": {"name": "dsgd", **more, "wrap": wrap}})


# --------------------------------------------------------------------------------------------------------------- books


@pytest.mark.more
def test_no_rule_keeps_the_mean_and_a_run_says_so() -> None:
    """Every exchange is booked at both ends; but no sum over the nodes is kept, so no residual of it is shown."""
    table = {**TABLE, "topology": {"graph": "complete", "nodes": 5}}
    plain, ruled = (
        simulated.simulate_federation(federation_of({**table, "algorithm": {"name": "dsgd", "wrap": wrap}}))
        for wrap in ([], [{"name": "median"}])
    )
    assert plain.drift < 1e-15 and ruled.drift > 1e-4
    assert ruled.booked == plain.booked == ruled.planned
    assert all(each(base()).keeps_mean == "nothing" and not each(base()).linear for each in ONE_OF_EACH.values())


def test_who_has_too_few_neighbors_when_one_is_gone_keeps_its_own_and_is_named() -> None:
    """Before anything starts that is refused; later it stops those alone that it concerns."""
    wrap = [{"name": "krum", "f": 1}]
    table = {**TABLE, "topology": {"graph": "complete", "nodes": 5}, "algorithm": {"name": "dsgd", "wrap": wrap}}
    epoch = federation_of(table).planner()((0, 1, 2, 4))
    text = "too few neighbours for krum with f = 1, which needs 5 models, has node 0, 1, 2, 4: it keeps its own until"
    assert epoch.note.startswith(text)
    assert (epoch.schedule.neighbor[0, [0, 1, 2, 4]] >= 0).sum() == 12
