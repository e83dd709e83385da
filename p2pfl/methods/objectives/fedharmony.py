"""Features by which no site can be told: every site says how its features are distributed (FedHarmony)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax

from p2pfl.check import at_least, fraction
from p2pfl.methods import bulletin, site_facts
from p2pfl.methods.bulletin import Bulletin
from p2pfl.methods.objectives import adversary
from p2pfl.methods.objectives.objective import Objective, featured
from p2pfl.methods.objectives.second import beside
from p2pfl.tree import add
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree

NAME, NETWORK, RUNNING = "fedharmony", "domain", "fedharmony_features"
OUT_OF_THE_WAY = -1e9
"""The logit of a site that nobody has heard of yet."""


def fedharmony(
    optimizer: optax.GradientTransformation,
    strength: float = 1.0,
    after: int = 0,
    decay: float = 0.9,
    minimum: int = 10,
    noise: float = 0.0,
    hidden: Sequence[int] = (32,),
) -> Objective:
    """Features that do not tell the site: each site tells all others mean and sd of its features, and no more.

        domain network d:   least of     mean over sites s heard of  CE(d(h_s), s),     h_s ~ N(mu_s, sigma_s^2)
        encoder e:          least of     f + strength mean over its rows x  -1/S sum_s log p_s(d(e(x)))

    where of the node itself h_s are the features of the batch, and S is how many sites have been heard of. d lies
    beside the model (params["trained"]["domain"]) and is mixed like it; algorithm.share = ["!domain/**"] keeps one at
    each home. The rest of the model learns as without. Features are what the model's last part takes in; maps are
    pooled to at most 4 x 4 places first. mu and sigma are running over local steps, since encoders move: the share
    `decay` stays.

    As in the source: the three losses, features of others drawn from normal distributions, one domain network for all,
    the training of both with FedProx (add the objective "fedprox"). Other: one step of the experiment's optimizer takes
    all three gradients, where the source takes three steps of Adam in turn, of rates 1, 1 and 1/2, so that `strength`
    is what weighs them (there 100, which Adam undoes); statistics are those of batches as they are trained on, not of
    all rows once a round; every site counts alike in d's loss, where a batch is cut at random there.

    Told of a site: 2 D numbers, to all others. A site of fewer than `minimum` training rows tells nothing, and is not
    told from. `noise`: a standard deviation of noise on what is told, in standard deviations of each feature, drawn
    anew each time, from the seed in studies and from the operating system elsewhere; it blurs, and is no differential
    privacy. A liar makes the others confuse it with somebody else, within bounds. Source: Dinsdale, Jenkinson,
    Namburete, "FedHarmony: unlearning scanner bias with distributed data" (2022).

    Args:
        optimizer: of the experiment, or any of optax.
        strength: of the confusion, >= 0.
        after: local steps of the node before its encoder is trained to confuse, >= 0; d is trained from the first on.
        decay: 0 < decay < 1.
        minimum: training rows below which a site tells nothing, >= 1.
        noise: >= 0.
        hidden: widths of d between features and sites.

    Returns:
        The objective.

    Raises:
        ConfigError: an argument is out of bounds; when a model is made, it does not say what its features are, or has
            a part called "domain".

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.fedharmony(optax.sgd(0.1)).bulletin.what
        'mean and standard deviation of its features, to all nodes'
    """
    at_least(0, strength=strength, after=after, noise=noise)
    at_least(1, minimum=minimum)
    fraction(decay=decay)

    def wrap(learner: Learner) -> Learner:
        table = jax.eval_shape(learner.init, jax.random.key(0))["private"][NAME]["rows"]["mean"]
        nodes, width = table.shape

        def network(key: Key) -> Tree:
            return adversary.discriminator(key, (width,), nodes, hidden, table.dtype)

        return _harmonised(beside(learner, NETWORK, network), table, strength, after, news)

    def news(params: Params, features: Array) -> Tree:
        """What is private after a step: the running statistics and, where the site is large enough, its row."""
        params, mean, sd = _running(params, features, decay)
        if noise:
            key, params = site_facts.drawn(params)
            one, two = jax.random.normal(key, (2, *sd.shape), sd.dtype)
            by = jnp.asarray(noise, sd.dtype) * sd
            mean, sd = mean + by * one, jnp.maximum(sd + by * two, 0)
        enough = params["private"]["site"]["samples"] >= minimum
        return bulletin.say(params, NAME, {"mean": mean, "sd": sd}, enough)

    what = "mean and standard deviation of its features, to all nodes"
    facts = ("samples", "entropy") if noise else ("samples",)
    return Objective(wrap, facts=facts, bulletin=Bulletin(NAME, _row, what, bound=1e4))


def _row(learner: Learner, x: tuple[int, ...]) -> Tree:
    like = featured(NAME, learner, x)
    told = jax.ShapeDtypeStruct((adversary.width(like.shape[1:]),), like.dtype)
    return {"mean": told, "sd": told}


def _harmonised(
    both: Learner, like: jax.ShapeDtypeStruct, strength: float, after: int, news: Callable[[Params, Array], Tree]
) -> Learner:
    """The learner of a model and its domain network, with the gradients of both adversaries.

    `like`: the means of all nodes [n, D]. `news`: of the model before a step and its features, what is private then.
    """

    def init(key: Key) -> Params:
        params = both.init(key)
        zero = jnp.zeros(like.shape[1:], like.dtype)
        running = {"steps": jnp.zeros((), jnp.int32), "mean": zero, "square": zero}
        return {**params, "private": {**params["private"], RUNNING: running}}

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        gradient, others, metrics = both.grad(params, batch, key)
        seen = partial(adversary.features_of, both, params, x=batch["x"], key=key)
        features, back = jax.vjp(seen, params["trained"])
        ready = params["private"][RUNNING]["steps"] >= after
        by = jnp.where(ready, jnp.asarray(strength, features.dtype), 0)
        (towards,) = back(by * jax.grad(_confused)(features, params))
        drawn = jax.random.fold_in(key, sum(NAME.encode()))
        to_network = jax.grad(_told_apart)(params["trained"][NETWORK], params, features, drawn)
        private = news({**params, "private": others["private"]}, features)
        return add(gradient, {**towards, NETWORK: to_network}), {**others, "private": private}, metrics

    return both._replace(init=init, grad=grad)


def _confused(features: Array, params: Params) -> Array:
    """How far the domain network is from taking all sites that have been heard for equally likely."""
    _, among = bulletin.heard(params, NAME)
    logits = jnp.where(among[None], adversary.judge(params["trained"][NETWORK], features), OUT_OF_THE_WAY)
    return adversary.confusion(logits, among).mean()


def _told_apart(network: Tree, params: Params, features: Array, key: Key) -> Array:
    """How badly the domain network tells the node's own features from those drawn for the others; sites count alike."""
    rows, among = bulletin.heard(params, NAME)
    mine, nodes = bulletin.own(params), among.shape[0]
    each = -(-features.shape[0] // max(nodes - 1, 1))
    eps = jax.random.normal(key, (nodes, each, features.shape[1]), features.dtype)
    drawn = rows["mean"][:, None] + rows["sd"][:, None] * eps
    own = jnp.where(among[None], adversary.judge(network, features), OUT_OF_THE_WAY)
    theirs = jax.vmap(lambda h: adversary.judge(network, h))(drawn)
    theirs = jnp.where(among[None, None], theirs, OUT_OF_THE_WAY)
    index = jnp.arange(nodes, dtype=jnp.int32)
    of_me = adversary.telling(own, jnp.broadcast_to(jnp.argmax(mine).astype(jnp.int32), own.shape[:1])).mean()
    of_them = jax.vmap(adversary.telling)(theirs, jnp.broadcast_to(index[:, None], (nodes, each))).mean(axis=1)
    by_site = jnp.where(among, jnp.where(mine, of_me, of_them), 0)
    return by_site.sum() / jnp.maximum(among.sum(), 1).astype(by_site.dtype)


def _running(params: Params, features: Array, decay: float) -> tuple[Params, Array, Array]:
    """The model with the running statistics of its features after a step, and their mean and sd [D]."""
    state = params["private"][RUNNING]
    steps = state["steps"] + 1
    share = jnp.maximum(1 - decay, 1 / steps.astype(features.dtype)).astype(features.dtype)

    def nearer(old: Array, new: Array) -> Array:
        return old + share * (new.mean(axis=0) - old)

    mean, square = nearer(state["mean"], features), nearer(state["square"], features**2)
    running = {"steps": steps, "mean": mean, "square": square}
    sd = jnp.sqrt(jnp.maximum(square - mean**2, 0))
    return {**params, "private": {**params["private"], RUNNING: running}}, mean, sd
