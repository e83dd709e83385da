"""Methods that a study adds to an algorithm: sharing, weighting, objectives, statistics, answers.

A combinator makes of an algorithm another one: `chain(dsgd(learner, optimizer), by_samples(), cast())`. `keep` and the
makers in `objectives` make of a learner another one.
"""

from __future__ import annotations

from p2pfl.methods import answers, objectives, sharing, statistics, watching
from p2pfl.methods.adapters import lora
from p2pfl.methods.compose import WRAPS, Wrap, cast, chain, withhold
from p2pfl.methods.fourier import fourier
from p2pfl.methods.freezing import freeze
from p2pfl.methods.masking import masked
from p2pfl.methods.noise import noise
from p2pfl.methods.robust import clip, dos, geometric_median, krum, median, monna, multi_krum, trimmed_mean
from p2pfl.methods.sharing import PRESETS, keep, predicate
from p2pfl.methods.shatter import shatter
from p2pfl.methods.starting import start
from p2pfl.methods.weighting import by_labels, by_loss, by_samples, by_similarity
from p2pfl.methods.zip_dl import zip_dl

__all__ = [
    "PRESETS",
    "WRAPS",
    "Wrap",
    "answers",
    "by_labels",
    "by_loss",
    "by_samples",
    "by_similarity",
    "cast",
    "chain",
    "clip",
    "dos",
    "fourier",
    "freeze",
    "geometric_median",
    "keep",
    "krum",
    "lora",
    "masked",
    "median",
    "monna",
    "multi_krum",
    "noise",
    "objectives",
    "predicate",
    "sharing",
    "shatter",
    "start",
    "statistics",
    "trimmed_mean",
    "watching",
    "withhold",
    "zip_dl",
]
