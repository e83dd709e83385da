"""A node in a script of the user's own: `p2pfl.join`."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from small import Case, write

import p2pfl
from p2pfl import tree
from p2pfl.drivers.live.node import LiveNode
from p2pfl.drivers.live.ports import reserved
from p2pfl.drivers.simulate import loop
from p2pfl.federation.tasks import tasks
from p2pfl.node.task import Task
from p2pfl.runs.peers import Peers
from p2pfl.runs.simulated import deliveries

LOCAL = {
    "preset": "local",
    "timing": {"start_timeout": 60.0, "silence": 20.0, "deadline_min": 21.0, "deadline_max": 21.0},
}


@contextlib.contextmanager
def federation(folder: Path, params: list[Any], **given: Any) -> Iterator[list[Peers]]:
    """A node for each of these first models, all in this process, on a ring unless told otherwise."""
    count = len(params)
    with reserved(count) as held, contextlib.ExitStack() as open_nodes:
        addresses = [f"tcp://127.0.0.1:{port}" for port in held]
        table = {"topology": {"graph": "ring", "nodes": count}, "network": LOCAL, **given}
        made = [
            p2pfl.join(
                params=each, node=node, listen=addresses[node], peers=addresses[:1], out=folder / str(node), **table
            )
            for node, each in enumerate(params)
        ]
        for peers in made:
            open_nodes.callback(peers.leave)
        yield made


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """Make these calls at the same time."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(timeout=120) for future in [pool.submit(call) for call in calls]]


def test_models_are_mixed_by_the_weights_and_come_back_as_they_went(tmp_path: Path) -> None:
    """Ring of three: W is 1/3 everywhere. Kinds and dtypes of leaves stay, what is no model stays at home."""

    def first(node: int) -> Any:
        return {
            "jax": jnp.full((2, 3), node, jnp.float32),
            "wide": np.full(2, node + 1e-12, np.float64),
            "half": jnp.full(4, node, jnp.bfloat16),
            "scalar": np.float32(node),
            "count": np.int64(node),
            "nested": [{"flag": np.array([True, False])}],
        }

    with federation(tmp_path, [first(node) for node in range(3)]) as made:
        rounds = together([lambda each=each, node=node: each.mix(first(node)) for node, each in enumerate(made)])
        report = made[0].report()
    assert (report.round, report.mixed_with, report.members, report.booked) == (1, (1, 2), (0, 1, 2), 2)
    for node, mixed in enumerate(rounds):
        assert jax.tree.structure(mixed) == jax.tree.structure(first(node))
        for old, new in zip(jax.tree.leaves(first(node)), jax.tree.leaves(mixed), strict=True):
            assert (type(old), old.dtype, old.shape) == (type(new), new.dtype, new.shape)
        np.testing.assert_allclose(mixed["jax"], 1.0, rtol=1e-6)
        np.testing.assert_allclose(mixed["wide"], 1 + 1e-12, rtol=3e-16)  # float32 would lose it
        assert mixed["count"] == node and mixed["nested"][0]["flag"].tolist() == [True, False]


@pytest.mark.more
def test_what_the_script_changes_or_donates_later_is_its_own(tmp_path: Path) -> None:
    """Numpy arrays changed in place, jax buffers donated, with exchanges still to be booked: as if they were not."""
    grow = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    weights = np.full((3, 3), 1 / 3)
    expected = np.arange(3.0)[:, None] * np.ones(5)

    def loop(peers: Peers, node: int) -> Any:
        in_place, donated = np.full(5, node, np.float32), jnp.full(5, node, jnp.float32)
        for _ in range(4):
            handed = {"in_place": in_place, "donated": donated}
            got = peers.mix(handed)
            in_place, donated = got["in_place"], got["donated"]
            handed["in_place"][:] = np.nan
            in_place += 1
            donated = grow(donated)
            assert donated.is_deleted() is False
        return in_place, donated

    for _ in range(4):
        expected = weights @ expected + 1
    with federation(tmp_path, [{"in_place": np.full(5, i, np.float32), "donated": jnp.full(5, i, jnp.float32)}
                               for i in range(3)]) as made:  # fmt: skip
        ended = together([lambda each=each, node=node: loop(each, node) for node, each in enumerate(made)])
    for node, found in enumerate(ended):
        for array in found:
            np.testing.assert_allclose(array, expected[node], rtol=1e-5)


@pytest.mark.more
def test_who_finds_nobody_goes_on_and_the_mean_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A call gives up after its timeout; what is booked in its round later is added to what is handed in next."""
    table = {"topology": {"graph": "complete", "nodes": 3}, "network": LOCAL}

    def model(value: float) -> Any:
        return {"x": np.full(2, value)}

    with reserved(3) as held, contextlib.ExitStack() as nodes:
        at = [f"tcp://127.0.0.1:{port}" for port in held]

        def come(node: int) -> Peers:
            out = tmp_path / str(node)
            peers = p2pfl.join(params=model(float(node)), node=node, listen=at[node], peers=at[:1], out=out, **table)
            nodes.callback(peers.leave)
            return peers

        first = come(0)
        with caplog.at_level(logging.WARNING, "p2pfl"):
            alone = first.mix(model(0.0), timeout=0.5)
            again = first.mix(model(10.0), timeout=0.5)  # ten: what it has learned meanwhile
        assert alone["x"].tolist() == [0, 0] and again["x"].tolist() == [10, 10]
        assert "too few are there" in caplog.text
        others = [come(1), come(2)]

        def twice(peers: Peers, value: float) -> Any:
            return peers.mix(peers.mix(model(value)))

        mixed = together([
            lambda: first.mix(model(10.0)),
            *(lambda each=each, i=i: twice(each, i + 1.0) for i, each in enumerate(others)),
        ])  # fmt: skip
    total = sum(each["x"] for each in mixed)
    np.testing.assert_allclose(total, 13, rtol=1e-12)  # 10 + 1 + 2: nothing is lost, nothing counts twice
    np.testing.assert_allclose(mixed[0]["x"], 13 / 3, rtol=1e-12)


@pytest.mark.live
@pytest.mark.more
def test_who_comes_to_others_has_their_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its own steps on another model are dropped, and it is told; unless it has asked where to start."""
    soon = {"preset": "local", "timing": {"start_timeout": 5.0}}  # then the two begin without the third
    table = {"topology": {"graph": "complete", "nodes": 3}, "network": soon}
    stop, begun = threading.Event(), threading.Barrier(3)

    def go_on(peers: Peers) -> None:
        model = {"x": np.full(2, 5.0)}
        for _ in range(3):
            model = peers.mix(model)
        begun.wait(60)
        while not stop.is_set():
            model = peers.mix(model)

    with reserved(3) as held, contextlib.ExitStack() as nodes:
        at = [f"tcp://127.0.0.1:{port}" for port in held]

        def come(node: int, value: float) -> Peers:
            out, first = tmp_path / f"{node}-{value}", {"x": np.full(2, value)}
            return p2pfl.join(params=first, node=node, listen=at[node], peers=at[:2], out=out, **table)

        pool = nodes.enter_context(ThreadPoolExecutor(2))
        going = [pool.submit(go_on, nodes.enter_context(come(node, 5.0))) for node in range(2)]
        nodes.callback(stop.set)
        begun.wait(60)
        for value in (900.0, 800.0):
            with come(2, value) as late, caplog.at_level(logging.WARNING, "p2pfl"):
                caplog.clear()
                first = np.full(2, 1000.0) if value == 900.0 else late.start()["x"] + 1
                model = late.mix({"x": first})
                assert ("is dropped" in caplog.text) == (value == 900.0)
                assert 4.5 < model["x"][0] < 6.5
                assert late.members == (0, 1, 2) and late.round > 3
                model = late.mix({"x": model["x"] + 3})
                assert 5.0 < model["x"][0] < 9.0  # now its steps count
        stop.set()
        for each in going:
            each.result(timeout=60)


def test_an_algorithm_with_its_own_steps_ends_as_in_the_plain_loop_to_the_bit(tmp_path: Path) -> None:
    """Gradient tracking in scripts, on the batches that an experiment would train on."""
    file = write(tmp_path, Case("gradient_tracking", nodes=3))
    built = p2pfl.build(p2pfl.load_experiment(file))
    made = tasks(built)
    models = loop.run(made, deliveries(built), lambda *record: None, lambda: 0.0)

    def drive(peers: Peers, task: Task) -> Any:
        with pytest.raises(p2pfl.ConfigError, match="keeps more than the model"):
            peers.mix(peers.start())
        for round in range(1, 1 + task.rounds):
            loss = peers.local(task.batches(round))
            assert np.isfinite(loss)
            with pytest.raises(p2pfl.ConfigError, match="are taken; call mix"):
                peers.local(task.batches(round))
            params = peers.mix()
        with pytest.raises(p2pfl.LocalError, match="has ended"):  # the last round is over
            peers.local(task.batches(1))
        return params

    with reserved(3) as held:
        at = [f"tcp://127.0.0.1:{port}" for port in held]
        for node in range(3):
            (tmp_path / f"{node}.toml").write_text(
                f'experiment = "experiment.toml"\nnode = {node}\nlisten = "{at[node]}"\n'
                f'peers = {at[:1]}\nout = "{node}"\n'
            )
        first = jax.tree.map(np.asarray, built.learner.init(jax.random.key(built.experiment.seed))["trained"])
        nodes = [p2pfl.join(tmp_path / f"{node}.toml", first) for node in range(3)]
        ended = together(
            [lambda peers=peers, task=task: drive(peers, task) for peers, task in zip(nodes, made, strict=True)]
        )
        results = [peers.leave() for peers in nodes]
    for node, (params, model) in enumerate(zip(ended, models, strict=True)):
        np.testing.assert_array_equal(params["x"], model["trained"]["x"])
        assert results[node].digest == tree.digest(jax.tree.map(np.asarray, model))
        assert not results[node].left and results[node].round == built.experiment.rounds


W = {"w": np.zeros(3, np.float32)}
RING = {"node": 0, "listen": "tcp://127.0.0.1:5700", "topology": {"graph": "ring", "nodes": 3}}


@pytest.mark.parametrize(
    ("params", "given", "text"),
    [
        (None, {}, "params: missing"),
        ({}, {}, "params: missing"),
        ({"w": 1.5}, {}, "params: w is a builtins.float; must be an array"),
        ({"w": np.zeros(2, np.complex64)}, {}, "params: w is complex64"),
        ({"w": np.zeros(2, np.int32)}, {}, "no leaf is a floating-point array"),
        ({"w": np.array([1.0, np.nan])}, {}, "params: holds NaN or infinity"),
        ({"a/b": np.zeros(2), "a": {"b": np.zeros(2)}}, {}, "two leaves have one name"),
        (W, {"node": 3}, "node=3: the topology has nodes 0 to 2"),
        (W, {"node": None}, "node: missing"),
        (W, {"listen": None}, "listen: missing"),
        (W, {"listen": "localhost"}, "listen='localhost'"),
        (W, {"listen": "tcp://0.0.0.0:5700"}, "stands for all addresses"),
        (W, {"topology": None}, "topology: missing"),
        (W, {"topology": {"graph": "rign", "nodes": 3}}, "did you mean 'ring'"),
        (W, {"topology": {"graph": "ring"}}, "topology.nodes: missing"),
        (W, {"algorithm": "dsdg"}, "did you mean 'dsgd'"),
        (W, {"algorithm": {"name": "dsgd", "share": ["v"]}}, "share: 'v' matches no leaf"),
        (W, {"algorithm": {"name": "dsgd", "wrap": [{"name": "by_samples"}]}}, "by_samples asks for"),
        (W, {"network": {"preset": "home"}}, "network.preset"),
        (W, {"rounds": 0}, "rounds=0"),
        (W, {"optimizer": optax.sgd(0.1)}, "needs both"),
        (W, {"file": "node.toml"}, "given beside node.toml"),
        (W, {**dict.fromkeys(RING), "file": "node.toml", "rounds": 5, "seed": 0}, "rounds, seed: given beside"),
        (W, {"algorithm": "fedavg", "topology": {"graph": "star", "nodes": 3}}, "weighs nodes by their training rows"),
    ],
)  # fmt: skip
def test_what_can_not_be_joined_is_refused_before_anything_starts(
    params: Any, given: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with pytest.raises(p2pfl.ConfigError, match=text):
        p2pfl.join(**{"params": params, "out": tmp_path / "out", **RING, **given})
    assert not (tmp_path / "out").exists()


@pytest.mark.more
def test_a_model_that_changes_its_shape_is_refused_and_the_node_goes_on(tmp_path: Path) -> None:
    with federation(tmp_path, [{"a": np.zeros(2), "b": np.zeros(1)}] * 2) as (one, other):
        for params, text in (
            ({"a": np.zeros(2)}, "another tree than was given to join; it differs in b"),
            ({"a": np.zeros(3), "b": np.zeros(1)}, r"a is float64 \[3\]; must be float64 \[2\]"),
            ({"a": np.zeros(2, np.float32), "b": np.zeros(1)}, r"a is float32 \[2\]; must be float64 \[2\]"),
            ({"a": [0.0, 0.0], "b": np.zeros(1)}, "another tree"),
            (None, "no local steps were taken"),
        ):
            with pytest.raises(p2pfl.ConfigError, match=text):
                one.mix(params)
        with pytest.raises(p2pfl.ConfigError, match="give learner= and optimizer= to join"):
            one.local({"x": np.zeros((1, 1, 2)), "y": np.zeros((1, 1))})
        models = [{"a": np.full(2, value), "b": np.ones(1)} for value in (1.0, 2.0)]
        mixed = together([lambda: one.mix(models[0]), lambda: other.mix(models[1])])
        assert [each["a"].tolist() for each in mixed] == [[1.5, 1.5]] * 2


@pytest.mark.more
def test_what_is_not_shared_stays_as_it_was_given(tmp_path: Path) -> None:
    """Also in `start`, whatever has become of the arrays that were given."""
    given = {"w": np.ones(2), "head": np.arange(3.0), "other": jnp.arange(2.0), "step": jnp.int32(7)}
    table = {"algorithm": {"name": "dsgd", "share": ["w"]}}
    with federation(tmp_path, [given, dict(given)], **table) as made:
        given["head"][:] = np.nan
        given["other"].delete()
        for begins in together([each.start for each in made]):
            assert begins["head"].tolist() == [0, 1, 2] and begins["w"].tolist() == [1, 1]
            assert isinstance(begins["other"], jax.Array) and begins["other"].tolist() == [0, 1]
            assert begins["step"] == 7
        models = [{"w": np.full(2, i), "head": np.full(3, i), "other": jnp.full(2, i), "step": jnp.int32(i)}
                  for i in (1.0, 2.0)]  # fmt: skip
        mixed = together(
            [lambda each=each, model=model: each.mix(model) for each, model in zip(made, models, strict=True)]
        )
    for i, each in enumerate(mixed, 1):
        assert each["w"].tolist() == [1.5, 1.5]
        assert each["head"].tolist() == [i] * 3 and each["other"].tolist() == [i] * 2 and each["step"] == i


@pytest.mark.more
def test_a_node_whose_loop_fails_is_waited_for_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its computing thread waits for the script at that moment, and the script for it at the next."""
    fails = threading.Event()

    def tell(node: LiveNode, now: float) -> None:
        if fails.is_set():
            raise ValueError("a fault of the loop")

    monkeypatch.setattr(LiveNode, "_tell", tell)
    models = [{"w": np.zeros(2)}] * 2
    with pytest.raises(p2pfl.LocalError, match="a fault of the loop"), federation(tmp_path, models) as made:
        together([lambda each=each: each.mix(models[0]) for each in made])
        fails.set()
        made[0].mix(models[0])
        made[0].mix(models[0])


@pytest.mark.more
def test_scripts_with_other_models_say_what_differs(tmp_path: Path) -> None:
    models = [{"w": np.zeros(2)}, {"w": np.zeros(3)}]
    text = r"trained/w: float64 \[3\] there, float64 \[2\] here"
    with pytest.raises(p2pfl.ConfigError, match=text), federation(tmp_path, models) as made:
        together([lambda: made[0].mix(models[0]), lambda: made[1].mix(models[1])])


SCRIPT = """
import logging, os, sys
import numpy as np
import p2pfl

logging.basicConfig(level=logging.INFO, format="%(message)s")
node, resume = int(sys.argv[1]), len(sys.argv) > 2


def say(*words):  # at once, since the node has its own lines
    sys.stdout.write(" ".join(map(str, words)) + "\\n")


with p2pfl.join(f"{node}.toml", {"x": np.full(4, float(node)), "seen": np.int64(0)}, resume=resume) as peers:
    params = peers.start()
    say("begins", peers.round, params["x"][0])
    while not os.path.exists("stop"):
        params["x"] -= 0.1 * (params["x"] - node)  # its own optimum
        params = peers.mix(params)
        if peers.round % 20 == 0:
            say("round", peers.round)
    say("ends", peers.round, *params["x"], peers.report().booked)
"""


@contextlib.contextmanager
def processes(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts a Python there; all of them end here."""
    with contextlib.ExitStack() as running:

        def start(*command: object) -> subprocess.Popen[str]:
            whole = [sys.executable, "-u", *map(str, command)]
            made = subprocess.Popen(whole, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            running.enter_context(made)
            running.callback(made.kill)
            return made

        yield start


def scripts(folder: Path, nodes: int, at: list[str]) -> None:
    """The files of a federation of scripts."""
    (folder / "script.py").write_text(SCRIPT)
    (folder / "federation.toml").write_text(
        f'name = "scripts"\nrounds = 100000\n[data]\nsource = "script"\n[topology]\ngraph = "ring"\nnodes = {nodes}\n'
        '[algorithm]\nname = "dsgd"\n[network.timing]\nstart_timeout = 60.0\n[driver]\ncheckpoint = 5\n'
    )
    for node in range(nodes):
        (folder / f"{node}.toml").write_text(
            f'experiment = "federation.toml"\nnode = {node}\nlisten = "{at[node]}"\npeers = {at[:2]}\nout = "n{node}"\n'
        )


def until(process: subprocess.Popen[str], text: str) -> str:
    """Read lines until one begins so."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(text):
            return line
    raise AssertionError("".join(said))


@pytest.mark.live
@pytest.mark.more
def test_a_script_that_is_killed_comes_back_with_its_own_model_and_the_books_balance(tmp_path: Path) -> None:
    with reserved(4) as held, processes(tmp_path) as start:
        scripts(tmp_path, 4, [f"tcp://127.0.0.1:{port}" for port in held])
        nodes = [start("script.py", node) for node in range(4)]
        until(nodes[2], "round 40")
        nodes[2].kill()
        nodes[2].wait()
        until(nodes[1], "round 80")  # they go on without it
        nodes[2] = start("script.py", 2, "resume")
        begins = until(nodes[2], "begins").split()
        assert int(begins[1]) >= 35 and float(begins[2]) != 2.0
        until(nodes[2], "round")
        (tmp_path / "stop").touch()
        ends = [until(each, "ends").split() for each in nodes]
        for each in nodes:
            assert each.wait(60) == 0
    for end in ends:
        assert int(end[1]) > 80
        np.testing.assert_allclose([*map(float, end[2:6])], 1.5, atol=0.6)  # near the mean of 0, 1, 2, 3
    command = [sys.executable, "-m", "p2pfl", "check", *(str(tmp_path / f"n{node}") for node in range(4)), "--json"]
    checked = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    assert checked["mean_residual"] < 1e-6, checked


@pytest.mark.live
@pytest.mark.more
def test_three_lines_make_a_federation_of_a_training_script(tmp_path: Path) -> None:
    """experiments/own-loop, at other ports: alone a site knows its own kinds of digits, together all ten."""
    source = Path(__file__).parents[1] / "experiments" / "own-loop"
    with reserved(4) as held, processes(tmp_path) as start:
        for name in ("train.py", "federation.toml"):
            (tmp_path / name).write_text((source / name).read_text())
        for site, port in enumerate(held):
            text = (source / f"site-{site}.toml").read_text()
            text = text.replace(f":57{site}0", f":{port}").replace(":5700", f":{held[0]}")
            (tmp_path / f"site-{site}.toml").write_text(text)
        alone = start("train.py", 0, "--alone")
        together = [start("train.py", site) for site in range(4)]
        scores = [float(until(each, "site").split()[-2]) for each in (alone, *together)]
    assert scores[0] < 45 and min(scores[1:]) > 93, scores


@pytest.mark.live
@pytest.mark.more
def test_ctrl_c_while_it_waits_leaves_the_node_usable_and_nothing_behind(tmp_path: Path) -> None:
    """As in a cell of a notebook."""
    with reserved(2) as held, processes(tmp_path) as start:
        (tmp_path / "cell.py").write_text(
            "import numpy as np, p2pfl\n"
            f"peers = p2pfl.join(params=np.zeros(2), node=0, listen='tcp://127.0.0.1:{held[0]}', "
            "topology={'graph': 'ring', 'nodes': 2})\n"
            "try:\n    print('waits', flush=True)\n    peers.mix(np.ones(2))\n"
            "except KeyboardInterrupt:\n    print('stopped', peers.members, peers.over, flush=True)\n"
            "print('again', peers.mix(np.full(2, 3.0), timeout=0.2), flush=True)\n"
        )
        cell = start("cell.py")
        until(cell, "waits")
        children = subprocess.run(["pgrep", "-P", str(cell.pid)], capture_output=True, text=True, check=True)
        cell.send_signal(signal.SIGINT)
        assert until(cell, "stopped") == "stopped (0,) False\n"
        assert until(cell, "again") == "again [3. 3.]\n"
        assert cell.wait(30) == 0  # the end of the interpreter lets the node leave
    assert (tmp_path / "p2pfl-node-0" / "result.json").exists()
    assert children.stdout.split() and not any(Path(f"/proc/{pid}").exists() for pid in children.stdout.split())


@pytest.mark.more
def test_a_script_and_nodes_of_p2pfl_train_together_and_end_as_the_plain_loop_to_the_bit(tmp_path: Path) -> None:
    file = write(tmp_path, Case("dsgd", nodes=3))
    built = p2pfl.build(p2pfl.load_experiment(file))
    made = tasks(built)
    models = loop.run(made, deliveries(built), lambda *record: None, lambda: 0.0)
    with reserved(3) as held, processes(tmp_path) as start:
        at = [f"tcp://127.0.0.1:{port}" for port in held]
        for node in range(3):
            (tmp_path / f"{node}.toml").write_text(
                f'experiment = "experiment.toml"\nnode = {node}\nlisten = "{at[node]}"\n'
                f'peers = {at[:1]}\nout = "n{node}"\n'
            )
        others = [start("-m", "p2pfl", "node", f"{node}.toml") for node in (1, 2)]
        first = built.learner.init(jax.random.key(built.experiment.seed))
        with p2pfl.join(tmp_path / "0.toml", {"trained": first["trained"], "carried": first["carried"]}) as peers:
            for round in range(1, 1 + built.experiment.rounds):
                peers.local(made[0].batches(round))
                params = peers.mix()
        assert [each.wait(60) for each in others] == [0, 0]
    np.testing.assert_array_equal(params["trained"]["x"], models[0]["trained"]["x"])
    for node in (1, 2):
        left = safetensors.numpy.load_file(tmp_path / f"n{node}" / "model.safetensors")
        np.testing.assert_array_equal(left["trained/x"], models[node]["trained"]["x"])
