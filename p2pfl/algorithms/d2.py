"""D2: exact diffusion with W itself in place of (I + W) / 2: faster, and unsafe for some graphs.

    x+ = W (2 x - x(before) - eta (g(x) - g(x before))),        x1 = W (x0 - eta g(x0))

Source: Tang, Lian, Yan, Zhang, Liu, "D2: decentralized training over decentralized data" (2018), algorithm 1. A mode of
W with eigenvalue lambda <= -1/3 makes it diverge, so such a W is refused when the experiment is built: even rings lie
on that edge exactly, tori and hypercubes beyond it. On graphs that change from round to round it diverges even where
every W is safe by itself, so these are refused as well.

What travels, the state and its class are those of `exact_diffusion`.
"""

from __future__ import annotations

import optax

from p2pfl.algorithms.exact_diffusion import corrected
from p2pfl.types import Algorithm, Demands, Learner


def d2(learner: Learner, optimizer: optax.GradientTransformation) -> Algorithm:
    """Reach the optimum on unequal data where every eigenvalue of W is greater than -1/3: D2.

    Source: Tang et al. (2018), see the head of this file.

    Args:
        learner: what is learned: the first model, gradients and evaluation.
        optimizer: any optax optimizer of the local steps; its state stays at home.

    Returns:
        The algorithm, for any driver.

    Example:
        >>> import optax, p2pfl
        >>> from p2pfl.learning.quadratic import learner
        >>> p2pfl.algorithms.d2(learner(2), optax.sgd(0.1)).demands.above < 0
        True
    """
    why = "d2 diverges there: it needs one W whose eigenvalues are all > -1/3. Use exact_diffusion, safe for every W"
    return corrected("d2", learner, optimizer, 1.0)._replace(demands=Demands("symmetric", -1 / 3, why))
