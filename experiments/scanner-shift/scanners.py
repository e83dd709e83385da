"""PneumoniaMNIST as four hospitals with unlike scanners would have taken it: gamma, contrast, an inverted film."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from p2pfl.data import Dataset, Samples

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "pneumoniamnist_rebuilt.npz"
SCANNERS = {  # name -> (gamma, contrast, brightness), of each of the four
    "gamma": ((0.5, 1.0, 0.0), (1.0, 0.6, 0.2), (2.0, 1.0, 0.0), (1.0, 1.4, -0.2)),
    "film": ((1.0, 1.0, 0.0), (0.6, 1.0, 0.0), (1.6, 1.0, 0.0), (1.0, -1.0, 1.0)),  # the last one is inverted
}


def load(
    scanners: str = "gamma", images: int = 100, tested: int = 624, side: int = 28, path: str = str(FILE), seed: int = 0
) -> Dataset:
    """Four sites with `images` training images each, drawn by the seed; every site tests on the first `tested` test
    images, as its own scanner shows them, and so it validates. `side`: pixels of a side, 28 or 14."""
    with np.load(path, allow_pickle=False) as file:
        parts = {
            name: (file[f"{name}_images"], file[f"{name}_labels"].reshape(-1)) for name in ("train", "val", "test")
        }
    order = np.random.default_rng([seed, 0x5CA]).permutation(len(parts["train"][1]))
    found = {}
    for name, (pixels, labels) in parts.items():
        xs, ys, sites = [], [], []
        for site, scanner in enumerate(SCANNERS[scanners]):
            rows = order[site * images : (site + 1) * images] if name == "train" else np.arange(len(labels))[:tested]
            xs.append(smaller(seen(pixels[rows], *scanner), side))
            ys.append(labels[rows])
            sites.append(np.full(len(rows), site))
        found[name] = Samples(
            np.concatenate(xs).astype(np.float32), np.concatenate(ys).astype(np.int32),
            np.concatenate(sites).astype(np.int32),
        )  # fmt: skip
    return Dataset(
        found["train"], found["test"], ("normal", "pneumonia"), tuple(f"scanner {i}" for i in range(4)),
        notes=(f"four scanners: {scanners}",), validation=found["val"],
    )  # fmt: skip


def seen(pixels: np.ndarray, gamma: float, contrast: float, brightness: float) -> np.ndarray:
    """Images [N, H, W] of bytes -> [N, H, W, 1] in 0..1, as the scanner shows them."""
    x = pixels[..., None] / 255.0
    return np.clip(contrast * x**gamma + brightness, 0, 1)


def smaller(x: np.ndarray, side: int) -> np.ndarray:
    """Images [N, 28, 28, 1] -> [N, side, side, 1], the mean of the pixels that become one."""
    each = x.shape[1] // side
    result: np.ndarray = x.reshape(len(x), side, each, side, each, 1).mean(axis=(2, 4))
    return result
