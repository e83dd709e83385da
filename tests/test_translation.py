"""Images brought to look like those of the simplest site: what is told, what is chosen, and what it is worth."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federations import TABLE, federation_of, right_of

from p2pfl.data import Dataset, Samples
from p2pfl.data.builtin import digits
from p2pfl.errors import ConfigError
from p2pfl.federation.federation import Federation
from p2pfl.learning import models
from p2pfl.learning.flax import from_flax
from p2pfl.methods import bulletin, objectives
from p2pfl.methods.objectives import simplest_site, translation
from p2pfl.methods.objectives.variational import Sizes
from p2pfl.types import Array, Learner, Params, Tree

KEY, HERE = jax.random.key(0), __name__


def test_complexity_is_the_entropy_of_grey_values_in_any_units() -> None:
    flat, half = jnp.full((1, 4, 4, 1), 3.0), jnp.repeat(jnp.asarray([0.0, 1.0]), 8).reshape(1, 4, 4, 1)
    ramp = jnp.linspace(0, 1, 32).reshape(1, 8, 4, 1)
    assert simplest_site.complexity(flat) == 0
    assert simplest_site.complexity(half) == pytest.approx(1, abs=1e-5)
    assert simplest_site.complexity(ramp) == pytest.approx(5, abs=1e-5)
    assert simplest_site.complexity(jnp.concatenate([half, 7 - 2 * half])) == pytest.approx(1, abs=1e-5)


@pytest.mark.more
def test_losses_of_a_cycle_are_those_of_the_paper() -> None:
    """Networks of zeros show all as black and judge all as false."""
    keys = jax.random.split(KEY, len(translation.NETWORKS))
    drawn = {name: draw(key, 1, 2) for key, (name, draw) in zip(keys, translation.NETWORKS.items(), strict=True)}
    x, target = jnp.full((2, 8, 8, 1), 3.0), jnp.full((2, 8, 8, 1), -2.0)
    both = translation.cycle_losses(jax.tree.map(jnp.zeros_like, drawn), x, target, cycle=10.0, identity=1.0)
    assert float(both[0]) == 1 + 1 + 10 * (3 + 2) + (2 + 3) and float(both[1]) == (1 + 0 + 1 + 0) / 2
    to = jax.grad(lambda networks: translation.cycle_losses(networks, x, target, 10.0, 0.0)[1])(drawn)
    assert not any(leaf.any() for name in ("there", "back") for leaf in jax.tree.leaves(to[name]))


@pytest.mark.more
def test_of_the_half_that_is_farther_from_raw_images_those_are_told_that_look_real() -> None:
    x = (8, 8, 1)
    plan = simplest_site.Stages(1, 1, 1, 2, 3, 2, 10.0, 0.0, 1, None, optax.adam(0.1))
    sizes = Sizes(x, 0, 3, 8, 2)
    home = simplest_site._networks(KEY, sizes, plan)
    made = simplest_site._generated(home["generator"], sizes, home["candidates"])
    raw = made[:4] + 0.01  # of 8 candidates, four are nearly what a patient's image is
    home = {**home, "nearest": jnp.full(8, simplest_site.UNTOLD), "checked": jnp.zeros((), jnp.int32)}
    home = simplest_site._checked(home, raw, sizes)
    assert home["checked"] == 4 and home["nearest"][:4].max() == pytest.approx(0.01, rel=1e-2)
    chosen = simplest_site._chosen(home, sizes, plan)
    score = np.asarray(simplest_site._score(home["critic"], sizes, made))
    best = 4 + np.argsort(-score[4:])[:2]
    np.testing.assert_allclose(chosen, made[best], atol=1e-6)


def scanners() -> Dataset:
    """Digits as three scanners show them: as they are; as a negative, with grain; pale, with grain."""
    whole, rng = digits(), np.random.default_rng(0)

    def part(samples: Samples, rows: int | None) -> Samples:
        x, y = samples.x.reshape(-1, 8, 8, 1)[:rows], samples.y[:rows]
        site = np.arange(len(x), dtype=np.int32) % 3
        grain = rng.normal(size=x.shape)
        seen = np.stack([x, 1 - x + 0.05 * grain, 0.4 + 0.5 * x + 0.05 * grain])
        return Samples(seen[site, np.arange(len(x))].astype(np.float32), y, site)

    train, test = part(whole.train, 600), part(whole.test, None)
    return whole._replace(train=train, test=test, sites=tuple("abc"), features=())


SCANNERS: dict[str, Any] = {
    **TABLE, "rounds": 60, "data": {"source": f"{HERE}:scanners", "partition": "by_site"},
    "model": {"name": "logistic"}, "topology": {"graph": "ring", "nodes": 3}, "evaluation": {"every": 60},
    "training": {"optimizer": {"name": "sgd", "learning_rate": 0.2}, "batch_size": 16, "local_steps": 20},
}  # fmt: skip


def own_scores(table: dict[str, Any]) -> tuple[Federation, Tree, float]:
    """The mean over sites of how often their model is right on test rows of their own."""
    made = federation_of(table)
    test, (models, right) = made.dataset.test, right_of(made)
    assert test.site is not None
    return made, models, float(np.mean([right[node][test.site == node].mean() for node in range(len(right))]))


@pytest.mark.soak
def test_one_model_is_right_at_all_scanners_once_images_look_like_those_of_the_simplest_site(optimised: None) -> None:
    method = {"name": "vafl", "make": 400, "translate": 400, "channels": 8}
    made, models, harmonised = own_scores({**SCANNERS, "training": {**SCANNERS["training"], "objective": [method]}})
    plain = own_scores(SCANNERS)[2]
    alone = own_scores({**SCANNERS, "algorithm": {"name": "local"}})[2]
    assert harmonised > plain + 0.4  # seen: .883 and .332
    assert harmonised > alone - 0.05  # .900: no better than alone
    table = models["private"]["vafl"]  # what all have heard: images of the simplest site alone
    assert table["rows"]["there"].tolist() == [[1, 0, 0]] * 3 and not table["rows"]["images"][:, 1:].any()
    assert (table["rows"]["complexity"].argmin(axis=1) == 0).all()
    assert models["private"][simplest_site.HOME]["target"].tolist() == [0, 0, 0]
    assert any("made images like those of its patients" in note for note in made.notes)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"look": 0}, "look=0: must be a whole number >= 1"),
        ({"images": 1.5}, "images=1.5: must be a whole number"),
        ({"cycle": 0}, "cycle=0: must be > 0"),
        ({"identity": -1}, "identity=-1: must be >= 0"),
        ({"reference": -1}, "reference=-1: must be a whole number >= 0"),
    ],
)
def test_arguments_out_of_bounds(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        objectives.vafl(optax.sgd(0.1), **given)


def test_only_images_of_which_something_is_predicted_are_translated() -> None:
    suits = objectives.vafl(optax.sgd(0.1)).suits
    assert suits is not None
    suits(scanners())
    with pytest.raises(ConfigError, match=r"objective vafl: is for images .* these are rows of shape \[64\]"):
        suits(digits())
    with pytest.raises(ConfigError, match="these are a reconstruction"):
        suits(scanners()._replace(kind="reconstruction"))


STAGES: dict[str, Any] = {
    **SCANNERS, "rounds": 10, "evaluation": {"every": 10},
    "training": {**SCANNERS["training"], "local_steps": 2, "objective": [
        {"name": "vafl", "reference": 1, "look": 1, "make": 2, "translate": 2, "images": 2, "latent": 2, "channels": 2},
    ]},
}  # fmt: skip


def test_a_reference_that_is_not_there_is_refused() -> None:
    method = {**STAGES["training"]["objective"][0], "reference": 3}
    with pytest.raises(ConfigError, match="objective vafl: reference=3: there are nodes 0 to 2"):
        federation_of({**STAGES, "training": {**STAGES["training"], "objective": [method]}})


@pytest.mark.parametrize(
    ("reference", "more", "text"),
    [
        (
            None,
            {"node_steps": [2, 2, 0]},
            r"node_steps: node 2 takes no local step, and training.objective\[0\] \(vafl",
        ),
        (1, {"node_steps": [2, 0, 2]}, r"node_steps: node 1 takes no local step"),
        (1, {}, "objective vafl: waits for what other sites tell, and algorithm local sends nothing"),
    ],
)
def test_stages_that_would_never_begin_are_refused(reference: int | None, more: dict[str, Any], text: str) -> None:
    method = {**STAGES["training"]["objective"][0]}
    method = {name: value for name, value in method.items() if name != "reference"}
    method |= {} if reference is None else {"reference": reference}
    training = {**STAGES["training"], "objective": [method], **more}
    with pytest.raises(ConfigError, match=text):
        federation_of({**STAGES, "algorithm": {"name": "dsgd" if more else "local"}, "training": training})


def test_what_was_known_first_stays_and_nobody_else_tells_a_site_that_it_has_looked() -> None:
    plan = simplest_site.Stages(3, 1, 1, 2, 2, 2, 10.0, 0.0, 1, None, optax.sgd(0.1))

    def target(version: list[int], looked: int, latched: int, complexity: tuple[float, ...] = (0, 2, 1)) -> list[int]:
        table = {"rows": {"complexity": jnp.asarray(complexity, jnp.float32)}, "version": jnp.asarray(version)}
        home = {"looked": jnp.int32(looked), "target": jnp.int32(latched)}
        site = {"node": jnp.asarray([1.0, 0.0, 0.0])}
        private = {simplest_site.NAME: table, simplest_site.HOME: home, "site": site}
        which, known = simplest_site.target({"private": private}, plan)
        return [int(which), int(known)]

    assert target([7, 1, 1], looked=2, latched=-1)[1] == 0  # its own row is of a version that others have made up
    assert target([8, 1, 0], looked=3, latched=-1)[1] == 0  # one was not heard
    assert target([8, 1, 1], looked=3, latched=-1, complexity=(3, 2, 1)) == [2, 1]
    assert target([8, 2, 1], looked=9, latched=2, complexity=(3, 0, 1)) == [2, 1]  # a lie that comes too late


def waiting(reference: int | None = 0, node: int = 1) -> tuple[Learner, Params]:
    """The learner of one of two nodes, and its first model; it has a batch normalisation."""
    x, method = (4, 4, 1), objectives.vafl(optax.sgd(0.1), reference, 1, 1, 1, images=2, latent=2, channels=2)
    assert method.bulletin is not None and method.shaped is not None
    network = from_flax(models.mlp(x, 2, hidden=(3,), norm="batch"), jnp.zeros((1, *x)), 2)
    learner = method.shaped(bulletin.placed(network, method.bulletin, 2, x), x)
    params = learner.init(KEY)
    site = {"node": (jnp.arange(2) == node).astype(jnp.float32), "samples": jnp.asarray(20.0)}
    return learner, {**params, "private": {**params["private"], "site": site}}


@pytest.mark.more
def test_statistics_of_images_as_they_are_stay_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no gradient, and would travel while a site waits for its translators."""
    monkeypatch.setattr(simplest_site, "_stepped", lambda params, *_: params["private"])
    learner, params = waiting()
    batch = {"x": jax.random.normal(KEY, (4, 4, 4, 1)), "y": jnp.zeros(4, jnp.int32)}
    home = params["private"][simplest_site.HOME]
    ready = {**params["private"], simplest_site.HOME: {**home, "translated": jnp.int32(1)}}
    for private, moves in ((params["private"], False), (ready, True)):
        gradient, others, _ = jax.jit(learner.grad)({**params, "private": private}, batch, KEY)
        moved = [bool((new != old).any()) for new, old in zip(
            jax.tree.leaves(others["carried"]), jax.tree.leaves(params["carried"]), strict=True)]  # fmt: skip
        assert any(moved) == moves == any(leaf.any() for leaf in jax.tree.leaves(gradient))


@pytest.mark.more
def test_images_that_are_told_are_cut_to_what_is_like_the_own_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Array] = []

    def losses(networks: Tree, x: Array, images: Array, *_: float) -> tuple[Array, Array]:
        seen.append(images)
        return networks["there"].sum(), networks["there"].sum()

    monkeypatch.setattr(translation, "cycle_losses", losses)
    plan = simplest_site.Stages(1, 1, 1, 2, 2, 2, 10.0, 0.0, 1, 0, optax.sgd(0.1))
    cycle = {"there": jnp.ones(1)}
    home = {"cycle": cycle, "optimizer": {"cycle": plan.optimizer.init(cycle)}, "translated": 0, "reach": 1.5}
    for value, cut in ((1000.0, 3.0), (-1000.0, -3.0), (2.0, 2.0), (jnp.nan, 0.0)):
        simplest_site._cycled(home, jnp.ones((3, 4, 4, 1)), jnp.full((2, 4, 4, 1), value), KEY, plan)
        assert (seen[-1] == cut).all()


@pytest.mark.more
def test_what_translators_show_is_cut_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translation, "translated", lambda network, x: jnp.full_like(x, jnp.inf))
    learner, params = waiting()
    home = {**params["private"][simplest_site.HOME], "translated": jnp.int32(1), "reach": jnp.asarray(1.5)}
    shown = {**params, "private": {**params["private"], simplest_site.HOME: home}}
    assert jnp.isfinite(learner.predict(shown, jnp.ones((2, 4, 4, 1)))).all()
