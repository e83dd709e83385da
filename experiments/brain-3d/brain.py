"""Brains for four hospitals, made of the MNI152 template that nilearn ships: NIfTI files as hospitals have them.

    python experiments/brain-3d/brain.py brains [--patients 4] [--millimetres 6]

The template (T1, and the probabilities of grey and white matter: Fonov et al. 2011, in nilearn's wheel, nothing is
downloaded) is the anatomy of everybody; what patients and hospitals differ in is drawn:

    patient    turned by up to 8 degrees, stretched by up to 8 %, moved by up to 6 mm, another window cut out
    hospital   its own contrast, noise, voxel spacing and order of axes (SITES)

Labels are 0 background, 1 grey matter and 2 white matter, each voxel the more probable of the two, above 1/2.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from nilearn import datasets
from scipy.ndimage import affine_transform, gaussian_filter


class Site(NamedTuple):
    """A hospital."""

    gamma: float  # of the brightness
    bias: float  # how much brighter one side is than the other
    noise: float  # standard deviation
    spacing: tuple[float, float, float]  # times the spacing that is asked for
    axes: str  # the order in which files hold them


SITES = {
    "adelaide": Site(1.0, 0.0, 0.03, (1.0, 1.0, 1.0), "RAS"),
    "bergen": Site(0.5, 0.3, 0.05, (1.0, 1.0, 1.25), "LPS"),
    "cork": Site(1.6, 0.5, 0.08, (0.9, 0.9, 1.0), "PSR"),
    "delft": Site(2.4, 0.2, 0.06, (1.0, 1.1, 1.0), "LAS"),
}


def template(millimetres: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """T1 in 0..1, labels, and the affine, of this spacing."""
    t1, grey, white = (
        of(resolution=1)
        for of in (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    )
    arrays = [np.asarray(image.dataobj, np.float32) for image in (t1, grey, white)]
    step = millimetres
    smooth = [gaussian_filter(array, step / 2.5) for array in arrays]
    affine = t1.affine @ np.diag([step, step, step, 1.0])
    size = [int(length / step) for length in arrays[0].shape]
    small = [affine_transform(array, [step] * 3, output_shape=tuple(size), order=1) for array in smooth]
    image = small[0] / small[0].max()
    labels = np.where(np.maximum(small[1], small[2]) > 0.5, 1 + (small[2] > small[1]), 0).astype(np.uint8)
    return image, labels, affine


def patient(
    image: np.ndarray, labels: np.ndarray, rng: np.random.Generator, millimetres: float
) -> tuple[np.ndarray, np.ndarray]:
    """The anatomy of one: turned, stretched, moved, and a window of about four fifths of it."""
    angle = np.deg2rad(rng.uniform(-8, 8, 3))
    turns = np.eye(3)
    for axis, (a, b) in enumerate(((1, 2), (0, 2), (0, 1))):
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle[axis])
        turn[a, b], turn[b, a] = -np.sin(angle[axis]), np.sin(angle[axis])
        turns = turns @ turn
    matrix = turns @ np.diag(rng.uniform(0.92, 1.08, 3))
    middle = np.array(image.shape) / 2
    offset = middle - matrix @ middle + rng.uniform(-6, 6, 3) / millimetres
    whole = [affine_transform(image, matrix, offset, order=1), affine_transform(labels, matrix, offset, order=0)]
    size = (np.array(image.shape) * rng.uniform(0.75, 0.85, 3)).astype(int)
    first = [int(rng.integers(0, length - own + 1)) for length, own in zip(image.shape, size, strict=True)]
    window = tuple(slice(a, a + n) for a, n in zip(first, size, strict=True))
    return whole[0][window], whole[1][window]


def seen(image: np.ndarray, site: Site, rng: np.random.Generator) -> np.ndarray:
    """The anatomy as a hospital's scanner shows it."""
    inside = image > 0.1
    shown = np.where(inside, np.clip(image, 0, 1) ** site.gamma, 0)
    across = np.linspace(-0.5, 0.5, image.shape[0])[:, None, None]
    shown = shown * (1 + site.bias * across)
    return np.abs(shown + rng.normal(0, site.noise, image.shape)).astype(np.float32)


def write(root: Path, patients: int, millimetres: float) -> None:
    """Write root/SITE/NUMBER_t1.nii.gz and root/SITE/NUMBER_tissue.nii.gz, as many patients for each hospital."""
    image, labels, affine = template(millimetres)
    for place, (name, site) in enumerate(SITES.items()):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(patients):
            rng = np.random.default_rng([place, number])
            anatomy, tissue = patient(image, labels, rng, millimetres)
            scale = np.array(site.spacing)
            size = tuple(int(length / step) for length, step in zip(anatomy.shape, scale, strict=True))
            anatomy = affine_transform(anatomy, scale, output_shape=size, order=1)
            tissue = affine_transform(tissue, scale, output_shape=size, order=0)
            own = affine @ np.diag([*scale, 1.0])
            codes = nibabel.orientations.axcodes2ornt
            turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(own), codes(site.axes))
            for kind, array in (("t1", (1000 * seen(anatomy, site, rng)).astype(np.int16)), ("tissue", tissue)):
                file = folder / f"{number:02d}_{kind}.nii.gz"
                nibabel.save(nibabel.Nifti1Image(array, own).as_reoriented(turn), file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write brains for four hospitals.")
    parser.add_argument("root", type=Path, help="folder that is made")
    parser.add_argument("--patients", type=int, default=4, help="of each hospital")
    parser.add_argument("--millimetres", type=float, default=6.0, help="spacing of the voxels, about")
    given = parser.parse_args()
    write(given.root, given.patients, given.millimetres)
    print(f"{4 * given.patients} patients in {given.root}")
