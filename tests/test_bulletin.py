"""What methods share: features of a model, a second network beside it, and a table that goes round by gossip."""

from __future__ import annotations

from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federations import NETWORK, at_once, federation_of, looped
from flax import nnx

from p2pfl.drivers.simulate import loop
from p2pfl.errors import ConfigError
from p2pfl.federation.tasks import tasks
from p2pfl.learning import models, quadratic
from p2pfl.learning.flax import from_flax
from p2pfl.methods import bulletin
from p2pfl.methods.bulletin import Bulletin
from p2pfl.methods.objectives import Objective
from p2pfl.methods.objectives.objective import featured
from p2pfl.methods.objectives.second import beside
from p2pfl.runs import simulated
from p2pfl.types import Key, Learner, Metrics, Params, Tree

HERE, KEY = __name__, jax.random.key(0)


# --- features


class Dense(linen.Module):
    def setup(self) -> None:
        self.body, self.head = linen.Dense(5), linen.Dense(3)

    def features(self, x: jax.Array) -> jax.Array:
        return linen.relu(self.body(x))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.features(x))


IMAGES = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))


@pytest.mark.parametrize(
    ("make", "head", "shape"),
    [
        (models.mlp((8, 8, 1), 3, hidden=(7, 5), norm="batch"), lambda p, f: f @ p["layers"][2]["kernel"], (2, 5)),
        (models.cnn((8, 8, 1), 3, (4, 6)), lambda p, f: f @ p["head"]["kernel"], (2, 2 * 2 * 6)),
        (Dense(), lambda p, f: f @ p["head"]["kernel"], None),
    ],
)
def test_features_are_what_the_last_layer_takes_in(make: Any, head: Any, shape: tuple[int, ...] | None) -> None:
    learner = from_flax(make, IMAGES[:1] if shape else IMAGES[:1, :, 0, 0], 3)
    x = IMAGES if shape else IMAGES[:, :, 0, 0]
    params = learner.init(KEY)  # all biases are zero
    assert learner.features is not None
    features, carried = learner.features(params, x, None)
    np.testing.assert_allclose(head(params["trained"], features), learner.predict(params, x), atol=1e-5)
    assert features.shape == (shape or (2, 5)) == (2, *featured("it", learner, x.shape[1:]).shape[1:])
    jax.tree.map(np.testing.assert_array_equal, carried, params["carried"])


@pytest.mark.more
def test_features_in_training_carry_batch_statistics_on_as_a_step_does() -> None:
    learner = from_flax(models.cnn((8, 8, 1), 3, (4,), norm="batch"), IMAGES[:1], 3)
    params = learner.init(KEY)
    assert learner.features is not None
    _, carried = learner.features(params, IMAGES, KEY)
    _, others, _ = learner.grad(params, {"x": IMAGES, "y": jnp.zeros(2, jnp.int32)}, KEY)
    jax.tree.map(np.testing.assert_array_equal, carried, others["carried"])


def test_a_unet_has_the_smallest_size_and_a_model_without_features_is_refused() -> None:
    unet = from_flax(models.unet((8, 8, 1), 2, (4, 6)), IMAGES[:1], 2, "segmentation")
    assert featured("it", unet, (8, 8, 1)).shape == (1, 4, 4, 6)
    plain = from_flax(lambda rngs: nnx.Linear(3, 2, rngs=rngs), jnp.zeros((1, 3)), 2)
    with pytest.raises(ConfigError, match=r"objective it: .* give it a method features\(x\)"):
        featured("it", plain, (3,))


# --- a second network


def test_a_second_network_changes_nothing_of_the_first_and_has_no_gradient_of_its_own() -> None:
    alone = quadratic.learner(2)
    both = beside(alone, "critic", lambda key: {"bias": jax.random.normal(key, (3,))})
    params, first = both.init(KEY), alone.init(KEY)
    batch = {"x": jnp.ones((1, 4)), "y": jnp.zeros(1)}
    gradient, others, _ = both.grad(params, batch, KEY)
    np.testing.assert_array_equal(gradient["x"], alone.grad(first, batch, KEY)[0]["x"])
    assert gradient["critic"]["bias"].tolist() == [0, 0, 0] and set(others) == {"carried"}
    assert both.init(KEY)["trained"]["critic"]["bias"].any()
    with pytest.raises(ConfigError, match="'x' beside the model, which has a part of that name"):
        beside(alone, "x", lambda key: {})


# --- a table that goes round

SPEC = Bulletin("news", lambda learner, x: {"mean": jnp.zeros(x)}, "the mean of its rows", bound=2.0)


def tells(optimizer: optax.GradientTransformation) -> Objective:
    """A method whose nodes tell the mean of their last batch, in hundreds."""

    def wrap(learner: Learner) -> Learner:
        def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
            gradient, others, metrics = learner.grad(params, batch, key)
            private = bulletin.say(params, SPEC.name, {"mean": batch["x"].mean(axis=0)})
            return gradient, {**others, "private": private}, metrics

        return learner._replace(grad=grad)

    return Objective(wrap, bulletin=SPEC)


TOLD: dict[str, Any] = {
    **NETWORK,
    "topology": {"graph": "path", "nodes": 4},
    "rounds": 5,
    "training": {**NETWORK["training"], "objective": [{"name": f"{HERE}:tells"}]},
}


@pytest.mark.more
def test_all_hear_the_newest_of_all_over_any_graph_and_drivers_agree(optimised: None) -> None:
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
    ):  # Flax's batch normalisation refuses strict float64
        made = federation_of(TOLD)
        np.testing.assert_allclose(looped(made), at_once(made), rtol=1e-7, atol=1e-7)  # as in test_simulate.py
        course = simulated.course_of(made)
        ends = loop.run(tasks(made), simulated.deliveries(made), lambda *given: None, lambda: 0.0, course)
    tables = [end["private"]["news"] for end in ends]
    for node, table in enumerate(tables):
        # two local steps a round; what a node far away has said in its last rounds is still under way
        assert table["version"].tolist() == [10 - 2 * max(abs(node - other) - 1, 0) for other in range(4)]
        for other, version in enumerate(table["version"].tolist()):
            if version == 10:
                np.testing.assert_array_equal(table["rows"]["mean"][other], tables[other]["rows"]["mean"][other])


def test_a_liar_moves_no_row_beyond_the_bound_and_never_a_nodes_own() -> None:
    mine = np.eye(3, dtype=bool)[0]
    table = {"rows": jnp.asarray([[1.0], [1.0], [0.0]]), "version": jnp.asarray([5, 3, 0], jnp.int32)}
    lie = {
        "rows": jnp.asarray([[[9.0], [9.0], [9.0]], [[8.0], [8.0], [8.0]]]),
        "version": jnp.asarray([[7, 3, 2**31 - 1], [2, 4, 2]], jnp.int32),
    }
    after = bulletin.merged(table, mine, lie, np.array([True, True]), 2.0)
    assert after["rows"].ravel().tolist() == [1.0, 2.0, 2.0] and after["version"].tolist() == [7, 4, 2**31 - 1]
    kept = bulletin.merged(table, mine, lie, np.array([False, False]), 2.0)
    jax.tree.map(np.testing.assert_array_equal, kept, table)
    said = bulletin.say({"private": {"site": {"node": mine}, "news": after}}, "news", jnp.asarray([0.5]))["news"]
    assert said["version"].tolist() == [8, 4, 2**31 - 1] and said["rows"].ravel().tolist() == [0.5, 2.0, 2.0]
    # node 2 itself hears of that version, tells the one after it, and is heard by all
    third = np.eye(3, dtype=np.int32)[2]
    follows = bulletin.merged(table, third > 0, lie, np.array([True, True]), 2.0)
    own = bulletin.say({"private": {"site": {"node": third}, "news": follows}}, "news", jnp.asarray([-1.0]))["news"]
    heard = bulletin.merged(after, mine > 0, jax.tree.map(lambda leaf: leaf[None], own), np.array([True]), 2.0)
    assert heard["version"][2] == -(2**31) and heard["rows"][2, 0] == -1.0


def test_where_each_tells_its_own_row_alone_one_that_begins_afresh_is_heard() -> None:
    table = {"rows": jnp.asarray([[1.0], [1.0]]), "version": jnp.asarray([5, 9], jnp.int32)}
    fresh = {"rows": jnp.asarray([[[0.0], [0.5]]]), "version": jnp.asarray([[0, 1]], jnp.int32)}
    mine = np.array([True, False])
    after = bulletin.merged(table, mine, fresh, np.array([True]), 2.0, passed_on=False)
    assert after["rows"].ravel().tolist() == [1.0, 0.5] and after["version"].tolist() == [5, 1]
    kept = bulletin.merged(table, mine, fresh, np.array([True]), 2.0)
    assert kept["rows"].ravel().tolist() == [1.0, 1.0]


def test_one_row_in_each_message_comes_to_all_news_first_and_as_bounded() -> None:
    """Five nodes on a path, by hand: each says its row once; in ten rounds all have all, and then nothing changes."""
    nodes, mine = 5, np.eye(5, dtype=bool)
    first = {"rows": jnp.zeros((nodes, 2)), "version": jnp.zeros(nodes, jnp.int32), "sent": jnp.zeros(nodes, jnp.int32)}
    tables = []
    for node in range(nodes):
        params = {"private": {"site": {"node": mine[node].astype(np.int32)}, "news": first}}
        tables.append(bulletin.say(params, "news", jnp.full(2, node - 3.0))["news"])
    for round_ in range(10):
        sent = [bulletin.next_of(table) for table in tables]
        if round_ == 1:  # what was heard in the round before goes before what was said already
            assert [int(row["node"]) for _, row in sent] != [*range(nodes)]
        tables = [table for table, _ in sent]
        for node in range(nodes):
            told = [bulletin.placed_at(sent[other][1], nodes) for other in (node - 1, node + 1) if 0 <= other < nodes]
            theirs = jax.tree.map(lambda *each: jnp.stack(each), *told)
            tables[node] = bulletin.merged(tables[node], mine[node], theirs, np.ones(len(told), bool), 2.0)
    for node, table in enumerate(tables):
        assert table["version"].tolist() == [1] * nodes
        assert table["rows"][:, 0].tolist() == [-3.0 if node == 0 else -2.0, -2, -1, 0, 1]  # but for one's own, bounded
    nothing = bulletin.next_of(first)
    assert nothing[1]["node"] == -1 and not nothing[0]["sent"].any()
