"""Exact algorithms that ignore epochs: their corrections stay as they are when the membership changes.

What p2pfl does is `restart`; this is what it is compared with. A correction that a lost node takes away is missing from
the sum for ever, so that these end beside the optimum (see tests/test_simulate_epochs.py).
"""

from __future__ import annotations

from typing import Any

import p2pfl
from p2pfl import Algorithm


def gradient_tracking(learner: Any, optimizer: Any) -> Algorithm:
    """Gradient tracking, never restarted."""
    return p2pfl.algorithms.ALGORITHMS["gradient_tracking"](learner, optimizer)._replace(restart=None)


def exact_diffusion(learner: Any, optimizer: Any) -> Algorithm:
    """Exact diffusion, never restarted."""
    return p2pfl.algorithms.ALGORITHMS["exact_diffusion"](learner, optimizer)._replace(restart=None)
