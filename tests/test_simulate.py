"""The ladder of parity below live runs: plain loop ~ all nodes at once ~ spread over devices, per algorithm, in x64."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from click.testing import CliRunner
from federations import CASES, MECHANISMS, TABLE, at_once, federation_of, flat, flattened, looped, spoilt

import p2pfl
from p2pfl import tree
from p2pfl.cli import main
from p2pfl.config import experiment
from p2pfl.config.experiment import Experiment
from p2pfl.drivers.simulate import autotune, engine, layout, loop, simulation
from p2pfl.drivers.simulate import plan as engine_plan
from p2pfl.drivers.simulate.layout import exported, tables
from p2pfl.errors import ConfigError
from p2pfl.federation import federation as build
from p2pfl.federation.federation import Federation
from p2pfl.federation.tasks import tasks
from p2pfl.runs import simulated
from p2pfl.topology import plan

AGAIN = {
    "dsgd cta", "dmsgd", "qg_dsgdm", "gradient_tracking", "diging", "exact_diffusion", "d2", "push_sum",
    "epidemic oracle", "dfedavg", "outer", "outer pairs", "fedavg complete", "fedprox", "local", "base graph",
    "complete", "loss", "self", "loss, fedavg", "churn", "grows", "epidemic",
    "objectives", "more objectives", "weights and widths", "reconstruction", "widths, churn", "spectra and weights",
    "share, push", "share, churn", "share, outer",
    "noise and features", "scores", "a lie for each", "replay", "colours", "private steps",
    "a share of the nodes",
}  # fmt: skip
"""Other variants of what the rest tries; each algorithm by itself is held to its equations in test_algorithms.py."""


NIGHTLY = {"share", "share, corrections", "share, gossip", "scheduled", "rules"}
"""Of "share" others have the same and more: "share, churn", "share, push" and "share, outer"; each algorithm:
test_share.py. Of two the bits depend on how XLA emits fusions, which is another way by day (conftest.py): a learning
rate is in float32 (test_virtual.py has such by day), and rules choose among neighbours, whose distances are rounded
("scores" and "a lie for each" have others by day)."""


def some(names: Iterable[str]) -> list[Any]:
    return [
        pytest.param(name, marks=pytest.mark.soak if name in NIGHTLY else pytest.mark.more if name in AGAIN else ())
        for name in names
    ]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def federation(**tables: Any) -> Federation:
    return federation_of({**TABLE, **tables})


@pytest.mark.parametrize("case", some(CASES))
def test_all_nodes_at_once_are_the_plain_loop(case: str) -> None:
    """Sums are taken in other orders, and some operations are fused: a few units in the last place each round."""
    made = federation(**CASES[case])
    np.testing.assert_allclose(at_once(made, devices=1, chunk=4), looped(made), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("case", some(MECHANISMS))
def test_all_nodes_at_once_are_the_plain_loop_also_with_what_a_study_adds(case: str) -> None:
    """But for the last bit of a first model, which is drawn in float32 and depends on the program around: 2^-24 of 1.
    Batch normalisation divides by small numbers, so that it may grow; what is computed otherwise differs by more."""
    with jax.numpy_dtype_promotion("standard"):  # Flax's batch normalisation refuses strict float64
        made = federation_of(MECHANISMS[case])
        np.testing.assert_allclose(at_once(made), looped(made), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "case", [
        "dsgd",
        *(pytest.param(one, marks=pytest.mark.more) for one in ("push_sum", "epidemic", "fedavg star", "churn, push")),
        *(pytest.param(one, marks=pytest.mark.soak) for one in ("late", "gradient_tracking", "local")),
    ],
)  # fmt: skip
def test_spread_over_devices_is_the_same(case: str) -> None:
    made = federation(**CASES[case])
    one = at_once(made, devices=1, chunk=9)
    for devices, chunk in ((2, 2), (8, 1)):
        np.testing.assert_allclose(at_once(made, devices=devices, chunk=chunk), one, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "graph, devices",
    [
        pytest.param("complete", 4, marks=pytest.mark.more),
        pytest.param("barabasi_albert", 1, marks=pytest.mark.more),
        pytest.param("star", 4, marks=pytest.mark.more),
    ],
)
def test_every_way_of_mixing_is_the_same(graph: str, devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = federation(topology={"graph": graph, "nodes": 12}, algorithm={"name": "exact_diffusion"})
    expected = looped(made)
    for way in ("inbox", "edges", "dense", *(["mean"] if graph == "complete" else [])):
        monkeypatch.setattr(autotune, "mixing", lambda *given, way=way: way)
        np.testing.assert_allclose(at_once(made, devices=devices, chunk=3), expected, rtol=1e-12, atol=1e-13)


OTHERS = ("epidemic", "gossip_learning", "fedavg star", "renormalise", "loss, push", "base graph", "wraps")
"""On one device by day, on four by night, where those of `test_spread_over_devices_is_the_same` are by day."""


@pytest.mark.parametrize(
    ("case", "way", "devices"),
    [
        ("dsgd", "", 1), ("late", "", 1), ("complete", "mean", 4), ("complete", "dense", 1), ("churn", "", 1),
        *(pytest.param(case, "", 4, marks=pytest.mark.more) for case in ("dsgd", "gradient_tracking", "late")),
        pytest.param("push_sum", "", 4, marks=pytest.mark.more),
        *(pytest.param(case, "", 1, marks=pytest.mark.more) for case in OTHERS),
        *(pytest.param(case, "", 4, marks=pytest.mark.soak) for case in (*OTHERS, "complete")),
    ],
)  # fmt: skip
def test_who_is_not_finite_is_refused_as_in_the_plain_loop(
    case: str, way: str, devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node 1 alone diverges: its exchanges are void at both ends, are not counted, and move no mean."""
    made = spoilt(federation(**{**CASES[case], "evaluation": {"every": 1}}))
    told: list[simulation.Evaluated] = []
    if way:
        monkeypatch.setattr(autotune, "mixing", lambda *given: way)
    outcome = simulated.simulate_federation(
        made, devices=devices, progress=lambda round, evaluated: told.extend(evaluated)
    )
    models = flattened(made, outcome)
    np.testing.assert_allclose(models, looped(made), rtol=1e-10, atol=1e-12)
    assert [i for i, model in enumerate(models) if not np.isfinite(model).all()] == [1]
    assert np.flatnonzero(outcome.diverged).tolist() == [1] and outcome.diverged[1] == 1
    assert outcome.booked == sum(int(one.arrived.sum()) for one in told) < outcome.planned
    assert not any((one.neighbor[one.arrived] == 1).any() or one.arrived[1].any() for one in told) or case != "dsgd"
    if made.algorithm.keeps_mean != "nothing" and case != "renormalise":
        assert outcome.drift < 1e-14


def test_what_is_cheapest_is_chosen() -> None:
    def chosen(graph: str, nodes: int, drawn: bool = False, name: str = "dsgd") -> str:
        made = federation(topology={"graph": graph, "nodes": nodes}, algorithm={"name": name})
        return autotune.mixing(made.algorithm, made.schedule, drawn, False)

    assert chosen("ring", 200) == chosen("star", 200) == "edges"
    assert chosen("complete", 40) == "mean"
    assert chosen("complete", 40, drawn=True) == "dense"
    assert chosen("exponential", 8, name="push_sum") == "inbox"


@pytest.mark.more
def test_a_model_with_data_of_unequal_size_and_evaluation(optimised: None) -> None:
    """A network on digits, Dirichlet: nodes have different numbers of rows, and are tested before and after mixing."""
    made = federation(
        data={"source": "digits", "partition": "dirichlet", "alpha": 0.5},
        model={"name": "mlp", "hidden": [8]},
        topology={"graph": "ring", "nodes": 5},
        rounds=4,
        evaluation={"every": 2},
    )
    assert len({len(rows) for rows in made.partition.train}) > 1
    seen: list[simulation.Evaluated] = []
    outcome = simulated.simulate_federation(
        made, devices=2, chunk=2, progress=lambda round, evaluated: seen.extend(evaluated)
    )
    rows: dict[tuple[int, int], Any] = {}
    models = loop.run(
        tasks(made), simulated.deliveries(made), lambda i, a, b: rows.__setitem__((i, a.round), a), lambda: 0.0
    )
    for i, model in enumerate(models):
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], outcome.models)
        np.testing.assert_allclose(flat(mine), flat(model), rtol=1e-11, atol=1e-12)
    assert [one.round for one in seen] == [2, 4]
    for one in seen:
        for i in range(5):
            record = rows[i, one.round]
            assert one.score is not None and one.score_own is not None and one.score_before is not None
            # shares of the same counts, in float32 and float64
            assert abs(one.score[i] - record.score_after_mixing) < 1e-6
            assert abs(one.score_own[i] - record.score_own) < 1e-6
            assert abs(one.score_before[i] - record.score_before_mixing) < 1e-6
            assert abs(one.train_loss[i] - record.train_loss) < 1e-6
    distance = tree.consensus_distance(models)
    assert abs(seen[-1].consensus_distance - distance) < 1e-9 * max(distance, 1)


def test_the_cut_into_stretches_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = federation(rounds=11, evaluation={"every": 11}, network={"loss": 0.2})
    cuts: list[list[int]] = []

    def run() -> np.ndarray:
        clock, done = itertools.count(1), list[int]()  # a fast one: stretches become longer
        models = at_once(made, now=lambda: next(clock) / 1000, progress=lambda round, _: done.append(round))
        cuts.append(done)
        return models

    whole = run()
    monkeypatch.setattr(engine_plan, "_LONGEST", 3)
    assert np.array_equal(run(), whole)
    assert cuts == [[1, 2, 10, 11], [1, 2, 5, 8, 11]]


def test_all_seeds_have_one_program() -> None:
    """The programs of a sweep are compiled once for all of its seeds."""

    def text(seed: int) -> str:
        work = simulated.work_of(federation(seed=seed))
        program = engine.compile(engine_plan.plan(work, simulation.How(9, 1, False), lambda: 0.0))
        padded = jax.tree.map(program.plan.shape.layout.padded, work.sites)
        carry = jax.eval_shape(program.init, np.uint32(seed), padded)
        return str(program.stretch.lower(carry, program.feed.take(1, 1)[0]).as_text())  # type: ignore[attr-defined]

    assert text(0) == text(1)


def test_what_processors_do_is_counted_from_the_first_stretch_to_the_last_by_round() -> None:
    spent = iter([10.0, 16.0, 19.0])
    watch = engine._Stopwatch(0.0, lambda: 0.0, lambda: next(spent))
    assert watch.spent is None
    watch.begin()
    watch.rounds = 3
    watch.stop()
    assert watch.spent == 2.0
    watch.stop()  # a callback has ended it in its last round
    assert watch.spent == 3.0
    silent = engine._Stopwatch(0.0, lambda: 0.0, None)
    silent.begin()
    silent.rounds = 3
    silent.stop()
    assert silent.spent is None


def test_the_drift_is_measured() -> None:
    """Double entry keeps the mean to rounding; the wrong rules move it."""
    made = federation(network={"loss": 0.3})
    assert simulated.simulate_federation(made).drift < 1e-15
    for rule in ("self", "renormalise"):
        assert simulated.simulate_federation(federation(network={"loss": 0.3, "rule": rule})).drift > 1e-4


@pytest.mark.more
def test_hundreds_of_nodes_with_an_own_algorithm() -> None:
    """What a researcher does: an algorithm in a few lines, and it is simulated."""
    made = federation(topology={"graph": "random_regular", "nodes": 300}, rounds=3)

    def lazy(learner: Any) -> Any:
        inner = p2pfl.dsgd(learner, optax.sgd(0.1))
        return inner._replace(name="lazy", mix=lambda state, inbox, around: state)

    mine = made.with_algorithm(lazy)
    alone = federation(topology={"graph": "random_regular", "nodes": 300}, rounds=3, algorithm={"name": "local"})
    np.testing.assert_allclose(at_once(mine), at_once(alone), rtol=1e-13)
    assert not np.allclose(at_once(mine), at_once(made))


# ---------------------------------------------------------------------------------------------------- layout, memory


@pytest.mark.parametrize("nodes, devices, chunk", [(1, 8, 4), (9, 2, 4), (10, 4, 3), (1000, 2, 16), (7, 7, 9)])
def test_a_layout_holds_all_nodes_with_little_waste(nodes: int, devices: int, chunk: int) -> None:
    made = layout.layout(nodes, devices, chunk)
    assert made.devices <= min(devices, nodes) and made.chunk <= chunk
    assert made.size % made.chunk == 0 and made.places >= nodes
    assert made.places - nodes < made.devices * made.chunk + made.devices


@pytest.mark.parametrize("graph", ["ring", "exponential", "base", "barabasi_albert", "complete"])
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_tables_lead_to_the_neighbors(graph: str, devices: int) -> None:
    """Follow every index by hand: what a device gathers is the neighbour, and its slot stands for the gatherer."""
    schedule = plan(graph, 16, arguments={"k": 2} if graph == "base" else {})
    shape = layout.layout(16, devices, 2)
    found = tables(schedule, shape)
    width = max((len(part) for row in exported(schedule, shape) for part in row), default=0)
    for t in range(len(schedule.neighbor)):
        for i in range(16):
            device = i // shape.size
            own = np.arange(device * shape.size, (device + 1) * shape.size)
            table = np.arange(shape.places)
            if found.halo:
                shown = [d * shape.size + found.export[t, d] for d in range(devices)]
                table = np.concatenate([own, *shown])
                assert found.export.shape[2] == width
            elif devices == 1:
                table = own
            for k, j in enumerate(schedule.neighbor[t, i]):
                if j >= 0 and schedule.weight[t, i, k] > 0:
                    assert table[found.row[t, i, k]] == j
                    assert schedule.neighbor[t, j, found.other[t, i, k]] == i


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    autotune.fits(10, 0, 5, free=None)
    autotune.fits(1000, 0, 5, free=10_000)
    with pytest.raises(ConfigError, match=r"topology.nodes=50: .* about 8 nodes of this model and algorithm fit"):
        autotune.fits(10 * 2**20, 0, 50, free=97 * 2**20)


def test_memory_is_planned_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "free_bytes", lambda devices: 1000)
    with pytest.raises(ConfigError, match=r"nodes of this model and algorithm fit"):
        simulated.simulate_federation(federation())


# --------------------------------------------------------------------------------------------- several hosts, command

HOST = """
import sys, jax, json, numpy as np
from pathlib import Path
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from p2pfl.config import experiment
from p2pfl.federation import federation
from p2pfl.runs import simulated
made = federation.build(experiment.parse(json.loads(sys.argv[3]), "t", experiment.Experiment))
outcome = simulated.simulate_federation(made, chunk=2)
assert outcome.devices == 4
np.save(sys.argv[4], np.concatenate([l.reshape(len(made.graph), -1) for l in jax.tree.leaves(outcome.models)], axis=1))
"""


@pytest.mark.more
def test_two_hosts_together_are_one(tmp_path: Path) -> None:
    """jax.distributed: two processes with two devices each end with the models of a single one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    table = {**TABLE, "algorithm": {"name": "gradient_tracking"}, "network": {"loss": 0.1}}
    files = [tmp_path / f"{i}.npy" for i in range(2)]
    commands = [
        [sys.executable, "-c", HOST, address, str(i), json.dumps(table), str(file)] for i, file in enumerate(files)
    ]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        for process in running:
            _, said = process.communicate(timeout=180)
            assert process.returncode == 0, said[-2000:]
    finally:
        for process in running:
            process.kill()
    expected = at_once(build.build(experiment.parse(table, "t", Experiment)), devices=1)
    for file in files:
        np.testing.assert_allclose(np.load(file), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.more  # test_drivers.py holds every driver to its files
def test_a_run_leaves_the_records_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "e.toml"
    wanted: Experiment = experiment.parse(TABLE, "test.toml", Experiment)
    file.write_text(experiment.dump(wanted))
    command = [sys.executable, "-m", "p2pfl", "run", str(file), "--json", "--out", str(tmp_path / "run")]
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # which the command then sets
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout)
    # the quadratic's figures, and they are those of theory: two local steps towards (I - W H) x = W (I - H) b
    assert summary["distance_to_optimum"] > 0.01
    assert summary["mean_residual"] < 1e-15
    cores = len(os.sched_getaffinity(0))
    assert (summary["simulated_by"]["devices"] > 1) == (cores > 1) and summary["seconds_processor_per_round"] > 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["round"] for row in rows} == {3, 6, 7} and {row["node"] for row in rows} == set(range(9))
    assert (tmp_path / "run" / "report.html").exists() and (tmp_path / "run" / "models.safetensors").exists()
    assert len(tree.named_leaves(build.model_shape(federation()))) == 1


@pytest.mark.parametrize(
    "options, said",
    [
        pytest.param(["--hosts", "a:1"], "must be ADDRESS:PORT,N,I", marks=pytest.mark.more),
        (["--hosts", "a:1,2,2"], "must be ADDRESS:PORT,N,I"),
        (["--hosts", "a:1,2,0", "--set", "baselines=true"], "without baselines"),
        pytest.param(["--hosts", "a:1,2,0", "--driver", "live"], "without baselines", marks=pytest.mark.more),
    ],
)
def test_hosts_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str) -> None:
    monkeypatch.setenv("XLA_FLAGS", "")  # which the command may set
    file = tmp_path / "e.toml"
    wanted: Experiment = experiment.parse(TABLE, "test.toml", Experiment)
    file.write_text(experiment.dump(wanted))
    done = CliRunner().invoke(main, ["run", str(file), *options])
    assert done.exit_code == 1 and said in done.stderr
