"""The federation file as a value: a founding part that never changes, and changes of it, each with its signatures.

Nothing here says what stands: that follows from the signatures, in `assembly`. How two copies become one: `merging`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from p2pfl.trust.keys import PrivateKey, Purpose
from p2pfl.trust.sites import Site, canonical

QUORUMS = ("majority", "two_thirds", "all")
KINDS = ("add", "revoke")
MOST_SITES = 128
"""Members that a federation can have at once."""
MOST_BYTES = 256 * 1024
"""Of a document, as it travels."""


class Founding(NamedTuple):
    """What the founding members have signed."""

    name: str
    quorum: str  # one of QUORUMS
    sites: tuple[Site, ...]  # node ids 0, 1, ...

    @property
    def message(self) -> bytes:
        """What each of them signs."""
        sites = [[each.node, each.name, str(each.key), each.address, each.reachable] for each in self.sites]
        return canonical("founding", 1, self.name, self.quorum, sites)

    @property
    def digest(self) -> str:
        """The federation's id."""
        return _digest(self.message)


class Change(NamedTuple):
    """A member more, or one less."""

    number: int  # 1, 2, ...
    previous: str  # digest of the change before it, or the federation's id
    kind: str  # one of KINDS
    site: Site  # whom it adds or revokes; of one that is revoked without its address, which does not matter then
    card: bytes = b""  # signature of the card by which the new member has said who it is

    @property
    def message(self) -> bytes:
        """What members sign: with what was before, so that it fits nowhere else."""
        site = self.site
        head = (self.kind, self.number, self.previous, site.node, site.name, str(site.key))
        return (
            canonical(*head)
            if self.kind == "revoke"
            else canonical(*head, site.address, site.reachable, self.card.hex())
        )

    @property
    def digest(self) -> str:
        """By which the next change names it."""
        return _digest(self.message)

    def __str__(self) -> str:
        return f"{self.kind} {self.site.name}"

    @property
    def effect(self) -> str:
        """What it has done, where it is in force: east is a member, node 3."""
        name = self.site.name
        return f"{name} is a member, node {self.site.node}" if self.kind == "add" else f"{name} is revoked"


class Document(NamedTuple):
    """A copy of the federation file."""

    founding: Founding
    accepted: Mapping[int, bytes]  # signature of each founding member that has accepted, by node
    changes: Mapping[Change, Mapping[int, bytes]]  # signatures of each change, by node

    @property
    def id(self) -> str:
        """Of the federation."""
        return self.founding.digest


def founded(name: str, quorum: str, sites: tuple[Site, ...]) -> Document:
    """Return a federation that nobody has accepted yet."""
    return Document(Founding(name, quorum, sites), MappingProxyType({}), MappingProxyType({}))


def accepted(document: Document, node: int, key: PrivateKey) -> Document:
    """Return the document with the signature of a founding member, whose key this is."""
    signature = key.sign(Purpose.FOUNDING, document.founding.message)
    return document._replace(accepted={**document.accepted, node: signature})


def signed(document: Document, change: Change, node: int, key: PrivateKey) -> Document:
    """Return the document with the signature of a member under a change, which may be new."""
    signatures = {**document.changes.get(change, {}), node: key.sign(Purpose.CHANGE, change.message)}
    return document._replace(changes={**document.changes, change: signatures})


def needed(quorum: str, members: int, kind: str) -> int:
    """Return how many signatures a change needs.

    Args:
        quorum: one of QUORUMS.
        members: how many there are before the change.
        kind: one of KINDS. Where all must sign, all others are enough to revoke one, who may have lost its key; of two,
            neither revokes the other.

    Returns:
        The least number of members.

    Example:
        >>> from p2pfl.trust.document import needed
        >>> [needed("majority", n, "add") for n in (1, 2, 3, 4, 5)]
        [1, 2, 2, 3, 3]
        >>> [needed("two_thirds", n, "add") for n in (1, 2, 3, 4, 5)]
        [1, 2, 2, 3, 4]
        >>> [needed("all", n, "revoke") for n in (1, 2, 3, 4, 5)]
        [1, 2, 2, 3, 4]
    """
    if quorum == "majority":
        return members // 2 + 1
    if quorum == "two_thirds":
        return -(-2 * members // 3)
    return max(members - 1, min(members, 2)) if kind == "revoke" else members


def _digest(message: bytes) -> str:
    return hashlib.blake2b(message, digest_size=32, person=b"p2pfl federate").hexdigest()
