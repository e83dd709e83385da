"""Models of a node's own do what their papers say: better than the shared one, and than training alone.

Four sites with few images each, which look unlike (scanners), or are called by other names (label maps), or both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]

from p2pfl.algorithms import ALGORITHMS
from p2pfl.data import Dataset, Samples, builtin
from p2pfl.learning import models as models_of
from p2pfl.learning import quadratic
from p2pfl.learning.flax import from_flax
from p2pfl.learning.local_steps import placed
from p2pfl.learning.targets import TARGETS
from p2pfl.methods import bulletin
from p2pfl.methods.answers import Own, adaptation, prepared
from p2pfl.methods.answers.selector import SHARED, selector
from p2pfl.methods.appearance import features, likely
from p2pfl.methods.compose import withhold
from p2pfl.methods.objectives import OBJECTIVES
from p2pfl.types import Algorithm, Inbox, Learner, Neighborhood, Tree

SITES, TESTED = 4, 400
NAMES = ("north", "east", "south", "west")
SCANNERS = ((0.5, 1.0, 0.0), (1.0, 0.6, 0.3), (2.0, 1.0, 0.0), (1.0, 1.4, -0.2))
"""Gamma, contrast, brightness."""
KEY = jax.random.key(0)


def sites(images: int = 40, maps: bool = False, seed: int = 0) -> Dataset:
    """Digits at four sites with `images` training images each; all test on the same 400 images, as each sees them.

    They look as SCANNERS say. `maps`: site i calls digits d and d + 5 by each other's names for d < i.
    """
    whole = builtin.digits()
    x, y = (np.concatenate([getattr(part, name) for part in (whole.train, whole.test)]) for name in "xy")
    order = np.random.default_rng([seed, 0x517E5]).permutation(len(y))
    parts = []
    for train in (True, False):
        own = [order[site * images : (site + 1) * images] if train else order[-TESTED:] for site in range(SITES)]
        xs, ys = [], []
        for site, rows in enumerate(own):
            seen, called = x[rows].reshape(-1, 8, 8, 1), y[rows]
            gamma, contrast, brightness = SCANNERS[site]
            seen = np.clip(contrast * np.clip(seen, 0, 1) ** gamma + brightness, 0, 1)
            xs.append(seen.astype(np.float32))
            ys.append(np.where(called % 5 < site, (called + 5) % 10, called) if maps else called)
        place = np.repeat(np.arange(SITES, dtype=np.int32), [len(rows) for rows in own])
        parts.append(Samples(np.concatenate(xs), np.concatenate(ys).astype(np.int32), place))
    return whole._replace(train=parts[0], test=parts[1], sites=NAMES, features=(), validation=None)


def ready(
    base: Learner, optimizer: Any, objectives: Sequence[dict[str, Any]], dataset: Dataset, name: str = "dsgd"
) -> Algorithm:
    """The algorithm with a learner that has these objectives, as an experiment makes it."""
    made = []
    for each in objectives:
        method = OBJECTIVES[each["name"]](optimizer, **{key: each[key] for key in each if key != "name"})
        if method.bulletin:
            base = bulletin.placed(base, method.bulletin, len(dataset.sites), dataset.train.x.shape[1:])
        base = method.learner(base) if method.learner else base
        made.append(method)
    algorithm = withhold(ALGORITHMS[name](base, optimizer))
    for method in made:
        algorithm = method.wrap(algorithm) if method.wrap else algorithm
        algorithm = bulletin.carried(method.bulletin)(algorithm) if method.bulletin else algorithm
    return algorithm._replace(learner=base)


def train(algorithm: Algorithm, dataset: Dataset, rounds: int = 40, steps: int = 4, size: int = 16) -> Tree:
    """The models of all sites, stacked, after rounds on a complete graph; with algorithm "local" each alone."""
    learner, place = algorithm.learner, dataset.train.site
    assert learner is not None and place is not None
    n = int(place.max()) + 1
    rng = np.random.default_rng(0)
    rows = np.stack([rng.choice(np.flatnonzero(place == i), (rounds, steps, size)) for i in range(n)], axis=1)
    others = jnp.asarray([[j for j in range(n) if j != i] for i in range(n)], jnp.int32)
    around = Neighborhood(*(jnp.full((n, n - 1), 1 / n, jnp.float32),) * 2)
    keys = jax.random.split(jax.random.key(1), n)

    def round(state: Any, item: Any) -> tuple[Any, None]:
        number, batch = item
        key = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
        state, _ = jax.vmap(lambda s, b, k: algorithm.local(s, b, k, None))(state, batch, key)
        if algorithm.link == "none":
            return state, None
        state, payload = jax.vmap(algorithm.send)(state, around)
        sent = jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], n - 1, axis=1), payload)
        received = jax.tree.map(lambda leaf: leaf[others], payload)
        here = jnp.ones((n, n - 1), bool)
        return jax.vmap(algorithm.mix)(state, Inbox(sent, received, here, here.astype(jnp.int32) * 0), around), None

    @jax.jit
    def run(x: Any, y: Any) -> Tree:
        def first(node: Any) -> Any:
            site = {"node": node, "samples": jnp.float32(len(dataset.train.y) // n)}
            return algorithm.init(placed(learner.init(KEY), site), n - 1)

        items = (jnp.arange(rounds, dtype=jnp.int32), {"x": x[rows], "y": y[rows]})
        state = jax.lax.scan(round, jax.vmap(first)(jnp.eye(n, dtype=jnp.int32)), items)[0]
        return jax.vmap(algorithm.params)(state)

    return run(jnp.asarray(dataset.train.x), jnp.asarray(dataset.train.y))


def accuracies(learner: Learner, models: Tree, dataset: Dataset, personal: bool = False) -> np.ndarray:
    """[n] of each site's model on its own test rows."""
    test, n = dataset.test, int(dataset.test.site.max()) + 1  # type: ignore[union-attr]
    own = {name: jnp.asarray(getattr(test, name).reshape(n, -1, *getattr(test, name).shape[1:])) for name in "xy"}

    @jax.jit
    def run(models: Tree, own: Tree) -> Any:
        def one(params: Tree, batch: Tree) -> Any:
            if personal:
                assert learner.personal is not None
                params = learner.personal(params)
            return learner.evaluate(params, batch, jnp.ones(len(batch["y"])))["score"].mean()

        return jax.vmap(one)(models, own)

    return np.asarray(run(models, own))


def mlp(dataset: Dataset, hidden: Sequence[int] = (32,), norm: str | None = None) -> Learner:
    shape = dataset.train.x.shape[1:]
    return from_flax(
        models_of.mlp(shape, len(dataset.classes), hidden, norm), dataset.train.x[:1], len(dataset.classes)
    )


def quadratics(name: str, **arguments: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two nodes with losses 1/2 sum a (x - b)^2, until they rest: a, b, the shared model, the own ones; all [2, 3]."""
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.2, 2, (2, 3)).astype(np.float32), rng.normal(size=(2, 3)).astype(np.float32)
    x = np.concatenate([a, b], axis=1)
    rows = Samples(x, np.zeros(2, np.float32), np.arange(2, dtype=np.int32))
    data = Dataset(rows, rows, (), ("a", "b"))
    algorithm = ready(quadratic.learner(3), optax.sgd(0.1), [{"name": name, **arguments}], data)
    models = train(algorithm, data, rounds=800, steps=1, size=1)
    assert algorithm.learner is not None and algorithm.learner.personal is not None
    return (
        a,
        b,
        np.asarray(models["trained"]["x"]),
        np.asarray(jax.vmap(algorithm.learner.personal)(models)["trained"]["x"]),
    )


def test_iop_rests_where_its_own_gradient_is_a_share_of_that_at_the_shared_model_and_ditto_does_not() -> None:
    """So it has gone as far from its own minimum in every direction, which ditto leaves to curvature."""
    a, b, w, v = quadratics("iop", strength=0.4)
    np.testing.assert_allclose(w, np.broadcast_to((a * b).sum(axis=0) / a.sum(axis=0), w.shape), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(v, b + 0.4 * (w - b), rtol=2e-3, atol=2e-3)
    a, b, w, pulled = quadratics("ditto", strength=0.4)
    way = (pulled - b) / (w - b)
    np.testing.assert_allclose(way, 0.4 / (a + 0.4), rtol=2e-2)
    assert np.ptp(way) > 0.2


@cache
def alone() -> np.ndarray:
    """[n] accuracies at each site that trains by itself."""
    dataset = sites(maps=True)
    algorithm = ready(mlp(dataset), optax.sgd(0.3), [], dataset, "local")
    assert algorithm.learner is not None
    return accuracies(algorithm.learner, train(algorithm, dataset), dataset)


@pytest.mark.more
@pytest.mark.parametrize(
    ("objective", "ahead"), [({"name": "iop", "strength": 0.5}, 0.01), ({"name": "cusfl", "strength": 1.0}, -0.02)]
)
def test_where_sites_differ_an_own_model_is_better_than_the_shared_one_and_as_good_as_training_alone_or_better(
    objective: dict[str, Any], ahead: float
) -> None:
    """40 images at each of four sites, of other scanners and with other names for some digits; `ahead`: of alone."""
    dataset = sites(maps=True)
    algorithm = ready(mlp(dataset), optax.sgd(0.3), [objective], dataset)
    models, learner = train(algorithm, dataset), algorithm.learner
    assert learner is not None
    shared, own = (accuracies(learner, models, dataset, personal) for personal in (False, True))
    found = {"alone": alone(), "shared": shared, "own": own}
    means = {name: float(each.mean()) for name, each in found.items()}
    assert means["own"] > means["alone"] + ahead and means["own"] > means["shared"] + 0.03, means
    assert found["own"].min() > found["shared"].min(), found


# --- FedSM


def rows_of(models: Tree, i: int) -> Tree:
    return jax.tree.map(lambda leaf: leaf[i], models)


def super_model(algorithm: Algorithm, models: Tree, dataset: Dataset) -> tuple[float, list[float], np.ndarray]:
    """Scores on the test rows of all sites together: of the choice by node 0's selector, of every single model that it
    chooses among; and what it chose."""
    learner = algorithm.learner
    assert learner is not None and learner.personal is not None
    nodes = [rows_of(models, i) for i in range(len(dataset.sites))]
    personals = {i: jax.jit(learner.personal)(model) for i, model in enumerate(nodes)}
    chosen = selector(learner, nodes[0], personals)
    score, run = TARGETS[dataset.kind].score, jax.jit(learner.predict)
    x, y = jnp.asarray(dataset.test.x), jnp.asarray(dataset.test.y)

    def scored(outputs: Any) -> float:
        return float(score(jnp.asarray(outputs), y, jnp.ones(len(y))).mean())

    single = [scored(run(model, x)) for model in (nodes[0], *personals.values())]
    return scored(chosen.predict(nodes[0], dataset.test.x)), single, chosen.choose(dataset.test.x)


FEDSM = ({"name": "soft_pull"}, {"name": "selector", "learning_rate": 0.2})


@pytest.mark.more
def test_the_selector_of_all_sites_is_better_than_any_single_model_on_a_mixture_of_sites() -> None:
    dataset = sites(maps=True)
    algorithm = ready(mlp(dataset), optax.sgd(0.3), FEDSM, dataset)
    models = train(algorithm, dataset, rounds=60)
    whole, single, chosen = super_model(algorithm, models, dataset)
    assert whole > max(single) + 0.01, (whole, single)
    sure = chosen != SHARED
    assert sure.mean() > 0.5 and (chosen == dataset.test.site)[sure].mean() > 0.95
    own, shared = (accuracies(algorithm.learner, models, dataset, p) for p in (True, False))  # type: ignore[arg-type]
    assert own.mean() > shared.mean()


def organs(images: int = 24, size: int = 12, dark: bool = True, seed: int = 0) -> Dataset:
    """Pictures with a bright and a dark disc on the scanner's ground; `dark`: every other site's organ is that one."""
    rng, parts = np.random.default_rng(seed), []
    down, right = np.mgrid[:size, :size]
    for count in (images, 60):
        xs, ys = [], []
        for site in range(SITES):
            for _ in range(count):
                image, masks = np.full((size, size), 0.3 + 0.1 * site), []
                for place, light in ((rng.integers(2, 4), 0.2), (rng.integers(8, 10), -0.2)):
                    disc = (down - rng.integers(3, size - 3)) ** 2 + (right - place) ** 2 <= 5
                    image = np.where(disc, image + light, image)
                    masks.append(disc)
                image = image + (0.02 + 0.02 * (site // 2)) * rng.normal(size=image.shape)
                xs.append(image[..., None])
                ys.append(masks[site % 2 if dark else 0])
        place = np.repeat(np.arange(SITES, dtype=np.int32), count)
        parts.append(Samples(np.asarray(xs, np.float32), np.asarray(ys, np.int32), place))
    return Dataset(parts[0], parts[1], ("ground", "organ"), NAMES, kind="segmentation")


@pytest.mark.more
def test_the_selector_of_all_sites_segments_a_mixture_of_sites_better_than_any_single_model() -> None:
    dataset = organs()
    base = from_flax(models_of.unet((12, 12, 1), 2, (6,)), dataset.train.x[:1], 2, "segmentation")
    algorithm = ready(base, optax.sgd(0.2, momentum=0.9), FEDSM, dataset)
    whole, single, chosen = super_model(algorithm, train(algorithm, dataset, rounds=40, steps=2, size=8), dataset)
    assert whole > max(single) + 0.1 and whole > 0.6, (whole, single)
    assert (chosen == dataset.test.site)[chosen != SHARED].mean() > 0.95


@pytest.mark.more
def test_by_gossip_all_come_to_the_selector_that_rows_of_all_sites_would_give() -> None:
    """Softmax regression on all rows in one place tells as many rows apart; and nodes agree on theirs."""
    dataset = sites(images=60)
    learner = mlp(dataset, hidden=())
    algorithm = ready(learner, optax.sgd(0.1), FEDSM[1:], dataset)
    models = train(algorithm, dataset, rounds=80, steps=2)
    found = [np.asarray(likely(rows_of(models, i), jnp.asarray(dataset.test.x))) for i in range(SITES)]
    apart = [float((each.argmax(axis=1) == dataset.test.site).mean()) for each in found]
    x = [np.asarray(features(jnp.asarray(part.x)), np.float64) for part in (dataset.train, dataset.test)]
    scaler = StandardScaler().fit(x[0])
    pooled = LogisticRegression(max_iter=2000).fit(scaler.transform(x[0]), dataset.train.site)
    assert min(apart) > pooled.score(scaler.transform(x[1]), dataset.test.site) - 0.03, apart
    assert max(apart) - min(apart) < 0.02


# --- a site that joins without labels: IOP-FL, outside


@pytest.mark.more
def test_images_come_back_as_they_were_turned_and_each_turn_is_drawn() -> None:
    square, seen = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3, 1)), jnp.float32), set()
    turn = jax.jit(adaptation.turned, static_argnames="back")
    for number in range(40):
        key = jax.random.key(number)
        once = turn(square, key)
        np.testing.assert_array_equal(turn(once, key, back=True), square)
        seen.add(np.asarray(once).tobytes())
    assert len(seen) == 8
    assert adaptation.turned(square[:, :2], KEY).shape == (2, 2, 3, 1)


def test_an_edge_is_rough_within_the_window_and_a_plane_nowhere() -> None:
    p = np.zeros((1, 8, 8, 1), np.float32)
    np.testing.assert_allclose(adaptation.rough(jnp.asarray(p)), 0, atol=1e-5)
    p[:, 4:] = 1  # the window is of 3 x 3: the two rows at the edge see both sides
    np.testing.assert_allclose(adaptation.rough(jnp.asarray(p)), 4, rtol=1e-5)


@pytest.mark.more
def test_a_bank_is_mixed_layer_by_layer() -> None:
    learner = mlp(sites(images=2), (3,), "batch")
    bank = [jax.tree.map(lambda leaf, i=i: leaf * 0 + i, learner.init(KEY)) for i in (0, 1, 5)]
    found = adaptation.start(bank)
    even = adaptation.routed(bank, found)["trained"]
    assert all(np.allclose(leaf, 2) for leaf in jax.tree.leaves(even))
    found["route"]["layers/0"] = jnp.asarray([0.0, 99.0, 0.0])
    one = adaptation.routed(bank, found)["trained"]
    assert np.allclose(one["layers"][0]["kernel"], 1) and np.allclose(one["layers"][1]["kernel"], 2)


@pytest.mark.more
def test_without_labels_an_unseen_site_segments_better_when_adapted(optax_promotes: None) -> None:
    """Three sites find the bright organ of two; a fourth, of faded contrast, has no labels."""
    whole = organs(dark=False)
    assert whole.train.site is not None and whole.test.site is not None
    seen, new = whole.train.site < SITES - 1, whole.test.site == SITES - 1
    train_rows = Samples(whole.train.x[seen], whole.train.y[seen], whole.train.site[seen])
    dataset = whole._replace(train=train_rows, sites=NAMES[:-1])
    base = from_flax(models_of.unet((12, 12, 1), 2, (6,), "batch"), dataset.train.x[:1], 2, "segmentation")
    algorithm = ready(base, optax.sgd(0.1, momentum=0.9), [{"name": "iop", "strength": 0.5}], dataset)
    learner = algorithm.learner
    assert learner is not None and learner.personal is not None
    models = train(algorithm, dataset, rounds=40, steps=2, size=8)
    nodes = [rows_of(models, i) for i in range(SITES - 1)]
    bank = tuple(jax.jit(learner.personal)(model) for model in nodes)
    rows = Samples(0.4 * whole.test.x[new] + 0.05, whole.test.y[new])
    answer = prepared(["consensus", "adapted", "routed"], learner, optax.sgd(0.1), "segmentation", 8, 0)
    found = answer(Own(0, nodes[0], rows, unlabelled=rows.x, bank=bank))
    batch, ones = {"x": jnp.asarray(rows.x), "y": jnp.asarray(rows.y)}, jnp.ones(len(rows.y))
    run = jax.jit(learner.evaluate)
    score = {name: float(run(each.params, batch, ones)["score"].mean()) for name, each in found.items()}
    assert score["adapted"] > score["consensus"] + 0.1 and score["routed"] > score["consensus"] + 0.1, score
    assert "a bank of 4 models" in found["routed"].note
