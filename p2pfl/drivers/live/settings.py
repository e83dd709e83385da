"""Where a node is, and how patient."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from p2pfl.node.plan import Terms


class Place(NamedTuple):
    """Where a node is, whom it knows, and how patient it is."""

    listen: str  # tcp://HOST:PORT for models; the membership is on the port after it
    address: str  # what the others are told; as `listen`, unless that names no host
    peers: Sequence[str]  # addresses of other members; one is enough
    terms: Terms
    rhythm: str  # of the membership
    directory: Path
    every: int  # rounds from checkpoint to checkpoint; 0: none
    resume: bool  # go on from the checkpoint in the directory


def beside(address: str, step: int = 1) -> str:
    """The address of a node's membership, which is on the port after that of its models; -1: the way back."""
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + step}"
