"""`p2pfl explain RUN`: what the answers of the federation's model rest on, at every site.

    RUN/explanations/explanations.json   which model, the columns' importance, how complete the attributions are
    RUN/explanations/explanations.npz    the rows that are shown, and for each what every method finds

Of images a few rows of each site are shown, of tables all test rows count; of columns with a picture both, where the
picture counts as one more column. Nothing of it is needed by anything else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2pfl.config import experiment as config
from p2pfl.data.partition import names
from p2pfl.data.stored import part
from p2pfl.errors import ConfigError
from p2pfl.federation.federation import build, precision
from p2pfl.learning import attribution, metrics
from p2pfl.methods.answers import SELECTOR
from p2pfl.runs import models, use
from p2pfl.types import Array

FOLDER, TABLE, ARRAYS = "explanations", "explanations.json", "explanations.npz"
FIGURE = {"classes": "auc", "labels": "auc", "regression": "r2", "survival": "c_index"}
"""The figure whose fall says how much a column matters, by kind of task."""
AVERAGED = 200
"""Rows of a table, at most, over which the size of integrated gradients is averaged; those that are shown, with a
picture."""
PICTURE = "(picture)"
"""What the picture beside columns is called among them."""


class Question(NamedTuple):
    """What is to be explained, and how."""

    data: Path | None = None  # rows of a file instead of the run's own test rows
    node: int | None = None
    answer: str | None = None
    of: str | None = None  # the class or label whose odds are explained; None: of each row the one that is predicted
    rows: int = 4  # of images, of each site
    repeats: int = 10  # shuffles of each column
    seed: int = 0


class Explained(NamedTuple):
    """What is found out of a site's rows."""

    table: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


class SiteSample(NamedTuple):
    """The rows of a site that are explained."""

    name: str
    node: int | None  # whose rows they are; None: of a file
    x: np.ndarray  # [N, ...] as the model gets them
    y: np.ndarray | None  # None where the outcome is not known


def explain(
    run: Path, asked: Question, out: Path | None = None, say: Callable[[str], None] = lambda text: None
) -> Path:
    """Explain a run's model on the test rows of each site, or on the rows of a file.

    Args:
        run: the directory of a run.
        asked: what is explained, and how.
        out: directory to write to; RUN/explanations unless given.
        say: takes a line of progress.

    Returns:
        The directory.

    Raises:
        ConfigError: there is no such model, class or row, or the run's rows are not here.
    """
    if asked.answer == SELECTOR:
        raise ConfigError("answer='selector': is several models; name one, such as personal, with --node")
    saved = models.find(run)
    about = saved.about
    if about.kind == "reconstruction":
        raise ConfigError(
            f"{run}: this model answers with images, of which there is nothing to explain; explained are classes, "
            "labels, numbers, risks and masks"
        )
    of = _place(about, asked.of)
    sites = _of_file(run, asked) if asked.data else _of_run(run, about, asked, saved.within)
    common = asked.node is None and asked.answer is None and models.common(run)
    table: dict[str, Any] = {
        "kind": about.kind, "classes": list(about.classes), "of": asked.of, "figure": FIGURE.get(about.kind),
        "seed": asked.seed, "repeats": asked.repeats, "features": list(about.features), "sites": {},
    }  # fmt: skip
    arrays: dict[str, np.ndarray] = {}
    for group in [sites] if common else [[site] for site in sites]:
        node = None if common else asked.node if group[0].node is None else group[0].node
        chosen = models.choose(run, node, asked.answer)
        for site in group:
            say(f"{site.name}: {len(site.x)} rows, {chosen.said}")
        dtype = chosen.experiment.training.dtype
        with jax.enable_x64(dtype == "float64"):
            whole = [site._replace(x=site.x.astype(dtype)) for site in group]
            explained = _both if about.picture else _pictures if group[0].x.ndim > 2 else _columns
            for site, told in zip(group, explained(chosen, whole, of, asked), strict=True):
                table["sites"][site.name] = {"model": chosen.said, "rows": len(site.x), **told.table}
                arrays |= {f"{site.name}/{name}": values for name, values in told.arrays.items()}
    out = out or run / FOLDER
    out.mkdir(parents=True, exist_ok=True)
    (out / TABLE).write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    np.savez_compressed(out / ARRAYS, **arrays)  # type: ignore[arg-type]
    return out


def _place(about: models.ModelFacts, of: str | None) -> int | None:
    """The place of the class that is asked for. Raises ConfigError."""
    if of is None:
        return None
    if about.kind == "survival" or of not in about.classes:
        there = "the logarithm of the risk alone" if about.kind == "survival" else ", ".join(about.classes)
        raise ConfigError(f"class={of!r}: this model does not tell of that; it tells of {there}")
    return about.classes.index(of)


def _of_file(run: Path, asked: Question) -> list[SiteSample]:
    """The rows of a file. Raises ConfigError, DataError."""
    assert asked.data is not None
    model = use.load_model(run, asked.node, asked.answer)
    found = model.read(asked.data)
    if not len(found.x):
        raise ConfigError(f"data={str(asked.data)!r}: holds no row; there is nothing to explain")
    return [SiteSample(asked.data.name, None, model.prepared(found), None)]


def _of_run(run: Path, about: models.ModelFacts, asked: Question, within: int | None) -> list[SiteSample]:
    """The test rows of each node, or of one. Raises ConfigError."""
    file = run / "experiment.toml"
    if not file.is_file():
        raise ConfigError(
            f"{run}: has no experiment.toml, which says where its rows are; give rows, as in --data new.csv"
        )
    experiment = config.load(file)
    precision(experiment)
    federation = build(experiment)
    dataset, parts = federation.dataset, federation.partition
    node = within if asked.node is None else asked.node
    wanted = [each for each in about.nodes if node in (None, each)]
    called = names(parts, dataset)
    tested = {each: parts.test[each] for each in wanted if len(parts.test[each])}
    if not tested:
        raise ConfigError(f"{run}: node={node}: has no test rows; give rows, as in --data new.csv")
    x, y = dataset.test.x, dataset.test.y
    return [SiteSample(called[each], each, part(x, rows), part(y, rows)) for each, rows in tested.items()]


# --- the number that is explained


def _score(kind: str, target: Array) -> Callable[[Array], Array]:
    """Of outputs [N, ...] of one row each, the number that is explained: [N].

    Of classes and labels the log odds of the target, of a regression the target, of survival the logarithm of the risk;
    of a segmentation the mean of the log odds of the target over the pixels where it is the likeliest.
    """

    def odds(outputs: Array) -> Array:
        """Log odds of the target against all others, over the last axis."""
        others = jnp.where(jnp.arange(outputs.shape[-1]) == target, -jnp.inf, outputs)
        at = jnp.take(outputs, target, axis=-1)
        return at if outputs.shape[-1] == 1 else at - jax.nn.logsumexp(others, axis=-1)

    def score(outputs: Array) -> Array:
        if kind == "classes":
            return odds(outputs)
        if kind == "segmentation":
            there = jax.lax.stop_gradient(outputs.argmax(axis=-1) == target).astype(outputs.dtype)
            axes = tuple(range(1, there.ndim))
            return (odds(outputs) * there).sum(axis=axes) / jnp.maximum(there.sum(axis=axes), 1)
        return jnp.take(outputs, target, axis=-1)

    return score


def _targets(kind: str, outputs: np.ndarray, of: int | None) -> np.ndarray:
    """[N] int32: the output of each row that is explained: the one asked for, or the one that is predicted."""
    if of is not None:
        return np.full(len(outputs), of, np.int32)
    if kind == "segmentation":  # what covers most of the picture but the background
        flat = outputs.argmax(axis=-1).reshape(len(outputs), -1)
        return np.array([np.bincount(row, minlength=outputs.shape[-1])[1:].argmax() + 1 for row in flat], np.int32)
    return np.asarray(outputs.argmax(axis=-1), np.int32)


# --- pictures


def _pictures(
    chosen: models.ChosenModel, sites: Sequence[SiteSample], of: int | None, asked: Question
) -> list[Explained]:
    """Attributions of a few rows of each site, each for its own class, from black."""
    kind, classes, learner = chosen.about.kind, chosen.about.classes, chosen.learner
    order = [np.random.default_rng(asked.seed).permutation(len(site.x)) for site in sites]
    picked = [np.sort(each[: asked.rows]) for each in order]
    whole_rows = np.concatenate([site.x[rows] for site, rows in zip(sites, picked, strict=True)])
    target = _targets(kind, np.asarray(jax.jit(learner.predict)(chosen.params, jnp.asarray(whole_rows))), of)
    x = _laid_out(whole_rows, chosen)
    shown = x[..., : chosen.about.picture[-1]] if chosen.about.picture else x
    black = np.concatenate([np.full_like(shown, min(float(shown.min()), 0.0)), x[..., shown.shape[-1] :]], axis=-1)
    size = max(x.shape[1] // 7, 1)
    found: dict[str, np.ndarray] = {}
    change, off = np.zeros(len(x)), np.zeros(len(x))
    for place in np.unique(target):  # a function is compiled once for all rows of a class
        rows = np.flatnonzero(target == place)
        whole = partial(_whole, chosen, _score(kind, jnp.asarray(place)))
        integrated = attribution.integrated_gradients(whole, x[rows], black[rows])
        change[rows], off[rows] = integrated.change, integrated.off
        parts = {
            "integrated": integrated.values.sum(axis=-1),
            "occlusion": attribution.occlusion(whole, x[rows], black[rows], size, max(size // 2, 1)),
        }
        if learner.maps is not None:
            parts["grad_cam"] = attribution.grad_cam(partial(_maps, chosen, _score(kind, jnp.asarray(place))), x[rows])
        for name, values in parts.items():
            found.setdefault(name, np.zeros((len(x), *values.shape[1:]), np.float32))[rows] = values
    told, at = [], 0
    for site, rows in zip(sites, picked, strict=True):
        part = slice(at, at := at + len(rows))
        truth = {} if site.y is None or kind != "classes" else {"truth": site.y[rows].astype(np.int32)}
        table = {
            "shown": rows.tolist(),
            "target": [classes[each] if classes else "" for each in target[part].tolist()],
            "completeness": [
                {"change": a, "off": b} for a, b in zip(change[part].tolist(), off[part].tolist(), strict=True)
            ],
            "square": size,
        }
        arrays = {"x": shown[part].astype(np.float32), "target": target[part], **truth}
        told.append(Explained(table, {**arrays, **{name: values[part] for name, values in found.items()}}))
    return told


def _whole(chosen: models.ChosenModel, score: Callable[[Array], Array], rows: Array) -> Array:
    return score(chosen.learner.predict(chosen.params, _flat(rows, chosen.about)))


def _laid_out(rows: np.ndarray, chosen: models.ChosenModel) -> np.ndarray:
    """Rows as images: of columns and a picture [N, H, W, C + P], each column a plane behind the picture's channels.

    So a picture can be changed by itself, while the columns of its row stay. What is missing is filled in as the model
    does it.
    """
    about = chosen.about
    if not about.picture:
        return rows
    columns, pixels = np.split(rows, [len(about.features)], axis=1)
    if np.isnan(columns).any():  # which only a model stands that knows the means of all data
        columns = np.where(np.isnan(columns), np.asarray(chosen.params["statistics"]["moments"]["mean"]), columns)
    picture = pixels.reshape(len(rows), *about.picture)
    planes = np.broadcast_to(columns[:, None, None], (*picture.shape[:-1], columns.shape[1]))
    return np.concatenate([picture, planes], axis=-1)


def _flat(x: Array, about: models.ModelFacts) -> Array:
    """The rows that `_laid_out` has laid out, as the model takes them; others as they are."""
    if not about.picture or x.ndim == 2:
        return x
    channels = about.picture[-1]
    return jnp.concatenate([x[:, 0, 0, channels:], x[..., :channels].reshape(x.shape[0], -1)], axis=1)


def _both(chosen: models.ChosenModel, sites: Sequence[SiteSample], of: int | None, asked: Question) -> list[Explained]:
    """What is found in the pictures of a few rows, and the importance of each column and of the picture."""
    found = zip(_columns(chosen, sites, of, asked), _pictures(chosen, sites, of, asked), strict=True)
    return [
        Explained(
            {**columns.table, "completeness_of_columns": columns.table["completeness"], **pictures.table},
            {**columns.arrays, **pictures.arrays},
        )
        for columns, pictures in found
    ]


def _maps(
    chosen: models.ChosenModel, score: Callable[[Array], Array], rows: Array
) -> tuple[Array, Callable[[Array], Array]]:
    assert chosen.learner.maps is not None
    found, rest = chosen.learner.maps(chosen.params, rows)
    return found, lambda a: score(rest(a))


# --- columns


def _columns(
    chosen: models.ChosenModel, sites: Sequence[SiteSample], of: int | None, asked: Question
) -> list[Explained]:
    """Importance of each column for the figure on each site's rows, and the mean size of integrated gradients."""
    run = jax.jit(chosen.learner.predict)

    def outputs(x: np.ndarray) -> np.ndarray:
        return np.asarray(run(chosen.params, jnp.asarray(x)))

    return [_columns_of(chosen, site, outputs, of, asked) for site in sites]


def _columns_of(
    chosen: models.ChosenModel,
    site: SiteSample,
    outputs: Callable[[np.ndarray], np.ndarray],
    of: int | None,
    asked: Question,
) -> Explained:
    kind, classes = chosen.about.kind, chosen.about.classes
    groups = grouped(chosen.about.features or tuple(f"column {i}" for i in range(site.x.shape[1])))
    many = AVERAGED
    if chosen.about.picture:  # one row costs as much as hundreds of a table
        groups[PICTURE], many = [*range(len(chosen.about.features), site.x.shape[1])], asked.rows
    some = site.x[np.sort(np.random.default_rng(asked.seed).permutation(len(site.x))[:many])]
    whole_site = site.x if chosen.about.picture else some
    known = np.isfinite(whole_site)
    middle = np.where(known, whole_site, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    known = np.isfinite(some)
    some = np.where(known, some, middle[None]).astype(site.x.dtype)  # what nobody knows speaks for nothing
    target = _targets(kind, outputs(some), of)
    sizes, off = np.zeros(some.shape[1]), 0.0
    for place in np.unique(target):
        whole = partial(_whole, chosen, _score(kind, jnp.asarray(place)))
        found = attribution.integrated_gradients(whole, some[target == place], middle)
        sizes += np.abs(found.values).sum(axis=0) / len(some)
        off = max(off, float((found.off / np.maximum(np.abs(found.change), 1)).max()))
    table: dict[str, Any] = {
        "columns": list(groups),
        "integrated": [float(sizes[places].sum()) for places in groups.values()],
        "completeness": off,
    }
    if site.y is None or kind not in FIGURE:
        return Explained(table, {})
    y = site.y

    def figure(x: np.ndarray) -> float | None:
        return metrics.assess(kind, outputs(x), y, classes)[FIGURE[kind]]

    found_out = attribution.permutation_importance(figure, site.x, [*groups.values()], asked.repeats, asked.seed)
    spread = {"importance": found_out.mean, "sd": found_out.sd}
    numbers = {name: [None if np.isnan(each) else float(each) for each in row] for name, row in spread.items()}
    return Explained({**table, "value": found_out.figure, **numbers}, {})


def grouped(features: Sequence[str]) -> dict[str, list[int]]:
    """The columns of a table by name, each with its places in x: of a category those of all its values."""
    found: dict[str, list[int]] = {}
    for place, name in enumerate(features):
        found.setdefault(name.split("=", 1)[0], []).append(place)
    return found
