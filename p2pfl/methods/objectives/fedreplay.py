"""Replay: each site tells, once, a decoder that makes rows like its own, and all train on what decoders make, too."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from p2pfl.check import positive, whole
from p2pfl.data import Dataset
from p2pfl.errors import ConfigError
from p2pfl.learning.local_steps import rest
from p2pfl.learning.optimizers import stepped
from p2pfl.methods import bulletin
from p2pfl.methods.bulletin import Bulletin
from p2pfl.methods.objectives.objective import Objective, of_kinds
from p2pfl.methods.objectives.variational import Sizes, autoencoder, bound, decoded
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree

NAME, HOME = "fedreplay", "fedreplay_autoencoder"
"""Of what is private: the table of what sites tell, and the site's own autoencoder."""
_STREAM = 0x4E9
"""Sets the draws of an autoencoder, and of rows that are replayed, apart from those of the model (dropout)."""
REACH = 2.0
"""What is replayed has no number beyond so many times the largest of the node's own rows: a decoder is hearsay."""


class Replaying(NamedTuple):
    """How a site trains its autoencoder, and how much of the others it replays."""

    steps: int
    rows: int
    strength: float
    minimum: int
    optimizer: optax.GradientTransformation


def fedreplay(
    optimizer: optax.GradientTransformation,
    steps: int = 400,
    rows: int = 8,
    strength: float = 1.0,
    latent: int = 8,
    hidden: int = 64,
    channels: int = 16,
    learning_rate: float = 0.003,
    minimum: int = 10,
) -> Objective:
    """Each site trains an autoencoder and tells its decoder once, and all train on real rows and on replayed ones.

        loss of node i:  ( f(own batch) + strength sum_s f(rows of decoder s) ) / (1 + strength S)

    The S sites s are those that i has heard of, without itself. In its first `steps` local steps a site trains its
    autoencoder on the same batches as its model, with an Adam of its own; then it tells all others the decoder and the
    shares of its classes, and trains it no more. From then on every local step of who has heard it also sees `rows`
    rows that it makes: classes are drawn by these shares, z from a standard normal distribution. So a site that lacks a
    class learns it without an image of it, and each trains on what is nearly the loss of all. Until then, the model is
    trained as without. Encoders, and the node's own decoder while it learns, stay at home.

    **A decoder makes rows like those of its patients**, and may know some by heart: of few rows or with a large network
    sooner. It comes to all nodes. A site of fewer than `minimum` training rows tells nothing; classes of fewer rows are
    left out of its autoencoder and of the shares. That is no differential privacy.

    In the source, of which its abstract was at hand, an auxiliary model that makes images like those of each site is
    learned first and broadcast, and the model learns from both. As in it: two models, the second first, both losses,
    and no exchange of images. Other: there is no server, so decoders go from neighbour to neighbour, one in each
    message; the model is mixed as ever, from the first round on; small networks instead of those that make photographs;
    classes, and not the ages of bones. That single decoders of conditional autoencoders are sent once, with the shares
    of classes that they are drawn by, is FedCVAE-Ens. Sources: Qu, Balachandar, Zhang, Rubin, "Handling data
    heterogeneity with generative replay in collaborative learning for medical imaging" (2022); Heinbaugh, Luz-Ricca,
    Shao, "Data-free one-shot federated learning under very high statistical heterogeneity" (2023).

    Args:
        optimizer: of the experiment; not used: an autoencoder has its own.
        steps: local steps in which a site trains its autoencoder, >= 1.
        rows: that are replayed of each site in a local step, >= 1.
        strength: of what is replayed of one site against a site's own batch, > 0.
        latent: numbers z of a row, >= 1.
        hidden: width of a dense layer, >= 1.
        channels: of each convolution, for images, >= 1.
        learning_rate: of the autoencoder's Adam, > 0.
        minimum: training rows, of a site or of a class, below which nothing is told of them, >= 1.

    Returns:
        The objective, for data of one class a row.

    Raises:
        ConfigError: an argument is out of bounds; when the data are known, they are of another kind, or have a picture
            beside columns; when applied, an
            algorithm that sends one way.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.fedreplay(optax.sgd(0.1)).bulletin.what
        'a decoder that makes rows like those of its patients, and shares of its classes, to all nodes'
    """
    whole(1, steps=steps, rows=rows, latent=latent, hidden=hidden, channels=channels, minimum=minimum)
    positive(strength=strength, learning_rate=learning_rate)
    training = Replaying(steps, rows, strength, minimum, optax.adam(learning_rate))

    def sizes(learner: Learner, x: tuple[int, ...]) -> Sizes:
        model = jax.eval_shape(learner.init, jax.random.key(0))
        like = jax.ShapeDtypeStruct((1, *x), jax.tree.leaves(model["trained"])[0].dtype)
        return Sizes(x, jax.eval_shape(learner.predict, model, like).shape[-1], latent, hidden, channels)

    def row(learner: Learner, x: tuple[int, ...]) -> Tree:
        made = sizes(learner, x)
        decoder = jax.eval_shape(lambda key: autoencoder(key, made), jax.random.key(0))["decoder"]
        return {"decoder": decoder, "share": jax.ShapeDtypeStruct((made.classes,), jnp.float32)}

    def shaped(learner: Learner, x: tuple[int, ...]) -> Learner:
        return _taught(learner, sizes(learner, x), training)

    def suits(dataset: Dataset) -> None:
        of_kinds(NAME, "classes")(dataset)
        if dataset.picture:
            raise ConfigError(
                f"objective {NAME}: its autoencoder takes images, or columns, and a row of the data is "
                f"{len(dataset.features)} columns and a picture {list(dataset.picture)}; leave it or data.picture out"
            )

    what = "a decoder that makes rows like those of its patients, and shares of its classes, to all nodes"
    told = Bulletin(NAME, row, what, bound=100.0, in_turn=True)
    return Objective(shaped=shaped, facts=("labels",), bulletin=told, suits=suits, ahead=steps)


def _taught(learner: Learner, sizes: Sizes, training: Replaying) -> Learner:
    """The learner of a model that holds the table already."""

    def init(key: Key) -> Params:
        params = learner.init(key)
        dtype = jax.tree.leaves(params["trained"])[0].dtype
        made = autoencoder(jax.random.fold_in(key, _STREAM), sizes)
        network = jax.tree.map(lambda leaf: leaf.astype(dtype), made)
        home = {
            "steps": jnp.zeros((), jnp.int32), "reach": jnp.zeros((), dtype), "network": network,
            "optimizer": training.optimizer.init(network),
        }  # fmt: skip
        return {**params, "private": {**params["private"], HOME: home}}

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        gradient, others, metrics = learner.grad(params, batch, key)
        to_learn, to_draw = jax.random.split(jax.random.fold_in(key, _STREAM))
        home = _learned(params, batch, to_learn, sizes, training)
        made, count = replayed(params, home["reach"], to_draw, sizes, training.rows)
        more, _, also = learner.grad(params, made, jax.random.fold_in(to_draw, 1))
        slots = made["y"].shape[0] // training.rows

        def both(own: Array, theirs: Array) -> Array:
            """`theirs` is the mean over all slots, of which those that count have weight 1."""
            return (own + training.strength * slots * theirs) / (1 + training.strength * count.astype(own.dtype))

        private = _said({**params, "private": {**others["private"], HOME: home}}, training)
        loss = both(metrics["loss"], also["loss"])
        return (
            jax.tree.map(both, gradient, more),
            {**rest(params), **others, "private": private},
            {**metrics, "loss": loss},
        )

    return learner._replace(init=init, grad=grad)


def _enough(params: Params, minimum: int) -> Array:
    """[C] training rows of each class, 0 for those of which nothing is told."""
    counts = params["private"]["site"]["labels"]
    return jnp.where(counts >= minimum, counts, 0)


def _learned(params: Params, batch: Tree, key: Key, sizes: Sizes, training: Replaying) -> Tree:
    """What is kept of the node's own autoencoder after a step, of which only the first `steps` train it."""
    home, x = params["private"][HOME], batch["x"]
    classes = jax.nn.one_hot(batch["y"], sizes.classes, dtype=x.dtype)
    weight = (_enough(params, training.minimum) > 0).astype(x.dtype)[batch["y"]]

    def step() -> tuple[Tree, Tree]:
        gradient = jax.grad(bound)(home["network"], sizes, x, classes, weight, key)
        return stepped(training.optimizer, gradient, home["optimizer"], home["network"])

    learns = (home["steps"] < training.steps) & (weight.sum() > 0)
    network, memory = jax.lax.cond(learns, step, lambda: (home["network"], home["optimizer"]))
    return {
        "steps": home["steps"] + 1, "reach": jnp.maximum(home["reach"], jnp.abs(x).max()), "network": network,
        "optimizer": memory,
    }  # fmt: skip


def _said(params: Params, training: Replaying) -> Tree:
    """What is private, with the decoder in the table where it has just been learned and there are rows enough."""
    private = params["private"]
    counts = _enough(params, training.minimum)
    ready = (private[HOME]["steps"] == training.steps) & (counts.sum() > 0)
    row = {"decoder": private[HOME]["network"]["decoder"], "share": counts / jnp.maximum(counts.sum(), 1)}
    return bulletin.say(params, NAME, row, ready)


def replayed(params: Params, reach: Array, key: Key, sizes: Sizes, rows: int) -> tuple[Tree, Array]:
    """A batch of `rows` rows of each decoder that was heard, and how many there are [].

    It has a place for as many as there are nodes: those that count come first and have weight 1; behind them some come
    again, with weight 0, so that batch statistics see nothing that nobody has told.
    """
    told, known = bulletin.heard(params, NAME)
    share = jnp.maximum(told["share"], 0)
    usable = known & ~bulletin.own(params) & (share.sum(axis=1) > 0)
    count, nodes = usable.sum(dtype=jnp.int32), usable.shape[0]
    place = jnp.arange(nodes, dtype=jnp.int32)
    which = jnp.argsort(~usable, stable=True)[place % jnp.maximum(count, 1)]
    chosen = jax.tree.map(lambda leaf: leaf[which], {**told, "share": share})
    by_class, by_z = jax.random.split(key)
    below = jnp.cumsum(chosen["share"], axis=1)[:, None]
    u = jax.random.uniform(by_class, (nodes, rows, 1), reach.dtype) * below[:, :, -1:]
    y = jnp.minimum((u >= below).sum(axis=2, dtype=jnp.int32), sizes.classes - 1)
    z = jax.random.normal(by_z, (nodes, rows, sizes.latent), reach.dtype)
    x = jax.vmap(lambda decoder, z, y: decoded(decoder, sizes, z, jax.nn.one_hot(y, sizes.classes, dtype=z.dtype)))(
        chosen["decoder"], z, y
    )
    x = jnp.clip(jnp.nan_to_num(x), -REACH * reach, REACH * reach).reshape(nodes * rows, *sizes.x)
    weight = jnp.repeat((place < count).astype(x.dtype), rows, total_repeat_length=nodes * rows)
    return {"x": x, "y": y.reshape(-1), "weight": weight}, count
