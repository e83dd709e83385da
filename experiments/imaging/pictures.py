"""Pictures for the table: MedNIST (six kinds, made smaller), and drawn ones where no real set has such labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from p2pfl.data import Dataset, Samples

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "mednist64_3300.npz"
KINDS = ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")
CT, OTHERS = (0, 3, 5), (1, 2, 4)
"""The two tasks of `two_tasks`."""
SITES = 4


def kinds(
    images: int = 50, tested: int = 60, side: int = 16, turned: bool = False, path: str = str(FILE), seed: int = 0
) -> Dataset:
    """Of each of six kinds `images` training images, drawn by the seed, and the first `tested` test images; `turned` by
    90 degrees."""
    x, y = read(path, side)
    x = [np.rot90(part, axes=(1, 2)) for part in x] if turned else x
    rng = np.random.default_rng([seed, 0x4B1D])
    few = [rng.permutation(np.flatnonzero(y[0] == kind))[:images] for kind in range(len(KINDS))]
    first = [np.flatnonzero(y[1] == kind)[:tested] for kind in range(len(KINDS))]
    parts = [
        Samples(x[part][rows], y[part][rows])
        for part, rows in enumerate((np.sort(np.concatenate(few)), np.concatenate(first)))
    ]
    return Dataset(parts[0], parts[1], KINDS)


def two_tasks(few: int = 3, side: int = 16, path: str = str(FILE), seed: int = 0) -> Dataset:
    """The first of four sites tells three kinds of CT apart, of each of which it has `few` images; the others tell
    three other kinds, of which they have all there are. Each is tested on all test images of its own task."""
    x, y = read(path, side)
    rng = np.random.default_rng([seed, 0x2A5C])
    small = [rng.permutation(np.flatnonzero(y[0] == kind))[:few] for kind in CT]
    large = rng.permutation(np.flatnonzero(np.isin(y[0], OTHERS)))
    rows = [[np.concatenate(small), *np.array_split(large, SITES - 1)]]
    rows.append([np.flatnonzero(np.isin(y[1], CT)), *[np.flatnonzero(np.isin(y[1], OTHERS))] * (SITES - 1)])
    parts = []
    for part, own in enumerate(rows):
        every, site = np.concatenate(own), np.repeat(np.arange(SITES, dtype=np.int32), [len(each) for each in own])
        parts.append(Samples(x[part][every].reshape(len(every), -1), y[part][every], site))
    return Dataset(parts[0], parts[1], KINDS, ("a small site", "b", "c", "d"))


def read(path: str, side: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(images [N, side, side, 1] in 0..1, the mean of the pixels that become one), kinds [N]; of training and test."""
    with np.load(path, allow_pickle=False) as file:
        parts = [(file[f"{name}_images"], file[f"{name}_labels"].reshape(-1)) for name in ("train", "test")]
    each = parts[0][0].shape[1] // side
    x = [pixels.reshape(len(pixels), side, each, side, each).mean(axis=(2, 4)) / 255 for pixels, _ in parts]
    return [part[..., None].astype(np.float32) for part in x], [labels.astype(np.int32) for _, labels in parts]


def organs(images: int = 24, tested: int = 60, size: int = 12, sites: str = "unlike", seed: int = 0) -> Dataset:
    """Segmentation: a bright and a dark disc on the ground of a scanner, of which one is the organ; all of it drawn.

    sites: "unlike": at every other site the organ is the dark one, and every scanner has its ground and noise.
    "faded": it is the bright one everywhere, and the last site's images have 0.4 of the contrast.
    """
    parts = []
    down, right = np.mgrid[:size, :size]
    for part, count in enumerate((images, tested)):
        rng, xs, ys = np.random.default_rng([seed, part, 0x0D15]), [], []
        for site in range(SITES):
            for _ in range(count):
                image, masks = np.full((size, size), 0.3 + 0.1 * site), []
                for place, light in ((rng.integers(2, 4), 0.2), (rng.integers(8, 10), -0.2)):
                    disc = (down - rng.integers(3, size - 3)) ** 2 + (right - place) ** 2 <= 5
                    image = np.where(disc, image + light, image)
                    masks.append(disc)
                image = image + (0.02 + 0.02 * (site // 2)) * rng.normal(size=image.shape)
                xs.append(0.4 * image + 0.05 if sites == "faded" and site == SITES - 1 else image)
                ys.append(masks[site % 2 if sites == "unlike" else 0])
        place = np.repeat(np.arange(SITES, dtype=np.int32), count)
        parts.append(Samples(np.asarray(xs, np.float32)[..., None], np.asarray(ys, np.int32), place))
    return Dataset(parts[0], parts[1], ("ground", "organ"), tuple("abcd"), kind="segmentation")


def comorbid(images: int = 80, tested: int = 200, seed: int = 0) -> Dataset:
    """Several labels: patterns of four, of which two are faint and go with the others, at each site in another way."""
    rng = np.random.default_rng([seed, 0xC0])
    patterns = rng.normal(size=(4, 8, 8)) * np.array([0.5, 0.5, 0.1, 0.1])[:, None, None]
    goes_with = np.array([[0, 1], [1, 0], [0, 1], [1, 0]])
    turned = np.array([[0, 0], [0, 1], [1, 1], [1, 0]])

    def part(rows: int) -> Samples:
        site = np.repeat(np.arange(SITES, dtype=np.int32), rows)
        clear = rng.integers(0, 2, size=(SITES * rows, 2))
        faint = np.take_along_axis(clear, goes_with[site], axis=1) ^ turned[site]
        faint = np.where(rng.uniform(size=faint.shape) < 0.1, 1 - faint, faint)
        y = np.concatenate([clear, faint], axis=1)
        x = np.einsum("nl,lhw->nhw", y, patterns) + rng.normal(size=(SITES * rows, 8, 8))
        return Samples(x[..., None].astype(np.float32), y.astype(np.int32), site)

    return Dataset(part(images), part(tested), tuple("abcd"), tuple("wxyz"), kind="labels")
