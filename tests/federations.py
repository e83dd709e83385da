"""A federation in one process: built from a table, run by the plain loop, and with all nodes at once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl.config import experiment
from p2pfl.config.experiment import Experiment
from p2pfl.data import Dataset, Samples
from p2pfl.data.builtin import digits
from p2pfl.drivers.simulate import loop
from p2pfl.drivers.simulate.simulation import Outcome
from p2pfl.federation import federation
from p2pfl.federation.federation import Federation
from p2pfl.federation.tasks import tasks
from p2pfl.runs import simulated
from p2pfl.types import Tree

TABLE: dict[str, Any] = {
    "name": "t",
    "rounds": 7,
    "data": {"source": "quadratic", "dim": 3},
    "training": {
        "optimizer": {"name": "sgd", "learning_rate": 0.1}, "batch_size": 2, "local_steps": 2, "dtype": "float64",
    },
    "topology": {"graph": "ring", "nodes": 9},
    "algorithm": {"name": "dsgd"},
    "evaluation": {"every": 3},
    "driver": {"kind": "simulate"},
    "baselines": False,
}  # fmt: skip
DIRECTED = {"graph": "exponential", "nodes": 9}
COMPLETE = {"graph": "complete", "nodes": 9}
CHURN = [{"event": "crash", "node": 2, "round": 3}, {"event": "rejoin", "node": 2, "round": 5}]
CASES: dict[str, dict[str, Any]] = {
    "dsgd": {},
    "dsgd cta": {"algorithm": {"name": "dsgd", "arguments": {"order": "cta"}}},
    "dmsgd": {"algorithm": {"name": "dmsgd", "arguments": {"mix_momentum": True}}},
    "qg_dsgdm": {"algorithm": {"name": "qg_dsgdm"}},
    "gradient_tracking": {"algorithm": {"name": "gradient_tracking"}},
    "diging": {"algorithm": {"name": "gradient_tracking", "arguments": {"form": "diging"}}},
    "exact_diffusion": {"algorithm": {"name": "exact_diffusion"}},
    "d2": {"algorithm": {"name": "d2"}, "topology": {"graph": "erdos_renyi", "nodes": 9}},
    "push_sum": {"algorithm": {"name": "push_sum"}, "topology": DIRECTED},
    "push_sum, one peer": {
        "algorithm": {"name": "push_sum"}, "topology": {"graph": "one_peer_exponential", "nodes": 9},
    },
    "epidemic": {"algorithm": {"name": "epidemic"}, "topology": COMPLETE},
    "epidemic oracle": {"algorithm": {"name": "epidemic", "arguments": {"kind": "oracle"}}, "topology": COMPLETE},
    "ad_psgd": {"algorithm": {"name": "ad_psgd"}},
    "gossip_learning": {"algorithm": {"name": "gossip_learning", "arguments": {"limit": 3}}},
    "dfedavg": {"algorithm": {"name": "dfedavg"}},
    "outer": {"algorithm": {"name": "outer"}},
    "outer pairs": {"algorithm": {"name": "outer", "arguments": {"pairs": True}}},
    "fedavg star": {"algorithm": {"name": "fedavg"}, "topology": {"graph": "star", "nodes": 9}},
    "fedavg complete": {"algorithm": {"name": "fedavg"}, "topology": COMPLETE},
    "fedprox": {"algorithm": {"name": "fedprox"}},
    "local": {"algorithm": {"name": "local"}},
    "base graph": {"topology": {"graph": "base", "nodes": 9}},
    "complete": {"topology": COMPLETE},
    "loss": {"network": {"loss": 0.3}},
    "renormalise": {"network": {"loss": 0.3, "rule": "renormalise"}},
    "self": {"network": {"loss": 0.3, "rule": "self"}, "algorithm": {"name": "gradient_tracking"}},
    "loss, push": {"network": {"loss": 0.3}, "algorithm": {"name": "push_sum"}, "topology": DIRECTED},
    "loss, fedavg": {
        "network": {"loss": 0.3}, "algorithm": {"name": "fedavg"}, "topology": {"graph": "star", "nodes": 9},
    },
    "late": {"network": {"late": 2, "loss": 0.1}, "algorithm": {"name": "gradient_tracking"}},
    "churn": {"churn": CHURN},
    "churn, push": {"churn": CHURN, "algorithm": {"name": "push_sum"}, "topology": DIRECTED},
    "grows": {"topology": {"graph": "ring", "nodes": 8}, "churn": [{"event": "join", "node": 8, "round": 4}]},
    "unequal steps": {"training": {**TABLE["training"], "node_steps": [1, 2, 3, 1, 2, 3, 1, 2, 3]}},
    "scheduled": {"churn": CHURN, "training": {**TABLE["training"], "optimizer": [
        {"name": "clip_by_global_norm", "max_norm": 0.5},
        {"name": "sgd", "momentum": 0.5, "learning_rate": {
            "schedule": "linear_schedule", "init_value": 0.2, "end_value": 0.01, "transition_steps": 9,
        }},
    ]}},
    "wraps": {"algorithm": {"name": "dsgd", "wrap": [{"name": "clip", "radius": 0.05}, {"name": "cast"}]}},
    "rules": {
        "topology": COMPLETE, "network": {"loss": 0.2}, "churn": CHURN,
        "attack": [{"nodes": [2], "by": "alie"}, {"nodes": [5], "by": "noise"}, {"nodes": [0], "by": "ipm"}],
        "algorithm": {
            "name": "dsgd", "wrap": [{"name": "trimmed_mean", "f": 1, "nnm": True}, {"name": "clip", "f": 1}],
        },
    },
    "scores": {
        "topology": COMPLETE, "attack": [{"nodes": [2], "by": "mimic"}, {"nodes": [3], "by": "sign_flip"}],
        "algorithm": {"name": "qg_dsgdm", "wrap": [{"name": "dos"}]},
    },
    "a lie for each": {
        "topology": COMPLETE, "network": {"loss": 0.2}, "churn": CHURN,
        "attack": [{"nodes": [2, 7], "by": "dissensus"}, {"nodes": [3], "by": "nan"}],
        "algorithm": {"name": "dsgd", "wrap": [{"name": "geometric_median", "f": 2}]},
    },
}  # fmt: skip
"""Algorithms, graphs and networks, on quadratics."""

NETWORK: dict[str, Any] = {
    **TABLE,
    "rounds": 4,
    "data": {"source": f"{__name__}:pictures", "partition": "dirichlet", "alpha": 0.5},
    "model": {"name": "mlp", "hidden": [4], "norm": "batch"},
    "training": {
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}, "batch_size": 4, "local_steps": 2,
        "dtype": "float64",
    },
    "topology": {"graph": "ring", "nodes": 3},
    "evaluation": {"every": 4},
}  # fmt: skip


def _share(algorithm: str, share: Any, **more: Any) -> dict[str, Any]:
    return {**NETWORK, "algorithm": {"name": algorithm, "share": share}, **more}


def _objective(*methods: dict[str, Any], **model: Any) -> dict[str, Any]:
    training = {**NETWORK["training"], "objective": list(methods)}
    model = model or {"name": "logistic"}
    return {**NETWORK, "rounds": 2, "evaluation": {"every": 2}, "model": model, "training": training}


GONE_AND_BACK = [
    {"event": "crash", "node": 2, "round": 2}, {"event": "rejoin", "node": 2, "round": 3},
    {"event": "crash", "node": 1, "round": 3}, {"event": "rejoin", "node": 1, "round": 4, "state": "kept"},
]  # fmt: skip
MECHANISMS: dict[str, dict[str, Any]] = {
    "share": _share("gradient_tracking", "fedbn"),
    "share, churn": _share("gradient_tracking", "fedbn", churn=GONE_AND_BACK),
    "share, push": _share("push_sum", "silobn"),
    "share, corrections": _share("exact_diffusion", "private_head"),
    "share, outer": _share("outer", ["!norms/**"], churn=GONE_AND_BACK),
    "share, gossip": _share("gossip_learning", "fedbn"),
    "weights and widths": {
        **NETWORK,
        "training": {**NETWORK["training"], "objective": [{"name": "widths", "ratios": [1.0, 0.5, 0.75]}]},
        "algorithm": {"name": "dsgd", "share": "silobn", "wrap": [
            {"name": "by_samples"}, {"name": "by_labels", "sharpness": 1.0, "minimum": 3},
            {"name": "by_loss", "q": -1.0},
        ]},
        "network": {"loss": 0.2},
    },
    "widths, churn": {
        **NETWORK,
        "training": {**NETWORK["training"], "optimizer": {"name": "adamw", "learning_rate": 0.01}, "objective": [
            {"name": "widths", "ratios": [0.75, 0.5, 1.0]}, {"name": "ditto", "strength": 0.5},
        ], "freeze": ["layers/0/kernel", "batch_stats/**"], "patience": 1},
        "algorithm": {"name": "gradient_tracking", "share": "private_head"},
        "churn": GONE_AND_BACK, "evaluation": {"every": 1},
    },
    "spectra and weights": {
        **NETWORK,
        "algorithm": {"name": "dsgd", "share": "silobn", "wrap": [
            {"name": "fourier", "start": 0.3, "rounds": 4}, {"name": "cast"},
            {"name": "by_similarity", "sharpness": 1.0, "publish": True},
        ]},
        "network": {"loss": 0.2, "late": 1},
    },
    "objectives": _objective(
        {"name": "fedprox", "mu": 0.1}, {"name": "pfedme", "learning_rate": 0.05, "strength": 5.0, "steps": 2},
        {"name": "iop", "strength": 0.1}, {"name": "augment", "flip": True, "contrast": 0.1},
        {"name": "proportional"}, {"name": "deputy"},
    ),
    "more objectives": {
        **_objective(
            {"name": "sharpness"}, {"name": "missing_classes"}, {"name": "average"},
            {"name": "ditto", "strength": 0.5}, {"name": "cusfl", "strength": 0.5},
            {"name": "soft_pull", "keep": 0.6}, {"name": "selector"}, {"name": "moon", "strength": [0.5, 1.0, 2.0]},
            {"name": "tasks", "of": [0, 1, 0], "groups": [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]], "temperature": 0.5},
            name="mmoe", groups=[[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]], hidden=[4], experts=2, width=3,
        ),
        "rounds": 3,
    },
    "predictions": {
        **_objective(
            {"name": "missing_classes"}, {"name": "medisecfed", "rows": 6, "batch": 4}, name="mlp", hidden=[4],
        ),
        "rounds": 4, "churn": GONE_AND_BACK,
        "other_model": [{"nodes": [1], "name": "mlp", "hidden": [3], "norm": "batch"}],
        "algorithm": {"name": "dsgd", "wrap": [{"name": "median"}]},
    },
    "reconstruction": {
        **NETWORK,
        "data": {**NETWORK["data"], "degrade": {"by": "noise", "noise": [0.05, 0.2, 0.1]}},
        "model": {"name": "unet", "channels": [2, 3], "residual": True},
        "training": {**NETWORK["training"], "objective": [
            {"name": "fedmri", "strength": 0.1}, {"name": "fl_mrcm", "reference": 1, "rows": 2, "noise": 0.1},
        ]},
        "algorithm": {"name": "dsgd", "share": "split"},
    },
    "a share of the nodes": {**_objective(), "rounds": 5, "topology": {"graph": "ring", "nodes": 5, "take_part": 0.5}},
    "private steps": {
        **_objective({"name": "fedprox", "mu": 0.1}, name="mlp", hidden=[4]), "rounds": 4, "network": {"loss": 0.2},
        "privacy": {
            "clip": 0.5, "noise": 1.0, "delta": 0.01, "epsilon": 6.0, "sampling": "poisson", "correlated": 2.0,
        },
        "algorithm": {"name": "dsgd", "wrap": [{"name": "shatter", "chunks": 2}]},
    },
    "private updates": {
        **_objective(), "rounds": 4, "network": {"loss": 0.2},
        "privacy": {"clip": 0.5, "noise": 1.0, "delta": 0.01, "epsilon": 6.0, "of": "updates", "law": "laplace"},
        "algorithm": {"name": "dsgd", "wrap": [{"name": "zip_dl", "scale": 0.1}]},
    },
    "noise and features": {
        **_objective({"name": "experts"}, {"name": "align", "rows": 3, "noise": 0.1, "minimum": 2}),
        "rounds": 4, "churn": GONE_AND_BACK,
        "algorithm": {"name": "dsgd", "wrap": [{"name": "noise", "scale": 0.1}]},
    },
    "replay": {
        **_objective({"name": "fedreplay", "steps": 3, "rows": 2, "latent": 2, "hidden": 4, "minimum": 1}),
        "rounds": 3,
    },
    "colours": {
        **_objective({"name": "stain_gan", "first": 3, "hidden": [2], "critic": [2]}), "rounds": 4,
        "data": {**NETWORK["data"], "source": f"{__name__}:tinted"},
        "statistics": {"gather": ["macenko"], "minimum": 1},
        "algorithm": {"name": "dsgd", "share": ["!critic/**"]},
    },
}  # fmt: skip
"""What a study adds: sharing, weighting, masking, objectives; on a network with batch normalisation, or without."""


def pictures() -> Dataset:
    """A few digits as images of 4 x 4."""
    whole = digits()

    def part(samples: Samples) -> Samples:
        x = samples.x[:60].reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4))[..., None]
        return samples._replace(x=np.ascontiguousarray(x), y=samples.y[:60])

    return whole._replace(train=part(whole.train), test=part(whole.test), features=())


def tinted() -> Dataset:
    """The same in colours."""
    whole = pictures()

    def part(samples: Samples) -> Samples:
        tint = np.array([[0.9, 0.3, 0.5], [0.2, 0.8, 0.6]])[np.arange(len(samples.y)) % 2][:, None, None]
        return samples._replace(x=np.exp(-tint * samples.x - 0.2).astype(np.float32))

    return whole._replace(train=part(whole.train), test=part(whole.test))


def federation_of(table: dict[str, Any]) -> Federation:
    return federation.build(experiment.parse(table, "test.toml", Experiment))


def right_of(federation: Federation) -> tuple[Tree, np.ndarray]:
    """The final models of a simulated federation, and [n, test rows] what each is right of."""
    models = jax.tree.map(jnp.asarray, simulated.simulate_federation(federation).models)
    test = federation.dataset.test

    @jax.jit
    def score(params: Tree) -> Any:
        return federation.learner.evaluate(params, {"x": test.x, "y": test.y}, jnp.ones(len(test.y)))["score"]

    return models, np.asarray(jax.vmap(score)(models))


def spoilt(federation: Federation, node: int = 1) -> Federation:
    """A federation of quadratics of which one node's curvature is so large that its numbers are soon not finite."""
    dataset = federation.data.dataset
    x = np.array(dataset.train.x)
    x[federation.partition.train[node]] *= 1e200
    data = federation.data._replace(dataset=dataset._replace(train=dataset.train._replace(x=x)))
    return federation._replace(data=data)


def flat(model: Tree) -> np.ndarray:
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(model)])


def looped(federation: Federation) -> np.ndarray:
    """[n, parameters] the final models of the plain loop."""
    course = simulated.course_of(federation)
    models = loop.run(tasks(federation), simulated.deliveries(federation), lambda *given: None, lambda: 0.0, course)
    return np.stack([flat(model) for model in models])


def at_once(federation: Federation, **how: Any) -> np.ndarray:
    """[n, parameters] the final models of the simulator."""
    return flattened(federation, simulated.simulate_federation(federation, **how))


def flattened(federation: Federation, outcome: Outcome) -> np.ndarray:
    """The same of one that has run."""
    leaves = [np.asarray(leaf).reshape(len(federation.graph), -1) for leaf in jax.tree.leaves(outcome.models)]
    return np.concatenate(leaves, axis=1)
