"""p2pfl: decentralised peer-to-peer federated training in JAX.

An algorithm is a value, `Algorithm`: pure functions that every driver runs alike. `from_flax` makes a `Learner` from a
Flax module, `dsgd` and `local` make algorithms from a learner and an optax optimizer. `load_experiment` reads an
experiment file; `p2pfl.build.build` makes of it what it means, and `p2pfl.run.run` does what the command `p2pfl run`
does. Names are imported when they are first used: the command line must not wait for jax to say that a file is missing.
"""

from __future__ import annotations

import importlib

_HOME = {
    "p2pfl.algorithms": ("ALGORITHMS", "dsgd", "local"),
    "p2pfl.data": ("Dataset", "Samples"),
    "p2pfl.errors": ("ConfigError", "DataError", "LocalError", "P2PFLError", "RemoteError", "TopologyError"),
    "p2pfl.experiment": ("Experiment", "load_experiment"),
    "p2pfl.learner": ("from_flax", "optimizer"),
    "p2pfl.topology": ("schedule",),
    "p2pfl.types": ("Algorithm", "Delivery", "Inbox", "Learner", "Neighborhood", "Schedule"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> object:
    """A public name, from the module where it lives."""
    if name not in _MODULE:
        raise AttributeError(f"module 'p2pfl' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE[name]), {"load_experiment": "load"}.get(name, name))


def __dir__() -> list[str]:
    """All public names."""
    return list(__all__)
