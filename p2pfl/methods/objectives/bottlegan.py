"""Images of all sites stained like a reference set, by one small network that knows every site's stain: BottleGAN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2pfl.check import at_least, positive, whole
from p2pfl.data import Dataset, npz
from p2pfl.errors import ConfigError
from p2pfl.learning.optimizers import stepped
from p2pfl.methods import bulletin
from p2pfl.methods.bulletin import Bulletin
from p2pfl.methods.objectives.objective import Objective
from p2pfl.methods.objectives.pixels import convolved, in_color, network
from p2pfl.methods.objectives.second import beside
from p2pfl.types import Algorithm, Array, Key, Learner, Metrics, Params, Tree

NAME, BOTTLE, HOME = "bottlegan", "bottle", "bottlegan_home"
"""Of what is private, the table of what sites tell; of what is trained, the common network; and what stays at home."""
DARKEST, DENSEST = 1 / 255, 3.0
"""Values below count as this; the optical density that a network can make, exp(-3) = 0.05."""
BRIGHT = -2.0
"""The last bias before training: a density of 3 sigmoid(-2) = 0.36, since most of a smear or a slide is bright."""
NARROW = 1e-5
"""Added to variances by which pixels are divided."""
LARGEST = 2**26
"""Bytes of a reference set, which lies in the compiled program of every node."""
_STREAM = 0xB07


class BottleStages(NamedTuple):
    """How a node is trained."""

    first: int
    distill: int
    closeness: float
    minimum: int
    optimizer: optax.GradientTransformation


def bottlegan(
    optimizer: optax.GradientTransformation,
    reference: str,
    first: int = 300,
    distill: int = 300,
    closeness: float = 100.0,
    hidden: Sequence[int] = (16, 16),
    style: int = 8,
    critic: Sequence[int] = (16, 32),
    learning_rate: float = 0.01,
    minimum: int = 10,
) -> Objective:
    """The model sees images that one small network, common to all sites, has stained like a reference set.

        1. at home, `first` local steps:  a normaliser N_i, site i to reference, and a restainer R_i, reference to site:
              least of  -D(fakes) + closeness (|x - R_i N_i x| + |r - N_i R_i r| + |r - N_i r| + |x - R_i x|)
              against critics of the site and of the reference, at home:  least of  mean D(fakes) - mean D(images)
        2. then, `distill` local steps:   R_i is told to all, and the bottle B is trained, which is mixed as the model:
              least of  |B(R_j r, s_j) - r|,      each site j that has been heard of with a style s_j of its own
        3. then:                          the model, on B(x, s_i)

    r are images of the reference set, which all sites have; |.| means over all pixels. N_i, R_i and B work on the
    optical density of single pixels: layers of an instance normalisation, a scale and a shift, 1 x 1 convolution and
    sigmoid; of B, scale and shift follow from the style. So no image leaves its site: what R_i tells is a map from
    colours to colours, which knows the colours of a site and the shape of nothing.

    Until the model learns it stays as it came from its neighbours, but for what an optimizer with weight decay (adamw)
    takes of it in each local step, and of the bottle when that does not learn. Whoever answers with a node's model
    stains rows in the style of that node, also new ones: rows of another site are rightly normalised by a model of that
    site only, once it has taken part (no labels are needed for that). A site that tells nothing has the style it was
    drawn with.

    As in the source: local GANs by a reference set of all, layers, losses and critics by the authors' program, what is
    told, and one network with an embedding of each site distilled from it. Other: there is no server, so restainers go
    from neighbour to neighbour and B is trained by all; B is regressed on the pairs that R_j makes, where the source
    trains a GAN once more on the same images unpaired; the way back of B, which nothing here uses, is left out; the
    style goes through one hidden layer, not two; the last sigmoid reaches 3, not 1, so that dark pixels can be dark,
    and begins bright; and networks and steps are smaller by default. Source: Wagner, Fuchs, Tolkach, Mukhopadhyay,
    "Federated stain normalization for computational pathology" (2022), and github.com/MECLabTUDA/BottleGAN.

    Args:
        optimizer: of the experiment, which moves B along with the model; adam or its kin, by whose steps both learn.
        reference: an .npz with "images" (or "x"): some images [N, H, W, 3] of one stain, shaped as the site's own.
        first: local steps of a node at home, >= 1.
        distill: local steps after these, >= 1.
        closeness: >= 0.
        hidden: channels between colours and colours.
        style: numbers of a site's style, >= 1.
        critic: channels of the critics, each of which halves both sides.
        learning_rate: of the Adam that trains what stays at home, > 0.
        minimum: training rows below which a site tells nothing, and is not normalised well, >= 1.

    Returns:
        The objective, for images in red, green and blue in 0..1.

    Raises:
        ConfigError: an argument is out of bounds; the rows are no such images, or the reference set is not like them,
            or is too large; when applied, the bottle would stay at home, or the model has a part called "bottle".
        DataError: the file of the reference set can't be read.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.bottlegan(optax.adam(0.001), "reference.npz").bulletin.what
        'a small network that makes its stain, to all nodes'
    """
    whole(1, first=first, distill=distill, style=style, minimum=minimum)
    at_least(0, closeness=closeness)
    positive(learning_rate=learning_rate)
    for name, sizes in (("hidden", hidden), ("critic", critic)):
        whole(1, **{f"{name}[{i}]": each for i, each in enumerate(sizes)})
    if not isinstance(reference, str):
        raise ConfigError(f"objective {NAME}: reference={reference!r}: must name the .npz of the reference set")
    images = cache(partial(npz.pictures, reference))  # read when it is needed: whoever predicts has no need of it
    channels = [3, *hidden, 3]

    def suits(dataset: Dataset) -> None:
        in_color(NAME, dataset)
        _like(images(), reference, dataset.train.x.shape[1:])

    def row(learner: Learner, x: tuple[int, ...]) -> Tree:
        return jax.eval_shape(lambda: pixelwise(jax.random.key(0), channels, _dtype(learner)))

    def learner(inner: Learner) -> Learner:
        dtype = _dtype(inner)
        nodes = jax.eval_shape(inner.init, jax.random.key(0))["private"][NAME]["version"].shape[0]
        both = beside(inner, BOTTLE, lambda key: bottle(key, channels, nodes, style, dtype))

        def home(key: Key) -> Tree:
            keys = jax.random.split(key, 4)
            nets = {"normalize": pixelwise(keys[0], channels, dtype), "restain": pixelwise(keys[1], channels, dtype)}
            judges = {name: network(each, [3, *critic, 1], 4, dtype)
                      for name, each in zip(("own", "reference"), keys[2:], strict=True)}  # fmt: skip
            return {"nets": nets, "critics": judges}

        stages = BottleStages(first, distill, closeness, minimum, optax.adam(learning_rate))
        return _bottled(both, home, images, stages)

    told = Bulletin(NAME, row, "a small network that makes its stain, to all nodes", bound=1e3, in_turn=True)
    return Objective(learner, _common, ("samples",), suits=suits, bulletin=told, ahead=first + distill)


def _like(images: np.ndarray, reference: str, row: tuple[int, ...]) -> None:
    """Raises ConfigError for a reference set that is not shaped as a row of the data, or too large."""
    if images.shape[1:] != row:
        raise ConfigError(
            f"objective {NAME}: images of reference={reference!r} have shape {[*images.shape[1:]]}, and those of the "
            f"data {[*row]}; bring them to one shape"
        )
    if images.min() < 0 or images.max() > 1:
        raise ConfigError(
            f"objective {NAME}: reference={reference!r} holds {images.min():g} to {images.max():g}; colours must be in "
            "0..1, where 1 is white"
        )
    if images.nbytes > LARGEST:
        raise ConfigError(
            f"objective {NAME}: reference={reference!r} takes {images.nbytes >> 20} MiB, and lies in the program of "
            f"every node; at most {LARGEST >> 20}: take fewer images"
        )


def _common(inner: Algorithm) -> Algorithm:
    """The algorithm as it is. Raises ConfigError if the bottle does not travel."""
    if inner.link != "none" and inner.learner is not None:
        like = jax.eval_shape(inner.learner.init, jax.random.key(0))
        if set(like["trained"].get(BOTTLE, ())) != {"layers", "styles", "into", "out"}:
            raise ConfigError(
                f"objective {NAME}: its bottle is that of all sites, and algorithm.share keeps it or a part of it at "
                f'home; share "{BOTTLE}/**", with what else is to be shared'
            )
    return inner


def _dtype(learner: Learner) -> np.dtype:
    found: np.dtype = jax.tree.leaves(jax.eval_shape(learner.init, jax.random.key(0))["trained"])[0].dtype
    return found


# --- networks


def pixelwise(key: Key, channels: Sequence[int], dtype: np.dtype) -> Tree:
    """Parameters of a network of single pixels: {"layers": {I: {"scale", "shift", "kernel", "bias"}}}."""
    made, last = {}, len(channels) - 2
    for index, (inputs, outputs) in enumerate(pairwise(channels)):
        kernel = jax.nn.initializers.glorot_normal()(jax.random.fold_in(key, index), (inputs, outputs), jnp.float32)
        zero = jnp.zeros((inputs,), dtype)
        made[str(index)] = {
            "scale": zero, "shift": zero, "kernel": kernel.astype(dtype),
            "bias": jnp.full((outputs,), BRIGHT if index == last else 0.0, dtype),
        }  # fmt: skip
    return {"layers": made}


def bottle(key: Key, channels: Sequence[int], nodes: int, style: int, dtype: np.dtype) -> Tree:
    """Parameters of the common network: that of pixels, styles [nodes, style], and what makes scales of styles."""
    one, two, three = jax.random.split(key, 3)
    wide = 2 * sum(channels[:-1])
    draw = jax.nn.initializers.he_normal()
    into, out = draw(two, (style, wide), jnp.float32), 0.1 * draw(three, (wide, wide), jnp.float32)
    styles = jax.random.normal(one, (nodes, style), jnp.float32)
    more = {"styles": styles, "into": into, "out": out}
    return {**pixelwise(one, channels, dtype), **{name: leaf.astype(dtype) for name, leaf in more.items()}}


def restained(net: Tree, x: Array, style: Array | None = None) -> Array:
    """Images [B, H, W, 3] in 0..1 as a network makes them; `style` [E] for a `bottle`."""
    y, layers = -jnp.log(jnp.clip(x, DARKEST, 1)), net["layers"]
    moved = None if style is None else jax.nn.relu(style @ net["into"]) @ net["out"]
    at = 0
    for index in range(len(layers)):
        layer = layers[str(index)]
        scale, shift = layer["scale"], layer["shift"]
        if moved is not None:
            size = scale.shape[0]
            scale, shift = scale + moved[at : at + size], shift + moved[at + size : at + 2 * size]
            at += 2 * size
        y = y - y.mean(axis=(1, 2), keepdims=True)
        y = y / jnp.sqrt((y**2).mean(axis=(1, 2), keepdims=True) + NARROW)
        y = (1 + scale)[None, None, None] * y + shift[None, None, None]
        y = jax.nn.sigmoid(y @ layer["kernel"] + layer["bias"][None, None, None])
    return jnp.exp(-DENSEST * y)


def _judged(critic: Tree, x: Array) -> Array:
    """[] the mean of what a critic takes images for, between 0 and 1."""
    return jax.nn.sigmoid(convolved(critic, x, 4, stride=2)).mean()


# --- the losses


def _apart(a: Array, b: Array) -> Array:
    return jnp.abs(a - b).mean()


def _made(nets: Tree, critics: Tree, x: Array, r: Array, closeness: float) -> Array:
    """The loss of a site's normaliser and restainer."""
    normalize, restain = (partial(restained, nets[name]) for name in ("normalize", "restain"))
    there, back = normalize(x), restain(r)
    again, home = normalize(back), restain(there)
    fooled = _judged(critics["own"], back) + _judged(critics["reference"], there) + _judged(critics["reference"], again)
    close = _apart(x, home) + _apart(r, again) + _apart(r, normalize(r)) + _apart(x, restain(x))
    return closeness * close - fooled


def _told(critics: Tree, nets: Tree, x: Array, r: Array) -> Array:
    """The loss of a site's critics."""
    there, back = restained(nets["normalize"], x), restained(nets["restain"], r)
    again = restained(nets["normalize"], back)
    fakes = _judged(critics["own"], back) + _judged(critics["reference"], there) + _judged(critics["reference"], again)
    return fakes - _judged(critics["own"], x) - _judged(critics["reference"], r)


def _distilled(net: Tree, r: Array, there: Array, style: Array) -> Array:
    """The loss of the bottle: r again from what a site's restainer made of it."""
    return _apart(restained(net, there, net["styles"][style]), r)


# --- the learner


def _bottled(
    both: Learner, home: Callable[[Key], Tree], images: Callable[[], np.ndarray], stages: BottleStages
) -> Learner:
    """The learner of a model with the bottle beside it. `home`: what stays at a site; `images`: the reference set."""

    def init(key: Key) -> Params:
        params = both.init(key)
        kept = home(jax.random.fold_in(key, _STREAM))
        state = {"steps": jnp.zeros((), jnp.int32), **kept, "optimizer": stages.optimizer.init(kept)}
        return {**params, "private": {**params["private"], HOME: state}}

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        kept, net, x = params["private"][HOME], params["trained"][BOTTLE], batch["x"]
        steps = kept["steps"]
        at_home, learns = steps < stages.first, steps >= stages.first + stages.distill
        gradient, others, metrics = both.grad(params, {**batch, "x": look(params, x)[1]}, key)
        gradient = jax.tree.map(lambda leaf: jnp.where(learns, leaf, 0), gradient)
        if "carried" in params:  # statistics of images that are not stained yet stay out of them
            stays = jax.tree.map(lambda new, old: jnp.where(learns, new, old), others["carried"], params["carried"])
            others = {**others, "carried": stays}
        one, two = jax.random.split(jax.random.fold_in(key, _STREAM))
        r = jnp.asarray(images(), x.dtype)
        r = r[jax.random.randint(one, (x.shape[0],), 0, r.shape[0])]
        kept = jax.lax.cond(at_home, lambda: _practised(kept, x, r, stages), lambda: kept)
        nothing = jax.tree.map(jnp.zeros_like, net)
        to_bottle = jax.lax.cond(at_home | learns, lambda: nothing, lambda: _poured(net, params, r, two))
        now = {**params, "private": {**others["private"], HOME: {**kept, "steps": steps + 1}}}
        enough = params["private"]["site"]["samples"] >= stages.minimum
        told = bulletin.say(now, NAME, kept["nets"]["restain"], enough & (steps + 1 == stages.first))
        return {**gradient, BOTTLE: to_bottle}, {**others, "private": told}, metrics

    def look(params: Params, x: Array) -> tuple[Params, Array]:
        net, mine = params["trained"][BOTTLE], bulletin.own(params)
        weight = jnp.where(mine.any(), mine, True).astype(x.dtype)  # without a place of its own: the mean of all styles
        return params, restained(net, x, weight @ net["styles"] / weight.sum())

    return both.viewed(look)._replace(init=init, grad=grad)


def _practised(kept: Tree, x: Array, r: Array, stages: BottleStages) -> Tree:
    """What stays at home after a step of it: its two networks and their critics at once, each by its own loss."""
    nets, critics = kept["nets"], kept["critics"]
    gradient = {"nets": jax.grad(_made)(nets, critics, x, r, stages.closeness),
                "critics": jax.grad(_told)(critics, nets, x, r)}  # fmt: skip
    parts, memory = stepped(stages.optimizer, gradient, kept["optimizer"], {"nets": nets, "critics": critics})
    return {**kept, **parts, "optimizer": memory}


def _poured(net: Tree, params: Params, r: Array, key: Key) -> Tree:
    """The gradient of the bottle, by the restainer of one of the sites that have been heard of."""
    rows, known = bulletin.heard(params, NAME)
    site = jax.random.categorical(key, jnp.where(known, 0.0, -jnp.inf))
    there = restained(jax.tree.map(lambda leaf: leaf[site], rows), r)
    gradient = jax.grad(_distilled)(net, r, there, site)
    return jax.tree.map(lambda leaf: jnp.where(known.any(), leaf, 0), gradient)
