"""From whole images to pairs of a degraded image and the one that it was made of: what a reconstruction learns from.

    undersample   of the k-space of an image some columns are measured, with noise, and the rest are zero
    downsample    an image of fewer pixels, brought back to its size by interpolation: super-resolution
    noise         an image with noise: denoising

Each node has its own settings, as each hospital has its own scanner: a setting is one value of all nodes, or a list
with one for each. What is drawn depends on the seed, the node and the row alone, so that whoever holds a row degrades
it alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy import ndimage  # type: ignore[import-untyped]

from p2pfl.check import LIST, STRICT
from p2pfl.data.dataset import Dataset, Samples
from p2pfl.data.fastmri import UNIT
from p2pfl.data.partition import Partition
from p2pfl.data.stored import Stored
from p2pfl.errors import ConfigError, DataError

# One constant per purpose of randomness, so that the same seed elsewhere does not draw the same numbers.
MASK_PURPOSE, NOISE_PURPOSE = 0x3A5C, 0x2015E
TRAIN, TEST, VALIDATION = range(3)
KIND = "reconstruction"
COLOURS: Mapping[int, tuple[str, ...]] = MappingProxyType({1: ("grey",), 3: ("red", "green", "blue")})
"""Channels of an image -> their names."""

Value = TypeVar("Value")
Sd = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Sds = Sd | Annotated[tuple[Sd, ...], LIST]
Ratio = Annotated[float, Field(ge=1, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Columns = Literal["random", "equispaced"]
Factor = Annotated[int, Field(ge=2, le=64)]


@dataclass(frozen=True, config=STRICT)
class Undersample:
    """by = "undersample": Cartesian sampling of k-space."""

    by: Literal["undersample"]
    acceleration: Ratio | Annotated[tuple[Ratio, ...], LIST]  # all columns by those that are measured
    center_fraction: Share | Annotated[tuple[Share, ...], LIST] = (
        0.08  # share of the columns, those of the lowest frequencies, that are always measured
    )
    columns: Columns | Annotated[tuple[Columns, ...], LIST] = "random"  # which of the others are
    drawn: Literal["site", "image"] = "site"  # one mask for all images of a site, or one for each image
    noise: Sds = 0.0  # standard deviation of the real and the imaginary part of each sample, in units of a pixel


@dataclass(frozen=True, config=STRICT)
class Downsample:
    """by = "downsample": fewer pixels, and back."""

    by: Literal["downsample"]
    factor: Factor | Annotated[tuple[Factor, ...], LIST]  # pixels of a side that become one
    interpolation: Literal["nearest", "linear", "cubic"] = "cubic"  # on the way back
    noise: Sds = 0.0  # standard deviation, of the smaller image


@dataclass(frozen=True, config=STRICT)
class Noise:
    """by = "noise": Gaussian noise."""

    by: Literal["noise"]
    noise: Sds  # standard deviation, in units of a pixel


Degrade = Undersample | Downsample | Noise
"""[data.degrade]: what is done to images, to be undone."""


def degraded(
    dataset: Dataset, parts: Partition, how: Degrade, seed: int, by_site: bool = False,
    validation: Sequence[np.ndarray] | None = None,
) -> Dataset:  # fmt: skip
    """Make of a data set of images one of kind "reconstruction", in which x is degraded and y is the image.

    Args:
        dataset: of any kind, of images [N, H, W, C] in 0..1, what was to be predicted of them is let go; or of k-space
            (see p2pfl.data.fastmri), for Undersample.
        parts: the rows of each node, whose settings they get.
        how: the settings.
        seed: of masks and noise, >= 0.
        by_site: validation rows are those of the node with the number of their site; else they go round the nodes.
        validation: those of each node, where they are dealt out otherwise.

    Returns:
        The data set; one that is a reconstruction already stays as it is.

    Raises:
        DataError: rows that are no images, or pixels outside 0..1.
        ConfigError: rows that are read from a cache, a list of settings of another length than the nodes, or one
            that images of this size can't have.

    Example:
        >>> import numpy as np, p2pfl
        >>> from p2pfl.data.degrade import Noise, degraded
        >>> images = p2pfl.Samples(np.full((4, 8, 8, 1), 0.5, np.float32), np.zeros(4, np.int32))
        >>> dataset = p2pfl.Dataset(images, images, ("a", "b"))
        >>> made = degraded(dataset, p2pfl.data.iid(dataset, 2, seed=0), Noise("noise", noise=(0.0, 0.1)), seed=0)
        >>> made.kind, made.train.y.shape, bool(np.allclose(made.train.x, made.train.y))
        ('reconstruction', (4, 8, 8, 1), False)
    """
    if dataset.kind == KIND and not measured(dataset):
        return dataset
    nodes = len(parts.train)
    _judge(dataset, how, nodes)
    kept = dataset.validation
    owner = None
    if kept is not None and validation is not None:
        owner = _owners(validation, len(kept.y))
    elif kept is not None:
        owner = kept.site if by_site and kept.site is not None else np.arange(len(kept.y)) % nodes
    train, test = (
        _pairs(samples, _owners(rows, len(samples.y)), how, seed, part)
        for samples, rows, part in ((dataset.train, parts.train, TRAIN), (dataset.test, parts.test, TEST))
    )
    held = None if kept is None or owner is None else _pairs(kept, owner, how, seed, VALIDATION)
    channels = train.x.shape[-1]
    names = COLOURS.get(channels, tuple(f"channel_{i}" for i in range(channels)))
    image = dataset.image._replace(unit="stored") if dataset.image is not None and measured(dataset) else dataset.image
    return dataset._replace(
        train=train, test=test, validation=held, classes=names, kind=KIND, predicts=(), image=image,
        notes=(*dataset.notes, *_said(how)),
    )  # fmt: skip


def measured(dataset: Dataset) -> bool:
    """Return whether x is k-space as it was measured [N, H, W, 2], and y what was made of all of it."""
    return dataset.image is not None and dataset.image.unit == UNIT


def setting(value: Value | tuple[Value, ...], node: int) -> Value:
    """The value of a node, of one value of all or a value for each."""
    return value[node] if isinstance(value, tuple) else value


def _owners(rows: Sequence[np.ndarray], count: int) -> np.ndarray:
    """The node of each row, [count]; rows that are nobody's have the settings of the first."""
    owner = np.zeros(count, np.int64)
    for node, own in enumerate(rows):
        owner[own] = node
    return owner


def _judge(dataset: Dataset, how: Degrade, nodes: int) -> None:
    """Raises ConfigError for settings, DataError for images that do not fit."""
    where = "data.degrade"
    for name, value in vars(how).items():
        if isinstance(value, tuple) and len(value) != nodes:
            raise ConfigError(
                f"{where}.{name}={[*value]}: {len(value)} values for {nodes} nodes; give one for each, or one for all"
            )
    shape = dataset.train.x.shape[1:]
    if isinstance(dataset.train.x, Stored):
        raise ConfigError(
            f"{where}: degraded images lie in memory, and these rows are read from a cache; leave data.cache (or "
            "data.volume) out"
        )
    if len(shape) != 3:
        raise DataError(
            f"{where}: degrades images [height, width, channels]; a row of the data has shape {[*shape]}. Leave it out"
        )
    if measured(dataset) and not isinstance(how, Undersample):
        raise ConfigError(f'{where}.by={how.by!r}: the data are k-space as it was measured; use "undersample"')
    for part in () if measured(dataset) else (dataset.train, dataset.test, dataset.validation):
        if part is not None and len(part.x) and not (part.x.min() >= 0 and part.x.max() <= 1):
            raise DataError(
                f"{where}: the images hold {part.x.min():g} to {part.x.max():g}; they must be in 0..1, of which PSNR "
                "and noise are. Scale them: intensity = [low, high] of an .npz, pixels.window of a layout"
            )
    for node in range(nodes):
        if isinstance(how, Undersample):
            acceleration, center = setting(how.acceleration, node), setting(how.center_fraction, node)
            if center > 1 / acceleration:
                raise ConfigError(
                    f"{where}.center_fraction={center:g}: acceleration={acceleration:g} measures 1/{acceleration:g} of "
                    "the columns, and these would be more; make one of the two smaller"
                )
            if round(shape[1] / acceleration) < 1:
                raise ConfigError(f"{where}.acceleration={acceleration:g}: measures none of {shape[1]} columns")
        elif isinstance(how, Downsample):
            factor = setting(how.factor, node)
            if shape[0] % factor or shape[1] % factor:
                raise ConfigError(
                    f"{where}.factor={factor}: must divide height and width of the images, {shape[0]} x {shape[1]}"
                )


def _pairs(samples: Samples, owner: np.ndarray, how: Degrade, seed: int, part: int) -> Samples:
    space = samples.y.ndim == 4  # x is k-space, and its images are there
    y = samples.y if space else samples.x
    x = np.empty_like(y)
    for row, node in enumerate(owner.tolist()):
        given = samples.x[row].astype(np.float64)
        if space and isinstance(how, Undersample):
            complete = (given[..., 0] + 1j * given[..., 1])[..., None]
            image = np.fft.fftshift(_seen(complete, how, seed, node, (part, row)), axes=(0, 1))
            x[row] = _middle(image, y.shape[1:3])
        else:
            x[row] = WAYS[how.by](given, how, seed, node, (part, row))
    return samples._replace(x=x, y=y)


def _middle(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The middle [h, w, C] of an image [H, W, C]."""
    top, left = ((have - want) // 2 for have, want in zip(image.shape, size, strict=False))
    return image[top : top + size[0], left : left + size[1]]


def _said(how: Degrade) -> tuple[str, ...]:
    given = ", ".join(
        f"{name} = {[*value] if isinstance(value, tuple) else value}"
        for name, value in vars(how).items()
        if name != "by"
    )
    return (f"images are degraded by {how.by} ({given}); what is learned is to undo it, in 0..1",)


# --- ways


def mask(width: int, acceleration: float, center: float, columns: str, rng: np.random.Generator) -> np.ndarray:
    """Draw which columns of k-space are measured, lowest frequency in the middle: [width] bool.

    round(width / acceleration) of them: those of the lowest frequencies, round(width * center), at least one; of the
    others as many as are left, at random, or at equal distances from a first one that is drawn. Source: Zbontar et al.,
    "fastMRI: an open dataset and benchmarks for accelerated MRI" (2018), section 6.3; there random masks have their
    number of columns in the mean alone.

    Example:
        >>> import numpy as np
        >>> from p2pfl.data.degrade import mask
        >>> int(mask(64, 4.0, 0.08, "equispaced", np.random.default_rng(0)).sum())
        16
    """
    wanted = max(1, round(width / acceleration))
    low = min(wanted, max(1, round(width * center)))
    measured = np.zeros(width, bool)
    first = (width - low + 1) // 2
    measured[first : first + low] = True
    others, more = np.flatnonzero(~measured), wanted - low
    if more and columns == "random":
        measured[rng.choice(others, more, replace=False)] = True
    elif more:
        step = len(others) / more
        measured[others[np.floor(rng.random() * step + step * np.arange(more)).astype(np.int64)]] = True
    return measured


def zero_filled(image: np.ndarray, measured: np.ndarray, noise: np.ndarray | float = 0.0) -> np.ndarray:
    """The image that the measured columns of its k-space give, the others being zero: [H, W, C].

    The magnitude of the inverse transform. image [H, W, C]; measured [W] bool; noise [H, W, C] complex, is added to
    what is measured. The transform keeps the sum of squares, so that noise has the same size in k-space and in a fully
    sampled image.

    Example:
        >>> import numpy as np
        >>> from p2pfl.data.degrade import zero_filled
        >>> image = np.random.default_rng(0).random((8, 8, 1))
        >>> bool(np.allclose(zero_filled(image, np.ones(8, bool)), image))
        True
    """
    return from_k_space(k_space(image), measured, noise)


def k_space(image: np.ndarray) -> np.ndarray:
    """The Fourier transform of an image [H, W, C], lowest frequency in the middle, complex."""
    whole: np.ndarray = np.fft.fftshift(np.fft.fft2(image, axes=(0, 1), norm="ortho"), axes=(0, 1))
    return whole


def from_k_space(space: np.ndarray, measured: np.ndarray, noise: np.ndarray | float = 0.0) -> np.ndarray:
    """The same of k-space [H, W, C] complex, lowest frequency in the middle."""
    kept = np.where(measured[None, :, None], space + noise, 0)
    image = np.fft.ifft2(np.fft.ifftshift(kept, axes=(0, 1)), axes=(0, 1), norm="ortho")
    magnitude: np.ndarray = np.abs(image)
    return magnitude


def _undersampled(image: np.ndarray, how: Undersample, seed: int, node: int, row: tuple[int, int]) -> np.ndarray:
    return _seen(k_space(image), how, seed, node, row)


def _seen(space: np.ndarray, how: Undersample, seed: int, node: int, row: tuple[int, int]) -> np.ndarray:
    """The image of what is measured of k-space [H, W, C]."""
    own = (node, *row) if how.drawn == "image" else (node,)
    rng = np.random.default_rng([seed, MASK_PURPOSE, *own])
    acceleration, center = setting(how.acceleration, node), setting(how.center_fraction, node)
    columns = mask(space.shape[1], acceleration, center, setting(how.columns, node), rng)
    parts = _drawn((2, *space.shape), setting(how.noise, node), seed, node, row)
    return from_k_space(space, columns, parts[0] + 1j * parts[1])


_ORDERS = {"nearest": 0, "linear": 1, "cubic": 3}


def _downsampled(image: np.ndarray, how: Downsample, seed: int, node: int, row: tuple[int, int]) -> np.ndarray:
    factor = setting(how.factor, node)
    height, width, channels = image.shape
    small = image.reshape(height // factor, factor, width // factor, factor, channels).mean(axis=(1, 3))
    small = small + _drawn(small.shape, setting(how.noise, node), seed, node, row)
    order = _ORDERS[how.interpolation]
    large: np.ndarray = ndimage.zoom(small, (factor, factor, 1), order=order, mode="nearest", grid_mode=True)
    return large


def _noisy(image: np.ndarray, how: Noise, seed: int, node: int, row: tuple[int, int]) -> np.ndarray:
    return image + _drawn(image.shape, setting(how.noise, node), seed, node, row)


def _drawn(shape: tuple[int, ...], sd: float, seed: int, node: int, row: tuple[int, int]) -> np.ndarray:
    if not sd:
        return np.zeros(shape)
    noise: np.ndarray = np.random.default_rng([seed, NOISE_PURPOSE, node, *row]).normal(size=shape) * sd
    return noise


WAYS: Mapping[str, Callable[..., np.ndarray]] = MappingProxyType(
    {"undersample": _undersampled, "downsample": _downsampled, "noise": _noisy}
)
"""By the name in `by`: (image [H, W, C] in 0..1, settings, seed, node, (part, row)) -> the degraded image."""
