"""Differential privacy of what leaves a site: the mechanism, its accountant, and what others in the graph see of it."""

from p2pfl.methods.privacy.accountant import Sampling, epsilon, noise_for, of_gaussian, of_updates, steps_within
from p2pfl.methods.privacy.dp_sgd import dp_sgd
from p2pfl.methods.privacy.joint_view import covariance, of_all_messages, projection, sensitivity
from p2pfl.methods.privacy.updates import noised_updates

__all__ = [
    "Sampling",
    "covariance",
    "dp_sgd",
    "epsilon",
    "noise_for",
    "noised_updates",
    "of_all_messages",
    "of_gaussian",
    "of_updates",
    "projection",
    "sensitivity",
    "steps_within",
]
