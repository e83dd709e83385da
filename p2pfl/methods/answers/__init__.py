"""Answers: what a node can make, at the end, of the model that all have, with its own rows alone.

    consensus      the shared model as it is
    best           of the models that the node has had, the one with the best score on its validation rows
    personal       the node's own, where the experiment's objective trains one
    fine_tuned     the shared model after some local steps
    interpolated   between the shared model and the personal or fine-tuned one, as far as validation rows say
    recalibrated   the shared model with the batch statistics of the node's own inputs; needs no labels
    adapted        the same for inputs that are to be predicted, and a few steps for certain and steady answers
    routed         the same from a mixture, layer by layer, of the personal models that are here

None of them sends anything. `adapted` and `routed` look at the inputs of the test rows, though not at their labels: as
a hospital without labels may, but say it beside their figures. For a choice among personal models see `selector`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2pfl.check import at_least, one_of, positive
from p2pfl.data import Samples
from p2pfl.errors import ConfigError
from p2pfl.learning.batching import Batching, eval_set
from p2pfl.learning.local_steps import descend
from p2pfl.methods.answers import adaptation, calibration
from p2pfl.methods.answers import selector as choice
from p2pfl.methods.answers.selector import Selector, selector
from p2pfl.methods.watching import BEST, best_of
from p2pfl.types import Array, Key, Learner, Params, Tree

__all__ = ["ANSWERS", "ROUTED", "SELECTOR", "Answer", "Own", "Selector", "check", "held_back", "prepared", "selector"]

SELECTOR = "selector"
"""The answer that is a choice among the personal models that are there: see `selector`."""
ROUTED = "routed"
"""The answer that takes a bank of personal models: see `routed`."""
ADAPTED = ("adapted", ROUTED)
"""Answers that adapt to the inputs they are to predict."""
HELD_BACK = 5
"""Where a node has no validation rows of its own, one of so many training rows is held back from fine-tuning."""
ALPHAS = tuple(i / 10 for i in range(11))
"""What `interpolated` tries: the share of the tuned model."""


class Answer(NamedTuple):
    """A model that answers."""

    params: Params
    note: str  # how it came about, in words; "" where there is nothing to be said


class Own(NamedTuple):
    """The model and rows that a node makes its answers of."""

    node: int
    params: Params  # after the last mixing
    train: Samples  # its own rows
    validation: Samples | None = None  # its own, where it has any: neither trained on nor tested on
    unlabelled: np.ndarray | None = None  # x of the rows that are to be predicted
    bank: tuple[Params, ...] = ()  # the personal models that are here, of this node and of others


class AnswerInputs(NamedTuple):
    """The inputs that all nodes have in common: see `prepared`."""

    learner: Learner
    optimizer: optax.GradientTransformation
    kind: str
    batch_size: int
    seed: int
    steps: int
    adapt_steps: int
    adapt_rate: float
    noise: float
    consistency: float
    tune: Callable[[Params, Tree, Key], Params]  # (model, batches [S, B, ...], key) -> model after S local steps
    again: Callable[[Params, Array, Array, Key], Params]  # see calibrate.compiled


def prepared(
    names: Sequence[str],
    learner: Learner,
    optimizer: optax.GradientTransformation,
    kind: str,
    batch_size: int,
    seed: int,
    steps: int = 50,
    adapt_steps: int = 10,
    adapt_rate: float = 0.01,
    noise: float = 0.05,
    consistency: float = 0.1,
) -> Callable[[Own], dict[str, Answer]]:
    """A function from what a node has to its answers by name; used for many nodes, it is compiled once.

    `optimizer`: of the experiment; fine-tuning starts it afresh. `kind`: a name of
    p2pfl.learning.targets.TARGETS. `steps`: of
    fine-tuning. Of `adapted`: `adapt_steps`, the learning rate of its Adam, its `noise` in standard deviations of x,
    and the weight of `consistency`. Raises ConfigError for what can't be made (see `check`).
    """
    check(names, learner, kind)
    at_least(1, steps=steps, adapt_steps=adapt_steps, batch_size=batch_size)
    positive(adapt_rate=adapt_rate)
    at_least(0, noise=noise, consistency=consistency)

    @jax.jit
    def tune(params: Params, batches: Tree, key: Key) -> Params:
        return descend(learner, optimizer, params, optimizer.init(params["trained"]), batches, key).params

    given = AnswerInputs(
        learner, optimizer, kind, batch_size, seed, steps, adapt_steps, adapt_rate, noise, consistency, tune,
        calibration.compiled(learner),
    )  # fmt: skip
    makers = {name: ANSWERS[name](given) for name in names}

    def of_node(own: Own) -> dict[str, Answer]:
        own = _cast(own)
        return {name: maker(own) for name, maker in makers.items()}

    return of_node


def check(names: Sequence[str], learner: Learner, kind: str) -> None:
    """Raises ConfigError for names that are unknown, and for answers that the learner or the task can't give."""
    for name in names:
        one_of((*ANSWERS, SELECTOR), answers=name)
    if SELECTOR in names:
        choice.check(learner)
    if "personal" in names and learner.personal is None:
        raise ConfigError(
            "answers='personal': nothing trains a model of the node's own; add an objective such as ditto, or ask for "
            "'fine_tuned'"
        )
    for name in ("interpolated", ROUTED):  # they mix models, and a mixture of experts is none
        if name in names and "experts" in jax.eval_shape(learner.init, jax.random.key(0)).get("private", {}):
            raise ConfigError(f"answers={name!r}: mixes two models, and the objective experts has a gate; leave it out")
    if BEST in names and BEST not in jax.eval_shape(learner.init, jax.random.key(0)).get("private", {}):
        raise ConfigError(
            "answers='best': is kept while the model is trained; name it in evaluation.answers of the run"
        )
    for name in ("recalibrated", *ADAPTED):
        if name in names:
            calibration.check(learner, name)
        if name in names and name in ADAPTED and kind not in adaptation.CERTAIN:
            raise ConfigError(
                f"answers={name!r}: makes answers certain, and data of kind {kind!r} has no probabilities; leave it out"
            )


Maker = Callable[[Own], Answer]


def consensus(given: AnswerInputs) -> Maker:
    """The shared model as it is after the last mixing."""
    return lambda own: Answer(own.params, "")


def best(given: AnswerInputs) -> Maker:
    """Of the models that evaluations have seen, and the last, the one with the best score on validation rows.

    Equals: the earliest. See p2pfl.methods.watching.
    """
    score = jax.jit(lambda params, x, y, mask: given.learner.evaluate(params, {"x": x, "y": y}, mask)["score"].sum())

    def answer(own: Own) -> Answer:
        held, known = own.validation, own.params["private"][BEST]
        if held is None or not len(held.y):
            return Answer(own.params, "the last: there are no validation rows to choose by")
        test = eval_set(held.x, held.y, whole=given.kind == "survival")
        last = float(sum(float(score(own.params, *chunk)) for chunk in test.chunks)) / test.rows
        if np.float32(last) > float(known["score"]):
            return Answer(own.params, f"the last, of score {last:.3f} on {test.rows} validation rows")
        found = f"of round {int(known['round'])}, of score {float(known['score']):.3f} on {test.rows} validation rows"
        return Answer(best_of(own.params), found)

    return answer


def personal(given: AnswerInputs) -> Maker:
    """The node's own model, as an objective has trained it."""
    assert given.learner.personal is not None
    run = jax.jit(given.learner.personal)
    return lambda own: Answer(run(own.params), "")


def fine_tuned(given: AnswerInputs) -> Maker:
    """`steps` local steps from the shared model: the experiment's objective and optimizer, the node's own batches."""
    return lambda own: Answer(_tuned(given, own, own.train), f"{given.steps} local steps on {len(own.train.y)} rows")


def interpolated(given: AnswerInputs) -> Maker:
    """(1 - alpha) consensus + alpha tuned, of ALPHAS the one with the least loss on validation rows; equals: the least.

    Tuned is the personal model where there is one, else a fine-tuned one. Validation rows are those of the data set
    that are the node's own; where there are none, a fifth of the training rows, drawn, which fine-tuning then does
    without. A personal model has seen them, so that alpha comes out too large. With less than five rows there is
    nothing to choose by, and the shared model answers. Batch statistics are interpolated alike.
    """
    learner = given.learner

    @jax.jit
    def losses(params: Params, tuned: Params, x: Array, y: Array, mask: Array) -> Array:
        def one(alpha: Array) -> Array:
            return learner.evaluate(_between(params, tuned, alpha), {"x": x, "y": y}, mask)["loss"].sum()

        return jax.lax.map(one, jnp.asarray(ALPHAS, x.dtype))

    own_model, between = jax.jit(learner.personal) if learner.personal else None, jax.jit(_between)

    def answer(own: Own) -> Answer:
        train, held, note = own.train, own.validation, "chosen on validation rows"
        if held is None or not len(held.y):
            train, held = held_back(own.train, given.seed, own.node)
            note = "chosen on training rows held back"
            if not len(held.y):
                return Answer(own.params, f"alpha 0: {len(train.y)} rows are too few to choose by")
            note += "" if own_model is None else ", on which the personal model was trained"
        tuned = own_model(own.params) if own_model else _tuned(given, own, train)
        test = eval_set(held.x, held.y, whole=given.kind == "survival")
        total = sum(np.asarray(losses(own.params, tuned, *chunk), np.float64) for chunk in test.chunks)
        best = int(np.argmin(total))
        alpha = jnp.asarray(ALPHAS[best], held.x.dtype)
        return Answer(between(own.params, tuned, alpha), f"alpha {ALPHAS[best]:g}, {note} ({test.rows})")

    return answer


def recalibrated(given: AnswerInputs) -> Maker:
    """The shared model with batch statistics as they are on the node's own training inputs: AdaBN.

    Source: Li, Wang, Shi, Hou, Liu, "Adaptive batch normalization for practical domain adaptation" (2018). See
    p2pfl.methods.answers.calibration for how.
    """

    def answer(own: Own) -> Answer:
        params = calibration.recalibrated(given.again, own.params, own.train.x, own.train.y[:1], _key(given, own))
        return Answer(params, f"batch statistics of {len(own.train.y)} training rows")

    return answer


def adapted(given: AnswerInputs) -> Maker:
    """Test-time adaptation without labels: batch statistics of the inputs to be predicted, then certain answers.

    Scale and bias of batch normalisation are moved by `adapt_steps` steps of Adam on all these inputs together (of
    many, the first ROWS), the statistics anew after each, so that what p2pfl.methods.answers.adaptation says is least:
    that answers are certain, the same under noise, and of images also when turned, and smooth. Without `unlabelled` it
    adapts to the training inputs. Sources: Wang, Shelhamer, Liu, Olshausen, Darrell, "Tent: fully test-time adaptation
    by entropy minimization" (2021); Jiang et al., "IOP-FL" (2023), outside personalization; with its bank of models it
    is `routed`. Certainty is no knowledge: where most answers are wrong, it makes them surely wrong.
    """
    adapt = _adapting(given)

    def answer(own: Own) -> Answer:
        return adapt(own, (own.params,), "")

    return answer


def routed(given: AnswerInputs) -> Maker:
    """The same from a bank: the personal models that are here and the shared one, mixed layer by layer.

    The weights of each layer are found along with scale and bias. A process that has all nodes has the personal models
    of all; a node by itself has its own. For a site that joins without labels. Source: Jiang, Yang, Chen, Dou,
    "IOP-FL: inside-outside personalization for federated medical image segmentation" (2023), outside personalization;
    see p2pfl.methods.answers.adaptation for what differs.
    """
    adapt = _adapting(given)

    def answer(own: Own) -> Answer:
        return adapt(own, (own.params, *own.bank), f", from a bank of {1 + len(own.bank)} models")

    return answer


def _adapting(given: AnswerInputs) -> Callable[[Own, tuple[Params, ...], str], Answer]:
    """A function from what a node has, and a bank of models, to the model that answers."""
    predict, adam = given.learner.predict, optax.adam(given.adapt_rate)
    least = adaptation.loss(given.kind, given.noise, given.consistency)

    @jax.jit
    def step(bank: tuple[Params, ...], params: Params, found: Tree, memory: Tree, x: Array, key: Key) -> Any:
        def objective(found: Tree) -> Array:
            tried = calibration.with_statistics_of(adaptation.routed(bank, found), params)
            return least(lambda x: predict(tried, x), x, key)

        updates, memory = adam.update(jax.grad(objective)(found), memory, found)
        found = optax.apply_updates(found, updates)
        return adaptation.routed(bank, found), found, memory

    def adapt(own: Own, bank: tuple[Params, ...], said: str) -> Answer:
        x = own.train.x if own.unlabelled is None or not len(own.unlabelled) else own.unlabelled
        inputs, label, key = jnp.asarray(x[: calibration.ROWS]), jnp.asarray(own.train.y[:1]), _key(given, own)
        found = adaptation.start(bank)
        memory: Any = adam.init(found)
        params = given.again(adaptation.routed(bank, found), inputs, label, key)
        for number in range(given.adapt_steps):
            params, found, memory = step(bank, params, found, memory, inputs, jax.random.fold_in(key, number))
            params = given.again(params, inputs, label, key)
        return Answer(params, f"{given.adapt_steps} steps on {len(inputs)} inputs without their labels{said}")

    return adapt


ANSWERS: Mapping[str, Callable[[AnswerInputs], Maker]] = MappingProxyType(
    {
        "consensus": consensus,
        "best": best,
        "personal": personal,
        "fine_tuned": fine_tuned,
        "interpolated": interpolated,
        "recalibrated": recalibrated,
        "adapted": adapted,
        "routed": routed,
    }
)
"""Makers of the models that answer, by name."""


def held_back(rows: Samples, seed: int, node: int) -> tuple[Samples, Samples]:
    """(rows to train on, rows to choose by): a fifth, rounded down, drawn from the seed and the node."""
    order = np.random.default_rng([seed, node, 0xE1D]).permutation(len(rows.y))
    count = len(rows.y) // HELD_BACK
    return _rows(rows, np.sort(order[count:])), _rows(rows, np.sort(order[:count]))


def _rows(samples: Samples, rows: np.ndarray) -> Samples:
    return Samples(samples.x[rows], samples.y[rows], None if samples.site is None else samples.site[rows])


def _cast(own: Own) -> Own:
    """With inputs in the precision of the model."""
    dtype = jax.tree.leaves(own.params["trained"])[0].dtype

    def rows(samples: Samples) -> Samples:
        return samples._replace(x=samples.x.astype(dtype))

    return own._replace(
        train=rows(own.train),
        validation=None if own.validation is None else rows(own.validation),
        unlabelled=None if own.unlabelled is None else own.unlabelled.astype(dtype),
    )


def _key(given: AnswerInputs, own: Own) -> Key:
    return jax.random.fold_in(jax.random.key(given.seed), own.node)


def _tuned(given: AnswerInputs, own: Own, train: Samples) -> Params:
    """The shared model after the local steps of fine-tuning."""
    one = np.ones(1, np.int64)
    batching = Batching(given.seed, one * own.node, one * len(train.y), one * given.steps, given.batch_size)
    rows = batching.indices(1)[0]
    batches = {"x": jnp.asarray(train.x[rows]), "y": jnp.asarray(train.y[rows])}
    return given.tune(own.params, batches, _key(given, own))


def _between(a: Params, b: Params, alpha: Array) -> Params:
    """a for 0, b for 1; counters as in a."""

    def leaf(a: Array, b: Array) -> Array:
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return a
        share = alpha.astype(a.dtype)
        return (1 - share) * a + share * b

    return jax.tree.map(leaf, a, b)
