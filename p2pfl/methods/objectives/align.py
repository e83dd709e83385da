"""Features of pairs of sites aligned by adversaries: each site has a critic of its own (ABIDE's domain adaptation)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from p2pfl.check import at_least
from p2pfl.learning.optimizers import by_gradient
from p2pfl.methods import bulletin, site_facts
from p2pfl.methods.bulletin import Bulletin
from p2pfl.methods.objectives import adversary
from p2pfl.methods.objectives.objective import Objective, featured
from p2pfl.tree import add
from p2pfl.types import Array, Key, Learner, Metrics, Params, Tree

NAME, HOME = "align", "align_critic"


def align(
    optimizer: optax.GradientTransformation,
    strength: float = 0.1,
    rows: int = 8,
    noise: float = 0.001,
    after: int = 0,
    minimum: int = 10,
    hidden: Sequence[int] = (4,),
) -> Objective:
    """Features that a critic at each site can't tell from those of its neighbours: adversarial alignment over edges.

        critic D_i, at home: least of  -mean log D_i(h_i) - mean over neighbours j of mean log (1 - D_i(h_j))
        encoder:             least of  f - strength times the same, by reversing its gradient at h_i

    h are features with noise: h = e(x) + N(0, noise^2 sd^2), sd of all numbers of the batch. In every payload a node
    tells its neighbours `rows` of them, of the last local step, and nobody passes them on. **These are features of
    single patients**, and noise of the source's .001 hides nothing: a neighbour that inverts the encoder may see them.
    `fedharmony` tells means only.

    As in the source: critics of one hidden layer of 4, one for each site, against each other site; the noise; an
    encoder that is left alone for its first steps. Other: there all pairs of sites are aligned, here those with an
    edge; there the gradient of D_i also reaches the encoder of j, by which j is moved towards i, which needs gradients
    to travel: here j is moved towards i by its own critic; there the encoder takes the loss with labels turned round,
    here the reversed gradient, which has no bound: of a `strength` near 1 features grow without end. Critics have a
    copy of the experiment's optimizer. The noise follows from the seed in studies, and comes from the operating system
    elsewhere. Sources: Li, Gu, Dvornek,
    Staib, Ventola, Duncan, "Multi-site fMRI analysis using privacy-preserving federated learning and domain adaptation:
    ABIDE results" (2020), section 3.4.2; Ganin et al., "Domain-adversarial training of neural networks" (2016).

    Args:
        optimizer: of the experiment, or any of optax.
        strength: of the reversed gradient, >= 0.
        rows: that are told, >= 1; of a smaller batch some are told again.
        noise: >= 0, in standard deviations of the features.
        after: local steps of the node before its encoder is aligned, >= 0; its critic is trained from the first on.
        minimum: training rows below which a site tells nothing, >= 1.
        hidden: widths of a critic.

    Returns:
        The objective.

    Raises:
        ConfigError: an argument is out of bounds; when a model is made, it does not say what its features are.

    Example:
        >>> import optax, p2pfl
        >>> p2pfl.methods.objectives.align(optax.sgd(0.1)).bulletin.what
        'features of 8 of its rows, with noise, to neighbours'
    """
    at_least(0, strength=strength, noise=noise, after=after)
    at_least(1, rows=rows, minimum=minimum)
    by_gradient(optimizer, f"objective {NAME}")

    def row(learner: Learner, x: tuple[int, ...]) -> Tree:
        like = featured(NAME, learner, x)
        return jax.ShapeDtypeStruct((rows, adversary.width(like.shape[1:])), like.dtype)

    def wrap(learner: Learner) -> Learner:
        like = jax.eval_shape(learner.init, jax.random.key(0))["private"][NAME]["rows"]

        def critic(key: Key) -> Tree:
            return adversary.discriminator(key, like.shape[2:], 1, hidden, like.dtype)

        def blurred(params: Params, features: Array) -> tuple[Params, Array]:
            key, params = site_facts.drawn(params)
            eps = jax.random.normal(key, features.shape, features.dtype)
            return params, features + jnp.asarray(noise, features.dtype) * features.std() * eps

        def said(params: Params, features: Array) -> Tree:
            enough = params["private"]["site"]["samples"] >= minimum
            return bulletin.say(params, NAME, features[np.arange(rows) % features.shape[0]], enough)

        return _aligned(learner, optimizer, critic, (strength, after), blurred, said)

    what = f"features of {rows} of its rows, with noise, to neighbours"
    spec = Bulletin(NAME, row, what, bound=1e4, passed_on=False)
    return Objective(wrap, facts=("samples", "entropy"), bulletin=spec)


def _aligned(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    critic: Callable[[Key], Tree],
    when: tuple[float, int],
    blurred: Callable[[Params, Array], tuple[Params, Array]],
    said: Callable[[Params, Array], Tree],
) -> Learner:
    """The learner with a critic at home. `when`: the strength, and the step from which on.

    `blurred`: of features, with the noise that they get; `said`: what is private once they have been told.
    """
    strength, after = when

    def init(key: Key) -> Params:
        params = learner.init(key)
        network = critic(jax.random.fold_in(key, sum(NAME.encode())))
        home = {"steps": jnp.zeros((), jnp.int32), "network": network, "optimizer": optimizer.init(network)}
        return {**params, "private": {**params["private"], HOME: home}}

    def grad(params: Params, batch: Tree, key: Key) -> tuple[Tree, Params, Metrics]:
        gradient, others, metrics = learner.grad(params, batch, key)
        seen = partial(adversary.features_of, learner, params, x=batch["x"], key=key)
        features, back = jax.vjp(seen, params["trained"])
        now, told = blurred({**params, "private": others["private"]}, features)
        home = params["private"][HOME]
        to_critic, to_features = jax.grad(_criticised, argnums=(0, 1))(home["network"], told, params)
        by = jnp.where(home["steps"] >= after, jnp.asarray(strength, features.dtype), 0)
        (towards,) = back(by * to_features)
        updates, memory = optimizer.update(to_critic, home["optimizer"], home["network"])
        network = optax.apply_updates(home["network"], updates)
        home = {"steps": home["steps"] + 1, "network": network, "optimizer": memory}
        return add(gradient, towards), {**others, "private": {**said(now, told), HOME: home}}, metrics

    return learner._replace(init=init, grad=grad)


def _criticised(network: Tree, features: Array, params: Params) -> Array:
    """The critic's loss, whose gradient is reversed at the node's own features; 0 as long as no others are heard of."""
    rows, among = bulletin.heard(params, NAME)
    others = among & ~bulletin.own(params)
    own = adversary.telling_two(adversary.judge(network, adversary.reverse(features)), True).mean()
    each = jax.vmap(lambda h: adversary.telling_two(adversary.judge(network, h), False).mean())(rows)
    theirs = jnp.where(others, each, 0).sum() / jnp.maximum(others.sum(), 1).astype(each.dtype)
    return jnp.where(others.any(), own + theirs, 0)
