"""Masks of whole volumes on the disk, written one by one: as NIfTI on the voxels of their files, or all in an .npz."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from p2pfl.data import geometry
from p2pfl.data.image import extra
from p2pfl.data.new_rows import NewVolume
from p2pfl.errors import DataError

RULE = "masks of volumes; give it a name that ends in .npz, or a name without an ending for a folder of .nii.gz"
"""What is written, for whoever has given it another name."""

_ENDINGS = (".nii.gz", ".nii", ".mhd", ".mha")


class VolumeModel(Protocol):
    """A model that answers volumes: `p2pfl.runs.use.LoadedModel`."""

    classes: tuple[str, ...]
    said: str

    def volumes(self, path: Path | str) -> Iterator[tuple[NewVolume, np.ndarray]]:
        """Return each volume of a file or folder, and its probabilities [D, H, W, C]."""


def write(model: VolumeModel, data: Path, out: Path, say: Callable[[str], None]) -> None:
    """Answer the volumes of a file or folder into `out`, which is there as a whole or not at all.

    `out` ends in .npz: predicted_0 [D, H, W] and so on in the frame and spacing of the training, in the order of
    `files`, with affine_0 ([4, 4]: index of a voxel -> mm to the right, anterior, superior) and the spacing of each
    [n, 3] along D, H, W (NaN where a file does not say where it lies). Else it is a folder: NAME.nii.gz on the voxels
    of each file, the nearest of those that were answered; NAME has the file's ending where two would be called alike.

    Raises DataError for a file that does not fit.
    """
    part = out.with_name(f".{out.name}.part")
    say_once: dict[str, list[str]] = {}
    _remove(part)  # of one that was killed
    try:
        count = _in_npz(model, data, part, say_once) if out.suffix else _as_nifti(model, data, part, say_once)
        part.rename(out)
    finally:
        _remove(part)
    for what, places in say_once.items():
        say(f"{what}: {len(places)}, such as {places[0]}")
    say(f"{model.said} answers {count} volumes")


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part)
    part.unlink(missing_ok=True)


def _answered(model: VolumeModel, data: Path, notes: dict[str, list[str]]) -> Iterator[tuple[NewVolume, np.ndarray]]:
    """Each volume and its mask [D, H, W]."""
    for volume, probabilities in model.volumes(data):
        for what, where in volume.notes:
            notes.setdefault(what, []).append(where)
        kind = np.min_scalar_type(len(model.classes) - 1)
        yield volume, probabilities.argmax(axis=-1).astype(kind)


def _in_npz(model: VolumeModel, data: Path, out: Path, notes: dict[str, list[str]]) -> int:
    files: list[str] = []
    spacings: list[np.ndarray] = []
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, array: Any) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)

        for number, (volume, mask) in enumerate(_answered(model, data, notes)):
            add(f"predicted_{number}", mask)
            known = volume.affine
            spacings.append(np.full(3, np.nan) if known is None else np.linalg.norm(known[:3, :3], axis=0))
            files.append(volume.file)
            if known is not None:
                add(f"affine_{number}", known)
        for name, array in (("files", files), ("spacing", np.stack(spacings)), ("classes", list(model.classes))):
            add(name, array)
    return len(files)


def _as_nifti(model: VolumeModel, data: Path, folder: Path, notes: dict[str, list[str]]) -> int:
    nibabel = extra("nibabel", "NIfTI")
    count = 0
    for volume, mask in _answered(model, data, notes):
        if volume.affine is None or volume.grid is None:
            raise DataError(f"{data}: {volume.file} does not say where its voxels lie; {RULE.partition('; ')[2]}")
        file = folder / f"{_called(data, volume.file)}.nii.gz"
        if file.exists():
            raise DataError(f"{data}: {volume.file}: another mask is {file.name} already; give the file another name")
        file.parent.mkdir(parents=True, exist_ok=True)
        own = geometry.onto(mask, volume.affine, volume.grid)
        nibabel.save(nibabel.Nifti1Image(own, volume.grid.affine), file)
        count += 1
    return count


def _called(data: Path, file: str) -> str:
    """A volume's name: its file without the ending, with it where another beside it has the same; "." is `data`."""
    if file == ".":
        return data.resolve().name
    plain = _plain(file)
    alike = [ending for ending in _ENDINGS if (data / f"{plain}{ending}").exists()]
    return plain if len(alike) < 2 else file


def _plain(file: str) -> str:
    return next((file.removesuffix(ending) for ending in _ENDINGS if file.endswith(ending)), file)
