"""Predictions instead of weights: nodes tell each other what they answer on public rows, and learn from that."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2pfl import tree
from p2pfl.check import positive, whole
from p2pfl.errors import ConfigError
from p2pfl.learning.optimizers import by_gradient
from p2pfl.methods.compose import Wrap
from p2pfl.methods.objectives.objective import Objective, of_kinds
from p2pfl.types import Algorithm, Array, Batches, Key, Learner, Metrics, Params, State, Steps, Tree

NAME, TABLE, HEARD = "medisecfed", "predictions", "heard"
ROWS = 200
"""Public rows, where nobody has said how many."""
LARGEST = 2**26
"""Bytes of public rows, which lie in the compiled program of every node."""
AT_ONCE = 256
"""Public rows that a model answers at once: bounds its memory."""
BEFORE = ("augment", "class_weights", "fedsld", "missing_classes", "ridge", "sharpness")
"""Objectives that may stand before it in the list: they change what a node learns of its own rows, and no more."""


def medisecfed(
    optimizer: optax.GradientTransformation,
    rows: int = ROWS,
    public: str | None = None,
    strength: float = 1.0,
    temperature: float = 2.0,
    batch: int = 32,
    bound: float = 20.0,
) -> Objective:
    """The model stays at home; what travels and is mixed is a table of its predictions on public rows without labels.

        told:      Z_i = centred outputs of model i on the N public rows, after its local steps     [N, C]
        mixed:     Z = sum_j w_ij Z_j, or what a robust rule in algorithm.wrap makes of them
        learned:   f_i + strength T^2 mean over `batch` public rows of KL(softmax(Z / T) | softmax(z_i / T))

    So models need not be of one architecture ([[other_model]]), no parameter leaves a node, a message has 4 N C bytes
    whatever the model, and a liar can do no more than answer public rows wrongly, which a rule such as `monna` leaves
    out. Outputs are centred (their mean over classes is zero, which no probability depends on), and what comes of
    mixing counts up to `bound`. Public rows are drawn anew in each local step, from the step's key, and the model sees
    them as in evaluation; as long as nobody has told anything nothing is learned from others. A joiner is given a
    table, and learns from it from its first step on. The model has a copy of the experiment's optimizer; what the other
    copy does to the table in local steps, such as weight decay, is neither learned from nor told.

    Of the source its abstract alone was at hand: knowledge is exchanged by distillation and "model inversion" instead
    of parameters, which withstands malicious participants. It has a server, and no public rows; its distillation data
    follow from the models by inversion. Here they are public rows, as in FedMD, without labels; who is malicious is
    left out by a robust rule over the graph. Sources: Kumar, Purohit, Bharti, Singh, Singh, "MediSecFed: private and
    secure medical image classification in the presence of malicious clients" (2021); Li, Wang, "FedMD: heterogenous
    federated learning via model distillation" (2019); of the loss Hinton, Vinyals, Dean, "Distilling the knowledge in
    a neural network" (2015).

    Args:
        optimizer: of the experiment, or any of optax.
        rows: N, how many public rows there are, >= 2.
        public: a file of rows like those of the data, the same at all sites, of which the first N are taken; None: N
            training rows are set apart, which is for studies.
        strength: of what is learned from others, > 0.
        temperature: T > 0.
        batch: public rows of a local step, >= 1.
        bound: the largest absolute value that a number of the mixed table counts for, > 0.

    Returns:
        The objective; `shown` makes it one that has the public rows.

    Raises:
        ConfigError: an argument is out of bounds, or public rows are too large; when applied, an algorithm that sends
            something other than the model that local steps have led to, or a learner with a model of its own or with a
            penalty towards a shared one.

    Example:
        >>> import jax, numpy as np, optax, p2pfl
        >>> from flax import nnx
        >>> learner = p2pfl.from_flax(lambda rngs: nnx.Linear(4, 2, rngs=rngs), np.zeros((1, 4), np.float32), classes=2)
        >>> told = p2pfl.methods.objectives.medisecfed(optax.sgd(0.1), rows=100).shaped(learner, (4,))
        >>> jax.eval_shape(told.init, jax.random.key(0))["trained"]["predictions"].shape
        (100, 2)
    """
    whole(2, rows=rows)
    whole(1, batch=batch)
    positive(strength=strength, temperature=temperature, bound=bound)
    for name, value in (("strength", strength), ("temperature", temperature), ("bound", bound)):
        if value == float("inf"):
            raise ConfigError(f"objective {NAME}: {name}={value!r}: must be finite")
    by_gradient(optimizer, f"objective {NAME}")

    def made(x: np.ndarray | None) -> Objective:
        if x is not None and x.nbytes > LARGEST:
            raise ConfigError(
                f"objective {NAME}: rows={rows}: public rows have {x.nbytes / 2**20:.0f} MiB, which would lie in the "
                f"compiled program of every node; ask for at most {rows * LARGEST // x.nbytes} of them "
                f"({LARGEST / 2**20:.0f} MiB)"
            )

        def shaped(learner: Learner, row: tuple[int, ...]) -> Learner:
            teach = None if x is None else _teaching(learner, x, (strength, temperature, bound), min(batch, rows))
            return _at_home(learner, optimizer, (rows, *_output(learner, row)), teach)

        told = None if x is None else _telling(x)
        return Objective(shaped=shaped, wrap=told, suits=of_kinds(NAME, "classes"))

    return made(None)._replace(shown=made)


Teaching = Callable[[Params, Array, Key], Tree]
"""(model, mixed table [N, C], key) -> gradient of what is to be learned from others."""


def _teaching(learner: Learner, x: np.ndarray, by: tuple[float, float, float], batch: int) -> Teaching:
    """What is learned from others. `by`: strength, temperature and bound."""
    strength, temperature, bound = by

    def teach(params: Params, table: Array, key: Key) -> Tree:
        drawn = jax.random.randint(jax.random.fold_in(key, sum(NAME.encode())), (batch,), 0, len(x), jnp.int32)
        seen, wanted = jnp.asarray(x, table.dtype)[drawn], jnp.clip(table[drawn], -bound, bound)
        aim = jax.nn.softmax(wanted / temperature, axis=-1)

        def loss(trained: Tree) -> Array:
            said = jax.nn.log_softmax(learner.predict({**params, "trained": trained}, seen) / temperature, axis=-1)
            cross: Array = -(aim * said).sum(axis=-1).mean()  # KL but for the entropy of the aim, which is given
            return strength * temperature**2 * cross

        heard = (table != 0).any()  # nobody has told anything yet
        gradient: Tree = jax.tree.map(lambda leaf: jnp.where(heard, leaf, 0), jax.grad(loss)(params["trained"]))
        return gradient

    return teach


def _output(learner: Learner, row: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what the model answers for a row of this shape: [C]."""

    def answer(key: Key) -> Array:
        params = learner.init(key)
        return learner.predict(params, jnp.zeros((1, *row), jax.tree.leaves(params["trained"])[0].dtype))

    found: tuple[int, ...] = jax.eval_shape(answer, jax.random.key(0)).shape[1:]
    return found


def _at_home(
    learner: Learner, optimizer: optax.GradientTransformation, shape: tuple[int, ...], teach: Teaching | None
) -> Learner:
    """The learner whose shared model is a table [N, C], and whose own one is private."""
    like = jax.eval_shape(learner.init, jax.random.key(0))
    if learner.penalty is not None or learner.personal is not None:
        raise ConfigError(
            f"objective {NAME}: an objective before it pulls towards a shared model, or keeps one of its own, and here "
            "no model is shared; leave it out"
        )
    dtype = jax.tree.leaves(like["trained"])[0].dtype

    def inside(params: Params) -> Params:
        return {**params, **params["private"][NAME]["model"]}

    def init(key: Key) -> Params:
        params = learner.init(key)
        table = jnp.zeros(shape, dtype)
        home = {"model": tree.mixed(params), "optimizer": optimizer.init(params["trained"]), HEARD: table}
        return {
            **params, "trained": {TABLE: table}, "carried": {}, "private": {**params.get("private", {}), NAME: home},
        }  # fmt: skip

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        home, table = params["private"][NAME], params["trained"][TABLE]
        own = home["model"]["trained"]
        gradient, others, metrics = learner.grad(inside(params), batch, key)
        if teach is not None:
            gradient = tree.add(gradient, teach(inside(params), home[HEARD], key))
        updates, memory = optimizer.update(gradient, home["optimizer"], own)
        model = {"trained": optax.apply_updates(own, updates), "carried": others["carried"]}
        kept = {**others["private"], NAME: {**home, "model": model, "optimizer": memory}}
        return {TABLE: jnp.zeros_like(table)}, {**others, "carried": {}, "private": kept}, metrics

    plain = learner.plain
    return learner.viewed(lambda params, x: (inside(params), x))._replace(
        init=init, grad=grad, plain=lambda params: inside(params) if plain is None else plain(inside(params))
    )


def _telling(x: np.ndarray) -> Wrap:
    """What is sent is the table of what the model answers after its local steps."""

    def wrap(inner: Algorithm) -> Algorithm:
        learner = inner.learner
        if inner.link == "none":  # there is nobody to tell
            return inner
        if not inner.any_steps or learner is None or inner.keeps_mean == "running_sums":
            raise ConfigError(
                f"objective {NAME}: tells predictions in the place of the model that local steps lead to, and "
                f"{inner.name} sends or remembers something else; use dsgd"
            )
        asked = learner.predict

        def predictions(params: Params) -> Params:
            table = params["trained"][TABLE]
            parts = [asked(params, jnp.asarray(x[at : at + AT_ONCE], table.dtype)) for at in range(0, len(x), AT_ONCE)]
            outputs = jnp.concatenate(parts)
            return {**params, "trained": {TABLE: (outputs - outputs.mean(axis=-1, keepdims=True)).astype(table.dtype)}}

        def local(state: State, batches: Batches, key: Key, steps: Steps | None) -> tuple[State, Metrics]:
            params = inner.params(state)  # the table as it was mixed, which an optimizer with weight decay changes
            home = {**params["private"][NAME], HEARD: params["trained"][TABLE]}
            state = inner.replaced(state, {**params, "private": {**params["private"], NAME: home}})
            state, metrics = inner.local(state, batches, key, steps)
            params = inner.params(state)
            told = predictions(params)
            if steps is not None:  # who takes none passes on what it has
                told = jax.tree.map(lambda new, old: jnp.where(steps > 0, new, old), told, params)
            return inner.replaced(state, told), metrics

        travels = f"predictions on {len(x)} public rows"
        return inner._replace(local=local, any_steps=False, travels=travels)

    return wrap
