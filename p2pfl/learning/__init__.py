"""Learners, models, targets and metrics, and the local steps of a node."""

from __future__ import annotations

from p2pfl.learning.flax import cast, from_flax
from p2pfl.learning.local_steps import Descent, descend
from p2pfl.learning.models import MODELS
from p2pfl.learning.optimizers import optimizer
from p2pfl.learning.targets import TARGETS

__all__ = ["MODELS", "TARGETS", "Descent", "cast", "descend", "from_flax", "optimizer"]
