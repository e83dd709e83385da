"""Settings of a node: where it is, and how patient."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from p2pfl.drivers.live.trusted import Trusted
from p2pfl.protocol.membership.wire import dialer

if TYPE_CHECKING:  # whoever only asks a node how it stands has no need of jax
    from p2pfl.node.plan import Terms


class Place(NamedTuple):
    """The place of a node: its addresses, whom it knows, and how patient it is."""

    listen: str  # tcp://HOST:PORT for models; the membership is on the port after it
    address: str  # what the others are told; as `listen`, unless that names no host
    peers: Sequence[str]  # addresses of other members; one is enough
    terms: Terms
    probe_timing: str  # of the membership
    directory: Path
    every: int  # rounds from checkpoint to checkpoint; 0: none
    resume: bool  # go on from the checkpoint in the directory
    returns: int = 0  # the round of the planned return or join that this process is; 0: it is none, or not said
    after: int = 0  # all nodes were stopped, and begin together after this round; 0: they were not
    admitted: int = 0  # nodes that there can be, where those who vouch for that have admitted more than are planned
    kept_by: str = ""  # digest of what checkpoints must have in common; "": that of the terms
    trusted: Trusted | None = None  # whose keys are taken; None: nobody has one, and nothing is sealed
    calls: bool = False  # nobody can call it: it calls whoever can be called


def membership_address(address: str) -> str:
    """Return the address of the membership of a node whose models are at this one: the next port."""
    return _other_port(address, 1)


def models_address(address: str) -> str:
    """Return the address of the models of a node whose membership is at this one."""
    return _other_port(address, -1)


def _other_port(address: str, step: int) -> str:
    if dialer(address) is not None:  # it has none
        return address
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + step}"
