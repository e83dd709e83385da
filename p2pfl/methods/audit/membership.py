"""Was this row in a node's training data? By its loss, and by its loss beside that of models without it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats  # type: ignore[import-untyped]

from p2pfl.check import at_least
from p2pfl.learning import metrics
from p2pfl.learning.local_steps import descend
from p2pfl.methods.audit.heard import Overheard
from p2pfl.types import Array, Learner, Params


class Detection(NamedTuple):
    """How well members are told from others."""

    auc: float  # 0.5: not at all
    caught: float  # members found at 1 % of false alarms, at most


def by_loss(heard: Overheard, params: Params, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return how much each row looks like a member by its loss alone: [N], the surer the model the more.

    Source: Yeom, Giacomelli, Fredrikson, Jha, "Privacy risk in machine learning" (2018), adversary 2, whose threshold
    is left open here: an AUC is over all of them. In place of the loss the log odds of the true class, of the same
    order.
    """
    return _odds(heard, params, x, y)


def by_shadows(
    heard: Overheard, params: Params, x: np.ndarray, y: np.ndarray, shadows: int = 16, steps: int = 200, seed: int = 0
) -> np.ndarray:
    """Return how unlikely each row's log odds would be, had it not been trained on: [N] in 0..1.

    Shadow models are trained on halves of the node's own rows, so that no candidate is in them: LiRA, offline. Their
    log odds of a row are taken for normal. Source: Carlini, Chien, Nasr, Song, Terzis, Tramèr, "Membership inference
    attacks from first principles" (2022), algorithm 1 offline, with one variance for all rows as they advise where
    shadows are few. Unlike there the shadows are of a few rows and of other ones than the candidates come from.

    Args:
        heard: what the node has.
        params: the model that is asked.
        x: [N, ...] candidates; none of them the node's own.
        y: [N] int32 their labels.
        shadows: >= 2.
        steps: of Adam, each on as many rows as a local step has.
        seed: of halves and batches.
    """
    at_least(2, shadows=shadows)
    at_least(1, steps=steps)
    learner, own = heard.facts.learner, len(heard.x)
    rng = np.random.default_rng(seed)
    half = max(own // 2, 1)
    size = min(heard.facts.batch_size, half)
    rows = np.stack(
        [rng.permutation(own)[:half][rng.integers(0, half, (steps, size))] for _ in range(shadows)]
    )  # fmt: skip
    models = fitted(learner, heard.first, heard.x, heard.y, rows, seed)
    out = np.stack([_odds(heard, model, x, y) for model in models])
    mean, sd = out.mean(axis=0), float(np.sqrt(out.var(axis=0, ddof=1).mean()))
    found: np.ndarray = stats.norm.cdf((_odds(heard, params, x, y) - mean) / max(sd, 1e-9))
    return found


def fitted(learner: Learner, first: Params, x: np.ndarray, y: np.ndarray, rows: np.ndarray, seed: int) -> list[Params]:
    """Return a model for each of rows [K, S, B]: after S steps of Adam (rate .001), each on the rows x[rows[k, s]]."""
    rule = optax.adam(1e-3)

    @jax.jit
    def train(rows: Array) -> Params:
        batches = {"x": jnp.asarray(x)[rows], "y": jnp.asarray(y)[rows]}
        return descend(learner, rule, first, rule.init(first["trained"]), batches, jax.random.key(seed)).params

    return [train(each) for each in rows]


def told(score: np.ndarray, member: np.ndarray) -> Detection | None:
    """Return how well a score tells members from others; None where there are none of either. The truth: [N] bool.

    >>> told(np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, True, False, False]))
    Detection(auc=1.0, caught=1.0)
    """
    from sklearn import metrics as scores  # here: it takes 0.7 s

    if member.all() or not member.any():
        return None
    false, true, _ = scores.roc_curve(member, score)
    return Detection(float(scores.roc_auc_score(member, score)), float(true[false <= 0.01].max()))


def _odds(heard: Overheard, params: Params, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Log odds of the true class against all others together: [N] float64."""
    outputs = np.asarray(jax.jit(heard.facts.learner.predict)(params, jnp.asarray(x)))
    found: np.ndarray = metrics.margins(outputs)[np.arange(len(y)), y]
    return found
