"""Decentralised learning algorithms, one file each, and the table of their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from p2pfl.algorithms.ad_psgd import ad_psgd
from p2pfl.algorithms.d2 import d2
from p2pfl.algorithms.dfedavg import dfedavg
from p2pfl.algorithms.dmsgd import dmsgd
from p2pfl.algorithms.dsgd import dsgd
from p2pfl.algorithms.epidemic import epidemic
from p2pfl.algorithms.exact_diffusion import exact_diffusion
from p2pfl.algorithms.fedavg import fedavg
from p2pfl.algorithms.fedprox import fedprox, proximal
from p2pfl.algorithms.gossip_learning import gossip_learning
from p2pfl.algorithms.gradient_tracking import gradient_tracking
from p2pfl.algorithms.local import local
from p2pfl.algorithms.outer import outer
from p2pfl.algorithms.push_sum import push_sum
from p2pfl.algorithms.qg_dsgdm import qg_dsgdm
from p2pfl.types import Algorithm

_MAKERS = (
    dsgd, dmsgd, qg_dsgdm, gradient_tracking, exact_diffusion, d2, push_sum, epidemic, ad_psgd, gossip_learning,
    dfedavg, outer, fedavg, fedprox, local,
)  # fmt: skip

ALGORITHMS: Mapping[str, Callable[..., Algorithm]] = MappingProxyType({maker.__name__: maker for maker in _MAKERS})
"""Makers `(learner, optimizer, **arguments) -> Algorithm` by name."""

__all__ = [
    "ALGORITHMS",
    "ad_psgd",
    "d2",
    "dfedavg",
    "dmsgd",
    "dsgd",
    "epidemic",
    "exact_diffusion",
    "fedavg",
    "fedprox",
    "gossip_learning",
    "gradient_tracking",
    "local",
    "outer",
    "proximal",
    "push_sum",
    "qg_dsgdm",
]
