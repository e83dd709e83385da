"""New rows, read as those were that a model has learned from: the same columns, categories, units of pixels and shapes.

What they need to be read by is a `Recipe`, which the source of the training rows leaves, so that its files may be gone.
What is to be predicted may be missing, and other columns are left out with a note; what does not fit is refused by
name. Scaling and filling in are arithmetic, and come after (`p2pfl.data.dataset.prepared`).
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter

from p2pfl.data import csv, pictures, volumes
from p2pfl.data.columns import NOT_APPLICABLE, Coding, encode
from p2pfl.data.csv import CsvTable
from p2pfl.data.dataset import Recipe
from p2pfl.data.derive import Derived, derived
from p2pfl.data.geometry import Grid
from p2pfl.data.layout import Label, Layout, Pixels
from p2pfl.data.npz import images
from p2pfl.data.numerals import normalized
from p2pfl.data.pictures import RowPicture
from p2pfl.data.pixels import Arrays, Entry, add, arrays
from p2pfl.data.rows import filled, listing, pattern
from p2pfl.data.table import Table, is_number, of_frame, read, same
from p2pfl.data.volumes import VolumeTable
from p2pfl.errors import DataError

KEYS = ("images", "x", "test_images")
"""Arrays of an .npz that rows are taken from: the first that is there."""
SUFFIXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "image": (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp"),
        "nifti": (".nii", ".nii.gz"),
        "mhd": (".mhd", ".mha"),
        "npy": (".npy",),
    }
)
"""Format of a layout -> the names of its files; of others, every file."""


class NewRows(NamedTuple):
    """Rows to predict, before anything is filled in or scaled."""

    x: np.ndarray  # [N, ...] float64; NaN where a cell is missing
    known_as: Mapping[str, Sequence[Any]]  # column -> [N]: how a person finds a row again
    place: np.ndarray | None = None  # [N] index of the site whose scaling is the row's; None: nobody says
    notes: tuple[str, ...] = ()


class NewVolume(NamedTuple):
    """A volume to answer window by window."""

    file: str  # below the folder that was given
    x: np.ndarray  # [D, H, W, C] float32, in the frame and spacing of the training
    patch: tuple[int, int, int]
    start: np.ndarray  # [n, 3]: the first voxels of its windows
    affine: np.ndarray | None  # [4, 4]: its index -> mm to the right, anterior, superior; None: nobody says
    grid: Grid | None  # the voxels of its file
    notes: tuple[tuple[str, str], ...]  # as ReadImage has them

    def windows(self, at: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """So many windows from number `at` on, [n, *patch, C], and where they begin [n, 3]."""
        start = self.start[at : at + count]
        return np.stack([volumes.patch_of(self.x, first, self.patch) for first in start]), start


def load(path: Path, recipe: Recipe, sites: Sequence[str], shape: Sequence[int], features: Sequence[str]) -> NewRows:
    """Read a file, or a folder of images, by a recipe. `shape` (of a row of x), `features`: of the data set.

    `sites`: those whose scaling differs; none where all rows are scaled alike.

    Raises DataError that names file, column, line or shape of what does not fit.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder ({path.resolve()})")
    found = READERS[recipe.reader](path, recipe.fields, sites, features)
    if found.x.shape[1:] != tuple(shape):
        raise DataError(f"{path}: rows of shape {[*found.x.shape[1:]]}; the model takes rows of shape {[*shape]}")
    return found


# --- tables


def of_table(path: Path, fields: Mapping[str, Any], sites: Sequence[str], features: Sequence[str]) -> NewRows:
    """Rows of a table: .csv, .xlsx, .parquet."""
    text = path.suffix.lower() not in (".xlsx", ".xlsm", ".parquet")
    if path.is_dir() or path.suffix.lower() == ".npz":
        raise DataError(f"{path}: the model has learned from a table; give a .csv, .xlsx or .parquet with its columns")
    sheet = fields["sheet"] if path.suffix.lower() in (".xlsx", ".xlsm") else None
    table = read(path, ("",), (), fields["delimiter"] if text else None, fields["encoding"] if text else None, sheet)
    return coded(table, fields, sites, features)


def frame(given: Any, recipe: Recipe, sites: Sequence[str], features: Sequence[str]) -> NewRows:
    """Rows of a pandas DataFrame. Raises DataError where the model has not learned from a table."""
    if recipe.reader == "table":
        return coded(of_frame(given), recipe.fields, sites, features)
    if recipe.reader == "files" or not features:
        raise DataError("x: is a table, and the model has learned from arrays without names; give it an array")
    return coded(of_frame(given), _numbers(features), sites, features)


def coded(table: Table, fields: Mapping[str, Any], sites: Sequence[str], features: Sequence[str]) -> NewRows:
    """The numbers of a table's cells, and the pictures that it names. `features`: names of the columns of x."""
    given = fields.get("picture")  # which a run of an earlier version does not say
    pictured: RowPicture | None = given and TypeAdapter(RowPicture).validate_json(json.dumps(given))
    derive = {name: TypeAdapter(Derived).validate_json(json.dumps(each)) for name, each in fields["derive"].items()}
    table, needed = _named(table, fields, derive)
    table = table if pictured is None else pictures.with_files(table, pictured, "error")
    table = _cleaned(table, needed, fields)
    own = {name: derive[name] for name in _wanted(fields["features"], derive) if name in derive}
    table = derived(table, own, fields["dates"])
    coding = Coding(
        fields["categories"], fields["reference"], fields["marked"], [*fields["not_applicable"]], fill=False
    )
    _judge_kinds(table, fields["features"], coding)
    table = _judge_gaps(table, fields["features"], fields["missing"])
    place = np.zeros(len(table.cells), np.int32)
    made = encode(table, fields["features"], coding, place, ())
    if made.names != tuple(features):
        raise DataError(f"{table.where}: makes the columns {made.names}, and the model has {tuple(features)}")
    x, notes = made.x, table.notes
    if pictured is not None:
        beside = pictures.read(table, pictured, tuple(fields["picture_shape"]))
        x, notes = np.concatenate([x, beside.x], axis=1), (*notes, *beside.notes)
    return NewRows(x, {"line": table.lines.tolist()}, _places(table, fields["site"], sites), notes)


def _wanted(features: Sequence[str], derive: Mapping[str, Derived]) -> list[str]:
    """The features, and the derived columns that they are made of, in the order in which those can be made."""
    found: dict[str, None] = {}

    def add(name: str, seen: tuple[str, ...]) -> None:
        for source in derive[name].sources if name in derive and name not in seen else ():
            add(source, (*seen, name))
        found[name] = None

    for name in features:
        add(name, ())
    return [*found]


def _named(table: Table, fields: Mapping[str, Any], derive: Mapping[str, Derived]) -> tuple[Table, list[str]]:
    """The table by the names of the training rows, and which of its columns are needed. Raises DataError."""
    rename = {old: new for old, new in fields["rename"].items() if old in table.names and new not in table.names}
    table = table._replace(names=tuple(rename.get(name, name) for name in table.names))
    wanted = _wanted(fields["features"], derive)
    sources = {source for name in wanted if name in derive for source in derive[name].sources}
    needed = [name for name in wanted if name not in derive or name in sources & {*table.names}]
    lacking = [name for name in needed if name not in table.names]
    if lacking:
        was = {new: old for old, new in fields["rename"].items()}
        said = ", ".join(repr(was.get(name, name)) for name in lacking)
        raise DataError(
            f"{table.where}: lacks the column{'s' * (len(lacking) > 1)} {said}, from which the model has learned; "
            f"it has {', '.join(map(repr, table.names))}"
        )
    others = (fields["site"], (fields.get("picture") or {}).get("column"))
    extra = [name for name in table.names if name not in needed and name not in others]
    notes = (f"not used: {', '.join(map(repr, extra))}",) if extra else ()
    return table._replace(notes=(*table.notes, *notes)), needed


def _cleaned(table: Table, needed: Sequence[str], fields: Mapping[str, Any]) -> Table:
    """The table with one word for what is missing, and numbers as a program writes them."""
    site = fields["site"]
    used = [*needed, *([site] if site in table.names else [])]
    words = fields["missing_values"]
    own = {name: each for name, each in words.items() if name in used} if isinstance(words, Mapping) else words
    outside = {name: each for name, each in fields["not_applicable"].items() if name in used}
    categories = {name: fields["categories"][name] for name in fields["named"] if name in used}
    wanted = CsvTable(missing_values=own, not_applicable=outside, categories=categories)
    table = csv.cleaned(table, used, wanted, ())
    texts = {name for name, values in categories.items() if not all(is_number(str(each)) for each in values)}
    return normalized(table, [name for name in needed if name not in texts], fields["decimal"], (NOT_APPLICABLE,))


def _judge_kinds(table: Table, features: Sequence[str], coding: Coding) -> None:
    """Raises DataError, a line for each column, for cells that are no numbers, and values that nobody has seen."""
    faults = []
    for name in features:
        cells = [str(cell) for cell in table.column(name)]
        if name in coding.categories:
            known = {same(value) for value in coding.categories[name]} | {same(NOT_APPLICABLE)}
            folded = {str(value).strip().casefold() for value in coding.categories[name]}
            wrong = [cell for cell in cells if cell and same(cell) not in known and cell.casefold() not in folded]
            rule = f"the model knows {', '.join(repr(str(value)) for value in coding.categories[name])}"
        else:
            spared = ("", NOT_APPLICABLE) if name in coding.outside else ("",)
            wrong = [cell for cell in cells if cell not in spared and not is_number(cell)]
            rule = "it was a column of numbers when the model learned"
        if wrong:
            line = table.lines[cells.index(wrong[0])]
            values = ", ".join(map(repr, dict.fromkeys(wrong)))
            faults.append(f"{table.where}: column {name!r} holds {values} (line {line}); {rule}")
    if faults:
        raise DataError("\n".join(faults))


def _judge_gaps(table: Table, features: Sequence[str], missing: str) -> Table:
    """Refuse or leave out rows with missing cells, where the training rows had none."""
    gaps = {name: table.column(name) == "" for name in features}
    counts = {name: int(gap.sum()) for name, gap in gaps.items() if gap.any()}
    if not counts or missing in ("mean", "gossip"):
        return table
    said = ", ".join(f"{name!r} ({count})" for name, count in counts.items())
    gone = np.any([*gaps.values()], axis=0)
    if missing == "error" or gone.all():
        raise DataError(
            f"{table.where}: missing cells in {said}, first in line {table.lines[int(np.argmax(gone))]}; the model has "
            "learned from rows without any (data.missing). Fill them in, or leave such rows out"
        )
    return table.keep(~gone, f"left out {int(gone.sum())} rows with missing cells in {said}, as in training")


def _places(table: Table, site: str | None, sites: Sequence[str]) -> np.ndarray | None:
    """The site of each row, [N], where the table says it."""
    if site not in table.names or not sites:
        return None
    cells, known = table.column(site), {name: index for index, name in enumerate(sites)}
    strange = [cell for cell in dict.fromkeys(cells) if cell not in known]
    if strange:
        raise DataError(
            f"{table.where}: column {site!r} holds {', '.join(map(repr, strange))}; the model has learned from "
            f"{', '.join(map(repr, sites))}. Leave the column out, and say whose model answers (--node)"
        )
    return np.array([known[cell] for cell in cells], np.int32)


# --- arrays and images


def _numbers(features: Sequence[str]) -> dict[str, Any]:
    """The fields of a table of plain numbers."""
    return {
        "features": [*features],
        **dict.fromkeys(("site", "dates", "decimal", "delimiter", "encoding", "sheet")),
        **{name: {} for name in ("rename", "derive", "not_applicable", "categories")},
        **dict.fromkeys(("missing_values", "named", "marked"), ()),
        "missing": "error",
        "reference": False,
    }


def of_arrays(path: Path, fields: Mapping[str, Any], sites: Sequence[str], features: Sequence[str]) -> NewRows:
    """Rows of an .npz; where the columns of x have names, also of a table of numbers."""
    if path.suffix.lower() in (".csv", ".xlsx", ".xlsm", ".parquet") and features:
        return of_table(path, _numbers(features), sites, features)
    if path.is_dir() or not zipfile.is_zipfile(path) or path.suffix.lower() != ".npz":
        raise DataError(f"{path}: the model has learned from arrays; give an .npz with one of {', '.join(KEYS)}")
    try:
        with np.load(path, allow_pickle=False) as found:
            key = next((name for name in KEYS if name in found.files), None)
            if key is None:
                raise DataError(f"{path}: holds {', '.join(found.files)}; rows are looked for in {', '.join(KEYS)}")
            x, others = images(found[key], key, str(path)), [name for name in found.files if name != key]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as exc:
        raise DataError(f"{path}: the file is damaged or can't be read: {exc}") from exc
    notes = (f"rows of {key}; not used: {', '.join(others)}",) if others else ()
    return NewRows(x.astype(np.float64), {"row": range(len(x))}, None, notes)


def of_files(path: Path, fields: Mapping[str, Any], sites: Sequence[str], features: Sequence[str]) -> NewRows:
    """Rows of an image, or of all images below a folder; of a volume, as many as it is cut into."""
    layout, entries = _listed(path, fields)
    x: list[np.ndarray] = []
    owner: list[str] = []
    part: list[int] = []
    said: dict[str, list[str]] = {}
    for name, entry in entries.items():
        found = arrays(layout, entry)
        for what, where in found.notes:
            said.setdefault(what, []).append(where)
        rows = found.x
        if patched(fields):
            volume = _volume(layout, found, name)
            rows = [*volume.windows(0, len(volume.start))[0]]
        for index, array in enumerate(rows):
            add(x, array, entry.files[0], entries[owner[0] if owner else name].files[0])
            owner.append(name)
            part.append(index)
    notes = tuple(f"{what}: {len(places)}, such as {places[0]}" for what, places in said.items())
    if not x:
        raise DataError(f"{path}: no file holds an image{': ' if notes else ''}{'; '.join(notes)}")
    whole = np.stack(x)
    return NewRows(whole if patched(fields) else whole.astype(np.float64), {"file": owner, "part": part}, None, notes)


def patched(fields: Mapping[str, Any]) -> bool:
    """Whether a model of such a recipe answers volumes window by window."""
    return fields.get("layout", {}).get("volume", {}).get("patch") is not None


def of_volumes(path: Path, recipe: Recipe, shape: Sequence[int]) -> Iterator[NewVolume]:
    """Volumes of a file, or of all files below a folder, one after another, none of which is kept.

    `recipe`: that of a `patched` model; `shape`: of a row of x. Raises DataError that names the file of what does not
    fit, when it comes to it.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder ({path.resolve()})")
    layout, entries = _listed(path, recipe.fields)
    for name, entry in entries.items():
        found = arrays(layout, entry)
        if not found.x:
            raise DataError(f"{entry.files[0]}: holds no image; leave it out of the folder")
        whole = _volume(layout, found, name)
        if whole.x.shape[3] != shape[-1]:
            raise DataError(f"{entry.files[0]}: has {whole.x.shape[3]} channels; the model takes {shape[-1]}")
        yield whole


def _volume(layout: Layout, found: Arrays, name: str) -> NewVolume:
    assert layout.volume is not None and layout.volume.patch is not None
    x, patch = found.x[0], layout.volume.patch
    start = volumes.windows(x.shape[:3], patch, layout.volume.overlap)
    return NewVolume(name, x, patch, start, found.affine, found.grid, found.notes)


def _listed(path: Path, fields: Mapping[str, Any]) -> tuple[Layout, dict[str, Entry]]:
    """By which layout new rows are read, and the files of each, by the name of the first. Raises DataError for none."""
    pixels: Pixels = TypeAdapter(Pixels).validate_json(json.dumps(fields["layout"]["pixels"]))
    form = fields["layout"]["format"]
    if pixels.frames:
        raise DataError(
            f"{path}: the model takes frames of a file, and a folder of new ones does not say which; give arrays to "
            "p2pfl.load_model in Python"
        )
    given = fields["layout"].get("volume")
    volume: VolumeTable | None = None if given is None else TypeAdapter(VolumeTable).validate_json(json.dumps(given))
    layout = Layout("new rows", "", "classes", form, Label(column=""), pixels=pixels, volume=volume)
    if len(pixels.channels) > 1:
        return layout, _channels(path, pixels.channels)
    ends = SUFFIXES.get(form, ("",))
    names = [path.name] if path.is_file() else [name for name in listing(path) if name.lower().endswith(ends)]
    if not names:
        raise DataError(f"{path}: no file that is read as {form} ({', '.join(ends)})")
    if fields["layout"].get("series"):
        if path.is_file():
            raise DataError(f"{path}: a row is a folder that holds the slices of a series; give one, or one of several")
        names = [*dict.fromkeys(str(Path(name).parent) for name in names)]
    root = path.parent if path.is_file() else path
    return layout, {name: Entry((root / name,)) for name in names}


def _channels(root: Path, templates: Sequence[str]) -> dict[str, Entry]:
    """The files of rows that have one for each channel, called as those of the training were."""
    if any("*" in template for template in templates):
        raise DataError(f"{root}: files are found by {templates[0]!r}; give arrays to p2pfl.load_model in Python")
    fits, entries = pattern(templates[0]), {}
    for name in listing(root) if root.is_dir() else ():
        cells = fits(name)
        if cells is None:
            continue
        entries[name] = Entry(tuple(root / filled(template, cells) for template in templates))
        lacking = next((file for file in entries[name].files if not file.exists()), None)
        if lacking is not None:
            raise DataError(f"{lacking}: no such file, and {root / name} is there; a row is {', '.join(templates)}")
    if not entries:
        raise DataError(f"{root}: a row is {', '.join(templates)}; give the folder in which such files lie")
    return entries


READERS: Mapping[str, Callable[[Path, Mapping[str, Any], Sequence[str], Sequence[str]], NewRows]] = MappingProxyType(
    {"table": of_table, "arrays": of_arrays, "files": of_files}
)
"""Recipe.reader -> what reads such rows."""
