"""A choice among the personal models of all sites, row by row: where does this image come from?

A classifier of sites looks at what an image is like, not at what it shows; a row that looks surely like one site's is
answered by the personal model of that site, any other by the shared model. In the source it is a network trained in
federation by a server. Here it is a logistic regression on a few numbers of each row, which whoever has them can fit:
a simulation, or a node that was sent the personal models and `features` of some rows of each site. To send them is to
publish them: a personal model has seen one site alone, and features are the brightness of single images.

Source: Xu, Li, Guo, Yang, Roth, Hatamizadeh, Zhao, Xu, Huang, Xu, "Closing the generalization gap of cross-silo
federated medical image segmentation" (FedSM, 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax  # type: ignore[import-untyped]

from p2pfl.check import share
from p2pfl.errors import ConfigError
from p2pfl.types import Array, Learner, Params

BINS = 16
"""Of the histogram of a row."""
SHARED = -1
"""The choice of the shared model."""


class Selector(NamedTuple):
    """`choose(x [N, ...]) -> [N] int`: the site whose personal model answers, or SHARED. `predict(shared, x) ->
    outputs`, `shared` being the model that answers for all others. `fitted`: what `fitted` makes it again of."""

    choose: Callable[[np.ndarray], np.ndarray]
    predict: Callable[[Params, np.ndarray], np.ndarray]
    fitted: Mapping[str, np.ndarray]


def features(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """[N, 2 + BINS] float64 of rows x [N, ...]: mean, standard deviation, and shares of values between low and high.

    `low` and `high`: the range of the histogram, the same for all sites; what lies outside counts at its ends.
    """
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    width = (high - low) or 1.0
    index = np.clip(np.floor((flat - low) / width * BINS), 0, BINS - 1).astype(np.int64)
    counts = np.zeros((len(flat), BINS))
    np.add.at(counts, (np.arange(len(flat))[:, None], index), 1.0)
    return np.concatenate([flat.mean(axis=1)[:, None], flat.std(axis=1)[:, None], counts / flat.shape[1]], axis=1)


def selector(
    learner: Learner, personals: Sequence[Params], inputs: Sequence[np.ndarray], gamma: float = 0.9
) -> Selector:
    """The selector of sites whose training inputs are inputs[i] [N_i, ...] and whose personal models are personals[i].

    `gamma`, 0 <= gamma < 1: a site's model answers where its probability is above this. Sites count alike, whatever
    their number of rows. Raises ConfigError for another number of models than of sites, and for one site alone.
    """
    from sklearn.linear_model import LogisticRegression  # here: it takes a second to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    share(gamma=gamma)
    if len(personals) != len(inputs) or len(inputs) < 2:
        raise ConfigError(
            f"answers='selector': {len(personals)} personal models for {len(inputs)} sites; needs one for each, of two "
            "sites or more"
        )
    low = min(float(np.min(x)) for x in inputs)
    high = max(float(np.max(x)) for x in inputs)
    site = np.repeat(np.arange(len(inputs)), [len(x) for x in inputs])
    scaler, chooser = StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
    whole: Any = make_pipeline(scaler, chooser)
    whole.fit(np.concatenate([features(x, low, high) for x in inputs]), site)
    coef, intercept = chooser.coef_, chooser.intercept_
    if len(inputs) == 2:  # one row says it of both
        coef, intercept = np.concatenate([-coef / 2, coef / 2]), np.concatenate([-intercept / 2, intercept / 2])
    numbers = {"range": np.array([low, high]), "gamma": np.array(gamma), "mean": scaler.mean_, "sd": scaler.scale_}
    return fitted(learner, personals, {**numbers, "coef": coef, "intercept": intercept})


def fitted(learner: Learner, personals: Sequence[Params], numbers: Mapping[str, np.ndarray]) -> Selector:
    """The selector that was fitted before: `numbers` is its `fitted`."""
    low, high = numbers["range"].tolist()

    def choose(x: np.ndarray) -> np.ndarray:
        if not len(x):
            return np.zeros(0, np.int64)
        scaled = (features(x, low, high) - numbers["mean"]) / numbers["sd"]
        probability = softmax(scaled @ numbers["coef"].T + numbers["intercept"], axis=1)
        best = probability.argmax(axis=1)
        return np.where(probability.max(axis=1) > numbers["gamma"], best, SHARED)

    run = jax.jit(learner.predict)

    def answer(shared: Params, x: np.ndarray) -> np.ndarray:
        chosen, whole = choose(x), jnp.asarray(x)
        outputs = np.array(run(shared, whole))
        for i in np.unique(chosen[chosen != SHARED]).tolist():
            own: Array = run(personals[i], whole)
            outputs[chosen == i] = np.asarray(own)[chosen == i]
        return outputs

    return Selector(choose, answer, numbers)
