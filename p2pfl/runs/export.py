"""A model for others: one directory with its weights in a format of theirs, what it needs to be used, and its card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from p2pfl.errors import USER_FAULTS, ConfigError, nearest
from p2pfl.node import model_file
from p2pfl.reporting import model_card
from p2pfl.reporting.model_card import Carded
from p2pfl.runs import models
from p2pfl.runs.models import ChosenModel, ModelFacts
from p2pfl.runs.run import fresh
from p2pfl.runs.use import LoadedModel
from p2pfl.tree import named_leaves
from p2pfl.types import Params

CARD = "model-card.md"
PLATFORMS = ("cpu", "cuda", "tpu")
"""What an exported function runs on."""
_CLOSE = 1e-4
"""How far an ONNX model may be from what it was made of."""
_OTHERS = ("churn", "network", "virtual", "evaluation", "driver")
"""Tables of an experiment that a model has no need of: they are left out, or what they are without a word."""


def export(path: Path, to: str, out: Path, node: int | None = None, answer: str | None = None) -> str:
    """Export a model of a run into the directory `out`, which must be new or empty; returns which it is, in words.

    Raises ConfigError for what is not there or can't be exported; then nothing is left behind that was not there.
    """
    if to not in FORMATS:
        raise ConfigError(f"to={to!r}: {nearest(to, FORMATS)}")
    fresh(out)
    chosen = models.choose(path, node, answer)
    if chosen.selector is not None:
        raise ConfigError(
            "answer='selector': is a choice among models, row by row, and no model; export those, by node"
        )
    chosen = models.plain(chosen)
    model = LoadedModel(chosen)
    write = FORMATS[to](model, chosen)
    out.mkdir(parents=True, exist_ok=True)
    write(out)
    facts = narrowed(chosen)
    facts.write(out)
    found = {name: _table(chosen.directory / f"{name}.json") for name in ("assessment", "summary")}
    card = Carded(chosen.said, chosen.node, chosen.answer, to, out.name, model.dtype)
    whole = json.loads((out / models.FILE).read_text("utf-8"))
    (out / CARD).write_text(model_card.text(card, whole, **found), "utf-8")
    return chosen.said


def _table(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except ValueError:
        return {}
    return found


def narrowed(chosen: ChosenModel) -> ModelFacts:
    """What must be known to use one model: nothing of other sites, and not where files lie."""
    about, node = chosen.about, chosen.node
    experiment = {name: table for name, table in about.experiment.items() if name not in _OTHERS}
    private = ("path", "root", "layout", "dictionary")
    data = {name: value if name not in private else Path(str(value)).name for name, value in
            about.experiment["data"].items()}  # fmt: skip
    experiment["data"] = _placeless(data)
    begin = ("weights", "rename", "fresh")  # it is what has come of them
    experiment["model"] = {name: value for name, value in experiment["model"].items() if name not in begin}
    topology = dict(experiment["topology"])
    if "file" in topology:
        topology["file"] = Path(str(topology["file"])).name
    experiment["topology"] = topology
    recipe = about.recipe and about.recipe._replace(fields=_placeless(about.recipe.fields))
    found = about._replace(experiment=experiment, said=chosen.said, node=node, recipe=recipe)
    if node is None:
        return found
    own = about.nodes.get(node)
    found = found._replace(nodes={node: own} if own else {})
    if own is None or own.site is None or recipe is None or len(recipe.numbers.mean) == 1:
        return found
    numbers, here = recipe.numbers, slice(own.site, own.site + 1)
    fill = None if numbers.fill is None else numbers.fill[here]
    numbers = numbers._replace(mean=numbers.mean[here], sd=numbers.sd[here], fill=fill)
    return found._replace(sites=(), recipe=recipe._replace(numbers=numbers))


def _placeless(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a table, without where on this machine its pictures lie: new ones begin at their own table."""
    picture = fields.get("picture")
    if not picture or not Path(picture.get("folder", "")).is_absolute():
        return {**fields}
    return {**fields, "picture": {name: value for name, value in picture.items() if name != "folder"}}


def public(chosen: ChosenModel) -> Params:
    """The model without what predicts nothing: of a node's own leaves (counts of its rows, optimizers) zeros."""
    kept = {*models.used(chosen.learner, chosen.params, chosen.about.shape)}
    leaves = [
        np.zeros_like(leaf) if name.startswith("private/") and name not in kept else leaf
        for name, leaf in named_leaves(chosen.params).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(chosen.params), leaves)


Write = Callable[[Path], None]
"""Writes a model into a directory."""


def safetensors(model: LoadedModel, chosen: ChosenModel) -> Write:
    """Weights by path, for p2pfl.load_model, `p2pfl predict`, and whatever reads safetensors."""
    whole = public(chosen)
    return lambda out: model_file.write(out / model_file.NAME, whole)


def orbax(model: LoadedModel, chosen: ChosenModel) -> Write:
    """A checkpoint of Orbax: nested dicts of the leaves that the outputs depend on, by their paths."""
    try:
        from orbax.checkpoint import StandardCheckpointer
    except ImportError as error:
        raise ConfigError(
            "to='orbax': needs orbax-checkpoint, an extra: pip install 'p2pfl-jax[export]'; or export to safetensors"
        ) from error
    kept = {*models.used(chosen.learner, chosen.params, chosen.about.shape)}
    nested: dict[str, Any] = {}
    for name, leaf in named_leaves(chosen.params).items():
        if name in kept:
            *above, last = name.split("/")
            at = nested
            for part in above:
                at = at.setdefault(part, {})
            at[last] = np.asarray(leaf)

    def write(out: Path) -> None:
        with StandardCheckpointer() as checkpointer:
            checkpointer.save(out.resolve() / "checkpoint", nested)

    return write


def stablehlo(model: LoadedModel, chosen: ChosenModel) -> Write:
    """A function of jax.export, from rows [b, ...] to answers, any number of rows at once; needs jax alone."""
    with jax.enable_x64(model.dtype == "float64"):
        rows = jax_export.symbolic_shape("b")
        x = jax.ShapeDtypeStruct((*rows, *model.shape), model.dtype)
        try:
            found = jax_export.export(jax.jit(model.function()), platforms=PLATFORMS)(x)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ConfigError(
                f"to='stablehlo': this model does not take any number of rows, as an exported one must: {error}; "
                "export to safetensors"
            ) from error
        try:
            content = found.serialize()
        except ImportError as error:
            raise ConfigError(
                "to='stablehlo': is written with flatbuffers, an extra: pip install 'p2pfl-jax[export]'; or export to "
                "safetensors"
            ) from error

    def write(out: Path) -> None:
        (out / "model.stablehlo").write_bytes(content)

    return write


def onnx(model: LoadedModel, chosen: ChosenModel) -> Write:
    """An ONNX model by jax2onnx, compared with the model itself before it is kept."""
    try:
        from jax2onnx import to_onnx
        from onnxruntime import InferenceSession
    except ImportError as error:
        raise ConfigError(
            "to='onnx': is made by jax2onnx, an extra: pip install 'p2pfl-jax[onnx]'; or export to stablehlo, which "
            "runs with jax"
        ) from error
    double = model.dtype == "float64"
    mean, sd = (np.asarray(part[0]) for part in model.numbers[:2])  # rows such as the model has seen
    x, first = np.random.default_rng(0).normal(size=(3, *model.shape)), model.numbers.first
    x[..., :first] = mean + sd * x[..., :first]
    x = x.astype(model.dtype)
    if model.numbers.fill is not None:
        x[0, ..., :first] = np.nan
    try:
        with jax.enable_x64(double):
            function = model.function()
            made = to_onnx(function, [("B", *model.shape)], enable_double_precision=double).SerializeToString()
            session = InferenceSession(made)
            found, wanted = session.run(None, {session.get_inputs()[0].name: x})[0], np.asarray(function(x))
    except USER_FAULTS as error:
        raise ConfigError(
            f"to='onnx': jax2onnx can't turn this model into ONNX: {type(error).__name__}: {error}; export to stablehlo"
        ) from error
    if not np.allclose(found, wanted, atol=_CLOSE):
        raise ConfigError(
            f"to='onnx': what jax2onnx has made answers otherwise than the model, by up to "
            f"{np.abs(found - wanted).max():.2g}; export to stablehlo"
        )

    def write(out: Path) -> None:
        (out / "model.onnx").write_bytes(made)

    return write


FORMATS: Mapping[str, Callable[[LoadedModel, ChosenModel], Write]] = MappingProxyType(
    {"safetensors": safetensors, "orbax": orbax, "stablehlo": stablehlo, "onnx": onnx}
)
"""Name of a format -> a function that prepares the export, and refuses what can't be, before anything is written."""
