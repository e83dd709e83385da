"""Speed of a live round and of the simulator, beside the limits measured in the same run: ratios first, seconds second;
goodput: what is left of the useful local steps when a node is killed every ten seconds; and what it costs the rounds of
the others that a node joins, with a model of 44 MB; what is left of the rounds of a ring while a node is flooded; and
training from rows in a file beside training from rows in memory.

python tools/bench.py                    # the figures of the README
python tools/bench.py --only simulate    # or live, goodput, joining, links, floods, cache
python tools/bench.py --only goodput --for 10min --driver live    # real processes alone
python tools/bench.py --smoke            # one short run of each: does the benchmark itself still work?
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import bench_cache
import bench_links
import floods
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "experiments" / "ring-digits" / "experiment.toml"

# Goodput: a node dies every ten seconds. A round of the virtual and the simulated nodes takes 0.3 s
EVERY = "10s"
CHAOS = ("model.hidden=[128]", "evaluation.every=50", "evaluation.metrics=false", "virtual.step_seconds=0.05")

# Joining: a ring of four, and a fifth node at node 0, so that the four exchange the same with and without it
JOINING = """
name = "joining"
rounds = 100000
baselines = false
data = {{ source = "digits", partition = "iid" }}
model = {{ name = "mlp", hidden = {hidden} }}
training = {{ optimizer = {{ name = "sgd", learning_rate = 0.01 }}, batch_size = 32, local_steps = 2 }}
topology = {{ file = "ring.toml" }}
algorithm = {{ name = "dsgd" }}
network = {{ preset = "lan", timing = {{ start_timeout = 5.0 }} }}
evaluation = {{ every = 100000, metrics = false }}
driver = {{ checkpoint = 0 }}
"""
RING = "edges = [[0, 1], [1, 2], [2, 3], [3, 0], [0, 4]]\n"

# Small work: rows like digits, MLP 64-128-10 (9,610 parameters, 38 kB), SGD, 6 local steps of 32 rows a round
TRAINING = 'training={optimizer={name="sgd", learning_rate=0.1}, batch_size=32, local_steps=6}'
SMALL = ("baselines=false", "churn=[]", "model.hidden=[128]", TRAINING)

# A small CNN: 28 x 28, channels 1-16-32, 3 x 3, batch 32, ten steps
CNN = (
    "baselines=false",
    "churn=[]",
    'model={name="cnn", channels=[16, 32]}',
    'training={optimizer={name="sgd", learning_rate=0.1}, batch_size=32, local_steps=10}',
)


def run(wanted: Sequence[str], *options: str) -> dict[str, Any]:
    """The summary of one run of the demo with fields replaced."""
    with tempfile.TemporaryDirectory() as folder:
        sets = [part for each in wanted for part in ("--set", each)]
        command = [sys.executable, "-m", "p2pfl", "run", str(DEMO), "--json", "--out", f"{folder}/run", *options, *sets]
        path = os.pathsep.join([str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout))


def live(nodes: int, rounds: int, evaluate_every: int) -> dict[str, Any]:
    """One run of real processes on a ring."""
    given = ('data={source="digits", partition="iid"}', f"topology.nodes={nodes}", f"rounds={rounds}")
    return run((*SMALL, *given, f"evaluation.every={evaluate_every}"))


def simulated(nodes: int, rounds: int, work: Sequence[str], source: str) -> dict[str, Any]:
    """One simulation on a ring."""
    data = f'data={{source="bench_data:{source}", partition="iid", arguments={{nodes={nodes}}}}}'
    given = (data, f"topology.nodes={nodes}", f"rounds={rounds}", f"evaluation.every={rounds}")
    return run((*work, *given), "--driver", "simulate")


def training_alone(steps: int = 6, batch: int = 32, repeats: int = 300) -> float:
    """Seconds of a round's compiled local steps and payload, in one process with nothing else running."""
    import jax
    import jax.numpy as jnp
    import optax

    from p2pfl import dsgd, from_flax
    from p2pfl.learning.models import mlp
    from p2pfl.node.program import compile
    from p2pfl.types import Neighborhood

    learner = from_flax(mlp((64,), 10, hidden=(128,)), jnp.zeros((1, 64)), 10)
    program = compile(dsgd(learner, optax.sgd(0.1)), learner, 2, 0)
    state = program.init(0, {})
    batches = {"x": np.zeros((steps, batch, 64), np.float32), "y": np.zeros((steps, batch), np.int32)}
    around = Neighborhood(np.zeros(2), np.zeros(2))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        state, _, payload, _ = program.train(state, batches, np.int32(0), np.int32(1), around)
        jax.block_until_ready(payload)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def chaos(driver: str, nodes: int, length: str) -> dict[str, Any]:
    """Both runs of `p2pfl chaos`."""
    given = (*CHAOS, 'data={source="digits", partition="iid"}', f"topology.nodes={nodes}", TRAINING)
    with tempfile.TemporaryDirectory() as folder:
        sets = [part for each in given for part in ("--set", each)]
        options = ["--every", EVERY, "--for", length, "--driver", driver, "--out", f"{folder}/chaos", "--json"]
        command = [sys.executable, "-m", "p2pfl", "chaos", str(DEMO), *options, *sets]
        done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout))


def bench_goodput(cases: Sequence[tuple[str, int, str]]) -> None:
    """Useful local steps a second with a node killed every ten seconds, beside those of the undisturbed run."""
    for driver, nodes, length in cases:
        result = chaos(driver, nodes, length)
        say(
            f"goodput, {driver} ring of {nodes}, a node killed every {EVERY}",
            steps_per_second=result["disturbed"]["steps_per_second"],
            steps_per_second_undisturbed=result["undisturbed"]["steps_per_second"],
            goodput=result["goodput"],
            kills=len(result["kills"]),
            back_seconds_mean=result["back_seconds_mean"],
            seconds=result["seconds"],
            not_whole=result["incomplete"],
        )


class Five:
    """Five nodes that were started by hand, of which the last is told to begin later."""

    def __init__(self, folder: Path, hidden: str) -> None:
        from p2pfl.drivers.live.ports import reserved

        (folder / "ring.toml").write_text(RING)
        (folder / "experiment.toml").write_text(JOINING.format(hidden=hidden))
        self.places = [folder / str(node) for node in range(5)]
        with reserved(5) as ports:
            addresses = [f"tcp://127.0.0.1:{port}" for port in ports]
        self.nodes = []
        for node, place in enumerate(self.places):
            place.mkdir()
            text = f'experiment = "../experiment.toml"\nnode = {node}\nlisten = "{addresses[node]}"\nout = "."\n'
            (place / "node.toml").write_text(text + f"peers = {json.dumps(addresses[:4])}\n")
            command = [sys.executable, "-m", "p2pfl", "node", str(place / "node.toml"), "--hold"]
            log = (place / "log.txt").open("w")
            self.nodes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log))
        self.wait(lambda: all("ready" in (place / "log.txt").read_text().split() for place in self.places))

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until it holds. SystemExit where it never does."""
        limit = time.monotonic() + 300
        while not condition():
            if time.monotonic() > limit or any(each.poll() for each in self.nodes):
                raise SystemExit("\n".join((place / "log.txt").read_text()[-500:] for place in self.places))
            time.sleep(0.05)

    def begin(self, *nodes: int) -> None:
        """Tell nodes to begin."""
        for node in nodes:
            pipe = self.nodes[node].stdin
            assert pipe is not None
            pipe.write(b"go\n")
            pipe.flush()

    def rows(self, node: int, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The whole records of a node so far."""
        path = self.places[node] / file
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def times(self, event: str, nodes: Iterable[int]) -> list[float]:
        """When these nodes have noted it of node 4."""
        rows = [row for node in nodes for row in self.rows(node, "events.jsonl")]
        return [row["time"] for row in rows if row["event"] == event and row["node"] == 4]

    def end(self) -> None:
        """Let them leave."""
        for node in self.nodes:
            node.terminate()
        for node in self.nodes:
            node.wait(60)


def joining(hidden: str, rounds: int, joins: bool) -> dict[str, Any]:
    """Seconds of a round of the four nodes, before the fifth came and while it got its model; or while it did not."""
    with tempfile.TemporaryDirectory() as name:
        five = Five(Path(name), hidden)
        try:
            five.begin(0, 1, 2, 3)
            five.wait(lambda: len(five.rows(0)) >= rounds)
            if joins:
                five.begin(4)
                five.wait(lambda: bool(five.times("joined", [4])))
            else:
                five.wait(lambda: len(five.rows(0)) >= 2 * rounds)
            rows = [five.rows(node) for node in range(4)]
            came = five.times("added", range(4)) if joins else [each[rounds]["time"] for each in rows]
            has = five.times("joined", [4])[0] if joins else math.inf
        finally:
            five.end()
    before, meanwhile = [], []
    for each in rows:
        before += [row["seconds"] for row in each[4:] if row["time"] < min(came)]
        under_way = [row["seconds"] for row in each if max(came) < row["time"] - row["seconds"] and row["time"] < has]
        meanwhile += under_way[1:]  # the first is that of the new epoch
    known = bool(before and meanwhile)  # where rounds take as long as the model, none may lie between
    return {
        "seconds_before": statistics.fmean(before) if before else None,
        "seconds_meanwhile": statistics.fmean(meanwhile) if meanwhile else None,
        "ratio": statistics.fmean(meanwhile) / statistics.fmean(before) if known else math.nan,
        "ratio_of_medians": statistics.median(meanwhile) / statistics.median(before) if known else math.nan,
        "rounds_before": len(before) / 4,
        "rounds_meanwhile": len(meanwhile) / 4,
        "seconds_of_the_transfer": has - max(came) if joins else None,
    }


def _take_model(port: int, donor: int, sizes: Sequence[int], pipe: Any) -> None:
    """Take a model in, as a joiner does."""
    from p2pfl.drivers.live.transport import Transport
    from p2pfl.protocol.codec import Schema

    here = Transport(f"tcp://127.0.0.1:{port}", 1, 2, "joining", [Schema("", tuple(sizes))])
    here.know(0, f"tcp://127.0.0.1:{donor}")
    pipe.send(0.0)
    began, come = time.process_time(), False
    while not come:
        select.select([here.fileno()], [], [], 0.05)
        come = any(len(message.frames) > 1 for message in here.receive())
        here.step()
    pipe.send(time.process_time() - began)
    here.close(1.0)


def donor_seconds(sizes: Sequence[int]) -> dict[str, float]:
    """Seconds of a core that a model costs its donor, and the joiner. What else runs hardly changes them."""
    from p2pfl.drivers.live.ports import reserved
    from p2pfl.drivers.live.transport import Letter, Transport
    from p2pfl.protocol.codec import Schema, digest

    with reserved(2) as (first, second):
        pass
    apart = multiprocessing.get_context("spawn")  # jax has threads here, which no fork survives for sure
    mine, its = apart.Pipe()
    joiner = apart.Process(target=_take_model, args=(second, first, sizes, its), daemon=True)
    joiner.start()
    its.close()  # so that its death is the end of the pipe
    mine.recv()
    here = Transport(f"tcp://127.0.0.1:{first}", 0, 2, "joining", [Schema("", tuple(sizes))])
    here.know(1, f"tcp://127.0.0.1:{second}")
    frames = [np.zeros(size, np.uint8) for size in sizes]
    cores, clock = time.process_time(), time.perf_counter()
    digest(frames)
    here.send(1, Letter((b"model", *frames), sum(sizes) + 5, "Model", (1, 1)))
    while not mine.poll():
        select.select([here.fileno()], [], [], 0.05)
        for _ in here.receive():
            pass
        here.step()
    cores, clock = time.process_time() - cores, time.perf_counter() - clock
    taken = mine.recv()
    joiner.join()
    here.close(0.0)
    return {"seconds_of_a_core": cores, "seconds": clock, "share": cores / clock, "seconds_of_the_joiners": taken}


def bench_joining(repeats: int, hidden: str, rounds: int) -> None:
    """What a node that joins costs the rounds of the others, beside the same run that nobody joins."""
    widths = [64, *json.loads(hidden), 10]
    models = [donor_seconds([4 * a * b for a, b in itertools.pairwise(widths)]) for _ in range(repeats)]
    say("a model for a joiner, at its donor", **spread(models, "share"), runs=models)
    runs: dict[str, list[dict[str, Any]]] = {"joined by one": [], "joined by nobody": []}
    for _ in range(repeats):  # in turns, so that what else changes changes both
        runs["joined by one"].append(joining(hidden, rounds, joins=True))
        runs["joined by nobody"].append(joining(hidden, rounds, joins=False))
    for name, each in runs.items():
        seen = [run for run in each if not math.isnan(run["ratio"])]
        say(
            f"rounds of a ring of 4, {name}",
            **(spread(seen, "ratio") if seen else {}),
            runs=seen,
            unseen=len(each) - len(seen),
        )


class Window(NamedTuple):
    """A ring for a while. What else runs on the machine changes the first figure, and hardly the others."""

    rounds_per_second: float  # of the slowest node
    milliseconds_of_a_core: float  # that a round has cost node 0
    cores_of_the_membership: float  # that its membership has taken


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


def _core_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class FloodedRing:
    """A ring of real processes, without end, of which node 0 can be flooded."""

    def __init__(self, out: Path, nodes: int) -> None:
        given = (*SMALL, 'data={source="digits", partition="iid"}', f"topology.nodes={nodes}", "rounds=1000000")
        sets = [part for each in (*given, "evaluation.every=1000000") for part in ("--set", each)]
        command = [sys.executable, "-m", "p2pfl", "run", str(DEMO), "--json", "--out", str(out), *sets]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self._out, self.nodes = out, nodes
        while self.round(0) < 100:
            self._alive()

    def _alive(self) -> None:
        time.sleep(0.05)
        if self._process.poll() is not None:
            raise SystemExit(self._process.communicate()[1])

    def row(self, node: int) -> dict[str, Any]:
        """The latest record of a node; none before its first."""
        path = self._out / "nodes" / str(node) / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
        return dict(json.loads(lines[-1])) if lines else {"round": 0}

    def round(self, node: int) -> int:
        """The last round that a node has finished."""
        return int(self.row(node)["round"])

    def rounds(self, seconds: float) -> Window:
        """Watch it for a while."""
        before, began, worked = [*map(self.round, range(self.nodes))], time.monotonic(), self._worked()
        while (took := time.monotonic() - began) < seconds:
            self._alive()
        done = min(self.round(node) - was for node, was in enumerate(before))
        node, membership = (now - was for now, was in zip(self._worked(), worked, strict=True))
        return Window(done / took, 1e3 * node / max(done, 1), membership / took)

    def _worked(self) -> tuple[float, float]:
        """Seconds of a core that node 0 has taken so far, and its membership processes."""
        node = int(json.loads((self._out / "pids.json").read_text())["0"][-1])
        members = [*_children(node)]
        members += [child for each in members for child in _children(each)]
        return _core_seconds(node), sum(map(_core_seconds, members))

    @property
    def port(self) -> int:
        """Of node 0, for models."""
        listen = tomllib.loads((self._out / "nodes" / "0" / "node.toml").read_text())["listen"]
        return int(listen.rpartition(":")[2])

    def target(self) -> floods.Target:
        """What a flood has to know of it."""
        import jax

        from p2pfl.config import experiment
        from p2pfl.drivers.live import zmtp
        from p2pfl.federation.federation import build, model_shape, terms

        federation = build(experiment.load(self._out / "experiment.toml"))
        name = terms(federation).federation
        sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model_shape(federation))]
        lives = self.row(0)["life"], self.row(1)["life"]
        return floods.Target(zmtp.introduction(name, 1), name, lives, sizes, self.round(0), self.nodes)

    def end(self) -> None:
        """Let it leave."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.communicate(timeout=120)
        finally:
            self._process.kill()


def bench_floods(repeats: int, nodes: int, seconds: float, only: str) -> None:
    """What is left of the rounds of a ring, per flood: in turns with and without it, in one run."""
    with tempfile.TemporaryDirectory() as folder:
        ring = FloodedRing(Path(folder) / "run", nodes)
        try:
            thrown = {name: each for name, each in floods.floods(ring.target()).items() if only in name}
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in thrown}
            for _ in range(repeats):
                for name, flood in thrown.items():
                    before = ring.rounds(seconds)
                    process = floods.thrown("127.0.0.1", ring.port, seconds, flood)
                    meanwhile = ring.rounds(seconds)
                    process.wait(30)
                    after = ring.rounds(seconds)
                    left = 2 * meanwhile[0] / max(before[0] + after[0], 1e-9)
                    windows = {"before": before, "meanwhile": meanwhile, "after": after}
                    runs[name].append({"ratio": left, **{when: each._asdict() for when, each in windows.items()}})
            for name, each in runs.items():
                say(f"rounds left, {name}", **spread(each, "ratio"), runs=each)
        finally:
            ring.end()


def say(figure: str, **values: Any) -> None:
    """One JSON object a line."""
    print(json.dumps({"figure": figure, **values}), flush=True)


def spread(runs: Sequence[dict[str, Any]], key: str) -> dict[str, float]:
    """Median, least and greatest of a figure over runs."""
    values = sorted(run[key] for run in runs)
    return {f"{key}_median": statistics.median(values), f"{key}_min": values[0], f"{key}_max": values[-1]}


def bench_live(repeats: int, rounds: int, sizes: Sequence[int], alone: float) -> None:
    """Rings of real processes."""
    cores = os.cpu_count() or 1
    for nodes in sizes:
        for every in (rounds, 1):
            runs = [live(nodes, rounds, every) for _ in range(repeats)]
            figures = spread(runs, "seconds_per_round_median")
            say(
                f"round, ring of {nodes}, " + ("evaluated every round" if every == 1 else "training only"),
                **figures,
                times_the_compute_of_the_cores=figures["seconds_per_round_median_median"]
                / (alone * nodes / min(cores, nodes)),
                memory_peak_per_node_mb=max(run["memory_peak_per_node"] for run in runs) / 2**20,
                seconds_startup=statistics.median(run["seconds_startup"] for run in runs),
                runs=repeats,
            )


def bench_simulate(repeats: int, sizes: Sequence[tuple[int, int]], cnn: tuple[int, int], alone: float) -> None:
    """Rings in one process: local steps a second over all nodes, beside one node alone."""
    for nodes, rounds in sizes:
        runs = [simulated(nodes, rounds, SMALL, "small") for _ in range(repeats)]
        figures = spread(runs, "steps_per_second")
        say(
            f"simulated ring of {nodes}, small work",
            **figures,
            times_one_node_on_one_core=figures["steps_per_second_median"] / (6 / alone),
            **spread(runs, "seconds_first_round"),
            memory_peak_mb=max(run["memory_peak"] for run in runs) / 2**20,
            chosen=runs[0]["simulated_by"],
            runs=repeats,
        )
    nodes, rounds = cnn
    runs = [simulated(nodes, rounds, CNN, "images") for _ in range(repeats)]
    figures = spread(runs, "seconds_per_round_median")
    say(
        f"simulated ring of {nodes}, small CNN, ten steps",
        milliseconds_per_node_median=figures["seconds_per_round_median_median"] / nodes * 1e3,
        milliseconds_per_node_min=figures["seconds_per_round_median_min"] / nodes * 1e3,
        milliseconds_per_node_max=figures["seconds_per_round_median_max"] / nodes * 1e3,
        **spread(runs, "seconds_first_round"),
        chosen=runs[0]["simulated_by"],
        runs=repeats,
    )


def main() -> None:
    """Print one JSON object per figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one short run of each")
    parser.add_argument(
        "--only",
        choices=["live", "simulate", "goodput", "joining", "floods", "links", "cache"],
        help="one part of it",
    )
    parser.add_argument("--flood", default="", help="only floods with this in their name, as in member or models")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--for", dest="length", help="how long each run of goodput is, as in 10min")
    parser.add_argument("--driver", choices=["simulate", "virtual", "live"], help="goodput of this one alone")
    arguments = parser.parse_args()
    smoke, repeats = arguments.smoke, 1 if arguments.smoke else arguments.repeats
    if arguments.only not in ("goodput", "joining", "floods", "links", "cache"):
        bench_speed(arguments.only, repeats, smoke)
    if arguments.only in (None, "goodput"):
        # minutes where time is not the clock's; of real processes one
        whole = (("simulate", 16, "5min"), ("virtual", 16, "2min"), ("live", 8, "60s"))
        cases = (("virtual", 4, "15s"),) if smoke else [case for case in whole if arguments.driver in (None, case[0])]
        bench_goodput([(driver, nodes, arguments.length or length) for driver, nodes, length in cases])
    if arguments.only in (None, "joining"):
        bench_joining(repeats, "[1200, 1100]" if smoke else "[3400, 3200]", 6 if smoke else 30)
    if arguments.only in (None, "links"):
        say("a link between two nodes, models of 44 MB", **bench_links.measure(repeats, 2 if smoke else 20))
    if arguments.only in (None, "cache"):
        for what, figures in bench_cache.measure(repeats, 5 if smoke else 30, smoke).items():
            say(what, **figures)
    if arguments.only in (None, "floods"):
        bench_floods(repeats, 4, 0.5 if smoke else 4.0, arguments.flood or ("receipts" if smoke else ""))


def bench_speed(only: str | None, repeats: int, smoke: bool) -> None:
    """Seconds of a round, beside those of its local steps."""
    alone = training_alone(repeats=30 if smoke else 300)
    say("local steps of one node, alone", seconds=alone, steps_per_second=6 / alone)
    if only != "simulate":
        bench_live(repeats, 30 if smoke else 400, (8,) if smoke else (4, 8, 16), alone)
    if only != "live":
        sizes = ((20, 20),) if smoke else ((10, 2000), (100, 400), (1000, 60), (10_000, 12))
        bench_simulate(repeats, sizes, (4, 2) if smoke else (16, 12), alone)


if __name__ == "__main__":
    main()
