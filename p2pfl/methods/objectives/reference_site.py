"""Features that are made like those of a reference site: FL-MRCM."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from p2pfl.check import at_least
from p2pfl.errors import ConfigError
from p2pfl.learning.local_steps import rest
from p2pfl.learning.optimizers import by_gradient
from p2pfl.methods import bulletin, site_facts
from p2pfl.methods.bulletin import Bulletin
from p2pfl.methods.objectives.adversary import discriminator, features_of, judge, telling_two, width
from p2pfl.methods.objectives.objective import Objective, featured
from p2pfl.tree import add
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree

NAME = "fl_mrcm"
CLASSIFIER = "fl_mrcm_classifier"
"""Of what is private: the site's own classifier of features."""
_STREAM = 0xF12
"""Sets the first classifier's randomness apart from that of the model."""


def fl_mrcm(
    optimizer: optax.GradientTransformation,
    reference: int = 0,
    strength: float = 1.0,
    rows: int = 4,
    noise: float = 0.0,
) -> Objective:
    """Features of every site become like those of a reference site, which it can't be told from by a classifier.

    At each site but the reference a classifier C is trained to tell features z of its own batch from features z_t of
    the reference, and the model is trained on f + strength L, L = mean of -log C(z): that its features are taken for
    those of the reference. C stays at its site, with an optimizer state of its own.

    **Features leave the reference site.** In each round it tells all others the features of `rows` rows of its last
    batch, in a bulletin that goes along with the models; in the paper its images themselves are at every site, from
    which features are made there. Features tell of the images that they are made of. `noise` is added to them before
    they leave; that is no privacy that an accountant could vouch for. Feature maps are told as the mean over 4 x 4
    fields, which is also what C sees: a small network in place of the paper's convolutions. The noise follows from the
    seed in studies, and comes from the operating system elsewhere.

    Source: Guo, Wang, Zhou, Jiang, Patel, "Multi-institutional collaborations for improving deep learning-based
    magnetic resonance image reconstruction using federated learning" (2021), equations 4 to 6; that labels are
    exchanged for the model's loss, and no gradient reversed, is the authors' program (github.com/guopengf/FL-MRCM).

    Args:
        optimizer: of the experiment, or any of optax.
        reference: the node whose features the others are made like; a planned one.
        strength: of L, >= 0.
        rows: of the reference that are told, >= 1; at most its batch.
        noise: standard deviation, in units of the features, >= 0.

    Returns:
        The objective.

    Raises:
        ConfigError: an argument is out of bounds; when applied, the model does not say what its features are, or there
            is no such node.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.fl_mrcm(optax.sgd(0.1), reference=1).bulletin.what
        'features of 4 rows of node 1, which tell of its images'
    """
    at_least(0, reference=reference, strength=strength, noise=noise)
    at_least(1, rows=rows)
    by_gradient(optimizer, f"objective {NAME}")

    def row(learner: Learner, x: tuple[int, ...]) -> Tree:
        shape = featured(NAME, learner, x).shape[1:]
        return {"features": jax.ShapeDtypeStruct((rows, width(shape)), jnp.float32)}

    told = Bulletin(NAME, row, f"features of {rows} rows of node {reference}, which tell of its images", bound=1e3)

    def wrap(learner: Learner) -> Learner:
        return _aligned(learner, optimizer, reference, strength, noise)

    return Objective(wrap, facts=("entropy",) if noise else (), bulletin=told)


def _aligned(
    inner: Learner, optimizer: optax.GradientTransformation, reference: int, strength: float, noise: float
) -> Learner:
    """The learner of a model that holds the table already."""

    def init(key: Key) -> Params:
        params = inner.init(key)
        table = params["private"][NAME]["rows"]["features"]
        if reference >= len(table):
            raise ConfigError(f"objective {NAME}: reference={reference}: there are nodes 0 to {len(table) - 1}")
        network = discriminator(jax.random.fold_in(key, _STREAM), table.shape[2:], 1, dtype=table.dtype)
        kept = {"network": network, "optimizer": optimizer.init(network)}
        return {**params, "private": {**params["private"], CLASSIFIER: kept}}

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        gradient, others, metrics = inner.grad(params, batch, key)
        rows, known = bulletin.heard(params, NAME)
        theirs, here = rows["features"][reference], bulletin.own(params)[reference]
        active = known[reference] & ~here
        kept = params["private"][CLASSIFIER]

        def taken(trained: Tree) -> tuple[Array, Array]:
            """L, and the features of the batch."""
            z = features_of(inner, params, trained, batch["x"], key)
            return telling_two(judge(kept["network"], z), False).mean(), z

        (loss, z), towards = jax.value_and_grad(taken, has_aux=True)(params["trained"])
        weight = jnp.where(active, jnp.asarray(strength, loss.dtype), 0)
        gradient = add(gradient, jax.tree.map(lambda leaf: weight.astype(leaf.dtype) * leaf, towards))

        def told_apart(network: Tree) -> Array:
            own = telling_two(judge(network, jax.lax.stop_gradient(z)), True).mean()
            return (own + telling_two(judge(network, theirs), False).mean()) / 2

        updates, state = optimizer.update(jax.grad(told_apart)(kept["network"]), kept["optimizer"], kept["network"])
        better = {"network": optax.apply_updates(kept["network"], updates), "optimizer": state}
        classifier = jax.tree.map(lambda new, old: jnp.where(active, new, old), better, kept)
        private = {**others.get("private", params["private"]), CLASSIFIER: classifier}
        said = _said({**params, "private": private}, z, reference, noise)
        return (
            gradient,
            {**rest(params), **others, "private": said},
            {**metrics, "loss": metrics["loss"] + weight * loss},
        )

    return inner._replace(init=init, grad=grad)


def _said(params: Params, z: Array, reference: int, noise: float) -> Tree:
    """What is private, with features z [B, D] of the batch in the table where this is the reference."""
    many = params["private"][NAME]["rows"]["features"].shape[1]
    told = z[jnp.arange(many) % len(z)]  # of a small batch, some twice
    if noise:
        key, params = site_facts.drawn(params)
        told = told + jnp.asarray(noise, told.dtype) * jax.random.normal(key, told.shape, told.dtype)
    return bulletin.say(params, NAME, {"features": told}, bulletin.own(params)[reference])
