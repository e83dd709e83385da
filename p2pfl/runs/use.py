"""The use of a model after its run: new rows through the very same reading, scaling and decoding as in training."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl.data import new_rows
from p2pfl.data.dataset import Numbers, Recipe, prepared
from p2pfl.data.new_rows import NewRows, NewVolume
from p2pfl.errors import ConfigError, DataError
from p2pfl.learning.batching import chunk
from p2pfl.learning.stitching import Stitching
from p2pfl.learning.targets import TARGETS
from p2pfl.runs import masks, models
from p2pfl.runs.predictions import said_of
from p2pfl.types import Array, Params

_ROWS = 2048
"""Rows that are answered at once."""


class LoadedModel:
    """A model as its run has left it, from rows as their source has them to probabilities.

    Attributes: `kind` of task, `classes` (names of what it puts out), `features` (names of the columns of x, where
    they have any), `shape` (of a row of x), `node` (whose model it is; None: of no single one), `said` (which model it
    is, in words).
    """

    def __init__(self, chosen: models.ChosenModel) -> None:
        about = chosen.about
        self.kind, self.classes, self.features, self.shape = about.kind, about.classes, about.features, about.shape
        self.node, self.answer, self.said = chosen.node, chosen.answer, chosen.said
        self._recipe = about.recipe or Recipe("arrays", {}, Numbers(((0.0,),), ((1.0,),)))  # x is as a function made it
        self._params, self._double = chosen.params, chosen.experiment.training.dtype == "float64"
        self._selector = chosen.selector
        self._dtype, self._run = chosen.experiment.training.dtype, jax.jit(chosen.learner.predict)
        self._sites = about.sites if len(self.numbers.mean) > 1 else ()
        own = None if chosen.node is None else about.nodes.get(chosen.node)
        self._site = 0 if len(self.numbers.mean) == 1 else None if own is None else own.site

    @property
    def numbers(self) -> Numbers:
        """How numbers are filled in and scaled before the model sees them; as they are, where nobody says."""
        return self._recipe.numbers

    def __call__(self, x: Any) -> np.ndarray:
        """Answer rows.

        Args:
            x: [N, ...] numbers as their source has them (pixels, the columns `features` with NaN where a cell is
                missing), or a pandas DataFrame of the columns of the training table.

        Returns:
            [N, C] probabilities of `classes` ([N, H, W, C] of a segmentation); of a regression the numbers, of survival
            [N, 1] the logarithm of the relative risk, of a reconstruction the images [N, H, W, C].

        Raises:
            DataError: rows of another shape, columns that do not fit, or nobody says whose scaling is the rows'.
        """
        if hasattr(x, "itertuples"):
            return self.rows(new_rows.frame(x, self._recipe, self._sites, self.features))
        found = np.asarray(x)
        if found.dtype.kind not in "buif":
            raise DataError(f"x: has dtype {found.dtype}; it must hold numbers, or be a DataFrame")
        if found.shape[1:] != tuple(self.shape) or not found.ndim:
            raise DataError(f"x: has shape {[*found.shape]}; must be [rows, {', '.join(map(str, self.shape))}]")
        return self.rows(NewRows(found.astype(np.float64), {}))

    def read(self, path: Path | str) -> NewRows:
        """Read new rows from a file, or a folder of images. Raises DataError for what does not fit, by name."""
        return new_rows.load(Path(path), self._recipe, self._sites, self.shape, self.features)

    def rows(self, found: NewRows) -> np.ndarray:
        """Answer rows that have been read. Raises DataError where they look as if they were scaled already."""
        x = self.prepared(found)
        with jax.enable_x64(self._double):
            size = chunk(x.shape[1:], _ROWS)
            chunks = [x[at : at + size].astype(self._dtype) for at in range(0, max(len(x), 1), size)]
            outputs = [self._outputs(chunk) for chunk in chunks]
            return np.concatenate([np.asarray(TARGETS[self.kind].answer(each)) for each in outputs])

    @property
    def patched(self) -> bool:
        """Whether it has learned from patches of volumes, which `volumes` answers whole."""
        return new_rows.patched(self._recipe.fields)

    def volumes(self, path: Path | str) -> Iterator[tuple[NewVolume, np.ndarray]]:
        """Answer whole volumes, of a model that has learned from patches of them.

        Args:
            path: a file, or a folder of files, in the format of the training.

        Returns:
            One after another each volume, and the probabilities of its voxels [D, H, W, C]; no other is in memory.

        Raises:
            ConfigError: the model has learned from something else.
            DataError: a file that does not fit, by name, when it comes to it.
        """
        if not self.patched:
            raise ConfigError(f"{self.said}: has not learned from patches of volumes; call it with rows")
        return map(self._whole, new_rows.of_volumes(Path(path), self._recipe, self.shape))

    def _whole(self, volume: NewVolume) -> tuple[NewVolume, np.ndarray]:
        whole = Stitching(volume.x.shape[:3], volume.patch, len(self.classes))
        count = chunk(tuple(self.shape), _ROWS)
        for at in range(0, len(volume.start), count):
            windows, start = volume.windows(at, count)
            whole.add(self.rows(NewRows(windows, {})), start)
        return volume, whole.probabilities()

    def prepared(self, found: NewRows) -> np.ndarray:
        """The numbers [N, ...] float32 that the model gets of rows that have been read. Raises DataError as `rows`."""
        self._judge_scale(found.x)
        return prepared(found.x, self.numbers, self._place(found)).astype(np.float32)

    def _outputs(self, x: np.ndarray) -> Any:
        if self._selector is not None:
            return self._selector.predict(self._params, x)
        return self._run(self._params, jnp.asarray(x))

    def _judge_scale(self, x: np.ndarray) -> None:
        if self._recipe.reader != "arrays" or len(self.numbers.sd[0]) > 1 or not x.size:
            return
        low, white = self.numbers.mean[0][0], self.numbers.mean[0][0] + self.numbers.sd[0][0]
        if low == 0 and white > 2 and x.min() >= 0 and x.max() <= 1 and (x != np.round(x)).any():
            raise DataError(
                f"x: holds fractions of 0 to 1, and this model takes 0 to {white:g}, which it scales itself: give it "
                f"the numbers as their source has them, here {white:g} times as large"
            )

    def _place(self, found: NewRows) -> np.ndarray | int:
        """The site whose scaling is that of each row: what the row says, or else that of the node."""
        if found.place is not None:
            return found.place
        if self._site is None:
            raise DataError(
                "every site has scaled and filled in its own rows, and nobody says of which site these are: name it in "
                f"the column {self._recipe.fields.get('site')!r} of a table ({', '.join(self._sites)}), or say whose "
                "model answers (--node)"
            )
        return self._site

    def function(self) -> Callable[[Array], Array]:
        """The same as one function of jax of x [N, ...], with all that is arithmetic in it. Raises DataError."""
        at = self._place(NewRows(np.zeros((0, *self.shape)), {}))
        assert isinstance(at, int)
        numbers, answer, params, run = self.numbers, TARGETS[self.kind].answer, self._params, self._run

        def of(part: Sequence[Sequence[float]], x: Array) -> Array:
            return jnp.asarray(part[at], x.dtype).reshape(*(1,) * (x.ndim - 1), -1)

        def scaled(x: Array) -> Array:
            known = x if numbers.fill is None else jnp.where(jnp.isnan(x), of(numbers.fill, x), x)
            found = (known - of(numbers.mean, x)) / of(numbers.sd, x)
            return jnp.clip(found, 0, 1) if numbers.clip else found

        def whole(x: Array) -> Array:
            first = numbers.first
            inputs = scaled(x if first is None else x[..., :first])
            return answer(run(params, inputs if first is None else jnp.concatenate([inputs, x[..., first:]], axis=-1)))

        return whole

    @property
    def params(self) -> Params:
        """The model's leaves."""
        return self._params

    @property
    def dtype(self) -> str:
        """The type that it computes in."""
        return str(self._dtype)


def load_model(path: Path | str, node: int | None = None, answer: str | None = None) -> LoadedModel:
    """Load a model that a run has left; the run's directory alone is needed.

    Args:
        path: the directory of a run, of one of its nodes, of a node that was started by hand, or of an export.
        node: whose model. Without it, the only one there is; where every node has a part of the model for itself it
            must be said; else the mean of the models of all that were there at the end, or the first one's where the
            algorithm keeps no mean. `said` of the model says which it is.
        answer: a name of [evaluation] answers that the run has saved, such as "fine_tuned"; None: the model itself.

    Returns:
        The model: called with rows, it returns probabilities.

    Raises:
        ConfigError: there is no such model, and what there is.

    Example:
        >>> import p2pfl
        >>> p2pfl.load_model("runs/no-such-run")
        Traceback (most recent call last):
        ...
        p2pfl.errors.ConfigError: runs/no-such-run: no such directory ...
    """
    return LoadedModel(models.choose(Path(path), node, answer))


def predict(
    path: Path, data: Path, out: Path, node: int | None, answer: str | None, say: Callable[[str], None]
) -> None:
    """Answer the rows of a file (or a folder of images) into a table; where answers are images, into an .npz, or those
    of a reconstruction into a new folder of .png, of volumes in patches into one of .nii.gz.

    Raises ConfigError for what does not fit, before anything is written.
    """
    if out.exists():
        raise ConfigError(f"out={str(out)!r}: is there already; choose another name, or remove it")
    if not out.resolve().parent.is_dir():
        raise ConfigError(f"out={str(out)!r}: no such folder ({out.resolve().parent})")
    model = load_model(path, node, answer)
    _judge_name(out, model)
    if model.patched:
        return masks.write(model, data, out, say)
    found = model.read(data)
    for note in found.notes:
        say(note)
    answers = model.rows(found)
    say(f"{model.said} answers {len(answers)} rows")
    if model.kind in IMAGES:
        if out.suffix != ".npz":
            return _pictures(out, answers, found)
        predicted = answers.argmax(axis=-1) if model.kind == "segmentation" else answers.astype(np.float32)
        named: dict[str, Any] = {f"{name}s": np.asarray(values) for name, values in found.known_as.items()}
        np.savez_compressed(out, classes=np.asarray(model.classes), **named, predicted=predicted)
        return None
    with out.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow((*found.known_as, *columns(model.kind, model.classes)))
        for row, each in enumerate(answers.astype(np.float64)):
            known = [values[row] for values in found.known_as.values()]
            lines.writerow((*known, *_cells(model.kind, model.classes, each)))


IMAGES: Mapping[str, str] = MappingProxyType(
    {
        "segmentation": "an array of masks; give it a name that ends in .npz",
        "reconstruction": "images; give it a name that ends in .npz, or a name without an ending for a folder of .png",
    }
)
"""Kinds whose answers are images -> what is written of them."""


def _judge_name(out: Path, model: LoadedModel) -> None:
    """Raises ConfigError where the name does not say what is written."""
    folders = model.kind == "reconstruction" or model.patched
    arrays, folder = out.suffix == ".npz", folders and not out.suffix
    if (arrays or folder) != (model.kind in IMAGES):
        rule = IMAGES.get(model.kind, "a table; give it a name in .csv")
        rule = masks.RULE if model.patched else rule
        raise ConfigError(f"out={str(out)!r}: predictions of kind {model.kind!r} are {rule}")
    if folder and not model.patched and len(model.classes) not in (1, 3):
        raise ConfigError(
            f"out={str(out)!r}: images of {len(model.classes)} channels are no pictures; give a name that ends in .npz"
        )


def _pictures(folder: Path, images: np.ndarray, found: NewRows) -> None:
    """Write images [N, H, W, 1 or 3] as pictures of 8 bits, 0 black and 1 white, by the names of their rows."""
    from PIL import Image  # here: 40 ms, and other kinds never need it

    folder.mkdir()
    shades = np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)
    width = len(str(len(images)))
    stems = [Path(str(name)).stem for name in found.known_as.get("file", [""] * len(images))]
    for row, (stem, shade) in enumerate(zip(stems, shades, strict=True)):
        picture = Image.fromarray(shade[..., 0] if shade.shape[-1] == 1 else shade)
        picture.save(folder / ("-".join(filter(None, (f"{row:0{width}d}", stem))) + ".png"))


def columns(kind: str, classes: Sequence[str]) -> list[str]:
    """The columns of a table of predictions."""
    more = {"classes": ["predicted"], "labels": [f"predicted_{name}" for name in classes], "survival": ["risk"]}
    return [*said_of(kind, classes), *more.get(kind, [])]


def _cells(kind: str, classes: Sequence[str], row: np.ndarray) -> list[Any]:
    numbers = [float(f"{value:.7g}") for value in row]
    match kind:
        case "classes":
            return [*numbers, classes[int(row.argmax())]]
        case "labels":
            return [*numbers, *(int(value > 0.5) for value in row)]
        case "survival":
            return [*numbers, float(f"{np.exp(row[0]):.7g}")]
    return numbers
