"""How two copies of a federation file become one: a union, the same in any order, bounded.

What is kept: the chains that are longest, and every change without its quorum at the assembly of now or at the one
before it, since only there it can still be followed. (No chain of two copies together is longer by more than one change
than it is in one of them: a change is made to an assembly that stands already.) That makes `merge` commutative,
idempotent, and associative in what the copies say (`assembly.said`); with one exception: of what a member signs beyond
its bound, which no command of p2pfl does, other signatures may be left over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from p2pfl.errors import RemoteError
from p2pfl.trust import assembly, tables
from p2pfl.trust.assembly import PENDING, PER_SIGNER, Reading
from p2pfl.trust.document import Change, Document


class Followed(NamedTuple):
    """What has become of one's own copy when another came."""

    document: Document
    changed: bool  # it says more than before
    forked: bool  # the other has followed changes that exclude ours, and neither goes back
    undone: tuple[Change, ...]  # a change of ours that no longer stands: another stands in its place, and it did not


def merge(one: Document, other: Document) -> Document:
    """Return what two copies say together.

    Args:
        one: a copy of which `assembly.verify` found nothing wrong.
        other: another.

    Returns:
        Their union, without what can no longer matter.

    Raises:
        RemoteError: they are of different federations.

    Example:
        >>> from p2pfl.trust import assembly, document, keys, merging, sites
        >>> key = [keys.PrivateKey(bytes([i]) * 32) for i in (1, 2, 3)]
        >>> site = [sites.Site(i, f"site-{i}", key[i].public, f"tcp://host-{i}:5700") for i in (0, 1, 2)]
        >>> hearts = document.founded("hearts", "majority", tuple(site))
        >>> away = assembly.revocation(assembly.read(hearts).head, 2)
        >>> here, there = (document.signed(hearts, away, i, key[i]) for i in (0, 1))
        >>> merged = merging.merge(here, there)
        >>> sorted(assembly.read(merged).head.sites), merged == merging.merge(there, here)
        ([0, 1], True)
    """
    if one.founding != other.founding:
        raise RemoteError(
            "federation", f"is of another federation: {other.founding.name} {other.id[:16]}, not {one.id[:16]}"
        )
    changes = {
        change: _least(one.changes.get(change, {}), other.changes.get(change, {}))
        for change in {**one.changes, **other.changes}
    }
    return _kept(one._replace(accepted=_least(one.accepted, other.accepted), changes=changes))


def follow(own: Document, other: Document) -> Followed:
    """Return what one's own copy becomes: it never goes back behind the change before its last.

    Args:
        own: what this node goes by.
        other: what has come, of the same federation, and checked.

    Returns:
        The copy to go by from now on, and what is to be said of it.

    Raises:
        RemoteError: they are of different federations, or would be too large together (`size`).

    Example:
        >>> from p2pfl.trust import document, keys, merging, sites
        >>> key = keys.PrivateKey(bytes(32))
        >>> alone = document.founded("f", "all", (sites.Site(0, "a", key.public, "tcp://a:1"),))
        >>> merging.follow(alone, document.accepted(alone, 0, key))[1:]
        (True, False, ())
    """
    merged = merge(own, other)
    changed = assembly.said(merged) != assembly.said(own)
    if changed:
        tables.pack(merged)  # what could not travel on is not taken
    mine, new, theirs = (assembly.read(each).chain for each in (own, merged, other))
    if new[: len(mine[:-1])] != mine[:-1]:
        return Followed(own, False, True, ())
    forked = new[: len(theirs[:-1])] != theirs[:-1]
    return Followed(
        merged,
        assembly.said(merged) != assembly.said(own),
        forked,
        tuple(each for each in mine[-1:] if each not in new),
    )


def _least(one: Mapping[int, bytes], other: Mapping[int, bytes]) -> dict[int, bytes]:
    """The signatures of both; of two by one member, which only it can make, the smaller."""
    return {node: min(each[node] for each in (one, other) if node in each) for node in sorted({**one, **other})}


def _kept(document: Document) -> Document:
    """The part of a union that can still matter; see the head of this file for why it is the same in any order."""
    reading = assembly.read(document)
    longest = len(reading.chain)
    kept: dict[Change, Mapping[int, bytes]] = {}

    def keep_path(digest: str) -> None:
        for change in reading.path(digest):
            of_least = sorted(document.changes[change].items())[: reading.needed(change)]
            kept[change] = dict(of_least)

    for digest, each in reading.assemblies.items():
        if each.number == longest:
            keep_path(digest)
    waiting = _bounded(document, reading, longest)
    for change in waiting:
        keep_path(change.previous)
    kept.update(waiting)
    in_order = sorted(kept, key=lambda each: (each.number, each.digest))
    return document._replace(changes={change: kept[change] for change in in_order})


def _bounded(document: Document, reading: Reading, longest: int) -> dict[Change, Mapping[int, bytes]]:
    """The changes without their quorum that are kept: so many of a kind that one has signed; and so many in all."""
    by_signer: dict[tuple[str, str, int], list[str]] = {}
    for digest, change in reading.changes.items():
        before = reading.assemblies.get(change.previous)
        if before is not None and before.number >= longest - 1 and digest not in reading.assemblies:
            for node in document.changes[change]:
                by_signer.setdefault((change.previous, change.kind, node), []).append(digest)
    ranks: dict[str, dict[int, int]] = {}
    for (_, _, node), digests in by_signer.items():
        for rank, digest in enumerate(sorted(digests)[:PER_SIGNER]):
            ranks.setdefault(digest, {})[node] = rank
    # every member's first comes before anybody's second: nobody keeps another from being heard
    chosen = sorted(
        ranks, key=lambda digest: (min(ranks[digest].values()), reading.changes[digest].kind != "revoke", digest)
    )[:PENDING]
    result: dict[Change, Mapping[int, bytes]] = {}
    for digest in chosen:
        change = reading.changes[digest]
        result[change] = {node: document.changes[change][node] for node in sorted(ranks[digest])}
    return result
