"""Variation-aware: all sites show their images as those of the simplest site look, each by translators of its own."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from p2pfl.check import at_least, positive, whole
from p2pfl.data import Dataset
from p2pfl.errors import ConfigError
from p2pfl.learning.local_steps import rest
from p2pfl.learning.optimizers import stepped
from p2pfl.methods import bulletin
from p2pfl.methods.bulletin import Bulletin
from p2pfl.methods.objectives import translation
from p2pfl.methods.objectives.objective import Objective
from p2pfl.methods.objectives.variational import Sizes, autoencoder, decoded, encoded
from p2pfl.types import Algorithm, Array, Key, Learner, Metrics, Params, Tree

NAME, HOME = "vafl", "vafl_networks"
"""Of what is private: the table of what sites tell, and the site's own networks."""
LEVELS = 32
"""Grey values are sorted into so many bins."""
UNTOLD = 1e3
"""The complexity of a site that tells nothing of its images: no site is more complex."""
REACH = 2.0
"""Images that were told, or translated, have no number beyond so many times the largest of the node's own."""
CANDIDATES, TURN = 4, 5
"""Images that are made for each that is told; steps of a critic for each of its generator."""
_STREAM = 0x7AF


class Stages(NamedTuple):
    """How long each stage takes, and how large its networks are."""

    look: int  # local steps: a site looks how complex its images are
    make: int  # ... the simplest site trains what makes images
    translate: int  # ... another site trains its translators
    images: int  # that are told
    latent: int
    channels: int
    cycle: float
    identity: float
    minimum: int
    reference: int | None
    optimizer: optax.GradientTransformation


def vafl(
    optimizer: optax.GradientTransformation,
    reference: int | None = None,
    look: int = 20,
    make: int = 1000,
    translate: int = 1000,
    images: int = 32,
    latent: int = 16,
    channels: int = 16,
    cycle: float = 10.0,
    identity: float = 0.0,
    learning_rate: float = 0.002,
    minimum: int = 10,
) -> Objective:
    """The images of all sites are brought to look like those of the simplest site, and the model sees these alone.

    In four stages, each counted in the node's own local steps:

        1  every site finds, in `look` steps, how complex its images are, and tells all
        2  the simplest site trains a Wasserstein GAN on its images for `make` steps; of 4 * `images` that it makes it
           leaves out the half that is nearest to any of its own, in a pass over them, and tells those of the others
           that the critic likes best
        3  every other site trains a CycleGAN between its own images and those for `translate` steps
        4  the model is trained and asked on translated images; those of the simplest site are as they are

    A site whose translators are not ready leaves the model as it came from its neighbours. Generator, critic,
    translators and discriminators stay at their site, so each is asked about its own images. Complexity is the mean
    entropy of the grey values of an image, of 32 levels between its darkest and its brightest, so that units and
    negatives make no difference. The simplest is known once every planned node was heard, and stays that for a node
    that has known it; where one may never come, name the site by `reference`.

    **Made images leave the simplest site**, and come to all. They are made of its patients' images and may resemble
    them; that the nearest half is left out is no proof that none can be recognised. All other sites tell one number. A
    site of fewer than `minimum` training rows tells nothing, and is not the simplest; if it is named, nobody begins.
    Who lies about its complexity has all others made like its images; whatever is told, images are cut to twice the
    largest number of the node's own, so let all sites have images in like units.

    As in the source: the stages; one site, of the lowest complexity; a Wasserstein GAN with a penalty on gradients;
    that those of its images are told that are unlike any raw one and still like them all; a CycleGAN at each other
    site; a model that is trained on what comes out. Of the source its abstract alone was at hand. So not as there may
    be the measure of complexity, how images are chosen, what makes its GAN private and its CycleGAN a modified one:
    here both are those of their papers, with small networks. Sources: Yan, Wicaksana, Wang, Yang, Cheng,
    "Variation-aware federated learning with multi-source decentralized medical image data" (2021); those of
    p2pfl.methods.objectives.translation.

    Args:
        optimizer: of the experiment; not used: these networks have an Adam of their own.
        reference: the node that all others are made like; a planned one. None: the simplest.
        look: local steps of stage 1, >= 1.
        make: of stage 2, >= 1.
        translate: of stage 3, >= 1.
        images: that are told, >= 1.
        latent: numbers of which an image is made, >= 1.
        channels: of each convolution, >= 1.
        cycle: weight of cycle consistency, > 0.
        identity: weight of leaving alone what looks right, >= 0.
        learning_rate: of Adam, > 0.
        minimum: training rows below which a site tells nothing, >= 1.

    Returns:
        The objective, for images.

    Raises:
        ConfigError: an argument is out of bounds; when the data are known, rows that are no images, or are to be
            reconstructed; when a model is made, there is no such node; when applied, an algorithm that sends nothing.
            Of an experiment: one that is waited for takes no local step.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.vafl(optax.sgd(0.1), images=8).bulletin.what
        'how complex its images are, and of the simplest site 8 made images like those of its patients, to all nodes'
    """
    whole(
        1, look=look, make=make, translate=translate, images=images, latent=latent, channels=channels, minimum=minimum
    )
    positive(cycle=cycle, learning_rate=learning_rate)
    at_least(0, identity=identity)
    if reference is not None:
        whole(0, reference=reference)
    adam = optax.adam(learning_rate, b1=0.5)
    plan = Stages(look, make, translate, images, latent, channels, cycle, identity, minimum, reference, adam)

    def row(learner: Learner, x: tuple[int, ...]) -> Tree:
        one = jax.ShapeDtypeStruct((), jnp.float32)
        return {"complexity": one, "there": one, "images": jax.ShapeDtypeStruct((images, *x), jnp.float32)}

    def shaped(learner: Learner, x: tuple[int, ...]) -> Learner:
        return _translating(learner, x, plan)

    like = f"{images} made images like those of its patients"
    who = f"of the simplest site {like}" if reference is None else f"of node {reference} {like}"
    what = f"how complex its images are, and {who}, to all nodes"
    told = Bulletin(NAME, row, what, bound=UNTOLD, in_turn=True)
    awaits = None if reference is None else (reference,)
    return Objective(
        None, _exchanging, ("samples",), shaped=shaped, bulletin=told, suits=_images, ahead=look + make + translate,
        awaits=awaits,
    )  # fmt: skip


def _exchanging(inner: Algorithm) -> Algorithm:
    """The algorithm as it is. Raises ConfigError for one that sends nothing, since others would never be heard."""
    if inner.link == "none":
        raise ConfigError(
            f"objective {NAME}: waits for what other sites tell, and algorithm {inner.name} sends nothing; leave it out"
        )
    return inner


def _images(dataset: Dataset) -> None:
    shape = dataset.train.x.shape[1:]
    if len(shape) != 3 or dataset.kind == "reconstruction":
        what = "a reconstruction" if len(shape) == 3 else f"rows of shape {list(shape)}"
        raise ConfigError(
            f"objective {NAME}: is for images [height, width, channels] that something is predicted of, and these are "
            f"{what}; leave it out"
        )


def complexity(x: Array) -> Array:
    """Mean entropy, in bits, of the grey values of images [B, ...], of 32 levels between the extremes of each."""
    pixels = x.reshape(x.shape[0], -1)
    low, high = pixels.min(axis=1, keepdims=True), pixels.max(axis=1, keepdims=True)
    level = jnp.clip((LEVELS * (pixels - low) / (high - low + 1e-6)).astype(jnp.int32), 0, LEVELS - 1)
    share = jax.nn.one_hot(level, LEVELS, dtype=x.dtype).mean(axis=1)
    return -(share * jnp.log2(jnp.maximum(share, 1e-6))).sum(axis=1).mean()


def within(images: Array, reach: Array) -> Array:
    """Images with no number beyond what is like the node's own, of which the largest is `reach` []."""
    return jnp.clip(jnp.nan_to_num(images), -REACH * reach, REACH * reach)


def target(params: Params, plan: Stages) -> tuple[Array, Array]:
    """Which node all others are made like, and whether that is known yet: once every planned one was heard.

    What was known first stays: who tells something else later moves nobody. The node's own row is known once it has
    looked, whatever version of it others have made up before.
    """
    if plan.reference is not None:
        return jnp.asarray(plan.reference, jnp.int32), jnp.asarray(True)
    home = params["private"][HOME]
    rows, known = bulletin.heard(params, NAME)
    known = known & (~bulletin.own(params) | (home["looked"] >= plan.look))
    simplest = jnp.argmin(jnp.where(known, rows["complexity"], UNTOLD)).astype(jnp.int32)
    found = home["target"] >= 0
    return jnp.where(found, home["target"], simplest), found | known.all()


def _ready(params: Params, plan: Stages) -> tuple[Array, Array]:
    """Whether the node is the one that all are made like, and whether it is another one whose translators are ready."""
    which, known = target(params, plan)
    here = bulletin.own(params)[which] & known
    return here, ~here & (params["private"][HOME]["translated"] >= plan.translate)


def _translating(learner: Learner, x: tuple[int, ...], plan: Stages) -> Learner:
    """The learner of a model that holds the table already, and sees images as those of the simplest site look."""
    sizes = Sizes(x, 0, plan.latent, 4 * plan.channels, plan.channels)

    def init(key: Key) -> Params:
        params = learner.init(key)
        nodes = params["private"][NAME]["version"].shape[0]
        if plan.reference is not None and plan.reference >= nodes:
            raise ConfigError(f"objective {NAME}: reference={plan.reference}: there are nodes 0 to {nodes - 1}")
        own = _networks(jax.random.fold_in(key, _STREAM), sizes, plan)
        dtype = jax.tree.leaves(params["trained"])[0].dtype
        own = jax.tree.map(lambda leaf: leaf.astype(dtype), own)
        zero = jnp.zeros((), jnp.int32)
        home = {
            **own, "optimizer": {name: plan.optimizer.init(tree) for name, tree in own.items() if name != "candidates"},
            "looked": zero, "made": zero, "checked": zero, "translated": zero, "target": zero - 1,
            "complexity": jnp.zeros((), dtype),
            "nearest": jnp.full(own["candidates"].shape[:1], UNTOLD, dtype), "reach": jnp.zeros((), dtype),
        }  # fmt: skip
        return {**params, "private": {**params["private"], HOME: home}}

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        here, ready = _ready(params, plan)
        gradient, others, metrics = learner.grad(params, {**batch, "x": shown(params, batch["x"], ready)}, key)
        gradient = jax.tree.map(lambda leaf: jnp.where(here | ready, leaf, 0), gradient)
        if "carried" in params:  # statistics of images as they are stay at home: a model that waits is as it came
            kept = jax.tree.map(
                lambda new, old: jnp.where(here | ready, new, old), others["carried"], params["carried"]
            )
            others = {**others, "carried": kept}
        after = {**params, "private": others["private"]}
        private = _stepped(after, batch["x"], jax.random.fold_in(key, _STREAM), sizes, plan)
        return gradient, {**rest(params), **others, "private": private}, metrics

    def shown(params: Params, x: Array, ready: Array) -> Array:
        home = params["private"][HOME]
        there = within(translation.translated(home["cycle"]["there"], x), home["reach"])
        return jnp.where(ready, there.astype(x.dtype), x)

    def look(params: Params, x: Array) -> tuple[Params, Array]:
        return params, shown(params, x, _ready(params, plan)[1])

    return learner.viewed(look)._replace(init=init, grad=grad)


def _networks(key: Key, sizes: Sizes, plan: Stages) -> Tree:
    """The generator and its critic, the networks of a CycleGAN, and of what candidates are made."""
    keys = jax.random.split(key, 3)
    both = autoencoder(keys[0], sizes._replace(latent=1))["encoder"], autoencoder(keys[1], sizes)["decoder"]
    draws = jax.random.split(keys[2], len(translation.NETWORKS) + 1)
    networks = {
        name: draw(each, sizes.x[-1], plan.channels)
        for each, (name, draw) in zip(draws[1:], translation.NETWORKS.items(), strict=True)
    }
    candidates = jax.random.normal(draws[0], (CANDIDATES * plan.images, plan.latent), jnp.float32)
    return {"critic": both[0], "generator": both[1], "cycle": networks, "candidates": candidates}


def _stepped(params: Params, x: Array, key: Key, sizes: Sizes, plan: Stages) -> Tree:
    """What is private after a local step: the stage that the node is in is one step further."""
    home = params["private"][HOME]
    here, _ = _ready(params, plan)
    which, known = target(params, plan)
    enough = params["private"]["site"]["samples"] >= plan.minimum
    looked = home["looked"] + 1
    mean = home["complexity"] + (complexity(x) - home["complexity"]) / looked.astype(x.dtype)
    home = {
        **home, "looked": looked, "complexity": jnp.where(looked <= plan.look, mean, home["complexity"]),
        "reach": jnp.maximum(home["reach"], jnp.abs(x).max()), "target": jnp.where(known, which, home["target"]),
    }  # fmt: skip

    makes = here & enough & (home["made"] < plan.make)
    home = jax.lax.cond(makes, lambda: _made(home, x, key, sizes, plan), lambda: home)
    checks = here & enough & ~makes & (home["checked"].astype(x.dtype) < params["private"]["site"]["samples"])
    home = jax.lax.cond(checks, lambda: _checked(home, x, sizes), lambda: home)
    done = checks & (home["checked"].astype(x.dtype) >= params["private"]["site"]["samples"])

    rows, _ = bulletin.heard(params, NAME)
    told = jax.tree.map(lambda leaf: leaf[which], rows)
    learns = known & ~here & (told["there"] > 0) & (home["translated"] < plan.translate)
    home = jax.lax.cond(learns, lambda: _cycled(home, x, told["images"], key, plan), lambda: home)

    looked_now = home["looked"] == plan.look
    said = {
        "complexity": jnp.where(enough, home["complexity"], UNTOLD).astype(x.dtype),
        "there": done.astype(x.dtype),
        "images": jax.lax.cond(
            done, lambda: _chosen(home, sizes, plan), lambda: jnp.zeros_like(told["images"], x.dtype)
        ),
    }
    return bulletin.say({**params, "private": {**params["private"], HOME: home}}, NAME, said, looked_now | done)


def _score(critic: Tree, sizes: Sizes, x: Array) -> Array:
    """[B] what a critic thinks of images: an encoder of one number, of which the mean is taken."""
    return encoded(critic, sizes._replace(latent=1), x, jnp.zeros((x.shape[0], 0), x.dtype))[0][:, 0]


def _generated(generator: Tree, sizes: Sizes, z: Array) -> Array:
    return decoded(generator, sizes, z, jnp.zeros((z.shape[0], 0), z.dtype))


def _made(home: Tree, x: Array, key: Key, sizes: Sizes, plan: Stages) -> Tree:
    """One step of the critic, and in every fifth one of the generator."""
    keys = jax.random.split(key, 3)
    z = jax.random.normal(keys[0], (x.shape[0], sizes.latent), x.dtype)
    fake = _generated(home["generator"], sizes, z)
    to_critic = jax.grad(
        lambda critic: translation.critic_loss(lambda x: _score(critic, sizes, x), x, fake, keys[1])
    )(home["critic"])  # fmt: skip
    home = _updated(home, "critic", to_critic, plan)
    made = home["made"] + 1

    def generator() -> Tree:
        again = jax.random.normal(keys[2], z.shape, z.dtype)
        to_generator = jax.grad(
            lambda generator: -_score(home["critic"], sizes, _generated(generator, sizes, again)).mean()
        )(home["generator"])  # fmt: skip
        return _updated(home, "generator", to_generator, plan)

    return {**jax.lax.cond(made % TURN == 0, generator, lambda: home), "made": made}


def _checked(home: Tree, x: Array, sizes: Sizes) -> Tree:
    """How near candidates come to any raw image, with those of a batch."""
    made = _generated(home["generator"], sizes, home["candidates"]).reshape(len(home["candidates"]), 1, -1)
    near = jnp.sqrt(((made - x.reshape(1, x.shape[0], -1)) ** 2).mean(axis=2)).min(axis=1)
    return {**home, "nearest": jnp.minimum(home["nearest"], near), "checked": home["checked"] + x.shape[0]}


def _chosen(home: Tree, sizes: Sizes, plan: Stages) -> Array:
    """The images that are told: of the half of candidates that is farther from raw images, those the critic likes."""
    made = _generated(home["generator"], sizes, home["candidates"])
    far = jnp.argsort(-home["nearest"])[: made.shape[0] // 2]
    best = jnp.argsort(-_score(home["critic"], sizes, made[far]))[: plan.images]
    return made[far[best]]


def _cycled(home: Tree, x: Array, images: Array, key: Key, plan: Stages) -> Tree:
    """One step of the CycleGAN: translators and discriminators at once, each by its own loss."""
    which = jax.random.randint(key, (x.shape[0],), 0, images.shape[0])
    networks, told = home["cycle"], within(images[which].astype(x.dtype), home["reach"])

    def losses(networks: Tree) -> tuple[Array, Array]:
        return translation.cycle_losses(networks, x, told, plan.cycle, plan.identity)

    of_translators = jax.grad(lambda networks: losses(networks)[0])(networks)
    of_discriminators = jax.grad(lambda networks: losses(networks)[1])(networks)
    gradient = {name: (of_translators if name in ("there", "back") else of_discriminators)[name] for name in networks}
    return {**_updated(home, "cycle", gradient, plan), "translated": home["translated"] + 1}


def _updated(home: Tree, name: str, gradient: Tree, plan: Stages) -> Tree:
    network, memory = stepped(plan.optimizer, gradient, home["optimizer"][name], home[name])
    return {**home, name: network, "optimizer": {**home["optimizer"], name: memory}}
