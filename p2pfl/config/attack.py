"""The tables [[attack]] of an experiment: which nodes lie to their neighbours, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from p2pfl.check import LIST, STRICT
from p2pfl.config.unions import Tagged, members

Nodes = Annotated[tuple[Annotated[int, Field(ge=0)], ...], LIST]


@dataclass(frozen=True, config=STRICT)
class ScaledAttack:
    """Nodes that lie by so much."""

    nodes: Nodes  # that lie
    by: Literal["sign_flip", "scaling", "noise", "random", "alie", "ipm", "dissensus", "equivocation"]
    scale: Annotated[float, Field(gt=0)] | None = None  # by how much; the usual of each


@dataclass(frozen=True, config=STRICT)
class PlainAttack:
    """Nodes that lie, with nothing to be said of how much."""

    nodes: Nodes
    by: Literal["label_flip", "nan", "mimic"]


Attack = ScaledAttack | PlainAttack
"""[[attack]]: nodes that lie."""
AttackTable = Annotated[Attack, Tagged(("by",))]
KINDS = members(Attack)
"""The dataclasses of [[attack]]."""
EACH = ("dissensus", "equivocation")
"""Attacks that tell each neighbour something else."""
