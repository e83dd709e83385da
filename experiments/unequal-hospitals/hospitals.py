"""PneumoniaMNIST at four hospitals, one of them unlike the others: wrong labels, or films that are inverted."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from p2pfl.data import Dataset, Samples

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "pneumoniamnist_rebuilt.npz"
HOSPITALS = 4
ODD = HOSPITALS - 1
"""The one that is unlike the others."""


def load(
    wrong: float = 0.0, inverted: bool = False, faded: bool = False, images: int = 200, path: str = str(FILE),
    seed: int = 0,
) -> Dataset:  # fmt: skip
    """`images` training images for each hospital, drawn by the seed. At the last one, the share `wrong` of training
    labels is the other class, films are `inverted`, or `faded`: dark, with little contrast. Every hospital is tested on
    all test images, as its own films show them, with the right labels."""
    with np.load(path, allow_pickle=False) as file:
        parts = {
            name: (file[f"{name}_images"], file[f"{name}_labels"].reshape(-1)) for name in ("train", "val", "test")
        }
    rng = np.random.default_rng([seed, 0x0DD])
    order = rng.permutation(len(parts["train"][1]))
    found = {}
    for name, (pixels, labels) in parts.items():
        xs, ys, sites = [], [], []
        for site in range(HOSPITALS):
            rows = order[site * images : (site + 1) * images] if name == "train" else np.arange(len(labels))
            x, y = pixels[rows][..., None] / 255.0, labels[rows].astype(np.int64)
            if site == ODD:
                x = 1 - x if inverted else 0.35 * x if faded else x
                if name == "train":
                    y = np.where(rng.random(len(y)) < wrong, 1 - y, y)
            xs.append(x)
            ys.append(y)
            sites.append(np.full(len(rows), site))
        found[name] = Samples(
            np.concatenate(xs).astype(np.float32), np.concatenate(ys).astype(np.int32),
            np.concatenate(sites).astype(np.int32),
        )  # fmt: skip
    names = tuple(f"hospital {i}" for i in range(HOSPITALS))
    return Dataset(found["train"], found["test"], ("normal", "pneumonia"), names, validation=found["val"])
