"""What leaves a site: a whole run in virtual time whose every message is looked into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from federations import MECHANISMS

from p2pfl import tree
from p2pfl.config import experiment
from p2pfl.config.experiment import Experiment
from p2pfl.drivers.virtual.world import World
from p2pfl.federation import federation
from p2pfl.federation.federation import Federation
from p2pfl.methods import sharing
from p2pfl.methods.objectives.bottlegan import HOME, NAME
from p2pfl.node.payload import Outgoing
from p2pfl.protocol.messages import Model, Offer, Push
from p2pfl.runs import virtual

WANTED = {
    "name": "t", "rounds": 12,
    "data": {"source": "digits", "partition": "dirichlet", "alpha": 0.5},
    "model": {"name": "mlp", "hidden": [8], "norm": "batch"},
    "statistics": {"gather": ["labels"], "normalize": True, "tolerance": 0.2, "minimum": 3},
    "training": {
        "optimizer": {"name": "sgd", "learning_rate": 0.1}, "batch_size": 8, "local_steps": 2,
        "objective": [{"name": "fedsld"}, {"name": "ditto", "strength": 0.1}],
    },
    "topology": {"graph": "ring", "nodes": 4}, "algorithm": {"name": "dsgd", "share": "fedbn"},
    "driver": {"kind": "virtual"}, "evaluation": {"every": 12, "answers": ["personal"]}, "baselines": False,
    "churn": [{"event": "crash", "node": 2, "round": 4}, {"event": "rejoin", "node": 2, "round": 6}],
}  # fmt: skip


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Every message with a payload: (what kind, the tree in it)."""
    found: list[tuple[Any, Any]] = []
    send = World.send

    def listened(self: World, sender: Any, to: int, envelope: Any) -> None:
        if isinstance(envelope.payload, Outgoing):
            found.append((type(envelope.message), jax.tree.map(np.asarray, envelope.payload.tree)))
        send(self, sender, to, envelope)

    monkeypatch.setattr(World, "send", listened)
    return found


def test_nothing_but_shared_leaves_and_declared_sums_is_sent(tmp_path: Path, said: list[tuple[Any, Any]]) -> None:
    wanted: Experiment = experiment.parse(WANTED, "test.toml", Experiment)
    made = federation.build(wanted)
    virtual.into(made, tmp_path)
    kinds = {kind for kind, _ in said}
    assert kinds == {Offer, Model} and Push not in kinds
    shared = {
        f"trained/{path}" for path in sharing.leaves(federation.model_shape(made)) if not path.startswith("batch_stats")
    }
    sums = {f"sums/{name}" for name in tree.named_leaves(made.sites["sums"])}
    assert sums == {"sums/labels/count", "sums/moments/count", "sums/moments/square", "sums/moments/sum"}
    for kind, payload in said:
        names = set(tree.named_leaves(payload))
        if kind is Offer:
            assert {name.removeprefix("inner/") for name in names} == shared | sums
        else:
            assert {name for name in names if not name.startswith("statistics/")} == shared
    nothing_of_its_own(made, tmp_path, said)


def nothing_of_its_own(made: Federation, out: Path, said: list[tuple[Any, Any]], told: tuple[str, ...] = ()) -> None:
    """Whatever stands in a frame, no row of anybody's data does, and no private leaf but those `told`."""
    private = [
        leaf for node in made.graph
        for name, leaf in safetensors.numpy.load_file(out / "nodes" / str(node) / "model.safetensors").items()
        if name.startswith("private/") and not name.startswith(told) and "site/" not in name and leaf.size > 4
    ]  # fmt: skip
    secrets = [np.ascontiguousarray(leaf).tobytes() for leaf in private if leaf.any()]
    rows = [row.tobytes() for row in made.dataset.train.x]
    sent = {np.ascontiguousarray(leaf).tobytes() for _, payload in said for leaf in jax.tree.leaves(payload)}
    assert secrets and not any(secret in frame for frame in sent for secret in secrets)
    assert not any(row in frame for frame in sent for row in rows)


BACK = [{"event": "crash", "node": 2, "round": 2}, {"event": "rejoin", "node": 2, "round": 4}]
"""It has lost all that it had, and is given a model."""


def afresh(case: str, objective: dict[str, Any], **more: Any) -> Federation:
    """A federation of the objective in virtual time, of which one node comes back."""
    table = {**MECHANISMS[case], "driver": {"kind": "virtual"}, "baselines": False, "churn": BACK, **more}
    table["training"] = {**table["training"], "dtype": "float32", "objective": [objective]}
    return federation.build(experiment.parse(table, "test.toml", Experiment))


@pytest.mark.more
def test_no_parameter_leaves_a_site_where_predictions_travel(tmp_path: Path, said: list[tuple[Any, Any]]) -> None:
    """Not to one that comes back either: all that is sent is a table of 6 rows by 10 classes."""
    made = afresh("predictions", {"name": "medisecfed", "rows": 6, "batch": 4}, rounds=6)
    virtual.into(made, tmp_path)
    assert {kind for kind, _ in said} == {Offer, Model}
    for _, payload in said:
        assert {name: leaf.shape for name, leaf in tree.named_leaves(payload).items()} == {
            "trained/predictions": (6, 10)
        }
    nothing_of_its_own(made, tmp_path, said)


@pytest.mark.more
def test_of_what_bottlegan_has_at_home_a_restainer_leaves_a_site_alone(
    tmp_path: Path, said: list[tuple[Any, Any]], optax_promotes: None
) -> None:
    """Critics, normaliser and the memory of their optimizer stay, and who comes back is given none of either."""
    images = np.random.default_rng(0).random((5, 4, 4, 3)).astype(np.float32)
    np.savez(tmp_path / "reference.npz", images=images)
    method = {
        "name": "bottlegan", "reference": str(tmp_path / "reference.npz"), "first": 3, "distill": 3, "hidden": [2],
        "critic": [2], "style": 2, "minimum": 1,
    }  # fmt: skip
    made = afresh("colours", method, rounds=8, statistics={}, algorithm={"name": "dsgd"})
    virtual.into(made, tmp_path)
    assert {kind for kind, _ in said} == {Offer, Model}
    shapes = federation.model_shape(made)
    shared = {f"trained/{name}" for name in tree.named_leaves(shapes["trained"])}
    restainer = {f"told/rows/{name}" for name in tree.named_leaves(shapes["private"][HOME]["nets"]["restain"])}
    told = restainer | {"told/version", "told/node"}
    for kind, payload in said:
        names = {*tree.named_leaves(payload)}
        assert names == ({f"inner/{name}" for name in shared} | told if kind is Offer else shared)
    nothing_of_its_own(made, tmp_path, said, (f"private/{NAME}/", f"private/{HOME}/nets/restain/"))


def test_the_listener_would_hear_it(tmp_path: Path, said: list[tuple[Any, Any]]) -> None:
    """The same with nothing private: then the normalisation's statistics are heard."""
    table = {**WANTED, "algorithm": {"name": "dsgd"}, "rounds": 4, "statistics": {}, "churn": []}
    table["training"] = {**WANTED["training"], "objective": []}  # type: ignore[dict-item]
    table["evaluation"] = {"every": 4}
    made = federation.build(experiment.parse(table, "test.toml", Experiment))
    virtual.into(made, tmp_path)
    assert any("carried/norms/0/mean" in tree.named_leaves(payload) for _, payload in said)
