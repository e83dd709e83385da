"""Who the members are: what stands of the changes in a document, by their signatures alone.

A change stands on the assembly before it when members of that assembly have signed it in the number that the quorum
demands. Who is a member, and whose signature counts, follows from the changes before it, and so from nothing that
another copy of the document could say otherwise. Where two changes stand on one assembly, which takes a member that has
signed both, the longer chain is followed; of two as long, the one that revokes first where they part, then the smaller
digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from p2pfl.errors import RemoteError
from p2pfl.trust import document as documents
from p2pfl.trust.document import MOST_SITES, QUORUMS, Change, Document, Founding
from p2pfl.trust.keys import Purpose
from p2pfl.trust.sites import Card, Site

PER_SIGNER, PENDING = 4, 128
"""Changes without their quorum, of a kind, that a member may have signed at one assembly; and that are kept in all."""


class Assembly(NamedTuple):
    """The members after a change, or after the founding."""

    digest: str  # of the change, or the federation's id
    number: int  # of the change; 0: the founding
    sites: Mapping[int, Site]  # the members
    former: Mapping[int, Site]  # who was one, and was revoked

    @property
    def next_node(self) -> int:
        """The id of the next member: none is ever used again."""
        return max((*self.sites, *self.former)) + 1

    def after(self, change: Change, digest: str) -> Assembly:
        """Return the assembly that a change leads to."""
        node = change.site.node
        if change.kind == "add":
            return Assembly(digest, change.number, {**self.sites, node: change.site}, self.former)
        left = {each: site for each, site in self.sites.items() if each != node}
        return Assembly(digest, change.number, left, {**self.former, node: self.sites[node]})


class Pending(NamedTuple):
    """A change of the assembly that stands now, which lacks signatures."""

    change: Change
    by: tuple[int, ...]  # who has signed it
    needed: int  # signatures in all


class Reading(NamedTuple):
    """What a document says."""

    founding: Founding
    assemblies: Mapping[str, Assembly]  # by digest: the founding one, and that of each change that stands
    changes: Mapping[str, Change]  # of the document, by digest
    chain: tuple[Change, ...]  # the changes that are followed, the first one first

    @property
    def head(self) -> Assembly:
        """The assembly of now."""
        return self.assemblies[self.chain[-1].digest if self.chain else self.founding.digest]

    def path(self, digest: str) -> tuple[Change, ...]:
        """Return the changes that lead to an assembly."""
        return _path(self.changes, digest)

    def needed(self, change: Change) -> int:
        """Return how many signatures a change needs, whose assembly is known."""
        return documents.needed(self.founding.quorum, len(self.assemblies[change.previous].sites), change.kind)


def read(document: Document) -> Reading:
    """Return what a document says, whose signatures are known to be right.

    Args:
        document: of which `verify` found nothing wrong.

    Returns:
        Every assembly in it, and the chain that is followed.

    Example:
        >>> from p2pfl.trust import assembly, document, keys, sites
        >>> key = [keys.PrivateKey(bytes([i]) * 32) for i in (1, 2, 3)]
        >>> site = [sites.Site(i, f"site-{i}", key[i].public, f"tcp://host-{i}:5700") for i in (0, 1, 2)]
        >>> hearts = document.founded("hearts", "majority", tuple(site))
        >>> away = assembly.revocation(assembly.read(hearts).head, 2)
        >>> one = document.signed(hearts, away, 0, key[0])
        >>> sorted(assembly.read(one).head.sites), [each.by for each in assembly.pending(one)]
        ([0, 1, 2], [(0,)])
        >>> both = document.signed(one, away, 1, key[1])
        >>> sorted(assembly.read(both).head.sites), assembly.pending(both)
        ([0, 1], ())
    """
    return _read(document)


def _read(document: Document, check: bool = False) -> Reading:
    """`check`: whether each change fits where it says that it belongs; raises RemoteError."""
    founding = document.founding
    first = Assembly(founding.digest, 0, {each.node: each for each in founding.sites}, {})
    assemblies, changes = {first.digest: first}, {change.digest: change for change in document.changes}
    reading = Reading(founding, assemblies, changes, ())
    for digest, change in sorted(changes.items(), key=lambda each: each[1].number):
        before = assemblies.get(change.previous)
        if check:
            _check_place(before, change)
        if before is not None and len(document.changes[change]) >= reading.needed(change):
            assemblies[digest] = before.after(change, digest)
    longest = max(each.number for each in assemblies.values())
    heads = [_path(changes, digest) for digest, each in assemblies.items() if each.number == longest]
    return reading._replace(chain=min(heads, key=_rank))


def _path(changes: Mapping[str, Change], digest: str) -> tuple[Change, ...]:
    path = []
    while digest in changes:
        path.append(changes[digest])
        digest = changes[digest].previous
    return tuple(reversed(path))


def _rank(path: Sequence[Change]) -> list[tuple[bool, str]]:
    """Of chains of one length the least is followed: a revocation is not undone by an invitation."""
    return [(each.kind != "revoke", each.digest) for each in path]


def pending(document: Document) -> tuple[Pending, ...]:
    """Return the changes of the assembly of now that lack signatures, in the order of their digests."""
    reading = read(document)
    at_head = sorted((digest, each) for digest, each in reading.changes.items() if each.previous == reading.head.digest)
    return tuple(Pending(each, tuple(sorted(document.changes[each])), reading.needed(each)) for _, each in at_head)


def said(document: Document) -> tuple[object, ...]:
    """Return what a document says: who has accepted, what stands, and what waits with whose signatures.

    Copies that say the same may hold other signatures under a change that stands, where more have signed than must.
    """
    reading = read(document)
    stands = sorted(digest for digest in reading.changes if digest in reading.assemblies)
    waits = sorted(
        (digest, *sorted(document.changes[each]))
        for digest, each in reading.changes.items()
        if digest not in reading.assemblies
    )
    return document.id, tuple(sorted(document.accepted)), tuple(stands), tuple(waits)


def addition(head: Assembly, card: Card) -> Change:
    """Return the change that adds the site of a card."""
    return Change(head.number + 1, head.digest, "add", card.site(head.next_node), card.signature)


def revocation(head: Assembly, node: int) -> Change:
    """Return the change that revokes a member."""
    return Change(head.number + 1, head.digest, "revoke", head.sites[node]._replace(address="", reachable=True))


# --- what is wrong with a document


def verify(document: Document, known: Document | None = None) -> Reading:
    """Check every signature and rule of a document.

    Args:
        document: of which nothing is known.
        known: a document that was checked: what stands there, too, is not checked again.

    Returns:
        What it says.

    Raises:
        RemoteError: something is wrong with it, with one word for what, and the place.

    Example:
        >>> from p2pfl.trust import assembly, document, keys, sites
        >>> key = [keys.PrivateKey(bytes([i]) * 32) for i in (1, 2, 3)]
        >>> site = [sites.Site(i, f"site-{i}", key[i].public, f"tcp://host-{i}:5700") for i in (0, 1, 2)]
        >>> hearts = document.founded("hearts", "majority", tuple(site))
        >>> forged = document.accepted(hearts, 1, key[0])  # for another
        >>> assembly.verify(forged)
        Traceback (most recent call last):
        ...
        p2pfl.errors.RemoteError: signature: member[1].signature: is not that of site-1 under this founding part
    """
    _verify_founding(document, known)
    reading = _read(document, check=True)
    _verify_bounds(document, reading)
    for change in document.changes:
        _verify_signatures(document, reading.assemblies[change.previous], change, known)
    return reading


def unfit(before: Assembly, change: Change) -> RemoteError | None:
    """Return why a change can't be made to an assembly; None where it can."""
    site = change.site
    if change.kind == "revoke":
        member = before.sites.get(site.node)
        if member is None or (member.name, member.key) != (site.name, site.key):
            return RemoteError("subject", f"node={site.node}: no member with this id, name and key is there to revoke")
        return RemoteError("subject", f"node={site.node}: is the last member") if len(before.sites) == 1 else None
    if site.node != before.next_node:
        return RemoteError("subject", f"node={site.node}: must be {before.next_node}, the next that nobody has had")
    if len(before.sites) >= MOST_SITES:
        return RemoteError("bounds", f"there are {MOST_SITES} members, and there can be no more")
    everyone = (*before.sites.values(), *before.former.values())
    for other in everyone:
        if other.key.same_link(site.key):
            said = "of a member that was revoked; make another" if other.node in before.former else "that of a member"
            return RemoteError("duplicate", f"key: is that of {other.name}: {said}")
    return _taken(before.sites.values(), site)


def _taken(sites: Iterable[Site], site: Site) -> RemoteError | None:
    for other in sites:
        if other.name == site.name:
            return RemoteError("duplicate", f"name={site.name!r}: a member has it; names must differ")
        if other.address.lower() == site.address.lower():
            return RemoteError("duplicate", f"address={site.address!r}: is that of {other.name}; each needs its own")
    return None


def _verify_founding(document: Document, known: Document | None) -> None:
    founding = document.founding
    if founding.quorum not in QUORUMS:
        raise RemoteError("format", f"quorum={founding.quorum[:20]!r}: must be one of {', '.join(QUORUMS)}")
    if not 1 <= len(founding.sites) <= MOST_SITES:
        raise RemoteError("bounds", f"{len(founding.sites)} founding members: there can be 1 to {MOST_SITES}")
    for at, site in enumerate(founding.sites):
        if site.node != at:
            raise RemoteError("subject", f"member[{at}].node={site.node}: must be {at}, its place in the file")
        same = next((each for each in founding.sites[:at] if each.key.same_link(site.key)), None)
        wrong = _taken(founding.sites[:at], site)
        if same is not None:
            wrong = RemoteError("duplicate", f"key: is that of {same.name}, too")
        if wrong is not None:
            raise RemoteError(wrong.reason, f"member[{at}].{wrong.detail}")
    seen = known.accepted if known is not None and known.founding == founding else {}
    for node, signature in document.accepted.items():
        if not 0 <= node < len(founding.sites):
            raise RemoteError("stranger", f"accepted by node {node}, which is no founding member")
        site = founding.sites[node]
        right = seen.get(node) == signature or site.key.verify(Purpose.FOUNDING, founding.message, signature)
        if not right:
            raise RemoteError(
                "signature", f"member[{node}].signature: is not that of {site.name} under this founding part"
            )


def _check_place(before: Assembly | None, change: Change) -> None:
    if before is None or before.number + 1 != change.number:
        raise RemoteError(
            "previous", f"{_place(change)}: previous: is neither this federation nor a change that stands here"
        )
    wrong = unfit(before, change)
    if wrong is not None:
        raise RemoteError(wrong.reason, f"{_place(change)}: {wrong.detail}")


def _place(change: Change) -> str:
    return f"change {change.number} ({change})"


def _verify_bounds(document: Document, reading: Reading) -> None:
    """What lacks its quorum is bounded before a signature of it is looked at: no honest copy holds more."""
    counts: dict[tuple[str, str, int], int] = {}
    loose = [each for digest, each in reading.changes.items() if digest not in reading.assemblies]
    for change in loose:
        for node in document.changes[change]:
            of_whom = change.previous, change.kind, node
            counts[of_whom] = counts.get(of_whom, 0) + 1
    if len(loose) > PENDING or any(count > PER_SIGNER for count in counts.values()):
        raise RemoteError("bounds", f"{len(loose)} changes without a quorum; one member may have signed {PER_SIGNER}")


def _verify_signatures(document: Document, before: Assembly, change: Change, known: Document | None) -> None:
    signatures, where = document.changes[change], _place(change)
    seen = known.changes.get(change, {}) if known is not None else {}
    if not signatures:
        raise RemoteError("signature", f"{where}: nobody has signed it")
    if change.kind == "add" and not seen:
        site = change.site
        if not Card(site.name, site.key, site.address, site.reachable, change.card).genuine:
            raise RemoteError("card", f"{where}: card: is not signed with the key of {site.name}")
    for node, signature in signatures.items():
        if node in before.former:
            raise RemoteError("revoked", f"{where}: signed by {before.former[node].name}, which was revoked before")
        if node not in before.sites:
            raise RemoteError("stranger", f"{where}: signed by node {node}, which is no member")
        member = before.sites[node]
        if seen.get(node) != signature and not member.key.verify(Purpose.CHANGE, change.message, signature):
            raise RemoteError("signature", f"{where}: the signature of {member.name} is not its own")
