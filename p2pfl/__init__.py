"""p2pfl: decentralised peer-to-peer federated training in JAX.

An algorithm is a value, `Algorithm`: pure functions that every driver runs alike. `from_flax` makes a `Learner` from a
Flax module, `dsgd` and its siblings in `algorithms` make algorithms from a learner and an optax optimizer, `simulate`
runs one on a graph of `topology` and arrays of yours, with thousands of nodes in this process. `load_experiment` reads
an experiment file, `build` makes of it what it means, `run` does what the command `p2pfl run` does, and `load_run`
reads what a run has left; a `Callback` is told of the rounds of either, and may end them. `methods` has what a study
adds, `learning` and `data` what they say, `churn` who comes and goes.

Names are imported when they are first used, since the command line must not wait for jax to say that a file is missing;
editors and type checkers see the same names below `TYPE_CHECKING`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2pfl import algorithms, churn, data, learning, methods, topology
    from p2pfl.algorithms.dsgd import dsgd
    from p2pfl.config.experiment import Experiment
    from p2pfl.config.experiment import load as load_experiment
    from p2pfl.data.dataset import Dataset, Samples
    from p2pfl.errors import ConfigError, DataError, LocalError, P2PFLError, RemoteError, TopologyError
    from p2pfl.federation.federation import build
    from p2pfl.learning.flax import from_flax
    from p2pfl.runs.callbacks import Callback, EarlyStopping, RoundInfo, RunInfo
    from p2pfl.runs.interface import run, simulate
    from p2pfl.runs.join import join
    from p2pfl.runs.loaded import RunResult, load_run
    from p2pfl.runs.replay import replay
    from p2pfl.runs.use import LoadedModel, load_model
    from p2pfl.types import Algorithm, Learner, Schedule

__all__ = [
    "Algorithm",
    "Callback",
    "ConfigError",
    "DataError",
    "Dataset",
    "EarlyStopping",
    "Experiment",
    "Learner",
    "LoadedModel",
    "LocalError",
    "P2PFLError",
    "RemoteError",
    "RoundInfo",
    "RunInfo",
    "RunResult",
    "Samples",
    "Schedule",
    "TopologyError",
    "algorithms",
    "build",
    "churn",
    "data",
    "dsgd",
    "from_flax",
    "join",
    "learning",
    "load_experiment",
    "load_model",
    "load_run",
    "methods",
    "replay",
    "run",
    "simulate",
    "topology",
]

_ROOMS = ("algorithms", "churn", "data", "learning", "methods", "topology")
_HOMES = {
    "dsgd": "p2pfl.algorithms.dsgd:dsgd",
    "Experiment": "p2pfl.config.experiment:Experiment",
    "load_experiment": "p2pfl.config.experiment:load",
    "Dataset": "p2pfl.data.dataset:Dataset",
    "Samples": "p2pfl.data.dataset:Samples",
    **{name: f"p2pfl.errors:{name}" for name in __all__ if name.endswith("Error")},
    "build": "p2pfl.federation.federation:build",
    "from_flax": "p2pfl.learning.flax:from_flax",
    **{name: f"p2pfl.runs.callbacks:{name}" for name in ("Callback", "EarlyStopping", "RoundInfo", "RunInfo")},
    "run": "p2pfl.runs.interface:run",
    "simulate": "p2pfl.runs.interface:simulate",
    "join": "p2pfl.runs.join:join",
    "load_run": "p2pfl.runs.loaded:load_run",
    "RunResult": "p2pfl.runs.loaded:RunResult",
    "replay": "p2pfl.runs.replay:replay",
    "load_model": "p2pfl.runs.use:load_model",
    "LoadedModel": "p2pfl.runs.use:LoadedModel",
    **{name: f"p2pfl.types:{name}" for name in ("Algorithm", "Learner", "Schedule")},
}
"""Where each name but those of the rooms lives; tests/test_public_api.py compares it with the imports above."""

if not TYPE_CHECKING:  # or else a checker would take a misspelt name for an object

    def __getattr__(name: str) -> object:
        """A public name, from the module where it lives."""
        if name in _ROOMS:
            return importlib.import_module(f"p2pfl.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module 'p2pfl' has no attribute {name!r}")
        module, _, attribute = _HOMES[name].partition(":")
        return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    """All public names."""
    return list(__all__)
