"""p2pfl: decentralised peer-to-peer federated training in JAX.

An algorithm is a value, `Algorithm`: pure functions that every driver runs alike. `from_flax` makes a `Learner` from a
Flax module, `dsgd` and its siblings make algorithms from a learner and an optax optimizer. `load_experiment` reads an
experiment file, `federation` makes of it what it means, `simulate` runs that in this process with thousands of nodes,
and `p2pfl.runs.run.run` does what the command `p2pfl run` does. Names are imported when they are first used: the
command line must not wait for jax to say that a file is missing.
"""

from __future__ import annotations

import importlib

_HOME = {
    "p2pfl.algorithms": (
        "ALGORITHMS",
        "ad_psgd",
        "d2",
        "dfedavg",
        "dmsgd",
        "dsgd",
        "epidemic",
        "exact_diffusion",
        "fedavg",
        "fedprox",
        "gossip_learning",
        "gradient_tracking",
        "local",
        "outer",
        "proximal",
        "push_sum",
        "qg_dsgdm",
    ),
    "p2pfl.federation.federation": ("federation",),
    "p2pfl.data": ("Dataset", "Samples"),
    "p2pfl.errors": ("ConfigError", "DataError", "LocalError", "P2PFLError", "RemoteError", "TopologyError"),
    "p2pfl.config.experiment": ("Experiment", "load_experiment"),
    "p2pfl.learning.flax": ("from_flax",),
    "p2pfl.learning.optimizers": ("optimizer",),
    "p2pfl.runs.simulated": ("simulate",),
    "p2pfl.topology": ("plan", "schedule"),
    "p2pfl.types": ("Algorithm", "Delivery", "Demands", "Inbox", "Learner", "Neighborhood", "Planning", "Schedule"),
    "p2pfl.methods.compose": ("cast", "chain", "clip"),
}
_NAMES = {"load_experiment": "load", "federation": "build"}
"""Public names that are another one at home."""
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> object:
    """A public name, from the module where it lives."""
    if name not in _MODULE:
        raise AttributeError(f"module 'p2pfl' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE[name]), _NAMES.get(name, name))


def __dir__() -> list[str]:
    """All public names."""
    return list(__all__)
