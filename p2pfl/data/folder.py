"""Data sets as they lie on disk, by a layout (docs/data.md): tables, images, DICOM, NIfTI, masks; sites and patients.

The steps, each with what it says in the notes: find the rows (`rows`) and their labels (`labels`), the given split,
sites that are too small, a part of all (`limit`), the files; read them (`pixels`), into memory or into a cache that is
mapped (`cache`); draw the test rows where the layout has none, patients kept together; where rows are patches of
volumes (`volumes`), say which.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from p2pfl.check import at_least, fraction, one_of
from p2pfl.data import cache as caches
from p2pfl.data import csv, volumes
from p2pfl.data import layout as layouts
from p2pfl.data import rows as found_rows
from p2pfl.data.cache import Cached, Span, span
from p2pfl.data.dataset import (
    KINDS,
    NO_SITE,
    Cases,
    Dataset,
    Flow,
    ImageFacts,
    Numbers,
    Recipe,
    Samples,
    apportion,
    split,
    validate,
)  # fmt: skip
from p2pfl.data.folder_labels import labels
from p2pfl.data.image import together
from p2pfl.data.layout import Layout
from p2pfl.data.pixels import Entry, add, judge_scale, read_all
from p2pfl.data.rows import FILE, Rows
from p2pfl.data.stored import Stored, as_array
from p2pfl.data.table import Table, is_number
from p2pfl.data.volumes import VolumeTable
from p2pfl.errors import ConfigError, DataError

# One constant per purpose of randomness, so that the same seed elsewhere does not draw the same numbers.
LIMIT_PURPOSE = 0x11417
TRAIN, TEST, VALIDATION = 0, 1, 2
PARTS = ("train", "test", "validation")
NO_PART = "belongs to no part"


def load(
    path: str | os.PathLike[str],
    layout: str,
    missing: str = "error",
    side: int | None = None,
    limit: int | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    volume: VolumeTable | None = None,
    cache: bool | str = False,
) -> Dataset:
    """Load a data set from its folder, as a layout describes it.

    Args:
        path: the root of the data set.
        layout: a name of experiments/data, or the path of a .toml.
        missing: "error" refuses a row whose file is not there, "drop_row" leaves it out.
        side: square images of so many pixels, instead of the layout's size.
        limit: rows of the layout at most, drawn in proportion to the parts; a volume is one such row.
        test_fraction: rows to test on, where the layout has none.
        seed: of split, limit and patches, >= 0.
        volume: whole volumes instead of slices, and how: instead of the layout's [volume].
        cache: keep decoded rows in a file, beside the data (true) or in this folder, and read them from there when they
            are asked for. Patches always are, beside the data unless this says where.

    Returns:
        x [N, H, W, C] float32; of slices = "volume" [N, D, H, W, C]; of series and tables [N, F]. y as the kind has it.
        Of patches, train rows are those that are drawn, and test rows the windows that cover each volume.

    Raises:
        DataError: file, row, field and way out of what does not fit.
        ConfigError: an argument is out of bounds.

    Example:
        >>> import p2pfl
        >>> p2pfl.data.folder.load("pictures", "mine.toml", side=0)
        Traceback (most recent call last):
        ...
        p2pfl.errors.ConfigError: side=0: must be >= 1
    """
    one_of(("error", "drop_row"), missing=missing)
    fraction(test_fraction=test_fraction)
    at_least(0, seed=seed)
    at_least(1, **{name: value for name, value in (("limit", limit), ("side", side)) if value is not None})
    wanted = layouts.read(layouts.find(layout, Path(path).resolve().parent))
    rows = found_rows.find(wanted, Path(path))
    if wanted.format == "table":
        return _table(wanted, rows, limit, test_fraction, seed)
    wanted = _changed(wanted, side, volume)
    rows, y, classes = labels(wanted, rows)
    if not len(rows.places):
        raise DataError(f"{rows.root}: no rows")
    chosen = _Chosen(rows, y, _parts(wanted, rows))
    chosen = _of_parts(chosen)
    _judge_known(wanted, chosen, in_headers=False)
    chosen = _limited(_small_sites(wanted, chosen), limit, seed)
    chosen, entries = _entries(wanted, chosen, missing)
    _judge_known(wanted, chosen, in_headers=True)
    series = any(file.is_dir() for entry in entries for file in entry.files)
    patches = wanted.volume is not None and wanted.volume.patch is not None
    if cache and wanted.format == "fastmri":
        raise ConfigError("data.cache: k-space is read as it is, into memory; leave cache out")
    if cache or patches:
        place = Path(cache) if isinstance(cache, str) else Path(path) / caches.FOLDER
        decoded = _from_cache(wanted, chosen.rows, entries, place, classes)
    else:
        decoded = _in_memory(wanted, chosen.rows, entries)
    names = [os.path.relpath(entry.files[0], chosen.rows.root) for entry in entries]
    dataset = _dataset(wanted, chosen, classes, decoded, names, test_fraction, seed)
    as_they_are = Numbers(((0.0,),), ((1.0,),))
    if wanted.format == "fastmri":  # new rows are images of what was measured
        return dataset._replace(recipe=Recipe("arrays", {}, as_they_are))
    return dataset._replace(recipe=Recipe("files", {"layout": _plain(wanted, series)}, as_they_are))


class _Chosen(NamedTuple):
    """Rows with their answers and parts, thinned out together."""

    rows: Rows
    y: np.ndarray
    part: np.ndarray  # [N] TRAIN, TEST, VALIDATION; -1: belongs to none

    def keep(self, mask: np.ndarray, why: str, *notes: str) -> _Chosen:
        if not mask.any():
            raise DataError(f"{self.rows.root}: no row is left; {'; '.join(notes)}")
        return _Chosen(self.rows.keep(mask, why, *notes), self.y[mask], self.part[mask])


def _changed(layout: Layout, side: int | None, volume: VolumeTable | None) -> Layout:
    """The layout with what the experiment says instead of it. Raises DataError where that does not go together."""
    pixels = layout.pixels
    if volume is not None:
        keeps = pixels.slices == "volume" and volume.patch is None
        pixels = replace(pixels, slices="volume", foreground=False, size=pixels.size if keeps else ())
    if side is not None:
        pixels = replace(pixels, size=(side,) * (3 if pixels.slices == "volume" else 2))
    return layouts.judged(replace(layout, pixels=pixels, volume=volume or layout.volume), f"layout {layout.name!r}")


def _parts(layout: Layout, rows: Rows) -> np.ndarray:
    """The part of every row, as its split says; all TRAIN where there is no split."""
    given = layout.split
    if given is None:
        return np.full(len(rows.places), TRAIN)
    cells = rows.column(given.column, "split.column")
    values = {name: set(getattr(given, name)) for name in (*PARTS, "ignore")}
    for of, file in given.lists.items():
        values[of] |= found_rows.listed(rows.root, file, f"split.lists.{of}")
    part = np.full(len(cells), -2)
    for index, name in ((-1, "ignore"), (VALIDATION, "validation"), (TEST, "test"), (TRAIN, "train")):
        part[np.isin(cells, list(values[name]))] = index
    if (part == -2).any():
        row = int(np.argmax(part == -2))
        raise DataError(
            f"{rows.places[row]}: {given.column} is {cells[row]!r}, which split has in none of train, test, validation "
            f"and ignore ({int((part == -2).sum())} of {len(part)} rows)"
        )
    return part


def _of_parts(chosen: _Chosen) -> _Chosen:
    """Without the rows that no part wants."""
    gone = chosen.part < 0
    if not gone.any():
        return chosen
    return chosen.keep(~gone, NO_PART, f"left out {int(gone.sum())} rows that belong to no part")


def _judge_known(layout: Layout, chosen: _Chosen, in_headers: bool) -> None:
    """Raise DataError where nobody says the site or the group of a row; in headers, of the files that there are."""
    for field, name in (("site", layout.site), ("group", layout.group)):
        if name is None or (name in layout.headers) != in_headers:
            continue
        empty = chosen.rows.column(name, field) == ""
        if empty.any():
            row = int(np.argmax(empty))
            raise DataError(
                f"{chosen.rows.places[row]}: {field}: {name} is empty in {int(empty.sum())} of {len(empty)} rows; "
                "keep names the rows to take"
            )


def _small_sites(layout: Layout, chosen: _Chosen) -> _Chosen:
    if layout.site is None:
        return chosen
    cells = chosen.rows.columns[layout.site]
    small = sorted(name for name, count in Counter(cells).items() if name and count < layout.min_rows)
    if not small:
        return chosen
    return chosen.keep(
        ~np.isin(cells, small),
        f"a site of fewer than {layout.min_rows} rows",
        f"left out sites with fewer than {layout.min_rows} rows: {', '.join(small)}",
    )


def _limited(chosen: _Chosen, limit: int | None, seed: int) -> _Chosen:
    count = len(chosen.part)
    if limit is None or limit >= count:
        return chosen
    rng = np.random.default_rng([seed, LIMIT_PURPOSE])
    kept = np.zeros(count, bool)
    sizes = np.bincount(chosen.part, minlength=len(PARTS))
    for part, size in enumerate(apportion(limit, sizes)):
        kept[rng.permutation(np.flatnonzero(chosen.part == part))[:size]] = True
    return chosen.keep(kept, f"beyond limit = {limit}", f"limit = {limit}: {count - limit} rows were not read")


def _entries(layout: Layout, chosen: _Chosen, missing: str) -> tuple[_Chosen, list[Entry]]:
    """The files of every row."""
    rows, pixels = chosen.rows, layout.pixels
    templates = [(f"pixels.channels[{i}]", template) for i, template in enumerate(pixels.channels)]
    templates = templates or [("path", layout.path or f"{{{FILE}}}")]
    templates += [("label.mask", layout.label.mask)] if layout.label.mask is not None else []
    files = [found_rows.paths(rows, template, field) for field, template in templates]
    absent = np.array([[file is None for file in column] for column in files])
    gone = np.asarray(absent.any(axis=0))
    if gone.any():
        row = int(np.argmax(gone))
        field, template = templates[int(np.argmax(absent[:, row]))]
        if missing == "error":
            raise DataError(
                f"{rows.places[row]}: {field}={template!r}: no such file below {rows.root} ({int(gone.sum())} of "
                f'{len(gone)} rows have none); missing = "drop_row" leaves such rows out'
            )
        chosen = chosen.keep(
            ~gone, "its file is not there", f"left out {int(gone.sum())} rows whose files are not there"
        )
    frames = _frames(chosen.rows, pixels.frames)
    kept = [[file for file, lost in zip(column, gone, strict=True) if not lost] for column in files]
    entries = []
    for index, own in enumerate(zip(*kept, strict=True)):
        found = tuple(file for file in own if file is not None)
        mask = found[-1] if layout.label.mask is not None else None
        entries.append(Entry(found[: len(found) - (mask is not None)], mask, frames[index]))
    return chosen, entries


def _frames(rows: Rows, names: Sequence[str]) -> list[tuple[int, ...]]:
    found = []
    columns = [rows.column(name, "pixels.frames") for name in names]
    for row, place in enumerate(rows.places):
        cells = [column[row] for column in columns]
        if not all(is_number(cell) and float(cell) >= 0 and float(cell).is_integer() for cell in cells):
            raise DataError(f"{place}: pixels.frames: {', '.join(map(repr, cells))}: must be whole numbers from 0")
        found.append(tuple(dict.fromkeys(int(float(cell)) for cell in cells)))
    return found


class _Decoded(NamedTuple):
    """The rows of all entries, wherever they lie."""

    owner: np.ndarray  # [R] the row of the layout that each row of the data set comes from
    shape: tuple[int, ...]  # of a row; of the first volume, where they differ
    rows: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # numbers [n] -> x, and masks of a segmentation
    spans: Sequence[Span]
    facts: Sequence[ImageFacts]
    said: Sequence[tuple[str, str]]  # what is to be said, of which file
    cached: Cached | None = None


def _in_memory(layout: Layout, rows: Rows, entries: Sequence[Entry]) -> _Decoded:
    x: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    owner: list[int] = []
    facts: list[ImageFacts] = []
    said: list[tuple[str, str]] = []
    for index, found in enumerate(read_all(layout, entries)):
        said.extend(found.notes)
        facts += [found.facts] if found.facts is not None else []
        for array in found.x:
            way = ". Give pixels.size in the layout, or side"
            add(x, array, rows.places[index], rows.places[owner[0] if owner else index], way)
            owner.append(index)
        masks.extend(found.y)

    def taken(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def stacked(of: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
            return np.stack([of[i] for i in numbers]) if len(numbers) else np.zeros((0, *of[0].shape), dtype)

        dtype = KINDS[layout.kind][0]
        return stacked(x, np.float32), stacked(masks, dtype) if masks else np.zeros(len(numbers), np.int32)

    spans = [span(x)] if x else []
    return _Decoded(np.array(owner, np.int64), x[0].shape if x else (), taken, spans, facts, said)


def _from_cache(
    layout: Layout, rows: Rows, entries: Sequence[Entry], place: Path, classes: tuple[str, ...]
) -> _Decoded:
    """The same from a cache. Raises DataError where it can't be made, and for rows of several shapes."""
    plain = {**_plain(layout, False), "values": layout.label.values, "classes": classes, "kind": layout.kind}
    if layout.volume is not None:  # which patches are drawn is no matter of what is decoded
        plain["volume"] = {"spacing": layout.volume.spacing}
    masks = len(classes) if layout.kind == "segmentation" else 0
    key = caches.key(plain, entries, rows.root)
    kept = caches.cached(place, key, len(entries), masks, lambda first: read_all(layout, entries[first:]))
    owner = np.array([row.entry for row in kept.rows], np.int64)
    shapes = [row.shape for row in kept.rows]
    if layout.volume is None or layout.volume.patch is None:
        other = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
        if other is not None:
            raise DataError(
                f"{rows.places[owner[other]]}: has shape {[*shapes[other]]}, {rows.places[owner[0]]} {[*shapes[0]]}; "
                "rows must be of one shape. Give pixels.size in the layout, or side"
            )

    def taken(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        whole, row = kept.x.reshape(len(shapes), *shapes[0]), shapes[0]
        x = as_array(Stored(whole.__getitem__, numbers, row, np.float32, key))
        if not len(kept.y):
            return x, np.zeros(len(numbers), np.int32)
        labels = kept.y.reshape(len(shapes), *row[:-1])
        return x, as_array(Stored(labels.__getitem__, numbers, row[:-1], np.int32, key))

    shape = shapes[0] if shapes else ()
    return _Decoded(owner, shape, taken, kept.spans, kept.facts, kept.notes, kept)


def _dataset(
    layout: Layout, chosen: _Chosen, classes: tuple[str, ...], decoded: _Decoded, names: Sequence[str],
    test_fraction: float, seed: int,
) -> Dataset:  # fmt: skip
    """`names`: of the entries, by which their patches are drawn."""
    rows, of = chosen.rows, decoded.owner
    said: dict[str, list[str]] = {}
    for what, where in decoded.said:
        said.setdefault(what, []).append(where)
    notes = [*rows.notes, *(f"{what}: {len(places)}, such as {places[0]}" for what, places in said.items())]
    if not len(of):
        why = f"no slice holds anything but {layout.classes[0]!r}; pixels.foreground = false" if layout.classes else ""
        raise DataError(f"{rows.root}: nothing to learn from: {'; '.join(notes) if said else why}")
    image = _image(layout, decoded, rows.root)
    sites, site = _sites(layout, rows, of)
    part, y = _parted(layout, chosen, of, site, test_fraction, seed), chosen.y[of]
    if len(of) != len(rows.places):
        notes.append(f"{len(of)} rows from {len(rows.places)} files")
    notes += _judge_parts(layout, part, site, sites, rows.root)
    first = np.searchsorted(of, of)  # an entry may hold several volumes: frames, of which each draws its own patches
    called = [f"{names[i]} {row - first[row]}" for row, i in enumerate(of)]
    samples = []
    for wanted in range(len(PARTS)):
        taken = np.flatnonzero(part == wanted)
        if decoded.cached is not None and layout.volume is not None and layout.volume.patch is not None:
            own, more = _patches(decoded.cached, taken, layout.volume, wanted == TRAIN, seed, called)
            samples.append(own._replace(site=None if site is None else site[taken][more]))
            continue
        x, masks = decoded.rows(taken)
        case = _cases(layout, rows, of, taken)
        answers = masks if layout.kind in ("segmentation", "reconstruction") else y[taken]
        samples.append(Samples(x, answers, None if site is None else site[taken], case=case))
    train, test, validation = samples
    if layout.kind == "classes" and len(only := np.unique(y)) == 1:
        notes.append(f"only the class {classes[only[0]]!r} of {', '.join(classes)} occurs")
    if len(validation.y):
        notes.append(f'kept {len(validation.y)} validation rows for [evaluation] rows = "validation"')
    notes += _of_cases(layout, train, test)
    kept = validation if len(validation.y) else None
    cells = rows.columns[layout.site] if layout.site is not None else np.full(len(rows.places), NO_SITE, object)
    cut = Counter(cells.tolist()) if len(of) != len(rows.places) or train.case is not None else {}
    if image is not None and train.x.ndim == 5:
        image = image._replace(shape=(*train.x.shape[2:4], train.x.shape[1]))
    dataset = Dataset(
        train, test, classes, sites, (), tuple(notes), kept, layout.kind, image=image,
        flow=Flow(rows.left_out, cut=dict(cut)),
    )  # fmt: skip
    validate(dataset, f"{rows.root} ({layout.name})")
    return dataset


def _parted(
    layout: Layout, chosen: _Chosen, of: np.ndarray, site: np.ndarray | None, test_fraction: float, seed: int
) -> np.ndarray:
    """The part of every row; test rows are drawn where the layout has none."""
    part = chosen.part[of]
    if not (part == TEST).any():
        free = np.flatnonzero(part == TRAIN)
        group = of[free] if layout.group is None else chosen.rows.columns[layout.group][of[free]].astype(str)
        label = chosen.y[of][free] if layout.kind == "classes" else np.zeros((len(free), 1), np.int32)
        drawn = split(label, None if site is None else site[free], test_fraction, seed, group)
        part[free[drawn]] = TEST
    return part


def _cases(layout: Layout, rows: Rows, of: np.ndarray, taken: np.ndarray) -> Cases | None:
    """The volume or patient of each row of a segmentation: of slices their file, of single images the group."""
    if layout.kind != "segmentation":
        return None
    if len(of) != len(np.unique(of)):
        whole = of[taken]
    elif layout.group is not None and layout.pixels.slices != "volume":
        whole = rows.columns[layout.group][of[taken]].astype(str)
    else:
        return None
    return Cases(np.unique(whole, return_inverse=True)[1].astype(np.int64))


def _patches(
    kept: Cached, taken: np.ndarray, volume: VolumeTable, train: bool, seed: int, names: Sequence[str]
) -> tuple[Samples, np.ndarray]:
    """Patches to train on, or the windows that cover each volume; and of each its place in `taken`."""
    assert volume.patch is not None
    patch, size = volume.patch, np.array([kept.rows[row].shape[:-1] for row in taken], np.int64).reshape(-1, 3)
    starts = [
        volumes.drawn(size[i], kept.rows[row].places, volume, seed, names[row])
        if train
        else volumes.windows(size[i], patch, volume.overlap)
        for i, row in enumerate(taken)
    ]
    of = np.repeat(np.arange(len(taken)), [len(each) for each in starts])
    start = np.concatenate([np.zeros((0, 3), np.int64), *starts])

    def read(whole: Callable[[int], np.ndarray], numbers: np.ndarray) -> np.ndarray:
        return np.stack([volumes.patch_of(whole(int(taken[of[i]])), start[i], patch) for i in numbers])

    channels = kept.rows[0].shape[-1]
    key, numbers = f"{kept.key} {train} {seed} {asdict(volume)}", np.arange(len(of))
    x = Stored(lambda numbers: read(kept.image, numbers), numbers, (*patch, channels), np.float32, key)
    y = Stored(lambda numbers: read(kept.mask, numbers), numbers, patch, np.int32, key)
    return Samples(as_array(x), as_array(y), case=Cases(of, start, size)), of


def _of_cases(layout: Layout, train: Samples, test: Samples) -> list[str]:
    """What a person should know of rows that are pieces."""
    if test.case is None:
        return []
    cases = len(np.unique(test.case.of))
    if test.case.start is None:
        return [f"Dice at the end is of all slices of a volume, or images of a patient, together: {cases} of them"]
    volume, trained = layout.volume, 0 if train.case is None else len(np.unique(train.case.of))
    assert volume is not None and volume.patch is not None
    size = " x ".join(map(str, volume.patch))
    return [
        f"{len(train.y)} patches of {size} voxels are drawn from {trained} volumes, "
        f"{round(volume.foreground * volume.patches)} of {volume.patches} centred on a class but {layout.classes[0]!r}",
        f"{cases} test volumes are answered in {len(test.y)} windows of that size, which overlap by "
        f"{100 * volume.overlap:.0f} % or more; Dice at the end is of whole volumes, that of a round of windows",
    ]


def _plain(layout: Layout, series: bool) -> dict[str, Any]:
    """What a layout says of the pixels of a file, as plain values: not where files lie, nor what they show.

    `series`: a row is a folder that holds the slices of a series.
    """
    pixels = {name: value for name, value in asdict(layout.pixels).items() if value is not None}
    volume = {} if layout.volume is None else {"volume": asdict(layout.volume)}
    return {"format": layout.format, "pixels": pixels, "series": series, **volume}


def _image(layout: Layout, decoded: _Decoded, root: Path) -> ImageFacts | None:
    """The facts of all images. Raises DataError for images whose scale nobody says: nearly black, or far from 0..1."""
    if not decoded.facts:
        return None
    image = together(decoded.facts)
    low, high = min(each.low for each in decoded.spans), max(each.high for each in decoded.spans)
    far = any(each.far for each in decoded.spans)
    judge_scale(image, layout.pixels, (low, high), far, str(root), "in the layout ", "pixels")
    return image


def _sites(layout: Layout, rows: Rows, of: np.ndarray) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Names in sorted order, and the site of every row [N] int32; none without a site."""
    if layout.site is None:
        return (), None
    names, site = np.unique(rows.columns[layout.site][of].astype(str), return_inverse=True)
    return tuple(names.tolist()), site.astype(np.int32)


def _judge_parts(
    layout: Layout, part: np.ndarray, site: np.ndarray | None, names: Sequence[str], root: Path
) -> list[str]:
    """Describe parts and sites. Raises DataError for no train or test rows, at all or of a site."""
    for wanted in (TRAIN, TEST):
        if not (part == wanted).any():
            more = " Groups are never parted, so there must be more than one" if layout.group else ""
            raise DataError(f"{root}: no {PARTS[wanted]} rows among {len(part)}; more rows are needed.{more}")
    if site is None:
        return []
    lacking = [name for index, name in enumerate(names) if not (part[site == index] == TRAIN).any()]
    if lacking:
        raise DataError(
            f"{root}: no train rows at site {', '.join(map(repr, lacking))}; leave the site out with "
            f"keep.{layout.site}, or leave split out of the layout"
        )
    silent = [name for index, name in enumerate(names) if not (part[site == index] == TEST).any()]
    return [f"site {name!r} has no test rows" for name in silent]


def _table(layout: Layout, rows: Rows, limit: int | None, test_fraction: float, seed: int) -> Dataset:
    """format = "table": the columns of [features], by the steps of source = "csv"."""
    features, label = layout.features, layout.label
    assert features is not None  # the layout was judged
    roles = [
        *features.columns,
        label.column,
        *(label.columns or ()),
        label.time,
        label.event,
        layout.site,
        layout.group,
    ]
    names = tuple(dict.fromkeys(name for name in roles if name is not None))
    cells = np.stack([rows.column(name, "features.columns") for name in names], axis=1)
    chosen = _Chosen(rows, cells, _parts(layout, rows))
    chosen = _limited(_of_parts(chosen), limit, seed)
    in_test, notes = None, chosen.rows.notes
    if layout.split is not None:
        validation = chosen.part == VALIDATION
        notes = (*notes, f"left out {int(validation.sum())} validation rows") if validation.any() else notes
        chosen = chosen.keep(~validation, "validation row")
        in_test = chosen.part == TEST if (chosen.part == TEST).any() else None
    where = rows.root / layout.tables[0].file if len(layout.tables) == 1 else rows.root
    table = Table(str(where), names, chosen.y, chosen.rows.lines, in_test, notes, chosen.rows.left_out)
    wanted = csv.CsvTable(
        label=label.column, site=layout.site, missing=features.missing, min_rows=layout.min_rows,
        small_sites=features.small_sites, classes=layout.classes or None, categories=features.categories,
        standardize=features.standardize, kind=layout.kind,
        labels=label.columns if layout.kind == "labels" else None,
        targets=label.columns if layout.kind == "regression" else None,
        time=label.time, event=label.event, group=layout.group, test_fraction=test_fraction, seed=seed,
    )  # fmt: skip
    return csv.from_table(table, wanted)
