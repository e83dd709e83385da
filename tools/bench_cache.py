"""Training from the cache of decoded rows, beside training from memory: seconds of a round's local steps, and a ratio.

Two kinds of rows: patches of volumes through a 3-D U-Net, whose cache is as large as the data, and images of 64 x 64
through a small CNN. Either way the file has been read before, so that what is measured is not the disk: a cache that is
larger than memory is read at the speed of the disk that it lies on.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

LAYOUT = """
name = "bench"
origin = "here"
kind = "{kind}"
format = "npy"
classes = ["no", "yes"]
[[files]]
pattern = "{{label}}_{{number}}_x.npy"
[label]
{label}
[pixels]
{pixels}
intensity = "none"
"""
EXPERIMENT = """
name = "bench"
rounds = 1000
baselines = false
data = {{ source = "folder", path = "data", layout = "bench.toml", cache = true{more} }}
model = {{ name = "{model}" }}
training = {{ optimizer = {{ name = "sgd", learning_rate = 0.01 }}, batch_size = {batch}, local_steps = 4 }}
topology = {{ graph = "ring", nodes = 2 }}
algorithm = {{ name = "dsgd" }}
"""
VOLUMES = {
    "kind": "segmentation", "label": 'mask = "{label}_{number}_y.npy"', "pixels": 'slices = "volume"',
    "model": "unet", "batch": 2, "more": ", volume = { patch = [32, 32, 32], patches = 32 }",
}  # fmt: skip
IMAGES = {
    "kind": "classes", "label": 'column = "label"', "pixels": 'slices = "middle"', "model": "cnn", "batch": 32,
    "more": "",
}  # fmt: skip


def write(root: Path, how: dict[str, Any], size: tuple[int, ...], count: int) -> Path:
    """Write data, layout and experiment; returns the file of the last."""
    rng, data = np.random.default_rng(0), root / "data"
    data.mkdir()
    for number in range(count):
        name = f"{('no', 'yes')[number % 2]}_{number}"
        np.save(data / f"{name}_x.npy", rng.random(size, np.float32))
        if how["kind"] == "segmentation":
            np.save(data / f"{name}_y.npy", (rng.random(size) > 0.9).astype(np.uint8))
    (root / "bench.toml").write_text(LAYOUT.format(**how), "utf-8")
    file = root / "experiment.toml"
    file.write_text(EXPERIMENT.format(**how), "utf-8")
    return file


def seconds(rounds: int, task: Any, memory: bool) -> float:
    """The median of the local steps of a round, from the rows to the payload."""
    import jax

    from p2pfl.types import Neighborhood

    if memory:
        task = task._replace(x=np.asarray(task.x), y=np.asarray(task.y))
    around, state = Neighborhood(np.zeros(task.slots), np.zeros(task.slots)), task.program.init(0, task.site)
    times = []
    for round in range(1, rounds + 3):
        began = time.perf_counter()
        state, _, payload, _ = task.program.train(state, task.batches(round), np.int32(0), np.int32(round), around)
        jax.block_until_ready(payload)
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])  # the first compiles


def measure(repeats: int, rounds: int, smoke: bool) -> dict[str, dict[str, Any]]:
    """Figures of both kinds of rows, by what they are called."""
    from p2pfl.config.experiment import load
    from p2pfl.federation.federation import build
    from p2pfl.federation.tasks import tasks

    volume, image, count = ((40, 40, 40), (64, 64), 8) if smoke else ((96, 96, 96), (64, 64), 16)
    result = {}
    for name, how, size, many in (
        ("patches of 32 x 32 x 32, U-Net", VOLUMES, volume, count),
        ("images of 64 x 64, CNN", IMAGES, image, 20 * count),
    ):
        with tempfile.TemporaryDirectory() as folder:
            task = tasks(build(load(write(Path(folder), how, size, many))))[0]
            pairs = [(seconds(rounds, task, True), seconds(rounds, task, False)) for _ in range(repeats)]
            memory, cache = (statistics.median(each) for each in zip(*pairs, strict=True))
            ratios = [b / a for a, b in pairs]
            result[f"local steps from the cache, {name}"] = {
                "seconds_from_memory": memory, "seconds_from_cache": cache, "times_memory": statistics.median(ratios),
                "times_memory_min": min(ratios), "times_memory_max": max(ratios), "runs": repeats,
            }  # fmt: skip
    return result
