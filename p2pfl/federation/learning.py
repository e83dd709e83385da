"""The third stage: what is learned and how: the model, its objective, what is shared of it, the algorithm.

learner:    the model, cast to the experiment's dtype; objectives in their order; what is shared of it
algorithm:  the named one; what is not mixed kept out of it; what objectives ask for; combinators in their order
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2pfl import tree
from p2pfl.algorithms import ALGORITHMS
from p2pfl.algorithms.mixing import renormalized
from p2pfl.config.data import CsvData
from p2pfl.config.experiment import Experiment
from p2pfl.config.model import FunctionModel, FusionModel, LogisticModel, MlpModel, Model
from p2pfl.data import BUILTIN, Dataset
from p2pfl.data.partition import PARTITIONS
from p2pfl.data.stored import Stored
from p2pfl.errors import ConfigError, nearest
from p2pfl.federation import attacks, epochs, privacy, secure
from p2pfl.federation.datasets import Datasets, watched
from p2pfl.federation.events import growing, memberships
from p2pfl.federation.plugins import FAULTS, called, chosen, function, unknown
from p2pfl.federation.privacy import PrivateSteps
from p2pfl.federation.topology import Topology
from p2pfl.learning import flax, local_steps, losses, models, optimizers, quadratic
from p2pfl.learning.batching import chunk, in_batches
from p2pfl.learning.targets import TARGETS, PerSample
from p2pfl.methods import (
    adapters,
    answers,
    bulletin,
    compose,
    freezing,
    other_models,
    sharing,
    starting,
    statistics,
    watching,
)
from p2pfl.methods import site_facts as sites
from p2pfl.methods.objectives import OBJECTIVES, Objective
from p2pfl.methods.objectives.medisecfed import BEFORE
from p2pfl.methods.privacy import dp_sgd
from p2pfl.methods.site_facts import counting
from p2pfl.node import model_file
from p2pfl.topology import GRAPHS
from p2pfl.types import Algorithm, Learner, Neighborhood, Planning, Schedule, Tree

BEGIN = ("name", "weights", "rename", "fresh")
"""Fields of [model] that its maker does not take."""
EARLY = ("crash", "leave", "freeze", "partition")
"""Events after which somebody has not heard what others say."""
FLATTENED = MappingProxyType(
    {
        "cnn": "head/kernel", "cnn3d": "head/kernel", "cnn_gnn": "encoder/nodes/kernel",
        "mlp": "layers/0/kernel", "logistic": "layers/0/kernel", "mmoe": "encoder/layers/0/kernel",
    }
)  # fmt: skip
"""Kernels that take in an image that was flattened."""


class Sliced(NamedTuple):
    """What nodes learn with whose models are slices of a whole one: by level, of which 0 is the whole."""

    levels: tuple[int, ...]  # of each node
    learners: tuple[Learner, ...]
    algorithms: tuple[Algorithm, ...]
    stretches: tree.Stretches  # of the whole model


class Learning(NamedTuple):
    """The learner and the algorithm of a federation."""

    learner: Learner
    algorithm: Algorithm  # with the experiment's optimizer and that learner
    make: Callable[[Learner], Algorithm]  # the same with another learner
    schedule: Schedule  # what the algorithm makes of the graph
    sites: Tree  # [n, ...] what each node knows of its own data, where it is asked for
    notes: tuple[str, ...]  # what a person should know of that
    sliced: Sliced | None = None  # where nodes have models of unequal shapes; the above is then for arrays of the whole
    private: PrivateSteps | None = None  # local steps that are differentially private


class ScriptedSteps(NamedTuple):
    """What a script brings that takes part by itself."""

    learner: Learner  # as it is: whatever its dtypes
    optimizer: optax.GradientTransformation


def resolve_learning(
    experiment: Experiment, topology: Topology, data: Datasets, script: ScriptedSteps | None = None
) -> Learning:
    """Resolve the learner and the algorithm of an experiment. Raises ConfigError."""
    rule, dataset = optimizer(experiment) if script is None else script.optimizer, data.dataset
    sliced: Sliced | None = None
    private = privacy.resolve(experiment, data, rule, topology.graph)
    methods = [*([private.objective] if private else []), *objectives(experiment, rule, data.public)]
    real = not data.pooled and data.task is None
    sites, notes = known(experiment, methods, dataset, data.partition.train, topology.nodes, real)
    held = np.array([len(rows) for rows in data.validation or ()], np.int32)
    if len(held):
        sites = {**sites, watching.HELD: held}
    ahead = in_batches(held, experiment.training.batch_size).shape[1]

    def watch(made: Algorithm, learner: Learner) -> Algorithm:
        if not len(held):
            return made
        patience, every = experiment.training.patience, experiment.evaluation.every
        at_once = None if dataset.kind == "survival" else chunk(dataset.train.x.shape[1:])  # as test rows are
        return watching.watch(made, learner, ahead, every, patience, at_once)

    if script is None:
        base = first_learner(experiment, dataset) if data.task is None else quadratic.learner(data.task.a.shape[1])
        base = attacks.learned(experiment, base, dataset)
        begun = started(experiment, flax.cast(base, experiment.training.dtype), dataset.train.x.shape[1:])
        learner = made_learner(experiment, begun.learner, methods, rule, sites, dataset.train.x.shape[1:])
        sliced = _sliced(experiment, begun.learner, methods, rule, sites, dataset, watch)
        notes = (*notes, *_told(methods, shape(learner, sites)), *_begun(experiment, begun))
    else:
        learner = script.learner
    _check_answers(experiment, learner, data)
    apart = bool(sites) or set(tree.drawn(learner.init)) > {"trained", "carried"}

    def make(learner: Learner) -> Algorithm:
        made = watch(named(experiment, learner, methods, rule, apart), learner)
        made = made._replace(weigh=renormalized) if experiment.network.rule == "renormalise" else made
        for method in methods:
            made = method.around(made) if method.around else made
        return attacks.told(experiment, made)._replace(whole=secure.mixing(experiment) is not None)

    algorithm = make(learner)
    if not isinstance(experiment.training.optimizer, dict):  # some of what a list may hold looks at the model's shapes
        optimizers.tried(rule, shape(learner, sites)["trained"], "training.optimizer")
    _check_network(experiment, algorithm, topology.schedule)
    _check_shares(algorithm, shape(learner, sites))
    table = experiment.topology
    where = f"topology {table.graph or table.file!s} of {topology.nodes} nodes"
    planning = Planning(experiment.rounds, experiment.seed, data.samples[: topology.nodes], table.take_part)
    schedule = epochs.suited(algorithm, topology.schedule, planning, where)
    secure.check_algorithm(experiment, algorithm, schedule, shape(learner, sites), sliced is not None)
    _check_growth(experiment, algorithm, topology, data)
    jax.eval_shape(lambda model: algorithm.init(model, 1), shape(learner, sites))  # some wraps look at the model
    notes = (*notes, *_own_scales(experiment, data, algorithm))
    notes = (*notes, *(privacy.notes(experiment, data, private) if private else ()))
    learning = Learning(learner, algorithm, make, schedule, sites, notes, sliced, private)
    learning = _gathering(experiment, topology, data, learning)
    return learning._replace(notes=(*learning.notes, *secure.notes(experiment, real, schedule, _table(learning))))


def _told(methods: Sequence[Objective], model: Tree) -> tuple[str, ...]:
    """Say what methods tell of the sites, and how many bytes of it go along with each message."""
    told = [method.bulletin for method in methods if method.bulletin]
    return tuple(f"with models go {each.what}: {bulletin.bytes_sent(model, each):,} bytes a message" for each in told)


def _begun(experiment: Experiment, begun: starting.Started) -> tuple[str, ...]:
    """Say which leaves of the first model come from a file."""
    if not begun.taken or experiment.model is None:
        return ()
    drawn = f"; drawn anew: {', '.join(begun.drawn)}" if begun.drawn else ""
    name = Path(str(experiment.model.weights)).name
    whole = len(begun.taken) + len(begun.drawn)
    listed = "all of them" if not begun.drawn else ", ".join(begun.taken)
    return (f"model: {len(begun.taken)} of {whole} leaves begin as in {name}: {listed}{drawn}",)


def _check_growth(experiment: Experiment, algorithm: Algorithm, topology: Topology, data: Datasets) -> None:
    """Raises TopologyError where a graph does not fit that there will be as the federation grows."""
    nodes, last = topology.nodes, len(data.samples) - 1
    parts = [
        (members, f"the graph of {len(members)} nodes, before others join,")
        for members in growing(experiment, topology.events)
    ]
    if last >= nodes:  # the node of this machine, which the experiment does not plan
        parts.append(((*range(nodes), last), f"the graph of {nodes} nodes and node {last}, which joins them,"))
    for members, where in parts:
        samples = epochs.known(data.samples, members)
        planning = Planning(experiment.rounds, experiment.seed, samples, experiment.topology.take_part)
        epochs.suited(algorithm, epochs.among(experiment, members)[0], planning, where)


def _own_scales(experiment: Experiment, data: Datasets, algorithm: Algorithm) -> tuple[str, ...]:
    """Say that every site scales by its own rows, where nobody has said so and a mean of all could be known."""
    table = experiment.data
    default = isinstance(table, CsvData) and table.standardize is None
    scaled = any(column.standardize == "node" for column in data.dataset.columns)
    if not (default and scaled and algorithm.keeps_mean != "nothing" and len(data.partition.train) > 1):
        return ()
    return (
        "columns are scaled by the mean and deviation of each site's own rows, which hides how sites differ: "
        'standardize = "none" with [statistics] normalize = true scales by those of all, without showing a row, and '
        'missing = "gossip" fills in by them; standardize = "node" says that this is meant',
    )


def _gathering(experiment: Experiment, topology: Topology, data: Datasets, learning: Learning) -> Learning:
    """The same, with the nodes' sums found out before they train, where any are asked for."""
    if "row" in learning.sites:
        return _masked(experiment, topology, data, learning)
    return _gossiping(experiment, topology, data, learning) if "sums" in learning.sites else learning


def _gossiping(experiment: Experiment, topology: Topology, data: Datasets, learning: Learning) -> Learning:
    """The same, with the nodes' sums averaged by gossip before (or while) they train."""
    algorithm, network = learning.algorithm, experiment.network
    statistics.gossip(algorithm, 1)  # not every algorithm can
    planner = epochs.planner(experiment, algorithm, learning.schedule, data.samples)
    others = [(planner(members).schedule, members) for members in memberships(data.events, topology.nodes, experiment)]
    needed = statistics.rounds(
        learning.schedule, experiment.statistics.tolerance, experiment.rounds, algorithm.link, network.loss,
        network.late, experiment.seed, others,
    )  # fmt: skip

    def make(learner: Learner) -> Algorithm:
        return statistics.gossip(learning.make(learner), needed)

    sliced = learning.sliced
    if sliced is not None:
        algorithms = tuple(statistics.gossip(each, needed) for each in sliced.algorithms)
        sliced = sliced._replace(algorithms=algorithms)
    return learning._replace(make=make, algorithm=make(learning.learner), sliced=sliced)


def _masked(experiment: Experiment, topology: Topology, data: Datasets, learning: Learning) -> Learning:
    """The same, with the nodes' sums added up behind masks before they train. Raises ConfigError."""
    if learning.sliced is not None:
        raise ConfigError("secure: masked statistics do not go with the objective widths; leave one of them out")
    needed = secure.rounds(experiment, learning.schedule)
    early = [each for each in data.events if each.round <= needed and each.event in EARLY]
    if early:
        raise ConfigError(
            f"churn: {early[0].event} in round {early[0].round}: of a node that is away before word of all has gone "
            f"around twice, in {needed} rounds, nobody gets the masked sums, and the run ends; let it happen later"
        )
    anew = [each for each in data.events if each.event in ("join", "rejoin") and each.state != "kept"]
    if anew and secure.mixing(experiment) is not None and not secure.hands_over(learning.schedule):
        raise ConfigError(
            f"churn: {anew[0].event} in round {anew[0].round}: of a node that comes with nothing, to a graph whose "
            "members hand over no model with [secure]: it would not know the masked sums; take the complete graph, or "
            'state = "kept"'
        )
    like = jax.tree.map(lambda rows: jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype), learning.sites["sums"])
    late = {each.node for each in data.events if each.event == "join"}  # whose sums are in no total
    founders = np.array([node not in late for node in range(topology.nodes)])

    def make(learner: Learner) -> Algorithm:
        return statistics.masked(learning.make(learner), founders, like, needed)

    return learning._replace(make=make, algorithm=make(learning.learner))


def _table(learning: Learning) -> Tree:
    """Shapes of the table of masked sums that goes along with models; () for none."""
    if "row" not in learning.sites:
        return ()
    algorithm, around = learning.algorithm, Neighborhood(jnp.zeros(1), jnp.zeros(1))
    model = shape(learning.learner, learning.sites)
    payload = jax.eval_shape(lambda params: algorithm.send(algorithm.init(params, 1), around)[1], model)
    return payload.get("told", ()) if isinstance(payload, dict) else ()


def _sliced(
    experiment: Experiment,
    base: Learner,
    methods: Sequence[Objective],
    rule: optax.GradientTransformation,
    sites: Tree,
    dataset: Dataset,
    watch: Callable[[Algorithm, Learner], Algorithm],
) -> Sliced | None:
    """What the nodes of each level learn with, where an objective gives them models of unequal shapes.

    `watch`: makes of an algorithm one that watches its models, where that is asked for.
    """
    cutting = [method for method in methods if method.slices is not None]
    if not cutting:
        return None
    slices = cutting[0].slices
    assert slices is not None
    if experiment.training.lora is not None:
        raise ConfigError(
            "training.lora: does not go with the objective widths, by which nodes hold kernels of unequal sizes; leave "
            "one of the two out (training.freeze goes with widths)"
        )
    for i, given in enumerate(experiment.algorithm.wrap):
        if given.get("name") in ("by_similarity", "fourier", *compose.UNLIKE):
            raise ConfigError(
                f"algorithm.wrap[{i}]: {given['name']} takes all channels of two models, and with the objective "
                "widths two nodes hold unequal numbers of them; leave one of the two out"
            )
    learners, algorithms = [], []
    for level, narrow in enumerate(slices.learners):
        own = [method._replace(learner=narrow) if method is cutting[0] else method for method in methods]
        learner = made_learner(experiment, base, own, rule, sites, dataset.train.x.shape[1:])
        _check_slice(learner, shape(learner, sites), dataset, level)
        learners.append(learner)
        algorithms.append(watch(named(experiment, learner, own, rule, withheld=True), learner))
    whole = tree.drawn(base.init)
    return Sliced(slices.levels, tuple(learners), tuple(algorithms), slices.stretches(whole))


def _check_slice(learner: Learner, model: Tree, dataset: Dataset, level: int) -> None:
    """Raises ConfigError for a model that does not compute with a slice of its leaves, before anything is compiled."""
    x = dataset.train.x
    row = jax.ShapeDtypeStruct((1, *x.shape[1:]), jax.tree.leaves(model["trained"])[0].dtype)
    try:
        jax.eval_shape(learner.predict, model, row)
    except (*FAULTS, flax.SHAPE_FAULT) as error:
        raise ConfigError(
            f"model: does not compute with the first channels of its layers (level {level} of the widths): "
            f"{flax.reason(error)}. A Linen module declares the shapes that it takes, and a module of one's own may "
            "have numbers of channels in its code: give an NNX module that takes them from its inputs"
        ) from error


def _check_answers(experiment: Experiment, learner: Learner, data: Datasets) -> None:
    answers.check(experiment.evaluation.answers, learner, data.dataset.kind)


def optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """The experiment's optimizer. Raises ConfigError."""
    given = experiment.training.optimizer
    if isinstance(given, dict) and not isinstance(given.get("name"), str):
        raise ConfigError('training.optimizer.name: must be given, as in { name = "sgd", learning_rate = 0.1 }')
    try:
        return optimizers.optimizer_of(given, chosen)
    except ConfigError as error:
        raise ConfigError(f"training.optimizer: {error}") from error


def own_names(experiment: Experiment) -> set[tuple[str, str]]:
    """(group of entry points, name) of all that the experiment names and p2pfl has itself."""
    training, given = experiment.training, experiment.training.optimizer
    listed = [given] if isinstance(given, dict) else [*given]
    named = [
        ("p2pfl.data", experiment.data.source),
        ("p2pfl.partitions", experiment.data.partition.partition),
        ("p2pfl.algorithms", experiment.algorithm.name),
        ("p2pfl.graphs", experiment.topology.graph),
        ("p2pfl.models", experiment.model.name if experiment.model else None),
        *(("p2pfl.models", table.model.name) for table in experiment.other_model),
        ("p2pfl.losses", (training.loss or {}).get("name")),
        *(("p2pfl.optimizers", table.get("name")) for table in listed),
        *(("p2pfl.schedules", name) for name in optimizers.schedules_in(listed)),
        *(("p2pfl.objectives", table.get("name")) for table in training.objective),
        *(("p2pfl.wraps", table.get("name")) for table in experiment.algorithm.wrap),
    ]
    own = {
        "p2pfl.data": (*BUILTIN, "npz", "csv", "medmnist", "folder", "quadratic", "script"),
        "p2pfl.partitions": PARTITIONS,
        "p2pfl.algorithms": ALGORITHMS,
        "p2pfl.graphs": GRAPHS,
        "p2pfl.models": models.MODELS,
        "p2pfl.losses": {name for each in losses.LOSSES.values() for name in each},
        "p2pfl.optimizers": optimizers.names(),
        "p2pfl.schedules": optimizers.SCHEDULES,
        "p2pfl.objectives": OBJECTIVES,
        "p2pfl.wraps": compose.WRAPS,
    }
    return {(group, name) for group, name in named if isinstance(name, str) and name in own[group]}


def objectives(
    experiment: Experiment, optimizer: optax.GradientTransformation, public: np.ndarray | None = None
) -> list[Objective]:
    """Return the objectives that [training] names; `public`: rows that all nodes have. Raises ConfigError."""
    found = []
    for i, given in enumerate(experiment.training.objective):
        where, name = f"training.objective[{i}]", given.get("name")
        maker = chosen(name, f"{where}.name", OBJECTIVES, "p2pfl.objectives")
        arguments = {key: value for key, value in given.items() if key != "name"}
        made = called(maker, f"objective {name}", where, 1, arguments, optimizer)
        if not isinstance(made, Objective):
            raise ConfigError(
                f"{where}.name={name!r}: returned a {type(made).__name__}, not a p2pfl.methods.objectives.Objective"
            )
        unheard = [fact for fact in made.facts if fact not in sites.FACTS]
        if unheard:
            raise ConfigError(f"{where}.name={name!r}: facts={made.facts!r}: {nearest(unheard[0], sites.FACTS)}")
        taken = experiment.rounds * max(experiment.training.node_steps or (experiment.training.local_steps,))
        if made.ahead >= taken:
            raise ConfigError(
                f"{where}: {name} learns something else for {made.ahead} local steps before the model sees any of it, "
                f"and a node takes {taken} in all (rounds times training.local_steps); lower its steps, or take more"
            )
        still = [node for node, steps in enumerate(experiment.training.node_steps or ()) if not steps]
        if awaited := [node for node in still if made.awaits is None or node in made.awaits]:
            raise ConfigError(
                f"training.node_steps: node {awaited[0]} takes no local step, and {where} ({name}) waits for what it "
                "learns in them; give it some"
            )
        if made.ahead and watched(experiment):
            raise ConfigError(
                f"{where}: {name} learns something else for {made.ahead} local steps before the model learns with it, "
                "and training.patience and the answer best go by scores from the first round on: those before would "
                "end training, or be the best; leave both out"
            )
        if made.shown is not None:
            _check_alone(experiment, i, str(name))
            made = made if public is None else made.shown(public)
        found.append(made)
    return found


def _check_alone(experiment: Experiment, at: int, name: str) -> None:
    """Raises ConfigError for what goes with models that are exchanged, where they are not. `at`: the objective."""
    where = f"training.objective[{at}]"
    named = [str(each.get("name")) for each in experiment.training.objective]
    if at != len(named) - 1:
        raise ConfigError(f"{where}: {name} must stand last, since it keeps the model that the others train at home")
    wrong = [each for each in named[:at] if each not in BEFORE]
    if wrong:
        raise ConfigError(
            f"{where}: {name} exchanges no models, and {wrong[0]} does something with them; before it may stand "
            f"{', '.join(BEFORE)}"
        )
    others = {
        "algorithm.share": experiment.algorithm.share is not None,
        "training.lora": experiment.training.lora is not None,
        "training.patience": experiment.training.patience is not None,
    }
    for field, given in others.items():
        if given:
            raise ConfigError(f"{field}: is about models that are exchanged, and with {name} none is; leave it out")
    for answer in experiment.evaluation.answers:
        if answer not in ("consensus", "fine_tuned"):
            raise ConfigError(f"evaluation.answers={answer!r}: with {name} there is one model a node; leave it out")
    for i, wrap in enumerate(experiment.algorithm.wrap):
        if wrap.get("name") in ("fourier", "by_similarity"):
            raise ConfigError(
                f"algorithm.wrap[{i}]: {wrap['name']} compares layers, and with {name} predictions travel; leave it out"
            )


def made_learner(
    experiment: Experiment,
    base: Learner,
    methods: Sequence[Objective],
    optimizer: optax.GradientTransformation,
    sites: Tree,
    x: tuple[int, ...],
) -> Learner:
    """The learner with all that the experiment does to it. `sites`: of `known`; `x`: shape of a row of the data.

    Raises ConfigError.
    """
    made = flax.cast(base, experiment.training.dtype)
    made = made if any(method.slices for method in methods) else partly(experiment, made)
    made = counting(made) if "entropy" in sites else made
    if "sums" in sites:
        one = jax.tree.map(lambda leaf: leaf[0], sites["sums"])
        made = statistics.learned(made, one, experiment.statistics.normalize)
    for method in methods:
        if method.bulletin:
            made = bulletin.placed(made, method.bulletin, sites["node"].shape[1], x)
        made = method.learner(made) if method.learner else made
        made = method.shaped(made, x) if method.shaped else made
        made = partly(experiment, made) if method.slices else made  # each slice has its own to freeze
    share = experiment.algorithm.share
    if share is not None:
        try:
            given = function(share, "algorithm.share") if isinstance(share, str) and ":" in share else share
            made = sharing.keep(made, optimizer, sharing.predicate(given, made))
        except ConfigError as error:
            raise ConfigError(f"algorithm.{error}") from error
    return watching.placed(made) if watched(experiment) else made


def partly(experiment: Experiment, made: Learner) -> Learner:
    """The learner of which only a part is trained, where [training] says so. Raises ConfigError."""
    training = experiment.training
    if training.freeze is not None and training.lora is not None:
        raise ConfigError(
            "training.freeze: with training.lora all of the model is frozen but its adapters and what lora.train "
            "names; leave freeze out"
        )
    try:
        if training.freeze is not None:
            paths = sharing.leaves(tree.drawn(made.init))
            return freezing.freeze(made, sharing.matching(training.freeze, paths, "freeze"))
        if training.lora is None:
            return made
        table = training.lora
        return adapters.lora(made, table.rank, table.alpha, table.matching, table.train, table.freeze_a)
    except ConfigError as error:
        raise ConfigError(f"training.{error}") from error


def _still(experiment: Experiment) -> Callable[[str], bool] | None:
    """Of a batch statistic, whether it is frozen; the patterns are checked where leaves are frozen."""
    training = experiment.training
    if training.freeze is not None:
        frozen = sharing.matching(training.freeze, None, "freeze")
        return lambda path: frozen(sharing.statistic(path))
    if training.lora is not None:
        whole = adapters.whole_of(training.lora.train, None)
        return lambda path: not whole(sharing.statistic(path))
    return None


def started(experiment: Experiment, learner: Learner, x: tuple[int, ...]) -> starting.Started:
    """The learner with its first model from the file that [model] names, if it names one. `x`: shape of a row.

    Raises ConfigError.
    """
    table = experiment.model
    if table is None or table.weights is None:
        if table is not None and (table.rename or table.fresh):
            given = "rename" if table.rename else "fresh"
            raise ConfigError(f"model.{given}: is for the leaves of model.weights, which is not given; leave it out")
        return starting.Started(learner, (), (), ())
    file = Path(table.weights)
    found = starting.start(learner, model_file.read(file), file.name, table.rename, table.fresh or ())
    flat = FLATTENED.get(table.name)
    if flat in found.dense and len(x) > 2 and (table.name not in ("mlp", "logistic") or x[-1] > 1):
        raise ConfigError(
            f"model.weights: {file.name} has {flat} with the axes of PyTorch, which flattens images by channel, row "
            f"and column, and model {table.name} by row, column and channel; draw it anew: model.fresh = [{flat!r}]"
        )
    if not found.taken:
        raise ConfigError(f"model.fresh={list(table.fresh or ())}: all leaves are drawn anew; leave model.weights out")
    return found


def learner_alone(experiment: Experiment, like: Dataset, sites: Tree) -> Learner:
    """The learner of an experiment whose data are not there: of rows like those of `like`. Raises ConfigError.

    `sites`: [1, ...] what a node knows of its own data, by the leaves of a model.
    """
    rule, table = optimizer(experiment), experiment.privacy
    base = first_learner(experiment, like)
    private = [] if table is None else [dp_sgd(table.clip, 1)]  # trains nothing here; updates have the same leaves
    return made_learner(
        experiment, base, [*private, *objectives(experiment, rule)], rule, sites, like.train.x.shape[1:]
    )


def named(
    experiment: Experiment, learned: Learner, methods: Sequence[Objective], optimizer: optax.GradientTransformation,
    withheld: bool,
) -> Algorithm:  # fmt: skip
    """The algorithm that the experiment names, for `learned`. `withheld`: models have parts that don't mix.

    Raises ConfigError.
    """
    table = experiment.algorithm
    name = table.name
    maker = chosen(name, "algorithm.name", ALGORITHMS, "p2pfl.algorithms")
    made = called(maker, f"algorithm {name}", "algorithm.arguments", 2, table.arguments, learned, optimizer)
    if not isinstance(made, Algorithm):
        raise ConfigError(f"algorithm.name={name!r}: returned a {type(made).__name__}, not an Algorithm")
    if withheld:
        made = compose.withhold(made)
    for method in methods:
        made = method.wrap(made) if method.wrap else made
        made = bulletin.carried(method.bulletin)(made) if method.bulletin else made
    try:
        compose.check([str(given.get("name")) for given in table.wrap])
    except ConfigError as error:
        raise ConfigError(f"algorithm.wrap: {error}") from error
    for i, given in enumerate(table.wrap):
        made = _wrapped(made, given, f"algorithm.wrap[{i}]")
    return made


def _wrapped(inner: Algorithm, given: Mapping[str, Any], where: str) -> Algorithm:
    """The algorithm with a combinator around it. Raises ConfigError."""
    name = given.get("name")
    maker = chosen(name, f"{where}.name", compose.WRAPS, "p2pfl.wraps")
    wrap = called(maker, f"wrap {name}", where, 0, {key: value for key, value in given.items() if key != "name"})
    if name in compose.WRAPS:
        return compose.chain(inner, wrap)
    if not callable(wrap):
        raise ConfigError(
            f"{where}.name={name!r}: returned a {type(wrap).__name__}, not a function from an Algorithm to another"
        )
    made = called(wrap, f"wrap {name}", where, 1, {}, inner)
    if not isinstance(made, Algorithm):
        raise ConfigError(f"{where}.name={name!r}: its combinator returned a {type(made).__name__}, not an Algorithm")
    return made


def known(
    experiment: Experiment, methods: Sequence[Objective], dataset: Dataset, parts: Sequence[np.ndarray], nodes: int,
    real: bool,
) -> tuple[Tree, tuple[str, ...]]:  # fmt: skip
    """[n, ...] arrays by name: what the sites know of their own data, as far as anything asks for it; and notes.

    `parts`: training rows of each node. `nodes`: how many are planned. `real`: this machine's own data, whose noise
    nobody may guess. Raises ConfigError.
    """
    for method in methods:
        if method.suits:
            method.suits(dataset)
    wanted = {name: None for method in methods for name in method.facts}
    if experiment.algorithm.name == "push_sum" and experiment.algorithm.arguments.get("by") == "sample":
        wanted["samples"] = None
    for given in experiment.algorithm.wrap:
        wanted.update(dict.fromkeys(compose.FACTS.get(str(given.get("name")), ())))
    found: dict[str, Any] = {name: np.stack([sites.FACTS[name](dataset, rows) for rows in parts]) for name in wanted}
    found.update(attacks.facts(experiment, len(parts)))
    if experiment.other_model:
        found[other_models.ARCHITECTURE] = architectures(experiment, len(parts))
    for method in methods:
        for name, array in method.given.items():
            if len(array) != len(parts):
                raise ConfigError(f"training.objective: {len(array)} values of {name} for {len(parts)} nodes")
            found[name] = array
    if any(method.bulletin for method in methods):
        found["node"] = np.eye(len(parts), nodes, dtype=np.int32)
    if "entropy" in wanted:
        found["entropy"] = sites.entropy(len(parts), None if real else experiment.seed)
    dealt = [given.get("name") for given in experiment.algorithm.wrap] == ["shatter"] and not methods
    said = (*attacks.notes(experiment), *(_noise_notes(real) if "entropy" in wanted and not dealt else ()))
    dtype = np.dtype(experiment.training.dtype)
    found = {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in found.items()}
    table, names = experiment.statistics, gathered(experiment)
    if not names:
        return found, said
    seed = None if real else experiment.seed
    found["sums"] = statistics.stacked(names, dataset, parts, table.minimum, table.noise, seed, dtype.name)
    if experiment.secure is not None:
        found |= secure.facts(experiment, found["sums"], nodes, real)
    return found, (*said, *statistics.notes(names, dataset, parts, table.minimum))


def architectures(experiment: Experiment, nodes: int) -> np.ndarray:
    """[n] int32: which model each node has: 0 that of [model], i + 1 that of other_model[i]."""
    found = np.zeros(nodes, np.int32)
    for i, table in enumerate(experiment.other_model):
        found[[node for node in table.nodes if node < nodes]] = i + 1
    return found


def _noise_notes(real: bool) -> tuple[str, ...]:
    """Say where the noise of methods comes from."""
    if real:
        return ("the noise that this node adds to what it sends comes from its operating system",)
    return (
        "the noise that nodes add to what they send follows from the seed, so that anybody can take it off: a study",
    )


def shape(learned: Learner, sites: Tree) -> Tree:
    """Shapes and dtypes of the model of a node; `sites`: of `known`."""
    site = jax.tree.map(lambda rows: jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype), sites)
    return local_steps.placed(tree.drawn(learned.init), site)


def gathered(experiment: Experiment) -> tuple[str, ...]:
    """Return the names of the statistics that the nodes gather."""
    table = experiment.statistics
    return tuple(dict.fromkeys((*table.gather, *(("moments",) if table.normalize else ()))))


def first_learner(experiment: Experiment, dataset: Dataset) -> Learner:
    """The learner before anything is done to it: of the model that is named, or of several. Raises ConfigError."""
    base = base_learner(experiment, dataset)
    if not experiment.other_model:
        return base
    others = [
        base_learner(replace(experiment, model=table.model), dataset, f"other_model[{i}]")
        for i, table in enumerate(experiment.other_model)
    ]
    return other_models.together([base, *others])


def base_learner(experiment: Experiment, dataset: Dataset, field: str = "model") -> Learner:
    """The model that is named, tried on the shape of the data. Raises ConfigError."""
    table, shape, classes = experiment.model, dataset.train.x.shape[1:], len(dataset.classes)
    if table is None:
        raise ConfigError("model: missing; a table [model] must be given")
    given = {name: value for name, value in asdict(table).items() if name not in BEGIN and value is not None}
    first = dataset.train.x  # of rows that are stored none is read: the first may be another node's
    where = f"{field}.name={table.name!r}"
    example = np.zeros((1, *shape), first.dtype) if isinstance(first, Stored) else first[:1]
    example = example.astype(jax.dtypes.canonicalize_dtype(example.dtype))  # as jax would have it, which compiles that
    fits = None if experiment.training.loss is None else loss(experiment, dataset)
    more = dataset.kind, fits, experiment.training.compute, _still(experiment)
    if not isinstance(table, FunctionModel):
        given |= _pictured(table, dataset)
        return flax.from_flax(models.MODELS[table.name](shape, classes, **given), example, classes, *more)
    maker = chosen(table.name, f"{field}.name", models.MODELS, "p2pfl.models")
    try:
        return flax.from_flax(maker(shape, classes, **(table.arguments or {})), example, classes, *more)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except FAULTS as error:
        raise ConfigError(f"{where}: failed with {type(error).__name__}: {flax.reason(error)}") from error


def _pictured(table: Model, dataset: Dataset) -> dict[str, Any]:
    """What a built-in model must know of a picture behind the columns. Raises ConfigError for one of images alone."""
    if isinstance(table, FusionModel):
        return {"picture": dataset.picture}
    if dataset.picture and not isinstance(table, LogisticModel | MlpModel):
        raise ConfigError(
            f"model.name={table.name!r}: takes images, and a row of the data is {len(dataset.features)} columns and a "
            f"picture {list(dataset.picture)} behind them; use fusion, which takes both"
        )
    return {}


def loss(experiment: Experiment, dataset: Dataset) -> PerSample:
    """The loss that local steps make small: the one that [training] names, or that of the kind of task.

    A function of one's own is tried on outputs and rows of the data's shape. Raises ConfigError.
    """
    kind, table = dataset.kind, experiment.training.loss
    if table is None:
        return TARGETS[kind].loss
    name, arguments = table.get("name"), {key: value for key, value in table.items() if key != "name"}
    where, own = f"training.loss.name={name!r}", losses.LOSSES[kind]
    if name not in own and any(name in others for others in losses.LOSSES.values()):
        raise ConfigError(
            f"{where}: is for another kind of data than {kind}; {unknown(str(name), own, 'p2pfl.losses')}"
        )
    maker = chosen(name, "training.loss.name", own, "p2pfl.losses")
    if name in own:
        found: PerSample = called(maker, f"loss {name}", "training.loss", 1, arguments, len(dataset.classes))
        return found
    row = TARGETS[kind].output(dataset.train.x.shape[1:], len(dataset.classes))
    try:
        return losses.own(maker, arguments, row, dataset.train.y, kind)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except FAULTS as error:
        raise ConfigError(f"{where}: failed with {type(error).__name__}: {flax.reason(error)}") from error


def _check_shares(algorithm: Algorithm, model: Tree) -> None:
    """Raises ConfigError where a model is to be shared out that holds whole numbers."""
    for name, leaf in tree.named_leaves(tree.mixed(model)).items():
        if algorithm.keeps_mean == "running_sums" and not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ConfigError(
                f"algorithm.name={algorithm.name!r}: shares a model out in parts, and {name} of this one is "
                f"{leaf.dtype.name}; keep it as float32, or use an algorithm of exchanges"
            )


def _check_network(experiment: Experiment, algorithm: Algorithm, plan: Schedule) -> None:
    network, live = experiment.network, experiment.driver.kind != "simulate"
    if network.rule != "double_entry":
        if live:
            raise ConfigError(
                f"network.rule={network.rule!r}: real nodes keep double entry; the wrong rules exist for studies. "
                'Use driver.kind = "simulate"'
            )
        if algorithm.link != "exchange":
            raise ConfigError(f"network.rule={network.rule!r}: {algorithm.name} makes no exchanges; leave rule out")
    if network.detection != 1 and live:
        raise ConfigError(
            f"network.detection={network.detection}: real nodes find out by themselves; leave it out, or use "
            'driver.kind = "simulate"'
        )
    if network.sync == "async" and algorithm.keeps_mean == "running_sums":
        raise ConfigError(
            f"network.sync='async': a node that trains faster than it hears keeps a small weight in {algorithm.name}, "
            "and its steps blow up; use 'deadline', or another algorithm"
        )
    if network.sync == "async" and not live:
        raise ConfigError("network.sync='async': the simulator has no clock; use driver.kind = \"virtual\"")
    if network.late:
        if live:
            raise ConfigError('network.late: real nodes are as late as they are; use driver.kind = "simulate"')
        if algorithm.link == "exchange" and algorithm.per_edge:
            raise ConfigError(
                f"network.late: {algorithm.name} with its combinators tells each neighbour something else, which late "
                "does not keep apart; leave it out"
            )
        if algorithm.link != "exchange" or algorithm.plan is not None or len(plan.neighbor) > 1:
            raise ConfigError(
                "network.late: needs an algorithm of exchanges on a graph that stays the same; leave it out"
            )
