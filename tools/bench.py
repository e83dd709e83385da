"""Speed of a live round, beside the limits measured in the same run: figures are ratios first, seconds second.

python tools/bench.py             # the figures of the README
python tools/bench.py --smoke     # one short run: does the benchmark itself still work?
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "experiments" / "ring-digits" / "experiment.toml"

# Small work: digits, MLP 64-128-10 (9,610 parameters, 38 kB), SGD, about one pass over the node's rows in a round
SMALL = (
    "baselines=false",
    "churn=[]",
    'data={source="digits", partition="iid"}',
    "model.hidden=[128]",
    'training.optimizer={name="sgd", learning_rate=0.1}',
    "training.batch_size=32",
    "training.local_steps=6",
)


def live(nodes: int, rounds: int, evaluate_every: int) -> dict[str, float]:
    """One run of real processes on a ring."""
    wanted = (*SMALL, f"topology.nodes={nodes}", f"rounds={rounds}", f"evaluation.every={evaluate_every}")
    with tempfile.TemporaryDirectory() as folder:
        sets = [part for each in wanted for part in ("--set", each)]
        command = [sys.executable, "-m", "p2pfl", "run", str(DEMO), "--json", "--out", f"{folder}/run", *sets]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def training_alone(steps: int = 6, batch: int = 32, repeats: int = 300) -> float:
    """Seconds of a round's compiled local steps and payload, in one process with nothing else running."""
    import jax
    import jax.numpy as jnp

    from p2pfl import dsgd, from_flax, optimizer
    from p2pfl.models import mlp
    from p2pfl.program import compile
    from p2pfl.types import Neighborhood

    learner = from_flax(mlp((64,), 10, hidden=(128,)), jnp.zeros((1, 64)), 10)
    program = compile(dsgd(learner, optimizer("sgd", learning_rate=0.1)), learner, 2, 0)
    state = program.init(0)
    batches = {"x": np.zeros((steps, batch, 64), np.float32), "y": np.zeros((steps, batch), np.int32)}
    around = Neighborhood(np.zeros(2, np.float32), np.int32(2))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        state, _, payload = program.train(state, batches, np.int32(0), np.int32(1), around)
        jax.block_until_ready(payload)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    """Print one JSON object per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one short run")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    repeats, rounds = (1, 30) if arguments.smoke else (arguments.repeats, 400)
    cores = os.cpu_count() or 1
    alone = training_alone(repeats=30 if arguments.smoke else 300)
    print(json.dumps({"figure": "local steps of one node, alone", "seconds": alone}))
    for nodes in (8,) if arguments.smoke else (4, 8, 16):
        for every in (rounds, 1):
            runs = [live(nodes, rounds, every) for _ in range(repeats)]
            medians = sorted(run["seconds_per_round_median"] for run in runs)
            print(
                json.dumps(
                    {
                        "figure": f"round, ring of {nodes}, "
                        + ("evaluated every round" if every == 1 else "training only"),
                        "seconds_median": statistics.median(medians),
                        "seconds_min": medians[0],
                        "seconds_max": medians[-1],
                        "times_the_compute_of_the_cores": statistics.median(medians)
                        / (alone * nodes / min(cores, nodes)),
                        "memory_peak_per_node_mb": max(run["memory_peak_per_node"] for run in runs) / 2**20,
                        "seconds_startup": statistics.median(run["seconds_startup"] for run in runs),
                        "runs": repeats,
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
