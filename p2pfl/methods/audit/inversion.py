"""Rows out of what local steps have changed: in closed form, and by searching for rows that would change the same.

A neighbour is not sent a gradient: it is sent models, and what it can work out is the difference that H local steps of
B rows have made. So rows are searched for by taking those very steps with them (as Geiping et al. do for federated
averaging), whatever the optimizer is. That an attack finds nothing proves nothing: others may do better.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2pfl import tree
from p2pfl.check import at_least, one_of
from p2pfl.methods.audit.heard import Overheard
from p2pfl.types import Array, Key, Params, Tree

ATTACKS = ("dlg", "cosine")
RATE = 0.025
"""Of Adam on signs, in ranges of inputs: Geiping et al. have .1 standard deviations, of which a range has some four."""
_TINY = 1e-24


class LocalChange(NamedTuple):
    """What local steps have changed, as a neighbour works it out."""

    node: int
    round: int
    start: Params  # the model before
    change: Tree  # "trained" and "carried": after less before
    steps: int
    rows: int  # of a step


class Search(NamedTuple):
    """How rows are searched for."""

    attack: str = "cosine"  # of ATTACKS
    iterations: int = 400
    restarts: int = 1
    smooth: float = 1e-4  # what total variation counts, of images; 0 for dlg


class Inverted(NamedTuple):
    """Rows that were searched for."""

    x: np.ndarray  # [steps * rows, ...]
    y: np.ndarray  # [steps * rows] int32: the labels that were taken for theirs
    mismatch: float  # what is left of the loss of the search


# --- in closed form


def closed_form(change: LocalChange, row: tuple[int, ...]) -> np.ndarray | None:
    """Return the input of a first dense layer by division: x = (dL/dW_k) / (dL/db_k).

    Exact for a single step of plain SGD on one row; else a mixture of rows. Over all units k at once by least squares,
    x = sum_k dW_k db_k / sum_k db_k^2, which is less sensitive to rounding. Source: Phong, Aono, Hayashi, Wang,
    Moriai, "Privacy-preserving deep learning via additively homomorphic encryption" (2018), section 3.

    Args:
        change: of which a dense layer with bias takes in the row as it is.
        row: the shape of a row.

    Returns:
        The row, in its shape; None where the model has no such layer, or nothing has changed.

    Example:
        >>> import numpy as np
        >>> from p2pfl.methods.audit.inversion import LocalChange, closed_form
        >>> x, b = np.array([1.0, 2.0, 3.0]), np.array([0.5, -2.0])
        >>> layer = {"kernel": np.outer(x, b), "bias": b}
        >>> closed_form(LocalChange(1, 1, {}, {"trained": {"layers": {0: layer}}, "carried": {}}, 1, 1), (3,)).tolist()
        [1.0, 2.0, 3.0]
    """
    leaves = tree.named_leaves(change.change["trained"])
    for name, leaf in leaves.items():
        bias = leaves.get(f"{name.removesuffix('kernel')}bias")
        if name.endswith("kernel") and bias is not None and leaf.shape == (int(np.prod(row)), *bias.shape):
            size = float((np.asarray(bias, np.float64) ** 2).sum())
            if size > 0:
                found: np.ndarray = np.asarray(leaf, np.float64) @ np.asarray(bias, np.float64) / size
                return found.reshape(row)
    return None


def labels(change: LocalChange, heard: Overheard) -> np.ndarray:
    """Return the labels that are taken for those of the rows: [steps * rows] int32, dealt out over the steps.

    Of a single row the one whose bias in the last layer rises most (Zhao, Mopuri, Bilen, "iDLG: Improved deep leakage
    from gradients" (2020)). Of more, with plain SGD, counts: a step of rate eta lowers the bias of class k by eta times
    (mean probability of k - share of k), with probabilities as the node's own rows get them at the start (as Wainakh et
    al., "User-level label leakage from gradients in federated learning" (2022), by random inputs). Where no such bias
    travels, or with other optimizers, the shares of the node's own rows.
    """
    facts, many = heard.facts, change.steps * change.rows
    bias = _last_bias(change.change["trained"], facts.classes)
    shares = np.bincount(heard.y, minlength=facts.classes) / len(heard.y)
    if bias is not None and many == 1:
        return np.array([int(bias.argmax())], np.int32)
    if bias is not None and facts.rate is not None:
        outputs = facts.learner.predict(change.start, jnp.asarray(heard.x))
        mean = np.asarray(jax.nn.softmax(outputs.astype(jnp.float32)), np.float64).mean(axis=0)
        shares = np.maximum(mean + bias / (facts.rate * change.steps), 0)
    return _dealt(shares, change.steps, change.rows)


def _dealt(shares: np.ndarray, steps: int, rows: int) -> np.ndarray:
    """Labels in these shares, by largest remainder, so that every step has of each about as many."""
    many = steps * rows
    wanted = many * shares / max(shares.sum(), _TINY)
    counts = np.floor(wanted).astype(np.int64)
    for k in np.argsort(counts - wanted, kind="stable")[: many - counts.sum()]:
        counts[k] += 1
    found = np.repeat(np.arange(len(shares)), counts)[:many]
    return found.reshape(rows, steps).T.reshape(-1).astype(np.int32)


def _last_bias(trained: Tree, classes: int) -> np.ndarray | None:
    """The change of the bias that a class each has, of the last layer that has one."""
    found = {
        name: leaf for name, leaf in tree.named_leaves(trained).items()
        if name.endswith("bias") and leaf.shape == (classes,)
    }  # fmt: skip
    if not found:
        return None

    def place(name: str) -> tuple[bool, list[tuple[bool, int, str]]]:
        parts = name.split("/")
        return "head" in parts, [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]

    return np.asarray(found[max(found, key=place)], np.float64)


# --- by search


def invert(change: LocalChange, heard: Overheard, search: Search, seed: int = 0) -> Inverted:
    """Search for rows with which the local steps would have changed the same.

    dlg: |change(x) - change|^2 by L-BFGS; labels as `labels` has them. Source: Zhu, Liu, Han, "Deep leakage from
    gradients" (2019), with the labels of iDLG (Zhao et al. 2020).
    cosine: 1 - cos(change(x), change) + smooth TV(x) by Adam on signs of gradients, rate RATE, lowered to a tenth after
    3/8, 5/8 and 7/8 of the iterations, within the bounds of inputs. Source: Geiping, Bauermeister, Droege, Moeller,
    "Inverting gradients" (2020), whose 4,800 iterations are `Search.iterations` here.
    Of models with batch normalisation nothing but the gradient is matched: the prior of Yin et al. (GradInversion,
    2021) needs gradients of running statistics, at which Flax stops them.

    Args:
        change: what local steps have changed.
        heard: what the node has.
        search: how.
        seed: of the rows it begins with.

    Returns:
        The rows with the smallest loss of all restarts.

    Raises:
        ConfigError: another attack, or a number out of bounds.
    """
    one_of(ATTACKS, attack=search.attack)
    at_least(1, iterations=search.iterations, restarts=search.restarts)
    y = labels(change, heard)
    loss = _loss(change, heard, search, y)
    shape = (change.steps * change.rows, *heard.x.shape[1:])
    keys = jax.random.split(jax.random.key(seed), search.restarts)
    by = _lbfgs if search.attack == "dlg" else _signs
    dtype = heard.x.dtype

    @jax.jit
    def run(key: Key) -> tuple[Array, Array]:
        return by(loss, jax.random.uniform(key, shape, dtype), search.iterations)

    tries = [run(key) for key in keys]
    values = [float(value) if np.isfinite(value) else np.inf for _, value in tries]
    best = int(np.argmin(values))
    found = heard.low + (heard.high - heard.low) * np.nan_to_num(np.asarray(tries[best][0]))
    return Inverted(found.astype(dtype), y, values[best])


def _loss(change: LocalChange, heard: Overheard, search: Search, y: np.ndarray) -> Callable[[Array], Array]:
    """The loss of a search, of rows in units of the bounds of inputs."""
    facts, start = heard.facts, change.start
    batched = jnp.asarray(y.reshape(change.steps, change.rows))
    low, wide = jnp.asarray(heard.low), jnp.asarray(heard.high - heard.low)
    goal = _row(change.change["trained"])
    size = jnp.sqrt(jnp.maximum((goal**2).sum(), _TINY))

    def loss(unit: Array) -> Array:
        x = jnp.broadcast_to(low, unit.shape) + jnp.broadcast_to(wide, unit.shape) * unit
        batches = {"x": x.reshape(change.steps, change.rows, *x.shape[1:]), "y": batched}
        after = facts.local(start, batches, change.node, change.round)
        made = _row(after["trained"]) - _row(start["trained"])
        if search.attack == "dlg":
            found = ((made - goal) ** 2).sum() / size**2
        else:
            found = 1 - (made * goal).sum() / (size * jnp.sqrt((made**2).sum() + _TINY))
            if heard.picture and search.smooth:
                found = found + search.smooth * _variation(unit.reshape(-1, *heard.picture))
        return found

    return loss


def _row(part: Tree) -> Array:
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(part)]
    return jnp.concatenate([leaf.ravel() for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)])


def _variation(x: Array) -> Array:
    """Total variation of images [N, H, W, C]: the mean step from a pixel to the next."""
    return jnp.abs(x[:, 1:] - x[:, :-1]).mean() + jnp.abs(x[:, :, 1:] - x[:, :, :-1]).mean()


def _signs(loss: Callable[[Array], Array], x: Array, iterations: int) -> tuple[Array, Array]:
    """Adam on the signs of gradients, within 0..1; of all it has seen the best."""
    lowered = {int(iterations * share): 0.1 for share in (3 / 8, 5 / 8, 7 / 8)}
    rule = optax.adam(optax.piecewise_constant_schedule(RATE, lowered))
    find = jax.value_and_grad(loss)

    def step(carry: tuple[Array, Tree, Array, Array], _: None) -> tuple[tuple[Array, Tree, Array, Array], None]:
        x, state, best, least = carry
        value, gradient = find(x)
        better = value < least
        best, least = jnp.where(better, x, best), jnp.where(better, value, least)
        updates, state = rule.update(jnp.sign(gradient), state)
        return (jnp.clip(x + updates, 0, 1), state, best, least), None

    first = (x, rule.init(x), x, jnp.asarray(jnp.inf, x.dtype))
    (x, _, best, least), _ = jax.lax.scan(step, first, None, length=iterations)
    return _better(loss, x, best, least)


def _lbfgs(loss: Callable[[Array], Array], x: Array, iterations: int) -> tuple[Array, Array]:
    """L-BFGS with a line search, without bounds; of all it has seen the best."""
    rule = optax.lbfgs()
    find = optax.value_and_grad_from_state(loss)

    def step(carry: tuple[Array, Tree, Array, Array], _: None) -> tuple[tuple[Array, Tree, Array, Array], None]:
        x, state, best, least = carry
        value, gradient = find(x, state=state)
        better = value < least
        best, least = jnp.where(better, x, best), jnp.where(better, value, least)
        updates, state = rule.update(gradient, state, x, value=value, grad=gradient, value_fn=loss)
        return (optax.apply_updates(x, updates), state, best, least), None

    first = (x, rule.init(x), x, jnp.asarray(jnp.inf, x.dtype))
    (x, _, best, least), _ = jax.lax.scan(step, first, None, length=iterations)
    return _better(loss, x, best, least)


def _better(loss: Callable[[Array], Array], x: Array, best: Array, least: Array) -> tuple[Array, Array]:
    value = loss(x)
    better = value < least
    return jnp.where(better, x, best), jnp.where(better, value, least)


# --- of a model alone


def class_images(heard: Overheard, params: Params, iterations: int = 200) -> np.ndarray:
    """Return an input that a model takes for each class most surely: model inversion, [classes, ...].

    From the mean of the bounds, down the loss of the class (and for images the total variation), by Adam within the
    bounds. Source: Fredrikson, Jha, Ristenpart, "Model inversion attacks that exploit confidence information" (2015),
    algorithm MI-FACE, with total variation in place of their denoising step.

    Args:
        heard: what the node has; only what all know of the model, and the bounds.
        params: a whole model.
        iterations: >= 1.
    """
    at_least(1, iterations=iterations)
    facts, wide = heard.facts, heard.high - heard.low
    shape = (facts.classes, *heard.x.shape[1:])
    y = jnp.arange(facts.classes, dtype=jnp.int32)

    def loss(unit: Array) -> Array:
        x = jnp.broadcast_to(heard.low, unit.shape) + jnp.broadcast_to(wide, unit.shape) * unit
        outputs = facts.learner.predict(params, x)
        each = optax.softmax_cross_entropy_with_integer_labels(outputs, y).sum()
        return each + (_variation(unit.reshape(-1, *heard.picture)) if heard.picture else 0)

    rule = optax.adam(0.05)

    @jax.jit
    def run(x: Array) -> Array:
        def step(carry: tuple[Array, Tree], _: None) -> tuple[tuple[Array, Tree], None]:
            x, state = carry
            updates, state = rule.update(jax.grad(loss)(x), state)
            return (jnp.clip(x + updates, 0, 1), state), None

        return jax.lax.scan(step, (x, rule.init(x)), None, length=iterations)[0][0]

    found = np.asarray(run(jnp.full(shape, 0.5, heard.x.dtype)))
    return np.asarray(heard.low + wide * found, heard.x.dtype)
