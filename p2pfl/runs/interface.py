"""The interface for programs: `simulate` on arrays, and `run` on an experiment."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from p2pfl import churn, data
from p2pfl.check import at_least
from p2pfl.config import experiment as files
from p2pfl.config.experiment import Experiment
from p2pfl.data import Dataset, Partition, partition
from p2pfl.drivers.live import clock
from p2pfl.drivers.simulate import engine
from p2pfl.drivers.simulate.simulation import Evaluated, How, Outcome, by_round, make_work
from p2pfl.errors import ConfigError
from p2pfl.federation import epochs
from p2pfl.learning.targets import TARGETS
from p2pfl.methods.compose import withhold
from p2pfl.runs.callbacks import Callback, Callbacks, RunInfo
from p2pfl.runs.simulated import looked
from p2pfl.runs.summary import score_of
from p2pfl.types import Algorithm, Learner, Neighborhood, Params, Planning, Schedule

if TYPE_CHECKING:
    from p2pfl.runs.loaded import RunResult

Arrays = tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]
"""(x_train, y_train, x_test, y_test)."""


class History(NamedTuple):
    """All nodes at the end of each of the E rounds in which they were evaluated."""

    round: np.ndarray  # [E] int64: 1, 2, ...
    train_loss: np.ndarray  # [E, n] mean over the round's local steps
    score: np.ndarray  # [E, n] of the mixed model on all test rows; for classes the share that is right
    score_own: np.ndarray  # [E, n] ... on the node's own test rows; NaN where it has none
    score_before: np.ndarray  # [E, n] of the model before mixing, on all test rows; NaN where it was not kept
    consensus_distance: np.ndarray  # [E] mean over the nodes of ||x_i - mean of x||^2


class Simulated(NamedTuple):
    """The result of `simulate`."""

    models: Params  # numpy, [n, ...] each: the final model of every node
    history: History
    outcome: Outcome  # the same models, messages and seconds
    key: str = "accuracy"  # what scores are called by in `metrics`
    stopped_early: str = ""  # by a callback: "at round 12 of 60 by EarlyStopping"

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """The history as columns, a row for each node and evaluated round; `pandas.DataFrame` takes them as they are.

        The names are those of metrics.jsonl, as in `RunResult.metrics`.
        """
        history = self.history
        count, nodes = history.train_loss.shape
        return {
            "node": np.tile(np.arange(nodes), count),
            "round": np.repeat(history.round, nodes),
            "train_loss": history.train_loss.ravel(),
            f"{self.key}_before_mixing": history.score_before.ravel(),
            f"{self.key}_after_mixing": history.score.ravel(),
            f"{self.key}_own": history.score_own.ravel(),
        }


def simulate(
    algorithm: Algorithm,
    dataset: Dataset | Arrays,
    *,
    schedule: Schedule,
    rounds: int,
    partition: Partition | None = None,
    batch_size: int = 16,
    local_steps: int | Sequence[int] = 10,
    seed: int = 0,
    evaluate_every: int = 1,
    callbacks: Sequence[Callback] = (),
    chunk: int | None = None,
    devices: int | None = None,
) -> Simulated:
    """Simulate an algorithm on a graph and a data set, all nodes at once, in this process.

    The samples, the first model and everything drawn are those of an experiment file with the same values, and so is
    every bit of the result. Of a node, the rows of all local steps of a round are in memory at once.

    Args:
        algorithm: what the nodes run, with the learner that it was made from.
        dataset: a Dataset, or (x_train, y_train, x_test, y_test): x [N, ...] numbers, y [N] labels.
        schedule: who talks to whom in each round, [T, n, K]; n is the number of nodes.
        rounds: communication rounds, >= 1.
        partition: rows of each of the n nodes; None deals them at random in equal parts.
        batch_size: rows of a local step, >= 1.
        local_steps: steps of each node in a round, >= 0; one number, or one for each node.
        seed: of data order, first model, partition and drawn graphs, >= 0.
        evaluate_every: rounds between two evaluations on the test rows, >= 1; the last round is always evaluated.
        callbacks: told of the beginning, of each evaluated round, and of the end; one may end the simulation early.
        chunk: nodes computed at once on a device; None chooses by the size of the model.
        devices: how many the nodes are spread over; None takes all.

    Returns:
        Final models, history and figures; `metrics` has the history as columns.

    Raises:
        ConfigError: an argument can't mean anything, the learner does not fit the data, or memory does not suffice.
        DataError: the data can't be used.
        TopologyError: the graph is not what the algorithm asks for.
        Exception: whatever a callback has raised, as soon as the round is over.

    Example:
        >>> import numpy as np, networkx as nx, optax, p2pfl
        >>> from p2pfl.learning.models import mlp
        >>> x, y = np.eye(8, 4, dtype=np.float32), np.arange(8) % 2
        >>> learner = p2pfl.from_flax(mlp((4,), 2, hidden=()), x[:1], classes=2)
        >>> algorithm = p2pfl.dsgd(learner, optax.sgd(0.1))
        >>> ring = p2pfl.topology.schedule(nx.cycle_graph(4))
        >>> result = p2pfl.simulate(algorithm, (x, y, x, y), schedule=ring, rounds=2, local_steps=1, devices=1)
        >>> result.history.score.shape
        (2, 4)
        >>> result.metrics["node"], result.metrics["round"]
        (array([0, 1, 2, 3, 0, 1, 2, 3]), array([1, 1, 1, 1, 2, 2, 2, 2]))
    """
    learner, told = _learner(algorithm), Callbacks(callbacks)
    if not isinstance(schedule, Schedule):
        raise ConfigError(
            f"schedule: is a {type(schedule).__name__}; must be a Schedule. p2pfl.topology.schedule(graph) makes one "
            "of a networkx graph"
        )
    nodes = int(schedule.neighbor.shape[1])
    at_least(1, rounds=rounds, batch_size=batch_size, evaluate_every=evaluate_every)
    at_least(0, seed=seed)
    at_least(1, **{name: n for name, n in (("chunk", chunk), ("devices", devices)) if n is not None})
    steps = _steps(local_steps, nodes)
    dataset = _dataset(dataset)
    parts = _parts(partition, dataset, nodes, seed)
    model = _fitted(learner, dataset)
    if set(model) > {"trained", "carried"}:
        algorithm = withhold(algorithm)
    algorithm = _startable(algorithm, model)
    planning = Planning(rounds, seed, np.array([len(rows) for rows in parts.train], np.int64))
    plan = epochs.suited(algorithm, schedule, planning, f"the schedule of {nodes} nodes")
    owner = np.full(len(dataset.test.y), -1)
    for node, rows in enumerate(parts.test):
        owner[rows] = node
    work = make_work(
        algorithm=algorithm,
        learner=learner,
        over=by_round(algorithm),
        schedule=plan,
        seed=seed,
        rounds=rounds,
        x=_like(model, dataset.train.x),
        y=dataset.train.y,
        rows=parts.train,
        steps=steps,
        batch_size=batch_size,
        test_x=_like(model, dataset.test.x),
        test_y=dataset.test.y,
        owner=owner.tolist(),
        evaluate_every=evaluate_every,
        events=(),
        conditions=churn.Conditions(0.0, "double_entry", 0, algorithm.lateness, algorithm.link, seed),
        sites={},
    )
    shown = score_of(dataset.kind)
    told.begin(RunInfo(algorithm.name, nodes, rounds, evaluate_every, algorithm.name, "simulate", shown, None))
    evaluated: list[Evaluated] = []
    outcome = engine.run(
        work, How(chunk, devices, measure=False), lambda _, since: evaluated.extend(since), clock.now,
        looked(told) if told else None,
    )  # fmt: skip
    result = Simulated(outcome.models, _history(evaluated, nodes), outcome, shown.key, told.when)
    told.end(result)
    return result


def _learner(algorithm: Algorithm) -> Learner:
    if not isinstance(algorithm, Algorithm):
        raise ConfigError(
            f"algorithm: is a {type(algorithm).__name__}; must be an Algorithm, as p2pfl.dsgd(learner, optimizer) "
            "returns"
        )
    if algorithm.learner is None:
        raise ConfigError(
            f"algorithm: {algorithm.name} does not say what it learns with; give Algorithm(..., learner=learner)"
        )
    return algorithm.learner


def _steps(given: int | Sequence[int], nodes: int) -> np.ndarray:
    """[n] int64."""
    steps = np.asarray([given] * nodes if isinstance(given, int) else given)
    if steps.shape != (nodes,):
        raise ConfigError(f"local_steps: {len(steps)} numbers for {nodes} nodes; give one for each, or one for all")
    if steps.dtype.kind not in "iu" or (steps < 0).any():
        raise ConfigError(f"local_steps={given!r}: must be whole numbers >= 0")
    if not steps.any():
        raise ConfigError("local_steps: all are 0; somebody must train")
    return steps.astype(np.int64)


def _dataset(given: Dataset | Arrays) -> Dataset:
    if not isinstance(given, Dataset):
        if not isinstance(given, tuple | list) or len(given) != 4:
            what = f"{len(given)} values" if isinstance(given, tuple | list) else f"a {type(given).__name__}"
            raise ConfigError(f"dataset: is {what}; must be a Dataset or (x_train, y_train, x_test, y_test)")
        given = data.from_arrays(*given)
    data.validate(given, "dataset")
    return given


def _parts(given: Partition | None, dataset: Dataset, nodes: int, seed: int) -> Partition:
    if given is None:
        return partition.iid(dataset, nodes, seed)
    if not isinstance(given, Partition):
        raise ConfigError(
            f"partition: is a {type(given).__name__}; must be a Partition, as p2pfl.data.dirichlet(...) returns"
        )
    for part, rows, count in (("train", given.train, len(dataset.train.y)), ("test", given.test, len(dataset.test.y))):
        if len(rows) != nodes:
            raise ConfigError(f"partition.{part}: rows of {len(rows)} nodes, and the schedule has {nodes}")
        for node, each in enumerate(rows):
            each = np.asarray(each)
            if each.ndim != 1 or (each.size and each.dtype.kind not in "iu"):
                raise ConfigError(f"partition.{part}[{node}]: must be a list of row numbers")
            if each.size and not (each.min() >= 0 and each.max() < count):
                raise ConfigError(f"partition.{part}[{node}]: rows must be from 0 to {count - 1}, the rows of {part}")
            if part == "train" and not each.size:
                raise ConfigError(f"partition.train[{node}]: is empty; every node needs a row to train on")
    return given


def _fitted(learner: Learner, dataset: Dataset) -> Params:
    """Shapes and dtypes of the learner's model, which takes rows as they are."""
    model = jax.eval_shape(learner.init, jax.random.key(0))
    x, y = _like(model, dataset.train.x[:1]), dataset.train.y[:1]
    try:
        jax.eval_shape(learner.grad, model, {"x": x, "y": y}, jax.random.key(0))
        output = jax.eval_shape(learner.predict, model, x).shape[1:]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"dataset: the learner does not take rows of shape {x.shape[1:]}: {error}") from error
    wanted = TARGETS[dataset.kind].output(x.shape[1:], len(dataset.classes))
    if output != wanted:
        raise ConfigError(
            f"dataset: of {len(dataset.classes)} classes, and the learner's output for a row has shape {output}; must "
            f"be {wanted}. Make the learner with classes={len(dataset.classes)}"
        )
    return model


def _like(model: Params, x: np.ndarray) -> np.ndarray:
    """Rows in double precision where the model is."""
    double = any(leaf.dtype == np.float64 for leaf in jax.tree.leaves(model["trained"]))
    return x.astype(np.float64) if double else x


def _startable(algorithm: Algorithm, model: Params) -> Algorithm:
    """Return the algorithm, if it can begin with the model and send something of it."""
    around = Neighborhood(np.zeros(1, np.float32), np.zeros(1, np.float32))
    try:
        jax.eval_shape(lambda params: algorithm.send(algorithm.init(params, 1), around), model)
    except KeyError as error:
        raise ConfigError(
            f"algorithm: {algorithm.name} asks for {error} in the model, as those do that look at a node's own data; "
            "simulate it from an experiment file, which brings that along"
        ) from error
    return algorithm


def _history(evaluated: Sequence[Evaluated], nodes: int) -> History:
    def stacked(rows: Sequence[np.ndarray | None]) -> np.ndarray:
        return np.stack([np.full(nodes, np.nan, np.float32) if row is None else row for row in rows])

    return History(
        np.array([one.round for one in evaluated], np.int64),
        stacked([one.train_loss for one in evaluated]),
        stacked([one.score for one in evaluated]),
        stacked([one.score_own for one in evaluated]),
        stacked([one.score_before for one in evaluated]),
        np.array([one.consensus_distance for one in evaluated]),
    )


def run(
    experiment: Experiment | Path | str, out: Path | str | None = None, *, callbacks: Sequence[Callback] = ()
) -> RunResult:
    """Run an experiment with all its nodes on this machine, as the command `p2pfl run` does, and say nothing.

    Args:
        experiment: its file, or what `load_experiment` made of one. Modules that a file names lie beside it.
        out: the run directory, new or empty; None makes one below runs/ in the current directory.
        callbacks: told of the beginning, of each evaluated round, and of the end; one may end the run early.

    Returns:
        What the run has left, as of `load_run`; docs/run-directory.md says what each figure of its summary means.

    Raises:
        ConfigError: the experiment can't mean anything, or `out` is not empty; before anything starts.
        Exception: whatever a callback has raised, when the nodes have left and all that the run leaves is written.

    Example:
        >>> import p2pfl
        >>> p2pfl.run("no-such-experiment.toml")
        Traceback (most recent call last):
        ...
        p2pfl.errors.ConfigError: no-such-experiment.toml: no such file; the full path is ...
    """
    # here: who simulates has no need of sockets and figures
    from p2pfl.runs.loaded import load_run
    from p2pfl.runs.run import default_out
    from p2pfl.runs.run import run as run_experiment

    told, beside = Callbacks(callbacks), []
    if not isinstance(experiment, Experiment):
        beside = [str(Path(experiment).resolve().parent)]
        experiment = files.load(Path(experiment), find=True)
    directory = default_out(experiment.name) if out is None else Path(out)
    before = sys.path[:]
    sys.path[:0] = beside
    try:
        run_experiment(experiment, directory, callbacks=told, folder="".join(beside))
        result = load_run(directory)
        told.end(result)
        return result
    finally:
        sys.path[:] = before
