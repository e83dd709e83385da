"""`p2pfl replay RUN`: compute a run again from its trace, in one process, and compare the models to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from p2pfl import tree
from p2pfl.config import experiment as config
from p2pfl.drivers.simulate.replay import Name
from p2pfl.drivers.simulate.replay import replay as compute
from p2pfl.errors import ConfigError
from p2pfl.federation import tasks
from p2pfl.federation.federation import build, precision
from p2pfl.node import model_file, records, result, secrets
from p2pfl.runs import summary
from p2pfl.types import Params


class Verdict(NamedTuple):
    """A node's final model against the one computed again."""

    node: int
    life: int  # its name, as in the records
    equal: bool  # to the bit
    difference: float  # the largest between two parameters


def replay(run: Path | str, say: Callable[[str], None] = lambda text: None) -> list[Verdict]:
    """Compute a run again from its trace, in this process, and compare the models to the bit.

    Args:
        run: the directory of a live run.
        say: takes a line of progress.

    Returns:
        A verdict for every node that ended well.

    Raises:
        ConfigError: the directory holds no run, no trace or no model, or rows of a node are not here.

    Example:
        >>> import p2pfl
        >>> p2pfl.replay("no-such-run")
        Traceback (most recent call last):
        ...
        p2pfl.errors.ConfigError: no-such-run: ...
    """
    run = Path(run)
    if not (run / "experiment.toml").is_file() or not (run / "nodes").is_dir():
        raise ConfigError(f"{run}: is not a run directory; it must hold experiment.toml and nodes/")
    places = summary.directories(run)
    traces = {node: records.read(path / "trace.jsonl") for node, path in places.items()}
    results = {node: each for node, path in places.items() if (each := result.read(path)) is not None}
    if not any(traces.values()):
        raise ConfigError(f"{run}: holds no trace; live and virtual runs leave one, and those of driver.loop = true")
    if not results:
        raise ConfigError(f"{run}: no node has finished; there is no model to compare")
    if torn := [str(node) for node, each in results.items() if not each.trace_whole]:
        raise ConfigError(
            f"{run}: the trace of node {', '.join(torn)} is not whole: the disk was full or the file at its bound, "
            "and records were dropped. Such a run can't be replayed; its models and metrics are what is left"
        )
    if (own := summary.own_rows(run)) is not None:
        node, file = own
        raise ConfigError(f"{file}: node {node} trained on rows of its own, which are not here; nothing to replay")
    experiment = config.load(run / "experiment.toml")
    precision(experiment)
    federation = build(experiment)
    ended = {node: Name(node, each.life) for node, each in results.items()}
    say(f"computing {sum(len(lines) for lines in traces.values())} lines of {len(traces)} traces again")
    models = compute(tasks.tasks(federation), traces, list(ended.values()))
    return [_verdict(places[node], models[name], results[node].digest, name) for node, name in ended.items()]


def _verdict(place: Path, model: Params, digest: str, name: Name) -> Verdict:
    again = jax.tree.map(np.asarray, model)
    if tree.digest(again) == digest:
        return Verdict(name.node, name.life, True, 0.0)
    was, found = model_file.read(place / model_file.NAME), tree.named_leaves(secrets.for_file(again))
    difference = max(
        (float(np.max(np.abs(was[path].astype(np.float64) - leaf), initial=0.0)) for path, leaf in found.items()),
        default=0.0,
    )
    return Verdict(name.node, name.life, False, difference)
