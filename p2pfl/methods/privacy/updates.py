"""Noise on the whole update of a round, before it is sent: what a node does not want to tell, whatever its rows are."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from p2pfl import tree
from p2pfl.check import at_least, one_of, positive
from p2pfl.errors import ConfigError
from p2pfl.learning.local_steps import steps_in
from p2pfl.methods import site_facts
from p2pfl.methods.objectives.objective import Objective
from p2pfl.methods.privacy.accountant import LAWS
from p2pfl.methods.privacy.dp_sgd import ALLOWED, NAME, NOISE, counting_steps, noised, shown
from p2pfl.types import Algorithm, Array, Batches, Key, Learner, Metrics, Neighborhood, State, Steps, Tree

SENDING = frozenset({"dsgd", "dmsgd", "fedprox", "fedavg", "epidemic"})
"""Algorithms whose models are what the local steps make of them; and where no more is sent than that (some arguments
send a momentum, too), nothing of the steps goes past the noise."""


def noised_updates(clip: float, law: str = "gaussian", correlated: float = 0.0) -> Objective:
    """Clip and noise what the local steps of a round have done to the model: x <- x + u min(1, C / |u|) + s C noise.

    u is the whole update of the leaves that travel, after any number of local steps of any optimizer; s is the node's
    noise multiplier, its fact NOISE. Whatever rows a node has, its update lies within C of none at all, and what it
    sends tells them from any others by as much as the noise lets it: local differential privacy, of all rows at once.
    An update that is not finite counts as none. |u| is Euclidean with Gaussian noise, and the sum of absolute values
    with Laplace's. A node whose fact ALLOWED is used up takes no local step any more.

    Noise on updates is that of Ho et al., "FedSGDCOVID: federated SGD COVID-19 detection under local differential
    privacy using chest X-ray images and symptom information" (2022; one step a round is their case) and of
    Hatamizadeh et al., "Do gradient inversion attacks make federated learning unsafe?" (2023, which clips nothing and
    accounts for nothing). Laplace's mechanism: Dwork, McSherry, Nissim, Smith, "Calibrating noise to sensitivity in
    private data analysis" (2006).

    Args:
        clip: C, the largest norm of an update, > 0.
        law: "gaussian", or "laplace": s C is then Laplace's scale.
        correlated: of the noise that each pair of neighbours shares, see `dp_sgd`; Gaussian.

    Returns:
        The objective, which must be the first of all; it asks for the facts "entropy", ALLOWED and NOISE.

    Raises:
        ConfigError: an argument is out of bounds; when applied, a model with batch statistics, or an algorithm that
            sends more than the model.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> from p2pfl.methods.privacy import noised_updates
        >>> noised_updates(1.0).wrap(p2pfl.algorithms.dsgd(learner(2), optax.adam(0.1))).travels
        'the model, each update clipped to 1 and with gaussian noise'
    """
    positive(clip=clip)
    one_of(LAWS, law=law)
    at_least(0, correlated=correlated)

    def wrap(inner: Algorithm) -> Algorithm:
        if inner.name not in SENDING or inner.learner is None or not _sends_the_model(inner, inner.learner):
            raise ConfigError(
                f'privacy.of="updates": {inner.name} sends more of the local steps than the model that they lead to '
                f'({inner.travels}); use {", ".join(sorted(SENDING))} without a momentum that travels, or of = "rows"'
            )
        learner = inner.learner

        def local(state: State, batches: Batches, key: Key, steps: Steps | None) -> tuple[State, Metrics]:
            before = inner.params(state)
            told = before["private"][NAME]["steps"]
            wanted = jnp.asarray(steps_in(batches), jnp.int32) if steps is None else steps
            trains = (wanted > 0) & (told < before["private"]["site"][ALLOWED])
            after, metrics = inner.local(state, batches, key, jnp.where(trains, wanted, 0))
            params = inner.params(after)
            own, params = site_facts.drawn(params)
            site = before["private"]["site"]
            update = _clipped(jax.tree.map(jnp.subtract, params["trained"], before["trained"]), clip, law)
            update = noised(update, own, clip * site[NOISE], law, clip * correlated, site, told)
            moved = jax.tree.map(lambda old, by: jnp.where(trains, old + by, old), before["trained"], update)
            private = {**params["private"], NAME: {"steps": told + trains.astype(told.dtype)}}
            after = inner.replaced(after, {**params, "trained": moved, "private": private})
            return after, shown(learner, before, batches, metrics, trains)

        travels = f"{inner.travels}, each update clipped to {clip:g} and with {law} noise"
        return inner._replace(local=local, travels=travels, any_steps=False)

    return Objective(counting_steps, wrap=wrap, facts=("entropy",))


def _sends_the_model(algorithm: Algorithm, learner: Learner) -> bool:
    """Return whether what goes to a neighbour is a model, and nothing beside it."""
    params, around = tree.drawn(learner.init), Neighborhood(jnp.ones(1), jnp.ones(1))
    payload = jax.eval_shape(lambda params: algorithm.send(algorithm.init(params, 1), around)[1], params)
    return tree.is_model(payload) and payload.keys() <= params.keys()


def _clipped(update: Tree, clip: float, law: str) -> Tree:
    """The update, shortened to the norm of its law; zero where it is not finite."""
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(update)]
    if law == "laplace":
        norm = jnp.asarray(sum(jnp.abs(leaf).sum() for leaf in leaves), jnp.float32)
    else:
        norm = jnp.sqrt(jnp.asarray(sum((leaf**2).sum() for leaf in leaves), jnp.float32))
    factor = jnp.where(norm > clip, clip / jnp.maximum(norm, clip), 1)

    def one(leaf: Array) -> Array:
        return jnp.where(jnp.isfinite(norm), leaf * factor.astype(leaf.dtype), 0)

    return jax.tree.map(one, update)
