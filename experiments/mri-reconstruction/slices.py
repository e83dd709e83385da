"""Slices of MR and CT as four hospitals have them, each of another part of the body, a few images each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from p2pfl.data import Dataset, Samples

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "mednist64_3300.npz"
CLASSES = ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")
SITES = ("BreastMRI", "AbdomenCT", "ChestCT", "HeadCT")


def load(images: int = 12, test: int = 40, side: int = 32, path: str = str(FILE), seed: int = 0) -> Dataset:
    """Of each site `images` training images, drawn by the seed, and the first `test` test images.

    `side`: pixels of a side, 64 or a part of it; pixels are averaged. The classes are the sites.
    """
    with np.load(path, allow_pickle=False) as file:
        parts = {name: (file[f"{name}_images"], file[f"{name}_labels"].reshape(-1)) for name in ("train", "test")}
    found = {}
    for name, (pixels, labels) in parts.items():
        rows = []
        for place in SITES:
            own = np.flatnonzero(labels == CLASSES.index(place))
            drawn = np.random.default_rng([seed, 0x51CE, CLASSES.index(place)]).permutation(own)
            rows.append(drawn[:images] if name == "train" else own[:test])
        site = np.repeat(np.arange(len(SITES), dtype=np.int32), [len(each) for each in rows])
        found[name] = Samples(smaller(pixels[np.concatenate(rows)], side), site, site)
    return Dataset(found["train"], found["test"], SITES, SITES)


def smaller(pixels: np.ndarray, side: int) -> np.ndarray:
    """Images [N, H, H] of bytes -> [N, side, side, 1] in 0..1, the mean of the pixels that become one."""
    each = pixels.shape[1] // side
    x: np.ndarray = pixels.reshape(len(pixels), side, each, side, each).mean(axis=(2, 4)) / 255
    return x[..., None].astype(np.float32)
