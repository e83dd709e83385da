"""Differential privacy of what leaves a site: the mechanism, its accountant, and what others in the graph see of it."""

from p2pfl.methods.privacy.accountant import Sampling, epsilon, noise_for, of_gaussian, steps_within
from p2pfl.methods.privacy.dp_sgd import dp_sgd
from p2pfl.methods.privacy.joint_view import projection, sensitivity

__all__ = ["Sampling", "dp_sgd", "epsilon", "noise_for", "of_gaussian", "projection", "sensitivity", "steps_within"]
