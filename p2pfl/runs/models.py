"""The models that a run leaves, and what one must know to use them, wherever its driver puts them.

    RUN/model.json                          how rows become inputs, what outputs mean, whose model is whose
    RUN/nodes/ID/model.safetensors          of each node (live, virtual, the plain loop)
    RUN/nodes/ID/answers/NAME.safetensors   what else answers there (evaluation.answers)
    RUN/models.safetensors                  of all nodes, stacked (simulate)
    RUN/answers/NAME.safetensors            likewise, of the nodes that its metadata name
    DIR/model.json, model.safetensors, answers/   of one node that was started by hand, or of an export

So the directory alone is enough to predict with: neither the data nor the experiment file need be there.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors

from p2pfl.config import experiment as config
from p2pfl.config import toml
from p2pfl.config.experiment import Experiment
from p2pfl.data import Dataset, Samples
from p2pfl.data.dataset import KINDS, Numbers, Recipe
from p2pfl.data.partition import names
from p2pfl.errors import ConfigError, DataError, nearest
from p2pfl.federation import learning
from p2pfl.federation.federation import Federation
from p2pfl.methods.answers import SELECTOR, Selector, selector
from p2pfl.methods.freezing import FROZEN
from p2pfl.methods.objectives.medisecfed import NAME as TELLS
from p2pfl.node import model_file, result
from p2pfl.packages import version
from p2pfl.tree import named_leaves
from p2pfl.types import Learner, Params

FILE, FORMAT = "model.json", 1
STACKED, ANSWERS = "models.safetensors", "answers"
NODES = "nodes"
"""In the metadata of a stacked file: see `nodes_of`."""
_PACKAGES = ("p2pfl-jax", "jax", "flax", "optax", "numpy")


class SiteOfNode(NamedTuple):
    """Whose data a node has."""

    name: str
    site: int | None  # its place among the sites that have a scaling of their own; None: no single one


class ModelFacts(NamedTuple):
    """The content of model.json: what one must know to use the models beside it."""

    format: int
    versions: Mapping[str, str]
    experiment: Mapping[str, Any]  # as the file says it
    kind: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]  # of a row of x
    features: tuple[str, ...]
    sites: tuple[str, ...]
    nodes: Mapping[int, SiteOfNode]
    recipe: Recipe | None
    members: int  # nodes of the federation
    algorithm: str
    keeps_mean: str
    link: str
    travels: str  # of the algorithm: what goes to neighbours, in words
    said: str = ""  # of an export: which model it is
    node: int | None = None  # of one node's directory, or an export: the node, if it is one
    picture: tuple[int, ...] = ()  # as Dataset.picture

    def write(self, directory: Path) -> None:
        """Write model.json."""
        table = self._asdict()
        table["nodes"] = {str(node): each._asdict() for node, each in self.nodes.items()}
        if self.recipe is not None:
            table["recipe"] = {**self.recipe._asdict(), "numbers": self.recipe.numbers._asdict()}
        lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in table.items())
        (directory / FILE).write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def describe(federation: Federation, node: int | None = None) -> ModelFacts:
    """What there is to say of the models of a federation; `node`: of this one alone, as one started by hand."""
    dataset, parts, experiment = federation.dataset, federation.partition, federation.experiment
    own = len(dataset.sites) == len(federation.graph) and experiment.data.partition.partition == "by_site"
    called = names(parts, dataset)
    nodes = {
        each: SiteOfNode(called[each], each if own and federation.pooled else None)
        for each in federation.graph
        if node is None or each == node
    }
    return ModelFacts(
        format=FORMAT,
        versions={name: version(name) or "unknown" for name in _PACKAGES},
        experiment=toml.plain(experiment),
        kind=dataset.kind,
        classes=dataset.classes,
        shape=dataset.train.x.shape[1:],
        features=dataset.features,
        sites=dataset.sites,
        nodes=nodes,
        recipe=dataset.recipe,
        members=len(federation.graph),
        algorithm=federation.algorithm.name,
        keeps_mean=federation.algorithm.keeps_mean,
        link=federation.algorithm.link,
        travels=federation.algorithm.travels,
        node=node,
        picture=dataset.picture,
    )


def write_answers(out: Path, answers: Mapping[int, Mapping[str, Params]]) -> None:
    """Save the models that answer beside each node's own, where that one lies: node -> name -> model."""
    by_name: dict[str, dict[int, Params]] = {}
    for node, each in answers.items():
        for name, model in each.items():
            by_name.setdefault(name, {})[node] = model
    for name, found in by_name.items():
        if (out / STACKED).exists():
            stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *found.values())
            (out / ANSWERS).mkdir(exist_ok=True)
            model_file.write(_answer(out, name), stacked, {NODES: ",".join(map(str, found))})
            continue
        for node, model in found.items():
            home = out / "nodes" / str(node) if (out / "nodes").is_dir() else out
            (home / ANSWERS).mkdir(parents=True, exist_ok=True)
            model_file.write(_answer(home, name), model)


def personal(learner: Learner) -> str:
    """The answer that is a node's own model, among which the selector chooses."""
    return "personal" if learner.personal else "fine_tuned"


def _answer(home: Path, name: str) -> Path:
    return home / ANSWERS / f"{name}.safetensors"


class SavedModels(NamedTuple):
    """The models of a directory."""

    directory: Path
    about: ModelFacts
    nodes: tuple[int, ...]  # those that have a model; of an export of no single node, -1
    there: tuple[int, ...]  # of these, those that were there at the end and have not lied
    within: int | None = None  # the directory that was named is this node's

    @property
    def stacked(self) -> bool:
        """The flag that one file holds all models."""
        return (self.directory / STACKED).exists()

    def home(self, node: int) -> Path:
        """The directory that holds a node's files."""
        own = self.directory / "nodes" / str(node)
        return own if own.is_dir() else self.directory

    def answers(self, node: int) -> list[str]:
        """The names of what answers at a node beside its model."""
        files = sorted((self.home(node) / ANSWERS).glob("*.safetensors"))
        return [each.stem for each in files if not self.stacked or node in nodes_of(each)]

    def arrays(self, node: int, answer: str = "") -> dict[str, np.ndarray]:
        """The leaves of a model by path."""
        home = self.home(node)
        if not self.stacked:
            file = _answer(home, answer) if answer else home / model_file.NAME
            return model_file.read(file)
        file = _answer(home, answer) if answer else home / STACKED
        place = nodes_of(file).index(node) if answer else node
        with _opened(file) as found:
            return {name: np.asarray(found.get_slice(name)[place]) for name in found.keys()}  # noqa: SIM118


def nodes_of(file: Path) -> tuple[int, ...]:
    """The nodes whose models a stacked file holds: of answers in its order, of a simulation those that ever came."""
    with _opened(file) as found:
        return tuple(int(node) for node in (found.metadata() or {}).get(NODES, "").split(",") if node)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A file of safetensors. Raises ConfigError for one that is none, or is damaged."""
    try:
        with safetensors.safe_open(file, "np") as found:
            yield found
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{file}: can't be read as models: {error}") from error


def find(path: Path) -> SavedModels:
    """The models of a directory: of a run, of a node (of a run, or started by hand), of an export.

    Raises ConfigError for a path that holds none, and says what is there instead.
    """
    if path.is_file() and path.name in (FILE, STACKED, model_file.NAME):
        path = path.parent
    if not path.is_dir():
        raise ConfigError(f"{path}: no such directory ({path.resolve()}); give a run, a node's directory or an export")
    within = None
    whole = path.resolve()
    if not (whole / FILE).exists() and whole.parent.name == "nodes" and whole.name.isdecimal():
        whole, within = whole.parents[1], int(whole.name)
    about, gone = read(whole), _gone(whole)
    if (whole / STACKED).exists():
        nodes = nodes_of(whole / STACKED)
    elif (whole / "nodes").is_dir():
        homes = [each for each in (whole / "nodes").iterdir() if each.name.isdecimal()]
        nodes = tuple(sorted(int(each.name) for each in homes if (each / model_file.NAME).exists()))
        gone |= {node for node in nodes if result.read(whole / "nodes" / str(node)) is None}
    else:
        own = -1 if about.node is None else about.node
        nodes = (own,) if (whole / model_file.NAME).exists() else ()
    if not nodes and about.said:
        raise ConfigError(f"{path}: is an export to another format; export to safetensors for p2pfl itself")
    if not nodes:
        raise ConfigError(
            f"{path}: holds no model: the run has not ended, or nobody was there at its end; run it to its end"
        )
    lied = {node for table in about.experiment.get("attack", ()) for node in table["nodes"]}
    there = tuple(node for node in nodes if node not in gone and node not in lied)
    return SavedModels(whole, about, nodes, there or nodes, within)


def read(directory: Path) -> ModelFacts:
    """Read model.json. Raises ConfigError."""
    file = directory / FILE
    if not file.exists():
        run = (directory / "experiment.toml").exists() or (directory / "result.json").exists()
        if run:
            what = (
                "a run of an earlier version, or a loop of one's own (p2pfl.join), did not say how rows become inputs"
            )
        else:
            what = "no run and no model; give the directory that p2pfl run, node or export has written"
        raise ConfigError(f"{directory}: has no {FILE}: {what}")
    try:
        table = json.loads(file.read_text("utf-8"))
        if table["format"] != FORMAT:
            raise ConfigError(
                f"{file}: is of format {table['format']}, and this version of p2pfl reads {FORMAT}; "
                f"use the one that wrote it: {table['versions']['p2pfl-jax']}"
            )
        return _description(table)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: is damaged: {type(error).__name__}: {error}") from error


def _description(table: dict[str, Any]) -> ModelFacts:
    for name in ("classes", "shape", "features", "sites", "picture"):
        table[name] = tuple(table.get(name, ()) if name == "picture" else table[name])  # older ones have none
    table["nodes"] = {int(node): SiteOfNode(**each) for node, each in table["nodes"].items()}
    if table["recipe"] is not None:
        numbers = table["recipe"]["numbers"]
        rows = {name: numbers[name] and tuple(map(tuple, numbers[name])) for name in ("mean", "sd", "fill")}
        scaling = Numbers(**rows, clip=numbers["clip"], first=numbers.get("first"))
        table["recipe"] = Recipe(**{**table["recipe"], "numbers": scaling})
    return ModelFacts(**table)


def _gone(run: Path) -> set[int]:
    """The nodes that were not there at the end, as far as the summary says it."""
    file = run / "summary.json"
    if not file.exists():
        return set()
    try:
        table = json.loads(file.read_text("utf-8"))
    except ValueError:
        return set()
    return {*table.get("lost", ()), *table.get("left", ())}


# --- from files to a learner and a model


class ChosenModel(NamedTuple):
    """A model that was chosen among those of a directory."""

    directory: Path
    about: ModelFacts
    experiment: Experiment
    learner: Learner
    params: Params
    node: int | None  # None: of no single one
    answer: str
    said: str  # which it is, in words
    selector: Selector | None = None  # what chooses between this model and the personal ones, row by row


def choose(path: Path, node: int | None = None, answer: str | None = None) -> ChosenModel:
    """The model of a directory that is asked for.

    Without `node`: the only one there is; where nothing of a model is a node's own and the algorithm keeps their mean,
    the mean of the models at the end; where it keeps none, that of the first node that is there. Raises ConfigError for
    what is not there, and where it must be said whose model is meant.
    """
    saved = find(path)
    node = saved.within if node is None else node
    answer = "" if answer in (None, "consensus") else str(answer)
    _judge(saved, path, node, answer)
    first = saved.there[0] if node is None else node
    arrays = saved.arrays(first, "" if answer == SELECTOR else answer)
    experiment = _experiment(saved.about)
    with jax.enable_x64(experiment.training.dtype == "float64"):
        learner, like = _learner(saved.about, experiment, arrays)
    if node is None and len(saved.nodes) > 1:
        _judge_private(saved, path, learner, like)
    params = unflattened(like, arrays, path)
    if node is not None or len(saved.nodes) == 1:
        node = None if first == -1 else first
        said = saved.about.said or f"the {f'answer {answer}' if answer else 'model'} of {_named(saved, first)}"
    elif saved.about.keeps_mean == "nothing":
        node, said = first, f"the model of {_named(saved, first)}, the first: {saved.about.algorithm} keeps no mean"
    else:
        params = _mean(saved, params, like, path)
        said = f"the mean of the models of {len(saved.there)} nodes"
    _judge_finite(params, said, path)
    if answer == SELECTOR:
        said = f"the selector, and where it is not sure {said.replace('answer selector', 'model')},"
        return ChosenModel(saved.directory, saved.about, experiment, learner, params, node, answer, said,
                           _selector(saved, learner, params, like, path))  # fmt: skip
    return ChosenModel(saved.directory, saved.about, experiment, learner, params, node, answer, said)


def plain(chosen: ChosenModel) -> ChosenModel:
    """The same model as Flax has it: what was frozen, adapted or kept at home is put together.

    So it is used where nothing is trained, and what it was trained by is left out of its experiment.
    """
    put_together = chosen.learner.plain
    if put_together is None:
        return chosen
    experiment = replace(
        chosen.experiment,
        training=replace(
            chosen.experiment.training,
            freeze=None,
            lora=None,
            objective=tuple(each for each in chosen.experiment.training.objective if each.get("name") != TELLS),
        ),
        algorithm=replace(chosen.experiment.algorithm, share=None),
    )
    about = chosen.about._replace(experiment=toml.plain(experiment))
    with jax.enable_x64(experiment.training.dtype == "float64"):
        found = {name: np.asarray(leaf) for name, leaf in named_leaves(put_together(chosen.params)).items()}
        learner, like = _learner(about, experiment, found)
    arrays = {
        name: np.zeros(leaf.shape, leaf.dtype)  # of what others keep beside the model, which answers for nothing
        if name.startswith("private/") and (name not in found or found[name].shape != leaf.shape)
        else found[name]
        for name, leaf in named_leaves(like).items()
    }
    params = unflattened(like, arrays, chosen.directory)
    return chosen._replace(about=about, experiment=experiment, learner=learner, params=params)


def _selector(saved: SavedModels, learner: Learner, params: Params, like: Params, path: Path) -> Selector:
    """The choice of a model's selector among the personal models that are saved here. Raises ConfigError."""
    name = personal(learner)
    homes = [node for node in saved.nodes if name in saved.answers(node)]
    if not homes:
        raise ConfigError(f"{path}: answer='selector': is not saved; name it in evaluation.answers of a run")
    models = {node: unflattened(like, saved.arrays(node, name), path) for node in homes}
    return selector(learner, params, models)


def _named(saved: SavedModels, node: int) -> str:
    known = saved.about.nodes.get(node)
    return f"node {node}" if known is None else known.name


def _judge(saved: SavedModels, path: Path, node: int | None, answer: str) -> None:
    """Raises ConfigError for a node or an answer that is not there."""
    if node is not None and saved.nodes == (-1,):
        raise ConfigError(f"{path}: node={node}: this model is of no single node; leave --node out")
    if node is not None and node not in saved.nodes:
        listed = ", ".join(map(str, saved.nodes[:20])) + (", ..." if len(saved.nodes) > 20 else "")
        raise ConfigError(f"{path}: node={node}: no such model; there are models of node {listed}")
    if not answer:
        return
    if answer == SELECTOR:
        if SELECTOR not in saved.about.experiment.get("evaluation", {}).get("answers", ()):
            raise ConfigError(f"{path}: answer='selector': is not saved; name it in evaluation.answers of a run")
        return
    if node is None and len(saved.nodes) > 1:
        raise ConfigError(f"{path}: answer={answer!r}: each node has its own; say whose with --node")
    known = saved.answers(saved.nodes[0] if node is None else node)
    if answer not in known:
        listed = nearest(answer, known) if known else (
            "none is saved: name it in evaluation.answers (with evaluation.metrics, and at most 64 nodes)"
        )  # fmt: skip
        raise ConfigError(f"{path}: answer={answer!r}: no such answer; {listed}")


def _judge_private(saved: SavedModels, path: Path, learner: Learner, like: Params) -> None:
    """Raises ConfigError where every node predicts with something of its own."""
    own = _own(saved, learner, like)
    whose = ", ".join(_named(saved, node) for node in saved.there[:20]) + (", ..." if len(saved.there) > 20 else "")
    if saved.about.link == "none":
        raise ConfigError(
            f"{path}: with {saved.about.algorithm} every node learns alone; say whose model with --node: {whose}"
        )
    if own:
        raise ConfigError(
            f"{path}: every node has a part of the model for itself ({len(own)} leaves, such as "
            f"{own[0].removeprefix('private/')}); say whose with --node: {whose}"
        )


def _own(saved: SavedModels, learner: Learner, like: Params) -> list[str]:
    """The leaves that predictions depend on and that are a node's own."""
    named = used(learner, like, saved.about.shape)
    return [name for name in named if name.startswith("private/") and not name.startswith(f"private/{FROZEN}/")]


def common(path: Path) -> bool:
    """Return whether the nodes of a directory have one model in common, their mean. Raises ConfigError."""
    saved = find(path)
    if saved.within is not None or len(saved.nodes) == 1:
        return True
    experiment = _experiment(saved.about)
    with jax.enable_x64(experiment.training.dtype == "float64"):
        learner, like = _learner(saved.about, experiment, saved.arrays(saved.there[0]))
    kept = saved.about.link != "none" and saved.about.keeps_mean != "nothing"
    return kept and not _own(saved, learner, like)


def used(learner: Learner, like: Params, shape: Sequence[int]) -> list[str]:
    """The leaves of a model that its outputs depend on, by path."""
    leaves, structure = jax.tree.flatten(like)
    dtype = jax.tree.leaves(like["trained"])[0].dtype

    def outputs(leaves: list[Any], x: Any) -> Any:
        return learner.predict(jax.tree.unflatten(structure, leaves), x)

    with jax.enable_x64(dtype == np.float64):
        traced = jax.make_jaxpr(outputs)(leaves, jax.ShapeDtypeStruct((1, *shape), dtype)).jaxpr
    read = {id(each) for equation in traced.eqns for each in equation.invars} | {id(each) for each in traced.outvars}
    return [name for name, each in zip(named_leaves(like), traced.invars, strict=False) if id(each) in read]


def _mean(saved: SavedModels, first: Params, like: Params, path: Path) -> Params:
    """The mean of what is mixed; statistics of a node that knows them, all else of the first node."""
    count = len(saved.there)
    floats = {name for part in ("trained", "carried") for name, leaf in named_leaves({part: first[part]}).items()
              if np.issubdtype(leaf.dtype, np.floating)}  # fmt: skip
    total: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for node in saved.there:
        arrays = saved.arrays(node)
        if not found or not found.get("statistics/known", np.ones(())).item():
            found = arrays
        for name in floats:
            total[name] = total.get(name, 0.0) + arrays[name].astype(np.float64)
    means = {name: (each / count).astype(found[name].dtype) for name, each in total.items()}
    return unflattened(like, {**found, **means}, path)


def _judge_finite(params: Params, said: str, path: Path) -> None:
    for name, leaf in named_leaves({part: params[part] for part in ("trained", "carried")}).items():
        if not np.isfinite(np.asarray(leaf)).all():
            raise DataError(f"{path}: {said} is not finite ({name}): training has diverged; there is nothing to use")


def _experiment(about: ModelFacts) -> Experiment:
    found: Experiment = config.parse(dict(about.experiment), FILE, Experiment)
    return found


def _learner(about: ModelFacts, experiment: Experiment, arrays: Mapping[str, np.ndarray]) -> tuple[Learner, Params]:
    """The learner of the models, and the shapes of one. Raises ConfigError where its parts are not there."""
    if about.experiment["data"]["source"] == "quadratic":
        raise ConfigError("data.source='quadratic': finds a point, and has no rows to predict")
    place: dict[str, Any] = {}
    for name, array in arrays.items():
        if name.startswith("private/site/"):
            *above, last = name.removeprefix("private/site/").split("/")
            at = place
            for part in above:
                at = at.setdefault(part, {})
            at[last] = np.zeros((1, *array.shape), array.dtype)
    try:
        learner = learning.learner_alone(experiment, stand_in(about), place)
    except ConfigError as error:
        raise ConfigError(
            f"{error}. A run has no code of yours: call this where the module lies, or have the model exported to "
            "stablehlo there, which needs none"
        ) from error
    return learner, learning.shape(learner, place)


def stand_in(about: ModelFacts) -> Dataset:
    """A data set of one row that is like the one that the models have learned from, for its shapes and names."""
    many, space = len(about.classes), about.shape[:-1]
    width: dict[str, tuple[int, ...]] = {
        "labels": (many,), "regression": (many,), "survival": (2,), "segmentation": space,
        "reconstruction": (*space, many),
    }  # fmt: skip
    y: np.ndarray = np.zeros((1, *width.get(about.kind, ())), KINDS[about.kind][0])
    rows = Samples(np.zeros((1, *about.shape), np.float32), y)
    return Dataset(rows, rows, about.classes, features=about.features, kind=about.kind, picture=about.picture)


def unflattened(like: Params, arrays: Mapping[str, np.ndarray], where: Path) -> Params:
    """A model from its leaves by path. Raises ConfigError where they are not those of `like`."""
    leaves = named_leaves(like)
    lacking = [name for name in leaves if name not in arrays]
    wrong = [name for name, leaf in leaves.items() if name in arrays and arrays[name].shape != leaf.shape]
    if lacking or wrong:
        raise ConfigError(
            f"{where}: its model lacks {lacking[0]}" if lacking else
            f"{where}: {wrong[0]} has shape {[*arrays[wrong[0]].shape]}, and the model {[*leaves[wrong[0]].shape]}"
        )  # fmt: skip
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in leaves])
