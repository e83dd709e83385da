"""From the files of a row to its arrays: frames, intensity, slices, size, and the mask of a segmentation."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from p2pfl.data import fastmri, volumes
from p2pfl.data.dataset import ImageFacts
from p2pfl.data.dicom import NoImage
from p2pfl.data.formats import correlations, read
from p2pfl.data.geometry import Grid, fitted, of_file, same_place
from p2pfl.data.image import DARK, ReadImage, directions, together
from p2pfl.data.layout import Layout, Pixels
from p2pfl.errors import DataError

MOST_THREADS = 8  # decoders leave the interpreter free; more only wait for the disk


class Entry(NamedTuple):
    """A row of the layout: one file, or one for each channel."""

    files: tuple[Path, ...]
    mask: Path | None = None
    frames: tuple[int, ...] = ()  # on the last axis of four


class Arrays(NamedTuple):
    """The arrays of a row: one or more rows of the data set, as its volume is cut."""

    x: list[np.ndarray]  # of [H, W, C], [D, H, W, C] or [F] float32
    y: list[np.ndarray]  # of segmentation [H, W] or [D, H, W] int32 class indices, of reconstruction [H, W, C]; else
    # empty
    facts: ImageFacts | None = None  # of all of them
    notes: tuple[tuple[str, str], ...] = ()  # as ReadImage has them
    affine: np.ndarray | None = None  # [4, 4] of a whole volume [D, H, W, C]: its index -> mm, as ReadImage has it
    grid: Grid | None = None  # the voxels of its file


def arrays(layout: Layout, entry: Entry) -> Arrays:
    """Read the files of a row. Raises DataError that names the file of what can't be read or does not fit."""
    if layout.format == "series":
        return Arrays([correlations(entry.files[0])], [])
    pixels = layout.pixels
    if layout.format == "fastmri":
        assert not isinstance(pixels.slices, str) or pixels.slices in ("middle", "all")
        volume = fastmri.read(entry.files[0], pixels.slices)
        return Arrays([*volume.space], [*volume.images], volume.facts)
    try:
        channels = [read(file, layout.format, pixels.mode, pixels.unit) for file in entry.files]
    except NoImage as exc:
        return Arrays([], [], notes=(("left out rows of files that hold no image", str(exc)),))
    if pixels.unit is not None and pixels.unit not in {channel.unit for channel in channels}:
        raise DataError(f"{entry.files[0]}: no PET, of which pixels.unit={pixels.unit!r} is; leave pixels.unit out")
    for channel, file in zip(channels[1:], entry.files[1:], strict=True):
        same_place(channel, channels[0], file, entry.files[0])
    mask = None
    if entry.mask is not None:
        mask = fitted(read(entry.mask, layout.format, "raw"), channels[0], entry.mask, entry.files[0])
    notes = tuple(note for picture in (*channels, *([mask] if mask is not None else [])) for note in picture.notes)
    found = Arrays([], [], notes=notes)
    scalings: list[Scaling] = []
    for frame in (frames := entry.frames or (None,)):
        placed = [_placed(channel, frame, layout, file) for channel, file in zip(channels, entry.files, strict=True)]
        found = found._replace(
            notes=(*found.notes, *(note for each in placed for note in each.notes if frame == frames[0]))
        )
        scaled = [_intensity(each, layout, file) for each, file in zip(placed, entry.files, strict=True)]
        scalings += [scaling for _, scaling in scaled]
        parts = [_planes(picture, layout, file) for (picture, _), file in zip(scaled, entry.files, strict=True)]
        _same_count(parts, entry.files)
        colors = not channels[0].volume and channels[0].array.ndim == 3
        stacked = [_stack([part[index] for part in parts], entry.files, colors) for index in range(len(parts[0]))]
        if mask is None or entry.mask is None:
            found.x.extend(stacked)
            continue
        own = _placed(mask, frame, layout, entry.mask, labels=True)
        _same_proportions(own, scaled[0][0], pixels, entry)
        planes = _planes(own, layout, entry.mask, labels=True)
        _same_count([planes, stacked], (entry.mask, entry.files[0]))
        for plane, x in zip(planes, stacked, strict=True):
            y = _classes(plane, layout, entry.mask)
            if y.shape != x.shape[:-1]:
                size, other = (" x ".join(map(str, shape)) for shape in (y.shape, x.shape[:-1]))
                raise DataError(
                    f"{entry.mask}: the mask is {size}, {entry.files[0]} is {other}; give both one size: pixels.size"
                )
            if y.any() or not pixels.foreground:
                found.x.append(x)
                found.y.append(y)
    turned = [channels[0]._replace(affine=placed[0].affine), *channels[1:]]  # as all its frames are
    if layout.volume is not None and layout.volume.patch is not None and placed[0].affine is not None:
        first = [pixels.axis, *(axis for axis in range(3) if axis != pixels.axis)]  # as `_planes` has them
        found = found._replace(affine=placed[0].affine[:, [*first, 3]], grid=of_file(channels[0]))
    return found._replace(facts=_facts(found.x, turned, scalings, pixels)) if found.x else found


def _facts(
    x: Sequence[np.ndarray], channels: Sequence[ReadImage], scalings: Sequence[Scaling], pixels: Pixels
) -> ImageFacts:
    """The facts of a row; `scalings` has one for each channel, of every frame."""
    *space, count = x[0].shape
    shape = (*space[1:], space[0]) if len(space) == 3 else tuple(space)
    first = channels[0]
    colors = not first.volume and first.array.ndim == 3
    letters = directions(first.affine)
    if first.volume and letters:
        cut = letters[pixels.axis]
        letters = letters.replace(cut, "") + cut
    return together(
        [
            ImageFacts(
                shape, count, picture.bits, picture.unit, scaling.name,
                None if scaling.name == "percentiles" else scaling.between,
                letters[: len(shape)], "RGB" if colors else "MONOCHROME2",
            )
            for picture, scaling in zip([*channels] * (len(scalings) // len(channels)), scalings, strict=True)
        ]
    )  # fmt: skip


def _frame(picture: ReadImage, frame: int | None, file: Path) -> ReadImage:
    """One frame of a file of four axes."""
    if picture.array.ndim < 4:
        return picture
    count = picture.array.shape[3]
    if frame is None:
        raise DataError(f"{file}: has {count} frames; name the columns with their numbers: pixels.frames")
    if not 0 <= frame < count:
        raise DataError(f"{file}: frame {frame} is asked for; it has the frames 0 to {count - 1}")
    return picture._replace(array=picture.array[..., frame])


def _placed(picture: ReadImage, frame: int | None, layout: Layout, file: Path, labels: bool = False) -> ReadImage:
    """One frame of a file, in the frame and spacing of [volume]; its notes are those of that alone."""
    own = _frame(picture, frame, file)._replace(notes=())
    return own if layout.volume is None else volumes.brought(own, layout.volume, file, labels)


class Scaling(NamedTuple):
    """How values become what is learned from."""

    name: str  # as ImageFacts.scaling
    between: tuple[float, float] | None = None  # the values that become 0 and 1


def _scaling(picture: ReadImage, x: np.ndarray, layout: Layout, file: Path) -> Scaling:
    pixels = layout.pixels
    rule, window = pixels.intensity, pixels.window
    name = "fixed"
    if rule == "auto" and window is None:
        window, name = picture.window, "window"
        rule = "full" if picture.full is not None else "none" if layout.format == "npy" else "range"
    if window is not None:
        if picture.unit == pixels.unit:  # a step of a stored value is no 1 there
            return Scaling(name, (window[0] - window[1] / 2, window[0] + window[1] / 2))
        # DICOM's linear window (PS3.3 C.11.2.1.2.1)
        centre, half = window[0] - 0.5, max(window[1] - 1, 1e-6) / 2
        return Scaling(name, (centre - half, centre + half))
    if rule == "full":
        if picture.full is None:
            raise DataError(f'{file}: pixels.intensity="full": its type has no largest value; use "range"')
        return Scaling("fixed", (0.0, picture.full))
    if rule == "range":
        low, high = np.percentile(x, (0.5, 99.5))
        return Scaling("percentiles", (float(low), float(high)))
    return Scaling(rule)


def _intensity(picture: ReadImage, layout: Layout, file: Path) -> tuple[ReadImage, Scaling]:
    """Values as float32, in 0..1 but for "zscore" and "none"."""
    x = picture.array.astype(np.float64)
    if not np.isfinite(x).all():
        raise DataError(f"{file}: holds NaN or infinite values; repair the file, or leave its row out")
    scaling = _scaling(picture, x, layout, file)
    if scaling.between is not None:
        low, high = scaling.between
        if picture.mirror is not None and scaling.name != "percentiles":  # the range is of what the file holds
            low, high = picture.mirror - high, picture.mirror - low
        x = np.clip((x - low) / (high - low), 0, 1) if high > low else np.zeros_like(x)
    elif scaling.name == "zscore":
        inside = x[x != 0]
        if inside.size and inside.std() > 0:
            x = np.where(x != 0, (x - inside.mean()) / inside.std(), 0.0)
    return picture._replace(array=x.astype(np.float32)), scaling


def _planes(picture: ReadImage, layout: Layout, file: Path, labels: bool = False) -> list[np.ndarray]:
    """The planes [H, W] or [H, W, colours] of a picture at their size; of whole volumes one array [D, H, W]."""
    array, pixels = picture.array, layout.pixels
    if not picture.volume:
        if pixels.slices == "volume":
            raise DataError(f'{file}: has shape {array.shape}; pixels.slices="volume" needs volumes')
        return [_resized(array, pixels.size, labels)]
    array = np.moveaxis(array, pixels.axis, 0)
    if pixels.slices == "volume":
        if layout.volume is not None and layout.volume.spacing is not None and pixels.size:
            return [volumes.cut(array, pixels.size)]
        return [_resized_volume(array, pixels.size, labels)]
    count = len(array)
    chosen: Sequence[int] = range(count)
    if pixels.slices == "middle":
        chosen = [count // 2]
    elif pixels.slices != "all":
        first, last = pixels.slices
        chosen = range(max(first, 0), min(last, count))
        if not chosen:
            raise DataError(f"{file}: pixels.slices=[{first}, {last}]: none of its {count} slices lies there")
    return [_resized(array[index], pixels.size, labels) for index in chosen]


def _resized(plane: np.ndarray, size: Sequence[int], labels: bool) -> np.ndarray:
    """A plane at [height, width]: bilinear with antialiasing, masks by the nearest pixel."""
    from PIL import Image

    if not size or plane.shape[:2] == tuple(size):
        return plane
    to = (size[1], size[0])
    if labels:
        image = Image.fromarray(np.ascontiguousarray(plane, np.int32))
        return np.asarray(image.resize(to, Image.Resampling.NEAREST))
    colors = plane[..., None] if plane.ndim == 2 else plane
    planes = [Image.fromarray(np.ascontiguousarray(colors[..., c], np.float32)) for c in range(colors.shape[2])]
    found = np.stack([np.asarray(image.resize(to, Image.Resampling.BILINEAR)) for image in planes], axis=2)
    return found[..., 0] if plane.ndim == 2 else found


def _resized_volume(volume: np.ndarray, size: Sequence[int], labels: bool) -> np.ndarray:
    from scipy.ndimage import zoom  # type: ignore[import-untyped]  # here: 0.1 s, and most data are planes

    if not size or volume.shape == tuple(size):
        return volume
    by = [to / now for to, now in zip(size, volume.shape, strict=True)]
    found: np.ndarray = zoom(volume, by, order=0 if labels else 1)
    return found if labels else found.astype(np.float32)


def _same_proportions(mask: ReadImage, image: ReadImage, pixels: Pixels, entry: Entry) -> None:
    """Raise DataError for a mask that would be stretched to fit: it is turned, or of another image."""
    axes = [axis for axis in range(3) if axis != pixels.axis] if image.volume and mask.volume else [0, 1]
    height, width = (image.array.shape[axis] for axis in axes)
    own_height, own_width = (mask.array.shape[axis] for axis in axes)
    if abs(own_height - height * own_width / width) > 1 and abs(own_width - width * own_height / height) > 1:
        raise DataError(
            f"{entry.mask}: the mask is {own_height} x {own_width}, {entry.files[0]} is {height} x {width} (turned by "
            "EXIF, where it says so): not the same proportions, so the mask is of another image, or turned"
        )


def _same_count(parts: Sequence[Sequence[np.ndarray]], files: Sequence[Path]) -> None:
    for part, file in zip(parts, files, strict=True):
        if len(part) != len(parts[0]):
            raise DataError(f"{file}: gives {len(part)} slices, {files[0]} {len(parts[0])}; they must be equal")


def _stack(planes: Sequence[np.ndarray], files: Sequence[Path], colors: bool) -> np.ndarray:
    """Channels last: [..., C]."""
    shapes = {plane.shape for plane in planes}
    if len(shapes) > 1:
        raise DataError(f"{files[0]}: its channels are of several shapes, {sorted(shapes)}; give pixels.size")
    if len(planes) == 1:
        plane = planes[0]
        return np.ascontiguousarray(plane if colors else plane[..., None], np.float32)
    return np.ascontiguousarray(np.stack(planes, axis=-1), np.float32)


def _classes(plane: np.ndarray, layout: Layout, file: Path) -> np.ndarray:
    """Class indices [H, W], of a volume [D, H, W], int32 of a mask, by label.values or as they are."""
    names = layout.classes
    if plane.ndim != (3 if layout.pixels.slices == "volume" else 2):
        raise DataError(f"{file}: a mask must have one number per pixel; it has the shape {plane.shape}")
    known = {float(value): names.index(name) for value, name in layout.label.values.items() if name in names}
    found, inverse = np.unique(plane, return_inverse=True)
    index = [known.get(float(value), -1) if known else int(value) for value in found]
    wrong = [float(value) for value, i in zip(found, index, strict=True) if not 0 <= i < len(names)]
    if wrong or (not known and (found != np.round(found)).any()):
        raise DataError(
            f"{file}: the mask holds {', '.join(f'{value:g}' for value in wrong[:5])}, which is none of the classes "
            f"{', '.join(names)}; say what it means in label.values"
        )
    return np.array(index, np.int32)[inverse].reshape(plane.shape)


def read_all(layout: Layout, entries: Sequence[Entry]) -> Iterator[Arrays]:
    """Read every row, in order; several files are decoded at once, and no more than these wait to be taken."""
    workers = min(MOST_THREADS, os.cpu_count() or 1)
    waiting: deque[Future[Arrays]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for entry in entries:
            if len(waiting) > workers:
                yield waiting.popleft().result()
            waiting.append(pool.submit(arrays, layout, entry))
        while waiting:
            yield waiting.popleft().result()


def judge_scale(
    facts: ImageFacts, pixels: Pixels, values: tuple[float, float], far: bool, where: str, place: str, field: str
) -> None:
    """Raises DataError for images whose scale nobody says: nearly black, or far from 0..1.

    values: the least and the largest. far: as `p2pfl.data.image.is_far` has it. place, field: where a person says it.
    """
    low, high = values
    auto = pixels.intensity == "auto" and pixels.window is None
    if auto and facts.scaling == "fixed" and facts.bit_depth > 8 and high <= 1 / DARK:
        raise DataError(
            f"{where}: images of {facts.bit_depth} bits whose brightest value is less than 1/{DARK} of the largest of "
            f"their type: nearly black. Say {place}what is white: {field}.window = [2048, 4096] for images of 12 "
            f'bits, [128, 256] for images of 8; or {field}.intensity = "full", if they are as they should be'
        )
    if auto and facts.scaling == "none" and far:
        raise DataError(
            f"{where}: images of {low:g} to {high:g}, far from 0..1, where training diverges. Say {place}how "
            f'they are scaled: {field}.window = [centre, width], such as [128, 256]; or {field}.intensity = "range", '
            '"zscore", or "none" if they are as they should be'
        )


def add(x: list[np.ndarray], array: np.ndarray, here: object, first: object, way: str = "") -> None:
    """Append a row. Raises DataError for another shape than that of the first one; `way`: out of that."""
    if x and array.shape != x[0].shape:
        raise DataError(f"{here}: has shape {[*array.shape]}, {first} {[*x[0].shape]}; rows must be of one shape{way}")
    x.append(array)
