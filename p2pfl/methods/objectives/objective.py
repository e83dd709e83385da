"""The type of an objective, apart from the table of them, so that others can bring their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from p2pfl.data import Dataset
from p2pfl.errors import ConfigError
from p2pfl.methods.compose import Wrap
from p2pfl.types import Learner


class Objective(NamedTuple):
    """A method: what it does to the learner, and where it needs that, to the algorithm.

    `facts`: what it asks to know of each site, names of p2pfl.methods.site_facts.FACTS, then found
    in params["private"]["site"].
    `given`: the same, where the experiment says it for each node: name -> [n, ...].
    `suits`: raises ConfigError for data that it can't be used with.
    """

    learner: Callable[[Learner], Learner] | None = None
    wrap: Wrap | None = None
    facts: tuple[str, ...] = ()
    given: Mapping[str, np.ndarray] = MappingProxyType({})
    suits: Callable[[Dataset], None] | None = None


def of_kinds(name: str, *kinds: str) -> Callable[[Dataset], None]:
    """`suits` of a method for data of these kinds alone."""

    def suits(dataset: Dataset) -> None:
        if dataset.kind not in kinds:
            raise ConfigError(
                f"objective {name}: is for data of kind {' or '.join(kinds)}, and these are of kind {dataset.kind}; "
                "leave it out"
            )

    return suits
