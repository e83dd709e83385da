"""Methods that change the gradient of the shared model and keep nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from p2pfl import tree
from p2pfl.algorithms.fedprox import proximal
from p2pfl.check import at_least, fraction, positive
from p2pfl.errors import ConfigError
from p2pfl.methods.objectives.objective import Objective
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree


def fedprox(optimizer: optax.GradientTransformation, mu: float) -> Objective:
    """Local steps are held back to the model x that the round began with: f(z) + mu/2 |z - x|^2, `mu` >= 0.

    See p2pfl.algorithms.fedprox. The term is for the shared model: models of the node's own have none. Keeps nothing.
    Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated optimization in heterogeneous networks" (2020).

    Args:
        optimizer: of the experiment, or any of optax.
        mu: strength, >= 0.

    Returns:
        The objective.

    Raises:
        ConfigError: mu < 0.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.fedprox(optax.sgd(0.1), mu=0.1).facts
        ()
    """
    at_least(0, mu=mu)
    return Objective(lambda learner: proximal(learner, mu))


def sharpness(optimizer: optax.GradientTransformation, radius: float = 0.05) -> Objective:
    """The gradient at the worst model nearby: g(w + radius g(w) / |g(w)|), for minima that are flat; `radius` > 0.

    Two gradients a step, of the same batch with the same randomness; loss and batch statistics are those of the first.
    |g| is the norm of the gradient of the whole model, private leaves included. Keeps nothing.
    Sources: Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-aware minimization" (2021), equation 3; Jiang, Wang, Dou,
    "HarmoFL" (2022), which uses it in federated training under different scanners.

    Args:
        optimizer: of the experiment, or any of optax.
        radius: in units of the model, > 0.

    Returns:
        The objective.

    Raises:
        ConfigError: radius <= 0.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.sharpness(optax.sgd(0.1)).facts
        ()
    """
    positive(radius=radius)

    def wrap(learner: Learner) -> Learner:
        def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
            gradient, others, metrics = learner.grad(params, batch, key)
            length = _norm(gradient)
            scale = jnp.where(length > 0, radius / jnp.where(length > 0, length, 1), 0)
            worst = jax.tree.map(lambda w, g: w + scale.astype(w.dtype) * g, params["trained"], gradient)
            return learner.grad({**params, "trained": worst}, batch, key)[0], others, metrics

        return learner._replace(grad=grad)

    return Objective(wrap)


def ridge(optimizer: optax.GradientTransformation, strength: float, matching: str = "kernel") -> Objective:
    """A penalty on the size of the weights: f(w) + strength/2 |w|^2, `strength` >= 0.

    Of the leaves of the shared model whose path ends in `matching`: so an intercept has none. f is the mean over rows,
    so that in a sum over N rows the penalty is N strength/2 |w|^2. Unlike the `weight_decay` of AdamW, which is apart
    from the gradient's scale, it has the same minimum whatever the optimizer. Keeps nothing. Source: Hoerl and Kennard,
    "Ridge regression: biased estimation for nonorthogonal problems" (1970).

    Args:
        optimizer: of the experiment, or any of optax.
        strength: of the penalty, >= 0.
        matching: the last part of the paths of the leaves that it is on.

    Returns:
        The objective.

    Raises:
        ConfigError: strength < 0; when a model is made, no leaf has such a path.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.ridge(optax.sgd(0.1), strength=0.01).facts
        ()
    """
    at_least(0, strength=strength)

    def wrap(learner: Learner) -> Learner:
        def held(trained: Tree) -> Tree:
            return jax.tree_util.tree_map_with_path(
                lambda path, w: w if str(getattr(path[-1], "key", path[-1])) == matching else jnp.zeros_like(w), trained
            )

        like = tree.named_leaves(jax.eval_shape(learner.init, jax.random.key(0))["trained"])
        if not any(name.split("/")[-1] == matching for name in like):
            raise ConfigError(f"objective ridge: matching={matching!r}: no leaf ends so; there are: {', '.join(like)}")

        def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
            gradient, others, metrics = learner.grad(params, batch, key)
            sized = held(params["trained"])
            gradient = jax.tree.map(lambda g, w: g + jnp.asarray(strength, g.dtype) * w, gradient, sized)
            more = jnp.asarray(strength / 2, metrics["loss"].dtype) * _norm(sized) ** 2
            return gradient, others, {**metrics, "loss": metrics["loss"] + more}

        return learner._replace(grad=grad)

    return Objective(wrap)


def proportional(optimizer: optax.GradientTransformation, baseline: float = 5.0, least: float = 0.2) -> Objective:
    """Proportional fairness: the sum over nodes of the logarithm of a utility M - f_i is made large, M = `baseline`.

        minimise - sum_i M log(1 - f_i(x) / M),      gradient sum_i g_i / (1 - f_i / M)

    A node that fits badly counts more, by M / (M - loss), wherever it is in the graph: its local steps are longer, and
    mixing stays as it is, so that the mean is kept. As M grows this becomes the plain sum of the losses. The loss is
    that of the batch; above M (1 - `least`) the factor stays 1 / `least`, where the published methods take the plain
    loss or leave the logarithm undefined. Keeps nothing.
    Sources: Zhang, Malekmohammadi, Chen, Yu, "Proportional fairness in federated learning" (2022), whose objective and
    local steps these are; Hosseini, Sikaroudi, Babaie, Tizhoosh, "Proportionally fair hospital collaborations in
    federated learning of histopathology images" (Prop-FFL, 2023), which is of the same kind; its exact objective could
    not be read where this was written.

    Args:
        optimizer: of the experiment, or any of optax; one that divides by the gradient's size, such as Adam, undoes
            most of it.
        baseline: the loss at which a node would have no utility at all, > 0, in units of the loss.
        least: the least utility that is told apart, as a share of the baseline, > 0 and < 1.

    Returns:
        The objective.

    Raises:
        ConfigError: an argument is out of bounds.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.proportional(optax.sgd(0.1), baseline=2.0).facts
        ()
    """
    positive(baseline=baseline)
    fraction(least=least)

    def wrap(learner: Learner) -> Learner:
        def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
            gradient, others, metrics = learner.grad(params, batch, key)
            factor = 1 / jnp.maximum(1 - metrics["loss"] / baseline, least)
            return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradient), others, metrics

        return learner._replace(grad=grad)

    return Objective(wrap)


def _norm(leaves: Tree) -> Array:
    """[] the Euclidean norm of all leaves together."""
    return jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(leaves)))
