"""Images coloured anew by a generator of all sites, which a critic at each site teaches: a federated stain GAN."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax

from p2pfl.check import at_least, whole
from p2pfl.errors import ConfigError
from p2pfl.methods.objectives.objective import Objective
from p2pfl.methods.objectives.pixels import convolved, in_color, network
from p2pfl.methods.objectives.second import beside
from p2pfl.types import Algorithm, Array, Batches, Key, Learner, Metrics, Params, State, Steps, Tree

NAME, GENERATOR, CRITIC = "stain_gan", "generator", "critic"
"""Of what is private, what the method keeps; and of what is trained, the two networks beside the model."""
GREY = (0.299, 0.587, 0.114)
"""How light red, green and blue are (ITU-R BT.601)."""
FLAT = 1e-2
"""A deviation of grey that is not stretched further."""


def stain_gan(
    optimizer: optax.GradientTransformation,
    closeness: float = 100.0,
    consistency: float = 10.0,
    first: int = 0,
    hidden: Sequence[int] = (16, 16),
    critic: Sequence[int] = (16, 32),
) -> Objective:
    """The model sees images that one generator, common to all sites, has coloured from their grey values.

        critic D, at home:      least of  -mean log D(g, x) - mean log (1 - D(g, G(g)))
        generator G, of all:    least of  -mean log D(g, G(g)) + closeness |x - G(g)| + consistency |G(g) - G0(g)|
        model:                  as without, on G(g)

    g are the grey values of the image, less their mean and in their deviations, so that neither colour nor light of a
    site is left in them; |.| means over all pixels; G0 is the generator that the local steps of the round began with.
    G lies beside the model (params["trained"]["generator"]), is mixed like it, and is in every model that answers: new
    rows, of whatever site, are coloured by it before they are predicted. D is params["trained"]["critic"], and must
    stay at home, so that nobody learns what the images of a site look like but by G: algorithm.share = ["!critic/**"].
    What colour alone tells, and grey does not, is lost.

    As in the source: a conditional GAN of one generator and a critic at each site, and a regularisation of it by what
    it made before (temporal self-distillation). Of the papers the abstracts alone were at hand, so that the rest is the
    conditional GAN of Isola et al., "Image-to-image translation with conditional adversarial networks" (2017), section
    3 (conditioned on grey values, the loss of closeness and its weight, critics of patches), with small networks of
    convolutions in place of a U-Net; that grey values are standardised, and what the generator is held to, are choices
    made here. Sources: Ke, Shen, Lu, "Style normalization in histology with federated learning" (2021); Shen, Sowmya,
    Luo, Liang, Shen, Ke, "A federated learning system for histopathology image analysis with an orchestral
    stain-normalization GAN" (2023).

    Args:
        optimizer: of the experiment, or any of optax; it trains the three networks.
        closeness: >= 0.
        consistency: >= 0.
        first: local steps of a node in which the two networks are trained and the model is not; after them the model is
            trained and they stay, as in the source. 0: all are trained all the time. Who stays has a gradient of zero:
            an optimizer that moves weights without one (the decay of adamw, momentum that is left) moves them still.
        hidden: channels of the generator between grey and colour, in convolutions of 3 x 3.
        critic: channels of the critic, each of which halves both sides.

    Returns:
        The objective, for images in red, green and blue in 0..1.

    Raises:
        ConfigError: an argument is out of bounds; the rows are no such images; when applied, the critic would travel,
            or the model has parts of these names.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.stain_gan(optax.adam(0.001)).facts
        ()
    """
    at_least(0, closeness=closeness, consistency=consistency)
    whole(0, first=first)
    at_least(1, **{f"hidden[{i}]": each for i, each in enumerate(hidden)})
    at_least(1, **{f"critic[{i}]": each for i, each in enumerate(critic)})

    def learner(inner: Learner) -> Learner:
        dtype = jax.tree.leaves(jax.eval_shape(inner.init, jax.random.key(0))["trained"])[0].dtype
        both = beside(inner, GENERATOR, lambda key: network(key, [1, *hidden, 3], 3, dtype))
        both = beside(both, CRITIC, lambda key: network(key, [4, *critic, 1], 4, dtype))
        return _colored(both, closeness, consistency, first)

    return Objective(learner, _remembering, suits=partial(in_color, NAME), ahead=first)


# --- what they make of images


def content(x: Array) -> Array:
    """What is where in images [B, H, W, 3]: grey values [B, H, W, 1], less their mean and in their deviations."""
    grey = (x * jnp.asarray(GREY, x.dtype)[None, None, None]).sum(axis=-1, keepdims=True)
    grey = grey - grey.mean(axis=(1, 2), keepdims=True)
    return grey / jnp.sqrt((grey**2).mean(axis=(1, 2), keepdims=True) + FLAT**2)


def colored(generator: Tree, grey: Array) -> Array:
    """Images [B, H, W, 3] in 0..1 of grey values [B, H, W, 1]."""
    return jax.nn.sigmoid(convolved(generator, grey, 3))


def judged(critic: Tree, grey: Array, x: Array) -> Array:
    """The critic's logits of patches [B, h, w, 1]: that images x are those of the site."""
    return convolved(critic, jnp.concatenate([grey, x], axis=-1), 4, stride=2)


# --- the learner


def _colored(both: Learner, closeness: float, consistency: float, first: int) -> Learner:
    """The learner of a model with the two networks beside it, that sees and trains them."""

    def init(key: Key) -> Params:
        params = both.init(key)
        kept = {"steps": jnp.zeros((), jnp.int32), "before": params["trained"][GENERATOR]}
        return {**params, "private": {**params.get("private", {}), NAME: kept}}

    def made(generator: Tree, critic: Tree, before: Tree, x: Array, grey: Array) -> Array:
        """The generator's loss."""
        image = colored(generator, grey)
        fooled = jax.nn.softplus(-judged(critic, grey, image)).mean()
        held = jnp.abs(image - jax.lax.stop_gradient(colored(before, grey))).mean()
        return fooled + closeness * jnp.abs(x - image).mean() + consistency * held

    def told(critic: Tree, x: Array, image: Array, grey: Array) -> Array:
        """The critic's loss."""
        real, false = judged(critic, grey, x), judged(critic, grey, image)
        return jax.nn.softplus(-real).mean() + jax.nn.softplus(false).mean()

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        kept, x = params["private"][NAME], batch["x"]
        generator, critic = (params["trained"][part] for part in (GENERATOR, CRITIC))
        grey = content(x)
        image = colored(generator, grey)
        gradient, others, metrics = both.grad(params, {**batch, "x": image}, key)
        ahead = kept["steps"] < first
        networks = {
            GENERATOR: jax.grad(made)(generator, critic, kept["before"], x, grey),
            CRITIC: jax.grad(told)(critic, x, image, grey),
        }
        if first:
            gradient = _where(~ahead, gradient)
            networks = _where(ahead, networks)
        now = {**others["private"], NAME: {**kept, "steps": kept["steps"] + 1}}
        return {**gradient, **networks}, {**others, "private": now}, metrics

    def look(params: Params, x: Array) -> tuple[Params, Array]:
        return params, colored(params["trained"][GENERATOR], content(x))

    return both.viewed(look)._replace(init=init, grad=grad, unroll=True)


def _where(wanted: Array, gradient: Tree) -> Tree:
    """The gradient where it is wanted, else zero."""
    return jax.tree.map(lambda leaf: jnp.where(wanted, leaf, 0), gradient)


def _remembering(inner: Algorithm) -> Algorithm:
    """The algorithm that remembers the generator which local steps begin with. Raises ConfigError if critics travel."""
    if inner.link != "none" and inner.learner is not None:
        like = jax.eval_shape(inner.learner.init, jax.random.key(0))
        if CRITIC in like["trained"] or GENERATOR not in like["trained"]:
            raise ConfigError(
                f"objective {NAME}: its generator is that of all sites, and its critics stay at home; set "
                f'algorithm.share = ["!{CRITIC}/**"], with what else is to be shared or not'
            )

    def local(state: State, batches: Batches, key: Key, steps: Steps | None) -> tuple[State, Metrics]:
        params = inner.params(state)
        kept = {**params["private"][NAME], "before": params["trained"][GENERATOR]}
        begun = inner.replaced(state, {**params, "private": {**params["private"], NAME: kept}})
        return inner.local(begun, batches, key, steps)

    return inner._replace(local=local)
